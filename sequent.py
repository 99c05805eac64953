"""Link batch programs into flows that can be recovered.

A flow is a tree of steps. A step runs when what it requires has happened; every status is
stored, so that after a failure a recovery run does only what is not done yet::

    import sequent as seq

    flow = seq.Sequent()
    a1 = flow.add_step('a1', func=print, args=('extract 1',))
    a2 = flow.add_step('a2', func=print, args=('extract 2',))
    b = flow.add_step('b', func=print, args=('process',), require=(a1, a2))
    flow.add_step('c', func=print, args=('transmit',), require=((b, seq.STEP_SUCCESS),))

    if __name__ == '__main__':
        raise SystemExit(0 if flow() else 1)

Run it as a program, or with ``python -m sequent MODULE``; ``python -m sequent MODULE recover``
goes on after a failure. ``Eventor`` is the layer below: events, steps, associations, triggers.

The file reads downward; no section names a later one:

    1 Compatibility      what depends on the version of Python or SQLite
    2 Vocabulary         statuses, errors, records
    3 Model              expressions, events, steps, pools
    4 Plan               the model compiled: counters, scopes, checks
    5 Engine             a pure state machine: inputs and a time in, actions out
    6 Stores             where statuses are kept: SqliteStore, MemoryStore
    7 Constructs         what runs a function or a program: process, thread, inline
    8 Driver             the only loop
    9 Facades            Eventor, Sequent
    10 Command line      python -m sequent

What a flow means stands in tests/SEMANTICS.md; "semantics 7.6" names a paragraph of it.
"""

# The types of what users see stand in backends/stubs; here they are inferred, also under --strict:
# mypy: allow-untyped-defs, allow-untyped-calls, allow-incomplete-defs, allow-any-generics
# mypy: no-strict-optional, disable-error-code="var-annotated"

import abc
import collections
import contextlib
import copy
import enum
import functools
import heapq
import importlib
import io
import itertools
import logging
import math
import operator
import os
import pickle
import re
import signal
import stat
import sys
import threading
import time
import types
import typing

__all__ = [
    'Sequent', 'Eventor', 'or_', 'current', 'parameter', 'item', 'ResourcePool', 'OutsidePool',
    'Command',
    'StepStatus', 'StepState', 'TaskStatus', 'StepReplay', 'RunMode',
    'STEP_READY', 'STEP_ACTIVE', 'STEP_SUCCESS', 'STEP_FAILURE', 'STEP_COMPLETE',
    'STEP_RERUN', 'STEP_SKIP', 'RUN_RESTART', 'RUN_RECOVER', 'RUN_CONTINUE',
    'Store', 'SqliteStore', 'MemoryStore', 'RunView', 'RunRecord', 'TaskRecord', 'Request',
    'TaskConstruct', 'ProcessConstruct', 'ProgramConstruct', 'ThreadConstruct', 'InlineConstruct',
    'Job', 'Outcome', 'Sight', 'run_job', 'Observer',
    'SequentError', 'FlowError', 'FlowTypeError', 'CycleError', 'ConfigError', 'StoreError',
    'AlreadyRunningError', 'RecoveryError', 'ConstructError', 'ClosedError', 'ParameterError',
    'ProgramError',
    'main',
]
__version__ = '4.0.0'

# backends/ beside this file (sequent_backends/ once installed) holds the optional
# backends: backends/slurm.py is imported as sequent.slurm.
_here = os.path.dirname(os.path.abspath(__file__))
__path__ = [os.path.join(_here, name) for name in ('sequent_backends', 'backends')]

logger = logging.getLogger('sequent')
logger.addHandler(logging.NullHandler())

# Copies of this file in one program, vendored by several packages, share what a process has only
# one of: POSIX locks, which all go when one copy closes the file; descriptors that no forked child
# may keep; the loading of a module. The number changes with what is kept there.
_common = sys.modules.setdefault(
    '_sequent_common_1', type(sys)('_sequent_common_1'))  # type: typing.Any


def _in_common(name, value):
    """Return what all copies have by that name: the value that the first one gave it."""
    return vars(_common).setdefault(name, value)


# 1 Compatibility #################################################################
#
# Each private name of the standard library that this file uses is asked for here. What an adapter
# says after "Without:" happens where a version of Python has the name no more.


def private_name(thing, path):
    """Return an attribute of an attribute ... of a thing: ``'_bootstrap._module_locks'``.

    None: the standard library has no such name any more.
    """
    for name in path.split('.'):
        thing = getattr(thing, name, None)
    return thing


def calling_frame(depth):
    """Return the frame of a caller, so many calls up; 0 is that of who asks.

    Without: None. ``inspect.currentframe`` would do, but importing inspect takes long.
    """
    frame_at = private_name(sys, '_getframe')
    return frame_at(depth + 1) if frame_at is not None else None


if __name__ == '__main__':
    # This copy of the module is not the one that flows import: their classes differ. So it ends
    # here, without making any. The other one need not be read again, which is a tenth of a start.
    _name, _body = __spec__.name if __spec__ else 'sequent', calling_frame(0)
    if __spec__ and '.' not in _name and _name not in sys.modules and _body is not None:
        import importlib.util
        sys.modules[_name] = importlib.util.module_from_spec(__spec__)
        exec(_body.f_code, vars(sys.modules[_name]))
    sys.exit(importlib.import_module(_name).main())

if sys.version_info >= (3, 9) and hasattr(os, 'pidfd_open'):
    def _watch_pid(pid):
        """Return a descriptor that is readable once a process has ended, or None."""
        try:
            return os.pidfd_open(pid)
        except OSError:  # a kernel before 5.3, a sandbox without it, no descriptor left
            return None
else:
    def _watch_pid(pid):
        """Return None: such a process must be polled."""
        return None

if sys.version_info >= (3, 12):
    @contextlib.contextmanager
    def fork_beside_threads():
        """Do not warn of a fork beside threads.

        Of what a thread may hold at the fork, the child uses nothing that is not made anew there.
        """
        import warnings
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', '.*multi-threaded.*', DeprecationWarning)
            yield
else:
    @contextlib.contextmanager
    def fork_beside_threads():
        yield


if sys.version_info >= (3, 7):
    def _run_coroutine(coroutine):
        """Run a coroutine to its end and return its result."""
        import asyncio
        return asyncio.run(coroutine)
else:
    _run_coroutine = None    # asyncio.run is new in Python 3.7


def interpreter_command(*arguments):
    """Return the command that runs this interpreter with the options it has now.

    Without arguments it is the command that started this program; None where that is not known.
    """
    if not arguments and hasattr(sys, 'orig_argv'):    # new in Python 3.10
        return [sys.executable] + sys.orig_argv[1:]
    import subprocess
    switches = private_name(subprocess, '_args_from_interpreter_flags')    # Without: none
    command = [sys.executable] + (switches() if switches else [])
    if arguments or sys.argv[0] == '-c':
        return command + list(arguments) if arguments else None
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    if spec is not None and spec.name != '__main__':    # That is the name in a folder or a zip.
        return command + ['-m', spec.name] + sys.argv[1:]
    return command + sys.argv


def flush_streams():
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):    # closed, or replaced
            stream.flush()


def run_exit_handlers():
    """Call what was registered with atexit, and write out what was printed, as the end of the
    interpreter does.

    Without: nothing is called.
    """
    import atexit
    run = private_name(atexit, '_run_exitfuncs')
    if run is not None:
        run()
    flush_streams()


def _renew_stream_locks():
    """In a forked child, make anew the locks of streams, which other threads may have held.

    What these threads had not written yet is the supervisor's. Without: a stream that only a
    handler of logging has keeps its lock, and the child may wait for that for ever.
    """
    handlers = [reference() for reference in list(private_name(logging, '_handlerList') or ())]
    if sys.version_info < (3, 7):    # since then logging itself renews its locks
        logging._lock = threading.RLock()
        for handler in handlers:
            if handler is not None and handler.lock is not None:
                handler.createLock()
    for stream in [sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__] + [
            getattr(handler, 'stream', None) for handler in handlers]:
        try:
            buffer = getattr(getattr(stream, 'plain', stream), 'buffer', None)
            if type(buffer) is io.BufferedWriter:
                io.BufferedWriter.__init__(buffer, buffer.raw)
        except ValueError:
            pass  # it is closed


def _forget_foreign_threads():
    """In a forked child, see to it that the end of its threads can be waited for.

    Threads of an executor of the supervisor are not there; but the one that has forked, which is
    the main thread now, may be among them. 3.9 to 3.11 forget to give the main thread its lock
    where threading has not made it. Without: a child that is forked by such a thread may wait for
    its own end, or die at it.
    """
    queues = private_name(sys.modules.get('concurrent.futures.thread'), '_threads_queues')
    if queues is not None:
        queues.clear()
    main = threading.main_thread()
    make_lock = private_name(main, '_set_tstate_lock')
    if make_lock is not None and vars(main).get('_tstate_lock', False) is None:
        make_lock()


def _await_threads():
    """Wait for what a function has left to work on, as Python does at the end of a program.

    Without: the task ends beside what its threads still do.
    """
    from multiprocessing import util
    for wait in private_name(threading, '_shutdown'), private_name(util, '_exit_function'):
        if wait is not None:
            wait()


def _import_locks():
    """Return the locks of the modules that are just imported: {name: weak reference}.

    Without: threads may wait for one another's imports for ever.
    """
    return private_name(importlib, '_bootstrap._module_locks') or {}


@contextlib.contextmanager
def _shared_imports():
    """Meanwhile let other threads use the modules that this thread is just importing.

    A thread that pickles an instance of a class of such a module waits for the end of the import.
    If the module runs a flow while it is imported, that end waits for the thread.
    """
    locks, own = _import_locks(), threading.get_ident()
    taken = {name: reference for name, reference in list(locks.items())
             if getattr(reference(), 'owner', None) == own}
    for name in taken:    # Who asks for the lock of a module gets a new one.
        del locks[name]
    try:
        yield
    finally:
        locks.update(taken)


def _forget_foreign_imports():
    """In a forked child, let what other threads were just importing be imported anew.

    Python leaves the locks of these modules to threads that are not there: who wanted one of the
    modules would wait for ever.
    """
    locks = _import_locks()
    for name, reference in list(locks.items()):
        owner = getattr(reference(), 'owner', None)
        if owner is not None and owner != threading.get_ident():
            del locks[name]
            module = sys.modules.get(name)
            if private_name(module, '__spec__._initializing'):
                del sys.modules[name]


def start_methods():
    """Return the values that config ``start_method`` can have here, the default first."""
    if not hasattr(os, 'fork'):
        return ['spawn']
    if sys.version_info < (3, 7):    # A forkserver does not tell yet how a process has ended.
        return ['fork', 'spawn']
    return ['fork', 'spawn', 'forkserver']


def _freeze_garbage():
    """Keep a forked child from collecting what is the supervisor's, and from copying it."""
    import gc
    if _paused:
        gc.enable()
    if sys.version_info >= (3, 7):
        gc.freeze()


_paused = []  # an item for each `_without_collecting`


@contextlib.contextmanager
def _without_collecting():
    """Meanwhile look for no garbage.

    Where very many objects are made that stay, each look goes through all of them: that is 40 % of
    the time in which a run with 100,000 tasks is recovered.
    """
    import gc
    if not gc.isenabled():
        yield
        return
    _paused.append(None)    # Another thread may fork now: see `_freeze_garbage`.
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        _paused.pop()


def as_process(run, name, line, parent):
    """Return a function that calls ``run()`` in a process made by os.fork(), as multiprocessing
    does in a child of its own: with its name, its number, and what is registered for a fork.

    Without: to multiprocessing the child is the process that has forked it.

    Args:
        line: descriptor of a socket whose other end is the parent's, so that
            ``parent_process()`` can tell its end.
        parent: pid of the parent.
    """
    import multiprocessing.util    # here once, and not in each child
    process = multiprocessing.get_context(  # type: typing.Any
        'fork').Process(target=run, name=name)
    process._parent_pid = parent

    def begin():
        bootstrap = private_name(process, '_bootstrap')
        if sys.version_info < (3, 7) and 'random' in sys.modules:    # since then any fork does
            sys.modules['random'].seed()
        if bootstrap is None:
            (private_name(multiprocessing.process, '_children') or set()).clear()
            run()
        elif sys.version_info >= (3, 8):
            bootstrap(line)
        else:
            bootstrap()
    return begin


def _environment_setter():
    """Return what sets a variable, ``(name, value)``, however often, in constant memory.

    Since 3.9 os.environ calls setenv(), which in glibc keeps every value for good: 20 MB after
    a loop of 100,000 iterations. putenv() uses memory of the caller's, in which a value is
    replaced by the next one that fits. PyDLL keeps the GIL: else a child that another thread
    forks meanwhile would wait for ever for the lock of the C library. Without: memory grows.
    """
    environ = os.environ  # type: typing.Any
    try:
        import ctypes
        putenv = ctypes.PyDLL(None).putenv
        content, encode = private_name(environ, '_data'), environ.encodevalue
    except (ImportError, OSError, AttributeError, TypeError):    # as on Windows
        content = None
    if content is None:
        return environ.__setitem__

    def put(name, text):
        if '\0' in text:
            raise ValueError('embedded null byte')
        key, last, line = _environment_lines.get(name) or (environ.encodekey(name), b'', b'')
        value = text.encode() if _is_ascii(text) else encode(text)
        whole = key + b'=' + value
        # The variable is not in our memory any more, if somebody else has changed it: then the
        # value is another object. Of a value of one byte there is only one object.
        if len(last) < 2 or content.get(key) is not last or len(whole) >= len(line):
            line = ctypes.create_string_buffer(whole, len(whole) + 64)
            if putenv(line):
                raise OSError('no memory left for the environment')
        else:
            line.value = whole
        content[key] = value
        _environment_lines[name] = key, value, line
    return put


_environment_lines = {}  # type: typing.Dict[str, tuple]  # the memory that the environment uses


if sys.version_info >= (3, 7):
    _is_ascii = str.isascii
else:
    def _is_ascii(text):
        return len(text) == len(text.encode('ascii', 'ignore'))


def _environment_text(text):
    """Return a text as it can stand in the environment, whatever the locale: in UTF-8."""
    if _is_ascii(text):
        return text
    try:
        os.fsencode(text)
        return text
    except UnicodeEncodeError:
        return os.fsdecode(text.encode('utf-8', 'backslashreplace'))


def _longest_variable():
    """Return how many bytes a variable may have with its name: what Linux takes, or less.

    All variables and arguments of a program share what the system has for them, which is as
    little as 128 KiB where the limit of the stack is low.
    """
    try:
        shared = os.sysconf('SC_ARG_MAX')
    except (AttributeError, OSError, ValueError):  # Windows; a system that does not say
        shared = 1 << 18
    return min(1 << 17, shared // 8) if shared > 0 else 1 << 15


_LONGEST_VARIABLE = _longest_variable()


def _add_variable(variables, name, text):
    """Add a variable as any program can be given it.

    Programs are not started with a variable that holds a null character, which stands there as
    ``\\x00``, or that is too long: of such a text the beginning stands there, and ``NAME_CUT``
    tells how many bytes the whole has.
    """
    if len(text) < 1000 and _is_ascii(text) and '\0' not in text:    # nearly all are
        variables[name] = text
        return
    text = _environment_text(text.replace('\0', '\\x00'))
    room = _LONGEST_VARIABLE - 4 * len(name) - len('=\0')    # a character has up to 4 bytes
    whole = os.fsencode(text)
    if len(whole) > room:
        variables[name + '_CUT'] = str(len(whole))
        while whole[room] & 0xC0 == 0x80:    # This byte is not the first of its character.
            room -= 1
        text = os.fsdecode(whole[:room])
    variables[name] = text

# For opening what others may have planted: no symbolic link is followed, and nobody waits for the
# other end of a pipe. Where a system does not know one of these, that is left to it.
_AS_IT_IS = sum(getattr(os, name, 0) for name in ('O_NOFOLLOW', 'O_NONBLOCK', 'O_BINARY'))

# What every process task needs: a process group, and a moment in which no signal is handled.
_HAS_GROUPS = all(hasattr(os, name) for name in ('killpg', 'setsid')) and hasattr(
    signal, 'pthread_sigmask')


# 2 Vocabulary ####################################################################


class _Named(str, enum.Enum):
    """Members that are their own names: they compare equal to them and print as them."""

    def __str__(self):
        return str(self.value)


class StepStatus(_Named):
    """What a step can be in, and what can be required of it (semantics 2.2).

    ``complete`` is raised together with ``success`` or ``failure``; no task is stored with it.
    """

    ready = 'ready'
    active = 'active'
    success = 'success'
    failure = 'failure'
    complete = 'complete'


class TaskStatus(_Named):
    """What a task is stored with: the members of `StepStatus` without ``complete``."""

    ready = 'ready'
    active = 'active'
    success = 'success'
    failure = 'failure'


class StepReplay(_Named):
    """What a recovery does with a task (semantics 7.2)."""

    rerun = 'rerun'
    skip = 'skip'


class RunMode(_Named):
    """How a run begins: anew, from an earlier one, or where one stopped (semantics 7)."""

    restart = 'restart'
    recover = 'recover'
    continue_ = 'continue'


StepState = StepStatus
STEP_READY, STEP_ACTIVE = StepStatus.ready, StepStatus.active
STEP_SUCCESS, STEP_FAILURE = StepStatus.success, StepStatus.failure
STEP_COMPLETE = StepStatus.complete
STEP_RERUN, STEP_SKIP = StepReplay.rerun, StepReplay.skip
RUN_RESTART, RUN_RECOVER, RUN_CONTINUE = RunMode.restart, RunMode.recover, RunMode.continue_

# Inside, statuses are plain strings: the members compare equal to them, and strings are faster.
READY, ACTIVE, SUCCESS, FAILURE, COMPLETE = 'ready', 'active', 'success', 'failure', 'complete'

#: Every change of a task's stored status that may happen, and why. None: not stored yet.
STATUS_CHANGES = {
    (None, READY): 'its requirement holds (a due time says that its delay is not over); or the '
                   'attempt before this one has failed and may be made again',
    (None, ACTIVE): 'it became ready and started within one turn',
    (None, SUCCESS): 'nothing to call: a leaf without func, an empty loop',
    (None, FAILURE): 'it became ready within the turn in which it had to fail',
    (READY, ACTIVE): 'it got its slot and its resources',
    (READY, SUCCESS): 'nothing to call',
    (READY, FAILURE): 'its resources can never be granted',
    (ACTIVE, SUCCESS): 'its function returned; all iterations of a container succeeded',
    (ACTIVE, FAILURE): 'its function raised or died; something in a container failed unhandled',
    (ACTIVE, READY): 'its start was committed ahead, but a stop came before it was called, or '
                     'what it was queued for died',
}


class SequentError(Exception):
    """The base of all errors that this library raises."""


class FlowError(SequentError, ValueError):
    """A flow says something that cannot be: a name twice, an unknown status, a bad scope."""


class FlowTypeError(SequentError, TypeError):
    """A flow was given an object of the wrong type."""


class CycleError(FlowError):
    """Steps wait for one another."""


class ConfigError(SequentError, ValueError):
    """A configuration value is wrong."""


class ConstructError(SequentError, ValueError):
    """A task construct is unknown, or cannot run what it was given."""


class StoreError(SequentError, OSError):
    """A store cannot be opened, read or written."""


class AlreadyRunningError(SequentError, RuntimeError):
    """Another supervisor, or something it left running, is at work on the same thing."""


class RecoveryError(SequentError, LookupError):
    """There is no such run, or none to recover or to continue."""


class ClosedError(SequentError, RuntimeError):
    """A flow was used after ``close()``."""


class ParameterError(SequentError, ValueError):
    """The value of a parameter is missing or wrong, or is not the one of the run gone on with."""


class ProgramError(SequentError, RuntimeError):
    """A program failed.

    ``code`` is the exit code of the program, minus the signal that ended it, or None if it was not
    started. ``short``: the system was short of processes or descriptors to start it.
    """

    def __init__(self, text, code=None, short=False):
        super().__init__(text, code, short)
        self.code = code
        self.short = short

    def __str__(self):
        return self.args[0]


class RunRecord(typing.NamedTuple):
    """One supervisor's work on a run: what a store keeps of a run and of each recovery of it.

    A run is named by (flow, run_id); its recoveries are numbered from 0, the first run.
    ``status`` is ``active`` (at work, or dead), ``stopped`` (ended by a signal, ``max_loops`` or
    an error; `RunMode.continue_` goes on with it), ``success`` or ``failure`` (over).
    Times are seconds since the epoch. ``process`` identifies the supervisor (JSON), ``steps``
    is a JSON object: ``signatures`` of every step by its path, to tell what was edited since
    (stores of old have none); ``base``, the recovery whose end it began with; ``triggers`` given
    from outside (Eventor);
    ``parameters``, {name: text or null, for a secret one {"secret": true}}. ``plan`` is the digest
    of the plan, whose text the store keeps once: see `plan_text`.
    """

    flow: str
    run_id: str
    recovery: int = 0
    mode: str = 'restart'
    status: str = ACTIVE
    started: typing.Optional[float] = None
    ended: typing.Optional[float] = None
    process: str = ''
    steps: str = ''
    plan: typing.Optional[str] = None


class TaskRecord(typing.NamedTuple):
    """What a store keeps of one attempt at one task. (path, sequence, recovery, attempt) is unique
    within a run.

    ``kind`` is ``leaf``, ``container``, ``loop`` (a leaf with a loop, as a whole), ``timer`` (a
    delayed association of an Eventor) or ``iteration`` (one iteration of a container: it has an
    item and no status; but status ``over``, and no item, where there was no further one).
    ``item`` and ``result`` are pickles or None, or a result names a file: see `load_result`;
    ``due`` is when a delay or the wait for a further attempt ends; times are seconds since the
    epoch. ``handled``: of a failure, it was made good, or is tolerated; of a container that
    succeeded, something in it has failed or was dropped, so that a recovery goes through it
    (semantics 7.2). ``process`` (JSON) identifies the
    process that runs the task. ``events`` (JSON) are those that the task raised by hand.
    ``item_text`` is the loop item as text, at most 200 characters of it; ``ready_at`` is when the
    task could start but for slots and pools; ``waited_for`` is what it had waited for: the path of
    the step that made its requirement hold, a space, and that step's status.
    """

    path: str
    sequence: str
    recovery: int
    attempt: int
    kind: str
    status: str
    handled: bool = False
    item: typing.Optional[bytes] = None
    due: typing.Optional[float] = None
    started: typing.Optional[float] = None
    ended: typing.Optional[float] = None
    process: typing.Optional[str] = None
    result: typing.Optional[bytes] = None
    error: typing.Optional[str] = None
    events: typing.Optional[str] = None
    item_text: typing.Optional[str] = None
    ready_at: typing.Optional[float] = None
    waited_for: typing.Optional[str] = None


class Request(typing.NamedTuple):
    """What somebody asks of a run from outside (semantics 13).

    ``verb`` is ``stop``, ``hold`` or ``release``; ``pattern`` is one of `fnmatch` for the paths of
    the steps that are meant. ``asker`` names the user, host and pid, for those who look.
    ``number`` is given by `Store.post`: requests are applied in its order.
    """

    flow: str
    run_id: str
    verb: str
    pattern: str = ''
    posted: float = 0.0
    asker: str = ''
    number: str = ''


class Outcome(typing.NamedTuple):
    """How an attempt at a task ended, as a construct reports it.

    ``status`` is ``success`` or ``failure``; ``error`` one sentence that says why it failed, with
    ``trace`` the traceback as text. ``result`` is the pickled return value, or None for None;
    ``warning`` says what could not be kept of it. ``interrupted``: ended by the stop of the run,
    the task stays ``active`` (semantics 8.3). ``ended`` is seconds since the epoch, where
    somebody else than the supervisor saw the end. ``lost``: nothing of the task has run, and it
    will be run later: its process was one of an earlier supervisor, or it was still queued, or
    (``short``) the system was short of processes or descriptors.
    ``exited``: the function did not return, but called ``sys.exit`` without a code or with 0.
    Of a failure, ``kinds`` are the full names of the classes of what was raised, its own first,
    and ``code`` is the exit code of what ended by one (negative: minus the signal), or None.
    """

    status: str
    error: typing.Optional[str] = None
    trace: str = ''
    result: typing.Optional[bytes] = None
    warning: str = ''
    interrupted: bool = False
    ended: typing.Optional[float] = None
    lost: bool = False
    exited: bool = False
    kinds: typing.Tuple[str, ...] = ()
    code: typing.Optional[int] = None
    short: bool = False


def _nearest(name, known):
    """Return ``; did you mean 'x'?`` for the known name nearest to a wrong one, or nothing."""
    import difflib
    near = difflib.get_close_matches(str(name), [str(one) for one in known], 1)
    return '; did you mean %r?' % near[0] if near else ''


def _choices(name, known):
    """Return how a message about an unknown name ends: the nearest, and all that are known."""
    near, all_of_them = _nearest(name, known), ', '.join(map(str, known)) or 'none'
    return '%s Known: %s' % (near, all_of_them) if near else '; known: %s' % all_of_them


def _must_be(fits, who, wanted, value, error=FlowTypeError):
    """Raise an error that says what something must be, if it does not fit."""
    if not fits:
        raise error('%s must be %s, not %r' % (who, wanted, value))


def _member(kind, value, who):
    """Return the member of an enum that a value names, or raise `FlowError`."""
    try:
        return kind(value)
    except ValueError:
        raise FlowError('%s %r%s' % (who, value, _choices(value, kind))) from None


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


# Backends -------------------------------------------------------------------------
#
# A file in backends/ describes itself in one literal, ``BACKEND = {...}``, which is read without
# importing the file. Each key of the literal is something that the file offers. Classes, and the
# functions under 'call', are given by their names in the file.
#
#     'construct'     the `TaskConstruct` for task_construct='<name of the file>'
#     'store'         the `Store` for store='<name of the file>://...'; it is given that text
#     'observer'      the `Observer` for observe('<name of the file>') and config 'observers'
#     'loader'        {'endings': ['.dag', ...], 'call': function}: makes a flow of a file that is
#                     no Python module. The function is given (path, name=, store=), which are the
#                     name and the store that the flow of a module has in that place.
#     'accelerates'   the construct that the file makes faster
#     'start_methods' the values of config ``start_method`` that need the file
#     'explains'      the verb that shows more where the file is there
#     'config'        {key: the fields of a `ConfigKey`}: keys of configuration
#     'verbs'         {verb: {'help': text, 'call': function, ...}}: verbs of the command line.
#                     The function is given (flow, options, say) and returns the exit code, or
#                     None for 0. ``say(line)`` prints; ``opened_store(flow)`` opens the store.
#         'words'     the words that follow the verb; one in brackets may be missing. They are
#                     ``options.words``.
#         'ask'       the question where such a word is missing
#         'options'   the options of the core that the verb takes
#         'of_run'    True: the verb looks at a run, with the values of its parameters
#     'options'       {'--option': {'help': text, 'verbs': [verb, ...], ...}}: options. One
#                     without verbs takes no module; its function is given (options, say).
#         'short'     the same option as one letter: '-o'
#         'metavar'   how the help calls its value; without it the option has none
#         'call'      the function that is called in place of that of the verb
#         'options'   further options that go with this one; of two options with a 'call', the one
#                     that takes the other counts
#         'pure'      True: what the module prints goes to standard error


def load_backend(name):
    """Import ``backends/<name>.py`` and return it, or None if there is no such file.

    Raises:
        ModuleNotFoundError: a module that the file needs is missing.
    """
    full = '%s.%s' % (__name__, name)
    try:
        return importlib.import_module(full) if name.isidentifier() else None
    except ModuleNotFoundError as error:
        if error.name != full:
            raise
        return None


def descriptions():
    """Return {name: description} of the files in ``backends/``, without importing them."""
    import ast
    import importlib.util
    import pkgutil
    found = {}
    for _, name, _ in pkgutil.iter_modules(__path__):
        full = '%s.%s' % (__name__, name)
        spec = importlib.util.find_spec(full)  # type: typing.Any
        source = spec and spec.loader.get_source(full)
        literal = re.search(r'^BACKEND = ({[^\n]*}$|{.*?^})', source or '',
                            re.MULTILINE | re.DOTALL)
        if literal:
            found[name] = ast.literal_eval(literal.group(1))
    return found


def backend_names(key='construct'):
    """Return the names of the files in ``backends/`` whose description has a key."""
    return [name for name, one in descriptions().items() if key in one]


def backend_class(key, name, error, known=()):
    """Return the class that ``backends/<name>.py`` offers: a construct, a store, an observer.

    Args:
        key: of the description: ``'construct'``, ``'store'``, ``'observer'``.
        name: of the file.
        error: the class of what is raised where there is no such file, or it lacks a module.
        known: the names that the core has itself, for the message.
    """
    what = 'task construct' if key == 'construct' else key
    try:
        module = load_backend(name)
    except ModuleNotFoundError as missing:
        raise error('%s %r needs the module %r, which is not installed'
                    % (what, name, missing.name)) from missing
    if module is None or key not in getattr(module, 'BACKEND', ()):
        raise error('no %s %r%s' % (what, name, _choices(name, [*known, *backend_names(key)])))
    return getattr(module, module.BACKEND[key])


# 3 Model #########################################################################


class or_:  # noqa: N801 (the documented name)
    """An expression that holds as soon as one of its operands does (semantics 2.1).

    Args:
        operands: expressions: events, steps, (step, status) pairs, tuples, other ``or_``.
    """

    __slots__ = ('operands',)

    def __init__(self, *operands):
        self.operands = operands

    def __repr__(self):
        return 'or_(%s)' % ', '.join(map(repr, self.operands))


class Event:
    """A named expression (Sequent) or something that can be raised (Eventor).

    Made by ``add_event``; used in the requirements of steps and of other events. ``sources`` are
    the expressions that raise it, ``require`` among them; an Eventor adds more of them.
    """

    __slots__ = ('flow', 'name', 'require', 'sources')

    def __init__(self, flow, name, require):
        self.flow = flow
        self.name = name
        self.require = require
        self.sources = [] if require is None else [require]

    def __repr__(self):
        return '<Event %s>' % (self.name,)


class ResourcePool:
    """Something of which there is a limited amount, shared by the steps of a flow (semantics 4.3).

    Args:
        name: names it in messages.
        resource_limit: how much of it there is, an int of 1 or more.
    """

    def __init__(self, name, resource_limit):
        _must_be(isinstance(name, str) and name, 'the name of a pool', 'a non-empty str', name)
        limit = 'pool %r: resource_limit' % name
        _must_be(_is_int(resource_limit), limit, 'an int', resource_limit)
        _must_be(resource_limit >= 1, limit, '1 or more', resource_limit, FlowError)
        self.name = name
        self.resource_limit = resource_limit

    def __repr__(self):
        return '<ResourcePool %s of %d>' % (self.name, self.resource_limit)


class OutsidePool:
    """Units that are counted outside of the run: shared by runs or hosts, or a rate.

    The base class of such pools. A step acquires units as of a `ResourcePool`. The supervisor asks
    when the task's turn has come and all else that it needs is free; a task that gets no units
    keeps its place, holds nothing, and asks again. All that a task took is given back when it
    ends, so its step has no ``releases``. The methods are called in the supervisor's thread, and
    must return soon. What an exception of theirs says is logged, and the task asks again.

    ``task`` names who takes: (flow, run id, path, sequence). A supervisor that dies gives nothing
    back: the pool knows the task by its name when a recovery asks for it again.

    Attributes:
        name: names it in messages.
        cadence: the seconds after which a task asks again.
    """

    cadence = 1.0

    def __init__(self, name):
        self.name = name

    def open(self, wake):
        """Note that a run begins, whose tasks ask again when some thread calls ``wake()``."""

    def close(self):
        """Note that the run is over, or pauses."""

    def try_take(self, units, task):
        """Take so many units, all or none; return whether there were enough."""
        raise NotImplementedError

    def give(self, units, task):
        """Give back what a task had taken, maybe from an earlier supervisor (semantics 7.6)."""

    def __repr__(self):
        return '<%s %s>' % (type(self).__name__, self.name)


_step_numbers = itertools.count()

#: What is given to most steps: shared, as there may be very many of them, and never changed.
_NOTHING = {}  # type: dict


class Step:
    """One step of a flow, as it was given. No behaviour: see ``add_step`` of the flow.

    ``children`` is a list; a step without is a leaf, and has an empty tuple. ``require`` is a
    parsed expression. Dicts in which there is nothing are shared.
    ``handles``: it makes good the failures that its requirement mentions (semantics 3.3).
    ``stop_on_exception``, ``max_concurrent`` and ``tolerate`` (None: not set on this step),
    ``retries``, ``serial`` (its func runs in the supervisor, so one at a time), ``queues`` (its
    construct takes more tasks than it runs at one time), ``settings`` (its resolved
    configuration), ``asks`` (the placeholders in what it calls and in its loop; None: there is
    nothing to fill in), ``flat`` (they stand right in ``args`` and nowhere else) and ``names``
    (what names in its command stand for: {(identifier, attribute): placeholder, or None for a
    parameter}) are filled in when the flow is run.
    """

    __slots__ = (
        'flow', 'parent', 'name', 'path', 'children', 'number', 'require', 'func', 'args',
        'kwargs', 'loop', 'delay', 'acquires', 'releases', 'recovery', 'config', 'handles',
        'stop_on_exception', 'max_concurrent', 'tolerate', 'retries', 'serial', 'queues',
        'settings', 'construct', 'asks', 'flat', 'names',
        '__dict__')    # for placeholders, and attributes of the user's own

    kind = 'leaf'

    def __init__(self, flow, parent, name, func=None, args=(), kwargs=_NOTHING, loop=None,
                 delay=0, acquires=(), releases=None, recovery=_NOTHING, config=_NOTHING,
                 stop_on_exception=True, max_concurrent=None, tolerate=None, retries=0,
                 handles=False):
        self.flow = flow
        self.parent = parent
        self.name = name
        self.path = '%s_%s' % (parent.path, name) if parent is not None and parent.path else name
        self.children = ()
        self.number = next(_step_numbers)    # the order of adding
        self.require = _UNCONDITIONAL
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.loop = loop
        self.delay = delay
        self.acquires = acquires
        self.releases = releases
        self.recovery = recovery
        self.config = config
        self.handles = handles
        self.stop_on_exception = stop_on_exception
        self.max_concurrent = max_concurrent
        self.tolerate = tolerate
        self.retries = retries
        self.serial = self.queues = self.flat = False
        self.settings = self.names = _NOTHING
        self.asks = None

    def __repr__(self):
        return '<Step %s>' % self.path

    def around(self):
        """Return the containers that it is in, innermost first, without the flow."""
        found, container = [], self.parent
        while container is not None and container.path:
            found.append(container)
            container = container.parent
        return found

    @property
    def result(self):
        """Stands for what this step returned, in the arguments or as the loop of another step.

        It is filled in when that one starts, which requires the success of this one. Of a leaf
        with a loop it is the list over its items. Outside of the containers that this step is in
        it is the list over their iterations: of two, a list of lists. None stands where it did
        not run, or failed and that was borne.
        """
        return self._placeholder(ResultOf)

    @property
    def item(self):
        """Stands for this step's current loop item, in the arguments or loops of steps in it."""
        return self._placeholder(ItemOf)

    def _placeholder(self, kind):
        return self.__dict__.setdefault(kind.__name__, kind(self))


class Placeholder:
    """Something that is known when a step starts. A step has one of each kind.

    It may stand in ``args`` and ``kwargs``, also inside lists, tuples, dicts, dataclasses and
    partials, in a partial that is ``func``, and as ``loop``. str(), format() and bool() of it
    raise, because they would make something of a value that is not known yet.
    """

    __slots__ = ('step',)
    is_placeholder = True

    def __init__(self, step):
        self.step = step

    def __str__(self):
        raise FlowTypeError(
            'the %r is not known before the step starts, so that no text can be made of it and '
            'no condition can ask for it here: pass it by itself, as in args=(a.result,), or in '
            "the text of a command by its name, as in '--rows={a.result}'" % self)

    __bool__ = __str__

    def __format__(self, spec):
        return str(self)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


class ResultOf(Placeholder):
    """What a step returned: see `Step.result`."""

    __slots__ = ()

    def __repr__(self):
        return '<result of %s>' % self.step.path


class ItemOf(Placeholder):
    """The loop item of a step: see `Step.item`. Without a step: of the leaf where it stands."""

    __slots__ = ()

    def __repr__(self):
        return '<item of %s>' % self.step.path if self.step is not None else '<item>'


#: Stands for the own loop item of the leaf in whose arguments it is.
item = ItemOf(None)


def placeholders_in(value, rest=None):
    """Return the placeholders in a value where `filled` replaces them.

    They stand in lists, tuples, the values of dicts, partials and the fields of dataclasses, as
    deep as they go. All other objects in it are added to ``rest``, a list: see `hidden_in`.
    """
    found, agenda, seen = [], [value], set()
    rest = [] if rest is None else rest
    while agenda:
        one = agenda.pop()
        if isinstance(one, Placeholder):
            found.append(one)
        elif type(one) not in _PLAIN_TYPES and id(one) not in seen:
            seen.add(id(one))
            parts = _parts(one)
            agenda.extend(() if parts is None else reversed(parts))
            rest.extend([one] if parts is None else one if isinstance(one, dict) else ())
    return found


def _parts(value):
    """Return the parts of a value in which `filled` replaces placeholders, or None."""
    if isinstance(value, (list, tuple)):
        return value
    if isinstance(value, dict):
        return list(value.values())
    if type(value) is functools.partial:
        return value.func, value.args, value.keywords
    if hasattr(type(value), '__dataclass_fields__'):
        return [getattr(value, name) for name in _attribute_names(value)]
    return None


def _attribute_names(value):
    """Return the names of the fields of a dataclass and of what else it was given."""
    import dataclasses    # which is loaded where a class is one; on Python 3.6 it is a package
    names = dict.fromkeys(one.name for one in dataclasses.fields(value)
                          if hasattr(value, one.name))
    return list(dict(names, **getattr(value, '__dict__', {})))


def filled(value, find, made=None):
    """Return a value with each placeholder in it replaced by ``find(placeholder)``.

    ``made`` is what was made of objects so far, by their ids: they may contain themselves.
    """
    if isinstance(value, Placeholder):
        return find(value)
    made = {} if made is None else made
    if id(value) in made:
        return made[id(value)]
    parts = None if type(value) in _PLAIN_TYPES else _parts(value)
    if not parts or not placeholders_in(value):
        return value
    if isinstance(value, tuple):
        content = [filled(one, find, made) for one in value]
        return type(value)(*content) if hasattr(value, '_fields') else tuple(content)
    if type(value) is functools.partial:
        func, args, keywords = [filled(one, find, made) for one in parts]
        double = functools.partial(func, *args, **keywords)
        vars(double).update(vars(value))
        return double
    double = made[id(value)] = copy.copy(value)
    if isinstance(value, list):
        double[:] = [filled(one, find, made) for one in value]
    elif isinstance(value, dict):
        for key, one in value.items():
            double[key] = filled(one, find, made)
    else:
        for name, one in zip(_attribute_names(value), parts):
            object.__setattr__(double, name, filled(one, find, made))    # it may be frozen
    return double


def hidden_in(value, seen):
    """Return a placeholder that an object holds where `filled` does not replace it, or None.

    Objects of the library, classes and modules are not searched; of a function only its defaults
    and what its closure holds by itself; of a bound method only its function, because the object
    may be the one that makes the flow.

    Args:
        seen: the ids of what was searched before, and is still there.
    """
    import gc
    agenda = [value]
    while agenda:
        one = agenda.pop()
        kind = type(one)
        if kind in _PLAIN_TYPES or id(one) in seen or isinstance(one, _NOT_SEARCHED):
            continue
        if getattr(kind, 'is_placeholder', False) is True:
            return one
        seen.add(id(one))
        if kind is types.FunctionType:
            inner = []  # type: list
            found = placeholders_in([one.__defaults__, one.__kwdefaults__, gc.get_referents(
                *one.__closure__ or ())], inner)
            if found:
                return found[0]
            agenda += [each for each in inner if type(each) is types.FunctionType]
        elif kind is types.MethodType:
            agenda.append(one.__func__)
        elif kind is types.FrameType:    # of a generator
            agenda += one.f_locals.values()
        elif not any(base.__module__ == __name__ for base in kind.__mro__):
            agenda += gc.get_referents(one)
    return None


def reference_in(items):
    """Return a placeholder, or a part of a requirement, that loop items hold; or None."""
    rest = []  # type: list
    for one in placeholders_in(items, rest) + rest:
        if isinstance(one, (Placeholder, Step, Event, or_)):
            return one
    return None


_PLAIN_TYPES = frozenset({
    type(None), bool, int, float, complex, str, bytes, bytearray, range, type})
_NOT_SEARCHED = (type, types.ModuleType, types.CodeType)


# A parsed expression is one of these, or an Event (which stands for its own expression): a status
# of a step; what holds when all its operands hold, and at once when there are none; what holds
# when one operand holds, and never when there are none.
Atom = collections.namedtuple('Atom', 'step status')
All = collections.namedtuple('All', 'operands')
Any = collections.namedtuple('Any', 'operands')

_UNCONDITIONAL = All(())


def parse_expression(given, flow, who):
    """Turn a requirement as users write it into `Atom`, `All`, `Any` and `Event` objects.

    Args:
        given: see semantics 2.1.
        flow: the flow whose steps and events may be named.
        who: what the requirement belongs to, for messages.

    Raises:
        FlowTypeError: something is neither a step, an event, a pair, a sequence nor ``or_``.
        FlowError: an unknown status, or a step or event of another flow.
    """
    if isinstance(given, (Step, Event)):
        if given.flow is not flow:
            raise FlowError('%s requires %r, which belongs to another flow' % (who, given))
        return given if isinstance(given, Event) else Atom(given, SUCCESS)
    if isinstance(given, or_):
        if not given.operands:
            raise FlowError('%s requires or_() of nothing, which can never hold' % who)
        return Any(tuple(parse_expression(one, flow, who) for one in given.operands))
    if isinstance(given, (tuple, list)):
        if len(given) == 2 and isinstance(given[0], Step) and isinstance(given[1], str):
            step, status = given
            parse_expression(step, flow, who)
            if status not in StepStatus.__members__:
                raise FlowError('%s requires status %r of step %r%s' % (
                    who, str(status), step.path, _choices(status, StepStatus.__members__)))
            return Atom(step, StepStatus[status].value)
        return All(tuple([parse_expression(one, flow, who) for one in given]))
    raise FlowTypeError('%s requires %r, which is no step, event, (step, status) pair, tuple or '
                        'or_' % (who, given))

# 4 Plan ##########################################################################
#
# A plan is the model compiled for the engine. The steps of one container share a *scope*: the
# engine makes one instance of it for each iteration. In it every expression is a *gate*, a
# counter of what is still missing: a tuple starts at the number of its operands, or_ at 1. A
# status that is raised counts down the gates that mention it; a gate at 0 starts its step or
# counts down the gates above it. So a status costs as much as there are expressions that
# mention it, and a step that requires 10,000 others is decided in 10,000 decrements.

_STARTED, _READY, _ACTIVE, _SUCCESS, _FAILURE = 1, 2, 4, 8, 16
_AGAIN = 32    # it had succeeded, and something of it runs again
_COMPLETE = _SUCCESS | _FAILURE
_BITS = {READY: _READY, ACTIVE: _ACTIVE, SUCCESS: _SUCCESS, FAILURE: _FAILURE,
         COMPLETE: _COMPLETE}
_ANY = _READY | _ACTIVE | _COMPLETE
_REPLAYS = {READY: 'rerun', ACTIVE: 'rerun', FAILURE: 'rerun', SUCCESS: 'skip'}

# The first counters of a plan: tasks that run, of these the ones that run in the supervisor, one
# at a time, and those that a construct that queues has. The others are the pools.
_SLOTS, _INLINE, _QUEUED = range(3)
_NO_LIMIT = float('inf')


def _uses(step):
    if step.serial:
        return _INLINE, _SLOTS
    return (_QUEUED, _SLOTS) if step.queues else (_SLOTS,)


class PlanStep:
    """One step compiled. There may be very many, and each makes a fork dearer: what only
    containers have is in `PlanContainer`."""

    __slots__ = (
        'step', 'path', 'kind', 'rank', 'last', 'slot', 'parent', 'calls', 'delay', 'stop',
        'recovery', 'retries',
        # numbers of the counters of which each of its tasks holds 1 while it runs; (number,
        # amount) of the pools that it acquires and gives back; the number of its lane
        'uses', 'needs', 'gives', 'lane',
        # whether its failure stops nothing at first (semantics 3.4); whether it may be a reaction,
        # as its requirement mentions a failure or a completion; the siblings whose failures it
        # makes good
        'expected', 'reacts', 'handles',
        # {placeholder: where its value is}: (levels up, the leaf), or the number of the loop item;
        # whether its result is asked for; (containers) the leaves in it whose results are
        'fills', 'wanted', 'gathers',
        # whether a recovery must go through it though it succeeded: something in it is rerun
        # then, keeps resources, or may have waited in vain for something outside
        'replayed',
        # who is to be told of its statuses: gates beside it, those of success apart; whether
        # iterations further in wait for it; the bits of the statuses that are of use to them
        'after', 'on', 'awaited', 'told',
        # atoms about steps further out: (levels up, step, bit)
        'outer')

    children = None  # type: typing.Optional[typing.List[PlanStep]]

    def __init__(self, step, kind, parent, slot):
        self.step = step
        self.path = step.path
        self.kind = kind
        self.rank = self.last = step.number
        self.slot = slot
        self.parent = parent
        self.calls = step.func is not None
        self.uses = _uses(step) if self.calls else ()
        self.lane = 0
        self.delay = step.delay
        self.needs = self.gives = self.gathers = self.outer = self.after = self.handles = ()
        self.stop = step.stop_on_exception
        self.expected = self.reacts = self.wanted = self.replayed = self.awaited = False
        self.recovery = _REPLAYS
        self.retries = self.told = 0
        self.fills = None
        self.on = _NOTHING

    def __repr__(self):
        return '<PlanStep %s>' % self.path

    def requires(self):
        """Whether its requirement counts: not the flow's, nor that of the body of a loop."""
        return self.parent is not None and self.step is not self.parent.step

    def around(self):
        """Return the containers around it, innermost first, the flow last."""
        found, container = [], self.parent
        while container is not None:
            found.append(container)
            container = container.parent
        return found


class PlanContainer(PlanStep):
    """A container compiled: its ``children``, and the gates of its scope."""

    __slots__ = (
        'children', 'depth', 'limit', 'loops',
        # how many failed iterations it bears, None: none; a share, in per cent, that is looked at
        # when its loop is over
        'bears', 'share',
        # what starts with an iteration; (levels, step, status, gate) read then; children with
        # atoms about steps further out; the gates: what each misses, which gates and which step
        # it leads to
        'initial', 'imports', 'awaits', 'missing', 'leads', 'starts')

    def __init__(self, step, kind, parent, slot):
        PlanStep.__init__(self, step, kind, parent, slot)
        self.uses = ()
        self.depth = parent.depth + 1 if parent is not None else 0
        self.limit = 1
        if step.max_concurrent is not None and parent is not None:
            self.limit = step.max_concurrent
        self.loops = step.loop is not None
        self.bears, self.share = _tolerance(step)
        self.children = []
        self.initial = []
        self.imports = []
        self.awaits = []
        self.missing = []
        self.leads = []
        self.starts = []

    def gate(self, missing):
        """Add a gate to this container's scope and return its number."""
        self.missing.append(missing)
        self.leads.append(())
        self.starts.append(None)
        return len(self.missing) - 1


# What the engine runs.
#
# ``steps`` are all compiled steps, ``compiled`` maps those of the model to them.
# ``dynamic``: sequences come from events (an Eventor), not from the tree. ``events`` maps an
# event's name to its gate in the root (dynamic plans). ``pools`` are (name, limit) pairs, the
# numbers in ``uses``, ``needs`` and ``gives`` count in it; only resource pools have a name, the
# others are the cap of a step, or what `_SLOTS` and its like number. ``outside`` maps the numbers
# of those that have no limit here, as they are counted elsewhere, to them. ``lanes`` are the
# (uses, needs, whether tasks may be queued ahead of a slot) of steps, each once.
Plan = collections.namedtuple('Plan', 'root steps compiled pools outside lanes events dynamic')


def plan_text(plan, called):
    """Return a plan as JSON: what a store keeps of it, once for all runs that have the same plan.

    ``called`` describes a function. ``steps`` lists {"path", "kind", "in": path of the container,
    "calls": text, "loop": true, "handles": true, "delay": seconds, "require": expression,
    "asks": paths of the steps whose results it asks for}, each container before what is inside
    it; what does not apply is left out.
    An expression is [path, status], {"all": [...]}, {"any": [...]}, or {"event": number}, which
    stands for that one of the list ``events`` of expressions. ``dynamic``: events can be raised
    from outside (Eventor).
    """
    import json
    events, numbers = [], {}  # type: list, dict

    def form(expression):
        if isinstance(expression, Atom):
            step, status = expression
            return form(step.require) if step.kind == 'timer' else [step.path, status]
        if isinstance(expression, Event):
            if expression not in numbers:
                numbers[expression] = len(events)    # events may raise one another in a circle
                events.append(None)
                events[numbers[expression]] = {'any': [
                    form(one) for one in expression.sources]}
            return {'event': numbers[expression]}
        kind = 'all' if isinstance(expression, All) else 'any'
        return {kind: [form(one) for one in expression.operands]}

    def fields(one):
        step, known = one.step, {'path': one.path, 'kind': one.kind}
        if one.parent.path:
            known['in'] = one.parent.path
        if step.func is not None:
            known['calls'] = called(step.func)
        if step.loop is not None:
            known['loop'] = True
        if step.handles:
            known['handles'] = True
        if step.delay:
            known['delay'] = step.delay
        if step.require is not _UNCONDITIONAL:
            known['require'] = form(step.require)
        if step.asks:
            known['asks'] = sorted({asked.step.path for asked in step.asks
                                    if isinstance(asked, ResultOf)})
        return known

    # The body of a loop stands for its container.
    return json.dumps({'steps': [fields(one) for one in plan.steps if one.requires()],
                       'events': events, 'dynamic': plan.dynamic})


def quiet_steps(missing, may_hold):
    """Return those of the steps that were not run which wait for a failure that did not happen.

    A step that requires such a step waits for that failure, too (semantics 3.5).

    Args:
        missing: the steps that were not run, in the order in which they were added.
        may_hold: says of a step whether its requirement could have come to hold, given the set
            of the steps that were found so far.
    """
    quiet, before = set(), -1  # type: set, int
    while len(quiet) > before:
        before = len(quiet)
        missing = missing[::-1]    # else a chain whose last step was added first takes n passes
        quiet.update(step for step in missing if not may_hold(step, quiet))
    return quiet


def compile_plan(root, handled_by='handles', events=None):
    """Compile the tree of steps below ``root`` and check it (semantics 2, 4.3).

    Args:
        root: a `Step` without a name, whose children are the flow's steps.
        handled_by: which steps are handlers (semantics 3.3): 'handles', those that say so;
            'failure', also each that requires the failure of a sibling; 'complete', also each
            that requires its completion.
        events: the events of an Eventor, which can be raised from outside; None for a Sequent.

    Raises:
        FlowError: a requirement out of scope, a handler of nothing, or more asked of a pool than
            it has.
        CycleError: steps wait for one another.
    """
    return _Compiler(handled_by, events).compile(root)


def mentioned(expression, seen=None):
    """Yield the atoms of an expression, also those behind events and behind timers.

    Args:
        expression: what `parse_expression` returned.
        seen: the events that have been looked at: events may raise one another in a circle.
    """
    seen = set() if seen is None else seen
    if isinstance(expression, Atom):
        if expression.step.kind != 'timer':
            yield expression
            return
        operands = (expression.step.require,)  # type: tuple
    elif isinstance(expression, Event):
        if expression in seen:
            return
        seen.add(expression)
        operands = tuple(expression.sources)
    else:
        operands = expression.operands
    for operand in operands:
        for atom in mentioned(operand, seen):
            yield atom


class _Counters:
    """The counters of a plan, and what each step needs of them."""

    def __init__(self, dynamic):
        self.dynamic = dynamic
        self.pools = [(None, _NO_LIMIT), (None, 1), (None, _NO_LIMIT)]
        self.outside = {}    # number -> OutsidePool
        self.numbers = {}    # ResourcePool or OutsidePool -> its number

    def resources(self, plan_step, step, held):
        """Fill in what a step acquires and releases; return all that is held at its depth."""
        if not step.acquires and step.releases is None:
            return held
        plan_step.needs = self.amounts(step.acquires)
        releases = step.acquires if step.releases is None else step.releases
        plan_step.gives = self.amounts(releases)
        for number, _ in plan_step.needs + plan_step.gives if step.releases is not None else ():
            if number in self.outside:
                raise FlowError('step %r has releases, and %r in it: what a step acquires of a '
                                'pool outside the run is given back when it ends'
                                % (step.path, self.outside[number]))
        for number, amount in plan_step.needs:
            holders = [(path, n) for path, pool, n in held if pool == number]
            asked = amount + sum(n for _, n in holders)
            name, limit = self.pools[number]
            if asked > limit:
                also = ''.join(' and %r, which it is in, %d' % one for one in holders)
                raise FlowError('step %r acquires %d of pool %r%s: more than its limit of %d'
                                % (step.path, amount, name, also, limit))
        kept = any(amount > dict(plan_step.gives).get(number, 0)
                   for number, amount in plan_step.needs)
        plan_step.replayed = plan_step.replayed or kept
        return held + tuple((step.path, number, amount) for number, amount in plan_step.needs)

    def amounts(self, pairs):
        total = collections.OrderedDict()  # type: typing.Dict[int, int]
        for pool, amount in pairs:
            if pool not in self.numbers:
                number = self.numbers[pool] = len(self.pools)
                outside = isinstance(pool, OutsidePool)
                self.pools.append((pool.name, _NO_LIMIT if outside else pool.resource_limit))
                if outside:
                    self.outside[number] = pool
            number = self.numbers[pool]
            total[number] = total.get(number, 0) + amount
        return tuple(total.items())

    def cap(self, plan_step):
        """A leaf's max_concurrent is a pool of its own, of which each task holds 1. There need
        be none where the leaf cannot run at two sequences at one time."""
        limit, outer = plan_step.step.max_concurrent, plan_step.parent
        if plan_step.step is outer.step:
            outer = outer.parent
        while outer is not None and outer.limit == 1 and (not self.dynamic or outer.parent):
            outer = outer.parent
        if limit is None or limit < 1 or outer is None or not plan_step.calls:
            return
        self.pools.append((None, limit))
        number = len(self.pools) - 1
        plan_step.needs += ((number, 1),)
        plan_step.gives += ((number, 1),)

    def lanes(self, steps):
        """Number the lanes: steps whose tasks need the same wait in the same one."""
        numbers = collections.OrderedDict()  # type: typing.Dict[tuple, int]
        for step in steps:
            if step.uses or step.needs:
                # Where a step waits for another one to be active, its start is not put off.
                ahead = _QUEUED in step.uses and not (step.needs or step.told & _ACTIVE)
                step.lane = numbers.setdefault((step.uses, step.needs, ahead), len(numbers))
        return list(numbers)


class _Compiler:
    """Compiles one plan."""

    def __init__(self, handled_by, events):
        self.handling = {'failure': (FAILURE,), 'complete': (FAILURE, COMPLETE)}.get(
            handled_by, ())  # type: typing.Tuple[str, ...]
        self.events = events
        self.steps = []
        self.compiled = {}       # Step -> PlanStep
        self.counters = _Counters(events is not None)
        self.event_gates = {}    # (Event, container) -> its gate (None: it always holds), outer
        self.failing = {}        # see `mentions_failure`
        self.implied = {}        # PlanStep -> its requirement and that of what it asks for
        self.ordered = True      # every atom points backward: there can be no circle

    def compile(self, root):
        top = self.add_step(root, None, 0, {}, ())
        for plan_step in self.steps:
            if plan_step.step.asks is not None:
                self.ask(plan_step)
        for plan_step in self.steps:
            if plan_step.requires():
                self.require(plan_step)
                if plan_step.reacts or plan_step.step.handles:
                    self.handle(plan_step)
        events = {}
        for event in self.events or ():
            events[event.name] = self.event_gate(event, top, top)
            for atom in event.sources:
                if isinstance(atom, Atom) and atom.status in (FAILURE, COMPLETE):
                    self.compiled[atom.step].expected = True
        if not self.ordered and self.events is None:
            check_circles(self.steps, self.compiled, self.requirement)
        counters = self.counters
        return Plan(top, self.steps, self.compiled, counters.pools, counters.outside,
                    counters.lanes(self.steps), events, counters.dynamic)

    # The tree.

    def add_step(self, step, parent, slot, recovery, held):
        """Compile a step and those below it, without their requirements.

        A leaf with a loop is a container; its body is a leaf with the same path, one component
        deeper.
        """
        body = parent is not None and parent.step is step
        leaf_loop = step.loop is not None and not step.children and not body
        container = parent is None or bool(step.children) or leaf_loop
        kind = step.kind if step.kind != 'leaf' else (
            'loop' if leaf_loop else 'container' if container else 'leaf')
        plan_step = (PlanContainer if container else PlanStep)(step, kind, parent, slot)
        self.steps.append(plan_step)
        self.compiled.setdefault(step, plan_step)
        recovery = dict(recovery, **step.recovery) if step.recovery else recovery
        if recovery:
            plan_step.recovery = dict(_REPLAYS, **recovery)
            plan_step.replayed = plan_step.recovery[SUCCESS] == 'rerun'
        if not leaf_loop:
            held = self.counters.resources(plan_step, step, held)
        if not container:
            plan_step.retries = step.retries
            self.counters.cap(plan_step)
        if body:
            plan_step.delay = 0
            parent.initial.append(plan_step)
        for slot, below in enumerate((step,) if leaf_loop else step.children):
            child = self.add_step(below, plan_step, slot, recovery, held)
            plan_step.children.append(child)
            plan_step.last = max(plan_step.last, child.last)
            plan_step.replayed = plan_step.replayed or child.replayed
        return plan_step

    # Placeholders.

    def ask(self, plan_step):
        """Find out where the values of a step's placeholders are; note what that requires."""
        plan_step.fills = {}
        for one in plan_step.step.asks:
            if isinstance(one, ItemOf):
                plan_step.fills[one] = self.ask_item(plan_step, one.step)
            elif plan_step.requires():
                plan_step.fills[one] = self.ask_result(plan_step, one.step)
            else:    # the body of a loop: a level further in
                levels, leaf = plan_step.parent.fills[one]
                plan_step.fills[one] = levels + 1, leaf

    def ask_item(self, plan_step, step):
        """Return the number of an item among those of the loops around a step, outermost first."""
        step = plan_step.step if step is None else step
        around = plan_step.around()
        looped = [one.step for one in reversed(around) if one.loops]
        if step in looped:
            return looped.index(step)
        if step is plan_step.step and plan_step.kind == 'loop':
            return len(looped)    # in its loop this has no meaning, in the body it has
        raise FlowError('step %r asks for the item of %s, but %s' % (
            plan_step.path, 'step %r' % step.path,
            'that has no loop' if step.loop is None else 'is not inside it'))

    def ask_result(self, plan_step, step):
        """Return (levels up, leaf): where the result of a step is, seen from another one."""
        target = self.compiled[step]
        if step is plan_step.step or target in plan_step.around():
            raise FlowError('step %r asks for the result of %r, which is not over when it starts'
                            % (plan_step.path, step.path))
        if step.children:
            raise FlowError('step %r asks for the result of %r, which is a container: ask for '
                            'those of the steps in it' % (plan_step.path, step.path))
        leaf = target.children[0] if target.kind == 'loop' else target
        leaf.wanted = True
        scopes, outermost = plan_step.around(), leaf
        while outermost.parent not in scopes:
            outermost = outermost.parent
            outermost.gathers += () if leaf in outermost.gathers else (leaf,)
        before = self.implied.get(plan_step, All((plan_step.step.require,)))
        atom = Atom(outermost.step, SUCCESS)
        if atom not in before.operands:
            self.implied[plan_step] = All(before.operands + (atom,))
        return scopes.index(outermost.parent), leaf

    # Requirements.

    def requirement(self, plan_step):
        """Return what a step requires, with what it requires without saying so."""
        return self.implied.get(plan_step, plan_step.step.require)

    def require(self, plan_step):
        """Compile what a step requires into gates of its container."""
        container, expression = plan_step.parent, self.requirement(plan_step)
        gate = None
        if expression is not _UNCONDITIONAL:
            gate = self.gate(expression, container, plan_step)
        if gate is None:
            container.initial.append(plan_step)
            return
        container.starts[gate] = plan_step
        if plan_step.outer:
            container.awaits.append(plan_step)

    def gate(self, expression, container, step):
        """Return a new gate that opens when an expression of a step holds; None if it always
        holds."""
        operands = expression.operands if isinstance(expression, (All, Any)) else (expression,)
        gate = container.gate(len(operands) if isinstance(expression, All) else 1)
        for operand in operands:
            self.feed(operand, gate, container, step)
        return gate if container.missing[gate] > 0 else None

    def event_gate(self, event, container, step):
        """Return the gate of an event: its expression is read where it is used (semantics 2.4)."""
        if (event, container) not in self.event_gates:
            self.ordered = False
            gate, known = container.gate(1), len(step.outer)
            self.event_gates[event, container] = gate, ()
            for source in event.sources:
                self.feed(source, gate, container, step)
            self.event_gates[event, container] = gate, tuple(step.outer[known:])
            if container.missing[gate] < 1:
                if self.events is None:
                    self.event_gates[event, container] = None, ()
                else:    # an Eventor's event is raised by what happens
                    container.missing[gate] = 1
            return self.event_gates[event, container][0]
        gate, outer = self.event_gates[event, container]
        if outer:
            step.outer = [*step.outer, *outer]
        step.reacts = step.reacts or self.mentions_failure(event)
        return gate

    def feed(self, operand, gate, container, step):
        """Let an operand count down a gate: now, if it always holds."""
        if type(operand) is Atom:
            self.feed_atom(operand, gate, container, step)
            return
        is_event = isinstance(operand, Event)
        source = (self.event_gate if is_event else self.gate)(operand, container, step)
        if source is None:
            container.missing[gate] -= 1
        else:
            container.leads[source] += (gate,)

    def mentions_failure(self, operand):
        """Whether a failure or a completion stands behind an event or a timer."""
        if operand not in self.failing:
            self.failing[operand] = any(atom.status in (FAILURE, COMPLETE)
                                        for atom in mentioned(operand))
        return self.failing[operand]

    def feed_atom(self, atom, gate, container, step):
        target, status = self.compiled[atom.step], atom.status
        if status in (FAILURE, COMPLETE) or (
                atom.step.kind == 'timer' and self.mentions_failure(atom)):
            step.reacts = True
        levels = 0 if target.parent is container else _levels(target, step)
        if target.last >= step.rank:
            self.ordered = False
        if levels == 0:
            target.told |= _BITS[status]
            if status == SUCCESS:
                target.after = target.after or []
                target.after.append(gate)
            else:
                target.on = target.on or {}
                target.on.setdefault(status, []).append(gate)
        else:
            target.told = _ANY    # further in it matters, too, what cannot be any more
            target.awaited = True
            container.imports.append((levels, target, status, gate))
            step.outer = step.outer or []
            step.outer.append((levels, target, _BITS[status]))
            for _ in range(levels):    # what was not raised then may be raised in a recovery
                container.replayed = container.replayed or container is not target
                container = container.parent

    def handle(self, plan_step):
        """Find out which failures a step makes good (semantics 3.3)."""
        step, handled = plan_step.step, collections.OrderedDict()
        implied = self.implied[plan_step].operands[1:] if plan_step in self.implied else ()
        needed = {one.step for one in implied}
        for atom in mentioned(step.require):
            if atom.status not in (FAILURE, COMPLETE):
                continue
            target = self.compiled[atom.step]
            if atom.step in needed:
                # It runs only after a success, whose result it asks for, so it makes no failure
                # good.
                if atom.status == FAILURE:
                    raise FlowError('step %r requires the failure of step %r and asks for a '
                                    'result that there is only after its success'
                                    % (plan_step.path, target.path))
            elif target.parent is not plan_step.parent:
                if step.handles:
                    raise FlowError(
                        'step %r cannot handle the failure of step %r, which is no sibling of it: '
                        'put the handler beside that step, or handle the failure of a container'
                        % (plan_step.path, target.path))
            elif step.handles or atom.status in self.handling:
                handled[target] = None
                target.expected = True
        if step.handles and not handled:
            raise FlowError('step %r has handles=True, but %s, or leave handles out' % (
                plan_step.path, 'it requires neither the failure nor the completion of a sibling: '
                'require (step, STEP_FAILURE) or (step, STEP_COMPLETE)' if self.events is None else
                'no trigger on a failure or a completion starts it: give one to another step'))
        plan_step.handles = tuple(handled)


def _levels(target, step):
    """How many levels further out than a step one stands that it requires."""
    scopes = step.around()
    if target.parent in scopes:
        return scopes.index(target.parent)
    path, outside = step.path, target
    if target.parent is None:
        raise FlowError('step %r requires the flow itself' % path)
    while outside.parent not in scopes:
        outside = outside.parent
    raise FlowError('step %r requires step %r, which is inside the container %r and has no '
                    'single sequence here; require the container instead: (%r, %r)'
                    % (path, target.path, outside.path, outside.path, 'success'))


def _tolerance(step):
    """Return (failed iterations that a container bears or None, a share to look at in the end)."""
    if not isinstance(step.tolerate, str):
        return step.tolerate, None
    from fractions import Fraction    # 18.4 % of 375 are 69, in floats not quite
    try:
        return int(Fraction(step.tolerate[:-1]) * len(step.loop) / 100), None
    except (TypeError, OverflowError):    # its length is not known
        return float('inf'), float(step.tolerate[:-1])


def check_circles(steps, compiled, requirement):
    """Raise `CycleError` if some step can never start because steps wait for one another.

    Gates are counted down as if all happened that can. A step can start when its container can
    and its requirement can hold; a leaf can end when it can start, a container when all that is
    inside can end (semantics 2.6). What is left then waits in a circle.
    """
    containers = [step for step in steps if step.children is not None]
    counts = {one: list(one.missing) for one in containers}
    left = {one: len(one.children) for one in containers}    # children that cannot end yet
    holding = {child for one in containers for child in one.initial}
    further_in = collections.defaultdict(list)
    for one in containers:
        for _, target, status, gate in one.imports:
            further_in[target, status].append((one, gate))
    begun, ended, agenda = set(), set(), [steps[0]]  # type: set, set, list

    def count_down(container, gates):
        for gate in gates:
            counts[container][gate] -= 1
            if counts[container][gate] == 0:
                count_down(container, container.leads[gate])
                holding.add(container.starts[gate])
                if container in begun:
                    agenda.append(container.starts[gate])

    def reach(step, *statuses):
        for status in statuses:
            gates = step.after if status == SUCCESS else step.on.get(status)
            count_down(step.parent, gates or ())
            for container, gate in further_in[step, status]:
                count_down(container, (gate,))

    while agenda:
        step = agenda.pop()
        if step is None or step in begun:
            continue
        begun.add(step)
        agenda += [child for child in step.children or () if child in holding]
        reach(step, READY, ACTIVE)
        while step is not None and not left.get(step):
            ended.add(step)
            reach(step, SUCCESS, FAILURE, COMPLETE)
            step = step.parent
            if step is not None:
                left[step] -= 1
    stuck = [step for step in steps if step not in begun]
    if stuck:
        _raise_circle(stuck[0], begun, ended, compiled, requirement)


def _raise_circle(step, begun, ended, compiled, requirement):
    """Walk from a step that cannot start along what it waits for, until that repeats."""
    end, seen = False, []  # type: bool, list
    while (step, end) not in seen:
        seen.append((step, end))
        if step in begun:
            step, end = next(child for child in step.children if child not in ended), True
        elif step.parent not in begun:
            step, end = step.parent, False
        else:
            needs = [(compiled[atom.step], atom.status not in (READY, ACTIVE))
                     for atom in mentioned(requirement(step))]
            step, end = next(one for one in needs if one[0] not in (ended if one[1] else begun))
    paths = [one.path for one, _ in seen[seen.index((step, end)):]]
    circle = [path for n, path in enumerate(paths) if path != paths[n - 1]] or paths[:1]
    raise CycleError('steps wait for one another, so that none can start: %s'
                     % ' -> '.join(circle + circle[:1]))


# 5 Engine ########################################################################
#
# The engine decides everything and does nothing. The driver calls a method of it for each thing
# that happened (`begin`, `trigger`, `tick`, `done`, `lost`, `opened`, `loop_over`, `hold`,
# `unhold`, `granted`, `ask_again`, `halt`), with the time in seconds as the last argument. Each
# returns a list of the actions that follow:
#
#     ('record', task)   its status is to be stored, with the next commit, before what follows
#     ('submit', task)   its status is to be stored; start it, once that is committed
#     ('ask', task)      it is to start if it gets what it needs of the pools outside the run:
#                        answer with `granted` before any other input
#     ('give', (task, number, amount))   so much is given back to a pool outside the run
#     ('open', task)     the container asks for its next loop item: answer with `opened` or
#                        `loop_over` before any other input
#     ('attempt', (task, recovery, attempt, status, error))   that attempt ended, and another one
#                        will be made: it failed, or what it had reacted to has failed anew
#     ('dropped', task)  a stop came while it waited for its next attempt: it counts as failed
#     ('handled', (task, handler))   its failure was made good; without a handler: it is tolerated
#     ('kept', (step, scope, again))   it keeps an earlier success, though it required that of
#                        the step ``again``, which ran again
#     ('skip', (task, earlier))   it is not run again: trigger the events that it had raised by
#                        hand, keep its result, if that is asked for
#     ('gather', scope)  an iteration is over in which results are that are asked for further out
#     ('closed', task)   the container is over
#     ('finish', ok)     nothing is left to do
#
# An engine that ``tells`` (for dry runs) returns 'skip' for each task that is not run again, and
#
#     ('starts', task)   the task starts, be it a container or nothing to call
#     ('unmet', scope)   an iteration is over in which some step has not begun
#
# A *scope* is one iteration of a container, live. It has a counter for each gate and remembers
# which statuses its steps have raised. ``busy`` counts what goes on in it: tasks that are delayed,
# ready or running, containers about to open an iteration, inner iterations that are themselves
# busy. When ``busy`` falls to 0 the iteration ends, unless a step in it waits for a step further
# out that may yet get there (`_settle`): an iteration subscribes in the scopes further out.
#
# Within one input, statuses are raised first, wherever that leads; then containers that are
# over end, then tasks that became ready are put in order and started as far as they are admitted
# (`_proceed`).
#
# A scope remembers the tasks that failed in it (``failures``). A failure that a handler mentions
# is *expected*: it stops nothing. If no handler has made it good when the iteration ends, it
# counts there like any other. An unexpected failure counts at once: it fails its container, and
# stops it (`_fail`, `_stop`). A stop has one origin, which all that it reaches names (``stop``).
# It drops what is ready or delayed (``waiting`` of a scope), but *spares* the reactions: steps
# whose requirement would not hold without a failure. A reaction goes on in a scope that is
# stopped, and what is inside it is not stopped at all.


class Earlier(typing.NamedTuple):
    """What an earlier supervisor left of a task.

    ``kind`` is that of the task; it does not count for a step that is of another kind now.
    ``running``: its process still runs and is to be adopted. ``changed``: (containers) what is
    inside is not what it was. ``again``: it failed while no supervisor was there to see it, and
    may be tried again, at ``due``. ``result`` is the driver's. ``wait``: the most
    seconds that its wait can take, None: unknown. ``handled`` is as in `TaskRecord`. ``began`` and
    ``ended`` are the times of the attempt.
    """

    status: str
    kind: str = 'leaf'
    recovery: int = 0
    attempt: int = 1
    due: typing.Optional[float] = None
    running: bool = False
    changed: bool = False
    events: typing.Any = None
    error: typing.Optional[str] = None
    again: bool = False
    result: typing.Optional[bytes] = None
    wait: typing.Optional[float] = None
    handled: bool = False
    began: float = 0.0
    ended: float = 0.0


class Task:
    """One execution of one step at one sequence, while it lives."""

    __slots__ = ('step', 'scope', 'sequence', 'status', 'recovery', 'attempt', 'due', 'error',
                 'order', 'adopted', 'retrying', 'made_good', 'reacts_to', 'resumes', 'began_at',
                 'failed_at', 'job', 'started', 'ended', 'result', 'events', 'ready_at', 'cause')

    def __init__(self, step, scope, recovery):
        self.step = step
        self.scope = scope
        self.sequence = scope.sequence if scope is not None else ''
        self.status = None
        self.recovery = recovery
        self.attempt = 1
        self.due = None
        self.error = None
        self.order = 0
        self.adopted = False
        self.retrying = False    # it failed, and waits for its next attempt
        self.made_good = ''   # it failed: whether that is HANDLED or TOLERATED
        # Of a reaction: the tasks that failed, as far as its requirement mentions them.
        self.reacts_to = ()  # type: typing.Tuple[Task, ...]
        # The status that it had when the run was continued: no stop keeps it from going on. A
        # container's iterations that had begun are opened, too, though it is stopped.
        self.resumes = None
        # When a handler's attempt began and when a failure was recorded, to tell which came
        # first: (1, number) in this supervisor's run, (0, time) in that of an earlier one.
        self.began_at = self.failed_at = None  # type: typing.Optional[tuple]
        self.ready_at = None  # when it could start but for slots and pools
        self.cause = None     # (step, status) that made its requirement hold
        # the driver's
        self.job = self.started = self.ended = self.result = self.events = None

    def __repr__(self):
        return '<Task %s %s %s>' % (self.step.path, self.sequence, self.status)


HANDLED, TOLERATED = 'handled', 'tolerated'

# How a container ends; the worst counts. All in it was gone through; or something in it has
# failed or was dropped, which it bears, so that a recovery must go through it; or a stop from
# further out kept something in it from starting, so that it stays active; or it fails.
_THROUGH, _LEFT, _CUT, _FAILED = range(4)


class ContainerTask(Task):
    """A container at one sequence: ``live`` are its iterations in flight (an ordered set)."""

    __slots__ = ('live', 'opened', 'opening', 'exhausted', 'stop', 'verdict', 'failures', 'floor',
                 'gathered')

    def __init__(self, step, scope, recovery):
        Task.__init__(self, step, scope, recovery)
        self.live = {}
        self.opened = 0
        self.opening = self.exhausted = False
        self.stop = None      # see `Scope`
        self.verdict = _THROUGH
        self.failures = 0     # iterations that failed and were borne
        self.floor = 0        # outcomes of earlier recoveries than this do not count in it
        self.gathered = None  # the driver's

    @property
    def left(self):
        """Whether a recovery must go through it, though it may have succeeded."""
        return self.verdict > _THROUGH

    def worsen(self, verdict):
        self.verdict = max(self.verdict, verdict)


class Scope:
    """One iteration of a container.

    ``stop`` of a container and of an iteration is the origin of the stop that reached it first,
    or None: the container or, where the failure is borne, the iteration that a failure has
    stopped, with all that is inside it but reactions.
    """

    __slots__ = ('task', 'step', 'parent', 'sequence', 'place', 'items', 'item', 'blob', 'counts',
                 'raised', 'inner', 'busy', 'waiting', 'stop', 'ended', 'earlier', 'floor',
                 'failed', 'failures', 'triggered', 'subscribers', 'results')

    def __init__(self, task, sequence, place, items, earlier, item, blob, floor):
        step = task.step
        self.task = task
        self.step = step
        self.parent = task.scope
        self.sequence = sequence
        self.place = place    # the same as numbers; () where sequences are names
        self.items = items
        self.item = item
        self.blob = blob
        self.counts = list(step.missing)
        self.raised = bytearray(len(step.children))
        self.inner = {}       # slot -> live ContainerTask
        self.busy = 0
        self.waiting = {}     # what a stop drops: {task that is ready or delayed: is it delayed}
        self.stop = task.stop
        self.ended = False
        self.earlier = earlier
        self.failed = False   # its container bears its failure, and has counted it
        self.failures = _NOTHING    # slot -> the task that failed
        self.triggered = ()   # names of the events that were raised from outside (dynamic plans)
        self.floor = floor    # outcomes of earlier recoveries than this do not count in it
        # Iterations further in that wait for a step: {slot: {scope: [(status, its gate)]}}.
        self.subscribers = _NOTHING
        self.results = None   # the driver's: {leaf: its result}


def has_begun(scope, step):
    """Whether the requirement of a step has come to hold in a scope, and its task was made."""
    return bool(scope.raised[step.slot] & _STARTED)


def is_dropped(task):
    """Whether a stop has dropped a task that is ready or delayed, or keeps it from going on."""
    return task.scope.stop is not None and not (task.reacts_to or task.resumes)


def _tie(task):
    """What comes first of two tasks that are otherwise level."""
    scope = task.scope
    return task.step.rank, scope.place if scope is not None else ()


def _place(scope):
    """What comes first of two iterations that end together."""
    return scope.step.rank, scope.place, scope.sequence


def _up(scope, levels):
    for _ in range(levels):
        scope = scope.parent
    return scope


def _within(scope):
    """Yield a scope and the live ones inside it, each before those inside it."""
    yield scope
    for task in scope.inner.values():
        for one in task.live:
            for inner in _within(one):
                yield inner


def _holds(raised, step, status):
    """Whether an atom holds: see `Requirements.hold`."""
    return bool(raised & _BITS[status])


def _holds_anyway(raised, step, status):
    """Whether an atom would hold if no failure counted: see `Requirements.hold`."""
    return status != FAILURE and bool(
        raised & (_SUCCESS if status == COMPLETE else _BITS[status]))


class Requirements:
    """What the requirements of steps say of what was raised in a scope and around it."""

    def __init__(self, plan):
        self.compiled = plan.compiled

    def find(self, scope, step):
        """Return (scope, compiled step): where a step stands that is required in a scope."""
        found = self.compiled[step]
        while scope.step is not found.parent:
            scope = scope.parent
        return scope, found

    def failures(self, scope, step):
        """Return the failed tasks that the requirement of a step mentions, by their failure or
        completion."""
        found = collections.OrderedDict()
        for atom in mentioned(step.step.require):
            if atom.status == FAILURE or atom.status == COMPLETE:
                where, child = self.find(scope, atom.step)
                task = where.failures.get(child.slot)
                if task is not None:
                    found[task] = None
        return tuple(found)

    def reasons(self, scope, step):
        """Return the failed tasks that a step reacts to: `failures`, if its requirement would
        not hold without them, else nothing (semantics 3.4)."""
        around = scope
        while around is not None and not around.failures:
            around = around.parent
        if around is None:
            return ()
        failed = self.failures(scope, step)
        return () if failed and self.hold(step, scope, _holds_anyway) else failed

    def hold(self, step, scope, holds):
        """Return whether the requirement of a step holds in a scope.

        Args:
            holds: of (raised bits of a step, compiled step, status): whether that atom holds.
        """
        seen = {}    # {event: whether it holds}, of those that have been looked at

        def evaluate(expression):
            if isinstance(expression, Atom):
                where, child = self.find(scope, expression.step)
                return holds(where.raised[child.slot], child, expression.status) and (
                    child.kind != 'timer' or evaluate(child.step.require))
            if isinstance(expression, Event):
                if expression not in seen:
                    seen[expression] = False    # events may raise one another in a circle
                    seen[expression] = expression.name in scope.triggered or any(
                        evaluate(one) for one in expression.sources)
                return seen[expression]
            of_them = all if isinstance(expression, All) else any
            return of_them(evaluate(one) for one in expression.operands)
        return evaluate(step.step.require)

    def unmet(self, scope):
        """Return the steps of an iteration that were not run, without those that wait for a
        failure that did not happen (semantics 3.5)."""
        unmet = [step for step in scope.step.children if not has_begun(scope, step)]

        def may_hold(step, quiet):
            return self.hold(step, scope, lambda raised, child, status: (
                bool(raised & _BITS[status]) or status != FAILURE and child not in quiet))

        quiet = quiet_steps(unmet, may_hold)
        return [step for step in sorted(unmet, key=operator.attrgetter('rank'))
                if step not in quiet]

    def awaited(self, scope, all_steps=False):
        """Yield the outer scopes in which something is that steps of this one wait for.

        Where it is stopped only those count that may be reactions, unless ``all_steps``: by a
        failure that they wait for, or by one that is there already.
        """
        for step in scope.step.awaits:
            if has_begun(scope, step):
                continue
            wanted = _ANY
            if scope.stop and not all_steps:
                if self.hold(step, scope, _holds_anyway):
                    continue    # It needs no failure, so it cannot be a reaction any more.
                if not self.failures(scope, step):
                    wanted = _FAILURE
            for levels, target, bits in step.outer:
                outer = _up(scope, levels)
                if bits & wanted and not outer.raised[target.slot] & (bits | _COMPLETE):
                    yield outer

    def alive(self, scope, known):
        """Whether a status can still be raised in a scope: something goes on there, or something
        in it waits for something further out that can still be raised.

        ``known``: answers so far. Without them, each of many iterations that wait for the same
        step would look at all the others.
        """
        if scope not in known:
            known[scope] = bool(scope.busy) or any(
                outer.step.depth < scope.step.depth and self.alive(outer, known)
                for one in _within(scope) for outer in self.awaited(one))
        return known[scope]


class _Lane:
    """Tasks that are ready and need the same, in ready order.

    ``asks``: some of it is outside the run; ``refused``: there was not enough for the first task.
    """

    __slots__ = ('uses', 'needs', 'ahead', 'asks', 'refused', 'tasks')

    def __init__(self, outside, uses, needs, ahead):
        self.uses = uses
        self.needs = needs
        self.ahead = ahead
        self.asks = any(number in outside for number, _ in needs)
        self.refused = False
        self.tasks = collections.deque()  # type: typing.Deque[Task]


def _first_order(lane):
    return lane.tasks[0].order


class Admission:
    """Which of the ready tasks may start (semantics 4.1 to 4.3).

    Each limit is a counter: the slots of the run, 1 for the tasks that run in the supervisor, what
    a construct that queues takes, the cap of a step, each resource pool. Tasks that need the same
    of the same counters wait in one lane, in ready order. The first task of a lane starts when
    each of its counters has room. Caps and pools are given out strictly in ready order: a task
    waits, too, while one that became ready earlier waits for the same pool. A slot is not kept for
    a task that waits for a pool.

    ``limits`` and ``out`` are, of each counter of the plan, how much there is, and how much of it
    is out. ``ahead`` is how many tasks may be queued ahead of a slot. ``refused``: some task waits
    only for a pool outside the run. ``held`` are the ready tasks
    that match one of ``patterns`` (an ordered set).
    """

    __slots__ = ('pools', 'limits', 'out', 'holders', 'ahead', 'lanes', 'waiting', 'refused',
                 'patterns', 'held', 'known')

    def __init__(self, plan, max_concurrent):
        self.pools = plan.pools
        self.limits = [limit for _, limit in plan.pools]
        if max_concurrent > 0:
            self.limits[_SLOTS] = max_concurrent
        self.out = [0] * len(plan.pools)
        self.holders = [
            collections.OrderedDict() for _ in plan.pools]  # type: typing.List[typing.Dict]
        self.ahead = 0
        self.lanes = [_Lane(plan.outside, *needs) for needs in plan.lanes]
        self.waiting = []  # type: typing.List[_Lane]
        self.refused = False
        self.patterns = set()  # type: typing.Set[str]
        self.held = collections.OrderedDict()  # type: typing.Dict[Task, None]
        self.known = {}  # type: typing.Dict[PlanStep, bool]

    def limit_queue(self, slots, ahead):
        """Limit the tasks that the only construct that queues has at one time.

        Args:
            slots: how many of them run.
            ahead: how many more are queued, as long as that keeps no other task from a slot.
        """
        self.ahead = ahead
        self.limits[_QUEUED] = slots + ahead

    # Who waits.

    def add(self, task):
        """Let a ready task wait in its lane, or until it is released."""
        if self.patterns and self.holds(task.step):
            self.held[task] = None
            return
        lane = self.lanes[task.step.lane]
        if not lane.tasks:
            lane.refused = False
            self.waiting.append(lane)
        lane.tasks.append(task)

    def next(self):
        """Return the lane of the first task in ready order that can start; or None."""
        if len(self.waiting) > 1 or self.waiting[0].tasks[0].scope.stop is not None:
            self._put_in_order()
        self.refused = False
        asked = None  # type: typing.Optional[typing.Set[int]]
        for lane in self.waiting:
            if self._has_room(lane, asked):
                if not lane.refused:
                    return lane
                self.refused = True
            if lane.needs:
                asked = asked or set()
                asked.update(number for number, _ in lane.needs)
        return None

    def take(self, lane):
        """Take out the first task of a lane, with what it needs."""
        task = lane.tasks.popleft()
        if not lane.tasks:
            self.waiting.remove(lane)
        for number in lane.uses:
            self.out[number] += 1
        if lane.needs:
            self.take_units(task)
        return task

    def _put_in_order(self):
        """Put the lanes in the ready order of their first tasks; pass over what is dropped."""
        for lane in self.waiting:
            while lane.tasks and is_dropped(lane.tasks[0]):
                lane.tasks.popleft()
                lane.refused = False
        self.waiting = sorted([lane for lane in self.waiting if lane.tasks], key=_first_order)

    def ask_again(self):
        for lane in self.waiting:
            lane.refused = False

    def give_up(self):
        """Take out the first task that waits, as nobody gives back what it waits for."""
        task = self.waiting[0].tasks.popleft()
        self.waiting = [lane for lane in self.waiting if lane.tasks]
        lacks = []
        for number, amount in task.step.needs:
            name, limit = self.pools[number]
            if name is not None and self.out[number] + amount > limit:
                held = ', '.join('%s at %s holds %d' % (path, sequence, n)
                                 for (path, sequence), n in self.holders[number].items())
                lacks.append('%d of pool %r of %d (%s)' % (amount, name, limit, held))
        task.error = 'it waits for resources that nobody gives back: ' + '; '.join(lacks)
        return task

    def _has_room(self, lane, asked):
        """Whether a task of a lane may start now; ``asked``: the pools that others wait for."""
        out, limits = self.out, self.limits
        for number in lane.uses:
            if out[number] >= limits[number] and not (
                    number == _SLOTS and lane.ahead and self._only_queued()):
                return False
        for number, amount in lane.needs:
            if asked and number in asked or out[number] + amount > limits[number]:
                return False
        return True

    def _only_queued(self):
        """Whether a task may be queued ahead of a slot: that keeps no other one from starting in
        its turn, as all that runs and all that is ready is of the construct that queues."""
        return (self.limits[_QUEUED] < _NO_LIMIT and self.out[_SLOTS] == self.out[_QUEUED]
                and all(lane.ahead for lane in self.waiting))

    def upcoming(self, limit, queues=False):
        """Return up to so many tasks that need only a slot, in the order of their start: of those
        that run in the supervisor, or those of constructs that queue."""
        if queues and not self._only_queued():
            return []
        uses = _QUEUED if queues else _INLINE, _SLOTS
        tasks = (task for lane in self.waiting if lane.uses == uses and not lane.needs
                 for task in lane.tasks if not is_dropped(task))
        return list(itertools.islice(tasks, limit))

    # What is held.

    def hold(self, pattern):
        self.patterns.add(pattern)
        self.known.clear()
        waiting = [task for lane in self.waiting for task in lane.tasks if not is_dropped(task)]
        for lane in self.waiting:
            lane.tasks.clear()
        self.waiting = []
        for task in sorted(waiting, key=operator.attrgetter('order')):
            self.add(task)

    def unhold(self, pattern):
        """Take back a pattern; return the tasks that no other one holds."""
        self.patterns.discard(pattern)
        self.known.clear()
        released = [task for task in self.held if is_dropped(task) or not self.holds(task.step)]
        for task in released:
            del self.held[task]
        return [task for task in released if not is_dropped(task)]

    def holds(self, step):
        """Whether a pattern holds a step or a container around it."""
        if step not in self.known:
            import fnmatch    # here, as few runs need it
            self.known[step] = any(fnmatch.fnmatchcase(one.path, pattern)
                                   for one in [step] + step.around()
                                   for pattern in self.patterns)
        return self.known[step]

    # Slots, and units of pools. An adopted task is a process, whatever its step would be now.

    def adopt(self, task):
        self.out[_SLOTS] += 1
        self.take_units(task)

    def leave_slot(self, task):
        """A task runs no more; it keeps its units."""
        for number in (_SLOTS,) if task.adopted else task.step.uses:
            self.out[number] -= 1

    def take_units(self, task):
        for number, amount in task.step.needs:
            self.out[number] += amount
            holders = self.holders[number]
            key = (task.step.path, task.sequence)
            holders[key] = holders.get(key, 0) + amount

    def give_back(self, task, amounts):
        """Give back amounts of pools; return an error if that is more than is out."""
        error = None
        for number, amount in amounts:
            if amount > self.out[number]:
                error = 'it releases %d of pool %r, of which only %d is out' % (
                    amount, self.pools[number][0], self.out[number])
                amount = self.out[number]
            self.out[number] -= amount
            # It is taken off what the task holds, then off what the oldest holders hold.
            holders = self.holders[number]
            for one in [(task.step.path, task.sequence)] + list(holders) if amount else ():
                taken = min(amount, holders.get(one, 0))
                amount -= taken
                if taken:
                    holders[one] -= taken
                    if not holders[one]:
                        del holders[one]
        return error


class Engine:
    """The state machine. See the text above.

    Args:
        plan: a `Plan`.
        max_concurrent: how many tasks may run at one time; below 1: no limit.
        recovery: the number of this recovery.
        mode: ``'restart'``, ``'recover'`` or ``'continue'``.
        tells: whether to return the actions that only a dry run asks for.
    """

    # More attributes than Python finds fast in a dict.
    __slots__ = (
        'plan', 'recovery', 'mode', 'tells', 'admission', 'ready', 'delayed', 'halted', 'over',
        'root', 'roots', 'reacted', 'unmet', 'dropped', '_requirements', '_order', '_agenda',
        '_starts', '_fresh', '_idle', '_quiet', '_over', '_opening', '_delays', '_actions', '_now',
        '_reran', '_reactions', '_replays')

    #: A loop without limit opens no further iteration while so many tasks wait for a slot.
    backlog = 1000

    def __init__(self, plan, max_concurrent=0, recovery=0, mode='restart', tells=False):
        self.plan = plan
        self.recovery = recovery
        self.mode = mode
        self.tells = tells
        self.admission = Admission(plan, max_concurrent)
        self.ready = self.delayed = 0    # how many tasks are so, without those that are dropped
        self.halted = self.over = False
        self.root = ContainerTask(plan.root, None, recovery)
        self.roots = {}                 # sequence -> scope (dynamic plans)
        self._requirements = Requirements(plan)
        self._order = 0
        # Gates to count down: (scope, gates).
        self._agenda = collections.deque()  # type: typing.Deque[tuple]
        # Steps to start: (scope, step, the failed tasks that it reacts to).
        self._starts = []  # type: typing.List[tuple]
        self._fresh = []                # tasks that became ready, not yet in order
        # Scopes that may have ended.
        self._idle = []  # type: typing.List[Scope]
        # Idle scopes in which something waits.
        self._quiet = []  # type: typing.List[Scope]
        self._over = []                 # containers that are over
        self._opening = 0               # open and ask actions not yet answered
        self._delays = []               # heap of (due, index, order, task)
        self._actions = []
        self._now = 0.0
        self._reran = False             # something ran again that had succeeded before
        self.reacted = False            # some reaction has begun
        self._reactions = []            # the first 100 of them that handle nothing
        # Steps that were not run (semantics 3.5) -> at how many sequences; how many tasks a stop
        # has dropped.
        self.unmet = collections.OrderedDict()  # type: typing.Dict[PlanStep, int]
        self.dropped = 0
        # What had begun before a run was continued is begun again before anything else happens.
        self._replays = mode == 'continue'

    def next_due(self):
        """Return when the earliest delay is over (seconds), or None."""
        delays = self._delays
        while delays and is_dropped(delays[0][3]):
            heapq.heappop(delays)
        return delays[0][0] if delays else None

    @property
    def running(self):
        """How many tasks are submitted."""
        return self.admission.out[_SLOTS]

    @property
    def ok(self):
        """Whether every failure so far has been made good (semantics 3.3)."""
        return self.root.verdict != _FAILED and all(
            task.made_good for top in self.root.live for scope in _within(top)
            for task in scope.failures.values())

    def unhandled(self):
        """Return (reaction, failed task) pairs, of failures that still count."""
        return [(task, failed) for task in self._reactions for failed in task.reacts_to
                if not failed.made_good]

    # Inputs. ``now`` is the time in seconds; each input returns the list of actions that follow.

    def begin(self, earlier, now):
        """Begin the run. ``earlier``: outcomes of the top-level steps, or None in a new run."""
        self._now = now
        self.root.status = ACTIVE
        if not self.plan.dynamic:
            self.root.exhausted = True
            self._open_scope(self.root, 1, (), earlier)
        return self._proceed()

    def trigger(self, event, sequence, earlier, now):
        """Raise an event from outside (dynamic plans). ``earlier`` as in `begin`, where the
        sequence is new."""
        self._now = now
        scope = self.roots.get(sequence)
        if scope is None:
            scope = Scope(self.root, sequence, (), (), earlier, None, None, 0)
            self.roots[sequence] = scope
            self.root.live[scope] = None
        self.over = False
        scope.triggered += (event,)
        self._agenda.append((scope, (self.plan.events[event],)))
        return self._proceed()

    def tick(self, now):
        """Start what has been delayed until now; for use while `next_due` is past."""
        self._now = now
        self._replays = False
        due = self.next_due()
        while due is not None and self.next_due() == due <= now:
            task = heapq.heappop(self._delays)[3]
            self.delayed -= 1
            self._become_ready(task)
        return self._proceed()

    def done(self, task, status, error, again, now):
        """End a submitted task with ``success`` or ``failure``.

        ``again``: seconds until the next attempt; None if a failure is not to be tried again.
        """
        self._now = now
        self._replays = False
        self.admission.leave_slot(task)
        task.error = error
        if task.adopted and task.recovery < self._floor(task.scope, task.reacts_to):
            self._try_again(task, status, 0)    # what it reacts to has failed anew since
        elif status == FAILURE and self.retries(task, again):
            self._try_again(task, status, again)
        else:
            self._end(task, status)
            self._leave(task.scope)
        return self._proceed()

    def retries(self, task, again):
        """Whether a task that fails now, ``again`` as in `done`, would be tried again."""
        made = task.attempt if task.recovery == self.recovery else 0
        return (again is not None and 0 < task.step.retries >= made
                and not is_dropped(task))

    def _try_again(self, task, status, again):
        """It waits for its next attempt, without a slot and without resources."""
        self._actions.append(('attempt', (task, task.recovery, task.attempt, status, task.error)))
        self._next_attempt(task)
        task.due = self._now + again
        task.retrying = True
        if again > 0:
            self._delay(task, task.due)
        else:
            self._become_ready(task)

    def _next_attempt(self, task):
        self._give_back(task, task.step.needs)
        task.attempt = task.attempt + 1 if task.recovery == self.recovery else 1
        task.recovery = self.recovery
        task.adopted = False

    def lost(self, task, begun, now):
        """Make a submitted task ready again, because its outcome is lost.

        The next attempt is made, or, if the task had not ``begun``, the same one.
        """
        self._now = now
        attempt = task.attempt
        self._replays = False
        self.admission.leave_slot(task)
        self._next_attempt(task)
        if not begun:
            task.attempt, task.status = attempt, READY
            self._actions.append(('record', task))
        if is_dropped(task):
            self._lose(task.scope)
            self._leave(task.scope)
        else:
            self._become_ready(task)
        return self._proceed()

    def opened(self, task, item, blob, earlier, floor, now):
        """Answer ``open`` with the next item of the container's loop.

        Args:
            blob: the item as it is stored.
            earlier: maps paths to `Earlier` at the sequence of the new iteration; None: nothing
                earlier counts there.
            floor: outcomes of earlier recoveries than this one do not count there.
        """
        self._now = now
        if task.stop is None or task.resumes and earlier:
            task.opened += 1
            items = task.scope.items
            if task.step.loops:
                items += (item,)
            else:
                task.exhausted = True
            self._open_scope(task, task.opened, items, earlier, item, blob, floor)
        else:    # no further iteration had begun
            task.exhausted = True
            task.worsen(_CUT)
        return self._answered(task)

    def loop_over(self, task, error, now):
        """Answer ``open``: the container's loop has no more items, or it raised an error."""
        self._now = now
        task.exhausted = True
        if error is not None:
            task.verdict, task.error = _FAILED, error
        return self._answered(task)

    def _answered(self, task):
        self._opening -= 1
        task.opening = False
        self._advance(task)
        self._leave(task.scope)
        return self._proceed()

    def hold(self, pattern, now):
        """Start no task whose path, or that of a container around it, matches a pattern.

        A task that is ready stays so, and keeps its iteration open, until it is released by
        `unhold` or dropped by a stop. A task that runs goes on.

        Args:
            pattern: of a path, as in `fnmatch`; upper and lower case differ.
        """
        self._now = now
        self.admission.hold(pattern)
        return self._proceed()

    def unhold(self, pattern, now):
        """Take back `hold` of the same pattern: what no other pattern holds becomes ready anew."""
        self._now = now
        for task in self.admission.unhold(pattern):
            self.ready -= 1
            task.order = 0
            self._become_ready(task)
        return self._proceed()

    def held(self):
        """Return the tasks that are ready and held, in the order in which they became so."""
        return [task for task in self.admission.held if not is_dropped(task)]

    def halt(self, now):
        """Start nothing new from now on; what runs may still end."""
        self._now = now
        self.halted = True
        return self._proceed()

    def granted(self, task, granted, now):
        """Answer ``ask``: whether the task got what it needs of the pools outside the run."""
        self._now = now
        self._opening -= 1
        lane = self.admission.lanes[task.step.lane]
        if granted:
            self._activate(self.admission.take(lane))
        lane.refused = not granted
        return self._proceed()

    def ask_again(self, now):
        """A pool outside the run may have units for tasks that it had refused."""
        self._now = now
        self.admission.ask_again()
        return self._proceed()

    # What follows from an input.

    def _proceed(self):
        """Do what follows from an input until nothing more does; return the actions."""
        agenda, admission = self._agenda, self.admission
        while True:
            if agenda:
                self._fire(*agenda.popleft())
            elif self._starts:
                self._start_all()
            elif self._opening:
                break
            elif self._over:
                self._end_containers()
            elif self._idle:
                self._settle()
            elif self._quiet:
                self._settle_quiet()
            elif self._fresh:
                self._put_in_order()
            elif self.halted or not admission.waiting:
                break
            else:
                lane = admission.next()
                if lane is None:
                    if admission.out[_SLOTS] or not self._fail_deadlocked():
                        break
                elif lane.asks:
                    self._opening += 1
                    self._actions.append(('ask', lane.tasks[0]))
                else:
                    self._activate(admission.take(lane))
        if self.plan.dynamic and not (
                self.running or self.ready or self.delayed or self.over or self._opening):
            self._finish()
        actions, self._actions = self._actions, []
        return actions

    def _finish(self):
        for scope in self.roots.values():
            self._count_failures(scope)
        self.over = True
        self._actions.append(('finish', self.ok))

    def _fire(self, scope, gates, cause=None):
        """Count down gates; start the steps and follow the gates that open.

        ``cause`` is the (step, status) that counts them down, if there is such.
        """
        counts, step = scope.counts, scope.step
        for gate in gates:
            counts[gate] -= 1
            if counts[gate] == 0:
                if step.starts[gate] is not None:
                    self._starts.append((scope, step.starts[gate], (), cause))
                if step.leads[gate]:
                    self._agenda.append((scope, step.leads[gate], cause))

    def _raise(self, scope, step, status):
        """Make a status of a step at a scope's sequence known, once, to all who mention it.

        Not called for what is of use to nobody (``step.told``).
        """
        if status != COMPLETE:    # which comes after success or failure
            if scope.raised[step.slot] & _BITS[status]:
                return
            scope.raised[step.slot] |= _BITS[status]
        gates = step.after if status == SUCCESS else step.on.get(status)
        if gates:
            self._agenda.append((scope, gates, (step, status)))
        if step.awaited:
            for inner, wanted in scope.subscribers.get(step.slot, _NOTHING).items():
                gates = [gate for one, gate in wanted if one == status]
                if gates:
                    self._agenda.append((inner, gates, (step, status)))
                    if not inner.busy:
                        self._idle.append(inner)    # that may be all it waited for

    # A task, from its requirement to its end.

    def _start_all(self):
        """Start the steps whose requirements have come to hold.

        First find out which of them are reactions: a step that succeeds at once must not make
        another one, whose requirement came to hold at the same moment, a step that is none.
        """
        starts, self._starts = self._starts, []
        for at, (scope, step, _, cause) in enumerate(starts):
            if step.reacts:
                starts[at] = scope, step, self._requirements.reasons(scope, step), cause
        for start in starts:
            self._start(*start)

    def _start(self, scope, step, reacts_to=(), cause=None):
        """The requirement of a step holds: make its task.

        Args:
            reacts_to: the failed tasks without which it would not hold: see `_reasons`.
            cause: the (step, status) that made it hold.
        """
        if scope.raised[step.slot] & _STARTED:
            return
        earlier = scope.earlier.get(step.path) if scope.earlier else None
        if earlier is not None and not earlier.running and (
                earlier.recovery < self._floor(scope, reacts_to)):
            earlier = None    # what it did about an earlier failure (semantics 3.3)
        resumes = None
        if self.mode == 'continue' and earlier is not None and earlier.status != READY:
            resumes = earlier.status
        if scope.stop and not (reacts_to or resumes):
            self._lose(scope)
            return
        scope.raised[step.slot] |= _STARTED
        if earlier is not None and self._is_passed(step, earlier):
            if self._reran:
                self._note_kept(scope, step)
            return
        kind = Task if step.children is None else ContainerTask
        task = kind(step, scope, self.recovery)  # type: typing.Any
        task.cause = cause
        task.resumes = resumes
        task.reacts_to = reacts_to
        if step.children is not None:
            task.floor = self._floor(scope, reacts_to)
        if scope.busy:
            scope.busy += 1
        else:
            self._enter(scope)
        if earlier is not None and earlier.kind == step.kind:
            if self._replay(task, earlier):
                self._leave(scope)
                return
            if task.attempt > 1 and earlier.status == READY or earlier.again:
                task.error = earlier.error    # continued: it waits for its next attempt
                task.retrying = True
            if earlier.due is not None and earlier.status != SUCCESS:
                # No later than if the wait began now: the wall clock may have been set back.
                task.due = (earlier.due if earlier.wait is None
                            else min(earlier.due, self._now + earlier.wait))
        if task.due is None and step.delay:
            task.due = self._now + step.delay
        if task.due is None or task.due <= self._now:
            self._become_ready(task)
        else:
            self._delay(task, task.due)

    def _floor(self, scope, failed):
        """Return the recovery since which outcomes count for what reacts to failed tasks.

        A process of an earlier supervisor may have failed only now.
        """
        return scope.floor if not failed else max([scope.floor] + [
            self.recovery if self.mode == 'recover' and task.failed_at[0] else task.recovery
            for task in failed])

    def _is_passed(self, step, earlier):
        """Whether nothing follows from a step's being skipped: most of a recovery is that."""
        return (earlier.status == SUCCESS and earlier.kind == 'leaf' == step.kind
                and not (step.told or step.needs or step.gives or step.wanted or earlier.events
                         or self.tells)
                and (self.mode == 'continue' or step.recovery[SUCCESS] == 'skip'))

    def _delay(self, task, due):
        task.due = due
        task.status = READY
        self.delayed += 1
        if not (task.reacts_to or task.resumes):
            task.scope.waiting[task] = True
        heapq.heappush(self._delays, (due, task.step.rank, self._next_order(), task))
        self._actions.append(('record', task))

    def _become_ready(self, task):
        """What needs no slot and no resource starts at once; the rest is put in order later."""
        step = task.step
        task.ready_at = self._now
        if step.uses or step.needs or self.admission.patterns and self.admission.holds(step):
            self.ready += 1
            if not (task.reacts_to or task.resumes):
                task.scope.waiting[task] = False
            self._fresh.append(task)
            return
        task.status = READY
        if step.told & _READY:
            self._raise(task.scope, step, READY)
        self._activate(task)

    def _put_in_order(self):
        """Tasks that became ready together start in the order in which steps were added."""
        fresh, self._fresh = self._fresh, []
        if len(fresh) > 1:
            fresh.sort(key=_tie)
        for task in fresh:
            scope, step = task.scope, task.step
            if is_dropped(task):
                continue
            self._order += 1
            task.order = self._order
            task.status = READY
            self._actions.append(('record', task))
            if step.told & _READY:
                self._raise(scope, step, READY)
            self.admission.add(task)

    def _activate(self, task):
        """Start a task that has what it needs."""
        scope, step = task.scope, task.step
        if self.tells:
            self._actions.append(('starts', task))
        if task.order:
            self.ready -= 1
        scope.waiting.pop(task, None)
        task.status = ACTIVE
        task.error = None
        if task.reacts_to:    # more may have failed while it waited
            task.reacts_to = self._requirements.failures(scope, step)
            self.reacted = True
            if not step.handles and len(self._reactions) < 100:
                self._reactions.append(task)
        if step.handles and not task.adopted:
            task.began_at = 1, self._next_order()
        if self.mode != 'restart' and step.calls and step.children is None and not task.adopted:
            self._note_again(scope, step)
        task.retrying = False
        if step.told & _ACTIVE:
            self._raise(scope, step, ACTIVE)
        if step.children is not None:
            self._actions.append(('record', task))
            task.stop = None if task.reacts_to else scope.stop
            scope.inner[step.slot] = task
            self._advance(task)
            self._leave(scope)
        elif step.calls:
            task.resumes = None
            self._actions.append(('submit', task))
        else:
            self._end(task, SUCCESS)
            self._leave(scope)

    def _end(self, task, status):
        """A task is over: give back, record, raise, and see to a failure."""
        if task.step.gives:
            error = self._give_back(task, task.step.gives)
            if error and status == SUCCESS:
                status, task.error = FAILURE, error
        task.status = status
        self._actions.append(('record', task))
        if task.step.told & _COMPLETE or status == FAILURE:
            self._conclude(task, status)
        if task.step.handles and status == SUCCESS:
            self._make_good(task)

    def _give_back(self, task, amounts):
        """Give back amounts of pools; return an error if that is more than is out."""
        for number, amount in amounts if self.plan.outside else ():
            if number in self.plan.outside:
                self._actions.append(('give', (task, number, amount)))
                self.admission.ask_again()
        return self.admission.give_back(task, amounts)

    def _conclude(self, task, status):
        """Raise the final status of a task, and see to a failure."""
        step, scope = task.step, task.scope
        if status == FAILURE:
            scope.failures = scope.failures or {}
            scope.failures[step.slot] = task
            scope.task.worsen(_LEFT)
            task.failed_at = task.failed_at or (1, self._next_order())
        if step.told & _COMPLETE:
            self._raise(scope, step, status)
            if COMPLETE in step.on or step.awaited:
                self._raise(scope, step, COMPLETE)
        if status == FAILURE and not step.expected:
            self._fail(task)
        if step.awaited:    # those who waited for it may have nothing to wait for any more
            self._idle.extend(inner for inner in scope.subscribers.get(step.slot, ())
                              if not inner.busy)

    def _next_order(self):
        self._order += 1
        return self._order

    # Failure (semantics 3).

    def _make_good(self, handler):
        """A handler has succeeded, or its failure was made good: so are the failures that were
        recorded before its last attempt began (semantics 3.3)."""
        for step in handler.step.handles:
            task = handler.scope.failures.get(step.slot)
            if task is None or task.made_good or handler.began_at is None or (
                    self.plan.dynamic and task not in handler.reacts_to):
                continue    # an Eventor's handler makes good only what has started it
            if task.failed_at <= handler.began_at:
                task.made_good = HANDLED
                self._actions.append(('handled', (task, handler)))
                if task.step.handles:
                    self._make_good(task)

    def _count_failures(self, scope):
        """Expected failures that were not made good when their iteration ends count there."""
        for task in list(scope.failures.values()):
            if task.step.expected and not task.made_good:
                self._fail(task)
                if task.made_good:
                    self._actions.append(('handled', (task, None)))

    def _fail(self, task):
        """A failure fails the container, and stops it if it is to; unless the container bears
        that this iteration of it fails."""
        scope, container = task.scope, task.scope.task
        if self._bears(scope):
            container.failures += not scope.failed
            scope.failed, task.made_good = True, TOLERATED
            if task.step.handles:
                self._make_good(task)
        elif container.verdict != _FAILED:
            container.verdict = _FAILED
            if container.error is None:
                container.error = '%s failed at %s: %s%s' % (
                    task.step.path, task.sequence, task.error or 'no reason was given',
                    '; with it more iterations have failed than the %d that are tolerated'
                    % container.failures if container.step.bears is not None else '')
        while task.step.stop:
            if self._bears(task.scope):
                self._stop_iteration(task.scope, task.scope)
                break
            task = task.scope.task
            self._stop(task, task)
            if task.scope is None or task.step.expected:
                break

    def _bears(self, scope):
        """Whether a container bears that this iteration of it has failed, or is going to."""
        container = scope.task
        bears = container.step.bears
        return bears is not None and container.verdict != _FAILED and (
            scope.failed or container.failures < bears)

    def _stop(self, container, origin):
        """Nothing new starts in a container; what is ready or delayed there is dropped."""
        if container.stop is None:
            container.stop = origin
            for scope in list(container.live):
                self._stop_iteration(scope, origin)

    def _stop_iteration(self, scope, origin):
        """Nothing new starts in an iteration; what is ready or delayed there is dropped.

        What waits for its next attempt counts as failed with the last one (semantics 3.4).
        """
        scope.stop = scope.stop or origin
        dropped, scope.waiting = scope.waiting, {}
        delayed = sum(dropped.values())
        self.delayed -= delayed
        self.ready -= len(dropped) - delayed
        self.dropped += len(dropped)
        if dropped:
            self._lose(scope)
        for inner in list(scope.inner.values()):
            if not inner.reacts_to:
                self._stop(inner, origin)
        for _ in dropped:
            self._leave(scope)
        if not scope.busy:
            self._idle.append(scope)
        for task in dropped:
            if task.retrying:
                self._conclude(task, FAILURE)
                self._actions.append(('dropped', task))

    def _lose(self, scope):
        """A stop keeps something in an iteration from starting, so its container is not through,
        unless the container bears that."""
        scope.task.worsen(_LEFT if scope.stop in (scope, None) else _CUT)

    # Containers and their iterations.

    def _advance(self, task):
        """Open a container's next iteration, or see that it is over, as far as it is time to."""
        step, exhausted = task.step, task.exhausted
        if task.opening or (self.halted and not exhausted):
            return
        if exhausted or task.stop is not None and not (task.resumes and self._replays):
            if not exhausted:
                task.worsen(_CUT)
            if not task.live:
                self._over.append(task)
        elif len(task.live) < step.limit or not task.live or (
                step.limit < 1 and self.ready < self.backlog):
            if not step.loops and task.scope.earlier is None:
                task.exhausted = True
                self._open_scope(task, 1, task.scope.items, None)
            else:
                task.opening = True
                self._opening += 1
                self._enter(task.scope)
                self._actions.append(('open', task))

    def _open_scope(self, task, number, items, earlier, item=None, blob=None, floor=0):
        sequence, place, outer = '%d' % number, (number,), task.scope
        if outer is not None:
            sequence, place = '%s.%s' % (outer.sequence, sequence), outer.place + place
        scope = Scope(task, sequence, place, items, earlier, item, blob, floor)
        task.live[scope] = None
        self._enter(scope)
        if task.step.imports:    # what failed further out may start a step at this moment, too
            self._starts += [(scope, step, (), None) for step in task.step.initial]
        else:
            for step in task.step.initial:
                self._start(scope, step)
        for levels, target, status, gate in task.step.imports:
            outer = _up(scope, levels)
            outer.subscribers = outer.subscribers or {}
            outer.subscribers.setdefault(target.slot, {}).setdefault(scope, []).append(
                (status, gate))
            if outer.raised[target.slot] & _BITS[status]:
                self._agenda.append((scope, (gate,)))
        self._leave(scope)

    def _end_containers(self):
        """End the containers that are over, in the order in which steps were added."""
        over, self._over = sorted(self._over, key=_tie), []
        for task in over:
            if task.scope is None:
                self._finish()
                continue
            self._enter(task.scope)
            del task.scope.inner[task.step.slot]
            if task.left:
                task.scope.task.worsen(_LEFT)
            self._actions.append(('closed', task))
            if task.step.share is not None:
                self._judge(task)
            if task.verdict != _CUT or task.resumes == SUCCESS:
                self._end(task, FAILURE if task.verdict == _FAILED else SUCCESS)
            else:    # it stays active
                self._lose(task.scope)
                self._give_back(task, task.step.gives)
            self._leave(task.scope)

    def _judge(self, task):
        """Fail a container of whose iterations a larger share has failed than it bears."""
        if task.verdict != _FAILED and task.failures * 100 > task.step.share * task.opened:
            task.verdict = _FAILED
            task.error = '%d of its %d iterations have failed, %g %% are tolerated' % (
                task.failures, task.opened, task.step.share)

    def _settle(self):
        """End together the idle iterations that have nothing to wait for."""
        idle, self._idle, ends = self._idle, [], []
        for scope in idle:
            if scope.ended or scope.busy or (self.plan.dynamic and scope.parent is None):
                continue
            if not (scope.inner or scope.step.awaits and any(self._requirements.awaited(scope))):
                ends.append(scope)
            elif not self.halted:    # else what is not over in it goes on in a later run
                self._quiet.append(scope)
        self._end_iterations(ends)

    def _settle_quiet(self):
        """End together the iterations that wait for what cannot be raised any more (3.6)."""
        quiet, self._quiet = self._quiet, []
        awaited, known = self._requirements.awaited, {}  # type: typing.Any, typing.Dict
        ends = []
        for scope in quiet:
            for one in _within(scope) if not (scope.ended or scope.busy) else ():
                if not any(task.live for task in one.inner.values()) and not any(
                        self._requirements.alive(outer, known) for outer in awaited(one)):
                    ends.append(one)
        self._end_iterations(ends)

    def _end_iterations(self, scopes):
        """End iterations; their containers go on, or are over, all of them together."""
        if len(scopes) > 1:
            scopes = sorted(set(scopes), key=_place)
        for scope in scopes:
            scope.ended = True
            if scope.stop and any(self._requirements.awaited(scope, all_steps=True)):
                self._lose(scope)    # what it waits for may still be raised
            for levels, target, _, _ in scope.step.imports:
                _up(scope, levels).subscribers[target.slot].pop(scope, None)
            del scope.task.live[scope]
        for scope in scopes:    # which stops none of those that end with it
            if scope.failures:
                self._count_failures(scope)
        for scope in scopes:
            if 0 in scope.raised:
                self._note_unmet(scope)
            if scope.step.gathers:
                self._actions.append(('gather', scope))
        for task in collections.OrderedDict.fromkeys(scope.task for scope in scopes):
            self._advance(task)

    def _note_unmet(self, scope):
        if self.tells:
            self._actions.append(('unmet', scope))
        for step in self._requirements.unmet(scope):
            if self._requirements.hold(step, scope, _holds):
                self.dropped += 1    # a stop has kept it from starting
            else:
                self.unmet[step] = self.unmet.get(step, 0) + 1

    def _enter(self, scope):
        """One more thing goes on in an iteration, and so in those around it."""
        while scope is not None:
            scope.busy += 1
            if scope.busy > 1:
                return
            scope = scope.parent

    def _leave(self, scope):
        """One thing less goes on in an iteration; note those in which nothing does any more."""
        while scope is not None:
            scope.busy -= 1
            if scope.busy:
                return
            self._idle.append(scope)
            scope = scope.parent

    def _fail_deadlocked(self):
        """When all that is left waits for resources that nobody will give back, fail the first."""
        admission = self.admission
        if self.delayed or not admission.waiting or admission.refused or self.held():
            return False
        task = admission.give_up()
        self.ready -= 1
        task.scope.waiting.pop(task, None)
        task.status = FAILURE
        self._actions.append(('record', task))
        self._conclude(task, FAILURE)
        self._leave(task.scope)
        return True

    # Recovery (semantics 7).

    def _replay(self, task, earlier):
        """Deal with a task that has an earlier outcome; return whether that was all."""
        step = task.step
        if earlier.running:
            self._adopt(task, earlier)
            return True
        if self.mode == 'continue':
            if earlier.status == FAILURE and not (
                    earlier.again and earlier.attempt <= step.retries):
                self._stay_failed(task, earlier)
                return True
            skips = earlier.status == SUCCESS
            task.attempt = earlier.attempt + (
                step.children is None and earlier.status in (ACTIVE, FAILURE))
        else:
            skips = step.recovery[earlier.status] == 'skip'
        left = earlier.handled and self.mode == 'recover'    # a container in which something is
        if skips and (step.children is None or earlier.status == SUCCESS
                      and not (earlier.changed or left or step.replayed)):
            self._skip(task, earlier)
            return True
        return False

    def _note_again(self, scope, step):
        """A function runs: note which earlier successes it replaces, its own or around it."""
        while scope is not None:
            earlier = scope.earlier.get(step.path) if scope.earlier else None
            if earlier is not None and earlier.status == SUCCESS:
                scope.raised[step.slot] |= _AGAIN
                self._reran = True
            step, scope = scope.step, scope.parent

    def _note_kept(self, scope, step):
        """A step keeps an earlier success: tell if one that it requires ran again (7.1)."""
        required = [self._requirements.find(scope, atom.step)
                    for atom in mentioned(step.step.require)]
        for placeholder in step.step.asks or ():
            if isinstance(placeholder, ResultOf):
                levels, target = step.fills[placeholder]
                where = _up(scope, levels)
                while target.parent is not where.step:
                    target = target.parent
                required.append((where, target))
        for where, target in required:
            if where.raised[target.slot] & _AGAIN:
                self._actions.append(('kept', (step, scope, target)))
                return

    def _skip(self, task, earlier):
        """A skipped task counts as success (semantics 7.2)."""
        if earlier.status == SUCCESS:
            if earlier.handled:
                task.scope.task.worsen(_LEFT)
            if self._reran:
                self._note_kept(task.scope, task.step)
        self._pass_over(task, earlier, SUCCESS)

    def _stay_failed(self, task, earlier):
        task.error = earlier.error
        task.recovery, task.attempt = earlier.recovery, earlier.attempt
        task.began_at, task.failed_at = (0, earlier.began), (0, earlier.ended)
        task.made_good = HANDLED if self._was_handled(task, earlier) else ''
        self._pass_over(task, earlier, FAILURE)

    def _pass_over(self, task, earlier, status):
        """A task does not run again: raise what it raised; it holds what it had kept."""
        step = task.step
        self.admission.take_units(task)
        self.admission.give_back(task, step.gives)
        for one in (READY, ACTIVE):
            if step.told & _BITS[one]:
                self._raise(task.scope, step, one)
        self._conclude(task, status)
        if self.tells or earlier.events or (
                status == SUCCESS and (step.wanted or step.gathers)):
            self._actions.append(('skip', (task, earlier)))

    def _was_handled(self, task, earlier):
        """Whether a failure that stays was made good before this supervisor began."""
        for step in task.scope.step.children if task.step.expected else ():
            handler = task.scope.earlier.get(step.path) if task.step in step.handles else None
            if (handler is not None and handler.recovery >= earlier.recovery
                    and (handler.status == SUCCESS or handler.handled)
                    and (earlier.handled or earlier.ended <= handler.began)):
                return True
        return False

    def _adopt(self, task, earlier):
        """A process of an earlier supervisor still runs it: it is running from the start."""
        task.recovery, task.attempt = earlier.recovery, earlier.attempt
        task.adopted = True
        task.began_at = 0, earlier.began
        self._enter(task.scope)
        if task.step.told & _READY:
            self._raise(task.scope, task.step, READY)
        self.admission.adopt(task)
        self._activate(task)

# 6 Stores ########################################################################

# Process identity -----------------------------------------------------------------


def _this_system():
    """Return (host, boot id, pid namespace): what a pid means something on. None: not known."""
    if not _system:
        try:
            namespace = os.readlink('/proc/self/ns/pid')
        except (OSError, AttributeError):
            namespace = None
        try:
            with open('/proc/sys/kernel/random/boot_id') as file:
                boot = file.readline().strip()
        except OSError:
            boot = None
        _system.append((_host(), boot, namespace))
    return _system[0]


_system = []  # what _this_system found: none of it changes while a program runs


def _host():
    if hasattr(os, 'uname'):
        return os.uname().nodename
    import platform
    return platform.node()


def _proc_fields(pid):
    """Return what /proc says of a process, from its state on, as bytes; [] if it is not there."""
    try:
        with open('/proc/%s/stat' % pid, 'rb') as file:
            return file.read().rpartition(b')')[2].split()    # its name may hold ') '
    except OSError:    # it may end while it is read
        return []


def _proc_stat(pid):
    """Return (state, start in clock ticks, parent) of a process; of one that is not in /proc
    (None, None, None).
    """
    fields = _proc_fields(pid)
    return (fields[0].decode(), int(fields[19]), int(fields[1])) if fields else (None, None, None)


def process_members(field, number):
    """Yield the pids of what runs in a process group (field 2) or session (3); zombies do not."""
    try:
        names = os.listdir('/proc')
    except OSError:
        return
    for name in names:
        fields = _proc_fields(name) if name.isdigit() else []
        if fields and int(fields[field]) == number and fields[0] not in (b'Z', b'X'):
            yield int(name)


def process_stopped(pid):
    """Return whether a signal has stopped a process, where the system tells that."""
    return _proc_stat(pid)[0] == 'T'


def process_children(pid):
    """Return the pids of the children of a process, where the system tells them."""
    try:
        with open('/proc/%d/task/%d/children' % (pid, pid), 'rb') as file:
            return [int(child) for child in file.read().split()]
    except OSError:
        return []


def process_identity(pid=None, keeper=None, waited=False, log=None):
    """Return what tells a process from all others, also from a later one with its pid.

    Args:
        pid: of a living process or a zombie; None: this process.
        keeper: pid of its parent, if that lets it stay a zombie until its outcome is left: such
            a zombie counts as alive as long as that is its parent.
        waited: whether it had been waiting for its work, which begins now: see `process_age`.
        log: path of the log file that it makes as it begins its work, or None.
    Returns:
        JSON of ``host``, ``boot`` (id), ``ns`` (pid namespace), ``pid`` and ``start`` (clock
        ticks since boot); ``boot``, ``ns`` and ``start`` are null where there is no ``/proc``.
    """
    import json
    host, boot, namespace = _this_system()
    pid = os.getpid() if pid is None else pid
    known = {'host': host, 'boot': boot, 'ns': namespace, 'pid': pid, 'start': _proc_stat(pid)[1]}
    more = {'keeper': keeper, 'since': _boot_time() if waited else None, 'log': log}
    known.update((key, value) for key, value in more.items() if value is not None)
    return json.dumps(known)


def _boot_time():
    """Return the seconds since the last boot, None where that is not known."""
    try:
        return time.clock_gettime(7)    # CLOCK_BOOTTIME, which has no name before Python 3.7
    except (OSError, AttributeError):
        return None


def _read_identity(identity):
    """Return the dict that an identity is the JSON of, an empty one if it is of nothing."""
    import json
    try:
        known = json.loads(identity or '{}')
    except ValueError:
        return {}
    return known if isinstance(known, dict) and isinstance(known.get('pid'), int) else {}


def process_alive(identity):
    """Say whether the process that `process_identity` described still runs.

    Returns:
        True or False (a zombie without a keeper is dead, so is a process of before the last
        boot); None if that cannot be seen from here: the process is on another host, in another
        pid namespace, or unknown.
    """
    host, boot, namespace = _this_system()
    known = _read_identity(identity)
    if not known or known.get('host') != host and (boot is None or known.get('boot') != boot):
        return None    # a host whose name was changed since is known by its boot
    if known.get('boot') != boot:
        return False
    if known.get('ns') != namespace:
        return None
    if 'program' in known and any(process_members(3, known['pid'])):
        return True    # of a session whose leader is dead nobody else has the number
    state, start, parent = _proc_stat(known['pid'])
    if state is not None:
        kept = parent is not None and parent == known.get('keeper')
        return (state not in 'ZX' or kept) and known.get('start') in (None, start)
    # There is no /proc, or it hides the process.
    if os.name == 'nt':  # signal 0 is Ctrl-C there
        return None
    try:
        os.kill(known['pid'], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def process_age(identity):
    """Return the seconds since a process of this host began its work, whatever the wall clock
    was set to meanwhile; None if that is not known.
    """
    known, now = _read_identity(identity), _boot_time()
    if known.get('start') is None or now is None or 'program' in known:    # that is the tender's
        return None
    since = known.get('since')
    if since is None:
        since = known['start'] / os.sysconf('SC_CLK_TCK')
    return max(0.0, now - since)


# The protocol ---------------------------------------------------------------------


class Store(abc.ABC):
    """Where runs and tasks are kept: the manual for those who write one.

    A store holds many runs of many flows: its history. It has no opinion about statuses: it
    keeps what it is given. The engine decides, the driver commits once per turn, and
    constructs start nothing before that commit has returned (semantics 6.2): what `begin`,
    `finish` and `commit` promise, everything else is built on.

    *Threads.* All methods are called from the thread that called `open`, except `private_fds`,
    which a forked child calls, too. Two flows that run in two threads do not share an object.

    *Errors.* Whatever goes wrong outside the program (a disk that is full, a server that is
    gone) is raised as `StoreError`, with the exception behind it as its cause and a message
    that names the store and says what to do. A method that raised has changed nothing.

    *Records.* `RunRecord` and `TaskRecord` come back equal to what was stored, of the same
    types (``handled`` is a bool, ``item`` and ``result`` are bytes). A run is named by (flow,
    run_id); methods that take a ``run`` look only at these two fields, if they do not say more.
    A task is named by (path, sequence); its *latest* record is the one with the highest
    (recovery, attempt).

    `open`, `close`, `private_fds`, `latest`, `latest_runs`, `keep_plan`, `plan`, `post`,
    `requests`, `answers`, `wakeup` and `summary` have defaults; the rest is abstract.
    ``tests/contracts.py`` holds `StoreContract`, which tests every promise made here.
    """

    #: Forgets everything when the program ends: nothing to recover from, nothing for orphans.
    volatile = False
    #: Folder in which a task that outlived its supervisor leaves its outcome (semantics 7.6).
    #: It need not exist: who writes there makes it. None: such outcomes are lost.
    folder = None
    #: Default folder for the logs of tasks; it need not exist. None: there is no default.
    logs = None
    #: Folder for results that are too large for a record; it need not exist. None: records take
    #: them whatever their size.
    results = None
    #: How many flows have it open: a facade closes it after the last of them.
    users = 0

    def open(self, create=True):
        """Make ready to work. Opening an open store does nothing, or adds the right to write.

        Args:
            create: True: make what is missing (but no folders), readable by nobody else; the
                store will be written to. False: it will only be read: nothing is made, changed
                or locked, and what is missing, empty or half-made simply holds no runs.
        Raises:
            StoreError: it cannot be reached or written, it belongs to another program, or to a
                newer version of this one. Nothing was changed then.
        """

    def close(self):
        """Release what `open` took and the locks still held. May be called more than once.

        A closed store can be opened again. Other methods raise StoreError until then, unless
        the store needs no opening at all.
        """

    def private_fds(self):
        """Return the list of descriptors that a forked child must close.

        With the parent's connection and locks in its hands a child could keep both alive.
        Called in a child: must not touch anything but look.
        """
        return []

    @abc.abstractmethod
    def lock(self, flow, run_id, exclusive=True):
        """Claim a run for this supervisor, until `unlock`, `close` or death: without waiting.

        A run is claimed by one supervisor at a time, whether that is in another process or in
        this one. An exclusive claim tolerates no other claim on any run of the flow, others
        tolerate one another. When the holder dies, however it dies, its claim is gone at once,
        even if children of it live on.

        Raises:
            AlreadyRunningError: the claim stands against another one; names the pid, the host
                and the start of its holder, as the holder's RunRecord has them.
            StoreError: locks cannot be had here.
        """

    @abc.abstractmethod
    def unlock(self, flow, run_id):
        """Give back what `lock` of this object claimed; do nothing if it claimed nothing."""

    @abc.abstractmethod
    def runs(self, flow=None, status=None):
        """Iterate over the RunRecords, of one flow, or with one status: one per (run, recovery).

        They come in the order in which they were first begun. Nothing is held between two of
        them that could keep a writer waiting.
        """

    def latest(self, flow, run_id=''):
        """Return the RunRecord with the highest recovery of a run, or None if there is none.

        Args:
            run_id: of the run; ``''`` or None: the run of the flow that was first begun last.
        """
        recoveries = collections.OrderedDict()
        for run in self.runs(flow):
            recoveries.setdefault(run.run_id, []).append(run)
        if not run_id and recoveries:
            run_id = next(reversed(recoveries))
        return max(recoveries.get(run_id, ()), key=lambda run: run.recovery, default=None)

    def latest_runs(self, flow, number):
        """Return a list of what `latest` returns for each of so many runs, begun last first."""
        names = collections.OrderedDict((run.run_id, None) for run in self.runs(flow))
        return [self.latest(flow, run_id) for run_id in list(names)[:-number - 1:-1]]

    @abc.abstractmethod
    def begin(self, run):
        """Store a RunRecord durably; one with the same (flow, run_id, recovery) is replaced.

        A replaced one keeps its place in the order of `runs`, and the run keeps its tasks.
        """

    def keep_plan(self, text):
        """Keep the text of a plan (see `plan_text`), once for all runs that have this plan.

        Returns:
            the digest that is to stand in ``plan`` of the RunRecord that `begin` stores next,
            together with the text; None: this store keeps no plans.
        """
        return None

    def plan(self, run):
        """Return the text of the plan that a RunRecord names, or None: older versions kept none.
        """
        return None

    @abc.abstractmethod
    def finish(self, run):
        """Replace ``status`` and ``ended`` of the RunRecord with ``run``'s, durably.

        Raises:
            StoreError: that (flow, run_id, recovery) was never begun.
        """

    @abc.abstractmethod
    def commit(self, run, records, answers=()):
        """Store TaskRecords of a run that was begun: all of them or none, durable on return.

        Of two records with the same (path, sequence, recovery, attempt) the later replaces the
        earlier, also within one commit, and takes its place in all orders. Durable means: it
        survives the end of the program however it comes, and, unless the user has asked for
        less, a power cut (a `volatile` store promises neither).

        Args:
            records: an iterable of TaskRecord; it may be empty.
            answers: (Request, text) pairs, stored together with the records. `requests` does not
                list these requests any more. An answer replaces an earlier one of its number.
        Raises:
            StoreError: nothing of it is stored.
        """

    def post(self, request):
        """Leave a `Request` for the supervisor of a run, without a lock; return its number.

        The store may be open for reading only.

        Raises:
            StoreError: this store takes no requests, or the request cannot be left there.
        """
        raise StoreError('%r takes no requests; give the flow a store that does' % (self,))

    def requests(self, run):
        """Return the list of the requests to a run that have no answer yet, in their order."""
        return []

    def answers(self, run):
        """Return the list of (Request, text) of what was answered, in the order of answering."""
        return []

    def wakeup(self):
        """Return a descriptor that is readable when a request was posted, or None.

        None: the driver looks every ``sleep_between_loops`` seconds.
        """
        return None

    @abc.abstractmethod
    def outcomes(self, run, sequence, upto):
        """Return ``{path: TaskRecord}``: the latest of every task at exactly that sequence.

        Recovery asks this once for every sequence it comes to: the cost must not grow with the
        size of the run. Records of kind ``iteration`` stand among them under the path of their
        container (whose own task has a shorter sequence, so that they cannot be confused).

        Args:
            upto: recoveries above that number do not count.
        """

    @abc.abstractmethod
    def tasks(self, run, upto=None, status=None):
        """Iterate over the latest record of every task, in the order of their first records.

        Records of kind ``iteration`` are left out. A run may have millions of tasks: they are
        read lazily, and between two of them nothing is held that could keep a writer waiting;
        what is committed meanwhile may or may not be seen.

        Args:
            upto: recoveries above that number do not count; None: all count.
            status: only those tasks whose latest record has it.
        """

    @abc.abstractmethod
    def attempts(self, run):
        """Iterate over all TaskRecords of a run, of every kind, in the order of first storing.

        Lazily and without holding anything, as `tasks` does.
        """

    def summary(self, run, upto=None):
        """Return a `StepSummary` of each step that has tasks, in the order of their first ones.

        Of what `tasks` gives; a `volatile` store counts what it has dropped, too. Where this
        would be slow, a store does better.
        """
        found = collections.OrderedDict()  # type: typing.Dict[tuple, StepSummary]
        for record in self.tasks(run, upto=upto):
            key = record.path, record.kind
            if key not in found:
                found[key] = StepSummary(*key)
            found[key].count(record.status, 1, record.started, record.ended)
            found[key].show(record)
        return list(found.values())


class StepSummary:
    """The tasks of one step, counted.

    Attributes:
        path, kind: of the step; a leaf with a loop has one for the loop and one for its items.
        counts: {status: how many}.
        started, ended: the earliest start and the latest end, or None.
    """

    __slots__ = ('path', 'kind', 'counts', 'started', 'ended', '_first', '_shown')

    def __init__(self, path, kind):
        self.path = path
        self.kind = kind
        self.counts = collections.OrderedDict()  # type: typing.Dict[str, int]
        self.started = self.ended = None
        self._first = None  # type: typing.Optional[TaskRecord]
        self._shown = []  # type: typing.List[TaskRecord]

    @property
    def n(self):
        return sum(self.counts.values())

    @property
    def records(self):
        """Those to be shown: the only task, or those that failed or are active."""
        return [self._first] if self.n == 1 and self._first else self._shown

    def count(self, status, n, started, ended):
        """Count tasks of one status."""
        self.counts[status] = self.counts.get(status, 0) + n
        if started is not None and (self.started is None or started < self.started):
            self.started = started
        if ended is not None and (self.ended is None or ended > self.ended):
            self.ended = ended

    def show(self, record):
        """Keep the record of a task that was counted, if it is to be shown."""
        if self._first is None:
            self._first = record
        if record.status == FAILURE or record.status == ACTIVE:
            self._shown.append(record)


class RunView:
    """What a store tells of one run, up to the end of one of its recoveries.

    Everything is read from the store when it is asked for, and nothing else is needed for it: no
    module, no flow. Each task is a `TaskRecord`, which also says the item of its loop as text,
    when it became ready and what it had waited for.

    Args:
        store: an open `Store`, which stays open meanwhile.
        run: a `RunRecord` in it. Recoveries after that one do not count.

    Attributes:
        store, run: these.
    """

    def __init__(self, store, run):
        self.store = store
        self.run = run
        self._plan = None  # type: typing.Any

    @classmethod
    def find(cls, store, flow, run_id='', recovery=None):
        """Return the view of a run; None if the store holds no run of the flow at all.

        Args:
            store: an open `Store`.
            flow: the name of the flow.
            run_id: the name of the run; ``''`` or None: the run that was first begun last.
            recovery: the number of the recovery to look at; None: the latest.

        Raises:
            RecoveryError: there is no such run, or no such recovery of it.
        """
        latest = store.latest(flow, run_id)
        if latest is None and run_id:
            raise RecoveryError('%s holds no run %r of flow %r%s' % (
                store_name(store), run_id, flow,
                _nearest(run_id, {run.run_id for run in store.runs(flow)})))
        if latest is None or recovery is None:
            return cls(store, latest) if latest else None
        for run in cls(store, latest).recoveries():
            if run.recovery == recovery:
                return cls(store, run)
        raise RecoveryError('run %r of flow %r has no recovery %d; the latest is %d' % (
            latest.run_id, flow, recovery, latest.recovery))

    def recoveries(self):
        """Return the list of the `RunRecord` of each recovery of the run, the first run first."""
        return [run for run in self.store.runs(self.run.flow)
                if run.run_id == self.run.run_id and run.recovery <= self.run.recovery]

    def supervisor(self):
        """Return how the supervisor fares: 'over', 'alive', 'gone', or 'elsewhere' where it
        cannot be seen from here."""
        if self.run.status != ACTIVE:
            return 'over'
        return {True: 'alive', False: 'gone', None: 'elsewhere'}[process_alive(self.run.process)]

    def goes_on(self):
        """Say whether a supervisor is at work on the run, as far as can be seen."""
        return self.supervisor() in ('alive', 'elsewhere')

    def parameters(self):
        """Return {name: text or None} of the parameters; ``***`` stands for a secret one."""
        return {name: '***' if isinstance(text, dict) else text
                for name, text in json_object(self.run.steps).get('parameters', {}).items()}

    def tasks(self, status=None):
        """Iterate over the latest record of every task: see `Store.tasks`."""
        return self.store.tasks(self.run, self._upto(), status)

    def summary(self):
        """Return the tasks folded, a `StepSummary` for each step: see `Store.summary`."""
        return self.store.summary(self.run, self._upto())

    def _upto(self):
        latest = self.store.latest(self.run.flow, self.run.run_id)
        return None if latest.recovery <= self.run.recovery else self.run.recovery

    def plan(self):
        """Return the list of the steps of the run, each a dict as `plan_text` describes it, with
        the list ``steps`` of those inside it; None if the store has kept no plan of the run."""
        if self.store.plan(self.run) is None:
            return None
        trees = {path: dict(step, steps=[]) for path, step in self._steps().items()}
        top = []  # type: list
        for step in trees.values():
            (trees[step['in']]['steps'] if 'in' in step else top).append(step)
        return top

    def _known_plan(self):
        if self._plan is None:
            self._plan = json_object(self.store.plan(self.run))
        return self._plan

    def _steps(self):
        return collections.OrderedDict(
            (step['path'], step) for step in self._known_plan().get('steps', ()))

    def made_good(self, failed):
        """Return the set of (path, sequence) of the failures that were made good or tolerated.

        That may be the failure itself, or that of a container around it (semantics 3.3, 3.7).

        Args:
            failed: the records of all tasks that failed.
        """
        failed = list(failed)
        handled = {(record.path, record.sequence) for record in failed if record.handled}
        good, steps = set(handled), self._steps() if handled else {}
        for record in failed if handled else ():
            numbers = record.sequence.split('.')
            places = ['.'.join(numbers[:n]) for n in range(1, len(numbers))]
            if any((path, place) in handled for path in _paths_around(record.path, steps)
                   for place in places):
                good.add((record.path, record.sequence))
        return good

    def not_run(self, summary=None):
        """Return (path, reason) pairs: the steps that were not run, and why (semantics 3.5).

        A step was not run if its container began and the step has no task. The list is empty
        while the run goes on, for an Eventor, and where the store has kept no plan. The reasons
        come from ``backends/why_not.py``, which also leaves out the steps that wait for a failure
        that did not happen. Without that file each reason is None.

        Args:
            summary: what `summary` returns, if that is known.
        """
        if self.goes_on() or self._known_plan().get('dynamic'):
            return []
        statuses = {}  # type: typing.Dict[str, typing.Collection[str]]
        for one in self.summary() if summary is None else summary:
            statuses.setdefault(one.path, one.counts)    # A loop comes before its items.
        missing = [path for path, step in self._steps().items()
                   if path not in statuses and step.get('in', path) in {path, *statuses}]
        why_not = load_backend('why_not') if missing else None
        if why_not is None:
            return [(path, None) for path in missing]
        return why_not.explain(self._known_plan(), statuses, missing)


def _paths_around(path, steps):
    """Return the paths of a step and of the containers around it; where the plan is not known,
    all that they may be."""
    if not steps:
        words = path.split('_')
        return ['_'.join(words[:n + 1]) for n in range(len(words))]
    found = []
    while path is not None:
        found.append(path)
        path = steps.get(path, {}).get('in')
    return found


def store_name(store):
    """Return how a store is called in messages."""
    return getattr(store, 'path', None) or repr(store)


# Locks ----------------------------------------------------------------------------


class _LockFile:
    """The locks that this process holds in one file: one byte each, at offsets made of names.

    POSIX locks have two traps: they do not exclude within a process, hence the table; and all
    of them go when *any* descriptor of the file is closed, hence one object per store and process
    (`_lock_files`), with one descriptor, open while anything is held. In return they belong to
    the process alone: they end with it, whatever its children have inherited.
    """

    def __init__(self, path=None):
        self.path = path  # None: the table is all there is
        self.fd = None
        self.held = {}  # offset: -1 for an exclusive lock, else how many share it
        self.warned = False  # that there are no locks here
        self.guard = threading.Lock()

    def acquire(self, offset, exclusive):
        """Lock one byte and return True; or return False, at once, if somebody else has it."""
        with self.guard:
            held = self.held.get(offset, 0)
            if held < 0 or held and exclusive:
                return False
            if not held and not self._lock_byte(offset, exclusive):
                return False
            self.held[offset] = -1 if exclusive else held + 1
            return True

    def release(self, offset):
        with self.guard:
            held = self.held.pop(offset)
            if held > 1:
                self.held[offset] = held - 1
            elif self.fd is not None:
                import fcntl
                fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, offset)
                self._close_unused()

    def stands(self):
        """Return whether the next program that asks for a lock will find those that are held."""
        return self.fd is None or _file_key(self.path) == _file_key(self.fd)

    def _lock_byte(self, offset, exclusive):
        if self.path is None:
            return True
        try:
            import fcntl
        except ImportError:
            if not self.warned:
                logger.warning('this system has no POSIX locks (no module fcntl): nothing keeps '
                               'two programs from running one flow in the store %r at the same '
                               'time; see to it that only one does', self.path[:-len('.lock')])
            self.warned = True
            return True
        if self.fd is None:
            try:
                self.fd = _make_private(self.path)
            except FileExistsError:
                self.fd = os.open(self.path, os.O_RDWR | _AS_IT_IS)
        how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.lockf(self.fd, how | fcntl.LOCK_NB, 1, offset)
        except (BlockingIOError, PermissionError):  # EAGAIN; some systems say EACCES
            self._close_unused()
            return False
        return True

    def _close_unused(self):
        if not self.held:
            os.close(self.fd)
            self.fd = None


# {(pid, key of the store's file): _LockFile}
_lock_files = _in_common('lock_files', {})


def _make_private(path):
    """Make an empty file that only its owner can read, under any umask; return a descriptor.

    Raises:
        FileExistsError: there is one already.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.chmod(path, 0o600)
    return fd


def _trust_problem(path, info):
    """Say how another user could have written what ``info`` is the status of; '' if none could.

    As ssh has it, root and we ourselves are trusted. A folder others may write to will do if it
    is sticky, or if the group is its owner's private one, as in a folder made with umask 002.
    """
    if not hasattr(os, 'geteuid'):    # on Windows neither owner nor mode tells who may write
        return ''
    mode = stat.S_IMODE(info.st_mode)
    if info.st_uid not in (0, os.geteuid()):
        return ('%r belongs to the user with uid %d, not to you (uid %d) or root; look at it, '
                'then make it yours (chown %d)' % (path, info.st_uid, os.geteuid(), os.geteuid()))
    others = mode & 0o022
    fine = stat.S_ISLNK(info.st_mode) or stat.S_ISDIR(info.st_mode) and (
        mode & stat.S_ISVTX or others == 0o020 and _is_private_group(info))
    if others and not fine:
        return ('%r may be written by others (mode %04o); look at it, then take that away '
                '(chmod go-w)' % (path, mode))
    return ''


def check_trust(store, create):
    """Refuse a store, given by its path, that another user could have written.

    Pickles are read from there, which run code. The file beside it whose name ends in -journal is
    played back into the store by SQLite.
    """
    beside = ('', '-journal', '-wal', '.lock', '.outcomes', '.logs', '.results', '.requests')
    paths = [store + ending for ending in beside]
    if create or os.path.lexists(store):
        paths.append(os.path.dirname(store))
    for path in paths:
        try:
            info = os.lstat(path)
        except OSError:
            continue
        problem = _trust_problem(path, info)
        if not problem and stat.S_ISLNK(info.st_mode) and path in paths[:4]:
            problem = '%r is a symbolic link; look at it, then remove it' % path
        if problem:
            raise StoreError('the store %r could have been written by another user: %s'
                             % (store, problem))


def _open_own(path, what):
    """Open a file that only we could have written; raise StoreError, FileNotFoundError."""
    try:
        fd = os.open(path, os.O_RDONLY | _AS_IT_IS)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError('the %s %r cannot be read: %s' % (what, path, error.strerror)) from error
    folder = os.path.dirname(path)
    info = os.fstat(fd)
    problem = _trust_problem(path, info) or _trust_problem(folder, os.stat(folder))
    if not (problem or stat.S_ISREG(info.st_mode)):
        problem = '%r is not a regular file' % path
    if problem:
        os.close(fd)
        raise StoreError('the %s %r could have been written by another user: %s'
                         % (what, path, problem))
    return open(fd, 'rb')


def _is_private_group(info):
    """Say whether a group is that of the file's owner alone, by name."""
    try:
        import grp
        import pwd
        owner, group = pwd.getpwuid(info.st_uid), grp.getgrgid(info.st_gid)
    except (ImportError, KeyError):
        return False
    return (owner.pw_gid == info.st_gid and owner.pw_name == group.gr_name
            and set(group.gr_mem) <= {owner.pw_name})


def _lock_offset(*names):
    """Return the place of a lock in its file: 62 bits of a hash, which fit any off_t."""
    import hashlib
    import json
    digest = hashlib.sha256(json.dumps(names).encode()).digest()
    return int.from_bytes(digest[:8], 'big') >> 2


class _LockingStore(Store):
    """A store that claims runs with the locks of a `_LockFile`.

    A claim is two locks: that of the flow, shared unless the claim is exclusive, and that of
    the run, never shared.
    """

    def __init__(self):
        self._claims = {}  # (flow, run_id): (pid, _LockFile, offsets)

    @abc.abstractmethod
    def _lock_file(self):
        """Return the `_LockFile`: it depends on the process."""

    def lock(self, flow, run_id, exclusive=True):
        file, taken = self._lock_file(), []
        try:
            for offset, alone in ((_lock_offset('flow', flow), exclusive),
                                  (_lock_offset('run', flow, run_id), True)):
                if not file.acquire(offset, alone):
                    raise _already_running(flow, run_id, _find_holders(
                        self, flow, run_id, bool(taken), offset not in file.held))
                taken.append(offset)
        except BaseException as exc:
            for offset in taken:
                file.release(offset)
            if isinstance(exc, OSError) and not isinstance(exc, StoreError):
                raise StoreError(
                    'the file %r cannot be locked: %s; make it writable, or put the store on a '
                    'file system that has POSIX locks' % (file.path, exc)) from exc
            raise
        self._claims[flow, run_id] = os.getpid(), file, taken

    def unlock(self, flow, run_id):
        pid, file, offsets = self._claims.pop((flow, run_id), (None, None, ()))
        if pid == os.getpid():  # the locks of its parent are none of a child's business
            for offset in offsets:
                file.release(offset)

    def close(self):
        for flow, run_id in list(self._claims):
            self.unlock(flow, run_id)

    def _refuse_lost(self):
        """Raise StoreError if another program could have locked what is locked here."""
        for _, file, _ in self._claims.values():
            if not file.stands():
                raise StoreError(
                    'the lock file %r has been removed or replaced while it was in use: nothing '
                    'more is stored, because another supervisor may be at work. Leave that file '
                    'where it is, and go on with the run (continue)' % (file.path,))


def _rivals(store, flow, run_id, run_only):
    """Return the active runs beside which a run may not start unless their supervisors are
    dead."""
    return [run for run in store.runs(flow, ACTIVE) if run.run_id == run_id or not run_only]


def _refuse_living(store, flow, run_id, run_only):
    """Raise AlreadyRunningError if the store names a supervisor that lives in another process.

    The locks do not exclude that supervisor if somebody has removed the lock file, or if the
    store has a second path, beside which there is another lock file.
    """
    for run in _rivals(store, flow, run_id, run_only):
        known = _read_identity(run.process)
        pid, start = known.get('pid'), known.get('start')
        # Without its start a pid does not tell: another process may have that pid by now.
        if (pid not in (None, os.getpid()) and start is not None and start == _proc_stat(pid)[1]
                and process_alive(run.process)):
            raise _already_running(flow, run_id, [run])


def _find_holders(store, flow, run_id, run_only, patient):
    """Return the records of the runs whose supervisors may have the lock that was refused.

    A supervisor has its lock before it records its run: if ``patient``, wait a moment for that.
    """
    pause = 0.02
    while True:
        holders = [run for run in _rivals(store, flow, run_id, run_only)
                   if process_alive(run.process) is not False]
        if holders or not patient or pause > 1:
            return holders
        time.sleep(pause)
        pause *= 2


def _already_running(flow, run_id, holders):
    """Return the AlreadyRunningError that names who stands in the way."""
    if not holders:
        return AlreadyRunningError('flow %r is already being run, by a supervisor that has not '
                                   'begun its run yet; try again in a moment' % (flow,))
    holder = max(holders, key=lambda run: run.run_id == run_id)
    whose = _read_identity(holder.process)
    started = 'at an unknown time' if holder.started is None else time.strftime(
        '%Y-%m-%d %H:%M:%S', time.localtime(holder.started))
    advice = 'wait for its end, or stop it with a SIGTERM to that pid'
    if holder.run_id != run_id:
        advice += "; config={'exclusive': False} lets runs of one flow work side by side"
    return AlreadyRunningError(
        'run %r of flow %r is already running: pid %s on host %r, started %s; %s' % (
            holder.run_id, flow, whose.get('pid', 'unknown'), whose.get('host', 'unknown'),
            started, advice))


# MemoryStore ----------------------------------------------------------------------


class MemoryStore(_LockingStore):
    """Keeps everything in memory; a flow can be recovered from it within the same process.

    Args:
        volatile: keep only what can still be asked for, so that a flow of any number of
            iterations takes constant memory; this is ``store=':memory:'``. Kept are failures
            and what is not over; of successes those of first iterations, that is, of everything
            outside loops. Later ones are only counted, and ``iteration`` records are not kept.
    """

    def __init__(self, volatile=False):
        super().__init__()
        self.volatile = volatile
        self._runs = collections.OrderedDict()  # (flow, run_id, recovery): RunRecord
        self._kept = {}  # (flow, run_id): _Kept
        self._plans = {}  # digest: text
        self._requests = []  # those without an answer; from any thread
        self._answers = []  # (Request, text)
        self._locks = _LockFile()

    def __repr__(self):
        return 'MemoryStore(volatile=True)' if self.volatile else 'MemoryStore()'

    def _lock_file(self):
        return self._locks

    def runs(self, flow=None, status=None):
        return iter([run for run in self._runs.values()
                     if flow in (None, run.flow) and status in (None, run.status)])

    def keep_plan(self, text):
        digest = _digest_of(text)
        self._plans[digest] = text
        return digest

    def plan(self, run):
        return self._plans.get(run.plan)

    def begin(self, run):
        self._runs[run[:3]] = run
        self._kept.setdefault(run[:2], _Kept())

    def finish(self, run):
        known = self._runs.get(run[:3])
        if known is None:
            raise _never_begun(run, self)
        self._runs[run[:3]] = known._replace(status=run.status, ended=run.ended)

    def post(self, request):
        request = request._replace(number=_new_number())
        self._requests.append(request)
        return request.number

    def requests(self, run):
        return [one for one in list(self._requests) if one[:2] == run[:2]]

    def answers(self, run):
        return [one for one in self._answers if one[0][:2] == run[:2]]

    def commit(self, run, records, answers=()):
        kept = self._kept.get(run[:2])
        if kept is None:
            raise _never_begun(run, self)
        records = list(records)    # an error comes before anything is stored
        for request, text in answers:
            self._answers = [one for one in self._answers if one[0].number != request.number]
            self._answers.append((request, text))
            if request in self._requests:
                self._requests.remove(request)
        for record in records:
            if self.volatile and record.kind == 'iteration':
                continue
            if self.volatile and record.status == SUCCESS and (
                    _in_later_iteration(record.sequence)):
                kept.fold(record)
            else:
                kept.add(record)

    def outcomes(self, run, sequence, upto):
        kept = self._kept.get(run[:2], _NOTHING_KEPT)
        found = ((path, _latest(attempts, upto))
                 for path, attempts in kept.places.get(sequence, {}).items())
        return {path: record for path, record in found if record}

    def tasks(self, run, upto=None, status=None):
        kept = self._kept.get(run[:2], _NOTHING_KEPT)
        for path, sequence in collections.OrderedDict.fromkeys(
                record[:2] for record in kept.records()):
            record = _latest(kept.places.get(sequence, {}).get(path, ()), upto)
            if record and record.kind != 'iteration' and status in (None, record.status):
                yield record

    def attempts(self, run):
        return iter(self._kept.get(run[:2], _NOTHING_KEPT).records())

    def summary(self, run, upto=None):
        known = collections.OrderedDict(
            ((one.path, one.kind), one) for one in super().summary(run, upto))
        for key, n in self._kept.get(run[:2], _NOTHING_KEPT).folded.items():
            known.setdefault(key, StepSummary(*key)).count(SUCCESS, n, None, None)
        return list(known.values())


class _Kept:
    """The TaskRecords of one run in a MemoryStore."""

    def __init__(self):
        # {sequence: {path: [(number, record)]}}, a record for each attempt; numbers are in the
        # order in which records were first stored.
        self.places = {}
        self.folded = collections.Counter()  # (path, kind): how many successes were dropped
        self._numbers = itertools.count()

    def add(self, record):
        attempts = self.places.setdefault(record.sequence, {}).setdefault(record.path, [])
        for place, (number, known) in enumerate(attempts):
            if known[2:4] == record[2:4]:
                attempts[place] = number, record
                return
        attempts.append((next(self._numbers), record))

    def fold(self, record):
        """Drop all records of a task that has succeeded, but count it."""
        paths = self.places.get(record.sequence, {})
        paths.pop(record.path, None)
        if not paths:
            self.places.pop(record.sequence, None)
        self.folded[record.path, record.kind] += 1

    def records(self):
        """Return all records, in the order in which they were first stored."""
        numbered = [one for paths in self.places.values() for attempts in paths.values()
                    for one in attempts]
        return [record for _, record in sorted(numbered)]


_NOTHING_KEPT = _Kept()


def _new_number():
    """Return the number of a new request: numbers rise as time passes."""
    return '%020d-%s' % (time.time() * 1e6, os.urandom(4).hex())


def _digest_of(text):
    import hashlib
    return hashlib.sha256(text.encode('utf-8')).hexdigest()


def _in_later_iteration(sequence):
    return '.' in sequence and ('11' in sequence or bool(sequence.strip('1.')))


def _latest(attempts, upto):
    """Return the latest record of ``[(number, record)]``, or None."""
    records = [record for _, record in attempts if upto is None or record.recovery <= upto]
    return max(records, key=operator.itemgetter(2, 3)) if records else None


def _never_begun(run, store):
    return StoreError('%r holds no recovery %d of run %r of flow %r to write to; call begin() '
                      'with its RunRecord first' % (store, run.recovery, run.run_id, run.flow))


# SqliteStore ----------------------------------------------------------------------
#
# One file. `run` is an integer that stands for (flow, run_id) in both runs and tasks. The id of a
# task's row never changes, although the row is replaced: it is the order of first storing. Only
# SQL that SQLite 3.7.17 knows.

_APPLICATION = 0x53657175  # 'Sequ', in the header of every file of ours
_BUSY = 60  # seconds to wait for a file that another process has locked
_CHUNK = 200  # rows read at a time
_CHECKED = 1 << 23  # bytes: a larger file is not checked as a whole, which takes over 0.2 s

#: What makes a store of an empty file. The number (PRAGMA user_version) is that of the format: a
#: version that knows only smaller ones refuses the file.
_TABLES = (
    'CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT)',
    """CREATE TABLE runs (id INTEGER PRIMARY KEY, run INTEGER NOT NULL,
        flow TEXT NOT NULL, run_id TEXT NOT NULL, recovery INTEGER NOT NULL,
        mode TEXT, status TEXT, started REAL, ended REAL, process TEXT, steps TEXT,
        UNIQUE (flow, run_id, recovery))""",
    """CREATE TABLE tasks (id INTEGER PRIMARY KEY, run INTEGER NOT NULL,
        path TEXT NOT NULL, sequence TEXT NOT NULL,
        recovery INTEGER NOT NULL, attempt INTEGER NOT NULL,
        kind TEXT, status TEXT, handled INTEGER, item BLOB, due REAL, started REAL, ended REAL,
        process TEXT, result BLOB, error TEXT, events TEXT)""",
    'CREATE UNIQUE INDEX tasks_place ON tasks (run, sequence, path, recovery, attempt)',
    'CREATE INDEX tasks_order ON tasks (run)',
    "INSERT INTO meta VALUES ('made by', 'sequent %s')" % __version__,
    'PRAGMA application_id = %d' % _APPLICATION,
    'PRAGMA user_version = 1')
#: What later versions have added: (a table that shows that it is there, statements). Whoever opens
#: the file to write adds what is missing, in one transaction; whoever only looks reads the file as
#: it is. An addition changes nothing of what is there, as older versions go on with the store.
_ADDITIONS = (('plans', (
    'CREATE TABLE plans (digest TEXT PRIMARY KEY, plan TEXT)',
    'ALTER TABLE runs ADD COLUMN plan TEXT',
    'ALTER TABLE tasks ADD COLUMN item_text TEXT',
    'ALTER TABLE tasks ADD COLUMN ready_at REAL',
    'ALTER TABLE tasks ADD COLUMN waited_for TEXT')), ('answers', (
    """CREATE TABLE answers (id INTEGER PRIMARY KEY, run INTEGER NOT NULL,
        number TEXT NOT NULL UNIQUE, request TEXT NOT NULL, answer TEXT NOT NULL)""",)))
_ADDED = ('plan', 'item_text', 'ready_at', 'waited_for')


def _columns(added):
    """Return {name in braces in SQL: columns}, with NULL for what is added, if it is not there."""
    tasks, runs = ([name if added or name not in _ADDED else 'NULL' for name in one._fields]
                   for one in (TaskRecord, RunRecord))
    return {'run': ', '.join(runs), 'task': ', '.join(tasks), 'latest': ', '.join(
        name if name == 'NULL' else 'latest.' + name for name in tasks)}


_COLUMNS = _columns(True)
_SQL_RUN_KEY = 'SELECT run FROM runs WHERE flow = ? AND run_id = ? LIMIT 1'
_SQL_INSERT_RUN = 'INSERT INTO runs (run, %s) VALUES (?%s)' % (
    _COLUMNS['run'], ', ?' * len(RunRecord._fields))
_SQL_REPLACE_RUN = 'UPDATE runs SET %s WHERE flow = ? AND run_id = ? AND recovery = ?' % (
    ', '.join('%s = ?' % name for name in RunRecord._fields))
_SQL_LATEST_RUNS = """SELECT {run} FROM runs WHERE id IN (
    SELECT id FROM runs AS one WHERE flow = ? AND NOT EXISTS (SELECT 1 FROM runs AS later
        WHERE later.flow = one.flow AND later.run_id = one.run_id
        AND later.recovery > one.recovery)
    ORDER BY run DESC LIMIT ?) ORDER BY run DESC"""
_SQL_COMMIT = """INSERT OR REPLACE INTO tasks (id, run, %s) VALUES (
    (SELECT id FROM tasks
     WHERE run = ? AND path = ? AND sequence = ? AND recovery = ? AND attempt = ?), ?%s)""" % (
    _COLUMNS['task'], ', ?' * len(TaskRecord._fields))
_SQL_OUTCOMES = """SELECT {task} FROM tasks WHERE run = ? AND sequence = ? AND recovery <= ?
    ORDER BY path, recovery, attempt"""
# A task stands where its first record stands, with the content of its latest. SQLite without
# statistics takes the wrong index here, and quadratic time: so both are named. Where no record has
# the status, as is usual of active, that is found out first, once, in a tenth of the time.
_SQL_TASKS = """SELECT first.id, {latest}
    FROM tasks AS first INDEXED BY tasks_order JOIN tasks AS latest ON latest.id = (
        SELECT id FROM tasks AS other INDEXED BY tasks_place
        WHERE other.run = first.run AND other.sequence = first.sequence
        AND other.path = first.path AND other.recovery <= ?
        ORDER BY recovery DESC, attempt DESC LIMIT 1)
    WHERE (? IS NULL OR EXISTS (SELECT 1 FROM tasks AS one INDEXED BY tasks_order
        WHERE one.run = ? AND one.status = ?))
    AND first.run = ? AND latest.kind != 'iteration' AND coalesce(latest.status = ?, 1)
    AND NOT EXISTS (SELECT 1 FROM tasks AS earlier INDEXED BY tasks_place
        WHERE earlier.run = first.run AND earlier.sequence = first.sequence
        AND earlier.path = first.path AND earlier.id < first.id)
    AND first.id > ? ORDER BY first.id LIMIT ?"""
_SQL_ATTEMPTS = 'SELECT id, {task} FROM tasks WHERE run = ? AND id > ? ORDER BY id LIMIT ?'

#: What SQLite or the system says, and what to do about it. First match wins.
_ADVICE = (
    ('locked', 'another program has kept it locked for %d seconds: find it (fuser shows who has '
     'the file open) and let it finish' % _BUSY),
    ('full', 'make room on the disk, then go on with the run (continue)'),
    ('readonly', 'make the file and its folder writable for this user'),
    ('Permission denied|unable to open', 'make the file and its folder readable and writable for '
     'this user'),
    ('Read-only', 'give a store on a file system that can be written'),
    ('malformed|decode|no such table', 'the file is damaged: put a backup in its place, or move '
     'it away to start anew'),
    ('not a database', 'move that file away, or give another store'),
    ('', 'check the file, its disk and its file system'),
)


class _SqliteFile(_LockingStore):
    """The file of a `SqliteStore`, and this process's connection to it.

    It is made, checked, opened, read and written here; the queries are those of the store.
    """

    def __init__(self, path, synchronous):
        super().__init__()
        self.path = os.path.realpath(os.fspath(path))  # as SQLite does: its journal lies there
        self.synchronous = synchronous
        self._pid = None  # of the process that opened it
        self._create = False
        self._db = None
        self._file = None  # which file it is: it may be replaced while it is open
        self._columns = _COLUMNS
        self._tables = ()  # names of those that are there
        self._keys = {}  # (flow, run_id): run

    def open(self, create=True):
        if self._pid == os.getpid() and (self._create or not create):
            return
        self._disconnect()
        self._connect(create)
        self._pid, self._create = os.getpid(), create

    def close(self):
        if self._pid == os.getpid():  # else the connection is the parent's: leave it alone
            super().close()
            self._disconnect()
        self._pid, self._create = None, False

    def lock(self, flow, run_id, exclusive=True):
        self._writable()
        super().lock(flow, run_id, exclusive)

    def _lock_file(self):
        # As a forked child has no locks yet, and as one store may have several paths.
        file = _lock_files.setdefault((os.getpid(), self._file), _LockFile())
        if not file.held:
            file.path = self.path + '.lock'
        return file

    def private_fds(self):
        # Not by the paths: another file may stand there by now.
        locks = [file.fd for _, file, _ in self._claims.values()]
        return [fd for fd in _descriptors() if fd in locks or (
            self._file is not None and _file_key(fd) == self._file)]

    def _connect(self, create):
        """Open the file and set ``_db``; leave it None if there is nothing to look at."""
        sqlite3 = _import_sqlite3()
        db = None
        try:
            with _looking, _sqlite_use:
                if not self._find(create):
                    return
                db = _connect_to(self.path)
                self._file = _file_key(self.path)
                _opened[os.getpid(), self._file] += 1
            with _sqlite_use:
                if self._check_format(db, create):
                    self._db, db = db, None
        except StoreError:
            raise
        except (sqlite3.Error, OSError, UnicodeError) as exc:
            raise self._error('opened', exc) from exc
        finally:
            if db is not None:
                self._hang_up(db)

    def _find(self, create):
        """Say whether there is a file to open, after making it or refusing it."""
        _check_folder(self.path)
        check_trust(self.path, create)
        if create and not os.path.lexists(self.path):
            self._make()
        if not os.path.exists(self.path):
            return False
        if create and os.stat(self.path).st_nlink > 1:
            _remove_asides(self.path)
        if create and os.stat(self.path).st_nlink > 1:
            logger.warning('the store %r has several names (hard links): remove all but one, as '
                           'its journal, outcomes and logs stand beside one name', self.path)
        objection = '' if _opened[os.getpid(), _file_key(self.path)] else _objection(self.path)
        if objection:
            raise StoreError('%r cannot be a store: %s; it was not touched. Move it away, or '
                             'give another store' % (self.path, objection))
        return True

    def _make(self):
        """Make the file aside and link it into place, so that nobody sees half a store."""
        aside = '%s.new-%d-%d' % (self.path, os.getpid(), threading.get_ident())
        try:
            os.close(_make_private(aside))
            with contextlib.closing(_connect_to(aside)) as db:
                self._prepare(db)
            os.link(aside, self.path)
        except FileExistsError:
            pass    # another supervisor was faster
        except OSError as exc:    # links are not possible here: `_prepare` fills an empty file
            logger.debug('%s is made in place: %s', self.path, exc)
            with contextlib.suppress(FileExistsError):
                os.close(_make_private(self.path))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)

    def _check_format(self, db, create):
        """Say whether the file holds our tables; if it may, make it hold them."""
        # In this order: somebody else may just be making the tables, with their number.
        tables = _tables(db)
        version = _rows(db, 'PRAGMA user_version')[0][0]
        if version < 0 or version == 0 and tables:
            raise self._damaged('it has tables, but no number of their format')
        if version > 1:
            raise StoreError('the store %r was written by a newer sequent (format %d, this one '
                             'knows up to 1); use that one, or give another store'
                             % (self.path, version))
        self._columns, self._tables = _columns('plans' in tables), tables
        if create:
            if os.path.getsize(self.path) <= _CHECKED:
                self._look_for_damage(db, version)
            # A deleted journal may come back with a power cut, and undo the last commit with it.
            # A journal whose header is overwritten does not, in any version of SQLite.
            db.execute('PRAGMA journal_mode = PERSIST')
            self._prepare(db)
        return create or version > 0

    def _prepare(self, db):
        """Set up a connection that writes, and make what is missing in the file."""
        db.execute('PRAGMA synchronous = %s' % self.synchronous)
        # As later versions of SQLite have it by themselves: a new file has pages of the size that
        # disks write, and a commit opens no temporary file, which children would have, too.
        db.execute('PRAGMA page_size = 4096')
        db.execute('PRAGMA temp_store = MEMORY')
        db.execute('BEGIN IMMEDIATE')
        tables = _tables(db)
        missing = [] if tables else list(_TABLES)
        for table, statements in _ADDITIONS:
            if table not in tables:
                missing += statements
        for statement in missing:
            db.execute(statement)
        # What cannot be written is to fail here, not in the night. (BEGIN IMMEDIATE itself does
        # not; and a COMMIT would wait for all who read.)
        db.execute('PRAGMA user_version = 1')
        db.execute('COMMIT' if missing else 'ROLLBACK')
        self._columns, self._tables = _COLUMNS, _tables(db)

    def _look_for_damage(self, db, version):
        """Refuse a damaged file before anything is written."""
        found = _rows(db, 'PRAGMA integrity_check(1)')[0][0]
        if found != 'ok':
            raise self._damaged(' '.join(found.split()))
        if version:
            _look_at_columns(db, self._tables, self._damaged)
            for row in _rows(db, 'SELECT {run} FROM runs'.format(**self._columns)):
                json_object(_run_record(row).steps)
            for row in _rows(db, 'SELECT {task} FROM tasks'.format(**self._columns)):
                _task_record(row)

    def _damaged(self, how):
        return StoreError('the store %r is damaged: %s; it was not touched. Put a backup in its '
                          'place, or move it away to start anew' % (self.path, how))

    def _disconnect(self):
        db, self._db = self._db, None
        self._keys.clear()
        if db is None or self._pid != os.getpid():
            return
        if self._create and _file_key(self.path) == self._file:
            try:
                with _sqlite_use:
                    db.execute('PRAGMA journal_mode = DELETE')
            except _import_sqlite3().Error as exc:  # what stays is harmless
                logger.debug('%s-journal stays: %s', self.path, exc)
        self._hang_up(db)
        self._file = None

    def _hang_up(self, db):
        with _looking, _sqlite_use:
            db.close()
            _opened[os.getpid(), self._file] -= 1

    def _connection(self):
        """Return the connection, or None if it would only be read and there is nothing to read."""
        if self._pid is None:
            raise StoreError('the store %r is not open; call open() first' % (self.path,))
        if self._pid != os.getpid():
            raise StoreError('the store %r was opened by process %d and cannot be used in process '
                             '%d, forked from it; use it where the flow runs'
                             % (self.path, self._pid, os.getpid()))
        if self._db is None:
            self._connect(False)  # somebody may have made it since
        return self._db

    def _writable(self):
        db = self._connection()
        if not self._create:
            raise StoreError('the store %r was opened for reading only; open() it with '
                             'create=True' % (self.path,))
        return db

    def _read(self, sql, *parameters):
        db = self._connection()
        if db is None:
            return []
        try:
            with _sqlite_use:
                return _rows(db, sql.format(**self._columns), *parameters)
        except (_import_sqlite3().Error, UnicodeError) as exc:
            raise self._error('read', exc) from exc

    def _read_on(self, make, sql, *parameters):
        """Iterate over rows of ``(id, ...)`` with rising ids, a chunk at a time."""
        last, rows = 0, None
        while rows is None or len(rows) == _CHUNK:
            rows = self._read(sql, *(parameters + (last, _CHUNK)))
            for row in rows:
                yield make(row[1:])
            last = rows[-1][0] if rows else last

    def _write(self, work, *arguments):
        """Return ``work(connection, *arguments)``, called within a transaction."""
        db, sqlite3 = self._writable(), _import_sqlite3()
        if _file_key(self.path) != self._file:
            raise StoreError('the store %r has been deleted or replaced while it was in use; '
                             'what is there now was not touched. Put the file back, or start '
                             'anew' % (self.path,))
        try:
            with _sqlite_use:
                db.execute('BEGIN IMMEDIATE')
                # Within the transaction: what another supervisor has stored is seen from here on.
                self._refuse_lost()
                result = work(db, *arguments)
                db.execute('COMMIT')
            return result
        except BaseException as exc:
            if db.in_transaction:
                # Where the rollback fails, whoever opens the file next does it.
                with contextlib.suppress(sqlite3.Error), _sqlite_use:
                    db.execute('ROLLBACK')
            if isinstance(exc, (sqlite3.Error, UnicodeError)):
                raise self._error('written', exc) from exc
            raise

    def _error(self, what, exc):
        reason = getattr(exc, 'strerror', None) or str(exc)  # of the system's, without the path
        advice = next(advice for words, advice in _ADVICE if re.search(words, reason))
        return StoreError('the store %r could not be %s: %s; %s' % (self.path, what, exc, advice))


class _RequestFolder:
    """Requests as files in a folder, so that nobody who posts one locks the store."""

    def __init__(self, folder):
        self.folder = folder
        self._refused = set()  # names of files that were warned of

    def _path(self, number):
        return os.path.join(self.folder, number + '.json')

    def post(self, request):
        path = self._path(request.number)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.folder, 0o700)
            with open(_make_private(path + '.new'), 'w', encoding='ascii') as file:
                file.write(_json_of(request))
            os.rename(path + '.new', path)
        except OSError as exc:
            raise StoreError('the request %r cannot be left in the folder %r: %s; make that '
                             'folder writable for this user'
                             % (request.verb, self.folder, exc.strerror)) from exc

    def remove(self, request):
        with contextlib.suppress(OSError):    # what stays is removed when it is found again
            os.unlink(self._path(request.number))

    def requests(self, run):
        """Return the requests to a run, also those that have been answered, in their order."""
        try:
            names = sorted(name[:-len('.json')] for name in os.listdir(self.folder)
                           if name.endswith('.json'))
        except OSError:
            return []
        found = [self._read(name) for name in names if name not in self._refused]
        return [one for one in found if one is not None and one[:2] == run[:2]]

    def _read(self, number):
        """Return the request in a file, or None if there is none that could be followed."""
        import json
        path = self._path(number)
        try:
            with _open_own(path, 'request') as file:
                request = Request(**json.loads(file.read().decode('ascii')))
            if set(map(type, request)) <= {str, float} and request.number == number:
                return request
            raise ValueError('its fields are not those of a request')
        except FileNotFoundError:
            return None
        except (StoreError, OSError, ValueError, TypeError) as error:
            self._refused.add(number)
            logger.warning('the request %r is not followed: %s; remove that file', path, error)
            return None


class SqliteStore(_SqliteFile):
    """Keeps runs in one SQLite file: the default store (semantics 6.3, 6.4).

    Beside the file stand ``<path>.lock``, which is made once and stays, and, while somebody
    writes, ``<path>-journal``, which belongs to the file: never delete them. A supervisor whose
    lock file was deleted stores nothing more, and ends.

    Args:
        path: of the file; it is made when first opened for writing, with mode 0600.
        synchronous: ``'full'`` (default): a commit survives a power cut; ``'normal'``: a
            power cut may damage the file on some older file systems; ``'off'``: it may on any,
            and commits are some ten times as fast. None of them lets a killed program lose any.
    """

    def __init__(self, path, synchronous='full'):
        modes = ('full', 'normal', 'off')
        if synchronous not in modes:
            raise ConfigError('synchronous must be one of %s, not %r%s' % (
                ', '.join(map(repr, modes)), synchronous, _nearest(synchronous, modes)))
        super().__init__(path, synchronous)
        self.folder = self.path + '.outcomes'
        self.logs = self.path + '.logs'
        self.results = self.path + '.results'
        self._requests = _RequestFolder(self.path + '.requests')
        self._new_plan = None  # (digest, text), until `begin`

    def __repr__(self):
        return 'SqliteStore(%r)' % (self.path,)

    def runs(self, flow=None, status=None):
        return self._read_on(_run_record, 'SELECT id, {run} FROM runs WHERE flow = coalesce(?, '
                             'flow) AND status = coalesce(?, status) AND id > ? ORDER BY id '
                             'LIMIT ?', flow, status)

    def latest(self, flow, run_id=''):
        if not run_id:
            return next(iter(self.latest_runs(flow, 1)), None)
        rows = self._read('SELECT {run} FROM runs WHERE flow = ? AND run_id = ? '
                          'ORDER BY recovery DESC LIMIT 1', flow, run_id)
        return _run_record(rows[0]) if rows else None

    def latest_runs(self, flow, number):
        return [_run_record(row) for row in self._read(_SQL_LATEST_RUNS, flow, number)]

    def plan(self, run):
        rows = run.plan and self._read('SELECT plan FROM plans WHERE digest = ?', run.plan)
        return rows[0][0] if rows else None

    def keep_plan(self, text):
        self._new_plan = _digest_of(text), text
        return self._new_plan[0]

    def begin(self, run):
        self._keys[run[:2]] = self._write(self._begin, run)
        self._new_plan = None

    def _begin(self, db, run):
        if run[:2] in self._claims:
            # Two supervisors may have come by two paths before one of them stored its run.
            _, file, offsets = self._claims[run[:2]]
            _refuse_living(self, run.flow, run.run_id, file.held[offsets[0]] > 0)
        if self._new_plan is not None:
            db.execute('INSERT OR IGNORE INTO plans VALUES (?, ?)', self._new_plan)
        replaced = db.execute(_SQL_REPLACE_RUN, run + run[:3]).rowcount
        key = (db.execute(_SQL_RUN_KEY, run[:2]).fetchone() or
               db.execute('SELECT coalesce(max(run), 0) + 1 FROM runs').fetchone())[0]
        if not replaced:
            db.execute(_SQL_INSERT_RUN, (key,) + run)
        return key

    def finish(self, run):
        def change(db):
            return db.execute('UPDATE runs SET status = ?, ended = ? WHERE flow = ? AND '
                              'run_id = ? AND recovery = ?', (run.status, run.ended) + run[:3])
        if not self._write(change).rowcount:
            raise _never_begun(run, self)

    def _key(self, run):
        """Return the integer that stands for a run, or None."""
        key = self._keys.get(run[:2])
        if key is None:
            rows = self._read(_SQL_RUN_KEY, *run[:2])
            if rows:
                key = self._keys[run[:2]] = rows[0][0]
        return key

    # Tasks

    def commit(self, run, records, answers=()):
        key = self._key(run)
        if key is None:
            raise _never_begun(run, self)
        records = list(records)
        if records or answers:
            self._write(_commit, (    # one at a time: there may be very many
                (key,) + record[:4] + (key,) + _with_utf8_error(record) for record in records),
                [(key, request.number, _json_of(request), text) for request, text in answers])
        for request, _ in answers:
            self._requests.remove(request)

    def post(self, request):
        request = request._replace(number=_new_number())
        self._requests.post(request)
        return request.number

    def requests(self, run):
        found = self._requests.requests(run)
        known = {request.number for request, _ in self.answers(run)} if found else ()
        for request in found:
            if request.number in known:    # its supervisor was killed before it removed it
                self._requests.remove(request)
        return [request for request in found if request.number not in known]

    def answers(self, run):
        if 'answers' not in self._tables:
            return []
        import json
        return [(Request(**json.loads(request)), answer) for request, answer in self._read(
            'SELECT request, answer FROM answers WHERE run = ? ORDER BY id', self._key(run))]

    def outcomes(self, run, sequence, upto):
        rows = self._read(_SQL_OUTCOMES, self._key(run), sequence, upto)
        return {row[0]: _task_record(row) for row in rows}  # the latest of a path comes last

    def tasks(self, run, upto=None, status=None):
        upto = sys.maxsize if upto is None else upto
        key = self._key(run)
        return self._read_on(_task_record, _SQL_TASKS, upto, status, key, status, key, status)

    def attempts(self, run):
        return self._read_on(_task_record, _SQL_ATTEMPTS, self._key(run))

    def summary(self, run, upto=None):
        key, found, alone = self._key(run), collections.OrderedDict(), {}
        if upto is not None or self._read(
                'SELECT 1 FROM tasks INDEXED BY tasks_place '
                'WHERE run = ? AND (recovery > 0 OR attempt > 1) LIMIT 1', key):
            return super().summary(run, upto)    # some tasks have more than one record
        self._read('PRAGMA threads = 1')    # one that sorts meanwhile, since SQLite 3.8.7
        groups = self._read(
            "SELECT min(id), path, kind, status, count(*), min(started), max(ended) FROM tasks "
            "WHERE run = ? AND kind != 'iteration' GROUP BY path, kind, status", key)
        for row in sorted(groups, key=lambda row: row[0] or 0):
            number, path, kind, status, n, started, ended = row
            if number is None or status not in _TASK_STATUSES or not {
                    type(started), type(ended)} <= {float, type(None)}:
                raise _damaged_record('task', row)
            one = found.setdefault((path, kind), StepSummary(path, kind))
            one.count(status, n, started, ended)
            alone[number] = one
        numbers = [number for number, one in alone.items() if one.n == 1]
        if len(numbers) > _CHUNK:    # then nearly all of it is to be shown
            return super().summary(run)
        rows = self._read('SELECT {task} FROM tasks WHERE id IN (%s) ORDER BY id'
                          % ', '.join(map(str, numbers)))
        if any(status in one.counts for one in found.values() for status in (FAILURE, ACTIVE)):
            rows += self._read('SELECT {task} FROM tasks WHERE run = ? AND status IN (?, ?) '
                               'ORDER BY id', key, FAILURE, ACTIVE)
        for record in map(_task_record, rows):
            if (record.path, record.kind) in found:
                found[record.path, record.kind].show(record)
        return list(found.values())


def _check_folder(path):
    """Refuse a store for whose file there is no folder."""
    folder = os.path.dirname(path)
    try:
        found = stat.S_ISDIR(os.stat(folder).st_mode)
    except PermissionError as error:
        raise StoreError('the folder %r for the store %r may not be looked at; change that, or '
                         'give another store' % (folder, path)) from error
    except OSError:
        found = False
    if not found:
        raise StoreError('there is no folder %r for the store %r; make it, or give another store'
                         % (folder, path))


def _remove_asides(path):
    """Remove the names that a store has only from its making.

    Whoever made it may have been killed between the link and the removal. A file that another
    supervisor is just making is another file, and stays.
    """
    folder, name = os.path.split(path)
    for one in os.listdir(folder):
        aside = os.path.join(folder, one)
        if one.startswith(name + '.new-') and _file_key(aside) == _file_key(path):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)


def _connect_to(path):
    import pathlib
    return _import_sqlite3().connect(pathlib.Path(path).as_uri() + '?mode=rw', uri=True,
                                     timeout=_BUSY, isolation_level=None)


def _rows(db, sql, *parameters):
    """Return all rows of a query, so that no cursor stays.

    An error that a caller keeps would keep a cursor in its traceback, and with the cursor a lock
    on the file, for which the next COMMIT of this process would wait in vain.
    """
    return db.execute(sql, parameters).fetchall()


def _tables(db):
    return {name for name, in _rows(db, 'SELECT name FROM sqlite_master')}


def _look_at_columns(db, tables, damaged):
    """Refuse a file in which the name or the type of a column is another one.

    SQLite takes any word for both, and such a store would fail only when it is written.
    """
    with contextlib.closing(_import_sqlite3().connect(':memory:')) as model:
        for statement in list(_TABLES) + [
                one for table, added in _ADDITIONS if table in tables for one in added]:
            model.execute(statement)
        for table in ('runs', 'tasks', 'plans', 'answers'):
            columns, known = [[row[1:3] for row in _rows(
                one, 'PRAGMA table_info(%s)' % table)] for one in (db, model)]
            if columns[:len(known)] != known:
                raise damaged('its table %r has other columns' % table)


def _commit(db, rows, answers=()):
    db.executemany(_SQL_COMMIT, rows)
    for answer in answers:
        db.execute('DELETE FROM answers WHERE run = ? AND number = ?', answer[:2])
        db.execute('INSERT INTO answers (run, number, request, answer) '
                   'VALUES (?, ?, ?, ?)', answer)


def _json_of(request):
    import json
    return json.dumps(request._asdict())


def _with_utf8_error(record):
    """Return the record with an error that SQLite takes: what names a file need not be UTF-8."""
    if record.error is None:
        return record
    return record._replace(error=record.error.encode('utf-8', 'backslashreplace').decode('utf-8'))


class _Types(dict):
    """{types of the fields of a row: whether a record has such fields}, filled when asked."""

    def __init__(self, record):
        self._fields = [getattr(hint, '__args__', (int if hint is bool else hint,))
                        for hint in record.__annotations__.values()]

    def __missing__(self, types):
        self[types] = len(types) == len(self._fields) and all(
            map(operator.contains, self._fields, types))
        return self[types]


# What a record read must look like: SQLite keeps no sum of what it has stored, and what another
# hand or a failing disk has changed is to be refused here, and not to end in the engine.
_KINDS = frozenset(('leaf', 'container', 'loop', 'timer', 'iteration'))
_TASK_STATUSES = frozenset((READY, ACTIVE, SUCCESS, FAILURE, '', 'over'))
_RUN_STATUSES = frozenset((ACTIVE, 'stopped', SUCCESS, FAILURE))
_TASK_TYPES, _RUN_TYPES = _Types(TaskRecord), _Types(RunRecord)
_new_tuple = tuple.__new__    # for what is made for each task: a third of the time of _make()


def _task_record(row):
    if (not _TASK_TYPES[tuple(map(type, row))] or row[4] not in _KINDS
            or row[5] not in _TASK_STATUSES):
        raise _damaged_record('task', row)
    return _new_tuple(TaskRecord, row[:6] + (row[6] != 0,) + row[7:])


def _run_record(row):
    if not _RUN_TYPES[tuple(map(type, row))] or row[4] not in _RUN_STATUSES:
        raise _damaged_record('run', row)
    return RunRecord._make(row)


def _damaged_record(kind, row):
    return StoreError('the store is damaged: it holds a record of a %s that no sequent has '
                      'written, %r; put a backup in its place, or move it away to start anew'
                      % (kind, row[:6]))


def json_object(text):
    """Return the object in a JSON text of a record, or an empty one for an empty text."""
    if not text:
        return {}
    import json
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreError('the store is damaged: it holds what no sequent has written, %.80r (%s); '
                         'put a backup in its place, or move it away to start anew'
                         % (text, error)) from error


def _import_sqlite3():
    try:
        import sqlite3
    except ImportError as exc:
        raise StoreError("this Python was built without sqlite3 (%s); use another one, or "
                         "store=':memory:'" % exc) from exc
    return sqlite3


# Closing any descriptor of a file drops all POSIX locks that this process has on it, those of
# SQLite as well. So a file is looked at, and made, only while no connection of ours is open to it.
_looking = _in_common('looking', threading.RLock())
_opened = _in_common('opened', collections.Counter())  # (pid, _file_key): connections


class _SqliteUse:
    """Who is inside SQLite: while a thread is, no other one forks, as a child would find the locks
    of SQLite itself taken, for ever.

    ``with use:`` is put around calls of SQLite, which do not keep one another waiting, and ``with
    use.none():`` around a fork, which waits for them, but not longer than PATIENCE seconds: they
    may be waiting for a locked file.
    """

    PATIENCE = 5.0

    def __init__(self):
        self._changed = threading.Condition()
        self._users = 0

    def __enter__(self):
        with self._changed:
            self._users += 1

    def __exit__(self, *exception):
        with self._changed:
            self._users -= 1
            if not self._users:
                self._changed.notify_all()

    @contextlib.contextmanager
    def none(self):
        with self._changed:
            self._changed.wait_for(lambda: not self._users, self.PATIENCE)
            yield


_sqlite_use = _in_common('sqlite_use', _SqliteUse())


def _objection(path):
    """Say why a file is not for us, by its first bytes alone; return '' if it is, or is new.

    SQLite is not asked: it would recover or check-point what belongs to somebody else.
    """
    if not os.path.isfile(path):
        return 'it is not a regular file'
    with open(path, 'rb') as file:
        header = file.read(108)
    if not header.strip(b'\0'):    # an empty file, or its making was cut short
        lost = header and not os.path.exists(path + '-journal')
        return 'it is damaged, and begins with zeros' if lost else ''
    if header[:16] != b'SQLite format 3\0':
        return 'it is not an SQLite database'
    application = int.from_bytes(header[68:72], 'big')
    no_tables = header[100:101] == b'\x0d' and header[103:105] == b'\0\0'
    if application == _APPLICATION or (
            application == 0 and no_tables and not os.path.exists(path + '-wal')):
        return ''
    return "it is another application's database"


def _file_key(file):
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _descriptors():
    for folder in ('/proc/self/fd', '/dev/fd'):
        try:
            return [int(name) for name in os.listdir(folder)]
        except OSError:
            continue
    return range(256)


# Which store ----------------------------------------------------------------------


def find_store(spec, synchronous='full'):
    """Return the store that a flow's ``store`` names.

    Args:
        spec: a path; ``':memory:'``; ``'NAME://...'``, for a store in ``backends/NAME.py``; a
            string ``'package.module:Class'``; a subclass of `Store`; or an instance of one.
        synchronous: for the store at a path: see `SqliteStore`.

    Raises:
        FlowError, FlowTypeError: there is no such store.
    """
    if isinstance(spec, Store):
        return spec
    if isinstance(spec, str):
        if spec == ':memory:':
            return MemoryStore(volatile=True)
        if spec.startswith(':'):
            raise FlowError("no store %r%s (a path is written './%s')"
                            % (spec, _choices(spec, [':memory:']), spec))
        module, colon, name = spec.partition(':')
        if module.isidentifier() and name.startswith('//'):
            return backend_class('store', module, FlowError, ['a path', ':memory:'])(spec)
        if colon and name.isidentifier() and all(map(str.isidentifier, module.split('.'))):
            spec = _named_store(spec, module, name)
    if isinstance(spec, type) and issubclass(spec, Store):
        return spec()
    if isinstance(spec, (str, os.PathLike)):
        return SqliteStore(os.fspath(spec), synchronous)
    raise FlowTypeError("store must be a path, ':memory:', a Store, 'package.module:Class' or "
                        "'NAME://...', not %r" % (spec,))


def _named_store(spec, module, name):
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise FlowError('store %r cannot be loaded (%s: %s); if it is a path, write %r'
                        % (spec, type(error).__name__, error, './' + spec)) from error

# 7 Constructs ####################################################################


class Job:
    """One attempt at one task: what a construct is given to run.

    Made by the driver, which also reads ``process``; a construct keeps what it likes in ``state``.

    Attributes:
        name, sequence, recovery, attempt: say which attempt at which task; ``name`` is the path.
        flow, run_id: the run, by name.
        func, args, kwargs: what to call.
        items: the current loop items, outermost first.
        failures: what a reaction reacts to: (how many tasks failed, the first 100 of them as
            (path, sequence, error)).
        env: every environment variable of the task, by its full name: {str: str}. It is put
            together of two: ``shared``, which is one object for all tasks of a run and not to be
            changed, and ``own``, which counts over it. Where the driver runs, and in what inherits
            its environment, ``shared`` is in os.environ already.
        config: the resolved configuration of the step: {str: value}.
        log: path of the task's log file, or None; worked out when it is first asked for, from
            ``logdir``, if that is given.
        outcome: path where a process that has lost its supervisor leaves its outcome, or None.
        logger_name: name of the logger that the task is told to use.
        epoch: the time of the run when time.monotonic() was 0, or None: see `now`.
        began: when it began, by `now`, where the construct knows that better than by `release`.
        eventor: what an inline function gets as ``eventor=`` when it accepts that, or None.
        task, triggered: the driver's own.
        process: the construct's identity of what it has started, a text that is set by
            `TaskConstruct.prepare` and stored with the start; None: nothing can be found again.
        maker: the `TaskConstruct.maker` of the construct, where that can adopt.
        state: the construct's own.
    """

    __slots__ = ('name', 'sequence', 'recovery', 'attempt', 'flow', 'run_id', 'func', 'args',
                 'kwargs', 'items', 'own', 'shared', 'config', '_log', 'logdir', 'outcome',
                 'logger_name', 'eventor', 'task', 'triggered', 'process', 'state', 'epoch',
                 'began', 'failures', 'maker', '_parcel')

    def __init__(self, name, sequence='1', recovery=0, attempt=1, flow='', run_id='', func=None,
                 args=(), kwargs=None, items=(), env=None, config=None, log=None, outcome=None,
                 logger_name='', eventor=None, task=None, process=None, shared=None, logdir=None,
                 epoch=None, failures=(0, ())):
        self.name = name
        self.sequence = sequence
        self.recovery = recovery
        self.attempt = attempt
        self.flow = flow
        self.run_id = run_id
        self.func = func
        self.args = args
        self.kwargs = kwargs or {}    # Its own: that of its step may be shared.
        self.items = items
        self.failures = failures
        self.own = {} if env is None else env
        self.shared = {} if shared is None else shared
        self.config = {} if config is None else config
        self._log = log
        self.logdir = logdir
        self.outcome = outcome
        self.logger_name = logger_name
        self.eventor = eventor
        self.task = task
        self.triggered = ()  # type: tuple
        self.process = process
        self.maker = ''
        self.state = None
        self.epoch = epoch
        self.began = None  # type: typing.Optional[float]
        self._parcel = None    # of an unpacked job, until `load`

    def __repr__(self):
        return '<Job %s %s>' % (self.name, self.sequence)

    @property
    def env(self):
        return dict(self.shared, **self.own)

    def now(self):
        """Return the time by the clock of the run, which nobody sets; from any process here."""
        return time.time() if self.epoch is None else self.epoch + time.monotonic()

    def identity(self):
        """Return ``process`` as it is stored, so that `made_by` finds the construct again."""
        if not (self.process and self.maker):
            return self.process
        import json
        return json.dumps({'construct': self.maker, 'identity': self.process})

    @property
    def log(self):
        if self._log is None and self.logdir is not None:
            self._log = log_path(self.logdir, self.flow, self.run_id, self.name, self.sequence,
                                 self.recovery, self.attempt)
        return self._log

    @log.setter
    def log(self, path):
        self._log = path

    def load(self, program=False):
        """Take the function and what it is given out of the parcel; import what they need.

        Args:
            program: whether this process has not loaded the module that Python was started with.
        """
        parcel, self._parcel = self._parcel, None
        if parcel is None:
            return
        call, main, level = parcel
        with _loading_only():
            if main is not None:
                _load_program(program, *main)
            for name, value in unpickled(call).items():
                setattr(self, name, value)
        install_logging(level)


class Port(abc.ABC):
    """The driver's side of a construct: what it is given when a run begins.

    Attributes:
        stopping: True once a signal has ended the run (semantics 8.3).
        config: the resolved configuration of the flow: {str: value}.
        tender: what starts children from a small process, or None: see backends/tender.py.
        volatile: whether the store keeps nothing that another supervisor could go on with.
    """

    stopping = False
    config = {}  # type: dict
    tender = None  # type: typing.Any
    volatile = False

    @abc.abstractmethod
    def done(self, job, outcome):
        """Take the `Outcome` of a released job, once. From any thread; does not block."""

    @abc.abstractmethod
    def watch(self, fd, callback):
        """Call ``callback()`` in the driver's thread whenever ``fd`` is readable.

        At the end of a stream too, again and again until `unwatch`. From the driver's thread.
        """

    @abc.abstractmethod
    def unwatch(self, fd):
        """Stop watching ``fd``, before it is closed. From the driver's thread."""

    def moved(self, job):  # noqa: B027 (optional)
        """Take note that ``job.process`` says more now: it is stored with the next commit."""

    def began(self, job, when):
        """Take note that a released job has begun, where the construct ``tells_begin``.

        Args:
            when: seconds since the epoch, by `Job.now`. From any thread.
        """
        job.began = when

    def call(self, function):
        """Have the driver's thread call ``function()`` soon. From any thread; does not block.

        An exception that it raises ends the run as an internal error.
        """
        raise NotImplementedError

    def output(self, job, content):
        """Append what a job has written elsewhere, bytes, to its log, if it has one.

        The driver relays it from there, if the construct ``relays``.

        Raises:
            OSError: the log cannot be written.
        """
        if _has_log(job):
            fd = _open_log(job.log)
            try:
                _write(fd, content)
            finally:
                os.close(fd)

    def private_fds(self):
        """Return the driver's descriptors that a forked child must close (store, lock ...)."""
        return []


class Sight(typing.NamedTuple):
    """What `TaskConstruct.look` sees of a job that an earlier supervisor has started.

    Attributes:
        state: ``running``, also where it still waits for its turn; ``ended``; ``never_began``:
            nothing of it has run or ever will; ``unknown``: that cannot be seen from here.
        outcome: the `Outcome` that it left, if it ended with one.
        began: when it began, in seconds since the epoch, by the clock of this host; None: unknown.
        text: how messages name what runs, such as ``process 4711``.
    """

    state: str
    outcome: typing.Optional[Outcome] = None
    began: typing.Optional[float] = None
    text: str = 'something'


class TaskConstruct(abc.ABC):
    """Runs the functions of steps: the base of all task constructs, and how to write one.

    The driver makes at most one instance of a class for each run and calls, in this order:

    1. `open`, once, and `check`, for each step that uses the construct, before anything starts;
    2. for each attempt at a task `prepare`, then, once the start is in the store, `release`,
       with all others of the same commit; or `withdraw`, when it is not to start after all;
    3. `settle`, once the outcome that came by ``port.done`` is in the store;
    4. `close`, once, however the run ended.

    After a crash, `look` is asked about what an earlier supervisor has started, before `open`, and
    `adopt` takes over what still runs.

    Every method is called from the driver's thread and must not block it; ``port.done`` may be
    called from any. A construct has no opinion about statuses: whatever becomes of a released
    job, exactly one `Outcome` is reported for it. ``success`` means that the function returned;
    anything else is a ``failure`` whose ``error`` is a sentence that names the cause. `run_job`
    calls a function and makes an outcome of what happens, wherever that may be.

    The least that works::

        class HereConstruct(TaskConstruct):
            inline = True

            def release(self, jobs):
                for job in jobs:
                    self.port.done(job, run_job(job))

    It is used by ``config={'task_construct': HereConstruct}``; or an instance of it, or the
    string ``'package.module:HereConstruct'``.
    """

    can_kill = False   # kill() works, so timeouts are honoured
    can_adopt = False  # tasks outlive the supervisor: see look() and adopt()
    can_place = False  # tasks have a folder and environment of their own: config cwd and env
    relays = False     # the output of tasks goes to job.log, whence the driver relays it
    inline = False     # release() runs the function and calls port.done before it returns
    queues = False     # takes more jobs than it runs at one time: see slots, ahead and recall()
    leaves = False     # what it runs goes on when the supervisor stops; needs can_adopt
    tells_begin = False    # calls port.began(): a released job waits elsewhere, without a timeout
    cadence = 0.0      # seconds between two calls of poll(), which polls; 0: see poll()

    @property
    def slots(self):
        """How many jobs run at one time, if it ``queues``; may be an attribute, too."""
        return 0

    @property
    def ahead(self):
        """How many jobs more it takes, so that it is kept busy: up to config ``group_commit``
        seconds of work. It may change with every job that ends."""
        return 0

    @property
    def polls(self):
        """Whether `poll` has something to see to just now; may be an attribute, too."""
        return False

    @property
    def maker(self):
        """What `find_construct` finds it by, stored with each identity, so that a recovery can
        look for what it has started where the step is gone; may be an attribute, too."""
        kind = type(self)
        started = kind.__module__ in _MAIN_NAMES or kind.__module__ == _common.program
        return '%s:%s' % ('__main__' if started else kind.__module__, kind.__qualname__)

    def open(self, port):
        """Begin to work for a run. ``port`` is the driver's side of it, a `Port`.

        Raises:
            ConstructError, OSError: it cannot work here; nothing is started then.
        """
        self.port = port

    def check(self, name, func, args, kwargs, config):  # noqa: B027 (optional)
        """Refuse, before the run, a step that cannot be run.

        Args:
            name: path of the step, for the message.
            func, args, kwargs: what it is going to call.
            config: its resolved configuration.

        Raises:
            ConstructError: names the step, says why it cannot be run and what to do.
        """

    def prepare(self, job):  # noqa: B027 (optional)
        """Make ready to start; nothing of the user's may run yet.

        Sets ``job.process``, if it ``can_adopt``: an identity of what it starts, which is stored
        with the start, so that a later supervisor can find what a dead one left running.

        Raises:
            ConstructError: it cannot be started at all, for what it is given.
            OSError: it cannot be started now, for want of processes or descriptors.
        """

    @abc.abstractmethod
    def release(self, jobs):
        """Run prepared jobs, whose starts are stored; call ``port.done(job, outcome)`` for each.

        Args:
            jobs: those of one commit that are this construct's; if it is ``inline``, one.
        """

    def withdraw(self, job):  # noqa: B027 (optional)
        """Forget a prepared job that is not going to be released: it must never run."""

    def settle(self, job):  # noqa: B027 (optional)
        """Clear away what is left of a job whose outcome is in the store.

        Until then, what runs the job must be able to leave the outcome elsewhere, if it can. Also
        called before `open`, for what `look` has found ended with an outcome.
        """

    def kill(self, job, force):
        """End a released job, with all that it has started. Needs ``can_kill``.

        Args:
            force: False asks it to end (SIGTERM), True does not ask (SIGKILL).

        The outcome still comes by ``port.done``, ``interrupted`` if ``port.stopping``; nothing of
        the job runs any more when it does.
        """
        raise ConstructError('%s cannot end what it runs' % type(self).__name__)

    def recall(self, job):
        """Keep a released job that is still queued from beginning. Needs ``queues``.

        Its outcome comes by ``port.done``: ``lost``, or ``interrupted`` if ``port.stopping``. Of
        one that has begun, nothing changes.
        """
        raise ConstructError('%s queues nothing' % type(self).__name__)

    def look(self, job):
        """Return a `Sight` of what an earlier supervisor has started. Needs ``can_adopt``.

        Called before `open`, for any run, also where nothing is going to run; changes nothing
        but ``process`` and ``log`` of the job, where these are known better now.

        Args:
            job: ``process`` and ``outcome`` are those of the earlier attempt; it has no function.
        """
        return Sight('unknown')

    def adopt(self, job):
        """Watch over a job that `look` found running; its outcome comes by ``port.done``.

        If it has ended meanwhile, the outcome may come at once. It is ``lost``, if nothing is
        known of it.
        """
        raise ConstructError('%s cannot adopt what it runs' % type(self).__name__)

    def stopped(self, job):
        """Return the pids of the processes that a signal has stopped, so that a released job does
        not go on: the driver warns of them."""
        return []

    def goes_on(self, job):
        """Return whether the function of an abandoned job still runs, also after `close`."""
        return False

    def poll(self):  # noqa: B027 (optional)
        """See to what cannot wake the driver.

        While something runs, `poll` is called in every turn of the loop; if the construct `polls`,
        at least every ``sleep_between_loops`` seconds. So it should cost little. With a
        ``cadence`` it is called that often, and no more often.
        """

    def rest(self):  # noqa: B027 (optional)
        """Put back what a task that has ended has left in this process: another one starts here.

        Called before a task of a construct that is not ``inline`` is prepared.
        """

    def close(self):  # noqa: B027 (optional)
        """End the work for a run: nothing that was prepared, released or settled may be left.

        What was released goes on, if the construct ``leaves`` it; ``port.done`` is over.
        """


# Pickles for the store ------------------------------------------------------------
#
# Loop items and results may be of classes of the module that was started. That module is called
# __main__ where Python runs its file, __mp_main__ in a child that was spawned there, and flow or
# jobs.flow where the command line loads it. In the store it is always __main__, so that a recovery
# can be started in another way than the run.

_in_common('program', '__main__')    # the name in sys.modules of the module that was started
_MAIN_NAMES = frozenset(('__main__', '__mp_main__'))    # what Python calls it


def pickled(value):
    """Return a pickle of a value in which the module that was started is called ``__main__``."""
    content = pickle.dumps(value, protocol=4)
    if type(value) in _PLAIN_TYPES and type(value) is not type:
        return content
    found = _names_in(value, content, (_MAIN_NAMES | {_common.program}) - {'__main__'})
    if not found:
        return content
    # These classes and functions come first, under their names in the store. The pickler then
    # takes each of them for one that it has written already.
    head = [pickle.PROTO, b'\x04']
    for one in found:
        head += [_pickled_text('__main__'), _pickled_text(one.__qualname__), pickle.STACK_GLOBAL,
                 pickle.MEMOIZE, pickle.POP]
    file = io.BytesIO()
    pickler = pickle.Pickler(file, 4)
    pickler.memo = {id(one): (number, one) for number, one in enumerate(found)}
    pickler.dump(value)
    return b''.join(head) + file.getvalue()[len(b''.join(head[:2])):]


def _pickled_text(text):
    text = text.encode('utf-8', 'surrogatepass')
    return pickle.BINUNICODE + len(text).to_bytes(4, 'little') + text


def _names_in(value, content, modules):
    """Return the classes and functions of some modules that the pickle of a value names.

    Args:
        content: the pickle.
        modules: names of modules.
    """
    if not any(module.encode('utf-8') in content for module in modules):
        return []
    finder = _NameFinder(modules)
    finder.dump(value)
    return list(finder.found.values())


class _NameFinder(pickle.Pickler):
    """Notes which classes and functions of some modules a pickle names: {id: one}."""

    def __init__(self, modules):
        super().__init__(io.BytesIO(), 4)
        self._modules = modules
        self.found = {}  # type: typing.Dict[int, typing.Any]

    def persistent_id(self, thing):
        if _is_named_in(thing, self._modules):
            self.found[id(thing)] = thing


def _is_named_in(thing, modules):
    # Not isinstance(): a proxy may have to make what it stands for to tell its class.
    return issubclass(type(thing), (type, types.FunctionType)) and thing.__module__ in modules


# What runs: the job, and its context --------------------------------------------


class Context(collections.namedtuple('Context', (
        'name', 'sequence', 'recovery', 'attempt', 'run_id', 'flow', 'items', 'item',
        'logger_name', 'failures', 'failure_count'))):
    """Where a function is running: what `current` returns.

    ``items`` are the current loop items, outermost first, ``item`` the last of them or None. In a
    reaction, and in all that is inside one, ``failures`` are the first 100 failures that its
    requirement mentions, as (path, sequence, error), and ``failure_count`` says how many there are
    (semantics 12.3). ``SEQUENT_FAILURES`` has them too, one line ``path sequence`` each, and
    ``SEQUENT_FAILED_COUNT`` their number.
    """

    __slots__ = ()


Context.__new__.__defaults__ = (), 0    # of ``failures`` and ``failure_count``

_running = threading.local()  # .job: the job that this thread runs
_child_job = None             # the job for which this process was made; all its threads see it


def current():
    """Return the `Context` of the task that is running here.

    In a process task it works in every thread; otherwise in the thread that runs the task.

    Raises:
        LookupError: no task is running here.
    """
    job = getattr(_running, 'job', None) or _child_job
    if job is None:
        raise LookupError('no task is running here: current() is for functions that steps call')
    return Context(job.name, job.sequence, job.recovery, job.attempt, job.run_id, job.flow,
                   tuple(job.items), job.items[-1] if job.items else None, job.logger_name,
                   job.failures[1], job.failures[0])


def run_job(job, **more):
    """Call the function of a job and return what came of it as an `Outcome`; never raises.

    Args:
        job: the `Job`; `current` tells of it meanwhile.
        more: further keyword arguments for the function.
    """
    before = getattr(_running, 'job', None)
    _running.job = job
    process = os.getpid()
    try:
        if more:
            result, error = job.func(*job.args, **job.kwargs, **more), None
        else:    # which spares a copy of kwargs
            result, error = job.func(*job.args, **job.kwargs), None
        if type(result) is types.CoroutineType and _run_coroutine and _is_async(job.func):
            result = _run_coroutine(result)
    except BaseException as raised:
        result, error = None, raised
    finally:
        _running.job = before
    if os.getpid() != process:
        _end_fork(error)
    if error is None and result is None:
        return SUCCEEDED
    try:
        return _outcome(job, result, error)
    except BaseException as raised:    # by an object of the user's that was shown or pickled
        if isinstance(raised, KeyboardInterrupt) and _in_main_thread():
            raise
        return Outcome(FAILURE, 'its outcome cannot be told, as %s was raised by %s' % (
            class_name(type(raised)), class_name(type(result if error is None else error))))


def _in_main_thread():
    return threading.current_thread() is threading.main_thread()


def _outcome(job, result, error):
    """Return the outcome of a function that returned a result, or raised an error."""
    if error is None:
        if type(result) in _UNFINISHED:
            return Outcome(FAILURE, 'its function returned %s, whose work was not done: %s; let '
                           'the function do that work, or give an async function itself as func'
                           % (_UNFINISHED[type(result)], _shown(repr, result)))
        if not job.config.get('keep_result', True):
            return SUCCEEDED
        try:
            return Outcome(SUCCESS, result=pickled(result))
        except _ANY_FAILURE as problem:
            return Outcome(
                SUCCESS, result=pickle.dumps(_shown(repr, result), protocol=4),
                warning='its result cannot be pickled (%s), its repr is kept instead'
                        % describe_error(problem))
    if isinstance(error, SystemExit):
        known = error.code is None or isinstance(error.code, int)
        if known and not error.code:    # It is a way to return (semantics 3.1).
            return Outcome(SUCCESS, exited=True)
        text = 'code %d' % int(error.code) if known else _shown(str, error.code)
        return _failure(error, 'SystemExit: ' + text)._replace(
            code=int(error.code) if known else 1)
    if isinstance(error, ProgramError):
        short = error.short and isinstance(job.func, Command)    # Nothing else has run.
        return _failure(error)._replace(error=_shown(str, error), trace='', code=error.code,
                                        lost=short, short=short)
    return _failure(error)


SUCCEEDED = Outcome(SUCCESS)
# Results of functions that have returned without doing their work.
_UNFINISHED = {
    types.GeneratorType: 'a generator', types.CoroutineType: 'a coroutine',
    types.AsyncGeneratorType: 'an async generator',
    type(contextlib.contextmanager(iter)(())): 'a context manager of contextlib'}
# By the flags of its code (as in inspect): what a call makes of a function instead of running it.
_CALLS_MAKE = {0x20: 'a generator', 0x80: 'a coroutine', 0x200: 'an async generator'}
_MAKES_ANY = sum(_CALLS_MAKE)
# What the user's objects may raise when they are shown or pickled: sys.exit() there must end
# neither the thread that runs the task nor the supervisor.
_ANY_FAILURE = (Exception, SystemExit)


def made_by_call(func):
    """Return what a call of a function makes instead of running it, or None: ``'a generator'``,
    ``'a coroutine'``, ``'an async generator'``. Whether a decorator runs it, nobody can know.
    """
    function = _called_function(func)
    flags = function.__code__.co_flags if type(function) is types.FunctionType else 0
    return _CALLS_MAKE.get(flags & _MAKES_ANY)


def _called_function(func):
    """Return the function that partials, methods and objects with ``__call__`` call."""
    while True:
        if isinstance(func, functools.partial):
            func = func.func
        elif isinstance(func, types.MethodType):
            func = func.__func__
        else:
            call = type(func).__call__
            return call if type(call) is types.FunctionType else func


def _is_async(func):
    """Whether a function that has returned a coroutine is an async one, decorated or not."""
    import inspect
    function = _called_function(func)
    return any(map(inspect.iscoroutinefunction, (
        func, function, _called_function(inspect.unwrap(function)))))


def _end_fork(error):
    """End a process that the function forked and that came back from it, as Python would.

    It is not the task: it must not go on as if it were the one that runs it.
    """
    code = 0 if error is None else 1
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        sys.stderr.write(_failure(error).trace)
    flush_streams()
    os._exit(code & 255)


def _failure(error, sentence=None):
    import traceback
    frames = error.__traceback__ and error.__traceback__.tb_next  # without the library's own
    try:
        trace = ''.join(traceback.format_exception(type(error), error, frames))
    except _ANY_FAILURE as another:
        trace = '(its traceback cannot be shown: %s)\n' % type(another).__name__
    return Outcome(FAILURE, sentence or describe_error(error), _encodable(trace),
                   kinds=tuple(map(class_name, type(error).__mro__)))


def class_name(kind):
    """Return the full name of a class: ``'builtins.ValueError'``."""
    module = '__main__' if kind.__module__ == '__mp_main__' else kind.__module__
    return '%s.%s' % (module, kind.__qualname__)


def describe_error(error):
    """Return ``'ValueError: text'``, whatever the exception does when it is asked."""
    text = _shown(str, error)
    name = _encodable(type(error).__name__)
    return '%s: %s' % (name, text) if text else name


def _shown(show, value):
    try:
        return _encodable(show(value))
    except _ANY_FAILURE as error:
        return '<%s that cannot be shown: %s>' % (type(value).__name__, type(error).__name__)


def _encodable(text):
    text = str.__str__(text)    # of no class of the user's
    if _is_ascii(text):
        return text
    return text.encode('utf-8', 'backslashreplace').decode('utf-8')  # a lone surrogate is none


# Parameters ---------------------------------------------------------------------

# What `parameter` has declared in this process. It stands here for the children that are sent the
# values, and for what is masked wherever errors are kept or told.

_BOOLEANS = {'1': True, 'true': True, 'yes': True, 'on': True,
             '0': False, 'false': False, 'no': False, 'off': False}


def _boolean(text):
    if text.lower() not in _BOOLEANS:
        raise ValueError('none of %s' % ', '.join(sorted(_BOOLEANS)))
    return _BOOLEANS[text.lower()]


def parameter_variable(name):
    """Return the environment variable that gives a parameter its value."""
    return _environment_text('SEQUENT_PARAM_' + name.upper())


class Parameter:
    """A parameter as a flow's module declared it, with the value it has.

    ``default`` is `...` if it is required. ``text`` is the value as it is recorded, None for None.
    ``source`` says where it came from: ``--set``, the name of a variable, ``default`` and the
    like; None: nowhere, while a module is loaded only to learn what it declares.
    """

    __slots__ = ('name', 'default', 'convert', 'help', 'secret', 'value', 'text', 'source')

    def __init__(self, name, default, convert, help, secret):
        self.name = name
        self.default = default
        self.convert = convert
        self.help = help
        self.secret = secret
        self.value = self.text = self.source = None

    def default_text(self):
        return None if self.default is None else str(self.default)

    def check_default(self):
        """Refuse a default that cannot be recorded as a text and read back."""
        if self.default is None or self.default is ... or self.default.__class__ is str:
            return
        try:
            found = self.read(self.default_text())
            same, why = bool(found == self.default), 'gives %s' % _shown(repr, found)
        except Exception as error:
            same, why = False, 'raises %s' % describe_error(error)
        if not same:
            shown = ('***', '***', '***') if self.secret else (
                _shown(repr, self.default), _shown(repr, _shown(str, self.default)), why)
            raise FlowError('parameter %r: its default %s would be recorded as the text %s, of '
                            'which its type does not make the same again (%s); give a type that '
                            'does' % ((self.name,) + shown))

    def read(self, text):
        """Return the value that a text stands for; what ``convert`` raises is let through."""
        return None if text is None else self.convert(text)

    def equals(self, text):
        """Whether a text stands for the value that there is."""
        if text == self.text or text is None or self.text is None:
            return text == self.text
        try:
            return bool(self.read(text) == self.value)
        except Exception as error:
            logger.debug('parameter %r: %r cannot be read any more: %s', self.name, text, error)
            return False

    def how(self):
        """Return what to do for it to have a value."""
        variable = parameter_variable(self.name)
        if self.secret:
            return ('set %s (or give --set %s=..., which others can see in the list of processes)'
                    % (variable, self.name))
        return 'give --set %s=... or %s' % (self.name, variable)


class _Parameters:
    """The parameters declared in this process, in order, and the values given for them.

    Attributes:
        given: {name: (text, source)}: what counts before the environment and defaults.
        lenient: a required one that is missing is None: the module is only looked at.
        forced: names of those whose recorded values no longer hold.
        secrets: the texts to be masked, the longest first; ``sent_secrets``: those of them that
            the supervisor of this process knows.
    """

    def __init__(self):
        self.declared = collections.OrderedDict()  # type: typing.Dict[str, Parameter]
        self.given = {}  # type: typing.Dict[str, typing.Tuple[typing.Optional[str], str]]
        self.lenient = False
        self.forced = frozenset()  # type: typing.Collection[str]
        self.secrets = []  # type: typing.List[str]
        self.sent_secrets = []  # type: typing.List[str]

    def declare(self, one):
        """Give a `Parameter` its value and keep it, in place of an earlier one of its name.

        Raises:
            FlowError: another one has its name in capitals.
            ParameterError: it is missing, or its text is refused.
        """
        for other in self.declared:
            if other != one.name and other.upper() == one.name.upper():
                raise FlowError('parameters %r and %r would have the same environment variable, '
                                '%s; rename one' % (other, one.name, parameter_variable(other)))
        one.text, one.source = self._find(one)
        self.declared[one.name] = one
        if one.source is None and not self.lenient:
            raise ParameterError('parameter %r is missing: %s%s' % (
                one.name, one.how(), self._mistyped(one.name)))
        if one.source == 'default' and one.default.__class__ is not str:
            one.value = one.default
        else:
            self._read(one)
        self.note_secrets()

    def _find(self, one):
        """Return (text, source); what says something first counts."""
        variable = parameter_variable(one.name)
        if one.name in self.given:
            return self.given[one.name]
        if variable in os.environ:
            return os.environ[variable], variable
        return (None, None) if one.default is ... else (one.default_text(), 'default')

    def _mistyped(self, name):
        near = [other for other, (_, source) in self.given.items() if source == '--set'
                and other not in self.declared and _nearest(name, [other])]
        return '; --set gives %r' % near[0] if near else ''

    def _read(self, one):
        try:
            one.value = one.read(one.text)
            return
        except Exception as error:
            refusal = type(error).__name__ if one.secret else describe_error(error)
        # Not within the handler: the error may say what a secret value is.
        if self.lenient and one.source == 'recorded':
            one.text = one.source = None
        else:
            raise ParameterError('parameter %r: %s (%s) is refused: %s' % (
                one.name, 'its value' if one.secret else repr(one.text), one.source, refusal))

    def note_secrets(self):
        """Find out what is to be masked."""
        found = set(self.sent_secrets)
        for one in self.declared.values():
            for text in (one.text, one.value) if one.secret else ():
                if isinstance(text, str) and len(text) > 2:    # shorter ones are everywhere
                    found.update((text, _encodable(text), repr(text)[1:-1],
                                  text.replace("'", """'"'"'""")))    # as `shlex` quotes it
        self.secrets = sorted(found, key=len, reverse=True)

    def missing(self):
        return [one for one in self.declared.values() if one.source is None]

    def compare(self, run, recorded):
        """Refuse to go on with a run whose parameters had other values: what is done used them."""
        for name, text in recorded.items():
            one = self.declared.get(name)
            if one is None:
                logger.info('parameter %r, recorded with the run, is not declared now', name)
            elif isinstance(text, dict) and text.get('given') and one.source == 'default':
                raise ParameterError(
                    'run %r of flow %r was given a value for the secret parameter %r, which is '
                    'not recorded: %s' % (run.run_id, run.flow, name, one.how()))
            elif one.secret or isinstance(text, dict) or one.equals(text):
                continue
            elif name in self.forced:
                logger.warning('parameter %r is %r from now on; it was %r', name, one.text, text)
            else:
                raise ParameterError(
                    'run %r of flow %r has %r for parameter %r, which is %r now (%s); finished '
                    'steps ran with the former: give it again by %s, or start a new run' % (
                        run.run_id, run.flow, text, name, one.text, one.source,
                        parameter_variable(name)))
        for name in self.declared:
            if name not in recorded:
                logger.info('parameter %r is new: it was not recorded with the run', name)

    def recorded(self):
        """Return what a run keeps of them."""
        return {one.name: {'secret': True, 'given': one.source != 'default'} if one.secret
                else one.text for one in self.declared.values()}


_parameters = _Parameters()


def parameter(name, default=..., type=None, help='', secret=False):
    """Declare a parameter of the flows of a module, and return its value.

    It comes from the first of these that gives one: ``--set NAME=VALUE`` of the command line, the
    environment variable ``SEQUENT_PARAM_<NAME>`` (in capitals), the default. It is recorded with
    each run that begins afterwards. A recovery goes on with the recorded values: on the command
    line they hold; where the program itself recovers, another value is a `ParameterError`.

    Args:
        name: an identifier.
        default: its value when none is given; without a default it must be given. None: there
            need not be one. A str is a text like one that is given: ``type`` is called with it.
        type: makes a value of a text, like ``int``. Without it the type of the default counts
            if that is a str, int, float or bool, else str. For ``bool`` the texts are true,
            false, yes, no, on, off, 1 and 0. ``type(str(default)) == default`` must hold.
        help: says what it is for, on the command line.
        secret: its value is not recorded, and ``***`` stands for it in the errors and messages
            that the library keeps and shows. A recovery needs it again: best in the environment.

    Raises:
        ParameterError: it is missing, or ``type`` refuses what is given.
        FlowError, FlowTypeError: it cannot be declared so.
    """
    _must_be(isinstance(name, str), 'the name of a parameter', 'a str', name)
    _must_be(name.isidentifier(), 'the name of a parameter', 'an identifier', name, FlowError)
    if type is not None and not callable(type):
        raise FlowTypeError('parameter %r: type must make a value of a text, like int, not be %r'
                            % (name, type))
    made = None if type is None else made_by_call(type)
    if made is not None:
        raise FlowTypeError('parameter %r: a call of its type %r makes %s, not a value; give a '
                            'function that returns the value' % (name, type, made))
    _must_be(isinstance(help, str), 'parameter %r: help' % name, 'a str', help)
    if type is None:
        type = default.__class__ if default.__class__ in (int, float, bool) else str
    one = Parameter(name, default, _boolean if type is bool else type, help, bool(secret))
    one.check_default()
    _parameters.declare(one)
    return one.value


def pack_parameters(secrets=True):
    """Return the values of parameters, and how the module that was started is called: for
    `take_parameters` elsewhere.

    Args:
        secrets: whether the values of secret parameters are among them.
    """
    texts = {one.name: one.text for one in _parameters.declared.values()
             if one.source is not None and (secrets or not one.secret)}
    return texts, _parameters.secrets if secrets else [], _common.program


def take_parameters(packed):
    """Have parameters that this process is to declare take the values of its supervisor."""
    if packed == pack_parameters():
        return    # it is the supervisor, or a fork of it
    texts, _parameters.sent_secrets, _common.program = packed
    _parameters.given = {name: (text, 'supervisor') for name, text in texts.items()}
    _parameters.note_secrets()


def masked(text):
    """Return a text, or None, with ``***`` for the value of each secret parameter."""
    if text:
        for secret in _parameters.secrets:
            text = text.replace(secret, '***')
    return text


# All but the newline; also what turns the direction of writing.
_CONTROLS = '[\0-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]'


def printable(text):
    """Return a text as the library prints it: secrets masked, control characters escaped.

    A name, an error, a loop item or the last line of a log must not command the terminal of the
    operator. Newlines stay. What tasks print is relayed unchanged (semantics 5.3), and their log
    files keep what was written; but sentences of the library that quote it are escaped.
    """
    text = masked(text)
    if text.isprintable():    # as nearly all texts: then the pattern is not even compiled
        return text
    return re.sub(_CONTROLS, lambda one: ascii(one.group())[1:-1], text)


def _clean_record(record):
    """Make what a log record of the library says `printable`: a filter of its logger."""
    try:
        said = record.getMessage()
    except Exception:
        return True    # The handlers say what is wrong with the record.
    text = printable(said).replace('\n', '\n    ')    # so that none looks like another record
    if text != said:
        record.msg, record.args = text, ()
    if record.exc_info:
        trace = logging.Formatter().formatException(record.exc_info)
        record.exc_text = printable('    ' + trace.replace('\n', '\n    '))
        if record.exc_text != trace:
            record.exc_info = None
    return True


logger.addFilter(_clean_record)


# Standard streams ---------------------------------------------------------------
#
# The log of cron may be on a full disk, a terminal may be closed, the reader of a pipe may have
# ended. Without this section, print() in a task would then raise, and the interpreter would end
# with 120, because what it cannot write remains in a buffer.


class _LastingStream:
    """A standard stream, or its buffer, that drops what cannot be written, after one warning.

    Attributes:
        given: the stream as it was; None if it was closed.
        plain: the stream that is written to, which raises OSError.
    """

    def __init__(self, given):
        self.given = self.plain = given
        self._broken = False
        if given is None:
            self.plain = open(os.devnull, 'w', encoding='utf-8', errors='backslashreplace')
        if hasattr(self.plain, 'buffer'):
            self.buffer = type(self)(self.plain.buffer)

    def __getattr__(self, name):
        return getattr(self.plain, name)

    def write(self, content):
        try:
            return self.plain.write(content)
        except OSError as error:
            self._drop(error)
            return len(content)

    def writelines(self, lines):
        for line in lines:
            self.write(line)

    def flush(self):
        try:
            self.plain.flush()
        except OSError as error:
            self._drop(error)

    def give_back(self):
        if self.given is None:
            self.plain.close()
        return self.given

    def _drop(self, error):
        _discard(self.plain)
        if not self._broken:
            self._broken = True    # first, because the warning may be written here
            logger.warning('%r cannot be written (%s): what is printed there is lost',
                           getattr(self.plain, 'name', self.plain), error.strerror or error)


def _discard(stream):
    """Empty the buffer of a stream that cannot be written, so that no later flush fails."""
    with contextlib.suppress(OSError, ValueError, AttributeError), open(os.devnull, 'w') as void:
        fd = stream.fileno()
        kept = os.dup(fd)
        try:
            os.dup2(void.fileno(), fd)
            stream.flush()
        finally:
            os.dup2(kept, fd)
            os.close(kept)


class _StandardStreams:
    """Lets sys.stdout and sys.stderr last while flows run, also several in threads."""

    def __init__(self):
        self._users = 0
        # A child replaces the streams, and must not close with them what are its 1 and 2 now.
        self._kept = {}

    def __enter__(self):
        with start_lock:
            self._users += 1
            for name in ('stdout', 'stderr'):
                if not isinstance(getattr(sys, name), _lasting):
                    self._kept[name] = _lasting(getattr(sys, name))
                    setattr(sys, name, self._kept[name])

    def __exit__(self, *error):
        ours = [(name, getattr(sys, name)) for name in ('stdout', 'stderr')
                if isinstance(getattr(sys, name), _lasting)]
        for _, stream in ours:
            with contextlib.suppress(ValueError):    # a task has closed it
                stream.flush()
        with start_lock:
            self._users -= 1
            if not self._users:
                for name, stream in ours:
                    setattr(sys, name, stream.give_back())


# From the first descriptor of a child to its start.
start_lock = _in_common('start_lock', threading.RLock())
_lasting = _in_common('LastingStream', _LastingStream)
lasting_streams = _in_common('lasting_streams', _StandardStreams())


# Log files ----------------------------------------------------------------------

_NAME_BYTES = frozenset(b'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-')
_LOG_FORMAT = '[ %(asctime)s ][ %(levelname)s ][ %(message)s ]'

# The descriptors that the library has open here for its tasks; forked children close them.
own_fds = _in_common('private_fds', set())  # type: typing.Set[int]


@functools.lru_cache(maxsize=4096)
def _file_name(name):
    """Return a name as part of a path: percent-encoded, and cut and hashed over 100 bytes."""
    raw = name.encode('utf-8', 'surrogatepass')
    dots = len(raw) - len(raw.lstrip(b'.'))
    text = '%2E' * dots + ''.join(
        chr(byte) if byte in _NAME_BYTES else '%%%02X' % byte for byte in raw[dots:])
    if len(text) <= 100:
        return text
    import hashlib
    return '%s-%s' % (text[:83], hashlib.sha256(raw).hexdigest()[:16])


def log_path(logdir, flow, run_id, name, sequence, recovery, attempt):
    """Return ``<logdir>/<flow>/<run_id>/<step>.<sequence>.<recovery>.<attempt>.log``.

    All but letters, digits and ``._-`` is percent-encoded, leading dots too; a part of more than
    100 bytes is cut and given a hash.
    """
    return '%s/%s/%s/%s.%s.%d.%d.log' % (
        logdir, _file_name(flow), _file_name(run_id), _file_name(name), _file_name(sequence),
        recovery, attempt)


def _make_folder(path):
    """Make a folder that is its owner's only, with those above it that are missing."""
    try:
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # under any umask
    except FileExistsError:
        pass  # if it is no folder, what is to go into it says so
    except FileNotFoundError:
        above = os.path.dirname(path)
        if above in ('', path):
            raise
        _make_folder(above)
        _make_folder(path)


def _open_log(path, access=os.O_WRONLY):
    """Open a log file to append to it, for its owner only.

    Raises:
        OSError: also where somebody has planted what is no file of ours: a link, a pipe.
    """
    flags = access | os.O_APPEND | _AS_IT_IS
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileNotFoundError:
        _make_folder(os.path.dirname(path))
        return _open_log(path, access)
    except FileExistsError:
        fd = os.open(path, flags)
        info = os.fstat(fd)
        if stat.S_ISREG(info.st_mode) and (
                not hasattr(os, 'geteuid') or info.st_uid == os.geteuid()):
            return fd
        os.close(fd)
        raise PermissionError(1, 'it is no file of this user', path) from None
    if hasattr(os, 'fchmod'):
        os.fchmod(fd, 0o600)  # under any umask
    return fd


def _write(fd, content):
    """Write all of it."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view):]


class _StderrHandler(logging.Handler):
    """Writes to what sys.stderr is at the time of the record."""

    def __init__(self):
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter(_LOG_FORMAT))

    def emit(self, record):
        stream = sys.stderr
        if stream is None or not _await_stderr():
            return
        try:
            stream.write(self.format(record) + '\n')
            stream.flush()
        except OSError:
            _discard(stream)    # While flows run, the stream drops such a record itself.
        except Exception:
            self.handleError(record)


def _await_stderr():
    """Wait until stderr can be written to; return False if the run is stopped before it can.

    A reader that stands still, ``less`` for one, must not make the supervisor deaf to signals.
    """
    import select
    try:
        fd = sys.stderr.fileno()
        while not select.select((), (fd,), (), 0.2)[1]:
            if any(port.stopping for port in _ports):
                return False
    except (AttributeError, OSError, ValueError):
        pass    # it is no file: nobody can keep us waiting; or writing to it will tell
    return True


class _TaskLogHandler(logging.Handler):
    """Copies what thread and inline tasks log into the log files of these tasks."""

    def __init__(self):
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter(_LOG_FORMAT))
        self._users = 0

    def install(self):
        with start_lock:
            self._users += 1
            logging.getLogger().addHandler(self)  # which adds it once

    def remove(self):
        with start_lock:
            self._users -= 1
            if not self._users:
                logging.getLogger().removeHandler(self)

    def emit(self, record):
        job = getattr(_running, 'job', None)
        if job is None or job.log is None:
            return
        try:
            fd = _open_log(job.log)
            try:
                _write(fd, (self.format(record) + '\n').encode('utf-8', 'backslashreplace'))
            finally:
                os.close(fd)
        except OSError as error:
            if getattr(_running, 'unlogged', None) is not job:
                _running.unlogged = job    # first, because the warning comes here, too
                logger.warning('step %s at %s: its log %r cannot be written (%s)',
                               job.name, job.sequence, job.log, error.strerror)
        except Exception:
            self.handleError(record)


_task_log_handler = _TaskLogHandler()


def close_private(fd):
    own_fds.discard(fd)
    os.close(fd)


def install_logging(level):
    """Log to stderr from ``level`` on, if nobody has configured logging (semantics 5.2)."""
    root = logging.getLogger()
    others = [one for one in root.handlers if one is not _task_log_handler]
    if not others:
        root.addHandler(_StderrHandler())
    if all(isinstance(one, _StderrHandler) for one in others):
        root.setLevel(level)


class LogRelay:
    """Copies what tasks write into their log files to sys.stderr, unchanged (semantics 5.3)."""

    CHUNK = 1 << 20  # bytes; a longer line is relayed in pieces
    PIECE = 4096     # bytes; a pipe that can be written to takes so many without waiting
    TURN = 8         # chunks of a job in one poll(): a talkative task must not keep the driver

    def __init__(self):
        self._offsets = {}  # type: typing.Dict[Job, int]
        self._broken = False

    def add(self, job):
        """Relay what is written to the log of a job from now on. Call it before the release.

        So of an adopted job, what it wrote under an earlier supervisor is not relayed again.
        """
        if job.log is None:
            return
        try:
            self._offsets[job] = os.stat(job.log).st_size
        except OSError:
            self._offsets[job] = 0  # not there yet

    @property
    def active(self):
        """Whether there are logs to look at."""
        return bool(self._offsets)

    def poll(self):
        """Relay the complete lines that are new."""
        for job in list(self._offsets):
            self._relay(job, self.TURN)

    def finish(self, job):
        """Relay the rest, ended by a newline, and forget the job."""
        if job in self._offsets:
            self._relay(job)
            del self._offsets[job]

    def _relay(self, job, turns=None):
        """Relay so many chunks of complete lines; None: everything."""
        try:
            fd = os.open(job.log, os.O_RDONLY | _AS_IT_IS)
        except OSError:
            return  # nothing was written yet, or somebody has moved it away
        try:
            end = os.fstat(fd).st_size  # daemons may go on writing
            for _ in itertools.count() if turns is None else range(turns):
                start = self._offsets[job]
                chunk = os.pread(fd, min(self.CHUNK, end - start), start) if start < end else b''
                whole = turns is None or len(chunk) == self.CHUNK and b'\n' not in chunk
                lines = chunk if whole else chunk[:chunk.rfind(b'\n') + 1]
                if not lines or self._broken:
                    break
                self._offsets[job] += len(lines)
                unended = turns is None and start + len(lines) == end and lines[-1:] != b'\n'
                self._emit(lines + b'\n' if unended else lines)
        except OSError as error:
            self._offsets[job] = sys.maxsize    # lest it be said again
            logger.warning('step %s at %s: its log %r cannot be read: %s',
                           job.name, job.sequence, job.log, error.strerror)
        finally:
            os.close(fd)

    def _emit(self, lines):
        stream = getattr(sys.stderr, 'plain', sys.stderr)
        if stream is None:
            return
        try:
            stream.flush()
            if not hasattr(stream, 'buffer'):
                stream.write(lines.decode('utf-8', 'backslashreplace'))
                return
            for start in range(0, len(lines), self.PIECE):
                if not _await_stderr():
                    return
                stream.buffer.write(lines[start:start + self.PIECE])
                stream.flush()
        except (OSError, ValueError) as error:
            self._broken = True
            _discard(stream)
            logger.warning('the output of tasks is in their logs only: stderr is broken (%s)',
                           error)


# The environment of tasks ---------------------------------------------------------


def change_variables(variables, changes):
    """Make changes, {name: str, or None to remove it}, to a dict of variables or os.environ."""
    for name, value in changes.items():
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value


class EnvironmentLayer:
    """Variables that a run or a task has set in os.environ of a process where others run, too.

    The layers of a process lie on one another, in whatever order they come and go. Of several that
    hold a variable, the one that took it last counts. When a layer no longer holds it, what stood
    there before that layer is back.

    Args:
        put: what sets a variable, ``(name, value)``; None: os.environ itself.
    """

    # Name -> the layers that hold it, the last one on top: [[layer, what stood there before]].
    _piles = _in_common('environment_layers', {})  # type: typing.Dict[str, typing.List[list]]

    def __init__(self, put=None):
        self._put = put or os.environ.__setitem__
        self._held = {}  # type: typing.Dict[str, typing.Any]

    def hold(self, wanted):
        """Hold just these variables, {name: str, or None: it is not there}.

        What the layer holds already is not set again: that costs a microsecond.

        Raises:
            ValueError: a null character, or what the locale cannot encode.
        """
        held = self._held
        for name, value in wanted.items():
            if held.get(name, held) != value:
                if name not in held:
                    self._take(name)
                if value is None:
                    os.environ.pop(name, None)
                else:
                    self._put(name, value)
                held[name] = value
        if len(held) != len(wanted):
            for name in [name for name in held if name not in wanted]:
                self._give_back(name)

    def _take(self, name):
        with start_lock:
            self._piles.setdefault(name, []).append([self, os.environ.get(name)])
            self._held[name] = ...    # It is given back, even if it cannot be set.

    def _give_back(self, name):
        del self._held[name]
        with start_lock:
            pile = self._piles[name]
            [place] = [number for number, one in enumerate(pile) if one[0] is self]
            _, before = pile.pop(place)
            if place < len(pile):    # The next one gives back what stood there before both.
                pile[place][1] = before
            else:
                change_variables(os.environ, {name: before})
            if not pile:
                del self._piles[name]


def _enter_folder(config):
    """Go to the folder of config ``cwd``; return an `Outcome` if that cannot be, or None."""
    try:
        if config.get('cwd'):
            os.chdir(config['cwd'])
    except OSError as error:
        return Outcome(FAILURE, _no_folder(config['cwd'], error.errno))
    return None


# Outcomes that wait in a file ----------------------------------------------------


def write_outcome(path, outcome):
    """Leave an `Outcome` for a later supervisor: written aside, synced, renamed into place."""
    write_aside(path, pack_outcome(outcome))


def _remove(path):
    """Remove a file that does no harm where it cannot be removed."""
    try:
        os.unlink(path)
    except OSError:
        pass    # it is gone already; or the disk is the trouble, of which others tell


def write_aside(path, content):
    """Make a file of the user's own that has its whole content or is not there, durably.

    Args:
        path: its folder and the three above may be new; the one above those is there.
    """
    folder = os.path.dirname(path)
    _make_folder(folder)
    aside = '%s.%d' % (path, os.getpid())
    _remove(aside)  # what stands there was not made by this process
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        try:
            os.chmod(fd if os.chmod in os.supports_fd else aside, 0o600)  # under any umask
            _write(fd, content)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(aside, path)
    except OSError:
        _remove(aside)
        raise
    # Up to the folder in which the store lies: whoever made the others (see log_path), and has
    # perhaps died since, may not have come to this. What is durable already costs next to nothing.
    for _ in range(4):
        _sync_folder(folder)
        folder = os.path.dirname(folder)


def _sync_folder(path):
    """Make the entries of a folder durable: a file that was synced may be without its name.

    Some systems cannot do that, or do not let us; there it is left to them.
    """
    import errno
    try:
        fd = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def _read_own(path):
    """Return what is in the file of an outcome, or None if there is none; raise StoreError."""
    try:
        with _open_own(path, 'outcome') as file:
            return file.read()
    except FileNotFoundError:
        return None
    except StoreError:
        raise
    except OSError as error:
        raise StoreError('the outcome %r cannot be read: %s' % (path, error.strerror)) from error


def read_outcome(path):
    """Return the `Outcome` that a process left at ``path``, or None if there is none.

    Raises:
        StoreError: it cannot be read, or somebody else could have written it.
    """
    text = _read_own(path)
    try:
        return None if text is None else unpack_outcome(text)
    except ValueError as error:
        raise StoreError('the outcome %r is damaged (%s); remove it to run its task again'
                         % (path, error)) from error


def find_process(identity, outcome):
    """Return the identity of the process that runs a task, or None if there is none.

    A program is committed before it has a process: under the identity of its tender, with
    ``program``, a number; that is alive as long as anything is that the tender has started. When
    the supervisor is gone, the tender says in a file beside that for the outcome which process
    it is.

    Args:
        identity: as it was committed with the task.
        outcome: path of the outcome that an orphan leaves, or None.

    Raises:
        StoreError: the file cannot be read, or somebody else could have written it.
    """
    if (outcome is None or 'program' not in _read_identity(identity)
            or process_alive(identity) is None):
        return identity
    deadline = time.monotonic() + 10.0
    while True:
        pid = _read_identity(identity)['pid']
        awake = _proc_stat(pid)[0] not in (None, 'Z', 'X')
        said = _read_own(outcome + '.process')
        if said is not None:
            said = said.decode('utf-8', 'replace')
            return said if _read_identity(said) else None
        if os.path.exists(outcome):
            return None
        if not awake or time.monotonic() > deadline:
            return identity    # it has died without a word
        time.sleep(0.005)    # the supervisor has died this moment


def _look_at_process(job):
    """Return the `Sight` of a job that an earlier supervisor has started as a process."""
    identity = find_process(job.process, job.outcome)
    # First ask whether the process lives, then look for its outcome: in the other order, the
    # outcome of a process that ends in between would be lost.
    alive = process_alive(identity) if identity else False
    outcome = read_outcome(job.outcome) if job.outcome else None
    known = _read_identity(identity)
    text = 'process %s' % known.get('pid')
    if outcome is not None:
        return Sight('ended', outcome, text=text)
    if alive is None:
        return Sight('unknown', text='%s on host %r' % (text, known.get('host')))
    if alive:
        job.process, job.log = identity, known.get('log')
        age = process_age(identity)
        return Sight('running', None, None if age is None else job.now() - age, text)
    return Sight('ended' if identity else 'never_began', text=text)


# Programs: what to run -------------------------------------------------------------

def _braces():
    """Return the pattern of ``{name}``; it is not made before it is used, as that takes long."""
    return re.compile(r'\{\{|\}\}|\{([^\W\d]\w*)(?:\.(item|result))?\}')


class Command:
    """A program for a step to run, as in ``func=Command(['extract', '--db', db])``.

    Its output goes to the log of the task; the result of the task is its exit code. In all its
    texts, ``cwd``, ``stdin`` and the values of ``env`` included, ``{day}`` stands for the value of
    a parameter, ``{s0.item}`` for the loop item of step ``s0``, ``{s1.result}`` for the result of
    ``s1``, and ``{{`` and ``}}`` for braces; what looks otherwise stays as it is.

    With the construct 'process' a program outlives a supervisor that is killed, and its outcome is
    found in the recovery; with others, which call the command like any function, it does not.

    Args:
        command: a list of the program and its arguments, which are str, paths, numbers or
            placeholders; or a str, which is split into such a list by ``shlex``.
        cwd: the folder to run in; None: that of the task.
        env: {name: value} to add to the environment of the task; the value None removes a name.
        shell: ``command`` is a str for ``/bin/sh -c``; values in it are quoted by ``shlex.quote``,
            so that names must not stand inside quotes.
        ok: the exit codes that are no failure: ints; ``range(0, 4)`` gives a highest one.
        stdin: path of a file that the program reads; None: an empty one (/dev/null).

    Raises:
        FlowTypeError, FlowError: what is wrong with an argument.
    """

    def __init__(self, command, cwd=None, env=None, shell=False, ok=(0,), stdin=None):
        _must_be(isinstance(shell, bool), 'Command: shell', 'True or False', shell)
        self.shell = shell
        self.parts = (_checked_script(command),) if shell else _checked_parts(command)
        self.cwd = None if cwd is None else _checked_text(cwd, 'cwd', 'a path')
        self.env = _checked_variables(env)
        self.ok = _checked_codes(ok)
        self.stdin = None if stdin is None else _checked_text(
            stdin, 'stdin', 'the path of a file or None')
        # What mentions nothing needs no filling.
        self._filled = not self.placeholders() and not any(
            brace in text for text in self._texts() for brace in '{}')

    def _content(self):
        return self.parts, self.cwd, self.env, self.shell, set(self.ok), self.stdin, self._filled

    def __eq__(self, other):
        if type(other) is not type(self):
            return NotImplemented
        return self._content() == other._content()

    def __hash__(self):
        return hash((tuple(one for one in self.parts if isinstance(one, str)), self.shell))

    def __repr__(self):
        given = [repr(self.parts[0] if self.shell else list(self.parts))]
        given += ['%s=%r' % (name, value) for name, value, default in (
            ('cwd', self.cwd, None), ('env', self.env, {}), ('shell', self.shell, False),
            ('ok', self.ok, (0,)), ('stdin', self.stdin, None)) if value != default]
        return 'Command(%s)' % ', '.join(given)

    def __str__(self):
        if self.shell:
            return self.parts[0]
        return ' '.join(_as_typed(part if isinstance(part, str) else repr(part))
                        for part in self.parts)

    # What it mentions.

    def _texts(self):
        texts = [part for part in self.parts if isinstance(part, str)]
        texts += [text for text in (self.cwd, self.stdin) if text is not None]
        return texts + [value for value in self.env.values() if value is not None]

    def names(self):
        """Return the names in braces: a set of (identifier, '' or 'item' or 'result')."""
        if self._filled:
            return set()
        return {(match.group(1), match.group(2) or '')
                for text in self._texts() for match in _braces().finditer(text) if match.group(1)}

    def placeholders(self):
        """Return the placeholder objects among its arguments, in order, as a list."""
        return [part for part in self.parts if not isinstance(part, str)]

    def filled(self, lookup, replace):
        """Return a `Command` with values for the names and placeholders.

        It is not filled again: values may hold braces.

        Args:
            lookup: ``lookup(identifier, attribute)`` returns the value of a name.
            replace: ``replace(placeholder)`` returns that of an object among the arguments.
        """
        if self._filled:
            return self
        new = copy.copy(self)
        new.parts = tuple(
            _fill(part, lookup, self.shell) if isinstance(part, str) else str(replace(part))
            for part in self.parts)
        new.cwd, new.stdin = [None if text is None else _fill(text, lookup)
                              for text in (self.cwd, self.stdin)]
        new.env = {name: None if value is None else _fill(value, lookup)
                   for name, value in self.env.items()}
        new._filled = True
        wrong = [text for text in new._texts() if '\0' in text]
        if wrong:
            raise FlowError('%.80r in its command holds a null character, which no program can be '
                            'given; put what has such characters into a file' % wrong[0])
        return new

    # Running it.

    def argv(self):
        """Return the program and its arguments, of a filled one."""
        return ['/bin/sh', '-c', self.parts[0]] if self.shell else list(self.parts)

    def placed(self, config):
        """Return a `Command` that has the folder and the variables of a step's config, too."""
        new = copy.copy(self)
        new.cwd = self.cwd or config.get('cwd') or None
        new.env = dict(config.get('env') or {}, **self.env)
        return new

    def __call__(self):
        """Run it in this thread and return its exit code.

        Its output goes to the log of the task that runs here, or else where that of this process
        goes. If an exception comes by meanwhile, it is ended.

        Raises:
            ProgramError: it could not be started, was ended by a signal, or its exit code is not
                one of ``ok``.
        """
        command, job = self.filled(refuse_name, refuse_name), getattr(_running, 'job', None)
        if job is not None and job is _child_job:
            command = command.placed(job.config)
        program = Program(command, job)
        for number in _asked_to_end:    # while the program was being started
            program.process.send_signal(number)
        try:
            code = program.wait()
        except BaseException:
            program.end()
            raise
        return program.result(code)


def refuse_name(name, attribute=''):
    raise FlowError('nothing is called %r here' % (
        '%s.%s' % (name, attribute) if attribute else name,))


_asked_to_end = []  # type: typing.List[int]  # in the child of a program: signals that have come


def _note_signal(number, frame):
    """Stay, in the child of a program, when a signal asks the task to end.

    The program is in the same process group and gets the signal, too. If the child died of the
    signal, nobody would report how the program ended.
    """
    _asked_to_end.append(number)


class Program:
    """A program that was started for a filled `Command`.

    The log is opened twice: the position of stderr in the log tells where the last lines begin.

    Args:
        job: the `Job` whose log, variables and settings count; or None.
        how: more arguments for ``subprocess.Popen``.

    Attributes:
        process: the ``subprocess.Popen``.

    Raises:
        ProgramError: says why the program cannot be started.
        ShortageError: the system is short of processes or descriptors.
    """

    def __init__(self, command, job=None, **how):
        import subprocess
        self._ok, self._log, self._start = command.ok, None, 0
        try:
            # A process that is forked meanwhile must not keep what is opened here.
            with contextlib.ExitStack() as stack, start_lock:
                streams = self._open_streams(command, job, stack)
                self.process = subprocess.Popen(
                    list(map(_environment_text, command.argv())), cwd=command.cwd,
                    env=_environment_of(command, job), **dict(streams, **how))
        except (OSError, ValueError) as error:
            self.close()
            raise ProgramError(_no_start(command, job, error),
                               short=is_shortage(error)) from None
        except BaseException:
            self.close()
            raise

    def _open_streams(self, command, job, stack):
        """Return the standard streams for ``subprocess.Popen``; ``stack`` closes what only the
        program needs."""
        streams = {}
        if job is not None and _has_log(job):
            try:
                streams['stderr'] = self._log = _open_log(job.log, os.O_RDWR)
                own_fds.add(self._log)
                streams['stdout'] = _open_log(job.log)
            except OSError as error:
                error.filename = job.log    # and not a folder on the way to the log
                raise
            self._start = os.fstat(self._log).st_size
            stack.callback(os.close, streams['stdout'])
        if command.stdin or job is None or job.config.get('stdin') != 'inherit':
            # Opening a pipe that nobody writes to would wait for a writer without O_NONBLOCK.
            streams['stdin'] = os.open(_stdin_path(command),
                                       os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0))
            stack.callback(os.close, streams['stdin'])
            if hasattr(os, 'set_blocking'):
                os.set_blocking(streams['stdin'], True)
        return streams

    def wait(self):
        """Wait for the end of the program; return its exit code, or minus the signal.

        ``subprocess`` says 0 where somebody else has reaped the program, or SIGCHLD is ignored.
        """
        if not hasattr(os, 'WIFSIGNALED'):
            return self.process.wait()
        try:
            _, status = os.waitpid(self.process.pid, 0)
        except ChildProcessError:
            self.process.returncode = 255
            raise ProgramError('how it ended is not known, as this program ignores SIGCHLD or '
                               'waits for processes that are not its own') from None
        self.process.returncode = code = exit_code(status)
        return code

    def end(self):
        """End a program that is not to go on, as an exception came by."""
        import subprocess
        self.process.terminate()
        try:
            self.process.wait(2.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.close()

    def result(self, code):
        """Return its exit code; raise ProgramError where that is no success."""
        tail = '' if self._log is None else _last_lines(self._log, self._start)
        self.close()
        if code not in self._ok:
            raise ProgramError(_end_of_program(code, tail), code)
        return code

    def close(self):
        """Close the log."""
        if self._log is not None:
            close_private(self._log)
            self._log = None


def _stdin_path(command):
    return os.path.join(command.cwd or '', command.stdin or os.devnull)


def _environment_of(command, job):
    """Return the environment of a program, {name: value}."""
    environment = dict(os.environ)
    change_variables(environment, {} if job is None else job.env)
    change_variables(environment, command.env)
    return {name: _environment_text(value) for name, value in environment.items()}


def _no_start(command, job, error):
    """Return why a program cannot be started, as an OSError or ValueError tells it."""
    filename = getattr(error, 'filename', None)
    if filename is None or is_shortage(error):
        return 'it could not be started: %s' % error
    if job is not None and filename == job.log:
        return 'its log %r cannot be opened: %s' % (job.log, error.strerror)
    if command.cwd and (filename == command.cwd or not os.path.isdir(command.cwd)):
        return _no_folder(command.cwd, error.errno)
    if filename == _stdin_path(command):
        return 'the file %r for stdin cannot be opened: %s' % (filename, error.strerror)
    program = '/bin/sh' if command.shell else command.parts[0]
    search = _environment_of(command, job).get('PATH', os.defpath)
    return _no_program(program, search, command.cwd or '', error.errno)


def _as_typed(text):
    """Return an argument as one would type it; braces do not need quotes for that."""
    import shlex
    return text if text and not re.search(r'[^\w@%+=:,./{}-]', text) else shlex.quote(text)


def _fill(text, lookup, quoted=False):
    import shlex

    def value(match):
        if match.group(1) is None:
            return match.group()[0]
        found = str(lookup(match.group(1), match.group(2) or ''))
        return shlex.quote(found) if quoted else found
    return _braces().sub(value, text)


def _checked_script(command):
    _must_be(isinstance(command, str), 'Command: with shell=True the command', 'a str', command)
    if not command.strip():
        raise FlowError('Command: the command is empty')
    for name, where in _misplaced_names(command):
        raise FlowError('Command: %s stands %s in %r%s' % (name, where, command, (
            '; leave them out, as its value is quoted anyway' if where == 'inside quotes' else
            ', where its value cannot be quoted; set a variable to it before, and use that')))
    return _checked_text(command, 'the command', 'a str')


#: The start of a here-document: its delimiter, after what quotes it.
_HERE_DOCUMENT = r'(?<!<)<<-?[ \t]*[\'"\\]?([A-Za-z_][^\s\'";&|<>()]*)'


def _misplaced_names(script):
    """Yield the names that stand where a quoted value is not taken as one word, and where that is:
    inside quotes, in a here-document or in a comment."""
    here_document = re.compile(_HERE_DOCUMENT)
    quotes, at = [''], 0    # the open ones; '' is what stands in parentheses
    ends = []               # delimiters of the here-documents that begin with the next line
    while at < len(script):
        char, quote = script[at], quotes[-1]
        match = _braces().match(script, at)
        if match is not None:
            if match.group(1) and quote:
                yield match.group(0), 'inside quotes'
            at = match.end()
            continue
        if char == '\n' and ends:
            start, at = at, _end_of_here_documents(script, at, ends)
            for name in _names_between(script, start, at):
                yield name, 'in a here-document'
            ends = []
            continue
        match = None if quote else here_document.match(script, at)
        if match is not None:
            ends.append(match.group(1))
        elif char == '\\' and quote != "'":
            at += 1
        elif char == quote or char == ')' and not quote and len(quotes) > 1:
            quotes.pop()
        elif char in '"\'' and not quote:
            quotes.append(char)
        elif char == '(' and (not quote or quote == '"' and script[at - 1] == '$'):
            quotes.append('')
        elif char == '#' and not quote and (not at or script[at - 1] in ' \t\n;('):
            start, at = at, (script + '\n').index('\n', at) - 1
            for name in _names_between(script, start, at + 1):
                yield name, 'in a comment'
        at += 1


def _names_between(script, start, stop):
    return [match.group(0) for match in _braces().finditer(script, start, stop) if match.group(1)]


def _end_of_here_documents(script, at, delimiters):
    """Return where those end that begin with the next line, one after the other."""
    for delimiter in delimiters:
        end = re.compile(r'^\t*%s$' % re.escape(delimiter), re.M).search(script, at + 1)
        at = end.end() if end is not None else len(script)
    return at


def _checked_parts(command):
    """Return the program and its arguments as a tuple."""
    if isinstance(command, str):
        import shlex
        try:
            command = shlex.split(command)
        except ValueError as error:
            raise FlowError('Command: %r cannot be split into arguments (%s)'
                            % (command, error)) from None
    _must_be(isinstance(command, (list, tuple)), 'Command: the command', 'a list or a str',
             command)
    parts = tuple(_checked_part(part) for part in command)
    if not parts or parts[0] == '':
        raise FlowError('Command: %r names no program' % (command,))
    return parts


def _checked_part(part):
    if getattr(part, 'is_placeholder', False) is True:
        return part
    if isinstance(part, (int, float)) and not isinstance(part, bool):
        return str(part)
    return _checked_text(part, 'arguments', 'str, paths, numbers or placeholders')


def _checked_text(text, what, wanted):
    """Return a text, or a path as text."""
    _must_be(isinstance(text, (str, os.PathLike)), 'Command: ' + what, wanted, text)
    text = os.fsdecode(os.fspath(text))
    if '\0' in text:
        raise FlowError('Command: %r has a null character in it' % text)
    return text


def _are_variables(env):
    """Return whether this is what can be put into the environment: {str: str or None}."""
    return isinstance(env, dict) and all(
        isinstance(name, str) and name and '=' not in name and '\0' not in name
        and (value is None or isinstance(value, str) and '\0' not in value)
        for name, value in env.items())


def _checked_variables(env):
    if env is None:
        return {}
    _must_be(isinstance(env, dict), 'Command: env', 'a dict of str: str or None', env)
    values = {name: value if value is None else _checked_text(
        value, 'the values of env', 'str or None') for name, value in env.items()}
    _must_be(_are_variables(values), 'Command: the names in env', "str without '='", list(env))
    return values


def _checked_codes(ok):
    try:
        codes = ok if isinstance(ok, (range, str, bytes)) else tuple(ok)  # type: typing.Any
    except TypeError:
        codes = ''
    _must_be(not isinstance(codes, (str, bytes)), 'Command: ok',
             'exit codes such as (0, 2) or range(0, 4)', ok)
    _must_be(codes and all(_is_int(code) and 0 <= code <= 255 for code in codes[:257]),
             'Command: ok', 'exit codes from 0 to 255, at least one', ok, FlowError)
    return codes



# Programs: how they end -----------------------------------------------------------


def exit_code(status):
    """Return the exit code that os.waitpid() told, or minus the number of the signal."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def manner_of_end(code):
    """Return how a process ended, by its exit code, which is negative for a signal."""
    if code >= 0:
        return 'exited with code %d' % code
    try:
        return 'died: signal %s' % signal.Signals(-code).name
    except ValueError:    # one that has no name
        return 'died: signal %d' % -code


def _end_of_program(code, tail):
    """Return why a program failed: how it ended, and the last lines of its stderr."""
    return manner_of_end(code) + (':\n' if '\n' in tail else ': ' if tail else '') + tail


def _last_lines(log, start):
    """Return the last lines up to where stderr was last written to, 10 at most, or ''.

    Args:
        log: the description through which it was written, so that its position is that place.
        start: the size of the file before.
    """
    end = os.lseek(log, 0, os.SEEK_CUR)
    start = max(start, end - 2000)
    if end <= start:
        return ''
    content = os.pread(log, end - start, start)
    while content[:1] and 0x80 <= content[0] < 0xc0:
        content = content[1:]  # the rest of a character that was cut
    text = content.decode('utf-8', 'backslashreplace').replace('\r', '\n')
    lines = [line.rstrip() for line in text.split('\n') if line.strip()]
    return '\n'.join(''.join(
        one if one.isprintable() or one == '\t' else ascii(one)[1:-1] for one in line)
        for line in lines[-10:])


def _no_folder(folder, number=None):
    """Return why nothing can run in a folder; ``number`` is the errno, None if it is no folder."""
    if not os.path.exists(folder):
        return 'the folder %r for cwd does not exist' % folder
    if not os.path.isdir(folder):
        return '%r, given as cwd, is not a folder' % folder
    return 'the folder %r for cwd cannot be entered: %s' % (folder, os.strerror(number or 13))


def _no_program(program, search, folder, number):
    """Return why a program cannot be executed.

    Args:
        program: its name or path; ``search``: PATH.
        folder: where it was to run.
        number: the errno.
    """
    import errno
    paths = [program] if os.path.dirname(program) else [
        os.path.join(place, program) for place in search.split(':')]    # as execvp() has them
    found = [path for path in (os.path.join(folder, one) for one in paths)
             if program and os.path.exists(path)]
    shown = repr(program)
    if number == errno.E2BIG:
        return ('the arguments and the environment of %s are too long for this system; put what '
                'is long into a file and name that' % shown)
    if not found and os.path.dirname(program) and number == errno.EACCES:
        return '%s cannot be reached: %s' % (shown, os.strerror(number))
    if not found:
        return 'there is no program %s%s' % (
            shown, '' if os.path.dirname(program) else ' (looked in PATH)')
    if all(os.path.isdir(one) for one in found):
        return '%s is a folder, not a program' % shown
    if number == errno.EACCES:
        return '%s is not executable (chmod +x)' % shown
    if number in (errno.ENOENT, errno.ENOTDIR):
        return 'what the first line of %s names to run it does not exist' % shown
    if number == errno.ENOEXEC:
        return '%s cannot be executed: it neither is a program for this machine nor begins ' \
               'with #!' % shown
    return '%s cannot be executed: %s' % (shown, os.strerror(number))


# The parcel -------------------------------------------------------------------------
#
# A job, and its outcome, on the way between processes: on a line, in a file, to another host.

_SENT = [(names, operator.attrgetter(*names)) for names in (
    ('name', 'sequence', 'recovery', 'attempt', 'flow', 'run_id', 'own', 'shared', 'logdir',
     '_log', 'outcome', 'logger_name', 'epoch', 'failures'),
    ('func', 'args', 'kwargs', 'items'))]
_SENT_CONFIG = ('capture', 'keep_result', 'env', 'cwd', 'stdin')
_FRAME_HEAD = 8    # bytes that tell the size of what follows


def pack_job(job, known=None, secrets=False):
    """Return a job as bytes, from which `unpack_job` makes it again in another process.

    The other process needs the same version of Python, and the modules of the function.

    Args:
        job: the `Job`.
        known: a `Job` that the receiver knows; what is the same object in both is not sent.
        secrets: whether values of secret parameters may be sent. They must not be written to a
            file, or seen by others on the way.

    Raises:
        ConstructError: says what cannot be sent.
    """
    whole, known = known is None, known or _BLANK
    plain, call = [
        {name: value for name, value, same in zip(names, get(job), get(known))
         if value is not same} for names, get in _SENT]
    config = {name: job.config[name] for name in _SENT_CONFIG
              if job.config.get(name) is not known.config.get(name)}
    if config.get('cwd'):
        config['cwd'] = os.path.abspath(config['cwd'])    # The receiver may be in another folder.
    parcel = None
    try:
        if call:
            content = pickled(call)
            main = main_origin() if b'__main__' in content else None
            parcel = content, main, logging.getLogger().level
        packed = pickle.dumps((plain, config, parcel), protocol=4)
    except Exception as error:
        raise ConstructError('it cannot be sent to another process (%s)'
                             % describe_error(error)) from error
    if not whole:
        return packed
    if not secrets and any(one.encode('utf-8', 'replace') in packed for one in
                           _parameters.secrets):
        raise ConstructError('it cannot be sent to another process: it holds the value of a '
                             'secret parameter')
    return pickle.dumps((pack_parameters(secrets), packed), protocol=4)


def unpack_job(content, known=None):
    """Return the `Job` that `pack_job` has packed, without its function: `Job.load` loads that.

    Parameters that this process is to declare take the values of the sender.

    Args:
        content: bytes; they come from a process of the same user, as they are unpickled.
        known: the `Job` that was given to `pack_job`, or None.
    """
    if known is None:
        parameters, content = pickle.loads(content)
        take_parameters(parameters)
    job = copy.copy(known or _BLANK)
    plain, config, job._parcel = pickle.loads(content)
    for name, value in plain.items():
        setattr(job, name, value)
    job.config = dict(job.config, **config)
    return job


_BLANK = Job('')


def pack_outcome(outcome):
    """Return an `Outcome` as bytes. Secrets in its texts are masked."""
    import base64
    import json
    outcome = outcome._replace(error=masked(outcome.error), trace=masked(outcome.trace))
    # An older copy of this file need not know fields that say nothing.
    content = {name: value for name, value in outcome._asdict().items()
               if name == 'status' or value != Outcome._field_defaults[name]}
    if outcome.result is not None:
        content['result'] = base64.b64encode(outcome.result).decode('ascii')
    return json.dumps(content).encode('utf-8')


def unpack_outcome(content):
    """Return the `Outcome` that `pack_outcome` has packed; raise ValueError if it is damaged."""
    import base64
    import json
    try:
        fields = json.loads(bytes(content).decode('utf-8'))
        if fields.get('result') is not None:
            fields['result'] = base64.b64decode(fields['result'])
        fields['kinds'] = tuple(fields.get('kinds', ()))
        return Outcome(**fields)
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def framed(content):
    """Return bytes with their size before them, as they go over a line."""
    return len(content).to_bytes(_FRAME_HEAD, 'big') + content


def missing_of_frame(inbox):
    """Return how many bytes are known to be missing from a frame in a bytearray."""
    if len(inbox) < _FRAME_HEAD:
        return _FRAME_HEAD - len(inbox)
    return max(0, _FRAME_HEAD + int.from_bytes(inbox[:_FRAME_HEAD], 'big') - len(inbox))


def take_frame(inbox):
    """Take the content of a complete frame out of a bytearray."""
    end = _FRAME_HEAD + int.from_bytes(inbox[:_FRAME_HEAD], 'big')
    content = bytes(inbox[_FRAME_HEAD:end])
    del inbox[:end]
    return content


# Inline and thread ---------------------------------------------------------------


class InlineConstruct(TaskConstruct):
    """Calls the function in the driver's thread: nothing else happens meanwhile.

    A function that accepts ``eventor`` gets the flow as ``eventor=`` (semantics 9.4). The
    environment variables of a task are left in place until the next one, or `rest`, changes them.
    """

    inline = True
    can_place = True

    def open(self, port):
        super().open(port)
        self._layer = EnvironmentLayer(_environment_setter())
        _task_log_handler.install()

    def release(self, jobs):
        [job] = jobs
        try:
            if job.config.get('cwd') or job.config.get('env'):
                outcome = self._call_elsewhere(job)
            else:
                self._layer.hold(job.own)
                outcome = self._call(job)
        except ValueError as error:  # a NUL, or what the locale cannot encode
            outcome = Outcome(FAILURE, 'its environment cannot be set: %s' % describe_error(error))
        self.port.done(job, outcome)

    def _call(self, job):
        if job.eventor is not None and _takes_eventor(job.func):
            return run_job(job, eventor=job.eventor)
        return run_job(job)

    def _call_elsewhere(self, job):
        """Call it in the folder and with the variables of config ``cwd`` and ``env``."""
        home = os.open(os.curdir, os.O_RDONLY) if job.config.get('cwd') else None
        try:
            self._layer.hold(dict(job.own, **job.config.get('env') or {}))
            return _enter_folder(job.config) or self._call(job)
        finally:
            if home is not None:
                os.fchdir(home)
                os.close(home)
            self._layer.hold(job.own)

    def rest(self):
        self._layer.hold({})

    def close(self):
        self.rest()
        _task_log_handler.remove()


def _takes_eventor(func):
    try:
        return _has_eventor(func)
    except TypeError:  # it cannot be hashed
        return _has_eventor.__wrapped__(func)


@functools.lru_cache(maxsize=1024)
def _has_eventor(func):
    import inspect
    try:
        parameters = inspect.signature(func).parameters
    except (ValueError, TypeError):  # a built-in that does not tell
        return False
    one = parameters.get('eventor')
    if one is not None:
        return one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
    return any(each.kind == each.VAR_KEYWORD for each in parameters.values())


class ThreadConstruct(TaskConstruct):
    """Calls each function in a daemon thread. It cannot be ended, only abandoned.

    A thread that has nothing to do gets the next task: what a function leaves in thread-local
    data may be found there by another one. Where the store is volatile, tasks are queued for the
    threads, up to config ``group_commit`` seconds of work; when one fails, some that were queued
    behind it may have begun before the supervisor knows.
    """

    queues = True

    def open(self, port):
        super().open(port)
        limit = port.config.get('max_concurrent', 0)
        self._crew = _Crew(port, limit if limit > 0 else math.inf)
        _task_log_handler.install()

    @property
    def slots(self):
        return self._crew.most

    @property
    def ahead(self):
        if not self.port.volatile or self._crew.pace is None:    # or how long steps take
            return 0
        seconds = max(self._crew.pace / self._crew.most, 1e-4)
        return int(self.port.config.get('group_commit', 0) / seconds)

    def release(self, jobs):
        for job in jobs:
            self._crew.give(job)

    def recall(self, job):
        if self._crew.take_back(job):
            self.port.done(job, Outcome(ACTIVE, 'not started', interrupted=True)
                           if self.port.stopping else Outcome(ACTIVE, 'not started', lost=True))

    def goes_on(self, job):
        return job in self._crew.inside

    def close(self):
        self._crew.close()
        _task_log_handler.remove()


class _Crew:
    """The threads of one run, and the jobs that wait for one of them.

    Args:
        port: where outcomes go, until `close`.
        most: how many threads there may be.

    Attributes:
        pace: seconds that a function takes, on average; None: not known yet.
        inside: the jobs whose functions run, also after `close`.
        PATIENCE: seconds to wait for the end of a thread that is in no function.
    """

    PATIENCE = 1.0

    def __init__(self, port, most):
        self.most = most
        self.pace = None  # type: typing.Optional[float]
        self.inside = set()  # type: typing.Set[Job]
        self._port = port
        self._open = True
        self._waiting = collections.deque()  # type: typing.Deque[Job]
        self._idle = []    # locks that threads wait for which have nothing to do
        self._threads = 0
        self._outside = set()    # threads that are in no function

    def give(self, job):
        self._waiting.append(job)
        if self._wake() or self._threads >= self.most:
            return
        thread = threading.Thread(target=self._work, daemon=True, name='sequent')
        self._outside.add(thread)
        try:
            thread.start()
            self._threads += 1
        except RuntimeError as error:  # can't start new thread
            self._outside.discard(thread)
            if self.take_back(job):
                self._port.done(job, Outcome(FAILURE, describe_error(error)))

    def take_back(self, job):
        """Return whether a job still waited, and so will never begin."""
        try:
            self._waiting.remove(job)
            return True
        except ValueError:
            return False

    def close(self):
        """End the threads, but leave those alone that are in a function."""
        self._open = False
        while self._wake():
            pass
        for thread in list(self._outside):    # the next run may want to fork
            thread.join(self.PATIENCE)

    def _wake(self):
        """Wake a thread that has nothing to do; return whether there was one."""
        try:
            self._idle.pop().release()
            return True
        except IndexError:
            return False

    def _work(self):
        bell, thread = threading.Lock(), threading.current_thread()
        bell.acquire()
        while self._open:
            try:
                job = self._waiting.popleft()
            except IndexError:
                self._idle.append(bell)
                if self._waiting or not self._open:    # since then
                    self._wake()
                bell.acquire()
                continue
            thread.name = '%s %s' % (job.name, job.sequence)
            self._outside.discard(thread)
            job.began = began = job.now()
            self.inside.add(job)
            outcome = run_job(job)
            took = job.now() - began
            self.pace = took if self.pace is None else self.pace + 0.1 * (took - self.pace)
            self._outside.add(thread)
            self.inside.discard(job)
            if self._open:
                self._port.done(job, outcome)


# Process: the supervisor's side ---------------------------------------------------
#
# Each task has a process of its own in a session of its own, and a socket pair to it:
#
#   supervisor                          child
#   prepare: fork         ---------->   session, default signals, foreign descriptors closed
#   (the start is stored)               waits at the gate; end of file: nobody is there, exit
#   release: b'g'         ---------->   environment, log, function
#   port.done             <----------   the outcome, in a frame
#   (the outcome is stored)             waits; end of file: leave the outcome in a file
#   settle: b'k'          ---------->   exit
#
# That it has died is seen by the end of file; or, where a grandchild holds the pair open, by
# a descriptor of the process (pidfd), or by asking for its exit code now and then.

#: How long a task that the system has no process or descriptor for is tried again, in seconds.
_SHORTAGE = 60.0
CHILD_SIGNALS = [getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP')
                  if hasattr(signal, name)]
_ports = _in_common('ports', [])  # type: typing.List[Port]


def is_shortage(error):
    """Whether an OSError says that the system is short of processes or descriptors."""
    import errno
    return getattr(error, 'errno', None) in (
        errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class Child:
    """What `ProcessConstruct` knows of a process of its own (``job.state``)."""

    __slots__ = ('pid', 'identity', 'fd', 'pidfd', 'inbox', 'over', 'code', 'killed', 'forced',
                 'waited', 'unread', 'reported')

    def __init__(self, pid=None, fd=None):
        self.pid = pid
        self.identity = None     # as `process_identity` tells it
        self.fd = fd             # our end of the pair, None once it is closed
        self.pidfd = None
        self.inbox = bytearray()
        self.over = False        # whether it has ended
        self.code = None         # its exit code then, or minus the signal; None: unknown
        self.killed = self.forced = False
        self.waited = False      # whether it has been waiting for its work
        self.reported = None     # the outcome, once it has come
        self.unread = False      # whether it has ended without reading what was sent last

    def release(self):
        """Let it pass its gate."""
        self.say(b'g')

    def settle(self):
        """Say that its outcome is stored, or that there is not going to be one."""
        self.say(b'k')

    def withdraw(self):
        """Say that it is not going to be released; the end of the line says so."""

    def say(self, content):
        """Send bytes to the process."""
        with contextlib.suppress(OSError):    # It is dead, which the end of the line tells.
            if self.fd is not None:
                os.write(self.fd, content)

    def hang_up(self):
        """Close the line to it, if that is open."""
        if self.fd is not None:
            close_private(self.fd)
            self.fd = None

    def ended(self):
        """Return whether it has ended; if so, reap it and note its exit code."""
        if not self.over:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.over, self.code = bool(pid), exit_code(status) if pid else None
            except ChildProcessError:
                self.over = True    # Somebody else has reaped it, or SIGCHLD is ignored.
        return self.over

    def await_end(self, patience):
        """Return whether it has ended, after waiting up to ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while not self.ended():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.0005)
        return True

    def part(self):
        """Give back what is kept for it: it has ended, or goes on alone."""

    def cause(self):
        """Return how a process ended that has left no outcome."""
        if self.code is None:
            return ('ended before its outcome was delivered; how is not known, as this program '
                    'ignores SIGCHLD or waits for processes that are not its own')
        return manner_of_end(self.code) + (
            ' before its outcome was delivered' if self.code >= 0 else '')

    def lost(self, job):
        """Return whether it has ended at its gate, so that nothing of the job has run."""
        return False

    def signal(self, number):
        """Send a signal to the process group; return False if there is none."""
        if self.pid is None:
            return True    # nobody knows it
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # all that is left of it has other rights
        return True

    def end(self):
        """Kill a process that is not reaped yet, with its group once there is one."""
        if not self.signal(signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def leaves_others(self):
        """Return whether others of its group run, beside it or after its end."""
        if self.pid is None:
            return False
        if os.path.exists('/proc/self/stat'):
            return any(pid != self.pid for pid in process_members(2, self.pid))
        if self.reported is not None:
            return False    # The process itself is still there, and nobody can tell others.
        try:
            os.killpg(self.pid, 0)
        except PermissionError:
            pass    # Others have different rights.
        except ProcessLookupError:
            return False
        return True

    def read(self):
        """Read some of the outcome. True: some came; None: nothing yet; False: the end."""
        size = min(max(missing_of_frame(self.inbox), 1 << 16), 1 << 22)
        try:
            chunk = os.read(self.fd, size)
        except BlockingIOError:
            return None
        except OSError:  # it died without having read all that we sent
            self.unread = True
            return False
        self.inbox += chunk
        return bool(chunk)

    def outcome(self):
        """Return the outcome that has come in, or None as long as it is not complete."""
        return None if missing_of_frame(self.inbox) else unpack_outcome(take_frame(self.inbox))


class Orphan(Child):
    """A process that an earlier supervisor has left running."""

    __slots__ = ()

    def __init__(self, identity):
        super().__init__()
        self.identity = identity

    def ended(self):
        return not process_alive(self.identity)

    def cause(self):
        return ('process %s, started by an earlier supervisor, ended without leaving an outcome'
                % (self.pid or '(of a program)'))

    def lost(self, job):
        if self.killed or 'keeper' in _read_identity(self.identity):
            return False    # a program is released before it has a process
        # A released child makes its log first or, if it is to have none, a mark.
        signs = [path for path in (job.log, job.outcome and job.outcome + '.began') if path]
        return not any(map(os.path.exists, signs))


def _has_log(job):
    return job.log is not None and job.config.get('capture') != 'none'


def _mark_of(job):
    """Return the path of the file that a process without a log makes as it begins, or None."""
    if job.config.get('capture') != 'none' or job.outcome is None:
        return None
    return job.outcome + '.began'


class ProcessConstruct(TaskConstruct):
    """Runs each function in a process of its own, which leads a session of its own.

    Processes are forked, or started by backends/spawn.py as config ``start_method`` says. A
    process stays until its outcome is stored; if the supervisor is gone instead, it leaves the
    outcome in a file (semantics 7.6).
    """

    can_kill = True
    can_adopt = True
    can_place = True
    relays = True
    maker = ''    # An identity that says nothing is of a process.

    def open(self, port):
        super().open(port)
        self._jobs = set()      # released, and not done; `job.state` is a `Child`
        self._blind = set()     # those of them whose end only poll() sees
        self._children = set()  # those whose line is open
        self._leaving = []      # on their way out: (Child, when patience ends)
        _ports.append(port)
        occupy_standard_fds()

    @property
    def polls(self):
        return bool(self._blind or self._leaving)

    def check(self, name, func, args, kwargs, config):
        if not _HAS_GROUPS:
            raise ConstructError("step %r: process tasks need process groups and signal masks, "
                                 "which this system (%s) has not; use config={'task_construct': "
                                 "'thread'} or 'inline'" % (name, sys.platform))
        if isinstance(func, Command):
            import subprocess  # noqa: F401 (once here, and not in each child)
        method = start_method(config, name, func)
        if method != 'fork':
            _spawner(method, name).check(name, func, args, kwargs, method)

    def prepare(self, job):
        method = start_method(job.config, job.name, job.func)
        self._reap()    # Nothing polls while no job runs, and a zombie counts as a process.
        with start_lock:
            if method != 'fork':
                child = _spawner(method, job.name).start(job, method)
            else:
                child = self.port.tender and self.port.tender.child(job) or _fork_child(job)
        job.state = child
        self._children.add(child)
        if child.identity is None:
            child.identity = process_identity(child.pid, waited=child.waited,
                                              log=job.log if _has_log(job) else None)
        job.process = child.identity

    def release(self, jobs):
        for job in jobs:
            child = job.state
            self._jobs.add(job)
            self.port.watch(child.fd, functools.partial(self._readable, job))
            if child.pid is not None:
                self._watch_end(job)
            child.release()

    def withdraw(self, job):
        job.state.withdraw()
        self._part(job.state)

    def settle(self, job):
        child = job.state
        if child is not None and child.fd is not None:
            child.settle()
            if _mark_of(job):
                _remove(_mark_of(job))
        elif job.outcome is not None:    # It may have left its outcome in the file.
            for ending in ('', '.process', '.began'):
                _remove(job.outcome + ending)
        if child is not None and child in self._children:
            self._part(child)

    def kill(self, job, force):
        child = job.state
        if job not in self._jobs:
            return    # Its outcome is on its way.
        child.killed, child.forced = True, force
        number = signal.SIGKILL if force else signal.SIGTERM
        if not child.signal(number) and not child.ended():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)    # It has not made its group yet.
        if not force:
            child.signal(signal.SIGCONT)    # A stopped process would not get the signal.
        self._blind.add(job)

    def look(self, job):
        return _look_at_process(job)

    def adopt(self, job):
        known = _read_identity(job.process)
        child = job.state = Orphan(job.process)
        self._jobs.add(job)
        if 'program' in known:    # Its tender could not say which process it is.
            self._blind.add(job)
        elif process_alive(job.process):
            child.pid = known['pid']
            self._watch_end(job)
        else:
            self._check(job)

    def stopped(self, job):
        known = _read_identity(job.process)
        pids = [known[name] for name in ('pid', 'keeper') if name in known]
        if job.func is None or isinstance(job.func, Command):    # The child waits for a program.
            pids += process_children(pids[0])
        return list(filter(process_stopped, pids))

    def poll(self):
        for job in list(self._blind):
            self._check(job)
        if self._leaving:
            self._reap()

    def close(self):
        done = self._children - {job.state for job in self._jobs}
        for job in list(self._jobs):
            self.kill(job, True)
            job.state.settle()
            self._forget(job)
        _ports.remove(self.port)
        for child in list(self._children):    # What is done and not stored goes into files.
            self._part(child, math.inf if child in done else 5.0)
        self._reap_all(2.0)
        for child, _ in self._leaving:
            if child in done:
                logger.warning('process %d has finished, and goes on trying to leave its outcome '
                               'in a file: see to the disk, and recover the run', child.pid)
                child.part()
        self._leaving = [one for one in self._leaving if one[0] not in done]
        self._reap_all(6.0)
        for child, _ in self._leaving:
            logger.error('process %d cannot be ended', child.pid)

    # What happens to a released job.

    def _watch_end(self, job):
        child = job.state
        child.pidfd = _watch_pid(child.pid)
        if child.pidfd is None:
            self._blind.add(job)
        else:
            own_fds.add(child.pidfd)
            self.port.watch(child.pidfd, functools.partial(self._exited, job))

    def _exited(self, job):
        if job.state.pidfd is not None:
            self._close_pidfd(job.state)
            self._blind.add(job)
            self._check(job, 0.05)    # A forkserver tells a little later.

    def _readable(self, job):
        child = job.state
        if child.fd is None or job not in self._jobs:
            return    # The selector reported this line together with what has ended the job.
        more = child.read()
        if child.identity != job.process:    # Its tender says now which process it is.
            job.process = child.identity
            self.port.moved(job)
        try:
            child.reported = child.reported or child.outcome()
        except Exception as error:
            child.reported = Outcome(
                FAILURE, 'its outcome is damaged (%s)' % describe_error(error))
        if more is False:
            self.port.unwatch(child.fd)
            child.hang_up()
        if child.reported is not None or more is False:
            self._check(job, 0.05 if child.pidfd is None else 0.0)

    def _check(self, job, patience=0.0):
        """See whether a job has ended, and report that."""
        child = job.state
        if job not in self._jobs or child.reported is None and not child.await_end(patience):
            return
        if child.killed and not child.forced and child.leaves_others():
            self._blind.add(job)    # Others of its group have still their time to end.
            return
        outcome = child.reported
        if outcome is None:
            while child.fd is not None and child.read():
                pass
            try:
                outcome = child.outcome() or (job.outcome and read_outcome(job.outcome))
            except Exception as error:
                outcome = Outcome(FAILURE, describe_error(error))
        self._finish(job, outcome or Outcome(FAILURE, child.cause(), lost=child.lost(job),
                                             code=child.code))

    def _finish(self, job, outcome):
        self._forget(job)
        if job.state.killed and self.port.stopping and (
                outcome.status == FAILURE or outcome.exited):
            outcome = outcome._replace(interrupted=True)
        self.port.done(job, outcome)

    def _forget(self, job):
        """Watch a job no longer."""
        child = job.state
        self._jobs.discard(job)
        self._blind.discard(job)
        if child.pidfd is not None:
            self._close_pidfd(child)
        if child.fd is not None:
            self.port.unwatch(child.fd)

    def _close_pidfd(self, child):
        self.port.unwatch(child.pidfd)
        close_private(child.pidfd)
        child.pidfd = None

    # What is left of a job that is over.

    def _part(self, child, patience=1.0):
        """Let a process go. At its gate, or told that its outcome is stored, it exits."""
        self._children.discard(child)
        child.hang_up()
        if child.killed and patience < math.inf:
            child.signal(signal.SIGKILL)    # what it has left behind
        self._leaving.append((child, time.monotonic() + patience))
        self._reap()

    def _reap_all(self, patience):
        """Wait for the end of those that are leaving, for so many seconds."""
        patience = time.monotonic() + patience
        while time.monotonic() < patience and self._leaving:
            time.sleep(0.0005)
            self._reap()

    def _reap(self):
        now = time.monotonic()
        staying = []
        for child, patience in self._leaving:
            if child.ended():
                if child.killed and patience == math.inf:
                    child.signal(signal.SIGKILL)    # what it has left behind
                child.part()
                continue
            if now >= patience:
                child.end()
                patience = now + 1.0
            staying.append((child, patience))
        self._leaving = staying


def start_method(config, name, func=None):
    """Return the start method of a step. The child of a program needs no new interpreter.

    Raises:
        ConstructError: it is not known here.
    """
    known = start_methods()
    method = config.get('start_method') or known[0]
    if method not in known:
        raise ConstructError('step %r: no start_method %r here%s' % (
            name, method, _choices(method, known)))
    return known[0] if isinstance(func, Command) else method


def _spawner(method, name):
    """Return the backend that starts processes by another method than fork."""
    backend = load_backend('spawn')
    if backend is None:
        raise ConstructError(
            'step %r: start_method %r needs the file backends/spawn.py: copy it to a folder '
            'backends beside %s' % (name, method, os.path.abspath(__file__)))
    return backend


def make_line():
    """Return (descriptor of our end, which does not block, the child's socket) of a new pair."""
    import socket
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    own_fds.add(ours.fileno())
    return ours.detach(), theirs


def _fork_child(job):
    """Return the `Child` for a job, which waits at its gate."""
    child, supervisor = Child(), os.getpid()
    child.fd, theirs = make_line()
    try:
        child.pid = fork(as_process(functools.partial(_forked, job, theirs, supervisor),
                                    '%s %s' % (job.name, job.sequence), theirs.fileno(),
                                    supervisor))
    finally:
        theirs.close()
        if child.pid is None:
            child.hang_up()
    return child


def fork(run):
    """Fork a process that calls ``run()``, which does not return; return its pid.

    Raises:
        OSError: the system is short of processes.
    """
    flush_streams()    # else the child would write once more what is in their buffers
    with starting(), fork_beside_threads():
        pid = os.fork()
        if not pid:
            try:
                run()
            finally:
                os._exit(1)
    return pid


@contextlib.contextmanager
def starting():
    """Start processes meanwhile, in which no signal is handled before they have left the
    supervisor's ways.

    A signal that comes meanwhile is the supervisor's; and on the child's side the supervisor's
    handlers, or a Ctrl-C while an interpreter is starting, would do harm.
    """
    with start_lock:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, CHILD_SIGNALS)
        try:
            with _sqlite_use.none():
                yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def occupy_standard_fds():
    """Open what is closed of descriptors 0 to 2, lest a pair gets such a number."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        fd = os.dup(fd)
    os.close(fd)


def main_origin():
    """Return (name, path) of the module that was started, by one of which a child can load it,
    or None."""
    main = sys.modules.get(_common.program)
    name = getattr(getattr(main, '__spec__', None), 'name', None)
    path = getattr(main, '__file__', None)
    if name in (None, '__main__'):
        return (None, os.path.abspath(path)) if path else None
    return name, path


# Process: the child's side --------------------------------------------------------


class LoadEnds(BaseException):
    """Ends the loading of a module in a child that only needs a function of it.

    Raised by a flow that is run while `in_child`; the module stays as far as it is.
    """


_load_ends = _in_common('LoadEnds', LoadEnds)
_loading = _in_common('loading', threading.local())    # Other threads may run flows meanwhile.


def in_child():
    """Return whether a module is being loaded here only for what is defined in it: in a child
    that is to run a function of the module, or for something that was unpickled."""
    return getattr(_loading, 'only', False)


@contextlib.contextmanager
def _loading_only():
    """Let flows that are run by modules loaded meanwhile end their loading, by `LoadEnds`."""
    before, _loading.only = in_child(), True
    sys.meta_path.insert(0, _patient_finder)
    try:
        yield
    finally:
        sys.meta_path.remove(_patient_finder)
        _loading.only = before


def _forked(job, line, supervisor):
    """Where a forked child begins."""
    leave_supervisor()
    serve_child(functools.partial(pass_gate, job, line), lambda: os.getppid() == supervisor)


def leave_supervisor(more=()):
    """Leave to the supervisor, in a process forked from it, what is its own.

    Args:
        more: the port of a construct that does not do so for each task.
    """
    signal.set_wakeup_fd(-1)
    _freeze_garbage()
    _close_private_fds(more)
    _renew_stream_locks()
    _forget_foreign_imports()
    _forget_foreign_threads()
    for leave in list(_leavers.values()):
        leave()


def _close_private_fds(more=()):
    """Close what is another process's own of the library's descriptors."""
    for one in own_fds.union(*[port.private_fds() for port in _ports + list(more)]):
        try:
            os.close(one)
        except OSError:
            pass  # of another port, and closed a moment ago
    own_fds.clear()
    del _ports[:]


def _leave():
    """Leave to the supervisor what is its own: done by every copy of this file."""
    global start_lock, _sqlite_use, _looking
    # Threads of the supervisor hold those that we have inherited: a flow in here would hang.
    start_lock, _sqlite_use, _looking = threading.RLock(), _SqliteUse(), threading.RLock()
    logging.getLogger().removeHandler(_task_log_handler)    # Stderr is the log file there.


_leavers = _in_common('leavers', {})
_leavers[__name__] = _leave


def serve_child(take, lives):
    """Wait at the gate, run the job, deliver its outcome. Does not return.

    Args:
        take: given ``lives``, waits at the gate; returns the job and the line to the supervisor,
            or None if there is nothing to run.
        lives: tells whether the supervisor lives.
    """
    code = 1
    try:
        taken = take(lives)
        if taken is not None:
            _serve_job(lives, *taken)
        code = 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        flush_streams()
        os._exit(code)


def pass_gate(job, line, lives):
    """Wait for the supervisor's word; return what `serve_child` asks for."""
    own_signals()
    fd = line.detach()
    return (job, fd) if _receive(fd, lives) else None


def _serve_job(lives, job, fd):
    identity = _file_key(fd)
    outcome = _run_here(job)
    _await_threads()    # Nothing may go on working beside what requires the outcome.
    flush_streams()
    _deliver(job, fd, identity, outcome._replace(ended=job.now()), lives)


def own_signals(handlers=None):
    """Leave the supervisor's session and its handlers; then let signals come.

    In a session of its own a child has no terminal: reading from one fails, where the system would
    stop the child for ever. Nobody else can make the session, so until here a signal is sent to
    the process alone.

    Args:
        handlers: signal -> its handler here, where these are all that are to be changed.
    """
    try:
        os.setsid()
    except OSError:
        pass    # The process leads a session already.
    if handlers is None:
        handlers = {number: signal.SIG_DFL for number in range(1, signal.NSIG)
                    if callable(signal.getsignal(number))}
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            handlers[signal.SIGINT] = signal.default_int_handler
        # If SIGCHLD was ignored, the task could have no exit code of what it starts.
        handlers[signal.SIGCHLD] = signal.SIG_DFL
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # drops a Ctrl-C that was not for us
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _receive(fd, lives):
    """Wait for a byte of the supervisor's; return False if it is gone."""
    try:
        return await_line(fd, lives) and bool(os.read(fd, 1))
    except OSError:  # gone without having read all that we sent
        return False


def await_line(fd, lives):
    """Wait until something comes, or the end of the stream; return False if nobody lives.

    That is not seen by the line alone: what other processes were forked from it hold its end open.
    """
    import select
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while not poll.poll(500):
        if not lives():
            return False
    return True


def _run_here(job):
    global _child_job
    try:
        os.environ.update(job.env)
        set_stdin(job.config.get('stdin'))
        refusal = _redirect(job)
        if refusal is None and not isinstance(job.func, Command):    # which has a place of its own
            change_variables(os.environ, job.config.get('env') or {})
            refusal = _enter_folder(job.config)
        if refusal is not None:
            return refusal
        job.load(program=True)
    except (Exception, SystemExit) as error:
        return _failure(error, 'it could not be started: %s' % describe_error(error))
    _child_job = job
    if isinstance(job.func, Command):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _note_signal)
    return run_job(job)


def run_parcel(path):
    """Run the job in a file, which holds what `pack_job` returned: ``--job FILE`` does that.

    The outcome goes into ``<path>.outcome``, which `read_outcome` reads. Does not return: this
    process ends as the child of a task does, with exit code 0 after a success, 1 after a failure.

    Raises:
        StoreError: the file cannot be read, is damaged, or another user could have written it; or
            the outcome cannot be written.
    """
    path = os.path.abspath(path)
    try:
        with _open_own(path, 'job') as file:
            job = unpack_job(file.read())
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError('the job %r cannot be read: %s' % (path, error.strerror)) from error
    except Exception as error:    # pickle raises anything
        raise StoreError('the job %r is damaged (%s); pack it again'
                         % (path, describe_error(error))) from error
    job.epoch = None    # The parcel may come from another machine, which has another clock.
    outcome = _run_here(job)
    _await_threads()
    flush_streams()
    try:
        write_outcome(path + '.outcome', outcome._replace(ended=job.now()))
    except OSError as error:
        raise StoreError('the outcome %r cannot be written: %s'
                         % (path + '.outcome', error.strerror)) from error
    os._exit(0 if outcome.status == SUCCESS else 1)


def set_stdin(choice):
    """Let the standard input of this process be what config ``stdin`` says.

    Whatever a step starts would read, from the supervisor's, what is meant for somebody else.
    """
    if choice == 'inherit':
        sys.stdin = open(0, closefd=False)    # multiprocessing has replaced it
        return
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)


def _redirect(job):
    """Let the streams of this process be the log file, unless they are to be left alone.

    Then it makes a mark in place of the log: see `Orphan.lost`.

    Returns:
        an `Outcome` that says why that cannot be, or None.
    """
    path = _mark_of(job) or (job.log if _has_log(job) else None)
    if path is None:
        return None
    try:
        log = _open_log(path)
    except OSError as error:
        return Outcome(FAILURE, 'its log %r cannot be opened: %s' % (path, error.strerror))
    if not _has_log(job):
        os.close(log)
        return None
    for fd in (1, 2):
        os.dup2(log, fd)
    os.close(log)
    sys.stdout, sys.stderr = [open(fd, 'w', buffering=1, encoding='utf-8', closefd=False,
                                   errors='backslashreplace') for fd in (1, 2)]
    return None


def _deliver(job, fd, identity, outcome, lives):
    """Give the outcome to the supervisor and wait until it is stored; else leave it in a file."""
    try:
        if _file_key(fd) != identity:
            raise OSError('the function has closed our descriptor, and something else has it now')
        _write(fd, framed(pack_outcome(outcome)))
        stored = _receive(fd, lives)
    except OSError:
        stored = False
    if not stored and job.outcome is not None:
        _leave_patiently(job.outcome, outcome)
        _remove(job.outcome + '.began')


def _leave_patiently(path, outcome):
    """Leave the outcome in a file; where that cannot be written, try again for an hour.

    The work is done, and somebody may make room on the disk: a recovery waits for this process.
    """
    for number in range(2 * 3600):
        try:
            write_outcome(path, outcome)
            return
        except OSError as error:
            if not number:
                with contextlib.suppress(OSError, ValueError, AttributeError):    # closed
                    sys.stderr.write(
                        'the outcome cannot be written to %r (%s): make room, or see to the disk; '
                        'it is tried again for an hour\n' % (path, error.strerror))
        time.sleep(0.5 if number else 0.05)


# Process: a child that loads modules ----------------------------------------------------------


class _PatientFinder:
    """Finds modules as the others do, and keeps them when `LoadEnds` ends their loading."""

    def find_spec(self, name, path=None, target=None):
        import importlib.machinery
        import zipimport
        for finder in sys.meta_path:
            spec = finder.find_spec(name, path, target) if finder is not self else None
            if spec is not None:
                loader = spec.loader  # type: typing.Any
                if isinstance(loader, importlib.machinery.SourceFileLoader):  # one for each file
                    setattr(loader, 'exec_module', functools.partial(  # noqa: B010 (mypy)
                        _until_load_ends, loader.exec_module))
                elif isinstance(loader, zipimport.zipimporter):    # one for all files in a folder
                    setattr(spec, 'loader', _PatientLoader(loader))  # noqa: B010 (mypy)
                return spec
        return None


_patient_finder = _in_common('patient_finder', _PatientFinder())    # It may be there twice.


class _PatientLoader:
    """Loads modules of a zip, and keeps them when `LoadEnds` ends their loading."""

    def __init__(self, loader):
        self._loader = loader

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        _until_load_ends(exec, self._loader.get_code(module.__name__), module.__dict__)


def _until_load_ends(execute, *args):
    try:
        execute(*args)
    except _load_ends:
        pass


_loaded = None    # (name, path) of the module that was started, once it is loaded here


def _load_program(anew, name, path):
    """Load the module that was started, under the name that it has in the supervisor.

    Args:
        anew: whether a module that is called __main__ there is not here.
    """
    global _loaded
    if _common.program != '__main__':    # The command line has loaded it.
        if _common.program not in sys.modules:
            _load_flow_file(name, path)
    elif anew and _loaded != (name, path):
        _load_main(name, path)
        _loaded = name, path


def _load_flow_file(name, path):
    """Load the module that the command line has loaded in the supervisor, under its name there."""
    import importlib.util
    if '.' in name or not os.path.isfile(path):    # in a package, in a zip
        importlib.import_module(name)
        return
    spec = importlib.util.spec_from_file_location(name, path)  # type: typing.Any
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        _until_load_ends(spec.loader.exec_module, module)
    except BaseException:
        del sys.modules[name]    # A worker of a pool tries again for its next job.
        raise


def unpickled(content, home='__main__'):
    """Return what `pickled` or an earlier version has pickled.

    Args:
        content: bytes, or a file open for reading.
        home: the name of the module that made the flow.
    """
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    return _Unpickler(file, home).load()


class _Unpickler(pickle.Unpickler):
    """Finds classes of the module that was started, whatever it was called when they were
    pickled, and starts no flow when it has to load a module."""

    def __init__(self, file, home):
        super().__init__(file)
        self._home = home

    def find_class(self, module, name):
        places = [one for one in (_common.program, self._home) if one in sys.modules]
        if module not in _MAIN_NAMES:
            places = [] if module in sys.modules else [
                one for one in places if _is_file_of(sys.modules[one], module)]
        if module not in _MAIN_NAMES or not places:
            places.append(module)
        for place in places[:-1]:
            with contextlib.suppress(AttributeError):
                return super().find_class(place, name)
        if places[-1] in sys.modules:
            return super().find_class(places[-1], name)
        with _loading_only():
            return super().find_class(places[-1], name)


def _is_file_of(module, name):
    """Return whether the file of a module is one that could be imported by a name, too."""
    path = os.path.splitext(os.path.abspath(getattr(module, '__file__', None) or ''))[0]
    return (os.sep + path).endswith(os.sep + name.replace('.', os.sep))


def _load_main(name, path):
    """Load the supervisor's main module, under the name that multiprocessing gives it."""
    import importlib.util
    main = type(sys)('__mp_main__')  # type: typing.Any
    main.__file__ = path
    if name is not None:
        main.__spec__ = importlib.util.find_spec(name)
        main.__package__ = main.__spec__.parent
        code = main.__spec__.loader.get_code(name)
    elif os.path.isfile(path):
        with open(path, 'rb') as source:
            code = compile(source.read(), path, 'exec')
    else:    # it is in a zip that was given to Python as its program
        import zipimport
        folder, file = os.path.split(path)
        code = zipimport.zipimporter(folder).get_code(file[:-len('.py')])
    sys.modules['__main__'] = sys.modules['__mp_main__'] = main
    _until_load_ends(exec, code, main.__dict__)


#: Its name while programs had a construct of their own.
ProgramConstruct = ProcessConstruct


# Which construct ------------------------------------------------------------------

_CONSTRUCTS = {'process': ProcessConstruct, 'thread': ThreadConstruct, 'inline': InlineConstruct,
               'invoke': InlineConstruct}


def find_construct(spec):
    """Return the task construct that a configuration names.

    Args:
        spec: a name (``process``, ``thread``, ``inline``, that of an optional backend); a string
            ``'package.module:Class'``; a subclass of `TaskConstruct`, or an instance of one;
            ``multiprocessing.Process`` or ``threading.Thread``.

    Raises:
        ConstructError: there is no such construct.
    """
    if isinstance(spec, TaskConstruct):
        return spec
    if isinstance(spec, str):
        known = _CONSTRUCTS.get(spec)
        return _instance(known or (_named_class(spec) if ':' in spec else backend_class(
            'construct', spec, ConstructError, ['process', 'thread', 'inline'])))
    if isinstance(spec, type):
        if issubclass(spec, threading.Thread):
            return ThreadConstruct()
        if spec.__module__.startswith('multiprocessing.') and spec.__name__.endswith('Process'):
            return ProcessConstruct()
    return _instance(spec)


def made_by(identity, constructs):
    """Return the construct that has made an identity, and the construct's own text of it.

    Args:
        identity: as `Job.identity` told it. One that names no construct is of a process.
        constructs: those that are taken first.

    Raises:
        ConstructError: the construct is not there any more.
        StoreError: the identity is damaged.
    """
    known = json_object(identity)
    maker = known.get('construct', '')
    identity = known['identity'] if maker else identity
    for construct in constructs:
        if construct.can_adopt and construct.maker == maker:
            return construct, identity
    module, colon, name = maker.partition(':')
    if module == '__main__':
        module = _common.program
    try:
        return find_construct(module + colon + name if maker else 'process'), identity
    except Exception as error:    # It may need to be given something.
        raise ConstructError('%r by construct %r, which cannot be made (%s)' % (
            identity, maker, describe_error(error))) from error


def _instance(spec):
    if not (isinstance(spec, type) and issubclass(spec, TaskConstruct)):
        raise ConstructError('%r is no task construct: it must be a subclass of TaskConstruct, an '
                             'instance of one, or a name' % (spec,))
    missing = sorted(getattr(spec, '__abstractmethods__', ()))
    if missing:
        raise ConstructError('%r is no complete task construct: it lacks %s'
                             % (spec, ', '.join(missing)))
    return spec()


def _named_class(spec):
    """Return what ``package.module:Class`` names."""
    module, _, name = spec.partition(':')
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConstructError('task construct %r cannot be loaded (%s)'
                             % (spec, describe_error(error))) from error


# 8 Driver ########################################################################
#
# The only loop. In each turn it hands what happened to the engine, lets constructs prepare what
# is to start, commits all records in one transaction, then releases the starts and tells the
# constructs which outcomes are stored. Inline tasks run in between, one at a time. These, and
# those that a construct queues, share commits: what comes next is stored as active in advance.


def _describe(task):
    """How messages name a task."""
    return 'step %s at %s' % (task.step.path, task.sequence)


def outcome_path(folder, flow, run_id, name, sequence, recovery, attempt):
    """Return where an orphan leaves its outcome, or None in a store that has no folder for it."""
    if folder is None:
        return None
    return log_path(folder, flow, run_id, name, sequence, recovery, attempt)[:-4] + '.json'


# Retries ---------------------------------------------------------------------------


def _is_among(outcome, failures):
    """Whether a failure is by one of the exit codes or of one of the classes given."""
    names = [kind.rpartition('.')[2] for kind in outcome.kinds]
    return any(outcome.code == one if isinstance(one, int) else
               class_name(one) in outcome.kinds if isinstance(one, type) else
               one in outcome.kinds or one in names
               for one in (failures if isinstance(failures, (list, tuple)) else (failures,)))


def retry_delay(config, attempt, name):
    """Return the seconds between an attempt's failure and the next attempt.

    Args:
        config: ``retry_delay``, a number, which ``retry_backoff`` multiplies from the second
            time on, or a list of numbers, the last of which stays; ``retry_jitter``, the share by
            which it is varied.
        attempt: the number of the one that failed, from 1.
        name: decides on the variation: the same name gives the same delay.
    """
    import zlib
    delay = config['retry_delay']
    if isinstance(delay, (list, tuple)):
        delay = delay[min(attempt, len(delay)) - 1]
    else:
        try:
            delay *= min(config['retry_backoff'] ** (attempt - 1), 1e9)
        except OverflowError:
            delay *= 1e9
    chance = zlib.crc32(('%s %d' % (name, attempt)).encode('utf-8')) / 0xffffffff
    return delay * (1 + config['retry_jitter'] * (2 * chance - 1))


class _Retries:
    """Says how long failures of the steps of a `Plan` wait for their next attempt."""

    def __init__(self, plan, run):
        self._run = run
        self._configs = {one.path: one.step.settings for one in plan.steps if one.retries}
        self._delays = {one.path: one.delay for one in plan.steps if one.delay}

    def delay(self, path, attempt, outcome):
        """Return the seconds until a failed attempt may be followed by another; None: never.

        The engine says how often. ``attempt`` is a `Job` or `TaskRecord`.
        """
        config = self._configs.get(path)
        if config is None:
            return None
        wanted, unwanted = config['retry_on'], config['retry_unless']
        if (wanted is not None and not _is_among(outcome, wanted)
                or unwanted is not None and _is_among(outcome, unwanted)):
            return None
        made = attempt.attempt if attempt.recovery == self._run.recovery else 1
        return self._delay(config, made, path, attempt.sequence)

    def longest_wait(self, record):
        """Return the most seconds that the wait can take that a task is recorded in.

        A first attempt may follow a failure in an earlier recovery.
        """
        config = self._configs.get(record.path)
        delay = self._delays.get(record.path, 0.0) if record.attempt == 1 else 0.0
        return delay if config is None else max(delay, self._delay(
            config, max(1, record.attempt - 1), record.path, record.sequence))

    def _delay(self, config, attempt, path, sequence):
        return retry_delay(config, attempt, '%s %s %s' % (self._run.run_id, path, sequence))


# Results that are asked for ----------------------------------------------------------

#: A pickled result that is longer, in bytes, goes to a file, where the store has a folder for it.
LARGE_RESULT = 1 << 20
_IN_FILE = b'in file: '


#: A result that could not be pickled: what follows is its repr.
_AS_REPR = b'repr: '


def store_result(store, place, outcome):
    """Return what is stored of the result of an `Outcome`.

    Args:
        place: flow, run_id, path, sequence, recovery, attempt: names the file of a large one.

    Raises:
        StoreError: the file cannot be written.
    """
    stored = outcome.result
    if stored is not None and len(stored) > LARGE_RESULT and store.results is not None:
        path = log_path(store.results, *place)[:-4] + '.pickle'
        try:
            write_aside(path, stored)
        except OSError as error:
            raise StoreError(
                'the result of step %r at %s cannot be written to %r: %s; see to that, then go on '
                'with the run (continue)' % (place[2], place[3], path, error.strerror)) from error
        stored = _IN_FILE + os.fsencode(os.path.relpath(path, store.results))
    return _AS_REPR + stored if outcome.warning and stored is not None else stored


class _Lost(str):
    """Stands for results that cannot be had: the reason."""


def load_result(store, stored, as_repr=True, home='__main__'):
    """Return what a step returned, from the ``result`` of its record.

    Args:
        as_repr: of what could not be pickled return its repr.
        home: the name of the module that made the flow, see `unpickled`.

    Raises:
        StoreError: the file that it was written to cannot be read, or there is but a repr.
        Exception: whatever unpickling it raises.
    """
    if stored is None:
        return None
    if isinstance(stored, _Lost):
        raise StoreError(stored)
    if isinstance(stored, list):
        return [load_result(store, one, as_repr, home) for one in stored]
    if stored.startswith(_AS_REPR):
        if not as_repr:
            raise StoreError('it could not be pickled when nobody asked for it; run the step '
                             'again')
        stored = stored[len(_AS_REPR):]
    if not stored.startswith(_IN_FILE):
        return unpickled(stored, home)
    path = os.path.join(store.results or '', os.fsdecode(stored[len(_IN_FILE):]))
    try:
        with _open_own(path, 'result') as file:
            return unpickled(file, home)
    except StoreError:
        raise
    except OSError as error:
        raise StoreError('the result in the file %r cannot be read: %s; run the step again'
                         % (path, error.strerror)) from error


class _Results:
    """The results that placeholders ask for, of the iterations in flight.

    The scope in which a leaf stands has its result as it is stored. A container passes those on
    that are asked for further out, as lists over its iterations; it is stored with them, too.
    ``home`` is the name of the module that made the flow.
    """

    def __init__(self, store, run, home):
        self.store = store
        self.run = run
        self.home = home

    def stored(self, task, outcome):
        """Return the result of an `Outcome` as it is to be stored."""
        place = (task.step.path, task.sequence, task.recovery, task.attempt)
        return store_result(self.store, (self.run.flow, self.run.run_id) + place, outcome)

    def keep(self, scope, leaf, result):
        if scope.results is None:
            scope.results = {}
        scope.results[leaf] = result

    def gather(self, scope):
        """An iteration is over: its container keeps what is asked for further out."""
        task, number = scope.task, int(scope.sequence.rpartition('.')[2])
        if task.gathered is None:
            task.gathered = {}
        task.gathered[number] = scope.results or {}

    def close(self, task):
        """A container is over."""
        found, task.gathered = task.gathered or {}, None
        if task.status != SUCCESS:
            return
        lists = {leaf: [found.get(number, {}).get(leaf)
                        for number in range(1, max(found, default=0) + 1)]
                 for leaf in task.step.gathers}
        for leaf, results in lists.items():
            self.keep(task.scope, leaf, results)
        task.result = self.stored(task, Outcome(SUCCESS, result=pickle.dumps(
            {leaf.path: results for leaf, results in lists.items()}, 4)))

    def skip(self, task, stored):
        """A task is passed over in a recovery; ``stored`` is its earlier result."""
        step = task.step
        if step.wanted:
            self.keep(task.scope, step, stored)
        if step.gathers and stored is not None:
            try:
                lists = load_result(self.store, stored, home=self.home)
            except Exception as error:    # it matters only to who asks for them
                lists = {leaf.path: _Lost(str(error)) for leaf in step.gathers}
            for leaf in step.gathers:
                self.keep(task.scope, leaf, lists.get(leaf.path))

    def value(self, task, placeholder):
        """Return what a placeholder of a task stands for."""
        place, scope = task.step.fills[placeholder], task.scope
        if type(placeholder) is ItemOf:
            return scope.items[place]
        levels, leaf = place
        for _ in range(levels):
            scope = scope.parent
        try:
            return load_result(self.store, (scope.results or {}).get(leaf), False, self.home)
        except Exception as error:
            raise StoreError('the result of %s: %s' % (
                leaf.path, error if isinstance(error, StoreError) else describe_error(error)
            )) from error

    def fill(self, task):
        """Return what a task calls: function, args and kwargs, without placeholders."""
        step, value = task.step.step, self.value
        if step.flat:    # nearly all are so, and it takes a third of the time
            return step.func, tuple([value(task, one) if isinstance(one, Placeholder) else one
                                     for one in step.args]), step.kwargs or {}
        find = functools.partial(value, task)

        def look_up(*name):
            placeholder = step.names[name]
            found = (find(placeholder) if placeholder is not None
                     else _parameters.declared[name[0]].value)
            return '' if found is None else found
        func = (step.func.filled(look_up, find) if isinstance(step.func, Command) else
                filled(step.func, find))
        return func, filled(step.args, find), filled(step.kwargs, find) or {}


# Time ------------------------------------------------------------------------------


class RunClock:
    """Seconds since the epoch that pass like a monotonic clock: nobody can set it back."""

    def __init__(self):
        self.offset = time.time() - time.monotonic()

    def __call__(self):
        return self.offset + time.monotonic()


class _Timers:
    """Calls that are due at a time, in one heap. Each has a key."""

    def __init__(self, clock):
        self.clock = clock
        self._numbers = itertools.count()
        self._set = {}  # type: typing.Dict[typing.Any, tuple]
        # (when, number, key, call): also entries whose key has been dropped or set again.
        self._heap = []  # type: typing.List[tuple]

    def __len__(self):
        return len(self._set)

    def __contains__(self, key):
        return key in self._set

    def set(self, key, when, call):
        """Call ``call()`` at a time, once; forget what was set before with the same key."""
        entry = self._set[key] = when, next(self._numbers), key, call
        heapq.heappush(self._heap, entry)
        if len(self._heap) > 64 + 4 * len(self._set):    # most have been dropped
            self._heap = sorted(self._set.values(), key=operator.itemgetter(0, 1))

    def drop(self, key):
        """Forget a call, if there is one with this key."""
        self._set.pop(key, None)

    def next(self):
        """Return when the next call is due, or None."""
        heap = self._heap
        while heap and self._set.get(heap[0][2]) is not heap[0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def ring(self):
        """Make the calls that are due."""
        while self._set and self.next() <= self.clock():
            _, _, key, call = heapq.heappop(self._heap)
            del self._set[key]
            call()


class _Loops:
    """The loops of containers in flight: their iterators."""

    def __init__(self, results):
        self.results = results
        self.iterators = {}    # task -> [iterator, how many items were taken of it]
        self.warned = set()

    def next_item(self, task):
        """Return (item, over) for the next iteration; what the loop raises is let through."""
        entry = self.iterators.get(task)
        if entry is None:
            entry = self.iterators[task] = [self._begin(task), 0]
        iterator, taken = entry
        entry[1] = task.opened + 1
        try:
            for _ in range(task.opened - taken):
                next(iterator)    # the items that were recorded are passed over
            item = next(iterator)
        except StopIteration:
            return None, True
        found = None if type(item) in _PLAIN_TYPES else reference_in(item)
        if found is not None:
            raise FlowTypeError('an item of it holds %r; the result of a step can only be the '
                                'whole loop, as in loop=a.result, and what a step waits for is '
                                'given as require=' % found)
        return item, False

    def _begin(self, task):
        """Return the iterator of a loop."""
        loop = task.step.step.loop
        if not found_by_running(loop):
            return iter(loop)
        what = 'it returned'
        if isinstance(loop, Placeholder):
            what = 'the %r is' % loop
            loop = self.results.value(task, loop)
        else:
            loop = loop()
        if isinstance(loop, (set, frozenset)):
            raise FlowTypeError('%s a set, whose order changes from run to run; use sorted()'
                                % what)
        try:
            return iter(loop)
        except TypeError:
            raise FlowTypeError('%s %r, which cannot be gone over' % (what, loop)) from None

    def blob(self, path, item):
        """Return the item as it is stored, or None for what cannot be pickled (said once)."""
        try:
            return pickled(item)
        except _ANY_FAILURE as error:
            if path not in self.warned:
                self.warned.add(path)
                logger.warning('step %s: a loop item cannot be pickled (%s); in a recovery its '
                               'items match by their index', path, error)
            return None

    def same(self, item, blob, recorded):
        """Whether an item is the one recorded (semantics 7.4)."""
        if blob == recorded or blob is None or recorded is None:
            return True
        home = self.results.home
        try:
            if _is_equal(unpickled(recorded, home), item):
                return True
            # Objects may change a little when they are pickled or compared (an index of pandas
            # keeps what it has worked out), so both are compared as they come out of a pickle.
            return _content_of(unpickled(recorded, home)) == _content_of(unpickled(blob, home))
        except _ANY_FAILURE as error:
            logger.debug('a recorded loop item cannot be compared: %s', describe_error(error))
            return False

    def close(self, task):
        self.iterators.pop(task, None)


def _is_equal(one, other):
    """Return whether ``==`` says so. Arrays do not say yes or no, but which elements are equal."""
    try:
        answer = one == other
        return not hasattr(type(answer), '__len__') and bool(answer)
    except _ANY_FAILURE as error:
        logger.debug('loop items do not compare: %s', describe_error(error))
        return False


def _content_of(value, modules=(), known=None):
    """Return a digest of a value's pickle that does not depend on the order of its sets and
    dictionaries, which may change with the hash seed, nor on what these modules are called."""
    import hashlib
    file = io.BytesIO()
    _ContentPickler(file, modules, {} if known is None else known).dump(value)
    return hashlib.sha1(file.getvalue()).digest()


class _ContentPickler(pickle.Pickler):
    """Pickles the digest of what a set or a dictionary holds in place of it, and the name alone
    of what is of some modules.

    Args:
        known: {id: (set or dictionary, its digest)}.
    """

    def __init__(self, file, modules, known):
        super().__init__(file, 4)
        self._modules = modules
        self._known = known

    def persistent_id(self, thing):
        if _is_named_in(thing, self._modules):
            return thing.__qualname__
        if type(thing) not in (set, frozenset, dict):
            return None
        known = self._known
        if id(thing) not in known:
            known[id(thing)] = thing, b'%d' % len(known)    # where something in it refers to it
            parts = list(map(self._content, thing))
            if type(thing) is dict:
                parts = [part + self._content(thing[one]) for part, one in zip(parts, thing)]
            known[id(thing)] = thing, type(thing).__name__.encode() + self._content(sorted(parts))
        return known[id(thing)][1]

    def _content(self, value):
        return _content_of(value, self._modules, self._known)


def found_by_running(loop):
    """Whether the items of a loop are known only while the flow runs."""
    return callable(loop) or isinstance(loop, Placeholder)


#: What is recorded at a sequence: see `_History.earlier`.
_Past = collections.namedtuple('_Past', 'earlier item over floor')


_NO_PAST = _Past(None, None, False, 0)


#: What an earlier supervisor left running: the job is one of the construct that has made it.
_Left = collections.namedtuple('_Left', 'record job construct sight')


class _History:
    """What earlier supervisors left of the run that is recovered or continued.

    Args:
        plan: the `Plan` of the flow as it is now.
        settings: the flow's resolved configuration.
        base: the recovery whose end is the state that this recovery began with.
        signatures: {path: signature} of this flow's steps.
        noted: {recovery: what its supervisor noted in ``steps``}, as far as that has been read.

    Attributes:
        living: {(path, sequence): _Left} of the orphans that still run.
        left: {(path, sequence): (TaskRecord, Outcome or None)} of those that left an outcome, or
            have never begun.
        retries: the driver's `_Retries`.
    """

    def __init__(self, store, run, plan, settings, base=-1, signatures=None, noted=None):
        self.store = store
        self.run = run
        self.base = base
        self.signatures = signatures or {}
        self.noted = noted or {}
        self.living = {}  # type: typing.Dict[tuple, _Left]
        self.left = {}  # type: typing.Dict[tuple, tuple]
        self._taken = []  # type: typing.List[tuple]
        self.retries = None  # type: typing.Any
        self._settings = settings
        self._steps = {one.path: one.step for one in plan.steps if one.calls}
        self._constructs = list({id(one.construct): one.construct
                                 for one in self._steps.values()}.values())

    def look(self, settle=False):
        """Find the orphans that still run, and what the others left.

        Args:
            settle: commit what they left, and remove the files that they left it in.
        """
        for record in self.store.tasks(self.run, status=ACTIVE):
            if record.process:
                self._look_at(record, settle)
        if not settle:
            return
        self.store.commit(self.run, [record for record, _ in self.left.values()])
        for job, construct in self._taken:
            construct.settle(job)
        self._remove_outcomes()
        for record, outcome in self.left.values():
            logger.info('step %s at %s %s while no supervisor was there', record.path,
                        record.sequence, 'ended with ' + outcome.status if outcome is not None
                        else 'did not begin')
        for left in self.living.values():
            logger.info('step %s at %s still runs as %s since %s: it is adopted', left.job.name,
                        left.job.sequence, left.sight.text, local_time(left.record.started))

    def _look_at(self, record, settle):
        """Look at what was started for a task that is recorded as active."""
        key, place = (record.path, record.sequence), (self.run.flow, self.run.run_id) + record[:4]
        job, construct, sight = self._sight(record, place)
        outcome = sight.outcome
        if outcome is not None:
            record = record._replace(status=outcome.status, ended=outcome.ended,
                                     error=outcome.error)
            if settle:
                record = record._replace(result=store_result(self.store, place, outcome))
            self.left[key] = record, outcome._replace(result=None)
            self._taken.append((job, construct))
        elif sight.state == 'never_began':
            self.left[key] = record._replace(status=READY, started=None, process=None), None
        elif sight.state == 'running':
            self.living[key] = _Left(record, job, construct, sight)
        elif sight.state == 'unknown' and not self._settings['assume_dead']:
            raise AlreadyRunningError(
                'step %r at %s was started as %s, which cannot be looked at from here; go on '
                'there, or, if you know that it is dead, with --assume-dead '
                "(config={'assume_dead': True})" % (record.path, record.sequence, sight.text))

    def _sight(self, record, place):
        """Return a job for what was started, the construct that has made it, and its `Sight`."""
        step = self._steps.get(record.path)
        job = Job(record.path, record.sequence, record.recovery, record.attempt, self.run.flow,
                  self.run.run_id, config=self._settings if step is None else step.settings,
                  outcome=outcome_path(self.store.folder, *place))
        own = [] if step is None else [step.construct]
        try:
            construct, job.process = made_by(record.process, own + self._constructs)
        except ConstructError as error:
            return job, None, Sight('unknown', text=str(error))
        if construct not in self._constructs:
            self._constructs.append(construct)
        if self.run.status == 'stopped' and not construct.leaves:
            return job, construct, Sight('ended')    # The stop ended it.
        job.maker = construct.maker
        return job, construct, construct.look(job)

    def _remove_outcomes(self):
        """Remove the files of tasks whose end was known already."""
        if not self.store.folder:
            return
        living = [left.job.outcome for left in self.living.values()]
        folder = os.path.dirname(outcome_path(self.store.folder, self.run.flow, self.run.run_id,
                                              '', '', 0, 0))
        try:
            for name in os.listdir(folder) if os.path.isdir(folder) else ():
                path = os.path.join(folder, name)
                if not any(path.startswith(one) for one in living):
                    _remove(path)    # unless it was renamed just now
        except OSError as error:    # what stays is known already, and is no more asked for
            logger.warning('outcomes that have been taken stay in %r: %s', folder, error.strerror)

    def earlier(self, sequence, path='', floor=0):
        """Return what is recorded at a sequence.

        Args:
            path: the container whose iteration it is.
            floor: outcomes of earlier recoveries than this one do not count: they belong to
                another loop item.

        Returns:
            a `_Past`: {path: Earlier} or None for nothing, the recorded loop item or None,
            whether it is recorded that the loop had no more items, the floor for what is inside.
        """
        rows = self._rows(sequence)
        item, over = None, False
        if path in rows and rows[path].recovery >= floor:
            item = rows[path].item
            if rows[path].kind == 'iteration':
                floor = rows[path].recovery
                over = rows[path].status == 'over'
        inside = path + '_'    # others have tasks at this sequence, too
        found = {name: self._outcome(record) for name, record in rows.items()
                 if record.kind != 'iteration' and record.recovery >= floor
                 and (not path or name == path or name.startswith(inside))}
        for (name, at), (record, *_) in self.living.items():
            if at == sequence:
                found[name] = Earlier(ACTIVE, record.kind, record.recovery, record.attempt,
                                      running=True, began=record.started or 0.0)
        return _Past(found or None, item, over, floor)

    def _rows(self, sequence):
        """Return {path: latest TaskRecord} up to the base, and in this recovery itself."""
        own = self.run.recovery
        rows = self.store.outcomes(self.run, sequence, own)
        if self.base < own - 1 and any(record.recovery < own for record in rows.values()):
            own_rows = {path: record for path, record in rows.items() if record.recovery == own}
            rows = self.store.outcomes(self.run, sequence, self.base)
            rows.update(own_rows)
        for path, record in rows.items() if self.left else ():
            left, _ = self.left.get((path, sequence), (record, None))
            if record.status == ACTIVE and left[:4] == record[:4]:
                rows[path] = left    # It is not stored, as nothing is changed.
        return rows

    def _outcome(self, record):
        changed = False
        if record.kind in ('container', 'loop'):
            signature = self.signatures.get(record.path)
            changed = signature != self.recorded(record.recovery).get(record.path)
        due, again, wait = record.due, False, None
        if record.status == READY and due is not None:
            wait = self.retries.longest_wait(record)
        _, outcome = self.left.get((record.path, record.sequence), (None, None))
        if outcome and outcome.status == FAILURE and self.run.mode == 'continue':
            delay = self.retries.delay(record.path, record, outcome)
            if delay is not None:
                due, again, wait = record.ended + delay, True, delay
        return _new_tuple(Earlier, (
            record.status, record.kind, record.recovery, record.attempt, due, False, changed,
            json_object(record.events) if record.events else None, record.error, again,
            record.result, wait, record.handled, record.started or 0.0, record.ended or 0.0))

    def _noted(self, recovery):
        """Return what the supervisor of a recovery noted in ``steps``."""
        if recovery not in self.noted:
            for run in self.store.runs(self.run.flow):
                if run.run_id == self.run.run_id and run.recovery < self.run.recovery:
                    self.noted.setdefault(run.recovery, json_object(run.steps))
            self.noted.setdefault(recovery, {})
        return self.noted[recovery]

    def recorded(self, recovery):
        """Return {path: signature} of the steps as they were in a recovery."""
        return self._noted(recovery).get('signatures', {})

    def base_run(self):
        """Return the number of the recovery that is gone on with."""
        return self.run.recovery if self.run.mode == 'continue' else self.base

    def triggers(self):
        """Return the [event, sequence] pairs that the run was told to raise from outside."""
        return self._noted(self.base_run()).get('triggers', [])

    def log_differences(self):
        """Name the steps that are gone, new or of another kind since the run that is gone on
        with; return the sentences."""
        before, now = self.recorded(self.base_run()), self.signatures
        if not before or before == now:
            return []
        kinds = (
            ('gone', [path for path in before if path not in now]),
            ('new', [path for path in now if path not in before]),
            ('of another kind now', [path for path in now if path in before
                                     and bool(now[path]) != bool(before[path])]))
        found = ['steps that are %s since the run that is gone on with: %s'
                 % (text, ', '.join(sorted(paths))) for text, paths in kinds if paths]
        for text in found:
            logger.warning('%s', text)
        return found


def local_time(seconds):
    """Return a time as people read it, in the local time zone."""
    if seconds is None:
        return '-'
    try:
        return time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(seconds))
    except (OverflowError, ValueError, OSError):    # there is no such year
        return '%g s after 1970' % seconds


def step_signatures(plan):
    """Return {path: signature}: a leaf's is '', a container's changes with what is inside.

    It is stored with each run. A container that succeeded is passed over in a recovery only if
    its signature is what it was (semantics 7.2). The loop counts as far as it can be known without
    going over it: what is found by running is taken as unchanged, as a recovery goes over its
    recorded items; an iterator never is.
    """
    import hashlib
    signatures = {}  # type: typing.Dict[str, str]
    for step in reversed(plan.steps):
        if step.children is None:
            signatures.setdefault(step.path, '')
            continue
        if step.parent is None:
            continue
        content = ['%s=%s' % (child.path, signatures[child.path]) for child in step.children]
        content.append(_loop_mark(step.step.loop, step.step.flow.module))
        content += ['result of %s' % path for path in sorted(one.path for one in step.gathers)]
        signatures[step.path] = hashlib.sha1('\n'.join(content).encode('utf-8')).hexdigest()[:16]
    return signatures


def called_text(function):
    """Return the name of what is called; of a program only a mark, as it may name a secret."""
    if isinstance(function, Command):
        import hashlib
        text = str(function).encode('utf-8', 'surrogatepass')
        return 'program ' + hashlib.sha1(text).hexdigest()[:12]
    name = getattr(function, '__qualname__', None)
    return name + '()' if isinstance(name, str) else type(function).__name__


def _loop_mark(loop, module):
    """Return a text that changes with a loop of a module; what cannot be compared is never the
    same."""
    if loop is None:
        return ''
    import hashlib
    if found_by_running(loop):
        return 'callable' if callable(loop) else repr(loop)
    never = 'never the same %s' % os.urandom(8).hex()
    if iter(loop) is loop:
        return never
    try:
        content = pickle.dumps(loop, 4)
        modules = _MAIN_NAMES | {_common.program, module}
        if (pickle.EMPTY_SET in content or pickle.FROZENSET in content
                or _names_in(loop, content, modules)):
            return 'content ' + _content_of(loop, modules).hex()
        return hashlib.sha1(content).hexdigest()
    except _ANY_FAILURE as error:
        logger.debug('a loop cannot be pickled: %s', error)
        return never


class RunTimeout(BaseException):
    """Ends a run whose time is over; never leaves the library."""


class _DriverPort(Port):
    """What reaches the loop: outcomes, calls from other threads, descriptors that are readable.

    Attributes:
        arrived: the jobs that have ended, with their outcomes; from any thread.
        calls: what other threads ask for: (function, future or None).
        thread: the driver's thread, once it has begun.
    """

    def __init__(self, driver):
        self.config = driver.settings
        self.stopping = False
        self.volatile = driver.store.volatile
        self._driver = driver
        self.arrived = collections.deque()  # type: typing.Deque[tuple]
        self.calls = collections.deque()  # type: typing.Deque[tuple]
        self.thread = None  # type: typing.Optional[int]
        self._selector = None  # type: typing.Any
        self._waker = ()  # type: typing.Any
        self._sleeps = False    # whoever has something for the loop is to wake it

    def open(self):
        import selectors
        import socket
        self.thread = threading.get_ident()
        self._selector = selectors.DefaultSelector()
        self._waker = socket.socketpair()
        for end in self._waker:
            end.setblocking(False)
        self.watch(self._waker[0], self._woken)

    def close(self):
        self._selector.close()
        self._selector = None
        self._refuse_calls()
        for end in self._waker:
            end.close()

    def watch(self, fd, callback):
        self._selector.register(fd, 1, callback)    # 1: EVENT_READ

    def unwatch(self, fd):
        self._selector.unregister(fd)

    def private_fds(self):
        fds = [end.fileno() for end in self._waker] + list(
            self._driver.store.private_fds())
        with contextlib.suppress(AttributeError):    # select() has none
            fds.append(self._selector.fileno())
        return fds

    def wakes(self):
        """Return the descriptor that ends the loop's sleep when a byte is written to it."""
        return self._waker[1].fileno()

    def moved(self, job):
        if job.task is not None and job.task.status == ACTIVE:
            self._driver.batch.note_moved(job.task)

    def began(self, job, when):
        job.began = when
        self.call(functools.partial(self._driver.note_begin, job))

    def call(self, function):
        self.calls.append((function, None))
        self._wake()

    def done(self, job, outcome):
        self.arrived.append((job, outcome))
        if threading.get_ident() != self.thread:
            self._wake()

    def ask(self, function):
        """Return what a function returns when the driver's thread calls it; from another one.

        Raises:
            ClosedError: the run ended before it could be called.
        """
        from concurrent.futures import Future
        answer = Future()  # type: typing.Any
        self.calls.append((function, answer))
        self._wake()
        if self._selector is None:    # it closed meanwhile, and may not have seen this
            self._refuse_calls()
        return answer.result()

    def answer(self):
        """Call what other threads ask for."""
        while self.calls:
            function, answer = self.calls.popleft()
            if answer is None:
                function()
                continue
            try:
                answer.set_result(function())
            except Exception as error:
                answer.set_exception(error)

    def _refuse_calls(self):
        with contextlib.suppress(IndexError):
            while True:
                answer = self.calls.popleft()[1]
                if answer is not None:
                    answer.set_exception(
                        ClosedError('the run is over: its thread answers no more'))

    def sleep(self, timeout):
        """Handle what is readable; wait so many seconds for it (None: for ever)."""
        if timeout is not None:
            timeout = min(timeout, 86400.0)
        self._sleeps = True
        if self.arrived or self.calls:    # these came before anybody knew that the loop sleeps
            timeout = 0
        for key, _ in self._selector.select(timeout):
            key.data()
        self._sleeps = False

    def _wake(self):
        if self._sleeps:
            self._sleeps = False
            with contextlib.suppress(OSError):
                # Full: the loop is awake already. Closed: the run is over.
                self._waker[1].send(b'\0')

    def _woken(self):
        with contextlib.suppress(BlockingIOError):
            self._waker[0].recv(4096)


def _item_text(item):
    """Return a loop item as text, to be shown; it is stored with each task."""
    return masked(_shown(str, item))[:200]


class _Batch:
    """What is in the next commit, and what follows it.

    Args:
        window: the most seconds that a commit may wait.

    Attributes:
        starting: tasks to prepare before the commit, and to start after it.
        dirty: tasks whose record is to be stored (an ordered set).
        rows: further records.
        answers: (request, answer) pairs.
        ahead: tasks that are stored as active ahead of their start (an ordered set).
        settled: (job, construct) of outcomes that the commit stores.
        until: when the commit, which waits for more of the same (semantics 6.2), is due; None:
            it does not wait. Neither does it if it is ``urgent``.
    """

    MOVED = 0.5    # seconds after which the process that a job has moved to is stored

    def __init__(self, store, run, timers, observers, window):
        self.store = store
        self.run = run
        self.observers = observers
        self.starting = []  # type: typing.List[Task]
        self.dirty = {}  # type: typing.Dict[Task, None]
        self.rows = []  # type: typing.List[TaskRecord]
        self.answers = []  # type: typing.List[tuple]
        self.ahead = {}  # type: typing.Dict[Task, None]
        self.settled = []  # type: typing.List[tuple]
        self.until = None  # type: typing.Optional[float]
        self.urgent = False
        self._ahead_rows = []  # type: typing.List[TaskRecord]
        self._moved = {}  # type: typing.Dict[Task, None]
        self._timers = timers
        self._clock = timers.clock
        # Where a commit costs nothing, a window only makes commits few.
        self._window = min(window, 2e-3 if store.volatile else 86400)

    def wait(self):
        """Let the next commit wait, from the first call on for so long as the window is."""
        if self.until is None:
            self.until = self._clock() + self._window

    def waits(self):
        """Return whether the commit may still wait."""
        return self.until is not None and not self.urgent and self._clock() < self.until

    def note_moved(self, task):
        """Store soon which process runs a task now: that alone is not worth a commit at once."""
        if not self._moved:
            self._timers.set('moved', self._clock() + self.MOVED, self._add_moved)
        self._moved[task] = None

    def _add_moved(self):
        for task in self._moved:
            if task.status == ACTIVE:
                self.dirty[task] = None
        self._moved = {}

    def commit(self):
        """Store in one transaction what has changed."""
        if self._moved and (self.dirty or self.rows):
            self._timers.drop('moved')
            self._add_moved()
        rows, store = self.rows, self.store
        rows += map(self.record, self.dirty)
        ahead, answers = self._ahead_rows, self.answers
        self.rows, self.dirty, self._ahead_rows, self.answers = [], {}, [], []
        self.until, self.urgent = None, False
        if _parameters.secrets:
            rows, ahead = map(_masked, (rows, ahead))
        if self.observers.named and not store.volatile and (rows or ahead):
            answers.append(self.observers.owed(self.run, rows + ahead))
        if answers:
            store.commit(self.run, rows + ahead, answers)
        elif rows or ahead:
            store.commit(self.run, rows + ahead if ahead else rows)
        if rows:
            self.observers.tell('committed', rows)

    def tell_start(self, task):
        """Tell observers of a start that was stored ahead."""
        if self.observers.closely:
            self.observers.tell('committed', _masked([self.record(task)]))

    def settle(self):
        """Tell constructs which outcomes have been stored."""
        settled, self.settled = self.settled, []
        for job, construct in settled:
            construct.settle(job)

    def finish(self):
        """Store what is left to store, before the constructs close."""
        self.rows += [self.record(task) for task in self.ahead]
        self.ahead = {}
        self.commit()
        self.settle()

    def store_ahead(self, task):
        """Store a task as active that starts before the next commit."""
        self.ahead[task] = None
        self.dirty.pop(task, None)
        self._ahead_rows.append(self.record(task)._replace(status=ACTIVE))

    def take_ahead(self, task):
        """Return whether the start of a task has been stored ahead."""
        if task not in self.ahead:
            return False
        del self.ahead[task]
        self.dirty.pop(task, None)
        return True

    def record(self, task):
        """Return what is stored of a task now."""
        status, step, scope, cause = task.status, task.step, task.scope, task.cause
        leaf = step.children is None
        if task.started is None and status != READY:
            task.started = self._clock()
        if task.ended is None and (status == SUCCESS or status == FAILURE):
            task.ended = self._clock()
        job = task.job
        return _new_tuple(TaskRecord, (
            step.path, task.sequence, task.recovery, task.attempt, step.kind, status,
            bool(task.made_good) if status == FAILURE else
            status == SUCCESS and not leaf and task.left,
            scope.blob if leaf else None, task.due, task.started, task.ended,
            job.identity() if job is not None and status == ACTIVE else None,
            task.result, task.error, task.events,
            _item_text(scope.item) if leaf and scope.blob is not None else None, task.ready_at,
            None if cause is None else '%s %s' % (cause[0].path, cause[1])))


def _masked(records):
    """Return `TaskRecord`s without the values of secret parameters."""
    return [one._replace(error=masked(one.error)) if one.error else one for one in records]


class _Limits:
    """How long jobs may take: config ``timeout`` and ``warn_after``."""

    def __init__(self, timers, grace):
        self._timers = timers
        self._grace = grace    # seconds between asking a job to end and ending it
        self._asked = {}  # type: typing.Dict[Job, float]

    def begin(self, job, construct, started):
        """Set the timers of a job that began at a time."""
        limit, warn = job.config['timeout'], job.config['warn_after']
        if limit is not None:
            self._timers.set((job, 'end'), started + limit,
                             functools.partial(self._end, job, construct))
        if warn is not None:
            self._timers.set((job, 'warn'), started + warn, functools.partial(self.warn, job))

    @staticmethod
    def warn(job):
        logger.warning('step %s at %s has been running for %g s', job.name, job.sequence,
                       job.config['warn_after'])

    def _end(self, job, construct):
        """Ask a job to end; ask no more after the grace."""
        now = self._timers.clock()
        force = job in self._asked or not self._grace
        self._asked.setdefault(job, now)
        construct.kill(job, force)
        if not force:
            self._timers.set((job, 'end'), now + self._grace,
                             functools.partial(self._end, job, construct))

    def end(self, job, outcome):
        """Drop the timers of a job that has ended; return its outcome.

        After a timeout the outcome is a failure, whatever it says, unless the job had succeeded
        before it was asked to end.
        """
        config = job.config
        if config['warn_after'] is not None:
            self._timers.drop((job, 'warn'))
        if config['timeout'] is None:
            return outcome
        self._timers.drop((job, 'end'))
        asked = self._asked.pop(job, None)
        if asked is None or (outcome.status == SUCCESS and outcome.ended is not None
                             and outcome.ended < asked):
            return outcome
        return Outcome(FAILURE, 'timed out after %g s' % config['timeout'],
                       kinds=tuple(map(class_name, TimeoutError.__mro__)))


class Observer:
    """Is told of a run: the base of all observers, and how to write one.

    An observer decides nothing. Its methods are called in the supervisor's loop, in its thread, so
    they must not block: what takes its time, such as a mail, is done in a process of its own. An
    observer that raises is reported once and told no more; the run goes on.

    The least that works::

        class Failures(sequent.Observer):
            def committed(self, records):
                for record in records:
                    if record.status == 'failure':
                        print(record.path, record.sequence, record.error)

        flow.observe(Failures())
    """

    #: Whether to show each start, also those that a volatile store is not told of.
    closely = True
    #: A name by which a recovery knows the observer: the records that a supervisor stored just
    #: before it was killed, and perhaps told nobody, are told again to the observer of that name.
    name = None  # type: typing.Optional[str]
    #: Seconds after which a call is warned of, as nothing else is done meanwhile.
    SLOW = 1.0

    def begun(self, run):
        """A supervisor begins a run or goes on with it. ``run`` is a `RunRecord`."""

    def committed(self, records):
        """Statuses have been stored. ``records`` is a list of `TaskRecord`, oldest first.

        A start is shown when the task is started, just before its function is called. A record
        can come again, for instance when more is known of its process. The records of kind
        ``iteration`` are those of loops.
        """

    def ended(self, run, ok):
        """The supervisor has stored that a run is over, or, if its status is ``stopped``, that the
        run can be continued.

        Args:
            run: a `RunRecord`.
            ok: whether all went well so far.
        """


def find_observer(spec):
    """Return an observer: that of ``backends/NAME.py`` for the name, or the given `Observer`.

    Raises:
        ConfigError, FlowTypeError: there is no such observer.
    """
    if isinstance(spec, str):
        spec = backend_class('observer', spec, ConfigError)()
    if not isinstance(spec, Observer):
        raise FlowTypeError('%r is no observer: derive its class from sequent.Observer' % (spec,))
    return spec


class _Observers:
    """Tells observers what happens, and leaves out those that raise."""

    def __init__(self, observers):
        self._observers = list(observers)
        self._slow = set()  # type: typing.Set[int]
        self.closely = False
        self.named = any(one.name is not None for one in self._observers)

    def open(self):
        self.closely = any(one.closely for one in self._observers)

    def owed(self, run, records):
        """Return what a commit of records stores for those with a name, as a (request, answer).

        A standing request of the observers is answered with the records that they are told next.
        The next commit replaces the answer, so that it stays only where the supervisor is killed.
        """
        import json
        return Request(run.flow, run.run_id, 'tell', number='tell'), json.dumps({
            'names': [one.name for one in self._observers if one.name is not None],
            'records': [_record_key(one) for one in records]})

    def tell_owed(self, store, run):
        """Tell those with a name what a supervisor that was killed has stored last."""
        for request, text in store.answers(run) if self.named else ():
            if request.verb == 'tell':
                owed = json_object(text)
                keys = set(map(tuple, owed['records']))
                self.tell('committed', [one for one in store.attempts(run)
                                        if _record_key(one) in keys], names=owed['names'])

    def tell(self, method, *what, names=None):
        """Call a method of each observer, or of each with one of the names."""
        for one in list(self._observers):
            if names is not None and one.name not in names:
                continue
            began = time.monotonic()
            try:
                getattr(one, method)(*what)
            except _ANY_FAILURE as error:
                self._observers.remove(one)
                logger.error('observer %r raised %s in %s(): it is told no more, and the run goes '
                             'on; mend it', one, describe_error(error), method, exc_info=True)
            took = time.monotonic() - began
            if took > one.SLOW and id(one) not in self._slow:
                self._slow.add(id(one))
                logger.warning('observer %r took %.3g s in %s(), in which nothing else was done; '
                               'let it do that in a process of its own', one, took, method)


def _record_key(record):
    return record.path, record.sequence, record.recovery, record.attempt


class _LogObserver(Observer):
    """Writes what happens into the log.

    The driver says by the other methods what records do not hold; that is logged with the record.
    ``trace`` is the traceback of the failure that is handed to the engine just now.
    """

    def __init__(self, store, engine):
        self.store = store
        self.engine = engine
        self.trace = self.logdir = ''
        self._failures = []       # the first 100 tasks that failed
        self._kept = set()        # see `kept`
        self._running = set()     # attempts whose start was logged: path, sequence, ...
        self._remarks = []        # what is logged after the next commit: (level, text)

    def open(self, logdir):
        self.closely = logger.isEnabledFor(logging.INFO)
        self.logdir = logdir

    def begun(self, run):
        logger.info('run %s of flow %s: %s%s, store %r', run.run_id, run.flow, run.mode,
                    ' %d' % run.recovery if run.recovery else '', self.store)

    def committed(self, records):
        if not (self.closely or self._remarks):
            return
        for record in records if self.closely else ():
            place = record[:4]
            if record.status == ACTIVE and record.kind == 'leaf':
                if place not in self._running:
                    self._running.add(place)
                    logger.info('step %s at %s starts%s', record.path, record.sequence, ', '
                                'attempt %d' % record.attempt if record.attempt > 1 else '')
            elif place in self._running:
                self._running.remove(place)
                if record.status == SUCCESS:
                    logger.info('step %s at %s ended with success', record.path, record.sequence)
        self.flush()

    def ended(self, run, ok):
        """Say how the run ended, and which failures were made good."""
        logger.info('run %s of flow %s: %s%s', run.run_id, run.flow, run.status,
                    ', logs in %s' % self.logdir
                    if self.logdir and os.path.isdir(self.logdir) else '')
        for task in self._failures:
            around = task    # a failure in a container whose failure was made good was so, too
            while around is not None and not around.made_good:
                around = around.scope.task if around.scope is not None else None
            how = '' if around is None else around.made_good + ' '
            logger.info('%sfailure: %s at %s: %s', how, task.step.path, task.sequence, task.error)
        unmet, dropped = self.engine.unmet, self.engine.dropped
        if unmet:
            logger.info('not run, as what they require did not happen: %d (%s%s)',
                        sum(unmet.values()), ', '.join(
                            step.path for step in itertools.islice(unmet, 10)),
                        ', ...' if len(unmet) > 10 else '')
        if dropped:
            logger.info('dropped by the stop, to be started by a recovery: %d', dropped)
        for task, failed in [] if self.engine.ok else self.engine.unhandled()[:1]:
            logger.warning(
                'step %s ran because step %s failed, but the failure still counts; if step %s '
                "makes it good, add handles=True to it (to treat all steps so: config "
                "{'handled_by': 'complete'})",
                task.step.path, failed.step.path, task.step.path)

    # What records do not hold.

    def _remark(self, level, text, *args):
        self._remarks.append((level, text % args))

    def flush(self):
        """Log the remarks now, as what they are about is stored, or cannot be."""
        remarks, self._remarks = self._remarks, []
        for level, text in remarks:
            logger.log(level, '%s', text)

    def _traceback(self):
        trace, self.trace = self.trace, ''
        return '\n' + trace.rstrip() if trace else ''

    def failed(self, task):
        if len(self._failures) < 100:
            self._failures.append(task)
        self._remark(logging.ERROR, '%s failed%s: %s%s', _describe(task),
                     ' (tolerated)' if task.made_good == TOLERATED else '', task.error,
                     self._traceback())

    def retried(self, task, attempt, error, left):
        """An attempt has failed; the next one is made in ``left`` seconds."""
        self._remark(logging.WARNING, '%s failed, attempt %d of %d: %s; the next one is made %s%s',
                     _describe(task), attempt, task.step.retries + 1, error,
                     'in %.3g s' % left if left > 0 else 'at once', self._traceback())

    def reacts_again(self, task, status):
        """The failure to which a task had reacted came again."""
        self.trace = ''
        self._remark(logging.WARNING, '%s ended with %s, but step %s has failed again since it '
                     'began: it runs again', _describe(task), status, task.reacts_to[0].step.path)

    def handled(self, task, handler):
        """A failure was made good."""
        self._remark(logging.INFO, '%s: its failure was made good by step %s', _describe(task),
                     handler.step.path)

    def kept(self, step, scope, again):
        """A step keeps its earlier success, though another one, on which it depends, ran again."""
        if (step, again) not in self._kept:
            self._kept.add((step, again))
            logger.warning('step %s at %s keeps its earlier success, though step %s, which it '
                           'requires, ran again', step.path, scope.sequence, again.path)

    def adopted(self, task):
        """A process that an earlier supervisor left is the job of a task now."""
        self._running.add((task.step.path, task.sequence, task.recovery, task.attempt))


class PlanWalk:
    """Goes through a plan: hands to the engine what happens, answers what the engine asks for.

    The base of `Driver`, which runs what is to start, and of dry runs, which only look.

    Args:
        settings: the flow's resolved configuration.
        history: a `_History`, or None in a new run.
        flow: the facade.

    Attributes:
        triggers: what is to be raised from outside: (event, sequence).
        orphans: {(path, sequence): _Left} of what still runs, to whose tasks the engine has not
            come.
        signals: the signals that have come.
    """

    signals = ()  # type: typing.Sequence[int]
    outside = None  # type: typing.Any

    def __init__(self, plan, store, run, settings, history, flow, engine=None, clock=None):
        self.plan = plan
        self.store = store
        self.run_record = run
        self.settings = settings
        self.history = history
        self.flow = flow
        self.clock = clock or RunClock()
        self.engine = engine or Engine(plan, settings['max_concurrent'], run.recovery, run.mode)
        self.results = _Results(store, run, flow.module)
        self.loops = _Loops(self.results)
        self.log = _LogObserver(store, self.engine)
        self.observers = _Observers([self.log] + flow.observers)
        self.timers = _Timers(self.clock)
        self.batch = _Batch(store, run, self.timers, self.observers, settings['group_commit'])
        self.retries = _Retries(plan, run)
        self.triggers = collections.deque()  # type: typing.Deque[tuple]
        self.orphans = {}  # type: typing.Dict[tuple, _Left]
        self._opens = collections.deque()  # type: typing.Deque[tuple]
        if history is not None:
            history.retries = self.retries

    def begin(self):
        """Begin the run, or go on with what earlier supervisors left of it."""
        earlier = None
        with _without_collecting():
            if self.history is not None:
                self.orphans.update(self.history.living)
                if not self.plan.dynamic:
                    earlier = self.history.earlier('1').earlier
            actions = self.engine.begin(earlier, self.clock())
        self.feed(actions)

    def trigger(self, event, sequence):
        """Raise an event from outside."""
        if event not in self.plan.events:
            logger.warning('event %r, which a skipped task raised, is gone', event)
            return
        earlier = None
        if self.history is not None and sequence not in self.engine.roots:
            earlier = self.history.earlier(sequence).earlier
        self.feed(self.engine.trigger(event, sequence, earlier, self.clock()))

    def feed(self, actions):
        """Note the actions that the engine returned; answer what it asks for."""
        opens, batch = self._opens, self.batch
        while actions is not None:
            dirty = batch.dirty    # a loop that calls flow.tasks() has it committed
            for kind, what in actions:
                if kind == 'record':
                    dirty[what] = None
                    if what.status == FAILURE:
                        self.failed(what)
                elif kind == 'submit':
                    dirty[what] = None
                    batch.starting.append(what)
                elif kind == 'open' or kind == 'ask':
                    opens.append((kind, what))
                else:
                    self.note(kind, what)
            actions = self._answer(*opens.popleft()) if opens else None

    def _answer(self, kind, task):
        if kind == 'open':
            return self._open_iteration(task)
        granted = self.outside is None or self.outside.take(task)
        return self.engine.granted(task, granted, self.clock())

    def failed(self, task):
        """Note that a task has failed."""
        self.log.failed(task)

    def note(self, kind, what):
        """Note one action of the engine, of the rarer kinds."""
        if kind == 'gather':
            self.results.gather(what)
        elif kind == 'closed':
            self.loops.close(what)
            if what.step.gathers:
                self.results.close(what)
        elif kind == 'skip':
            self.skip(*what)
            self.results.skip(what[0], what[1].result)
        elif kind == 'give':
            self.outside.give(*what)
        elif kind == 'attempt':
            self._note_attempt(*what)
        elif kind == 'dropped':
            self.log.failed(what)    # It waited for its next attempt; its record stays.
        elif kind == 'handled':
            self._note_handled(*what)
        elif kind == 'kept':
            self.log.kept(*what)

    def skip(self, task, earlier):
        """Raise again what a task had raised by hand that is passed over."""
        for event, sequence in earlier.events or ():
            self.flow.count_sequence(event, sequence)
            self.triggers.append((event, sequence))

    def _note_handled(self, task, handler):
        """A failure was made good, or its loop tolerates it: its record says so from now on."""
        if handler is not None:
            self.log.handled(task, handler)
        if task.job is None and task.status is None:    # it failed in an earlier supervisor's run
            rows = self.store.outcomes(self.run_record, task.sequence, self.run_record.recovery)
            self.batch.rows.append(rows[task.step.path]._replace(handled=True))
        else:
            self.batch.dirty[task] = None

    def _note_attempt(self, task, recovery, attempt, status, error):
        """An attempt has ended and another will be made: it gets a record of its own."""
        ended = task.ended or self.clock()
        self.batch.rows.append(self.batch.record(task)._replace(
            recovery=recovery, attempt=attempt, status=status, handled=False, due=None,
            started=task.started or ended, ended=ended, process=None, error=error, events=None))
        task.started = task.ended = task.result = task.events = None
        if recovery != self.run_record.recovery and task.reacts_to:
            self.log.reacts_again(task, status)
        else:
            self.log.retried(task, attempt, error, round(task.due - self.clock(), 2))

    # The iterations of containers.

    def _open_iteration(self, task):
        """Answer the engine's ``open``; return its actions, or None if a signal came first."""
        engine, past, step = self.engine, _NO_PAST, task.step
        if self.history is not None and task.scope.earlier is not None:
            past = self.history.earlier(self.next_sequence(task), step.path, task.floor)
        if not step.loops:
            return engine.opened(task, None, None, past.earlier, past.floor, self.clock())
        try:
            item, blob, over = self.next_item(task, past)
        except BaseException as error:    # sys.exit() in a loop is its failure, too
            if self.signals:
                return None
            logger.error('%s: its loop failed', _describe(task),
                         exc_info=not isinstance(error, SequentError))
            return engine.loop_over(
                task, 'its loop failed: %s' % describe_error(error), self.clock())
        if over:
            if (found_by_running(step.step.loop) and not past.over
                    and not self.store.volatile):
                self._record_iteration(task, 'over')
            return engine.loop_over(task, None, self.clock())
        earlier = past.earlier
        if earlier and not self.loops.same(item, blob, past.item):
            refusal = self._refuse_other_item(task)
            if refusal is not None:
                return engine.loop_over(task, refusal, self.clock())
            self.run_anew(task, self.next_sequence(task))
            earlier = None
        if (blob is not None and (earlier is None or past.item is None)
                and step.kind == 'container'):
            self._record_iteration(task, '', blob, _item_text(item))
        return engine.opened(task, item, blob, earlier, past.floor, self.clock())

    def _record_iteration(self, task, status, blob=None, text=None):
        """Store the item of a container's next iteration, or that there is none."""
        self.batch.rows.append(TaskRecord(
            task.step.path, self.next_sequence(task), self.run_record.recovery, 1, 'iteration',
            status, item=blob, item_text=text))

    def _refuse_other_item(self, task):
        """Say why an iteration cannot run with another loop item than recorded, or return None."""
        sequence, path = self.next_sequence(task), task.step.path
        for name, at in self.orphans:
            if (at + '.').startswith(sequence + '.') and (name + '_').startswith(path + '_'):
                return ('the loop item of iteration %s is not the one recorded, with which step '
                        '%s still runs; recover again when that has ended' % (sequence, name))
        if self.run_record.mode == 'continue':
            return ('the loop item of iteration %s is not the one recorded: a run that is '
                    'continued goes on with the same items; recover it' % sequence)
        return None

    def run_anew(self, task, sequence):
        """Note that what is recorded at an iteration belongs to another loop item."""
        logger.info('%s: the loop item of iteration %s is not the one recorded; it runs anew',
                    _describe(task), sequence)

    @staticmethod
    def next_sequence(task):
        """Return the sequence of the iteration that a container asks to open."""
        return '%s.%d' % (task.sequence, task.opened + 1)

    def next_item(self, task, past):
        """Return (item, the same as it is stored, whether there is none).

        What was found by running is taken from the records, as far as they go.
        """
        if past is not _NO_PAST and found_by_running(task.step.step.loop):
            if past.over:
                return None, None, True
            if past.item is not None:
                return unpickled(past.item, self.results.home), past.item, False
        item, over = self.call(self.loops.next_item, task)
        if over or self.store.volatile:
            return item, None, over
        return item, self.loops.blob(task.step.path, item), False

    def call(self, function, argument):
        """Call what runs a function of the user's here."""
        return function(argument)


class _Starter:
    """Makes jobs of tasks, prepares and releases them, and calls those that are inline.

    Attributes:
        inline: the inline jobs whose start is stored: (job, construct, whether observers are still
            to be told).
        short: tasks that the system was short of processes for: {task: (since when, pause before
            the next try)}, until they have ended.
    """

    def __init__(self, driver):
        self.driver = driver
        self.inline = collections.deque()  # type: typing.Deque[tuple]
        self.short = {}  # type: typing.Dict[Task, tuple]
        self._pace = 1e-3    # seconds that an inline task takes
        run, prefix = driver.run_record, driver.settings['envvar_prefix']
        self._prefix = prefix
        self._names = [prefix + name for name in (
            'STEP_NAME', 'STEP_SEQUENCE', 'LOOP_VALUE', 'STEP_ATTEMPT')]
        # This run may be nested in a task of another one: in one whose variables were cut, or in a
        # reaction. Its own tasks are told nothing of that.
        self.constant_env = {name: '' for name in os.environ if name.startswith(prefix)
                             and name.endswith(('_CUT', 'FAILURES', 'FAILED_COUNT'))}
        for name, text in (('STEP_RECOVERY', str(run.recovery)), ('RUN_ID', run.run_id),
                           ('LOGGER_NAME', run.flow)):
            _add_variable(self.constant_env, prefix + name, text)

    # Making a job.

    def _make_job(self, task):
        driver, run = self.driver, self.driver.run_record
        step, items = task.step.step, task.scope.items
        name, sequence, value, attempt = self._names
        env = {sequence: task.sequence, attempt: str(task.attempt)}
        _add_variable(env, name, step.path)
        if items:
            item = items[-1]
            if type(item) is int and -10**9 < item < 10**9:
                env[value] = str(item)
            else:
                _add_variable(env, value, _shown(str, item))
        job = task.job = Job(
            step.path, task.sequence, task.recovery, task.attempt, run.flow, run.run_id,
            step.func, step.args, step.kwargs, items, env, step.settings, None, None, run.flow,
            driver.flow if driver.plan.dynamic else None, task, None, self.constant_env,
            driver.logdir or None, driver.clock.offset)
        if step.construct.can_adopt:
            job.maker = step.construct.maker
            job.outcome = outcome_path(driver.store.folder, run.flow, run.run_id, job.name,
                                       job.sequence, job.recovery, job.attempt)
        if driver.engine.reacted:
            self._tell_failures(job, task)
        return job

    def _tell_failures(self, job, task):
        """Tell a job what failed, if its task is a reaction or inside one (semantics 12.3)."""
        while task is not None and not task.reacts_to:
            task = task.scope.task if task.scope is not None else None
        if task is None:
            return
        count = len(task.reacts_to)
        failed = [(one.step.path, one.sequence, masked(one.error or ''))
                  for one in task.reacts_to[:100]]
        job.failures = count, tuple(failed)
        job.own[self._prefix + 'FAILED_COUNT'] = str(count)
        _add_variable(job.own, self._prefix + 'FAILURES', '\n'.join(
            '%s %s' % one[:2] for one in failed))

    def _fill(self, job, task):
        """Put values for the placeholders in its arguments; return whether there are such."""
        try:
            job.func, job.args, job.kwargs = self.driver.results.fill(task)
            return True
        except Exception as error:
            self.driver.batch.ahead.pop(task, None)
            self._refuse(job, 'its arguments cannot be had: %s' % (
                error if isinstance(error, StoreError) else describe_error(error)))
            return False

    def _refuse(self, job, why):
        self.driver.port.done(job, Outcome(FAILURE, why))

    # Starting.

    def prepare(self):
        """Make jobs of the tasks that are to start; return those that wait for the commit."""
        batch, jobs, ready = self.driver.batch, [], []  # type: typing.Any, list, list
        # Where there is nothing to survive, and nobody looks, no start waits for its commit.
        free = self.driver.store.volatile and not self.driver.observers.closely
        starting, batch.starting = batch.starting, []
        for task in starting:
            construct = task.step.step.construct
            job = self._make_job(task)
            if task.step.fills is not None and not task.adopted and not self._fill(job, task):
                continue
            stored = bool(batch.ahead) and batch.take_ahead(task) or free
            if task.adopted:
                self.driver.adoption.adopt(job)
            elif not self._prepare(job, construct, len(jobs)):
                continue
            elif stored and construct.inline:
                self.inline.append((job, construct, True))
            elif stored and not construct.can_adopt:
                batch.tell_start(task)
                ready.append((job, construct))
            else:
                jobs.append((job, construct))
        if ready:
            self.release(ready)
        return jobs

    def _prepare(self, job, construct, prepared):
        """Let a construct prepare a job; return whether it has."""
        try:
            if construct.can_adopt:
                self._keep_descriptors(prepared)
            if not construct.inline:
                self.driver.constructs.rest()
            construct.prepare(job)
        except ConstructError as error:
            self._refuse(job, str(error))
            return False
        except OSError as error:
            if not (is_shortage(error) and self.try_later(job.task, error.strerror)):
                self._refuse(job, 'it could not be started: %s' % describe_error(error))
            return False
        return True

    def _keep_descriptors(self, prepared):
        """Raise OSError (EMFILE) if a start would take the last descriptors.

        The store needs some for each commit. A process takes up to seven while it starts, and
        each that is prepared one more when it is released.
        """
        with contextlib.ExitStack() as spare:
            for _ in range(16 + prepared):
                spare.callback(os.close, os.dup(self.driver.port.wakes()))

    def try_later(self, task, reason):
        """Start a task a little later, as the system is short of processes or descriptors.

        Meanwhile a task that has never been prepared is not stored as begun.

        Returns:
            False if that has been tried for a minute.
        """
        now = self.driver.clock()
        since, pause = self.short.get(task, (now, 0.025))
        if now - since >= _SHORTAGE:
            self.short.pop(task, None)
            return False
        if not self.short:
            logger.warning('step %s at %s cannot be started now (%s); it is tried again for %g s',
                           task.step.path, task.sequence, reason, _SHORTAGE)
        pause = min(2 * pause, 5.0)
        self.short[task] = since, pause
        self.driver.timers.set(task, min(now + pause, since + _SHORTAGE),
                               functools.partial(self._try_again, task))
        self.driver.batch.dirty.pop(task, None)
        return True

    def _try_again(self, task):
        if task in self.short:
            self.driver.batch.dirty[task] = None
            self.driver.batch.starting.append(task)

    def store_ahead(self, jobs):
        """Store as active, ahead of their start, the tasks that are next anyway: of those that
        run inline, and of those that are queued."""
        driver, engine, upcoming = self.driver, self.driver.engine, []
        if self.inline or any(one[1].inline for one in jobs):
            fits = driver.settings['group_commit'] / max(self._pace, 1e-5)
            upcoming = engine.admission.upcoming(int(min(1000, fits)))
        if engine.admission.ahead:
            upcoming += engine.admission.upcoming(engine.admission.ahead, queues=True)
        for task in upcoming:
            if task not in driver.batch.ahead:
                driver.batch.store_ahead(task)

    def release(self, jobs):
        """Start jobs whose starts are stored: (job, construct)."""
        driver, calls = self.driver, {}  # type: typing.Any, typing.Dict[TaskConstruct, list]
        for job, construct in jobs:
            if construct.inline:
                self.inline.append((job, construct, False))
                continue
            driver.watch_over(job, construct, None if construct.tells_begin else driver.clock())
            calls.setdefault(construct, []).append(job)
        for construct, given in calls.items():
            construct.release(given)

    def call_inline(self):
        """Run the first inline job whose start is stored."""
        driver, (job, construct, stored) = self.driver, self.inline.popleft()
        began = time.monotonic()
        job.task.started = driver.clock.offset + began
        if stored:
            driver.batch.tell_start(job.task)
        driver.batch.wait()
        driver.jobs[job] = construct
        try:
            driver.stop.call(construct.release, (job,), job)
        except KeyboardInterrupt:
            if job not in [one for one, _ in driver.port.arrived]:
                driver.port.done(job, Outcome(ACTIVE, 'interrupted', interrupted=True))
        took = time.monotonic() - began
        self._pace += 0.2 * (took - self._pace)
        warn = job.config['warn_after']
        if warn is not None and took >= warn:
            driver.limits.warn(job)    # while it ran, nobody was there to do so

    def drop(self):
        """Start nothing more; return the inline jobs that have not been called."""
        inline, self.inline = self.inline, collections.deque()
        self.short.clear()
        self.driver.batch.starting = []
        return [job for job, _, _ in inline]


class _Orphans:
    """What an earlier supervisor left running.

    It is watched from the start, so that a stop ends it and the run does not end before it; when
    the engine comes to its task, it becomes the job of that.
    """

    def __init__(self, driver):
        self.driver = driver
        # By (path, sequence), of those that have ended before the engine came to their tasks:
        # the records and outcomes.
        self._ended = {}  # type: typing.Dict[tuple, tuple]

    def watch(self):
        """Watch over all that still runs."""
        driver, now = self.driver, self.driver.clock()
        for record, job, construct, sight in driver.history.living.values():
            job.logdir, job.epoch = driver.logdir, driver.clock.offset
            driver.constructs.open(construct)
            began = sight.began or (None if construct.tells_begin else record.started or now)
            driver.watch_over(job, construct, began and min(began, now))
            construct.adopt(job)

    def adopt(self, job):
        """Take an orphan for the job of its task: the engine has come to it."""
        driver, key, task = self.driver, (job.name, job.sequence), job.task
        record = driver.history.living.pop(key).record
        driver.batch.dirty.pop(task, None)
        if key in driver.orphans:
            task.job = driver.orphans.pop(key).job
            task.job.task = task
        else:
            record, outcome = self._ended.pop(key)
            driver.port.done(job, outcome)
        task.started = record.started
        driver.log.adopted(task)

    def finish(self, job, outcome):
        """An orphan ended before the engine came to its task, which may be gone from the flow."""
        driver, key = self.driver, (job.name, job.sequence)
        record = driver.orphans.pop(key).record
        if outcome.interrupted or outcome.lost:
            record = record._replace(process=None, error=outcome.error)
        else:
            place = (job.flow, job.run_id) + record[:4]
            record = record._replace(
                status=outcome.status, ended=outcome.ended or driver.clock(),
                result=store_result(driver.store, place, outcome), error=outcome.error)
        driver.batch.rows.append(record)
        self._ended[key] = record, outcome
        logger.info('step %s at %s, adopted, ended with %s', job.name, job.sequence,
                    record.status)


class _Constructs:
    """The constructs that are open, and what they are asked beside starting and ending jobs.

    ``settling`` are those that are told which outcomes are stored, ``queueing`` those that take
    more tasks than they run.
    """

    def __init__(self, driver):
        self._driver = driver
        self._open = []  # type: typing.List[TaskConstruct]
        self.settling = set()  # type: typing.Set[TaskConstruct]
        self.queueing = []  # type: typing.List[typing.Any]
        self._stopped = {}    # pid of a stopped process -> since when we know
        self._polled = {}     # construct -> when it was polled last

    def open(self, construct):
        """Let a construct begin to work, if it has not."""
        if construct not in self._open:
            construct.open(self._driver.port)
            self._open.append(construct)
            if construct.queues:
                self.queueing.append(construct)
            if type(construct).settle is not TaskConstruct.settle:
                self.settling.add(construct)

    def close(self):
        for construct in self._open:
            construct.close()
        self._open = []

    def rest(self):
        """Leave nothing of an inline task where another task starts."""
        for construct in self._open:
            construct.rest()

    def watch(self):
        """See to it that processes that a signal has stopped are noticed."""
        timers = self._driver.timers
        if self._driver.jobs and 'stopped' not in timers:
            timers.set('stopped', timers.clock() + self._driver.STOPPED / 4, self._warn_of_stopped)

    def pause(self):
        """Return how many seconds the loop may sleep until a construct is to be polled."""
        usual = self._driver.settings['sleep_between_loops']
        return min([max(0.01, one.cadence or usual) for one in self._open if one.polls],
                   default=math.inf)

    def poll(self):
        """Let constructs see to what cannot wake the loop."""
        now = time.monotonic()
        for construct in self._open:
            if construct.cadence:
                if now - self._polled.get(construct, -math.inf) < 0.9 * construct.cadence:
                    continue
                self._polled[construct] = now
            construct.poll()

    def _warn_of_stopped(self):
        """Warn of processes that do nothing because a signal has stopped them."""
        known, self._stopped, now = self._stopped, {}, self._driver.clock()
        for job, construct in self._driver.jobs.items():
            for pid in construct.stopped(job):
                since = self._stopped.setdefault(pid, known.get(pid, now))
                if now - since >= self._driver.STOPPED:
                    self._stopped[pid] = math.inf    # once
                    logger.warning(
                        'step %s at %s does not go on: a signal has stopped process %d for %.3g s;'
                        " continue it with 'kill -CONT %d', or end it with 'kill -KILL %d'",
                        job.name, job.sequence, pid, now - since, pid, pid)

    def make_room(self):
        """Tell the engine how many tasks may be queued."""
        if len(self.queueing) == 1:    # of several, none knows what runs in the others
            [pool] = self.queueing
            self._driver.engine.admission.limit_queue(pool.slots, pool.ahead)

    def failed(self):
        """Take back soon what is queued where a failure may have stopped its container."""
        if self.queueing:
            self._driver.timers.set('recall', 0.0, self._recall)

    def _recall(self):
        for job, construct in list(self._driver.jobs.items()):
            if construct.queues and is_dropped(job.task):
                construct.recall(job)


class _OutsidePools:
    """Takes units of the pools outside the run, and gives them back."""

    def __init__(self, driver):
        self._driver = driver
        self._pools = driver.plan.outside
        self._broken = set()    # those that raised when they were asked last

    def open(self):
        driver = self._driver
        if not self._pools:
            return
        for pool in self._pools.values():
            pool.open(functools.partial(driver.port.call, self._ask_again))
        needs = {step.path: step.needs for step in driver.plan.steps if step.children is None}
        for path, sequence in driver.history.left if driver.history and not driver.begun else ():
            for number, amount in needs.get(path, ()):    # It ended without a supervisor.
                if number in self._pools:
                    self._give(number, amount, path, sequence)

    def close(self):
        """Give back what the tasks of a run that stops have; let the pools rest."""
        engine = self._driver.engine
        for number, pool in self._pools.items():
            for name, amount in engine.admission.holders[number].items() if engine.halted else ():
                self._give(number, amount, *name)
            pool.close()

    def _ask_again(self):
        self._driver.feed(self._driver.engine.ask_again(self._driver.clock()))

    def take(self, task):
        """Take all that a task needs of the pools, or nothing; return whether it was there."""
        taken, timers = [], self._driver.timers
        for number, amount in task.step.needs:
            pool = self._pools.get(number)
            if pool is None:
                continue
            if not self._call(pool, pool.try_take, amount, task.step.path, task.sequence):
                for one in taken:
                    self.give(task, *one)
                timers.set(pool, timers.clock() + pool.cadence, self._ask_again)
                return False
            taken.append((number, amount))
        return True

    def give(self, task, number, amount):
        self._give(number, amount, task.step.path, task.sequence)

    def _give(self, number, amount, path, sequence):
        pool = self._pools[number]
        self._call(pool, pool.give, amount, path, sequence)

    def _call(self, pool, method, amount, path, sequence):
        run = self._driver.run_record
        try:
            answer = method(amount, (run.flow, run.run_id, path, sequence))
        except Exception as error:
            if pool not in self._broken:
                logger.exception('pool %s: %s', pool.name, describe_error(error))
            self._broken.add(pool)
            return False
        self._broken.discard(pool)
        return answer


class _Outcomes:
    """Takes the outcomes of jobs, and hands them to the engine."""

    def __init__(self, driver):
        self.driver = driver

    def take(self, job, outcome):
        """Take the outcome of a job: hand it to the engine, with what the job raised by hand."""
        driver, task = self.driver, job.task
        construct = driver.jobs.pop(job, None)
        if construct is not None:
            self._note_end(job, construct, outcome)
        outcome = driver.limits.end(job, outcome)
        if task is None:
            driver.adoption.finish(job, outcome)
            return
        if outcome is not SUCCEEDED:    # which says nothing that would have to be looked at
            if outcome.interrupted or driver.stop.may_be_why(construct, outcome):
                self.interrupt(task, outcome)
                return
            short = outcome.short and not driver.port.stopping
            if short and driver.starter.try_later(task, outcome.error):
                return
            if outcome.lost and not short:
                self._lose(task, outcome, construct)
                return
            outcome = self._take_result(task, outcome)
        now = driver.clock()
        task.ended = now if outcome.ended is None else outcome.ended
        if task.step.wanted and outcome.status == SUCCESS:
            driver.results.keep(task.scope, task.step, task.result)
        again = None
        if outcome.status == FAILURE:
            again = driver.retries.delay(job.name, job, outcome)
        if job.triggered and not driver.engine.retries(task, again):
            import json
            task.events = json.dumps(job.triggered)
            for event, sequence in job.triggered:
                driver.trigger(event, sequence)
        driver.log.trace = outcome.trace
        task.job = None    # a circle would keep both until the garbage collector comes by
        driver.feed(driver.engine.done(task, outcome.status, outcome.error, again, now))

    def _note_end(self, job, construct, outcome):
        """Note how soon the end of a job is to be stored, and when it began."""
        driver = self.driver
        settles = construct in driver.constructs.settling
        if driver.starter.short and not outcome.short:
            driver.starter.short.pop(job.task, None)
        if settles and outcome.interrupted:
            construct.settle(job)    # or it would leave a failure, where the store has failed
        elif settles:
            driver.batch.settled.append((job, construct))
        if not construct.inline:
            if job.began is not None and job.task is not None:
                job.task.started = job.began
            if driver.engine.admission.ahead or driver.store.volatile and not settles:
                driver.batch.wait()
            else:
                driver.batch.urgent = True
        if construct.relays:
            driver.relay.finish(job)

    def _lose(self, task, outcome, construct):
        """Nothing of a task has run: it runs later."""
        driver = self.driver
        queued = construct is not None and construct.queues
        if not queued:
            logger.warning('%s: %s; it runs again', _describe(task), outcome.error)
        task.job = None
        if queued:
            task.started = None
        driver.feed(driver.engine.lost(task, not queued, driver.clock()))

    def _take_result(self, task, outcome):
        """Note the result of a task; return its outcome, a failure if others lack the result."""
        driver = self.driver
        if outcome.warning and task.step.wanted:
            return Outcome(FAILURE, '%s, and other steps ask for it' % outcome.warning.replace(
                ', its repr is kept instead', ''))
        task.result = outcome.result
        if outcome.warning or outcome.result is not None and len(outcome.result) > LARGE_RESULT:
            task.result = driver.results.stored(task, outcome)
        if outcome.warning:
            logger.warning('%s: %s', _describe(task), outcome.warning)
        return outcome

    def interrupt(self, task, outcome):
        """Ended by the stop of the run: it stays active and runs again (semantics 8.3)."""
        driver = self.driver
        task.error = outcome.error or 'interrupted'
        task.ended = driver.clock()
        task.job.process = None
        driver.batch.dirty[task] = None


class Stop:
    """Ends a run before its time: signals, and the end of what runs (semantics 8.3).

    ``signals`` are those that have come.
    """

    #: Seconds after the first signal in which others belong to the same stop: a terminal that is
    #: closed sends two, and so do service managers and job schedulers.
    ONE_STOP = 1.0

    def __init__(self, driver):
        self.driver = driver
        self.signals = []  # type: typing.List[int]
        self.abandoned = []       # what could not be ended: (job, construct)
        self._first = 0.0         # when the first signal came
        self._urged = False       # whether a signal asks for haste
        self._leaving = False     # all is stopped; what is left is to clear away
        self._calling = False     # a function of the user's is being called:
        self._job = None          # that of this job
        self._broken = None       # the StoreError that came during the stop
        self._handlers = {}       # signal -> its handler before the run
        self._pid = None  # type: typing.Optional[int]
        self._wakeup = None       # the descriptor that signals woke before the run

    # Signals.

    def listen(self):
        """Handle signals, in the main thread: other threads get none."""
        self._pid, self._leaving = os.getpid(), False
        if threading.current_thread() is not threading.main_thread():
            return
        for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._handlers[number] = signal.signal(number, self.on_signal)
        self._wakeup = signal.set_wakeup_fd(self.driver.port.wakes())

    def leave(self):
        """The run is over; after a signal `restore` is called later."""
        self._leaving = True
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup)
            self._wakeup = None
        if not self.signals:
            self.restore()

    def restore(self):
        """Put back the handlers of signals that stood there before the run.

        The facade does so after a stop by a signal, when the end of the run is stored: a second
        signal of the same stop would keep it from being stored.
        """
        handlers, self._handlers = self._handlers, {}
        for number, handler in handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def on_signal(self, number, frame):
        """Handle a signal."""
        if os.getpid() != self._pid:
            # In a process that somebody else forked meanwhile, a worker of a pool for one, the
            # handler is not wanted.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now, first = time.monotonic(), not self.signals
        if first:
            self._first = now
        urges = now - self._first >= self.ONE_STOP and (
            number == signal.SIGINT or number in self.signals)
        self.signals.append(number)
        self._urged = self._urged or urges
        self.driver.port.stopping = True
        if self._calling and (first or urges):    # No other one may interrupt a clean-up.
            raise KeyboardInterrupt
        if self._leaving and urges:
            self.end_by_signal()

    def end_by_signal(self):
        """Raise what the first signal means."""
        number = self.signals[0]
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + number)

    def call(self, function, argument, job=None):
        """Call what runs a function of the user's here, of a job or a loop.

        Raises:
            KeyboardInterrupt: a signal has come, perhaps before the call. Then nothing is called,
                as nothing would interrupt it.
        """
        self._job = job
        try:
            self._calling = True
            if self.signals:
                raise KeyboardInterrupt
            return function(argument)
        finally:
            self._calling = False

    def calling_job(self):
        """Return the job whose inline function is being called, or None."""
        return self._job if self._calling else None

    def stop_as_asked(self):
        """Stop as the first SIGTERM does, because a request asks for a stop."""
        self._first = time.monotonic()
        self.signals.append(signal.SIGTERM)
        self.driver.port.stopping = True

    # The end of what runs.

    def end_all(self, why):
        """End what runs, and record it; ``why`` names what asked for it, None: an error."""
        driver, jobs = self.driver, self.driver.jobs
        driver.port.stopping = True
        broken = self._broken
        logger.error('%s: nothing new starts; running tasks that are ended: %d',
                     why or 'an error', sum(not one.leaves for one in jobs.values()))
        driver.halt()
        for job in driver.starter.drop():
            jobs.pop(job, None)
            driver.outcomes.interrupt(job.task, Outcome(ACTIVE, 'not started', interrupted=True))
        self.end_jobs(force=False)
        self._await_end(False, driver.settings['shutdown_grace'])
        self.end_jobs(force=True)
        self._await_end(True, 5.0)
        self.abandoned = [(job, construct) for job, construct in jobs.items()
                          if not construct.leaves]
        for job, _ in self.abandoned:
            driver.outcomes.take(job, Outcome(ACTIVE, 'abandoned by the stop', interrupted=True))
        if jobs:
            logger.warning('%d tasks go on, as their construct leaves them running; recover or '
                           'continue the run to take their outcomes', len(jobs))
        self._drain(0)
        if self._broken is not broken:
            raise self._broken

    def end_jobs(self, force):
        """Ask all that runs to end; ``force``: do not ask."""
        for job, construct in list(self.driver.jobs.items()):
            if construct.can_kill and not construct.leaves:
                construct.kill(job, force)
            elif construct.queues and not construct.leaves:
                construct.recall(job)

    def _await_end(self, forced, patience):
        """Wait so many seconds for the end of all that runs; ``forced``: that can be killed."""
        until = time.monotonic() + patience
        while time.monotonic() < until and (forced or not self._urged) and any(
                one.can_kill or not forced for one in self.driver.jobs.values() if not one.leaves):
            self._drain(min(0.2, max(0.0, until - time.monotonic())))

    def _drain(self, timeout):
        """Take what has ended while the run is being stopped."""
        driver, arrived = self.driver, self.driver.port.arrived
        driver.port.answer()
        if not arrived:
            driver.port.sleep(timeout)
            driver.constructs.poll()
        while arrived:
            try:
                driver.outcomes.take(*arrived.popleft())
            except StoreError as error:    # first all are ended; its process keeps its outcome
                self._broken = error
            driver.batch.starting = []

    def may_be_why(self, construct, outcome):
        """Return whether the signal that stops the run may be why a task failed.

        A Ctrl-C goes to a whole process group, and service managers and job schedulers send a
        signal to each process: a child can die of it before its supervisor has handled its own.
        This is asked when the outcome is taken, as a thread may report it before the signal is
        handled.
        """
        return construct is not None and self.driver.port.stopping and not construct.leaves and (
            outcome.status == FAILURE and (
                not construct.can_kill or -(outcome.code or 0) in CHILD_SIGNALS
                or 'builtins.KeyboardInterrupt' in outcome.kinds))

    def refuse_abandoned(self):
        """Raise AlreadyRunningError if something goes on that the stop could not end."""
        for job, construct in self.abandoned:
            if construct.goes_on(job):
                raise AlreadyRunningError(
                    'step %r at %s still runs in this program, as the stop could not end its '
                    'thread; wait for its end, or continue the run in another program'
                    % (job.name, job.sequence))


class _Requests:
    """Follows what is asked of the run from outside (semantics 13)."""

    def __init__(self, driver):
        self.driver = driver
        self.pause = max(1.0, driver.settings['sleep_between_loops'])    # so that it can sleep
        self._looked = 0.0
        self._taken = set()    # numbers of those whose answers are not stored yet

    def begin(self):
        """Hold what an earlier supervisor was told to hold, then what was asked for since."""
        driver = self.driver
        patterns = {}  # type: typing.Dict[str, None]
        for request, answer in driver.store.answers(driver.run_record):
            if request.verb == 'hold' and not answer.startswith('refused'):
                patterns[request.pattern] = None
            elif request.verb == 'release':
                patterns.pop(request.pattern, None)
        for pattern in patterns:
            logger.warning('steps that match %r are held; release them with: release %s',
                           pattern, pattern)
            driver.feed(driver.engine.hold(pattern, driver.clock()))
        self._answer(lambda request: 'refused: no supervisor was at work'
                     if request.verb == 'stop' else self._follow(request))

    def look(self):
        """Follow the requests that have come, at most once in a ``pause``."""
        now = time.monotonic()
        if now - self._looked >= 0.9 * self.pause:
            self._looked = now
            self._answer(self._follow)

    def finish(self):
        """Answer what nobody will follow any more, as the run is over."""
        self._answer(lambda request: 'refused: the run was over')

    def _answer(self, follow):
        driver = self.driver
        for request in driver.store.requests(driver.run_record):
            if request.number not in self._taken:
                self._taken.add(request.number)
                answer = follow(request)
                logger.warning('%s asks to %s: %s', request.asker or 'somebody', ' '.join(
                    filter(None, [request.verb, request.pattern])), answer)
                driver.batch.answers.append((request, answer))

    def _follow(self, request):
        """Do what a request asks for; return the answer."""
        driver, pattern = self.driver, request.pattern
        if request.verb == 'stop':
            driver.stop.stop_as_asked()
            return 'stopping, as at a SIGTERM'
        if request.verb not in ('hold', 'release'):
            return 'refused: there is no verb %r' % request.verb
        import fnmatch
        paths = {one.path for one in driver.plan.steps if fnmatch.fnmatchcase(one.path, pattern)}
        if request.verb == 'release':
            driver.feed(driver.engine.unhold(pattern, driver.clock()))
            return 'released: %d steps match %r' % (len(paths), pattern)
        if not paths:
            return 'refused: no step matches %r; list shows the steps' % pattern
        driver.feed(driver.engine.hold(pattern, driver.clock()))
        return 'held: %d steps match %r' % (len(paths), pattern)


def private_folder(workdir):
    """Make a folder for logs that is its owner's only; return its path."""
    import tempfile
    try:
        folder = tempfile.mkdtemp('', 'sequent-', workdir or None)
        os.chmod(folder, 0o700)  # under any umask
        return folder
    except OSError as error:
        raise ConfigError('there is no folder for the logs of tasks (%s); set config logdir, '
                          'or workdir, or TMPDIR' % error) from error


class Driver(PlanWalk):
    """Runs a plan: see the text above. Made by a facade, for one run.

    Args:
        plan: a `Plan`; the model's steps in it have ``settings`` and ``construct``.
        store: an open store; it holds the lock of the run.
        run: the `RunRecord`, already begun.
        logdir: folder of log files; None: a fresh one of the user's own.

    Attributes:
        jobs: what runs: {job: its construct}.
        begun: whether `run` has been called.
        pid: of the process that has called `run`.
    """

    #: Seconds after which a process that a signal has stopped is warned of, once.
    STOPPED = 60.0

    def __init__(self, plan, store, run, settings, history, flow, logdir):
        PlanWalk.__init__(self, plan, store, run, settings, history, flow)
        self.logdir = os.path.abspath(logdir) if logdir else logdir  # tasks may be elsewhere
        self._private_logdir = ''
        self.port = _DriverPort(self)
        self.limits = _Limits(self.timers, settings['shutdown_grace'])
        self.relay = LogRelay()
        self.starter = _Starter(self)
        self.adoption = _Orphans(self)
        self.requests = _Requests(self)
        self.stop = Stop(self)
        self.signals = self.stop.signals
        self.jobs = {}  # type: typing.Dict[Job, TaskConstruct]
        self.begun = False
        self.pid = None  # type: typing.Optional[int]
        self._environment = EnvironmentLayer()
        self.constructs = _Constructs(self)
        self.outside = _OutsidePools(self)
        self.outcomes = _Outcomes(self)
        self._between_cycles = False    # nothing is due yet (semantics 8.1)

    # The loop.

    def run(self, max_loops):
        """Run until nothing is left to do or so many cycles are over; return whether all is well.

        Raises:
            KeyboardInterrupt, SystemExit: a signal came (semantics 8.3).
            RunTimeout: config ``run_timeout`` is over; what ran was ended as after a signal.
            StoreError: the store failed; what ran was ended as after a signal.
        """
        with _shared_imports():
            self._open()
            try:
                self._run(max_loops)
            finally:
                self._close()
        if self.signals:
            self.stop.end_by_signal()
        return self.engine.ok

    def _run(self, max_loops):
        self.stop.listen()
        try:
            limit = self.settings['run_timeout']
            if limit is not None:
                self.timers.set('run', self.clock() + limit, self._time_out)
            if not self.begun:
                self.begun = True
                self.begin()
            self._loop(max_loops)
            if self.engine.over:
                self.requests.finish()
            self.batch.finish()
        except StoreError:
            self.stop.end_all(None)
            raise
        except BaseException as error:
            self.stop.end_all(str(error) if isinstance(error, RunTimeout) else None)
            self.batch.finish()
            raise
        finally:
            self.stop.leave()

    def _time_out(self):
        raise RunTimeout('the run timed out after %g s' % self.settings['run_timeout'])

    def begin(self):
        if self.history is not None:
            self.adoption.watch()
        self.requests.begin()
        PlanWalk.begin(self)

    def _loop(self, max_loops):
        cycles, starter, port = 0, self.starter, self.port
        while not self.signals:
            self.requests.look()
            if self.signals:
                break    # A request asks for a stop.
            self._take_inputs()
            self._commit_and_start()
            if starter.inline:
                starter.call_inline()
                if len(self.jobs) > len(port.arrived):    # others run, too
                    port.sleep(0)
            elif port.arrived or self.triggers or port.calls:
                continue
            elif self.engine.running or self.engine.ready or self.orphans:
                self._wait()
            elif self.engine.over or self.engine.next_due() is None:
                break
            else:
                if not self._between_cycles:
                    cycles += 1
                    self._between_cycles = True
                    if cycles == max_loops:
                        break
                self._wait()
        if self.signals:
            self.stop.end_all(signal.Signals(self.signals[0]).name)
        elif not self.engine.over and self.engine.next_due() is None:
            raise SequentError('internal error: the run has nothing to do and is not over')

    def _take_inputs(self):
        """Hand to the engine all that has happened."""
        port = self.port
        if port.calls:
            port.answer()
        while self.triggers:
            self._between_cycles = False
            self.trigger(*self.triggers.popleft())
        if self.constructs.queueing:
            self.constructs.make_room()
        while port.arrived:
            self.outcomes.take(*port.arrived.popleft())
        due = self.engine.next_due() if self.engine.delayed else None
        if due is not None and due <= self.clock():
            self._between_cycles = False
            self.feed(self.engine.tick(self.clock()))
        if self.timers:
            self.timers.ring()

    def _commit_and_start(self):
        """Prepare what is to start, commit, release; skip it while the window is open."""
        batch, starter = self.batch, self.starter
        if not (batch.starting or batch.dirty or batch.rows or batch.settled or batch.answers):
            return
        jobs = starter.prepare()
        if not jobs and batch.waits() and (
                starter.inline or self.engine.admission.out[_QUEUED] > 0 or self.store.volatile):
            return    # for the next one (semantics 6.2)
        if not self.store.volatile:
            starter.store_ahead(jobs)
        try:
            batch.commit()
        except BaseException:
            for job, construct in jobs:
                construct.withdraw(job)
            raise
        if jobs:
            starter.release(jobs)    # These go first, as somebody waits for them.
        batch.settle()

    def _wait(self):
        """Sleep until something happens, or is due."""
        self.constructs.watch()
        pause, now = self.requests.pause, self.clock()
        if self.jobs:
            pause = min(pause, self.constructs.pause())
            if self.relay.active:
                pause = min(pause, max(0.01, self.settings['sleep_between_loops']))
        for due in (self.timers.next(), self.engine.next_due(), self.batch.until):
            if due is not None:
                pause = min(pause, max(0.0, due - now))
        self.port.sleep(pause)
        if self.jobs:
            self.relay.poll()
            self.constructs.poll()

    # What other objects ask for.

    def watch_over(self, job, construct, began):
        """Take a job for one that runs. ``began`` is None where its construct will tell that."""
        self.jobs[job] = construct
        if began is not None:
            self.limits.begin(job, construct, began)
        if construct.relays and job.config['capture'] == 'relay':
            self.relay.add(job)

    def note_begin(self, job):
        """Take note that a job has begun elsewhere: its timeout counts from then."""
        if job in self.jobs:
            self.limits.begin(job, self.jobs[job], job.began)
            if job.task is not None:
                job.task.started = job.began
                self.port.moved(job)

    def failed(self, task):
        PlanWalk.failed(self, task)
        self.constructs.failed()

    def call(self, function, argument):
        return self.stop.call(function, argument)

    def is_here(self):
        """Whether this is the driver's thread; what is asked before the run counts as there."""
        return self.port.thread in (None, threading.get_ident())

    def catch_up(self):
        """Commit what a function that runs inline could ask for; without a file that can wait."""
        if threading.get_ident() == self.port.thread:
            self.batch.commit()

    def halt(self):
        """Tell the engine that nothing new starts."""
        self._opens.clear()
        self.feed(self.engine.halt(self.clock()))

    # Opening and closing.

    def _open(self):
        self.pid = os.getpid()
        if not self.logdir:
            self.logdir = self._private_logdir = private_folder(self.settings['workdir'])
        self.log.open(self.logdir)
        self.observers.open()
        self.port.open()
        self.outside.open()
        # Threads share the environment, so only what does not change can stand in it for them.
        self._environment.hold(self.starter.constant_env)
        for step in self.plan.steps:
            if step.calls and step.children is None:
                self.constructs.open(step.step.construct)

    def _close(self):
        self.constructs.close()
        self.outside.close()
        self.log.flush()
        self._environment.hold({})
        self._leave_folders()
        self.port.close()

    def _leave_folders(self):
        """Remove folders that were made in case, if they are empty."""
        run = self.run_record
        outcome = outcome_path(self.store.folder, run.flow, run.run_id, '', '', 0, 0)
        with contextlib.suppress(OSError):    # not empty, or never made
            if outcome:
                os.removedirs(os.path.dirname(outcome))
        with contextlib.suppress(OSError):
            if self._private_logdir:
                os.rmdir(self._private_logdir)
                self.logdir = self._private_logdir = ''


ENDS = {SUCCESS: 'it succeeded', FAILURE: 'it failed', ACTIVE: 'it was interrupted',
         READY: 'it was not started', 'stopped': 'it was stopped'}


# 9 Facades #######################################################################

# Configuration: one table; a value comes from the first of these that has it: command line, the
# step's config, its containers', the flow's, the environment (SEQUENT_<KEY>), the default.


class ConfigKey(typing.NamedTuple):
    """One configuration key.

    ``kind`` says what it takes: a key of `_VALUE_KINDS`, ``'start method'``, or words between
    ``|``. ``on_steps``: steps may set it. ``shown`` stands for a default that is no literal.
    """

    default: typing.Any
    kind: str
    on_steps: bool
    help: str
    shown: str = ''


CONFIG_KEYS = {
    'workdir': ConfigKey('', 'path', False,
        "folder for the library's own temporary files", "system's"),
    'logdir': ConfigKey('', 'path', False,
        'folder of the log files of tasks; without a file store a private one in the temporary '
        'directory', '<store>.logs'),
    'task_construct': ConfigKey('process', 'construct', True,
        "what runs a function: 'process', 'thread', 'inline', a backend's name, "
        "'package.module:Class', class, instance"),
    'max_concurrent': ConfigKey(None, 'int', True,
        'tasks running at one time; on a leaf, tasks of it; on a container, iterations in '
        "flight (default 1); below 1: no limit. An Eventor's default is 1", 'CPUs, >= 2'),
    'stop_on_exception': ConfigKey(True, 'bool', True,
        'an unexpected failure stops the container (semantics 3.4)'),
    'sleep_between_loops': ConfigKey(1.0, 'seconds', False,
        'seconds between looks at what cannot wake the supervisor'),
    'envvar_prefix': ConfigKey('', 'prefix', False,
        "of the variables of a running task ('EVENTOR_')", "'SEQUENT_'"),
    'start_method': ConfigKey(None, 'start method', True,
        "of multiprocessing, for 'process' and 'pool'; other methods than 'fork' need functions "
        'that can be imported', "'fork'"),
    'shutdown_grace': ConfigKey(10.0, 'seconds', False, 'seconds between SIGTERM and SIGKILL'),
    'exclusive': ConfigKey(True, 'bool', False,
        'refuse a second concurrent run of this flow in the store'),
    'synchronous': ConfigKey('full', 'full|normal|off', False,
        "of SQLite: 'full', 'normal' or 'off'"),
    'group_commit': ConfigKey(0.02, 'seconds', False,
        'seconds of work of inline and pool tasks that may share a commit'),
    'capture': ConfigKey('relay', 'relay|file|none', True,
        "output of process tasks: 'relay' (log file and standard error), 'file' (log file "
        "only), 'none' (left alone)"),
    'stdin': ConfigKey('null', 'null|inherit', True,
        "what process tasks, pool workers and programs read: 'null' (nothing), 'inherit' (what "
        'the supervisor reads)'),
    'handled_by': ConfigKey('handles', 'handles|failure|complete', False,
        "which steps make failures good (semantics 3.3): 'handles', those with "
        "``handles=True``; 'failure', also each that requires the failure of a sibling; "
        "'complete', also each that requires its completion"),
    'keep_result': ConfigKey(True, 'bool', True, 'store what functions return'),
    'retries': ConfigKey(0, 'count', True,
        'how often a failed task is tried again in each recovery'),
    'retry_delay': ConfigKey(0, 'delays', True,
        'seconds before that, or a list of them; the last stays'),
    'retry_backoff': ConfigKey(1, 'factor', True,
        'factor by which one ``retry_delay`` grows from attempt to attempt'),
    'retry_jitter': ConfigKey(0, 'share', True,
        'share of the delay, 0 to 1, by which it is varied'),
    'retry_on': ConfigKey(None, 'failures', True,
        'try only these failures again: exception classes or their names, exit codes (minus a '
        'signal); one or a list'),
    'retry_unless': ConfigKey(None, 'failures', True, 'do not try these again'),
    'timeout': ConfigKey(None, 'limit', True,
        'seconds after which an attempt is ended, and has failed'),
    'warn_after': ConfigKey(None, 'limit', True,
        'seconds after which a running task is warned of, once'),
    'run_timeout': ConfigKey(None, 'limit', False,
        'seconds after which the run is stopped, as by a SIGTERM; ``run()`` returns False, and '
        'continue can go on with it'),
    'tolerate': ConfigKey(None, 'tolerance', True,
        "failed iterations that a loop bears: a number, or a share such as '10%' (of what has a "
        'length, else looked at when the loop is over); not inherited'),
    'observers': ConfigKey([], 'names', False,
        'names of files in backends/ whose observers are told of the run'),
    'assume_dead': ConfigKey(False, 'bool', False,
        'take processes for dead that were recorded on another host and cannot be looked at'),
    'cwd': ConfigKey('', 'path', True,
        'folder in which tasks run: process, inline, programs', "supervisor's"),
    'env': ConfigKey({}, 'JSON object', True,
        '{name: str, or None to remove it}: changes to the environment of tasks: process, '
        'inline, programs'),
}


def config_table():
    """Return the configuration keys, their defaults and their meanings as the lines of a table."""
    lines = []
    for name, one in CONFIG_KEYS.items():
        head = name + ' *' * one.on_steps
        lines += ['%-21s  %s' % (head, one.shown or repr(one.default)), '   ']
        for word in one.help.split():
            if len(lines[-1]) + len(word) > 91:
                lines.append('   ')
            lines[-1] += ' ' + word
    return lines


def config_key(name):
    """Return the `ConfigKey` of a name, of the core or of a file in ``backends/``, or None."""
    return CONFIG_KEYS.get(name) or next(
        (ConfigKey(**one['config'][name]) for one in descriptions().values()
         if name in one.get('config', {})), None)


def _check_value(key, value, who):
    """Return a configuration value, converted; raise `ConfigError` if it is not of its kind."""
    kind = config_key(key).kind
    if kind in _VALUE_KINDS:
        wanted, fits, _ = _VALUE_KINDS[kind]
        _must_be(fits(value), '%s: config %r' % (who, key), wanted, value, ConfigError)
    else:
        choices = kind.split('|') if '|' in kind else start_methods()
        if value not in choices and (value is not None or '|' in kind):
            raise ConfigError('%s: config %r cannot be %r%s' % (
                who, key, value, _choices(value, choices)))
    if kind == 'JSON object':
        return dict(value)
    return os.fspath(value) if kind == 'path' else value


def _environment_settings(keys):
    """Return the settings that the environment has for some keys, {key: its `ConfigKey`}."""
    found = {}
    for key, one in keys.items():
        variable = 'SEQUENT_' + key.upper()
        text, who = os.environ.get(variable), 'environment variable ' + variable
        if text:
            try:
                value = _VALUE_KINDS[one.kind][2](text) if one.kind in _VALUE_KINDS else text
            except ValueError:
                raise ConfigError('%s: %r is no %s' % (who, text, one.kind)) from None
            found[key] = _check_value(key, value, who)
    return found


def _check_text(text, what):
    """Refuse what neither a store nor the environment can hold."""
    if '\0' in text or text != _encodable(text):
        raise FlowError('%s cannot be %r: it must be text without null characters' % (what, text))


def _is_delay(value):
    return _is_number(value) and 0 <= value <= sys.float_info.max


def _are_delays(value):
    return _is_delay(value) or isinstance(value, (list, tuple)) and value and all(
        map(_is_delay, value))


def _read_delays(text):
    delays = [float(one) for one in text.split(',')]
    return delays if len(delays) > 1 else delays[0]


def _are_failures(value):
    if isinstance(value, (list, tuple)):
        return all(one is not None and _are_failures(one) for one in value)
    return value is None or _is_int(value) or isinstance(value, str) and bool(value) or (
        isinstance(value, type) and issubclass(value, BaseException))


def _read_failures(text):
    return [int(one) if one.lstrip('-').isdigit() else one
            for one in re.split('[ ,]+', text.strip())]


def _is_tolerance(value):
    if not isinstance(value, str):
        return value is None or _is_int(value) and value >= 0
    try:
        return value.endswith('%') and 0 <= float(value[:-1]) <= 100
    except ValueError:
        return False


def _read_json(text):
    import json
    return json.loads(text)


#: {kind: (its values in words, whether a value is of it, what makes a value of a text)}.
_VALUE_KINDS = {  # type: typing.Dict[str, typing.Tuple[str, typing.Any, typing.Any]]
    'bool': ('True or False', lambda value: isinstance(value, bool), _boolean),
    'int': ('an int', lambda value: value is None or _is_int(value), int),
    'count': ('an int, 0 or more', lambda value: _is_int(value) and value >= 0, int),
    'seconds': ('seconds, 0 or more', lambda value: _is_number(value) and value >= 0, float),
    'limit': ('seconds, more than 0, or None',
              lambda value: value is None or _is_delay(value) and value > 0, float),
    'delays': ('seconds, 0 or more, or a list of such', _are_delays, _read_delays),
    'factor': ('a factor, 1 or more', lambda value: _is_delay(value) and value >= 1, float),
    'share': ('a number from 0 to 1', lambda value: _is_number(value) and 0 <= value <= 1, float),
    'failures': ('exception classes (or their names) and exit codes, one or a list of them',
                 _are_failures, _read_failures),
    'tolerance': ("a number of iterations, 0 or more, or a share such as '10%'", _is_tolerance,
                  str),
    'path': ('a path', lambda value: isinstance(value, (str, os.PathLike)), str),
    'prefix': ("a str without '='", lambda value: isinstance(value, str) and not (
        set(value) & {'=', '\0'}), str),
    'construct': ('a task construct', lambda value: value is not None and value != '', str),
    'names': ('a list of names', lambda value: isinstance(value, (list, tuple)) and all(
        isinstance(one, str) for one in value), lambda text: re.split('[ ,]+', text.strip())),
    'JSON object': ("a dict of str: str or None (names without '=')", _are_variables, _read_json),
    'any': ('anything', lambda value: True, str),
}


def _read_config(config, tag, who):
    """Return the config dict: given as one or as the path of a JSON file, or what a tag picks."""
    if isinstance(config, (str, os.PathLike)):
        try:
            with open(os.fspath(config), encoding='utf-8') as stream:
                config = _read_json(stream.read())
        except (OSError, ValueError) as error:
            raise ConfigError('%s: config file %r cannot be read: %s'
                              % (who, os.fspath(config), error)) from error
    for part in tag.split('.') if tag else ():
        if not isinstance(config, dict) or part not in config:
            raise ConfigError('%s: config has no key %r (config_tag %r)%s' % (
                who, part, tag, _nearest(part, config if isinstance(config, dict) else ())))
        config = config[part]
    if config is None:
        return {}
    _must_be(isinstance(config, dict), who + ': config', 'a dict or the path of a JSON file',
             config, ConfigError)
    return config


def _checked_config(config, who, warnings, on_step=False):
    """Return a copy of a config dict with its values checked.

    What means nothing is told in ``warnings``, a list: there may be no log yet that shows them.
    """
    checked = {}
    for key, value in config.items():
        one = config_key(key)
        if one is None and key == 'LOGGING' and not on_step:
            _check_legacy_logging(value, who, warnings, checked)
        elif one is None and key == 'DATABASES' and not on_step:
            warnings.append("%s: config key 'DATABASES' is ignored; give the path of a file, or a "
                            'Store, as store=' % who)
        elif one is None:
            known = [CONFIG_KEYS] + [one.get('config', {}) for one in descriptions().values()]
            warnings.append('%s: unknown config key %r is ignored%s'
                            % (who, key, _nearest(key, itertools.chain(*known))))
        elif one.on_steps if on_step else key != 'tolerate':
            checked[key] = _check_value(key, value, who)
        else:
            warnings.append('%s: config key %r means nothing %s' % (
                who, key, 'on a step; set it on the flow' if on_step
                else 'here; set it on a step with a loop'))
    return checked


def _check_legacy_logging(value, who, warnings, checked):
    """Use the folder of what the predecessors have under LOGGING; `_Flow` uses the level."""
    legacy = value if isinstance(value, dict) else {}
    unused = sorted(set(value) - {'logdir', 'logging_level'}, key=str) if isinstance(
        value, dict) else [value]
    if unused:
        warnings.append('%s: in config LOGGING only logdir and logging_level are used, not %s'
                        % (who, ', '.join(map(repr, unused))))
    if legacy.get('logdir'):
        checked.setdefault('logdir', _check_value('logdir', legacy['logdir'], who))


# What the command line says while it loads a flow's module; see `main`.
_in_common('session', None)


def _is_iterator(loop):
    """Whether a loop can be gone over only once (semantics 1.4)."""
    return not (loop is None or found_by_running(loop)) and iter(loop) is loop


def begin_elsewhere(flow, run_id):
    """Note, in a child that was forked before the run of a flow began, that it has begun."""
    flow._current.run_id, flow._elsewhere = run_id, True


class TaskInfo(collections.namedtuple('TaskInfo', (
        'path', 'sequence', 'kind', 'status', 'recovery', 'attempt', 'start', 'end', 'error',
        'handled', 'result'))):
    """What ran: one task as ``tasks()`` tells it. Times are seconds since the epoch or None.

    ``kind`` is ``leaf``, ``container`` or ``loop`` (a leaf with a loop, as a whole).
    ``handled``: the task failed, and a handler has made that good, or its loop tolerates it
    (semantics 3.3).
    ``result`` is what a leaf returned; of a container what was asked for outside of it:
    {path: list over its iterations}; of a leaf with a loop the list over its items, if that was
    asked for.
    """

    __slots__ = ()


class FlowReference:
    """What a flow object is in a process that was sent one (start methods other than fork).

    Args:
        name: of the flow.
        path: of the file in which its tasks are stored, or None.
        run_id: of the run.
        module: the name of the module that made it.
    """

    def __init__(self, name, path, run_id, module):
        self.name = name
        self.path = path
        self.run_id = run_id
        self.module = module

    def tasks(self):
        """Return what ran so far: see ``tasks()`` of the flow."""
        store = SqliteStore(self.path) if self.path else None
        return tasks_elsewhere(store, self.name, self.run_id, self.module)

    def get_step_name(self):
        """Return the path of the step that runs here; LookupError outside of one."""
        return current().name

    def get_step_sequence(self):
        """Return the sequence of the task that runs here; LookupError outside of one."""
        return current().sequence


def tasks_elsewhere(store, flow, run_id, home):
    """Return the tasks of a run, in another process than its supervisor, which only looks.

    Raises:
        StoreError: the store is in the memory of the supervisor, or cannot be read.
    """
    if store is None or store.folder is None:
        raise StoreError('the tasks of flow %r are in the memory of its supervisor: call tasks() '
                         'in an inline or thread step, or give the flow a store in a file' % flow)
    store.open(False)
    return told_tasks(store, flow, run_id, home)


def told_tasks(store, flow, run_id, home):
    """Return what ran in a run as a list of `TaskInfo`; the store is open."""
    run = store.latest(flow, run_id)
    if run is None:
        return []
    view = RunView(store, run)
    records = [record for record in view.tasks() if record.kind in ('leaf', 'container', 'loop')]
    good = view.made_good(record for record in records if record.status == FAILURE)
    return [TaskInfo(one.path, one.sequence, one.kind, TaskStatus(one.status), one.recovery,
                     one.attempt, one.started, one.ended, one.error,
                     (one.path, one.sequence) in good, _told_result(one, store, home))
            for one in records]


def _told_result(record, store, home):
    """Return the result of a task as `TaskInfo` has it; None if it cannot be had."""
    try:
        result = load_result(store, record.result, home=home)
        if record.kind == 'leaf' or result is None:
            return result
        result = {path: load_result(store, one, home=home) for path, one in result.items()}
        return result[record.path] if record.kind == 'loop' else result
    except Exception as error:
        logger.warning('step %s at %s: its result cannot be had (%s)', record.path,
                       record.sequence, describe_error(error))
        return None


def _caller():
    """Return (file or None, name of the module) of the nearest caller outside of this one."""
    frame = calling_frame(1)
    here = __file__ if frame is None else frame.f_code.co_filename
    while frame is not None and frame.f_code.co_filename == here:
        frame = frame.f_back
    names = frame.f_globals if frame is not None else {}
    path = names.get('__file__')
    return os.path.abspath(path) if path else None, names.get('__name__', '__main__')


_NO_FUNC = ('step %r has no func: give it func=, command= or steps inside it; func=None makes it '
            'a step that does nothing and succeeds at once')


class _Origin:
    """What a run of a flow begins with: anew, or with what an earlier supervisor has left.

    Args:
        flow: the facade.
        mode: a `RunMode`.
        run_id: the name of the run; '': a new one, or the latest run of the flow.
        recovery_run: with recover: the recovery whose end it begins with; None: the latest.
    """

    def __init__(self, flow, mode, run_id, recovery_run):
        who = 'flow %r' % flow.name
        _must_be(recovery_run is None or _is_int(recovery_run) and recovery_run >= 0,
                 who + ': recovery_run', 'an int of 0 or more', recovery_run)
        _must_be(run_id is None or isinstance(run_id, str), who + ': run_id', 'a str', run_id)
        _check_text(run_id or '', who + ': run_id')
        self.flow = flow
        self.mode = mode = _member(RunMode, mode, who + ': unknown run_mode')
        self.run_id = run_id or ''
        if not run_id and mode == RunMode.restart:
            self.run_id = '%s-%s' % (time.strftime('%Y%m%d-%H%M%S'), os.urandom(3).hex())
        self.recovery_run = recovery_run
        self._base = -1         # the recovery whose end this one began with
        self._signatures = {}  # type: typing.Dict[str, str]

    @property
    def store(self):
        return self.flow.store

    def new_record(self):
        """Return the `RunRecord` to begin, and the latest one of the same run (or None)."""
        now, process, name, store = time.time(), process_identity(), self.flow.name, self.store
        last = store.latest(name, self.run_id)
        if self.mode == RunMode.restart:
            if last is not None:
                raise FlowError(
                    'flow %r already has a run %r in %r; recover or continue it, or choose '
                    'another run_id' % (name, self.run_id, store))
            return RunRecord(name, self.run_id, started=now, process=process), None
        if store.volatile and self.mode == RunMode.recover:
            raise RecoveryError("nothing to recover: ':memory:' does not keep all that a recovery "
                                'needs; give the flow store=MemoryStore()')
        if last is None:
            raise RecoveryError('nothing to recover: %r holds no run %sof flow %r' % (
                store, '%r ' % self.run_id if self.run_id else '', name))
        if self.recovery_run is not None and self.recovery_run > last.recovery:
            raise RecoveryError(
                'nothing to recover: run %r of flow %r has no recovery %d, the latest is %d'
                % (last.run_id, name, self.recovery_run, last.recovery))
        self.run_id = last.run_id
        run = last._replace(mode=self.mode.value, status=ACTIVE, ended=None, process=process)
        if self.mode == RunMode.recover:
            run = run._replace(recovery=last.recovery + 1, started=now)
        return run, last

    def look_ahead(self):
        """Find out what the run builds on; refuse to go on with what does not fit.

        The store is open; nothing is changed.

        Returns:
            the `RunRecord` to begin, None if there is nothing to continue; the latest record of
            the same run, or None; the `_History` of what it builds on, or None; and the records
            of earlier runs that nobody has ended.
        """
        run, last = self.new_record()
        _refuse_living(self.store, run.flow, run.run_id, not self.flow.settings()['exclusive'])
        if not (self.store.volatile or self._signatures):
            self._signatures = step_signatures(self.flow.compile())
        if last is None:
            return self.noted(run), None, None, self._refuse_orphans()
        noted = json_object(last.steps)
        _parameters.compare(last, noted.get('parameters', {}))
        given = noted.get('triggers', [])
        if (self.mode == RunMode.continue_ and last.status in (SUCCESS, FAILURE)
                and all(one in given for one in self.flow.pending)):    # semantics 7.5
            return None, last, None, []
        self._base = last.recovery if self.recovery_run is None else self.recovery_run
        if self.mode == RunMode.continue_:
            self._base = noted.get('base', last.recovery - 1)
        history = _History(self.store, run, self.flow.compile(), self.flow.settings(),
                           self._base, self._signatures, {last.recovery: noted})
        for event, sequence in history.triggers():
            self.flow.count_sequence(event, sequence)
            if event not in self.flow.compile().events:
                logger.warning('event %r, which the run was told to raise, is gone', event)
            elif [event, sequence] not in self.flow.pending:
                self.flow.pending.append([event, sequence])
        return self.noted(run), last, history, []

    def noted(self, run):
        """Return a `RunRecord` with what the flow consists of now."""
        import json
        return run._replace(steps=json.dumps({
            'signatures': self._signatures, 'base': self._base, 'triggers': self.flow.pending,
            'parameters': _parameters.recorded()}))

    def _refuse_orphans(self):
        """Refuse a new run beside what an earlier one left running (semantics 6.5).

        Returns:
            the `RunRecord`s of earlier runs that nobody has ended.
        """
        name, settings = self.flow.name, self.flow.settings()
        if not settings['exclusive']:
            return []
        dead = [old for old in self.store.runs(name, ACTIVE) if old.run_id != self.run_id]
        stopped = []    # Their constructs may have left something running.
        if any(one.calls and one.step.construct.leaves for one in self.flow.compile().steps):
            stopped = [old for old in self.store.latest_runs(name, 5) if old.status == 'stopped']
        for old in dead + stopped:
            history = _History(self.store, old, self.flow.compile(), settings)
            history.look()
            for record, _, _, sight in history.living.values():
                raise AlreadyRunningError(
                    'flow %r cannot start anew: step %r at %s of its run %r still runs as %s '
                    'since %s; wait for it, end it, or recover that run' % (
                        name, record.path, record.sequence, old.run_id, sight.text,
                        local_time(record.started)))
        return dead

    def name_runs(self, last, named):
        """Name the run that is gone on with, if nobody chose it, and one that is left undone."""
        if last is not None and named:
            return
        for one in self.store.latest_runs(self.flow.name, 1 if last is None else 5):
            known = one.run_id, self.flow.name, local_time(one.started), ENDS[one.status]
            if last is not None and one.run_id == last.run_id:
                logger.info('run %s of flow %s, the latest one, began at %s: %s', *known)
            elif one.status not in ((SUCCESS,) if last is None else (SUCCESS, FAILURE)) and (
                    one.status != ACTIVE or not process_alive(one.process)):
                logger.warning(
                    'run %s of flow %s is not done, it began at %s: %s; to go on with it, recover '
                    'it by its name (recover --run-id %s)', *known, one.run_id)
                break


class _Run(_Origin):
    """One run of a flow: its lock and open store, its driver, its result.

    Attributes:
        began: whether the store holds it.
        driver: its `Driver`, once it has begun here; None again after a signal or an error.
        outcome: its result, once it is over.
        held: the ExitStack that gives back the store and the lock, or None.
    """

    def __init__(self, *origin):
        super().__init__(*origin)
        self.began = False
        self.driver = None  # type: typing.Any
        self.outcome = None  # type: typing.Optional[bool]
        self.held = None  # type: typing.Any
        self._stop = None       # the `Stop` that a signal or an error has made necessary

    def is_over(self):
        """Return whether there is a result, and nothing was triggered since."""
        return self.outcome is not None and not (self.driver and self.driver.triggers)

    def run(self, max_loops, tender):
        """Begin the run, or go on with it; return its result, False after config run_timeout.

        Args:
            max_loops: see `Sequent.run`.
            tender: see `Port`.
        """
        if self.driver is None:
            if self._stop is not None:
                self._stop.refuse_abandoned()
                self._stop = None
            self._start()
            if self.driver is None:
                return self.outcome
        else:
            self._resume()
        self.driver.port.tender = tender
        try:
            result = self.driver.run(max_loops)
            over = self.driver.engine.over
            self._finish((SUCCESS if result else FAILURE) if over else 'stopped')
        except BaseException as error:
            self._abandon(error)
            if isinstance(error, RunTimeout):
                return False
            raise
        if over:
            self.outcome = result
            self.release()
        return result

    def release(self):
        """Give back the lock and the store."""
        held, self.held = self.held, None
        if held is not None:
            held.close()

    def let_go(self):
        """Stop working on a run that is not over: from now on it would be continued."""
        self.release()
        self.driver = None
        self.mode, self.recovery_run = RunMode.continue_, None

    def _finish(self, status):
        run = self.driver.run_record._replace(status=status, ended=self.driver.clock())
        self.store.finish(run)
        self.driver.observers.tell('ended', run, self.driver.engine.ok)

    def _abandon(self, error):
        """Record what can be recorded of a run that a signal or an error has ended."""
        self._stop = self.driver.stop
        try:
            # When the store fails the record goes on saying "active", which is what it was.
            if not isinstance(error, StoreError):
                self._finish('stopped')
        finally:
            self._stop.restore()
            self.let_go()

    # The beginning.

    def _resume(self):
        """Go on with a run that `run` has returned from."""
        run = self.driver.run_record
        if self.held is None:    # it was over; events have been raised since
            with contextlib.ExitStack() as held:
                self._open(held)
                self._lock(held, run.run_id)
                self.held = held.pop_all()
            self.outcome = None
        self.store.begin(self.noted(run))
        self.driver.observers.tell('begun', run)

    @_without_collecting()
    def _start(self):
        """Open the store, take the locks, find out what to build on, begin."""
        named = bool(self.run_id)
        with contextlib.ExitStack() as held:
            store = self._open(held, self.mode == RunMode.restart)
            self.new_record()    # It names the run; and for what is not there no store is made.
            store.open()
            self._lock(held, self.run_id)
            # Only now, because another supervisor may have been at work until just now.
            self._begin(named, *self.look_ahead())
            if self.driver is not None:
                self.held = held.pop_all()

    def _open(self, held, create=True):
        store = self.flow.open_store(create)
        held.callback(self.flow.close_store)
        return store

    def _lock(self, held, run_id):
        name = self.flow.name
        self.store.lock(name, run_id, self.flow.settings()['exclusive'])
        held.callback(self.store.unlock, name, run_id)

    def _begin(self, named, run, last, history, dead):
        """Make the `Driver` of a run whose lock is held; none if there is nothing to do."""
        flow, store, settings = self.flow, self.store, self.flow.settings()
        self.began = last is not None
        self.name_runs(last, named)
        if run is None:
            logger.info('run %s of flow %s is over (%s): nothing to do', last.run_id, flow.name,
                        last.status)
            self.outcome = last.status == SUCCESS
            return
        if history is not None:
            history.look(settle=True)
            history.log_differences()
        if not store.volatile:
            run = run._replace(plan=store.keep_plan(plan_text(flow.compile(), called_text)))
        store.begin(run)
        self.began = True
        for old in dead:    # not earlier: `begin` looks for those that have begun meanwhile
            store.finish(old._replace(status='stopped'))
        self.driver = Driver(flow.compile(), store, run, settings, history, flow,
                             settings['logdir'] or store.logs)
        self.driver.triggers.extend(map(tuple, flow.pending))
        self.driver.observers.tell('begun', run)
        if last is not None and last.status == ACTIVE:
            self.driver.observers.tell_owed(store, last)

    def tasks(self):
        """Return what ran, a list of `TaskInfo`; in the thread of the driver, while it works."""
        flow = self.flow
        if not self.began:
            return []
        with contextlib.ExitStack() as held:
            if self.held is None:
                self._open(held, create=False)
            elif self.store.volatile:
                self.driver.catch_up()
            return told_tasks(self.store, flow.name, self.run_id, flow.module)


def _checked_func(who, func, command):
    """Return what a step calls, or None; a `Command` where it was given ``command``."""
    func = None if func is ... else func
    if command is not None and func is not None:
        raise FlowTypeError('%s: give func or command, not both' % who)
    if command is not None:
        try:
            return command if isinstance(command, Command) else Command(command)
        except (FlowError, FlowTypeError) as error:
            raise type(error)('%s: %s' % (who, error)) from None
    if func is None:
        return None
    _must_be(callable(func), who + ': func', 'callable', func)
    made = made_by_call(func)
    if made == 'a coroutine' and _run_coroutine is None:
        raise FlowTypeError('%s: its func %r is an async function, which needs Python 3.7; '
                            'give a function that runs it in an event loop' % (who, func))
    if made is not None and made != 'a coroutine':
        raise FlowTypeError('%s: a call of its func %r makes %s, and runs nothing of it; give '
                            'a function that does the work and returns its results'
                            % (who, func, made))
    return func


def _checked_amounts(who, what, pairs):
    who = '%s: %s' % (who, what)
    _must_be(isinstance(pairs, (tuple, list)), who, 'a list of (ResourcePool, amount)', pairs)
    for pair in pairs:
        _must_be(isinstance(pair, (tuple, list)) and len(pair) == 2
                 and isinstance(pair[0], (ResourcePool, OutsidePool)) and _is_int(pair[1]),
                 who, 'a list of (ResourcePool, int)', pairs)
        _must_be(pair[1] >= 0, '%s of %r' % (who, pair[0]), '0 or more', pair[1], FlowError)
    return tuple((pool, amount) for pool, amount in pairs if amount)


def _checked_recovery(who, recovery):
    _must_be(isinstance(recovery, dict), who + ': recovery', 'a dict of status: replay', recovery)
    return {_member(TaskStatus, status, who + ': recovery of unknown status').value:
            _member(StepReplay, replay, '%s: recovery of %s: unknown replay' % (who, status)).value
            for status, replay in recovery.items()}


def _checked_delay(who, delay):
    _must_be(_is_number(delay), who + ': delay', 'seconds', delay)
    _must_be(0 <= delay < math.inf, who + ': delay', '0 or more seconds', delay, FlowError)
    return delay


# Compiling: what each step needs is found out before anything is opened or started.


class _Preparation:
    """Resolves the settings of steps, finds their constructs, and checks their placeholders.

    Args:
        options: the configuration of the command line, which counts before that of a step.
    """

    def __init__(self, options):
        self.options = options
        self.constructs = {}
        self.searched = set()  # type: typing.Set[int]

    def configure(self, step, settings):
        """Set the settings and the construct of a step, and of those in it."""
        if step.config:
            settings = dict(settings, **step.config)
            settings.update(self.options)
            step.max_concurrent = step.config.get('max_concurrent')
            step.tolerate = step.config.get('tolerate')
            if step.tolerate is not None and step.loop is None:
                raise ConfigError('step %r: config tolerate is for a step with a loop' % step.path)
        step.settings = settings
        step.stop_on_exception = settings['stop_on_exception']
        step.retries = settings['retries']
        if step.func is not None:
            # Most steps share their settings with others, for which they have been checked.
            construct = self.constructs.get(id(settings))
            if construct is None:
                construct = self.constructs[id(settings)] = self._find_construct(step)
            step.construct = construct
            step.serial = construct.inline
            # That one takes long is to be said of what runs, not of what is queued.
            step.queues = construct.queues and settings['warn_after'] is None
            given = step.func, step.args, step.kwargs  # type: typing.Any
            if step.args or step.kwargs or type(step.func) is not types.FunctionType:
                # with None for what is not known yet
                given = [filled(one, lambda placeholder: None) for one in given]
            construct.check(step.path, *given, settings)
        for child in step.children:
            self.configure(child, settings)

    def _find_construct(self, step):
        """Return the construct of a step, if it can do what the settings ask of it."""
        settings = step.settings
        spec = settings['task_construct']
        key = (spec if isinstance(spec, (str, type)) else id(spec),
               ' '.join(repr(value) for name, value in settings.items()
                        if name not in CONFIG_KEYS))
        construct = self.constructs.get(key)
        if construct is None:
            construct = self.constructs[key] = find_construct(spec)
        self._add_settings_of(construct, settings)
        wrong = [key for key in ('cwd', 'env') if settings[key]]
        if wrong and not construct.can_place:
            raise ConfigError(
                'step %r: config %s means nothing to %s: its tasks share one folder and '
                "environment; use task_construct 'process' or 'inline'"
                % (step.path, ' and '.join(wrong), type(construct).__name__))
        if settings['timeout'] is not None and not construct.can_kill:
            raise ConfigError(
                'step %r: config timeout needs a construct that can end what it runs, such as '
                "'process'; %s cannot; set timeout to None on this step, or choose another"
                % (step.path, type(construct).__name__))
        return construct

    @staticmethod
    def _add_settings_of(construct, settings):
        """Add the keys of the backend that a construct is from, where nobody has set them."""
        module = sys.modules[type(construct).__module__]
        keys = {name: ConfigKey(**one) for name, one in getattr(module, 'BACKEND', {}).get(
            'config', {}).items() if name not in settings}
        settings.update({name: one.default for name, one in keys.items()})
        settings.update(_environment_settings(keys))

    def find_placeholders(self, step):
        """Set ``asks`` and ``flat`` of a step; refuse placeholders that cannot be filled."""
        rest = []  # type: list
        asks = asked_by(step, rest)
        for one in asks:
            if one.step is not None and one.step.flow is not step.flow:
                raise FlowError('step %r asks for the %s of %r, which belongs to another flow' % (
                    step.path, 'item' if isinstance(one, ItemOf) else 'result', one.step))
            if isinstance(one, ResultOf) and not one.step.settings['keep_result']:
                raise ConfigError('step %r asks for the result of %r, whose config keep_result is '
                                  'False' % (step.path, one.step.path))
        for one in rest:
            hidden = None if id(one) in self.searched else hidden_in(one, self.searched)
            if hidden is not None:
                raise FlowTypeError('step %r: it is given the %r inside an object of type %s, '
                                    'where it is not filled in; put it into args or kwargs by '
                                    'itself, or there into a list, tuple, dict, dataclass or '
                                    'functools.partial' % (step.path, hidden, type(one).__name__))
        program = isinstance(step.func, Command)
        step.asks = asks if asks or program else None
        step.flat = not (program or asks and placeholders_in(
            [one for one in step.args if not isinstance(one, Placeholder)]
            + [step.func, step.kwargs]))


def asked_by(step, rest):
    """Return the placeholders of a step; find out what the names in its command stand for.

    The other objects are added to ``rest``, a list: see `placeholders_in`.
    """
    asked = []
    if step.args or step.kwargs:
        asked = placeholders_in([step.func, step.args, step.kwargs], rest)
    elif step.func is not None:
        asked = placeholders_in(step.func, rest)
    if step.loop is not None:
        inside = placeholders_in(step.loop, rest)
        asked += inside if isinstance(step.loop, Placeholder) else []
    if isinstance(step.func, Command):
        step.names = {name: _named(step, *name) for name in sorted(step.func.names())}
        asked += step.func.placeholders()
        asked += [one for one in step.names.values() if one is not None]
    return tuple(asked)


def _named(step, name, attribute):
    """Return the placeholder that a name in a command stands for, None for a parameter."""
    if not attribute:
        if name not in _parameters.declared:
            raise FlowError('step %r: there is no parameter %r for the {%s} in its command%s; '
                            'braces are written {{ and }}' % (
                                step.path, name, name, _choices(name, _parameters.declared)))
        return None
    # The nearest step of that name, else that of the path.
    seen = [one for around in [step] + step.around()
            for one in [around] + around.parent.children if one.name == name]
    seen += [one for one in step.flow.steps() if one.path == name] if not seen else []
    if not seen:
        raise FlowError('step %r: nothing is called %r here, for the {%s.%s} in its command%s' % (
            step.path, name, name, attribute, _nearest(
                name, [one.path for one in step.flow.steps()])))
    return seen[0].item if attribute == 'item' else seen[0].result


class _Container:
    """What steps are added to: a `Sequent`, or a step of it."""

    __slots__ = ()

    def add_step(self, name, func=..., args=(), kwargs={}, *more, loop=None, require=(), delay=0,
                 acquires=(), releases=None, recovery={}, config={}, command=None, handles=False,
                 **aliases):
        """Add a step to the flow, or to this step, which becomes a container.

        Args:
            name: a non-empty str, unique among its siblings.
            func: what a leaf calls, with ``args`` and ``kwargs``, or a `Command`, which runs a
                program. A leaf with None succeeds at once; a container must not have one. An
                async function runs by ``asyncio.run`` (from Python 3.7 on). A generator function
                is refused, because a call runs nothing of it.
            args, kwargs: may contain placeholders, also inside lists, tuples, dicts, dataclasses
                and ``functools.partial`` objects, which are filled when the step starts: the
                ``result`` of another step, whose success is then required (`Step.result`), the
                ``item`` of a loop around it, and ``sequent.item``, its own. In other objects, and
                in what ``func`` itself holds unless it is a partial, they are an error.
            more: is refused: what follows ``kwargs`` is given by keyword, because the predecessors
                took the fifth argument for the requirement.
            loop: an iterable, or a callable that returns one, or the ``result`` of an earlier step
                (or the ``item`` of a loop around it): the step runs once per item (semantics
                1.4). ``repeat`` and ``repeats`` mean the same. Items of an iterable are compared
                in a recovery; those of a callable or a result are recorded as they are taken, and
                a recovery goes over the recorded ones.
            require: when to start (semantics 2): a step, a (step, status) pair, an event, a tuple
                (all of it) or ``or_``. Nothing: with the container. ``requires`` means the same.
            delay: seconds between the requirement's coming to hold and the step's being ready.
            acquires: a list of (`ResourcePool`, amount) that it needs to start.
            releases: what it gives back when it ends; None: what it acquired.
            recovery: {status: 'rerun' or 'skip'}: what a recovery does with it (semantics 7.2).
            config: configuration for this step and those in it: see `Sequent`.
            command: a list or a str: short for ``func=Command(command)``, a program.
            handles: its success makes good the failures of the siblings whose failure or
                completion it requires, as far as they were recorded before it began (semantics
                3.3). Without it a step that requires a failure only reacts to it: the run fails.

        Returns:
            The step, for use in requirements.

        Raises:
            FlowError, FlowTypeError, ConfigError: what is wrong with it, at once.
        """
        parent = getattr(self, '_root', self)  # type: typing.Any  # of a flow, or this step
        flow = parent.flow
        who = 'step %r' % (name,)
        if more:
            raise FlowTypeError('%s: what follows kwargs is given by keyword, not as %r: require= '
                                'for what it waits for, loop= for what it goes over'
                                % (who, more[0]))
        given = flow._checked(parent, name, func, command, args, kwargs, acquires, releases,
                              recovery, config, handles)
        if aliases:
            loop = _resolve_alias(who, 'loop', loop, None, ('repeat', 'repeats'), aliases)
            require = _resolve_alias(who, 'require', require, (), ('requires',), aliases)
        if aliases:
            wrong = sorted(aliases)[0]
            raise TypeError('%s: add_step() got an unexpected argument %r%s'
                            % (who, wrong, _nearest(wrong, _STEP_ARGUMENTS)))
        if loop is not None:
            _check_loop(who, loop)
        step = FlowStep(flow, parent, name, loop=loop, delay=_checked_delay(who, delay), **given)
        if args or kwargs or type(func) is functools.partial:
            _check_places(who, [step.func, step.args, step.kwargs])
        if require != () and require is not None:
            step.require = parse_expression(require, flow, who)
        if func is ... and command is None:
            flow._without_func.append(step)
        return flow._register(step)

    def add_event(self, require=None):
        """Name an expression, for use in requirements (semantics 2.4).

        Args:
            require: an expression as in `add_step`; it is read where the event is used.
        """
        parent = getattr(self, '_root', self)  # type: typing.Any
        flow = parent.flow
        return Event(flow, '', parse_expression(() if require is None else require, flow,
                                                'an event'))


_STEP_ARGUMENTS = ('name', 'func', 'args', 'kwargs', 'loop', 'require', 'delay', 'acquires',
                   'releases', 'recovery', 'config', 'command', 'handles')


class FlowStep(Step, _Container):
    """A step of a `Sequent` flow; made by ``add_step``."""

    __slots__ = ()


def _check_places(who, given):
    """Refuse steps, and placeholders where they cannot be filled."""
    rest = []  # type: list
    placeholders_in(given, rest)
    for one in rest:
        if isinstance(one, Step):
            raise FlowTypeError('%s: its arguments hold %r itself; to hand on what it returns '
                                'give its result, as in args=(%s.result,); to run after it, '
                                'give require=%s' % (who, one, one.name, one.name))
        for each in one if isinstance(one, (set, frozenset)) else (one,):
            if isinstance(each, Placeholder):
                raise FlowTypeError('%s: the %r stands in a set or as the key of a dict, where it '
                                    'cannot be filled; put it into a list, tuple or dict'
                                    % (who, each))


def _resolve_alias(who, name, value, default, aliases, given):
    """Return an argument that may have been given under another accepted spelling."""
    spelled = [one for one in aliases if one in given]
    if len(spelled) > 1 or spelled and value is not default:
        raise TypeError('%s: give one of %s, not two' % (who, ', '.join((name,) + aliases)))
    return given.pop(spelled[0]) if spelled else value


def _check_loop(who, loop):
    """Refuse what cannot be gone over."""
    found = made = None
    if isinstance(loop, (list, tuple, Step, Event, or_)):
        found = reference_in(loop)
    elif callable(loop):
        made = made_by_call(loop)
    wrong = ''
    if isinstance(loop, (set, frozenset)):
        wrong = 'loop is a set, whose order changes from run to run; use sorted()'
    elif loop is item:
        wrong = ('its loop is `item`, which stands for its own item; give that of the loop '
                 'around it, as in loop=outer.item')
    elif isinstance(found, Placeholder):
        wrong = ('a placeholder stands in its loop, where it is not filled; give the placeholder '
                 'itself, as in loop=outer.item, or take it from a step that returns such a list')
    elif found is not None:
        wrong = ('its loop holds %r, which is nothing to go over; to start after it, give it as '
                 'require=, as in require=((a, seq.STEP_SUCCESS),)' % (found,))
    elif made is not None and made != 'a generator':
        wrong = ('a call of its loop %r makes %s, which cannot be gone over; give a function that '
                 'returns the items' % (loop, made))
    elif not found_by_running(loop):
        try:
            iter(loop)
        except Exception as error:
            wrong = 'loop must be an iterable or a callable that returns one, not %s (%s)' % (
                _shown(repr, loop), describe_error(error))
    if wrong:
        raise FlowTypeError('%s: %s' % (who, wrong))


class _Declaration(abc.ABC):
    """What a flow consists of: its name, its configuration, its steps, its store."""

    _prefix = 'SEQUENT_'
    _concurrency = 0    # the default of ``max_concurrent``; 0: the number of CPUs

    def __init__(self, name='', store='', run_mode=RunMode.restart, recovery_run=None, run_id='',
                 logging_level=logging.INFO, config={}, config_tag=''):
        path, self.module = _caller()
        _must_be(isinstance(name, str), 'the name of a flow', 'a str', name)
        # The path of the calling file without .py: its flow and its store are called so.
        self._stem = path and (path[:-3] if path.endswith('.py') else path)
        self.name = name or os.path.basename(self._stem or 'sequent')
        who = 'flow %r' % self.name
        self._given_store = store
        self._given_run_id = run_id or ''
        config = _read_config(config, config_tag, who)
        legacy = config.get('LOGGING') if isinstance(config.get('LOGGING'), dict) else {}
        self.logging_level = legacy.get('logging_level', logging_level)
        _must_be(_is_int(self.logging_level) or isinstance(self.logging_level, str) and _is_int(
            logging.getLevelName(self.logging_level)), who + ': logging_level',
                 'a level of logging, such as logging.INFO', self.logging_level, ConfigError)
        _check_text(self.name, 'the name of a flow')
        self._warnings = []  # type: typing.List[str]
        self._config = _checked_config(config, who, self._warnings)
        self._options = {}         # what the command line says
        self._root = FlowStep(self, None, '')
        self._paths = {}           # path -> step
        self._without_func = []    # steps that were given none: they must become containers
        self._plan = None  # type: typing.Any
        self.store = None  # type: typing.Any
        #: The [event, sequence] pairs that the run is told to raise from outside.
        self.pending = []  # type: typing.List[list]
        #: What is told of each run of this object: see `observe`.
        self.observers = []  # type: typing.List[Observer]
        self._current = _Run(self, run_mode, run_id, recovery_run)
        self._closed = False
        self._running = False
        self._elsewhere = False    # it runs in another process than this one
        if _common.session is not None:
            _common.session.made(self)

    def __repr__(self):
        return '<%s %s>' % (type(self).__name__, self.name)

    def log_warnings(self):
        """Log, once, what was found questionable while the flow was made."""
        for warning in self._warnings:
            logger.warning('%s', warning)
        self._warnings = []

    def _checked(self, parent, name, func, command, args, kwargs, acquires, releases, recovery,
                 config, handles):
        """Check what a step of either facade is given; return it as arguments of `Step`."""
        who = 'step %r' % (name,)
        if self._closed or self._current.driver is not None:
            raise ClosedError('%s cannot be added to %r: it has been run' % (who, self))
        _must_be(isinstance(name, str) and name, 'the name of a step', 'a non-empty str', name,
                 FlowError if isinstance(name, str) else FlowTypeError)
        _check_text(name, 'the name of a step')
        if parent.func is not None:
            raise FlowError('%s cannot be added to step %r: that has a func, so it cannot be a '
                            'container' % (who, parent.path))
        func = _checked_func(who, func, command)
        _must_be(isinstance(handles, bool), who + ': handles', 'True or False', handles)
        _must_be(isinstance(args, (tuple, list)), who + ': args', 'a tuple or list', args)
        _must_be(isinstance(kwargs, dict) and (not kwargs or all(
            isinstance(key, str) for key in kwargs)), who + ': kwargs', 'a dict with str keys',
                 kwargs)
        if (args or kwargs) and isinstance(func, Command):
            raise FlowTypeError('%s: the arguments of a program stand in its Command, not in args '
                                'or kwargs' % who)
        return {
            'func': func, 'handles': handles, 'args': tuple(args),
            'kwargs': dict(kwargs) if kwargs else _NOTHING,
            'acquires': () if acquires == () else _checked_amounts(who, 'acquires', acquires),
            'releases': None if releases is None else _checked_amounts(who, 'releases', releases),
            'recovery': _NOTHING if recovery == {} else _checked_recovery(who, recovery),
            'config': _NOTHING if config == {} else _checked_config(
                _read_config(config, '', who), who, self._warnings, on_step=True)}

    def _register(self, step):
        """Add a step to its container; return it."""
        known = self._paths.get(step.path)
        if known is not None and known.parent is step.parent:
            raise FlowError('two steps named %r in %s' % (
                step.name, 'step %r' % step.parent.path if step.parent.path else repr(self)))
        if known is not None:
            raise FlowError('step %r in %r and step %r in %r would both have the path %r; rename '
                            'one' % (known.name, known.parent.path or self.name, step.name,
                                     step.parent.path or self.name, step.path))
        self._paths[step.path] = step
        if not step.parent.children:
            step.parent.children = []
        step.parent.children.append(step)
        return step

    @abc.abstractmethod
    def _compile(self, settings):
        """Return the `Plan`; the steps are configured."""

    @abc.abstractmethod
    def _count_initial(self):
        """Return how much there is to do before anything has happened."""

    # Configuration.

    def settings(self):
        """Return the flow's resolved configuration as a dict."""
        settings = {key: one.default for key, one in CONFIG_KEYS.items()}
        settings['max_concurrent'] = self._concurrency or max(2, os.cpu_count() or 1)
        settings['envvar_prefix'] = self._prefix
        settings.update(_environment_settings(CONFIG_KEYS))
        for given in (self._config, self._options.get('config', {})):
            settings.update((key, value) for key, value in given.items() if value is not None)
        return settings

    def steps(self):
        """Return the steps of the flow, at any depth, in the order in which they were added."""
        return list(self._paths.values())

    def compile(self):
        """Check the flow and return its `Plan`; opens and starts nothing.

        Raises:
            FlowError, CycleError, ConfigError, ConstructError: the flow cannot be run.
        """
        if self._plan is None:
            for step in self._without_func:
                if not step.children:
                    raise FlowError(_NO_FUNC % step.path)
            settings = self.settings()
            preparation = _Preparation(self._options.get('config', {}))
            preparation.configure(self._root, settings)
            for step in self._paths.values():
                preparation.find_placeholders(step)
            plan = self._compile(settings)
            self.observers += map(find_observer, settings['observers'])
            self._plan = plan
        return self._plan

    def open_store(self, create=True):
        """Return this flow's store, opened; the caller calls `close_store`.

        Raises:
            StoreError: it cannot be opened.
        """
        if self.store is None:
            self.store = self._make_store()
        self.store.open(create)
        self.store.users += 1
        return self.store

    def close_store(self):
        """Close the store, unless another flow that was given the same object uses it, too."""
        self.store.users -= 1
        if not self.store.users:
            self.store.close()

    def _make_store(self):
        given = self._options.get('store')
        if given is None:
            given = self._given_store
        if (given is None or given == '') and self._stem:
            given = self._stem + '.run.db'
        elif given is None or given == '':
            given = os.path.abspath('sequent.run.db')
            logger.warning('flow %r is in no file: its store is %s', self.name, given)
        return find_store(given, self.settings()['synchronous'])


class _Flow(_Declaration):
    """What `Sequent` and `Eventor` share: the life of a run."""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def __call__(self, max_loops=-1, **how):
        return self.run(max_loops, **how)

    def __reduce__(self):
        path = self.store.path if isinstance(self.store, SqliteStore) else None
        return FlowReference, (self.name, path, self.run_id, self.module)

    get_step_name = FlowReference.get_step_name
    get_step_sequence = FlowReference.get_step_sequence

    def override(self, store=None, run_mode=None, run_id=None, recovery_run=None,
                 logging_level=None, config=None):
        """Let the command line have its say: what is not None counts before all else."""
        self._options = {'store': store, 'config': _checked_config(
            config or {}, 'command line', self._warnings)}
        if recovery_run is not None and recovery_run < 0:
            raise RecoveryError('there is no recovery %d: they are counted from 0' % recovery_run)
        run = self._current
        self._current = _Run(
            self, run.mode if run_mode is None else run_mode,
            run_id or (run.run_id if run_mode is None else self._given_run_id),
            run.recovery_run if recovery_run is None else recovery_run)
        if logging_level is not None:
            self.logging_level = logging_level

    def run(self, max_loops=-1, run_mode=None, run_id=None, recovery_run=None):
        """Run the flow (semantics 8).

        An object is one run: called again, it goes on with that run. Once the run is over, that is
        said at WARNING, nothing runs, and the result is returned again.

        Args:
            max_loops: a positive number ends the run after so many cycles (semantics 8.1).
            run_mode: a `RunMode` or its value begins anew with this object: restart starts a new
                run, recover and continue go on with one. None: as above.
            run_id: with ``run_mode``: the name of the run; by default a new one is generated, or
                this object's run is gone on with, or the flow's latest, if this object has none.
            recovery_run: with recover: as of `Sequent`.

        Returns:
            True, or False after a failure that nothing made good (semantics 3.3).

        Raises:
            FlowError, ConfigError, ConstructError: the flow cannot be run; nothing was started.
            RecoveryError: there is nothing to recover or to continue.
            AlreadyRunningError: another supervisor is at work on this flow or run.
            StoreError: the store cannot be used.
            ClosedError: after ``close()``.
            KeyboardInterrupt, SystemExit: a signal came (semantics 8.3).
        """
        if in_child():
            raise _load_ends('flow() is not for a child process')
        _must_be(_is_int(max_loops), 'max_loops', 'an int', max_loops)
        if _common.session is not None:
            _common.session.take_over(self)
        if self._closed:
            raise ClosedError('%r has been closed; make a new one to run it again' % self)
        if self._running:
            raise ClosedError('%r is running: run() cannot be called from within' % self)
        before = self._current
        if run_mode is not None:
            self._begin_anew(run_mode, run_id, recovery_run)
        elif run_id is not None or recovery_run is not None:
            raise FlowTypeError('run_id and recovery_run mean nothing to run() without run_mode')
        run = self._current
        if run.is_over():
            logger.warning('run %s of flow %s is over (%s), so nothing runs; '
                           'run(run_mode=RunMode.restart) starts a new run', run.run_id,
                           self.name, SUCCESS if run.outcome else FAILURE)
            return run.outcome
        self._running = True
        try:
            with lasting_streams:
                return self._run(run, max_loops)
        finally:
            self._running = False
            if not run.began:    # it was refused
                self._current = before

    def _begin_anew(self, run_mode, run_id, recovery_run):
        """Let go of the run of this object, and begin another or recover one."""
        before = self._current
        if run_mode != RunMode.restart and run_id in (None, ''):
            run_id = before.run_id if before.began else self._given_run_id
        run = _Run(self, run_mode, run_id, recovery_run)
        if recovery_run is not None and run.mode != RunMode.recover:
            raise FlowTypeError('flow %r: recovery_run is for run_mode recover, not %s'
                                % (self.name, run.mode))
        if before.began:
            self._refuse_used_iterators()
        if before.held is not None:
            before.let_go()
        self._current = run

    def _run(self, run, max_loops):
        install_logging(self.logging_level)
        self.log_warnings()
        tender = self._start_tender()
        try:
            if run.driver is None:
                self.compile()
                if run.began:
                    self._refuse_used_iterators()
            return run.run(max_loops, tender)
        finally:
            if tender is not None:
                tender.close()

    def _start_tender(self):
        """Return what starts children for the run from a small process, or None."""
        settings = self.settings()
        if not (type(find_construct(settings['task_construct'])) is ProcessConstruct or any(
                one.config.get('task_construct') == 'process' for one in self._paths.values())):
            return None
        accelerator = load_backend('tender')
        return accelerator and accelerator.start(self._paths, settings)

    def _refuse_used_iterators(self):
        """A loop that was gone over in part cannot be gone over again by another supervisor."""
        for step in self._paths.values():
            if _is_iterator(step.loop):
                raise ClosedError('%r cannot begin another run, or go on with one that was '
                                  'interrupted: the loop of step %r is an iterator, which can be '
                                  'gone over only once; make the flow anew' % (self, step.path))

    @property
    def run_id(self):
        """The name of the run; '' while it is not known which one is gone on with."""
        return self._current.run_id

    @property
    def run_mode(self):
        """How the run begins, or began: a `RunMode`."""
        return self._current.mode

    @run_mode.setter
    def run_mode(self, value):
        self._current.mode = _member(RunMode, value, 'flow %r: unknown run_mode' % self.name)

    @property
    def recovery_run(self):
        """The recovery whose end the run begins with; None: the latest."""
        return self._current.recovery_run

    @recovery_run.setter
    def recovery_run(self, value):
        self._current.recovery_run = value

    def observe(self, observer):
        """Let an `Observer` be told of the runs that this object begins from now on.

        Args:
            observer: the object, or the name of a file in ``backends/`` that has one.
        """
        self.observers.append(find_observer(observer))

    def look_ahead(self):
        """Return (`RunRecord`, `_History` or None) with which ``run()`` would begin now; None in
        place of the record if there is nothing to do.

        The store is open; nothing is changed. Raises what ``run()`` would raise before it starts.
        """
        run, _, history, _ = self._current.look_ahead()
        return run, history

    def is_running(self):
        """Return whether `run` has been called and has not returned."""
        return self._running

    def count_sequence(self, event, sequence):
        """Note that an event was raised (Eventor)."""

    def close(self):
        """Let go of everything. The flow cannot be run again; ``tasks()`` still answers."""
        if self._closed:
            return
        if self._running:
            raise ClosedError('%r is running: it cannot be closed' % self)
        self._closed = True
        self._current.release()

    # What happened.

    def tasks(self):
        """Return what ran in this run over all its recoveries, as a list of `TaskInfo`.

        Each task stands with its latest attempt, in the order in which tasks first came up. An
        object that has not been run yet answers with an empty list. In a thread step the
        supervisor answers, between two of its other works; in a process step the store is read.

        Raises:
            StoreError: the store cannot be read, or, in a process step, is in memory.
        """
        run, driver = self._current, self._current.driver
        if self._elsewhere or driver is not None and driver.pid not in (None, os.getpid()):
            self.store = self.store or self._make_store()
            return tasks_elsewhere(self.store, self.name, self.run_id, self.module)
        if driver is not None and self._running and not driver.is_here():
            return driver.port.ask(run.tasks)
        return run.tasks()

    def count_todos(self):
        """Return (tasks and triggers outstanding, seconds to the next due delay or None).

        Outstanding is what is delayed, ready or running, and triggers not yet raised; before the
        run the steps that require nothing.
        """
        run, initial = self._current, self._count_initial()
        if run.is_over() or run.driver is None:
            return 0 if run.is_over() else initial, None
        engine, driver = run.driver.engine, run.driver
        outstanding = engine.running + engine.ready + engine.delayed + len(driver.triggers)
        due = engine.next_due()
        left = None if due is None else max(0.0, due - driver.clock())
        return outstanding + (0 if driver.begun else initial), left


class Sequent(_Container, _Flow):
    """A flow of steps that nest, loop, and wait for each other.

    Args:
        name: names the flow in its store; the calling file's name without ``.py`` by default.
        store: a path, ``':memory:'`` or a `Store`; by default the calling module's path with
            ``.run.db`` for ``.py``.
        run_mode: `RunMode` or its value: restart (default), recover, continue.
        recovery_run: with recover: the number of the recovery whose end is the state to start
            from; the latest by default.
        run_id: names the run; generated when not given. With recover and continue: which run;
            the latest of this flow by default.
        logging_level: for the handler that is installed when the application has configured no
            logging.
        config: a dict, or the path of a JSON file; see the table.
        config_tag: the key (or keys, joined by dots) in config under which this flow's stand.

    A key of ``config`` can be set in the environment as ``SEQUENT_<KEY>``. Those marked * can be
    set on steps, too, from which the leaves below inherit them, except ``max_concurrent``. These
    are the keys, with their defaults; files in ``backends/`` have more:
    """

    def _compile(self, settings):
        for step in self._paths.values():
            # An iterator can be gone over once (semantics 1.4).
            for outer in step.around() if _is_iterator(step.loop) else ():
                if outer.loop is not None:
                    raise FlowError('step %r: its loop is an iterator, which can be gone over '
                                    'only once, but %r starts it again in each iteration; give a '
                                    'callable that returns one' % (step.path, outer.path))
        return compile_plan(self._root, settings['handled_by'])

    def _count_initial(self):
        return sum(step.require == All(()) and not any(isinstance(one, ResultOf)
                                                       for one in asked_by(step, []))
                   for step in self._root.children)


if Sequent.__doc__:    # which Python removes under -OO
    Sequent.__doc__ += '\n    %s\n' % '\n    '.join(config_table())

class _Timer(Step):
    """A delayed association of an Eventor: a step that only waits."""

    __slots__ = ()
    kind = 'timer'


class Eventor(_Flow):
    """The layer below: steps that events start, and that raise events (semantics 9).

    Args: as of `Sequent`, where the configuration keys are; the variables of a task begin with
    ``EVENTOR_`` and ``max_concurrent`` is 1 by default.
    """

    _prefix = 'EVENTOR_'
    _concurrency = 1

    def __init__(self, name='', store='', run_mode=RunMode.restart, recovery_run=None,
                 logging_level=logging.INFO, config={}, run_id='', config_tag=''):
        super().__init__(name, store, run_mode, recovery_run, run_id, logging_level, config,
                         config_tag)
        self._events = collections.OrderedDict()
        self._starters = {}                         # Step -> expressions that start it
        self._last_sequence = {}                    # Event -> the last generated sequence

    def add_event(self, name, expr=None):
        """Add an event.

        Args:
            name: a non-empty str. A known one with the same expression is that event.
            expr: an expression of events: when it holds at a sequence, the event is raised there.

        Raises:
            FlowError: the name is known with another expression.
        """
        _must_be(isinstance(name, str) and name, 'the name of an event', 'a non-empty str', name)
        given = expr is not None and expr != ()
        require = parse_expression(expr, self, 'event %r' % name) if given else None
        known = self._events.get(name)
        if known is not None:
            if repr(known.require) != repr(require):    # as tuples All and Any are equal
                raise FlowError('event %r was already added with another expression' % name)
            return known
        event = self._events[name] = Event(self, name, require)
        return event

    def add_step(self, name, func=..., args=(), kwargs={}, triggers={}, recovery={}, config={},
                 acquires=(), releases=None, command=None, handles=False):
        """Add a step. It runs at each sequence at which an event associated with it is raised.

        Args:
            triggers: {status: event or tuple of events} that it raises at its own sequence.
            handles: its success makes good the failures whose triggers have started it
                (semantics 3.3).
            name, func, args, kwargs, recovery, config, acquires, releases, command: as of
                `Sequent`.
        """
        if func is ... and command is None:
            raise FlowError(_NO_FUNC % (name,))
        given = self._checked(self._root, name, func, command, args, kwargs, acquires, releases,
                              recovery, config, handles)
        who, func = 'step %r' % name, given['func']
        raised = self._checked_triggers(who, triggers)
        if placeholders_in([func, args, kwargs]) or isinstance(func, Command) and (
                func.placeholders() or any(attribute for _, attribute in func.names())):
            raise FlowTypeError('%s: placeholders for results and items are for the steps of a '
                                'Sequent; what an Eventor runs has no place in a tree' % who)
        step = self._register(Step(self, self._root, name, **given))
        self._starters[step] = []
        for status, events in raised:
            for event in events:
                event.sources.append(Atom(step, status))
        return step

    def _checked_triggers(self, who, triggers):
        _must_be(isinstance(triggers, dict), who + ': triggers', 'a dict of status: events',
                 triggers)
        checked = []
        for status, events in triggers.items():
            status = _member(StepStatus, status, who + ': triggers of unknown status').value
            events = events if isinstance(events, (tuple, list)) else (events,)
            for event in events:
                self._check_event(who, event)
            checked.append((status, events))
        return checked

    def _check_event(self, who, event):
        if not isinstance(event, Event):
            raise FlowTypeError('%s: %r is no event' % (who, event))
        if event.flow is not self:
            raise FlowError('%s: %r belongs to another flow' % (who, event))

    def add_assoc(self, event, *assocs, delay=0):
        """Let an event start steps and raise other events, at its own sequence.

        Args:
            event: what `add_event` returned.
            assocs: steps and events.
            delay: seconds that pass in between; the due time is stored.
        """
        who = 'add_assoc of %r' % (event,)
        self._check_event(who, event)
        delay = _checked_delay(who, delay)
        for target in assocs:
            if isinstance(target, Step) and target.flow is self:
                into = self._starters[target]
            else:
                self._check_event(who, target)
                into = target.sources
            into.append(Atom(self._timer(event, target, delay), SUCCESS) if delay else event)

    def _timer(self, event, target, delay):
        """Return the step that stands for a delayed association."""
        name = '%s>%s' % (event.name, target.name)
        while name in self._paths:
            name += "'"
        timer = self._register(_Timer(self, self._root, name, delay=delay))
        self._starters[timer] = [event]
        return timer

    def trigger_event(self, event, sequence=None):
        """Raise an event at a sequence, before the run or from an inline step (semantics 9.4).

        Args:
            event: what `add_event` returned.
            sequence: any value; compared as str. None counts per event, from 1.
        """
        self._check_event('trigger_event', event)
        if sequence is None:
            self._last_sequence[event] = sequence = self._last_sequence.get(event, 0) + 1
        raised = [event.name, str(sequence)]
        if not self._running:
            if self._closed:
                raise ClosedError('%r has been closed' % self)
            self.pending.append(raised)
            if self._current.driver is not None:
                self._current.driver.triggers.append(tuple(raised))
            return
        driver = self._current.driver
        job = driver.stop.calling_job() if driver is not None else None
        if job is None:
            raise FlowError('trigger_event(%r) while the flow runs is for inline steps: give the '
                            "step config={'task_construct': 'inline'}" % (event,))
        job.triggered += (raised,)

    def count_sequence(self, event, sequence):
        """An event was raised at a sequence without this object's being asked."""
        known = self._events.get(event)
        if known is not None and sequence.isdigit():
            self._last_sequence[known] = max(self._last_sequence.get(known, 0), int(sequence))

    def _compile(self, settings):
        for step, starters in self._starters.items():
            step.require = Any(tuple(starters))
        return compile_plan(self._root, settings['handled_by'], self._events.values())

    def _count_initial(self):
        return len(self.pending)

# 10 Command line #################################################################

# The command line takes over from the flow's module: what runs its flow at its top level, without
# a guard, gets there the verb that was asked for (`_Session.take_over`), and the program ends.
# Data goes to stdout, log and messages to stderr.

_EXAMPLES = """\
examples:
  {prog} nightly               run the flow of the module nightly
  {prog} jobs/nightly.py       the same with a file
  {prog} nightly recover       run again only what is not done
  {prog} nightly recover -n    show what that would run, and why
  {prog} nightly list          show the plan
  {prog} nightly status        show what happened in the latest run
  {prog} nightly status --all --run-id 2024-12-31
  {prog} nightly history --json
  {prog} nightly log extract   print the log of the step extract in the latest run
  {prog} jobs.month --flow payroll --store /var/lib/jobs/payroll.db
  {prog} nightly --set day=2024-12-31    run it with that value of its parameter day
  {prog} nightly -h            this text, and the parameters of nightly

"""

_EPILOG = """\
exit codes: 0 success, 1 a step failed, 2 usage, nothing to recover, 3 the flow cannot be loaded
or is invalid, 4 store or internal error, 75 already running, 129 SIGHUP, 130 SIGINT, 143 SIGTERM
"""

_EXIT_SUCCESS, _EXIT_FAILURE, _EXIT_USAGE, _EXIT_INVALID, _EXIT_ERROR = range(5)
_EXIT_RUNNING, _EXIT_SIGINT = 75, 130


class _UsageError(SequentError):
    """The command line asks for something that is not there."""


class _LoadError(SequentError):
    """A module cannot be loaded, or holds no flow; ``trace`` is the user's part of a traceback."""

    trace = ''


class _OutputError(SequentError):
    """What was asked for cannot be printed."""


#: What may end the program, and its exit code. First match wins.
_EXIT_CODES = (
    (KeyboardInterrupt, _EXIT_SIGINT),
    (AlreadyRunningError, _EXIT_RUNNING),
    ((_UsageError, RecoveryError, ParameterError), _EXIT_USAGE),
    ((_LoadError, FlowError, FlowTypeError, ConfigError, ConstructError, ClosedError),
     _EXIT_INVALID),
    (BaseException, _EXIT_ERROR),
)


def main(argv=None):
    """Run the command line.

    Where a module must be loaded again with the values of parameters that were recorded with a
    run, the program is started again as it was; with ``argv``, a child process does that.

    Args:
        argv: the arguments, without the program's name; ``sys.argv[1:]`` by default.

    Returns:
        The exit code: see ``python -m sequent -h``.
    """
    start, stdout = _Start(argv), sys.stdout
    try:
        with lasting_streams:
            return _main(start, stdout)
    except _StartAgain as again:
        return start.again(*again.args)


def _main(start, stdout):
    try:
        if len(start.arguments) == 2 and start.arguments[0] == '--job':
            run_parcel(start.arguments[1])
        options = _parse_arguments(start.arguments, stdout)
        if options.module is not None:
            return _Session(options, start.recorded).run()
        with _output(stdout) as say:
            if options.text is None:
                return _find_function(options.row)(options, say)
            say_lines(say, options.text)
            return _EXIT_SUCCESS
    except _StartAgain:
        raise
    except BaseException as error:
        return _end(error)


def _end(error):
    """Say on stderr why an exception ends the program; return the exit code."""
    if isinstance(error, SystemExit):    # a signal, or a usage error that was said
        return error.code
    code = next(code for kind, code in _EXIT_CODES if isinstance(error, kind))
    if code == _EXIT_ERROR and not isinstance(error, (StoreError, _OutputError)):
        import traceback
        trace = traceback.format_exception(type(error), error, error.__traceback__)
        _complain('internal error: %s' % describe_error(error), ''.join(trace))
    elif code != _EXIT_SIGINT:
        _complain(error, getattr(error, 'trace', ''))
    return code


class _StartAgain(BaseException):
    """The program must be started again, with the values of parameters {name: text}."""


class _Start:
    """How this program was started, before the module changes anything of it.

    Of the second start, ``recorded`` is {name: text} of the parameters of the run; else None.
    """

    VARIABLE = 'SEQUENT_RECORDED_VALUES'    # tells the second start what was recorded

    def __init__(self, argv):
        self.recorded = json_object(os.environ.pop(self.VARIABLE, '')) or None
        self.environment = dict(os.environ)
        self.is_program = argv is None and os.name == 'posix'
        self.arguments = sys.argv[1:] if argv is None else list(argv)
        self.argv, self.path = sys.argv[:], sys.path[:]
        try:
            self.folder = os.getcwd()
        except OSError:    # it is gone
            self.folder = os.curdir

    def again(self, recorded):
        """Start the program again; return its exit code.

        The program itself is replaced, so that its pid, its streams and its signals stay what
        they are for cron or a shell. A program that has called `main` goes on afterwards, and on
        Windows whoever waits for a replaced program would see it end.
        """
        import json
        environment = dict(self.environment, **{self.VARIABLE: json.dumps(recorded)})
        sys.argv[:] = self.argv
        command = (self.is_program and interpreter_command()) or interpreter_command(
            '-c', 'import importlib, json, sys; name, sys.path[:], argv = json.loads(sys.argv[1]);'
            ' sys.exit(importlib.import_module(name).main(argv))',
            json.dumps([__name__, self.path, self.arguments]))
        try:
            if not self.is_program:
                return _call(command, environment, self.folder)
            run_exit_handlers()
            os.chdir(self.folder)
            os.execve(command[0], command, environment)
        except OSError as error:
            _complain('%r cannot be started again, with the values of parameters that the run '
                      'has (%s): give them with --set' % (command[0], error.strerror or error))
        return _EXIT_ERROR


def _call(command, environment, folder):
    """Run a program; return its exit code, that of a shell where a signal has ended it."""
    import subprocess
    child = subprocess.Popen(command, env=environment, cwd=folder)
    handlers = {}

    def forward(number, _):
        if number != signal.SIGINT:    # which a terminal sends to the child, too
            child.send_signal(number)

    if _in_main_thread():
        for name in {'SIGINT', 'SIGTERM', 'SIGHUP'} & set(dir(signal)):
            number = getattr(signal, name)
            handlers[number] = signal.signal(number, forward)
    try:
        code = child.wait()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


# Arguments ------------------------------------------------------------------------


def _program():
    """Return how this program was called, for messages."""
    spec = getattr(sys.modules['__main__'], '__spec__', None)
    if spec is not None and spec.name == __name__:
        return '%s -m %s' % (os.path.basename(sys.executable) or 'python', __name__)
    return os.path.basename(sys.argv[0]) or __name__


def _log_level(text):
    import argparse
    known = ('debug', 'info', 'warning', 'error', 'critical')
    if text.lower() not in known:
        raise argparse.ArgumentTypeError('unknown level %r%s' % (
            text, _choices(text.lower(), known)))
    return getattr(logging, text.upper())


def _assignment(text):
    """Return (name, value) of NAME=VALUE."""
    import argparse
    name, equals, value = text.partition('=')
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(
            '--set takes NAME=VALUE, with an identifier as name, not %r' % text)
    return name, value


def _verb(call, help, *options, **more):
    return dict(more, call=call, help=help, options=list(options))


_RUNS = ['--run-id', '--construct', '--max-concurrent', '--assume-dead']

#: The verbs, in the form in which the files in backends/ describe theirs.
_VERBS = {
    'run': _verb('_run', 'run the flow as a new run (the default)', *_RUNS),
    'recover': _verb(
        '_run', 'run again what is not done in an earlier run: failed, interrupted, never started',
        '--force-set', '--recovery-run', *_RUNS),
    'continue': _verb('_run', 'go on with a run where it stopped, as the same run and recovery',
                      '--force-set', *_RUNS),
    'list': _verb('_list', 'show the plan: steps, loops, requirements'),
    'status': _verb(
        '_status', 'show the tasks of a run; iterations of loops as counts, failed and running '
        'ones in full', '--run-id', '--recovery-run', '--all', of_run=True),
    'history': _verb('_history', 'show the runs in the store, every recovery on a line of its own',
                     '--run-id', of_run=True),
    'log': _verb('_log', 'print the log of the last attempt of a task', '--run-id',
                 '--recovery-run', of_run=True, words=['STEP', '[SEQUENCE]'],
                 ask='the log of which step? Give its path'),
    'stop': _verb('ask', 'stop a run that goes on, as a SIGTERM does', '--run-id', of_run=True),
}


def _option(help, metavar=None, **more):
    return dict(more, help=help, **({'metavar': metavar} if metavar else {}))


#: The options, in the same form, with more that argparse is told.
_OPTIONS = {
    '--flow': _option('which flow, where the module has several', 'NAME'),
    '--store': _option("the store, instead of the flow's own", 'PATH'),
    '--set': _option(
        'give a parameter of the flow its value; so does the environment variable '
        'SEQUENT_PARAM_NAME, which others cannot see in the list of processes. A recovery has the '
        'values of its run without it', 'NAME=VALUE', type=_assignment, action='append'),
    '--force-set': _option('recover, continue: let --set change a value, though finished steps '
                           'ran with the old one'),
    '--run-id': _option('the name of the new run, or which run to recover, continue, show, stop '
                        'or hold (default: the latest)', 'ID'),
    '--recovery-run': _option('recover: start from the end of that recovery; status, log: show '
                              'it', 'N', type=int),
    '--construct': _option('what runs functions: process, thread, inline, ...', 'NAME'),
    '--max-concurrent': _option('tasks running at one time; below 1: no limit', 'N', type=int),
    '--log-level': _option('debug, info, warning, error or critical', 'LEVEL', type=_log_level,
                           dest='log_level'),
    '-q': _option('log warnings and errors only', dest='log_level', action='store_const',
                  const=logging.WARNING),
    '-v': _option('log everything', dest='log_level', action='store_const', const=logging.DEBUG),
    '--assume-dead': _option('run, recover, continue: take processes for dead that were started '
                             'on another host and cannot be looked at'),
    '--all': _option('status, --dry-run: show every task'),
    '--version': _option('show the version, and which file this is'),
    '--help': _option('show this text', short='-h'),
}

#: The options that go with every verb.
_COMMON = ['--flow', '--store', '--set', '--log-level', '-q', '-v', '--version', '--help']

#: The options and verbs that need a file in backends/: {name: name of the file}.
_BESIDE = {'--dry-run': 'dry_run', '-n': 'dry_run', '--self-check': 'self_check',
           '--json': 'as_json', 'hold': 'hold', 'release': 'hold'}


def _parse_arguments(argv, stdout):
    """Return the options, with ``module``, ``verb`` and the ``words`` that follow the verb.

    ``row`` describes the verb, or the option that takes its place. Where only a ``text`` is to be
    printed, there is no module. Where the arguments are wrong, the parser says so and raises
    SystemExit.
    """
    grammar = _Grammar({})
    options, trouble = grammar.parse(argv)
    if trouble or options.help:    # The files in backends/ are read only if that may help.
        grammar = _Grammar(descriptions())
        options, trouble = grammar.parse(argv)
    options.stdout, options.text = stdout, None
    if options.help:
        options.text = _EXAMPLES.format(prog=grammar.parser.prog) + (
            grammar.parser.format_help().rstrip())
        words = [options.module, options.verb] + options.words
        options.module = next((one for one in words if one not in grammar.verbs), None)
        options.verb = 'help'
    elif options.version:
        options.text = 'sequent %s from %s (Python %s)' % (
            __version__, os.path.abspath(__file__), '.'.join(map(str, sys.version_info[:3])))
        options.module = None
    elif trouble:
        grammar.parser.error(trouble)
    return options


class _Grammar:
    """The verbs and options of the core, and those that files in ``backends/`` add.

    Args:
        backends: {name of a file: its description}.
    """

    def __init__(self, backends):
        core = {'verbs': _VERBS, 'options': _OPTIONS}
        self.verbs, self.options = [{
            name: dict(row, name=name, source=source, call=row.get('call'))
            for source, one in [('', core)] + list(backends.items())
            for name, row in one.get(key, {}).items()} for key in ('verbs', 'options')]
        self.parser = self._make_parser()

    def _make_parser(self):
        """Return a parser of all options. It has no positional arguments, as options may stand
        between these."""
        import argparse
        program = _program()
        parser = argparse.ArgumentParser(
            prog=program, usage='%s MODULE [VERB] [options]' % program, add_help=False,
            allow_abbrev=False, argument_default=argparse.SUPPRESS,
            # Of a width of its own: argparse would ask for that of the terminal 15 times.
            formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, width=78),
            description='MODULE is a dotted name or the path of a .py file. VERB is one of:\n'
            + '\n'.join('  %-10s%s' % (verb, ': '.join(filter(None, (
                ' '.join(row.get('words', ())), row['help'])))) for verb, row in
                self.verbs.items()), epilog=_EPILOG)
        level = parser.add_mutually_exclusive_group()
        for name, row in self.options.items():
            more = {key: row[key] for key in (
                'metavar', 'type', 'dest', 'action', 'const', 'help') if key in row}  # type: dict
            if not more.keys() & {'metavar', 'action'}:
                more['action'] = 'store_true'
            into = level if more.get('dest') == 'log_level' else parser
            into.add_argument(*filter(None, (row.get('short'), name)), **more)
        return parser

    def parse(self, argv):
        """Return (options, what is wrong with them or None); an option that is not given is None.
        """
        options, rest = self.parser.parse_known_args(argv)
        places = {name: row.get('dest', name.strip('-').replace('-', '_'))
                  for name, row in self.options.items()}
        given = [name for name, place in places.items() if place in options]
        for place in set(places.values()) - vars(options).keys():
            setattr(options, place, None)
        words = [one for one in rest if not one.startswith('-')]
        options.module, options.verb = (words + [None, 'run'][len(words):])[:2]
        options.words = words[2:]
        verb = self.verbs.get(options.verb, {})
        options.row, options.of_run = self._acting(given) or verb, verb.get('of_run', False)
        options.pure = any(self.options[name].get('pure') for name in given)
        try:
            for one in rest:
                if one.startswith('-'):
                    self._refuse_unknown('option', one.partition('=')[0], _nearest, self.options)
            if options.row.get('verbs') == []:
                if words:
                    raise _UsageError('%s takes no module, not %r' % (
                        options.row['name'], words[0]))
            else:
                self._check_words(options)
                self._check_options(options, given)
        except _UsageError as error:
            return options, str(error)
        return options, None

    def _acting(self, given):
        """Return the option that takes the place of the verb: of several, the one that takes the
        others; or None."""
        rows = [self.options[name] for name in given if self.options[name]['call']]
        return max(rows, default=None, key=lambda row: len(
            set(given).intersection(row.get('options', ()))))

    @staticmethod
    def _refuse_unknown(what, name, advice, known):
        if name in _BESIDE:
            raise _UsageError('%s needs the file backends/%s.py: copy it to a folder backends '
                              'beside %s' % (name, _BESIDE[name], os.path.abspath(__file__)))
        if name not in known:
            raise _UsageError('unknown %s %r%s' % (what, name, advice(name, known)))

    def _check_words(self, options):
        """Check the words of the command line: MODULE [VERB] ..."""
        module, verb, words = options.module, options.verb, options.words
        if module is None:
            raise _UsageError('which flow? Give a module or a file; -h shows examples')
        call = [self.parser.prog, module, verb]
        if verb not in self.verbs:
            if module in self.verbs:
                raise _UsageError('the module comes first: %s %s %s' % (call[0], verb, module))
            self._refuse_unknown('verb', verb, _choices, self.verbs)
        row = self.verbs[verb]
        wanted = row.get('words', [])
        if len(words) > len(wanted):
            raise _UsageError('unexpected argument %r after the verb' % words[len(wanted)])
        if any(not one.startswith('[') for one in wanted[len(words):]):
            raise _UsageError('%s: %s' % (row.get('ask', '%s needs more words' % verb),
                                          ' '.join(call + wanted)))

    def _check_options(self, options, given):
        """Check that each given option goes with the verb, or with what takes its place."""
        for name in given:
            takers = self.options[name].get('verbs', []) + [
                one for rows in (self.verbs, self.options) for one, row in rows.items()
                if name in row.get('options', ())]
            if name not in _COMMON and options.verb not in takers and (
                    options.row['name'] not in takers):
                raise _UsageError('%s goes with %s, not with %s' % (
                    name, ' and '.join(filter(None, [', '.join(takers[:-1]), takers[-1]])),
                    options.verb))


# Output ---------------------------------------------------------------------------


class _Printer:
    """Prints lines on standard output, for functions that are given ``say``."""

    def __init__(self, stdout):
        self._stdout = getattr(stdout, 'plain', stdout)    # which raises what goes wrong
        self._encoding = getattr(self._stdout, 'encoding', None) or 'utf-8'
        self.said = False

    def __call__(self, text, is_json=False):
        if self._stdout is None:
            raise _OutputError('standard output is closed')
        self.said = True
        text = text if is_json else _in_one_line(text)
        self._try(self._stdout.write,
                  text.encode(self._encoding, 'backslashreplace').decode(self._encoding) + '\n')

    def flush(self):
        self._try(self._stdout.flush)

    def _try(self, method, *given):
        try:
            method(*given)
        except OSError as error:
            _discard(self._stdout)
            raise _OutputError('standard output cannot be written: %s'
                               % (error.strerror or error)) from error


@contextlib.contextmanager
def _output(stdout):
    """Give a `_Printer`; a reader that goes away, like ``head``, ends what prints."""
    say = _Printer(stdout)
    try:
        yield say
        if say.said:
            say.flush()
    except _OutputError as error:
        if not isinstance(error.__cause__, BrokenPipeError):
            raise


def say_lines(say, text):
    for line in text.splitlines():
        say(line)


def _in_one_line(text):
    """Return a text as it is printed within a line."""
    return printable(text).replace('\n', '\\n')


def _complain(text, trace=''):
    """Say on stderr why there is nothing to be had; the exit code says it, too."""
    text = printable('%s%s: error: %s\n' % (trace, _program(), text))
    with contextlib.suppress(OSError, ValueError, AttributeError):    # a module has replaced it
        # By a stream, for example, that raises where its encoding lacks a character.
        encoding = getattr(sys.stderr, 'encoding', None) or 'ascii'
        sys.stderr.write(text.encode(encoding, 'backslashreplace').decode(encoding))


def told_error(error):
    """Return an exception as a message tells it: its class is said of those of others only."""
    return str(error) if isinstance(error, SequentError) else describe_error(error)


def _relevant_trace(error):
    """Return the traceback of an exception with only the lines of the user's; '' without any."""
    import traceback
    ours = {main.__code__.co_filename, importlib.import_module.__code__.co_filename}
    first = traceback.TracebackException.from_exception(error)
    chain, found = [first], False
    for one in chain:
        one.stack = traceback.StackSummary.from_list([
            frame for frame in one.stack
            if frame.filename not in ours and not frame.filename.startswith('<frozen ')])
        found = found or bool(one.stack)
        chain.extend(other for other in (one.__cause__, one.__context__) if other is not None)
    if isinstance(error, SyntaxError) and not first.stack:
        return ''.join(first.format_exception_only())
    return ''.join(first.format()) if found else ''


def _span(start, end):
    """Return the time between two times as people read it, or a dash."""
    if start is None or end is None:
        return '-'
    if end - start < 60:
        return '%.1f s' % max(0.0, end - start)
    minutes, seconds = divmod(int(end - start), 60)
    return '%d:%02d:%02d' % (minutes // 60, minutes % 60, seconds)


def cut_text(text, length):
    return text if len(text) <= length else text[:length - 3] + '...'


def say_table(say, header, rows):
    """Print rows of cells in columns; the last one is cut where the terminal ends.

    Rows are taken lazily: columns become wider where later rows need it.
    """
    import itertools
    import shutil
    columns = shutil.get_terminal_size((100, 24)).columns
    widths = [0] * len(header)
    rows = itertools.chain([header], rows)
    for first in rows:
        chunk = [[_in_one_line(cell) for cell in row]
                 for row in itertools.chain([first], itertools.islice(rows, 999))]
        widths = [max([width] + [len(row[n]) for row in chunk]) for n, width in enumerate(widths)]
        room = max(20, columns - sum(widths[:-1]) - 2 * len(widths[:-1]))
        for row in chunk:
            cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths)]
            say('  '.join(cells + [cut_text(row[-1], room)]).rstrip())


# The module -----------------------------------------------------------------------


class _Values:
    """The values of parameters with which a module is loaded.

    With the verbs that go on with a run, or look at one, the values recorded with the run hold.
    The module is loaded with those that are given, which tells its flow and store. Where the
    recorded ones differ, the program is started again with these: what a module has done while
    it was loaded cannot be undone. A store that is given by an option is asked at once, though
    the flow is not known yet: the module may need the values to make its flow.

    Args:
        options: of the command line.
        recorded: {name: text} of the run, in the second start; else None.
    """

    def __init__(self, options, recorded):
        self.options = options
        self.set = dict(options.set or ())
        self.settled = recorded is not None
        self.recorded = recorded or {}
        self.recovering = options.verb in ('recover', 'continue')
        self.looking = options.of_run

    def give(self):
        """Have the parameters that are declared from now on take what is given."""
        recorded = self.recorded
        if self.options.store and (self.recovering or self.looking) and not self.settled:
            recorded = self._any_recorded()
        _parameters.given = {name: (text, 'recorded') for name, text in recorded.items()}
        _parameters.given.update((name, (text, '--set')) for name, text in self.set.items())
        _parameters.lenient = self.looking or self.options.verb == 'help' or (
            self.recovering and not self.settled)
        _parameters.forced = frozenset(self.set if self.options.force_set else ())

    @staticmethod
    def leave():
        _parameters.given, _parameters.lenient, _parameters.forced = {}, False, ()

    def settle(self, flow):
        """Make sure that the flow was made with the values that hold; else start again, or refuse
        those that are missing, unknown or not those of the run."""
        if (self.recovering or self.looking) and _parameters.declared and not self.settled:
            run = self._find_run(flow)
            if run is not None:
                self._compare(_texts_of(run))
        _parameters.lenient = self.looking
        for name in self.set:
            if name not in _parameters.declared:
                raise _UsageError('--set: the flow has no parameter %r%s' % (
                    name, _choices(name, _parameters.declared)))

    def _find_run(self, flow):
        """Return the `RunRecord` that the options choose, or None."""
        missing = [one for one in _parameters.missing() if not one.secret]
        run, trouble = None, 'it holds no such run'
        try:
            with opened_store(flow) as store:
                run = store.latest(flow.name, flow.run_id if self.recovering
                                   else self.options.run_id)
        except SequentError as error:
            if not missing:
                raise
            trouble = str(error)
        if run is None and missing:
            raise _UsageError(
                'parameter %r is missing, and without it no run of flow %r is found in %r (%s): '
                '%s, or --store' % (missing[0].name, flow.name, flow.store, trouble,
                                    missing[0].how()))
        return run

    def _compare(self, recorded):
        """Start again unless the parameters have the recorded values; refuse other ones."""
        declared = _parameters.declared
        differing = [one for one in declared.values()
                     if one.name in recorded and not one.secret
                     and (one.source is None or not one.equals(recorded[one.name]))]
        for one in differing if self.recovering else ():
            if one.source == '--set' and one.name not in _parameters.forced:
                raise _UsageError(
                    '--set %s: %r is not %r, the value of the run, with which its finished steps '
                    'ran; leave it out, or give --force-set, too' % (
                        one.name, one.text, recorded[one.name]))
        for one in _parameters.missing() if self.recovering else ():
            if one.name not in recorded or one.secret:
                raise _UsageError('parameter %r is missing, and was not recorded with the run: %s'
                                  % (one.name, one.how()))
        if any(one.source != '--set' for one in differing):
            raise _StartAgain({name: text for name, text in recorded.items()
                               if name not in declared or not declared[name].secret})

    def _any_recorded(self):
        options = self.options
        try:
            store = find_store(options.store)
            store.open(create=False)
            with contextlib.closing(store):
                runs = [run for run in store.runs(options.flow)
                        if options.run_id in (None, run.run_id)]
        except SequentError as error:
            logger.debug('%s', error)
            return {}
        return _texts_of(runs[-1]) if runs else {}

    def log_notes(self):
        """Log which variables give way to a recorded value, or may have been meant for one."""
        for one in _parameters.declared.values() if self.recovering else ():
            text = os.environ.get(parameter_variable(one.name))
            if one.source == 'recorded' and text is not None and not one.equals(text):
                logger.warning('%s is %r; the recorded value, %r, holds',
                               parameter_variable(one.name), text, one.text)
        prefix = parameter_variable('')
        known = [name.upper() for name in _parameters.declared]
        for variable in sorted(os.environ):
            name = variable[len(prefix):]
            near = variable.startswith(prefix) and name not in known and _nearest(
                name.upper(), known)
            if near:
                logger.warning('%s is the variable of no parameter%s', variable,
                               near.replace("'", "'" + prefix, 1))


def _texts_of(run):
    """Return {name: text} of the parameters recorded with a run, without secret ones."""
    recorded = json_object(run.steps).get('parameters', {})
    return {name: text for name, text in recorded.items() if not isinstance(text, dict)}


def readable(text):
    return str(text) if text is None or text.isprintable() else repr(text)


class _Session:
    """What the command line does with one module; `_common.session` while that is loaded."""

    def __init__(self, options, recorded):
        self.options = options
        self.flows = []   # those made so far
        self.strange = []  # those made by other copies of this library
        self.code = None  # the exit code, once the verb has been applied while loading
        self.again = None  # the `_StartAgain` that was raised while loading
        self.values = _Values(options, recorded)

    def run(self):
        """Load the module, apply the verb to its flow; return the exit code."""
        self.values.give()
        try:
            if self.options.verb == 'help':
                return self._help()
            with contextlib.ExitStack() as stack:
                if self.options.pure:    # What the module prints does not belong there.
                    stack.enter_context(contextlib.redirect_stdout(sys.stderr))
                return self._run()
        finally:
            self.values.leave()
            _common.program = '__main__'

    def _run(self):
        flow = None
        try:
            flow = self._load_flow()
        except BaseException as error:
            if self.again is None:
                self._explain(error)
        if self.again is not None:
            raise self.again
        return self.code if flow is None else _apply(flow, self)

    def _load_flow(self):
        """Return the flow to work on; None if the verb has been applied already."""
        _common.session = self
        try:
            return self._choose(_load(self.options.module))
        finally:
            _common.session = None

    def made(self, flow):
        """Called by a flow at the end of its construction."""
        (self.flows if isinstance(flow, _Flow) else self.strange).append(flow)

    def take_over(self, flow):
        """Called by a flow that is run while the module is being loaded; ends the program."""
        if not isinstance(flow, _Flow):
            self.code = _end(_LoadError(_strange_flow(self.options.module, flow)))
            raise SystemExit(self.code)
        if self.options.verb == 'help':
            self.code = _EXIT_SUCCESS
        if self.code is None:
            self.code = self._apply_within(flow)
        raise SystemExit(self.code)

    def _apply_within(self, flow):
        wanted = self.options.flow
        if wanted not in (None, flow.name):
            return _end(_UsageError(
                'the module runs its flow %r while it is being loaded, so --flow %s has no say; '
                "put what runs it under if __name__ == '__main__'" % (flow.name, wanted)))
        here = calling_frame(0)
        _common.session = None
        try:
            code = _apply(flow, self)
        except _StartAgain as again:
            self.again = again
            return _EXIT_SUCCESS    # of no interest
        except BaseException as error:
            code = _end(error)
        finally:
            _common.session = self
        if self.options.verb in _RUN_MODES:
            self._warn_of_the_rest(flow, here)
        return code

    def _warn_of_the_rest(self, flow, frame):
        """Say what of the module does not run because the program ends with this flow."""
        advice = load_backend('what_follows')
        if advice is not None:
            advice.warn(frame)
        else:
            logger.warning('the command line ends the program where the module runs its flow: if '
                           'something follows there, it does not run (with the file '
                           'backends/what_follows.py a warning comes only then)')
        others = [one.name for one in self.flows if one is not flow]
        if others:
            logger.warning('the module makes other flows, which the command line does not run: %s',
                           ', '.join(others))

    def _choose(self, module):
        """Return the flow to work on; None if the verb has been applied already."""
        wanted, name = self.options.flow, module.__name__
        chosen = [one for one in self.flows if wanted in (None, one.name)]
        flow = getattr(module, 'flow', None)
        if wanted is None and (isinstance(flow, _Flow) or flow in self.strange):
            chosen = [flow]
        if self.code is None and len(chosen) != 1 and hasattr(module, 'build_flow'):
            chosen = self._build(module, wanted)
        if self.code is not None:
            return None
        if not chosen and not self.flows:
            chosen = self.strange[:1]
        if len(chosen) == 1:
            if chosen[0] in self.strange:
                raise _LoadError(_strange_flow(name, chosen[0]))
            return chosen[0]
        names = sorted({flow.name for flow in self.flows})
        if chosen:
            raise _UsageError('module %r has several flows, choose one with --flow: %s'
                              % (name, ', '.join(names)))
        if wanted is not None:
            raise _UsageError('module %r has no flow %r%s' % (
                name, wanted, _choices(wanted, names)))
        raise _LoadError("module %r makes no flow: give it an attribute 'flow', or a function "
                         'build_flow() that returns one' % name)

    def _build(self, module, wanted):
        """Return what build_flow() returns, as a list; an empty one if it is not what we want."""
        try:
            flow = module.build_flow()
        except SystemExit:
            if self.code is not None:  # it ran its flow
                return []
            raise
        if not isinstance(flow, _Flow) and flow not in self.strange:
            raise _LoadError('build_flow() of module %r must return a flow, not %r' % (
                module.__name__, flow))
        return [flow] if wanted in (None, flow.name) else []

    def _explain(self, error):
        """Raise the error that says why the module could not be loaded.

        Where the verb has been applied already, its exit code stays if it tells of a failure.
        """
        if isinstance(error, KeyboardInterrupt):
            raise error
        if isinstance(error, SystemExit):
            if self.code is not None:
                return
            error = _LoadError('module %r ended itself while it was being loaded (%s)'
                               % (self.options.module, describe_error(error)))
        if _parameters.lenient and _parameters.missing() and not isinstance(error, ParameterError):
            one = _parameters.missing()[0]
            error = _UsageError(
                'parameter %r is missing, and without it there is no flow, nor its store (%s): %s'
                % (one.name, told_error(error), one.how()))
        if not isinstance(error, (_UsageError, _LoadError, ParameterError)):
            trace = _relevant_trace(error)
            error = _LoadError('module %r cannot be loaded: %s' % (
                self.options.module, told_error(error)))
            error.trace = trace
        if not self.code:
            raise error from None
        _end(error)

    def _help(self):
        """Show the help, and, with ``backends/module_help.py``, what the module declares."""
        with _output(self.options.stdout) as say:
            say_lines(say, self.options.text)
            shown = load_backend('module_help')
            if shown is not None:
                shown.show(self._load_for_help, self.options.module, _parameters.declared, say)
        return _EXIT_SUCCESS

    def _load_for_help(self):
        try:
            self._load_flow()
        except BaseException as error:
            # It does not matter which flow is meant, nor what follows the call of a flow.
            if self.code is None and not isinstance(error, _UsageError):
                raise


def _strange_flow(module, flow):
    """Say whose flow it is that another copy of this library has made."""
    copy = next(kind.__module__ for kind in type(flow).__mro__
                if kind.__name__ in ('Sequent', 'Eventor'))
    return ('the flow %r of module %r belongs to another copy of this library, %s (%s); use '
            'python -m %s' % (flow.name, module, copy, getattr(
                sys.modules.get(copy), '__file__', 'unknown'), copy))


def _load(target):
    """Import what MODULE names and return the module."""
    import importlib.util
    if os.path.isfile(target) and not target.endswith('.py'):
        for source, one in descriptions().items():
            if target.endswith(tuple(one.get('loader', {}).get('endings', ()))):
                return _load_other(target, source, one['loader']['call'])
    if target.endswith('.py') or os.sep in target or (os.altsep or os.sep) in target:
        return _load_file(target)
    sys.path.insert(0, os.getcwd())
    top = target.partition('.')[0]
    try:
        spec = importlib.util.find_spec(top)
        if top != target and spec is not None and spec.submodule_search_locations is None:
            # Importing a.b would run a: here the flow a.py, whose name was mistyped.
            raise ModuleNotFoundError(name=target)
        _common.program = target
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name and (target + '.').startswith(error.name + '.'):
            raise _LoadError('there is no module %r%s' % (
                target, _nearest(target, _modules_in(os.getcwd(), '')))) from None
        raise


def _load_file(path):
    """Import a file as the module that it would be for others in its folder."""
    import importlib.util
    folder, file = os.path.split(os.path.abspath(path))
    if not os.path.isfile(path) or not file.endswith('.py'):
        raise _LoadError('there is no Python file %r%s' % (
            path, _nearest(file, _modules_in(folder, '.py'))))
    # A dot would make it a module of a package, which others would try to import.
    name = file[:-3].replace('.', '-')
    if name in sys.modules:
        raise _LoadError('the file %r has the name of the module %r, which is in use already; '
                         'rename it' % (path, name))
    sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, os.path.join(folder, file))
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    _common.program = name
    spec.loader.exec_module(module)
    return module


def _load_other(path, source, call):
    """Return a module that holds the flow which a file in backends/ makes of another file."""
    stem = os.path.splitext(os.path.abspath(path))[0]
    module = types.ModuleType(os.path.basename(stem))  # type: typing.Any
    load = _find_function({'source': source, 'call': call})
    try:
        module.flow = load(os.path.abspath(path), name=module.__name__, store=stem + '.run.db')
    except (FlowError, FlowTypeError, ConfigError) as error:    # The file says so, not the loader.
        raise _LoadError('%r cannot be loaded: %s' % (path, error)) from error
    return module


def _modules_in(folder, suffix):
    try:
        return [name[:-3] + suffix for name in os.listdir(folder) if name.endswith('.py')]
    except OSError:
        return []


# Verbs ----------------------------------------------------------------------------

_RUN_MODES = {'run': RunMode.restart, 'recover': RunMode.recover, 'continue': RunMode.continue_}


def _apply(flow, session):
    """Apply the verb to the flow; return the exit code."""
    options = session.options
    _override(flow, options)
    session.values.settle(flow)
    install_logging(flow.logging_level)
    flow.log_warnings()
    session.values.log_notes()
    try:
        with _output(options.stdout) as say:
            return _find_function(options.row)(flow, options, say) or _EXIT_SUCCESS
    except RecoveryError as error:
        if options.verb not in _RUN_MODES:
            raise
        with opened_store(flow) as store:
            known = sorted({run.run_id for run in store.runs(flow.name)})
        raise RecoveryError('%s%s' % (error, _nearest(options.run_id or '', known))) from None


def _find_function(row):
    """Return the function that a description names: of a verb, an option or a loader."""
    source = row['source']
    if not source:
        return globals()[row['call']]
    try:
        return getattr(load_backend(source), row['call'])
    except ModuleNotFoundError as error:
        raise _UsageError('backends/%s.py needs the module %r, which is not installed'
                          % (source, error.name)) from error


def _override(flow, options):
    """Let the options have their say in the flow."""
    try:
        if options.construct is not None:
            find_construct(options.construct)
    except ConstructError as error:
        raise _UsageError('--construct: %s' % error) from error
    given = {'task_construct': options.construct, 'max_concurrent': options.max_concurrent,
             'assume_dead': options.assume_dead}
    config = {key: value for key, value in given.items() if value is not None}
    mode = _RUN_MODES.get(options.verb)
    flow.override(options.store, mode, options.run_id if mode else None, options.recovery_run,
                  options.log_level, config)


def _run(flow, options, say):
    return _EXIT_SUCCESS if flow.run() else _EXIT_FAILURE


@contextlib.contextmanager
def opened_store(flow):
    """Give the flow's store, to look at only."""
    store = flow.open_store(create=False)
    try:
        yield store
    finally:
        flow.close_store()


# status, history ------------------------------------------------------------------


def ask(flow, options, say):
    """Post the request that a verb names, print what the supervisor answers; return the exit code.

    The request is for the steps that match the word after the verb, if there is one.
    """
    with opened_store(flow) as store:
        view = RunView.find(store, flow.name, options.run_id)
        goes_on = view is not None and view.goes_on()
        if view is None or options.verb == 'stop' and not goes_on:
            raise _UsageError('there is nothing to %s: no run of flow %r goes on in %s; history '
                              'shows the runs' % (options.verb, flow.name, store_name(store)))
        number = store.post(Request(flow.name, view.run.run_id, options.verb,
                                    ''.join(options.words), time.time(), _asker()))
        if not goes_on:
            say('the next supervisor of run %s follows it: recover or continue it'
                % view.run.run_id)
            return _EXIT_SUCCESS
        answer = _wait_for_answer(store, view.run, number, flow.settings()['shutdown_grace'] + 30)
        say(answer)
        return _EXIT_FAILURE if answer.startswith(('refused', 'no answer')) else _EXIT_SUCCESS


def _wait_for_answer(store, run, number, patience):
    """Return the answer to a request, or a sentence that says that there is none."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        for one, text in store.answers(run):
            if one.number == number:
                return text
        time.sleep(0.05)
    return ('no answer within %g s: the supervisor follows the request when it can, or the next '
            'one does' % patience)


def _asker():
    import getpass
    try:
        user = getpass.getuser()
    except (ImportError, KeyError, OSError):
        user = 'uid %s' % getattr(os, 'geteuid', int)()
    return '%s on %s, pid %d' % (user, _host(), os.getpid())


def _run_status(view):
    return view.run.status + {
        'gone': ' (its supervisor is gone)',
        'elsewhere': ' (its supervisor cannot be seen from here)'}.get(view.supervisor(), '')


def _status(flow, options, say):
    with opened_store(flow) as store:
        view = RunView.find(store, flow.name, options.run_id, options.recovery_run)
        if view is None:
            say('no run of flow %s in %s' % (flow.name, store_name(store)))
        else:
            _say_status(say, view, options.all)


def _say_status(say, view, in_full):
    """Print a run and the table of its tasks."""
    run, steps = view.run, view.summary()
    say('flow %s, run %s, recovery %d: %s, start %s, end %s' % (
        run.flow, run.run_id, run.recovery, _run_status(view), local_time(run.started),
        local_time(run.ended)))
    parameters = ['%s=%s' % (name, readable(text)) for name, text in view.parameters().items()]
    if parameters:
        say('parameters: ' + ', '.join(parameters))
    rows = _TaskRows(view)
    say_table(say, rows.HEADER, map(rows.task, view.tasks()) if in_full else (
        row for one in steps for row in rows.fold(one)))
    for path, reason in view.not_run(steps):
        say('%s was not run%s' % (path, ': ' + reason if reason else ''))


class _TaskRows:
    """The rows of the table of tasks of a run."""

    HEADER = ('path', 'sequence', 'status', 'recovery', 'attempt', 'start', 'duration', 'error')

    def __init__(self, view):
        self.good = view.made_good(view.tasks(FAILURE))
        self.day = local_time(view.run.started)[:11]
        # Nothing runs on and on where nobody is there to see it end.
        self.now = time.time() if view.goes_on() else None

    def task(self, record):
        """Return the cells of one task."""
        end = record.ended if record.ended is not None else self.now
        error = ' '.join((record.error or '').split())
        if record.status == READY and record.due is not None:
            error = 'due %s%s' % (local_time(record.due), ', after ' + error if error else '')
        return (record.path, record.sequence, record.status, str(record.recovery),
                str(record.attempt), self._start(record.started), _span(record.started, end),
                'handled: ' + error if (record.path, record.sequence) in self.good else error)

    def fold(self, step):
        """Return the rows of a step: its tasks counted, if they are several, and those shown."""
        rows = [self.task(record) for record in step.records]
        if step.n == 1:
            return rows
        end = self.now if ACTIVE in step.counts else step.ended
        counts = ', '.join('%d %s' % (n, status) for status, n in step.counts.items())
        return [(step.path, '%d tasks' % step.n, counts, '', '', self._start(step.started),
                 _span(step.started, end), '')] + rows

    def _start(self, seconds):
        """Return a time, without the day if that is the one on which the run started."""
        text = local_time(seconds)
        return text[len(self.day):] if text.startswith(self.day) else text


def viewed_runs(flow, options, store):
    """Return the `RunView` of each recovery of each run that the options choose."""
    if options.run_id:
        RunView.find(store, flow.name, options.run_id)
    return [RunView(store, run)
            for run in store.runs(flow.name if options.flow or options.run_id else None)
            if options.run_id in (None, run.run_id)]


def _history(flow, options, say):
    with opened_store(flow) as store:
        views = viewed_runs(flow, options, store)
        if not views:
            say('no runs in %s' % store_name(store))
            return
        say_table(say, ('flow', 'run', 'recovery', 'mode', 'status', 'start', 'duration'), [
            (run.flow, run.run_id, str(run.recovery), run.mode, _run_status(view),
             local_time(run.started), _span(run.started, run.ended))
            for view in views for run in [view.run]])


# log ------------------------------------------------------------------------------


def _log(flow, options, say):
    """Print the log of one task of a run."""
    with opened_store(flow) as store:
        view = RunView.find(store, flow.name, options.run_id, options.recovery_run)
        if view is None:
            raise _UsageError('no run of flow %s in %s' % (flow.name, store_name(store)))
        path = _find_log(flow, view.run, store, _find_task(flow, view, *options.words))
    with open(path, encoding='utf-8', errors='backslashreplace', newline='\n') as file:
        for line in file:
            say(line.rstrip('\n'))


def _find_task(flow, view, path, sequence=None):
    """Return the latest record of a task; without a sequence, of the only task of the step."""
    where = 'in run %r of flow %r' % (view.run.run_id, view.run.flow)
    found = {record.sequence: record for record in view.tasks()
             if record.path == path and record.kind == 'leaf'}
    if not found:
        steps = {step.path: step for step in flow.steps()}
        if path not in steps:
            raise _UsageError('flow %r has no step %r%s' % (flow.name, path,
                                                            _nearest(path, steps)))
        raise _UsageError('step %r has no task %s: %s' % (path, where, (
            'it has steps in it; give the path of one of these' if steps[path].children else
            'it was not run; see status')))
    if sequence is None and len(found) == 1:
        return next(iter(found.values()))
    if sequence in found:
        return found[sequence]
    few = list(itertools.islice(found, 20))
    raise _UsageError('%s; its sequences: %s%s' % (
        'step %r ran %d times %s, choose one with log %s SEQUENCE' % (
            path, len(found), where, path) if sequence is None else
        'step %r has no task at sequence %r %s' % (path, sequence, where),
        ', '.join(few), ', ...' if len(found) > len(few) else ''))


def _find_log(flow, run, store, record):
    """Return the path of the log of the last attempt of a task that has one."""
    place = run.flow, run.run_id, record.path, record.sequence, record.recovery
    folder = flow.settings()['logdir'] or store.logs
    paths = [json_object(record.process).get('log')]
    paths += [log_path(folder, *place + (attempt,))
              for attempt in range(max(1, record.attempt), 0, -1) if folder]
    for path in paths:
        if path and os.path.exists(path):
            return path
    raise _UsageError('there is no log of step %r at sequence %s: %s' % (
        record.path, record.sequence, 'it would be %s; see config logdir' % (
            paths[1]) if folder else 'the store has no folder for logs; set config logdir'))


# list -----------------------------------------------------------------------------


def listed(flow):
    """Return the plan of a flow as plain values, as ``list`` shows them."""
    flow.compile()
    return {
        'flow': flow.name,
        'parameters': [{'name': one.name, 'value': '***' if one.secret else one.text,
                        'secret': one.secret, 'source': one.source, 'help': one.help}
                       for one in _parameters.declared.values()],
        'events': [{'name': event.name, 'raised_by': ' or '.join(
            expression_text(source) for source in event.sources) or None}
            for event in getattr(flow, '_events', {}).values()],
        'steps': [_step_fields(step) for step in flow._root.children]}


def _list(flow, options, say):
    plan = listed(flow)
    say(flow.name)
    for one in plan['parameters']:
        say('  parameter %s=%s (%s)%s' % (one['name'], readable(one['value']), one['source'],
                                          one['help'] and ': ' + one['help']))
    for one in plan['events']:
        say('  event ' + ': '.join(filter(None, (one['name'], one['raised_by']))))
    for one in plan['steps']:
        _say_step(say, one, 1)


def _say_step(say, fields, depth):
    """Print a step and those inside it, as `_step_fields` returns it."""
    if fields['kind'] == 'timer':  # it stands where it is waited for
        return
    shown = dict(fields, takes=', '.join(fields['takes']),
                 require=cut_text(fields['require'] or '', 300))
    notes = [form % shown[name] for name, form in (
        ('calls', '%s'), ('loop', 'loop %s'), ('require', 'requires %s'), ('takes', 'takes %s'),
        ('delay', 'delay %g s')) if shown[name]]
    notes += ['%s %s' % (word, ', '.join('%d of %s' % (amount, pool) for pool, amount in
                                         fields[word]) or 'nothing')
              for word in ('acquires', 'releases') if fields[word]
              or word == 'releases' and fields[word] is not None]
    say('%s%s%s' % ('  ' * depth, fields['name'], ': ' * bool(notes) + '; '.join(notes)))
    for one in fields['steps']:
        _say_step(say, one, depth + 1)


def _step_fields(step):
    """Return what is said of a step and of those inside it, as plain values."""
    releases = step.releases
    return {
        'name': step.name, 'path': step.path,
        'kind': 'container' if step.children else step.kind,
        'calls': None if step.func is None else _function_name(step.func),
        'loop': None if step.loop is None else _loop_text(step.loop),
        'require': expression_text(step.require) or None,
        'takes': ['%s of %s' % ('item' if isinstance(one, ItemOf) else 'result',
                                (one.step or step).path)
                  for one in step.asks or () if one is not step.loop],
        'delay': step.delay,
        'acquires': [(pool.name, amount) for pool, amount in step.acquires],
        'releases': None if releases is None else [(pool.name, n) for pool, n in releases],
        'steps': [_step_fields(child) for child in step.children]}


def _function_name(function):
    if isinstance(function, Command):
        return 'runs ' + cut_text(' '.join(masked(str(function)).split()), 300)
    name = getattr(function, '__qualname__', None)
    return name + '()' if isinstance(name, str) else masked(_shown(repr, function))


def _loop_text(loop):
    """Describe a loop without starting it."""
    if callable(loop):
        return 'over ' + _function_name(loop)
    if isinstance(loop, Placeholder):
        return 'over the ' + repr(loop)[1:-1]
    if isinstance(loop, range) or not isinstance(loop, collections.abc.Sequence):
        return 'over ' + masked(_shown(repr, loop))
    text = masked(_shown(repr, loop if len(loop) <= 10 else loop[:10]))
    return 'over %s%s' % (cut_text(text, 60), ' (%d)' % len(loop) if len(loop) > 10 else '')


def expression_text(expression, nested=False):
    """Return a requirement as text: events by their name, or else by their expression."""
    if isinstance(expression, Event):
        return expression.name or expression_text(expression.require, nested)
    if isinstance(expression, Atom):
        return _atom_text(*expression)
    texts = [expression_text(one, len(expression.operands) > 1) for one in expression.operands]
    word = ' and ' if isinstance(expression, All) else ' or '
    text = word.join(one for one in texts if one)
    return '(%s)' % text if nested and len(texts) > 1 else text


def _atom_text(step, status):
    if step.kind == 'timer':
        return '%s after %g s' % (expression_text(step.require), step.delay)
    if status == SUCCESS and not isinstance(step.flow, Eventor):
        return step.path
    return '(%s, %s)' % (step.path, status)
