"""Tables that are not partitioned: which of their files hold some keys, and how the rows of these keys are replaced.

Must not know what the rows mean. Writes parts and names them in one transaction (`pixels_assets.lake.commit.commit_files`).

Only files that hold a replaced key are written again. Small files are written again together with them once there are many, so that a table that
grows by a little a thousand times does not end in a thousand files.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pixels_assets.errors import CommitConflictError
from pixels_assets.lake.commit import commit_files
from pixels_assets.lake.parts import Part, PartFile, lake_error
from pixels_assets.lake.schema import PARTITION, Table

PART_ROWS = 25_000
"""Rows of one part; a table with images closes a part earlier, at `PART_BYTES`."""
PART_BYTES = 64 * 1024**2
SMALL_FILES = 8
"""So many files may have less than half of that before they are merged."""
_GROUP_ROWS = 5_000
_SCAN_ROWS, _KEY_ROWS = 2_000, 64_000
"""Rows of files that are read at once: of many columns, and of those of the keys alone."""
_FILE = "_file"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One live file of a table, with what its statistics say about one text column.

    Parameters
    ----------
    path : Path
        Absolute.
    name : str
        As the table names it.
    size : int
    rows : int
    least, most : str or None
        Smallest and greatest value, or something beyond them; None: not known.
    nulls : int or None
        Rows without a value; None: not known.
    """

    path: Path
    name: str
    size: int
    rows: int
    least: str | None
    most: str | None
    nulls: int | None

    def may_hold(self, values: Sequence[str], *, null: bool = False) -> bool:
        """Whether statistics allow the file to hold one of these values, which are sorted, or a NULL when that is asked for."""
        if null and self.nulls != 0:
            return True
        first = bisect_left(values, self.least) if self.least is not None else 0
        return first < len(values) and (self.most is None or values[first] <= self.most)


@dataclass(frozen=True, slots=True)
class Replaced:
    """What replacing rows did.

    Parameters
    ----------
    version : int
        Version of the table that holds it.
    rows : int
        Rows of the table now.
    rows_written : int
        New rows.
    rows_copied : int
        Rows that were written again because they shared a file with replaced ones, or lay in small files.
    size : int
        Bytes of the files that were added.
    files_added, files_removed : int
    """

    version: int
    rows: int
    rows_written: int
    rows_copied: int
    size: int
    files_added: int
    files_removed: int


def stored_files(lake: Path, table: Table, delta: DeltaTable, column: str) -> list[StoredFile]:
    """List the live files of a table, with statistics of a text column.

    Raises
    ------
    LakeError
        The table cannot be read.
    """
    try:
        actions = pa.table(delta.get_add_actions(flatten=True))
    except (OSError, DeltaError) as error:
        action = f"read the table {table.name}"
        raise lake_error(action, lake / table.name, error) from error
    names = ("path", "size_bytes", "num_records", f"min.{column}", f"max.{column}", f"null_count.{column}")
    columns = [actions[name].to_pylist() if name in actions.column_names else [None] * actions.num_rows for name in names]
    return [
        StoredFile(lake / table.name / path, path, size, rows or 0, least, most, nulls)
        for path, size, rows, least, most, nulls in zip(*columns, strict=True)
    ]


@lru_cache
def _schema(table: Table) -> dict[str, pl.DataType]:
    return dict(pl.DataFrame(table.part_arrow.empty_table()).schema)


def scan_files(table: Table, files: Iterable[StoredFile], *, with_files: bool = False) -> pl.LazyFrame:
    """Rows of some files; columns that a file is too old to have are NULL. Asked for, a column `_FILE` says which file a row is in."""
    return scan_paths(table, [file.path for file in files], with_files=with_files)


def scan_paths(table: Table, paths: Sequence[Path], *, with_files: bool = False) -> pl.LazyFrame:
    """Rows of some files by their paths, the same way."""
    schema = _schema(table)
    partition: dict[str, Any] = {PARTITION: pl.String} if table.partitioned else {}
    if not paths:
        return pl.LazyFrame(schema=schema | partition | ({_FILE: pl.String} if with_files else {}))
    return pl.scan_parquet(
        [str(path) for path in paths],
        schema=schema,
        hive_partitioning=table.partitioned,
        hive_schema=partition or None,
        missing_columns="insert",
        extra_columns="ignore",
        glob=False,
        include_file_paths=_FILE if with_files else None,
    )


def few_rows(table: Table, files: Iterable[StoredFile], count: int, *, with_files: bool = False) -> Iterator[pl.LazyFrame]:
    """Rows of some files, so many at a time: of a few files, or of a part of a large one.

    A scan of many files takes memory for each of them: their columns are described a hundred times over, and rows of several are read at once.
    """
    some: list[StoredFile] = []
    for file in files:
        if some and sum(one.rows for one in some) + file.rows > count:
            yield scan_files(table, some, with_files=with_files)
            some = []
        if file.rows > count:
            rows = scan_files(table, [file], with_files=with_files)
            yield from (rows.slice(start, count) for start in range(0, file.rows, count))
        else:
            some.append(file)
    if some:
        yield scan_files(table, some, with_files=with_files)


def find_rows(table: Table, files: Iterable[StoredFile], keys: pl.DataFrame | None, columns: Sequence[str | pl.Expr]) -> Iterator[pl.DataFrame]:
    """Go through the rows of some keys.

    Statistics rule files out, then the columns of the keys alone do; only what is left is opened for more.

    Parameters
    ----------
    table : Table
    files : iterable of StoredFile
        With statistics of the first column of `keys`.
    keys : polars.DataFrame or None
        Rows are wanted whose columns have the values of one of its rows, of which NULL is one; None: all rows.
    columns : sequence of str or polars.Expr
        What is wanted of the rows.

    Yields
    ------
    polars.DataFrame
        Some rows; none at all when there are none.
    """
    for rows in few_rows(table, files if keys is None else holding(table, files, keys), _SCAN_ROWS):
        found = (rows if keys is None else _of_keys(rows, keys)).select(columns).collect(engine="streaming")
        if not found.is_empty():
            yield found


