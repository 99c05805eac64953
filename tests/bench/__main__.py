"""Benchmarks, each against a bare lower bound that is measured in the same run.

    python3 -m tests.bench [NAME ...] [--runs N] [--scale X] [--growth TIMES ...] [--json]
                           [--folder FOLDER]

Machines differ, so what counts is the comparison: how many times the bound a flow takes, or how
much more a task. Printed are medians over the runs, in which flow and bound take turns. With
``--growth 10 100`` a flow of so many times the tasks is compared with itself: a task is to take no
more than 1.3 times as long. Exit code 1 says that some benchmark does not reach what it should.

What was deleted in the last minutes from a folder on ext4 makes files dearer there, also the logs
of flows: after tests, for instance, give another ``--folder``.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import gc
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import resource
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, ROOT)

import sequent  # noqa: E402 (the one of this tree)

BENCHMARKS = {}


class Benchmark:
    """One comparison.

    Args:
        what: what is measured, a line; ``{n}`` is the number of tasks.
        bound: what it is compared with; None: with nothing.
        tasks: how many there are.
        times: how many times the bound it may take; and, or
        over: how many microseconds of CPU time more a task; or
        most: how much it may take in all, in ``unit``: what the flow returns.
        name: of the benchmark; default: that of the function.

    It is put before a function that is given the number of tasks and a folder and returns two
    functions to time: the flow and the bound. What they need is made before. One that returns a
    number has measured itself.
    """

    def __init__(self, what, bound, tasks, times=None, over=None, most=None, unit=None,
                 name=None):
        self.what = what
        self.bound = bound
        self.tasks = tasks
        self.times = times
        self.over = over
        self.most = most
        self.unit = unit
        self.name = name

    def __call__(self, make):
        self.make = make
        BENCHMARKS[self.name or make.__name__] = self
        return make

    def measure(self, runs, n, folder):
        """Return what the runs of the flow took, and those of the bound: two lists."""
        # A limit on the time over the bound is one on work that is done here.
        clock = time.perf_counter if self.over is None else time.process_time
        flows, bounds = [], []
        for _ in range(runs):
            flow, bound = self.make(n, tempfile.mkdtemp(dir=folder))
            if bound is not None:
                bounds.append(timed(bound, clock))
            flows.append(timed(flow, clock))
        return flows, bounds

    def run(self, runs, scale, folder):
        """Return the medians and what became of the limit, as a dict."""
        n = max(1, int(self.tasks * scale))
        flows, bounds = self.measure(runs, n, folder)
        found = {'what': self.what.format(n=n), 'tasks': n, 'runs': runs}
        flow = statistics.median(flows)
        if self.most is not None:
            return dict(found, value=flow, unit=self.unit, limit='%g %s' % (self.most, self.unit),
                        reached=flow <= self.most)
        flow, bound = flow / n * 1e6, statistics.median(bounds) / n * 1e6
        times = statistics.median(one / other for one, other in zip(flows, bounds))
        found.update(bound=self.bound, microseconds=flow, bound_microseconds=bound, times=times,
                     over=flow - bound)
        limits = []
        if self.times is not None:
            limits.append(('%g times' % self.times, times <= self.times))
        if self.over is not None:
            limits.append(('%g us over' % self.over, flow - bound <= self.over))
        return dict(found, limit=' or '.join(text for text, _ in limits),
                    reached=any(reached for _, reached in limits))

    def grow(self, runs, scale, folder, growths):
        """Return how much longer a task takes where there are so many times as many, as a dict."""
        n = max(1, int(self.tasks * scale))
        each = [statistics.median(self.measure(runs, n * times, folder)[0]) / n / times * 1e6
                for times in [1] + growths]
        worst = max(each) / each[0]
        return {'what': self.what.format(n='%d, and %s times as many' % (
                    n, ', '.join(map(str, growths)))),
                'tasks': n, 'runs': runs, 'each': each, 'times': worst, 'limit': '1.3 times',
                'reached': worst <= 1.3}


def timed(work, clock):
    """Return the seconds that a function takes, without the garbage collector, or what it has
    measured itself."""
    gc.collect()
    gc.disable()
    try:
        began = clock()
        measured = work()
        return measured if isinstance(measured, float) else clock() - began
    finally:
        gc.enable()


def no_op(item=None):
    """What steps call."""


def new_flow(store, **config):
    return sequent.Sequent('bench', store, logging_level=logging.WARNING, config=config)


def running(flow):
    """Return what runs a flow, whose plan is compiled already."""
    flow.compile()

    def run():
        assert flow() is True
    return run


def chain(flow, n, **given):
    """Add n steps, each of which requires the one before."""
    step = ()
    for number in range(n):
        step = flow.add_step('s%d' % number, require=step, **given)
    return running(flow)


def fan(flow, n):
    """Add n steps that require nothing, and one that requires them all."""
    steps = [flow.add_step('s%d' % number, func=no_op) for number in range(n)]
    flow.add_step('end', func=no_op, require=tuple(steps))
    return running(flow)


def commit_rows(folder, works, at_once=1, synchronous='FULL', statuses=('active', 'success'),
                journal='DELETE'):
    """Do each work and commit after so many the rows that a store does, as SQLite is by default.

    Args:
        statuses: those that a task goes through: each time its row is written again.
        journal: ``'PERSIST'`` keeps it, as a store does, for very many commits: ext4 passes over
            each file that was deleted in the last minutes where it makes a new one, so thousands
            of deleted journals make the log files dearer of the flow that is measured next.
    """
    insert = 'INSERT OR REPLACE INTO tasks (id, run, %s) VALUES (?, 1%s)' % (
        ', '.join(sequent.TaskRecord._fields), ', ?' * len(sequent.TaskRecord._fields))
    with contextlib.closing(sqlite3.connect(os.path.join(folder, 'bound.db'))) as database:
        database.isolation_level = None
        database.execute('PRAGMA synchronous = ' + synchronous)
        database.execute('PRAGMA journal_mode = ' + journal)
        for statement in vars(sequent).get('_TABLES') or sequent._FORMATS[0]:
            database.execute(statement)
        for _, statements in vars(sequent).get('_ADDITIONS', ()):
            for statement in statements:
                database.execute(statement)
        waiting = []
        for number, work in enumerate(works, 1):
            work()
            waiting += [(number, 's%d' % number, '1', 0, 1, 'leaf', status, 0, None, None,
                         1767222000.5, 1767222001.5, None, None, None, None)
                        + (None,) * (len(sequent.TaskRecord._fields) - 15)
                        for status in statuses]
            if len(waiting) == at_once * len(statuses):
                database.execute('BEGIN IMMEDIATE')
                database.executemany(insert, waiting)
                database.execute('COMMIT')
                waiting = []


def fork_and_join():
    process = multiprocessing.get_context('fork').Process(target=no_op)
    process.start()
    process.join()


@Benchmark('a chain of {n} programs, sqlite', "subprocess.run(['true']) and a commit each",
           500, times=1.3)
def programs(n, folder):
    flow = new_flow(os.path.join(folder, 'flow.db'))
    return chain(flow, n, command=['true']), lambda: commit_rows(
        folder, [lambda: subprocess.run(['true'], check=True)] * n)


@Benchmark('a chain of {n} processes, sqlite', 'fork, join and a commit each', 1000, times=1.25)
def processes(n, folder):
    flow = new_flow(os.path.join(folder, 'flow.db'))
    return chain(flow, n, func=no_op), lambda: commit_rows(folder, [fork_and_join] * n)


@Benchmark('{n} independent processes and one that requires them, two at a time, sqlite',
           'the same with fork, join and a commit each', 10000, times=1.25)
def independent_processes(n, folder):
    flow = new_flow(os.path.join(folder, 'flow.db'), max_concurrent=2)
    return fan(flow, n), lambda: commit_rows(folder, [two_at_a_time(n + 1)] * (n + 1),
                                             statuses=('ready', 'active', 'success'),
                                             journal='PERSIST')


def two_at_a_time(n):
    """Return a function that, called n times, each time awaits one of n processes."""
    started, running_now = iter(range(n)), []

    def await_one():
        while len(running_now) < 2 and next(started, None) is not None:
            process = multiprocessing.get_context('fork').Process(target=no_op)
            process.start()
            running_now.append(process)
        ended = multiprocessing.connection.wait([one.sentinel for one in running_now])
        process = [one for one in running_now if one.sentinel in ended][0]
        running_now.remove(process)
        process.join()
    return await_one


@Benchmark('a parallel map over {n} items, inline, memory', 'the calls', 10000, over=15)
def parallel_map(n, folder):
    flow = new_flow(':memory:', task_construct='inline')
    flow.add_step('map', func=no_op, args=(sequent.item,), loop=range(n),
                  config={'max_concurrent': 8})
    return running(flow), lambda: [no_op(item) for item in range(n)]


@Benchmark('{n} independent steps and one that requires them, inline, memory',
           'ThreadPoolExecutor(1).submit().result() of each', 10000, times=1.25)
def independent(n, folder):
    flow = new_flow(':memory:', task_construct='inline')

    def bound():
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            for _ in range(n + 1):
                pool.submit(no_op).result()
    return fan(flow, n), bound


@Benchmark('a chain of {n} inline steps, sqlite', 'the same rows, a commit each', 10000, times=1.5)
def inline_chain(n, folder):
    flow = new_flow(os.path.join(folder, 'flow.db'), task_construct='inline')
    return chain(flow, n, func=no_op), lambda: commit_rows(folder, [no_op] * n)


@Benchmark('a chain of {n} inline steps, sqlite, synchronous off', 'the same rows, a commit each',
           10000, times=1.5)
def inline_chain_off(n, folder):
    flow = new_flow(os.path.join(folder, 'flow.db'), task_construct='inline', synchronous='off')
    return chain(flow, n, func=no_op), lambda: commit_rows(folder, [no_op] * n,
                                                           synchronous='OFF')


@Benchmark('{n} independent inline steps, sqlite', 'their rows, a commit for each 100', 10000,
           times=3)
def grouped(n, folder):
    flow = new_flow(os.path.join(folder, 'flow.db'), task_construct='inline')
    return fan(flow, n), lambda: commit_rows(folder, [no_op] * n, 100,
                                             statuses=('ready', 'active', 'success'))


@Benchmark('{n} independent threads, memory', 'ThreadPoolExecutor(2).map', 10000, times=2.5,
           over=20)
def threads(n, folder):
    flow = new_flow(':memory:', task_construct='thread', max_concurrent=2)

    def bound():
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(no_op, range(n)))
    return fan(flow, n), bound


def pooled(n, store):
    flow = new_flow(store, task_construct='pool', max_concurrent=2)

    def bound():
        with concurrent.futures.ProcessPoolExecutor(2, **pooled_by) as pool:
            concurrent.futures.wait([pool.submit(no_op) for _ in range(n)])
    return fan(flow, n), bound


# As the flow does it; 3.6 does so anyway, and takes no such argument.
pooled_by = ({'mp_context': multiprocessing.get_context('fork')}
             if sys.version_info >= (3, 7) else {})  # type: dict


@Benchmark('{n} independent steps in a pool, memory', 'ProcessPoolExecutor(2).submit', 10000,
           times=1.5)
def pool(n, folder):
    return pooled(n, ':memory:')


@Benchmark('{n} independent steps in a pool, sqlite', 'ProcessPoolExecutor(2).submit', 10000,
           times=2)
def pool_sqlite(n, folder):
    return pooled(n, os.path.join(folder, 'flow.db'))


@Benchmark('two steps in a loop in a loop, {n} tasks, inline, memory', 'as many in no loop', 20000,
           times=1.3)
def nested(n, folder):
    flow = new_flow(':memory:', task_construct='inline')
    width = max(1, int((n // 2) ** 0.5))
    inner = flow.add_step('outer', loop=range(width)).add_step('inner', loop=range(width))
    inner.add_step('a', func=no_op)
    inner.add_step('b', func=no_op)
    return running(flow), fan(new_flow(':memory:', task_construct='inline'), 2 * width * width)


@Benchmark('{n} steps added and compiled', 'a dict of each', 100000, times=10)
def plan(n, folder):
    def build():
        flow = new_flow(':memory:')
        for number in range(n):
            flow.add_step('s%d' % number, func=no_op)
        flow.compile()

    def bound():
        steps = {}
        for number in range(n):
            steps['s%d' % number] = {'name': 's%d' % number, 'func': no_op, 'args': (),
                                     'kwargs': {}, 'require': (), 'config': {}}
    return build, bound


@Benchmark('{n} requirements of 10,000 steps, compiled', 'a dict of lists of them', 118000,
           times=10)
def edges(n, folder):
    width = 10000
    required = [[number - 1 - one for one in range(n // width) if one < number]
                for number in range(width)]

    def build():
        flow, steps = new_flow(':memory:'), []
        for number in range(width):
            steps.append(flow.add_step('s%d' % number, func=no_op,
                                       require=tuple(steps[one] for one in required[number])))
        flow.compile()

    def bound():
        found = {}
        for number in range(width):
            found['s%d' % number] = [('s%d' % one, 'success') for one in required[number]]
    return build, bound


class Stopped(Exception):
    """Ends a flow at its first new start."""


def first_start(make, n, folder, tasks):
    """Return what recovers a flow up to its first new start, and a SELECT of what is done: the CPU
    time that they take.

    Args:
        make: adds steps with n tasks to a flow, and returns what the last step requires.
        tasks: how many records there are.
    """
    path, began = os.path.join(folder, 'flow.db'), []

    def a_flow(mode):
        def last():
            if mode == 'restart':
                raise Stopped
            began.append(time.process_time())
        flow = sequent.Sequent('bench', path, run_mode=mode, logging_level=logging.CRITICAL,
                               config={'task_construct': 'inline', 'synchronous': 'off'})
        flow.add_step('last', func=last, require=make(flow, n))
        flow.compile()
        return flow
    logging.disable(logging.ERROR)
    assert a_flow('restart')() is False
    logging.disable(logging.NOTSET)
    flow = a_flow('recover')

    def recover():
        since = time.process_time()
        assert flow() is True
        return began.pop() - since

    def select():
        since = time.process_time()
        with contextlib.closing(sqlite3.connect(path)) as database:
            rows = database.execute('SELECT * FROM tasks').fetchall()
        assert len(rows) >= tasks
        return time.process_time() - since
    return recover, select


@Benchmark('recovery of {n} independent steps that are done, to its first start',
           'SELECT of them', 100000, over=6)
def recovery(n, folder):
    return first_start(lambda flow, n: [flow.add_step('s%d' % number, func=no_op)
                                        for number in range(n)][-1], n, folder, n)


@Benchmark('recovery of a loop over {n} items in which one is not done, to its first start',
           'SELECT of them', 50000, times=3)
def recovery_loop(n, folder):
    return first_start(lambda flow, n: flow.add_step('loop', func=no_op, loop=range(n)), n,
                       folder, n)


def note_time(path):
    """Append the time when a function began and ended."""
    began = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(fd, b'%r %r\n' % (began, time.perf_counter()))
    os.close(fd)


def gaps(path):
    """Return the median time from an end to the next start, in seconds."""
    with open(path) as file:
        times = [tuple(map(float, line.split())) for line in file]
    return statistics.median(begin - end for (_, end), (begin, _) in zip(times, times[1:]))


@Benchmark('from the end of a process to the start of the next, {n} of them, sqlite',
           'the same with fork, join and commit', 300, times=1.25)
def latency(n, folder):
    paths = [os.path.join(folder, name) for name in ('flow', 'bound')]
    flow = chain(new_flow(os.path.join(folder, 'flow.db')), n, func=note_time, args=(paths[0],))

    def fork():
        process = multiprocessing.get_context('fork').Process(target=note_time, args=(paths[1],))
        process.start()
        process.join()

    def measured(work, path):
        work()
        return gaps(path) * n    # as it is told by the task
    return (lambda: measured(flow, paths[0]),
            lambda: measured(lambda: commit_rows(folder, [fork] * n), paths[1]))


def with_byte_code():
    """Return an environment in which imports write byte code, and find it the next time."""
    return {name: value for name, value in os.environ.items()
            if name != 'PYTHONDONTWRITEBYTECODE'}


def measured_apart(program, *arguments, root=ROOT):
    """Return the number that a program prints, run in an interpreter of its own.

    Args:
        root: the folder with the copy of the library that the program imports.
    """
    # First the byte code: what compiling takes would hide what the flow takes.
    for code, given in (('import sequent', ()), (program, map(str, arguments))):
        done = subprocess.run([sys.executable, '-c', code] + list(given), cwd=root, check=True,
                              stdout=subprocess.PIPE, universal_newlines=True,
                              env=with_byte_code())
    return float(done.stdout)


STARTS = """
import logging, sys, sequent
given = {'fork': {'func': int}, 'program': {'command': ['true']},
         'forkserver': {'func': int, 'config': {'start_method': 'forkserver'}}}[sys.argv[2]]
