"""The model: steps, names, sequences, loops (semantics 1)."""

import collections
import gc
import itertools
import os
import subprocess
import sys
import textwrap
import tracemalloc

import pytest

pytest_plugins = ['flowtools']

import sequent as seq  # noqa: E402
from flowtools import (  # noqa: E402
    SteppedConstruct, do_nothing, on_all_constructs, statuses, task_of)

# Steps (1.1) #####################################################################


@on_all_constructs
def test_a_leaf_calls_its_function_with_its_arguments(                    # semantics 1.1
        new_flow, trace, construct):
    def work(*args, **kwargs):
        trace(repr(args), repr(sorted(kwargs.items())))

    flow = new_flow(task_construct=construct)
    flow.add_step('a', func=work, args=(1, 'two'), kwargs={'three': [3]})

    assert flow.run() is True

    assert trace.lines == ["(1, 'two') [('three', [3])]"]


def test_a_leaf_without_a_function_succeeds_at_once(new_flow, trace):     # semantics 1.1
    flow = new_flow()
    gate = flow.add_step('gate', func=None)
    flow.add_step('b', func=trace.run, require=gate)

    assert flow.run() is True

    assert trace.lines == ['b@1']
    assert statuses(flow) == {'gate@1': 'success', 'b@1': 'success'}


def test_containers_nest_and_end_when_what_is_in_them_has(new_flow, trace):   # semantics 1.1
    flow = new_flow()
    outer = flow.add_step('outer')
    inner = outer.add_step('inner')
    flow.add_step('after', func=trace.run, require=outer)
    inner.add_step('leaf', func=trace.run)

    assert flow.run() is True

    assert trace.lines == ['outer_inner_leaf@1.1.1', 'after@1']
    assert [(task.path, task.kind) for task in flow.tasks()] == [
        ('outer', 'container'), ('outer_inner', 'container'), ('outer_inner_leaf', 'leaf'),
        ('after', 'leaf')]


def test_a_step_with_a_function_takes_no_children(flow):                  # semantics 1.1
    leaf = flow.add_step('extract', func=do_nothing)

    with pytest.raises(seq.FlowError, match="'extract'"):
        leaf.add_step('part')


# Names (1.2) #####################################################################


@pytest.mark.parametrize('name', ['', None, 3, b'a', ('a',)])
def test_a_name_is_a_non_empty_str(flow, name):                           # semantics 1.2
    with pytest.raises(seq.SequentError, match='name of a step'):
        flow.add_step(name, func=None)


def test_a_name_is_unique_among_siblings(flow):                           # semantics 1.2
    container = flow.add_step('load')
    container.add_step('a', func=None)

    with pytest.raises(seq.FlowError, match="two steps named 'a' in step 'load'"):
        container.add_step('a', func=None)
    with pytest.raises(seq.FlowError, match="two steps named 'load'"):
        flow.add_step('load', func=None)


def test_a_name_may_be_used_again_in_another_container(new_flow, trace):  # semantics 1.2
    flow = new_flow()
    for container in (flow, flow.add_step('b'), flow.add_step('c')):
        container.add_step('a', func=trace.run)

    assert flow.run() is True

    assert sorted(trace.lines) == ['a@1', 'b_a@1.1', 'c_a@1.1']


@pytest.mark.parametrize('construct', ['process', 'inline'])
def test_the_path_is_all_names_joined_by_underscores(                     # semantics 1.2
        memory_flow, trace, construct):
    flow = memory_flow(task_construct=construct)
    step = flow.add_step('s0').add_step('s00').add_step(
        's1', func=lambda: trace(os.environ['SEQUENT_STEP_NAME'], flow.get_step_name()))

    assert flow.run() is True

    assert step.path == 's0_s00_s1'
    assert trace.lines == ['s0_s00_s1 s0_s00_s1']


