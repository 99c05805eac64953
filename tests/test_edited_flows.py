"""Flows that are edited between run and recovery (semantics 7.4), and what a dry run says of them:
the same that then happens, and nothing is changed by it."""

import json
import logging
import os
import random
import re
import signal

import pytest
import sample

import sequent
from sequent import AlreadyRunningError, MemoryStore, or_
from sequent.dry_run import preview
from runtools import (  # noqa: F401 (fixtures)
    a_flow, a_private_temporary_folder, Calls, fail, journal, programs, records_of, statuses,
    store, wait_gone)

MODES = ['recover', 'continue']


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


class Stoppable(Calls):
    """Notes calls; while ``stops`` is true a call from step c ends the run."""

    stops = False

    def __call__(self, *args):
        if self.stops and sequent.current().name == 'c':
            interrupt()
        return Calls.__call__(self, *args)


class Edited:
    """A flow of three steps and a loop, made anew for each run.

    Its third step is interrupted in the first run, when 'a', the loop and 'b' have succeeded.
    """

    def __init__(self, store):
        self.store = store
        self.calls = Stoppable()

    def make(self, edit=None, mode='restart'):
        flow = a_flow(self.store, mode=mode, config={'synchronous': 'off'})
        add = {
            'a': lambda: flow.add_step('a', func=self.calls),
            'each': lambda: flow.add_step('each', loop=['x', 'y', 'z'],
                                          require=steps.get('a', ())),
            'b': lambda: flow.add_step('b', func=self.calls, require=steps.get('each', ())),
            'c': lambda: flow.add_step('c', func=self.calls,
                                       require=steps.get('b', ())),
            'd': lambda: flow.add_step('d', func=self.calls, require=steps.get('c', ())),
        }
        steps = {}
        order = edit(flow, add, steps, self.calls) if edit else None
        for name in order or ['a', 'each', 'b', 'c', 'd']:
            steps[name] = add[name]()
            if name == 'each' and not steps[name].children and steps[name].func is None:
                steps[name].add_step('w', func=self.calls)
        return flow

    def interrupted(self):
        """Run the flow as it was, until its third step."""
        self.calls.stops = True
        with pytest.raises(KeyboardInterrupt):
            self.make()()
        self.calls.stops = False
        assert self.calls.names == ['a', 'each_w', 'each_w', 'each_w', 'b']
        self.calls.calls = []


def foreseen(flow):
    """Return [(path, sequence, action, why)] of a dry run of a flow."""
    with preview(flow) as dry:
        return [(one.path, one.sequence, one.action, one.why) for one in dry.foresee()]


def would_run(flow):
    """Return the (path, sequence) of the leaves that a dry run says would run."""
    return [one[:2] for one in foreseen(flow) if one[2] == 'runs']


def warnings(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING
            and 'since the run' in one.getMessage()]


# Each edit: how the flow is made instead; what is run, apart from c and d; what is said, and the
# reason of what is run.

def unedited(flow, add, steps, calls):
    pass


def a_step_added(flow, add, steps, calls):
    add['n'] = lambda: flow.add_step('n', func=calls, require=steps['a'])
    return ['a', 'each', 'b', 'n', 'c', 'd']


def a_step_removed(flow, add, steps, calls):
    return ['each', 'b', 'c', 'd']


def a_step_renamed(flow, add, steps, calls):
    add['b'] = lambda: flow.add_step('bb', func=calls, require=steps['each'])


def a_step_rewired(flow, add, steps, calls):
    add['b'] = lambda: flow.add_step('b', func=calls, require=or_(steps['a'],
                                                                 (steps['each'], 'complete')))


def a_requirement_written_otherwise(flow, add, steps, calls):
    event = flow.add_event
    add['b'] = lambda: flow.add_step('b', func=calls,
                                     require=(event((steps['each'], 'success')), steps['each']))


def another_function(flow, add, steps, calls):
    def other():
        return calls()
    add['a'] = lambda: flow.add_step('a', func=other)


def an_item_added_in_the_middle(flow, add, steps, calls):
    add['each'] = lambda: flow.add_step('each', loop=['x', 'new', 'y', 'z'], require=steps['a'])


