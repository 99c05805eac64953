"""Tasks side by side: caps, order, resources, delays, waiting (semantics 4)."""

import collections
import os
import threading
import time

import pytest

pytest_plugins = ['flowtools']

import sequent as seq  # noqa: E402
from flowtools import (  # noqa: E402
    SteppedConstruct, do_nothing, on_all_constructs, on_parallel_constructs, statuses, task_of,
    wait_for)
from sequent import STEP_ACTIVE, STEP_FAILURE, STEP_READY  # noqa: E402


def fail():
    raise ValueError('no good')


# Caps (4.1) ######################################################################


@pytest.mark.parametrize('cap, at_once', [(1, 1), (2, 2), (3, 3), (7, 5), (0, 5), (-1, 5)])
def test_max_concurrent_caps_the_tasks_running_at_one_time(               # semantics 4.1
        new_flow, stepped, cap, at_once):
    flow = new_flow(task_construct=stepped, max_concurrent=cap)
    for number in range(4):
        flow.add_step('s%d' % number, func=do_nothing)
    flow.add_step('c').add_step('s4', func=do_nothing)

    assert flow.run() is True

    assert stepped.most == at_once
    assert len(stepped.started) == 5


@on_parallel_constructs
def test_tasks_run_side_by_side(new_flow, trace, construct):              # semantics 4.1
    flow = new_flow(task_construct=construct, max_concurrent=3)
    flow.add_step('a', func=trace.meet, args=('b@1', 'c_d@1.1'))
    flow.add_step('b', func=trace.meet, args=('a@1', 'c_d@1.1'))
    flow.add_step('c').add_step('d', func=trace.meet, args=('a@1', 'b@1'))

    assert flow.run() is True


def test_tasks_of_different_constructs_run_side_by_side(new_flow, trace): # semantics 4.1
    flow = new_flow(max_concurrent=3)
    flow.add_step('a', func=trace.meet, args=('b@1', 'c@1'), config={'task_construct': 'process'})
    flow.add_step('b', func=trace.meet, args=('a@1', 'c@1'), config={'task_construct': 'thread'})
    flow.add_step('c', func=trace.meet, args=('a@1', 'b@1'))

    assert flow.run() is True


@pytest.mark.parametrize('cpus, at_once', [(1, 2), (2, 2), (5, 5), (None, 2)])
def test_by_default_as_many_tasks_run_as_there_are_cpus_at_least_2(       # semantics 4.1
        memory_flow, stepped, monkeypatch, cpus, at_once):
    monkeypatch.setattr(os, 'cpu_count', lambda: cpus)
    monkeypatch.delenv('SEQUENT_MAX_CONCURRENT', raising=False)
    flow = memory_flow(task_construct=stepped)
    for number in range(7):
        flow.add_step('s%d' % number, func=do_nothing)

    assert flow.run() is True

    assert stepped.most == at_once


@pytest.mark.parametrize('config, at_once', [
    ({}, 1), ({'max_concurrent': 2}, 2), ({'max_concurrent': 0}, 4)])
def test_an_eventor_runs_one_task_at_a_time_by_default(                   # semantics 4.1
        memory_flow, stepped, config, at_once):
    flow = memory_flow(kind=seq.Eventor, task_construct=stepped, **config)
    start = flow.add_event('start')
    flow.add_assoc(start, *[flow.add_step('s%d' % number, func=do_nothing)
                            for number in range(4)])
    flow.trigger_event(start)

    assert flow.run() is True

    assert stepped.most == at_once


@pytest.mark.parametrize('cap, at_once', [(1, 1), (2, 2), (0, 4), (None, 4)])
def test_on_a_leaf_it_caps_the_running_tasks_of_that_step(                # semantics 4.1
        new_flow, stepped, cap, at_once):
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    container = flow.add_step('c', loop=range(4), config={'max_concurrent': 0})
    container.add_step('capped', func=do_nothing, config={'max_concurrent': cap})
    container.add_step('free', func=do_nothing)

    assert flow.run() is True

    assert (stepped.most_of('c_capped'), stepped.most_of('c_free')) == (at_once, 4)


