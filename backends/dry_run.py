"""Show what a run would do, and why: ``python -m sequent MODULE [run|recover|continue] -n``.

A dry run goes through the plan as a run would, and takes for granted that what it would run
succeeds. Nothing is started, called, stored, locked or made.
"""

import collections
import contextlib
import hashlib
import json
import logging
import typing

from . import (  # type: ignore
    ACTIVE,
    ENDS,
    FAILURE,
    READY,
    SUCCESS,
    Engine,
    Placeholder,
    PlanWalk,
    ResultOf,
    RunClock,
    Step,
    called_text,
    cut_text,
    expression_text,
    has_begun,
    load_backend,
    local_time,
    opened_store,
    plan_text,
    say_table,
)

logger = logging.getLogger('sequent')

BACKEND = {
    'options': {
        '--dry-run': {
            'short': '-n',
            'call': 'dry_run',
            'verbs': ['run', 'recover', 'continue'],
            'options': ['--all', '--json'],
            'help': 'run, recover, continue: show what would run and why, if all goes well, and '
                    'change nothing',
        },
    },
}


@contextlib.contextmanager
def preview(flow):
    """Give the `DryRun` of what ``flow.run()`` would do now, or None if there is nothing to do.

    Nothing is changed, made or locked. Raises what ``run()`` would raise before it starts.
    """
    plan, store, differences = flow.compile(), flow.open_store(create=False), []
    try:
        run, history = flow.look_ahead()
        if run is None:
            yield None
            return
        if history is not None:
            history.look()
            differences = history.log_differences()
        walk = DryRun(plan, store, run, flow.settings(), history, flow, differences)
        walk.triggers.extend(map(tuple, flow.pending))
        yield walk
    finally:
        flow.close_store()


class Foreseen(typing.NamedTuple):
    """What a run would do about a task, or, of ``loops``, about the further items of a loop.

    ``action`` is ``runs`` (of containers ``enters``), ``skipped``, ``adopted``, ``fails``,
    ``failed`` (and stays so), ``waits`` (for what does not come to be) or ``loops``; ``why`` says
    why in words. ``step`` is None for one that is gone from the flow.
    """

    path: str
    sequence: str
    kind: str
    action: str
    why: str
    step: typing.Optional[Step]


class _PretendedClock(RunClock):
    """Seconds since the epoch that pass when they are told to."""

    def __init__(self):
        RunClock.__init__(self)
        self.now = RunClock.__call__(self)

    def __call__(self):
        return self.now


