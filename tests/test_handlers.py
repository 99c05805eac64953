"""Handlers, reactions and what a stop spares (semantics 3.2 to 3.4), and what a recovery makes of
them (7.1 to 7.3)."""

import logging
import os
import signal
import threading

import pytest

pytest_plugins = ['flowtools']

import sequent as seq  # noqa: E402
import sequent.tender  # noqa: E402,F401
from flowtools import do_nothing, statuses, task_of, wait_for  # noqa: E402
from sequent import (  # noqa: E402
    RUN_CONTINUE, RUN_RECOVER, STEP_COMPLETE, STEP_FAILURE, STEP_SUCCESS, FlowError,
    FlowTypeError, or_)


def fail():
    raise ValueError('no good')


class Switch:
    """A function that fails while it is on, and counts its calls."""

    def __init__(self, on=True):
        self.on = on
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.on:
            raise ValueError('it is on')


# What a handler may be (3.3) #####################################################


def test_a_handler_of_a_step_that_is_no_sibling_is_refused(new_flow):
    # semantics 3.3
    flow = new_flow()
    bad = flow.add_step('bad', func=fail)
    flow.add_step('c').add_step('mail', func=do_nothing, require=(bad, STEP_FAILURE),
                                handles=True)

    with pytest.raises(FlowError, match="'c_mail' cannot handle the failure of step 'bad'"):
        flow.run()


@pytest.mark.parametrize('status', [STEP_SUCCESS, 'ready', 'active'])
def test_a_handler_that_requires_no_failure_is_refused(new_flow, status):
    flow = new_flow()
    flow.add_step('mail', func=do_nothing, require=(flow.add_step('a', func=fail), status),
                  handles=True)

    with pytest.raises(FlowError, match="'mail' has handles=True, but it requires neither"):
        flow.run()


def test_a_handler_that_no_failure_triggers_is_refused(new_flow):
    flow = new_flow(kind=seq.Eventor)
    flow.add_assoc(flow.add_event('start'), flow.add_step('mail', func=do_nothing, handles=True))

    with pytest.raises(FlowError, match="'mail' has handles=True, but no trigger"):
        flow.run()


def test_handles_takes_nothing_but_true_and_false(new_flow):
    with pytest.raises(FlowTypeError, match="'mail': handles must be True or False, not 'all'"):
        new_flow().add_step('mail', func=do_nothing, handles='all')


# What is made good (3.3) #########################################################


def test_a_handler_makes_good_only_failures_recorded_before_it_began(memory_flow, stepped):
    # semantics 3.3
    flow = memory_flow(task_construct=stepped, max_concurrent=0)
    a = flow.add_step('a', func=fail)
    slow = flow.add_step('slow', func=do_nothing)
    b = flow.add_step('b', func=fail, require=slow)
    flow.add_step('handler', func=do_nothing, handles=True,
                  require=or_((a, STEP_FAILURE), (b, STEP_FAILURE)))

    assert flow.run() is False

    assert stepped.started == ['a@1', 'slow@1', 'handler@1', 'b@1']
    assert task_of(flow, 'a').handled is True
    assert task_of(flow, 'b').handled is False


def test_of_a_handler_that_is_retried_the_attempt_that_succeeded_counts(memory_flow, stepped):
    # semantics 3.3
    tried = Switch()

    def at_second():
        tried.on = tried.calls == 0
        tried()

    flow = memory_flow(task_construct=stepped, max_concurrent=0, retry_delay=0)
    a = flow.add_step('a', func=fail)
    b = flow.add_step('b', func=fail, require=(a, STEP_COMPLETE))
    flow.add_step('handler', func=at_second, handles=True, config={'retries': 1},
                  require=or_((a, STEP_FAILURE), (b, STEP_FAILURE)))

    assert flow.run() is True

    # b had not failed when the first attempt began, but it had when the second one did
    assert stepped.started == ['a@1', 'b@1', 'handler@1', 'handler@1']


def test_a_handler_that_failed_has_made_nothing_good(new_flow):
    # semantics 3.3
    flow = new_flow()
    bad = flow.add_step('bad', func=fail)
    flow.add_step('handler', func=fail, handles=True, require=(bad, STEP_FAILURE))

    assert flow.run() is False

    assert task_of(flow, 'bad').handled is False


