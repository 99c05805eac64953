"""What the predecessor got wrong (semantics 10)."""

import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

pytest_plugins = ['flowtools']

import sequent as seq  # noqa: E402
from flowtools import (  # noqa: E402
    CONSTRUCTS, PATIENCE, do_nothing, executed_lines, on_all_constructs, statuses, task_of)

# Loops side by side (10.1) #######################################################


@pytest.mark.parametrize('construct', CONSTRUCTS)
def test_sibling_loops_at_once_run_all_iterations_and_their_join(         # semantics 10.1
        new_flow, trace, construct):
    flow = new_flow(task_construct=construct, max_concurrent=4)
    loops = [flow.add_step(name, loop=(1, 2)) for name in ('one', 'two')]
    for container in loops:
        container.add_step('a', func=trace.run)
    flow.add_step('join', func=trace.run, require=tuple(loops))

    assert flow.run() is True

    assert sorted(trace.lines) == ['join@1', 'one_a@1.1', 'one_a@1.2', 'two_a@1.1', 'two_a@1.2']
    assert trace.lines[-1] == 'join@1'


def test_sibling_loops_really_run_at_once(memory_flow, trace):            # semantics 10.1
    flow = memory_flow(task_construct='thread', max_concurrent=2)
    for name, other in (('one', 'two'), ('two', 'one')):
        container = flow.add_step(name, loop=(1, 2))
        container.add_step('a', func=lambda other=other: trace.meet(
            '%s_a@%s' % (other, seq.current().sequence)))

    assert flow.run() is True

    assert len(trace.lines) == 4


# Requirements (10.2, 10.3) #######################################################


@on_all_constructs
def test_what_requires_complete_of_a_failed_step_runs(new_flow, trace, construct):
    flow = new_flow(task_construct=construct)                             # semantics 10.2
    bad = flow.add_step('bad', func=trace.fail)
    flow.add_step('after', func=trace.run, require=((bad, seq.STEP_COMPLETE),))

    assert flow.run() is False     # 3.2: what merely runs because of a failure makes it not good

    assert trace.lines == ['bad@1', 'after@1']


@pytest.mark.parametrize('construct', ['process', 'thread'])
def test_or_does_not_wait_for_its_first_operand(memory_flow, trace, construct):   # semantics 10.3
    flow = memory_flow(task_construct=construct, max_concurrent=3)
    first = flow.add_step('first', func=trace.meet, args=('after@1',))
    second = flow.add_step('second', func=trace.run)
    flow.add_step('after', func=trace.run, require=seq.or_(first, second))

    assert flow.run() is True      # 'first' ends only when 'after' has run

    assert trace.lines.index('after@1') > trace.lines.index('second@1')


@on_all_constructs
def test_a_nested_tuple_is_and(new_flow, trace, construct):               # semantics 10.3
    flow = new_flow(task_construct=construct)
    a, b, c = (flow.add_step(name, func=trace.run) for name in 'abc')
    flow.add_step('d', func=trace.run, require=(a, (b, (c, seq.STEP_SUCCESS))))
    flow.add_step('e', func=trace.run, require=(a, (b, (c, seq.STEP_FAILURE))))

    assert flow.run() is True

    assert sorted(trace.lines[:3]) == ['a@1', 'b@1', 'c@1']
    assert trace.lines[3:] == ['d@1']


@pytest.mark.parametrize('further', [
    lambda a: [((a, seq.STEP_SUCCESS),)], lambda a: [()], lambda a: [(a,), 5], lambda a: [[1, 2]]])
def test_the_fifth_argument_which_was_the_requirement_is_refused(flow, trace, further):
    # semantics 1.9
    a = flow.add_step('a', func=trace.run)
    for parent in (flow, flow.add_step('c')):
        with pytest.raises(seq.FlowTypeError, match="step 'b': what follows kwargs .*require="):
            parent.add_step('b', trace.run, (), {}, *further(a))


@pytest.mark.parametrize('make', [
    lambda flow, a: a, lambda flow, a: (a, seq.STEP_SUCCESS),
    lambda flow, a: [(a, seq.STEP_FAILURE)], lambda flow, a: [(1, (a,))],
    lambda flow, a: flow.add_event(a), lambda flow, a: [flow.add_event(a)],
    lambda flow, a: seq.or_(a)])
@pytest.mark.parametrize('spelling', ['loop', 'repeat', 'repeats'])
def test_a_requirement_as_the_loop_is_refused(flow, make, spelling):
    # semantics 1.9
    loop = make(flow, flow.add_step('a', func=do_nothing))

    with pytest.raises(seq.FlowTypeError, match="step 'b': its loop holds .* give it as require="):
        flow.add_step('b', func=do_nothing, **{spelling: loop})


