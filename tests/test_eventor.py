"""The layer below: semantics 9."""

import inspect
import logging
import threading

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    Calls, Line, a_flow, a_private_temporary_folder, construct, fail, journal, statuses, store,
    the_task)
from sequent import Eventor, FlowError, FlowTypeError, MemoryStore, or_  # noqa: E402


def an_eventor(store=':memory:', construct='inline', mode='restart', **given):
    config = {'task_construct': construct, 'start_method': 'fork', 'sleep_between_loops': 0.05}
    config.update(given.pop('config', {}))
    return Eventor('ev', store=store, run_mode=mode, config=config, **given)


def ran(flow):
    """Return [(path, sequence)] of what succeeded, in the order in which it came up."""
    return [(task.path, task.sequence) for task in flow.tasks() if task.status == 'success']


def test_the_interface_is_the_documented_one():
    # semantics 9
    def names(function):
        return list(inspect.signature(function).parameters)
    assert names(Eventor)[:7] == ['name', 'store', 'run_mode', 'recovery_run', 'logging_level',
                                  'config', 'run_id']
    flow = an_eventor()
    assert names(flow.add_event) == ['name', 'expr']
    assert set(names(flow.add_step)) == {'name', 'func', 'args', 'kwargs', 'triggers', 'recovery',
                                         'config', 'acquires', 'releases', 'command',
                                         'handles'}
    assert names(flow.add_assoc) == ['event', 'assocs', 'delay']
    assert names(flow.trigger_event) == ['event', 'sequence']
    assert inspect.signature(Eventor).parameters['logging_level'].default == logging.INFO


def a_chain(flow, func):
    """a, whose success starts b, whose success starts c."""
    events = [flow.add_event('run_' + name) for name in 'abc']
    for name, event, following in zip('abc', events, events[1:] + [None]):
        triggers = {'success': (following,)} if following else {}
        flow.add_assoc(event, flow.add_step(name, func=func, triggers=triggers))
    return events[0]


def test_events_start_steps_that_trigger_events(construct, store):
    # semantics 9
    flow = an_eventor(store, construct)
    start = a_chain(flow, lambda: sequent.current().sequence)
    flow.trigger_event(start, 3)
    assert flow() is True
    assert ran(flow) == [('a', '3'), ('b', '3'), ('c', '3')]
    assert [task.result for task in flow.tasks()] == ['3'] * 3
    flow.close()


# 9.1 Sequences

def test_an_event_is_raised_at_most_once_at_a_sequence(construct, store, journal):
    # semantics 9.1
    flow = an_eventor(store, construct)
    a, b = flow.add_event('a'), flow.add_event('b')
    both = flow.add_event('both')
    step = flow.add_step('s', func=journal.note, args=('s',))
    flow.add_assoc(a, both)
    flow.add_assoc(b, both)
    flow.add_assoc(both, step)
    for event in (a, a, b, both):
        flow.trigger_event(event, 1)
    assert flow() is True
    assert journal.words() == ['s']
    flow.close()


def test_what_an_event_raises_carries_its_sequence(store):
    # semantics 9.1
    flow = an_eventor(store)
    start = a_chain(flow, Calls())
    for sequence in (1, 7, 'x y'):
        flow.trigger_event(start, sequence)
    assert flow() is True
    assert sorted(ran(flow)) == sorted((name, sequence) for name in 'abc'
                                       for sequence in ('1', '7', 'x y'))
    flow.close()


def test_sequences_are_compared_as_str(store):
    # semantics 9.1
    calls = Calls()
    flow = an_eventor(store)
    start = flow.add_event('start')
    flow.add_assoc(start, flow.add_step('a', func=calls))
    for sequence in (1, '1', 2, '2', '01'):
        flow.trigger_event(start, sequence)
    assert flow() is True
    assert calls.calls == [('a', '1'), ('a', '2'), ('a', '01')]
    flow.close()


