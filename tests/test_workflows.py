"""Flows as large as real ones: real workflows, wide and long flows, a long loop.

``data`` holds the graphs of three real workflows. Where a folder with more of them is beside the
project, these are tested, too.
"""

import glob
import json
import os
import subprocess
import sys
import textwrap

import pytest

import sequent as seq

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATHS = sorted(glob.glob(os.path.join(ROOT, 'tests', 'data', '*_tasks.json'))
               + glob.glob(os.path.join(ROOT, '..', 'shared', 'wfinstances', '*.json')))


def load(path):
    """Return {task: its parents} of a workflow."""
    with open(path) as file:
        return {task['id']: task['parents'] for task in json.load(file)['tasks']}


def add_all(flow, graph, func):
    """Add a step for each task of a graph; parents first, whatever the order of the file."""
    steps = {}
    while len(steps) < len(graph):
        before = len(steps)
        for name, parents in graph.items():
            if name not in steps and all(parent in steps for parent in parents):
                steps[name] = flow.add_step(name, func=func, args=(name,),
                                            require=[steps[parent] for parent in parents])
        assert len(steps) > before, 'the workflow has a circle'
    return steps


def check(graph, order):
    """Assert that every task ran once, after its parents."""
    assert sorted(order) == sorted(graph)
    position = {name: n for n, name in enumerate(order)}
    for name, parents in graph.items():
        for parent in parents:
            assert position[parent] < position[name]


def test_three_real_workflows_come_with_the_tests():
    assert [len(load(path)) for path in PATHS if path.startswith(os.path.join(ROOT, 'tests'))] == [
        103, 197, 42]


@pytest.mark.parametrize('path', PATHS, ids=[os.path.basename(path) for path in PATHS])
def test_a_real_workflow_runs_every_task_once_after_its_parents(path):
    graph, order = load(path), []
    flow = seq.Sequent(store=seq.MemoryStore(), config={'task_construct': 'inline'})
    add_all(flow, graph, order.append)

    assert flow.run() is True

    check(graph, order)
    assert {task.path: str(task.status) for task in flow.tasks()} == dict.fromkeys(
        graph, 'success')


def leave_a_line(path, name):
    """Append a line to a file that many processes write to: short appends do not mix."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, ('%s\n' % name).encode())
    finally:
        os.close(descriptor)


@pytest.mark.long
def test_a_real_workflow_runs_in_processes_from_a_file_store(tmp_path):
    graph = load(os.path.join(ROOT, 'tests', 'data', '197_tasks.json'))
    lines = str(tmp_path / 'lines')
    flow = seq.Sequent(name='workflow', store=str(tmp_path / 'flow.db'),
                       config={'max_concurrent': 8})

    def work(name):
        leave_a_line(lines, name)

    add_all(flow, graph, work)
    with flow:
        assert flow.run() is True

    with open(lines) as file:
        check(graph, file.read().split())


def test_ten_thousand_independent_steps_and_one_that_requires_them_all():
    order = []
    flow = seq.Sequent(store=':memory:', config={'task_construct': 'inline'})
    steps = [flow.add_step('s%d' % n, func=order.append, args=(n,)) for n in range(10000)]
    flow.add_step('last', func=order.append, args=('last',), require=tuple(steps))

    assert flow.run() is True

    assert order == list(range(10000)) + ['last']


def test_a_chain_of_ten_thousand():
    order = []
    flow = seq.Sequent(store=':memory:', config={'task_construct': 'inline'})
    step = None
    for n in range(10000):
        step = flow.add_step('s%d' % n, func=order.append, args=(n,),
                             require=(step,) if step else ())

    assert flow.run() is True

    assert order == list(range(10000))


LONG_LOOP = '''
import resource
import sequent as seq

count = 0
kilobytes = {}

def resident():
    with open('/proc/self/statm') as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() // 1024

def work():
    global count
    count += 1
    if count in (1000, 100000):
        kilobytes[count] = resident()

flow = seq.Sequent(store=':memory:', config={'task_construct': 'inline'})
loop = flow.add_step('loop', loop=range(100000))
first = loop.add_step('first', func=work)
loop.add_step('second', func=None, require=first)
assert flow.run() is True
assert count == 100000
print(kilobytes[100000] - kilobytes[1000])
'''


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists('/proc/self/statm'),
                    reason='not for this platform: it does not say what memory is resident')
def test_a_loop_of_100000_iterations_grows_by_less_than_10_mb(tmp_path):
    program = tmp_path / 'long_loop.py'
    program.write_text(textwrap.dedent(LONG_LOOP))

    done = subprocess.run([sys.executable, '-W', 'error', str(program)], stdout=subprocess.PIPE,
                          universal_newlines=True, timeout=600, cwd=str(tmp_path))

    assert done.returncode == 0
    assert int(done.stdout) < 10 * 1024
