"""Results of steps as arguments of others: placeholders, and how results are kept."""

import collections
import glob
import os
import stat
import sys
import threading

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    Calls, Line, a_flow, a_private_temporary_folder, construct, fail, journal, programs,
    records_of, results, statuses, store, the_task, wait_gone)
from sequent import (  # noqa: E402
    ConfigError, CycleError, Eventor, FlowError, FlowTypeError, MemoryStore)


def give(value):
    return value


def show(*args, **kwargs):
    return args, kwargs


def shown(flow, path='show', sequence=None):
    """Return (args, kwargs) that ``show`` was called with."""
    return the_task(flow, path, sequence).result


# Placeholders #####################################################################


def test_the_result_of_a_step_is_an_argument_of_another(construct, store):
    # semantics 17.1
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=give, args=([1, {'x': 2}],))
    flow.add_step('show', func=show, args=(a.result, 5), kwargs={'rows': a.result})

    assert flow() is True

    assert shown(flow) == (([1, {'x': 2}], 5), {'rows': [1, {'x': 2}]})


def test_a_result_requires_the_success_of_its_step_without_saying_so(construct, store, journal):
    # semantics 17.1
    flow = a_flow(store, construct)

    def one():
        journal.pass_gate('open')
        journal.note('a')
        return 1
    a = flow.add_step('a', func=one)
    flow.add_step('show', func=lambda value: journal.note('show %r' % value), args=(a.result,))
    if construct == 'inline':
        journal.open('open')
    else:
        flow.add_step('opens', func=journal.open, args=('open',))

    assert flow() is True

    assert journal.words() == ['a', 'show 1']


def test_a_step_whose_asked_result_failed_is_not_run(construct, store, journal):
    # semantics 17.1
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=fail)
    flow.add_step('b', func=journal.note, args=(a.result,))
    flow.add_step('mend', func=journal.note, args=('mend',), require=((a, 'failure'),),
                  handles=True)

    assert flow() is True

    assert journal.words() == ['mend']
    assert 'b' not in statuses(flow)


def test_what_is_required_besides_counts_too(store, journal):
    flow = a_flow(store)
    b = flow.add_step('b', func=journal.note, args=('b',), delay=0.03)
    a = flow.add_step('a', func=journal.note, args=('a',))
    flow.add_step('c', func=lambda value: journal.note('c'), args=(a.result,),
                  require=sequent.or_((b, 'success'), (b, 'failure')))

    assert flow() is True

    assert journal.words() == ['a', 'b', 'c']


def test_placeholders_stand_inside_lists_tuples_and_dicts(construct, store):
    # semantics 17.1
    pair = collections.namedtuple('pair', 'left right')
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=give, args=(7,))
    r = a.result
    flow.add_step('show', func=show, args=([r, [r]], (r, ('x', r)), {'k': r, 'l': [{'m': r}]}),
                  kwargs={'order': collections.OrderedDict([('z', r), ('a', 1)]), 'plain': [1]})
    flow.add_step('pair', func=lambda one: (type(one).__name__, one.left, one.right),
                  args=(pair(r, 2),))

    assert flow() is True

    args, kwargs = shown(flow)
    assert args == ([7, [7]], (7, ('x', 7)), {'k': 7, 'l': [{'m': 7}]})
    assert kwargs == {'order': collections.OrderedDict([('z', 7), ('a', 1)]), 'plain': [1]}
    assert the_task(flow, 'pair').result == ('pair', 7, 2)


def test_a_dict_of_a_kind_of_its_own_stays_one():
    flow = a_flow(MemoryStore())
    a = flow.add_step('a', func=give, args=(7,))
    given = collections.defaultdict(list, x=a.result)
    flow.add_step('show', func=show, args=(given,))

    assert flow() is True

    [(found,), _] = shown(flow)
    assert found == {'x': 7} and found.default_factory is list
    assert given['x'] == a.result


def test_arguments_that_contain_themselves_are_left_alone():
    flow = a_flow(MemoryStore())
    round_about = [1]
    round_about.append(round_about)
    flow.add_step('show', func=lambda one: one[1] is one, args=(round_about,))

    assert flow() is True

    assert the_task(flow, 'show').result is True


def test_arguments_that_contain_themselves_and_a_placeholder_are_filled_or_refused():
    # semantics 17.1
    flow = a_flow(MemoryStore())
    a = flow.add_step('a', func=give, args=(7,))
    round_about = [a.result]
    round_about.append(round_about)
    try:
        flow.add_step('show', func=lambda one: one[0], args=(round_about,))
    except FlowError:
        return
    assert flow() is True
    assert the_task(flow, 'show').result == 7


@pytest.mark.parametrize('wrong', [
    lambda result: {result}, lambda result: {result: 1}, lambda result: frozenset([result])])
def test_a_placeholder_where_it_cannot_be_filled_is_refused(wrong):
    flow = a_flow()
    a = flow.add_step('a', func=give, args=(7,))
    with pytest.raises(FlowTypeError, match="step 'show': .*<result of a>.*list, tuple or dict"):
        flow.add_step('show', func=show, args=(wrong(a.result),))


