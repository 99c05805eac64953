"""Recovery seen from odd angles: changed items, older states, interrupted objects."""

import os
import signal

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    a_flow, a_private_temporary_folder, fail, is_running, journal, programs, store,
    wait_until)
from sequent import MemoryStore, Sequent  # noqa: E402

class Steps:
    """Inline steps that note what ran, and fail or interrupt the run where they are told to."""

    def __init__(self):
        self.ran, self.fail, self.interrupt = [], set(), set()

    def __call__(self, name):
        task = sequent.current()
        self.ran.append('%s@%s' % (name, task.item) if task.items else name)
        if name in self.interrupt:
            self.interrupt.discard(name)
            os.kill(os.getpid(), signal.SIGINT)
        if name in self.fail:
            raise ValueError(name)

    def taken(self):
        ran, self.ran = self.ran, []
        return ran


def an_inline_flow(store, mode='restart', **given):
    return Sequent('etl', store, run_mode=mode, config={'task_construct': 'inline'}, **given)


def a_chain(steps, store, mode='restart', **given):
    flow = an_inline_flow(store, mode, **given)
    before = ()
    for name in 'abc':
        before = flow.add_step(name, func=steps, args=(name,), require=before)
    return flow


def interrupted(flow):
    with pytest.raises(KeyboardInterrupt):
        flow()


@pytest.mark.parametrize('limit', [1, 0])
def test_a_loop_of_thousands_is_recovered(limit):
    # semantics 7.1, 1.4
    store, down = MemoryStore(), [True]

    def work():
        if down and sequent.current().item == 2500:
            raise ValueError
    for mode, result in (('restart', False), ('recover', True)):
        flow = an_inline_flow(store, mode)
        loop = flow.add_step('s', loop=range(3000), config={'max_concurrent': limit})
        loop.add_step('a', func=work)
        assert flow() is result
        down = []


def test_what_an_older_item_left_does_not_count_for_a_new_one_in_a_later_recovery():
    # semantics 7.4
    store, steps = MemoryStore(), Steps()

    def flow(mode, item):
        made = an_inline_flow(store, mode)
        loop = made.add_step('s', loop=[item])
        a = loop.add_step('a', func=steps, args=('a',))
        loop.add_step('b', func=steps, args=('b',), require=a)
        made.add_step('z', func=steps, args=('z',), require=loop)
        return made
    steps.fail = {'z'}
    assert flow('restart', 'A')() is False
    steps.fail = {'a'}
    assert flow('recover', 'B')() is False
    steps.fail = set()
    steps.taken()
    assert flow('recover', 'B')() is True
    assert steps.taken() == ['a@B', 'b@B', 'z']


def test_continuing_a_recovery_of_an_older_state_starts_from_that_state():
    # semantics 7.1, 7.5
    store, steps = MemoryStore(), Steps()
    steps.fail = {'b'}
    assert a_chain(steps, store)() is False
    steps.fail = {'c'}
    assert a_chain(steps, store, 'recover')() is False
    steps.fail, steps.interrupt = set(), {'b'}
    interrupted(a_chain(steps, store, 'recover', recovery_run=0))
    steps.taken()
    assert a_chain(steps, store, 'continue')() is True
    assert steps.taken() == ['b', 'c']


def test_an_interrupted_recovery_of_an_older_state_goes_on_with_the_same_object():
    # semantics 8.2
    store, steps = MemoryStore(), Steps()
    steps.fail = {'b'}
    assert a_chain(steps, store)() is False
    steps.fail, steps.interrupt = set(), {'c'}
    flow = a_chain(steps, store, 'recover', recovery_run=0)
    interrupted(flow)
    steps.taken()
    assert flow() is True
    assert steps.taken() == ['c']


def test_an_iterator_that_was_interrupted_is_not_taken_for_a_whole_loop():
    # semantics 1.4, 8.2
    steps = Steps()
    steps.interrupt = {'a'}
    flow = an_inline_flow(MemoryStore())
    flow.add_step('s', loop=iter('XYZ')).add_step('a', func=steps, args=('a',))
    interrupted(flow)
    with pytest.raises(sequent.ClosedError, match='iterator'):
        flow()


def test_a_loop_that_cannot_be_pickled_as_a_whole_is_compared_item_by_item():
    # semantics 7.4
    store, steps = MemoryStore(), Steps()

    def flow(mode, items):
        made = an_inline_flow(store, mode)
        loop = made.add_step('s', loop=dict.fromkeys(items).keys())
        loop.add_step('a', func=steps, args=('a',))
        made.add_step('z', func=steps, args=('z',), require=loop)
        return made
    steps.fail = {'z'}
    assert flow('restart', 'AB')() is False
    steps.fail = set()
    steps.taken()
    assert flow('recover', 'AC')() is True
    assert steps.taken() == ['a@C', 'z']


