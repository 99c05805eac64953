"""The parcel: a job and its outcome on the way to another process, and ``--job FILE``."""

import itertools
import os
import pickle
import signal
import subprocess
import sys

import pytest

import contracts
import sequent as seq
from sequent import Job, Outcome, TaskConstruct

TESTS = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.abspath(seq.__file__))


def start_job(path, *more):
    return subprocess.Popen([sys.executable, '-m', 'sequent', '--job', str(path)] + list(more),
                            env=dict(os.environ, PYTHONPATH=os.pathsep.join([ROOT, TESTS])),
                            stderr=subprocess.PIPE, start_new_session=True)


class FileConstruct(TaskConstruct):
    """Runs each job by ``python -m sequent --job FILE``: what a construct of another host does."""

    can_kill = True
    polls = True
    cadence = 0.05

    def __init__(self, folder):
        self.folder = folder
        self.numbers = itertools.count()

    def open(self, port):
        super().open(port)
        self.running = {}

    def prepare(self, job):
        job.state = self.folder / str(next(self.numbers))
        job.state.write_bytes(seq.pack_job(job))

    def release(self, jobs):
        self.running.update((job, start_job(job.state)) for job in jobs)

    def kill(self, job, force):
        os.killpg(self.running[job].pid, signal.SIGKILL if force else signal.SIGTERM)

    def poll(self):
        for job, process in list(self.running.items()):
            if process.poll() is not None:
                process.stderr.close()
                del self.running[job]
                outcome = seq.read_outcome(str(job.state) + '.outcome') or Outcome(
                    'failure', seq.manner_of_end(process.returncode))
                if self.port.stopping and outcome.status == 'failure':
                    outcome = outcome._replace(interrupted=True)
                self.port.done(job, outcome)

    def withdraw(self, job):
        job.state.unlink()

    settle = withdraw

    def close(self):
        for process in self.running.values():
            process.kill()
            process.communicate()


class TestFileConstruct(contracts.ConstructContract):
    @pytest.fixture(autouse=True)
    def in_a_folder_of_its_own(self, tmp_path):
        (tmp_path / 'jobs').mkdir(mode=0o700)
        self.folder = tmp_path / 'jobs'

    def make_construct(self):
        return FileConstruct(self.folder)


def echo(value):
    return value


def packed(tmp_path, content):
    path = tmp_path / 'job'
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def test_a_program_runs_from_a_parcel(tmp_path):
    job = Job('a', func=seq.Command(['sh', '-c', 'echo here; exit 3'], ok=[3], cwd=str(tmp_path)),
              log=str(tmp_path / 'log'))
    process = start_job(packed(tmp_path, seq.pack_job(job)))
    assert (process.communicate()[1], process.returncode) == (b'', 0)
    assert pickle.loads(seq.read_outcome(str(tmp_path / 'job.outcome')).result) == 3
    assert (tmp_path / 'log').read_text() == 'here\n'


def test_a_failure_is_the_exit_code_1_and_in_the_outcome(tmp_path):
    job = Job('a', func=contracts.fail, args=('no such city',))
    process = start_job(packed(tmp_path, seq.pack_job(job)))
    process.communicate()
    outcome = seq.read_outcome(str(tmp_path / 'job.outcome'))
    assert (process.returncode, outcome.error) == (1, 'ValueError: no such city')
    assert outcome.ended > 1e9


@pytest.mark.parametrize('content, said', [
    (b'', 'is damaged'), (b'junk', 'is damaged'), (None, 'No such file'),
    (pickle.dumps((1, 2)), 'is damaged')], ids=['empty', 'junk', 'missing', 'another pickle'])
def test_what_is_no_parcel_is_an_error_with_a_sentence(tmp_path, content, said):
    path = tmp_path / 'job' if content is None else packed(tmp_path, content)
    process = start_job(path)
    error = process.communicate()[1].decode()
    assert process.returncode == 4
    assert said in error and 'job' in error and 'Traceback' not in error
    assert not (tmp_path / 'job.outcome').exists()


def test_a_parcel_that_others_can_write_is_not_run(tmp_path):
    path = packed(tmp_path, seq.pack_job(Job('a', func=contracts.touch,
                                             args=(str(tmp_path / 'ran'),))))
    path.chmod(0o666)
    process = start_job(path)
    assert b'another user' in process.communicate()[1]
    assert process.returncode == 4 and not (tmp_path / 'ran').exists()


def test_a_parcel_holds_parameters_but_no_secret(tmp_path):
    (tmp_path / 'flow.py').write_text('''
import sequent as seq
day = seq.parameter('day', '2020-01-01')
password = seq.parameter('password', 'none', secret=True)
def ask():
    return day, password
if __name__ == '__main__':
    print(seq.pack_job(seq.Job('a', func=ask)).hex())
    try:
        seq.pack_job(seq.Job('a', func=print, args=(password,)))
    except seq.ConstructError as error:
        print(error)
    assert b'hunter2' in seq.pack_job(seq.Job('a', func=ask, args=(password,)), secrets=True)
''')
    environment = dict(os.environ, PYTHONPATH=ROOT, SEQUENT_PARAM_DAY='2026-12-01',
                       SEQUENT_PARAM_PASSWORD='hunter2')
    said = subprocess.run([sys.executable, 'flow.py'], cwd=str(tmp_path), env=environment,
                          stdout=subprocess.PIPE, check=True).stdout.decode().splitlines()
    assert said[1] == ('it cannot be sent to another process: it holds the value of a secret '
                       'parameter')
    content = bytes.fromhex(said[0])
    assert b'hunter2' not in content
    process = start_job(packed(tmp_path, content))
    assert (process.communicate()[1], process.returncode) == (b'', 0)
    result = pickle.loads(seq.read_outcome(str(tmp_path / 'job.outcome')).result)
    assert result == ('2026-12-01', 'none')


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(seq.ConstructError, match='cannot be sent to another process'):
        seq.pack_job(Job('a', func=lambda: None))


def test_what_the_receiver_knows_is_not_sent():
    value = ['large'] * 1000
    known = Job('', flow='flow', shared={'A': 'b'}, func=echo, args=(value,))
    job = Job('a', '1.2', flow='flow', shared=known.shared, func=echo, args=known.args,
              kwargs=known.kwargs, items=known.items)
    content = seq.pack_job(job, known)
    assert len(content) < 300 and b'large' not in content
    there = seq.unpack_job(content, known)
    there.load()
    assert (there.name, there.sequence, there.env, there.func(*there.args)) == (
        'a', '1.2', {'A': 'b'}, value)
    assert known.name == ''


OUTCOMES = [
    Outcome('success'), Outcome('success', result=b'\0\xff' * 99),
    Outcome('failure', 'ValueError: \udc80 gr\xfcn', 'trace\n', warning='w', interrupted=True,
            ended=1.25, lost=True, exited=True, kinds=('a.B', 'c.D'), code=-9, short=True)]


@pytest.mark.parametrize('outcome', OUTCOMES, ids=['plain', 'result', 'all'])
def test_an_outcome_is_the_same_after_the_way(outcome):
    assert seq.unpack_outcome(seq.pack_outcome(outcome)) == outcome


@pytest.mark.parametrize('content', [
    b'', b'[]', b'{"status": 1, "no": 2}', b'\xff', b'{"result": 7}'])
def test_a_damaged_outcome_is_a_value_error(content):
    with pytest.raises(ValueError):
        seq.unpack_outcome(content)
