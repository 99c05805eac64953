"""Flows as plain data, and a seeded generator of random ones.

A `Flow` describes what is built twice: by the reference model (`reference.py`) and with the
library itself. It holds nothing but names, numbers and expressions, prints compactly
(`str(flow)`), and the same seed gives the same flow on every version of Python.

Expressions are tuples: ``('and', [...])``, ``('or', [...])``, ``('atom', path, status)``; None is
no requirement. Paths are the names from the top joined by ``_`` (semantics 1.2); names hold no
``_``. Sequences are strings, ``'1.1.2'`` (semantics 1.3).
"""

import random

STATUSES = ('ready', 'active', 'success', 'failure', 'complete')
ALWAYS = 99


class Node:
    """One step of a described flow.

    Args:
        name: the step's name.
        children: the steps in it; with any it is a container, else a leaf.
        loop: None, or how many items its loop has.
        loop_fails: None, or ``(k, runs)``: in the first ``runs`` runs the loop raises when it
            is asked for its k-th item, counted from 1.
        require: an expression, or None.
        delay: in units of the simulated clock.
        acquires: ``[(pool, n), ...]``.
        releases: None, or such a list (semantics 4.3).
        fails: ``{sequence: runs}``: at that sequence the leaf fails in the first ``runs`` runs
            (the first run and its recoveries are counted together), or in each run whose number
            is in a tuple ``runs``. A set of sequences means always.
        handles: the step makes good the failures of siblings that it requires (semantics 3.3).
        stop: `stop_on_exception` as set on the step; None where it is not.
        max_concurrent: as set on the step; None where it is not.
        recovery: ``{status: 'rerun' or 'skip'}``.
        func: False for a leaf that has nothing to call.
        retries: how many more attempts at the leaf there may be in one run.
        retry_delay: between them, in units of the simulated clock; None says that a failure of
            it is not to be tried again, whatever ``retries`` says.
        stumbles: ``{sequence: k}``: at that sequence the first k attempts of each run fail.
        tolerate: None, or how many failed iterations the loop bears: an int, or ``'50%'``.
        counted: False when the length of the loop is not known beforehand.
        construct: what runs the leaf: None, 'inline' or 'queues' (see `Flow`).
    """

    def __init__(self, name, children=(), loop=None, require=None, delay=0, acquires=(),
                 releases=None, fails=(), stop=None, max_concurrent=None, recovery=None, func=True,
                 loop_fails=None, retries=0, retry_delay=0, stumbles=None, tolerate=None,
                 counted=True, handles=False, construct=None):
        self.name = name
        self.children = list(children)
        self.loop = loop
        self.loop_fails = loop_fails
        self.require = require
        self.delay = delay
        self.acquires = list(acquires)
        self.releases = releases
        self.fails = fails if isinstance(fails, dict) else {one: ALWAYS for one in fails}
        self.stop = stop
        self.max_concurrent = max_concurrent
        self.recovery = dict(recovery or {})
        self.func = func
        self.retries = retries
        self.retry_delay = retry_delay
        self.stumbles = dict(stumbles or {})
        self.tolerate = tolerate
        self.counted = counted
        self.handles = handles
        self.construct = construct
        self.parent = None      # the next three: set by Flow
        self.path = name
        self.depth = 0          # components that its sequence has

    def below(self):
        """Return every step inside this one, at any depth."""
        found = []
        for child in self.children:
            found.append(child)
            found.extend(child.below())
        return found

    def above(self):
        """Return the containers around this one, innermost first, without the flow."""
        found, node = [], self.parent
        while node is not None and node.parent is not None:
            found.append(node)
            node = node.parent
        return found

    def __str__(self):
        parts = [self.path]
        if self.loop is not None:
            parts.append('loop=%d' % self.loop)
        if self.loop_fails is not None:
            parts.append('loop_fails=%d/%d' % self.loop_fails)
        if self.require is not None:
            parts.append('require=%s' % expression_text(self.require))
        if self.fails:
            parts.append('fails=%s' % ','.join(
                '%s%s' % (sequence, '' if runs == ALWAYS else '/%s' % (runs,))
                for sequence, runs in sorted(self.fails.items())))
        if self.recovery:
            parts.append('recovery=%s' % ','.join(
                '%s:%s' % pair for pair in sorted(self.recovery.items())))
        if self.stumbles:
            parts.append('stumbles=%s' % ','.join(
                '%s:%d' % pair for pair in sorted(self.stumbles.items())))
        if not self.func:
            parts.append('no-func')
        if not self.counted:
            parts.append('not-counted')
        if self.handles:
            parts.append('handles')
        for key, unset in (('delay', 0), ('acquires', []), ('releases', None), ('stop', None),
                           ('max_concurrent', None), ('retries', 0), ('retry_delay', 0),
                           ('tolerate', None), ('construct', None)):
            if getattr(self, key) != unset:
                parts.append('%s=%s' % (key, getattr(self, key)))
        return ' '.join(parts)


