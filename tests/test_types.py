"""The types of the public interface: the stub, as a copy beside the file, and installed."""

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap

import buildtools
import pytest
from buildtools import ROOT, wheel  # noqa: F401 (a fixture)

import sequent

needs_mypy = pytest.mark.skipif(
    importlib.util.find_spec('mypy') is None,
    reason='not for Pythons without mypy: .ci/run runs it where mypy is')
FLOW = os.path.join(ROOT, 'tests', 'typed_flow.py')
STUBS = os.path.join(ROOT, 'backends', 'stubs')
STUB = os.path.join(STUBS, '__init__.pyi')

#: Enumerations of str are made by the metaclass, which mypy takes for str's own making.
ALLOWED = r'sequent\.(StepStatus|StepState|TaskStatus|StepReplay|RunMode)\.__new__'

#: What a checker finds in a flow: the statement, and a word of the message.
MISTAKES = [
    ("flow.add_step('b', func=load, args=('x'))", 'args'),
    ("flow.add_step('b', func='load')", 'func'),
    ("flow.add_step('b', require='a')", 'require'),
    ("flow.add_step('b', require=(a, 'succes'))", 'require'),
    ("flow.add_step('b', requir=a)", 'requir'),
    ("flow.add_step('b', load, ('x',), {}, (a,))", 'Argument 5'),
    ("flow.add_step(3)", 'incompatible type "int"'),
    ("flow.add_step('b', delay='1')", 'delay'),
    ("flow.add_step('b', acquires=[('pool', 1)])", 'acquires|List item'),
    ("flow.add_step('b', recovery={seq.STEP_SUCCESS: 'again'})", 'Dict entry'),
    ("seq.Sequent(run_mode='restrat')", 'run_mode'),
    ("seq.Command(['x'], ok=0)", 'ok'),
    ("n: int = seq.parameter('day', default='x')", 'Incompatible types'),
    ("a.resutl", 'resutl'),
]


def mypy(arguments, cwd, **variables):
    """Return (exit code, output) of ``mypy --strict``, without the settings of a project."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    done = subprocess.run(
        [sys.executable, '-m'] + arguments, cwd=str(cwd), env=dict(environment, **variables),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=300)
    return done.returncode, done.stdout


def strict(*files, **given):
    cwd = given.pop('cwd')
    return mypy(['mypy', '--strict', '--config-file=', '--cache-dir', os.devnull]
                + list(files), cwd, **given)


def test_the_stub_has_every_public_name_in_the_same_order():
    with open(STUB) as stream:
        tree = ast.parse(stream.read())
    [names] = [ast.literal_eval(one.value) for one in tree.body if isinstance(one, ast.Assign)
               and one.targets[0].id == '__all__']
    assert names == sequent.__all__


def test_the_typed_flow_runs(tmp_path):
    said = buildtools.call([FLOW], cwd=tmp_path, PYTHONPATH=ROOT)
    assert 'report: success' in said and said.count('city_load: success') == 2


@pytest.fixture
def types(tmp_path):
    """A folder in which a checker finds the types."""
    shutil.copytree(STUBS, str(tmp_path / 'types' / 'sequent'))
    return str(tmp_path / 'types')


@needs_mypy
@pytest.mark.long
@pytest.mark.parametrize('path', [os.path.join(ROOT, 'sequent.py'), STUB, FLOW],
                         ids=os.path.basename)
def test_mypy_strict_passes(path, types, tmp_path):
    code, said = strict(path, cwd=tmp_path, **({} if path.endswith('sequent.py') else
                                               {'MYPYPATH': types}))
    assert code == 0, said


@needs_mypy
def test_stub_and_code_say_the_same(types, tmp_path):
    (tmp_path / 'allowed').write_text(ALLOWED)
    code, said = mypy(['mypy.stubtest', 'sequent', '--allowlist', str(tmp_path / 'allowed'),
                       '--ignore-unused-allowlist'],
                      ROOT, MYPYPATH=types)
    assert code == 0, said


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):  # noqa: F811
    """A folder in which nothing is but a virtual environment with the wheel: its Python."""
    venv = tmp_path_factory.mktemp('installed') / 'venv'
    buildtools.call(['-m', 'venv', '--without-pip', str(venv)])
    buildtools.call(['-m', 'pip', 'install', '-q', '--no-index', '--no-deps',
                     '--ignore-installed', '--prefix', str(venv), wheel])
    return str(venv / 'bin' / 'python')


@pytest.fixture
def vendored(tmp_path):
    """A folder with the file and its stub within a package."""
    vendor = tmp_path / 'legacy' / 'vendor'
    vendor.mkdir(parents=True)
    for folder in (vendor, vendor.parent):
        (folder / '__init__.py').write_text('')
    shutil.copy(os.path.join(ROOT, 'sequent.py'), str(vendor))
    shutil.copy(STUB, str(vendor / 'sequent.pyi'))
    return tmp_path


@needs_mypy
@pytest.mark.long
def test_types_reach_an_installed_user(installed, tmp_path):
    shutil.copy(FLOW, str(tmp_path))
    (tmp_path / 'pool.py').write_text(
        'from sequent.executor import ExecutorConstruct\nExecutorConstruct(executor=3)\n')
    good, said = strict('--python-executable', installed, 'typed_flow.py', cwd=tmp_path)
    bad, found = strict('--python-executable', installed, 'pool.py', cwd=tmp_path)
    assert good == 0, said
    assert bad == 1 and 'pool.py:2: error: Argument "executor"' in found, found


@needs_mypy
def test_types_reach_one_who_copies_stub_and_file(vendored):
    with open(FLOW) as stream:
        text = stream.read()
    (vendored / 'flow.py').write_text(
        text.replace('import sequent as seq', 'import legacy.vendor.sequent as seq'))
    code, said = strict('.', cwd=vendored)
    assert code == 0, said


@needs_mypy
def test_what_is_wrong_in_a_flow_is_found_before_it_runs(types, tmp_path):
    head = textwrap.dedent("""\
        import sequent as seq
        def load(city: str) -> None: ...
        flow = seq.Sequent()
        a = flow.add_step('a', func=load, args=('x',))
        """)
    first = head.count('\n') + 1
    (tmp_path / 'flow.py').write_text(head + ''.join(one + '\n' for one, _ in MISTAKES))
    code, said = strict('flow.py', cwd=tmp_path, MYPYPATH=types)
    found = {int(line.split(':')[1]): line for line in said.splitlines() if ': error: ' in line}
    for number, (statement, words) in enumerate(MISTAKES, first):
        assert any(word in found.get(number, '') for word in words.split('|')), (statement, said)
    assert code == 1 and min(found) == first
