"""Power cuts: what a run did to the disk, and every state of the disk that a cut may leave.

A run is recorded with ``strace``. Of what it did to the folder of its store `Disk` keeps two
things apart: what is durable by now, and what is pending. `images` goes through the record, cuts
the power after every operation, and makes disks of what may be there then.

The model is what POSIX promises, and what journaling file systems and disks keep besides:

- ``fsync`` and ``fdatasync`` of a file make its content and its size durable, but not its name.
  The same of a folder makes its entries durable, but not the name of the folder itself.
- Of what is pending anything may be there: content without the name, the name without content.
- A write reaches the disk in sectors of 512 bytes (long ones here in pieces of 64 kB). A sector
  is written as a whole or not at all, and bytes of it that were not written stay as they were:
  SQLite assumes both. The page cache has one copy of it: what is on the disk is what it held at
  one moment, so of several writes to one sector there is never a later one without an earlier.
- The size of a file is a thing of its own. What it covers and was never written reads as zeros,
  or as the garbage that was there before.
- An entry of a folder also has its states one after the other: no file is there under a name
  before what had that name has gone. Otherwise entries are independent. A rename is atomic: the
  old name goes when the new one comes.

This is weaker than what ext4 or XFS do, which keep the order of names: what survives here survives
there. Files are addressed by what was made, so that an unlink that is undone brings back the file
itself, a journal for one.
"""

import collections
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback

import sequent

SECTOR = 512
#: Pieces of a long write, so that there are not thousands.
PIECE = 1 << 16


# The flow #########################################################################

#: step -> what it requires, at the same sequence or a shorter one.
REQUIRES = {'big': ['fetch'], 'side': ['fetch'], 'late': ['big', 'side'],
            'program': ['big', 'side'], 'loop_part': ['late', 'program'], 'join': ['loop_part']}
BIG = bytes(range(256)) * 6000    # a result that goes to a file


class Recording:
    """The flow as it is recorded: its steps are processes, and its supervisor dies once.

    Args:
        folder: of the store; files beside it, named after it, tell what happened.
    """

    config = {'task_construct': 'process', 'start_method': 'fork', 'capture': 'none'}

    def __init__(self, folder):
        self.folder = folder

    def flow(self, mode, **config):
        """Return a diamond, two orphans, a loop."""
        config = dict(self.config, logdir=self.folder + '-logs', max_concurrent=2, **config)
        flow = sequent.Sequent('etl', store=os.path.join(self.folder, 'etl.db'), run_mode=mode,
                               run_id='' if mode != 'restart' else 'night', config=config)
        fetch = flow.add_step('fetch', func=self.work)
        big = flow.add_step('big', func=self.make_big, require=fetch)
        side = flow.add_step('side', func=self.work, require=fetch)
        late = flow.add_step('late', func=self.be_late, require=(big, side))
        program = flow.add_step('program', func=self.program(), require=(big, side))
        loop = flow.add_step('loop', loop=[1, 2], require=(late, program))
        loop.add_step('part', func=self.work)
        flow.add_step('join', func=self.join, args=(big.result,), require=loop)
        return flow

    def note(self, *words):
        """Write a line that stands in the record, too."""
        fd = os.open(self.folder + '-marks', os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, (' '.join(map(str, words)) + '\n').encode())
        os.close(fd)

    def work(self):
        current = sequent.current()
        self.note('start', current.name, current.sequence)

    def make_big(self):
        self.work()
        return BIG

    def be_late(self):
        """Kill the supervisor once the program runs; end after it."""
        self.work()
        supervisor = os.getppid()
        self._await(self.folder + '-program')
        os.kill(supervisor, signal.SIGKILL)
        while os.getppid() == supervisor:
            time.sleep(0.005)
        open(self.folder + '-late', 'w').close()

    def program(self):
        """Return a program that begins before its supervisor is killed, and ends after that."""
        script = ('echo start program 1 >>"$0-marks"; : >"$0-program"; '
                  'until [ -e "$0-late" ]; do sleep 0.02; done')
        return sequent.Command(['/bin/sh', '-c', script, self.folder])

    def join(self, big):
        self.work()
        if big != BIG:
            raise ValueError('the result of big is not what it was')

    def _await(self, path):
        deadline = time.monotonic() + 20
        while not os.path.exists(path):
            if time.monotonic() > deadline:
                raise AssertionError('waited in vain for %s' % path)
            time.sleep(0.005)


