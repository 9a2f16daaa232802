"""`measurements` and `segmentations`: what annotations say, linked to the images that they are about.

Made anew from `annotations` whenever that or `object_catalog` has changed, a few thousand objects at a time: images may come after what is said about
them, and go before it. Only objects that are now in the catalog have rows. Must not read source files.
"""

import datetime as dt
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable

from pixels_assets.intake.objects import Status
from pixels_assets.lake.commit import LOCK_SECONDS, create_tables, is_table, open_table, table_lock
from pixels_assets.lake.keyed import Replaced, all_rows, replace_rows, scan_files, stored_files
from pixels_assets.lake.schema import ANNOTATIONS, LINKED, OBJECT_CATALOG, PARTITION, Table

RULES = 1
"""Counts up when a rule changes: tables made by other rules are then made anew."""

_OBJECTS_AT_ONCE = 2_000
_BYTES_AT_ONCE = 32 * 1024**2
_OF_OBJECT = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")
_SAID = ("highdicom_reads", "highdicom_reason", "error_code")


@dataclass(frozen=True, slots=True)
class Linked:
    """What one update did.

    Parameters
    ----------
    tables : dict of str to Replaced
        By table; empty when nothing had changed.
    missing : dict of str to int
        Rows with a source that is not in the catalog, by table.
    """

    tables: dict[str, Replaced] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)


def links_are_behind(lake: Path) -> bool:
    """Whether `annotations` or `object_catalog` has a version that the tables of annotations do not reflect.

    Raises
    ------
    LakeError
        The lake cannot be read.
    """
    if not all(is_table(lake, name) for name in (ANNOTATIONS.name, *LINKED)):
        return is_table(lake, ANNOTATIONS.name)
    sources, tables = _sources(lake), [open_table(lake, name) for name in LINKED]
    if not any(_rows(lake, table, delta) for table, delta in [(ANNOTATIONS, sources[0]), *zip(LINKED.values(), tables, strict=True)]):
        return False
    return any(delta.transaction_version(name) != version for delta in tables for name, version in _marks(*sources).items())


def link_annotations(lake: Path, *, run_id: str) -> Linked:
    """Bring `measurements` and `segmentations` up to date.

    Any number of processes may ask for it at once; they take turns. It may be killed at any moment and be called again at any time.

    Parameters
    ----------
    lake : Path
    run_id : str
        Recorded in the history of the tables.

    Raises
    ------
    LakeError
        A table cannot be read or written.
    """
    create_tables(lake, [OBJECT_CATALOG, ANNOTATIONS, *LINKED.values()])
    with table_lock(lake, "links", LOCK_SECONDS):
        if not links_are_behind(lake):
            return Linked()
        annotations, catalog = _sources(lake)
        done = Linked()
        for table in LINKED.values():
            rows = _Rows(lake, table, annotations, catalog)
            delta = open_table(lake, table.name)
            done.tables[table.name] = replace_rows(lake, table, delta, None, rows.frames(), run_id=run_id, marks=_marks(annotations, catalog))
            done.missing[table.name] = rows.missing
        return done


def _sources(lake: Path) -> tuple[DeltaTable, DeltaTable]:
    return open_table(lake, ANNOTATIONS.name), open_table(lake, OBJECT_CATALOG.name)


def _marks(*sources: DeltaTable) -> dict[str, int]:
    """Application transactions that say what is reflected; another table in the place of one, or other rules, make another name."""
    return {f"pixels/links-{RULES}/{delta.metadata().id}": delta.version() for delta in sources}


def _rows(lake: Path, table: Table, delta: DeltaTable) -> int:
    return sum(file.rows for file in stored_files(lake, table, delta, "path"))


def _within(value: Any) -> Any:
    """Whole numbers as a column holds them: what needs more than 64 bits is no number of a segment or frame."""
    if isinstance(value, list):
        return [item for item in map(_within, value) if item is not None]
    return value if value is None or abs(value) < 2**63 else None


