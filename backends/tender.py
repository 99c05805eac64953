"""Start the children of large flows from a small early process, functions and programs alike.

The core asks for this file by name, once in a run, and works without it. A fork takes the longer
the more memory the process has that forks, and both sides pay for what they write to afterwards.
So a copy of the supervisor that is made when the run begins, before the plan and all that a run
needs, starts the children: the *tender*. Each child has a line to the supervisor, as always:

    supervisor                          tender                              child
    run() begins            fork --->
    first start --- what all jobs of the run have alike -->

    a function, one child is always ready:
                --- one end of a pair ------------------->  forks    --->   waits on its line
                <------------------ its pid --------------
    prepare: takes it, asks for the next one
    release     ------------ the job ------------------------------------>  runs it
                <----------- its outcome ---------------------------------
                <------------- its exit code -------------                  ends

    a program:
    prepare     --- one end of a pair, path of outcome -->
    release     ------------ the job -------------------->  starts   --->   is the program
                <------------------ its pid --------------
                <----------- its outcome -----------------                  ends; stays a zombie
    settle      ------------- b'k' ---------------------->  reaps it

The tender acts for the programs as the child of a function acts for itself: it says on the line
how the program ended and waits until that is stored; at the end of the line it leaves the outcome
in a file. It also says then in a file which process the program is, see `find_process`, as the
supervisor has perhaps not stored that.

What is sent of functions are names: the child finds function, arguments and loop items in the
flow, which it has inherited. Where that cannot be (something was filled in), and whenever the
tender does not answer, the supervisor starts the child itself.
"""

import contextlib
import copy
import functools
import json
import logging
import multiprocessing
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
import typing  # noqa: F401 (in comments)

from . import (  # type: ignore
    CHILD_SIGNALS, Child, Command, FAILURE, Job, Outcome, Placeholder, ProcessConstruct,
    Program, ProgramError, as_process, await_line, begin_elsewhere, close_private,
    find_construct, flush_streams, fork, framed, leave_supervisor, make_line, manner_of_end,
    missing_of_frame, occupy_standard_fds, own_fds, own_signals, pack_job, pack_outcome,
    process_alive, process_identity, process_members, refuse_name, run_job,
    serve_child, start_lock, take_frame, unpack_job, write_aside, write_outcome)

BACKEND = {'accelerates': 'process'}

logger = logging.getLogger('sequent')

_PLAIN_LOOPS = (list, tuple, range, str)    # Going over these runs nothing of the user's.
_ORDER_SIZE = 1 << 16    # bytes; more may not fit into a socket
_PID_SIZE = 8      # bytes that tell the pid of a program, 0: it was not started
_SETTLED = b'k'    # Other bytes that follow the order of a program are signals for it.
# What all jobs of a run have alike.
_OF_RUN = ('flow', 'run_id', 'logger_name', 'epoch', 'shared')
if sys.version_info >= (3, 11):
    _OWN_GROUP = {'process_group': 0}    # type: typing.Dict[str, typing.Any]
else:
    _OWN_GROUP = {'preexec_fn': os.setpgrp} if hasattr(os, 'setpgrp') else {}


def start(steps, settings):
    """Return a `Tender` for the run of a flow, or None.

    Functions are forked from it where nothing of the user's runs in the supervisor meanwhile, as
    children would not see what that changes: inline and thread steps, loops that are callables or
    iterables of other types than the common ones, other threads.

    Args:
        steps: the steps of the flow, by path.
        settings: the configuration of the flow.
    """
    if not all(hasattr(os, name) for name in ('fork', 'waitid', 'killpg')):
        return None
    plain = type(find_construct(settings['task_construct'])) is ProcessConstruct
    forks = (plain and settings['start_method'] in (None, 'fork')
             and threading.active_count() == 1 and all(map(_runs_nothing_here, steps.values())))
    worth = sum(_count_processes(one, plain, forks) for one in steps.values())
    if worth < Tender.WORTH:
        return None
    try:
        return Tender(steps, forks)
    except OSError as error:
        logger.debug('no tender (%s)', error)
        return None


