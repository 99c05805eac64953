"""Runs that go on from earlier ones: semantics 7, with supervisors that are really killed."""

import fcntl
import itertools
import json
import logging
import os
import pickle
import signal

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    Calls, Line, a_flow, a_private_temporary_folder, construct, fail, is_running, journal,
    process_of, programs, results, statuses, store, the_task, wait_gone, wait_until)
from sequent import (  # noqa: E402
    RUN_CONTINUE, RUN_RECOVER, AlreadyRunningError, Eventor, MemoryStore, RecoveryError,
    SqliteStore)


def chain(store, mode='restart', a=None, b=None, c=None, construct='inline', **given):
    """Return a flow of a, then b, then c."""
    flow = a_flow(store, construct, mode, **given)
    first = flow.add_step('a', func=a)
    second = flow.add_step('b', func=b, require=(first,))
    flow.add_step('c', func=c, require=(second,))
    return flow


def attempts(flow):
    """Return [(path, sequence, recovery, attempt, status)] of all attempts stored."""
    kept = flow.open_store(create=False)
    try:
        run = kept.latest(flow.name, flow.run_id)
        return [(one.path, one.sequence, one.recovery, one.attempt, str(one.status))
                for one in kept.attempts(run) if one.kind != 'iteration']
    finally:
        flow.close_store()


# 7.1 Modes

def test_restart_starts_a_new_run(store):
    # semantics 7.1
    calls, line = Calls(), Line()
    first = chain(store, a=calls, b=line)
    assert first() is False
    again = chain(store, a=calls, b=line)
    assert again() is False
    assert again.run_id != first.run_id
    assert calls.names == ['a', 'a']
    assert the_task(again, 'a').recovery == 0


def test_recover_goes_through_the_latest_run_of_this_flow(store):
    # semantics 7.1
    calls, line = Calls(), Line()
    runs = [chain(store, a=calls, b=line) for _ in range(2)]
    other = chain(store, name='report', a=calls, b=line)
    for flow in runs + [other]:
        assert flow() is False

    line.down = False
    recovery = chain(store, RUN_RECOVER, a=calls, b=line)

    assert recovery() is True
    assert recovery.run_id == runs[1].run_id
    assert calls.names == ['a'] * 3
    assert statuses(runs[0])['b'] == 'failure'


def test_run_id_chooses_the_run_to_recover(store):
    # semantics 7.1
    line = Line()
    for run_id in ('monday', 'tuesday'):
        assert chain(store, run_id=run_id, b=line)() is False
    line.down = False
    recovery = chain(store, 'recover', run_id='monday', b=line)
    assert recovery() is True
    assert statuses(recovery)['b'] == 'success'
    tuesday = chain(store, 'recover', run_id='tuesday', b=line)
    calls = len(line.calls)
    assert tuesday() is True
    assert len(line.calls) == calls + 1


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_there_must_be_a_run_to_recover_or_continue(mode, store, tmp_path):
    # semantics 7.1
    calls = Calls()
    with pytest.raises(RecoveryError, match='nothing to recover'):
        chain(store, mode, a=calls)()
    assert not (tmp_path / 'etl.db').exists()
    assert chain(store, a=calls)() is True
    with pytest.raises(RecoveryError, match='friday'):
        chain(store, mode, run_id='friday', a=calls)()
    with pytest.raises(RecoveryError):
        chain(store, mode, name='report', a=calls)()
    assert calls.names == ['a']


def test_each_recovery_gets_the_next_number(store):
    # semantics 7.1
    line, seen = Line(), []
    for mode in ('restart', 'recover', 'recover'):
        flow = chain(store, mode, b=line)
        assert flow() is False
        seen.append(the_task(flow, 'b').recovery)
    assert seen == [0, 1, 2]
    assert [one[2] for one in attempts(flow) if one[0] == 'b'] == [0, 1, 2]


def test_what_counts_is_the_latest_outcome_over_all_recoveries(store):
    # semantics 7.1, 7.3: b succeeds in recovery 1, of which recovery 2 knows as of the first run
    calls = {name: Line(down) for name, down in (('a', False), ('b', True), ('c', True))}
    assert chain(store, **calls)() is False
    calls['b'].down = False
    assert chain(store, 'recover', **calls)() is False
    assert chain(store, 'recover', **calls)() is False
    calls['c'].down = False
    last = chain(store, 'recover', **calls)

    assert last() is True

    assert {name: len(one.calls) for name, one in calls.items()} == {'a': 1, 'b': 2, 'c': 3}
    assert statuses(last) == {'a': 'success', 'b': 'success', 'c': 'success'}


def test_recovery_run_takes_the_state_at_the_end_of_that_recovery(store):
    # semantics 7.1
    calls = {name: Line(down) for name, down in (('a', False), ('b', True), ('c', True))}
    assert chain(store, **calls)() is False           # 0: b fails
    calls['b'].down = False
    assert chain(store, 'recover', **calls)() is False  # 1: b succeeds, c fails
    calls['c'].down = False

    again = chain(store, 'recover', recovery_run=0, **calls)
    assert again() is True

    assert [len(calls[name].calls) for name in 'abc'] == [1, 3, 2]
    assert the_task(again, 'b').recovery == 2


def test_recovery_run_takes_each_outcome_over_recoveries_up_to_it(store):
    # semantics 7.1: a succeeded in 0, b in 1; both count at the end of 1
    calls = {name: Line(down) for name, down in (('a', False), ('b', True), ('c', True))}
    assert chain(store, **calls)() is False
    calls['b'].down = False
    assert chain(store, 'recover', **calls)() is False
    calls['c'].down = False
    assert chain(store, 'recover', **calls)() is True   # 2: all is done

    assert chain(store, 'recover', recovery_run=1, **calls)() is True

    assert [len(calls[name].calls) for name in 'abc'] == [1, 2, 3]


