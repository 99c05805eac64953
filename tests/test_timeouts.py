"""Time that tasks and runs may take: config timeout, warn_after and run_timeout."""

import contextlib
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    Calls, a_flow, a_private_temporary_folder, construct, fail, is_running, journal, programs,
    records_of, statuses, store, the_task, wait_gone, wait_until)
from sequent import ConfigError, Eventor, MemoryStore, SqliteStore  # noqa: E402

#: Seconds in which a process does a little, also on a machine that stands still for a moment.
ENOUGH = 1.2
TIMED_OUT = 'timed out after %s s' % ENOUGH


def stay(journal, name='a'):
    """Say that it runs, and run until somebody ends it."""
    journal.sign(name)
    journal.pass_gate('never')


def stay_deaf(journal, name='deaf'):
    """The same, without heeding SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stay(journal, name)


def start_grandchild(journal, deaf=False):
    """Fork a process that stays on after its parent."""
    if os.fork() == 0:
        try:
            (stay_deaf if deaf else stay)(journal, 'grandchild')
        finally:
            os._exit(0)
    journal.pid('grandchild')


# timeout ##########################################################################


@pytest.mark.long
def test_an_attempt_that_takes_too_long_is_ended_and_has_failed(store, journal):
    # semantics 4.9
    flow = a_flow(store, 'process', config={'shutdown_grace': 60})
    a = flow.add_step('a', func=stay, args=(journal,), config={'timeout': ENOUGH})
    flow.add_step('b', func=journal.note, args=('b',), require=((a, 'failure'),), handles=True)
    before = time.monotonic()

    assert flow() is True

    assert ENOUGH <= time.monotonic() - before < 50
    task = the_task(flow, 'a')
    assert (task.status, task.error) == ('failure', TIMED_OUT)
    assert not is_running(journal.pid('a'))
    assert journal.words() == ['b']


def test_what_ends_in_time_is_left_alone(journal):
    flow = a_flow(MemoryStore(), 'process')
    flow.add_step('a', func=journal.note, args=('a',), config={'timeout': 30})

    assert flow() is True

    assert journal.words() == ['a']


@pytest.mark.long
def test_each_attempt_has_the_whole_time(store, journal):
    # semantics 4.9
    def one():
        journal.note(sequent.current().attempt)
        if sequent.current().attempt < 3:
            stay(journal)
    flow = a_flow(store, 'process')
    flow.add_step('a', func=one, config={'timeout': ENOUGH, 'retries': 2})

    assert flow() is True

    assert [(one.attempt, one.status, one.error) for one in records_of(flow, 'a')] == [
        (1, 'failure', TIMED_OUT), (2, 'failure', TIMED_OUT),
        (3, 'success', None)]


@pytest.mark.parametrize('config, calls', [
    ({'retry_on': TimeoutError}, 2), ({'retry_on': 'TimeoutError'}, 2), ({'retry_on': OSError}, 2),
    ({'retry_unless': TimeoutError}, 1), ({'retry_on': ValueError}, 1), ({'retry_on': -15}, 1),
], ids=repr)
def test_to_retry_on_a_timeout_is_a_timeout_error(config, calls, journal):
    flow = a_flow(MemoryStore(), 'process')
    flow.add_step('a', func=stay, args=(journal,), config=dict(config, retries=1, timeout=0.05))

    assert flow() is False

    assert len(records_of(flow, 'a')) == calls


@pytest.mark.long
def test_what_heeds_no_sigterm_is_killed_after_the_grace(journal):
    # semantics 4.9
    flow = a_flow(MemoryStore(), 'process', config={'shutdown_grace': 0.2})
    flow.add_step('a', func=stay_deaf, args=(journal,), config={'timeout': ENOUGH})
    before = time.monotonic()

    assert flow() is False

    assert ENOUGH + 0.2 <= time.monotonic() - before < 50
    assert the_task(flow, 'a').error == TIMED_OUT
    assert not is_running(journal.pid('deaf'))


def test_without_grace_it_is_killed_at_once(journal):
    # semantics 4.9
    flow = a_flow(MemoryStore(), 'process', config={'shutdown_grace': 0})
    flow.add_step('a', func=stay_deaf, args=(journal,), config={'timeout': 0.2})

    assert flow() is False

    assert the_task(flow, 'a').error == 'timed out after 0.2 s'


@pytest.mark.long
def test_it_can_clean_up_within_the_grace(journal):
    def one():
        def clean_up(number, frame):
            journal.note('cleaned up')
            sys.exit(0)
        signal.signal(signal.SIGTERM, clean_up)
        stay(journal)
    flow = a_flow(MemoryStore(), 'process')
    flow.add_step('a', func=one, config={'timeout': ENOUGH})

    assert flow() is False

    assert journal.words() == ['cleaned up']
    assert the_task(flow, 'a').error == TIMED_OUT


@pytest.mark.parametrize('end', [lambda: 'done', lambda: sys.exit(0), lambda: fail('sorry')])
def test_whatever_it_says_of_the_signal_it_has_timed_out(end, journal):
    # semantics 4.9
    def one():
        class Asked(BaseException):
            pass

        def asked(number, frame):
            raise Asked
        signal.signal(signal.SIGTERM, asked)
        try:
            stay(journal)
        except Asked:
            return end()
    flow = a_flow(MemoryStore(), 'process')
    flow.add_step('a', func=one, config={'timeout': 0.4})

    assert flow() is False

    assert the_task(flow, 'a').error == 'timed out after 0.4 s'


@pytest.mark.long
@pytest.mark.parametrize('deaf', [False, True])
def test_its_grandchildren_end_with_it(deaf, journal):
    # semantics 4.9
    def one():
        start_grandchild(journal, deaf)
        stay(journal)
    flow = a_flow(MemoryStore(), 'process', config={'shutdown_grace': 0.3})
    flow.add_step('a', func=one, config={'timeout': ENOUGH})

    assert flow() is False

    assert the_task(flow, 'a').error == TIMED_OUT
    wait_gone(journal.pid('a'))
    wait_gone(journal.pid('grandchild'))


@pytest.mark.long
def test_the_next_attempt_starts_when_nothing_of_the_last_is_left(journal):
    # semantics 4.9
    def one():
        if sequent.current().attempt == 1:
            start_grandchild(journal, deaf=True)
            stay(journal)
        journal.note(is_running(journal.pid('grandchild')))
    flow = a_flow(MemoryStore(), 'process', config={'shutdown_grace': 0.1})
    flow.add_step('a', func=one, config={'timeout': ENOUGH, 'retries': 1})

    assert flow() is True

    assert journal.words() == ['False']


@pytest.mark.long
def test_a_stopped_process_is_ended_too(journal):
    def one():
        journal.sign('a')
        os.kill(os.getpid(), signal.SIGSTOP)
    flow = a_flow(MemoryStore(), 'process')
    flow.add_step('a', func=one, config={'timeout': ENOUGH})

    assert flow() is False

    assert the_task(flow, 'a').error == TIMED_OUT
    assert not is_running(journal.pid('a'))


def busy_beside(store, journal, work, timeout):
    """Run a process task while an inline one keeps the supervisor until the first has ended."""
    def block():
        pid = journal.pid('a')
        wait_until(lambda: journal.words(), 'a to have ended')
        time.sleep(timeout + 0.1)     # time passes that the supervisor does not see
        return pid
    flow = a_flow(store, 'process', config={'max_concurrent': 2})
    flow.add_step('a', func=work, config={'timeout': timeout})
    flow.add_step('b', func=block, config={'task_construct': 'inline'})
    return flow


@pytest.mark.long
def test_what_succeeded_in_time_is_no_timeout_though_the_supervisor_was_busy(journal):
    # semantics 4.9
    def work():
        journal.sign('a')
        journal.note('done')
        return 7
    flow = busy_beside(MemoryStore(), journal, work, ENOUGH)

    assert flow() is True

    assert the_task(flow, 'a').result == 7


@pytest.mark.long
def test_what_failed_in_time_is_no_timeout_though_the_supervisor_was_busy(journal):
    # semantics 4.9
    def work():
        journal.sign('a')
        journal.note('done')
        fail('of its own')
    flow = busy_beside(MemoryStore(), journal, work, ENOUGH)

    assert flow() is False

    assert the_task(flow, 'a').error == 'ValueError: of its own'


def test_each_step_has_its_own_limit_and_leaves_inherit_it(journal):
    # semantics 8.4
    flow = a_flow(MemoryStore(), 'process', config={'timeout': 0.3, 'stop_on_exception': False})
    c = flow.add_step('c', config={'timeout': 0.2})
    c.add_step('a', func=stay, args=(journal,))
    c.add_step('b', func=stay, args=(journal,), config={'timeout': 0.1})
    flow.add_step('d', func=stay, args=(journal,))
    flow.add_step('e', func=journal.note, args=('e',), config={'timeout': None})

    assert flow() is False

    assert {one.path: one.error for one in records_of(flow) if one.kind == 'leaf'} == {
        'c_a': 'timed out after 0.2 s', 'c_b': 'timed out after 0.1 s',
        'd': 'timed out after 0.3 s', 'e': None}


@pytest.mark.long
def test_a_container_is_not_timed_itself(journal):
    # semantics 8.4
    flow = a_flow(MemoryStore(), 'process')
    c = flow.add_step('c', loop=[1, 2, 3], config={'timeout': ENOUGH})
    c.add_step('a', func=time.sleep, args=(ENOUGH / 2,))    # all of them take longer

    assert flow() is True


@pytest.mark.long
def test_iterations_are_timed_one_by_one(journal):
    # semantics 4.9
    def one():
        if sequent.current().item == 2:
            stay(journal)
    flow = a_flow(MemoryStore(), 'process', config={'max_concurrent': 3})
    flow.add_step('a', func=one, loop=[1, 2, 3], config={
        'timeout': ENOUGH, 'max_concurrent': 3, 'stop_on_exception': False})

    assert flow() is False

    assert [(one.sequence, one.error) for one in records_of(flow, 'a')
            if one.kind == 'leaf' and one.status == 'failure'] == [
        ('1.2', TIMED_OUT)]


@pytest.mark.long
def test_an_eventor_has_timeouts(journal):
    # semantics 4.9
    flow = Eventor('e', store=MemoryStore(), config={
        'task_construct': 'process', 'timeout': ENOUGH})
    go, late = flow.add_event('go'), flow.add_event('late')
    flow.add_assoc(go, flow.add_step('a', func=stay, args=(journal,), triggers={'failure': late}))
    flow.add_assoc(late, flow.add_step('b', func=journal.note, args=('late',), handles=True))
    flow.trigger_event(go)

    assert flow() is True

    assert journal.words() == ['late']


@pytest.mark.parametrize('construct', ['thread', 'inline'])
def test_where_nothing_can_be_ended_a_timeout_is_refused_before_the_run(construct, store, journal):
    # semantics 4.9
    flow = a_flow(store, 'process')
    flow.add_step('first', func=journal.note, args=('first',))
    flow.add_step('a', func=len, config={'timeout': 5, 'task_construct': construct})

    with pytest.raises(ConfigError, match="step 'a': config timeout .* cannot; set timeout to "
                                          "None on this step, or choose another"):
        flow()

    assert journal.words() == []
    assert flow.tasks() == []


@pytest.mark.parametrize('construct', ['thread', 'inline'])
def test_a_flow_s_timeout_can_be_lifted_from_steps_that_cannot_be_ended(construct, journal):
    flow = a_flow(construct='process', config={'timeout': 5})
    flow.add_step('a', func=journal.note, args=('a',))
    flow.add_step('b', func=journal.note, args=('b',), config={
        'timeout': None, 'task_construct': construct})
    flow.add_step('no func', func=None)

    assert flow() is True


def test_the_alarm_of_a_task_that_has_ended_is_forgotten(journal):
    # Memory holds what is live, also beside a task that runs for long.
    objects = []

    def items():
        for number in range(3001):
            if number % 1000 == 0:
                gc.collect()
                objects.append(len(gc.get_objects()))
            yield number
    flow = a_flow(construct='thread', config={'warn_after': 3600})
    flow.add_step('long', func=journal.pass_gate, args=('end',))
    loop = flow.add_step('a', func=len, args=('',), loop=items)
    flow.add_step('b', func=journal.open, args=('end',), require=loop)

    assert flow() is True

    assert objects[3] - objects[1] < 300    # at least one object for each of 2,000 alarms


# Timeouts and stops ###############################################################


@pytest.mark.long
def test_a_stop_during_the_grace_of_a_timeout_leaves_it_timed_out(programs, journal):
    programs.write('''
        from test_timeouts import stay_deaf
        def work():
            signal.signal(signal.SIGTERM, lambda *given: journal.note('asked'))
            while True:
                stay_on(journal)
        def stay_on(journal):
            journal.sign('a')
            journal.pass_gate('never')
        flow = make(config={'shutdown_grace': 2})
        a = flow.add_step('a', func=work, config={'timeout': 2})
        flow.add_step('b', func=journal.note, args=('b',), require=((a, 'complete'),),
                      handles=True)
        raise SystemExit(0 if flow() else 1)
        ''')
    supervisor = programs.start()
    journal.wait_for('asked')

    supervisor.kill(signal.SIGTERM)

    assert supervisor.wait() == 143
    assert not is_running(journal.pid('a'))
    assert programs.tasks()['a'] == [('1', 0, 1, 'failure')]
    assert journal.count('b') == 0
    assert programs.run('continue') == 0       # what its failure leads to is done then
    assert journal.count('b') == 1


@pytest.mark.long
def test_a_stop_during_the_grace_leaves_the_next_attempt_to_be_made(programs, journal):
    programs.write('''
        def work():
            signal.signal(signal.SIGTERM, lambda *given: journal.note('asked'))
            if seq.current().attempt == 1:
                journal.sign('a')
                journal.pass_gate('never')
            journal.note('attempt %d' % seq.current().attempt)
        flow = make(config={'shutdown_grace': 2})
        flow.add_step('a', func=work, config={'timeout': 2, 'retries': 1})
        raise SystemExit(0 if flow() else 1)
        ''')
    supervisor = programs.start()
    journal.wait_for('asked')

    supervisor.kill(signal.SIGTERM)

    assert supervisor.wait() == 143
    assert programs.tasks()['a'] == [('1', 0, 1, 'failure'), ('1', 0, 2, 'ready')]
    assert programs.run('continue') == 0
    assert journal.words()[-1] == 'attempt 2'


ORPHAN = '''
    def work():
        if os.environ.get('DEAF'):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if seq.current().attempt > 1 or seq.current().recovery:
            journal.note('again')
            return
        journal.sign('a')
        journal.pass_gate('never')
    limit = None if MODE == 'restart' else float(os.environ.get('LIMIT', 0.2))
    flow = make(config={'shutdown_grace': float(os.environ.get('GRACE', 0.2))})
    flow.add_step('a', func=work, config={
        'timeout': limit, 'retries': int(os.environ.get('RETRIES', 0))})
    leave(flow)
    '''


@pytest.mark.parametrize('mode', ['continue', 'recover'])
@pytest.mark.parametrize('deaf', ['', '1'])
def test_an_adopted_orphan_times_out_like_any_other(deaf, mode, programs, journal):
    # semantics 7.6
    programs.write(ORPHAN)
    programs.leave_orphan(environment={'DEAF': deaf})

    assert programs.run(mode) == 1

    assert not is_running(journal.pid('a'))
    assert programs.tasks()['a'] == [('1', 0, 1, 'failure')]
    assert error_of(programs, 'a') == 'timed out after 0.2 s'


@pytest.mark.skipif(sys.platform != 'linux', reason='not for systems without subreapers')
def test_the_end_of_an_orphan_is_seen_though_nobody_reaps_it(programs, journal):
    """As in a container whose first process does not."""
    programs.write(ORPHAN)
    with subreaper():
        pid = programs.leave_orphan()
        began = time.monotonic()

        assert programs.run('continue', environment={'GRACE': '20'}) == 1

        assert time.monotonic() - began < 15
        assert os.waitpid(pid, os.WNOHANG)[0] == pid, 'somebody has reaped it'
    assert error_of(programs, 'a') == 'timed out after 0.2 s'


@contextlib.contextmanager
def subreaper():
    """Orphans become children of this process."""
    import ctypes
    prctl, set_child_subreaper = ctypes.CDLL(None, use_errno=True).prctl, 36
    assert prctl(set_child_subreaper, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        prctl(set_child_subreaper, 0, 0, 0, 0)


def error_of(programs, path):
    kept = SqliteStore(programs.store_path)
    kept.open(create=False)
    try:
        return [one for one in kept.attempts(kept.latest('etl')) if one.path == path][-1].error
    finally:
        kept.close()


@pytest.mark.long
def test_the_time_of_an_orphan_counts_from_its_start(programs, journal):
    """It counts by the system's own clock, so it is not enough to change what is recorded."""
    programs.write(ORPHAN)
    supervisor = programs.start()
    journal.pid('a')
    over = time.monotonic() + 6
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: time.monotonic() > over, 'its time to be over')
    began = time.monotonic()

    assert programs.run('continue', environment={'LIMIT': '6'}) == 1

    assert time.monotonic() - began < 6
    assert error_of(programs, 'a') == 'timed out after 6 s'


