"""The reference model and the generator of flows, checked by hand before they judge the engine."""

import pytest

from flows import ALWAYS, Flow, Node, circular, oversized, random_flow
from reference import Past, Reference


def on(path, status='success'):
    return 'atom', path, status


def both(*operands):
    return 'and', list(operands)


def either(*operands):
    return 'or', list(operands)


def handler(name, *requirement, **given):
    """Return a step that makes good a failure: ``handler('h', 'a'[, 'complete'])``."""
    path, status = (requirement + ('failure',))[:2]
    return Node(name, require=on(path, status), handles=True, **given)


class Play(Reference):
    """A reference whose tasks are written ``path@sequence``."""

    def now_running(self):
        return ' '.join(sorted('%s@%s' % name for name in self.running()))

    def succeed(self, *names):
        for name in names:
            self.finish(*(name.split('@') + [True]))
        return self.now_running()

    def fail(self, *names):
        for name in names:
            self.finish(*(name.split('@') + [False]))
        return self.now_running()

    def status(self, name):
        return self.statuses().get(tuple(name.split('@')))

    def ok(self):
        return self.result()[0]


def play(*children, **given):
    """Start a flow with these steps; ``earlier`` is {'path@sequence': outcome}."""
    earlier = {tuple(name.split('@')): one for name, one in given.pop('earlier', {}).items()}
    more = {key: given.pop(key) for key in ('recovery', 'now', 'continued') if key in given}
    if earlier and 'continued' not in more:
        more.setdefault('recovery', 1)
    return Play(Flow(children, **given), earlier, **more)


# Sequences, loops, leaves (1) ####################################################


def test_a_leaf_runs_at_the_sequence_of_all_containers_around_it():      # semantics 1.3
    flow = play(Node('a', [Node('b', [Node('c')], loop=2)]))
    assert flow.now_running() == 'a_b_c@1.1.1'
    assert flow.succeed('a_b_c@1.1.1') == 'a_b_c@1.1.2'
    flow.succeed('a_b_c@1.1.2')
    assert flow.result() == (True, {
        ('a', '1'): 'success', ('a_b', '1.1'): 'success',
        ('a_b_c', '1.1.1'): 'success', ('a_b_c', '1.1.2'): 'success'})


def test_a_leaf_without_function_succeeds_at_once():      # semantics 1.1
    flow = play(Node('a', func=False), Node('b', require=on('a')))
    assert flow.now_running() == 'b@1'


def test_a_flow_without_steps_is_over_at_once():
    assert play().result() == (True, {})


def test_an_empty_loop_succeeds_at_once():      # semantics 1.4
    flow = play(Node('a', [Node('x')], loop=0), Node('b', require=on('a')))
    assert flow.now_running() == 'b@1'
    assert flow.status('a_x@1.1') is None


def test_iterations_run_one_after_another():      # semantics 1.4
    flow = play(Node('a', [Node('x'), Node('y')], loop=2))
    assert flow.succeed('a_x@1.1') == 'a_y@1.1'
    assert flow.succeed('a_y@1.1') == 'a_x@1.2 a_y@1.2'


def test_max_concurrent_on_a_container_is_the_number_of_iterations_in_flight():     # semantics 1.4
    flow = play(Node('a', [Node('x')], loop=4, max_concurrent=2))
    assert flow.now_running() == 'a_x@1.1 a_x@1.2'
    assert flow.succeed('a_x@1.2') == 'a_x@1.1 a_x@1.3'


def test_max_concurrent_below_1_on_a_container_starts_all_iterations():      # semantics 1.4
    flow = play(Node('a', [Node('x')], loop=3, max_concurrent=0))
    assert flow.now_running() == 'a_x@1.1 a_x@1.2 a_x@1.3'


def test_a_leaf_with_a_loop_runs_once_per_item_one_level_down():      # semantics 1.3
    flow = play(Node('a', loop=2), Node('b', require=on('a')))
    assert flow.now_running() == 'a@1.1'
    assert flow.succeed('a@1.1') == 'a@1.2'
    assert flow.succeed('a@1.2') == 'b@1'
    assert flow.status('a@1') == 'success'


def test_a_loop_that_raises_fails_its_container():      # semantics 1.4
    flow = play(Node('a', [Node('x')], loop=3, loop_fails=(2, ALWAYS)), handler('b', 'a'))
    assert flow.succeed('a_x@1.1') == 'b@1'
    flow.succeed('b@1')
    assert flow.ok()


def test_iterations_in_flight_go_on_when_the_loop_raises():
    flow = play(Node('a', [Node('x'), Node('y', require=on('a_x'))], loop=3, max_concurrent=2,
                     loop_fails=(3, ALWAYS)), Node('b'))
    assert flow.succeed('a_x@1.1', 'a_y@1.1') == 'a_x@1.2 b@1'
    assert flow.succeed('a_x@1.2') == 'a_y@1.2 b@1'
    flow.succeed('a_y@1.2', 'b@1')
    assert flow.status('a@1') == 'failure'
    assert not flow.ok()


def test_a_loop_can_raise_in_the_first_runs_only():
    steps = Node('a', loop=1, loop_fails=(1, 1))
    assert play(steps).result() == (False, {('a', '1'): 'failure'})
    assert play(steps, recovery=1).now_running() == 'a@1.1'


# Requirements (2) ################################################################


def test_a_tuple_waits_for_all():      # semantics 2.1
    flow = play(Node('a'), Node('b'), Node('c', require=both(on('a'), on('b'))))
    assert flow.succeed('b@1') == 'a@1'
    assert flow.succeed('a@1') == 'c@1'


def test_or_waits_for_the_first():      # semantics 2.1, 10.3
    flow = play(Node('a'), Node('b'), Node('c', require=either(on('a'), on('b'))))
    assert flow.succeed('b@1') == 'a@1 c@1'
    assert flow.succeed('a@1') == 'c@1'        # 2.3: once per sequence


def test_expressions_nest():      # semantics 2.1
    flow = play(*([Node(name) for name in 'abc'] + [
        Node('d', require=both(either(on('a'), on('b')), either(on('c'), on('b', 'failure'))))]))
    assert flow.succeed('a@1') == 'b@1 c@1'
    assert flow.fail('b@1') == 'c@1 d@1'


@pytest.mark.parametrize('status, after_success, after_failure', [
    ('success', True, False), ('failure', False, True), ('complete', True, True)])
def test_what_ends_a_step_can_be_required(status, after_success, after_failure):      # 2.2
    steps = [Node('a'), Node('b', require=on('a', status))]
    assert play(*steps, stop=False).succeed('a@1') == ('b@1' if after_success else '')
    assert play(*steps, stop=False).fail('a@1') == ('b@1' if after_failure else '')


def test_ready_and_active_can_be_required():      # semantics 2.2
    steps = [Node('a'), Node('b'), Node('c', require=on('b', 'ready')),
             Node('d', require=on('b', 'active'))]
    flow = play(*steps, max_concurrent=1)
    assert flow.status('c@1') == 'ready'
    assert flow.status('d@1') is None
    assert flow.succeed('a@1') == 'b@1'
    assert flow.status('d@1') == 'ready'


def test_a_sibling_is_read_at_the_same_sequence():      # semantics 2.5
    flow = play(Node('a', [Node('x'), Node('y', require=on('a_x'))], loop=2, max_concurrent=2))
    assert flow.succeed('a_x@1.2') == 'a_x@1.1 a_y@1.2'


def test_a_step_further_out_is_read_at_its_shorter_sequence():      # semantics 2.5
    flow = play(Node('o'), Node('a', [Node('x', require=on('o'))], loop=2, max_concurrent=2))
    assert flow.now_running() == 'o@1'
    assert flow.succeed('o@1') == 'a_x@1.1 a_x@1.2'


def test_a_step_further_out_counts_for_later_iterations():      # semantics 2.3, 2.5
    flow = play(Node('o'), Node('a', [Node('x', require=on('o'))], loop=2))
    flow.succeed('o@1')
    assert flow.succeed('a_x@1.1') == 'a_x@1.2'


def test_a_step_may_require_that_its_own_container_is_active():      # semantics 2.6
    flow = play(Node('a', [Node('x', require=both(on('a', 'ready'), on('a', 'active')))]))
    assert flow.now_running() == 'a_x@1.1'
    assert not circular(flow.flow)


# Failure (3) #####################################################################


def test_a_failure_fails_the_flow_though_something_reacts_to_it():      # semantics 3.2
    for status in ('failure', 'complete'):
        flow = play(Node('a'), Node('mail', require=on('a', status)))
        assert flow.fail('a@1') == 'mail@1'
        flow.succeed('mail@1')
        assert not flow.ok()
        assert flow.made_good() == set()


@pytest.mark.parametrize('status', ['failure', 'complete'])
def test_a_handler_that_succeeds_makes_a_failure_good(status):      # semantics 3.3, 3.4
    flow = play(Node('a'), handler('h', 'a', status), Node('c'), Node('d', require=on('c')))
    assert flow.fail('a@1') == 'c@1 h@1'
    assert flow.made_good() == set()
    assert flow.succeed('h@1', 'c@1') == 'd@1'      # nothing was stopped
    flow.succeed('d@1')
    assert flow.ok()
    assert flow.made_good() == {('a', '1')}


def test_a_handler_that_fails_makes_nothing_good():      # semantics 3.3
    flow = play(Node('a'), handler('h', 'a'))
    flow.fail('a@1', 'h@1')
    assert not flow.ok()
    assert flow.made_good() == set()


