"""The library as it is delivered: a wheel, one copied file, and sections that read downward."""

import ast
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile

import pytest
from buildtools import wheel  # noqa: F401 (a fixture)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE = os.path.join(ROOT, 'sequent.py')

SECTIONS = ['Compatibility', 'Vocabulary', 'Model', 'Plan', 'Engine', 'Stores', 'Constructs',
            'Driver', 'Facades', 'Command line']
PURE = ('Vocabulary', 'Model', 'Plan', 'Engine')
IMPURE_MODULES = {'os', 'time', 'threading', 'subprocess', 'multiprocessing', 'sqlite3', 'signal'}

FLOW = '''
    import {0} as seq
    flow = seq.Sequent(store='f.db')
    a = flow.add_step('a', func=print, args=('it is a',))
    flow.add_step('b', func=print, args=('it is b',), require=((a, seq.STEP_SUCCESS),))
'''


def run(arguments, cwd):
    """Run Python, on no path but its own, with every warning an error."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    return subprocess.run([sys.executable, '-W', 'error'] + arguments, cwd=str(cwd),
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, timeout=300)


# One file, copied #################################################################


def test_the_file_alone_in_an_empty_folder_runs_a_flow(tmp_path):
    # semantics 21.1
    shutil.copy(SOURCE, str(tmp_path))
    (tmp_path / 'flow.py').write_text(textwrap.dedent(FLOW.format('sequent')))

    done = run(['-m', 'sequent', 'flow'], tmp_path)

    assert done.returncode == 0, done.stdout
    assert done.stdout.index('it is a') < done.stdout.index('it is b')


@pytest.mark.parametrize('arguments', [['-m', 'legacy.vendor.sequent', 'flow'],
                                       ['-m', 'legacy.vendor.sequent', 'flow.py'],
                                       ['-c', 'import flow; assert flow.flow()']])
def test_the_file_inside_another_package_runs_a_flow(tmp_path, arguments):
    vendor = tmp_path / 'legacy' / 'vendor'
    vendor.mkdir(parents=True)
    (tmp_path / 'legacy' / '__init__.py').write_text('')
    (vendor / '__init__.py').write_text('')
    shutil.copy(SOURCE, str(vendor))
    (tmp_path / 'flow.py').write_text(textwrap.dedent(FLOW.format('legacy.vendor.sequent')))

    done = run(arguments, tmp_path)

    assert done.returncode == 0, done.stdout
    assert done.stdout.index('it is a') < done.stdout.index('it is b')


def test_a_vendored_copy_finds_its_backends(tmp_path):
    vendor = tmp_path / 'legacy' / 'vendor'
    vendor.mkdir(parents=True)
    shutil.copy(SOURCE, str(vendor))
    shutil.copytree(os.path.join(ROOT, 'backends'), str(vendor / 'backends'),
                    ignore=shutil.ignore_patterns('__pycache__'))

    done = run(['-c', 'import legacy.vendor.sequent.executor as e; print(e.__name__)'], tmp_path)

    assert done.stdout == 'legacy.vendor.sequent.executor\n'


BACKEND = '''
    print('loaded')
    from . import TaskConstruct, run_job
    BACKEND = {
        'construct': 'MineConstruct',
        'config': {'speed': {'default': 7, 'kind': 'int', 'on_steps': True, 'help': 'how fast'}},
    }


    class MineConstruct(TaskConstruct):
        inline = True

        def release(self, jobs):
            for job in jobs:
                print('at speed', job.config['speed'])
                self.port.done(job, run_job(job))
'''


def test_a_file_in_backends_is_known_by_its_literal_and_loaded_when_it_is_used(tmp_path):
    # semantics 21.6, 4.12
    shutil.copy(SOURCE, str(tmp_path))
    (tmp_path / 'backends').mkdir()
    (tmp_path / 'backends' / 'mine.py').write_text(textwrap.dedent(BACKEND))
    program = textwrap.dedent('''
        import sequent as seq
        for construct in ('inline', 'mine'):
            flow = seq.Sequent(store=':memory:', logging_level='WARNING', config={
                'task_construct': construct, 'speed': 1, 'sped': 1})
            flow.add_step('a', func=print, args=(construct,), config={'speed': 2})
            assert flow()
        ''')

    done = run(['-c', program], tmp_path)

    lines = [line for line in done.stdout.splitlines() if 'WARNING' not in line]
    assert lines == ['inline', 'loaded', 'at speed 2', 'mine'], done.stdout
    warnings = [line for line in done.stdout.splitlines() if 'WARNING' in line]
    assert len(warnings) == 2
    said = "'sped' is ignored; did you mean 'speed'?"
    assert [line for line in warnings if said not in line] == []


@pytest.mark.parametrize('arguments', [['simple.py'], ['-m', 'sequent', 'simple']])
def test_the_first_example_beside_the_file_runs_once(tmp_path, arguments):
    shutil.copy(SOURCE, str(tmp_path))
    shutil.copy(os.path.join(ROOT, 'examples', 'simple.py'), str(tmp_path))

    done = run(arguments, tmp_path)

    assert done.returncode == 0, done.stdout
    assert done.stdout.count('report Monday\n') == done.stdout.count('report Tuesday\n') == 1


def test_importing_it_opens_nothing_and_loads_nothing_heavy(tmp_path):
    # semantics 21.2
    heavy = ['sqlite3', 'multiprocessing', 'argparse', 'logging.config', 'tempfile', 'socket']
    program = 'import sys, sequent; print([m for m in %r if m in sys.modules])' % (heavy,)
    shutil.copy(SOURCE, str(tmp_path))

    done = run(['-S', '-B', '-c', program], tmp_path)

    assert done.stdout == '[]\n'
    assert os.listdir(str(tmp_path)) == ['sequent.py']


def test_importing_it_loads_what_its_top_says_and_nothing_else(tmp_path, source):
    # semantics 21.2
    needed = {alias.name for one in ast.parse(source).body if isinstance(one, ast.Import)
              for alias in one.names}
    shutil.copy(SOURCE, str(tmp_path))

    def loaded_by(statement):
        done = run(['-S', '-B', '-c', statement + '\nimport sys; print(*sys.modules)'], tmp_path)
        return set(done.stdout.split())

    assert loaded_by('import sequent') == loaded_by(
        'import ' + ', '.join(sorted(needed))) | {'sequent', '_sequent_common_1'}


@pytest.mark.parametrize('used, unused', [
    ("store=':memory:', config={'task_construct': 'inline'}",
     'sqlite3 multiprocessing subprocess argparse asyncio'),
    ("store=':memory:', config={'task_construct': 'thread'}",
     'sqlite3 multiprocessing subprocess argparse asyncio'),
    ("store='f.db', config={'task_construct': 'inline'}",
     'multiprocessing subprocess argparse asyncio'),
    ("store=':memory:'", 'sqlite3 argparse asyncio concurrent.futures'),
])
def test_a_run_loads_what_it_uses(tmp_path, used, unused):
    shutil.copy(SOURCE, str(tmp_path))
    program = textwrap.dedent("""
        import sys, sequent
        flow = sequent.Sequent('f', %s)
        flow.add_step('a', func=len, args=('x',))
        assert flow()
        print('loaded:', *[name for name in %r.split() if name in sys.modules])
        """) % (used, unused)

    done = run(['-S', '-B', '-c', program], tmp_path)

    assert done.stdout.splitlines()[-1] == 'loaded:', done.stdout


# The wheel ########################################################################


def test_the_wheel_holds_sequent_and_its_backends_and_nothing_else_importable(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if '.dist-info/' not in name]

    expected = ['%s/%s' % (package, name) for package, folder in (
                    ('sequent_backends', 'backends'), ('sequent-stubs', 'backends/stubs'))
                for name in os.listdir(os.path.join(ROOT, folder))
                if name.endswith(('.py', '.pyi'))]
    assert sorted(names) == sorted(['sequent.py'] + expected)


def test_the_installed_wheel_runs_a_flow_and_finds_its_backends(wheel, tmp_path):
    # semantics 21.1
    venv = tmp_path / 'venv'
    # Without a pip of its own, which not every Python has at hand.
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', str(venv)], check=True,
                   timeout=300)
    python = str(venv / 'bin' / 'python')
    subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', '--no-index', '--no-deps',
                    '--ignore-installed', '--prefix', str(venv), wheel], check=True, timeout=300)
    (tmp_path / 'flow.py').write_text(textwrap.dedent(FLOW.format('sequent')))
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}

    def python_says(*arguments):
        return subprocess.run([python, '-W', 'error'] + list(arguments), cwd=str(tmp_path),
                              env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              universal_newlines=True, timeout=120).stdout

    assert 'it is b' in python_says('-m', 'sequent', 'flow')
    assert python_says('-c', 'import sequent.executor as e; print(e.__file__)').rstrip().endswith(
        os.path.join('sequent_backends', 'executor.py'))
    version = python_says('-m', 'sequent', '--version').split()[1]
    assert os.path.basename(wheel).startswith('sequent-%s-' % version)


# The order of sections ############################################################


@pytest.fixture(scope='module')
def source():
    with open(SOURCE, encoding='utf-8') as file:
        return file.read()


def banners(source):
    """Return [(line, section)] of the numbered banner lines."""
    found = [(source.count('\n', 0, match.start()) + 1, int(match.group(1)), match.group(2))
             for match in re.finditer('^# ([0-9]+) (.+?) #+$', source, re.M)]
    assert [number for _, number, _ in found] == list(range(1, len(found) + 1))
    return [(line, title) for line, _, title in found]


def section_of(line, starts):
    """Return the index of the section that a line is in; what is above the first is in -1."""
    return sum(1 for start, _ in starts if start <= line) - 1


def names_bound(statement):
    """Return what a statement at the top level of the module defines (imports left out)."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
        return [statement.name]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return []
    return [node.id for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def test_the_sections_stand_in_their_order(source):
    assert [title for _, title in banners(source)] == SECTIONS


def local_names(function):
    """Return the names that a function binds itself: they hide those of the module."""
    arguments = function.args
    names = {arg.arg for arg in arguments.args + arguments.kwonlyargs
             + [arg for arg in (arguments.vararg, arguments.kwarg) if arg]}
    body = function.body if isinstance(function.body, list) else [function.body]
    for node in (inner for one in body for inner in ast.walk(one)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((alias.asname or alias.name).split('.')[0] for alias in node.names)
    return names


def global_names(node, hidden=frozenset()):
    """Yield the Name nodes below a node that mean something of the module."""
    if isinstance(node, ast.Name):
        if isinstance(node.ctx, ast.Load) and node.id not in hidden:
            yield node
        return
    if isinstance(node, (ast.FunctionDef, ast.Lambda)):
        hidden = hidden | local_names(node)
    for child in ast.iter_child_nodes(node):
        for name in global_names(child, hidden):
            yield name


def test_no_section_names_a_later_one(source):
    starts = banners(source)
    tree = ast.parse(source)
    home = {}
    for statement in tree.body:
        for name in names_bound(statement):
            home.setdefault(name, section_of(statement.lineno, starts))
    wrong = []
    for statement in tree.body:
        here = section_of(statement.lineno, starts)
        wrong += ['line %d: section %d names %r of section %d'
                  % (node.lineno, here + 1, node.id, home[node.id] + 1)
                  for node in global_names(statement) if home.get(node.id, -1) > here]
    assert wrong == []


def test_the_engine_and_what_is_above_it_use_nothing_of_the_world(source):
    starts = banners(source)
    pure = [n for n, (_, title) in enumerate(starts) if title in PURE]
    wrong = []
    for node in ast.walk(ast.parse(source)):
        used = []
        if isinstance(node, ast.Import):
            used = [alias.name.split('.')[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            used = [(node.module or '').split('.')[0]]
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            used = [node.id]
        if set(used) & IMPURE_MODULES and section_of(node.lineno, starts) in pure:
            wrong.append('line %d: %s' % (node.lineno, ', '.join(used)))
    assert pure and wrong == []


def test_every_public_name_is_there():
    import sequent
    assert [name for name in sequent.__all__ if not hasattr(sequent, name)] == []
    backends = {name[:-3] for name in os.listdir(os.path.join(ROOT, 'backends'))
                if name.endswith('.py')}
    assert not backends & set(sequent.__all__), 'a backend may not be named as a public name'


def test_the_table_of_backends_has_a_line_for_each_file():
    with open(os.path.join(ROOT, 'backends', 'README.md'), encoding='utf-8') as file:
        listed = re.findall(r'^\| `(\w+\.py)` ', file.read(), re.MULTILINE)
    assert sorted(listed) == sorted(name for name in os.listdir(os.path.join(ROOT, 'backends'))
                                    if name.endswith('.py'))