flow = sequent.Sequent('bench', sequent.MemoryStore(), logging_level=logging.CRITICAL)
step = ()
for number in range(200):
    step = flow.add_step('s%d' % number, require=step, **given)
last = flow.add_step('last', func=[].pop, require=step, config={'start_method': 'fork'})
for number in range(int(sys.argv[1])):
    flow.add_step('t%d' % number, func=int, require=last)
if sys.argv[3:] == ['bare']:
    import multiprocessing, time
    began = time.perf_counter()
    for number in range(200):
        process = multiprocessing.get_context('fork').Process(target=int)
        process.start()
        process.join()
    print(time.perf_counter() - began)
else:
    assert flow() is False
    times = {one.path: one for one in flow.tasks()}
    print(times['s199'].end - times['s0'].start)
"""


def large(kind, n_of_bound, *how):
    """Make the benchmark of 200 tasks in a flow of n steps.

    Args:
        kind: of task.
        n_of_bound: given n, returns the number of steps of the bound.
        how: how the bound is run: ``'bare'``, without the flow.
    """
    def make(n, folder):
        # As it is told by the task.
        return (lambda: measured_apart(STARTS, n, kind) * n / 200,
                lambda: measured_apart(STARTS, n_of_bound(n), kind, *how) * n / 200)
    return make


# What a flow's module holds, and so its steps, is in every child that is forked.
Benchmark('200 processes in a flow of {n} steps',
          'fork and join in a program that has made as many steps, and no plan', 100000,
          times=1.25, name='large_flow_fork')(large('fork', lambda n: n, 'bare'))
for kind, what in [('program', 'programs'), (
        'forkserver', "processes of start_method 'forkserver'")]:
    Benchmark('200 %s in a flow of {n} steps' % what, 'the same in a small flow', 100000,
              times=1.25, name='large_flow_' + kind)(large(kind, lambda n: 10))


ALONE = """
import logging, sys, time, sequent
shape, n = sys.argv[1], int(sys.argv[2])
given = {'command': ['true']} if shape == 'programs' else {'func': int}
flow = sequent.Sequent('bench', 'flow.db', logging_level=logging.WARNING,
                       config={'max_concurrent': 2})