def test_a_handler_whose_own_failure_is_made_good_has_made_good():      # semantics 3.3
    flow = play(Node('a'), handler('h', 'a'), handler('i', 'h'))
    assert flow.fail('a@1', 'h@1') == 'i@1'
    flow.succeed('i@1')
    assert flow.ok()
    assert flow.made_good() == {('a', '1'), ('h', '1')}


def test_a_handler_that_ran_before_the_failure_has_made_nothing_good():      # semantics 3.3
    steps = [Node('a'), Node('b'), Node('h', require=either(on('b'), on('a', 'failure')),
                                        handles=True)]
    flow = play(*steps)
    flow.succeed('b@1')
    flow.fail('a@1')
    flow.succeed('h@1')     # it had begun already
    assert not flow.ok()
    flow = play(*steps)
    flow.fail('a@1')
    flow.succeed('b@1', 'h@1')
    assert flow.ok()


def test_the_attempt_with_which_a_handler_succeeds_counts():      # semantics 3.3
    flow = play(Node('a'), Node('b'), Node('h', require=either(on('b'), on('a', 'failure')),
                                           handles=True, retries=1, retry_delay=1))
    flow.succeed('b@1')
    flow.fail('h@1', 'a@1')
    flow.advance()
    flow.succeed('h@1')
    assert flow.ok()


def test_a_handler_that_never_ran_has_made_nothing_good():      # semantics 3.3
    flow = play(Node('a'), Node('b', stop=False), Node('c'),
                Node('h', require=both(on('a', 'failure'), on('b')), handles=True))
    assert flow.fail('a@1', 'b@1') == 'c@1'     # a's failure was expected: it stopped nothing
    flow.succeed('c@1')
    assert not flow.ok()


def test_one_handler_of_several_is_enough():      # semantics 3.3
    flow = play(Node('a'), handler('h', 'a'), handler('i', 'a', 'complete', stop=False))
    flow.fail('a@1', 'h@1')
    flow.succeed('i@1')
    assert flow.made_good() == {('a', '1')}
    assert not flow.ok()        # h failed


def test_only_a_sibling_makes_a_failure_good():      # semantics 3.3
    flow = play(Node('a'), Node('c', [Node('h', require=on('a', 'failure'))]),
                handled_by='failure')
    assert flow.fail('a@1') == 'c_h@1.1'
    flow.succeed('c_h@1.1')
    assert not flow.ok()


def test_every_sibling_that_requires_the_failure_can_be_made_a_handler():      # semantics 3.3
    for status, by in [('failure', 'failure'), ('failure', 'complete'), ('complete', 'complete')]:
        flow = play(Node('a'), Node('h', require=on('a', status)), handled_by=by)
        flow.fail('a@1')
        flow.succeed('h@1')
        assert flow.ok()
    flow = play(Node('a'), Node('h', require=on('a', 'complete')), handled_by='failure')
    flow.fail('a@1')
    flow.succeed('h@1')
    assert not flow.ok()


def test_a_container_can_make_a_failure_good():      # semantics 3.3
    flow = play(Node('a'), Node('h', [Node('x')], require=on('a', 'failure'), handles=True))
    assert flow.fail('a@1') == 'h_x@1.1'
    flow.succeed('h_x@1.1')
    assert flow.ok()


def test_an_expected_failure_that_is_not_made_good_counts_at_the_end_of_its_iteration():    # 3.4
    steps = [Node('x'), handler('h', 'a_x', stop=False), Node('y'), Node('z', require=on('a_y'))]
    flow = play(Node('a', steps, loop=2), Node('b'), Node('c', require=on('b')))
    assert flow.fail('a_x@1.1', 'a_h@1.1') == 'a_y@1.1 b@1'
    assert flow.succeed('a_y@1.1') == 'a_z@1.1 b@1'
    assert flow.succeed('a_z@1.1') == 'b@1'     # no second iteration
    assert flow.status('a@1') == 'failure'
    assert flow.succeed('b@1') == ''        # a's own failure was unexpected, too
    assert not flow.ok()


def test_at_the_end_of_an_iteration_the_failure_of_the_container_may_be_expected():     # 3.4
    flow = play(Node('a', [Node('x'), handler('h', 'a_x', stop=False)], loop=2),
                handler('i', 'a'), Node('b'), Node('c', require=on('b')))
    assert flow.fail('a_x@1.1', 'a_h@1.1') == 'b@1 i@1'
    assert flow.succeed('b@1') == 'c@1 i@1'
    flow.succeed('c@1', 'i@1')
    assert flow.ok()
    assert flow.made_good() == {('a', '1')}


def test_at_the_end_of_an_iteration_those_in_flight_are_stopped():      # semantics 3.4
    steps = [Node('x'), handler('h', 'a_x', stop=False), Node('y'), Node('z', require=on('a_y'))]
    flow = play(Node('a', steps, loop=3, max_concurrent=2))
    flow.succeed('a_x@1.2', 'a_y@1.1', 'a_z@1.1')
    assert flow.fail('a_x@1.1') == 'a_h@1.1 a_y@1.2'
    assert flow.fail('a_h@1.1') == 'a_y@1.2'
    assert flow.succeed('a_y@1.2') == ''
    assert not flow.ok()


def test_at_the_end_of_an_iteration_the_setting_of_what_failed_counts():      # semantics 3.4
    flow = play(Node('a', [Node('x', stop=False), handler('h', 'a_x', stop=False)], loop=2))
    assert flow.fail('a_x@1.1', 'a_h@1.1') == 'a_x@1.2'
    flow.succeed('a_x@1.2')
    assert flow.status('a@1') == 'failure'


# Reactions (3.4) #################################################################


def test_a_stop_spares_what_reacts_to_the_failure_that_stopped():      # semantics 3.4
    flow = play(Node('a'), Node('m', require=on('a', 'failure')), Node('b', delay=5))
    assert flow.fail('a@1') == 'm@1'
    assert flow.reactions() == {('m', '1')}
    flow.succeed('m@1')
    assert not flow.ok()


def test_a_stop_spares_what_reacts_to_a_failure_that_came_later():      # semantics 3.4
    flow = play(Node('a'), Node('b'), Node('m', require=on('b', 'failure')),
                Node('n', require=on('b', 'complete')))
    flow.fail('a@1')
    assert flow.fail('b@1') == 'm@1 n@1'
    flow.succeed('m@1', 'n@1')


def test_a_stop_spares_no_report_of_what_succeeded():      # semantics 3.4
    flow = play(Node('a'), Node('b'), Node('n', require=on('b', 'complete')))
    flow.fail('a@1')
    assert flow.succeed('b@1') == ''
    assert flow.status('n@1') is None


def test_a_stop_spares_reactions_to_a_failure_that_came_first():      # semantics 3.4
    flow = play(Node('a', stop=False), Node('b'),
                Node('m', require=on('a', 'failure'), delay=5, retries=1, retry_delay=3),
                Node('n', require=on('a', 'failure'), acquires=[('p', 1)]),
                Node('c', acquires=[('p', 1)]), pools={'p': 1})
    flow.fail('a@1', 'b@1')
    assert flow.succeed('c@1') == 'n@1'
    flow.advance()
    flow.fail('m@1')
    assert flow.dropped() == set()
    assert flow.next_due() == 8     # it is tried again
    flow.advance()
    flow.succeed('m@1', 'n@1')
    assert flow.over()


def test_a_stop_spares_all_that_is_inside_a_reaction():      # semantics 3.4
    flow = play(Node('a'), Node('m', [Node('x'), Node('y', require=on('m_x'))], loop=2,
                                require=on('a', 'failure')))
    assert flow.fail('a@1') == 'm_x@1.1'
    assert flow.succeed('m_x@1.1') == 'm_y@1.1'
    assert flow.succeed('m_y@1.1') == 'm_x@1.2'


def test_a_failure_inside_a_reaction_stops_that():      # semantics 3.4
    flow = play(Node('a'), Node('m', [Node('x'), Node('y'), Node('z', require=on('m_y'))], loop=2,
                                require=on('a', 'failure')))
    flow.fail('a@1')
    assert flow.fail('m_x@1.1') == 'm_y@1.1'
    assert flow.succeed('m_y@1.1') == ''
    assert flow.status('m@1') == 'failure'


def test_what_follows_from_a_reaction_is_none():      # semantics 3.4
    flow = play(Node('a'), Node('m', require=on('a', 'failure')), Node('n', require=on('m')))
    flow.fail('a@1')
    assert flow.succeed('m@1') == ''


def test_what_would_run_without_the_failure_is_no_reaction():      # semantics 3.4
    steps = [Node('a'), Node('b'), Node('m', require=either(on('b'), on('a', 'failure')), delay=5)]
    flow = play(*steps)
    flow.succeed('b@1')
    flow.fail('a@1')
    assert flow.over()      # m was dropped
    flow = play(*steps)
    flow.fail('a@1')
    flow.succeed('b@1')
    assert flow.next_due() == 5     # m had become a reaction


def test_what_holds_at_one_moment_reacts_whatever_starts_first():      # semantics 3.4
    steps = [Node('joined', func=False, require=both(on('a', 'complete'), on('b', 'complete'))),
             Node('mail', require=either(on('joined'), on('a', 'complete')))]
    for joined, mail in [steps, steps[::-1]]:
        flow = play(Node('a'), Node('b'), joined, mail)
        flow.succeed('b@1')
        assert flow.fail('a@1') == 'mail@1'


def test_what_could_run_anyway_keeps_no_stopped_iteration_open():      # semantics 3.4, 3.6
    flow = play(Node('o'), Node('a', [Node('x'), Node('y'),
                                      Node('z', require=either(on('a_y'), on('o', 'failure')))]),
                handler('h', 'a'))
    flow.fail('a_x@1.1')
    assert flow.succeed('a_y@1.1') == 'h@1 o@1'