def test_no_sequence_counts_per_event_from_1(store):
    # semantics 9.1
    calls = Calls()
    flow = an_eventor(store)
    one, two = flow.add_event('one'), flow.add_event('two')
    flow.add_assoc(one, flow.add_step('a', func=calls))
    flow.add_assoc(two, flow.add_step('b', func=calls))
    for event in (one, one, two):
        flow.trigger_event(event)
    assert flow() is True
    assert sorted(calls.calls) == [('a', '1'), ('a', '2'), ('b', '1')]
    flow.close()


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_a_rebuilt_flow_raises_the_same_ones(mode, store):
    # semantics 9.1
    calls = Calls()
    flows = []
    for each in ('restart', mode):
        flow = an_eventor(store, mode=each)
        start = flow.add_event('start')
        later = flow.add_event('later')
        flow.add_assoc(start, flow.add_step('a', func=calls))
        flow.add_assoc(start, later, delay=0.8)    # it is not over within the first cycle
        flow.add_assoc(later, flow.add_step('b', func=calls))
        flow.trigger_event(start)
        flow.trigger_event(start)
        flows.append(flow)
        if len(flows) == 1:
            flow.run(max_loops=1)
            flow.close()
    assert calls.calls == [('a', '1'), ('a', '2')]
    assert flows[1]() is True
    assert calls.calls == [('a', '1'), ('a', '2'), ('b', '1'), ('b', '2')]
    flows[1].close()


# 9.2 Triggers

@pytest.mark.parametrize('func, raised', [
    (len, ['ready', 'active', 'success', 'complete']),
    (fail, ['ready', 'active', 'failure', 'complete'])])
def test_triggers_map_a_status_to_the_events_it_raises(func, raised, construct, store, journal):
    # semantics 9.2
    flow = an_eventor(store, construct)
    triggers = {}
    for status in sequent.StepStatus:
        event = flow.add_event('on ' + status.value)
        triggers[status] = (event,)
        flow.add_assoc(event, flow.add_step('of ' + status.value, func=journal.note,
                                            args=(status.value,),
                                            handles=status.value == 'failure'))
    start = flow.add_event('start')
    flow.add_assoc(start, flow.add_step('a', func=func, args=('x',), triggers=triggers))
    flow.trigger_event(start)
    assert flow() is True
    assert sorted(journal.words()) == sorted(raised)
    flow.close()


def test_one_status_may_raise_several_events(store):
    # semantics 9.2
    calls = Calls()
    flow = an_eventor(store)
    events = [flow.add_event(name) for name in 'xy']
    for event in events:
        flow.add_assoc(event, flow.add_step('of ' + event.name, func=calls))
    start = flow.add_event('start')
    flow.add_assoc(start, flow.add_step('a', func=calls, triggers={
        sequent.STEP_SUCCESS: tuple(events)}))
    flow.trigger_event(start)
    assert flow() is True
    assert sorted(calls.names) == ['a', 'of x', 'of y']
    flow.close()


@pytest.mark.parametrize('handled_by, made_good_by', [
    ('handles', ()), ('failure', ('failure',)), ('complete', ('failure', 'complete'))])
@pytest.mark.parametrize('status', ['failure', 'complete', 'success', 'active', None])
def test_a_failure_is_handled_by_what_a_trigger_on_it_starts(
        status, handled_by, made_good_by, store):
    # semantics 3.3
    flow = an_eventor(store, config={'handled_by': handled_by})
    start, event = flow.add_event('start'), flow.add_event('event')
    triggers = {status: (event,)} if status else {}
    flow.add_assoc(start, flow.add_step('a', func=fail, triggers=triggers))
    flow.add_assoc(event, flow.add_step('b', func=None))
    flow.trigger_event(start)
    assert flow() is (status in made_good_by)
    assert the_task(flow, 'a').handled is (status in made_good_by)
    flow.close()


@pytest.mark.parametrize('triggers, error', [
    ({'succes': ()}, FlowError), ({'success': ('event',)}, FlowTypeError),
    ([], FlowTypeError)])
def test_wrong_triggers_are_refused(triggers, error):
    flow = an_eventor()
    with pytest.raises(error):
        flow.add_step('a', func=len, triggers=triggers)


# 9.3 Names

def test_a_known_event_with_the_same_expression_is_that_event():
    # semantics 9.3
    flow = an_eventor()
    a, b = flow.add_event('a'), flow.add_event('b')
    assert flow.add_event('a') is a
    both = flow.add_event('both', expr=(a, b))
    assert flow.add_event('both', expr=(a, b)) is both
    either = flow.add_event('either', expr=or_(a, b))
    assert flow.add_event('either', expr=or_(a, b)) is either


