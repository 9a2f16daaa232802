"""One Parquet part: rows in, a closed file and its description out.

Holds what a worker needs to write its share of a table: in bounded memory, complete or not there at all, and never over another file. A part is
invisible until `pixels_assets.lake.commit` names it in a transaction. Must not open Delta tables: workers import this module, and pyarrow is all
that it needs.
"""

import datetime as dt
import errno
import json
import logging
import numbers
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from pixels_assets.errors import BatchError, LakeError
from pixels_assets.lake.schema import PARTITION, Table

logger = logging.getLogger(__name__)

MIB = 1024**2
GROUP_ROWS = 512
"""Rows of one row group in tables that hold binaries: a lookup by path then reads few thumbnails that it does not need."""
GROUP_BYTES = 16 * MIB
"""Bytes of values that are buffered before they become a row group."""
STATISTICS_CHARACTERS = 256
"""Longest text in statistics. Delta's usual 32 would cut addresses and UIDs within their common prefix and prune nothing."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")
_UNFINISHED = ".tmp-"
_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_FIRST_MICROSECOND, _LAST_MICROSECOND = -62_135_596_800_000_000, 253_402_300_799_999_999  # the years 1 to 9999
_FIXED_BYTES = 8
_SYNC_THREADS = 4
_MAX_SHAPES = 500
_FEW = 8
_ONLY_TEXT = {str}
_SAID = 300
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, slots=True)
class Part:
    """A closed Parquet file that a commit may name.

    Parameters
    ----------
    table : str
    path : str
        Relative to the table's folder: ``batch=<key>/<name>.parquet``, in a table that is not partitioned ``<name>.parquet``.
    size : int
        Bytes of the file.
    rows : int
    stats : str
        Delta statistics, JSON: ``numRecords``, ``minValues``, ``maxValues``, ``nullCount`` of the columns with `Column.has_statistics`.
    """

    table: str
    path: str
    size: int
    rows: int
    stats: str


def validate_batch(key: str) -> str:
    """Return the key of a batch when it can name a partition folder.

    Parameters
    ----------
    key : str
        1 to 100 of ``A-Z a-z 0-9 . _ -``, no leading dot: readers take the value from the folder's name, where nothing may need escaping.

    Raises
    ------
    BatchError
        It cannot.
    """
    if not _NAME.fullmatch(key) or key == _NULL_PARTITION:
        msg = f"batch key {key!r} is not 1 to 100 of A-Z a-z 0-9 . _ - without a leading dot; use the keys that `pixels ingest` or `discover` make"
        raise BatchError(msg)
    return key


def microseconds(nanoseconds: int | None) -> int | None:
    """Turn nanoseconds since 1970 into the microseconds that timestamp columns take."""
    return None if nanoseconds is None else nanoseconds // 1000


def lake_error(action: str, path: object, error: BaseException) -> LakeError:
    """Say what could not be done, where, and what to do next.

    Parameters
    ----------
    action : str
        Such as ``write a part of thumbnails``.
    path : object
        The file or folder.
    error : BaseException
        What the operating system or delta-rs said; delta-rs hides the error number in its text.
    """
    text = re.sub(r"\x1b\[[0-9;]*m|\s+", " ", str(error)).strip()
    found = re.search(r"os error (\d+)|code: (\d+)", text)
    number = error.errno if isinstance(error, OSError) and error.errno else int(found.group(1) or found.group(2)) if found else None
    if number in _NO_SPACE:
        reason, remedy = os.strerror(number), "free space or choose another folder with --lake, then run again"
    elif number in _NO_PERMISSION:
        reason, remedy = os.strerror(number), "make the folder writable for this user or choose another with --lake, then run again"
    else:
        text = re.split(r"\s(?:0: |stack backtrace)", text)[0]
        reason = f"{type(error).__name__}: {text[:_SAID]}{'...' if len(text) > _SAID else ''}"
        remedy = "check that the folder is a lake and its file system works, then run again; what is damaged comes back from a copy alone"
    return LakeError(f"cannot {action} at {path}: {reason}; {remedy}")


@contextmanager
def lake_errors(action: str, path: object) -> Iterator[None]:
    """Turn errors of the operating system within the block into a LakeError."""
    try:
        yield
    except OSError as error:
        raise lake_error(action, path, error) from error


class PartSync:
    """Makes parts survive a power cut, beside other work: workers need not wait for the disk.

    Parameters
    ----------
    lake : Path
    """

    def __init__(self, lake: Path) -> None:
        self._lake = lake
        self._threads = ThreadPoolExecutor(_SYNC_THREADS, thread_name_prefix="sync")
        self._files: list[tuple[Path, Future[None]]] = []

    def add(self, parts: Iterable[Part]) -> None:
        """Begin with some parts."""
        for part in parts:
            path = self._lake / part.table / part.path
            self._files.append((path, self._threads.submit(sync_path, path)))

    def finish(self) -> None:
        """Wait until all parts are safe, and their names.

        Raises
        ------
        LakeError
            The disk refused.
        """
        for path, file in self._files:
            with lake_errors("write a part", path):
                file.result()
        for folder in {path.parent for path, _ in self._files}:
            with lake_errors("write a part", folder):
                sync_path(folder)
        self.abandon()

    def abandon(self) -> None:
        """Leave it."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def sync_path(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class PartFile:
    """One Parquet file while it is being written: row groups in, a `Part` out.

    Parameters
    ----------
    lake : Path
    table : Table
    batch : str or None
        None: the table is not partitioned.
    name : str
        First part of the file's name; a random token follows, so that no file is ever written twice.
    schema : pyarrow.Schema
        Schema of the file.
    empty : collection of str
        Columns of which no values are expected: they are not compressed, which would be most of the work when many of a hundred columns are empty.
    few : collection of str
        Columns of which a few values are expected, again and again: their dictionary is all there is to store, and is not compressed either.
    sync : bool
        Let the closed file survive a power cut; False: `PartSync` does that.

    Raises
    ------
    LakeError
        The file cannot be written.
    """

    def __init__(
        self,
        lake: Path,
        table: Table,
        batch: str | None,
        name: str,
        schema: pa.Schema,
        *,
        empty: Collection[str] = frozenset(),
        few: Collection[str] = frozenset(),
        sync: bool = True,
    ) -> None:
        self._table, self._schema, self._sync = table, schema, sync
        self._folder = lake / table.name if batch is None else lake / table.name / f"{PARTITION}={validate_batch(batch)}"
        self._final = self._folder / f"{name}-{secrets.token_hex(6)}.parquet"
        self._unfinished = self._folder / f"{_UNFINISHED}{self._final.name}"
        self._action = f"write a part of {table.name}"
        self._bounds: dict[str, list[Any]] = {}
        names, bare = set(schema.names), {*empty, *few}
        self._nulls = {column: 0 for column in table.statistics if column in names}
        self.rows = 0
        with lake_errors(self._action, self._folder):
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True, exist_ok=True)
                sync_path(self._folder.parent)
            self._file: BinaryIO = self._unfinished.open("xb")
        self._writer = pq.ParquetWriter(
            self._file,
            schema,
            compression={leaf: "none" if item.name in bare else "zstd" for item in schema for leaf in _leaves(item.name, item.type)},
            compression_level={leaf: 1 for item in schema if item.name not in bare for leaf in _leaves(item.name, item.type)},
            use_dictionary=[item.name for item in table.columns if item.repeats and item.name in names and item.name not in empty],
            write_statistics=[item.name for item in table.columns if item.name in names and _has_order(item.type) and not item.is_json],
        )

    def write(self, values: pa.Table) -> None:
        """Add one row group, in the file's schema."""
        with lake_errors(self._action, self._folder):
            self._writer.write_table(values, row_group_size=max(values.num_rows, 1))
        self.rows += values.num_rows
        for column in self._nulls:
            self._nulls[column] += values[column].null_count
            present = [value for value in values[column].to_pylist() if value is not None]  # as quick as arrow's own, which takes long to load
            if present:
                self._bounds.setdefault(column, []).extend((min(present), max(present)))

    def close(self) -> Part:
        """Finish the file and give it its name: from now on it is complete."""
        with lake_errors(self._action, self._folder):
            self._writer.close()
            self._file.flush()
            if self._sync:
                os.fsync(self._file.fileno())
            self._file.close()
            size = self._unfinished.stat().st_size
            self._unfinished.replace(self._final)
            if self._sync:
                sync_path(self._folder)
        path = self._final.relative_to(self._folder.parent if self._table.partitioned else self._folder)
        return Part(self._table.name, path.as_posix(), size, self.rows, self._stats())

    def abandon(self) -> None:
        """Remove the unfinished file, whatever state it is in."""
        # Closing writes a footer, which fails again on a full disk; left open, the writer would try that when it is collected.
        with suppress(OSError, ValueError, pa.ArrowException):
            self._writer.close()
        with suppress(OSError, ValueError):
            self._file.close()
        with suppress(OSError):
            self._unfinished.unlink()

    def _stats(self) -> str:
        least = {column: _lower_bound(min(values)) for column, values in self._bounds.items()}
        most = {column: _upper_bound(max(values)) for column, values in self._bounds.items()}
        most = {column: value for column, value in most.items() if value is not None}
        return json.dumps({"numRecords": self.rows, "minValues": least, "maxValues": most, "nullCount": self._nulls})


