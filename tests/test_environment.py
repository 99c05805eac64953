"""What a running function finds around it: semantics 5, and where logs are."""

import concurrent.futures
import logging
import os
import re
import subprocess
import sys
import threading

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    Calls, a_flow, a_private_temporary_folder, construct, fail, journal, log_of, programs,
    read, results, store, the_task, wait_until)
from sequent import Eventor, MemoryStore  # noqa: E402

NAMES = ['STEP_NAME', 'STEP_SEQUENCE', 'STEP_RECOVERY', 'LOGGER_NAME', 'RUN_ID', 'LOOP_VALUE']
both = pytest.mark.parametrize('construct', ['inline', 'process'])


def variables(prefix='SEQUENT_'):
    """Return the task's variables in the environment, without the prefix."""
    return {name[len(prefix):]: value for name, value in os.environ.items()
            if name.startswith(prefix) and name[len(prefix):] in NAMES}


# 5.1 Variables

@both
def test_the_environment_names_step_sequence_recovery_run_logger_and_item(construct, store):
    # semantics 5.1
    flow = a_flow(store, construct)
    outer = flow.add_step('s0', loop=['x', 'y'])
    inner = outer.add_step('s00', loop=[10, 20])
    inner.add_step('s1', func=variables)

    assert flow() is True

    found = results(flow)
    assert set(found) == {('s0_s00_s1', '1.%d.%d' % (i, j)) for i in (1, 2) for j in (1, 2)}
    of_one = found['s0_s00_s1', '1.2.1']
    assert of_one.pop('LOGGER_NAME')
    assert of_one == {'STEP_NAME': 's0_s00_s1', 'STEP_SEQUENCE': '1.2.1', 'STEP_RECOVERY': '0',
                      'RUN_ID': flow.run_id, 'LOOP_VALUE': '10'}


@both
def test_the_loop_value_is_the_str_of_the_innermost_item(construct):
    # semantics 1.5, 5.1
    flow = a_flow(construct=construct)
    flow.add_step('s', loop=[('a', 1)]).add_step('b', func=variables)
    assert flow() is True
    assert the_task(flow, 's_b').result['LOOP_VALUE'] == "('a', 1)"


@both
def test_outside_of_loops_there_is_no_loop_value(construct):
    # semantics 5.1
    flow = a_flow(construct=construct)
    loop = flow.add_step('s', func=variables, loop=['x'])
    flow.add_step('after', func=variables, require=(loop,))
    assert flow() is True
    assert the_task(flow, 's', '1.1').result['LOOP_VALUE'] == 'x'
    assert 'LOOP_VALUE' not in the_task(flow, 'after').result


@pytest.mark.parametrize('construct', ['process', 'pool', 'executor'])
def test_of_an_inline_task_nothing_is_left_for_a_task_of_another_construct(construct):
    # semantics 5.1
    flow = a_flow(construct=construct, config={'executor': an_executor})
    loop = flow.add_step('loop', func=variables, loop=['x'], config={
        'task_construct': 'inline', 'env': {'SEQUENT_RUN_ID': 'of the loop'}})
    flow.add_step('after', func=variables, require=loop)
    flow.add_step('program', require=loop, config={'task_construct': 'thread'},
                  command=sequent.Command('test -z "$SEQUENT_LOOP_VALUE"', shell=True))

    assert flow() is True

    assert the_task(flow, 'loop', '1.1').result['RUN_ID'] == 'of the loop'
    found = the_task(flow, 'after').result
    assert 'LOOP_VALUE' not in found and found['RUN_ID'] == flow.run_id


@both
def test_the_recovery_number_is_in_the_environment(construct, store, journal):
    # semantics 5.1
    def one():
        journal.note(os.environ['SEQUENT_STEP_RECOVERY'])
        fail()
    for mode in ('restart', 'recover', 'recover'):
        flow = a_flow(store, construct, mode)
        flow.add_step('a', func=one)
        assert flow() is False
    assert journal.words() == ['0', '1', '2']


@both
def test_the_prefix_is_configured_by_envvar_prefix(construct):
    # semantics 5.1
    flow = a_flow(construct=construct, config={'envvar_prefix': 'ETL_'})
    flow.add_step('a', func=lambda: (variables('ETL_'), variables('SEQUENT_')))
    assert flow() is True
    ours, usual = the_task(flow, 'a').result
    assert set(ours) == set(NAMES) - {'LOOP_VALUE'}
    assert ours['STEP_NAME'] == 'a'
    assert usual == {}


