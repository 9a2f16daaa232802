"""Keeping a lake fast: checkpoints, few large files instead of many small ones, and nothing on disk that no reader can need any more.

Holds what `pixels maintain` does. Must not change a row: a query gives the same before, during and after it, also one that began before and goes on.
Runs may write at the same time; what they commit is never lost, and what they replace meanwhile is left to the next time.

The rules
---------
* Files of one batch that are much smaller than they could be become one. It is written beside the old ones, which leave in one transaction.
* Tables without partitions are left alone: who replaces rows in them merges their small files (`pixels_assets.lake.keyed`).
* A file that left a table stays on disk for the retention time, for readers that opened an earlier version. So does one that no version names: it
  may belong to a run that has not committed yet.
* Of the checkpoints the newest stay, and one for each thousand versions: opening an old version then reads some entries more. Entries of the log
  older than its retention go.
* Names of batches that have landed, and minima and maxima of the columns with statistics, are kept through all of it.
"""

import json
import logging
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import DeltaError

from pixels_assets.errors import CommitConflictError, UsageError
from pixels_assets.lake.commit import LOCK_SECONDS, LivePart, is_table, live_parts, open_table, swap, table_lock
from pixels_assets.lake.parts import GROUP_ROWS, Part, PartFile, lake_error, lake_errors
from pixels_assets.lake.schema import OBJECT_CATALOG, TABLES, Table
from pixels_assets.settings import MIB

logger = logging.getLogger(__name__)

RETENTION = timedelta(days=7)
"""How long a file that left a table stays on disk; Delta keeps it in ``delta.deletedFileRetentionDuration``."""

TARGET_BYTES = 64 * MIB
"""Files are put together up to this size; those of at least half of it are left alone."""

_AT_ONCE = 200
_KEPT_CHECKPOINTS = 3
_VERSIONS_PER_CHECKPOINT = 1_000
_CHECKPOINT_SECONDS = 3_600.0
_CHECKPOINT = re.compile(r"([0-9]{20})\.checkpoint\.parquet")
_ENTRY = re.compile(r"([0-9]{20})\.json")


@dataclass(frozen=True, slots=True)
class Maintained:
    """What maintenance did to one table, or would do.

    Parameters
    ----------
    table : str
    files : int
        Files of its newest version, before.
    compacted, into : int
        How many of them became how many.
    vacuumed : int
        Files removed from disk: those that left the table before the retention time, and those that no version names.
    log_files : int
        Entries and checkpoints removed from the log.
    checkpoint : bool
        A checkpoint of the newest version was missing.
    seconds : float
    """

    table: str
    files: int
    compacted: int
    into: int
    vacuumed: int
    log_files: int
    checkpoint: bool
    seconds: float


def maintain(lake: Path, *, dry_run: bool = False, retention: timedelta = RETENTION) -> list[Maintained]:
    """Put the tables of a lake in order; safe at any time, with readers and runs at work.

    Parameters
    ----------
    lake : Path
    dry_run : bool
        Change nothing, only tell what would be done.
    retention : timedelta
        Files younger than this stay on disk. Less than the default breaks readers that are at work.

    Returns
    -------
    list of Maintained
        One for each table, in their order.

    Raises
    ------
    UsageError
        There is no lake.
    LakeError
        A table cannot be read or written.
    """
    if not is_table(lake, OBJECT_CATALOG.name):
        msg = f"there is no lake in {lake}; make one with `pixels ingest SRC --lake {lake}`"
        raise UsageError(msg)
    tables = [table for table in TABLES.values() if is_table(lake, table.name)]
    return [_maintain(lake, table, dry_run=dry_run, retention=retention) for table in tables]


def _maintain(lake: Path, table: Table, *, dry_run: bool, retention: timedelta) -> Maintained:
    started = time.monotonic()
    files, groups = _groups(lake, table)
    compacted, into = (sum(map(len, groups)), len(groups)) if dry_run else _compact(lake, table, groups)
    is_behind = _write_checkpoint(lake, table, dry_run=dry_run)
    vacuumed = _vacuum(lake, table, retention, dry_run=dry_run)
    removed = _shorten_log(lake, table, dry_run=dry_run)
    done = Maintained(table.name, files, compacted, into, vacuumed, removed, is_behind, time.monotonic() - started)
    logger.debug("maintenance: %s", done)
    return done


def _groups(lake: Path, table: Table) -> tuple[int, list[list[LivePart]]]:
    """Count the live files, and choose those that are to become one, group by group."""
    if not table.partitioned:
        return len(open_table(lake, table.name).file_uris()), []
    live = live_parts(lake, table)
    groups: list[list[LivePart]] = []
    size = 0
    for part in sorted(live, key=lambda part: (part.batch, part.path)):
        if part.size >= TARGET_BYTES // 2:
            continue
        if not groups or groups[-1][0].batch != part.batch or size + part.size > TARGET_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.size
    return len(live), [group for group in groups if len(group) > 1]


