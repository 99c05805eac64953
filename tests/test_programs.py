"""Programs as steps: `Command`, the construct that runs them, its tender, config cwd and env."""

import contextlib
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import threading

import pytest


import contracts  # noqa: E402
import sequent  # noqa: E402
from contracts import RunningContract  # noqa: E402
from runtools import (  # noqa: E402,F401
    Journal, a_flow, a_private_temporary_folder, a_store, is_running, journal, log_of, programs,
    read, statuses, store, the_task, wait_gone, wait_until)
from sequent import (  # noqa: E402
    Command, ConfigError, FlowError, FlowTypeError, ProcessConstruct,
    ProgramError)
from sequent.tender import Tender  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(os, 'fork'), reason='not for systems without fork')


# What a Command is ################################################################


class Placeholder:
    is_placeholder = True

    def __init__(self, name):
        self.name = name

    def __eq__(self, other):
        return self.name == other.name

    def __repr__(self):
        return '<%s>' % self.name


def fill(command, **values):
    def lookup(name, attribute):
        return values['_'.join(one for one in (name, attribute) if one)]
    return command.filled(lookup, lambda placeholder: values[placeholder.name])


class TestCommand:
    @pytest.mark.parametrize('given, argv', [
        (['extract', '--db', 'x y'], ['extract', '--db', 'x y']),
        (('extract', 3, 0.5), ['extract', '3', '0.5']),
        ([pathlib.Path('/bin/extract')], ['/bin/extract']),
        ('extract --db "x y" \'z\'', ['extract', '--db', 'x y', 'z']),
        ('a | b > c', ['a', '|', 'b', '>', 'c'])])
    def test_a_list_is_taken_as_it_is_and_a_str_is_split(self, given, argv):
        assert fill(Command(given)).argv() == argv

    def test_with_shell_a_str_goes_to_a_shell(self):
        assert fill(Command('a | b', shell=True)).argv() == ['/bin/sh', '-c', 'a | b']

    @pytest.mark.parametrize('text, filled', [
        ('{day}', '7'), ('--day={day}!', '--day=7!'), ('{s0.item}{s1.result}', 'xy z'),
        ('{{day}}', '{day}'), ('{{{day}}}', '{7}'), ('{{', '{'), ('}}', '}'),
        ('{print $1}', '{print $1}'), ('{}', '{}'), ('{a.b}', '{a.b}'), ('{1}', '{1}'),
        ('{ day }', '{ day }'), ('${HOME!r}', '${HOME!r}'), ('{', '{')])
    def test_only_names_and_doubled_braces_are_replaced(self, text, filled):
        values = {'day': 7, 's0_item': 'x', 's1_result': 'y z'}
        assert fill(Command(['p', text]), **values).argv() == ['p', filled]

    def test_a_value_stays_one_argument_and_its_braces_as_they_are(self):
        command = fill(Command('p {day}'), day='a b {day} {{')
        assert command.argv() == ['p', 'a b {day} {{']
        assert fill(command, day='again') == command
        assert command.names() == set()

    def test_in_a_shell_string_values_are_quoted(self):
        command = fill(Command('echo {day} {{}}', shell=True), day='$(rm x); \'')
        assert command.argv()[2] == 'echo \'$(rm x); \'"\'"\'\' {}'

    def test_cwd_env_and_stdin_are_filled_too(self):
        command = fill(Command('p', cwd='/d/{day}', env={'D': '{day}', 'E': None}, stdin='{day}'),
                       day=7)
        assert (command.cwd, command.env, command.stdin) == ('/d/7', {'D': '7', 'E': None}, '7')

    def test_names_tells_what_is_mentioned(self):
        command = Command(['p', '{day}', '{{no}}', '{a.item} {b.result}'], cwd='{folder}',
                          env={'A': '{value}'}, stdin='{file}')
        assert command.names() == {('day', ''), ('a', 'item'), ('b', 'result'), ('folder', ''),
                                   ('value', ''), ('file', '')}

    def test_placeholders_are_objects_among_the_arguments(self):
        one, two = Placeholder('one'), Placeholder('two')
        command = Command(['p', one, 'x', two])
        assert command.placeholders() == [one, two]
        assert fill(command, one=1, two='{2}').argv() == ['p', '1', 'x', '{2}']

    def test_it_is_equal_by_content_and_survives_pickling(self):
        def make(**more):
            return Command(['p', '{day}'], cwd='x', ok=range(3), **more)
        assert make() == make() == pickle.loads(pickle.dumps(make()))
        assert hash(make()) == hash(make())
        assert make() != make(env={'A': 'b'})
        assert make() != 'p'
        assert Command('p', ok=range(2)) == Command('p', ok=(1, 0)) != Command('p')

    def test_its_repr_makes_it_again(self):
        for command in (Command(['p', 'x y']), Command('a | b', shell=True, cwd='/'),
                        Command('p', env={'A': None}, ok=range(4), stdin='in')):
            assert eval(repr(command)) == command

    def test_its_str_is_what_one_would_type(self):
        assert str(Command(['p', '--day={day}', 'x y', ''])) == "p --day={day} 'x y' ''"
        assert str(Command('a | b', shell=True)) == 'a | b'

    @pytest.mark.parametrize('args, given, words', [
        ((3,), {}, 'must be a list or a str'), ((None,), {}, 'must be a list or a str'),
        (({'p'},), {}, 'must be a list'), ((['p', b'x'],), {}, "b'x'"),
        ((['p', None],), {}, 'None'), ((['p', True],), {}, 'True'),
        ((['p', object],), {}, 'object'),
        ((['p'],), {'shell': True}, 'must be a str'), (('p',), {'shell': 1}, 'shell'),
        (('p',), {'cwd': 3}, 'cwd'), (('p',), {'env': ['A']}, 'env'),
        (('p',), {'env': {'A': 1}}, 'env'), (('p',), {'env': {'A=B': 'x'}}, "'A=B'"),
        (('p',), {'ok': 0}, 'range(0, 4)'), (('p',), {'ok': None}, 'ok'),
        (('p',), {'stdin': 0}, 'stdin')])
    def test_a_wrong_type_is_told_at_once(self, args, given, words):
        with pytest.raises(FlowTypeError) as info:
            Command(*args, **given)
        assert words in str(info.value)

    @pytest.mark.parametrize('args, given, words', [
        (([],), {}, 'no program'), (('',), {}, 'no program'), (([''],), {}, 'no program'),
        ((' ',), {'shell': True}, 'empty'), (('p "x',), {}, 'No closing quotation'),
        ((['p', 'a\0b'],), {}, 'null'), (('p',), {'ok': ()}, 'at least one'),
        (('p',), {'ok': (0, 256)}, '0 to 255'), (('p',), {'ok': (-9,)}, '0 to 255'),
        (('p',), {'ok': range(10 ** 9)}, '0 to 255'), (('p',), {'ok': (True,)}, '0 to 255')])
    def test_a_wrong_value_is_told_at_once(self, args, given, words):
        with pytest.raises(FlowError) as info:
            Command(*args, **given)
        assert words in str(info.value)