@pytest.mark.long
def test_a_timed_out_orphan_is_tried_again(programs, journal):
    programs.write(ORPHAN)
    programs.leave_orphan()

    assert programs.run('continue', environment={'RETRIES': '1', 'LIMIT': '3'}) == 0

    assert journal.words() == ['again']
    assert programs.tasks()['a'] == [('1', 0, 1, 'failure'), ('1', 0, 2, 'success')]


# warn_after #######################################################################


def warnings(caplog):
    return [one.getMessage() for one in caplog.records if one.levelname == 'WARNING']


@contextlib.contextmanager
def gate_for_each_warning(journal):
    """Open a gate, meanwhile, with each warning: 'warned 1', and so on."""
    class Opener(logging.Handler):
        count = 0

        def emit(self, record):
            if 'has been running for' in record.getMessage():
                self.count += 1
                journal.open('warned %d' % self.count)
    opener = Opener()
    logging.getLogger('sequent').addHandler(opener)
    try:
        yield
    finally:
        logging.getLogger('sequent').removeHandler(opener)


def until_warned(journal, construct):
    """Run until the supervisor has warned of this attempt; inline it can do so only after."""
    if construct == 'inline':
        time.sleep(0.06)
    else:
        journal.pass_gate('warned %d' % sequent.current().attempt)


