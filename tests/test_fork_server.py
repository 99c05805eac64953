"""Children of large flows are forked from a small server, and are the same as any others."""

import errno
import multiprocessing
import os
import random
import signal
import threading

import pytest
from runtools import Programs, birth, journal, programs, wait_gone, wait_until  # noqa: F401

import sequent
from sequent import Sequent, tender

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='not for systems without fork')
MANY = tender.Tender.WORTH
SUPERVISOR = os.getpid()


@pytest.fixture
def flow(tmp_path):
    """A flow of so many steps that a server is worth it; they come last and do nothing."""
    wait_until(lambda: threading.active_count() == 1, 'the threads of earlier tests to end')
    flow = Sequent('etl', sequent.MemoryStore(), config={'logdir': str(tmp_path)})
    yield flow
    flow.close()


def fill_up(flow, require=()):
    return tuple(flow.add_step('more%d' % number, func=int, require=require)
                 for number in range(MANY))


def results_of(flow, path):
    return [one.result for one in flow.tasks() if one.path == path and one.kind == 'leaf']


def status_of(flow, path):
    return [one.status for one in flow.tasks() if one.path == path][-1]


def test_children_have_one_parent_that_is_not_the_supervisor(flow):
    for name in 'abc':
        flow.add_step(name, func=os.getppid)
    fill_up(flow)

    assert flow() is True

    parents = {results_of(flow, name)[0] for name in 'abc'}
    assert len(parents) == 1 and os.getpid() not in parents


def test_the_server_and_its_spare_child_are_gone_after_the_run(flow):
    flow.add_step('a', func=os.getppid)
    fill_up(flow)
    before = multiprocessing.active_children()

    assert flow() is True

    assert multiprocessing.active_children() == before
    with pytest.raises(ProcessLookupError):
        os.kill(results_of(flow, 'a')[0], 0)    # nor is there a zombie


def test_a_few_steps_are_forked_by_the_supervisor_itself(flow):
    flow.add_step('a', func=os.getppid)

    assert flow() is True

    assert results_of(flow, 'a') == [os.getpid()]


def test_functions_arguments_and_loop_items_are_the_very_objects_of_the_flow(flow):
    # semantics 21.5
    sentinel, gate = object(), threading.Lock()    # which cannot be pickled

    def compare(*args, **kwargs):
        assert args == (sentinel,) and kwargs == {'gate': gate}
        items = sequent.current().items
        assert items[0] in (1, 2) and items[1] is sentinel
        return items[0], os.environ['SEQUENT_STEP_SEQUENCE'], os.environ['SEQUENT_STEP_NAME']
    box = flow.add_step('outer', loop=range(1, 3)).add_step('inner')
    box.add_step('a', func=compare, args=(sentinel,), kwargs={'gate': gate},
                 loop=['x', sentinel][1:])
    fill_up(flow)

    assert flow() is True

    assert results_of(flow, 'outer_inner_a') == [
        (1, '1.1.1.1', 'outer_inner_a'), (2, '1.2.1.1', 'outer_inner_a')]


def test_a_loop_over_many_items_is_worth_a_server(flow):
    flow.add_step('a', func=os.getppid, loop=range(MANY), config={'max_concurrent': 4})

    assert flow() is True

    assert len(set(results_of(flow, 'a'))) == 1 and os.getpid() not in results_of(flow, 'a')


def test_what_was_filled_in_is_forked_by_the_supervisor(flow):
    made = flow.add_step('a', func=lambda: [1])
    flow.add_step('b', func=lambda found: (found, os.getppid()), args=(made.result,))
    flow.add_step('c', func=os.getppid, loop=made.result)
    fill_up(flow)

    assert flow() is True

    assert results_of(flow, 'b') == [([1], os.getpid())]
    assert results_of(flow, 'c') == [os.getpid()]


def test_steps_with_no_loop_of_their_own_have_the_items_of_those_around_them(flow):
    # semantics 1.3
    box = flow.add_step('outer', loop='xyz').add_step('inner')
    box.add_step('a', func=lambda: sequent.current().items)
    box.add_step('deep', loop=[1, 2]).add_step('b', func=lambda: sequent.current().items)
    fill_up(flow)

    assert flow() is True

    assert sorted(results_of(flow, 'outer_inner_a')) == [('x',), ('y',), ('z',)]
    assert sorted(results_of(flow, 'outer_inner_deep_b')) == [
        (item, number) for item in 'xyz' for number in (1, 2)]


CHANGED = []


def change():
    CHANGED.append('yes')


def changing_items():
    change()
    return [1]


def generated():
    yield 1
    change()
    yield 2