def test_a_handler_whose_own_failure_is_made_good_has_handled(new_flow):
    # semantics 3.3
    flow = new_flow()
    bad = flow.add_step('bad', func=fail)
    first = flow.add_step('first', func=fail, handles=True, require=(bad, STEP_FAILURE))
    flow.add_step('second', func=do_nothing, handles=True, require=(first, STEP_FAILURE))

    assert flow.run() is True

    assert task_of(flow, 'bad').handled is task_of(flow, 'first').handled is True


@pytest.mark.parametrize('handles', [True, False])
def test_a_handler_may_be_a_container(new_flow, trace, handles):
    flow = new_flow()
    bad = flow.add_step('bad', func=fail)
    clean = flow.add_step('clean', require=(bad, STEP_FAILURE), handles=handles)
    clean.add_step('b', func=trace.run, require=clean.add_step('a', func=trace.run))

    assert flow.run() is handles

    assert trace.lines == ['clean_a@1.1', 'clean_b@1.1']


# What is expected (3.4) ##########################################################


def test_an_expected_failure_that_is_not_made_good_counts_at_the_end_of_its_iteration(
        new_flow, trace):
    # semantics 3.4
    flow = new_flow(max_concurrent=1)
    loop = flow.add_step('c', loop=range(3))
    bad = loop.add_step('bad', func=trace.fail)
    ok = loop.add_step('ok', func=trace.run)
    loop.add_step('handler', func=trace.run, handles=True,
                  require=((bad, STEP_FAILURE), (ok, STEP_FAILURE)))
    flow.add_step('after', func=trace.run, require=loop)
    flow.add_step('mail', func=trace.run, require=(loop, STEP_FAILURE))

    assert flow.run() is False

    # it stopped nothing in its iteration, but no later one starts
    assert trace.lines == ['c_bad@1.1', 'c_ok@1.1', 'mail@1']


def test_without_a_stop_later_iterations_start_after_a_failure_not_made_good(new_flow, trace):
    flow = new_flow(max_concurrent=1, stop_on_exception=False)
    loop = flow.add_step('c', loop=range(2))
    bad = loop.add_step('bad', func=trace.fail)
    ok = loop.add_step('ok', func=trace.run)
    loop.add_step('handler', func=trace.run, handles=True,
                  require=((bad, STEP_FAILURE), (ok, STEP_FAILURE)))

    assert flow.run() is False

    assert trace.lines == ['c_bad@1.1', 'c_ok@1.1', 'c_bad@1.2', 'c_ok@1.2']


def test_an_expected_failure_that_is_not_made_good_is_tolerated_once_in_its_iteration(new_flow):
    flow = new_flow(max_concurrent=1)
    loop = flow.add_step('c', loop=range(2), config={'tolerate': 1})
    bad = loop.add_step('bad', func=lambda: seq.current().sequence == '1.1' and fail())
    loop.add_step('handler', func=fail, handles=True, require=(bad, STEP_FAILURE))

    assert flow.run() is True

    assert task_of(flow, 'c_bad', '1.1').handled is True      # tolerated
    assert task_of(flow, 'c_bad', '1.2').status == 'success'


def test_a_mere_trigger_on_a_failure_stops_nothing_and_makes_nothing_good(new_flow, trace):
    flow = new_flow(kind=seq.Eventor)
    start, event = flow.add_event('start'), flow.add_event('event')
    flow.add_assoc(start, flow.add_step('bad', func=trace.fail, triggers={'failure': event}),
                   flow.add_step('beside', func=trace.run))
    flow.trigger_event(start, 1)

    assert flow.run() is False

    assert trace.lines == ['bad@1', 'beside@1']


# What a stop spares (3.4) ########################################################


def test_the_mail_about_one_failure_is_not_lost_because_of_another(new_flow, trace):
    # semantics 3.4
    flow = new_flow(max_concurrent=1)
    for name in ('a', 'b'):
        bad = flow.add_step(name, func=trace.fail)
        flow.add_step('mail_' + name, func=trace.run, delay=0.01, require=(bad, STEP_FAILURE),
                      config={'retries': 1})
    flow.add_step('dropped', func=trace.run)

    assert flow.run() is False

    assert trace.lines == ['a@1', 'mail_a@1']      # a stopped the flow, so b never started
    assert statuses(flow)['b@1'] == statuses(flow)['dropped@1'] == 'ready'


