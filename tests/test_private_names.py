"""Private names of the standard library: one section, and one backend with a guard for each name,
ask for them; a flow runs without each."""

import ast
import glob
import os
import re
import subprocess
import sys

import pytest

from runtools import HERE, journal, programs  # noqa: F401

ROOT = os.path.dirname(HERE)
CORE = os.path.join(ROOT, 'sequent.py')
SPAWN = os.path.join(ROOT, 'backends', 'spawn.py')
# What these are built on, and do not work without.
EXECUTORS = {
    'executor.py': {'_call_queue', '_executor_manager_thread', '_processes',
                    '_queue_management_thread', '_reader', '_result_queue', '_wlock', '_writer'},
    'pool.py': {'_adjust_process_count', '_call_queue', '_launch_processes', '_max_workers',
                '_process_worker', '_processes', '_result_queue', '_wlock', '_writer'}}
DOCUMENTED = {'_replace', '_asdict', '_fields', '_field_defaults', '_make', '_exit'}


def parsed(path):
    with open(path, encoding='utf-8') as source:
        return ast.parse(source.read())


def is_private(name):
    return isinstance(name, str) and bool(re.match('_[a-z]', name)) and name not in DOCUMENTED


def text_of(node):
    """Return the text that a node stands for, or ''; Python 3.7 calls its attribute ``s``."""
    text = node.value if hasattr(node, 'value') else getattr(node, 's', '')
    return text if isinstance(text, str) else ''


def names_made(tree):
    """Return the names that a file gives to what it makes: they are its own."""
    made = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            made.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if getattr(node.value, 'id', '') in ('self', 'cls', 'new'):
                made.add(node.attr)
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__slots__':
            made.update(ast.literal_eval(node.value))
    return made


def modules_of(tree):
    """Return the names under which a file has modules of the standard library."""
    return {(alias.asname or alias.name).split('.')[0] for node in ast.walk(tree)
            if isinstance(node, ast.Import) for alias in node.names}


def names_asked_for(tree):
    """Yield (line, thing or '', name) of each private name that a file asks somebody else for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.lineno, getattr(node.value, 'id', ''), node.attr
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, 'level', 0):
            for alias in node.names:
                for name in (getattr(node, 'module', '') + '.' + alias.name).split('.'):
                    yield node.lineno, '', name
        elif isinstance(node, ast.Call) and len(node.args) > 1:
            if getattr(node.func, 'id', '') in ('getattr', 'hasattr', 'setattr', 'private_name'):
                for name in text_of(node.args[1]).split('.'):
                    yield node.lineno, '', name


def section_of_names():
    """Return the lines of Section 1."""
    with open(CORE, encoding='utf-8') as source:
        lines = source.read().splitlines()
    first, last = [next(number for number, line in enumerate(lines, 1) if line.startswith(start))
                   for start in ('# 1 Compatibility', '# 2 Vocabulary')]
    return range(first, last)


def test_only_section_1_and_guarded_places_ask_for_private_names_of_the_standard_library():
    paths = [CORE] + glob.glob(os.path.join(ROOT, 'backends', '*.py'))
    own = set().union(*[names_made(parsed(path)) for path in paths])
    found, section = [], section_of_names()
    for path in paths:
        tree, file = parsed(path), os.path.basename(path)
        modules = modules_of(tree)
        found += ['%s:%d: %s' % (file, line, name) for line, thing, name in names_asked_for(tree)
                  if is_private(name) and (name not in own or thing in modules)
                  and name not in EXECUTORS.get(file, ())
                  and not (path == CORE and line in section)
                  and not (path == SPAWN and line in [node.lineno for node in adapters(path)])]
    assert found == []


def adapters(path):
    """Return the calls of a file that ask for a private name, guarded."""
    return [node for node in ast.walk(parsed(path)) if isinstance(node, ast.Call)
            and getattr(node.func, 'id', '') == 'private_name' and len(node.args) == 2]


def paths_asked_for():
    """Return what is asked for with a guard, as ``_popen.finalizer._args``."""
    return sorted({text_of(node.args[1]) for path in (CORE, SPAWN)
                   for node in adapters(path)} - {''})


FLOW = '''
    import concurrent.futures.thread

    def without(thing, path, ask=seq.private_name):
        return None if path == MODE else ask(thing, path)
    seq.private_name = without

    def leave_a_thread():
        thread = threading.Thread(target=journal.note, args=('thread',))
        thread.start()
        return thread.name

    def nested():
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            return executor.submit(max, 1, 2).result()

    region = seq.parameter('region', default='north')
    flow = make(mode='restart', config={'max_concurrent': 4})
    first = flow.add_step('function', func=leave_a_thread)
    flow.add_step('nested', func=nested)
    flow.add_step('spawned', func=nested, config={'start_method': 'spawn'})
    other = seq.start_methods()[-1]
    flow.add_step('served', func=max, args=(1, 2), config={'start_method': other})
    flow.add_step('program', command=['echo', 'said'])
    flow.add_step('thread', func=nested, config={'task_construct': 'thread'})
    flow.add_step('inline', func=int, loop=range(3), config={'task_construct': 'inline'})
    flow.add_step('many', func=int, loop=range(30), require=first)    # the tender starts these
    if __name__ == '__main__':
        sys.exit(0 if flow() else 1)
    '''


@pytest.mark.parametrize('path', ['none'] + paths_asked_for())
def test_a_flow_runs_where_the_standard_library_has_a_name_no_more(path, programs):  # noqa: F811
    # semantics 21.1
    programs.write(FLOW)
    supervisor = programs.start(path)
    assert supervisor.wait() == 0, supervisor.errors()
    assert 'Traceback' not in supervisor.errors()
    of_each = {name: [status for *_, status in attempts]
               for name, attempts in programs.tasks().items()}
    assert {status for found in of_each.values() for status in found} == {'success'}
    assert len(of_each['many']) == 31


@pytest.mark.parametrize('name', ['_getframe'])
def test_the_command_line_runs_where_sys_has_a_name_no_more(name, tmp_path):
    (tmp_path / 'flow.py').write_text(
        'import sequent as seq\nflow = seq.Sequent(store=":memory:")\n'
        'flow.add_step("a", func=print, args=("it is a",))\n')
    done = subprocess.run(
        [sys.executable, '-c', 'import collections, runpy, sys; del sys.%s; '
         'sys.argv = ["sequent", "flow.py"]; runpy.run_module("sequent", None, "__main__", True)'
         % name], cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 and b'it is a' in done.stdout, done.stdout.decode()
