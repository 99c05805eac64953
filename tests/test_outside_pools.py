"""Pools that are counted outside of the run: shared by several runs, and rates."""

import collections
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from flowtools import wait_for
from sequent import Eventor, FlowError, MemoryStore, OutsidePool, Sequent, StoreError
from sequent.dry_run import preview


class Ledger(OutsidePool):
    """So many units; notes who asks, who has some, and the most that was out."""

    cadence = 0.005

    def __init__(self, units=1):
        super().__init__('ledger')
        self.units = units
        self.held = collections.Counter()
        self.asked = []
        self.most = 0
        self.wake = None

    def open(self, wake):
        self.wake = wake

    def close(self):
        self.wake = None

    def try_take(self, units, task):
        self.asked.append(task)
        if sum(self.held.values()) + units > self.units:
            return False
        self.held[task] += units
        self.most = max(self.most, sum(self.held.values()))
        return True

    def give(self, units, task):
        self.held[task] -= units
        assert self.held[task] >= 0
        self.held += collections.Counter()


def a_flow(**config):
    config.setdefault('task_construct', 'thread')
    return Sequent(name='etl', store=':memory:', run_id='1', config=dict(config, max_concurrent=4))


def fail():
    raise ValueError('on purpose')


# semantics 4.18
@pytest.mark.parametrize('construct', ['process', 'thread', 'inline'])
def test_no_more_run_than_the_pool_has_units_for(construct):
    pool, flow = Ledger(units=2), a_flow(task_construct=construct)
    flow.add_step('a', func=time.sleep, args=(0.001,), loop=range(6), acquires=[(pool, 1)],
                  config={'max_concurrent': 0})
    flow.add_step('b', func=time.sleep, args=(0.001,), acquires=[(pool, 2)])

    assert flow.run()
    assert pool.most == 2
    assert not pool.held
    assert set(pool.asked) == {('etl', '1', 'a', '1.%d' % n) for n in range(1, 7)} | {
        ('etl', '1', 'b', '1')}
    assert pool.wake is None


def test_a_refused_task_keeps_its_place_and_others_go_ahead():
    pool, flow, ran = Ledger(units=0), a_flow(task_construct='inline'), []

    def free():
        ran.append('free')
        pool.units = 2
    flow.add_step('first', func=ran.append, args=('first',), acquires=[(pool, 2)])
    flow.add_step('second', func=ran.append, args=('second',), acquires=[(pool, 1)])
    flow.add_step('free', func=free)

    assert flow.run()
    assert ran == ['free', 'first', 'second']
    assert pool.asked[0][2] == 'first'


def test_a_task_holds_nothing_of_two_pools_when_one_refuses():
    one, other, flow, seen = Ledger(), Ledger(units=0), a_flow(task_construct='inline'), []

    def free():
        seen.append(dict(one.held))
        other.units = 1
    flow.add_step('both', func=print, acquires=[(one, 1), (other, 1)])
    flow.add_step('free', func=free)

    assert flow.run()
    assert seen == [{}]
    assert not one.held and not other.held


def test_a_wake_has_a_refused_task_ask_again_at_once():
    pool, flow = Ledger(units=0), a_flow()
    pool.cadence = 1000

    def grant():
        wait_for(lambda: pool.asked, 'the first question')
        pool.units = 1
        pool.wake()
    thread = threading.Thread(target=grant)
    thread.start()
    flow.add_step('a', func=print, acquires=[(pool, 1)])

    assert flow.run()
    thread.join()
    assert len(pool.asked) == 2


def test_a_rate_lets_one_task_start_in_each_period():
    class Rate(OutsidePool):
        cadence = 0.01
        starts = []

        def try_take(self, units, task):
            now = time.monotonic()
            if self.starts and now < self.starts[-1] + 0.05:
                return False
            self.starts.append(now)
            return True
    flow = a_flow()
    flow.add_step('a', func=print, loop=range(4), acquires=[(Rate('rate'), 1)],
                  config={'max_concurrent': 0})

    assert flow.run()
    assert len(Rate.starts) == 4
    assert all(b - a >= 0.05 for a, b in zip(Rate.starts, Rate.starts[1:]))


@pytest.mark.parametrize('given', [
    {'func': fail}, {'func': os._exit, 'args': (3,)},
    {'func': time.sleep, 'args': (60,), 'timeout': 0.1}])