def test_a_stop_spares_what_waits_because_of_an_earlier_failure(memory_flow, stepped):
    # semantics 3.4
    pool = seq.ResourcePool('p', 1)
    flow = memory_flow(task_construct=stepped, max_concurrent=2)
    first = flow.add_step('first', func=fail, config={'stop_on_exception': False})
    flow.add_step('second', func=fail, acquires=[(pool, 1)])
    flow.add_step('mail', func=do_nothing, require=(first, STEP_FAILURE), acquires=[(pool, 1)])
    flow.add_step('beside', func=do_nothing, require=(first, 'complete'), delay=0.01)
    flow.add_step('dropped', func=do_nothing, acquires=[(pool, 1)])

    assert flow.run() is False

    assert stepped.started == ['first@1', 'second@1', 'mail@1', 'beside@1']


def test_a_step_that_needs_no_failure_is_no_reaction_and_is_dropped(memory_flow, stepped):
    # semantics 3.4
    flow = memory_flow(task_construct=stepped, max_concurrent=2)
    ok = flow.add_step('ok', func=do_nothing)
    bad = flow.add_step('bad', func=fail)
    flow.add_step('report', func=do_nothing, delay=3600,
                  require=or_((ok, STEP_SUCCESS), (bad, STEP_FAILURE)))

    assert flow.run() is False

    assert stepped.started == ['ok@1', 'bad@1']
    assert statuses(flow)['report@1'] == 'ready'


def test_what_follows_from_a_reaction_by_its_success_is_no_reaction(new_flow, trace):
    flow = new_flow()
    bad = flow.add_step('bad', func=fail)
    mail = flow.add_step('mail', func=trace.run, require=(bad, STEP_FAILURE))
    flow.add_step('after_mail', func=trace.run, require=mail)

    assert flow.run() is False

    assert trace.lines == ['mail@1']


def test_all_inside_a_reaction_is_spared(new_flow, trace):
    # semantics 3.4
    flow = new_flow()
    bad = flow.add_step('bad', func=fail)
    clean = flow.add_step('clean', loop=range(2), require=(bad, STEP_FAILURE))
    a = clean.add_step('a', func=trace.run, delay=0.001)
    clean.add_step('b', func=trace.run, require=a)

    assert flow.run() is False

    assert trace.lines == ['clean_%s@1.%d' % (name, n) for n in (1, 2) for name in 'ab']


def test_a_failure_inside_a_reaction_stops_the_reaction(new_flow, trace):
    flow = new_flow(max_concurrent=1)
    bad = flow.add_step('bad', func=fail)
    clean = flow.add_step('clean', require=(bad, STEP_FAILURE))
    clean.add_step('a', func=trace.fail)
    clean.add_step('b', func=trace.run)

    assert flow.run() is False

    assert trace.lines == ['clean_a@1.1']


def test_a_report_runs_when_what_still_ran_at_a_stop_is_over(memory_flow, stepped):
    flow = memory_flow(task_construct=stepped, max_concurrent=0)
    bad, slow = flow.add_step('bad', func=fail), flow.add_step('slow', func=do_nothing)
    flow.add_step('report', func=do_nothing, require=((bad, 'complete'), (slow, 'complete')))
    flow.add_step('dropped', func=do_nothing, require=slow)

    assert flow.run() is False

    assert stepped.started == ['bad@1', 'slow@1', 'report@1']


def test_a_stopped_iteration_waits_for_a_failure_further_out_that_a_step_in_it_reacts_to(
        memory_flow, stepped):
    flow = memory_flow(task_construct=stepped, max_concurrent=0)
    inner = flow.add_step('c', config={'stop_on_exception': False})
    inner.add_step('bad', func=fail, config={'stop_on_exception': True})
    slow = flow.add_step('slow', func=do_nothing)
    late = flow.add_step('late', func=fail, require=slow)
    inner.add_step('mail', func=do_nothing, require=(late, STEP_FAILURE))

    assert flow.run() is False

    assert stepped.started == ['c_bad@1.1', 'slow@1', 'late@1', 'c_mail@1.1']


# What the end of a run says (3.5, 3.7, 3.2) ######################################


def warnings_of(caplog):
    return [record.getMessage() for record in caplog.records
            if record.levelno == logging.WARNING]


@pytest.mark.parametrize('status', [STEP_FAILURE, STEP_COMPLETE])
def test_a_reaction_to_a_failure_that_still_counts_is_warned_of_once(
        memory_flow, caplog, status):
    # semantics 3.9
    flow = memory_flow()
    bad = flow.add_step('bad', func=fail)
    flow.add_step('mail', func=do_nothing, require=(bad, status))
    flow.add_step('report', func=do_nothing, require=(bad, status))

    assert flow.run() is False

    assert [text for text in warnings_of(caplog) if 'handles=True' in text] == [
        'step mail ran because step bad failed, but the failure still counts; if step mail makes '
        "it good, add handles=True to it (to treat all steps so: config "
        "{'handled_by': 'complete'})"]


