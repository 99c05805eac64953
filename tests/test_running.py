"""Cycles, the result, signals, precedence of configuration, folders: semantics 8."""

import collections
import concurrent.futures
import os
import signal
import subprocess
import sys
import threading
import time

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    Calls, Line, a_flow, a_private_temporary_folder, construct, fail, is_running, journal,
    programs, results, statuses, store, the_task, wait_gone, wait_until)
from sequent import Eventor, MemoryStore, ThreadConstruct  # noqa: E402
from sequent.executor import ExecutorConstruct  # noqa: E402

SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
every_signal = pytest.mark.parametrize('number', sorted(SIGNALS))


def delayed(store, calls, mode='restart', delay=0.1):
    flow = a_flow(store, mode=mode)
    a = flow.add_step('a', func=calls)
    b = flow.add_step('b', func=calls, require=(a,), delay=delay)
    flow.add_step('c', func=calls, require=(b,), delay=delay)
    return flow


# 8.1 Cycles

def test_a_run_goes_on_until_nothing_is_left_to_do(construct, store):
    # semantics 8.1
    flow = a_flow(store, construct)
    a = flow.add_step('a', func=len, args=('',))
    flow.add_step('b', func=len, args=('',), require=(a,), delay=0.02)
    assert flow.run() is True
    assert statuses(flow) == {'a': 'success', 'b': 'success'}
    assert flow.count_todos() == (0, None)


def test_max_loops_is_the_number_of_cycles(store):
    # semantics 8.1: a cycle ends when nothing runs or is ready
    calls = Calls()
    flow = delayed(store, calls)
    seen = []
    for _ in range(4):
        seen.append((flow.run(max_loops=1), calls.names[:]))
    assert seen == [(True, ['a']), (True, ['a', 'b']), (True, ['a', 'b', 'c']),
                    (True, ['a', 'b', 'c'])]


def test_several_cycles_in_one_call(store):
    # semantics 8.1
    calls = Calls()
    flow = delayed(store, calls)
    assert flow(max_loops=2) is True
    assert calls.names == ['a', 'b']
    assert flow() is True
    assert calls.names == ['a', 'b', 'c']


@pytest.mark.long
def test_a_cycle_begins_when_the_earliest_delay_is_due(store):
    # semantics 8.1; what is due while a cycle still goes on belongs to it, hence the long delays
    calls = Calls()
    flow = a_flow(store, config={'synchronous': 'off'})
    flow.add_step('now', func=calls)
    flow.add_step('late', func=calls, delay=2.5)
    flow.add_step('early', func=calls, delay=1)
    before = time.monotonic()
    assert flow.run(max_loops=1) is True
    assert calls.names == ['now']
    assert flow.run(max_loops=1) is True
    assert time.monotonic() - before >= 1
    assert calls.names == ['now', 'early']
    assert flow.run() is True
    assert time.monotonic() - before >= 2.5
    assert calls.names == ['now', 'early', 'late']


def test_count_todos_tells_what_is_outstanding_and_when_it_is_due(store):
    # semantics 8.1
    flow = a_flow(store)
    a = flow.add_step('a', func=Calls())
    flow.add_step('b', func=Calls(), require=(a,), delay=500)
    flow.add_step('c', func=Calls(), require=(a,), delay=1000)
    assert flow.run(max_loops=1) is True
    todo, left = flow.count_todos()
    assert todo == 2
    assert 400 < left <= 500
    flow.close()


def test_count_todos_counts_triggers(store):
    # semantics 8.1
    flow = Eventor('e', store=store, config={'task_construct': 'inline'})
    event = flow.add_event('go')
    flow.add_assoc(event, flow.add_step('a', func=Calls()))
    flow.trigger_event(event, 1)
    flow.trigger_event(event, 2)
    assert flow.count_todos() == (2, None)
    assert flow() is True
    assert flow.count_todos() == (0, None)
    flow.close()


@pytest.mark.parametrize('given', ['1', 1.5, None, True])
def test_max_loops_is_an_int(given):
    flow = a_flow()
    with pytest.raises(TypeError):
        flow.run(max_loops=given)


# 8.2 The result

