"""What constructs whose work happens elsewhere ask of the driver: begin, call, output, cadence.

And work in another place that outlives its supervisor.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import threading
import time

import batchtools
import pytest
from contracts import AdoptionContract

import sequent as seq
from runtools import (  # noqa: F401 (fixtures)
    a_private_temporary_folder,
    is_running,
    journal,
    programs,
    wait_until,
)
from sequent import Outcome, TaskConstruct


class Queue(TaskConstruct):
    """Has each job wait, then run, in a thread of its own, as a job scheduler would.

    Args:
        wait, work: seconds that a job waits and runs.
    """

    can_kill = True
    tells_begin = True
    relays = True

    def __init__(self, wait=0.0, work=0.0):
        self.wait, self.work = wait, work
        self.ended = {}

    def open(self, port):
        super().open(port)
        self.threads = []

    def release(self, jobs):
        for job in jobs:
            self.ended[job] = threading.Event()
            self.threads.append(threading.Thread(target=self.run, args=(job,)))
            self.threads[-1].start()

    def run(self, job):
        time.sleep(self.wait)
        self.port.began(job, job.now())
        killed = self.ended[job].wait(self.work)
        self.port.done(job, Outcome('failure', 'killed') if killed else Outcome('success'))

    def kill(self, job, force):
        self.ended[job].set()

    def close(self):
        for event in self.ended.values():
            event.set()
        for thread in self.threads:
            thread.join()


def nothing():
    pass


def flow_in(construct, store=':memory:', **config):
    flow = seq.Sequent('flow', str(store), config=dict(config, task_construct=construct))
    flow.add_step('a', func=nothing)
    return flow


def the_task(flow):
    [task] = flow.tasks()
    return task


def test_a_job_that_waits_elsewhere_does_not_time_out():
    # semantics 4.9
    flow = flow_in(Queue(wait=1.0), timeout=0.5)
    began = time.time()
    assert flow.run() is True
    assert the_task(flow).start >= began + 0.9


def test_the_timeout_of_a_job_counts_from_its_begin_elsewhere():
    # semantics 4.9
    flow = flow_in(Queue(wait=0.2, work=60.0), timeout=0.3)
    assert flow.run() is False
    assert the_task(flow).error == 'timed out after 0.3 s'


def test_the_time_at_which_a_job_began_elsewhere_is_stored(tmp_path):
    flow = flow_in(Queue(wait=0.5, work=0.2), tmp_path / 'flow.db')
    before = time.time()
    assert flow.run() is True
    task = the_task(flow)
    assert before + 0.4 < task.start <= task.end


class Calling(Queue):
    """Has the driver's thread call a function before each job ends."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def run(self, job):
        self.port.call(self.function)
        super().run(job)


def test_a_call_runs_in_the_thread_of_the_driver():
    threads = []
    flow = flow_in(Calling(lambda: threads.append(threading.current_thread())))
    assert flow.run() is True
    assert threads == [threading.current_thread()]


def test_a_call_wakes_a_loop_that_sleeps():
    came = threading.Event()

    class Waiting(Queue):
        def run(self, job):
            time.sleep(0.3)    # The loop sleeps now; if this is too soon, nothing is tested.
            self.port.call(came.set)
            came.wait(60)
            super().run(job)
    flow = flow_in(Waiting(), sleep_between_loops=1000)
    began = time.monotonic()
    assert flow.run() is True
    assert time.monotonic() - began < 30


def test_a_call_that_raises_ends_the_run():
    def fail():
        raise ZeroDivisionError('of the construct')
    flow = flow_in(Calling(fail))
    with pytest.raises(ZeroDivisionError, match='of the construct'):
        flow.run()


def test_output_from_elsewhere_is_in_the_log_and_relayed(tmp_path, capsys):
    class Telling(Queue):
        def run(self, job):
            self.port.output(job, b'far ')
            self.port.output(job, 'gr\xfcn\n'.encode('utf-8'))
            super().run(job)
    flow = flow_in(Telling(), tmp_path / 'flow.db', logdir=str(tmp_path / 'logs'))
    assert flow.run() is True
    [log] = (tmp_path / 'logs').rglob('a*.log')
    assert log.read_bytes() == 'far gr\xfcn\n'.encode('utf-8')
    assert 'far gr\xfcn' in capsys.readouterr().err


def test_output_of_a_step_without_a_log_goes_nowhere(tmp_path):
    class Telling(Queue):
        def run(self, job):
            self.port.output(job, b'far\n')
            super().run(job)
    flow = flow_in(Telling(), tmp_path / 'flow.db', logdir=str(tmp_path / 'logs'),
                   capture='none')
    assert flow.run() is True
    assert list((tmp_path / 'logs').rglob('a*.log')) == []


