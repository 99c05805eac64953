"""What the library prints commands no terminal, and tells no secret."""

import json
import os
import re
import subprocess
import sys
import textwrap

import pytest

from runtools import a_private_temporary_folder  # noqa: F401

#: What makes a terminal do something, a carriage return and a newline that fake lines, a C1
#: control, and what turns the direction of writing.
EVIL = '\x1b[2J\x1b]0;title\x07\r\n\x9b31m\x7f\u202e\u2028'
CONTROL = re.compile('[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]')
FLOW = '''
    import os, sys
    import sequent as seq
    EVIL = %r
    seq.parameter('day', default='d' + EVIL, help='help' + EVIL)
    def fail(*args):
        raise ValueError('error' + EVIL)
    def loop():
        raise ValueError('loop' + EVIL)
    construct = os.environ.get('CONSTRUCT', 'inline')
    flow = seq.Sequent('flow' + EVIL, config={'task_construct': construct, 'max_concurrent': 1,
                                              'stop_on_exception': False})
    pool = seq.ResourcePool('pool' + EVIL, 1)
    a = flow.add_step('a' + EVIL, func=fail, config={'retries': 1})
    b = flow.add_step('b' + EVIL, func=fail, args=(seq.item,), loop=['item' + EVIL],
                      acquires=[(pool, 1)])
    c = flow.add_step('c' + EVIL, loop=loop)
    c.add_step('d' + EVIL, func=int, delay=0.01)
    flow.add_step('e' + EVIL, func=int, require=((a, 'failure'), (b, 'complete')))
    flow.add_step('p' + EVIL, config={'capture': 'file'}, command=[
        sys.executable, '-c', 'import sys; sys.stderr.buffer.write(%%a.encode()); sys.exit(1)'
        %% ('last line' + EVIL), 'argument\x1b[2J\x1b]0;title\x07'])
    if os.environ.get('BAD'):
        flow.add_step('p' + EVIL, func=int)
''' % EVIL


