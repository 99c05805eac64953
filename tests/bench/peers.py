"""The same flows run by others: milliseconds per step, in one run.

    python3 -m tests.bench.peers [NAME ...] [--steps N] [--json]

A chain of N no-op steps and a fan of N of them with one that requires them all, N = 1000, made
and run by each program, without its start and its imports. Each is installed into a virtual
environment of its own, below SEQUENT_BENCH_CACHE or ~/.cache/sequent-bench; what cannot be had is
skipped, with the reason. They do not do the same: ``how`` tells what each leaves out.
"""

import argparse
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CACHE = os.environ.get('SEQUENT_BENCH_CACHE') or os.path.join(
    os.path.expanduser('~'), '.cache', 'sequent-bench')
PEERS = {}
#: What every program begins with: the shape, and what prints the time that a function takes.
HEAD = '''
import json, logging, os, sys, time
SHAPE, N = sys.argv[1], int(sys.argv[2])
logging.disable(logging.ERROR)
def no_op(*given, **named):
    return None
def measured(run):
    sys.stdout.flush()
    real, void = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 1)
    began = time.perf_counter()
    run()
    took = time.perf_counter() - began
    os.dup2(real, 1)
    print('\\nTOOK', took)
'''


class Peer:
    """A program that is compared.

    Args:
        name: how it is called here.
        how: what it runs, and what it leaves out.
        requires: what pip is to install; () needs nothing.
        source: a program that runs the flow by ``measured``.
        steps: how many steps at most, for what is very slow.
        pythons: interpreters that can run it, tried in turn; None: this one.
        shapes: what it can run.
        unpacked: source distributions that are only unpacked, as they cannot be built any more.
    """

    def __init__(self, name, how, requires, source, steps=None, pythons=(None,),
                 shapes=('chain', 'fan'), unpacked=()):
        self.name = name
        self.how = how
        self.requires = requires
        self.source = HEAD + source
        self.steps = steps
        self.pythons = pythons
        self.shapes = shapes
        self.unpacked = unpacked
        PEERS[name] = self

    def python(self):
        """Return the interpreter in its environment, installed if need be.

        Raises:
            LookupError: says why it cannot be had.
        """
        if not self.requires:
            return sys.executable
        base = next((one or sys.executable for one in self.pythons if starts(one)), None)
        if base is None:
            raise LookupError('it needs one of %s' % ', '.join(self.pythons))
        folder = os.path.join(CACHE, self.name.split()[0])
        python, marker = [os.path.join(folder, *one) for one in (('bin', 'python'), ('holds',))]
        if not self._holds(marker):
            shutil.rmtree(folder, ignore_errors=True)
            pip = [python, '-m', 'pip']
            self._install([base, '-m', 'venv', folder])
            if self.pythons != (None,):    # an old one, whose pip knows no wheels of today
                self._install(pip + ['install', '-q', '-U', 'pip<22'])
            self._install(pip + ['install', '-q'] + list(self.requires))
            for one in self.unpacked:
                self._install(pip + ['download', '-q', '--no-deps', '-d', folder, one])
            for path in glob.glob(os.path.join(folder, '*.tar.gz')):
                shutil.unpack_archive(path, folder)
            with open(marker, 'w') as file:
                file.write(repr((self.requires, self.unpacked)))
        return python

    @staticmethod
    def _install(command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            raise LookupError('it cannot be installed: %s' % (
                done.stdout.decode('utf-8', 'replace').strip().splitlines() or [''])[-1])

    def _holds(self, marker):
        if not os.path.exists(marker):
            return False
        with open(marker) as file:
            return file.read() == repr((self.requires, self.unpacked))

    def path(self):
        """Return PYTHONPATH for it."""
        if not self.requires:
            return ROOT
        return os.pathsep.join(os.path.join(CACHE, self.name.split()[0], one.replace('==', '-'))
                               for one in self.unpacked)

    def run(self, shape, n):
        """Return the milliseconds that it takes for a step."""
        n = min(n, self.steps or n)
        with tempfile.TemporaryDirectory(prefix='sequent-bench-') as folder:
            path = os.path.join(folder, 'program.py')
            with open(path, 'w') as file:
                file.write(self.source)
            environment = dict(os.environ, PYTHONPATH=self.path())
            done = subprocess.run([self.python(), path, shape, str(n)], cwd=folder,
                                  env=environment, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=900)
        lines = [line.split()[1] for line in done.stdout.decode('utf-8', 'replace').splitlines()
                 if line.startswith('TOOK ')]
        if not lines:
            text = (done.stderr or done.stdout).decode('utf-8', 'replace').strip()
            raise LookupError('it fails: %s' % (text.splitlines() or [''])[-1])
        return float(lines[-1]) / n * 1e3


def starts(python):
    """Whether an interpreter can be started: what is on PATH may be a shim that cannot."""
    return python is None or shutil.which(python) is not None and not subprocess.call(
        [python, '-c', ''], stderr=subprocess.DEVNULL)


OURS = '''
import sequent
flow = sequent.Sequent('bench', %r, logging_level=logging.WARNING, config=%r)
step, steps = (), []
for number in range(N):
    step = flow.add_step('s%%d' %% number, require=step if SHAPE == 'chain' else (), %s)
    steps.append(step)
flow.add_step('end', func=no_op, require=tuple(steps))
def run():
    assert flow()
measured(run)
'''

Peer('sequent', 'a process each, every status durable', (),
     OURS % ('flow.db', {'max_concurrent': 2}, 'func=no_op'))
Peer('sequent (inline)', 'in the supervisor, every status durable', (),
     OURS % ('flow.db', {'task_construct': 'inline'}, 'func=no_op'))
Peer('sequent (thread)', 'two threads, nothing durable', (),
     OURS % (':memory:', {'task_construct': 'thread', 'max_concurrent': 2}, 'func=no_op'))
Peer('sequent (program)', 'a program each (true), every status durable', (),
     OURS % ('flow.db', {'max_concurrent': 2}, "command=['true']"))

DOIT = '''
from doit.cmd_base import ModuleTaskLoader
from doit.doit_cmd import DoitMain
def task_s():
    for number in range(N):
        yield {'name': str(number), 'actions': [no_op], 'task_dep': (
            ['s:%%d' %% (number - 1)] if SHAPE == 'chain' and number else [])}
    yield {'name': 'end', 'actions': [no_op], 'task_dep': ['s:%%d' %% one for one in range(N)]}
def run():
    assert DoitMain(ModuleTaskLoader({'task_s': task_s})).run(
        ['run', '--backend', 'sqlite3', '-v', '0'] + %r) == 0
measured(run)
'''
Peer('doit', 'in one process; nothing is durable before the end', ('doit',), DOIT % [])
Peer('doit (-n 2)', 'two processes that stay; nothing is durable before the end', ('doit',),
     DOIT % ['-n', '2'])
Peer('taskflow', 'in one process, sqlite', (
    'taskflow', 'sqlalchemy<2', 'sqlalchemy-utils', 'alembic', 'setuptools<80'), '''
from taskflow import engines, task
from taskflow.patterns import graph_flow, linear_flow, unordered_flow
from taskflow.persistence import backends
class Step(task.Task):
    def execute(self):
        return None
steps = [Step(name='s%d' % number) for number in range(N)]
inner = (linear_flow if SHAPE == 'chain' else unordered_flow).Flow('f').add(*steps)
whole = linear_flow.Flow('w').add(inner, Step(name='end'))
backend = backends.fetch({'connection': 'sqlite:///flow.db'})
backend.get_connection().upgrade()
def run():
    engines.load(whole, engine='serial', backend=backend).run()
measured(run)
''')
Peer('luigi', 'in one process; nothing durable', ('luigi', 'setuptools<80'), '''
import luigi
done = set()
class Step(luigi.Task):
    number = luigi.IntParameter()
    def complete(self):
        return self.number in done
    def run(self):
        done.add(self.number)
    def requires(self):
        if self.number == N:
            return [Step(number=one) for one in range(N)]
        return [Step(number=self.number - 1)] if SHAPE == 'chain' and self.number else []
sys.setrecursionlimit(100000)
def run():
    assert luigi.build([Step(number=N)], local_scheduler=True, workers=1, log_level='CRITICAL')
measured(run)
''')
Peer('prefect', 'in one process, its server beside it, sqlite', ('prefect',), '''
os.environ.update(PREFECT_HOME=os.getcwd(), PREFECT_LOGGING_LEVEL='CRITICAL',
                  PREFECT_SERVER_ANALYTICS_ENABLED='false', DO_NOT_TRACK='1')
from prefect import flow, task
step = task(no_op)
@flow
def whole():
    last, all_of_them = None, []
    for number in range(N):
        if SHAPE == 'chain':
            last = step(last)
        else:
            all_of_them.append(step.submit())
    for one in all_of_them:
        one.result()
measured(whole)
''')
Peer('dbos', 'in one process, sqlite', ('dbos',), '''
from dbos import DBOS
DBOS(config={'name': 'bench', 'system_database_url': 'sqlite:///flow.db', 'log_level': 'CRITICAL',
             'run_admin_server': False})
@DBOS.step()
def step():
    return None
@DBOS.workflow()
def whole():
    for number in range(N):
        step()
DBOS.launch()
measured(whole)
DBOS.destroy()
''', shapes=('chain',))
Peer('dask', 'two threads, nothing durable', ('dask',), '''
import dask
step = dask.delayed(no_op, pure=False)
last, steps = None, []
for number in range(N):
    last = step(last) if SHAPE == 'chain' else step()
    steps.append(last)
end = step(steps)
def run():
    dask.compute(end, scheduler='threads', num_workers=2)
measured(run)
''')
Peer('joblib', 'two processes that stay, nothing durable', ('joblib',), '''
import joblib
def run():
    joblib.Parallel(n_jobs=2, batch_size=1)(joblib.delayed(len)('') for _ in range(N))
measured(run)
''', shapes=('fan',))
Peer('make', 'a program each (true), two at a time; what is done is what files say', (), '''
import shutil, subprocess
if not shutil.which('make'):
    sys.exit('there is no make')
with open('Makefile', 'w') as file:
    file.write('all: %s\\n\\t@true\\n' % ' '.join('s%d' % number for number in range(N)))
    for number in range(N):
        file.write('s%d: %s\\n\\t@true\\n' % (
            number, 's%d' % (number - 1) if SHAPE == 'chain' and number else ''))
measured(lambda: subprocess.run(['make', '-j2'], check=True))
''')
Peer('predecessor', 'a process each, sqlite; sequent 3.1.7, 100 steps', (
    'sqlalchemy<1.4', 'pyyaml', 'namedlist', 'acris'), '''
from sequent import Sequent, StepStatus
flow = Sequent(config={'max_concurrent': 2}, store='flow.db')
steps = []
for number in range(N):
    steps.append(flow.add_step('s%d' % number, func=no_op, requires=(
        ((steps[-1], StepStatus.success),) if SHAPE == 'chain' and steps else ())))
flow.add_step('end', func=no_op, requires=tuple((one, StepStatus.success) for one in steps))
measured(flow.run)
''', steps=100, pythons=('python3.6', os.path.expanduser('~/.pyenv/versions/3.6.15/bin/python')),
    unpacked=('sequent==3.1.7', 'eventor==5.1.9', 'acrilib==1.0.6', 'acrilog==2.0.13',
              'sshpipe==0.5.2'))


def compare(name, steps):
    """Return what is known of a peer, as a dict."""
    peer, found = PEERS[name], {'name': name, 'how': PEERS[name].how}
    try:
        for shape in peer.shapes:
            found[shape] = peer.run(shape, steps)
    except (LookupError, OSError, subprocess.TimeoutExpired) as error:
        found['skipped'] = str(error)
    return found


def describe(found):
    if 'skipped' in found:
        return '| %-18s | skipped: %s |' % (found['name'], found['skipped'])
    times = ['%8.3f' % found[shape] if shape in found else '%8s' % '-'
             for shape in ('chain', 'fan')]
    return '| %-18s | %s | %s | %s |' % (found['name'], times[0], times[1], found['how'])


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python3 -m tests.bench.peers', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', metavar='NAME', nargs='*',
                        help='which: %s' % ', '.join(map(repr, PEERS)))
    parser.add_argument('--steps', type=int, default=1000, help='how many (default: 1000)')
    parser.add_argument('--json', action='store_true', help='print JSON, a line each')
    options = parser.parse_args(argv)
    for name in options.names:
        if name not in PEERS:
            parser.error('no program %r; there are: %s' % (name, ', '.join(map(repr, PEERS))))
    if not options.json:
        print('| ms per step        |    chain |      fan | how |\n|---|---|---|---|')
    for name in options.names or PEERS:
        found = compare(name, options.steps)
        print(json.dumps(found) if options.json else describe(found), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