def test_each_task_gets_its_own_copy_of_a_result(store):
    # semantics 17.4
    def spoil(rows):
        rows.append('spoilt')
        return rows
    flow = a_flow(store)
    a = flow.add_step('a', func=give, args=([1],))
    b = flow.add_step('b', func=spoil, args=(a.result,))
    flow.add_step('c', func=spoil, args=(a.result,), require=b)

    assert flow() is True

    assert the_task(flow, 'c').result == [1, 'spoilt']


def test_none_is_a_result_too(construct, store):
    # semantics 17.1
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=give, args=(None,))
    empty = flow.add_step('empty', func=None)
    flow.add_step('show', func=show, args=(a.result, empty.result))

    assert flow() is True

    assert shown(flow) == ((None, None), {})


def test_a_result_of_several_steps(construct, store):
    flow = a_flow(store, construct)
    steps = [flow.add_step('s%d' % n, func=give, args=(n,)) for n in range(5)]
    flow.add_step('show', func=sum, args=([one.result for one in steps],))

    assert flow() is True

    assert the_task(flow, 'show').result == 10


def test_a_chain_of_results(construct, store):
    # semantics 17.1
    flow = a_flow(store, construct)
    last = flow.add_step('s0', func=give, args=(1,))
    for n in range(1, 5):
        last = flow.add_step('s%d' % n, func=lambda value: value * 2, args=(last.result,))

    assert flow() is True

    assert the_task(flow, 's4').result == 16


def test_results_without_a_store_that_keeps_them(construct):
    # semantics 6.1: ':memory:' keeps results that can still be asked for
    flow = a_flow(construct=construct)
    c = flow.add_step('c', loop=[1, 2, 3])
    a = c.add_step('a', func=lambda item: item * 10, args=(c.item,))
    b = c.add_step('b', func=lambda value: value + 1, args=(a.result,))
    flow.add_step('show', func=lambda *given: given, args=(a.result, b.result))

    assert flow() is True

    assert shown(flow) == ([10, 20, 30], [11, 21, 31])


@pytest.mark.parametrize('method', ['spawn', 'forkserver'])
def test_results_go_to_processes_that_inherit_nothing(method, store):
    if method not in sequent.start_methods():
        pytest.skip('not for this version of Python: no %s' % method)
    flow = a_flow(store, 'process', config={'start_method': method})
    c = flow.add_step('c', loop=['x', 'y'])
    a = c.add_step('a', func=str.upper, args=(c.item,))
    flow.add_step('b', func=str.join, args=('-', a.result))

    assert flow() is True

    assert the_task(flow, 'b').result == 'X-Y'


def test_a_func_that_could_not_be_sent_is_found_before_the_run(journal):
    # placeholders themselves are no obstacle
    flow = a_flow(construct='process', config={'start_method': 'spawn'})
    a = flow.add_step('a', func=give, args=(1,))
    flow.add_step('b', func=lambda value: value, args=(a.result,))
    with pytest.raises(sequent.ConstructError, match="step 'b': its function cannot be sent"):
        flow()


# Scopes (semantics 2.5) ###########################################################


def test_a_sibling_in_a_loop_is_read_at_the_same_iteration(construct, store):
    # semantics 17.3
    flow = a_flow(store, construct)
    c = flow.add_step('c', loop=[1, 2, 3], config={'max_concurrent': 3})
    a = c.add_step('a', func=lambda item: item * 10, args=(c.item,))
    c.add_step('b', func=give, args=((a.result, c.item),))

    assert flow() is True

    assert [results(flow)['c_b', '1.%d' % n] for n in (1, 2, 3)] == [(10, 1), (20, 2), (30, 3)]


def test_an_outer_step_is_read_at_its_shorter_sequence(construct, store):
    # semantics 17.3
    flow = a_flow(store, construct)
    top = flow.add_step('top', func=give, args=('top',))
    c = flow.add_step('c', loop=[1, 2])
    middle = c.add_step('middle', func=lambda item: 'middle %d' % item, args=(c.item,))
    d = c.add_step('d', loop='xy')
    d.add_step('b', func=lambda *given: '-'.join(map(str, given)),
               args=(top.result, middle.result, c.item, d.item))

    assert flow() is True

    assert [value for (path, _), value in sorted(results(flow).items()) if path == 'c_d_b'] == [
        'top-middle 1-1-x', 'top-middle 1-1-y', 'top-middle 2-2-x', 'top-middle 2-2-y']


def test_outside_a_container_a_result_is_the_list_over_its_iterations(construct, store):
    # semantics 17.3
    flow = a_flow(store, construct)
    c = flow.add_step('c', loop=[3, 1, 2])
    d = c.add_step('d', func=give, args=(c.item,))
    flow.add_step('show', func=give, args=(d.result,))

    assert flow() is True

    assert shown(flow) == [3, 1, 2]


