"""What the tests of flows share: a trace of what ran, flows in stores of their own, waiting.

A test module that uses the fixtures says so::

    pytest.register_assert_rewrite('flowtools')
    pytest_plugins = ['flowtools']
"""

import os
import sys
import time

import pytest

import sequent as seq

CONSTRUCTS = ('process', 'thread', 'inline')
on_all_constructs = pytest.mark.parametrize('construct', CONSTRUCTS)
on_parallel_constructs = pytest.mark.parametrize('construct', ('process', 'thread'))

PATIENCE = 30     # seconds after which what is waited for is taken not to come


def wait_for(condition, what):
    """Return once ``condition()`` is true; fail when that takes too long."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError('waited %d seconds in vain for %s' % (PATIENCE, what))
        time.sleep(0.002)


class Trace:
    """What ran, in order, one line each in a file: written from any process, read by the test."""

    def __init__(self, path):
        self.path = str(path)

    def __call__(self, *words):
        """Write a line."""
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, (' '.join(map(str, words)) + '\n').encode())
        finally:
            os.close(fd)

    @property
    def lines(self):
        if not os.path.exists(self.path):
            return []
        with open(self.path) as stream:
            return stream.read().splitlines()

    # Functions for steps.

    def run(self, *args, **kwargs):
        """Write ``path@sequence`` of the running task."""
        self(here())

    def fail(self, *args, **kwargs):
        """Write ``path@sequence`` of the running task, then fail."""
        self(here())
        raise ValueError('no good: %s' % here())

    def fail_at(self, *sequences):
        """Write ``path@sequence``, then fail if it is one of these sequences."""
        self(here())
        if seq.current().sequence in sequences:
            raise ValueError('no good: %s' % here())

    def meet(self, *others):
        """Write ``path@sequence``, and wait until all the others have done so."""
        self(here())
        wait_for(lambda: set(others) <= set(self.lines), 'all of %s' % ', '.join(others))


def here():
    """Return ``path@sequence`` of the running task."""
    return '%s@%s' % (seq.current().name, seq.current().sequence)


def do_nothing():
    pass


def statuses(flow):
    """Return {'path@sequence': status} of all tasks."""
    return {'%s@%s' % (task.path, task.sequence): str(task.status) for task in flow.tasks()}


def task_of(flow, path, sequence='1'):
    """Return what ``tasks()`` tells about one task."""
    return next(one for one in flow.tasks() if (one.path, one.sequence) == (path, sequence))


class SteppedConstruct(seq.TaskConstruct):
    """Has tasks run side by side without threads or time: one ends whenever the supervisor waits.

    The supervisor waits when it has started all that it lets run, so what runs then is exactly
    what may run side by side.

    Attributes:
        started: ``path@sequence`` of every task, in the order in which they started.
        seen: for each time the supervisor waited, what ran, in the order of the start.
        last_first: whether the task that started last ends first.
    """

    def __init__(self, last_first=False):
        self.last_first = last_first
        self.started = []
        self.seen = []
        self.running = []

    @property
    def most(self):
        """How many tasks ran at one time at most."""
        return max(map(len, self.seen))

    def most_of(self, path):
        """How many tasks of a step ran at one time at most."""
        return max(sum(one.split('@')[0] == path for one in names) for names in self.seen)

    def open(self, port):
        self.port = port
        self.reader, self.writer = os.pipe()
        port.watch(self.reader, self.end_one)

    def release(self, jobs):
        for job in jobs:
            self.running.append(job)
            self.started.append('%s@%s' % (job.name, job.sequence))
            os.write(self.writer, b'.')

    def end_one(self):
        os.read(self.reader, 1)
        self.seen.append(['%s@%s' % (job.name, job.sequence) for job in self.running])
        job = self.running.pop(-1 if self.last_first else 0)
        self.port.done(job, seq.run_job(job))

    def close(self):
        self.port.unwatch(self.reader)
        os.close(self.reader)
        os.close(self.writer)


@pytest.fixture
def trace(tmp_path):
    return Trace(tmp_path / 'trace')


@pytest.fixture
def stepped():
    return SteppedConstruct()


@pytest.fixture(params=['memory', 'sqlite'])
def new_flow(request, tmp_path):
    """A function that makes flows in one store, inline unless told otherwise.

    Its arguments are those of `Sequent` by name; others are taken as config. ``new_flow.store``
    is what its flows are given as their store.
    """
    store = seq.MemoryStore() if request.param == 'memory' else str(tmp_path / 'flow.db')
    return _flow_maker(store, tmp_path)


@pytest.fixture
def flow(tmp_path):
    """An inline flow in memory."""
    return _flow_maker(seq.MemoryStore(), tmp_path)()


@pytest.fixture
def memory_flow(tmp_path):
    """A function that makes flows in one store in memory: see ``new_flow``."""
    return _flow_maker(seq.MemoryStore(), tmp_path)


def _flow_maker(store, folder):
    def make(kind=seq.Sequent, **given):
        named = {key: given.pop(key) for key in ('name', 'store', 'run_mode', 'recovery_run',
                                                 'run_id') if key in given}
        config = dict({'task_construct': 'inline', 'logdir': str(folder / 'logs')}, **given)
        return kind(**dict({'name': 'flow', 'store': store}, config=config, **named))

    make.store = store
    return make


def executed_lines(function):
    """Return how many lines of the library are executed by ``function()``: its cost."""
    count = [0]

    def in_library(frame, event, arg):
        if event == 'line':
            count[0] += 1
        return in_library

    def on_call(frame, event, arg):
        return in_library if frame.f_code.co_filename == seq.__file__ else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        function()
    finally:
        sys.settrace(before)
    return count[0]
