"""Processes that wait for work: how they are started, what they say about themselves, and who keeps them between two engines.

Holds nothing of the work. Must import nothing large, so that processes can be started before all else is loaded.

Workers are forked from one process that has loaded what they need (`pixels_assets.engines.template`), never from this one, which may have threads and
libraries that do not survive it.
"""

import mmap
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

from pixels_assets.errors import WorkerError
from pixels_assets.imports import python_path
from pixels_assets.settings import MIB

# pydicom loads two libraries for downloads of test files, which is a sixth of the start of a process; extractors may import them later. The collector
# of cycles finds nothing in what modules hold, and would look again and again. Loaded from within other modules, pydicom works so deep in the stack
# that Python asks the system for one more piece of it with each call, and gives it back: a sixth of the start, too.
LOADING = """
import gc, sys
gc.disable()
sys.modules["requests"] = sys.modules["tqdm"] = None
import pydicom
from pixels_assets.engines.template import main
del sys.modules["requests"], sys.modules["tqdm"]
"""
"""What the process that workers are forked from loads, as a program."""
_START = LOADING + "main(*map(int, sys.argv[1:]))"
# What opening Dagster's instance and loading polars put into the environment of this process, and what workers have no use for: those that were
# started before would be taken for ones of another environment.
_NOT_FOR_WORKERS = frozenset({"DAGSTER_HOME", "_RJEM_MALLOC_CONF"})

REQUEST = b"."
"""Sent to the template with the descriptors of a worker's connection, of the file behind its monitor, and of a pipe."""
SAID = struct.Struct("qq")
"""What is written into that pipe: one of the three words below, and a number."""
BEGUN, REFUSED, ENDED = range(3)
"""By the worker: its process id. By the template: the number of the error that kept it from making the worker; how it ended, as an exit code or the
negative number of a signal."""


class State(NamedTuple):
    """What a worker does, as it says itself in the shared block of memory.

    Parameters
    ----------
    indexed : int
        Rows made so far.
    since : int
        When the object in hand last made progress, monotonic nanoseconds.
    row : int
        Row id of the object in hand, RESTING when there is none.
    file : int
        Which file of the shard it belongs to.
    """

    indexed: int
    since: int
    row: int
    file: int


RESTING = -1
"""In the place of a row id: no object is in hand."""

MONITOR_BYTES = 8 * len(State._fields)


class Monitor:
    """The shared block of memory: one process writes it, another may read it at any moment, also after the first was killed.

    Parameters
    ----------
    descriptor : int
        A file of `MONITOR_BYTES`.
    """

    # Numbers of eight bytes, each written at once. `struct.pack_into` would clear the block first, and whoever looks then sees an object with
    # the row id 0 in hand since the machine was started.
    def __init__(self, descriptor: int) -> None:
        self._fields = memoryview(mmap.mmap(descriptor, MONITOR_BYTES)).cast("q")  # unmapped with this object

    def write(self, state: State) -> None:
        """Say something else; who reads meanwhile may find some fields old, but the object in hand never with an older time than its own."""
        self._fields[0], self._fields[1], self._fields[3], self._fields[2] = state.indexed, state.since, state.file, state.row

    def read(self) -> State:
        """Read what was last said."""
        return State(*self._fields.tolist())


def _environment() -> dict[str, str]:
    """Give the environment that workers are started in."""
    ours = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_WORKERS}
    return ours | {
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        # What large objects took is given back when they are done, so that what the next one may take does not depend on them. What usual ones
        # took is not: a third of their time would go into asking for it again.
        "MALLOC_MMAP_THRESHOLD_": str(32 * MIB),
        "MALLOC_TRIM_THRESHOLD_": str(64 * MIB),
        "MALLOC_ARENA_MAX": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",  # forked processes would miss the thread
        "PYTHONPATH": python_path(),
    }


