"""What the server knows of a lake: studies and series in memory, instances in a DuckDB file of its own, at one version of the lake's tables.

Holds loading, freshness and look-ups. Must not know HTTP or the meaning of a search. Nothing is written to the lake.

Whether the lake has moved on is seen by one look for the next file of a table's log, at every request; so an ingest shows without a restart.
"""

import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable
from numpy.typing import NDArray

from pixels_assets.dicomweb.caching import Cache
from pixels_assets.dicomweb.columns import Level, Rows, TextColumn, make_column
from pixels_assets.dicomweb.model import INSTANCE, KNOWN, SERIES, STUDY, Known
from pixels_assets.errors import UsageError
from pixels_assets.lake.commit import open_table
from pixels_assets.lake.query import exists
from pixels_assets.lake.schema import OBJECT_CATALOG, RAW_FILES

logger = logging.getLogger(__name__)

_MEMORY = "1GB"
_KEPT_INSTANCES = 200_000
_PATIENCE, _AT_ONCE = 4.0, 2.0
"""A load that took more than so many seconds is not repeated before so many times its length have passed."""
ROLLUPS = ("studies", "series", "instances")
"""Tables of the hierarchy."""
_KEYS = ("StudyInstanceUID", "SeriesInstanceUID")
_STUDY_ORDER = "StudyDate desc nulls last, StudyTime desc nulls last, StudyInstanceUID"
_SERIES_ORDER = "SeriesNumber nulls last, SeriesInstanceUID"
_PLACE = ("path", "original_path", "length", "content_hash", "batch", "TransferSyntaxUID")


@dataclass(frozen=True, slots=True)
class Instance:
    """One object that can be served.

    Parameters
    ----------
    study, series, uid : str
        Its UIDs.
    path, original_path : str
        Address of the object, and of the file that it lies in.
    length : int
        Bytes of the object.
    content_hash : str
        SHA-256 of its bytes, lower-case hex.
    batch : str
    transfer_syntax : str
        As its file declares it, or as it was found where that declares none.
    source_length, source_mtime : int
        Bytes of the file that it lies in, and when that was modified, microseconds since 1970 UTC, as catalogued.
    values : dict of str to object
        Values of instance-level attributes, by keyword.
    """

    study: str
    series: str
    uid: str
    path: str
    original_path: str
    length: int
    content_hash: str
    batch: str
    transfer_syntax: str
    source_length: int
    source_mtime: int
    values: dict[str, object]


@dataclass(frozen=True, slots=True)
class SeriesInstances:
    """The instances of one series, in order."""

    instances: tuple[Instance, ...]
    by_uid: dict[str, Instance]


Mark = tuple[int, int]