def _runs_nothing_here(step):
    """Whether going over its loop runs nothing of the user's, and its construct is the flow's."""
    return 'task_construct' not in step.config and (
        step.loop is None or type(step.loop) in _PLAIN_LOOPS
        or isinstance(step.loop, Placeholder))


def _count_processes(step, plain, forks):
    """Return how many forks of the supervisor a step spares at least; a program counts more.

    Args:
        plain: whether the flow's construct is the one that makes processes.
        forks: whether functions are forked from the tender.
    """
    program = isinstance(step.func, Command)
    if step.func is None or not (_runs_programs(step, plain) if program else forks):
        return 0
    times = len(step.loop) if type(step.loop) in _PLAIN_LOOPS else 1
    return times * Tender.PROGRAM if program else times


def _runs_programs(step, plain):
    """Whether the construct of a step, its own or that of a container, makes processes."""
    while step is not None:
        if 'task_construct' in step.config:
            return step.config['task_construct'] == 'process'
        step = step.parent
    return plain


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


# The supervisor's side ----------------------------------------------------------------


class Tender:
    """A tender, as the supervisor knows it; see the text above.

    Args:
        steps: the steps of the flow, by path.
        forks: whether functions are forked from it.

    Attributes:
        WORTH: from how many processes on a flow has a tender: it takes two processes more.
        PROGRAM: as how many of these a program counts.
        PATIENCE: seconds to wait for an answer.

    Raises:
        OSError: there are no processes or descriptors left, or no such sockets.
    """

    WORTH = 20
    PROGRAM = 5
    PATIENCE = 10.0

    def __init__(self, steps, forks=True):
        self.leaving = False   # whether an outcome that could not be stored is left by it
        self._forks = forks
        self._spare = None     # type: typing.Any   # the child that waits for a job, or will
        self._codes = {}       # pid of a function's child -> its exit code, None: it runs
        self._surroundings = None    # type: typing.Any   # what the tender knows of ours
        self._known = Job('')        # what all jobs have alike, which the tender knows
        self._ended = False    # whether it has died, and what it had started was ended
        occupy_standard_fds()
        with start_lock:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            own_fds.add(ours.fileno())
            self._socket = ours  # type: typing.Any
            try:
                self._process = Child(fork(functools.partial(
                    _begin, theirs, steps, process_identity())))
            except BaseException:
                self._hang_up()
                raise
            finally:
                theirs.close()
        ours.setblocking(False)
        self.pid = self._process.pid
        self.identity = process_identity(self.pid)

    def child(self, job):
        """Return the `Child` for a job, or None: start it yourself."""
        program = isinstance(job.func, Command)
        if self._socket is None or not (program or self._forks and _is_of_flow(job.task.step)):
            return None
        try:
            if not self._has_learned(job):
                return None
            order = self._order(job, program)
        except Exception:    # It cannot be pickled: texts of a class of the user's, for example.
            return None
        if len(order) > _ORDER_SIZE:
            return None
        return self._program(job, order) if program else self._function(order)

    def _order(self, job, program):
        """Return a job as a frame for its line. What a function is given, the tender has."""
        known = copy.copy(self._known)
        known.func, known.args, known.kwargs, known.items = (
            job.func, job.args, job.kwargs, job.items)
        if program:
            job = copy.copy(job)
            job.func = job.func.filled(refuse_name, refuse_name).placed(job.config)
        return framed(pack_job(job, known))

    def _has_learned(self, job):
        """Return whether the tender knows what all jobs have alike, and has our environment."""
        surroundings = dict(os.environ), _current_folder()
        if self._surroundings is None:
            for name in _OF_RUN:
                setattr(self._known, name, getattr(job, name))
            of_run = pickle.dumps((pack_job(self._known, Job('')), *surroundings), protocol=4)
            if len(of_run) > _ORDER_SIZE:
                return False
            self._send(of_run)
            self._surroundings = surroundings
        return surroundings == self._surroundings

    def _function(self, order):
        """Return the child that is ready, or None if there is none and will be none."""
        if self._spare is None:
            self._ask()
        child = self._await_spare()
        if child is not None:
            self._ask()
            child.order = order
        return child

    def _program(self, job, order):
        child = _TendedProgram(self, order)
        path = (job.outcome or '').encode('utf-8', 'surrogateescape')
        child.fd = self._pass_line(b'p' + path)
        if self._socket is None:
            child.withdraw()
            child.hang_up()
            return None
        return child

    def _ask(self):
        """Ask for a spare child, whose pid the tender will tell."""
        spare = _TendedFunction(self)
        # If there is no descriptor, the child before is still there.
        spare.fd = self._pass_line(b'f')
        self._spare = spare
        if self._socket is None:
            spare.hang_up()

    def _pass_line(self, message):
        """Give the tender one end of a new line with a message; return the other end."""
        import array
        ours, theirs = make_line()
        with theirs:
            self._send(message, [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                                  array.array('i', [theirs.fileno()]))])
        return ours

    def _send(self, message, rights=()):
        deadline = time.monotonic() + self.PATIENCE
        while self._socket is not None:
            try:
                self._socket.sendmsg([message], rights)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self.do_without('it does not answer')
                _await_socket(self._socket, select.POLLIN | select.POLLOUT, 0.1)
                self.listen()    # lest each waits for the other to read
            except OSError as error:
                self.do_without(error.strerror)

    def _await_spare(self):
        deadline = time.monotonic() + self.PATIENCE
        self.listen()
        while self._socket is not None and self._spare.pid is None:
            left = deadline - time.monotonic()
            if left <= 0:
                self.do_without('it does not answer')
            else:
                _await_socket(self._socket, select.POLLIN, left)
                self.listen()
        if self._socket is not None and not self._spare_lives():
            self.do_without('a child of its has ended before it was given a job')
        return self._spare if self._socket is not None else None

    def listen(self):
        """Take note of what the tender says."""
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
        """Have the supervisor start all children from now on."""
        if self._socket is not None:
            logger.warning('the process that starts children cannot be used any more (%s): the '
                           'supervisor starts them itself from now on', why)
            self._hang_up()

    def _hang_up(self):
        """Let the tender end with the last program, and the spare child."""
        own_fds.discard(self._socket.fileno())
        self._socket.close()
        self._socket = None
        if self._spare is not None:
            self._spare.hang_up()

    def end(self):
        """End a tender that hangs, or has been stopped."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def lives(self, patience=0.0):
        """Return whether it lives, after waiting up to ``patience`` seconds for its end. If it
        does not, nobody could tell how its programs end: end them."""
        if not self._ended and self._process.await_end(patience):
            self._ended = True
            logger.error('the process that watches over programs %s; they are ended',
                         manner_of_end(self._process.code or 0))
            self._end_session()
        return not self._ended

    def _end_session(self):
        """End the programs that a dead tender has started: the session is its own."""
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline:
            left = list(process_members(3, self.pid))
            for pid in left:
                with contextlib.suppress(OSError):    # It has just ended.
                    os.kill(pid, signal.SIGKILL)
            if not left:
                return
            time.sleep(0.001)

    def _spare_lives(self):
        return self._spare.pid is None or self._codes[self._spare.pid] is None

    def _await_end_of_spare(self):
        self._spare.hang_up()
        deadline, left = time.monotonic() + 2.0, 2.0
        while self._socket is not None and self._spare_lives() and left > 0:
            _await_socket(self._socket, select.POLLIN, left)
            self.listen()
            left = deadline - time.monotonic()
        if self._socket is not None and self._spare_lives():
            self._spare.end()    # What the program runs at a fork hangs.

    def close(self):
        """End the tender, and the child that it keeps ready."""
        try:
            if self._spare is not None:
                self._await_end_of_spare()
        finally:    # also at a Ctrl-C: it would wait for us to the end of this program
            if self._socket is not None:
                self._hang_up()
            self._end_process()

    def _end_process(self):
        if not self._process.await_end(2.0):
            if self.leaving:
                logger.warning('process %d, which watches over programs of which one has '
                               'finished, goes on trying to leave its outcome in a file: see to '
                               'the disk, and recover the run', self.pid)
                return
            self.end()
            self._process.await_end(2.0)
        if self._process.code:
            self._end_session()


def _current_folder():
    try:
        return os.getcwd()
    except OSError:
        return None    # It has been removed.


def _await_socket(sock, events, seconds):
    poll = select.poll()
    poll.register(sock, events)
    poll.poll(seconds * 1e3)


class _Tended(Child):
    """A child of the tender's: its job is what lets it pass the gate."""

    def __init__(self, tender, order=b''):
        super().__init__()
        self.tender = tender
        self.order = order

    def release(self):
        try:
            self.unread = os.write(self.fd, self.order) < len(self.order)
            if self.unread:    # Sockets hold next to nothing on this system.
                self.give_up()
        except OSError:
            self.unread = True    # It is dead, which the end of the line tells.

    def give_up(self):
        self.end()


