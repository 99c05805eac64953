"""What tests of the delivered library share: a wheel and an sdist, built without a network."""

import glob
import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: What the project consists of; the rest of a working copy (logs, stores, caches) is left out.
FILES = ('sequent.py', 'setup.py', 'setup.cfg', 'README.md', 'CHANGES.md', 'LICENSE',
         'MANIFEST.in')
FOLDERS = ('backends', 'tests', 'examples')


def needs_tools():
    """Skip the test where nothing can be built."""
    if not all(importlib.util.find_spec(name) for name in ('setuptools', 'wheel')):
        pytest.skip('needs python -m pip install setuptools wheel')


def source_tree(folder):
    """Copy the project to a folder that is not there yet; return its path."""
    os.makedirs(str(folder))
    for name in FILES:
        shutil.copy(os.path.join(ROOT, name), str(folder))
    for name in FOLDERS:
        shutil.copytree(os.path.join(ROOT, name), os.path.join(str(folder), name),
                        ignore=shutil.ignore_patterns('__pycache__', '*.run.db*', '*.out'))
    return str(folder)


def call(arguments, cwd=None, python=sys.executable, prefix=(), **variables):
    """Run a Python, this one by default; return what it wrote."""
    environment = {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}
    environment.update(variables)
    done = subprocess.run(list(prefix) + [python] + arguments, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, universal_newlines=True, timeout=300,
                          cwd=cwd and str(cwd), env=environment)
    assert done.returncode == 0, done.stdout
    return done.stdout


def built_wheel(folder):
    """Build a wheel as ``pip wheel`` does, with the setuptools that are here; return its path."""
    tree = source_tree(os.path.join(str(folder), 'tree'))
    call(['-m', 'pip', 'wheel', '-q', '--no-deps', '--no-index', '--no-build-isolation',
          '-w', str(folder), tree])
    [path] = glob.glob(os.path.join(str(folder), '*.whl'))
    return path


def built_sdist(folder):
    """Build a source distribution; return its path."""
    tree = source_tree(os.path.join(str(folder), 'tree'))
    call(['setup.py', '-q', 'sdist', '-d', str(folder)], cwd=tree)
    [path] = glob.glob(os.path.join(str(folder), '*.tar.gz'))
    return path


@pytest.fixture(scope='session')
def wheel(tmp_path_factory):
    needs_tools()
    return built_wheel(tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='session')
def sdist(tmp_path_factory):
    needs_tools()
    return built_sdist(tmp_path_factory.mktemp('sdist'))