class _Rows:
    """Rows of one table, in pieces that fit into memory."""

    def __init__(self, lake: Path, table: Table, annotations: DeltaTable, catalog: DeltaTable) -> None:
        self._table = table
        self._annotations = stored_files(lake, ANNOTATIONS, annotations, "path")
        self._whole = [field.name for field in table.part_arrow if field.type in {pa.int64(), pa.list_(pa.int64())}]
        self._catalog = {column: stored_files(lake, OBJECT_CATALOG, catalog, column) for column in ("path", "SOPInstanceUID", "SeriesInstanceUID")}
        self.missing = 0

    def frames(self) -> Iterator[pl.DataFrame]:
        for objects in self._objects():
            rows = [row for item in objects for row in self._of_object(item)]
            self._link(rows)
            if rows:
                yield pl.DataFrame(pl.from_arrow(pa.Table.from_pylist(rows, schema=self._table.part_arrow)))

    def _objects(self) -> Iterator[list[dict[str, Any]]]:
        """Annotations that are in the catalog, with the catalog's values."""
        for file in self._annotations:
            known = scan_files(ANNOTATIONS, [file]).filter(pl.col("kind") == self._table.name)
            paths = known.select("path").unique().collect()
            if paths.is_empty():
                continue
            current = all_rows(OBJECT_CATALOG, self._catalog["path"], paths, ["path", PARTITION, *_OF_OBJECT, "status"])
            live = current.filter(pl.col("status") == Status.INDEXED.value).drop("status")
            found = known.join(live.lazy(), on=["path", PARTITION], how="inner").sort("path").collect()
            start = size = 0
            for number, length in enumerate(found["items"].str.len_bytes().fill_null(0)):
                size += length
                if size >= _BYTES_AT_ONCE or number - start >= _OBJECTS_AT_ONCE:
                    yield found[start : number + 1].to_dicts()
                    start, size = number + 1, 0
            if start < len(found):
                yield found[start:].to_dicts()

    def _of_object(self, item: dict[str, Any]) -> Iterator[dict[str, Any]]:
        same = {name: item[name] for name in ("path", "original_path", PARTITION, *_OF_OBJECT, *_SAID)}
        for number, said in enumerate(json.loads(item["items"] or "[]"), start=1):
            row = {"number": number, **said, **same}
            for name in ("observed_at", "made_at"):
                if row.get(name):
                    row[name] = dt.datetime.fromisoformat(row[name])
            for name in self._whole:
                row[name] = _within(row.get(name))
            yield {name: row.get(name) for name in self._table.column_names}

    def _link(self, rows: list[dict[str, Any]]) -> None:
        """Look the sources up, all at once."""
        instances = self._known("SOPInstanceUID", {uid for row in rows for uid in row["source_instances"] or []})
        series = self._known("SeriesInstanceUID", {uid for row in rows if not row["source_instances"] for uid in row["source_series"] or []})
        for row in rows:
            known, named = (instances, row["source_instances"]) if row["source_instances"] else (series, row["source_series"])
            row["missing_sources"] = [uid for uid in named or [] if uid not in known]
            row["source_found"] = not row["missing_sources"] if named else None
            self.missing += bool(row["missing_sources"])
            places = list(dict.fromkeys(known[uid] for uid in named or [] if uid in known))
            if places:
                row["source_study"] = places[0][0] or row["source_study"]
                row["source_series"] = list(dict.fromkeys(place[1] for place in places if place[1]))

    def _known(self, column: str, uids: set[str]) -> dict[str, tuple[str | None, str | None]]:
        """Study and series of the catalogued objects among some, by UID."""
        if not uids:
            return {}
        wanted = list(dict.fromkeys((column, "StudyInstanceUID", "SeriesInstanceUID")))
        found = all_rows(OBJECT_CATALOG, self._catalog[column], pl.DataFrame({column: sorted(uids)}), [*wanted, "status"])
        places = found.filter(pl.col("status") == Status.INDEXED.value).select(wanted).unique().sort(pl.all())
        return {row[column]: (row["StudyInstanceUID"], row["SeriesInstanceUID"]) for row in places.iter_rows(named=True)}
