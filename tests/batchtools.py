"""A batch system in its smallest form, and the construct that runs tasks in it.

Jobs are files in a folder, and a server, a process that no supervisor has started, runs them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time

import sequent
from runtools import Journal
from sequent import Outcome, Sight, TaskConstruct, pack_job, read_outcome, write_aside

HERE = os.path.dirname(os.path.abspath(__file__))
#: The environment variable that names the folder.
VARIABLE = 'TEST_BATCH_FOLDER'


class BatchConstruct(TaskConstruct):
    """Submits each task as a job: ``N`` is taken, ``N.job`` submitted, ``N.job.began`` runs,
    ``N.job.outcome`` has ended, ``N.job.kill`` is to be ended."""

    can_kill = True
    can_adopt = True
    tells_begin = True
    polls = True
    cadence = 0.02

    def __init__(self):
        self.folder = os.environ[VARIABLE]

    def open(self, port):
        super().open(port)
        self.jobs = {}      # job -> whether it is known to have begun
        self.killed = set()

    def path(self, job):
        return os.path.join(self.folder, job.process + '.job')

    def prepare(self, job):
        number = 1
        while job.process is None:
            try:
                os.close(os.open(os.path.join(self.folder, str(number)),
                                 os.O_CREAT | os.O_EXCL))
                job.process = str(number)
            except FileExistsError:
                number += 1

    def release(self, jobs):
        for job in jobs:
            self.submit(job)

    def submit(self, job):
        self.jobs[job] = False
        write_aside(self.path(job), pack_job(job))

    def settle(self, job):    # No number is given twice.
        for ending in ('', '.began', '.outcome', '.kill'):    # The server does not begin it again.
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path(job) + ending)

    def kill(self, job, force):
        self.killed.add(job)
        write_aside(self.path(job) + '.kill', b'')

    def look(self, job):
        path, text = self.path(job), 'batch job ' + job.process
        outcome = read_outcome(path + '.outcome')
        if outcome is not None:
            return Sight('ended', outcome, text=text)
        if not os.path.isdir(self.folder) or not job.process.isdigit():
            return Sight('unknown', text=text)
        if not os.path.exists(path):
            return Sight('never_began', text=text)
        return Sight('running', None, began(path), text)

    def adopt(self, job):
        self.jobs[job] = False

    def poll(self):
        for job, known in list(self.jobs.items()):
            when = None if known else began(self.path(job))
            if when is not None:
                self.jobs[job] = True
                self.port.began(job, when)
            outcome = read_outcome(self.path(job) + '.outcome')
            if outcome is not None:
                del self.jobs[job]
                if job in self.killed and self.port.stopping:
                    outcome = outcome._replace(interrupted=True)
                self.port.done(job, outcome)

    def close(self):
        for job in [] if self.leaves else self.jobs:
            self.kill(job, True)


class LeavingConstruct(BatchConstruct):
    leaves = True


def work(folder, name):
    """Note in the journal of a test that a job runs, and wait at a gate."""
    journal = Journal(folder)
    journal.note(name)
    journal.sign(name)
    journal.pass_gate('go')


def began(path):
    try:
        return os.stat(path + '.began').st_mtime
    except FileNotFoundError:
        return None


# The server #######################################################################


def start_server(folder):
    """Return the `subprocess.Popen` of a server; it ends its jobs at SIGTERM."""
    os.makedirs(str(folder), 0o700)
    paths = os.pathsep.join([os.path.dirname(HERE), HERE])
    return subprocess.Popen([sys.executable, os.path.abspath(__file__), str(folder)],
                            start_new_session=True, env=dict(os.environ, PYTHONPATH=paths))


def serve(folder):
    over, running = [], {}
    signal.signal(signal.SIGTERM, lambda *_: over.append(True))
    while not over:
        for name in os.listdir(folder):
            path = os.path.join(folder, name)
            if name.endswith('.job') and began(path) is None and not os.path.exists(
                    os.path.join(folder, 'full')):
                write_aside(path + '.began', b'')
                running[path] = subprocess.Popen(
                    [sys.executable, '-m', 'sequent', '--job', path], start_new_session=True)
        for path, process in list(running.items()):
            if os.path.exists(path + '.kill') and process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            if process.poll() is not None:
                del running[path]
                if not os.path.exists(path + '.outcome') and os.path.exists(path):
                    sequent.write_outcome(path + '.outcome', Outcome('failure', 'killed by SIGTERM'
                                          if os.path.exists(path + '.kill') else 'died'))
        time.sleep(0.01)
    for process in running.values():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


if __name__ == '__main__':
    serve(sys.argv[1])
