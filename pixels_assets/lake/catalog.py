"""The derived tables of one batch: `object_catalog` and `quarantine`, made from what indexing wrote.

Holds which row of an object is the current one. Must not read source files.

A batch is newer than another when its key is greater. The newest batch that names a file in `raw_files` decides: its rows are current, the rows of
all older batches about that file, and about what was inside it, are not. That holds in whatever order batches run and are run again.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pixels_assets.intake.objects import Change, SourceFile, Status, row_id
from pixels_assets.intake.paths import extension, path_tags, relative_path
from pixels_assets.lake.commit import part_files, parts_holding
from pixels_assets.lake.keyed import scan_paths
from pixels_assets.lake.parts import Part, microseconds, part_from_table
from pixels_assets.lake.schema import DICOM_METADATA, OBJECT_CATALOG, QUARANTINE, RAW_FILES, THUMBNAILS, Table
from pixels_assets.settings import MIB

RETRIED = (Status.UNREADABLE, Status.CRASHED, Status.TIMEOUT)
"""Statuses that another attempt may heal by itself."""

ATTEMPTS = 3
"""After so many attempts no further one is due by itself; `pixels retry` still makes one."""

_ROWS_AT_ONCE = 512
_PART_ROWS = 10_000
_PART_BYTES = 48 * MIB


def superseded_paths(lake: Path, batch: str, files: list[SourceFile]) -> frozenset[str]:
    """Files of a batch's manifest that newer batches name: this batch's rows of them are not current."""
    return _newer(lake, batch, {file.path for file in files})


def retired_paths(lake: Path, batch: str, files: list[SourceFile]) -> frozenset[str]:
    """Files that a batch's manifest names and older batches hold rows of, unless newer batches name them: those older rows are not current."""
    named = {file.path for file in files} | {file.previous_path for file in files if file.previous_path}
    older = _named(lake, ["path"], named, lambda other: other < batch)
    # Rows of one file leave all other batches at once, so a batch that runs late must leave alone what a newer one has replaced already.
    return frozenset(older - _newer(lake, batch, named))


def catalog_parts(lake: Path, batch: str, files: list[SourceFile], attempt: str, superseded: frozenset[str]) -> Iterator[Part]:
    """Write the rows of `object_catalog` for one batch: metadata and thumbnail side by side, without what newer batches replaced.

    Parameters
    ----------
    lake : Path
    batch : str
    files : list of SourceFile
        The batch's manifest.
    attempt : str
        Unique to the run, for the names of the part files.
    superseded : frozenset of str
        See `superseded_paths`.

    Yields
    ------
    Part
        As few as memory allows: a catalog of many small files would be slow to read.
    """
    sources = {file.path: file.source for file in files}
    old = pa.array(sorted(superseded), pa.string())
    images = _Thumbnails(part_files(lake, THUMBNAILS, [batch]))
    wanted = [name for name in DICOM_METADATA.column_names if name not in {"header", "file_meta", "batch"}]

    def current() -> Iterator[pa.Table]:
        for rows in _metadata(lake, batch, wanted):
            kept = rows.filter(pc.invert(pc.is_in(rows["original_path"], old)))
            if kept.num_rows:
                yield _catalog_rows(kept, images, sources)

    yield from _parts(lake, OBJECT_CATALOG, batch, attempt, current())


def quarantine_parts(lake: Path, batch: str, attempt: str, superseded: frozenset[str], retried: frozenset[str] | None) -> Iterator[Part]:
    """Write the rows of `quarantine` for one batch: every object that is neither indexed nor an archive, with its number of attempts so far.

    `retried` names the files that were read again, None all of them.
    """
    old = pa.array(sorted(superseded), pa.string())
    healthy = pa.array([Status.INDEXED.value, Status.ARCHIVE.value])
    names = ["path", "original_path", "length", "file_type", "status", "error_code", "error_message", "content_hash"]
    before = scan_paths(QUARANTINE, part_files(lake, QUARANTINE, [batch])).select("path", "attempts").collect()
    attempts_before = dict(before.iter_rows())

    def bad() -> Iterator[pa.Table]:
        for rows in _metadata(lake, batch, names):
            found = rows.filter(pc.invert(pc.or_(pc.is_in(rows["status"], healthy), pc.is_in(rows["original_path"], old))))
            if not found.num_rows:
                continue
            attempts = [
                attempts_before.get(path, 0) + (retried is None or original in retried or path not in attempts_before)
                for path, original in zip(found["path"].to_pylist(), found["original_path"].to_pylist(), strict=True)
            ]
            due = [status in RETRIED and count < ATTEMPTS for status, count in zip(found["status"].to_pylist(), attempts, strict=True)]
            columns = {name: found[name] for name in names} | {"attempts": pa.array(attempts, pa.int32()), "retry_due": pa.array(due, pa.bool_())}
            yield _table(QUARANTINE.arrow, columns)

    yield from _parts(lake, QUARANTINE, batch, attempt, bad())