class Polled(TaskConstruct):
    """Notes when it is polled, and ends its job at the fourth time; others wake the loop often."""

    polls = True

    def __init__(self, cadence):
        self.cadence = cadence

    def open(self, port):
        super().open(port)
        self.times, self.over = [], threading.Event()

    def release(self, jobs):
        [self.job] = jobs
        threading.Thread(target=self.disturb, daemon=True).start()

    def disturb(self):
        while not self.over.wait(0.01):
            self.port.call(nothing)

    def poll(self):
        self.times.append(time.monotonic())
        if len(self.times) == 4:
            self.over.set()
            self.port.done(self.job, Outcome('success'))


def test_a_construct_is_polled_in_its_own_cadence():
    # semantics 4.5
    often, seldom = Polled(0.05), Polled(0.4)
    for construct in (often, seldom):
        assert flow_in(construct, sleep_between_loops=100).run() is True
    gaps = [after - before for before, after in zip(seldom.times, seldom.times[1:])]
    assert min(gaps) > 0.3 and len(gaps) == 3
    assert often.times[-1] - often.times[0] < 50    # and not in the steps of the loop


class Array(Queue):
    """Notes which jobs it is given together, as for an array job."""

    def __init__(self):
        super().__init__()
        self.given = []

    def release(self, jobs):
        self.given.append(sorted(job.name for job in jobs))
        super().release(jobs)


def test_the_jobs_of_one_commit_are_released_together_to_each_construct():
    # semantics 6.2
    one, other = Array(), Array()
    flow = seq.Sequent('flow', ':memory:', config={'task_construct': one, 'max_concurrent': 9})
    first = [flow.add_step(name, func=nothing) for name in 'abc']
    first += [flow.add_step(name, func=nothing, config={'task_construct': other})
              for name in 'xy']
    for name in 'de':
        flow.add_step(name, func=nothing, require=first)
    assert flow.run() is True
    assert one.given == [['a', 'b', 'c'], ['d', 'e']]
    assert other.given == [['x', 'y']]


# Work in another place ############################################################


@pytest.fixture
def batch(tmp_path, monkeypatch):
    """A server that runs batch jobs; returns its folder."""
    folder = tmp_path / 'batch'
    monkeypatch.setenv(batchtools.VARIABLE, str(folder))
    server = batchtools.start_server(folder)
    yield folder
    server.send_signal(signal.SIGTERM)
    server.wait(60)


class TestBatch(AdoptionContract):
    making = 'batchtools.BatchConstruct()'
    STRANGE = 'cluster2:7'

    @pytest.fixture(autouse=True)
    def batch(self, batch):
        return batch

    def make_construct(self):
        return batchtools.BatchConstruct()


BATCH = """
from batchtools import BatchConstruct, work

def build(names='ab', construct=BatchConstruct, mode=MODE):
    flow = make(construct, mode, config=CONFIG)
    for name in names:
        flow.add_step(name, func=work, args=(FOLDER, name))
    return flow

CONFIG = {'max_concurrent': 5}
"""


def started(folder):
    """Return the numbers of the batch jobs that run, or ran, and are not settled."""
    return sorted(name.partition('.')[0] for name in os.listdir(str(folder))
                  if name.endswith('.began'))


@contextlib.contextmanager
def opened_store(programs):  # noqa: F811
    """Give the store of the programs, opened to be read."""
    store = seq.SqliteStore(programs.store_path)
    store.open(create=False)
    try:
        yield store
    finally:
        store.close()


def has_run(programs):  # noqa: F811
    with opened_store(programs) as store:
        return store.latest('etl') is not None


def identity_of(programs, path):  # noqa: F811
    """Return what is stored of what was started for a step."""
    with opened_store(programs) as store:
        tasks = store.tasks(store.latest('etl'))
        [process] = [one.process for one in tasks if one.path == path]
    return json.loads(process)


def leave_two(batch, programs, journal, body='leave(build())'):  # noqa: F811
    """Kill a supervisor when two batch jobs run that it has submitted."""
    programs.write(BATCH + body)
    supervisor = programs.start()
    for name in 'ab':
        journal.wait_for(name)
    supervisor.kill()
    supervisor.wait()
    assert started(batch) == ['1', '2']


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_what_a_batch_system_runs_is_adopted_after_a_crash(mode, batch, programs, journal):  # noqa: F811
    # semantics 7.6
    leave_two(batch, programs, journal)
    recovery = programs.start(mode)
    recovery.wait_for('still runs as batch job 2')
    journal.open('go')
    assert recovery.wait() == 0
    assert sorted(journal.words()) == ['a', 'b']
    assert programs.tasks() == {'a': [('1', 0, 1, 'success')], 'b': [('1', 0, 1, 'success')]}
    assert [one for one in os.listdir(str(batch)) if '.job' in one] == []


