"""What the tests of whole runs share: a journal that tasks write, gates they wait at, stores by
name, and supervisors in processes of their own that can be killed.

Tasks run in other processes, so they tell what they did by files: see `Journal`. Programs that
tests start import this module, too.
"""

import collections
import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time

import sequent
from sequent import MemoryStore, Sequent

# Programs that tests start need no fixtures, and importing pytest takes longer than they run.
pytest = sys.modules.get('pytest')


def fixture(**given):
    """Return what makes a fixture of a function where tests run."""
    return pytest.fixture(**given) if pytest else lambda function: function


HERE = os.path.dirname(os.path.abspath(__file__))
#: How long a test waits for what must happen before it fails.
DEADLINE = 20.0
STORES = ['memory', 'sqlite']
CONSTRUCTS = ['inline', 'thread', 'process']
INLINE = {'task_construct': 'inline'}
THREAD = {'task_construct': 'thread'}
PROCESS = {'task_construct': 'process', 'start_method': 'fork'}
# Small flows, as tests have them, are forked by the supervisor itself. With this environment
# variable they have a fork server, as large ones do.
if os.environ.get('SEQUENT_FORK_SERVER'):
    importlib.import_module('sequent.tender').Tender.WORTH = 1


def wait_until(condition, what, seconds=DEADLINE):
    """Return the first true value of ``condition()``; fail when it does not come in time."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError('waited %s seconds in vain for %s' % (seconds, what))
        select.select([], [], [], 0.004)


def birth(pid):
    """Return when a process started, in clock ticks, or None for one that is gone or a zombie."""
    try:
        with open('/proc/%d/stat' % pid, 'rb') as stream:
            fields = stream.read().rpartition(b')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in (b'Z', b'X') else int(fields[19])


def is_running(pid):
    return birth(pid) is not None


def wait_gone(pid, seconds=DEADLINE):
    wait_until(lambda: not is_running(pid), 'the end of process %d' % pid, seconds)


class Journal:
    """A folder through which tasks and tests tell each other things."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.supervisors = []

    def _wait(self, condition, what):
        """Wait until something holds, but not on after a supervisor failed by an error."""
        def holds_or_never_will():
            broken = [one for one in self.supervisors if one.process.poll() == 1
                      and 'Traceback' in one.errors()]
            value = condition()
            if broken and not value:
                raise AssertionError('waited for %s, but:\n%s' % (what, broken[-1].errors()))
            return value
        return wait_until(holds_or_never_will, what)

    def _path(self, name):
        return os.path.join(self.folder, name)

    def _append(self, name, text):
        fd = os.open(self._path(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)

    def _lines(self, name):
        try:
            with open(self._path(name)) as stream:
                return stream.read().split('\n')[:-1]
        except FileNotFoundError:
            return []

    def note(self, word):
        """Write one word down; atomic among processes."""
        self._append('journal', '%s\n' % (word,))

    def words(self):
        return self._lines('journal')

    def count(self, word):
        return self.words().count(word)

    def wait_for(self, word, times=1):
        """Wait until a word was written so many times."""
        self._wait(lambda: self.count(word) >= times, '%r %d times' % (word, times))

    def sign(self, name, pid=None):
        """Write down a process (this one), for tests to find it and to end it afterwards."""
        pid = pid or os.getpid()
        self._append('pids', '%s %d %s\n' % (name, pid, birth(pid)))

    def pid(self, name):
        """Wait for a process to sign, and return its pid (of several the last)."""
        return self.pids(name)[-1]

    def pids(self, name, times=1):
        """Wait until a name was signed so many times, and return all its pids."""
        def signed():
            pids = [int(line.split()[1]) for line in self._lines('pids')
                    if line.split()[0] == name]
            return pids if len(pids) >= times else None
        return self._wait(signed, '%r to sign %d times' % (name, times))

    def open(self, gate):
        """Let through all who wait at a gate."""
        self._append('gate-' + gate, '')

    def is_open(self, gate):
        return os.path.exists(self._path('gate-' + gate))

    def pass_gate(self, gate):
        """Wait until a gate is open."""
        wait_until(lambda: self.is_open(gate) or self.is_open('all'), 'gate %r' % gate, 60)

    def end_all(self):
        """End every process that signed and still runs."""
        for line in self._lines('pids'):
            _, pid, born = line.split()
            if born != 'None' and birth(int(pid)) == int(born):
                os.kill(int(pid), signal.SIGKILL)
                wait_gone(int(pid))


#: What the standard output or error of a program can be. Only the first two can be written.
STREAMS = ['file', 'pipe', 'full', 'no reader', 'closed terminal', 'closed']


@contextlib.contextmanager
def a_stream(kind, path):
    """Give what `subprocess.Popen` takes as a stream; what is written is found in a file, if any.

    A stream of the kind 'closed' is None here: the program has to be started by `starting`.
    """
    fds = ()
    with open(path, 'wb') as file:
        if kind == 'pipe':
            fds = os.pipe()
            subprocess.Popen(['cat'], stdin=fds[0], stdout=file).returncode = 0    # ends with it
        elif kind == 'no reader':
            fds = os.pipe()
            os.close(fds[0])
        elif kind == 'closed terminal':
            fds = os.openpty()
            os.close(fds[0])
        elif kind == 'full':
            fds = (os.open('/dev/full', os.O_WRONLY),)
        try:
            yield None if kind == 'closed' else fds[-1] if fds else file
        finally:
            for fd in fds if kind == 'pipe' else fds[-1:]:
                os.close(fd)


def starting(argv, stdout='file', stderr='file'):
    """Return the arguments that start a program without those streams that are to be closed."""
    closed = ''.join(' %d>&-' % fd for fd, kind in ((1, stdout), (2, stderr)) if kind == 'closed')
    return ['sh', '-c', 'exec "$0" "$@"' + closed] + argv if closed else argv


class Supervisor:
    """A program in a process of its own that runs a flow."""

    def __init__(self, process, name, errors):
        self.process = process
        self.pid = process.pid
        self._name = name
        self._errors = errors

    def kill(self, number=signal.SIGKILL):
        """Send a signal to it, and to it alone."""
        os.kill(self.pid, number)

    def wait(self):
        """Return its exit code."""
        try:
            return self.process.wait(timeout=DEADLINE)
        except subprocess.TimeoutExpired:
            raise AssertionError('%s did not end; its standard error:\n%s'
                                 % (self._name, self.errors())) from None

    def errors(self):
        """Return what it wrote to its standard error so far."""
        with open(self._errors, errors='replace') as stream:
            return stream.read()

    def wait_for(self, text):
        """Wait until it wrote a text to its standard error."""
        wait_until(lambda: text in self.errors() or self.process.poll() is not None,
                   '%r on standard error of %s' % (text, self._name))
        assert text in self.errors()


#: What every program begins with. FOLDER is the test's own, MODE what it was started with.
HEADER = '''\
import os, signal, subprocess, sys, threading, time
FOLDER = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, %r)
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
import sequent as seq
from runtools import *
journal = Journal(FOLDER)
MODE = sys.argv[1] if len(sys.argv) > 1 else 'restart'
STORE = os.path.join(FOLDER, 'etl.db')

def make(construct='process', mode=MODE, store=STORE, name='etl', **given):
    config = {'task_construct': construct, 'start_method': 'fork', 'sleep_between_loops': 0.05}
    config.update(given.pop('config', {}))
    return seq.Sequent(name, store=store, run_mode=mode, config=config, **given)

def kill_me():
    os.kill(os.getpid(), signal.SIGKILL)

def leave(flow):
    """Run a flow; exit with 0 or 1."""
    ok = flow()
    sys.stdout.flush()
    os._exit(0 if ok else 1)
''' % HERE


class Programs:
    """Starts programs, and ends what is left of them after the test."""

    def __init__(self, folder, journal, stderr='file'):
        self.folder = str(folder)
        self.journal = journal
        self.stderr = stderr    # of which kind it is: see STREAMS
        self.path = os.path.join(self.folder, 'program.py')
        self.store_path = os.path.join(self.folder, 'etl.db')
        self._started = self.journal.supervisors

    def write(self, source):
        """Write the program: the header, then this source."""
        with open(self.path, 'w') as stream:
            stream.write(HEADER + textwrap.dedent(source))

    def start(self, mode='restart', stdout=subprocess.DEVNULL, environment=()):
        """Start the program; returns a `Supervisor`."""
        name = '%d-%s' % (len(self._started), mode)
        errors = os.path.join(self.folder, 'errors-' + name)
        with a_stream(self.stderr, errors) as stream:
            process = subprocess.Popen(
                starting([sys.executable, self.path, mode], stderr=self.stderr), cwd=self.folder,
                stdin=subprocess.DEVNULL, stdout=stdout, stderr=stream,
                env=dict(os.environ, **dict(environment)))
        supervisor = Supervisor(process, name, errors)
        self._started.append(supervisor)
        self.journal.sign('supervisor', process.pid)
        return supervisor

    def run(self, mode='restart', **given):
        """Run the program to its end; returns the exit code (negative: a signal)."""
        return self.start(mode, **given).wait()

    def leave_orphan(self, name='a', **given):
        """Start the program, and kill it when a task has signed the journal; return its pid."""
        supervisor = self.start(**given)
        pid = self.journal.pid(name)
        supervisor.kill()
        supervisor.wait()
        return pid

    def tasks(self, run_id=''):
        """Return {path: [(sequence, recovery, attempt, status)]}: every attempt stored."""
        found = collections.defaultdict(list)
        store = sequent.SqliteStore(self.store_path)
        store.open(create=False)
        try:
            run = store.latest('etl', run_id)
            for one in store.attempts(run) if run else ():
                if one.kind != 'iteration':
                    found[one.path].append((one.sequence, one.recovery, one.attempt, one.status))
        finally:
            store.close()
        return dict(found)

    def last(self, path):
        """Return the status of the last attempt at a step."""
        return self.tasks().get(path, [(None,) * 4])[-1][3]

    def outcomes(self):
        """Return the outcome files that orphans have left."""
        return [os.path.join(folder, name)
                for folder, _, names in os.walk(self.store_path + '.outcomes')
                for name in names if name.endswith('.json')]

    def finish(self):
        self.journal.end_all()
        for one in self._started:
            one.process.wait()


class Terminal:
    """A terminal at which a program runs: it leads the session, in the foreground."""

    def __init__(self, argv, folder, environment=()):
        import fcntl
        import termios
        self._ours, theirs = os.openpty()
        self._process = subprocess.Popen(
            argv, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env=dict(os.environ, **dict(environment)),
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        self.pid = self._process.pid
        self._shown = b''
        os.close(theirs)

    def type(self, text):
        os.write(self._ours, text.encode())

    def read(self):
        """Return all that was shown so far."""
        while select.select([self._ours], [], [], 0)[0]:
            try:
                self._shown += os.read(self._ours, 4096)
            except OSError:    # The last program at it has ended.
                break
        return self._shown.decode(errors='replace')

    def wait(self):
        """Return the exit code of the program."""
        def code():
            self.read()    # A full terminal would keep the program waiting.
            return [self._process.returncode] if self._process.poll() is not None else None
        return wait_until(code, 'the end of the program; it showed %r' % self._shown)[0]

    def hang_up(self):
        """Close the terminal, as the end of an ssh session does."""
        os.close(self._ours)
        self._process.wait(DEADLINE)


@fixture()
def journal(tmp_path):
    journal = Journal(tmp_path)
    yield journal
    journal.open('all')
    journal.end_all()


@fixture()
def programs(tmp_path, journal):
    programs = Programs(tmp_path, journal)
    yield programs
    programs.finish()


@fixture(params=STORES)
def store(request, tmp_path):
    """A store that keeps all: each of the two that come with the library."""
    return a_store(request.param, tmp_path)


@fixture(params=CONSTRUCTS)
def construct(request):
    return request.param


@fixture(autouse=True)
def a_private_temporary_folder(tmp_path, monkeypatch):
    """Logs of flows without a file store go to the test's own folder."""
    import tempfile
    folder = tmp_path / 'temporary'
    folder.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))
    monkeypatch.setenv('TMPDIR', str(folder))
    return folder


