"""Loops over what is found by running: results, callables; what is recorded of them; tolerate."""

import json
import logging
import sys
import threading

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    Calls, Line, a_flow, a_private_temporary_folder, construct, fail, journal, programs,
    records_of, results, statuses, store, the_task)
from sequent import ConfigError, FlowError, FlowTypeError  # noqa: E402


def give(value):
    return value


class Source:
    """A loop's callable that notes when it is called, and each item that is taken of it."""

    def __init__(self, items, fails_after=None):
        self.items = items
        self.fails_after = fails_after
        self.calls = 0
        self.taken = []

    def __call__(self):
        self.calls += 1
        for number, one in enumerate(self.items):
            if number == self.fails_after:
                raise ConnectionError('the source is down')
            self.taken.append(one)
            yield one


def iterations(flow):
    """Return [(path, sequence, recovery, status, item)] of what is recorded of loops."""
    import pickle
    kept = flow.open_store(create=False)
    try:
        return [(one.path, one.sequence, one.recovery, one.status,
                 None if one.item is None else pickle.loads(one.item))
                for one in kept.attempts(kept.latest(flow.name, flow.run_id))
                if one.kind == 'iteration']
    finally:
        flow.close_store()


# Where items come from ############################################################


def test_a_loop_goes_over_what_an_earlier_step_returned(construct, store):
    # semantics 17.2
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=give, args=([3, 1, 2],))
    c = flow.add_step('c', loop=a.result)
    b = c.add_step('b', func=lambda item: item * 10, args=(c.item,))
    flow.add_step('show', func=give, args=(b.result,))

    assert flow() is True

    assert the_task(flow, 'show').result == [30, 10, 20]


def test_a_leaf_goes_over_what_an_earlier_step_returned(construct, store):
    # semantics 17.2
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=give, args=({'x': 1, 'y': 2},))
    b = flow.add_step('b', func=str.upper, args=(sequent.item,), loop=a.result)
    flow.add_step('show', func=give, args=(b.result,))

    assert flow() is True

    assert the_task(flow, 'show').result == ['X', 'Y']


def test_a_loop_requires_the_success_of_the_step_whose_result_it_goes_over(store, journal):
    # semantics 17.2
    flow = a_flow(store)
    a = flow.add_step('a', func=fail)
    flow.add_step('c', func=journal.note, args=(sequent.item,), loop=a.result)
    flow.add_step('mend', func=None, require=((a, 'failure'),), handles=True)

    assert flow() is True

    assert journal.words() == []
    assert 'c' not in statuses(flow)


def test_a_loop_over_the_items_of_the_loop_around_it(construct, store):
    # semantics 17.2
    flow = a_flow(store, construct)
    c = flow.add_step('c', loop=lambda: iter([[1, 2], [], [3]]))
    b = c.add_step('b', func=give, args=(sequent.item,), loop=c.item)
    flow.add_step('show', func=give, args=(b.result,))

    assert flow() is True

    assert the_task(flow, 'show').result == [[1, 2], [], [3]]


def test_a_loop_over_a_result_of_the_same_iteration(construct, store):
    # semantics 17.2
    flow = a_flow(store, construct)
    c = flow.add_step('c', loop=[2, 0, 1])
    a = c.add_step('a', func=lambda n: list(range(n)), args=(c.item,))
    d = c.add_step('d', loop=a.result)
    b = d.add_step('b', func=give, args=(d.item,))
    flow.add_step('show', func=give, args=(b.result,))

    assert flow() is True

    assert the_task(flow, 'show').result == [[0, 1], [], [0]]


def test_a_loop_over_the_results_of_a_loop(store):
    flow = a_flow(store)
    a = flow.add_step('a', func=lambda n: n * n, args=(sequent.item,), loop=[1, 2, 3])
    b = flow.add_step('b', func=lambda n: n + 1, args=(sequent.item,), loop=a.result)
    flow.add_step('show', func=give, args=(b.result,))

    assert flow() is True

    assert the_task(flow, 'show').result == [2, 5, 10]


