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
    (['night', 'count', 'a', '--all'], '--all goes with status and --greet, not with count'),
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


def test_two_options_that_take_the_place_of_the_verb_go_together_where_one_says_so(copy):
    # semantics 21.6
    copy.add('as_json.py')
    copy.add('dry_run.py')

    for arguments in (['-n', '--json'], ['--json', '-n', '--all']):
        assert json.loads(copy('night', *arguments).stdout)['over'] is False
    assert not (copy.folder / 'night.run.db').exists()


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
    copy.add('as_json.py')
    assert copy('night').returncode == 1
    names, fields = copy('night', 'status'), copy('night', 'status', '--json')
    copy.add('why_not.py')
    reasons = copy('night', 'status')

    assert names.stdout.splitlines()[-2:] == ['c was not run', 'mail was not run']
    assert json.loads(fields.stdout)['not_run'] == [
        {'path': 'c', 'reason': None}, {'path': 'mail', 'reason': None}]
    assert reasons.stdout.splitlines()[-1] == 'c was not run: it requires b, which failed'
    assert 'mail' not in reasons.stdout


# Stores, observers, loaders #######################################################

FILES = '''
    import os
    from . import SqliteStore

    BACKEND = {'store': 'FolderStore'}


    class FolderStore(SqliteStore):
        def __init__(self, spec):
            folder = spec.partition('://')[2]
            os.makedirs(folder, exist_ok=True)
            SqliteStore.__init__(self, os.path.join(folder, 'runs.db'))
'''

TELL = '''
    import sys
    from . import Observer

    BACKEND = {'observer': 'Teller'}


    class Teller(Observer):
        def ended(self, run, ok):
            sys.stderr.write('%s told: %s %s\\n' % (__name__, run.flow, run.status))
'''

LINES = '''
    from . import Sequent

    BACKEND = {'loader': {'endings': ['.lines', '.txt'], 'call': 'load'}}


    def load(path, **given):
        flow, before = Sequent(**given), ()
        with open(path) as file:
            for number, line in enumerate(file):
                before = flow.add_step('line%d' % number, command=line.split(), require=before)
        return flow
'''


def test_a_store_of_a_file_is_found_by_its_name_and_gets_the_text(copy):
    # semantics 21.7
    copy.add('folder.py', FILES)
    copy.add('as_json.py')

    assert copy('night', '--store', 'folder://here/and/there', '--run-id', 'r').returncode == 1

    assert (copy.folder / 'here' / 'and' / 'there' / 'runs.db').exists()
    assert not (copy.folder / 'night.run.db').exists()
    shown = copy('night', 'status', '--store=folder://here/and/there')
    assert 'flow night, run r, recovery 0: failure' in shown.stdout
    copy.write('night.py', NIGHT.replace('Sequent(', "Sequent(store='folder://here/and/there', "))
    assert 'run r, ' in copy('night', 'status').stdout
    assert copy('night', 'recover').returncode == 1
    assert len(json.loads(copy('night', 'history', '--json').stdout)) == 2


def test_an_unknown_store_is_an_error_with_the_known_ones(copy):
    # semantics 21.7
    copy.add('folder.py', FILES)
    copy.add('tell.py', TELL)

    assert_refused(copy('night', '--store', 'foldre://x'),
                   "no store 'foldre'; did you mean 'folder'? Known: a path, :memory:, folder", 3)
    assert_refused(copy('night', '--store', 'tell://x'), "no store 'tell'", 3)
    assert sorted(os.listdir(str(copy.folder))) == ['__pycache__', 'backends', 'night.py',
                                                    'sequent.py']


@pytest.mark.parametrize('way', ['environment', 'config', 'observe'])
def test_an_observer_of_a_file_is_found_by_its_name(copy, way):
    # semantics 21.7
    copy.add('tell.py', TELL)
    copy.add('again.py', TELL)
    variables = {}
    if way == 'environment':
        variables['SEQUENT_OBSERVERS'] = 'tell,again'
    elif way == 'config':
        copy.write('night.py', NIGHT.replace("'inline'", "'inline', 'observers': ['tell']"))
    else:
        copy.write('night.py', NIGHT + "    flow.observe('tell')\n")

    done = copy('night', **variables)

    told = [line for line in done.stderr.splitlines() if ' told: ' in line]
    assert done.returncode == 1
    assert told == ['sequent.%s told: night failure' % name
                    for name in ['tell'] + ['again'] * (way == 'environment')]


