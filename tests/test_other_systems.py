"""Systems that are not here: Windows and macOS, as far as Linux can honestly play them.

As a Python starts, what such a system lacks is taken from its modules, so the library does not
find it when it is imported. What Python's own modules do there is not tried: they were imported
before, and os.name and sys.platform stay what they are, since much of them goes by these.
"""

import os
import subprocess
import sys
import textwrap

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

#: What is taken away: modules; names of os, signal, time; /proc. Not WNOHANG, of which subprocess
#: makes use.
WINDOWS = '''
    MODULES = ['fcntl', 'resource', 'pwd', 'grp', 'termios', 'tty', 'pty', 'syslog', 'readline']
    OS = """fork forkpty posix_spawn posix_spawnp setsid getsid killpg setpgid getpgid getpgrp
        getuid geteuid getgid getegid setuid setgid getgroups fchmod fchown chown lchown
        register_at_fork waitid wait wait3 wait4 pidfd_open uname pread pwrite sysconf
        environb getenvb sched_getaffinity mkfifo statvfs sync fdatasync set_blocking
        getloadavg O_NOFOLLOW O_DIRECTORY O_NONBLOCK O_CLOEXEC O_SYNC O_DSYNC""".split()
    SIGNAL = """SIGKILL SIGHUP SIGCONT SIGCHLD SIGPIPE SIGSTOP SIGTSTP SIGQUIT SIGALRM SIGUSR1
        SIGUSR2 SIG_BLOCK SIG_UNBLOCK SIG_SETMASK pthread_sigmask pthread_kill setitimer alarm
        sigwait sigpending siginterrupt pause""".split()
    TIME = ['clock_gettime', 'clock_getres', 'tzset']
    HAS_PROC = False
'''
#: Nothing forks, as in some sandboxes; the rest is POSIX.
NO_FORK = '''
    MODULES, SIGNAL, TIME = [], [], []
    OS = ['fork', 'forkpty', 'register_at_fork', 'posix_spawn', 'posix_spawnp']
    HAS_PROC = True
'''
MACOS = '''
    MODULES, SIGNAL, TIME = [], [], ['clock_gettime']
    OS = ['pidfd_open', 'sched_getaffinity', 'fdatasync', 'waitid', 'O_SYNC']
    HAS_PROC = False
'''

#: A sitecustomize, which runs in processes that spawn starts, too.
LACKING = '''
import builtins, logging, multiprocessing.connection, multiprocessing.popen_spawn_posix, os
import random, selectors, shutil, signal, socket, sqlite3, subprocess, sys, tempfile, time

%(system)s


class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in MODULES:
            raise ModuleNotFoundError('No module named %%r' %% name, name=name)


sys.meta_path.insert(0, Hidden)
for name in MODULES:
    sys.modules.pop(name, None)
# On which they have decided already.
subprocess._USE_POSIX_SPAWN = shutil._use_fd_functions = False
os.process_cpu_count = os.cpu_count
if hasattr(shutil, '_rmtree_unsafe'):
    shutil._rmtree_impl = shutil._rmtree_unsafe
for module, names in ((os, OS), (signal, SIGNAL), (time, TIME)):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)


def without_proc(function):
    def call(path, *args, **kwargs):
        if isinstance(path, str) and path.startswith(('/proc', '/dev/fd')) and not HAS_PROC:
            raise FileNotFoundError(2, 'No such file or directory', path)
        return function(path, *args, **kwargs)
    return call


if not HAS_PROC:
    builtins.open = without_proc(open)
    os.listdir, os.readlink = without_proc(os.listdir), without_proc(os.readlink)
'''


