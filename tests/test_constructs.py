"""The constructs that come with the library: the contract, and what is special about each."""

import faulthandler
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest


import sequent  # noqa: E402
from contracts import (  # noqa: E402
    PATIENCE,
    AdoptionContract,
    ConstructContract,
    add,
    fail,
    kill_supervisor,
    library_path,
    log_something,
    nothing,
    supervisor,
    touch,
    touch_and_wait,
    wait_until,
)
from sequent import (  # noqa: E402
    ConstructError,
    InlineConstruct,
    Job,
    Outcome,
    ProcessConstruct,
    StoreError,
    ThreadConstruct,
)

METHODS = multiprocessing.get_all_start_methods()


class TestInline(ConstructContract):
    def make_construct(self):
        return InlineConstruct()

    def test_it_runs_in_the_thread_of_the_driver(self, construct):
        job = self.job(threading.get_ident)
        construct.release([job])
        assert pickle.loads(construct.port.outcomes[job].result) == threading.get_ident()

    def test_a_function_that_accepts_eventor_gets_it(self, construct):
        for func in (lambda eventor: str(eventor), lambda *, eventor: str(eventor),
                     lambda **kwargs: str(kwargs['eventor']), Accepting()):
            outcome = self.run(construct, func, eventor='the flow')
            assert pickle.loads(outcome.result) == 'the flow'

    def test_a_function_that_does_not_is_called_without_it(self, construct):
        assert self.run(construct, add, 1, eventor='the flow').status == 'failure'  # **kwargs
        assert self.run(construct, fail, 'x', eventor='the flow').error == 'ValueError: x'
        assert self.run(construct, int, 7, eventor='the flow').status == 'success'

    def test_an_interrupt_of_a_stop_is_told_as_what_it_is(self, construct):
        def interrupted():
            construct.port.stopping = True
            raise KeyboardInterrupt
        outcome = self.run(construct, interrupted)
        assert (outcome.status, outcome.error) == ('failure', 'KeyboardInterrupt')


class Accepting:
    """A callable that cannot be hashed."""

    __hash__ = None

    def __call__(self, eventor):
        return str(eventor)


class TestThread(ConstructContract):
    has_environment = False

    def make_construct(self):
        return ThreadConstruct()

    def test_it_runs_in_a_daemon_thread(self, construct):
        def daemon():
            return threading.current_thread().daemon
        assert pickle.loads(self.run(construct, daemon).result) is True

    def test_what_ends_after_close_is_not_reported(self, construct):
        gate, over = threading.Event(), threading.Event()

        def wait():
            gate.wait(PATIENCE)
            over.set()
        job = self.job(wait)
        construct.release([job])
        construct.close()
        gate.set()
        assert over.wait(PATIENCE)
        construct.open(construct.port)
        assert job not in construct.port.outcomes

    def test_close_ends_the_threads_that_are_in_no_function(self, construct):
        before = threading.enumerate()    # a thread of an earlier test may end meanwhile
        for _ in range(200):
            jobs = [self.job(nothing) for _ in range(4)]
            self.start(construct, *jobs)
            for job in jobs:
                construct.port.outcome(construct, job)
            construct.close()
            assert set(threading.enumerate()) <= set(before)
            construct.open(construct.port)

    def test_records_of_side_by_side_tasks_go_to_their_own_logs(self, construct, tmp_path):
        barrier = threading.Barrier(2, timeout=PATIENCE)

        def log(name):
            import logging
            barrier.wait()
            logging.getLogger(name).warning('by %s', name)
        jobs = [self.job(log, name, log=str(tmp_path / name)) for name in ('a', 'b')]
        self.start(construct, *jobs)
        for job in jobs:
            construct.port.outcome(construct, job)
        assert (tmp_path / 'a').read_text().count('by a') == 1
        assert 'by b' not in (tmp_path / 'a').read_text()

    def test_a_task_that_logs_nothing_has_no_log_file(self, construct, tmp_path):
        self.run(construct, nothing, log=str(tmp_path / 'log'))
        assert not (tmp_path / 'log').exists()


# Processes #######################################################################


def die(number):
    faulthandler.disable()  # pytest's
    os.kill(os.getpid(), number)


def exit_at_once(code):
    os._exit(code)