def test_a_known_event_with_another_expression_is_refused():
    # semantics 9.3
    flow = an_eventor()
    a, b = flow.add_event('a'), flow.add_event('b')
    flow.add_event('both', expr=(a, b))
    for name, expr in (('both', (a,)), ('both', or_(a, b)), ('a', (b,))):
        with pytest.raises(FlowError, match=name):
            flow.add_event(name, expr=expr)


def test_a_known_step_is_refused():
    # semantics 9.3
    flow = an_eventor()
    flow.add_step('a', func=len)
    with pytest.raises(FlowError, match='a'):
        flow.add_step('a', func=len)


@pytest.mark.parametrize('expression, raised, held', [
    ('and', ['x'], False), ('and', ['x', 'y'], True), ('and', ['y', 'x'], True),
    ('or', [], False), ('or', ['x'], True), ('or', ['y'], True), ('or', ['x', 'y'], True),
    ('nested', ['x', 'y'], False), ('nested', ['z', 'y'], True)])
def test_an_event_with_an_expression_is_raised_when_it_holds(expression, raised, held, store):
    # semantics 9, 2.1
    calls = Calls()
    flow = an_eventor(store)
    x, y, z = (flow.add_event(name) for name in 'xyz')
    expr = {'and': (x, y), 'or': or_(x, y), 'nested': (or_((x, z), (y, z)), y)}[expression]
    event = flow.add_event('event', expr=expr)
    flow.add_assoc(event, flow.add_step('a', func=calls))
    for name in raised:
        flow.trigger_event({'x': x, 'y': y, 'z': z}[name], 5)
    assert flow() is True
    assert calls.calls == ([('a', '5')] if held else [])
    flow.close()


def test_an_expression_is_read_at_one_sequence(store):
    # semantics 9.1
    calls = Calls()
    flow = an_eventor(store)
    x, y = flow.add_event('x'), flow.add_event('y')
    flow.add_assoc(flow.add_event('both', expr=(x, y)), flow.add_step('a', func=calls))
    flow.trigger_event(x, 1)
    flow.trigger_event(y, 2)
    flow.trigger_event(x, 3)
    flow.trigger_event(y, 3)
    assert flow() is True
    assert calls.calls == [('a', '3')]
    flow.close()


def test_an_association_may_be_delayed(store):
    # semantics 9, 4.4
    calls = Calls()
    flow = an_eventor(store)
    start, later = flow.add_event('start'), flow.add_event('later')
    flow.add_assoc(start, later, flow.add_step('b', func=calls), delay=500)
    flow.add_assoc(later, flow.add_step('c', func=calls))
    flow.add_assoc(start, flow.add_step('a', func=calls))
    flow.trigger_event(start)
    assert flow.run(max_loops=1) is True
    assert calls.names == ['a']
    todo, left = flow.count_todos()
    assert todo == 2 and 400 < left <= 500
    flow.close()


def test_a_delay_ends(construct, store, journal):
    # semantics 9, 4.4
    flow = an_eventor(store, construct)
    start = flow.add_event('start')
    flow.add_assoc(start, flow.add_step('late', func=journal.note, args=('late',)), delay=0.03)
    flow.add_assoc(start, flow.add_step('soon', func=journal.note, args=('soon',)))
    flow.trigger_event(start)
    assert flow() is True
    assert journal.words() == ['soon', 'late']
    flow.close()


# 9.4 Events raised by steps

def handmade(flow, calls, last=3):
    """A loop of three iterations made by hand."""
    start = flow.add_event('start')
    done = flow.add_event('done')

    def head(eventor=None):
        calls()
        sequence = int(sequent.current().sequence)
        eventor.trigger_event(start if sequence < last else done, sequence + 1)
    flow.add_assoc(start, flow.add_step('head', func=head))
    flow.add_assoc(done, flow.add_step('end', func=calls))
    flow.trigger_event(start, 1)


def test_an_inline_step_makes_a_loop_by_hand(store):
    # semantics 9.4
    calls = Calls()
    flow = an_eventor(store)
    handmade(flow, calls)
    assert flow() is True
    assert calls.calls == [('head', '1'), ('head', '2'), ('head', '3'), ('end', '4')]
    flow.close()


