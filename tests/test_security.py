"""What the library makes is for its owner alone; what others could have written it refuses.

Pickles run code when they are loaded: files that hold them are trusted as ssh trusts its own.
"""

import logging
import os
import pathlib
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile

import pytest

import sequent
from sequent import SqliteStore, StoreError


from runtools import (  # noqa: E402,F401
    PROCESS, a_flow, a_private_temporary_folder, journal, programs)

STRANGER = 4321    # a uid that nobody has
as_root = pytest.mark.skipif(os.geteuid() != 0, reason='not for users who cannot give files away')


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def large():
    return b'x' * (sequent.LARGE_RESULT + 1)


def modes_below(folder):
    return {(stat.S_ISDIR(info.st_mode), stat.S_IMODE(info.st_mode))
            for above, folders, names in os.walk(str(folder)) for name in folders + names
            for info in [os.lstat(os.path.join(above, name))]}


def make_store(folder):
    path = str(folder / 'etl.db')
    flow = a_flow(path, 'process')
    a = flow.add_step('a', func=large)
    flow.add_step('b', func=len, args=(a.result,))
    assert flow() is True
    return path, flow


def refusal(path, create=True):
    store = SqliteStore(path)
    with pytest.raises(StoreError) as info:
        store.open(create)
    return str(info.value)


def assert_opens(path, create=True):
    store = SqliteStore(path)
    store.open(create)
    assert store.latest('etl').status == 'success'
    store.close()


@pytest.fixture
def folder(tmp_path):
    one = tmp_path / 'own'
    one.mkdir(mode=0o700)
    return one


# Modes ###########################################################################


@pytest.mark.parametrize('mask', [0, 0o77, 0o777])
def test_all_that_a_run_makes_is_for_its_owner_alone_under_any_umask(folder, mask):
    # semantics 6.9
    before = os.umask(mask)
    try:
        make_store(folder)
    finally:
        os.umask(before)
    assert modes_below(folder) == {(True, 0o700), (False, 0o600)}


def test_an_outcome_file_is_for_its_owner_alone_under_any_umask(folder):
    before = os.umask(0o777)
    try:
        sequent.write_outcome(str(folder / 'new' / 'a'), sequent.Outcome('success'))
    finally:
        os.umask(before)
    assert modes_below(folder) == {(True, 0o700), (False, 0o600)}


# Stores that others could have written ###########################################


@pytest.mark.parametrize('create', [True, False])
@pytest.mark.parametrize('mode', [0o620, 0o602, 0o666])
def test_a_store_that_others_may_write_is_refused(folder, mode, create):
    # semantics 6.9
    path, _ = make_store(folder)
    os.chmod(path, mode)
    said = refusal(path, create)
    assert path in said and 'mode %04o' % mode in said and 'chmod go-w' in said


@as_root
@pytest.mark.parametrize('create', [True, False])
@pytest.mark.parametrize('ending', ['', '.lock', '.results', '.logs'])
def test_a_store_with_something_of_another_user_is_refused(folder, ending, create):
    path, _ = make_store(folder)
    os.chown(path + ending, STRANGER, -1)
    said = refusal(path, create)
    assert path + ending in said and 'uid %d' % STRANGER in said and 'chown' in said


@as_root
def test_a_journal_of_another_user_is_not_played_back(folder):
    path, _ = make_store(folder)
    (folder / 'etl.db-journal').write_bytes(b'planted')
    os.chown(path + '-journal', STRANGER, -1)
    assert path + '-journal' in refusal(path, create=False)
    assert (folder / 'etl.db-journal').read_bytes() == b'planted'


@pytest.mark.parametrize('exists', [True, False])
def test_a_store_in_a_folder_that_all_may_write_is_refused(folder, exists):
    path = make_store(folder)[0] if exists else str(folder / 'etl.db')
    folder.chmod(0o777)
    assert repr(str(folder)) in refusal(path)
    assert os.path.exists(path) is exists


def test_a_store_in_a_sticky_folder_is_opened(folder):
    path, _ = make_store(folder)
    folder.chmod(0o1777)
    assert_opens(path)


def test_a_store_that_others_may_only_read_is_opened(folder):
    path, _ = make_store(folder)
    os.chmod(path, 0o644)
    folder.chmod(0o755)
    assert_opens(path)


