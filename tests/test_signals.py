"""Signals to the supervisor, wherever it is (semantics 8.3), and readers that go away."""

import json
import os
import signal
import sqlite3
import subprocess
import sys

import pytest

import sequent
from runtools import (  # noqa: F401
    DEADLINE, Programs, Terminal, a_private_temporary_folder, is_running, journal, wait_gone,
    wait_until)

CODES = {'SIGINT': 130, 'SIGTERM': 143, 'SIGHUP': 129}
every_signal = pytest.mark.parametrize('name', sorted(CODES))


@pytest.fixture(params=['file', 'pipe', 'full'])
def programs(tmp_path, journal, request):
    """Programs whose stderr is a file, a pipe, or a device that is full."""
    if request.param == 'full' and not os.path.exists('/dev/full'):
        pytest.skip('not for systems without /dev/full')
    programs = Programs(tmp_path, journal, request.param)
    yield programs
    programs.finish()


# Inside a commit #################################################################

IN_COMMIT = '''
    import sqlite3
    AT, NUMBERS = int(os.environ.get('AT') or 0), (os.environ.get('NUMBERS') or '').split()
    commits, rows, connect = [0], [0], sqlite3.connect

    def traced(statement):
        """Send the signals in the commit AT, when it has written one row of a task."""
        word = statement.split()[0].upper()
        row = word in ('INSERT', 'REPLACE') and 'tasks' in statement.split('(')[0]
        if word == 'BEGIN':
            rows[0] = 0
        commits[0] += row and not rows[0]
        if commits[0] == AT and rows[0] == 1 and (row or word == 'COMMIT'):
            journal.note('in a commit')
            for number in NUMBERS:
                os.kill(os.getpid(), getattr(signal, number))
        rows[0] += row

    def connect_traced(*args, **kwargs):
        connection = connect(*args, **kwargs)
        connection.set_trace_callback(lambda statement: traced(statement))    # 3.6 must hash it
        return connection

    sqlite3.connect = connect_traced
    flow = make(os.environ['CONSTRUCT'],
                config={'max_concurrent': 4, 'shutdown_grace': 0.2})
    def one(name):
        journal.note(name)
        return name
    steps = [flow.add_step(name, func=one, args=(name,)) for name in 'abc']
    flow.add_step('d', func=one, args=('d',), require=tuple(steps))
    try:
        leave(flow)
    except KeyboardInterrupt:
        sys.exit(130)
    '''


def check_integrity(path):
    db = sqlite3.connect(path)
    try:
        assert db.execute('pragma integrity_check').fetchall() == [('ok',)]
    finally:
        db.close()


@pytest.mark.parametrize('construct', ['process', 'inline'])
@pytest.mark.parametrize('at', [1, 2, 3])
@pytest.mark.parametrize('numbers, code', [
    ('SIGINT', 130), ('SIGTERM', 143), ('SIGHUP', 129), ('SIGINT SIGINT', 130)])
def test_a_signal_inside_a_commit_leaves_nothing_half_done(
        numbers, code, at, construct, programs, journal):
    # semantics 8.3, 6.2
    programs.write(IN_COMMIT)
    first = programs.run(environment={'AT': str(at), 'NUMBERS': numbers, 'CONSTRUCT': construct})
    if journal.count('in a commit'):
        assert first == code
    else:
        assert first == 0    # it had committed less often
    check_integrity(programs.store_path)
    before = journal.words()
    done = [path for path, tasks in programs.tasks().items() if tasks[-1][3] == 'success']

    assert programs.run('recover', environment={'CONSTRUCT': construct}) == 0

    assert {path: tasks[-1][3] for path, tasks in programs.tasks().items()
            if path in 'abcd'} == dict.fromkeys('abcd', 'success')
    again = journal.words()[len(before):]
    assert not set(again) & set(done)
    assert sorted(set(before + again) - {'in a commit'}) == list('abcd')
    check_integrity(programs.store_path)


