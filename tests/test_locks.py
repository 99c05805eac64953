"""A run has one supervisor, also when its lock file is removed, or its store has two names."""

import os
import threading

import pytest

from disktools import mounted, needs_mount
from runtools import a_flow, fixture, journal, programs, statuses  # noqa: F401
from sequent import AlreadyRunningError

#: A step that waits, one after it; an exit code for each of the two errors.
PROGRAM = '''
    def one():
        journal.note('a')
        journal.sign('a')
        journal.pass_gate('go')

    def main(flow):
        step = flow.add_step('a', func=one)
        flow.add_step('b', func=journal.note, args=('b',), require=step)
        try:
            leave(flow)
        except (seq.AlreadyRunningError, seq.StoreError) as error:
            print(error, file=sys.stderr)
            sys.exit(75 if isinstance(error, seq.AlreadyRunningError) else 4)
    '''


def remove(path):
    os.remove(path)


def replace(path):
    with open(path + '.new', 'w'):
        pass
    os.chmod(path + '.new', 0o600)
    os.replace(path + '.new', path)


@pytest.mark.parametrize('construct', ['process', 'inline'])
@pytest.mark.parametrize('mode', ['restart', 'recover', 'continue'])
@pytest.mark.parametrize('lose', [remove, replace])
def test_no_supervisor_is_admitted_beside_a_living_one_whose_lock_is_gone(
        lose, mode, construct, programs, journal):  # noqa: F811
    # semantics 6.5, 6.6, 7.6
    programs.write(PROGRAM + '''
    main(make(%r, config={'assume_dead': MODE != 'restart'}))
    ''' % construct)
    first = programs.start()
    journal.pid('a')
    lose(programs.store_path + '.lock')

    for _ in range(2):
        other = programs.start(mode)
        assert other.wait() == 75
        assert 'pid %d ' % first.pid in other.errors() and os.uname().nodename in other.errors()

    assert programs.tasks() == {'a': [('1', 0, 1, 'active')]}
    journal.open('go')
    assert first.wait() == 4
    assert programs.run('continue') == 0
    assert journal.words() == ['a'] * (2 if construct == 'inline' else 1) + ['b']


@pytest.mark.parametrize('lose', [remove, replace])
def test_a_supervisor_whose_lock_is_gone_ends_before_its_next_commit(
        lose, programs, journal):  # noqa: F811
    # semantics 6.6
    programs.write(PROGRAM + '''
    def wait():
        journal.sign('function')
        journal.pass_gate('again')

    flow = make(config={'max_concurrent': 0})
    flow.add_step('function', func=wait)
    flow.add_step('program', command=[
        'sh', '-c', 'echo program $$ None >> pids; until [ -e gate-again ]; do sleep 0.1; done'])
    main(flow)
    ''')
    first = programs.start()
    for name in ('a', 'function', 'program'):
        journal.pid(name)
    lose(programs.store_path + '.lock')
    journal.open('go')

    assert first.wait() == 4
    assert 'etl.db.lock' in first.errors() and 'continue' in first.errors()
    # Neither that a has ended is stored, nor that what ran beside it was ended.
    assert all_statuses(programs) == {'a': ['active'], 'function': ['active'],
                                      'program': ['active']}
    journal.open('again')
    assert programs.run('continue') == 0
    assert journal.words() == ['a', 'b']
    assert all_statuses(programs) == {
        'a': ['success'], 'b': ['success'], 'function': ['active', 'success'],
        'program': ['active', 'success']}


def all_statuses(programs):  # noqa: F811
    return {path: [one[3] for one in attempts] for path, attempts in programs.tasks().items()}


def test_runs_that_are_not_exclusive_start_beside_one_whose_lock_is_gone(
        programs, journal):  # noqa: F811
    programs.write(PROGRAM + '''
    main(make(run_id=os.environ['RUN'], config={'exclusive': False}))
    ''')
    first = programs.start(environment={'RUN': 'one'})
    journal.pid('a')
    os.remove(programs.store_path + '.lock')
    assert programs.run('recover', environment={'RUN': 'one'}) == 75

    second = programs.start(environment={'RUN': 'two'})
    journal.pids('a', 2)
    journal.open('go')

    assert (first.wait(), second.wait()) == (4, 0)


@fixture(params=['link', 'folder', 'mount'])
def other_path(request, programs):  # noqa: F811
    """Give what makes a second path of the store, which exists by then, and returns it."""
    folder = os.path.join(programs.folder, 'other')
    path = os.path.join(folder, 'etl.db')
    if request.param == 'mount':
        if needs_mount.args[0]:
            pytest.skip(needs_mount.kwargs['reason'])
        os.mkdir(folder)
        with mounted(folder, '--bind', programs.folder):
            yield lambda: path
        return

    def make():
        if request.param == 'folder':
            os.symlink(programs.folder, folder)
        else:
            os.mkdir(folder)
            os.link(programs.store_path, path)
        return path
    yield make


@pytest.mark.parametrize('mode', ['restart', 'recover', 'continue'])
def test_no_supervisor_is_admitted_by_another_path_to_the_store(
        mode, other_path, programs, journal):  # noqa: F811
    # semantics 6.6
    programs.write(PROGRAM + '''
    main(make('inline', store=os.environ.get('OTHER_PATH', STORE)))
    ''')
    first = programs.start()
    journal.pid('a')

    other = programs.start(mode, environment={'OTHER_PATH': other_path()})

    assert other.wait() == 75
    assert 'pid %d ' % first.pid in other.errors()
    journal.open('go')
    assert first.wait() == 0
    assert journal.words() == ['a', 'b']


def test_no_supervisor_is_admitted_by_another_path_within_a_program(
        other_path, programs):  # noqa: F811
    refused = []

    def again():
        other = a_flow(other_path())
        other.add_step('a', func=refused.append, args=('it runs twice',))
        for _ in range(2):
            try:
                other.run()
            except AlreadyRunningError as error:
                refused.append(error)

    flow = a_flow(programs.store_path)
    flow.add_step('a', func=again)
    assert flow() is True
    assert [type(one) for one in refused] == [AlreadyRunningError] * 2


def test_flows_in_threads_use_one_store_by_two_paths(tmp_path):
    # Closing one connection leaves the locks of the others, in the store and beside it.
    path, folder = str(tmp_path / 'etl.db'), tmp_path / 'other'
    os.symlink(str(tmp_path), str(folder))
    done = []

    def run(name, store):
        flow = a_flow(store, name=name)
        flow.add_step('a', func=done.append, args=(name,))
        assert flow() is True

    threads = [threading.Thread(target=run, args=('flow%d' % n, one))
               for n, one in enumerate([path, str(folder / 'etl.db')] * 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(done) == ['flow%d' % n for n in range(8)]


def test_a_store_of_two_names_is_warned_of(tmp_path, caplog):
    path = str(tmp_path / 'etl.db')
    flow = a_flow(path)
    flow.add_step('a', func=None)
    assert flow() is True
    assert 'hard links' not in caplog.text
    os.link(path, str(tmp_path / 'link.db'))

    again = a_flow(path)
    again.add_step('a', func=None)

    assert again() is True
    assert caplog.text.count('hard links') == 1 and repr(path) in caplog.text
    assert statuses(again) == {'a': 'success'}
