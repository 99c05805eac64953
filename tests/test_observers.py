"""Observers: what is told of a run, when, and what an observer that fails does to it."""

import contextlib
import logging
import os
import subprocess
import sys
import textwrap

import pytest

import sequent
from flowtools import do_nothing
from sequent import FlowTypeError, MemoryStore, Observer, RunMode


class Witness(Observer):
    """Keeps what it is told, as (method, ...)."""

    def __init__(self):
        self.told = []

    def begun(self, run):
        self.told.append(('begun', run.run_id, run.status))

    def committed(self, records):
        self.told.extend((record.path, record.sequence, record.attempt, record.status)
                         for record in records if record.kind == 'leaf')

    def ended(self, run, ok):
        self.told.append(('ended', run.run_id, run.status, ok))

    def of(self, path):
        """Return the statuses of a step, each once, in order."""
        statuses = [one[-1] for one in self.told if one[0] == path]
        return [one for at, one in enumerate(statuses) if one not in statuses[:at]]


@pytest.fixture(params=['sqlite', 'memory', ':memory:'])
def store(request, tmp_path):
    return {'sqlite': str(tmp_path / 'store.db'), 'memory': MemoryStore(),
            ':memory:': ':memory:'}[request.param]


@pytest.fixture(params=['process', 'thread', 'inline'])
def flow(request, store):
    return sequent.Sequent('flow', store, run_id='r', config={'task_construct': request.param})


def fail():
    raise ValueError('no')


def test_an_observer_is_told_of_the_run_and_of_each_start_and_end(flow):
    # semantics 14.1
    witness = Witness()
    flow.observe(witness)
    a = flow.add_step('a', func=do_nothing)
    flow.add_step('b', func=fail, require=a)

    assert flow() is False

    assert witness.told[0] == ('begun', 'r', 'active')
    assert witness.told[-1] == ('ended', 'r', 'failure', False)
    assert [one for one in witness.of('a') if one != 'ready'] == ['active', 'success']
    assert [one for one in witness.of('b') if one != 'ready'] == ['active', 'failure']


def test_a_start_is_told_before_the_function_is_called(store):
    # semantics 14.1
    witness, seen = Witness(), []
    flow = sequent.Sequent('flow', store, config={'task_construct': 'inline'})
    flow.observe(witness)
    for number in range(20):
        flow.add_step('s%d' % number, func=lambda: seen.append(
            len({one[0] for one in witness.told if one[-1] == 'active' and one[0] != 'begun'})))

    assert flow() is True

    assert seen == list(range(1, 21))


def test_what_is_told_is_stored(tmp_path):
    # semantics 14.1: after each commit
    path = str(tmp_path / 'store.db')

    class Reader(Observer):
        wrong = 0

        def committed(self, records):
            reader = sequent.SqliteStore(path)
            reader.open(False)
            run = reader.latest('flow', '')
            stored = {(one.path, one.attempt): one.status for one in reader.tasks(run)}
            reader.close()
            self.wrong += any(stored[one.path, one.attempt] != one.status for one in records)
    flow = sequent.Sequent('flow', path, config={'task_construct': 'thread'})
    reader = Reader()
    flow.observe(reader)
    a = flow.add_step('a', func=do_nothing)
    flow.add_step('b', func=do_nothing, require=a)

    assert flow() is True
    assert reader.wrong == 0


def test_a_volatile_store_shows_what_it_only_counts():
    witness = Witness()
    flow = sequent.Sequent('flow', ':memory:', config={'task_construct': 'inline'})
    flow.observe(witness)
    loop = flow.add_step('loop', loop=range(50))
    loop.add_step('a', func=do_nothing)

    assert flow() is True

    told = [one[1] for one in witness.told if one[0] == 'loop_a' and one[-1] == 'success']
    assert told == ['1.%d' % number for number in range(1, 51)]


def test_each_attempt_is_told(store):
    witness, calls = Witness(), []

    def work():
        calls.append(1)
        if len(calls) < 3:
            raise ValueError('no')
    flow = sequent.Sequent('flow', store, config={'task_construct': 'inline', 'retries': 2})
    flow.observe(witness)
    flow.add_step('a', func=work)

    assert flow() is True

    assert [one[2] for one in witness.told if one[-1] == 'failure'] == [1, 2]
    assert [one[2] for one in witness.told if one[-1] == 'success'] == [3]


@pytest.mark.parametrize('method', ['begun', 'committed', 'ended'])
@pytest.mark.parametrize('error', [ValueError('broken'), SystemExit(0)], ids=repr)
def test_an_observer_that_raises_is_reported_once_and_left_out(method, error, flow, caplog):
    # semantics 14.1: what it raises harms nothing
    witness, calls = Witness(), []

    def raising(*given):
        calls.append(method)
        raise error
    broken = Observer()
    setattr(broken, method, raising)
    flow.observe(broken)
    flow.observe(witness)
    a = flow.add_step('a', func=do_nothing)
    flow.add_step('b', func=do_nothing, require=a)

    assert flow() is True

    assert calls == [method]
    assert sum('raised' in one.getMessage() for one in caplog.records) == 1
    assert witness.told[-1][0] == 'ended'
    assert 'success' in witness.of('b')


