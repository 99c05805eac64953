"""The stores that come with the library: the contract, and what is special about each."""

import contextlib
import itertools
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
import tracemalloc

import pytest


import sequent  # noqa: E402
from contracts import (KeepingStoreContract, StoreContract, a_run, a_task,  # noqa: E402
                       counted, places)
from sequent import AlreadyRunningError, MemoryStore, SqliteStore, StoreError  # noqa: E402


class TestMemoryStore(KeepingStoreContract):
    def make_store(self):
        return MemoryStore()


class TestVolatileMemoryStore(StoreContract):
    def make_store(self):
        return MemoryStore(volatile=True)

    def test_it_says_so(self, store):
        assert store.volatile is True

    def test_iterations_that_are_over_are_only_counted(self, store, run):
        for number in range(1, 4):
            store.commit(run, [a_task('s_a', '1.%d' % number, status='active')])
            store.commit(run, [a_task('s_a', '1.%d' % number)])
        assert places(store.tasks(run)) == [('s_a', '1.1')]
        assert places(store.attempts(run)) == [('s_a', '1.1')]
        assert store.outcomes(run, '1.2', 0) == {}
        assert counted(store, run) == [('s_a', 'leaf', 'success', 3)]

    def test_everything_outside_loops_is_kept(self, store, run):
        tasks = [a_task('a'), a_task('s_a', '1.1', result=b'x'), a_task('s_t_a', '1.1.1')]
        store.commit(run, tasks)
        assert list(store.tasks(run)) == tasks

    def test_failures_and_what_is_not_over_are_kept(self, store, run):
        tasks = [a_task('s_a', '1.2', status='failure'), a_task('s_b', '1.2', status='active')]
        store.commit(run, tasks)
        assert list(store.tasks(run)) == tasks

    def test_failed_attempts_of_what_then_succeeded_are_dropped(self, store, run):
        store.commit(run, [a_task('s_a', '1.2', status='failure')])
        store.commit(run, [a_task('s_a', '1.2', attempt=2)])
        assert list(store.attempts(run)) == []
        assert counted(store, run) == [('s_a', 'leaf', 'success', 1)]

    def test_a_success_in_a_later_iteration_is_only_counted(self, store, run):
        store.commit(run, [a_task('s_a', '1.2', status='active')])
        store.commit(run, [a_task('s_a', '1.2')])
        assert list(store.attempts(run)) == []
        assert counted(store, run) == [('s_a', 'leaf', 'success', 1)]

    def test_a_hundred_thousand_iterations_take_no_more_memory_than_ten_thousand(self):
        store, run = MemoryStore(volatile=True), a_run()
        store.begin(run)

        def iterate(first, last):
            for number in range(first, last):
                sequence = '1.%d' % number
                store.commit(run, [a_task('s', sequence, kind='iteration', status='', item=b'i'),
                                   a_task('s_a', sequence, status='active')])
                store.commit(run, [a_task('s_a', sequence, result=b'x' * 100)])

        tracemalloc.start()
        try:
            iterate(1, 10001)
            before = tracemalloc.get_traced_memory()[0]
            iterate(10001, 100001)
            grown = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()

        assert grown < 50000
        assert counted(store, run) == [('s_a', 'leaf', 'success', 100000)]


class TestSqliteStore(KeepingStoreContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path):
        self.path = str(tmp_path / 'etl.run.db')

    def make_store(self):
        return SqliteStore(self.path)


class TestSqliteStoreWithoutSynchronous(TestSqliteStore):
    def make_store(self):
        return SqliteStore(self.path, synchronous='off')


# The file of a SqliteStore


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / 'etl.run.db')


@contextlib.contextmanager
def opened(path, create=True, synchronous='off'):
    store = SqliteStore(path, synchronous)
    with contextlib.closing(store):
        store.open(create)
        yield store


@pytest.fixture
def stored(path):
    """A path with a run and a task in it."""
    with opened(path) as store:
        store.begin(a_run())
        store.commit(a_run(), [a_task()])
    return path


def query(path, *statements):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        return [database.execute(statement).fetchall() for statement in statements][-1]


def write(path, text):
    with open(path, 'w') as file:
        file.write(text)


def content(path):
    with open(path, 'rb') as file:
        return file.read()


