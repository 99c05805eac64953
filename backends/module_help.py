"""Show in ``python -m sequent MODULE -h`` the parameters that a module declares."""

import contextlib
import sys

from . import readable, told_error  # type: ignore

BACKEND = {'explains': '-h'}


def show(load, module, declared, say):
    """Load a module, and print its parameters with their defaults.

    Args:
        load: loads the module. What that raises is said below the parameters.
        module: its name, as it was given.
        declared: {name: `Parameter`}, which has those of the module once it is loaded.
        say: prints a line.
    """
    trouble = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        trouble = told_error(error)
    say('')
    say('parameters of %s:' % module)
    for one in declared.values():
        default = ('required' if one.default is ... else 'optional' if one.default is None else
                   'default ***' if one.secret else 'default ' + readable(one.default_text()))
        say('  %-20s  %s' % (one.name, '; '.join(
            ['secret'] * one.secret + [default] + [one.help] * bool(one.help))))
    if not declared and trouble is None:
        say('  none')
    if trouble is not None:
        say('  loading %s ended here: %s' % (module, trouble))