def test_a_container_without_loop_gives_a_list_of_one(store):
    # semantics 17.3
    flow = a_flow(store)
    c = flow.add_step('c')
    d = c.add_step('d', func=give, args=(5,))
    flow.add_step('show', func=give, args=(d.result,))

    assert flow() is True

    assert shown(flow) == [5]


def test_an_empty_loop_gives_an_empty_list(store):
    # semantics 17.3
    flow = a_flow(store)
    c = flow.add_step('c', loop=[])
    d = c.add_step('d', func=give, args=(5,))
    e = flow.add_step('e', func=give, args=(5,), loop=[])
    flow.add_step('show', func=give, args=((d.result, e.result),))

    assert flow() is True

    assert shown(flow) == ([], [])


def test_nested_containers_give_nested_lists(construct, store):
    # semantics 17.3
    flow = a_flow(store, construct)
    c = flow.add_step('c', loop=[1, 2])
    d = c.add_step('d', loop='xyz')
    e = d.add_step('e', func=lambda number, letter: '%d%s' % (number, letter),
                   args=(c.item, d.item))
    c.add_step('inner', func=give, args=(e.result,))
    flow.add_step('outer', func=give, args=(e.result,))

    assert flow() is True

    assert the_task(flow, 'outer').result == [['1x', '1y', '1z'], ['2x', '2y', '2z']]
    assert the_task(flow, 'c_inner', '1.2').result == ['2x', '2y', '2z']


def test_a_leaf_with_a_loop_gives_the_list_over_its_items(construct, store):
    # semantics 17.3
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=lambda item: item * 2, args=(sequent.item,), loop=[1, 2, 3])
    c = flow.add_step('c', loop='xy')
    b = c.add_step('b', func=lambda outer, item: '%s%d' % (outer, item),
                   args=(c.item, sequent.item), loop=[1, 2])
    flow.add_step('show', func=give, args=((a.result, b.result),))

    assert flow() is True

    assert shown(flow) == ([2, 4, 6], [['x1', 'x2'], ['y1', 'y2']])


def test_results_stand_in_loop_order_however_iterations_end(store, journal):
    # semantics 17.3
    def one(item):
        if item < 4:
            journal.wait_for('ended %d' % (item + 1))
        journal.note('ended %d' % item)
        return item
    flow = a_flow(store, 'thread', config={'max_concurrent': 5})
    c = flow.add_step('c', loop=range(5), config={'max_concurrent': 5})
    d = c.add_step('d', func=one, args=(c.item,))
    flow.add_step('show', func=give, args=(d.result,))

    assert flow() is True

    assert journal.words()[0] == 'ended 4'
    assert shown(flow) == [0, 1, 2, 3, 4]


def test_a_result_from_within_a_container_requires_its_success(store, journal):
    # semantics 17.3
    flow = a_flow(store)
    c = flow.add_step('c', config={'stop_on_exception': False})
    d = c.add_step('d', func=give, args=(1,))
    c.add_step('e', func=fail, require=d)
    flow.add_step('b', func=journal.note, args=(d.result,))

    assert flow() is False

    assert journal.words() == []


def test_what_did_not_run_in_an_iteration_stands_as_none(store):
    # semantics 17.3
    flow = a_flow(store)
    c = flow.add_step('c', loop=[1, 2, 3])
    a = c.add_step('a', func=lambda item: fail() if item == 2 else item, args=(c.item,))
    c.add_step('mend', func=None, require=((a, 'failure'),), handles=True)
    b = c.add_step('b', func=give, args=(c.item,), require=a)
    flow.add_step('show', func=give, args=((a.result, b.result),))

    assert flow() is True

    assert shown(flow) == ([1, None, 3], [1, None, 3])


def test_the_item_of_a_loop_further_out(store):
    # semantics 17.2
    flow = a_flow(store)
    c = flow.add_step('c', loop=[1, 2])
    d = c.add_step('d', loop=[3, 4])
    d.add_step('e', func=give, args=((c.item, d.item),))
    c.add_step('f', func=give, args=((c.item, sequent.item),), loop='x')

    assert flow() is True

    found = results(flow)
    assert [found['c_d_e', '1.%d.%d' % place] for place in ((1, 1), (1, 2), (2, 1), (2, 2))] == [
        (1, 3), (1, 4), (2, 3), (2, 4)]
    assert found['c_f', '1.2.1'] == (2, 'x')


def test_a_result_can_be_asked_for_by_what_handles_another_failure(store):
    flow = a_flow(store)
    a = flow.add_step('a', func=give, args=('rows',))
    b = flow.add_step('b', func=fail, require=a)
    flow.add_step('show', func=show, args=(a.result,), require=((b, 'failure'),), handles=True)

    assert flow() is True

    assert shown(flow) == (('rows',), {})