def _parts(lake: Path, table: Table, batch: str, attempt: str, pieces: Iterable[pa.Table]) -> Iterator[Part]:
    """Write pieces of a table side by side, a part whenever enough of them are in memory."""
    held: list[pa.Table] = []
    number = rows = size = 0
    for piece in chain(pieces, [None]):
        if held and (piece is None or rows + piece.num_rows > _PART_ROWS or size + piece.nbytes > _PART_BYTES):
            yield part_from_table(lake, table, batch, f"{attempt}-{number:05d}", pa.concat_tables(held))
            held, rows, size, number = [], 0, 0, number + 1
        if piece is not None:
            held, rows, size = [*held, piece], rows + piece.num_rows, size + piece.nbytes


def raw_parts(lake: Path, batch: str, files: list[SourceFile], attempt: str) -> Iterator[Part]:
    """Write the manifest of one batch as rows of `raw_files`."""
    remaining = iter(files)
    for number in range(len(files)):
        piece = list(islice(remaining, 50_000))
        if not piece:
            return
        columns = {
            "path": [file.path for file in piece],
            "length": [file.length for file in piece],
            "modificationTime": [microseconds(file.mtime_ns) for file in piece],
            "mtime_ns": [file.mtime_ns for file in piece],
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


def _newer(lake: Path, batch: str, paths: set[str]) -> frozenset[str]:
    """Those of the paths that newer batches name, as where a file is or as where it was."""
    return frozenset(_named(lake, ["path", "previous_path"], paths, lambda other: other > batch))


def _named(lake: Path, columns: list[str], paths: set[str], which: Callable[[str], bool]) -> set[str]:
    """Those of the paths that some batches have in columns of `raw_files`. Parts that cannot hold them are not opened."""
    wanted, found = pa.array(sorted(paths), pa.string()), set()
    for batch, file, column in parts_holding(lake, RAW_FILES, columns, paths):
        if which(batch):
            with pq.ParquetFile(file) as source:
                values = source.read(columns=[column], use_threads=False)[column]
            found.update(values.filter(pc.is_in(values, wanted)).to_pylist())
    return found


def _metadata(lake: Path, batch: str, columns: list[str]) -> Iterator[pa.Table]:
    """Rows of a batch's metadata, a part at a time; columns that a part is too old to have are NULL."""
    for file in sorted(part_files(lake, DICOM_METADATA, [batch])):
        yield ds.dataset([file], schema=DICOM_METADATA.part_arrow, format="parquet").to_table(columns=columns)


class _Thumbnails:
    """A batch's thumbnails by path: an index of 16 bytes for each, so that only those asked for are read.

    Their parts need not match those of the metadata: either may have been made again alone.
    """

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        keys, places = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number, file in enumerate(files):
            with pq.ParquetFile(file) as source:
                for group in range(source.num_row_groups):
                    found = source.read_row_group(group, columns=["path"])["path"].to_pylist()
                    keys.append(np.fromiter(map(row_id, found), np.int64, len(found)))
                    places.append(np.full(len(found), number << 32 | group, np.int64))
        order = np.argsort(all_keys := np.concatenate(keys))
        self._keys, self._places = all_keys[order], np.concatenate(places)[order]

    def of(self, paths: list[str]) -> pa.Array:
        """Thumbnails of these paths, NULL for those without one."""
        keys = np.fromiter(map(row_id, paths), np.int64, len(paths))
        nearest = np.searchsorted(self._keys, keys)
        known = np.flatnonzero(nearest < len(self._keys))
        known = known[self._keys[nearest[known]] == keys[known]]
        groups: dict[int, list[int]] = {}
        for place in np.unique(self._places[nearest[known]]).tolist():
            groups.setdefault(place >> 32, []).append(place & 0xFFFFFFFF)
        wanted = set(paths)
        images: dict[str, bytes | None] = {}
        for number, rows in groups.items():
            with pq.ParquetFile(self._files[number]) as source:
                for batch in source.iter_batches(_ROWS_AT_ONCE, row_groups=rows, columns=["path", "thumbnail"], use_threads=False):
                    pairs = zip(batch["path"].to_pylist(), batch["thumbnail"], strict=True)
                    images.update((path, image.as_py()) for path, image in pairs if path in wanted)
        return pa.array([images.get(path) for path in paths], pa.binary())


def _catalog_rows(rows: pa.Table, images: _Thumbnails, sources: dict[str, str]) -> pa.Table:
    paths = rows["path"].to_pylist()
    originals = rows["original_path"].to_pylist()
    relatives = [relative_path(path, sources[original]) for path, original in zip(paths, originals, strict=True)]
    wanted = set(OBJECT_CATALOG.column_names)
    columns = {name: rows[name] for name in rows.column_names if name in wanted} | {
        "rowId": [row_id(path) for path in paths],
        "relative_path": relatives,
        "extension": [extension(path) for path in paths],
        "path_tags": [path_tags(relative) for relative in relatives],
        "is_anon": pa.array([True] * len(paths)),  # the seed's meaning: local files are read without credentials
        "thumbnail": images.of(paths),
    }
    return _table(OBJECT_CATALOG.arrow, columns)


def _table(schema: pa.Schema, columns: dict[str, object]) -> pa.Table:
    """Columns in the order and with the types of a table; the partition column is not in the file."""
    wanted = schema.remove(schema.get_field_index("batch"))
    return pa.table([columns[name] for name in wanted.names], schema=wanted)
