"""The local engine: a pool of worker processes that a hostile file cannot bring down.

Holds the parent's side: handing out shards, watching time and memory, and finding the one object that killed a worker. Must not read source files.
"""

import logging
import mmap
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Self

from pixels_assets.engines.processes import RESTING, State, WorkerProcess, give_back, keep_template, take_worker
from pixels_assets.engines.shards import Answer, IndexSpec, Order, Segment, Shard, Tally, discard_attempt
from pixels_assets.errors import WorkerError
from pixels_assets.intake.objects import Failure, Status, row_id
from pixels_assets.lake.parts import Part, PartSync
from pixels_assets.settings import MIB

logger = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Told the number of objects touched so far."""

_POLL_SECONDS = 0.05
_ENDING_SECONDS = 5.0
_SWOLLEN = 256 * MIB
_CHANCES = 2  # what is in hand when a process dies may be innocent: of what an earlier object broke, or of what the system was short of
_ENDS_AT_REST = 3
_ENDS_IN_A_FILE = 100  # each costs half a second and the way back through the file


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
    """A shard, and what its attempts have come to so far: objects by row id, files by their number in the shard."""

    shard: Shard
    refused: dict[int, Failure] = field(default_factory=dict)
    ends: Counter[int] = field(default_factory=Counter)
    ends_in_file: Counter[int] = field(default_factory=Counter)
    files_done: int = 0
    after: str | None = None


@dataclass(frozen=True, slots=True)
class _End:
    """What an attempt at a task ended with before its time.

    Parameters
    ----------
    state : State
        Of the worker, at that moment.
    failure : Failure
        Of the object in hand, if it is to blame.
    chances : int
        How many such ends the object may have.
    """

    state: State
    failure: Failure
    chances: int = _CHANCES


class _Worker:
    """One process, and the task that it is at."""

    def __init__(self, own: WorkerProcess) -> None:
        self.own = own
        self.process, self.connection = own.process, own.connection
        self.task: _Task | None = None
        self._indexed_before = self.state.indexed
        self._stopped: _End | None = None

    @property
    def state(self) -> State:
        return self.own.monitor.read()

    @property
    def indexed(self) -> int:
        """Rows made since the last `start_counting`."""
        return self.state.indexed - self._indexed_before

    @property
    def is_swollen(self) -> bool:
        """Whether it holds so much at rest that the next large object might be refused for what earlier ones left."""
        return _resident(self.process.pid) > max(_SWOLLEN, self.own.worker_bytes // 2)

    def start_counting(self) -> None:
        self._indexed_before = self.state.indexed

    def give(self, task: _Task, spec: IndexSpec) -> None:
        self.task = task
        with suppress(ConnectionError):  # it died at rest: its connection says so when it is asked for an answer
            self.connection.send(Order(task.shard, spec, task.refused, task.files_done, task.after))

    def receive(self) -> Segment | Answer | None:
        """Take the next message; None when the process is gone."""
        try:
            return self.connection.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            return None

    def watch(self, seconds: float) -> None:
        """Stop the process when the object in hand takes too long or too much."""
        if self.task is None or self._stopped is not None:
            return
        state = self.state
        if state.row != RESTING and time.monotonic_ns() - state.since > seconds * 1e9:
            message = f"reading it made no progress for {seconds:g} s (PIXELS_OBJECT_SECONDS)"
            end = _End(state, Failure(Status.TIMEOUT, "time_limit", message), chances=1)
        elif _resident(self.process.pid) > self.own.worker_bytes:
            end = _End(state, _too_much_memory(self.own.worker_bytes))
        else:
            return
        if self.state[1:] == state[1:]:  # it is still at it, and was not read in the middle of a change
            self._stopped = end
            self.process.kill()

    def end(self) -> _End:
        """Wait for a process that closed its connection, and say what it ended with."""
        try:
            code = self.process.wait(_ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        state = self.state
        if self._stopped is not None:
            moved_on = self._stopped.state.row != state.row
            return replace(self._stopped, state=state._replace(row=RESTING)) if moved_on else self._stopped
        return _End(state, Failure(Status.CRASHED, _ending(code), "reading it ended the worker process"))


class LocalEngine:
    """A pool of worker processes.

    Use as a context manager; the processes live until it is left, or longer within `keep_workers`.

    Parameters
    ----------
    workers : int
        Processes, at least 1.
    """

    name = "local"

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: list[_Worker] = []
        self._kept: ExitStack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            give_back([worker.own for worker in self._pool])
            self._pool.clear()
        self._close()

    def _close(self) -> None:
        for worker in self._pool:
            worker.own.close()
        self._pool.clear()
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    @property
    def in_hand(self) -> dict[int, int]:
        """Row id of the object that each process reads at this moment, by process id."""
        return {worker.process.pid: worker.state.row for worker in list(self._pool) if worker.state.row != RESTING}

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
            Workers cannot be started, or die again and again without an object in hand.
        """
        tasks = deque(_Task(shard) for shard in sorted(shards, key=lambda shard: -shard.size))
        outcome, indexed_before, sync = Outcome(), 0, PartSync(spec.lake)
        if self._kept is None:
            self._kept = ExitStack()
            self._kept.enter_context(keep_template())
        for worker in self._pool:
            worker.start_counting()
        try:
            while tasks or any(worker.task for worker in self._pool):
                self._hand_out(tasks, spec)
                busy = {worker.connection: worker for worker in self._pool if worker.task}
                for ready in wait(list(busy), timeout=_POLL_SECONDS):
                    worker = busy[ready]  # type: ignore[index]
                    task = worker.task
                    assert task is not None
                    message = worker.receive()
                    if isinstance(message, Segment):
                        task.files_done, task.after = message.files_done, message.after
                        outcome.add(message)
                        sync.add(message.parts)
                        del task.ends[RESTING]  # it came further: what ended it at rest before was chance
                        continue
                    worker.task = None
                    end = _early_end(message, worker)
                    # A process that ran out of memory may be full of what earlier objects left.
                    is_spent = message is None or message.out_of_memory or worker.is_swollen
                    if is_spent:
                        indexed_before += worker.indexed
                        self._pool.remove(worker)
                        worker.own.close()
                    if end is None:
                        continue
                    tasks.appendleft(task)
                    if is_spent:
                        discard_attempt(spec, task.shard)
                    _blame(task, end)
                for worker in self._pool:
                    worker.watch(spec.settings.object_seconds)
                if progress is not None:
                    progress(indexed_before + sum(worker.indexed for worker in self._pool))
            sync.finish()
        except BaseException:
            sync.abandon()
            self._close()
            discard_attempt(spec)
            raise
        return outcome

    def _hand_out(self, tasks: deque[_Task], spec: IndexSpec) -> None:
        idle = [worker for worker in self._pool if worker.task is None]
        while tasks and (idle or len(self._pool) < self.workers):
            if idle:
                worker = idle.pop()
            else:
                worker = _Worker(take_worker(spec.settings.worker_bytes))
                self._pool.append(worker)
            worker.give(tasks.popleft(), spec)


