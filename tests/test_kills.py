"""Supervisors die at every moment: nothing that is committed is lost, nothing runs twice.

Real SIGKILLs, real processes: see `killtools`. Most tests here try many kills; a failure names the
plan of kills that found something, and leaves its folder.
"""

import json
import os
import signal

import killtools
import pytest
import runtools
import sample
import tally

import sequent
from runtools import journal, programs  # noqa: F401 (fixtures)

#: Kills at random times; the seed makes the same choice of flows and times again.
SOAK = int(os.environ.get('SEQUENT_SOAK') or 200)
#: Tasks of the flow of which half are killed.
DOSE = sample.times('SEQUENT_DOSE', 1000)

pytestmark = pytest.mark.skipif(not os.path.exists('/proc/self/stat'),
                                reason='not for systems without /proc and subreapers')


@pytest.fixture(scope='module')
def forkers(tmp_path_factory):
    forkers = killtools.Forkers(tmp_path_factory.mktemp('forkers'))
    yield forkers
    forkers.close()


def check(answer):
    """Count what was tried; fail if anything is wrong."""
    tally.count('kills', answer['kills'])
    if answer['wrong']:
        tally.lost('promises', len(answer['wrong']))
    assert answer['wrong'] == []


# Each commit

@pytest.mark.parametrize('when', ['before', 'torn', 'after'])
@pytest.mark.parametrize('shape, construct', [
    (shape, construct) for shape in killtools.SHAPES
    for construct in ['process', 'thread', 'inline', 'grouped', 'pool']] + [
        ('chain', 'program'), ('handled_failure', 'program')])
def test_a_kill_at_any_commit_loses_nothing_and_runs_nothing_twice(
        shape, construct, when, forkers, tmp_path):
    # semantics 6.2, 6.3, 7.3, 7.6: and so for kills of the recovery, three deep
    answer = forkers.ask('try_matrix', folder=str(tmp_path), shape=shape, construct=construct,
                         when=when)
    check(answer)
    assert answer['kills'] >= answer['trials'] / 2


# Any time

@pytest.mark.parametrize('part', range(10))
def test_a_kill_at_any_time_loses_nothing_and_runs_nothing_twice(part, forkers, tmp_path):
    seed = sample.SEED * 10 + part
    check(forkers.ask('try_moments', folder=str(tmp_path), seed=seed, kills=SOAK // 20))


@pytest.mark.parametrize('ending', ['.json.process', '.json'])
def test_a_recovery_bears_what_comes_and_goes_while_it_clears_away(ending, tmp_path, monkeypatch):
    # What a dead supervisor has prepared and not committed may leave files at that moment.
    path = str(tmp_path / 'etl.db')
    flow = runtools.a_flow(path)
    flow.add_step('a', func=killtools.fail)
    assert flow() is False
    folder = os.path.dirname(sequent.outcome_path(
        path + '.outcomes', 'etl', flow.run_id, 'b', '1', 0, 1))
    os.makedirs(folder, 0o700)
    aside = os.path.join(folder, 'b.1.0.1%s.77' % ending)
    open(aside, 'w').close()
    listdir = os.listdir

    def listdir_and_rename(looked_at):
        names = listdir(looked_at)
        if looked_at == folder and os.path.exists(aside):
            os.rename(aside, aside[:-len('.77')])
        return names

    monkeypatch.setattr(os, 'listdir', listdir_and_rename)
    again = runtools.a_flow(path, mode='recover')
    again.add_step('a', func=int)
    assert again() is True
    assert not os.path.exists(aside)    # so it has been renamed under its hands


def test_an_orphan_that_ends_before_it_is_looked_at_is_not_lost(programs, journal):
    # semantics 7.6: whether it lives is asked first, and only then what it has left
    programs.write('''
        def look_when_it_has_ended(identity, look=seq.process_alive):
            journal.open('go')
            wait_gone(journal.pid('a'))
            return look(identity)
        def one():
            journal.note('a')
            journal.sign('a')
            journal.pass_gate('go')
        if MODE != 'restart':
            seq.process_alive = look_when_it_has_ended
        flow = make()
        flow.add_step('a', func=one)
        leave(flow)
        ''')
    programs.leave_orphan()
    assert programs.run('recover') == 0
    assert journal.words() == ['a']


@pytest.mark.parametrize('written', [0, 10, 200])
def test_an_outcome_whose_writer_is_killed_is_not_there_rather_than_half_there(written, tmp_path):
    # semantics 7.6: written aside, renamed into place
    path = str(tmp_path / 'outcomes' / 'a.json')

    def write_in_part(fd, content, write=os.write):
        write(fd, content[:written])
        os.kill(os.getpid(), signal.SIGKILL)

    def leave():
        os.write = write_in_part
        sequent.write_outcome(path, sequent.Outcome('success', result=b'x' * 1000))

    _, status = os.waitpid(killtools.fork(str(tmp_path), leave), 0)
    assert killtools.exit_code(status) == -signal.SIGKILL
    assert len(os.listdir(os.path.dirname(path))) == 1    # it was at it
    assert sequent.read_outcome(path) is None


# Tasks

def test_recoveries_finish_a_flow_of_which_half_of_all_tasks_are_killed(forkers, tmp_path):
    answer = forkers.ask_one('try_dose', folder=str(tmp_path), seed=sample.SEED,
                             iterations=DOSE // 4)
    check(answer)
    assert answer['successes'] == DOSE // 4 * 4
    assert answer['kills'] > DOSE / 4


# Locks

@pytest.mark.parametrize('exclusive', [True, False])
def test_of_fifty_racing_starters_one_wins_and_a_kill_frees_its_lock_for_the_next_fifty(
        exclusive, forkers, tmp_path):
    # semantics 6.5: runs of their own, refused for the flow; then recoveries of one run
    answer = forkers.ask_one('try_race', folder=str(tmp_path), starters=50, exclusive=exclusive,
                             rounds=3)
    tally.count('racing starters', answer['starters'])
    check(answer)
    assert answer['kills'] == 3


@pytest.mark.parametrize('mode', ['recover', 'continue', 'restart'])
def test_a_supervisor_whose_pid_another_process_has_now_is_dead(mode, tmp_path):
    # semantics 6.5, 7.6: a reused pid is not mistaken for it
    path = str(tmp_path / 'etl.db')
    store = sequent.SqliteStore(path)
    store.open()
    store.begin(sequent.RunRecord('etl', 'r1', started=1.7e9, process=changed_identity(start=1)))
    store.close()
    flow = runtools.a_flow(path, mode=mode)
    flow.add_step('a', func=int)
    assert flow() is True
    assert flow.run_id == 'r1' or mode == 'restart'


def changed_identity(**fields):
    return json.dumps(dict(json.loads(sequent.process_identity(os.getppid())), **fields))