def test_what_fails_gives_back(given):
    pool = Ledger()
    flow = a_flow(task_construct='process', shutdown_grace=0)
    timeout = given.pop('timeout', None)
    flow.add_step('a', acquires=[(pool, 1)], config={'timeout': timeout} if timeout else {},
                  **given)

    assert not flow.run()
    assert len(pool.asked) == 1
    assert not pool.held


def test_what_waits_for_its_next_attempt_has_given_back_and_asks_again():
    pool, flow, held = Ledger(), a_flow(task_construct='inline', retries=1, retry_delay=0.1), []
    flow.add_step('a', func=fail, acquires=[(pool, 1)])
    flow.add_step('b', func=lambda: held.append(dict(pool.held)), acquires=[(pool, 1)])

    assert not flow.run()
    assert [task[2] for task in pool.asked] == ['a', 'b', 'a']
    assert held == [{('etl', '1', 'b', '1'): 1}]
    assert not pool.held


def test_a_container_holds_its_units_until_its_last_iteration_is_over():
    pool, flow, held = Ledger(), a_flow(task_construct='inline'), []
    day = flow.add_step('day', loop=range(3), acquires=[(pool, 1)])
    day.add_step('load', func=lambda: held.append(sum(pool.held.values())))
    flow.add_step('after', func=lambda: held.append(sum(pool.held.values())), require=day)

    assert flow.run()
    assert held == [1, 1, 1, 0]


@pytest.mark.parametrize('construct', ['process', 'inline'])
def test_a_run_that_stops_gives_back(construct):
    pool, flow = Ledger(units=3), a_flow(task_construct='process')
    day = flow.add_step('day', acquires=[(pool, 1)])
    day.add_step('long', func=time.sleep, args=(60,), acquires=[(pool, 1)])
    flow.add_step('stop', func=os.kill, args=(os.getpid(), signal.SIGTERM),
                  acquires=[(pool, 1)], config={'task_construct': construct})

    with pytest.raises(SystemExit):
        flow.run()
    assert pool.most == 3
    assert not pool.held


def test_a_start_that_is_withdrawn_gives_back():
    class FullStore(MemoryStore):
        def commit(self, run, records, *rest):
            if any(record.path == 'a' and record.status == 'active' for record in records):
                raise StoreError('no room')
            return super().commit(run, records, *rest)
    pool = Ledger()
    flow = Sequent(name='etl', store=FullStore())
    flow.add_step('a', func=print, acquires=[(pool, 1)])

    with pytest.raises(StoreError):
        flow.run()
    assert pool.asked
    assert not pool.held


def test_a_pool_that_raises_is_reported_once_and_asked_again(caplog):
    class Broken(Ledger):
        def try_take(self, units, task):
            if len(self.asked) < 3:
                self.asked.append(task)
                raise OSError('the network is down')
            return super().try_take(units, task)
    pool, flow = Broken(), a_flow()
    flow.add_step('a', func=print, acquires=[(pool, 1)])

    with caplog.at_level(logging.ERROR, 'sequent'):
        assert flow.run()
    assert len(pool.asked) == 4
    assert [record.getMessage() for record in caplog.records] == [
        'pool ledger: OSError: the network is down']


def test_what_is_acquired_outside_cannot_be_released_otherwise():
    flow = a_flow()
    flow.add_step('a', func=print, acquires=[(Ledger(), 1)], releases=[])

    with pytest.raises(FlowError, match="step 'a' has releases, and <Ledger ledger>"):
        flow.run()


def test_a_dry_run_asks_no_pool():
    pool, flow = Ledger(units=0), a_flow()
    flow.add_step('a', func=print, acquires=[(pool, 1)])

    with preview(flow) as dry:
        assert [(one.path, one.action) for one in dry.foresee()] == [('a', 'runs')]
    assert not pool.asked


def test_a_step_of_an_eventor_acquires_outside():
    pool = Ledger()
    flow = Eventor(store=':memory:', config={'task_construct': 'inline'})
    begin = flow.add_event('begin')
    step = flow.add_step('a', func=print, acquires=[(pool, 1)])
    flow.add_assoc(begin, step)
    flow.trigger_event(begin, 1)

    assert flow.run()
    assert len(pool.asked) == 1
    assert not pool.held