def test_run_returns_true_or_after_an_unhandled_failure_false(construct, store):
    # semantics 8.2
    good, handled, bad = (a_flow(store, construct, name=name) for name in 'ghb')
    good.add_step('a', func=len, args=('',))
    a = handled.add_step('a', func=fail)
    handled.add_step('b', func=len, args=('',), require=((a, 'failure'),), handles=True)
    bad.add_step('a', func=fail)
    assert good() is True
    assert handled() is True
    assert bad() is False


@pytest.mark.parametrize('func, result', [(len, True), (fail, False)])
def test_run_again_after_the_end_returns_the_same_and_runs_nothing(func, result, store):
    # semantics 8.2
    calls = []

    def one(text):
        calls.append(text)
        return func(text)
    flow = a_flow(store)
    flow.add_step('a', func=one, args=('x',))
    assert [flow(), flow(), flow.run(max_loops=1)] == [result] * 3
    assert calls == ['x']
    assert len(flow.tasks()) == 1


def test_run_again_before_the_end_goes_on_with_the_same_run(store):
    # semantics 8.2
    calls = Calls()
    flow = delayed(store, calls)
    flow.run(max_loops=1)
    run_id = flow.run_id
    assert flow() is True
    assert flow.run_id == run_id
    assert calls.names == ['a', 'b', 'c']
    assert {task.recovery for task in flow.tasks()} == {0}


def test_run_from_within_is_refused(store):
    # semantics 8.2
    flow = a_flow(store)
    flow.add_step('a', func=lambda: flow.run())
    assert flow() is False
    assert 'running' in the_task(flow, 'a').error


# 8.3 Signals, within the process