def leave_a_daemon_and_die(path):
    """Die with a grandchild that holds all descriptors open."""
    pid = os.fork()
    if not pid:
        touch_and_wait(path)
    os._exit(7)


def with_a_stubborn_child(path):
    """Have a child that ignores SIGTERM."""
    if not os.fork():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        touch_and_wait(path)
    touch_and_wait(path + '.parent')


def large(size):
    return b'x' * size


def close_everything():
    os.closerange(3, 256)
    return 'done'


def print_lines():
    print('to stdout')
    print('to stderr: gr\xfcn', file=sys.stderr)
    os.write(1, b'raw\n')
    subprocess.check_call([sys.executable, '-c', 'print("of a program")'])
    print('unended', end='')


def signal_state():
    return (signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL,
            signal.getsignal(signal.SIGINT) == signal.default_int_handler,
            signal.set_wakeup_fd(-1), sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
            os.getpgid(0) == os.getpid())


def use_multiprocessing():
    context = multiprocessing.get_context('fork')
    with context.Pool(2) as pool:
        return pool.map(abs, [-1, -2])


def leave_a_thread(path):
    def work():
        wait_until(lambda: os.path.exists(path + '.go'))
        touch(path)
    threading.Thread(target=work).start()
    return 'returned'


class ProcessContract(ConstructContract):
    def make_construct(self):
        return ProcessConstruct()

    @pytest.fixture(autouse=True)
    def no_process_is_left(self, construct):
        yield
        construct.close()
        assert multiprocessing.active_children() == []
        construct.open(construct.port)

    @pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
    def test_a_death_by_a_signal_is_told(self, construct, number):
        outcome = self.run(construct, die, number)
        assert outcome.status == 'failure'
        assert outcome.error == 'died: signal %s' % signal.Signals(number).name

    @pytest.mark.parametrize('code', [0, 3])
    def test_an_exit_without_an_outcome_is_told(self, construct, code):
        outcome = self.run(construct, exit_at_once, code)
        assert outcome.status == 'failure'
        assert outcome.error.startswith('exited with code %d ' % code)

    def test_a_daemon_that_holds_the_pair_open_does_not_hide_a_death(self, construct, tmp_path):
        outcome = self.run(construct, leave_a_daemon_and_die, str(tmp_path / 'daemon'))
        wait_until(lambda: (tmp_path / 'daemon').exists() and (tmp_path / 'daemon').read_text())
        os.kill(int((tmp_path / 'daemon').read_text()), signal.SIGKILL)
        assert outcome.error.startswith('exited with code 7 ')

    def test_a_large_result_arrives(self, construct):
        outcome = self.run(construct, large, 20 << 20)
        assert len(pickle.loads(outcome.result)) == 20 << 20

    def test_a_child_killed_within_its_message_fails(self, construct):
        job = self.job(large, 20 << 20)
        self.start(construct, job)
        wait_until(lambda: construct.port.turn(construct) or job.state.inbox)
        os.kill(job.state.pid, signal.SIGKILL)
        outcome = construct.port.outcome(construct, job)
        construct.settle(job)
        assert outcome.error == 'died: signal SIGKILL'

    def test_a_function_that_closes_our_descriptor_leaves_its_outcome_in_the_file(
            self, construct, tmp_path):
        path = str(tmp_path / 'outcomes' / 'a')
        outcome = self.run(construct, close_everything, outcome=path)
        assert pickle.loads(outcome.result) == 'done'
        assert not os.path.exists(path)

    def test_nothing_runs_when_the_gate_closes_unreleased(self, construct, tmp_path):
        job = self.job(touch, str(tmp_path / 'ran'))
        construct.prepare(job)
        assert sequent.process_alive(job.process)
        construct.withdraw(job)
        wait_until(lambda: not sequent.process_alive(job.process))
        assert not (tmp_path / 'ran').exists()

    def test_a_child_stays_until_it_is_settled(self, construct):
        job = self.job(add, 1)
        self.start(construct, job)
        construct.port.outcome(construct, job)
        assert sequent.process_alive(job.process)
        construct.settle(job)
        wait_until(lambda: not sequent.process_alive(job.process))

    def test_a_child_that_has_exited_is_reaped_before_the_next_one_starts(self, construct):
        """While no job runs, nothing polls: a zombie would count as a process for ever."""
        # semantics 4.14
        job, another = self.job(add, 1), self.job(add, 2)
        self.start(construct, job)
        construct.port.outcome(construct, job)
        construct.settle(job)
        wait_until(lambda: not sequent.process_alive(job.process))
        construct.prepare(another)
        with pytest.raises(ProcessLookupError):
            os.kill(job.state.pid, 0)
        construct.withdraw(another)

    def test_output_goes_to_the_log_file(self, construct, tmp_path):
        path = tmp_path / 'log'
        path.write_bytes(b'earlier\n')
        self.run(construct, print_lines, log=str(path))
        assert sorted(path.read_bytes().decode('utf-8').splitlines()) == [
            'earlier', 'of a program', 'raw', 'to stderr: gr\xfcn', 'to stdout', 'unended']

    def test_streams_are_left_alone_without_capture(self, construct, tmp_path):
        config = dict(self.config, capture='none')
        self.run(construct, nothing, log=str(tmp_path / 'log'), config=config)
        assert not (tmp_path / 'log').exists()

    def test_a_symbolic_link_in_place_of_a_log_is_not_followed(self, construct, tmp_path):
        (tmp_path / 'precious').write_bytes(b'mine')
        (tmp_path / 'log').symlink_to(tmp_path / 'precious')
        outcome = self.run(construct, print_lines, log=str(tmp_path / 'log'))
        assert outcome.status == 'failure'
        assert str(tmp_path / 'log') in outcome.error
        assert (tmp_path / 'precious').read_bytes() == b'mine'

    def test_a_kill_by_force_ends_one_that_ignores_sigterm(self, construct, tmp_path):
        job = self.job(with_a_stubborn_child, str(tmp_path / 'x'))
        self.start(construct, job)
        paths = [tmp_path / 'x', tmp_path / 'x.parent']
        wait_until(lambda: all(path.exists() and path.read_text() for path in paths))
        pids = [int(path.read_text()) for path in paths]
        construct.kill(job, False)
        wait_until(lambda: not sequent.process_alive(job.process))
        for _ in range(5):
            construct.port.turn(construct)
        assert job not in construct.port.outcomes, 'a process of its group still has its time'
        construct.kill(job, True)
        outcome = construct.port.outcome(construct, job)
        construct.settle(job)
        assert outcome.error == 'died: signal SIGTERM'
        for pid in pids:
            wait_until(gone(sequent.process_identity(pid)))

    def test_a_stopped_process_can_be_killed(self, construct, tmp_path):
        job = self.job(touch_and_wait, str(tmp_path / 'x'))
        self.start(construct, job)
        wait_until((tmp_path / 'x').exists)
        os.kill(job.state.pid, signal.SIGSTOP)
        construct.kill(job, False)
        assert 'SIGTERM' in construct.port.outcome(construct, job).error
        construct.settle(job)

    def test_a_task_has_default_signals_and_a_group_of_its_own(self, construct):
        ends = os.pipe()
        os.set_blocking(ends[1], False)
        before = [(number, signal.signal(number, lambda *_: None))
                  for number in (signal.SIGTERM, signal.SIGUSR1)]
        # Whoever has started the tests may have it ignored.
        before.append((signal.SIGINT, signal.signal(signal.SIGINT, signal.default_int_handler)))
        wakeup = signal.set_wakeup_fd(ends[1])
        try:
            outcome = self.run(construct, signal_state)
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before:
                signal.signal(number, handler)
            for fd in ends:
                os.close(fd)
        assert pickle.loads(outcome.result) == (True, True, True, -1, [], True)

    def test_stdin_is_empty(self, construct):
        assert pickle.loads(self.run(construct, read_stdin).result) == ''

    def test_a_task_may_use_multiprocessing(self, construct):
        assert pickle.loads(self.run(construct, use_multiprocessing).result) == [1, 2]

    def test_a_task_is_not_over_before_its_threads_are(self, construct, tmp_path):
        job = self.job(leave_a_thread, str(tmp_path / 'x'))
        self.start(construct, job)
        for _ in range(5):
            construct.port.turn(construct)
        assert job not in construct.port.outcomes
        touch(str(tmp_path / 'x.go'))
        assert pickle.loads(construct.port.outcome(construct, job).result) == 'returned'
        construct.settle(job)
        assert (tmp_path / 'x').exists()

    def test_a_function_of_a_thread_of_the_task_sees_where_it_runs(self, construct):
        outcome = self.run(construct, name_in_thread, name='a')
        assert pickle.loads(outcome.result) == 'a'