def test_a_failed_task_keeps_what_it_did_not_give_back_when_the_run_is_continued():
    # semantics 4.3, 7.5
    store, steps = MemoryStore(), Steps()
    steps.fail = {'a'}

    def flow(mode):
        made = an_inline_flow(store, mode)
        pool = sequent.ResourcePool('p', 1)
        a = made.add_step('a', func=steps, args=('a',), acquires=[(pool, 1)], releases=[])
        b = made.add_step('b', func=steps, args=('b',), delay=.01, require=(a, 'failure'),
                          handles=True)
        made.add_step('c', func=steps, args=('c',), releases=[(pool, 1)], require=b)
        return made
    with flow('restart') as first:
        assert first.run(max_loops=1) is False      # so far nothing has made it good (8.2)
    assert flow('continue')() is True
    assert steps.taken() == ['a', 'b', 'c']


LIVING = '''
def work():
    journal.sign('x')
    journal.note('works')
    journal.pass_gate('go')

flow = make()
flow.add_step('s', loop=[os.environ.get('ITEM', 'A')]).add_step('x', func=work)
if not os.environ.get('WITHOUT'):
    flow.add_step('y', func=journal.note, args=('y',))
leave(flow)
'''


def killed_while_x_works(programs, journal):  # noqa: F811
    """Start the program, kill it while its step works, and return the pid of the orphan."""
    programs.write(LIVING)
    supervisor = programs.start(environment={'WITHOUT': 'y'})
    journal.wait_for('works')
    supervisor.kill()
    supervisor.wait()
    return journal.pid('x')


def test_a_recovery_with_another_item_starts_nothing_beside_a_living_orphan(
        programs, journal):  # noqa: F811
    # semantics 7.6
    pid = killed_while_x_works(programs, journal)
    recovery = programs.start('recover', environment={'ITEM': 'B'})
    recovery.wait_for('recover again when that has ended')
    assert is_running(pid) and recovery.process.poll() is None
    journal.open('go')
    assert recovery.wait() == 1
    assert journal.count('works') == 1
    assert not is_running(pid)


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_a_stop_ends_an_orphan_whose_task_has_not_been_reached(mode, programs, journal):  # noqa: F811
    # semantics 7.6, 8.3
    pid = killed_while_x_works(programs, journal)
    programs.write(LIVING.replace("flow.add_step('s'", "flow.add_step('gone'"))
    recovery = programs.start(mode)
    recovery.wait_for('step y at 1 ended')
    recovery.kill(signal.SIGTERM)
    assert recovery.wait() == 143
    assert not is_running(pid)


#: The configuration of the run whose supervisor dies, and that of its recovery.
CONFIGS = [({}, {}), ({'capture': 'none'}, {'capture': 'none'}), ({'capture': 'none'}, {}),
           ({}, {'capture': 'none'}), ({}, {'logdir': 'elsewhere'})]

ADOPTED = '''
CONFIG = %r if MODE == 'restart' else %r
if 'logdir' in CONFIG:
    CONFIG['logdir'] = os.path.join(FOLDER, CONFIG['logdir'])

class Dying(seq.ProcessConstruct):
    def release(self, jobs):
        """Die when the start of the job is stored, and its process has not passed its gate."""
        kill_me()

def work():
    journal.note('works')
    journal.sign('x')
    journal.pass_gate('go')

def build(construct='process'):
    flow = make(construct, config=CONFIG)
    x = flow.add_step('x', func=work)
    flow.add_step('z', func=journal.note, args=('z',), require=x)
    if MODE != 'restart':
        flow.add_step('y', func=journal.note, args=('y',))
    return flow
'''


@pytest.mark.parametrize('before, now', CONFIGS)
@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_an_adopted_task_that_dies_has_failed_wherever_its_log_is(
        mode, before, now, programs, journal):  # noqa: F811
    # semantics 3.1, 7.6
    programs.write(ADOPTED % (before, now) + 'leave(build())')
    pid = programs.leave_orphan('x')
    recovery = programs.start(mode)
    journal.wait_for('y')
    os.kill(pid, signal.SIGKILL)

    assert recovery.wait() == 1
    assert journal.words() == ['works', 'y']
    assert programs.tasks()['x'] == [('1', 0, 1, 'failure')]
    journal.open('go')
    assert programs.run('recover') == 0
    assert journal.words() == ['works', 'y', 'works', 'z']
    assert not os.path.exists(programs.store_path + '.outcomes')


