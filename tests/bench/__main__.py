"""Benchmarks, each against a bare lower bound that is measured in the same run.

    python3 -m tests.bench [NAME ...] [--runs N] [--scale X] [--json]

Machines differ, so what counts is the comparison: how many times the bound a flow takes, or how
much more a task. Printed are medians over the runs, in which flow and bound take turns. Exit code
1 says that some benchmark does not reach what it should.
"""

import argparse
import ast
import concurrent.futures
import contextlib
import gc
import json
import logging
import multiprocessing
import os
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
        bound: what it is compared with.
        tasks: how many there are.
        times: how many times the bound it may take; or
        over: how many microseconds of CPU time more a task.

    It is put before a function that is given the number of tasks and a folder and returns two
    functions to time: the flow and the bound. What they need is made before.
    """

    def __init__(self, what, bound, tasks, times=None, over=None):
        self.what = what
        self.bound = bound
        self.tasks = tasks
        self.times = times
        self.over = over

    def __call__(self, make):
        self.make = make
        BENCHMARKS[make.__name__] = self
        return make

    def run(self, runs, scale):
        """Return the medians and what became of the limit, as a dict."""
        n = max(1, int(self.tasks * scale))
        # A limit on the time over the bound is one on work that is done here.
        clock = time.perf_counter if self.over is None else time.process_time
        flows, bounds = [], []
        for _ in range(runs):
            with tempfile.TemporaryDirectory(prefix='sequent-bench-') as folder:
                flow, bound = self.make(n, folder)
                bounds.append(timed(bound, clock))
                flows.append(timed(flow, clock))
        flow, bound = statistics.median(flows) / n * 1e6, statistics.median(bounds) / n * 1e6
        times = statistics.median(one / other for one, other in zip(flows, bounds))
        found = {'what': self.what.format(n=n), 'bound': self.bound, 'tasks': n, 'runs': runs,
                 'microseconds': flow, 'bound_microseconds': bound, 'times': times,
                 'over': flow - bound}
        if self.over is None:
            found.update(limit='%g times' % self.times, reached=found['times'] <= self.times)
        else:
            found.update(limit='%g us over' % self.over, reached=found['over'] <= self.over)
        return found


def timed(work, clock):
    """Return the seconds that a function takes, without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        began = clock()
        work()
        return clock() - began
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


def commit_rows(folder, works, rows=1, synchronous='FULL'):
    """Do each work, and commit so many rows after so many works, with SQLite's journal."""
    with contextlib.closing(sqlite3.connect(os.path.join(folder, 'bound.db'))) as database:
        database.isolation_level = None
        database.execute('PRAGMA synchronous = %s' % synchronous)
        database.execute('CREATE TABLE done (id INTEGER PRIMARY KEY, path TEXT, status TEXT)')
        waiting = []
        for number, work in enumerate(works):
            work()
            waiting.append((number, 's%d' % number))
            if len(waiting) == rows:
                database.execute('BEGIN IMMEDIATE')
                database.executemany("INSERT INTO done VALUES (?, ?, 'success')", waiting)
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


@Benchmark('a parallel map over {n} items, inline, memory', 'the calls', 10000, over=15)
def parallel_map(n, folder):
    flow = new_flow(':memory:', task_construct='inline')
    flow.add_step('map', func=no_op, args=(sequent.item,), loop=range(n),
                  config={'max_concurrent': 8})
    return running(flow), lambda: [no_op(item) for item in range(n)]


@Benchmark('{n} independent steps and one that requires them, inline, memory', 'the calls',
           10000, over=12)
def independent(n, folder):
    flow = new_flow(':memory:', task_construct='inline')
    return fan(flow, n), lambda: [no_op() for _ in range(n + 1)]


@Benchmark('a chain of {n} inline steps, sqlite', 'a row and a commit each', 2000, times=1.5)
def inline_chain(n, folder):
    flow = new_flow(os.path.join(folder, 'flow.db'), task_construct='inline')
    return chain(flow, n, func=no_op), lambda: commit_rows(folder, [no_op] * n)


