"""The derived tables of one batch: `object_catalog` and `quarantine`, made from what indexing wrote.

Holds which row of an object is the current one. Must not read source files.

A batch is newer than another when its key is greater. The newest batch that names a file in `raw_files` decides: its rows are current, the rows of
all older batches about that file, and about what was inside it, are not. That holds in whatever order batches run and are run again.
"""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pixels_assets.intake.objects import MEMBER, Change, SourceFile, Status, row_id
from pixels_assets.lake.commit import open_table, validate_batch
from pixels_assets.lake.parts import Part, part_from_table
from pixels_assets.lake.schema import DICOM_METADATA, OBJECT_CATALOG, QUARANTINE, RAW_FILES, THUMBNAILS

RETRIED = (Status.UNREADABLE, Status.CRASHED, Status.TIMEOUT)
"""Statuses that another attempt may heal by itself."""

ATTEMPTS = 3
"""After so many attempts no further one is due by itself; `pixels retry` still makes one."""

_EXTENSION = re.compile(r"\.(\w+)$")
_TAG_END = re.compile(r"([0-9a-zA-Z]+)[_./:@]")
_PATH_TAGS = 5


def retired_paths(lake: Path, batch: str, files: list[SourceFile]) -> frozenset[str]:
    """Files of a batch's manifest that older batches hold rows of: those rows are no longer current."""
    named = {file.path for file in files} | {file.previous_path for file in files if file.previous_path}
    older = _journal(lake).filter(pl.col("batch") < batch, pl.col("path").is_in(list(named))).select("path").unique().collect()
    return frozenset(older["path"])


def superseded_paths(lake: Path, batch: str, files: list[SourceFile]) -> frozenset[str]:
    """Files of a batch's manifest that newer batches name: this batch's rows of them are not current."""
    newer = _journal(lake).filter(pl.col("batch") > batch).select("path", "previous_path").collect()
    gone = set(newer["path"]) | set(newer["previous_path"])
    return frozenset(file.path for file in files if file.path in gone)


def catalog_parts(lake: Path, batch: str, files: list[SourceFile], attempt: str) -> Iterator[Part]:
    """Write the rows of `object_catalog` for one batch: metadata and thumbnail side by side, without what newer batches replaced.

    Parameters
    ----------
    lake : Path
    batch : str
    files : list of SourceFile
        The batch's manifest.
    attempt : str
        Unique to the run, for the names of the part files.

    Yields
    ------
    Part
        One for each part of `dicom_metadata` that holds a current row.
    """
    sources = {file.path: file.source for file in files}
    superseded = pa.array(sorted(superseded_paths(lake, batch, files)), pa.string())
    images = ds.dataset(_files(lake, THUMBNAILS.name, batch), schema=THUMBNAILS.arrow.remove(THUMBNAILS.arrow.get_field_index("batch")))
    for number, rows in enumerate(
        _metadata(lake, batch, [name for name in DICOM_METADATA.column_names if name not in {"header", "file_meta", "batch"}])
    ):
        current = rows.filter(pc.invert(pc.is_in(rows["original_path"], superseded)))
        if current.num_rows:
            yield part_from_table(lake, OBJECT_CATALOG, batch, f"{attempt}-{number:05d}", _catalog_rows(current, images, sources))


def quarantine_parts(lake: Path, batch: str, files: list[SourceFile], attempt: str, retried: frozenset[str] | None) -> Iterator[Part]:
    """Write the rows of `quarantine` for one batch: every object that is neither indexed nor an archive, with its number of attempts so far.

    `retried` names the files that were read again, None all of them.
    """
    superseded = pa.array(sorted(superseded_paths(lake, batch, files)), pa.string())
    healthy = pa.array([Status.INDEXED.value, Status.ARCHIVE.value])
    names = ["path", "original_path", "length", "file_type", "status", "error_code", "error_message", "content_hash"]
    before = pl.scan_delta(open_table(lake, QUARANTINE.name)).filter(pl.col("batch") == batch).select("path", "attempts").collect()
    attempts_before = dict(before.iter_rows())
    number = 0
    for rows in _metadata(lake, batch, names):
        bad = rows.filter(pc.invert(pc.or_(pc.is_in(rows["status"], healthy), pc.is_in(rows["original_path"], superseded))))
        if not bad.num_rows:
            continue
        attempts = [
            attempts_before.get(path, 0) + (retried is None or original in retried or path not in attempts_before)
            for path, original in zip(bad["path"].to_pylist(), bad["original_path"].to_pylist(), strict=True)
        ]
        due = [status in RETRIED and count < ATTEMPTS for status, count in zip(bad["status"].to_pylist(), attempts, strict=True)]
        columns = {name: bad[name] for name in names} | {"attempts": pa.array(attempts, pa.int32()), "retry_due": pa.array(due, pa.bool_())}
        yield part_from_table(lake, QUARANTINE, batch, f"{attempt}-{number:05d}", _table(QUARANTINE.arrow, columns))
        number += 1