def test_making_a_store_object_touches_nothing(tmp_path, path):
    SqliteStore(path)
    assert os.listdir(str(tmp_path)) == []


def test_outcomes_and_logs_lie_beside_the_file(path):
    store = SqliteStore(path)
    assert (store.folder, store.logs) == (path + '.outcomes', path + '.logs')


def test_a_path_object_is_a_path(tmp_path):
    assert SqliteStore(tmp_path / 'x.db').path == str(tmp_path / 'x.db')


def test_a_relative_path_is_meant_where_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    store = SqliteStore('x.db')
    monkeypatch.chdir('/')
    assert store.path == str(tmp_path / 'x.db')


@pytest.mark.parametrize('name', ['a b.db', 'a?b.db', 'a#b.db', 'a%20b.db', "a'b.db",
                                  os.fsdecode('\u00fc.db'.encode('utf-8'))], ids=ascii)
def test_a_path_may_hold_anything(tmp_path, name):
    with opened(str(tmp_path / name)) as store:
        store.begin(a_run())
    assert os.path.getsize(str(tmp_path / name)) > 0


def test_an_unknown_synchronous_is_an_error_with_the_nearest(path):
    with pytest.raises(sequent.ConfigError, match="'ful'; did you mean 'full'"):
        SqliteStore(path, synchronous='ful')


@pytest.mark.parametrize('mask', [0, 0o277, 0o777])
def test_the_file_and_its_lock_are_for_the_owner_alone_under_any_umask(path, mask):
    before = os.umask(mask)
    try:
        with opened(path) as store:
            store.lock('etl', 'r1')
            store.begin(a_run())
    finally:
        os.umask(before)
    for made in (path, path + '.lock'):
        assert stat.S_IMODE(os.stat(made).st_mode) == 0o600


def test_the_mode_of_an_existing_file_is_left_alone(path):
    write(path, '')
    os.chmod(path, 0o640)
    with opened(path):
        pass
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o640


def test_closing_leaves_the_file_and_the_lock_and_nothing_else(tmp_path, path):
    with opened(path) as store:
        store.lock('etl', 'r1')
        store.begin(a_run())
    assert sorted(os.listdir(str(tmp_path))) == ['etl.run.db', 'etl.run.db.lock']


def test_the_default_survives_a_power_cut(path):
    with opened(path, synchronous='full') as store:
        assert store._db.execute('PRAGMA synchronous').fetchone() == (2,)
        assert store._db.execute('PRAGMA journal_mode').fetchone() == ('persist',)


def test_the_file_says_whose_it_is(stored):
    assert query(stored, 'PRAGMA application_id') == [(0x53657175,)]
    assert query(stored, 'PRAGMA user_version') == [(1,)]


@pytest.mark.parametrize('create', [True, False])
def test_a_missing_folder_is_an_error_that_names_it(tmp_path, create):
    folder = str(tmp_path / 'missing')
    with pytest.raises(StoreError, match='no folder %r' % folder):
        SqliteStore(os.path.join(folder, 'x.db')).open(create)


def test_a_file_in_place_of_the_folder_is_an_error(stored):
    with pytest.raises(StoreError, match='no folder'):
        SqliteStore(os.path.join(stored, 'x.db')).open()


@pytest.mark.parametrize('create', [True, False])
def test_a_folder_in_place_of_the_file_is_refused(tmp_path, create):
    with pytest.raises(StoreError, match='not a regular file'):
        SqliteStore(str(tmp_path)).open(create)


FOREIGN = {
    'text': lambda path: write(path, 'select 1;\n' * 100),
    'short': lambda path: write(path, 'x'),
    'tables': lambda path: query(path, 'CREATE TABLE users (name)'),
    'application': lambda path: query(path, 'PRAGMA application_id = 7', 'VACUUM'),
    'wal': lambda path: query(path, 'PRAGMA journal_mode = WAL', 'CREATE TABLE users (name)'),
}


@pytest.mark.parametrize('create', [True, False])
@pytest.mark.parametrize('kind', sorted(FOREIGN))
def test_a_foreign_file_is_refused_and_not_touched(tmp_path, path, kind, create):
    FOREIGN[kind](path)
    before = content(path)

    with pytest.raises(StoreError, match='^.%s. cannot be a store' % path):
        SqliteStore(path).open(create)

    assert content(path) == before
    assert os.listdir(str(tmp_path)) == ['etl.run.db']


