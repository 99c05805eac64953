"""How a recovery knows loop items again, and finds what items and results are made of."""

import io
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest
import sequent as seq
from runtools import (  # noqa: F401
    DEADLINE, INLINE, a_flow, a_private_temporary_folder, fail, journal, store, the_task)
from sequent import FlowTypeError, MemoryStore

#: Before 3.7 a forkserver does not tell how a process has ended; it is refused there.
SPAWNED = [one for one in multiprocessing.get_all_start_methods() if one != 'fork'
           and (one != 'forkserver' or sys.version_info >= (3, 7))]


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


LOOK = "import sys, sequent; sys.exit(sequent.main(['sets.py', 'recover', '-n']))"


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
        _, shown = folder.run('-c', LOOK, 'recover', PYTHONHASHSEED=seed)
        assert 'a dry run' in shown and 'another loop' not in shown
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


# How the module that was started is called ########################################

FLOW = '''
import collections
import concurrent.futures
import enum
import multiprocessing
import os
import sys
import sequent as seq


class Shop(collections.namedtuple('Shop', 'name')):
    def __eq__(self, other):    # as that of a dataclass
        return type(other) is type(self) and tuple(other) == tuple(self)


class Day(enum.Enum):
    MON = 1
    TUE = 2


class Plain:
    """Compares by identity."""

    def __init__(self, given):
        self.given = given

    class Inner:
        pass


def work(item):
    print('WORK', seq.current().name, item)
    return [item, Plain({'f': 'f', 'day': Day.TUE}), Plain.Inner]


def load(found):
    if not os.path.exists('ready'):
        sys.exit('not ready')
    kinds = set()
    for results in found:
        for item, plain, inner in results:
            kinds.add(type(item))
            assert type(plain) is Plain and plain.given == {'f': 'f', 'day': Day.TUE}, plain
            assert inner is Plain.Inner
    assert kinds == {Shop, Day, Plain, Plain.Inner, type(load)}, kinds
    print('LOADED')


def pool():
    if sys.version_info < (3, 7):
        return concurrent.futures.ProcessPoolExecutor(1)
    context = multiprocessing.get_context(os.environ['METHOD'])
    return concurrent.futures.ProcessPoolExecutor(1, context)


flow = seq.Sequent(run_mode=os.environ['MODE'], config={
    'start_method': os.environ['METHOD'], 'executor': pool, 'max_concurrent': 2})
steps = [flow.add_step('of_' + construct, func=work, args=(seq.item,), loop=[
    Shop('f'), Day.MON, Plain('x'), Plain.Inner(), load], config={'task_construct': construct})
    for construct in os.environ['CONSTRUCTS'].split()]
outer = flow.add_step('outer', loop=[Shop('x'), Plain('__main__')])
outer.add_step('in', func=work, args=(outer.item,))
flow.add_step('load', func=load, args=([one.result for one in steps],), require=outer)
'''
GUARDED = FLOW + '''
if __name__ == '__main__':
    sys.exit(0 if flow() else 1)
'''
UNGUARDED = FLOW + '''
sys.exit(0 if flow() else 1)
'''
WAYS = {
    'script': ['jobs/f.py'], 'module': ['-m', 'jobs.f'],
    'sequent file': ['-m', 'sequent', 'jobs/f.py'],
    'sequent module': ['-m', 'sequent', 'jobs.f'],
    'imported': ['night.py'],
    'imported from its folder': ['jobs/night.py']}
ALL = 'process thread inline pool executor'


def start(folder, way, mode, method='fork', constructs=ALL):
    verb = [{'restart': 'run'}.get(mode, mode)] if 'sequent' in way else []
    return folder.run(*way + verb, MODE=mode, METHOD=method, CONSTRUCTS=constructs)


