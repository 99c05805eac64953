"""Kills supervisors at chosen moments, recovers what they have left, and looks for what is wrong.

Run as a program this is a *forker*: a process that has imported everything and forks a supervisor
for each run, so that a kill costs milliseconds instead of the start of an interpreter. It takes
cases from its standard input, one JSON object a line, and answers each with a line.

A case is a flow (`SHAPES`), what runs its tasks (`CONSTRUCTS`) and a list of plans. A plan is a
list of kills, one for each supervisor in turn; the supervisor after the last is left alone and
must bring the run to its end. A kill is ``[when, n]``:

    before n   at the n-th commit, when nothing of it is done
    torn n     within it: pages of it are in the file, and a journal that takes them out again
    after n    when it is done, before anything that follows from it
    time s     from outside, after s seconds

The commit with number 1 makes the tables; the next ones begin the run; the last ends it.
"""

import collections
import contextlib
import ctypes
import fcntl
import functools
import json
import os
import random
import re
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback

import runtools

import sequent

NAME = 'kills'
DEADLINE = 30.0
DELAY = 0.03
LIMIT = 2
#: What makes tasks: how, and how long a task takes.
CONSTRUCTS = {
    'process': ({'task_construct': 'process', 'start_method': 'fork'}, 0.012),
    'thread': ({'task_construct': 'thread'}, 0.001),
    'inline': ({'task_construct': 'inline', 'group_commit': 0}, 0.0),
    'grouped': ({'task_construct': 'inline'}, 0.002),
    'pool': ({'task_construct': 'pool', 'start_method': 'fork'}, 0.002),
    'program': ({'task_construct': 'process'}, 0.02),
}
PR_SET_CHILD_SUBREAPER = 36


# What tasks do --------------------------------------------------------------------