def test_an_eager_container_of_an_earlier_loop_is_not_mixed_up(store):
    # iterations of c in flight each have their own results
    flow = a_flow(store, 'thread', config={'max_concurrent': 4})
    c = flow.add_step('c', loop=range(20), config={'max_concurrent': 4})
    a = c.add_step('a', func=give, args=(c.item,))
    d = c.add_step('d', loop=[0, 1])
    b = d.add_step('b', func=lambda value, item: (value, item), args=(a.result, d.item))
    flow.add_step('show', func=give, args=(b.result,))

    assert flow() is True

    assert shown(flow) == [[(n, 0), (n, 1)] for n in range(20)]


# What is refused ##################################################################


@pytest.fixture
def refused(journal):
    """A flow with a first step that would run; afterwards it must not have run."""
    flow = a_flow()
    flow.add_step('first', func=journal.note, args=('first',))
    yield flow
    assert journal.words() == []
    assert flow.tasks() == []


def test_the_result_of_a_container_is_refused(refused):
    # semantics 17.3
    c = refused.add_step('c')
    c.add_step('d', func=None)
    refused.add_step('b', func=give, args=(c.result,))
    with pytest.raises(FlowError, match="step 'b' asks for the result of 'c', which is a "
                                        "container: ask for those of the steps in it"):
        refused()


def test_the_result_of_a_container_around_it_is_refused(refused):
    c = refused.add_step('c')
    c.add_step('b', func=give, args=(c.result,))
    with pytest.raises(FlowError, match="'c_b' asks for the result of 'c', which is not over"):
        refused()


def test_results_that_wait_for_one_another_are_a_circle(refused):
    # semantics 17.6, 2.6
    a = refused.add_step('a', func=give, args=(1,))
    b = refused.add_step('b', func=give, args=(a.result,))
    a.args = (b.result,)
    a.asks = (b.result,)
    with pytest.raises(CycleError, match='a -> b -> a|b -> a -> b'):
        refused()


def test_a_requirement_against_the_direction_of_a_result_is_a_circle(refused):
    c = refused.add_step('c')
    d = c.add_step('d', func=give)
    e = refused.add_step('e', func=give, args=(d.result,))
    c.add_step('f', func=give, require=((e, 'success'),))
    with pytest.raises(CycleError, match='wait for one another'):
        refused()


@pytest.mark.parametrize('what', ['result', 'item'])
def test_a_step_of_another_flow_is_refused(what, refused):
    other = a_flow(name='other').add_step('a', func=give, loop=[1])
    refused.add_step('b', func=give, args=(getattr(other, what),))
    with pytest.raises(FlowError, match="step 'b' asks for the %s of <Step a>, which belongs to "
                                        "another flow" % what):
        refused()


@pytest.mark.parametrize('make', [
    lambda c, other: sequent.item, lambda c, other: c.item, lambda c, other: other.item])
def test_an_item_of_what_has_no_loop_or_is_not_around_is_refused(make, refused):
    # semantics 17.2
    c = refused.add_step('c')
    other = refused.add_step('other', loop=[1])
    other.add_step('x', func=None)
    c.add_step('b', func=give, args=(make(c, other),))
    with pytest.raises(FlowError, match="step 'c_b' asks for the item of step '.*', but that has "
                                        "no loop|is not inside it"):
        refused()


def test_a_result_that_is_not_kept_is_refused(refused):
    # semantics 17.4
    a = refused.add_step('a', func=give, config={'keep_result': False})
    refused.add_step('b', func=give, args=(a.result,))
    with pytest.raises(ConfigError, match="step 'b' asks for the result of 'a', whose config "
                                          "keep_result is False"):
        refused()


def test_a_result_that_is_not_kept_by_inheritance_is_refused(refused):
    c = refused.add_step('c', config={'keep_result': False})
    a = c.add_step('a', func=give, args=(5,))
    c.add_step('b', func=give, args=(a.result,))
    with pytest.raises(ConfigError, match="'c_b' asks for the result of 'c_a', whose config "
                                          "keep_result is False"):
        refused()


def test_a_result_that_is_not_kept_by_the_flow_s_config_is_refused(journal):
    flow = a_flow(config={'keep_result': False})
    b = flow.add_step('b')    # asks, and is configured, before the step it asks
    a = flow.add_step('a', func=give, args=(5,))
    b.add_step('c', func=give, args=(a.result,))
    with pytest.raises(ConfigError, match='keep_result is False'):
        flow()


@pytest.mark.parametrize('where', ['require', 'func', 'name', 'delay', 'acquires'])
def test_a_placeholder_elsewhere_is_refused(where, refused):
    # semantics 17.1
    a = refused.add_step('a', func=give)
    given = dict({'name': 'b'}, **{where: a.result})
    with pytest.raises(sequent.SequentError):
        refused.add_step(**given)


@pytest.mark.parametrize('make', [
    lambda step: {'args': (step.result,)}, lambda step: {'kwargs': {'x': [step.result]}},
    lambda step: {'args': ({'x': sequent.item},)}])
def test_an_eventor_refuses_placeholders_with_a_sentence(make):
    # semantics 17.1
    flow = Eventor('e', store=':memory:')
    a = flow.add_step('a', func=give)
    with pytest.raises(FlowTypeError, match="step 'b': placeholders for results and items are "
                                            "for the steps of a Sequent"):
        flow.add_step('b', func=give, **make(a))


