"""Parameters of a flow: where values come from, what is recorded, and what holds in a recovery."""

import datetime
import json
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import zipfile

import pytest


import sequent as seq  # noqa: E402
from runtools import a_flow, store, wait_gone  # noqa: E402, F401 (a fixture)
from test_command_line import ROOT, assert_refused, shop  # noqa: E402, F401 (a fixture)

# Writes the day down; then fails while there is no file 'line'.
NIGHT = '''
    import os
    import sequent as seq

    day = seq.parameter('day', default='monday', help='the day to extract')


    def extract():
        with open('journal', 'a') as file:
            file.write('extract %s\\n' % day)


    def transmit():
        with open('journal', 'a') as file:
            file.write('transmit %s\\n' % day)
        if not os.path.exists('line'):
            raise ConnectionError('the line is down')


    flow = seq.Sequent()
    a = flow.add_step('a', func=extract)
    flow.add_step('b', func=transmit, require=a)
'''
REQUIRED = NIGHT.replace("default='monday', ", '')

# Fails while there is no file 'line', and says its password in doing so.
SECRET = '''
    import os
    import sequent as seq

    password = seq.parameter('password', secret=True)


    def log_in():
        if not os.path.exists('line'):
            raise ConnectionError('refused: %r' % password)


    flow = seq.Sequent(config={'task_construct': 'inline'})
    flow.add_step('a', func=log_in)
'''


@pytest.fixture(autouse=True)
def no_parameters_of_other_tests(monkeypatch):
    fresh = type(seq._parameters)()
    for name, value in vars(fresh).items():
        monkeypatch.setattr(seq._parameters, name, value)
    for variable in list(os.environ):
        if variable.startswith('SEQUENT_PARAM_'):
            monkeypatch.delenv(variable)


@pytest.fixture
def night(shop):
    shop.write('night.py', NIGHT)
    return shop


def journal(shop):
    return (shop.folder / 'journal').read_text().splitlines()


def mend(shop):
    shop.write('line', '')


def recorded(shop, module, *options):
    """Return the parameters of the run that status shows."""
    done = shop(module, 'status', '--json', *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)['parameters']


# Values ###########################################################################


def test_the_default_is_the_value_where_nothing_else_is_given():
    # semantics 18.1
    assert seq.parameter('day', default='monday') == 'monday'


def test_the_environment_counts_before_the_default(monkeypatch):
    # semantics 18.1
    monkeypatch.setenv('SEQUENT_PARAM_DAY', 'friday')

    assert seq.parameter('day', default='monday') == 'friday'


def test_an_empty_variable_is_a_value(monkeypatch):
    # semantics 18.1
    monkeypatch.setenv('SEQUENT_PARAM_DAY', '')

    assert seq.parameter('day', default='monday') == ''


def test_without_a_default_a_parameter_is_required():
    # semantics 18.1
    with pytest.raises(seq.ParameterError, match=r"parameter 'day' is missing: give --set day=... "
                       'or SEQUENT_PARAM_DAY$'):
        seq.parameter('day')


def test_none_as_default_makes_a_parameter_optional():
    # semantics 18.1
    assert seq.parameter('day', default=None) is None


@pytest.mark.parametrize('default, text, value', [
    ('a', '7', '7'), (1, '7', 7), (1.5, '7', 7.0), (None, '7', '7'), (False, 'yes', True),
    (True, 'OFF', False), (True, '0', False)])
def test_without_a_type_that_of_the_default_counts(monkeypatch, default, text, value):
    # semantics 18.1
    monkeypatch.setenv('SEQUENT_PARAM_X', text)

    found = seq.parameter('x', default=default)

    assert (found, type(found)) == (value, type(value))


def test_without_type_and_default_a_value_is_text(monkeypatch):
    # semantics 18.1
    monkeypatch.setenv('SEQUENT_PARAM_X', '7')

    assert seq.parameter('x') == '7'


def test_a_type_makes_the_value_of_the_text(monkeypatch):
    # semantics 18.1
    monkeypatch.setenv('SEQUENT_PARAM_X', 'a,b')

    assert seq.parameter('x', type=lambda text: text.split(',')) == ['a', 'b']


def test_bool_as_type_takes_words(monkeypatch):
    # semantics 18.1
    monkeypatch.setenv('SEQUENT_PARAM_X', 'no')

    assert seq.parameter('x', type=bool) is False


@pytest.mark.parametrize('given, text', [
    ({'default': 1}, 'seven'), ({'type': float}, 'seven'), ({'type': bool}, 'maybe')])
def test_a_text_that_the_type_refuses_is_an_error_that_names_both(monkeypatch, given, text):
    # semantics 18.2
    monkeypatch.setenv('SEQUENT_PARAM_X', text)

    with pytest.raises(seq.ParameterError, match=r"parameter 'x': '%s' \(SEQUENT_PARAM_X\) is "
                       'refused: ValueError: ' % text):
        seq.parameter('x', **given)


def test_whatever_a_type_raises_refuses_the_text(monkeypatch):
    monkeypatch.setenv('SEQUENT_PARAM_X', '')

    with pytest.raises(seq.ParameterError, match='refused: IndexError: string index'):
        seq.parameter('x', type=lambda text: text[0])


def test_the_refusal_of_a_secret_does_not_tell_it(monkeypatch):
    # semantics 18.4
    monkeypatch.setenv('SEQUENT_PARAM_PIN', 'hunter2')

    with pytest.raises(seq.ParameterError) as caught:
        seq.parameter('pin', type=int, secret=True)

    chain = [caught.value, caught.value.__cause__, caught.value.__context__]
    assert str(chain[0]).endswith('is refused: ValueError')
    assert not [one for one in chain if 'hunter2' in str(one)]