def test_a_handler_that_never_began_has_made_nothing_good():      # semantics 3.3, 4.3
    flow = play(Node('k', acquires=[('p', 1)], releases=[]),
                Node('c', [Node('x'), handler('h', 'c_x', acquires=[('p', 1)])], loop=1,
                     tolerate=1, require=on('k')), pools={'p': 1})
    flow.succeed('k@1')
    flow.fail('c_x@1.1')
    assert flow.deadlocks == 1
    assert flow.ok()
    assert flow.handled() == set()
    assert flow.borne() == {('c_x', '1.1'), ('c_h', '1.1')}


def test_a_failure_further_out_can_be_reacted_to():      # semantics 3.4, 3.6
    flow = play(Node('o'), Node('a', [Node('x'), Node('m', require=on('o', 'failure'))]),
                handler('h', 'a'))
    assert flow.fail('a_x@1.1') == 'o@1'        # a is stopped, and not over
    assert flow.fail('o@1') == 'a_m@1.1'
    assert flow.succeed('a_m@1.1') == 'h@1'


def test_a_stopped_iteration_is_kept_open_for_what_a_reaction_waits_for():     # 3.4, 3.6
    flow = play(Node('o'), Node('a', [Node('x'), Node('m', require=both(on('a_x', 'failure'),
                                                                        on('o')))]),
                handler('h', 'a'))
    assert flow.fail('a_x@1.1') == 'o@1'
    assert flow.succeed('o@1') == 'a_m@1.1'


def test_a_stop_of_a_borne_iteration_spares_reactions():      # semantics 3.3, 3.4
    flow = play(Node('a', [Node('x'), Node('m', require=on('a_x', 'failure'))], loop=2,
                     tolerate=1))
    assert flow.fail('a_x@1.1') == 'a_m@1.1'
    assert flow.succeed('a_m@1.1') == 'a_x@1.2'


def test_an_unexpected_failure_stops_what_did_not_start():      # semantics 3.4
    flow = play(Node('a'), Node('b'), Node('c', require=on('b')), Node('d'), max_concurrent=2)
    assert flow.fail('a@1') == 'b@1'
    assert flow.succeed('b@1') == ''
    assert not flow.ok()
    assert flow.status('c@1') is None
    assert flow.status('d@1') == 'ready'        # dropped, it keeps its status


def test_a_failure_that_stops_nothing_lets_the_rest_go_on():      # semantics 3.4
    flow = play(Node('a', stop=False), Node('b', require=on('a')), Node('c'),
                Node('d', require=on('c')))
    assert flow.fail('a@1') == 'c@1'
    assert flow.succeed('c@1') == 'd@1'
    flow.succeed('d@1')
    assert not flow.ok()
    assert flow.status('b@1') is None       # 3.5: not run


def test_what_never_came_to_run_is_no_failure():      # semantics 3.5
    flow = play(Node('a'), Node('b', require=on('a', 'failure')))
    flow.succeed('a@1')
    assert flow.result() == (True, {('a', '1'): 'success'})


def test_an_unexpected_failure_fails_its_container_whose_failure_can_be_made_good():    # 3.3
    flow = play(Node('a', [Node('x')], loop=2), handler('b', 'a'))
    assert flow.fail('a_x@1.1') == 'b@1'        # 3.4: no second iteration
    flow.succeed('b@1')
    assert flow.ok()
    assert flow.status('a_x@1.2') is None


def test_a_container_fails_at_its_end_when_what_runs_has_finished():      # semantics 3.3, 3.4
    flow = play(Node('a', [Node('x'), Node('y'), Node('z', require=on('a_y'))]),
                Node('b', require=on('a', 'failure')))
    assert flow.fail('a_x@1.1') == 'a_y@1.1'
    assert flow.status('a@1') == 'active'
    assert flow.succeed('a_y@1.1') == 'b@1'
    assert flow.status('a_z@1.1') is None


def test_a_stop_is_for_all_iterations_of_a_container():      # semantics 3.4
    flow = play(Node('a', [Node('x'), Node('y', require=on('a_x'))], loop=2, max_concurrent=2),
                Node('b', require=on('a', 'failure')))
    assert flow.fail('a_x@1.1') == 'a_x@1.2'
    assert flow.succeed('a_x@1.2') == 'b@1'


def test_later_iterations_go_on_after_a_failure_that_stops_nothing():      # semantics 3.4
    flow = play(Node('a', [Node('x')], loop=2, stop=False))
    assert flow.fail('a_x@1.1') == 'a_x@1.2'
    flow.succeed('a_x@1.2')
    assert flow.status('a@1') == 'failure'


def test_stop_on_exception_is_inherited_by_what_is_inside():      # semantics 3.4, 8.4
    flow = play(Node('a', [Node('x'), Node('y', stop=True)], loop=2, stop=False), Node('b'))
    assert flow.fail('a_x@1.1') == 'a_y@1.1 b@1'
    assert flow.fail('a_y@1.1') == 'b@1'        # a stopped; its own setting stops nothing
    assert flow.status('a@1') == 'failure'


def test_a_stop_goes_outward_in_the_same_turn_to_where_the_failure_is_expected():   # semantics 3.4
    flow = play(Node('a', [Node('b', [Node('x'), Node('y')]), Node('z'),
                           Node('w', require=on('a_z'))]),
                handler('h', 'a'), Node('i'), Node('j', require=on('i')))
    assert flow.fail('a_b_x@1.1.1') == 'a_b_y@1.1.1 a_z@1.1 i@1'
    assert flow.succeed('a_z@1.1') == 'a_b_y@1.1.1 i@1'     # w is stopped
    assert flow.succeed('i@1') == 'a_b_y@1.1.1 j@1'         # the flow is not
    assert flow.succeed('a_b_y@1.1.1') == 'h@1 j@1'
    assert flow.status('a_b@1.1') == flow.status('a@1') == 'failure'


def test_a_containers_own_setting_counts_at_its_end():      # semantics 3.4
    flow = play(Node('a', [Node('x', stop=False), Node('y')]), Node('b'),
                Node('c', require=on('b')))
    assert flow.fail('a_x@1.1') == 'a_y@1.1 b@1'
    assert flow.succeed('a_y@1.1') == 'b@1'
    assert flow.succeed('b@1') == ''        # the flow is stopped


def test_a_container_stopped_from_outside_that_lost_nothing_succeeds():
    flow = play(Node('a', [Node('x')]), Node('b'), Node('c', [Node('x')], loop=2))
    flow.fail('b@1')
    flow.succeed('a_x@1.1', 'c_x@1.1')
    assert flow.status('a@1') == 'success'
    assert flow.status('c@1') == 'active'       # it had items left


def test_a_container_stopped_from_outside_that_lost_something_stays_active():
    flow = play(Node('a', [Node('x'), Node('y', require=on('a_x'))]), Node('b'),
                Node('c', [Node('x'), Node('y', require=on('d'))]), Node('d', require=on('b')))
    flow.fail('b@1')
    flow.succeed('a_x@1.1', 'c_x@1.1')
    assert flow.status('a@1') == 'active'
    assert flow.status('c@1') == 'active'       # it waited for what a recovery may raise


def test_a_stopped_container_that_stays_active_gives_back_its_resources():      # semantics 4.3
    flow = play(Node('a', [Node('x'), Node('b', [Node('y'), Node('z', require=on('a_b_y'))],
                                           acquires=[('p', 1)])]),
                Node('h', require=on('a', 'failure'), acquires=[('p', 1)]), pools={'p': 1})
    assert flow.fail('a_x@1.1') == 'a_b_y@1.1.1'
    assert flow.succeed('a_b_y@1.1.1') == 'h@1'
    assert flow.status('a_b@1.1') == 'active'


def test_what_became_ready_in_the_moment_of_a_stop_was_never_ready():
    flow = play(Node('a'), Node('b', loop=1, loop_fails=(1, ALWAYS)))
    assert flow.result() == (False, {('b', '1'): 'failure'})


def test_a_stop_drops_a_delay_which_keeps_its_due_time():      # semantics 3.4
    flow = play(Node('a'), Node('b', delay=5))
    flow.fail('a@1')
    assert not flow.ok()
    assert flow.status('b@1') == 'ready'
    assert flow.dues() == {('b', '1'): 5}


def test_a_failed_item_fails_a_leaf_with_a_loop():      # semantics 3.3
    flow = play(Node('a', loop=3), Node('b', require=on('a', 'failure')))
    assert flow.fail('a@1.1') == 'b@1'
    flow = play(Node('a', loop=2, stop=False), Node('b', require=on('a', 'failure')))
    assert flow.fail('a@1.1') == 'a@1.2'
    assert flow.succeed('a@1.2') == 'b@1'


# The end of iterations (3.6) #####################################################


def test_an_iteration_stays_open_for_what_can_still_be_raised_outside():      # semantics 3.6
    flow = play(Node('o', stop=False), Node('a', [Node('x', require=on('o', 'failure'))], loop=2))
    assert flow.status('a@1') == 'active'
    assert flow.fail('o@1') == 'a_x@1.1'
    assert flow.succeed('a_x@1.1') == 'a_x@1.2'


def test_an_iteration_ends_when_what_it_awaits_was_not_raised():      # semantics 3.6
    flow = play(Node('o'), Node('a', [Node('x', require=on('o', 'failure'))], loop=2),
                Node('b', require=on('a')), Node('c', require=on('o')))
    assert flow.succeed('o@1') == 'b@1 c@1'
    assert flow.status('a@1') == 'success'