def test_paths_that_collide_are_an_error_that_names_both_steps(flow):     # semantics 1.2
    flow.add_step('load_raw').add_step('files', func=None)
    container = flow.add_step('load')

    with pytest.raises(seq.FlowError) as caught:
        container.add_step('raw_files', func=None)

    for name in ("'files'", "'load_raw'", "'raw_files'", "'load'", "'load_raw_files'"):
        assert name in str(caught.value)


# Tasks and sequences (1.3) #######################################################


@on_all_constructs
def test_the_sequence_of_the_root_is_1(new_flow, trace, construct):       # semantics 1.3
    flow = new_flow(task_construct=construct)
    flow.add_step('a', func=trace.run)

    flow.run()

    assert trace.lines == ['a@1']


@on_all_constructs
def test_each_container_adds_the_index_of_its_iteration(                  # semantics 1.3
        new_flow, trace, construct):
    flow = new_flow(task_construct=construct)
    s0 = flow.add_step('s0', loop=('x', 'y') if construct == 'inline' else ('x',))
    s00 = s0.add_step('s00', loop=('p', 'q'))
    s00.add_step('leaf', func=trace.run)

    assert flow.run() is True

    assert trace.lines == ['s0_s00_leaf@1.%d.%d' % (i, k)
                           for i in ((1, 2) if construct == 'inline' else (1,)) for k in (1, 2)]
    assert task_of(flow, 's0').status == 'success'
    assert task_of(flow, 's0_s00', '1.1').status == 'success'


def test_a_container_without_a_loop_iterates_once(new_flow, trace):       # semantics 1.3
    flow = new_flow()
    flow.add_step('c').add_step('a', func=trace.run)

    flow.run()

    assert trace.lines == ['c_a@1.1']


def test_a_leaf_adds_a_component_only_when_it_has_a_loop(new_flow, trace):    # semantics 1.3
    flow = new_flow()
    container = flow.add_step('c', loop=range(2))
    container.add_step('once', func=trace.run)
    container.add_step('each', func=trace.run, loop=['only'])

    flow.run()

    assert trace.lines == ['c_once@1.1', 'c_each@1.1.1', 'c_once@1.2', 'c_each@1.2.1']


@on_all_constructs
def test_the_function_of_a_leaf_with_a_loop_runs_once_per_item(           # semantics 1.3
        new_flow, trace, construct):
    flow = new_flow(task_construct=construct)
    flow.add_step('a', func=lambda: trace(seq.current().sequence, seq.current().item),
                  loop='xyz')

    assert flow.run() is True

    assert trace.lines == ['1.1 x', '1.2 y', '1.3 z']
    assert statuses(flow) == dict.fromkeys(['a@1', 'a@1.1', 'a@1.2', 'a@1.3'], 'success')


# Loops (1.4) #####################################################################


class Indexed:
    """Iterable by the old protocol of indexes."""

    def __getitem__(self, index):
        return 'xyz'[index]


ITERABLES = {
    'list': ['x', 'y', 'z'],
    'tuple': ('x', 'y', 'z'),
    'str': 'xyz',
    'dict': collections.OrderedDict([('x', 1), ('y', 2), ('z', 3)]),
    'indexed': Indexed(),
    'callable returning a list': lambda: ['x', 'y', 'z'],
    'callable returning an iterator': lambda: iter('xyz'),
    'generator function': lambda: (letter for letter in 'xyz'),
}


@pytest.mark.parametrize('kind', sorted(ITERABLES))
def test_a_loop_is_any_iterable_or_a_callable_returning_one(              # semantics 1.4
        new_flow, trace, kind):
    flow = new_flow()
    container = flow.add_step('c', loop=ITERABLES[kind])
    container.add_step('a', func=lambda: trace(seq.current().item))

    assert flow.run() is True

    assert trace.lines == ['x', 'y', 'z']


