"""Many short steps in a pool of worker processes: task construct ``'pool'``."""

import collections
import concurrent.futures.process
import contextlib
import fcntl
import multiprocessing
import multiprocessing.connection
import os
import signal
import sqlite3
import sys
import threading
import time
import types

import pytest

import sequent as seq
from contracts import ConstructContract, LoopPort
from runtools import (  # noqa: F401 (fixtures)
    Journal, a_flow, a_private_temporary_folder, fail, is_running, journal, programs, read,
    records_of, results, statuses, the_task, wait_gone, wait_until)
from sequent.pool import PoolConstruct

METHODS = ['fork', 'spawn', 'forkserver'] if sys.version_info >= (3, 7) else ['fork']
other_methods = pytest.mark.skipif(len(METHODS) == 1, reason='not for 3.6: its pools only fork')


class TestPool(ConstructContract):
    config = {'start_method': 'fork'}

    def make_construct(self):
        return PoolConstruct()


@other_methods
class TestPoolBySpawn(ConstructContract):
    config = {'start_method': 'spawn'}

    def make_construct(self):
        return PoolConstruct()


def pool_flow(store=None, cap=2, **given):
    """Return a flow that runs its steps in a pool; its store keeps all."""
    config = dict({'max_concurrent': cap, 'stop_on_exception': False}, **given.pop('config', {}))
    return a_flow(seq.MemoryStore() if store is None else store, 'pool', config=config, **given)


def add_many(parent, n, func, *args, **given):
    return [parent.add_step('s%d' % number, func=func, args=args, **given)
            for number in range(n)]


def warm(flow):
    """Add what makes the pool know that steps are short: only then they are queued."""
    box = flow.add_step('warm')
    add_many(box, 30, int)
    return box


class Watched(seq.SqliteStore):
    """Notes what is committed, and opens gates of a journal by it."""

    def __init__(self, path, journal=None):  # noqa: F811
        super().__init__(path)
        self.journal = journal
        self.commits = []    # {path: status}
        self.most = 0        # how many tasks have been active at one time
        self._latest = {}

    def commit(self, run, tasks):
        super().commit(run, tasks)
        self.commits.append({one.path: one.status for one in tasks})
        self._latest.update(self.commits[-1])
        self.most = max(self.most, sum(one == 'active' for one in self._latest.values()))
        if self.journal is not None and any(one.status == 'failure' for one in tasks):
            self.journal.open('failed')


@pytest.fixture
def watched(tmp_path, journal):  # noqa: F811
    return Watched(str(tmp_path / 'etl.db'), journal)


# What steps call; at the top of a module, so that it can be sent.


def whereabouts():
    task = seq.current()
    return (os.getpid(), task.name, task.sequence, task.item, os.environ['SEQUENT_STEP_NAME'],
            os.environ.get('SEQUENT_LOOP_VALUE'))


def double(value):
    return 2 * value


