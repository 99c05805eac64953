"""Disks that are full, read-only or broken, stores that others keep locked: the run stops with a
sentence and exit code 4, or goes on; and recovery afterwards loses nothing.
"""

import contextlib
import itertools
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest


import sample  # noqa: E402
import sequent  # noqa: E402
import tally  # noqa: E402
from disktools import (STEPS, assert_no_trace, assert_refused, command,  # noqa: E402
                       fill, mounted, needs_mount, night, tmpfs)
from runtools import is_running, wait_until  # noqa: E402

__all__ = ['night']
#: How many operations of each kind are let fail, once and for good; 0: each in turn.
FAULTS = int(os.environ.get('SEQUENT_FAULTS', 1))
#: Seconds for which another process keeps the store locked.
LOCKED = sample.times('SEQUENT_LOCKED', 5)
LARGE = {'SIZE': '3000000'}    # a result that goes to a file


# I/O errors, by strace

needs_strace = pytest.mark.skipif(
    not shutil.which('strace'), reason='needs strace (Debian package strace)')
#: Operations: what strace calls them, how many of them the flow takes at least, the error.
OPERATIONS = {
    'write to the store': ('pwrite64', 100, 'EIO'),
    'write to the store (full)': ('pwrite64', 100, 'ENOSPC'),
    'sync of the store': ('fdatasync', 24, 'EIO'),
    'sync of a file': ('fsync', 5, 'EIO'),
    'open': ('openat', 20, 'EIO'),
    'rename': ('rename,renameat,renameat2', 2, 'EIO'),
    'unlink': ('unlink,unlinkat', 1, 'EIO'),
    'folder': ('mkdir,mkdirat', 6, 'ENOSPC'),
}


def faulty(night, calls, number, error, lasting):
    """Return the command line that makes one system call fail, in each process of the run.

    Where files are opened, only those of the test's own folder fail.
    """
    words = ['strace', '-D', '-f', '-qq', '--seccomp-bpf',
             '-o', os.path.join(night.folder, 'strace'),
             '-e', 'trace=' + calls,
             '-e', 'inject=%s:error=%s:when=%d%s' % (calls, error, number, '+' * lasting)]
    paths = [night.store + ending for ending in ('', '-journal', '.lock', '.outcomes', '.logs')]
    paths += [os.path.join(night.store + ending, 'flow', *below) for ending in (
        '.outcomes', '.logs', '.results') for below in ((), ('r1',))]
    paths += [os.path.join(night.store + '.logs', 'flow', 'r1', step + '.1.0.1.log')
              for step in STEPS]
    if calls == 'openat':
        for path in paths:
            words += ['-P', path]
    return words


def injected(night):
    """Wait for the end of strace; return whether a system call has failed on purpose."""
    wait_until(lambda: not traced(night), 'the end of strace')
    with open(os.path.join(night.folder, 'strace')) as stream:
        return 'INJECTED' in stream.read()


def traced(night):
    """Return whether a strace still runs that was started by `faulty`."""
    trace = os.fsencode(os.path.join(night.folder, 'strace'))
    for name in filter(str.isdigit, os.listdir('/proc')):
        with contextlib.suppress(OSError), open('/proc/%s/cmdline' % name, 'rb') as stream:
            words = stream.read().split(b'\0')
            if words[0] == b'strace' and trace in words:
                return True
    return False


def check_fault(folder, calls, number, error, lasting):
    """Run the flow while an operation fails, and recover it; return whether there was one."""
    from disktools import Night
    folder.mkdir()
    night = Night(folder)
    try:
        done = night.run('run', before=faulty(night, calls, number, error, lasting),
                         PYTHONDONTWRITEBYTECODE='1', **LARGE)
        assert_no_trace(done)
        if done.code == 4:
            assert_refused(done, night.store)
        elif done.code == 1:    # a step that cannot have its log fails, and nothing else does
            assert re.search('its log .* cannot be opened', done.errors), done
        else:
            assert done.code == 0, done
        if lasting:    # a task that has finished waits for the disk: the machine starts anew
            night.journal.end_all()
        found = injected(night)
        night.recover()
        return found
    finally:
        night.finish()
        shutil.rmtree(str(folder))


@needs_strace
@pytest.mark.parametrize('lasting', [False, True], ids=['once', 'for good'])
@pytest.mark.parametrize('kind', sorted(OPERATIONS))
def test_whatever_fails_the_run_stops_cleanly_or_succeeds_and_nothing_is_lost(
        tmp_path, kind, lasting):
    # semantics 6.8
    calls, least, error = OPERATIONS[kind]
    numbers = itertools.count(1)
    if FAULTS:
        numbers = sorted(random.Random('%s %s %s' % (sample.SEED, kind, lasting)).sample(
            range(1, least + 1), min(FAULTS, least)))
    tried = 0
    for number in numbers:
        if not check_fault(tmp_path / str(number), calls, number, error, lasting):
            break
        tried += 1
    assert tried >= (min(FAULTS, least) or least)
    tally.count('faults of the disk', tried)