@pytest.fixture
def handlers():
    """Python's own handlers while the test runs, whatever started the tests."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL,
             signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, usual[number]) for number in usual}
    yield usual
    for number, handler in before.items():
        signal.signal(number, handler)


def expected_exception(number):
    return (KeyboardInterrupt, ()) if number == signal.SIGINT else (
        SystemExit, (SIGNALS[number],))


def run_into_signal(flow, number):
    kind, args = expected_exception(number)
    with pytest.raises(kind) as caught:
        flow()
    assert caught.value.args == args


@every_signal
def test_a_signal_during_an_inline_task(number, store, handlers):
    # semantics 8.3
    calls, seen = Calls(), []

    def one():
        os.kill(os.getpid(), number)
        seen.append('went on')
    flow = a_flow(store)
    a = flow.add_step('a', func=one)
    flow.add_step('b', func=calls, require=((a, 'complete'),))
    flow.add_step('c', func=calls, require=((a, 'failure'),))
    flow.add_step('d', func=calls)

    run_into_signal(flow, number)

    assert calls.calls == []
    assert statuses(flow)['a'] == 'active'
    assert {sig: signal.getsignal(sig) for sig in handlers} == handlers


@every_signal
def test_a_signal_while_a_process_task_runs(number, store, handlers, journal):
    # semantics 8.3
    def one():
        journal.sign('a')
        os.kill(os.getppid(), number)
        journal.pass_gate('never')
    flow = a_flow(store, 'process', config={'max_concurrent': 1})
    a = flow.add_step('a', func=one)
    flow.add_step('b', func=journal.note, args=('b',))
    flow.add_step('c', func=journal.note, args=('c',), require=((a, 'complete'),))

    run_into_signal(flow, number)

    assert not is_running(journal.pid('a'))
    assert journal.words() == []
    task = the_task(flow, 'a')
    assert task.status == 'active'
    assert task.error
    assert {sig: signal.getsignal(sig) for sig in handlers} == handlers


@pytest.mark.parametrize('mode, attempt', [('recover', (1, 1)), ('continue', (0, 2))])
def test_what_a_signal_ended_runs_again_in_recover_and_continue(
        mode, attempt, construct, store, handlers, journal):
    # semantics 8.3, 7.5
    if construct == 'thread':
        pytest.skip('not for threads, which cannot be ended')
    supervisor = os.getpid()

    def one():
        journal.note('a')
        if journal.count('a') == 1:
            os.kill(supervisor, signal.SIGTERM)
            journal.pass_gate('never')

    def make(mode):
        flow = a_flow(store, construct, mode)
        a = flow.add_step('a', func=one)
        flow.add_step('b', func=journal.note, args=('b',), require=(a,))
        return flow
    run_into_signal(make('restart'), signal.SIGTERM)
    again = make(mode)
    assert again() is True
    assert journal.words() == ['a', 'a', 'b']
    task = the_task(again, 'a')
    assert (task.recovery, task.attempt) == attempt


def test_a_function_that_catches_the_interrupt_does_not_keep_the_run_going(store, handlers):
    # semantics 8.3
    calls = Calls()

    def one():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            [None for _ in range(1000)]
        except KeyboardInterrupt:
            pass
    flow = a_flow(store)
    a = flow.add_step('a', func=one)
    flow.add_step('b', func=calls, require=(a,))
    run_into_signal(flow, signal.SIGTERM)
    assert calls.calls == []


@pytest.mark.parametrize('construct', ['thread', 'inline', 'executor'])
def test_what_fails_as_the_signal_comes_was_ended_by_it(construct, store, handlers):
    # semantics 8.3: a Ctrl-C goes to what runs in the supervisor's process group as well
    pool = concurrent.futures.ThreadPoolExecutor(1)

    def one():
        os.kill(os.getpid(), signal.SIGTERM)
        raise ValueError('its connection is gone')
    with pool:
        flow = a_flow(store, ExecutorConstruct(pool) if construct == 'executor' else construct)
        flow.add_step('a', func=one)
        run_into_signal(flow, signal.SIGTERM)
        task = the_task(flow, 'a')
    assert task.status == 'active'
    assert task.error


@pytest.mark.parametrize('func', [len, fail])
def test_after_a_run_the_handlers_are_put_back(func, construct, handlers):
    # semantics 8.3
    def ours(number, frame):
        raise AssertionError
    signal.signal(signal.SIGTERM, ours)
    flow = a_flow(construct=construct)
    seen = []
    flow.add_step('a', func=func, args=('x',))
    flow.add_step('b', func=lambda: seen.append(signal.getsignal(signal.SIGTERM)),
                  config={'task_construct': 'inline'})
    flow()
    assert signal.getsignal(signal.SIGTERM) is ours
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if func is len:
        assert seen and seen[0] is not ours


def test_after_an_error_in_the_store_the_handlers_are_put_back(handlers):
    # semantics 8.3
    class Broken(MemoryStore):
        def commit(self, run, records):
            raise sequent.StoreError('the disk is full')
    flow = a_flow(Broken())
    flow.add_step('a', func=Calls())
    with pytest.raises(sequent.StoreError, match='the disk is full'):
        flow()
    assert {sig: signal.getsignal(sig) for sig in handlers} == handlers


def test_in_another_thread_a_flow_runs_without_touching_the_handlers(construct, handlers):
    # semantics 8.3
    seen = []

    def inside():
        return [signal.getsignal(number) for number in sorted(handlers)]

    def run():
        flow = a_flow(construct=construct)
        flow.add_step('a', func=len, args=('',))
        flow.add_step('b', func=lambda: seen.append(inside()),
                      config={'task_construct': 'inline'})
        seen.append(flow())
    thread = threading.Thread(target=run)
    thread.start()
    thread.join(20)
    assert seen == [[handlers[number] for number in sorted(handlers)], True]


# 8.3 Signals, to real supervisors

SIGNALLED = '''
    def one():
        %s
        journal.sign('a')
        journal.note('ready')
        journal.pass_gate('never')
    flow = make(config={'max_concurrent': 1, 'shutdown_grace': %s})
    a = flow.add_step('a', func=one)
    flow.add_step('b', func=journal.note, args=('b',))
    flow.add_step('c', func=journal.note, args=('c',), require=((a, 'complete'),))
    try:
        flow()
    except KeyboardInterrupt:
        sys.exit(130)
    '''


@every_signal
def test_a_signal_ends_the_running_tasks_and_the_program(number, programs, journal):
    # semantics 8.3
    programs.write(SIGNALLED % ('pass', 60))
    supervisor = programs.start()
    pid = journal.pid('a')
    journal.wait_for('ready')
    supervisor.kill(number)
    assert supervisor.wait() == SIGNALS[number]
    assert not is_running(pid)
    assert journal.words() == ['ready']
    assert programs.last('a') == 'active'


def test_a_task_may_clean_up_after_sigterm(programs, journal):
    # semantics 8.3: it gets SIGTERM first
    programs.write(SIGNALLED % ('''
        def clean_up(number, frame):
            journal.note('cleaned up')
            sys.exit(0)
        signal.signal(signal.SIGTERM, clean_up)''', 60))
    supervisor = programs.start()
    journal.wait_for('ready')
    supervisor.kill(signal.SIGINT)
    assert supervisor.wait() == 130
    assert journal.words() == ['ready', 'cleaned up']
    assert programs.last('a') == 'active'


def test_a_task_that_ignores_sigterm_is_killed_after_the_grace(programs, journal):
    # semantics 8.3
    programs.write(SIGNALLED % ('signal.signal(signal.SIGTERM, signal.SIG_IGN)', 0.2))
    supervisor = programs.start()
    pid = journal.pid('a')
    before = time.monotonic()
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    assert time.monotonic() - before >= 0.2
    assert not is_running(pid)


def test_a_second_signal_some_time_later_skips_the_grace(programs, journal):
    # semantics 8.3; two within a second, as all others are, would be of one stop
    programs.write('\n    seq.Stop.ONE_STOP = 1e-9' + SIGNALLED % (
        "signal.signal(signal.SIGTERM, lambda number, frame: journal.note('ignored'))", 60))
    supervisor = programs.start()
    pid = journal.pid('a')
    supervisor.kill(signal.SIGTERM)
    journal.wait_for('ignored')
    assert is_running(pid) and supervisor.process.poll() is None
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    assert not is_running(pid)
    assert programs.last('a') == 'active'


@pytest.mark.parametrize('grandchild', ['0', '1'])
def test_a_stop_ends_the_grandchildren_too(grandchild, programs, journal):
    # semantics 8.3: the whole process group, also those that ignore SIGTERM
    programs.write(SIGNALLED % ('''
        process = subprocess.Popen([sys.executable, '-c', """if 1:
            import signal, sys
            if %s:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            sys.path.insert(0, %%r)
            import runtools
            journal = runtools.Journal(%%r)
            journal.note('grandchild')
            journal.pass_gate('never')
            """ %% (os.path.dirname(sys.modules['runtools'].__file__), FOLDER)])
        journal.sign('grandchild', process.pid)
        journal.wait_for('grandchild')''' % grandchild, 0.3))
    supervisor = programs.start()
    journal.wait_for('ready')
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    wait_gone(journal.pid('a'))
    wait_gone(journal.pid('grandchild'))


def test_a_signal_while_only_a_delay_is_waited_for(programs, journal):
    # semantics 8.3
    programs.write('''
        flow = make('inline')
        a = flow.add_step('a', func=journal.note, args=('a',))
        flow.add_step('b', func=journal.note, args=('b',), require=(a,), delay=1000)
        flow()
        ''')
    supervisor = programs.start()
    wait_until(lambda: 'b' in programs.tasks(), 'b to be delayed')
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    assert programs.tasks() == {'a': [('1', 0, 1, 'success')], 'b': [('1', 0, 1, 'ready')]}


def test_threads_are_used_again_and_end_with_the_run():
    # semantics 8.8
    flow, seen = a_flow(construct='thread', config={'max_concurrent': 2}), set()
    for number in range(50):
        flow.add_step('s%d' % number, func=lambda: seen.add(threading.current_thread()))

    assert flow() is True

    assert 1 <= len(seen) <= 2
    wait_until(lambda: not any(one.is_alive() for one in seen), 'the end of the threads')


def test_threads_are_left_behind_by_a_stop(programs, journal):
    # semantics 8.3: they cannot be ended; the supervisor does not wait for ever
    programs.write('''
        def one():
            journal.note('ready')
            journal.pass_gate('never')
        flow = make('thread', config={'shutdown_grace': 0.1})
        flow.add_step('a', func=one)
        flow()
        ''')
    supervisor = programs.start()
    journal.wait_for('ready')
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    assert programs.last('a') == 'active'


@pytest.mark.parametrize('func, code', [('len', 0), ('int', 1)])
def test_the_result_makes_an_exit_code(func, code, programs):
    # semantics 8.2
    programs.write("flow = make('inline')\nflow.add_step('a', func=%s, args=('x',))\n"
                   'sys.exit(0 if flow() else 1)\n' % func)
    assert programs.run() == code


# 8.4 Precedence

class Construct(ThreadConstruct):
    """Notes which steps it ran."""

    def __init__(self, name, ran):
        super().__init__()
        self.name = name
        self.ran = ran

    def release(self, jobs):
        for job in jobs:
            self.ran[job.name] = self.name
        super().release(jobs)


def test_a_steps_config_counts_over_its_containers_over_the_flows():
    # semantics 8.4
    ran = {}
    by_flow, by_container, by_step = (Construct(name, ran) for name in 'fcs')
    flow = a_flow(construct=by_flow)
    flow.add_step('x', func=Calls())
    outer = flow.add_step('o', config={'task_construct': by_container})
    inner = outer.add_step('i')
    inner.add_step('x', func=Calls())
    inner.add_step('y', func=Calls(), config={'task_construct': by_step})
    assert flow() is True
    assert ran == {'x': 'f', 'o_i_x': 'c', 'o_i_y': 's'}


def test_the_flows_config_counts_over_the_environment_over_the_default(monkeypatch):
    # semantics 8.4
    here = os.getpid()
    monkeypatch.setenv('SEQUENT_TASK_CONSTRUCT', 'inline')
    flow = sequent.Sequent('etl', store=':memory:')
    flow.add_step('a', func=os.getpid)
    assert flow() is True
    assert the_task(flow, 'a').result == here

    flow = sequent.Sequent('etl', store=':memory:', config={'task_construct': 'process'})
    flow.add_step('a', func=os.getpid)
    assert flow() is True
    assert the_task(flow, 'a').result != here

    monkeypatch.delenv('SEQUENT_TASK_CONSTRUCT')
    flow = sequent.Sequent('etl', store=':memory:')
    flow.add_step('a', func=os.getpid)
    assert flow() is True
    assert the_task(flow, 'a').result != here


def test_the_command_line_counts_over_a_steps_config(tmp_path):
    # semantics 8.4
    (tmp_path / 'my_flow.py').write_text(
        'import os, sequent as seq\n'
        "flow = seq.Sequent(store=':memory:', config={'task_construct': 'process'})\n"
        "flow.add_step('a', func=lambda: print('ran in', os.getpid(), os.getppid()),\n"
        "              config={'task_construct': 'thread', 'capture': 'none'})\n"
        "print('supervisor', os.getpid(), flush=True)\n")
    found = {}
    for name in ('inline', 'process'):
        process = subprocess.Popen(
            [sys.executable, '-m', 'sequent', 'my_flow', '--construct', name],
            cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors.decode()
        text = out.decode().split() + errors.decode().split()
        supervisor = text[text.index('supervisor') + 1]
        if 'ran' in text:
            found[name] = text[text.index('ran') + 2] == supervisor
    assert found == {'inline': True, 'process': False}


def test_stop_on_exception_is_inherited_and_overridden():
    # semantics 8.4
    calls = Calls()
    flow = a_flow(config={'stop_on_exception': True})
    loose = flow.add_step('s', config={'stop_on_exception': False})
    loose.add_step('a', func=fail)
    loose.add_step('b', func=calls)
    strict = loose.add_step('t', config={'stop_on_exception': True})
    strict.add_step('a', func=fail)
    strict.add_step('b', func=calls)
    assert flow() is False
    assert calls.names == ['s_b']


def test_max_concurrent_of_a_container_is_its_own_only():
    # semantics 8.4, 4.1: two steps in it run side by side, a loop in it does not
    meeting = threading.Barrier(2, timeout=20)
    flow = a_flow(construct='thread', config={'max_concurrent': 8})
    s = flow.add_step('s', config={'max_concurrent': 1})
    s.add_step('a', func=meeting.wait)
    s.add_step('b', func=meeting.wait)
    assert flow() is True


def test_max_concurrent_of_a_container_is_not_that_of_loops_in_it():
    # semantics 8.4, 1.4
    running, most, lock = [0], [0], threading.Lock()
    both = threading.Barrier(2)

    def one():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        try:
            both.wait(0.05)    # would be passed at once by a second one
        except threading.BrokenBarrierError:
            pass
        with lock:
            running[0] -= 1
    flow = a_flow(construct='thread', config={'max_concurrent': 8})
    outer = flow.add_step('s', config={'max_concurrent': 4})
    outer.add_step('t', loop=range(3)).add_step('x', func=one)
    assert flow() is True
    assert most == [1]


def test_each_step_may_have_another_construct(store):
    # semantics 4.12
    flow = a_flow(store, config={'start_method': 'fork'})
    before = ()
    for name in ('process', 'thread', 'inline'):
        before = (flow.add_step(name, config={'task_construct': name}, require=before,
                                func=lambda: (os.getpid(), threading.current_thread().name)),)
    assert flow() is True
    found = {path: result for (path, _), result in results(flow).items()}
    assert found['inline'] == (os.getpid(), threading.current_thread().name)
    assert found['thread'][0] == os.getpid() and found['thread'] != found['inline']
    assert found['process'][0] != os.getpid()


# 8.5 Folders

def test_tasks_run_in_the_supervisors_current_folder(construct, tmp_path, monkeypatch):
    # semantics 8.5
    here, work = tmp_path / 'here', tmp_path / 'work'
    here.mkdir()
    work.mkdir()
    monkeypatch.chdir(here)
    flow = a_flow(str(tmp_path / 'etl.db'), construct, config={'workdir': str(work)})

    def one():
        with open('made-by-%s' % sequent.current().name, 'w') as stream:
            stream.write('x')
        return os.getcwd()
    flow.add_step('a', func=one)
    assert flow() is True
    assert os.path.realpath(the_task(flow, 'a').result) == os.path.realpath(str(here))
    assert os.listdir(str(here)) == ['made-by-a']
    assert not any('made-by' in name for _, _, names in os.walk(str(work)) for name in names)


def held_by_this_process():
    """Return the descriptors, threads and children that this process has."""
    children = '/proc/self/task/%d/children' % os.getpid()
    if not os.path.exists(children):
        pytest.skip('not for systems that do not tell the children of a process')
    with open(children) as stream:
        listed = stream.read().split()
    return (sorted(os.readlink('/dev/fd/' + fd) for fd in os.listdir('/dev/fd')
                   if os.path.lexists('/dev/fd/' + fd) and int(fd) > 2),
            sorted(thread.name for thread in threading.enumerate()), listed)


@pytest.mark.parametrize('kind', ['process', 'thread', 'inline'])
def test_a_run_leaves_no_descriptor_thread_or_process(kind, tmp_path):
    # semantics 8.8
    def run(name):
        with a_flow(str(tmp_path / name), kind, config={'stop_on_exception': False}) as flow:
            flow.add_step('a', func=os.getpid, loop=range(5), config={'max_concurrent': 5})
            flow.add_step('b', func=fail)
            flow.add_step('c', command=['true'])
            assert flow.run() is False
    run('first.db')    # what Python keeps for ever is there now
    before = held_by_this_process()

    run('second.db')

    assert held_by_this_process() == before


def test_the_tasks_of_a_run_end_before_run_returns(store, journal):
    # semantics 8.8
    # nothing of it is left
    flow = a_flow(store, 'process', config={'max_concurrent': 3})
    for name in 'abc':
        flow.add_step(name, func=journal.sign, args=(name,))
    assert flow() is True
    assert not any(is_running(journal.pid(name)) for name in 'abc')
    assert collections.Counter(statuses(flow).values()) == {'success': 3}


def test_a_failure_stops_and_a_line_that_is_up_again_lets_it_go_on(store):
    # semantics 8.2, 7.1: another object is another run, or its recovery
    line = Line()
    flow = a_flow(store)
    flow.add_step('a', func=line)
    assert flow() is False
    line.down = False
    assert flow() is False
    assert len(line.calls) == 1