def test_nothing_is_warned_of_where_nothing_reacted_or_all_was_made_good(memory_flow, caplog):
    # semantics 3.9
    quiet = memory_flow()
    ok = quiet.add_step('ok', func=do_nothing)
    quiet.add_step('mail', func=do_nothing, require=(ok, STEP_FAILURE))
    quiet.add_step('report', func=do_nothing, require=(ok, STEP_COMPLETE))
    good = memory_flow()
    bad = good.add_step('bad', func=fail)
    good.add_step('mail', func=do_nothing, require=(bad, STEP_FAILURE), handles=True)
    good.add_step('report', func=do_nothing, require=(bad, STEP_COMPLETE))

    assert quiet.run() is good.run() is True

    assert warnings_of(caplog) == []


# Recovery (7.1 to 7.3) ###########################################################


def test_a_recovery_runs_a_failure_again_though_it_was_made_good(new_flow):
    # semantics 7.1
    bad, mail, other = Switch(), Switch(False), Switch(False)

    def build(mode='restart'):
        flow = new_flow(run_mode=mode)
        step = flow.add_step('bad', func=bad)
        flow.add_step('mail', func=mail, require=(step, STEP_FAILURE), handles=True)
        flow.add_step('other', func=other)
        return flow

    assert build().run() is True
    bad.on = False

    recovery = build(RUN_RECOVER)
    assert recovery.run() is True

    assert (bad.calls, mail.calls, other.calls) == (2, 1, 1)
    assert statuses(recovery)['bad@1'] == 'success'
    assert build(RUN_RECOVER).run() is True
    assert (bad.calls, mail.calls, other.calls) == (2, 1, 1)


def test_when_a_step_fails_anew_what_reacted_to_it_runs_again(new_flow):
    # semantics 7.3
    bad, mail, report, follows = Switch(), Switch(False), Switch(False), Switch(False)

    def build(mode='restart'):
        flow = new_flow(run_mode=mode)
        step = flow.add_step('bad', func=bad)
        sent = flow.add_step('mail', func=mail, require=(step, STEP_FAILURE), handles=True)
        flow.add_step('report', func=report, require=(step, STEP_COMPLETE))
        flow.add_step('follows', func=follows, require=sent)
        return flow

    assert build().run() is True
    assert build(RUN_RECOVER).run() is True
    assert (bad.calls, mail.calls, report.calls, follows.calls) == (2, 2, 2, 1)

    mail.on = True     # the earlier success of the mail makes no later failure good
    assert build(RUN_RECOVER).run() is False
    assert (bad.calls, mail.calls, report.calls, follows.calls) == (3, 3, 3, 1)


def test_all_inside_a_reaction_runs_again_when_what_it_reacts_to_fails_anew(new_flow):
    # semantics 7.3
    bad, inside = Switch(), Switch(False)

    def build(mode='restart'):
        flow = new_flow(run_mode=mode)
        clean = flow.add_step('clean', require=(flow.add_step('bad', func=bad), STEP_FAILURE),
                              handles=True, loop=lambda: ['x', 'y'])
        clean.add_step('one', func=inside)
        clean.add_step('two', func=inside, loop=range(2))
        return flow

    assert build().run() is True
    assert inside.calls == 6
    assert build(RUN_RECOVER).run() is True
    assert inside.calls == 12


def test_a_container_in_which_a_failure_was_made_good_is_gone_through_again(new_flow):
    bad, ok = Switch(), Switch(False)

    def build(mode='restart'):
        flow = new_flow(run_mode=mode)
        outer = flow.add_step('outer')
        inner = outer.add_step('inner', loop=range(2))
        step = inner.add_step('bad', func=bad)
        inner.add_step('mail', func=do_nothing, require=(step, STEP_FAILURE), handles=True)
        outer.add_step('ok', func=ok, require=inner)
        return flow

    assert build().run() is True
    assert build(RUN_RECOVER).run() is True
    assert (bad.calls, ok.calls) == (4, 1)
    bad.on = False
    assert build(RUN_RECOVER).run() is True
    assert build(RUN_RECOVER).run() is True
    assert (bad.calls, ok.calls) == (6, 1)