def read_stdin():
    return sys.stdin.read()


def name_in_thread():
    names = []
    thread = threading.Thread(target=lambda: names.append(sequent.current().name))
    thread.start()
    thread.join()
    return names[0]


def own_sockets():
    """Return the number of sockets that are open here."""
    links = [os.path.join('/proc/self/fd', fd) for fd in os.listdir('/proc/self/fd')]
    return sum(os.path.lexists(link) and os.readlink(link).startswith('socket:')
               for link in links)


@pytest.mark.skipif('fork' not in METHODS, reason='not for systems without fork')
class TestForkedProcess(ProcessContract):
    config = {'start_method': 'fork'}

    def test_a_lambda_runs(self, construct):
        assert pickle.loads(self.run(construct, lambda: 7).result) == 7

    @pytest.mark.skipif(not os.path.isdir('/proc/self/fd'), reason='not for systems without /proc')
    def test_a_child_has_none_of_its_siblings_descriptors(self, construct, tmp_path):
        alone = self.job(own_sockets)
        self.start(construct, alone)
        expected = pickle.loads(construct.port.outcome(construct, alone).result)
        construct.settle(alone)
        siblings = [self.job(touch_and_wait, str(tmp_path / str(n))) for n in range(4)]
        self.start(construct, *siblings)
        last = self.job(own_sockets)
        self.start(construct, last)
        found = pickle.loads(construct.port.outcome(construct, last).result)
        construct.settle(last)
        assert found == expected

    def test_private_descriptors_are_closed_in_the_child(self, construct):
        ends = os.pipe()
        construct.port.private_fds = lambda: list(ends)

        def closed():
            for fd in ends:
                with pytest.raises(OSError):
                    os.fstat(fd)
        outcome = self.run(construct, closed)
        for fd in ends:
            os.close(fd)
        assert outcome.status == 'success', outcome

    def test_a_fork_that_fails_is_an_os_error_and_leaves_nothing(self, construct, monkeypatch):
        before = set(os.listdir('/proc/self/fd'))

        def no_fork():
            raise BlockingIOError(11, 'Resource temporarily unavailable')
        with monkeypatch.context() as patch:
            patch.setattr(os, 'fork', no_fork)
            with pytest.raises(OSError):
                construct.prepare(self.job(nothing))
        after = set(os.listdir('/proc/self/fd'))
        assert after == before

    def test_what_it_logs_is_not_logged_twice(self, construct, tmp_path, own_logging):
        thread = ThreadConstruct()
        thread.open(construct.port)
        try:
            self.run(construct, log_something, log=str(tmp_path / 'log'))
        finally:
            thread.close()
        assert (tmp_path / 'log').read_bytes().decode('utf-8').count('seen') == 1