class Flow:
    """A described flow.

    Args:
        children: its steps.
        pools: ``{name: limit}``.
        max_concurrent: tasks that may run at one time; 0 for no limit.
        stop: `stop_on_exception` of the flow; None where it is not set.
        handled_by: ``'handles'``, ``'failure'`` or ``'complete'`` (semantics 3.3).
        queue: (how many tasks the construct that queues runs, how many more it takes ahead), or
            None where that is not known.
        outside: those of the pools that are counted outside the run.
        order: the paths in the order in which the steps are added; a container comes before
            what is in it. By default each step is followed by what is in it.

    ``nodes`` is a dict of the steps by path, in that order; ``root`` a Node that holds them.
    """

    def __init__(self, children, pools=None, max_concurrent=0, stop=None, handled_by='handles',
                 order=None, queue=None, outside=()):
        self.root = Node('', children, stop=stop)
        self.pools = dict(pools or {})
        self.outside = set(outside)
        self.max_concurrent = max_concurrent
        self.handled_by = handled_by
        self.queue = queue
        found = {}
        for node in self._place(self.root):
            found[node.path] = node
        self.order = list(found) if order is None else list(order)
        assert sorted(self.order) == sorted(found), 'the order must name every step once'
        self.nodes = {}
        for index, path in enumerate(self.order):
            self.nodes[path] = found[path]
            found[path].index = index

    def _place(self, container):
        for node in container.children:
            node.parent = container
            node.path = '%s_%s' % (container.path, node.name) if container.path else node.name
            node.depth = container.depth + 1
            yield node
            for inner in self._place(node):
                yield inner

    def fails(self, path, sequence, recovery=0, attempt=1):
        """Tell whether an attempt at a leaf fails at a sequence (a str) in a run.

        ``recovery`` is the number of the run, from 0; in the run `ALWAYS` nothing fails. Attempts
        are counted from 1 in every run.
        """
        node = self.nodes[path]
        runs = node.fails.get(sequence, 0)
        fails = recovery in runs if isinstance(runs, tuple) else recovery < runs
        return fails or (recovery < ALWAYS and attempt <= node.stumbles.get(sequence, 0))

    def flaky(self):
        """Tell whether anything fails in some runs and not in others."""
        return any(isinstance(runs, tuple) or 0 < runs < ALWAYS for node in self.nodes.values()
                   for runs in list(node.fails.values())
                   + ([node.loop_fails[1]] if node.loop_fails else []))

    def __str__(self):
        head = ['flow']
        for key, unset in (('max_concurrent', 0), ('handled_by', 'handles'),
                           ('queue', None)):
            if getattr(self, key) != unset:
                head.append('%s=%s' % (key, getattr(self, key)))
        if self.root.stop is not None:
            head.append('stop=%s' % self.root.stop)
        if self.pools:
            head.append('pools=%s' % ','.join('%s:%d' % one for one in sorted(self.pools.items())))
        if self.outside:
            head.append('outside=%s' % ','.join(sorted(self.outside)))
        lines = [' '.join(head)]
        lines.extend('%s%s' % ('  ' * node.depth, node) for node in self.root.below())
        if self.order != [node.path for node in self.root.below()]:
            lines.append('  added: %s' % ' '.join(self.order))
        return '\n'.join(lines)


# Expressions #####################################################################


def atoms(expression):
    """Return the (path, status) pairs that an expression mentions, from left to right."""
    if expression is None:
        return []
    if expression[0] == 'atom':
        return [expression[1:]]
    return [atom for operand in expression[1] for atom in atoms(operand)]


def holds(expression, is_raised):
    """Tell whether an expression holds; ``is_raised(path, status)`` answers for its atoms."""
    if expression is None:
        return True
    if expression[0] == 'atom':
        return is_raised(expression[1], expression[2])
    combine = all if expression[0] == 'and' else any
    return combine(holds(operand, is_raised) for operand in expression[1])


def expression_text(expression):
    """Return an expression in one line: ``(a & (b.failure | c.complete))``."""
    if expression[0] == 'atom':
        path, status = expression[1:]
        return path if status == 'success' else '%s.%s' % (path, status)
    sign = ' & ' if expression[0] == 'and' else ' | '
    return '(%s)' % sign.join(map(expression_text, expression[1]))