def test_a_container_that_tolerated_a_failure_is_gone_through_again(new_flow):
    ran = []

    def work():
        ran.append(seq.current().sequence)
        if ran.count('1.2') == 1 and ran[-1] == '1.2':
            fail()

    def build(mode='restart'):
        flow = new_flow(run_mode=mode, max_concurrent=1)
        loop = flow.add_step('c', loop=range(3), config={'tolerate': 1})
        loop.add_step('b', func=ran.append, args=('b',), require=loop.add_step('a', func=work))
        return flow

    assert build().run() is True
    assert ran == ['1.1', 'b', '1.2', '1.3', 'b']
    assert build(RUN_RECOVER).run() is True
    assert ran[5:] == ['1.2', 'b']
    assert build(RUN_RECOVER).run() is True
    assert len(ran) == 7


def test_a_success_that_is_mapped_to_rerun_runs_again_after_a_run_that_succeeded(new_flow, caplog):
    # semantics 7.1, 7.2
    again, kept = Switch(False), Switch(False)

    def build(mode='restart'):
        flow = new_flow(run_mode=mode)
        step = flow.add_step('again', func=again, recovery={STEP_SUCCESS: seq.STEP_RERUN})
        flow.add_step('kept', func=kept, require=step)
        flow.add_step('beside', func=kept)
        return flow

    assert build().run() is True
    assert warnings_of(caplog) == []
    assert build(RUN_RECOVER).run() is True

    assert (again.calls, kept.calls) == (2, 2)
    assert warnings_of(caplog) == [
        'step kept at 1 keeps its earlier success, though step again, which it requires, ran '
        'again']


def test_a_step_that_keeps_a_success_is_named_where_it_used_the_result(new_flow, caplog):
    # semantics 7.1
    def build(mode='restart'):
        flow = new_flow(run_mode=mode)
        step = flow.add_step('c').add_step('again', func=int,
                                           recovery={STEP_SUCCESS: seq.STEP_RERUN})
        flow.add_step('kept', func=str, args=(step.result,))
        return flow

    assert build().run() is True
    assert build(RUN_RECOVER).run() is True
    assert warnings_of(caplog) == [
        'step kept at 1 keeps its earlier success, though step c, which it requires, ran again']


def test_recovering_a_run_in_which_nothing_is_left_runs_nothing_and_succeeds(new_flow):
    # semantics 7.1
    work = Switch(False)

    def build(mode='restart'):
        flow = new_flow(run_mode=mode)
        flow.add_step('c', loop=range(3)).add_step('a', func=work)
        return flow

    assert build().run() is True
    assert build(RUN_RECOVER).run() is True
    assert work.calls == 3


@pytest.mark.parametrize('moment', ['after the failure', 'in the handler', 'after the handler'])
@pytest.mark.parametrize('handles', [True, False])
def test_the_verdict_is_the_same_when_a_run_is_interrupted_and_continued(
        new_flow, moment, handles):
    # semantics 3.3, 7.5
    interrupts = Switch()

    def interrupt(where):
        if interrupts.on and moment == where:
            interrupts.on = False
            os.kill(os.getpid(), signal.SIGINT)

    def build(mode='restart'):
        flow = new_flow(run_mode=mode, max_concurrent=1, stop_on_exception=False)
        bad = flow.add_step('bad', func=fail)
        between = flow.add_step('between', func=interrupt, args=('after the failure',))
        mail = flow.add_step('mail', func=interrupt, args=('in the handler',), handles=handles,
                             require=((bad, STEP_FAILURE), between))
        flow.add_step('after', func=interrupt, args=('after the handler',), require=mail)
        return flow

    with pytest.raises(KeyboardInterrupt):
        build().run()

    continued = build(RUN_CONTINUE)
    assert continued.run() is handles
    assert task_of(continued, 'bad').handled is handles


def test_a_signal_spares_no_reaction_and_a_continued_run_starts_it(new_flow):
    # semantics 3.4, 7.5, 8.3
    mails = Switch(False)

    def build(mode='restart'):
        flow = new_flow(run_mode=mode)
        bad = flow.add_step('bad', func=fail)
        flow.add_step('stop', func=os.kill if mode == 'restart' else do_nothing,
                      args=(os.getpid(), signal.SIGTERM) if mode == 'restart' else (),
                      require=((bad, STEP_FAILURE),))
        flow.add_step('mail', func=mails, require=((bad, STEP_FAILURE),), delay=0.05)
        return flow
    with pytest.raises(SystemExit):
        build().run()
    assert mails.calls == 0

    continued = build(RUN_CONTINUE)

    assert continued.run() is False
    assert mails.calls == 1
    assert task_of(continued, 'mail').status == 'success'


# A run that is over (8.2) ########################################################