@pytest.mark.parametrize('given', [
    {'func': change, 'config': {'task_construct': 'inline'}},
    {'func': change, 'config': {'task_construct': 'thread'}},
    {'func': int, 'loop': changing_items},
    {'func': int, 'loop': generated()}], ids=['inline', 'thread', 'callable', 'generator'])
def test_a_child_sees_what_the_supervisor_has_changed_during_the_run(given, flow):
    del CHANGED[:]
    changed = flow.add_step('a', **given)
    flow.add_step('b', func=lambda: list(CHANGED), require=changed)
    fill_up(flow)

    assert flow() is True

    assert results_of(flow, 'b') == [['yes']]


def test_there_is_no_server_beside_other_threads(flow):
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    flow.add_step('a', func=os.getppid)
    fill_up(flow)
    thread.start()
    try:
        assert flow() is True
    finally:
        stop.set()
        thread.join()

    assert results_of(flow, 'a') == [os.getpid()]


def test_how_a_child_died_is_told(flow):
    flow.add_step('exits', func=os._exit, args=(3,), config={'stop_on_exception': False})
    flow.add_step('dies', func=lambda: os.kill(os.getpid(), signal.SIGKILL),
                  config={'stop_on_exception': False})
    fill_up(flow)

    assert flow() is False

    errors = {one.path: one.error for one in flow.tasks() if one.error}
    assert 'with code 3' in errors['exits'] and 'SIGKILL' in errors['dies']


def the_server():
    """Return the pid of the server that has forked this process, to do it harm."""
    assert os.getppid() != SUPERVISOR, 'the supervisor itself has forked this process'
    return os.getppid()


def end_server():
    os.kill(the_server(), signal.SIGKILL)


def test_without_its_server_a_run_goes_on(flow, caplog):
    # semantics 21.5
    ended = flow.add_step('a', func=end_server)
    for name in 'xyz':    # one of them may be the child that it had ready
        ended = flow.add_step(name, func=int, require=ended)
    flow.add_step('b', func=os.getppid, require=ended)
    died = flow.add_step('c', func=os._exit, args=(3,), require=ended)
    flow.add_step('d', func=int, require=(died, 'failure'), handles=True)
    fill_up(flow, require=ended)

    assert flow() is True

    assert [one.status for one in flow.tasks()].count('success') == MANY + 6
    assert results_of(flow, 'b') == [os.getpid()]
    assert len([one for one in caplog.records if 'starts children' in one.getMessage()]) <= 1


def test_a_child_whose_server_is_gone_can_still_die(flow, tmp_path):
    """Its exit code is lost with the server."""
    def die():
        end_server()
        wait_until(lambda: os.getppid() != server, 'the end of the server')
        os._exit(3)
    server = None

    def begin():
        nonlocal server
        server = os.getppid()
        die()
    flow.add_step('a', func=begin)
    fill_up(flow)

    assert flow() is False

    assert 'before its outcome was delivered' in [
        one.error for one in flow.tasks() if one.path == 'a'][0]


class Impatience:
    """Lets the supervisor wait for the server's answers as ever, and not for long once that is
    stopped: on a busy machine one that answers may take its time, too."""

    def __init__(self, path):
        self.path = path

    def __get__(self, server, kind):
        return 0.2 if os.path.exists(self.path) else 10.0

    def stop_server(self):
        server = the_server()
        open(self.path, 'w').close()
        os.kill(server, signal.SIGSTOP)


@pytest.fixture
def impatience(tmp_path, monkeypatch):
    impatience = Impatience(str(tmp_path / 'stopped'))
    monkeypatch.setattr(tender.Tender, 'PATIENCE', impatience)
    return impatience


def test_a_server_that_does_not_answer_is_done_without(flow, impatience, caplog):
    # semantics 21.5
    before = flow.add_step('a', func=impatience.stop_server)
    for name in 'bcd':    # one of them is the child that it had ready
        before = flow.add_step(name, func=os.getppid, require=before)
    fill_up(flow, require=before)

    assert flow() is True

    assert results_of(flow, 'd') == [os.getpid()]
    assert [one.status for one in flow.tasks()].count('success') == MANY + 4
    assert 'it does not answer' in caplog.text


def test_where_no_server_can_be_made_the_supervisor_forks(flow, monkeypatch):
    def refuse(*given):
        raise OSError(11, 'Resource temporarily unavailable')
    monkeypatch.setattr(tender, '_begin', refuse)
    monkeypatch.setattr(tender.Tender, '__init__', refuse)
    flow.add_step('a', func=os.getppid)
    fill_up(flow)

    assert flow() is True

    assert results_of(flow, 'a') == [os.getpid()]


