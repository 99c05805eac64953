"""``python -m sequent --self-check``: what it tries, what it tells, that it ends and cleans up."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile

import pytest

import sequent
from sequent import self_check

from runtools import is_running, wait_until

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRIED = (['inline steps, memory store', 'thread steps, memory store',
          'inline steps, SQLite store', 'thread steps, SQLite store']
         + ['process steps by %s, SQLite store' % method for method in sequent.start_methods()]
         + ['programs, SQLite store', 'POSIX locks: they keep a second program out'])
as_root = pytest.mark.skipif(os.geteuid() != 0 or shutil.which('unshare') is None,
                             reason='not for users who cannot mount anything')


def command(*arguments):
    return [sys.executable, '-W', 'error', '-m', 'sequent', '--self-check'] + list(arguments)


def ended(arguments, folder, **variables):
    """Run a program to its end in a folder, which is also that for temporary files."""
    return subprocess.run(arguments, cwd=str(folder), stdout=subprocess.PIPE, timeout=120,
                          stderr=subprocess.PIPE, universal_newlines=True,
                          env=dict(os.environ, **dict({'TMPDIR': str(folder)}, **variables)))


def lines_of(done, mark):
    return [line[len(mark):].strip() for line in done.stdout.splitlines()
            if line.startswith(mark + ' ')]


def strays(folder):
    """Return the processes that run with a folder in their command line or environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            with open('/proc/%s/cmdline' % pid, 'rb') as first, \
                    open('/proc/%s/environ' % pid, 'rb') as second:
                text = first.read() + second.read()
        except OSError:
            continue
        if os.fsencode(str(folder)) in text and is_running(int(pid)):
            found.append(int(pid))
    return found


@pytest.fixture
def folder():
    """A folder with a short path, as forkserver has a socket in that for temporary files."""
    path = tempfile.mkdtemp(prefix='sc', dir='/tmp')
    yield path
    shutil.rmtree(path)


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, 'w') as file:
        file.write(text)


def copy_beside(folder):
    """Copy the self-check, and the start methods that it tries, beside a copy of the core."""
    os.mkdir(os.path.join(folder, 'backends'))
    for name in ('self_check.py', 'spawn.py'):
        shutil.copy(os.path.join(ROOT, 'backends', name), os.path.join(folder, 'backends'))


#: Leaves out what takes time and is not what a test is about.
FEW = '''
import sys
sys.path.insert(0, %(path)r)
import sequent
from sequent import self_check
trials = self_check.trials
self_check.trials = lambda: [one for one in trials() if one[0].startswith(%(only)r)]
self_check.PATIENCE = %(patience)r
sys.exit(sequent.main(['--self-check']))
'''


# What it tells ####################################################################


@pytest.mark.long
def test_a_healthy_host_gets_a_page_of_facts_and_exit_code_0(folder):
    # semantics 20.10
    secret = {'SEQUENT_PARAM_PASSWORD': 'hunter2', 'API_TOKEN': 'hunter2',
              'SEQUENT_TASK_CONSTRUCT': 'hunter2', 'SEQUENT_LOGDIR': folder + '/hunter2'}

    done = ended(command(), folder, **secret)

    assert (done.returncode, done.stderr) == (0, ''), done.stdout
    assert lines_of(done, 'ok') == TRIED + ['%s steps, SQLite store' % name for name in (
        'executor', 'pool')]
    assert done.stdout.splitlines()[-1] == 'all that must work works'
    for what in ('file', 'Python', 'system', 'SQLite', 'folder', 'disk', 'clock', 'limits', 'has'):
        [fact] = lines_of(done, what)
        assert fact and 'unknown' not in fact, what
    assert lines_of(done, 'file')[0].startswith(os.path.join(ROOT, 'sequent.py') + ', version ')
    assert '%d.%d.%d' % sys.version_info[:3] in lines_of(done, 'Python')[0]
    assert 'hunter2' not in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 140
    assert len(done.stdout.splitlines()) < 40
    assert os.listdir(folder) == []
    wait_until(lambda: not strays(folder), 'the end of all processes')


@pytest.mark.parametrize('version, known', [
    ((3, 7, 16), ['older than 3.7.17', 'WAL-reset']), ((3, 7, 17), ['WAL-reset']),
    ((3, 51, 2), ['WAL-reset']), ((3, 51, 3), []), ((3, 53, 0), [])], ids=str)