def test_an_iteration_stays_open_while_the_outer_one_is_busy():      # semantics 3.6
    flow = play(Node('o', require=on('never', 'failure')), Node('never'), Node('z'),
                Node('a', [Node('x', require=on('o'))]), Node('b', require=on('a')))
    assert flow.succeed('never@1') == 'z@1'
    assert flow.status('a@1') == 'active'
    assert flow.succeed('z@1') == 'b@1'         # nothing can raise o any more


def test_waiting_iterations_end_together_before_their_statuses_are_raised():      # semantics 3.6
    flow = play(Node('o', require=either(on('a'), on('n', 'failure'))), Node('n'),
                Node('a', [Node('x', require=on('n', 'failure'))]),
                Node('b', [Node('x', require=on('o'))]),
                Node('c', [Node('x', require=on('c2', 'failure'))]),
                Node('c2', [Node('x', require=on('o'))]))
    # a waits for n only and ends by itself: its success starts o, on which b and c2 wait
    assert flow.succeed('n@1') == 'o@1'
    assert flow.succeed('o@1') == 'b_x@1.1 c2_x@1.1'


def test_statuses_of_waiting_containers_come_too_late_for_the_others():      # semantics 3.6
    hopeless = Node('n', require=on('m', 'failure'))
    flow = play(Node('m'), hopeless, Node('a', [Node('x', require=on('n'))]),
                Node('b', [Node('x', require=either(on('n'), on('c')))]),
                Node('c', require=on('a')))
    assert flow.succeed('m@1') == 'c@1'         # a and b ended together, then a was raised
    assert flow.status('b@1') == 'success'
    flow.succeed('c@1')
    assert flow.status('b_x@1.1') is None


def test_inner_waiting_iterations_end_before_outer_ones():      # semantics 3.6
    flow = play(Node('m'), Node('n', require=on('m', 'failure')),
                Node('a', [Node('b', [Node('x', require=on('n'))]),
                           Node('y', require=on('a_b')), Node('z', require=on('n'))], loop=2))
    assert flow.succeed('m@1') == 'a_y@1.1'
    assert flow.succeed('a_y@1.1') == 'a_y@1.2'


def test_an_outer_iteration_that_waits_further_out_keeps_inner_ones_open():      # semantics 3.6
    flow = play(Node('m'), Node('a', [Node('o', require=on('m')),
                                      Node('b', [Node('x', require=on('a_o'))])]))
    assert flow.status('a_b@1.1') == 'active'
    assert flow.succeed('m@1') == 'a_o@1.1'
    assert flow.succeed('a_o@1.1') == 'a_b_x@1.1.1'


def test_in_what_is_stopped_nothing_is_awaited():      # semantics 3.4, 3.6
    flow = play(Node('o'), Node('a', [Node('x'), Node('y', require=on('o'))]),
                Node('h', require=on('a', 'failure')))
    assert flow.fail('a_x@1.1') == 'h@1 o@1'


# Concurrency and order (4.1, 4.2) ################################################


def test_max_concurrent_caps_the_running_tasks():      # semantics 4.1
    flow = play(Node('a'), Node('b'), Node('c'), max_concurrent=2)
    assert flow.now_running() == 'a@1 b@1'
    assert flow.succeed('a@1') == 'b@1 c@1'


def test_max_concurrent_on_a_leaf_caps_the_running_tasks_of_that_step():      # semantics 4.1
    flow = play(Node('a', [Node('x', max_concurrent=1), Node('y')], loop=2, max_concurrent=2))
    assert flow.now_running() == 'a_x@1.1 a_y@1.1 a_y@1.2'
    assert flow.succeed('a_x@1.1') == 'a_x@1.2 a_y@1.1 a_y@1.2'


def test_max_concurrent_on_a_leaf_with_a_loop_runs_items_side_by_side():      # semantics 1.4, 4.1
    flow = play(Node('a', loop=3, max_concurrent=2))
    assert flow.now_running() == 'a@1.1 a@1.2'
    flow = play(Node('b', [Node('a', loop=2, max_concurrent=2)], loop=2, max_concurrent=2))
    assert flow.now_running() == 'b_a@1.1.1 b_a@1.1.2'      # of the step in all


def test_ready_tasks_start_in_the_order_in_which_they_became_ready():      # semantics 4.2
    flow = play(Node('d', require=on('a')), Node('a'), Node('b'), Node('c'), max_concurrent=1)
    assert flow.now_running() == 'a@1'
    assert flow.succeed('a@1') == 'b@1'     # b and c were ready before d
    assert flow.succeed('b@1') == 'c@1'
    assert flow.succeed('c@1') == 'd@1'


def test_ties_start_in_the_order_in_which_steps_were_added():      # semantics 4.2
    steps = [Node('a', [Node('x')]), Node('b'), Node('c', require=on('b'))]
    assert play(*steps, max_concurrent=1).now_running() == 'a_x@1.1'
    late = play(*steps, max_concurrent=1, order=['b', 'a', 'c', 'a_x'])
    assert late.now_running() == 'b@1'
    assert late.succeed('b@1') == 'a_x@1.1'     # ready since the start, c is not


def test_ties_of_one_step_start_by_sequence():
    flow = play(Node('a', [Node('b', [Node('x', require=on('o'))], loop=2, max_concurrent=2)],
                     loop=2, max_concurrent=2), Node('o'), max_concurrent=1)
    flow.succeed('o@1')
    order = [flow.now_running()]
    while order[-1]:
        order.append(flow.succeed(order[-1]))
    assert order == ['a_b_x@1.1.1', 'a_b_x@1.1.2', 'a_b_x@1.2.1', 'a_b_x@1.2.2', '']


def test_what_becomes_ready_because_another_did_comes_after_it():      # semantics 4.2
    flow = play(Node('a'), Node('b', require=on('a', 'ready')), Node('c'), max_concurrent=2)
    assert flow.now_running() == 'a@1 c@1'


def test_what_needs_no_slot_starts_before_what_does():
    flow = play(Node('c', require=on('n')), Node('a'), Node('n', func=False), max_concurrent=1)
    assert flow.now_running() == 'c@1'


# Pools (4.3) #####################################################################


def test_acquiring_is_all_or_nothing():      # semantics 4.3
    flow = play(Node('a', acquires=[('p', 2)]), Node('b', acquires=[('p', 2), ('q', 1)]),
                Node('c', acquires=[('p', 1)]), Node('d', acquires=[('q', 1)]), Node('e'),
                pools={'p': 3, 'q': 1})
    # c may not pass b at p, nor d at q; e needs neither
    assert flow.now_running() == 'a@1 e@1'
    assert flow.succeed('a@1') == 'b@1 c@1 e@1'
    assert flow.succeed('b@1') == 'c@1 d@1 e@1'


def test_a_task_that_waits_for_a_slot_keeps_its_place_at_the_pool():      # semantics 4.3
    flow = play(Node('a'), Node('b', acquires=[('p', 1)]),
                Node('c', [Node('x')], acquires=[('p', 1)]), pools={'p': 1}, max_concurrent=1)
    assert flow.status('c@1') == 'ready'
    assert flow.succeed('a@1') == 'b@1'
    assert flow.succeed('b@1') == 'c_x@1.1'


def test_a_failed_task_gives_back_what_it_acquired():      # semantics 4.3
    flow = play(Node('a', acquires=[('p', 1)], stop=False), Node('b', acquires=[('p', 1)]),
                pools={'p': 1})
    assert flow.fail('a@1') == 'b@1'


def test_releases_is_what_is_given_back():      # semantics 4.3
    steps = [Node('a', acquires=[('p', 1)], releases=[]),
             Node('b', require=on('a'), releases=[('p', 1)]),
             Node('c', require=on('a'), acquires=[('p', 1)])]
    flow = play(*steps, pools={'p': 1})
    assert flow.succeed('a@1') == 'b@1'
    assert flow.succeed('b@1') == 'c@1'


def test_releasing_more_than_is_out_fails_the_task():      # semantics 4.3
    flow = play(Node('a', releases=[('p', 1)]), pools={'p': 1})
    flow.succeed('a@1')
    assert flow.status('a@1') == 'failure'


def test_a_container_holds_its_resources_from_its_first_iteration_to_its_last():   # semantics 4.3
    flow = play(Node('a', [Node('x')], loop=2, acquires=[('p', 1)]),
                Node('b', acquires=[('p', 2)]), pools={'p': 2})
    assert flow.succeed('a_x@1.1') == 'a_x@1.2'
    assert flow.succeed('a_x@1.2') == 'b@1'


def test_each_item_of_a_leaf_with_a_loop_acquires():      # semantics 4.3, 1.3
    flow = play(Node('a', loop=2, acquires=[('p', 1)]), Node('b', acquires=[('p', 1)]),
                pools={'p': 1})
    assert flow.now_running() == 'a@1.1'
    assert flow.succeed('a@1.1') == 'b@1'
    assert flow.succeed('b@1') == 'a@1.2'


def test_when_all_wait_for_resources_the_first_in_ready_order_fails():      # semantics 4.3
    flow = play(Node('a', acquires=[('p', 1)], releases=[]),
                Node('b', require=on('a', 'complete')),
                Node('c', acquires=[('p', 1)]), handler('d', 'c'), pools={'p': 1})
    assert flow.succeed('a@1') == 'b@1'
    assert flow.succeed('b@1') == 'd@1'
    assert flow.status('c@1') == 'failure'
    assert flow.deadlocks == 1
    flow.succeed('d@1')
    assert flow.made_good() == {('c', '1')}


def test_containers_that_hold_what_their_steps_need_fail():      # semantics 4.3
    flow = play(Node('a', [Node('x', acquires=[('q', 1)])], acquires=[('p', 1)]),
                Node('b', [Node('x', acquires=[('p', 1)])], acquires=[('q', 1)]),
                pools={'p': 1, 'q': 1}, stop=False)
    assert flow.status('a_x@1.1') == 'failure'
    assert flow.now_running() == 'b_x@1.1'      # a gave p back


