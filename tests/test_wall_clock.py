"""A wall clock that is set while a flow runs or waits; odd times; delays of years.

The clock is really another one for the programs that run here: libfaketime gives them one that
the tests set. Their monotonic clock stays what it is.
"""

import glob
import importlib.util
import os
import re
import subprocess
import sys
import time

import pytest


from runtools import (  # noqa: E402,F401
    a_private_temporary_folder, birth, journal, programs, wait_until)
from sequent import RunRecord, SqliteStore, TaskRecord  # noqa: E402


def find_library():
    """Return the path of the library that fakes the time, or None."""
    spec = importlib.util.find_spec('libfaketime')
    found = spec and glob.glob(os.path.join(
        os.path.dirname(spec.origin), '**', 'libfaketime.so.1'), recursive=True)
    return found[0] if found else None


LIBRARY = find_library()
needs_clock = pytest.mark.skipif(
    LIBRARY is None, reason='libfaketime is not installed (pip install libfaketime)')
YEARS_10 = 10 * 365.25 * 86400
COMMON = '''
    def set_clock(text):
        with open(os.path.join(FOLDER, 'clock.new'), 'w') as stream:
            stream.write(text + chr(10))
        os.replace(os.path.join(FOLDER, 'clock.new'), os.path.join(FOLDER, 'clock'))

    def at(word):
        journal.note('%s %.3f' % (word, time.monotonic()))

    def fail_once():
        at('tried')
        if journal.is_open('failed'):
            return
        journal.open('failed')
        raise OSError('not yet')
'''


class Clock:
    """The wall clock of programs."""

    def __init__(self, programs):
        self.programs = programs
        self.path = os.path.join(programs.folder, 'clock')
        self.environment = {
            'LD_PRELOAD': LIBRARY, 'FAKETIME_TIMESTAMP_FILE': self.path, 'NO_FAKE_STAT': '1',
            'FAKETIME_NO_CACHE': '1', 'FAKETIME_DONT_FAKE_MONOTONIC': '1'}
        self.set('+0')

    def set(self, text):
        """Set it so far from the real one, as in '+5h', '-60y'; atomic."""
        with open(self.path + '.new', 'w') as stream:
            stream.write(text + '\n')
        os.replace(self.path + '.new', self.path)

    def start(self, mode='restart', **environment):
        return self.programs.start(mode, environment=dict(self.environment, **environment))

    def run(self, mode='restart', **environment):
        return self.start(mode, **environment).wait()

    def say(self, *arguments):
        """Return what the command line says of the program."""
        return subprocess.run(
            [sys.executable, '-m', 'sequent', self.programs.path] + list(arguments),
            stdout=subprocess.PIPE, universal_newlines=True, check=True,
            env=dict(os.environ, **self.environment)).stdout


@pytest.fixture
def clock(programs):
    return Clock(programs)


def times(journal, word):
    """Return when a word was noted, by the monotonic clock."""
    return [float(line.split()[1]) for line in journal.words() if line.split()[0] == word]


def recorded(programs):
    """Return the latest `RunRecord` and all `TaskRecord`s of its attempts."""
    store = SqliteStore(programs.store_path)
    store.open(create=False)
    try:
        run = store.latest('etl')
        return run, list(store.attempts(run))
    finally:
        store.close()


# While a supervisor lives #########################################################


@needs_clock
@pytest.mark.parametrize('construct, shift', [
    ('process', '+5h'), ('process', '-5h'), ('thread', '-5h'), ('inline', '+5h')])