def test_a_step_that_a_loop_yields_fails_the_loop(memory_flow, trace):
    # semantics 1.9
    flow = memory_flow()
    a = flow.add_step('a', func=trace.run)
    flow.add_step('b', func=trace.run, loop=lambda: iter([(a, seq.STEP_SUCCESS)]))

    assert flow.run() is False

    assert trace.lines == []
    assert 'an item of it holds <Step a>' in task_of(flow, 'b').error
    assert 'require=' in task_of(flow, 'b').error


# Names (10.4) ####################################################################


@pytest.mark.parametrize('name', [
    'pre-load', '2nd', 'a b', 'class', 'naïve', 'x.y', 'a/b', '../../a', '%', "'", '"', ';', '-',
    ' ', '\n', '\u0394', 'n' * 300])
def test_a_name_may_be_any_text(new_flow, trace, name):                   # semantics 10.4
    flow = new_flow()
    first = flow.add_step(name, func=do_nothing)
    container = flow.add_step('c' + name, require=first)
    inner = container.add_step(name, func=do_nothing)
    container.add_step('after', func=lambda: trace('after inner'), require=inner)
    flow.add_step('after', func=lambda: trace('after all'), require=(first, container))

    assert flow.run() is True

    assert trace.lines == ['after inner', 'after all']
    assert [task.path for task in flow.tasks()] == [
        name, 'c' + name, 'c%s_%s' % (name, name), 'c%s_after' % name, 'after']


@pytest.mark.parametrize('name', ['pre-load', '../../a b', 'n' * 300])
def test_processes_run_steps_of_any_name(memory_flow, trace, name):       # semantics 10.4
    flow = memory_flow(task_construct='process')
    flow.add_step('after', func=trace.run, require=flow.add_step(name, func=do_nothing))

    assert flow.run() is True

    assert trace.lines == ['after@1']


# Functions and how they end (10.5, 10.6) #########################################


def test_processes_run_lambdas(new_flow, trace):                          # semantics 10.5
    flow = new_flow(task_construct='process')
    flow.add_step('a', func=lambda: trace(seq.current().name, os.getpid() != parent))
    parent = os.getpid()

    assert flow.run() is True

    assert trace.lines == ['a True']


class LocalError(Exception):
    """Cannot be unpickled: its constructor wants more than ``args``."""

    def __init__(self, host, port):
        Exception.__init__(self, 'no connection to %s:%d' % (host, port))


def raise_local():
    raise LocalError('db', 5432)


class Unpicklable:
    def __reduce__(self):
        raise TypeError('this cannot be pickled')

    def __repr__(self):
        return '<the connection>'


def raise_unpicklable():
    raise ValueError(Unpicklable())


@on_all_constructs
@pytest.mark.parametrize('func, error', [
    (lambda: sys.exit(2), '2'), (lambda: sys.exit('no disk'), 'no disk'),
    (raise_local, 'no connection to db:5432'), (raise_unpicklable, '<the connection>')],
    ids=['exit code', 'exit text', 'no unpickling', 'no pickling'])
def test_however_a_function_fails_the_run_goes_on(                        # semantics 10.6
        memory_flow, trace, construct, func, error):
    flow = memory_flow(task_construct=construct)
    bad = flow.add_step('bad', func=func)
    flow.add_step('after', handles=True, func=trace.run, require=(bad, seq.STEP_FAILURE))

    assert flow.run() is True

    assert trace.lines == ['after@1']
    assert error in task_of(flow, 'bad').error


def return_handle():
    return Unpicklable()


