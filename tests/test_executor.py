"""Tasks in executors of concurrent.futures: pools of processes and threads, a Dask cluster."""

import concurrent.futures
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest


import sequent as seq  # noqa: E402
from contracts import ConstructContract, wait_until  # noqa: E402
from sequent.executor import (  # noqa: E402
    ExecutorConstruct, _kill, _PoolParts, _some_ended)

WORKERS = 2


def process_pool():
    return concurrent.futures.ProcessPoolExecutor(WORKERS)


def thread_pool():
    return concurrent.futures.ThreadPoolExecutor(WORKERS)


made = []


def remembered_pool():
    made.append(process_pool())
    return made[-1]


def broken_factory():
    raise OSError('the cluster is closed')


not_callable = 7


def whereabouts():
    task = seq.current()
    return (task.name, task.sequence, task.items, os.environ.get('SEQUENT_STEP_NAME'),
            os.getpid(), threading.current_thread() is threading.main_thread())


def environment():
    return dict(os.environ)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise ValueError('no such file in the archive')


def flow_with(construct, **config):
    config['task_construct'] = construct
    return seq.Sequent(name='flow', store=seq.MemoryStore(), config=config)


def by_path(flow):
    return {task.path: task for task in flow.tasks()}


class TestProcessPool(ConstructContract):
    config = {'executor': '%s:process_pool' % __name__}
    has_log = False

    def make_construct(self):
        return ExecutorConstruct()


class TestThreadPool(ConstructContract):
    config = {'executor': '%s:thread_pool' % __name__}
    has_environment = has_log = False

    def make_construct(self):
        return ExecutorConstruct()


@pytest.fixture(params=[process_pool, thread_pool])
def pool(request):
    with request.param() as executor:
        yield executor


def test_a_flow_runs_in_the_executor(pool):
    flow = flow_with(ExecutorConstruct(pool))
    loop = flow.add_step('loop', loop=['x', 'y'])
    leaf = loop.add_step('leaf', func=whereabouts)
    loop.add_step('after', func=whereabouts, require=leaf)

    assert flow.run() is True

    results = {(task.path, task.sequence): task.result for task in flow.tasks()
               if task.kind == 'leaf'}
    assert sorted(results) == [('loop_after', '1.1'), ('loop_after', '1.2'),
                               ('loop_leaf', '1.1'), ('loop_leaf', '1.2')]
    for (path, sequence), result in results.items():
        assert result[:3] == (path, sequence, ('x' if sequence == '1.1' else 'y',))
        in_process = isinstance(pool, concurrent.futures.ProcessPoolExecutor)
        assert (result[4] != os.getpid()) is in_process
        if in_process:
            assert result[3] == path


def test_the_exception_of_a_function_is_told(pool):
    flow = flow_with(ExecutorConstruct(pool))
    flow.add_step('a', func=fail)

    assert flow.run() is False

    assert by_path(flow)['a'].error == 'ValueError: no such file in the archive'


def test_several_tasks_run_at_once():
    barrier = threading.Barrier(WORKERS, timeout=60)
    with thread_pool() as pool:
        flow = flow_with(ExecutorConstruct(pool), max_concurrent=WORKERS)
        for n in range(WORKERS):
            flow.add_step('s%d' % n, func=barrier.wait)

        assert flow.run() is True


def test_the_environment_of_a_task_does_not_stay_for_the_next():
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        flow = flow_with(ExecutorConstruct(pool))
        loop = flow.add_step('loop', loop=['x'])
        loop.add_step('leaf', func=environment)
        flow.add_step('after', func=environment, require=loop)

        assert flow.run() is True

    tasks = by_path(flow)
    assert tasks['loop_leaf'].result['SEQUENT_LOOP_VALUE'] == 'x'
    assert 'SEQUENT_LOOP_VALUE' not in tasks['after'].result


# By name ##########################################################################


@pytest.mark.parametrize('factory', ['process_pool', 'thread_pool'])
def test_an_executor_is_made_by_name(factory):
    flow = flow_with('executor', executor='%s:%s' % (__name__, factory))
    flow.add_step('a', func=whereabouts)

    assert flow.run() is True

    assert by_path(flow)['a'].result[0] == 'a'


