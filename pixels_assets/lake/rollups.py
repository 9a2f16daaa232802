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
"""

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
from pixels_assets.lake.commit import LOCK_SECONDS, create_tables, open_table, table_lock
from pixels_assets.lake.findings import FROM_OBJECTS, FROM_SERIES, disagreements, object_findings, series_findings, subjects
from pixels_assets.lake.keyed import Replaced, StoredFile, find_rows, replace_rows, scan_files, stored_files
from pixels_assets.lake.schema import (
    DICOM_METADATA,
    FINDINGS,
    INSTANCES,
    OBJECT_CATALOG,
    PARTITION,
    PATIENTS,
    ROLLUPS,
    SERIES,
    STUDIES,
    THUMBNAILS,
    UID_CONFLICTS,
    Table,
    level_attributes,
)

RULES = 2
"""Counts up when a rule changes: tables made by other rules are then made anew."""

_UIDS_AT_ONCE = 50_000
_ROWS_AT_ONCE = 100_000  # of the catalog; an update may take no more memory when a million files are copies of a few
_OBJECTS_AT_ONCE = 512
_GROUPS_AT_ONCE = 4_000
_LEVELS = {"patient": PATIENTS, "study": STUDIES, "series": SERIES}
_KEYS = ["SOPInstanceUID", *dict.fromkeys(name for table in _LEVELS.values() for name in table.key)]
_MADE = {"mime", "duplicates", "versions"}
_FROM_CATALOG = [name for name in INSTANCES.column_names if name not in _MADE]
_OF_VERSIONS = [name for name in UID_CONFLICTS.column_names if name not in {"is_current", "differs"}]
_SEPARATOR = "\x1e"


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


@dataclass(frozen=True, slots=True)
class _Change:
    """Keys that a change of the catalog concerns: SOPInstanceUIDs and paths, sorted, and by table the groups."""

    uids: list[str]
    paths: list[str]
    groups: dict[str, pl.DataFrame]


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
        since = min(known) if len(known) == len(reflected) and not rebuild else None
        if since == catalog.version():
            return Updated(since, since, seconds=time.monotonic() - started)
        change = None if since is None else _change(lake, catalog, set(known))
        if change is None:
            since = None
        update = _Update(lake, catalog, change, run_id)
        tables = update.run()
        return Updated(catalog.version(), since, tables, update.changed, time.monotonic() - started)


def _mark(catalog: DeltaTable) -> str:
    """Name of the application transaction; another catalog in its place, or other rules, make another name."""
    return f"pixels/rollups-{RULES}/{catalog.metadata().id}"


def _reflected(lake: Path, catalog: DeltaTable) -> dict[str, int | None]:
    """Version of the catalog that each rollup reflects; None: none of this catalog."""
    mark, versions = _mark(catalog), dict[str, int | None]()
    for name in ROLLUPS:
        version = open_table(lake, name).transaction_version(mark) if DeltaTable.is_deltatable(str(lake / name)) else None
        versions[name] = version if version is not None and version <= catalog.version() else None
    return versions


def _change(lake: Path, catalog: DeltaTable, since: set[int]) -> _Change | None:
    """Keys in the rows that came or went since any of some versions; None when it cannot be told any more.

    Tables reflect several versions when an update was killed. The oldest would not do: a row that came after it and is gone again is in those of the
    tables that had got further.
    """
    files = stored_files(lake, OBJECT_CATALOG, catalog, "SOPInstanceUID")
    found = [_changed(lake, files, version) for version in sorted(since - {catalog.version()})]
    if any(rows is None for rows in found):
        return None
    changed = pl.concat([rows for rows in found if rows is not None])
    uids = changed["SOPInstanceUID"].drop_nulls().unique().sort().to_list()
    # Another object of the same UID may become current, or cease to be it: its groups are concerned, too.
    concerned = [changed.select(_KEYS)]
    concerned += [
        _indexed(find_rows(OBJECT_CATALOG, files, "SOPInstanceUID", some)).select(_KEYS).unique().collect() for some in _pieces(uids, _UIDS_AT_ONCE)
    ]
    keys = pl.concat(concerned)
    return _Change(uids, changed["path"].unique().sort().to_list(), {table.name: keys.select(table.key).unique() for table in _LEVELS.values()})


def _changed(lake: Path, files: Sequence[StoredFile], since: int) -> pl.DataFrame | None:
    """Paths and keys of the rows that came or went since one version; None when it cannot be told any more."""
    try:
        before = DeltaTable(lake / OBJECT_CATALOG.name, version=since)
        old = {file.name: file for file in stored_files(lake, OBJECT_CATALOG, before, "SOPInstanceUID")}
    except (OSError, DeltaError, LakeError):
        return None
    live = {file.name for file in files}
    gone = [file for name, file in old.items() if name not in live]
    came = [file for file in files if file.name not in old]
    if not all(file.path.exists() for file in gone):
        return None
    # A file may have been copied for the sake of one row, or compacted: rows that are in both are no change.
    content = pl.struct(_FROM_CATALOG).hash().alias("content")
    left, arrived = (_indexed(scan_files(OBJECT_CATALOG, some)).select("path", *_KEYS, content).collect() for some in (gone, came))
    on = ["path", "content"]
    return pl.concat([left.join(arrived, on=on, how="anti"), arrived.join(left, on=on, how="anti")])


class _Update:
    """One update, from the catalog up."""

    def __init__(self, lake: Path, catalog: DeltaTable, change: _Change | None, run_id: str) -> None:
        self._lake, self._catalog, self._change, self._run_id = lake, catalog, change, run_id
        self._files = stored_files(lake, OBJECT_CATALOG, catalog, "SOPInstanceUID")
        self._marks = {_mark(catalog): catalog.version()}
        self.changed = 0

    def run(self) -> dict[str, Replaced]:
        """Replace the rows of all tables, lower levels first."""
        if self._change is None:
            uids = _indexed(scan_files(OBJECT_CATALOG, self._files)).select(pl.col("SOPInstanceUID").drop_nulls().unique().sort()).collect()
            self._uids: list[str] = uids["SOPInstanceUID"].to_list()
        else:
            self._uids = self._change.uids
        self.changed = len(self._uids)
        self._conflicts: list[pl.DataFrame] = []
        keys = None if self._change is None else pl.DataFrame({"SOPInstanceUID": self._uids}, schema={"SOPInstanceUID": pl.String})
        self._found: list[pl.DataFrame] = []
        done = {INSTANCES.name: self._replace(INSTANCES, keys, self._instances())}
        done[UID_CONFLICTS.name] = self._replace(UID_CONFLICTS, keys, iter(self._conflicts))
        for level, table in (("series", SERIES), ("study", STUDIES), ("patient", PATIENTS)):
            groups = None if self._change is None else self._change.groups[table.name]
            done[table.name] = self._replace(table, groups, self._groups(level, table, groups))
        done[FINDINGS.name] = self._replace(FINDINGS, self._subjects(), self._findings())
        return done

    def _subjects(self) -> pl.DataFrame | None:
        """Name whose findings are made anew."""
        if self._change is None:
            return None
        paths = pl.DataFrame({"path": self._change.paths}, schema={"path": pl.String})
        groups = ((level, self._change.groups[table.name]) for level, table in _LEVELS.items())
        return pl.concat([subjects("instance", paths), *(subjects(level, keys) for level, keys in groups)]).to_frame()

    def _findings(self) -> Iterator[pl.DataFrame]:
        """Make the findings on single objects, then give those that groups came to on the way."""
        paths = None if self._change is None else self._change.paths
        for file in stored_files(self._lake, OBJECT_CATALOG, self._catalog, "path"):
            if paths is not None and not file.may_hold(paths):
                continue
            wanted = ds.field("status") == Status.INDEXED.value
            if paths is not None:
                wanted &= ds.field("path").isin(paths)
            key = file.name.partition("/")[0].removeprefix(f"{PARTITION}=")
            source = ds.dataset([str(file.path)], schema=OBJECT_CATALOG.part_arrow, format="parquet")
            for batch in source.to_batches(columns=FROM_OBJECTS, filter=wanted, batch_size=_OBJECTS_AT_ONCE, batch_readahead=1):
                yield object_findings(batch, key)
        yield from self._found

    def _replace(self, table: Table, keys: pl.DataFrame | None, rows: Iterator[pl.DataFrame]) -> Replaced:
        return replace_rows(self._lake, table, open_table(self._lake, table.name), keys, rows, run_id=self._run_id, marks=self._marks)

    def _instances(self) -> Iterator[pl.DataFrame]:
        """Make the current rows of the instances; on the way, conflicts are put aside."""
        for rows in self._few_rows():
            current, conflicts = _versions(rows.select(_OF_VERSIONS).collect())
            if not conflicts.is_empty():
                self._conflicts.append(self._told_apart(conflicts))
            if not current.is_empty():
                whole = rows.select(_FROM_CATALOG).join(current.lazy(), on=["path", PARTITION], how="inner").collect(engine="streaming")
                yield _sorted(whole.join(self._mimes(whole), on=["path", PARTITION], how="left"))

    def _few_rows(self) -> Iterator[pl.LazyFrame]:
        """Rows of the UIDs, in pieces that are not large, however many copies there are."""
        for some in _pieces(self._uids, _UIDS_AT_ONCE):
            rows = _indexed(find_rows(OBJECT_CATALOG, self._files, "SOPInstanceUID", some))
            counted = rows.group_by("SOPInstanceUID").agg(pl.len()).collect(engine="streaming").sort("SOPInstanceUID")
            piece = (pl.col("len").cum_sum() - 1) // _ROWS_AT_ONCE
            parts = counted.with_columns(piece=piece).partition_by("piece", maintain_order=True)
            for part in parts:
                yield rows if len(parts) == 1 else rows.filter(pl.col("SOPInstanceUID").is_in(part["SOPInstanceUID"].implode()))

    def _mimes(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Media types of thumbnails, by path and batch."""
        found = self._beside(THUMBNAILS, rows).filter(pl.col("status") == "ok")
        return found.select("path", PARTITION, "mime").unique(["path", PARTITION]).collect()

    def _told_apart(self, conflicts: pl.DataFrame) -> pl.DataFrame:
        """Say in what the versions of an instance differ from the current one."""
        uid, header = "SOPInstanceUID", pl.col("header")
        contents = pl.when(header.is_not_null()).then(header.hash()).alias("header"), pl.col("meta").hash()
        said = self._beside(DICOM_METADATA, conflicts).select("path", PARTITION, *contents).unique(["path", PARTITION]).collect()
        rows = conflicts.join(said, on=["path", PARTITION], how="left", maintain_order="left")
        current = rows.filter("is_current").unique(uid).select(uid, "header", "meta")
        rows = rows.join(current, on=uid, how="left", suffix=" of current", maintain_order="left")
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
        return rows.with_columns(differs=differs).select(UID_CONFLICTS.column_names)

    def _beside(self, table: Table, rows: pl.DataFrame) -> pl.LazyFrame:
        """Rows that a table of batches has of the same objects."""
        batches = tuple(f"{PARTITION}={batch}/" for batch in rows[PARTITION].unique())
        files = stored_files(self._lake, table, open_table(self._lake, table.name), "path")
        some = [file for file in files if file.name.startswith(batches)]
        return find_rows(table, some, "path", rows["path"].sort().to_list())

    def _groups(self, level: str, table: Table, groups: pl.DataFrame | None) -> Iterator[pl.DataFrame]:
        """Rows of one level."""
        files = stored_files(self._lake, INSTANCES, open_table(self._lake, INSTANCES.name), table.key[0])
        keys = scan_files(INSTANCES, files).select(table.key).unique().collect() if groups is None else groups
        if level != "patient":
            keys = keys.drop_nulls()
        for some in keys.sort(table.key).iter_slices(_GROUPS_AT_ONCE):
            rows = _of_groups(INSTANCES, files, table, some)
            made, odd = _agreed(rows, level, table)
            self._found.append(disagreements(level, odd, [name for name in odd.columns if name not in table.key]))
            if level == "series":
                self._found.append(series_findings(rows.select(FROM_SERIES).collect()))
            if not made.is_empty():
                pictures = self._middles(made) if level == "series" else self._from_below(level, table, some)
                yield (
                    made.drop("representative_path", "mime", strict=False).join(pictures, on=table.key, how="left", nulls_equal=True).sort(table.key)
                )

    def _middles(self, series: pl.DataFrame) -> pl.DataFrame:
        """Thumbnail of the middle image of each series."""
        chosen = series.select(*SERIES.key, "representative_path", "mime").drop_nulls("representative_path")
        files = stored_files(self._lake, OBJECT_CATALOG, self._catalog, "path")
        paths = chosen["representative_path"].sort().to_list()
        images = find_rows(OBJECT_CATALOG, files, "path", paths).select(representative_path="path", thumbnail="thumbnail").collect()
        return chosen.join(images.drop_nulls(), on="representative_path", how="inner")

    def _from_below(self, level: str, table: Table, keys: pl.DataFrame) -> pl.DataFrame:
        """Thumbnail of a study: of its largest series; of a patient: of the latest study; the smallest UID where they are equal."""
        below, order, descending = (
            (SERIES, "NumberOfSeriesRelatedInstances", "SeriesInstanceUID") if level == "study" else (STUDIES, "StudyDate", "StudyInstanceUID")
        )
        files = stored_files(self._lake, below, open_table(self._lake, below.name), table.key[0])
        chosen = (
            _of_groups(below, files, table, keys)
            .filter(pl.col("thumbnail").is_not_null())
            .select(*dict.fromkeys([*table.key, order, descending, "representative_path"]))
            .collect()
            .sort(order, descending, descending=[True, False], nulls_last=True)
            .unique(table.key, keep="first", maintain_order=True)
        )
        images = _of_groups(below, files, table, keys).select("representative_path", "thumbnail", "mime")
        found = images.join(chosen.select("representative_path").lazy(), on="representative_path", how="semi").unique("representative_path").collect()
        return chosen.select(*table.key, "representative_path").join(found, on="representative_path", how="inner")


