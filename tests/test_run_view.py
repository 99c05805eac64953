"""`RunView`: what a store tells of a run, without the flow that was run."""

import contextlib
import json

import pytest

import sequent
from runtools import a_flow, journal, store, wait_gone  # noqa: F401 (fixtures)
from sequent import MemoryStore, RecoveryError, RunView
from test_command_line import WAITING, shop  # noqa: F401 (a fixture)


@contextlib.contextmanager
def viewed(flow, **which):
    """Give the view of a run of a flow, whose store it has to itself."""
    opened = flow.open_store(create=False)
    try:
        yield RunView.find(opened, flow.name, **which)
    finally:
        flow.close_store()


def refuse():
    raise ValueError('refused')


def nightly(store, mode='restart', run_id=None, mended=False, **given):
    """Make a flow whose second step fails, until it is mended."""
    flow = a_flow(store, mode=mode, run_id=run_id, **given)
    first = flow.add_step('first', func=len, args=('x',))
    box = flow.add_step('box', loop=['x', 'y'], require=first)
    read = box.add_step('read', func=None)
    box.add_step('check', func=None if mended else refuse, require=read)
    last = flow.add_step('last', func=len, args=('x',), require=box)
    flow.add_step('sorry', func=None, require=(last, 'failure'))
    flow.add_step('mail', func=str, args=(last.result,))
    return flow


def test_a_store_without_runs_has_nothing_to_view(store):
    with viewed(a_flow(store)) as view:
        assert view is None


def test_the_latest_run_is_found_or_that_of_a_name(store):
    # semantics 20.7
    for run_id in ('monday', 'tuesday'):
        nightly(store, run_id=run_id)()

    flow = nightly(store)
    with viewed(flow) as latest, viewed(flow, run_id='monday') as monday:
        assert (latest.run.run_id, monday.run.run_id) == ('tuesday', 'monday')


def test_a_run_or_a_recovery_that_is_not_there_is_an_error_that_offers_the_nearest(
        store):
    nightly(store, run_id='monday')()

    with pytest.raises(RecoveryError, match="no run 'mondya' .*did you mean 'monday'"):
        with viewed(nightly(store), run_id='mondya'):
            pass
    with pytest.raises(RecoveryError, match='has no recovery 3; the latest is 0'):
        with viewed(nightly(store), recovery=3):
            pass


def test_a_view_ends_with_the_recovery_that_it_is_of(store):
    # semantics 20.7
    nightly(store)()
    assert nightly(store, 'recover', mended=True)()

    with viewed(nightly(store)) as now, viewed(nightly(store), recovery=0) as before:
        assert [one.recovery for one in now.recoveries()] == [0, 1]
        assert [one.recovery for one in before.recoveries()] == [0]
        assert {one.status for one in now.tasks()} == {'success'}
        assert [(one.path, one.sequence) for one in before.tasks('failure')] == [
            ('box', '1'), ('box_check', '1.1')]
        assert ('box_check', {'failure': 1}) in [
            (one.path, dict(one.counts)) for one in before.summary()]
        assert (now.not_run(), [path for path, _ in before.not_run()]) == ([], ['last', 'mail'])


def test_the_plan_is_a_tree_of_the_steps(store):
    # semantics 6.13
    nightly(store)()

    with viewed(nightly(store)) as view:
        plan = view.plan()

    assert [one['path'] for one in plan] == ['first', 'box', 'last', 'sorry', 'mail']
    assert [one['path'] for one in plan[1]['steps']] == ['box_read', 'box_check']
    assert (plan[1]['loop'], plan[2]['require']) == (True, ['box', 'success'])


def test_tasks_say_their_item_when_they_became_ready_and_what_they_waited_for(
        store):
    # semantics 6.13
    nightly(store, mended=True)()

    with viewed(nightly(store)) as view:
        tasks = {(one.path, one.sequence): one for one in view.tasks()}

    assert tasks['box_read', '1.2'].item_text == 'y'
    assert tasks['box', '1'].waited_for == 'first success'
    assert tasks['first', '1'].ended <= tasks['box', '1'].ready_at <= tasks['box', '1'].started


