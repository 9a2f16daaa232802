"""One batch from its manifest to committed tables, with any engine.

Holds the order of things: shards, parts, the check that the sources are still there, one commit per table. Must not know processes or Spark.
"""

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pixels_assets.engines.local import Outcome, Progress
from pixels_assets.engines.shards import IndexSpec, Shard, Tally, discard_attempt, plan_shards
from pixels_assets.errors import BatchError, SourceVanishedError
from pixels_assets.intake.objects import SourceFile, os_path
from pixels_assets.lake.catalog import catalog_parts, quarantine_parts, raw_parts, retired_paths, superseded_paths, to_read
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.commit import LOCK_SECONDS, CommitResult, commit, is_committed, part_files, table_lock
from pixels_assets.lake.parts import Part
from pixels_assets.lake.schema import DICOM_METADATA, OBJECT_CATALOG, QUARANTINE, RAW_FILES, Table
from pixels_assets.settings import MIB, Settings

if TYPE_CHECKING:
    from pixels_assets.engines.rebuild import Rebuilt

_SHARDS_PER_WORKER = 8
"""So that the last shard that is worked on keeps the other workers waiting for a few hundredths of the batch's time at most."""
_SHARD_FILES = 16, 512
_SHARD_BYTES = 4 * MIB, 64 * MIB

_SIGNS_OF_ABSENCE = ("not_found", "io_error")


class Engine(Protocol):
    """Runs shards somewhere; see `pixels_assets.engines.local.LocalEngine`."""

    @property
    def name(self) -> str:
        """What users call it."""

    def run(self, shards: Iterable[Shard], spec: IndexSpec, progress: Progress | None = None) -> Outcome:
        """Index all shards and return the finished parts."""


@dataclass(frozen=True, slots=True)
class Indexed:
    """What indexing a batch came to.

    Parameters
    ----------
    commits : mapping of str to CommitResult
        By table name.
    tally : Tally
    """

    commits: Mapping[str, CommitResult]
    tally: Tally