def test_the_cap_of_a_flow_does_not_make_loops_parallel(new_flow, stepped):       # semantics 4.1
    flow = new_flow(task_construct=stepped, max_concurrent=4)
    container = flow.add_step('c', loop=range(3))
    container.add_step('a', func=do_nothing)
    flow.add_step('leaf', func=do_nothing, loop=range(3))

    assert flow.run() is True

    assert (stepped.most_of('c_a'), stepped.most_of('leaf')) == (1, 1)


def test_the_cap_of_a_container_is_not_inherited_by_what_is_in_it(new_flow, stepped):
    flow = new_flow(task_construct=stepped, max_concurrent=0)             # semantics 4.1
    outer = flow.add_step('o', loop=range(2), config={'max_concurrent': 2})
    outer.add_step('c', loop=range(3)).add_step('a', func=do_nothing)

    assert flow.run() is True

    assert stepped.most_of('o_c_a') == 2      # one of each iteration of o


def test_the_cap_of_the_flow_holds_for_iterations_in_flight_too(new_flow, stepped):
    flow = new_flow(task_construct=stepped, max_concurrent=2)             # semantics 4.1
    container = flow.add_step('c', loop=range(4), config={'max_concurrent': 4})
    container.add_step('a', func=do_nothing)

    assert flow.run() is True

    assert stepped.most == 2


# Order (4.2) #####################################################################


def test_ties_start_in_the_order_in_which_steps_were_added(new_flow, stepped):    # semantics 4.2
    flow = new_flow(task_construct=stepped, max_concurrent=1)
    container = flow.add_step('c')
    flow.add_step('z', func=do_nothing)
    flow.add_step('a', func=do_nothing)
    container.add_step('m', func=do_nothing)
    gate = flow.add_step('gate', func=None)
    for name in 'yxb':
        flow.add_step(name, func=do_nothing, require=gate)

    assert flow.run() is True

    assert [name for name in stepped.started if name != 'c_m@1.1'] == [
        'z@1', 'a@1', 'y@1', 'x@1', 'b@1']


def test_tasks_start_in_the_order_in_which_they_became_ready(new_flow, stepped):  # semantics 4.2
    flow = new_flow(task_construct=stepped, max_concurrent=1)
    a, b = (flow.add_step(name, func=do_nothing) for name in 'ab')
    flow.add_step('after_b', func=do_nothing, require=b)
    flow.add_step('after_a', func=do_nothing, require=a)

    assert flow.run() is True

    assert stepped.started == ['a@1', 'b@1', 'after_a@1', 'after_b@1']


# Resources (4.3) #################################################################


def test_a_pool_is_never_asked_for_more_than_it_has(new_flow, stepped):   # semantics 4.3
    pool = seq.ResourcePool('tapes', 3)
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    for name, amount in (('a1', 1), ('b2', 2), ('c1', 1), ('d3', 3), ('e2', 2)):
        flow.add_step(name, func=do_nothing, acquires=[(pool, amount)])

    assert flow.run() is True

    assert stepped.seen == [['a1@1', 'b2@1'], ['b2@1', 'c1@1'], ['c1@1'], ['d3@1'], ['e2@1']]


@on_parallel_constructs
def test_what_a_pool_allows_runs_side_by_side(new_flow, trace, construct):        # semantics 4.3
    pool = seq.ResourcePool('tapes', 2)
    flow = new_flow(task_construct=construct, max_concurrent=0)
    flow.add_step('a', func=trace.meet, args=('b@1',), acquires=[(pool, 1)])
    flow.add_step('b', func=trace.meet, args=('a@1',), acquires=[(pool, 1)])
    flow.add_step('c', func=trace.run, acquires=[(pool, 2)])

    assert flow.run() is True

    assert trace.lines[-1] == 'c@1'


def test_resources_are_granted_all_or_nothing(new_flow, stepped):         # semantics 4.3
    tapes, disks = seq.ResourcePool('tapes', 1), seq.ResourcePool('disks', 2)
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    flow.add_step('a', func=do_nothing, acquires=[(tapes, 1), (disks, 1)])
    flow.add_step('both', func=do_nothing, acquires=[(disks, 1), (tapes, 1)])

    assert flow.run() is True

    assert stepped.seen == [['a@1'], ['both@1']]


