"""What every store and every construct has to pass: the docstrings of `sequent.Store` and
`sequent.TaskConstruct` as tests.

A subclass of a contract supplies what makes one, and inherits the tests::

    class TestMyStore(StoreContract):
        def make_store(self):
            return MyStore(...)
"""

import collections
import contextlib
import logging
import os
import pickle
import random
import selectors
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import sequent
from sequent import AlreadyRunningError, Job, Outcome, RunRecord, StoreError, TaskRecord


def a_run(run_id='r1', recovery=0, flow='etl', **fields):
    fields = dict({'started': 1700000000.25, 'process': sequent.process_identity()}, **fields)
    return RunRecord(flow, run_id, recovery, **fields)


def a_task(path='a', sequence='1', recovery=0, attempt=1, kind='leaf', status='success',
           **fields):
    return TaskRecord(path, sequence, recovery, attempt, kind, status, **fields)


def places(records):
    return [(record.path, record.sequence) for record in records]


def counted(store, run):
    """Return ``[(path, kind, status, n)]``, as the summary of a run has them."""
    return [(one.path, one.kind, status, n)
            for one in store.summary(run) for status, n in one.counts.items()]


class StoreContract:
    """Every promise of `Store`. A subclass has ``make_store() -> Store``, new, not yet open."""

    def make_store(self):
        raise NotImplementedError

    @pytest.fixture
    def store(self):
        store = self.make_store()
        with contextlib.closing(store):
            store.open()
            yield store

    @pytest.fixture
    def run(self, store):
        run = a_run()
        store.begin(run)
        return run

    # Opening and closing

    def test_it_says_where_outcomes_and_logs_go_or_none(self):
        store = self.make_store()

        assert isinstance(store.volatile, bool)
        assert store.folder is None or isinstance(store.folder, str)
        assert store.logs is None or isinstance(store.logs, str)

    def test_a_new_store_holds_nothing(self, store):
        assert list(store.runs()) == list(store.runs('etl')) == []
        assert store.latest('etl') is None
        assert store.latest('etl', 'r1') is None

    def test_a_new_store_opened_only_to_look_holds_no_runs(self):
        store = self.make_store()
        with contextlib.closing(store):
            store.open(create=False)

            assert list(store.runs()) == []
            assert store.latest('etl') is None
            assert list(store.tasks(a_run())) == list(store.attempts(a_run())) == []
            assert store.outcomes(a_run(), '1', 0) == {}
            assert counted(store, a_run()) == []

    def test_it_may_be_closed_twice_and_without_having_been_opened(self):
        store = self.make_store()
        store.close()
        store.open()
        store.close()
        store.close()

    def test_it_keeps_what_it_has_when_closed_and_opened_again(self, store, run):
        # semantics 6.12
        store.commit(run, [a_task()])
        store.close()

        store.open()

        assert list(store.runs()) == [run]
        assert list(store.tasks(run)) == [a_task()]

    def test_opening_an_open_store_does_nothing(self, store, run):
        store.open()
        store.open(create=False)

        store.commit(run, [a_task()])

        assert list(store.tasks(run)) == [a_task()]

    def test_a_store_opened_to_look_can_be_opened_to_write(self):
        store = self.make_store()
        with contextlib.closing(store):
            store.open(create=False)
            store.open()

            store.begin(a_run())

            assert store.latest('etl') == a_run()

    def test_private_fds_are_open_descriptors(self, store, run):
        store.lock('etl', 'r1')
        for fd in store.private_fds():
            os.fstat(fd)

    # Locks

    def test_a_claimed_run_is_refused_and_its_holder_named(self, store, run):
        # semantics 6.5, 6.12
        store.lock('etl', 'r1')

        with pytest.raises(AlreadyRunningError) as caught:
            store.lock('etl', 'r1')

        for known in ("'r1'", "'etl'", str(os.getpid()), 'host', '2023-11-1'):
            assert known in str(caught.value)

    def test_a_claim_refused_before_its_holder_has_begun_says_so(self, store):
        store.lock('etl', 'r1')
        with pytest.raises(AlreadyRunningError, match='etl'):
            store.lock('etl', 'r1')

    def test_an_exclusive_claim_refuses_other_runs_of_the_flow(self, store):
        store.lock('etl', 'r1')
        with pytest.raises(AlreadyRunningError):
            store.lock('etl', 'r2')
        with pytest.raises(AlreadyRunningError):
            store.lock('etl', 'r2', exclusive=False)

    def test_an_exclusive_claim_tolerates_other_flows(self, store):
        store.lock('etl', 'r1')
        store.lock('report', 'r1')

    def test_claims_that_are_not_exclusive_tolerate_one_another(self, store):
        store.lock('etl', 'r1', exclusive=False)
        store.lock('etl', 'r2', exclusive=False)

    def test_a_claim_that_is_not_exclusive_refuses_the_same_run(self, store):
        store.lock('etl', 'r1', exclusive=False)
        with pytest.raises(AlreadyRunningError):
            store.lock('etl', 'r1', exclusive=False)

    def test_a_claim_that_is_not_exclusive_refuses_an_exclusive_one(self, store):
        store.lock('etl', 'r1', exclusive=False)
        with pytest.raises(AlreadyRunningError):
            store.lock('etl', 'r2')

    def test_a_shared_claim_stands_until_the_last_is_given_back(self, store):
        store.lock('etl', 'r1', exclusive=False)
        store.lock('etl', 'r2', exclusive=False)

        store.unlock('etl', 'r1')

        with pytest.raises(AlreadyRunningError):
            store.lock('etl', 'r3')
        store.unlock('etl', 'r2')
        store.lock('etl', 'r3')

    def test_a_refused_claim_leaves_nothing_locked(self, store):
        store.lock('etl', 'r1', exclusive=False)
        with pytest.raises(AlreadyRunningError):
            store.lock('etl', 'r1', exclusive=False)

        store.unlock('etl', 'r1')

        store.lock('etl', 'r2')

    def test_what_is_unlocked_can_be_claimed_again(self, store):
        store.lock('etl', 'r1')
        store.unlock('etl', 'r1')
        store.lock('etl', 'r1')

    def test_unlocking_what_was_not_claimed_does_nothing(self, store):
        store.lock('etl', 'r1')
        store.unlock('etl', 'r2')
        with pytest.raises(AlreadyRunningError):
            store.lock('etl', 'r1')

    def test_closing_gives_back_what_is_locked(self, store):
        store.lock('etl', 'r1')
        store.close()
        store.open()
        store.lock('etl', 'r1')

    # Runs

    def test_a_run_comes_back_as_it_was_stored(self, store):
        run = a_run(mode='recover', status='stopped', ended=1700000001.5, steps='{"a": "x"}')
        store.begin(run)
        assert list(store.runs()) == [run]
        assert type(list(store.runs())[0]) is RunRecord

    def test_runs_of_a_flow_are_found_by_their_status(self, store):
        assert list(store.runs('etl', 'active')) == []
        active = [a_run(), a_run(run_id='r3'), a_run(recovery=1)]
        for one in active[:2] + [a_run(run_id='r2', status='stopped'), a_run(flow='report'),
                                 a_run(run_id='r4', status='success')] + active[2:]:
            store.begin(one)
        assert list(store.runs('etl', 'active')) == active

    def test_the_latest_runs_are_those_begun_last_with_their_latest_recovery(self, store):
        assert store.latest_runs('etl', 2) == []
        runs = [a_run('z'), a_run('y', flow='report'), a_run('x'), a_run('w'), a_run('z', 1)]
        for one in runs:
            store.begin(one)
        assert store.latest_runs('etl', 2) == [runs[3], runs[2]]
        assert store.latest_runs('etl', 9) == [runs[3], runs[2], runs[4]]

    def test_enum_members_come_back_equal_and_as_str(self, store):
        store.begin(a_run(mode=sequent.RUN_RECOVER, status=sequent.STEP_ACTIVE))
        assert store.latest('etl')[3:5] == ('recover', 'active')

    def test_runs_come_in_the_order_in_which_they_were_begun(self, store):
        begun = [a_run('r2'), a_run('r1'), a_run('r2', 1), a_run('x', flow='report')]
        for run in begun:
            store.begin(run)

        assert list(store.runs()) == begun
        assert list(store.runs('etl')) == begun[:3]
        assert list(store.runs('report')) == begun[3:]
        assert list(store.runs('unknown')) == []

    def test_beginning_again_replaces_the_record_in_its_place(self, store):
        for run in (a_run('r1'), a_run('r2')):
            store.begin(run)
        again = a_run('r1', mode='continue', started=1800000000.0)

        store.begin(again)

        assert list(store.runs()) == [again, a_run('r2')]

    def test_beginning_again_keeps_the_tasks(self, store, run):
        store.commit(run, [a_task()])
        store.begin(run)
        store.begin(a_run(recovery=1))
        assert list(store.tasks(run)) == [a_task()]

    def test_a_plan_is_kept_for_all_runs_that_name_it(self, store):
        runs = []
        for name, text in (('r1', '{"steps": []}'), ('r2', '["\u00fc"]'),
                           ('r3', '{"steps": []}')):
            runs.append(a_run(name, plan=store.keep_plan(text)))
            store.begin(runs[-1])
        store.begin(a_run('r4'))
        assert runs[0].plan == runs[2].plan != runs[1].plan
        assert [store.plan(one) for one in runs] == ['{"steps": []}', '["\u00fc"]',
                                                     '{"steps": []}']
        assert store.plan(a_run('r4')) is None
        assert list(store.runs()) == runs + [a_run('r4')]

    def test_finishing_replaces_status_and_end_alone(self, store, run):
        store.finish(run._replace(status='failure', ended=1700000009.0, steps='other'))
        assert store.latest('etl') == run._replace(status='failure', ended=1700000009.0)

    def test_finishing_what_was_not_begun_is_an_error_that_names_it(self, store, run):
        with pytest.raises(StoreError, match="'r1'.*'etl'"):
            store.finish(a_run(recovery=1))

    def test_the_latest_of_a_run_is_its_highest_recovery(self, store):
        for run in (a_run('r1', 0), a_run('r1', 2), a_run('r1', 1), a_run('r2', 0)):
            store.begin(run)
        assert store.latest('etl', 'r1') == a_run('r1', 2)
        assert store.latest('etl', 'r3') is None
        assert store.latest('report', 'r1') is None

    @pytest.mark.parametrize('no_run_id', ['', None])
    def test_the_latest_of_a_flow_is_of_the_run_begun_last(self, store, no_run_id):
        for run in (a_run('r1', 0), a_run('r2', 0), a_run('r2', 1), a_run('r1', 1)):
            store.begin(run)
        store.begin(a_run('x', flow='report'))
        assert store.latest('etl', no_run_id) == a_run('r2', 1)

    def test_the_same_run_id_in_two_flows_names_two_runs(self, store, run):
        other = a_run(flow='report')
        store.begin(other)
        store.commit(run, [a_task('a')])
        store.commit(other, [a_task('b')])
        assert places(store.tasks(run)) == [('a', '1')]
        assert places(store.tasks(other)) == [('b', '1')]

    # Committing

    def test_a_task_comes_back_as_it_was_stored(self, store, run):
        task = a_task(
            status='failure', handled=True, item=pickle.dumps(None), due=1.5, started=2.5,
            ended=3.25, process='{}', result=b'\0\xff', events='["e"]', item_text='\u00fc',
            ready_at=2.25, waited_for='a b success',
            error='ValueError: \u00fc\u4e2d \U0001f600')
        store.commit(run, [task])

        [stored] = store.tasks(run)
        assert stored == task
        assert [type(field) for field in stored] == [type(field) for field in task]

    def test_a_task_without_optional_fields_comes_back_with_none(self, store, run):
        store.commit(run, [a_task()])
        [stored] = store.tasks(run)
        assert stored == a_task()
        assert stored.handled is False

    def test_an_error_that_is_no_utf_8_can_be_stored(self, store, run):
        store.commit(run, [a_task('n', status='failure', error='no file \udce9t\udce9')])
        [stored] = store.tasks(run)
        assert stored.error.startswith('no file ')

    def test_names_may_hold_anything(self, store, run):
        names = ["a'b", 'a"b', 'a%b', 'a\nb', '-', ' ', '\u00fc', 'x' * 3000]
        store.commit(run, [a_task(name) for name in names])
        assert [task.path for task in store.tasks(run)] == names

    def test_committing_nothing_is_allowed(self, store, run):
        store.commit(run, [])
        store.commit(run, iter(()))
        assert list(store.attempts(run)) == []

    def test_the_same_attempt_again_replaces_the_record_in_its_place(self, store, run):
        store.commit(run, [a_task('a', status='active'), a_task('b')])
        store.commit(run, [a_task('a', status='failure')])
        assert list(store.attempts(run)) == [a_task('a', status='failure'), a_task('b')]

    def test_of_two_records_of_an_attempt_in_one_commit_the_later_counts(self, store, run):
        store.commit(run, [a_task(status='active'), a_task(status='failure')])
        assert list(store.attempts(run)) == [a_task(status='failure')]

    def test_a_commit_is_all_or_nothing(self, store, run):
        # semantics 6.2, 6.12
        def records():
            yield a_task('a')
            raise RuntimeError('in the middle')

        with pytest.raises(RuntimeError):
            store.commit(run, records())

        assert list(store.attempts(run)) == []
        store.commit(run, [a_task('b')])
        assert places(store.attempts(run)) == [('b', '1')]

    def test_committing_to_a_run_that_was_not_begun_is_an_error_that_names_it(self, store):
        with pytest.raises(StoreError, match="'r9'.*'etl'"):
            store.commit(a_run('r9'), [a_task()])

    def test_tasks_of_an_unknown_run_are_none(self, store, run):
        store.commit(run, [a_task()])
        unknown = a_run('r9')
        assert list(store.tasks(unknown)) == list(store.attempts(unknown)) == []
        assert counted(store, unknown) == []
        assert store.outcomes(unknown, '1', 9) == {}

    # Reading outcomes

    def test_outcomes_are_those_of_exactly_one_sequence(self, store, run):
        store.commit(run, [a_task('a', '1'), a_task('b', '1.1', status='failure'),
                           a_task('c', '1.1', status='failure'),
                           a_task('b', '1.10', status='failure')])
        outcomes = store.outcomes(run, '1.1', 0)
        assert outcomes == {'b': a_task('b', '1.1', status='failure'),
                            'c': a_task('c', '1.1', status='failure')}
        assert store.outcomes(run, '7', 0) == {}

    def test_outcomes_are_the_latest_by_recovery_then_attempt(self, store, run):
        attempts = [a_task(recovery=recovery, attempt=attempt, status='failure')
                    for recovery, attempt in ((1, 2), (0, 10), (1, 1), (0, 9))]
        store.commit(run, attempts)
        assert store.outcomes(run, '1', 1) == {'a': attempts[0]}

    def test_outcomes_look_at_recoveries_up_to_the_given_one(self, store, run):
        before, after = a_task(status='failure'), a_task(recovery=1)
        store.commit(run, [before, after, a_task('b', recovery=1)])
        assert store.outcomes(run, '1', 0) == {'a': before}
        assert store.outcomes(run, '1', 1) == {'a': after, 'b': a_task('b', recovery=1)}

    # Reading tasks

    def test_tasks_are_the_latest_records_in_the_order_of_the_first(self, store, run):
        first = [a_task('b', status='failure'), a_task('a'), a_task('c', status='active')]
        store.commit(run, first)
        store.commit(run, [a_task('c', attempt=2), a_task('b', recovery=1, status='active')])
        assert list(store.tasks(run)) == [
            a_task('b', recovery=1, status='active'), a_task('a'), a_task('c', attempt=2)]

    def test_tasks_look_at_recoveries_up_to_the_given_one(self, store, run):
        store.commit(run, [a_task('a', status='failure'), a_task('a', recovery=1),
                           a_task('b', recovery=1), a_task('a', recovery=2, status='active')])
        assert list(store.tasks(run, upto=0)) == [a_task('a', status='failure')]
        assert list(store.tasks(run, upto=1)) == [a_task('a', recovery=1),
                                                  a_task('b', recovery=1)]

    def test_tasks_of_a_status_are_those_whose_latest_record_has_it(self, store, run):
        store.commit(run, [a_task('a', status='failure'), a_task('a', recovery=1),
                           a_task('b', status='failure')])
        assert list(store.tasks(run, status='failure')) == [a_task('b', status='failure')]
        assert list(store.tasks(run, upto=0, status='failure')) == [
            a_task('a', status='failure'), a_task('b', status='failure')]
        assert list(store.tasks(run, status=sequent.STEP_SUCCESS)) == [a_task('a', recovery=1)]

    def test_tasks_tell_sequences_apart(self, store, run):
        tasks = [a_task('a', '1', status='failure'), a_task('a', '1.1', status='failure'),
                 a_task('a', '11', status='failure')]
        store.commit(run, tasks)
        assert list(store.tasks(run)) == tasks

    def test_many_tasks_come_in_order_and_each_once(self, store, run):
        tasks = [a_task('a', str(number)) for number in range(1001)]
        store.commit(run, tasks)
        store.commit(run, [a_task('a', str(number), attempt=2) for number in range(0, 1001, 2)])
        assert places(store.tasks(run)) == places(tasks)
        assert sum(task.attempt == 2 for task in store.tasks(run)) == 501

    def test_commits_may_go_on_while_tasks_are_read(self, store, run):
        store.commit(run, [a_task('a', str(number)) for number in range(1001)])
        reading = store.tasks(run)
        next(reading)
        store.commit(run, [a_task('b'), a_task('a', '7', attempt=2)])
        assert len([task for task in reading if task.path == 'a']) == 1000

    def test_attempts_are_all_records_in_the_order_of_first_storing(self, store, run):
        records = [a_task('b', status='failure'), a_task('a', status='active'),
                   a_task('b', attempt=2), a_task('b', recovery=1)]
        store.commit(run, records)
        store.commit(run, [a_task('a', status='failure')])
        records[1] = a_task('a', status='failure')
        assert list(store.attempts(run)) == records

    # Counting

    def test_counts_are_of_the_latest_records(self, store, run):
        store.commit(run, [a_task('a', '1.%d' % number) for number in range(1, 6)])
        store.commit(run, [a_task('c', kind='container', status='active')])
        store.commit(run, [a_task('b', '1.1', status='failure'),
                           a_task('b', '1.2', status='failure'), a_task('b', '1.2', attempt=2)])
        assert sorted(counted(store, run)) == [
            ('a', 'leaf', 'success', 5), ('b', 'leaf', 'failure', 1), ('b', 'leaf', 'success', 1),
            ('c', 'container', 'active', 1)]

    def test_counts_come_in_the_order_in_which_paths_were_first_stored(self, store, run):
        store.commit(run, [a_task('b', status='failure'), a_task('a'), a_task('c')])
        store.commit(run, [a_task('b', recovery=1), a_task('c', '1.2', status='failure')])
        assert [path for path, _, _, _ in counted(store, run)] == ['b', 'a', 'c', 'c']

    def test_counts_leave_out_iterations(self, store, run):
        store.commit(run, [a_task('s', '1.1', kind='iteration', status=''), a_task('s_a', '1.1')])
        assert counted(store, run) == [('s_a', 'leaf', 'success', 1)]


    # Requests

    def test_a_request_is_listed_until_its_answer_is_committed(self, store, run):
        first, second = [sequent.Request('etl', 'r1', 'hold', pattern, 1.5, 'x on y, pid 1')
                         for pattern in ('a*', '\u00fc')]
        numbers = [store.post(first), store.post(second)]
        store.post(first._replace(run_id='r2'))
        listed = store.requests(run)
        assert listed == [first._replace(number=numbers[0]), second._replace(number=numbers[1])]
        assert [type(one) for one in listed] == [sequent.Request] * 2
        assert store.answers(run) == []

        store.commit(run, [a_task()], [(listed[0], 'held: 1 step')])

        assert store.requests(run) == listed[1:]
        assert store.answers(run) == [(listed[0], 'held: 1 step')]
        assert list(store.tasks(run)) == [a_task()]

    def test_an_answer_replaces_an_earlier_one_of_its_number(self, store, run):
        standing = sequent.Request('etl', 'r1', 'tell', number='tell')
        store.post(sequent.Request('etl', 'r1', 'stop'))
        [stop] = store.requests(run)
        store.commit(run, [], [(stop, 'stopping'), (standing, 'first')])

        store.commit(run, [a_task()], [(standing, 'second')])

        assert store.answers(run) == [(stop, 'stopping'), (standing, 'second')]

    def test_a_commit_that_fails_answers_nothing(self, store, run):
        store.post(sequent.Request('etl', 'r1', 'stop'))
        [request] = store.requests(run)

        def records():
            yield a_task()
            raise RuntimeError('in the middle')
        with pytest.raises(RuntimeError):
            store.commit(run, records(), [(request, 'yes')])
        assert store.requests(run) == [request]
        assert store.answers(run) == []

    def test_who_only_looks_at_a_store_may_post(self, store, run):
        store.close()
        store.open(create=False)
        store.post(sequent.Request('etl', 'r1', 'stop'))
        [request] = store.requests(run)
        assert request.verb == 'stop'

    def test_what_wakes_a_supervisor_is_a_descriptor_or_none(self, store, run):
        wakeup = store.wakeup()
        assert wakeup is None or os.fstat(wakeup)


