"""Process tasks of a program that has threads, locks, an event loop and databases of its own.

SEQUENT_FORKS=1000 makes the long test longer.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import sample

import sequent
from runtools import (  # noqa: F401 (fixtures)
    a_private_temporary_folder, journal, programs, wait_until)

#: How many processes the long test forks, for each way of running the flow.
FORKS = int(os.environ.get('SEQUENT_FORKS') or 30)

#: A program that does all that makes a fork dangerous, while FLOW runs by RUN.
NOISE = '''
import asyncio, itertools, json, logging, multiprocessing, sqlite3, _thread
CAPTURE, FORKS = sys.argv[2], int(sys.argv[3])
logging.basicConfig(stream=sys.stdout, format='%(threadName)s %(message)s', level=logging.INFO)
logger = logging.getLogger('noise')
over = threading.Event()
beats = dict.fromkeys(['logs', 'prints', 'holds', 'imports', 'commits', 'turns'], 0)


def again(name):
    """Have a thread repeat a function, as fast as it can, until all is over."""
    def decorate(function):
        def repeat():
            while not over.is_set():
                function()
                beats[name] += 1
        threading.Thread(target=repeat, name=name, daemon=True).start()
    return decorate


@again('logs')
def log():
    logger.info('x' * 500)


@again('prints')
def print_much():
    print('y' * 500)
    sys.stderr.write('')


@again('holds')
def hold_locks():
    handler = logging.getLogger().handlers[0]
    handler.acquire()
    time.sleep(0.0005)
    handler.release()


@again('imports')
def load():
    sys.modules.pop('colorsys', None)
    import colorsys


connection = sqlite3.connect(os.path.join(FOLDER, 'own.db'), check_same_thread=False,
                             isolation_level=None)
connection.execute('CREATE TABLE own (number)')


@again('commits')
def commit():
    connection.execute('BEGIN IMMEDIATE')
    connection.execute('INSERT INTO own VALUES (1)')
    connection.execute('COMMIT')


async def turn():
    while not over.is_set():
        beats['turns'] += 1
        await asyncio.sleep(0)


def loop_of_its_own():
    loop = asyncio.new_event_loop()
    loop.run_until_complete(turn())
    loop.close()


threading.Thread(target=loop_of_its_own, daemon=True).start()


def task(number):
    """Use all that another thread may just have held; but not SQLite, whose locks stay as they
    were at the fork, as those of any C library."""
    print('printed', number, flush=True)
    logging.getLogger('task').warning('logged %d', number)
    sys.modules.pop('colorsys', None)
    import colorsys
    loop = asyncio.new_event_loop()
    slept = loop.run_until_complete(asyncio.sleep(0, 'slept'))
    loop.close()
    thread = threading.Thread(target=time.sleep, args=(0,))
    thread.start()
    thread.join()
    return [threading.active_count(), len(multiprocessing.active_children()), slept,
            threading.current_thread() is threading.main_thread()]


flow = make(store=':memory:' if CAPTURE == 'none' else STORE, config={
    'capture': CAPTURE, 'max_concurrent': 4})
many = flow.add_step('many', func=task, args=(seq.item,), loop=range(FORKS),
                     config={'max_concurrent': 4, 'timeout': 20})
found = []
flow.add_step('found', func=found.extend, args=(many.result,), config={'task_construct': 'inline'})


def run():
    outcome.append(flow())


outcome = []
'''

#: How the flow is run.
RUNS = {
    'the main thread': 'run()',
    'a thread': 'one = threading.Thread(target=run); one.start(); one.join()',
    'a thread that threading did not make': '''
done = _thread.allocate_lock()
done.acquire()
def run_and_say():
    try:
        threading.current_thread()
        run()
    finally:
        done.release()
_thread.start_new_thread(run_and_say, ())
done.acquire()
''',
    'a coroutine': '''
async def main():
    run()
loop = asyncio.new_event_loop()
loop.run_until_complete(main())
loop.close()
''',
    'an executor of an event loop': '''
loop = asyncio.new_event_loop()
loop.run_until_complete(loop.run_in_executor(None, run))
loop.close()
''',
}
END = '''
seen = dict(beats)
wait_until(lambda: all(beats[name] > seen[name] for name in beats), 'all threads to go on')
over.set()
with open(os.path.join(FOLDER, 'said'), 'w') as stream:
    json.dump([outcome, [task.error for task in flow.tasks() if task.error], found], stream)
sys.stdout.flush()
os._exit(0)
'''


@pytest.mark.parametrize('capture', ['file', 'none'])
@pytest.mark.parametrize('way', sorted(RUNS))
def test_no_fork_beside_busy_threads_hangs(programs, tmp_path, way, capture):
    # semantics 5.10
    programs.write(NOISE + RUNS[way] + END)

    with open(str(tmp_path / 'err'), 'wb') as err:
        drain = subprocess.Popen(['cat'], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        try:
            done = subprocess.run(
                [sys.executable, programs.path, 'restart', capture, str(FORKS)],
                cwd=str(tmp_path), stdin=subprocess.DEVNULL, stdout=drain.stdin, stderr=err,
                timeout=120 + FORKS)
        finally:
            drain.stdin.close()
            drain.wait()

    errors = (tmp_path / 'err').read_bytes().decode()
    assert done.returncode == 0, errors
    outcome, failures, found = json.loads((tmp_path / 'said').read_text())
    assert (outcome, failures) == ([True], []), errors[-3000:]
    assert found == [[1, 0, 'slept', True]] * FORKS
    assert 'Traceback' not in errors and 'Warning' not in errors, errors[-3000:]


def test_a_transaction_of_the_program_is_open_and_its_own_through_a_run(programs, tmp_path):
    programs.write("""
        import sqlite3
        own = sqlite3.connect(os.path.join(FOLDER, 'own.db'), isolation_level=None)
        own.execute('CREATE TABLE own (number)')
        own.execute('BEGIN IMMEDIATE')
        own.execute('INSERT INTO own VALUES (1)')

        def begin():
            other = sqlite3.connect(os.path.join(FOLDER, 'own.db'), timeout=0)
            try:
                other.execute('BEGIN IMMEDIATE')
            except sqlite3.OperationalError as error:
                return str(error)

        flow = make()
        ended = flow.add_step('end', func=sys.exit, args=(0,))
        flow.add_step('begin', func=begin, require=ended)
        assert flow() is True
        assert [task.result for task in flow.tasks()] == [None, 'database is locked']
        own.execute('COMMIT')
        assert own.execute('SELECT * FROM own').fetchall() == [(1,)]
        assert own.execute('PRAGMA integrity_check').fetchone() == ('ok',)
        """)
    supervisor = programs.start()
    assert supervisor.wait() == 0, supervisor.errors()


def test_an_event_loop_around_a_run_has_its_signals_and_callbacks_afterwards(programs):
    programs.write("""
        import asyncio

        async def slept():
            return await asyncio.sleep(0, 'slept')

        def task():
            loop = asyncio.new_event_loop()
            try:
                return loop.run_until_complete(slept())
            finally:
                loop.close()

        async def main():
            loop = asyncio.get_event_loop()
            got, called = asyncio.Event(), []
            loop.add_signal_handler(signal.SIGUSR1, got.set)
            loop.call_soon(called.append, 'called')
            flow = make()
            flow.add_step('a', func=task)
            assert flow() is True
            assert [one.result for one in flow.tasks()] == ['slept']
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(got.wait(), 20)
            assert called == ['called']

        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        """)
    supervisor = programs.start()
    assert supervisor.wait() == 0, supervisor.errors()


def test_a_module_that_another_thread_is_importing_can_be_imported_in_a_child(programs, tmp_path):
    # semantics 5.10
    (tmp_path / 'slow.py').write_text("""
