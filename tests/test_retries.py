"""Failed tasks that are tried again: config retries, retry_delay, retry_on and their kin."""

import logging
import os
import signal
import sys
import threading
import time

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    Calls, a_flow, a_private_temporary_folder, construct, fail, is_running, journal, log_of,
    programs, read, records_of, statuses, store, the_task, wait_gone, wait_until)
from sequent import ConfigError, Eventor, ResourcePool  # noqa: E402


class Flaky:
    """Fails in its first attempts, so many; in whatever process it runs."""

    def __init__(self, journal, failures, error=ValueError):
        self.journal = journal
        self.failures = failures
        self.error = error

    def __call__(self, *args):
        attempt = sequent.current().attempt
        self.journal.note('%s %d' % (sequent.current().name, attempt))
        if attempt <= self.failures:
            raise self.error('attempt %d' % attempt)
        return attempt


def attempts(flow, path):
    """Return [(recovery, attempt, status)] of all attempts at a step."""
    return [(one.recovery, one.attempt, one.status) for one in records_of(flow, path)]


def waiting(store, func=fail, mode='restart', construct='inline', delay=500, **given):
    """Return a flow whose step a fails and waits for its next attempt, and b runs beside it."""
    flow = a_flow(store, construct, mode, **given)
    flow.add_step('a', func=func, config={'retries': 3, 'retry_delay': delay})
    flow.add_step('b', func=len, args=('',))
    return flow


# Attempts #########################################################################


def test_a_failed_task_is_tried_again_until_it_succeeds(construct, store, journal):
    # semantics 4.6
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=Flaky(journal, 2), config={'retries': 5})
    flow.add_step('b', func=journal.note, args=('b',), require=a)

    assert flow() is True

    assert journal.words() == ['a 1', 'a 2', 'a 3', 'b']
    assert the_task(flow, 'a').result == 3


def test_without_retries_a_failure_is_final(construct, store, journal):
    # semantics 4.6
    flow = a_flow(store, construct)
    flow.add_step('a', func=Flaky(journal, 1))

    assert flow() is False

    assert journal.words() == ['a 1']


def test_retries_is_how_often_a_task_is_tried_again(construct, store, journal):
    # semantics 4.6
    flow = a_flow(store, construct)
    flow.add_step('a', func=Flaky(journal, 9), config={'retries': 2})

    assert flow() is False

    assert journal.words() == ['a 1', 'a 2', 'a 3']
    task = the_task(flow, 'a')
    assert (task.status, task.attempt, task.error) == ('failure', 3, 'ValueError: attempt 3')


def test_each_attempt_has_a_record_of_its_own(construct, store, journal):
    # semantics 4.6
    flow = a_flow(store, construct)
    flow.add_step('a', func=Flaky(journal, 2), config={'retries': 2})
    before = time.time()

    assert flow() is True

    records = records_of(flow, 'a')
    assert [(one.attempt, one.status, one.error) for one in records] == [
        (1, 'failure', 'ValueError: attempt 1'), (2, 'failure', 'ValueError: attempt 2'),
        (3, 'success', None)]
    times = [when for one in records for when in (one.started, one.ended)]
    assert times == sorted(times) and before - 1 < times[0] and times[-1] < time.time() + 1
    assert [one.process for one in records] == [None] * 3


def test_attempts_of_many_short_tasks_have_their_times(store, journal):
    # semantics 6.2, 4.6: their starts are committed ahead
    flow = a_flow(store)
    for number in range(20):
        flow.add_step('a%d' % number, func=Flaky(journal, 1), config={'retries': 1})

    assert flow() is True

    for one in records_of(flow):
        assert one.started is not None and one.started <= one.ended, one


def test_each_attempt_has_a_log_of_its_own(construct, store, journal, tmp_path):
    # semantics 4.6
    def one():
        if construct == 'process':
            print('attempt', sequent.current().attempt)
        else:
            logging.getLogger(__name__).warning('attempt %d', sequent.current().attempt)
        Flaky(journal, 1)()
    flow = a_flow(store, construct, config={'logdir': str(tmp_path / 'logs')})
    flow.add_step('a', func=one, config={'retries': 1})

    assert flow() is True

    logs = [read(log_of(flow, tmp_path / 'logs', 'a', attempt=n)) for n in (1, 2)]
    assert ['attempt 1' in logs[0], 'attempt 2' in logs[0]] == [True, False]
    assert ['attempt 1' in logs[1], 'attempt 2' in logs[1]] == [False, True]


@pytest.mark.parametrize('construct', ['inline', 'process'])
def test_the_environment_tells_the_attempt_counted_from_1(construct, store, journal):
    # semantics 5.1
    def one():
        journal.note(os.environ['SEQUENT_STEP_ATTEMPT'])
        Flaky(journal, 1)()
    flow = a_flow(store, construct)
    flow.add_step('a', func=one, config={'retries': 1})

    assert flow() is True

    assert [word for word in journal.words() if word.isdigit()] == ['1', '2']
    assert 'SEQUENT_STEP_ATTEMPT' not in os.environ