def test_a_loop_may_be_an_iterator_where_its_container_starts_once(       # semantics 1.4
        new_flow, trace):
    flow = new_flow()
    flow.add_step('outer').add_step('c', loop=iter('xy')).add_step('a', func=trace.run)
    flow.add_step('leaf', func=trace.run, loop=(number for number in range(2)))

    assert flow.run() is True

    assert sorted(trace.lines) == ['leaf@1.1', 'leaf@1.2', 'outer_c_a@1.1.1', 'outer_c_a@1.1.2']


def test_a_callable_loop_is_called_in_the_supervisor_when_its_container_starts(   # semantics 1.4
        memory_flow, trace):
    def items():
        trace('loop in', os.getpid())
        return 'x'

    flow = memory_flow(task_construct='process')
    before = flow.add_step('before', func=trace.run)
    flow.add_step('c', loop=items, require=before).add_step('a', func=trace.run)

    assert flow.run() is True

    assert trace.lines == ['before@1', 'loop in %d' % os.getpid(), 'c_a@1.1']


def test_a_callable_loop_is_called_for_each_start_of_its_container(       # semantics 1.4
        new_flow, trace):
    calls = []

    def items():
        calls.append(None)
        return range(len(calls))

    flow = new_flow()
    flow.add_step('outer', loop='xyz').add_step('a', func=trace.run, loop=items)

    assert flow.run() is True

    assert trace.lines == ['outer_a@1.1.1', 'outer_a@1.2.1', 'outer_a@1.2.2', 'outer_a@1.3.1',
                           'outer_a@1.3.2', 'outer_a@1.3.3']


def test_a_loop_is_consumed_lazily(new_flow, trace):                      # semantics 1.4
    def items():
        for number in (1, 2, 3):
            trace('item', number)
            yield number

    flow = new_flow()
    flow.add_step('a', func=trace.run, loop=items)

    flow.run()

    assert trace.lines == ['item 1', 'a@1.1', 'item 2', 'a@1.2', 'item 3', 'a@1.3']


def test_an_endless_loop_runs_until_something_stops_it(new_flow, trace):  # semantics 1.4
    flow = new_flow()
    flow.add_step('c', loop=itertools.count()).add_step(
        'a', func=trace.fail_at, args=('1.5',))

    assert flow.run() is False

    assert trace.lines == ['c_a@1.%d' % number for number in range(1, 6)]


@pytest.mark.long
def test_a_long_loop_costs_constant_memory(memory_flow):                  # semantics 1.4
    used = {}

    def measure():
        number = seq.current().item
        if number in (8000, 12000):     # caches are full by then
            gc.collect()
            used[number] = tracemalloc.get_traced_memory()[0]
        if number == 12000:
            raise ValueError('enough')

    flow = memory_flow(store=':memory:', group_commit=0)
    flow.add_step('c', loop=range(10 ** 6)).add_step('a', func=measure)

    tracemalloc.start()
    try:
        flow.run()
    finally:
        tracemalloc.stop()

    assert used[12000] - used[8000] < 4000 * 8     # bytes: less than a pointer for each iteration


@pytest.mark.parametrize('loop', [(), [], '', range(0), dict, lambda: iter(())], ids=repr)
def test_an_empty_loop_succeeds_at_once_without_iterations(new_flow, trace, loop):
    flow = new_flow()                                                     # semantics 1.4
    container = flow.add_step('c', loop=loop)
    container.add_step('a', func=trace.run)
    leaf = flow.add_step('leaf', func=trace.run, loop=loop)
    flow.add_step('after', func=trace.run, require=(container, leaf))

    assert flow.run() is True

    assert trace.lines == ['after@1']
    assert statuses(flow) == {'c@1': 'success', 'leaf@1': 'success', 'after@1': 'success'}


def test_an_iterator_is_refused_in_a_container_with_a_loop(flow, trace):  # semantics 1.4
    flow.add_step('first', func=trace.run)
    outer = flow.add_step('outer', loop=range(2))
    outer.add_step('between').add_step('c', loop=iter('xy')).add_step('a', func=trace.run)

    with pytest.raises(seq.FlowError, match="'outer_between_c'.*callable"):
        flow.run()

    assert trace.lines == []


