"""The two-phase commit: parts that lie on disk become rows of a table, in one Delta transaction, or not at all.

Holds the creation of tables, the lock, the ledger of batches that have landed, and `commit`, which replaces a batch, or some objects of it, and
removes rows that other batches hold of the same objects. Must not decide which objects those are, and must not write new rows: parts come from
`pixels_assets.lake.parts`.

Two guards keep concurrent commits from losing each other's work. A lock per table makes processes on one machine wait for each other; the system
drops it when its holder dies. Each commit also counts up one application transaction of the table, so that of two commits computed from the same
version the second fails and is computed again: delta-rs checks that number against concurrent commits, though it would accept any sequential one.

delta-rs does not survive ``fork``: processes that use this module are started by ``spawn`` or ``forkserver``.
"""

import errno
import fcntl
import json
import logging
import os
import random
import re
import secrets
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as fs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Field, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import AddAction, RemoveAction

from pixels_assets.errors import CommitConflictError, LakeError, UsageError
from pixels_assets.lake.parts import GROUP_ROWS, Part, PartFile, lake_error, lake_errors, sync_path, validate_batch
from pixels_assets.lake.schema import PARTITION, TABLES, Table

__all__ = [
    "CommitResult",
    "LivePart",
    "commit",
    "commit_files",
    "committed",
    "create_tables",
    "is_committed",
    "live_parts",
    "open_table",
    "part_files",
    "parts_holding",
    "swap",
    "table_lock",
    "validate_batch",
]

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 60.0
"""How long a commit that loses against other writers is tried again."""
LOCK_SECONDS = 900.0
"""How long a commit waits for its turn: a commit that rewrites large parts holds the lock for seconds."""

_FEW = 20
_KEPT_TABLES = 8  # a batch is in seven
_LOCKS = "_locks"
_COUNTER = "pixels"
_CONFIGURATION = {
    "delta.checkpointInterval": "20",  # with one per 100 commits, opening a table takes three times as long
    "delta.logRetentionDuration": "interval 7 days",  # a version whose files are gone is no use
    "delta.deletedFileRetentionDuration": "interval 7 days",
}


_MISREAD = re.compile(r"[][|^\\%=#?\x00-\x1f\x7f]")
"""delta-rs fails on these in a path or decodes them; polars takes a folder with an equals sign for a partition."""