def index_batch(
    engine: Engine,
    spec: IndexSpec,
    files: Sequence[SourceFile],
    *,
    run_id: str,
    only: frozenset[str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Indexed:
    """Index the files of a batch and commit the tables that `spec` asks for.

    Parameters
    ----------
    engine : Engine
    spec : IndexSpec
    files : sequence of SourceFile
        The batch's manifest.
    run_id : str
        Recorded in the commits.
    only : frozenset of str, optional
        Addresses of the files to read again; the rows of all others stay as they are.
    progress : callable, optional
        Told the number of objects touched so far.

    Raises
    ------
    SourceVanishedError
        Files are missing because their source folder is; nothing was committed.
    LakeError
        The lake cannot be written.
    """
    wanted = [file for file in to_read(list(files)) if only is None or file.path in only]
    before = _identities(wanted)
    _require_sources(before, before)
    outcome = engine.run(_shards(wanted, spec.settings.worker_count), spec, progress)
    if any(outcome.tally.codes[code] for code in _SIGNS_OF_ABSENCE):
        try:
            _require_sources(before, _identities(wanted))
        except SourceVanishedError:
            discard_attempt(spec)
            raise
    commits = {table.name: commit(spec.lake, table, spec.batch, outcome.parts.get(table.name, []), run_id=run_id, only=only) for table in spec.tables}
    return Indexed(commits, outcome.tally)


def _shards(files: Sequence[SourceFile], workers: int) -> list[Shard]:
    """Cut a batch so that its workers end at about the same time, and no finer: each shard becomes a part file of each table."""

    def share(total: int, least: int, most: int) -> int:
        return min(max(-(-total // (workers * _SHARDS_PER_WORKER)), least), most)

    return plan_shards(files, max_files=share(len(files), *_SHARD_FILES), max_bytes=share(sum(file.length for file in files), *_SHARD_BYTES))


def commit_raw_files(lake: Path, batch: str, files: list[SourceFile], *, attempt: str, run_id: str) -> CommitResult:
    """Commit the manifest of a batch as its rows of `raw_files`."""
    return commit(lake, RAW_FILES, batch, list(raw_parts(lake, batch, files, attempt)), run_id=run_id)


def commit_catalog(lake: Path, batch: str, files: list[SourceFile], *, attempt: str, run_id: str) -> CommitResult:
    """Commit the batch's rows of `object_catalog`; rows of older batches about the same files leave it in the same commit.

    Raises
    ------
    BatchError
        The batch has not landed in the tables that this one is made from.
    """
    _require_landed(lake, batch, (RAW_FILES, DICOM_METADATA))
    return _commit_current(lake, OBJECT_CATALOG, batch, files, run_id, lambda old: catalog_parts(lake, batch, files, attempt, old))


def commit_quarantine(
    lake: Path, batch: str, files: list[SourceFile], *, attempt: str, run_id: str, retried: frozenset[str] | None = None
) -> CommitResult:
    """Commit the batch's rows of `quarantine`; rows of older batches about the same files leave it in the same commit.

    `retried` names the files that were read again, None all of them: only theirs count as attempts.

    Raises
    ------
    BatchError
        The batch has not landed in `object_catalog`: with this commit a batch counts as finished.
    """
    _require_landed(lake, batch, (RAW_FILES, DICOM_METADATA, OBJECT_CATALOG))
    return _commit_current(lake, QUARANTINE, batch, files, run_id, lambda old: quarantine_parts(lake, batch, attempt, old, retried))


def rebuild_batch(lake: Path, batch: str, settings: Settings, *, attempt: str, run_id: str) -> "Rebuilt":
    """Make `dicom_metadata` and `object_catalog` of one batch again, from the headers that the lake keeps; also when `object_catalog` is lost.

    Raises
    ------
    BatchError
        The batch has not landed in `dicom_metadata`.
    PixelsError
        The environment failed; each table is as it was or complete.
    """
    from pixels_assets.engines.rebuild import rebuild_parts  # it loads what reads headers, which nothing else here needs

    with table_lock(lake, f"run-{batch}"):
        _require_landed(lake, batch, (DICOM_METADATA,))
        files = part_files(lake, DICOM_METADATA, [batch])
        done = rebuild_parts(lake, batch, files, attempt, workers=settings.worker_count, limits=settings.limits)
        commit(lake, DICOM_METADATA, batch, done.parts, run_id=run_id)
        commit_catalog(lake, batch, manifests(lake).load(batch), attempt=attempt, run_id=run_id)
    return done


def _commit_current(
    lake: Path, table: Table, batch: str, files: list[SourceFile], run_id: str, write: Callable[[frozenset[str]], Iterable[Part]]
) -> CommitResult:
    """Commit the rows that are current, which other batches may change until the moment of the commit."""
    superseded = superseded_paths(lake, batch, files)
    parts = list(write(superseded))
    with table_lock(lake, f"_current_{table.name}", LOCK_SECONDS):
        now = superseded_paths(lake, batch, files)
        if now != superseded:
            for part in parts:
                (lake / table.name / part.path).unlink(missing_ok=True)
            parts = list(write(now))
        return commit(lake, table, batch, parts, run_id=run_id, retire=retired_paths(lake, batch, files))


def _require_landed(lake: Path, batch: str, tables: Iterable[Table]) -> None:
    for table in tables:
        if not is_committed(lake, table, batch):
            msg = f"batch {batch} has not landed in {table.name}; materialize that asset for it first"
            raise BatchError(msg)


def absent_source(files: Iterable[SourceFile]) -> str | None:
    """Source folder of some files that is not there; None when all are."""
    return next((source for source, identity in _identities(files).items() if identity is None), None)


def _identities(files: Iterable[SourceFile]) -> dict[str, tuple[int, int] | None]:
    """Which folder stands under the name of each source now, None where there is none."""
    found: dict[str, tuple[int, int] | None] = {}
    for source in {file.source for file in files if file.source}:
        try:
            status = os.stat(os_path(source))  # noqa: PTH116 - bytes: names need not be UTF-8
        except OSError:
            found[source] = None
        else:
            found[source] = (status.st_dev, status.st_ino) if stat.S_ISDIR(status.st_mode) else None
    return found


def _require_sources(before: Mapping[str, tuple[int, int] | None], now: Mapping[str, tuple[int, int] | None]) -> None:
    """Refuse to go on without a source, or with another folder in its place: an unmounted disk leaves its empty mount point behind."""
    for source, identity in now.items():
        if identity is None or identity != before[source]:
            msg = f"the source folder {source} is not there any more; bring it back and run again, the batch is then read again"
            raise SourceVanishedError(msg)
