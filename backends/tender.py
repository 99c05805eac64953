"""Start the children of large flows from small early processes.

The core asks for this file by name and works without it. A fork takes the longer the more memory
the process has that forks; so where a flow has many processes, a copy of the supervisor that was
made when the run began forks them. Programs are started by a small process of the run.
"""

import contextlib
import functools
import itertools
import marshal
import os
import pickle
import signal
import sys
import threading
import time
import typing  # noqa: F401 (in comments)

from . import (  # type: ignore
    Command,
    ConstructError,
    FAILURE,
    Job,
    Outcome,
    Placeholder,
    _CHILD_SIGNALS,
    _Child,
    _ChildConstruct,
    _await,
    _candidates,
    _change_variables,
    _close_private,
    _end_of_program,
    _escaped,
    _flush,
    _last_lines,
    _leave_outcome,
    _make_folder,
    _make_pair,
    manner_of_end,
    process_members,
    _no_folder,
    _no_program,
    _no_stdin,
    _occupy_standard_fds,
    _open_log,
    _own_signals,
    _pipes_in,
    _plain_config,
    _prepare_log_streams,
    _private_fds,
    _proc_stat,
    _put_environment,
    _read_identity,
    _refuse_name,
    _remove,
    _send,
    _serve,
    _start,
    _start_lock,
    _sync_folder,
    _write,
    is_shortage,
    leave_supervisor,
    logger,
    process_alive,
    process_identity,
    warn_of_shortage,
    write_aside,
)

BACKEND = {'accelerates': 'process'}

CAN_START_PROGRAMS = all(hasattr(os, name) for name in ('fork', 'waitid', 'environb'))


def _environment_in_bytes():
    """Return a copy of os.environb, which itself looks at each name: 30 microseconds."""
    environ = os.environ  # type: typing.Any
    return dict(environ._data)


if sys.version_info >= (3, 8) and hasattr(os, 'posix_spawn'):
    def _spawn(path, argv, env, streams, defaults):
        """Start a program in a process group of its own; raise OSError if that cannot be.

        Args:
            path, argv, env: as of os.execve(), in bytes.
            streams: the descriptors for its own 0, 1 and 2.
            defaults: the signals for which it is not to inherit that they are ignored.
        """
        return os.posix_spawn(path, argv, env, setpgroup=0, setsigmask=(), setsigdef=defaults,
                              file_actions=[(os.POSIX_SPAWN_DUP2, fd, number)
                                            for number, fd in enumerate(streams)])
else:
    def _spawn(path, argv, env, streams, defaults):
        """The same by a fork, which is cheap in a small process."""
        import _signal as raw  # type: ignore  # signal itself is large
        errors, ours = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.setpgid(0, 0)
                raw.set_wakeup_fd(-1)
                for number in defaults:
                    raw.signal(number, raw.SIG_DFL)
                raw.pthread_sigmask(raw.SIG_SETMASK, ())
                for number, fd in enumerate(streams):
                    os.dup2(fd, number)
                os.execve(path, argv, env)
            except OSError as error:
                os.write(ours, b'%d' % error.errno)
            except ValueError:
                os.write(ours, b'22')
            finally:
                os._exit(127)
        os.close(ours)
        failed = os.read(errors, 16)    # the end of file: it has become the program
        os.close(errors)
        if failed:
            os.waitpid(pid, 0)
            raise OSError(int(failed), os.strerror(int(failed)))
        return pid

# Process: the fork server ----------------------------------------------------------
#
# A fork takes the longer the more memory the process has that forks, and both sides pay for what
# they write to afterwards. So, where nothing of the user's runs in the supervisor while the flow
# runs, children are forked from a copy of it that was made when the run began, before the plan
# and all that a run needs. One child is always ready:
#
#   supervisor                           server                           spare
#   run() begins            fork --->
#   first start ------ what all jobs of the run have alike ->
#               ------------ one end of a socket pair ------>  forks --->  waits on its line
#               <----------------- its pid ------------------
#   ...
#   prepare: takes it, --- one end of another pair --------->  forks the next one
#   (the start is stored)
#   release     ------------ the job ---------------------------------->  takes it, runs it
#   ...                                  (as any other child)
#               <--------------- its exit code --------------             ends
#
# What is sent are names: the child finds function, arguments and loop items in the flow, which it
# has inherited. Where that cannot be (something was filled in), and whenever the server does not
# answer, the supervisor forks itself.


_PLAIN_LOOPS = (list, tuple, range, str)    # going over them runs nothing of the user's
_ORDER_SIZE = 1 << 16    # bytes; more may not fit into a socket
_ORDER_HEAD = 4    # bytes that tell the size of an order
# What all jobs of a run have alike.
_OF_RUN = ('flow', 'run_id', 'logger_name', 'epoch', 'shared')


