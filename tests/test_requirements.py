"""Requirements and events (semantics 2)."""

import itertools

import pytest

pytest_plugins = ['flowtools']

import sequent as seq  # noqa: E402
from flowtools import (  # noqa: E402
    SteppedConstruct, do_nothing, executed_lines, on_all_constructs, on_parallel_constructs)
from sequent import (  # noqa: E402
    STEP_ACTIVE, STEP_COMPLETE, STEP_FAILURE, STEP_READY, STEP_SUCCESS, or_)


def ok_bad_never(flow, trace):
    """Add a step that succeeds, one that fails (which is made good), and one that never runs."""
    ok = flow.add_step('ok', func=do_nothing)
    bad = flow.add_step('bad', func=lambda: 1 / 0)
    never = flow.add_step('never', func=trace.run, require=(ok, STEP_FAILURE))
    flow.add_step('handler', handles=True, func=do_nothing, require=(bad, STEP_FAILURE))
    return ok, bad, never


# Expressions (2.1) ###############################################################

HOLD = {
    'a step': lambda ok, bad, never: ok,
    'a pair': lambda ok, bad, never: (bad, STEP_FAILURE),
    'a pair as a list': lambda ok, bad, never: [bad, STEP_FAILURE],
    'a pair with a str': lambda ok, bad, never: (bad, 'failure'),
    'complete of a failure': lambda ok, bad, never: (bad, STEP_COMPLETE),
    'complete of a success': lambda ok, bad, never: (ok, STEP_COMPLETE),
    'nothing': lambda ok, bad, never: (),
    'an empty list': lambda ok, bad, never: [],
    'and of one': lambda ok, bad, never: (ok,),
    'and of a pair': lambda ok, bad, never: ((bad, STEP_FAILURE),),
    'and of two steps': lambda ok, bad, never: (ok, ok),
    'and of a step and a pair': lambda ok, bad, never: (ok, (bad, STEP_FAILURE)),
    'and as a list': lambda ok, bad, never: [ok, [bad, STEP_FAILURE]],
    'and in and': lambda ok, bad, never: (ok, (ok, (ok, (bad, STEP_COMPLETE)))),
    'or, first': lambda ok, bad, never: or_(ok, never),
    'or, second': lambda ok, bad, never: or_(never, ok),
    'or, last of many': lambda ok, bad, never: or_(never, bad, (ok, STEP_FAILURE), ok),
    'or of a pair': lambda ok, bad, never: or_((bad, STEP_FAILURE)),
    'or of and': lambda ok, bad, never: or_((ok, never), (ok, (bad, STEP_FAILURE))),
    'or of and as a list': lambda ok, bad, never: or_([ok, never], [ok, ok]),
    'and of or': lambda ok, bad, never: (or_(never, ok), or_((bad, STEP_FAILURE), never)),
    'or of or': lambda ok, bad, never: or_(or_(never, bad), or_(never, or_(ok))),
    'deep': lambda ok, bad, never: [or_((never, ok), [ok, or_(never, (ok, [ok]))])],
}

HOLD_NOT = {
    'a step that failed': lambda ok, bad, never: bad,
    'a step that never ran': lambda ok, bad, never: never,
    'failure of a success': lambda ok, bad, never: (ok, STEP_FAILURE),
    'readiness of what never ran': lambda ok, bad, never: (never, STEP_READY),
    'completeness of what never ran': lambda ok, bad, never: (never, STEP_COMPLETE),
    'and, first missing': lambda ok, bad, never: (never, ok),
    'and, last missing': lambda ok, bad, never: (ok, ok, never),
    'and as a list': lambda ok, bad, never: [ok, never],
    'and of pairs': lambda ok, bad, never: ((ok, STEP_SUCCESS), (bad, STEP_SUCCESS)),
    'and in and': lambda ok, bad, never: (ok, (ok, (ok, never))),
    'or of none that holds': lambda ok, bad, never: or_(never, bad, (ok, STEP_FAILURE)),
    'or of and': lambda ok, bad, never: or_((ok, never), (bad, ok)),
    'and of or': lambda ok, bad, never: (or_(never, ok), or_(never, bad)),
}