@needs_strace
@pytest.mark.parametrize('calls', ['rename,renameat,renameat2', 'fsync'])
def test_a_finished_task_whose_result_cannot_be_written_is_not_run_again(night, calls):
    """The supervisor cannot write the result to its file; then the process, which has the task's
    outcome, fails once, too, and tries again."""
    done = night.run('run', before=faulty(night, calls, 1, 'EIO', False),
                     PYTHONDONTWRITEBYTECODE='1', **LARGE)

    assert_refused(done, "result of step 'process' at 1 cannot be written")
    night.recover()
    assert night.count('process') == 1


@needs_strace
@pytest.mark.parametrize('calls', ['pwrite64', 'fdatasync', 'link,linkat'])
def test_a_store_whose_making_is_killed_is_not_there(night, calls):
    """A store is made aside and linked into place when it is whole, so nobody sees half of one."""
    done = night.run('run', before=[
        'strace', '-f', '-qq', '-o', os.path.join(night.folder, 'strace'), '-e', 'trace=' + calls,
        '-e', 'inject=%s:error=EIO:signal=KILL:when=1' % calls], PYTHONDONTWRITEBYTECODE='1')

    assert done.code == -signal.SIGKILL, done
    assert not os.path.exists(night.store)
    assert night.count('process') == 0
    night.recover()


# Full disks


def limit_files(supervisor, size):
    """Let a process make no file larger than that. Python ignores SIGXFSZ, so it gets EFBIG."""
    resource.prlimit(supervisor.pid, resource.RLIMIT_FSIZE, (size, size))


def test_a_store_that_may_not_grow_ends_the_run_and_outcomes_are_kept(night):
    """Those of tasks that have finished, that is: the others are ended as by a SIGTERM."""
    supervisor = night.start('run', HOLD='process')
    night.journal.wait_for('process begins')
    limit_files(supervisor, 4096)

    night.journal.open('process')
    done = night.end(supervisor)

    assert_refused(done, night.store)
    assert night.statuses()['process'] == 'active'
    night.recover()
    assert night.count('process') == 1, 'it had finished, and its outcome was lost'


def test_running_tasks_are_ended_as_by_a_sigterm_when_the_store_fails(night):
    # semantics 6.8
    supervisor = night.start('run', HOLD='inline program')
    night.journal.wait_for('program begins')
    pid = night.journal.pid('inline')
    assert pid == supervisor.pid
    limit_files(supervisor, 4096)

    night.journal.open('inline')
    done = night.end(supervisor)

    assert_refused(done, night.store)
    assert 'nothing new starts; running tasks that are ended: 1' in done.errors
    assert night.journal.count('program ends') == 0
    assert night.statuses()['program'] == 'active'
    night.recover()
    assert night.count('program') == 2


@needs_mount
@pytest.mark.parametrize('name', ['process', 'program'])
def test_a_full_disk_ends_the_run_and_with_room_recovery_loses_nothing(night, name):
    # semantics 6.8
    with tmpfs(night.data, 1 << 20):
        supervisor = night.start('run', HOLD=name, QUIET='1', SIZE='20000')
        night.journal.wait_for(name + ' begins')
        night.await_only(name)
        # Outcomes have a full disk of their own, because the store gives back room as its commit
        # fails.
        os.mkdir(night.store + '.outcomes', 0o700)
        with tmpfs(night.store + '.outcomes', 1 << 18):
            filling = [fill(night.store + '.outcomes'), fill(night.data)]
            if name == 'program':    # The store has room for an outcome that is so small.
                limit_files(supervisor, 4096)
            night.journal.open(name)
            done = night.end(supervisor)
            assert_refused(done, night.store, 'has finished')
            assert night.statuses()[name] == 'active'
            for path in filling:
                os.unlink(path)
            night.recover()
        assert night.count(name) == 1, 'its process had to wait for room'


@needs_mount
def test_a_run_that_finds_the_disk_full_ends_before_it_begins(night):
    with tmpfs(night.data, 128 << 10):
        filling = fill(night.data)
        assert_refused(night.run('run'), night.store, 'make room')
        assert night.count('process') == 0
        os.unlink(filling)
        assert night.run('run').code == 0