def test_a_clock_that_is_set_during_a_run_changes_no_wait_and_no_duration(
        construct, shift, clock, programs, journal):
    # semantics 4.17
    programs.write(COMMON + '''
    limits = {'timeout': 2.5, 'warn_after': 0.6, 'task_construct': 'process'}
    flow = make(%r, config={'max_concurrent': 0})

    def set_it():
        journal.wait_for('heeds', 2)
        set_clock(%r)
        at('set')

    def heed():
        """Succeed, but only when asked to end."""
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
        journal.note('heeds')
        while not asked:
            time.sleep(0.01)

    heeds = flow.add_step('function', func=heed, config=limits)
    script = 'trap "exit 0" TERM; echo heeds >>journal; while :; do sleep 0.02; done'
    program = flow.add_step('program', func=seq.Command(script, shell=True), config=limits)
    setter = flow.add_step('setter', func=set_it)
    flow.add_step('delayed', func=at, args=('delayed',), require=setter, delay=0.3)
    flow.add_step('retried', func=fail_once, require=setter,
                  config={'retries': 1, 'retry_delay': 0.3})
    flow.add_step('handler', func=None, handles=True,
                      require=((heeds, 'failure'), (program, 'failure')))
    leave(flow)
    ''' % (construct, shift))
    before = time.monotonic()

    supervisor = clock.start()
    code = supervisor.wait()
    took = time.monotonic() - before

    assert code == 0, supervisor.errors()
    [was_set], [delayed], [first, second] = [
        times(journal, word) for word in ('set', 'delayed', 'tried')]
    assert delayed - was_set >= 0.3
    assert second - first >= 0.3
    for step in 'function', 'program':
        assert supervisor.errors().count('step %s at 1 has been running for 0.6 s' % step) == 1
    run, attempts = recorded(programs)
    assert {one.path: one.error for one in attempts if one.path in ('function', 'program')} == {
        'function': 'timed out after 2.5 s', 'program': 'timed out after 2.5 s'}
    for one in [run] + attempts:
        assert 0 <= one.ended - one.started <= took, one


# While there is none ##############################################################


@needs_clock
@pytest.mark.parametrize('shift', ['+5h', '-5h'])
@pytest.mark.parametrize('kind', ['function', 'program'])
def test_an_orphan_has_the_time_it_was_given_whatever_the_clock_says(kind, shift, clock, programs,
                                                                     journal):
    programs.write(COMMON + '''
    def work():
        signal.signal(signal.SIGTERM, lambda *_: (at('asked'), os._exit(1)))
        at('began')
        journal.pass_gate('never')
    if MODE == 'work':
        work()
    func = {'function': work, 'program': seq.Command([sys.executable, __file__, 'work'])}[%r]
    flow = make()
    flow.add_step('late', func=func, config={'timeout': None if MODE == 'restart' else 2.0})
    if MODE == 'restart':
        at('before')
    leave(flow)
    ''' % kind)
    supervisor = clock.start()
    wait_until(lambda: times(journal, 'began'), 'the task')
    wait_until(lambda: '"pid"' in (recorded(programs)[1][0].process or ''), 'its process')
    supervisor.kill()
    supervisor.wait()
    clock.set(shift)

    assert clock.run('recover') == 1

    [before], [asked] = times(journal, 'before'), times(journal, 'asked')
    assert 1.9 <= asked - before < 100
    assert recorded(programs)[1][-1].error == 'timed out after 2 s'


def waiting(kind, delay):
    """Return a program whose first run stops before the end of a wait."""
    return COMMON + '''
    flow = make()
    if %r == 'delay':
        flow.add_step('a', func=at, args=('tried',), delay=%r)
    else:
        flow.add_step('a', func=fail_once, config={'retries': 1, 'retry_delay': %r})
    ok = flow.run(1 if MODE == 'restart' else -1)
    os._exit(0 if ok else 1)
    ''' % (kind, delay, delay)


@needs_clock
@pytest.mark.parametrize('mode', ['recover', 'continue'])
@pytest.mark.parametrize('kind', ['delay', 'retry'])
def test_after_the_clock_was_set_back_nothing_waits_longer_than_from_its_beginning(
        kind, mode, clock, programs, journal):
    # semantics 4.17
    programs.write(waiting(kind, 0.3))
    assert clock.run() == 0
    assert programs.last('a') == 'ready'
    clock.set('-5h')

    assert clock.run(mode) == 0

    assert programs.last('a') == 'success'


@needs_clock
@pytest.mark.parametrize('kind', ['delay', 'retry'])
def test_what_is_due_when_the_clock_was_set_forward_starts_at_once(kind, clock, programs):
    programs.write(waiting(kind, 3600))
    assert clock.run() == 0
    clock.set('+5h')

    assert clock.run('recover') == 0

    assert programs.last('a') == 'success'


# Long delays ######################################################################


@needs_clock
def test_a_delay_of_ten_years_is_counted_kept_and_over_after_ten_years(clock, programs, journal):
    # semantics 4.4
    programs.write(COMMON + '''
    flow = make()
    flow.add_step('a', func=at, args=('ran',), delay=%r)
    ok = flow.run(max_loops=1)
    journal.note('%%s %%s %%.0f' %% ((ok,) + flow.count_todos())
                 if flow.count_todos()[0] else 'over')
    flow.close()
    ''' % YEARS_10)

    assert clock.run() == clock.run('recover') == clock.run('continue') == 0

    assert [line[:7] for line in journal.words()] == ['True 1 '] * 3
    assert all(abs(float(line.split()[2]) - YEARS_10) < 60 for line in journal.words())
    assert len({one.due for one in recorded(programs)[1]}) == 1    # recoveries keep it
    clock.set('+11y')
    assert clock.run('recover') == 0
    assert journal.words()[3].startswith('ran ') and journal.words()[4:] == ['over']


