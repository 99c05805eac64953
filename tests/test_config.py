"""Every configuration key: default, where it may stand, effect, errors."""

import json
import logging
import multiprocessing
import os
import sys
import threading

import pytest


import sequent  # noqa: E402
from runtools import (  # noqa: E402,F401
    Calls, Line, a_flow, a_private_temporary_folder, construct, fail, journal, log_of, read,
    statuses, the_task)
from sequent import (  # noqa: E402
    ConfigError, ConstructError, InlineConstruct, Sequent, SequentError, ThreadConstruct)

#: key: (default, another value, it as text, may stand on a step)
KEYS = {
    'workdir': ('', '/nowhere', '/nowhere', False),
    'logdir': ('', '/nowhere', '/nowhere', False),
    'task_construct': ('process', 'inline', 'inline', True),
    'max_concurrent': (max(2, os.cpu_count() or 1), 17, '17', True),
    'stop_on_exception': (True, False, 'false', True),
    'sleep_between_loops': (1, 0.5, '0.5', False),
    'envvar_prefix': ('SEQUENT_', 'ETL_', 'ETL_', False),
    'start_method': ('fork', 'spawn', 'spawn', True),
    'shutdown_grace': (10, 2.5, '2.5', False),
    'exclusive': (True, False, '0', False),
    'synchronous': ('full', 'normal', 'normal', False),
    'group_commit': (0.02, 0, '0', False),
    'capture': ('relay', 'none', 'none', True),
    'stdin': ('null', 'inherit', 'inherit', True),
    'handled_by': ('handles', 'failure', 'failure', False),
    'keep_result': (True, False, 'off', True),
    'cwd': ('', '/nowhere', '/nowhere', True),
    'env': ({}, {'A': 'b', 'C': None}, '{"A": "b", "C": null}', True),
}
# Before 3.7 a forkserver does not tell how a process has ended; it is refused there.
not_fork = pytest.mark.parametrize(
    'method', ['spawn', 'forkserver'] if sys.version_info >= (3, 7) else ['spawn'])
every_key = pytest.mark.parametrize('key', sorted(KEYS))


@pytest.fixture(autouse=True)
def no_settings_in_the_environment(monkeypatch):
    for name in list(os.environ):
        if name.startswith('SEQUENT_') and name[len('SEQUENT_'):].lower() in KEYS:
            monkeypatch.delenv(name)


def setting(key, **given):
    return Sequent('etl', store=':memory:', **given).settings()[key]


def warnings(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


# Where a value comes from

@every_key
def test_each_key_has_its_documented_default(key):
    # semantics 8.4
    default = KEYS[key][0]
    found = setting(key)
    assert found == default or key == 'start_method' and found in (None, default)
    assert key in Sequent.__doc__


@every_key
def test_the_environment_counts_over_the_default(key, monkeypatch):
    # semantics 8.4
    monkeypatch.setenv('SEQUENT_' + key.upper(), KEYS[key][2])
    assert setting(key) == KEYS[key][1]


@every_key
def test_the_argument_counts_over_the_environment(key, monkeypatch, tmp_path):
    # semantics 8.4
    default, other, text, _ = KEYS[key]
    monkeypatch.setenv('SEQUENT_' + key.upper(), text)
    argument = default if default != '' else str(tmp_path)
    assert argument != other
    assert setting(key, config={key: argument}) == argument


@pytest.mark.parametrize('key', sorted(key for key in KEYS if KEYS[key][3]))
def test_a_step_may_set_what_is_documented_so(key, caplog):
    # semantics 8.6
    flow = a_flow()
    flow.add_step('a', func=None, config={key: KEYS[key][1]})
    assert flow() is True
    assert warnings(caplog) == []


@pytest.mark.parametrize('key', sorted(key for key in KEYS if not KEYS[key][3]))
def test_what_means_nothing_on_a_step_is_warned_of(key, caplog):
    # semantics 8.6
    flow = a_flow()
    flow.add_step('the_step', func=Calls(), config={key: KEYS[key][1]})
    assert flow() is True
    [warning] = warnings(caplog)
    assert key in warning and 'the_step' in warning


def test_config_may_be_the_path_of_a_json_file(tmp_path):
    # semantics 8.6
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({'max_concurrent': 17}))
    assert setting('max_concurrent', config=str(path)) == 17
    assert setting('max_concurrent', config=path) == 17