def test_item_is_also_what_current_tells(construct, store):
    # semantics 17.2
    flow = a_flow(store, construct)
    flow.add_step('a', func=lambda item: item == sequent.current().item, args=(sequent.item,),
                  loop=lambda: 'xy')

    assert flow() is True

    assert set(results(flow).values()) == {True}


def exits(error):
    yield 1
    raise error


@pytest.mark.parametrize('error', [SystemExit(), SystemExit(0), KeyboardInterrupt(),
                                   GeneratorExit()], ids=repr)
@pytest.mark.parametrize('lazily', [True, False])
def test_a_loop_that_exits_fails_its_container(error, lazily, store):
    # semantics 1.4: nothing that a loop raises ends the run, least of all with exit code 0
    flow, calls = a_flow(store, config={'stop_on_exception': False}), Calls()
    flow.add_step('c', func=calls, loop=(lambda: exits(error)) if lazily else exits(error))
    flow.add_step('after', func=calls)

    assert flow() is False

    assert sorted(calls.names) == ['after', 'c']
    assert the_task(flow, 'c', '1').error.startswith(
        'its loop failed: ' + type(error).__name__)


@pytest.mark.parametrize('value, text', [
    (5, 'the <result of a> is 5, which cannot be gone over'),
    (None, 'the <result of a> is None, which cannot be gone over'),
    ({1, 2}, r'the <result of a> is a set, whose order changes from run to run; use sorted\(\)'),
], ids=repr)
def test_a_result_that_is_no_loop_fails_the_container(value, text, store):
    # semantics 17.2
    flow = a_flow(store)
    a = flow.add_step('a', func=give, args=(value,))
    flow.add_step('c', func=give, args=(sequent.item,), loop=a.result)

    assert flow() is False

    import re
    assert re.search('its loop failed: .*' + text, the_task(flow, 'c').error)


@pytest.mark.parametrize('make, text', [
    (lambda flow, c: sequent.item, 'its loop is `item`, which stands for its own item'),
    (lambda flow, c: [1, c.item], 'a placeholder stands in its loop'),
    (lambda flow, c: {c.item}, 'a set'),
])
def test_a_loop_that_cannot_be_is_refused(make, text):
    flow = a_flow()
    c = flow.add_step('c', loop=[1])
    with pytest.raises(FlowTypeError, match=text):
        c.add_step('b', func=give, args=(sequent.item,), loop=make(flow, c))


@pytest.mark.parametrize('loop', [
    lambda flow, c, b: b.result, lambda flow, c, b: c.item])
def test_a_loop_out_of_scope_is_refused_before_anything_starts(loop, journal):
    flow = a_flow()
    flow.add_step('first', func=journal.note, args=('first',))
    c = flow.add_step('c')
    b = c.add_step('b', loop=[1])
    b.add_step('d', func=give)
    c.add_step('e', func=give, args=(1,), loop=loop(flow, c, b))
    with pytest.raises(FlowError, match="step 'c_e' asks for the"):
        flow()
    assert journal.words() == []


# A parallel map ###################################################################


def test_iterations_run_side_by_side_and_results_stand_in_order(store, journal):
    # semantics 1.4, 17.3
    def one(item):
        journal.note('runs')
        journal.wait_for('runs', 8)       # all eight have to run at one time
        return item * item
    flow = a_flow(store, 'thread', config={'max_concurrent': 8})
    a = flow.add_step('a', func=give, args=(list(range(8)),))
    b = flow.add_step('b', func=one, args=(sequent.item,), loop=a.result,
                      config={'max_concurrent': 8})
    flow.add_step('show', func=give, args=(b.result,))

    assert flow() is True

    assert the_task(flow, 'show').result == [n * n for n in range(8)]


def test_without_max_concurrent_iterations_run_one_after_another(store, journal):
    def one(item):
        journal.note('begins')
        journal.note('ends')
    flow = a_flow(store, 'thread')
    flow.add_step('a', func=one, args=(sequent.item,), loop=lambda: range(3))

    assert flow() is True

    assert journal.words() == ['begins', 'ends'] * 3


