"""Requests: what is asked of a run from outside, by the command line (semantics 13)."""

import os

from disktools import night  # noqa: F401
from runtools import wait_until
from sequent import Request, SqliteStore


def begun(night, *arguments):
    """Start a supervisor whose first step waits; return it once the step has begun."""
    supervisor = night.start(*(arguments or ('run',)), HOLD='process')
    night.journal.pid('process')
    return supervisor


def test_stop_ends_a_run_as_a_sigterm_does_and_says_so(night):  # noqa: F811
    # semantics 13.2, 8.3
    supervisor = begun(night)

    done = night.run('stop')

    assert (done.code, done.output) == (0, 'stopping, as at a SIGTERM\n')
    assert supervisor.wait() == 143
    assert night.statuses() == {'process': 'active'}
    night.journal.open('process')
    assert night.run('continue').code == 0
    assert night.count('last') == 1


def test_a_hold_outlives_its_supervisor_until_it_is_released(night):  # noqa: F811
    # semantics 13.2
    supervisor = begun(night)
    done = night.run('hold', 'inl*')
    assert done.code == 0 and 'held: 1 steps' in done.output
    night.journal.open('process')
    night.journal.wait_for('program ends')
    supervisor.kill()
    supervisor.wait()

    again = night.start('recover')
    wait_until(lambda: "'inl*' are held" in again.errors(), 'what is held')
    assert night.count('inline') == 0
    done = night.run('release', 'inl*')

    assert done.code == 0 and 'released' in done.output
    assert again.wait() == 0
    assert [night.count(step) for step in ('process', 'inline', 'last')] == [1, 1, 1]


def test_a_hold_without_a_supervisor_waits_for_the_next(night):  # noqa: F811
    # semantics 13.1
    supervisor = begun(night)
    supervisor.kill()
    supervisor.wait()
    done = night.run('hold', 'inline')
    assert done.code == 0 and 'recover or continue' in done.output
    night.journal.open('process')

    again = night.start('recover')
    night.journal.wait_for('program ends')
    assert night.run('release', 'inline').code == 0
    assert again.wait() == 0
    assert night.count('inline') == 1


def test_what_cannot_be_followed_is_refused_and_changes_nothing(night):  # noqa: F811
    # semantics 13.3
    assert night.run('stop').code == 2
    supervisor = begun(night)
    done = night.run('hold', 'nothing*')
    assert done.code == 1 and "refused: no step matches 'nothing*'" in done.output
    night.journal.open('process')
    assert supervisor.wait() == 0
    assert night.run('stop').code == 2
    assert night.run('hold').code == 2


def test_requests_that_others_could_have_written_are_not_followed(night):  # noqa: F811
    # semantics 13.3
    supervisor = begun(night)
    store = SqliteStore(night.store)
    store.post(Request('flow', 'r2', 'stop'))
    folder = night.store + '.requests'
    [name] = os.listdir(folder)
    path = os.path.join(folder, name)
    with open(path) as file:
        text = file.read().replace('r2', 'r1')
    os.chmod(path, 0o666)
    with open(path, 'w') as file:
        file.write(text)
    with open(os.path.join(folder, 'x.json'), 'w') as file:
        file.write('{}')

    wait_until(lambda: supervisor.errors().count('is not followed') == 2, 'both warnings')

    night.journal.open('process')
    assert supervisor.wait() == 0
    assert os.path.exists(path)
