"""A slow, obvious model of what a flow means, to compare the engine with.

Written from the description of the semantics (the numbers in the comments are its sections), it
keeps a plain list of tasks and of open iterations and works everything else out from them again at
every step. Nothing here is fast, and nothing is shared with the engine.

It is driven from outside: `Reference.running` tells what runs now, `finish` ends one of these,
`advance` goes on to the next due time, and `result` tells how everything stands.

Where the semantics leave room, this is what is meant:

a.  (3.6) A step *waits* for an outer step when it has not started and its expression mentions a
    status of that step that was not raised yet; what the rest of the expression says does not
    matter. In an iteration that is stopped only reactions can still start, so a step waits there
    only for `failure` and `complete`, or when it mentions those of a step that has failed; and
    not when its requirement holds already without any. The status *can still be raised* as long
    as the outer step is not over, and the iteration in which it stands is alive: that is,
    something in it is running, ready or delayed and was not dropped, or something inside it waits
    for a status still further out that can itself still be raised.
b.  (3.6) First all iterations end that wait for nothing unfinished. When there is none left, and
    something is awaited only from iterations that are not alive any more, the innermost of the
    iterations that wait for it end together; then the statuses of the containers that are
    thereby over are raised, in the order in which the steps were added; those with more items
    start their next iteration; then it goes on. So an outer iteration ends only after the inner
    ones, and after what requires their statuses had its chance. What a stop leaves idle, and
    what waits for nothing, ends together, too, before the statuses of what is thereby over are
    raised. Of iterations that end together, all end first; then the failures in each are asked
    about (r), as the steps were added, and by sequence; then the next iterations start.
c.  (1.3) A leaf with a loop is a container, whose items are tasks of the same path one level down.
    Each item acquires the pools for itself; the delay counts once, before the loop; items run one
    after another unless `max_concurrent` is set on the step; nothing can mention the status of an
    item, so its failure is made good by tolerance, or as the failure of the whole.
d.  (4.2) Containers, and leaves with nothing to call, take no slot of the flow's
    `max_concurrent`; when they acquire nothing either, they start the moment their requirement
    holds. When all that follows from this is done, what else became ready in the meantime is put
    in order: as the steps were added, the tasks of one step by sequence. What becomes ready
    because one of those became ready or started comes after them.
e.  (4.3) A pool is given out strictly in the order in which tasks became ready, also when the
    first that asks for it cannot start for another reason; tasks that do not need that pool may
    go ahead of it.
f.  (7.2) What a recovery passes over raises ready, active, success and complete as soon as its
    requirement holds, without delay or slot, and changes the pools as it did when it ran. A
    container that had succeeded is passed over as a whole, unless a step in it runs again after
    a success, keeps or gives back resources of others, or requires a step outside of it (that
    may be raised now though it was not then), or a task in it is recorded with anything else
    than success: it is to run, or counts as success now, and what did not start for that reason
    may start. Any other container is gone through again, whatever its own mapping says. A due
    time that was recorded stays (4.4), unless what runs again had succeeded.
g.  (4.3) When nothing runs, nothing is delayed and all that is ready waits for resources, the
    first in ready order fails; that failure is treated like any. Not so while one of them waits
    only for a pool that is counted outside the run.
h.  (3.4) What became ready in the moment of a stop, and was not stored yet, was never ready. A
    container that is stopped from further out, and has not failed, succeeds if the
    stop kept nothing in it from starting: nothing was dropped, no requirement came to hold
    afterwards, none waited for something outside of it that was not over, and its loop is known
    to have no more items. Otherwise it is not complete: when
    nothing in it runs any more it gives back its resources, raises nothing and stays active, to
    be gone through again by a recovery.
i.  (1.4) When a loop raises, there are no more items; iterations in flight go on, and the
    container fails when they are over.
j.  (3.4) A failure is expected when a handler mentions it, whether or not that handler can still
    start, or has already ended.
k.  (3.1) An attempt that fails is tried again when attempts are left in this run and its
    iteration is not stopped. It raises nothing, gives back just what it acquired (not more than
    is out), and waits like a delayed task, whatever else its step says about delays; ready and
    active were raised. What fails for want of resources, or for what it released after a
    success, is not tried again.
l.  (3.4) What waits for its next attempt, be it for its time, for a slot or for resources, when
    its iteration is stopped counts as failed then and there, after the stop has gone outward as
    far as it goes; more of these in the order in which their iterations started. It is stored as
    it was, so for h it was dropped. What waits only because an earlier run left a due time is
    dropped without a failure.
m.  (3.3) How many failed iterations a container bears: a number, or a share of the length of its
    loop, rounded down. An iteration counts as failed once, when something directly in it fails
    unexpectedly, or at its end (r). It is borne when it is not one too many; further failures in
    it are borne until another is one too many. The stop that follows from a borne failure is one
    of this iteration alone; so is a stop that comes from further in, if the container could bear
    the failure of this iteration now, whatever may be on its way in others. Nothing is borne by a
    container that has failed already, be it because its loop raised (i).
n.  (3.3) A share of a loop whose length is not known beforehand: all is borne; the container
    fails at its end if too many of the iterations that started had failed.
o.  (3.4) What was dropped in an iteration that was stopped alone does not count for h; what was
    dropped in it by an earlier stop from further out does. An inner container is stopped from
    further out either way.
p.  (3.4) Whether a step is a reaction is decided when its requirement comes to hold, and stays so.
    `failure` and `complete` of all steps that failed are taken away at once, also of steps
    further out; the success of a reaction does not make a reaction of what follows from it.
q.  (3.3, 7.3) In a recovery every failure is a new one, as what had failed is run again or counts
    as success. So nothing that is recorded of a reaction, or inside a reaction, counts then: not
    its success, whatever its mapping says, and not its due time. In a run that is continued (7.5)
    counts what is not older than the failures. A step that was passed over already when the
    failure came does not start a second time (2.3), and has handled nothing.
r.  (3.4) At the end of an iteration each failure in it that was expected, and not made good,
    counts as an unexpected failure: it fails the container, or is borne, and stops what the
    step's own `stop_on_exception` says, iterations in flight included.
s.  (3.3) What happens in one turn happens in some order, too: a handler that began in the turn in
    which the failure came later has not handled it. A container, or a leaf with a loop, begins
    when it becomes active.
t.  (3.4) A task in a stopped container that waits for its next attempt is dropped, and one that
    fails then is not tried again, unless it is a reaction or inside of one.
u.  (4.13) A construct that queues takes as many tasks as it runs, and some more. Such a task
    starts without a free slot as long as nothing else runs or is ready, held tasks left out, but
    tasks that may do so, too: those of such a construct that acquire nothing, that no cap holds
    back, and of which no step requires that they are active, or any status from further in.
"""