@pytest.mark.parametrize('at', [1, 2])
def test_the_tests_of_commits_do_hit_them(at, programs, journal):
    programs.write(IN_COMMIT)
    programs.run(environment={'AT': str(at), 'NUMBERS': 'SIGTERM', 'CONSTRUCT': 'process'})
    assert journal.count('in a commit') == 1


# Idle ############################################################################


@pytest.mark.parametrize('numbers', [['SIGINT'], ['SIGHUP'], ['SIGINT', 'SIGINT'],
                                     ['SIGTERM', 'SIGHUP']])
def test_a_signal_ends_a_run_that_waits_for_a_delay(numbers, programs):
    # semantics 8.3, 4.4; of several that come at once the system says which is first
    programs.write('''
        flow = make('inline')
        flow.add_step('a', func=print, delay=1000)
        try:
            flow()
        except KeyboardInterrupt:
            sys.exit(130)
        ''')
    supervisor = programs.start()
    wait_until(lambda: 'a' in programs.tasks(), 'a to be delayed')
    for number in numbers:
        supervisor.kill(getattr(signal, number))
    # One that comes when the end of the run is stored ends the program as it ends any.
    assert supervisor.wait() in [CODES[number] for number in numbers] + [-signal.SIGHUP]
    store = sequent.SqliteStore(programs.store_path)
    store.open(create=False)
    assert store.latest('etl').status == 'stopped'
    store.close()
    assert programs.tasks() == {'a': [('1', 0, 1, 'ready')]}


# Before a call #################################################################


@pytest.mark.parametrize('what', ['the first', 'none'])
def test_a_stop_calls_no_pending_loop(what, programs, journal):
    # semantics 8.3: nothing new starts, also where a signal comes inside, or just after, a loop
    programs.write('''
        def items(name):
            journal.note(name)
            journal.sign(name)
            if os.environ['WHAT'] == 'none':
                os.kill(os.getpid(), signal.SIGTERM)
                try:
                    time.sleep(60)
                except KeyboardInterrupt:
                    return 'xy'
            journal.pass_gate('never')
        flow = make('inline')
        for name in 'ab':
            flow.add_step(name, loop=lambda name=name: items(name)).add_step('c', func=print)
        flow()
        ''')
    supervisor = programs.start(environment={'WHAT': what})
    journal.pid('a')
    if what == 'the first':
        supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    assert journal.words() == ['a']
    assert programs.tasks() == {'a': [('1', 0, 1, 'active')], 'b': [('1', 0, 1, 'active')]}


def test_a_signal_between_a_commit_and_a_call_lets_nothing_be_called(programs, journal):
    # semantics 8.3
    programs.write(IN_COMMIT.partition('    flow = make')[0] + '''
    def one():
        journal.note('called')
        journal.pass_gate('never')
    flow = make('inline')
    flow.add_step('a', func=one)
    flow()
    ''')
    assert programs.run(environment={'AT': '1', 'NUMBERS': 'SIGTERM'}) == 143
    assert journal.words() == ['in a commit']
    assert programs.tasks() == {'a': [('1', 0, 1, 'active')]}


# Two signals of one stop #########################################################

CLEANING = '''
    seq.Stop.ONE_STOP = float(os.environ.get('ONE_STOP') or 60)
    set_handler = signal.signal

    def set_noting(number, handler):
        """Note each signal when its handler in the supervisor has returned."""
        def handle(*given):
            try:
                handler(*given)
            finally:
                journal.note('signal')
        noting = callable(handler) and os.getpid() == SUPERVISOR
        return set_handler(number, handle if noting else handler)
    SUPERVISOR = os.getpid()
    signal.signal = set_noting
    def clean(number, frame):
        journal.note('cleaning')
        journal.pass_gate('clean')
        journal.note('cleaned')
        os._exit(1)
    def work():
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, clean if number == signal.SIGTERM else signal.SIG_IGN)
        journal.sign('a')
        journal.pass_gate('never')
    SCRIPT = """
        trap 'echo cleaning >> journal; while ! [ -e gate-clean ]; do sleep 0.02; done;
              echo cleaned >> journal; exit 1' TERM
        trap '' HUP INT
        echo a $$ $(cut -d ' ' -f 22 /proc/$$/stat) >> pids
        while :; do sleep 0.02; done"""
    flow = make(config={'shutdown_grace': 60})
    flow.add_step('a', func=seq.Command(SCRIPT, shell=True)
                  if os.environ.get('WHAT') == 'program' else work)
    try:
        leave(flow)
    except KeyboardInterrupt:
        sys.exit(130)
    '''