def test_an_observer_is_told_of_a_run_that_can_be_continued_and_of_its_end(tmp_path):
    witness = Witness()
    flow = sequent.Sequent('flow', str(tmp_path / 'store.db'), run_id='r',
                           config={'task_construct': 'inline'})
    flow.observe(witness)
    a = flow.add_step('a', func=do_nothing)
    flow.add_step('b', func=do_nothing, require=a, delay=0.01)

    flow.run(max_loops=1)
    assert witness.told[-1][:3] == ('ended', 'r', 'stopped')
    assert flow.run() is True

    assert [one[0] for one in witness.told if one[0] in ('begun', 'ended')] == [
        'begun', 'ended', 'begun', 'ended']
    assert witness.told[-1] == ('ended', 'r', 'success', True)


def test_an_observer_is_told_of_another_run_of_the_object(store):
    witness = Witness()
    flow = sequent.Sequent('flow', store, config={'task_construct': 'inline'})
    flow.observe(witness)
    flow.add_step('a', func=do_nothing)
    flow.run()
    flow.run(run_mode=RunMode.restart)

    assert [one[0] for one in witness.told].count('begun') == 2


def test_a_slow_observer_is_warned_of_once(flow, caplog):
    # semantics 14.1
    class Slow(Observer):
        SLOW = -1.0
    flow.observe(Slow())
    flow.add_step('a', func=do_nothing)

    assert flow() is True

    warnings = [one for one in caplog.records if 'process of its own' in one.getMessage()]
    assert sum('Slow' in one.getMessage() for one in warnings) == 1


def test_what_is_no_observer_is_refused(flow):
    with pytest.raises(FlowTypeError, match='derive its class from sequent.Observer'):
        flow.observe(print)


def test_the_log_says_when_a_step_begins_and_ends(flow, caplog):
    # semantics 5.2
    caplog.set_level(logging.INFO, 'sequent')
    a = flow.add_step('a', func=do_nothing)
    flow.add_step('b', func=fail, require=a)

    assert flow() is False

    lines = [one.getMessage().partition('\n')[0] for one in caplog.records]
    assert [line for line in lines if line.startswith('step ')] == [
        'step a at 1 starts', 'step a at 1 ended with success', 'step b at 1 starts',
        'step b at 1 failed: ValueError: no']


# What a dead supervisor owed ######################################################

JOURNAL = '''
    import os
    import signal
    import sequent as seq


    class Journal(seq.Observer):
        name = os.environ.get('NAME')
        calls = 0

        def committed(self, records):
            self.calls += 1
            if os.environ.get('DIE_AT') == str(self.calls):
                os.kill(os.getpid(), signal.SIGKILL)
            with open('journal', 'a') as file:
                for one in records:
                    file.write('%s %s %d\\n' % (one.path, one.status, one.recovery))


    flow = seq.Sequent('night', store='night.db', config={
        'task_construct': os.environ['CONSTRUCT'], 'group_commit': 0, 'max_concurrent': 1})
    before = ()
    for name in 'abc':
        before = flow.add_step(name, func=print, args=(name,), require=before)
    flow.observe(Journal())
'''


class Told:
    """A flow with an observer that writes a journal, run from the command line in a folder."""

    def __init__(self, folder, construct, name):
        self.folder = folder
        self.variables = dict(os.environ, CONSTRUCT=construct)
        if name is not None:
            self.variables['NAME'] = name
        (folder / 'night.py').write_text(textwrap.dedent(JOURNAL))

    def run(self, verb, **variables):
        """Return the exit code; a supervisor that killed itself leaves -9."""
        return subprocess.run(
            [sys.executable, '-m', 'sequent', 'night', verb], cwd=str(self.folder), timeout=60,
            env=dict(self.variables, **variables), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE).returncode

    def journal(self):
        path = self.folder / 'journal'
        return path.read_text().splitlines() if path.exists() else []

    def stored(self):
        store = sequent.SqliteStore(str(self.folder / 'night.db'))
        store.open(create=False)
        with contextlib.closing(store):
            run = store.latest('night', '')
            return ['%s %s %d' % (one.path, one.status, one.recovery)
                    for one in store.attempts(run)]


@pytest.mark.parametrize('construct, verb', [('inline', 'recover'), ('process', 'continue')])
@pytest.mark.parametrize('call', range(1, 5))
def test_a_recovery_tells_again_what_was_stored_and_not_told_before_a_kill_9(
        tmp_path, construct, verb, call):
    # semantics 14.2
    told = Told(tmp_path, construct, 'journal')
    assert told.run('run', DIE_AT=str(call)) == -9
    owed = set(told.stored()) - set(told.journal())
    assert owed

    assert told.run(verb) == 0

    assert owed <= set(told.journal())
    assert {'%s success' % name for name in 'abc'} <= {
        line.rpartition(' ')[0] for line in told.journal()}


def test_an_observer_without_a_name_is_told_nothing_again(tmp_path):
    # semantics 14.2
    told = Told(tmp_path, 'inline', None)
    assert told.run('run', DIE_AT='3') == -9
    owed = [line for line in told.stored() if 'success' in line and line not in told.journal()]

    assert told.run('recover') == 0

    assert owed and not set(owed) & set(told.journal())


def test_what_a_supervisor_told_before_it_ended_is_not_told_again(tmp_path):
    # semantics 14.2
    told = Told(tmp_path, 'inline', 'journal')
    (tmp_path / 'night.py').write_text(textwrap.dedent(JOURNAL) + textwrap.dedent('''
        flow.add_step('d', func=os.stat, args=('mended',), require=before)
    '''))
    assert told.run('run') == 1
    first = told.journal()
    (tmp_path / 'mended').write_text('')

    assert told.run('recover') == 0

    assert all(line.startswith('d ') for line in told.journal()[len(first):])