class _Layout(NamedTuple):
    """What a writer asks of a table, worked out once: arrow takes as long to describe a hundred columns as to write them."""

    schema: pa.Schema
    types: dict[str, pa.DataType]
    weighers: dict[str, Callable[[Any], int]]
    required: tuple[str, ...]


@lru_cache(maxsize=64)
def _layout(table: Table) -> _Layout:
    schema = table.part_arrow
    types = {field.name: field.type for field in schema}
    return _Layout(schema, types, {name: _weigher(kind) for name, kind in types.items()}, tuple(field.name for field in schema if not field.nullable))


def _leaves(path: str, kind: pa.DataType) -> Iterator[str]:
    """List the paths of a column's own columns in Parquet: one, unless it is nested."""
    if pa.types.is_list(kind):
        yield from _leaves(f"{path}.list.element", kind.value_type)
    elif pa.types.is_struct(kind):
        for item in kind:
            yield from _leaves(f"{path}.{item.name}", item.type)
    elif pa.types.is_map(kind):
        yield from _leaves(f"{path}.key_value.key", kind.key_type)
        yield from _leaves(f"{path}.key_value.value", kind.item_type)
    else:
        yield path


def _has_order(kind: pa.DataType) -> bool:
    return not pa.types.is_nested(kind) and not pa.types.is_binary(kind)