def send_both(names, programs, journal, **environment):
    """Start CLEANING, and send it one signal after the other; the first is seen to arrive."""
    programs.write(CLEANING)
    supervisor = programs.start(environment=environment)
    journal.pid('a')
    for times, name in enumerate(names, 1):
        supervisor.kill(getattr(signal, name))
        if times < len(names):
            journal.wait_for('signal', times)
    return supervisor


PAIRS = [('SIGHUP', 'SIGHUP'), ('SIGTERM', 'SIGHUP'), ('SIGINT', 'SIGTERM'),
         ('SIGTERM', 'SIGTERM'), ('SIGTERM', 'SIGINT')]


@pytest.mark.parametrize('what', ['function', 'program'])
@pytest.mark.parametrize('names', PAIRS, ids='+'.join)
def test_of_two_signals_of_one_stop_the_second_takes_no_time_from_the_steps(
        names, what, programs, journal):
    # semantics 8.3: it comes within a second of the first
    supervisor = send_both(names, programs, journal, WHAT=what)
    journal.wait_for('signal', 2)
    journal.open('clean')
    assert supervisor.wait() == CODES[names[0]]
    assert journal.count('cleaned') == 1
    assert programs.last('a') == 'active'


@pytest.mark.parametrize('names', PAIRS + [('SIGHUP', 'SIGTERM'), ('SIGTERM', 'SIGHUP', 'SIGHUP')],
                         ids='+'.join)
def test_a_later_signal_skips_the_grace_if_it_is_a_sigint_or_came_before(
        names, programs, journal):
    # semantics 8.3
    supervisor = send_both(names, programs, journal, ONE_STOP='1e-9')
    skips = names[-1] == 'SIGINT' or names[-1] in names[:-1]
    if not skips:
        journal.wait_for('signal', len(names))
        journal.open('clean')
    assert supervisor.wait() == CODES[names[0]]
    assert journal.count('cleaned') == (not skips)
    wait_gone(journal.pid('a'))


def test_timeout_asks_supervisor_and_group_and_lets_both_go_on(programs, journal):
    # What the command timeout sends: SIGTERM to the program, then to the whole process group, then
    # SIGCONT to both.
    programs.write('\n    os.setpgid(0, 0)' + CLEANING)
    supervisor = programs.start()
    journal.pid('a')
    supervisor.kill(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGCONT):
        os.killpg(supervisor.pid, number)
    supervisor.kill(signal.SIGCONT)
    journal.wait_for('cleaning')
    journal.open('clean')
    assert supervisor.wait() == 143
    assert journal.count('cleaned') == 1


def test_a_terminal_that_is_closed_leaves_the_steps_their_time(programs, journal):
    # semantics 8.3: the shell sends a SIGHUP to its jobs, and the kernel another one
    programs.write(CLEANING)
    shell = Terminal(['bash', '--norc', '-i'], programs.folder)
    journal.sign('shell', shell.pid)
    shell.type('%s %s >out 2>&1\n' % (sys.executable, programs.path))
    pid = journal.pid('a')
    shell.hang_up()
    journal.wait_for('cleaning')
    journal.wait_for('signal')
    journal.open('clean')
    wait_gone(pid)
    assert journal.count('cleaned') == 1
    wait_until(lambda: programs.last('a') == 'active', 'the record of the step')