def test_the_log_says_of_a_failed_attempt_what_failed_and_when_the_next_is(caplog, journal):
    caplog.set_level(logging.INFO, 'sequent')
    flow = a_flow()
    flow.add_step('a', func=Flaky(journal, 2), config={'retries': 2, 'retry_delay': [0, 0.02]})

    assert flow() is True

    warnings = [one.getMessage() for one in caplog.records if one.levelname == 'WARNING']
    assert [text.partition('\n')[0] for text in warnings] == [
        'step a at 1 failed, attempt 1 of 3: ValueError: attempt 1; the next one is made at once',
        'step a at 1 failed, attempt 2 of 3: ValueError: attempt 2; the next one is made in '
        '0.02 s']
    assert all('in __call__' in text for text in warnings)    # the traceback
    assert not [one for one in caplog.records if one.levelname == 'ERROR']
    assert 'step a at 1 starts, attempt 3' in [one.getMessage() for one in caplog.records]


def test_a_failure_that_will_be_retried_raises_nothing(construct, store, journal):
    # semantics 4.6
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=Flaky(journal, 1), config={'retries': 1})
    for status in ('failure', 'complete', 'success'):
        flow.add_step(status, func=journal.note, args=(status,), require=((a, status),))

    assert flow() is True

    assert journal.words()[:2] == ['a 1', 'a 2']
    assert sorted(journal.words()[2:]) == ['complete', 'success']


def test_ready_and_active_are_raised_by_the_first_attempt_alone(store, journal):
    # semantics 4.6
    flow = a_flow(store)
    a = flow.add_step('a', func=Flaky(journal, 2), config={'retries': 2})
    for status in ('ready', 'active'):
        flow.add_step(status, func=journal.note, args=(status,), require=((a, status),))

    assert flow() is True

    assert sorted(journal.words()) == ['a 1', 'a 2', 'a 3', 'active', 'ready']


def test_the_last_failure_is_raised_and_can_be_handled(construct, store, journal):
    # semantics 4.6
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=Flaky(journal, 9), config={'retries': 1})
    flow.add_step('mend', func=journal.note, args=('mend',), require=((a, 'failure'),),
                  handles=True)

    assert flow() is True

    assert journal.words() == ['a 1', 'a 2', 'mend']
    assert [one.handled for one in records_of(flow, 'a')] == [False, True]


def test_an_attempt_that_will_be_followed_stops_nothing(store, journal):
    # semantics 4.6
    flow = a_flow(store)
    flow.add_step('a', func=Flaky(journal, 1), config={'retries': 1, 'retry_delay': 0.02})
    flow.add_step('b', func=journal.note, args=('b',))

    assert flow() is True

    assert journal.words() == ['a 1', 'b', 'a 2']


@pytest.mark.parametrize('construct', ['process'])
def test_a_process_that_dies_is_tried_again(construct, store, journal):
    # semantics 4.6
    def one():
        journal.note(sequent.current().attempt)
        if sequent.current().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if sequent.current().attempt == 2:
            os._exit(3)
    flow = a_flow(store, construct)
    flow.add_step('a', func=one, config={'retries': 2})

    assert flow() is True

    assert [one.error for one in records_of(flow, 'a')] == [
        'died: signal SIGKILL', 'exited with code 3 before its outcome was delivered', None]


def test_iterations_are_tried_again_one_by_one(construct, store, journal):
    # semantics 4.6
    def one():
        item, attempt = sequent.current().item, sequent.current().attempt
        journal.note('%s %d' % (item, attempt))
        if attempt <= item:
            raise ValueError('not yet')
    flow = a_flow(store, construct)
    flow.add_step('a', func=one, loop=[0, 1, 2], config={'retries': 2})

    assert flow() is True

    assert journal.words() == ['0 1', '1 1', '1 2', '2 1', '2 2', '2 3']
    assert [(one.sequence, one.attempt) for one in records_of(flow, 'a') if one.kind == 'leaf'
            ] == [('1.1', 1), ('1.2', 1), ('1.2', 2), ('1.3', 1), ('1.3', 2), ('1.3', 3)]


def test_leaves_inherit_retries_and_a_container_is_never_retried_itself(store, journal):
    # semantics 8.4
    flow = a_flow(store)
    c = flow.add_step('c', config={'retries': 1})
    c.add_step('a', func=Flaky(journal, 9))
    c.add_step('own', func=Flaky(journal, 9), config={
        'retries': 0, 'stop_on_exception': False})

    assert flow() is False

    assert sorted(journal.words()) == ['c_a 1', 'c_a 2', 'c_own 1']
    assert len(records_of(flow, 'c')) == 1


def test_an_unpicklable_exception_is_tried_again_too(construct, store, journal):
    class Odd(Exception):
        def __init__(self, text, lock):
            Exception.__init__(self, text)
            self.lock = lock

    def one():
        if sequent.current().attempt == 1:
            raise Odd('odd', threading.Lock())
    flow = a_flow(store, construct)
    flow.add_step('a', func=one, config={'retries': 1, 'retry_on': Odd})

    assert flow() is True


# What is retried ##################################################################


class Base(Exception):
    pass


class Derived(Base):
    pass