@both
def test_the_prefix_of_an_eventor_is_its_own(construct):
    # semantics 5.1
    with Eventor('etl', store=':memory:', config={'task_construct': construct}) as flow:
        event = flow.add_event('go')
        step = flow.add_step('a', func=lambda: (variables('EVENTOR_'), variables('SEQUENT_')))
        flow.add_assoc(event, step)
        flow.trigger_event(event, 7)
        assert flow() is True
        ours, usual = the_task(flow, 'a').result
    assert (ours['STEP_NAME'], ours['STEP_SEQUENCE'], ours['RUN_ID']) == ('a', '7', flow.run_id)
    assert usual == {}


def test_after_an_inline_task_and_the_run_the_environment_is_as_before(monkeypatch):
    # semantics 5.1
    monkeypatch.setenv('SEQUENT_STEP_NAME', 'of an outer flow')
    monkeypatch.delenv('SEQUENT_STEP_SEQUENCE', raising=False)
    flow = a_flow()
    flow.add_step('a', func=fail, config={'stop_on_exception': False})
    flow.add_step('b', func=variables)
    before = dict(os.environ)

    assert flow() is False

    assert the_task(flow, 'b').result['STEP_NAME'] == 'b'
    assert dict(os.environ) == before


def test_variables_that_do_not_change_are_set_once():
    # semantics 5.1
    names = ['SEQUENT_' + name for name in ('RUN_ID', 'STEP_RECOVERY', 'STEP_SEQUENCE')]
    seen = []

    def note_and_change():
        seen.append([os.environ[name] for name in names])
        os.environ.update(dict.fromkeys(names, 'mine'))
    flow = a_flow(run_id='r1')
    flow.add_step('a', func=note_and_change, loop=range(3))

    assert flow() is True

    assert seen == [['r1', '0', '1.1'], ['mine', 'mine', '1.2'], ['mine', 'mine', '1.3']]
    assert not set(names) & set(os.environ)


def test_current_and_the_flow_say_which_task_runs(construct):
    # semantics 5.1, 1.5
    def one():
        task = sequent.current()
        return (task.name, task.sequence, task.recovery, task.attempt, task.run_id, task.flow,
                tuple(task.items), task.item, flow.get_step_name(), flow.get_step_sequence())
    flow = a_flow(MemoryStore(), construct)
    outer = flow.add_step('s', loop=['x', None])
    outer.add_step('t', func=one, loop=[10])

    assert flow() is True

    assert the_task(flow, 's_t', '1.2.1').result == (
        's_t', '1.2.1', 0, 1, flow.run_id, 'etl', (None, 10), 10, 's_t', '1.2.1')


def test_threads_that_run_side_by_side_each_know_their_own_task():
    # semantics 5.1
    meeting = threading.Barrier(3, timeout=20)

    def one():
        meeting.wait()
        return sequent.current().name, flow.get_step_name(), flow.get_step_sequence()
    flow = a_flow(construct='thread', config={'max_concurrent': 3})
    for name in 'abc':
        flow.add_step(name, func=one)

    assert flow() is True

    assert results(flow) == {(name, '1'): (name, name, '1') for name in 'abc'}


def test_outside_of_a_task_there_is_no_current_one():
    # semantics 5.1
    flow = a_flow()
    flow.add_step('a', func=Calls())
    assert flow() is True
    for ask in (sequent.current, flow.get_step_name, flow.get_step_sequence):
        with pytest.raises(LookupError):
            ask()


# 5.1 What a program can be given

def of_loop(prefix='SEQUENT_LOOP_VALUE'):
    """Start a program; return the variables of the loop item as the program sees them."""
    seen = subprocess.check_output(['env', '-0']).decode('utf-8').split('\0')
    return {line[len(prefix):line.index('=')]: line[line.index('=') + 1:] for line in seen
            if line.startswith(prefix)}


anywhere = pytest.mark.parametrize('construct', ['inline', 'process', 'pool', 'executor'])


def an_executor():
    return concurrent.futures.ProcessPoolExecutor(1)