def test_what_a_batch_system_has_ended_meanwhile_is_taken(batch, programs, journal):  # noqa: F811
    # semantics 7.6
    leave_two(batch, programs, journal)
    journal.open('go')
    wait_until(lambda: len([one for one in os.listdir(str(batch))
                            if one.endswith('.outcome')]) == 2, 'their outcomes')
    assert programs.run('recover') == 0
    assert sorted(journal.words()) == ['a', 'b']
    assert programs.tasks() == {'a': [('1', 0, 1, 'success')], 'b': [('1', 0, 1, 'success')]}
    assert [one for one in os.listdir(str(batch)) if '.job' in one] == []


def test_a_batch_job_whose_step_is_gone_is_found_by_its_identity(batch, programs, journal):  # noqa: F811
    # semantics 7.6
    leave_two(batch, programs, journal,
              "leave(build('ab') if MODE == 'restart' else build('a', 'inline'))")
    assert identity_of(programs, 'b') == {
        'construct': 'batchtools:BatchConstruct', 'identity': '2'}
    recovery = programs.start('recover')
    recovery.wait_for('still runs as batch job 2')
    journal.open('go')
    assert recovery.wait() == 0, recovery.errors()
    assert sorted(journal.words()) == ['a', 'b'], 'a, which is inline now, is adopted, too'


def test_a_batch_job_whose_construct_is_gone_is_an_error_with_the_choices(
        batch, programs, journal):  # noqa: F811
    # semantics 7.7
    leave_two(batch, programs, journal, """
class Other(BatchConstruct):
    def __init__(self, name):
        super().__init__()

if MODE == 'restart':
    leave(build('ab', Other('x')))
leave(build('b', 'inline'))
""")
    recovery = programs.start('recover')
    assert recovery.wait() == 1
    assert "'1' by construct '__main__:Other', which cannot be made (" in recovery.errors()
    assert '--assume-dead' in recovery.errors()


def test_a_batch_job_that_was_not_submitted_is_ready_again(batch, programs, journal):  # noqa: F811
    # semantics 7.6
    programs.write(BATCH + """
class Dying(BatchConstruct):
    maker = 'batchtools:BatchConstruct'
    def submit(self, job):
        kill_me()
leave(build('a', Dying if MODE == 'restart' else BatchConstruct))
""")
    assert programs.run() == -9
    assert programs.last('a') == 'active'
    journal.open('go')
    assert programs.run('continue') == 0
    assert programs.tasks() == {'a': [('1', 0, 1, 'success')]}
    assert journal.words() == ['a']


def test_a_dry_run_says_what_a_batch_system_still_runs(batch, programs, journal):  # noqa: F811
    # semantics 7.9
    leave_two(batch, programs, journal, """
from sequent.dry_run import preview
if MODE == 'restart':
    leave(build())
with preview(build('a', mode='recover')) as dry:
    for one in dry.foresee():
        journal.note('%s %s' % (one.path, one.why))
""")
    before = sorted(os.listdir(str(batch)))
    assert programs.run('look') == 0
    found = [one for one in journal.words() if 'still runs as batch job' in one]
    assert len(found) == 2 and 'the flow does not come to it' in found[1]
    assert sorted(os.listdir(str(batch))) == before
    journal.open('go')


def test_a_new_run_beside_batch_jobs_of_an_earlier_one_is_refused(batch, programs, journal):  # noqa: F811
    # semantics 6.5
    leave_two(batch, programs, journal)
    again = programs.start()
    assert again.wait() == 1
    assert 'still runs as batch job 1' in again.errors()
    journal.open('go')


def test_a_stop_ends_adopted_batch_jobs(batch, programs, journal):  # noqa: F811
    # semantics 8.3
    leave_two(batch, programs, journal, "leave(build('ab' if MODE == 'restart' else 'abc'))")
    recovery = programs.start('recover')
    journal.wait_for('c')
    recovery.kill(signal.SIGTERM)
    assert recovery.wait() == 143
    journal.open('go')
    assert programs.run('recover') == 0
    assert sorted(journal.words()) == ['a', 'a', 'b', 'b', 'c', 'c']


LEAVING = BATCH + """
from batchtools import LeavingConstruct
def leaving(names='ab'):
    return build(names, LeavingConstruct)
"""


