"""Try what this host can do: ``python -m sequent --self-check [--store PATH]``.

Each construct and each kind of store runs and recovers a small flow in the folder of the store, or
in a temporary one, and a page of facts about the host is printed. Exit code 1 says that something
fails that must work.

Whatever could hang is tried in a process of its own, which is ended when its time is over. The
supervising process itself never touches the folder, whose file server may be gone.
"""

import contextlib
import json
import multiprocessing
import operator
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing  # noqa: F401 (in comments)

from . import (  # type: ignore
    __file__ as _core,
    __version__ as _version,
    AlreadyRunningError,
    Command,
    ConstructError,
    ProcessConstruct,
    ProgramError,
    Sequent,
    SqliteStore,
    StoreError,
    backend_names,
    check_trust,
    describe_error,
    interpreter_command,
    load_backend,
    manner_of_end,
    process_members,
    start_methods,
    write_aside,
)

BACKEND = {
    'options': {
        '--self-check': {
            'call': 'self_check',
            'verbs': [],
            'help': 'without a module: try each construct and store in the folder of --store, or '
                    'a temporary one, and show what this host can do',
        },
    },
}

PATIENCE = 20.0  # seconds
_TRIAL = """\
import importlib, json, sys
sys.path[:] = json.loads(sys.argv[2])
sys.exit(importlib.import_module(sys.argv[1])._try(*sys.argv[3:]))
"""

#: What is known of versions of SQLite and concerns a store: (since, mended in, what).
_SQLITE_DEFECTS = (
    ((0,), (3, 7, 17), 'older than 3.7.17, the oldest that the library is made for'),
    ((3, 7), (3, 51, 3), 'before 3.51.3 the WAL-reset bug can lose commits in WAL mode, unless '
     'your\n        distribution has mended it; a store is not in that mode if nobody has set it'),
)
_MEMORY_SYSTEMS = ('tmpfs', 'ramfs')
_NETWORK_SYSTEMS = ('nfs', 'nfs4', 'cifs', 'smb3', 'smbfs', '9p', 'ceph', 'lustre', 'gpfs', 'afs',
                    'beegfs', 'glusterfs', 'fuse.glusterfs', 'fuse.sshfs')


def self_check(options, say):
    """Print a page on what this host can do; return 1 if something fails that must work.

    Args:
        options: of the command line; ``store`` is a path or None.
        say: prints a line; ``say.flush()`` writes out what was printed.
    """
    def say_now(text):
        for line in text.split('\n'):
            say(line)
        say.flush()

    before, check = {}, _SelfCheck()
    if threading.current_thread() is threading.main_thread():
        for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, check.on_signal)
    try:
        check.run(options.store, say_now)
        return 1 if check.failed else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _SelfCheck:
    """Tries one thing after the other, and prints a line on each."""

    failed = ()  # type: typing.Tuple[str, ...]  # the labels of what did not work
    waits = False  # for the end of a trial that may be cut short
    signal = 0  # the one that came

    def run(self, store, say):
        self.say = say
        say('sequent self-check')
        folder = self.tried('the folder', 'make', store or '')
        if folder is not None:
            try:
                self.try_all(folder)
            finally:
                self.tried('the removal of %s' % folder, 'remove', folder)
        say('\n' + ('does not work: ' + '; '.join(self.failed) if self.failed else
                    'all that must work works'))

    def try_all(self, folder):
        self.say('%s\n' % (self.tried('the facts', 'facts', folder) or ''))
        for label, *what in trials():
            if not what:
                self.say('no      ' + label)
            elif self.tried(label, what[0], folder, *what[1:],
                            waiting=self.waiting()) is not None:
                self.say('ok      ' + label)

    def on_signal(self, number, frame):
        self.signal = number
        if self.waits:
            raise SystemExit(128 + number)

    @contextlib.contextmanager
    def waiting(self):
        """Let a signal cut short the wait for a trial: not its start, where it would be lost."""
        self.waits = True
        try:
            if self.signal:
                raise SystemExit(128 + self.signal)
            yield
        finally:
            self.waits = False

    def tried(self, label, *what, **waiting):
        """Return what a trial printed; None, and say so, if it failed."""
        printed, trouble = _in_trial(what, **waiting)
        if trouble is not None:
            self.failed += label,
            self.say('FAILED  %s: %s' % (label, trouble))
        return printed


def _in_trial(what, nested=False, waiting=None):
    """Run `_try` in a process; return (what it printed, None) or (None, what is the matter).

    Args:
        waiting: a context manager within which it is waited, or None.
    """
    patience = PATIENCE / 4 if nested else PATIENCE
    try:
        process = subprocess.Popen(
            interpreter_command('-B', '-c', _TRIAL, __name__, json.dumps(sys.path), *what),
            start_new_session=not nested, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items()
                 if not name.startswith('SEQUENT_')})
    except (OSError, ValueError, TypeError) as error:
        return None, 'this Python (%r) cannot be started: %s' % (sys.executable, error)
    try:
        with waiting or contextlib.ExitStack():
            printed, errors = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        return None, 'it hangs, and was ended after %g s' % patience
    finally:
        if process.returncode is None:
            _end_trial(process)
    if process.returncode == 0:
        return printed.decode('utf-8').replace('\r', '').rstrip('\n'), None
    lines = errors.decode('utf-8', 'replace').splitlines()
    return None, next((line for line in reversed(lines) if line),
                      manner_of_end(process.returncode))