def an_item_added_at_the_end(flow, add, steps, calls):
    add['each'] = lambda: flow.add_step('each', loop=['x', 'y', 'z', 'new'], require=steps['a'])


def an_item_removed(flow, add, steps, calls):
    add['each'] = lambda: flow.add_step('each', loop=['x', 'z'], require=steps['a'])


def items_in_another_order(flow, add, steps, calls):
    add['each'] = lambda: flow.add_step('each', loop=['y', 'x', 'z'], require=steps['a'])


def a_leaf_made_a_container(flow, add, steps, calls):
    def container():
        step = flow.add_step('b', require=steps['each'])
        step.add_step('in', func=calls)
        return step
    add['b'] = container


def a_container_made_a_leaf(flow, add, steps, calls):
    add['each'] = lambda: flow.add_step('each', func=calls, require=steps['a'])


INTERRUPTED = 'it was interrupted in recovery 0: KeyboardInterrupt'
ANOTHER = 'its loop item is another one'
W = 'each_w'
EDITS = [
    (unedited, [], []),
    (a_step_added, [('n', '1', 'it is new')], ['are new since .*: n$']),
    (a_step_removed, [], ['are gone since .*: a$', r'require .*: each \(nothing; it was a\)$']),
    (a_step_renamed, [('bb', '1', 'it is new')],
     ['are gone since .*: b$', 'are new since .*: bb$', r'require .*: c \(bb; it was b\)$']),
    (a_step_rewired, [],
     [r'require something else .*: b \(\(each, complete\) or a; it was each\)$']),
    (a_requirement_written_otherwise, [], []),
    (another_function, [],
     [r'call something else .*: a \(another_function.<locals>.other\(\); it was Stoppable\)$']),
    (an_item_added_in_the_middle, [(W, '1.2', ANOTHER), (W, '1.3', ANOTHER),
                                   (W, '1.4', 'it was not started')],
     ['have another loop since .*: each$']),
    (an_item_added_at_the_end, [(W, '1.4', 'it was not started')],
     ['have another loop since .*: each$']),
    (an_item_removed, [(W, '1.2', ANOTHER)], ['have another loop since .*: each$']),
    (items_in_another_order, [(W, '1.1', ANOTHER), (W, '1.2', ANOTHER)],
     ['have another loop since .*: each$']),
    (a_leaf_made_a_container, [('b_in', '1.1', 'it is new')],
     ['are new since .*: b_in$', 'of another kind now since .*: b$',
      r'call something else .*: b \(nothing; it was Stoppable\)']),
    (a_container_made_a_leaf, [('each', '1', 'it is of another kind now')],
     ['are gone since .*: each_w$', 'of another kind now since .*: each$',
      r'call something else .*: each \(Stoppable; it was nothing\)', 'another loop .*: each$']),
]
#: These make a run that is continued fail: it goes on with the same items (semantics 7.5).
NOT_CONTINUED = [an_item_added_in_the_middle, an_item_removed, items_in_another_order]


def names(one):
    return one.__name__ if callable(one) else one if isinstance(one, str) else ''


@pytest.mark.parametrize('mode, edit, ran, said', [
    (mode,) + edit for mode in MODES for edit in EDITS
    if mode == 'recover' or edit[0] not in NOT_CONTINUED], ids=names)
def test_an_edit_is_said_first_foreseen_and_runs_what_is_not_done(
        mode, edit, ran, said, store, caplog):  # noqa: F811
    # semantics 7.4, 7.8, 7.9
    edited = Edited(store)
    edited.interrupted()
    caplog.clear()

    found = foreseen(edited.make(edit, mode))
    predicted = warnings(caplog)
    assert edited.calls.calls == []
    caplog.clear()
    assert edited.make(edit, mode)() is True

    runs = [(path, at, why) for path, at, action, why in found if action == 'runs']
    assert sorted(runs) == sorted(ran + [('c', '1', INTERRUPTED),
                                         ('d', '1', 'it was not started')])
    assert sorted(edited.calls.calls) == sorted(one[:2] for one in runs)
    named = [one for one in predicted if re.match('steps that are (gone|new|of another)', one)]
    assert warnings(caplog) == named    # A dry run says more than a run does.
    assert len(predicted) == len(said)
    for sentence, pattern in zip(predicted, said):
        assert re.search(pattern, sentence), (sentence, pattern)