def stop_beside_two(batch, programs, journal, number=signal.SIGTERM):  # noqa: F811
    """Stop a supervisor when two batch jobs run that its construct leaves."""
    programs.write(LEAVING + 'leave(leaving())')
    supervisor = programs.start()
    for name in 'ab':
        journal.wait_for(name)
    supervisor.kill(number)
    assert supervisor.wait() == 128 + number
    assert 'running tasks that are ended: 0' in supervisor.errors()
    assert '2 tasks go on' in supervisor.errors()
    return supervisor


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_what_a_construct_leaves_at_a_stop_goes_on_and_is_adopted(
        mode, number, batch, programs, journal):  # noqa: F811
    # semantics 8.3
    stop_beside_two(batch, programs, journal, number)
    assert programs.last('a') == programs.last('b') == 'active'
    assert identity_of(programs, 'b')['identity'] == '2'
    with opened_store(programs) as store:
        assert store.latest('etl').status == 'stopped'
    recovery = programs.start(mode)
    recovery.wait_for('still runs as batch job 2')
    journal.open('go')
    assert recovery.wait() == 0
    assert sorted(journal.words()) == ['a', 'b']
    assert programs.tasks() == {'a': [('1', 0, 1, 'success')], 'b': [('1', 0, 1, 'success')]}


def test_what_a_construct_leaves_may_end_while_no_supervisor_is_there(batch, programs, journal):  # noqa: F811
    # semantics 8.3
    stop_beside_two(batch, programs, journal)
    journal.open('go')
    wait_until(lambda: len([one for one in os.listdir(str(batch))
                            if one.endswith('.outcome')]) == 2, 'their outcomes')
    assert programs.run('continue') == 0
    assert sorted(journal.words()) == ['a', 'b']


def test_a_second_stop_leaves_what_was_adopted(batch, programs, journal):  # noqa: F811
    # semantics 8.3
    stop_beside_two(batch, programs, journal)
    programs.write(LEAVING + "leave(leaving('abc'))")
    recovery = programs.start('recover')
    journal.wait_for('c')
    recovery.kill(signal.SIGTERM)
    assert recovery.wait() == 143
    journal.open('go')
    assert programs.run('recover') == 0
    assert sorted(journal.words()) == ['a', 'b', 'c']


def test_a_new_run_beside_what_a_stop_has_left_running_is_refused(batch, programs, journal):  # noqa: F811
    # semantics 6.5
    stop_beside_two(batch, programs, journal)
    again = programs.start()
    assert again.wait() == 1
    assert 'still runs as batch job 1' in again.errors()
    journal.open('go')
    wait_until(lambda: len([one for one in os.listdir(str(batch))
                            if one.endswith('.outcome')]) == 2, 'their outcomes')
    assert programs.run() == 0
    assert sorted(journal.words()) == ['a', 'a', 'b', 'b']


def test_a_stop_ends_a_process_beside_what_a_construct_leaves(batch, programs, journal):  # noqa: F811
    # semantics 8.3
    programs.write(LEAVING + """
flow = leaving('a')
flow.add_step('p', func=work, args=(FOLDER, 'p'), config={'task_construct': 'process'})
leave(flow)
""")
    supervisor = programs.start()
    journal.wait_for('a')
    pid = journal.pid('p')
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    assert 'running tasks that are ended: 1' in supervisor.errors()
    assert not is_running(pid)
    journal.open('go')
    assert programs.run('recover') == 0
    assert sorted(journal.words()) == ['a', 'p', 'p']


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_a_batch_job_runs_once_however_often_its_supervisor_is_killed(
        mode, batch, programs, journal):  # noqa: F811
    # semantics 7.6
    programs.write(BATCH + """
flow = make(BatchConstruct, MODE, config=CONFIG)
before = ()
for name in 'abcd':
    pair = [flow.add_step(name + str(n), func=work, args=(FOLDER, name), require=before)
            for n in (1, 2)]
    before = tuple(pair)
leave(flow)
""")
    journal.open('go')
    choose = random.Random(20261201)
    supervisor = programs.start()
    for _ in range(8):
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.process.wait(0.25 + choose.random() / 2)
        if supervisor.process.poll() is None:
            supervisor.kill()
        supervisor.wait()
        supervisor = programs.start(mode if has_run(programs) else 'restart')
    assert supervisor.wait() == 0, supervisor.errors()
    assert sorted(journal.words()) == sorted('abcd' * 2)


class Failing(TaskConstruct):
    """Stops the run beside its job, which it leaves running, and which fails in that moment."""

    can_adopt = leaves = polls = True

    def prepare(self, job):
        job.process = '1'

    def release(self, jobs):
        [self.job] = jobs
        os.kill(os.getpid(), signal.SIGTERM)

    def poll(self):
        if self.port.stopping and self.job is not None:
            self.port.done(self.job, Outcome('failure', 'no such city'))
            self.job = None


def test_a_stop_is_not_why_a_job_has_failed_that_its_construct_leaves(tmp_path):
    # semantics 8.3
    flow = flow_in(Failing(), tmp_path / 'flow.db')
    with pytest.raises(SystemExit):
        flow.run()
    assert (str(the_task(flow).status), the_task(flow).error) == ('failure', 'no such city')
