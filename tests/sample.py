"""Which tests run, and how often those that cause faults try something.

The environment variable SEQUENT_SAMPLE is one of

* ``each``, the default of a whole run: in the files `SAMPLED`, each test runs with one in eight
  of its parameters, and at least with one; of all tests marked as long, one in eight runs. What a
  test can try any number of times, it tries an eighth as often.
* ``all``, the default where tests are chosen by a path, a name or a mark: nothing is left out.
* a number n: of the files `SAMPLED`, one in n tests runs. For many versions of Python in a short
  time.

SEQUENT_SEED draws the sample and the faults. Without it each run draws others and prints the seed.
"""

import collections
import os
import random
import sys

import pytest

#: Files whose tests cause faults, start many programs, or wait.
SAMPLED = ('async', 'bench', 'command_line', 'constructs', 'damage', 'data_loops', 'deaths',
           'disk', 'edited_flows', 'examples', 'executor', 'fork_server', 'hosts_as_they_are',
           'install', 'items', 'kills', 'locks', 'odd_recoveries', 'other_systems', 'parameters',
           'pool', 'power', 'printing', 'programs', 'recovery', 'results', 'retries', 'running',
           'runs', 'security', 'self_check', 'signals', 'simulation', 'start_methods', 'streams',
           'threads_and_forks', 'timeouts', 'vendoring', 'wall_clock', 'workflows')
PART = 8

kind = os.environ.get('SEQUENT_SAMPLE') or None
SEED = int(os.environ.get('SEQUENT_SEED') or int.from_bytes(os.urandom(3), 'big'))


def choose(config):
    """Find out what is to run, from the arguments of pytest; before the tests are imported."""
    global kind
    whole = config.args == config.getini('testpaths') and not (
        config.option.keyword or config.option.markexpr)
    kind = kind or ('each' if whole else 'all')
    if kind not in ('each', 'all') and not kind.lstrip('0').isdigit():
        raise pytest.UsageError('SEQUENT_SAMPLE is %r; use each, all or a number' % kind)


def times(variable, number):
    """Return how often to try something: what an environment variable says, or a number."""
    if os.environ.get(variable):
        return int(os.environ[variable])
    return number if kind == 'all' else max(number // PART, 1)


def drawn(items):
    """Return the set of tests to run."""
    if kind == 'all':
        return set(items)
    sampled = [item for item in items
               if item.get_closest_marker('long') or _file(item) in SAMPLED]
    kept = set(items) - set(sampled)
    if kind != 'each':
        return kept | {item for item in sampled if _lot(item) < 1 / int(kind)}
    groups = collections.defaultdict(list)
    for item in sampled:
        groups['long' if item.get_closest_marker('long')
               else (_file(item), item.originalname)].append(item)
    for group in groups.values():
        kept.update(sorted(group, key=_lot)[:-(-len(group) // PART)])
    return kept


def _file(item):
    return item.module.__name__[len('test_'):]


def _lot(item):
    """Return a number from 0 to 1 that depends on the seed; another one on another Python."""
    seed = '%d %d.%d %s' % ((SEED,) + sys.version_info[:2] + (item.nodeid,))
    return random.Random(seed).random()


def summary():
    """Return the line that tells how to run the same again."""
    return 'run with SEQUENT_SAMPLE=%s SEQUENT_SEED=%d' % (kind, SEED) + (
        '; SEQUENT_SAMPLE=all runs all tests' if kind != 'all' else '')