@pytest.mark.parametrize('create', [True, False])
def test_a_newer_store_is_refused_and_not_touched(stored, create):
    query(stored, 'PRAGMA user_version = 2')
    before = content(stored)

    with pytest.raises(StoreError, match='newer sequent.*format 2'):
        SqliteStore(stored).open(create)

    assert content(stored) == before


def half_made(path):
    """Leave what is left of a store whose making was killed: pages, and a journal against them."""
    program = """
        import os, sqlite3, sequent
        open(PATH, 'w').close()
        database = sqlite3.connect(PATH, isolation_level=None)
        database.execute('PRAGMA cache_size = 1')
        database.execute('BEGIN IMMEDIATE')
        for statement in sequent._TABLES:
            database.execute(statement)
        for number in range(200):
            database.execute("INSERT INTO meta VALUES (?, ?)", (str(number), 'x' * 1000))
        os.kill(os.getpid(), 9)
    """
    with child(program, path) as process:
        assert process.wait() == -signal.SIGKILL
    assert os.path.getsize(path) > 0 and os.path.getsize(path + '-journal') > 0


NEW = {
    'empty': lambda path: write(path, ''),
    'no tables': lambda path: query(path, 'VACUUM'),
    'half-made': lambda path: half_made(path),
}


@pytest.mark.parametrize('kind', sorted(NEW))
def test_an_empty_or_half_made_file_is_a_new_store(path, kind):
    NEW[kind](path)
    with opened(path) as store:
        assert list(store.runs()) == []
        store.begin(a_run())
    with opened(path, create=False) as store:
        assert list(store.runs()) == [a_run()]


@pytest.mark.parametrize('kind', sorted(NEW))
def test_an_empty_or_half_made_file_opened_to_look_holds_no_runs(path, kind):
    NEW[kind](path)
    with opened(path, create=False) as store:
        assert list(store.runs()) == []


def test_a_name_left_by_the_making_goes_and_what_another_one_is_making_stays(
        tmp_path, path, caplog):
    with opened(path):
        pass
    left, made = [tmp_path / (os.path.basename(path) + end) for end in ('.new-1-1', '.new-2-2')]
    os.link(path, str(left))
    made.write_bytes(b'')
    with opened(path) as store:
        assert list(store.runs()) == []
    assert (left.exists(), made.exists()) == (False, True)
    assert 'several names' not in caplog.text


# Looking only


def test_looking_makes_nothing(tmp_path, path):
    with opened(path, create=False) as store:
        assert list(store.runs()) == []
    assert os.listdir(str(tmp_path)) == []


def test_looking_changes_nothing(tmp_path, stored):
    before, files = content(stored), os.listdir(str(tmp_path))
    with opened(stored, create=False) as store:
        assert list(store.tasks(a_run())) == [a_task()]
        assert counted(store, a_run()) == [('a', 'leaf', 'success', 1)]
    assert content(stored) == before
    assert os.listdir(str(tmp_path)) == files


def test_who_looks_sees_a_store_that_is_made_later(path):
    with opened(path, create=False) as reader, opened(path) as writer:
        writer.begin(a_run())
        assert list(reader.runs()) == [a_run()]


@pytest.mark.parametrize('write', [
    lambda store: store.begin(a_run('r2')),
    lambda store: store.finish(a_run()),
    lambda store: store.commit(a_run(), [a_task()]),
    lambda store: store.lock('etl', 'r1'),
])
def test_who_looks_cannot_write(stored, write):
    with opened(stored, create=False) as store:
        with pytest.raises(StoreError, match='reading only'):
            write(store)


def as_nobody(program, path):
    """Run a program without the rights of root; it is loaded before it gives them up."""
    return child('import json, os, pathlib, sqlite3, sequent\npathlib.Path("/").as_uri()\n'
                 'os.setgid(65534); os.setuid(65534)\n' + textwrap.dedent(program), path)


needs_root = pytest.mark.skipif(
    not hasattr(os, 'geteuid') or os.geteuid() != 0,
    reason='not for users without the right to become another one')