class TestCall:
    """Without a construct for programs."""

    def test_it_returns_the_exit_code(self):
        assert Command('true')() == 0
        assert Command('exit 3', shell=True, ok=range(4))() == 3

    @pytest.mark.parametrize('script, code, words', [
        ('exit 3', 3, 'exited with code 3'), ('kill -9 $$', -9, 'died: signal SIGKILL')])
    def test_a_failure_carries_the_code(self, script, code, words):
        with pytest.raises(ProgramError) as info:
            Command(script, shell=True)()
        assert (info.value.code, str(info.value)) == (code, words)
        assert pickle.loads(pickle.dumps(info.value)).code == code

    def test_a_program_that_is_not_there_has_no_code(self):
        with pytest.raises(ProgramError, match='there is no program') as info:
            Command('no-such-program')()
        assert info.value.code is None

    def test_braces_that_were_never_filled_are_braces(self, capfd):
        Command(['echo', '{{day}}'])()
        assert capfd.readouterr().out == '{day}\n'

    def test_a_name_without_a_value_is_refused(self):
        with pytest.raises(FlowError, match="nothing is called 'day' here"):
            Command(['echo', '{day}'])()


# The construct ####################################################################

# Nothing is forked that may be signalled meanwhile: what comes to a group while a shell forks may
# miss the child.
SCRIPTS = {
    contracts.touch: 'echo $$ >> "$0"',
    contracts.touch_and_wait: 'echo $$ >> "$0"; exec sleep 60',
    contracts.meet: 'touch "$0/$1"; until [ -e "$0/$2" ]; do sleep 0.01; done',
    contracts.nothing: ':', contracts.add: ':'}


def sh(script, *args, **given):
    return Command(('sh', '-c', script) + args, **given)


def descriptors():
    return set(os.listdir('/proc/self/fd'))


def session_of(tender):
    """Return the pids of all that runs of what a tender has started."""
    return list(sequent.process_members(3, tender))


class Tended(ProcessConstruct):
    """Has a tender whatever the flow is; of a run it is that of the flow."""

    tender = None

    def open(self, port):
        super().open(port)
        self.tender = port.tender = Tender({})

    def close(self):
        super().close()
        self.tender.close()


