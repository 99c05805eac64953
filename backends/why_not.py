"""Say in ``status`` and in `RunView.not_run` why steps of a run were not run (semantics 3.5)."""

import itertools

from . import (  # type: ignore
    ACTIVE,
    COMPLETE,
    FAILURE,
    READY,
    SUCCESS,
    quiet_steps,
)

BACKEND = {'explains': 'status'}

#: What became of a step that is required: the first of its statuses counts.
_FATES = ((FAILURE, 'failed'), (ACTIVE, 'was interrupted'), (READY, 'was not started'),
          (SUCCESS, 'succeeded'))


def explain(plan, statuses, missing):
    """Return (path, reason) pairs of the steps that were not run.

    Steps that wait for a failure that did not happen are left out.

    Args:
        plan: of the run, as `plan_text` describes it.
        statuses: {path: the statuses of its tasks} of the steps that have tasks.
        missing: the paths of the steps that have none, though their container began.
    """
    steps, events = {step['path']: step for step in plan['steps']}, plan.get('events', ())

    def holds(path, status):
        seen = statuses.get(path, ())
        return bool(seen) and (status in seen or status in (READY, ACTIVE)
                               or status == COMPLETE and (SUCCESS in seen or FAILURE in seen))

    def may_hold(path, quiet):
        return _holds(steps[path].get('require', {}), events, lambda other, status: (
            holds(other, status) or status != FAILURE and other not in quiet))

    def reason(path):
        step = steps[path]
        for other, status in itertools.chain(
                _atoms(step.get('require', {}), events),
                ((asked, SUCCESS) for asked in step.get('asks', ()))):
            if not holds(other, status):
                seen = statuses.get(other, ())
                return 'it requires %s, which %s' % (
                    other if status == SUCCESS else '(%s, %s)' % (other, status),
                    next((text for one, text in _FATES if one in seen), 'was not run'))
        return 'what is around it was stopped before'

    quiet = quiet_steps(missing, may_hold)
    return [(path, reason(path)) for path in missing if path not in quiet]


def _atoms(expression, events):
    """Yield the [path, status] pairs in an expression of a plan, also behind events."""
    if isinstance(expression, list):
        yield expression
    elif 'event' in expression:
        yield from _atoms(events[expression['event']], events)
    else:
        for operands in expression.values():
            for one in operands:
                yield from _atoms(one, events)


def _holds(expression, events, holds):
    """Whether an expression of a plan holds; ``holds`` answers for a path and a status.

    Events must not raise one another in a circle.
    """
    if isinstance(expression, list):
        return holds(*expression)
    if 'event' in expression:
        return _holds(events[expression['event']], events, holds)
    of_them = any if 'any' in expression else all
    return of_them(_holds(one, events, holds)
                   for operands in expression.values() for one in operands)