@pytest.mark.parametrize('construct', ['process', 'inline'])
@pytest.mark.parametrize('again', [False, True], ids=['second', 'third'])
def test_a_second_signal_while_the_end_of_the_run_is_stored_does_not_prevent_that(
        again, construct, programs):
    # semantics 8.3: all is recorded
    programs.write('''
        seq.Stop.ONE_STOP = 1e-9
        plain = seq.SqliteStore.finish
        def finish(store, run):
            os.kill(os.getpid(), signal.SIGHUP)
            if os.environ.get('AGAIN'):
                os.kill(os.getpid(), signal.SIGHUP)
            return plain(store, run)
        seq.SqliteStore.finish = finish
        flow = make(os.environ['CONSTRUCT'])
        flow.add_step('a', func=print, delay=1000)
        before = signal.getsignal(signal.SIGHUP)
        try:
            flow()
        finally:
            assert signal.getsignal(signal.SIGHUP) == before
        ''')
    supervisor = programs.start(environment={'CONSTRUCT': construct, 'AGAIN': '1' * again})
    wait_until(lambda: 'a' in programs.tasks(), 'a to be delayed')
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    store = sequent.SqliteStore(programs.store_path)
    store.open(create=False)
    assert store.latest('etl').status == ('active' if again else 'stopped')
    store.close()


def test_the_clean_up_of_an_inline_step_is_not_interrupted_by_a_second_signal(programs, journal):
    programs.write('''
        def work():
            try:
                journal.sign('a')
                journal.pass_gate('never')
            finally:
                journal.note('cleaning')
                journal.pass_gate('clean')
                journal.note('cleaned')
        flow = make('inline')
        flow.add_step('a', func=work)
        flow()
        ''')
    supervisor = programs.start()
    journal.pid('a')
    supervisor.kill(signal.SIGTERM)
    journal.wait_for('cleaning')
    supervisor.kill(signal.SIGHUP)
    journal.open('clean')
    assert supervisor.wait() == 143
    assert journal.count('cleaned') == 1


@pytest.mark.parametrize('what', ['function', 'program'])
@every_signal
def test_a_task_that_the_stop_reaches_before_its_supervisor_does_is_interrupted(
        name, what, programs, journal):
    # semantics 8.3: service managers and job schedulers send the signal to each process of a job
    programs.write('''
        def work():
            try:
                journal.sign('a')
                journal.pass_gate('never')
            finally:    # A SIGINT raises KeyboardInterrupt.
                journal.note('over')
        flow = make()
        flow.add_step('a', func=work if os.environ['WHAT'] == 'function' else seq.Command(
            'echo a $$ $(cut -d " " -f 22 /proc/$$/stat) >> pids; exec sleep 60', shell=True))
        try:
            leave(flow)
        except KeyboardInterrupt:
            sys.exit(130)
        ''')
    supervisor = programs.start(environment={'WHAT': what})
    pid = journal.pid('a')
    supervisor.kill(signal.SIGSTOP)
    os.kill(pid, getattr(signal, name))
    wait_until(lambda: journal.count('over') or not is_running(pid), 'the end of the step')
    supervisor.kill(getattr(signal, name))
    supervisor.kill(signal.SIGCONT)
    assert supervisor.wait() == CODES[name]
    assert programs.last('a') == 'active'


# Terminals and standard input ####################################################

#: How a step is run: (construct, start method, whether by a fork server).
WAYS = [('process', 'fork', ''), ('process', 'fork', '1'), ('process', 'spawn', ''),
        ('pool', 'fork', ''), ('program', 'fork', '')]
if sys.version_info >= (3, 7):    # Before, both are refused.
    WAYS += [('process', 'forkserver', ''), ('pool', 'spawn', '')]
each_way = pytest.mark.parametrize('way', WAYS, ids='-'.join)

