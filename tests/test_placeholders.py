"""Where placeholders are filled in, and that they are refused everywhere else."""

import collections
import functools
import logging
import types

import pytest

import sequent as seq
from flowtools import executed_lines
from runtools import (  # noqa: F401
    a_flow, a_private_temporary_folder, construct, journal, store, the_task)
from sequent import FlowTypeError


def give(value):
    return value


def show(*args, **kwargs):
    return args, kwargs


class Options:
    def __init__(self, rows):
        self.rows = rows


class Slots:
    __slots__ = ('rows',)

    def __init__(self, rows):
        self.rows = rows


class Load(Options):
    def __call__(self):
        return self.rows


class Owner:
    """Makes a flow of its own methods, and keeps what it is made of."""

    def __init__(self, flow):
        self.flow = flow
        self.extract = flow.add_step('extract', func=self.do_extract)
        self.rows = self.extract.result
        flow.add_step('load', func=self.do_load, args=(self.rows,))

    def do_extract(self):
        return 3

    def do_load(self, rows):
        return rows + 1


# Text and truth ###################################################################


@pytest.mark.parametrize('use', [
    str, bool, '{}'.format, '{:>9}'.format, 'rows: %s'.__mod__, format, lambda one: not one,
    lambda one: f'{one}', lambda one: one or [], lambda one: ' '.join(map(str, [one]))],
    ids=['str', 'bool', 'format', 'format spec', 'percent', 'format()', 'not', 'f-string', 'or',
         'join'])
@pytest.mark.parametrize('make', [
    lambda flow: flow.add_step('extract', func=int).result,
    lambda flow: flow.add_step('c', loop=[1]).item, lambda flow: seq.item],
    ids=['result', 'item', 'own item'])
def test_no_text_is_made_of_a_placeholder_and_no_condition_asks_for_it(make, use):
    # semantics 17.1
    with pytest.raises(TypeError, match='<(result|item).*pass it by itself, as in args='):
        use(make(a_flow()))


def test_a_placeholder_has_a_repr_and_can_be_copied_and_compared():
    flow = a_flow()
    result = flow.add_step('extract', func=int).result

    assert repr(result) == '<result of extract>'
    assert '%r %r' % (result, [result]) == '<result of extract> [<result of extract>]'
    assert repr(seq.item) == '<item>'
    assert result == result and result in [result] and {result: 1}[result] == 1


def test_a_command_with_placeholders_has_a_text(store):
    flow = a_flow(store)
    command = seq.Command(['echo', flow.add_step('extract', func=int).result])

    assert '<result of extract>' in str(command)
    flow.add_step('load', func=command)
    assert flow() is True


# Where they are filled ############################################################


def test_a_partial_is_filled_as_a_function_and_as_an_argument(construct, store):
    # semantics 17.1
    flow = a_flow(store, construct)
    e = flow.add_step('extract', func=give, args=(3,))
    flow.add_step('func', func=functools.partial(
        functools.partial(show, e.result, [e.result]), rows=(e.result,)), args=(e.result,))
    flow.add_step('arg', func=lambda call: call(), args=(functools.partial(give, e.result),))

    assert flow() is True

    assert the_task(flow, 'func').result == ((3, [3], 3), {'rows': (3,)})
    assert the_task(flow, 'arg').result == 3


def test_a_partial_stays_as_it_was_and_keeps_its_attributes():
    flow = a_flow()
    e = flow.add_step('extract', func=give, args=(3,))
    given = functools.partial(give, e.result)
    given.name = 'mine'
    flow.add_step('load', func=lambda one: (one.name, one()), args=(given,))

    assert flow() is True

    assert the_task(flow, 'load').result == ('mine', 3)
    assert given.args == (e.result,)


