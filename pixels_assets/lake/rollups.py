"""The hierarchy of `object_catalog`: `instances`, `series`, `studies`, `patients`, and `uid_conflicts`, kept up to date by what changed.

Holds what a rollup's row is made of, and which rows a change of the catalog concerns. Must not read source files.

The rules, none of which looks at the order in which batches ran:

- Objects with status ``indexed`` and a SOPInstanceUID are instances. Of several objects with one SOPInstanceUID the one that was modified last is
  current, of those the one with the smallest path. Objects of the same content are its duplicates, others are versions (`uid_conflicts`).
- A series is what current instances of one study have in common; a study is one StudyInstanceUID; a patient one pair of PatientID and
  IssuerOfPatientID, where no value is a value. Instances without a UID are in no series or study, and counted in those above.
- Where the instances of a group disagree about an attribute, the row has the value that most of them have, of these the smallest; NULL does not
  count. That they disagree is a finding.

Every rollup table remembers, in an application transaction, which version of `object_catalog` it reflects. An update reads the files that came and
went since, computes the rows of the keys in them anew, and replaces these. When that version or a file of it is gone, everything is computed anew.
A process that is killed between two tables leaves the later ones behind; the next update looks at what changed since each of their versions.

Memory does not depend on how many rows there are: they are put aside by key and worked on in pieces (`pixels_assets.lake.pieces`). It does depend on
the rows of a single key, as the `duplicates` of a million copies are one list, and on how many keys and paths a change concerns.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from pixels_assets.errors import LakeError
from pixels_assets.intake.objects import Status
from pixels_assets.lake.commit import LOCK_SECONDS, create_tables, is_table, open_table, table_lock
from pixels_assets.lake.findings import FROM_OBJECTS, FROM_SERIES, disagreements, object_findings, series_findings, subjects
from pixels_assets.lake.keyed import Replaced, StoredFile, all_rows, find_rows, holding, replace_rows, stored_files
from pixels_assets.lake.levels import LEVELS, agreed, columns_of, versions_of
from pixels_assets.lake.pieces import Pieces
from pixels_assets.lake.query import damage_told
from pixels_assets.lake.schema import (
    DICOM_METADATA,
    FINDINGS,
    INSTANCES,
    OBJECT_CATALOG,
    PARTITION,
    ROLLUPS,
    SERIES,
    STUDIES,
    THUMBNAILS,
    UID_CONFLICTS,
    Table,
)

RULES = 2
"""Counts up when a rule changes: tables made by other rules are then made anew."""

_ASIDE = "_aside"  # folder below the lake's root, of whoever holds the lock
_ROWS_AT_ONCE = 10_000
_OBJECTS_AT_ONCE = 512
_GROUPS_AT_ONCE = 2_000
_KEYS = list(dict.fromkeys(["SOPInstanceUID", *(name for table in LEVELS.values() for name in table.key)]))
_MADE = {"mime", "duplicates", "versions"}
_FROM_CATALOG = [name for name in INSTANCES.column_names if name not in _MADE]
_OF_VERSIONS = [name for name in UID_CONFLICTS.column_names if name not in {"is_current", "differs"}]


@dataclass(frozen=True, slots=True)
class Updated:
    """What one update did.

    Parameters
    ----------
    version : int
        Version of `object_catalog` that the rollups reflect now.
    since : int or None
        Oldest version that they reflected before; None: everything was computed anew.
    tables : dict of str to Replaced
        By table; empty when nothing had changed.
    changed : int
        Instances, by SOPInstanceUID, that the change of the catalog concerned.
    seconds : float
        Waiting for another update included.
    """

    version: int
    since: int | None
    tables: dict[str, Replaced] = field(default_factory=dict)
    changed: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Change:
    """Keys that a change of the catalog concerns: SOPInstanceUIDs, paths, and groups by level."""

    uids: pl.DataFrame
    paths: pl.DataFrame
    groups: dict[str, pl.DataFrame]

    def add(self, rows: pl.DataFrame) -> None:
        """Add the groups that some rows are in."""
        self.groups = {level: pl.concat([keys, rows.select(keys.columns)]).unique() for level, keys in self.groups.items()}


def are_behind(lake: Path) -> bool:
    """Whether `object_catalog` has a version that some rollup does not reflect.

    Raises
    ------
    LakeError
        The lake cannot be read.
    """
    catalog = open_table(lake, OBJECT_CATALOG.name)
    return any(version != catalog.version() for version in _reflected(lake, catalog).values())


def catalog_state(lake: Path) -> str:
    """Name what `object_catalog` holds now: which table it is and its version."""
    catalog = open_table(lake, OBJECT_CATALOG.name)
    return f"{catalog.metadata().id}@{catalog.version()}"


def update_rollups(lake: Path, *, run_id: str, rebuild: bool = False) -> Updated:
    """Bring the rollups up to date with `object_catalog`.

    Any number of processes may ask for it at once; they take turns. It may be killed at any moment and be called again at any time.

    Parameters
    ----------
    lake : Path
    run_id : str
        Recorded in the history of the tables.
    rebuild : bool
        Compute everything anew.

    Raises
    ------
    LakeError
        A table cannot be read or written.
    """
    started = time.monotonic()
    create_tables(lake, [DICOM_METADATA, OBJECT_CATALOG, THUMBNAILS, *ROLLUPS.values()])
    with table_lock(lake, "rollups", LOCK_SECONDS):
        catalog = open_table(lake, OBJECT_CATALOG.name)
        reflected = _reflected(lake, catalog)
        known = [version for version in reflected.values() if version is not None]
        shutil.rmtree(lake / _ASIDE, ignore_errors=True)  # of one that was killed
        since = min(known) if len(known) == len(reflected) and not rebuild else None
        if since == catalog.version():
            return Updated(since, since, seconds=time.monotonic() - started)
        with damage_told(lake):
            change = None if since is None else _change(lake, catalog, set(known))
        if change is None:
            since = None
        update = _Update(lake, catalog, change, run_id)
        try:
            with damage_told(lake):
                tables = update.run()
        finally:
            shutil.rmtree(lake / _ASIDE, ignore_errors=True)
        return Updated(catalog.version(), since, tables, update.changed, time.monotonic() - started)


def _mark(catalog: DeltaTable) -> str:
    """Name of the application transaction; another catalog in its place, or other rules, make another name."""
    return f"pixels/rollups-{RULES}/{catalog.metadata().id}"


def _reflected(lake: Path, catalog: DeltaTable) -> dict[str, int | None]:
    """Version of the catalog that each rollup reflects; None: none of this catalog."""
    mark, versions = _mark(catalog), dict[str, int | None]()
    for name in ROLLUPS:
        version = open_table(lake, name).transaction_version(mark) if is_table(lake, name) else None
        versions[name] = version if version is not None and version <= catalog.version() else None
    return versions


def _change(lake: Path, catalog: DeltaTable, since: set[int]) -> _Change | None:
    """Keys in the rows that came or went since any of some versions; None when it cannot be told any more.

    Tables reflect several versions when an update was killed. The oldest would not do: a row that came after it and is gone again is in those of the
    tables that had got further.
    """
    files = stored_files(lake, OBJECT_CATALOG, catalog, "SOPInstanceUID")
    found = [pl.DataFrame(schema=dict.fromkeys(("path", *_KEYS), pl.String))]
    for version in sorted(since - {catalog.version()}):
        old = _files_of(lake, version)
        if old is None:
            return None
        gone, came = _unlike(old, files), _unlike(files, old)
        if not all(file.path.exists() for file in gone):
            return None
        found += _changed(lake, gone, came)
    changed = pl.concat(found)
    uids = changed.select("SOPInstanceUID").drop_nulls().unique().sort("SOPInstanceUID")
    change = _Change(
        uids, changed.select("path").unique().sort("path"), {level: changed.select(table.key).clear() for level, table in LEVELS.items()}
    )
    change.add(changed)
    return change


def _files_of(lake: Path, version: int) -> list[StoredFile] | None:
    """Files of an earlier version of the catalog; None when it is gone."""
    try:
        return stored_files(lake, OBJECT_CATALOG, DeltaTable(lake / OBJECT_CATALOG.name, version=version), "SOPInstanceUID")
    except (OSError, DeltaError, LakeError):
        return None


def _unlike(files: Sequence[StoredFile], others: Sequence[StoredFile]) -> list[StoredFile]:
    names = {file.name for file in others}
    return [file for file in files if file.name not in names]


def _changed(lake: Path, gone: Sequence[StoredFile], came: Sequence[StoredFile]) -> Iterator[pl.DataFrame]:
    """Paths and keys of the rows in files that went, or that came; not of those in both: they were copied for the sake of others, or compacted."""
    wanted = ["path", *_KEYS]
    if not gone or not came:
        yield from (rows.select(wanted) for rows in _indexed_rows([*gone, *came], None, wanted))
        return
    content, on = pl.struct(_FROM_CATALOG).hash().alias("content"), ["path", "content"]
    with Pieces(lake / _ASIDE / "changed", ["path"]) as aside:
        for has_come, files in ((False, gone), (True, came)):
            for rows in _indexed_rows(files, None, [*wanted, content]):
                aside.add(rows.with_columns(has_come=has_come))
        for piece in aside:
            arrived, left = piece.filter("has_come"), piece.filter(~pl.col("has_come"))
            yield pl.concat([left.join(arrived, on=on, how="anti"), arrived.join(left, on=on, how="anti")]).select(wanted).collect()


def _indexed_rows(files: Sequence[StoredFile], keys: pl.DataFrame | None, columns: Sequence[str | pl.Expr]) -> Iterator[pl.DataFrame]:
    """Rows of the catalog's files that are indexed."""
    for rows in find_rows(OBJECT_CATALOG, files, keys, [*columns, "status"]):
        yield rows.filter(pl.col("status") == Status.INDEXED.value).drop("status")


