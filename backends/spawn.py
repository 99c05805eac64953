"""Start the processes of steps in new interpreters: config ``start_method`` 'spawn', 'forkserver'.

The core asks for this file by name, when a step has another start method than 'fork'. What such a
child runs is sent to it with the parcel of its job: so functions, arguments and loop items must be
what can be pickled, which is checked before the run. The child loads the module that Python was
started with after its gate, by `Job.load`. All else is as in a forked child.
"""

import contextlib
import functools
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.process
import os
import pickletools
import sys
import typing  # noqa: F401 (in comments)

from . import (  # type: ignore
    Child, ConstructError, describe_error, lasting_streams, main_origin, make_line, own_fds,
    pack_job, pass_gate, pickled, private_name, process_alive, process_identity, serve_child,
    starting, unpack_job)

BACKEND = {'start_methods': ['spawn', 'forkserver']}


def check(name, func, args, kwargs, method):
    """Refuse a step that cannot be sent to another interpreter: raise ConstructError."""
    for what, value in (('function', func), ('arguments', (args, kwargs))):
        try:
            if _needs_main(pickled(value)) and main_origin() is None:
                raise ValueError('it is of the main program, which is in no file')
        except Exception as error:
            raise ConstructError(
                'step %r: its %s cannot be sent to a process started by %r (%s); use a '
                "function at the top of a module, or start_method 'fork'"
                % (name, what, method, describe_error(error))) from error


def _needs_main(content):
    """Return whether something in a pickle is found in the main module."""
    return b'__main__' in content and any(
        value == '__main__' for _, value, _ in pickletools.genops(content))


def start(job, method):
    """Return the `Child` for a job, which waits at its gate.

    Raises:
        ConstructError: the job cannot be sent.
        OSError: the system is short of processes or descriptors.
    """
    if method == 'forkserver':
        _preload_here()
    child = SpawnedChild()
    child.fd, theirs = make_line()
    try:
        child.process = multiprocessing.get_context(method).Process(
            target=_begin, name='%s %s' % (job.name, job.sequence),
            args=(pack_job(job, secrets=True), theirs, process_identity()))
        with starting(), hidden_main():
            child.process.start()
            own_fds.update(_pipes_of(child.process))
        child.pid = child.process.pid
    finally:
        theirs.close()
        if child.pid is None:
            child.hang_up()
    return child


class SpawnedChild(Child):
    """A process that multiprocessing has started."""

    process = None    # type: typing.Any

    def ended(self):
        if not self.over:
            self.code = self.process.exitcode
            self.over = self.code is not None or self._is_gone()  # type: bool
        return self.over

    def _is_gone(self):
        """Return whether somebody else has reaped it, or SIGCHLD is ignored."""
        if type(self.process).__name__ == 'ForkServerProcess':
            return False    # The server reaps it, and tells its exit code a little later.
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            self.code = self.process.exitcode    # Another thread may just have reaped it.
            return True
        except PermissionError:
            pass    # It has other rights.
        return False

    def part(self):
        own_fds.difference_update(_pipes_of(self.process))
        children = private_name(multiprocessing.process, '_children')
        if children is not None:    # Without: this program waits for a process that goes on alone.
            children.discard(self.process)
        del self.process    # Its end closes its descriptors.


def _pipes_of(process):
    """Return the descriptors that multiprocessing has open here for a process that was started.

    Without: only the one that tells its end; the children of others inherit the rest, too.
    """
    known = private_name(process, '_popen.finalizer._args')    # since Python 3.7
    return [process.sentinel] if known is None else [fd for fd in known if isinstance(fd, int)]


def _preload_here():
    """Have the fork server load this file once, instead of each child. Without: each loads it."""
    known = private_name(multiprocessing.forkserver, '_forkserver._preload_modules')
    if known is not None and __name__ not in known:
        multiprocessing.forkserver.set_forkserver_preload([*known, __name__])


@contextlib.contextmanager
def hidden_main():
    """Keep multiprocessing from loading the main module in a child: we do that, after the gate.

    What other threads look up in it meanwhile they find.
    """
    main = sys.modules['__main__']
    double = type(sys)('__main__')
    double.__dict__.update(vars(main), __file__=None, __spec__=None)
    sys.modules['__main__'] = double
    try:
        yield
    finally:
        sys.modules['__main__'] = main


def _begin(parcel, line, supervisor):
    """Where a child begins. Does not return.

    Args:
        supervisor: its identity; the parent of the child may be the fork server.
    """
    lasting_streams.__enter__()
    serve_child(functools.partial(pass_gate, unpack_job(parcel), line),
                lambda: process_alive(supervisor) is not False)