@pytest.mark.parametrize('config, calls', [
    ({}, 2),
    ({'retry_on': None}, 2),
    ({'retry_on': Derived}, 2),
    ({'retry_on': Base}, 2),
    ({'retry_on': [KeyError, Base]}, 2),
    ({'retry_on': (KeyError, OSError)}, 1),
    ({'retry_on': []}, 1),
    ({'retry_on': 'Derived'}, 2),
    ({'retry_on': 'Base'}, 2),
    ({'retry_on': '%s.Base' % __name__}, 2),
    ({'retry_on': 'other.Base'}, 1),
    ({'retry_on': 'base'}, 1),
    ({'retry_on': 1}, 1),
    ({'retry_unless': Derived}, 1),
    ({'retry_unless': Base}, 1),
    ({'retry_unless': 'Exception'}, 1),
    ({'retry_unless': KeyError}, 2),
    ({'retry_on': Base, 'retry_unless': Derived}, 1),
    ({'retry_on': Base, 'retry_unless': [OSError]}, 2),
], ids=repr)
def test_exception_classes_say_what_is_tried_again(config, calls, construct, journal):
    # semantics 4.8
    def one():
        journal.note('called')
        raise Derived('again')
    flow = a_flow(construct=construct)
    flow.add_step('a', func=one, config=dict(config, retries=1))

    assert flow() is False

    assert journal.count('called') == calls


@pytest.mark.parametrize('construct, end, config, calls', [
    ('inline', lambda: sys.exit(75), {'retry_on': 75}, 2),
    ('thread', lambda: sys.exit(75), {'retry_on': [74, 75]}, 2),
    ('process', lambda: sys.exit(75), {'retry_on': 75}, 2),
    ('process', lambda: sys.exit(75), {'retry_on': 'SystemExit'}, 2),
    ('process', lambda: sys.exit(75), {'retry_unless': 75}, 1),
    ('process', lambda: sys.exit(75), {'retry_on': [74]}, 1),
    ('process', lambda: sys.exit('bad news'), {'retry_on': 1}, 2),
    ('process', lambda: os._exit(75), {'retry_on': 75}, 2),
    ('process', lambda: os._exit(75), {'retry_on': 74}, 1),
    ('process', lambda: os.kill(os.getpid(), 9), {'retry_on': -9}, 2),
    ('process', lambda: os.kill(os.getpid(), 9), {'retry_on': signal.SIGKILL}, 1),
    ('process', lambda: os.kill(os.getpid(), 9), {'retry_unless': -9}, 1),
    ('process', lambda: os.kill(os.getpid(), 9), {'retry_on': Exception}, 1),
    ('process', lambda: os._exit(0), {'retry_on': 0}, 2),
])
def test_exit_codes_and_signals_say_what_is_tried_again(construct, end, config, calls, journal):
    # semantics 4.8
    def one():
        journal.note('called')
        end()
    flow = a_flow(construct=construct)
    flow.add_step('a', func=one, config=dict(config, retries=1))

    assert flow() is False

    assert journal.count('called') == calls


def test_a_class_of_the_main_program_is_known_in_processes_started_by_spawn(programs, journal):
    programs.write('''
        class Busy(Exception):
            pass
        def one(folder):
            Journal(folder).note(seq.current().attempt)
            if seq.current().attempt == 1:
                raise Busy('try later')
        def build(config):
            flow = make(config=dict(config, start_method='spawn', retries=1))
            flow.add_step('a', func=one, args=(FOLDER,))
            return flow
        if __name__ == '__main__':
            leave(build({'retry_on' if MODE == 'restart' else 'retry_unless': Busy}))
        ''')

    assert programs.run() == 0
    assert journal.words() == ['1', '2']


# When #############################################################################


@pytest.mark.parametrize('config, delays', [
    ({}, [0, 0, 0]),
    ({'retry_delay': 5}, [5, 5, 5]),
    ({'retry_delay': 2.5, 'retry_backoff': 2}, [2.5, 5, 10]),
    ({'retry_delay': [1, 2]}, [1, 2, 2]),
    ({'retry_delay': (1, 0, 7)}, [1, 0, 7]),
    ({'retry_delay': [3]}, [3, 3, 3]),
    ({'retry_delay': [1, 2], 'retry_backoff': 10}, [1, 2, 2]),
], ids=repr)
def test_the_delay_before_each_attempt(config, delays):
    # semantics 4.7
    settings = dict(a_flow().settings(), **config)

    assert [sequent.retry_delay(settings, attempt, 'x') for attempt in (1, 2, 3)] == delays


def test_backoff_grows_beyond_no_bounds():
    # semantics 4.7
    settings = dict(a_flow().settings(), retry_delay=1, retry_backoff=10)

    assert sequent.retry_delay(settings, 10 ** 6, 'x') < float('inf')


def test_jitter_varies_the_delay_by_a_share_and_the_same_way_each_time():
    # semantics 4.7
    settings = dict(a_flow().settings(), retry_delay=100, retry_jitter=0.2)

    delays = [sequent.retry_delay(settings, 1, 'task %d' % n) for n in range(200)]

    assert all(80 <= one <= 120 for one in delays)
    assert min(delays) < 85 and max(delays) > 115 and len(set(delays)) > 150
    assert delays == [sequent.retry_delay(settings, 1, 'task %d' % n) for n in range(200)]