READING = '''
    def read(argv):
        done = subprocess.run(argv, stdout=subprocess.PIPE)
        return done.returncode, done.stdout.decode(), sys.stdin.read()
    def main():
        construct, method = os.environ['CONSTRUCT'], os.environ['METHOD']
        argv = json.loads(os.environ['ARGV'])
        config = {'start_method': method, 'capture': 'file', 'timeout': 15}
        if construct == 'program':
            call = {'func': seq.Command(['sh', '-c', '"$@" >out; echo $? >code', 'sh'] + argv)}
        else:
            call = {'func': read, 'args': (argv,)}
            config.update(task_construct=construct)
            if construct == 'pool':
                del config['timeout']
        config.update(json.loads(os.environ.get('CONFIG') or '{}'))
        flow = make(config=config)
        flow.add_step('a', **call)
        ok = flow()
        if construct != 'program':
            code, out, rest = [one.result for one in flow.tasks()][0]
            for name, text in (('code', code), ('out', '%s%s' % (out, rest))):
                with open(name, 'w') as stream:
                    stream.write('%s' % text)
        sys.exit(0 if ok else 1)
    if __name__ == '__main__':
        main()
    '''


def way_to_read(way, argv, **config):
    """Return the environment with which READING runs an argv in a step."""
    construct, method, server = way
    return {'CONSTRUCT': construct, 'METHOD': method, 'SEQUENT_FORK_SERVER': server,
            'ARGV': json.dumps(argv), 'CONFIG': json.dumps(config)}


@each_way
def test_a_step_that_asks_at_the_terminal_fails_and_is_not_stopped(way, programs, tmp_path):
    # semantics 5.5
    programs.write(READING)
    terminal = Terminal([sys.executable, programs.path], programs.folder, way_to_read(
        way, ['sh', '-c', 'read answer </dev/tty']))
    assert terminal.wait() == 0, terminal.read()
    assert int((tmp_path / 'code').read_text()) != 0


@pytest.mark.parametrize('stdin', ['null', 'inherit'])
@each_way
def test_steps_leave_the_standard_input_alone_unless_they_are_to_inherit_it(
        way, stdin, programs, tmp_path):
    # semantics 5.5
    # as in: while read host; do python3 flow.py; done <hosts
    programs.write(READING)
    (tmp_path / 'hosts').write_text('one\ntwo\n')
    with open(str(tmp_path / 'hosts')) as hosts:
        code = subprocess.call([sys.executable, programs.path], cwd=programs.folder, stdin=hosts,
                               env=dict(os.environ, **way_to_read(way, ['cat'], stdin=stdin)))
        read = os.lseek(hosts.fileno(), 0, os.SEEK_CUR)
    assert code == 0
    assert (read, (tmp_path / 'out').read_text()) == (
        (0, '') if stdin == 'null' else (8, 'one\ntwo\n'))


def test_a_step_that_inherits_a_terminal_reads_what_is_typed(programs, tmp_path):
    programs.write(READING)
    terminal = Terminal([sys.executable, programs.path], programs.folder, way_to_read(
        WAYS[0], ['sh', '-c', 'read answer; echo "$answer"'], stdin='inherit'))
    terminal.type('yes\n\4')
    assert terminal.wait() == 0, terminal.read()
    assert (tmp_path / 'out').read_text() == 'yes\n'


@pytest.mark.parametrize('construct', ['thread', 'inline'])
def test_a_program_in_the_supervisor_reads_nothing_unless_it_is_to_inherit(
        construct, programs, tmp_path):
    programs.write("""
        flow = make(os.environ['CONSTRUCT'])
        flow.add_step('a', func=seq.Command('cat >a', shell=True))
        flow.add_step('b', func=seq.Command('cat >b', shell=True),
                      config={'stdin': 'inherit'})
        leave(flow)
        """)
    with open(programs.path) as stdin:
        assert subprocess.call([sys.executable, programs.path], cwd=programs.folder, stdin=stdin,
                               env=dict(os.environ, CONSTRUCT=construct)) == 0
    assert (tmp_path / 'a').read_text() == ''
    assert (tmp_path / 'b').read_text() == (tmp_path / 'program.py').read_text()