class ProgramContract(RunningContract):
    """What a program finds, and what is said of it; ``make_construct()``."""

    def job(self, func, *args, **fields):
        if not isinstance(func, Command):
            func = sh(SCRIPTS[func], *args)
        return RunningContract.job(self, func, **fields)

    @pytest.fixture(autouse=True)
    def nothing_is_left(self, construct):
        before = descriptors()
        yield
        construct.close()
        assert descriptors() - before == set()
        construct.open(construct.port)

    def shell(self, construct, script, tmp_path, **given):
        return self.run(construct, sh(script, **given), log=str(tmp_path / 'log'))

    def test_the_result_is_the_exit_code(self, construct):
        outcome = self.run(construct, sh('exit 3', ok=range(4)))
        assert (outcome.status, pickle.loads(outcome.result)) == ('success', 3)
        assert outcome.ended is not None

    def test_a_result_that_is_not_to_be_kept_is_not(self, construct):
        assert self.run(construct, sh(':'), config={'keep_result': False}).result is None

    def test_a_log_is_its_owners_only(self, construct, tmp_path):
        path = tmp_path / 'logs' / 'log'
        self.run(construct, sh(':'), log=str(path))
        assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)

    def test_output_goes_to_the_log_in_its_order(self, construct, tmp_path):
        (tmp_path / 'log').write_text('earlier\n')
        self.shell(construct, 'for n in 1 2 3; do echo out $n; echo err $n >&2; done', tmp_path)
        assert read(tmp_path / 'log').splitlines() == [
            'earlier', 'out 1', 'err 1', 'out 2', 'err 2', 'out 3', 'err 3']

    @pytest.mark.parametrize('script, code, error', [
        ('exit 3', 3, 'exited with code 3'),
        ('echo no line >&2; exit 1', 1, 'exited with code 1: no line'),
        ('echo a >&2; echo b >&2; echo out; exit 1', 1, 'exited with code 1:\na\nb'),
        ('echo out; exit 1', 1, 'exited with code 1'),
        ('kill -9 $$', -9, 'died: signal SIGKILL'),
        ('echo bad >&2; kill -15 $$', -15, 'died: signal SIGTERM: bad')])
    def test_a_failure_names_code_or_signal_and_the_last_lines(self, construct, tmp_path, script,
                                                               code, error):
        (tmp_path / 'log').write_text('earlier\n')
        outcome = self.shell(construct, script, tmp_path)
        assert (outcome.status, outcome.error, outcome.code) == ('failure', error, code)

    def test_of_stderr_ten_lines_are_shown_and_2000_bytes(self, construct, tmp_path):
        many = self.shell(construct, 'seq 100 >&2; exit 1', tmp_path)
        assert many.error.splitlines()[1:] == [str(n) for n in range(91, 101)]
        long = self.shell(construct, 'printf "\\303\\274%.0s" $(seq 3000) >&2; exit 1', tmp_path)
        assert long.error == 'exited with code 1: ' + '\xfc' * 1000

    def test_what_could_harm_a_terminal_is_escaped(self, construct, tmp_path):
        outcome = self.shell(construct, r"printf '\033[2J\377\tx\ry\n' >&2; exit 1", tmp_path)
        assert outcome.error == 'exited with code 1:\n\\x1b[2J\\xff\tx\ny'

    def test_without_capture_the_streams_are_left_alone(self, construct, tmp_path, capfd):
        construct.close()    # A tender has the streams of the time at which it was made.
        construct.open(construct.port)
        outcome = self.run(construct, sh('echo said; echo bad >&2; exit 1'),
                           log=str(tmp_path / 'log'), config={'capture': 'none'})
        assert capfd.readouterr() == ('said\n', 'bad\n')
        assert not (tmp_path / 'log').exists()
        assert outcome.error == 'exited with code 1'

    def test_a_symbolic_link_in_place_of_a_log_is_not_followed(self, construct, tmp_path):
        (tmp_path / 'precious').write_text('mine')
        (tmp_path / 'log').symlink_to(tmp_path / 'precious')
        outcome = self.shell(construct, 'echo x', tmp_path)
        assert str(tmp_path / 'log') in outcome.error
        assert read(tmp_path / 'precious') == 'mine'

    # What cannot be started

    def test_a_program_that_does_not_exist(self, construct):
        assert self.run(construct, Command('extrct')).error == (
            "there is no program 'extrct' (looked in PATH)")
        assert self.run(construct, Command('/no/extract')).error == (
            "there is no program '/no/extract'")

    def test_a_folder_is_no_program(self, construct, tmp_path):
        assert self.run(construct, Command([tmp_path])).error == (
            '%r is a folder, not a program' % str(tmp_path))

    def test_what_is_not_executable(self, construct, tmp_path):
        path = tmp_path / 'p'
        path.write_text('#!/bin/sh\n')
        path.chmod(0o600)
        assert self.run(construct, Command([path])).error == (
            '%r is not executable (chmod +x)' % str(path))

    @pytest.mark.parametrize('content, words', [
        ('echo no first line', 'begins with #!'), ('#!/no/interpreter\n', 'first line')])
    def test_a_script_that_nothing_can_run(self, construct, tmp_path, content, words):
        path = tmp_path / 'p'
        path.write_text(content)
        path.chmod(0o700)
        assert words in self.run(construct, Command([path])).error

    def test_arguments_that_are_too_long(self, construct):
        assert 'too long' in self.run(construct, Command(['true', 'x' * 3000000])).error

    def test_a_folder_for_cwd_that_does_not_exist(self, construct, tmp_path):
        gone = str(tmp_path / 'gone')
        assert self.run(construct, Command('true', cwd=gone)).error == (
            'the folder %r for cwd does not exist' % gone)
        (tmp_path / 'file').write_text('')
        assert 'not a folder' in self.run(
            construct, Command('true', cwd=tmp_path / 'file')).error

    def test_a_file_for_stdin_that_does_not_exist(self, construct):
        assert self.run(construct, Command('cat', stdin='/no/file')).error == (
            "the file '/no/file' for stdin cannot be opened: No such file or directory")

    def test_a_program_replaced_by_a_folder_between_two_starts(self, construct, tmp_path):
        path = tmp_path / 'p'
        path.write_text('#!/bin/sh\n')
        path.chmod(0o700)
        assert self.run(construct, Command([path])).status == 'success'
        path.unlink()
        path.mkdir()
        assert 'is a folder' in self.run(construct, Command([path])).error

    def test_the_path_of_the_task_counts(self, construct, tmp_path):
        (tmp_path / 'mine').write_text('#!/bin/sh\nexit 7\n')
        (tmp_path / 'mine').chmod(0o700)
        command = Command('mine', env={'PATH': str(tmp_path)}, ok=[7])
        assert pickle.loads(self.run(construct, command).result) == 7

    # What a program finds

    def test_it_has_the_variables_of_the_task_and_its_own(self, construct, tmp_path, monkeypatch):
        monkeypatch.setenv('REMOVED', 'x')
        monkeypatch.setenv('A.ODD%NAME', 'kept')
        job = self.job(Command('env', env={'REMOVED': None, 'ADDED': 'gr\xfcn', 'OF_STEP': '2'}),
                       log=str(tmp_path / 'log'), env={'SEQUENT_STEP_NAME': 'a'},
                       config={'env': {'OF_STEP': '1', 'CONFIGURED': 'y'}})
        self.start(construct, job)
        assert construct.port.outcome(construct, job).status == 'success'
        construct.settle(job)
        found = dict(line.partition('=')[::2] for line in read(tmp_path / 'log').splitlines())
        assert 'REMOVED' not in found
        expected = dict(os.environ, ADDED='gr\xfcn', OF_STEP='2', CONFIGURED='y',
                        SEQUENT_STEP_NAME='a')
        del expected['REMOVED']
        assert {name: found.get(name) for name in expected if '\n' not in expected[name]} == {
            name: value for name, value in expected.items() if '\n' not in value}
        assert set(found) <= set(expected) | {'_'}

    @pytest.mark.parametrize('command, config, expected', [
        (Command('pwd'), {}, ''), (Command('pwd', cwd='b'), {}, 'b'),
        (Command('pwd'), {'cwd': 'a'}, 'a'), (Command('pwd', cwd='b'), {'cwd': 'a'}, 'b')])
    def test_it_runs_in_the_folder_of_the_supervisor_or_in_its_own(
            self, construct, tmp_path, monkeypatch, command, config, expected):
        self.run(construct, contracts.nothing)    # the tender is elsewhere
        for name in 'ab':
            (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path)
        self.run(construct, command, log=str(tmp_path / 'log'), config=config)
        assert read(tmp_path / 'log') == os.path.join(str(tmp_path.resolve()), expected).rstrip(
            '/') + '\n'

    def test_stdin_is_empty_or_a_file(self, construct, tmp_path):
        (tmp_path / 'in').write_text('from a file')
        self.shell(construct, 'cat; echo .', tmp_path)
        self.shell(construct, 'cat', tmp_path, stdin='in', cwd=tmp_path)
        assert read(tmp_path / 'log') == '.\nfrom a file'

    def test_it_has_default_signals_and_a_group_of_its_own(self, construct, tmp_path):
        code = ('import os, signal; print(os.getpgid(0) == %d, '
                'sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))' % os.getpgid(0))
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        try:
            self.run(construct, Command([sys.executable, '-c', code]), log=str(tmp_path / 'log'))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.run(construct, Command('grep SigIgn /proc/self/status'), log=str(tmp_path / 'log'))
        first, second = read(tmp_path / 'log').splitlines()
        assert first == 'False []'
        ignored = int(second.split()[1], 16)
        ours = int(read('/proc/self/status').partition('SigIgn:')[2].split()[0], 16)
        of_python = sum(1 << (number - 1) for number in (signal.SIGPIPE, signal.SIGXFSZ))
        assert ignored & 0x7fffffff == ours & 0x7fffffff & ~of_python    # 32, 33: of the C library

    def test_it_inherits_no_descriptor(self, construct, tmp_path):
        with open(str(tmp_path / 'store'), 'w') as mine:
            os.set_inheritable(mine.fileno(), True)
            self.shell(construct, 'ls /proc/self/fd', tmp_path)
        assert set(read(tmp_path / 'log').split()) == {'0', '1', '2', '3'}    # 3: ls itself

    # Odd programs

    def test_100_mb_and_binary_output_are_taken(self, construct, tmp_path):
        outcome = self.shell(construct, 'head -c 104857600 /dev/zero >&2; exit 1', tmp_path)
        assert (tmp_path / 'log').stat().st_size == 104857600
        assert outcome.error == 'exited with code 1: ' + '\\x00' * 2000

    def test_a_program_that_closes_its_streams_is_not_over(self, construct, tmp_path):
        job = self.job(sh('exec >&- 2>&- <&-; until [ -e "$0" ]; do sleep 0.01; done',
                          str(tmp_path / 'go')), log=str(tmp_path / 'log'))
        self.start(construct, job)
        for _ in range(5):
            construct.port.turn(construct)
        assert job not in construct.port.outcomes
        (tmp_path / 'go').write_text('')
        assert construct.port.outcome(construct, job).status == 'success'
        construct.settle(job)

    def test_what_it_leaves_running_does_not_hide_its_end(self, construct, tmp_path):
        outcome = self.run(construct, sh('sleep 60 & echo $! > "$0"; exit 4',
                                         str(tmp_path / 'pid')))
        pid = int(read(tmp_path / 'pid'))
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)
        assert outcome.error == 'exited with code 4'

    def test_a_kill_waits_for_those_that_ignore_it_until_it_is_by_force(self, construct,
                                                                        tmp_path):
        # The program ends, another of its group stays.
        script = '(trap "" TERM; echo > "$0.in"; while :; do sleep 0.05; done) & wait'
        job = self.job(sh(script, str(tmp_path / 'x')))
        self.start(construct, job)
        wait_until((tmp_path / 'x.in').exists, 'the inner one')
        construct.kill(job, False)
        wait_until(lambda: construct.port.turn(construct) or job.state.reported, 'its end')
        for _ in range(5):
            construct.port.turn(construct)
        assert job not in construct.port.outcomes
        construct.kill(job, True)
        outcome = construct.port.outcome(construct, job)
        construct.settle(job)
        assert outcome.error == 'died: signal SIGTERM'

    def test_one_that_ignores_sigterm_is_killed_by_force(self, construct, tmp_path):
        job = self.job(sh('trap "" TERM; echo > "$0"; while :; do sleep 0.05; done',
                          str(tmp_path / 'x')))
        self.start(construct, job)
        wait_until((tmp_path / 'x').exists, 'the program')
        construct.kill(job, False)
        construct.kill(job, True)
        outcome = construct.port.outcome(construct, job)
        construct.settle(job)
        assert (outcome.error, outcome.code) == ('died: signal SIGKILL', -9)

    def test_a_stopped_program_can_be_killed(self, construct, tmp_path):
        job = self.job(contracts.touch_and_wait, str(tmp_path / 'x'))
        self.start(construct, job)
        wait_until(lambda: (tmp_path / 'x').exists() and read(tmp_path / 'x'), 'the program')
        os.kill(int(read(tmp_path / 'x')), signal.SIGSTOP)
        construct.kill(job, False)
        assert 'SIGTERM' in construct.port.outcome(construct, job).error
        construct.settle(job)

    def test_many_jobs_have_one_outcome_each(self, construct):
        jobs = [self.job(sh('exit %d' % n, ok=range(256)), sequence=str(n)) for n in range(100)]
        self.start(construct, *jobs)
        codes = [pickle.loads(construct.port.outcome(construct, job).result) for job in jobs]
        for job in jobs:
            construct.settle(job)
        assert codes == list(range(100))

    def test_a_flood_in_both_directions_blocks_nobody(self, construct):
        # More than a line holds: an environment each, and refusals.
        jobs = [self.job(Command(['no-such-program', 'x' * 100000]), sequence=str(n))
                for n in range(60)]
        self.start(construct, *jobs)
        for job in jobs:
            assert 'there is no program' in construct.port.outcome(construct, job).error
            construct.settle(job)

    def test_a_path_is_that_from_the_folder_of_the_program(self, construct, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for folder, code in (('.', 1), ('there', 7)):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / 'p').write_text('#!/bin/sh\nexit %d\n' % code)
            (tmp_path / folder / 'p').chmod(0o700)
        for program in ('./p', 'p'):
            command = Command(program, cwd='there', ok=[7], env={'PATH': ':/bin'})
            assert self.run(construct, command).status == 'success'