@pytest.mark.parametrize('edit', NOT_CONTINUED, ids=names)
def test_a_dry_run_says_that_a_run_cannot_be_continued_with_other_items(edit, store):  # noqa: F811
    # semantics 7.5
    edited = Edited(store)
    edited.interrupted()

    found = [one for one in foreseen(edited.make(edit, 'continue')) if one[2] == 'fails']

    assert edited.make(edit, 'continue')() is False
    assert [one[0] for one in found] == ['each']
    assert 'goes on with the same items; recover it' in found[0][3]
    assert edited.calls.calls == []


def test_a_run_whose_plan_was_not_kept_says_nothing_of_requirements_and_loops(
        store, caplog):  # noqa: F811
    # semantics 7.8
    edited = Edited(store)
    edited.interrupted()
    flow = edited.make()
    kept = flow.open_store()
    run = kept.latest('etl')
    steps = {one['path']: one for one in json.loads(kept.plan(run))['steps']}
    assert (steps['b']['require'], steps['b']['calls']) == (['each', 'success'], 'Stoppable')
    kept.begin(run._replace(plan=None))
    kept.finish(run._replace(plan=None))
    flow.close_store()
    caplog.clear()

    foreseen(edited.make(a_step_rewired, 'recover'))

    assert warnings(caplog) == []
    assert edited.make(a_step_rewired, 'recover')() is True
    assert edited.calls.names == ['c', 'd']


def test_a_long_requirement_is_shown_in_short_and_compared_as_a_whole(caplog):
    kept, calls = MemoryStore(), Calls()

    def make(mode, last, end):
        flow = a_flow(kept, mode=mode)
        steps = [flow.add_step('step%03d' % n, func=calls) for n in range(100)]
        flow.add_step('end', func=end, require=steps[:98] + [steps[last]])
        return flow
    assert make('restart', 98, fail)() is False

    foreseen(make('recover', 99, calls))

    said, _ = warnings(caplog)
    assert 'end (step000 and' in said and len(said) < 600


def test_what_is_recorded_of_a_program_does_not_show_its_text():
    kept = MemoryStore()
    flow = a_flow(kept)
    flow.add_step('a', command='echo hunter2 >/dev/null')
    assert flow() is True
    plan = kept.plan(kept.latest('etl'))
    assert 'hunter2' not in plan + kept.latest('etl').steps
    assert 'program' in plan


# Dry runs

def everything_in(folder):
    """Return {path: what is there, to the byte, with its mode and times}."""
    found = {}
    for place, folders, files in os.walk(str(folder)):
        for name in folders + files:
            path = os.path.join(place, name)
            state = os.lstat(path)
            content = None
            if name in files:
                with open(path, 'rb') as stream:
                    content = stream.read()
            found[path] = state.st_mode, state.st_ino, state.st_mtime_ns, content
    return found


def test_a_new_run_is_foreseen_without_making_a_store(tmp_path):
    # semantics 7.9
    edited = Edited(str(tmp_path / 'etl.db'))
    before = everything_in(tmp_path)

    found = foreseen(edited.make())

    assert everything_in(tmp_path) == before
    assert [one[:3] for one in found] == [
        ('a', '1', 'runs'), ('each', '1', 'enters'), (W, '1.1', 'runs'), (W, '1.2', 'runs'),
        (W, '1.3', 'runs'), ('b', '1', 'runs'), ('c', '1', 'runs'), ('d', '1', 'runs')]
    assert {one[3] for one in found} == {'new run'}