def test_a_job_that_is_too_large_for_a_message_is_forked_by_the_supervisor(flow):
    flow.add_step('a', func=os.getppid, config={'env': {'LARGE': 'x' * (1 << 16)}})
    flow.add_step('b', func=os.getppid)
    fill_up(flow)

    assert flow() is True

    assert results_of(flow, 'a') == [os.getpid()] != results_of(flow, 'b')


def test_the_age_of_a_process_that_waited_counts_from_its_work():
    """So the timeout of an orphan does, too."""
    assert sequent.process_age(sequent.process_identity(waited=True)) < sequent.process_age(
        sequent.process_identity())


LARGE = """
flow = make(mode=MODE)
def work():
    journal.note('a')
    journal.sign('server', os.getppid())
    journal.sign('a')
    journal.pass_gate('go')
first = flow.add_step('a', func=work)
for number in range(%d):
    flow.add_step('b%%d' %% number, func=journal.note, args=('b',), require=first)
leave(flow)
""" % MANY


def test_the_server_dies_with_the_supervisor_and_a_recovery_does_only_what_is_left(
        programs, journal):
    programs.write(LARGE)
    pid = programs.leave_orphan()

    wait_gone(journal.pid('server'))
    assert birth(pid) is not None
    journal.open('go')
    assert programs.run('recover') == 0

    assert (journal.count('a'), journal.count('b')) == (1, MANY)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=str)
def test_a_signal_that_a_function_sends_to_its_parent_reaches_the_supervisor(
        number, programs, journal):
    programs.write(LARGE.replace("journal.sign('a')", 'os.kill(os.getppid(), %d)' % number))

    supervisor = programs.start()
    code = supervisor.wait()

    assert code != 0 and '%s: nothing new starts' % number.name in supervisor.errors()
    assert programs.last('a') == 'active' and journal.count('b') == 0


def test_a_function_that_ignores_hangups_still_does_under_the_server(programs, journal):
    programs.write("""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        flow = make()
        def work():
            journal.note(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)
            journal.note(signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL)
        for number in range(%d):
            flow.add_step('b%%d' %% number, func=work)
        leave(flow)
    """ % MANY)

    assert programs.run() == 0

    assert journal.words() == ['True'] * (2 * MANY)


def test_children_draw_different_random_numbers(flow):
    first = flow.add_step('a', func=random.random)
    flow.add_step('b', func=random.random, require=first)
    fill_up(flow)

    assert flow() is True

    assert results_of(flow, 'a') != results_of(flow, 'b')


def test_a_function_finds_the_id_of_the_run_in_the_flow(flow, tmp_path):
    def make(mode):
        again = Sequent('etl', flow_store, run_mode=mode, config={'logdir': str(tmp_path)})
        again.add_step('a', func=lambda: again.run_id if mode == 'recover' else 1 / 0)
        fill_up(again)
        return again
    flow_store = sequent.MemoryStore()
    assert make('restart')() is False

    recovered = make('recover')

    assert recovered() is True
    assert results_of(recovered, 'a') == [recovered.run_id]


def test_a_child_that_cannot_see_the_tasks_of_its_run_says_so(flow):
    flow.add_step('a', func=flow.tasks)
    fill_up(flow)

    assert flow() is False

    assert 'in the memory of its supervisor: call tasks() in an inline or thread step' in [
        one.error for one in flow.tasks() if one.path == 'a'][0]


def fall_short(monkeypatch, module, name, number, calls):
    """Let these calls of a function, counted from 1, fail; return the list of all of them."""
    def fail_or_call():
        made.append(name)
        if len(made) in calls:
            raise OSError(number, os.strerror(number))
        return real()
    real, made = getattr(module, name), []
    monkeypatch.setattr(module, name, fail_or_call)
    return made


def test_short_of_descriptors_a_start_is_tried_again_and_no_child_is_left(flow, monkeypatch):
    asked = fall_short(monkeypatch, tender, 'make_line', errno.EMFILE, (1, 4))
    flow.add_step('a', func=os.getppid)
    fill_up(flow)
    given = spares(monkeypatch, lambda child, number: None)

    assert flow() is True

    assert results_of(flow, 'a') != [os.getpid()]
    assert len(asked) == MANY + 4 and len(set(given)) == MANY + 1
    for pid in given:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_job_that_cannot_be_pickled_is_forked_by_the_supervisor(flow):
    class Text(str):
        pass
    flow.add_step('a', func=os.getppid, config={'env': {'TEXT': Text('x')}})
    fill_up(flow)

    assert flow() is True

    assert results_of(flow, 'a') == [os.getpid()]