class ForkServer:
    """The supervisor's side of a process that forks children; see the text above.

    Args:
        steps: the steps of the flow, by path.

    Attributes:
        WORTH: from how many processes on a flow has one: it takes two processes more.
        PATIENCE: seconds to wait for an answer.

    Raises:
        OSError: there are no processes or descriptors left, or no such sockets.
    """

    WORTH = 20
    PATIENCE = 10.0

    def __init__(self, steps):
        import multiprocessing
        import socket
        self._spare = None     # type: typing.Any   # the child that waits for a job, or will
        _occupy_standard_fds()
        with _start_lock:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            _private_fds.add(ours.fileno())
            self._socket = ours  # type: typing.Any
            self._process = multiprocessing.get_context('fork').Process(
                target=_serve_forks, args=(theirs, steps, process_identity()), name='fork server')
            try:
                _start(self._process, True)
            except BaseException:
                self._hang_up()
                raise
            finally:
                theirs.close()
        ours.setblocking(False)
        self._codes = {}       # pid of a child -> its exit code, None: it runs

    def child(self, job):
        """Return the `_ServedChild` that waits for a job, or None: fork it yourself."""
        if self._socket is None or not _is_of_flow(job.task.step):
            return None
        try:
            order = marshal.dumps((job.name, job.sequence, job.recovery, job.attempt, job.own,
                                   _plain_config(job), job.log, job.outcome, job.failures))
            of_run = self._spare is None and pickle.dumps(
                [getattr(job, name) for name in _OF_RUN], protocol=4)
        except Exception:    # texts of a class of the user's
            return None
        if len(order) > _ORDER_SIZE or of_run and len(of_run) > _ORDER_SIZE:
            return None
        if of_run:
            self._ask(of_run)
        child = self._await_spare()
        if child is None:
            return None
        self._ask()
        child.order = len(order).to_bytes(_ORDER_HEAD, 'big') + order
        return child

    def _ask(self, of_run=None):
        """Ask for a spare child, whose pid the server will tell.

        Args:
            of_run: what the server has to be told before the first of them.
        """
        import array
        import socket
        ours, theirs = _make_pair()    # if that cannot be, there still is the one before
        self._spare = _ServedChild(self)
        self._spare.fd = ours
        with theirs:
            if of_run is not None:
                self._send(of_run)
            self._send(b'.', [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                               array.array('i', [theirs.fileno()]))])
        if self._socket is None:
            self._spare.hang_up()

    def _send(self, message, rights=()):
        if self._socket is not None:
            try:
                self._socket.sendmsg([message], rights)
            except OSError as error:
                self.do_without(error.strerror)

    def _await_spare(self):
        """Return the child that is ready, or None if there is none and will be none."""
        deadline = time.monotonic() + self.PATIENCE
        self.listen()
        while self._socket is not None and self._spare.pid is None:
            left = deadline - time.monotonic()
            if left <= 0:
                self.do_without('it does not answer')
            else:
                _await_readable(self._socket, left)
                self.listen()
        if self._socket is not None and not self._spare_lives():
            self.do_without('a child of its has ended before it was given a job')
        return self._spare if self._socket is not None else None

    def listen(self):
        """Take note of what the server says."""
        while self._socket is not None:
            try:
                message = self._socket.recv(1024)
            except BlockingIOError:
                return
            except OSError:
                message = b''
            if not message:
                self.do_without('it is gone')
                return
            kind, number, *code = message.split()
            if kind == b'ready':
                self._spare.pid = int(number)
                self._codes[self._spare.pid] = None
            elif int(number) in self._codes:
                self._codes[int(number)] = int(code[0])

    def exitcode(self, pid):
        if self._codes[pid] is None:
            self.listen()
        return self._codes[pid]

    def is_there(self):
        return self._socket is not None

    def forget(self, pid):
        del self._codes[pid]

    def do_without(self, why):
        """Have the supervisor fork all children from now on."""
        if self._socket is not None:
            logger.warning('the server that forks children cannot be used any more (%s): the '
                           'supervisor forks them itself from now on', why)
            self._hang_up()

    def _hang_up(self):
        """Let server and spare child end."""
        _private_fds.discard(self._socket.fileno())
        self._socket.close()
        self._socket = None
        if self._spare is not None:
            self._spare.hang_up()

    def _spare_lives(self):
        return self._spare.pid is None or self._codes[self._spare.pid] is None

    def _await_end_of_spare(self):
        self._spare.hang_up()
        deadline, left = time.monotonic() + 2.0, 2.0
        while self._socket is not None and self._spare_lives() and left > 0:
            _await_readable(self._socket, left)
            self.listen()
            left = deadline - time.monotonic()
        if self._socket is not None and self._spare_lives():
            self._spare.end()    # What the program runs at a fork hangs.

    def close(self):
        """End the server, and the child that it keeps ready."""
        try:
            if self._spare is not None:
                self._await_end_of_spare()
        finally:    # also at a Ctrl-C: it would wait for us to the end of this program
            if self._socket is not None:
                self._hang_up()
            self._end_process()

    def _end_process(self):
        server = _Child(self._process)
        self._process.join(2.0)
        if self._process.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.join(2.0)
        if self._process.exitcode is None:    # somebody else has reaped it
            server.let_go()
        else:
            server.close()


class _ServedChild(_Child):
    """A child of the fork server's: its job is what lets it pass the gate."""

    __slots__ = ('server', 'order', 'asked', 'missed')

    def __init__(self, server):
        super().__init__()
        self.server = server
        self.order = b''
        self.asked = self.missed = None    # when we first asked for its end, and saw it untold

    def release(self):
        if _send(self.fd, self.order) not in (None, len(self.order)):
            self.unread = True  # type: ignore  # sockets hold next to nothing on this system
            self.end()

    def exitcode(self):
        return self.server.exitcode(self.pid)

    def is_gone(self):
        if self.server.is_there():
            self._doubt_server()    # which tells a little later
        return not self.server.is_there() and process_alive(self.identity) is False

    def _doubt_server(self):
        """Do without a server that has been stopped: a child has ended, and it does not tell."""
        now, patience = time.monotonic(), self.server.PATIENCE / 5
        if self.asked is None:
            self.asked = now    # to look at a process takes longer than to ask
        elif now - self.asked > patience and process_alive(self.identity) is False:
            if self.missed is None:
                self.missed = now
            elif now - self.missed > patience:
                self.server.do_without('it does not tell how a child of its has ended')

    def close(self):
        self.server.forget(self.pid)

    let_go = close

    def lost(self, job):
        if not self.unread or self.killed:
            return False
        self.server.do_without('a child of its has ended before it took its job')
        return True

    def cause(self):
        if self.exitcode() is None:
            return ('ended before its outcome was delivered; how is not known, as the server that '
                    'has forked it is gone')
        return super().cause()