def test_the_due_time_of_the_next_attempt_is_stored(construct, store):
    # semantics 4.7
    flow = waiting(store, construct=construct)

    assert flow.run(max_loops=1) is True

    first, second = records_of(flow, 'a')
    assert (first.attempt, first.status, first.due) == (1, 'failure', None)
    assert (second.attempt, second.status) == (2, 'ready')
    assert 499.9 < second.due - first.ended < 520
    flow.close()


def test_no_attempt_is_made_before_it_is_due(construct, store, journal):
    # semantics 4.7
    flow = a_flow(store, construct)
    flow.add_step('a', func=Flaky(journal, 2), config={
        'retries': 2, 'retry_delay': 0.03, 'retry_backoff': 2})

    assert flow() is True

    first, second, third = records_of(flow, 'a')
    assert second.started >= first.started + 0.03
    assert third.started >= third.due >= second.started + 0.06


def test_what_waits_for_its_next_attempt_is_told_by_tasks(store):
    flow = waiting(store)
    flow.run(max_loops=1)

    task = the_task(flow, 'a')

    assert (task.status, task.attempt, task.error) == ('ready', 2, 'ValueError: on purpose')
    flow.close()


def test_a_wait_for_an_attempt_ends_a_cycle(store, journal):
    # semantics 8.1
    flow = a_flow(store)
    a = flow.add_step('a', func=Flaky(journal, 2), config={'retries': 2, 'retry_delay': 0.02})
    flow.add_step('b', func=journal.note, args=('b',), require=a)

    seen = [(flow.run(max_loops=1), len(journal.words())) for _ in range(4)]

    assert seen == [(True, 1), (True, 2), (True, 4), (True, 4)]
    assert journal.words() == ['a 1', 'a 2', 'a 3', 'b']


def test_count_todos_counts_what_waits_and_tells_when_it_is_due(store):
    # semantics 8.1
    flow = waiting(store)
    flow.run(max_loops=1)

    todo, left = flow.count_todos()

    assert todo == 1
    assert 400 < left <= 500
    flow.close()


def test_waiting_holds_no_slot(construct, store, journal):
    # semantics 4.7
    flow = a_flow(store, construct, config={'max_concurrent': 1})
    flow.add_step('a', func=fail, config={'retries': 1, 'retry_delay': 500})
    flow.add_step('b', func=journal.note, args=('b',))

    assert flow.run(max_loops=1) is True

    assert journal.words() == ['b']
    flow.close()


@pytest.mark.parametrize('releases', [None, []], ids=repr)
def test_waiting_holds_no_resource(releases, construct, store, journal):
    # semantics 4.7
    pool = ResourcePool('tape', 2)
    flow = a_flow(store, construct)
    flow.add_step('a', func=fail, acquires=[(pool, 2)], releases=releases,
                  config={'retries': 1, 'retry_delay': 500})
    flow.add_step('b', func=journal.note, args=('b',), acquires=[(pool, 2)])

    assert flow.run(max_loops=1) is True

    assert journal.words() == ['b']
    flow.close()


def test_an_attempt_waits_for_its_resources_anew(construct, store, journal):
    # semantics 4.7
    pool = ResourcePool('tape', 1)

    def other():
        journal.note('b')
    flow = a_flow(store, construct, config={'max_concurrent': 2})
    flow.add_step('a', func=Flaky(journal, 1), acquires=[(pool, 1)], config={'retries': 1})
    flow.add_step('b', func=other, acquires=[(pool, 1)])

    assert flow() is True

    assert journal.words() == ['a 1', 'b', 'a 2']    # b has waited for longer


def test_a_leaf_s_own_cap_is_given_back_while_it_waits(construct, store, journal):
    flow = a_flow(store, construct)
    c = flow.add_step('c', loop=[1, 2], config={'max_concurrent': 2})

    def one():
        journal.note(sequent.current().item)
        if sequent.current().item == 1:
            fail()
    c.add_step('a', func=one, config={'retries': 1, 'retry_delay': 500, 'max_concurrent': 1})

    assert flow.run(max_loops=1) is True

    assert journal.words() == ['1', '2']
    flow.close()


def test_releasing_more_than_is_out_is_tried_again_no_more_than_it_is_hidden(store, journal):
    # semantics 4.3, 4.8: the function has done its work; its failure is the flow's own mistake
    pool = ResourcePool('tape', 2)
    flow = a_flow(store)
    flow.add_step('a', func=journal.note, args=('a',), acquires=[(pool, 1)],
                  releases=[(pool, 2)], config={'retries': 3})

    assert flow() is False

    assert journal.words() == ['a']
    assert 'releases 2 of pool' in the_task(flow, 'a').error


# Stops (semantics 3.4) ############################################################


def stopped(store, mode='restart', journal=None, b=fail, delay=500):
    """Return a flow in whose container c the step a waits when b fails."""
    flow = a_flow(store, mode=mode)
    c = flow.add_step('c')
    a = c.add_step('a', func=fail if journal is None else Flaky(journal, 1), config={
        'retries': 3, 'retry_delay': delay})
    c.add_step('b', func=b, require=((a, 'active'),), delay=0.02)
    return flow, c