# How results are kept #############################################################


class Unpicklable:
    def __init__(self):
        self.lock = threading.Lock()

    def __repr__(self):
        return '<a lock>'


def test_an_unpicklable_result_that_is_asked_for_is_a_failure(construct, store, journal):
    # semantics 17.4
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=Unpicklable)
    flow.add_step('b', func=journal.note, args=(a.result,))

    assert flow() is False

    assert 'its result cannot be pickled' in the_task(flow, 'a').error
    assert 'other steps ask for it' in the_task(flow, 'a').error
    assert journal.words() == []


def test_an_unpicklable_result_that_nobody_asks_for_is_kept_as_its_repr(construct, store, caplog):
    # semantics 17.4
    flow = a_flow(store, construct)
    flow.add_step('a', func=Unpicklable)

    assert flow() is True

    assert the_task(flow, 'a').result == '<a lock>'
    assert 'cannot be pickled' in caplog.text


def test_the_repr_of_a_result_is_not_given_to_who_asks_for_it_later(store, journal):
    # semantics 7.4: nothing is silently reused for something else
    def make(mode):
        flow = a_flow(store, mode=mode)
        a = flow.add_step('a', func=Unpicklable)
        if mode == 'recover':
            flow.add_step('b', func=journal.note, args=(a.result,))
        flow.add_step('c', func=fail, require=a)
        return flow
    assert make('restart')() is False
    again = make('recover')

    assert again() is False

    assert journal.words() == []
    assert the_task(again, 'b').error == (
        'its arguments cannot be had: the result of a: it could not be pickled when nobody asked '
        'for it; run the step again')
    assert the_task(again, 'a').result == '<a lock>'


class Broken:
    """Pickles, but does not come back."""

    def __reduce__(self):
        return fail, ('it does not come back',)


def test_a_result_that_does_not_unpickle_fails_who_asks_for_it(construct, store):
    # semantics 17.4
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=Broken)
    flow.add_step('b', func=give, args=(a.result,))

    assert flow() is False

    task = the_task(flow, 'b')
    assert task.status == 'failure'
    assert task.error == ('its arguments cannot be had: the result of a: '
                          'ValueError: it does not come back')


def large(size=1 << 21):
    return bytes(size)


def files_beside(folder):
    return glob.glob(os.path.join(str(folder), 'etl.db.results', '**', '*.pickle'),
                     recursive=True)


