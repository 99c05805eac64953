"""Failures, made good or not, and what they stop (semantics 3)."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap

import pytest

pytest_plugins = ['flowtools']

import sequent as seq  # noqa: E402
from flowtools import (  # noqa: E402
    SteppedConstruct, do_nothing, on_all_constructs, statuses, task_of)
from sequent import STEP_COMPLETE, STEP_FAILURE, STEP_SUCCESS, or_  # noqa: E402


def fail():
    raise ValueError('no good')


# What fails (3.1) ################################################################


class Odd(Exception):
    """Neither its repr nor its str can be had."""

    def __str__(self):
        raise RuntimeError('no text')

    __repr__ = __str__


def raising(error):
    def function():
        raise error
    return function


FAILURES = {
    'ValueError: no good': fail,
    'ZeroDivisionError': lambda: 1 / 0,
    'MemoryError': raising(MemoryError()),
    'Odd': raising(Odd()),
    '3': lambda: sys.exit(3),
    'disk full': lambda: sys.exit('disk full'),
    'True': lambda: sys.exit(True),
}


@on_all_constructs
def test_a_task_whose_function_raises_fails_with_what_was_raised(         # semantics 3.1
        memory_flow, construct):
    flow = memory_flow(task_construct=construct, stop_on_exception=False)
    for number, error in enumerate(sorted(FAILURES)):
        flow.add_step('s%d' % number, func=FAILURES[error])

    assert flow.run() is False

    for number, error in enumerate(sorted(FAILURES)):
        task = task_of(flow, 's%d' % number)
        assert (task.status, task.path) == ('failure', 's%d' % number)
        assert error in task.error or error == 'True' and '1' in task.error


@on_all_constructs
def test_leaving_by_sys_exit_without_a_true_code_is_success(              # semantics 3.1
        memory_flow, construct):
    flow = memory_flow(task_construct=construct)
    for number, code in enumerate([0, None, False]):
        flow.add_step('s%d' % number, func=sys.exit, args=(code,))

    assert flow.run() is True

    assert statuses(flow) == {'s0@1': 'success', 's1@1': 'success', 's2@1': 'success'}


@pytest.mark.parametrize('die, error', [
    (lambda: os.kill(os.getpid(), signal.SIGKILL), 'SIGKILL'),
    (lambda: os._exit(3), '3'),
    (lambda: os._exit(0), '0')], ids=['signal', '_exit(3)', '_exit(0)'])
def test_a_process_that_dies_fails_its_task(new_flow, trace, die, error): # semantics 3.1
    flow = new_flow(task_construct='process')
    dead = flow.add_step('a', func=die)
    flow.add_step('after', func=trace.run, require=dead)
    flow.add_step('handler', handles=True, func=trace.run, require=(dead, STEP_FAILURE))

    assert flow.run() is True

    assert trace.lines == ['handler@1']
    assert error in task_of(flow, 'a').error


# What is made good (3.2, 3.3) ####################################################

HANDLERS = {
    'failure': lambda flow, bad: (bad, STEP_FAILURE),
    'complete': lambda flow, bad: (bad, STEP_COMPLETE),
    'in and': lambda flow, bad: (flow.add_step('x', func=None), (bad, STEP_FAILURE)),
    'in or': lambda flow, bad: or_((flow.add_step('x', func=None), STEP_FAILURE),
                                   (bad, STEP_COMPLETE)),
    'in an event': lambda flow, bad: flow.add_event((bad, STEP_FAILURE)),
    'in an event of an event': lambda flow, bad: flow.add_event(
        or_(flow.add_event((bad, STEP_FAILURE)))),
}


@pytest.mark.parametrize('kind', sorted(HANDLERS))
@on_all_constructs
def test_a_handler_makes_good_a_failure_that_its_requirement_mentions(    # semantics 3.3
        memory_flow, trace, construct, kind):
    flow = memory_flow(task_construct=construct)
    bad = flow.add_step('bad', func=fail)
    flow.add_step('handler', handles=True, func=trace.run, require=HANDLERS[kind](flow, bad))

    assert flow.run() is True

    assert trace.lines == ['handler@1']
    assert task_of(flow, 'bad').handled is True


@pytest.mark.parametrize('kind', sorted(HANDLERS))
@on_all_constructs
def test_a_step_that_reacts_to_a_failure_does_not_make_it_good(           # semantics 3.2
        memory_flow, trace, construct, kind):
    flow = memory_flow(task_construct=construct)
    bad = flow.add_step('bad', func=fail)
    flow.add_step('report', func=trace.run, require=HANDLERS[kind](flow, bad))

    assert flow.run() is False

    assert trace.lines == ['report@1']
    assert task_of(flow, 'bad').handled is False


def test_a_handler_that_never_ran_has_made_nothing_good(new_flow, trace):         # semantics 3.3
    flow = new_flow()
    bad = flow.add_step('bad', func=fail)
    ok = flow.add_step('ok', func=trace.run)
    flow.add_step('handler', handles=True, func=trace.run,
                  require=((bad, STEP_FAILURE), (ok, STEP_FAILURE)))

    assert flow.run() is False

    assert trace.lines == ['ok@1']


@pytest.mark.parametrize('status', ['success', 'ready', 'active'])
def test_a_failure_is_not_handled_by_what_requires_another_status(        # semantics 3.3
        new_flow, status):
    flow = new_flow(handled_by='complete')
    bad = flow.add_step('bad', func=fail)
    flow.add_step('after', func=do_nothing, require=(bad, status))

    assert flow.run() is False

    assert task_of(flow, 'bad').handled is False


@pytest.mark.parametrize('handles', [True, False])
@pytest.mark.parametrize('status', ['failure', 'complete'])
def test_a_handler_of_an_eventor_makes_good_the_failure_whose_trigger_started_it(
        new_flow, trace, status, handles):                                # semantics 3.3
    flow = new_flow(kind=seq.Eventor)
    start, event = flow.add_event('start'), flow.add_event('event')
    flow.add_assoc(start, flow.add_step('bad', func=fail, triggers={status: (event,)}))
    flow.add_assoc(event, flow.add_step('mail', func=trace.run, handles=handles))
    flow.trigger_event(start, 1)

    assert flow.run() is handles

    assert trace.lines == ['mail@1']
    assert task_of(flow, 'bad').handled is handles


# Failures of containers (3.3) ####################################################


@pytest.mark.parametrize('status', [STEP_FAILURE, STEP_COMPLETE])
def test_an_unhandled_failure_fails_its_container_which_may_be_handled_there(     # semantics 3.3
        new_flow, trace, status):
    flow = new_flow()
    container = flow.add_step('c')
    container.add_step('d').add_step('bad', func=trace.fail)
    flow.add_step('handler', handles=True, func=trace.run, require=(container, status))
    flow.add_step('after', func=trace.run, require=container)

    assert flow.run() is True

    assert trace.lines == ['c_d_bad@1.1.1', 'handler@1']
    assert statuses(flow) == {'c@1': 'failure', 'c_d@1.1': 'failure',
                              'c_d_bad@1.1.1': 'failure', 'handler@1': 'success'}
    assert [task.handled for task in flow.tasks()][:3] == [True, True, True]


def test_failure_of_a_container_is_raised_at_its_end(new_flow, trace):    # semantics 3.3
    flow = new_flow(stop_on_exception=False)
    container = flow.add_step('c', loop=range(2))
    container.add_step('bad', func=trace.fail)
    container.add_step('b', func=trace.run)
    flow.add_step('handler', handles=True, func=trace.run, require=(container, STEP_FAILURE))

    assert flow.run() is True

    assert trace.lines == ['c_bad@1.1', 'c_b@1.1', 'c_bad@1.2', 'c_b@1.2', 'handler@1']


@on_all_constructs
def test_what_is_handled_nowhere_fails_the_flow(new_flow, construct):     # semantics 3.3
    flow = new_flow(task_construct=construct)
    flow.add_step('c').add_step('bad', func=fail)

    assert flow.run() is False

    assert statuses(flow) == {'c@1': 'failure', 'c_bad@1.1': 'failure'}


def test_a_failure_handled_inside_does_not_fail_the_container(new_flow):  # semantics 3.3
    flow = new_flow()
    container = flow.add_step('c')
    bad = container.add_step('bad', func=fail)
    container.add_step('handler', handles=True, func=do_nothing, require=(bad, STEP_FAILURE))

    assert flow.run() is True

    assert task_of(flow, 'c').status == 'success'


def test_a_leaf_with_a_loop_fails_with_its_items(new_flow, trace):        # semantics 3.3
    flow = new_flow()
    leaf = flow.add_step('a', func=trace.fail_at, args=('1.2',), loop=range(3))
    flow.add_step('handler', handles=True, func=trace.run, require=(leaf, STEP_FAILURE))

    assert flow.run() is True

    assert trace.lines == ['a@1.1', 'a@1.2', 'handler@1']


# Stops (3.4) #####################################################################


def test_a_failure_handled_at_the_step_itself_stops_nothing(new_flow, trace):     # semantics 3.4
    flow = new_flow()
    container = flow.add_step('c', loop=range(2))
    bad = container.add_step('bad', func=trace.fail)
    container.add_step('other', func=trace.run)
    container.add_step('handler', handles=True, func=trace.run, require=(bad, STEP_FAILURE))
    flow.add_step('after', func=trace.run, require=container)

    assert flow.run() is True

    assert sorted(trace.lines) == sorted(
        ['c_%s@1.%d' % (name, number) for name in ('bad', 'other', 'handler')
         for number in (1, 2)] + ['after@1'])


def test_an_unhandled_failure_stops_its_container_with_all_iterations(new_flow, trace):
    flow = new_flow(max_concurrent=1)                                     # semantics 3.4
    container = flow.add_step('c', loop=range(3))
    container.add_step('bad', func=trace.fail)
    container.add_step('same_iteration', func=trace.run)
    flow.add_step('beside', func=trace.run)
    flow.add_step('handler', handles=True, func=trace.run, require=(container, STEP_FAILURE))

    assert flow.run() is True

    assert sorted(trace.lines) == ['beside@1', 'c_bad@1.1', 'handler@1']


def test_an_unhandled_failure_stops_the_iterations_beside_its_own(new_flow, stepped):
    def fail_first():                                                     # semantics 3.4
        if seq.current().sequence == '1.1':
            fail()

    flow = new_flow(task_construct=stepped, max_concurrent=0)
    container = flow.add_step('c', loop=range(9), config={'max_concurrent': 3})
    a = container.add_step('a', func=fail_first)
    container.add_step('b', func=do_nothing, require=a)

    assert flow.run() is False

    assert stepped.started == ['c_a@1.1', 'c_a@1.2', 'c_a@1.3']
    assert statuses(flow) == {'c@1': 'failure', 'c_a@1.1': 'failure', 'c_a@1.2': 'success',
                              'c_a@1.3': 'success'}


@on_all_constructs
def test_an_unhandled_failure_at_the_top_stops_the_flow(new_flow, trace, construct):
    flow = new_flow(task_construct=construct, max_concurrent=1)           # semantics 3.4
    flow.add_step('bad', func=trace.fail)
    flow.add_step('b', func=trace.run)
    flow.add_step('c').add_step('d', func=trace.run)

    assert flow.run() is False

    assert trace.lines == ['bad@1']


def test_a_stop_goes_outward_to_the_container_whose_failure_is_handled(   # semantics 3.4
        new_flow, stepped):
    flow = new_flow(task_construct=stepped, max_concurrent=1)
    top = flow.add_step('top', loop=range(2))
    middle = top.add_step('middle', loop=range(2))
    inner = middle.add_step('inner', loop=range(2))
    inner.add_step('bad', func=fail)
    inner.add_step('in_inner', func=do_nothing)
    middle.add_step('in_middle', func=do_nothing)
    top.add_step('in_top', func=do_nothing)
    top.add_step('handler', handles=True, func=do_nothing, require=(middle, STEP_FAILURE))

    assert flow.run() is True

    assert stepped.started == [name % number for number in (1, 2) for name in (
        'top_middle_inner_bad@1.%d.1.1', 'top_in_top@1.%d', 'top_handler@1.%d')]
    assert statuses(flow)['top@1'] == 'success'


def test_a_stop_goes_outward_in_the_same_turn(new_flow, stepped):         # semantics 3.4
    flow = new_flow(task_construct=stepped, max_concurrent=2)
    inner = flow.add_step('inner')
    inner.add_step('bad', func=fail)
    inner.add_step('slow', func=do_nothing)        # keeps inner open after the failure
    flow.add_step('ready', func=do_nothing)

    assert flow.run() is False

    assert stepped.started == ['inner_bad@1.1', 'inner_slow@1.1']


def test_a_stop_ends_at_a_container_that_does_not_stop_what_is_around_it( # semantics 3.4
        new_flow, trace):
    flow = new_flow(max_concurrent=1)
    outer = flow.add_step('o', config={'stop_on_exception': False})
    inner = outer.add_step('c', loop=range(2), config={'stop_on_exception': False})
    inner.add_step('bad', func=trace.fail, config={'stop_on_exception': True})
    inner.add_step('in_c', func=trace.run)
    outer.add_step('in_o', func=trace.run)
    flow.add_step('beside', func=trace.run)

    assert flow.run() is False

    assert sorted(trace.lines) == ['beside@1', 'o_c_bad@1.1.1', 'o_in_o@1.1']
    assert statuses(flow)['o@1'] == statuses(flow)['o_c@1.1'] == 'failure'


def test_stop_on_exception_is_inherited_from_container_and_flow(new_flow, trace):
    flow = new_flow(max_concurrent=1, stop_on_exception=False)            # semantics 3.4
    flow.add_step('bad', func=trace.fail)
    container = flow.add_step('c', config={'stop_on_exception': True})
    inner = container.add_step('d')
    inner.add_step('bad', func=trace.fail)
    inner.add_step('in_d', func=trace.run)
    container.add_step('in_c', func=trace.run)
    flow.add_step('handler', handles=True, func=trace.run, require=(container, STEP_FAILURE))

    assert flow.run() is False

    assert trace.lines == ['bad@1', 'c_d_bad@1.1.1', 'handler@1']


def test_an_inline_task_is_not_called_after_a_failure_has_stopped_its_container(
        new_flow, trace):                                                 # semantics 3.4
    flow = new_flow(max_concurrent=2)
    flow.add_step('bad', func=trace.fail)
    flow.add_step('beside', func=trace.run)

    assert flow.run() is False

    assert trace.lines == ['bad@1']


def test_what_runs_is_permitted_to_finish(new_flow, stepped):             # semantics 3.4
    flow = new_flow(task_construct=stepped, max_concurrent=3)
    flow.add_step('bad', func=fail)
    running = flow.add_step('running', func=do_nothing)
    flow.add_step('c').add_step('also', func=do_nothing)
    flow.add_step('waiting', func=do_nothing)
    flow.add_step('after', func=do_nothing, require=running)

    assert flow.run() is False

    assert stepped.started == ['bad@1', 'running@1', 'c_also@1.1']
    assert statuses(flow)['running@1'] == statuses(flow)['c_also@1.1'] == 'success'


@on_all_constructs
def test_without_stop_on_exception_what_does_not_depend_on_it_goes_on(    # semantics 3.4
        memory_flow, trace, construct):
    flow = memory_flow(task_construct=construct)
    container = flow.add_step('c', loop=range(2))
    bad = container.add_step('bad', func=trace.fail, config={'stop_on_exception': False})
    container.add_step('after', func=trace.run, require=bad)
    container.add_step('other', func=trace.run)

    assert flow.run() is False

    assert sorted(trace.lines) == ['c_bad@1.1', 'c_bad@1.2', 'c_other@1.1', 'c_other@1.2']
    assert statuses(flow)['c@1'] == 'failure'


@pytest.mark.parametrize('stops, more', [(True, []), (False, ['second@1', 'third@1'])])
def test_when_a_container_fails_at_its_end_its_own_setting_counts(        # semantics 3.4
        new_flow, stepped, stops, more):
    flow = new_flow(task_construct=stepped, max_concurrent=1)
    container = flow.add_step('c', loop=range(2), config={'stop_on_exception': stops})
    container.add_step('bad', func=fail, config={'stop_on_exception': False})
    second = flow.add_step('second', func=do_nothing,
                           require=flow.add_step('first', func=do_nothing))
    flow.add_step('third', func=do_nothing, require=second)

    assert flow.run() is False

    assert stepped.started == ['c_bad@1.1', 'first@1', 'c_bad@1.2'] + more


def test_a_stop_drops_what_is_ready_and_a_recovery_starts_it(new_flow, trace):    # semantics 3.4
    def build(**given):
        flow = new_flow(max_concurrent=1, **given)
        flow.add_step('bad', func=trace.fail if not given else trace.run)
        flow.add_step('ready', func=trace.run)
        return flow

    stopped = build()
    assert stopped.run() is False
    assert statuses(stopped) == {'bad@1': 'failure', 'ready@1': 'ready'}

    recovery = build(run_mode=seq.RUN_RECOVER)
    assert recovery.run() is True
    assert trace.lines == ['bad@1', 'bad@1', 'ready@1']
    assert statuses(recovery) == {'bad@1': 'success', 'ready@1': 'success'}


def test_a_stop_drops_what_waits_for_a_resource(new_flow, stepped):       # semantics 3.4
    def build(**given):
        pool = seq.ResourcePool('p', 1)
        flow = new_flow(task_construct=stepped, max_concurrent=0, **given)
        flow.add_step('bad', func=do_nothing if given else fail, acquires=[(pool, 1)])
        flow.add_step('c').add_step('waiting', func=do_nothing, acquires=[(pool, 1)])
        return flow

    stopped = build()
    assert stopped.run() is False
    assert stepped.started == ['bad@1']
    assert statuses(stopped)['c_waiting@1.1'] == 'ready'

    assert build(run_mode=seq.RUN_RECOVER).run() is True
    assert stepped.started == ['bad@1', 'bad@1', 'c_waiting@1.1']


def due_of(flow, path):
    """Return when the delay of a task is over, from the store."""
    flow.open_store()
    try:
        run = flow.store.latest(flow.name)
        return [record.due for record in flow.store.tasks(run) if record.path == path]
    finally:
        flow.close_store()


def test_a_stop_drops_what_is_delayed_and_keeps_its_due_time(new_flow, trace):    # semantics 3.4
    def build(**given):
        flow = new_flow(**given)
        flow.add_step('delayed', func=trace.run, delay=3600)
        flow.add_step('bad', func=trace.run if given else trace.fail)
        return flow

    stopped = build()
    assert stopped.run() is False
    assert statuses(stopped) == {'delayed@1': 'ready', 'bad@1': 'failure'}
    due = due_of(stopped, 'delayed')
    assert due[0] > task_of(stopped, 'bad').end

    with build(run_mode=seq.RUN_RECOVER) as recovery:
        recovery.run(max_loops=1)
        assert 0 < recovery.count_todos()[1] <= 3600
        assert due_of(new_flow(), 'delayed') == due
    assert trace.lines == ['bad@1', 'bad@1']


def test_what_a_stop_drops_does_not_keep_its_iteration_open(new_flow, trace):     # semantics 3.4
    flow = new_flow()
    container = flow.add_step('c', loop=range(2))
    container.add_step('delayed', func=trace.run, delay=3600)
    container.add_step('bad', func=trace.fail)
    flow.add_step('handler', handles=True, func=trace.run, require=(container, STEP_FAILURE))

    assert flow.run() is True

    assert trace.lines == ['c_bad@1.1', 'handler@1']


# Not run (3.5) ###################################################################


@on_all_constructs
def test_a_step_whose_requirement_never_held_is_not_run_and_no_failure(   # semantics 3.5
        new_flow, trace, construct):
    flow = new_flow(task_construct=construct)
    ok = flow.add_step('ok', func=trace.run)
    never = flow.add_step('never', func=trace.run, require=(ok, STEP_FAILURE))
    flow.add_step('nor', func=trace.run, require=(ok, never))
    flow.add_step('c', require=never).add_step('inside', func=trace.run)

    assert flow.run() is True

    assert trace.lines == ['ok@1']
    assert statuses(flow) == {'ok@1': 'success'}


def test_a_container_in_which_nothing_ran_succeeds(new_flow, trace):      # semantics 3.5
    flow = new_flow()
    ok = flow.add_step('ok', func=trace.run)
    container = flow.add_step('c', loop=range(2))
    container.add_step('never', func=trace.run, require=(ok, STEP_FAILURE))
    flow.add_step('after', func=trace.run, require=container)

    assert flow.run() is True

    assert trace.lines == ['ok@1', 'after@1']


# The end of an iteration (3.6) ###################################################


def test_the_next_iteration_starts_when_nothing_goes_on_in_this_one(new_flow, stepped):
    flow = new_flow(task_construct=stepped, max_concurrent=0)             # semantics 3.6
    container = flow.add_step('c', loop=range(2))
    container.add_step('a', func=do_nothing)
    inner = container.add_step('d', loop=range(2))
    inner.add_step('b', func=do_nothing)
    container.add_step('late', func=do_nothing, delay=0.01)

    assert flow.run() is True

    assert [name.split('@')[1][:3] for name in stepped.started] == ['1.1'] * 4 + ['1.2'] * 4


def test_an_iteration_waits_for_what_a_step_in_it_awaits_from_outside(    # semantics 3.6
        new_flow, stepped):
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    container = flow.add_step('c', loop=range(2))
    container.add_step('a', func=do_nothing)
    first = flow.add_step('first', func=do_nothing)
    second = flow.add_step('second', func=do_nothing, require=first)
    container.add_step('b', func=do_nothing, require=second)

    assert flow.run() is True

    assert stepped.started == ['c_a@1.1', 'first@1', 'second@1', 'c_b@1.1', 'c_a@1.2', 'c_b@1.2']


def test_an_iteration_does_not_wait_for_what_cannot_be_raised_any_more(   # semantics 3.6
        new_flow, stepped):
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    first = flow.add_step('first', func=do_nothing)
    container = flow.add_step('c', loop=range(2))
    container.add_step('a', func=do_nothing)
    container.add_step('b', func=do_nothing, require=(first, STEP_FAILURE))
    long = flow.add_step('long', func=do_nothing, require=first)
    flow.add_step('longer', func=do_nothing, require=long)

    assert flow.run() is True

    # 'first' has not failed, so iteration 1 is over although the flow goes on
    assert stepped.started.index('c_a@1.2') < stepped.started.index('longer@1')


def test_an_iteration_waits_as_long_as_something_goes_on_that_could_raise_it(
        new_flow, stepped):                                               # semantics 3.6
    flow = new_flow(task_construct=stepped, max_concurrent=1)
    never = flow.add_step('never', func=do_nothing, require=(
        flow.add_step('first', func=do_nothing), STEP_FAILURE))
    container = flow.add_step('c', loop=range(2))
    container.add_step('a', func=do_nothing)
    container.add_step('b', func=do_nothing, require=never)
    flow.add_step('second', func=do_nothing)
    flow.add_step('third', func=do_nothing, delay=0.05)

    assert flow.run() is True

    # whether second or third could let 'never' run is not asked: something went on in the flow
    assert stepped.started == ['first@1', 'c_a@1.1', 'second@1', 'third@1', 'c_a@1.2']


def test_what_waits_in_vain_ends_together_in_the_order_in_which_it_was_added(
        new_flow, trace):                                                 # semantics 3.6
    flow = new_flow()
    ok = flow.add_step('ok', func=trace.run)
    never = flow.add_step('never', func=trace.run, require=(ok, STEP_FAILURE))
    two = flow.add_step('two')
    one = flow.add_step('one')
    one.add_step('x', func=trace.run, require=never)
    two.add_step('x', func=trace.run, require=never)
    flow.add_step('after_two', func=trace.run, require=two)
    flow.add_step('after_one', func=trace.run, require=one)

    assert flow.run() is True

    assert trace.lines == ['ok@1', 'after_two@1', 'after_one@1']


def test_what_waits_in_vain_ends_together_with_what_is_in_it(new_flow, trace):    # semantics 3.6
    flow = new_flow()
    ok = flow.add_step('ok', func=trace.run)
    never = flow.add_step('never', func=trace.run, require=(ok, STEP_FAILURE))
    deep, flat = flow.add_step('deep'), flow.add_step('flat')
    deep.add_step('d').add_step('x', func=trace.run, require=never)
    flat.add_step('x', func=trace.run, require=never)
    flow.add_step('after_deep', func=trace.run, require=deep)
    flow.add_step('after_flat', func=trace.run, require=flat)

    assert flow.run() is True

    assert trace.lines == ['ok@1', 'after_deep@1', 'after_flat@1']


def test_statuses_are_raised_only_after_all_that_wait_have_ended(new_flow, trace):
    flow = new_flow()                                                     # semantics 3.6
    ok = flow.add_step('ok', func=trace.run)
    never = flow.add_step('never', func=trace.run, require=(ok, STEP_FAILURE))
    one, two = flow.add_step('one'), flow.add_step('two')
    one.add_step('x', func=trace.run, require=never)
    two.add_step('y', func=trace.run, require=one)
    flow.add_step('after', func=trace.run, require=(one, two))

    assert flow.run() is True

    assert trace.lines == ['ok@1', 'after@1']      # two_y came too late: two had ended with one


def test_what_ended_together_raises_its_status_in_the_order_of_adding(new_flow):  # semantics 3.6
    flow = new_flow(stop_on_exception=False)
    ok = flow.add_step('ok', func=do_nothing)
    never = flow.add_step('never', func=do_nothing, require=(ok, STEP_FAILURE))
    outer = flow.add_step('o')
    for name in ('two', 'one'):
        container = outer.add_step(name)
        container.add_step('bad', func=fail)
        container.add_step('x', func=do_nothing, require=never)

    assert flow.run() is False

    assert task_of(flow, 'o').error.startswith('o_two failed')      # the first one is its reason


# Handled failures are told (3.7) #################################################


def flow_with_handled_failure(memory_flow, **config):
    flow = memory_flow(**config)
    bad = flow.add_step('bad', func=fail)
    flow.add_step('handler', handles=True, func=do_nothing, require=(bad, STEP_FAILURE))
    return flow


def test_handled_failures_are_told_by_tasks(new_flow):                    # semantics 3.7
    flow = flow_with_handled_failure(new_flow)

    flow.run()

    assert [(task.path, task.handled) for task in flow.tasks()] == [
        ('bad', True), ('handler', False)]
    assert task_of(flow, 'bad').error == 'ValueError: no good'


def test_handled_failures_are_listed_in_the_closing_summary(memory_flow, caplog):
    flow = flow_with_handled_failure(memory_flow)                         # semantics 3.7

    with caplog.at_level(logging.INFO, logger='sequent'):
        flow.run()

    texts = [record.getMessage() for record in caplog.records]
    end = next(at for at, text in enumerate(texts) if text.startswith('run ')
               and text.endswith('success'))
    assert any('handled' in text and 'bad' in text and 'no good' in text for text in texts[end:])


def test_handled_failures_are_told_by_json(tmp_path):                     # semantics 3.7
    (tmp_path / 'job.py').write_text(textwrap.dedent('''
        import sequent as seq

        flow = seq.Sequent(config={'task_construct': 'inline'})
        bad = flow.add_step('bad', func=lambda: 1 / 0)
        flow.add_step('handler', func=print, require=(bad, seq.STEP_FAILURE), handles=True)
    '''))

    def sequent(*words):
        return subprocess.run([sys.executable, '-m', 'sequent', 'job'] + list(words), check=True,
                              cwd=str(tmp_path), timeout=60, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL).stdout.decode()

    sequent()
    told = json.loads(sequent('status', '--json'))

    tasks = told['tasks'] if isinstance(told, dict) else told
    assert {task['path']: task['handled'] for task in tasks} == {'bad': True, 'handler': False}


@pytest.mark.parametrize('handled_by, status, result', [
    ('handles', 'failure', False), ('handles', 'complete', False),
    ('failure', 'failure', True), ('failure', 'complete', False),
    ('complete', 'failure', True), ('complete', 'complete', True)])
def test_steps_can_be_made_handlers_by_what_they_require(                 # semantics 3.3
        new_flow, trace, handled_by, status, result):
    flow = new_flow(handled_by=handled_by, stop_on_exception=False)
    bad = flow.add_step('bad', func=trace.fail)
    flow.add_step('report', func=trace.run, require=((bad, status),))

    assert flow.run() is result

    assert trace.lines == ['bad@1', 'report@1']
    assert task_of(flow, 'bad').handled is result


def test_a_failure_of_one_kind_of_construct_stops_the_others(new_flow, trace):    # semantics 3.4
    stepped = SteppedConstruct()
    flow = new_flow(max_concurrent=0)
    bad = flow.add_step('bad', func=trace.fail, config={'task_construct': 'thread'})
    flow.add_step('after', func=trace.run, require=bad, config={'task_construct': stepped})
    flow.add_step('also', func=trace.run, require=(bad, STEP_SUCCESS))

    assert flow.run() is False

    assert trace.lines == ['bad@1'] and stepped.started == []
