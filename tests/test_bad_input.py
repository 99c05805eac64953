"""Bad input: each is a clear error before anything starts."""

import json
import logging
import os
import pathlib
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading

import pytest

pytest_plugins = ['flowtools']

import sequent as seq  # noqa: E402
import tally  # noqa: E402
from flowtools import do_nothing, statuses  # noqa: E402


@pytest.fixture
def refused(flow, trace):
    """A flow with a first step that would run; afterwards it must not have run."""
    flow.add_step('first', func=trace.run)
    yield flow
    tally.count('bad inputs')
    assert trace.lines == []
    assert flow.tasks() == []


# Names and functions #############################################################


def test_a_name_twice(refused):
    # semantics 1.8
    container = refused.add_step('load')
    container.add_step('file', func=None)

    with pytest.raises(seq.FlowError, match="two steps named 'file' in step 'load'"):
        container.add_step('file', func=None)
    with pytest.raises(seq.FlowError, match="two steps named 'first' in <Sequent flow>"):
        refused.add_step('first', func=None)


def test_paths_that_collide(refused):
    refused.add_step('a_b').add_step('c')

    with pytest.raises(seq.FlowError, match="'a_b_c'.*rename"):
        refused.add_step('a').add_step('b_c')


@pytest.mark.parametrize('name', ['', None, 5, b'name'])
def test_a_name_that_is_none(refused, name):
    with pytest.raises(seq.SequentError, match='name of a step must'):
        refused.add_step(name, func=do_nothing)
    with pytest.raises(seq.SequentError, match='name of a step must'):
        refused.add_step('c').add_step(name, func=do_nothing)


@pytest.mark.parametrize('func', ['print', 5, b'', [print]], ids=repr)
def test_a_function_that_cannot_be_called(refused, func):
    with pytest.raises(TypeError, match="'a'.*callable"):
        refused.add_step('a', func=func)


@pytest.mark.parametrize('given', [
    {'args': 5}, {'args': 'x'}, {'args': {1: 2}}, {'kwargs': [1]}, {'kwargs': {1: 2}}], ids=repr)
def test_arguments_that_cannot_be_passed(refused, given):
    with pytest.raises(TypeError, match="'a'.*%s" % list(given)[0]):
        refused.add_step('a', func=do_nothing, **given)


def test_children_under_a_leaf_with_a_function(refused):
    leaf = refused.add_step('leaf', func=do_nothing)

    with pytest.raises(seq.FlowError, match="'child'.*'leaf'.*func"):
        leaf.add_step('child', func=do_nothing)


# Requirements ####################################################################


@pytest.mark.parametrize('wrong', [
    'first', 5, object, {'a': 1}, print, b'', seq.STEP_SUCCESS, {1}], ids=repr)
@pytest.mark.parametrize('wrap', [
    lambda wrong, step: wrong, lambda wrong, step: [wrong],
    lambda wrong, step: (step, step, wrong),
    lambda wrong, step: seq.or_(step, (step, wrong, step))], ids=['alone', 'list', 'and', 'or'])
def test_a_requirement_of_something_else(refused, wrong, wrap):
    # semantics 1.8
    step = refused.add_step('step', func=do_nothing)

    with pytest.raises(TypeError, match="'a' requires"):
        refused.add_step('a', func=do_nothing, require=wrap(wrong, step))


def test_a_requirement_of_something_else_in_an_event(refused):
    with pytest.raises(TypeError, match="requires 'first'"):
        refused.add_event('first')


@pytest.mark.parametrize('status', [5, None, object()], ids=['int', 'None', 'object'])
def test_a_pair_with_something_that_is_no_status(refused, status):
    step = refused.add_step('step', func=do_nothing)

    with pytest.raises(seq.SequentError, match="'a' requires"):
        refused.add_step('a', func=do_nothing, require=(step, status))


