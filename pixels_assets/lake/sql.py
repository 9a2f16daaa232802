"""SQL over the lake: a DuckDB connection that sees every table, has helpers for DICOM, and can write nothing.

Holds what is opened for a statement, which statements are let through, and how a result of any size becomes a file. Must not write to the lake.

DuckDB reads the tables as Arrow data sets of one Delta version each: only the columns and parts that a statement needs are read, and parts that came
before a column was added have NULL there. So DuckDB itself opens no file at all but those that the caller attaches or writes. The parts of a table
are described when a statement reads it: a lake has thousands, and most statements name one table.
"""

import io
import os
import re
import secrets
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, redirect_stdout, suppress
from difflib import get_close_matches
from functools import cache, cached_property
from pathlib import Path
from select import select
from typing import IO, Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable

from pixels_assets.dicom.paths import json_path
from pixels_assets.errors import PixelsError, UsageError
from pixels_assets.lake.commit import is_table, open_table
from pixels_assets.lake.query import dataset, require_lake, table_names
from pixels_assets.lake.schema import TABLES

SHOWN_ROWS = 200
"""Rows that a table for people shows."""

_WIDE = 1_000_000
_LISTENING_SECONDS = 0.1
_T = TypeVar("_T")
_READERS = {".csv": "read_csv", ".tsv": "read_csv", ".txt": "read_csv", ".json": "read_json", ".jsonl": "read_json", ".ndjson": "read_json"}
_READERS |= {".parquet": "read_parquet", ".pq": "read_parquet"}
_STATEMENTS = {"SELECT", "EXPLAIN", "CREATE", "DROP", "VARIABLE_SET"}
_EXPLAIN = re.compile(r"\A\s*explain(\s+analyze|\s*\([^)]*\))*", re.IGNORECASE)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MISSING_TABLE = re.compile(r"Table with name (.+?) does not exist")
_MISSING_COLUMN = re.compile(r"(?:column named|Referenced column|Table \".*?\" does not have a column named) \"(.+?)\"")
_FROM_PYTHON = re.compile(r"executing the UDF: \w+: (.*?)(?:\n|\Z)", re.DOTALL)

# `_text` gives the DICOM text form of a name, whose JSON is an object of its groups (DICOM PS3.18 F.2.2); an item of a sequence stays JSON.
FUNCTIONS = {
    "tag(meta, name)": "First value of an attribute, as text; NULL when there is none.",
    "tags(meta, name)": "All values of an attribute, as a list of texts, through all items of the sequences on the way.",
    "dicom_date(text)": "A DA value as a DATE; NULL when it is none.",
    "dicom_time(text)": "A TM value as a TIME; NULL when it is none.",
    "age_years(age)": "An AS value such as `025Y` or `018M` in years; NULL when it is none.",
    "age_years(birth, day)": "Whole years from one DATE to another; NULL when that is negative.",
    "age_years(age, birth, day)": "The age as written, else as it follows from the dates.",
}
"""The functions that `connect` adds, and what they give."""

_MACROS = """
create macro _text(v) as case
    when v[1] <> '{' then v
    when v[3:6] in ('Alph', 'Ideo', 'Phon') then rtrim(concat(v ->> 'Alphabetic', '=', v ->> 'Ideographic', '=', v ->> 'Phonetic'), '=')
    else v end;
create macro tag(meta, name) as list_transform(json_extract_string(meta, _json_path(name))[1:1], lambda v: _text(v))[1];
create macro tags(meta, name) as list_transform(json_extract_string(meta, _json_path(name)), lambda v: _text(v));
create macro dicom_date(text) as try_cast(try_strptime(trim(text), ['%Y%m%d', '%Y.%m.%d']) as date);
create macro _time(digits) as case when regexp_full_match(digits, '\\d{2}(\\d{2}(\\d{2}(\\.\\d{1,6})?)?)?') then
    try_cast(concat(digits[1:2], ':', coalesce(nullif(digits[3:4], ''), '00'), ':', coalesce(nullif(digits[5:], ''), '00')) as time) end;
create macro dicom_time(text) as _time(replace(trim(text), ':', ''));
create macro _age(age) as try_cast(regexp_extract(age, '^\\s*(\\d{1,3})[DWMY]\\s*$', 1) as double)
    / case regexp_extract(age, '([DWMY])\\s*$', 1) when 'Y' then 1 when 'M' then 12 when 'W' then 365.25 / 7 when 'D' then 365.25 end;
create macro _years(birth, day) as case when day >= birth then cast(date_sub('year', birth, day) as double) end;
create macro age_years(age) as _age(age), (birth, day) as _years(birth, day), (age, birth, day) as coalesce(_age(age), _years(birth, day));
"""