class Shop:
    def __init__(self, folder, text):
        self.folder = folder
        (folder / 'f.py').write_text(textwrap.dedent(text))

    def __call__(self, *arguments, **environment):
        done = subprocess.run(
            [sys.executable, '-m', 'sequent'] + [one.encode('utf-8') for one in arguments],
            cwd=str(self.folder),
            env=dict(os.environ, **environment), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        return done.returncode, done.stdout.decode(), done.stderr.decode()


def check(text, *shown):
    """Assert that a text controls nothing, and shows these with their controls escaped."""
    assert not CONTROL.search(text), text
    for one in shown:
        assert one + r'\x1b[2J\x1b]0;title\x07' in text


@pytest.fixture()
def shop(tmp_path):
    return Shop(tmp_path, FLOW)


@pytest.mark.parametrize('construct', ['inline', 'thread', 'process', 'pool'])
def test_the_log_of_a_run_controls_no_terminal(shop, construct):
    # semantics 5.7
    code, stdout, stderr = shop('f.py', '-v', CONSTRUCT=construct)
    assert (code, stdout) == (1, '')
    check(stderr, 'a', 'b', 'c', 'e', 'p', 'error', 'loop', 'last line', 'flow')


@pytest.mark.parametrize('arguments, shown', [
    (['list'], ['flow', 'a', 'b', 'c', 'd', 'e', 'p', 'pool', 'argument']),
    (['status'], ['flow', 'a', 'c', 'p', 'error', 'loop', 'last line']),
    (['status', '--all'], ['flow', 'a', 'c', 'p', 'error', 'loop', 'last line']),
    (['history'], ['flow']),
    (['-n'], ['flow', 'a', 'c', 'p']),
    (['recover', '-n', '--all'], ['flow', 'a', 'c', 'p']),
    (['-h'], ['d', 'help'])], ids=' '.join)
def test_what_a_verb_shows_controls_no_terminal(shop, arguments, shown):
    # semantics 5.7
    assert shop('f.py', '-q')[0] == 1
    code, stdout, stderr = shop('f.py', *arguments, COLUMNS='1000')
    assert code == 0, stderr
    check(stdout, *shown)
    check(stderr)
    lines = stdout.splitlines()
    assert not [line for line in lines if line.startswith(('\\x9b', '\x9b'))]    # a faked one


@pytest.mark.parametrize('arguments, environment', [
    (['f.py', 'status', '--run-id', EVIL], {}),
    (['f.py', 'recover', '--run-id', 'run' + EVIL], {}),
    (['f.py', '--flow', EVIL], {}),
    (['f.py', EVIL], {}), (['--' + EVIL], {}), ([EVIL], {}), ([EVIL + '.py'], {}),
    (['f.py', '--set', 'nigth=' + EVIL], {}), (['f.py', '--set', EVIL], {}),
    (['f.py', '--construct', EVIL], {}),
    (['f.py', '--log-level', EVIL], {}),
    (['f.py', '--store', EVIL + '/' + EVIL], {}),
    (['f.py'], {'BAD': '1'})], ids=repr)
def test_an_error_of_the_command_line_controls_no_terminal(shop, arguments, environment):
    # semantics 5.7
    code, stdout, stderr = shop(*arguments, **environment)
    assert code != 0
    check(stdout)
    check(stderr)


def test_what_a_module_raises_controls_no_terminal(tmp_path):
    # semantics 5.7
    shop = Shop(tmp_path, 'raise ValueError(%r)' % ('error' + EVIL))
    for arguments in (['f.py'], ['f.py', '-h']):
        code, stdout, stderr = shop(*arguments)
        check(stdout)
        check(stderr)
        assert r'error\x1b' in stdout + stderr


@pytest.mark.parametrize('verb', [['list'], ['status'], ['status', '--all'], ['history'], ['-n']],
                         ids=' '.join)
def test_json_has_every_text_as_it_is(shop, verb):
    # semantics 5.7
    shop('f.py', '-q')
    code, stdout, _ = shop('f.py', '--json', *verb)
    assert code == 0
    check(stdout)
    assert json.dumps('flow' + EVIL) in json.dumps(json.loads(stdout))


@pytest.mark.parametrize('construct', ['inline', 'process'])
def test_no_text_looks_like_another_line_of_the_log_or_of_a_table(tmp_path, construct):
    # semantics 5.7
    shop = Shop(tmp_path, '''
        import sequent as seq
        def fail():
            raise ValueError('bad\\n[ 2026-11-30 00:00:00,000 ][ INFO ][ fake ]')
        flow = seq.Sequent('f', config={'task_construct': %r, 'stop_on_exception': False})
        flow.add_step('a\\n[ 2026-11-30 00:00:00,000 ][ INFO ][ fake ]', func=fail)
        flow.add_step('b', loop=lambda: fail()).add_step('c', func=int)
    ''' % construct)
    for arguments in ([], ['list'], ['status'], ['recover', '-n']):
        code, stdout, stderr = shop('f.py', *arguments, COLUMNS='300')
        assert 'fake' in stdout + stderr
        assert not [line for line in (stdout + stderr).splitlines()
                    if 'fake' in line and line.startswith('[ 2026-11-30 00:00')]


def test_what_tasks_print_is_relayed_and_kept_as_it_is(tmp_path):    # semantics 5.3
    # semantics 5.7
    shop = Shop(tmp_path, '''
        import sequent as seq
        flow = seq.Sequent('f', config={'logdir': 'logs'})
        a = flow.add_step('a', func=print, args=(%r,))
        flow.add_step('b', command=['printf', '%%s', %r], require=a)
    ''' % (EVIL, EVIL))
    code, _, stderr = shop('f.py')
    assert code == 0
    assert stderr.count(EVIL) == 2
    logs = [path.read_bytes().decode() for path in (tmp_path / 'logs').rglob('*.log')]
    assert [EVIL in log for log in logs] == [True, True]


def test_a_handler_of_the_application_is_given_escaped_sentences_too(tmp_path):
    # semantics 5.7
    shop = Shop(tmp_path, 'import logging\nlogging.basicConfig(level=10)\n'
                + textwrap.dedent(FLOW))
    code, _, stderr = shop('f.py')
    assert code == 1
    check(stderr, 'a', 'error', 'loop', 'last line')


# Secrets #########################################################################

SECRET = "top'secret $word"
SECRETS = '''
    import sequent as seq
    secret = seq.parameter('secret', secret=True)
    def fail(*args):
        raise ValueError('wrong: ' + secret)
    flow = seq.Sequent('f', config={'task_construct': 'inline', 'stop_on_exception': False,
                                    'keep_result': False})
    flow.add_step('a', command=['sh', '-c', 'echo "$0" >&2; exit 3', 'user:' + secret],
                  config={'capture': 'file'})
    flow.add_step('b', command=seq.Command('echo %s' % secret.replace("'", ''), shell=True))
    flow.add_step('c', func=fail, args=(secret,), loop=['x' * 45 + secret])
    flow.add_step('d', func=fail, args=(seq.item,), loop=lambda: [secret])
    flow.add_step('e', func=seq.functools.partial(fail, secret))
    flow.add_step('pass ' + secret, func=int)
'''


@pytest.mark.parametrize('arguments', [
    ['list'], ['status'], ['status', '--all'], ['history'], ['-n'], ['recover', '-n', '--all'],
    ['recover'], ['recover', '-v'], ['-h']], ids=' '.join)
@pytest.mark.parametrize('more', [[], ['--json']], ids=['text', 'json'])
def test_a_secret_is_printed_nowhere(tmp_path, arguments, more):
    # semantics 18.4
    shop = Shop(tmp_path, SECRETS)
    assert shop('f.py', '-q', SEQUENT_PARAM_SECRET=SECRET)[0] == 1
    code, stdout, stderr = shop('f.py', *(arguments + more), SEQUENT_PARAM_SECRET=SECRET,
                                COLUMNS='90')
    assert code in (0, 1) and stdout + stderr
    assert not re.search('top\\W.{0,10}sec', stdout + stderr)
    if more and arguments != ['-h']:
        json.loads(stdout)