@pytest.mark.parametrize('delay, year', [(YEARS_10, r'\d{4}-\d\d-\d\d'),
                                         (sys.float_info.max, r'1\.79769e\+308')])
def test_a_long_delay_is_waited_for_and_shown(delay, year, programs):
    programs.write('''
    flow = make(mode=MODE if __name__ == '__main__' else 'restart')
    flow.add_step('a', func=None, delay=%r)
    if __name__ == '__main__':
        leave(flow)
    ''' % delay)
    supervisor = programs.start()
    wait_until(lambda: os.path.exists(programs.store_path) and programs.last('a') == 'ready',
               'the delay')
    wait_until(lambda: is_idle(supervisor.pid), 'it to sleep')

    status = subprocess.run(
        [sys.executable, '-m', 'sequent', programs.path, 'status'],
        stdout=subprocess.PIPE, universal_newlines=True).stdout
    supervisor.kill(15)

    assert re.search('a .* ready .* due ' + year, status), status
    assert supervisor.wait() == 143, supervisor.errors()


def is_idle(pid):
    """Whether a process has not been awake for a moment."""
    def switches():
        with open('/proc/%d/status' % pid) as stream:
            return [line for line in stream if 'ctxt_switches' in line or 'State' in line]
    before = switches()
    for _ in range(5):
        time.sleep(0.02)
        if switches() != before or 'S' not in before[0]:
            return False
    return birth(pid) is not None


# Odd times ########################################################################


@needs_clock
@pytest.mark.parametrize('shift, year', [('-60y', '19'), ('+30y', '20'), ('+200y', '22')])
def test_a_flow_runs_before_1970_and_after_2038(shift, year, clock, programs):
    programs.write(COMMON + '''
    flow = make(mode=MODE if __name__ == '__main__' else 'restart')
    a = flow.add_step('a', func=at, args=('a',), delay=0.05)
    b = flow.add_step('b', func=seq.Command(['true']), require=a)
    flow.add_step('c', func=fail_once, require=b, config={'retries': 1, 'retry_delay': 0.05})
    flow.add_step('d', func=lambda: journal.is_open('mended') or fail(), require=b)
    if __name__ == '__main__':
        leave(flow)
    ''')
    clock.set(shift)

    assert clock.run() == 1
    programs.journal.open('mended')
    assert clock.run('recover') == 0

    run, attempts = recorded(programs)
    assert all(0 <= one.ended - one.started < 60 for one in [run] + attempts
               if one.status != 'ready')
    assert abs(run.started - time.time()) > 29 * 365 * 86400
    for verb in 'status', 'history':
        assert re.search(r'\b%s\d\d-\d\d-\d\d ' % year, clock.say(verb)), clock.say(verb)


@pytest.mark.parametrize('switch, before, after', [
    (1774746000, '2026-03-29 01:59:59', '03:00:01'),     # an hour is left out
    (1792890000, '2026-10-25 02:59:59', '02:00:01')])    # an hour comes twice
def test_a_change_of_summer_time_shows_in_times_and_not_in_durations(switch, before, after,
                                                                     programs):
    programs.write('''
    flow = make(mode='restart')
    flow.add_step('a', func=None)
    ''')
    store = SqliteStore(programs.store_path)
    store.open()
    run = RunRecord('etl', 'night', status='success', started=switch - 1, ended=switch + 4)
    store.begin(run)
    store.commit(run, [
        TaskRecord('a', '1', 0, 1, 'leaf', 'success', started=switch - 1, ended=switch + 1),
        TaskRecord('b', '1', 0, 1, 'leaf', 'success', started=switch + 1, ended=switch + 4)])
    store.close()

    status = subprocess.run(
        [sys.executable, '-m', 'sequent', programs.path, 'status'], stdout=subprocess.PIPE,
        universal_newlines=True, env=dict(os.environ, TZ='Europe/Berlin')).stdout

    assert 'start %s, end ' % before in status
    rows = [line.split() for line in status.splitlines() if line[:2] in ('a ', 'b ')]
    assert [row[5:8] for row in rows] == [[before[11:], '2.0', 's'], [after, '3.0', 's']]