def test_what_takes_long_is_warned_of_once_and_not_ended(construct, store, journal, caplog):
    # semantics 4.10
    flow = a_flow(store, construct)
    flow.add_step('a', func=until_warned, args=(journal, construct), config={'warn_after': 0.05})

    with gate_for_each_warning(journal):
        assert flow() is True

    assert warnings(caplog) == ['step a at 1 has been running for 0.05 s']
    assert the_task(flow, 'a').status == 'success'


def test_what_ends_in_time_is_not_warned_of(construct, caplog):
    # semantics 4.10
    flow = a_flow(MemoryStore(), construct)
    flow.add_step('a', func=len, args=('',), config={'warn_after': 30})

    assert flow() is True

    assert warnings(caplog) == []


def test_each_attempt_is_warned_of(construct, journal, caplog):
    # semantics 4.10
    def one():
        until_warned(journal, construct)
        if sequent.current().attempt == 1:
            fail()
    flow = a_flow(MemoryStore(), construct)
    flow.add_step('a', func=one, config={'warn_after': 0.03, 'retries': 1})

    with gate_for_each_warning(journal):
        assert flow() is True

    assert warnings(caplog).count('step a at 1 has been running for 0.03 s') == 2


def test_a_warning_comes_before_the_timeout(journal, caplog):
    flow = a_flow(MemoryStore(), 'process')
    flow.add_step('a', func=stay, args=(journal,), config={'warn_after': 0.05, 'timeout': 0.15})

    assert flow() is False

    texts = [one.getMessage() for one in caplog.records]
    assert texts[0] == 'step a at 1 has been running for 0.05 s'
    assert 'timed out after 0.15 s' in texts[1]