def test_a_large_request_is_not_starved_by_small_ones(new_flow, stepped): # semantics 4.3
    pool, other = seq.ResourcePool('tapes', 2), seq.ResourcePool('disks', 1)
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    flow.add_step('first', func=do_nothing, acquires=[(pool, 1)])
    flow.add_step('large', func=do_nothing, acquires=[(pool, 2)])
    flow.add_step('small', func=do_nothing, acquires=[(pool, 1)])
    flow.add_step('elsewhere', func=do_nothing, acquires=[(other, 1)])

    assert flow.run() is True

    assert stepped.seen == [['first@1', 'elsewhere@1'], ['elsewhere@1', 'large@1'], ['large@1'],
                            ['small@1']]


def run_after(new_flow, stepped, releases, asked):
    """Run a step that acquires 2 of 3, then one that asks for so many; return its status."""
    pool = seq.ResourcePool('tapes', 3)
    flow = new_flow(task_construct=stepped)
    first = flow.add_step('first', func=do_nothing, acquires=[(pool, 2)],
                          releases=releases and [(pool, one) for one in releases])
    flow.add_step('second', func=do_nothing, require=first, acquires=[(pool, asked)])
    flow.run()
    return task_of(flow, 'second').status


@pytest.mark.parametrize('releases, left', [(None, 3), ([], 1), ([1], 2), ([2], 3), ([1, 1], 3)])
def test_releases_says_what_is_given_back(memory_flow, stepped, releases, left):  # semantics 4.3
    assert run_after(memory_flow, stepped, releases, left) == 'success'
    if left < 3:
        assert run_after(memory_flow, stepped, releases, left + 1) == 'failure'


def test_a_step_may_give_back_what_another_has_kept(new_flow, stepped):   # semantics 4.3
    pool = seq.ResourcePool('tapes', 2)
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    mount = flow.add_step('mount', func=do_nothing, acquires=[(pool, 2)], releases=[])
    work = flow.add_step('work', func=do_nothing, require=mount)
    flow.add_step('other', func=do_nothing, acquires=[(pool, 2)])
    flow.add_step('unmount', func=do_nothing, require=work, releases=[(pool, 2)])

    assert flow.run() is True

    assert stepped.started == ['mount@1', 'work@1', 'unmount@1', 'other@1']


def test_a_failed_task_gives_back_what_it_has_acquired(new_flow, stepped):        # semantics 4.3
    pool = seq.ResourcePool('tapes', 1)
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    bad = flow.add_step('bad', func=fail, acquires=[(pool, 1)])
    flow.add_step('handler', handles=True, func=do_nothing, require=(bad, STEP_FAILURE),
                  acquires=[(pool, 1)])

    assert flow.run() is True

    assert stepped.started == ['bad@1', 'handler@1']


def test_a_container_holds_resources_from_before_its_first_to_after_its_last_iteration(
        new_flow, stepped):                                               # semantics 4.3
    pool = seq.ResourcePool('tapes', 1)
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    flow.add_step('before', func=do_nothing, acquires=[(pool, 1)])
    container = flow.add_step('c', loop=range(2), acquires=[(pool, 1)])
    container.add_step('a', func=do_nothing)
    flow.add_step('after', func=do_nothing, acquires=[(pool, 1)])

    assert flow.run() is True

    assert stepped.seen == [['before@1'], ['c_a@1.1'], ['c_a@1.2'], ['after@1']]


@pytest.mark.parametrize('cap', [1, 0])
def test_a_container_that_is_stopped_gives_back_its_resources(            # semantics 4.3
        new_flow, stepped, cap):
    pool = seq.ResourcePool('tapes', 1)
    flow = new_flow(task_construct=stepped, max_concurrent=cap)
    outer = flow.add_step('o')
    outer.add_step('bad', func=fail)
    held = outer.add_step('c', loop=range(2), acquires=[(pool, 1)])
    held.add_step('a', func=do_nothing)
    flow.add_step('handler', handles=True, func=do_nothing, require=(outer, STEP_FAILURE),
                  acquires=[(pool, 1)])

    assert flow.run() is True

    assert stepped.started[-1] == 'handler@1'
    assert 'o_c_a@1.1.2' not in stepped.started