def _compact(lake: Path, table: Table, groups: Sequence[Sequence[LivePart]]) -> tuple[int, int]:
    """Write each group into one file and let these take their places; returns how many files became how many."""
    gone = made = 0
    for start in range(0, len(groups), _AT_ONCE):
        swaps: list[tuple[Sequence[LivePart], Part]] = []
        try:
            for group in groups[start : start + _AT_ONCE]:
                part = _one_of(lake, table, group)
                if part is not None:
                    swaps.append((group, part))
        except BaseException:
            for _, part in swaps:
                (lake / table.name / part.path).unlink(missing_ok=True)
            raise
        if swaps:
            try:
                used = swap(lake, table, swaps)
                gone, made = gone + sum(len(group) for group, part in swaps if part.path in used), made + len(used)
            except CommitConflictError as error:
                logger.warning("%s", error)
    return gone, made


def _one_of(lake: Path, table: Table, group: Sequence[LivePart]) -> Part | None:
    """Write the rows of some files into one, a few at a time; None when they differ in their columns, or one of them is gone already."""
    paths = [lake / table.name / part.path for part in group]
    with lake_errors(f"compact {table.name}", lake / table.name):
        try:
            schemas = [pq.read_schema(path).remove_metadata() for path in paths]
        except FileNotFoundError:
            return None
        if any(not schema.equals(schemas[0]) for schema in schemas):
            return None
        target = PartFile(lake, table, group[0].batch, "compact", schemas[0])
        try:
            for rows in _regrouped(paths, schemas[0]):
                target.write(rows)
            return target.close()
        except FileNotFoundError:
            target.abandon()
            return None
        except BaseException:
            target.abandon()
            raise


def _regrouped(paths: Iterable[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = 0
    for path in paths:
        with pq.ParquetFile(path) as source:
            for batch in source.iter_batches(GROUP_ROWS, use_threads=False):
                if held and rows + batch.num_rows > GROUP_ROWS:
                    yield pa.Table.from_batches(held, schema)
                    held, rows = [], 0
                held.append(batch.cast(schema))
                rows += batch.num_rows
    if held:
        yield pa.Table.from_batches(held, schema)


def _write_checkpoint(lake: Path, table: Table, *, dry_run: bool) -> bool:
    """Make opening the newest version cheap; returns whether it was not."""
    with _errors("write a checkpoint of", lake, table):
        delta = open_table(lake, table.name)
        version = delta.version()
        if version == 0 or (lake / table.name / "_delta_log" / f"{version:020}.checkpoint.parquet").exists():
            return False
        if not dry_run:
            delta.create_checkpoint()
    return True


def _vacuum(lake: Path, table: Table, retention: timedelta, *, dry_run: bool) -> int:
    """Remove files that left the table long ago, those that never were in it, and what killed writers left unfinished.

    Not delta-rs's vacuum: it adds versions to the log, which those who follow the table would take for a change, and leaves some unfinished files.
    """
    folder, before = lake / table.name, time.time() - retention.total_seconds()
    with _errors("vacuum", lake, table):
        old = {path.relative_to(folder).as_posix(): path for pattern in ("*.parquet", "*=*/*") for path in folder.glob(pattern)}
        old = {name: path for name, path in old.items() if _modified(path) < before}
        if old:
            actions = pa.table(open_table(lake, table.name).get_add_actions())
            for name in chain(actions["path"].to_pylist(), _removed_since(folder / "_delta_log", before)):
                old.pop(unquote(name), None)
        if not dry_run:
            for path in old.values():
                path.unlink(missing_ok=True)
    return len(old)


def _removed_since(log: Path, before: float) -> Iterator[str]:
    """Files that left a table after a moment: readers may still be at them."""
    for entry in log.iterdir():
        if _ENTRY.fullmatch(entry.name) and _modified(entry) >= before:
            for line in entry.read_bytes().splitlines():
                if line.startswith(b'{"remove"'):
                    yield json.loads(line)["remove"]["path"]


def _shorten_log(lake: Path, table: Table, *, dry_run: bool) -> int:
    log = lake / table.name / "_delta_log"
    with _errors("shorten the log of", lake, table), table_lock(lake, table.name, LOCK_SECONDS):
        before = {path.name for path in log.iterdir()}
        spare = _spare_checkpoints(log)
        if dry_run:
            return len(spare)
        open_table(lake, table.name).cleanup_metadata()
        for path in spare:
            path.unlink(missing_ok=True)
        return len(before - {path.name for path in log.iterdir()})


def _spare_checkpoints(log: Path) -> list[Path]:
    """Checkpoints that only make old versions open faster. The oldest stays when the entries before it are gone."""
    entries = [int(found[1]) for path in log.iterdir() if (found := _ENTRY.fullmatch(path.name))]
    checkpoints = sorted((int(found[1]), path) for path in log.iterdir() if (found := _CHECKPOINT.fullmatch(path.name)))
    kept = {version for version, _ in checkpoints[-_KEPT_CHECKPOINTS:]}
    if checkpoints and min(entries, default=1) > 0:
        kept.add(checkpoints[0][0])
    buckets: dict[int, int] = {}
    for version, _ in checkpoints:
        buckets.setdefault(version // _VERSIONS_PER_CHECKPOINT, version)
    kept.update(buckets.values())
    before = time.time() - _CHECKPOINT_SECONDS
    return [path for version, path in checkpoints if version not in kept and _modified(path) < before]


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


@contextmanager
def _errors(action: str, lake: Path, table: Table) -> Iterator[None]:
    try:
        yield
    except (OSError, DeltaError) as error:
        failed = f"{action} {table.name}"
        raise lake_error(failed, lake / table.name, error) from error