step, steps = (), []
for number in range(n):
    step = flow.add_step('s%d' % number, require=() if shape == 'fan' else step, **given)
    steps.append(step)
flow.add_step('end', require=tuple(steps), func=int)
flow.compile()
began = time.perf_counter()
assert flow() is True
print(time.perf_counter() - began)
"""


def alone(shape, bound):
    """Make a benchmark of sequent.py in a folder without backends/.

    Args:
        shape: of the flow: a name that `ALONE` knows.
        bound: given n and a folder, does what the flow does.
    """
    def make(n, folder):
        copy = os.path.join(folder, 'alone')
        os.mkdir(copy)
        shutil.copy(os.path.join(ROOT, 'sequent.py'), copy)
        return (lambda: measured_apart(ALONE, shape, n, root=copy)), lambda: bound(n + 1, folder)
    return make


Benchmark('a chain of {n} processes, sqlite, sequent.py alone', 'fork, join and a commit each',
          1000, times=1.4, name='chain_alone')(alone(
              'chain', lambda n, folder: commit_rows(folder, [fork_and_join] * n)))
Benchmark('{n} independent processes, two at a time, sqlite, sequent.py alone',
          'the same with fork, join and a commit each', 1000, times=1.4, name='fan_alone')(alone(
              'fan', lambda n, folder: commit_rows(folder, [two_at_a_time(n)] * n)))
Benchmark('a chain of {n} programs, sqlite, sequent.py alone',
          "fork and join, subprocess.run(['true']), and a commit each", 500, times=1.4,
          name='programs_alone')(alone('programs', lambda n, folder: commit_rows(
              folder, [lambda: (fork_and_join(), subprocess.run(['true'], check=True))] * n)))


def idle_flow(measure, **given):
    """Return what runs a flow of one step that waits, and returns what that adds to a measure."""
    flow = new_flow(':memory:')
    flow.add_step('wait', **given)
    run = running(flow)

    def added():
        before = measure()
        run()
        return float(measure() - before)
    return added, None


def cpu_time():
    return time.process_time() * 1e3


def wake_ups():
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


@Benchmark('waiting {n} s for a delay', None, 60, most=30, unit='ms of CPU')
def idle_delay(n, folder):
    return idle_flow(cpu_time, func=no_op, delay=n)


@Benchmark('waiting {n} s for a process', None, 60, most=30, unit='ms of CPU')
def idle_process(n, folder):
    return idle_flow(cpu_time, func=time.sleep, args=(n,))


@Benchmark('waiting {n} s for a delay; some are for the start of the process', None, 60, most=20,
           unit='wake-ups')
def wakes_delay(n, folder):
    return idle_flow(wake_ups, func=no_op, delay=n)


@Benchmark('waiting {n} s for a process; one in each sleep_between_loops, and some for its start',
           None, 60, most=60 / sequent.CONFIG_KEYS['sleep_between_loops'].default + 20,
           unit='wake-ups')
def wakes_process(n, folder):
    return idle_flow(wake_ups, func=time.sleep, args=(n,))


PEAK = """
import logging, sys, sequent
def peak():    # that of getrusage() begins with the memory of who has started this
    with open('/proc/self/status') as status:
        return next(int(line.split()[1]) for line in status if line.startswith('VmHWM')) / 1024