# run_timeout ######################################################################


@pytest.mark.long
def test_a_run_that_takes_too_long_is_stopped_and_returns_false(store, journal, caplog):
    # semantics 4.11
    flow = a_flow(store, 'process', config={'run_timeout': ENOUGH, 'shutdown_grace': 60})
    a = flow.add_step('a', func=stay, args=(journal,))
    flow.add_step('b', func=journal.note, args=('b',), require=((a, 'complete'),))
    before = time.monotonic()

    assert flow() is False

    assert ENOUGH <= time.monotonic() - before < 50
    assert not is_running(journal.pid('a'))
    task = the_task(flow, 'a')
    assert task.status == 'active' and task.error
    assert journal.words() == []
    assert 'the run ' + TIMED_OUT in caplog.text


@pytest.mark.long
def test_continue_goes_on_with_a_run_that_timed_out(store, journal):
    # semantics 4.11
    def one():
        journal.note('a')
        if journal.count('a') == 1:
            stay(journal)
    for mode, result in (('restart', False), ('continue', True)):
        flow = a_flow(store, 'process', mode, config={'run_timeout': 2 * ENOUGH})
        a = flow.add_step('a', func=one)
        flow.add_step('b', func=journal.note, args=('b',), require=a)
        assert flow() is result

    assert journal.words() == ['a', 'a', 'b']
    assert [(one.recovery, one.attempt, one.status) for one in records_of(flow, 'a')] == [
        (0, 1, 'active'), (0, 2, 'success')]


