"""Run many short steps in a pool of worker processes, which are started once.

    flow = seq.Sequent(config={'task_construct': 'pool'})

There are as many workers as the flow's ``max_concurrent`` says (below 1: as there are CPUs). A
step that does nothing costs a tenth of a millisecond instead of a process. To keep the workers
busy, tasks are handed over ahead of a free worker, up to config ``group_commit`` seconds of work,
and are stored as ``active`` then; tasks that do not depend on each other share commits (semantics
6.2). What is queued when the flow or its container is stopped does not begin: it is run in a
recovery.

With the start method ``fork`` the workers inherit what steps call, closures too. With another one
(config ``start_method``, the same for all steps of the pool) it must be possible to pickle that,
as in any case what is filled into arguments, and loop items.

What isolation is given up, compared with ``'process'``:

- A worker runs one task after another. What a step leaves in it (modules, global variables,
  changes to the environment, the current folder, open files, threads) is there for the next one.
  The variables of the task itself are set anew for each.
- A step that dies (a signal, ``os._exit``, out of memory) ends the pool. It fails, and so do
  those that were running in other workers, which are killed; ``retries`` count for all of them.
  What was queued and had not begun runs in a new pool.
- When a step fails, some that were queued behind it may have begun before the supervisor knows.
- Config ``stdin`` is that of the flow, not that of a step.
- A single task cannot be ended, so there are no timeouts. A stop waits ``shutdown_grace`` seconds
  for what runs, then kills the workers. As long does the end of the run wait for threads that
  steps have left in them (3.6 itself ends them at once).
- What tasks print goes where the supervisor's own output goes, without a log file for each; what
  they log goes to their log files, too.
- Workers end with the supervisor, within a second, whatever they are doing. What they were doing,
  and what had ended in the last ``group_commit`` seconds of work, is run again in a recovery.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import copy
import errno
import functools
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import pickle
import signal
import sys
import threading
import time
import typing  # noqa: F401 (in comments)

from . import (  # type: ignore
    ConstructError,
    InlineConstruct,
    Job,
    Outcome,
    Port,
    ProcessConstruct,
    SUCCEEDED,
    TaskConstruct,
    describe_error,
    flush_streams,
    fork_beside_threads,
    lasting_streams,
    leave_supervisor,
    manner_of_end,
    own_fds,
    own_signals,
    pack_job,
    pack_outcome,
    pack_parameters,
    process_alive,
    process_identity,
    process_stopped,
    set_stdin,
    start_method,
    starting,
    take_parameters,
    unpack_job,
    unpack_outcome,
)
from .executor import _PATIENCE, BrokenExecutor, _PoolParts, _some_ended

BACKEND = {'construct': 'PoolConstruct'}

#: How many jobs are queued at most.
MOST = 1000
#: Seconds in which a pool does not run more than one job, however short they are.
LEAST = 1e-4
#: How often a worker looks whether the supervisor still lives, in seconds.
LOOK_EVERY = 0.5

if sys.version_info >= (3, 7):
    def _make_executor(workers, method, given):
        return concurrent.futures.ProcessPoolExecutor(
            workers, multiprocessing.get_context(method), _enter, given)
else:
    class _make_executor(concurrent.futures.ProcessPoolExecutor):  # noqa: N801 (a function above)
        def __init__(self, workers, method, given):
            super().__init__(workers)
            self._given = given
            self._result_queue = _Results(self._processes)

        def _adjust_process_count(self):
            while len(self._processes) < self._max_workers:
                process = multiprocessing.Process(target=_enter_and_work, args=(
                    self._given, self._call_queue, self._result_queue))
                process.start()
                self._processes[process.pid] = process

    class _Results(multiprocessing.queues.SimpleQueue):
        """What workers report, between which the supervisor puts None to wake its thread."""

        def __init__(self, processes):
            super().__init__(ctx=multiprocessing.get_context())
            self._processes = processes

        def put(self, obj):
            if obj is not None:
                super().put(obj)
                return
            while not self._wlock.acquire(timeout=0.1):
                if _some_ended(self._processes.values()):    # by a kill while it had the lock
                    return    # for which that thread wakes, too
            try:
                self._writer.send(None)
            finally:
                self._wlock.release()

    def _enter_and_work(given, *queues):
        _enter(*given)
        concurrent.futures.process._process_worker(*queues)


class PoolConstruct(TaskConstruct):
    """Runs functions in the workers of a `concurrent.futures.ProcessPoolExecutor`."""

    can_place = True
    queues = True

    def __init__(self):
        self._calls = {}      # step -> what it calls; forked workers inherit it
        self._method = None   # of starting workers, with the first step that has it

    def open(self, port):
        super().open(port)
        limit = port.config.get('max_concurrent', max(2, os.cpu_count() or 1))
        self._workers = limit if limit > 0 else os.cpu_count() or 1
        self._pool = None
        self._flying = {}     # job -> (its pool, its cell)
        self._pace = None     # seconds that a function takes, on average

    @property
    def slots(self):
        return self._workers

    @property
    def ahead(self):
        if self._pace is None:
            return 0    # how long steps take is not known yet
        seconds = max(self._pace / self._workers, LEAST)
        # As many again are stored as active before they are handed over.
        return int(min(MOST, self.port.config.get('group_commit', 0) / 2 / seconds))

    def check(self, name, func, args, kwargs, config):
        ProcessConstruct().check(name, func, args, kwargs, config)    # what can be sent
        method = start_method(config, name)
        if self._method is None:
            self._method = method, name
        if self._method[0] != method:
            raise ConstructError('step %r: it cannot have the start_method %r, as step %r has %r '
                                 'in the same pool' % ((name, method) + self._method[::-1]))
        if sys.version_info < (3, 7) and method != multiprocessing.get_start_method():
            raise ConstructError('step %r: a pool takes a start_method since Python 3.7; leave it '
                                 "out, or use task_construct 'process'" % name)
        if method == 'fork':
            self._calls[name] = (func, args, kwargs)

    def prepare(self, job):
        if self._pool is not None and not self._flying and _some_ended(self._pool.workers):
            self._bury(self._pool)
        if self._pool is None:
            self._pool = _Pool(self._workers, self._method and self._method[0], self._calls, job,
                               self.port)
            for worker in self._pool.workers:
                self.port.watch(worker.sentinel, functools.partial(self._bury, self._pool))
        job.state = self._pool

    def release(self, jobs):
        for job in jobs:
            self._hand_over(job)

    def _hand_over(self, job):
        pool = self._pool or job.state    # the one of `prepare`, if there can be no other
        try:
            message = pool.message(job)
        except Exception as error:    # pickle lets through whatever an object's method raises
            self.port.done(job, Outcome('failure', (
                'its arguments or loop items cannot be sent to a worker of the pool (%s)'
                % describe_error(error))))
            return
        cell = pool.take_cell()
        self._flying[job] = pool, cell
        try:
            future = pool.submit(_work, cell, message)
        except RuntimeError:    # it broke since then
            self._bury(pool)
            return
        future.add_done_callback(functools.partial(self._finished, job, pool, cell))

    def recall(self, job):
        pool, cell = self._flying.get(job, (None, None))
        if pool is not None and pool.recall(cell) and self._flying.pop(job, None):
            self.port.done(job, self._not_begun())

    def stopped(self, job):
        pool, cell = self._flying.get(job, (None, None))
        return [] if pool is None else list(filter(process_stopped, pool.pids(cell)))

    def close(self):
        abandoned, self._flying = self._flying, {}
        if self._pool is not None and abandoned:
            self._bury(self._pool)
        elif self._pool is not None:
            self._unwatch(self._pool)
            self._pool.close(self.port.config.get('shutdown_grace', _PATIENCE))
            self._pool = None

    def _finished(self, job, pool, cell, future):
        """Report the outcome; called once, in the executor's thread."""
        error = future.exception()    # not raised here, or it would keep the executor's frames
        if isinstance(error, BrokenExecutor):
            pool.kill(error)
            return    # as the workers end, `_bury` tells what came of it
        if error is None:
            outcome = self._taken(job, pool, future.result())
        else:
            outcome = Outcome('failure', 'the pool lost it (%s)' % describe_error(error))
        # Forgotten first: a recall would take the next job in that cell for this one.
        flying = self._flying.pop(job, None)
        pool.give_back(cell)
        if flying:    # neither recalled nor abandoned
            self.port.done(job, outcome)

    def _bury(self, pool):
        """Make an end of a pool in which a worker has died, and report what came of its jobs.

        The driver sees that death itself, as the executor's thread need not: it waits for the rest
        of a report in which a worker was killed, and can be broken by jobs that come in meanwhile.
        """
        if pool is self._pool:
            self._unwatch(pool)
            self._pool = None
            pool.bury()
        for job, (its, cell) in list(self._flying.items()):
            if its is pool and self._flying.pop(job, None):
                report = pool.unread.get(cell)
                outcome = self._taken(job, pool, report) if report else pool.cause_of_death(cell)
                self.port.done(job, outcome or self._not_begun())

    def _unwatch(self, pool):
        for worker in pool.workers:
            self.port.unwatch(worker.sentinel)

    def _taken(self, job, pool, report):
        if report is None:
            return self._not_begun()
        pool.proven = True
        _, job.began, took, outcome = report
        self._pace = took if self._pace is None else self._pace + 0.1 * (took - self._pace)
        return SUCCEEDED if outcome is None else unpack_outcome(outcome)

    def _not_begun(self):
        if self.port.stopping:
            return Outcome('active', 'not started', interrupted=True)
        return Outcome('active', 'not started', lost=True)