def raw_parts(lake: Path, batch: str, files: list[SourceFile], attempt: str) -> Iterator[Part]:
    """Write the manifest of one batch as rows of `raw_files`."""
    remaining = iter(files)
    for number in range(len(files)):
        piece = list(islice(remaining, 50_000))
        if not piece:
            return
        times = pa.array([file.mtime_ns for file in piece], pa.int64())
        columns = {
            "path": [file.path for file in piece],
            "length": [file.length for file in piece],
            "modificationTime": pc.cast(pc.floor(pc.divide(times, 1000)), pa.int64()).cast(pa.timestamp("us", "UTC")),
            "mtime_ns": times,
            "change": [file.change.value for file in piece],
            "previous_path": [file.previous_path for file in piece],
            "source": [file.source for file in piece],
            "error_code": [file.failure.code if file.failure else None for file in piece],
            "error_message": [file.failure.message if file.failure else None for file in piece],
        }
        yield part_from_table(lake, RAW_FILES, batch, f"{attempt}-{number:05d}", _table(RAW_FILES.arrow, columns))


def to_read(files: list[SourceFile]) -> list[SourceFile]:
    """Files of a manifest that there is something to read of."""
    return [file for file in files if file.change is not Change.REMOVED]


def relative_path(path: str, source: str) -> str:
    """Path of an object below its source folder."""
    return path.removeprefix(source.rstrip("/") + "/")


def extension(path: str) -> str:
    """Letters, digits and underscores after the last dot of the name, case kept; '' when there is none."""
    found = _EXTENSION.search(path)
    return found.group(1) if found else ""


def path_tags(relative: str) -> list[str]:
    """Return the last five words of a relative path, cut after every run of letters and digits that a ``_ . / : @`` follows."""
    return _TAG_END.sub(r"\1,", relative.replace(MEMBER, "/")).split(",")[-_PATH_TAGS:]


def _journal(lake: Path) -> pl.LazyFrame:
    return pl.scan_delta(open_table(lake, RAW_FILES.name)).select("path", "previous_path", "batch")


def _files(lake: Path, table: str, batch: str) -> list[str]:
    return [uri.removeprefix("file://") for uri in open_table(lake, table).file_uris(file_pruning_predicate=f"batch = '{validate_batch(batch)}'")]


def _metadata(lake: Path, batch: str, columns: list[str]) -> Iterator[pa.Table]:
    for file in _files(lake, DICOM_METADATA.name, batch):
        yield pq.read_table(file, columns=columns, partitioning=None)


def _catalog_rows(rows: pa.Table, images: ds.Dataset, sources: dict[str, str]) -> pa.Table:
    paths = rows["path"].to_pylist()
    originals = rows["original_path"].to_pylist()
    relatives = [relative_path(path, sources[original]) for path, original in zip(paths, originals, strict=True)]
    span = (pc.field("path") >= min(paths)) & (pc.field("path") <= max(paths))
    found = images.to_table(columns=["path", "thumbnail"], filter=span)
    place = {path: number for number, path in enumerate(found["path"].to_pylist())}
    columns = {name: rows[name] for name in rows.column_names if name in OBJECT_CATALOG.column_names} | {
        "rowId": [row_id(path) for path in paths],
        "relative_path": relatives,
        "extension": [extension(path) for path in paths],
        "path_tags": [path_tags(relative) for relative in relatives],
        "is_anon": pa.array([True] * len(paths)),  # the seed's meaning: local files are read without credentials
        "thumbnail": found["thumbnail"].take(pa.array([place.get(path) for path in paths], pa.int64())),
    }
    return _table(OBJECT_CATALOG.arrow, columns)


def _table(schema: pa.Schema, columns: dict[str, object]) -> pa.Table:
    """Columns in the order and with the types of a table; the partition column is not in the file."""
    wanted = schema.remove(schema.get_field_index("batch"))
    return pa.table([columns[name] for name in wanted.names], schema=wanted)