@pytest.mark.parametrize('expression', sorted(HOLD))
def test_a_step_runs_once_when_its_requirement_holds(                     # semantics 2.1
        new_flow, trace, expression):
    flow = new_flow()
    steps = ok_bad_never(flow, trace)
    flow.add_step('step', func=trace.run, require=HOLD[expression](*steps))

    assert flow.run() is True

    assert trace.lines == ['step@1']


@pytest.mark.parametrize('expression', sorted(HOLD_NOT))
def test_a_step_does_not_run_when_its_requirement_does_not_hold(          # semantics 2.1
        new_flow, trace, expression):
    flow = new_flow()
    steps = ok_bad_never(flow, trace)
    flow.add_step('step', func=trace.run, require=HOLD_NOT[expression](*steps))

    assert flow.run() is True

    assert trace.lines == []


@pytest.mark.parametrize('expression', sorted(HOLD))
def test_an_event_holds_as_its_expression_does(memory_flow, trace, expression):   # semantics 2.1
    flow = memory_flow()
    event = flow.add_event(HOLD[expression](*ok_bad_never(flow, trace)))
    flow.add_step('alone', func=trace.run, require=event)
    flow.add_step('in_and', func=trace.run, require=(event, flow.add_event()))

    assert flow.run() is True

    assert sorted(trace.lines) == ['alone@1', 'in_and@1']


@pytest.mark.parametrize('expression', sorted(HOLD_NOT))
def test_an_event_does_not_hold_when_its_expression_does_not(             # semantics 2.1
        memory_flow, trace, expression):
    flow = memory_flow()
    event = flow.add_event(HOLD_NOT[expression](*ok_bad_never(flow, trace)))
    flow.add_step('alone', func=trace.run, require=event)
    flow.add_step('in_or', func=trace.run, require=or_(event, event))

    assert flow.run() is True

    assert trace.lines == []


@on_all_constructs
def test_and_or_and_pairs_hold_with_every_construct(memory_flow, trace, construct):
    flow = memory_flow(task_construct=construct)                          # semantics 2.1
    ok, bad, never = ok_bad_never(flow, trace)
    flow.add_step('step', func=trace.run, require=(or_(never, ok), (bad, STEP_FAILURE)))

    assert flow.run() is True

    assert trace.lines == ['step@1']


def test_a_step_waits_for_all_operands_of_and(new_flow, stepped):         # semantics 2.1
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    flow.add_step('c', func=do_nothing, require=[
        flow.add_step('a', func=do_nothing), flow.add_step('b', func=do_nothing)])

    flow.run()

    assert stepped.seen == [['a@1', 'b@1'], ['b@1'], ['c@1']]


def test_a_step_waits_for_only_one_operand_of_or(new_flow, stepped):      # semantics 2.1
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    flow.add_step('c', func=do_nothing, require=or_(
        flow.add_step('a', func=do_nothing), flow.add_step('b', func=do_nothing)))

    flow.run()

    assert stepped.seen == [['a@1', 'b@1'], ['b@1', 'c@1'], ['c@1']]


# Statuses (2.2) ##################################################################


@on_parallel_constructs
def test_active_can_be_required_of_a_step_that_is_running(                # semantics 2.2
        new_flow, trace, construct):
    flow = new_flow(task_construct=construct)
    running = flow.add_step('a', func=trace.meet, args=('b@1',))
    flow.add_step('b', func=trace.run, require=(running, STEP_ACTIVE))

    assert flow.run() is True

    assert sorted(trace.lines) == ['a@1', 'b@1']


def test_active_is_not_raised_before_the_step_starts(new_flow, stepped):  # semantics 2.2
    flow = new_flow(task_construct=stepped, max_concurrent=1)
    flow.add_step('a', func=do_nothing)
    second = flow.add_step('b', func=do_nothing)
    flow.add_step('c', func=do_nothing)
    flow.add_step('late', func=do_nothing, require=(second, STEP_ACTIVE))

    flow.run()

    assert stepped.started == ['a@1', 'b@1', 'c@1', 'late@1']