def test_a_status_of_an_event(refused):
    event = refused.add_event(refused.add_step('step', func=do_nothing))

    with pytest.raises(seq.SequentError, match="'a' requires"):
        refused.add_step('a', func=do_nothing, require=(event, seq.STEP_SUCCESS))


@pytest.mark.parametrize('status, nearest', [('sucess', 'success'), ('failed', 'fail'),
                                             ('rerun', ''), ('', '')])
def test_an_unknown_status(refused, status, nearest):
    # semantics 1.8
    step = refused.add_step('step', func=do_nothing)

    with pytest.raises(seq.FlowError, match="%r of step 'step'.*%s" % (status, nearest)):
        refused.add_step('a', func=do_nothing, require=(step, status))


def test_a_step_or_event_of_another_flow(refused, memory_flow):
    other = memory_flow()
    step = other.add_step('far', func=do_nothing)

    for wrong in (step, (step, seq.STEP_FAILURE), [seq.or_(step)], other.add_event(step)):
        with pytest.raises(seq.FlowError, match="'a' requires.*another flow"):
            refused.add_step('a', func=do_nothing, require=wrong)


def test_a_step_inside_another_container(refused):
    # semantics 2.5
    inner = refused.add_step('load').add_step('file', func=do_nothing)

    with pytest.raises(seq.FlowError, match="'a' requires.*'load'"):
        refused.add_step('a', func=do_nothing, require=(inner, seq.STEP_SUCCESS))
        refused.run()


def test_a_requirement_that_can_never_hold(refused):
    with pytest.raises(seq.FlowError, match="'a' requires or_"):
        refused.add_step('a', func=do_nothing, require=seq.or_())


def test_a_circle(refused):
    # semantics 2.6
    container = refused.add_step('c')
    container.add_step('a', func=do_nothing, require=container)

    with pytest.raises(seq.CycleError, match='c -> c_a -> c|c_a -> c -> c_a'):
        refused.run()


# Pools, delays, loops, recovery mappings #########################################


@pytest.mark.parametrize('given', [
    ('', 1), (5, 1), ('p', 0), ('p', -1), ('p', 1.5), ('p', None), ('p', True)], ids=repr)
def test_a_pool_that_is_none(given):
    with pytest.raises(seq.SequentError, match='pool'):
        seq.ResourcePool(*given)


def test_a_pool_asked_for_more_than_it_has(refused):
    # semantics 4.3
    pool = seq.ResourcePool('tapes', 2)
    refused.add_step('a', func=do_nothing, acquires=[(pool, 3)])

    with pytest.raises(seq.FlowError, match="'a' acquires 3 of pool 'tapes'.*2"):
        refused.run()


def test_a_pool_asked_for_more_than_it_has_in_two_parts(refused):
    pool = seq.ResourcePool('tapes', 2)
    refused.add_step('c', acquires=[(pool, 1), (pool, 1)]).add_step(
        'a', func=do_nothing, acquires=[(pool, 1)])

    with pytest.raises(seq.FlowError, match="'c_a' acquires 1 of pool 'tapes'.*2"):
        refused.run()


@pytest.mark.parametrize('amounts', [
    5, [5], ['tapes'], [('tapes', 1)], [(seq.ResourcePool('tapes', 1),)],
    [(seq.ResourcePool('tapes', 1), 1.5)], [(seq.ResourcePool('tapes', 1), -1)],
    [(seq.ResourcePool('tapes', 1), True)]], ids=repr)
@pytest.mark.parametrize('what', ['acquires', 'releases'])
def test_amounts_that_are_none(refused, what, amounts):
    with pytest.raises(seq.SequentError, match="'a': %s" % what):
        refused.add_step('a', func=do_nothing, **{what: amounts})


@pytest.mark.parametrize('delay', [-1, -0.001, float('nan'), float('inf'), '5', None, True, [1]],
                         ids=repr)
def test_a_delay_that_is_none(refused, delay):
    with pytest.raises(seq.SequentError, match="'a': delay must be"):
        refused.add_step('a', func=do_nothing, delay=delay)