def test_who_waits_first_at_a_pool_fails_when_he_blocks_what_a_container_holds():  # semantics 4.3
    flow = play(Node('a', [Node('x', acquires=[('p', 1)])], acquires=[('p', 1)]),
                Node('b', acquires=[('p', 2)]), pools={'p': 2}, stop=False)
    assert flow.now_running() == 'a_x@1.1'      # x became ready when a had started, after b
    assert flow.status('b@1') == 'failure'


def test_nobody_fails_for_want_of_resources_while_a_delay_is_under_way():      # semantics 4.3
    flow = play(Node('a', acquires=[('p', 1)], releases=[]),
                Node('b', delay=1, releases=[('p', 1)]),
                Node('c', require=on('a'), acquires=[('p', 1)]), pools={'p': 1})
    assert flow.succeed('a@1') == ''
    flow.advance()
    assert flow.succeed('b@1') == 'c@1'
    assert flow.deadlocks == 0


# Delays (4.4) ####################################################################


def test_a_delay_counts_from_when_the_requirement_holds():      # semantics 4.4
    flow = play(Node('a', delay=2), Node('b', delay=3, require=on('a')),
                Node('c', require=on('a', 'ready')))
    assert (flow.now_running(), flow.next_due()) == ('', 2)
    assert flow.status('a@1') == 'ready'
    flow.advance()
    assert flow.now_running() == 'a@1 c@1'      # ready is raised when the delay is over
    flow.succeed('a@1')
    assert flow.next_due() == 5


def test_a_delay_keeps_an_iteration_open():      # semantics 3.6
    flow = play(Node('a', [Node('x', delay=1)], loop=2))
    flow.advance()
    flow.succeed('a_x@1.1')
    assert flow.next_due() == 2
    flow.advance()
    assert flow.now_running() == 'a_x@1.2'


def test_the_delay_of_a_leaf_with_a_loop_counts_once():      # semantics 4.4, 1.3
    flow = play(Node('a', loop=2, delay=1))
    flow.advance()
    assert flow.succeed('a@1.1') == 'a@1.2'


def test_delays_that_end_at_one_time_start_in_the_order_of_the_steps():      # semantics 4.2, 4.4
    flow = play(Node('b', delay=1), Node('a', delay=1), max_concurrent=1)
    flow.advance()
    assert flow.now_running() == 'b@1'


# Retries (3.1, 3.4) ##############################################################


def test_a_failed_attempt_is_followed_by_another_and_raises_nothing():      # semantics 3.1
    flow = play(Node('a', retries=1), Node('b', require=on('a', 'complete')))
    assert flow.fail('a@1') == 'a@1'
    assert flow.attempt('a', '1') == 2
    assert flow.tried == {('a', '1', 1)}
    assert flow.succeed('a@1') == 'b@1'
    assert flow.failures() == set()


def test_when_no_attempts_are_left_the_last_failure_counts():      # semantics 3.1
    flow = play(Node('a', retries=2), Node('b', require=on('a', 'failure')))
    assert flow.fail('a@1', 'a@1') == 'a@1'
    assert not flow.tries_again('a', '1')
    assert flow.fail('a@1') == 'b@1'
    assert flow.failures() == {('a', '1')}


def test_a_failure_that_is_not_to_be_tried_again_is_not():
    flow = play(Node('a', retries=2, retry_delay=None), Node('b', require=on('a', 'failure')))
    assert flow.fail('a@1') == 'b@1'


def test_a_retry_waits_stored_as_ready_with_its_due_time():      # semantics 3.1, 4.4
    flow = play(Node('a', retries=1, retry_delay=3), now=4)
    assert flow.fail('a@1') == ''
    assert flow.status('a@1') == 'ready'
    assert flow.dues() == {('a', '1'): 7}
    flow.advance(6)
    assert flow.now_running() == ''
    flow.advance()
    assert flow.now_running() == 'a@1'


def test_a_waiting_retry_leaves_its_slot_and_what_it_acquired_to_others():      # 4.1, 4.3
    flow = play(Node('a', acquires=[('p', 1)], releases=[], retries=1, retry_delay=1),
                Node('b', acquires=[('p', 1)]), pools={'p': 1}, max_concurrent=1)
    assert flow.fail('a@1') == 'b@1'
    flow.advance()
    assert flow.now_running() == 'b@1'
    assert flow.succeed('b@1') == 'a@1'
    flow.succeed('a@1')
    assert flow.out == {'p': 1}     # a success gives back what `releases` says


def test_a_retry_gives_back_no_more_than_is_out():
    flow = play(Node('a', acquires=[('p', 2)], retries=1), Node('b', releases=[('p', 1)]),
                pools={'p': 2})
    assert flow.succeed('b@1') == 'a@1'
    assert flow.fail('a@1') == 'a@1'
    assert flow.out == {'p': 2}


def test_a_retry_without_delay_goes_to_the_end_of_the_ready_order():      # semantics 4.2
    flow = play(Node('a', retries=1), Node('b'), Node('c'), max_concurrent=1)
    assert flow.fail('a@1') == 'b@1'
    assert flow.status('a@1') == 'ready'
    assert flow.succeed('b@1') == 'c@1'
    assert flow.succeed('c@1') == 'a@1'


def test_a_retry_takes_its_place_in_ready_order_when_it_is_due():      # semantics 4.2
    flow = play(Node('a', retries=1, retry_delay=1), Node('b'), Node('c'), max_concurrent=1)
    assert flow.fail('a@1') == 'b@1'
    flow.advance()
    assert flow.succeed('b@1') == 'c@1'     # that has been ready since the start


def test_ready_and_active_are_raised_by_the_first_attempt_only():
    flow = play(Node('a', retries=1, retry_delay=1),
                Node('b', [Node('x', require=both(on('a', 'ready'), on('a', 'active')))], loop=2))
    assert flow.fail('a@1') == 'b_x@1.1'
    assert flow.succeed('b_x@1.1') == 'b_x@1.2'     # while a waits
    flow.advance()
    assert flow.succeed('b_x@1.2') == 'a@1'


def test_a_waiting_retry_keeps_its_iteration_open():      # semantics 3.6
    flow = play(Node('a', [Node('x', retries=1, retry_delay=1),
                           Node('b', [Node('y', require=on('a_x', 'failure'))])], loop=2))
    assert flow.fail('a_x@1.1') == ''
    assert flow.status('a_b@1.1') == 'active'
    flow.advance()
    assert flow.succeed('a_x@1.1') == 'a_x@1.2'


def test_nobody_fails_for_want_of_resources_while_a_retry_waits():      # semantics 4.3
    flow = play(Node('a', acquires=[('p', 1)], releases=[]),
                Node('b', retries=1, retry_delay=2, releases=[('p', 1)]),
                Node('c', require=on('a'), acquires=[('p', 1)]), pools={'p': 1})
    assert flow.succeed('a@1') == 'b@1'
    assert flow.fail('b@1') == ''
    flow.advance()
    assert flow.succeed('b@1') == 'c@1'
    assert flow.deadlocks == 0


def test_what_fails_for_want_of_resources_is_not_tried_again():      # semantics 4.3
    flow = play(Node('a', acquires=[('p', 1)], releases=[]),
                Node('b', require=on('a'), acquires=[('p', 1)], retries=3), pools={'p': 1})
    assert flow.succeed('a@1') == ''
    assert flow.status('b@1') == 'failure'
    assert flow.tried == set()


def test_what_releases_too_much_after_a_success_is_not_tried_again():      # semantics 4.3
    flow = play(Node('a', releases=[('p', 1)], retries=3), pools={'p': 1})
    flow.succeed('a@1')
    assert flow.status('a@1') == 'failure'


def test_each_item_of_a_leaf_with_a_loop_has_retries():      # semantics 1.3
    flow = play(Node('a', loop=2, retries=1))
    assert flow.fail('a@1.1') == 'a@1.1'
    assert flow.succeed('a@1.1') == 'a@1.2'
    assert flow.fail('a@1.2') == 'a@1.2'
    assert flow.fail('a@1.2') == ''
    assert flow.status('a@1') == 'failure'


@pytest.mark.parametrize('delay', [0, 5])
def test_a_recovery_waits_for_the_due_time_of_a_retry(delay):      # semantics 4.4
    flow = play(Node('a', delay=delay, retries=1, retry_delay=9), now=7,
                earlier={'a@1': Past('ready', 9)})
    assert flow.next_due() == 9
    flow.advance()
    assert flow.now_running() == 'a@1'


def test_the_due_time_of_a_retry_does_not_count_after_a_success():      # semantics 4.4
    flow = play(Node('a', recovery={'success': 'rerun'}), now=7,
                earlier={'a@1': Past('success', 9)})
    assert flow.now_running() == 'a@1'


def test_a_stop_makes_a_failure_of_a_waiting_retry():      # semantics 3.4
    flow = play(Node('a', [Node('b', [Node('x', retries=1, retry_delay=5)]), Node('y')],
                     stop=True), handler('h', 'a'))
    flow.fail('a_b_x@1.1.1')
    assert flow.fail('a_y@1.1') == 'h@1'        # it keeps nothing open
    assert flow.status('a_b_x@1.1.1') == 'ready'
    assert flow.dues() == {('a_b_x', '1.1.1'): 5}
    assert flow.dropped() == {('a_b_x', '1.1.1')}
    assert flow.status('a_b@1.1') == 'failure'
    flow.succeed('h@1')
    assert flow.made_good() == {('a', '1')}


