"""How tasks die, and what is said of it (semantics 3.1, 7.6): each death fails its task with a
sentence that names the cause, and the supervisor lives, goes on, and keeps nothing of the dead.
"""

import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time

import pytest

import sequent
import tally
from runtools import (  # noqa: F401
    DEADLINE, Calls, Journal, a_flow, a_private_temporary_folder, fail, is_running, journal,
    programs, read, store)
from sequent import AlreadyRunningError, Command

METHODS = [one for one in ('fork', 'spawn', 'forkserver')
           if one in multiprocessing.get_all_start_methods()
           and (one != 'forkserver' or sys.version_info >= (3, 7))]
#: Size of the large result; SEQUENT_LARGE_RESULT=1073741824 makes it a gigabyte.
LARGE = int(os.environ.get('SEQUENT_LARGE_RESULT') or 200 << 20)


# How functions end ##############################################################


def die(number):
    import faulthandler
    faulthandler.disable()  # pytest's
    os.kill(os.getpid(), number)
    signal.pause()


class Endless:
    def __getattr__(self, name):
        return getattr(self, name)


def overflow_the_stack():
    """Recurse through C, with Python's own limit out of the way (3.12 has another one for C)."""
    import faulthandler
    faulthandler.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(1 << 30)
    return Endless().x


def recurse():
    return recurse()


def _room(size):
    """Limit the memory of this process to what it has and so many bytes."""
    with open('/proc/self/statm') as stream:
        used = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + size, used + size))


def exceed_the_memory():
    _room(64 << 20)
    return bytearray(1 << 30)


def leave_no_memory():
    """Fill the memory up to the last block, so that not even the failure can be told."""
    _room(4 << 20)
    kept = []
    size = 1 << 20
    while size:
        try:
            while True:
                kept.append(bytearray(size))
        except MemoryError:
            size >>= 1
    globals()['_kept'] = kept
    raise MemoryError('no block is left')


class Unpicklable(Exception):
    def __init__(self, text):
        super().__init__(text)
        self.lock = __import__('threading').Lock()


class DoesNotUnpickle(Exception):
    def __init__(self, one, two):
        super().__init__('%s and %s' % (one, two))


class Unshowable(Exception):
    def __str__(self):
        raise ValueError('never shown')

    __repr__ = __str__


class LeavesWhenShown(Exception):
    """What it does when it is asked is no Exception."""

    def __str__(self):  # noqa: PLE0307 (it does not come to return anything)
        sys.exit('from its str')

    __repr__ = __str__


class Text(str):
    pass


class ShownByAText(sequent.ProgramError):
    """Its text is of a class that nobody else knows."""

    def __str__(self):
        return Text('shown by a text')


class LeavesWhenPickled:
    def __reduce__(self):
        sys.exit('from its pickling')


def throw(kind, *args):
    raise kind(*args)


def exit_with_what_cannot_be_shown():
    sys.exit(LeavesWhenShown())


EXCEPTIONS = {
    'sys.exit': (sys.exit, ('no input today',), 'SystemExit: no input today'),
    'recursion': (recurse, (), 'RecursionError: '),
    'unpicklable': (throw, (Unpicklable, 'locked'), 'Unpicklable: locked'),
    'does not unpickle': (throw, (DoesNotUnpickle, 'a', 'b'), 'DoesNotUnpickle: a and b'),
    'unshowable': (throw, (Unshowable,), 'Unshowable: <Unshowable that cannot be shown: '),
    'leaves when shown': (throw, (LeavesWhenShown,), 'LeavesWhenShown: <LeavesWhenShown that '),
    'shown by a text': (throw, (ShownByAText, ''), 'shown by a text'),
    'an exit that cannot be shown': (exit_with_what_cannot_be_shown, (), 'SystemExit: <Leaves'),
}
DEATHS = {
    'SIGKILL': (die, (signal.SIGKILL,), 'died: signal SIGKILL'),
    'SIGSEGV': (die, (signal.SIGSEGV,), 'died: signal SIGSEGV'),
    'stack overflow': (overflow_the_stack, (), 'died: signal SIGSEGV|RecursionError: '),
    'os._exit(0)': (os._exit, (0,), 'exited with code 0 before its outcome was delivered'),
    'os._exit(3)': (os._exit, (3,), 'exited with code 3 before its outcome was delivered'),
    'memory': (exceed_the_memory, (), 'MemoryError'),
    'no memory': (leave_no_memory, (), 'MemoryError|exited with code 1 before|died: signal SIG'),
}