@pytest.mark.parametrize('loop', [5, 1.5, True, object()], ids=lambda loop: type(loop).__name__)
def test_a_loop_that_is_not_iterable(refused, loop):
    # semantics 1.4
    with pytest.raises(TypeError, match="'a': loop must be"):
        refused.add_step('a', func=do_nothing, loop=loop)


@pytest.mark.parametrize('recovery', [
    5, ['ready'], {'complete': 'skip'}, {'sucess': 'skip'}, {'success': 'again'}, {5: 'skip'}],
    ids=repr)
def test_a_recovery_mapping_that_is_none(refused, recovery):
    with pytest.raises(seq.SequentError, match="'a': recovery"):
        refused.add_step('a', func=do_nothing, recovery=recovery)


# Constructs ######################################################################


@pytest.mark.parametrize('construct, offered', [
    ('thraed', 'thread'), ('Process', 'process'), ('inlin', 'inline'), ('excutor', 'executor')])
def test_an_unknown_construct(refused, construct, offered):
    # semantics 4.12
    refused.add_step('a', func=do_nothing, config={'task_construct': construct})

    with pytest.raises(seq.ConstructError, match="%r; did you mean '%s'" % (construct, offered)):
        refused.run()


@pytest.mark.parametrize('construct', [
    'no.such.module:Construct', 'os:Construct', 'os:path', 5, threading.Lock, seq.TaskConstruct])
def test_something_that_is_no_construct(refused, construct):
    refused.add_step('a', func=do_nothing, config={'task_construct': construct})

    with pytest.raises(seq.ConstructError, match='construct'):
        refused.run()


class NotSent:
    def __reduce__(self):
        raise TypeError('this stays here')

    def __call__(self):
        pass


@pytest.mark.parametrize('given', [
    {'func': lambda: None}, {'func': NotSent()}, {'func': print, 'args': (NotSent(),)},
    {'func': print, 'kwargs': {'end': lambda: None}}],
    ids=['lambda', 'callable', 'argument', 'keyword argument'])
def test_functions_that_the_start_method_cannot_transfer(refused, given):
    # semantics 4.16
    refused.add_step('c').add_step('sent', config={
        'task_construct': 'process', 'start_method': 'spawn'}, **given)

    with pytest.raises(seq.ConstructError, match="'c_sent'.*'spawn'"):
        refused.run()


# Stores ##########################################################################


@pytest.fixture
def stored_flow(trace, tmp_path, monkeypatch):
    """A function that makes a flow with one step in the store at a path."""
    monkeypatch.setitem(globals(), '__file__', str(tmp_path / 'job.py'))  # for a default store

    def make(store, **given):
        flow = seq.Sequent('flow', store, config={'task_construct': 'inline',
                                                  'logdir': str(tmp_path / 'logs')}, **given)
        flow.add_step('a', func=trace.run)
        return flow

    yield make
    assert trace.lines == []


@pytest.mark.parametrize('store', [5, 0, {}, print, object, sqlite3.Connection])
def test_something_that_is_no_store(stored_flow, store):
    with pytest.raises(seq.SequentError, match='store'):
        stored_flow(store).run()