@on_all_constructs
def test_a_result_that_cannot_be_pickled_is_kept_as_its_repr(             # semantics 10.6
        memory_flow, trace, construct, caplog):
    flow = memory_flow(task_construct=construct)
    first = flow.add_step('a', func=return_handle)
    flow.add_step('after', func=trace.run, require=first)

    assert flow.run() is True

    assert trace.lines == ['after@1']
    assert task_of(flow, 'a').result == '<the connection>'
    assert any('this cannot be pickled' in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize('die', [
    lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os._exit(0),
    lambda: os.kill(os.getpid(), signal.SIGTERM)], ids=['SIGKILL', '_exit', 'SIGTERM'])
def test_a_child_that_dies_is_a_failure_not_a_hang(memory_flow, trace, die):      # semantics 10.6
    flow = memory_flow(task_construct='process')
    dead = flow.add_step('dead', func=die)
    flow.add_step('after', handles=True, func=trace.run, require=(dead, seq.STEP_COMPLETE))

    assert flow.run() is True

    assert trace.lines == ['after@1']
    assert task_of(flow, 'dead').status == 'failure'


# Stores and loops of leaves (10.7) ###############################################


@on_all_constructs
def test_the_store_in_memory_works_with_every_construct(memory_flow, trace, construct):
    flow = memory_flow(store=':memory:', task_construct=construct)        # semantics 10.7
    container = flow.add_step('c', loop=range(2))
    container.add_step('a', func=trace.run)
    flow.add_step('b', func=trace.run, require=container)

    assert flow.run() is True

    assert trace.lines == ['c_a@1.1', 'c_a@1.2', 'b@1']
    assert statuses(flow)['b@1'] == 'success'


@pytest.mark.parametrize('spelling', ['loop', 'repeat', 'repeats'])
def test_repeats_on_a_leaf_are_run(new_flow, trace, spelling):            # semantics 10.7
    flow = new_flow()
    flow.add_step('a', func=lambda: trace(seq.current().item), **{spelling: [1, 2, 3]})

    assert flow.run() is True

    assert trace.lines == ['1', '2', '3']


@on_all_constructs
def test_none_as_an_item_does_not_end_the_loop(memory_flow, trace, construct):    # semantics 10.7
    flow = memory_flow(task_construct=construct)
    container = flow.add_step('c', loop=[None, 0, None])
    container.add_step('a', func=lambda: trace(seq.current().items))

    assert flow.run() is True

    assert trace.lines == ['(None,)', '(0,)', '(None,)']


# Costs, imports, exits (10.8) ####################################################


class CountingStore(seq.MemoryStore):
    """Counts the looks at tasks that are stored."""

    looks = 0

    def tasks(self, *args, **kwargs):
        self.looks += 1
        return seq.MemoryStore.tasks(self, *args, **kwargs)

    def attempts(self, *args):
        self.looks += 1
        return seq.MemoryStore.attempts(self, *args)

    def outcomes(self, *args):
        self.looks += 1
        return seq.MemoryStore.outcomes(self, *args)

    def summary(self, *args):
        self.looks += 1
        return seq.MemoryStore.summary(self, *args)


def test_a_run_does_not_read_the_tasks_that_it_has_stored(memory_flow):   # semantics 10.8
    def looks(count):
        flow = memory_flow(store=CountingStore())
        last = ()
        for number in range(count):
            last = flow.add_step('s%d' % number, func=do_nothing, require=last)
        assert flow.run() is True
        return flow.store.looks

    assert looks(50) == looks(5)


def test_a_task_costs_the_same_among_many(tmp_path):                      # semantics 10.8
    def cost(count):
        flow = seq.Sequent('flow', str(tmp_path / ('%d.db' % count)),
                           config={'task_construct': 'inline', 'synchronous': 'off'})
        last = ()
        for number in range(count):
            last = flow.add_step('s%d' % number, func=do_nothing, require=last)
        flow.compile()
        return executed_lines(flow.run) / float(count)

    assert cost(600) < 2 * cost(60)


def test_no_name_service_is_asked(memory_flow, monkeypatch, caplog):      # semantics 10.8
    def refuse(*args, **kwargs):
        raise AssertionError('a look-up of %r' % (args,))

    for name in ('getfqdn', 'gethostbyaddr', 'gethostbyname', 'gethostbyname_ex', 'getaddrinfo',
                 'getnameinfo'):
        monkeypatch.setattr(socket, name, refuse)
    flow = memory_flow()
    for construct in CONSTRUCTS:
        flow.add_step(construct, func=do_nothing, config={'task_construct': construct})

    with caplog.at_level('DEBUG'):
        assert flow.run() is True

    assert caplog.records


@pytest.mark.parametrize('construct', CONSTRUCTS)
def test_a_program_ends_after_its_run(tmp_path, construct):               # semantics 10.8
    (tmp_path / 'job.py').write_text(textwrap.dedent('''
        import sequent as seq

        flow = seq.Sequent(config={'task_construct': %r})
        for name in 'ab':
            flow.add_step(name, func=lambda: None)
        print(flow())
    ''') % construct)

    said = subprocess.run([sys.executable, '-W', 'error', 'job.py'], cwd=str(tmp_path), check=True,
                          timeout=PATIENCE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    assert said.stdout == b'True\n'


def test_it_imports_without_a_warning(tmp_path):                          # semantics 10.8
    said = subprocess.run([sys.executable, '-W', 'error', '-c', 'import sequent'], check=True,
                          cwd=str(tmp_path), timeout=PATIENCE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)

    assert said.stdout == b''