@as_root
def test_a_folder_that_a_group_may_write_is_refused_unless_it_is_the_owners_private_one(folder):
    path, _ = make_store(folder)
    os.chown(str(folder), -1, STRANGER)
    folder.chmod(0o775)
    assert 'mode 0775' in refusal(path)
    os.chown(str(folder), -1, 0)
    assert_opens(path)


@pytest.fixture
def readable_folder():
    """A folder that all users can reach and none but this one may write."""
    folder = tempfile.mkdtemp(dir='/tmp')
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)


@as_root
def test_a_user_opens_what_root_has_made_and_root_not_what_a_user_has_made(readable_folder):
    # semantics 6.9
    path, _ = make_store(pathlib.Path(readable_folder))
    os.chmod(path, 0o644)
    root = os.geteuid()
    for owner in (root, STRANGER):
        os.chown(path, owner, -1)
        os.seteuid(STRANGER)
        try:
            assert_opens(path, create=False)
        finally:
            os.seteuid(root)
    assert repr(path) in refusal(path)


# Results and outcomes ############################################################


def result_file(path):
    [found] = [os.path.join(above, name) for above, _, names in os.walk(path + '.results')
               for name in names]
    return found


@pytest.mark.parametrize('spoil', [
    lambda path: os.chmod(path, 0o620),
    lambda path: os.chmod(os.path.dirname(path), 0o777),
    lambda path: (os.rename(path, path + '.moved'), os.symlink(path + '.moved', path)),
    lambda path: (os.unlink(path), os.mkfifo(path, 0o600)),
    pytest.param(lambda path: os.chown(path, STRANGER, -1), marks=as_root)],
    ids=['mode', 'folder', 'link', 'pipe', 'owner'])
def test_a_result_file_that_others_could_have_written_is_not_unpickled(folder, spoil):
    # semantics 6.9
    path, flow = make_store(folder)
    stored = result_file(path)
    with open(stored, 'wb') as stream:
        pickle.dump(Bomb(str(folder / 'boom')), stream)
    [record] = [one for one in records(path, flow) if one.path == 'a']
    spoil(stored)
    with pytest.raises(StoreError) as info:
        sequent.load_result(SqliteStore(path), record.result)
    assert stored in str(info.value)
    assert not (folder / 'boom').exists()


def records(path, flow):
    store = SqliteStore(path)
    store.open(create=False)
    try:
        return list(store.attempts(store.latest('etl', flow.run_id)))
    finally:
        store.close()


@as_root
def test_an_outcome_of_another_user_is_refused(folder):
    # semantics 6.9
    path = str(folder / 'a')
    sequent.write_outcome(path, sequent.Outcome('success'))
    os.chown(path, STRANGER, -1)
    with pytest.raises(StoreError, match='uid %d' % STRANGER):
        sequent.read_outcome(path)


# Links ###########################################################################


@pytest.mark.parametrize('ending', ['.lock', '-journal', '-wal'])
@pytest.mark.parametrize('dangling', [False, True])
def test_a_link_planted_beside_a_store_is_not_followed(folder, ending, dangling):
    # semantics 6.9
    path, _ = make_store(folder)
    victim = folder / 'victim'
    if not dangling:
        victim.write_bytes(b'precious')
    if os.path.exists(path + ending):
        os.unlink(path + ending)
    os.symlink(str(victim), path + ending)
    assert 'symbolic link' in refusal(path)
    assert victim.exists() is not dangling
    assert dangling or victim.read_bytes() == b'precious'


def test_a_lock_file_that_became_a_link_after_the_store_was_opened_is_not_followed(folder):
    path, _ = make_store(folder)
    store = SqliteStore(path)
    store.open()
    os.unlink(path + '.lock')
    (folder / 'victim').write_bytes(b'')
    os.symlink(str(folder / 'victim'), path + '.lock')
    with pytest.raises(StoreError, match='cannot be locked'):
        store.lock('etl', 'r1')
    store.close()