@pytest.mark.parametrize('method', ['spawn', 'forkserver', 'pool'])
def test_a_partial_is_filled_where_functions_are_sent(method):
    # semantics 17.1
    if method != 'pool' and method not in seq.start_methods():
        pytest.skip('not for this version of Python: no %s' % method)
    flow = a_flow(construct='pool' if method == 'pool' else 'process',
                  config={'start_method': None if method == 'pool' else method})
    e = flow.add_step('extract', func=give, args=(3,))
    flow.add_step('load', func=functools.partial(give, e.result))
    flow.add_step('item', func=functools.partial(give, seq.item), loop=[5])

    assert flow() is True

    assert the_task(flow, 'load').result == 3
    assert the_task(flow, 'item', '1.1').result == 5


def test_a_dataclass_is_filled_and_its_own_methods_are_not_called(construct, store):
    # semantics 17.1
    dataclasses = pytest.importorskip('dataclasses', reason='not for Python 3.6: no dataclasses')
    plain_class = dataclasses.make_dataclass('Plain', ['rows', ('size', int, 0)])
    frozen_class = dataclasses.make_dataclass('Frozen', ['rows'], frozen=True)
    late_class = dataclasses.make_dataclass('Late', [
        ('rows', list, dataclasses.field(init=False))])
    flow = a_flow(store, construct)
    e = flow.add_step('extract', func=give, args=([3],))
    late = late_class()
    late.rows = late.kept = e.result
    given = plain_class(e.result), frozen_class([plain_class(e.result, 2)]), late, late_class()
    flow.add_step('load', func=lambda plain, frozen, late, unset: (
        plain.rows, plain.size, frozen.rows[0].rows, late.rows + late.kept,
        hasattr(unset, 'rows')),
        args=given)

    assert flow() is True

    assert the_task(flow, 'load').result == ([3], 0, [3], [3, 3], False)
    assert given[0].rows is given[1].rows[0].rows is e.result


def test_a_callable_dataclass_is_filled():
    dataclasses = pytest.importorskip('dataclasses', reason='not for Python 3.6: no dataclasses')
    call_class = dataclasses.make_dataclass('Call', ['rows'], namespace={
        '__call__': lambda self: self.rows})
    flow = a_flow()
    flow.add_step('load', func=call_class(flow.add_step('extract', func=give, args=(3,)).result))

    assert flow() is True
    assert the_task(flow, 'load').result == 3


def test_what_a_partial_asks_for_is_required_first(store, journal):
    # semantics 17.1
    flow = a_flow(store, 'thread')
    e = flow.add_step('extract', func=lambda: journal.note('extract'), delay=0.05)
    flow.add_step('load', func=functools.partial(lambda rows: journal.note('load'), e.result))

    assert flow() is True
    assert journal.words() == ['extract', 'load']


# Where they are refused ###########################################################

HIDING = {
    'attribute': lambda result: Options(result),
    'nested': lambda result: [Options({'rows': Options([result])})],
    'slot': lambda result: Slots(result),
    'namespace': lambda result: types.SimpleNamespace(rows=result),
    'deque': lambda result: collections.deque([result]),
    'set in a tuple': lambda result: ({1, frozenset([result])},),
    'iterator': lambda result: iter([result]),
    'generator': lambda result: (one for one in [result]),
    'proxy': lambda result: types.MappingProxyType({'rows': result}),
    'key': lambda result: {(result, 1): 2},
    'object in a dataclass or partial': lambda result: functools.partial(give, Options(result)),
    'subclass of partial': lambda result: type('Mine', (functools.partial,), {})(give, result),
    'default': lambda result: lambda rows=result: rows,
    'keyword default': lambda result: lambda *, rows=[result]: rows,
    'closure': lambda result: lambda: give(result),
    'closure of a closure': lambda result: (lambda inner: lambda: inner())(lambda: give(result)),
    'callable object': lambda result: Load(result),
}


