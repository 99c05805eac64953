"""Damaged stores: each gives a sentence and exit code 4, and the file stays as it is."""

import contextlib
import gzip
import os
import random
import shutil
import signal
import sqlite3

import pytest


import sample  # noqa: E402
import sequent  # noqa: E402
import tally  # noqa: E402
from disktools import (Night, assert_no_trace, assert_refused, content,  # noqa: E402
                       night)
from runtools import a_flow, wait_until  # noqa: E402,F401

__all__ = ['night']
#: How many bits are flipped, one store for each, and with what they are chosen.
FLIPS = int(os.environ.get('SEQUENT_FLIPS') or 150)


@pytest.fixture(scope='module')
def stored(tmp_path_factory):
    """A folder with the flow, and the store of a run of it of which the last step was killed."""
    night = Night(tmp_path_factory.mktemp('stored'))
    supervisor = night.start('run', HOLD='last')
    night.journal.pid('last')
    supervisor.kill()
    supervisor.wait()
    night.finish()
    wait_until(lambda: night.statuses().get('last') == 'active', 'the start of the last step')
    shutil.rmtree(night.store + '.outcomes', ignore_errors=True)
    return night


@pytest.fixture
def damaged(stored, night):
    """The flow in a folder of its own, with a copy of that store, yet to be damaged."""
    shutil.copy(stored.store, night.store)
    with contextlib.suppress(FileNotFoundError):
        shutil.copy(stored.store + '-journal', night.store + '-journal')
    with contextlib.closing(sqlite3.connect(night.store)) as database:
        database.execute('PRAGMA user_version').fetchall()    # what was killed is rolled back
        assert database.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
    with contextlib.suppress(FileNotFoundError):
        os.unlink(night.store + '-journal')
    return night


def change(path, place, new):
    with open(path, 'r+b') as file:
        file.seek(place)
        file.write(new)


def execute(path, *statements):
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in statements:
            database.execute(statement)


def foreign(path):
    os.unlink(path)
    execute(path, 'CREATE TABLE customers (name)', "INSERT INTO customers VALUES ('x')")


def predecessor(path):
    """What eventor leaves: its tables, and no number of ours."""
    os.unlink(path)
    execute(path, 'CREATE TABLE Info (run_id VARCHAR, name VARCHAR, value VARCHAR)',
            'CREATE TABLE Task (id_ INTEGER PRIMARY KEY, run_id VARCHAR, sequence VARCHAR)')


#: What is done to the store, and what the message says.
DAMAGES = {
    'cut in the middle of a page': (lambda path: os.truncate(path, 10000), 'damaged'),
    'cut to its first page': (lambda path: os.truncate(path, 4096), 'damaged'),
    'cut to a part of its first page': (lambda path: os.truncate(path, 1000), ''),
    'its last page is gone':
        (lambda path: os.truncate(path, os.path.getsize(path) - 4096), 'damaged'),
    'zeroed': (lambda path: change(path, 0, bytes(os.path.getsize(path))), 'begins with zeros'),
    'its first page is zeroed': (lambda path: change(path, 0, bytes(4096)), 'begins with zeros'),
    'its schema is overwritten': (lambda path: change(path, 100, b'\xff' * 3996), 'damaged'),
    'text': (lambda path: change(path, 0, b'once upon a time'), 'not an SQLite database'),
    'another application\'s database': (foreign, "another application's database"),
    'a store of the predecessor': (predecessor, "another application's database"),
    'newer': (lambda path: execute(path, 'PRAGMA user_version = 2'), 'newer sequent'),
    'no format number': (lambda path: execute(path, 'PRAGMA user_version = 0'),
                         'no number of their format'),
    'a negative format number': (lambda path: execute(path, 'PRAGMA user_version = -1'),
                                 'no number of their format'),
    'no table of runs': (lambda path: execute(path, 'DROP TABLE runs'), 'damaged'),
    'no table of tasks': (lambda path: execute(path, 'DROP TABLE tasks'), 'damaged'),
}
VERBS = {'no table of tasks': ('status', 'recover')}    # the others need none


