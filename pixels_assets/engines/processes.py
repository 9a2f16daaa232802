"""Processes that wait for work: how they are started, what they say about themselves, and who keeps them between two engines.

Holds nothing of the work. Must import nothing large, so that processes can be started before all else is loaded.
"""

import mmap
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from pixels_assets.errors import WorkerError
from pixels_assets.settings import MIB

# pydicom loads two libraries for downloads of test files, which is a sixth of the start of a process; extractors may import them later.
_START = """
import sys
sys.modules["requests"] = sys.modules["tqdm"] = None
from pixels_assets.engines.worker import main
del sys.modules["requests"], sys.modules["tqdm"]
main(*map(int, sys.argv[1:]))
"""


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


class WorkerProcess:
    """One process, its connection, and the block of memory in which it says what it does.

    Parameters
    ----------
    worker_bytes : int
        Memory that it may take, bytes; whoever gives it work holds it to that.

    Attributes
    ----------
    process : subprocess.Popen
    connection : multiprocessing.connection.Connection
    monitor : Monitor

    Raises
    ------
    WorkerError
        It cannot be started.
    """

    def __init__(self, worker_bytes: int) -> None:
        self.worker_bytes = worker_bytes
        package = str(Path(__file__).parents[2])
        environment = os.environ | {
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            # What large objects took is given back when they are done, so that what the next one may take does not depend on them. What usual
            # ones took is not: a third of their time would go into asking for it again.
            "MALLOC_MMAP_THRESHOLD_": str(32 * MIB),
            "MALLOC_TRIM_THRESHOLD_": str(64 * MIB),
            "MALLOC_ARENA_MAX": "1",
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        }
        with ExitStack() as opened:
            try:
                self._file = opened.enter_context(tempfile.TemporaryFile())
                self._file.truncate(MONITOR_BYTES)
                self.monitor = Monitor(self._file.fileno())  # not closed: another thread may be looking at it
                self.monitor.write(State(0, 0, RESTING, 0))
                ours, theirs = socket.socketpair()
                opened.callback(theirs.close)
                self.connection = opened.enter_context(Connection(ours.detach()))
                inherited = theirs.fileno(), self._file.fileno()
                # -P: no module is taken from the working folder, which may be somebody's data. Group 0: Ctrl-C is for the parent to decide about.
                self.process = subprocess.Popen(  # noqa: S603 - this interpreter and a constant
                    [sys.executable, "-P", "-c", _START, *map(str, (os.getpid(), *inherited))],
                    pass_fds=inherited,
                    process_group=0,
                    stdin=subprocess.DEVNULL,
                    stdout=2,
                    env=environment,
                )
            except OSError as error:
                msg = f"cannot start a worker process: {error.strerror}; check memory, disk and process limits, or use fewer --workers"
                raise WorkerError(msg) from error
            theirs.close()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self._opened.close()


class _Spares:
    """Processes between two engines."""

    def __init__(self) -> None:
        self.holders = 0
        self.waiting: list[WorkerProcess] = []

    def close(self) -> None:
        while self.waiting:
            self.waiting.pop().close()


_spares = _Spares()


@contextmanager
def keep_workers() -> Iterator[None]:
    """Let processes of an engine that is left within the block wait for the next one, so that batches in a row pay for their start once."""
    _spares.holders += 1
    try:
        yield
    finally:
        _spares.holders -= 1
        if not _spares.holders:
            _spares.close()


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
        while _spares.holders and len(_spares.waiting) < count:
            _spares.waiting.append(WorkerProcess(worker_bytes))


def take_worker(worker_bytes: int) -> WorkerProcess:
    """Hand out a process that waits and is limited to this much memory, or start one.

    Raises
    ------
    WorkerError
        It cannot be started.
    """
    for worker in [worker for worker in _spares.waiting if worker.worker_bytes == worker_bytes]:
        _spares.waiting.remove(worker)
        if worker.process.poll() is None:
            return worker
        worker.close()
    return WorkerProcess(worker_bytes)


def give_back(workers: list[WorkerProcess]) -> None:
    """Take back processes that are at rest: they wait for the next engine within `keep_workers`, and end outside of it."""
    if _spares.holders:
        _spares.waiting += workers
        return
    for worker in workers:
        worker.close()