def test_ready_is_raised_before_the_step_can_start(new_flow, stepped):    # semantics 2.2
    pool = seq.ResourcePool('p', 1)
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    flow.add_step('holder', func=do_nothing, acquires=[(pool, 1)])
    waiting = flow.add_step('waiting', func=do_nothing, acquires=[(pool, 1)])
    flow.add_step('on_ready', func=do_nothing, require=(waiting, STEP_READY))
    flow.add_step('on_active', func=do_nothing, require=(waiting, STEP_ACTIVE))

    assert flow.run() is True

    assert stepped.seen[0] == ['holder@1', 'on_ready@1']
    assert stepped.started.index('on_active@1') > stepped.started.index('waiting@1')


def test_success_failure_and_complete_tell_outcomes_apart(new_flow, trace):   # semantics 2.2
    flow = new_flow()
    ok, bad, _ = ok_bad_never(flow, trace)
    for step, status in itertools.product((ok, bad), ('success', 'failure', 'complete')):
        flow.add_step('%s_%s' % (step.name, status), func=trace.run, require=(step, status))

    assert flow.run() is True

    assert sorted(trace.lines) == ['bad_complete@1', 'bad_failure@1', 'ok_complete@1',
                                   'ok_success@1']


@pytest.mark.parametrize('status', ['ready', 'active', 'success', 'complete'])
def test_every_status_can_be_required_of_a_container(new_flow, trace, status):    # semantics 2.2
    flow = new_flow()
    container = flow.add_step('c')
    container.add_step('a', func=trace.run)
    flow.add_step('b', func=trace.run, require=(container, status))

    assert flow.run() is True

    assert sorted(trace.lines) == ['b@1', 'c_a@1.1']
    if status in ('success', 'complete'):
        assert trace.lines == ['c_a@1.1', 'b@1']


# Starts (2.3) ####################################################################


def test_a_step_starts_once_though_its_requirement_comes_to_hold_twice(new_flow, trace):
    flow = new_flow()                                                     # semantics 2.3
    a = flow.add_step('a', func=trace.run)
    b = flow.add_step('b', func=trace.run)
    flow.add_step('c', func=trace.run, require=or_(
        (a, STEP_READY), (a, STEP_ACTIVE), a, (b, STEP_COMPLETE), b, (a, b)))

    assert flow.run() is True

    assert sorted(trace.lines) == ['a@1', 'b@1', 'c@1']


def test_a_step_starts_once_for_each_sequence(new_flow, trace):           # semantics 2.3
    flow = new_flow()
    container = flow.add_step('c', loop=range(2))
    a = container.add_step('a', func=trace.run)
    container.add_step('b', func=trace.run, require=or_(a, (a, STEP_COMPLETE)))

    assert flow.run() is True

    assert trace.lines == ['c_a@1.1', 'c_b@1.1', 'c_a@1.2', 'c_b@1.2']


@on_parallel_constructs
def test_steps_without_a_requirement_start_with_the_iteration(            # semantics 2.3
        new_flow, trace, construct):
    flow = new_flow(task_construct=construct, max_concurrent=2)
    container = flow.add_step('c', loop=range(2))
    container.add_step('a', func=lambda: trace.meet('c_b@' + seq.current().sequence))
    container.add_step('b', func=lambda: trace.meet('c_a@' + seq.current().sequence))

    assert flow.run() is True

    assert [set(trace.lines[:2]), set(trace.lines[2:])] == [
        {'c_a@1.%d' % number, 'c_b@1.%d' % number} for number in (1, 2)]


# Events (2.4) ####################################################################


def test_events_can_be_added_to_the_flow_and_to_steps(new_flow, trace):   # semantics 2.4
    flow = new_flow()
    container = flow.add_step('c')
    a = container.add_step('a', func=trace.run)
    done = container.add_event(a)
    container.add_step('b', func=trace.run, require=done)
    over = flow.add_event((container, STEP_COMPLETE))
    flow.add_step('d', func=trace.run, require=over)

    assert flow.run() is True

    assert trace.lines == ['c_a@1.1', 'c_b@1.1', 'd@1']


def test_events_can_be_made_of_events(new_flow, trace):                   # semantics 2.4
    flow = new_flow()
    ok, bad, never = ok_bad_never(flow, trace)
    either = flow.add_event(or_(never, ok))
    both = flow.add_event((either, (bad, STEP_FAILURE)))
    flow.add_step('runs', func=trace.run, require=[both, either])
    flow.add_step('not', func=trace.run, require=(both, flow.add_event(never)))

    assert flow.run() is True

    assert trace.lines == ['runs@1']