def _is_of_flow(plan_step):
    """Whether a child finds arguments and loop items in the flow: nothing is filled in."""
    if plan_step.fills is not None:
        return False
    step = plan_step.step
    while step is not None:
        if step.loop is not None and type(step.loop) not in _PLAIN_LOOPS:
            return False
        step = step.parent
    return True


def _runs_nothing_here(step):
    """Whether going over its loop runs nothing of the user's, and its construct is the flow's."""
    return 'task_construct' not in step.config and (
        step.loop is None or type(step.loop) in _PLAIN_LOOPS
        or isinstance(step.loop, Placeholder))


def _count_processes(step):
    """Return how many processes a step takes at least; 0: it is a container, or takes no fork."""
    if step.func is None or isinstance(step.func, Command):
        return 0
    return len(step.loop) if type(step.loop) in _PLAIN_LOOPS else 1


def start(steps):
    """Return a `ForkServer` for the run of a flow, or None.

    There is none where something of the user's runs in this process meanwhile, as children
    would not see what that changes: inline and thread steps, loops that are callables or
    iterables of other types than the common ones, other threads.

    Args:
        steps: the steps of the flow, by path.
    """
    if not (threading.active_count() == 1 and all(map(_runs_nothing_here, steps.values()))
            and sum(map(_count_processes, steps.values())) >= ForkServer.WORTH):
        return None
    try:
        return ForkServer(steps)
    except OSError as error:
        logger.debug('no fork server (%s)', error)
        return None


def _await_readable(sock, seconds):
    import select
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.poll(seconds * 1e3)


def _serve_forks(orders, steps, supervisor):
    """Where the server begins. Does not return."""
    import traceback
    code = 1
    try:
        leave_supervisor()
        for frame, _ in traceback.walk_stack(None):    # by this the supervisor sees our end
            _private_fds.update(_pipes_in(frame, 'child_w'))
        forks = _Forks(orders, steps, supervisor)
        _own_signals()
        forks.run()
        code = 0
    except OSError:
        pass    # the system is short of something; the supervisor does without us, and says so
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


class _Forks:
    """The server: forks a child for each line that it is given, and tells how children ended.

    It ends with the supervisor, and when it cannot fork, as it takes processes that others need.
    Signals that ask the supervisor to stop, or that the program handles, are passed on, as a
    function may send them to its parent.
    """

    def __init__(self, orders, steps, supervisor):
        import multiprocessing
        from multiprocessing import util
        self._orders = orders
        self._steps = steps
        self._supervisor = supervisor
        # Each child as it sees itself; they are numbered as if there were no server.
        self._process = multiprocessing.current_process()  # type: typing.Any
        *self._outer, self._number = self._process._identity
        # What multiprocessing does in a child that it has forked itself; 3.6 and 3.7 do less.
        self._renewals = [util._run_after_forkers,  # type: ignore[attr-defined]
                          getattr(threading.main_thread(), '_set_native_id', int)]
        self._job = Job('')    # what children have alike
        self._handlers = {}    # signal -> what handles it in children
        self._handled = [number for number in range(1, signal.NSIG)
                         if callable(signal.getsignal(number))]    # in the supervisor

    def run(self):
        import select
        ended, wake = os.pipe()
        os.set_blocking(wake, False)
        _private_fds.update((ended, wake, self._orders.fileno()))
        self._prepare_signals(wake)
        poll = select.poll()
        poll.register(self._orders, select.POLLIN)
        poll.register(ended, select.POLLIN)
        take, going = self._learn, True
        while going:
            came = [fd for fd, _ in poll.poll(5000)]
            if ended in came:
                os.read(ended, 512)
                self._tell_ends()
            if self._orders.fileno() in came:
                going, take = take(), self._fork
            elif not came:
                going = process_alive(self._supervisor) is not False

    def _prepare_signals(self, wake):
        import _signal as raw  # see `_own_signals`
        signal.set_wakeup_fd(wake)
        own = dict.fromkeys(self._handled, self._pass_on)
        own.update(dict.fromkeys(_CHILD_SIGNALS, self._pass_on))
        own[signal.SIGCHLD] = lambda number, frame: None
        for number, handler in own.items():
            before = raw.getsignal(number)
            self._handlers[int(number)] = raw.SIG_DFL if before is None else before
            if before != raw.SIG_IGN or number == signal.SIGCHLD:
                raw.signal(number, handler)

    def _pass_on(self, number, frame):
        with contextlib.suppress(OSError):    # the supervisor is gone, which ends us
            os.kill(_read_identity(self._supervisor)['pid'], number)

    def _learn(self):
        """Take what all jobs of the run have alike; return whether there is a run."""
        message = self._orders.recv(_ORDER_SIZE)
        if not message:
            return False
        for name, value in zip(_OF_RUN, pickle.loads(message)):
            setattr(self._job, name, value)
        _put_environment(self._job.shared)
        _prepare_log_streams()
        next(iter(self._steps.values())).flow._begin_elsewhere(self._job.run_id)
        return True

    def _fork(self):
        """Fork a child for the line that comes; return whether there may be more of them."""
        import _signal as raw
        import socket
        message, received, _, _ = self._orders.recvmsg(1, socket.CMSG_SPACE(4),
                                                       socket.MSG_CMSG_CLOEXEC)
        if not message or not received:    # which there is no descriptor left for
            return False
        line = int.from_bytes(received[0][2], sys.byteorder)
        self._process._identity = (*self._outer, self._number)
        self._number += 1
        before = raw.pthread_sigmask(raw.SIG_BLOCK, _CHILD_SIGNALS)
        try:
            pid = os.fork()
            if not pid:
                self._begin(line)
        finally:
            raw.pthread_sigmask(raw.SIG_SETMASK, before)
        os.close(line)
        self._orders.send(b'ready %d' % pid)
        return True

    def _begin(self, line):
        """Where a child begins. Does not return."""
        signal.set_wakeup_fd(-1)
        if sys.version_info < (3, 7) and 'random' in sys.modules:    # since then any fork does
            sys.modules['random'].seed()  # type: ignore[attr-defined]
        for fd in _private_fds:    # what Python has of them lives until we end
            os.close(fd)
        _private_fds.clear()
        for renew in self._renewals:
            renew()
        _serve(functools.partial(self._take_order, line),
               lambda: process_alive(self._supervisor) is not False)

    def _take_order(self, line, lives):
        """Wait for a job; return what `_serve` asks for."""
        _own_signals(self._handlers)
        order = _read_order(line, lives)
        if order is None:
            return None
        job = self._job
        (job.name, job.sequence, job.recovery, job.attempt, job.own, job.config, job.log,
         job.outcome, job.failures) = marshal.loads(order)
        self._process._name = '%s %s' % (job.name, job.sequence)
        step = self._steps[job.name]
        job.func, job.args, job.kwargs = step.func, step.args, step.kwargs
        job.items = _items_at(step, job.sequence)
        return job, line, None

    def _tell_ends(self):
        """Reap children."""
        with contextlib.suppress(ChildProcessError, BrokenPipeError):    # nobody wants to know
            pid, status = os.waitpid(-1, os.WNOHANG)
            while pid:
                self._orders.send(b'ended %d %d' % (
                    pid, -os.WTERMSIG(status) if os.WIFSIGNALED(status)
                    else os.WEXITSTATUS(status)))
                pid, status = os.waitpid(-1, os.WNOHANG)