def test_items_are_taken_when_there_is_room_for_an_iteration(store, journal):
    # semantics 1.4
    source = Source(range(5))
    flow = a_flow(store)
    flow.add_step('a', func=lambda item: journal.note('%d of %d' % (item, len(source.taken))),
                  args=(sequent.item,), loop=source)

    assert flow() is True

    assert journal.words() == ['%d of %d' % (n, n + 1) for n in range(5)]


# What is recorded #################################################################


@pytest.mark.parametrize('nested', [True, False])
def test_items_are_recorded_as_they_are_taken_and_the_end_too(nested, store):
    # semantics 7.10
    flow = a_flow(store)
    if nested:
        c = flow.add_step('c', loop=Source('xy'))
        c.add_step('a', func=give, args=(c.item,))
    else:
        flow.add_step('c', func=give, args=(sequent.item,), loop=Source('xy'))

    assert flow() is True

    found = iterations(flow)
    assert found[-1] == ('c', '1.3', 0, 'over', None)
    if nested:
        assert found[:-1] == [('c', '1.1', 0, '', 'x'), ('c', '1.2', 0, '', 'y')]


def looped(store, mode, source, line, nested=True, construct='inline', last=None,
           **config):
    """Return a flow over a source that fails at item 3 as long as the line is down."""
    flow = a_flow(store, construct, mode)

    def one(item):
        line.seen.append(item)
        if item == 3:
            return line()
        return item * 10
    if nested:
        c = flow.add_step('c', loop=source, config=config)
        a = c.add_step('a', func=one, args=(c.item,))
    else:
        a = flow.add_step('c', func=one, args=(sequent.item,), loop=source, config=config)
    show = flow.add_step('show', func=give, args=(a.result,))
    if last is not None:
        flow.add_step('last', func=last, require=show)
    return flow


def a_line():
    line = Line()
    line.seen = []
    return line


@pytest.mark.parametrize('nested', [True, False])
def test_a_recovery_goes_over_the_recorded_items_though_there_would_be_others(nested, store):
    # semantics 7.10
    line = a_line()
    assert looped(store, 'restart', Source([1, 2, 3, 4]), line, nested)() is False
    line.down, other = False, Source([7, 8, 9, 10, 11])
    again = looped(store, 'recover', other, line, nested)

    assert again() is True

    # It failed at the third item: the end was not recorded, so what follows is asked for.
    assert line.seen == [1, 2, 3, 3, 10, 11]
    assert other.calls == 1 and other.taken == [7, 8, 9, 10, 11]
    assert the_task(again, 'show').result == [10, 20, 'sent', 100, 110]


@pytest.mark.parametrize('nested', [True, False])
def test_where_the_end_is_recorded_the_callable_is_not_called_again(nested, store):
    # semantics 7.10
    line = a_line()
    first = looped(store, 'restart', Source([1, 3, 5]), line, nested, stop_on_exception=False)
    assert first() is False
    assert line.seen == [1, 3, 5]
    line.down, other = False, Source([7, 8, 9, 10])
    again = looped(store, 'recover', other, line, nested)

    assert again() is True

    assert other.calls == 0
    assert line.seen == [1, 3, 5, 3]
    assert the_task(again, 'show').result == [10, 'sent', 50]


def test_an_empty_loop_s_end_is_recorded_too(store):
    # semantics 7.10
    line, other = a_line(), Source([1, 2])
    for mode, source in (('restart', Source([])), ('recover', other)):
        flow = looped(store, mode, source, line)
        flow.add_step('b', func=line)
        flow()
        line.down = False

    assert other.calls == 0
    assert the_task(flow, 'show').result == []


def test_recorded_items_hold_in_a_recovery_of_a_recovery(store):
    # semantics 7.10
    line = a_line()
    assert looped(store, 'restart', Source([1, 2, 3, 4]), line)() is False
    assert looped(store, 'recover', Source([7, 7, 7, 7, 7]), line)() is False
    line.down, last = False, Source([8, 8, 8, 8])
    again = looped(store, 'recover', last, line)

    assert again() is True

    assert line.seen == [1, 2, 3, 3, 3, 8]
    assert the_task(again, 'show').result == [10, 20, 'sent', 80]