@pytest.fixture
def read_only(stored, tmp_path):
    """A stored run in a file and a folder that others can only read."""
    os.chmod(stored, 0o444)
    for folder in [tmp_path] + list(tmp_path.parents):
        if not os.stat(str(folder)).st_mode & 0o001:
            os.chmod(str(folder), 0o755)
    return stored


@needs_root
def test_looking_works_on_a_read_only_file_in_a_read_only_folder(read_only):
    reader = as_nobody("""
        store = sequent.SqliteStore(PATH)
        store.open(create=False)
        print(len(list(store.tasks(store.latest('etl')))))
        store.close()
    """, read_only)
    assert reader.communicate()[0] == '1\n'


@needs_root
def test_opening_what_cannot_be_written_is_an_error_that_says_what_to_do(read_only):
    writer = as_nobody("""
        try:
            sequent.SqliteStore(PATH).open()
        except sequent.StoreError as exc:
            print(exc)
    """, read_only)
    message = writer.communicate()[0]
    assert repr(read_only) in message and 'make the file and its folder writable' in message


@needs_root
def test_a_file_that_cannot_be_made_is_an_error_that_says_what_to_do(read_only):
    path = read_only + '.new'
    writer = as_nobody("""
        try:
            sequent.SqliteStore(PATH).open()
        except sequent.StoreError as exc:
            print(exc)
    """, path)
    message = writer.communicate()[0]
    assert message.startswith('the store %r could not be opened' % path)
    assert 'make the file and its folder readable and writable' in message


def test_a_damaged_file_is_an_error_with_its_cause(stored):
    with open(stored, 'r+b') as file:
        file.seek(100)
        file.write(b'\xff' * 20000)
    with pytest.raises(StoreError, match='damaged') as caught:
        with opened(stored) as store:
            list(store.runs())
    assert isinstance(caught.value.__cause__, sqlite3.Error)


def test_a_disk_that_is_full_is_an_error_and_nothing_of_the_commit_is_stored(stored):
    with opened(stored) as store:
        store._db.execute('PRAGMA max_page_count = 1')
        with pytest.raises(StoreError, match='make room'):
            store.commit(a_run(), [a_task('b'), a_task('c', result=b'x' * 100000)])
        store._db.execute('PRAGMA max_page_count = 100000')
        assert list(store.tasks(a_run())) == [a_task()]
        store.commit(a_run(), [a_task('b')])


def test_using_a_store_that_is_not_open_is_an_error_that_says_so(stored):
    with pytest.raises(StoreError, match='not open'):
        SqliteStore(stored).latest('etl')


def test_a_record_that_cannot_be_stored_takes_the_whole_commit_with_it(stored):
    with opened(stored) as store:
        with pytest.raises(StoreError, match='could not be written'):
            store.commit(a_run(), [a_task('b'), a_task('\udce9')])
        assert list(store.tasks(a_run())) == [a_task()]


# Others at work on the same file