def a_day(text):
    return datetime.datetime.strptime(text, '%Y-%m-%d').date()


def test_a_default_may_be_what_the_type_makes():
    day = datetime.date(2026, 11, 22)

    assert seq.parameter('day', default=day, type=a_day) is day


def test_a_default_that_is_text_is_read_like_a_given_one():
    assert seq.parameter('day', default='2026-11-22', type=a_day) == datetime.date(2026, 11, 22)


@pytest.mark.parametrize('given', [
    {'default': datetime.date(2026, 11, 22)}, {'default': ['a']}, {'default': 1.5, 'type': int},
    {'default': b'a'}, {'default': [1], 'type': list}])
def test_a_default_that_cannot_be_read_back_is_refused(given):
    # semantics 18.1
    with pytest.raises(seq.FlowError, match="parameter 'day': its default .* give a type"):
        seq.parameter('day', **given)


@pytest.mark.parametrize('name', ['a-b', '', '1st', 'a b'])
def test_a_name_must_be_an_identifier(name):
    # semantics 18.1
    with pytest.raises(seq.FlowError, match='must be an identifier, not %r' % name):
        seq.parameter(name, default='')


@pytest.mark.parametrize('given, text', [
    ({'name': 7}, 'must be a str, not 7'), ({'type': 'int'}, "not be 'int'"),
    ({'help': None}, 'help must be a str, not None')])
def test_what_has_the_wrong_type_is_named(given, text):
    with pytest.raises(seq.FlowTypeError, match=text):
        seq.parameter(**dict({'name': 'x', 'default': ''}, **given))


def test_names_that_differ_by_case_only_are_refused():
    seq.parameter('day', default='')

    with pytest.raises(seq.FlowError, match="parameters 'day' and 'Day' .*SEQUENT_PARAM_DAY"):
        seq.parameter('Day', default='')


def test_a_parameter_may_be_declared_again_and_the_later_one_counts(store):
    # semantics 18.1
    assert seq.parameter('day', default='monday') == 'monday'
    assert seq.parameter('day', default='monday') == 'monday'
    assert seq.parameter('day', default='friday') == 'friday'

    flow = a_flow(store)
    flow.add_step('a', func=seq.Command(['test', '{day}', '=', 'friday']))
    assert flow.run() is True

    flow.store.open(create=False)
    [run] = flow.store.runs()
    flow.store.close()
    assert json.loads(run.steps)['parameters'] == {'day': 'friday'}


# A program that recovers itself ###################################################


def run_failing(store):
    flow = a_flow(store)
    flow.add_step('a', func=None)
    flow.add_step('b', func=int, args=('not a number',))
    assert not flow.run()


def rerun(store, mode='recover'):
    flow = a_flow(store, mode=mode)
    flow.add_step('a', func=None)
    flow.add_step('b', func=int, args=('7',))
    return flow


@pytest.mark.parametrize('mode', ['recover', 'continue'])
def test_another_value_than_the_recorded_one_is_an_error_that_names_both(store, mode,
                                                                         monkeypatch):
    # semantics 18.3
    seq.parameter('day', default='monday')
    run_failing(store)
    monkeypatch.setenv('SEQUENT_PARAM_DAY', 'friday')
    seq.parameter('day', default='monday')

    with pytest.raises(seq.ParameterError,
                       match="'monday' for parameter 'day', which is 'friday'"):
        rerun(store, mode).run()


def test_after_that_error_the_run_can_be_recovered(store, monkeypatch):
    seq.parameter('day', default='monday')
    run_failing(store)
    seq.parameter('day', default='friday')
    with pytest.raises(seq.ParameterError):
        rerun(store).run()
    monkeypatch.setenv('SEQUENT_PARAM_DAY', 'monday')
    seq.parameter('day', default='friday')

    assert rerun(store).run()


def test_another_text_for_the_same_value_is_no_difference(store, monkeypatch):
    seq.parameter('n', default=7)
    run_failing(store)
    monkeypatch.setenv('SEQUENT_PARAM_N', '007')
    seq.parameter('n', default=7)

    assert rerun(store).run()


def test_none_is_recorded_and_a_value_differs_from_it(store):
    seq.parameter('day', default=None)
    run_failing(store)
    seq.parameter('day', default='friday')

    with pytest.raises(seq.ParameterError, match="None for parameter 'day', which is 'friday'"):
        rerun(store).run()


def test_parameters_that_are_gone_and_new_are_named_in_the_log(store, caplog):
    # semantics 18.3
    seq.parameter('day', default='monday')
    run_failing(store)
    seq._parameters.declared.clear()
    seq.parameter('client', default='acme')
    caplog.set_level(logging.INFO)

    assert rerun(store).run()

    assert "parameter 'day', recorded with the run, is not declared now" in caplog.text
    assert "parameter 'client' is new" in caplog.text


def test_a_secret_may_change_between_run_and_recovery(store):
    # semantics 18.4
    seq.parameter('password', default='old', secret=True)
    run_failing(store)
    seq.parameter('password', default='new', secret=True)

    assert rerun(store).run()


# Secrets are masked ###############################################################


def fail_with(password):
    raise ValueError('%s is wrong' % password)


def loop_with(password):
    def items():
        raise ValueError('%s is wrong' % password)
    return items


@pytest.mark.parametrize('given', [
    {'func': fail_with, 'args': ('hunter2',)},
    {'func': None, 'loop': loop_with('hunter2')}],
    ids=['function', 'loop'])