#: A flow of which several supervisors share a file; a step that is alone in its room.
SHARED = """
    import fcntl, json, os, sys, time
    import sequent

    class FilePool(sequent.OutsidePool):
        cadence = 0.01

        def __init__(self, path, units):
            super().__init__(path)
            self.units = units

        def change(self, change):
            with open(self.name, 'a+') as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                stream.seek(0)
                held = json.loads(stream.read() or '{}')
                answer = change(held)
                stream.truncate(0)
                stream.write(json.dumps(held))
                return answer

        def try_take(self, units, task):
            def take(held):
                others = sum(n for name, n in held.items() if name != str(task))
                fits = others + units <= self.units
                held.update({str(task): units} if fits else {})
                return fits
            return self.change(take)

        def give(self, units, task):
            self.change(lambda held: held.pop(str(task), None))

    def alone():
        os.close(os.open('room', os.O_CREAT | os.O_EXCL))
        print('%s is in the room' % name, flush=True)
        while os.path.exists('wait'):
            time.sleep(0.005)
        os.remove('room')

    name, mode, construct = sys.argv[1:]
    flow = sequent.Sequent(name=name, store=name + '.db', run_id='1', run_mode=mode,
                           config={'capture': 'none', 'task_construct': construct})
    flow.add_step('room', func=alone, loop=range(3), acquires=[(FilePool('units', 1), 1)],
                  config={'max_concurrent': 0})
    flow.add_step('free', func=lambda: print('%s did what is free' % name, flush=True))
    sys.exit(0 if flow.run() else 1)
"""


class Sharers:
    """Supervisors that share a file."""

    def __init__(self, folder):
        self.folder = folder
        (folder / 'shared.py').write_text(textwrap.dedent(SHARED))
        (folder / 'wait').write_text('')
        self.processes = []

    def start(self, name, mode='restart', construct='process'):
        with open(str(self.folder / (name + '.out')), 'ab') as stream:
            process = subprocess.Popen(
                [sys.executable, 'shared.py', name, mode, construct], cwd=str(self.folder),
                stdout=stream, stderr=stream)
        self.processes.append(process)
        return process

    def wait_to_read(self, name, text):
        wait_for(lambda: text in (self.folder / (name + '.out')).read_text(), text)


@pytest.fixture
def sharers(tmp_path):
    sharers = Sharers(tmp_path)
    yield sharers
    (tmp_path / 'wait').exists() and (tmp_path / 'wait').unlink()
    for process in sharers.processes:
        process.kill()
        process.wait()


needs_fcntl = pytest.mark.skipif(os.name == 'nt', reason='not for systems without fcntl')


@needs_fcntl
def test_two_supervisors_share_the_units_in_a_file(sharers, tmp_path):      # semantics 4.18
    one = sharers.start('one')
    sharers.wait_to_read('one', 'one is in the room')
    other = sharers.start('other')
    sharers.wait_to_read('other', 'other did what is free')
    assert 'is in the room' not in (tmp_path / 'other.out').read_text()

    (tmp_path / 'wait').unlink()

    assert (one.wait(60), other.wait(60)) == (0, 0)     # and nobody met anybody in the room
    assert (tmp_path / 'units').read_text() == '{}'


@needs_fcntl
def test_a_recovery_takes_again_what_a_dead_supervisor_had_taken(sharers, tmp_path):
    one = sharers.start('one', construct='thread')
    sharers.wait_to_read('one', 'one is in the room')
    one.kill()
    one.wait()
    (tmp_path / 'room').unlink()
    assert (tmp_path / 'units').read_text() != '{}'

    (tmp_path / 'wait').unlink()
    recovery = sharers.start('one', 'recover', construct='thread')

    assert recovery.wait(60) == 0
    assert (tmp_path / 'units').read_text() == '{}'


@needs_fcntl
@pytest.mark.parametrize('adopted', [True, False])
def test_a_recovery_gives_back_what_a_task_without_supervisor_had(adopted, sharers, tmp_path):
    one = sharers.start('one')
    sharers.wait_to_read('one', 'one is in the room')
    one.kill()
    one.wait()
    if not adopted:
        (tmp_path / 'wait').unlink()
        wait_for(lambda: not (tmp_path / 'room').exists(), 'the end of the task')

    recovery = sharers.start('one', 'recover')
    if adopted:
        sharers.wait_to_read('one', 'it is adopted')
        (tmp_path / 'wait').unlink()

    assert recovery.wait(60) == 0
    assert (tmp_path / 'units').read_text() == '{}'