@pytest.mark.parametrize('mode', MODES)
def test_a_dry_run_leaves_a_file_store_as_it_is(mode, tmp_path):
    # semantics 7.9
    edited = Edited(str(tmp_path / 'etl.db'))
    edited.interrupted()
    before = everything_in(tmp_path)

    found = foreseen(edited.make(a_step_added, mode))

    assert everything_in(tmp_path) == before
    assert [one for one in found if one[2] == 'skipped'] == [
        (path, '1', 'skipped', 'it succeeded in recovery 0') for path in ('a', 'each', 'b')]
    with edited.make(mode=mode) as flow:    # and no lock is left
        assert flow() is True


ORPHAN = '''
    def one():
        journal.sign('a')
        journal.pass_gate('go')
        if os.environ.get('FAIL'):
            raise ValueError('on purpose')
        return 'x' * 100000
    def show(flow):
        from sequent.dry_run import preview
        with preview(flow) as dry:
            for one in dry.foresee():
                print(one.path, one.action, one.why, sep='|')
    flow = make(mode=MODE.split('-')[-1])
    a = flow.add_step('a', func=one)
    flow.add_step('c', func=journal.note, args=('c',), require=(a,))
    flow.add_step('r', func=journal.note, args=('r',), require=(a, 'failure'), handles=True)
    if MODE.startswith('dry-'):
        show(flow)
    else:
        leave(flow)
    '''


def shown(programs, mode):  # noqa: F811
    """Return [[path, action, why]] that the program prints in a dry run."""
    path = os.path.join(programs.folder, 'shown')
    with open(path, 'w') as stream:
        assert programs.run('dry-' + mode, stdout=stream) == 0
    with open(path) as stream:
        return [line.split('|') for line in stream.read().splitlines()]


def left(programs):  # noqa: F811
    """Return what is in the folders of the store."""
    return {path: one for path, one in everything_in(programs.folder).items()
            if os.path.basename(path).startswith('etl.db') or 'etl.db.' in path}


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('environment, expected', [
    ({}, [['a', 'skipped', 'it succeeded in recovery 0'],
          ['c', 'runs', 'it was not started'],
          ['r', 'waits', 'it is not reached if all goes well']]),
    ({'FAIL': '1'}, None)], ids=['success', 'failure'])
def test_a_dry_run_counts_what_an_orphan_left_and_leaves_it_there(
        environment, expected, mode, programs, journal):  # noqa: F811
    # semantics 7.6
    programs.write(ORPHAN)
    pid = programs.leave_orphan(environment=environment)
    journal.open('go')
    wait_gone(pid)
    before = left(programs)
    assert len(programs.outcomes()) == 1

    found = shown(programs, mode)

    assert left(programs) == before
    if expected is None:
        expected = {
            'recover': [['a', 'runs', 'it failed in recovery 0: ValueError: on purpose'],
                        ['c', 'runs', 'it was not started'],
                        ['r', 'waits', 'it is not reached if all goes well']],
            'continue': [['a', 'failed', 'it failed in recovery 0, which a run that is continued '
                          'leaves so: ValueError: on purpose'],
                         ['r', 'runs', 'it was not started'],
                         ['c', 'waits', 'it is not reached if all goes well']]}[mode]
    assert sorted(found) == sorted(expected)
    assert programs.run(mode) == 0
    assert journal.words() == [one[0] for one in found if one[1] == 'runs' and one[0] != 'a']


def test_a_dry_run_says_that_a_living_orphan_would_be_adopted(programs, journal):  # noqa: F811
    # semantics 7.6
    programs.write(ORPHAN)
    pid = programs.leave_orphan()
    before = left(programs)

    found = shown(programs, 'recover')
    programs.write(ORPHAN.replace("'a', func", "'aa', func"))
    edited = shown(programs, 'recover')

    assert left(programs) == before
    assert found[0][:2] == ['a', 'adopted']
    assert found[0][2].startswith('still runs as process %d since ' % pid)
    assert found[1][:2] == ['c', 'runs']
    assert edited[-1][:2] == ['a', 'adopted'] and 'does not come to it' in edited[-1][2]
    assert edited[0] == ['aa', 'runs', 'it is new']


