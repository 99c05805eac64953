"""Random flows, run by the engine and by the reference model side by side.

Each seed makes one flow (`flows.random_flow`), one order in which its tasks end, and up to three
crashes, each at a random record, each followed by a recovery that knows what was recorded up to
there, or by going on with the same run. Runs that have ended are recovered, too. After every step
both must agree on what runs, on every stored status and on the next due time; at the end of a run
also on its verdict, on what was made good, on what was not run, and on what keeps an earlier
success. In the end it must not matter where the crashes were.

``SEQUENT_SIMULATIONS`` is the number of flows (default 5000), ``SEQUENT_SIMULATION_SEED`` the
first seed. A failure prints the seed, the flow and what was done to it.
"""

import os
import sys

import pytest

import sequent
from flows import (
    ALWAYS, Chance, Flow, Node, atoms, handles_in_order_only, holds, random_flow, sequences)
from reference import Past, Reference

SIMULATIONS = int(os.environ.get('SEQUENT_SIMULATIONS') or 5000)
FIRST = int(os.environ.get('SEQUENT_SIMULATION_SEED') or 0)
BATCHES = 20


class Crash(Exception):
    """The supervisor died."""


# The library's model of a described flow #########################################


def effective_stop(flow, node):
    """semantics 8.4: a step's setting over its container's over the flow's over the default."""
    for one in [node] + node.above() + [flow.root]:
        if one.stop is not None:
            return one.stop
    return True


def build_plan(flow):
    """Return the plan of a described flow, made of the library's own steps."""
    owner = object()
    pools = {name: sequent.OutsidePool(name) if name in flow.outside else
             sequent.ResourcePool(name, limit) for name, limit in flow.pools.items()}
    root = sequent.Step(owner, None, '', stop_on_exception=effective_stop(flow, flow.root))
    steps = {'': root}
    events = {}

    def resources(pairs):
        return [(pools[name], n) for name, n in pairs]

    def loop(node):
        if node.loop is None or node.counted:
            return node.loop if node.loop is None else range(node.loop)
        return node.loop if node.index % 2 else lambda: range(node.loop)

    def expression(node):
        if node[0] == 'atom':
            return sequent.Atom(steps[node[1]], node[2])
        kind = sequent.All if node[0] == 'and' else sequent.Any
        built = kind(tuple(map(expression, node[1])))
        if len(node[1]) % 2 == 0:
            return built
        # An event is read where it is used, as if its expression stood there (semantics 2.4).
        return events.setdefault(repr(node), sequent.Event(owner, repr(node), built))

    for path, node in flow.nodes.items():
        parent = steps[node.parent.path if node.parent is not flow.root else '']
        step = sequent.Step(
            owner, parent, node.name, loop=loop(node), delay=node.delay,
            func=print if node.func and not node.children else None,
            acquires=resources(node.acquires),
            releases=None if node.releases is None else resources(node.releases),
            recovery=node.recovery, stop_on_exception=effective_stop(flow, node),
            max_concurrent=node.max_concurrent, retries=node.retries, tolerate=node.tolerate,
            handles=node.handles)
        step.serial, step.queues = node.construct == 'inline', node.construct == 'queues'
        parent.children = list(parent.children) + [step]
        steps[path] = step
    for path, node in flow.nodes.items():
        if node.require is not None:
            steps[path].require = expression(node.require)
    return sequent.compile_plan(root, handled_by=flow.handled_by)


# The driver of a simulated run ###################################################


class Records(dict):
    """A store: the latest `sequent.Earlier` by (path, sequence); times are counted in turns."""

    turns = 0

    def at(self, sequence, floor=0):
        """Return {path: Earlier} at a sequence, or None, without what is older than ``floor``."""
        found = {path: record for (path, at), record in self.items()
                 if at == sequence and record.recovery >= floor}
        return found or None