def test_what_is_held_along_a_path_may_not_exceed_the_limit(flow, trace): # semantics 4.3
    pool = seq.ResourcePool('tapes', 3)
    flow.add_step('first', func=trace.run)
    container = flow.add_step('c', acquires=[(pool, 2)])
    container.add_step('d').add_step('a', func=trace.run, acquires=[(pool, 2)])

    with pytest.raises(seq.FlowError) as caught:
        flow.run()

    for name in ("'tapes'", "'c_d_a'", "'c'"):
        assert name in str(caught.value)
    assert trace.lines == []


def test_what_is_held_along_a_path_may_reach_the_limit(new_flow, trace):  # semantics 4.3
    pool = seq.ResourcePool('tapes', 3)
    flow = new_flow()
    container = flow.add_step('c', acquires=[(pool, 2)])
    container.add_step('a', func=trace.run, acquires=[(pool, 1)], loop=range(2))

    assert flow.run() is True

    assert trace.lines == ['c_a@1.1.1', 'c_a@1.1.2']


def two_that_wait_for_each_other(new_flow, stepped, **config):
    """A flow in which two containers hold all there is, and in each a step asks for more."""
    pool = seq.ResourcePool('tapes', 2)
    flow = new_flow(task_construct=stepped, max_concurrent=0, **config)
    containers = [flow.add_step(name, acquires=[(pool, 1)]) for name in ('one', 'two')]
    for container in containers:
        container.add_step('more', func=do_nothing, acquires=[(pool, 1)])
    return flow, containers


def test_when_all_wait_for_resources_the_first_fails_and_names_pools_and_holders(
        new_flow, stepped):                                               # semantics 4.3
    flow, _ = two_that_wait_for_each_other(new_flow, stepped)

    assert flow.run() is False

    assert stepped.started == []
    task = task_of(flow, 'one_more', '1.1')
    assert task.status == 'failure'
    assert 'tapes' in task.error and 'one' in task.error and 'two' in task.error


def test_who_fails_for_want_of_resources_is_not_tried_again(new_flow, stepped):
    # semantics 4.8
    flow, _ = two_that_wait_for_each_other(new_flow, stepped, retries=3)

    assert flow.run() is False

    assert task_of(flow, 'one_more', '1.1').attempt == 1
    assert task_of(flow, 'one_more', '1.1').status == 'failure'


def test_when_all_wait_for_resources_a_handled_failure_lets_the_others_go_on(
        new_flow, stepped):                                               # semantics 4.3
    flow, containers = two_that_wait_for_each_other(new_flow, stepped)
    flow.add_step('handler', handles=True, func=do_nothing,
                  require=(containers[0], STEP_FAILURE))

    assert flow.run() is True

    assert sorted(stepped.started) == ['handler@1', 'two_more@1.1']


def test_nothing_fails_for_want_of_resources_while_a_delay_goes_on(new_flow, stepped):
    pool = seq.ResourcePool('tapes', 1)                                   # semantics 4.3
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    mount = flow.add_step('mount', func=do_nothing, acquires=[(pool, 1)], releases=[])
    flow.add_step('waiting', func=do_nothing, require=mount, acquires=[(pool, 1)])
    flow.add_step('unmount', func=do_nothing, require=mount, delay=0.05, releases=[(pool, 1)])

    assert flow.run() is True

    assert stepped.started == ['mount@1', 'unmount@1', 'waiting@1']


def test_what_waits_for_a_pool_takes_no_slot_of_a_cap(new_flow, stepped): # semantics 4.3
    pool = seq.ResourcePool('tapes', 1)
    flow = new_flow(task_construct=stepped, max_concurrent=2)
    flow.add_step('a', func=do_nothing, acquires=[(pool, 1)])
    flow.add_step('b', func=do_nothing, acquires=[(pool, 1)])
    flow.add_step('free', func=do_nothing)

    assert flow.run() is True

    assert stepped.seen[0] == ['a@1', 'free@1']


def test_what_waits_for_a_cap_holds_nothing_of_a_pool(new_flow, stepped): # semantics 4.3
    pool = seq.ResourcePool('tapes', 2)
    flow = new_flow(task_construct=stepped, max_concurrent=1)
    held = flow.add_step('a', func=do_nothing, acquires=[(pool, 1)])
    flow.add_step('b', func=do_nothing, acquires=[(pool, 1)])
    flow.add_step('large', func=do_nothing, require=(held, STEP_ACTIVE), acquires=[(pool, 2)])

    assert flow.run() is True

    assert stepped.started == ['a@1', 'b@1', 'large@1']


