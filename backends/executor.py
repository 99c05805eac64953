"""Run tasks in an executor of ``concurrent.futures``: a pool of processes or threads, Dask, loky.

    from concurrent.futures import ProcessPoolExecutor
    from sequent.executor import ExecutorConstruct

    with ProcessPoolExecutor(4) as pool:
        flow = seq.Sequent(config={'task_construct': ExecutorConstruct(pool)})
        ...
        flow()

or by name, where ``executor`` is ``'package.module:factory'``; the factory is called without
arguments, once a run, and the executor it returns is shut down at the end of the run::

    flow = seq.Sequent(config={'task_construct': 'executor', 'executor': 'my.cluster:dask'})

A task's function, arguments and loop items are pickled, unless the executor is a
``ThreadPoolExecutor``, and its outcome is found where the function runs. So ``sequent`` and the
modules of the functions must be importable there, and a program whose workers are not forked
needs an ``if __name__ == '__main__':`` around its ``flow()``. ``sequent.current()`` works in a
task. The environment variables of a task are set where it has the main thread of its worker (in
a ``ProcessPoolExecutor`` it has; in Dask and in threads, tasks share an environment).

Limits. An executor cannot end what runs in it, so there are no timeouts; a stop waits for running
tasks up to ``shutdown_grace`` seconds, then leaves them alone, unless they run in processes of an
executor made by name: these are killed. As long does the end of the run wait for threads that
tasks have left in such processes (3.6 itself ends them at once). When a worker is killed while it
sends a result, a ``ProcessPoolExecutor`` waits for the rest of it for ever (`sequent.pool` does
not). What tasks print and log goes where the workers write, not to a log file for each. When the
supervisor dies, tasks in processes that it has started end within a second; what runs on other
machines goes on unnoticed, and is run again in a recovery.
An executor that repeats a task whose worker has died runs it twice: for Dask, set
``distributed.scheduler.allowed-failures`` to 0.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import copy
import functools
import importlib
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import sys
import threading
import time

from . import (
    ConfigError,
    ConstructError,
    EnvironmentLayer,
    Outcome,
    TaskConstruct,
    pack_job,
    run_job,
    unpack_job,
)

BACKEND = {
    'construct': 'ExecutorConstruct',
    'config': {
        'executor': {
            'default': None,
            'kind': 'any',
            'on_steps': True,
            'help': "for 'executor': 'package.module:factory' of an executor",
        },
    },
}

if sys.version_info >= (3, 7):
    BrokenExecutor = concurrent.futures.BrokenExecutor
else:
    BrokenExecutor = concurrent.futures.process.BrokenProcessPool

#: How often a worker looks whether the supervisor that started it still lives, in seconds.
LOOK_EVERY = 0.5
#: Seconds for what takes milliseconds, unless something is in its way.
_PATIENCE = 1


class ExecutorConstruct(TaskConstruct):
    """Runs tasks in an executor.

    Args:
        executor: a `concurrent.futures.Executor`; whoever made it shuts it down. None: the config
            of each step says, by ``executor``, what makes one.
    """

    def __init__(self, executor=None):
        if executor is not None and not callable(getattr(executor, 'submit', None)):
            raise ConstructError('ExecutorConstruct needs a concurrent.futures.Executor, not %r'
                                 % (executor,))
        self._given = executor
        self._made = {}     # 'package.module:factory' -> the executor that it made
        self._futures = set()

    def check(self, name, func, args, kwargs, config):
        if self._given is None:
            _find_factory(name, config)  # what it makes is not known yet
        elif not isinstance(self._given, concurrent.futures.ThreadPoolExecutor):
            _pickled(name, (func, args, kwargs))

    def release(self, jobs):
        for job in jobs:
            self._hand_over(job)

    def _hand_over(self, job):
        try:
            future = self._submit(self._executor(job), job)
        except Exception as error:  # of the user's factory, of pickle, of any kind of executor
            self.port.done(job, Outcome('failure', 'the executor did not take it (%s)'
                                        % _sentence(error)))
            return
        self._futures.add(future)
        future.add_done_callback(functools.partial(self._finished, job))

    def close(self):
        """End the executors that were made by name, with what was left running at a stop."""
        abandoned = [future for future in list(self._futures) if not future.done()]
        for future in abandoned:
            future.cancel()
        grace = 0 if abandoned else self.port.config.get('shutdown_grace', _PATIENCE)
        while self._made:
            _, executor = self._made.popitem()
            if getattr(executor, '_call_queue', None) and isinstance(
                    executor, concurrent.futures.ProcessPoolExecutor):    # not shut down
                _PoolParts(executor).close(grace)
                continue
            if abandoned:    # loky has processes, too
                _kill((getattr(executor, '_processes', None) or {}).values())
            executor.shutdown(wait=not abandoned)

    def _executor(self, job):
        if self._given is not None:
            return self._given
        spec = job.config.get('executor')
        if spec not in self._made:
            made = _find_factory(job.name, job.config)()
            if not callable(getattr(made, 'submit', None)):
                raise ConstructError('%r made %r, which is no concurrent.futures.Executor'
                                     % (spec, made))
            self._made[spec] = made
        return self._made[spec]

    def _submit(self, executor, job):
        if isinstance(executor, concurrent.futures.ThreadPoolExecutor):
            return executor.submit(run_job, job)
        job = copy.copy(job)
        job.log = job.logdir = None    # The streams of a worker are the executor's.
        return executor.submit(_work, pack_job(job, secrets=True), os.getpid())

    def _finished(self, job, future):
        """Report the outcome; called once, in a thread of the executor."""
        try:
            outcome = future.result()
        except concurrent.futures.CancelledError:
            outcome = Outcome('failure', 'the executor cancelled it')
        except BaseException as error:  # KeyboardInterrupt too: it is the worker's, not ours
            outcome = Outcome('failure', _death(error))
        self._futures.discard(future)
        self.port.done(job, outcome)


def _kill(workers):
    """Kill these processes, for the ends of which a thread of their executor may wait."""
    for worker in list(workers):
        if worker.exitcode is None:  # not reaped: the pid is still its own
            with contextlib.suppress(ProcessLookupError):  # it has been meanwhile
                os.kill(worker.pid, signal.SIGKILL)


def _some_ended(workers):
    """Return whether one of these processes has ended."""
    return bool(multiprocessing.connection.wait([one.sentinel for one in workers], 0))


class _PoolParts:
    """The workers of a `concurrent.futures.ProcessPoolExecutor`, and how it ends whatever they do.

    Its own ``shutdown`` waits for ever for threads that functions have left in a worker, and for
    the rest of what a worker that was killed has written to a part.
    """

    def __init__(self, executor):
        self._executor = executor
        self.workers = list((executor._processes or {}).values())
        self.results = executor._result_queue
        self._queue = executor._call_queue
        thread = (executor._executor_manager_thread if sys.version_info >= (3, 9)
                  else executor._queue_management_thread)
        self._thread = thread if thread is not None and thread.ident else None    # if it began

    def close(self, grace):
        """Let it end itself, and kill its workers if it has not in so many seconds."""
        ending = threading.Thread(target=self._executor.shutdown, daemon=True)
        try:
            if grace:
                ending.start()
                ending.join(grace)
        except RuntimeError:  # can't start new thread
            grace = 0
        if not grace or ending.is_alive():
            _kill(self.workers)
            self.thread_ends()
        if grace:
            ending.join(_PATIENCE)
        self.leave()

    def thread_ends(self):
        """Return whether the executor's thread has ended, as the end of its workers makes it do.

        It may wait for what they can no longer do: read from the queue, or go on with a report.
        """
        if self._thread is None:
            return True
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._queue._reader.close()
            writer = self.results._writer.fileno()
            os.set_blocking(writer, False)
            deadline = time.monotonic() + 5 * _PATIENCE
            while self._thread.is_alive() and time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    os.write(writer, bytes(1 << 16))
                self._thread.join(0.01)
        return not self._thread.is_alive()

    def drain(self):
        """Return what its workers, which have ended, have written and its thread has not read."""
        fd = self.results._reader.fileno()
        os.set_blocking(fd, False)
        content = b''
        with contextlib.suppress(BlockingIOError):
            for chunk in iter(functools.partial(os.read, fd, 1 << 20), b''):
                content += chunk
        return content

    def leave(self):
        """Close what is left of it when all its workers have ended."""
        ended = self._thread is not None and not self._thread.is_alive()
        if sys.version_info < (3, 7) and ended:
            # Its `shutdown` takes a lock that a worker may have had, and writes where these did.
            lock = self.results._wlock
            lock.acquire(timeout=0)
            lock.release()
            self.drain()
        self._queue._reader.close()    # if its thread was broken before it did
        if ended:
            self._executor.shutdown()
            self._thread = None    # or Python 3.8 would wake it at its end
        for worker in self.workers:
            worker.join(_PATIENCE)


def _find_factory(name, config):
    """Return what the config key ``executor`` of a step names."""
    spec = config.get('executor')
    if callable(spec):
        return spec
    module, _, attribute = str(spec or '').partition(':')
    if not module or not attribute:
        raise ConfigError("step %r: task_construct 'executor' needs "
                          "config={'executor': 'package.module:factory'}, not %r" % (name, spec))
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError('step %r: there is no executor %r: %s' % (name, spec, error)) from error
    if not callable(factory):
        raise ConfigError('step %r: executor %r must be a function that returns an executor, '
                          'not %r' % (name, spec, factory))
    return factory


def _sentence(error):
    return '%s: %s' % (type(error).__name__, error) if str(error) else type(error).__name__


def _death(error):
    """Say why there is no outcome: what an executor raises instead is not of the function."""
    if isinstance(error, BrokenExecutor):
        return ('a worker of the executor died while it had this task, or one beside it '
                '(%s)' % _sentence(error))
    return 'the executor lost it (%s)' % _sentence(error)


def _pickled(name, thing):
    try:
        return pickle.dumps(thing)
    except Exception as error:  # pickle lets through whatever an object's own method raises
        raise ConstructError(
            "step %r: its function, arguments or loop items cannot be sent to the executor's "
            'workers (%s); use a function at the top of a module, or a ThreadPoolExecutor'
            % (name, _sentence(error))) from error


# What runs in a worker ############################################################


def _work(payload, supervisor):
    """Run a pickled job and return its outcome."""
    _end_with(supervisor)
    job = unpack_job(payload)
    job.load()
    if threading.current_thread() is not threading.main_thread():
        return run_job(job)
    variables = EnvironmentLayer()
    try:
        variables.hold(job.env)
        return run_job(job)
    except ValueError as error:  # a NUL, or what the locale cannot encode
        return Outcome('failure', 'its environment cannot be set: %s' % _sentence(error))
    finally:
        variables.hold({})


_watching = None  # the process that watches: a copy of it by fork does not


def _end_with(supervisor):
    """See to it that this process ends when its parent, the supervisor, has ended.

    A worker of a ProcessPoolExecutor would go on, and then wait for ever: its own end of the
    pool's pipes keeps them open.
    """
    global _watching
    lives = _parent_lives(supervisor)
    if lives is not None and _watching != os.getpid():
        _watching = os.getpid()
        threading.Thread(target=_watch, args=(lives,), daemon=True).start()


def _parent_lives(supervisor):
    """Return what tells whether the supervisor, whose child this process is, lives; else None."""
    if os.getppid() == supervisor:
        return lambda: os.getppid() == supervisor
    if hasattr(multiprocessing, 'parent_process'):  # since 3.8; it was made by a fork server
        parent = multiprocessing.parent_process()
        if parent is not None and parent.pid == supervisor:
            return parent.is_alive
    return None


def _watch(lives):
    while lives():
        time.sleep(LOOK_EVERY)
    os._exit(1)