class Engine:
    """The engine under test, with what a driver does for it.

    Args:
        flow: the described flow.
        records: what earlier runs left, a `Records`; what this one commits goes there too.
        recovery: the number of this run.
        mode: ``'restart'``, ``'recover'`` or ``'continue'``.
        lifetime: the number of records after which the supervisor dies: the turn in which that is
            reached is not committed any more, or it is, and then nothing else happens.
        patterns: of paths that are held from the beginning.
    """

    def __init__(self, flow, records, recovery, now, mode='restart', lifetime=None,
                 commits_first=False, patterns=()):
        self.flow = flow
        self.records = records
        self.recovery = recovery
        self.mode = mode
        self.lifetime = lifetime
        self.commits_first = commits_first
        self.before = dict(records)
        self.outside = {}               # pool outside the run: its units for this run
        self.taken = {}                 # (pool, path, sequence): what it has of such a pool
        self.running = {}               # (path, sequence): engine's task
        self.started = set()            # (path, sequence, attempt) submitted in this run
        self.now_failed = set()         # (path, sequence) recorded as failed in this run
        self.borne = set()
        self.made_good = set()
        self.kept = set()
        self.asked = set()              # the answers of pools outside the run
        self.dropped = set()
        self.tried = set()              # (path, sequence, attempt) that failed and is tried again
        self.stored = {}                # (path, sequence): attempt, as recorded in this run
        self.failed = []                # tasks that failed or count as failed
        self.result = None
        self.engine = sequent.Engine(build_plan(flow), flow.max_concurrent, recovery, mode)
        self.outside = {pool: flow.pools[pool] for pool in flow.outside}
        if flow.queue is not None:
            self.engine.admission.limit_queue(*flow.queue)
        self.now = now
        for pattern in patterns:
            self.feed(self.engine.hold, pattern)
        self.feed(self.engine.begin, None if mode == 'restart' else records.at('1'))

    def finish(self, path, sequence, ok):
        task = self.running.pop((path, sequence))
        if ok:
            self.feed(self.engine.done, task, 'success', None, None)
            return
        again = self.flow.nodes[path].retry_delay
        attempt, retries = task.attempt, self.engine.retries(task, again)
        self.feed(self.engine.done, task, 'failure', 'broken', again)
        assert ((path, sequence, attempt) in self.tried) == retries, \
            'the engine says retries(%s at %s) is %s' % (path, sequence, retries)

    def advance(self, now=None):
        self.now = self.engine.next_due() if now is None else now
        while self.engine.next_due() == self.now:
            self.feed(self.engine.tick)

    def feed(self, enter, *given):
        """Make one input, answer what the engine asks, commit, start.

        ``enter`` is the method of the engine, ``given`` what it is given beside the time.
        """
        self.records.turns += 1
        assert self.result is None, 'something happens after the end'
        dirty, tried, dropped, submitted, opens = {}, [], [], [], []
        actions = enter(*given + (self.now,))
        while actions is not None:
            for i, (kind, what) in enumerate(actions):
                if kind in ('record', 'submit'):
                    dirty[what] = None
                if kind == 'submit':
                    submitted.append(what)
                elif kind == 'attempt':
                    self.check_attempt(actions[i:])
                    tried.append(what)
                elif kind == 'dropped':
                    dropped.append(what)
                elif kind == 'handled':
                    dirty[what[0]] = None
                elif kind == 'kept':
                    self.kept.add((what[0].path, what[1].sequence))
                elif kind in ('open', 'ask'):
                    opens.append((kind, what))
                elif kind == 'give':
                    self.give(*what)
                elif kind == 'finish':
                    self.result = what
                    assert not self.taken, 'it has not given back %s' % self.taken
            kind, task = opens.pop(0) if opens else (None, None)
            actions = (self.open(task) if kind == 'open' else self.ask(task) if kind == 'ask'
                       else None)
        self.commit(tried, dirty)
        for task in dropped:
            self.drop(task)
        for task, *_ in tried:
            self.check_held(task)
        self.borne.update((task.step.path, task.sequence) for task in self.failed
                          if task.made_good == sequent.TOLERATED)
        self.made_good.update((task.step.path, task.sequence) for task in self.failed
                              if task.made_good)
        for task in submitted:
            self.start(task)

    def check_attempt(self, actions):
        """An attempt failed: the next one is stored as ready, with its due time."""
        task, recovery, attempt, status, error = actions[0][1]
        assert (recovery, status, error) == (self.recovery, 'failure', 'broken')
        assert task.attempt == attempt + 1
        assert ('record', task) in actions[1:]

    def check_held(self, task):
        """What waits for its next attempt holds nothing."""
        name = task.step.path, task.sequence
        assert task.status != 'ready' or not any(
            name in held for held in self.engine.admission.holders)

    def drop(self, task):
        """It counts as failed, and stays stored as it is."""
        name = task.step.path, task.sequence
        assert self.records[name][:5] == ('ready', 'leaf', self.recovery, task.attempt, task.due)
        assert task.status in ('ready', None) and task.attempt > 1
        assert name not in self.dropped
        self.dropped.add(name)
        self.failed.append(task)

    def ask(self, task):
        """Answer whether the pools outside the run have what a task needs."""
        pools = self.engine.plan.pools
        needs = [(pools[number][0], n) for number, n in task.step.needs
                 if number in self.engine.plan.outside]
        granted = all(sum(units for (name, *_), units in self.taken.items() if name == pool) + n
                      <= self.outside[pool] for pool, n in needs)
        for pool, n in needs if granted else ():
            name = pool, task.step.path, task.sequence
            assert name not in self.taken
            self.taken[name] = n
        self.asked.add(granted)
        return self.engine.granted(task, granted, self.now)

    def give(self, task, number, n):
        name = self.engine.plan.pools[number][0], task.step.path, task.sequence
        assert self.taken.pop(name) == n

    def resize(self, pool, limit):
        self.outside[pool] = limit
        self.feed(self.engine.ask_again)

    def open(self, task):
        """Answer with the next iteration of a container."""
        node = self.flow.nodes[task.step.path]
        k, runs = node.loop_fails or (0, 0)
        if task.step.loops and task.opened + 1 == k and self.recovery < runs:
            return self.engine.loop_over(task, 'no more of this', self.now)
        if task.step.loops and task.opened >= node.loop:
            return self.engine.loop_over(task, None, self.now)
        earlier = None
        if self.mode != 'restart' and task.scope.earlier is not None:
            earlier = self.records.at('%s.%d' % (task.sequence, task.opened + 1), task.floor)
        return self.engine.opened(
            task, task.opened, None, earlier, task.floor, self.now)

    def commit(self, tried, dirty):
        if self.lifetime is not None:
            self.lifetime -= len(tried) + len(dirty)
        dies = self.lifetime is not None and self.lifetime <= 0
        if not dies or self.commits_first:
            for attempt in tried:
                self.record_attempt(*attempt)
            for task in dirty:
                self.record(task)
        if dies:
            raise Crash()

    def record_attempt(self, task, recovery, attempt, status, error):
        name = task.step.path, task.sequence
        assert self.records[name][:4] == ('active', 'leaf', recovery, attempt), \
            'attempt %s at %s at %s did not run' % ((attempt,) + name)
        assert name not in self.now_failed
        self.tried.add(name + (attempt,))

    def record(self, task):
        name = task.step.path, task.sequence
        if task.status is None:         # it failed in a run that is continued
            self.records[name] = self.records[name]._replace(handled=True)
            return
        before = self.records[name].status if name in self.stored else None
        if before is not None and self.stored[name] != task.attempt:
            assert name + (self.stored[name],) in self.tried, name
            assert task.attempt == self.stored[name] + 1, (name, task.attempt)
            before = None
        if before != task.status:
            assert (before, task.status) in sequent.STATUS_CHANGES, (name, before, task.status)
        if task.status == 'failure':
            if name not in self.now_failed:
                self.failed.append(task)
                self.now_failed.add(name)
        self.stored[name] = task.attempt
        if task.status == 'active':
            task.started = self.records.turns
        elif task.status in ('success', 'failure'):
            task.started = task.started or self.records.turns
            task.ended = task.ended or self.records.turns
        left = task.status == 'success' and task.step.kind != 'leaf' and task.left
        self.records[name] = sequent.Earlier(
            task.status, task.step.kind, task.recovery, task.attempt, task.due,
            handled=left or task.status == 'failure' and bool(task.made_good),
            began=task.started or 0, ended=task.ended or 0)

    def start(self, task):
        name, attempt = (task.step.path, task.sequence), task.attempt
        assert name + (attempt,) not in self.started, '%s runs twice at %s' % name
        earlier = self.before[name] if self.mode == 'continue' and name in self.before else None
        assert (attempt == 1 or name + (attempt - 1,) in self.tried
                or earlier is not None and earlier.attempt in (attempt - 1, attempt)), (
                    name, attempt)
        if earlier is None:
            assert attempt <= self.flow.nodes[name[0]].retries + 1, (name, attempt)
        assert task.due is None or task.due <= self.now, '%s at %s runs before it is due' % name
        replay = replay_of(self.flow.nodes[task.step.path], 'success')
        had_succeeded = name in self.before and self.before[name].status == 'success'
        assert not had_succeeded or replay == 'rerun' or self.reacts(*name), \
            '%s at %s had succeeded and runs again' % name
        assert self.records[name].status == 'active', \
            '%s at %s runs before that is recorded' % name
        self.started.add(name + (attempt,))
        self.running[name] = task


    def reacts(self, path, sequence):
        """Tell whether a requirement of it, or around it, mentions a failure of this run (7.3)."""
        failed, node = self.now_failed | self.dropped, self.flow.nodes[path]
        return any(
            (other, '.'.join(sequence.split('.')[:self.flow.nodes[other].depth])) in failed
            for one in [node] + node.above() for other, status in atoms(one.require)
            if status in ('failure', 'complete'))


