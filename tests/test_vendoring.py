"""Copies of the library wherever they are: in packages, in a zip, read-only, two in one program,
under the switches of Python."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile

import pytest

import sequent
from runtools import wait_until

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def run(folder, *arguments, **variables):
    """Run Python in a folder, on no path but its own, with every warning an error."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(('PYTHON', 'SEQUENT'))}
    environment.update(variables, TMPDIR=str(folder))
    return subprocess.run([sys.executable, '-W', 'error'] + list(arguments), cwd=str(folder),
                          env=environment, timeout=120, universal_newlines=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def copy(folder, package, version=None, packages=True):
    """Vendor a copy, with its backends, as ``package.sequent``; return its path."""
    home = folder.joinpath(*package.split('.'))
    home.mkdir(parents=True)
    for above in [home] + list(home.parents)[:len(package.split('.')) - 1]:
        if packages:
            (above / '__init__.py').write_text('')
    with open(os.path.join(ROOT, 'sequent.py'), encoding='utf-8') as file:
        source = file.read()
    if version is not None:
        source, changed = re.subn("^__version__ = '.*'$", '__version__ = %r' % version, source,
                                  flags=re.M)
        assert changed == 1
    (home / 'sequent.py').write_bytes(source.encode('utf-8'))
    shutil.copytree(os.path.join(ROOT, 'backends'), str(home / 'backends'),
                    ignore=shutil.ignore_patterns('__pycache__'))
    return str(home / 'sequent.py')


# Every construct ##################################################################

#: Runs a flow by each construct; prints a line for each, and how it was run.
ALL = '''
import os, sys
{path}
import {module} as seq


def work(text, *more):
    return text + seq.current().name


def build(name, config):
    flow = seq.Sequent(name, store='all.db', config=config)
    a = flow.add_step('a', func=work, args=('it is ',))
    each = flow.add_step('each', loop=[1, 2], require=a)
    each.add_step('b', func=seq.Command([sys.executable, '-S', '-c', 'print("program")']))
    flow.add_step('c', func=work, args=('then ', a.result), require=each)
    return flow


CONFIGS = [dict(task_construct='inline'), dict(task_construct='thread'),
           dict(task_construct='process', start_method='fork'),
           dict(task_construct='process', start_method='spawn'),
           dict(task_construct='executor', executor='concurrent.futures:ThreadPoolExecutor')]

if __name__ == '__main__':
    for number, config in enumerate(CONFIGS):
        flow = build('f%d' % number, config)
        ok = flow.run()
        print(number, ok, [one.result for one in flow.tasks() if one.path in ('a', 'c')])
    print(sys.flags.optimize, os.path.dirname(seq.__file__))
'''
DONE = ["%d True ['it is a', 'then c']" % number for number in range(5)]


def assert_all_ran(done, place, optimize=0):
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == DONE + ['%d %s' % (optimize, place)]
    assert 'Logging error' not in done.stderr


def write_all(folder, module, place=None):
    path = '' if place is None else 'sys.path.insert(0, %r)' % str(place)
    (folder / 'all.py').write_text(ALL.format(path=path, module=module))


@pytest.mark.parametrize('packages', [True, False], ids=['packages', 'namespaces'])
def test_a_copy_in_any_package_runs_every_construct(tmp_path, packages):
    # semantics 21.1
    place = copy(tmp_path, 'legacy.vendor', packages=packages)
    write_all(tmp_path, 'legacy.vendor.sequent')
    assert_all_ran(run(tmp_path, 'all.py'), os.path.dirname(place))


def zipped(folder):
    path = str(folder / 'lib.zip')
    with zipfile.ZipFile(path, 'w') as archive:
        archive.write(os.path.join(ROOT, 'sequent.py'), 'sequent.py')
        for name in os.listdir(os.path.join(ROOT, 'backends')):
            if name.endswith('.py'):
                archive.write(os.path.join(ROOT, 'backends', name), 'backends/' + name)
    return path


@pytest.mark.long
def test_a_copy_in_a_zip_runs_every_construct(tmp_path):
    # semantics 21.1
    path = zipped(tmp_path)
    write_all(tmp_path, 'sequent', path)
    assert_all_ran(run(tmp_path, 'all.py'), path)


@pytest.mark.long
def test_the_command_line_of_a_copy_in_a_zip_runs_and_recovers_a_flow(tmp_path):
    path = zipped(tmp_path)
    (tmp_path / 'night.py').write_text(textwrap.dedent('''
        import os
        import sequent as seq

        def work():
            if not os.path.exists('up'):
                raise ConnectionError('the line is down')

        flow = seq.Sequent(config={'start_method': 'spawn'})
        flow.add_step('a', func=work)
        '''))
    assert run(tmp_path, '-m', 'sequent', 'night', PYTHONPATH=path).returncode == 1
    (tmp_path / 'up').write_text('')
    assert run(tmp_path, '-m', 'sequent', 'night', 'recover', PYTHONPATH=path).returncode == 0
    version = run(tmp_path, '-m', 'sequent', '--version', PYTHONPATH=path).stdout
    assert ' from %s (' % os.path.join(path, 'sequent.py') in version


READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && shift && exec "$@"'


ALONE = '''
import sys
import sequent as seq

flow = seq.Sequent()
a = flow.add_step('a', func=print, args=('a',))
b = flow.add_step('b', command=[sys.executable, '-c', 'import os; os.stat("there")'], require=a)
flow.add_step('c', func=print, args=('c',), require=b)
'''


def test_the_core_alone_runs_recovers_and_shows_functions_and_programs(tmp_path):
    # semantics 21.1
    shutil.copy(os.path.join(ROOT, 'sequent.py'), str(tmp_path))
    (tmp_path / 'night.py').write_text(ALONE)

    def sequent(*arguments):
        return run(tmp_path, '-m', 'sequent', 'night', *arguments)

    failed = sequent()
    assert failed.returncode == 1 and 'FileNotFoundError' in failed.stderr
    (tmp_path / 'there').write_text('')
    recovered = sequent('recover')
    assert recovered.returncode == 0, recovered.stderr
    assert 'step c at 1 ended with success' in recovered.stderr
    assert 'step a at 1 starts' not in recovered.stderr
    for verb, text in (('list', 'requires b'), ('status', 'success'), ('history', 'recover')):
        shown = sequent(verb)
        assert (shown.returncode, shown.stderr) == (0, '') and text in shown.stdout


CAREFUL = '''
import sys
import sequent as seq

flow = seq.Sequent(config={'timeout': 60})
flow.add_step('careful', command=[sys.executable, '-c', """if True:
    import signal, sys, time
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    open('begun', 'w').close()
    time.sleep(60)"""])
'''


def test_the_core_alone_stores_how_a_program_ends_that_finishes_after_a_sigterm(tmp_path):
    # semantics 8.3
    shutil.copy(os.path.join(ROOT, 'sequent.py'), str(tmp_path))
    (tmp_path / 'night.py').write_text(CAREFUL)
    supervisor = subprocess.Popen([sys.executable, '-m', 'sequent', 'night'], cwd=str(tmp_path),
                                  stderr=subprocess.PIPE)
    wait_until((tmp_path / 'begun').exists, 'the start of the program')

    supervisor.terminate()

    supervisor.communicate(timeout=60)
    assert supervisor.returncode == 143
    shown = run(tmp_path, '-m', 'sequent', 'night', 'status')
    assert 'success' in shown.stdout.splitlines()[-1]


@pytest.mark.parametrize('option', ['-n', '--dry-run', '--self-check'])
def test_the_core_alone_says_which_file_an_option_needs(tmp_path, option):
    # semantics 21.6
    shutil.copy(os.path.join(ROOT, 'sequent.py'), str(tmp_path))
    (tmp_path / 'night.py').write_text(ALONE)
    name = 'self_check' if option == '--self-check' else 'dry_run'

    done = run(tmp_path, '-m', 'sequent', 'night', option)

    assert (done.returncode, done.stdout) == (2, '')
    assert '%s needs the file backends/%s.py: copy it to a folder backends beside %s' % (
        option, name, tmp_path / 'sequent.py') in done.stderr


@pytest.mark.parametrize('method', sequent.start_methods()[1:])
def test_the_core_alone_says_before_the_run_which_file_a_start_method_needs(tmp_path, method):
    # semantics 4.16
    shutil.copy(os.path.join(ROOT, 'sequent.py'), str(tmp_path))
    (tmp_path / 'night.py').write_text(ALONE + "flow.add_step('d', func=print, config=%r)\n" % {
        'start_method': method})

    done = run(tmp_path, '-m', 'sequent', 'night')

    assert (done.returncode, done.stdout) == (3, '')
    assert ("step 'd': start_method %r needs the file backends/spawn.py: copy it to a folder "
            'backends beside %s' % (method, tmp_path / 'sequent.py')) in done.stderr


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which('unshare') is None,
                    reason='not for users who cannot mount anything')