def test_a_large_result_goes_to_a_file_beside_the_store(construct, tmp_path):
    # semantics 6.11
    flow = a_flow(str(tmp_path / 'etl.db'), construct)
    a = flow.add_step('a', func=large)
    flow.add_step('b', func=len, args=(a.result,))

    assert flow() is True

    assert the_task(flow, 'b').result == 1 << 21
    assert the_task(flow, 'a').result == large()
    [path] = files_beside(tmp_path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
    assert os.path.getsize(path) > 1 << 21
    assert os.path.getsize(str(tmp_path / 'etl.db')) < 1 << 19


def test_a_result_of_less_than_1_mb_goes_to_no_file(tmp_path):
    # semantics 6.11
    flow = a_flow(str(tmp_path / 'etl.db'))
    flow.add_step('a', func=large, args=(1000000,))

    assert flow() is True

    assert files_beside(tmp_path) == []
    assert not os.path.exists(str(tmp_path / 'etl.db.results'))


def test_large_results_in_memory_make_no_file(tmp_path):
    for kept in (MemoryStore(), ':memory:'):
        flow = a_flow(kept)
        a = flow.add_step('a', func=large)
        flow.add_step('b', func=len, args=(a.result,))
        assert flow() is True
        assert the_task(flow, 'b').result == 1 << 21
    assert files_beside(tmp_path) == []


def test_large_results_of_iterations_and_attempts_have_a_file_each(tmp_path):
    def one(item):
        if sequent.current().attempt == 1:
            fail()
        return [item, large()]
    flow = a_flow(str(tmp_path / 'etl.db'))
    a = flow.add_step('a', func=one, args=(sequent.item,), loop=[1, 2], config={'retries': 1})
    flow.add_step('b', func=lambda found: [one[0] for one in found], args=(a.result,))

    assert flow() is True

    assert the_task(flow, 'b').result == [1, 2]
    assert len(files_beside(tmp_path)) == 2


def fails_after_large(folder, mode, line, asks=True, size=1 << 21):
    flow = a_flow(str(folder / 'etl.db'), mode=mode)
    a = flow.add_step('a', func=large, args=(size,))
    b = flow.add_step('b', func=line, require=a)
    flow.add_step('c', func=len, args=(a.result if asks else '',), require=b)
    return flow


@pytest.mark.parametrize('asks_first', [True, False])
def test_a_large_result_survives_a_recovery(asks_first, tmp_path):
    # semantics 6.11, 17.5
    line = Line()
    assert fails_after_large(tmp_path, 'restart', line, asks_first)() is False
    line.down = False
    again = fails_after_large(tmp_path, 'recover', line)

    assert again() is True

    assert the_task(again, 'c').result == 1 << 21
    assert len(files_beside(tmp_path)) == 1


def test_a_large_result_whose_file_is_missing_fails_who_asks_for_it(tmp_path, caplog):
    # semantics 6.11
    line = Line()
    assert fails_after_large(tmp_path, 'restart', line)() is False
    [path] = files_beside(tmp_path)
    os.unlink(path)
    line.down = False
    again = fails_after_large(tmp_path, 'recover', line)

    assert again() is False

    error = the_task(again, 'c').error
    assert 'the result in the file %r cannot be read: No such file' % path in error
    assert 'run the step again' in error
    assert the_task(again, 'a').result is None
    assert 'step a at 1: its result cannot be had' in caplog.text


def test_a_store_and_its_results_can_be_moved(tmp_path):
    # semantics 6.11
    line = Line()
    (tmp_path / 'old').mkdir()
    assert fails_after_large(tmp_path / 'old', 'restart', line)() is False
    os.rename(str(tmp_path / 'old'), str(tmp_path / 'new'))
    line.down = False
    again = fails_after_large(tmp_path / 'new', 'recover', line)

    assert again() is True

    assert the_task(again, 'c').result == 1 << 21


def test_a_large_result_that_cannot_be_written_is_an_error_of_the_store(construct, tmp_path):
    # as if a commit had failed: what has succeeded is not called a failure
    folder = tmp_path / 'etl.db.results'
    folder.write_text('in the way')
    flow = a_flow(str(tmp_path / 'etl.db'), construct)
    flow.add_step('a', func=large)

    with pytest.raises(sequent.StoreError, match="the result of step 'a' at 1 cannot be written "
                                                 "to '%s/.*Not a directory; see to that" % folder):
        flow()

    assert the_task(flow, 'a').status == 'active'
    folder.unlink()
    again = a_flow(str(tmp_path / 'etl.db'), construct, 'continue')
    again.add_step('a', func=large)
    assert again() is True
    assert the_task(again, 'a').result == large()
    assert the_task(again, 'a').attempt == (1 if construct == 'process' else 2)


def test_a_container_of_many_results_keeps_them_in_a_file(tmp_path):
    line = Line()

    def make(mode):
        flow = a_flow(str(tmp_path / 'etl.db'), mode=mode)
        c = flow.add_step('c', loop=[1, 2, 3, 4])
        d = c.add_step('d', func=large, args=(400000,))
        b = flow.add_step('b', func=line, require=c)
        flow.add_step('show', func=lambda found: list(map(len, found)), args=(d.result,),
                      require=b)
        return flow
    assert make('restart')() is False
    assert len(files_beside(tmp_path)) == 1
    line.down = False
    again = make('recover')

    assert again() is True

    assert shown(again) == [400000] * 4


def test_a_container_whose_file_is_missing_fails_who_asks_for_it(tmp_path):
    line = Line()

    def make(mode):
        flow = a_flow(str(tmp_path / 'etl.db'), mode=mode)
        c = flow.add_step('c', loop=[1, 2, 3, 4])
        d = c.add_step('d', func=large, args=(400000,))
        b = flow.add_step('b', func=line, require=c)
        flow.add_step('show', func=len, args=(d.result,), require=b)
        return flow
    assert make('restart')() is False
    [path] = files_beside(tmp_path)
    os.unlink(path)
    line.down = False
    again = make('recover')

    assert again() is False

    assert 'the result in the file %r cannot be read' % path in the_task(again, 'show').error
    assert the_task(again, 'b').status == 'success'


# Recoveries #######################################################################


def result_flow(store, mode, calls, line, **given):
    """Return a flow of a, then b, which fails as long as the line is down, then show."""
    flow = a_flow(store, mode=mode, **given)
    a = flow.add_step('a', func=calls)
    b = flow.add_step('b', func=line, require=a)
    flow.add_step('show', func=give, args=((a.result, b.result),))
    return flow


def test_a_skipped_step_keeps_its_result(store):
    # semantics 7.2
    calls, line = Calls(), Line()
    assert result_flow(store, 'restart', calls, line)() is False
    line.down = False
    again = result_flow(store, 'recover', calls, line)

    assert again() is True

    assert calls.names == ['a']
    assert shown(again) == (1, 'sent')


def test_results_survive_a_recovery_of_a_recovery(store):
    # semantics 17.5
    calls, line = Calls(), Line()
    for mode in ('restart', 'recover', 'recover'):
        assert result_flow(store, mode, calls, line)() is False
    line.down = False
    again = result_flow(store, 'recover', calls, line)

    assert again() is True

    assert calls.names == ['a']
    assert shown(again) == (1, 'sent')


def test_the_result_of_the_state_that_is_recovered_counts(store):
    # semantics 7.1: recovery_run
    line = Line()

    def make(mode, value, **given):
        flow = a_flow(store, mode=mode, **given)
        a = flow.add_step('a', func=give, args=(value,), recovery={'success': 'rerun'})
        b = flow.add_step('b', func=line, require=a)
        flow.add_step('show', func=give, args=(a.result,), require=b)
        return flow
    assert make('restart', 'first')() is False
    assert make('recover', 'second')() is False
    line.down = False
    flow = a_flow(store, mode='recover', recovery_run=0)
    a = flow.add_step('a', func=fail)
    b = flow.add_step('b', func=line, require=a)
    flow.add_step('show', func=give, args=(a.result,), require=b)

    assert flow() is True

    assert shown(flow) == 'first'


def looped(store, mode, calls, line, items=(1, 2, 3), asks=True, inner=False):
    """Return a flow in which a loop is followed by what fails and by what asks for results."""
    flow = a_flow(store, mode=mode)
    c = flow.add_step('c', loop=list(items))
    where = c.add_step('n', loop='xy') if inner else c
    d = where.add_step('d', func=calls, args=(c.item,))
    b = flow.add_step('b', func=line, require=c)
    flow.add_step('show', func=give, args=(d.result if asks else None,), require=b)
    return flow


class Times:
    """Returns ten times its argument, and notes it."""

    def __init__(self):
        self.calls = []

    def __call__(self, value):
        self.calls.append(value)
        return value * 10


@pytest.mark.parametrize('inner, expected', [
    (False, [10, 20, 30]), (True, [[10, 10], [20, 20], [30, 30]])])
def test_a_container_that_is_passed_over_has_its_results(inner, expected, store):
    # semantics 17.5
    calls, line = Times(), Line()
    for mode in ('restart', 'recover', 'recover'):
        assert looped(store, mode, calls, line, inner=inner)() is False
    made = len(calls.calls)
    line.down = False
    again = looped(store, 'recover', calls, line, inner=inner)

    assert again() is True

    assert len(calls.calls) == made == (6 if inner else 3)
    assert shown(again) == expected


@pytest.mark.parametrize('inner, expected', [
    (False, [10, 20, 30]), (True, [[10, 10], [20, 20], [30, 30]])])
def test_who_asks_for_results_may_be_added_later(inner, expected, store):
    calls, line = Times(), Line()
    assert looped(store, 'restart', calls, line, asks=False, inner=inner)() is False
    made = len(calls.calls)
    assert looped(store, 'recover', calls, line, asks=True, inner=inner)() is False
    line.down = False
    again = looped(store, 'recover', calls, line, asks=True, inner=inner)

    assert again() is True

    assert len(calls.calls) == made
    assert shown(again) == expected


def test_results_of_a_loop_whose_items_changed(store):
    # semantics 7.4
    calls, line = Times(), Line()
    assert looped(store, 'restart', calls, line, items=(1, 2, 3))() is False
    line.down = False
    again = looped(store, 'recover', calls, line, items=(1, 5, 3, 4))

    assert again() is True

    assert calls.calls == [1, 2, 3, 5, 4]
    assert shown(again) == [10, 50, 30, 40]


def test_results_of_a_loop_that_has_become_shorter(store):
    # semantics 17.5
    calls, line = Times(), Line()
    assert looped(store, 'restart', calls, line, items=(1, 2, 3))() is False
    line.down = False
    again = looped(store, 'recover', calls, line, items=(1, 2))

    assert again() is True

    assert shown(again) == [10, 20]


def test_a_loop_that_failed_half_way_has_the_results_of_both_runs(store):
    line = Line()

    def make(mode):
        flow = a_flow(store, mode=mode)
        c = flow.add_step('c', loop=[1, 2, 3])
        d = c.add_step('d', func=lambda item: (item, item == 2 and line()), args=(c.item,))
        flow.add_step('show', func=give, args=(d.result,))
        return flow
    assert make('restart')() is False
    line.down = False
    again = make('recover')

    assert again() is True

    assert shown(again) == [(1, False), (2, 'sent'), (3, False)]
    assert len(line.calls) == 2


def test_a_leaf_with_a_loop_is_passed_over_with_its_results(store):
    calls, line = Times(), Line()

    def make(mode):
        flow = a_flow(store, mode=mode)
        a = flow.add_step('a', func=calls, args=(sequent.item,), loop=[1, 2])
        b = flow.add_step('b', func=line, require=a)
        flow.add_step('show', func=give, args=(a.result,), require=b)
        return flow
    assert make('restart')() is False
    line.down = False
    again = make('recover')

    assert again() is True

    assert calls.calls == [1, 2]
    assert shown(again) == [10, 20]


def test_a_step_that_runs_again_gives_its_new_result(store):
    # semantics 17.5
    line, calls = Line(), Calls()

    def make(mode):
        flow = a_flow(store, mode=mode)
        a = flow.add_step('a', func=calls, recovery={'success': 'rerun'})
        b = flow.add_step('b', func=line, require=a)
        flow.add_step('show', func=give, args=(a.result,), require=b)
        return flow
    assert make('restart')() is False
    line.down = False
    again = make('recover')

    assert again() is True

    assert shown(again) == 2


def test_a_failure_that_a_recovery_skips_has_no_result(store):
    # semantics 7.2, 17.5
    line = Line()
    for mode in ('restart', 'recover'):
        flow = a_flow(store, mode=mode)
        a = flow.add_step('a', func=line, recovery={'failure': 'skip'})
        flow.add_step('show', func=show, args=(a.result,))
        flow()

    assert shown(flow) == ((None,), {})


def test_results_survive_kill_9(programs, journal, construct):
    # semantics 17.5
    programs.write('''
        def show(*found):
            if MODE == 'restart':
                kill_me()
            journal.note(found)
        flow = make(os.environ['CONSTRUCT'])
        a = flow.add_step('a', func=lambda: journal.note('a') or 5)
        c = flow.add_step('c', loop=[1, 2])
        d = c.add_step('d', func=lambda item: journal.note('d') or item * 10, args=(c.item,))
        flow.add_step('show', func=show, args=(a.result, d.result),
                      config={'task_construct': 'inline'})
        leave(flow)
        ''')
    environment = {'CONSTRUCT': construct}
    assert programs.run(environment=environment) == -9
    assert programs.run('continue', environment=environment) == 0
    assert sorted(journal.words()) == ['(5, [10, 20])', 'a', 'd', 'd']


@pytest.mark.parametrize('mode', ['continue', 'recover'])
@pytest.mark.parametrize('size', [10, 2000000])
def test_the_result_of_an_orphan_is_an_argument(size, mode, programs, journal):
    # semantics 7.6
    programs.write('''
        def one():
            journal.sign('a')
            journal.pass_gate('go on')
            return b'x' * %d
        flow = make('process')
        a = flow.add_step('a', func=one)
        flow.add_step('b', func=lambda found: journal.note(len(found)), args=(a.result,))
        leave(flow)
        ''' % size)
    pid = programs.leave_orphan()
    journal.open('go on')
    wait_gone(pid)

    assert programs.run(mode) == 0

    assert journal.words() == [str(size)]
    assert len(files_beside(programs.folder)) == (size > 1 << 20)


def test_the_result_of_an_adopted_task_is_an_argument(programs, journal):
    # semantics 7.6
    programs.write('''
        def one():
            journal.sign('a')
            journal.pass_gate('go on')
            return 5
        flow = make('process')
        c = flow.add_step('c', loop=[1])
        a = c.add_step('a', func=one)
        flow.add_step('b', func=journal.note, args=(a.result,))
        leave(flow)
        ''')
    programs.leave_orphan()
    second = programs.start('recover')
    second.wait_for('it is adopted')
    journal.open('go on')

    assert second.wait() == 0

    assert journal.words() == ['[5]']


def test_an_unpicklable_result_of_an_orphan_that_is_asked_for_is_a_failure(programs, journal):
    programs.write('''
        def one():
            journal.sign('a')
            journal.pass_gate('go on')
            return threading.Lock()
        flow = make('process')
        a = flow.add_step('a', func=one)
        flow.add_step('b', func=journal.note, args=(a.result,))
        leave(flow)
        ''')
    pid = programs.leave_orphan()
    journal.open('go on')
    wait_gone(pid)

    assert programs.run('continue') == 1

    assert journal.words() == []


# What tasks() and the command line tell ###########################################


def test_tasks_tells_the_result_of_a_leaf_and_of_what_was_asked_of_a_container(store):
    flow = a_flow(store)
    a = flow.add_step('a', func=give, args=(sequent.item,), loop=[1, 2])
    c = flow.add_step('c', loop=[3, 4])
    d = c.add_step('d', func=give, args=(c.item,))
    c.add_step('e', func=give, args=(9,))
    flow.add_step('show', func=show, args=(a.result, d.result))

    assert flow() is True

    found = {(one.path, one.kind): one.result for one in flow.tasks() if one.kind != 'leaf'}
    assert found == {('a', 'loop'): [1, 2], ('c', 'container'): {'c_d': [3, 4]}}


def test_tasks_tells_nothing_of_containers_that_nobody_asks(store):
    flow = a_flow(store)
    c = flow.add_step('c', loop=[3, 4])
    c.add_step('d', func=give, args=(c.item,))

    assert flow() is True

    assert the_task(flow, 'c').result is None


def test_list_shows_what_a_step_asks_for(tmp_path, monkeypatch, capsys):
    (tmp_path / 'asks.py').write_text('''
import sequent
flow = sequent.Sequent('asks', store=':memory:')
a = flow.add_step('a', func=len)
b = flow.add_step('b', loop=a.result)
b.add_step('d', func=print, args=(b.item,))
flow.add_step('c', func=print, args=(a.result,))
''')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', sys.path[:])

    assert sequent.main(['asks.py', 'list']) == 0

    lines = capsys.readouterr().out.splitlines()
    assert '  b: loop over the result of a' in lines
    assert '    d: print(); takes item of b' in lines
    assert '  c: print(); takes result of a' in lines