@dataclass(slots=True, weakref_slot=True)
class Snapshot:
    """The lake at one moment.

    Parameters
    ----------
    number : int
        Counts up with every load.
    versions : dict of str to int
        Versions of the tables that it was read from.
    marks : dict of str to (int, int) or None
        What tells each of these tables from another of the same name.
    studies, series : Level
        Series of one study lie side by side.
    study_of : numpy.ndarray of int32
        Row of the study, for each series.
    first_series : numpy.ndarray of int32
        Row of the first series of each study, and behind the last one the number of series.
    table : str
        Name of the table of instances.
    files : dict of str to list of str
        Parquet files of `object_catalog` by batch.
    roots : tuple of str
        Addresses of the source folders that objects come from.
    """

    number: int
    versions: dict[str, int]
    marks: dict[str, Mark | None]
    studies: Level
    series: Level
    study_of: Rows
    first_series: NDArray[np.int64]
    table: str
    files: dict[str, list[str]]
    roots: tuple[str, ...]
    seconds: float = 0.0
    loaded: float = 0.0
    instances: int = 0
    found: Cache[Any] = field(default_factory=lambda: Cache(64 << 20, lambda rows: 256 + getattr(rows, "nbytes", 0)))
    """Rows that searches found, by what they asked for."""

    def rows_of_series(self, keys: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Rows of series, by UIDs of study and series; without those that there are not."""
        found = {}
        for study in {study for study, _ in keys}:
            for place in self.studies.find("StudyInstanceUID", study):
                rows = np.arange(self.first_series[place], self.first_series[place + 1], dtype=np.int32)
                found.update({(study, str(uid)): int(row) for row, (uid,) in zip(rows, self.series.take(rows, ["SeriesInstanceUID"]), strict=True)})
        return found


class Index:
    """The lake as the server sees it.

    Parameters
    ----------
    lake : Path

    Raises
    ------
    UsageError
        There is no lake in the folder.
    """

    def __init__(self, lake: Path) -> None:
        if not exists(lake):
            msg = f"there is no lake in {lake}; make one with `pixels ingest SRC --lake {lake}`"
            raise UsageError(msg)
        self._lake = lake
        self._folder = Path(tempfile.mkdtemp(prefix="pixels-serve-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._database = duckdb.connect(str(self._folder / "instances.duckdb"), config={"memory_limit": _MEMORY, "preserve_insertion_order": "true"})
        self._database.execute(f"set temp_directory = '{self._folder / 'spill'}'")
        self._numbers = count(1)
        self._turn = threading.Lock()
        self._read: weakref.WeakValueDictionary[str, Snapshot] = weakref.WeakValueDictionary()
        """States that somebody still reads, by their tables of instances."""
        self._series: Cache[SeriesInstances] = Cache(_KEPT_INSTANCES, lambda found: 1 + len(found.instances))
        self._snapshot = self._load()

    def close(self) -> None:
        """Remove the files of its own."""
        self._database.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    # --- freshness

    @property
    def snapshot(self) -> Snapshot:
        """The last state that was loaded."""
        return self._snapshot

    def is_stale(self) -> bool:
        """Whether the lake has moved on, and loading it again would not take up most of the time."""
        now, found = time.monotonic(), self._snapshot
        if now - found.loaded < _PATIENCE * found.seconds and found.seconds > _AT_ONCE:
            return False
        return self._has_moved_on()

    def _has_moved_on(self) -> bool:
        for name, version in self._snapshot.versions.items():
            if _stat(self._log_file(name, version + 1)) is not None:
                return True
            mark = self._mark(name, version)  # of a lake that was made anew, versions begin again
            if mark is not None and mark != self._snapshot.marks[name]:
                return True
        return OBJECT_CATALOG.name in self._snapshot.versions and len(self._snapshot.versions) == 1 and self._has_rollups()

    def _mark(self, name: str, version: int) -> Mark | None:
        """Tell the file of a version from any other, or the first one's where that is not there; None where both are not."""
        found = _stat(self._log_file(name, version)) or _stat(self._log_file(name, 0))
        return (found.st_ino, found.st_mtime_ns) if found is not None else None

    def _log_file(self, name: str, version: int) -> str:
        return f"{self._lake}/{name}/_delta_log/{version:020}.json"  # looked at with every request: a path's object costs more than the look

    def refresh(self) -> Snapshot:
        """Load the lake's present state, once however many threads ask."""
        with self._turn:
            if self._has_moved_on():
                self._snapshot = self._load()
                self._drop_unread()
            return self._snapshot

    def _drop_unread(self) -> None:
        """Remove tables of states that nobody reads: a request that began on an old state ends on it, however many there were since."""
        cursor = self._database.cursor()
        for (name,) in cursor.execute("select table_name from duckdb_tables() where table_name like 'instances\\_%' escape '\\'").fetchall():
            if name not in self._read:
                cursor.execute(f'drop table "{name}"')

    # --- loading

    def _load(self) -> Snapshot:
        started = time.monotonic()
        number = next(self._numbers)
        table = f"instances_{number}"
        names = [OBJECT_CATALOG.name, *(ROLLUPS if self._has_rollups() else ())]
        # The log is looked at before the data, so that what comes meanwhile is seen as a change.
        deltas = {name: open_table(self._lake, name) for name in names}
        cursor = self._database.cursor()
        for name, delta in deltas.items():
            cursor.register(name, delta.to_pyarrow_dataset())
        columns = {name: {item.name for item in delta.schema().fields} for name, delta in deltas.items()}
        if len(deltas) > 1:
            studies = cursor.execute(_level_sql(STUDY, "studies", columns["studies"], _STUDY_ORDER)).to_arrow_table()
            series = cursor.execute(_level_sql(SERIES, "series", columns["series"], _SERIES_ORDER)).to_arrow_table()
            cursor.execute(_instances_sql(table, "instances", columns["instances"]))
        else:
            served = f"served_{number}"
            cursor.execute(_served_sql(served, columns[OBJECT_CATALOG.name]))
            series = cursor.execute(_series_sql(served)).to_arrow_table()
            studies = cursor.execute(_studies_sql(served)).to_arrow_table()
            cursor.execute(_instances_sql(table, served, None))
            cursor.execute(f'drop table "{served}"')
        total = cursor.execute(f'select count(*) from "{table}"').fetchone()  # noqa: S608 - a name of ours
        for name in deltas:
            cursor.unregister(name)
        known = pc.index_in(series["StudyInstanceUID"], studies["StudyInstanceUID"].combine_chunks()).fill_null(-1).to_numpy().astype(np.int32)
        order = np.argsort(known, kind="stable")
        order = order[known[order] >= 0]  # of tables that are being brought up to date, one may be ahead
        series, study_of = series.drop_columns(["StudyInstanceUID"]).take(pa.array(order)), known[order]
        levels = _level(studies, STUDY), _level(series, SERIES)
        uids = levels[0].columns["StudyInstanceUID"]
        assert isinstance(uids, TextColumn)
        levels[1].columns["StudyInstanceUID"] = uids.of_rows(study_of)
        snapshot = Snapshot(
            number=number,
            versions={name: delta.version() for name, delta in deltas.items()},
            marks={name: self._mark(name, delta.version()) for name, delta in deltas.items()},
            studies=levels[0],
            series=levels[1],
            study_of=study_of,
            first_series=np.searchsorted(study_of, np.arange(studies.num_rows + 1)),
            table=table,
            files=self._files(deltas[OBJECT_CATALOG.name]),
            roots=self._roots(),
            instances=int(total[0]) if total else 0,
        )
        self._read[table] = snapshot
        snapshot.loaded = time.monotonic()
        snapshot.seconds = snapshot.loaded - started
        logger.info("%d studies, %d series, %d instances loaded in %.2f s", studies.num_rows, series.num_rows, snapshot.instances, snapshot.seconds)
        return snapshot

    def _has_rollups(self) -> bool:
        """Whether the tables of studies, series and instances are there and were filled."""
        found = [self._lake / name for name in ROLLUPS]
        return all(DeltaTable.is_deltatable(str(path)) for path in found) and any(found[-1].rglob("*.parquet"))

    def _files(self, catalog: DeltaTable) -> dict[str, list[str]]:
        """Parquet files of the catalog by batch."""
        actions = pa.table(catalog.get_add_actions(flatten=True))
        files: dict[str, list[str]] = {}
        for path, batch in zip(actions["path"].to_pylist(), actions["partition.batch"].to_pylist(), strict=True):
            files.setdefault(batch, []).append(str(self._lake / OBJECT_CATALOG.name / path))
        return files

    def _roots(self) -> tuple[str, ...]:
        sources = open_table(self._lake, RAW_FILES.name).to_pyarrow_dataset().to_table(columns=["source"])["source"]
        return tuple(sorted(source for source in pc.unique(sources).to_pylist() if source))

    # --- instances

    def peek(self, snapshot: Snapshot, study: str, series: str) -> SeriesInstances | None:
        """Instances of a series where they are at hand, without waiting."""
        return self._series.peek((snapshot.number, study, series))

    def instances_of(self, snapshot: Snapshot, study: str, series: str) -> SeriesInstances:
        """Instances of a series; none when there is no such series in the study."""
        return self._series.get((snapshot.number, study, series), lambda: self._read_series(snapshot, study, series))

    def _read_series(self, snapshot: Snapshot, study: str, series: str) -> SeriesInstances:
        found = self.select(snapshot, "StudyInstanceUID = ? and SeriesInstanceUID = ?", [study, series])
        return SeriesInstances(tuple(found), {item.uid: item for item in found})

    def select(self, snapshot: Snapshot, where: str, parameters: Sequence[object]) -> list[Instance]:
        """Instances for which an SQL condition holds, in order."""
        cursor = self._database.cursor()
        result = cursor.execute(f'select * from "{snapshot.table}" where {where}', list(parameters))  # noqa: S608 - both are ours, values are parameters
        names = [item[0] for item in result.description]
        places = {name: number for number, name in enumerate(names)}
        values = [(item.keyword, places[item.keyword]) for item in KNOWN if item.level == INSTANCE]
        chosen = [places[name] for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "path", "original_path", "length")]
        chosen += [places[name] for name in ("content_hash", "batch", "TransferSyntaxUID", "source_length", "source_mtime")]
        return [
            Instance(*(row[place] for place in chosen), values={keyword: _plain(row[place]) for keyword, place in values})  # type: ignore[misc]
            for row in result.fetchall()
        ]

    def read_column(self, snapshot: Snapshot, instances: Sequence[Instance], column: str) -> dict[str, Any]:
        """Values of a column of `object_catalog`, such as `meta` or `thumbnail`, by path."""
        found: dict[str, Any] = {}
        by_batch: dict[str, list[Instance]] = {}
        for item in instances:
            by_batch.setdefault(item.batch, []).append(item)
        for batch, items in by_batch.items():
            wanted = pa.array(sorted({item.path for item in items}))
            series = pa.array(sorted({item.series for item in items}))
            # Statistics of row groups know series, so that few are read; the path decides.
            condition = pc.field("SeriesInstanceUID").isin(series) & pc.field("path").isin(wanted)
            dataset = ds.dataset(snapshot.files.get(batch, []), schema=OBJECT_CATALOG.part_arrow, format="parquet")
            rows = dataset.to_table(columns=["path", column], filter=condition, use_threads=False)
            found.update(zip(rows["path"].to_pylist(), rows[column].to_pylist(), strict=True))
        return found


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - see above
    except OSError:
        return None