def test_a_stop_drops_what_waits_and_keeps_its_status_and_due_time(store):
    # semantics 3.4
    flow, _ = stopped(store)

    assert flow() is False

    first, second = records_of(flow, 'c_a')
    assert (first.status, second.status, second.attempt) == ('failure', 'ready', 2)
    assert second.due > time.time() + 400
    assert 'on purpose' in second.error


def test_what_a_stop_dropped_counts_as_failed_with_its_last_error(store, caplog):
    # semantics 3.4
    caplog.set_level(logging.INFO, 'sequent')
    flow, _ = stopped(store)

    assert flow() is False

    assert 'step c_a at 1.1 failed: ValueError: on purpose' in [
        one.getMessage() for one in caplog.records if one.levelname == 'ERROR']


def test_a_stop_does_not_wait_for_attempts(store, journal):
    flow, c = stopped(store)
    flow.add_step('mend', func=journal.note, args=('mend',), require=((c, 'failure'),),
                  handles=True)
    before = time.monotonic()

    assert flow() is True

    assert time.monotonic() - before < 100
    assert journal.words() == ['mend']


def test_what_a_stop_dropped_starts_in_a_recovery_when_it_is_due(store):
    flow, _ = stopped(store, delay=0.3)
    assert flow() is False
    due = records_of(flow, 'c_a')[1].due
    again = a_flow(store, mode='recover')
    c = again.add_step('c')
    c.add_step('a', func=len, args=('',), config={'retries': 3, 'retry_delay': 500})
    c.add_step('b', func=None)

    assert again() is True

    last = records_of(again, 'c_a')[-1]
    assert (last.recovery, last.attempt, last.status, last.due) == (1, 1, 'success', due)
    assert last.started >= due


@pytest.mark.parametrize('construct', ['thread', 'process'])
def test_what_fails_when_its_container_is_stopped_is_not_tried_again(
        construct, store, journal, caplog):
    # semantics 3.4
    def one():
        journal.open('a runs')
        journal.pass_gate('b has failed')
        fail()

    def other():
        journal.pass_gate('a runs')
        fail('b')

    class Opener(logging.Handler):
        def emit(self, record):
            if 'step b at 1 failed' in record.getMessage():
                journal.open('b has failed')
    opener = Opener()
    logging.getLogger('sequent').addHandler(opener)
    flow = a_flow(store, construct, config={'max_concurrent': 2})
    flow.add_step('a', func=one, config={'retries': 3})
    flow.add_step('b', func=other)

    assert flow() is False

    logging.getLogger('sequent').removeHandler(opener)
    assert attempts(flow, 'a') == [(0, 1, 'failure')]


# Recoveries #######################################################################


@pytest.mark.parametrize('mode, numbers', [
    ('recover', [(0, 1), (0, 2), (1, 1), (1, 2)]), ('continue', [(0, 1), (0, 2)])])
def test_each_recovery_starts_the_budget_afresh(mode, numbers, construct, store, journal):
    # semantics 8.4, 7.5: in continue what has failed stays failed
    for one in ('restart', mode):
        flow = a_flow(store, construct, one)
        flow.add_step('a', func=Flaky(journal, 9), config={'retries': 1})
        assert flow() is False

    assert [one[:2] for one in attempts(flow, 'a')] == numbers


def test_a_recovery_runs_again_what_has_used_up_its_attempts(construct, store, journal):
    for mode, failures in (('restart', 9), ('recover', 1)):
        flow = a_flow(store, construct, mode)
        flow.add_step('a', func=Flaky(journal, failures), config={'retries': 1})
        flow()

    assert journal.words() == ['a 1', 'a 2', 'a 1', 'a 2']
    assert attempts(flow, 'a') == [
        (0, 1, 'failure'), (0, 2, 'failure'), (1, 1, 'failure'), (1, 2, 'success')]


def test_continue_of_a_closed_flow_goes_on_with_the_attempt_that_was_waited_for(store, journal):
    # semantics 7.5
    first = waiting(store, Flaky(journal, 2), delay=0.05)
    assert first.run(max_loops=1) is True
    first.close()
    again = waiting(store, Flaky(journal, 2), 'continue', delay=0.05)

    assert again() is True

    assert journal.words() == ['a 1', 'a 2', 'a 3']
    assert attempts(again, 'a') == [(0, 1, 'failure'), (0, 2, 'failure'), (0, 3, 'success')]


#: A flow that is killed while a waits for its second attempt: see `kill_waiting`.
KILLED_WAITING = '''
    DELAY = float(os.environ.get('DELAY', 1000))
    def work():
        journal.note('%s %d' % (seq.current().name, seq.current().attempt))
        if os.environ.get('FAILS', '1') == '1':
            raise ValueError('attempt %d' % seq.current().attempt)
    flow = make(os.environ['CONSTRUCT'])
    a = flow.add_step('a', func=work, config={'retries': 2, 'retry_delay': DELAY})
    if os.environ.get('CYCLES'):
        assert flow.run(max_loops=int(os.environ['CYCLES'])) is True
        journal.note('%d due in %.0f' % flow.count_todos())
    else:
        leave(flow)
    '''


def kill_waiting(programs, construct, delay):
    programs.write(KILLED_WAITING)
    supervisor = programs.start(environment={'CONSTRUCT': construct, 'DELAY': str(delay)})
    wait_until(lambda: 'ready' in [one[3] for one in programs.tasks().get('a', ())
                                   if one[2] == 2], 'a to wait for its second attempt')
    supervisor.kill()
    assert supervisor.wait() == -9