def test_a_recovery_of_an_earlier_state_goes_over_the_items_of_that(store):
    # semantics 7.1: recovery_run
    line = a_line()
    assert looped(store, 'restart', Source([1, 3]), line)() is False
    line.down = False
    first = looped(store, 'recover', Source([1, 3, 4]), line, last=fail)
    assert first() is False
    again = looped(store, 'recover', Source([1, 3, 5]), line)
    again.recovery_run = 0

    assert again() is True

    assert the_task(again, 'show').result == [10, 'sent', 50]


@pytest.mark.parametrize('nested', [True, False])
def test_a_source_that_fails_half_way_is_asked_again_for_the_rest(nested, store):
    # semantics 7.10
    line = a_line()
    line.down = False
    assert looped(store, 'restart', Source([1, 2, 3, 4], fails_after=2), line, nested)() is False
    assert line.seen == [1, 2]
    again = looped(store, 'recover', Source([1, 2, 3, 4]), line, nested)

    assert again() is True

    assert line.seen == [1, 2, 3, 4]
    assert the_task(again, 'show').result == [10, 20, 'sent', 40]


def test_a_source_that_has_become_shorter_ends_with_the_recorded_items(store):
    line = a_line()
    assert looped(store, 'restart', Source([1, 2, 3, 4]), line)() is False
    line.down = False
    again = looped(store, 'recover', Source([1]), line)

    assert again() is True

    assert the_task(again, 'show').result == [10, 20, 'sent']


def test_an_unpicklable_item_matches_by_its_index_and_no_item_comes_twice(store, caplog):
    # semantics 7.4
    class Odd:
        def __init__(self):
            self.lock = threading.Lock()
    seen, line = [], Line()

    def one(item):
        seen.append('odd' if isinstance(item, Odd) else item)
        if item == 5:
            line()
    for mode in ('restart', 'recover'):
        flow = a_flow(store, mode=mode)
        c = flow.add_step('c', loop=lambda: [1, Odd(), 3, Odd(), 5, 6])
        c.add_step('a', func=one, args=(c.item,))
        flow()
        line.down = False

    assert statuses(flow)['c'] == 'success'
    assert seen == [1, 'odd', 3, 'odd', 5, 5, 6]
    assert caplog.text.count('a loop item cannot be pickled') <= 2


def test_an_unpicklable_item_beside_recorded_ones_that_run_again(store):
    # what is recorded between two that are not must be passed over in the source
    class Odd:
        def __init__(self, name):
            self.name = name
            self.lock = threading.Lock()
    seen, line = [], Line()

    def one(item):
        seen.append(getattr(item, 'name', item))
        line()
    for mode in ('restart', 'recover'):
        flow = a_flow(store, mode=mode, config={'stop_on_exception': False})
        c = flow.add_step('c', loop=lambda: [Odd('a'), 'b', Odd('c'), 'd', Odd('e')])
        c.add_step('a', func=one, args=(c.item,))
        flow()
        line.down = False

    assert seen == ['a', 'b', 'c', 'd', 'e'] * 2


def test_a_loop_over_a_result_goes_over_the_recorded_items_though_the_step_ran_again(store):
    # semantics 7.10
    line = a_line()
    for mode, items in (('restart', [1, 3]), ('recover', [7, 8, 9])):
        flow = a_flow(store, mode=mode)
        a = flow.add_step('a', func=give, args=(items,), recovery={'success': 'rerun'})
        c = flow.add_step('c', loop=a.result)

        def one(item):
            line.seen.append(item)
            if item == 3:
                line()
        c.add_step('b', func=one, args=(c.item,))
        flow()
        line.down = False

    assert line.seen == [1, 3, 3, 9]
    assert statuses(flow)['c'] == 'success'


def test_a_loop_over_a_result_in_a_recovery_that_skips_the_step(store):
    # semantics 7.10
    line = a_line()

    def make(mode):
        flow = a_flow(store, mode=mode)
        a = flow.add_step('a', func=lambda: line.seen.append('a') or [1, 2, 3, 4])
        c = flow.add_step('c', loop=a.result)

        def one(item):
            line.seen.append(item)
            return line() if item == 3 else item
        b = c.add_step('b', func=one, args=(c.item,))
        flow.add_step('show', func=give, args=(b.result,))
        return flow
    assert make('restart')() is False
    line.down = False
    again = make('recover')

    assert again() is True

    assert line.seen == ['a', 1, 2, 3, 3, 4]
    assert the_task(again, 'show').result == [1, 2, 'sent', 4]