@pytest.mark.parametrize('store', [':memroy:', ':Memory:'])
def test_an_unknown_store(stored_flow, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(seq.SequentError, match="did you mean ':memory:'"):
        stored_flow(store).run()

    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize('mode', list(seq.RunMode))
def test_a_store_in_a_folder_that_does_not_exist(stored_flow, tmp_path, mode):
    path = str(tmp_path / 'missing' / 'flow.db')

    with pytest.raises(seq.SequentError) as caught:
        stored_flow(path, run_mode=mode).run()

    if mode == seq.RUN_RESTART:
        assert isinstance(caught.value, seq.StoreError)
        assert 'no folder' in str(caught.value) and 'missing' in str(caught.value)
    assert os.listdir(str(tmp_path)) == []


def test_a_store_that_is_a_folder(stored_flow, tmp_path):
    with pytest.raises(seq.StoreError, match=os.path.basename(str(tmp_path))):
        stored_flow(str(tmp_path)).run()


def test_a_store_in_a_folder_that_is_not_writable():
    # Not in pytest's own folder: another pytest that starts closes it to other users.
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        (folder / 'closed').mkdir()
        (folder / 'job.py').write_text(textwrap.dedent('''
            import os, sqlite3, pathlib, sequent as seq

            pathlib.Path('/').as_uri()      # loaded before the right to read it is given up
            flow = seq.Sequent('flow', os.path.abspath('closed/flow.db'),
                               config={'task_construct': 'inline'})
            flow.add_step('a', func=print, args=('ran',))
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            try:
                flow.run()
            except seq.StoreError as error:
                print(error)
        '''))
        (folder / 'closed').chmod(0o555)

        said = subprocess.run([sys.executable, 'job.py'], cwd=name, timeout=60,
                              stdout=subprocess.PIPE).stdout.decode()

        assert 'flow.db' in said and 'writable' in said
        assert 'ran' not in said.split()
        assert os.listdir(str(folder / 'closed')) == []


@pytest.mark.parametrize('content', [b'name,amount\n' * 500, b'x', b'\0' * 5000],
                         ids=['csv', 'short', 'zeros'])
@pytest.mark.parametrize('mode', list(seq.RunMode))
def test_a_file_that_is_no_database(stored_flow, tmp_path, content, mode):
    # semantics 6.7
    path = tmp_path / 'flow.db'
    path.write_bytes(content)

    with pytest.raises(seq.StoreError, match='flow.db'):
        stored_flow(str(path), run_mode=mode).run()

    assert path.read_bytes() == content


def test_a_database_of_something_else(stored_flow, tmp_path):
    path = tmp_path / 'flow.db'
    connection = sqlite3.connect(str(path))
    connection.execute('create table runs (name)')
    connection.close()
    before = path.read_bytes()

    with pytest.raises(seq.StoreError, match='flow.db'):
        stored_flow(str(path)).run()

    assert path.read_bytes() == before


@pytest.mark.parametrize('mode', list(seq.RunMode))
def test_a_store_written_by_a_newer_version(stored_flow, tmp_path, mode):
    # semantics 6.7
    path = str(tmp_path / 'flow.db')
    store = seq.SqliteStore(path)
    store.open()
    store.close()
    connection = sqlite3.connect(path)
    connection.execute('pragma user_version = 1000')
    connection.close()

    with pytest.raises(seq.StoreError, match='newer'):
        stored_flow(path, run_mode=mode).run()


# Runs ############################################################################


@pytest.mark.parametrize('mode', [seq.RUN_RECOVER, seq.RUN_CONTINUE, 'recover'])
@pytest.mark.parametrize('kind', ['missing', 'empty', 'of another flow', 'memory'])
def test_recovery_with_nothing_to_recover(stored_flow, memory_flow, tmp_path, mode, kind):
    path = str(tmp_path / 'flow.db')
    if kind == 'empty':
        open(path, 'w').close()
    if kind == 'of another flow':
        assert memory_flow(name='other', store=path).run() is True
    before = sorted(os.listdir(str(tmp_path)))

    with pytest.raises(seq.RecoveryError, match='nothing to recover'):
        stored_flow(seq.MemoryStore() if kind == 'memory' else path, run_mode=mode).run()

    assert sorted(os.listdir(str(tmp_path))) == before
    assert kind != 'empty' or os.path.getsize(path) == 0


def run_once(store):
    flow = seq.Sequent('flow', store, run_id='monday', config={'task_construct': 'inline'})
    flow.add_step('a', func=do_nothing)
    assert flow.run() is True


@pytest.mark.parametrize('mode', [seq.RUN_RECOVER, seq.RUN_CONTINUE])
def test_recovery_of_an_unknown_run(stored_flow, new_flow, mode):
    store = new_flow.store
    run_once(store)

    with pytest.raises(seq.RecoveryError, match="nothing to recover.*'tuesday'"):
        stored_flow(store, run_mode=mode, run_id='tuesday').run()


def test_recovery_from_an_unknown_recovery(stored_flow, new_flow):
    store = new_flow.store
    run_once(store)

    with pytest.raises(seq.RecoveryError, match='recovery 7'):
        stored_flow(store, run_mode=seq.RUN_RECOVER, recovery_run=7).run()


def test_a_run_id_that_is_taken(stored_flow, new_flow):
    # semantics 6.1
    store = new_flow.store
    run_once(store)

    with pytest.raises(seq.SequentError, match="'monday'.*(recover|another)"):
        stored_flow(store, run_id='monday').run()


@pytest.mark.parametrize('given, said', [
    ({'run_mode': 'recovr'}, "did you mean 'recover'"), ({'run_mode': 5}, 'run_mode'),
    ({'recovery_run': -1}, 'recovery_run'), ({'recovery_run': 'x'}, 'recovery_run'),
    ({'run_id': 5}, 'run_id'), ({'name': 5}, 'name of a flow')], ids=repr)
def test_a_flow_that_is_given_nonsense(given, said):
    with pytest.raises(seq.SequentError, match=said):
        seq.Sequent(**dict({'store': ':memory:'}, **given))


def test_a_flow_run_again_after_close(refused):
    # semantics 8.2
    refused.close()

    with pytest.raises(seq.ClosedError, match='closed'):
        refused.run()
    with pytest.raises(seq.ClosedError, match='closed'):
        refused()


def test_a_flow_that_was_run_and_closed_is_not_run_again(memory_flow, trace):
    # semantics 8.2
    with memory_flow() as flow:
        flow.add_step('a', func=trace.run)
        assert flow.run() is True

    with pytest.raises(seq.ClosedError):
        flow.run()

    assert trace.lines == ['a@1']
    assert statuses(flow) == {'a@1': 'success'}


def test_a_step_added_to_a_flow_that_has_been_run(memory_flow):
    # semantics 1.8
    flow = memory_flow()
    container = flow.add_step('c')
    container.add_step('a', func=do_nothing)
    flow.run()

    for where in (flow, container):
        with pytest.raises(seq.SequentError, match="'late'.*has been run"):
            where.add_step('late', func=do_nothing)


def test_a_flow_run_from_within_itself(memory_flow):
    # semantics 8.2
    flow = memory_flow()
    flow.add_step('a', func=flow.run)

    assert flow.run() is False

    assert 'cannot be called from within' in flow.tasks()[0].error


@pytest.mark.parametrize('cycles', ['1', 1.5, None, True])
def test_cycles_that_are_no_number(refused, cycles):
    with pytest.raises(TypeError, match='max_loops'):
        refused.run(max_loops=cycles)


# Configuration ###################################################################


@pytest.mark.parametrize('key, value', [
    ('max_concurrent', '4'), ('max_concurrent', 1.5), ('max_concurrent', True),
    ('stop_on_exception', 'no'), ('stop_on_exception', 1), ('sleep_between_loops', -1),
    ('sleep_between_loops', 'long'), ('shutdown_grace', -0.1), ('shutdown_grace', float('nan')),
    ('envvar_prefix', 5), ('start_method', 'clone'), ('exclusive', 'yes'),
    ('synchronous', 'sometimes'), ('group_commit', None), ('capture', 'all'), ('capture', True),
    ('handled_by', True), ('handled_by', 'all'), ('keep_result', 'yes'), ('logdir', 5),
    ('workdir', None), ('task_construct', '')])
def test_a_config_value_that_is_wrong(key, value):
    # semantics 8.6
    with pytest.raises(seq.ConfigError, match=key):
        seq.Sequent('flow', ':memory:', config={key: value})


def test_a_config_value_that_is_wrong_on_a_step(refused):
    with pytest.raises(seq.ConfigError, match="'a'.*max_concurrent"):
        refused.add_step('a', func=do_nothing, config={'max_concurrent': 'all'})


def test_a_config_value_that_is_wrong_in_the_environment(memory_flow, trace, monkeypatch):
    monkeypatch.setenv('SEQUENT_MAX_CONCURRENT', 'many')
    flow = memory_flow()
    flow.add_step('a', func=trace.run)

    with pytest.raises(seq.ConfigError, match="SEQUENT_MAX_CONCURRENT.*'many'"):
        flow.run()

    assert trace.lines == []


def test_an_unknown_config_key_is_a_warning_with_the_nearest_name(memory_flow, caplog):
    # semantics 8.6
    with caplog.at_level(logging.WARNING, logger='sequent'):
        flow = memory_flow(max_concurent=3)
        flow.add_step('a', func=do_nothing, config={'task_constructs': 'thread'})
        assert flow.run() is True

    texts = [record.getMessage() for record in caplog.records]
    assert any("'max_concurent'" in text and "'max_concurrent'" in text for text in texts)
    assert any("'task_constructs'" in text and "'task_construct'" in text and "'a'" in text
               for text in texts)


@pytest.mark.parametrize('config', [5, [1], 'no-such-file.json'], ids=repr)
def test_a_config_that_is_none(config):
    with pytest.raises(seq.ConfigError, match='config'):
        seq.Sequent('flow', ':memory:', config=config)


def test_a_config_file_that_is_no_json(tmp_path):
    (tmp_path / 'flow.json').write_text('{max_concurrent: 3')

    with pytest.raises(seq.ConfigError, match='flow.json'):
        seq.Sequent('flow', ':memory:', config=str(tmp_path / 'flow.json'))


def test_a_config_tag_that_is_not_there(tmp_path):
    (tmp_path / 'flow.json').write_text(json.dumps({'production': {'max_concurrent': 3}}))

    with pytest.raises(seq.ConfigError, match="did you mean 'production'"):
        seq.Sequent('flow', ':memory:', config=str(tmp_path / 'flow.json'),
                    config_tag='prodution')


# Classes of errors ###############################################################


ERRORS = {
    'FlowError': ValueError, 'FlowTypeError': TypeError, 'CycleError': ValueError,
    'ConfigError': ValueError, 'StoreError': OSError, 'AlreadyRunningError': RuntimeError,
    'RecoveryError': LookupError, 'ConstructError': ValueError, 'ClosedError': RuntimeError,
    'ParameterError': ValueError, 'ProgramError': RuntimeError}


def test_each_error_is_one_of_the_library_and_of_the_built_in_kind_that_fits():
    # semantics 1.8
    names = [name for name in seq.__all__ if name.endswith('Error') and name != 'SequentError']

    assert sorted(names) == sorted(ERRORS)
    for name, kind in ERRORS.items():
        assert issubclass(getattr(seq, name), seq.SequentError), name
        assert issubclass(getattr(seq, name), kind), name


# The command line ################################################################


@pytest.mark.parametrize('lines, said', [
    ("a = flow.add_step('a', func=5)", 'callable'),
    ("a = flow.add_step('a'); a.add_step('b', None, require=a)", ' -> '),
    ("flow.add_step('a', func=print, config={'task_construct': 'thraed'})", "'thread'")],
    ids=['function', 'circle', 'construct'])
def test_the_command_line_says_what_is_wrong_and_exits_with_3(tmp_path, lines, said):
    # semantics 1.8, 20.2
    (tmp_path / 'job.py').write_text(
        "import sequent as seq\nflow = seq.Sequent()\n"
        "flow.add_step('first', func=print, args=('ran',))\n" + lines + '\n')

    ended = subprocess.run([sys.executable, '-m', 'sequent', 'job'], cwd=str(tmp_path), timeout=60,
                           stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert ended.returncode == 3
    assert said in ended.stderr.decode()
    assert b'ran' not in ended.stdout + ended.stderr
