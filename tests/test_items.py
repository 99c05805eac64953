"""How a recovery knows loop items again, and finds what items and results are made of."""

import os
import subprocess
import sys

import pytest
import sequent as seq
from runtools import (  # noqa: F401
    DEADLINE, INLINE, a_flow, a_private_temporary_folder, fail, journal, store, the_task)
from sequent import FlowTypeError, MemoryStore


class Folder:
    """A folder with flows, and what runs them."""

    def __init__(self, path):
        self.path = path

    def write(self, name, text):
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *words, **environment):
        """Run Python with these arguments; return (exit code, all that it printed)."""
        done = subprocess.run(
            [sys.executable] + list(words), cwd=str(self.path), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=3 * DEADLINE,
            env=dict(os.environ, **environment))
        return done.returncode, done.stdout.decode('utf-8', 'replace')


@pytest.fixture()
def folder(tmp_path):
    return Folder(tmp_path)


# Which items are equal ############################################################

class Table(list):
    """Compares element by element, as an array does."""

    def __eq__(self, other):
        return Table(one == two for one, two in zip(self, other))

    def __ne__(self, other):
        return Table(one != two for one, two in zip(self, other))

    def __bool__(self):
        raise ValueError('the truth value of a table is ambiguous')

    __hash__ = None


class Refusing:
    """Does not compare with anything."""

    def __init__(self, name, error=ValueError):
        self.name = name
        self.error = error

    def __eq__(self, other):
        raise self.error('not comparable')

    __hash__ = None


class Plain:
    """Compares by identity."""

    def __init__(self, *given):
        self.given = given


def knot(*more):
    """Return an object that refers to itself by way of a dictionary and a list."""
    made = Plain({}, [], *more)
    made.given[0]['self'] = made.given[1]
    made.given[1].append(made)
    return made


def nested(depth, made):
    for _ in range(depth):
        made = Plain(made, made)
    return made


def run_twice(first, second, store):
    """Run a flow over an item, recover it over another one; return how often each ran."""
    ran = []

    def flow(mode, one):
        made = a_flow(store, mode=mode)
        made.add_step('each', func=ran.append, args=(mode,), loop=[one, 'same'])
        inner = made.add_step('outer', loop=[one])
        inner.add_step('in', func=ran.append, args=(mode,))
        made.add_step('last', func=fail, require=inner)
        return made
    assert flow('restart', first)() is False
    assert flow('recover', second)() is False
    return ran.count('restart'), ran.count('recover')


# Two sets that are equal, and whose pickles are not.
ORDERS = (0, 8), (8, 0)


@pytest.mark.parametrize('make', [
    lambda given: Table(given[:0]), lambda given: [Table([1]), set(given)],
    lambda given: {'a': Table([frozenset(given)])}, lambda given: Plain(Table([set(given)])),
    lambda given: [Refusing('a'), set(given)], lambda given: Refusing({'a': set(given)}),
    lambda given: Refusing(set(given), SystemExit), lambda given: [float('nan'), set(given)],
    lambda given: Plain({'a': {'b': frozenset(given)}}), lambda given: Plain({}, {*given, 'a'}),
    lambda given: Plain(dict.fromkeys(given)), lambda given: knot(set(given)),
    lambda given: nested(40, set(given))])
def test_an_item_that_was_made_anew_is_known_again(make, store):
    # semantics 7.4
    assert list(set(ORDERS[0])) != list(set(ORDERS[1]))
    assert run_twice(make(ORDERS[0]), make(ORDERS[1]), store) == (3, 0)


@pytest.mark.parametrize('first, second', [
    (Table([1, 2]), Table([1, 3])), (Table([1]), Table([1, 1])), (Refusing('a'), Refusing('b')),
    (Plain({'a'}), Plain({'b'})), (Plain({'a': 1}), Plain({'a': 2})),
    (Plain({'a'}), Plain(frozenset('a'))), (Plain(set()), Plain({})), (Plain('a'), Refusing('a')),
    (knot(), Plain({}, []))])
