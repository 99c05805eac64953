"""Every example runs, as a program and from the command line, and does what it says."""

import collections
import csv
import decimal
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

import sequent

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
#: Graphs of real workflows; the second one is not in every copy of the project.
REAL = [pytest.param(path, id=os.path.basename(path), marks=marks) for path, marks in [
    (os.path.join(ROOT, 'tests', 'data', '197_tasks.json'), []),
    (os.path.join(ROOT, '..', 'shared', 'wfinstances', 'bwa-chameleon-large-001.json'),
     [pytest.mark.long]),
] if os.path.exists(path)]

PROGRAM = []
COMMAND = ['-m', 'sequent']
both_ways = pytest.mark.parametrize('way', [PROGRAM, COMMAND], ids=['program', 'command'])


@pytest.fixture
def run(tmp_path):
    """Return a function that runs Python in a folder where a copy of the examples lies."""
    shutil.copytree(os.path.join(ROOT, 'examples'), str(tmp_path / 'examples'),
                    ignore=shutil.ignore_patterns('__pycache__', '*.run.db*'))

    def run(*arguments, **environment):
        return subprocess.run(
            [sys.executable, '-W', 'error'] + list(arguments), cwd=str(tmp_path), timeout=240,
            env=dict(os.environ, **environment), universal_newlines=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    run.folder = tmp_path
    return run


def said(done):
    """Return what the tasks of a finished run said: lines without the library's own."""
    return [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith('[ ')]


def test_every_example_has_a_test():
    names = [name for name in os.listdir(os.path.join(ROOT, 'examples')) if name.endswith('.py')]
    with open(__file__) as file:
        text = file.read()
    assert names and [name for name in names if 'examples/%s' % name not in text] == []


@both_ways
def test_simple_runs_its_nested_loops_once_and_in_order(run, way):
    done = run(*way + ['examples/simple.py'])

    assert done.returncode == 0, done.stderr
    expected = []
    for day in ('Monday', 'Tuesday'):
        for city in ('Seattle', 'San Francisco'):
            expected += ['extract %s %s' % (day, city), 'check %s %s' % (day, city)]
        expected.append('report %s' % day)
    assert said(done) == expected


@both_ways
def test_events_makes_three_rounds_by_hand(run, way):
    done = run(*way + ['examples/events.py'])

    assert done.returncode == 0, done.stderr
    lines = said(done)
    assert sorted(lines) == sorted('round %d: %s' % (n, verb) for n in (1, 2, 3)
                                   for verb in ('fetch', 'pack', 'ship'))
    for n in (1, 2, 3):
        assert lines.index('round %d: fetch' % n) < lines.index('round %d: ship' % n)
        if n > 1:  # a round begins when what it needs of the one before is there
            assert lines.index('round %d: pack' % (n - 1)) < lines.index('round %d: fetch' % n)


@both_ways
def test_pools_are_never_overdrawn(run, way):
    done = run(*way + ['examples/pools.py'])

    assert done.returncode == 0, done.stderr
    lines = said(done)
    for name in ('ledger', 'payroll', 'backup', 'orders', 'stock', 'archive', 'prices'):
        assert lines.index('%s begins' % name) < lines.index('%s ends' % name)
    if way is PROGRAM:
        assert 'tape drives: 2 of 2 in use at the busiest moment' in lines
        assert re.search('^licences: [123] of 3 in use', done.stdout, re.M)


@both_ways
def test_workflow_runs_the_graph_that_lies_beside_it(run, way):
    done = run(*way + ['examples/workflow.py'], WORKFLOW_SCALE='0.0001')

    assert done.returncode == 0, done.stderr
    # 60 + 30 + 40 + 90 + 70 and the sum of all, scaled
    assert ('newspaper: 10 tasks; longest path 0.029 s, one after another 0.043 s'
            in said(done))


@pytest.mark.parametrize('path', REAL)
def test_workflow_runs_a_real_graph(run, path):
    with open(path) as file:
        graph = json.load(file)

    done = run(*COMMAND + ['examples/workflow.py'],
               WORKFLOW_JSON=path, WORKFLOW_SCALE='0.00001')

    assert done.returncode == 0, done.stderr[-2000:]
    expected = '%s: %d tasks' % (graph['name'], len(graph['tasks']))
    assert any(line.startswith(expected) for line in said(done))


def monthly_means(name):
    """Return {month: mean temperature} of one of the files of the examples."""
    months = collections.defaultdict(list)
    with open(os.path.join(ROOT, 'examples', 'data', name), newline='') as lines:
        for row in csv.DictReader(lines):
            months[row['date'][5:7]].append(float(row['temp']))
    return {month: sum(temps) / len(temps) for month, temps in months.items()}


@both_ways
def test_backfill_reports_every_month(run, way):
    done = run(*way + ['examples/backfill.py'])

    assert done.returncode == 0, done.stderr
    means = [monthly_means(name) for name in ('seattle-temps.csv', 'sf-temps.csv')]
    lines = (run.folder / 'backfill.out' / 'report-2010.txt').read_text().splitlines()[1:]
    assert [line.split()[0] for line in lines] == sorted(means[0])
    for line in lines:
        month, seattle, san_francisco = line.split()
        assert abs(float(seattle) - means[0][month]) <= 0.051
        assert abs(float(san_francisco) - means[1][month]) <= 0.051


def test_the_readme_shows_what_backfill_does(run, readme):
    run(*COMMAND + ['-q', 'examples/backfill.py', '--set', 'year=2010'])

    assert (run.folder / 'backfill.out' / 'report-2010.txt').read_text() in readme
    with open(os.path.join(ROOT, 'examples', 'backfill.py')) as file:
        source = file.read()
    [block] = re.findall('```python\n(year = .*?)```', readme, re.S)
    assert [line for line in block.splitlines() if line not in source] == []


@pytest.mark.long
def test_backfill_tries_a_program_again_that_failed(run):
    (run.folder / 'bin').mkdir()
    awk = run.folder / 'bin' / 'awk'
    awk.write_text('#!/bin/sh\ncase "$*" in *2010/05*) if mkdir was-here 2>/dev/null; then '
                   'echo "no licence" >&2; exit 3; fi;; esac\nexec %s "$@"\n'
                   % shutil.which('awk'))
    awk.chmod(0o755)

    done = run(*COMMAND + ['examples/backfill.py'],
               PATH=str(awk.parent) + os.pathsep + os.environ['PATH'])

    assert done.returncode == 0, done.stderr
    assert 'month_figures at 1.5 failed, attempt 1 of 3: exited with code 3: no licence' \
        in done.stderr
    assert 'step month_figures at 1.5 starts, attempt 2' in done.stderr


def test_backfill_recovers_the_year_that_was_run(run):
    first = run(*COMMAND + ['examples/backfill.py', '--set', 'year=2011'])
    again = run(*COMMAND + ['examples/backfill.py', 'recover'])

    assert (first.returncode, again.returncode) == (1, 1)
    for done in (first, again):
        assert 'there are no data of the year 2011' in done.stderr
    assert run(*COMMAND + ['examples/backfill.py', 'recover', '--set', 'year=2010']
               ).returncode == 2


def test_workflow_refuses_a_graph_with_a_circle(run):
    circle = run.folder / 'circle.json'
    circle.write_text('{"name": "c", "tasks": ['
                      '{"id": "a", "parents": ["b"], "runtimeInSeconds": 1},'
                      '{"id": "b", "parents": ["a"], "runtimeInSeconds": 1}]}')

    done = run(*COMMAND + ['examples/workflow.py'], WORKFLOW_JSON=str(circle))

    assert done.returncode == 3
    assert 'tasks wait for one another' in done.stderr


# The main job #####################################################################


@both_ways
def test_nightly_succeeds_and_transmits_its_report(run, way):
    done = run(*way + ['examples/nightly.py'])

    assert done.returncode == 0, done.stderr
    out = run.folder / 'nightly.out'
    assert (out / 'line' / 'report.txt').read_bytes() == (out / 'report.txt').read_bytes()


def test_nightly_takes_its_folder_from_the_environment(run):
    done = run(*COMMAND + ['examples/nightly.py'], NIGHTLY_DIR='elsewhere')

    assert done.returncode == 0, done.stderr
    assert (run.folder / 'elsewhere' / 'report.txt').exists()
    assert not (run.folder / 'nightly.out').exists()


def test_nightly_with_the_line_down_fails_and_its_recovery_runs_only_c2(run):
    out = run.folder / 'nightly.out'
    night = COMMAND + ['examples/nightly.py']

    failed = run(*night, NIGHTLY_LINE='down')

    assert failed.returncode == 1
    assert 'the line is down' in failed.stderr
    assert not (out / 'line').exists()
    made = {name: os.stat(str(out / name)).st_mtime_ns for name in ('nightly.db', 'report.txt')}

    still_down = run(*night + ['recover'], NIGHTLY_LINE='down')
    recovered = run(*night + ['recover'])
    again = run(*night + ['recover'])

    assert (still_down.returncode, recovered.returncode, again.returncode) == (1, 0, 0)
    assert (out / 'line' / 'report.txt').read_bytes() == (out / 'report.txt').read_bytes()
    assert made == {name: os.stat(str(out / name)).st_mtime_ns for name in made}
    assert 'transmitted' in recovered.stderr
    for word in ('extracted', 'joined', 'written'):  # what A1, A2, B and C1 say
        assert word in failed.stderr and word not in recovered.stderr
    logs = sorted(path.name for path in out.glob('nightly.run.db.logs/nightly/*/*.log'))
    assert [name for name in logs if '.1.0.' not in name] == ['C2.1.1.1.log', 'C2.1.2.1.log']


def file_of(run, name):
    """Read a city's file once more, in the plainest way: {'2010-01-01 00': Decimal}."""
    with open(str(run.folder / 'examples' / 'data' / name)) as lines:
        return {row['date'][:13].replace('/', '-'): decimal.Decimal(row['temp'])
                for row in csv.DictReader(lines)}


def monthly(cities):
    """Return {month: [hours, mean, low, high, mean, low, high]} of the hours both have."""
    found = collections.defaultdict(lambda: ([], []))
    for hour in set(cities[0]) & set(cities[1]):
        for key in (hour[:7], hour[:4]):
            for temperatures, city in zip(found[key], cities):
                temperatures.append(city[hour])
    tenth = decimal.Decimal('0.1')
    return {key: [len(both[0])] + [
        figure.quantize(tenth, decimal.ROUND_HALF_UP) for one in both
        for figure in (sum(one) / len(one), min(one), max(one))] for key, both in found.items()}


def test_the_figures_of_the_nightly_report_are_right(run):
    assert run(*COMMAND + ['examples/nightly.py']).returncode == 0
    text = (run.folder / 'nightly.out' / 'report.txt').read_text()
    cities = file_of(run, 'seattle-temps.csv'), file_of(run, 'sf-temps.csv')

    rows = [re.split(r'[ |]+', line) for line in re.findall('^2010.*$', text, re.M)]

    figures = {row[0]: [int(row[1])] + list(map(decimal.Decimal, row[2:8])) for row in rows}
    assert len(figures) == 13
    assert figures == monthly(cities)
    for row in rows:  # the difference is of the means before they were rounded
        difference = decimal.Decimal(row[8]) - (figures[row[0]][4] - figures[row[0]][1])
        assert abs(difference) <= decimal.Decimal('0.1')
    assert 'hours extracted: 8759 and 8759; in both: 8759' in text
    assert 'hours missing in between: 2010-03-14 03:00' in text
    assert '2010-03-14 03' not in cities[0] and '2010-03-14 02' in cities[0]


def test_the_warmest_and_coldest_days_of_the_nightly_report_are_right(run):
    assert run(*COMMAND + ['examples/nightly.py']).returncode == 0
    text = (run.folder / 'nightly.out' / 'report.txt').read_text()

    for city, name in (('Seattle', 'seattle-temps.csv'), ('San Francisco', 'sf-temps.csv')):
        days = collections.defaultdict(list)
        for hour, temperature in file_of(run, name).items():
            days[hour[:10]].append(temperature)
        means = {day: sum(one) / len(one) for day, one in days.items()}
        for word, pick in (('warmest', max), ('coldest', min)):
            day = re.search('^%s day in %s: (\\S+), mean' % (word, city), text, re.M).group(1)
            assert means[day] == pick(means.values())


def test_nightly_names_the_line_of_a_file_that_it_cannot_read(run):
    path = run.folder / 'examples' / 'data' / 'sf-temps.csv'
    lines = path.read_text().splitlines()
    lines[99] = 'warm,2010/01/05 02:00:00'
    path.write_text('\n'.join(lines))

    done = run(*COMMAND + ['examples/nightly.py'])

    assert done.returncode == 1
    assert 'sf-temps.csv, line 100' in done.stderr
    assert not (run.folder / 'nightly.out' / 'report.txt').exists()


# The README #######################################################################


@pytest.fixture(scope='module')
def readme():
    with open(os.path.join(ROOT, 'README.md'), encoding='utf-8') as file:
        return file.read()


def programs(readme):
    return re.findall('^```python\n(.*?)^```', readme, re.M | re.S)


def test_the_first_program_of_the_readme_is_the_simple_example(readme):
    with open(os.path.join(ROOT, 'examples', 'simple.py')) as file:
        assert file.read().endswith('"""\n' + programs(readme)[0])


def test_the_construct_of_the_readme_runs_as_pasted(run, readme):
    (program,) = [one for one in programs(readme) if 'TaskConstruct)' in one]
    (run.folder / 'pasted.py').write_text(program)

    done = run('pasted.py')

    assert (done.returncode, done.stdout) == (0, 'hello\n')


def test_the_readme_and_the_docstring_tell_of_every_configuration_key(readme):
    table = re.search(r'^\| key \| default .*?\n\n', readme, re.M | re.S).group(0)
    keys = re.findall(r'^\| `(\w+)`', table, re.M)
    known = list(sequent.CONFIG_KEYS) + [
        key for one in sequent.descriptions().values() for key in one.get('config', {})]

    assert sorted(keys) == sorted(known)
    for name, one in sequent.CONFIG_KEYS.items():
        mark = ' *' if one.on_steps else ''
        assert re.search(r'^    %s +%s\n' % (re.escape(name + mark), re.escape(
            one.shown or repr(one.default))), sequent.Sequent.__doc__, re.M)
        assert ' '.join(one.help.split()) in ' '.join(sequent.Sequent.__doc__.split())


def test_the_readme_shows_the_help_of_the_command_line(run, readme):
    def plain(text):  # what differs with the interpreter and the width of the screen
        text = text.replace('python3', 'python').replace('optional arguments:', 'options:')
        return ' '.join(text.split())

    done = run(*COMMAND + ['-h'])

    assert plain(done.stdout) in plain(readme)


def test_the_report_in_the_readme_is_the_one_that_is_made(run, readme):
    assert run(*COMMAND + ['examples/nightly.py']).returncode == 0

    assert (run.folder / 'nightly.out' / 'report.txt').read_text() in readme


@both_ways
def test_mail_tells_of_a_failure_and_the_night_has_failed(run, way):
    bad = run(*way + ['examples/mail.py'], LINE='down')
    again = run(*COMMAND + ['examples/mail.py', 'recover'], LINE='down')
    good = run(*COMMAND + ['examples/mail.py', 'recover'])

    assert (bad.returncode, again.returncode, good.returncode) == (1, 1, 0)
    mails = ('loading failed (1)\n  night_load at 1.1: ConnectionError: the line is down\n'
             'the night failed (1)\n  night at 1: night_load failed at 1.1: ConnectionError: the '
             'line is down\n')
    assert (run.folder / 'outbox.txt').read_text() == 2 * mails