def _read_order(line, lives):
    """Return the order that comes, or None if the supervisor is gone."""
    order = b''
    while len(order) < _ORDER_HEAD or (
            len(order) < _ORDER_HEAD + int.from_bytes(order[:_ORDER_HEAD], 'big')):
        if not _await(line, lives):
            return None
        more = os.read(line, 1 << 12)
        if not more:
            return None
        order += more
    return order[_ORDER_HEAD:]


def _items_at(step, sequence):
    """Return the loop items of a step at a sequence, outermost first (semantics 1.3)."""
    around = []
    while step.parent is not None:
        around.append(step)
        step = step.parent
    items, numbers = (), sequence.split('.')    # type: tuple, list
    for number, one in zip(numbers[1:], reversed(around)):    # the first is the flow's
        if one.loop is not None:
            items += (one.loop[int(number) - 1],)
    return items

def _program_outcome(code, refusal, tail, ended, ok, keep):
    """Return the fields of the `Outcome` of a program that has ended, {name: value}.

    Args:
        code: its exit code, negative for a signal.
        refusal: why it could not be started, or ''; ``tail``: the last lines of its stderr.
        ok: the exit codes that are success; ``keep``: whether the result is.
    """
    import pickle
    if refusal:
        return {'status': 'failure', 'error': refusal, 'ended': ended}
    if code not in ok:
        return {'status': 'failure', 'error': _end_of_program(code, tail), 'ended': ended,
                'code': code}
    return {'status': 'success', 'result': pickle.dumps(code, 4) if keep else None,
            'ended': ended}



# Programs: the supervisor's side ---------------------------------------------------
#
# One small process of the run, its tender, starts the programs and waits for them, so a program
# is one process. The tender shares no memory with the supervisor, so a start costs the same
# however large that has grown. It knows what to start before the start is stored, so that it
# can say of each program that is stored what became of it:
#
#   supervisor                   tender                               program
#   prepare           ----->     knows what to run, opens its log
#   (the start is stored)
#   release           ----->     posix_spawn()                 ---->  runs
#                     <-----     its pid, if it runs a while
#   port.done         <-----     how it ended                  <----  ends; stays a zombie
#   (the outcome is stored)
#   settle            ----->     reaps it
#
# When the supervisor is gone, the tender starts nothing more. It says at once in files which
# process each program is, see `find_process`, waits for those that run, and leaves their outcomes
# in files, each before it reaps the zombie: until then the program counts as alive, see
# `process_identity`.


class _Program(_Child):
    """What `ProgramConstruct` knows of a program (``job.state``)."""

    __slots__ = ('number', 'tender', 'report', 'ok', 'keep', 'broken')

    def __init__(self, number, tender, job):
        super().__init__()
        self.number = number
        self.tender = tender  # None: it has died
        self.report = None    # type: typing.Any  # what the tender tells of the end
        self.ok = tuple(job.func.ok)
        self.keep = job.config.get('keep_result', True)
        self.broken = ''      # how the tender died, if it never worked

    def alive(self, job):
        return self.report is None and self.tender is not None

    def exitcode(self):
        return None    # the tender tells it with the outcome

    def cause(self):
        return self.broken or 'ended, as the process that watched over programs died'

    def signal(self, number):
        if self.tender is not None:
            self.tender.send('signal', self.number, int(number))
        return True

    def outcome(self):
        if self.report is None:
            return None
        return Outcome(**_program_outcome(*self.report, self.ok, self.keep))  # type: ignore


