"""Print JSON: ``python -m sequent MODULE [VERB] --json``, for run, recover, continue, list, status
and history.
"""

import json

from . import (  # type: ignore
    FAILURE,
    RunView,
    listed,
    masked,
    opened_store,
    viewed_runs,
)

BACKEND = {
    'options': {
        '--json': {
            'call': 'as_json',
            'verbs': ['run', 'recover', 'continue', 'list', 'status', 'history'],
            'pure': True,
            'help': 'print JSON; after a run, how it ended',
        },
    },
}


def as_json(flow, options, say):
    """Do what the verb says, and print JSON in place of text; return the exit code."""
    if options.verb == 'list':
        say_json(say, listed(flow))
    elif options.verb == 'history':
        with opened_store(flow) as store:
            say_json(say, [run_fields(view) for view in viewed_runs(flow, options, store)])
    elif options.verb == 'status':
        _say_status(flow, options, say)
    else:
        ok = flow.run()
        say_json(say, _closing_result(flow, ok))
        return 0 if ok else 1
    return 0


def say_json(say, value):
    say(json_text(value, indent=2), True)


def json_text(value, **form):
    """Return a value as JSON, with the secrets in its texts masked; JSON itself escapes."""
    def shown(value):
        if isinstance(value, str):
            return masked(value)
        if isinstance(value, dict):
            return {name: shown(one) for name, one in value.items()}
        return [shown(one) for one in value] if isinstance(value, (list, tuple)) else value

    return json.dumps(shown(value), **form)


def run_fields(view):
    """Return what a run is, as plain values."""
    run = view.run
    return {'flow': run.flow, 'run_id': run.run_id, 'recovery': run.recovery, 'mode': run.mode,
            'status': run.status, 'supervisor': view.supervisor(), 'start': run.started,
            'end': run.ended, 'parameters': view.parameters()}


def task_fields(record, good):
    """Return what a task is, as plain values; ``good`` is what `RunView.made_good` returns."""
    return {'path': record.path, 'sequence': record.sequence, 'kind': record.kind,
            'status': record.status, 'handled': (record.path, record.sequence) in good,
            'recovery': record.recovery,
            'attempt': record.attempt, 'due': record.due, 'start': record.started,
            'end': record.ended, 'error': record.error}


def _closing_result(flow, ok):
    """Return what is printed at the end of a run.

    A failure inside a container whose failure was made good is listed as handled, too.
    """
    failures = {True: [], False: []}  # type: dict
    with opened_store(flow) as store:
        view = RunView.find(store, flow.name, flow.run_id)
        run, failed = view.run, list(view.tasks(FAILURE))
        good = view.made_good(failed)
    for record in failed:
        fields = task_fields(record, good)
        # A failure of an earlier recovery, in a step that this one did not reach, does not count.
        if fields['handled'] or not ok or record.recovery == run.recovery:
            failures[fields['handled']].append(fields)
    return {'ok': ok, 'flow': flow.name, 'run_id': run.run_id, 'recovery': run.recovery,
            'status': run.status, 'handled': failures[True], 'unhandled': failures[False]}


def _say_status(flow, options, say):
    """Print a run and its tasks, each task on a line, so that millions need no memory."""
    with opened_store(flow) as store:
        view = RunView.find(store, flow.name, options.run_id, options.recovery_run)
        if view is None:
            say_json(say, {'flow': flow.name, 'run_id': None, 'counts': [], 'tasks': []})
            return
        steps, good = view.summary(), view.made_good(view.tasks(FAILURE))
        counts = [] if options.all else [
            {'path': one.path, 'kind': one.kind, 'status': status, 'n': n}
            for one in steps for status, n in one.counts.items()]
        head = dict(run_fields(view), counts=counts, not_run=[
            {'path': path, 'reason': reason} for path, reason in view.not_run(steps)])
        say(json_text(head)[:-1] + ', "tasks": [', True)
        before = None
        for record in view.tasks() if options.all else (
                record for one in steps for record in one.records):
            if before is not None:
                say(before + ',', True)
            before = json_text(task_fields(record, good))
        say((before or '') + ']}', True)