def spares(monkeypatch, do):
    """Call ``do(child, number)`` with each child that is given a job, before it is."""
    def await_spare(server):
        child = real(server)
        if child is not None:
            numbers.append(child.pid)
            do(child, len(numbers))
        return child
    real, numbers = tender.Tender._await_spare, []
    monkeypatch.setattr(tender.Tender, '_await_spare', await_spare)
    return numbers


def stop_first(child, number):
    if number == 1:
        os.kill(child.pid, signal.SIGSTOP)


def test_a_child_that_dies_while_it_waits_is_done_without(flow, monkeypatch, caplog):
    def kill_first(server):
        child = real(server)
        if not killed:
            killed.append(os.kill(child.pid, signal.SIGKILL))
            wait_until(lambda: server.exitcode(child.pid), 'its end')
            child = real(server)
        return child
    real, killed = tender.Tender._await_spare, []
    monkeypatch.setattr(tender.Tender, '_await_spare', kill_first)
    flow.add_step('a', func=os.getppid)
    fill_up(flow)

    assert flow() is True

    assert results_of(flow, 'a') == [os.getpid()]
    assert 'before it was given a job' in caplog.text


def test_a_job_whose_child_dies_before_it_takes_it_is_started_again(
        flow, monkeypatch, caplog, tmp_path):
    # semantics 21.5
    """Nothing of it has run, which is seen by what it has left unread."""
    def release(child):
        real(child)
        if child.pid == numbers[0]:
            os.kill(child.pid, signal.SIGKILL)
    real = tender._TendedFunction.release
    numbers = spares(monkeypatch, stop_first)
    monkeypatch.setattr(tender._TendedFunction, 'release', release)
    flow.add_step('a', func=lambda: (tmp_path / 'ran').open('a').write('x'))
    fill_up(flow)

    assert flow() is True

    assert (tmp_path / 'ran').read_text() == 'x'
    assert 'before it took its job' in caplog.text


def test_a_job_that_does_not_fit_into_the_socket_is_started_again(flow, monkeypatch, caplog):
    monkeypatch.setattr(tender, '_ORDER_SIZE', 1 << 24)
    flow.add_step('a', func=os.getppid, config={'env': {'LARGE': 'x' * (1 << 22)}})
    fill_up(flow)

    assert flow() is True

    assert results_of(flow, 'a') == [os.getpid()]
    assert 'before it took its job' in caplog.text


def test_a_child_that_is_killed_while_it_takes_its_job_is_not_started_again(flow, monkeypatch):
    spares(monkeypatch, stop_first)
    flow.add_step('a', func=int, config={'timeout': 0.3, 'stop_on_exception': False})
    fill_up(flow)

    assert flow() is False

    assert ['timed out' in one.error for one in flow.tasks() if one.error] == [True]


CLEANING = """
class Noting(seq.Stop):
    ONE_STOP = float(os.environ['ONE_STOP'])
    def on_signal(self, *given):
        super().on_signal(*given)
        journal.note('signal')
seq.Stop = Noting
flow = make(config={'shutdown_grace': 60})
def work():
    def clean(number, frame):
        journal.pass_gate('clean')
        journal.note('cleaned')
        os._exit(0)
    signal.signal(signal.SIGTERM, clean)
    journal.sign('server', os.getppid())
    journal.sign('a')
    journal.pass_gate('never')
first = flow.add_step('a', func=work)
for number in range(%d):
    flow.add_step('b%%d' %% number, func=int, require=first)
leave(flow)
""" % MANY


def ask_twice(programs, journal, first, second, seconds):
    """Start the program, and send a SIGTERM to one process, and, when it has come, to another.

    Args:
        seconds: signals that come within these belong to one stop.
    """
    programs.write(CLEANING)
    supervisor = programs.start(environment={'ONE_STOP': str(seconds)})
    journal.pid('a')
    os.kill(journal.pid(first), signal.SIGTERM)
    supervisor.wait_for('nothing new starts')
    os.kill(journal.pid(second), signal.SIGTERM)
    return supervisor


@pytest.mark.parametrize('first, second', [('server', 'supervisor'), ('supervisor', 'server')])
def test_a_signal_to_all_processes_of_a_service_does_not_cut_the_grace_short(
        first, second, programs, journal):
    supervisor = ask_twice(programs, journal, first, second, 60)
    journal.wait_for('signal', 2)
    journal.open('clean')

    assert supervisor.wait() == 143
    assert journal.count('cleaned') == 1