class KeepingStoreContract(StoreContract):
    """What a store that is not volatile promises beyond."""

    def test_it_is_not_volatile(self, store):
        assert store.volatile is False

    def test_counts_are_those_of_the_tasks_whatever_was_stored(self, store, run):
        choose = random.Random(20241231)
        for _ in range(40):
            store.commit(run, [a_task(
                choose.choice('abc'), choose.choice(['1', '1.1', '1.1.2']), choose.randrange(3),
                choose.randrange(1, 4), status=choose.choice(['ready', 'failure', 'success']))
                for _ in range(choose.randrange(4))])
            assert sorted(counted(store, run)) == sorted(
                key + (n,) for key, n in collections.Counter(
                    (task.path, task.kind, task.status) for task in store.tasks(run)).items())

    @pytest.mark.parametrize('attempts', [1, 3])
    def test_a_summary_is_that_of_the_tasks_whatever_was_stored(self, store, run, attempts):
        def told(steps):
            return [(one.path, one.kind, dict(one.counts), one.started, one.ended, one.n,
                     one.records) for one in steps]
        choose = random.Random(20261126)
        for number in range(40):
            store.commit(run, [a_task(
                choose.choice('abcdefgh'), choose.choice(['1', '1.1', '1.1.2']),
                choose.randrange(attempts), choose.randrange(1, attempts + 1),
                status=choose.choice(['ready', 'active', 'failure', 'success', 'success']),
                kind=choose.choice(['leaf', 'leaf', 'loop']))._replace(
                    started=choose.choice([None, 1.0 + number]),
                    ended=choose.choice([None, 2.0 + number]))
                for _ in range(choose.randrange(3))])
            assert told(store.summary(run)) == told(sequent.Store.summary(store, run))
        assert told(store.summary(run, 0)) == told(sequent.Store.summary(store, run, 0))

    def test_successes_in_iterations_are_kept(self, store, run):
        tasks = [a_task('s_a', '1.%d' % number, result=b'x') for number in range(1, 4)]
        store.commit(run, tasks)
        assert list(store.tasks(run)) == tasks
        assert store.outcomes(run, '1.3', 0) == {'s_a': tasks[2]}

    def test_iterations_are_outcomes_and_attempts_but_no_tasks(self, store, run):
        iteration = a_task('s', '1.2', kind='iteration', status='', item=pickle.dumps('x'))
        task = a_task('s_a', '1.2')
        store.commit(run, [iteration, task])
        assert store.outcomes(run, '1.2', 0) == {'s': iteration, 's_a': task}
        assert list(store.attempts(run)) == [iteration, task]
        assert list(store.tasks(run)) == [task]

    def test_iterations_of_two_containers_at_one_sequence_are_told_apart(self, store, run):
        first = a_task('s', '1.2', kind='iteration', status='', item=b'1')
        second = a_task('t', '1.2', kind='iteration', status='', item=b'2')
        store.commit(run, [first, second])
        assert store.outcomes(run, '1.2', 0) == {'s': first, 't': second}