def test_given_iterables_are_still_compared(store):
    # semantics 7.4
    line = a_line()
    assert looped(store, 'restart', [1, 2, 3], line)() is False
    line.down = False
    again = looped(store, 'recover', [1, 5, 3], line)

    assert again() is True

    assert line.seen == [1, 2, 3, 5, 3]


def test_a_loop_in_a_loop_is_recorded_for_each_iteration(store):
    line, calls = Line(), []

    def make(mode):
        flow = a_flow(store, mode=mode)
        c = flow.add_step('c', loop=lambda: calls.append('outer') or [1, 2])
        d = c.add_step('d', loop=lambda: calls.append('inner') or 'xy')
        d.add_step('a', func=lambda *one: one == (2, 'x') and line(), args=(c.item, d.item))
        return flow
    assert make('restart')() is False
    assert calls == ['outer', 'inner', 'inner']
    line.down = False
    again = make('recover')

    assert again() is True

    # The first iteration and its inner loop are over; of the others the ends are not known.
    assert calls == ['outer', 'inner', 'inner', 'inner', 'outer']
    assert [one.sequence for one in records_of(again, 'c_d_a') if one.status == 'success'] == [
        '1.1.1', '1.1.2', '1.2.1', '1.2.2']


def test_a_succeeded_loop_is_passed_over_without_calling_its_callable(store):
    # semantics 7.2
    line, source = Line(), Source([1, 2])
    for mode in ('restart', 'recover'):
        flow = a_flow(store, mode=mode)
        c = flow.add_step('c', loop=source)
        a = c.add_step('a', func=give, args=(c.item,))
        b = flow.add_step('b', func=line, require=c)
        flow.add_step('show', func=give, args=(a.result,), require=b)
        flow()
        line.down = False

    assert source.calls == 1
    assert the_task(flow, 'show').result == [1, 2]


def test_a_loop_that_is_rerun_goes_over_its_recorded_items(store):
    # semantics 7.10
    source, seen = Source([1, 2]), []
    for mode in ('restart', 'recover'):
        flow = a_flow(store, mode=mode)
        c = flow.add_step('c', loop=source, recovery={'success': 'rerun'})
        c.add_step('a', func=seen.append, args=(c.item,))
        flow.add_step('b', func=fail, require=c)
        assert flow() is False

    assert seen == [1, 2, 1, 2]
    assert source.calls == 1


# kill -9 ##########################################################################

#: A loop over what others would find different, killed in its third iteration.
KILLED = '''
    def source():
        journal.note('called in ' + MODE)
        for number in range(1, 6):
            yield '%d%s' % (number, '' if MODE == 'restart' else ' of ' + MODE)
        if MODE != 'restart' and os.environ.get('AGAIN'):
            kill_me()
    def work(item):
        journal.note(item)
        if MODE == 'restart' and item[0] == os.environ.get('KILL', '3'):
            os.kill(SUPERVISOR, signal.SIGKILL)
            time.sleep(60)
        return item
    SUPERVISOR = os.getpid()
    flow = make(os.environ['CONSTRUCT'])
    if os.environ.get('NESTED'):
        c = flow.add_step('c', loop=source)
        a = c.add_step('a', func=work, args=(c.item,))
    else:
        a = flow.add_step('c', func=work, args=(seq.item,), loop=source)
    flow.add_step('show', func=lambda found: journal.note(' '.join(found)), args=(a.result,))
    leave(flow)
    '''


@pytest.mark.parametrize('nested', ['1', ''])
@pytest.mark.parametrize('mode', ['continue', 'recover'])
def test_after_kill_9_in_a_loop_the_callable_is_called_again_and_passed_over(
        mode, nested, programs, journal):
    # semantics 7.10
    programs.write(KILLED)
    environment = {'CONSTRUCT': 'inline', 'NESTED': nested}
    assert programs.run(environment=environment) == -9

    assert programs.run(mode, environment=environment) == 0

    fourth, fifth = '4 of ' + mode, '5 of ' + mode
    assert journal.words() == [
        'called in restart', '1', '2', '3', '3', 'called in ' + mode, fourth, fifth,
        ' '.join(['1', '2', '3', fourth, fifth])]