def replay_of(node, status):
    """semantics 7.2"""
    for one in [node] + node.above():
        if status in one.recovery:
            return one.recovery[status]
    return 'skip' if status == 'success' else 'rerun'


# Both side by side ###############################################################


class Simulation:
    """One flow under one seed, with all its runs."""

    def __init__(self, seed, flow=None):
        self.chance = Chance(seed)
        self.flow = random_flow(self.chance) if flow is None else flow
        self.story = []
        self.seen = set()               # what happened, in words
        self.records = Records()
        self.now = 0
        self.order = {}                 # when things began and failed, as the reference says
        self.events = 0
        self.holding = self.chance.likely(0.2)
        self.patterns = set()           # of paths that are held

    def run(self):
        """Run, with crashes and recoveries; then check what must hold of the whole."""
        crashes = self.chance.weighted((4, 0), (3, 1), (2, 2), (2, 3))
        recovery, mode, lives = 0, 'restart', 0
        while True:
            lifetime = 1 + self.chance.below(12) if lives < crashes else None
            lives += 1
            try:
                ok = self.run_once(recovery, mode, lifetime)
            except Crash:
                self.story.append('crash')
                self.seen.add('crash %d' % recovery)
                # What is done again after a crash in what was stopped depends on the order.
                may_go_on = recovery == 0 and not (self.holding or 'stops' in self.seen)
                mode = 'continue' if may_go_on and self.chance.likely(0.6) else 'recover'
            else:
                self.seen.add('success' if ok else 'failure')
                if lives > crashes and not (recovery < 4 and self.chance.likely(0.3)):
                    break
                mode = 'recover'
            recovery += mode == 'recover'
            self.now += self.chance.below(3)
        if not any(node.recovery for node in self.flow.nodes.values()):
            self.check_that_crashes_changed_nothing(ok)
            self.check_that_nothing_is_left()

    def run_once(self, recovery, mode, lifetime):
        self.story.append('%s %d' % (mode, recovery))
        if mode == 'continue':
            self.seen.add(mode)
        earlier = {name: Past(one.status, one.due, one.recovery, one.attempt,
                              *self.order.get(name, (None, None)))
                   for name, one in self.records.items()}
        reference = Reference(self.flow, earlier, recovery, self.now, mode == 'continue',
                              self.events, self.patterns)
        waited = {name for name, one in self.records.items()
                  if one.status == 'ready' and one.attempt > 1
                  and one.due is not None and one.due > self.now}
        engine = None
        try:
            engine = Engine(self.flow, self.records, recovery, self.now, mode, lifetime,
                            self.chance.likely(0.5), sorted(self.patterns))
            self.compare(engine, reference)
            while not reference.over():
                self.step(engine, reference)
                self.compare(engine, reference)
        finally:
            self.now, self.events = reference.now, reference.events
            self.order.update(reference.order())
            for word in ('stops', 'deadlocks', 'skipped', 'handled', 'dues', 'tried', 'borne',
                         'dropped', 'spared', 'repeated', 'kept', 'in_vain', 'given_up',
                         'not_run'):
                value = getattr(reference, word)
                if value() if callable(value) else value:
                    self.seen.add(word)
            self.seen.update('exceeded by %s' % kind for kind in reference.exceeded)
            if engine and waited & {name[:2] for name in engine.started}:
                self.seen.add('tried again after a crash')
        ok, _ = reference.result()
        assert engine.result == ok, 'the engine says %s' % engine.result
        assert engine.engine.next_due() is None
        same('was made good', engine.made_good, reference.made_good())
        same('was not run', {(step.path, n) for step, n in engine.engine.unmet.items()},
             set(reference.not_run().items()))
        same('keeps an earlier success', engine.kept, reference.kept())
        same('reacts in vain', {tuple((task.step.path, task.sequence) for task in pair)
                                for pair in engine.engine.unhandled()}, reference.in_vain())
        self.check_verdict(engine)
        return ok

    def check_verdict(self, engine):
        """A run ends well only if each failure in it was made good: seen from records alone (3.3).

        A failure of a task makes that of its container, unless a handler has succeeded, or the
        failure of a handler was made good in its turn, or a loop bears it.
        """
        of_this = {name: one.status for name, one in self.records.items()
                   if one.recovery == engine.recovery}
        failed = engine.dropped | {name for name in of_this if of_this[name] == 'failure'}
        succeeded = {name for name in of_this if of_this[name] == 'success'}
        for name in failed if engine.result else ():
            path, sequence = name
            while not self.is_made_good(failed, succeeded, self.flow.nodes[path], sequence):
                outer = self.flow.nodes[path].parent
                assert outer is not self.flow.root, '%s at %s was not made good' % name
                path, sequence = outer.path, '.'.join(sequence.split('.')[:outer.depth])

    def is_made_good(self, failed, succeeded, node, sequence, asked=()):
        if sequence.count('.') >= node.depth:       # an item of a leaf with a loop
            if node.tolerate is not None:
                return True
            sequence = sequence.rsplit('.', 1)[0]
        if node.parent.tolerate is not None:
            return True
        return any((one.path, sequence) in succeeded or (one.path, sequence) in failed
                   and self.is_made_good(failed, succeeded, one, sequence, asked + (node,))
                   for one in node.parent.children
                   if one not in asked and (one.handles or self.flow.handled_by != 'handles')
                   and {(node.path, 'failure'), (node.path, 'complete')} & set(atoms(one.require)))

    def check_that_crashes_changed_nothing(self, ok):
        """A run that is never crashed, in another order, has the same outcome.

        What a stop keeps from starting, who fails for want of resources, and which iterations
        wait in vain together, depends on the order; and what fails in some runs only is not the
        same in another.
        """
        if self.flow.flaky() or self.seen & {'stops', 'deadlocks', 'given_up'} \
                or not handles_in_order_only(self.flow) or 'continue' in self.seen and any(
                    node.retries for node in self.flow.nodes.values()):
            return
        other = self.undisturbed(0)
        if not (other.stops or other.deadlocks or other.given_up):
            self.seen.add('compared')
            assert other.result()[0] == ok, 'without a crash it ends with %s' % (not ok)
            same('stands in the end', {(name, one.status) for name, one in self.records.items()},
                 set(other.statuses().items()))

    def check_that_nothing_is_left(self):
        """When no failure is left, all that a run without failures does has been done."""
        if any(one.status == 'failure' for one in self.records.values()) \
                or self.seen & {'deadlocks', 'given_up'}:
            return
        other = self.undisturbed(ALWAYS)
        if not other.deadlocks:
            self.seen.add('healed')
            done = {name for name, one in self.records.items() if one.status == 'success'}
            left = {name for name, status in other.statuses().items()} - done
            assert not left, 'it ends well but did not run %s' % sorted(left)

    def undisturbed(self, recovery):
        """Run the reference alone, as if it were the run with this number but with no past."""
        reference = Reference(self.flow, None, recovery)
        for pool in self.flow.outside:
            reference.resize(pool, 99)
        while not reference.over():
            running = sorted(reference.running())
            if running:
                path, sequence = self.chance.choice(running)
                reference.finish(path, sequence, not self.flow.fails(
                    path, sequence, recovery, reference.attempt(path, sequence)))
            else:
                reference.advance()
        return reference

    def step(self, engine, reference):
        running, due = sorted(reference.running()), reference.next_due()
        if self.patterns and (not running and due is None or self.chance.likely(0.2)):
            pattern = self.chance.choice(sorted(self.patterns))
            self.story.append('unhold %s' % pattern)
            self.patterns.discard(pattern)
            reference.unhold(pattern)
            engine.feed(engine.engine.unhold, pattern)
        elif self.holding and self.chance.likely(0.1):
            path = self.chance.choice(list(self.flow.nodes))
            pattern = self.chance.weighted((3, path), (1, path[:-1] + '?'), (1, path[:2] + '*'))
            self.story.append('hold %s' % pattern)
            self.patterns.add(pattern)
            reference.hold(pattern)
            engine.feed(engine.engine.hold, pattern)
        elif self.flow.outside and (not running and due is None or self.chance.likely(0.2)):
            pool = self.chance.choice(sorted(self.flow.outside))
            limit = self.chance.below(self.flow.pools[pool] + 1)
            if not running and due is None and self.chance.likely(0.5):
                limit = 99      # so that tasks of this run do not wait for one another
            self.story.append('%d of %s outside' % (limit, pool))
            reference.resize(pool, limit)
            engine.resize(pool, limit)
        elif not running or (due is not None and self.chance.likely(0.4)):
            if running and due > reference.now + 1 and self.chance.likely(0.5):
                due = reference.now + 1
            self.story.append('until %s' % due)
            reference.advance(due)
            engine.advance(due)
        else:
            path, sequence = self.chance.choice(running)
            ok = not self.flow.fails(path, sequence, reference.recovery,
                                     reference.attempt(path, sequence))
            self.story.append('%s %s at %s' % ('success' if ok else 'failure', path, sequence))
            reference.finish(path, sequence, ok)
            engine.finish(path, sequence, ok)

    def compare(self, engine, reference):
        if any(node.construct == 'inline' for node in self.flow.nodes.values()):
            self.seen.add('inline')
        if len(engine.running) > self.flow.max_concurrent > 0:
            self.seen.add('queued ahead')
        same('runs', {name + (task.attempt,) for name, task in engine.running.items()},
             {name + (reference.attempt(*name),) for name in reference.running()})
        for path, sequence in reference.running():
            self.check_requirement(engine, path, sequence)
        expected = {name: status for name, status in reference.statuses().items()
                    if name not in reference.skipped()}
        stored = {name: self.records[name].status for name in engine.stored
                  if not (name in reference.skipped() and self.records[name].status == 'success')}
        same('stands', set(stored.items()), set(expected.items()))
        same('failed', engine.now_failed | engine.dropped, reference.failures())
        same('is borne', engine.borne, reference.borne())
        same('was tried', engine.tried, reference.tried)
        same('was dropped', engine.dropped, reference.dropped())
        same('is held', {(task.step.path, task.sequence) for task in engine.engine.held()},
             reference.held())
        self.seen.update(['held'] if reference.held() else ())
        self.seen.update(['refused outside'] if False in engine.asked else ())
        same('is due at', *self.dues(engine, reference))
        if engine.result is None:
            same('is due', {engine.engine.next_due()}, {reference.next_due()})
        assert (engine.result is not None) == reference.over()

    def dues(self, engine, reference):
        """Return the due times of what did not succeed, of both.

        What is past may be forgotten, unless the delay would start again in a recovery.
        """
        now, stored, expected = reference.now, set(), set()
        for name, status in reference.statuses().items():
            if name in engine.stored and status != 'success':
                due, node = self.records[name].due, self.flow.nodes[name[0]]
                is_item = name[1].count('.') >= node.depth
                if due is None and (is_item or not node.delay):
                    due = now
                stored.add((name, due if due is None else max(due, now)))
                expected.add((name, max(reference.dues().get(name, 0), now)))
        return stored, expected

    def check_requirement(self, engine, path, sequence):
        """Nothing runs before its requirement held: seen from what is recorded alone."""
        node = self.flow.nodes[path]

        def is_raised(path, status):
            at = '.'.join(sequence.split('.')[:self.flow.nodes[path].depth])
            if (path, at) not in self.records:
                return False
            now = self.records[path, at].status
            if status == 'active' and self.records[path, at].attempt > 1:
                return True     # raised by the first attempt
            if status in ('failure', 'complete') and (path, at) in engine.dropped:
                return True
            return now in POSSIBLE[status] or now in node_skips(self.flow.nodes[path])
        for one in [node] + node.above():
            assert holds(one.require, is_raised), '%s at %s runs too early' % (path, sequence)