class _Tender:
    """A tender, as the supervisor knows it: its process, and the line to it.

    Args:
        told: called with what each message consists of that comes from it.
    """

    PATIENCE = 30.0  # seconds that it may take to read

    def __init__(self, told):
        self.lost = False
        self.works = False  # it has ever said anything
        self.environment = {}  # type: typing.Dict[bytes, bytes]  # that it knows of
        self.folder = _current_folder()
        self._told = told
        self._inbox = bytearray()
        with _start_lock:
            self.fd, theirs = _make_pair()
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _CHILD_SIGNALS)
            try:
                self._process = self._start(theirs.fileno())
            except BaseException:
                _close_private(self.fd)
                raise
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                theirs.close()
        self.pid = self._process.pid
        self.identity = process_identity(self.pid)
        self._write(_tender_code())
        self.send('know', self.identity, os.getpid(), sys.modules[__package__]._SHORTAGE)

    @staticmethod
    def _start(fd):
        import importlib.util
        import subprocess
        # -I -S -E: neither the user's modules nor the site's, which take time and memory.
        return subprocess.Popen(
            [sys.executable, '-I', '-S', '-E', '-c', _TENDER_START, str(fd),
             importlib.util.MAGIC_NUMBER.hex()],
            pass_fds=(fd,), start_new_session=True)

    def send(self, *message):
        """Send a message; that a tender is dead is noticed when it is listened to."""
        self._write(_framed(message))

    def _write(self, content):
        import select
        view = memoryview(content)
        while view:
            try:
                view = view[os.write(self.fd, view):]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self.fd, select.POLLIN | select.POLLOUT)
                if not poll.poll(self.PATIENCE * 1000):
                    self._process.kill()    # it hangs, or has been stopped
                self.listen()    # lest each waits for the other to read
            except OSError:
                return

    def listen(self):
        """Take what has come from it; sets ``lost`` at the end of the stream."""
        while not self.lost:
            try:
                content = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                break
            except OSError:    # it died without having read all that we sent
                content = b''
            self._inbox += content
            self.lost = not content
            if len(content) < 1 << 16:
                break
        for message in _unframed(self._inbox):
            self.works = True
            self._told(*message)

    def end_session(self):
        """End all that a dead tender has started: the session is its own."""
        patience = time.monotonic() + 0.5
        while time.monotonic() < patience:
            left = list(process_members(3, self.pid))
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except OSError:
                    continue    # it has just ended
            if not left:
                return
            time.sleep(0.001)

    def close(self, patience):
        """Let it go; it ends with the last program. Return its exit code (negative: a signal), or
        None if it has not ended in so many seconds."""
        import subprocess
        _close_private(self.fd)
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            return None

    def end(self):
        """End it by force; return what `close` would."""
        self._process.kill()
        return self._process.wait()


_left_tenders = []  # type: typing.List[_Tender]  # whose objects would complain that they run


def _current_folder():
    try:
        return os.getcwd()
    except OSError:
        return None    # it has been removed


def _framed(message):
    """Return a message, of values that marshal knows, as bytes for the line."""
    import marshal
    content = marshal.dumps(message)
    return len(content).to_bytes(4, 'big') + content


def _unframed(inbox):
    """Take the complete messages out of a bytearray; return them as a list."""
    import marshal
    messages = []
    while len(inbox) >= 4:
        end = 4 + int.from_bytes(inbox[:4], 'big')
        if len(inbox) < end:
            break
        messages.append(marshal.loads(bytes(inbox[4:end])))
        del inbox[:end]
    return messages


def _in_bytes(text):
    """Return a text as the system takes it, whatever the locale; None is None."""
    try:
        return None if text is None else os.fsencode(text)
    except UnicodeEncodeError:
        return text.encode('utf-8', 'backslashreplace')


class ProgramConstruct(_ChildConstruct):
    """Runs each `Command` in one process, in a process group of its own.

    Used in place of `ProcessConstruct` by steps that run a `Command`. When the supervisor is
    gone, programs go on, and a small process leaves their outcomes in files (semantics 7.6).
    """

    def open(self, port):
        super().open(port)
        self._tender = None
        self._numbers = itertools.count(1)
        self._programs = {}  # number -> job that is prepared and not settled

    def check(self, name, func, args, kwargs, config):
        if not isinstance(func, Command):
            raise ConstructError('step %r: ProgramConstruct runs programs: give it a Command '
                                 'instead of %r' % (name, func))
        if not (sys.executable and os.path.isfile(sys.executable)
                and os.access(sys.executable, os.X_OK,
                              effective_ids=os.access in os.supports_effective_ids)):
            raise ConstructError(
                'step %r: programs are started by a small process of this Python, whose path '
                'should be in sys.executable, but that is %r: set it before the run'
                % (name, sys.executable))

    def prepare(self, job):
        if self._tender is not None:
            self._tender.listen()
            if self._tender.lost:
                self._lose_tender()
        if self._tender is None:
            self._tender = _Tender(self._told)
            self.port.watch(self._tender.fd, self._readable)
        job.state = child = _Program(next(self._numbers), self._tender, job)
        job.process = '%s, "program": %d}' % (self._tender.identity[:-1], child.number)
        self._tender.send('prepare', child.number, self._call(job))
        self._programs[child.number] = job

    def release(self, job):
        child = job.state
        self._jobs.add(job)
        if child.tender is None:
            self._finish(job, Outcome(FAILURE, child.broken or 'the process that starts programs '
                                      'died', lost=not child.broken))
        else:
            child.tender.send('begin', child.number)

    def withdraw(self, job):
        self.settle(job)

    def settle(self, job):
        child = job.state
        if not isinstance(child, _Program):
            super().settle(job)
            return
        if self._programs.pop(child.number, None) is not None and child.tender is not None:
            child.tender.send('settle', child.number)

    def close(self):
        if self._tender is not None:
            self._tender.listen()
            if self._tender.lost:
                self._lose_tender()
        running = [job for job in self._jobs if isinstance(job.state, _Program)]
        super().close()
        for job in running:
            self.settle(job)
        if self._tender is not None:
            self._part(may_stay=not running)

    # The tender.

    def _call(self, job):
        """Return what the tender has to know to run a job, as a dict."""
        command, config = job.func.filled(_refuse_name, _refuse_name), job.config
        environment = _environment_in_bytes()
        if environment != self._tender.environment:
            self._tender.environment = environment
            self._tender.send('inherit', environment)
        variables = dict(job.env)
        variables.update(config.get('env') or {})
        variables.update(command.env)
        return {
            'argv': [_in_bytes(part) for part in command.argv()],
            'env': {_in_bytes(name): _in_bytes(value) for name, value in variables.items()},
            'cwd': _in_bytes(self._folder(command.cwd or config.get('cwd'))),
            'stdin': _in_bytes(command.stdin), 'inherits': config.get('stdin') == 'inherit',
            'log': None if config.get('capture') == 'none' else _in_bytes(job.log),
            'outcome': _in_bytes(job.outcome), 'ok': job.state.ok, 'keep': job.state.keep,
            'epoch': job.now() - time.monotonic()}

    def _folder(self, cwd):
        """Return the folder to go to, or None for that in which the tender is."""
        here = _current_folder()
        if cwd:
            return os.path.join(here or '', cwd)
        return None if here == self._tender.folder else here

    def _readable(self):
        tender = self._tender
        tender.listen()
        if tender.lost and tender is self._tender:
            self._lose_tender()

    def _told(self, kind, number, pid, *report):
        job = self._programs.get(number)
        if job is None:
            return    # settled meanwhile
        child = job.state
        child.pid = pid or None
        if kind == 'over':
            child.report = report
            self._check(job)
        elif kind == 'short':
            warn_of_shortage(job.name, job.sequence, report[0])
        else:
            job.process = process_identity(pid, child.tender.pid)
            self.port.moved(job)

    def _part(self, may_stay=False):
        """Part with the tender, and with all that a dead one has left; return its exit code.

        It may stay if all that it has to do is to write outcomes that could not be stored.
        """
        tender, self._tender = self._tender, None
        self.port.unwatch(tender.fd)
        if tender.lost:
            tender.end_session()
        may_stay = may_stay and any(job.state.report for job in self._programs.values())
        code = tender.close(2.0 if may_stay else 6.0)
        if code is None and may_stay:
            logger.warning('process %d, which watches over programs of which one has finished, '
                           'goes on trying to leave its outcome in a file: see to the disk, and '
                           'recover the run', tender.pid)
            _left_tenders.append(tender)
            return 0
        if code is None:
            code = tender.end()
        if code and not tender.lost:
            tender.end_session()
        return code

    def _lose_tender(self):
        """The tender died: its programs are ended, as nobody could tell how they end."""
        works, manner = self._tender.works, manner_of_end(self._part())
        logger.error('the process that watches over programs %s; they are ended', manner)
        for job in list(self._programs.values()):
            child = job.state
            child.tender = None
            child.broken = '' if works else ('the process that starts programs, of %r, %s'
                                             % (sys.executable, manner))
            child.killed = child.forced = True
            self._check(job)