@pytest.fixture
def on(tmp_path):
    """Run a program where a system lacks something; returns the lines of stdout and stderr."""
    def run(system, program, code=0):
        path = tmp_path / 'program.py'
        path.write_text('import logging, os, sys, sequent\n' + textwrap.dedent(program))
        (tmp_path / 'sitecustomize.py').write_text(LACKING % {'system': textwrap.dedent(system)})
        done = subprocess.run(
            [sys.executable, '-W', 'error', str(path)], cwd=str(tmp_path), timeout=120,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), ROOT]),
                     TMPDIR=str(tmp_path)),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
        assert done.returncode == code, done.stderr
        for trouble in ('Logging error', 'Exception in thread', 'Exception ignored'):
            assert trouble not in done.stderr
        return done.stdout.splitlines(), done.stderr
    return run


FLOW = '''
def say(text):
    logging.getLogger(__name__).warning('it is %%s at %%s', text, sequent.current().sequence)
    return text


def fail(down):
    if os.path.exists(down):
        raise ConnectionError('the line is down')


def build(mode='restart'):
    flow = sequent.Sequent('etl', store=%(store)s, run_mode=mode, config={
        'task_construct': %(construct)r, 'retries': 1})
    a = flow.add_step('a', func=say, args=('a',))
    each = flow.add_step('each', require=a, loop=[1, 2])
    each.add_step('b', func=say, args=(each.item,))
    each.add_step('program', func=sequent.Command([sys.executable, '-S', '-c', 'pass']))
    c = flow.add_step('c', func=fail, args=('down',), require=each)
    flow.add_step('d', func=say, args=(a.result,), require=c)
    return flow


if __name__ == '__main__':
    open('down', 'w').close()
    first = build()
    print(first.run())
    os.remove('down')
    again = build('recover') if %(recover)r else first
    print(again.run())
    print(sorted({'%%s %%s' %% (task.path, task.status) for task in again.tasks()}))
'''
DONE = str(['a success', 'c success', 'd success', 'each success', 'each_b success',
            'each_program success'])
FAILED = str(['a success', 'c failure', 'each success', 'each_b success', 'each_program success'])


@pytest.mark.parametrize('system', [WINDOWS, NO_FORK, MACOS], ids=['windows', 'no-fork', 'macos'])
@pytest.mark.parametrize('construct', ['inline', 'thread'])
@pytest.mark.parametrize('store', ["'etl.db'", "sequent.MemoryStore()", "':memory:'"])
def test_inline_and_thread_flows_need_nothing_that_posix_systems_alone_have(
        on, system, construct, store):
    # semantics 21.4
    recover = store == "'etl.db'"

    lines, errors = on(system, FLOW % {'store': store, 'construct': construct,
                                       'recover': recover})

    assert lines == (['False', 'True', DONE] if recover else ['False', 'False', FAILED])
    assert errors.count('it is a at 1 ]\n') == (2 if recover else 1)    # d says the result of a
    assert 'it is 2 at 1.2 ]\n' in errors


@pytest.mark.parametrize('system, environment', [
    (NO_FORK, {}), (MACOS, {}), (MACOS, {'SEQUENT_START_METHOD': 'spawn'})],
    ids=['no-fork', 'macos', 'macos-spawn'])
