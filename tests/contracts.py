"""What every store has to pass: the docstrings of `sequent.Store` as tests.

A subclass of a contract supplies what makes one, and inherits the tests::

    class TestMyStore(StoreContract):
        def make_store(self):
            return MyStore(...)
"""

import contextlib
import os
import pickle

import pytest

import sequent
from sequent import AlreadyRunningError, RunRecord, StoreError, TaskRecord


def a_run(run_id='r1', recovery=0, flow='etl', **fields):
    fields = dict({'started': 1700000000.25, 'process': sequent.process_identity()}, **fields)
    return RunRecord(flow, run_id, recovery, **fields)


def a_task(path='a', sequence='1', recovery=0, attempt=1, kind='leaf', status='success',
           **fields):
    return TaskRecord(path, sequence, recovery, attempt, kind, status, **fields)


def places(records):
    return [(record.path, record.sequence) for record in records]


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
            assert store.counts(a_run()) == []

    def test_it_may_be_closed_twice_and_without_having_been_opened(self):
        store = self.make_store()
        store.close()
        store.open()
        store.close()
        store.close()

    def test_it_keeps_what_it_has_when_closed_and_opened_again(self, store, run):
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
            ended=3.25, process='{}', result=b'\0\xff', events='["e"]',
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
        assert store.counts(unknown) == []
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
        assert sorted(store.counts(run)) == [
            ('a', 'leaf', 'success', 5), ('b', 'leaf', 'failure', 1), ('b', 'leaf', 'success', 1),
            ('c', 'container', 'active', 1)]

    def test_counts_come_in_the_order_in_which_paths_were_first_stored(self, store, run):
        store.commit(run, [a_task('b', status='failure'), a_task('a'), a_task('c')])
        store.commit(run, [a_task('b', recovery=1), a_task('c', '1.2', status='failure')])
        assert [path for path, _, _, _ in store.counts(run)] == ['b', 'a', 'c', 'c']

    def test_counts_leave_out_iterations(self, store, run):
        store.commit(run, [a_task('s', '1.1', kind='iteration', status=''), a_task('s_a', '1.1')])
        assert store.counts(run) == [('s_a', 'leaf', 'success', 1)]


class KeepingStoreContract(StoreContract):
    """What a store that is not volatile promises beyond."""

    def test_it_is_not_volatile(self, store):
        assert store.volatile is False

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