@pytest.mark.parametrize('kind', sorted(DAMAGES))
def test_a_damaged_store_is_refused_with_a_sentence_and_left_alone(damaged, kind):
    # semantics 6.7
    damage, text = DAMAGES[kind]
    damage(damaged.store)
    tally.count('damaged stores')
    before = damaged.left_alone()

    for verb in VERBS.get(kind, ('status', 'history', 'recover', 'run')):
        given = ('--run-id', 'r2') if verb == 'run' else ()
        assert_refused(damaged.run_here(verb, *given), damaged.store, text)

        left = damaged.left_alone()
        left.pop('etl.db.lock', None)
        assert left == before, verb


@pytest.mark.parametrize('kind', sorted(DAMAGES))
def test_the_plan_is_listed_whatever_the_store_is(damaged, kind):
    DAMAGES[kind][0](damaged.store)
    before = damaged.left_alone()
    done = damaged.run_here('list')
    assert done.code == 0 and 'program' in done.output
    assert damaged.left_alone() == before


def damaged_pages(path):
    """Yield (place, bytes of the store with that page zeroed) for each page but the first."""
    whole = content(path)
    for start in range(4096, len(whole), 4096):
        yield start, whole[:start] + bytes(4096) + whole[start + 4096:]


def make(path):
    """Return a flow like that of the store, to be run in this process."""
    flow = a_flow(str(path), name='flow', mode='recover', run_id='r1',
                  config={'synchronous': 'off'})
    first = flow.add_step('process', func=len, args=('x',))
    inline = flow.add_step('inline', func=len, args=('x',), require=first)
    program = flow.add_step('program', func=len, args=('x',), require=first)
    flow.add_step('last', func=len, args=('x',), require=(inline, program))
    return flow


def look(path):
    """Do what the verbs do that only look; return the error, or None."""
    store = sequent.SqliteStore(path)
    try:
        with contextlib.closing(store):
            store.open(create=False)
            for run in list(store.runs()):
                list(store.tasks(run))
                list(store.attempts(run))
                store.summary(run)
        return None
    except sequent.StoreError as error:
        return error


def recover(path):
    """Recover the run; return the error, or None."""
    flow = make(path)
    try:
        assert flow.run() in (True, False)
        return None
    except sequent.SequentError as error:    # a name has changed, or the boot of a process
        return error
    finally:
        flow.close()


def test_a_zeroed_page_is_found_before_anything_is_written(damaged):
    pages = list(damaged_pages(damaged.store))
    assert len(pages) > 3
    for start, whole in pages:
        with open(damaged.store, 'wb') as file:
            file.write(whole)

        error = recover(damaged.store)

        tally.count('damaged stores')
        assert isinstance(error, sequent.StoreError), start
        assert 'damaged' in str(error) and damaged.store in str(error), start
        assert content(damaged.store) == whole, start


def test_a_flipped_bit_never_gives_more_than_a_sentence(damaged):
    """Nearly all of them are found; SQLite cannot tell that a text is another one."""
    chance, whole, found = random.Random(sample.SEED), content(damaged.store), 0
    for number in range(FLIPS):
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        if number % 2:    # half of them where something is stored
            place = chance.choice([at for at in range(len(whole)) if whole[at]])
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        with open(damaged.store, 'wb') as file:
            file.write(flipped)

        tally.count('damaged stores')
        looked = look(damaged.store)
        assert content(damaged.store) == flipped, (place, bit)
        error = recover(damaged.store)

        if error is not None:
            found += 1
            if isinstance(error, sequent.StoreError):
                assert content(damaged.store) == flipped, (place, bit, error)
        elif looked is None:
            assert look(damaged.store) is None, (place, bit)
    assert found > FLIPS // 10


#: Texts in the file that become no UTF-8, or an unknown word, where the store is opened.
TEXTS = {'type of a column': b'BLOB', 'name of a column': b'run_id TEXT',
         'name of an index': b'tasks_place', 'status of a task': b'leafsuccess'}


@pytest.mark.parametrize('kind', sorted(TEXTS))
def test_the_kept_error_of_a_damaged_store_locks_nothing(damaged, kind):
    # semantics 6.7
    whole = content(damaged.store)
    assert TEXTS[kind] in whole
    with open(damaged.store, 'wb') as file:
        file.write(whole.replace(TEXTS[kind], TEXTS[kind][:-1] + b'\xff'))

    errors = look(damaged.store), recover(damaged.store)

    assert isinstance(errors[1], sequent.StoreError)
    tally.count('damaged stores')
    with open(damaged.store, 'wb') as file:
        file.write(whole)
    with contextlib.closing(sqlite3.connect(damaged.store, timeout=0)) as database:
        database.execute('PRAGMA locking_mode = EXCLUSIVE')
        database.execute('BEGIN EXCLUSIVE')    # raises where something has a lock
        database.execute('ROLLBACK')