@pytest.mark.parametrize('construct', ['inline', 'thread', 'process'])
def test_a_secret_is_masked_in_errors_and_log(store, construct, given, caplog):
    # semantics 18.4
    seq.parameter('password', default='hunter2', secret=True)
    flow = a_flow(store, construct)
    flow.add_step('a', **given)
    caplog.set_level(logging.DEBUG)

    assert not flow.run()

    (error,) = {task.error for task in flow.tasks() if task.path == 'a'}
    assert error.endswith('ValueError: *** is wrong')
    assert 'ValueError: *** is wrong\n' in caplog.text     # the traceback
    assert 'failure: a at 1: ' in caplog.text              # the summary
    assert 'hunter2' not in caplog.text


def test_a_secret_is_masked_as_repr_shows_it(store):
    # semantics 18.4
    seq.parameter('password', default='a\\b\nc', secret=True)
    flow = a_flow(store)
    flow.add_step('a', func={}.__getitem__, args=('a\\b\nc',))

    flow.run()

    assert flow.tasks()[0].error == "KeyError: '***'"


def test_what_the_type_makes_of_a_secret_is_masked_if_it_is_text(store):
    password = seq.parameter('password', default='hunter2', type=str.upper, secret=True)
    flow = a_flow(store)
    flow.add_step('a', func=fail_with, args=(password,))

    flow.run()

    assert flow.tasks()[0].error == 'ValueError: *** is wrong'


def test_a_secret_that_was_given_is_asked_for_again_although_it_has_a_default(store, monkeypatch):
    # semantics 18.4
    def make(mode):
        seq.parameter('password', default='', secret=True)
        flow = seq.Sequent('etl', store=store, run_mode=mode,
                               config={'task_construct': 'inline'})
        flow.add_step('a', func=int, args=('x',))
        return flow
    monkeypatch.setenv('SEQUENT_PARAM_PASSWORD', 'Sesame!')
    assert make('restart')() is False
    monkeypatch.delenv('SEQUENT_PARAM_PASSWORD')
    with pytest.raises(seq.ParameterError, match='SEQUENT_PARAM_PASSWORD'):
        make('recover')()


def test_an_empty_secret_masks_nothing(store):
    seq.parameter('password', default='', secret=True)
    flow = a_flow(store)
    flow.add_step('a', func=fail_with, args=('it',))

    flow.run()

    assert flow.tasks()[0].error == 'ValueError: it is wrong'


@pytest.mark.parametrize('construct', ['inline', 'process'])
def test_a_secret_is_in_no_file_that_the_run_leaves(shop, construct):
    # semantics 18.4
    shop.write('secret.py', SECRET.replace('inline', construct))

    done = shop('secret', SEQUENT_PARAM_PASSWORD='hunter2')

    assert done.returncode == 1
    assert "ConnectionError: refused: '***'" in done.stderr
    assert 'hunter2' not in done.stderr
    kept = (shop.folder / 'secret.run.db').read_bytes()
    assert b'***' in kept and b'hunter2' not in kept


def test_a_secret_is_masked_where_the_module_cannot_be_loaded(shop):
    shop.write('secret.py', '''
        import sequent as seq
        raise OSError('refused: %s' % seq.parameter('password', secret=True))
    ''')

    done = shop('secret', SEQUENT_PARAM_PASSWORD='hunter2')

    assert done.returncode == 3
    assert 'OSError: refused: ***' in done.stderr and 'hunter2' not in done.stderr


@pytest.mark.parametrize('method', seq.start_methods())
def test_the_outcome_that_an_orphan_leaves_masks_secrets(shop, method):
    # semantics 18.4
    shop.write('orphan.py', '''
        import os
        import time
        import sequent as seq

        password = seq.parameter('password', secret=True)


        def wait(password):
            with open('waits.tmp', 'w') as file:
                file.write(str(os.getpid()))
            os.rename('waits.tmp', 'waits')
            while not os.path.exists('go'):
                time.sleep(0.02)
            raise ValueError('%s is wrong' % password)


        flow = seq.Sequent(config={'start_method': '%s'})
        flow.add_step('a', func=wait, args=(password,))
    '''.replace('%s\'})', method + "'})"))
    shop.environment['SEQUENT_PARAM_PASSWORD'] = 'hunter2'
    supervisor = shop.start('orphan')
    orphan = int((shop.folder / 'waits').read_text())

    supervisor.kill()
    supervisor.wait()
    shop.write('go', '')
    wait_gone(orphan)

    (outcome,) = (shop.folder / 'orphan.run.db.outcomes').glob('**/*.json')
    content = json.loads(outcome.read_text())
    assert content['error'] == 'ValueError: *** is wrong'
    assert 'hunter2' not in outcome.read_text()


# Children #########################################################################

CHILDREN = '''
    import sys
    import time
    import sequent as seq

    day = seq.parameter('day')
    n = seq.parameter('n', default=time.time())
    void = seq.parameter('void', default=None)
    password = seq.parameter('password', secret=True)


    def tell():
        return day, n, void, password


    def check(told):
        assert told == (day, n, void, password), told


    def here():
        with open('here', 'w') as file:
            file.write(repr(tell()))


    def pool():
        import concurrent.futures
        import multiprocessing
        return concurrent.futures.ProcessPoolExecutor(1, **(
            {'mp_context': multiprocessing.get_context('spawn')}
            if sys.version_info >= (3, 7) else {}))


    flow = seq.Sequent(config=%r)
    flow.add_step('a', func=check, args=(tell(),))
    flow.add_step('b', func=here)
'''


@pytest.mark.parametrize('config', [
    {'start_method': method} for method in seq.start_methods()] + [
    {'task_construct': 'executor', 'executor': 'children:pool'}],
    ids=lambda config: config.get('start_method', 'executor'))
