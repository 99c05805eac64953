"""Counts what tests of faults have tried and what was lost; `conftest.py` prints it at the end."""

import collections

_tried = collections.OrderedDict()  # type: dict
_lost = collections.OrderedDict()  # type: dict


def count(what, number=1):
    """Note that so many of something, named in the plural, were tried: ``count('kills', 3)``."""
    _tried[what] = _tried.get(what, 0) + number


def lost(what, number=1):
    """Note that so many of something were lost, or done twice; the test fails by itself."""
    _lost[what] = _lost.get(what, 0) + number


def summary():
    """Return the line to print, or '' if nothing was counted."""
    if not _tried:
        return ''
    return 'tried: %s; lost: %s' % (_listed(_tried), _listed(_lost) or 'nothing')


def _listed(counts):
    return ', '.join('{:,} {}'.format(number, what) for what, number in counts.items())