def run_to_their_ends(ends, path, **config):
    """Run a flow of a step for each end, and one after; return {name: task}."""
    flow = a_flow(path, config=dict(config, stop_on_exception=False, max_concurrent=2))
    for name, (func, args, _) in ends.items():
        flow.add_step(name, func=func, args=args)
    flow.add_step('after', func=os.getpid)
    assert flow() is False
    return {task.path: task for task in flow.tasks()}


@pytest.fixture(scope='module', params=METHODS)
def dead(request, tmp_path_factory):
    """The tasks of a flow in which each dies in its way, by start method."""
    return run_to_their_ends(
        dict(EXCEPTIONS, **DEATHS), str(tmp_path_factory.mktemp('dead') / 'etl.db'),
        task_construct='process', start_method=request.param)


@pytest.mark.parametrize('name', sorted(dict(EXCEPTIONS, **DEATHS)))
def test_a_death_fails_its_task_with_a_sentence_that_names_the_cause(name, dead):
    # semantics 3.1
    tally.count('deaths of tasks')
    task = dead[name]
    assert task.status == 'failure'
    words = dict(EXCEPTIONS, **DEATHS)[name][2].split('|')
    assert any(word in task.error for word in words), task.error
    assert dead['after'].status == 'success'


@pytest.mark.parametrize('construct', ['thread', 'inline'])
@pytest.mark.parametrize('name', sorted(EXCEPTIONS))
def test_an_exception_of_any_kind_fails_its_task_beside_the_supervisor(name, construct, store):
    # semantics 3.1
    tasks = run_to_their_ends({name: EXCEPTIONS[name]}, store, task_construct=construct)
    assert tasks[name].status == 'failure'
    assert EXCEPTIONS[name][2] in tasks[name].error
    assert tasks['after'].status == 'success'


@pytest.mark.parametrize('construct', ['process', 'thread', 'inline'])
def test_a_result_that_leaves_when_it_is_pickled_harms_nobody(construct, store):
    # what cannot be pickled is kept as its repr
    flow = a_flow(store, construct)
    flow.add_step('a', func=LeavesWhenPickled)
    flow.add_step('b', func=os.getpid)
    assert flow() is True


# What they leave #################################################################


def use_a_pool():
    with multiprocessing.Pool(2) as pool:
        return pool.map(abs, [-1, -2])


def use_a_process():
    process = multiprocessing.Process(target=os.getpid)
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize('method', METHODS)
def test_a_step_may_use_multiprocessing_itself(method, tmp_path):
    flow = a_flow(str(tmp_path / 'etl.db'), 'process', config={'start_method': method})
    flow.add_step('pool', func=use_a_pool)
    flow.add_step('process', func=use_a_process)
    assert flow() is True
    found = {task.path: task.result for task in flow.tasks()}
    assert found == {'pool': [1, 2], 'process': 0}


def leave_a_daemon(folder, end, *args):
    """Fork what keeps all descriptors open for long, wait until it runs, and end."""
    pid = os.fork()
    if not pid:
        os.setsid()
        time.sleep(120)
        os._exit(0)
    Journal(folder).sign('daemon', pid)
    return end(*args)


@pytest.mark.parametrize('end, args, error', [
    (int, ('7',), None), (fail, (), 'on purpose'), (os._exit, (3,), 'exited with code 3 '),
    (die, (signal.SIGKILL,), 'signal SIGKILL')], ids=['success', 'error', 'exit', 'kill'])