@pytest.mark.long
def test_run_again_goes_on_with_a_run_that_timed_out(store, journal):
    # semantics 4.11
    def one():
        journal.note('a')
        if journal.count('a') == 1:
            stay(journal)
    flow = a_flow(store, 'process', config={'run_timeout': 2 * ENOUGH})
    flow.add_step('a', func=one)

    assert [flow(), flow(), flow()] == [False, True, True]
    assert journal.words() == ['a', 'a']


@pytest.mark.long
def test_the_time_of_a_run_passes_while_only_delays_are_waited_for(store, construct):
    # semantics 4.11
    flow = a_flow(store, construct, config={'run_timeout': ENOUGH})
    flow.add_step('a', func=len, args=('',), delay=500)
    flow.add_step('b', func=fail, config={'retries': 1, 'retry_delay': 500})
    before = time.monotonic()

    assert flow() is False

    assert time.monotonic() - before < 100
    assert [(one.path, one.status) for one in records_of(flow)] == [
        ('a', 'ready'), ('b', 'failure'), ('b', 'ready')]


def test_a_run_that_ends_in_time_does_not_time_out(construct):
    # semantics 4.11
    flow = a_flow(MemoryStore(), construct, config={'run_timeout': 30})
    flow.add_step('a', func=len, args=('',))

    assert flow() is True