def test_a_waiting_retry_that_a_stop_drops_may_be_made_good():      # semantics 3.3, 3.4
    flow = play(Node('a', [Node('x', retries=1, retry_delay=5), handler('y', 'a_x')]), Node('b'))
    assert flow.fail('a_x@1.1', 'b@1') == 'a_y@1.1'
    flow.succeed('a_y@1.1')
    assert flow.dropped() == flow.made_good() == {('a_x', '1.1')}
    assert flow.status('a@1') == 'active'       # it did not fail, and is to be gone through again


def test_a_stop_makes_a_failure_of_a_retry_that_waits_for_a_slot():      # semantics 3.4
    flow = play(Node('a', [Node('x', retries=1, retry_delay=1)]), Node('b'), max_concurrent=1)
    assert flow.fail('a_x@1.1') == 'b@1'
    flow.advance()
    flow.fail('b@1')
    assert flow.dropped() == {('a_x', '1.1')}
    assert flow.status('a_x@1.1') == 'ready'
    assert flow.status('a@1') == 'failure'


def test_what_waits_for_the_due_time_of_an_earlier_run_is_dropped_without_a_failure():
    flow = play(Node('a', [Node('x', retries=1)]), Node('b'),
                earlier={'a_x@1.1': Past('ready', 9)})
    flow.fail('b@1')
    assert flow.dropped() == set()
    assert flow.status('a@1') == 'active'


def test_what_fails_after_the_stop_is_not_tried_again():      # semantics 3.4
    flow = play(Node('a', retries=1), Node('b'))
    assert flow.fail('b@1') == 'a@1'
    assert not flow.tries_again('a', '1')
    flow.fail('a@1')
    assert flow.status('a@1') == 'failure'


@pytest.mark.parametrize('order', ['abcd', 'dcba'])
def test_what_a_stop_leaves_idle_ends_before_any_of_it_is_raised(order):      # semantics 3.6
    steps = {'a': Node('a', loop=1, retries=1, retry_delay=1), 'b': Node('b'),
             'c': Node('c', [Node('x', require=on('a'))]),
             'd': Node('d', [Node('x', require=on('a', 'failure'))])}
    flow = play(*[steps[name] for name in order])
    assert flow.fail('a@1.1', 'b@1') == 'd_x@1.1'
    assert flow.status('a@1') == 'failure'
    assert flow.status('c@1') == 'active'       # it still waited when the stop came
    flow.succeed('d_x@1.1')
    assert flow.status('d@1') == 'success'


# Tolerance (3.3, 3.4) ############################################################


def test_a_container_bears_as_many_failed_iterations_as_it_tolerates():      # semantics 3.3
    flow = play(Node('a', [Node('x')], loop=4, tolerate=1), Node('b', require=on('a', 'failure')))
    assert flow.fail('a_x@1.1') == 'a_x@1.2'
    assert flow.made_good() == flow.borne() == {('a_x', '1.1')}
    assert flow.succeed('a_x@1.2') == 'a_x@1.3'
    assert flow.fail('a_x@1.3') == 'b@1'        # no fourth iteration
    assert flow.borne() == {('a_x', '1.1')}


def test_a_container_that_bore_all_its_failures_succeeds():      # semantics 3.3
    flow = play(Node('a', [Node('x'), Node('y', require=on('a_x'))], loop=2, tolerate=1),
                Node('b', require=on('a')))
    assert flow.fail('a_x@1.1') == 'a_x@1.2'
    flow.succeed('a_x@1.2')
    assert flow.succeed('a_y@1.2') == 'b@1'
    flow.succeed('b@1')
    assert flow.ok()
    assert flow.status('a_y@1.1') is None


def test_a_borne_failure_stops_its_own_iteration_only():      # semantics 3.4
    flow = play(Node('a', [Node('x'), Node('y'), Node('z', require=on('a_y')),
                           Node('b', [Node('u'), Node('v', require=on('a_b_u'))])],
                     loop=3, max_concurrent=2, tolerate=1))
    flow.fail('a_x@1.1')
    assert flow.now_running() == 'a_b_u@1.1.1 a_b_u@1.2.1 a_x@1.2 a_y@1.1 a_y@1.2'
    assert flow.succeed('a_y@1.1', 'a_y@1.2') == 'a_b_u@1.1.1 a_b_u@1.2.1 a_x@1.2 a_z@1.2'
    assert flow.succeed('a_b_u@1.1.1') == (     # that was all: the third iteration starts
        'a_b_u@1.2.1 a_b_u@1.3.1 a_x@1.2 a_x@1.3 a_y@1.3 a_z@1.2')
    assert flow.status('a_b@1.1') == 'active'       # cut off


def test_what_is_dropped_in_a_borne_iteration_does_not_keep_the_container_from_succeeding():
    flow = play(Node('a', [Node('x'), Node('d', delay=9), Node('y', retries=1, retry_delay=9),
                           Node('w', acquires=[('p', 1)])],
                     loop=1, tolerate=1, acquires=[('p', 1)]), pools={'p': 2})
    flow.fail('a_y@1.1')
    assert flow.fail('a_x@1.1') == 'a_w@1.1'
    flow.succeed('a_w@1.1')
    assert flow.ok()
    assert flow.status('a_d@1.1') == flow.status('a_y@1.1') == 'ready'
    assert flow.borne() == {('a_x', '1.1'), ('a_y', '1.1')}
    assert flow.status('a@1') == 'success'


def test_a_failure_that_stops_nothing_lets_its_borne_iteration_go_on():      # semantics 3.4
    flow = play(Node('a', [Node('x', stop=False), Node('y'), Node('z', require=on('a_y'))],
                     loop=1, tolerate=1))
    assert flow.fail('a_x@1.1') == 'a_y@1.1'
    assert flow.succeed('a_y@1.1') == 'a_z@1.1'
    flow.succeed('a_z@1.1')
    assert flow.ok()


def test_one_iteration_fails_once():      # semantics 3.3
    flow = play(Node('a', [Node('x', stop=False), Node('y', stop=False), Node('z')], loop=2,
                     tolerate=1))
    assert flow.fail('a_x@1.1', 'a_y@1.1') == 'a_z@1.1'
    assert flow.fail('a_z@1.1') == 'a_x@1.2 a_y@1.2 a_z@1.2'
    assert flow.borne() == {('a_x', '1.1'), ('a_y', '1.1'), ('a_z', '1.1')}


def test_a_failure_that_was_made_good_is_no_failure_of_its_iteration():      # semantics 3.3
    flow = play(Node('a', [Node('x'), handler('y', 'a_x')], loop=2, tolerate=0))
    assert flow.fail('a_x@1.1') == 'a_y@1.1'
    assert flow.succeed('a_y@1.1') == 'a_x@1.2'
    assert flow.borne() == set()


def test_an_expected_failure_that_was_not_made_good_is_borne_at_the_end():      # 3.3, 3.4
    flow = play(Node('a', [Node('x'), handler('y', 'a_x'), Node('z')], loop=2, tolerate=1))
    assert flow.fail('a_x@1.1') == 'a_y@1.1 a_z@1.1'
    assert flow.fail('a_y@1.1') == 'a_z@1.1'        # that failure was not expected
    assert flow.borne() == {('a_y', '1.1')}
    assert flow.succeed('a_z@1.1') == 'a_x@1.2 a_z@1.2'
    assert flow.made_good() == {('a_x', '1.1'), ('a_y', '1.1')}     # of one iteration


def test_one_iteration_too_many_stops_the_container():      # semantics 3.3, 3.4
    flow = play(Node('a', [Node('x'), Node('y', require=on('a_x'))], loop=3, max_concurrent=3,
                     tolerate=1), Node('b'), Node('c', require=on('b')))
    assert flow.fail('a_x@1.2') == 'a_x@1.1 a_x@1.3 b@1'
    assert flow.fail('a_x@1.1') == 'a_x@1.3 b@1'
    assert flow.succeed('a_x@1.3') == 'b@1'
    assert flow.succeed('b@1') == ''        # the stop went on outward
    assert flow.status('a@1') == 'failure'


def test_when_one_iteration_too_many_has_failed_nothing_more_is_borne():      # semantics 3.3
    flow = play(Node('a', [Node('x', stop=False), Node('y'), Node('z', require=on('a_y'))],
                     loop=3, max_concurrent=3, tolerate=1))
    flow.fail('a_x@1.1', 'a_x@1.2')
    assert flow.borne() == {('a_x', '1.1')}
    assert flow.succeed('a_y@1.3') == 'a_x@1.3 a_y@1.1 a_y@1.2 a_z@1.3'     # nothing is stopped
    flow.fail('a_y@1.1')        # in the iteration whose failure was borne
    assert flow.borne() == {('a_x', '1.1')}
    assert flow.succeed('a_y@1.2') == 'a_x@1.3 a_z@1.3'     # now it is


def test_a_stop_from_further_in_ends_at_the_iteration_that_can_be_borne():      # semantics 3.4
    flow = play(Node('a', [Node('b', [Node('x'), Node('y')]), Node('z'),
                           Node('w', require=on('a_z'))], loop=2, max_concurrent=2, tolerate=1))
    flow.fail('a_b_x@1.1.1')
    flow.succeed('a_z@1.1', 'a_z@1.2')
    assert flow.now_running() == 'a_b_x@1.2.1 a_b_y@1.1.1 a_b_y@1.2.1 a_w@1.2'
    assert flow.borne() == set()        # not yet
    flow.succeed('a_b_y@1.1.1')
    assert flow.borne() == {('a_b', '1.1')}