def child(program, path, *arguments):
    """Start a Python program with PATH set, text pipes, and the library to import."""
    return subprocess.Popen(
        [sys.executable, '-c', 'PATH = %r\n%s' % (path, textwrap.dedent(program))]
        + list(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, universal_newlines=True,
        env=dict(os.environ, PYTHONPATH=os.path.dirname(os.path.abspath(sequent.__file__))))


HOLDER = """
    import sys, sequent
    store = sequent.SqliteStore(PATH, 'off')
    store.open()
    print('ready', flush=True)
    sys.stdin.readline()
    run = sequent.RunRecord('etl', sys.argv[1], started=1700000000.25,
                            process=sequent.process_identity())
    try:
        store.lock('etl', sys.argv[1], exclusive=sys.argv[2] == 'exclusive')
        store.begin(run)
        print('won', flush=True)
    except sequent.AlreadyRunningError as exc:
        print('lost: %s' % exc, flush=True)
    sys.stdin.readline()
    store.close()
"""


@contextlib.contextmanager
def started(holders):
    """Wait until all are ready, let them go at once; yield what they print; end them."""
    try:
        assert [one.stdout.readline() for one in holders] == ['ready\n'] * len(holders)
        for one in holders:
            one.stdin.write('go\n')
            one.stdin.flush()
        yield [one.stdout.readline() for one in holders]
    finally:
        for one in holders:
            one.communicate()


def test_of_twenty_starters_exactly_one_wins(path):
    with started([child(HOLDER, path, 'r%d' % n, 'exclusive') for n in range(20)]) as said:
        assert sum(line == 'won\n' for line in said) == 1
        assert sum(line.startswith('lost') for line in said) == 19


def test_of_twenty_starters_of_one_run_exactly_one_wins(path):
    with started([child(HOLDER, path, 'r1', 'shared') for _ in range(20)]) as said:
        assert sum(line == 'won\n' for line in said) == 1


def test_of_twenty_starters_by_two_links_exactly_one_wins(path):
    with opened(path):
        os.link(path, path + '.link')
    with started([child(HOLDER, path + '.link' * (n % 2), 'r%d' % n, 'exclusive')
                  for n in range(20)]) as said:
        assert sum(line == 'won\n' for line in said) == 1
        assert sum(line.startswith('lost') for line in said) == 19


def test_runs_that_are_not_exclusive_work_side_by_side(path):
    with started([child(HOLDER, path, 'r%d' % n, 'shared') for n in range(4)]) as said:
        assert said == ['won\n'] * 4


def test_a_refusal_names_pid_host_and_start_of_the_holder(path):
    holder = child(HOLDER, path, 'r1', 'exclusive')
    with started([holder]), opened(path) as store:
        with pytest.raises(AlreadyRunningError) as caught:
            store.lock('etl', 'r2')
    for known in ("'r1'", "'etl'", 'pid %d' % holder.pid, socket.gethostname(), '2023-11-1',
                  "'exclusive': False"):
        assert known in str(caught.value)


def test_a_lock_is_free_at_once_when_its_holder_was_killed(path):
    holder = child(HOLDER, path, 'r1', 'exclusive')
    with started([holder]), opened(path) as store:
        holder.kill()
        holder.wait()
        store.lock('etl', 'r1')


def test_a_child_of_the_holder_does_not_keep_the_lock_alive(path):
    holder = child("""
        import os, sys, sequent
        store = sequent.SqliteStore(PATH)
        store.open()
        store.lock('etl', 'r1')
        pid = os.fork()
        if pid:
            print(pid, flush=True)
        sys.stdin.readline()
        os._exit(0)
    """, path)
    int(holder.stdout.readline())  # the child lives, and waits for the end of stdin
    os.kill(holder.pid, signal.SIGKILL)
    os.waitpid(holder.pid, 0)
    holder.returncode = -signal.SIGKILL

    with opened(path) as store:
        store.lock('etl', 'r1')

    holder.communicate()


def test_two_stores_of_one_process_exclude_one_another(path):
    with opened(path) as one, opened(path) as other:
        one.lock('etl', 'r1')
        with pytest.raises(AlreadyRunningError):
            other.lock('etl', 'r1')


@pytest.mark.long
def test_closing_one_store_of_a_process_keeps_the_lock_of_the_other(path):
    with opened(path) as one:
        one.lock('etl', 'r1')
        with opened(path) as other:
            other.lock('report', 'r1')
        with started([child(HOLDER, path, 'r1', 'exclusive')]) as said:
            assert said[0].startswith('lost')


def test_opening_and_closing_another_store_keeps_the_transaction_of_the_first(stored):
    program = """
        import sqlite3
        database = sqlite3.connect(PATH, timeout=0)
        try:
            database.execute('BEGIN IMMEDIATE')
        except sqlite3.OperationalError as exc:
            print(exc)
        database.close()
    """
    with opened(stored) as store:
        store._db.execute('BEGIN IMMEDIATE')
        with opened(stored, create=False) as other:
            other.latest('etl')
        assert child(program, stored).communicate()[0] == 'database is locked\n'
        store._db.execute('ROLLBACK')


def test_a_lock_that_cannot_be_made_is_an_error_that_names_it(path):
    os.mkdir(path + '.lock')
    with opened(path) as store:
        with pytest.raises(StoreError, match='etl.run.db.lock.*cannot be locked'):
            store.lock('etl', 'r1')


def test_a_committed_task_survives_kill_9(path):
    writer = child("""
        import itertools, sequent
        store = sequent.SqliteStore(PATH)
        store.open()
        run = sequent.RunRecord('etl', 'r1')
        store.begin(run)
        for n in itertools.count(1):
            store.commit(run, [sequent.TaskRecord('a', str(n), 0, 1, 'leaf', 'success')])
            print(n, flush=True)
    """, path)
    told = list(itertools.islice(writer.stdout, 25))
    writer.kill()
    told += writer.stdout.readlines()
    writer.communicate()
    known = max(int(line) for line in told if line.endswith('\n'))

    with opened(path) as store:
        kept = [int(task.sequence) for task in store.tasks(a_run())]

    assert kept[:known] == list(range(1, known + 1))
    assert len(kept) in (known, known + 1)


def test_who_looks_while_others_write_never_sees_an_error(path):
    writers = [child("""
        import sys, sequent
        store = sequent.SqliteStore(PATH, 'off')
        store.open()
        run = sequent.RunRecord('etl', sys.argv[1])
        store.begin(run)
        for n in range(300):
            store.commit(run, [sequent.TaskRecord('a', str(n), 0, 1, 'leaf', 'success')])
        store.close()
    """, path, run_id) for run_id in ('r1', 'r2')]

    seen = [0]
    with opened(path, create=False) as store:
        while seen[-1] < 600:
            seen.append(sum(len(list(store.tasks(run))) for run in store.runs()))

    assert seen == sorted(seen)
    assert [(one.communicate()[0], one.returncode) for one in writers] == [('', 0)] * 2


def test_a_commit_waits_for_those_who_read(stored):
    opening, done = threading.Event(), []

    def commit():
        opening.set()
        with opened(stored) as store:
            store.commit(a_run(), [a_task('b')])
            done.append(True)

    writer = threading.Thread(target=commit)
    with opened(stored, create=False) as reader:
        reader._db.execute('BEGIN')
        reader._read('SELECT * FROM runs')
        writer.start()
        opening.wait()
        reader._db.execute('COMMIT')
        writer.join()

    assert done == [True]


def test_opening_waits_for_no_reader(stored, monkeypatch):
    monkeypatch.setattr(sequent, '_BUSY', 0)
    with opened(stored, create=False) as reader:
        reader._db.execute('BEGIN')
        reader._read('SELECT * FROM runs')
        with opened(stored) as store:
            assert store.latest('etl') == a_run()
        reader._db.execute('COMMIT')


def test_a_file_that_stays_locked_is_an_error_that_says_what_to_do(stored, monkeypatch):
    monkeypatch.setattr(sequent, '_BUSY', 0)
    with opened(stored) as store, opened(stored) as other:
        other._db.execute('BEGIN IMMEDIATE')
        with pytest.raises(StoreError, match='locked.*fuser'):
            store.commit(a_run(), [a_task('b')])
        other._db.execute('ROLLBACK')
        assert list(store.tasks(a_run())) == [a_task()]


@pytest.mark.parametrize('read', ['tasks', 'attempts'])
def test_reading_tasks_keeps_no_writer_waiting(stored, monkeypatch, read):
    monkeypatch.setattr(sequent, '_BUSY', 0)
    with opened(stored) as writer, opened(stored, create=False) as reader:
        writer.commit(a_run(), [a_task('a', str(n)) for n in range(1001)])
        reading = getattr(reader, read)(a_run())
        for _ in range(3):
            next(reading)
            writer.commit(a_run(), [a_task('b', status='active')])
        assert len(list(reading)) >= 998


def test_reading_runs_keeps_no_writer_waiting(stored, monkeypatch):
    monkeypatch.setattr(sequent, '_BUSY', 0)
    with opened(stored) as writer, opened(stored, create=False) as reader:
        for number in range(300):
            writer.begin(a_run('x%d' % number))
        reading = reader.runs()
        next(reading)
        writer.begin(a_run('y'))
        assert len(list(reading)) == 301


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='not for systems without fork')
def test_private_fds_are_those_of_the_file_and_of_the_lock(stored):
    store = SqliteStore(stored)
    assert store.private_fds() == []
    with contextlib.closing(store):
        store.open()
        store.lock('etl', 'r1')
        inodes = sorted(os.fstat(fd).st_ino for fd in store.private_fds())
    assert inodes == sorted(os.stat(name).st_ino for name in (stored, stored + '.lock'))


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='not for systems without fork')
def test_a_forked_child_can_neither_use_nor_harm_the_store(stored):
    parent = child("""
        import os, sys, sequent
        store = sequent.SqliteStore(PATH, 'off')
        store.open()
        store.lock('etl', 'r1')
        run = store.latest('etl')
        pid = os.fork()
        if not pid:
            try:
                store.commit(run, [])
            except sequent.StoreError as exc:
                print(exc, flush=True)
            store.unlock('etl', 'r1')
            store.close()
            os._exit(0)
        os.waitpid(pid, 0)
        store.commit(run, [sequent.TaskRecord('b', '1', 0, 1, 'leaf', 'success')])
        print('locked', flush=True)
        sys.stdin.readline()
        store.close()
    """, stored)
    assert 'forked from it' in parent.stdout.readline()
    assert parent.stdout.readline() == 'locked\n'
    with started([child(HOLDER, stored, 'r1', 'exclusive')]) as said:
        assert said[0].startswith('lost')
    parent.communicate()
    with opened(stored) as store:
        assert places(store.tasks(a_run())) == [('a', '1'), ('b', '1')]