def test_config_tag_picks_a_key(tmp_path):
    # semantics 8.6
    content = {'etl': {'max_concurrent': 17}, 'other': {'max_concurrent': 3}}
    path = tmp_path / 'config.json'
    path.write_text(json.dumps(content))
    for config in (content, str(path)):
        assert setting('max_concurrent', config=config, config_tag='etl') == 17
        assert setting('max_concurrent', config=config, config_tag='other') == 3
        with pytest.raises(ConfigError, match='etl'):
            setting('max_concurrent', config=config, config_tag='elt')


@pytest.mark.parametrize('content', ['{', '[1]', '"x"', None])
def test_a_file_that_is_no_config_is_an_error_that_names_it(content, tmp_path):
    path = tmp_path / 'config.json'
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match='etl'):
        setting('capture', config=str(path))


@pytest.mark.parametrize('config', [3, [('a', 1)], object()])
def test_a_config_of_another_type_is_an_error(config):
    with pytest.raises((ConfigError, TypeError)):
        setting('capture', config=config)


def test_the_given_dict_is_left_alone():
    # semantics 8.6
    config = {'max_concurrent': 3, 'task_construct': 'inline'}
    flow = Sequent('etl', store=':memory:', config=config)
    flow.add_step('a', func=Calls(), config=config)
    config['max_concurrent'] = 'changed afterwards'
    assert flow() is True
    assert config == {'max_concurrent': 'changed afterwards', 'task_construct': 'inline'}


def test_the_predecessors_logging_key_is_understood(tmp_path, caplog):
    flow = a_flow(config={'LOGGING': {'logging_level': logging.ERROR,
                                      'logdir': str(tmp_path / 'logs')},
                          'task_construct': 'process'})
    flow.add_step('a', func=print, args=('said',))
    assert flow() is True
    assert flow.logging_level == logging.ERROR
    assert read(log_of(flow, tmp_path / 'logs', 'a')) == 'said\n'
    assert warnings(caplog) == []


@pytest.mark.parametrize('config, words', [
    ({'DATABASES': {'default': {'PASSWORD': 'hush'}}}, ['DATABASES', 'store=']),
    ({'LOGGING': {'logdir': 'logs', 'console': True, 'encoding': 'utf-8'}},
     ['LOGGING', "'console', 'encoding'", 'logdir and logging_level']),
    ({'LOGGING': 'logging.json'}, ['LOGGING', "'logging.json'"])])