class NewInterpreter(ProcessContract):
    @pytest.mark.parametrize('func', [lambda: 7, threading.Lock().acquire])
    def test_a_function_that_cannot_be_sent_is_refused_by_name(self, construct, func):
        with pytest.raises(ConstructError) as info:
            construct.check('load', func, (), {}, self.config)
        assert "step 'load': its function cannot be sent" in str(info.value)
        assert "start_method 'fork'" in str(info.value)

    def test_arguments_that_cannot_be_sent_are_refused(self, construct):
        with pytest.raises(ConstructError) as info:
            construct.check('load', add, (threading.Lock(),), {}, self.config)
        assert 'its arguments cannot be sent' in str(info.value)

    def test_a_loop_item_that_cannot_be_sent_is_refused(self, construct):
        with pytest.raises(sequent.ConstructError, match='cannot be sent'):
            construct.prepare(self.job(nothing, items=(threading.Lock(),)))

    def test_a_loop_item_that_cannot_be_sent_fails_its_task(self, construct):
        flow = sequent.Sequent(store=':memory:', config={
            'start_method': self.config['start_method'], 'stop_on_exception': False})
        loop = flow.add_step('loop', loop=[1, threading.Lock()])
        loop.add_step('leaf', func=nothing)
        assert flow.run() is False
        tasks = {task.sequence: task for task in flow.tasks() if task.path == 'loop_leaf'}
        assert (tasks['1.1'].status, tasks['1.2'].status) == ('success', 'failure')
        assert 'cannot be sent' in tasks['1.2'].error

    def test_main_is_where_it_was(self, construct):
        main = sys.modules['__main__']
        self.run(construct, nothing)
        assert sys.modules['__main__'] is main

    def test_a_function_of_main_is_found_without_running_main_twice(self, tmp_path):
        program = tmp_path / 'program.py'
        program.write_text(textwrap.dedent('''
            import sequent as seq
            from contracts import LoopPort

            def work():
                return 'worked'

            print('loaded', __name__, flush=True)
            if seq.in_child():
                raise seq.LoadEnds()

            def run():
                construct = seq.ProcessConstruct()
                port = LoopPort()
                construct.open(port)
                job = seq.Job('a', func=work, config={'start_method': %r, 'capture': 'none'})
                construct.prepare(job)
                construct.release([job])
                outcome = port.outcome(construct, job)
                construct.settle(job)
                construct.close()
                return outcome

            print(run())
            ''') % self.config['start_method'])
        output = run_program(program)
        assert output.count('loaded __main__') == 1
        assert output.count('loaded __mp_main__') == 1
        assert "status='success'" in output

    def test_a_module_whose_loading_ends_early_still_gives_its_functions(self, tmp_path):
        (tmp_path / 'flow_module.py').write_text(textwrap.dedent('''
            import sequent as seq

            def work():
                return 'worked'

            if seq.in_child():
                raise seq.LoadEnds()
            '''))
        program = tmp_path / 'program.py'
        program.write_text(textwrap.dedent('''
            import sequent as seq
            import flow_module
            from contracts import LoopPort
            construct = seq.ProcessConstruct()
            port = LoopPort()
            construct.open(port)
            job = seq.Job('a', func=flow_module.work, config={'start_method': %r})
            construct.prepare(job)
            construct.release([job])
            print(port.outcome(construct, job))
            construct.settle(job)
            construct.close()
            ''') % self.config['start_method'])
        assert "status='success'" in run_program(program)