#: What can be recorded of a task that has raised a status.
POSSIBLE = {'ready': {'ready', 'active', 'success', 'failure'},
            'active': {'active', 'success', 'failure'},
            'success': {'success'}, 'failure': {'failure'}, 'complete': {'success', 'failure'}}


def node_skips(node):
    """Return the recorded statuses after which a recovery may pass a step over."""
    return [status for status in ('failure', 'active') if replay_of(node, status) == 'skip']


def same(what, engine, reference):
    assert engine == reference, 'what %s: only for the engine %s, only for the reference %s' % (
        what, sorted(engine - reference), sorted(reference - engine))


def simulate(seed, flow=None):
    """Run one simulation and return it; an `AssertionError` tells all about it."""
    simulation = Simulation(seed, flow)
    try:
        simulation.run()
    except Exception as error:
        told = 'seed %s: %s: %s\n%s\n%s' % (
            seed, type(error).__name__, error, simulation.flow, '\n'.join(simulation.story))
        raise AssertionError(told) from error
    return simulation


@pytest.mark.parametrize('batch', range(BATCHES))
def test_the_engine_does_what_the_reference_does(batch):
    for seed in range(FIRST + batch, FIRST + SIMULATIONS, BATCHES):
        simulate(seed)


#: Small flows that random ones come upon rarely, with what they are about.
SMALL = {
    'a due time that is past is kept through a second crash': lambda: Flow([
        Node('a', loop=2), Node('b', delay=2)], max_concurrent=1),
    'a delay does not start again after a retry without one': lambda: Flow([
        Node('a', delay=2, retries=2, stumbles={'1': 2}), Node('b', loop=3)], max_concurrent=1),
    'a retry waits through crashes': lambda: Flow([
        Node('a', retries=3, retry_delay=4, stumbles={'1': 3}), Node('b', loop=4)]),
    'retries are dropped in a borne iteration and in one too many': lambda: Flow([
        Node('a', [Node('x'), Node('y', retries=1, retry_delay=9)],
             loop=3, max_concurrent=3, tolerate=1),
        Node('h', require=('atom', 'a', 'failure'))]),
}