def test_what_the_predecessors_knew_and_is_not_used_is_warned_of(
        config, words, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    flow = a_flow(config=config)
    flow.add_step('a', func=Calls())
    assert flow() is True
    [warning] = warnings(caplog)
    assert all(one in warning for one in words + ['etl']) and 'hush' not in warning


# Errors

@pytest.mark.parametrize('wrong, nearest', [
    ('max_concurent', 'max_concurrent'), ('stop_on_exeption', 'stop_on_exception'),
    ('LOGDIR', 'logdir'), ('zzz', None)])
def test_an_unknown_key_is_warned_of_with_the_nearest_name(wrong, nearest, caplog):
    # semantics 8.6
    flow = a_flow(config={wrong: 1})
    flow.add_step('a', func=Calls(), config={wrong: 1})
    assert flow() is True
    of_flow, of_step = warnings(caplog)
    for warning, who in ((of_flow, 'etl'), (of_step, "'a'")):
        assert repr(wrong) in warning and who in warning
        if nearest and wrong != 'LOGDIR':
            assert repr(nearest) in warning


WRONG = [
    ('workdir', 3), ('workdir', ['x']), ('logdir', 3), ('logdir', True),
    ('task_construct', ''), ('max_concurrent', '2'), ('max_concurrent', 1.5),
    ('max_concurrent', True), ('stop_on_exception', 'no'), ('stop_on_exception', 1),
    ('sleep_between_loops', '1'), ('sleep_between_loops', -1), ('sleep_between_loops', True),
    ('sleep_between_loops', float('nan')), ('envvar_prefix', 3), ('start_method', 'frok'),
    ('start_method', 3), ('shutdown_grace', -0.1), ('shutdown_grace', 'x'), ('exclusive', 'yes'),
    ('exclusive', 1), ('synchronous', 'fulll'), ('synchronous', True), ('group_commit', -1),
    ('group_commit', '0'), ('capture', 'relays'), ('capture', None), ('handled_by', 'x'),
    ('keep_result', 0), ('cwd', 3), ('env', ['A']), ('env', {'A': 1}), ('env', {'A=B': 'x'}),
    ('env', {'': 'x'}), ('env', {'A': 'x\0y'})]


@pytest.mark.parametrize('key, value', WRONG)
def test_a_wrong_type_or_value_is_an_error_that_names_key_and_flow(key, value):
    # semantics 8.6
    with pytest.raises(ConfigError) as caught:
        Sequent('etl', store=':memory:', config={key: value})
    assert key in str(caught.value) and 'etl' in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize('key, value', [one for one in WRONG if KEYS[one[0]][3]])
def test_a_wrong_type_or_value_on_a_step_is_an_error_that_names_it(key, value):
    # semantics 8.6
    flow = a_flow()
    with pytest.raises(ConfigError) as caught:
        flow.add_step('the_step', func=Calls(), config={key: value})
    assert key in str(caught.value) and 'the_step' in str(caught.value)


@pytest.mark.parametrize('key, text', [
    ('max_concurrent', 'two'), ('stop_on_exception', 'maybe'), ('sleep_between_loops', 'x'),
    ('sleep_between_loops', '-1'), ('synchronous', 'fulll'), ('capture', 'x'),
    ('start_method', 'frok'), ('group_commit', 'nan'), ('env', '[1]'), ('env', '{"A": 1}'),
    ('env', 'A=b')])
def test_a_wrong_text_in_the_environment_is_an_error_before_anything_starts(
        key, text, monkeypatch):
    # semantics 8.6
    monkeypatch.setenv('SEQUENT_' + key.upper(), text)
    calls = Calls()
    with pytest.raises(ConfigError, match='SEQUENT_' + key.upper()):
        flow = a_flow()
        flow.add_step('a', func=calls)
        flow()
    assert calls.calls == []


@pytest.mark.parametrize('key, value, nearest', [
    ('synchronous', 'fulll', 'full'), ('capture', 'rely', 'relay'),
    ('start_method', 'spwan', 'spawn')])
def test_of_a_wrong_choice_the_nearest_is_offered(key, value, nearest):
    with pytest.raises(ConfigError, match="did you mean '%s'" % nearest):
        Sequent('etl', store=':memory:', config={key: value})


# Effects of keys that have no other test

def where():
    return os.getpid(), threading.get_ident()


class MyConstruct(InlineConstruct):
    pass


@pytest.mark.parametrize('spec, kind', [
    ('process', 'process'), ('thread', 'thread'), ('inline', 'inline'), ('invoke', 'inline'),
    (multiprocessing.Process, 'process'), (threading.Thread, 'thread'),
    (InlineConstruct, 'inline'), (ThreadConstruct(), 'thread'), (MyConstruct, 'inline'),
    ('sequent:ThreadConstruct', 'thread'), (__name__ + ':MyConstruct', 'inline')])
def test_a_construct_is_given_by_name_class_or_object(spec, kind):
    # semantics 4.12
    flow = a_flow(construct=spec)
    flow.add_step('a', func=where)
    assert flow() is True
    pid, thread = the_task(flow, 'a').result
    if kind == 'process':
        assert pid != os.getpid()
    else:
        assert pid == os.getpid()
        assert (thread == threading.get_ident()) is (kind == 'inline')


@pytest.mark.parametrize('spec, words', [
    ('proces', "'process'"), ('treads', "'thread'"), ('nothing.like:It', 'nothing'),
    ('sequent:Nothing', 'Nothing'), ('sequent:Sequent', 'Sequent'), (3, '3'), (dict, 'dict')])
def test_an_unknown_construct_is_an_error_before_anything_starts(spec, words):
    # semantics 4.12
    calls = Calls()
    flow = a_flow()
    flow.add_step('a', func=calls)
    flow.add_step('b', func=calls, config={'task_construct': spec})
    with pytest.raises(SequentError, match=words):
        flow()
    assert calls.calls == []


@pytest.mark.parametrize('where_set', ['flow', 'environment', 'container'])
def test_stop_on_exception_false_stops_nothing(where_set, monkeypatch):
    # semantics 3.4
    calls = Calls()
    loose = {'stop_on_exception': False}
    if where_set == 'environment':
        monkeypatch.setenv('SEQUENT_STOP_ON_EXCEPTION', '0')
    flow = a_flow(config=loose if where_set == 'flow' else {})
    s = flow.add_step('s', config=loose if where_set == 'container' else {})
    s.add_step('a', func=fail)
    s.add_step('b', func=calls)
    assert flow() is False
    assert calls.names == ['s_b']


@pytest.mark.parametrize('given, result', [
    ('complete', True), ('failure', False), ('handles', False)])
def test_handled_by(given, result):
    # semantics 3.3
    calls = Calls()
    flow = a_flow(config={'handled_by': given, 'stop_on_exception': False})
    a = flow.add_step('a', func=fail)
    flow.add_step('report', func=calls, require=((a, 'complete'),))
    assert flow() is result
    assert calls.names == ['report']
    assert the_task(flow, 'a').handled is result


def test_max_concurrent_caps_the_running_tasks(monkeypatch):
    # semantics 4.1
    monkeypatch.setenv('SEQUENT_MAX_CONCURRENT', '2')
    running, most, lock = [0], [0], threading.Lock()
    pairs = threading.Barrier(2, timeout=20)

    def one():
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        pairs.wait()
        with lock:
            running[0] -= 1
        pairs.wait()
    flow = Sequent('etl', store=':memory:', config={'task_construct': 'thread'})
    for name in 'abcdef':
        flow.add_step(name, func=one)
    assert flow() is True
    assert most == [2]


def test_below_1_there_is_no_limit():
    # semantics 4.1
    everybody = threading.Barrier(12, timeout=20)
    flow = a_flow(construct='thread', config={'max_concurrent': 0})
    for number in range(12):
        flow.add_step('a%d' % number, func=everybody.wait)
    assert flow() is True


def for_another_interpreter(path):
    """At the top of a module, so that every start method can transfer it."""
    with open(path, 'a') as stream:
        stream.write('%s\n' % multiprocessing.get_start_method())
    return os.getpid(), sequent.current().name


@not_fork
def test_start_method_says_how_processes_start(method, tmp_path):
    flow = Sequent('etl', store=':memory:', config={'start_method': method})
    flow.add_step('a', func=for_another_interpreter, args=(str(tmp_path / 'out'),))
    assert flow() is True
    pid, name = the_task(flow, 'a').result
    assert pid != os.getpid() and name == 'a'


@not_fork
def test_what_a_start_method_cannot_transfer_is_said_before_the_run(method):
    # semantics 4.16
    calls = Calls()
    flow = a_flow()
    flow.add_step('first', func=calls)
    flow.add_step('the_step', func=lambda: 1,
                  config={'task_construct': 'process', 'start_method': method})
    with pytest.raises(ConstructError, match='the_step'):
        flow()
    assert calls.calls == []


def test_a_lambda_runs_under_fork():
    # semantics 10.5
    flow = a_flow(construct='process')
    flow.add_step('a', func=lambda: 17)
    assert flow() is True
    assert the_task(flow, 'a').result == 17


def test_workdir_holds_the_librarys_temporary_files(tmp_path, a_private_temporary_folder):
    # semantics 8.5
    (tmp_path / 'work').mkdir()
    flow = a_flow(construct='process', config={'workdir': str(tmp_path / 'work')})
    flow.add_step('a', func=print, args=('said',))
    assert flow() is True
    assert statuses(flow) == {'a': 'success'}
    assert list(a_private_temporary_folder.iterdir()) == []


def test_an_event_driven_run_does_not_wait_for_sleep_between_loops(construct):
    # semantics 4.5: it is no minimum latency
    flow = a_flow(construct=construct, config={'sleep_between_loops': 1000})
    before = ()
    for name in 'abc':
        before = (flow.add_step(name, func=len, args=('',), require=before),)
    thread = threading.Timer(100, os._exit, (1,))
    thread.start()
    try:
        assert flow() is True
    finally:
        thread.cancel()    # else it would end the tests that follow


def test_a_file_of_settings_of_a_whole_flow(tmp_path):
    path = tmp_path / 'config.json'
    path.write_text(json.dumps({'nightly': {'task_construct': 'inline',
                                            'stop_on_exception': False}}))
    line, calls = Line(), Calls()
    flow = Sequent('etl', store=':memory:', config=str(path), config_tag='nightly')
    flow.add_step('a', func=line)
    flow.add_step('b', func=calls)
    assert flow() is False
    assert calls.names == ['b']