class _Update:
    """One update, from the catalog up."""

    def __init__(self, lake: Path, catalog: DeltaTable, change: _Change | None, run_id: str) -> None:
        self._lake, self._catalog, self._change, self._run_id = lake, catalog, change, run_id
        self._marks = {_mark(catalog): catalog.version()}
        self._by_path = stored_files(lake, OBJECT_CATALOG, catalog, "path")
        self._beside = {table.name: stored_files(lake, table, open_table(lake, table.name), "path") for table in (THUMBNAILS, DICOM_METADATA)}
        self._conflicts = self._aside("conflicts", [PARTITION, "path"])
        self._found = self._aside("findings", FINDINGS.key)
        self.changed = 0

    def run(self) -> dict[str, Replaced]:
        """Replace the rows of all tables, lower levels first."""
        change = self._change
        with self._conflicts, self._found:
            uids = None if change is None else change.uids
            done = {INSTANCES.name: self._replace(INSTANCES, uids, self._instances(uids))}
            done[UID_CONFLICTS.name] = self._replace(UID_CONFLICTS, uids, self._told_apart())
            for level, table in LEVELS.items():
                groups = None if change is None else change.groups[level]
                done[table.name] = self._replace(table, groups, self._groups(level, table, groups))
            done[FINDINGS.name] = self._replace(FINDINGS, self._subjects(), self._findings())
        if change is not None:
            self.changed = len(change.uids)
        return done

    def _aside(self, name: str, key: Sequence[str]) -> Pieces:
        return Pieces(self._lake / _ASIDE / name, key)

    def _replace(self, table: Table, keys: pl.DataFrame | None, rows: Iterator[pl.DataFrame]) -> Replaced:
        return replace_rows(self._lake, table, open_table(self._lake, table.name), keys, rows, run_id=self._run_id, marks=self._marks)

    def _instances(self, uids: pl.DataFrame | None) -> Iterator[pl.DataFrame]:
        """Make the current rows of the instances; on the way, conflicts are put aside."""
        files = stored_files(self._lake, OBJECT_CATALOG, self._catalog, "SOPInstanceUID")
        with self._aside("instances", ["SOPInstanceUID"]) as aside:
            for some in _indexed_rows(files, uids, _FROM_CATALOG):
                if self._change is not None:
                    # Another object of the same UID may become current, or cease to be it: its groups are concerned, too.
                    self._change.add(some)
                rows = some.drop_nulls("SOPInstanceUID")
                aside.add(rows.join(self._mimes(rows), on=["path", PARTITION], how="left"))
            for piece in aside:
                current, conflicts = versions_of(piece.select(_OF_VERSIONS).collect())
                self._conflicts.add(conflicts)
                self.changed += len(current)
                yield _sorted(piece.join(current.lazy(), on=["path", PARTITION], how="inner").collect())

    def _mimes(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Media types of thumbnails, by path and batch."""
        found = self._of_objects(THUMBNAILS, rows, ["path", PARTITION, "mime", "status"])
        return found.filter(pl.col("status") == "ok").drop("status").unique(["path", PARTITION])

    def _told_apart(self) -> Iterator[pl.DataFrame]:
        """Say in what the versions of an instance differ from the current one."""
        uid, header = "SOPInstanceUID", pl.col("header")
        contents = pl.when(header.is_not_null()).then(header.hash()).alias("header"), pl.col("meta").hash()
        differs = (
            pl.when("is_current")
            .then(None)
            .when(pl.col("meta") != pl.col("meta of current"))
            .then(pl.lit("metadata"))
            .when(header != pl.col("header of current"))
            .then(pl.lit("encoding"))
            .when(header == pl.col("header of current"))
            .then(pl.lit("pixels"))
        )
        with self._aside("versions", [uid]) as aside:
            for piece in self._conflicts:
                for rows in _slices(piece):
                    said = self._of_objects(DICOM_METADATA, rows, ["path", PARTITION, *contents]).unique(["path", PARTITION])
                    aside.add(rows.join(said, on=["path", PARTITION], how="left"))
            for piece in aside:
                current = piece.filter("is_current").unique(uid).select(uid, "header", "meta").collect()
                for rows in _slices(piece):
                    yield (
                        rows.join(current, on=uid, how="left", suffix=" of current").with_columns(differs=differs).select(UID_CONFLICTS.column_names)
                    )

    def _of_objects(self, table: Table, rows: pl.DataFrame, columns: Sequence[str | pl.Expr]) -> pl.DataFrame:
        """Read what a table of batches has of the same objects."""
        batches = tuple(f"{PARTITION}={batch}/" for batch in rows[PARTITION].unique())
        files = [file for file in self._beside[table.name] if file.name.startswith(batches)]
        return all_rows(table, files, rows.select("path"), columns)

    def _groups(self, level: str, table: Table, groups: pl.DataFrame | None) -> Iterator[pl.DataFrame]:
        """Rows of one level."""
        files = stored_files(self._lake, INSTANCES, open_table(self._lake, INSTANCES.name), table.key[0])
        needed = [] if level == "patient" else table.key  # those who name no patient are one
        with self._aside(level, table.key) as aside:
            for rows in find_rows(INSTANCES, files, groups, columns_of(level)):
                aside.add(rows.drop_nulls(needed) if needed else rows)
            for piece in aside:
                made, odd = agreed(piece, level, table)
                self._found.add(disagreements(level, odd, [name for name in odd.columns if name not in table.key]))
                if level == "series":
                    self._found.add(series_findings(piece.select(FROM_SERIES).collect()))
                for some in made.sort(table.key).iter_slices(_GROUPS_AT_ONCE):
                    pictures = self._middles(some) if level == "series" else self._from_below(level, table, some.select(table.key))
                    rows = some.drop("representative_path", "mime", strict=False)
                    yield rows.join(pictures, on=table.key, how="left", nulls_equal=True, maintain_order="left")

    def _middles(self, series: pl.DataFrame) -> pl.DataFrame:
        """Thumbnail of the middle image of each series."""
        chosen = series.select(*SERIES.key, "representative_path", "mime").drop_nulls("representative_path")
        paths = chosen.select(path="representative_path")
        images = all_rows(OBJECT_CATALOG, self._by_path, paths, [pl.col("path").alias("representative_path"), "thumbnail"])
        return chosen.join(images.drop_nulls(), on="representative_path", how="inner")

    def _from_below(self, level: str, table: Table, keys: pl.DataFrame) -> pl.DataFrame:
        """Thumbnail of a study: of its largest series; of a patient: of the latest study; the smallest UID where they are equal."""
        below, order, descending = (
            (SERIES, "NumberOfSeriesRelatedInstances", "SeriesInstanceUID") if level == "study" else (STUDIES, "StudyDate", "StudyInstanceUID")
        )
        files = stored_files(self._lake, below, open_table(self._lake, below.name), table.key[0])
        columns: list[str | pl.Expr] = [*dict.fromkeys([*table.key, *below.key, order]), pl.col("thumbnail").is_not_null().alias("has_thumbnail")]
        chosen = (
            all_rows(below, files, keys, columns)
            .filter("has_thumbnail")
            .sort(order, descending, descending=[True, False], nulls_last=True)
            .unique(table.key, keep="first", maintain_order=True)
            .select(*dict.fromkeys([*table.key, *below.key]))
        )
        files = stored_files(self._lake, below, open_table(self._lake, below.name), below.key[0])
        images = all_rows(below, files, chosen.select(below.key), [*below.key, "representative_path", "thumbnail", "mime"])
        return chosen.join(images, on=below.key, how="inner").select(*table.key, "representative_path", "thumbnail", "mime")

    def _subjects(self) -> pl.DataFrame | None:
        """Name whose findings are made anew."""
        if self._change is None:
            return None
        change = self._change
        return pl.concat([subjects("instance", change.paths), *(subjects(level, keys) for level, keys in change.groups.items())]).to_frame()

    def _findings(self) -> Iterator[pl.DataFrame]:
        """Make the findings on single objects, then give those that groups came to on the way."""
        files, wanted = self._by_path, ds.field("status") == Status.INDEXED.value
        if self._change is not None:
            files, wanted = holding(OBJECT_CATALOG, files, self._change.paths), wanted & ds.field("path").isin(self._change.paths["path"].to_arrow())
        for file in files:
            key = file.name.partition("/")[0].removeprefix(f"{PARTITION}=")
            source = ds.dataset([str(file.path)], schema=OBJECT_CATALOG.part_arrow, format="parquet")
            for batch in source.to_batches(columns=FROM_OBJECTS, filter=wanted, batch_size=_OBJECTS_AT_ONCE, batch_readahead=1):
                yield object_findings(batch, key)
        for piece in self._found:
            yield from _slices(piece)


def _slices(rows: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    yield from rows.collect_batches(chunk_size=_ROWS_AT_ONCE)


def _sorted(instances: pl.DataFrame) -> pl.DataFrame:
    """Objects of a study side by side, so that statistics lead to them."""
    return instances.sort("StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber", "SOPInstanceUID", nulls_last=True)