def test_an_event_is_read_at_the_sequence_where_it_is_used(new_flow, trace):      # semantics 2.4
    flow = new_flow()
    first = flow.add_step('first', func=do_nothing)
    container = flow.add_step('c', loop=range(3))
    a = container.add_step('a', func=trace.fail_at, args=('1.2',))
    failed = flow.add_event(((a, STEP_FAILURE), first))      # added outside of c, used inside
    container.add_step('b', handles=True, func=trace.run, require=failed)

    assert flow.run() is True

    assert trace.lines == ['c_a@1.1', 'c_a@1.2', 'c_b@1.2', 'c_a@1.3']


def test_an_event_used_where_its_expression_could_not_stand_is_an_error(flow):    # semantics 2.4
    container = flow.add_step('load')
    event = container.add_event(container.add_step('part', func=do_nothing))
    flow.add_step('after', func=do_nothing, require=event)

    with pytest.raises(seq.FlowError, match="require.*'load'"):
        flow.run()


def test_an_event_that_nobody_uses_may_say_anything(new_flow, trace):     # semantics 2.4
    flow = new_flow()
    container = flow.add_step('c')
    container.add_event(container.add_step('a', func=trace.run))

    assert flow.run() is True

    assert trace.lines == ['c_a@1.1']


# Scopes (2.5) ####################################################################


def test_a_sibling_is_read_at_the_steps_own_sequence(new_flow, trace):    # semantics 2.5
    flow = new_flow()
    outer = flow.add_step('o', loop=range(2))
    container = outer.add_step('c', loop=range(2))
    a = container.add_step('a', func=trace.fail_at, args=('1.1.2', '1.2.1'))
    container.add_step('good', func=trace.run, require=a)
    container.add_step('bad', handles=True, func=trace.run, require=(a, STEP_FAILURE))

    assert flow.run() is True

    assert [line for line in trace.lines if 'o_c_a' not in line] == [
        'o_c_good@1.1.1', 'o_c_bad@1.1.2', 'o_c_bad@1.2.1', 'o_c_good@1.2.2']


def test_siblings_of_concurrent_iterations_do_not_mix(new_flow):          # semantics 2.5
    stepped = SteppedConstruct(last_first=True)
    flow = new_flow(task_construct=stepped, max_concurrent=0)
    container = flow.add_step('c', loop=range(3), config={'max_concurrent': 0})
    a = container.add_step('a', func=do_nothing)
    container.add_step('b', func=do_nothing, require=a)

    assert flow.run() is True

    assert stepped.started == ['c_a@1.1', 'c_a@1.2', 'c_a@1.3', 'c_b@1.3', 'c_b@1.2', 'c_b@1.1']


def test_a_step_further_out_is_read_at_its_shorter_sequence(new_flow, trace):     # semantics 2.5
    flow = new_flow()
    outer = flow.add_step('o', loop=range(2))
    first = outer.add_step('first', func=trace.fail_at, args=('1.2',))
    container = outer.add_step('c', loop=range(2))
    container.add_step('good', func=trace.run, require=first)
    container.add_step('bad', func=trace.run, require=(first, STEP_FAILURE))
    outer.add_step('handler', handles=True, func=do_nothing, require=(first, STEP_FAILURE))

    assert flow.run() is True

    assert trace.lines == [
        'o_first@1.1', 'o_c_good@1.1.1', 'o_c_good@1.1.2',
        'o_first@1.2', 'o_c_bad@1.2.1', 'o_c_bad@1.2.2']


def test_a_step_two_levels_out_is_waited_for_in_every_iteration(new_flow, trace):
    flow = new_flow(max_concurrent=1)                                     # semantics 2.5
    container = flow.add_step('o').add_step('c', loop=range(2))
    far = flow.add_step('far', func=trace.run)
    container.add_step('a', func=trace.run)
    container.add_step('b', func=trace.run, require=far)

    assert flow.run() is True

    assert sorted(trace.lines) == ['far@1', 'o_c_a@1.1.1', 'o_c_a@1.1.2', 'o_c_b@1.1.1',
                                   'o_c_b@1.1.2']
    assert trace.lines.index('far@1') < trace.lines.index('o_c_b@1.1.1')