def _plain(value: Any) -> object:
    return value.strftime("%Y%m%d") if hasattr(value, "strftime") else value


def _level(table: pa.Table, level: str) -> Level:
    wanted = [item for item in KNOWN if item.level == level]
    columns = {item.keyword: make_column(table[item.keyword], item.vr) for item in wanted if item.keyword in table.column_names}
    for name in ("StudyInstanceUID", "SeriesInstanceUID"):
        if name in table.column_names and name not in columns:
            columns[name] = make_column(table[name], "UI")
    return Level(columns, table.num_rows)


def _source(item: Known, columns: set[str]) -> str:
    """Write SQL for an attribute's value: several values as DICOM writes them, times too."""
    column = f'"{item.keyword}"'
    if item.keyword not in columns:  # a lake that an older program wrote, and none since
        return "null::date" if item.kind == "date" else "null::bigint" if item.kind == "integer" else "null::varchar"
    if item.kind in {"texts", "integers", "numbers"} or item.keyword in {"ModalitiesInStudy", "SOPClassesInStudy"}:
        return f"array_to_string({column}, '\\')"
    if item.kind == "time":
        return f"regexp_replace(replace({column}, ':', ''), '[.]?0*$', '')"
    return column


def _selected(level: str, columns: set[str]) -> str:
    return ", ".join(f'{_source(item, columns)} as "{item.keyword}"' for item in KNOWN if item.level == level and item.keyword not in _KEYS)