# Programs: the tender's side --------------------------------------------------------
#
# What follows runs in the tender, which gets the code of these functions and of some above over
# the line: neither this module nor the user's is imported there. So they name nothing but one
# another, os, sys and time, and import themselves what else they need.

_TENDER_START = """\
import marshal, os, sys, time
from _frozen_importlib_external import MAGIC_NUMBER
if MAGIC_NUMBER.hex() != sys.argv[2]:
    sys.exit('sequent: %s is not the Python that runs the flow' % sys.executable)
line = int(sys.argv[1])
os.set_inheritable(line, False)
def read(size):
    box = b''
    while len(box) < size:
        box += os.read(line, size - len(box)) or sys.exit(1)
    return box
names = {'os': os, 'sys': sys, 'time': time, '__builtins__': __builtins__}
def made(name, code, defaults):
    return type(made)(code, names, name, defaults)
functions, classes = marshal.loads(read(int.from_bytes(read(4), 'big')))
names.update((one[0], made(*one)) for one in functions)
names.update((name, type(name, (), {one[0]: made(*one) for one in methods}))
             for name, methods in classes)
names['_Tending'](line).run()
"""


@functools.lru_cache(maxsize=1)
def _tender_code():
    """Return the code of the tender as a frame."""
    def packed(functions):
        return [(one.__name__, one.__code__, one.__defaults__) for one in functions]
    classes = [(one.__name__, packed(method for method in vars(one).values()
                                     if hasattr(method, '__code__')))
               for one in (_Tended, _Tending)]
    return _framed((packed(_TENDER_FUNCTIONS), classes))


class _Tended:
    """What the tender knows of a program."""

    def __init__(self, call):
        self.call = call       # what `ProgramConstruct` says of it: {name: value}
        self.pid = 0           # once it has been started
        self.streams = [0, 1, 2]
        self.start = None      # the size of its log before
        self.refusal = ''      # why it cannot be started
        self.path = None       # where it was found before the start
        # Once it has ended: its code, why it was not started or '', last lines, time.
        self.report = None  # type: typing.Any
        self.until = None      # how long it is tried to start it, if it could not be at once
        self.killed = False
        self.settled = False   # nobody wants to know of its end