def over(items, construct):
    """Return a flow that has run ``of_loop`` and a program for each item."""
    flow = a_flow(MemoryStore(), construct, config={'executor': an_executor})
    batch = flow.add_step('batch', loop=items)
    batch.add_step('function', func=of_loop)
    batch.add_step('program', command=['true'])
    assert flow() is True
    return flow


@anywhere
@pytest.mark.parametrize('character', ['x', '\u20ac'])
def test_a_loop_value_that_no_program_could_be_given_is_cut_and_a_variable_says_so(
        construct, character):
    # semantics 1.5, 5.1, 5.6
    whole = character * 200000
    flow = over([whole, 'short'], construct)
    seen = the_task(flow, 'batch_function', '1.1').result
    assert seen['_CUT'] == str(len(whole.encode('utf-8')))
    assert whole.startswith(seen['']) and len(seen['']) > 5000
    assert the_task(flow, 'batch_function', '1.2').result == {'': 'short'}


@anywhere
def test_a_loop_value_that_fits_is_whole(construct):
    # semantics 1.5, 5.1
    whole = 'x' * 100000
    flow = over([whole], construct)
    assert the_task(flow, 'batch_function', '1.1').result == {'': whole}


@anywhere
def test_a_null_character_in_a_loop_value_is_replaced(construct):
    # semantics 1.5, 5.1, 5.6
    flow = over(['a\0b'], construct)
    assert the_task(flow, 'batch_function', '1.1').result == {'': 'a\\x00b'}


@anywhere
def test_a_loop_value_that_cannot_be_shown_stops_nothing(construct):
    # semantics 1.5, 5.6: since Python 3.11 str() refuses such a number
    flow = over([10 ** 5000], construct)
    assert set(the_task(flow, 'batch_function', '1.1').result) == {''}


@both
def test_a_name_that_no_program_could_be_given_is_cut_too(construct):
    # semantics 5.1
    flow = a_flow(construct=construct, name='f' * 200000)
    outer = flow.add_step('s' * 100000)
    outer.add_step('t' * 100000, func=of_loop, args=('SEQUENT_',))
    assert flow() is True
    seen = the_task(flow, 's' * 100000 + '_' + 't' * 100000).result
    assert (seen['STEP_NAME_CUT'], seen['LOGGER_NAME_CUT']) == ('200001', '200000')
    assert seen['STEP_NAME'].startswith('sss') and seen['LOGGER_NAME'].startswith('fff')


def test_a_nested_run_does_not_inherit_that_a_value_was_cut(monkeypatch):
    # semantics 5.1
    monkeypatch.setenv('SEQUENT_LOOP_VALUE_CUT', '200000')
    flow = over(['short'], 'process')
    assert the_task(flow, 'batch_function', '1.1').result == {'': 'short', '_CUT': ''}


LOW_LIMIT = """
import sequent as seq
flow = seq.Sequent('night', store=':memory:')
batch = flow.add_step('s' * 100000, loop=['x' * 200000])
batch.add_step('program', command=['true'])
raise SystemExit(0 if flow() else 1)
"""


def test_all_variables_together_fit_where_the_limit_of_the_stack_is_low():
    # semantics 5.1: what a program can be given is a quarter of that limit
    environment = {name: value for name, value in os.environ.items() if len(value) < 1000}
    done = subprocess.run(['sh', '-c', 'ulimit -s 512 && exec "$@"', 'sh', sys.executable, '-c',
                           LOW_LIMIT], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env=environment)
    assert done.returncode == 0, done.stdout.decode('utf-8')[-2000:]


@pytest.mark.parametrize('construct', ['process', 'inline', 'thread'])
@pytest.mark.parametrize('command', [
    ['echo', '{batch.item}'], ['echo', sequent.item], {'env': {'V': '{batch.item}'}},
    {'cwd': '/{batch.item}'}, {'stdin': '/{batch.item}'}])
def test_an_item_that_a_command_itself_names_and_that_it_cannot_have_is_a_clear_error(
        construct, command):
    command = (sequent.Command(['true'], **command) if isinstance(command, dict)
               else sequent.Command(command))
    flow = a_flow(construct=construct)
    flow.add_step('batch', command=command, loop=['a\0b'])
    assert flow() is False
    assert ("'a\\x00b' in its command holds a null character, which no program can be given; put "
            'what has such characters into a file') in the_task(
                flow, 'batch', '1.1').error.replace("'/a", "'a")


