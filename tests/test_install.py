"""Installed without a network, from a wheel, an sdist and the source tree; run; taken away."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest
from buildtools import call, needs_tools, sdist, source_tree, wheel  # noqa: F401 (fixtures)

#: What cuts a program off from every network, its own loopback included.
CUT_OFF = ['unshare', '-n']
FLOW = '''
import sequent as seq

flow = seq.Sequent(store=':memory:')
a = flow.add_step('a', func=print, args=('it is a',))
b = flow.add_step('b', command=['echo', 'it', 'is', 'b'], require=a)
flow.add_step('c', func=print, args=('it is c',), require=b, config={'start_method': 'spawn'})
'''


@pytest.fixture(scope='module', autouse=True)
def no_network():
    if not sys.platform.startswith('linux'):
        pytest.skip('not for systems without network namespaces')
    if shutil.which('unshare') is None or subprocess.call(CUT_OFF + ['true']):
        pytest.skip('unshare -n does not work here: it needs root and util-linux')


def files(folder):
    return {os.path.join(where, name) for where, _, names in os.walk(str(folder))
            for name in names}


class Venv:
    """A fresh virtual environment, in which everything runs without a network."""

    def __init__(self, folder):
        self.folder = str(folder)
        call(['-m', 'venv', self.folder], prefix=CUT_OFF)
        self.before = files(folder)

    def run(self, arguments, **given):
        return call(arguments, python=os.path.join(self.folder, 'bin', 'python'),
                    prefix=CUT_OFF, **given)

    def pip(self, *arguments, **given):
        # Without byte code of pip's own, which would look like a trace.
        return self.run(['-B', '-m', 'pip', '--disable-pip-version-check'] + list(arguments),
                        **given)


@pytest.fixture(scope='module')
def venv(tmp_path_factory):
    """One for all: every test takes away what it has installed."""
    try:
        return Venv(tmp_path_factory.mktemp('fresh') / 'venv')
    except AssertionError as error:
        if 'ensurepip' in str(error):
            pytest.skip('not for Pythons that come without pip')
        raise


def with_tools():
    """Return a path on which setuptools and wheel are, for Pythons whose venv has none."""
    return os.path.dirname(os.path.dirname(importlib.util.find_spec('setuptools').origin))


@pytest.mark.long
def test_a_wheel_is_installed_used_and_taken_away_without_a_trace(venv, wheel, tmp_path):  # noqa: F811
    venv.pip('install', '--no-index', wheel)

    (tmp_path / 'flow.py').write_text(FLOW)
    said = venv.run(['-W', 'error', '-m', 'sequent', 'flow'], cwd=tmp_path)
    assert [word for word in said.splitlines() if word.startswith('it is')] == [
        'it is a', 'it is b', 'it is c'], said
    assert 'executor' in venv.run(['-c', 'import sequent.executor as e; print(e.__name__)'])
    assert venv.pip('show', 'sequent').startswith('Name: sequent\n')
    assert files(venv.folder) > venv.before

    venv.pip('uninstall', '-y', 'sequent')
    assert files(venv.folder) == venv.before
    assert not [name for where, names, _ in os.walk(venv.folder) for name in names
                if name.startswith('sequent')]


@pytest.mark.long
@pytest.mark.parametrize('kind', ['sdist', 'tree'])
def test_sdist_and_source_tree_install_with_the_setuptools_that_are_here(
        venv, kind, request, tmp_path):
    needs_tools()
    what = (request.getfixturevalue('sdist') if kind == 'sdist'
            else source_tree(tmp_path / 'tree'))

    venv.pip('install', '--no-index', '--no-build-isolation', what, PYTHONPATH=with_tools())

    (tmp_path / 'flow.py').write_text(FLOW)
    assert 'it is c' in venv.run(['-W', 'error', '-m', 'sequent', 'flow'], cwd=tmp_path)
    installed = {os.path.basename(os.path.dirname(path)) + '/' + os.path.basename(path)
                 for path in files(venv.folder) - venv.before}
    assert {'site-packages/sequent.py', 'sequent_backends/executor.py',
            'sequent-stubs/__init__.pyi', 'sequent-stubs/executor.pyi'} <= installed
    venv.pip('uninstall', '-y', 'sequent')
    assert [path for path in files(venv.folder) - venv.before if 'sequent' in path] == []


def test_the_sdist_holds_all_that_the_wheel_is_built_and_tested_from(sdist, tmp_path):  # noqa: F811
    import tarfile
    with tarfile.open(sdist) as archive:
        names = {name.partition('/')[2] for name in archive.getnames()}
    assert {'sequent.py', 'setup.py', 'backends/executor.py', 'backends/__init__.pyi',
            'backends/stubs/__init__.pyi', 'backends/stubs/executor.pyi', 'LICENSE', 'README.md',
            'CHANGES.md', 'tests/test_install.py', 'tests/engines/old-sqlite.sh',
            'examples/nightly.py', 'examples/data/sf-temps.csv'} <= names