@pytest.mark.parametrize('mode', ['continue', 'recover'])
def test_the_due_time_of_an_attempt_survives_kill_9(mode, construct, programs, journal):
    # semantics 4.7
    kill_waiting(programs, construct, 1000)
    [due] = [one for one in records_in(programs, 'a') if one.status == 'ready']
    assert due.attempt == 2

    # Were the delay begun anew, it would be another one.
    assert programs.run(mode, environment={
        'CONSTRUCT': construct, 'DELAY': '5000', 'CYCLES': '1'}) == 0

    assert journal.words()[0] == 'a 1' and len(journal.words()) == 2
    todo, _, _, left = journal.words()[1].split()
    assert todo == '1' and 900 < int(left) <= 1000
    assert [one.due for one in records_in(programs, 'a') if one.status == 'ready'][-1] == due.due


def records_in(programs, path):
    """Return every `TaskRecord` of a step that a program has stored."""
    kept = sequent.SqliteStore(programs.store_path)
    kept.open(create=False)
    try:
        return [one for one in kept.attempts(kept.latest('etl')) if one.path == path]
    finally:
        kept.close()


@pytest.mark.parametrize('mode, words, stored', [
    ('continue', ['a 1', 'a 2', 'a 3'], [(0, 1), (0, 2), (0, 3)]),
    ('recover', ['a 1', 'a 1', 'a 2', 'a 3'], [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)])])
def test_after_kill_9_attempts_are_counted_on_in_continue_and_afresh_in_recover(
        mode, words, stored, construct, programs, journal):
    # semantics 7.5, 8.4
    kill_waiting(programs, construct, 1)

    assert programs.run(mode, environment={'CONSTRUCT': construct, 'DELAY': '0.1'}) == 1

    assert journal.words() == words
    assert [one[1:3] for one in programs.tasks()['a']] == stored
    assert programs.last('a') == 'failure'


def test_an_attempt_that_was_waited_for_is_made_though_there_are_no_retries_now(store, journal):
    # semantics 7.5: it keeps its number
    first = waiting(store, delay=0.02)
    first.run(max_loops=1)
    first.close()
    again = a_flow(store, mode='continue')
    again.add_step('a', func=Flaky(journal, 9))

    assert again() is False

    assert journal.words() == ['a 2']


def test_an_attempt_that_was_running_at_kill_9_is_followed_by_the_next_one(programs, journal):
    # semantics 7.5
    programs.write('''
        def work():
            journal.note(seq.current().attempt)
            if MODE == 'restart' and seq.current().attempt == 2:
                kill_me()
            raise ValueError('on purpose')
        flow = make('inline')
        flow.add_step('a', func=work, config={'retries': 3})
        leave(flow)
        ''')
    assert programs.run() == -9
    assert programs.run('continue') == 1
    assert journal.words() == ['1', '2', '3', '4']
    assert [one[2:] for one in programs.tasks()['a']] == [
        (1, 'failure'), (2, 'active'), (3, 'failure'), (4, 'failure')]


#: A process task that fails once the supervisor has been killed.
FAILS_AS_ORPHAN = '''
    def work():
        journal.note('%s %d' % (seq.current().name, seq.current().attempt))
        if seq.current().attempt == 1 and MODE == 'restart':
            journal.sign('a')
            journal.pass_gate('supervisor killed')
            raise ValueError('fails as an orphan')
    flow = make('process')
    a = flow.add_step('a', func=work, config={
        'retries': int(os.environ.get('RETRIES', 1)),
        'retry_delay': float(os.environ.get('DELAY', 0)),
        'retry_on': os.environ.get('RETRY_ON', 'ValueError')})
    flow.add_step('b', func=journal.note, args=('b',), require=a)
    flow.add_step('mend', func=journal.note, args=('mend',), require=((a, 'failure'),),
                  handles=True)
    if os.environ.get('CYCLES'):
        assert flow.run(max_loops=int(os.environ['CYCLES'])) is True
        journal.note('%d due in %.0f' % flow.count_todos())
    else:
        leave(flow)
    '''


def fail_as_orphan(programs, journal):
    """Kill the supervisor of a task, and let that fail and end."""
    programs.write(FAILS_AS_ORPHAN)
    pid = programs.leave_orphan()
    journal.open('supervisor killed')
    wait_gone(pid)


def test_in_continue_what_failed_as_an_orphan_is_tried_again(programs, journal):
    fail_as_orphan(programs, journal)

    assert programs.run('continue') == 0

    assert journal.words() == ['a 1', 'a 2', 'b']
    first, second = records_in(programs, 'a')
    assert (first.status, first.error) == ('failure', 'ValueError: fails as an orphan')
    assert (second.recovery, second.attempt, second.status) == (0, 2, 'success')


def test_in_recover_what_failed_as_an_orphan_runs_again(programs, journal):
    fail_as_orphan(programs, journal)

    assert programs.run('recover') == 0

    assert journal.words() == ['a 1', 'a 1', 'b']
    assert programs.tasks()['a'] == [('1', 0, 1, 'failure'), ('1', 1, 1, 'success')]