@pytest.mark.parametrize('method', METHODS)
def test_a_daemon_that_holds_pipe_and_log_open_does_not_hide_an_end(
        method, end, args, error, journal, tmp_path):
    # the daemon lives for two minutes
    flow = a_flow(str(tmp_path / 'etl.db'), 'process', config={'start_method': method})
    flow.add_step('a', func=leave_a_daemon, args=(str(tmp_path), end) + args)
    begun = time.monotonic()
    assert flow() is (error is None)
    assert time.monotonic() - begun < DEADLINE
    assert is_running(journal.pid('daemon'))
    [task] = flow.tasks()
    assert error is None and task.result == 7 or error in task.error


def test_a_daemon_of_a_program_does_not_hide_its_end(journal, tmp_path):
    flow = a_flow(str(tmp_path / 'etl.db'), 'process')
    flow.add_step('a', func=Command('sleep 120 & echo $! > {pid}; kill -KILL $$'.replace(
        '{pid}', str(tmp_path / 'daemon')), shell=True))
    begun = time.monotonic()
    assert flow() is False
    assert time.monotonic() - begun < DEADLINE
    journal.sign('daemon', int(read(tmp_path / 'daemon')))
    assert is_running(journal.pid('daemon'))
    [task] = flow.tasks()
    assert 'SIGKILL' in task.error


def open_descriptors():
    return set(os.listdir('/proc/self/fd'))


@pytest.mark.parametrize('func', [
    pytest.param(lambda: os._exit(3), id='process'),
    pytest.param(Command('kill -KILL $$', shell=True), id='program')])
def test_after_200_tasks_that_died_no_descriptor_and_no_process_is_left(func, tmp_path):
    # semantics 8.8
    def run(count):
        flow = a_flow(str(tmp_path / ('%d.db' % count)), 'process',
                      config={'stop_on_exception': False})
        flow.add_step('a', func=func, loop=range(count), config={'max_concurrent': 4})
        assert flow() is False
        return sum(task.kind == 'leaf' and task.status == 'failure' for task in flow.tasks())

    run(2)    # what is opened once stays open
    before = open_descriptors()
    assert run(200) >= 200
    assert len(open_descriptors()) <= len(before)
    assert multiprocessing.active_children() == []


MEMORY = '''
    import re
    def resident():
        with open('/proc/self/status') as stream:
            return int(re.search(r'VmRSS:\\s*(\\d+)', stream.read()).group(1)) << 10
    def large():
        return b'x' * %d
    flow = make(store=%s)
    a = flow.add_step('a', func=large)
    b = flow.add_step('b', func=len, args=(seq.ResultOf(a),) if %s else ('',), require=(a,))
    flow.add_step('c', func=os.getpid, require=(b,))
    before = resident()
    ok = flow()
    kept = resident() - before
    sys.stderr.write('kept %%d\\n' %% kept)
    os._exit(0 if ok and kept < %d else 1)
    '''


@pytest.mark.parametrize('where, asked, copies', [
    ('STORE', True, 0), ('STORE', False, 0), ("':memory:'", False, 1)])