def all_rows(table: Table, files: Iterable[StoredFile], keys: pl.DataFrame | None, columns: Sequence[str | pl.Expr]) -> pl.DataFrame:
    """Return the same as one frame."""
    return pl.concat([scan_files(table, []).select(columns).collect(), *find_rows(table, files, keys, columns)])


def holding(table: Table, files: Iterable[StoredFile], keys: pl.DataFrame) -> list[StoredFile]:
    """Those of some files that hold a row of some keys."""
    if keys.is_empty():
        return []
    first = keys.to_series()
    values, null = first.drop_nulls().unique().sort().to_list(), first.null_count() > 0
    candidates = [file for file in files if file.may_hold(values, null=null)]
    names: set[str] = set()
    for rows in few_rows(table, candidates, _KEY_ROWS, with_files=True):
        names.update(_of_keys(rows, keys).select(pl.col(_FILE).unique()).collect(engine="streaming")[_FILE])
    return [file for file in candidates if str(file.path) in names]


def _of_keys(rows: pl.LazyFrame, keys: pl.DataFrame) -> pl.LazyFrame:
    """Rows of some keys. The filter, unlike the join, is known to who reads the files."""
    first = keys.to_series()
    wanted = pl.col(first.name).is_in(first.drop_nulls().implode())
    if first.null_count():
        wanted |= pl.col(first.name).is_null()
    rows = rows.filter(wanted)
    return rows.join(keys.lazy(), on=keys.columns, how="semi", nulls_equal=True) if keys.width > 1 else rows


def replace_rows(
    lake: Path,
    table: Table,
    delta: DeltaTable,
    keys: pl.DataFrame | None,
    rows: Iterable[pl.DataFrame],
    *,
    run_id: str,
    marks: Mapping[str, int],
) -> Replaced:
    """Replace the rows of some keys by others, in one version of the table.

    Parameters
    ----------
    lake : Path
    table : Table
        Not partitioned.
    delta : DeltaTable
        The table as it is. The caller holds a lock that keeps other writers out.
    keys : polars.DataFrame or None
        Keys whose rows go, in columns `Table.key`; None: all rows go.
    rows : iterable of polars.DataFrame
        New rows, in pieces that fit into memory.
    run_id : str
    marks : mapping of str to int
        Application transactions to set in the same version.

    Raises
    ------
    LakeError
        The table cannot be read or written.
    """
    first = table.key[0]
    files = stored_files(lake, table, delta, first)
    writer = _Writer(lake, table)
    try:
        if keys is None:
            rewritten = files
        else:
            rewritten = holding(table, files, keys)
            small = [file for file in files if file.rows < PART_ROWS // 2 and file.size < PART_BYTES // 2]
            if len(small) > SMALL_FILES:
                rewritten = list(dict.fromkeys([*rewritten, *small]))
            for piece in _without(table, rewritten, keys):
                writer.write(piece)
        copied = writer.rows
        for piece in rows:
            writer.write(piece)
        parts = writer.finish()
    except BaseException:
        writer.abandon()
        raise
    try:
        version = commit_files(lake, table, delta, parts, [(file.name, file.size) for file in rewritten], run_id=run_id, marks=marks)
    except CommitConflictError:
        writer.abandon()  # after any other error a version may name the parts
        raise
    return Replaced(
        version=version,
        rows=sum(file.rows for file in files) - sum(file.rows for file in rewritten) + writer.rows,
        rows_written=writer.rows - copied,
        rows_copied=copied,
        size=sum(part.size for part in parts),
        files_added=len(parts),
        files_removed=len(rewritten),
    )


def _without(table: Table, files: Iterable[StoredFile], keys: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Rows of some files but those of these keys, a few at a time."""
    for file in files:
        for batch in ds.dataset([str(file.path)], schema=table.part_arrow, format="parquet").to_batches(batch_size=_GROUP_ROWS, batch_readahead=1):
            piece = pl.DataFrame(pl.from_arrow(batch)).join(keys, on=table.key, how="anti", nulls_equal=True, maintain_order="left")
            if not piece.is_empty():
                yield piece


class _Writer:
    """Rows in, parts out; a part is closed when it is large."""

    def __init__(self, lake: Path, table: Table) -> None:
        self._lake, self._table, self._schema = lake, table, table.part_arrow
        self._file: PartFile | None = None
        self._parts: list[Part] = []
        self._bytes = 0
        self.rows = 0

    def write(self, rows: pl.DataFrame) -> None:
        """Add rows, with the table's columns in any order."""
        for piece in rows.select(self._schema.names).iter_slices(_GROUP_ROWS):
            if self._file is None:
                self._file, self._bytes = PartFile(self._lake, self._table, None, "rows", self._schema), 0
            values = piece.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(self._schema)
            self._file.write(values)
            self._bytes += values.nbytes
            self.rows += values.num_rows
            if self._file.rows >= PART_ROWS or self._bytes >= PART_BYTES:
                self._close()

    def finish(self) -> list[Part]:
        """Close the last part; return all."""
        self._close()
        return self._parts

    def abandon(self) -> None:
        """Remove what was written."""
        if self._file is not None:
            self._file.abandon()
        for part in self._parts:
            with suppress(OSError):
                (self._lake / self._table.name / part.path).unlink()

    def _close(self) -> None:
        if self._file is not None:
            self._parts.append(self._file.close())
            self._file = None