@pytest.mark.parametrize('about', sorted(SMALL))
def test_small_flows_of_the_engine_and_the_reference_agree(about):
    for seed in range(200):
        flow = SMALL[about]()
        chance = Chance(seed)
        for node in flow.nodes.values():
            if not node.children and not node.stumbles and node.path != 'h':
                for sequence in sequences(flow, node):
                    if chance.likely(0.3):
                        node.fails[sequence] = ALWAYS
        simulate(seed, flow)


def follow(flow, *story):
    """Run the engine and the reference through 'path@sequence [fails]', ...; return statuses."""
    simulation = Simulation(0, flow)
    reference, engine = Reference(flow), Engine(flow, simulation.records, 0, 0)
    for told in story:
        name, *fails = told.split()
        path, sequence = name.split('@')
        reference.finish(path, sequence, not fails)
        engine.finish(path, sequence, not fails)
        simulation.compare(engine, reference)
    return {'%s@%s' % name: record.status for name, record in simulation.records.items()}


def test_a_step_that_a_borne_iteration_lost_counts_in_no_later_stop():
    flow = Flow([Node('a', [Node('x'), Node('y'), Node('z', require=('atom', 'a_y', 'success'))],
                      loop=2, max_concurrent=3, tolerate=1), Node('b')])
    stands = follow(flow, 'a_x@1.1 fails', 'a_y@1.1',       # over, without z
                    'a_y@1.2', 'a_z@1.2', 'b@1 fails', 'a_x@1.2')
    assert stands['a@1'] == 'success'