def connect(lake: Path, attached: Mapping[str, object] | None = None, *, writes: Sequence[str] = ()) -> duckdb.DuckDBPyConnection:
    """Open an in-memory DuckDB with every table of the lake as a view; nothing can be written to the lake through it.

    Parameters
    ----------
    lake : Path
    attached : mapping of str to object, optional
        More tables by name: a path of a CSV, JSON or Parquet file, of a folder of Parquet files, or of a Delta table, or a data frame or Arrow table.
    writes : sequence of str
        Files that results may be written to, see `write`.

    Raises
    ------
    UsageError
        There is no lake, or what is to be attached has a name that is taken, or is not there.
    """
    require_lake(lake)
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_persistent_secrets": False,
            "temp_directory": _spill_folder(),
        }
    )
    connection.execute("set timezone = 'UTC'; set enable_progress_bar = false")  # the bar goes to stdout
    connection.create_function("_json_path", json_path, [str], str)
    connection.execute(_MACROS)
    for name in table_names(lake):
        is_delta = is_table(lake, name)
        connection.register(name, _Deferred(open_table(lake, name)) if is_delta else dataset(lake, name))
    files = [_attach(connection, name, value, table_names(lake)) for name, value in (attached or {}).items()]
    connection.execute("set allowed_paths = $1", [[*(str(path) for path in files if path and path.is_file()), *writes]])
    connection.execute("set allowed_directories = $1", [[str(path) for path in files if path and path.is_dir()]])
    connection.execute("set enable_external_access = false; set lock_configuration = true")
    return connection


def query(connection: duckdb.DuckDBPyConnection, statement: str, parameters: Sequence[object] = ()) -> duckdb.DuckDBPyRelation:
    """Run statements that only read, and give the result of the last one, which is computed when it is asked for.

    Views, tables and macros can be created; they live as long as the connection.

    Raises
    ------
    UsageError
        A statement is malformed, writes, or names what is not there: the message says what is near.
    """
    with _in_plain_words(connection):
        found = connection.extract_statements(statement)
        if not found:
            msg = 'there is no statement; write one such as "select Modality, count(*) from object_catalog group by 1"'
            raise UsageError(msg)
        for item in found:
            _require_reading(connection, item)
        relation: duckdb.DuckDBPyRelation | None = connection.sql(statement, params=list(parameters) or None)
    if relation is None:
        msg = "the last statement gives no rows; end with a select"
        raise UsageError(msg)
    return relation


def readable(connection: duckdb.DuckDBPyConnection, error: duckdb.Error) -> PixelsError:
    """Say what is wrong with a statement, in DuckDB's words where they help, with near names where they do not."""
    text = str(error).strip()
    table, column, own = _MISSING_TABLE.search(text), _MISSING_COLUMN.search(text), _FROM_PYTHON.search(text)
    if own:
        text = own[1]
    elif "Invalid LIST argument during lambda function binding" in text:
        text += "\ntag() and tags() take a column with DICOM JSON and one name between quotes, as in tag(meta, 'PatientName')"
    elif table:
        names = [name for (name,) in connection.execute("select view_name from duckdb_views() where not internal").fetchall()]
        text = f"there is no table {table[1]!r}; " + _near(table[1], names, f"the tables are {', '.join(sorted(names))}")
    elif column and "Candidate bindings" not in text:
        names = sorted({name for item in TABLES.values() for name in item.column_names})
        text = f"there is no column {column[1]!r}; " + _near(column[1], names, "`describe TABLE` lists the columns of one")
    if isinstance(error, duckdb.PermissionException):
        text += "; attach a file of your own with --attach NAME=FILE"
    is_ours = isinstance(error, duckdb.ProgrammingError | duckdb.DataError | duckdb.NotSupportedError | duckdb.PermissionException)
    return UsageError(text) if is_ours else PixelsError(text)