def test_an_executor_made_by_name_is_one_for_the_run_and_shut_down_at_its_end():
    del made[:]
    flow = flow_with('executor', executor='%s:remembered_pool' % __name__)
    flow.add_step('a', func=os.getpid)
    flow.add_step('b', func=os.getpid)

    assert flow.run() is True
    flow.close()

    (pool,) = made
    with pytest.raises(RuntimeError):
        pool.submit(os.getpid)


def leave_a_thread():
    threading.Thread(target=threading.Event().wait, args=(100,)).start()


def test_threads_that_tasks_have_left_keep_nobody_waiting_at_the_end():
    flow = flow_with('executor', executor='%s:remembered_pool' % __name__, shutdown_grace=0.5)
    flow.add_step('a', func=leave_a_thread)
    began = time.monotonic()

    assert flow.run() is True
    flow.close()

    assert time.monotonic() - began < 60


def die_while_reporting():
    """End the worker when it has written the length of its report."""
    def send(self, buf, write=os.write):
        write(self.fileno(), bytes(buf)[:4])
        die()
    multiprocessing.connection.Connection._send = send


@pytest.mark.long
@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_worker_that_was_killed_while_it_reported_keeps_nobody_waiting_at_the_end():
    executor = process_pool()
    executor.submit(die_while_reporting)
    parts = _PoolParts(executor)
    wait_until(lambda: _some_ended(parts.workers))

    parts.close(grace=0)

    assert parts.thread_ends()
    with pytest.raises(RuntimeError):
        executor.submit(int)


def test_a_worker_that_was_reaped_after_it_was_looked_at_is_no_error():
    ended = subprocess.Popen([sys.executable, '-c', ''])
    ended.wait()
    ended.exitcode = None    # as it was when it was looked at

    _kill([ended])


def test_an_executor_that_was_given_stays_open(pool):
    with flow_with(ExecutorConstruct(pool)) as flow:
        flow.add_step('a', func=os.getpid)
        assert flow.run() is True

    assert pool.submit(abs, -1).result() == 1


def test_a_single_step_may_use_an_executor():
    flow = seq.Sequent(store=seq.MemoryStore(), config={'task_construct': 'inline'})
    a = flow.add_step('a', func=os.getpid)
    flow.add_step('b', func=os.getpid, require=a, config={
        'task_construct': 'executor', 'executor': '%s:process_pool' % __name__})

    assert flow.run() is True

    tasks = by_path(flow)
    assert tasks['a'].result == os.getpid() != tasks['b'].result


@pytest.mark.parametrize('executor, words', [
    (None, "needs config={'executor': 'package.module:factory'}"),
    ('no_colon', "needs config={'executor': 'package.module:factory'}"),
    ('there_is.no_such:module', 'there_is'),
    ('%s:no_such_factory' % __name__, 'no_such_factory'),
    ('%s:not_callable' % __name__, 'must be a function that returns an executor'),
])
def test_a_wrong_executor_is_an_error_before_anything_starts(executor, words):
    ran = []
    flow = flow_with('executor', **({'executor': executor} if executor else {}))
    flow.add_step('first', func=ran.append, args=(1,), config={'task_construct': 'inline'})
    flow.add_step('a', func=os.getpid)

    with pytest.raises(seq.ConfigError) as caught:
        flow.run()

    assert words in str(caught.value) and "'a'" in str(caught.value)
    assert ran == []


def test_what_is_no_executor_is_refused():
    with pytest.raises(seq.ConstructError, match='needs a concurrent.futures.Executor, not 7'):
        ExecutorConstruct(7)


def test_a_factory_that_fails_fails_the_task():
    flow = flow_with('executor', executor='%s:broken_factory' % __name__)
    flow.add_step('a', func=os.getpid)

    assert flow.run() is False

    assert 'the cluster is closed' in by_path(flow)['a'].error


# What cannot be sent, what dies ###################################################