@needs_mount
@pytest.mark.parametrize('name', ['process', 'program'])
def test_an_orphan_that_cannot_write_its_outcome_waits_for_room(night, name):
    # semantics 6.8
    with tmpfs(night.data, 1 << 20):
        supervisor = night.start('run', HOLD=name, QUIET='1')
        night.journal.wait_for(name + ' begins')
        night.await_only(name)
        filling = fill(night.data)
        supervisor.kill()
        supervisor.wait()
        night.journal.open(name)
        night.journal.wait_for(name + ' ends')

        os.unlink(filling)
        night.recover()

        assert night.count(name) == 1


@needs_mount
@pytest.mark.parametrize('kind', ['process', 'thread'])
def test_a_log_that_cannot_be_written_is_the_matter_of_its_task(night, kind):
    """A function that prints to a full disk gets the error; the run goes on as after any."""
    logs = night.store + '.logs'
    os.mkdir(logs)
    with tmpfs(logs, 64 << 10):
        os.makedirs(os.path.join(logs, 'flow', 'r1'))
        filling = fill(logs)
        done = night.run('run', CONSTRUCT=kind)
        assert done.code in (0, 1), done
        assert_no_trace_of_ours(done)
        if kind == 'process':
            assert 'No space left on device' in done.errors
        os.unlink(filling)
        if done.code:
            night.recover()


def assert_no_trace_of_ours(done):
    assert 'sequent.py' not in done.errors, done
    assert 'Logging error' not in done.errors, done


@needs_mount
def test_what_thread_and_inline_tasks_log_may_find_the_disk_full(tmp_path, caplog):
    logs = str(tmp_path / 'logs')
    os.mkdir(logs)
    import logging

    def talk():
        for number in range(3):
            logging.getLogger('mine').warning('line %d', number)
        return 'done'

    with tmpfs(logs, 64 << 10):
        os.makedirs(os.path.join(logs, 'flow', 'r1'))
        fill(logs)
        flow = sequent.Sequent('flow', store=str(tmp_path / 'etl.db'), run_id='r1',
                               config={'task_construct': 'inline', 'logdir': logs})
        flow.add_step('a', func=talk)
        assert flow.run()

    said = [one.getMessage() for one in caplog.records if 'cannot be written' in one.getMessage()]
    assert len(said) == 1 and 'No space left on device' in said[0]


@needs_mount
def test_a_large_result_that_cannot_be_written_ends_the_run_and_is_not_lost(night):
    results = night.store + '.results'
    os.mkdir(results)
    with tmpfs(results, 1 << 20):
        done = night.run('run', **LARGE)
        assert_refused(done, "result of step 'process' at 1 cannot be written", results,
                       'No space left on device')
        assert [name for _, _, names in os.walk(results) for name in names] == []

    night.recover()
    assert night.count('process') == 1


@needs_mount
def test_a_large_result_that_cannot_be_written_during_a_stop_is_not_lost(night):
    results = night.store + '.results'
    os.mkdir(results)
    with tmpfs(results, 1 << 20):
        supervisor = night.start('run', HOLD='process', IGNORE='1', **LARGE)
        night.journal.wait_for('process begins')
        pid = night.journal.pid('process')
        supervisor.kill(signal.SIGTERM)
        supervisor.wait_for('nothing new starts')
        night.journal.open('process')

        done = night.end(supervisor)

        assert_refused(done, "result of step 'process' at 1 cannot be written")
        assert not is_running(pid)
    night.recover()
    assert night.count('process') == 1


# A disk that can only be read


@needs_mount
def test_a_disk_that_becomes_read_only_ends_the_run_and_nothing_is_lost(night):
    """As ext4 does it after an error: what is open for writing does not hinder it."""
    image = os.path.join(night.folder, 'image')
    with open(image, 'wb') as file:
        file.truncate(4 << 20)
    command('mkfs.ext4', '-q', '-F', image)
    with mounted(night.data, '-o', 'loop', image):
        supervisor = night.start('run', HOLD='process', QUIET='1')
        night.journal.wait_for('process begins')
        command('mount', '-o', 'remount,abort', night.data)

        night.journal.open('process')
        done = night.end(supervisor)

        assert_refused(done, night.store)
        assert_refused(night.run('recover'), night.store)
        looked = night.run('status')
        assert looked.code in (0, 4) and 'Traceback' not in looked.errors
        night.journal.end_all()    # what still waits for the disk would keep it

    with mounted(night.data, '-o', 'loop', image):
        night.recover()