PATIENCE = 30  # seconds until a test gives up waiting for what must happen


def wait_until(condition, what='it'):
    """Wait, for a bounded time, until a condition holds; return what it returned."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.002)
    raise AssertionError('%s did not happen within %d s' % (what, PATIENCE))


class LoopPort(sequent.Port):
    """A driver in its smallest form: a selector, and the outcomes that have come in."""

    def __init__(self, **config):
        self.config = config
        self.outcomes = collections.OrderedDict()
        self.twice = []
        self.selector = selectors.DefaultSelector()

    def done(self, job, outcome):
        if job in self.outcomes:
            self.twice.append(job)
        self.outcomes[job] = outcome

    def watch(self, fd, callback):
        self.selector.register(fd, selectors.EVENT_READ, callback)

    def unwatch(self, fd):
        self.selector.unregister(fd)

    def turn(self, construct):
        if self.selector.get_map():
            for key, _ in self.selector.select(0.01):
                key.data()
        construct.poll()

    def outcome(self, construct, job):
        """Return the outcome of a job, after waiting for it."""
        def come():
            self.turn(construct)
            return self.outcomes.get(job)
        return wait_until(come, 'the outcome of %r' % job)


# What the jobs of the contract call; at the top of a module, so that it can be sent.


def add(*args, **kwargs):
    return sum(args) + sum(kwargs.values())


def nothing():
    pass


def fail(text):
    raise ValueError(text)


def leave(*code):
    sys.exit(*code)


def recurse(depth=0):
    return recurse(depth + 1)


def unpicklable():
    return threading.Lock()


class Unshowable(Exception):
    """Can neither be pickled, nor shown, nor made again."""

    def __init__(self, one, two):
        Exception.__init__(self)
        self.lock = threading.Lock()

    def __str__(self):
        raise RuntimeError('never')

    __repr__ = __str__


def fail_unshowably():
    raise Unshowable(1, 2)


def context():
    return tuple(sequent.current())


def touch(path):
    with open(path, 'a') as file:
        file.write('%d\n' % os.getpid())


def touch_and_wait(path):
    touch(path)
    deadline = time.monotonic() + 2 * PATIENCE
    while time.monotonic() < deadline:
        time.sleep(0.01)


def meet(folder, me, other):
    """Return once the other is here, too."""
    touch(os.path.join(folder, me))
    wait_until(lambda: os.path.exists(os.path.join(folder, other)))


def environment():
    return dict(os.environ)


def log_something():
    logging.getLogger('a.module').warning('seen: %s', 'gr\xfcn')


class RunningContract:
    """What `TaskConstruct` promises whatever it runs. A subclass has ``make_construct()``."""

    #: Configuration of every job: {str: value}.
    config = {}
    #: Whether tasks have their variables in their environment, and their records in their log.
    has_environment = True
    has_log = True

    def make_construct(self):
        raise NotImplementedError

    @pytest.fixture
    def port(self):
        port = LoopPort()
        yield port
        assert port.twice == [], 'two outcomes of one job'
        assert not port.selector.get_map(), 'still watched after close()'
        port.selector.close()

    @pytest.fixture
    def construct(self, port):
        construct = self.make_construct()
        construct.open(port)
        yield construct
        construct.close()

    @pytest.fixture
    def own_logging(self, construct, monkeypatch):
        """Have logging as in a program that has not configured it."""
        root = logging.getLogger()
        monkeypatch.setattr(root, 'level', root.level)
        monkeypatch.setattr(root, 'handlers', [
            one for one in root.handlers if type(one).__module__ == 'sequent'])
        sequent.install_logging(logging.WARNING)

    def job(self, func, *args, **fields):
        fields.setdefault('config', self.config)
        return Job(fields.pop('name', 'step'), fields.pop('sequence', '1'), flow='flow',
                   run_id='run', func=func, args=args, **fields)

    def start(self, construct, *jobs):
        for job in jobs:
            construct.check(job.name, job.func, job.args, job.kwargs, job.config)
            construct.prepare(job)
        for given in [[job] for job in jobs] if construct.inline else [list(jobs)]:
            construct.release(given)

    def run(self, construct, func, *args, **fields):
        job = self.job(func, *args, **fields)
        self.start(construct, job)
        outcome = construct.port.outcome(construct, job)
        construct.settle(job)
        return outcome

    def test_jobs_run_side_by_side(self, construct, tmp_path):
        if construct.inline:
            pytest.skip('not for inline constructs')
        jobs = [self.job(meet, str(tmp_path), 'a', 'b'), self.job(meet, str(tmp_path), 'b', 'a')]
        self.start(construct, *jobs)
        assert [construct.port.outcome(construct, job).status for job in jobs] == ['success'] * 2
        for job in jobs:
            construct.settle(job)

    def test_what_was_withdrawn_never_runs(self, construct, tmp_path):
        # semantics 7.6
        job = self.job(touch, str(tmp_path / 'ran'))
        construct.prepare(job)
        construct.withdraw(job)
        construct.close()
        assert not (tmp_path / 'ran').exists()
        assert construct.port.outcomes == {}
        construct.open(construct.port)

    def test_it_can_be_opened_again_after_close(self, construct):
        construct.close()
        construct.open(construct.port)
        assert self.run(construct, add, 1).status == 'success'

    def test_an_environment_that_cannot_be_fails_the_task(self, construct):
        if not self.has_environment:
            pytest.skip('not for constructs whose tasks share an environment')
        outcome = self.run(construct, nothing, env={'SEQUENT_LOOP_VALUE': 'a\0b'})
        assert outcome.status == 'failure'
        assert 'null byte' in outcome.error

    def test_a_job_that_is_killed_fails(self, construct, tmp_path):
        if not construct.can_kill:
            pytest.skip('not for constructs that cannot end what they run')
        job = self.job(touch_and_wait, str(tmp_path / 'runs'))
        self.start(construct, job)
        wait_until((tmp_path / 'runs').exists)
        construct.kill(job, False)
        outcome = construct.port.outcome(construct, job)
        construct.settle(job)
        assert (outcome.status, outcome.interrupted) == ('failure', False)
        assert 'SIGTERM' in outcome.error

    @pytest.mark.parametrize('force', [False, True])
    def test_a_job_that_is_killed_by_a_stop_is_interrupted(self, construct, tmp_path, force):
        if not construct.can_kill:
            pytest.skip('not for constructs that cannot end what they run')
        job = self.job(touch_and_wait, str(tmp_path / 'runs'))
        self.start(construct, job)
        wait_until((tmp_path / 'runs').exists)
        construct.port.stopping = True
        construct.kill(job, force)
        outcome = construct.port.outcome(construct, job)
        construct.settle(job)
        assert outcome.interrupted is True

    def test_close_ends_what_still_runs(self, construct, tmp_path):
        if not construct.can_kill:
            pytest.skip('not for constructs that cannot end what they run')
        job = self.job(touch_and_wait, str(tmp_path / 'runs'))
        self.start(construct, job)
        wait_until(lambda: (tmp_path / 'runs').exists() and (tmp_path / 'runs').read_text())
        pid = int((tmp_path / 'runs').read_text())
        construct.close()
        construct.open(construct.port)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    def test_signals_of_the_caller_are_left_as_they_were(self, construct):
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        self.run(construct, nothing)
        assert [signal.getsignal(number)
                for number in (signal.SIGINT, signal.SIGTERM)] == before


class ConstructContract(RunningContract):
    """Every promise of `TaskConstruct` to functions; ``make_construct() -> TaskConstruct``."""

    def test_it_returns_what_the_function_returns(self, construct):
        # semantics 4.12
        outcome = self.run(construct, add, 1, 2, kwargs={'more': 4})
        assert outcome.status == 'success'
        assert pickle.loads(outcome.result) == 7
        assert (outcome.error, outcome.warning, outcome.interrupted) == (None, '', False)

    def test_none_is_no_result(self, construct):
        assert self.run(construct, nothing)._replace(ended=None) == Outcome('success')

    def test_a_result_that_is_not_to_be_kept_is_not(self, construct):
        config = dict(self.config, keep_result=False)
        assert self.run(construct, add, 1, config=config).result is None

    def test_an_exception_fails_with_its_text_and_traceback(self, construct):
        outcome = self.run(construct, fail, 'no such city')
        assert outcome.status == 'failure'
        assert outcome.error == 'ValueError: no such city'
        assert 'in fail\n' in outcome.trace
        assert 'sequent.py' not in outcome.trace

    def test_a_text_that_no_encoding_takes_is_escaped(self, construct):
        outcome = self.run(construct, fail, 'lost \udc80')
        assert outcome.error == 'ValueError: lost \\udc80'
        outcome.trace.encode('utf-8')

    def test_an_exception_that_cannot_be_shown_nor_pickled_fails_by_name(self, construct):
        outcome = self.run(construct, fail_unshowably)
        assert outcome.status == 'failure'
        assert 'Unshowable' in outcome.error

    def test_system_exit_with_a_text_fails_with_it(self, construct):
        outcome = self.run(construct, leave, 'no line')
        assert (outcome.status, outcome.error) == ('failure', 'SystemExit: no line')

    @pytest.mark.parametrize('code', [1, 3, True])
    def test_system_exit_with_a_true_code_fails(self, construct, code):
        outcome = self.run(construct, leave, code)
        assert (outcome.status, outcome.error) == ('failure', 'SystemExit: code %d' % code)

    @pytest.mark.parametrize('code', [(), (0,), (None,), (False,)])
    def test_system_exit_with_a_false_code_succeeds(self, construct, code):
        outcome = self.run(construct, leave, *code)
        assert (outcome.status, outcome.result) == ('success', None)

    def test_a_recursion_without_end_fails(self, construct):
        outcome = self.run(construct, recurse)
        assert outcome.status == 'failure'
        assert outcome.error.startswith('RecursionError: ')

    def test_of_a_result_that_cannot_be_pickled_the_repr_is_kept(self, construct):
        outcome = self.run(construct, unpicklable)
        assert outcome.status == 'success'
        assert 'lock' in pickle.loads(outcome.result)
        assert 'cannot be pickled' in outcome.warning

    def test_current_tells_where_the_function_runs(self, construct):
        outcome = self.run(construct, context, name='a_b', sequence='1.2', recovery=3, attempt=4,
                           items=('x', 'y'), logger_name='log')
        assert pickle.loads(outcome.result) == (
            'a_b', '1.2', 3, 4, 'run', 'flow', ('x', 'y'), 'y', 'log', (), 0)

    def test_current_tells_nothing_afterwards(self, construct):
        self.run(construct, context)
        with pytest.raises(LookupError):
            sequent.current()

    def test_many_jobs_have_one_outcome_each(self, construct):
        # semantics 4.12
        jobs = [self.job(add, number, sequence=str(number)) for number in range(20)]
        self.start(construct, *jobs)
        results = [pickle.loads(construct.port.outcome(construct, job).result) for job in jobs]
        for job in jobs:
            construct.settle(job)
        assert results == list(range(20))

    def test_the_environment_of_a_task_is_there_and_gone_afterwards(self, construct, monkeypatch):
        if not self.has_environment:
            pytest.skip('not for constructs whose tasks share an environment')
        monkeypatch.setenv('SEQUENT_STEP_NAME', 'before')
        env = {'SEQUENT_STEP_NAME': 'a', 'SEQUENT_LOOP_VALUE': 'x'}
        seen = pickle.loads(self.run(construct, environment, env=env).result)
        seen_next = pickle.loads(self.run(construct, environment, env={
            'SEQUENT_STEP_NAME': 'b'}).result)
        construct.close()
        construct.open(construct.port)
        assert (seen['SEQUENT_STEP_NAME'], seen['SEQUENT_LOOP_VALUE']) == ('a', 'x')
        assert seen_next['SEQUENT_STEP_NAME'] == 'b'
        assert 'SEQUENT_LOOP_VALUE' not in seen_next
        assert os.environ['SEQUENT_STEP_NAME'] == 'before'
        assert 'SEQUENT_LOOP_VALUE' not in os.environ

    def test_what_a_task_logs_is_in_its_log_file(self, construct, tmp_path, own_logging):
        if not self.has_log:
            pytest.skip('not for constructs without log files')
        path = tmp_path / 'logs' / 'flow' / 'step.log'
        self.run(construct, log_something, log=str(path))
        assert 'seen: gr\xfcn' in path.read_bytes().decode('utf-8')
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


# A supervisor that dies ###########################################################

SUPERVISOR = '''
import os, signal, sys, time
import batchtools
import sequent as seq
from contracts import LoopPort, add, touch, touch_and_wait, wait_for_go, wait_until

folder = sys.argv[1]
construct = %s
port = LoopPort()
construct.open(port)


def path(name):
    return os.path.join(folder, name)


def make(name, func, *args):
    job = seq.Job(name, func=func, args=args, outcome=path(os.path.join('outcomes', name)))
    construct.prepare(job)
    return job


def say(jobs):
    print('\\n'.join(job.process for job in jobs), flush=True)
'''


def library_path():
    path = os.pathsep.join(path for path in sys.path if path)
    return dict(os.environ, PYTHONPATH=path)


def supervisor(tmp_path, body, construct='seq.ProcessConstruct()'):
    """Start a supervisor that runs a body of statements after those above."""
    program = tmp_path / 'supervisor.py'
    program.write_text(SUPERVISOR % construct + textwrap.dedent(body))
    return subprocess.Popen([sys.executable, str(program), str(tmp_path)], env=library_path(),
                            stdout=subprocess.PIPE, universal_newlines=True)


def kill_supervisor(process, lines):
    """Kill it once it has told so many identities, and return these."""
    identities = [process.stdout.readline().strip() for _ in range(lines)]
    process.kill()
    process.wait()
    process.stdout.close()
    return identities


def wait_for_go(folder, name):
    touch(os.path.join(folder, name + '.runs'))
    wait_until(lambda: os.path.exists(os.path.join(folder, name + '.go')))
    return name


class AdoptionContract:
    """What a construct that ``can_adopt`` promises to a recovery; ``make_construct()``."""

    #: The expression that makes the construct in the supervisor that is killed.
    making = 'seq.ProcessConstruct()'
    #: An identity of what cannot be looked at from here.
    STRANGE = ''
    #: What the error of an adopted job says that was killed.
    KILLED = ''

    def make_construct(self):
        raise NotImplementedError

    @pytest.fixture
    def adopter(self):
        """Return the construct of a recovery, which is not open yet, and its port."""
        construct, port = self.make_construct(), LoopPort()
        yield construct, port
        if hasattr(construct, 'port'):
            construct.close()
        assert port.twice == [], 'two outcomes of one job'
        port.selector.close()

    def orphan(self, tmp_path, release=True):
        """Return the job that a supervisor has started and left, as a recovery makes it."""
        process = supervisor(tmp_path, '''
            job = make('a', wait_for_go, folder, 'a')
            if %r:
                construct.release([job])
                wait_until(lambda: os.path.exists(path('a.runs')))
            say([job])
            time.sleep(600)
            ''' % release, self.making)
        identity, = kill_supervisor(process, 1)
        return Job('a', process=identity, outcome=str(tmp_path / 'outcomes' / 'a'))

    def test_what_runs_is_seen_before_the_construct_is_open(self, adopter, tmp_path):
        # semantics 7.6
        before = time.time()
        job = self.orphan(tmp_path)
        first, second = adopter[0].look(job), adopter[0].look(job)
        assert (first.state, first.outcome) == (second.state, second.outcome) == ('running', None)
        assert first.began is None or before - 1 < first.began < time.time() + 1
        assert first.text
        touch(str(tmp_path / 'a.go'))
        wait_until(lambda: adopter[0].look(job).state == 'ended', 'its end')

    def test_what_is_adopted_goes_on_and_its_outcome_comes(self, adopter, tmp_path):
        # semantics 7.6
        construct, port = adopter
        job = self.orphan(tmp_path)
        construct.look(job)
        construct.open(port)
        construct.adopt(job)
        for _ in range(5):
            port.turn(construct)
        assert port.outcomes == {}
        touch(str(tmp_path / 'a.go'))
        assert pickle.loads(port.outcome(construct, job).result) == 'a'
        construct.settle(job)
        wait_until(lambda: construct.look(job).state != 'running', 'its end')
        assert construct.look(job).outcome is None, 'it was settled'

    def test_the_outcome_that_was_left_is_seen(self, adopter, tmp_path):
        # semantics 7.6
        job = self.orphan(tmp_path)
        touch(str(tmp_path / 'a.go'))
        sight = wait_until(lambda: [one for one in [adopter[0].look(job)]
                                    if one.state == 'ended'])[0]
        assert pickle.loads(sight.outcome.result) == 'a'
        assert abs(sight.outcome.ended - time.time()) < PATIENCE
        adopter[0].settle(job)
        assert adopter[0].look(job).outcome is None, 'it was settled'

    def test_the_outcome_of_what_has_ended_since_it_was_seen_comes(self, adopter, tmp_path):
        # semantics 7.6
        construct, port = adopter
        job = self.orphan(tmp_path)
        sight = construct.look(job)
        touch(str(tmp_path / 'a.go'))
        wait_until(lambda: construct.look(Job('a', process=job.process, outcome=job.outcome)
                                          ).state == 'ended', 'its end')
        construct.open(port)
        construct.adopt(job)
        assert sight.state == 'running'
        assert pickle.loads(port.outcome(construct, job).result) == 'a'
        construct.settle(job)

    def test_what_is_adopted_can_be_killed(self, adopter, tmp_path):
        construct, port = adopter
        if not construct.can_kill:
            pytest.skip('not for constructs that cannot end what they run')
        job = self.orphan(tmp_path)
        construct.look(job)
        construct.open(port)
        construct.adopt(job)
        construct.kill(job, True)
        outcome = port.outcome(construct, job)
        construct.settle(job)
        assert (outcome.status, outcome.interrupted) == ('failure', False)
        assert outcome.error and self.KILLED in outcome.error

    def test_what_was_not_released_has_not_begun_and_never_will(self, adopter, tmp_path):
        # semantics 7.6
        job = self.orphan(tmp_path, release=False)
        sight = wait_until(lambda: [one for one in [adopter[0].look(job)]
                                    if one.state in ('never_began', 'ended')])[0]
        assert sight.outcome is None
        assert not (tmp_path / 'a.runs').exists()

    def test_what_cannot_be_looked_at_is_unknown(self, adopter, tmp_path):
        # semantics 7.7
        job = Job('a', process=self.STRANGE, outcome=str(tmp_path / 'outcomes' / 'a'))
        assert adopter[0].look(job).state == 'unknown'