"""
MEMORY = PEAK + """
flow = sequent.Sequent('bench', ':memory:', logging_level=logging.WARNING,
                       config={'task_construct': 'inline'})
box = flow.add_step('box', loop=range(int(sys.argv[1])))
box.add_step('a', func=int)
before = peak()
assert flow() is True
print(peak() - before)
"""


@Benchmark('memory that a loop of {n} iterations takes, inline, memory', None, 1000000, most=10,
           unit='MB')
def loop_memory(n, folder):
    return lambda: measured_apart(MEMORY, n), None


RECOVERY = PEAK + """
class Stopped(Exception):
    pass
def last():
    raise Stopped
def a_flow(mode, func):
    flow = sequent.Sequent('bench', sys.argv[2], run_mode=mode, logging_level=logging.CRITICAL,
                           config={'task_construct': 'inline', 'synchronous': 'off'})
    box = flow.add_step('box', loop=range(int(sys.argv[1])))
    box.add_step('a', func=int)
    flow.add_step('last', func=func, require=box)
    return flow
if sys.argv[3] == 'run':
    logging.disable(logging.ERROR)
    assert a_flow('restart', last)() is False
    print(0)
else:
    flow, before = a_flow('recover', int), peak()
    assert flow() is True
    print(peak() - before)
"""


@Benchmark('memory that a recovery of a loop of {n} done iterations takes over that of one of 5',
           None, 100000, most=5, unit='MB')
def recovery_memory(n, folder):
    paths = {size: os.path.join(folder, 'flow%d.db' % size) for size in (n, 5)}
    for size, path in paths.items():
        measured_apart(RECOVERY, size, path, 'run')
    return lambda: (measured_apart(RECOVERY, n, paths[n], 'recover')
                    - measured_apart(RECOVERY, 5, paths[5], 'recover')), None


TASKS = """
import logging, sys, tracemalloc, sequent
flow = sequent.Sequent('bench', sys.argv[2], logging_level=logging.WARNING,
                       config={'task_construct': 'inline'})
