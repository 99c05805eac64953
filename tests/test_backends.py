"""Files in backends/: each describes itself, and adds to a core that is copied beside it."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

NIGHT = '''
    import sequent as seq


    def refuse():
        raise ValueError('no')


    flow = seq.Sequent(config={'task_construct': 'inline'})
    a = flow.add_step('a', func=print, args=('it is a',))
    b = flow.add_step('b', func=refuse, require=a)
    flow.add_step('c', func=print, args=('it is c',), require=b)
    flow.add_step('mail', func=print, args=('a mail',), require=((a, seq.STEP_FAILURE),))
'''

COUNT = '''
    print('loaded')
    from . import RunView, opened_store

    BACKEND = {
        'verbs': {
            'count': {
                'call': 'count',
                'words': ['STATUS', '[FORM]'],
                'ask': 'count the tasks of which status?',
                'options': ['--run-id'],
                'of_run': True,
                'help': 'count the tasks of a status',
            },
        },
        'options': {
            '--loud': {'verbs': ['count', 'run'], 'help': 'count, run: shout'},
            '--unit': {'verbs': ['count'], 'metavar': 'WORD', 'help': 'count: what is counted'},
            '--greet': {'verbs': ['list'], 'call': 'greet', 'help': 'list: greet instead',
                        'options': ['--all'], 'short': '-g'},
        },
    }


    def count(flow, options, say):
        with opened_store(flow) as store:
            view = RunView.find(store, flow.name, options.run_id)
            n = sum(one.status == options.words[0] for one in view.tasks())
        text = '%d %s%s' % (n, options.unit or 'tasks', ', '.join([''] + options.words[1:]))
        say(text.upper() if options.loud else text)
        return 7


    def greet(flow, options, say):
        say('hello %s, %s' % (flow.name, options.all))
'''


class Copy:
    """A folder with a copy of the core, some files of backends/, and a flow."""

    def __init__(self, folder):
        self.folder = folder
        shutil.copy(os.path.join(ROOT, 'sequent.py'), str(folder))
        (folder / 'backends').mkdir()
        self.write('night.py', NIGHT)

    def write(self, name, text):
        (self.folder / name).write_text(textwrap.dedent(text))

    def add(self, name, text=None):
        """Put a file into backends/: one with a text, or that of the library."""
        if text is None:
            shutil.copy(os.path.join(ROOT, 'backends', name), str(self.folder / 'backends'))
        else:
            self.write(os.path.join('backends', name), text)

    def __call__(self, *arguments, **environment):
        return subprocess.run(
            [sys.executable, '-W', 'error', '-m', 'sequent'] + list(arguments),
            cwd=str(self.folder), timeout=120, env=dict(os.environ, **environment),
            universal_newlines=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.fixture
def copy(tmp_path):
    return Copy(tmp_path)


def assert_refused(done, text, code=2):
    assert (done.returncode, done.stdout) == (code, ''), done.stderr
    assert text in done.stderr and 'Traceback' not in done.stderr


# Verbs and options ################################################################


def test_a_file_in_backends_adds_a_verb_with_words_and_options(copy):
    # semantics 21.6
    copy.add('counting.py', COUNT)
    assert copy('night', '--run-id', 'r1').returncode == 1

    done = copy('night', 'count', '--run-id', 'r1', 'success', '--unit=steps')

    assert (done.returncode, done.stdout, done.stderr) == (7, 'loaded\n1 steps\n', '')
    assert copy('night', 'count', 'failure', 'or so', '--loud').stdout == (
        'loaded\n1 TASKS, OR SO\n')


def test_an_option_of_a_file_can_take_the_place_of_the_verb(copy):
    # semantics 21.6
    copy.add('counting.py', COUNT)

    assert copy('night', 'list', '-g', '--all').stdout == 'loaded\nhello night, True\n'
    assert_refused(copy('night', 'list', '--all'), '--all goes with status and --greet, not with')


def test_the_help_shows_the_verbs_and_options_of_files_and_loads_none_of_them(copy):
    # semantics 21.6
    copy.add('counting.py', COUNT)

    done = copy('-h')

    assert (done.returncode, done.stderr) == (0, '')
    assert '  count     STATUS [FORM]: count the tasks of a status\n' in done.stdout
    for line in ('  --unit WORD ', '  -g, --greet ', '  --loud '):
        assert '\n' + line in done.stdout
    assert not done.stdout.startswith('loaded')


@pytest.mark.parametrize('arguments, text', [
    (['night', 'cuont'], "unknown verb 'cuont'; did you mean 'count'? Known: run, recover"),
    (['night', 'count'], 'count the tasks of which status?: '),
    (['night', 'count', 'a', 'b', 'c'], "unexpected argument 'c'"),
    (['count', 'night'], 'the module comes first'),
    (['night', 'count', 'a', '--json'], '--json goes with run, recover, continue, list, status'),
    (['night', 'status', '--loud'], '--loud goes with count and run, not with status'),
    (['night', 'status', '--greet'], '--greet goes with list, not with status'),
    (['night', 'count', 'a', '--unti', 'x'], "unknown option '--unti'; did you mean '--unit'?"),
    (['night', 'count', 'a', '--unit'], 'expected one argument'),
])
def test_wrong_usage_of_what_a_file_adds_is_refused_before_it_is_loaded(copy, arguments, text):
    # semantics 20.9, 21.6
    copy.add('counting.py', COUNT)

    assert_refused(copy(*arguments), text)


def test_a_verb_whose_file_lacks_a_module_says_which(copy):
    # semantics 21.6
    copy.add('graph.py', "BACKEND = {'verbs': {'graph': {'call': 'graph', 'help': 'draw'}}}\n"
                         'import graphviz_of_old\n')

    assert_refused(copy('night', 'graph'), "backends/graph.py needs the module 'graphviz_of_old'")


@pytest.mark.parametrize('verb', ['hold', 'release'])
def test_the_core_alone_says_which_file_a_verb_needs(copy, verb):
    # semantics 21.6
    text = '%s needs the file backends/hold.py: copy it to a folder backends beside %s' % (
        verb, copy.folder / 'sequent.py')

    assert_refused(copy('night', verb, 'a'), text)
    copy.add('hold.py')
    assert_refused(copy('night', verb, 'a'), 'there is nothing to %s' % verb)
    assert_refused(copy('night', verb), verb + ' which steps?')


# What is shown ####################################################################


def test_the_core_alone_names_what_was_not_run_and_a_file_adds_the_reasons(copy):
    # semantics 3.5
    assert copy('night').returncode == 1
    names, fields = copy('night', 'status'), copy('night', 'status', '--json')
    copy.add('why_not.py')
    reasons = copy('night', 'status')

    assert names.stdout.splitlines()[-2:] == ['c was not run', 'mail was not run']
    assert json.loads(fields.stdout)['not_run'] == [
        {'path': 'c', 'reason': None}, {'path': 'mail', 'reason': None}]
    assert reasons.stdout.splitlines()[-1] == 'c was not run: it requires b, which failed'
    assert 'mail' not in reasons.stdout