@pytest.mark.parametrize('construct', ['thread', 'inline'])
def test_after_kill_9_in_the_last_iteration_the_rest_is_asked_for(construct, programs, journal):
    programs.write(KILLED)
    environment = {'CONSTRUCT': construct, 'KILL': '5'}
    assert programs.run(environment=environment) == -9

    assert programs.run('recover', environment=environment) == 0

    assert journal.words()[-2:] == ['called in recover', '1 2 3 4 5']


def test_after_kill_9_past_the_end_the_callable_is_not_called_again(programs, journal):
    programs.write('''
        def source():
            journal.note('called in ' + MODE)
            return [1, 2]
        flow = make('inline')
        c = flow.add_step('c', loop=source)
        a = c.add_step('a', func=journal.note, args=(c.item,))
        c.add_step('slow', func=lambda: kill_me() if MODE == 'restart' else None, delay=0.02,
                   require=a, loop=lambda: journal.note('slow in ' + MODE) or [1])
        leave(flow)
        ''')
    assert programs.run() == -9
    assert programs.run('continue') == 0
    # the first iteration was under way; nothing had been asked for after it
    assert journal.words() == ['called in restart', '1', 'slow in restart', 'slow in continue',
                               'called in continue', '2', 'slow in continue']


@pytest.mark.parametrize('mode', ['continue', 'recover'])
def test_iterations_in_flight_at_kill_9_keep_their_items(mode, programs, journal):
    # semantics 7.10
    programs.write('''
        def source():
            for number in range(6):
                yield number if MODE == 'restart' else number + 100
        def work(item):
            if MODE == 'restart':
                journal.note('runs')
                if item == 2:
                    journal.wait_for('runs', 3)
                    kill_me()
                journal.pass_gate('never')
            return item
        flow = make('thread', config={'max_concurrent': 3})
        a = flow.add_step('a', func=work, args=(seq.item,), loop=source,
                          config={'max_concurrent': 3})
        flow.add_step('show', func=journal.note, args=(a.result,))
        leave(flow)
        ''')
    assert programs.run() == -9
    assert programs.run(mode) == 0
    assert journal.words()[-1] == '[0, 1, 2, 103, 104, 105]'


# tolerate #########################################################################


def failing(store, items, bad, construct='inline', mode='restart', loop=None, nested=True,
            last=None, **config):
    """Return a flow with a loop in which some items fail, and a step after it."""
    flow = a_flow(store, construct, mode)

    def one(item):
        if item in bad:
            fail('item %d' % item)
        return item
    loop = list(items) if loop is None else loop
    if nested:
        c = flow.add_step('c', loop=loop, config=config)
        a = c.add_step('a', func=one, args=(c.item,))
    else:
        c = a = flow.add_step('c', func=one, args=(sequent.item,), loop=loop, config=config)
    show = flow.add_step('show', func=give, args=(a.result,), require=c)
    if last is not None:
        flow.add_step('last', func=last, require=show)
    return flow


def source_of(items):
    return lambda: iter(items)


@pytest.mark.parametrize('nested', [True, False])
def test_a_loop_bears_as_many_failed_iterations_as_it_tolerates(nested, construct, store):
    # semantics 3.8
    flow = failing(store, range(5), {1, 3}, construct, nested=nested, tolerate=2)

    assert flow() is True

    assert the_task(flow, 'show').result == [0, None, 2, None, 4]
    failed = [one for one in records_of(flow) if one.status == 'failure']
    assert [(one.sequence, one.handled) for one in failed] == [('1.2', True), ('1.4', True)]