def check_recovery(folder, first, second, method='fork', constructs=ALL):
    """Run the flow in one way, recover it in another."""
    expected = 5 * len(constructs.split()) + 2
    code, said = start(folder, first, 'restart', method, constructs)
    assert code == 1 and said.count('WORK') == expected, said
    assert said.count(': restart, store') == 1, said
    (folder.path / 'ready').write_text('')
    code, said = start(folder, second, 'recover', method, constructs)
    assert 'WORK' not in said
    assert code == 0 and said.count('LOADED') == 1, said
    assert said.count(', store') == 1, said
    assert 'since the run that is gone on with' not in said


def ring(names):
    names = list(names)
    return list(zip(names, names[1:] + names[:1])) + list(zip(names[1:] + names[:1], names))


def write_flow(folder, text, night='sys.exit(0 if f.flow() else 1)'):
    folder.write('jobs/f.py', text)
    folder.write('night.py', 'import sys\nfrom jobs import f\n' + night)
    folder.write('jobs/night.py', 'import sys\nimport f\n' + night)


# What is imported is called by its name in the store, as by earlier versions under -m sequent.
NAMED = [('imported', 'script'), ('imported', 'sequent file'),
         ('imported from its folder', 'sequent module')]


@pytest.mark.parametrize('first, second', ring(WAYS) + NAMED)
def test_a_run_that_was_started_in_one_way_is_recovered_in_another(first, second, folder):
    # semantics 1.6, 7.3, 7.4
    write_flow(folder, GUARDED)
    check_recovery(folder, WAYS[first], WAYS[second])


@pytest.mark.parametrize('first, second', ring(WAYS))
def test_a_flow_without_a_guard_is_started_once_however_it_is_started(first, second, folder):
    # semantics 1.6, 7.3, 7.4
    write_flow(folder, UNGUARDED)
    check_recovery(folder, WAYS[first], WAYS[second], constructs='process thread inline')


@pytest.mark.parametrize('first, second', ring(['script', 'sequent file', 'sequent module'])[1:3])
@pytest.mark.parametrize('method', SPAWNED)
def test_spawned_children_call_the_module_the_same(first, second, method, folder):
    # semantics 1.6, 7.3, 7.4
    write_flow(folder, GUARDED)
    check_recovery(folder, WAYS[first], WAYS[second], method, 'process pool executor'
                   if sys.version_info >= (3, 7) else 'process')


@pytest.mark.parametrize('first, second', ring([['f.v2.py'], ['-m', 'sequent', 'f.v2.py']]))
@pytest.mark.parametrize('method', ['fork', 'spawn'])
def test_a_file_whose_name_has_a_dot_is_like_any_other(first, second, method, folder):
    # semantics 1.6
    folder.write('f.v2.py', GUARDED)
    folder.write('f.py', 'raise SystemExit("the wrong file was loaded")')
    check_recovery(folder, first, second, method, 'process inline')


class Anything:
    """Stands for whatever a pickle names."""

    def __init__(self, *given):
        pass


class Modules(pickle.Unpickler):
    """Notes of which modules a pickle names something."""

    def __init__(self, content):
        super().__init__(io.BytesIO(content))
        self.found = set()

    def find_class(self, module, name):
        self.found.add(module)
        return Anything


def modules_in(path):
    """Return the names of all modules that stand in a store."""
    kept, found = seq.SqliteStore(str(path)), set()
    kept.open(create=False)
    for record in kept.attempts(kept.latest('f')):
        for content in (record.item, record.result if record.kind == 'leaf' else None):
            if content is not None:
                pickled = Modules(content)
                pickled.load()
                found |= pickled.found
    kept.close()
    return found


@pytest.mark.parametrize('method', ['fork', 'spawn'])
@pytest.mark.parametrize('way', ['script', 'module', 'sequent file', 'sequent module'])
def test_in_the_store_the_module_that_was_started_is_called_main(way, method, folder):
    # semantics 1.6
    write_flow(folder, GUARDED)
    constructs = ALL if method == 'fork' else 'process'
    code, said = start(folder, WAYS[way], 'restart', method, constructs)
    assert code == 1, said
    assert modules_in(folder.path / 'jobs' / 'f.run.db') == {'__main__'}
