"""What constructs whose work happens elsewhere ask of the driver: begin, call, output, cadence."""

import threading
import time

import pytest

import sequent as seq
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

    def release(self, job):
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

    def release(self, job):
        self.job = job
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