def require_child(flow, inner):
    flow.add_step('after', func=do_nothing, require=inner)


def require_cousin(flow, inner):
    flow.add_step('other').add_step('after', func=do_nothing, require=(inner, STEP_FAILURE))


def require_in_expression(flow, inner):
    ok = flow.add_step('ok', func=do_nothing)
    flow.add_step('after', func=do_nothing, require=or_(ok, (ok, (inner, STEP_COMPLETE))))


@pytest.mark.parametrize('add', [require_child, require_cousin, require_in_expression])
def test_requiring_a_step_inside_another_container_is_an_error_that_names_the_container(
        flow, trace, add):                                                # semantics 2.5
    flow.add_step('first', func=trace.run)
    inner = flow.add_step('load').add_step('part').add_step('file', func=do_nothing)

    with pytest.raises(seq.FlowError) as caught:
        add(flow, inner)
        flow.run()

    assert "after'" in str(caught.value) and "'load'" in str(caught.value)
    assert trace.lines == []


def test_the_container_to_require_is_the_one_beside_the_step(flow):       # semantics 2.5
    outer = flow.add_step('o')
    inner = outer.add_step('load').add_step('part').add_step('file', func=do_nothing)
    outer.add_step('after', func=do_nothing, require=inner)

    with pytest.raises(seq.FlowError, match="'o_load'"):
        flow.run()


# Circles (2.6) ###################################################################


def requires(step, *expressions):
    """Let a step require something that was added after it."""
    step.require = seq.parse_expression(expressions, step.flow, 'step %r' % step.path)


def assert_circle(flow, *circles):
    """Running the flow is refused, with one of these texts."""
    with pytest.raises(seq.CycleError) as caught:
        flow.run()
    assert any(circle in str(caught.value) for circle in circles)


def rotations(*names):
    """Return a circle written from each of its members on."""
    return [' -> '.join(names[at:] + names[:at + 1]) for at in range(len(names))]


def test_steps_that_wait_for_one_another_are_refused_before_anything_starts(
        memory_flow, trace):                                              # semantics 2.6
    flow = memory_flow()
    flow.add_step('free', func=trace.run)
    a = flow.add_step('a', func=trace.run)
    b = flow.add_step('b', func=trace.run, require=(a, STEP_COMPLETE))
    c = flow.add_step('c', func=trace.run, require=b)
    requires(a, c)

    assert_circle(flow, *(rotations('a', 'b', 'c') + rotations('a', 'c', 'b')))

    assert trace.lines == []
    assert flow.tasks() == []


def test_a_step_that_requires_itself_is_a_circle(flow):                   # semantics 2.6
    a = flow.add_step('a', func=do_nothing)
    requires(a, a)

    assert_circle(flow, 'a -> a')


def test_a_circle_through_events_is_found(flow):                          # semantics 2.6
    a = flow.add_step('a', func=do_nothing)
    event = flow.add_event(flow.add_event((a, STEP_FAILURE)))
    b = flow.add_step('b', func=do_nothing, require=event)
    requires(a, or_(b))

    assert_circle(flow, *rotations('a', 'b'))


@pytest.mark.parametrize('status', ['success', 'failure', 'complete'])
def test_a_step_that_requires_the_end_of_its_own_container_is_a_circle(flow, status):
    container = flow.add_step('c')                                        # semantics 2.6
    container.add_step('a', func=do_nothing, require=(container, status))

    assert_circle(flow, *rotations('c', 'c_a'))


@pytest.mark.parametrize('status', ['ready', 'active'])
def test_a_step_may_require_that_its_own_container_is_ready_or_active(    # semantics 2.6
        new_flow, trace, status):
    flow = new_flow()
    container = flow.add_step('c', loop=range(2))
    container.add_step('a', func=trace.run, require=(container, status))
    inner = container.add_step('d')
    inner.add_step('b', func=trace.run, require=((container, status), (inner, status)))

    assert flow.run() is True

    assert sorted(trace.lines) == ['c_a@1.1', 'c_a@1.2', 'c_d_b@1.1.1', 'c_d_b@1.2.1']