@pytest.mark.parametrize('given', ['args', 'kwargs', 'loop'])
@pytest.mark.parametrize('hiding', sorted(HIDING))
def test_a_placeholder_that_is_hidden_in_an_object_is_refused(hiding, given, journal):
    # semantics 17.1
    flow = a_flow()
    e = flow.add_step('extract', func=journal.note, args=('extract',))
    value = HIDING[hiding](e.result)
    value = {'args': (value,), 'kwargs': {'x': value}, 'loop': [value]}[given]
    with pytest.raises(FlowTypeError, match="step 'load': .*<result of extract>"):
        flow.add_step('load', func=show, **{given: value})
        flow()
    assert journal.words() == []


@pytest.mark.parametrize('hiding', [one for one in sorted(HIDING)
                                    if callable(HIDING[one](None))])
@pytest.mark.parametrize('kind', [seq.Sequent, seq.Eventor])
def test_a_function_that_holds_a_placeholder_is_refused(hiding, kind, journal):
    # semantics 17.1
    flow = kind('etl', store=':memory:', config={'task_construct': 'inline'})
    e = flow.add_step('extract', func=journal.note, args=('extract',))
    with pytest.raises(FlowTypeError, match="step 'load': .*(<result of extract>|placeholders)"):
        flow.add_step('load', func=HIDING[hiding](e.result))
        flow()
    assert journal.words() == []


def test_an_eventor_refuses_placeholders_in_a_partial():
    # semantics 17.1
    flow = seq.Eventor('etl', store=':memory:')
    e = flow.add_step('extract', func=give)
    with pytest.raises(FlowTypeError, match="step 'load': placeholders"):
        flow.add_step('load', func=functools.partial(give, e.result))


def test_a_step_in_place_of_its_result_is_refused():
    # semantics 17.1
    flow = a_flow()
    e = flow.add_step('extract', func=int)
    for given in ({'args': (e,)}, {'kwargs': {'rows': e}}, {'args': ([{'rows': e}],)},
                  {'func': functools.partial(show, e)}):
        with pytest.raises(FlowTypeError, match="step 'load': its arguments hold <Step extract> "
                           r'itself; .*args=\(extract.result,\).*require=extract'):
            flow.add_step('load', **dict({'func': show}, **given))


@pytest.mark.parametrize('make', [
    lambda result: lambda: [result()], lambda result: lambda: iter([(1, result())]),
    lambda result: lambda: [{'rows': [result()]}]])
def test_an_item_that_holds_a_placeholder_fails_the_loop_when_it_comes(make, construct):
    # semantics 17.1
    flow, steps = a_flow(construct=construct), {}
    flow.add_step('load', func=give, args=(seq.item,),
                  loop=make(lambda: steps['extract'].result))
    steps['extract'] = flow.add_step('extract', func=give, args=(3,))

    assert flow() is False

    error = the_task(flow, 'load').error
    assert error.startswith('its loop failed: FlowTypeError: an item of it holds <result of '
                            'extract>')


# What is no mistake ###############################################################


def test_an_object_that_makes_the_flow_may_keep_its_placeholders():
    owner = Owner(a_flow())

    assert owner.flow() is True
    assert the_task(owner.flow, 'load').result == 4


def test_arguments_may_hold_the_flow_and_its_steps_in_objects():
    flow = a_flow()
    e = flow.add_step('extract', func=give, args=(3,))
    flow.add_step('first', func=give, args=(e.result,))
    other = a_flow(name='other')
    other.add_step('b', func=give, args=(other.add_step('a', func=give, args=(1,)).result,))
    other.compile()
    flow.add_step('load', func=lambda *given: len(given), args=(
        Options(e), Options(flow), Options(other), logging.getLogger(), Options, seq))

    assert flow() is True
    assert the_task(flow, 'load').result == 6


def test_objects_are_searched_once_however_many_steps_have_them():
    def cost(steps):
        flow = a_flow()
        shared = Options([Options([one]) for one in range(1000)])
        for number in range(steps):
            flow.add_step('s%d' % number, func=show, args=(shared,))
        return executed_lines(flow.compile)

    assert cost(20) < 1.5 * cost(1)