@pytest.mark.parametrize('before, now', CONFIGS)
@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_an_adopted_task_that_never_began_runs_once_wherever_its_log_would_be(
        mode, before, now, programs, journal):  # noqa: F811
    # semantics 7.6
    programs.write(ADOPTED % (before, now) + '''
from multiprocessing.util import register_after_fork

if MODE == 'restart':
    register_after_fork(journal, lambda journal: journal.pass_gate('begin'))
leave(build(Dying if MODE == 'restart' else 'process'))
''')
    assert programs.run() == -9
    recovery = programs.start(mode)
    journal.wait_for('y')
    journal.open('begin')
    journal.wait_for('works')
    journal.open('go')

    assert recovery.wait() == 0
    assert journal.words() == ['y', 'works', 'z']


@pytest.mark.parametrize('end', ['killed', 'ends'])
@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_inline_steps_do_not_wait_for_an_adopted_task_whose_step_is_inline_now(
        mode, end, programs, journal):  # noqa: F811
    # semantics 7.6
    programs.write(ADOPTED % ({}, {}) + '''
flow = make('process' if MODE == 'restart' else 'inline')
x = flow.add_step('x', func=work)
for name, require in [('y', ()), ('v', (x, 'complete'))] if MODE != 'restart' else []:
    flow.add_step(name, func=journal.note, args=(name,), require=require)
leave(flow)
''')
    pid = programs.leave_orphan('x')
    recovery = programs.start(mode)
    journal.wait_for('y')
    assert is_running(pid)
    if end == 'killed':
        os.kill(pid, signal.SIGKILL)
    else:
        journal.open('go')

    recovery.wait()
    assert journal.count('v') == 1
    assert journal.count('works') == 1


# What a stop leaves behind

def stopped_then_whole(store, make, stop):
    """Run a flow that is stopped in the middle, then recover it; return what ran in both."""
    ran = []
    first = make('restart', ran, True)
    stop(first)
    assert make('recover', ran, False)() is True
    return ran


def test_a_container_that_waited_for_what_ran_at_the_stop_is_gone_through_again(store):
    # semantics 3.4, 7.2
    def make(mode, ran, fails):
        flow = a_flow(store, mode=mode)
        c = flow.add_step('c')
        x = c.add_step('x', func=lambda: ran.append('x'), delay=0.05)
        c.add_step('d').add_step('t', func=lambda: ran.append('t'), require=x)
        flow.add_step('b', func=fail if fails else len, args=('',), delay=0.01)
        flow.add_step('z', func=lambda: ran.append('z'), require=c)
        return flow
    ran = stopped_then_whole(store, make, lambda flow: flow())
    assert ran == ['x', 't', 'z']


def test_a_container_with_a_loop_that_a_signal_cut_short_is_not_over(store):
    # semantics 8.3, 7.1
    def make(mode, ran, fails):
        def work(item):
            ran.append(item)
            if fails:
                os.kill(os.getpid(), signal.SIGTERM)
                wait_until(lambda: threads.port.stopping, 'the stop')
            return item
        threads = sequent.ThreadConstruct()
        flow = a_flow(store, threads, mode)
        c = flow.add_step('c')
        d = c.add_step('d', loop=[1, 2, 3])
        x = d.add_step('x', func=work, args=(d.item,))
        c.add_step('y', func=lambda: ran.append('y'), require=d)
        flow.add_step('z', func=lambda found: ran.append(found), args=(x.result,), require=c)
        return flow

    def stop(flow):
        with pytest.raises(SystemExit):
            flow()
    ran = stopped_then_whole(store, make, stop)
    assert ran == [1, 2, 3, 'y', [[1, 2, 3]]]


def test_loops_at_the_same_sequences_do_not_hide_each_others_items(store):
    # semantics 7.4
    def run(mode, items, bad):
        ran = []

        def work(item):
            ran.append(item)
            if item == bad:
                raise ValueError(item)
            return item
        flow = a_flow(store, mode=mode)
        c = flow.add_step('c', loop=items)
        c.add_step('x', func=len, args=('',))
        p = flow.add_step('p', loop=items, require=c)
        w = p.add_step('w', func=work, args=(p.item,))
        flow.add_step('sum', func=list, args=(w.result,))
        return flow(), ran, [task.result for task in flow.tasks() if task.path == 'sum']
    assert run('restart', 'abcd', 'a')[0] is False
    assert run('recover', 'abcd', 'd')[:2] == (False, ['a', 'b', 'c', 'd'])
    assert run('recover', 'aXcd', None) == (True, ['X', 'd'], [['a', 'X', 'c', 'd']])


def test_a_step_that_asks_for_a_result_handles_no_failure(store):
    # semantics 3.2
    flow = a_flow(store)
    a = flow.add_step('a', func=fail, args=('x',))
    flow.add_step('e', func=print, args=(a.result,), require=((a, 'complete'),))
    assert flow() is False
    other = a_flow(store)
    a = other.add_step('a', func=fail, args=('x',))
    other.add_step('e', func=print, args=(a.result,), require=((a, 'failure'),))
    with pytest.raises(sequent.FlowError, match="'e' requires the failure of step 'a'"):
        other()