def test_a_container_that_a_borne_iteration_cut_off_counts_in_no_later_stop():
    inner = [Node('y'), Node('z', require=('atom', 'a_c_y', 'success'))]
    flow = Flow([Node('a', [Node('x'), Node('c', inner)],
                      loop=2, max_concurrent=3, tolerate=1), Node('b')])
    stands = follow(flow, 'a_x@1.1 fails', 'a_c_y@1.1.1', 'a_c_y@1.2.1', 'a_c_z@1.2.1',
                    'b@1 fails', 'a_x@1.2')
    assert stands['a_c@1.1'] == 'active'
    assert stands['a@1'] == 'success'


def test_iterations_that_end_together_count_in_the_order_of_the_loop():      # semantics 3.6
    vain = Node('h', require=('and', [('atom', 'a_x', 'failure'), ('atom', 'c', 'active')]),
                handles=True)
    flow = Flow([Node('b'), Node('c', require=('atom', 'b', 'failure')),
                 Node('a', [Node('x'), vain], loop=3, max_concurrent=3, tolerate=1)])
    simulation = Simulation(0, flow)
    reference, engine = Reference(flow), Engine(flow, simulation.records, 0, 0)
    for path, sequence, ok in (('a_x', '1.2', False), ('a_x', '1.3', False), ('b', '1', True),
                               ('a_x', '1.1', False)):
        assert not engine.borne
        reference.finish(path, sequence, ok)
        engine.finish(path, sequence, ok)
        simulation.compare(engine, reference)
    assert engine.borne == {('a_x', '1.1')}