def test_a_function_that_cannot_be_pickled_is_refused_before_the_run():
    with process_pool() as pool:
        flow = flow_with(ExecutorConstruct(pool))
        flow.add_step('a', func=lambda: 1)

        with pytest.raises(seq.ConstructError, match="step 'a': its function"):
            flow.run()


def test_a_function_that_cannot_be_pickled_runs_in_threads():
    with thread_pool() as pool:
        flow = flow_with(ExecutorConstruct(pool))
        flow.add_step('a', func=lambda: 1)

        assert flow.run() is True


def test_a_loop_item_that_cannot_be_pickled_fails_the_task():
    with process_pool() as pool:
        flow = flow_with(ExecutorConstruct(pool))
        flow.add_step('loop', loop=[threading.Lock()]).add_step('a', func=os.getpid)

        assert flow.run() is False

    assert 'cannot be sent' in by_path(flow)['loop_a'].error


def test_a_worker_that_dies_and_its_broken_pool_fail_the_tasks_with_a_sentence():
    with process_pool() as pool:
        flow = flow_with(ExecutorConstruct(pool), stop_on_exception=False)
        a = flow.add_step('a', func=die)
        flow.add_step('b', func=os.getpid, require=((a, seq.STEP_FAILURE),))

        assert flow.run() is False

    tasks = by_path(flow)
    assert tasks['a'].error.startswith('a worker of the executor died while it had this task')
    assert tasks['b'].error.startswith('the executor did not take it (')
    assert 'BrokenProcessPool' in tasks['b'].error


ORPHANED = '''
    import multiprocessing, os, sys, threading
    from concurrent.futures import ProcessPoolExecutor
    import sequent as seq
    from sequent.executor import ExecutorConstruct

    def work(path):
        with open(path + '.tmp', 'w') as file:
            file.write(str(os.getpid()))
        os.rename(path + '.tmp', path)
        threading.Event().wait(60)

    if __name__ == '__main__':
        more = {}
        if sys.version_info >= (3, 7):
            more = {'mp_context': multiprocessing.get_context(sys.argv[2])}
        with ProcessPoolExecutor(1, **more) as pool:
            flow = seq.Sequent(store='f.db', config={'task_construct': ExecutorConstruct(pool)})
            flow.add_step('a', func=work, args=(sys.argv[1],))
            flow()
'''


def alive(pid):
    """Whether a process runs; one that has ended and is not reaped yet does not."""
    try:
        with open('/proc/%d/stat' % pid) as stat:
            return stat.read().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'),
                    reason='not for this platform: it has no /proc to look at')
# The pool takes a start method since 3.7; behind a fork server the supervisor is known since 3.8.
@pytest.mark.parametrize('method', ['fork', 'spawn', 'forkserver'][:sys.version_info[1] - 5])
def test_the_workers_end_with_a_supervisor_that_is_killed(method, tmp_path):
    (tmp_path / 'flow.py').write_text(textwrap.dedent(ORPHANED))
    marker = tmp_path / 'worker'
    supervisor = subprocess.Popen([sys.executable, 'flow.py', str(marker), method],
                                  cwd=str(tmp_path))
    wait_until(marker.exists)
    worker = int(marker.read_text())

    supervisor.kill()
    supervisor.wait()

    wait_until(lambda: not alive(worker))


STOPPED = '''
    import concurrent.futures, os, threading
    import sequent as seq

    def pool():
        return concurrent.futures.ProcessPoolExecutor(1)

    def work(path):
        with open(path + '.tmp', 'w') as file:
            file.write(str(os.getpid()))
        os.rename(path + '.tmp', path)
        threading.Event().wait(60)

    flow = seq.Sequent(store='f.db', config={'task_construct': 'executor',
                                             'executor': 'flow:pool', 'shutdown_grace': 0.1})
    flow.add_step('a', func=work, args=('worker',))
'''


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'),
                    reason='not for this platform: it has no /proc to look at')
@pytest.mark.parametrize('number, whole_group, code', [
    (signal.SIGTERM, False, 143), (signal.SIGINT, False, 130), (signal.SIGINT, True, 130)])