def circular(flow):
    """Return the paths of the steps that can never start because steps wait for one another.

    Semantics 2.6: what can start and what can end is found by going forward from what waits for
    nothing. A container's end waits for everything inside it.
    """
    starts, ends = set(), set()

    def is_raised(path, status):
        return path in (starts if status in ('ready', 'active') else ends)

    while True:
        before = len(starts), len(ends)
        for path, node in flow.nodes.items():
            if (node.parent is flow.root or node.parent.path in starts) \
                    and holds(node.require, is_raised):
                starts.add(path)
            if path in starts and all(inner.path in ends for inner in node.below()):
                ends.add(path)
        if before == (len(starts), len(ends)):
            return [path for path in flow.nodes if path not in ends]


def mentionable(flow, node):
    """Return the (path, status) pairs that a step's requirement may mention (semantics 2.5)."""
    found = []
    container = node.parent
    while container is not None:
        for other in container.children:
            if other is node or node in other.below():
                continue
            found.extend((other.path, status) for status in STATUSES)
        container = container.parent
    for container in node.above():
        found.extend((container.path, status) for status in ('ready', 'active'))
    return found


def held_on_path(flow, node, pool):
    """Return how much of a pool may be held and asked at once on the way to a step (4.3)."""
    return sum(n for one in [node] + node.above() for name, n in one.acquires if name == pool)


def oversized(flow):
    """Return the paths of steps at which more of a pool may be needed than there is (4.3)."""
    return [path for path, node in flow.nodes.items() for pool, limit in flow.pools.items()
            if held_on_path(flow, node, pool) > limit]


def sequences(flow, node):
    """Return the sequences at which a step can have tasks; for a leaf with a loop, its items."""
    found = ['1']
    for container in reversed(node.above()):
        found = ['%s.%d' % (sequence, i + 1) for sequence in found
                 for i in range(1 if container.loop is None else container.loop)]
    if node.loop is not None and not node.children:
        found = ['%s.%d' % (sequence, i + 1) for sequence in found for i in range(node.loop)]
    return found


# The generator ###################################################################


class Chance:
    """Random choices made from ``random()`` alone: the same on every version of Python."""

    def __init__(self, seed):
        self.random = random.Random(seed).random

    def below(self, n):
        return int(self.random() * n)

    def choice(self, options):
        return options[self.below(len(options))]

    def likely(self, probability):
        return self.random() < probability

    def weighted(self, *pairs):
        """Return one of the values, given as (weight, value), by weight."""
        left = self.random() * sum(weight for weight, _ in pairs)
        for weight, value in pairs:
            left -= weight
            if left < 0:
                return value
        return pairs[-1][1]


def random_flow(seed, max_nodes=15, max_tasks=60):
    """Return a random valid flow.

    Args:
        seed: an int, or a `Chance` to draw from.
        max_nodes: the most steps that it has.
        max_tasks: roughly the most leaf tasks that its loops make of them.
    """
    chance = seed if isinstance(seed, Chance) else Chance(seed)
    nodes, order = _random_tree(chance, max_nodes)
    _add_loops(chance, nodes)
    flow = Flow([node for node in nodes if node.parent is None], order=order,
                max_concurrent=chance.weighted((4, 0), (2, 1), (3, 2), (1, 3)),
                stop=chance.weighted((6, None), (3, False), (1, True)),
                handled_by=chance.weighted((16, 'handles'), (2, 'failure'), (2, 'complete')))
    _cut_loops(flow, max_tasks)
    _add_requirements(chance, flow)
    _add_failures(chance, flow)
    if chance.likely(0.7):
        _add_reactions(chance, flow)
    if chance.likely(0.4):
        _add_pools(chance, flow)
    if chance.likely(0.3):
        _add_delays(chance, flow)
    if chance.likely(0.1):
        _add_recovery(chance, flow)
    if chance.likely(0.4):
        _add_tolerance(chance, flow, max_tasks)
    if chance.likely(0.4):
        _add_retries(chance, flow)
    if chance.likely(0.4):
        _add_constructs(chance, flow)
    _add_handlers(chance, flow)
    if flow.pools and chance.likely(0.4):
        _move_pools_outside(chance, flow)
    return flow


def _move_pools_outside(chance, flow):
    """Let pools whose units each task gives back itself be counted outside the run."""
    given = {pool for node in flow.nodes.values() if node.releases is not None
             for pool, _ in node.acquires + node.releases}
    flow.outside = {pool for pool in sorted(flow.pools)
                    if pool not in given and chance.likely(0.7)}