def test_an_iterator_of_a_leaf_is_refused_in_a_container_with_a_loop(flow):   # semantics 1.4
    flow.add_step('outer', loop=range(2)).add_step('a', func=do_nothing, loop=iter('xy'))

    with pytest.raises(seq.FlowError, match="'outer_a'.*callable"):
        flow.run()


@pytest.mark.parametrize('items', [{1, 2}, frozenset('ab'), set()], ids=repr)
def test_a_set_is_refused_as_a_loop(flow, items):                         # semantics 1.4
    with pytest.raises(seq.FlowTypeError, match=r"'a'.*sorted\(\)"):
        flow.add_step('a', func=do_nothing, loop=items)


def test_a_set_that_a_callable_returns_fails_the_container(new_flow, trace):  # semantics 1.4
    flow = new_flow()
    flow.add_step('a', func=trace.run, loop=lambda: {1, 2})

    assert flow.run() is False

    assert trace.lines == []
    assert 'sorted()' in task_of(flow, 'a').error


def broken_after_one():
    yield 1
    raise OSError('the list ends here')


def broken_at_once():
    raise OSError('the list ends here')


@pytest.mark.parametrize('loop, iterations', [
    (broken_at_once, 0), (broken_after_one, 1), (broken_after_one(), 1)],
    ids=['callable', 'generator function', 'generator'])
def test_an_exception_from_a_loop_fails_its_container(                    # semantics 1.4
        tmp_path, trace, loop, iterations):
    flow = seq.Sequent('flow', str(tmp_path / 'flow.db'), config={'task_construct': 'inline'})
    container = flow.add_step('c', loop=loop)
    container.add_step('a', func=trace.run)
    flow.add_step('handler', handles=True, func=trace.run, require=(container, seq.STEP_FAILURE))

    assert flow.run() is True

    assert trace.lines == ['c_a@1.1'] * iterations + ['handler@1']
    assert 'the list ends here' in task_of(flow, 'c').error


def test_a_callable_that_returns_nothing_to_iterate_fails_its_container(new_flow):
    flow = new_flow()                                                     # semantics 1.4
    flow.add_step('a', func=do_nothing, loop=lambda: 5)

    assert flow.run() is False

    assert 'it returned 5, which cannot be gone over' in task_of(flow, 'a').error


def test_iterations_run_one_after_another(new_flow, stepped):             # semantics 1.4
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    container = flow.add_step('c', loop=range(3))
    container.add_step('a', func=do_nothing)
    container.add_step('b', func=do_nothing)

    assert flow.run() is True

    assert stepped.seen == [names for number in (1, 2, 3) for names in (
        ['c_a@1.%d' % number, 'c_b@1.%d' % number], ['c_b@1.%d' % number])]


def test_iterations_of_a_leaf_run_one_after_another(new_flow, stepped):   # semantics 1.4
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    flow.add_step('a', func=do_nothing, loop=range(3))

    assert flow.run() is True

    assert stepped.seen == [['a@1.1'], ['a@1.2'], ['a@1.3']]


@pytest.mark.parametrize('limit, in_flight', [(1, 1), (2, 2), (3, 3), (0, 5), (-1, 5), (9, 5)])
def test_max_concurrent_lets_iterations_be_in_flight(                     # semantics 1.4
        new_flow, stepped, limit, in_flight):
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    container = flow.add_step('c', loop=range(5), config={'max_concurrent': limit})
    first = container.add_step('a', func=do_nothing)
    container.add_step('b', func=do_nothing, require=first)

    assert flow.run() is True

    assert stepped.most == in_flight
    assert len(stepped.started) == 10