def test_a_recovery_run_that_was_not_is_refused(store):
    # semantics 7.1
    line = Line()
    assert chain(store, b=line)() is False
    with pytest.raises(RecoveryError, match='5'):
        chain(store, 'recover', recovery_run=5, b=line)()
    assert len(line.calls) == 1


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_what_is_over_successfully_runs_nothing_and_succeeds(mode, store):
    # semantics 7.1, 7.5
    calls = Calls()
    assert chain(store, a=calls, b=calls, c=calls)() is True
    again = chain(store, mode, a=calls, b=calls, c=calls)
    assert again() is True
    assert calls.names == ['a', 'b', 'c']
    assert statuses(again) == {'a': 'success', 'b': 'success', 'c': 'success'}


# 7.2 What happens to a task

def test_by_default_failures_are_run_again_and_successes_are_skipped(construct, store, journal):
    # semantics 7.2
    def one():
        journal.note(sequent.current().name)
        if sequent.current().name == 'b' and journal.count('b') == 1:
            fail()
    for mode, result in (('restart', False), ('recover', True)):
        assert chain(store, mode, one, one, one, construct)() is result
    assert journal.words() == ['a', 'b', 'b', 'c']


def interrupted(store, func):
    """Run a flow whose step is interrupted by a signal while it is active."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        flow = a_flow(store)
        flow.add_step('a', func=lambda: os.kill(os.getpid(), signal.SIGTERM))
        flow.add_step('b', func=func)
        with pytest.raises(SystemExit):
            flow()
    finally:
        signal.signal(signal.SIGTERM, before)
    return flow


def test_by_default_what_was_active_is_run_again(store):
    # semantics 7.2
    flow = interrupted(store, len)
    assert statuses(flow)['a'] == 'active'
    calls = Calls()
    again = a_flow(store, mode='recover')
    again.add_step('a', func=calls)
    again.add_step('b', func=calls)
    assert again() is True
    assert sorted(calls.names) == ['a', 'b']
    assert the_task(again, 'a').recovery == 1


def test_by_default_what_was_ready_is_run(store):
    # semantics 7.2, 3.4: the stop drops b, which keeps its recorded status
    calls, line = Calls(), Line()

    def make(mode):
        flow = a_flow(store, mode=mode, config={'max_concurrent': 1})
        flow.add_step('a', func=line)
        flow.add_step('b', func=calls)
        return flow
    first = make('restart')
    assert first() is False
    assert statuses(first).get('b') in ('ready', None)
    assert calls.calls == []
    line.down = False
    assert make('recover')() is True
    assert calls.names == ['b']


@pytest.mark.parametrize('mapping', [{'failure': 'skip'},
                                     {sequent.STEP_FAILURE: sequent.STEP_SKIP}])
def test_a_skipped_failure_counts_as_success(mapping, store):
    # semantics 7.2
    line, calls = Line(), Calls()

    def make(mode):
        flow = a_flow(store, mode=mode)
        a = flow.add_step('a', func=line, recovery=mapping)
        flow.add_step('b', func=calls, require=((a, 'success'),))
        flow.add_step('c', func=calls, require=((a, 'complete'),))
        flow.add_step('d', func=calls, require=((a, 'failure'), (a, 'active')))
        return flow

    first = a_flow(store)
    a = first.add_step('a', func=line, recovery=mapping)
    first.add_step('b', func=calls, require=((a, 'success'),))
    assert first() is False and calls.calls == []

    assert make('recover')() is True

    assert len(line.calls) == 1
    assert sorted(calls.names) == ['b', 'c']


def test_a_success_is_run_again_where_the_mapping_says_so(construct, store, journal):
    # semantics 7.2
    def one():
        journal.note(sequent.current().name)
        if sequent.current().name == 'c' and journal.count('c') == 1:
            fail()

    for mode in ('restart', 'recover'):
        flow = a_flow(store, construct, mode)
        a = flow.add_step('a', func=one, recovery={'success': 'rerun'})
        b = flow.add_step('b', func=one, require=(a,))
        flow.add_step('c', func=one, require=(b,))
        flow()
    assert journal.words() == ['a', 'b', 'c', 'a', 'c']
    assert statuses(flow) == {'a': 'success', 'b': 'success', 'c': 'success'}


def test_what_was_active_is_skipped_where_the_mapping_says_so(store):
    # semantics 7.2
    interrupted(store, len)
    calls = Calls()
    flow = a_flow(store, mode='recover')
    a = flow.add_step('a', func=calls, recovery={'active': 'skip'})
    flow.add_step('b', func=calls, require=(a,))
    assert flow() is True
    assert calls.names == ['b']


def test_a_skipped_task_keeps_its_result(construct, store):
    # semantics 7.2
    line = Line()
    for mode in ('restart', 'recover'):
        flow = a_flow(store, construct, mode)
        a = flow.add_step('a', func=lambda: {'rows': 3})
        flow.add_step('b', func=line, require=(a,), config={'task_construct': 'inline'})
        flow()
        line.down = False
    assert the_task(flow, 'a').result == {'rows': 3}
    assert statuses(flow) == {'a': 'success', 'b': 'success'}


def test_a_skipped_task_raises_what_success_raises(store):
    # semantics 7.2: also for steps that are new
    line, calls = Line(), Calls()
    first = a_flow(store)
    first.add_step('a', func=calls)
    first.add_step('b', func=line)
    assert first() is False
    line.down = False
    again = a_flow(store, mode='recover')
    a = again.add_step('a', func=calls)
    again.add_step('b', func=line)
    again.add_step('c', func=calls, require=((a, 'complete'),))
    assert again() is True
    assert calls.names == ['a', 'c']


def test_the_mapping_of_a_container_holds_for_what_has_none_in_it(store):
    # semantics 7.2
    line, calls = Line(), Calls()
    for mode in ('restart', 'recover'):
        flow = a_flow(store, mode=mode)
        s = flow.add_step('s', recovery={'success': 'rerun'})
        t = s.add_step('t')
        t.add_step('x', func=calls)
        t.add_step('y', func=calls, recovery={'success': 'skip'})
        t.add_step('z', func=calls, recovery={'failure': 'skip'})
        flow.add_step('b', func=line, require=(s,))
        flow()
        line.down = False
    assert sorted(calls.names) == ['s_t_x', 's_t_x', 's_t_y', 's_t_z', 's_t_z']
    assert len(line.calls) == 2


def test_a_succeeded_container_is_passed_over_as_a_whole(store):
    # semantics 7.2: its loop is not even asked
    line, calls, asked = Line(), Calls(), []

    def items():
        asked.append(1)
        return [1, 2]
    for mode in ('restart', 'recover'):
        flow = a_flow(store, mode=mode)
        s = flow.add_step('s', loop=items)
        s.add_step('x', func=calls)
        flow.add_step('b', func=line, require=(s,))
        flow()
        line.down = False
    assert calls.names == ['s_x', 's_x']
    assert len(asked) == 1
    assert statuses(flow)['b'] == 'success'


def test_a_succeeded_container_is_entered_where_a_success_in_it_is_run_again(store):
    # semantics 7.2
    line, calls = Line(), Calls()
    for mode in ('restart', 'recover'):
        flow = a_flow(store, mode=mode)
        s = flow.add_step('s', loop=[1, 2])
        t = s.add_step('t')
        t.add_step('x', func=calls, recovery={'success': 'rerun'})
        t.add_step('y', func=calls)
        flow.add_step('b', func=line, require=(s,))
        flow()
        line.down = False
    assert calls.names.count('s_t_x') == 4
    assert calls.names.count('s_t_y') == 2


def test_a_succeeded_container_is_entered_where_something_in_it_is_new(store):
    # semantics 7.2, 7.4
    line, calls = Line(), Calls()
    for mode in ('restart', 'recover'):
        flow = a_flow(store, mode=mode)
        s = flow.add_step('s', loop=[1, 2])
        s.add_step('x', func=calls)
        if mode == 'recover':
            s.add_step('new', func=calls)
        flow.add_step('b', func=line, require=(s,))
        flow()
        line.down = False
    assert calls.calls == [('s_x', '1.1'), ('s_x', '1.2'), ('s_new', '1.1'), ('s_new', '1.2')]


# 7.3 Successes

def test_a_committed_success_is_never_run_again_three_recoveries_deep(construct, store, journal):
    # semantics 7.3
    def one():
        name = '%s.%s' % (sequent.current().name, sequent.current().sequence)
        journal.note(name)
        if journal.count(name) <= {'s_c.1.1': 1, 's_c.1.2': 2, 'd.1': 3}.get(name, 0):
            fail()
    for mode in ('restart', 'recover', 'recover', 'recover', 'recover', 'recover', 'recover'):
        flow = a_flow(store, construct, mode)
        s = flow.add_step('s', loop=['x', 'y'])
        a = s.add_step('a', func=one)
        s.add_step('c', func=one, require=(a,))
        flow.add_step('d', func=one, require=(s,))
        ok = flow()
    assert ok is True
    assert {name: journal.count(name) for name in set(journal.words())} == {
        's_a.1.1': 1, 's_a.1.2': 1, 's_c.1.1': 2, 's_c.1.2': 3, 'd.1': 4}


KILLS_ITSELF = '''
    def one():
        name = seq.current().name
        journal.sign('one')
        journal.note(name)
        if name in ('b', 'c', 'd') and journal.count(name) == 1:
            os.kill(SUPERVISOR, signal.SIGKILL)
            if os.getpid() != SUPERVISOR:
                os._exit(1)
    SUPERVISOR = os.getpid()
    flow = make(%r)
    before = ()
    for name in 'abcde':
        before = (flow.add_step(name, func=one, require=before),)
    leave(flow)
    '''


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_killed_recoveries_of_killed_recoveries_never_run_a_success_again(
        mode, construct, programs, journal):
    # semantics 7.3, 6.3
    programs.write(KILLS_ITSELF % construct)
    codes = []
    for given in ['restart'] + 3 * [mode]:
        codes.append(programs.run(given))
        # Who killed its supervisor: where it is adopted, its exit is a failure.
        wait_gone(journal.pid('one'))
    assert codes == [-9, -9, -9, 0]
    assert journal.words() == ['a', 'b', 'b', 'c', 'c', 'd', 'd', 'e']
    assert {path: found[-1][3] for path, found in programs.tasks().items()} == {
        name: 'success' for name in 'abcde'}


# 7.4 Flows that were edited

def looping(store, mode, items, calls, line, leaf=True):
    flow = a_flow(store, mode=mode)
    if leaf:
        s = flow.add_step('s', func=calls, loop=items)
    else:
        s = flow.add_step('s', loop=items)
        s.add_step('x', func=calls)
    flow.add_step('b', func=line, require=(s,))
    return flow


class Items:
    """Notes the item of each call."""

    def __init__(self):
        self.seen = []

    def __call__(self):
        self.seen.append(sequent.current().item)


@pytest.mark.parametrize('leaf', [True, False])
@pytest.mark.parametrize('before, after, run', [
    ([1, 2, 3], [1, 2, 3], []),
    ([1, 2, 3], [1, 5, 3], [5]),
    ([1, 2], [1, 2, 3], [3]),
    ([1, 2, 3], [1, 2], []),
    ([1, 2], [0, 1, 2], [0, 1, 2]),
    ([1, 2], [1.0, 2.5], [2.5]),
    ([None, None], [None, 0], [0]),
])
def test_an_outcome_counts_only_for_the_same_item(leaf, before, after, run, store):
    # semantics 7.4
    items, line = Items(), Line()
    assert looping(store, 'restart', before, items, line, leaf)() is False
    del items.seen[:]
    line.down = False
    assert looping(store, 'recover', after, items, line, leaf)() is True
    assert items.seen == run
    assert len(line.calls) == 2


@pytest.mark.parametrize('leaf', [True, False])
def test_the_log_says_that_an_item_is_another(leaf, store, caplog):
    # semantics 7.4
    caplog.set_level(logging.INFO)
    items, line = Items(), Line()
    looping(store, 'restart', ['x', 'y'], items, line, leaf)()
    caplog.clear()
    line.down = False
    assert looping(store, 'recover', ['x', 'z'], items, line, leaf)() is True
    said = [one.getMessage() for one in caplog.records if 'loop item' in one.getMessage()]
    assert len(said) == 1 and 'step s' in said[0] and '1.2' in said[0]


def test_what_depends_on_an_item_that_is_another_is_not_skipped(store):
    # semantics 7.4: "its new task runs", all of the iteration
    line, calls = Line(), Calls()
    for mode, items in (('restart', ['x', 'y']), ('recover', ['x', 'z'])):
        flow = a_flow(store, mode=mode)
        s = flow.add_step('s', loop=items)
        a = s.add_step('a', func=calls)
        s.add_step('t', loop=[1, 2]).add_step('u', func=calls, require=())
        s.add_step('b', func=calls, require=(a,))
        flow.add_step('end', func=line, require=(s,))
        del calls.calls[:]
        flow()
        line.down = False
    assert sorted(calls.calls) == [('s_a', '1.2'), ('s_b', '1.2'), ('s_t_u', '1.2.1'),
                                   ('s_t_u', '1.2.2')]


class ByIdentity:
    """Equal only to itself, but its pickles are equal."""

    def __init__(self, value):
        self.value = value


def test_items_are_compared_by_their_pickles_where_they_are_not_equal(store):
    # semantics 7.4
    items, line = Items(), Line()
    looping(store, 'restart', [ByIdentity(1), ByIdentity(2)], items, line)()
    del items.seen[:]
    line.down = False
    assert looping(store, 'recover', [ByIdentity(1), ByIdentity(3)], items, line)() is True
    assert [one.value for one in items.seen] == [3]


def test_items_that_cannot_be_pickled_match_by_index_with_one_warning(store, caplog):
    # semantics 7.4
    items, line = Items(), Line()

    def some():
        return [lambda: 1, lambda: 2]
    looping(store, 'restart', some(), items, line)()
    assert len(items.seen) == 2
    caplog.clear()
    line.down = False
    assert looping(store, 'recover', some() + [lambda: 3], items, line)() is True
    assert len(items.seen) == 3
    warned = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING
              and 'pickle' in one.getMessage()]
    assert len(warned) == 1 and 'step s' in warned[0]


def test_steps_that_are_new_run_and_steps_that_are_gone_are_named(store, caplog):
    # semantics 7.4
    caplog.set_level(logging.INFO)
    line, calls = Line(), Calls()
    first = a_flow(store)
    first.add_step('old_name', func=calls)
    first.add_step('same', func=calls)
    first.add_step('b', func=line)
    assert first() is False
    caplog.clear()
    line.down = False
    again = a_flow(store, mode='recover')
    again.add_step('new_name', func=calls)
    again.add_step('same', func=calls)
    again.add_step('b', func=line)
    assert again() is True
    assert calls.names == ['old_name', 'same', 'new_name']
    assert any('old_name' in one.getMessage() for one in caplog.records)
    assert not any('gone' in one.getMessage() and 'same' in one.getMessage()
                   for one in caplog.records)


def test_a_leaf_that_was_a_container_is_not_taken_for_it(store):
    # semantics 7.4: nothing is silently reused for something else
    line, calls = Line(), Calls()
    first = a_flow(store)
    first.add_step('s').add_step('x', func=calls)
    first.add_step('b', func=line)
    assert first() is False
    line.down = False
    again = a_flow(store, mode='recover')
    again.add_step('s', func=calls)
    again.add_step('b', func=line)
    assert again() is True
    assert calls.names == ['s_x', 's']


def test_a_container_that_was_a_leaf_is_not_taken_for_it(store):
    # semantics 7.4
    line, calls = Line(), Calls()
    first = a_flow(store)
    first.add_step('s', func=calls)
    first.add_step('b', func=line)
    assert first() is False
    line.down = False
    again = a_flow(store, mode='recover')
    again.add_step('s').add_step('x', func=calls)
    again.add_step('b', func=line)
    assert again() is True
    assert calls.names == ['s', 's_x']


def test_a_failed_container_runs_what_failed_or_did_not_run(store):
    # semantics 7.2
    calls, line = Calls(), Line()
    for mode in ('restart', 'recover'):
        flow = a_flow(store, mode=mode)
        s = flow.add_step('s', loop=[1, 2, 3])
        a = s.add_step('a', func=calls)
        b = s.add_step('b', func=lambda: sequent.current().item == 2 and line(), require=(a,))
        s.add_step('c', func=calls, require=(b,))
        flow()
        line.down = False
    assert calls.calls == [('s_a', '1.1'), ('s_c', '1.1'), ('s_a', '1.2'),
                           ('s_c', '1.2'), ('s_a', '1.3'), ('s_c', '1.3')]
    assert statuses(flow)['s'] == 'success'


# Delays

def test_a_delay_keeps_its_due_time_in_a_recovery(store):
    # semantics 4.4, 7.1
    line, calls = Line(), Calls()

    def make(mode, delay):
        flow = a_flow(store, mode=mode)
        a = flow.add_step('a', func=len, args=('',))
        flow.add_step('later', func=calls, require=(a,), delay=delay)
        flow.add_step('b', func=line, require=(a,))
        return flow
    first = make('restart', 1000)
    assert first() is False
    kept = first.open_store(create=False)
    [due] = [one.due for one in kept.tasks(kept.latest('etl')) if one.path == 'later']
    first.close_store()
    line.down = False
    again = make('recover', 1000)
    assert again.run(max_loops=1) is True
    left = again.count_todos()[1]
    again.close()
    kept = again.open_store(create=False)
    [due_again] = [one.due for one in kept.tasks(kept.latest('etl')) if one.path == 'later']
    again.close_store()
    assert due_again == due
    assert 900 < left < 1000
    assert calls.calls == []


def test_a_delay_goes_on_after_a_crash(programs, journal):
    # semantics 4.4, 7.5
    programs.write('''
        flow = make('inline')
        a = flow.add_step('a', func=journal.note, args=('a',))
        later = flow.add_step('later', func=journal.note, args=('later',), require=(a,),
                              delay=float(os.environ.get('DELAY', 1000)))
        flow.add_step('k', func=lambda: kill_me() if MODE == 'restart' else None, require=(a,))
        if MODE == 'restart':
            leave(flow)
        assert flow.run(max_loops=1) is True
        journal.note('%.0f' % flow.count_todos()[1])
        ''')
    assert programs.run() == -9
    for mode in ('continue', 'recover'):
        assert programs.run(mode, environment={'DELAY': '5000'}) == 0
    words = journal.words()
    assert words[0] == 'a' and len(words) == 3
    assert all(900 <= int(word) <= 1000 for word in words[1:])


# 7.5 Continue

def test_continue_goes_on_with_the_same_recovery_number(store):
    # semantics 7.5
    calls = Calls()

    def make(mode):
        flow = a_flow(store, mode=mode)
        a = flow.add_step('a', func=calls)
        flow.add_step('b', func=calls, require=(a,), delay=0.05)
        return flow
    first = make('restart')
    assert first.run(max_loops=1) is True
    first.close()
    second = make(RUN_CONTINUE)
    assert second.run() is True
    assert calls.names == ['a', 'b']
    assert second.run_id == first.run_id
    assert attempts(second) == [('a', '1', 0, 1, 'success'), ('b', '1', 0, 1, 'success')]


def test_continue_of_a_recovery_keeps_its_number(store):
    # semantics 7.5
    line, calls = Line(), Calls()

    def make(mode):
        flow = a_flow(store, mode=mode)
        a = flow.add_step('a', func=line)
        flow.add_step('b', func=calls, require=(a,), delay=0.05)
        return flow
    assert make('restart')() is False
    line.down = False
    recovery = make('recover')
    assert recovery.run(max_loops=1) is True
    recovery.close()
    last = make('continue')
    assert last() is True
    assert the_task(last, 'b').recovery == 1
    assert len(line.calls) == 2 and calls.names == ['b']


def test_what_has_finished_stays_finished_in_continue_also_what_failed(programs, journal):
    # semantics 7.5
    programs.write('''
        flow = make('inline')
        loose = {'stop_on_exception': False}
        def failing():
            journal.note('failing')
            raise ValueError('on purpose')
        flow.add_step('a', func=journal.note, args=('a',))
        f = flow.add_step('f', func=failing, config=loose)
        def crash():
            journal.note('crash')
            if MODE == 'restart':
                kill_me()
        k = flow.add_step('k', func=crash, require=((f, 'complete'),))
        g = flow.add_step('g', func=failing, config=loose)
        flow.add_step('h', func=journal.note, args=('h',), require=((k, 'success'),))
        leave(flow)
        ''')
    assert programs.run() == -9
    journal.note('--')
    assert programs.run('continue') in (0, 1)
    words = journal.words()
    before, after = words[:words.index('--')], words[words.index('--') + 1:]
    assert before.count('failing') + after.count('failing') == 2
    assert words.count('a') == 1
    assert 'crash' in after and 'h' in after


def test_what_was_active_runs_again_in_continue_with_the_next_attempt(programs, journal):
    # semantics 7.5
    programs.write('''
        def one():
            journal.note(seq.current().attempt)
            if MODE == 'restart':
                kill_me()
        flow = make('inline')
        flow.add_step('a', func=one)
        leave(flow)
        ''')
    assert programs.run() == -9
    assert programs.tasks() == {'a': [('1', 0, 1, 'active')]}
    assert programs.run('continue') == 0
    assert journal.words() == ['1', '2']
    assert programs.tasks()['a'][-1] == ('1', 0, 2, 'success')


def test_in_continue_a_run_that_failed_has_nothing_to_do(store):
    # semantics 7.5
    line = Line()
    assert chain(store, a=line)() is False
    line.down = False
    assert chain(store, 'continue', a=line)() is False
    assert len(line.calls) == 1


# 7.6 Orphans

ORPHAN = '''
    def one():
        journal.note('a started')
        journal.sign('a')
        journal.pass_gate('go')
        journal.note('a ended')
        if os.environ.get('FAIL'):
            raise ValueError('on purpose')
        return 42
    def other():
        journal.note('b in ' + MODE)
    flow = make()
    a = flow.add_step('a', func=one)
    flow.add_step('b', func=other, recovery={'success': 'rerun'})
    flow.add_step('c', func=journal.note, args=('c',), require=(a,))
    if MODE != 'restart':
        flow.add_step('d', func=journal.note, args=('d',))
    leave(flow)
    '''


def kill_while_a_runs(programs, journal, **given):
    """Start the program, kill its supervisor while step a runs; return the pid of that task."""
    supervisor = programs.start(**given)
    pid = journal.pid('a')
    supervisor.kill()
    assert supervisor.wait() == -9
    return pid


def test_an_orphan_finishes_and_leaves_its_outcome_in_a_file(programs, journal):
    # semantics 7.6
    programs.write(ORPHAN)
    pid = kill_while_a_runs(programs, journal)
    assert is_running(pid)
    journal.open('go')
    wait_gone(pid)
    [path] = [path for path in programs.outcomes() if os.path.basename(path).startswith('a.')]
    assert journal.count('a ended') == 1
    assert os.stat(path).st_mode & 0o077 == 0
    assert programs.last('a') == 'active'
    # Step b, too, may have become an orphan that is still writing.
    wait_until(lambda: all(name.endswith('.json') for name in os.listdir(os.path.dirname(path))),
               'a folder in which nothing of the writing is left')


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_the_outcome_of_an_orphan_is_used_as_if_it_had_been_delivered(mode, programs, journal):
    # semantics 7.6
    programs.write(ORPHAN)
    pid = kill_while_a_runs(programs, journal)
    journal.open('go')
    wait_gone(pid)
    assert programs.run(mode) == 0
    assert journal.count('a started') == 1
    assert journal.count('c') == 1
    assert [one[3] for one in programs.tasks()['a']] == ['success']
    assert programs.outcomes() == []
    kept = SqliteStore(programs.store_path)
    kept.open(create=False)
    [task] = [one for one in kept.tasks(kept.latest('etl')) if one.path == 'a']
    kept.close()
    assert pickle.loads(task.result) == 42
    assert task.ended is not None


def test_a_failed_orphan_is_run_again_in_a_recovery(programs, journal):
    # semantics 7.6, 7.2
    programs.write(ORPHAN)
    pid = kill_while_a_runs(programs, journal, environment={'FAIL': '1'})
    journal.open('go')
    wait_gone(pid)
    assert programs.run('recover') == 0
    assert [one[1:] for one in programs.tasks()['a']] == [(0, 1, 'failure'), (1, 1, 'success')]
    assert journal.count('a started') == 2


def test_a_failed_orphan_stays_failed_in_continue(programs, journal):
    # semantics 7.6, 7.5
    programs.write(ORPHAN)
    pid = kill_while_a_runs(programs, journal, environment={'FAIL': '1'})
    journal.open('go')
    wait_gone(pid)
    assert programs.run('continue') == 1
    assert [one[1:] for one in programs.tasks()['a']] == [(0, 1, 'failure')]
    assert journal.count('a started') == 1


def test_an_orphan_that_was_killed_is_run_again(programs, journal):
    # semantics 7.6
    programs.write(ORPHAN)
    pid = kill_while_a_runs(programs, journal)
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    journal.open('go')
    assert programs.run('recover') == 0
    assert journal.count('a started') == 2


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_an_orphan_that_still_runs_is_adopted_while_all_else_goes_on(mode, programs, journal):
    # semantics 7.6
    programs.write(ORPHAN)
    pid = kill_while_a_runs(programs, journal)
    recovery = programs.start(mode)
    journal.wait_for('d')
    assert is_running(pid) and recovery.process.poll() is None
    assert journal.count('c') == 0
    journal.open('go')
    assert recovery.wait() == 0
    assert journal.count('a started') == journal.count('a ended') == journal.count('c') == 1
    assert programs.last('a') == programs.last('c') == 'success'
    assert programs.outcomes() == []


def test_an_adopted_orphan_outlives_a_killed_recovery_too(programs, journal):
    # semantics 7.6, 7.3
    programs.write(ORPHAN)
    pid = kill_while_a_runs(programs, journal)
    for _ in range(2):
        recovery = programs.start('recover')
        recovery.wait_for('adopted')
        recovery.kill()
        assert recovery.wait() == -9
    assert is_running(pid)
    last = programs.start('recover')
    last.wait_for('adopted')
    journal.open('go')
    assert last.wait() == 0
    assert journal.count('a started') == journal.count('a ended') == journal.count('c') == 1


def test_an_orphan_that_dies_while_adopted_runs_again_or_has_failed(programs, journal):
    # semantics 7.6, 3.1
    programs.write(ORPHAN)
    pid = kill_while_a_runs(programs, journal)
    recovery = programs.start('recover')
    journal.wait_for('d')
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    journal.open('go')
    code = recovery.wait()
    assert 'Traceback' not in recovery.errors()
    assert (code, programs.last('a'), journal.count('a started')) in (
        (0, 'success', 2), (1, 'failure', 1))


ENDS_BETWEEN = '''
    class Waiting(seq.SqliteStore):
        def begin(self, run):
            super().begin(run)
            if MODE != 'restart':
                pid = journal.pid('a')
                if HOW == 'ended':
                    journal.open('go')
                else:
                    os.kill(pid, signal.SIGKILL)
                wait_gone(pid)
                journal.open('go')
    def one():
        journal.note('a started')
        journal.sign('a')
        journal.pass_gate('go')
    HOW = %r
    flow = make(store=Waiting(STORE))
    a = flow.add_step('a', func=one)
    flow.add_step('c', func=journal.note, args=('c',), require=(a,))
    leave(flow)
    '''


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_an_orphan_that_ends_while_a_recovery_begins_is_not_lost(mode, programs, journal):
    # semantics 7.6: it lived when it was looked at, and has an outcome when it is to be adopted
    programs.write(ENDS_BETWEEN % 'ended')
    kill_while_a_runs(programs, journal)
    assert programs.run(mode) == 0
    assert journal.words() == ['a started', 'c']
    assert programs.last('a') == 'success'


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_an_orphan_that_dies_while_a_recovery_begins_runs_again_or_has_failed(
        mode, programs, journal):
    # semantics 7.6
    programs.write(ENDS_BETWEEN % 'killed')
    kill_while_a_runs(programs, journal)
    recovery = programs.start(mode)
    code = recovery.wait()
    assert 'Traceback' not in recovery.errors()
    assert (code, programs.last('a'), journal.count('a started')) in (
        (0, 'success', 2), (1, 'failure', 1))


@pytest.mark.parametrize('limits', [
    "'max_concurrent': 1", "'max_concurrent': 9"])
def test_caps_and_pools_apply_to_an_adopted_orphan(limits, programs, journal):
    # semantics 7.6; the timer opens the gate only after the other would have started
    programs.write('''
        pool = seq.ResourcePool('pool', 1)
        acquires = [(pool, 1)] if '9' in "%s" else []
        def one():
            journal.sign('a')
            journal.pass_gate('go')
            journal.note('a ended')
        flow = make(config={%s})
        flow.add_step('a', func=one, acquires=acquires)
        flow.add_step('b', func=journal.note, args=('b',), acquires=acquires,
                      config={'task_construct': 'inline'})
        if MODE != 'restart':
            threading.Timer(0.3, journal.open, ('go',)).start()
        ok = flow()
        sys.exit(not ok)
        ''' % (limits, limits))
    kill_while_a_runs(programs, journal)
    assert programs.run('recover') == 0
    assert journal.words() == ['a ended', 'b']


def test_a_signal_to_the_supervisor_ends_an_adopted_orphan(programs, journal):
    # semantics 7.6, 8.3
    programs.write(ORPHAN)
    pid = kill_while_a_runs(programs, journal)
    recovery = programs.start('recover')
    recovery.wait_for('adopted')
    journal.wait_for('d')
    recovery.kill(signal.SIGTERM)
    assert recovery.wait() == 143
    assert not is_running(pid)
    assert programs.last('a') == 'active'
    journal.open('go')
    assert programs.run('recover') == 0
    assert journal.count('a started') == 2


MOMENTS = '''
    class Killing(seq.SqliteStore):
        """Kills the supervisor just before or after a task's status is committed."""
        def commit(self, run, records):
            records = list(records)
            hit = MODE == 'restart' and any(
                one.path == 'a' and one.status == %(status)r for one in records)
            if hit and %(when)r == 'before':
                kill_me()
            super().commit(run, records)
            if hit:
                kill_me()
    def one():
        journal.sign('a')
        journal.note('a')
    flow = make(store=Killing(STORE))
    a = flow.add_step('a', func=one)
    flow.add_step('b', func=journal.note, args=('b',), require=(a,))
    leave(flow)
    '''


@pytest.mark.parametrize('mode', ['recover', 'continue'])
@pytest.mark.parametrize('when', ['before', 'after'])
@pytest.mark.parametrize('status', ['active', 'success'])
def test_killing_the_supervisor_at_any_moment_costs_no_finished_task(
        status, when, mode, programs, journal):
    # semantics 7.6: prepared, committed, released, finished, settled
    programs.write(MOMENTS % {'status': status, 'when': when})
    assert programs.run() == -9
    if status == 'active':
        assert journal.words() == []
    else:
        wait_gone(journal.pid('a'))
    assert programs.run(mode) == 0
    assert journal.words() == ['a', 'b']
    assert programs.last('a') == 'success'


def test_an_outcome_that_was_committed_before_the_kill_is_not_left_in_a_file(programs, journal):
    # semantics 7.6: the supervisor died between the commit and the word to the child
    programs.write(MOMENTS % {'status': 'success', 'when': 'after'})
    assert programs.run() == -9
    wait_gone(journal.pid('a'))
    assert programs.run('recover') == 0
    assert programs.outcomes() == []


def test_a_child_whose_gate_closes_unreleased_exits(programs, journal):
    # semantics 7.6
    programs.write('''
        class Killing(seq.SqliteStore):
            def commit(self, run, records):
                for one in records:
                    if one.status == 'active':
                        journal.sign('prepared', process_of(one)['pid'])
                        kill_me()
        flow = make(store=Killing(STORE))
        flow.add_step('a', func=journal.note, args=('a',))
        leave(flow)
        ''')
    assert programs.run() == -9
    wait_gone(journal.pid('prepared'))
    assert journal.words() == []


def test_a_process_task_stays_until_its_outcome_is_committed(journal):
    # semantics 7.6
    seen = []

    class Looking(MemoryStore):
        def commit(self, run, records):
            records = list(records)
            for one in records:
                if one.status == 'active':
                    seen.append(process_of(one)['pid'])
                if one.status == 'success':
                    seen.append(is_running(seen[0]))
            super().commit(run, records)
    flow = a_flow(Looking(), 'process')
    flow.add_step('a', func=len, args=('',))
    assert flow() is True
    assert seen[1:] == [True]
    wait_gone(seen[0])


def test_a_task_notices_a_dead_supervisor_however_long_its_siblings_live(programs, journal):
    # semantics 7.6
    programs.write('''
        def one(name):
            journal.sign(name)
            journal.pass_gate(name)
        flow = make(config={'max_concurrent': 3})
        for name in 'abc':
            flow.add_step(name, func=one, args=(name,))
        leave(flow)
        ''')
    supervisor = programs.start()
    pids = {name: journal.pid(name) for name in 'abc'}
    supervisor.kill()
    supervisor.wait()
    journal.open('b')
    wait_gone(pids['b'])
    assert len(programs.outcomes()) == 1
    assert is_running(pids['a']) and is_running(pids['c'])


def test_a_process_task_keeps_of_the_librarys_descriptors_only_its_own(store):
    # semantics 7.6
    def descriptors():    # by one that can only be read siblings may see the end of their parent
        return {fd: os.readlink('/proc/self/fd/%s' % fd) for fd in os.listdir('/proc/self/fd')
                if os.path.lexists('/proc/self/fd/%s' % fd)
                and fcntl.fcntl(int(fd), fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY}
    if not os.path.isdir('/proc/self/fd'):
        pytest.skip('not for systems without /proc')
    before = set(descriptors().values())
    flow = a_flow(store, 'process', config={'max_concurrent': 3, 'capture': 'none'})
    for name in 'abc':
        flow.add_step(name, func=descriptors)
    assert flow() is True
    kept = [{target for target in found.values() if target not in before
             and not target.startswith(('/proc', '/dev'))} for found in results(flow).values()]
    assert len(kept) == 3 and all(kept)
    for one, other in itertools.combinations(kept, 2):
        assert not one & other, 'siblings share descriptors'
    assert not any('etl.db' in target for one in kept for target in one)


def test_what_the_users_program_had_open_stays_open_in_a_process_task():
    # semantics 7.6
    reading, writing = os.pipe()
    flow = a_flow(construct='process')
    flow.add_step('a', func=lambda: os.write(writing, b'through'))
    assert flow() is True
    assert os.read(reading, 100) == b'through'
    os.close(reading)
    os.close(writing)


def as_active(store, **identity):
    """Make of a failed task one that is recorded as running in a process, edited by identity."""
    flow = chain(store, a=fail)
    assert flow() is False
    kept = flow.open_store()
    run = kept.latest('etl')
    [task] = kept.tasks(run)
    process = dict(json.loads(sequent.process_identity()), **identity)
    kept.commit(run, [task._replace(status='active', error=None, ended=None,
                                    process=json.dumps(process))])
    kept.finish(run._replace(status='active'))
    flow.close_store()
    return flow


@pytest.mark.parametrize('mode', ['recover', 'continue'])
@pytest.mark.parametrize('identity', [{'start': 1}, {'boot': 'another boot'}])
def test_a_reused_pid_is_not_mistaken_for_the_task(identity, mode, store):
    # semantics 7.6
    as_active(store, **identity)
    calls = Calls()
    assert chain(store, mode, a=calls)() is True
    assert calls.names == ['a']


@pytest.mark.parametrize('identity', [{'host': 'elsewhere', 'boot': 'x'}, {'ns': 'another'}])
def test_what_cannot_be_looked_at_is_not_started_a_second_time(identity, store):
    # semantics 7.6: never a second copy beside a living first one
    as_active(store, **identity)
    calls = Calls()
    with pytest.raises(AlreadyRunningError, match='a'):
        chain(store, 'recover', a=calls, construct='process')()
    assert calls.calls == []


def test_a_new_run_does_not_mistake_a_reused_pid_for_an_orphan(store):
    # semantics 6.5, 7.6
    as_active(store, start=1)
    calls = Calls()
    assert chain(store, a=calls)() is True
    assert calls.names == ['a']


@pytest.mark.parametrize('construct', ['inline', 'thread'])
def test_inline_and_thread_tasks_die_with_the_supervisor_and_run_again(
        construct, programs, journal):
    # semantics 7.6
    programs.write('''
        def one():
            journal.note('a')
            if MODE == 'restart':
                kill_me()
        flow = make(%r)
        flow.add_step('a', func=one)
        leave(flow)
        ''' % construct)
    assert programs.run() == -9
    assert programs.run('recover') == 0
    assert journal.words() == ['a', 'a']


def test_a_recovery_of_an_eventor_runs_only_what_failed(construct, store, journal):
    # semantics 7.1, 9.1
    def one():
        name = sequent.current().name
        journal.note(name)
        if name == 'b' and journal.count('b') == 1:
            fail()
    for mode, result in (('restart', False), ('recover', True)):
        flow = Eventor('etl', store=store, run_mode=mode,
                       config={'task_construct': construct, 'start_method': 'fork'})
        go, done = flow.add_event('go'), flow.add_event('done')
        a = flow.add_step('a', func=one, triggers={'success': (done,)})
        b = flow.add_step('b', func=one)
        flow.add_assoc(go, a)
        flow.add_assoc(done, b)
        flow.trigger_event(go)
        assert flow() is result
        flow.close()
    assert journal.words() == ['a', 'b', 'b']


def test_recovery_numbers_and_run_ids_stay_apart_among_runs(store):
    # semantics 7.1
    line = Line()
    for mode, run_id in itertools.product(('restart', 'recover'), ('x', 'y')):
        flow = chain(store, mode, run_id=run_id, a=line)
        assert flow() is False
        assert the_task(flow, 'a').recovery == (0 if mode == 'restart' else 1)