def test_a_stop_from_further_in_goes_on_where_no_more_can_be_borne():      # semantics 3.4
    flow = play(Node('a', [Node('b', [Node('x'), Node('y')]), Node('z')], loop=3,
                     max_concurrent=2, tolerate=1))
    flow.fail('a_z@1.1')
    flow.succeed('a_b_x@1.1.1', 'a_b_y@1.1.1')
    assert flow.now_running() == 'a_b_x@1.2.1 a_b_x@1.3.1 a_b_y@1.2.1 a_b_y@1.3.1 a_z@1.2 a_z@1.3'
    flow.fail('a_b_x@1.2.1')
    assert flow.succeed('a_z@1.2', 'a_b_y@1.2.1', 'a_z@1.3', 'a_b_x@1.3.1') == 'a_b_y@1.3.1'
    flow.succeed('a_b_y@1.3.1')
    assert flow.status('a@1') == 'failure'
    assert not flow.ok()


def test_what_is_on_its_way_to_fail_does_not_count_before_it_has():
    flow = play(Node('a', [Node('b', [Node('x'), Node('y')])], loop=3, max_concurrent=3,
                     tolerate=1))
    flow.fail('a_b_x@1.1.1', 'a_b_x@1.2.1')     # only these two are stopped
    assert flow.succeed('a_b_y@1.1.1') == 'a_b_x@1.3.1 a_b_y@1.2.1 a_b_y@1.3.1'
    assert flow.borne() == {('a_b', '1.1')}
    flow.succeed('a_b_y@1.2.1')     # a second one has failed now
    assert flow.borne() == {('a_b', '1.1')}
    assert flow.fail('a_b_x@1.3.1') == 'a_b_y@1.3.1'


def test_a_share_of_a_loop_of_known_length_is_rounded_down():      # semantics 3.3
    flow = play(Node('a', loop=5, tolerate='50%'))
    assert flow.fail('a@1.1', 'a@1.2') == 'a@1.3'
    assert flow.fail('a@1.3') == ''
    assert flow.status('a@1') == 'failure'
    assert flow.exceeded == {'share'}


@pytest.mark.parametrize('failing, ok', [(2, True), (3, False)])
def test_a_share_of_a_loop_of_unknown_length_is_looked_at_in_the_end(failing, ok):     # 3.3
    flow = play(Node('a', loop=5, tolerate='50%', counted=False),
                Node('b', require=on('a', 'success' if ok else 'failure')))
    for i in range(5):
        name = 'a@1.%d' % (i + 1)
        assert flow.now_running() == name
        (flow.fail if i < failing else flow.succeed)(name)
    assert flow.now_running() == 'b@1'
    assert len(flow.borne()) == failing


def test_an_empty_loop_bears_no_share():
    flow = play(Node('a', loop=0, tolerate='0%', counted=False))
    assert flow.ok()


def test_a_loop_that_raises_fails_its_container_whatever_it_tolerates():      # semantics 1.4, 3.3
    flow = play(Node('a', [Node('x')], loop=3, max_concurrent=2, loop_fails=(3, ALWAYS),
                     tolerate=2))
    assert flow.succeed('a_x@1.1') == 'a_x@1.2'
    flow.fail('a_x@1.2')        # nothing is borne any more
    assert flow.borne() == set()
    assert flow.status('a@1') == 'failure'


def test_a_tolerant_container_that_is_stopped_from_outside_and_lost_nothing_succeeds():
    steps = [Node('x'), Node('y', require=on('a_x'))]
    flow = play(Node('a', steps, loop=2, max_concurrent=3, tolerate=2), Node('b'))
    flow.fail('a_x@1.1', 'b@1', 'a_x@1.2')
    assert flow.borne() == {('a_x', '1.1'), ('a_x', '1.2')}
    assert flow.status('a@1') == 'success'      # the iterations were lost, but that is borne


def test_a_tolerant_container_that_is_stopped_from_outside_and_cut_stays_active():
    flow = play(Node('a', [Node('x'), Node('y', require=on('a_x'))], loop=2, max_concurrent=3,
                     tolerate=2), Node('b'))
    flow.fail('a_x@1.1', 'b@1')
    flow.succeed('a_x@1.2')
    assert flow.status('a@1') == 'active'
    flow = play(Node('a', loop=1, max_concurrent=2, tolerate=1, retries=1, retry_delay=5),
                Node('b'))
    flow.fail('a@1.1', 'b@1')
    assert flow.borne() == flow.dropped() == {('a', '1.1')}
    assert flow.status('a@1') == 'active'       # the stop came before its next attempt


def test_what_was_dropped_in_a_borne_iteration_counts_in_no_later_stop():
    flow = play(Node('a', [Node('x'), Node('y', delay=9), Node('z')], loop=1, max_concurrent=2,
                     tolerate=1), Node('b'))
    flow.fail('a_x@1.1', 'b@1')
    flow.succeed('a_z@1.1')
    assert flow.status('a@1') == 'success'


@pytest.mark.parametrize('status', ['success', 'active', 'failure'])
def test_a_recovery_runs_borne_failures_again(status):      # semantics 7.1, 7.2
    flow = play(Node('a', [Node('x')], loop=2, tolerate=1), Node('b', require=on('a')),
                earlier={'a_x@1.1': 'failure', 'a_x@1.2': 'success', 'a@1': status})
    assert flow.now_running() == 'a_x@1.1'
    assert flow.fail('a_x@1.1') == 'b@1'        # borne again


# Recovery (7) ####################################################################


def test_a_recovery_skips_what_succeeded_and_runs_the_rest_again():      # semantics 7.2
    steps = [Node('a'), Node('b', require=on('a')), Node('c', require=on('b')), Node('d')]
    flow = play(*steps, earlier={'a@1': 'success', 'b@1': 'failure', 'd@1': 'active'})
    assert flow.now_running() == 'b@1 d@1'
    assert flow.skipped() == {('a', '1')}
    assert flow.succeed('b@1') == 'c@1 d@1'


def test_what_is_skipped_raises_all_that_success_raises():      # semantics 7.2
    steps = [Node('a', delay=9)] + [
        Node(status, require=on('a', status)) for status in ('ready', 'active', 'complete')]
    flow = play(*steps, earlier={'a@1': 'success'})
    assert flow.now_running() == 'active@1 complete@1 ready@1'


def test_a_succeeded_container_is_passed_over_as_a_whole():      # semantics 7.2
    flow = play(Node('a', [Node('x')], loop=2), Node('b', require=on('a')),
                earlier={'a@1': 'success', 'a_x@1.1': 'success', 'a_x@1.2': 'success'})
    assert flow.now_running() == 'b@1'
    assert flow.status('a_x@1.1') is None


def test_a_container_is_gone_through_again_when_something_in_it_reruns():      # semantics 7.2
    earlier = {'a@1': 'success', 'a_x@1.1': 'success', 'a_y@1.1': 'success'}
    again = {'success': 'rerun'}
    flow = play(Node('a', [Node('x', recovery=again), Node('y')]), earlier=earlier)
    assert flow.now_running() == 'a_x@1.1'
    flow = play(Node('a', [Node('x'), Node('y', recovery={'success': 'skip'})], recovery=again),
                earlier=earlier)
    assert flow.now_running() == 'a_x@1.1'      # the container's mapping holds for x, not for y


def test_a_container_is_gone_through_again_for_what_waited_for_a_step_outside():
    flow = play(Node('o'), Node('a', [Node('x', require=on('o')), Node('y')]),
                earlier={'o@1': 'failure', 'a@1': 'success', 'a_y@1.1': 'success'})
    assert flow.now_running() == 'o@1'
    assert flow.succeed('o@1') == 'a_x@1.1'


def test_a_containers_own_mapping_does_not_pass_over_what_it_did_not_do():      # semantics 7.2
    flow = play(Node('a', [Node('x')], loop=3, recovery={'failure': 'skip', 'active': 'skip'}),
                earlier={'a@1': 'failure', 'a_x@1.1': 'failure'})
    assert flow.now_running() == 'a_x@1.2'


def test_a_failed_container_is_gone_through_again():      # semantics 7.2, 7.3
    flow = play(Node('a', [Node('x')], loop=3),
                earlier={'a@1': 'failure', 'a_x@1.1': 'success', 'a_x@1.2': 'failure'})
    assert flow.now_running() == 'a_x@1.2'
    assert flow.succeed('a_x@1.2') == 'a_x@1.3'


def test_the_items_of_a_leaf_with_a_loop_are_looked_up_one_by_one():      # semantics 7.2
    flow = play(Node('a', loop=3), earlier={'a@1': 'active', 'a@1.1': 'success'})
    assert flow.now_running() == 'a@1.2'


def test_a_failure_can_be_skipped():      # semantics 7.2
    flow = play(Node('a', recovery={'failure': 'skip'}), Node('b', require=on('a')),
                earlier={'a@1': 'failure'})
    assert flow.now_running() == 'b@1'


def test_a_delay_starts_again_only_for_what_had_succeeded():      # semantics 4.4
    earlier = {'a@1': Past('success', 5)}
    flow = play(Node('a', delay=5, recovery={'success': 'rerun'}), now=7, earlier=earlier)
    assert flow.next_due() == 12


def test_a_delay_does_not_start_again():      # semantics 4.4
    flow = play(Node('a', delay=5), Node('b', delay=5), now=7,
                earlier={'a@1': Past('ready', 9), 'b@1': Past('ready', 6)})
    assert flow.now_running() == 'b@1'
    assert flow.next_due() == 9