def _end_trial(process):
    """End a trial; do not wait for what is stuck in a file server that is gone."""
    session = {process.pid, *process_members(3, process.pid)}
    # Children lead sessions of their own.
    children = {one for pid in session for one in process_members(1, pid)}
    for pid in session | children:
        try:
            os.kill(pid, getattr(signal, 'SIGKILL', signal.SIGTERM))
        except OSError:
            pass  # it has ended meanwhile
    try:
        process.communicate(timeout=2.0)
    except subprocess.TimeoutExpired:
        pass


def trials():
    """Return what is tried, [(label, how, ...)]; only a label: what is not for this system."""
    processes = _runs_processes()
    found = [('inline steps, memory store', 'flow', ':memory:', 'inline'),
             ('thread steps, memory store', 'flow', ':memory:', 'thread'),
             ('inline steps, SQLite store', 'flow', '', 'inline'),
             ('thread steps, SQLite store', 'flow', '', 'thread')
             ]  # type: typing.List[typing.Tuple[str, ...]]
    if processes:
        found += [('process steps by %s, SQLite store' % method, 'flow', '', 'process', method)
                  for method in start_methods() if method == 'fork' or load_backend('spawn')]
        found.append(('programs, SQLite store', 'flow', '', 'program'))
    else:
        found.append(('process steps: this system has no process groups and signal masks',))
    try:
        import fcntl  # noqa: F401
        found.append(('POSIX locks: they keep a second program out', 'locks'))
    except ImportError:
        found.append(('POSIX locks: nothing keeps a second program from running a flow',))
    names = backend_names()
    # Before 3.7 a pool cannot be told its start method.
    pools = processes and (sys.version_info >= (3, 7)
                           or start_methods()[0] == multiprocessing.get_start_method())
    tried = [name for name in ('executor', 'pool') if name in names and (
        name == 'executor' or pools)]
    found += [('%s steps, SQLite store' % name, 'flow', '', name) for name in tried]
    return found + [('backend %s: it is there, but not tried' % name,) for name in names
                    if name not in tried]


def _runs_processes():
    """Whether this system has what process tasks need."""
    try:
        ProcessConstruct().check('check', print, (), {}, {})
        return True
    except ConstructError:
        return False


# In the process of a trial:


def _try(what, *given):
    trials = {'make': _make_trial_folder, 'facts': _facts, 'locks': _try_locks, 'lock': _try_lock,
              'flow': _try_flow, 'remove': _remove_trial_folder}  # type: typing.Dict
    try:
        printed = trials[what](*given) or ''
        sys.stdout.buffer.write(printed.encode('utf-8', 'backslashreplace'))
        return 0
    except Exception as error:
        text = '\n' + describe_error(error).replace('\n', ' ')
        sys.stderr.buffer.write(text.encode('utf-8', 'backslashreplace'))
        return 1


def _make_trial_folder(store):
    folder = None
    if store:
        path = SqliteStore(store).path
        check_trust(path, create=True)
        folder = os.path.dirname(path)
    return tempfile.mkdtemp(prefix='sequent-check-', dir=folder)


def _remove_trial_folder(folder):
    shutil.rmtree(folder)


def _try_flow(folder, store, construct, method=None):
    """Run and recover a small flow."""
    if len(os.fsencode(folder)) < 64:    # the path of a socket has room for 107 bytes
        tempfile.tempdir = folder
    config = {'task_construct': 'process' if construct == 'program' else construct,
              'logdir': os.path.join(folder, 'logs')}
    if method is not None:
        config['start_method'] = method
    if construct == 'executor':
        config['executor'] = 'concurrent.futures:ThreadPoolExecutor'
    store = store or os.path.join(folder, '%s%s.db' % (construct, method or ''))
    for mode in ['restart'] + ['recover'] * (store != ':memory:'):
        flow = Sequent('check', store=store, run_mode=mode, config=config, logging_level=50)
        a = flow.add_step('a', func=operator.add, args=(1, 2))
        each = flow.add_step('each', loop=[3], require=a)
        each.add_step('b', func=operator.mul, args=(each.item, a.result))
        if construct == 'program':
            flow.add_step('c', func=Command([sys.executable, '-S', '-c', 'pass']), require=each)
        if not flow.run():
            raise ProgramError('; '.join(task.error for task in flow.tasks() if task.error))


def _try_locks(folder):
    """Claim a run in this process, and try to claim it in another one."""
    path = os.path.join(folder, 'locks.db')
    store = SqliteStore(path)
    store.open()
    with contextlib.closing(store):
        store.lock('check', '1')
        taken = _in_trial(('lock', path), nested=True)
        store.unlock('check', '1')
        free = _in_trial(('lock', path), nested=True)
    if (taken, free) != (('refused', None), ('granted', None)):
        raise StoreError('a lock that is taken: %s; one that is free: %s; put stores on another '
                         'file system' % (taken[1] or taken[0], free[1] or free[0]))


