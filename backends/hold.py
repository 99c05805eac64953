"""Keep steps of a run from starting: ``python -m sequent MODULE hold PATTERN``, and ``release``.

The supervisor follows these requests, also without this file.
"""

from . import ask  # type: ignore  # noqa: F401 (the command line calls it)

BACKEND = {
    'verbs': {
        'hold': {
            'call': 'ask',
            'words': ['PATTERN'],
            'ask': 'hold which steps? Give a pattern of their paths',
            'options': ['--run-id'],
            'of_run': True,
            'help': 'start no step whose path matches, also in recoveries, until its release',
        },
        'release': {
            'call': 'ask',
            'words': ['PATTERN'],
            'ask': 'release which steps? Give the pattern of the hold',
            'options': ['--run-id'],
            'of_run': True,
            'help': 'take a hold of the same pattern back',
        },
    },
}