def test_run_of_a_run_that_is_over_warns_and_returns_the_same(new_flow, caplog):
    # semantics 8.2
    bad = Switch()
    flow = new_flow()
    flow.add_step('bad', func=bad)

    assert flow.run() is False
    assert flow.run() is flow() is False

    assert bad.calls == 1
    assert warnings_of(caplog) == [
        'run %s of flow flow is over (failure), so nothing runs; '
        'run(run_mode=RunMode.restart) starts a new run' % flow.run_id] * 2


def test_run_starts_a_new_run_or_recovers_this_one_where_it_is_asked_to(new_flow):
    # semantics 8.2
    bad, ok = Switch(), Switch(False)
    flow = new_flow()
    flow.add_step('ok', func=ok)
    flow.add_step('bad', func=bad)
    assert flow.run() is False
    first = flow.run_id

    assert flow.run(run_mode='restart') is False
    second = flow.run_id
    assert second != first and (ok.calls, bad.calls) == (2, 2)

    bad.on = False
    assert flow.run(run_mode=seq.RunMode.recover) is True
    assert (flow.run_id, ok.calls, bad.calls) == (second, 2, 3)

    assert flow.run(run_mode='recover', run_id=first) is True
    assert (flow.run_id, ok.calls, bad.calls) == (first, 2, 4)
    assert flow.run(run_mode='continue') is True
    assert (ok.calls, bad.calls) == (2, 4)
    assert flow(run_mode='recover', recovery_run=0) is True
    assert (ok.calls, bad.calls) == (2, 5)


@pytest.mark.parametrize('given, error', [
    ({'run_mode': 'again'}, "unknown run_mode 'again'"),
    ({'run_id': 'x'}, 'without run_mode'),
    ({'recovery_run': 0}, 'without run_mode'),
    ({'run_mode': 'recover', 'recovery_run': -1}, 'recovery_run must be an int of 0 or more'),
    ({'run_mode': 'restart', 'run_id': 3}, 'run_id must be a str')])
def test_wrong_arguments_of_run_are_refused_and_nothing_runs(new_flow, given, error):
    ok = Switch(False)
    flow = new_flow()
    flow.add_step('ok', func=ok)

    with pytest.raises((FlowError, FlowTypeError), match=error):
        flow.run(**given)

    assert ok.calls == 0
    assert flow.run() is True


def test_what_is_in_memory_only_in_part_is_not_recovered(memory_flow):
    flow = memory_flow(store=':memory:')
    flow.add_step('bad', func=fail)
    assert flow.run() is False

    with pytest.raises(seq.RecoveryError, match='MemoryStore'):
        flow.run(run_mode='recover')


# What a reaction is told (12.3) ##################################################


def told():
    now = seq.current()
    return (now.failure_count, now.failures, os.environ.get('SEQUENT_FAILED_COUNT'),
            os.environ.get('SEQUENT_FAILURES'))


KINDS = {'inline': {}, 'thread': {}, 'process': {}, 'spawn': {'task_construct': 'process',
         'start_method': 'spawn'}, 'served': {'task_construct': 'process'}, 'pool': {},
         'executor': {'executor': 'concurrent.futures:ProcessPoolExecutor'}}


@pytest.mark.parametrize('kind', sorted(KINDS))
def test_a_reaction_is_told_what_failed(new_flow, kind, monkeypatch):
    # semantics 12.3
    if kind == 'served':
        monkeypatch.setattr(seq.tender.Tender, 'WORTH', 1)
    config = dict({'task_construct': kind}, **KINDS[kind])
    flow = new_flow(stop_on_exception=False, **config)
    a, b, c = (flow.add_step(name, func=int, args=('x' * (name != 'c') or '1',)) for name in 'abc')
    every = tuple((one, STEP_COMPLETE) for one in (a, b, c))
    flow.add_step('report', func=told, require=every)
    flow.add_step('inside', require=every).add_step('report', func=told)
    flow.add_step('other', func=told, require=c)

    assert flow.run() is False

    error = "ValueError: invalid literal for int() with base 10: 'x'"
    expected = (2, (('a', '1', error), ('b', '1', error)))
    variables = ('2', 'a 1\nb 1') if kind != 'thread' else (None, None)
    assert task_of(flow, 'report').result == expected + variables
    assert task_of(flow, 'inside_report', '1.1').result == expected + variables
    assert task_of(flow, 'other').result == (0, (), None, None)