def note(folder, *words):
    """Write a line into the journal; atomic among processes."""
    fd = os.open(os.path.join(folder, 'journal'), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, ('%s\n' % ' '.join(map(str, words))).encode())
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(path):
    """Hold an exclusive lock that goes with this process; gives whether it could be had."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
    finally:
        os.close(fd)


def outlive(folder, supervisor):
    """Go on, if the supervisor of this process is dead, until another has begun.

    So that one finds us alive, and must not start a second copy.
    """
    if os.getpid() != supervisor and runtools.birth(supervisor) is None:
        runtools.wait_until(lambda: begun(folder) != supervisor, 'another supervisor')


def begun(folder):
    """Return the pid of the last supervisor that has begun."""
    with open(os.path.join(folder, 'journal')) as stream:
        return [int(line.split()[1]) for line in stream if line.startswith('begun ')][-1]


def work(folder, seconds, fails=False, slots=0, arguments=(), supervisor=None):
    """Note that this task runs, and whether another copy does; return its name and place."""
    me = sequent.current()
    key = '%s.%s' % (me.name, me.sequence)
    with contextlib.ExitStack() as locks:
        if not locks.enter_context(locked(os.path.join(folder, 'lock-' + key))):
            note(folder, 'two', key, os.getpid(), time.monotonic())
        if slots and not any(locks.enter_context(locked(os.path.join(folder, 'slot-%d' % n)))
                             for n in range(slots)):
            note(folder, 'over', key, os.getpid(), time.monotonic())
        note(folder, 'start', key, os.getpid(), time.monotonic())
        time.sleep(seconds)
        outlive(folder, supervisor)
        note(folder, 'end', key, os.getpid(), time.monotonic())
    if fails:
        raise ValueError('as it must')
    return [key] + list(arguments)


#: The same as a program. A folder is its lock: no program dies before its end here.
SCRIPT = '''
key=$SEQUENT_STEP_NAME.$SEQUENT_STEP_SEQUENCE
mkdir "$1/lock-$key" || echo "two $key $$ 0" >> "$1/journal"
echo "start $key $$ 0" >> "$1/journal"
sleep $2
echo "end $key $$ 0" >> "$1/journal"
rmdir "$1/lock-$key"
exit $3
'''


# Flows ----------------------------------------------------------------------------


class Maker:
    """Adds steps whose tasks note what they do."""

    def __init__(self, folder, construct):
        self.folder = folder
        self.construct = construct
        self.seconds = CONSTRUCTS[construct][1]

    def leaf(self, parent, name, fails=False, slots=0, arguments=(), **given):
        if self.construct == 'program':
            func = sequent.Command(['/bin/sh', '-c', SCRIPT, 'sh', self.folder, self.seconds,
                                    int(fails)])
            return parent.add_step(name, func=func, **given)
        return parent.add_step(name, func=work, args=(
            self.folder, self.seconds, fails, slots, list(arguments), os.getpid()), **given)


def chain(flow, make):
    before = ()
    for name in 'abcd':
        before = make.leaf(flow, name, require=before)


def diamond(flow, make):
    a = make.leaf(flow, 'a')
    b = make.leaf(flow, 'b', require=a, arguments=[a.result])
    c = make.leaf(flow, 'c', require=a, arguments=[a.result])
    make.leaf(flow, 'd', require=(b, c), arguments=[b.result, c.result])


def nested_loop(flow, make):
    outer = flow.add_step('outer', loop=[1, 2])
    x = make.leaf(outer, 'x')
    inner = outer.add_step('inner', loop=['p', 'q'], require=x)
    y = make.leaf(inner, 'y')
    make.leaf(inner, 'z', require=y)
    make.leaf(flow, 'end', require=outer)


def pool(flow, make):
    chairs = sequent.ResourcePool('chairs', LIMIT)
    for name in 'abcde':
        make.leaf(flow, name, slots=LIMIT, acquires=[(chairs, 1)])


def delay(flow, make):
    a = make.leaf(flow, 'a')
    b = make.leaf(flow, 'b', require=a, delay=DELAY)
    make.leaf(flow, 'c', require=b)


def handled_failure(flow, make):
    a = make.leaf(flow, 'a', fails=True)
    b = make.leaf(flow, 'b', require=(a, 'failure'), handles=True)
    make.leaf(flow, 'c', require=[(a, 'complete'), b])


SHAPES = collections.OrderedDict((one.__name__, one) for one in (
    chain, diamond, nested_loop, pool, delay, handled_failure))
#: {shape: {task: the task to whose failure it reacts}}. When that fails anew in a recovery, the
#: reaction runs again, though it has succeeded (semantics 3.3, 7.3).
REACTIONS = {'handled_failure': {'b.1': 'a.1', 'c.1': 'a.1'}}


class NotingStore(sequent.SqliteStore):
    """Notes which process begins a run or a recovery."""

    def begin(self, run):
        note(os.path.dirname(self.path), 'begun', os.getpid(), '-', 0)
        super().begin(run)


class Killer:
    """Kills its process at its n-th commit: before it, within it, or after it.

    What it sees of commits are the statements that the process gives to SQLite.
    """

    WRITES = ('INSERT', 'REPLACE', 'UPDATE', 'DELETE', 'CREATE', 'ALTER')

    def __init__(self, kill=None):
        self.when, self.number = kill or ('never', 0)
        self.commits = 0

    def watch(self):
        """Watch all connections that this process makes from now on."""
        sqlite3.connect = functools.partial(
            sqlite3.connect, factory=type('Connection', (WatchedConnection,), {'killer': self}))

    def at(self, when):
        if self.when == when and self.commits == self.number:
            os.kill(os.getpid(), signal.SIGKILL)

    def begins(self):
        self.commits += 1
        self.at('before')

    def tears(self, db):
        if self.when == 'torn' and self.commits == self.number:
            # So much that pages go into the file before the COMMIT.
            execute = super(WatchedConnection, db).execute
            execute('PRAGMA cache_size = 1')
            execute('CREATE TABLE scrap (content)')
            for _ in range(30):
                execute('INSERT INTO scrap VALUES (randomblob(3000))')
            self.at('torn')


class WatchedConnection(sqlite3.Connection):
    """A connection that tells its `Killer` of the commits that write something."""

    killer = None    # type: Killer
    writes = False

    def execute(self, statement, *given):
        self._begins(statement)
        ends = statement.split()[0] == 'COMMIT' and self.writes
        if ends:
            self.killer.tears(self)
        result = super().execute(statement, *given)
        if ends:
            self.writes = False
            self.killer.at('after')
        return result

    def executemany(self, statement, rows):
        self._begins(statement)
        return super().executemany(statement, rows)

    def _begins(self, statement):
        word = statement.split()[0]
        if word == 'BEGIN':
            self.writes = False
        elif word in Killer.WRITES and not self.writes:
            self.writes = True
            self.killer.begins()


def a_flow(folder, shape, construct, mode='restart', synchronous='off', **given):
    """Return a flow."""
    config = dict(CONSTRUCTS[construct][0], sleep_between_loops=0.05, max_concurrent=3,
                  capture='file')
    config.update(given.pop('config', {}))
    store = NotingStore(os.path.join(folder, 'kills.db'), synchronous)
    flow = sequent.Sequent(NAME, store=store, run_mode=mode, config=config,
                           logging_level='WARNING', **given)
    SHAPES[shape](flow, Maker(folder, construct))
    return flow


# Supervisors ----------------------------------------------------------------------


def fork(folder, action):
    """Call ``action()`` in a new process, which exits with what it returns; return the pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        errors = os.open(os.path.join(folder, 'errors'),
                         os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(errors, 2)
        os.dup2(errors, 1)
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
    return None


def exit_code(status):
    """Return the exit code, or minus the signal, that `os.waitpid` tells."""
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def supervise(folder, shape, construct, mode, kill=None, synchronous='off'):
    """Run a flow; return 0 for its success. Leaves the number of commits in a file."""
    killer = Killer(kill)
    killer.watch()
    flow = a_flow(folder, shape, construct, mode, synchronous)
    ok = flow()
    with open(os.path.join(folder, 'commits'), 'w') as stream:
        stream.write(str(killer.commits))
    return 0 if ok else 1


class _Late(Exception):
    """What must happen has not happened in time."""


def _raise_late(number, frame):
    raise _Late


def wait_for(pid=None, seconds=DEADLINE):
    """Return the status of a child of ours when it has ended; None: of all, when all have.

    Others that end are reaped meanwhile, as orphans become our children.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        while True:
            ended, status = os.waitpid(-1, 0)
            if ended == pid:
                return status
    except ChildProcessError:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def children():
    """Return {pid: command} of this process's children that run."""
    found = {}
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open('/proc/%s/stat' % pid, 'rb') as stream:
                name, _, fields = stream.read().rpartition(b')')
        except OSError:
            continue
        if int(fields.split()[1]) == os.getpid() and fields.split()[0] != b'Z':
            found[int(pid)] = name.decode(errors='replace')
    return found


# One plan: kills, recoveries, and what is looked at -------------------------------


class Trial:
    """One run of a flow through the kills of a plan.

    Attributes:
        kills: how many supervisors were killed.
        wrong: sentences about what should not have happened.
    """

    def __init__(self, folder, shape, construct, synchronous='off', seed=0):
        self.folder = folder
        self.shape, self.construct, self.synchronous = shape, construct, synchronous
        self.random = random.Random(seed)
        self.path = os.path.join(folder, 'kills.db')
        self.done = set()  # successes that are committed
        self.before = collections.Counter()    # attempts, when last looked at
        self.read = 0      # lines of the journal that were looked at
        self.kills = 0
        self.wrong = []
        os.mkdir(folder)

    def run(self, plan):
        try:
            for kill in plan:
                if self.supervisor(kill) == 0:
                    break
            if self.supervisor(None) != 0:
                self.wrong.append('the last supervisor did not succeed: ' + self.errors())
            self.look_for_processes()
            self.look_at_store(self.path)
            self.look_at_delay()
        except _Late:
            self.wrong.append('a supervisor hangs: %s %s' % (children(), self.errors()))
            self.end_all()
        return self

    def errors(self):
        try:
            with open(os.path.join(self.folder, 'errors'), errors='replace') as stream:
                return stream.read()[-2000:]
        except FileNotFoundError:
            return ''

    def supervisor(self, kill):
        """Run one supervisor to its end; return its exit code, minus a signal."""
        mode = 'restart' if self.stored_run() is None else self.random.choice(
            ['recover', 'recover', 'continue'])
        inside = kill if kill and kill[0] != 'time' else None
        pid = fork(self.folder, lambda: supervise(
            self.folder, self.shape, self.construct, mode, inside, self.synchronous))
        if kill and kill[0] == 'time':
            time.sleep(kill[1])
            os.kill(pid, signal.SIGKILL)    # it is ours, and not reaped yet: it is the right one
        status = wait_for(pid)
        code = exit_code(status)
        self.look(kill, mode)
        if code == -signal.SIGKILL:
            self.kills += 1
        elif code != 0:
            self.wrong.append('%s after %s: exit code %d: %s' % (mode, kill, code, self.errors()))
        return code

    def look(self, kill, mode):
        """After a supervisor's end: what did it do, and what is committed?"""
        copy = self.copy()
        self.look_for_causes(copy)
        for line in self.journal()[self.read:]:
            self.read += 1
            what, key = line.split()[:2]
            if what in ('two', 'over'):
                self.wrong.append('%s: %s (%s, killed %s)' % (
                    {'two': 'two copies at one time', 'over': 'more than the pool has'}[what],
                    key, mode, kill))
            elif what == 'start' and key in self.done:
                self.wrong.append('a committed success ran again: %s (%s, killed %s)'
                                  % (key, mode, kill))
        self.look_at_store(copy)

    def journal(self):
        try:
            with open(os.path.join(self.folder, 'journal')) as stream:
                return stream.read().split('\n')[:-1]
        except FileNotFoundError:
            return []

    def copy(self):
        """Copy the database: reading the file itself would repair it, which others are to do."""
        copy = os.path.join(self.folder, 'copy.db')
        for suffix in ('', '-journal'):
            if os.path.exists(self.path + suffix):
                shutil.copyfile(self.path + suffix, copy + suffix)
            elif os.path.exists(copy + suffix):
                os.unlink(copy + suffix)
        return copy

    def look_at_store(self, path):
        if not os.path.exists(path):
            return
        db = sqlite3.connect(path)
        try:
            sound = [row[0] for row in db.execute('PRAGMA integrity_check')]
            if sound != ['ok']:
                self.wrong.append('the store is damaged: %s' % sound)
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'scrap'").fetchone():
                self.wrong.append('half a commit is in the store')
        finally:
            db.close()
        done = {key for key, (status, _) in self.tasks(path).items() if status == 'success'}
        if self.done - done:
            self.wrong.append('committed successes are gone: %s' % sorted(self.done - done))
        self.done |= done

    def attempts(self, path=None):
        """Return a Counter of (name and place, status) over all attempts and recoveries."""
        def read(store):
            run = store.latest(NAME)
            return collections.Counter(
                ('%s.%s' % (one.path, one.sequence), str(one.status))
                for one in (store.attempts(run) if run is not None else ()))
        return self.with_store(path or self.path, read)

    def look_for_causes(self, path):
        """Forget successes of reactions to what has failed since: they do not count any more."""
        if self.shape not in REACTIONS or not os.path.exists(path):
            return
        number = self.attempts(path)
        for key, cause in REACTIONS[self.shape].items():
            if self.before[key, 'success'] < number[cause, 'failure']:
                self.done.discard(key)
            if number[key, 'success'] > number[cause, 'failure']:
                self.wrong.append('%s ran more often than %s has failed' % (key, cause))
        self.before = number

    def failures(self):
        """Return the errors of the tasks that have failed."""
        return self.with_store(self.path, lambda store: [
            one.error for one in store.tasks(store.latest(NAME), status='failure')
            if one.kind == 'leaf'])

    def stored_run(self):
        return self.with_store(self.copy(), lambda store: store.latest(NAME))

    def tasks(self, path=None):
        """Return {name and place: (status, result)} of the leaves, as stored last."""
        def read(store):
            run = store.latest(NAME)
            return {} if run is None else {
                '%s.%s' % (one.path, one.sequence):
                (str(one.status), sequent.load_result(store, one.result))
                for one in store.tasks(run) if one.kind == 'leaf'}
        return self.with_store(path or self.path, read)

    @staticmethod
    def with_store(path, read):
        store = sequent.SqliteStore(path)
        store.open(create=False)
        try:
            return read(store)
        finally:
            store.close()

    def starts(self):
        return collections.Counter(line.split()[1] for line in self.journal()
                                   if line.startswith('start '))

    def look_for_processes(self):
        """Every process that was started must end by itself; orphans of orphans are ours."""
        try:
            wait_for()
        except _Late:
            self.wrong.append('processes are left: %s' % children())
            self.end_all()

    @staticmethod
    def end_all():
        while children():
            for pid in children():
                os.kill(pid, signal.SIGKILL)
            wait_for()

    def look_at_delay(self):
        if self.shape != 'delay':
            return
        ended = None
        for line in self.journal():
            what, key, _, at = line.split()
            if (what, key) == ('end', 'a.1'):
                ended = float(at)
            if (what, key) == ('start', 'b.1') and float(at) < ended + DELAY - 0.005:
                self.wrong.append('a delay was cut short: %s of %s s'
                                  % (float(at) - ended, DELAY))

    def compare(self, expected):
        """The run is over: it must have come to what a run without kills comes to."""
        if self.tasks() != expected:
            self.wrong.append('the result is not the right one: %s' % self.tasks())
        if self.construct in ('process', 'program'):
            # Killing a supervisor costs no process task that was released (semantics 7.6).
            # A reaction may run once for each failure that it reacts to (semantics 3.3).
            attempts, causes = self.attempts(), REACTIONS.get(self.shape, {})
            again = {key: number for key, number in self.starts().items()
                     if number > (attempts[causes[key], 'failure'] if key in causes else 1)
                     and expected[key][0] == 'success'}
            if again:
                self.wrong.append('processes ran again, though none died: %s' % again)
        return self


def reference(folder, shape, construct, synchronous='off'):
    """Run a flow without kills: (commits, seconds, expected)."""
    began = time.monotonic()
    trial = Trial(folder, shape, construct, synchronous).run([])
    if trial.wrong:
        raise AssertionError('without any kill: %s' % trial.wrong)
    with open(os.path.join(folder, 'commits')) as stream:
        return int(stream.read()), time.monotonic() - began, trial.tasks()


# What a forker is asked to do -----------------------------------------------------


def try_matrix(folder, shape, construct, when, part, parts):
    """Kill at each commit; and, every other time, kill three recoveries after that."""
    commits, _, expected = reference(os.path.join(folder, 'reference-%d' % part), shape, construct)
    plans = []
    for n in range(1, commits + 1):
        dice = random.Random('%s %s %s %d' % (shape, construct, when, n))
        plans.append([[when, n]])
        if (n + len(when)) % 2:
            plans.append([[when, n]] + [[dice.choice(['before', 'torn', 'after']),
                                         dice.randint(1, 4)] for _ in range(3)])
    return _tried(folder, shape, construct, [
        (number, plan, number) for number, plan in enumerate(plans)
        if number % parts == part], expected)


def try_moments(folder, seed, kills, part, parts):
    """Kill at random times, recoveries too, until there were so many kills."""
    dice = random.Random(seed * parts + part)
    answer = {'kills': 0, 'wrong': [], 'trials': 0}
    known = {}
    while answer['kills'] < kills and not answer['wrong'] and answer['trials'] < 50 * kills:
        shape = dice.choice(list(SHAPES))
        construct = dice.choice(['process', 'process', 'thread', 'inline', 'grouped', 'pool'])
        if (shape, construct) not in known:
            known[shape, construct] = reference(
                os.path.join(folder, 'reference-%d-%s-%s' % (part, shape, construct)),
                shape, construct, 'full')
        _, seconds, expected = known[shape, construct]
        plan = [['time', dice.uniform(0, seconds)] for _ in range(dice.randint(1, 4))]
        more = _tried(folder, shape, construct, [
            ('%d-%d' % (part, answer['trials']), plan, dice.random())], expected, 'full')
        answer = {key: answer[key] + more[key] for key in answer}
    return answer


def _tried(folder, shape, construct, plans, expected, synchronous='off'):
    answer = {'kills': 0, 'wrong': [], 'trials': 0}
    for name, plan, seed in plans:
        trial = Trial(os.path.join(folder, 'trial-%s' % name), shape, construct, synchronous, seed)
        trial.run(plan)
        if not trial.wrong:
            trial.compare(expected)
        answer['trials'] += 1
        answer['kills'] += trial.kills
        answer['wrong'] += ['%s, %s, plan %s: %s' % (shape, construct, json.dumps(plan), one)
                            for one in trial.wrong]
        if not trial.wrong:
            shutil.rmtree(trial.folder)
    return answer


def try_dose(folder, seed, iterations):
    """Kill half of all tasks, not the supervisors, 10 to 50 ms after their start; recover."""
    dice = random.Random(seed)
    trial = Trial(os.path.join(folder, 'dose'), '', 'process')
    answer = {'kills': 0, 'wrong': trial.wrong, 'trials': 1, 'runs': 0, 'successes': 0}
    code = 1
    while code == 1 and answer['runs'] < 60:
        mode = 'recover' if answer['runs'] else 'restart'
        answer['runs'] += 1
        pid = fork(trial.folder, functools.partial(run_dose, trial.folder, mode, iterations))
        code, kills = kill_half(trial, pid, dice)
        answer['kills'] += kills
        trial.look('tasks', mode)
        unlike = [one for one in trial.failures() if 'SIGKILL' not in one]
        if unlike:
            trial.wrong.append('failures that are none of ours: %s' % unlike[:3])
    trial.look_for_processes()
    answer['successes'] = len(trial.done)
    if code != 0:
        trial.wrong.append('exit code %d: %s' % (code, trial.errors()))
    return answer


def run_dose(folder, mode, iterations):
    """Run a flow of four process tasks in each iteration of a loop."""
    flow = sequent.Sequent(
        NAME, store=NotingStore(os.path.join(folder, 'kills.db')), run_mode=mode,
        logging_level='CRITICAL', config=dict(
            CONSTRUCTS['process'][0], max_concurrent=12, stop_on_exception=False, capture='file'))
    rows = flow.add_step('rows', loop=range(iterations), config={'max_concurrent': 8})
    make = Maker(folder, 'process')
    make.seconds = 0.05
    a = make.leaf(rows, 'a')
    b, c = make.leaf(rows, 'b', require=a), make.leaf(rows, 'c', require=a)
    make.leaf(rows, 'd', require=(b, c))
    return 0 if flow() else 1


def kill_half(trial, supervisor, dice):
    """Until the supervisor ends, kill half of what starts; return its exit code and the kills."""
    due, kills, read = [], 0, trial.read
    deadline = time.monotonic() + 280
    while time.monotonic() < deadline:
        lines = trial.journal()
        for words in map(str.split, lines[read:]):
            if words[0] == 'start' and dice.random() < 0.5:
                pid = int(words[2])
                due.append((float(words[3]) + dice.uniform(0.01, 0.05), pid, runtools.birth(pid)))
        read = len(lines)
        for one in [one for one in due if one[0] <= time.monotonic()]:
            due.remove(one)
            if one[2] is not None and runtools.birth(one[1]) == one[2]:
                os.kill(one[1], signal.SIGKILL)
                kills += 1
        ended, status = os.waitpid(supervisor, os.WNOHANG)
        if ended:
            return exit_code(status), kills
        select.select([], [], [], 0.003)
    raise _Late


def try_race(folder, starters, exclusive, rounds):
    """Let many supervisors start at one time, several times over; kill who has won.

    The first round is for a run of its own each, the further ones for the run that was killed;
    if runs are not exclusive, all are for a run that has failed.
    """
    trial = Trial(os.path.join(folder, 'race'), '', 'inline')
    answer = {'kills': 0, 'wrong': trial.wrong, 'starters': 0}
    if not exclusive:
        wait_for(fork(trial.folder, lambda: run_race(trial.folder, 'restart', '', False, None)))
    for number in range(rounds):
        mode = 'recover' if number or not exclusive else 'restart'
        gate, opener = os.pipe()
        pids = [fork(trial.folder, functools.partial(
            race, trial.folder, mode, 'r%d' % n if mode == 'restart' else '', exclusive, gate,
            opener)) for n in range(starters)]
        os.close(gate)
        os.close(opener)
        answer['starters'] += starters
        winners = judge(trial, pids, 'round %d' % number)
        for pid in winners:
            os.kill(pid, signal.SIGKILL)
            answer['kills'] += 1
        wait_for()
    return answer


def race(folder, mode, run_id, exclusive, gate, opener):
    """Wait for the start; then run a flow that never ends, or note why not."""
    os.close(opener)
    os.read(gate, 1)
    try:
        run_race(folder, mode, run_id, exclusive, signal.pause)
    except sequent.AlreadyRunningError as error:
        note(folder, 'refused', os.getpid(), str(error))
        return 75
    return 0


def run_race(folder, mode, run_id, exclusive, function):
    def one():
        note(folder, 'start', '', os.getpid())
        function()
    flow = sequent.Sequent(
        NAME, store=NotingStore(os.path.join(folder, 'kills.db')), run_mode=mode, run_id=run_id,
        logging_level='CRITICAL', config={'task_construct': 'inline', 'exclusive': exclusive})
    flow.add_step('a', func=one if function else fail)
    return 0 if flow() else 1


def fail():
    raise ValueError('to be recovered')


def judge(trial, pids, which):
    """Wait until each has won or was refused; return who has won."""
    ended = {}  # type: dict
    deadline = time.monotonic() + DEADLINE
    lines = []  # type: list
    while time.monotonic() < deadline:
        lines = [line.split(None, 2) for line in trial.journal()]
        winners = [int(words[1]) for words in lines
                   if words[0] == 'start' and int(words[1]) in pids]
        if len(winners) + len(ended) >= len(pids):
            break
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ended[pid] = exit_code(status)
        else:
            select.select([], [], [], 0.005)
    if len(winners) != 1 or set(ended.values()) != {75}:
        trial.wrong.append('%s: %d have won, the others ended with %s: %s' % (
            which, len(winners), sorted(set(ended.values())), trial.errors()))
    expected = re.compile(r"run '.+' of flow 'kills' is already running: pid %s on host '%s', "
                          r'started \d{4}-' % (winners and winners[0], re.escape(os.uname()[1])))
    for words in lines:
        if words[0] == 'refused' and int(words[1]) in pids and not expected.search(words[2]):
            trial.wrong.append('%s: a refusal that does not tell by whom: %s' % (which, words[2]))
    return [pid for pid in pids if pid not in ended]


REQUESTS = {one.__name__: one for one in (try_matrix, try_moments, try_dose, try_race)}


def serve():
    """Answer requests until the end of standard input."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), 'this process cannot adopt orphans')
    signal.signal(signal.SIGALRM, _raise_late)
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = REQUESTS[request.pop('what')](**request)
        except BaseException:
            answer = {'error': traceback.format_exc()}
        answers.write(json.dumps(answer) + '\n')
        answers.flush()


class Forkers:
    """Two forkers that share the work."""

    def __init__(self, folder):
        self.processes = [subprocess.Popen(
            [sys.executable, os.path.abspath(__file__)], cwd=str(folder), stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, universal_newlines=True) for _ in range(2)]

    def ask(self, what, **given):
        """Let each do its part; return the sum of their answers."""
        for part, one in enumerate(self.processes):
            self._send(one, dict(given, what=what, part=part, parts=len(self.processes)))
        answers = [self._receive(one) for one in self.processes]
        return {key: sum((one[key] for one in answers[1:]), answers[0][key])
                for key in answers[0]}

    def ask_one(self, what, **given):
        """Let one of them do it all."""
        self._send(self.processes[0], dict(given, what=what))
        return self._receive(self.processes[0])

    @staticmethod
    def _send(process, request):
        process.stdin.write(json.dumps(request) + '\n')
        process.stdin.flush()

    @staticmethod
    def _receive(process):
        answer = json.loads(process.stdout.readline() or '{"error": "the forker has died"}')
        if 'error' in answer:
            raise AssertionError(answer['error'])
        return answer

    def close(self):
        for one in self.processes:
            one.communicate()


if __name__ == '__main__':
    serve()