def test_another_item_runs_anew(first, second, store):
    # semantics 7.4
    assert run_twice(first, second, store) == (3, 2)


SETS = '''
import sys
import sequent as seq
NAMES = ['alpha', 'beta', 'gamma', 'delta', 'epsilon', 'zeta']
class Plain:
    def __init__(self, names):
        self.names = names
print('ORDER', *set(NAMES))
def work():
    print('WORK')
items = [Plain(set(NAMES)), Plain([frozenset(NAMES)]), Plain({name: 1 for name in set(NAMES)})]
flow = seq.Sequent('sets', store='sets.db', run_mode=sys.argv[1],
                   config={'task_construct': 'inline'})
flow.add_step('leaf', func=work, loop=items)
outer = flow.add_step('outer', loop=items)
outer.add_step('in', func=work)
flow.add_step('last', func=sys.exit, args=('failed',), require=outer)
flow()
'''


def test_the_hash_seed_makes_no_item_another_one(folder):
    # semantics 7.4
    folder.write('sets.py', SETS)
    _, first = folder.run('sets.py', 'restart', PYTHONHASHSEED='1')
    assert first.count('WORK') == 6
    orders = {line for line in first.splitlines() if line.startswith('ORDER')}
    for seed in '23':
        _, then = folder.run('sets.py', 'recover', PYTHONHASHSEED=seed)
        orders.update(line for line in then.splitlines() if line.startswith('ORDER'))
        assert 'WORK' not in then
        assert 'another loop' not in then
    assert len(orders) > 1


# What can be a loop ###############################################################

def test_what_compares_element_by_element_can_be_a_loop(store):
    # semantics 1.4
    flow = a_flow(store)
    flow.add_step('leaf', func=lambda: seq.current().item, loop=Table(['x', 'y']))
    flow.add_step('outer', loop=Table()).add_step('in', func=fail)
    assert flow() is True
    assert the_task(flow, 'leaf', '1.2').result == 'y'


class NotIterable:
    def __iter__(self):
        raise ValueError('iteration over a 0-d array')


@pytest.mark.parametrize('loop', [5, NotIterable()])
def test_what_cannot_be_gone_over_is_refused_with_the_name_of_the_step(loop):
    # semantics 1.4
    with pytest.raises(FlowTypeError, match="step 'each': loop must be an iterable"):
        a_flow().add_step('each', func=print, loop=loop)


needs_numpy = pytest.mark.skipif(
    sys.version_info < (3, 10), reason='not for this Python: the tests install no numpy for it')


@needs_numpy
def test_arrays_of_numpy_are_loops_and_items(store):
    # semantics 1.4, 7.4
    numpy = pytest.importorskip('numpy')
    assert run_twice(numpy.arange(3), numpy.arange(3), store) == (3, 0)
    assert run_twice(numpy.arange(3), numpy.arange(4), MemoryStore()) == (3, 2)
    flow = a_flow(store, name='arrays')
    flow.add_step('each', func=lambda: seq.current().item, loop=numpy.arange(3))
    assert flow() is True
    assert the_task(flow, 'each', '1.3').result == 2
    with pytest.raises(FlowTypeError, match="step 'each': loop must be an iterable"):
        a_flow().add_step('each', func=print, loop=numpy.array(5))


@needs_numpy
def test_columns_and_tables_of_pandas_are_loops_and_items(store):
    # semantics 1.4, 7.4
    pandas = pytest.importorskip('pandas')

    def frame(last):
        return pandas.DataFrame({'a': [1, last], 'b': ['x', 'y']})
    assert run_twice(frame(2), frame(2), store) == (3, 0)
    assert run_twice(frame(2), frame(3), MemoryStore()) == (3, 2)
    flow = a_flow(store, name='tables')
    flow.add_step('column', func=lambda: seq.current().item, loop=frame(2)['b'])
    flow.add_step('table', func=lambda: seq.current().item, loop=frame(2))
    assert flow() is True
    assert the_task(flow, 'column', '1.2').result == 'y'
    assert the_task(flow, 'table', '1.2').result == 'b'