def _indexed(rows: pl.LazyFrame) -> pl.LazyFrame:
    return rows.filter(pl.col("status") == Status.INDEXED.value)


def _pieces(values: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _sorted(instances: pl.DataFrame) -> pl.DataFrame:
    """Objects of a study side by side, so that statistics lead to them."""
    return instances.sort("StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber", "SOPInstanceUID", nulls_last=True)


def _versions(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Tell which rows are current, with their duplicates and number of versions, and rows of conflicting UIDs."""
    uid = "SOPInstanceUID"
    ordered = rows.sort(uid, "modificationTime", "path", descending=[False, True, False], nulls_last=True)
    current = ordered.unique(uid, keep="first", maintain_order=True)
    same = ordered.join(current.select(uid, "content_hash", chosen="path"), on=[uid, "content_hash"], how="inner", nulls_equal=True)
    copies = same.filter(pl.col("path") != pl.col("chosen")).group_by(uid).agg(duplicates=pl.col("path").sort())
    versions = ordered.group_by(uid).agg(versions=pl.col("content_hash").n_unique().cast(pl.Int32))
    current = current.join(versions, on=uid, how="left").join(copies, on=uid, how="left")
    current = current.with_columns(pl.col("duplicates").fill_null(pl.lit([], dtype=pl.List(pl.String))))
    several = versions.filter(pl.col("versions") > 1)
    is_current = pl.col("content_hash").eq_missing(pl.col("chosen"))
    conflicts = ordered.join(several, on=uid, how="semi").join(current.select(uid, chosen="content_hash"), on=uid, how="left")
    current = current.select("path", PARTITION, "versions", "duplicates")
    return current, conflicts.with_columns(is_current=is_current).select(name for name in UID_CONFLICTS.column_names if name != "differs")


def _of_groups(source: Table, files: Sequence[StoredFile], table: Table, keys: pl.DataFrame) -> pl.LazyFrame:
    """Rows of `source` that belong to some groups of `table`."""
    first = keys[table.key[0]]
    rows = find_rows(source, files, table.key[0], first.drop_nulls().unique().sort().to_list(), null=first.null_count() > 0)
    return rows.join(keys.lazy(), on=table.key, how="semi", nulls_equal=True) if len(table.key) > 1 else rows


def _agreed(rows: pl.LazyFrame, level: str, table: Table) -> tuple[pl.DataFrame, pl.DataFrame]:
    """One row per group: what its instances agree on, or most of them do, and the figures of the level; and about what which groups disagree."""
    kinds = rows.collect_schema()
    attributes = [item.keyword for item in level_attributes(level) if item.keyword not in table.key]
    comparable = {name: pl.col(name).list.eval(pl.element().fill_null("")).list.join(_SEPARATOR) for name in attributes if kinds[name] == pl.List}
    comparable = {name: comparable.get(name, pl.col(name)) for name in attributes}
    bounds = [
        made
        for name, value in comparable.items()
        for made in (value.min().alias(f"{name}<"), value.max().alias(f"{name}>"), pl.col(name).drop_nulls().first().alias(name))
    ]
    groups = rows.group_by(table.key).agg(*bounds, *_FIGURES[level]).collect(engine="streaming")
    disagreed = [name for name in attributes if groups.select((pl.col(f"{name}<") != pl.col(f"{name}>")).any()).item()]
    groups = groups.drop([f"{name}{end}" for name in attributes if name not in disagreed for end in "<>"])
    if not disagreed:
        return groups, groups.select(table.key).clear()
    differs = {name: (pl.col(f"{name}<") != pl.col(f"{name}>")).fill_null(value=False) for name in disagreed}
    odd = groups.filter(pl.any_horizontal(differs.values())).select(*table.key, **differs)
    details = rows.select(*table.key, *disagreed, *(comparable[name].alias(f"{name}=") for name in disagreed))
    members = details.join(odd.select(table.key).lazy(), on=table.key, how="semi", nulls_equal=True).collect()
    for name in disagreed:
        counted = members.drop_nulls(name).group_by(*table.key, f"{name}=").agg(pl.len().alias("count"), pl.col(name).first())
        most = counted.sort("count", f"{name}=", descending=[True, False]).unique(table.key, keep="first", maintain_order=True)
        groups = (
            groups.drop(name, f"{name}<", f"{name}>")
            .join(most.select(*table.key, name), on=table.key, how="left", nulls_equal=True)
            .join(groups.select(*table.key, pl.col(name).alias("one")), on=table.key, how="left", nulls_equal=True)
        )
        groups = groups.with_columns(pl.coalesce(name, "one").alias(name)).drop("one")
    return groups, odd


def _distinct(name: str) -> pl.Expr:
    return pl.col(name).drop_nulls().unique().sort()


def _moment(date: str, time_of_day: str) -> pl.Expr:
    """Date and time of day as one; NULL when either is missing."""
    return pl.col(date).dt.combine(pl.col(time_of_day).str.to_time("%H:%M:%S%.f", strict=False), time_unit="us").dt.replace_time_zone("UTC")


_ACQUIRED = pl.coalesce("AcquisitionDateTime", _moment("AcquisitionDate", "AcquisitionTime"), _moment("ContentDate", "ContentTime"))
_HAS_IMAGE = pl.col("mime").is_not_null()
_IS_IMAGE = pl.col("Rows").is_not_null()
_COUNT = pl.len().cast(pl.Int64)
_SIZE = pl.col("length").sum().alias("bytes")


def _uniform(name: str) -> pl.Expr:
    return pl.when(pl.col(name).min() == pl.col(name).max()).then(pl.col(name).max()).alias(name)


def _middle(name: str) -> pl.Expr:
    """Value of the middle one of the images that have a thumbnail, by number and then UID."""
    order = [pl.col(by).filter(_HAS_IMAGE) for by in ("InstanceNumber", "SOPInstanceUID")]
    return pl.col(name).filter(_HAS_IMAGE).sort_by(order, nulls_last=True).get(_HAS_IMAGE.sum() // 2, null_on_oob=True)


_FIGURES: dict[str, list[pl.Expr]] = {
    "series": [
        _COUNT.alias("NumberOfSeriesRelatedInstances"),
        pl.col("InstanceNumber").min().alias("FirstInstanceNumber"),
        pl.col("InstanceNumber").max().alias("LastInstanceNumber"),
        _ACQUIRED.min().alias("FirstAcquisitionDateTime"),
        _ACQUIRED.max().alias("LastAcquisitionDateTime"),
        _distinct("SOPClassUID").alias("SOPClassUIDs"),
        _distinct("TransferSyntaxUID").alias("TransferSyntaxUIDs"),
        _uniform("Rows"),
        _uniform("Columns"),
        pl.col("NumberOfFrames").fill_null(1).filter(_IS_IMAGE).sum().alias("frames"),
        _SIZE,
        _middle("path").alias("representative_path"),
        _middle("mime").alias("mime"),
    ],
    "study": [
        pl.col("SeriesInstanceUID").drop_nulls().n_unique().cast(pl.Int64).alias("NumberOfStudyRelatedSeries"),
        _COUNT.alias("NumberOfStudyRelatedInstances"),
        _distinct("Modality").alias("ModalitiesInStudy"),
        _distinct("SOPClassUID").alias("SOPClassesInStudy"),
        _distinct("BodyPartExamined").alias("BodyPartsInStudy"),
        _distinct("InstitutionName").alias("InstitutionNames"),
        _distinct("StationName").alias("StationNames"),
        _SIZE,
    ],
    "patient": [
        pl.col("StudyInstanceUID").drop_nulls().n_unique().cast(pl.Int64).alias("NumberOfPatientRelatedStudies"),
        pl.struct("StudyInstanceUID", "SeriesInstanceUID")
        .filter(pl.col("StudyInstanceUID").is_not_null() & pl.col("SeriesInstanceUID").is_not_null())
        .n_unique()
        .cast(pl.Int64)
        .alias("NumberOfPatientRelatedSeries"),
        _COUNT.alias("NumberOfPatientRelatedInstances"),
        pl.col("StudyDate").min().alias("FirstStudyDate"),
        pl.col("StudyDate").max().alias("LastStudyDate"),
        _distinct("Modality").alias("Modalities"),
        _SIZE,
    ],
}