def test_a_supervisor_at_work_is_said_and_not_disturbed(programs, journal):  # noqa: F811
    programs.write(ORPHAN)
    supervisor = programs.start()
    journal.pid('a')

    for mode in ('recover', 'continue', 'restart'):
        refused = programs.start('dry-' + mode)
        assert refused.wait() == 1
        assert 'AlreadyRunningError' in refused.errors()
        assert 'pid %d' % supervisor.pid in refused.errors()

    journal.open('go')
    assert supervisor.wait() == 0


def test_a_new_run_beside_an_orphan_is_refused_by_a_dry_run(programs, journal):  # noqa: F811
    # semantics 6.5
    programs.write(ORPHAN)
    programs.leave_orphan()
    before = left(programs)

    refused = programs.start('dry-restart')

    assert refused.wait() == 1
    assert 'cannot start anew' in refused.errors()
    assert left(programs) == before


def test_a_dry_run_leaves_a_run_recorded_as_active_that_is_none(tmp_path):
    # semantics 6.5
    path = str(tmp_path / 'etl.db')
    flow = a_flow(path)
    flow.add_step('a', func=fail)
    assert flow() is False
    kept = flow.open_store()
    process = dict(json.loads(sequent.process_identity()), start=1)
    kept.begin(kept.latest('etl')._replace(status='active', process=json.dumps(process)))
    flow.close_store()
    again = a_flow(path)
    again.add_step('a', func=fail)
    before = everything_in(tmp_path)

    assert would_run(again) == [('a', '1')]

    assert everything_in(tmp_path) == before


def test_loops_that_are_found_by_running_are_not_called(store):  # noqa: F811
    # semantics 7.9
    calls = Calls()

    def make(mode, func):
        flow = a_flow(store, mode=mode)
        one = flow.add_step('one', func=lambda: calls() and [1, 2])
        two = flow.add_step('two', loop=one.result, require=one)
        two.add_step('in', func=calls)
        three = flow.add_step('three', loop=lambda: calls() and [1, 2] if calls else (),
                              require=two)
        three.add_step('in', func=func)
        flow.add_step('end', func=calls, require=three)
        return flow
    new = foreseen(make('restart', calls))
    assert calls.calls == []
    loops = {one[0]: one for one in new if one[2] == 'loops'}
    assert loops['two'][3] == 'its items are known only once one has run; in it: in'
    assert loops['three'][3].startswith('its items are known only once it runs')
    assert [one[:3] for one in new][-1] == ('end', '1', 'runs')


def test_recorded_items_of_a_loop_that_is_found_by_running_are_gone_over():
    kept, calls = MemoryStore(), Calls()

    def make(mode, func):
        flow = a_flow(kept, mode=mode)
        loop = flow.add_step('loop', loop=lambda: [1, 2, 3])
        loop.add_step('in', func=func)
        return flow

    def second():
        if sequent.current().item == 2:
            interrupt()
    with pytest.raises(KeyboardInterrupt):
        make('restart', second)()

    found = foreseen(make('recover', calls))

    assert [one[:3] for one in found] == [
        ('loop', '1', 'enters'), ('loop_in', '1.1', 'skipped'), ('loop_in', '1.2', 'runs'),
        ('loop', '1.3', 'loops')]
    assert make('recover', calls)() is True
    assert [one[1] for one in calls.calls] == ['1.2', '1.3']


class Endless:
    def __iter__(self):
        number = 0
        while True:
            yield number
            number += 1


@pytest.mark.parametrize('loop', [Endless(), range(10 ** 9)], ids=['endless', 'long'])
def test_an_endless_loop_is_cut_off(loop):
    flow = a_flow()
    outer = flow.add_step('outer', loop=loop)
    outer.add_step('in', func=fail)

    found = foreseen(flow)

    assert len([one for one in found if one[2] == 'runs']) == 1000
    assert [one[:3] for one in found if one[2] == 'loops'] == [('outer', '1.1001', 'loops')]
    assert found[-1][3].startswith('and so on')


def test_an_endless_loop_in_an_endless_loop_is_cut_off_after_ten_thousand_in_all():
    flow = a_flow()
    outer = flow.add_step('outer', loop=Endless())
    inner = outer.add_step('inner', loop=Endless())
    inner.add_step('in', func=fail)

    found = foreseen(flow)

    assert 9900 <= len([one for one in found if one[2] == 'runs']) <= 10100


