"""What the rows of the hierarchy are made of: of objects of one SOPInstanceUID the current one, of instances their series, study and patient.

Holds the rules that `pixels_assets.lake.rollups` states, as expressions over frames: rows in, rows out. Must not read tables or files.
"""

import polars as pl

from pixels_assets.lake.findings import FROM_SERIES
from pixels_assets.lake.schema import PARTITION, PATIENTS, SERIES, STUDIES, UID_CONFLICTS, Table, level_attributes

LEVELS = {"series": SERIES, "study": STUDIES, "patient": PATIENTS}
"""Tables of groups of instances, lower ones first."""
_SEPARATOR = "\x1e"


def versions_of(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
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


def agreed(rows: pl.LazyFrame, level: str, table: Table) -> tuple[pl.DataFrame, pl.DataFrame]:
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


def columns_of(level: str) -> list[str]:
    """Columns of instances that the rows of a level, and the findings on them, are made of."""
    attributes = [item.keyword for item in level_attributes(level)]
    figures = [name for figure in _FIGURES[level] for name in figure.meta.root_names()]
    return list(dict.fromkeys([*LEVELS[level].key, *attributes, *figures, *(FROM_SERIES if level == "series" else [])]))