class _TendedFunction(_Tended):
    """A child that the tender has forked."""

    def __init__(self, tender):
        super().__init__(tender)
        self.waited = True
        self.asked = self.missed = None    # when we first asked for its end, and saw it untold

    def ended(self):
        if self.over:
            return True
        self.code = self.tender.exitcode(self.pid)
        if self.code is None and self.tender.is_there():
            self._doubt_tender()    # which tells a little later
        self.over = self.code is not None or (  # type: bool
            not self.tender.is_there() and process_alive(self.identity) is False)
        return self.over

    def _doubt_tender(self):
        """Do without a tender that has been stopped: a child has ended, and it does not tell."""
        now, patience = time.monotonic(), self.tender.PATIENCE / 5
        if self.asked is None:
            self.asked = now    # to look at a process takes longer than to ask
        elif now - self.asked > patience and process_alive(self.identity) is False:
            if self.missed is None:
                self.missed = now
            elif now - self.missed > patience:
                self.tender.do_without('it does not tell how a child of its has ended')

    def part(self):
        self.tender.forget(self.pid)

    def lost(self, job):
        if not self.unread or self.killed:
            return False
        self.tender.do_without('a child of its has ended before it took its job')
        return True

    def cause(self):
        if self.code is None:
            return ('ended before its outcome was delivered; how is not known, as the server that '
                    'has forked it is gone')
        return super().cause()