def _early_end(message: Answer | None, worker: _Worker) -> _End | None:
    """Tell what a task ended with that has to be tried again; None when it was carried out."""
    if message is None:
        return worker.end()
    if message.error is not None:
        raise message.error
    if message.raised is None:
        return None
    state = worker.state._replace(row=message.row)
    if message.out_of_memory:
        return _End(state, _too_much_memory(worker.own.worker_bytes))
    if message.row == RESTING:
        msg = f"indexing failed outside of any object: {message.raised}; please report it"
        raise WorkerError(msg)
    return _End(state, Failure(Status.CRASHED, "exception", f"reading it raised {message.raised}"), chances=1)


def _blame(task: _Task, end: _End) -> None:
    """Refuse the object that ended an attempt once its chances are used up.

    The whole file is refused when refusing the object did not help, or when too many of its members did the same. Each end takes a chance away, so
    that the attempts come to an end themselves.

    Raises
    ------
    WorkerError
        No object can be blamed.
    """
    row, file = end.state.row, row_id(task.shard.files[end.state.file].path)
    if file in task.refused:
        row = RESTING
    task.ends[row] += 1
    task.ends_in_file[end.state.file] += 1
    if row == RESTING:
        logger.warning("a worker process ended with no object in hand: %s", end.failure.code)
        if task.ends[row] >= _ENDS_AT_REST:
            msg = f"worker processes end with no object in hand, the last with {end.failure.code}; check memory and the installation"
            raise WorkerError(msg)
    elif row in task.refused or task.ends_in_file[end.state.file] >= _ENDS_IN_A_FILE:
        task.refused[file] = end.failure
        logger.warning("object %d: %s; its whole file %d is refused", row, end.failure.code, file)
    elif task.ends[row] >= end.chances:
        task.refused[row] = end.failure
        logger.warning("object %d: %s; refused", row, end.failure.code)
    else:
        logger.warning("object %d: %s; trying again", row, end.failure.code)


def _too_much_memory(limit: int) -> Failure:
    return Failure(Status.CRASHED, "memory_limit", f"reading it took more than {limit >> 20} MiB of memory (PIXELS_WORKER_BYTES)")


def _ending(code: int) -> str:
    """How a process ended, as a snake_case word: ``signal_segv`` or ``exit_1``."""
    if code >= 0:
        return f"exit_{code}"
    try:
        return signal.Signals(-code).name.lower().replace("sig", "signal_", 1)
    except ValueError:  # real-time signals have no names
        return f"signal_{-code}"


def _resident(pid: int) -> int:
    """Resident memory of a process, bytes; 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return 0