def test_a_program_that_reacts_is_told_what_failed(new_flow, tmp_path):
    # semantics 12.3
    flow = new_flow(stop_on_exception=False)
    bad = flow.add_step('bad', func=fail)
    script = 'echo "$SEQUENT_FAILED_COUNT: $SEQUENT_FAILURES" > %s' % (tmp_path / 'mail')
    flow.add_step('mail', command=seq.Command(script, shell=True), require=(bad, STEP_FAILURE))

    assert flow.run() is False

    assert (tmp_path / 'mail').read_text() == '1: bad 1\n'


def test_no_more_than_100_failures_are_told_and_all_are_counted(new_flow):
    # semantics 12.3
    flow = new_flow(stop_on_exception=False)
    every = [flow.add_step('s%d' % number, func=fail) for number in range(120)]
    flow.add_step('report', func=told, require=[(one, STEP_COMPLETE) for one in every])

    assert flow.run() is False

    count, failures, variable, lines = task_of(flow, 'report').result
    assert (count, len(failures), variable, len(lines.split('\n'))) == (120, 100, '120', 100)


# tasks() in a step ###############################################################


def seen_by(flow):
    return [(one.path, str(one.status)) for one in flow.tasks() if one.status != 'ready']


@pytest.mark.parametrize('kind', ['inline', 'thread', 'process', 'spawn', 'served'])
def test_a_step_can_ask_what_ran_so_far(tmp_path, kind, monkeypatch):
    # semantics 8.7
    if kind == 'served':
        monkeypatch.setattr(seq.tender.Tender, 'WORTH', 1)
    flow = seq.Sequent('flow', str(tmp_path / 'flow.db'), config=dict(
        {'task_construct': kind}, **KINDS[kind]))
    a = flow.add_step('a', func=int)
    flow.add_step('b', func=seen_by, args=(flow,), require=a)

    assert flow.run() is True

    assert task_of(flow, 'b').result == [('a', 'success'), ('b', 'active')]


def test_a_thread_step_is_told_by_the_supervisor_of_a_store_in_memory(memory_flow):
    flow = memory_flow(task_construct='thread', store=':memory:')
    a = flow.add_step('a', func=int)
    flow.add_step('b', func=lambda: seen_by(flow), require=a)

    assert flow.run() is True

    assert task_of(flow, 'b').result == [('a', 'success'), ('b', 'active')]


@pytest.mark.parametrize('kind', ['process', 'spawn', 'served'])
def test_a_process_step_is_told_what_to_do_where_the_store_is_in_memory(
        memory_flow, kind, monkeypatch):
    if kind == 'served':
        monkeypatch.setattr(seq.tender.Tender, 'WORTH', 1)
    flow = memory_flow(**dict({'task_construct': kind}, **KINDS[kind]))
    flow.add_step('b', func=seen_by, args=(flow,))

    assert flow.run() is False

    assert task_of(flow, 'b').error == (
        "StoreError: the tasks of flow 'flow' are in the memory of its supervisor: call tasks() "
        'in an inline or thread step, or give the flow a store in a file')


# What was not run (3.5) ##########################################################


def infos_of(flow, caplog):
    with caplog.at_level(logging.INFO, logger='sequent'):
        flow.run()
    return [record.getMessage() for record in caplog.records]


def test_the_end_of_a_run_says_what_was_not_run_and_what_a_stop_dropped(memory_flow, caplog):
    # semantics 3.5
    flow = memory_flow(max_concurrent=1, stop_on_exception=False)
    loop = flow.add_step('c', loop=range(2))
    bad = loop.add_step('bad', func=fail)
    after = loop.add_step('after', func=do_nothing, require=bad)
    loop.add_step('later', func=do_nothing, require=after)
    stopping = flow.add_step('stopping', func=fail, config={'stop_on_exception': True})
    flow.add_step('ready', func=do_nothing)
    flow.add_step('next', func=do_nothing, require=stopping)

    texts = infos_of(flow, caplog)

    assert 'not run, as what they require did not happen: 5 (c_after, c_later, next)' in texts
    assert 'dropped by the stop, to be started by a recovery: 2' in texts    # ready, c_bad


def test_what_waits_for_a_failure_that_did_not_happen_is_not_mentioned(memory_flow, caplog):
    # semantics 3.5
    flow = memory_flow()
    ok = flow.add_step('ok', func=do_nothing)
    mail = flow.add_step('mail', func=do_nothing, require=(ok, STEP_FAILURE))
    flow.add_step('c', require=mail).add_step('inside', func=do_nothing)
    flow.add_step('either', func=do_nothing, require=or_(mail, flow.add_event(
        (ok, STEP_FAILURE))))

    assert not [text for text in infos_of(flow, caplog) if text.startswith(('not run', 'dropped'))]