class _Template:
    """The process that workers are forked from, once it has loaded what they need.

    Parameters
    ----------
    environment : dict of str to str
        Its own and theirs.

    Attributes
    ----------
    process : subprocess.Popen
    workers : int
        Those that nobody has closed yet.

    Raises
    ------
    OSError
        It cannot be started.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.workers = 0
        self._control, theirs = socket.socketpair()
        with theirs:
            try:
                # -P: no module is taken from the working folder, which may be somebody's data. Group 0: Ctrl-C is for the parent to decide about.
                self.process = subprocess.Popen(  # noqa: S603 - this interpreter and a constant
                    [sys.executable, "-P", "-c", _START, str(os.getpid()), str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    env=environment,
                )
            except OSError:
                self._control.close()
                raise

    def fork(self, connection: int, monitor: int) -> "ForkedProcess":
        """Ask for a worker with these descriptors; it starts as soon as the template has loaded everything.

        Raises
        ------
        OSError
            The template is gone, or there are too many open files.
        """
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        try:
            socket.send_fds(self._control, [REQUEST], [connection, monitor, theirs])
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self.workers += 1
        return ForkedProcess(self, ours)

    def close(self) -> None:
        """End it, and with it workers that still run."""
        self._control.close()
        self.process.kill()
        self.process.wait()


class ForkedProcess:
    """A worker, which is a child of the template: what `subprocess.Popen` is for a child of one's own.

    Parameters
    ----------
    template : _Template
    pipe : int
        Where the template says what becomes of the worker.

    Attributes
    ----------
    template : _Template
    pid : int
        0 for as long as it has not begun.
    returncode : int or None
        None while it runs.
    """

    def __init__(self, template: _Template, pipe: int) -> None:
        self.template = template
        self._pipe = pipe
        self._pid = 0
        self._lock = threading.Lock()
        self.returncode: int | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        if not self._pid:
            self.poll()
        return self._pid

    def poll(self) -> int | None:
        """Return how it ended, None while it runs.

        Raises
        ------
        WorkerError
            It could not be started.
        """
        return self._hear(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return how.

        Raises
        ------
        subprocess.TimeoutExpired
            It did not end within these seconds.
        WorkerError
            It could not be started.
        """
        code = self._hear(timeout)
        if code is None:
            raise subprocess.TimeoutExpired([sys.executable], timeout or 0)
        return code

    def kill(self) -> None:
        """End it by force."""
        if self.poll() is None and self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        """End it by force, wait until it has ended, and forget it; one that has not begun ends by itself when its connection is closed."""
        with suppress(WorkerError):  # it was never there
            if self.pid:
                self.kill()
                self.wait()
        os.close(self._pipe)

    def _hear(self, timeout: float | None) -> int | None:
        end = None if timeout is None else time.monotonic() + timeout
        while self.returncode is None:
            if not select.select([self._pipe], [], [], None if end is None else max(0.0, end - time.monotonic()))[0]:
                return None
            with self._lock, suppress(BlockingIOError):  # another thread was quicker
                self._take(os.read(self._pipe, SAID.size))
        return self.returncode

    def _take(self, said: bytes) -> None:
        if not said:  # the template is gone, which takes its workers along
            self.returncode = self.template.process.wait()
            return
        what, number = SAID.unpack(said)
        if what == BEGUN:
            self._pid = number
        else:
            self.returncode = number
        if what == REFUSED:
            raise _not_started(OSError(number, os.strerror(number)))


def _not_started(error: OSError) -> WorkerError:
    return WorkerError(f"cannot start a worker process: {error.strerror}; check memory, disk and process limits, or use fewer --workers")