_RECALLED = -1
_NOTHING = None, (), {}  # type: typing.Any  # what a worker knows of the call of a step


class _Pool:
    """A ProcessPoolExecutor with all of its workers, and what is known of what they do.

    Each job in it has a cell in memory that is shared with the workers: 0 while it is queued, then
    the pid of the worker in which it has begun, or `_RECALLED`. So nothing that is recalled can
    begin, and when a worker has died, it is known what had begun, and where.
    """

    def __init__(self, workers, method, calls, job, port):
        self.proven = False
        self.workers = []
        self.unread = {}      # cell -> report, when it is buried
        self._lock = threading.Lock()
        self._codes = None    # pid -> exit code of the workers that had died when it was killed
        self._error = None    # what the executor said of it
        self._method = method or 'fork'
        self._calls = dict(calls) if self._method == 'fork' else {}
        self._known = {}      # step -> `Job`: what a worker knows of each of its jobs
        context = multiprocessing.get_context(self._method)
        self._cells = context.RawArray('i', workers + MOST)
        self._claim = context.Lock()    # for changes of cells from 0
        self._free = list(range(len(self._cells)))
        self._common = Job('', flow=job.flow, run_id=job.run_id, logger_name=job.logger_name,
                           shared=job.shared, logdir=job.logdir, epoch=job.epoch,
                           config={name: job.config[name] for name in (
                               'capture', 'keep_result', 'stdin') if name in job.config})
        self._executor = self._parts = self._line = None  # type: typing.Any
        try:
            with starting(), self._ways():
                self._start(context, workers, port)
        except RuntimeError as error:    # can't start new thread
            self.bury()
            raise BlockingIOError(errno.EAGAIN, str(error)) from error
        except OSError as error:
            self.bury()
            if error.errno and not isinstance(error, BrokenPipeError):
                raise    # the system is short of something, perhaps
            raise OSError('a worker ended while it started (%s)' % error) from error

    def _ways(self):
        if self._method == 'fork':
            return fork_beside_threads()
        from .spawn import hidden_main
        return hidden_main()

    def _start(self, context, workers, port):
        """Start all the workers, while what they inherit is as it must be."""
        # They see by this pipe that the supervisor has ended.
        self._line = context.Pipe(duplex=False)
        own_fds.add(self._line[1].fileno())
        forked = self._method == 'fork'
        more = port if forked else (logging.getLogger().level, pack_parameters())
        # What is queued can wait in the pipe to the workers, which has room for so many more than
        # there are to be workers: else each of these would wait for a thread of the supervisor
        # after each job.
        self._executor = executor = _make_executor(workers + MOST, self._method, (
            self._calls, self._cells, self._claim, self._common, self._line[0], forked, more,
            port.config.get('stdin'), process_identity()))
        executor._max_workers = workers
        # All of them before its thread begins, which takes for granted that there come no more.
        start = getattr(executor, '_launch_processes', executor._adjust_process_count)
        try:
            while len(executor._processes) < workers:
                start()
            executor.submit(flush_streams)
        finally:
            self._parts = _PoolParts(executor)
            self.workers = self._parts.workers

    def submit(self, *call):
        return self._executor.submit(*call)

    # Cells.

    def take_cell(self):
        """Return where the cell of a job is; None if there is none left."""
        if not self._free:
            return None
        cell = self._free.pop()
        self._cells[cell] = 0
        return cell

    def give_back(self, cell):
        if cell is not None:
            self._free.append(cell)

    def pids(self, cell):
        """Return the pid of the worker in which the job of a cell has begun, as a list."""
        return [] if cell is None or self._cells[cell] <= 0 else [self._cells[cell]]

    def recall(self, cell):
        """Return whether the job of a cell has not begun, and so never will."""
        if cell is None or _some_ended(self.workers) or not self._claim.acquire(timeout=_PATIENCE):
            return False    # one may have died while it had the lock
        try:
            queued = self._cells[cell] == 0
            if queued:
                self._cells[cell] = _RECALLED
            return queued
        finally:
            self._claim.release()

    # Messages.

    def message(self, job):
        """Return what a worker needs to make a job again; a part that it has inherited is None."""
        known = self._known.get(job.name)
        if known is None:
            known = self._known[job.name] = copy.copy(self._common)
            known.func, known.args, known.kwargs = self._calls.get(job.name, _NOTHING)
        if not (job.kwargs or known.kwargs):
            known.kwargs = job.kwargs    # Nothing need be sent.
        return pack_job(job, known)

    # Death.

    def kill(self, error=None):
        """Kill the workers and wait for their end, when one has died; from any thread."""
        with self._lock:
            if self._codes is None:
                self._error = error
                self._codes = self._kill()

    def _kill(self):
        """Return the codes of those that were dead."""
        self.proven = self.proven or any(cell > 0 for cell in self._cells)
        dead = multiprocessing.connection.wait([one.sentinel for one in self.workers], 0)
        codes = {}
        for worker in self.workers:
            if worker.sentinel in dead:
                worker.join(_PATIENCE)    # it is just ending
                if worker.exitcode is not None:
                    codes[worker.pid] = worker.exitcode
            for kill in (os.killpg, os.kill):    # its group may not be there yet
                if kill is os.killpg or worker.pid not in codes:
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        kill(worker.pid, signal.SIGKILL)
        for worker in self.workers:
            multiprocessing.connection.wait([worker.sentinel], 5 * _PATIENCE)
        return codes

    def bury(self):
        """See to it that nothing runs in it, and find out what did.

        Since a worker has died, others may have ended more jobs: what they report, nobody reads.
        """
        self.kill()
        if self._parts is not None:
            if self._parts.thread_ends():
                self.unread = self._read_reports()
            self._parts.leave()
        self._leave()

    def close(self, grace):
        """End it when it runs nothing, and what steps have left in workers after that time."""
        self._parts.close(grace)
        self._leave()

    def _read_reports(self):
        """Return {cell: report} of what is in the pipe from workers that are dead now.

        Not by the pipe's own reader: it would wait for the rest of what one was just writing.
        """
        content, reports = self._parts.drain(), {}
        while len(content) >= 4:
            end = 4 + int.from_bytes(content[:4], 'big')
            if end == 4 or len(content) < end:    # written by `thread_ends`, or not to the end
                break
            report = getattr(pickle.loads(content[4:end]), 'result', None)
            if report is not None and report[0] is not None:
                reports[report[0]] = report
            content = content[end:]
        return reports

    def _leave(self):
        if self._line:
            own_fds.discard(self._line[1].fileno())
            for end in self._line:
                end.close()
            self._line = None

    def cause_of_death(self, cell):
        """Return the outcome of a job that has reported none in a pool that is buried, or None if
        it is to be run in another one."""
        pid = None if cell is None else self._cells[cell]
        if pid in self._codes:
            code = self._codes[pid]
            return Outcome('failure', 'its worker %s' % manner_of_end(code), code=code)
        if pid == 0 and self.proven:
            return None
        others = ', '.join(sorted(set(map(manner_of_end, self._codes.values()))))
        others = others or str(self._error or 'ended')
        if pid == 0:    # nothing has ever run in it, and might not in the next one
            return Outcome('failure',
                           'a worker of the pool ended before it had begun: %s' % others)
        return Outcome('failure', 'its worker was ended, as another one of the pool %s' % others)