@pytest.mark.parametrize('environment', [{'RETRIES': '0'}, {'RETRY_ON': 'KeyError'}], ids=repr)
def test_in_continue_what_failed_as_an_orphan_for_good_stays_failed(
        environment, programs, journal):
    # semantics 7.5
    fail_as_orphan(programs, journal)

    assert programs.run('continue', environment=environment) == 0

    assert journal.words() == ['a 1', 'mend']


def test_the_delay_after_an_orphan_s_failure_counts_from_its_end(programs, journal):
    fail_as_orphan(programs, journal)

    assert programs.run('continue', environment={'DELAY': '1000', 'CYCLES': '1'}) == 0

    todo, _, _, left = journal.words()[-1].split()
    assert todo == '1' and 900 < int(left) <= 1000
    last = records_in(programs, 'a')[-1]
    assert (last.attempt, last.status) == (2, 'ready')
    assert last.due == pytest.approx(records_in(programs, 'a')[0].ended + 1000, abs=0.01)


def test_what_failed_as_an_orphan_is_tried_again_by_a_second_continue(programs, journal):
    # the first one is killed before it has come to that step
    fail_as_orphan(programs, journal)
    assert programs.run('continue', environment={'DELAY': '1000', 'CYCLES': '1'}) == 0
    assert programs.run('continue', environment={'DELAY': '1000', 'CYCLES': '1'}) == 0
    assert journal.words()[0] == 'a 1'
    assert journal.count('mend') == 0
    assert [one[2:] for one in programs.tasks()['a']] == [(1, 'failure'), (2, 'ready')]


def test_an_adopted_task_that_fails_is_tried_again(programs, journal):
    # semantics 7.6
    programs.write(FAILS_AS_ORPHAN)
    programs.leave_orphan()
    second = programs.start('continue')
    second.wait_for('it is adopted')
    journal.open('supervisor killed')

    assert second.wait() == 0

    assert journal.words() == ['a 1', 'a 2', 'b']
    assert programs.tasks()['a'] == [('1', 0, 1, 'failure'), ('1', 0, 2, 'success')]


def test_the_attempt_of_an_earlier_recovery_is_not_of_this_budget(programs, journal):
    # semantics 8.4
    programs.write(FAILS_AS_ORPHAN.replace("seq.current().attempt == 1 and MODE == 'restart'",
                                           "MODE == 'restart' or seq.current().attempt == 1"))
    programs.leave_orphan()
    second = programs.start('recover')
    second.wait_for('it is adopted')
    journal.open('supervisor killed')

    assert second.wait() == 0

    assert journal.words() == ['a 1', 'a 1', 'a 2', 'b']
    assert programs.tasks()['a'] == [
        ('1', 0, 1, 'failure'), ('1', 1, 1, 'failure'), ('1', 1, 2, 'success')]


# Signals (semantics 8.3) ##########################################################