def test_giving_back_more_than_is_out_fails_the_task(new_flow, trace):    # semantics 4.3
    pool = seq.ResourcePool('tapes', 2)
    flow = new_flow()
    flow.add_step('a', func=trace.run, acquires=[(pool, 1)], releases=[(pool, 2)])

    assert flow.run() is False

    task = task_of(flow, 'a')
    assert task.status == 'failure' and 'tapes' in task.error


def test_a_task_skipped_in_recovery_takes_what_it_had_not_given_back(     # semantics 4.3
        new_flow, stepped):
    def build(**given):
        pool = seq.ResourcePool('tapes', 2)
        flow = new_flow(task_construct=stepped, **given)
        mount = flow.add_step('mount', func=do_nothing, acquires=[(pool, 1)], releases=[])
        work = flow.add_step('work', func=do_nothing if given else fail, require=mount)
        flow.add_step('more', func=do_nothing, require=work, acquires=[(pool, 2)])
        return flow

    assert build().run() is False
    recovery = build(run_mode=seq.RUN_RECOVER)
    assert recovery.run() is False

    assert stepped.started == ['mount@1', 'work@1', 'work@1']
    assert 'tapes' in task_of(recovery, 'more').error
    assert 'mount' in task_of(recovery, 'more').error


# Delays (4.4) ####################################################################


@on_all_constructs
def test_a_delay_passes_before_the_task_becomes_ready(memory_flow, construct):    # semantics 4.4
    flow = memory_flow(task_construct=construct)
    first = flow.add_step('first', func=do_nothing)
    late = flow.add_step('late', func=do_nothing, require=first, delay=0.15)
    flow.add_step('on_ready', func=do_nothing, require=(late, STEP_READY))

    assert flow.run() is True

    due = task_of(flow, 'first').end + 0.15
    assert due - 0.001 <= task_of(flow, 'late').start < due + 10
    assert due - 0.001 <= task_of(flow, 'on_ready').start


def test_a_container_can_be_delayed(new_flow):                            # semantics 4.4
    flow = new_flow()
    first = flow.add_step('first', func=do_nothing)
    late = flow.add_step('late', require=first, delay=0.05, loop=range(2))
    late.add_step('a', func=do_nothing, delay=0.05)

    assert flow.run() is True

    starts = [task_of(flow, 'late_a', sequence).start for sequence in ('1.1', '1.2')]
    assert starts[0] >= task_of(flow, 'first').end + 0.099
    assert starts[1] >= task_of(flow, 'late_a', '1.1').end + 0.049


def recorded_due(store, path):
    store.open()
    try:
        return next(record.due for record in store.tasks(store.latest('flow'))
                    if record.path == path)
    finally:
        store.close()


@pytest.mark.parametrize('mode', [seq.RUN_CONTINUE, seq.RUN_RECOVER])
def test_a_delay_does_not_start_again_with_another_supervisor(            # semantics 4.4
        tmp_path, trace, mode):
    def build(**given):
        flow = seq.Sequent('flow', str(tmp_path / 'flow.db'),
                           config={'task_construct': 'inline'}, **given)
        first = flow.add_step('first', func=trace.run)
        flow.add_step('late', func=trace.run, require=first, delay=3600)
        return flow

    with build() as flow:
        flow.run(max_loops=1)
        left = flow.count_todos()[1]
    due = recorded_due(flow.store, 'late')
    with build(run_mode=mode) as flow:
        flow.run(max_loops=1)
        left_again = flow.count_todos()[1]

    assert recorded_due(flow.store, 'late') == due
    assert 3000 < left_again < left <= 3600
    assert trace.lines == ['first@1']


@pytest.mark.long
def test_a_delay_that_was_over_while_nobody_was_there_is_over(            # semantics 4.4
        tmp_path, trace):
    def build(**given):
        flow = seq.Sequent('flow', str(tmp_path / 'flow.db'),
                           config={'task_construct': 'inline'}, **given)
        late = flow.add_step('late', func=trace.run, delay=1)
        flow.add_step('later', func=trace.run, require=late, delay=3600)
        return flow

    with build() as flow:
        flow.run(max_loops=1)
    assert trace.lines == []
    due = recorded_due(flow.store, 'late')
    wait_for(lambda: time.time() > due, 'the delay to be over')
    with build(run_mode=seq.RUN_CONTINUE) as flow:
        flow.run(max_loops=1)

    assert trace.lines == ['late@1']