class _TendedProgram(_Tended):
    """A program that the tender starts. The process is known a while after the start."""

    def __init__(self, tender, order):
        super().__init__(tender, order)
        self.identity = '%s, "program": 1}' % tender.identity[:-1]
        self.told = False    # whether the tender has said which process it is
        self.settled = False
        self.deadline = float('inf')    # when it has to have ended after a SIGKILL

    def read(self):
        more = super().read()
        if not self.told and len(self.inbox) >= _PID_SIZE:
            self.told = True
            self.pid = int.from_bytes(self.inbox[:_PID_SIZE], 'big') or None
            del self.inbox[:_PID_SIZE]
            if self.pid and not self.inbox:
                self.identity = process_identity(self.pid, self.tender.pid)
        return more

    def outcome(self):
        outcome = super().outcome() if self.told else None
        self.over = self.over or outcome is not None  # type: bool
        return outcome

    def signal(self, number):
        """Have the tender send it: before that reaps the program, the group is no other's."""
        if number == signal.SIGKILL:
            self.deadline = min(self.deadline, time.monotonic() + self.tender.PATIENCE)
        self.say(bytes([number]))    # If the tender is dead, the program is ended.
        return True

    def settle(self):
        self.settled = True
        self.say(_SETTLED)

    def withdraw(self):
        """Send an empty order, lest the tender takes us for dead."""
        self.settled = True
        self.say(framed(b''))

    def hang_up(self):
        super().hang_up()
        self.tender.leaving = self.tender.leaving or self.over and not self.settled

    end = settle

    def give_up(self):
        self.tender.end()

    def ended(self):
        if self.settled or self.over:
            return True
        if time.monotonic() > self.deadline:
            self.tender.end()    # It has been stopped, or hangs.
        # A line ends a little before its process.
        return not self.tender.lives(0.5 if self.fd is None else 0.0) or self.fd is None

    def lost(self, job):
        return self.unread and not self.killed

    def cause(self):
        return 'ended, as the process that watched over programs died'