@contextmanager
def _in_plain_words(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    try:
        yield
    except duckdb.Error as error:
        raise readable(connection, error) from error


@contextmanager
def _aside(connection: duckdb.DuckDBPyConnection) -> Iterator[ThreadPoolExecutor]:
    """Give a thread to use a connection in, whose work ends when the block ends badly: DuckDB does not hear Ctrl-C while it writes."""
    with _in_plain_words(connection), ThreadPoolExecutor(1) as thread:
        try:
            yield thread
        except BaseException:
            connection.interrupt()
            raise


def _result(working: Future[_T]) -> _T:
    while not wait([working], _LISTENING_SECONDS).done:
        pass  # since polars is loaded, a wait without end does not hear Ctrl-C
    return working.result()


def write(relation: duckdb.DuckDBPyRelation, path: str, kind: str) -> None:
    """Write a result to a file or pipe in little memory, however large it is.

    Parameters
    ----------
    relation : DuckDBPyRelation
        Of a connection that was opened with this path in `writes`.
    path : str
    kind : str
        ``csv``, ``parquet``, or ``json``: an array with one object on each line.
    """
    if kind == "parquet":
        relation.write_parquet(path, compression="zstd")
    elif kind == "csv":
        relation.write_csv(path, header=True)
    else:
        relation.query("result", f"copy (from result) to {_quoted(path)} (format json, array true)")


def write_stream(lake: Path, statement: str, stream: IO[bytes], kind: str, attached: Mapping[str, object] | None = None) -> None:
    """Run a statement and write its result to a stream as it comes.

    Raises
    ------
    UsageError
        See `query`.
    BrokenPipeError
        Nobody reads the stream any more.
    """
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as source, open(writing, "wb", buffering=0) as end:  # noqa: PTH123 - descriptors
        path = f"/dev/fd/{writing}"
        with connect(lake, attached, writes=[path]) as connection, _aside(connection) as thread:

            def work() -> None:
                with end:
                    write(query(connection, statement), path, kind)

            working = thread.submit(work)
            try:
                while select([source], [], []) and (chunk := source.read(1 << 16)):
                    stream.write(chunk)
            except BaseException:
                source.close()  # stops DuckDB at its next write
                raise
            _result(working)


def write_file(lake: Path, statement: str, path: Path, kind: str, attached: Mapping[str, object] | None = None) -> None:
    """Run a statement and write its result to a file, which appears when it is complete.

    Raises
    ------
    UsageError
        See `query`; or the file would lie in the lake, or its folder is not there.
    """
    with unfinished(lake, path) as file, connect(lake, attached, writes=[str(file)]) as connection, _aside(connection) as thread:
        _result(thread.submit(lambda: write(query(connection, statement), str(file), kind)))


@contextmanager
def unfinished(lake: Path, path: Path) -> Iterator[Path]:
    """Give a file beside the wanted one to write to; it takes the wanted name when the block ends well, and is gone otherwise.

    A pipe or a device is given itself, and so is what a link leads to: a name stays what it is.

    Raises
    ------
    UsageError
        The file would lie in the lake, or its folder is not there.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    target = Path(os.path.realpath(path))
    if target.is_relative_to(lake.resolve()):
        msg = f"{path} lies in the lake; write the result somewhere else"
        raise UsageError(msg)
    if target.is_dir() or not target.parent.is_dir():
        msg = f"{path} cannot be written: " + ("it is a folder" if target.is_dir() else f"there is no folder {target.parent}")
        raise UsageError(msg)
    file = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield file
        file.replace(target)
    except OSError as error:
        msg = f"{path} cannot be written ({error.strerror}); choose another file"
        raise PixelsError(msg) from error
    finally:
        with suppress(OSError):
            file.unlink()


def as_text(lake: Path, statement: str, attached: Mapping[str, object] | None = None, *, width: int | None = None) -> str:
    """Run a statement and draw the first rows of its result as a table.

    Parameters
    ----------
    lake : Path
    statement : str
    attached : mapping of str to object, optional
        See `connect`.
    width : int or None
        Characters of a line: columns that do not fit are left out, which the table says. None: as wide as it is.

    Raises
    ------
    UsageError
        See `query`.
    """
    drawn = io.StringIO()
    with connect(lake, attached) as connection, _aside(connection) as thread:
        rows = pa.table(_result(thread.submit(lambda: query(connection, statement).limit(SHOWN_ROWS + 1).to_arrow_table())))
        with redirect_stdout(drawn):
            connection.from_arrow(rows.slice(0, SHOWN_ROWS)).show(max_rows=SHOWN_ROWS, max_width=width or _WIDE, max_col_width=width or _WIDE)
    more = f"\nthere are more than these {SHOWN_ROWS} rows; --format csv, json or parquet gives all" if rows.num_rows > SHOWN_ROWS else ""
    return drawn.getvalue().rstrip("\n") + more


class _Deferred(ds.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """One version of a Delta table, as DuckDB reads data sets: it asks for `schema` at once, and for a `scanner` when a statement reads the table."""

    def __init__(self, delta: DeltaTable) -> None:  # not that of Dataset, which only says that there is none
        self._delta = delta
        self._schema = pa.schema(delta.schema().to_arrow())

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    @cached_property
    def _parts(self) -> ds.Dataset:
        return self._delta.to_pyarrow_dataset()

    def scanner(self, **options: Any) -> ds.Scanner:
        return self._parts.scanner(**options)


def _require_reading(connection: duckdb.DuckDBPyConnection, statement: Any) -> None:
    kind = statement.type.name
    if kind == "EXPLAIN":
        # It may run what it explains.
        rest = connection.extract_statements(_EXPLAIN.sub("", statement.query, count=1))
        kind = "EXPLAIN" if [item.type.name for item in rest] == ["SELECT"] else "EXPLAIN of a statement that is no SELECT"
    if kind not in _STATEMENTS:
        msg = f"the lake can only be read: {kind.replace('_', ' ')} is refused; to save a result use `pixels sql -o FILE`, or .pl() in Python"
        raise UsageError(msg)


def _attach(connection: duckdb.DuckDBPyConnection, name: str, value: object, taken: Collection[str]) -> Path | None:
    """Make a table of the caller's own visible; returns the file or folder that it lies in."""
    if not _IDENTIFIER.fullmatch(name) or name.lower() in taken:
        msg = f"{name!r} cannot name an attached table: " + (
            "the lake has a table of that name" if name.lower() in taken else "use letters, digits and underscores, not beginning with a digit"
        )
        raise UsageError(msg)
    if not isinstance(value, str | os.PathLike):
        connection.register(name, value)
        return None
    path = Path(value).expanduser().absolute()
    if not path.exists():
        msg = f"{path} cannot be attached as {name}: it does not exist"
        raise UsageError(msg)
    if path.is_dir() and DeltaTable.is_deltatable(str(path)):
        connection.register(name, DeltaTable(path).to_pyarrow_dataset())
        return None
    suffix = next((suffix for suffix in reversed(path.suffixes) if suffix.lower() not in {".gz", ".zst"}), "").lower()
    reader = "read_parquet" if path.is_dir() else _READERS.get(suffix)
    if reader is None:
        msg = f"{path} cannot be attached as {name}: name a file that ends in {', '.join(_READERS)}, a folder of Parquet files, or a Delta table"
        raise UsageError(msg)
    files = _quoted(f"{path}/**/*.parquet" if path.is_dir() else str(path))
    try:
        connection.execute(f"create view {name} as from {reader}({files})")
    except duckdb.Error as error:
        msg = f"{path} cannot be attached as {name}: {str(error).strip().splitlines()[0]}"
        raise UsageError(msg) from error
    return path


def _near(name: str, names: Sequence[str], otherwise: str) -> str:
    by_lower = {item.lower(): item for item in names}
    near = [by_lower[match] for match in get_close_matches(name.lower(), by_lower, 3)]
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


@cache
def _spill_folder() -> str:
    """Folder of this process, for what does not fit into memory; only its user may look into it, and it goes with the process."""
    _SPILLS.append(tempfile.TemporaryDirectory(prefix="pixels-sql-", ignore_cleanup_errors=True))
    return _SPILLS[0].name


_SPILLS: list[tempfile.TemporaryDirectory[str]] = []
