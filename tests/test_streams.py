"""Standard output and error that cannot be written: the run goes on, and its code is true."""

import contextlib
import os
import re
import subprocess
import sys

import pytest

import sequent

from runtools import (  # noqa: F401
    STREAMS, a_private_temporary_folder, a_stream, starting, wait_until)

pytestmark = pytest.mark.skipif(not os.path.exists('/dev/full'),
                                reason='not for systems without /dev/full')

FLOW = '''
import logging, os, sys, time, warnings
import sequent as seq

def speak(word):
    """Write more than a buffer holds, and what stands in one at the end."""
    for stream in (sys.stdout, sys.stderr):
        print(word * 20000, file=stream)
        print(word, file=stream, flush=True)
        print(word, file=stream)
        stream.buffer.write(b'bytes\\n')
        stream.writelines(['line\\n', 'line\\n'])
    logging.getLogger('speaker').warning(word)
    return word

def end(code):
    speak('end')
    sys.exit(code)

construct, _, method = os.environ['CONSTRUCT'].partition(' ')
config = {'task_construct': construct, 'capture': os.environ.get('CAPTURE', 'relay')}
if method:
    config['start_method'] = method
print('read')
warnings.warn('look')
flow = seq.Sequent('f', config=config)
a = flow.add_step('a', func=int)
b = flow.add_step('b', func=speak, args=('said',), require=a)
c = flow.add_step('c', command=['sh', '-c', 'echo said; echo said >&2'], require=b,
                  config={'capture': 'relay'})
d = flow.add_step('d', func=end, args=(int(os.environ['CODE']),), require=c)
if __name__ == '__main__':
    raise SystemExit(0 if flow() else 1)
'''
CONSTRUCTS = ['inline', 'thread', 'process fork', 'process spawn', 'pool']
if sys.version_info >= (3, 7):
    CONSTRUCTS += ['process forkserver', 'pool spawn', 'pool forkserver']
WAYS = {'script': ['f.py'], 'command': ['-m', 'sequent', 'f.py']}
BROKEN = [kind for kind in STREAMS if kind not in ('file', 'pipe')]


class Night:
    """A folder with a flow, and programs that are run there with streams of any kind."""

    def __init__(self, folder):
        self.folder = folder
        (folder / 'f.py').write_text(FLOW)

    def __call__(self, *arguments, stdout='file', stderr='file', **environment):
        """Run Python; return its exit code."""
        argv = starting([sys.executable] + list(arguments), stdout, stderr)
        with contextlib.ExitStack() as stack:
            streams = {name: stack.enter_context(a_stream(kind, str(self.folder / name)))
                       for name, kind in (('stdout', stdout), ('stderr', stderr))}
            environment = dict(os.environ, **environment)
            return subprocess.call(argv, cwd=str(self.folder), env=environment,
                                   stdin=subprocess.DEVNULL, timeout=120, **streams)

    def text(self, name):
        """Return what the latest program has written to a stream."""
        return (self.folder / name).read_text()

    def statuses(self):
        store = sequent.SqliteStore(str(self.folder / 'f.run.db'))
        store.open(create=False)
        with contextlib.closing(store):
            return [task.status for task in store.tasks(store.latest('f'))]


@pytest.fixture()
def night(tmp_path):
    return Night(tmp_path)


def check(night, way, construct, code, **given):
    assert night(*WAYS[way], CONSTRUCT=construct, CODE=str(code), **given) == code, (
        night.text('stderr'))
    assert night.statuses() == ['success'] * 3 + ['failure' if code else 'success']


@pytest.mark.parametrize('construct', CONSTRUCTS)
@pytest.mark.parametrize('kind', BROKEN)
def test_a_run_goes_on_whatever_stderr_is_and_its_code_is_true(night, kind, construct):
    # semantics 5.8
    check(night, 'command', construct, 0, stderr=kind)


@pytest.mark.parametrize('construct', ['inline', 'process fork'])
@pytest.mark.parametrize('kind', ['file', 'pipe'])
def test_what_a_run_writes_arrives_in_files_and_pipes(night, kind, construct):
    check(night, 'script', construct, 0, stdout=kind, stderr=kind)
    wait_until(lambda: 'of flow f: success' in night.text('stderr'), 'the end of the log')
    where, streams = ('stderr', 2) if construct == 'process fork' else ('stdout', 1)    # relayed
    wait_until(lambda: night.text(where).splitlines().count('end') == 2 * streams,
               'the end of the output')
    assert night.text(where).count('said' * 20000) == streams
    assert 'read\n' in night.text('stdout')