def kill_me(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    threading.Event().wait(60)


def note(journal):  # noqa: F811
    journal.note('%s.%s' % (seq.current().name, seq.current().attempt))


def note_and_wait(journal, gate):  # noqa: F811
    note(journal)
    journal.sign(seq.current().name)
    journal.pass_gate(gate)


def die_once(journal, number):  # noqa: F811
    note(journal)
    if seq.current().attempt == 1:
        os._exit(number)


# What runs where ##################################################################


@pytest.mark.parametrize('method', METHODS)
def test_steps_run_in_a_few_workers_and_know_where_they_are(method):
    flow = pool_flow(config={'start_method': method})
    loop = flow.add_step('loop', loop=['x', 'y'], config={'max_concurrent': 2})
    add_many(loop, 5, whereabouts)
    flow.add_step('last', func=whereabouts, require=loop)

    assert flow.run() is True

    found = results(flow)
    assert the_task(flow, 'last').result[1:] == ('last', '1', None, 'last', None)
    assert len(found) == 11
    assert len({one[0] for one in found.values()} - {os.getpid()}) <= 2
    del found['last', '1']
    for (path, sequence), (_, *rest) in found.items():
        item = 'x' if sequence == '1.1' else 'y'
        assert rest == [path, sequence, item, path, item]


def test_what_cannot_be_pickled_is_inherited_by_workers_that_are_forked():
    lock = threading.Lock()
    flow = pool_flow()
    flow.add_step('a', func=lambda known: 20 + known.locked(), args=(lock,))
    with lock:
        assert flow.run() is True

    assert the_task(flow, 'a').result == 21


def test_what_is_filled_into_arguments_is_sent():
    flow = pool_flow()
    a = flow.add_step('a', func=double, args=(4,))
    each = flow.add_step('each', loop=[1, 2], require=a)
    each.add_step('b', func=double, kwargs={'value': each.item})
    flow.add_step('c', func=lambda *args: args, args=([a.result], 'x'))

    assert flow.run() is True

    assert results(flow) == {('a', '1'): 8, ('each_b', '1.1'): 2, ('each_b', '1.2'): 4,
                             ('c', '1'): ([8], 'x')}


def test_a_failure_is_told_as_by_any_construct():
    flow = pool_flow()
    flow.add_step('a', func=fail, args=('no such city',))

    assert flow.run() is False

    assert the_task(flow, 'a').error == 'ValueError: no such city'


def test_a_loop_item_that_cannot_be_pickled_fails_its_task_alone():
    flow = pool_flow(config={'keep_result': False})
    flow.add_step('loop', loop=[threading.Lock()]).add_step('a', func=int)
    flow.add_step('b', func=int)

    assert flow.run() is False

    assert 'cannot be sent to a worker of the pool' in the_task(flow, 'loop_a').error
    assert the_task(flow, 'b').status == 'success'


@other_methods
def test_what_a_worker_cannot_load_fails_the_task_alone(monkeypatch):
    module = types.ModuleType('only_here')
    exec('def function(): pass', vars(module))
    monkeypatch.setitem(sys.modules, 'only_here', module)
    flow = pool_flow(config={'start_method': 'spawn'})
    flow.add_step('a', func=module.function)
    flow.add_step('b', func=int)

    assert flow.run() is False

    assert "could not be started: ModuleNotFoundError: No module named 'only_here'" in the_task(
        flow, 'a').error
    assert the_task(flow, 'b').status == 'success'


@other_methods
def test_what_cannot_be_sent_is_refused_before_anything_starts():
    flow = pool_flow(config={'start_method': 'spawn'})
    flow.add_step('a', func=lambda: 1)

    with pytest.raises(seq.ConstructError, match="step 'a': its function cannot be sent"):
        flow.run()


def test_two_start_methods_in_one_pool_are_refused():
    flow = pool_flow()
    flow.add_step('a', func=int)
    flow.add_step('b', func=int, config={'start_method': 'spawn'})

    with pytest.raises(seq.ConstructError, match="step 'b': it cannot have the start_method"):
        flow.run()


def test_a_timeout_is_refused():
    # semantics 4.9
    flow = pool_flow(config={'timeout': 5})
    flow.add_step('a', func=int)

    with pytest.raises(seq.ConfigError, match="'a': config timeout needs a construct that can"):
        flow.run()


# Concurrency ######################################################################


def occupy(folder, slots):
    """Hold one of so many slots for a moment; fail if all are taken."""
    with contextlib.ExitStack() as stack:
        for number in range(slots):
            file = stack.enter_context(open(os.path.join(folder, 'slot-%d' % number), 'w'))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                pass
        else:
            raise RuntimeError('more run than may')
        threading.Event().wait(0.002)


@pytest.mark.parametrize('cap', [1, 2, 3])
def test_no_more_functions_run_than_the_cap_says(tmp_path, cap):
    # semantics 4.13
    flow = pool_flow(cap=cap)
    box = flow.add_step('box', require=warm(flow))
    add_many(box, 100, occupy, str(tmp_path), cap)

    assert flow.run() is True


def test_no_more_functions_run_than_the_cap_says_beside_other_constructs(tmp_path):
    flow = pool_flow()
    box = flow.add_step('box', require=warm(flow))
    for number, _ in enumerate(add_many(box, 60, occupy, str(tmp_path), 2)):
        if number % 4 == 1:
            box.add_step('t%d' % number, func=occupy, args=(str(tmp_path), 2), config={
                'task_construct': 'inline' if number % 8 == 1 else 'process'})

    assert flow.run() is True


def test_without_a_cap_there_are_as_many_workers_as_cpus():
    flow = pool_flow(cap=0)
    box = flow.add_step('box', require=warm(flow))
    add_many(box, 200, os.getpid)

    assert flow.run() is True

    assert len(set(results(flow).values()) - {0}) <= os.cpu_count()


def test_a_limit_on_a_step_and_resources_hold_in_the_pool(tmp_path):
    flow = pool_flow(cap=3)
    one = seq.ResourcePool('one', 1)
    box = flow.add_step('box', require=warm(flow))
    add_many(box, 20, occupy, str(tmp_path), 1, acquires=[(one, 1)])
    add_many(box.add_step('others'), 50, int)

    assert flow.run() is True


def test_what_waits_for_a_step_to_be_active_does_not_start_while_that_is_queued(journal):  # noqa: F811,E501
    flow = pool_flow(cap=1)
    box = flow.add_step('box', require=warm(flow))
    box.add_step('before', func=note, args=(journal,))
    a = box.add_step('a', func=note, args=(journal,))
    box.add_step('b', func=note, args=(journal,), require=((a, seq.STEP_ACTIVE),),
                 config={'task_construct': 'inline'})

    assert flow.run() is True

    assert journal.words().index('box_before.1') < journal.words().index('box_b.1')


# Commits ##########################################################################


def recorded_status(path):
    """Return the status of the task that is running, as another program sees it."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as database:
        [[status]] = database.execute('SELECT status FROM tasks WHERE path = ?',
                                      (seq.current().name,)).fetchall()
    return status


def test_independent_steps_share_commits(watched):
    # semantics 6.2
    flow = pool_flow(watched)
    add_many(flow, 1000, int)

    assert flow.run() is True

    assert len(watched.commits) < 200 and watched.most > 20


def test_no_step_begins_before_it_is_stored_as_active(watched):
    # semantics 4.13
    flow = pool_flow(watched)
    add_many(flow.add_step('box', require=warm(flow)), 200, recorded_status, watched.path)

    assert flow.run() is True

    assert collections.Counter(results(flow).values()) == {0: 30, 'active': 200}


def test_a_success_is_stored_before_what_requires_it_begins(watched):
    flow = pool_flow(watched)
    step = warm(flow)
    for number in range(20):
        step = flow.add_step('s%d' % number, func=int, require=step)

    assert flow.run() is True

    for number in range(1, 20):
        ended = next(n for n, one in enumerate(watched.commits)
                     if one.get('s%d' % (number - 1)) == 'success')
        began = next(n for n, one in enumerate(watched.commits)
                     if one.get('s%d' % number) == 'active')
        assert ended <= began


def test_a_success_is_stored_within_the_window_though_others_run_on(watched, journal):  # noqa: F811
    flow = pool_flow(watched, config={'group_commit': 0.05})
    flow.add_step('long', func=note_and_wait, args=(journal, 'stored'))
    add_many(flow, 50, int)
    thread = threading.Thread(target=lambda: (
        wait_until(lambda: any('s49' in one for one in watched.commits
                               if one.get('s49') == 'success'), 'the last commit'),
        journal.open('stored')))
    thread.start()

    assert flow.run() is True

    thread.join()


def test_without_group_commit_nothing_is_queued(watched):
    flow = pool_flow(watched, config={'group_commit': 0})
    add_many(flow, 60, int)

    assert flow.run() is True

    assert watched.most <= 2


# What dies ########################################################################


def test_a_step_that_dies_fails_and_the_rest_goes_on():
    # semantics 4.13
    flow = pool_flow()
    box = flow.add_step('box', require=warm(flow))
    dying = [box.add_step('dying%d' % number, func=function, args=args)
             for number, (function, args) in enumerate([
                 (kill_me, ()), (os._exit, (3,)), (os._exit, (0,)), (kill_me, (signal.SIGTERM,))])]
    after = add_many(flow, 10, int, require=((box, seq.STEP_COMPLETE),))

    flow.run()

    found = statuses(flow)
    assert [found[step.path] for step in dying] == ['failure'] * 4
    assert {found[step.path] for step in after} == {'success'}
    errors = {the_task(flow, step.path).error for step in dying}
    assert errors & {'its worker died: signal SIGKILL', 'its worker exited with code 3'}


@pytest.mark.parametrize('method', METHODS)
def test_how_a_worker_died_is_told(method):
    flow = pool_flow(cap=1, config={'start_method': method})
    flow.add_step('a', func=kill_me)
    flow.add_step('b', func=os._exit, args=(3,))
    flow.add_step('c', func=whereabouts)

    assert flow.run() is False

    assert the_task(flow, 'a').error == 'its worker died: signal SIGKILL'
    assert the_task(flow, 'b').error == 'its worker exited with code 3'
    assert the_task(flow, 'c').status == 'success'


def test_what_ran_beside_a_worker_that_is_killed_is_ended_and_fails(journal):  # noqa: F811
    flow = pool_flow()
    flow.add_step('victim', func=note_and_wait, args=(journal, 'never'))
    beside = flow.add_step('beside', func=note_and_wait, args=(journal, 'never'))
    flow.add_step('after', func=is_running_still, args=(journal, 'beside'),
                  require=((beside, seq.STEP_FAILURE),))
    thread = threading.Thread(target=lambda: (
        journal.pid('beside'), os.kill(journal.pid('victim'), signal.SIGKILL)))
    thread.start()

    assert flow.run() is False

    thread.join()
    assert the_task(flow, 'victim').error == 'its worker died: signal SIGKILL'
    assert the_task(flow, 'beside').error == (
        'its worker was ended, as another one of the pool died: signal SIGKILL')
    assert the_task(flow, 'after').result is False


def is_running_still(journal, name):  # noqa: F811
    return is_running(journal.pid(name))


def test_what_was_queued_when_a_worker_died_runs_once_as_the_first_attempt(journal):  # noqa: F811
    # semantics 4.13
    flow = pool_flow(store=Watched(os.path.join(journal.folder, 'etl.db')))
    box = flow.add_step('box', require=warm(flow))
    box.add_step('dying', func=die_once, args=(journal, 1))
    add_many(box, 80, note, journal)

    assert flow.run() is False

    ran = collections.Counter(journal.words())
    failed = {path for path, status in statuses(flow).items() if status == 'failure'}
    # The other worker was killed in the middle of one, at most.
    assert len(failed - {'box', 'box_dying'}) <= 1 and 'box_dying' in failed
    assert set(ran) >= {'box_s%d.1' % number for number in range(80)
                        if 'box_s%d' % number not in failed}
    assert set(ran.values()) == {1} and all(word.endswith('.1') for word in ran)


def test_a_step_that_dies_is_tried_again(journal):  # noqa: F811
    flow = pool_flow(cap=1, config={'retries': 1, 'retry_on': [-9, 7]})
    flow.add_step('a', func=die_once, args=(journal, 7))
    flow.add_step('b', func=die_once, args=(journal, 8))

    assert flow.run() is False

    assert statuses(flow) == {'a': 'success', 'b': 'failure'}
    assert journal.words() == ['a.1', 'b.1', 'a.2'] or journal.words() == ['a.1', 'a.2', 'b.1']


def kill_all_of(pid):
    """Kill a process; return when none of its threads is left, of which each holds it open."""
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    wait_until(lambda: len(threads_of(pid)) < 2, 'the end of its threads')


def threads_of(pid):
    try:
        return os.listdir('/proc/%d/task' % pid)
    except OSError:
        return []


def test_a_worker_that_dies_between_tasks_costs_nothing():
    flow = pool_flow()
    a = flow.add_step('a', func=os.getpid)
    kill = flow.add_step('kill', func=kill_all_of, args=(a.result,),
                         config={'task_construct': 'inline'})
    flow.add_step('b', func=os.getpid, require=kill)

    assert flow.run() is True

    assert the_task(flow, 'b').result != the_task(flow, 'a').result


def test_a_large_argument_on_its_way_to_a_dead_worker_keeps_nobody_waiting():
    flow = pool_flow(cap=1)
    a = flow.add_step('a', func=bytes, args=(1 << 22,))
    dying = flow.add_step('dying', func=kill_me, require=a)
    loop = flow.add_step('loop', loop=range(3), require=((dying, seq.STEP_ACTIVE),))
    loop.add_step('b', func=len, args=(a.result,))

    assert flow.run() is False

    assert [task.result for task in flow.tasks() if task.path == 'loop_b'] == [1 << 22] * 3


def die_while_reporting(written):
    """End the worker when it has written so many bytes of its next report."""
    def send(self, buf, write=os.write):
        write(self.fileno(), bytes(buf)[:written])
        os.kill(os.getpid(), signal.SIGKILL)
    multiprocessing.connection.Connection._send = send


@pytest.mark.parametrize('method', METHODS[:2])
@pytest.mark.parametrize('written', [0, 2, 4, 30])
def test_a_worker_that_is_killed_while_it_reports_keeps_nobody_waiting(written, method):
    flow = pool_flow(config={'start_method': method})
    dying = flow.add_step('dying', func=die_while_reporting, args=(written,), require=warm(flow))
    add_many(flow, 20, int, require=((dying, seq.STEP_ACTIVE),))
    flow.add_step('after', func=int, require=((dying, seq.STEP_COMPLETE),))

    flow.run()

    assert the_task(flow, 'dying').error == 'its worker died: signal SIGKILL'
    assert the_task(flow, 'after').status == 'success'
    others = [task for task in flow.tasks() if task.path.startswith('s')]
    assert len(others) == 20
    for task in others:    # one can have been beside it
        assert task.status == 'success' or 'its worker was ended' in task.error


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_what_the_executor_does_not_say_of_a_dead_worker_is_seen(monkeypatch):
    def fail(*args):
        raise RuntimeError('dictionary changed size during iteration')
    monkeypatch.setattr(concurrent.futures.process, 'BrokenProcessPool', fail)
    flow = pool_flow()
    flow.add_step('dying', func=kill_me, require=warm(flow))
    add_many(flow, 20, int)

    assert flow.run() is False

    assert the_task(flow, 'dying').error == 'its worker died: signal SIGKILL'


def leave_a_thread():
    threading.Thread(target=threading.Event().wait, args=(100,)).start()


@pytest.mark.long
@pytest.mark.parametrize('method', METHODS)
def test_threads_that_steps_have_left_keep_nobody_waiting_at_the_end(method):
    flow = pool_flow(config={'start_method': method, 'shutdown_grace': 1})
    flow.add_step('a', func=leave_a_thread)
    began = time.monotonic()

    assert flow.run() is True

    assert time.monotonic() - began < 60


def work_in_a_thread(journal):  # noqa: F811
    def work():
        time.sleep(0.3)
        journal.note('done')
    threading.Thread(target=work).start()


@other_methods    # multiprocessing of 3.6 ends such threads
def test_threads_that_steps_have_left_may_end_their_work(journal):  # noqa: F811
    flow = pool_flow()
    flow.add_step('a', func=work_in_a_thread, args=(journal,))

    assert flow.run() is True

    assert journal.words() == ['done']


def test_a_pool_waits_while_there_is_no_thread_to_be_had(monkeypatch):
    start, supervisor, refused = threading.Thread.start, os.getpid(), []

    def refuse_once(thread):
        if os.getpid() == supervisor and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)
    flow = pool_flow()
    add_many(flow, 3, int)
    monkeypatch.setattr(threading.Thread, 'start', refuse_once)

    assert flow.run() is True

    assert refused and multiprocessing.active_children() == []


@other_methods
def test_workers_that_end_at_once_fail_the_steps(monkeypatch):
    multiprocessing.get_context('spawn').Lock()    # which starts what must not fail here
    monkeypatch.setenv('PYTHONHASHSEED', 'no Python starts with this')
    flow = pool_flow(config={'start_method': 'spawn'})
    add_many(flow, 3, int)

    assert flow.run() is False

    failed = [task for task in flow.tasks() if task.status == 'failure']
    assert failed and failed == flow.tasks()
    for task in failed:
        assert ('a worker of the pool ended before it had begun' in task.error
                or 'a worker ended while it started' in task.error)


# Stops ############################################################################


def test_what_is_queued_does_not_begin_when_its_container_is_stopped(watched, journal):  # noqa: F811
    def build(mode):
        flow = pool_flow(watched, mode=mode, config={'stop_on_exception': True})
        box = flow.add_step('box', require=warm(flow))
        box.add_step('failing', func=fail_unless_open, args=(journal, 'mended'))
        add_many(box, 100, note_and_wait, journal, 'failed')
        return flow
    flow = build('restart')
    assert flow.run() is False
    began = set(journal.words())
    most = watched.most
    left = [path for path, status in statuses(flow).items() if status == 'ready']
    journal.open('mended')

    flow = build('recover')
    assert flow.run() is True

    assert most > 10    # there were some to be taken back
    # One in each worker, and one in the failing one's that may have begun before it was known.
    assert 1 <= len(began) <= 3 and len(left) == 100 - len(began)
    assert collections.Counter(journal.words()) == {
        'box_s%d.1' % number: 1 for number in range(100)}


def fail_unless_open(journal, gate):  # noqa: F811
    if not journal.is_open(gate):
        wait_until(journal.words, 'one to begin in the other worker')
        raise ValueError('not yet')


def test_a_recall_at_any_moment_of_a_report_drops_neither_that_nor_another_job(
        journal, monkeypatch):  # noqa: F811
    submit, futures = concurrent.futures.ProcessPoolExecutor.submit, []

    def keep(*args, **kwargs):
        futures.append(submit(*args, **kwargs))
        return futures[-1]
    monkeypatch.setattr(concurrent.futures.ProcessPoolExecutor, 'submit', keep)
    for line in range(1, 40):
        if not recall_while_reported(line, journal, futures):
            break
    assert line > 5


def recall_while_reported(line, journal, futures):  # noqa: F811
    """Recall a job when the thread that reports its end is at a line of the pool, the n-th.

    At that moment the worker has begun the next job, and another one is queued behind that.
    Return whether the thread has come to so many lines.

    Args:
        futures: a list to which each future is added.
    """
    lines, there, go_on, here = [], threading.Event(), threading.Event(), os.getpid()

    def stop_there(frame, event, arg):
        if event == 'line' and journal.is_open('a%d' % line) and os.getpid() == here:
            lines.append(frame.f_lineno)
            if len(lines) == line:
                there.set()
                assert go_on.wait(20)
        return stop_there

    construct, port = PoolConstruct(), LoopPort(max_concurrent=1)
    construct.open(port)
    threading.settrace(lambda frame, event, arg: stop_there if (
        frame.f_code.co_filename.endswith('pool.py')) else None)
    try:
        a, b, c = [seq.Job('%s%d' % (name, line), func=note_and_wait, config={},
                           args=(journal, '%s%d' % (name, line))) for name in 'abc']
        for job in (a, b):
            construct.prepare(job)
            construct.release([job])
        # The thread has sent the second job to the worker, and only then it can stop.
        wait_until(futures[-1].running, 'the second job to be sent')
        journal.open('a%d' % line)
        wait_until(lambda: there.is_set() or a in port.outcomes, 'the report')
        jobs = [a, b, c] if there.is_set() else [a, b]
        if there.is_set():
            journal.wait_for('b%d.1' % line)
            construct.prepare(c)
            construct.release([c])
            construct.recall(a)
            journal.open('c%d' % line)
        go_on.set()
        journal.open('b%d' % line)
        assert [port.outcome(construct, job).status for job in jobs] == ['success'] * len(jobs)
        assert port.twice == []
        return c in jobs
    finally:
        threading.settrace(None)
        go_on.set()
        construct.close()


MANY = '''
    def work(number):
        journal.note('begin-%d' % number)
        if number >= 300 and MODE == 'restart':
            journal.sign('here')
            journal.pass_gate('go')
        journal.note('end-%d' % number)

    def end_jobs(stop, force, end_jobs=seq.Stop.end_jobs):
        end_jobs(stop, force)
        journal.note('recalled')
    seq.Stop.end_jobs = end_jobs
    flow = make('pool', config={'max_concurrent': 2, 'shutdown_grace': GRACE})
    for number in range(1000):
        flow.add_step('s%d' % number, func=work, args=(number,))
    leave(flow)
'''


def succeeded(programs):  # noqa: F811
    return {path for path, attempts in programs.tasks().items() if attempts[-1][3] == 'success'}


@pytest.mark.parametrize('number, code', [(signal.SIGTERM, 143), (signal.SIGINT, -2)])
def test_what_is_queued_at_a_stop_runs_in_the_recovery_and_nothing_twice(programs, journal,  # noqa: F811,E501
                                                                         number, code):
    # semantics 4.13
    programs.write(MANY.replace('GRACE', '20'))
    supervisor = programs.start()
    journal.pid('here')
    supervisor.kill(number)
    journal.wait_for('recalled')
    journal.open('go')

    # How Python itself ends by a KeyboardInterrupt differs; before 3.8 it is 1.
    assert supervisor.wait() in (code, 130 if sys.version_info >= (3, 8) else 1)

    begun = [word for word in journal.words() if word.startswith('begin')]
    ended = [word for word in journal.words() if word.startswith('end')]
    done = succeeded(programs)
    assert done == {'s' + word[4:] for word in ended} and len(begun) == len(ended) <= 302
    assert programs.run('recover') == 0
    ran = collections.Counter(word for word in journal.words() if word.startswith('end'))
    assert len(ran) == 1000 and set(ran.values()) == {1}


def test_a_stop_kills_what_does_not_end_in_its_grace(programs, journal):  # noqa: F811
    programs.write(MANY.replace('GRACE', '0.1'))
    supervisor = programs.start()
    workers = journal.pids('here', 2)    # both are at what must not end

    supervisor.kill(signal.SIGTERM)

    assert supervisor.wait() == 143
    for worker in workers:
        wait_gone(worker)
    assert programs.run('recover') == 0
    ran = collections.Counter(word for word in journal.words() if word.startswith('end'))
    assert len(ran) == 1000 and set(ran.values()) == {1}


@pytest.mark.parametrize('method', METHODS)
def test_no_worker_survives_a_supervisor_that_is_killed(programs, journal, method):  # noqa: F811
    programs.write('''
        def work(number):
            journal.sign('worker-%d' % number)
            journal.pass_gate('go')

        if __name__ == '__main__':
            flow = make('pool', config={'max_concurrent': 2, 'start_method': METHOD})
            for number in range(4):
                flow.add_step('s%d' % number, func=work, args=(number,))
            leave(flow)
    '''.replace('METHOD', repr(method)))
    supervisor = programs.start()
    workers = [journal.pid('worker-0'), journal.pid('worker-1')]

    supervisor.kill()
    supervisor.wait()

    for worker in workers:
        wait_gone(worker)
    journal.open('go')
    assert programs.run('recover') == 0
    assert succeeded(programs) == {'s%d' % number for number in range(4)}


def test_a_committed_success_is_not_run_again_after_kill_9(programs, journal):  # noqa: F811
    programs.write(MANY.replace('GRACE', '10'))
    supervisor = programs.start()
    worker = journal.pid('here')

    supervisor.kill()
    supervisor.wait()

    wait_gone(worker)
    done = succeeded(programs)
    first = len(journal.words())
    assert programs.run('recover') == 0
    again = {'s' + word[6:] for word in journal.words()[first:] if word.startswith('begin')}
    assert len(done) > 50 and again == {'s%d' % number for number in range(1000)} - done


@other_methods
def test_functions_of_the_main_program_run_in_workers_that_are_spawned(programs, journal):  # noqa: F811,E501
    programs.write('''
        def work(item):
            journal.note(item)

        flow = make('pool', config={'start_method': 'spawn'})
        loop = flow.add_step('loop', loop='abc')
        loop.add_step('a', func=work, args=(loop.item,))
        leave(flow)
    ''')

    assert programs.run() == 0

    assert journal.words() == ['a', 'b', 'c']


# What a worker gets ###############################################################


def private_files(kind):
    """Return what this process has open whose name contains a word."""
    found = []
    for fd in os.listdir('/proc/self/fd'):
        with contextlib.suppress(OSError):
            found.append(os.readlink('/proc/self/fd/' + fd))
    return [one for one in found if kind in one]


@pytest.mark.skipif(not os.path.exists('/proc/self/fd'),
                    reason='not for this platform: it has no /proc to look at')
def test_a_worker_keeps_neither_store_nor_lock_open(tmp_path):
    path = str(tmp_path / 'etl.db')    # that of an earlier test may be open
    flow = pool_flow(path)
    flow.add_step('a', func=private_files, args=(path,))

    assert flow.run() is True

    assert the_task(flow, 'a').result == []


def log_something():
    import logging
    logging.getLogger(os.environ['SEQUENT_LOGGER_NAME']).warning('seen')


def test_what_a_task_logs_is_in_a_log_of_its_own(tmp_path):
    flow = pool_flow(config={'logdir': str(tmp_path / 'logs')})
    add_many(flow, 2, log_something)

    assert flow.run() is True

    for name in ('s0', 's1'):
        path = tmp_path / 'logs' / 'etl' / flow.run_id / ('%s.1.0.1.log' % name)
        assert read(path).count('seen') == 1


def test_the_folder_and_variables_of_a_step_hold_for_its_task_alone(tmp_path):
    flow = pool_flow(cap=1)
    a = flow.add_step('a', func=folder_and_variable, config={
        'cwd': str(tmp_path), 'env': {'SHIP': 'Beagle'}})
    flow.add_step('b', func=folder_and_variable, require=a)

    assert flow.run() is True

    assert the_task(flow, 'a').result == (str(tmp_path), 'Beagle')
    assert the_task(flow, 'b').result == (os.getcwd(), None)


def folder_and_variable():
    return os.getcwd(), os.environ.get('SHIP')
