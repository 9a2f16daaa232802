"""The process that worker processes are forked from: what they all need is loaded once, and a worker is there in milliseconds.

Holds the template's side of the conversation. Must never touch an object's bytes, since whatever is in it is in every worker, and must not start a
thread, since a fork takes only the one that asks for it.

The parent sends a request with three file descriptors: the worker's connection, the file behind its monitor, and a pipe, through which it hears when
the worker begins and how it ends (`pixels_assets.engines.processes`).
"""

import errno
import gc
import os
import resource
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress

from pixels_assets.engines import worker
from pixels_assets.engines.processes import BEGUN, ENDED, REFUSED, REQUEST, SAID
from pixels_assets.imports import Absent

_ORPHANED_MS = 1000


def main(parent: int, control_fd: int) -> None:
    """Make workers until the parent is gone.

    Parameters
    ----------
    parent : int
        Process id of the parent.
    control_fd : int
        Inherited file descriptor: one end of a socket pair over which requests come.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would be a copy of patient data
    # pyarrow would load it wherever it is installed, which takes half a second and 40 MiB, and no value here is of it.
    sys.meta_path.insert(0, Absent("pandas"))
    gc.collect()
    gc.enable()
    gc.freeze()  # workers share these pages for as long as nobody writes to them, and the collector would
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    own_pid, control, pipes = os.getpid(), socket.socket(fileno=control_fd), dict[int, int]()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(awake, select.POLLIN)
    # The parent may leave without closing its end, when a process that it forked has it too. A worker that outlives the template is ended by the
    # system, or by its own connection.
    while os.getppid() == parent:
        ready = [descriptor for descriptor, _ in poll.poll(_ORPHANED_MS)]
        if awake in ready:
            os.read(awake, 4096)
        _reap(pipes)
        if control_fd in ready:
            request, inherited, _, _ = socket.recv_fds(control, len(REQUEST), 3)
            if not request:
                return
            connection, monitor, pipe = inherited
            pid = _fork(pipe)
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _tell(pipe, BEGUN, os.getpid())  # an object may be in hand before the template has its next turn
                for descriptor in (control_fd, awake, wake, pipe, *pipes.values()):
                    os.close(descriptor)
                _work(own_pid, connection, monitor)
            os.close(connection)
            os.close(monitor)
            if pid is not None:
                pipes[pid] = pipe


def _fork(pipe: int) -> int | None:
    """Fork; None when the system refuses, which the parent is told."""
    try:
        return os.fork()
    except OSError as error:
        _tell(pipe, REFUSED, error.errno or errno.EAGAIN)
        os.close(pipe)
        return None


def _tell(pipe: int, what: int, number: int) -> None:
    with suppress(OSError):  # nobody may want to know
        os.write(pipe, SAID.pack(what, number))


def _reap(pipes: dict[int, int]) -> None:
    """Tell the parent about workers that have ended."""
    for pid in list(pipes):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            pipe = pipes.pop(pid)
            _tell(pipe, ENDED, os.waitstatus_to_exitcode(status))
            os.close(pipe)


def _work(template: int, connection: int, monitor: int) -> None:
    """Be a worker, and end without going back to what the template was about to do."""
    code = 1
    try:
        worker.main(template, connection, monitor)
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:  # as the interpreter does where nothing catches it
        traceback.print_exc()
    finally:
        os._exit(code)