def test_a_container_that_had_ended_stays_ended_when_a_run_goes_on():      # semantics 7.5
    flow = Flow([Node('s'), Node('e', require=('atom', 's', 'success'), acquires=[('q', 1)]),
                 Node('c', [Node('x', require=('atom', 's', 'failure'))], acquires=[('q', 1)])],
                pools={'q': 1})
    records = Records()
    Engine(flow, records, 0, 0).finish('s', '1', True)
    assert records['c', '1'].status == 'success'
    engine = Engine(flow, records, 0, 0, 'continue')
    assert list(engine.running) == [('e', '1')]     # c waits for what e holds
    engine.finish('e', '1', False)
    assert engine.result is False
    assert records['c', '1'].status == 'success'


def test_an_event_that_a_requirement_mentions_twice_counts_twice():
    event = 'and', [('atom', 'a', 'success')]
    flow = Flow([Node('a'), Node('x', stop=False), Node('y'),
                 Node('r', require=('and', [event, ('or', [event, ('atom', 'x', 'failure')])]),
                      delay=5)])
    follow(flow, 'x@1 fails', 'a@1', 'y@1 fails')       # r is no reaction: it is dropped


def test_iterations_that_end_together_end_their_container_once():
    flow = Flow([Node('s'), Node('c', [Node('x', require=('atom', 's', 'failure'))], loop=2,
                                 max_concurrent=0)])
    assert follow(flow, 's@1')['c@1'] == 'success'


def test_a_share_of_a_known_length_is_exact():
    flow = Flow([Node('a', loop=375, tolerate='18.4%')])        # of which 69 is just that share
    fails = ['a@1.%d fails' % (i + 1) for i in range(70)]
    assert follow(flow, *fails[:69])['a@1'] == 'active'
    assert follow(flow, *fails)['a@1'] == 'failure'