@pytest.mark.skipif('spawn' not in METHODS, reason='not for systems without spawn')
class TestSpawnedProcess(NewInterpreter):
    config = {'start_method': 'spawn'}


@pytest.mark.skipif('forkserver' not in METHODS or sys.version_info < (3, 7),
                    reason='not for systems without forkserver, nor for that of Python 3.6')
class TestForkserverProcess(NewInterpreter):
    config = {'start_method': 'forkserver'}


def test_an_unknown_start_method_is_refused():
    with pytest.raises(ConstructError) as info:
        ProcessConstruct().check('a', nothing, (), {}, {'start_method': 'sprawn'})
    assert "step 'a'" in str(info.value)
    assert "did you mean 'spawn'?" in str(info.value)


# A supervisor that dies ##########################################################


def run_program(program):
    return subprocess.check_output([sys.executable, str(program)], env=library_path(),
                                   universal_newlines=True, timeout=4 * PATIENCE)


def gone(identity):
    return lambda: not sequent.process_alive(identity)


@pytest.mark.skipif('fork' not in METHODS, reason='not for systems without fork')
class TestOrphans(AdoptionContract):
    STRANGE = '{"host": "afar", "boot": "b", "ns": "n", "pid": 1, "start": 1}'
    KILLED = 'without leaving an outcome'

    def make_construct(self):
        return ProcessConstruct()

    def test_children_at_their_gates_run_nothing_when_the_supervisor_dies(self, tmp_path):
        process = supervisor(tmp_path, '''
            say([make('a%d' % n, touch, path('ran')) for n in range(5)])
            time.sleep(600)
            ''')
        for identity in kill_supervisor(process, 5):
            wait_until(gone(identity))
        assert not (tmp_path / 'ran').exists()
        assert not (tmp_path / 'outcomes').exists()

    def test_running_children_finish_and_leave_their_outcomes(self, tmp_path):
        process = supervisor(tmp_path, '''
            jobs = [make('a%d' % n, wait_for_go, folder, 'a%d' % n) for n in range(5)]
            for job in jobs:
                construct.release([job])
            wait_until(lambda: all(os.path.exists(path('a%d.runs' % n)) for n in range(5)))
            say(jobs)
            time.sleep(600)
            ''')
        identities = kill_supervisor(process, 5)
        for n in (4, 0, 1, 2, 3):  # each notices on its own, whichever siblings live
            touch(str(tmp_path / ('a%d.go' % n)))
            wait_until(gone(identities[n]))
            outcome = sequent.read_outcome(str(tmp_path / 'outcomes' / ('a%d' % n)))
            assert outcome.status == 'success'
            assert pickle.loads(outcome.result) == 'a%d' % n
            assert abs(outcome.ended - time.time()) < 10 * PATIENCE
        assert sorted(os.listdir(str(tmp_path / 'outcomes'))) == ['a0', 'a1', 'a2', 'a3', 'a4']
        assert (tmp_path / 'outcomes').stat().st_mode & 0o777 == 0o700
        assert (tmp_path / 'outcomes' / 'a0').stat().st_mode & 0o777 == 0o600

    def test_an_outcome_that_was_delivered_and_not_settled_is_left(self, tmp_path):
        process = supervisor(tmp_path, '''
            job = make('a', add, 3)
            construct.release([job])
            port.outcome(construct, job)
            say([job])
            time.sleep(600)
            ''')
        identity, = kill_supervisor(process, 1)
        wait_until(gone(identity))
        outcome = sequent.read_outcome(str(tmp_path / 'outcomes' / 'a'))
        assert pickle.loads(outcome.result) == 3

    def test_a_settled_outcome_is_not_left(self, tmp_path):
        process = supervisor(tmp_path, '''
            job = make('a', add, 3)
            construct.release([job])
            port.outcome(construct, job)
            construct.settle(job)
            say([job])
            time.sleep(600)
            ''')
        identity, = kill_supervisor(process, 1)
        wait_until(gone(identity))
        assert not (tmp_path / 'outcomes').exists()

    def test_a_stopped_supervisor_is_waited_for(self, tmp_path):
        process = supervisor(tmp_path, '''
            job = make('a', wait_for_go, folder, 'a')
            construct.release([job])
            wait_until(lambda: os.path.exists(path('a.runs')))
            say([job])
            print(port.outcome(construct, job).status, flush=True)
            construct.settle(job)
            construct.close()
            ''')
        identity = process.stdout.readline().strip()
        os.kill(process.pid, signal.SIGSTOP)
        touch(str(tmp_path / 'a.go'))
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert sequent.process_alive(identity)
        os.kill(process.pid, signal.SIGCONT)
        assert process.stdout.readline() == 'success\n'
        assert process.wait() == 0
        process.stdout.close()
        assert not (tmp_path / 'outcomes').exists()

    def test_the_end_of_a_supervisor_runs_its_exit_functions_once(self, tmp_path):
        process = supervisor(tmp_path, '''
            import atexit
            atexit.register(print, 'at exit', flush=True)
            job = make('a', add, 3)
            construct.release([job])
            port.outcome(construct, job)
            construct.settle(job)
            construct.close()
            ''')
        assert process.communicate()[0] == 'at exit\n'