def test_outcomes_are_one_search_of_an_index(stored):
    plan = query_plan(stored, sequent._SQL_OUTCOMES, (1, '1', 0))
    assert len(plan) == 1 and 'tasks_place (run=? AND sequence=?)' in plan[0]


def test_no_query_of_tasks_reads_those_of_other_runs(stored):
    for sql, parameters in ((sequent._SQL_TASKS, (9, None, 1, None, 1, None, 0, 9)),
                            (sequent._SQL_ATTEMPTS, (1, 0, 9))):
        plan = query_plan(stored, sql, parameters)
        assert not [line for line in plan if line.startswith('SCAN TABLE')
                    or line.startswith('SCAN tasks')]


def query_plan(path, sql, parameters):
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [row[-1] for row in database.execute(
            'EXPLAIN QUERY PLAN ' + sql.format(**sequent._COLUMNS), parameters)]


# Process identity


def test_this_process_is_alive():
    assert sequent.process_alive(sequent.process_identity()) is True


def test_an_identity_is_json_that_names_host_and_pid():
    import json
    identity = json.loads(sequent.process_identity())
    assert sorted(identity) == ['boot', 'host', 'ns', 'pid', 'start']
    assert (identity['host'], identity['pid']) == (os.uname().nodename, os.getpid())