def test_what_is_held_keeps_its_run_open_until_it_is_released():
    flow = Flow([Node('a'), Node('b', [Node('x'), Node('y')]),
                 Node('c', require=('atom', 'b', 'success'))])
    engine = Engine(flow, Records(), 0, 0, patterns=['b_?', 'c'])
    engine.finish('a', '1', True)
    assert not engine.running
    assert engine.result is None
    assert [task.step.path for task in engine.engine.held()] == ['b_x', 'b_y']
    engine.feed(engine.engine.unhold, 'b_?')
    assert sorted(engine.running) == [('b_x', '1.1'), ('b_y', '1.1')]
    engine.finish('b_x', '1.1', True)
    engine.finish('b_y', '1.1', True)
    assert [task.step.path for task in engine.engine.held()] == ['c']
    engine.feed(engine.engine.unhold, 'c')
    engine.finish('c', '1', True)
    assert engine.result is True


def test_nothing_starts_inside_a_container_that_is_held():
    flow = Flow([Node('b', [Node('x'), Node('y', require=('atom', 'b_x', 'success'))], loop=2)])
    engine = Engine(flow, Records(), 0, 0)
    engine.feed(engine.engine.hold, 'b')
    engine.finish('b_x', '1.1', True)       # goes on, as it had begun
    assert not engine.running
    engine.feed(engine.engine.unhold, 'b')
    assert list(engine.running) == [('b_y', '1.1')]


def test_a_stop_drops_what_is_held():      # semantics 3.4
    flow = Flow([Node('a'), Node('b'), Node('m', require=('atom', 'a', 'failure'))])
    engine = Engine(flow, Records(), 0, 0, patterns=['b', 'm'])
    engine.finish('a', '1', False)
    assert [task.step.path for task in engine.engine.held()] == ['m']
    assert engine.result is None            # a reaction is not dropped
    engine.feed(engine.engine.unhold, 'm')
    engine.finish('m', '1', True)
    assert engine.result is False
    assert engine.records['b', '1'].status == 'ready'


def calls_until_the_end(iterations, ok):
    """Return how many functions are called until so many iterations end that wait for a step
    further out, which succeeds or, if not ``ok``, never runs."""
    flow = Flow([Node('a'), Node('s', require=('atom', 'a', 'success' if ok else 'failure')),
                 Node('c', [Node('x', require=('atom', 's', 'success'), func=False)],
                      loop=iterations, max_concurrent=0)])
    engine, counted = Engine(flow, Records(), 0, 0), [0]

    def count(frame, event, given):
        counted[0] += event == 'call'
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        engine.finish('a', '1', True)
        if ok:
            engine.finish('s', '1', True)
    finally:
        sys.setprofile(before)
    assert engine.result is True
    assert engine.engine.unmet == ({} if ok else {engine.engine.plan.steps[-1]: iterations})
    return counted[0]


@pytest.mark.parametrize('ok', [True, False])
def test_iterations_that_wait_for_one_step_are_looked_at_once_each(ok):      # semantics 3.6
    assert calls_until_the_end(5000, ok) < 12 * calls_until_the_end(500, ok)


def test_the_simulations_meet_with_everything():
    seen = set()
    for seed in range(300):
        seen |= simulate(seed).seen
    assert seen == {'success', 'failure', 'crash 0', 'crash 1', 'crash 2', 'stops', 'deadlocks',
                    'skipped', 'handled', 'dues', 'compared', 'healed', 'tried', 'dropped',
                    'tried again after a crash', 'borne', 'exceeded by number',
                    'exceeded by share', 'exceeded by share at the end', 'spared', 'repeated',
                    'kept', 'in_vain', 'given_up', 'continue', 'not_run', 'held',
                    'inline', 'queued ahead', 'refused outside'}


@pytest.mark.parametrize('owner, name, broken', [
    (sequent.Engine, '_fail', lambda self, task: None),
    (sequent.Engine, '_bears', lambda self, scope: False),
    (sequent.Engine, '_bears', lambda self, scope: scope.step.bears is not None),
    (sequent.Engine, '_judge', lambda self, task: None),
    (sequent.Engine, '_make_good', lambda self, handler: None),
    (sequent.Engine, '_count_failures', lambda self, scope: None),
    (sequent.Engine, '_floor', lambda self, scope, failed: 0),
    (sequent.Engine, 'retries', lambda self, task, again: False),
    (sequent.Engine, 'retries',
     lambda self, task, again: again is not None and task.step.retries > 0),
    (sequent.Engine, '_next_attempt',
     lambda self, task: setattr(task, 'attempt', task.attempt + 1)),
    (sequent.Requirements, 'reasons', lambda self, scope, step: ()),
    (sequent.Requirements, 'awaited', lambda self, scope, all_steps=False: ()),
])
def test_a_broken_engine_is_noticed(monkeypatch, owner, name, broken):
    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(AssertionError):
        for seed in range(300):
            simulate(seed)
