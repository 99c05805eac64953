"""Hosts that lack something: processes, descriptors, folders, streams, an encoding."""

import os
import shutil
import subprocess
import sys

import pytest


from runtools import a_private_temporary_folder, journal, programs  # noqa: E402,F401

STRANGER = 100000 + os.getpid()    # a uid that nobody has, nor tests that run beside these

as_another = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which('setpriv') is None,
    reason='not for users who cannot become another one, whose processes can be limited')


def run(programs, source, wrapper=(), environment=(), mode='restart', **given):
    """Run a program to its end; returns what `subprocess.run` does."""
    programs.write(source)
    given.setdefault('stdin', subprocess.DEVNULL)
    # Not HOME or TMPDIR alone: what is None is taken away.
    variables = dict(os.environ, **dict(environment))
    variables = {name: value for name, value in variables.items() if value is not None}
    return subprocess.run(
        list(wrapper) + [sys.executable, programs.path, mode], cwd=programs.folder,
        env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, **given)


# Processes and descriptors that there are not enough of ##########################

MANY = '''
import logging, resource, sequent
sequent._SHORTAGE = %(shortage)s
flow = make(config={'max_concurrent': 12, 'capture': 'file', 'run_timeout': %(run_timeout)s})
class Stop(logging.Handler):
    def emit(self, record):
        if %(stop)s and 'tried again' in record.getMessage():
            os.kill(os.getpid(), signal.SIGTERM)
logging.getLogger().addHandler(Stop())
logging.getLogger().addHandler(logging.StreamHandler())
for number in range(12):
    flow.add_step('s%%d' %% number, **%(what)s)
resource.setrlimit(resource.%(limit)s, (%(most)d,) * 2)
before = len(os.listdir('/proc/self/fd'))
ok = flow()
print(len(os.listdir('/proc/self/fd')) - before)
sys.stdout.flush()
os._exit(0 if ok else 1)
'''


FUNCTION = "{'func': journal.note, 'args': ('done',)}"
PROGRAM = "{'command': ['/bin/sh', '-c', 'echo done >> journal']}"
functions_and_programs = pytest.mark.parametrize('what', [FUNCTION, PROGRAM],
                                                 ids=['functions', 'programs'])


def limited(programs, limit, most, shortage, what=FUNCTION, stop=False, run_timeout=None):
    # Another user, as root is not limited; who may read everything, as the Python may be root's.
    wrapper = ['setpriv', '--reuid', str(STRANGER), '--clear-groups', '--inh-caps',
               '+dac_override', '--ambient-caps', '+dac_override'] if 'NPROC' in limit else []
    done = run(programs, MANY % {
        'limit': limit, 'most': most, 'shortage': shortage, 'what': what, 'stop': stop,
        'run_timeout': run_timeout}, wrapper)
    if wrapper:    # so that this user may read it
        for above, _, names in os.walk(programs.folder):
            for name in [''] + names:
                os.chown(os.path.join(above, name), 0, -1)
    return done


@as_another
@functions_and_programs
def test_tasks_wait_while_there_are_not_enough_processes(programs, journal, what):
    # semantics 4.14
    done = limited(programs, 'RLIMIT_NPROC', 4, 60.0, what)
    assert done.returncode == 0, done.stderr
    assert journal.count('done') == 12
    assert set(programs.tasks()) == {'s%d' % number for number in range(12)}
    assert done.stdout == b'0\n'    # no descriptor is left of what failed
    assert 1 <= done.stderr.count(b'it is tried again for 60 s') < 12


@as_another
@pytest.mark.parametrize('what, most', [(FUNCTION, 1), (PROGRAM, 1), (PROGRAM, 2)],
                         ids=['functions', 'tender', 'programs'])
def test_a_task_that_never_gets_a_process_fails_with_a_sentence(programs, journal, what, most):
    # semantics 4.14
    done = limited(programs, 'RLIMIT_NPROC', most, 0.3, what)
    assert done.returncode == 1, done.stderr
    assert journal.count('done') == 0
    assert programs.last('s11') == 'failure'
    assert b'could not be started: ' in done.stderr
    assert b'Resource temporarily unavailable' in done.stderr
    assert b'it is tried again for 0.3 s' in done.stderr
    assert b'Traceback' not in done.stderr


@as_another
@pytest.mark.parametrize('what, most', [(FUNCTION, 1), (PROGRAM, 2)],
                         ids=['functions', 'programs'])
@pytest.mark.parametrize('given, code', [({'stop': True}, 143), ({'run_timeout': 0.5}, 1)],
                         ids=['SIGTERM', 'run_timeout'])
def test_a_run_can_be_ended_while_its_tasks_wait_for_processes(
        programs, journal, what, most, given, code):
    done = limited(programs, 'RLIMIT_NPROC', most, 60.0, what, **given)
    assert done.returncode == code, done.stderr
    assert b'Traceback' not in done.stderr
    assert journal.count('done') == 0
    assert not [tries for tries in programs.tasks().values()
                if tries[-1][3] not in ('ready', 'active')]

    programs.write("flow = make(mode='recover')\nfor number in range(12):\n"
                   "    flow.add_step('s%%d' %% number, **%s)\nleave(flow)" % what)
    assert programs.run('recover') == 0
    assert journal.count('done') == 12