@Benchmark('a chain of {n} inline steps, sqlite, synchronous off', 'a row and a commit each',
           10000, times=1.5)
def inline_chain_off(n, folder):
    flow = new_flow(os.path.join(folder, 'flow.db'), task_construct='inline', synchronous='off')
    return chain(flow, n, func=no_op), lambda: commit_rows(folder, [no_op] * n,
                                                           synchronous='OFF')


@Benchmark('{n} independent inline steps, sqlite', 'their rows, a commit for each 100', 10000,
           times=3)
def grouped(n, folder):
    flow = new_flow(os.path.join(folder, 'flow.db'), task_construct='inline')
    return fan(flow, n), lambda: commit_rows(folder, [no_op] * n, rows=100)


@Benchmark('{n} independent threads, memory', 'ThreadPoolExecutor(2).map', 10000, over=20)
def threads(n, folder):
    flow = new_flow(':memory:', task_construct='thread', max_concurrent=2)

    def bound():
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(no_op, range(n)))
    return fan(flow, n), bound


def starting(n, folder, *arguments):
    """Return what starts a Python n times, without what the site adds and with byte code."""
    environment = {name: value for name, value in os.environ.items()
                   if name != 'PYTHONDONTWRITEBYTECODE'}
    environment['PYTHONPATH'] = ROOT
    command = [sys.executable, '-S'] + list(arguments)

    def start(times=n):
        for _ in range(times):
            subprocess.run(command, check=True, cwd=folder, env=environment,
                           stdout=subprocess.DEVNULL)
    start(1)    # which writes the byte code
    return start


def needed_modules():
    """Return the import statement of the standard modules that sequent.py imports at its top."""
    with open(os.path.join(ROOT, 'sequent.py'), encoding='utf-8') as source:
        tree = ast.parse(source.read())
    return 'import ' + ', '.join(alias.name for one in tree.body if isinstance(one, ast.Import)
                                 for alias in one.names)


@Benchmark('{n} times import sequent', 'a start and the imports it cannot do without', 20,
           times=1.5)
def importing(n, folder):
    return (starting(n, folder, '-c', 'import sequent'),
            starting(n, folder, '-c', needed_modules()))


@Benchmark('{n} times list, of a flow of ten steps',
           'a start and the imports it cannot do without, argparse among them', 20, times=2)
def listing(n, folder):
    with open(os.path.join(folder, 'flow.py'), 'w') as stream:
        stream.write('import sequent as seq\nflow = seq.Sequent()\nstep = ()\n'
                     'for number in range(10):\n'
                     "    step = flow.add_step('s%d' % number, func=print, require=step)\n")
    return (starting(n, folder, '-m', 'sequent', 'flow.py', 'list'),
            starting(n, folder, '-c', needed_modules() + ', argparse'))


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python3 -m tests.bench', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', metavar='NAME', nargs='*',
                        help='which: %s' % ', '.join(sorted(BENCHMARKS)))
    parser.add_argument('--runs', type=int, default=5, help='how often (default: 5)')
    parser.add_argument('--scale', type=float, default=1.0, help='times the number of tasks')
    parser.add_argument('--json', action='store_true', help='print JSON, a line each')
    options = parser.parse_args(argv)
    for name in options.names:
        if name not in BENCHMARKS:
            parser.error('no benchmark %r; there are: %s' % (name, ', '.join(sorted(BENCHMARKS))))
    reached = True
    for name in options.names or sorted(BENCHMARKS):
        found = BENCHMARKS[name].run(options.runs, options.scale)
        reached = reached and found['reached']
        print(json.dumps(dict(found, name=name)) if options.json else describe(name, found),
              flush=True)
    return 0 if reached else 1


def describe(name, found):
    return ('%-14s %s\n%14s %.1f us a task, against %.2f us for %s: %.2f times, %.1f us over '
            '(limit: %s)%s' % (name, found['what'], '', found['microseconds'],
                               found['bound_microseconds'], found['bound'], found['times'],
                               found['over'], found['limit'],
                               '' if found['reached'] else ' NOT REACHED'))


if __name__ == '__main__':
    sys.exit(main())