# The tender's side ---------------------------------------------------------------------


def _begin(orders, steps, supervisor):
    """Where the tender begins. Does not return."""
    import traceback
    code = 1
    try:
        leave_supervisor()
        tending = _Tending(orders, steps, supervisor)
        own_signals()
        tending.run()
        code = 0
    except OSError:
        pass    # The system is short of something; the supervisor does without us, and says so.
    except BaseException:
        traceback.print_exc()
    finally:
        flush_streams()
        os._exit(code)


class _Tending:
    """The tender: forks a child, or starts a program, for each line that it is given.

    It ends with the supervisor and the last program, and when it cannot fork, as it takes
    processes that others need. Signals that ask the supervisor to stop, or that the program
    handles, are passed on, as a function may send them to its parent.
    """

    def __init__(self, orders, steps, supervisor):
        self._orders = orders    # None once there will be no more of them
        self._steps = steps
        self._supervisor = supervisor
        self._parent = os.getppid()
        self.job = Job('')     # what children have alike
        self._learned = False
        self._handlers = {}    # signal -> what handles it in children
        self._handled = [number for number in range(1, signal.NSIG)
                         if callable(signal.getsignal(number))]    # in the supervisor
        self.identity = process_identity()
        self.children = {}     # pid -> _Program, or None: a function
        self.programs = {}     # descriptor of its line -> _Program, until it is settled or left
        self.restless = set()  # the programs of which something is to be done in a moment
        self.poll = select.poll()

    def run(self):
        ended, wake = os.pipe()
        os.set_blocking(wake, False)
        own_fds.update((ended, wake, self._orders.fileno()))
        self._keep_from_programs()
        self._prepare_signals(wake)
        orders = self._orders.fileno()
        self.poll.register(orders, select.POLLIN)
        self.poll.register(ended, select.POLLIN)
        while (self._orders is not None or self.programs or self.restless
               or any(self.children.values())):
            patience = 100 if self.restless else 500 if self.programs else 5000
            came = [fd for fd, _ in self.poll.poll(patience)]
            if ended in came:
                os.read(ended, 512)
                self._reap()
            if orders in came and self._orders is not None:
                self._take_order()
            for fd in came:
                if fd in self.programs:
                    self.programs[fd].hear()
            for program in list(self.restless):
                program.stir()
            # What other processes were forked from the supervisor hold its ends of the lines.
            if self._parent is not None and os.getppid() != self._parent:
                self._lose_supervisor()

    @staticmethod
    def _keep_from_programs():
        """Let programs inherit nothing that is open here."""
        for name in os.listdir('/dev/fd'):
            with contextlib.suppress(OSError):    # It was that of the folder.
                if int(name) > 2:
                    os.set_inheritable(int(name), False)

    def _prepare_signals(self, wake):
        signal.set_wakeup_fd(wake)
        own = dict.fromkeys(self._handled, self._pass_on)
        own.update(dict.fromkeys(CHILD_SIGNALS, self._pass_on))
        own[signal.SIGCHLD] = lambda number, frame: None
        for number, handler in own.items():
            before = signal.getsignal(number)
            self._handlers[int(number)] = signal.SIG_DFL if before is None else before
            if before != signal.SIG_IGN or number == signal.SIGCHLD:
                signal.signal(number, handler)

    def _pass_on(self, number, frame):
        with contextlib.suppress(OSError):    # The supervisor is gone, which ends us.
            if self._parent is not None and os.getppid() == self._parent:
                os.kill(self._parent, number)

    def _lose_supervisor(self):
        self._parent = None
        self.take_no_orders()
        for program in list(self.programs.values()):
            program.lose()
        void = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(void, fd)    # Others may wait for the end of what the supervisor wrote to.
        os.close(void)

    def take_no_orders(self):
        if self._orders is not None:
            self.poll.unregister(self._orders.fileno())
            self._orders.close()
            self._orders = None

    def _take_order(self):
        try:
            message, received, _, _ = self._orders.recvmsg(_ORDER_SIZE, socket.CMSG_SPACE(4),
                                                           socket.MSG_CMSG_CLOEXEC)
        except OSError:    # The supervisor is gone, and has not read all that we sent.
            message = b''
        if not message or self._learned and not received:    # for which no descriptor is left
            self.take_no_orders()
        elif not self._learned:
            self._learn(message)
        else:
            line = int.from_bytes(received[0][2], sys.byteorder)
            if message[:1] == b'f':
                self._fork(line)
            else:
                program = _Program(self, line, message[1:].decode('utf-8', 'surrogateescape'))
                self.programs[line] = program
                self.poll.register(line, select.POLLIN)
                own_fds.add(line)

    def _learn(self, message):
        """Take what all jobs of the run have alike."""
        of_run, environment, folder = pickle.loads(message)
        self.job = unpack_job(of_run, self.job)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        if folder is not None:
            os.chdir(folder)
        if self._steps:
            begin_elsewhere(next(iter(self._steps.values())).flow, self.job.run_id)
        self._learned = True

    def _fork(self, line):
        """Fork a child that waits on its line."""
        pid = fork(as_process(functools.partial(self._begin_child, line), 'spare', line,
                              self._parent))
        os.close(line)
        self.children[pid] = None
        self._orders.send(b'ready %d' % pid)

    def _begin_child(self, line):
        """Where a child begins. Does not return."""
        signal.set_wakeup_fd(-1)
        for fd in own_fds:    # what Python has of them lives until we end
            os.close(fd)
        own_fds.clear()
        serve_child(functools.partial(self._await_job, line),
                    lambda: process_alive(self._supervisor) is not False)

    def _await_job(self, line, lives):
        """Wait for a job; return what `serve_child` asks for."""
        own_signals(self._handlers)
        inbox = bytearray()
        while missing_of_frame(inbox):
            if not await_line(line, lives):
                return None
            more = os.read(line, 1 << 12)
            if not more:
                return None
            inbox += more
        job = unpack_job(take_frame(inbox), self.job)
        multiprocessing.current_process().name = '%s %s' % (job.name, job.sequence)
        step = self._steps[job.name]
        job.func, job.args, job.kwargs = step.func, step.args, step.kwargs
        job.items = _items_at(step, job.sequence)
        return job, line

    def _reap(self):
        """See which children have ended. A program stays a zombie for a while."""
        for pid, program in list(self.children.items()):
            found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None:
                continue
            del self.children[pid]
            code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            if program is not None:
                program.take_end(code)
                continue
            os.waitpid(pid, 0)
            with contextlib.suppress(OSError):    # Nobody wants to know.
                if self._orders is not None:
                    self._orders.send(b'ended %d %d' % (pid, code))