def test_an_iteration_in_flight_is_replaced_when_it_has_ended(new_flow):  # semantics 1.4
    stepped = SteppedConstruct(last_first=True)
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    flow.add_step('c', loop=range(4), config={'max_concurrent': 2}).add_step('a', func=do_nothing)

    assert flow.run() is True

    assert stepped.seen == [['c_a@1.1', 'c_a@1.2'], ['c_a@1.1', 'c_a@1.3'],
                            ['c_a@1.1', 'c_a@1.4'], ['c_a@1.1']]


# Loop items (1.5) ################################################################


@on_all_constructs
def test_the_items_are_available_outermost_first(memory_flow, trace, construct):  # semantics 1.5
    flow = memory_flow(task_construct=construct)
    city = flow.add_step('city', loop=['Seattle'])
    month = city.add_step('plain').add_step('month', loop=(1, 2))
    month.add_step('a', func=lambda: trace(seq.current().items, seq.current().item))

    flow.run()

    assert trace.lines == ["('Seattle', 1) 1", "('Seattle', 2) 2"]


def test_the_items_include_that_of_a_leafs_own_loop(new_flow, trace):     # semantics 1.5
    flow = new_flow()
    flow.add_step('c', loop='x').add_step(
        'a', func=lambda: trace(seq.current().items), loop=[None, 0])

    flow.run()

    assert trace.lines == ["('x', None)", "('x', 0)"]


@on_all_constructs
def test_there_are_no_items_outside_of_loops(memory_flow, trace, construct):      # semantics 1.5
    flow = memory_flow(task_construct=construct)
    flow.add_step('a', func=lambda: trace(seq.current().items, seq.current().item,
                                          os.environ.get('SEQUENT_LOOP_VALUE')))

    flow.run()

    assert trace.lines == ['() None None']


@pytest.mark.parametrize('construct', ['process', 'inline'])
def test_the_innermost_item_is_in_the_environment_as_a_str(               # semantics 1.5
        memory_flow, trace, construct):
    flow = memory_flow(task_construct=construct)
    outer = flow.add_step('outer', loop=['x'])
    outer.add_step('c', loop=[1.5, None]).add_step(
        'a', func=lambda: trace(os.environ['SEQUENT_LOOP_VALUE']))

    assert flow.run() is True

    assert trace.lines == ['1.5', 'None']


def test_the_variable_of_the_loop_item_begins_with_the_prefix(memory_flow, trace):
    flow = memory_flow(envvar_prefix='NIGHT_')                            # semantics 1.5
    flow.add_step('a', func=lambda: trace(os.environ['NIGHT_LOOP_VALUE']), loop='x')

    assert flow.run() is True

    assert trace.lines == ['x']


# Accepted spellings (1.6) ########################################################


@pytest.mark.parametrize('spelling', ['loop', 'repeat', 'repeats'])
def test_loops_can_be_spelled_in_three_ways(flow, trace, spelling):       # semantics 1.6
    flow.add_step('a', func=trace.run, **{spelling: range(2)})
    flow.add_step('c', **{spelling: range(2)}).add_step('b', func=trace.run)

    flow.run()

    assert sorted(trace.lines) == ['a@1.1', 'a@1.2', 'c_b@1.1', 'c_b@1.2']


@pytest.mark.parametrize('spelling', ['require', 'requires'])
def test_requirements_can_be_spelled_in_two_ways(flow, trace, spelling):  # semantics 1.6
    first = flow.add_step('a', func=trace.run)
    flow.add_step('b', func=trace.run, **{spelling: (first, seq.STEP_FAILURE)})
    container = flow.add_step('c')
    inner = container.add_step('d', func=trace.run)
    container.add_step('e', func=trace.run, **{spelling: (inner, seq.STEP_FAILURE)})

    flow.run()

    assert trace.lines == ['a@1', 'c_d@1.1']


@pytest.mark.parametrize('spellings', [
    ('loop', 'repeat'), ('loop', 'repeats'), ('repeat', 'repeats'), ('require', 'requires')])