def test_eventor_is_given_only_to_functions_that_accept_it(store):
    # semantics 9.4
    seen = []
    flow = an_eventor(store)
    start = flow.add_event('start')

    class Method:
        def __call__(self, x, *, eventor):
            seen.append(('object', eventor is flow))
    flow.add_assoc(start, *[
        flow.add_step(name, func=func, args=('x',)) for name, func in (
            ('without', lambda x: seen.append(('without', x))),
            ('named', lambda x, eventor: seen.append(('named', eventor is flow))),
            ('keywords', lambda x, **more: seen.append(('keywords', more['eventor'] is flow))),
            ('object', Method()),
            ('builtin', len))])
    flow.trigger_event(start)
    assert flow() is True
    assert sorted(seen) == [('keywords', True), ('named', True), ('object', True),
                            ('without', 'x')]
    flow.close()


def test_events_raised_by_a_step_are_raised_again_when_it_is_skipped(store):
    # semantics 9.4
    calls, line = Calls(), Line()
    for mode in ('restart', 'recover'):
        flow = an_eventor(store, mode=mode)
        start, more = flow.add_event('start'), flow.add_event('more')

        def head(eventor, more=more):
            calls()
            eventor.trigger_event(more, 5)
        flow.add_assoc(start, flow.add_step('head', func=head))
        flow.add_assoc(more, flow.add_step('tail', func=line))
        flow.trigger_event(start)
        flow()
        flow.close()
        line.down = False
    assert calls.calls == [('head', '1')]
    assert line.calls == [('tail', '5'), ('tail', '5')]
    assert the_task(flow, 'tail').status == 'success'


def test_a_step_may_raise_several_events_and_a_recovery_raises_them_all(store):
    # semantics 9.4
    calls, line = Calls(), Line()
    for mode in ('restart', 'recover'):
        flow = an_eventor(store, mode=mode)
        start, first, second = [flow.add_event(name) for name in ('start', 'first', 'second')]

        def head(eventor, events=(first, second)):
            calls()
            for event in events:
                eventor.trigger_event(event, 5)
        flow.add_assoc(start, flow.add_step('head', func=head))
        flow.add_assoc(first, flow.add_step('a', func=line))
        flow.add_assoc(second, flow.add_step('b', func=line))
        flow.trigger_event(start)
        flow()
        flow.close()
        line.down = False

    assert calls.calls == [('head', '1')]
    assert sorted(line.calls[-2:]) == [('a', '5'), ('b', '5')]
    assert statuses(flow) == {'head': 'success', 'a': 'success', 'b': 'success'}


def test_a_handmade_loop_is_recovered_where_it_failed(store):
    # semantics 9.4, 7.3
    line, calls = Line(), Calls()
    for mode in ('restart', 'recover'):
        flow = an_eventor(store, mode=mode)

        def one():
            calls()
            if sequent.current().sequence == '2':
                line()
        handmade(flow, one)
        result = flow()
        flow.close()
        line.down = False
    assert result is True
    assert calls.calls == [('head', '1'), ('head', '2'), ('head', '2'), ('head', '3'),
                           ('end', '4')]


@pytest.mark.parametrize('construct', ['thread', 'process'])
def test_other_constructs_cannot_raise_events_while_the_flow_runs(construct, store):
    # semantics 9.4
    flow = an_eventor(store, construct)
    start, more = flow.add_event('start'), flow.add_event('more')
    flow.add_assoc(start, flow.add_step('a', func=lambda: flow.trigger_event(more, 2)))
    flow.trigger_event(start)
    assert flow() is False
    assert 'inline' in the_task(flow, 'a').error
    flow.close()


def test_events_may_be_raised_after_a_run_to_go_on_with_it(store):
    # semantics 9, 8.2
    calls = Calls()
    flow = an_eventor(store)
    start = flow.add_event('start')
    flow.add_assoc(start, flow.add_step('a', func=calls))
    flow.trigger_event(start)
    assert flow() is True
    assert flow() is True
    flow.trigger_event(start)
    assert flow.count_todos()[0] == 1
    assert flow() is True
    assert calls.calls == [('a', '1'), ('a', '2')]
    flow.close()


def test_after_close_no_event_is_raised():
    flow = an_eventor()
    start = flow.add_event('start')
    flow.close()
    with pytest.raises(sequent.ClosedError):
        flow.trigger_event(start)


# 9.5 One engine