@pytest.mark.parametrize('construct', ['process', 'inline', 'thread'])
def test_a_command_that_is_too_long_says_what_to_do(construct):
    flow = a_flow(construct=construct)
    flow.add_step('batch', command=['echo', sequent.item], loop=['x' * 200000])
    assert flow() is False
    assert the_task(flow, 'batch', '1.1').error == (
        "the arguments and the environment of 'echo' are too long for this system; put what is "
        'long into a file and name that')


# 5.2 Logging

LOGS = '''
    import logging

    def one():
        logging.getLogger(os.environ['SEQUENT_LOGGER_NAME']).info('by name, %s', CONSTRUCT)
        logging.getLogger(__name__).info('by module, %s', CONSTRUCT)
        logging.getLogger(__name__).debug('for nobody')

    CONSTRUCT = MODE
    flow = make(CONSTRUCT, mode='restart')
    flow.add_step('a', func=one)
    leave(flow)
    '''


def test_logging_works_in_a_task_without_any_set_up(construct, programs):
    # semantics 5.2
    programs.write(LOGS)
    supervisor = programs.start(construct)
    assert supervisor.wait() == 0
    lines = supervisor.errors().splitlines()
    for text in ('by name, ' + construct, 'by module, ' + construct):
        [line] = [line for line in lines if text in line]
        assert re.match(r'\[ \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \]\[ INFO \]\[ %s \]$' % text,
                        line)
    assert not any('for nobody' in line for line in lines)


def test_the_handler_stands_at_the_given_logging_level(programs):
    # semantics 5.2
    programs.write('''
        import logging
        flow = make('inline', logging_level=logging.WARNING)
        flow.add_step('a', func=lambda: logging.info('informs'))
        flow.add_step('b', func=lambda: logging.warning('warns'))
        leave(flow)
        ''')
    supervisor = programs.start()
    assert supervisor.wait() == 0
    assert 'informs' not in supervisor.errors()
    assert '[ WARNING ][ warns ]' in supervisor.errors()


def test_an_application_that_has_configured_logging_is_left_alone(programs):
    # semantics 5.2
    programs.write('''
        import logging
        logging.basicConfig(format='OURS %(message)s', level=logging.ERROR)
        root = logging.getLogger()
        before = list(root.handlers)
        flow = make('inline')
        flow.add_step('a', func=lambda: logging.error('seen'))
        flow.add_step('b', func=lambda: logging.info('not seen'))
        assert flow() is True
        assert root.handlers == before and root.level == logging.ERROR
        ''')
    supervisor = programs.start()
    assert supervisor.wait() == 0, supervisor.errors()
    assert supervisor.errors() == 'OURS seen\n'


def test_start_and_end_of_run_and_task_are_said_in_one_line_each_at_info(construct, caplog):
    # semantics 5.2
    caplog.set_level(logging.DEBUG)
    flow = a_flow(construct=construct)
    flow.add_step('the_step', func=Calls())

    assert flow() is True

    said = [record.getMessage() for record in caplog.records
            if record.name == 'sequent' and record.levelno == logging.INFO]
    assert len(said) == 4, said
    assert all('\n' not in one for one in said)
    assert ['the_step' in one for one in said] == [False, True, True, False]
    assert all(flow.run_id in one for one in (said[0], said[-1]))


def test_why_something_failed_is_said_at_error(construct, caplog):
    # semantics 5.2
    caplog.set_level(logging.DEBUG)
    flow = a_flow(construct=construct)
    flow.add_step('the_step', func=fail, args=('no such table',))

    assert flow() is False

    [said] = [record.getMessage() for record in caplog.records
              if record.name == 'sequent' and record.levelno == logging.ERROR]
    assert 'the_step' in said and 'ValueError: no such table' in said
    ended = [record.getMessage() for record in caplog.records
             if record.levelno == logging.INFO and 'the_step' in record.getMessage()]
    assert len(ended) >= 1


# 5.3 Output

def speak(text='', errors=''):
    """Write to the descriptors and to what Python calls the streams."""
    sys.stdout.write(text)
    sys.stdout.flush()
    sys.stderr.write(errors)
    sys.stderr.flush()