RECORDS = {
    'status of a task': "UPDATE tasks SET status = 'succdss' WHERE path = 'inline'",
    'kind of a task': "UPDATE tasks SET kind = 'lead' WHERE path = 'inline'",
    'attempt of a task': "UPDATE tasks SET attempt = 'x' WHERE path = 'inline'",
    'text of a task': "UPDATE tasks SET error = CAST(x'ff' AS TEXT) WHERE path = 'inline'",
    'time of a task': "UPDATE tasks SET started = 'yesterday' WHERE path = 'inline'",
    'status of the run': "UPDATE runs SET status = 'active!'",
    'process of the run': 'UPDATE runs SET process = NULL',
    'steps of the run': "UPDATE runs SET steps = substr(steps, 2)",
}


@pytest.mark.parametrize('kind', sorted(RECORDS))
def test_a_record_that_no_sequent_has_written_is_refused_with_a_sentence(damaged, kind):
    execute(damaged.store, RECORDS[kind])
    tally.count('damaged stores')
    before = damaged.left_alone()
    for verb in ('status', 'recover', 'run'):
        given = ('--run-id', 'r2') if verb == 'run' else ()
        assert_refused(damaged.run_here(verb, *given), 'damaged')
        assert damaged.left_alone()['etl.db'] == before['etl.db'], verb


def test_a_time_that_is_none_is_shown_as_it_is(damaged):
    execute(damaged.store, 'UPDATE tasks SET started = 1e300, ended = -1e300',
            'UPDATE runs SET started = 1e300')
    done = damaged.run('status', '--all')
    assert done.code == 0, done
    assert '1e+300' in done.output


def test_an_emptied_store_holds_no_runs_and_can_be_used_anew(damaged):
    os.truncate(damaged.store, 0)
    assert 'no run of flow' in damaged.run_here('status').output
    assert damaged.run_here('recover').code == 2
    assert content(damaged.store) == b''
    assert damaged.run('run').code == 0


class Interrupted:
    """A connection after whose first statement something else happens."""

    def __init__(self, connection, happens):
        self.connection = connection
        self.happens = [happens]

    def execute(self, statement, parameters=()):
        self.rows = self.connection.execute(statement, parameters).fetchall()
        while self.happens:
            self.happens.pop()()
        return self

    def fetchall(self):
        return self.rows


def test_a_store_that_is_just_being_made_is_not_taken_for_damaged(tmp_path):
    path = str(tmp_path / 'etl.db')
    sqlite3.connect(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        store = sequent.SqliteStore(path)
        between = Interrupted(connection, lambda: other_store(path))
        assert store._check_format(between, create=False) is True


# Formats

#: What a later version may add: so much that its pages do not stay in memory.
MORE = ['PRAGMA cache_size = 1', 'CREATE TABLE more (name TEXT, value TEXT)',
        'ALTER TABLE tasks ADD COLUMN host TEXT'] + [
        "INSERT INTO more SELECT name, hex(zeroblob(8000)) FROM meta"] * 100


def make_newer(night, killed_at=None):
    """Put a version beside the flow that adds something to a store; it may kill itself there."""
    source = content(sequent.__file__).decode()
    for old, new in (
            ('answer TEXT NOT NULL)""",)))\n',
             'answer TEXT NOT NULL)""",)), (\'more\', %r))\n' % MORE),
            ('            db.execute(statement)\n',
             '            if statement in %r[1:] and %r.index(statement) == %r:\n'
             '                os.kill(os.getpid(), 9)\n'
             '            db.execute(statement)\n' % (MORE, MORE, killed_at)),
            ("        db.execute('COMMIT' if missing",
             "        if %r == 'end': os.kill(os.getpid(), 9)\n"
             "        db.execute('COMMIT' if missing" % killed_at)):
        assert source.count(old) == 1
        source = source.replace(old, new)
    with open(os.path.join(night.folder, 'sequent.py'), 'w', encoding='utf-8') as file:
        file.write(source)


def make_older(night):
    """Put version 4.0.0 beside the flow, which knows nothing of plans."""
    packed = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'data', 'sequent-4.0.0.gz')
    with gzip.open(packed) as source, open(os.path.join(night.folder, 'sequent.py'), 'wb') as file:
        shutil.copyfileobj(source, file)