class TestProgram(ProgramContract):
    """The single file: the child of the task starts the program and waits for it."""

    def make_construct(self):
        return ProcessConstruct()

    def test_close_ends_what_still_runs(self, construct, tmp_path):
        job = self.job(contracts.touch_and_wait, str(tmp_path / 'runs'))
        self.start(construct, job)
        wait_until(lambda: (tmp_path / 'runs').exists() and read(tmp_path / 'runs'), 'its start')
        construct.close()
        construct.open(construct.port)
        wait_gone(int(read(tmp_path / 'runs')))    # It is no child of ours, who could reap it.

    def test_a_signal_to_the_child_alone_reaches_its_group_once(self, construct, tmp_path):
        script = 'trap "echo ended >> $0; exit 3" TERM; echo > "$0"; while :; do sleep 0.05; done'
        job = self.job(sh(script, str(tmp_path / 'x'), ok=[3]))
        self.start(construct, job)
        wait_until((tmp_path / 'x').exists, 'the program')
        construct.kill(job, False)
        assert pickle.loads(construct.port.outcome(construct, job).result) == 3
        construct.settle(job)
        assert read(tmp_path / 'x') == '\nended\n'


class TestTendedProgram(ProgramContract):
    """A program that is started by the tender."""

    def make_construct(self):
        return Tended()

    @pytest.fixture(autouse=True)
    def nothing_of_the_tender_is_left(self, construct, nothing_is_left):
        tender = construct.tender.pid
        yield
        construct.close()
        assert not is_running(tender)
        wait_until(lambda: not session_of(tender), 'the end of all that it started')
        construct.open(construct.port)

    def test_it_is_one_process_that_is_no_child_of_the_supervisor(self, construct, tmp_path):
        self.shell(construct, 'echo $PPID; echo $$ "$(ps -o pgid= -p $$)"', tmp_path)
        parent, own = read(tmp_path / 'log').splitlines()
        assert int(parent) == construct.tender.pid != os.getpid()

    def test_a_pid_that_lives_on_is_told_to_be_stored(self, construct, tmp_path):
        moved = []
        construct.port.moved = moved.append
        job = self.job(contracts.touch_and_wait, str(tmp_path / 'x'))
        self.start(construct, job)
        assert 'program' in json.loads(job.process)
        wait_until(lambda: construct.port.turn(construct) or moved, 'the pid')
        wait_until(lambda: (tmp_path / 'x').exists() and read(tmp_path / 'x'), 'the program')
        identity = json.loads(job.process)
        assert (identity['pid'], identity['keeper']) == (
            int(read(tmp_path / 'x')), construct.tender.pid)
        assert sequent.process_alive(job.process)
        construct.kill(job, True)
        construct.port.outcome(construct, job)
        assert sequent.process_alive(job.process), 'its outcome is not stored yet'
        construct.settle(job)
        wait_until(lambda: not sequent.process_alive(job.process), 'the end of the zombie')

    def test_what_was_open_before_is_not_open_in_a_program(self, construct, tmp_path):
        construct.close()
        with open(str(tmp_path / 'store'), 'w') as mine:
            os.set_inheritable(mine.fileno(), True)
            construct.open(construct.port)
        self.shell(construct, 'ls /proc/self/fd', tmp_path)
        assert set(read(tmp_path / 'log').split()) == {'0', '1', '2', '3'}    # 3: ls itself

    def test_it_leads_a_session_of_its_own(self, construct):
        self.run(construct, contracts.nothing)
        pid = construct.tender.pid
        assert os.getsid(pid) == os.getpgid(pid) == pid

    def test_when_the_tender_dies_its_programs_are_ended_and_it_says_so(self, construct, tmp_path,
                                                                        caplog):
        job = self.job(sh('echo $$ > "$0"; (trap "" TERM HUP; sleep 60) & sleep 60',
                          str(tmp_path / 'x')))
        self.start(construct, job)
        wait_until(lambda: (tmp_path / 'x').exists() and read(tmp_path / 'x'), 'the program')
        pid, tender = int(read(tmp_path / 'x')), construct.tender.pid
        os.kill(tender, signal.SIGKILL)
        outcome = construct.port.outcome(construct, job)
        construct.settle(job)
        assert outcome.status == 'failure'
        assert 'the process that watched over programs died' in outcome.error
        assert not is_running(pid)
        assert session_of(tender) == []
        assert 'SIGKILL' in caplog.text
        assert self.run(construct, contracts.nothing).status == 'success'

    def test_what_was_not_released_when_the_tender_died_runs_again(self, construct, tmp_path):
        job = self.job(contracts.touch, str(tmp_path / 'ran'))
        construct.prepare(job)
        os.kill(construct.tender.pid, signal.SIGKILL)
        wait_until(lambda: not construct.tender.lives(), 'its end')
        construct.release([job])
        outcome = construct.port.outcome(construct, job)
        construct.settle(job)
        assert outcome.lost
        assert not (tmp_path / 'ran').exists()

    def test_a_program_of_a_tender_that_stands_still_can_be_ended(self, construct, tmp_path):
        construct.tender.PATIENCE = 0.05
        job = self.job(contracts.touch_and_wait, str(tmp_path / 'x'))
        self.start(construct, job)
        wait_until(lambda: (tmp_path / 'x').exists() and read(tmp_path / 'x'), 'the program')
        os.kill(construct.tender.pid, signal.SIGSTOP)
        wait_until(lambda: construct.tender.pid in construct.stopped(job), 'its stop')
        construct.kill(job, True)
        assert construct.port.outcome(construct, job).status == 'failure'
        construct.settle(job)
        wait_gone(int(read(tmp_path / 'x')))

    def test_what_is_too_large_for_the_tender_is_started_by_the_supervisor(
            self, construct, tmp_path):
        outcome = self.shell(construct, ': %s\necho $PPID' % ('x' * 100000), tmp_path)
        assert outcome.status == 'success'
        assert int(read(tmp_path / 'log')) != construct.tender.pid