def test_an_iterator_is_not_used_up_by_a_dry_run():
    taken = []
    flow = a_flow()
    loop = flow.add_step('loop', loop=(taken.append(n) for n in range(3)))
    calls = Calls()
    loop.add_step('in', func=calls)

    found = foreseen(flow)

    assert taken == []
    assert [one[:3] for one in found] == [('loop', '1', 'enters'), ('loop', '1.1', 'loops')]
    assert flow() is True
    assert len(calls.calls) == 3


def test_delays_pass_at_once_in_a_dry_run_and_are_told(tmp_path):
    kept = MemoryStore()

    def make(mode):
        flow = a_flow(kept, mode=mode)
        a = flow.add_step('a', func=Calls())
        flow.add_step('b', func=Calls(), require=a, delay=10 ** 9)
        return flow
    new = foreseen(make('restart'))
    assert new[1] == ('b', '1', 'runs', 'new run, after 1e+09 s')
    with make('restart') as flow:
        assert flow.run(max_loops=1) is True

    found = foreseen(make('recover'))

    assert found[0][:3] == ('a', '1', 'skipped')
    due = next(one.due for one in records_of(make('recover')) if one.path == 'b')
    assert found[1] == ('b', '1', 'runs', 'it was not started, not before %s'
                        % sequent.local_time(due))


@pytest.mark.parametrize('mapping, action, why', [
    ({'success': 'rerun'}, 'runs', 'it succeeded, but is to run again'),
    ({}, 'skipped', 'it succeeded in recovery 0')])
def test_what_the_recovery_mapping_says_is_foreseen(mapping, action, why, store):  # noqa: F811
    # semantics 7.2
    def make(mode, func):
        flow = a_flow(store, mode=mode)
        flow.add_step('a', func=Calls(), recovery=mapping)
        flow.add_step('b', func=func, recovery={'failure': 'skip'})
        flow.add_step('c', func=func)
        return flow
    assert make('restart', fail)() is False

    found = {one[0]: one[2:] for one in foreseen(make('recover', Calls()))}

    assert found['a'] == (action, why)
    assert found['b'][0] == 'skipped' and 'mapping says skip' in found['b'][1]


def test_a_dry_run_of_an_eventor_follows_its_events(store):  # noqa: F811
    def make(mode, func):
        flow = sequent.Eventor('etl', store=store, run_mode=mode,
                               config={'task_construct': 'inline'})
        begin, middle = flow.add_event('begin'), flow.add_event('middle')
        a = flow.add_step('a', func=Calls(), triggers={'success': (middle,)})
        b = flow.add_step('b', func=func)
        flow.add_assoc(begin, a)
        flow.add_assoc(middle, b, delay=0.01)
        if mode == 'restart':
            flow.trigger_event(begin, 7)
        return flow
    new = foreseen(make('restart', fail))
    assert [one[:3] for one in new] == [('a', '7', 'runs'), ('b', '7', 'runs')]
    assert make('restart', fail)() is False

    found = foreseen(make('recover', Calls()))

    assert [one[:3] for one in found] == [('a', '7', 'skipped'), ('b', '7', 'runs')]
    assert 'ValueError' in found[1][3]


# Random flows, edited at random: what was foreseen is what happens.

def random_steps(chance):
    """Return [(name, loop or None, names required, how)]: each requires earlier ones."""
    steps = []
    for number in range(chance.randint(2, 7)):
        names = [one[0] for one in steps]
        required = chance.sample(names, chance.randint(0, min(2, len(names))))
        loop = chance.choice([None, None, list(range(chance.randint(0, 4)))])
        how = chance.choice(['all', 'any', 'complete'])
        steps.append(('s%d' % number, loop, required, how))
    return steps


