"""What the tests of the disk and of damaged stores share: a small flow of process, inline and
program steps, whose store lies in a folder of its own and which the command line runs; file
systems of one's own; a check that nothing is lost.
"""

import contextlib
import logging
import os
import shutil
import sqlite3
import subprocess
import sys

import pytest

import sequent
from runtools import DEADLINE, HERE, Journal, Supervisor, wait_until

STEPS = ('process', 'inline', 'program', 'last')
FLOW = '''\
import os, signal, sys
sys.path.insert(0, %r)
import sequent as seq
from runtools import Journal

FOLDER = os.path.dirname(os.path.abspath(__file__))
journal = Journal(FOLDER)
SIZE = int(os.environ.get('SIZE', 10))
CONFIG = {'start_method': 'fork', 'sleep_between_loops': 0.05, 'shutdown_grace': 5}
CONSTRUCT = os.environ.get('CONSTRUCT', 'process')

def work(name):
    journal.note(name + ' begins')
    journal.sign(name)
    if 'IGNORE' in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if name in os.environ.get('HOLD', '').split():
        journal.pass_gate(name)
    if 'QUIET' not in os.environ:
        print(name, 'says something')
    journal.note(name + ' ends')
    return 'x' * SIZE

SHELL = """
echo program begins >> $0/journal
case " $HOLD " in *" program "*)
    until [ -e $0/gate-program -o -e $0/gate-all ]; do sleep 0.01; done
esac
echo program says something
echo program ends >> $0/journal
"""

flow = seq.Sequent('flow', store=os.path.join(FOLDER, 'data', 'etl.db'), run_id='r1',
                   config=CONFIG)
first = flow.add_step('process', func=work, args=('process',),
                      config={'task_construct': CONSTRUCT})
inline = flow.add_step('inline', func=work, args=('inline',), require=first,
                       config={'task_construct': 'inline'})
program = flow.add_step('program', func=seq.Command(['/bin/sh', '-c', SHELL, FOLDER]),
                        require=first)
flow.add_step('last', func=work, args=('last',), require=(inline, program))
''' % HERE


class Done:
    """How a program has ended."""

    def __init__(self, code, output, errors):
        self.code = code
        self.output = output
        self.errors = errors

    def __repr__(self):
        return 'exit code %s\n%s\n%s' % (self.code, self.output, self.errors)