def test_of_a_large_result_memory_holds_no_more_copies_than_the_store(
        where, asked, copies, programs):
    # semantics 6.1: ':memory:' has nowhere else to keep what `tasks()` tells
    programs.write(MEMORY % (LARGE, where, asked, copies * LARGE + LARGE // 4))
    supervisor = programs.start()
    assert supervisor.process.wait(timeout=DEADLINE * max(4, LARGE >> 26)) == 0, (
        supervisor.errors())


# Orphans #########################################################################


def recorded(path, **identity):
    """Record the one task of a flow as running in this process, as edited; return its place."""
    flow = a_flow(path, 'process')
    flow.add_step('a', func=fail)
    assert flow() is False
    kept = flow.open_store()
    try:
        run = kept.latest('etl')
        [task] = kept.tasks(run)
        process = dict(json.loads(sequent.process_identity()), **identity)
        task = task._replace(status='active', error=None, ended=None,
                             process=json.dumps(process))
        kept.commit(run, [task])
        kept.finish(run._replace(status='active'))
        return sequent.outcome_path(kept.folder, 'etl', run.run_id, 'a', '1', 0, 1)
    finally:
        flow.close_store()


def again(path, mode, calls, **config):
    flow = a_flow(path, mode=mode, config=config)
    flow.add_step('a', func=calls)
    return flow


ELSEWHERE = [{'host': 'elsewhere', 'boot': 'x'}, {'ns': 'another'}]


@pytest.mark.parametrize('mode', ['restart', 'recover', 'continue'])
@pytest.mark.parametrize('identity', ELSEWHERE)
def test_an_orphan_that_cannot_be_looked_at_is_an_error_with_the_choices(
        mode, identity, tmp_path):
    # semantics 6.5, 7.6, 7.7
    path = str(tmp_path / 'etl.db')
    recorded(path, **identity)
    calls = Calls()
    with pytest.raises(AlreadyRunningError) as caught:
        again(path, mode, calls)()
    for words in ("step 'a' at 1", str(os.getpid()), 'go on there', 'assume_dead',
                  identity.get('host', socket.gethostname())):
        assert words in str(caught.value)
    assert calls.calls == []


@pytest.mark.parametrize('mode', ['restart', 'recover', 'continue'])
@pytest.mark.parametrize('identity', ELSEWHERE)
def test_one_that_is_known_to_be_dead_runs_again(mode, identity, tmp_path):
    # semantics 7.7
    path = str(tmp_path / 'etl.db')
    recorded(path, **identity)
    calls = Calls()
    assert again(path, mode, calls, assume_dead=True)() is True
    assert calls.names == ['a']


@pytest.mark.parametrize('assume_dead', [False, True])
def test_the_outcome_that_an_orphan_elsewhere_has_left_is_taken(assume_dead, tmp_path):
    # whoever finished it, it has finished
    path = str(tmp_path / 'etl.db')
    place = recorded(path, host='elsewhere', boot='x')
    sequent.write_outcome(place, sequent.Outcome('success', ended=1.0))
    calls = Calls()
    assert again(path, 'recover', calls, assume_dead=assume_dead)() is True
    assert calls.calls == []
    assert not os.path.exists(place)


@pytest.mark.parametrize('identity', [{'boot': 'an earlier one'}, {'start': 1},
                                      {'pid': 2 ** 22 + 1}])
def test_to_assume_nothing_is_not_needed_where_it_can_be_looked_at(identity, tmp_path):
    path = str(tmp_path / 'etl.db')
    recorded(path, **identity)
    calls = Calls()
    assert again(path, 'recover', calls)() is True
    assert calls.names == ['a']


# Children that somebody else reaps ###############################################

REAPED = '''
    def reap():
        for _ in range(200):
            try:
                if os.waitpid(-1, os.WNOHANG)[0]:
                    break
            except ChildProcessError:
                pass
            time.sleep(0.01)
    def work(code):
        journal.sign('work')
        journal.pass_gate('go')
        os._exit(code) if code else None
    if %(ignored)s:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    flow = make(config={'start_method': %(method)r, 'stop_on_exception': False})
    flow.add_step('dies', func=work, args=(7,))
    flow.add_step('ends', func=work, args=(0,))
    if not %(ignored)s:
        flow.add_step('reaps', func=reap, config={'task_construct': 'thread'})
    flow.add_step('program', command=['sh', '-c', 'exit 3'])
    if __name__ == '__main__':
        leave(flow)
    '''


IGNORED = '''
    def work():
        subprocess.run(['sh', '-c', 'exit 3'], check=True)
    def main():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        flow = make(config={'stop_on_exception': False})
        for number in range(%d):
            flow.add_step('f%%d' %% number, func=work)
        for construct in ('process', 'thread', 'inline'):
            flow.add_step(construct, command=['sh', '-c', 'exit 3'],
                          config={'task_construct': construct})
        leave(flow)
    if __name__ == '__main__':
        main()
    '''


@pytest.mark.parametrize('many', [1, 30], ids=['', 'tender'])
def test_no_failed_program_counts_as_a_success_where_sigchld_is_ignored(programs, many):
    programs.write(IGNORED % many)
    assert programs.run() == 1
    names = ['f%d' % number for number in range(many)] + ['process', 'thread', 'inline']
    assert [programs.last(name) for name in names] == ['failure'] * len(names)


@pytest.mark.parametrize('method', ['fork', 'spawn'])
@pytest.mark.parametrize('ignored', [True, False])
def test_a_death_is_noticed_though_somebody_else_reaps(programs, journal, ignored, method):
    programs.write(REAPED % {'ignored': ignored, 'method': method})
    supervisor = programs.start()
    journal.pid('work')
    journal.open('go')

    assert supervisor.wait() == 1

    assert [programs.last(name) for name in ('dies', 'ends', 'program')] == [
        'failure', 'success', 'failure']
    assert 'Traceback' not in supervisor.errors()
    assert ('how is not known' in supervisor.errors()
            or 'exited with code 7' in supervisor.errors())


# Supervisors that die with forks of others beside them ###########################

FORKS = '''
    def work(name):
        journal.note(name + ' begins')
        journal.pass_gate('go')
        journal.note(name + ' ends')
    def fork():
        while journal.count('process begins') + journal.count('program begins') < 2:
            time.sleep(0.01)
        if not os.fork():    # it holds all that the supervisor has open
            journal.sign('daemon')
            while True:
                signal.pause()
        journal.pid('daemon')
        kill_me()
    flow = make(config={'start_method': %r, 'max_concurrent': 4})
    flow.add_step('process', func=work, args=('process',))
    flow.add_step('program', func=seq.Command(
        'echo program begins >> journal; '
        'until [ -e gate-go -o -e gate-all ]; do sleep 0.02; done; '
        'echo program ends >> journal', shell=True))
    if MODE == 'restart':
        flow.add_step('fork', func=fork, config={'task_construct': 'thread'})
    if __name__ == '__main__':
        leave(flow)
    '''


@pytest.mark.parametrize('method', METHODS)
def test_a_dead_supervisor_is_noticed_though_a_daemon_holds_its_pipes(programs, journal, method):
    # semantics 7.6: however long others live
    programs.write(FORKS % method)
    assert programs.run() == -signal.SIGKILL
    journal.open('go')

    assert programs.run('recover') == 0

    assert is_running(journal.pid('daemon'))
    for name in ('process', 'program'):
        assert journal.count(name + ' begins') == journal.count(name + ' ends') == 1


def test_to_assume_death_does_not_kill_or_double_one_that_is_seen_to_live(programs, journal):
    # semantics 7.6, 7.7: never a second copy
    programs.write('''
        def one():
            journal.sign('a')
            journal.note('started in ' + MODE)
            journal.pass_gate('go')
        flow = make(config={'assume_dead': True})
        flow.add_step('a', func=one)
        leave(flow)
        ''')
    pid = programs.leave_orphan()
    second = programs.start('recover')
    second.wait_for('adopted')
    journal.open('go')
    assert second.wait() == 0
    assert journal.words() == ['started in restart']
    since = programs.tasks()['a']
    assert since == [('1', 0, 1, 'success')]
    assert 'step a at 1 still runs as process %d since 2' % pid in second.errors()


class Unusual(BaseException):
    """As asyncio.CancelledError is one, it is no Exception."""


class RaisesWhenPickled:
    def __reduce__(self):
        raise Unusual


class RaisesWhenShown(Exception):
    def __str__(self):
        raise Unusual


def raise_it():
    raise RaisesWhenShown


@pytest.mark.parametrize('construct', ['inline', 'thread', 'process'])
@pytest.mark.parametrize('function', [RaisesWhenPickled, raise_it])
def test_an_outcome_that_cannot_be_told_is_a_failure_and_no_hang(construct, function, tmp_path):
    # semantics 3.1, 10.6
    flow = sequent.Sequent('flow', str(tmp_path / 'flow.db'),
                           config={'task_construct': construct, 'stop_on_exception': False})
    flow.add_step('a', func=function)
    flow.add_step('b', func=int)

    assert flow.run() is False

    tasks = {task.path: task for task in flow.tasks()}
    assert (tasks['a'].status, tasks['b'].status) == ('failure', 'success')
    assert 'Unusual' in tasks['a'].error