def test_two_spellings_of_one_argument_are_a_type_error(flow, spellings): # semantics 1.6
    with pytest.raises(TypeError, match="'a'.*%s" % spellings[0]):
        flow.add_step('a', func=do_nothing, **dict.fromkeys(spellings, ((),)))


def test_an_argument_that_does_not_exist_is_a_type_error(flow):           # semantics 1.6
    with pytest.raises(TypeError, match="did you mean 'require'"):
        flow.add_step('a', func=do_nothing, requir=())


def test_calling_a_flow_runs_it(memory_flow, trace):                      # semantics 1.6
    flow = memory_flow()
    flow.add_step('a', func=trace.run)

    assert flow() is True
    assert trace.lines == ['a@1']


def test_the_default_name_is_that_of_the_calling_file(tmp_path):          # semantics 1.6
    assert seq.Sequent(store=':memory:').name == 'test_model'
    assert seq.Eventor(store=':memory:').name == 'test_model'


def test_a_script_shares_its_history_with_the_command_line(tmp_path):     # semantics 1.6
    (tmp_path / 'nightly.py').write_text(textwrap.dedent('''
        import sequent as seq

        flow = seq.Sequent(config={'task_construct': 'inline'})
        flow.add_step('a', func=len, args=('x',))
        if __name__ == '__main__':
            raise SystemExit(0 if flow() else 1)
    '''))

    for command in (['nightly.py'], ['-m', 'sequent', 'nightly']):
        subprocess.run([sys.executable] + command, cwd=str(tmp_path), check=True, timeout=60,
                       stderr=subprocess.DEVNULL)

    store = seq.SqliteStore(str(tmp_path / 'nightly.run.db'))
    store.open()
    assert [(run.flow, run.status) for run in store.runs()] == [('nightly', 'success')] * 2
    store.close()


def test_the_constants_name_the_members():                                # semantics 1.6
    for name in ('ready', 'active', 'success', 'failure', 'complete'):
        assert getattr(seq, 'STEP_%s' % name.upper()) is seq.StepStatus[name]
    assert (seq.STEP_RERUN, seq.STEP_SKIP) == (seq.StepReplay.rerun, seq.StepReplay.skip)
    assert (seq.RUN_RESTART, seq.RUN_RECOVER, seq.RUN_CONTINUE) == (
        seq.RunMode.restart, seq.RunMode.recover, seq.RunMode.continue_)


def test_step_state_is_step_status_and_task_status_lacks_complete():      # semantics 1.6
    assert seq.StepState is seq.StepStatus
    assert [one.name for one in seq.TaskStatus] == [
        one.name for one in seq.StepStatus if one.name != 'complete']


@pytest.mark.parametrize('name', ['a\0b', 'caf\udce9'])
def test_a_name_that_no_store_or_environment_can_hold_is_refused(name):
    with pytest.raises(seq.FlowError, match='the name of a step cannot be'):
        seq.Sequent(store=':memory:').add_step(name, func=len)


def test_what_a_construct_does_to_the_arguments_of_a_job_reaches_no_other_step():
    seen = []

    class Adding(seq.InlineConstruct):
        def release(self, jobs):
            for job in jobs:
                seen.append(dict(job.kwargs))
                job.kwargs['n'] = len(seen)
            super().release(jobs)
    flow = seq.Sequent('f', ':memory:', config={'task_construct': Adding()})
    for name in 'ab':
        flow.add_step(name, func=lambda n: None, loop=range(2))

    assert flow() is True
    assert seen == [{}] * 4


@pytest.mark.parametrize('kind', [seq.Sequent, seq.Eventor])
def test_a_step_may_be_given_attributes_of_ones_own(kind):
    step = kind('etl', ':memory:').add_step('a', func=int)
    step.owner = 'the night shift'
    assert step.owner == 'the night shift'