def test_output_of_a_process_task_goes_to_its_log_file(tmp_path):
    # semantics 5.3
    def one():
        speak('by print\n', 'by stderr\n')
        subprocess.check_call(['echo', 'by a program'])
    flow = a_flow(construct='process', config={'logdir': str(tmp_path / 'logs')})
    flow.add_step('s', loop=['x', 'y']).add_step('a', func=one)

    assert flow() is True

    for sequence in ('1.1', '1.2'):
        assert read(log_of(flow, tmp_path / 'logs', 's_a', sequence)).splitlines() == [
            'by print', 'by stderr', 'by a program']


def test_each_recovery_writes_a_log_file_of_its_own(store, tmp_path):
    def one():
        speak('%s\n' % sequent.current().recovery)
        fail()
    for mode in ('restart', 'recover'):
        flow = a_flow(store, 'process', mode, config={'logdir': str(tmp_path / 'logs')})
        flow.add_step('a', func=one)
        assert flow() is False
    for recovery in (0, 1):
        path = log_of(flow, tmp_path / 'logs', 'a', recovery=recovery)
        assert read(path).startswith('%d\n' % recovery)


def test_an_orphan_goes_on_writing_to_its_log_file(programs, journal):
    # semantics 5.3
    programs.write('''
        def one():
            journal.sign('a')
            print('before', flush=True)
            journal.pass_gate('go')
            print('after', flush=True)
            os.write(2, b'and on stderr\\n')
        flow = make(config={'logdir': os.path.join(FOLDER, 'logs')}, run_id='r')
        flow.add_step('a', func=one)
        leave(flow)
        ''')
    pid = programs.leave_orphan()
    journal.open('go')
    wait_until(programs.outcomes, 'the outcome of process %d' % pid)
    path = os.path.join(programs.folder, 'logs', 'etl', 'r', 'a.1.0.1.log')
    assert read(path).splitlines() == ['before', 'after', 'and on stderr']


def test_output_is_relayed_unchanged_to_stderr(capfdbinary):
    # semantics 5.3
    flow = a_flow(construct='process')
    flow.add_step('a', func=lambda: [os.write(1, b'\x00\xff raw\n'), speak('', ' more \xfc\n')])

    assert flow() is True

    out, errors = capfdbinary.readouterr()
    assert b'\x00\xff raw\n' in errors
    assert ' more \xfc\n'.encode(sys.stderr.encoding or 'utf-8', 'replace') in errors \
        or ' more \xfc\n'.encode('utf-8') in errors
    assert out == b''


def test_output_is_relayed_before_what_follows_from_the_task_starts(capfd):
    # semantics 5.3
    flow = a_flow(config={'sleep_between_loops': 30})
    a = flow.add_step('a', func=speak, args=('of a\n',), config={'task_construct': 'process'})
    flow.add_step('b', func=speak, args=('', 'of b\n'), require=(a,))

    assert flow() is True

    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if line in ('of a', 'of b')] == ['of a', 'of b']


def test_output_is_relayed_while_the_task_runs(programs, journal):
    # semantics 5.3
    programs.write('''
        def one():
            print('on the way', flush=True)
            journal.pass_gate('go')
        flow = make()
        flow.add_step('a', func=one)
        leave(flow)
        ''')
    supervisor = programs.start()
    supervisor.wait_for('on the way\n')
    assert supervisor.process.poll() is None
    journal.open('go')
    assert supervisor.wait() == 0
    assert supervisor.errors().count('on the way') == 1


def test_only_complete_lines_are_relayed(programs, journal):
    # semantics 5.3
    programs.write('''
        def slow():
            print('one ', end='', flush=True)
            journal.open('quick')
            journal.pass_gate('slow')
            print('line', flush=True)
            print('no end', end='', flush=True)
        def quick():
            journal.pass_gate('quick')
            print('the other', flush=True)
            journal.pass_gate('slow')
        flow = make(config={'max_concurrent': 2})
        flow.add_step('slow', func=slow)
        flow.add_step('quick', func=quick)
        leave(flow)
        ''')
    supervisor = programs.start()
    supervisor.wait_for('the other\n')
    journal.open('slow')
    assert supervisor.wait() == 0
    lines = supervisor.errors().splitlines()
    assert 'one line' in lines and 'the other' in lines and 'no end' in lines


