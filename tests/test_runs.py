"""Stores hold runs, and what is on disk when: semantics 6, and results."""

import contextlib
import json
import logging
import os
import pathlib
import pickle
import re
import sqlite3
import stat
import subprocess
import sys
import threading

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    Calls, Line, a_flow, a_private_temporary_folder, construct, fail, is_running, journal,
    programs, statuses, store, the_task, wait_until)
from sequent import (  # noqa: E402
    AlreadyRunningError, Eventor, MemoryStore, SqliteStore, StoreError)


class RecordingStore(MemoryStore):
    """Notes each commit, and what functions of the test say in between."""

    def __init__(self):
        super().__init__()
        self.trace = []

    def commit(self, run, records):
        records = list(records)
        if records:
            self.trace.append([(one.path, one.sequence, str(one.status)) for one in records])
        super().commit(run, records)

    @property
    def commits(self):
        return [one for one in self.trace if isinstance(one, list)]


def look(path):
    """Return {path: status} of the newest run in a file, through a connection of one's own."""
    found = SqliteStore(path)
    found.open(create=False)
    try:
        return {one.path: str(one.status) for one in found.tasks(found.latest('etl'))}
    finally:
        found.close()


@pytest.fixture
def statements(monkeypatch):
    """Every SQL statement that is executed, as text."""
    seen, connect = [], sqlite3.connect

    def traced(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(lambda text: seen.append(text))  # 3.6 must hash it
        return connection
    monkeypatch.setattr(sqlite3, 'connect', traced)
    return seen


# 6.1 Stores

def test_a_store_may_be_a_path(tmp_path):
    # semantics 6.1
    for path in (str(tmp_path / 'one.db'), pathlib.Path(str(tmp_path / 'two.db'))):
        flow = a_flow(path)
        flow.add_step('a', func=Calls())
        assert flow() is True
        assert os.path.getsize(str(path)) > 0
        assert isinstance(flow.store, SqliteStore)
        assert statuses(flow) == {'a': 'success'}


def test_a_store_may_be_memory_or_an_object(tmp_path, monkeypatch):
    # semantics 6.1
    monkeypatch.chdir(tmp_path)
    store = MemoryStore()
    for given in (':memory:', store):
        flow = a_flow(given)
        flow.add_step('a', func=Calls())
        assert flow() is True
        assert statuses(flow) == {'a': 'success'}
    assert flow.store is store
    assert not os.path.exists(':memory:')


def test_by_default_the_store_is_beside_the_calling_module(tmp_path):
    # semantics 6.1, 1.6
    source = ("import sequent as seq\n"
              "flow = seq.Sequent(config={'task_construct': 'inline'})\n"
              "flow.add_step('a', func=print, args=('ran',))\n"
              "flow()\nprint(flow.name)\n")
    folder = tmp_path / 'programs'
    folder.mkdir()
    (folder / 'nightly.py').write_text(source)

    out = subprocess.check_output([sys.executable, str(folder / 'nightly.py')],
                                  cwd=str(tmp_path), stderr=subprocess.DEVNULL)

    assert out.split() == [b'ran', b'nightly']
    assert (folder / 'nightly.run.db').exists()


def test_without_a_file_the_store_is_in_the_current_folder_and_said_once(tmp_path):
    # semantics 6.1
    source = ("import sequent as seq\n"
              "flow = seq.Sequent('etl', config={'task_construct': 'inline'})\n"
              "flow.add_step('a', func=None)\nflow()\nflow.tasks()\nflow.close()\n")
    done = subprocess.Popen([sys.executable, '-c', source], cwd=str(tmp_path),
                            stderr=subprocess.PIPE)
    _, errors = done.communicate(timeout=30)
    assert done.returncode == 0
    assert (tmp_path / 'sequent.run.db').exists()
    said = [line for line in errors.decode().splitlines()
            if str(tmp_path / 'sequent.run.db') in line and 'WARNING' in line]
    assert len(said) == 1


def test_one_store_holds_many_runs_of_many_flows(store):
    # semantics 6.1
    flows = []
    for name in ('etl', 'report', 'etl'):
        flow = a_flow(store, name=name)
        flow.add_step('a', func=Calls(), args=(name,))
        assert flow() is True
        flows.append(flow)
    kept = flows[0].open_store(create=False)
    assert [(run.flow, run.run_id, str(run.status)) for run in kept.runs()] == [
        (flow.name, flow.run_id, 'success') for flow in flows]
    flows[0].close_store()
    assert [len(flow.tasks()) for flow in flows] == [1, 1, 1]


@pytest.mark.parametrize('given', ['', None])
def test_a_run_id_is_generated_when_not_given(given):
    # semantics 6.1
    ids = [a_flow(run_id=given).run_id for _ in range(20)]
    ids.append(Eventor('e', store=':memory:', run_id=given).run_id)
    assert all(ids) and len(set(ids)) == 21


def test_a_run_id_names_a_run(store):
    # semantics 6.1
    flow = a_flow(store, run_id='monday')
    flow.add_step('a', func=Calls())
    assert flow() is True
    assert flow.run_id == 'monday'
    kept = flow.open_store(create=False)
    assert kept.latest('etl', 'monday').run_id == 'monday'
    flow.close_store()


def test_a_run_id_is_not_used_for_a_second_run(store):
    # semantics 6.1: it names one run
    calls = Calls()
    assert second(store, run_id='monday')() is True
    again = a_flow(store, run_id='monday')
    again.add_step('a', func=calls)
    with pytest.raises(sequent.SequentError, match='monday'):
        again()
    assert calls.calls == []


def test_memory_keeps_failures_results_and_counts_of_iterations_that_are_over():
    # semantics 6.1
    def one():
        if sequent.current().item == 70:
            fail('at 70')
        return 'result'
    flow = a_flow()
    first = flow.add_step('first', func=one, loop=[1])
    loop = flow.add_step('s', loop=range(100), config={'stop_on_exception': False},
                         require=(first,))
    loop.add_step('a', func=one)
    flow.add_step('last', func=lambda: 'kept', require=((loop, 'complete'),), handles=True)

    assert flow() is True

    tasks = flow.tasks()
    assert [(one.sequence, one.error) for one in tasks
            if one.path == 's_a' and one.status == 'failure'] == [
        ('1.71', 'ValueError: at 70')]
    assert the_task(flow, 'last').result == 'kept'
    assert len(tasks) < 20
    counts = {(one.path, str(status)): n
              for one in flow.store.summary(flow.store.latest('etl'))
              for status, n in one.counts.items() if one.kind == 'leaf'}
    assert counts['s_a', 'success'] == 99
    assert counts['s_a', 'failure'] == 1


def test_a_memory_store_object_keeps_all_and_can_be_recovered_from():
    # semantics 6.1
    store, line = MemoryStore(), Line()

    def make(mode):
        flow = a_flow(store, mode=mode)
        loop = flow.add_step('s', func=calls, loop=range(100))
        flow.add_step('b', func=line, require=(loop,))
        return flow
    calls = Calls()
    first = make('restart')
    assert first() is False
    assert len([one for one in first.tasks() if one.path == 's' and one.kind == 'leaf']) == 100

    line.down = False
    assert make('recover')() is True

    assert len(calls.calls) == 100 and len(line.calls) == 2


# 6.2 What is on disk when

def test_a_success_is_on_disk_before_what_requires_it_starts(construct, tmp_path):
    # semantics 6.2
    path = str(tmp_path / 'etl.db')
    flow = a_flow(path, construct, config={'group_commit': 60})
    a = flow.add_step('a', func=len, args=('',))
    flow.add_step('b', func=look, args=(path,), require=(a,))

    assert flow() is True

    assert the_task(flow, 'b').result['a'] == 'success'


def test_a_failure_is_on_disk_before_what_requires_it_starts(construct, tmp_path):
    # semantics 6.2
    path = str(tmp_path / 'etl.db')
    flow = a_flow(path, construct, config={'group_commit': 60})
    a = flow.add_step('a', func=fail)
    flow.add_step('b', func=look, args=(path,), require=((a, 'failure'),))
    assert flow() is False
    assert the_task(flow, 'b').result['a'] == 'failure'


def test_active_is_on_disk_before_the_function_is_called(construct, tmp_path):
    # semantics 6.2
    path = str(tmp_path / 'etl.db')
    flow = a_flow(path, construct, config={'group_commit': 60})
    flow.add_step('a', func=look, args=(path,))
    flow.add_step('b', func=look, args=(path,))

    assert flow() is True

    assert the_task(flow, 'a').result['a'] == 'active'
    assert the_task(flow, 'b').result['b'] == 'active'


def test_one_commit_covers_all_changes_of_a_turn():
    # semantics 6.2
    store, meeting = RecordingStore(), threading.Barrier(10, timeout=20)
    flow = a_flow(store, 'thread', config={'max_concurrent': 0})
    for number in range(10):
        flow.add_step('a%d' % number, func=meeting.wait)

    assert flow() is True

    actives = [commit for commit in store.commits
               if any(status == 'active' for _, _, status in commit)]
    assert len(actives) == 1
    assert len(actives[0]) == 10


def test_what_follows_from_an_end_is_committed_with_it():
    # semantics 6.2
    store = RecordingStore()
    flow = a_flow(store, 'thread')
    a = flow.add_step('a', func=len, args=('',))
    flow.add_step('b', func=len, args=('',), require=(a,))
    assert flow() is True
    [commit] = [commit for commit in store.commits if ('a', '1', 'success') in commit]
    assert ('b', '1', 'active') in commit


def test_independent_inline_tasks_share_commits():
    # semantics 6.2
    store = RecordingStore()
    flow = a_flow(store, config={'group_commit': 60, 'max_concurrent': 0})
    for number in range(300):
        flow.add_step('a%d' % number, func=len, args=('',))
    assert flow() is True
    assert len(store.commits) < 30


def test_with_a_group_commit_of_0_each_success_is_committed_before_the_next_call():
    # semantics 6.2
    store = RecordingStore()

    def one():
        store.trace.append(sequent.current().name)
    flow = a_flow(store, config={'group_commit': 0})
    for number in range(10):
        flow.add_step('a%d' % number, func=one)
    assert flow() is True
    flat = [one for part in store.trace for one in (part if isinstance(part, list) else [part])]
    for number in range(9):
        assert flat.index(('a%d' % number, '1', 'success')) < flat.index('a%d' % (number + 1))


def test_tasks_that_take_longer_than_group_commit_do_not_share():
    # semantics 6.2: up to so many seconds of their work
    store = RecordingStore()
    done = threading.Event()

    def one():
        store.trace.append(sequent.current().name)
        done.wait(0.02)   # the work that it does
    flow = a_flow(store, config={'group_commit': 0.01})
    for number in range(5):
        flow.add_step('a%d' % number, func=one)
    assert flow() is True
    flat = [one for part in store.trace for one in (part if isinstance(part, list) else [part])]
    for number in range(4):
        assert flat.index(('a%d' % number, '1', 'success')) < flat.index('a%d' % (number + 1))


# 6.3 and 6.4 SQLite

def run_and_recover(path):
    line = Line()
    for mode in ('restart', 'recover'):
        flow = a_flow(path, mode=mode)
        flow.add_step('s', loop=[1, 2]).add_step('a', func=Calls())
        flow.add_step('b', func=line)
        flow()
        flow.tasks()
        line.down = False
    assert statuses(flow)['b'] == 'success'


def test_commits_are_durable_in_a_rollback_journal(tmp_path, statements):
    # semantics 6.3
    run_and_recover(str(tmp_path / 'etl.db'))

    text = '\n'.join(statements)
    assert re.search(r'pragma\s+synchronous\s*=\s*(full|2)\b', text, re.I)
    assert not re.search(r'journal_mode\s*=\s*\W?wal', text, re.I)
    begins = [one for one in statements if re.match(r'\s*begin', one, re.I)]
    writes = [one for one in begins if re.match(r'\s*begin\s+immediate', one, re.I)]
    assert writes
    plain = sqlite3.connect(str(tmp_path / 'etl.db'))
    assert plain.execute('PRAGMA journal_mode').fetchone() == ('delete',)
    plain.close()
    assert sorted(one.name for one in tmp_path.iterdir() if one.name.startswith('etl.db-')) == []


@pytest.mark.parametrize('given, level', [('full', '2|full'), ('normal', '1|normal'),
                                          ('off', '0|off')])
def test_synchronous_is_configured(given, level, tmp_path, statements):
    # semantics 6.3
    flow = a_flow(str(tmp_path / 'etl.db'), config={'synchronous': given})
    flow.add_step('a', func=Calls())
    assert flow() is True
    found = re.findall(r'pragma\s+synchronous\s*=\s*(\w+)', '\n'.join(statements), re.I)
    assert found and all(re.match('(%s)$' % level, one, re.I) for one in found)


def test_who_reads_holds_no_transaction_while_it_prints(tmp_path):
    # semantics 6.3
    path = str(tmp_path / 'etl.db')
    flow = a_flow(path)
    flow.add_step('a', func=Calls())
    assert flow() is True
    with contextlib.closing(SqliteStore(path)) as store:
        store.open()
        [task] = store.tasks(store.latest('etl'))
        store.commit(store.latest('etl'), [
            task._replace(sequence='1.%d' % number) for number in range(1499)])
    reader = SqliteStore(path)
    reader.open(create=False)
    reading = reader.tasks(reader.latest('etl'))
    next(reading)

    writer = sqlite3.connect(path, timeout=0, isolation_level=None)
    writer.execute('BEGIN EXCLUSIVE')
    writer.execute('ROLLBACK')
    writer.close()

    assert sum(1 for _ in reading) == 1499
    reader.close()


def test_the_file_is_created_for_its_owner_alone(tmp_path):
    # semantics 6.4
    before = os.umask(0)
    try:
        run_and_recover(str(tmp_path / 'etl.db'))
    finally:
        os.umask(before)
    made = [one for one in tmp_path.iterdir() if one.name.startswith('etl.db') and one.is_file()]
    assert {'etl.db', 'etl.db.lock'} <= {one.name for one in made}
    for one in made:
        assert stat.S_IMODE(one.stat().st_mode) == 0o600, one


def test_the_sql_is_what_an_old_sqlite_knows(tmp_path, statements):
    # semantics 6.4
    run_and_recover(str(tmp_path / 'etl.db'))
    assert statements
    for one in statements:
        for newer in (r'\bON\s+CONFLICT\b.*\bDO\b', r'\bRETURNING\b', r'\bSTRICT\b', r'^\s*WITH\b',
                      r'\bWITHOUT\s+ROWID\b', r'\bCREATE\b.*\bINDEX\b.*\bWHERE\b', r'\bOVER\s*\(',
                      r'\bRENAME\s+COLUMN\b', r'\bDROP\s+COLUMN\b',
                      r'\(\s*\w+\s*,\s*\w+\s*(,\s*\w+\s*)*\)\s*(=|<|>|IN\b)'):
            assert not re.search(newer, one, re.I | re.S), one


# 6.5 One supervisor

def second(store, mode='restart', **given):
    flow = a_flow(store, mode=mode, **given)
    flow.add_step('a', func=Calls())
    return flow


def refusal(make):
    try:
        make()()
    except AlreadyRunningError as error:
        return str(error)
    return None


def test_a_second_supervisor_of_the_run_is_refused_and_the_first_named(store):
    # semantics 6.5
    said = []
    flow = a_flow(store, config={'exclusive': False})
    flow.add_step('a', func=lambda: said.append(refusal(
        lambda: second(store, 'continue', config={'exclusive': False}))))

    assert flow() is True

    [message] = said
    assert message, 'it was not refused'
    assert str(os.getpid()) in message
    assert os.uname().nodename in message
    assert re.search(r'\d\d:\d\d:\d\d', message)


def test_a_second_run_of_the_flow_is_refused(store):
    # semantics 6.5
    said, calls = [], Calls()

    def other():
        flow = a_flow(store)
        flow.add_step('b', func=calls)
        return flow
    flow = a_flow(store)
    flow.add_step('a', func=lambda: said.append(refusal(other)))
    assert flow() is True
    assert said[0] and str(os.getpid()) in said[0]
    assert calls.calls == []


def test_another_flow_runs_beside_it_in_the_same_store(store):
    # semantics 6.5
    ended = []
    flow = a_flow(store)
    flow.add_step('a', func=lambda: ended.append(second(store, name='report')()))
    assert flow() is True
    assert ended == [True]


def test_a_second_run_is_permitted_where_both_are_not_exclusive(store):
    # semantics 6.5
    ended = []
    flow = a_flow(store, config={'exclusive': False})
    flow.add_step('a', func=lambda: ended.append(
        second(store, config={'exclusive': False})()))
    assert flow() is True
    assert ended == [True]
    assert statuses(flow) == {'a': 'success'}


def test_after_a_run_the_next_one_may_start(store):
    # semantics 6.5
    assert second(store)() is True
    failing = a_flow(store)
    failing.add_step('a', func=fail)
    assert failing() is False
    assert second(store)() is True


def test_another_process_is_refused_even_after_this_one_was(programs, journal):
    # semantics 6.5: closing any descriptor of a POSIX lock's file gives the lock up
    programs.write('''
        def one():
            for _ in range(2):
                try:
                    make('inline', mode='restart').run()
                except seq.AlreadyRunningError:
                    journal.note('refused within')
            journal.sign('holder')
            journal.pass_gate('go')
        flow = make('inline', mode='restart')
        flow.add_step('a', func=one)
        try:
            leave(flow)
        except seq.AlreadyRunningError as error:
            print(error, file=sys.stderr)
            sys.exit(75)
        ''')
    holder = programs.start('first')
    assert journal.pid('holder') == holder.pid
    assert journal.count('refused within') == 2

    other = programs.start('second')
    assert other.wait() == 75
    assert str(holder.pid) in other.errors() and os.uname().nodename in other.errors()

    journal.open('go')
    assert holder.wait() == 0


def test_after_kill_9_the_lock_is_free_at_once(programs, journal):
    # semantics 6.5
    programs.write('''
        flow = make('inline')
        flow.add_step('a', func=kill_me if MODE == 'restart' and not journal.words() else len,
                      args=() if not journal.words() else ('',))
        journal.note('begun')
        leave(flow)
        ''')
    assert programs.run() == -9
    assert programs.run() == 0


def test_a_new_run_is_refused_while_orphans_of_an_earlier_one_live(programs, journal):
    # semantics 6.5
    programs.write('''
        def one():
            journal.note('started')
            journal.sign('a')
            journal.pass_gate('go')
        flow = make()
        flow.add_step('the_step', func=one)
        try:
            leave(flow)
        except seq.AlreadyRunningError as error:
            print(error, file=sys.stderr)
            sys.exit(75)
        ''')
    pid = programs.leave_orphan()

    refused = programs.start()
    assert refused.wait() == 75
    assert str(pid) in refused.errors() and 'the_step' in refused.errors()
    assert re.search(r'since .*\d\d:\d\d:\d\d', refused.errors())
    assert journal.count('started') == 1

    journal.open('go')
    wait_until(lambda: not is_running(pid), 'the end of the orphan')
    assert programs.run() == 0
    assert journal.count('started') == 2


# Results

class Opaque:
    """Cannot be pickled."""

    def __reduce__(self):
        raise TypeError('opaque')

    def __repr__(self):
        return '<Opaque thing>'


def test_what_a_function_returns_is_kept_with_its_task(construct, store):
    value = {'rows': 17, 'names': ('a', None)}
    flow = a_flow(store, construct)
    flow.add_step('a', func=lambda: value)
    flow.add_step('nothing', func=lambda: None)
    flow.add_step('l', func=lambda: sequent.current().item * 2, loop=[1, 2])

    assert flow() is True

    assert the_task(flow, 'a').result == value
    assert the_task(flow, 'nothing').result is None
    assert [the_task(flow, 'l', '1.%d' % one).result for one in (1, 2)] == [2, 4]


def test_a_result_that_cannot_be_pickled_is_kept_as_its_repr_with_a_warning(
        construct, store, caplog):
    flow = a_flow(store, construct)
    flow.add_step('the_step', func=Opaque)

    assert flow() is True

    assert the_task(flow, 'the_step').result == '<Opaque thing>'
    assert any('the_step' in record.getMessage() for record in caplog.records
               if record.levelno == logging.WARNING)


class Unloadable:
    """Can be pickled, but not unpickled."""

    def __reduce__(self):
        return (int, ('no number',))


def test_a_result_that_cannot_be_unpickled_does_not_keep_tasks_from_answering(construct):
    assert pytest.raises(ValueError, pickle.loads, pickle.dumps(Unloadable()))
    flow = a_flow(MemoryStore(), construct)
    flow.add_step('a', func=Unloadable)
    flow.add_step('b', func=lambda: 1)
    assert flow() is True
    assert statuses(flow) == {'a': 'success', 'b': 'success'}
    assert the_task(flow, 'b').result == 1


def test_with_keep_result_false_nothing_is_kept(construct, store):
    flow = a_flow(store, construct, config={'keep_result': False})
    flow.add_step('a', func=lambda: 'dropped')
    flow.add_step('b', func=lambda: 'kept', config={'keep_result': True})
    assert flow() is True
    assert the_task(flow, 'a').result is None
    assert the_task(flow, 'b').result == 'kept'


def test_tasks_tells_start_end_and_error(construct, store):
    # semantics 8.7
    flow = a_flow(store, construct)
    flow.add_step('a', func=fail, args=('no disk',), config={'stop_on_exception': False})
    container = flow.add_step('s')
    container.add_step('b', func=lambda: 1)

    assert flow() is False

    a, b = the_task(flow, 'a'), the_task(flow, 's_b')
    assert (a.kind, a.recovery, a.attempt, a.error, a.handled) == (
        'leaf', 0, 1, 'ValueError: no disk', False)
    assert (b.kind, b.error) == ('leaf', None)
    assert the_task(flow, 's').kind == 'container'
    assert 1.6e9 < a.start <= a.end and 1.6e9 < b.start <= b.end


def test_tasks_of_a_flow_that_was_not_run_are_none(store):
    flow = a_flow(store)
    flow.add_step('a', func=Calls())
    assert flow.tasks() == []


# Bad stores

@pytest.mark.parametrize('given', [17, object(), b'x'])
def test_a_store_of_another_type_is_refused(given):
    flow = a_flow(given)
    flow.add_step('a', func=Calls())
    with pytest.raises(sequent.SequentError):
        flow()


def test_a_store_in_a_missing_folder_is_refused_before_anything_starts(tmp_path):
    calls = Calls()
    flow = a_flow(str(tmp_path / 'missing' / 'etl.db'))
    flow.add_step('a', func=calls)
    with pytest.raises(StoreError, match='missing'):
        flow()
    assert calls.calls == []


def test_the_flow_is_not_run_after_close(store):
    # semantics 8.2
    flow = a_flow(store)
    flow.add_step('a', func=Calls())
    assert flow() is True
    flow.close()
    flow.close()
    with pytest.raises(sequent.ClosedError):
        flow()
    assert statuses(flow) == {'a': 'success'}


def test_a_flow_is_a_context_manager(store):
    # semantics 8.7
    with a_flow(store) as flow:
        flow.add_step('a', func=Calls())
        assert flow.run() is True
    with pytest.raises(sequent.ClosedError):
        flow.run()


def test_making_a_flow_opens_creates_and_locks_nothing(tmp_path):
    # semantics 8.7
    folder = tmp_path / 'flow'
    folder.mkdir()
    threads = threading.enumerate()
    descriptors = os.listdir('/dev/fd')

    flow = a_flow(str(folder / 'etl.db'), 'process', config={'logdir': str(folder / 'logs')})
    a = flow.add_step('a', func=Calls(), loop=range(3))
    flow.add_step('b', func=Calls(), require=a)
    flow.add_step('c', command=['true'])
    beside = a_flow(str(folder / 'etl.db'), mode='recover')
    flow.close()
    beside.close()

    assert os.listdir(str(folder)) == []
    assert len(os.listdir('/dev/fd')) == len(descriptors)
    assert threading.enumerate() == threads


@pytest.mark.parametrize('store', [':memory:', MemoryStore()])
def test_an_inline_function_sees_what_is_over_before_it(store):
    flow, seen = a_flow(store), []
    a = flow.add_step('a', func=len, args=('',))
    flow.add_step('b', func=lambda: seen.extend(
        (task.path, str(task.status)) for task in flow.tasks()), require=a)
    assert flow.run() is True
    assert seen == [('a', 'success'), ('b', 'active')]


# What is said of earlier runs


def told(caplog, level, flow):
    """Run a flow; return what it logs at a level that names a run by which to go on."""
    caplog.clear()
    flow.run()
    return [one.getMessage() for one in caplog.records
            if one.levelname == level and 'began at' in one.getMessage()]


@pytest.mark.parametrize('end', ['failed', 'interrupted', 'stopped'])
def test_a_new_run_names_the_latest_one_that_is_not_done(end, tmp_path, caplog):
    # semantics 7.11
    path = str(tmp_path / 'etl.db')
    kept = sequent.SqliteStore(path)
    kept.open()
    dead = json.dumps(dict(json.loads(sequent.process_identity()), start=1))
    for number in range(9):
        kept.begin(sequent.RunRecord('etl', 'old%d' % number, started=1.7e9, process=dead,
                                     status='failure' if end == 'failed' else
                                     'active' if end == 'interrupted' else 'stopped'))
    kept.close()
    flow = a_flow(path)
    flow.add_step('a', func=len, args=('',))

    [text] = told(caplog, 'WARNING', flow)

    assert 'old8' in text and 'recover --run-id old8' in text and end in text
    again = a_flow(path)
    again.add_step('a', func=None)
    assert told(caplog, 'WARNING', again) == []


def test_a_recovery_names_the_run_it_takes_and_another_one_that_is_not_done(tmp_path, caplog):
    # semantics 7.11
    path = str(tmp_path / 'etl.db')
    kept = sequent.SqliteStore(path)
    kept.open()
    kept.begin(sequent.RunRecord('etl', 'crashed', started=1.7e9, status='stopped'))
    kept.begin(sequent.RunRecord('etl', 'failed', started=1.7e9, status='failure'))
    kept.close()
    caplog.set_level('INFO')

    def recovery(**given):
        flow = a_flow(path, mode='recover', **given)
        flow.add_step('a', func=None)
        return flow

    flow = recovery()
    [text] = told(caplog, 'WARNING', flow)
    assert 'recover --run-id crashed' in text
    assert flow.run_id == 'failed'
    [text] = told(caplog, 'INFO', recovery())
    assert 'run failed of flow etl, the latest one' in text
    assert told(caplog, 'WARNING', recovery(run_id='crashed')) == []
    assert told(caplog, 'WARNING', recovery()) == []


# What is kept for those who look


def test_a_store_keeps_the_plan_the_items_and_what_each_task_waited_for(tmp_path):
    # semantics 6.13
    path = str(tmp_path / 'etl.db')
    flow = a_flow(path, config={'max_concurrent': 1})
    first = flow.add_step('first', func=len, args=('x',))
    part = flow.add_step('part', loop=['a', '\u00fc' * 300], require=first)
    part.add_step('read', func=len, args=('x',))
    flow.add_step('last', func=len, args=('x',), require=sequent.or_((part, 'failure'), part))
    assert flow() is True

    with contextlib.closing(SqliteStore(path)) as store:
        store.open(create=False)
        [run] = store.runs()
        plan = json.loads(store.plan(run))
        tasks = {(one.path, one.sequence): one for one in store.tasks(run)}
    assert [(one['path'], one.get('in'), one.get('loop')) for one in plan['steps']] == [
        ('first', None, None), ('part', None, True), ('part_read', 'part', None),
        ('last', None, None)]
    assert plan['steps'][3]['require'] == {'any': [['part', 'failure'], ['part', 'success']]}
    assert [tasks['part_read', '1.%d' % n].item_text for n in (1, 2)] == ['a', '\u00fc' * 200]
    assert tasks['first', '1'].waited_for is None
    assert tasks['part', '1'].waited_for == 'first success'
    assert tasks['last', '1'].waited_for == 'part success'
    assert (tasks['first', '1'].ended <= tasks['part', '1'].ready_at
            <= tasks['part_read', '1.1'].ready_at <= tasks['part_read', '1.1'].started)
