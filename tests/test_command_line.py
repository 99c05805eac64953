"""python -m sequent: verbs, options, exit codes, and how it takes over from a flow's module."""

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SOURCE = os.path.join(ROOT, 'sequent.py')

# Three steps; the second fails while there is no file 'line'.
NIGHT = '''
    import os
    import sequent as seq


    def say(text):
        print('it is', text)


    def transmit():
        if not os.path.exists('line'):
            raise ConnectionError('the line is down')


    flow = seq.Sequent()
    a = flow.add_step('a', func=say, args=('a',))
    b = flow.add_step('b', func=transmit, require=a)
    c = flow.add_step('c', func=say, args=('c',), require=((b, seq.STEP_SUCCESS),))
'''

# Fails in the iterations 2 and 4 of 5; the failures are handled.
LOOPS = '''
    import sequent as seq


    def work():
        if seq.current().item % 2 == 0:
            raise ValueError('%d is even' % seq.current().item)


    flow = seq.Sequent(config={'task_construct': 'inline'})
    each = flow.add_step('each', loop=[1, 2, 3, 4, 5])
    step = each.add_step('work', func=work)
    each.add_step('sorry', func=None, require=(step, seq.STEP_FAILURE), handles=True)
    flow.add_step('leaf', func=print, args=('leaf',), loop='abc', require=each)
'''

NOT_RUN = ' was not run: '

# Says with a file that it waits, and waits for another.
WAITING = '''
    import os
    import time
    import sequent as seq


    def wait():
        with open('waits.tmp', 'w') as file:
            file.write(str(os.getpid()))
        os.rename('waits.tmp', 'waits')
        for _ in range(5000):
            if os.path.exists('go'):
                return
            time.sleep(0.02)
        raise TimeoutError('nobody says go')


    flow = seq.Sequent(config={'shutdown_grace': 5})
    first = flow.add_step('first', func=print, args=('it is first',))
    middle = flow.add_step('middle', func=wait, require=first)
    flow.add_step('last', func=print, args=('it is last',), require=middle)
'''