def test_a_loop_without_end_is_stopped():
    # semantics 4.11
    flow = a_flow(MemoryStore(), config={'run_timeout': 0.1})
    flow.add_step('a', func=len, args=('',), loop=lambda: iter(int, 1))

    assert flow() is False


def test_a_thread_is_abandoned_when_the_run_times_out(journal):
    flow = a_flow(MemoryStore(), 'thread', config={'run_timeout': 0.5, 'shutdown_grace': 0.1})
    flow.add_step('a', func=journal.pass_gate, args=('late',))

    assert flow() is False

    assert the_task(flow, 'a').status == 'active'
    journal.open('late')


@pytest.mark.long
def test_a_run_that_times_out_in_another_thread_is_stopped(journal):
    flow = a_flow(MemoryStore(), 'process', config={'run_timeout': ENOUGH})
    flow.add_step('a', func=stay, args=(journal,))
    seen = []
    thread = threading.Thread(target=lambda: seen.append(flow()))
    thread.start()
    thread.join(20)

    assert seen == [False]
    assert not is_running(journal.pid('a'))


# Configuration, command line ######################################################


@pytest.mark.parametrize('value', [0, -1, '30', True, float('nan'), float('inf'), [1],
                                   10 ** 400], ids=lambda one: repr(one)[:5])