@pytest.mark.long
def test_a_start_is_not_the_supervisors_fork(tmp_path):
    # However large it is: nothing is copied.
    program = tmp_path / 'large.py'
    program.write_text('''
import os, sequent
flow = sequent.Sequent('large', store=':memory:', logging_level=40)
before = ()
for n in range(20):
    before = flow.add_step('s%d' % n, command='true', require=before)
ballast = bytearray(os.urandom(1)) * (1 << 30)
forks = []
os.register_at_fork(before=lambda: forks.append(1)) if hasattr(os, 'register_at_fork') else None
assert flow() is True
assert len(forks) <= 1, 'more than that of the tender'
''')
    subprocess.check_call([sys.executable, '-W', 'error', str(program)])


# Whole flows ######################################################################


def run_flow(store, *commands, **given):
    flow = a_flow(store, 'process', **given)
    for number, command in enumerate(commands):
        flow.add_step('s%d' % number, command=command)
    return flow, flow()


def test_a_program_is_a_step_and_its_exit_code_the_result(store):
    # semantics 19.1
    flow, ok = run_flow(store, ['true'], 'sh -c "exit 0"', Command('sh -c "exit 2"', ok=[2]))
    assert ok is True
    assert [task.result for task in flow.tasks()] == [0, 0, 2]


def test_its_failure_is_that_of_the_step(store):
    # semantics 19.2
    flow, ok = run_flow(store, 'sh -c "echo no line >&2; exit 3"')
    assert ok is False
    assert the_task(flow, 's0').error == 'exited with code 3: no line'


def test_output_is_relayed_and_kept_in_the_log(tmp_path, capfd):
    # semantics 19.5
    flow, ok = run_flow(':memory:', ['echo', 'said'], config={'logdir': str(tmp_path / 'logs')})
    assert ok is True
    assert 'said\n' in capfd.readouterr().err
    assert read(log_of(flow, tmp_path / 'logs', 's0')) == 'said\n'


def test_a_relative_logdir_is_that_of_the_supervisor(tmp_path, monkeypatch):
    (tmp_path / 'in').mkdir()
    monkeypatch.chdir(tmp_path)
    flow, ok = run_flow(':memory:', Command('pwd', cwd='in'), config={'logdir': 'logs'})
    assert ok is True
    assert read(log_of(flow, tmp_path / 'logs', 's0')) == str((tmp_path / 'in').resolve()) + '\n'


def test_the_single_file_runs_programs_by_itself(store, monkeypatch, tmp_path):
    monkeypatch.setattr(sequent, '__path__', [])
    monkeypatch.delitem(sys.modules, 'sequent.tender')
    flow, ok = run_flow(store, 'true', sh('echo bad >&2; exit 3'),
                        config={'logdir': str(tmp_path), 'stop_on_exception': False})
    assert ok is False
    assert the_task(flow, 's1').error == 'exited with code 3: bad'
    assert 'bad' in read(log_of(flow, tmp_path, 's1'))


@pytest.mark.parametrize('construct', ['process', 'inline', 'thread', ProcessConstruct()])
def test_every_construct_runs_programs(construct, tmp_path):
    # semantics 19.6
    logs = tmp_path / 'logs'
    flow = a_flow(':memory:', construct, config={'logdir': str(logs)})
    flow.add_step('a', command='sh -c "echo $SEQUENT_STEP_NAME; echo no line >&2; exit 3"')
    assert flow() is False
    assert the_task(flow, 'a').error == 'exited with code 3:\na\nno line'
    assert read(log_of(flow, logs, 'a')) == 'a\nno line\n'


class MyProcessConstruct(ProcessConstruct):
    pass


def test_a_construct_of_ones_own_is_not_replaced():
    flow = a_flow(':memory:', MyProcessConstruct)
    flow.add_step('a', func=Command(['sh', '-c', 'exit 3'], ok=[3]))
    assert flow() is True
    assert the_task(flow, 'a').result == 3


def test_programs_and_functions_share_a_flow(store):
    flow = a_flow(store, 'process')
    a = flow.add_step('a', func=os.getpid)
    b = flow.add_step('b', command='true', require=a)
    flow.add_step('c', func=os.getpid, require=b)
    flow.add_step('d', command=['sleep', '0.05'], loop=range(3), require=a)
    assert flow() is True
    assert set(flow.tasks()[0]._fields) and multiprocessing.active_children() == []


def test_flows_side_by_side_run_programs(tmp_path):
    results = []

    def work(name):
        flow = a_flow(str(tmp_path / (name + '.db')), 'process', name=name)
        before = ()
        for number in range(10):
            before = flow.add_step('s%d' % number, command=['sh', '-c', 'exit %d' % number],
                                   require=before, func=None) if not number else flow.add_step(
                's%d' % number, func=Command(['sh', '-c', 'exit 0']),
                require=((before, 'complete'),))
        results.append(flow())
    threads = [threading.Thread(target=work, args=(name,)) for name in 'abc']
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 3


def test_a_loop_of_programs_leaves_no_zombie_and_no_descriptor(tmp_path):
    before = descriptors()
    flow = a_flow(':memory:', 'process', config={'logdir': str(tmp_path)})
    flow.add_step('a', command='true', loop=range(50))
    assert flow() is True
    flow.close()
    assert descriptors() - before == set()


@pytest.mark.parametrize('path', [None, '', '/no/python'])
def test_programs_need_no_python_of_their_own(monkeypatch, path):
    monkeypatch.setattr(sys, 'executable', path)
    flow = a_flow(':memory:', 'process')
    flow.add_step('a', command='true', loop=range(5))
    assert flow() is True


def test_an_eventor_runs_programs():
    # semantics 19.6
    flow = sequent.Eventor('e', store=':memory:')
    event = flow.add_event('start')
    flow.add_assoc(event, flow.add_step('a', command=['sh', '-c', 'exit 0']))
    flow.trigger_event(event)
    assert flow() is True