import collections
import fnmatch
import typing
from fractions import Fraction

from flows import atoms, holds

DEFAULT_RECOVERY = {'ready': 'rerun', 'active': 'rerun', 'failure': 'rerun', 'success': 'skip'}


class Past(typing.NamedTuple):
    """What earlier supervisors left of a task: see `Reference`."""

    status: str
    due: typing.Optional[int] = None
    run: int = 0
    attempt: int = 1
    began: typing.Optional[int] = None
    failed_at: typing.Optional[int] = None


class Task:
    """One execution of one step at one sequence (1.3)."""

    def __init__(self, node, iteration, sequence, kind):
        self.node = node
        self.iteration = iteration      # in which it stands; None: the flow itself
        self.sequence = sequence        # a tuple of ints
        self.kind = kind                # 'leaf', 'container', or 'loop' (a leaf with a loop)
        self.status = None              # as it is stored
        self.attempt = 1                # the number of the present or next one
        self.raised = set()
        self.over = False
        self.run = None                 # the number of the run in which it did what it did
        self.floor = 0                  # what is recorded of it counts from this run on
        self.skipped = False            # it was not run, it was passed over
        self.reaction = False           # it started because something failed (3.4)
        self.begun = False              # it had begun before the run was continued (7.5)
        self.had_ended = False          # ... and had succeeded, but is gone through again
        self.began = None               # when its latest attempt did, in the order of events
        self.failed_at = None           # when it failed, in the same order
        self.reacts_to = ()             # ... and what had failed when it began
        self.again = False              # something runs again in it that had succeeded
        self.borne = False              # it failed, and the loop around it bears that
        self.delayed = False            # now, by its step or by a retry
        self.waiting = False            # ... for its next attempt
        self.dropped = False            # it counts as failed while it waited for that
        self.stored = False             # before the present turn
        self.due = None
        self.place = None               # its place in the ready order: a tuple
        self.opened = 0                 # of a container: the iterations that were started
        self.exhausted = False          # ... its loop has no more items
        self.failed = False             # ... something in it failed and was not made good
        self.opening = False            # ... its loop is to be asked for its next item
        self.stopped = False            # ... nothing new starts in it
        self.cut = False                # ... a stop kept something in it from starting
        self.failures = 0               # ... its iterations that failed

    @property
    def name(self):
        return self.node.path, '.'.join(map(str, self.sequence))

    @property
    def running(self):
        return self.kind == 'leaf' and self.status == 'active' and not self.over

    @property
    def spared(self):
        """3.4: no stop further out concerns a reaction, or what is inside one."""
        return self.reaction or self.iteration is not None and self.iteration.task.spared

    @property
    def held_back(self):
        """3.4: a stop keeps it from starting, and a container from starting more in it."""
        return not (self.reaction or self.begun) and (
            self.iteration is not None and self.iteration.stopped)


class Iteration:
    """One iteration of a container (1.3); of the flow there is one, at sequence 1."""

    def __init__(self, task, sequence):
        self.task = task                # the container's
        self.sequence = sequence
        self.failed = False
        self.halted = False             # stopped alone, not by a stop of what is around it

    def around(self):
        """Return this iteration and those around it, innermost first."""
        found, iteration = [], self
        while iteration is not None:
            found.append(iteration)
            iteration = iteration.task.iteration
        return found

    @property
    def stopped(self):
        """3.4: a stop counts for everything inside what is stopped, except for reactions."""
        return self.halted or self.task.stopped or self.task.held_back


