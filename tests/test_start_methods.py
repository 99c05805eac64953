"""What runs under fork runs under spawn and forkserver, wherever its flow stands; what cannot
run there is refused before the run."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from buildtools import ROOT
from runtools import DEADLINE

#: Before 3.7 a forkserver does not tell how a process has ended; it is refused there.
METHODS = [one for one in multiprocessing.get_all_start_methods()
           if one != 'forkserver' or sys.version_info >= (3, 7)]
SPAWNED = [one for one in METHODS if one != 'fork']

#: What every start method needs.
FILES = ['sequent.py', 'backends/spawn.py']

#: What notes that it ran, and by `LAST` that it sees its module to the end.
HEAD = '''
import functools
import os
import {sequent} as seq


def note(*words):
    with open(os.environ['NOTES'], 'a') as notes:
        print(seq.current().name, *words, LAST, file=notes)
    return 'noted'


class Table:
    def __init__(self, name):
        self.name = name

    def load(self, *words):
        note(self.name, *words)

    @classmethod
    def made(cls, name):
        cls(name).load()

    @staticmethod
    def plain():
        note()

    def __call__(self):
        note(self.name)


flow = seq.Sequent('kinds', store=os.environ['NOTES'] + '.db', config={{
    'start_method': os.environ['METHOD'], 'max_concurrent': 2}})
'''
TWO = '''
flow.add_step('function', func=note)
flow.add_step('partial', func=functools.partial(Table('t').load, 1))
LAST = 'seen'
'''
NOTED = ['function seen', 'partial t 1 seen']
ALL = '''
first = flow.add_step('function', func=note, args=(1,))
flow.add_step('method', func=Table('t').load)
flow.add_step('partial', func=functools.partial(note, 2))
flow.add_step('object', func=Table('u'))
flow.add_step('class', func=Table.made, args=('v',))
flow.add_step('static', func=Table.plain)
flow.add_step('loop', func=note, args=(seq.item, first.result), loop=[1, 2])
flow.add_step('argument', func=Table.load, args=(Table('w'),))
flow.add_step('builtin', func=print)
LAST = 'seen'
'''
ALL_NOTED = ['argument w seen', 'class v seen', 'function 1 seen', 'loop 1 noted seen',
             'loop 2 noted seen', 'method t seen', 'object u seen', 'partial 2 seen',
             'static seen']
UNGUARDED = 'ok = flow()\nraise SystemExit(0 if ok else 1)\n'
GUARDED = '''
def main():
    return 0 if flow() else 1


if __name__ == '__main__':
    raise SystemExit(main())
'''


class Host:
    """A folder in which flows lie in all the places where they may."""

    def __init__(self, folder):
        self.folder = str(folder)
        self.notes = os.path.join(self.folder, 'notes')

    def path(self, *parts):
        path = os.path.join(self.folder, *parts)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return path

    def write(self, text, *parts):
        with open(self.path(*parts), 'w') as stream:
            stream.write(text)

    def package(self, *parts):
        for number in range(1, len(parts) + 1):
            self.write('', *(parts[:number] + ('__init__.py',)))

    def vendor(self, *parts):
        for file in FILES:
            shutil.copy(os.path.join(ROOT, file), self.path(*(parts + (file,))))

    def zip(self, name, **members):
        with zipfile.ZipFile(self.path(name), 'w') as archive:
            for file in FILES:
                archive.write(os.path.join(ROOT, file), file)
            for member, text in members.items():
                archive.writestr(member + '.py', text)

    def run(self, arguments, method, path=()):
        """Run Python in the folder, with nothing of ours on its path but what is given."""
        environment = dict(os.environ, NOTES=self.notes, METHOD=method,
                           PYTHONPATH=os.pathsep.join(path), PYTHONDONTWRITEBYTECODE='')
        return subprocess.run(
            [sys.executable, '-W', 'error'] + arguments, cwd=self.folder, env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            universal_newlines=True, timeout=3 * DEADLINE)

    def noted(self):
        if not os.path.exists(self.notes):
            return []
        with open(self.notes) as stream:
            return sorted(stream.read().splitlines())


@pytest.fixture
def host(tmp_path):
    return Host(tmp_path)


def in_a_file(host, text):
    host.write(text.format(sequent='sequent'), 'flow.py')
    return [ROOT]


def in_a_folder(host, text):
    host.write(text.format(sequent='sequent'), 'jobs', 'flow.py')
    return [ROOT]


def in_a_package(host, text):
    host.package('pkg', 'jobs')
    host.write(text.format(sequent='sequent'), 'pkg', 'jobs', 'flow.py')
    host.write(text.format(sequent='sequent'), 'pkg', '__main__.py')
    return [ROOT]


def beside_a_vendored_copy(host, text):
    host.package('legacy', 'vendor')
    host.vendor('legacy', 'vendor')
    host.write(text.format(sequent='legacy.vendor.sequent'), 'flow.py')
    return []


def inside_the_package_of_a_copy(host, text):
    host.package('legacy', 'vendor')
    host.vendor('legacy', 'vendor')
    text = text.format(sequent='sequent').replace('import sequent', 'from .vendor import sequent')
    host.write(text, 'legacy', 'flow.py')
    return []


def beside_a_zip(host, text):
    host.zip('lib.zip')
    host.write(text.format(sequent='sequent'), 'flow.py')
    return ['lib.zip']


def in_a_zip(host, text):
    text = text.format(sequent='sequent')
    host.zip('app.zip', flow=text, __main__=text)
    return ['app.zip']


IMPORTED = ['-c', 'import flow; raise SystemExit(0 if flow.flow() else 1)']
#: Where a flow stands, and by what it is run. A flow in a module that is imported has a guard.
WAYS = [
    (in_a_file, ['flow.py']),
    (in_a_file, ['-m', 'flow']),
    (in_a_file, ['-m', 'sequent', 'flow']),
    (in_a_file, ['-m', 'sequent', 'flow.py']),
    (in_a_file, IMPORTED),
    (in_a_folder, ['jobs/flow.py']),
    (in_a_folder, ['-m', 'sequent', 'jobs/flow.py']),
    (in_a_package, ['-m', 'pkg.jobs.flow']),
    (in_a_package, ['-m', 'pkg']),
    (in_a_package, ['pkg']),
    (in_a_package, ['-m', 'sequent', 'pkg.jobs.flow']),
    (in_a_package, ['-m', 'sequent', 'pkg/jobs/flow.py']),
    (beside_a_vendored_copy, ['flow.py']),
    (beside_a_vendored_copy, ['-m', 'legacy.vendor.sequent', 'flow']),
    (beside_a_vendored_copy, ['-m', 'legacy.vendor.sequent', 'flow.py']),
    (inside_the_package_of_a_copy, ['-m', 'legacy.flow']),
    (inside_the_package_of_a_copy, ['-m', 'legacy.vendor.sequent', 'legacy.flow']),
    (beside_a_zip, ['flow.py']),
    (beside_a_zip, ['-m', 'sequent', 'flow']),
    (in_a_zip, ['app.zip']),
    (in_a_zip, ['-m', 'flow']),
    (in_a_zip, ['-m', 'sequent', 'flow']),
]


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('place, arguments', WAYS, ids=[
    '%s: %s' % (place.__name__, ' '.join(arguments[:4])) for place, arguments in WAYS])
def test_functions_run_once_wherever_their_flow_stands(host, place, arguments, method):
    # semantics 4.16
    path = place(host, HEAD + TWO + (GUARDED if arguments is IMPORTED else UNGUARDED))

    done = host.run(arguments, method, path)

    assert done.returncode == 0, done.stdout
    assert host.noted() == NOTED, done.stdout


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('arguments', [['flow.py'], ['-m', 'sequent', 'flow']], ids=' '.join)
def test_functions_of_every_kind_run_under_every_start_method(host, arguments, method):
    path = in_a_file(host, HEAD + ALL + GUARDED)

    done = host.run(arguments, method, path)

    assert done.returncode == 0, done.stdout
    assert host.noted() == ALL_NOTED, done.stdout


#: What lives in the memory of the supervisor only; each comes after a step that must not run.
UNSENT = {
    'a lambda': 'lambda: note()',
    'a closure': '(lambda n: functools.partial(lambda: note(n)))(1)',
    'a lambda inside a partial': 'functools.partial(lambda word: note(word), 1)',
    'a method of something local': 'local()',
    'an object that holds a lock': 'Locked().method',
}
LOCAL = '''
import threading


def local():
    class Local:
        def method(self):
            note()
    return Local().method


class Locked:
    def __init__(self):
        self.lock = threading.Lock()

    def method(self):
        note()


flow.add_step('first', func=note)
flow.add_step('unsent', func=%s)
LAST = 'seen'
'''


@pytest.mark.parametrize('kind', sorted(UNSENT))
def test_under_fork_what_lives_in_memory_only_runs_too(host, kind):
    path = in_a_file(host, HEAD + LOCAL % UNSENT[kind] + UNGUARDED)
    done = host.run(['flow.py'], 'fork', path)
    assert done.returncode == 0, done.stdout
    assert [line.split()[0] for line in host.noted()] == ['first', 'unsent']


@pytest.mark.parametrize('method', SPAWNED)
@pytest.mark.parametrize('kind', sorted(UNSENT))
def test_elsewhere_it_is_refused_by_the_name_of_its_step_before_anything_runs(host, kind, method):
    # semantics 4.16
    path = in_a_file(host, HEAD + LOCAL % UNSENT[kind] + UNGUARDED)

    done = host.run(['-m', 'sequent', 'flow.py'], method, path)

    assert done.returncode == 3, done.stdout
    assert "step 'unsent'" in done.stdout and "by '%s'" % method in done.stdout, done.stdout
    assert 'function at the top of a module' in done.stdout and "'fork'" in done.stdout
    assert host.noted() == [] and 'Traceback' not in done.stdout, done.stdout


@pytest.mark.parametrize('method', METHODS)
def test_a_function_of_a_program_that_is_in_no_file_runs_or_is_refused_before_the_run(
        host, method):
    program = (HEAD + TWO + UNGUARDED).format(sequent='sequent')

    done = host.run(['-c', program], method, [ROOT])

    if method == 'fork':
        assert done.returncode == 0 and host.noted() == NOTED, done.stdout
    else:
        assert "step 'function'" in done.stdout and 'ConstructError' in done.stdout, done.stdout
        assert 'starts' not in done.stdout and host.noted() == []