def test_children_have_the_values_of_the_supervisor(shop, config):
    # semantics 18.5
    shop.write('children.py', CHILDREN % config)

    done = shop('children', '--set', 'day=monday', '--set', 'password=hunter2')

    assert done.returncode == 0, done.stderr
    assert re.match(r"\('monday', [0-9.]+, None, 'hunter2'\)$",
                    (shop.folder / 'here').read_text())


# --set ############################################################################


def test_set_counts_before_environment_and_default(night):
    # semantics 18.1
    night('night', '--set', 'day=friday', SEQUENT_PARAM_DAY='sunday')

    assert journal(night) == ['extract friday', 'transmit friday']


def test_set_may_stand_before_the_module_and_more_than_once(shop):
    shop.write('two.py', '''
        import sequent as seq
        flow = seq.Sequent(config={'task_construct': 'inline'})
        flow.add_step('a', func=print, args=(seq.parameter('a'), seq.parameter('b')))
    ''')

    done = shop('--set', 'a=x=y', 'two', '--set=b=')

    assert done.returncode == 0, done.stderr
    assert done.stdout == 'x=y \n'


def test_a_missing_parameter_exits_2_and_starts_nothing(shop):
    # semantics 18.2
    shop.write('night.py', REQUIRED)

    done = shop('night')

    assert_refused(done, 2, "parameter 'day' is missing: give --set day=... or SEQUENT_PARAM_DAY")
    assert shop.names() == ['night.py']


def test_a_missing_secret_asks_for_the_variable_first(shop):
    shop.write('secret.py', SECRET)

    assert_refused(shop('secret'), 2, "'password' is missing: set SEQUENT_PARAM_PASSWORD (or ")


def test_a_wrong_value_exits_2(shop):
    # semantics 18.2
    shop.write('night.py', NIGHT.replace("'monday'", '1'))

    assert_refused(shop('night', '--set', 'day=friday'), 2,
                   "parameter 'day': 'friday' (--set) is refused: ValueError")
    assert shop.names() == ['night.py']


@pytest.mark.parametrize('verb', ['run', 'list', 'recover', 'continue', 'status', 'history'])
def test_an_unknown_name_exits_2_and_offers_the_nearest(night, verb):
    # semantics 18.2
    night('night')
    before = night.names(), journal(night)

    done = night('night', verb, '--set', 'dya=friday')

    assert_refused(done, 2, "no parameter 'dya'", "did you mean 'day'?")
    assert (night.names(), journal(night)) == before


def test_an_unknown_name_is_said_where_a_near_one_is_missing(shop):
    shop.write('night.py', REQUIRED)

    assert_refused(shop('night', '--set', 'dya=friday'), 2,
                   "parameter 'day' is missing", "--set gives 'dya'")


def test_set_for_a_flow_without_parameters_exits_2(shop):
    shop.write('plain.py', 'import sequent\nflow = sequent.Sequent()\n'
                           'flow.add_step("a", func=None)\n')

    assert_refused(shop('plain', '--set', 'day=friday'), 2, "no parameter 'day'; known: none")
    assert shop.names() == ['plain.py']


@pytest.mark.parametrize('text', ['day', '=friday', 'the day=friday', ''])
def test_set_without_name_or_value_exits_2(night, text):
    assert_refused(night('night', '--set', text), 2, '--set takes NAME=VALUE', repr(text))


@pytest.mark.parametrize('verb', ['run', 'list', 'status', 'history'])
def test_force_set_goes_with_recovery_only(night, verb):
    assert_refused(night('night', verb, '--force-set'), 2, '--force-set goes with recover')


def test_a_wrong_declaration_makes_a_flow_that_cannot_be_loaded(shop):
    shop.write('night.py', NIGHT.replace("'monday'", '[]'))

    done = shop('night')

    assert done.returncode == 3
    assert 'give a type that does' in done.stderr


def test_a_variable_whose_name_is_near_a_parameter_is_warned_of(night):
    done = night('night', 'list', SEQUENT_PARAM_DYA='friday', SEQUENT_PARAM_CLIENT='acme')

    assert ("SEQUENT_PARAM_DYA is the variable of no parameter; did you mean 'SEQUENT_PARAM_DAY'?"
            in done.stderr)
    assert 'CLIENT' not in done.stderr


# What shows them ##################################################################


def test_list_shows_parameters_with_their_values(night):
    # semantics 18.6
    done = night('night', 'list', '--set', 'day=friday')

    assert '  parameter day=friday (--set): the day to extract\n' in done.stdout


def test_list_as_json_has_the_parameters(night):
    # semantics 18.6
    assert json.loads(night('night', 'list', '--json').stdout)['parameters'] == [
        {'name': 'day', 'value': 'monday', 'secret': False, 'source': 'default',
         'help': 'the day to extract'}]


def test_list_masks_secrets_also_in_loops(shop):
    # semantics 18.6
    shop.write('secret.py', SECRET + '''
    flow.add_step('each', func=None, loop=[password])
''')

    for options in ([], ['--json']):
        done = shop('secret', 'list', *options, SEQUENT_PARAM_PASSWORD='hunter2')
        assert done.returncode == 0, done.stderr
        assert '***' in done.stdout and 'hunter2' not in done.stdout


def test_status_and_history_show_what_was_recorded(shop):
    # semantics 18.6
    shop.write('secret.py', SECRET + '''
    seq.parameter('day', default='mon\\nday')
    seq.parameter('void', default=None)
''')
    shop('secret', SEQUENT_PARAM_PASSWORD='hunter2')

    assert ("\nparameters: password=***, day='mon\\nday', void=None\n"
            in shop('secret', 'status').stdout)
    wanted = {'password': '***', 'day': 'mon\nday', 'void': None}
    assert recorded(shop, 'secret') == wanted
    assert [run['parameters'] for run in json.loads(
        shop('secret', 'history', '--json').stdout)] == [wanted]