@pytest.mark.parametrize('given, error, words', [
    ({'command': 'p', 'func': print}, TypeError, 'func or command'),
    ({'command': 3}, TypeError, 'must be a list or a str'),
    ({'command': []}, ValueError, 'names no program'),
    ({'command': 'p', 'args': ('x',)}, TypeError, 'stand in its Command'),
    ({'func': Command('p'), 'kwargs': {'x': 1}}, TypeError, 'stand in its Command')])
def test_what_a_step_cannot_be_given_names_the_step(given, error, words):
    for add_step in (a_flow().add_step, sequent.Eventor('e', store=':memory:').add_step):
        with pytest.raises(error) as info:
            add_step('the_step', **given)
        assert words in str(info.value) and "'the_step'" in str(info.value)


@pytest.mark.parametrize('name', ['{day}', '{s0.item}', '{s1.result}'])
@pytest.mark.parametrize('construct', ['process', 'inline'])
def test_a_name_that_nothing_has_is_an_error_before_the_run(name, construct, tmp_path):
    # semantics 19.3
    flow = a_flow(':memory:', construct)
    flow.add_step('first', command=['touch', tmp_path / 'ran'])
    flow.add_step('second', command=['echo', name])
    with pytest.raises(FlowError) as info:
        flow()
    assert str(info.value).startswith("step 'second': ") and name in str(info.value)
    assert not (tmp_path / 'ran').exists()


@pytest.fixture
def parameters(monkeypatch):
    """Declared parameters are forgotten afterwards."""
    monkeypatch.setattr(sequent, '_parameters', sequent._Parameters())


@pytest.mark.parametrize('construct', ['process', 'thread', 'inline'])
def test_names_stand_for_parameters_items_and_results(construct, store, tmp_path, parameters):
    # semantics 19.3
    sequent.parameter('day', default='2026-11-22')
    flow = a_flow(store, construct)
    found = flow.add_step('found', func=str, args=('a file; rm',))
    loop = flow.add_step('loop', loop=['x y', '{day}'])
    inner = loop.add_step('inner', func=len, args=(loop.item,))
    loop.add_step('note', require=inner, func=Command(
        "printf '%s|' {day} {loop.item} {found.result} {inner.result} '{{day}}' >> $OUT",
        shell=True, env={'OUT': str(tmp_path / '{day}.txt')}))
    assert flow() is True
    assert read(tmp_path / '2026-11-22.txt') == (
        '2026-11-22|x y|a file; rm|3|{day}|2026-11-22|{day}|a file; rm|5|{day}|')
    assert found.path == 'found'


@pytest.mark.parametrize('script', [
    'echo "{day}"', "echo '{day}'", 'echo "a\\"{day}"', 'echo $(ls "{day}")', "awk '{n}' f"])
def test_a_name_inside_quotes_of_a_shell_is_refused(script):
    # semantics 19.3
    with pytest.raises(FlowError, match='stands inside quotes'):
        Command(script, shell=True)


@pytest.mark.parametrize('script, where', [
    ('cat <<END\n{day}\nEND', 'here-document'), ('cat <<-"E"; x\n\t{day}\n\tE\n', 'here-document'),
    ('cat <<A <<B\nx\nA\n{day}\nB\n', 'here-document'), ('cat <<END\n{day}', 'here-document'),
    ('(cat << \'E F\'\n{day}\nE F\n)', 'here-document'),
    ('ls # {day}\nls', 'comment'), ('# {day}', 'comment')])
def test_a_name_where_a_shell_does_not_take_it_as_a_word_is_refused(script, where):
    with pytest.raises(FlowError, match='stands in a %s' % where):
        Command(script, shell=True)


@pytest.mark.parametrize('script', [
    'cat <<END {day}\nx\nEND\nls {day}', 'cat <<A <<B\nx\nA\ny\nB\nls {day}', "cat <<< {day}",
    'echo $((1 << 2))\nls {day}', "cat <<'END'\n#\nEND\nls {day}", 'cat <<E\n\'\nE\nls {day}',
    'echo {day} "x" {day}', 'echo "$(date -d {day})"', "# don't\necho {day}",
    "echo it\\'s {day}", "awk '{print $1}' {day}", 'echo "{{day}}"', "(cd 'x' && ls {day})"])
def test_a_name_outside_of_quotes_is_taken(script):
    assert Command(script, shell=True).names() == ({('day', '')} if '{{' not in script else set())


@pytest.mark.parametrize('construct', ['process', 'inline'])
def test_placeholders_stand_in_a_list_and_the_own_item_has_the_steps_name(
        construct, store, tmp_path):
    flow = a_flow(store, construct)
    count = flow.add_step('count', func=len, args=('abc',))
    flow.add_step('each', loop=['a b', '*'], func=Command(
        ['sh', '-c', 'printf "%s," "$@" >> ' + str(tmp_path / 'out'), 'sh',
         sequent.item, '{each.item}', count.result]))
    assert flow() is True
    assert read(tmp_path / 'out') == 'a b,a b,3,*,*,3,'


def test_the_result_of_a_name_is_required_without_saying_so(store):
    flow = a_flow(store)
    flow.add_step('bad', command=['false'])
    flow.add_step('next', command=['echo', '{bad.result}'])
    assert flow() is False
    assert statuses(flow) == {'bad': 'failure'}


def test_the_results_of_programs_in_a_loop_are_their_exit_codes(store):
    flow = a_flow(store)
    each = flow.add_step('each', loop=[0, 3, 1], config={'max_concurrent': 2},
                         func=Command(['sh', '-c', 'exit {each.item}'], ok=range(4)))
    flow.add_step('sum', func=sum, args=(each.result,))
    assert flow() is True
    assert the_task(flow, 'sum').result == 4


def test_a_name_is_looked_for_beside_a_step_then_further_out_then_by_its_path(store, tmp_path):
    flow = a_flow(store)
    flow.add_step('one', func=str, args=('outer',))
    box = flow.add_step('box')
    box.add_step('one', func=str, args=('inner',))
    box.add_step('near', command=['sh', '-c', 'echo "$@" > ' + str(tmp_path / 'near'), 'sh',
                                  '{one.result}'])
    flow.add_step('far', command=['sh', '-c', 'echo "$@" > ' + str(tmp_path / 'far'), 'sh',
                                  '{one.result} {box_one.result}'])
    assert flow() is True
    assert read(tmp_path / 'near') == 'inner\n'
    assert read(tmp_path / 'far') == "outer ['inner']\n"


@pytest.mark.parametrize('construct', ['process', 'inline'])
def test_a_failed_program_is_tried_again_by_its_exit_code(construct, store, tmp_path):
    # semantics 4.8, 19.5
    flow = a_flow(store, construct)
    flow.add_step('a', command=['sh', '-c', 'echo x >> %s; exit 3' % (tmp_path / 'a')],
                  config={'retries': 2, 'retry_on': 3, 'stop_on_exception': False})
    flow.add_step('b', command=['sh', '-c', 'echo x >> %s; exit 4' % (tmp_path / 'b')],
                  config={'retries': 2, 'retry_on': 3, 'stop_on_exception': False})
    assert flow() is False
    assert (read(tmp_path / 'a'), read(tmp_path / 'b')) == ('x\n' * 3, 'x\n')


