"""Power cuts: whatever of a run has reached the disk, nothing that was committed is lost.

What a run does to the disk is recorded, and every state that a cut may leave is made of that: see
`powertools` for the model. Each is recovered. SEQUENT_POWER_CUTS=n has n of them recovered in each
test, 0 all.
"""

import os
import random
import shutil
import sys
import tempfile

import pytest


import sample  # noqa: E402
import tally  # noqa: E402
from powertools import Checker, Images, record  # noqa: E402
from sequent import SqliteStore, StoreError  # noqa: E402

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith('linux'), reason='not for systems without '
                                                                    'strace'),
    pytest.mark.skipif(shutil.which('strace') is None, reason='strace is not installed')]

COUNT = sample.times('SEQUENT_POWER_CUTS', 250)
#: With what the journal of SQLite begins when a transaction is to be undone.
HOT = b'\xd9\xd5\x05\xf9\x20\xa1\x63\xd7'


@pytest.fixture
def scratch(tmp_path):
    """A folder for many small files, where that can be in memory."""
    memory = '/dev/shm'
    folder = tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else str(tmp_path))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope='module')
def seed():
    return sample.SEED


@pytest.fixture(scope='module')
def whole_run(tmp_path_factory, seed):
    """The `Images` of a run, of the death of its supervisor and of a recovery."""
    folder = tmp_path_factory.mktemp('recorded') / 'store'
    folder.mkdir()
    return Images(record(str(folder)), seed)


def recover_all(images, chosen, scratch, seed):
    """Recover images; fail if something was lost in one."""
    chosen = list(chosen)
    if 0 < COUNT < len(chosen):
        chosen = random.Random(seed).sample(chosen, COUNT)
    assert len(chosen) > 20
    print('seed %d: %d cuts, %d states of the disk, %d of them recovered' % (
        seed, images.cuts, len(images.upto), len(chosen)))
    tally.count('power cuts', len(chosen))
    assert report(Checker(images, scratch).lost(chosen)) == ''


def report(lost):
    """Return what went wrong as text."""
    return '\n\n'.join('\n'.join([', '.join(path for path, _ in image)] + sentences)
                       for image, sentences in lost)


def is_hot(images, image):
    """Whether SQLite will undo a transaction, of which more than nothing is in the file."""
    files = dict(image)
    journal = images.blobs.get(files.get('etl.db-journal'), b'')
    return journal[:8] == HOT and journal[8:12] != bytes(4)


def test_no_committed_success_is_lost_by_a_power_cut(whole_run, scratch, seed):
    recover_all(whole_run, whole_run.upto, scratch, seed)


def test_a_cut_while_the_store_is_made_leaves_what_can_be_run(whole_run, scratch, seed):
    record = whole_run.record
    begun = [number for number, event in enumerate(record.events)
             if event.what == ['begun']][0]

    recover_all(whole_run, [image for image, upto in whole_run.upto.items() if upto <= begun],
                scratch, seed)


def test_a_cut_during_the_recovery_after_a_cut_loses_nothing_either(whole_run, tmp_path, scratch,
                                                                    seed):
    """The first cut leaves a journal to be played back."""
    record_1 = whole_run.record
    hot = [image for image, upto in whole_run.upto.items() if is_hot(whole_run, image)
           and ('side', '1') in record_1.promises(upto).done]
    first = random.Random(seed).choice(hot)
    folder = str(tmp_path / 'store')
    whole_run.write(first, folder)
    again = record(folder, 'recover', promises=record_1.promises(whole_run.upto[first]))
    images = Images(again, seed)

    recover_all(images, images.upto, scratch, seed)


def test_a_file_that_held_something_before_its_journal_is_refused_untouched(tmp_path):
    path, content = tmp_path / 'etl.db', b'not an SQLite database' * 300
    path.write_bytes(content)
    (tmp_path / 'etl.db-journal').write_bytes(HOT + bytes(4) + b'once' + b'\0\0\0\2')

    with pytest.raises(StoreError, match='it is not an SQLite database; it was not touched'):
        SqliteStore(str(path)).open()

    assert path.read_bytes() == content


@pytest.mark.parametrize('fault, synchronous, upto', [
    ('', 'off', 120), ('files', 'full', 200), ('folders', 'full', None)])
def test_it_is_noticed_when_something_is_not_synced(fault, synchronous, upto, tmp_path, scratch):
    """The tests above can fail."""
    folder = tmp_path / 'store'
    folder.mkdir()
    images = Images(record(str(folder), fault=fault, synchronous=synchronous), 1, upto=upto)
    chosen = [image for image, upto in images.upto.items() if images.record.promises(upto).done]
    random.Random(1).shuffle(chosen)

    assert Checker(images, scratch).lost(chosen[:300], enough=1) != []
