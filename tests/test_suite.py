"""The tests themselves: where they can be started, which of them run, and what they name."""

import ast
import collections
import os
import re
import shutil
import subprocess
import sys
import textwrap

import pytest

TESTS = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture
def suite(tmp_path):
    """Return a function that runs pytest on a small suite with the `conftest.py` of this one."""
    (tmp_path / 'tests').mkdir()
    for name in ('conftest.py', 'sample.py', 'tally.py'):
        shutil.copy(os.path.join(TESTS, name), str(tmp_path / 'tests'))
    shutil.copy(os.path.join(os.path.dirname(TESTS), 'setup.cfg'), str(tmp_path))

    def run(tests, *arguments, before='', **environment):
        (tmp_path / 'tests' / 'test_kills.py').write_text(textwrap.dedent(tests))
        variables = {name: os.environ[name] for name in os.environ
                     if not name.startswith('SEQUENT_')}
        code = '%s\nimport os, sys\nos.execv(sys.executable, [sys.executable] + sys.argv[1:])' % (
            textwrap.dedent(before))
        done = subprocess.run(
            [sys.executable, '-c', code, '-m', 'pytest', '-v'] + list(arguments),
            cwd=str(tmp_path), env=dict(variables, **environment), stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, universal_newlines=True, timeout=300)
        return done.returncode, done.stdout

    return run


# Where tests are started ##########################################################


def test_signals_that_were_ignored_or_blocked_are_sent_to_tests_and_their_programs(suite):
    # As nohup, cron, a shell script's "&" and some CI start Python.
    code, printed = suite('''
        import os, signal, subprocess, sys, time
        import pytest

        NAMES = ['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM', 'SIGUSR1']
        PROGRAM = 'import os, signal; os.kill(os.getpid(), signal.%s)'

        @pytest.mark.parametrize('name', NAMES)
        def test_a_program_is_ended(name):
            done = subprocess.run([sys.executable, '-c', PROGRAM % name], stderr=subprocess.PIPE)
            assert done.returncode == (1 if sys.version_info < (3, 8) and name == 'SIGINT'
                                       else -getattr(signal, name))

        def test_this_process_is_interrupted():
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        ''', before='''
        import signal
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
        for name in ('SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGUSR1', 'SIGCHLD'):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        ''', SEQUENT_SAMPLE='all')

    assert code == 0, printed
    assert '6 passed' in printed


# Which tests run ##################################################################

TESTS_TO_DRAW = '''
    import pytest

    @pytest.mark.parametrize('number', range(40))
    def test_many(number):
        pass

    @pytest.mark.parametrize('number', range(3))
    def test_few(number):
        pass

    def test_single():
        pass

    @pytest.mark.long
    @pytest.mark.parametrize('number', range(16))
    def test_long(number):
        pass
    '''


def passed(printed):
    """Return the names of the tests that passed, as a sorted list."""
    return sorted(re.findall(r'::(\S+) PASSED', printed))


def without_parameters(names):
    return collections.Counter(name.split('[')[0] for name in names)


def test_a_whole_run_draws_a_part_of_the_parameters_and_at_least_one_for_each_test(suite):
    code, printed = suite(TESTS_TO_DRAW)

    assert code == 0
    assert without_parameters(passed(printed)) == {
        'test_many': 5, 'test_few': 1, 'test_single': 1, 'test_long': 2}


def test_a_seed_draws_the_same_tests_again_and_another_seed_draws_others(suite):
    _, first = suite(TESTS_TO_DRAW)
    [(sample, seed)] = re.findall(r'SEQUENT_SAMPLE=(each) SEQUENT_SEED=(\d+)', first)

    _, again = suite(TESTS_TO_DRAW, SEQUENT_SAMPLE=sample, SEQUENT_SEED=seed)
    _, other = suite(TESTS_TO_DRAW, SEQUENT_SEED=seed + '1')

    assert passed(again) == passed(first) != passed(other)
    assert '11 passed' not in first and re.search('9 passed.* in ', first.splitlines()[-1])


