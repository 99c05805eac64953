"""Functions of which a call runs nothing: generator and async functions (semantics 3.1)."""

import concurrent.futures
import contextlib
import functools
import sys

import pytest

import sequent as seq
from runtools import a_flow, a_private_temporary_folder, the_task  # noqa: F401

HAS_RUN = sys.version_info >= (3, 7)    # asyncio.run
needs_run = pytest.mark.skipif(not HAS_RUN, reason='not for Python 3.6: no asyncio.run')

#: Every construct and start method: name -> config.
WAYS = {
    'inline': {'task_construct': 'inline'},
    'thread': {'task_construct': 'thread'},
    'pool': {'task_construct': 'pool'},
    'thread executor': {'task_construct': 'executor',
                        'executor': concurrent.futures.ThreadPoolExecutor},
    'process executor': {'task_construct': 'executor', 'executor': functools.partial(
        concurrent.futures.ProcessPoolExecutor, 1)},
}
WAYS.update((method, {'task_construct': 'process', 'start_method': method})
            for method in seq.start_methods())


def rows():
    yield 1


async def fetch(number=0):
    return number, seq.current().name


async def fail():
    raise ValueError('no rows')


async def stream():
    yield 1


class Loader:
    """Has each kind of method, and is called as an async function itself."""

    async def __call__(self, number=0):
        return await fetch(number)

    async def fetch(self, number=0):
        return await fetch(number)

    def rows(self):
        yield 1

    @classmethod
    async def stream(cls):
        yield 1


class RowLoader:
    def __call__(self):
        yield 1


def passing_on(function):
    @functools.wraps(function)
    def decorated(*args):
        return function(*args)
    return decorated


def working(function):
    """Decorate a generator function so that it is gone over."""
    @functools.wraps(function)
    def decorated(*args):
        return list(function(*args))
    return decorated


@passing_on
async def decorated_fetch(number=0):
    return await fetch(number)


@passing_on
def decorated_rows():
    yield 1


@passing_on
async def decorated_stream():
    yield 1


@working
def worked_rows():
    yield 1


@contextlib.contextmanager
def context():
    yield 1


def forgets_to_await():
    return fetch()


ASYNC = [fetch, functools.partial(fetch), functools.partial(functools.partial(fetch)), Loader(),
         Loader().fetch, functools.partial(Loader().fetch), decorated_fetch,
         functools.partial(decorated_fetch)]
NEVER_RUN = [
    (rows, 'a generator'), (stream, 'an async generator'),
    (functools.partial(rows), 'a generator'), (Loader().rows, 'a generator'),
    (RowLoader(), 'a generator'), (Loader.stream, 'an async generator'),
    (functools.partial(Loader().rows), 'a generator')]
UNFINISHED = [(decorated_rows, 'a generator'), (decorated_stream, 'an async generator'),
              (forgets_to_await, 'a coroutine'), (context, 'a context manager of contextlib')]


def a_flow_by(way, **config):
    return a_flow(construct=None, config=dict({'start_method': None}, **dict(WAYS[way], **config)))


@needs_run
@pytest.mark.parametrize('way', WAYS)
def test_an_async_function_runs_in_its_task_and_its_result_is_kept(way):
    # semantics 1.7
    flow = a_flow_by(way)
    for number, function in enumerate(ASYNC):
        flow.add_step('a%d' % number, func=function, args=(number,))

    assert flow() is True

    assert [the_task(flow, 'a%d' % number).result for number in range(len(ASYNC))] == [
        (number, 'a%d' % number) for number in range(len(ASYNC))]


@needs_run
@pytest.mark.parametrize('way', WAYS)
def test_what_an_async_function_raises_fails_its_step(way):
    # semantics 1.7
    flow = a_flow_by(way)
    flow.add_step('a', func=fail)

    assert flow() is False

    assert the_task(flow, 'a').error == 'ValueError: no rows'


@needs_run
def test_an_async_function_is_retried_like_any_other():
    # semantics 1.7, 4.6
    calls = []

    async def fails_once():
        calls.append(1)
        assert len(calls) > 1

    flow = a_flow(config={'retries': 1})
    flow.add_step('a', func=fails_once)

    assert flow() is True
    assert len(calls) == 2


@pytest.mark.skipif(HAS_RUN, reason='not for Pythons with asyncio.run')
def test_an_async_function_is_refused_where_there_is_no_asyncio_run():
    # semantics 1.7
    with pytest.raises(seq.FlowTypeError, match="step 'a': .*fetch.* needs Python 3.7"):
        a_flow().add_step('a', func=fetch)


@pytest.mark.parametrize('kind', [seq.Sequent, seq.Eventor])
@pytest.mark.parametrize('function, made', NEVER_RUN)
def test_a_function_of_which_a_call_runs_nothing_is_refused_by_name(kind, function, made):
    # semantics 1.7
    with pytest.raises(seq.FlowTypeError, match="step 'a': a call of its func .* makes %s" % made):
        kind('etl', store=':memory:').add_step('a', func=function)


@pytest.mark.filterwarnings('ignore:coroutine .* was never awaited:RuntimeWarning')
@pytest.mark.parametrize('keep', [True, False])
@pytest.mark.parametrize('way', WAYS)
def test_a_result_that_has_not_run_yet_is_a_failure(way, keep):
    # semantics 1.7
    flow = a_flow_by(way, keep_result=keep, stop_on_exception=False)
    for number, (function, _) in enumerate(UNFINISHED):
        flow.add_step('a%d' % number, func=function)

    assert flow() is False

    for number, (_, made) in enumerate(UNFINISHED):
        task = the_task(flow, 'a%d' % number)
        assert task.status == 'failure'
        assert task.error.startswith('its function returned %s, whose work was not done' % made)


def test_an_eventor_fails_a_step_whose_result_has_not_run_yet():
    flow = seq.Eventor('etl', store=':memory:', config={'task_construct': 'inline'})
    event = flow.add_event('begin')
    flow.add_assoc(event, flow.add_step('a', func=decorated_rows))
    flow.trigger_event(event)

    assert flow() is False

    assert 'its function returned a generator' in the_task(flow, 'a').error


def test_a_decorator_that_does_the_work_of_a_generator_is_none():
    flow = a_flow()
    flow.add_step('a', func=worked_rows)

    assert flow() is True
    assert the_task(flow, 'a').result == [1]


@pytest.mark.parametrize('loop, made', [
    (fetch, 'a coroutine'), (stream, 'an async generator'), (Loader(), 'a coroutine')])
def test_a_loop_that_cannot_be_gone_over_is_refused_when_it_is_given(loop, made):
    with pytest.raises(seq.FlowTypeError, match="step 'a': a call of its loop .* makes " + made):
        a_flow().add_step('a', func=int, loop=loop)


def test_a_generator_function_is_a_loop():
    # semantics 1.7
    flow = a_flow()
    flow.add_step('a', func=int, args=(seq.item,), loop=rows)

    assert flow() is True
    assert the_task(flow, 'a', '1.1').result == 1


@pytest.mark.parametrize('function', [rows, fetch, stream, Loader()])
def test_a_parameter_whose_type_makes_no_value_is_refused(function):
    with pytest.raises(seq.FlowTypeError, match="parameter 'async_kind': a call of its type"):
        seq.parameter('async_kind', default='1', type=function)