@needs_mount
def test_a_read_only_mount_can_be_looked_at_and_not_run_in(night):
    # semantics 6.8, 20.5
    assert night.run('run').code == 0
    with mounted(night.data, '--bind', night.data):
        command('mount', '-o', 'remount,bind,ro', night.data)
        before = night.left_alone()
        assert night.run('status').code == 0
        assert night.run('history').code == 0
        assert_refused(night.run('run', '--run-id', 'r2'), night.store)
        assert night.left_alone() == before


# Stores that others keep locked


@contextlib.contextmanager
def locked(path):
    """Keep a store locked, from another process, until the end of the ``with``."""
    program = ('import sqlite3, sys\n'
               'database = sqlite3.connect(sys.argv[1], isolation_level=None)\n'
               'database.execute("BEGIN EXCLUSIVE")\n'
               'print("locked", flush=True)\n'
               'sys.stdin.read()\n')
    process = subprocess.Popen([sys.executable, '-c', program, path], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b'locked\n'
        yield
    finally:
        process.communicate()


def wait_for_seconds(seconds):
    """What is waited for here is the time itself."""
    end = time.monotonic() + seconds
    wait_until(lambda: time.monotonic() >= end, 'a time', seconds + 5)


def test_a_run_and_a_recovery_wait_for_who_has_the_store_locked(night):
    supervisor = night.start('run', HOLD='process last')
    night.journal.wait_for('process begins')
    with locked(night.store):
        night.journal.open('process')    # its end is to be committed
        night.journal.wait_for('process ends')
        wait_for_seconds(LOCKED / 2)
        assert night.count('inline') == 0
        assert supervisor.process.poll() is None
    night.journal.wait_for('last begins')
    supervisor.kill()
    supervisor.wait()
    with locked(night.store):
        status, recovery = night.start('status'), night.start('recover')
        wait_for_seconds(LOCKED / 2)
        assert status.process.poll() is None and recovery.process.poll() is None
        night.journal.open('last')
    for one in (status, recovery):
        done = night.end(one)
        assert done.code == 0, done
        assert 'locked' not in done.errors
    assert night.statuses() == dict.fromkeys(STEPS, 'success')
    assert [night.count(step) for step in STEPS] == [1] * 4


POLL = '''
import os, subprocess, sys
codes = set()
while not os.path.exists('over'):
    done = subprocess.run([sys.executable, '-m', 'sequent', 'many', 'status'],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    codes.add((done.returncode, done.stderr))
    print(1, flush=True)
assert codes == {(0, b'')}, codes
'''
MANY = '''
import os, time
import sequent as seq
config = {'task_construct': 'inline', 'group_commit': float(os.environ.get('GROUP', 0))}
flow = seq.Sequent('many', store='data/etl.db', config=config)
steps = flow.add_step('loop', repeats=range(int(os.environ.get('TASKS', 500))))
steps.add_step('one', func=len, args=('x',))
flow.add_step('last', func=os.path.exists, args=('go',), require=steps)
'''


def test_readers_see_no_lock_and_one_that_stands_still_stops_nobody(night):
    # semantics 6.10
    with open(os.path.join(night.folder, 'many.py'), 'w') as file:
        file.write(MANY)
    start = [sys.executable, '-m', 'sequent', 'many']
    assert subprocess.run(start + ['run', '-q'], cwd=night.folder,
                          env=dict(os.environ, GROUP='0.1')).returncode == 0
    readers = [subprocess.Popen([sys.executable, '-c', POLL], cwd=night.folder,
                                stdout=subprocess.PIPE) for _ in range(7)]
    # It writes more than a pipe takes, and nobody reads it: status | less.
    standing = subprocess.Popen(start + ['status', '--all', '--json'], cwd=night.folder,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        for one in readers:
            assert one.stdout.readline() == b'1\n'
        wait_until(lambda: in_a_write(standing.pid), 'the pipe of the standing reader to be full')

        done = subprocess.run(start + ['run', '-q'], cwd=night.folder, timeout=100,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              env=dict(os.environ, TASKS='12'))

        assert (done.returncode, done.stderr) == (0, b'')
        assert in_a_write(standing.pid), 'it has not stood still all the time'
        output, errors = standing.communicate()
        assert (standing.returncode, errors) == (0, b'')
        assert output.count(b'"loop_one"') == 500
    finally:
        open(os.path.join(night.folder, 'over'), 'w').close()
        if standing.poll() is None:
            standing.kill()
            standing.communicate()
        rounds = [one.communicate()[0].count(b'1') for one in readers]
    assert [one.returncode for one in readers] == [0] * 7
    assert min(rounds) >= 1


def in_a_write(pid):
    """Whether a process waits for somebody to read what it writes into a pipe."""
    with open('/proc/%d/syscall' % pid) as stream:
        return stream.read().split()[:2] == ['1', '0x1']