def test_capture_file_does_not_relay(tmp_path, capfd):
    # semantics 5.3
    flow = a_flow(construct='process',
                  config={'capture': 'file', 'logdir': str(tmp_path / 'logs')})
    flow.add_step('a', func=speak, args=('quiet\n', 'as a mouse\n'))

    assert flow() is True

    out, errors = capfd.readouterr()
    assert 'quiet' not in out + errors and 'mouse' not in out + errors
    assert read(log_of(flow, tmp_path / 'logs', 'a')) == 'quiet\nas a mouse\n'


def test_capture_none_leaves_the_streams_alone(tmp_path, capfd):
    # semantics 5.3
    flow = a_flow(construct='process',
                  config={'capture': 'none', 'logdir': str(tmp_path / 'logs')})
    flow.add_step('a', func=lambda: [os.write(1, b'to stdout\n'), os.write(2, b'to stderr\n')])

    assert flow() is True

    out, errors = capfd.readouterr()
    assert out == 'to stdout\n'
    assert 'to stderr\n' in errors and 'to stdout' not in errors


@pytest.mark.parametrize('construct', ['thread', 'inline'])
def test_logging_records_of_thread_and_inline_tasks_go_to_their_log_file(
        construct, tmp_path, caplog):
    # semantics 5.3
    def one():
        logging.getLogger('elsewhere').info('in %s', sequent.current().name)
        speak('printed\n')
    caplog.set_level(logging.INFO)
    flow = a_flow(construct=construct,
                  config={'logdir': str(tmp_path / 'logs'), 'max_concurrent': 2})
    flow.add_step('a', func=one)
    flow.add_step('b', func=one)

    assert flow() is True

    for name, other in ('ab', 'ba'):
        text = read(log_of(flow, tmp_path / 'logs', name))
        assert 'in ' + name in text
        assert 'in ' + other not in text
        assert 'printed' not in text


@pytest.mark.parametrize('construct', ['thread', 'inline'])
def test_without_a_record_thread_and_inline_tasks_have_no_log_file(construct, tmp_path):
    # semantics 5.3
    flow = a_flow(construct=construct, config={'logdir': str(tmp_path / 'logs')})
    flow.add_step('a', func=speak, args=('printed\n',))
    assert flow() is True
    assert not os.path.exists(log_of(flow, tmp_path / 'logs', 'a'))


# Log files

def log_names(folder):
    return sorted(name for _, _, names in os.walk(str(folder)) for name in names)


def run_one(logs, name, flow_name='etl', **given):
    flow = a_flow(construct='process', name=flow_name,
                  config={'logdir': str(logs), 'capture': 'file'}, **given)
    flow.add_step(name, func=speak, args=('of %s\n' % name[:10],))
    assert flow() is True
    return flow


@pytest.mark.parametrize('name, part', [
    ('plain-1.x_y', 'plain-1.x_y'), ('a b', 'a%20b'), ('a/b', 'a%2Fb'), ('\xfc', '%C3%BC'),
    ('100%', '100%25'), ('..', '%2E%2E'), ('.hidden', '%2Ehidden'), ("a'b\n", 'a%27b%0A')])
def test_what_is_not_plain_in_names_of_log_files_is_percent_encoded(name, part, tmp_path):
    # semantics 5.4
    run_one(tmp_path / 'logs', name)
    assert log_names(tmp_path / 'logs') == [part + '.1.0.1.log']


def test_names_of_flow_and_run_are_encoded_too(tmp_path):
    run_one(tmp_path / 'logs', 'a', flow_name='../etl', run_id='../../r')
    assert os.listdir(str(tmp_path / 'logs')) == ['%2E%2E%2Fetl']
    [run] = os.listdir(str(tmp_path / 'logs' / '%2E%2E%2Fetl'))
    assert run == '%2E%2E%2F..%2Fr'
    assert log_names(tmp_path / 'logs') == ['a.1.0.1.log']
    assert not os.path.exists(str(tmp_path / 'etl'))