class WorkerProcess:
    """One process, its connection, and the block of memory in which it says what it does.

    Parameters
    ----------
    worker_bytes : int
        Memory that it may take, bytes; whoever gives it work holds it to that.

    Attributes
    ----------
    process : ForkedProcess
    connection : multiprocessing.connection.Connection
    monitor : Monitor

    Raises
    ------
    WorkerError
        It cannot be started.
    """

    def __init__(self, worker_bytes: int) -> None:
        self.worker_bytes = worker_bytes
        with ExitStack() as opened:
            try:
                self._file = opened.enter_context(tempfile.TemporaryFile())
                self._file.truncate(MONITOR_BYTES)
                self.monitor = Monitor(self._file.fileno())  # not closed: another thread may be looking at it
                self.monitor.write(State(0, 0, RESTING, 0))
                ours, theirs = socket.socketpair()
                opened.callback(theirs.close)
                self.connection = opened.enter_context(Connection(ours.detach()))
                self.process = _keeper.fork(theirs.fileno(), self._file.fileno())
            except OSError as error:
                raise _not_started(error) from error
            theirs.close()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End it."""
        self.process.close()
        self._opened.close()
        _keeper.ended(self.process.template)


class _Keeper:
    """The template, and the processes between two engines."""

    def __init__(self) -> None:
        self.waiting: list[WorkerProcess] = []
        self.holders = 0  # of those that wait
        self._users = 0
        self._template: _Template | None = None
        self.lock = threading.RLock()

    def fork(self, connection: int, monitor: int) -> ForkedProcess:
        """Make a worker, and the template before it where there is none that is alive and was started in this environment.

        Raises
        ------
        OSError
            It cannot be started.
        """
        with self.lock:
            environment, template = _environment(), self._template
            if template is None or template.environment != environment or template.process.poll() is not None:
                self._template = _Template(environment)
                if template is not None:
                    self._end_unused(template)
            assert self._template is not None
            return self._template.fork(connection, monitor)

    def ended(self, template: _Template) -> None:
        """Take note that a worker of this template has ended."""
        with self.lock:
            template.workers -= 1
            self._end_unused(template)

    @contextmanager
    def hold(self, *, spares: bool) -> Iterator[None]:
        """Keep the template, and if asked for processes that wait, until all who hold them have left their blocks."""
        with self.lock:
            self._users += 1
            self.holders += spares
        try:
            yield
        finally:
            self._release(spares=spares)

    def _release(self, *, spares: bool) -> None:
        with self.lock:
            self._users -= 1
            self.holders -= spares
            while self.waiting and not self.holders:
                self.waiting.pop().close()
            if self._template is not None:
                self._end_unused(self._template)

    def _end_unused(self, template: _Template) -> None:
        if template.workers or (template is self._template and self._users):
            return
        template.close()
        if template is self._template:
            self._template = None


_keeper = _Keeper()


def keep_workers() -> AbstractContextManager[None]:
    """Let processes of an engine that is left within the block wait for the next one, so that batches in a row pay for their start once."""
    return _keeper.hold(spares=True)


def keep_template() -> AbstractContextManager[None]:
    """Let workers that are started within the block be forked from the same process, also when no other one lives at that moment."""
    return _keeper.hold(spares=False)


def start_workers(count: int, worker_bytes: int) -> None:
    """Start processes that wait for the next engine, so that they get ready while its work is still prepared; only within `keep_workers`.

    What cannot be started now, the engine tries again, and says so.

    Parameters
    ----------
    count : int
        As many wait then, if not more.
    worker_bytes : int
        Memory that each may take.
    """
    with suppress(WorkerError):
        while _keeper.holders and len(_keeper.waiting) < count:
            _keeper.waiting.append(WorkerProcess(worker_bytes))


def take_worker(worker_bytes: int) -> WorkerProcess:
    """Hand out a process that waits, is limited to this much memory and was started in the environment as it is now, or start one.

    Raises
    ------
    WorkerError
        It cannot be started.
    """
    with _keeper.lock:
        for worker in [worker for worker in _keeper.waiting if worker.worker_bytes == worker_bytes]:
            _keeper.waiting.remove(worker)
            if worker.process.template.environment == _environment() and worker.process.poll() is None:
                return worker
            worker.close()
    return WorkerProcess(worker_bytes)


def give_back(workers: list[WorkerProcess]) -> None:
    """Take back processes that are at rest: they wait for the next engine within `keep_workers`, and end outside of it."""
    with _keeper.lock:
        if _keeper.holders:
            _keeper.waiting += workers
            return
    for worker in workers:
        worker.close()