class DryRun(PlanWalk):
    """Goes through a plan as a run would, taking for granted that what it would run succeeds.

    Delays pass at once. Nothing is started, called, stored, locked or made; of loops only those
    are gone over whose items are there, as no function of the user's may be called.

    Args:
        plan, store, run, settings, history, flow: see `PlanWalk`; the store is only read.
        differences: sentences that name the steps that are gone, new or of another kind since
            the run that is gone on with; sentences about other edits follow them.
    """

    #: After so many iterations of which nothing is recorded the rest of a loop is left out;
    #: after ten times as many in all, that of all loops.
    limit = 1000

    def __init__(self, plan, store, run, settings, history, flow, differences):
        self.pretended = _PretendedClock()
        PlanWalk.__init__(
            self, plan, store, run, settings, history, flow, Engine(
                plan, settings['max_concurrent'], run.recovery, run.mode, tells=True),
            self.pretended)
        self.differences = differences + self._edits()
        self._found = []
        # Iterations of which nothing is recorded.
        self._opened = collections.Counter()  # type: typing.Counter
        self._others = set()                    # (path, sequence) of those with another item

    def _edits(self):
        """Say which requirements, functions and loops were edited; see `edits`."""
        if self.history is None:
            return []
        signatures = self.history.recorded(self.history.base_run())
        texts = [self.store.plan(one) for one in self.store.runs(self.run_record.flow)
                 if one.run_id == self.run_record.run_id
                 and one.recovery == self.history.base_run()]
        if not (signatures and texts and texts[0]):
            return []
        changed = {path for path, text in self.history.signatures.items()
                   if path in signatures and text and text != signatures[path] != ''}
        found = edits(json.loads(texts[0]), json.loads(plan_text(self.plan, called_text)),
                      changed - {one.path for one in self.plan.steps if is_used_up(one.step.loop)})
        for text in found:
            logger.warning('%s', text)
        return found

    def foresee(self):
        """Yield a `Foreseen` for each task, in the order in which they come up."""
        self.begin()
        while True:
            starting, self.batch.starting = self.batch.starting, []
            self.batch.dirty, self.batch.rows = {}, []    # Nothing is stored.
            for task in starting:
                self.feed(self.engine.done(task, SUCCESS, None, None, self.clock()))
            if not starting and not self._go_on():
                break
            yield from self._take()
        self._tell_orphans()
        yield from self._take()

    def _take(self):
        found, self._found = self._found, []
        return found

    def _go_on(self):
        """Hand in what comes next when nothing runs; return whether there was anything."""
        due = self.engine.next_due()
        if self.triggers:
            self.trigger(*self.triggers.popleft())
        elif due is not None:
            self.pretended.now = max(self.pretended.now, due)
            self.feed(self.engine.tick(self.clock()))
        return bool(self.triggers or due is not None or self._found or self.batch.starting)

    def note(self, kind, what):
        if kind == 'starts':
            self._tell_start(what)
        elif kind == 'unmet':
            self._tell_unmet(what)
        elif kind == 'closed':
            self.loops.close(what)
            self._opened.pop(what, None)
        elif kind == 'skip':
            self._tell_skipped(*what)
            self.skip(*what)

    # What there is to tell.

    def _tell(self, task, action, why, sequence=None):
        step = task.step
        if step.kind != 'timer':
            self._found.append(Foreseen(step.path, sequence or task.sequence, step.kind, action,
                                        why, step.step if step.requires() else None))

    def _tell_start(self, task):
        if task.adopted:
            left = self.orphans.pop((task.step.path, task.sequence))
            del self.history.living[task.step.path, task.sequence]
            self._tell(task, 'adopted', _left_text(left))
            return
        self._tell(task, 'runs' if task.step.children is None else 'enters', self._reason(task))

    def _reason(self, task):
        """Say why a task starts."""
        earlier = (task.scope.earlier or {}).get(task.step.path)
        if self.history is None:
            why = 'new run'
        elif earlier is None:
            why = self._reason_of_none(task)
        elif earlier.kind != task.step.kind:
            why = 'it is of another kind now'
        else:
            why = _reason_of(earlier, task.step)
        if task.step.delay and not (earlier is not None and earlier.due):
            why += ', after %g s' % task.step.delay
        elif task.due is not None:
            why += ', not before %s' % local_time(task.due)
        return why

    def _reason_of_none(self, task):
        scope = task.scope
        while scope is not None:
            if (scope.step.path, scope.sequence) in self._others:
                return 'its loop item is another one'
            scope = scope.parent
        before = self.history.recorded(self.history.base_run())
        return 'it is new' if before and task.step.path not in before else 'it was not started'

    def _tell_skipped(self, task, earlier):
        if earlier.status == FAILURE and self.run_record.mode == 'continue':
            self._tell(task, 'failed', 'it failed in recovery %d, which a run that is continued '
                       'leaves so%s' % (earlier.recovery, _error_text(earlier.error)))
            return
        why = '%s in recovery %d' % (ENDS[earlier.status], earlier.recovery)
        self._tell(task, 'skipped', why if earlier.status == SUCCESS else
                   why + ', and its recovery mapping says skip')

    def _tell_unmet(self, scope):
        for step in scope.step.children:
            if step.kind != 'timer' and not has_begun(scope, step):
                self._found.append(Foreseen(
                    step.path, scope.sequence, step.kind, 'waits',
                    'nothing starts there after a failure' if scope.stop is not None else
                    'it is not reached if all goes well', step.step))

    def failed(self, task):
        self._tell(task, 'fails', ' '.join((task.error or '').split()))

    def _tell_orphans(self):
        """Tell of processes that still run for what the flow does not come to any more."""
        for (path, sequence), left in self.orphans.items():
            self._found.append(Foreseen(path, sequence, left.record.kind, 'adopted', _left_text(
                left) + '; the flow does not come to it', None))

    # Loops.

    def run_anew(self, task, sequence):
        self._others.add((task.step.path, sequence))
        PlanWalk.run_anew(self, task, sequence)

    def next_item(self, task, past):
        loop = task.step.step.loop
        recorded = past.earlier is not None or past.item is not None or past.over
        unknown = _unknown_items(loop)
        if unknown and recorded:
            return None, past.item, past.over
        self._opened[task] += not recorded
        self._opened[None] += not recorded
        if not recorded and (self._opened[task] > self.limit or self._opened[task] > 1
                             and self._opened[None] > 10 * self.limit):
            unknown = 'and so on: further iterations are not gone over in a dry run'
        if not unknown:
            return PlanWalk.next_item(self, task, past)
        inside = [one.step.name for one in task.step.children]
        self._tell(task, 'loops', unknown + (
            '; in it: ' + ', '.join(inside) if task.step.kind == 'container' else ''),
            self.next_sequence(task))
        return None, None, True