class _LocalTable(DeltaTable):
    """A table in a folder of any name: readers that ask it for its files get paths, not the URLs that polars would look for as they stand."""

    def file_uris(self, *args: Any, **kwargs: Any) -> list[str]:
        return [unquote(uri) for uri in super().file_uris(*args, **kwargs)]

    def to_pyarrow_dataset(self, *args: Any, **kwargs: Any) -> ds.Dataset:
        # Arrow reads local files itself: by way of Python and delta-rs it takes longer.
        folder = unquote(self.table_uri.removeprefix("file://"))
        kwargs.setdefault("filesystem", fs.SubTreeFileSystem(folder, fs.LocalFileSystem()))
        return super().to_pyarrow_dataset(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What one commit did.

    Parameters
    ----------
    version : int
        Version of the table that holds it.
    attempts : int
        1 when no other writer interfered.
    rows : int
        Rows in the parts that were added.
    size : int
        Bytes of the parts that were added.
    rows_removed : int
        Rows that the table no longer has.
    rows_kept : int
        Rows that were copied because they shared a file with removed ones.
    files_added, files_removed : int
        Copies included.
    seconds : float
        Waiting for the lock included.
    """

    version: int
    attempts: int
    rows: int
    size: int
    rows_removed: int
    rows_kept: int
    files_added: int
    files_removed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _LiveFile:
    path: str
    batch: str
    size: int
    rows: int | None
    nulls: int | None
    least: str | None
    most: str | None


@dataclass(frozen=True, slots=True)
class _Removal:
    """What becomes of one live file: all of it goes, or `copy` takes its place."""

    rows_removed: int
    copy: Part | None = None


def create_tables(lake: Path, tables: Iterable[Table] = TABLES.values()) -> None:
    """Create the tables that are not there, and add new columns to those that are.

    Any number of processes may do so at once. A table that is up to date is not written to.

    Parameters
    ----------
    lake : Path
        Root of the lake; created when missing.
    tables : iterable of Table

    Raises
    ------
    UsageError
        The path of the folder holds a character that Delta's readers do not take.
    LakeError
        The folder cannot be written, or holds a table that does not fit.
    """
    misread = _MISREAD.search(str(lake))
    if misread:
        msg = f"the lake cannot be in {str(lake)!r}: readers of Delta tables take {misread[0]!r} for something else; choose another folder"
        raise UsageError(msg)
    with lake_errors("create the lake", lake):
        lake.mkdir(parents=True, exist_ok=True)
    for table in tables:
        if _is_known(lake, table):
            continue
        # A process that was stopped while it created a table leaves a log without entries.
        if is_table(lake, table.name) and not _additions(open_table(lake, table.name), table):
            _remember(lake, table)
            continue
        with table_lock(lake, table.name, LOCK_SECONDS), _delta_errors(f"create the table {table.name}", lake / table.name):
            delta = DeltaTable.create(
                lake / table.name,
                Schema.from_arrow(table.arrow),
                mode="ignore",
                partition_by=table.partition_columns,
                name=table.name,
                description=table.meaning,
                configuration=_CONFIGURATION | {"delta.dataSkippingStatsColumns": ",".join(table.statistics)},
            )
            fields = _additions(delta, table)
            if fields:
                logger.info("adding columns to %s: %s", table.name, ", ".join(field.name for field in fields))
                delta.alter.add_columns(fields)
        _remember(lake, table)


_known: dict[tuple[Path, str], tuple[Table, int]] = {}
"""Tables that this process found up to date, with the inode of their log: columns never go away, so it stays true as long as the log is there."""


def _is_known(lake: Path, table: Table) -> bool:
    try:
        return _known.get((lake, table.name)) == (table, (lake / table.name / "_delta_log").stat().st_ino)
    except OSError:
        return False


def _remember(lake: Path, table: Table) -> None:
    _known[lake, table.name] = table, (lake / table.name / "_delta_log").stat().st_ino


def is_table(lake: Path, table: str) -> bool:
    """Whether a lake has this table.

    Raises
    ------
    LakeError
        The system refuses to say.
    """
    with _delta_errors(f"look for the table {table}", lake / table):
        try:
            (lake / table / "_delta_log").stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        return DeltaTable.is_deltatable(str(lake / table))


def open_table(lake: Path, table: str) -> DeltaTable:
    """Open a table at its newest version.

    Raises
    ------
    LakeError
        There is none, or it cannot be read.
    """
    with _delta_errors(f"open the table {table}", lake / table):
        return _LocalTable(lake / table)


@dataclass(frozen=True, slots=True)
class _Opened:
    """A table as this thread opened it last, and the files of its log that tell whether it still is as it was."""

    delta: DeltaTable
    version: int
    log: tuple[tuple[int, ...], ...]


class _Kept(threading.local):
    """Tables by lake and name: of a thread's own, since two that share one of delta-rs's tables may wait for each other for ever."""

    def __init__(self) -> None:
        self.tables: dict[tuple[Path, str], _Opened] = {}


_kept = _Kept()


def _newest(lake: Path, table: str) -> DeltaTable:
    """Open a table at its newest version, for reading here and now: it is kept, since a batch asks for each of its tables several times.

    To open one of thousands of files takes tens of milliseconds, to see that there is no newer version none.
    """
    log, kept = lake / table / "_delta_log", _kept.tables.pop((lake, table), None)
    if kept is None or not kept.log or _state(log, kept.version) != kept.log:
        delta = open_table(lake, table)
        kept = _Opened(delta, delta.version(), _state(log, delta.version()))
    _kept.tables[lake, table] = kept
    while len(_kept.tables) > _KEPT_TABLES:
        del _kept.tables[next(iter(_kept.tables))]
    return kept.delta


def _state(log: Path, version: int) -> tuple[tuple[int, ...], ...]:
    """Tell one state of a log from another: by the entry of a version, and by the checkpoint before it. Empty when that version is not the newest."""
    found = [_identity(log / _entry(version)), _identity(log / "_last_checkpoint")]
    return tuple(found) if found[0] and not _identity(log / _entry(version + 1)) else ()


def _identity(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def part_files(lake: Path, table: Table, batches: Iterable[str]) -> list[Path]:
    """List the files that the newest version of a table has of some batches.

    Raises
    ------
    LakeError
        The table cannot be read.
    """
    live = _live_files(lake, _newest(lake, table.name), table, batches=batches)
    return [lake / table.name / path for path in live]


def parts_holding(lake: Path, table: Table, columns: Iterable[str], values: Iterable[str]) -> list[tuple[str, Path, str]]:
    """List the files of the newest version of a table whose statistics allow one of these values in a column: their batch, path and that column.

    Raises
    ------
    LakeError
        The table cannot be read.
    """
    if not (keys := sorted(set(values))):
        return []
    delta = _newest(lake, table.name)
    live = ((column, file) for column in columns for file in _live_files(lake, delta, table, column, batches=(), keys=keys).values())
    return [(file.batch, lake / table.name / file.path, column) for column, file in live if _may_hold(file, keys)]


def is_committed(lake: Path, table: Table, batch: str) -> bool:
    """Whether a whole batch has landed in a table, be it without rows."""
    return bool(committed(lake, table, [batch]))


def committed(lake: Path, table: Table, batches: Iterable[str]) -> set[str]:
    """Those of the batches that have landed in a table, be it without rows.

    What landed is remembered by Delta application transactions, which checkpoints keep.

    Raises
    ------
    LakeError
        The table cannot be read.
    """
    asked = set(batches)
    if len(asked) > _FEW:
        ledgers = _ledgers(lake / table.name / "_delta_log")
        if ledgers is not None:
            return {batch for batch in asked if _ledger(batch) in ledgers}
    delta = _newest(lake, table.name)
    with _delta_errors(f"read the table {table.name}", lake / table.name):
        return {batch for batch in asked if delta.transaction_version(_ledger(batch)) is not None}


def _ledgers(log: Path) -> set[str] | None:
    """Names of all application transactions in a table's log; None when the log is not as we write it.

    delta-rs only answers for one name at a time, in a millisecond each.
    """
    names: set[str] = set()
    try:
        pointer, checkpoint = log / "_last_checkpoint", -1
        if pointer.exists():
            last = json.loads(pointer.read_bytes())
            checkpoint = int(last["version"])
            if last.get("parts") or last.get("v2Checkpoint"):
                return None
            with pq.ParquetFile(log / f"{checkpoint:020}.checkpoint.parquet") as file:
                for rows in file.iter_batches(columns=["txn.appId"]):
                    names.update(rows["txn"].field("appId").drop_null().to_pylist())
        version = checkpoint + 1
        while (entry := log / _entry(version)).exists():
            names.update(action["txn"]["appId"] for action in map(json.loads, entry.read_bytes().splitlines()) if "txn" in action)
            version += 1
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    return names if version else None


@contextmanager
def table_lock(lake: Path, name: str, timeout: float | None = None, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of this name while the block runs; others that ask for it wait, in this process and in all others.

    Parameters
    ----------
    lake : Path
    name : str
        A table or any other word that can name a file.
    timeout : float or None
        Seconds to wait; None waits for ever.
    on_wait : callable, optional
        Called once when the lock is not free at first.

    Raises
    ------
    LakeError
        The lock was not free in time, or the lake cannot be written.

    Notes
    -----
    The lock belongs to the open file, so it ends with its holder, however that dies. The file itself stays: removing it would let two processes
    lock two files of one name.
    """
    path = lake / _LOCKS / f"{name}.lock"
    with lake_errors(f"lock {name}", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        with lake_errors(f"lock {name}", path):
            free = _lock(descriptor, 0)
            if not free:
                on_wait()
                free = _lock(descriptor, timeout)
        if not free:
            msg = f"{name} is locked since {timeout:g} s by another process ({path}); wait for it or stop it, then run again"
            raise LakeError(msg)
        try:
            yield
        finally:
            # Closing alone would not do: a child forked in the block shares the open file.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, timeout: float | None) -> bool:
    if timeout is None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return True
    end = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            if time.monotonic() >= end:
                return False
            time.sleep(random.uniform(0.005, 0.025))  # noqa: S311
        else:
            return True


def commit(
    lake: Path,
    table: Table,
    batch: str,
    parts: Sequence[Part],
    *,
    run_id: str,
    only: frozenset[str] | None = None,
    retire: frozenset[str] = frozenset(),
    seconds: float = COMMIT_SECONDS,
) -> CommitResult:
    """Replace a batch's rows by those of some parts, in one version of the table.

    Readers see the table before or after it, never between. Committing the same parts again changes nothing, so it is safe to repeat.

    Parameters
    ----------
    lake : Path
    table : Table
    batch : str
        Key of the batch.
    parts : sequence of Part
        The new rows. None at all is fine: the batch has then landed without rows.
    run_id : str
        Recorded in the table's history as ``dagster_run_id``.
    only : frozenset of str or None
        Replace the rows of these source files (`Table.object_key`) only; the batch's other rows stay. Does not make a batch landed that was not.
    retire : frozenset of str
        Source files whose rows leave all *other* batches.
    seconds : float
        How long to try again when other writers win.

    Returns
    -------
    CommitResult

    Raises
    ------
    BatchError
        The key is malformed.
    CommitConflictError
        Other writers won every attempt; the table is as it was.
    LakeError
        A part is missing or damaged, or the lake cannot be read or written. Unless the message says otherwise, the table is as it was.
    """
    started = time.monotonic()
    validate_batch(batch)
    with table_lock(lake, table.name, LOCK_SECONDS):
        for part in parts:
            _check_part(lake, table, batch, part)
        removals: dict[str, _Removal] = {}
        attempts = 0
        while True:
            attempts += 1
            try:
                delta = _newest(lake, table.name)
                live = _live_files(lake, delta, table, batches=[batch], keys=sorted(retire))
                plan = _plan(lake, table, batch, parts, live, only, retire, removals)
            except Exception:
                _discard(lake, table, removals)
                raise
            added = {part.path: (part, batch) for part in parts if part.path not in live}
            added |= {item.copy.path: (item.copy, live[path].batch) for path, item in plan.items() if item.copy is not None}
            token = secrets.token_hex(8)
            before = delta.version()
            error = _write(delta, table, batch, added, [live[path] for path in plan], run_id=run_id, token=token, whole=only is None)
            # Whatever delta-rs said: it may fail after the version was written, for instance at a checkpoint.
            version = _landed(lake, table, before, token, error)
            if version is not None:
                break
            if not isinstance(error, CommitFailedError):
                _discard(lake, table, removals)
                action = f"commit batch {batch} to {table.name}"
                raise lake_error(action, lake / table.name, error or OSError("no version was written")) from error
            if time.monotonic() - started > seconds:
                _discard(lake, table, removals)
                msg = f"batch {batch} lost {attempts} attempts at {table.name} to other writers; run it again when fewer runs are writing"
                raise CommitConflictError(msg) from error
            logger.info("commit of batch %s to %s lost attempt %d to another writer", batch, table.name, attempts)
            time.sleep(random.uniform(0.005, 0.05))  # noqa: S311
    result = CommitResult(
        size=sum(part.size for part in parts),
        version=version,
        attempts=attempts,
        rows=sum(part.rows for part in parts),
        rows_removed=sum(item.rows_removed for item in plan.values()),
        rows_kept=sum(item.copy.rows for item in plan.values() if item.copy is not None),
        files_added=len(added),
        files_removed=len(plan),
        seconds=time.monotonic() - started,
    )
    logger.debug("batch %s landed in %s, version %d: %d rows in %.2f s", batch, table.name, version, result.rows, result.seconds)
    return result


@dataclass(frozen=True, slots=True)
class LivePart:
    """A file of the newest version of a table: its address there, the batch it belongs to, bytes and rows."""

    path: str
    batch: str
    size: int
    rows: int | None


def live_parts(lake: Path, table: Table) -> list[LivePart]:
    """List all files of the newest version of a table.

    Raises
    ------
    LakeError
        The table cannot be read.
    """
    live = _live_files(lake, _newest(lake, table.name), table)
    return [LivePart(file.path, file.batch, file.size, file.rows) for file in live.values()]


def swap(lake: Path, table: Table, swaps: Sequence[tuple[Sequence[LivePart], Part]], *, seconds: float = COMMIT_SECONDS) -> frozenset[str]:
    """Let parts take the place of live files that hold the same rows between them, in one version of the table.

    A part whose files are not all live any more is discarded, as all are when an exception is raised: what was committed meanwhile stays.

    Parameters
    ----------
    lake : Path
    table : Table
    swaps : sequence of (sequence of LivePart, Part)
        The files to go, all of one batch, and the part that has their rows.
    seconds : float
        How long to try again when other writers win.

    Returns
    -------
    frozenset of str
        Addresses of the parts that took their place.

    Raises
    ------
    CommitConflictError
        Other writers won every attempt.
    LakeError
        A part is missing or damaged, or the lake cannot be read or written.
    """
    started, used = time.monotonic(), frozenset[str]()
    try:
        with table_lock(lake, table.name, LOCK_SECONDS):
            while True:
                delta = _newest(lake, table.name)
                live = _live_files(lake, delta, table, batches={gone[0].batch for gone, _ in swaps})
                valid = [(gone, part) for gone, part in swaps if all(file.path in live for file in gone)]
                if not valid:
                    return used
                for gone, part in valid:
                    _check_part(lake, table, gone[0].batch, part, same_columns=False)
                added = {part.path: (part, gone[0].batch) for gone, part in valid}
                removed = [live[file.path] for gone, _ in valid for file in gone]
                token, before = secrets.token_hex(8), delta.version()
                error = _write(delta, table, "", added, removed, run_id="", token=token, whole=False, data_change=False)
                if _landed(lake, table, before, token, error) is not None:
                    used = frozenset(added)
                    return used
                if not isinstance(error, CommitFailedError):
                    action = f"compact {table.name}"
                    raise lake_error(action, lake / table.name, error or OSError("no version was written")) from error
                if time.monotonic() - started > seconds:
                    msg = f"compacting {table.name} lost every attempt to other writers; run it again when fewer runs are writing"
                    raise CommitConflictError(msg) from error
                time.sleep(random.uniform(0.005, 0.05))  # noqa: S311
    finally:
        for _, part in swaps:
            if part.path not in used:
                with suppress(OSError):
                    (lake / table.name / part.path).unlink()


def commit_files(
    lake: Path,
    table: Table,
    delta: DeltaTable,
    parts: Sequence[Part],
    removed: Iterable[tuple[str, int]],
    *,
    run_id: str,
    marks: Mapping[str, int] = MappingProxyType({}),
) -> int:
    """Add and remove files of a table that is not partitioned, in one version of it.

    Parameters
    ----------
    lake : Path
    table : Table
    delta : DeltaTable
        The table at the version from which the files were computed. The caller holds a lock that keeps other writers out.
    parts : sequence of Part
    removed : iterable of (str, int)
        Path, as the table names it, and bytes of each file that goes.
    run_id : str
        Recorded in the table's history as ``dagster_run_id``.
    marks : mapping of str to int
        Application transactions to set in the same version.

    Returns
    -------
    int
        The version.

    Raises
    ------
    CommitConflictError
        Another writer won; the table is as it was.
    LakeError
        The table cannot be read or written. Unless the message says otherwise, it is as it was.
    """
    now, token, before = time.time_ns() // 1_000_000, secrets.token_hex(8), delta.version()
    actions: list[AddAction | RemoveAction] = [AddAction(part.path, part.size, {}, now, data_change=True, stats=part.stats) for part in parts]
    actions += [RemoveAction(path, True, now, size, {}) for path, size in removed]
    marks = {_COUNTER: (delta.transaction_version(_COUNTER) or 0) + 1, **marks}
    error: OSError | DeltaError | None = None
    try:
        delta.create_write_transaction(
            actions,
            "append",
            delta.schema(),
            [],
            commit_properties=CommitProperties(
                custom_metadata={"dagster_run_id": run_id, "pixels_commit": token},
                max_commit_retries=1,
                app_transactions=[Transaction(name, version) for name, version in marks.items()],
            ),
        )
    except (OSError, DeltaError) as raised:
        error = raised
    version = _landed(lake, table, before, token, error)
    if version is not None:
        return version
    if isinstance(error, CommitFailedError):
        msg = f"{table.name} lost against another writer; run it again"
        raise CommitConflictError(msg) from error
    action = f"commit to {table.name}"
    raise lake_error(action, lake / table.name, error or OSError("no version was written")) from error


def _ledger(batch: str) -> str:
    return f"{_COUNTER}/{batch}"


@contextmanager
def _delta_errors(action: str, path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, DeltaError) as error:
        raise lake_error(action, path, error) from error


def _additions(delta: DeltaTable, table: Table) -> list[Field]:
    """Fields that an existing table lacks.

    Raises
    ------
    LakeError
        The table cannot become what we need by adding columns.
    """
    remedy = "choose another folder with --lake, or move the table away and ingest again"
    found = {field.name: field for field in delta.schema().fields}
    additions = []
    if delta.metadata().partition_columns != table.partition_columns:
        msg = f"table {table.name} is partitioned by {delta.metadata().partition_columns}, not by {table.partition_columns}; {remedy}"
        raise LakeError(msg)
    for wanted in Schema.from_arrow(table.arrow).fields:
        field = found.get(wanted.name)
        if field is None and wanted.nullable:
            additions.append(wanted)
        elif field is None:
            msg = f"table {table.name} has no column {wanted.name}, and its old rows would have no value for it; {remedy}"
            raise LakeError(msg)
        elif field.type != wanted.type:
            msg = f"column {wanted.name} of table {table.name} is {field.type}, not {wanted.type}; {remedy}"
            raise LakeError(msg)
        elif wanted.nullable and not field.nullable:
            msg = f"column {wanted.name} of table {table.name} must have values, but we write NULL there; {remedy}"
            raise LakeError(msg)
    return additions


def _check_part(lake: Path, table: Table, batch: str, part: Part, *, same_columns: bool = True) -> None:
    """Refuse a part that is not the file it claims to be: delta-rs would commit a file that does not exist, and reading would fail ever after."""
    path = lake / table.name / part.path
    problem = ""
    if part.table != table.name or Path(part.path).parent.as_posix() != f"{PARTITION}={batch}":
        problem = f"belongs to {part.table}, not to batch {batch} of {table.name}"
    else:
        try:
            footer = pq.read_metadata(path)
        except FileNotFoundError:
            problem = "is missing"
        except (OSError, pa.ArrowException) as error:
            problem = f"cannot be read ({type(error).__name__})"
        else:
            if path.stat().st_size != part.size or footer.num_rows != part.rows:
                problem = f"has {path.stat().st_size} bytes and {footer.num_rows} rows instead of {part.size} and {part.rows}"
            elif same_columns and not footer.schema.to_arrow_schema().equals(table.part_arrow):
                problem = "has other columns than the table"
    if problem:
        msg = f"part {path} {problem}; nothing was committed, run batch {batch} again"
        raise LakeError(msg)


def _live_files(
    lake: Path, delta: DeltaTable, table: Table, column: str | None = None, *, batches: Iterable[str] | None = None, keys: Sequence[str] = ()
) -> dict[str, _LiveFile]:
    """Files of a version by path, with the bounds of a column, `Table.object_key` unless another is named.

    All of them, or those of some batches and those whose bounds allow one of some keys, which are sorted: among ten thousand files a commit looks
    at few.
    """
    column = column or table.object_key
    with _delta_errors(f"read the table {table.name}", lake / table.name):
        actions = pa.table(delta.get_add_actions(flatten=True))
    names = ("path", f"partition.{PARTITION}", "size_bytes", "num_records", f"null_count.{column}", f"min.{column}", f"max.{column}")
    columns = {name: actions[name] if name in actions.column_names else pa.nulls(actions.num_rows, pa.string()) for name in names}
    if batches is not None:
        chosen = pc.is_in(columns[names[1]], pa.array(list(batches), pa.string()))
        if keys:
            below, above = pc.less_equal(columns[names[5]], keys[-1]), pc.greater_equal(columns[names[6]], keys[0])
            chosen = pc.or_(chosen, pc.and_(pc.fill_null(below, True), pc.fill_null(above, True)))
        columns = {name: values.filter(chosen) for name, values in columns.items()}
    return {row[0]: _LiveFile(*row) for row in zip(*(values.to_pylist() for values in columns.values()), strict=True)}


def _plan(
    lake: Path,
    table: Table,
    batch: str,
    parts: Sequence[Part],
    live: dict[str, _LiveFile],
    only: frozenset[str] | None,
    retire: frozenset[str],
    removals: dict[str, _Removal],
) -> dict[str, _Removal]:
    """Decide which live files go or are replaced by a copy without some rows.

    `removals` remembers what earlier attempts found out and copied: a file never changes, so it holds as long as the file is live.
    """
    plan = {}
    ours = {part.path for part in parts}
    wanted, retired = sorted(only or ()), sorted(retire)
    for path, file in live.items():
        if path in ours:
            continue
        if file.batch == batch and only is None:
            plan[path] = _Removal(file.rows or 0)
            continue
        keys = wanted if file.batch == batch else retired
        if not _may_hold(file, keys):
            continue
        if path not in removals:
            removals[path] = _without(lake, table, file, keys)
        if removals[path].rows_removed:
            plan[path] = removals[path]
    _discard(lake, table, {path: removals.pop(path) for path in removals.keys() - live.keys()})
    return plan


def _discard(lake: Path, table: Table, removals: dict[str, _Removal]) -> None:
    """Remove copies that no version names."""
    for item in removals.values():
        if item.copy is not None:
            with suppress(OSError):
                (lake / table.name / item.copy.path).unlink()


def _may_hold(file: _LiveFile, keys: list[str]) -> bool:
    """Whether statistics allow a file to hold a row of these keys, which are sorted."""
    if file.rows is not None and file.rows == file.nulls:
        return False
    first = bisect_left(keys, file.least) if file.least is not None else 0
    return first < len(keys) and (file.most is None or keys[first] <= file.most)


def _without(lake: Path, table: Table, file: _LiveFile, keys: list[str]) -> _Removal:
    """Copy a file without the rows of some keys, a few rows at a time.

    The copy has the columns of the file, not of the table: a file that is older or newer than this program loses nothing.
    """
    path = lake / table.name / file.path
    unwanted = pa.array(keys, pa.string())
    with lake_errors(f"read a part of {table.name}", path), pq.ParquetFile(path) as source:
        drops = [
            pc.is_in(chunk[table.object_key].cast(pa.string()), unwanted)
            for chunk in source.iter_batches(GROUP_ROWS, columns=[table.object_key], use_threads=False)
        ]
        removed = sum(drop.true_count for drop in drops)
        if removed in {0, source.metadata.num_rows}:
            return _Removal(removed)
        schema = source.schema_arrow
        target = PartFile(lake, table, file.batch, "copy", schema)
        try:
            for chunk in source.iter_batches(GROUP_ROWS, use_threads=False):
                drop = pc.is_in(chunk[table.object_key].cast(pa.string()), unwanted)
                kept = pa.Table.from_batches([chunk.filter(pc.invert(drop))], schema)
                if kept.num_rows:
                    target.write(kept)
            return _Removal(removed, target.close())
        except BaseException:
            target.abandon()
            raise


def _write(
    delta: DeltaTable,
    table: Table,
    batch: str,
    added: dict[str, tuple[Part, str]],
    removed: list[_LiveFile],
    *,
    run_id: str,
    token: str,
    whole: bool,
    data_change: bool = True,
) -> OSError | DeltaError | None:
    """Write the next version of a table; return what delta-rs raised."""
    now = time.time_ns() // 1_000_000
    actions: list[AddAction | RemoveAction] = [
        AddAction(path, part.size, {PARTITION: key}, now, data_change=data_change, stats=part.stats) for path, (part, key) in added.items()
    ]
    actions += [RemoveAction(file.path, data_change, now, file.size, {PARTITION: file.batch}) for file in removed]
    names = [_COUNTER, _ledger(batch)] if whole else [_COUNTER]
    try:
        delta.create_write_transaction(
            actions,
            "append",
            delta.schema(),
            [PARTITION],
            commit_properties=CommitProperties(
                custom_metadata={"dagster_run_id": run_id, "pixels_batch": batch, "pixels_commit": token},
                max_commit_retries=1,
                app_transactions=[Transaction(name, (delta.transaction_version(name) or 0) + 1) for name in names],
            ),
        )
    except (OSError, DeltaError) as error:
        return error
    return None


def _landed(lake: Path, table: Table, before: int, token: str, error: Exception | None) -> int | None:
    """Version later than `before` that a commit wrote, None when it wrote none.

    The log itself is asked: to be told by delta-rs means that it describes all live files once more.
    """
    log = lake / table.name / "_delta_log"
    version = before + 1
    try:
        while token.encode() not in (log / _entry(version)).read_bytes():
            version += 1
    except FileNotFoundError:
        return None
    except OSError as failure:
        cause = type(error or failure).__name__
        msg = f"cannot tell whether a commit to {lake / table.name} landed ({cause}); check the disk, then run the batch again"
        raise LakeError(msg) from failure
    if error is not None:
        logger.warning("%s: version %d was written, but what follows a commit failed: %s", table.name, version, type(error).__name__)
    with suppress(OSError):
        # delta-rs does not wait for the disk. Without this a power cut could take a version that was reported as written.
        sync_path(log / _entry(version))
        sync_path(log)
    return version


def _entry(version: int) -> str:
    return f"{version:020}.json"