@pytest.mark.parametrize('kind', ['link', 'link to nothing', 'file'])
def test_what_is_planted_where_a_file_is_written_aside_is_not_written_to(folder, kind):
    aside, victim = folder / ('a.%d' % os.getpid()), folder / 'victim'
    if kind != 'link to nothing':
        victim.write_bytes(b'precious')
    os.link(str(victim), str(aside)) if kind == 'file' else os.symlink(str(victim), str(aside))
    sequent.write_aside(str(folder / 'a'), b'content')
    assert (folder / 'a').read_bytes() == b'content'
    assert not (folder / 'a').is_symlink()
    assert kind == 'link to nothing' and not victim.exists() or victim.read_bytes() == b'precious'


def plant_link(log, victim):
    os.symlink(victim, log)


def plant_file(log, victim):
    os.chown(victim, STRANGER, -1)
    os.link(victim, log)


def plant_pipe(log, victim):
    os.mkfifo(log)


@pytest.mark.parametrize('plant', [
    plant_link, plant_pipe, pytest.param(plant_file, marks=as_root)])
@pytest.mark.parametrize('kind', ['process', 'program', 'inline'])
def test_nothing_is_written_to_what_is_planted_as_a_log(folder, caplog, kind, plant):
    # semantics 5.4
    victim = str(folder / 'victim')
    (folder / 'victim').write_bytes(b'precious')
    flow = a_flow(str(folder / 'etl.db'), 'inline' if kind == 'inline' else 'process',
                  run_id='r1')
    func = {'process': logging.warning, 'inline': logging.warning,
            'program': sequent.Command(['echo'])}[kind]
    flow.add_step('a', func=func, args=() if kind == 'program' else ('said',))
    log = sequent.log_path(str(folder / 'etl.db.logs'), 'etl', 'r1', 'a', '1', 0, 1)
    os.makedirs(os.path.dirname(log), 0o700)
    plant(log, victim)

    ok = flow()

    assert (folder / 'victim').read_bytes() == b'precious'
    assert ok is (kind == 'inline')    # which runs here, whatever becomes of its log
    assert 'its log %r cannot be' % log in caplog.text


# Verbs that only look ############################################################

@pytest.fixture
def bombed(folder):
    """A flow whose store holds nothing but pickles that make a folder."""
    import sqlite3
    path, _ = make_store(folder)
    bomb = pickle.dumps(Bomb(str(folder / 'boom')), protocol=4)
    db = sqlite3.connect(path)
    tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    changed = 0
    for table in tables:
        columns = [row[1] for row in db.execute('PRAGMA table_info(%s)' % table)]
        for column in {'result', 'item'} & set(columns):
            changed += db.execute('UPDATE %s SET %s = ?' % (table, column), (bomb,)).rowcount
    db.commit()
    db.close()
    assert changed
    (folder / 'flow.py').write_text(
        "import sequent\nflow = sequent.Sequent('etl', store=%r)\n"
        "flow.add_step('a', func=int)\nflow.add_step('b', func=int)\n" % path)
    return folder


def call(folder, *arguments):
    return subprocess.run([sys.executable, '-m', 'sequent', 'flow.py'] + list(arguments),
                          cwd=str(folder), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=60)


@pytest.mark.parametrize('arguments', [
    'status', 'status --all', 'status --all --json', 'history', 'history --json', 'list',
    'list --json', '-h'])
def test_verbs_that_only_look_unpickle_nothing(bombed, arguments):
    # semantics 6.9
    done = call(bombed, *arguments.split())
    assert done.returncode == 0, done.stderr
    assert not (bombed / 'boom').exists()


def test_the_pickles_of_that_store_go_off_where_they_are_loaded(bombed):
    store = SqliteStore(str(bombed / 'etl.db'))
    store.open(create=False)
    [record] = [one for one in store.attempts(store.latest('etl')) if one.path == 'a']
    store.close()
    sequent.load_result(store, record.result)
    assert (bombed / 'boom').exists()


@pytest.mark.parametrize('verb', ['status', 'history', 'recover', 'run'])
def test_the_command_line_refuses_a_store_that_others_may_write_with_exit_code_4(bombed, verb):
    os.chmod(str(bombed / 'etl.db'), 0o666)
    done = call(bombed, verb)
    assert done.returncode == 4, done.stderr
    assert b'chmod go-w' in done.stderr and b'Traceback' not in done.stderr
    assert not (bombed / 'boom').exists()