def _reason_of(earlier, step):
    """Say why a task runs of which something is recorded."""
    why = ENDS[earlier.status]
    if step.children is not None and earlier.status == ACTIVE:
        why = 'it was not over'
    if earlier.status == READY:
        return why if earlier.attempt == 1 else 'it waited for its next attempt'
    if earlier.status == SUCCESS:
        return why + (', but something in it was edited' if earlier.changed else
                      ', but is to run again' if step.children is None else
                      ', but something in it is to be gone through again')
    return '%s in recovery %d%s' % (why, earlier.recovery, _error_text(earlier.error))


def _error_text(error):
    return ': ' + ' '.join(error.split()) if error else ''


def _left_text(left):
    return 'still runs as %s since %s' % (left.sight.text, local_time(left.record.started))


def _unknown_items(loop):
    """Say why the items of a loop are not known before it runs, or return None if they are."""
    if isinstance(loop, ResultOf):
        return 'its items are known only once %s has run' % loop.step.path
    if isinstance(loop, Placeholder):
        return 'its items are known only once it runs'
    if callable(loop):
        return 'its items are known only once it runs, as a dry run calls no function'
    if is_used_up(loop):
        return 'its items are known only once it runs, as an iterator is gone over but once'
    return None


# Edits -----------------------------------------------------------------------------


def is_used_up(loop):
    """Return whether a loop can be gone over only once, so that its items are unknown."""
    return loop is not None and not callable(loop) and not isinstance(
        loop, Placeholder) and iter(loop) is loop


def edits(before, now, changed):
    """Return a sentence for each kind of edit of steps that are in two plans.

    Args:
        before, now: the plans, as `plan_text` writes them.
        changed: paths of containers that are not what they were.
    """
    old, new = ({one['path']: one for one in plan['steps']} for plan in (before, now))
    both = sorted(path for path in new if path in old)
    parts = [('require something else', lambda plan, one: requirement(plan, one.get('require')))]
    if any('calls' in one for one in old.values()):    # Stores of old do not say.
        parts.append(('call something else', lambda plan, one: one.get('calls', '')))
    found = []
    for text, describe in parts:
        pairs = [(path, describe(now, new[path]), describe(before, old[path])) for path in both]
        found.append((text, [
            '%s (%s; it was %s)' % (path, _cut(one) or 'nothing', _cut(other) or 'nothing')
            for path, one, other in pairs if one != other]))
    looped = {path for path in both if 'loop' in new[path] or 'loop' in old[path]}
    found.append(('have another loop', [
        path for path in both if path in looped and (
            new[path].get('loop') != old[path].get('loop')
            or path in changed and not any(one.get('in') == path and one['path'] in changed
                                           for one in now['steps'])
            and _inside(before, path) == _inside(now, path))]))
    return ['steps that %s since the run that is gone on with: %s' % (text, ', '.join(steps))
            for text, steps in found if steps]


def _inside(plan, path):
    """Return what the signature of a container depends on, apart from its loop."""
    return ({one['path'] for one in plan['steps'] if one.get('in') == path},
            {asked for one in plan['steps'] for asked in one.get('asks', ())
             if asked.startswith(path + '_')})


def requirement(plan, form, nested=False, around=()):
    """Return a requirement of a plan's text in words, the same for all that mean the same."""
    if not form:
        return ''
    if isinstance(form, list):
        path, status = form
        return path if status == 'success' else '(%s, %s)' % (path, status)
    [(kind, operands)] = form.items()
    if kind == 'event':
        if operands in around:    # Events may raise one another in a circle.
            return ''
        return requirement(plan, plan['events'][operands], nested, around + (operands,))
    texts = sorted({requirement(plan, one, len(operands) > 1, around) for one in operands} - {''})
    text = (' and ' if kind == 'all' else ' or ').join(texts)
    return '(%s)' % text if nested and len(texts) > 1 else text