import threading
from runtools import wait_until
whole = 'no'
if threading.current_thread().name == 'importer':
    import __main__
    __main__.journal.note('importing')
    __main__.journal.pass_gate('import')
whole = 'whole'
""")
    programs.write("""
        def task():
            import slow
            return slow.whole

        def load():
            import slow

        thread = threading.Thread(target=load, name='importer')
        thread.start()
        journal.wait_for('importing')
        flow = make(config={'timeout': 20})
        flow.add_step('a', func=task)
        flow()
        journal.open('import')
        thread.join()
        assert [one.result for one in flow.tasks()] == ['whole']
        assert sys.modules['slow'].whole == 'whole'
        """)
    supervisor = programs.start()
    assert supervisor.wait() == 0, supervisor.errors()


@pytest.mark.parametrize('how', ['-m sequent flow', '-m sequent package.flow', '-c "import flow"'])
def test_a_module_that_runs_its_flow_while_it_is_imported_is_there_for_threads(
        how, programs, tmp_path):
    (tmp_path / 'flow.py').write_text("""
import sequent as seq
class Answer:
    pass
def one():
    import importlib
    importlib.import_module(__name__)
    return Answer()
flow = seq.Sequent(config={'task_construct': 'thread'})
flow.add_step('a', func=one)
assert flow()
after = 'whole'
""")
    (tmp_path / 'package').mkdir()
    (tmp_path / 'package' / '__init__.py').write_text('')
    (tmp_path / 'package' / 'flow.py').write_text((tmp_path / 'flow.py').read_text())
    programs.write("""
        os.chdir(FOLDER)
        os.execvp('sh', ['sh', '-c', 'exec %s ' + sys.argv[1]])
        """ % sys.executable)
    supervisor = programs.start(how)
    assert supervisor.wait() == 0, supervisor.errors()


def test_a_child_logs_to_a_stream_to_which_a_thread_was_writing(programs):
    # semantics 5.10
    programs.write("""
        import io, logging

        class Stuck(io.RawIOBase):
            def writable(self):
                return True

            def write(self, data):
                if threading.current_thread().name == 'writer':
                    journal.note('writing')
                    journal.pass_gate('write')
                return len(data)

        own = logging.getLogger('own')
        own.propagate = False
        own.addHandler(logging.StreamHandler(
            io.TextIOWrapper(io.BufferedWriter(Stuck(), 16), line_buffering=True)))
        thread = threading.Thread(target=own.warning, args=('x' * 100,), name='writer')
        thread.start()
        journal.wait_for('writing')
        flow = make(config={'timeout': 10})
        flow.add_step('a', func=own.warning, args=('x',))
        ok = flow()
        journal.open('write')
        thread.join()
        assert ok
        """)
    supervisor = programs.start()
    assert supervisor.wait() == 0, supervisor.errors()


def test_a_fork_waits_for_who_is_inside_sqlite_but_not_for_ever():
    use, forked = sequent._SqliteUse(), threading.Event()

    def fork():
        with use.none():
            forked.set()

    with use:
        thread = threading.Thread(target=fork)
        thread.start()
        assert not forked.wait(0.1)
    assert forked.wait(20)
    thread.join()
    use.PATIENCE = 0.01
    with use, use.none():
        pass


@pytest.mark.long
def test_a_child_uses_sqlite_though_a_flow_in_another_thread_was_inside_of_it(programs):
    # semantics 5.10
    programs.write("""
        def use_sqlite():
            import sqlite3
            connection = sqlite3.connect(':memory:')
            connection.execute('CREATE TABLE a (b)')
            connection.close()

        def commit():
            number = 0
            while not over.is_set():
                number += 1
                flow = make('inline', store=os.path.join(FOLDER, 'other.db'), run_id=str(number),
                            config={'synchronous': 'off'}, logging_level='ERROR')
                step = ()
                for name in range(100):
                    step = flow.add_step('s%d' % name, func=len, args=('',), require=step)
                assert flow() is True

        over = threading.Event()
        thread = threading.Thread(target=commit)
        thread.start()
        flow = make(config={'timeout': 10, 'synchronous': 'off', 'capture': 'none'})
        for number in range(FORKS):
            flow.add_step('s%d' % number, func=use_sqlite)
        ok = flow()
        over.set()
        thread.join()
        assert ok
        """.replace('FORKS', str(10 * FORKS)))
    supervisor = programs.start()
    assert supervisor.wait() == 0, supervisor.errors()


def test_a_flow_in_a_child_waits_for_no_thread_of_the_supervisor(programs):
    # Another thread opens and closes stores, and runs flows: it held locks at the fork.
    programs.write("""
        def open_stores():
            while not over.is_set():
                store = seq.SqliteStore(os.path.join(FOLDER, 'other.db'))
                store.open()
                store.close()

        def run_flows():
            while not over.is_set():
                flow = make('inline', store=':memory:', logging_level='ERROR')
                flow.add_step('a', func=len, args=('',))
                flow()

        def nested():
            flow = make('inline', store=os.path.join(FOLDER, '%d.db' % os.getpid()),
                        config={'synchronous': 'off'}, mode='restart')
            flow.add_step('a', func=len, args=('',))
            assert flow() is True

        over = threading.Event()
        threads = [threading.Thread(target=one) for one in (open_stores, run_flows)]
        for one in threads:
            one.start()
        flow = make(config={'timeout': 15, 'synchronous': 'off', 'capture': 'none'})
        for number in range(FORKS):
            flow.add_step('s%d' % number, func=nested)
        try:
            ok = flow()
        finally:
            over.set()
        for one in threads:
            one.join()
        assert ok
        """.replace('FORKS', str(3 * FORKS)))
    supervisor = programs.start()
    assert supervisor.wait() == 0, supervisor.errors()


def test_a_child_sets_variables_though_another_thread_was_setting_one():
    put, over = sequent._environment_setter(), threading.Event()

    def repeat():
        while not over.is_set():
            put('SEQUENT_NOISE', '1')    # of one character, it is handed to the C library again

    def fork():
        with sequent.fork_beside_threads():
            pid = os.fork()
        if not pid:
            os.environ['SEQUENT_NOISE'] = '2'
            os._exit(0)
        return pid
    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        for _ in range(10 * sample.times('SEQUENT_FORKS', 30)):
            pid = fork()
            try:
                wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0], 'a child')    # noqa: B023
            except BaseException:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
    finally:
        over.set()
        thread.join()
        del os.environ['SEQUENT_NOISE']


def test_garbage_is_collected_in_a_task_that_is_forked_while_another_run_begins():
    found = []

    def run_another():
        inner = sequent.Sequent('inner', store=sequent.MemoryStore())
        inner.add_step('a', func=gc.isenabled)
        assert inner.run()
        found.extend(task.result for task in inner.tasks())

    class Beginning(sequent.MemoryStore):
        def begin(self, run):
            thread = threading.Thread(target=run_another)
            thread.start()
            thread.join()
            super().begin(run)

    flow = sequent.Sequent('outer', store=Beginning())
    flow.add_step('a', func=None)
    assert flow.run()
    assert found == [True]
    assert gc.isenabled()