def _order_of_addition(task):
    """4.2: ties go in the order in which steps were added; tasks of one step by sequence."""
    return getattr(task.node, 'index', -1), task.sequence


class Reference:
    """One run, or one recovery of a run, of a described flow (`flows.Flow`).

    Args:
        flow: the flow.
        earlier: what earlier supervisors left: ``{(path, sequence): Past or status}``; empty for
            a first run.
        recovery: the number of this run, from 0: decides which loops raise.
        now: the time at which it begins.
        continued: this is not a recovery: the run with that number goes on (7.5).
        events: how many events there were before, as `Past` numbers them.
        patterns: of the paths that are held from the beginning.
    """

    def __init__(self, flow, earlier=None, recovery=0, now=0, continued=False, events=0,
                 patterns=()):
        self.flow = flow
        self.earlier = {name: one if isinstance(one, Past) else Past(one)
                        for name, one in (earlier or {}).items()}
        self.recovery = recovery
        self.continued = continued
        self.now = now
        self.rounds = 0                 # how often tasks were put in order
        self.out = {pool: 0 for pool in flow.pools}
        self.limits = dict(flow.pools)          # outside the run they change
        self.refused = False            # something waits only for a pool outside the run
        self.tasks = {}                 # (path, sequence as a tuple): Task, in order of arrival
        self.iterations = []            # the open ones, in the order in which they started
        self.stops = 0                  # how often a failure stopped something
        self.given_up = 0               # how many iterations ended though they awaited something
        self.deadlocks = 0              # how often something failed for want of resources
        self.tried = set()              # (path, sequence, attempt) of what was tried again
        self.patterns = set(patterns)           # of the paths that are held
        self.exceeded = set()           # by which kinds of tolerance containers failed
        self.events = events            # to tell what came first
        self._kept = set()
        self._not_run = collections.Counter()
        self.root = Task(flow.root, None, (), 'container')
        self.root.status = 'active'
        self.root.opening = True
        self._settle()

    # What is asked and said from outside

    def running(self):
        """Return the (path, sequence) of every leaf that runs now."""
        return {task.name for task in self.tasks.values() if task.running}

    def finish(self, path, sequence, ok):
        """End a running leaf, with success or failure."""
        task = self._running_task(path, sequence)
        if not ok and self._is_tried_again(task):
            self._try_again(task)
        else:
            self._end(task, ok)
        self._settle()

    def tries_again(self, path, sequence):
        """Tell whether a running leaf would be tried again if it failed now."""
        return self._is_tried_again(self._running_task(path, sequence))

    def attempt(self, path, sequence):
        """Return the number of the attempt at a running leaf, from 1."""
        return self._running_task(path, sequence).attempt

    def _running_task(self, path, sequence):
        task = self.tasks[path, tuple(map(int, sequence.split('.')))]
        assert task.running, '%s at %s does not run' % (path, sequence)
        return task

    def next_due(self):
        """Return the time at which the next delay is over, or None."""
        return min([task.due for task in self.tasks.values() if self._is_delayed(task)],
                   default=None)

    def advance(self, now=None):
        """Go on to the next due time, or to a given time before that."""
        self.now = self.next_due() if now is None else now
        for task in list(self.tasks.values()):
            if self._is_delayed(task) and task.due <= self.now:
                self._make_ready(task)
        self._settle()

    def resize(self, pool, limit):
        """A pool outside the run has so many units for this run now."""
        self.limits[pool] = limit
        self._settle()

    def hold(self, pattern):
        """What matches, or is inside what does, does not start."""
        self.patterns.add(pattern)
        self._settle()

    def unhold(self, pattern):
        """What nothing holds any more becomes ready anew."""
        held = self.held()
        self.patterns.discard(pattern)
        for task in self.tasks.values():
            if task.name in held and not self._is_held(task):
                task.place, task.stored = None, True
        self._settle()

    def held(self):
        """Return the (path, sequence) of every ready task that is held."""
        return {task.name for task in self.tasks.values()
                if self._is_ready(task) and self._is_held(task)}

    def _is_held(self, task):
        return any(fnmatch.fnmatchcase(node.path, pattern) for pattern in self.patterns
                   for node in [task.node, *task.node.above()])

    def over(self):
        """Tell whether there is nothing left to do."""
        return self.root.over

    def statuses(self):
        """Return the stored status of every task so far, ``{(path, sequence): status}``."""
        return {task.name: task.status for task in self.tasks.values()}

    def dues(self):
        """Return the due times of the tasks that have one, ``{(path, sequence): time}``."""
        return {task.name: task.due for task in self.tasks.values() if task.due is not None}

    def failures(self):
        """Return the (path, sequence) of every task that failed, or counts as failed, now."""
        return {task.name for task in self.tasks.values()
                if task.failed_at is not None and not task.skipped}

    def order(self):
        """Return {(path, sequence): (when it began, when it failed)} in the order of events."""
        return {task.name: (task.began, task.failed_at) for task in self.tasks.values()}

    def made_good(self):
        """Return the (path, sequence) of every failure that is made good so far (3.3)."""
        return {task.name for task in self.tasks.values()
                if task.failed_at is not None and not task.skipped and self._is_made_good(task)}

    def handled(self):
        """Return the (path, sequence) of every failure that a handler has made good so far."""
        return {task.name for task in self.tasks.values()
                if task.failed_at is not None and self._is_handled(task)}

    def reactions(self):
        """Return the (path, sequence) of every step that started because something failed."""
        return {task.name for task in self.tasks.values() if task.reaction}

    def spared(self):
        """Return the (path, sequence) of every reaction that no stop kept from running."""
        return {task.name for task in self.tasks.values()
                if task.reaction and task.iteration.stopped}

    def repeated(self):
        """Return the (path, sequence) of what had succeeded and reacts to a new failure (7.3)."""
        return {task.name for task in self.tasks.values()
                if task.spared and not task.skipped and task.name in self.earlier
                and self.earlier[task.name].status == 'success'}

    def in_vain(self):
        """Return (reaction, failure) pairs of names: that reaction began, and handles nothing."""
        return {(task.name, failed.name) for task in self.tasks.values()
                for failed in task.reacts_to if not self._handles(task.node)
                and not self._is_made_good(failed)}

    def kept(self):
        """Return what keeps its success though it required what runs again before (7.1)."""
        return set(self._kept)

    def not_run(self):
        """Return {path: how often} of the steps whose requirement never came to hold (3.5).

        Those are left out that wait for a failure that did not happen.
        """
        return dict(self._not_run)

    def borne(self):
        """Return the (path, sequence) of every task whose failure was borne (3.3)."""
        return {task.name for task in self.tasks.values() if task.borne and not task.skipped}

    def dropped(self):
        """Return what counts as failed because a stop came while it waited for a retry (3.4)."""
        return {task.name for task in self.tasks.values() if task.dropped}

    def skipped(self):
        """Return the (path, sequence) of every task that a recovery did not run again."""
        return {task.name for task in self.tasks.values() if task.skipped}

    def result(self):
        """Return whether the flow succeeded, and `statuses`."""
        assert self.over()
        return not self.root.failed, self.statuses()

    # What happens of itself

    def _settle(self):
        """Do what follows from what has happened, until nothing more does."""
        while not self.root.over and (
                self._begin_what_holds()
                or self._start_what_needs_nothing()
                or self._ask_loops()
                or self._end_stopped()
                or self._end_containers()
                or self._end_iterations(self._ending(self._awaits_unfinished))
                or self._end_together(self._awaits_raisable)
                or self._put_in_order()
                or self._start_what_can()
                or self._fail_if_stuck()):
            pass

    # Requirements (2)

    def _steps(self, iteration):
        """Return the steps of an iteration, with the kind of their tasks."""
        if iteration.task.kind == 'loop':
            return [(iteration.task.node, 'leaf')]
        return [(node, 'container' if node.children else
                 'leaf' if node.loop is None else 'loop') for node in iteration.task.node.children]

    def _unstarted(self, iteration):
        """Return the steps of an iteration that did not start there (2.3: they do so once)."""
        return [(node, kind) for node, kind in self._steps(iteration)
                if (node.path, iteration.sequence) not in self.tasks]

    def _mentioned_task(self, path, sequence):
        """2.5: a status is read at the sequence of the step that has it; None: not started."""
        return self.tasks.get((path, sequence[:self.flow.nodes[path].depth]))

    def _holds(self, node, sequence):
        def is_raised(path, status):
            task = self._mentioned_task(path, sequence)
            return task is not None and status in task.raised
        is_item = len(sequence) > node.depth
        return is_item or holds(node.require, is_raised)

    def _required_by(self, task):
        """Return the tasks of which a task's requirement mentions some status."""
        found = [self._mentioned_task(path, task.sequence) for path, _ in atoms(task.node.require)]
        return [one for one in found if one is not None]

    def _failures_before(self, task):
        """Return the failed tasks whose `failure` or `complete` a task's requirement mentions."""
        found = [self._mentioned_task(path, task.sequence) for path, status
                 in atoms(task.node.require) if status in ('failure', 'complete')]
        return [one for one in found if one is not None and one.failed_at is not None]

    def _is_reaction(self, node, sequence):
        """3.4: would what holds not hold without `failure` and `complete` of what failed?"""
        def is_raised_anyway(path, status):
            task = self._mentioned_task(path, sequence)
            if task is None or status not in task.raised:
                return False
            return not ('failure' in task.raised and status in ('failure', 'complete'))
        is_item = len(sequence) > node.depth
        return not is_item and not holds(node.require, is_raised_anyway)

    def _begin_what_holds(self):
        """2.3: a step starts the first time its expression holds."""
        begun = []
        for iteration in self.iterations:
            for node, kind in self._unstarted(iteration):
                if self._holds(node, iteration.sequence):
                    task = Task(node, iteration, iteration.sequence, kind)
                    task.reaction = self._is_reaction(node, iteration.sequence)
                    task.floor = iteration.task.floor
                    if task.reaction:   # 7.3: what it did about earlier failures does not count
                        task.floor = max([task.floor] + [
                            failed.run for failed in self._failures_before(task)])
                    task.begun = self._had_begun(task)
                    if not task.held_back:
                        begun.append(task)
        for task in begun:
            if not task.held_back:      # still: what is passed over may have failed
                self._begin(task)
        return bool(begun)

    def _had_begun(self, task):
        """7.5: what is over stays over, and what was active goes on, whatever stops."""
        past = self.earlier.get(task.name)
        return (self.continued and past is not None and past.run >= task.floor
                and past.status != 'ready')

    def _begin(self, task):
        self.tasks[task.node.path, task.sequence] = task
        past = self.earlier.get(task.name)
        if past is None or past.run < task.floor:
            past = Past(None)
        is_item = task.iteration.task.kind == 'loop'
        task.run = self.recovery
        task.had_ended = self.continued and past.status == 'success'
        if self.continued and past.status == 'failure':
            self._pass_over(task, past, 'failure')
            return
        if self._is_skipped(task, past.status):
            if past.status == 'success' and any(one.again for one in self._required_by(task)):
                self._kept.add(task.name)       # 7.1
            self._pass_over(task, past, 'success')
            return
        if self.continued and task.kind == 'leaf' and past.status:
            task.attempt = past.attempt + (past.status == 'active')         # 7.5
            task.waiting = task.stored = past.status == 'ready' and past.attempt > 1
        due = past.due
        if due is None or past.status == 'success':
            due = self.now + task.node.delay if task.node.delay and not is_item else None
        task.due = due                                                        # 4.4
        self._await_due(task)

    def _await_due(self, task):
        if task.due is not None and task.due > self.now:
            task.status = 'ready'       # stored, but not raised before the delay is over
            task.delayed = task.stored = True
        else:
            self._make_ready(task)

    def _make_ready(self, task):
        task.status = 'ready'
        task.delayed = False

    def _is_delayed(self, task):
        return task.delayed and not task.held_back

    def _is_ready(self, task):
        return task.status == 'ready' and not (task.delayed or task.over or task.held_back)

    # Retries (3.1)

    def _is_tried_again(self, task):
        return (task.attempt <= task.node.retries and task.node.retry_delay is not None
                and not task.held_back)

    def _try_again(self, task):
        self.tried.add(task.name + (task.attempt,))
        for pool, n in self._acquired_by(task):
            self.out[pool] = max(0, self.out[pool] - n)
        task.attempt += 1
        task.place = None
        task.stored = task.waiting = True
        task.due = self.now + task.node.retry_delay
        self._await_due(task)

    # Recovery (7)

    def _replay(self, node, status):
        """7.2: a container's mapping holds for what is in it and has none for that status."""
        for one in [node] + node.above():
            if status in one.recovery:
                return one.recovery[status]
        return DEFAULT_RECOVERY[status]

    def _is_skipped(self, task, status):
        if status is None:
            return False
        if task.kind == 'leaf':
            return status == 'success' if self.continued else (
                self._replay(task.node, status) == 'skip')
        if status != 'success' or self._left_in(task) and not self.continued:
            return False
        inside = [task.node] + task.node.below()
        return not any(
            self._replay(node, status) == 'rerun'
            or node.releases is not None
            or node is not task.node and any(self.flow.nodes[path] not in inside
                                             for path, _ in atoms(node.require))
            for node in inside)

    def _left_in(self, task):
        """Return the tasks in a container, at any depth, that did not succeed (7.2).

        What was not reached any more when the container was gone through last does not count.
        """
        path, at = task.node.path, task.name[1] + '.'
        last = self.earlier[task.name].run
        return [name for name, past in self.earlier.items()
                if past.status != 'success' and past.run >= last and name[1].startswith(at)
                and (name[0] == path or name[0].startswith(path + '_'))]

    def _pass_over(self, task, past, status):
        """7.2, 7.5: what it did stands; of what failed, that a continued run goes on with it."""
        task.status = status
        task.over = task.skipped = True
        task.began, task.run = past.began, past.run
        task.raised.update(['ready', 'active', status, 'complete'])
        for pool, n in self._acquired_by(task):
            self.out[pool] += n
        for pool, n in self._released_by(task):
            self.out[pool] = max(0, self.out[pool] - n)
        if status == 'failure':
            task.failed_at = past.failed_at
            if not self._is_expected(task):
                self._fail_iteration(task)

    # Starting (4)

    def _acquired_by(self, task):
        return task.node.acquires if task.kind != 'loop' else []

    def _released_by(self, task):
        if task.kind == 'loop':
            return []
        return task.node.acquires if task.node.releases is None else task.node.releases

    def _unplaced(self):
        """Return what became ready and was not put in order yet, as the steps were added (4.2)."""
        return sorted([task for task in self.tasks.values()
                       if self._is_ready(task) and task.place is None],
                      key=_order_of_addition)

    def _ready(self):
        """Return what is ready, in ready order (4.2)."""
        return sorted([task for task in self.tasks.values()
                       if self._is_ready(task) and task.place], key=lambda task: task.place)

    def _has_function(self, task):
        return task.kind == 'leaf' and task.node.func

    def _start_what_needs_nothing(self):
        found = [task for task in self._unplaced()
                 if not self._has_function(task) and not self._acquired_by(task)
                 and not self._is_held(task)]
        for task in found:
            task.raised.add('ready')
            self._start(task)
        return bool(found)

    def _put_in_order(self):
        fresh = self._unplaced()
        self.rounds += 1
        for i, task in enumerate(fresh):
            task.raised.add('ready')
            task.place = self.rounds, i
        return bool(fresh)

    def _start_what_can(self):
        """Start the first in ready order that can (4.1, 4.3)."""
        asked = set()
        self.refused = False
        for task in self._ready():
            if self._is_held(task):
                continue
            pools = dict(self._acquired_by(task))
            short = {pool for pool, n in pools.items() if self.out[pool] + n > self.limits[pool]}
            if not asked & set(pools) and self._has_slot(task):
                if not short:
                    self._start(task)
                    return True
                if short <= self.flow.outside:
                    self.refused = True
            asked.update(pools)
        return False

    def _has_slot(self, task):
        if not self._has_function(task):
            return True
        running = [one for one in self.tasks.values() if one.running]
        same = [one for one in running if one.node is task.node]
        cap, own = self.flow.max_concurrent, task.node.max_concurrent or 0
        if task.node.construct == 'inline' and any(
                one.node.construct == 'inline' for one in running):
            return False        # 4.12
        if task.node.construct == 'queues' and self.flow.queue is not None:
            queued = [one for one in running if one.node.construct == 'queues']
            if len(queued) >= sum(self.flow.queue):
                return False
            if len(queued) == len(running) and all(
                    self._may_queue(one) for one in self._ready() if not self._is_held(one)):
                return True     # u
        return (cap < 1 or len(running) < cap) and (own < 1 or len(same) < own)

    def _may_queue(self, task):
        """Tell whether a task may be queued ahead of a slot: see u."""
        node, is_item = task.node, task.iteration.task.kind == 'loop'
        awaited = not is_item and any(
            path == node.path and (status == 'active' or other.parent is not node.parent)
            for other in self.flow.nodes.values() for path, status in atoms(other.require))
        return (self._has_function(task) and node.construct == 'queues'
                and not (node.acquires or awaited)
                and (node.max_concurrent is None or node.max_concurrent < 1
                     or all(one.max_concurrent in (None, 1) for one in node.above())))

    def _start(self, task):
        task.status = 'active'
        task.begun = False              # from now on as any
        task.began = self._next_event()
        if task.reaction:
            task.reacts_to = self._failures_before(task)
        if self._has_function(task):
            self._note_again(task)
        task.waiting = False
        task.raised.add('active')
        for pool, n in self._acquired_by(task):
            self.out[pool] += n
        if task.kind != 'leaf':
            task.opening = True
        elif not task.node.func:
            self._end(task, True)       # 1.1

    def _note_again(self, task):
        """7.1: a function runs whose earlier success, or that of a container around, counted."""
        while task is not self.root:
            if task.name in self.earlier and self.earlier[task.name].status == 'success':
                task.again = True
            task = task.iteration.task

    def _fail_if_stuck(self):
        ready = self._ready()
        tasks = self.tasks.values()
        if not ready or self.refused or self.held() or any(
                task.running or self._is_delayed(task) for task in tasks):
            return False
        self.deadlocks += 1
        self._fail(ready[0])
        return True

    # Iterations (1.4, 3.6)

    def _open_iterations(self, task):
        return [iteration for iteration in self.iterations if iteration.task is task]

    def _may_open(self, task):
        """Tell whether a container may have another iteration in flight now."""
        limit = 1 if task.node.max_concurrent is None else task.node.max_concurrent
        return not task.exhausted and not self._is_stopped(task) and (
            limit < 1 or len(self._open_iterations(task)) < limit)

    def _ask_loops(self):
        """Start the iterations that may be in flight; each asks its loop for an item (1.4)."""
        opening = [task for task in [self.root] + list(self.tasks.values()) if task.opening]
        for task in opening:
            if self._has_next_item(task):
                if not self._is_stopped(task):
                    task.exhausted = task.node.loop is None
                    task.opened += 1
                    self.iterations.append(Iteration(task, task.sequence + (task.opened,)))
            else:
                task.exhausted = True
            task.opening = self._may_open(task)
        return bool(opening)

    def _has_next_item(self, task):
        k, runs = task.node.loop_fails or (0, 0)
        if task.opened + 1 == k and self.recovery < runs:
            task.failed = True
            return False
        return task.opened < (1 if task.node.loop is None else task.node.loop)

    def _tasks_in(self, iteration):
        return [task for task in self.tasks.values() if task.iteration is iteration]

    def _is_idle(self, iteration):
        """Tell whether everything that started in an iteration is over, or dropped by a stop."""
        return all(task.over or (task.held_back and task.status == 'ready')
                   for task in self._tasks_in(iteration))

    def _awaited(self, iteration):
        """Return the outer iterations from which steps of this one wait for something.

        What was raised, and what a step that is over did not raise, is not awaited; what a
        container does not raise that a stop left incomplete is, for a recovery may raise it.
        """
        return [outer for _, _, outer in self._awaited_atoms(iteration)]

    def _awaited_still(self, iteration):
        """Return the same where it can still start something: in what is stopped, reactions."""
        return [outer for node, status, outer in self._awaited_atoms(iteration)
                if not iteration.stopped or not self._holds(node, iteration.sequence) and (
                    status in ('failure', 'complete')
                    or self._mentions_a_failure(node, iteration.sequence))]

    def _awaited_atoms(self, iteration):
        """Return (step, status, outer iteration in which something may raise it) of what waits."""
        if iteration.task.kind == 'loop':
            return []
        found = []
        for node, _ in self._unstarted(iteration):
            for path, status in atoms(node.require):
                depth = self.flow.nodes[path].depth
                task = self._mentioned_task(path, iteration.sequence)
                raised = task.raised if task else set()
                if depth == node.depth or raised & {status, 'complete'}:
                    continue
                found.extend((node, status, outer) for outer in iteration.around()
                             if len(outer.sequence) == depth)
        return found

    def _waits_for_a_failure(self, node, iteration, asked=()):
        """3.5: could its requirement not hold, because of a failure that did not happen?

        What waits for a step beside it that waits for such a failure waits for it, too.
        """
        unstarted = [one for one, _ in self._unstarted(iteration) if one not in asked]

        def may_hold(path, status):
            task = self._mentioned_task(path, iteration.sequence)
            if task is not None and status in task.raised:
                return True
            other = self.flow.nodes[path]
            return status != 'failure' and not (other in unstarted and self._waits_for_a_failure(
                other, iteration, asked + (node,)))
        return not holds(node.require, may_hold)

    def _mentions_a_failure(self, node, sequence):
        """Tell whether a requirement mentions `failure` or `complete` of what has failed."""
        tasks = [self._mentioned_task(path, sequence) for path, status in atoms(node.require)
                 if status in ('failure', 'complete')]
        return any(task is not None and 'failure' in task.raised for task in tasks)

    def _is_alive(self, iteration):
        if any(iteration in task.iteration.around() and
               (task.running or self._is_ready(task) or self._is_delayed(task))
               for task in self.tasks.values()):
            return True
        return any(self._is_alive(outer) for inner in self.iterations
                   if iteration in inner.around()
                   for outer in self._awaited_still(inner)
                   if len(outer.sequence) < len(iteration.sequence))

    def _awaits_unfinished(self, iteration):
        return bool(self._awaited_still(iteration))

    def _awaits_raisable(self, iteration):
        return any(map(self._is_alive, self._awaited_still(iteration)))

    def _was_cut(self, iteration):
        """Tell whether a stop kept something in an iteration from starting: see h."""
        return iteration.stopped and not iteration.halted and (
            any(task.status in ('ready', 'active') for task in self._tasks_in(iteration))
            or bool(self._awaited(iteration))
            or any(self._holds(node, iteration.sequence)
                   for node, _ in self._unstarted(iteration)))

    def _ending(self, must_stay):
        return [iteration for iteration in self.iterations
                if self._is_idle(iteration) and not must_stay(iteration)]

    def _end_stopped(self):
        return self._end_iterations([iteration for iteration in self.iterations
                                     if iteration.stopped and self._is_idle(iteration)
                                     and not self._awaits_unfinished(iteration)])

    def _end_together(self, must_stay):
        ended = self._ending(must_stay)
        self.given_up += len(ended)
        return self._end_iterations(ended)

    def _end_iterations(self, ended):
        ended = sorted(ended, key=lambda one: (_order_of_addition(one.task)[0], one.sequence))
        self.iterations = [one for one in self.iterations if one not in ended]
        for iteration in ended:
            if self._was_cut(iteration):
                iteration.task.cut = True
            self._not_run.update(
                node.path for node, _ in self._unstarted(iteration)
                if not self._holds(node, iteration.sequence)
                and not self._waits_for_a_failure(node, iteration))
        for iteration in ended:
            self._ask_what_was_made_good(iteration)
        for iteration in ended:
            iteration.task.opening = self._may_open(iteration.task)
        return bool(ended)

    def _end_containers(self):
        """Raise the statuses of the containers that are over, as their steps were added."""
        over = [task for task in [self.root] + list(self.tasks.values())
                if task.kind != 'leaf' and task.status == 'active' and not task.over
                and not task.opening and not self._open_iterations(task)]
        for task in sorted(over, key=_order_of_addition):
            self._end_container(task)
        return bool(over)

    def _is_stopped(self, task):
        """Tell whether a container starts nothing more but reactions."""
        return task.stopped or task.held_back

    def _end_container(self, task):
        if self._had_too_many_failures(task):
            task.failed = True
        if task is self.root:
            task.over = True
        elif task.failed or task.had_ended or (task.exhausted and not task.cut):
            self._end(task, not task.failed)
        else:
            task.over = True            # stays active: see h
            self._give_back(task)

    # Ends and failures (3)

    def _give_back(self, task):
        """4.3; return False if more would be given back than is out: then nothing is."""
        released = self._released_by(task)
        if any(n > self.out[pool] for pool, n in released):
            return False
        for pool, n in released:
            self.out[pool] -= n
        return True

    def _end(self, task, ok):
        if self._give_back(task) and ok:
            task.over = True
            task.status = 'success'
            task.raised.update(['success', 'complete'])
        else:
            self._fail(task)

    def _fail(self, task):
        task.status = 'failure'
        task.waiting = False
        self._count_as_failed(task)

    def _count_as_failed(self, task):
        task.over = True
        task.failed_at = self._next_event()
        task.raised.update(['failure', 'complete'])
        if not self._is_expected(task):
            self._fail_iteration(task)

    def _ask_what_was_made_good(self, iteration):
        """3.4: what was expected and is not made good at the end of its iteration counts."""
        for task in self._tasks_in(iteration):
            if task.failed_at is not None and self._is_expected(task) \
                    and not self._is_handled(task):
                self._fail_iteration(task)

    def _fail_iteration(self, task):
        """3.3, 3.4: a failure is borne or fails the container, and stops what it is to stop."""
        iteration = task.iteration
        task.borne = self._bears(iteration)
        if not iteration.failed:
            iteration.failed = True
            iteration.task.failures += 1
        if not task.borne:
            self._fail_container(iteration.task)
        if self._stops(task):
            if task.borne:
                self._halt(iteration)
            else:
                self._stop(iteration.task)
            self._drop_retries()

    def _fail_container(self, container):
        container.failed = True         # 3.3
        if container.node.tolerate is not None:
            self.exceeded.add('share' if self._share(container) is not None else 'number')

    def _handlers(self, task):
        """3.3: the siblings of a task's step that make good its failures."""
        if task is self.root or task.iteration.task.kind == 'loop':
            return []
        return self._handlers_of(task.node)

    def _handlers_of(self, failing):
        path, by = failing.path, self.flow.handled_by
        found = []
        for node in failing.parent.children:
            on_failure = (path, 'failure') in atoms(node.require)
            on_complete = (path, 'complete') in atoms(node.require)
            if (node.handles and (on_failure or on_complete)
                    or by in ('failure', 'complete') and on_failure
                    or by == 'complete' and on_complete):
                found.append(node)
        return found

    def _handles(self, node):
        """Tell whether a step is a handler of any other one (3.3)."""
        return any(node in self._handlers_of(one) for one in node.parent.children)

    def _is_expected(self, task):
        """3.4"""
        return bool(self._handlers(task))

    def _is_made_good(self, failed):
        return failed.borne or self._is_handled(failed)

    def _is_handled(self, failed):
        """3.3: by a handler that began after the failure, and succeeded or was made good."""
        for node in self._handlers(failed):
            task = self.tasks.get((node.path, failed.sequence))
            if task is None or task.began is None or task.began < failed.failed_at:
                continue
            if task.status == 'success' or (
                    task.failed_at is not None and self._is_made_good(task)):
                return True
        return False

    def _next_event(self):
        self.events += 1
        return self.events

    def _stops(self, task):
        """The effective `stop_on_exception` (8.4)."""
        for node in [task.node] + task.node.above() + [self.flow.root]:
            if node.stop is not None:
                return node.stop
        return True

    def _stop(self, container):
        """3.4: nothing new starts in a container; the stop goes on outward."""
        self.stops += 1
        container.stopped = True
        self._forget_fresh()
        if container is not self.root and not self._is_expected(container) \
                and self._stops(container):
            if self._bears(container.iteration):
                self._halt(container.iteration)
            else:
                self._stop(container.iteration.task)

    def _halt(self, iteration):
        """3.4: nothing new starts in one iteration of a container that bears its failure."""
        if not iteration.stopped:
            self.stops += 1
            iteration.halted = True
            self._forget_fresh()

    def _forget_fresh(self):
        """What was stopped before it was stored as ready: as if it had not been (see h)."""
        for task in list(self.tasks.values()):
            if task.status == 'ready' and task.held_back and task.place is None \
                    and not (task.stored or task.over):
                del self.tasks[task.node.path, task.sequence]

    def _drop_retries(self):
        waiting = [task for task in self.tasks.values()
                   if task.waiting and task.held_back]
        for task in sorted(waiting, key=lambda one: (self.iterations.index(one.iteration),
                                                     _order_of_addition(one))):
            if task.waiting:            # still: a failure among them may stop more
                task.delayed = task.waiting = False
                task.dropped = True
                self._count_as_failed(task)

    # Tolerance (3.3)

    def _share(self, container):
        """Return the percentage that a container bears, or None."""
        tolerate = container.node.tolerate
        return Fraction(tolerate[:-1]) if isinstance(tolerate, str) else None

    def _bears(self, iteration):
        """Tell whether a container bears it, now, that this iteration fails."""
        container = iteration.task
        node, share = container.node, self._share(container)
        if node.tolerate is None or container.failed:
            return False
        if share is not None and not node.counted:
            return True
        limit = node.tolerate if share is None else share * node.loop // 100
        return container.failures + (not iteration.failed) <= limit

    def _had_too_many_failures(self, container):
        share = self._share(container)
        if share is None or container.node.counted:
            return False
        if container.failures * 100 <= share * container.opened:
            return False
        self.exceeded.add('share at the end')
        return True