@pytest.mark.parametrize('most', [60, 40])
@functions_and_programs
def test_tasks_wait_while_there_are_not_enough_descriptors(programs, journal, most, what):
    # semantics 4.14
    done = limited(programs, 'RLIMIT_NOFILE', most, 60.0, what)
    assert done.returncode == 0, done.stderr
    assert journal.count('done') == 12
    assert {one[-1][3] for one in programs.tasks().values()} == {'success'}


FEW = '''
import logging, resource
flow = make(config={'max_concurrent': 13, 'capture': 'file'})
logging.getLogger().addHandler(logging.StreamHandler())
def limit():
    with open('/proc/self/task/%d/children' % os.getpid()) as stream:
        [tender] = map(int, stream.read().split())
    resource.prlimit(tender, resource.RLIMIT_NOFILE, (16, 16))
first = flow.add_step('first', command=['true'])
limited = flow.add_step('limited', func=limit, require=first,
                        config={'task_construct': 'inline'})
for number in range(12):
    flow.add_step('s%d' % number, require=limited,
                  command=['/bin/sh', '-c', 'echo done >> journal; sleep 0.3'])
leave(flow)
'''


@pytest.mark.skipif(not os.path.exists('/proc/self/task/%d/children' % os.getpid()),
                    reason='not for systems that do not tell the children of a process')
def test_programs_run_where_the_process_that_starts_them_lacks_descriptors(programs, journal):
    done = run(programs, FEW)
    assert done.returncode == 0, done.stderr
    assert b'the supervisor starts them itself from now on' in done.stderr
    assert journal.count('done') == 12


@pytest.mark.parametrize('most', [30, 20, 12])
def test_with_hardly_any_descriptors_nothing_is_lost_and_what_is_wrong_is_said(
        programs, journal, most):
    done = limited(programs, 'RLIMIT_NOFILE', most, 0.3)
    committed = [path for path, tries in programs.tasks().items() if tries[-1][3] == 'success']
    assert done.returncode == (0 if len(committed) == 12 else 1), done.stderr
    assert done.returncode == 0 or b'Too many open files' in done.stderr
    assert programs.tasks() or most == 12    # with 12 the store may not have been opened

    programs.write("flow = make(mode='recover')\nfor number in range(12):\n"
                   "    flow.add_step('s%d' % number, func=journal.note, args=('done',))\n"
                   "leave(flow)")
    assert not programs.tasks() or programs.run('recover') == 0
    assert not programs.tasks() or journal.count('done') == 12


# Streams, folders, variables #####################################################

ONE = '''
flow = make(config={'capture': 'file'})
flow.add_step('a', func=print, args=('said',))
ok = flow()
os._exit(0 if ok and flow.open_store(create=False) else 1)
'''


@pytest.mark.parametrize('closed', [(0,), (1,), (2,), (0, 1, 2)], ids=str)
def test_a_run_needs_no_standard_stream(programs, closed):
    programs.write(ONE)
    redirected = ' '.join('%d>&-' % fd if fd else '<&-' for fd in closed)
    code = subprocess.call(['sh', '-c', 'exec "$0" "$@" ' + redirected, sys.executable,
                            programs.path], cwd=programs.folder, timeout=60)
    assert code == 0
    assert programs.last('a') == 'success'


@pytest.mark.parametrize('environment', [
    {'HOME': None}, {'HOME': '/nonexistent'}, {'TMPDIR': '/nonexistent'}, {'TMPDIR': '/proc'},
    {'HOME': None, 'TMPDIR': None, 'PATH': None, 'USER': None, 'LOGNAME': None}], ids=str)
def test_a_run_needs_no_home_and_no_temporary_folder_that_works(programs, environment):
    done = run(programs, ONE, environment=environment)
    assert done.returncode == 0, done.stderr
    assert programs.last('a') == 'success'


LOCALES = [{'LC_ALL': name, 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0',
            'PYTHONIOENCODING': None} for name in ('C', 'POSIX')]


@pytest.mark.parametrize('environment', LOCALES, ids=lambda one: one['LC_ALL'])
@pytest.mark.parametrize('construct', ['process', 'thread', 'inline'])
def test_names_and_output_need_not_be_in_the_locales_encoding(programs, environment, construct):
    done = run(programs, '''
        import logging
        def speak():
            if %(construct)r == 'process':    # the stream of the others is the caller's
                print('gr\\xfc\\xdfe \\u20ac')
            logging.getLogger('etl').warning('sch\\xf6n')
        flow = make(%(construct)r)
        flow.add_step('\\xfcber \\u20ac', func=speak)
        leave(flow)
        ''' % {'construct': construct}, environment=environment)
    assert done.returncode == 0, done.stderr
    assert programs.last('\xfcber \u20ac') == 'success'
    assert b'Logging error' not in done.stderr and b'Traceback' not in done.stderr
    if construct == 'process':
        assert 'gr\xfc\xdfe \u20ac'.encode() in done.stderr


# A lot of output #################################################################


def test_a_million_lines_are_relayed_complete_and_unchanged_in_bounded_memory(programs):
    done = run(programs, '''
        import resource
        def talk():
            for first in range(0, 1000000, 10000):
                sys.stdout.write(''.join('line %d\\n' % n for n in range(first, first + 10000)))
        flow = make()
        flow.add_step('talk', func=talk)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ok = flow()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        sys.stdout.flush()
        os._exit(0 if ok else 1)
        ''')
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stderr.split(b'\n') if line.startswith(b'line ')]
    assert len(lines) == 1000000
    assert lines == [b'line %d' % number for number in range(1000000)]
    assert int(done.stdout) < 8 << 10    # kB; the output has 12 MB