class _Shape(NamedTuple):
    """What rows of the same columns and types have in common: the columns, the bytes of their values of fixed size, and where the others are.

    `sized` gives the texts and binaries of a row. With each list go the types of values that its column was seen to hold.
    """

    names: tuple[str, ...]
    fixed: int
    sized: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    lists: list[tuple[int, set[type]]]


class PartWriter:
    """Rows in, parts out, in bounded memory.

    A context manager: an exception within the block abandons what nobody has taken yet, otherwise the last part is closed at its end.

    Parameters
    ----------
    lake : Path
        Root of the lake.
    table : Table
    batch : str
        Key of the batch; the parts lie in its folder.
    name : str
        First part of the files' names, of ``A-Z a-z 0-9 . _ -``, such as the shard's. Need not be unique: a random token follows.
    rows : int
        A part is closed at this many rows.
    size : int
        A part is closed when the values of its text and binary columns reach this many bytes.
    sync : bool
        Let closed parts survive a power cut; False: `PartSync` does that.

    Raises
    ------
    BatchError
        The key or the name cannot name a file.
    LakeError
        A part cannot be written: no space, no permission. From every method.

    Examples
    --------
    >>> with PartWriter(lake, QUARANTINE, "20261121T101500-0007", "shard-3") as writer:  # doctest: +SKIP
    ...     writer.append({"path": "/in/a", "status": "corrupt"})
    ...     parts = writer.finish()
    """

    def __init__(self, lake: Path, table: Table, batch: str, name: str, *, rows: int = 2000, size: int = 48 * MIB, sync: bool = True) -> None:
        self._lake, self._table, self._batch, self._name = lake, table, validate_batch(batch), validate_batch(name)
        self._limits, self._sync = (rows, size), sync
        self._schema, self._types, self._weighers, self._required = _layout(table)
        self._repeating = [item.name for item in table.columns if item.repeats and item.name in self._types and not pa.types.is_nested(item.type)]
        self._group_rows = GROUP_ROWS if any(map(pa.types.is_binary, self._types.values())) else rows
        self._kinds_within: dict[str, set[type]] = {}
        self._shapes: dict[tuple[tuple[str, ...], tuple[type, ...]], _Shape] = {}
        self._last_kinds: tuple[tuple[str, ...], tuple[type, ...]] | None = None
        self._last_shape: _Shape
        self._rows: list[tuple[tuple[str, ...], tuple[object, ...]]] = []
        self._group_bytes = self._part_bytes = 0
        self._file: PartFile | None = None
        self._closed: list[Part] = []
        self._count = 0

    def append(self, row: Mapping[str, object]) -> None:
        """Add one row.

        Parameters
        ----------
        row : mapping of column name to value
            Columns that are not named are NULL; `batch` is not given. Timestamps are datetimes or integers, microseconds since 1970 UTC (see
            `microseconds`). Text that is not valid Unicode gets U+FFFD for each lone surrogate, and a number or time that its column cannot
            hold is NULL.

        Raises
        ------
        KeyError
            The table has no such column.
        ValueError
            A column that must not be NULL has no value.
        TypeError
            A value is of a type that its column cannot hold.
        """
        values: tuple[Any, ...] = tuple(row.values())
        # Rows of the same columns and types are checked once: a table has more columns than a row may cost microseconds. Most are as the last one.
        kinds = tuple(row), tuple(map(type, values))
        if kinds != self._last_kinds:
            self._last_shape = self._shapes.get(kinds) or self._check(row, kinds)
            self._last_kinds = kinds
        shape = self._last_shape
        weight = shape.fixed + sum(map(len, shape.sized(values)))
        for at, kinds_within in shape.lists:
            value = values[at]
            if kinds_within.issuperset(map(type, value)):
                weight += sum(map(len, value)) if kinds_within == _ONLY_TEXT else _FIXED_BYTES * len(value)
            else:
                weight += self._weigh(shape.names[at], value)
                kinds_within.update(map(type, value))
        self._rows.append((shape.names, values))
        self._group_bytes += weight
        self._part_bytes += weight
        rows, size = self._limits
        if self._part_bytes >= size or (self._file.rows if self._file else 0) + len(self._rows) >= rows:
            self._close_part()
        elif len(self._rows) >= self._group_rows or self._group_bytes >= GROUP_BYTES:
            self._flush()

    def _check(self, row: Mapping[str, object], kinds: tuple[tuple[str, ...], tuple[type, ...]]) -> "_Shape":
        """Check a row of columns and types that were not met before."""
        for name, value in row.items():
            if name not in self._weighers:
                msg = f"{self._table.name} has no column {name}"
                raise KeyError(msg)
            self._weigh(name, value)
        for name in self._required:
            if row.get(name) is None:
                msg = f"{self._table.name}.{name} must have a value"
                raise ValueError(msg)
        if len(self._shapes) >= _MAX_SHAPES:
            self._shapes.clear()
        names = self._rows[-1][0] if self._rows and self._rows[-1][0] == tuple(row) else tuple(row)
        places = [at for at, value in enumerate(row.values()) if value is not None]
        types = {at: self._types[names[at]] for at in places}
        sized = [at for at in places if pa.types.is_string(types[at]) or pa.types.is_binary(types[at])]
        lists = [(at, self._kinds_within.setdefault(names[at], set())) for at in places if pa.types.is_list(types[at])]
        fixed = _FIXED_BYTES * (len(places) - len(sized) - len(lists))
        shape = self._shapes[kinds] = _Shape(names, fixed, _getter(sized), lists)
        return shape

    def _weigh(self, name: str, value: object) -> int:
        if value is None:
            return 0
        try:
            return self._weighers[name](value)
        except TypeError:
            msg = f"{self._table.name}.{name} is {self._types[name]}; it cannot hold {type(value).__name__}"
            raise TypeError(msg) from None

    def take(self) -> list[Part]:
        """Return the parts that were completed since the last call."""
        parts, self._closed = self._closed, []
        return parts

    def finish(self) -> list[Part]:
        """Close the last part.

        Returns
        -------
        list of Part
            All parts that were not taken yet.
        """
        self._close_part()
        return self.take()

    def abandon(self) -> None:
        """Remove the unfinished file, and the parts that nobody has taken."""
        if self._file is not None:
            self._file.abandon()
            self._file = None
        self._rows.clear()
        self._group_bytes = self._part_bytes = 0
        for part in self.take():
            with suppress(OSError):
                (self._lake / part.table / part.path).unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.abandon()
            return
        try:
            self._close_part()
        except BaseException:
            self.abandon()
            raise

    def _flush(self) -> None:
        if not self._rows:
            return
        names = self._rows[0][0]
        if all(row[0] is names or row[0] == names for row in self._rows):
            values: dict[str, Sequence[Any]] = dict(zip(names, zip(*[row[1] for row in self._rows], strict=True), strict=True))
        else:
            rows = [dict(zip(*row, strict=True)) for row in self._rows]
            values = {name: [row.get(name) for row in rows] for name in self._types}
        none = (None,) * len(self._rows)
        columns = [_array(values.get(name, none), kind) for name, kind in self._types.items()]
        if self._file is None:
            empty = {name for name, column in zip(self._types, columns, strict=True) if column.null_count == len(column)}
            few = {name for name in self._repeating if name in values and name not in empty and len(set(values[name])) <= _FEW}
            name = f"{self._name}-{self._count}"
            self._file = PartFile(self._lake, self._table, self._batch, name, self._schema, empty=empty, few=few, sync=self._sync)
            self._count += 1
        self._file.write(pa.Table.from_arrays(columns, schema=self._schema))
        self._rows.clear()
        self._group_bytes = 0

    def _close_part(self) -> None:
        self._flush()
        if self._file is None:
            return
        part = self._file.close()
        logger.debug("part %s of %s: %d rows, %d bytes", part.path, part.table, part.rows, part.size)
        self._closed.append(part)
        self._file = None
        self._part_bytes = 0