def make_ours(night):
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(night.folder, 'sequent.py'))


def tables_of(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute('PRAGMA integrity_check').fetchall() == [('ok',)]
        assert database.execute('PRAGMA user_version').fetchall() == [(1,)]
        return {name for name, in database.execute('SELECT name FROM sqlite_master')}


def assert_recovered(night):
    assert night.run('recover').code == 0
    assert night.count('last') == 1
    assert night.count('process') == 0, 'a success ran again'


def test_what_a_later_version_adds_is_added_by_a_recovery_and_nothing_is_lost(damaged):
    # semantics 6.7
    make_newer(damaged)
    before = damaged.left_alone()
    assert 'process' in damaged.run('status').output
    assert damaged.left_alone() == before

    assert_recovered(damaged)

    assert 'more' in tables_of(damaged.store)
    make_ours(damaged)
    assert 'process' in damaged.run('status').output
    assert damaged.run('run', '--run-id', 'r2').code == 0


@pytest.mark.parametrize('killed_at', [1, 2, 3, 'end'])
def test_a_store_to_which_an_addition_was_killed_is_as_it_was(damaged, killed_at):
    # semantics 6.7
    make_newer(damaged, killed_at)
    assert damaged.run('recover').code == -signal.SIGKILL
    if killed_at == 'end':
        assert os.path.getsize(damaged.store + '-journal') > 0, 'nothing had been written'

    make_ours(damaged)
    assert_recovered(damaged)

    assert 'more' not in tables_of(damaged.store)


@pytest.mark.parametrize('verb', ['recover', 'continue'])
@pytest.mark.parametrize('first, second', [(make_older, make_ours), (make_ours, make_older)])
def test_a_run_that_was_killed_under_one_version_is_gone_on_with_under_the_other(
        night, first, second, verb):
    # semantics 6.7
    first(night)
    supervisor = night.start('run', HOLD='last')
    night.journal.pid('last')
    supervisor.kill()
    supervisor.wait()
    assert ('plans' in tables_of(night.store)) is (first is make_ours)
    night.finish()
    wait_until(lambda: night.statuses().get('last') == 'active', 'the start of the last step')

    second(night)
    assert 'process' in night.run('status', '--all').output
    assert night.run(verb).code == 0

    assert [night.count(step) for step in ('process', 'inline', 'program')] == [1, 1, 1]
    assert 'plans' in tables_of(night.store)
    first(night)
    assert night.statuses() == dict.fromkeys(('process', 'inline', 'program', 'last'), 'success')
    assert night.run('run', '--run-id', 'r2').code == 0
    assert 'r1' in night.run('history').output


# While a run goes on


def other_store(path):
    """Make the store of another flow."""
    flow = a_flow(path, name='other')
    flow.add_step('a', func=len, args=('x',))
    assert flow.run()
    flow.close()


REPLACEMENTS = {
    'deleted': lambda path: None,
    'another application\'s database': lambda path: execute(
        path, 'CREATE TABLE customers (name)'),
    'the store of another flow': other_store,
    'a copy of itself': lambda path: shutil.copy(path + '.was', path),
}


@pytest.mark.parametrize('kind', sorted(REPLACEMENTS))
def test_a_store_replaced_during_the_run_ends_it_and_is_left_alone(night, kind):
    # semantics 6.6
    supervisor = night.start('run', HOLD='process')
    night.journal.wait_for('process begins')
    os.rename(night.store, night.store + '.was')
    REPLACEMENTS[kind](night.store)
    before = content(night.store) if os.path.exists(night.store) else None

    night.journal.open('process')
    done = night.end(supervisor)

    assert_refused(done, 'deleted or replaced', night.store)
    assert night.count('inline') == 0, 'something started that is recorded nowhere'
    assert (content(night.store) if os.path.exists(night.store) else None) == before

    # With the file back nothing is lost.
    os.rename(night.store + '.was', night.store)
    night.recover()
    assert night.count('process') == 1


def test_a_store_replaced_by_that_of_another_flow_holds_nothing_to_recover(night):
    assert night.run('run').code == 0
    os.unlink(night.store)
    other_store(night.store)
    before = content(night.store)

    done = night.run('recover')

    assert done.code == 2 and 'nothing to recover' in done.errors
    assert_no_trace(done)
    assert content(night.store) == before