# A forgotten function (1.1) ######################################################


def test_a_leaf_without_func_is_refused_unless_none_is_written(new_flow):
    # semantics 1.1
    flow = new_flow()
    flow.add_step('whole').add_step('part')

    with pytest.raises(FlowError, match="step 'whole_part' has no func"):
        flow.run()

    with pytest.raises(FlowError, match="step 'a' has no func"):
        new_flow(kind=seq.Eventor).add_step('a')

    flow = new_flow()
    flow.add_step('joined', func=None, require=flow.add_step('a', func=None))
    assert flow.run() is True


# What tells of a run does not contradict its verdict (3.7) #######################


def test_a_failure_in_a_container_whose_failure_was_made_good_counts_as_handled(new_flow):
    flow = new_flow()
    outer = flow.add_step('c')
    outer.add_step('d').add_step('bad', func=fail)
    items = flow.add_step('items', func=fail, loop=range(2), config={'tolerate': 0})
    flow.add_step('handler', func=do_nothing, handles=True,
                  require=((outer, STEP_COMPLETE), (items, STEP_COMPLETE)))

    assert flow.run() is True

    assert {(task.path, task.sequence): task.handled for task in flow.tasks()} == {
        ('c', '1'): True, ('c_d', '1.1'): True, ('c_d_bad', '1.1.1'): True, ('items', '1'): True,
        ('items', '1.1'): True, ('handler', '1'): False}


def test_a_run_that_is_refused_leaves_the_run_of_the_object_as_it_was(new_flow):
    ok = Switch(False)
    flow = new_flow()
    flow.add_step('ok', func=ok)
    assert flow.run() is True
    first = flow.run_id

    for given in ({'run_mode': 'recover', 'run_id': 'nope'},
                  {'run_mode': 'recover', 'recovery_run': 7},
                  {'run_mode': 'restart', 'run_id': first}):
        with pytest.raises(seq.SequentError):
            flow.run(**given)
        assert (flow.run(), flow.run_id, len(flow.tasks())) == (True, first, 1)
    with pytest.raises(FlowTypeError, match='recovery_run is for run_mode recover'):
        flow.run(run_mode='restart', recovery_run=0)

    assert flow.run(run_mode='recover') is True
    assert (flow.run_id, ok.calls) == (first, 1)


def test_a_handler_of_an_eventor_that_another_event_started_makes_nothing_good(new_flow):
    flow = new_flow(kind=seq.Eventor, max_concurrent=1)
    start, broken = flow.add_event('start'), flow.add_event('broken')
    bad = flow.add_step('bad', func=fail, triggers={STEP_FAILURE: (broken,)})
    mail = flow.add_step('mail', func=do_nothing, handles=True)
    flow.add_assoc(start, bad, mail)
    flow.add_assoc(broken, mail)
    flow.trigger_event(start)

    assert flow.run() is False


def test_a_flow_inside_a_reaction_is_not_told_what_failed_around_it(new_flow):
    def inner():
        flow = seq.Sequent('inner', store=':memory:', config={'task_construct': 'inline'})
        flow.add_step('a', func=told)
        flow.run()
        return task_of(flow, 'a').result

    flow = new_flow()
    bad = flow.add_step('bad', func=fail)
    flow.add_step('mail', func=inner, require=(bad, STEP_FAILURE))

    assert flow.run() is False

    assert task_of(flow, 'mail').result == (0, (), '', '')


def test_a_thread_that_a_stop_could_not_end_is_not_started_again_beside_itself(new_flow):
    # semantics 8.3
    began, ends, calls = threading.Event(), threading.Event(), []

    def work():
        calls.append('began')
        began.set()
        if len(calls) == 1:
            ends.wait(30)
        calls.append('ended')

    def stop():
        began.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    flow = new_flow(task_construct='thread', shutdown_grace=0)
    flow.add_step('a', func=work)
    threading.Thread(target=stop).start()
    with pytest.raises(KeyboardInterrupt):
        flow.run()

    with pytest.raises(seq.AlreadyRunningError, match="'a' at 1 still runs in this program"):
        flow.run()
    ends.set()
    wait_for(lambda: not [one for one in threading.enumerate() if one.name == 'a 1'],
             'the end of the thread')
    assert flow.run() is True
    assert calls == ['began', 'ended', 'began', 'ended']