def test_a_stop_ends_the_workers_of_an_executor_made_by_name(tmp_path, number, whole_group, code):
    (tmp_path / 'flow.py').write_text(textwrap.dedent(STOPPED))
    marker = tmp_path / 'worker'
    supervisor = subprocess.Popen([sys.executable, '-m', 'sequent', 'flow'], cwd=str(tmp_path),
                                  stderr=subprocess.PIPE, start_new_session=True)
    wait_until(marker.exists)
    worker = int(marker.read_text())

    (os.killpg if whole_group else os.kill)(supervisor.pid, number)
    said = supervisor.communicate(timeout=60)[1].decode()

    assert supervisor.returncode == code, said
    wait_until(lambda: not alive(worker))
    done = subprocess.run([sys.executable, '-m', 'sequent', 'flow', 'status', '--json'],
                          cwd=str(tmp_path), stdout=subprocess.PIPE, timeout=60)
    assert b'"active"' in done.stdout


# Dask #############################################################################

DASK_WORK = '''
    import os
    import signal
    import sequent as seq

    def whereabouts():
        task = seq.current()
        return task.name, task.sequence, task.items, os.getpid()

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def fail():
        raise ValueError('no such file in the archive')
'''

DASK_FLOW = '''
    import os
    import dask
    from distributed import Client, LocalCluster
    import sequent as seq
    import work
    from sequent.executor import ExecutorConstruct

    def main():
        dask.config.set({'distributed.scheduler.allowed-failures': 0})
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, \\
                Client(cluster) as client, client.get_executor() as executor:
            flow = seq.Sequent(name='dask', store='flow.db', config={
                'task_construct': ExecutorConstruct(executor), 'stop_on_exception': False,
                'max_concurrent': 4})
            loop = flow.add_step('loop', loop=range(5), config={'max_concurrent': 5})
            loop.add_step('leaf', func=work.whereabouts)
            failing = flow.add_step('failing', func=work.fail, require=loop)
            flow.add_step('dying', func=work.die, require=((failing, seq.STEP_FAILURE),))
            with flow:
                assert flow() is False
                tasks = flow.tasks()
        leaves = [task for task in tasks if task.path == 'loop_leaf']
        assert [task.result[:3] for task in leaves] == [
            ('loop_leaf', '1.%d' % (n + 1), (n,)) for n in range(5)], leaves
        assert all(task.result[3] != os.getpid() for task in leaves)
        errors = {task.path: task.error for task in tasks}
        assert errors['failing'] == 'ValueError: no such file in the archive', errors
        assert errors['dying'].startswith('the executor lost it (KilledWorker'), errors

    if __name__ == '__main__':
        main()
        print('all as expected')
'''


@pytest.mark.long
@pytest.mark.skipif(sys.version_info < (3, 10),
                    reason='not for this Python: releases of distributed that are kept up are not')
def test_a_flow_runs_on_a_dask_cluster(tmp_path):
    pytest.importorskip('distributed', reason="Dask is not there: pip install distributed")
    (tmp_path / 'work.py').write_text(textwrap.dedent(DASK_WORK))
    (tmp_path / 'flow.py').write_text(textwrap.dedent(DASK_FLOW))

    # Workers are started anew and must find ``work``: the folder of the program is on no path.
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(
        [str(tmp_path), os.environ['PYTHONPATH']]))
    done = subprocess.run([sys.executable, 'flow.py'], cwd=str(tmp_path), env=environment,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, timeout=240)

    assert done.returncode == 0 and 'all as expected' in done.stdout, done.stdout


def no_executor():
    """A factory that makes something else."""
    return 5


def test_a_factory_that_makes_no_executor_fails_the_task_with_a_sentence():
    flow = seq.Sequent('f', ':memory:', config={
        'task_construct': 'executor', 'executor': '%s:no_executor' % __name__})
    flow.add_step('a', func=print)
    assert flow() is False
    [task] = flow.tasks()
    assert 'no concurrent.futures.Executor' in task.error