def test_status_of_a_run_without_parameters_has_no_line_for_them(shop):
    shop.write('plain.py', 'import sequent\nflow = sequent.Sequent()\n'
                           'flow.add_step("a", func=None)\n')
    shop('plain')

    assert 'parameters' not in shop('plain', 'status').stdout
    assert recorded(shop, 'plain') == {}


def test_help_after_a_module_shows_its_parameters_and_runs_nothing(shop):
    # semantics 18.6
    shop.write('night.py', '''
        import sequent as seq
        print('loading')
        seq.parameter('day', help='the day to extract')
        seq.parameter('client', default='acme')
        seq.parameter('pin', default=7, secret=True)
        seq.parameter('void', default=None)
        with seq.Sequent() as flow:
            flow.add_step('a', func=print, args=('it is a',))
            flow()
    ''')

    done = shop('night', '-h')

    assert (done.returncode, done.stderr) == (0, 'loading\n')
    head, _, tail = done.stdout.partition('\nparameters of night:\n')
    assert 'exit codes:' in head
    assert [line.split(None, 1) for line in tail.splitlines()] == [
        ['day', 'required; the day to extract'], ['client', 'default acme'],
        ['pin', 'secret; default ***'], ['void', 'optional']]
    assert shop.names() == ['night.py']


def test_help_loads_the_module_with_the_values_that_are_set(shop):
    shop.write('night.py', '''
        import sequent as seq
        if seq.parameter('client', default='acme') == 'brown':
            seq.parameter('day')
        flow = seq.Sequent()
    ''')

    tail = shop('--set', 'client=brown', '-h', 'night').stdout.partition('parameters of night:')[2]

    assert [line.split()[0] for line in tail.splitlines()[1:]] == ['client', 'day']


def test_help_shows_what_a_module_declared_before_it_failed(shop):
    shop.write('night.py', '''
        import sequent as seq
        store = seq.parameter('client') + '.db'
        day = seq.parameter('day')
    ''')

    done = shop('night.py', '-h')

    assert done.returncode == 0
    assert re.search(r"parameters of night.py:\n  client +required\n"
                     r"  loading night.py ended here: TypeError: unsupported operand", done.stdout)


def test_help_of_a_module_whose_flow_is_built_shows_parameters_of_both(shop):
    shop.write('night.py', '''
        import sequent as seq
        seq.parameter('day', default='')
        def build_flow():
            seq.parameter('client', default='')
            return seq.Sequent()
    ''')

    tail = shop('night', '-h').stdout.partition('parameters of night:\n')[2]

    assert [line.split()[0] for line in tail.splitlines()] == ['day', 'client']


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='not for systems without /dev/full')
@pytest.mark.parametrize('module', [[], ['night']])
def test_help_that_cannot_be_written_is_an_error_in_a_sentence(night, module):
    with open('/dev/full', 'w') as full:
        done = subprocess.run([sys.executable, '-m', 'sequent', '-h'] + module, stdout=full,
                              stderr=subprocess.PIPE, universal_newlines=True,
                              cwd=str(night.folder), env=night.environment)

    assert done.returncode == 4
    assert re.match('.*: error: standard output cannot be written: .*\n$', done.stderr)


def test_help_after_the_name_of_no_module_is_still_shown(shop):
    done = shop('nihgt', '-h')

    assert done.returncode == 0
    assert 'exit codes:' in done.stdout
    assert "there is no module 'nihgt'" in done.stdout


# Recovery by the command line #####################################################

# The same flow, made and run in each of the ways that the command line knows.
SHAPES = {
    'attribute': '',
    'build_flow': '''
    del flow


    def build_flow():
        again = seq.Sequent('night')
        a = again.add_step('a', func=extract)
        again.add_step('b', func=transmit, require=a)
        return again
''',
    'runs at module level': '''
    flow()
''',
    'runs within with': '''
    with flow:
        try:
            flow()
        finally:
            with open('finally', 'a') as file:
                file.write(day + '.')
''',
    'runs in a function that bears SystemExit': '''
    def main():
        try:
            flow()
        except SystemExit:
            pass
    main()
'''}


@pytest.fixture(params=sorted(SHAPES))
def shaped(request, shop):
    shop.write('night.py', NIGHT + SHAPES[request.param])
    return shop


@pytest.mark.parametrize('verb', ['recover', 'continue'])
def test_the_recorded_value_holds_in_a_recovery(shaped, verb):
    # semantics 18.3
    assert shaped('night', '--set', 'day=friday').returncode == 1
    mend(shaped)
    if verb == 'continue':      # a failed run is over for continue
        stop_instead_of_failing(shaped)

    done = shaped('night', verb)

    assert done.returncode == 0, done.stderr
    assert journal(shaped) == ['extract friday', 'transmit friday', 'transmit friday']
    assert recorded(shaped, 'night') == {'day': 'friday'}


def stop_instead_of_failing(shop):
    """Let the store say that the run was interrupted in its second step."""
    with sqlite3.connect(str(shop.folder / 'night.run.db')) as db:
        db.execute("UPDATE runs SET status = 'stopped'")
        db.execute("UPDATE tasks SET status = 'active', ended = NULL, error = NULL "
                   "WHERE path = 'b'")
    db.close()


def test_a_recovery_needs_no_required_value_again(shop):
    # semantics 18.3
    shop.write('night.py', REQUIRED)
    shop('night', '--set', 'day=friday')
    mend(shop)

    done = shop('night', 'recover')

    assert done.returncode == 0, done.stderr
    assert journal(shop) == ['extract friday', 'transmit friday', 'transmit friday']