class Night:
    """The flow in its folder, and the command line that runs it."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.data = os.path.join(self.folder, 'data')
        self.store = os.path.join(self.data, 'etl.db')
        self.journal = Journal(folder)
        self.started = []
        os.mkdir(self.data)
        with open(os.path.join(self.folder, 'flow.py'), 'w') as file:
            file.write(FLOW)

    def start(self, *arguments, before=(), **environment):
        """Start ``python -m sequent flow``; returns a `Supervisor`.

        Args:
            before: what stands before it on the command line, ``strace`` for one.
        """
        name = '%d-%s' % (len(self.started), '-'.join(arguments[:1]))
        files = [os.path.join(self.folder, kind + name) for kind in ('output-', 'errors-')]
        with open(files[0], 'wb') as output, open(files[1], 'wb') as errors:
            process = subprocess.Popen(
                list(before) + [sys.executable, '-m', 'sequent', 'flow'] + list(arguments),
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=output, stderr=errors,
                env=dict(os.environ, **environment))
        supervisor = Supervisor(process, name, files[1])
        supervisor.output = files[0]
        self.started.append(supervisor)
        self.journal.sign('supervisor', process.pid)
        return supervisor

    @staticmethod
    def end(supervisor):
        """Wait until a supervisor has ended; returns what it left, as `Done`."""
        code = supervisor.wait()
        with open(supervisor.output, errors='replace') as stream:
            return Done(code, stream.read(), supervisor.errors())

    def run(self, *arguments, **given):
        return self.end(self.start(*arguments, **given))

    def run_here(self, *arguments):
        """Do what `run` does in a fork of this process, which takes a tenth of the time."""
        files = [os.path.join(self.folder, name) for name in ('output', 'errors')]
        pid = os.fork()
        if not pid:
            code = 70
            try:
                os.chdir(self.folder)
                logging.getLogger().handlers[:] = []
                sys.path.insert(0, self.folder)
                sys.stdout, sys.stderr = [open(path, 'w') for path in files]
                code = sequent.main(['flow'] + list(arguments))
                sys.stderr.flush()
            finally:
                os._exit(code)
        code = os.waitpid(pid, 0)[1]
        texts = [content(path).decode('utf-8', 'replace') for path in files]
        return Done(code >> 8 if not code & 0xff else -code, *texts)

    def count(self, step):
        """Return how often a step has begun."""
        return self.journal.count(step + ' begins')

    def statuses(self):
        """Return {path: status} of the run; an empty one if the store holds none."""
        store = sequent.SqliteStore(self.store)
        store.open(create=False)
        with contextlib.closing(store):
            run = store.latest('flow', 'r1')
            return {one.path: one.status for one in store.tasks(run)
                    if one.kind == 'leaf'} if run else {}

    def await_only(self, step):
        """Wait until a step runs, and all other steps that began are stored as successes.

        Otherwise, a disk that is full from now on could end the run before that step has ended.
        """
        def alone():
            statuses = self.statuses()
            return statuses.pop(step, None) == 'active' and set(statuses.values()) <= {'success'}
        wait_until(alone, 'only %s to run' % step)

    def recover(self):
        """Recover the run, or run it, if it never began; check that nothing is lost by that."""
        before = self.statuses()
        begun = {step: self.count(step) for step in STEPS}
        done = self.run('recover')
        if done.code == 2 and not before:
            done = self.run('run')
        assert done.code == 0, done
        assert self.statuses() == dict.fromkeys(STEPS, 'success')
        for step in STEPS:
            if before.get(step) == 'success':
                assert self.count(step) == begun[step], 'a success of %s ran again' % step
            assert self.journal.count(step + ' ends') >= 1
        with contextlib.closing(sqlite3.connect(self.store)) as database:
            assert database.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
        return done

    def left_alone(self):
        """Return {name: content} of the store's file and what else belongs to it."""
        return {name: content(os.path.join(self.data, name)) for name in os.listdir(self.data)
                if os.path.isfile(os.path.join(self.data, name))}

    def finish(self):
        self.journal.open('all')
        for one in self.started:
            if one.process.poll() is None:
                one.kill()
            one.process.wait()
        self.journal.end_all()


def content(path):
    with open(path, 'rb') as file:
        return file.read()


def assert_refused(done, *texts):
    """It ended with exit code 4 and a sentence that names the object, without a traceback."""
    assert done.code == 4, done
    assert ': error: ' in done.errors, done
    assert_no_trace(done)
    for text in texts:
        assert text in done.errors, done


def assert_no_trace(done):
    assert 'Traceback' not in done.errors + done.output, done
    assert 'internal error' not in done.errors, done


@pytest.fixture
def night(tmp_path):
    night = Night(tmp_path)
    yield night
    night.finish()


# File systems of one's own


def can_mount():
    return sys.platform == 'linux' and os.geteuid() == 0 and shutil.which('mount')


needs_mount = pytest.mark.skipif(
    not can_mount(), reason='not for users without the right to mount a file system')


def command(*words):
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=DEADLINE)
    assert done.returncode == 0, (words, done.stdout)


@contextlib.contextmanager
def mounted(folder, *options):
    """Mount a file system on a folder, until the end of the ``with``."""
    command('mount', *(options + (folder,)))
    try:
        yield folder
    finally:
        subprocess.run(['umount', '-l', folder], check=True, timeout=DEADLINE)


def tmpfs(folder, size):
    """Mount a disk of so many bytes, in memory."""
    return mounted(folder, '-t', 'tmpfs', '-o', 'size=%d,mode=700' % size, 'tmpfs')


def fill(folder):
    """Fill the disk on which a folder lies; return the path of the file that does it."""
    path = os.path.join(folder, 'filling')
    with open(path, 'wb', 0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(b'x' * 4096)
    return path
