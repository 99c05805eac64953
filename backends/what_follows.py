"""Warn of code in a flow's module that the command line does not come to.

The command line ends the program where a module runs its flow without a ``__main__`` guard.
"""

import ast
import logging

from . import main

logger = logging.getLogger('sequent')

BACKEND = {'explains': 'run'}


def warn(frame):
    """Warn of the code that does not run, given the frame of the call that ends the program."""
    found = _what_follows(frame)
    if found:
        logger.warning('%s: what follows flow() at line %d does not run, from line %d on: the '
                       'command line ends the program there', *found)


def _what_follows(frame):
    """Return (file, line, line of what follows) for a call that a module makes while it is loaded.

    The call may stand in functions: each of them is looked at. None: nothing follows, or it is
    not known.
    """
    while frame is not None:
        code, line = frame.f_code, frame.f_lineno
        if code.co_filename not in (main.__code__.co_filename, __file__):
            following = _statement_after(code.co_filename, line)
            if following and code.co_name != '<lambda>':
                return code.co_filename, line, following
        if code.co_name == '<module>':
            break
        frame = frame.f_back
    return None


def _statement_after(path, line):
    """Return the line of what comes after the statement at a line of a file; None for nothing.

    After the body of a loop comes the loop again, after that of a function nothing. Closing a
    flow is nothing: it has been done.
    """
    try:
        with open(path, 'rb') as source:
            body = ast.parse(source.read()).body  # type: list
    except (OSError, SyntaxError, ValueError):  # in a zip, or edited meanwhile: it stays unsaid
        return None
    while body and body[0].lineno <= line:
        here = [one for one in body if one.lineno <= line][-1]
        if not isinstance(here, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            after = [one.lineno for one in body if one.lineno > line and not _closes(one)]
            if after or isinstance(here, (ast.For, ast.While)):
                return after[0] if after else here.lineno
        inner = [getattr(here, name, None) for name in ('body', 'orelse', 'handlers')]
        body = next((one for one in reversed(inner) if one and one[0].lineno <= line), None)
    return None


def _closes(statement):
    function = getattr(getattr(statement, 'value', None), 'func', None)
    return isinstance(function, ast.Attribute) and function.attr == 'close'