@pytest.mark.parametrize('nested', [True, False])
def test_one_failed_iteration_more_fails_the_container_and_stops_it(nested, construct, store):
    # semantics 3.8
    flow = failing(store, range(6), {1, 2, 3}, construct, nested=nested, tolerate=2)

    assert flow() is False

    [container] = [one for one in flow.tasks() if one.path == 'c' and one.kind != 'leaf']
    assert container.status == 'failure'
    assert 'more iterations have failed than the 2 that are tolerated' in container.error
    assert '1.5' not in [one.sequence for one in flow.tasks()]
    assert 'show' not in statuses(flow)


@pytest.mark.parametrize('config', [{}, {'tolerate': 0}, {'tolerate': None}, {'tolerate': '0%'}],
                         ids=repr)
def test_without_it_the_first_failure_counts(config, store):
    # semantics 3.4, 3.8
    flow = failing(store, range(3), {1}, **config)

    assert flow() is False

    assert [one.sequence for one in flow.tasks() if one.path == 'c_a'] == ['1.1', '1.2']


@pytest.mark.parametrize('given', [list, source_of], ids=['a list', 'a callable'])
@pytest.mark.parametrize('share, bad, ok', [
    ('10%', 1, True), ('10%', 2, False), ('15%', 1, True), ('25%', 2, True), ('25%', 3, False),
    ('100%', 10, True), ('0%', 1, False), ('12.5%', 1, True), ('29.9%', 3, False)])
def test_a_share_of_the_iterations(share, bad, ok, given, store):
    # semantics 3.8
    items = list(range(10))
    flow = failing(store, items, set(items[:bad]), loop=given(items), tolerate=share)

    assert flow() is ok


@pytest.mark.parametrize('number', range(1, 101))
def test_a_share_of_100_is_as_many(number):
    # semantics 3.8
    # whatever floating point makes of it
    items = list(range(100))
    flow = failing(':memory:', items, set(items[:number]), tolerate='%d%%' % number)
    assert flow() is True


def test_a_share_of_what_has_no_length_is_looked_at_when_the_loop_is_over(store):
    # semantics 3.8
    flow = failing(store, (), {0, 1}, loop=source_of(range(4)), tolerate='25%')

    assert flow() is False

    assert [one.sequence for one in flow.tasks() if one.path == 'c_a'] == [
        '1.1', '1.2', '1.3', '1.4']
    assert the_task(flow, 'c').error == '2 of its 4 iterations have failed, 25 % are tolerated'


def test_a_tolerated_failure_is_told_as_such(store, caplog):
    # semantics 3.7, 3.8
    caplog.set_level(logging.INFO, 'sequent')
    flow = failing(store, range(3), {1}, tolerate=1)

    assert flow() is True

    assert the_task(flow, 'c_a', '1.2').handled is True
    assert 'step c_a at 1.2 failed (tolerated): ValueError: item 1' in caplog.text
    assert 'tolerated failure: c_a at 1.2: ValueError: item 1' in caplog.text


def test_a_failed_iteration_is_stopped_and_the_others_go_on(store, journal):
    # semantics 3.8
    flow = a_flow(store)
    c = flow.add_step('c', loop=[1, 2, 3], config={'tolerate': 1})
    a = c.add_step('a', func=lambda item: fail() if item == 2 else journal.note('a%d' % item),
                   args=(c.item,))
    c.add_step('b', func=lambda item: journal.note('b%d' % item), args=(c.item,),
               require=((a, 'active'),), delay=0.01)

    assert flow() is True

    assert journal.words() == ['a1', 'b1', 'a3', 'b3']


def test_several_failures_in_one_iteration_count_once(store):
    # semantics 3.8
    flow = a_flow(store)
    c = flow.add_step('c', loop=[1, 2], config={'tolerate': 1, 'stop_on_exception': False})
    for name in 'ab':
        c.add_step(name, func=lambda item: fail() if item == 1 else None, args=(c.item,))

    assert flow() is True


def test_an_iteration_whose_attempts_are_used_up_counts_once(store, journal):
    # semantics 3.8
    def one(item):
        journal.note(item)
        if item == 1:
            fail()
    flow = a_flow(store)
    flow.add_step('a', func=one, args=(sequent.item,), loop=[1, 2],
                  config={'tolerate': 1, 'retries': 2})

    assert flow() is True

    assert journal.words() == ['1', '1', '1', '2']