class _Tending:
    """The loop of the tender.

    Args:
        line: the descriptor of its end of the line to the supervisor.
    """

    def __init__(self, line):
        import _signal as raw
        import gc
        import select
        gc.disable()           # nothing here makes circles
        self.line = line       # None once the supervisor is gone
        self.identity = ''     # of this process
        self.supervisor = None  # its pid
        self.environment = {}  # of the supervisor
        self.inbox, self.outbox = bytearray(), bytearray()
        self.programs = {}     # number -> _Tended, until it is settled or left, and reaped
        self.running = {}      # those that run
        # number -> pid of those that the supervisor does not know as processes: if they end
        # soon, that is all there is to tell of them.
        self.untold = {}
        self.since = 0.0       # since when there are such
        # number -> how often it is still tried to write the outcome of those for which that
        # could not be done: for an hour, see `_leave_patiently`.
        self.unleft = {}
        self.short = {}        # those that could not be started yet: an ordered set of numbers
        self.patience = 0.0    # how long that is tried, in seconds
        # Blocked, and not ignored: it is easy to let them come in a program.
        raw.pthread_sigmask(raw.SIG_SETMASK, [
            getattr(raw, 'SIG' + name) for name in (
                'HUP', 'INT', 'QUIT', 'ALRM', 'TERM', 'USR1', 'USR2', 'TSTP', 'TTIN', 'TTOU')])
        # Which programs have as by default: Python itself ignores two of them.
        self.defaults = [raw.SIGCHLD, raw.SIGPIPE, raw.SIGXFSZ]
        if raw.getsignal(raw.SIGINT) != raw.SIG_IGN:
            self.defaults.append(raw.SIGINT)
        self.stdin = os.dup(0)    # the supervisor's, for programs that inherit it
        void = os.open(os.devnull, os.O_RDONLY)
        os.dup2(void, 0)
        os.close(void)
        self.home = os.open(os.curdir, getattr(os, 'O_PATH', os.O_RDONLY))
        self.wakeup = os.pipe()
        for fd in self.wakeup + (line,):
            os.set_blocking(fd, False)
        raw.set_wakeup_fd(self.wakeup[1])
        raw.signal(raw.SIGCHLD, lambda number, frame: None)
        self.poll = select.poll()
        self.poll.register(line, select.POLLIN)
        self.poll.register(self.wakeup[0], select.POLLIN)

    def run(self):
        while self.line is not None or self.programs:
            events = self.poll.poll(100 if self.untold or self.short else 500)
            for fd, _ in events:
                if fd == self.wakeup[0]:
                    os.read(fd, 4096)
                    self.look()
                elif fd == self.line:
                    self.flush()
                    self.hear()
            # What other processes were forked from it hold its end of the line open.
            if self.line is not None and os.getppid() != (self.supervisor or os.getppid()):
                self.lose()
            for number in list(self.unleft):
                self.leave(number)
            for number in list(self.short):
                self.begin(number)
            if self.untold and time.monotonic() > self.since + 0.1:
                self.tell_pids()

    # The line.

    def hear(self):
        """Do what the supervisor has said."""
        try:
            content = os.read(self.line, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            content = b''
        if not content:
            self.lose()
            return
        self.inbox += content
        for kind, *rest in _unframed(self.inbox):
            getattr(self, kind)(*rest)

    def say(self, *message):
        self.outbox += _framed(message)
        self.flush()

    def flush(self):
        """Write what there is room for: the supervisor may be waiting for us to read."""
        import select
        blocked = bool(self.outbox)
        try:
            while self.outbox:
                del self.outbox[:os.write(self.line, self.outbox)]
        except BlockingIOError:
            self.poll.modify(self.line, select.POLLIN | select.POLLOUT)
            return
        except OSError:
            del self.outbox[:]    # it is gone, which reading tells better
        if blocked:
            self.poll.modify(self.line, select.POLLIN)

    def tell_pids(self):
        untold, self.untold = self.untold, {}
        for number, pid in untold.items():
            self.say('runs', number, pid)

    def lose(self):
        """The supervisor is gone: nothing more is started; what there is to say goes to files."""
        self.poll.unregister(self.line)
        os.close(self.line)
        self.line = None
        self.untold.clear()
        void = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2, self.stdin):
            os.dup2(void, fd)    # others may wait for the end of what the supervisor wrote to
        for number, program in list(self.programs.items()):
            if program.report is not None:
                self.leave(number)
                continue
            self.leave_file(program, '.process', self.identify(program) if program.pid else {})
            if not program.pid:
                self.drop(number)

    def identify(self, program):
        """Return what `process_identity` would."""
        import json
        known = json.loads(self.identity)
        known.update(pid=program.pid, start=_proc_stat(program.pid)[1], keeper=os.getpid())
        return known

    # What it is told.

    def know(self, identity, supervisor, patience):
        self.identity, self.supervisor, self.patience = identity, supervisor, patience
        self.say('here', 0, os.getpid())

    def inherit(self, environment):
        self.environment = environment

    def prepare(self, number, call):
        program = self.programs[number] = _Tended(call)
        changes, call['env'] = call['env'], dict(self.environment)
        _change_variables(call['env'], changes)
        # Now, and not in begin(): making a file takes its time, but there is some just now.
        try:
            program.refusal = _open_log_of(program)
        except OSError:
            pass    # tried again with the start
        if any(b'\0' in one for one in call['argv'] + list(call['env'].values())):
            program.refusal = 'it could not be started: embedded null byte'
        if call['cwd'] is None:
            program.path = _find(call['argv'][0], call['env'])

    def begin(self, number):
        program = self.programs[number]
        try:
            refusal = program.refusal or self.start(program)
        except OSError as error:
            if self.postpone(number, program, error):
                return
            refusal = 'it could not be started: %s' % error
        except ValueError as error:
            refusal = 'it could not be started: %s' % error
        self.short.pop(number, None)
        for fd in program.streams[:2]:
            if fd > 2:
                os.close(fd)    # and not that of stderr, whose position tells where it ended
        program.call['argv'] = program.call['env'] = None    # the memory of many adds up
        if refusal:
            self.end(number, program, None, refusal)
        else:
            self.running[number] = program
            self.since = self.since if self.untold else time.monotonic()
            self.untold[number] = program.pid

    def start(self, program):
        """Start a program; return why that cannot be, or ''."""
        call = program.call
        try:
            refusal = _open_log_of(program) or _enter(program, self.stdin)
            if not refusal:
                program.pid, refusal = _execute(program.path, call['argv'], call['env'],
                                                program.streams, self.defaults)
            return refusal
        finally:
            if call['cwd'] is not None:
                os.fchdir(self.home)

    def postpone(self, number, program, error):
        """Return whether to start a program a little later, as the system is short of something.

        So does the driver with what it starts.
        """
        now = time.monotonic()
        program.until = program.until or now + self.patience
        if not is_shortage(error) or now >= program.until:
            return False
        # Programs that waited with their logs open would keep one another from starting: before
        # Python 3.8 a start takes two more descriptors.
        self.close_streams(program)
        if not self.short:
            self.say('short', number, 0, os.strerror(error.errno))
        self.short[number] = None
        return True

    def close_streams(self, program):
        for fd in program.streams:
            if fd > 2:
                os.close(fd)
        program.streams = [0, 1, 2]

    def drop(self, number):
        """Forget a program that never began; there is no log of it."""
        program = self.programs.pop(number)
        self.short.pop(number, None)
        self.close_streams(program)
        try:
            if program.start == 0:
                os.unlink(program.call['log'])
        except OSError:
            pass    # somebody else has done so

    def signal(self, number, which):
        program = self.programs.get(number)
        if program is not None and program.pid:
            program.killed = True
            self.send_signal(program, which)
        elif number in self.short:
            program.refusal = 'it was ended before it could be started'
            self.begin(number)

    def send_signal(self, program, which):
        """Send a signal to a group. It is not another's: its leader is not reaped yet."""
        try:
            os.killpg(program.pid, which)
        except OSError:
            pass    # nobody is there any more, or has other rights

    def settle(self, number):
        """Forget a program, once it has ended if it runs."""
        program = self.programs[number]
        program.settled = True
        if program.report is not None:
            self.reap(number)
        elif not program.pid:
            self.drop(number)

    # What ends.

    def look(self):
        """See which programs have ended."""
        for number, program in list(self.running.items()):
            found = os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                del self.running[number]
                exited = found.si_code == os.CLD_EXITED
                self.end(number, program, found.si_status if exited else -found.si_status, '')

    def end(self, number, program, code, refusal):
        tail = ''
        if program.streams[2] > 2:
            tail = _last_lines(program.streams[2], program.start)
            os.close(program.streams[2])
        self.untold.pop(number, None)
        program.report = code, refusal, tail, program.call['epoch'] + time.monotonic()
        if program.settled:
            self.reap(number)
        elif self.line is None:
            self.leave(number)
        else:
            self.say('over', number, program.pid, *program.report)

    def leave(self, number):
        """Leave the outcome in a file; only then may the program count as dead."""
        program = self.programs[number]
        left = self.leave_file(program, '', _program_outcome(
            *program.report, program.call['ok'], program.call['keep']))  # type: ignore
        tries = 0 if left else self.unleft.get(number, 2 * 3600) - 1
        if tries > 0:
            self.unleft[number] = tries
        else:
            self.unleft.pop(number, None)
            self.reap(number)

    def leave_file(self, program, ending, content):
        """Return whether it could be written: a disk may be full, and there is nobody to tell."""
        path = program.call['outcome']
        try:
            if path is not None:
                _leave_outcome(os.fsdecode(path) + ending, content)
            return True
        except OSError:
            return False

    def reap(self, number):
        program = self.programs.pop(number)
        if program.pid:
            if program.killed:
                self.send_signal(program, 9)    # what it has left behind
            os.waitpid(program.pid, 0)