def remove_parts(lake: Path, table: Table, batch: str, prefix: str, *, only_unfinished: bool = False, keep: Collection[str] = frozenset()) -> None:
    """Remove files that were written under names that begin so, and that no commit names; what cannot be removed stays.

    Parameters
    ----------
    lake : Path
    table : Table
    batch : str
    prefix : str
        Beginning of the names that their writers were given.
    only_unfinished : bool
        Leave complete ones alone.
    keep : collection of str
        Names of files to leave alone.
    """
    folder = lake / table.name / f"{PARTITION}={validate_batch(batch)}"
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208 - names are all that is needed
            is_unfinished = name.startswith(_UNFINISHED)
            if name.removeprefix(_UNFINISHED).startswith(prefix) and (is_unfinished or not only_unfinished) and name not in keep:
                with suppress(OSError):
                    (folder / name).unlink()


def part_from_table(lake: Path, table: Table, batch: str, name: str, values: pa.Table) -> Part:
    """Write a small table that is already in memory as one part.

    Parameters
    ----------
    lake : Path
    table : Table
    batch : str
    name : str
        First part of the file's name.
    values : pyarrow.Table
        Columns of the table in any order; nullable ones may be missing, `batch` is ignored. Types are cast where nothing is lost.

    Raises
    ------
    KeyError
        A column is unknown, or one that must not be NULL is missing.
    LakeError
        The part cannot be written.
    """
    schema = table.part_arrow
    unknown = set(values.column_names) - set(table.column_names)
    missing = {field.name for field in schema if not field.nullable} - set(values.column_names)
    if unknown or missing:
        msg = f"{table.name}: unknown columns {sorted(unknown)}, missing columns {sorted(missing)}"
        raise KeyError(msg)
    columns = [
        values[field.name].cast(field.type) if field.name in values.column_names else pa.nulls(values.num_rows, field.type) for field in schema
    ]
    conformed = pa.Table.from_arrays(columns, schema=schema)
    conformed.validate()
    file = PartFile(lake, table, batch, validate_batch(name), schema)
    try:
        for start in range(0, conformed.num_rows, GROUP_ROWS):
            file.write(conformed.slice(start, GROUP_ROWS))
        return file.close()
    except BaseException:
        file.abandon()
        raise