class _Program:
    """A program, as the tender knows it.

    Args:
        tending: the `_Tending`.
        line: descriptor of the line to the supervisor.
        path: of the outcome, if the supervisor is gone; or ''.
    """

    TRIES = 2 * 3600    # how often it is tried to write an outcome: for an hour

    def __init__(self, tending, line, path):
        self._tending = tending
        self._line = line       # None once the supervisor is gone
        self._path = path
        self._inbox = bytearray()
        self._job = None        # type: typing.Any   # once it is released
        self._program = None    # type: typing.Any   # once it is started
        self._outcome = None    # type: typing.Any   # once it has ended
        self._began = 0.0       # when it was first tried to start it
        self._told = False      # whether the supervisor knows its pid
        self._killed = self._settled = False
        self._tries = self.TRIES

    # What the supervisor says.

    def hear(self):
        try:
            content = os.read(self._line, 1 << 16)
        except OSError:
            content = b''
        if not content:
            self.lose()
            return
        self._inbox += content
        if self._job is None and not missing_of_frame(self._inbox):
            order = take_frame(self._inbox)
            if order:
                self._job = unpack_job(order, self._tending.job)
                self._job.load()
                self._began = time.monotonic()
                self._start()
            else:
                self._settle()
        if self._job is not None:
            for byte in bytes(self._inbox):
                if byte == ord(_SETTLED):
                    self._settle()
                else:
                    self._signal(byte)
            self._inbox.clear()

    def lose(self):
        """The supervisor is gone: nothing is started; what there is to say goes to files."""
        if self._line is None:
            return
        self._hang_up()
        if self._outcome is not None and not self._outcome.lost:
            self._leave()
        else:
            self._leave_identity()

    def _hang_up(self):
        if self._line is not None:
            self._tending.poll.unregister(self._line)
            del self._tending.programs[self._line]
            close_private(self._line)
            self._line = None

    def _signal(self, number):
        self._killed = True
        if self._program is None and self._outcome is None:
            self._end(ProgramError('it was ended before it could be started'))
        elif self._program is not None:
            self._send_signal(number)

    def _send_signal(self, number):
        """Send a signal to the group. It is not another's: its leader is not reaped yet."""
        with contextlib.suppress(OSError):    # Nobody is there any more, or has other rights.
            os.killpg(self._program.process.pid, number)

    def _settle(self):
        """Forget it, once it has ended if it runs."""
        self._settled = True
        self._hang_up()
        if self._program is None or self._outcome is not None:
            self._forget()

    # What becomes of it.

    def stir(self):
        """Do what is to be done in a moment."""
        if self._outcome is not None:
            self._leave()
        elif time.monotonic() > self._began + 0.1:
            self._tending.restless.discard(self)
            if self._line is not None:
                self._told = True
                self._write(self._pid())

    def _start(self):
        before = signal.pthread_sigmask(signal.SIG_SETMASK, ())
        try:
            self._program = Program(self._job.func, self._job, **_OWN_GROUP)
        except ProgramError as error:
            self._end(error)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._began = time.monotonic()
        self._tending.children[self._program.process.pid] = self
        self._tending.restless.add(self)    # to tell its pid, if it does not end soon

    def take_end(self, code):
        """Take note that it has ended, with an exit code (negative: a signal)."""
        self._end(functools.partial(self._program.result, code))

    def _end(self, what):
        """Say how it has ended.

        Args:
            what: a function that returns its result or raises an error; or that error.
        """
        if isinstance(what, ProgramError) and what.short:
            self._report(Outcome(FAILURE, str(what), lost=True, short=True))
            return
        self._job.func = functools.partial(_raise, what) if isinstance(what, Exception) else what
        self._report(run_job(self._job))

    def _report(self, outcome):
        self._outcome = outcome._replace(ended=self._job.now())
        self._tending.restless.discard(self)
        if self._settled:
            self._forget()
        elif self._line is None:
            self._leave()
        else:
            pid = b'' if self._told else self._pid()
            self._write(pid + framed(pack_outcome(self._outcome)))

    def _pid(self):
        pid = self._program.process.pid if self._program is not None else 0
        return pid.to_bytes(_PID_SIZE, 'big')

    def _write(self, content):
        with contextlib.suppress(OSError):    # The end of the line tells that, too.
            os.write(self._line, content)

    # When the supervisor is gone.

    def _leave_identity(self):
        """Say in a file which process it is; if there is none, that it never began."""
        known = {}
        if self._program is not None:
            known = json.loads(process_identity(self._program.process.pid, os.getpid()))
        with contextlib.suppress(OSError):    # A disk may be full, and there is nobody to tell.
            if self._path:
                write_aside(self._path + '.process', json.dumps(known).encode('utf-8'))

    def _leave(self):
        """Leave the outcome in a file; only then may the program count as dead."""
        try:
            if self._path:
                write_outcome(self._path, self._outcome)
        except OSError:
            self._tries -= 1
            if self._tries:
                self._tending.restless.add(self)
                return
        self._forget()

    def _forget(self):
        self._tending.restless.discard(self)
        if self._program is not None:
            if self._killed:
                self._send_signal(signal.SIGKILL)    # what it has left behind
            self._program.process.wait()
            self._program.close()


def _raise(error):
    raise error


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