def test_a_program_is_ended_after_its_timeout(store):
    # semantics 19.5
    flow = a_flow(store, 'process')
    flow.add_step('a', command=['sleep', '60'], config={'timeout': 0.2})
    assert flow() is False
    assert the_task(flow, 'a').error == 'timed out after 0.2 s'


def test_a_secret_in_what_a_program_says_is_masked_in_the_store(store, parameters, monkeypatch):
    monkeypatch.setenv('SEQUENT_PARAM_PASSWORD', 'Sesame!')
    sequent.parameter('password', secret=True)
    flow = a_flow(store)
    flow.add_step('a', func=Command('echo no {password} >&2; exit 1', shell=True))
    assert flow() is False
    assert the_task(flow, 'a').error == 'exited with code 1: no ***'


def test_an_eventor_takes_parameters_but_no_items_or_results(store, parameters, tmp_path):
    sequent.parameter('day', default='7')
    flow = sequent.Eventor('etl', store=store)
    with pytest.raises(FlowTypeError):
        flow.add_step('x', command=['echo', '{a.result}'])
    event = flow.add_event('go')
    flow.add_assoc(event, flow.add_step('a', command=['touch', str(tmp_path / '{day}')]))
    flow.trigger_event(event)
    assert flow() is True
    assert (tmp_path / '7').exists()


def test_list_shows_a_program_as_its_template(tmp_path):
    (tmp_path / 'etl.py').write_text(
        'import sequent\nflow = sequent.Sequent()\n'
        "flow.add_step('a', command=['extract', '--db', 'x y'])\n"
        "flow.add_step('b', func=sequent.Command('a |\\nb', shell=True))\n")
    done = subprocess.run([sys.executable, '-m', 'sequent', 'etl.py', 'list'], cwd=str(tmp_path),
                          stdout=subprocess.PIPE, universal_newlines=True, check=True)
    assert "a: runs extract --db 'x y'\n" in done.stdout
    assert 'b: runs a | b\n' in done.stdout


def test_an_environment_of_bytes_that_are_no_text_reaches_the_program(monkeypatch, tmp_path):
    monkeypatch.setitem(os.environb, b'RAW', b'\xff')
    flow, ok = run_flow(':memory:', 'sh -c "printf %s \\"$RAW\\""',
                        config={'logdir': str(tmp_path)})
    assert ok is True
    with open(log_of(flow, tmp_path, 's0'), 'rb') as log:
        assert log.read() == b'\xff'


# Supervisors that are killed ######################################################

@pytest.fixture(params=['alone', 'tended'])
def way(request, monkeypatch):
    """Let the flows of a test have a tender or not, which they are too small for."""
    monkeypatch.setenv('TENDED', 'yes' if request.param == 'tended' else '')
    return request.param


@pytest.fixture
def tended(monkeypatch):
    monkeypatch.setenv('TENDED', 'yes')


def task_pid(journal, way):
    """Return the pid of what runs step a: the program, or the child that waits for it."""
    pid = journal.pid('a')
    return pid if way == 'tended' else os.getsid(pid)


#: Notes its pid and that it runs, and waits for a gate.
WORK = '''
if os.environ['TENDED']:
    import sequent.tender
    seq.tender.Tender.WORTH = 1
WORK = r"""
echo "$1 $$ $(cut -d" " -f22 /proc/$$/stat)" >> "$0/pids"
echo $1 >> "$0/journal"
until [ -e "$0/gate-$1" ] || [ -e "$0/gate-all" ]; do sleep 0.02; done
echo done-$1 >> "$0/journal"
exit ${2-0}
"""
def work(name, *code, **given):
    return seq.Command(('sh', '-c', WORK, FOLDER, name) + code, **given)
'''


def stored_process(programs):
    """Return what is stored of the process of step a."""
    with contextlib.closing(sequent.SqliteStore(programs.store_path)) as store:
        store.open(create=False)
        return json.loads([task.process for task in store.tasks(store.latest('etl'))][0] or '{}')


@pytest.mark.parametrize('when', ['at once', 'once its pid is stored'])
@pytest.mark.parametrize('code', ['0', '3'])
def test_a_program_that_ends_without_supervisor_is_not_run_again(
        way, programs, journal, code, when):
    # semantics 7.6, 19.4: killing the supervisor costs no finished task
    programs.write(WORK + '''
flow = make()
a = flow.add_step('a', func=work('a', %r))
flow.add_step('b', func=work('b'), require=((a, 'complete'),), handles=True)
leave(flow)
''' % code)
    supervisor = programs.start()
    journal.wait_for('a')
    if when != 'at once' and way == 'tended':
        wait_until(lambda: 'keeper' in stored_process(programs), 'its pid')
    supervisor.kill()
    supervisor.wait()
    journal.open('a')
    wait_gone(journal.pid('a'))
    wait_until(programs.outcomes, 'its outcome')
    journal.open('b')
    assert programs.run('recover' if code == '0' else 'continue') == 0
    assert journal.words() == ['a', 'done-a', 'b', 'done-b']
    assert programs.last('a') == ('success' if code == '0' else 'failure')
    assert programs.outcomes() == []


@pytest.mark.parametrize('when', ['at once', 'once its pid is stored'])
def test_an_orphan_that_still_runs_is_adopted(way, programs, journal, when):
    # semantics 7.6, 19.4
    programs.write(WORK + '''
flow = make()
flow.add_step('a', func=work('a'))
leave(flow)
''')
    supervisor = programs.start()
    journal.wait_for('a')
    if when != 'at once' and way == 'tended':
        wait_until(lambda: 'keeper' in stored_process(programs), 'its pid')
    supervisor.kill()
    supervisor.wait()
    recovery = programs.start('recover')
    recovery.wait_for('still runs as process %d' % task_pid(journal, way))
    journal.open('a')
    assert recovery.wait() == 0
    assert journal.words() == ['a', 'done-a']
    folder = programs.store_path + '.outcomes'
    assert [names for _, _, names in os.walk(folder) if names] == []


def test_a_new_run_is_refused_while_an_orphan_lives(way, programs, journal):
    # semantics 6.5
    programs.write(WORK + '''
flow = make()
flow.add_step('a', func=work('a'))
leave(flow)
''')
    supervisor = programs.start()
    journal.wait_for('a')
    supervisor.kill()
    supervisor.wait()
    second = programs.start()
    assert second.wait() == 1
    assert "step 'a' at 1" in second.errors()
    assert 'process %d since' % task_pid(journal, way) in second.errors()


def test_an_adopted_program_can_be_ended(way, programs, journal):
    programs.write(WORK + '''
flow = make()
flow.add_step('a', func=work('a'))
if MODE == 'recover':
    flow.add_step('b', func=work('b'))
leave(flow)
''')
    supervisor = programs.start()
    journal.wait_for('a')
    supervisor.kill()
    supervisor.wait()
    recovery = programs.start('recover')
    journal.wait_for('b')
    recovery.kill(signal.SIGTERM)
    assert recovery.wait() == 143
    wait_gone(journal.pid('a'))