@pytest.mark.parametrize('number, code', [
    (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_wait_for_an_attempt(number, code, construct, programs, journal):
    # semantics 8.3
    programs.write('''
        def work():
            raise ValueError('on purpose')
        flow = make(os.environ['CONSTRUCT'])
        a = flow.add_step('a', func=work, config={'retries': 2, 'retry_delay': 1000})
        flow.add_step('b', func=journal.note, args=('failure',), require=((a, 'failure'),))
        try:
            flow()
        except KeyboardInterrupt:
            raise SystemExit(130)
        ''')
    supervisor = programs.start(environment={'CONSTRUCT': construct})
    wait_until(lambda: os.path.exists(programs.store_path) and programs.last('a') == 'ready',
               'the wait for the second attempt')

    supervisor.kill(number)

    assert supervisor.wait() == code
    first, second = records_in(programs, 'a')
    assert (first.status, second.status, second.attempt) == ('failure', 'ready', 2)
    assert first.ended + 1000 <= second.due < first.ended + 1020
    assert journal.words() == []


def test_an_attempt_that_a_signal_ended_has_not_failed(programs, journal):
    programs.write('''
        def work():
            journal.note(seq.current().attempt)
            if MODE == 'restart':
                journal.sign('a')
                journal.pass_gate('never')
        flow = make('process')
        a = flow.add_step('a', func=work, config={'retries': 5})
        flow.add_step('b', func=journal.note, args=('failure',), require=((a, 'failure'),))
        raise SystemExit(0 if flow() else 1)
        ''')
    supervisor = programs.start()
    journal.pid('a')
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143

    assert programs.tasks()['a'] == [('1', 0, 1, 'active')]
    assert programs.run('continue') == 0
    assert journal.words() == ['1', '2']


# Eventor ##########################################################################


def test_an_eventor_triggers_by_the_last_attempt_alone(construct, store, journal):
    # semantics 4.6
    flow = Eventor('e', store=store, config={'task_construct': construct})
    go, good, bad = map(flow.add_event, ('go', 'good', 'bad'))
    flow.add_assoc(go, flow.add_step(
        'a', func=Flaky(journal, 1), config={'retries': 1},
        triggers={'success': good, 'failure': bad}))
    flow.add_assoc(go, flow.add_step(
        'b', func=Flaky(journal, 9), config={'retries': 1},
        triggers={'success': good, 'failure': bad}))
    flow.add_assoc(good, flow.add_step('good', func=journal.note, args=('good',)))
    flow.add_assoc(bad, flow.add_step('bad', func=journal.note, args=('bad',), handles=True))
    flow.trigger_event(go)

    assert flow() is True

    assert sorted(journal.words()) == ['a 1', 'a 2', 'b 1', 'b 2', 'bad', 'good']


@pytest.mark.parametrize('failures, raised', [(1, ['more 2']), (9, ['more 2'])])
def test_events_raised_by_hand_in_a_failed_attempt_are_not_raised(
        failures, raised, store, journal):
    # semantics 9.4: those of the last attempt are
    flow = Eventor('e', store=store, config={'task_construct': 'inline'})
    go, more = flow.add_event('go'), flow.add_event('more')

    def one(eventor):
        attempt = sequent.current().attempt
        eventor.trigger_event(more, attempt)
        if attempt <= failures:
            fail()
    a = flow.add_step('a', func=one, config={'retries': 1, 'stop_on_exception': False})
    flow.add_assoc(go, a)
    flow.add_assoc(more, flow.add_step(
        'more', func=lambda: journal.note('more %s' % sequent.current().sequence)))
    flow.trigger_event(go)

    flow()

    assert journal.words() == raised


def test_an_eventor_recovers_what_waited_for_its_next_attempt(store, journal):
    for mode in ('restart', 'continue'):
        flow = Eventor('e', store=store, run_mode=mode, config={'task_construct': 'inline'})
        go = flow.add_event('go')
        flow.add_assoc(go, flow.add_step('a', func=Flaky(journal, 1), config={
            'retries': 1, 'retry_delay': 0.05}))
        if mode == 'restart':
            flow.trigger_event(go)
        assert flow.run(max_loops=1 if mode == 'restart' else -1) is True
        flow.close()

    assert journal.words() == ['a 1', 'a 2']


# Configuration ####################################################################


@pytest.mark.parametrize('key, value', [
    (key, value) for key, values in {
        'retries': [-1, 1.5, '3', True, [1]],
        'retry_delay': [-1, '5', [], [1, -1], [1, 'x'], [True], float('nan'), float('inf'), {}],
        'retry_backoff': [0.5, -1, '2', float('inf'), float('nan'), True],
        'retry_jitter': [-0.1, 1.1, '0.5', True],
        'retry_on': [1.5, True, '', [None], [[1.5]], object(), ValueError('an instance'), int],
        'retry_unless': [1.5, [''], {}, b'ValueError'],
    }.items() for value in values], ids=repr)
def test_a_wrong_value_is_refused_with_a_sentence(key, value):
    with pytest.raises(ConfigError, match="config '%s' must be " % key):
        a_flow(config={key: value})
    with pytest.raises(ConfigError, match="step 'a': config '%s' must be " % key):
        a_flow().add_step('a', func=None, config={key: value})


def test_a_misspelled_key_is_told(caplog):
    flow = a_flow(config={'retrys': 3})
    flow.add_step('a', func=None)
    assert flow() is True
    assert "unknown config key 'retrys' is ignored; did you mean 'retries'?" in caplog.text


def test_the_environment_can_say_what_is_retried(monkeypatch, journal):
    monkeypatch.setenv('SEQUENT_RETRIES', '2')
    monkeypatch.setenv('SEQUENT_RETRY_DELAY', '0,0.01')
    monkeypatch.setenv('SEQUENT_RETRY_ON', 'ValueError, 75 -9')
    settings = a_flow().settings()
    assert settings['retries'] == 2
    assert settings['retry_delay'] == [0.0, 0.01]
    assert settings['retry_on'] == ['ValueError', 75, -9]
    flow = a_flow()
    flow.add_step('a', func=Flaky(journal, 2))
    assert flow() is True
    assert len(journal.words()) == 3


@pytest.mark.parametrize('name, text', [
    ('RETRIES', 'often'), ('RETRIES', '1.5'), ('RETRIES', '-1'), ('RETRY_DELAY', 'soon'),
    ('RETRY_DELAY', '1,,2'), ('RETRY_DELAY', '-1'), ('RETRY_BACKOFF', '0'),
    ('RETRY_JITTER', '2')])
def test_a_wrong_environment_is_refused_with_a_sentence(name, text, monkeypatch):
    monkeypatch.setenv('SEQUENT_' + name, text)
    with pytest.raises(ConfigError, match='SEQUENT_%s' % name):
        a_flow().run()


def test_status_shows_what_waits_for_its_next_attempt_and_why(tmp_path, capsys, monkeypatch):
    store = str(tmp_path / 'etl.db')
    flow = waiting(store)
    flow.run(max_loops=1)
    flow.close()
    (tmp_path / 'waits.py').write_text(
        'import sequent\nflow = sequent.Sequent("etl", store=%r)\n' % store)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', sys.path[:])
    monkeypatch.setenv('COLUMNS', '200')

    assert sequent.main(['waits.py', 'status']) == 0

    [line] = [one for one in capsys.readouterr().out.splitlines() if one.startswith('a ')]
    assert line.split()[:5] == ['a', '1', 'ready', '0', '2']
    assert ' due ' in line and 'on purpose' in line