@pytest.mark.parametrize('arguments, variables, number', [
    ([], {'SEQUENT_SAMPLE': 'all'}, 60),
    (['tests/test_kills.py'], {}, 60),
    (['-k', 'test_many'], {}, 40),
    (['-m', 'long'], {}, 16),
    (['tests/test_kills.py'], {'SEQUENT_SAMPLE': 'each'}, 9),
])
def test_what_is_asked_for_runs_whole(suite, arguments, variables, number):
    code, printed = suite(TESTS_TO_DRAW, *arguments, **variables)

    assert code == 0
    assert len(passed(printed)) == number


def test_a_number_draws_one_test_in_so_many(suite):
    _, printed = suite(TESTS_TO_DRAW, SEQUENT_SAMPLE='6', SEQUENT_SEED='1')

    assert 2 <= len(passed(printed)) <= 25


def test_an_unknown_sample_is_a_usage_error(suite):
    code, printed = suite(TESTS_TO_DRAW, SEQUENT_SAMPLE='some')

    assert code == pytest.ExitCode.USAGE_ERROR
    assert "SEQUENT_SAMPLE is 'some'; use each, all or a number" in printed


def test_what_failed_is_repeated_though_another_sample_would_be_drawn(suite):
    tests = TESTS_TO_DRAW.replace('pass', 'assert not FAIL')
    suite('FAIL = True\n' + textwrap.dedent(tests), '-o', 'cache_dir=cache', SEQUENT_SEED='1')

    code, printed = suite('FAIL = False\n' + textwrap.dedent(tests), '-o', 'cache_dir=cache',
                          '--last-failed', SEQUENT_SEED='2')

    assert code == 0
    assert len(passed(printed)) == 9


# What tests name ##################################################################

#: Files that reach inside of the library, and why.
INSIDE = {
    'test_constructs.py': 'the lock around the start of a process has no effect that shows alone',
    'test_damage.py': 'a store is looked at between two steps of its making',
    'test_executor.py': 'the report of a worker is cut through',
    'test_fork_server.py': 'faults are put between two steps of a start',
    'test_parameters.py': 'the values that other tests have declared are put aside',
    'test_pool.py': 'faults are put into the report of a worker and into a stop',
    'test_programs.py': 'faults are put between two steps of a start',
    'test_simulation.py': 'the engine is broken on purpose, to see that this is noticed',
    'test_stores.py': 'faults are put into the connection, and plans of queries are looked at',
    'test_threads_and_forks.py': 'a fork is put into the moment in which a variable is set',
}


@pytest.fixture(scope='module')
def private():
    """Return the private names of functions, classes and attributes that the library has."""
    root, found = os.path.dirname(TESTS), set()
    paths = [os.path.join(root, 'sequent.py')] + [
        os.path.join(root, 'backends', name) for name in os.listdir(os.path.join(root, 'backends'))
        if name.endswith('.py')]
    for path in paths:
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and is_self(node.value):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return {name for name in found if re.match('_[a-z]', name)}


def parsed(path):
    with open(path, encoding='utf-8') as stream:
        return ast.parse(stream.read())


def text_of(node):
    try:
        return ast.literal_eval(node)
    except ValueError:    # it is no literal
        return ''


def is_self(node):
    return isinstance(node, ast.Name) and node.id == 'self'


def reached(path, private):
    """Return the private names of the library that a test file uses of objects."""
    tree, found, own = parsed(path), set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and is_self(node.value):
            own.add(node.attr)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'setattr':
            found.update(text_of(one) for one in node.args[1:2])
    return (found - own) & private


@pytest.mark.parametrize('name', sorted(
    name for name in os.listdir(TESTS) if name.endswith('.py')))
def test_tests_use_public_names_and_seams(name, private):
    found = reached(os.path.join(TESTS, name), private)

    assert len(private) > 100
    assert found == set() or name in INSIDE