class TestOutcomeFiles:
    OUTCOME = Outcome('failure', 'ValueError: gr\xfcn', 'Trace\n', b'\x80\x04N.', 'w', False, 5.5)

    def test_an_outcome_comes_back_as_it_was(self, tmp_path):
        path = str(tmp_path / 'new' / 'a')
        sequent.write_outcome(path, self.OUTCOME)
        assert sequent.read_outcome(path) == self.OUTCOME
        assert os.listdir(os.path.dirname(path)) == ['a']

    def test_where_there_is_none_there_is_none(self, tmp_path):
        assert sequent.read_outcome(str(tmp_path / 'a')) is None

    @pytest.mark.parametrize('content', [b'', b'[]', b'{"status": 1, "x": 2}', b'\xff', b'{}'])
    def test_a_damaged_one_is_an_error(self, tmp_path, content):
        (tmp_path / 'a').write_bytes(content)
        (tmp_path / 'a').chmod(0o600)
        with pytest.raises(StoreError) as info:
            sequent.read_outcome(str(tmp_path / 'a'))
        assert 'damaged' in str(info.value)

    def test_one_that_others_could_have_written_is_refused(self, tmp_path):
        path = tmp_path / 'a'
        sequent.write_outcome(str(path), self.OUTCOME)
        path.chmod(0o620)
        with pytest.raises(StoreError) as info:
            sequent.read_outcome(str(path))
        assert 'another user' in str(info.value)

    def test_a_symbolic_link_is_refused(self, tmp_path):
        sequent.write_outcome(str(tmp_path / 'a'), self.OUTCOME)
        (tmp_path / 'b').symlink_to(tmp_path / 'a')
        with pytest.raises(StoreError):
            sequent.read_outcome(str(tmp_path / 'b'))