def _cut(text):
    """Return a text, or of a long text its beginning and a mark of the whole."""
    return text if len(text) <= 200 else '%s... %s' % (
        text[:150], hashlib.sha1(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12])


# On the command line ----------------------------------------------------------------


def dry_run(flow, options, say):
    """Show what a run would do, if all goes well; return its exit code, or 0 if that is open."""
    with preview(flow) as dry:
        if dry is None:
            return _say_over(flow, options, say)
        run = dry.run_record
        head = _dry_fields(run, dry.differences)
        if head['mode'] == 'restart':
            head['run_id'] = options.run_id    # that of a new run is another one each time
        foreseen = dry.foresee()
        if _wants_json(options):
            load_backend('as_json').say_json(say, _dry_json(head, foreseen, options.all))
            return 0
        say('flow %s, %s: a dry run, nothing is changed' % (run.flow, (
            'new run' if run.mode == 'restart' else
            '%s run %s, recovery %d' % (run.mode, run.run_id, run.recovery))))
        say_table(say, ('path', 'sequence', 'action', 'requires', 'why'), (
            map(_dry_row, foreseen) if options.all else
            (row for fold in _dry_folded(foreseen) for row in fold.rows())))
    return 0


def _wants_json(options):
    """Whether the option --json is given, which is there with the file backends/as_json.py."""
    return getattr(options, 'json', False)


def _say_over(flow, options, say):
    """Say that there is nothing to recover or continue; return the run's exit code."""
    with opened_store(flow) as store:
        run = store.latest(flow.name, flow.run_id)
    if _wants_json(options):
        load_backend('as_json').say_json(say, dict(_dry_fields(run, []), counts=[], tasks=[]))
    else:
        say('run %s of flow %s is over (%s): nothing to do' % (run.run_id, run.flow, run.status))
    return 0 if run.status == SUCCESS else 1


def _dry_fields(run, differences):
    return {'flow': run.flow, 'run_id': run.run_id, 'recovery': run.recovery, 'mode': run.mode,
            'over': run.status != ACTIVE, 'differences': differences}


def _dry_json(head, foreseen, everything):
    counts = []
    if not everything:
        folds = _dry_folded(foreseen)
        counts = [{'path': fold.first.path, 'kind': fold.first.kind, 'action': action, 'n': n}
                  for fold in folds for action, n in fold.counts.items()]
        foreseen = [one for fold in folds for one in fold.listed()]
    return dict(head, counts=counts, tasks=[
        {'path': one.path, 'sequence': one.sequence, 'kind': one.kind, 'action': one.action,
         'requires': _required(one.step) or None, 'why': one.why} for one in foreseen])


def _required(step):
    return expression_text(step.require) if step is not None else ''


def _dry_row(one):
    return one.path, one.sequence, one.action, cut_text(_required(one.step), 30), one.why


class _DryFold:
    """What is foreseen of one step: counted if it is much, what is not plain kept."""

    #: What a step has many tasks of, if all goes as it should.
    PLAIN = ('skipped', 'new run', 'it is new', 'it was not started')

    def __init__(self, first):
        self.first = first
        self.counts = collections.OrderedDict()
        self.kept = []

    def add(self, one):
        self.counts[one.action] = self.counts.get(one.action, 0) + 1
        if not (one.action in self.PLAIN or one.why in self.PLAIN or one.action == 'waits'):
            self.kept.append(one)

    def listed(self):
        return self.kept if sum(self.counts.values()) > 1 else [self.first]

    def rows(self):
        """Return the rows of the step."""
        total = sum(self.counts.values())
        counts = [] if total == 1 else [(self.first.path, '%d tasks' % total, ', '.join(
            '%d %s' % (n, action) for action, n in self.counts.items()),
            _dry_row(self.first)[3], '')]
        return counts + [_dry_row(one) for one in self.listed()]


def _dry_folded(foreseen):
    """Return a `_DryFold` for each step, in the order in which they come up."""
    folds = collections.OrderedDict()
    for one in foreseen:
        key = one.path, one.kind, one.action == 'loops'
        if key not in folds:
            folds[key] = _DryFold(one)
        folds[key].add(one)
    return list(folds.values())