def _level_sql(level: str, table: str, columns: set[str], order: str) -> str:
    """Rows of a rollup, in the order of answers."""
    keys = [name for name in _KEYS if name in columns]
    condition = " and ".join(f"{name} <> ''" for name in keys)
    return f"select {', '.join(keys)}, {_selected(level, columns)} from {table} where {condition} order by {order}"  # noqa: S608 - names of ours only


def _served_sql(table: str, columns: set[str]) -> str:
    """One row per SOP Instance UID, by the rule of the rollups: the last one that was modified, of those the one with the smallest path."""
    values = ", ".join(f'{_source(item, columns)} as "{item.keyword}"' for item in KNOWN if item.kind != "computed")
    return f"""
        create table "{table}" as select {values}, {", ".join(_PLACE)}, modificationTime
        from object_catalog
        where status = 'indexed' and StudyInstanceUID <> '' and SeriesInstanceUID <> '' and SOPInstanceUID <> ''
        qualify row_number() over (partition by SOPInstanceUID order by modificationTime desc nulls last, path) = 1
    """  # noqa: S608 - names of ours only


def _instances_sql(table: str, source: str, columns: set[str] | None) -> str:
    """Instances by study, series and number, so that a series lies in one place; with what is known of the files that they lie in."""
    names = [item.keyword for item in KNOWN if item.level == INSTANCE]
    values = _selected(INSTANCE, columns) if columns is not None else ", ".join(f'"{name}"' for name in names)
    return f"""
        create table "{table}" as
        with files as (
            select path as file, length as file_length, modificationTime as file_time from object_catalog
            where path in (select original_path from "{source}" where original_path <> path)
        ), served as (
            select StudyInstanceUID, SeriesInstanceUID, {values}, {", ".join(_PLACE)}, modificationTime from "{source}"
            where StudyInstanceUID <> '' and SeriesInstanceUID <> '' and SOPInstanceUID <> ''
        )
        select served.* exclude (modificationTime), coalesce(file_length, length) as source_length,
            epoch_us(coalesce(file_time, modificationTime)) as source_mtime
        from served left join files on original_path = file
        order by StudyInstanceUID, SeriesInstanceUID, InstanceNumber, SOPInstanceUID
    """  # noqa: S608 - names of ours only