def edited_at_random(chance, steps):
    steps = list(steps)
    for _ in range(chance.randint(0, 3)):
        place = chance.randrange(len(steps))
        name, loop, required, how = steps[place]
        kind = chance.choice(['remove', 'rename', 'rewire', 'loop'])
        if kind == 'remove' and len(steps) > 1:
            del steps[place]
        elif kind == 'rename':
            steps[place] = name + 'x', loop, required, how
        elif kind == 'rewire':
            steps[place] = name, loop, [one[0] for one in steps[:place]][-1:], how
        elif kind == 'loop' and loop is not None:
            steps[place] = name, chance.sample(range(6), chance.randint(0, 4)), required, how
    return steps


def flow_of(steps, kept, mode, function):
    flow = a_flow(kept, mode=mode)
    made = {}
    for name, loop, required, how in steps:
        needed = [made[one] for one in required if one in made]
        if how == 'complete':
            needed = [(one, 'complete') for one in needed]
        require = or_(*needed) if how == 'any' and needed else tuple(needed)
        options = {'config': {'stop_on_exception': len(required) % 2 == 0}, 'require': require}
        if loop is None or int(name[1]) % 2:
            made[name] = flow.add_step(name, func=function, loop=loop, **options)
        else:
            made[name] = flow.add_step(name, loop=loop, **options)
            first = made[name].add_step('v', func=function)
            inner = made[name].add_step('w', loop=[1, 2], require=first)
            inner.add_step('x', func=function)
    return flow


def a_random_edit(seed):
    """Return (what was foreseen to run, what ran) after an edit at random, or None if the first
    run, which is interrupted at random, left nothing to do."""
    chance, kept, calls = random.Random(seed), MemoryStore(), Calls()

    def sometimes():
        if chance.random() < 0.2:
            raise ValueError('on purpose')
        if chance.random() < 0.2:
            interrupt()
    steps = random_steps(chance)
    try:
        mode = 'recover'
        if flow_of(steps, kept, 'restart', sometimes)():
            return None
    except KeyboardInterrupt:
        mode = chance.choice(MODES)
    steps = edited_at_random(chance, steps)
    predicted = would_run(flow_of(steps, kept, mode, calls))
    assert calls.calls == []
    assert flow_of(steps, kept, mode, calls)() is True or mode == 'continue'
    return sorted(predicted), sorted(calls.calls)


def test_what_is_foreseen_of_random_edits_is_what_happens():
    # semantics 7.9
    first, number = sample.SEED, sample.times('SEQUENT_DRY_RUNS', 200)
    print('seeds %d to %d' % (first, first + number - 1))
    compared = 0
    for seed in range(first, first + number):
        print('seed', seed)
        found = a_random_edit(seed)
        if found is not None:
            compared += 1
            assert found[0] == found[1]
    assert compared > number // 4


# Processes on other hosts

def recorded_on_another_host(kept):
    """Make a run whose step a is recorded as running on another host."""
    flow = a_flow(kept)
    flow.add_step('a', func=fail)
    assert flow() is False
    opened = flow.open_store()
    run = opened.latest('etl')
    [task] = opened.tasks(run)
    process = dict(json.loads(sequent.process_identity()), host='elsewhere', boot='x', pid=4711)
    opened.commit(run, [task._replace(status='active', error=None, ended=None,
                                      process=json.dumps(process))])
    opened.begin(run._replace(status='active', process=json.dumps(process)))
    flow.close_store()


@pytest.mark.parametrize('mode', MODES)
def test_a_process_on_another_host_is_an_error_that_names_the_choices(mode, store):  # noqa: F811
    # semantics 7.6
    recorded_on_another_host(store)
    calls = Calls()

    def make(**config):
        flow = a_flow(store, mode=mode, config=config)
        flow.add_step('a', func=calls)
        return flow
    for attempt in (make(), lambda: foreseen(make())):
        with pytest.raises(AlreadyRunningError, match='--assume-dead') as caught:
            attempt()
        for text in ("'a'", '4711', "'elsewhere'", 'assume_dead'):
            assert text in str(caught.value)
    assert calls.calls == []

    assert [one[:3] for one in foreseen(make(assume_dead=True))] == [('a', '1', 'runs')]
    flow = make(assume_dead=True)
    assert flow() is True
    assert statuses(flow) == {'a': 'success'}