def a_store(kind, folder):
    """Return what a flow is given as ``store``: one that further flows can be given, too."""
    return MemoryStore() if kind == 'memory' else str(folder / 'etl.db')


def a_flow(store=':memory:', construct='inline', mode='restart', name='etl', **given):
    """Return a flow that runs its tasks by a construct, inline by default."""
    config = {'task_construct': construct, 'start_method': 'fork', 'sleep_between_loops': 0.05}
    config.update(given.pop('config', {}))
    return Sequent(name, store=store, run_mode=mode, config=config, **given)


def statuses(flow):
    """Return {path: status} where each path has one task, {path: [status]} where more."""
    found = collections.OrderedDict()
    for task in flow.tasks():
        found.setdefault(task.path, []).append(str(task.status))
    return {path: one[0] if len(one) == 1 else one for path, one in found.items()}


def records_of(flow, path=None):
    """Return the `TaskRecord` of every attempt stored, or of those at one step."""
    kept = flow.open_store(create=False)
    try:
        run = kept.latest(flow.name, flow.run_id)
        return [one for one in kept.attempts(run)
                if one.kind != 'iteration' and path in (None, one.path)]
    finally:
        flow.close_store()


def results(flow):
    """Return {(path, sequence): result}."""
    return {(task.path, task.sequence): task.result for task in flow.tasks()
            if task.kind == 'leaf'}