for number in range(int(sys.argv[1])):
    flow.add_step('s%d' % number, func=int)
flow.compile()
tracemalloc.start()
assert flow() is True
print(tracemalloc.get_traced_memory()[1] / int(sys.argv[1]))
"""


@Benchmark('memory that each of {n} tasks takes that are ready at one time, inline, sqlite', None,
           100000, most=1000, unit='bytes')
def task_memory(n, folder):
    return lambda: measured_apart(TASKS, n, os.path.join(folder, 'flow.db')), None


STATUS = """
import os, resource, subprocess, sys, time
began = time.perf_counter()
done = subprocess.run([sys.executable, '-m', 'sequent', sys.argv[1], 'status'], check=True,
                      stdout=subprocess.PIPE)
assert b'success' in done.stdout
took = time.perf_counter() - began
print({'time': took, 'memory': resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
       }[sys.argv[2]])
"""


def a_run_of(n, path):
    """Write a flow in which five steps are gone over, and the store of a run of its n tasks."""
    with open(path, 'w') as file:
        file.write("import sequent\nflow = sequent.Sequent('bench')\n"
                   "loop = flow.add_step('loop', loop=range(%d))\n" % (n // 5) + ''.join(
                       "loop.add_step('%s', func=int)\n" % name for name in 'abcde'))
    store = sequent.SqliteStore(path[:-3] + '.run.db', 'off')
    run = sequent.RunRecord('bench', 'r1', 0, 'restart', 'success', 1.0, 2.0, '{}', '{}')
    with contextlib.closing(store):
        store.open()
        store.begin(run)
        for first in range(0, n // 5, 10000):
            store.commit(run, [
                sequent.TaskRecord('loop_' + name, '1.%d' % (number + 1), 0, 1, 'leaf', 'success',
                                   False, None, None, 1.0, 2.0)
                for number in range(first, min(first + 10000, n // 5)) for name in 'abcde'])
    return path


@Benchmark('status of a run of {n} tasks in loops', None, 1000000, most=1, unit='s')
def status(n, folder):
    path = a_run_of(n, os.path.join(folder, 'flow.py'))
    return lambda: measured_apart(STATUS, path, 'time'), None


@Benchmark('memory that status of a run of {n} tasks takes over that of one of 5', None, 1000000,
           most=10, unit='MB')
def status_memory(n, folder):
    large, small = [a_run_of(size, os.path.join(folder, 'flow%d.py' % size)) for size in (n, 5)]
    return lambda: (measured_apart(STATUS, large, 'memory')
                    - measured_apart(STATUS, small, 'memory')), None


def starting(n, folder, *arguments):
    """Return what starts a Python n times, without what the site adds and with byte code."""
    environment = dict(with_byte_code(), PYTHONPATH=ROOT)
    command = [sys.executable, '-S'] + list(arguments)

    def start(times=n):
        return [subprocess.run(command, check=True, cwd=folder, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE).stderr
                for _ in range(times)]
    start(1)    # which writes the byte code
    return start


def importing_by(statement, n, folder):
    """Return what imports modules n times, and returns the seconds that these imports take."""
    start = starting(n, folder, '-X', 'importtime', '-c', statement)
    bare = starting(n, folder, '-X', 'importtime', '-c', 'pass')

    def seconds(outputs):
        return sum(int(line.split(b'|')[0].split(b':')[1]) for output in outputs
                   for line in output.splitlines()
                   if line.startswith(b'import time:') and b'[us]' not in line) / 1e6
    return lambda: seconds(start()) - seconds(bare())


def needed_modules():
    """Return the import statement of the standard modules that sequent.py imports at its top."""
    with open(os.path.join(ROOT, 'sequent.py'), encoding='utf-8') as source:
        tree = ast.parse(source.read())
    return 'import ' + ', '.join(alias.name for one in tree.body if isinstance(one, ast.Import)
                                 for alias in one.names)


@Benchmark('{n} times import sequent', 'the imports it cannot do without', 20, times=1.3)
def importing(n, folder):
    if sys.version_info < (3, 7):    # which has no -X importtime: starts are counted, too
        return (starting(n, folder, '-c', 'import sequent'),
                starting(n, folder, '-c', needed_modules()))
    return (importing_by('import sequent', n, folder),
            importing_by(needed_modules(), n, folder))


@Benchmark('{n} times list, of a flow of ten steps',
           'a module of the imports it cannot do without, argparse among them', 20,
           times=1.3)
def listing(n, folder):
    with open(os.path.join(folder, 'flow.py'), 'w') as stream:
        stream.write('import sequent as seq\nflow = seq.Sequent()\nstep = ()\n'
                     'for number in range(10):\n'
                     "    step = flow.add_step('s%d' % number, func=print, require=step)\n")
    with open(os.path.join(folder, 'bound.py'), 'w') as stream:
        stream.write(needed_modules() + ', argparse, locale')    # which argparse loads when used
    return (starting(n, folder, '-m', 'sequent', 'flow.py', 'list'),
            starting(n, folder, '-m', 'bound'))


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python3 -m tests.bench', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', metavar='NAME', nargs='*',
                        help='which: %s' % ', '.join(sorted(BENCHMARKS)))
    parser.add_argument('--runs', type=int, default=5, help='how often (default: 5)')
    parser.add_argument('--scale', type=float, default=1.0, help='times the number of tasks')
    parser.add_argument('--growth', type=int, nargs='+', metavar='TIMES',
                        help='compare with flows of so many times as many tasks')
    parser.add_argument('--json', action='store_true', help='print JSON, a line each')
    parser.add_argument('--folder', help='where to write, and leave, what they write (default: a '
                        'temporary folder, which is removed at the end)')
    options = parser.parse_args(argv)
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error('no benchmark %r; there are: %s' % (name, ', '.join(sorted(BENCHMARKS))))
    if options.folder is None:
        with tempfile.TemporaryDirectory(prefix='sequent-bench-') as options.folder:
            return measure_all(options)
    return measure_all(options)


def measure_all(options):
    """Measure each in an interpreter of its own; print what is found, and return the exit code."""
    names = options.names or sorted(BENCHMARKS)
    if len(names) > 1:
        given = ['--runs', str(options.runs), '--scale', str(options.scale), '--folder',
                 options.folder] + ['--json'] * options.json
        if options.growth:
            given += ['--growth'] + list(map(str, options.growth))
        return max([subprocess.call([sys.executable, '-m', __spec__.name, name] + given, cwd=ROOT)
                    for name in names])
    given = [options.runs, options.scale, os.path.abspath(options.folder)]
    benchmark = BENCHMARKS[names[0]]
    found = benchmark.grow(*given, options.growth) if options.growth else benchmark.run(*given)
    print(json.dumps(dict(found, name=names[0])) if options.json else describe(names[0], found))
    return 0 if found['reached'] else 1


def describe(name, found):
    if 'value' in found:
        text = '%.3g %s' % (found['value'], found['unit'])
    elif 'each' in found:
        text = '%s us a task: up to %.2f times' % (
            ', '.join('%.1f' % one for one in found['each']), found['times'])
    else:
        text = '%.1f us a task, against %.2f us for %s: %.2f times, %.1f us over' % (
            found['microseconds'], found['bound_microseconds'], found['bound'], found['times'],
            found['over'])
    return '%-14s %s\n%14s %s (limit: %s)%s' % (
        name, found['what'], '', text, found['limit'], '' if found['reached'] else ' NOT REACHED')


if __name__ == '__main__':
    sys.exit(main())