def _representative(level: str) -> str:
    # One value for all objects below, whatever the order of rows: the one that most of them have.
    names = [item.keyword for item in KNOWN if item.level == level and not item.computed and item.keyword not in _KEYS]
    return ", ".join(f'mode("{name}") filter ("{name}" is not null) as "{name}"' for name in names)


def _series_sql(table: str) -> str:
    return f"""
        select StudyInstanceUID, SeriesInstanceUID, {_representative(SERIES)}, count(*) as NumberOfSeriesRelatedInstances
        from "{table}" group by StudyInstanceUID, SeriesInstanceUID order by {_SERIES_ORDER}
    """  # noqa: S608 - names of ours only


def _studies_sql(table: str) -> str:
    return f"""
        select StudyInstanceUID, {_representative(STUDY)},
            array_to_string(list_sort(list(distinct Modality) filter (Modality <> '')), '\\') as ModalitiesInStudy,
            array_to_string(list_sort(list(distinct SOPClassUID) filter (SOPClassUID <> '')), '\\') as SOPClassesInStudy,
            count(distinct SeriesInstanceUID) as NumberOfStudyRelatedSeries, count(*) as NumberOfStudyRelatedInstances
        from "{table}" group by StudyInstanceUID order by {_STUDY_ORDER}
    """  # noqa: S608 - names of ours only


__all__ = ["Index", "Instance", "SeriesInstances", "Snapshot"]