def test_a_circle_through_what_is_inside_a_container_is_found(flow):      # semantics 2.6
    container = flow.add_step('c')
    inner = container.add_step('d').add_step('a', func=do_nothing)
    after = flow.add_step('after', func=do_nothing, require=container)
    requires(inner, after)

    with pytest.raises(seq.CycleError, match='after') as caught:
        flow.run()
    assert 'c_d_a' in str(caught.value) and ' -> ' in str(caught.value)


def test_two_containers_that_wait_inside_for_each_other_are_a_circle(flow):   # semantics 2.6
    one, two = flow.add_step('one'), flow.add_step('two')
    one.add_step('a', func=do_nothing, require=two)
    two.add_step('b', func=do_nothing, require=one)

    with pytest.raises(seq.CycleError, match='one.*two.*one|two.*one.*two'):
        flow.run()


def test_a_circle_by_ready_and_active_is_found(flow):                     # semantics 2.6
    a = flow.add_step('a', func=do_nothing)
    b = flow.add_step('b', func=do_nothing, require=(a, STEP_READY))
    requires(a, (b, STEP_ACTIVE))

    assert_circle(flow, *rotations('a', 'b'))


def test_under_or_a_free_branch_prevents_a_circle(new_flow, trace):       # semantics 2.6
    flow = new_flow()
    free = flow.add_step('free', func=trace.run)
    a = flow.add_step('a', func=trace.run)
    b = flow.add_step('b', func=trace.run, require=a)
    requires(a, or_(b, free))

    assert flow.run() is True

    assert trace.lines == ['free@1', 'a@1', 'b@1']


def test_under_or_no_free_branch_is_a_circle(flow):                       # semantics 2.6
    free = flow.add_step('free', func=do_nothing)
    a = flow.add_step('a', func=do_nothing)
    b = flow.add_step('b', func=do_nothing, require=a)
    requires(a, or_(b, (free, (b, STEP_FAILURE))))

    assert_circle(flow, *rotations('a', 'b'))


def test_a_step_that_only_waits_for_a_circle_is_not_named_in_it(flow):    # semantics 2.6
    a = flow.add_step('a', func=do_nothing)
    b = flow.add_step('b', func=do_nothing, require=a)
    flow.add_step('behind', func=do_nothing, require=b)
    requires(a, b)

    with pytest.raises(seq.CycleError) as caught:
        flow.run()
    assert 'behind' not in str(caught.value)


def test_a_long_circle_is_found(flow):                                    # semantics 2.6
    first = last = flow.add_step('s0', func=do_nothing)
    for number in range(1, 3000):
        last = flow.add_step('s%d' % number, func=do_nothing, require=last)
    requires(first, last)

    with pytest.raises(seq.CycleError, match=' -> '):
        flow.run()


# Cost (2.7) ######################################################################


def join_of(flow, count):
    flow.add_step('join', func=None, require=[flow.add_step('s%d' % number, func=None)
                                              for number in range(count)])
    return flow.run


def chain_of(flow, count):
    last = ()
    for number in range(count):
        last = flow.add_step('s%d' % number, func=None, require=last)
    return flow.run


def loop_of(flow, count):
    container = flow.add_step('c', loop=range(count))
    container.add_step('b', func=None, require=container.add_step('a', func=None))
    return flow.run


@pytest.mark.parametrize('shape', [join_of, chain_of, loop_of])
def test_twice_as_many_requirements_cost_twice_as_much(memory_flow, shape):   # semantics 2.7
    small, large = (executed_lines(shape(memory_flow(store=':memory:'), count))
                    for count in (200, 400))

    assert large < 2.2 * small       # it would be 4 times as much if it were quadratic


def test_a_status_costs_nothing_for_expressions_that_do_not_mention_it(memory_flow):
    def cost(bystanders):                                                 # semantics 2.7
        flow = memory_flow(store=':memory:')
        first = flow.add_step('first', func=None)
        never = flow.add_step('never', func=None, require=(first, STEP_FAILURE))
        for number in range(bystanders):
            flow.add_step('bystander%d' % number, func=None, require=never)
        container = flow.add_step('c', loop=range(100))
        container.add_step('b', func=None, require=container.add_step('a', func=None))
        flow.compile()
        return executed_lines(flow.run)

    few, many = cost(1), cost(201)

    assert many - few < 100 * 201    # less than a line for each bystander in each iteration
