"""Supervisors die at every moment: nothing that is committed is lost, nothing runs twice.

Real SIGKILLs, real processes: see `killtools`. Most tests here try many kills; a failure names the
plan of kills that found something, and leaves its folder.
"""

import os

import killtools
import pytest
import tally

#: Kills at random times; the seed makes the same choice of flows and times again.
SOAK = int(os.environ.get('SEQUENT_SOAK') or 200)
SEED = int(os.environ.get('SEQUENT_SOAK_SEED') or int.from_bytes(os.urandom(3), 'big'))

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
    for construct in ['process', 'thread', 'inline', 'grouped']] + [
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
    seed = SEED * 10 + part
    print('SEQUENT_SOAK_SEED=%d' % SEED)
    check(forkers.ask('try_moments', folder=str(tmp_path), seed=seed, kills=SOAK // 20))