def test_sequent_and_eventor_run_on_one_engine(monkeypatch):
    # semantics 9.5
    made = []

    class Noted(sequent.Engine):
        def __init__(self, *args, **kwargs):
            made.append(self)
            super().__init__(*args, **kwargs)
    monkeypatch.setattr(sequent, 'Engine', Noted)
    sequential = a_flow()
    sequential.add_step('a', func=Calls())
    assert sequential() is True
    assert len(made) == 1
    flow = an_eventor()
    flow.trigger_event(a_chain(flow, Calls()))
    assert flow() is True
    assert len(made) == 2
    flow.close()


@pytest.mark.parametrize('cap, most', [(None, 1), (2, 2)])
def test_by_default_one_task_runs_at_a_time(cap, most, store):
    # semantics 4.1
    running, seen, lock = [0], [0], threading.Lock()
    meeting = threading.Barrier(2)

    def one():
        with lock:
            running[0] += 1
            seen[0] = max(seen[0], running[0])
        try:
            meeting.wait(0.2 if most == 1 else 20)
        except threading.BrokenBarrierError:
            pass
        with lock:
            running[0] -= 1
    flow = an_eventor(store, 'thread', config={} if cap is None else {'max_concurrent': cap})
    start = flow.add_event('start')
    flow.add_assoc(start, flow.add_step('a', func=one), flow.add_step('b', func=one))
    flow.trigger_event(start)
    assert flow() is True
    assert seen == [most]
    flow.close()


def test_steps_of_an_eventor_take_resources(store):
    # semantics 4.3, 9
    pool = sequent.ResourcePool('pool', 1)
    order = []
    flow = an_eventor(store, 'thread', config={'max_concurrent': 4})
    start = flow.add_event('start')
    for name in 'ab':
        flow.add_assoc(start, flow.add_step(
            name, acquires=[(pool, 1)],
            func=lambda: [order.append('in'), order.append('out')]))
    flow.trigger_event(start)
    assert flow() is True
    assert order == ['in', 'out'] * 2
    flow.close()


@pytest.mark.parametrize('make', [
    lambda flow: flow.add_event(''), lambda flow: flow.add_event(3),
    lambda flow: flow.add_assoc('start'),
    lambda flow: flow.add_assoc(flow.add_event('e'), 'step'),
    lambda flow: flow.add_assoc(an_eventor().add_event('e')),
    lambda flow: flow.add_assoc(flow.add_event('e'), an_eventor().add_step('a', func=None)),
    lambda flow: flow.add_assoc(flow.add_event('e'), delay=-1),
    lambda flow: flow.trigger_event('e'),
    lambda flow: flow.add_step('', func=len),
    lambda flow: flow.add_step('a', func='len')])
def test_bad_input_is_refused_at_once(make):
    flow = an_eventor()
    with pytest.raises((FlowError, FlowTypeError)):
        make(flow)


# Sequences that are counted, over recoveries ######################################

def counting(store, mode='restart', fails=False):
    """a raises an event by hand, then b does, each at the next sequence; the event starts w."""
    flow = Eventor('etl', store, run_mode=mode, config={'task_construct': 'inline'})
    go, both, then = flow.add_event('go'), flow.add_event('both'), flow.add_event('then')
    ran = []

    def raises(eventor, name):
        ran.append(name)
        if fails and name == 'b':
            raise ValueError(name)
        eventor.trigger_event(both)
    a = flow.add_step('a', raises, kwargs={'name': 'a'}, triggers={'success': then})
    b = flow.add_step('b', raises, kwargs={'name': 'b'})
    w = flow.add_step('w', lambda: ran.append('w@' + sequent.current().sequence))
    flow.add_assoc(go, a)
    flow.add_assoc(then, b)
    flow.add_assoc(both, w)
    flow.trigger_event(go, 'start')
    return flow, both, ran


def test_counted_sequences_go_on_after_those_that_a_recovery_raises_again():
    # semantics 9.1, 9.4
    kept = MemoryStore()
    assert counting(kept, fails=True)[0]() is False
    flow, _, ran = counting(kept, 'recover')
    assert flow() is True
    assert ran == ['b', 'w@2']


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_an_event_raised_after_the_end_of_a_run_makes_more_of_it(mode):
    # semantics 7.1, 9.1
    kept = MemoryStore()
    assert counting(kept)[0]() is True
    flow, both, ran = counting(kept, mode)
    flow.trigger_event(both, 7)
    assert flow() is True
    assert ran == ['w@7']