def _getter(places: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Return what takes values out of a row; `itemgetter` alone gives no tuple of a single one."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda values: tuple(values[at] for at in places)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if values[0] is None and values.count(None) == len(values):  # counting takes as long as converting where most are something
        return pa.nulls(len(values), kind)
    if pa.types.is_timestamp(kind):
        values = [_time(value) for value in values]
    try:
        return pa.array(values, kind)
    except (UnicodeEncodeError, OverflowError, pa.ArrowInvalid):
        # Rare: some value is not valid Unicode or out of range, so look at each.
        return pa.array([_storable(value, kind) for value in values], kind)


def _weigher(kind: pa.DataType) -> Callable[[Any], int]:
    """Return what gives the bytes of a value of this Arrow type and raises TypeError for a value that is none."""
    # pyarrow would store bytes as text without looking whether they are UTF-8, and text as a list of characters.
    if pa.types.is_string(kind):
        return _sized(str)
    if pa.types.is_binary(kind):
        return _sized(bytes, bytearray)
    if pa.types.is_list(kind):
        weigh, items = _weigher(kind.value_type), _sized(list, tuple)
        return lambda value: items(value) + sum(weigh(item) for item in value if item is not None)
    if pa.types.is_boolean(kind):
        return _fixed(bool)
    if pa.types.is_integer(kind):
        return _fixed(int, numbers.Integral)
    if pa.types.is_floating(kind):
        return _fixed(float)
    if pa.types.is_date(kind):
        return _fixed(dt.date)
    if pa.types.is_timestamp(kind):
        return _fixed(int, dt.datetime)
    msg = f"no rule for columns of type {kind}"
    raise TypeError(msg)


def _sized(*kinds: type[Sized]) -> Callable[[Any], int]:
    def weigh(value: Any) -> int:
        if not isinstance(value, kinds):
            raise TypeError
        return len(value)

    return weigh


def _fixed(*kinds: type) -> Callable[[Any], int]:
    def weigh(value: Any) -> int:
        if not isinstance(value, kinds):
            raise TypeError
        return _FIXED_BYTES

    return weigh


def _time(value: Any) -> int | dt.datetime | None:
    if isinstance(value, int) and not _FIRST_MICROSECOND <= value <= _LAST_MICROSECOND:
        return None
    return value  # type: ignore[no-any-return]


def _storable(value: Any, kind: pa.DataType) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if pa.types.is_list(kind) and value is not None:
        return [_storable(item, kind.value_type) for item in value]
    if pa.types.is_integer(kind) and value is not None:
        return value if -(1 << (kind.bit_width - 1)) <= value < 1 << (kind.bit_width - 1) else None
    return value


def _lower_bound(value: Any) -> Any:
    if isinstance(value, str):
        return value[:STATISTICS_CHARACTERS]
    return value.isoformat() if isinstance(value, dt.date) else value


def _upper_bound(value: Any) -> Any:
    """Shorten long text to one that sorts after everything it begins; None where there is none."""
    if not isinstance(value, str) or len(value) <= STATISTICS_CHARACTERS:
        return _lower_bound(value)
    for end in range(STATISTICS_CHARACTERS, 0, -1):
        following = ord(value[end - 1]) + 1
        if following <= 0x10FFFF:
            return value[: end - 1] + chr(0xE000 if 0xD800 <= following <= 0xDFFF else following)
    return None