def _random_tree(chance, max_nodes):
    """Return the nodes of a new tree in the order in which they are added, and their paths."""
    size = min(max_nodes, chance.weighted((6, 3 + chance.below(4)), (5, 6 + chance.below(4)),
                                          (2, 10 + chance.below(6))))
    nodes, roomy = [], [None]       # roomy: where more may be put
    parents = {}
    for i in range(size):
        node = Node('s%d' % i)
        parent = chance.choice(roomy)
        if parent is None:
            node.path = node.name
        else:
            parent.children.append(node)
            node.parent = parent
            node.path = '%s_%s' % (parent.path, node.name)
        parents[node] = parent
        nodes.append(node)
        depth = node.path.count('_')
        if depth < 3 and chance.likely(0.35):
            roomy.append(node)
            if chance.likely(0.5):  # filled soon
                roomy.append(node)
    return nodes, [node.path for node in nodes]


def _add_loops(chance, nodes):
    for node in nodes:
        if node.children:
            if chance.likely(0.5):
                node.loop = chance.weighted((1, 0), (1, 1), (5, 2), (3, 3))
                node.max_concurrent = chance.weighted((6, None), (2, 2), (1, 0), (1, 1))
        else:
            if chance.likely(0.12):
                node.loop = chance.weighted((1, 0), (1, 1), (4, 2), (2, 3))
            if chance.likely(0.15):
                node.max_concurrent = chance.weighted((3, 1), (2, 2), (1, 0))
            node.func = not chance.likely(0.1)
        if node.loop is not None and chance.likely(0.06):
            node.loop_fails = (1 + chance.below(node.loop + 1),
                               chance.weighted((2, ALWAYS), (1, 1)))


def _cut_loops(flow, max_tasks):
    """Shorten loops until there are few enough tasks."""
    while sum(len(sequences(flow, node)) for node in flow.nodes.values()) > max_tasks:
        longest = max(flow.nodes.values(), key=lambda node: node.loop or 0)
        longest.loop -= 1


def _random_expression(chance, options, depth=0):
    """Return an expression over some of the options, [(weight, path, status)]."""
    deeper = depth < 2
    kind = chance.weighted((5, 'atom'), (3 * deeper, 'and'), (2 * deeper, 'or'))
    if kind == 'atom':
        return ('atom',) + chance.weighted(*[(weight, (path, status))
                                             for weight, path, status in options])
    return (kind, [_random_expression(chance, options, depth + 1)
                   for _ in range(chance.weighted((1, 1), (6, 2), (2, 3)))])


_STATUS_WEIGHTS = {'success': 8, 'failure': 3, 'complete': 3, 'ready': 1, 'active': 1}


def _add_requirements(chance, flow):
    later = chance.weighted((2, 0), (1, 0.3))
    for node in flow.nodes.values():
        options = []
        for path, status in mentionable(flow, node):
            other = flow.nodes[path]
            weight = _STATUS_WEIGHTS[status] * (1 if other.parent is node.parent else 0.6)
            if other.index > node.index:
                weight *= later
            if weight:
                options.append((weight, path, status))
        if options and chance.likely(0.65):
            node.require = _random_expression(chance, options)
            if circular(flow):
                node.require = None


def _add_failures(chance, flow):
    rate = chance.weighted((1, 0), (2, 0.12), (3, 0.25), (1, 0.5))
    for node in flow.nodes.values():
        if not node.children and node.func and chance.likely(rate):
            spread = chance.weighted((1, 1), (1, 0.4))
            for sequence in sequences(flow, node):
                if chance.likely(spread):
                    node.fails[sequence] = _failing_runs(chance)
        if chance.likely(0.12):
            node.stop = chance.likely(0.4)


def _failing_runs(chance):
    """Return in which runs something fails: in the first ones, or in a few of the first four."""
    if chance.likely(0.15):
        return tuple(run for run in range(4) if chance.likely(0.5))
    return chance.weighted((3, ALWAYS), (2, 1), (1, 2))


def _add_reactions(chance, flow):
    """Let steps without a requirement react to what can fail beside them or further out."""
    for node in flow.nodes.values():
        if node.require is not None or node.fails and chance.likely(0.5):
            continue
        options = [(5 if flow.nodes[path].parent is node.parent else 2, path, status)
                   for path, status in mentionable(flow, node)
                   if status in ('failure', 'complete') and _can_fail(flow.nodes[path])]
        if options and chance.likely(0.5):
            node.require = _random_expression(chance, options)
            if circular(flow):
                node.require = None