@pytest.mark.parametrize('verb', ['status', 'history'])
def test_verbs_that_look_need_no_required_value(shop, verb):
    # semantics 18.6
    shop.write('night.py', REQUIRED)
    shop('night', '--set', 'day=friday', '--run-id', 'r')

    done = shop('night', verb)

    assert done.returncode == 0, done.stderr
    assert ' r' in done.stdout


def test_a_recovery_of_a_recovery_has_the_value_of_the_run(night):
    night('night', '--set', 'day=friday')
    night('night', 'recover')
    mend(night)

    assert night('night', 'recover').returncode == 0
    assert journal(night) == ['extract friday'] + ['transmit friday'] * 3


def test_the_run_that_is_recovered_says_the_value(night):
    night('night', '--set', 'day=friday', '--run-id', 'first')
    night('night', '--set', 'day=sunday', '--run-id', 'second')
    mend(night)

    assert night('night', 'recover', '--run-id', 'first').returncode == 0
    assert journal(night)[-1] == 'transmit friday'


def test_an_equal_set_is_fine_in_a_recovery(night):
    night('night', '--set', 'day=friday')
    mend(night)

    assert night('night', 'recover', '--set', 'day=friday').returncode == 0


@pytest.mark.parametrize('verb', ['recover', 'continue'])
def test_another_set_in_a_recovery_is_refused_and_names_both(shaped, verb):
    # semantics 18.3
    shaped('night', '--set', 'day=friday')
    before = journal(shaped)
    mend(shaped)

    done = shaped('night', verb, '--set', 'day=sunday')

    assert_refused(done, 2, "--set day: 'sunday' is not 'friday', the value of the run",
                   'or give --force-set')
    assert journal(shaped) == before


def test_with_force_set_the_new_value_holds_and_is_recorded(shaped):
    # semantics 18.3
    shaped('night', '--set', 'day=friday')

    done = shaped('night', 'recover', '--set', 'day=sunday', '--force-set')
    mend(shaped)
    again = shaped('night', 'recover')

    assert (done.returncode, again.returncode) == (1, 0)
    assert "'day' is 'sunday' from now on; it was 'friday'" in done.stderr
    assert journal(shaped) == ['extract friday', 'transmit friday', 'transmit sunday',
                               'transmit sunday']
    assert recorded(shaped, 'night') == {'day': 'sunday'}
    assert recorded(shaped, 'night', '--recovery-run', '0') == {'day': 'friday'}


def test_force_set_changes_only_what_is_set(shop):
    shop.write('night.py', NIGHT.replace(
        'def extract', "client = seq.parameter('client', default='acme')\n\n\n    def extract", 1
    ).replace('% day', "% (day + ' ' + client)"))
    shop('night', '--set', 'day=friday', '--set', 'client=brown')

    shop('night', 'recover', '--set', 'day=sunday', '--force-set')

    assert journal(shop)[-1] == 'transmit sunday brown'


def test_a_variable_gives_way_to_the_recorded_value_with_a_warning(night):
    # semantics 18.3
    night('night', '--set', 'day=friday')
    mend(night)

    done = night('night', 'recover', SEQUENT_PARAM_DAY='sunday')

    assert done.returncode == 0
    assert "SEQUENT_PARAM_DAY is 'sunday'; the recorded value, 'friday', holds" in done.stderr
    assert journal(night)[-1] == 'transmit friday'


def test_none_that_was_recorded_holds_too(night):
    night.write('night.py', NIGHT.replace("'monday'", 'None'))
    night('night')
    mend(night)

    assert night('night', 'recover', SEQUENT_PARAM_DAY='sunday').returncode == 0
    assert journal(night)[-1] == 'transmit None'


def test_a_secret_is_asked_for_again_in_a_recovery(shop):
    # semantics 18.4
    shop.write('secret.py', SECRET)
    shop('secret', SEQUENT_PARAM_PASSWORD='hunter2')
    mend(shop)

    done = shop('secret', 'recover')
    again = shop('secret', 'recover', SEQUENT_PARAM_PASSWORD='another')

    assert_refused(done, 2, "parameter 'password' is missing, and was not recorded",
                   'set SEQUENT_PARAM_PASSWORD')
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize('verb', ['status', 'history'])
def test_verbs_that_look_need_no_secret(shop, verb):
    # semantics 18.6
    shop.write('secret.py', SECRET)
    shop('secret', SEQUENT_PARAM_PASSWORD='hunter2')

    assert shop('secret', verb).returncode == 0


def test_a_secret_and_recorded_values_come_together_in_a_recovery(shop):
    shop.write('secret.py', SECRET.replace(
        'def log_in', "day = seq.parameter('day')\n\n\n    def log_in", 1) + '''
    flow.add_step('b', func=print, args=(day, password))
''')
    shop('secret', '--set', 'day=friday', SEQUENT_PARAM_PASSWORD='old')
    mend(shop)

    done = shop('secret', 'recover', SEQUENT_PARAM_PASSWORD='new')

    assert (done.returncode, done.stdout) == (0, 'friday new\n'), done.stderr


def test_a_new_required_parameter_is_asked_for_in_a_recovery(night):
    # semantics 18.3
    night('night')
    mend(night)
    night.write('night.py', NIGHT + "    seq.parameter('client')\n")

    done = night('night', 'recover')

    assert_refused(done, 2, "parameter 'client' is missing, and was not recorded with the run")
    assert night('night', 'recover', '--set', 'client=acme').returncode == 0