# Logs ############################################################################


class TestLogPath:
    def path(self, flow='f', run_id='r', name='n', sequence='1.2'):
        return sequent.log_path('/logs', flow, run_id, name, sequence, 3, 4)

    def test_it_names_flow_run_step_sequence_recovery_and_attempt(self):
        assert self.path() == '/logs/f/r/n.1.2.3.4.log'

    def test_all_but_letters_digits_dot_underscore_and_dash_is_encoded(self):
        assert self.path('a b/c', '\xfc', '~A-z_0.9%') == (
            '/logs/a%20b%2Fc/%C3%BC/%7EA-z_0.9%25.1.2.3.4.log')

    def test_leading_dots_are_encoded(self):
        assert self.path('..', '.r', '...n.') == '/logs/%2E%2E/%2Er/%2E%2E%2En..1.2.3.4.log'

    def test_long_parts_are_cut_and_told_apart_by_a_hash(self):
        first, second = self.path('f' * 300 + '1'), self.path('f' * 300 + '2')
        assert first != second
        assert len(os.path.dirname(os.path.dirname(first))) == len('/logs/') + 100
        assert self.path('f' * 100) == '/logs/%s/r/n.1.2.3.4.log' % ('f' * 100)


class TestLogRelay:
    @pytest.fixture
    def job(self, tmp_path):
        return Job('a', log=str(tmp_path / 'log'))

    @pytest.fixture
    def relay(self, job):
        relay = sequent.LogRelay()
        relay.add(job)
        return relay

    def append(self, job, content):
        with open(job.log, 'ab') as log:
            log.write(content)

    def test_complete_lines_are_relayed_unchanged(self, relay, job, capfdbinary):
        relay.poll()
        self.append(job, b'one\ntwo \xff\nthr')
        relay.poll()
        assert capfdbinary.readouterr().err == b'one\ntwo \xff\n'
        self.append(job, b'ee\n')
        relay.poll()
        relay.poll()
        assert capfdbinary.readouterr().err == b'three\n'

    def test_the_rest_is_relayed_at_the_end_with_a_newline(self, relay, job, capfdbinary):
        self.append(job, b'one\ntwo')
        relay.finish(job)
        assert capfdbinary.readouterr().err == b'one\ntwo\n'
        self.append(job, b'three\n')
        relay.poll()
        assert capfdbinary.readouterr().err == b''    # The job is forgotten.

    def test_a_line_without_end_is_relayed_in_pieces(self, relay, job, capfdbinary):
        self.append(job, b'x' * (relay.CHUNK + 5))
        relay.poll()
        assert len(capfdbinary.readouterr().err) == relay.CHUNK
        relay.finish(job)
        assert capfdbinary.readouterr().err == b'xxxxx\n'

    def test_a_talkative_task_does_not_keep_the_driver(self, relay, job, capfdbinary):
        relay.CHUNK = 100
        self.append(job, b'line\n' * 1000)
        relay.poll()
        assert len(capfdbinary.readouterr().err) == 100 * relay.TURN
        relay.finish(job)
        assert len(capfdbinary.readouterr().err) == 5000 - 100 * relay.TURN

    def test_what_stood_there_before_is_not_relayed(self, job, capfdbinary):
        self.append(job, b'earlier\n')
        relay = sequent.LogRelay()
        relay.add(job)
        self.append(job, b'later\n')
        relay.finish(job)
        assert capfdbinary.readouterr().err == b'later\n'

    def test_a_log_that_is_not_there_is_no_error(self, relay, job, capfdbinary):
        relay.finish(job)
        assert capfdbinary.readouterr().err == b''

    def test_a_broken_stderr_turns_it_off_with_one_warning(self, relay, job, monkeypatch, caplog):
        class Broken:
            def write(self, *text):
                raise BrokenPipeError(32, 'Broken pipe')

            flush = write
        monkeypatch.setattr(sys, 'stderr', Broken())
        for _ in range(3):
            self.append(job, b'line\n')
            relay.poll()
        relay.finish(job)
        assert [record.levelname for record in caplog.records] == ['WARNING']

    def test_a_stderr_of_text_only_is_served(self, relay, job, monkeypatch):
        written = []

        class Text:
            write = staticmethod(written.append)

            def flush(self):
                pass
        monkeypatch.setattr(sys, 'stderr', Text())
        self.append(job, b'gr\xc3\xbcn \xff\n')
        relay.finish(job)
        assert written == ['gr\xfcn \\xff\n']