def _try_lock(path):
    store = SqliteStore(path)
    store.open()
    with contextlib.closing(store):
        try:
            store.lock('check', '1')
            return 'granted'
        except AlreadyRunningError:
            return 'refused'


# The facts ------------------------------------------------------------------------


def _facts(folder):
    """Return what there is to know of this host, as lines of text."""
    rows = [('file', '%s, version %s' % (os.path.abspath(_core), _version))]
    for name, told in (('Python', _python), ('system', _system_text), ('SQLite', _sqlite),
                       ('folder', _file_system), ('disk', _disk), ('clock', _clock),
                       ('limits', _limits), ('has', _abilities)):
        try:
            rows.append((name, told(folder)))
        except Exception as error:
            rows.append((name, 'unknown (%s)' % describe_error(error)))
    return '\n'.join('%-8s%s' % row for row in rows)


def _python(folder):
    return '%s %s, %s' % (platform.python_implementation(), platform.python_version(),
                          sys.executable)


def _system_text(folder):
    return '%s %s %s, host %s, CPUs: %s' % (platform.system(), platform.release(),
                                            platform.machine(), platform.node(), os.cpu_count())


def _sqlite(folder):
    try:
        import sqlite3
    except ImportError as error:
        return 'this Python was built without sqlite3 (%s)' % error
    return known_of_sqlite(sqlite3.sqlite_version_info)


def known_of_sqlite(version):
    """Return a version of SQLite, a tuple of ints, as text, with what is known of it."""
    return '\n        '.join(['.'.join(map(str, version))] + [
        what for since, mended, what in _SQLITE_DEFECTS if since <= version < mended])


def _file_system(folder):
    """Return the type of the file system of a folder, and what that means for a store."""
    folder, found = os.path.realpath(folder) + os.sep, ('', 'file system unknown', '')
    try:
        with open('/proc/self/mountinfo', 'rb') as file:
            lines = os.fsdecode(file.read()).splitlines()
        for fields in (line.split(' ') for line in lines):
            place = re.sub(r'\\([0-7]{3})', lambda one: chr(int(one.group(1), 8)), fields[4])
            if folder.startswith(place.rstrip('/') + '/') and len(place) >= len(found[0]):
                found = place, fields[fields.index('-') + 1], fields[5]
    except (OSError, ValueError, IndexError):
        pass    # not Linux
    remark = (': in memory, gone after the next boot' if found[1] in _MEMORY_SYSTEMS else
              ': of a server, which must do POSIX locks for all hosts alike'
              if found[1] in _NETWORK_SYSTEMS else '')
    return '%s %s %s' % (os.path.dirname(folder[:-1]), found[1], found[2]) + remark


def _disk(folder):
    """Return how much room there is, and how long it takes to make something durable."""
    times = []
    for number in range(5):
        start = time.monotonic()
        write_aside(os.path.join(folder, 'a', 'b', 'c', 'd%d' % number), b'durable?')
        times.append(time.monotonic() - start)
    return '%.1f GB free, %.1f ms to make a file durable' % (
        shutil.disk_usage(folder).free / 1e9, sorted(times)[2] * 1000)


def _clock(folder):
    path = os.path.join(folder, 'clock')
    now = time.time()
    write_aside(path, b'')
    skew = os.stat(path).st_mtime - now
    return '%s%s, time zone %s%s' % (
        time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(now)), time.strftime('%z'),
        '/'.join(time.tzname), '' if abs(skew) < 2 else
        '; that of the file system is off by %.0f s' % skew)


def _limits(folder):
    import resource
    names = (('NOFILE', 'open files'), ('NPROC', 'processes'), ('FSIZE', 'file size'),
             ('AS', 'address space'), ('CPU', 'CPU seconds'), ('CORE', 'core'))
    found = []
    for name, what in names:
        if hasattr(resource, 'RLIMIT_' + name):
            soft = resource.getrlimit(getattr(resource, 'RLIMIT_' + name))[0]
            found.append('%s %s' % (what, 'any' if soft == resource.RLIM_INFINITY else soft))
    return ', '.join(found)


def _abilities(folder):
    """Return which of the means that the library makes use of this system has."""
    methods = start_methods()
    has = [(name, hasattr(os, name)) for name in ('fork', 'posix_spawn', 'waitid')]
    has += [('pidfd_open', _has_pidfd()), ('process groups', _runs_processes()),
            ('/proc', os.path.exists('/proc/self/stat'))]
    try:
        multiprocessing.get_context(methods[0]).Lock()
        has.append(('sem_open', True))
    except (ImportError, OSError):
        has.append(('sem_open', False))
    return '%s; start methods %s' % (
        ', '.join(name if there else 'no ' + name for name, there in has),
        ', '.join([methods[0] + ' (default)'] + methods[1:]))


def _has_pidfd():
    try:
        os.close(os.pidfd_open(os.getpid()))
        return True
    except (AttributeError, OSError):    # an old Python or kernel, a sandbox
        return False