@pytest.mark.skipif(sys.version_info < (3, 7), reason='not for 3.6: nothing runs at a fork there')
@pytest.mark.parametrize('server', ['', '1'])
def test_a_child_that_hangs_before_it_has_a_session_is_ended(server, programs, journal):
    programs.write("""
        def hang():
            if journal.is_open('hang'):
                journal.sign('child')
                journal.pass_gate('never')
        os.register_at_fork(after_in_child=hang)
        flow = make(config={'shutdown_grace': 0.1})
        a = flow.add_step('a', func=journal.open, args=('hang',))
        flow.add_step('b', func=print, require=a)
        flow.add_step('c', func=print, require=a)
        flow()
        """)
    supervisor = programs.start(environment={'SEQUENT_FORK_SERVER': server})
    journal.pid('child')
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    for pid in journal.pids('child'):
        wait_gone(pid)


# Stopped children ################################################################

STOPPED = '''
    import logging
    seq.Driver.STOPPED = 0.05
    def work(name):
        journal.sign(name)
        journal.pass_gate('go')
    SCRIPT = """
        echo %s $$ $(cut -d ' ' -f 22 /proc/$$/stat) >> pids
        while ! [ -e gate-go ]; do sleep 0.02; done"""
    def main():
        construct, method = os.environ['CONSTRUCT'], os.environ['METHOD']
        config = {'start_method': method, 'sleep_between_loops': 60}
        logging.getLogger('sequent').addHandler(logging.FileHandler('log'))
        if construct != 'program':
            config.update(task_construct=construct)
        flow = make(config=config)
        for name in 'ab':
            flow.add_step(name, func=seq.Command(SCRIPT % name, shell=True)
                          if construct == 'program' else work,
                          args=() if construct == 'program' else (name,))
        leave(flow)
    if __name__ == '__main__':
        main()
    '''


@pytest.mark.parametrize('orphan', [False, True], ids=['', 'orphan'])
@each_way
def test_a_child_that_a_signal_has_stopped_is_warned_of_once(
        way, orphan, programs, journal, tmp_path):
    # semantics 5.9
    if orphan and way[0] == 'pool':
        pytest.skip('not for pools: their workers end with the supervisor')
    programs.write(STOPPED)
    environment, log = way_to_read(way, []), tmp_path / 'log'
    supervisor = programs.start(environment=environment)
    pids = {name: journal.pid(name) for name in 'ab'}
    if orphan:
        supervisor.kill()
        supervisor.wait()
        supervisor = programs.start('recover', environment=environment)
    for name, pid in sorted(pids.items()):    # While b is waited for, a is looked at again.
        os.kill(pid, signal.SIGSTOP)
        text = 'step %s at 1 does not go on: a signal has stopped process %d' % (name, pid)
        wait_until(lambda: text in log.read_text(), text)    # noqa: B023
    for pid in pids.values():
        os.kill(pid, signal.SIGCONT)
    journal.open('go')
    assert supervisor.wait() == 0
    assert log.read_text().count('does not go on') == 2


# Trees of processes ##############################################################

TREE = '''
    SOURCE = """if 1:
        import os, signal, sys
        sys.path.insert(0, %r)
        import runtools
        journal = runtools.Journal(%r)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if sys.argv[1:] == ['apart']:
            os.setsid()
        journal.sign('grandchild')
        journal.note('grandchild')
        journal.pass_gate('never')
        """ % (os.path.dirname(sys.modules['runtools'].__file__), FOLDER)
    with open(os.path.join(FOLDER, 'grandchild.py'), 'w') as stream:
        stream.write(SOURCE)
    ARGV = [sys.executable, os.path.join(FOLDER, 'grandchild.py'), os.environ['WHERE']]
    def one():
        subprocess.Popen(ARGV)
        journal.sign('a')
        journal.pass_gate('never')
    flow = make(config={'shutdown_grace': 0.2})
    flow.add_step('a', func=one if os.environ['WHAT'] == 'function' else seq.Command(
        ['sh', '-c', '"$@" & echo; wait', 'sh'] + ARGV))
    try:
        leave(flow)
    except KeyboardInterrupt:
        sys.exit(130)
    '''


@pytest.mark.parametrize('what', ['function', 'program'])
@every_signal
def test_a_stop_ends_grandchildren_that_ignore_every_signal(name, what, programs, journal):
    # semantics 8.3: the whole process group
    programs.write(TREE)
    supervisor = programs.start(environment={'WHERE': 'here', 'WHAT': what})
    grandchild = journal.pid('grandchild')
    supervisor.kill(getattr(signal, name))
    assert supervisor.wait() == CODES[name]
    wait_gone(grandchild)