class TestLogging:
    def run(self, tmp_path, body):
        program = tmp_path / 'program.py'
        program.write_text('import logging, sys\nimport sequent as seq\n' + textwrap.dedent(body))
        return subprocess.check_output([sys.executable, str(program)], stderr=subprocess.STDOUT,
                                       env=library_path(), universal_newlines=True)

    def test_it_is_set_up_where_nobody_has(self, tmp_path):
        output = self.run(tmp_path, '''
            seq.install_logging(logging.INFO)
            seq.install_logging(logging.INFO)
            logging.getLogger('a').info('hello')
            logging.getLogger('a').debug('not this')
            ''')
        assert output.count('[ INFO ][ hello ]') == 1
        assert 'not this' not in output

    def test_an_application_that_has_done_so_is_left_alone(self, tmp_path):
        output = self.run(tmp_path, '''
            logging.basicConfig(format='mine %(message)s', level=logging.ERROR)
            seq.install_logging(logging.INFO)
            logging.getLogger('a').info('hello')
            logging.getLogger('a').error('bad')
            ''')
        assert output == 'mine bad\n'

    def test_it_writes_to_what_stderr_is_then(self, tmp_path):
        output = self.run(tmp_path, '''
            import io
            seq.install_logging(logging.INFO)
            sys.stderr = io.StringIO()
            logging.getLogger('a').info('hello')
            print('caught', sys.stderr.getvalue())
            ''')
        assert output.startswith('caught [ ')


# Which construct #################################################################


class TestFindConstruct:
    @pytest.mark.parametrize('spec, kind', [
        ('process', ProcessConstruct), ('thread', ThreadConstruct), ('inline', InlineConstruct),
        ('invoke', InlineConstruct), (threading.Thread, ThreadConstruct),
        (multiprocessing.Process, ProcessConstruct), (InlineConstruct, InlineConstruct),
        ('sequent:ThreadConstruct', ThreadConstruct)])
    def test_it_is_found_by(self, spec, kind):
        assert type(sequent.find_construct(spec)) is kind

    def test_an_instance_is_itself(self):
        construct = InlineConstruct()
        assert sequent.find_construct(construct) is construct

    def test_an_unknown_name_gives_the_nearest(self):
        with pytest.raises(ConstructError) as info:
            sequent.find_construct('proces')
        assert str(info.value).startswith(
            "no task construct 'proces'; did you mean 'process'? Known: process, thread, inline")

    @pytest.mark.parametrize('spec', ['no.such:Class', 'os:Missing', ':', 'os:path', int, 7, None,
                                      'a b', '', sequent.TaskConstruct])
    def test_what_is_none_is_refused(self, spec):
        with pytest.raises(ConstructError):
            sequent.find_construct(spec)


def test_current_outside_a_task_says_what_it_is_for():
    with pytest.raises(LookupError) as info:
        sequent.current()
    assert 'functions that steps call' in str(info.value)


# What comes back from a function twice ############################################

def fork_and_leave(how):
    """Fork a process that leaves the function in a way of its own; then fail, after its end."""
    pid = os.fork()
    if pid == 0:
        if how == 'exit':
            sys.exit(0)
        if how == 'raise':
            raise RuntimeError('in the forked process')
        return 'forked'
    os.waitpid(pid, 0)
    raise ValueError('the task itself')


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='not for this platform: it has no fork')
@pytest.mark.parametrize('how', ['exit', 'raise', 'return'])
@pytest.mark.parametrize('name', ['process', 'inline', 'thread'])
def test_a_process_that_a_function_forked_is_not_taken_for_the_task(name, how, capfd):
    flow = sequent.Sequent('fork', ':memory:', config={'task_construct': name})
    flow.add_step('a', func=fork_and_leave, args=(how,))
    assert flow() is False
    [task] = flow.tasks()
    assert task.error == 'ValueError: the task itself'