def test_what_is_skipped_takes_what_it_had_not_given_back():      # semantics 4.3
    steps = [Node('a', acquires=[('p', 1)], releases=[]),
             Node('b', require=on('a'), releases=[('p', 1)]),
             Node('c', require=on('a'), acquires=[('p', 1)])]
    flow = play(*steps, pools={'p': 1}, earlier={'a@1': 'success'})
    assert flow.now_running() == 'b@1'
    flow = play(*steps, pools={'p': 1}, earlier={'a@1': 'success', 'b@1': 'success'})
    assert flow.now_running() == 'c@1'


def test_recovering_what_succeeded_runs_nothing():      # semantics 7.1
    flow = play(Node('a'), Node('b', require=on('a')),
                earlier={'a@1': 'success', 'b@1': 'success'})
    assert flow.ok()


def test_a_recovery_runs_again_what_was_made_good():      # semantics 7.1
    steps = [Node('a'), handler('h', 'a'), Node('c', require=on('h'))]
    earlier = {'a@1': 'failure', 'h@1': 'success', 'c@1': 'success'}
    flow = play(*steps, earlier=earlier)
    assert flow.now_running() == 'a@1'
    assert flow.succeed('a@1') == ''
    assert flow.ok()
    flow = play(*steps, earlier=earlier)
    assert flow.fail('a@1') == 'h@1'        # 3.3: its old success makes nothing good
    flow.succeed('h@1')
    assert flow.skipped() == {('c', '1')}
    assert flow.ok()
    flow = play(*steps, earlier=earlier)
    flow.fail('a@1', 'h@1')
    assert not flow.ok()


@pytest.mark.parametrize('earlier', ['success', 'failure', 'active'])
def test_what_reacts_to_a_new_failure_runs_again(earlier):      # semantics 3.3, 7.3
    flow = play(Node('a'), Node('m', require=on('a', 'complete'),
                                recovery={'failure': 'skip', 'active': 'skip'}),
                earlier={'a@1': 'failure', 'm@1': earlier})
    assert flow.fail('a@1') == 'm@1'


def test_all_that_is_inside_a_reaction_to_a_new_failure_runs_again():      # semantics 3.3, 7.3
    earlier = {'a@1': 'failure', 'm@1': 'success', 'm_x@1.1': 'success', 'n@1': 'success',
               'n@1.1': 'success'}
    flow = play(Node('a'), Node('m', [Node('x')], require=on('a', 'failure')),
                Node('n', loop=1, require=on('a', 'failure')), earlier=earlier)
    assert flow.fail('a@1') == 'm_x@1.1 n@1.1'


def test_what_does_not_need_the_new_failure_is_passed_over():      # semantics 7.3
    flow = play(Node('b'), Node('a'), Node('h', require=either(on('b'), on('a', 'failure')),
                                           handles=True),
                earlier={'a@1': 'failure', 'b@1': 'success', 'h@1': 'success'})
    assert flow.skipped() == {('b', '1'), ('h', '1')}
    assert flow.fail('a@1') == ''
    assert not flow.ok()        # 3.3: an old success handles no new failure


def test_a_container_is_gone_through_again_for_a_failure_in_it_that_was_made_good():    # 7.2
    earlier = {'a@1': 'success', 'a_x@1.1': 'failure', 'a_h@1.1': 'success', 'b@1': 'success'}
    flow = play(Node('a', [Node('x'), handler('h', 'a_x')]), Node('b', [Node('y')]),
                earlier=earlier)
    assert flow.now_running() == 'a_x@1.1'
    assert flow.fail('a_x@1.1') == 'a_h@1.1'
    flow.succeed('a_h@1.1')
    assert flow.ok()


def test_a_container_is_gone_through_again_for_what_a_borne_iteration_dropped():    # 7.2
    earlier = {'a@1': 'success', 'a_x@1.1': 'failure', 'a_y@1.1': Past('ready', 9)}
    flow = play(Node('a', [Node('x', recovery={'failure': 'skip'}), Node('y', delay=9)], loop=1,
                     tolerate=1), now=7, earlier=earlier)
    assert flow.next_due() == 9


def test_what_never_started_runs_when_a_failure_in_a_container_counts_as_success():    # 7.1, 7.2
    earlier = {'a@1': 'success', 'a_x@1.1': 'failure', 'a_h@1.1': 'success'}
    flow = play(Node('a', [Node('x', recovery={'failure': 'skip'}), handler('h', 'a_x'),
                           Node('y', require=on('a_x'))]), earlier=earlier)
    assert flow.now_running() == 'a_y@1.1'


def test_a_recovery_starts_what_a_stop_had_dropped():      # semantics 3.4, 7.1
    flow = play(Node('a', [Node('x'), Node('y', delay=9), Node('z', require=on('a_y'))]),
                Node('b'), handler('h', 'b'), now=10,
                earlier={'a@1': 'active', 'a_x@1.1': 'success', 'a_y@1.1': Past('ready', 9),
                         'b@1': 'success'})
    assert flow.now_running() == 'a_y@1.1'
    assert flow.succeed('a_y@1.1') == 'a_z@1.1'


# Continue (7.5) ##################################################################


def test_what_has_ended_stays_so_in_a_run_that_is_continued():      # semantics 7.5
    flow = play(Node('a', stop=False), Node('b'), Node('c', require=on('b')), continued=True,
                earlier={'a@1': Past('failure', failed_at=1), 'b@1': 'success'})
    assert flow.now_running() == 'c@1'
    flow.succeed('c@1')
    assert not flow.ok()


def test_what_was_active_runs_again_with_the_next_attempt():      # semantics 7.5
    flow = play(Node('a', retries=2), continued=True, earlier={'a@1': Past('active', attempt=2)})
    assert flow.attempt('a', '1') == 3
    flow.fail('a@1')
    assert not flow.ok()


@pytest.mark.parametrize('began, ok', [(1, False), (3, True)])
def test_a_handler_that_had_succeeded_before_the_crash_counts(began, ok):      # semantics 3.3, 7.5
    flow = play(Node('b'), Node('a'), Node('h', require=either(on('b'), on('a', 'failure')),
                                           handles=True), Node('c'), continued=True,
                earlier={'b@1': 'success', 'a@1': Past('failure', failed_at=2),
                         'h@1': Past('success', began=began)})
    assert flow.now_running() == 'c@1'
    flow.succeed('c@1')
    assert flow.ok() == ok


def test_a_reaction_that_had_succeeded_before_the_crash_does_not_run_again():      # 7.3, 7.5
    steps = [Node('a', stop=False), Node('m', require=on('a', 'failure')), Node('c')]
    flow = play(*steps, continued=True, earlier={'a@1': Past('failure', failed_at=1),
                                                 'm@1': 'success'})
    assert flow.now_running() == 'c@1'
    flow = play(*steps, continued=True, recovery=1, earlier={      # m had reacted to run 0
        'a@1': Past('failure', run=1, failed_at=1), 'm@1': Past('success', run=0)})
    assert flow.now_running() == 'c@1 m@1'


# The generator ###################################################################


def test_a_circle_is_seen():      # semantics 2.6
    assert circular(Flow([Node('a', require=on('b')), Node('b', require=on('a'))])) == ['a', 'b']
    inside = Node('a', [Node('x', require=on('b'))])
    assert circular(Flow([inside, Node('b', require=on('a'))])) == ['a', 'a_x', 'b']
    assert not circular(Flow([Node('a', [Node('x', require=on('b'))]),
                              Node('b', require=on('a', 'active'))]))
    assert not circular(Flow([Node('a', require=either(on('b'), on('c'))),
                              Node('b', require=on('a')), Node('c')]))


def test_asking_for_too_much_of_a_pool_is_seen():      # semantics 4.3
    flow = Flow([Node('a', [Node('x', acquires=[('p', 2)])], acquires=[('p', 1)])], pools={'p': 2})
    assert oversized(flow) == ['a_x']


def test_the_generator_makes_valid_flows_of_every_kind():
    seen = set()
    for seed in range(400):
        flow = random_flow(seed)
        assert not circular(flow) and not oversized(flow)
        for node in flow.nodes.values():
            seen.update(key for key in ('loop', 'loop_fails', 'delay', 'acquires', 'releases',
                                        'fails', 'stop', 'max_concurrent', 'recovery',
                                        'handles')
                        if getattr(node, key) or getattr(node, key) is False)
            seen.add('depth %d' % node.depth)
            seen.update(word for word in ('and', 'or') if word in str(node.require))
        seen.update(key for key in ('pools', 'max_concurrent') if getattr(flow, key))
        seen.add('handled by %s' % flow.handled_by)
    assert seen == {'loop', 'loop_fails', 'delay', 'acquires', 'releases', 'fails', 'stop',
                    'max_concurrent', 'recovery', 'depth 1', 'depth 2', 'depth 3', 'depth 4',
                    'and', 'or', 'pools', 'handles', 'handled by handles',
                    'handled by failure', 'handled by complete'}


def test_a_seed_gives_the_same_flow_everywhere():
    assert str(random_flow(239)) == ONE_FLOW


ONE_FLOW = '''\
flow max_concurrent=3 queue=(1, 0) stop=False pools=p:2
  s0 require=((s1 | s1.failure)) no-func handles
  s1 acquires=[('p', 2)] construct=inline
  s2 delay=2 acquires=[('p', 1)] construct=inline'''


@pytest.mark.parametrize('first', range(0, 200, 10))
def test_every_random_flow_comes_to_an_end(first):
    for seed in range(first, first + 10):
        flow = random_flow(seed)
        reference = Reference(flow)
        for pool in flow.outside:
            reference.resize(pool, 99)      # so that its tasks do not wait for one another
        while not reference.over():
            for path, sequence in sorted(reference.running())[:1]:
                reference.finish(path, sequence, not flow.fails(path, sequence))
                break
            else:
                reference.advance()
        assert reference.result()[0] == (not reference.root.failed)