@pytest.mark.parametrize('what', ['function', 'program'])
def test_a_grandchild_in_a_session_of_its_own_is_left_alone_and_keeps_nobody(
        what, programs, journal):
    # semantics 8.3
    # It has left the task's group as daemons do: a stop ends the group, and waits for no other.
    programs.write(TREE)
    supervisor = programs.start(environment={'WHERE': 'apart', 'WHAT': what})
    grandchild = journal.pid('grandchild')
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    assert is_running(grandchild)
    assert programs.last('a') == 'active'


# Stopped and continued ###########################################################


def test_what_ends_while_the_supervisor_is_stopped_is_neither_lost_nor_run_twice(
        programs, journal):
    programs.write('''
        def one(name):
            journal.note(name + ' started')
            journal.pass_gate('go')
            journal.note(name + ' ended')
            os._exit(3) if name == 'dies' else None
        flow = make(config={'max_concurrent': 0, 'stop_on_exception': False})
        steps = [flow.add_step(name, func=one, args=(name,)) for name in ('a', 'b', 'dies')]
        steps.append(flow.add_step('p', func=seq.Command(
            ['sh', '-c', 'echo p started >> journal; until [ -e gate-go ]; do sleep 0.02; done;'
                         'echo p ended >> journal'])))
        flow.add_step('c', func=journal.note, args=('c',),
                      require=tuple((step, 'complete') for step in steps), handles=True)
        leave(flow)
        ''')
    supervisor = programs.start()
    names = ['a', 'b', 'dies', 'p']
    for name in names:
        journal.wait_for(name + ' started')
    supervisor.kill(signal.SIGSTOP)
    journal.open('go')
    for name in names:
        journal.wait_for(name + ' ended')
    assert journal.count('c') == 0
    supervisor.kill(signal.SIGCONT)
    assert supervisor.wait() == 0, supervisor.errors()
    assert all(journal.count(name + ' ' + word) == 1
               for name in names for word in ('started', 'ended'))
    assert journal.count('c') == 1
    assert {path: tasks[-1][3] for path, tasks in programs.tasks().items()} == {
        'a': 'success', 'b': 'success', 'dies': 'failure', 'p': 'success', 'c': 'success'}


# Readers that go away ############################################################

TALKATIVE = '''
    def one():
        print('first', flush=True)
        journal.pass_gate('go')
        for number in range(20000):
            print('line', number)
    def other():
        print('more')
        sys.exit(os.environ.get('CODE') or None)
    flow = make(mode='restart')
    a = flow.add_step('a', func=one)
    flow.add_step('b', func=other, require=(a,))
    if __name__ == '__main__':
        leave(flow)
    '''


@pytest.mark.parametrize('code, expected', [('', 0), ('bad day', 1)])
@pytest.mark.parametrize('by', ['script', 'command'])
def test_when_the_reader_of_the_output_goes_the_run_goes_on_and_its_code_is_true(
        by, code, expected, programs, journal):
    programs.write(TALKATIVE)
    argv = [sys.executable, programs.path]
    if by == 'command':
        argv[1:1] = ['-m', 'sequent']
    process = subprocess.Popen(
        argv, cwd=programs.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=dict(os.environ, CODE=code))
    journal.sign('supervisor', process.pid)
    with process.stdout, process.stderr:
        while b'first' not in process.stderr.readline():
            assert process.poll() is None
    journal.open('go')
    assert process.wait(timeout=DEADLINE) == expected
    assert {path: tasks[-1][3] for path, tasks in programs.tasks().items()} == {
        'a': 'success', 'b': 'failure' if code else 'success'}
    [log] = [os.path.join(folder, name) for folder, _, names in os.walk(programs.folder)
             for name in names if name.startswith('a.1.')]
    with open(log) as stream:
        assert stream.read().endswith('line 19999\n')