def the_task(flow, path, sequence=None):
    """Return the one task of a path (and sequence)."""
    [task] = [task for task in flow.tasks()
              if task.path == path and sequence in (None, task.sequence)]
    return task


def fail(text='on purpose'):
    raise ValueError(text)


class Line:
    """A step's function that fails while the line is down. Runs in the test's own process."""

    def __init__(self, down=True):
        self.down = down
        self.calls = []

    def __call__(self, *args):
        current = sequent.current()
        self.calls.append((current.name, current.sequence))
        if self.down:
            raise ConnectionError('the line is down')
        return 'sent'


class Calls:
    """Notes the (name, sequence) of each call. Runs in the test's own process."""

    def __init__(self):
        self.calls = []

    def __call__(self, *args, **kwargs):
        current = sequent.current()
        self.calls.append((current.name, current.sequence))
        return len(self.calls)

    @property
    def names(self):
        return [name for name, _ in self.calls]


def log_of(flow, logdir, path, sequence='1', recovery=0, attempt=1):
    """Return the path of a task's log file."""
    return os.path.join(str(logdir), flow.name, flow.run_id, '%s.%s.%d.%d.log'
                        % (path, sequence, recovery, attempt))


def read(path):
    with open(str(path), encoding='utf-8', errors='replace') as stream:
        return stream.read()


def process_of(record):
    """Return what is recorded of a task's process, as a dict."""
    return json.loads(record.process) if record.process else {}
