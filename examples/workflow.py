"""A dependency graph read from a file: a step for each task, a requirement for each parent.

The file is JSON, as the workflows of the WfInstances collection are, boiled down::

    {"name": "...", "tasks": [{"id": "a", "parents": [], "runtimeInSeconds": 12.5},
                              {"id": "b", "parents": ["a"], "runtimeInSeconds": 3}, ...]}

Instead of computing, a task sleeps for its run time, scaled down. The last step prints what bounds
the time that the whole takes: the longest path, and all tasks one after another. Run as a
program, the example also prints how long it took.

Run it with ``python3 -m sequent examples/workflow.py``. Environment variables:

    WORKFLOW_JSON    the file; by default ``data/workflow.json`` beside this example
    WORKFLOW_SCALE   factor for the run times; by default 0.001
"""

import collections
import json
import os
import time

import sequent as seq

HERE = os.path.dirname(os.path.abspath(__file__))
PATH = os.environ.get('WORKFLOW_JSON') or os.path.join(HERE, 'data', 'workflow.json')
SCALE = float(os.environ.get('WORKFLOW_SCALE', '0.001'))


def parents_first(tasks):
    """Return the tasks so that every parent comes before its children (files need not)."""
    children = collections.defaultdict(list)
    waits_for = {}
    for task in tasks:
        waits_for[task['id']] = len(set(task['parents']))
        for parent in set(task['parents']):
            children[parent].append(task)
    free = collections.deque(task for task in tasks if not task['parents'])
    ordered = []
    while free:
        task = free.popleft()
        ordered.append(task)
        for child in children[task['id']]:
            waits_for[child['id']] -= 1
            if not waits_for[child['id']]:
                free.append(child)
    if len(ordered) != len(tasks):
        stuck = sorted(name for name, count in waits_for.items() if count)
        raise ValueError('%s: tasks wait for one another or for a parent that is not there: %s'
                         % (PATH, ', '.join(stuck[:5])))
    return ordered


def longest_path(ordered):
    """Return the seconds that the workflow takes at least, however much runs at one time."""
    ends = {}
    for task in ordered:
        begins = max([ends[parent] for parent in task['parents']] or [0])
        ends[task['id']] = begins + task['runtimeInSeconds']
    return max(ends.values())


def summary(name, count, longest, total):
    print('%s: %d tasks; longest path %.3f s, one after another %.3f s'
          % (name, count, longest, total))


def build(workflow):
    """Return a flow with a step for each task, and a last one that sums up."""
    ordered = parents_first(workflow['tasks'])
    flow = seq.Sequent(name=workflow['name'])
    steps = {}
    for task in ordered:
        steps[task['id']] = flow.add_step(
            task['id'], func=time.sleep, args=(task['runtimeInSeconds'] * SCALE,),
            require=[steps[parent] for parent in task['parents']])
    total = sum(task['runtimeInSeconds'] for task in ordered)
    flow.add_step('summary', func=summary, require=list(steps.values()),
                  args=(workflow['name'], len(ordered), longest_path(ordered) * SCALE,
                        total * SCALE))
    return flow


with open(PATH) as file:
    flow = build(json.load(file))

if __name__ == '__main__':
    started = time.time()
    ok = flow()
    print('took %.3f s' % (time.time() - started))
    raise SystemExit(0 if ok else 1)
