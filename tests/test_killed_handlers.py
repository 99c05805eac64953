"""Handlers and reactions whose supervisor is killed: the verdict is that of a run that was not
(semantics 3.3, 7.3, 7.6)."""

import os
import signal

import pytest

from runtools import journal, programs, wait_gone  # noqa: F401


def kill_both(supervisor, pid):
    """Kill a supervisor, then the process of a task that it has left."""
    supervisor.kill()
    supervisor.wait()
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)


NIGHT = '''
    def bad():
        journal.note('bad')
        raise ValueError('no good')

    def mail():
        journal.note('mail')
        journal.sign('mail')
        journal.pass_gate('mail')
        journal.note('sent')

    flow = make()
    step = flow.add_step('bad', func=bad)
    flow.add_step('mail', func=mail, require=((step, 'failure'),), handles=%s)
    leave(flow)
'''


@pytest.mark.parametrize('handles', [True, False])
def test_a_reaction_that_outlived_its_supervisor_runs_again_when_the_step_fails_anew(
        programs, journal, handles):                                      # noqa: F811
    programs.write(NIGHT % handles)
    programs.leave_orphan('mail')
    recovery = programs.start('recover')
    recovery.wait_for('adopted')
    journal.wait_for('bad', 2)
    journal.open('mail')

    assert recovery.wait() == (0 if handles else 1)

    # The mail about the first failure was sent, then that about the second one.
    assert (journal.count('mail'), journal.count('sent')) == (2, 2)
    assert 'step bad has failed again since it began' in recovery.errors()
    assert programs.tasks()['mail'] == [('1', 0, 1, 'success'), ('1', 1, 1, 'success')]
    assert programs.tasks()['bad'] == [('1', 0, 1, 'failure'), ('1', 1, 1, 'failure')]


@pytest.mark.parametrize('handles', [True, False])
def test_a_handler_that_outlived_its_supervisor_has_handled_in_a_continued_run(
        programs, journal, handles):                                      # noqa: F811
    programs.write(NIGHT % handles)
    programs.leave_orphan('mail')
    continued = programs.start('continue')
    continued.wait_for('adopted')
    journal.open('mail')

    assert continued.wait() == (0 if handles else 1)

    assert (journal.count('bad'), journal.count('mail'), journal.count('sent')) == (1, 1, 1)


@pytest.mark.parametrize('handles', [True, False])
def test_a_handler_that_ended_without_supervisor_has_handled_in_a_continued_run(
        programs, journal, handles):                                      # noqa: F811
    programs.write(NIGHT % handles)
    pid = programs.leave_orphan('mail')
    journal.open('mail')
    wait_gone(pid)

    assert programs.run('continue') == (0 if handles else 1)
    assert programs.run('continue') == (0 if handles else 1)

    assert (journal.count('bad'), journal.count('mail'), journal.count('sent')) == (1, 1, 1)


def test_a_handler_that_is_killed_runs_again_in_a_continued_run(programs, journal):  # noqa: F811
    programs.write(NIGHT % True)
    pid = programs.leave_orphan('mail')
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    journal.open('mail')

    assert programs.run('continue') == 0

    assert (journal.count('bad'), journal.count('mail'), journal.count('sent')) == (1, 2, 1)


EITHER = '''
    def bad(name):
        journal.sign(name)
        journal.pass_gate(name)
        raise ValueError('no good')

    def mail():
        journal.note('mail')
        journal.sign('mail')
        journal.pass_gate('mail')
        journal.note('sent')

    flow = make(config={'max_concurrent': 3})
    a = flow.add_step('a', func=bad, args=('a',))
    b = flow.add_step('b', func=bad, args=('b',))
    flow.add_step('mail', func=mail, require=seq.or_((a, 'failure'), (b, 'failure')), handles=True)
    leave(flow)
'''


def test_what_failed_after_a_handler_had_begun_is_not_made_good_in_a_continued_run(
        programs, journal):                                               # noqa: F811
    programs.write(EITHER)
    journal.open('a')
    supervisor = programs.start()
    journal.pid('mail')
    journal.open('b')
    supervisor.wait_for('step b at 1 failed')
    supervisor.kill()
    supervisor.wait()
    continued = programs.start('continue')
    continued.wait_for('adopted')
    journal.open('mail')

    assert continued.wait() == 1

    assert journal.count('sent') == 1


@pytest.mark.parametrize('first', ['slow', 'bad'])
def test_a_stop_keeps_back_nothing_that_had_begun_before_a_run_is_continued(
        programs, journal, first):                                        # noqa: F811
    programs.write('''
        def bad():
            raise ValueError('no good')

        def slow():
            journal.sign('slow')
            journal.pass_gate('slow')
            journal.note('slow ended')

        flow = make(config={'max_concurrent': 2})
        c = flow.add_step('c')
        for name in sorted(['slow', 'bad'], key=lambda name: name != %r):
            c.add_step(name, func=globals()[name])
        c.add_step('never', func=journal.note, args=('never',))
        flow.add_step('handler', func=None, require=((c, 'failure'),), handles=True)
        leave(flow)
    ''' % first)
    supervisor = programs.start()
    slow = journal.pid('slow')
    supervisor.wait_for('step c_bad at 1.1 failed')
    kill_both(supervisor, slow)
    journal.open('slow')

    assert programs.run('continue') == 0

    assert programs.last('c_slow') == 'success'
    assert (journal.count('slow ended'), journal.count('never')) == (1, 0)


@pytest.mark.parametrize('loop', [None, 'range(1)', 'range(2)'])
def test_a_mail_inside_what_was_stopped_is_sent_when_the_run_is_continued(
        programs, journal, loop):                                         # noqa: F811
    programs.write('''
        def bad():
            raise ValueError('no good')

        def late():
            journal.pass_gate('late')
            bad()

        def mail():
            journal.note('mail')
            journal.sign('mail')
            journal.pass_gate('mail')
            journal.note('sent')

        flow = make(config={'max_concurrent': 4})
        c = flow.add_step('c')
        d = c.add_step('d', config={'stop_on_exception': False}, loop=%s)
        step = d.add_step('bad', func=bad)
        d.add_step('mail', func=mail, require=((step, 'failure'),))
        c.add_step('late', func=late)
        flow.add_step('handler', func=None, require=((c, 'failure'),), handles=True)
        leave(flow)
    ''' % loop)
    supervisor = programs.start()
    mail = journal.pid('mail')
    journal.open('late')
    supervisor.wait_for('step c_late at 1.1 failed')
    kill_both(supervisor, mail)
    journal.open('mail')

    assert programs.run('continue') == 0

    assert (journal.count('mail'), journal.count('sent')) == (2, 1)