def test_what_is_known_of_a_version_of_sqlite_is_told(version, known):
    told = self_check.known_of_sqlite(version)

    assert told.splitlines()[0] == '.'.join(map(str, version))
    assert [one for one in ('older than 3.7.17', 'WAL-reset') if one in told] == known


@pytest.mark.long
def test_a_vendored_copy_checks_itself_in_the_folder_of_a_store_and_leaves_that_as_it_was(
        folder, tmp_path):
    path = os.path.join(folder, 'legacy', 'vendor', 'sequent.py')
    write(path, '')
    shutil.copy(os.path.join(ROOT, 'sequent.py'), path)
    copy_beside(os.path.dirname(path))
    store = tmp_path / 'etl.db'    # a long path
    store.write_text('not looked at')

    done = ended([sys.executable, '-W', 'error', '-m', 'legacy.vendor.sequent',
                  '--self-check', '--store', str(store)], folder, PYTHONPATH=folder)

    assert (done.returncode, done.stderr) == (0, ''), done.stdout
    assert lines_of(done, 'ok') == TRIED    # no other backends are beside it
    assert lines_of(done, 'file')[0].startswith(path + ', version ')
    assert lines_of(done, 'folder')[0].startswith(os.path.realpath(str(tmp_path)) + ' ')
    assert os.listdir(str(tmp_path)) == ['etl.db'] and store.read_text() == 'not looked at'
    assert os.listdir(folder) == ['legacy']


@pytest.mark.long
def test_a_copy_in_a_zip_checks_itself_under_switches_of_python(folder):
    import zipfile
    path = os.path.join(folder, 'lib.zip')
    with zipfile.ZipFile(path, 'w') as archive:
        for file in ('sequent.py', 'backends/self_check.py', 'backends/spawn.py'):
            archive.write(os.path.join(ROOT, *file.split('/')), file)
    program = FEW % {'path': path, 'only': ('thread', 'process steps by spawn', 'programs'),
                     'patience': 20.0}

    done = ended([sys.executable, '-I', '-S', '-OO', '-c', program], folder)

    assert (done.returncode, done.stderr) == (0, ''), done.stdout
    assert lines_of(done, 'ok') == [one for one in TRIED if one.startswith(
        ('thread', 'process steps by spawn', 'programs'))]
    assert lines_of(done, 'file')[0].startswith(path + '/sequent.py, version ')


@pytest.mark.parametrize('arguments, complaint', [
    (['night'], 'takes no module'), (['--stroe', 'x'], 'unknown option')])
def test_what_does_not_go_with_it_is_a_usage_error(folder, arguments, complaint):
    done = ended(command(*arguments), folder)
    assert done.returncode == 2 and complaint in done.stderr
    assert re.search('^usage: ', done.stderr)


def test_a_core_without_the_file_says_which_one_to_copy(folder):
    # semantics 21.6
    shutil.copy(os.path.join(ROOT, 'sequent.py'), folder)

    done = ended(command(), folder, PYTHONPATH=folder)

    assert (done.returncode, done.stdout) == (2, '')
    assert ('--self-check needs the file backends/self_check.py: copy it to a folder backends '
            'beside %s' % os.path.join(folder, 'sequent.py')) in done.stderr


# What does not work ###############################################################


def test_a_folder_that_is_not_there_is_the_matter(folder):
    done = ended(command('--store', 'nowhere/etl.db'), folder)

    assert done.returncode == 1 and done.stderr == ''
    [failure] = lines_of(done, 'FAILED')
    assert 'nowhere' in failure and 'No such file' in failure
    assert done.stdout.splitlines()[-1] == 'does not work: the folder'


def test_a_folder_that_others_may_write_to_is_the_matter(folder):
    place = os.path.join(folder, 'open')
    os.mkdir(place)
    os.chmod(place, 0o777)

    done = ended(command('--store', place + '/etl.db'), folder)

    assert done.returncode == 1 and done.stderr == ''
    [failure] = lines_of(done, 'FAILED')
    assert 'may be written by others' in failure and 'chmod go-w' in failure
    assert os.listdir(place) == []


MOUNTED = 'mount -t tmpfs -o %s none "$0" && shift && exec "$@"'


def mounted(folder, options):
    place = os.path.join(folder, 'a b')
    os.mkdir(place)
    return ended(['unshare', '-m', 'sh', '-c', MOUNTED % options, place, '-']
                 + command('--store', place + '/etl.db'), folder)


