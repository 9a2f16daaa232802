"""The local engine: a pool of worker processes that a hostile file cannot bring down.

Holds the parent's side: handing out shards, watching time and memory, and finding the one object that killed a worker. Must not read source files.
"""

import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from pixels_assets.engines.indexing import IndexSpec, Segment, Shard, Tally
from pixels_assets.engines.worker import MONITOR, RESTING, Answer, Order
from pixels_assets.errors import WorkerError
from pixels_assets.intake.objects import Failure, Status
from pixels_assets.lake.parts import Part

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Told the number of objects touched so far."""

_START = "import sys; from pixels_assets.engines.worker import main; main(*map(int, sys.argv[1:]))"
_POLL_SECONDS = 0.05
_IDLE_DEATHS = 3
_CHANCES = 2


@dataclass(slots=True)
class Outcome:
    """What a run over shards made: finished parts by table name, and counts."""

    parts: dict[str, list[Part]] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def add(self, segment: Segment) -> None:
        """Take over a finished stretch."""
        for part in segment.parts:
            self.parts.setdefault(part.table, []).append(part)
        self.tally.add(segment.tally)


@dataclass(slots=True)
class _Task:
    shard: Shard
    refused: dict[int, Failure] = field(default_factory=dict)
    deaths: dict[int, int] = field(default_factory=dict)
    files_done: int = 0
    objects_done: int = 0


class _Worker:
    """One process, its connection, and the block of memory in which it says what it does."""

    def __init__(self, worker_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._file.write(MONITOR.pack(0, RESTING, 0.0))
        self._file.flush()
        self._monitor = mmap.mmap(self._file.fileno(), MONITOR.size)
        command = [sys.executable, "-c", _START, str(theirs.fileno()), str(self._file.fileno())]
        package = str(Path(__file__).parents[2])
        environment = os.environ | {
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")])),
        }
        try:  # in a group of its own: Ctrl-C is for the parent to decide about
            self.process = subprocess.Popen(  # noqa: S603 - this interpreter and a constant
                command, pass_fds=(theirs.fileno(), self._file.fileno()), process_group=0, stdin=subprocess.DEVNULL, env=environment
            )
        except OSError as error:
            msg = f"cannot start a worker process: {error.strerror}; check memory and process limits, or use fewer --workers"
            raise WorkerError(msg) from error
        theirs.close()
        self.connection = Connection(ours.detach())
        self.task: _Task | None = None
        self.stopped_for: Failure | None = None
        self._worker_bytes = worker_bytes

    @property
    def touched(self) -> int:
        return int(MONITOR.unpack_from(self._monitor)[0])

    @property
    def in_hand(self) -> int:
        """Row id of the object in hand, or RESTING."""
        return int(MONITOR.unpack_from(self._monitor)[1])

    def give(self, task: _Task, spec: IndexSpec) -> None:
        self.task = task
        self.connection.send(Order(task.shard, spec, task.refused, task.files_done, task.objects_done))

    def watch(self, seconds: float) -> None:
        """Stop the process when the object in hand takes too long or too much."""
        if self.task is None or self.stopped_for is not None:
            return
        _, in_hand, since = MONITOR.unpack_from(self._monitor)
        if in_hand != RESTING and time.monotonic() - since > seconds:
            self.stopped_for = Failure(Status.TIMEOUT, "time_limit", f"reading it took longer than {seconds:g} s (PIXELS_OBJECT_SECONDS)")
        elif _resident(self.process.pid) > self._worker_bytes:
            self.stopped_for = _too_much_memory(self._worker_bytes)
        if self.stopped_for is not None:
            self.process.kill()

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()
        self._monitor.close()
        self._file.close()


class LocalEngine:
    """A pool of worker processes.

    Use as a context manager; the processes live until it is left.

    Parameters
    ----------
    workers : int
        Processes, at least 1.
    """

    name = "local"

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for worker in self._pool:
            worker.close()
        self._pool.clear()

    def run(self, shards: Iterable[Shard], spec: IndexSpec, progress: Progress | None = None) -> Outcome:
        """Index shards; every object in them becomes a row, whatever it does to a worker.

        Parameters
        ----------
        shards : iterable of Shard
        spec : IndexSpec
        progress : callable, optional
            Called a few times a second.

        Returns
        -------
        Outcome

        Raises
        ------
        LakeError
            A worker could not write.
        WorkerError
            Workers cannot be started, or die without an object in hand.
        """
        tasks = deque(_Task(shard) for shard in sorted(shards, key=lambda shard: -shard.size))
        outcome, touched_before, idle_deaths = Outcome(), 0, 0
        try:
            while tasks or any(worker.task for worker in self._pool):
                self._hand_out(tasks, spec)
                busy = {worker.connection: worker for worker in self._pool if worker.task}
                for ready in wait(list(busy), timeout=_POLL_SECONDS):
                    worker = busy[ready]  # type: ignore[index]
                    task = worker.task
                    assert task is not None
                    try:
                        message = worker.connection.recv()
                    except (EOFError, ConnectionError):
                        message = None
                    if isinstance(message, Segment):
                        task.files_done, task.objects_done = message.files_done, message.objects_done
                        outcome.add(message)
                        continue
                    worker.task = None
                    if message is None:
                        idle_deaths += self._bury(worker, task)
                        touched_before += worker.touched
                        self._pool.remove(worker)
                        worker.close()
                        _check_idle_deaths(idle_deaths, worker)
                    if message is None or not _carried_out(message, task, spec):
                        tasks.appendleft(task)
                for worker in self._pool:
                    worker.watch(spec.settings.object_seconds)
                if progress is not None:
                    progress(touched_before + sum(worker.touched for worker in self._pool))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return outcome

    def _hand_out(self, tasks: deque[_Task], spec: IndexSpec) -> None:
        idle = [worker for worker in self._pool if worker.task is None]
        while tasks and (idle or len(self._pool) < self.workers):
            if idle:
                worker = idle.pop()
            else:
                worker = _Worker(spec.settings.worker_bytes)
                self._pool.append(worker)
            worker.give(tasks.popleft(), spec)

    @staticmethod
    def _bury(worker: _Worker, task: _Task) -> bool:
        """Count a death against the object in hand and refuse it once its chances are used up; True when there was no object in hand."""
        worker.process.wait()
        row = worker.in_hand
        if row == RESTING:
            return True
        task.deaths[row] = task.deaths.get(row, 0) + 1
        if worker.stopped_for is not None:
            task.refused[row] = worker.stopped_for
        elif task.deaths[row] >= _CHANCES:
            task.refused[row] = Failure(Status.CRASHED, _ending(worker), "reading it ended the worker process")
        logger.warning("object %d: its worker process was lost (%s); %s", row, _ending(worker), "refused" if row in task.refused else "trying again")
        return False


def _check_idle_deaths(deaths: int, worker: _Worker) -> None:
    """Give up when processes end by themselves again and again: no object is to blame."""
    if deaths >= _IDLE_DEATHS:
        msg = f"worker processes end with no object in hand, the last with {_ending(worker)}; check memory and the installation"
        raise WorkerError(msg)


def _carried_out(answer: Answer, task: _Task, spec: IndexSpec) -> bool:
    """Whether the shard is done; when an object raised an exception, refuse that object."""
    if answer.error is not None:
        raise answer.error
    if answer.raised is None:
        return True
    if answer.row == RESTING:
        msg = f"indexing failed outside of any object: {answer.raised}; please report it"
        raise WorkerError(msg)
    logger.warning("object %d raised %s; refused", answer.row, answer.raised)
    task.refused[answer.row] = (
        _too_much_memory(spec.settings.worker_bytes)
        if answer.out_of_memory
        else Failure(Status.CRASHED, "exception", f"reading it raised {answer.raised}")
    )
    return False


def _too_much_memory(limit: int) -> Failure:
    return Failure(Status.CRASHED, "memory_limit", f"reading it took more than {limit >> 20} MiB of memory (PIXELS_WORKER_BYTES)")


def _ending(worker: _Worker) -> str:
    """How a process ended, as a snake_case word: ``signal_segv``, ``exit_1``, or what it was stopped for."""
    if worker.stopped_for is not None:
        return worker.stopped_for.code
    code = worker.process.returncode
    return f"exit_{code}" if code >= 0 else signal.Signals(-code).name.lower().replace("sig", "signal_", 1)


def _resident(pid: int) -> int:
    """Resident memory of a process, bytes; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0