class Shop:
    """A folder with flow modules in it, and the command line run there."""

    def __init__(self, folder):
        self.folder = folder
        self.environment = {name: value for name, value in os.environ.items()
                            if name != 'COLUMNS' and not name.startswith('SEQUENT_')}
        self.started = []

    def write(self, name, text):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    def python(self, *arguments, **environment):
        return subprocess.run(
            [sys.executable, '-W', 'error'] + list(arguments), cwd=str(self.folder), timeout=120,
            env=dict(self.environment, **environment), universal_newlines=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __call__(self, *arguments, **environment):
        return self.python('-m', 'sequent', *arguments, **environment)

    def start(self, *arguments):
        """Start the command line, and return when a step waits (see WAITING)."""
        return self.start_program('-m', 'sequent', *arguments)

    def start_program(self, *arguments):
        program = subprocess.Popen(
            [sys.executable, '-W', 'error'] + list(arguments),
            cwd=str(self.folder), env=self.environment, preexec_fn=heed_signals,
            universal_newlines=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.started.append(program)
        deadline = time.monotonic() + 60
        while not (self.folder / 'waits').exists():
            assert program.poll() is None, program.communicate()[1]
            assert time.monotonic() < deadline, 'the step did not start'
            time.sleep(0.01)
        return program

    def close(self):
        (self.folder / 'go').write_text('')  # for what is left of a test that failed
        for program in self.started:
            if program.poll() is None:
                program.kill()
            if not program.stdout.closed:
                program.communicate()

    def names(self):
        return sorted(path.name for path in self.folder.iterdir() if path.name != '__pycache__')


def heed_signals():
    """Let a program heed the signals that whoever runs the tests may ignore."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


@pytest.fixture
def shop(tmp_path):
    shop = Shop(tmp_path)
    yield shop
    shop.close()


@pytest.fixture
def night(shop):
    shop.write('night.py', NIGHT)
    return shop


def mended(shop):
    shop.write('line', '')
    return shop


def table(done):
    """Return the lines of a table as lists of cells, by their columns' names; header left out."""
    lines = done.stdout.splitlines()
    first = next(n for n, line in enumerate(lines) if re.match('(path|flow) {2,}', line))
    places = [(match.start(), match.group()) for match in re.finditer(r'\S+', lines[first])]
    ends = [start for start, _ in places[1:]] + [None]
    return [{name: line[start:end].strip() for (start, name), end in zip(places, ends)}
            for line in lines[first + 1:] if NOT_RUN not in line]


def not_run(done):
    """Return the lines below a table that say what was not run, and why."""
    return [line for line in done.stdout.splitlines() if NOT_RUN in line]


def assert_refused(done, code, *texts):
    """It ended with that exit code and said so in a sentence, without a traceback."""
    assert done.returncode == code, done.stderr
    assert 'Traceback' not in done.stderr
    for text in texts:
        assert text in done.stderr
    assert done.stdout == ''


# run ##############################################################################


def test_run_is_the_verb_by_default(night):
    # semantics 20.1
    done = mended(night)('night')

    assert done.returncode == 0, done.stderr
    assert re.findall('^it is .', done.stderr, re.M) == ['it is a', 'it is c']


def test_run_given_as_a_verb_starts_a_new_run_each_time(night):
    mended(night)
    assert [night('night', 'run').returncode for _ in range(2)] == [0, 0]

    assert len(json.loads(night('night', 'history', '--json').stdout)) == 2


def test_run_prints_nothing_on_stdout(night):
    # semantics 20.6
    assert mended(night)('night').stdout == ''


def test_a_failed_step_makes_exit_code_1(night):
    # semantics 20.2, 3.2
    done = night('night')

    assert done.returncode == 1
    assert 'ConnectionError: the line is down' in done.stderr


def test_a_handled_failure_makes_exit_code_0(shop):
    # semantics 20.2
    shop.write('loops.py', LOOPS)

    assert shop('loops').returncode == 0


def test_json_after_a_run_says_how_it_ended(night):
    # semantics 20.6
    done = night('night', '--json', '--run-id', 'monday')

    result = json.loads(done.stdout)
    assert done.returncode == 1
    assert (result['ok'], result['run_id'], result['recovery']) == (False, 'monday', 0)
    assert (result['flow'], result['status'], result['handled']) == ('night', 'failure', [])
    (failure,) = result['unhandled']
    assert (failure['path'], failure['sequence']) == ('b', '1')
    assert failure['error'] == 'ConnectionError: the line is down'


def test_json_after_a_run_lists_handled_failures(shop):
    # semantics 20.6, 3.7
    shop.write('loops.py', LOOPS)

    result = json.loads(shop('loops', '--json').stdout)

    assert result['ok'] is True
    assert result['unhandled'] == []
    assert [(one['path'], one['sequence'], one['error']) for one in result['handled']] == [
        ('each_work', '1.2', 'ValueError: 2 is even'),
        ('each_work', '1.4', 'ValueError: 4 is even')]


def test_what_module_and_steps_print_does_not_spoil_json(shop):
    # semantics 20.6
    shop.write('chatty.py', '''
        import sequent as seq
        print('loading')
        flow = seq.Sequent(config={'task_construct': 'inline'})
        flow.add_step('a', func=print, args=('working',))
        flow()
    ''')

    done = shop('chatty', '--json')

    assert json.loads(done.stdout)['ok'] is True
    assert 'loading\n' in done.stderr and 'working\n' in done.stderr


def test_a_run_in_memory_can_end_with_json(night):
    done = mended(night)('night', '--store', ':memory:', '--json')

    assert json.loads(done.stdout)['ok'] is True
    assert night.names() == ['line', 'night.py']


# recover, continue ################################################################


def test_recover_runs_only_what_is_not_done(night):
    # semantics 20.1, 7.3
    assert night('night').returncode == 1

    done = mended(night)('night', 'recover')

    assert done.returncode == 0, done.stderr
    assert re.findall('^it is .', done.stderr, re.M) == ['it is c']


def test_recover_that_fails_again_exits_1(night):
    assert [night('night', verb).returncode for verb in ('run', 'recover')] == [1, 1]


def test_recover_of_a_run_that_is_over_successfully_runs_nothing(night):
    mended(night)('night')

    done = night('night', 'recover', '--json')

    assert done.returncode == 0, done.stderr
    assert 'it is' not in done.stderr
    assert json.loads(done.stdout)['ok'] is True


@pytest.mark.parametrize('content', [None, b''], ids=['missing', 'empty'])
@pytest.mark.parametrize('verb', ['recover', 'continue'])
def test_nothing_to_recover_exits_2(night, verb, content):
    # semantics 20.2, 7.1
    if content is not None:
        (night.folder / 'night.run.db').write_bytes(content)
    before = night.names()

    done = night('night', verb)

    assert_refused(done, 2, 'nothing to recover')
    assert night.names() == before


def test_nothing_to_recover_in_a_half_created_store_exits_2(night):
    import sqlite3
    store = sqlite3.connect(str(night.folder / 'night.run.db'))
    store.execute('PRAGMA journal_mode = PERSIST').fetchall()
    store.execute('PRAGMA application_id = %d' % 0x53657175)
    store.close()

    assert_refused(night('night', 'recover'), 2, 'nothing to recover')


def test_nothing_to_recover_of_this_flow_among_runs_of_others_exits_2(night):
    shop = mended(night)
    shop.write('other.py', NIGHT)
    shop('other', '--store', 'night.run.db')

    assert_refused(shop('night', 'recover'), 2, 'nothing to recover')


def test_recover_of_an_unknown_run_exits_2_and_offers_the_nearest(night):
    night('night', '--run-id', 'monday')

    done = night('night', 'recover', '--run-id', 'mondya')

    assert_refused(done, 2, 'nothing to recover', "'mondya'", "did you mean 'monday'?")


def test_recover_takes_the_run_that_run_id_names(night):
    night('night', '--run-id', 'monday')
    night('night', '--run-id', 'tuesday')

    mended(night)('night', 'recover', '--run-id', 'monday')

    runs = json.loads(night('night', 'history', '--json').stdout)
    assert [(run['run_id'], run['recovery'], run['status']) for run in runs] == [
        ('monday', 0, 'failure'), ('tuesday', 0, 'failure'), ('monday', 1, 'success')]


def test_recovery_run_starts_from_the_end_of_that_recovery(night):
    night('night')
    mended(night)('night', 'recover')
    assert 'it is' not in night('night', 'recover').stderr

    done = night('night', 'recover', '--recovery-run', '0')

    assert done.returncode == 0, done.stderr
    assert re.findall('^it is .', done.stderr, re.M) == ['it is c']


def test_a_recovery_that_is_not_there_exits_2(night):
    night('night')

    assert_refused(night('night', 'recover', '--recovery-run', '3'), 2, 'no recovery 3')


def test_continue_goes_on_as_the_same_recovery(shop):
    # semantics 20.1, 7.5
    shop.write('waiting.py', WAITING)
    program = shop.start('waiting')
    program.send_signal(signal.SIGTERM)
    assert program.wait(60) == 143
    shop.write('go', '')

    done = shop('waiting', 'continue')

    assert done.returncode == 0, done.stderr
    assert re.findall('^it is .*', done.stderr, re.M) == ['it is last']
    (run,) = json.loads(shop('waiting', 'history', '--json').stdout)
    assert (run['recovery'], run['mode'], run['status']) == (0, 'continue', 'success')


def test_continue_of_a_run_that_is_over_has_nothing_to_do(night):
    night('night')

    done = mended(night)('night', 'continue')

    assert done.returncode == 1  # it failed
    assert 'it is' not in done.stderr


# --dry-run ########################################################################


def everything_in(folder):
    """Return {path: mode, inode, time and bytes} of all that is there, but for byte code."""
    return {str(path): (path.lstat().st_mode, path.lstat().st_ino, path.lstat().st_mtime_ns,
                        path.read_bytes() if path.is_file() else None)
            for path in folder.rglob('*') if '__pycache__' not in str(path)}


def foreseen(shop, *arguments):
    """Return the rows of a dry run, which has changed nothing, and how it ended."""
    before = everything_in(shop.folder), shop.folder.stat().st_mtime_ns
    done = shop('night', *arguments, PYTHONDONTWRITEBYTECODE='1')
    assert (everything_in(shop.folder), shop.folder.stat().st_mtime_ns) == before
    assert done.returncode == 0, done.stderr
    assert 'it is' not in done.stderr
    return [tuple(row[name] for name in ('path', 'sequence', 'action', 'requires', 'why'))
            for row in table(done)]


@pytest.mark.parametrize('option', ['-n', '--dry-run'])
def test_a_dry_run_shows_what_a_new_run_would_do(night, option):
    rows = foreseen(night, option)

    assert rows == [('a', '1', 'runs', '', 'new run'), ('b', '1', 'runs', 'a', 'new run'),
                    ('c', '1', 'runs', 'b', 'new run')]
    assert night.names() == ['night.py']


def test_a_dry_run_of_a_recovery_shows_what_would_run_and_why(night):
    night('night')

    rows = foreseen(night, 'recover', '-n')

    assert rows == [
        ('a', '1', 'skipped', '', 'it succeeded in recovery 0'),
        ('b', '1', 'runs', 'a', 'it failed in recovery 0: ConnectionError: the line is down'),
        ('c', '1', 'runs', 'b', 'it was not started')]
    assert re.findall('^it is .*', mended(night)('night', 'recover').stderr, re.M) == ['it is c']


def test_a_dry_run_says_first_what_was_edited(night):
    night('night')
    night.write('night.py', NIGHT.replace("'c'", "'cc'").replace('require=a)', 'require=())'))

    rows = foreseen(night, 'recover', '-n')
    done = night('night', 'recover', '-n', '--json')
    as_json = json.loads(done.stdout)

    assert rows[-1] == ('cc', '1', 'runs', 'b', 'it is new')
    assert len(as_json['differences']) == 3
    for sentence, pattern in zip(as_json['differences'], (
            'gone since .*: c$', 'new since .*: cc$', r'require .*: b \(nothing; it was a\)$')):
        assert re.search(pattern, sentence)
        assert sentence in done.stderr


def test_a_dry_run_folds_what_is_plain_and_lists_the_rest_unless_told_to_list_all(shop):
    shop.write('night.py', textwrap.dedent(LOOPS)
               + 'flow.add_step("more", func=print, loop=range(5))\n')

    folded = [row[:3] for row in foreseen(shop, '-n')]
    every = [row[:3] for row in foreseen(shop, '-n', '--all')]

    assert ('each_work', '5 tasks', '5 runs') in folded
    assert ('more', '5 tasks', '5 runs') in folded
    assert ('each_sorry', '5 tasks', '5 waits') in folded
    assert [row for row in every if row[0] == 'each_work'] == [
        ('each_work', '1.%d' % n, 'runs') for n in range(1, 6)]


def test_a_dry_run_lists_the_failed_iterations_in_full(shop):
    shop.write('night.py', LOOPS.replace(
        "seq.STEP_FAILURE), handles=True", "seq.STEP_SUCCESS)"))
    shop('night')

    rows = [row[:3] for row in foreseen(shop, 'recover', '-n')]

    assert ('each_work', '1.2', 'runs') in rows
    assert not any(row[:2] == ('each_work', '1.1') for row in rows)


def test_a_dry_run_as_json_has_counts_and_the_tasks_that_the_table_lists(shop):
    shop.write('night.py', LOOPS)

    new = json.loads(shop('night', '-n', '--json').stdout)
    every = json.loads(shop('night', '-n', '--json', '--all').stdout)

    assert (new['flow'], new['run_id'], new['mode'], new['over']) == (
        'night', None, 'restart', False)
    assert {'path': 'each_work', 'kind': 'leaf', 'action': 'runs', 'n': 5} in new['counts']
    assert every['counts'] == []
    assert {'path': 'each_work', 'sequence': '1.2', 'kind': 'leaf', 'action': 'runs',
            'requires': None, 'why': 'new run'} in every['tasks']
    assert [one['requires'] for one in every['tasks'] if one['path'] == 'each_sorry'] == [
        '(each_work, failure)'] * 5


@pytest.mark.parametrize('verb', ['recover', 'continue'])
def test_a_dry_run_with_nothing_to_recover_exits_2_and_makes_no_store(night, verb):
    assert_refused(night('night', verb, '-n'), 2, 'nothing to recover')
    assert night.names() == ['night.py']


@pytest.mark.parametrize('line, code', [(True, 0), (False, 1)])
def test_a_dry_run_of_what_is_over_says_so_and_exits_as_the_verb_does(night, line, code):
    if line:
        mended(night)
    night('night')

    dry, as_json = night('night', 'continue', '-n'), night('night', 'continue', '-n', '--json')

    assert (dry.returncode, as_json.returncode) == (code, code)
    assert 'is over (%s): nothing to do' % ('success' if line else 'failure') in dry.stdout
    assert json.loads(as_json.stdout)['over'] is True


def test_a_dry_run_of_the_recovery_of_what_succeeded_shows_that_nothing_runs(night):
    mended(night)('night')                                                # semantics 7.1

    dry, as_json = night('night', 'recover', '-n'), night('night', 'recover', '-n', '--json')

    assert (dry.returncode, as_json.returncode) == (0, 0)
    assert {row['path']: row['action'] for row in table(dry)} == dict.fromkeys('abc', 'skipped')
    assert json.loads(as_json.stdout)['over'] is False
    assert len(table(night('night', 'history'))) == 1


def test_a_dry_run_of_an_invalid_flow_exits_3(shop):
    shop.write('night.py', """
        import sequent as seq
        flow = seq.Sequent()
        pool = seq.ResourcePool('tape', 1)
        flow.add_step('a', func=print, acquires=[(pool, 2)])
        """)

    assert_refused(shop('night', '-n'), 3, "'tape'")
    assert shop.names() == ['night.py']


def test_a_dry_run_with_a_used_run_id_exits_3(night):
    night('night', '--run-id', 'monday')

    assert_refused(night('night', '-n', '--run-id', 'monday'), 3, "already has a run 'monday'")


def test_a_dry_run_of_a_damaged_store_exits_4_and_leaves_it(night):
    night.write('night.run.db', 'this is no database ' * 100)
    before = everything_in(night.folder)

    assert_refused(night('night', 'recover', '-n'), 4)

    assert everything_in(night.folder) == before


def test_a_flow_that_is_run_at_module_level_is_not_run_by_a_dry_run(night):
    night.write('night.py', textwrap.dedent(NIGHT) + 'flow()\n')

    assert [row[0] for row in foreseen(night, '-n')] == ['a', 'b', 'c']
    assert night.names() == ['night.py']


def as_on_another_host(shop):
    """Make of a failed run one whose step b is recorded as running on another host."""
    import sequent
    store = sequent.SqliteStore(str(shop.folder / 'night.run.db'))
    store.open()
    run = store.latest('night')
    [task] = [one for one in store.tasks(run) if one.path == 'b']
    process = json.dumps(dict(json.loads(run.process), host='elsewhere', boot='other'))
    store.commit(run, [task._replace(status='active', error=None, ended=None, process=process)])
    store.begin(run._replace(status='active', ended=None, process=process))
    store.close()


def test_assume_dead_takes_processes_on_other_hosts_for_dead(night):
    # semantics 7.6
    night('night')
    as_on_another_host(night)
    mended(night)

    assert_refused(night('night', 'recover'), 75, "step 'b' at 1", "'elsewhere'", '--assume-dead')
    assert_refused(night('night', 'recover', '-n'), 75, '--assume-dead')
    assert ('b', '1', 'runs') in [row[:3] for row in foreseen(night, 'recover', '-n',
                                                              '--assume-dead')]
    done = night('night', 'recover', '--assume-dead')
    assert done.returncode == 0, done.stderr
    assert re.findall('^it is .*', done.stderr, re.M) == ['it is c']


# list #############################################################################


PLAN = '''
    import sequent as seq


    def work():
        raise SystemExit('nobody asked for this')


    def lots():
        raise SystemExit('nor for this')


    tapes = seq.ResourcePool('tapes', 2)
    flow = seq.Sequent()
    a = flow.add_step('a', func=work)
    b = flow.add_step('b', func=work, delay=2.5)
    either = flow.add_event(seq.or_(a, (b, seq.STEP_FAILURE)))
    box = flow.add_step('box', loop=range(3), require=(either, (b, seq.STEP_COMPLETE)))
    inner = box.add_step('inner', func=work, acquires=[(tapes, 2)])
    box.add_step('next', func=work, require=inner, loop=lots, releases=[])
    gen = flow.add_step('gen', func=None, loop=iter(lots, None), require=seq.or_((a, b), box))
'''


def test_list_prints_the_plan_as_a_tree(shop):
    shop.write('plan.py', PLAN)

    done = shop('plan', 'list')

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == 'plan'
    assert [re.match(r' *\w+', line).group() for line in lines[1:]] == [
        '  a', '  b', '  box', '    inner', '    next', '  gen']
    a, b, box, inner, after, gen = lines[1:]
    assert 'work()' in a and 'requires' not in a
    assert 'delay 2.5 s' in b
    assert 'loop over range(0, 3)' in box
    assert 'requires (a or (b, failure)) and (b, complete)' in box
    assert 'acquires 2 of tapes' in inner
    assert 'requires box_inner' in after and 'loop over lots()' in after
    assert 'releases nothing' in after
    assert 'requires (a and b) or box' in gen


def test_list_as_json_holds_the_same(shop):
    shop.write('plan.py', PLAN)

    plan = json.loads(shop('plan', 'list', '--json').stdout)

    assert plan['flow'] == 'plan'
    steps = {step['name']: step for step in plan['steps']}
    assert list(steps) == ['a', 'b', 'box', 'gen']
    assert steps['b']['delay'] == 2.5
    assert steps['box']['kind'] == 'container'
    assert steps['box']['require'] == '(a or (b, failure)) and (b, complete)'
    assert [step['path'] for step in steps['box']['steps']] == ['box_inner', 'box_next']
    assert steps['box']['steps'][0]['acquires'] == [['tapes', 2]]
    assert steps['a']['require'] is None


def test_list_opens_no_store(shop):
    # semantics 20.5
    shop.write('plan.py', PLAN)

    shop('plan', 'list', '--store', 'no/such/folder/x.db')

    assert shop.names() == ['plan.py']


def test_list_of_an_invalid_flow_exits_3(shop):
    shop.write('plan.py', PLAN + '''
    flow.add_step('greedy', func=work, acquires=[(tapes, 3)])
    ''')

    assert_refused(shop('plan', 'list'), 3, 'tapes')


def test_list_shortens_nothing_in_json_and_much_in_text(shop):
    shop.write('long.py', '''
        import sequent as seq
        flow = seq.Sequent()
        flow.add_step('a', func=None, loop=list(range(5000)))
        steps = [flow.add_step('step %d' % n, func=None) for n in range(500)]
        flow.add_step('all', func=None, require=steps)
    ''')

    text = shop('long', 'list').stdout

    assert max(map(len, text.splitlines())) < 500
    require = json.loads(shop('long', 'list', '--json').stdout)['steps'][-1]['require']
    assert require.count(' and ') == 499


# status ###########################################################################


def test_status_prints_a_line_on_the_run_and_a_table_of_its_tasks(night):
    night('night', '--run-id', 'monday')

    done = night('night', 'status')

    assert done.returncode == 0, done.stderr
    head = done.stdout.splitlines()[0]
    assert 'flow night, run monday, recovery 0: failure, start 2' in head and ', end 2' in head
    rows = table(done)
    assert [(row['path'], row['sequence'], row['status'], row['recovery'], row['attempt'])
            for row in rows] == [('a', '1', 'success', '0', '1'), ('b', '1', 'failure', '0', '1')]
    assert re.match(r'\d\d:\d\d:\d\d$', rows[0]['start'])
    assert re.match(r'\d+\.\d s$', rows[0]['duration'])
    assert rows[1]['error'].startswith('ConnectionError: the line')
    assert not_run(done) == ['c was not run: it requires b, which failed']        # semantics 3.5


def test_status_shows_the_latest_run_by_default_and_another_by_run_id(night):
    # semantics 20.7
    night('night', '--run-id', 'monday')
    mended(night)('night', '--run-id', 'tuesday')

    assert 'run tuesday, recovery 0: success' in night('night', 'status').stdout
    assert 'run monday, recovery 0: failure' in night(
        'night', 'status', '--run-id', 'monday').stdout


def test_status_shows_the_state_at_the_end_of_a_recovery(night):
    # semantics 20.7
    night('night')
    mended(night)('night', 'recover')

    now, before = night('night', 'status'), night('night', 'status', '--recovery-run', '0')

    assert [row['status'] for row in table(now)] == ['success'] * 3
    assert [(row['path'], row['recovery']) for row in table(now)] == [
        ('a', '0'), ('b', '1'), ('c', '1')]
    assert [row['status'] for row in table(before)] == ['success', 'failure']
    assert (not_run(now), not_run(before)) == (
        [], ['c was not run: it requires b, which failed'])
    assert 'recovery 1: success' in now.stdout and 'recovery 0: failure' in before.stdout


def test_status_folds_iterations_into_counts_and_lists_failed_ones(shop):
    # semantics 20.7
    shop.write('loops.py', LOOPS)
    shop('loops')

    rows = table(shop('loops', 'status'))

    assert [(row['path'], row['sequence'], row['status']) for row in rows] == [
        ('each', '1', 'success'),
        ('each_work', '5 tasks', '3 success, 2 failure'),
        ('each_work', '1.2', 'failure'),
        ('each_work', '1.4', 'failure'),
        ('each_sorry', '2 tasks', '2 success'),
        ('leaf', '1', 'success'),
        ('leaf', '3 tasks', '3 success')]


def test_status_all_lists_every_task(shop):
    # semantics 20.7
    shop.write('loops.py', LOOPS)
    shop('loops')

    rows = table(shop('loops', 'status', '--all'))

    assert [(row['path'], row['sequence']) for row in rows if row['path'] == 'each_work'] == [
        ('each_work', '1.%d' % n) for n in (1, 2, 3, 4, 5)]
    assert len(rows) == 1 + 5 + 2 + 1 + 3
    assert [row['error'] for row in rows if row['status'] == 'failure'] == [
        'handled: ValueError: 2 is even', 'handled: ValueError: 4 is even']


def test_status_as_json_has_counts_and_the_tasks_that_the_table_lists(shop):
    shop.write('loops.py', LOOPS)
    shop('loops')

    status = json.loads(shop('loops', 'status', '--json').stdout)
    full = json.loads(shop('loops', 'status', '--json', '--all').stdout)

    assert (status['flow'], status['status'], status['supervisor']) == ('loops', 'success', 'over')
    counts = [(one['path'], one['kind'], one['status'], one['n']) for one in status['counts']]
    assert ('each_work', 'leaf', 'success', 3) in counts
    assert ('each_work', 'leaf', 'failure', 2) in counts
    assert ('leaf', 'loop', 'success', 1) in counts
    assert [(one['path'], one['sequence']) for one in status['tasks']] == [
        ('each', '1'), ('each_work', '1.2'), ('each_work', '1.4'), ('leaf', '1')]
    assert len(full['tasks']) == 12
    failed = [one for one in full['tasks'] if one['status'] == 'failure']
    assert [one['handled'] for one in failed] == [True, True]
    assert all(one['start'] <= one['end'] for one in full['tasks'])


def test_status_cuts_errors_where_the_terminal_ends_and_json_does_not(shop):
    shop.write('long.py', '''
        import sequent as seq
        def fail():
            raise ValueError('very ' * 50 + 'long\\nand of two lines')
        flow = seq.Sequent()
        flow.add_step('a', func=fail)
    ''')
    shop('long')

    narrow = shop('long', 'status', COLUMNS='120').stdout.splitlines()[-1]
    usual = shop('long', 'status').stdout.splitlines()[-1]

    assert len(narrow) == 120 and narrow.endswith('...')
    assert len(usual) == 100 and usual.endswith('...')
    (task,) = json.loads(shop('long', 'status', '--json').stdout)['tasks']
    assert task['error'].endswith('long\nand of two lines')


def test_status_never_unpickles_results(shop):
    shop.write('spiteful.py', '''
        import os
        import sequent as seq
        class Spiteful:
            def __reduce__(self):
                return open, ('unpickled', 'w')
        flow = seq.Sequent(config={'task_construct': 'inline'})
        flow.add_step('a', func=Spiteful)
    ''')
    shop('spiteful', '--json')

    for verb in ('status', 'history', 'list'):
        assert shop('spiteful', verb).returncode == 0
        assert shop('spiteful', verb, '--json').returncode == 0

    assert 'unpickled' not in shop.names()


def test_status_of_a_store_without_runs_says_so_and_exits_0(night):
    # semantics 20.5
    before = night.names()

    done = night('night', 'status')
    as_json = night('night', 'status', '--json')

    assert (done.returncode, as_json.returncode) == (0, 0)
    assert 'no run of flow night' in done.stdout
    assert json.loads(as_json.stdout)['tasks'] == []
    assert night.names() == before


def test_status_of_an_unknown_run_exits_2_and_offers_the_nearest(night):
    night('night', '--run-id', 'monday')

    assert_refused(night('night', 'status', '--run-id', 'mundag'), 2, "did you mean 'monday'?")
    assert_refused(night('night', 'status', '--recovery-run', '7'), 2, 'no recovery 7')


def test_status_of_a_delayed_step_says_when_it_is_due(shop):
    shop.write('later.py', WAITING + '''
    flow.add_step('later', func=print, delay=3600)
    ''')
    program = shop.start('later')

    rows = {row['path']: row for row in table(shop('later', 'status', COLUMNS='200'))}

    program.send_signal(signal.SIGTERM)
    program.wait(60)
    assert rows['later']['status'] == 'ready'
    assert re.match(r'due \d{4}-\d\d-\d\d \d\d:\d\d:\d\d$', rows['later']['error'])


def test_status_while_a_flow_runs(shop):
    # semantics 20.5
    shop.write('waiting.py', WAITING)
    program = shop.start('waiting')

    done = shop('waiting', 'status')
    as_json = json.loads(shop('waiting', 'status', '--json').stdout)

    assert ': active, start' in done.stdout.splitlines()[0]
    assert [(row['path'], row['status']) for row in table(done)] == [
        ('first', 'success'), ('middle', 'active')]
    assert re.match(r'\d+\.\d s$', table(done)[1]['duration'])
    assert (as_json['status'], as_json['supervisor'], as_json['end']) == ('active', 'alive', None)
    shop.write('go', '')
    assert program.wait(60) == 0


# history ##########################################################################


def test_history_has_a_line_for_every_recovery(night):
    night('night', '--run-id', 'monday')
    mended(night)('night', 'recover')
    night('night', '--run-id', 'tuesday')

    done = night('night', 'history')

    assert done.returncode == 0, done.stderr
    assert [(row['flow'], row['run'], row['recovery'], row['mode'], row['status'])
            for row in table(done)] == [
        ('night', 'monday', '0', 'restart', 'failure'),
        ('night', 'monday', '1', 'recover', 'success'),
        ('night', 'tuesday', '0', 'restart', 'success')]


def test_history_shows_the_runs_of_all_flows_in_the_store_unless_one_is_chosen(night):
    shop = mended(night)
    shop.write('other.py', NIGHT)
    shop('other', '--store', 'night.run.db', '--run-id', 'x')
    shop('night', '--run-id', 'y')

    assert [row['flow'] for row in table(shop('night', 'history'))] == ['other', 'night']
    assert [row['run'] for row in table(shop('night', 'history', '--flow', 'night'))] == ['y']


def test_history_of_one_run(night):
    night('night', '--run-id', 'monday')
    night('night', '--run-id', 'tuesday')

    runs = json.loads(night('night', 'history', '--json', '--run-id', 'tuesday').stdout)

    assert [run['run_id'] for run in runs] == ['tuesday']
    assert_refused(night('night', 'history', '--run-id', 'tusday'), 2, "did you mean 'tuesday'?")


def test_history_of_a_store_that_is_not_there_is_empty(night):
    done = night('night', 'history')

    assert (done.returncode, night.names()) == (0, ['night.py'])
    assert 'no runs in' in done.stdout
    assert night('night', 'history', '--json').stdout == '[]\n'


# Verbs that only look #############################################################


@pytest.mark.parametrize('verb', ['list', 'status', 'history'])
def test_verbs_that_only_look_exit_0_whatever_they_saw_and_change_nothing(night, verb):
    # semantics 20.5
    assert night('night').returncode == 1
    store = night.folder / 'night.run.db'
    before, names = store.read_bytes(), night.names()

    done = night('night', verb)

    assert (done.returncode, done.stderr) == (0, '')
    assert (store.read_bytes(), night.names()) == (before, names)


@pytest.mark.parametrize('verb', ['list', 'status', 'history'])
def test_a_reader_of_stdout_that_goes_away_is_no_error(night, verb):
    night('night')
    read, write = os.pipe()
    os.close(read)

    program = subprocess.Popen(
        [sys.executable, '-W', 'error', '-m', 'sequent', 'night', verb], cwd=str(night.folder),
        env=night.environment, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    errors = program.communicate(timeout=60)[1]

    assert (program.returncode, errors) == (0, b'')


def test_names_that_stdout_cannot_write_are_shown_escaped(shop):
    shop.write('umlaut.py', '''
        import sequent as seq
        flow = seq.Sequent()
        flow.add_step('\\xe4\\u20ac', func=print)
    ''')

    done = shop('umlaut', 'list', PYTHONIOENCODING='ascii')

    assert done.returncode == 0, done.stderr
    assert r'\xe4\u20ac' in done.stdout


# Which flow #######################################################################


def flows(*names):
    """Return the text of a module with flows, each with one step that says its flow's name."""
    lines = ['import sequent as seq']
    for name in names:
        lines += ['%s = seq.Sequent(%r)' % (name, name),
                  '%s.add_step("x", func=print, args=("it is %s",))' % (name, name)]
    return '\n'.join(lines) + '\n'


def ran(done):
    assert done.returncode == 0, done.stderr
    return re.findall('^it is (.*)$', done.stderr, re.M)


def test_the_only_flow_of_a_module_is_taken_whatever_its_name(shop):
    # semantics 20.3
    shop.write('m.py', flows('some'))

    assert ran(shop('m')) == ['some']


def test_the_attribute_flow_is_taken_among_several(shop):
    # semantics 20.3
    shop.write('m.py', flows('a', 'b') + 'flow = b\n')

    assert ran(shop('m')) == ['b']


def test_option_flow_beats_the_attribute(shop):
    # semantics 20.3
    shop.write('m.py', flows('a', 'b') + 'flow = b\n')

    assert ran(shop('m', '--flow', 'a')) == ['a']


def test_several_flows_and_no_choice_is_an_error_that_lists_them(shop):
    # semantics 20.3
    shop.write('m.py', flows('a', 'b'))

    for verb in ('run', 'list', 'status', 'history', 'recover'):
        assert_refused(shop('m', verb), 2, '--flow', 'a, b')


def test_an_unknown_flow_is_an_error_with_the_nearest_name(shop):
    shop.write('m.py', flows('payroll', 'orders'))

    assert_refused(shop('m', '--flow', 'payrol'), 2, "'payrol'; did you mean 'payroll'?", 'orders')


def test_build_flow_is_called_where_the_module_makes_no_flow(shop):
    # semantics 20.3
    shop.write('m.py', '''
        import sequent as seq
        def build_flow():
            flow = seq.Sequent()
            flow.add_step('x', func=print, args=('it is built',))
            return flow
    ''')

    assert ran(shop('m')) == ['built']
    assert ran(shop('m', '--flow', 'm')) == ['built']


def test_build_flow_is_not_called_where_there_is_a_flow(shop):
    # semantics 20.3
    shop.write('m.py', flows('a') + 'def build_flow():\n    raise ValueError\n')

    assert ran(shop('m')) == ['a']


def test_build_flow_decides_between_several(shop):
    # semantics 20.3
    shop.write('m.py', flows('a', 'b') + 'def build_flow():\n    return b\n')

    assert ran(shop('m')) == ['b']


def test_build_flow_may_run_the_flow_itself(shop):
    shop.write('m.py', 'import sequent as seq\ndef build_flow():\n' + textwrap.indent(
        flows('a') + 'a()\n', '    '))

    assert ran(shop('m')) == ['a']


@pytest.mark.parametrize('body', ['return 1', 'raise KeyError("x")'])
def test_build_flow_that_fails_exits_3(shop, body):
    shop.write('m.py', 'def build_flow():\n    %s\n' % body)

    done = shop('m')

    assert done.returncode == 3
    assert 'build_flow' in done.stderr


def test_a_module_without_a_flow_exits_3(shop):
    # semantics 20.3
    shop.write('m.py', 'flow = None\n')

    assert_refused(shop('m'), 3, "'flow'", 'build_flow()')


def test_a_flow_of_another_copy_of_the_library_is_named_as_such(shop):
    vendor = shop.folder / 'vendor'
    vendor.mkdir()
    shutil.copy(SOURCE, str(vendor))
    shop.write('m.py', flows('flow').replace('import sequent', 'import vendor.sequent'))

    assert_refused(shop('m'), 3, 'vendor.sequent', 'another copy')


# Where the module is ##############################################################


def test_a_module_in_a_package(shop):
    # semantics 20.1
    shop.write('jobs/__init__.py', '')
    shop.write('jobs/names.py', 'NAME = "month"\n')
    shop.write('jobs/month.py', 'from .names import NAME\nassert NAME\n' + flows('flow'))

    assert ran(shop('jobs.month')) == ['flow']
    assert (shop.folder / 'jobs' / 'month.run.db').exists()


def test_a_package_itself(shop):
    shop.write('jobs/__init__.py', flows('flow'))

    assert ran(shop('jobs')) == ['flow']


def test_a_file_somewhere_else_imports_what_lies_beside_it(shop):
    shop.write('far/away/friend.py', 'NAME = "x"\n')
    shop.write('far/away/m.py', 'import friend\nassert friend.NAME\nassert __name__ == "m"\n'
               'import sys\nassert sys.modules["m"].__file__ == __file__\n' + flows('flow'))

    assert ran(shop('far/away/m.py')) == ['flow']
    assert (shop.folder / 'far' / 'away' / 'flow.run.db').exists() is False
    assert (shop.folder / 'far' / 'away' / 'm.run.db').exists()


def test_file_and_module_name_share_their_history(night):
    night('night.py', '--run-id', 'x')

    done = mended(night)('night', 'recover')

    assert done.returncode == 0, done.stderr
    assert 'run x ' in done.stderr


def test_the_current_folder_goes_before_the_rest_of_the_path(shop):
    shop.write('elsewhere/m.py', flows('wrong'))
    shop.write('m.py', flows('right'))

    done = shop('m', PYTHONPATH=os.pathsep.join(
        [str(shop.folder / 'elsewhere'), shop.environment['PYTHONPATH']]))

    assert ran(done) == ['right']


@pytest.mark.parametrize('target', ['nihgt', 'nihgt.py', './nihgt.py', 'night.pyy', 'no/such.py',
                                    'no.such', '.', 'night/', ''])
def test_a_module_that_is_not_there_exits_3(night, target):
    done = night(target)

    assert_refused(done, 3)
    assert 'it is' not in done.stderr
    if target.startswith('nihgt'):
        assert "did you mean 'night" in done.stderr


def test_a_file_that_has_the_name_of_a_module_in_use_exits_3(shop):
    shop.write('logging.py', flows('flow'))
    shop.write('away/json.py', '')
    shop.write('away/os.py', flows('flow'))
    (shop.folder / 'logging.py').unlink()

    assert_refused(shop('away/os.py'), 3, "'os'", 'rename it')


@pytest.mark.parametrize('text, relevant', [
    ('import sequent as seq\nflow = seq.Sequent()\nflow.add_step("a")\nflow.add_step("a")\n',
     'line 4, in <module>'),
    ('def f():\n    return 1 / 0\nf()\n', 'line 2, in f'),
    ('import no_such_module\n', 'No module named'),
    ('import sequent as seq\nflow = seq.Sequent(\n', 'SyntaxError'),
    ('try:\n    {}["x"]\nexcept KeyError:\n    raise ValueError("no x")\n', 'KeyError'),
])
@pytest.mark.parametrize('target', ['bad', 'bad.py'])
def test_a_module_that_cannot_be_loaded_exits_3_with_the_lines_that_matter(
        shop, target, text, relevant):
    shop.write('bad.py', text)

    done = shop(target)

    assert done.returncode == 3
    assert relevant in done.stderr
    assert 'bad.py' in done.stderr
    assert 'cannot be loaded' in done.stderr.splitlines()[-1]
    for ours in (os.path.join(ROOT, 'sequent.py'), 'importlib', 'runpy'):
        assert ours not in done.stderr
    assert done.stdout == ''


def test_a_module_that_ends_itself_exits_3(shop):
    shop.write('m.py', 'import sys\nsys.exit(0)\n')

    assert_refused(shop('m'), 3, 'ended itself')


def test_an_invalid_flow_exits_3_before_anything_starts(shop):
    # semantics 20.2
    shop.write('circle.py', '''
        import sequent as seq
        flow = seq.Sequent()
        flow.add_step('x', func=print, args=('it is x',))
        a = flow.add_step('a')
        a1 = a.add_step('b', func=print, require=a)
    ''')

    done = shop('circle')

    assert_refused(done, 3, '->')
    assert shop.names() == ['circle.py']


@pytest.mark.parametrize('config, text', [
    ("{'task_construct': 'thred'}", "did you mean 'thread'"),
    ("{'max_concurrent': 'four'}", 'max_concurrent'),
])
def test_a_wrong_config_exits_3(shop, config, text):
    shop.write('m.py', 'import sequent as seq\nflow = seq.Sequent(config=%s)\n'
               'flow.add_step("a", func=print)\n' % config)

    done = shop('m')

    assert done.returncode == 3
    assert text in done.stderr


def test_a_wrong_config_in_the_environment_exits_3(night):
    assert_refused(night('night', SEQUENT_MAX_CONCURRENT='four'), 3, 'SEQUENT_MAX_CONCURRENT')


# Taking over ######################################################################

UNGUARDED = flows('flow') + 'flow()\n'


@pytest.mark.parametrize('arguments', [['simple.py'], ['-m', 'sequent', 'simple'],
                                       ['-m', 'sequent', 'simple.py'], [SOURCE, 'simple.py']])
def test_the_first_example_unguarded_runs_once_in_each_way(shop, arguments):
    # semantics 20.4
    shutil.copy(os.path.join(ROOT, 'examples', 'simple.py'), str(shop.folder))

    done = shop.python(*arguments)

    assert done.returncode == 0, done.stderr
    assert done.stderr.count('report Monday\n') == done.stderr.count('report Tuesday\n') == 1
    assert 'WARNING' not in done.stderr
    runs = json.loads(shop('simple', 'history', '--json').stdout)
    assert [(run['flow'], run['status']) for run in runs] == [('simple', 'success')]


@pytest.mark.parametrize('verb', ['list', 'status', 'history'])
def test_an_unguarded_flow_is_not_run_by_verbs_that_only_look(shop, verb):
    # semantics 20.4
    shop.write('m.py', UNGUARDED)

    done = shop('m', verb)

    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.count('\n') >= 1
    assert shop.names() == ['m.py']


def test_an_unguarded_flow_is_recovered(shop):
    # semantics 20.4
    shop.write('m.py', textwrap.dedent(NIGHT) + 'flow()\n')
    assert shop('m').returncode == 1

    done = mended(shop)('m', 'recover')

    assert ran(done) == ['c']


def test_a_guarded_flow_runs_once(shop):
    # semantics 20.4
    shop.write('m.py', flows('flow') + "if __name__ == '__main__':\n    flow()\n")

    assert ran(shop('m')) == ['flow']


def test_an_unguarded_flow_runs_once_under_spawn(shop):
    # semantics 4.16
    shop.write('m.py', '''
        import sequent as seq
        def say(text):
            print('it is', text)
        flow = seq.Sequent(config={'start_method': 'spawn'})
        a = flow.add_step('a', func=say, args=('a',))
        flow.add_step('b', func=say, args=('b',), require=a)
        flow()
        print('after')
    ''')

    assert ran(shop('m')) == ['a', 'b']
    done = shop.python('m.py')
    assert re.findall('^it is (.*)$', done.stderr, re.M) == ['a', 'b'], done.stderr
    assert done.stdout == 'after\n'


def test_the_exit_code_of_an_unguarded_flow_is_that_of_the_run(shop):
    # semantics 20.4
    shop.write('m.py', textwrap.dedent(NIGHT) + 'raise SystemExit(17 if flow() else 18)\n')

    assert shop('m').returncode == 1
    assert mended(shop)('m').returncode == 0


def test_with_and_finally_around_an_unguarded_flow_work(shop):
    # semantics 20.4
    shop.write('m.py', '''
        import sequent as seq

        def note(word):
            with open('words', 'a') as file:
                file.write(word + ' ')

        class Noted(seq.Sequent):
            def close(self):
                super().close()
                note('closed')
        try:
            with Noted() as flow:
                flow.add_step('x', func=print, args=('it is x',))
                flow.run()
        finally:
            note('finally')
    ''')

    done = shop('m')

    assert ran(done) == ['x']
    assert 'WARNING' not in done.stderr
    assert (shop.folder / 'words').read_text() == 'closed finally '


def test_an_exception_in_finally_is_shown_and_no_success(shop):
    shop.write('m.py', flows('flow') + 'try:\n    flow()\nfinally:\n    1 / 0\n')

    done = shop('m')

    assert done.returncode == 3
    assert 'ZeroDivisionError' in done.stderr


@pytest.mark.parametrize('text, line', [
    ('flow()\nprint("after")\n', 5),
    ('with flow:\n    flow()\n    print("after")\n', 6),
    ('if True:\n    flow(\n    )\nelse:\n    pass\nfor n in (1, 2):\n    print("after")\n', 9),
    ('def main():\n    flow()\n    print("after")\n\nmain()\nopen("after", "w")\n', 6),
])
def test_what_follows_flow_does_not_run_and_a_warning_says_so(shop, text, line):
    # semantics 20.4
    shop.write('m.py', flows('flow') + text)

    done = shop('m')

    assert ran(done) == ['flow']
    assert done.stdout == '' and 'after' not in shop.names()
    (warning,) = [one for one in done.stderr.splitlines() if '[ WARNING ]' in one]
    assert 'm.py' in warning and 'line %d on' % line in warning


@pytest.mark.parametrize('text', ['flow()\nflow.close()\n', 'ok = flow()\n', 'assert flow()\n',
                                  'raise SystemExit(not flow())\n',
                                  'try:\n    flow()\nfinally:\n    flow.close()\n'])
def test_no_warning_where_nothing_follows_flow(shop, text):
    shop.write('m.py', flows('flow') + text)

    done = shop('m')

    assert ran(done) == ['flow']
    assert 'WARNING' not in done.stderr


def test_a_module_that_catches_everything_does_not_run_twice(shop):
    shop.write('m.py', flows('flow') + textwrap.dedent('''
        for n in range(3):
            try:
                flow()
            except BaseException as error:
                caught = error
    '''))

    assert ran(shop('m')) == ['flow']


def test_the_flow_that_the_module_runs_is_the_chosen_one(shop):
    shop.write('m.py', flows('a', 'b') + 'b()\na()\n')

    assert ran(shop('m')) == ['b']
    assert ran(shop('m', '--flow', 'b')) == ['b']


def test_an_unguarded_flow_other_than_the_chosen_one_is_a_usage_error(shop):
    shop.write('m.py', flows('a', 'b') + 'b()\na()\n')

    done = shop('m', '--flow', 'a')

    assert_refused(done, 2, "'b'", '--flow a')
    assert shop.names() == ['m.py']


def test_errors_of_an_unguarded_flow_have_their_exit_codes(shop):
    shop.write('m.py', UNGUARDED)
    shop.write('bad.py', 'import sequent as seq\nflow = seq.Sequent(config='
               "{'task_construct': 'thred'})\nflow.add_step('a', func=print)\nflow()\n")

    assert_refused(shop('m', 'recover'), 2, 'nothing to recover')
    assert_refused(shop('m', '--store', 'no/such/x.db'), 4, 'no/such')
    assert_refused(shop('bad'), 3, "did you mean 'thread'")


# Options ##########################################################################


def test_store_beats_the_flows_own(night):
    # semantics 20.8
    mended(night)('night', '--store', 'other.db')

    assert 'other.db' in night.names() and 'night.run.db' not in night.names()
    assert stat.S_IMODE(os.stat(str(night.folder / 'other.db')).st_mode) == 0o600
    assert 'no run of flow' in night('night', 'status').stdout
    assert 'success' in night('night', 'status', '--store', 'other.db').stdout


def test_run_id_names_the_run_and_cannot_be_used_twice(night):
    mended(night)

    assert night('night', '--run-id', 'monday').returncode == 0
    again = night('night', '--run-id', 'monday')

    assert again.returncode not in (0, 1)
    assert "'monday'" in again.stderr


def test_a_run_id_that_the_module_gives_stays_where_the_command_line_gives_none(night):
    night.write('named.py', NIGHT.replace('seq.Sequent()', "seq.Sequent(run_id='monday')"))
    night('named', '--run-id', 'tuesday')
    night('named')

    assert mended(night)('named', 'recover').returncode == 0

    assert [(row['run'], row['recovery']) for row in table(night('named', 'history'))] == [
        ('tuesday', '0'), ('monday', '0'), ('monday', '1')]


def test_a_warning_about_the_config_is_shown(shop):
    shop.write('m.py', flows('flow').replace("'flow')", "'flow', config={'max_concurent': 1})"))

    assert "did you mean 'max_concurrent'" in shop('m', '-q').stderr


def test_construct_beats_the_flows_and_the_steps_own(shop):
    # semantics 20.8
    shop.write('m.py', '''
        import os
        import sequent as seq
        def tell(parent=os.getpid()):
            print('it is', 'inside' if os.getpid() == parent else 'outside')
        flow = seq.Sequent()
        flow.add_step('a', func=tell, config={'task_construct': 'process'})
    ''')

    assert ran(shop('m')) == ['outside']
    assert 'it is inside\n' in shop('m', '--construct', 'thread').stdout
    assert 'it is inside\n' in shop('m', '--construct', 'inline').stdout
    assert_refused(shop('m', '--construct', 'inlien'), 2, "did you mean 'inline'?")


def test_max_concurrent_beats_the_flows_own(shop):
    # semantics 20.8
    shop.write('m.py', '''
        import os
        import time
        import sequent as seq
        def work():
            os.mkdir('alone')    # fails beside another
            time.sleep(0.05)
            os.rmdir('alone')
        flow = seq.Sequent(config={'max_concurrent': 4})
        for n in range(4):
            flow.add_step('s%d' % n, func=work)
    ''')

    assert shop('m', '--max-concurrent', '1').returncode == 0
    assert_refused(shop('m', '--max-concurrent', 'one'), 2, '--max-concurrent')


@pytest.mark.parametrize('options, levels', [
    ([], {'INFO', 'ERROR'}),
    (['-q'], {'ERROR'}),
    (['--log-level', 'error'], {'ERROR'}),
    (['--log-level', 'INFO'], {'INFO', 'ERROR'}),
    (['--log-level=critical'], set()),
])
def test_how_much_is_logged(night, options, levels):
    # semantics 20.8
    done = night('night', *options)

    assert set(re.findall(r'\]\[ ([A-Z]+) \]\[', done.stderr)) == levels


def test_v_logs_everything(shop):
    shop.write('m.py', flows('flow') + 'import logging\n'
               'flow.add_step("y", func=logging.debug, args=("rather much",))\n')

    assert 'rather much' in shop('m', '-v').stderr
    assert 'rather much' not in shop('m').stderr


@pytest.mark.parametrize('arguments', [
    ['--log-level', 'loud'], ['-q', '-v'], ['-q', '--log-level', 'info'], ['--recovery-run', 'x']])
def test_wrong_values_of_options_exit_2(night, arguments):
    assert_refused(night('night', *arguments), 2, 'usage: ')


def test_options_may_stand_anywhere(night):
    # semantics 20.1
    night('night', '--run-id', 'monday')

    for arguments in (['--run-id', 'monday', 'night', 'status', '--json'],
                      ['night', '--run-id', 'monday', '--json', 'status'],
                      ['--json', 'night', 'status', '--run-id=monday']):
        assert json.loads(night(*arguments).stdout)['run_id'] == 'monday'


def test_version(shop):
    # semantics 20.10
    done = shop('--version')

    assert done.returncode == 0
    assert re.match(r'sequent \d+\.\d+\.\d+ from /.*/sequent\.py \(Python 3\.\d+\.\d+\)$',
                    done.stdout.strip())


@pytest.mark.parametrize('arguments', [['-h'], ['--help'], ['night', 'status', '-h']])
def test_help_starts_with_examples(shop, arguments):
    done = shop(*arguments)

    assert (done.returncode, done.stderr) == (0, '')
    assert re.match(r'examples:\n  \S+ -m sequent nightly ', done.stdout)
    for word in (
            'run', 'recover', 'continue', 'list', 'status', 'history', '--store', '--run-id',
            '--recovery-run', '--construct', '--max-concurrent', '--flow', '--log-level', '-q',
            '-v', '--json', '--all', '-n', '--dry-run', '--assume-dead', '--version',
            '-h', '129', '130', '143', '75'):
        assert re.search(r'(^|[\s\[,])%s\b' % re.escape(word), done.stdout), word


@pytest.mark.parametrize('arguments, texts', [
    ([], ['which flow?', 'usage: ']),
    (['night', 'recovr'], ["unknown verb 'recovr'; did you mean 'recover'? Known: run, recover"]),
    (['status', 'night'], ['the module comes first', 'night status']),
    (['night', 'run', 'status'], ["unexpected argument 'status'"]),
    (['night', '--stroe', 'x'], ["unknown option '--stroe'; did you mean '--store'?"]),
    (['night', '--sto', 'x'], ["unknown option '--sto'; did you mean '--store'?"]),
    (['night', '--all'], ['--all goes with status']),
    (['night', 'status', '-n'], ['--dry-run goes with run, recover and continue, not with']),
    (['night', 'list', '--assume-dead'], ['--assume-dead goes with run, recover and continue']),
    (['night', 'run', '--recovery-run', '1'], ['--recovery-run goes with recover']),
    (['night', 'list', '--construct', 'thread'],
     ['--construct goes with run, recover and continue, not with list']),
    (['night', 'history', '--max-concurrent', '0'], ['--max-concurrent goes with run, recover']),
    (['night', 'list', '--run-id', 'x'], ['--run-id goes with run, recover, continue, status']),
    (['night', 'log', 'a', '--json'], ['--json goes with run, recover, continue, list, status']),
    (['night', 'continue', '--recovery-run', '0'], ['--recovery-run goes with recover, status']),
    (['night', '--store'], ['--store']),
])
def test_wrong_usage_exits_2_before_the_module_is_loaded(shop, arguments, texts):
    # semantics 20.9
    shop.write('night.py', 'open("loaded", "w").close()\n')

    assert_refused(shop(*arguments), 2, *texts)
    assert 'loaded' not in shop.names()


# Stores ###########################################################################


@pytest.mark.parametrize('verb', ['run', 'recover', 'continue', 'status', 'history'])
def test_a_store_that_cannot_be_used_exits_4(night, verb):
    # semantics 20.2
    night.write('text.db', 'no database, but text of some length\n' * 9)

    assert_refused(night('night', verb, '--store', 'text.db'), 4, 'text.db', 'not an SQLite')
    assert_refused(night('night', verb, '--store', 'no/such.db'), 4, 'no folder')
    assert (night.folder / 'text.db').read_text().startswith('no database')


def test_an_internal_error_exits_4_with_its_traceback(shop):
    # semantics 20.2
    shop.write('m.py', '''
        import sequent as seq
        class Broken(seq.MemoryStore):
            def begin(self, run):
                raise ZeroDivisionError('broken')
        flow = seq.Sequent(store=Broken())
        flow.add_step('a', func=print)
    ''')

    done = shop('m')

    assert done.returncode == 4
    assert 'Traceback' in done.stderr and 'internal error' in done.stderr.splitlines()[-1]


def test_a_second_supervisor_exits_75_and_names_the_first(shop):
    # semantics 20.2, 6.5
    shop.write('waiting.py', WAITING)
    program = shop.start('waiting')

    for words in (['run'], ['recover'], ['continue'], ['run', '-n'], ['recover', '-n']):
        assert_refused(shop('waiting', *words), 75, 'pid %d' % program.pid)

    shop.write('go', '')
    assert program.wait(60) == 0


# Signals and crashes ##############################################################


@pytest.mark.parametrize('guarded', [True, False], ids=['guarded', 'unguarded'])
@pytest.mark.parametrize('name, code', [('SIGINT', 130), ('SIGTERM', 143), ('SIGHUP', 129)])
def test_a_signal_stops_the_run_and_has_its_exit_code(shop, name, code, guarded):
    # semantics 20.2, 8.3
    shop.write('waiting.py', textwrap.dedent(WAITING) + ('' if guarded else 'flow()\n'))
    program = shop.start('waiting')

    program.send_signal(getattr(signal, name))
    out, errors = program.communicate(timeout=60)

    assert program.returncode == code, errors
    assert 'Traceback' not in errors
    status = shop('waiting', 'status')
    assert ': stopped, start' in status.stdout
    assert [(row['path'], row['status']) for row in table(status)] == [
        ('first', 'success'), ('middle', 'active')]
    assert not_run(status) == ['last was not run: it requires middle, which was interrupted']
    shop.write('go', '')
    done = shop('waiting', 'recover')
    assert done.returncode == 0, done.stderr
    assert re.findall('^it is .*', done.stderr, re.M) == ['it is last']


def test_an_interrupt_while_the_module_is_loaded_exits_130(shop):
    shop.write('m.py', 'raise KeyboardInterrupt\n')

    assert_refused(shop('m'), 130)


def test_a_crashed_run_is_shown_as_such_and_recovered(shop):
    # semantics 20.7, 7.1
    shop.write('waiting.py', WAITING)
    program = shop.start('waiting')
    program.kill()
    program.communicate()

    status, history = shop('waiting', 'status'), shop('waiting', 'history')
    as_json = json.loads(shop('waiting', 'status', '--json').stdout)

    assert (status.returncode, history.returncode) == (0, 0)
    assert 'active (its supervisor is gone)' in status.stdout.splitlines()[0]
    assert 'active (its supervisor is gone)' in history.stdout
    assert (as_json['status'], as_json['supervisor']) == ('active', 'gone')
    assert [(row['path'], row['status']) for row in table(status)] == [
        ('first', 'success'), ('middle', 'active')]
    assert not_run(status) == ['last was not run: it requires middle, which was interrupted']
    shop.write('go', '')  # the orphan finishes its work
    done = shop('waiting', 'recover')
    assert done.returncode == 0, done.stderr
    assert re.findall('^it is .*', done.stderr, re.M) == ['it is last']
    assert 'recovery 1: success' in shop('waiting', 'status').stdout


def test_a_new_run_beside_a_living_orphan_exits_75(shop):
    shop.write('waiting.py', WAITING)
    program = shop.start('waiting')
    program.kill()
    program.communicate()
    orphan = (shop.folder / 'waits').read_text()

    for words in ([], ['--dry-run']):
        assert_refused(shop('waiting', *words), 75, "'middle'", orphan)


# log ##############################################################################


def test_log_prints_the_log_of_a_task_of_the_latest_run(night):
    # semantics 20.11
    night('night')

    done = night('night', 'log', 'a')

    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, 'it is a')


def test_log_follows_a_task_to_the_recovery_in_which_it_ran(night):
    night.write('night.py', NIGHT.replace('raise', "print('it is down')\n            raise"))
    night('night', '--run-id', 'r')
    mended(night)('night', 'recover')
    night('night', '--run-id', 'later')

    def log(*arguments):
        return night('night', 'log', *arguments).stdout

    assert 'it is a' in log('a', '--run-id', 'r')    # which the recovery did not run again
    assert 'it is down' not in log('b', '--run-id', 'r')
    assert 'it is down' in log('b', '--run-id', 'r', '--recovery-run', '0')
    assert 'it is c' in log('c', '1', '--run-id', 'r')


def test_log_is_of_the_last_attempt(shop):
    # semantics 20.11
    shop.write('again.py', '''
        import sequent as seq

        def work():
            print('attempt', seq.current().attempt)
            raise ValueError('again')

        flow = seq.Sequent(config={'retries': 2})
        flow.add_step('work', func=work)
        ''')
    shop('again')

    lines = shop('again', 'log', 'work').stdout.splitlines()

    assert [line for line in lines if line.startswith('attempt')] == ['attempt 3']


def test_log_of_a_step_that_ran_several_times_names_the_sequences(shop):
    # semantics 20.11
    shop.write('loop.py', '''
        import sequent as seq

        flow = seq.Sequent()
        each = flow.add_step('each', loop=['x', 'y'])
        each.add_step('work', func=print, args=(each.item,))
        ''')
    shop('loop')

    assert_refused(shop('loop', 'log', 'each_work'), 2, "step 'each_work' ran 2 times",
                   'its sequences: 1.1, 1.2')
    assert_refused(shop('loop', 'log', 'each_work', '1.7'), 2, "no task at sequence '1.7'",
                   'its sequences: 1.1, 1.2')
    assert_refused(shop('loop', 'log', 'each'), 2, "step 'each' has no task", 'steps in it')
    assert shop('loop', 'log', 'each_work', '1.2').stdout.splitlines()[-1] == 'y'


def test_log_says_what_it_does_not_find(night):
    assert_refused(night('night', 'log', 'a'), 2, 'no run of flow night in')
    night('night')

    assert_refused(night('night', 'log', 'aa'), 2, "no step 'aa'", "did you mean 'a'?")
    assert_refused(night('night', 'log', 'c'), 2, "step 'c' has no task", 'it was not run')
    assert_refused(night('night', 'log', 'a', '--run-id', 'x'), 2, "no run 'x'")
    assert 'the log of which step?' in night('night', 'log').stderr
    assert "unexpected argument 'more'" in night('night', 'log', 'a', '1', 'more').stderr
    shutil.rmtree(str(night.folder / 'night.run.db.logs'))
    assert_refused(night('night', 'log', 'a'), 2, "no log of step 'a'", 'night.run.db.logs')


# Eventor ##########################################################################

EVENTS = '''
    import sequent as seq

    flow = seq.Eventor()
    begin = flow.add_event('begin')
    got = flow.add_event('got')
    sent = flow.add_event('sent')
    both = flow.add_event('both', expr=(got, seq.or_(sent, begin)))
    fetch = flow.add_step('fetch', func=print, args=('it is fetch',),
                          triggers={seq.STEP_SUCCESS: (got,)})
    ship = flow.add_step('ship', func=print, args=('it is ship',))
    flow.add_assoc(begin, fetch)
    flow.add_assoc(got, sent, delay=0.05)
    flow.add_assoc(both, ship)
    flow.trigger_event(begin, 1)
'''


def test_all_verbs_work_for_an_eventor(shop):
    # semantics 20.1
    shop.write('events.py', EVENTS)

    assert ran(shop('events')) == ['fetch', 'ship']
    assert ran(shop('events', 'recover')) == []
    assert ran(shop('events', 'continue')) == []
    assert [row['mode'] for row in table(shop('events', 'history'))] == ['restart', 'recover']
    assert {row['path']: row['status'] for row in table(shop('events', 'status'))} == {
        'fetch': 'success', 'ship': 'success', 'got>sent': 'success'}


def test_list_of_an_eventor_shows_what_raises_its_events(shop):
    shop.write('events.py', EVENTS)

    lines = [line.strip() for line in shop('events', 'list').stdout.splitlines()]

    assert lines == [
        'events',
        'event begin',
        'event got: (fetch, success)',
        'event sent: got after 0.05 s',
        'event both: got and (sent or begin)',
        'fetch: print(); requires begin',
        'ship: print(); requires both']


def test_list_of_an_eventor_as_json(shop):
    shop.write('events.py', EVENTS)

    plan = json.loads(shop('events', 'list', '--json').stdout)

    assert plan['events'][0] == {'name': 'begin', 'raised_by': None}
    assert plan['events'][2] == {'name': 'sent', 'raised_by': 'got after 0.05 s'}
    assert [step['name'] for step in plan['steps'] if step['kind'] != 'timer'] == ['fetch', 'ship']


# Copies ###########################################################################


@pytest.mark.parametrize('target', ['m', 'm.py'])
def test_a_vendored_copy_works_and_says_how_it_was_called(shop, target):
    # semantics 21.1
    vendor = shop.folder / 'legacy' / 'vendor'
    vendor.mkdir(parents=True)
    shop.write('legacy/__init__.py', '')
    shop.write('legacy/vendor/__init__.py', '')
    shutil.copy(SOURCE, str(vendor))
    shop.write('m.py', flows('flow').replace('import sequent', 'import legacy.vendor.sequent'))
    del shop.environment['PYTHONPATH']

    done = shop.python('-m', 'legacy.vendor.sequent', target)

    assert ran(done) == ['flow']
    assert '-m legacy.vendor.sequent nightly ' in shop.python(
        '-m', 'legacy.vendor.sequent', '-h').stdout
    assert '-m legacy.vendor.sequent: error: ' in shop.python(
        '-m', 'legacy.vendor.sequent', 'm', 'rin').stderr


def test_the_file_itself_as_a_program(shop):
    shutil.copy(SOURCE, str(shop.folder))
    shop.write('m.py', flows('flow'))
    del shop.environment['PYTHONPATH']

    assert ran(shop.python('sequent.py', 'm.py')) == ['flow']
    assert re.match('examples:\n  sequent.py nightly ', shop.python('sequent.py', '-h').stdout)


def test_main_returns_the_exit_code(capsys):
    import sequent

    assert sequent.main(['--version']) == 0
    assert sequent.main([]) == 2
    assert capsys.readouterr().out.startswith('sequent %s from ' % sequent.__version__)


def test_other_flows_that_the_module_makes_before_are_named(tmp_path):
    (tmp_path / 'two.py').write_text(
        "import sequent as seq\n"
        "a = seq.Sequent('a', ':memory:')\n"
        "b = seq.Sequent('b', ':memory:')\n"
        "a(); b()\n")
    done = subprocess.run([sys.executable, '-m', 'sequent', 'two'], cwd=str(tmp_path),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert b'does not run: b' in done.stderr


@pytest.mark.parametrize('source, line', [
    ('def main():\n    flow()\n    print("after")\nmain()\n', 5),
    ('for n in range(2):\n    flow()\n', 3),
])
def test_what_follows_flow_in_a_function_or_a_loop_is_said_not_to_run(tmp_path, source, line):
    (tmp_path / 'one.py').write_text(
        "import sequent as seq\nflow = seq.Sequent('a', ':memory:')\n" + source)
    done = subprocess.run([sys.executable, '-m', 'sequent', 'one'], cwd=str(tmp_path),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert b'after' not in done.stdout
    assert b'does not run, from line %d on' % line in done.stderr


def test_a_flow_that_a_function_runs_last_is_run_without_a_warning(tmp_path):
    (tmp_path / 'one.py').write_text(
        "import sequent as seq\nflow = seq.Sequent('a', ':memory:')\n"
        "def main():\n    return flow()\nmain()\n")
    done = subprocess.run([sys.executable, '-m', 'sequent', 'one'], cwd=str(tmp_path),
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert done.returncode == 0
    assert b'WARNING' not in done.stderr
