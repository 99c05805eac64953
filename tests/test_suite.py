"""The tests themselves: where they can be started, and which of them run."""

import os
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
    for name in ('conftest.py', 'tally.py'):
        shutil.copy(os.path.join(TESTS, name), str(tmp_path / 'tests'))

    def run(tests, before='', **environment):
        (tmp_path / 'tests' / 'test_kills.py').write_text(textwrap.dedent(tests))
        code = textwrap.dedent(before) + (
            "\nimport os, sys\n"
            "os.execv(sys.executable, [sys.executable, '-m', 'pytest', '-v', 'tests'])")
        done = subprocess.run(
            [sys.executable, '-c', code], cwd=str(tmp_path), env=dict(os.environ, **environment),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True,
            timeout=300)
        return done.returncode, done.stdout

    return run


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
        ''', SEQUENT_SAMPLE='1')

    assert code == 0, printed
    assert '6 passed' in printed