@pytest.mark.parametrize('way', ['environment', 'config', 'observe', 'kind'])
def test_an_unknown_observer_is_an_error_before_anything_starts(copy, way):
    # semantics 21.7
    copy.add('tell.py', TELL)
    variables, text = {}, "no observer 'tel'; did you mean 'tell'? Known: tell"
    if way == 'environment':
        variables['SEQUENT_OBSERVERS'] = 'tell,tel'
    elif way == 'config':
        copy.write('night.py', NIGHT.replace("'inline'", "'inline', 'observers': ['tel']"))
    elif way == 'observe':
        copy.write('night.py', NIGHT + "    flow.observe('tel')\n")
    else:
        copy.write('night.py', NIGHT.replace("'inline'", "'inline', 'observers': 'tell'"))
        text = "config 'observers' must be a list of names, not 'tell'"

    done = copy('night', **variables)

    assert done.returncode == 3 and text in done.stderr
    assert 'it is a' not in done.stderr and not (copy.folder / 'night.run.db').exists()


def test_a_loader_makes_a_flow_of_a_file_that_takes_every_verb(copy):
    # semantics 21.7
    copy.add('lines.py', LINES)
    copy.add('as_json.py')
    copy.add('module_help.py')
    (copy.folder / 'jobs').mkdir()
    path = os.path.join('jobs', 'monthly.lines')
    copy.write(path, """\
        echo one
        test -e mended
        echo three
    """)

    assert copy(path).returncode == 1
    assert (copy.folder / 'jobs' / 'monthly.run.db').exists()
    assert copy(path, 'list').stdout.splitlines()[:2] == ['monthly', '  line0: runs echo one']
    assert 'line1  ' in copy(path, 'status').stdout
    assert copy(path, 'log', 'line0').stdout == 'one\n'
    (copy.folder / 'mended').write_text('')
    assert copy(path, 'recover').returncode == 0
    rows = json.loads(copy(path, 'status', '--json', '--all').stdout)['tasks']
    assert [(one['path'], one['status'], one['recovery']) for one in rows] == [
        ('line0', 'success', 0), ('line1', 'success', 1), ('line2', 'success', 1)]
    assert 'parameters of %s:' % path in copy(path, '-h').stdout
    shutil.copy(str(copy.folder / path), str(copy.folder / 'here.txt'))
    assert copy('here.txt', '--store', 'x.db').returncode == 0


def test_a_file_that_no_loader_knows_is_refused(copy):
    # semantics 21.7, 20.2
    copy.write('monthly.lines', 'echo one\n')

    assert_refused(copy('./monthly.lines'), "there is no Python file './monthly.lines'", 3)
    assert_refused(copy('monthly.lines'), "there is no module 'monthly.lines'", 3)
    copy.add('lines.py', LINES)
    assert_refused(copy('weekly.lines'), "there is no module 'weekly.lines'", 3)


def test_what_is_wrong_in_a_file_is_said_without_the_lines_of_its_loader(copy):
    # semantics 21.7, 20.2
    copy.add('lines.py', LINES)
    copy.write('empty.lines', '\n')

    assert_refused(copy('empty.lines'), "'empty.lines' cannot be loaded: step 'line0': ", 3)


def test_a_warning_says_that_the_rest_does_not_run_and_with_a_file_only_if_there_is_one(copy):
    # semantics 20.4
    copy.write('night.py', NIGHT + "    flow()\n    print('never')\n")
    alone = copy('night')
    copy.add('what_follows.py')
    warned = copy('night')

    assert (alone.returncode, alone.stdout) == (1, 'it is a\n')
    assert 'if something follows there, it does not run' in alone.stderr
    assert (warned.returncode, warned.stdout) == (1, 'it is a\n')
    assert 'what follows flow() at line 14 does not run, from line 15 on' in warned.stderr