def test_what_was_not_run_stands_with_its_reason_without_what_waits_for_a_failure(
        store):
    # semantics 3.5
    nightly(store)()

    with viewed(nightly(store)) as view:
        assert view.not_run() == view.not_run(view.summary()) == [
            ('last', 'it requires box, which failed'),
            ('mail', 'it requires last, which was not run')]


def test_reasons_look_behind_events(store):
    # semantics 3.5
    def make():
        flow = a_flow(store)
        a = flow.add_step('a', func=refuse)
        b = flow.add_step('b', func=None)
        event = flow.add_event(sequent.or_((a, b), (a, 'success')))
        flow.add_step('c', func=None, require=event)
        return flow
    make()()

    with viewed(make()) as view:
        assert view.not_run() == [('c', 'it requires a, which failed')]


def test_an_eventor_has_no_list_of_what_was_not_run(store):
    flow = sequent.Eventor('e', store, config={'task_construct': 'inline'})
    flow.add_event('never')
    flow.add_step('a', func=None)
    flow()

    with viewed(flow) as view:
        assert view.not_run() == []


def made_good(store):
    """Make a flow with a container whose failure is made good."""
    flow = a_flow(store)
    box = flow.add_step('box')
    box.add_step('a', func=refuse)
    flow.add_step('sorry', func=None, require=(box, 'failure'), handles=True)
    flow.add_step('box_b', func=refuse)
    return flow


def test_a_failure_in_a_container_whose_failure_was_made_good_was_made_good(
        store):
    # semantics 3.3, 3.7
    made_good(store)()

    with viewed(made_good(store)) as view:
        good = view.made_good(view.tasks('failure'))

    assert good == {('box', '1'), ('box_a', '1.1')}


class PlainStore(MemoryStore):
    """A store that keeps no plans, as stores of old."""

    def keep_plan(self, text):
        return None


def test_a_store_without_plans_tells_the_rest():
    store = PlainStore()
    made_good(store)()

    with viewed(made_good(store)) as view:
        assert (view.plan(), view.not_run()) == (None, [])
        assert view.made_good(view.tasks('failure')) == {('box', '1'), ('box_a', '1.1')}


@pytest.mark.parametrize('way', ['over', 'alive', 'gone', 'elsewhere'])
def test_how_the_supervisor_fares(shop, way):
    # semantics 20.7
    shop.write('waiting.py', WAITING)
    program = shop.start('waiting')
    if way == 'gone':
        program.kill()
        program.wait()
        wait_gone(program.pid)
    elif way == 'over':
        program.terminate()
        program.wait()
    store = sequent.SqliteStore(str(shop.folder / 'waiting.run.db'))
    store.open(create=way == 'elsewhere')

    with contextlib.closing(store):
        view = RunView.find(store, 'waiting')
        if way == 'elsewhere':
            process = dict(json.loads(view.run.process), host='afar', boot='another')
            view = RunView(store, view.run._replace(process=json.dumps(process)))
        assert view.supervisor() == way
        assert view.goes_on() is (way in ('alive', 'elsewhere'))
        assert [path for path, _ in view.not_run()] == [] if view.goes_on() else ['last']


def test_parameters_are_shown_without_secrets(shop):
    # semantics 18.4, 18.6
    shop.write('m.py', '''
        import sequent as seq
        seq.parameter('day', default='monday')
        seq.parameter('pin', default='hunter2', secret=True)
        flow = seq.Sequent(config={'task_construct': 'inline'})
        flow.add_step('a', func=None)
    ''')
    assert shop('m').returncode == 0
    store = sequent.SqliteStore(str(shop.folder / 'm.run.db'))
    store.open(create=False)

    with contextlib.closing(store):
        assert RunView.find(store, 'm').parameters() == {'day': 'monday', 'pin': '***'}