def test_a_recorded_parameter_that_is_gone_is_named_in_the_log(night):
    # semantics 18.3
    night('night', '--set', 'day=friday')
    mend(night)
    night.write('night.py', NIGHT.replace("seq.parameter('day', default='monday', "
                                          "help='the day to extract')", "'always'"))

    done = night('night', 'recover')

    assert done.returncode == 0
    assert "parameter 'day', recorded with the run, is not declared now" in done.stderr


def test_a_recorded_value_that_is_refused_now_does_not_keep_one_from_looking(night):
    night('night', '--set', 'day=friday')
    night.write('night.py', NIGHT.replace("'monday'", '1'))

    assert night('night', 'status').returncode == 0
    assert_refused(night('night', 'recover'), 2,
                   "parameter 'day': 'friday' (recorded) is refused")
    assert night('night', 'recover', '--set', 'day=2', '--force-set').returncode == 1
    assert journal(night)[-1] == 'transmit 2'


def test_nothing_to_recover_is_said_as_without_parameters(night):
    done = night('night', 'recover', '--set', 'day=friday')

    assert_refused(done, 2, 'nothing to recover')
    assert night.names() == ['night.py']


# Loading again ####################################################################


def test_where_the_values_are_those_recorded_the_module_is_loaded_once(night):
    night.write('night.py', NIGHT + "    print('loading')\n")
    night('night')

    assert night('night', 'status').stderr == ''
    assert night('night', 'recover').stdout == 'loading\n'
    assert night('night', 'recover', '--set', 'day=monday').stdout == 'loading\n'


def test_nothing_of_the_first_loading_is_left_in_the_second(shop):
    shop.write('settings/__init__.py', 'print("loading settings")\n')
    shop.write('settings/days.py', '''
        import sequent as seq
        print('loading days')
        day = seq.parameter('day', default='monday')
    ''')
    shop.write('site-packages/installed.py', 'print("loading installed")\n')
    shop.write('jobs/night.py', '''
        import os, sys
        sys.path.insert(0, os.path.abspath('site-packages'))
        import csv, installed
        from settings.days import day
        import sequent as seq
        csv.seen = getattr(csv, 'seen', 0) + 1
        print('loading night', csv.seen)
        flow = seq.Sequent(store='night.db', config={'task_construct': 'inline'})
        flow.add_step('a', func=print, args=('it is', day))
        flow.add_step('b', func=int, args=(day,))
    ''')
    shop('jobs.night', '--set', 'day=friday')

    lines = shop('jobs.night', 'recover').stdout.splitlines()

    assert lines == 2 * ['loading installed', 'loading settings', 'loading days',
                         'loading night 1']


# Says in the journal how it was started; its step does not end before there is a file 'go'.
TOLD = '''
    import atexit
    import os
    import sys
    import time
    import sequent as seq

    day = seq.parameter('day', default='monday')


    def note(word, *more):
        with open('journal', 'a') as file:
            print(word, day, *more, file=file)


    def wait():
        note('step', *[name for name in os.environ if 'RECORDED' in name])
        with open('waits', 'w') as file:
            file.write('here')
        while os.path.exists('line') and not os.path.exists('go'):
            time.sleep(0.01)
        assert os.path.exists('line')


    note('loading', os.getpid(), sys.argv[1:], sys.warnoptions, sys.flags.no_user_site)
    if __name__ != '__main__':
        atexit.register(note, 'exit')
    flow = seq.Sequent('told', config={'task_construct': 'inline', 'shutdown_grace': 0})
    flow.add_step('a', func=wait)
'''


def told(shop, more=''):
    """Return the lines of the journal of TOLD after its first run, which has failed."""
    shop.write('told.py', TOLD.replace("'told',", "'told', 'told.db',") + more)
    assert shop('told', '--set', 'day=friday').returncode == 1
    (shop.folder / 'waits').unlink()
    mend(shop)
    lines = journal(shop)
    return lambda: journal(shop)[len(lines):]


def test_the_program_is_replaced_by_one_that_was_started_alike(shop):
    lines = told(shop, "    atexit.register(print, 'good bye', day)\n")
    shop.write('go', '')

    done = shop.python('-s', '-m', 'sequent', '--log-level', 'info', 'told', 'recover')

    assert done.returncode == 0, done.stderr
    first, end, second, step, last = lines()
    assert first.startswith('loading monday')
    assert second == first.replace('monday', 'friday')    # also its pid and options
    assert (end, step, last) == ('exit monday', 'step friday', 'exit friday')
    assert done.stdout == 'good bye monday\ngood bye friday\n'


@pytest.mark.parametrize('name', ['SIGINT', 'SIGTERM', 'SIGHUP'])
def test_a_signal_ends_a_program_that_was_started_again(shop, name):
    told(shop)
    program = shop.start('told', 'recover')

    program.send_signal(getattr(signal, name))

    assert program.wait(60) == 128 + getattr(signal, name)


def test_a_copy_of_the_library_is_found_when_it_is_started_again(shop):
    lines = told(shop)
    shop.write('go', '')
    shop.write('vendor/__init__.py', '')
    shutil.copy(os.path.join(ROOT, 'sequent.py'), str(shop.folder / 'vendor'))
    with zipfile.ZipFile(str(shop.folder / 'library.zip'), 'w') as archive:
        archive.write(os.path.join(ROOT, 'sequent.py'), 'sequent.py')
        archive.writestr('__main__.py', 'import sys, sequent; sys.exit(sequent.main())')
    text = (shop.folder / 'told.py').read_text()
    shop.write('plain.py', text)
    shop.write('told.py', text.replace('import sequent', 'import vendor.sequent'))
    del shop.environment['PYTHONPATH']

    for program in (['-m', 'vendor.sequent', 'told.py'], ['library.zip', 'plain.py'],
                    [os.path.join(ROOT, 'sequent.py'), 'plain.py']):
        done = shop.python(*program + ['recover'])
        assert done.returncode == 0, done.stderr
    assert [line.split()[1] for line in lines() if line.startswith('loading')] == [
        'monday', 'friday'] * 3