def test_process_steps_run_without_fork_by_spawn_and_without_proc(on, system, environment,
                                                                  monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    lines, errors = on(system, FLOW % {'store': "'etl.db'", 'construct': 'process',
                                       'recover': True})
    assert lines == ['False', 'True', DONE]
    assert errors.count('it is a at 1 ]\n') == 2


def test_a_lambda_for_a_process_is_refused_before_the_run_where_nothing_forks(on):
    lines, errors = on(NO_FORK, '''
        if __name__ == '__main__':
            flow = sequent.Sequent('etl', store='etl.db')
            flow.add_step('first', func=print, args=('it runs',))
            flow.add_step('a', func=lambda: None)
            try:
                flow()
            except sequent.ConstructError as error:
                print(error)
        ''')
    assert len(lines) == 1 and "'a'" in lines[0] and "'spawn'" in lines[0], lines


def test_a_start_method_that_forks_is_refused_where_nothing_forks(on):
    lines, errors = on(NO_FORK, '''
        for method in ('fork', 'forkserver'):
            try:
                sequent.Sequent('etl', store='etl.db', config={'start_method': method})
            except sequent.ConfigError as error:
                print(error)
        ''')
    assert [line.partition(': ')[2] for line in lines] == [
        "config 'start_method' cannot be %r; known: spawn" % method
        for method in ('fork', 'forkserver')]


def test_process_steps_are_refused_before_the_run_where_there_are_no_process_groups(on):
    # semantics 21.4
    lines, errors = on(WINDOWS, '''
        assert not hasattr(os, 'fork') and not hasattr(os, 'geteuid')
        flow = sequent.Sequent('etl', store='etl.db')
        flow.add_step('first', func=print, args=('it runs',),
                      config={'task_construct': 'thread'})
        flow.add_step('a', func=print)
        try:
            flow()
        except sequent.ConstructError as error:
            print(error)
        print(os.path.exists('etl.db'))
        ''')
    assert len(lines) == 2 and lines[1] == 'False', lines
    assert "step 'a'" in lines[0] and "'task_construct': 'thread'" in lines[0]


def test_without_posix_locks_it_is_said_once_that_nobody_keeps_a_second_supervisor_out(on):
    # semantics 21.4
    lines, errors = on(WINDOWS, '''
        for _ in range(2):
            flow = sequent.Sequent('etl', store='etl.db', config={'task_construct': 'thread'})
            flow.add_step('a', func=print, args=('it runs',))
            assert flow()
        flow = sequent.Sequent('etl', store=':memory:', config={'task_construct': 'thread'})
        flow.add_step('a', func=print, args=('it runs',))
        assert flow()
        ''')
    assert lines == ['it runs'] * 3
    [warning] = [line for line in errors.splitlines() if 'WARNING' in line]
    assert 'no POSIX locks' in warning and 'etl.db' in warning


def test_one_program_still_refuses_a_flow_that_it_is_running_where_there_are_no_locks(on):
    lines, errors = on(WINDOWS, '''
        def second():
            flow = sequent.Sequent('etl', store='etl.db', config={'task_construct': 'thread'})
            flow.add_step('a', func=print, args=('it runs',))
            try:
                flow()
            except sequent.AlreadyRunningError as error:
                print(error)

        flow = sequent.Sequent('etl', store='etl.db', config={'task_construct': 'thread'})
        flow.add_step('a', func=second)
        print(flow())
        ''')
    assert 'already running' in lines[0] and lines[1:] == ['True']


def test_the_command_line_runs_a_flow_shows_it_and_recovers_it_there(on, tmp_path):
    (tmp_path / 'night.py').write_text(textwrap.dedent('''
        import os
        import sequent as seq


        def fail():
            if os.path.exists('down'):
                raise ConnectionError('the line is down')


        flow = seq.Sequent(config={'task_construct': 'thread'})
        flow.add_step('a', func=fail)
        '''))
    lines, errors = on(WINDOWS, '''
        open('down', 'w').close()
        print(sequent.main(['night']))
        os.remove('down')
        codes = []
        for verb in ('status', 'recover', 'history'):
            del sys.modules['night']
            codes.append(sequent.main(['night', verb]))
        print(codes)
        ''')
    assert lines[0] == '1' and lines[-1] == '[0, 0, 0]'


@pytest.mark.long
@pytest.mark.parametrize('system, missing', [
    (WINDOWS, ['process steps', 'POSIX locks', 'backend pool']),
    (NO_FORK, [] if sys.version_info >= (3, 7) else ['backend pool'])],
    ids=['windows', 'no-fork'])
def test_a_self_check_there_tells_what_is_not_for_that_system_and_succeeds(on, system, missing):
    lines, errors = on(system, '''
        if __name__ == '__main__':
            sys.exit(sequent.main(['--self-check']))
        ''')
    assert lines[-1] == 'all that must work works' and errors == ''
    assert [line.split(None, 1)[1].partition(':')[0] for line in lines
            if line.startswith('no ')] == missing
    assert [line for line in lines if line.startswith('FAILED')] == []
    assert ('ok      process steps by spawn, SQLite store' in lines) == (system != WINDOWS)