def _can_fail(node):
    return any(one.fails or one.loop_fails for one in [node] + node.below())


def _add_handlers(chance, flow):
    """Declare that some of the steps that require a failure make it good (semantics 3.3)."""
    rate = chance.weighted((1, 0), (3, 0.5), (2, 0.9))
    for node in flow.nodes.values():
        beside = {one.path for one in node.parent.children}
        required = [path for path, status in atoms(node.require)
                    if status in ('failure', 'complete')]
        if required and beside.issuperset(required) and chance.likely(rate):
            node.handles = True


def handles_in_order_only(flow):
    """Tell whether no handler can run before the failure that it handles.

    Then the order in which tasks end does not decide what is made good.
    """
    for node in flow.nodes.values():
        for failing in node.parent.children:
            failures = {(failing.path, 'failure'), (failing.path, 'complete')}
            if failures & set(atoms(node.require)) and holds(
                    node.require, lambda path, status, failures=failures: (
                        (path, status) not in failures)):
                return False
    return True


def _add_pools(chance, flow):
    for name in 'pq'[:1 + chance.below(2)]:
        flow.pools[name] = 1 + chance.below(3)
    for node in flow.nodes.values():
        for pool, limit in sorted(flow.pools.items()):
            n = 1 + chance.below(limit)
            if chance.likely(0.35):
                node.acquires.append((pool, n))
                if oversized(flow):
                    node.acquires.pop()
    plain = [node for node in flow.root.children
             if not node.children and node.loop is None and not node.fails]
    takers = [node for node in plain if node.acquires]
    givers = [node for node in plain if not node.acquires]
    if takers and givers and chance.likely(0.4):    # one step takes, another gives back
        taker, giver = chance.choice(takers), chance.choice(givers)
        before, giver.require = giver.require, ('atom', taker.path, 'success')
        if circular(flow):
            giver.require = before
        else:
            taker.releases, giver.releases = [], list(taker.acquires)


def _add_constructs(chance, flow):
    """Let leaves run in the supervisor, or in a construct that queues."""
    rate = chance.weighted((2, 0.4), (2, 0.8), (1, 1))
    inline = chance.weighted((2, 0), (1, 0.4), (1, 1))
    for node in flow.nodes.values():
        if not node.children and node.func and chance.likely(rate):
            node.construct = 'inline' if chance.likely(inline) else 'queues'
            if chance.likely(0.8):
                node.max_concurrent = None
    if chance.likely(0.8):
        flow.queue = 1 + chance.below(3), chance.below(4)


def _add_delays(chance, flow):
    for node in flow.nodes.values():
        if chance.likely(0.3):
            node.delay = 1 + chance.below(4)


def _add_recovery(chance, flow):
    for node in flow.nodes.values():
        if chance.likely(0.3):
            node.recovery = chance.choice([{'success': 'rerun'}, {'success': 'skip'},
                                           {'failure': 'skip'}, {'active': 'skip'},
                                           {'success': 'rerun', 'failure': 'skip'}])


def _add_tolerance(chance, flow, max_tasks):
    """Let loops bear failed iterations; lengthen them, and have more fail in them."""
    for node in flow.nodes.values():
        if node.loop is None or not chance.likely(0.7):
            continue
        node.tolerate = chance.weighted((1, 0), (5, 1), (2, 2), (1, '0%'), (2, '34%'), (3, '50%'),
                                        (1, '100%'))
        node.counted = chance.likely(0.5)
        node.loop += chance.below(3)
        if chance.likely(0.5):
            node.max_concurrent = chance.weighted((1, 0), (2, 2), (1, 3))
    _cut_loops(flow, max_tasks)
    for node in flow.nodes.values():
        within = [node] + node.above()
        if node.children or not node.func or all(one.tolerate is None for one in within):
            continue
        rate = chance.weighted((1, 0), (2, 0.3), (1, 0.6))
        for sequence in sequences(flow, node):
            if chance.likely(rate):
                node.fails[sequence] = _failing_runs(chance)


def _add_retries(chance, flow):
    for node in flow.nodes.values():
        if node.children or not node.func or not chance.likely(0.5):
            continue
        node.retries = chance.weighted((3, 1), (2, 2), (1, 3))
        node.retry_delay = chance.weighted((3, 0), (2, 1), (3, 2 + chance.below(4)), (1, None))
        for sequence in sequences(flow, node):
            if chance.likely(0.5):
                node.stumbles[sequence] = chance.weighted((4, 1), (2, 2), (1, 3))