def test_nothing_runs_of_what_was_not_released(way, programs, journal):
    # semantics 7.6, 19.4: killed between the commit and the release, beside one that runs on
    programs.write(WORK + '''
flow = make()
a = flow.add_step('a', func=work('a'))
b = flow.add_step('b', func=work('b'), require=((a, 'active'),))
release = seq.ProcessConstruct.release
def kill_before_b(self, jobs):
    release(self, [job for job in jobs if job.name != 'b'])
    if 'b' in [job.name for job in jobs]:
        journal.pid('a')
        kill_me()
if MODE == 'restart':
    seq.ProcessConstruct.release = kill_before_b
leave(flow)
''')
    assert programs.run() == -9
    assert programs.last('b') == 'active'
    journal.wait_for('a')
    journal.open('all')
    assert programs.run('recover') == 0
    assert journal.count('a') == journal.count('b') == 1


def test_an_outcome_that_was_told_and_not_stored_is_left(way, programs, journal):
    programs.write(WORK + '''
flow = make()
flow.add_step('a', func=work('a'))
if MODE == 'restart':
    seq.ProcessConstruct._finish = lambda *args: kill_me()
journal.open('a')
leave(flow)
''')
    assert programs.run() == -9
    wait_until(programs.outcomes, 'its outcome')
    assert programs.run('recover') == 0
    assert journal.words() == ['a', 'done-a']


def test_an_orphan_whose_tender_is_killed_too_is_still_found(tended, programs, journal):
    programs.write(WORK + '''
flow = make()
flow.add_step('a', func=work('a'))
leave(flow)
''')
    supervisor = programs.start()
    journal.wait_for('a')
    wait_until(lambda: 'keeper' in stored_process(programs), 'its pid')
    tender = os.getsid(journal.pid('a'))
    supervisor.kill()
    supervisor.wait()
    os.kill(tender, signal.SIGKILL)
    recovery = programs.start('recover')
    recovery.wait_for('it is adopted')
    journal.open('a')
    recovery.wait()
    # If it ends before it is watched, nobody knows how it ended: it runs again, but not beside.
    assert journal.words() in (['a', 'done-a'], ['a', 'done-a'] * 2)


def test_no_second_copy_runs_beside_the_first_whoever_is_killed(tended, programs, journal):
    # semantics 7.6, 19.4: nobody is left who could say which process it is
    programs.write(WORK + '''
seq._DriverPort.moved = lambda *args: None
flow = make()
flow.add_step('a', func=work('a'))
leave(flow)
''')
    supervisor = programs.start()
    journal.wait_for('a')
    tender = os.getsid(journal.pid('a'))
    supervisor.kill(signal.SIGSTOP)
    os.kill(tender, signal.SIGKILL)
    supervisor.kill()
    supervisor.wait()
    recovery = programs.start('recover')
    recovery.wait_for('it is adopted')
    journal.open('a')
    recovery.wait()
    assert journal.words() in (['a', 'done-a'], ['a', 'done-a'] * 2)


def test_a_tender_ends_with_its_last_program(tended, programs, journal):
    programs.write(WORK + '''
flow = make()
flow.add_step('a', func=work('a'))
leave(flow)
''')
    supervisor = programs.start()
    journal.wait_for('a')
    tender = os.getsid(journal.pid('a'))
    supervisor.kill()
    supervisor.wait()
    assert is_running(tender)
    journal.open('a')
    wait_gone(tender)


def test_sigterm_to_the_supervisor_ends_programs_and_is_no_failure(way, programs, journal):
    # semantics 8.3
    programs.write(WORK + '''
flow = make()
flow.add_step('a', func=work('a'))
leave(flow)
''')
    supervisor = programs.start()
    journal.wait_for('a')
    supervisor.kill(signal.SIGTERM)
    assert supervisor.wait() == 143
    assert not is_running(journal.pid('a'))
    assert programs.last('a') == 'active'


# Config cwd and env ###############################################################


def place():
    return os.getcwd(), os.environ.get('PLACE'), os.environ.get('REMOVED')


@pytest.fixture
def placed(tmp_path, monkeypatch):
    monkeypatch.setenv('REMOVED', 'x')
    monkeypatch.delenv('PLACE', raising=False)
    (tmp_path / 'there').mkdir()
    return {'cwd': str(tmp_path / 'there'), 'env': {'PLACE': 'y', 'REMOVED': None}}


@pytest.mark.parametrize('given', [
    {'task_construct': 'inline'}, {'start_method': 'fork'}, {'start_method': 'spawn'}])
def test_functions_have_the_folder_and_variables_of_config(given, placed, tmp_path):
    # semantics 4.15
    before = place()
    flow = a_flow(':memory:', 'process', config=dict(placed, **given))
    flow.add_step('a', func=place)
    flow.add_step('b', func=place, config={'cwd': str(tmp_path), 'env': {}})
    assert flow() is True
    assert the_task(flow, 'a').result == (
        os.path.realpath(placed['cwd']), 'y', None)
    assert the_task(flow, 'b').result == (os.path.realpath(str(tmp_path)), None, 'x')
    assert place() == before


def test_programs_have_them_too_and_their_own_count_more(placed, tmp_path):
    # semantics 4.15
    flow = a_flow(':memory:', 'process', config=dict(placed, logdir=str(tmp_path / 'logs')))
    flow.add_step('a', command=['sh', '-c', 'pwd; echo $PLACE'])
    flow.add_step('b', func=sh('pwd; echo $PLACE', cwd=tmp_path, env={'PLACE': 'z'}))
    assert flow() is True
    assert read(log_of(flow, tmp_path / 'logs', 'a')) == '%s\ny\n' % os.path.realpath(
        placed['cwd'])
    assert read(log_of(flow, tmp_path / 'logs', 'b')) == '%s\nz\n' % os.path.realpath(
        str(tmp_path))


@pytest.mark.parametrize('construct', ['inline', 'process'])
def test_a_missing_folder_fails_the_task(construct, tmp_path):
    before = os.getcwd()
    flow = a_flow(':memory:', construct)
    flow.add_step('a', func=place, config={'cwd': str(tmp_path / 'gone')})
    assert flow() is False
    assert the_task(flow, 'a').error == (
        'the folder %r for cwd does not exist' % str(tmp_path / 'gone'))
    assert os.getcwd() == before


@pytest.mark.parametrize('given', [{'cwd': '/'}, {'env': {'A': 'b'}}])
def test_threads_cannot_have_them(given):
    # semantics 4.15
    flow = a_flow(':memory:', 'thread')
    flow.add_step('the_step', func=place, config=given)
    with pytest.raises(ConfigError) as info:
        flow()
    assert "step 'the_step': config %s" % list(given)[0] in str(info.value)


def test_an_inline_function_that_fails_leaves_the_place_as_it_was(placed):
    # semantics 4.15
    before = place()
    flow = a_flow(':memory:', 'inline', config=placed)
    flow.add_step('a', func=int, args=('x',))
    assert flow() is False
    assert place() == before