def test_a_process_that_was_killed_is_dead_already_as_a_zombie():
    process = child('input()', '')
    identity = sequent.process_identity(process.pid)
    assert sequent.process_alive(identity) is True

    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    assert sequent.process_alive(identity) is (False if os.path.exists('/proc/self/stat')
                                               else True)
    process.communicate()
    assert sequent.process_alive(identity) is False


def changed(**fields):
    import json
    return json.dumps(dict(json.loads(sequent.process_identity()), **fields))


@pytest.mark.parametrize('identity, alive', [
    (changed(host='since renamed'), True),
    (changed(host='elsewhere', boot='x'), None),
    (changed(boot='of the last boot'), False),
    (changed(ns='pid:[1]'), None),
    (changed(pid=2 ** 22 + 1), False),
    ('', None), (None, None), ('nonsense', None), ('{}', None), ('[]', None),
])
def test_what_is_known_of_other_processes(identity, alive):
    assert sequent.process_alive(identity) is alive


@pytest.mark.skipif(not os.path.exists('/proc/self/stat'), reason='not for systems without /proc')
def test_a_reused_pid_is_not_mistaken_for_the_process_that_had_it():
    assert sequent.process_alive(changed(start=1)) is False


def test_without_proc_a_process_is_known_by_its_pid(monkeypatch):
    monkeypatch.setattr(sequent, '_system', [('h', None, None)])
    monkeypatch.setattr(sequent, '_proc_stat', lambda pid: (None, None, None))
    process = child('input()', '')
    identity = sequent.process_identity(process.pid)
    assert sequent.process_alive(identity) is True
    process.communicate()
    assert sequent.process_alive(identity) is False