@pytest.mark.parametrize('whom', ['server', 'supervisor'])
def test_a_second_signal_cuts_the_grace_short(whom, programs, journal):
    supervisor = ask_twice(programs, journal, whom, whom, 1e-9)

    assert supervisor.wait() == 143
    assert journal.count('cleaned') == 0


def stop_server_and(do, impatience):
    impatience.stop_server()
    return do()


@pytest.mark.long
@pytest.mark.parametrize('do, error', [(int, None), (lambda: os._exit(3), 'how is not known'),
                                       (signal.pause, 'timed out')], ids=['ok', 'exit', 'timeout'])
def test_the_end_of_a_child_is_seen_when_its_server_has_been_stopped(
        do, error, flow, impatience, caplog):
    config = {'timeout': 0.5} if error == 'timed out' else {}
    flow.add_step('a', func=stop_server_and, args=(do, impatience), config=config,
                  require=fill_up(flow))

    assert flow() is (error is None)

    [found] = [one.error for one in flow.tasks() if one.path == 'a']
    assert found is None if error is None else error in found
    assert 'cannot be ended' not in caplog.text


class Registered:
    """What multiprocessing tells of each fork."""

    def __init__(self):
        self.pid = None
        multiprocessing.util.register_after_fork(self, Registered.note)

    def note(self):
        self.pid = os.getpid()


def test_a_child_is_to_multiprocessing_what_it_is_without_a_server(flow):
    registered = Registered()

    def look():
        assert registered.pid == os.getpid()
        assert getattr(threading.main_thread(), 'native_id', os.getpid()) == os.getpid()
        return multiprocessing.current_process()._identity
    for name in 'abc':
        flow.add_step(name, func=look)
    fill_up(flow)

    assert flow() is True

    numbers = [results_of(flow, name)[0] for name in 'abc']
    first = min(numbers)
    assert sorted(numbers) == [first[:-1] + (first[-1] + more,) for more in range(3)]


def test_a_server_without_descriptors_is_done_without(flow, capfd):
    def take_descriptors():
        resource.prlimit(the_server(), resource.RLIMIT_NOFILE, (3, 3))
    resource = pytest.importorskip('resource')
    if not hasattr(resource, 'prlimit'):
        pytest.skip('not for systems without prlimit')
    before = flow.add_step('a', func=take_descriptors)
    for name in 'bcd':
        before = flow.add_step(name, func=os.getppid, require=before)
    fill_up(flow, require=before)

    assert flow() is True

    assert results_of(flow, 'd') == [os.getpid()]
    assert 'Traceback' not in capfd.readouterr().err


def test_an_exception_whose_class_is_named_by_a_text_of_the_users_is_told(flow):
    class Text(str):
        pass

    def fail():
        raise type(Text('Odd'), (Exception,), {})
    flow.add_step('a', func=fail)

    assert flow() is False

    assert [one.error for one in flow.tasks() if one.path == 'a'] == ['Odd']


def test_a_signal_that_the_program_handles_reaches_it_from_a_function(programs, journal):
    programs.write("""
        signal.signal(signal.SIGUSR1, lambda *given: journal.note(os.getpid() == supervisor))
        supervisor = os.getpid()
        flow = make()
        def work():
            journal.note(signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL)
            os.kill(os.getppid(), signal.SIGUSR1)
            journal.wait_for('True', 2)
            journal.sign('server', os.getppid())
        first = flow.add_step('a', func=work)
        for number in range(%d):
            flow.add_step('b%%d' %% number, func=lambda: journal.note(
                os.getppid() == journal.pid('server')), require=first)
        leave(flow)
    """ % MANY)

    assert programs.run() == 0

    assert journal.words() == ['True'] * (MANY + 2)


def test_a_ctrl_c_while_the_server_is_ended_leaves_none(flow, monkeypatch):
    def interrupt(*given):
        raise KeyboardInterrupt

    def close(server):
        monkeypatch.setattr(tender, '_await_socket', interrupt)
        real(server)
    real = tender.Tender.close
    monkeypatch.setattr(tender.Tender, 'close', close)
    fill_up(flow)
    before, fds = multiprocessing.active_children(), set(sequent.own_fds)

    with pytest.raises(KeyboardInterrupt):
        flow()

    assert multiprocessing.active_children() == before
    assert sequent.own_fds == fds    # else later children would close what is not theirs


def test_where_there_is_no_process_for_a_server_the_supervisor_forks(flow, monkeypatch):
    fall_short(monkeypatch, os, 'fork', errno.EAGAIN, (1,))
    flow.add_step('a', func=os.getppid)
    fill_up(flow)

    assert flow() is True

    assert results_of(flow, 'a') == [os.getpid()]