def test_a_copy_in_a_read_only_folder_runs_every_construct(tmp_path):
    # semantics 21.1
    place = tmp_path / 'lib'
    place.mkdir()
    shutil.copy(os.path.join(ROOT, 'sequent.py'), str(place))
    shutil.copytree(os.path.join(ROOT, 'backends'), str(place / 'backends'),
                    ignore=shutil.ignore_patterns('__pycache__'))
    write_all(tmp_path, 'sequent', place)
    with open(str(tmp_path / 'all.py'), 'a') as file:
        file.write("    try:\n        open(%r, 'w')\n    except OSError as error:\n"
                   "        assert error.errno == 30    # EROFS\n" % str(place / 'new'))

    done = subprocess.run(
        ['unshare', '-m', 'sh', '-c', READ_ONLY, str(place), '-', sys.executable, '-W', 'error',
         'all.py'], cwd=str(tmp_path), timeout=120, universal_newlines=True,
        env=dict(os.environ, TMPDIR=str(tmp_path), PYTHONPATH=''),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    assert_all_ran(done, str(place))
    assert sorted(os.listdir(str(place))) == ['backends', 'sequent.py']


SWITCHES = [(('-I',), {}), (('-S',), {}), (('-E', '-s'), {}), (('-O',), {}), (('-OO',), {}),
            (('-b', '-X', 'faulthandler'), {}), ((), {'PYTHONDONTWRITEBYTECODE': '1'}),
            ((), {'PYTHONOPTIMIZE': '2'}), (('-B', '-u'), {'PYTHONHASHSEED': '0'}),
            ((), {'PYTHONSAFEPATH': '1'}), (('-X', 'dev'), {})]


@pytest.mark.parametrize('switches, variables', SWITCHES,
                         ids=[' '.join(one + tuple(two)) for one, two in SWITCHES])
def test_every_construct_runs_under_the_switches_of_python(tmp_path, switches, variables):
    # semantics 21.1
    place = copy(tmp_path, 'lib')
    write_all(tmp_path, 'sequent', os.path.dirname(place))

    done = run(tmp_path, *(switches + ('all.py',)), **variables)

    optimize = {'-O': 1, '-OO': 2}.get(switches[0] if switches else '', 0)
    assert_all_ran(done, os.path.dirname(place), optimize or 2 * ('PYTHONOPTIMIZE' in variables))


@pytest.mark.long
@pytest.mark.parametrize('switches, variables', [
    (('-OO',), {}), (('-S', '-B'), {}), ((), {'PYTHONSAFEPATH': '1'})],
    ids=['-OO', '-S -B', 'PYTHONSAFEPATH'])
def test_the_command_line_runs_a_module_under_the_switches_of_python(tmp_path, switches,
                                                                     variables):
    place = copy(tmp_path, 'lib')
    write_all(tmp_path, 'sequent')
    with open(str(tmp_path / 'all.py'), 'a') as file:
        file.write("flow = build('night', {'start_method': 'spawn'})\n")
    variables = dict(variables, PYTHONPATH=os.path.dirname(place))

    for target in ('all', 'all.py'):
        done = run(tmp_path, *(switches + ('-m', 'sequent', target)), **variables)
        assert done.returncode == 0, done.stderr
        assert 'night: success' in done.stderr


# Which file #######################################################################


def test_the_version_tells_which_file_it_is(tmp_path):
    first = copy(tmp_path, 'legacy.vendor')
    second = copy(tmp_path, 'other', version='4.9.1')

    told = [run(tmp_path, '-m', name, '--version').stdout.split() for name in (
        'legacy.vendor.sequent', 'other.sequent')]

    assert [(one[1], one[3]) for one in told][1] == ('4.9.1', second)
    assert told[0][3] == first
    assert '(Python %d.%d.%d)' % sys.version_info[:3] == ' '.join(told[0][4:])


# Two copies in one program ########################################################

BOTH = '''
import os, subprocess, sys, threading
import legacy.vendor.sequent as one
import other.sequent as two


def name_by(copy):
    try:
        return copy.current().name
    except LookupError:
        return None


def names(text):
    """Say what both copies know of the task that runs here."""
    return text, [name_by(copy) for copy in (one, two)]


def build(copy, name, config, **given):
    flow = copy.Sequent(name, store=name + '.db', config=config, **given)
    each = flow.add_step('each', loop=[1, 2, 3])
    a = each.add_step('a', func=names, args=(each.item,))
    each.add_step('b', func=copy.Command([sys.executable, '-S', '-c', 'pass']), require=a)
    flow.add_step('last', func=names, args=(name,), require=each)
    return flow
'''


@pytest.fixture
def both(tmp_path):
    """Run a program that has two copies; returns its lines."""
    copy(tmp_path, 'legacy.vendor')
    copy(tmp_path, 'other', version='4.9.1')

    def run_both(program):
        (tmp_path / 'both.py').write_text(BOTH + textwrap.dedent(program))
        done = run(tmp_path, 'both.py')
        assert done.returncode == 0, done.stderr
        assert 'Logging error' not in done.stderr and 'Exception in' not in done.stderr
        return done.stdout.splitlines()
    return run_both


@pytest.mark.long
@pytest.mark.parametrize('config', [
    {'task_construct': 'inline'}, {'task_construct': 'thread'}, {'start_method': 'fork'},
    {'start_method': 'spawn'}], ids=lambda config: '-'.join(config.values()))
def test_two_copies_run_flows_in_turn_and_at_the_same_time(both, config):
    # semantics 21.3
    lines = both('''
        def finish(copy, name, results):
            flow = build(copy, name, %r)
            results[name] = flow.run(), [task.result for task in flow.tasks()][-1]


        if __name__ == '__main__':
            assert two.__version__ == '4.9.1' != one.__version__
            results = {}
            for copy, name in ((one, 'a'), (two, 'b'), (one, 'c')):
                finish(copy, name, results)
            threads = [threading.Thread(target=finish, args=(copy, name, results)) for copy, name
                       in ((one, 'd'), (two, 'e'), (one, 'f'), (two, 'g'))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
            for name in sorted(results):
                print(name, *results[name])
            print([name for name in os.environ if name.startswith('SEQUENT')])
        ''' % config)
    assert lines == [
        "%s True %r" % (name, (name, ['last', None] if name in 'acdf' else [None, 'last']))
        for name in 'abcdefg'] + ['[]']


def test_a_copy_refuses_a_flow_that_another_copy_runs_and_leaves_its_lock_alone(both):
    # semantics 21.3
    lines = both('''
        def again():
            """Try to run the flow that is running: by the other copy, and in another program."""
            for copy in (two, one):
                flow = copy.Sequent('night', store='night.db')
                flow.add_step('a', func=print, args=('it runs twice',))
                try:
                    flow.run()
                except copy.AlreadyRunningError as error:
                    print('already running' in str(error))
                flow.open_store(create=False).runs('night')
                flow.close_store()
            print(subprocess.call([sys.executable, 'both.py', 'second'],
                                  stderr=subprocess.DEVNULL))


        if __name__ == '__main__':
            flow = one.Sequent('night', store='night.db', config={'task_construct': 'inline'})
            flow.add_step('a', func=print if sys.argv[1:] else again)
            sys.stdout.flush()
            try:
                print(flow.run())
            except one.AlreadyRunningError:
                sys.exit(75)
        ''')
    assert lines == ['True', 'True', '75', 'True']


def test_a_child_that_a_copy_forks_keeps_no_descriptor_of_another_copy(both):
    lines = both('''
        def descriptors():
            kinds = []
            for name in os.listdir('/proc/self/fd'):
                try:
                    kinds.append(os.readlink('/proc/self/fd/' + name).partition(':[')[0])
                except OSError:
                    pass    # that of listdir
            return sorted(kind for kind in kinds
                          if not kind.endswith('.log') and 'proc' not in kind
                          and '.so' not in kind)    # which a thread was just loading


        def look(copy):
            """Return what a child has open."""
            flow = copy.Sequent('inner', store=':memory:', config={'start_method': 'fork'})
            flow.add_step('look', func=descriptors)
            assert flow.run()
            return [task.result for task in flow.tasks()]


        def compare(copy, alone):
            import logging
            logging.getLogger(__name__).info('the log of this task is open')
            there = look(copy)
            print(there == alone or (there, alone))


        def beside():
            open('runs', 'w').close()
            while not os.path.exists('done'):
                os.stat('runs')


        if __name__ == '__main__':
            for copy, other in ((one, two), (two, one)):
                alone = look(other)
                flow = copy.Sequent('outer', store='outer.db', config={
                    'start_method': 'fork', 'max_concurrent': 3})
                slow = flow.add_step('slow', func=beside)
                while_ = flow.add_step('compare', func=compare, args=(other, alone), require=(
                    (slow, 'active'),), config={'task_construct': 'thread'})
                flow.add_step('end', func=lambda: open('done', 'w').close(), require=while_,
                              config={'task_construct': 'inline'})
                assert flow.run()
                os.remove('done')
        ''')
    assert lines == ['True', 'True']


@pytest.mark.parametrize('inner', ['one', 'two'])
def test_a_flow_within_an_inline_task_gives_its_variables_back_whichever_copy_runs_it(both, inner):
    lines = both('''
        def inner():
            before = os.environ['SEQUENT_STEP_NAME']
            ok = build(%s, 'inner', {'task_construct': 'inline'}).run()
            return ok, before == os.environ['SEQUENT_STEP_NAME'], one.current().name


        flow = one.Sequent('outer', store='outer.db', config={'task_construct': 'inline'})
        flow.add_step('a', func=inner)
        print(flow.run(), [task.result for task in flow.tasks()])
        print([name for name in os.environ if name.startswith('SEQUENT')])
        ''' % inner)
    assert lines == ["True [(True, True, 'a')]", '[]']


@pytest.mark.long
def test_flows_of_two_copies_without_a_guard_run_once_each_under_spawn(both):
    lines = both('''
        for copy, name in ((one, 'a'), (two, 'b')):
            flow = build(copy, name, {'start_method': 'spawn'})
            print(name, flow.run(), flush=True)
        ''')
    assert lines == ['a True', 'b True']


def test_a_step_of_one_copy_in_a_flow_of_another_is_an_error_that_names_it(both):
    lines = both('''
        strange = one.Sequent('a', store=':memory:').add_step('strange', func=print)
        flow = two.Sequent('b', store=':memory:')
        for require in (strange, (strange, 'success'), (strange,), one.or_(strange, strange)):
            try:
                flow.add_step('s', func=print, require=require)
                flow.run()
            except two.SequentError as error:
                print('strange' in str(error) or error)
        ''')
    assert lines == ['True'] * 4


# The command line of another copy #################################################

STRANGE = '''
import other.sequent as seq
import legacy.vendor.sequent as ours
{before}
flow = seq.Sequent('night', store='night.db')
flow.add_step('a', func=print, args=('it runs',))
{after}
'''
WAYS = {'attribute': ('', ''), 'call': ('', 'flow()'),
        'guarded by except': ('', 'try:\n    flow()\nexcept Exception:\n    pass'),
        'build_flow': ('def build_flow():\n    return hidden', 'hidden = flow\ndel flow'),
        'beside one of ours': ("f = ours.Sequent('ours', store='ours.db')", '')}


@pytest.mark.parametrize('way', sorted(WAYS))
@pytest.mark.parametrize('verb', [['run'], ['list'], ['status'], ['recover'],
                                  ['run', '--flow', 'night']], ids=' '.join)
def test_a_flow_of_another_copy_is_refused_by_every_verb_and_says_which_to_use(tmp_path, way,
                                                                               verb):
    # semantics 21.3
    if '--flow' in verb and way in ('build_flow', 'beside one of ours'):
        pytest.skip('not for flows chosen by another name')
    copy(tmp_path, 'legacy.vendor')
    second = copy(tmp_path, 'other', version='4.9.1')
    before, after = WAYS[way]
    (tmp_path / 'night.py').write_text(STRANGE.format(before=before, after=after))

    done = run(tmp_path, '-m', 'legacy.vendor.sequent', 'night', *verb)

    assert (done.returncode, done.stdout) == (3, ''), done.stderr
    assert "'night'" in done.stderr and 'another copy of this library' in done.stderr
    assert second in done.stderr and 'python -m other.sequent' in done.stderr
    assert 'Traceback' not in done.stderr
    assert not [name for name in os.listdir(str(tmp_path)) if name.endswith('.db')]