class Recovery(Recording):
    """The flow as it is recovered: inline, which is fast."""

    config = {'task_construct': 'inline'}

    def __init__(self, folder):
        super().__init__(folder)
        self.ran = []

    def note(self, *words):
        self.ran.append(list(words[1:]))

    def program(self):
        return self.work

    be_late = Recording.work


class CalmRecording(Recording):
    """The flow as it is recorded where its supervisor is not to die."""

    be_late = Recording.work

    def program(self):
        return self.work


def mark_commits(recording):
    """Have a mark made whenever the store has said that something is stored."""
    kind = sequent.SqliteStore

    def marked(name, words):
        plain = getattr(kind, name)

        def call(store, run, *rest):
            plain(store, run, *rest)
            for line in words(*rest):
                recording.note(*line)
        setattr(kind, name, call)

    marked('begin', lambda: [['begun']])
    marked('finish', lambda: [['over']])
    marked('commit', lambda records: [
        ['success', one.path, one.sequence] for one in records
        if one.status == 'success' and one.kind == 'leaf'])


def skip_syncs(of_folders):
    """Have this program not sync its own files, or not its folders: what a test is to notice."""
    plain = os.fsync

    def fsync(fd):
        if os.path.isdir('/proc/self/fd/%d' % fd) != of_folders:
            plain(fd)
    os.fsync = fsync


def run_recorded(folder, mode, fault, synchronous):
    """What is recorded: a run whose supervisor dies, and a recovery of it; or a recovery."""
    recording, calm = Recording(folder), CalmRecording(folder)
    mark_commits(recording)
    if fault:
        skip_syncs(fault == 'folders')
    if mode == 'restart':
        supervisor = os.fork()
        if not supervisor:
            recording.flow(mode, synchronous=synchronous)()
            os._exit(3)    # it should have been killed
        assert os.waitpid(supervisor, 0)[1] == signal.SIGKILL
        outcomes = os.path.join(folder, 'etl.db.outcomes', 'etl', 'night')
        for name in 'late', 'program':
            recording._await(os.path.join(outcomes, name + '.1.0.1.json'))
    assert calm.flow('recover', synchronous=synchronous)() is True


# The record #######################################################################

CALLS = ('openat,open,creat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,'
         'fsync,fdatasync,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,'
         'mkdir,mkdirat,rmdir,lseek,exit_group,sendfile,copy_file_range')


class Event(collections.namedtuple('Event', 'kind began ended what')):
    """One thing that happened: ``began`` and ``ended`` are lines of the record.

    kind, what: 'entries', {(folder, name): node or None}; 'write', (node, offset, content);
    'size', (node, size); 'sync', node; 'mark', words.
    """


def record(folder, mode='restart', fault='', synchronous='full', promises=None):
    """Run the flow on a store in a folder and return its `Record`.

    Args:
        mode: 'restart': with a supervisor that dies, and a recovery; 'recover': only that.
        fault: 'files' or 'folders': do not sync those of the library's own.
        promises: what was said before.
    """
    found = Record(folder, promises)
    path = folder + '-trace'
    # What is written to memory that a file is mapped to is not seen; SQLite maps none by default.
    command = ['strace', '-f', '-qq', '--seccomp-bpf', '-y', '-xx', '-s', '4000000', '-e',
               'signal=none', '-e', 'trace=' + CALLS, '-o', path, sys.executable,
               os.path.abspath(__file__), folder, mode, fault, synchronous]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, timeout=120)
    if done.returncode:
        raise AssertionError('the recorded program ended with %d:\n%s' % (
            done.returncode, done.stderr.decode('utf-8', 'replace')[-5000:]))
    with open(path, 'rb') as lines:
        found.read(lines)
    os.unlink(path)
    return found