# What runs in a worker ############################################################


class _WorkerPort(Port):
    """Where the construct that runs the jobs of a worker says what came of them."""

    def done(self, job, outcome):
        self.outcome = outcome

    def watch(self, fd, callback):
        raise NotImplementedError

    def unwatch(self, fd):
        raise NotImplementedError


class _Worker:
    """What a worker knows that is the same for all its jobs."""

    def __init__(self, calls, cells, claim, common, forked):
        self.calls = calls
        self.cells = cells
        self.claim = claim
        self.common = common
        self.forked = forked
        self.pid = os.getpid()
        self.port = _WorkerPort()
        os.environ.update(common.shared)
        self.inline = InlineConstruct()
        self.inline.open(self.port)

    def run(self, message):
        try:
            job = unpack_job(message, self.common)
            job.func, job.args, job.kwargs = self.calls.get(job.name, _NOTHING)
            job.load(program=not self.forked)
        except (Exception, SystemExit) as error:
            return Outcome('failure', 'it could not be started: %s' % describe_error(error))
        self.inline.release([job])
        return self.port.outcome


_worker = None


def _enter(calls, cells, claim, common, line, forked, more, stdin, supervisor):
    """Where a worker begins."""
    global _worker
    if forked:
        leave_supervisor([more])
    own_signals()
    set_stdin(stdin)
    if not forked:
        level, parameters = more
        lasting_streams.__enter__()
        take_parameters(parameters)
        logging.getLogger().setLevel(level)
    threading.Thread(target=_watch, args=(line, supervisor), daemon=True).start()
    _worker = _Worker(calls, cells, claim, common, forked)


def _watch(line, supervisor):
    """End this worker, with what it has started, when the supervisor has ended.

    That is not seen by the line alone: what the user's program has forked holds its end open.
    """
    while process_alive(supervisor) is not False and not line.poll(LOOK_EVERY):
        pass
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _work(cell, message):
    """Run a job and report: its cell, when it began, how many seconds it took, and the outcome,
    packed, or None for a plain success. Return None if the job was recalled."""
    worker = _worker
    if cell is not None:
        with worker.claim:
            if worker.cells[cell]:
                return None
            worker.cells[cell] = worker.pid
    epoch = worker.common.epoch
    began = time.monotonic()
    outcome = worker.run(message)
    took = time.monotonic() - began
    flush_streams()
    return (cell, None if epoch is None else epoch + began, took,
            None if outcome is SUCCEEDED else pack_outcome(outcome))