def test_waiting_for_a_delay_costs_no_cpu(memory_flow):                   # semantics 4.4
    flow = memory_flow(sleep_between_loops=0.0)
    flow.add_step('late', func=do_nothing, delay=0.8)
    began, worked = time.monotonic(), time.process_time()

    assert flow.run() is True

    assert time.monotonic() - began > 0.8
    assert time.process_time() - worked < 0.1


# Waiting (4.5) ###################################################################


@on_all_constructs
def test_the_end_of_a_task_is_noticed_at_once(new_flow, trace, construct):        # semantics 4.5
    flow = new_flow(task_construct=construct, sleep_between_loops=1000)
    last = ()
    for number in range(4):
        last = flow.add_step('s%d' % number, func=trace.run, require=last)
    began = time.monotonic()

    assert flow.run() is True

    assert trace.lines == ['s0@1', 's1@1', 's2@1', 's3@1']
    assert time.monotonic() - began < 100


def test_the_death_of_a_process_is_noticed_at_once(memory_flow):          # semantics 4.5
    flow = memory_flow(task_construct='process', sleep_between_loops=1000)
    flow.add_step('a', func=os._exit, args=(1,))
    began = time.monotonic()

    assert flow.run() is False

    assert time.monotonic() - began < 100


def test_what_cannot_wake_the_supervisor_is_polled(memory_flow):          # semantics 4.5
    class PolledConstruct(seq.TaskConstruct):
        """Its tasks end when it is polled for the third time."""

        polls = True

        def open(self, port):
            self.port, self.jobs, self.polled = port, [], 0

        def release(self, jobs):
            self.jobs.extend(jobs)

        def poll(self):
            self.polled += 1
            while self.polled >= 3 and self.jobs:
                self.port.done(self.jobs.pop(), seq.Outcome('success'))

    polled = PolledConstruct()
    flow = memory_flow(task_construct=polled, sleep_between_loops=0.05)
    flow.add_step('a', func=do_nothing)
    began = time.monotonic()

    assert flow.run() is True

    assert polled.polled >= 3
    assert 0.14 < time.monotonic() - began < 30


def test_a_stepped_flow_is_a_fair_witness(new_flow):
    """The construct that these tests rely on sees what runs side by side, and in which order."""
    stepped = SteppedConstruct(last_first=True)
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    a = flow.add_step('a', func=do_nothing)
    flow.add_step('b', func=do_nothing)
    flow.add_step('c', func=do_nothing, require=a)

    assert flow.run() is True

    assert stepped.seen == [['a@1', 'b@1'], ['a@1'], ['c@1']]
    assert statuses(flow) == {'a@1': 'success', 'b@1': 'success', 'c@1': 'success'}


# Threads for which tasks are queued ################################################


def queued_threads(n, func, **config):
    flow = seq.Sequent('etl', ':memory:', config=dict(config, task_construct='thread',
                                                      max_concurrent=2))
    for number in range(n):
        flow.add_step('s%d' % number, func=func, args=(number,))
    return flow


def test_of_queued_threads_no_more_run_than_the_cap_says():    # semantics 4.1
    running, most, calls = set(), [], []

    def one(number):
        running.add(number)
        most.append(len(running))
        time.sleep(0.0002)
        calls.append(number)
        running.discard(number)
    assert queued_threads(500, one)() is True
    assert max(most) == 2 and sorted(calls) == list(range(500))


def test_of_queued_threads_none_begins_when_a_failure_has_stopped_the_flow():    # semantics 3.4
    calls = []

    def one(number):
        calls.append(number)
        if number == 200:
            raise ValueError('as it must')
    threads = set(threading.enumerate())
    flow = queued_threads(3000, one)
    assert flow() is False
    called = len(calls)
    statuses = collections.Counter(str(task.status) for task in flow.tasks())
    assert statuses['failure'] == 1 and statuses['success'] == called - 1
    assert set(statuses) <= {'failure', 'success', 'ready'} and sum(statuses.values()) == 3000
    wait_for(lambda: set(threading.enumerate()) <= threads, 'the end of the threads')
    assert len(calls) == called