_CALL = re.compile(rb'(\d+) +(?:<\.\.\. \w+ resumed>|(\w+)\()(.*)', re.S)
_DESCRIPTOR = re.compile(rb'(\d+|AT_FDCWD)<((?:\\x[0-9a-f]{2})*)>')
_TEXT = re.compile(rb'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_UNFINISHED = b' <unfinished ...>'


def _plain(text):
    return bytes.fromhex(text.replace(b'\\x', b'').decode())


class Record:
    """What happened to a folder, which has nothing pending at the beginning.

    Attributes:
        events: list of `Event`.
        names: {path within the folder: node}, as the program sees it; '' is the folder.
        files: {node: content at the beginning}, None for a folder.
    """

    def __init__(self, folder, promises=None):
        self.folder = folder
        self.before = promises or Promises(False, set(), False)
        self.events = []
        self.names = {}
        self.files = {}
        self._positions = {}    # (pid, descriptor): where the next write goes
        self._left = {}         # pid: outcomes that it has left
        for path, _, names in os.walk(folder):
            self._add(os.path.relpath(path, folder).lstrip('.'), None)
            for name in names:
                with open(os.path.join(path, name), 'rb') as file:
                    self._add(os.path.relpath(file.name, folder), file.read())
        self.initial = dict(self.names)

    def _add(self, path, content):
        node = self.names[path] = len(self.files)
        self.files[node] = content
        return node

    def read(self, lines):
        unfinished = {}
        for number, line in enumerate(lines):
            pid, name, rest = _CALL.match(line.rstrip(b'\n')).groups()
            began = number
            if name is None:
                began, name, start = unfinished.pop(pid)
                rest = start + rest
            if rest.endswith(_UNFINISHED):
                unfinished[pid] = began, name, rest[:-len(_UNFINISHED)]
                continue
            if name == b'exit_group':
                for words in self._left.pop(pid, ()):
                    self._note('mark', began, number, words)
                continue
            arguments, _, result = rest.rpartition(b' = ')
            result = re.match(rb'\d+', result)
            if result:
                self._take(pid, name.decode(), arguments, int(result.group()), began, number)

    def _within(self, path):
        """Return the path within the folder, or None for one elsewhere."""
        path = os.fsdecode(path)
        if path == self.folder:
            return ''
        return path[len(self.folder) + 1:] if path.startswith(self.folder + '/') else None

    def _node(self, path):
        return self.names[self._within(path)]

    def _note(self, kind, began, ended, what):
        self.events.append(Event(kind, began, ended, what))

    def _take(self, pid, name, arguments, result, began, ended):
        descriptors = [(int(fd) if fd.isdigit() else None, _plain(path))
                       for fd, path in _DESCRIPTOR.findall(arguments[:20000])]
        at = descriptors[0] if descriptors else (None, b'')
        if name in ('write', 'pwrite64', 'writev', 'pwritev', 'pwritev2', 'fsync', 'fdatasync',
                    'ftruncate', 'lseek', 'fallocate', 'sendfile', 'copy_file_range'):
            if at[1] == os.fsencode(self.folder + '-marks') and name == 'write':
                text = _plain(_TEXT.search(arguments).group(1)).decode()
                for line in text.splitlines():
                    self._note('mark', began, began, line.split())
            elif self._within(at[1]) is not None:
                self._take_content(pid, name, at, arguments, result, began, ended)
            return
        paths = []
        for text, cut in _TEXT.findall(arguments):
            assert not cut
            paths.append(self._within(os.path.join(at[1], _plain(text))))
        if any(path is not None for path in paths):
            self._take_names(pid, name, paths, arguments, result, began, ended)

    def _take_content(self, pid, name, at, arguments, result, began, ended):
        fd, path = at
        node = self._node(path)
        if name in ('fsync', 'fdatasync'):
            self._note('sync', began, ended, node)
        elif name == 'ftruncate':
            self._note('size', began, ended, (node, int(arguments.rstrip(b') ').rpartition(
                b', ')[2])))
        elif name == 'lseek':
            self._positions[pid, fd] = result
        elif name in ('write', 'pwrite64'):
            text, cut = _TEXT.search(arguments).groups()
            assert not cut, 'a long write is cut off in the record'
            content = _plain(text)[:result]
            if name == 'write':
                offset = self._positions[pid, fd]
                self._positions[pid, fd] = offset + result
            else:
                offset = int(arguments[-30:].rstrip(b') ').rpartition(b', ')[2])
            self._note('write', began, ended, (node, offset, content))
        else:
            raise AssertionError('the model does not know %s of %r' % (name, path))

    def _take_names(self, pid, name, paths, arguments, result, began, ended):
        changes = {}
        if name in ('openat', 'open', 'creat'):
            made = name == 'creat' or b'O_CREAT' in arguments
            if paths[0] not in self.names:
                assert made, '%r is open, but was never made' % paths[0]
                changes[paths[0]] = self._add(paths[0], b'')
            elif b'O_TRUNC' in arguments:
                self._note('size', began, ended, (self.names[paths[0]], 0))
            self._positions[pid, result] = 0
        elif name in ('mkdir', 'mkdirat'):
            changes[paths[0]] = self._add(paths[0], None)
        elif name in ('rename', 'renameat', 'renameat2'):
            changes = {paths[0]: None, paths[1]: self.names[paths[0]]}
            if paths[1].endswith('.json'):
                step, sequence = os.path.basename(paths[1]).split('.')[:2]
                self._left.setdefault(pid, []).append(['left', step, sequence])
        elif name in ('link', 'linkat'):
            changes[paths[1]] = self.names[paths[0]]
        elif name in ('unlink', 'unlinkat', 'rmdir'):
            changes[paths[0]] = None
        else:
            raise AssertionError('the model does not know %s of %r' % (name, paths))
        if changes:
            self._note('entries', began, ended, {
                (self.names[os.path.dirname(path)], os.path.basename(path)): node
                for path, node in changes.items()})
        for path, node in changes.items():
            if node is None:
                del self.names[path]
        self.names.update((path, node) for path, node in changes.items() if node is not None)

    def promises(self, upto=None):
        """Return the `Promises` made by the first ``upto`` events."""
        marks = [event.what for event in self.events[:upto] if event.kind == 'mark']
        begun, done, over = self.before
        done = done | {tuple(one[1:]) for one in marks if one[0] in ('success', 'left')}
        for one in marks:
            if one[0] == 'start':
                done.update(self._required(*one[1:]))
        return Promises(begun or ['begun'] in marks, done, over or ['over'] in marks)

    @staticmethod
    def _required(step, sequence):
        """Return what must have succeeded, as a task that requires it has started."""
        sequences = {'join': ['1.1', '1.2'], 'loop_part': ['1']}.get(step, [sequence])
        return [(one, at) for one in REQUIRES.get(step, ()) for at in sequences]


class Promises(collections.namedtuple('Promises', 'begun done over')):
    """What was said before a cut: that a run has begun, that {(path, sequence)} have succeeded,
    that the run is over."""


# The disk #########################################################################


class Change:
    """A part of an event that reaches the disk as a whole, or not at all.

    Attributes:
        number: its place.
        event: the number of its event.
        keys: what it changes: ('entry', folder, name), ('sector', node, number), ('size', node).
        nodes: whose sync makes it durable.
        before: numbers of the changes of the same keys that came just before.
        entries, piece, size: what it does.
    """

    __slots__ = ('number', 'event', 'keys', 'nodes', 'before', 'entries', 'piece', 'size', 'ended')

    def __init__(self, event, keys, nodes, entries=None, piece=None, size=None):
        self.event = event
        self.keys = keys
        self.nodes = nodes
        self.entries = entries
        self.piece = piece
        self.size = size


class Disk:
    """What is on the disk, and what is pending.

    Args:
        record: a `Record`.
    """

    def __init__(self, record):
        self.contents = {node: content for node, content in record.files.items()}
        self.kinds = {node: content is None for node, content in record.files.items()}
        self.entries = {}
        for path, node in record.initial.items():
            if path:
                above = record.initial[os.path.dirname(path)]
                self.entries[above, os.path.basename(path)] = node
        self.sizes = {node: len(content or b'') for node, content in self.contents.items()}
        self.pending = []          # Changes, in order
        self.made = 0              # how many Changes there have been
        self.versions = collections.Counter()
        self._last = {}            # key -> number of its last change
        self._known = {}           # what a file holds -> its hash
        self.blobs = {}            # hash -> content

    def happen(self, number, event):
        """Take an event; return the numbers of the changes that have become durable."""
        if event.kind == 'sync':
            return self._sync(event)
        for change in self._changes(number, event):
            change.number, change.ended = self.made, event.ended
            change.before = {self._last[key] for key in change.keys if key in self._last}
            self._last.update((key, self.made) for key in change.keys)
            self.made += 1
            self.pending.append(change)
        return set()

    def _changes(self, number, event):
        if event.kind == 'entries':
            yield Change(number, [('entry',) + key for key in event.what],
                         [folder for folder, _ in event.what], entries=event.what)
        elif event.kind == 'size':
            node, size = event.what
            beyond = range(size // SECTOR, -(-self.sizes[node] // SECTOR))
            self.sizes[node] = size
            yield Change(number, [('size', node)] + [('sector', node, one) for one in beyond],
                         [node], size=(node, size))
        elif event.kind == 'write':
            node, offset, content = event.what
            step = SECTOR if len(content) <= PIECE else PIECE
            end = offset + len(content)
            for start in range(offset // step * step, end, step):
                piece = content[max(start - offset, 0):start + step - offset]
                at = max(start, offset)
                sectors = range(at // SECTOR, -(-(at + len(piece)) // SECTOR))
                yield Change(number, [('sector', node, one) for one in sectors], [node],
                             piece=(node, at, piece))
            if end > self.sizes[node]:
                self.sizes[node] = end
                yield Change(number, [('size', node)], [node], size=(node, end))

    def _sync(self, event):
        durable = self.closed_up({
            one.number for one in self.pending
            if event.what in one.nodes and one.ended < event.began})
        kept = [one for one in self.pending if one.number in durable]
        self.entries = self._entries(kept)
        for node in {one.nodes[0] for one in kept if one.entries is None}:
            self.contents[node] = self._content(node, kept, b'')
            self.versions[node] += 1
        self.pending = [one for one in self.pending if one.number not in durable]
        return durable

    def closed_up(self, chosen):
        """Return the numbers of the pending changes chosen, and of those that they need."""
        chosen = set(chosen)
        for change in reversed(self.pending):
            if change.number in chosen:
                chosen |= change.before
        return chosen & {one.number for one in self.pending}

    def closed_down(self, chosen):
        """Return the numbers of the pending changes chosen, but those that lack what they need."""
        missing, kept = set(), set()
        for change in self.pending:
            if change.number in chosen and not change.before & missing:
                kept.add(change.number)
            else:
                missing.add(change.number)
        return kept

    def _entries(self, kept):
        entries = dict(self.entries)
        for change in kept:
            for key, node in (change.entries or {}).items():
                if node is None:
                    entries.pop(key, None)
                else:
                    entries[key] = node
        return entries

    def _content(self, node, kept, garbage):
        """Return what a file holds if some changes are there; what was never written is filled."""
        content = bytearray(self.contents[node])

        def fill(size):
            missing = size - len(content)
            if missing > 0:
                content.extend((garbage * (size // max(len(garbage), 1) + 1))[len(content):size]
                               if garbage else bytes(missing))
        size = len(content)
        for change in kept:
            if change.piece is not None and change.piece[0] == node:
                _, at, piece = change.piece
                fill(at)
                content[at:at + len(piece)] = piece
            elif change.size is not None and change.size[0] == node:
                if change.size[1] < size:
                    del content[change.size[1]:]
                size = change.size[1]
        fill(size)
        return bytes(content[:size])

    def image(self, chosen, garbage=b''):
        """Return {path: hash of the content, or None for a folder} if so much is there."""
        kept = [one for one in self.pending if one.number in chosen]
        of_node = collections.defaultdict(list)
        for one in kept:
            if one.entries is None:
                of_node[one.nodes[0]].append(one)
        inside = collections.defaultdict(list)
        for (folder, name), node in self._entries(kept).items():
            inside[folder].append((name, node))
        found, folders = {}, [('', 0)]
        while folders:
            path, folder = folders.pop()
            for name, node in inside[folder]:
                place = os.path.join(path, name)
                if self.kinds[node]:
                    found[place] = None
                    folders.append((place, node))
                else:
                    found[place] = self._hash(node, of_node[node], garbage)
        return found

    def _hash(self, node, kept, garbage):
        key = node, self.versions[node], tuple(one.number for one in kept), garbage
        if key not in self._known:
            content = self._content(node, kept, garbage)
            blob = self._known[key] = hashlib.sha1(content).hexdigest()
            self.blobs[blob] = content
        return self._known[key]


def choices(disk, chance, randoms):
    """Return sets of pending changes that may have reached the disk.

    All, nothing, the names alone, the content alone; each operation alone, and all but that; each
    longer write torn: its beginning, its end, some of its sectors; subsets at random.
    """
    pending = disk.pending
    everything = {one.number for one in pending}
    names = {one.number for one in pending if one.entries is not None}
    yield from (set(), everything, names, everything - names)
    events = collections.OrderedDict()
    for one in pending:
        events.setdefault(one.event, []).append(one.number)
    for parts in events.values():
        yield disk.closed_up(parts)
        yield disk.closed_down(everything - set(parts))
        if len(parts) > 2:
            at = chance.randrange(1, len(parts))
            some = [one for one in parts if chance.random() < 0.5]
            for torn in parts[:at], parts[at:], some:
                yield disk.closed_up(torn)
                yield disk.closed_down(everything - (set(parts) - set(torn)))
    for _ in range(randoms):
        share = chance.choice((0.1, 0.5, 0.9))
        yield disk.closed_down({one for one in everything if chance.random() < share})
        whole = [parts for parts in events.values() if chance.random() < share]
        yield disk.closed_down({one for parts in whole for one in parts})


class Images:
    """The images that a record leads to.

    Attributes:
        upto: {image: the number of events after the last cut that may leave it}; an image is a
            tuple of (path, hash or None).
        blobs: {hash: content}.
        cuts: how many places there were to cut at.

    Args:
        randoms: how many subsets to choose at random in each place, of two kinds.
        upto: the number of events to go through; None: all.
    """

    def __init__(self, record, seed, randoms=4, upto=None):
        chance = random.Random(seed)
        garbage = bytes(chance.randrange(256) for _ in range(4096))
        disk = Disk(record)
        self.record, self.blobs = record, disk.blobs
        self.upto, self.cuts = collections.OrderedDict(), 0
        alive = []    # (image, changes in it), which a cut may leave now
        for number, event in enumerate(record.events[:upto]):
            if event.kind != 'mark':
                durable = disk.happen(number, event)
                alive = [(image, chosen) for image, chosen in alive if durable <= chosen]
                self.cuts += 1
                for chosen in choices(disk, chance, randoms):
                    image = disk.image(chosen, chance.choice((b'', b'', garbage)))
                    alive.append((tuple(sorted(image.items())), chosen))
            for image, _ in alive:
                self.upto[image] = number + 1
            alive = list(collections.OrderedDict(
                ((image, frozenset(chosen)), (image, chosen)) for image, chosen in alive
            ).values())

    def write(self, image, folder):
        """Make files of an image."""
        os.mkdir(folder, 0o700)
        for path, blob in image:    # sorted: folders come before what is in them
            path = os.path.join(folder, path)
            if blob is None:
                os.mkdir(path, 0o700)
                continue
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(fd, 'wb') as file:
                file.write(self.blobs[blob])


# The recovery #####################################################################


def recover(folder):
    """Recover what a cut has left; return {'ran': ..., 'ok': ..., 'begun': ..., ...}."""
    import sqlite3
    flow = Recovery(folder)
    begun = True
    try:
        ok = flow.flow('recover')()
    except sequent.RecoveryError:
        begun, ok = False, flow.flow('restart')()
    database = sqlite3.connect(os.path.join(folder, 'etl.db'))
    [[sound]] = database.execute('PRAGMA integrity_check').fetchall()[:1]
    database.close()
    return {'ran': flow.ran, 'ok': ok, 'begun': begun, 'sound': sound}


def objections(promises, found):
    """Return what is wrong with a recovery, as a list of sentences."""
    wrong = []
    if 'error' in found:
        wrong.append('the recovery failed: %s' % found['error'])
        return wrong
    again = {tuple(one) for one in found['ran']} & promises.done
    if again:
        wrong.append('ran again: %s' % sorted(again))
    if promises.over and found['ran']:
        wrong.append('the run was over, and yet ran %s' % found['ran'])
    if promises.begun and not found['begun']:
        wrong.append('the run that had begun is gone')
    if found['ok'] is not True:
        wrong.append('the recovery returned %r' % found['ok'])
    if found['sound'] != 'ok':
        wrong.append('PRAGMA integrity_check: %s' % found['sound'])
    return wrong


class Checker:
    """Recovers images, each in a process of its own, a few at a time.

    Args:
        scratch: a folder in memory, best.
    """

    AT_A_TIME = 2

    def __init__(self, images, scratch):
        self.images = images
        self.record = images.record
        self.scratch = scratch
        self._count = 0
        self._promises = {}

    def lost(self, chosen, enough=10):
        """Return [(image, sentences)] for those where something was lost, up to so many."""
        found, running = [], collections.deque()
        for image in chosen:
            running.append(self._start(image))
            if len(running) >= self.AT_A_TIME:
                self._finish(running.popleft(), found)
            if len(found) >= enough:
                break
        while running:
            self._finish(running.popleft(), found)
        return found

    def _start(self, image):
        self._count += 1
        folder = os.path.join(self.scratch, '%d' % self._count)
        self.images.write(image, folder)
        pid = os.fork()
        if not pid:
            self._recover(folder)
        return pid, folder, image

    @staticmethod
    def _recover(folder):
        try:
            signal.alarm(30)
            log = os.open(folder + '-log', os.O_WRONLY | os.O_CREAT, 0o600)
            for fd in 1, 2:
                os.dup2(log, fd)
            sys.stderr = open(2, 'w', closefd=False)
            try:
                found = recover(folder)
            except BaseException as error:
                traceback.print_exc()
                found = {'error': '%s: %s' % (type(error).__name__, error)}
            with open(folder + '-found', 'w') as file:
                json.dump(found, file)
        finally:
            os._exit(0)

    def _finish(self, running, found):
        pid, folder, image = running
        status = os.waitpid(pid, 0)[1]
        try:
            with open(folder + '-found') as file:
                result = json.load(file)
        except FileNotFoundError:
            result = {'error': 'it ended with status %d' % status}
        upto = self.images.upto[image]
        if upto not in self._promises:
            self._promises[upto] = self.record.promises(upto)
        wrong = objections(self._promises[upto], result)
        if wrong:
            with open(folder + '-log', errors='replace') as file:
                log = file.read()
            found.append((image, wrong + ['after event %d of %d' % (
                upto, len(self.record.events)), log[-3000:]]))
        shutil.rmtree(folder)
        for name in os.listdir(self.scratch):
            if name.startswith(os.path.basename(folder) + '-'):
                path = os.path.join(self.scratch, name)
                (shutil.rmtree if os.path.isdir(path) else os.unlink)(path)


if __name__ == '__main__':
    run_recorded(*sys.argv[1:])