def test_tolerate_is_not_inherited(store):
    # semantics 3.8
    flow = a_flow(store)
    c = flow.add_step('c', loop=[1], config={'tolerate': 1})
    d = c.add_step('d', loop=[1, 2])
    d.add_step('a', func=lambda item: fail() if item == 1 else None, args=(d.item,))

    assert flow() is True

    assert [one.sequence for one in flow.tasks() if one.path == 'c_d_a'] == ['1.1.1']
    assert the_task(flow, 'c_d').status == 'failure'


def test_a_recovery_runs_tolerated_failures_again_where_the_loop_did_not_succeed(store):
    flow = failing(store, range(5), {1, 3, 4}, tolerate=2)
    assert flow() is False
    again = failing(store, range(5), {1}, mode='recover', tolerate=2)

    assert again() is True

    assert [(one.sequence, one.recovery) for one in records_of(again, 'c_a')
            if one.recovery] == [('1.2', 1), ('1.4', 1), ('1.5', 1)]
    assert the_task(again, 'show').result == [0, None, 2, 3, 4]


def test_of_a_loop_that_succeeded_with_tolerated_failures_these_alone_run_again(store):
    # semantics 7.1
    line = Line()
    for mode in ('restart', 'recover'):
        flow = failing(store, range(3), {1}, mode=mode, last=line, tolerate=1)
        flow()
        line.down = False

    assert statuses(flow)['last'] == 'success'
    assert [(one.sequence, one.recovery) for one in records_of(flow, 'c_a')] == [
        ('1.1', 0), ('1.2', 0), ('1.3', 0), ('1.2', 1)]


def test_a_loop_that_goes_on_with_continue_remembers_what_has_failed(programs, journal):
    programs.write('''
        def work(item):
            journal.note(item)
            if item == 2 and MODE == 'restart':
                kill_me()
            if item in (1, 4):
                raise ValueError('on purpose')
        flow = make('inline')
        flow.add_step('a', func=work, args=(seq.item,), loop=[1, 2, 3, 4, 5],
                      config={'tolerate': int(os.environ.get('TOLERATE', 2))})
        leave(flow)
        ''')
    assert programs.run() == -9
    assert programs.run('continue', environment={'TOLERATE': '1'}) == 1
    assert journal.words() == ['1', '2', '2', '3', '4']


@pytest.mark.parametrize('value', [-1, 1.5, True, '10', '10 percent', '%', '-1%', '101%', 'nan%',
                                   [1], b'10%'], ids=repr)
def test_a_wrong_tolerance_is_refused_with_a_sentence(value):
    with pytest.raises(ConfigError, match="step 'a': config 'tolerate' must be a number of "
                                          "iterations, 0 or more, or a share such as '10%'"):
        a_flow().add_step('a', func=None, loop=[1], config={'tolerate': value})


def test_tolerate_without_a_loop_is_refused(journal):
    # semantics 3.8
    flow = a_flow()
    flow.add_step('first', func=journal.note, args=('first',))
    flow.add_step('a', func=None, config={'tolerate': 1})
    with pytest.raises(ConfigError, match="step 'a': config tolerate is for a step with a loop"):
        flow()
    assert journal.words() == []


def test_tolerate_means_nothing_on_a_flow(caplog):
    flow = a_flow(config={'tolerate': 3})
    flow.add_step('a', func=None)
    assert flow() is True
    assert "config key 'tolerate' means nothing here; set it on a step with a loop" in caplog.text


def test_the_command_line_tells_tolerated_failures(tmp_path, monkeypatch, capsys):
    (tmp_path / 'bears.py').write_text('''
import sequent
def work(item):
    if item == 2:
        raise ValueError('two')
flow = sequent.Sequent('bears', config={'task_construct': 'inline'})
flow.add_step('a', func=work, args=(sequent.item,), loop=[1, 2, 3], config={'tolerate': 1})
''')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', sys.path[:])

    assert sequent.main(['bears.py', '--json']) == 0

    result = json.loads(capsys.readouterr().out)
    assert result['ok'] is True
    assert [(one['sequence'], one['error']) for one in result['handled']] == [
        ('1.2', 'ValueError: two')]