@as_root
def test_a_folder_that_is_read_only_is_the_matter(folder):
    # semantics 20.10
    done = mounted(folder, 'ro')
    assert done.returncode == 1
    assert 'Read-only file system' in lines_of(done, 'FAILED')[0]


@pytest.mark.long
@as_root
def test_a_folder_that_is_full_and_in_memory_fails_what_needs_room_and_is_called_so(folder):
    done = mounted(folder, 'size=4k')

    assert done.returncode == 1 and done.stderr == ''
    assert 'tmpfs' in lines_of(done, 'folder')[0] and 'next boot' in lines_of(done, 'folder')[0]
    assert 'inline steps, memory store' in lines_of(done, 'ok')
    for label in ('inline steps, SQLite store', 'process steps by fork, SQLite store'):
        [failure] = [one for one in lines_of(done, 'FAILED') if one.startswith(label)]
        assert re.search('No space left|disk is full', failure), failure
        assert label in done.stdout.splitlines()[-1]


def customised(folder, source, only, patience=20.0):
    """Check a host where something runs as each Python starts; only some of the trials."""
    custom = os.path.join(folder, 'custom')
    write(os.path.join(custom, 'sitecustomize.py'), 'import os, sys, time\n' + source)
    done = ended([sys.executable, '-B', '-c', FEW % {
        'path': ROOT, 'only': only, 'patience': patience}], folder,
                 PYTHONPATH=os.pathsep.join([custom, ROOT]))
    assert os.listdir(folder) == ['custom']
    wait_until(lambda: not strays(folder), 'the end of all processes')
    return done


@pytest.mark.long
def test_what_hangs_is_ended_and_said_and_the_rest_is_tried(folder):
    # semantics 20.10
    # What spawn starts comes to nothing, neither dead nor alive.
    done = customised(folder, "with open('/proc/self/cmdline') as file:\n"
                              "    if '--multiprocessing-fork' in file.read():\n"
                              "        time.sleep(1000)\n",
                      ('process steps by spawn', 'programs'), patience=10.0)

    assert done.returncode == 1 and done.stderr == ''
    [failure] = lines_of(done, 'FAILED')
    assert failure == 'process steps by spawn, SQLite store: it hangs, and was ended after 10 s'
    assert lines_of(done, 'ok') == ['programs, SQLite store']
    assert done.stdout.splitlines()[-1] == 'does not work: process steps by spawn, SQLite store'


def test_locks_that_lock_nothing_are_the_matter(folder):
    done = customised(folder, 'import fcntl\nfcntl.lockf = lambda *given: None\n',
                      ('POSIX locks',))

    assert done.returncode == 1
    [failure] = lines_of(done, 'FAILED')
    assert failure.startswith('POSIX locks: ') and 'a lock that is taken: granted' in failure


def test_a_python_without_sqlite_is_the_matter_and_memory_stores_work(folder):
    done = customised(folder, "sys.modules['_sqlite3'] = None\n", ('inline', 'thread'))

    assert done.returncode == 1
    assert lines_of(done, 'ok') == TRIED[:2]
    assert 'built without sqlite3' in lines_of(done, 'SQLite')[0]
    assert len(lines_of(done, 'FAILED')) == 2
    assert all('built without sqlite3' in one for one in lines_of(done, 'FAILED'))


# That it ends #####################################################################


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_and_nothing_is_left(folder, number, code):
    # semantics 20.10
    process = subprocess.Popen(command(), cwd=folder, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, universal_newlines=True,
                               env=dict(os.environ, TMPDIR=folder))
    while not process.stdout.readline().startswith('ok'):
        assert process.poll() is None
    process.send_signal(number)

    _, errors = process.communicate(timeout=60)

    assert (process.returncode, errors) == (code, '')
    assert os.listdir(folder) == []
    wait_until(lambda: not strays(folder), 'the end of all processes')


def test_a_reader_that_goes_away_ends_it_without_a_word(folder):
    done = ended(['sh', '-c', '"$@" | head -1', '-'] + command(), folder)
    assert (done.stdout, done.stderr) == ('sequent self-check\n', '')
    wait_until(lambda: not os.listdir(folder) and not strays(folder), 'its end')


def test_output_that_cannot_be_written_is_said_and_nothing_is_left(folder):
    done = ended(['sh', '-c', '"$@" > /dev/full', '-'] + command(), folder)
    assert done.returncode == 4 and 'standard output cannot be written' in done.stderr
    assert os.listdir(folder) == []