@pytest.mark.parametrize('key', ['timeout', 'warn_after', 'run_timeout'])
def test_a_wrong_limit_is_refused_with_a_sentence(key, value):
    with pytest.raises(ConfigError, match="config '%s' must be seconds, more than 0" % key):
        a_flow(config={key: value})
    if key != 'run_timeout':
        with pytest.raises(ConfigError, match="step 'a': config '%s' must be seconds" % key):
            a_flow().add_step('a', func=None, config={key: value})


def test_run_timeout_means_nothing_on_a_step(caplog):
    flow = a_flow()
    flow.add_step('a', func=None, config={'run_timeout': 5})
    assert flow() is True
    assert "config key 'run_timeout' means nothing on a step" in caplog.text


@pytest.fixture
def command(tmp_path):
    """A function that runs the command line on a flow whose step b stays on and on."""
    (tmp_path / 'late.py').write_text('''
import os, signal, sequent
limit = float(os.environ.get('LIMIT', 30))
def work():
    if not os.path.exists('go'):
        signal.pause()
flow = sequent.Sequent(config={'run_timeout': float(os.environ.get('RUN_LIMIT', 30))})
a = flow.add_step('a', func=print, args=('it is a',))
b = flow.add_step('b', func=work, require=a, config={'timeout': limit, 'retries': 1})
''')

    def run(*words, **environment):
        return subprocess.run(
            [sys.executable, '-W', 'error', '-m', 'sequent', 'late'] + list(words),
            cwd=str(tmp_path), env=dict(os.environ, COLUMNS='150', **environment), timeout=60,
            universal_newlines=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    run.folder = tmp_path
    return run


def test_a_run_that_timed_out_has_exit_code_1_and_can_be_continued(command):
    # semantics 4.11, 20.2
    done = command(RUN_LIMIT='0.4')

    assert done.returncode == 1
    assert 'the run timed out after 0.4 s' in done.stderr
    assert 'Traceback' not in done.stderr
    [run] = json.loads(command('history', '--json').stdout)
    assert run['status'] == 'stopped'
    (command.folder / 'go').write_text('')
    assert command('continue').returncode == 0


def test_json_after_a_run_that_timed_out_says_that_it_was_stopped(command):
    done = command('--json', RUN_LIMIT='0.4')

    result = json.loads(done.stdout)
    assert (result['ok'], result['status'], result['unhandled']) == (False, 'stopped', [])


def test_the_command_line_shows_a_timeout_and_how_many_attempts_were_made(command):
    assert command(LIMIT='0.1').returncode == 1

    done = command('status')

    [line] = [one for one in done.stdout.splitlines() if one.startswith('b ')]
    assert line.split()[:5] == ['b', '1', 'failure', '0', '2']
    assert line.endswith('timed out after 0.1 s')
    [_, task] = json.loads(command('status', '--json', '--all').stdout)['tasks']
    assert (task['path'], task['attempt'], task['error']) == ('b', 2, 'timed out after 0.1 s')