def test_long_names_are_cut_and_told_apart_by_a_hash(tmp_path):
    for letter in 'xy':
        run_one(tmp_path / 'logs', 'n' * 300 + letter, run_id='r')
    names = log_names(tmp_path / 'logs')
    assert len(names) == 2 and all(len(name) < 130 for name in names)
    assert all(name.startswith('n' * 50) for name in names)


def test_an_existing_log_file_is_never_truncated(tmp_path):
    # semantics 5.4
    logs = tmp_path / 'logs'
    flow = a_flow(construct='process', run_id='r', config={'logdir': str(logs)})
    flow.add_step('a', func=speak, args=('new\n',))
    path = log_of(flow, logs, 'a')
    os.makedirs(os.path.dirname(path))
    with open(path, 'w') as stream:
        stream.write('old\n')

    assert flow() is True

    kept = [read(os.path.join(folder, name)) for folder, _, names in os.walk(str(logs))
            for name in names]
    assert 'old\n' in ''.join(kept) and 'new\n' in ''.join(kept)


def test_logs_stand_beside_a_file_store(tmp_path):
    # semantics 5.4
    flow = a_flow(str(tmp_path / 'etl.db'), 'process')
    flow.add_step('a', func=speak, args=('said\n',))
    assert flow() is True
    assert read(log_of(flow, tmp_path / 'etl.db.logs', 'a')) == 'said\n'


def test_without_a_file_store_logs_stand_in_a_private_folder(a_private_temporary_folder):
    for _ in range(2):
        flow = a_flow(MemoryStore(), 'process')
        flow.add_step('a', func=speak, args=('said\n',))
        assert flow() is True
    folders = [str(one) for one in a_private_temporary_folder.iterdir()]
    logs = [os.path.join(folder, name) for one in folders for folder, _, names in os.walk(one)
            for name in names if name.endswith('.log')]
    assert [read(one) for one in logs] == ['said\n'] * 2
    for one in folders:
        assert os.stat(one).st_mode & 0o777 == 0o700
        assert os.stat(one).st_uid == os.getuid()


def test_a_folder_for_logs_that_others_may_have_made_is_not_trusted(
        a_private_temporary_folder, tmp_path):
    # a name that can be known beforehand could be a link to elsewhere
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    first = a_flow(MemoryStore(), 'process')
    first.add_step('a', func=speak, args=('said\n',))
    assert first() is True
    for one in a_private_temporary_folder.iterdir():
        one.rename(tmp_path / ('moved-' + one.name))
        one.symlink_to(elsewhere)

    again = a_flow(MemoryStore(), 'process')
    again.add_step('a', func=speak, args=('said\n',))
    assert again() is True

    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize('construct', ['inline', 'thread'])
def test_a_log_that_cannot_be_written_for_a_while_goes_on(construct, tmp_path, caplog):
    # semantics 5.2
    def one():
        log = log_of(flow, tmp_path, 'a')
        os.mkdir(os.path.dirname(os.path.dirname(log)))
        os.mkdir(os.path.dirname(log))
        os.mkdir(log)    # as good as a full disk
        said('lost')
        said('lost, too')
        os.rmdir(log)
        said('last')
    said = logging.getLogger('task').info
    caplog.set_level(logging.INFO)
    flow = a_flow(construct=construct, config={'logdir': str(tmp_path)})
    flow.add_step('a', func=one)

    assert flow() is True

    assert [line.split('][')[-1] for line in read(log_of(flow, tmp_path, 'a')).splitlines()] == [
        ' last ]']
    assert len([one for one in caplog.records if 'cannot be written' in one.getMessage()]) == 1


def test_of_two_runs_in_threads_nothing_stays_in_the_environment():
    # semantics 5.1
    before = dict(os.environ)
    inside, go_on = [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]

    def work(number):
        inside[number].set()
        assert go_on[number].wait(20)

    def run(number):
        flow = a_flow(name='flow%d' % number)
        flow.add_step('a', func=work, args=(number,))
        assert flow() is True
    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for number, thread in enumerate(threads):
        thread.start()
        assert inside[number].wait(20)
    for number, thread in enumerate(threads):   # the first to begin is the first to end
        go_on[number].set()
        thread.join(20)
    assert {name: value for name, value in os.environ.items() if name.startswith('SEQUENT_')} == {
        name: value for name, value in before.items() if name.startswith('SEQUENT_')}