def _open_log_of(program):
    """Open the log for stdout and stderr; return why that cannot be, or ''."""
    path = program.call['log']
    if path is None or program.streams[2] > 2:
        return ''
    try:
        if program.streams[1] == 1:
            program.streams[1] = _open_log(path)
        program.streams[2] = _open_log(path, os.O_RDWR)
        if program.start is None:
            program.start = os.fstat(program.streams[2]).st_size
    except OSError as error:
        if is_shortage(error):
            raise
        return 'its log %r cannot be opened: %s' % (os.fsdecode(path), error.strerror)
    return ''


def _enter(program, inherited):
    """Go to the folder and open stdin; return why that cannot be, or ''.

    Args:
        inherited: the descriptor of what the supervisor reads.
    """
    folder, stdin = program.call['cwd'], program.call['stdin']
    try:
        if folder is not None:
            os.chdir(folder)
    except OSError as error:
        return _no_folder(folder, error.errno)
    try:
        if stdin is not None and program.streams[0] == 0:
            program.streams[0] = os.open(stdin, os.O_RDONLY | os.O_NONBLOCK)  # it may be a pipe
            os.set_blocking(program.streams[0], True)
        elif program.call['inherits'] and program.streams[0] == 0:
            program.streams[0] = os.dup(inherited)
    except OSError as error:
        if is_shortage(error):
            raise
        return _no_stdin(stdin, error.errno)
    return ''


def _find(program, env):
    """Return the first path at which there is a program, or None."""
    for path in _candidates(program, env.get(b'PATH', os.fsencode(os.defpath))):
        if os.path.isfile(path):
            return path
    return None


def _execute(found, argv, env, streams, defaults):
    """Start a program; return (its pid, '') or (0, why that cannot be).

    Args:
        found: the path that is tried first, or None; it is searched for if that is of no use.
    """
    search, number = env.get(b'PATH', os.fsencode(os.defpath)), 2
    for path in [found] * (found is not None) + _candidates(argv[0], search):
        if path is found or os.path.exists(path):
            try:
                return _spawn(path, argv, env, streams, defaults), ''
            except OSError as error:
                if is_shortage(error):
                    raise
                number = error.errno
    return 0, _no_program(argv[0], search, b'', number)


_TENDER_FUNCTIONS = (
    is_shortage, _spawn, _proc_stat, _change_variables, _write, _make_folder, _open_log, _remove,
    write_aside, _sync_folder, _leave_outcome, _framed, _unframed, manner_of_end, _end_of_program,
    _last_lines, _escaped, _no_folder, _no_stdin, _candidates, _no_program, _program_outcome,
    _open_log_of, _enter, _find, _execute)