@pytest.mark.parametrize('construct', ['inline', 'process fork'])
@pytest.mark.parametrize('code', [0, 1])
@pytest.mark.parametrize('way', sorted(WAYS))
@pytest.mark.parametrize('kind', BROKEN)
def test_a_run_goes_on_whatever_both_are_and_its_code_is_true(night, kind, way, code, construct):
    # semantics 5.8
    check(night, way, construct, code, stdout=kind, stderr=kind)


@pytest.mark.parametrize('construct', ['inline', 'thread'])
@pytest.mark.parametrize('kind, reason', [
    ('full', 'No space left on device'), ('no reader', 'Broken pipe'),
    ('closed terminal', 'Input/output error')])
def test_that_stdout_cannot_be_written_is_said_once(night, kind, reason, construct):
    # semantics 5.8
    check(night, 'script', construct, 0, stdout=kind)
    assert night.text('stderr').count("'<stdout>' cannot be written (%s)" % reason) == 1


@pytest.mark.parametrize('construct', CONSTRUCTS)
@pytest.mark.parametrize('kind', ['full', 'closed'])
def test_functions_whose_streams_are_left_alone_need_none_that_can_be_written(
        night, kind, construct):
    check(night, 'script', construct, 0, stdout=kind, stderr=kind, CAPTURE='none')


# Data ############################################################################

VERBS = {'list': ['f.py', 'list'], 'status': ['f.py', 'status'], 'history': ['f.py', 'history'],
         'status --json': ['f.py', 'status', '--json'], 'dry run': ['f.py', '-n'],
         'run --json': ['f.py', '--json'], 'help': ['-h'], 'help of a flow': ['f.py', '-h'],
         'version': ['--version']}


@pytest.fixture()
def command(night):
    """The command line, of a flow with a run that has failed."""
    def call(verb, **streams):
        return night('-m', 'sequent', *VERBS[verb], CONSTRUCT='inline', CODE='0', **streams)

    assert night(*WAYS['command'], CONSTRUCT='inline', CODE='1') == 1
    return call


@pytest.mark.parametrize('verb', sorted(VERBS))
@pytest.mark.parametrize('kind, reason', [
    ('full', 'standard output cannot be written: No space left on device'),
    ('closed terminal', 'standard output cannot be written: Input/output error'),
    ('closed', 'standard output is closed')])
def test_data_that_cannot_be_written_is_an_error(command, night, kind, reason, verb):
    # semantics 5.8
    assert command(verb, stdout=kind) == 4
    assert night.text('stderr').splitlines()[-1].endswith('error: ' + reason)


@pytest.mark.parametrize('verb', sorted(VERBS))
@pytest.mark.parametrize('stderr', ['file', 'full', 'closed'])
def test_a_reader_of_data_that_has_gone_is_no_error(command, stderr, verb):
    # semantics 5.8
    assert command(verb, stdout='no reader', stderr=stderr) == 0


@pytest.mark.parametrize('verb', sorted(VERBS))
@pytest.mark.parametrize('stderr', ['full', 'no reader', 'closed'])
def test_data_is_the_same_whatever_stderr_is(command, night, stderr, verb):
    def data(**streams):
        assert command(verb, **streams) == 0
        return re.sub('[0-9a-f]', '0', night.text('stdout'))

    assert data(stderr=stderr) == data()


@pytest.mark.parametrize('stderr', BROKEN)
def test_an_error_that_cannot_be_said_has_its_exit_code(night, stderr):
    # semantics 5.8
    given = {'CONSTRUCT': 'inline', 'CODE': '0', 'stderr': stderr}
    assert night('-m', 'sequent', 'g.py', **given) == 3
    assert night('-m', 'sequent', 'f.py', 'recover', **given) == 2
    assert night('-m', 'sequent', '--nonsense', **given) == 2
    assert night('-m', 'sequent', 'f.py', '--store', '/nowhere/at/all', **given) == 4