# Calls the command line, and goes on.
CALLER = '''
    import os
    import sys
    import sequent
    here = os.getcwd()
    print('code', sequent.main([%r, 'told', 'recover']), flush=True)
    assert os.getcwd() == here
'''


def test_a_program_that_calls_the_command_line_goes_on(shop):
    told(shop)
    shop.write('go', '')
    shop.write('caller.py', CALLER % '-q')

    done = shop.python('caller.py')

    assert (done.returncode, done.stdout) == (0, 'code 0\n'), done.stderr


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGHUP'])
def test_a_signal_to_a_program_that_calls_the_command_line_reaches_the_flow(shop, name):
    told(shop)
    shop.write('caller.py', CALLER % '-q')
    program = shop.start_program('caller.py')

    program.send_signal(getattr(signal, name))

    assert program.communicate(timeout=60)[0] == 'code %d\n' % (128 + getattr(signal, name))


def test_values_that_cannot_be_handed_over_are_an_error_in_a_sentence(shop):
    shop.write('large.py', '''
        import sequent as seq
        text = seq.parameter('text', default='x' * 1000000 + str(len(seq.__dict__['sys'].argv)))
        flow = seq.Sequent(config={'task_construct': 'inline'})
        flow.add_step('a', func=int, args=('x',))
    ''')
    shop('large')

    assert_refused(shop('large', 'recover'), 4, 'cannot be started again', '--set')


def test_a_flow_that_is_installed_is_loaded_again_too(shop):
    shop.write('site-packages/jobs/__init__.py', '')
    shop.write('site-packages/jobs/night.py', NIGHT.replace('Sequent()', "Sequent(store='n.db')"))
    where = {'PYTHONPATH': os.pathsep.join([str(shop.folder / 'site-packages'), ROOT])}
    shop('jobs.night', '--set', 'day=friday', **where)
    mend(shop)

    assert shop('jobs.night', 'recover', **where).returncode == 0
    assert journal(shop)[-1] == 'transmit friday'


def test_the_second_loading_finds_what_the_first_one_found(shop):
    shop.write('jobs/night.py', '''
        import os
        import sys
        import sequent as seq
        day = seq.parameter('day', default='monday')
        os.environ.setdefault('DAY', day)
        os.chdir(os.path.dirname(os.path.abspath(__file__)))
        sys.path.append(day)
        print(os.environ['DAY'], [one for one in sys.path if one.endswith('day')])
        flow = seq.Sequent(store='night.db', config={'task_construct': 'inline'})
        flow.add_step('a', func=int, args=('x',))
    ''')
    shop(os.path.join('jobs', 'night.py'), '--set', 'day=friday')

    done = shop(os.path.join('jobs', 'night.py'), 'recover')

    assert done.stdout == "monday ['monday']\nfriday ['friday']\n", done.stderr


def test_with_and_finally_work_when_loading_begins_again(shop):
    shop.write('night.py', NIGHT + SHAPES['runs within with'])
    shop('night', '--set', 'day=friday')
    mend(shop)

    shop('night', 'recover')

    assert (shop.folder / 'finally').read_text() == 'friday.monday.friday.'


def test_json_of_a_recovery_that_loads_again_is_one_document(shaped):
    shaped('night', '--set', 'day=friday')
    mend(shaped)

    done = shaped('night', 'recover', '--json')

    assert json.loads(done.stdout)['ok'] is True


def test_the_first_look_writes_no_store(shop):
    shop.write('night.py', REQUIRED.replace('Sequent()', "Sequent(store='%s.db' % day)"))

    assert_refused(shop('night', 'recover'), 2,
                   "parameter 'day' is missing, and without it no run of flow 'night' is found",
                   '--set day=...')
    assert shop.names() == ['night.py']


# A store that depends on a parameter ##############################################

OWN_STORE = [REQUIRED.replace('Sequent()', 'Sequent(store=%s)' % store) for store in (
    "day + '.db'", "'%s.db' % day", "os.path.join(str(day), 'night.db')")]


@pytest.fixture(params=OWN_STORE, ids=['crashes', 'another file', 'another folder'])
def dependent(request, shop):
    shop.write('night.py', request.param)
    shop.write('friday/empty', '')
    assert shop('night', '--set', 'day=friday').returncode == 1
    mend(shop)
    return shop


@pytest.mark.parametrize('verb', ['recover', 'status', 'history'])
def test_a_store_that_depends_on_a_parameter_needs_it(dependent, verb):
    assert_refused(dependent('night', verb), 2, "parameter 'day' is missing, and without it",
                   '--set day=...')


def test_set_finds_the_store(dependent):
    done = dependent('night', 'recover', '--set', 'day=friday')

    assert done.returncode == 0, done.stderr
    assert journal(dependent)[-1] == 'transmit friday'


@pytest.mark.parametrize('verb', ['recover', 'status', 'history'])
def test_a_store_that_is_given_tells_the_parameter(dependent, verb):
    (path,) = [str(path) for path in dependent.folder.glob('**/*.db')]

    done = dependent('night', verb, '--store', path)

    assert done.returncode == 0, done.stderr
    if verb == 'recover':
        assert journal(dependent)[-1] == 'transmit friday'


def test_a_store_that_is_given_but_tells_nothing_does_not_help(shop):
    shop.write('night.py', OWN_STORE[0])

    assert_refused(shop('night', 'recover', '--store', 'other.db'), 2,
                   "parameter 'day' is missing, and without it there is no flow", 'TypeError')
