"""Asset checks: what must be true of a batch's tables, whoever wrote them. Must not repair anything."""

import dagster as dg
import polars as pl

from pixels_assets.intake.objects import Change, Status
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.commit import committed, parts_holding
from pixels_assets.lake.query import scan, scan_batch
from pixels_assets.lake.rollups import are_behind
from pixels_assets.lake.schema import DICOM_METADATA, FINDINGS, INSTANCES, OBJECT_CATALOG, THUMBNAILS, UID_CONFLICTS, UNZIPPED_ARCHIVES, Table
from pixels_assets.orchestration.metadata import Metadata, asset_key, counts, in_words
from pixels_assets.orchestration.resources import EngineResource, LakeResource

FAILING = (Status.CORRUPT, Status.ENCRYPTED, Status.LIMIT_EXCEEDED, Status.UNREADABLE, Status.CRASHED, Status.TIMEOUT)


_KEY = ["batch", "path"]
_OBJECT = pl.struct("batch", "path").hash().alias("object")
"""Eight bytes for an object, since an archive may hold a million of them."""


def _batch(context: dg.AssetCheckExecutionContext) -> str | None:
    """Name the batch of the run that a check belongs to; None when it is run by itself, over the whole lake."""
    step = context.op_execution_context
    return step.partition_key if step.has_partition_key else None


def _about(batch: str | None) -> Metadata:
    """Say what a result is about: checks have no partitions that the UI could show."""
    return {"batch": batch or "the whole lake"}


def _rows(lake: LakeResource, table: Table, batch: str | None) -> pl.LazyFrame:
    return scan(lake.path, table.name) if batch is None else scan_batch(lake.path, table, batch)


@dg.asset_check(
    asset=asset_key(DICOM_METADATA),
    blocking=True,
    description="Every file that was listed has exactly one row, and no row is without a file.",
)
def listed_is_accounted(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Compare the manifests with the rows."""
    batch, sealed = _batch(context), manifests(lake.path)
    keys = sorted(committed(lake.path, DICOM_METADATA, sealed.keys())) if batch is None else [batch]
    listed = pl.DataFrame(
        [(key, file.path) for key in keys for file in sealed.load(key) if file.change is not Change.REMOVED],
        schema=dict.fromkeys(_KEY, pl.String),
        orient="row",
    )
    rows = _rows(lake, DICOM_METADATA, batch).filter(pl.col("depth") == 0).select(_KEY).collect()
    missing, extra = listed.join(rows, on=_KEY, how="anti"), rows.join(listed, on=_KEY, how="anti")
    return dg.AssetCheckResult(
        passed=missing.is_empty() and extra.is_empty() and len(rows) == len(listed),
        metadata=_about(batch) | {"listed": len(listed), "rows": len(rows), "missing": len(missing), "unexpected": len(extra)},
    )


@dg.asset_check(
    asset=asset_key(UNZIPPED_ARCHIVES),
    additional_deps=[asset_key(DICOM_METADATA)],
    description="Every archive member has one row here and one in dicom_metadata, and belongs to an archive that has a row itself.",
)
def members_are_accounted(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Compare the members with their rows and their archives."""
    batch = _batch(context)
    metadata = _rows(lake, DICOM_METADATA, batch)
    members = _rows(lake, UNZIPPED_ARCHIVES, batch).select(_OBJECT, archive=pl.struct("batch", "original_path").hash())
    inside = metadata.filter(pl.col("depth") > 0).select(_OBJECT)
    loose = metadata.filter(pl.col("depth") == 0).select(archive=pl.struct("batch", original_path="path").hash())
    figures = {
        "members": members,
        "rows": inside,
        "distinct": members.select("object").unique(),
        "without_row": members.join(inside, on="object", how="anti"),
        "without_member": inside.join(members, on="object", how="anti"),
        "without_archive": members.join(loose, on="archive", how="anti"),
    }
    found = {name: int(frame.select(pl.len()).collect().item()) for name, frame in figures.items()}
    complete = found["without_row"] == found["without_member"] == found["without_archive"] == 0
    return dg.AssetCheckResult(passed=complete and found["members"] == found["rows"] == found["distinct"], metadata={**_about(batch), **found})


@dg.asset_check(
    asset=asset_key(OBJECT_CATALOG),
    description="No path of the batch occurs twice in the whole catalog, and no rowId twice in the batch; run by itself: of the whole catalog.",
)
def rows_are_unique(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Count rows, paths and row ids of the batch, and rows of other batches with these paths."""
    batch = _batch(context)
    rows = _rows(lake, OBJECT_CATALOG, batch).select("rowId", "path").collect()
    figures = {"rows": len(rows), "row_ids": rows["rowId"].n_unique(), "paths": rows["path"].n_unique(), "elsewhere": 0}
    if batch is not None:
        # Parts whose statistics rule these paths out are not opened, so this costs the same in a large lake.
        parts = [file for other, file, _ in parts_holding(lake.path, OBJECT_CATALOG, ["path"], rows["path"]) if other != batch]
        others = (pl.read_parquet(file, columns=["path"], hive_partitioning=False)["path"] for file in parts)
        figures["elsewhere"] = sum(int(paths.is_in(rows["path"].implode()).sum()) for paths in others)
    unique = figures["rows"] == figures["row_ids"] == figures["paths"] and not figures["elsewhere"]
    return dg.AssetCheckResult(passed=unique, metadata={**_about(batch), **figures})


@dg.asset_check(
    asset=asset_key(DICOM_METADATA),
    description="No failing status takes a larger share of the batch's objects than PIXELS_FAILURE_SHARE.",
)
def failures_are_few(context: dg.AssetCheckExecutionContext, lake: LakeResource, engine: EngineResource) -> dg.AssetCheckResult:
    """Compare the share of each failing status with the limit."""
    batch = _batch(context)
    statuses = dict(_rows(lake, DICOM_METADATA, batch).group_by("status").len().collect().iter_rows())
    limit, total = engine.settings().failure_share, sum(statuses.values())
    too_many = [status for status in FAILING if statuses.get(status, 0) > limit * total]
    return dg.AssetCheckResult(
        passed=not too_many,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=_about(batch)
        | {"limit": f"{limit:.0%}", "objects": total, "above_limit": ", ".join(too_many) or "none", "statuses": in_words(statuses)},
    )


@dg.asset_check(
    asset=asset_key(THUMBNAILS),
    description="Every image that could be decoded has a thumbnail: no decoder failed, and no image with a thumbnail lacks its bytes.",
)
def decodable_images_have_thumbnails(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    """Count images that have no thumbnail although their format is supported."""
    batch = _batch(context)
    rows = _rows(lake, THUMBNAILS, batch)
    outcomes = dict(rows.filter(pl.col("status") != "ok").group_by("error_code").len().collect().iter_rows())
    size = pl.col("thumbnail").bin.size().fill_null(0)
    made, empty = rows.filter(pl.col("status") == "ok").select(pl.len(), empty=(size == 0).sum()).collect().row(0)
    failed = outcomes.get("decode_failed", 0)
    return dg.AssetCheckResult(
        passed=not failed and not empty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=_about(batch) | {"thumbnails": made, "decoder_failed": failed, "empty": empty, "without": in_words(outcomes)},
    )


_OBJECTS = ("required_missing", "required_empty", "uid_invalid", "date_invalid", "date_impossible", "frames_disagree", "too_deep")
_SERIES = (
    *("instance_number_missing", "instance_number_repeated", "instance_number_skipped"),
    *("size_mixed", "spacing_mixed", "orientation_mixed", "slices_missing", "slices_uneven", "slices_repeated"),
)
_BATCHES_SHOWN = 50


def _finding_check(name: str, codes: tuple[str, ...], description: str) -> dg.AssetChecksDefinition:
    """Make a check that passes when there are no findings of some kinds; it tells how many of each, and how many of each batch."""

    @dg.asset_check(name=name, asset=asset_key(FINDINGS), description=description)
    def check(lake: LakeResource) -> dg.AssetCheckResult:
        rows = scan(lake.path, FINDINGS.name).filter(pl.col("code").is_in(codes))
        found = dict(rows.group_by("code").len().collect().iter_rows())
        batches = rows.drop_nulls("batch").group_by("batch").len().sort("len", "batch", descending=[True, False]).head(_BATCHES_SHOWN).collect()
        metadata: Metadata = {"findings": sum(found.values()), "codes": in_words(found)}
        if not batches.is_empty():
            metadata["batches"] = counts("batch", dict(batches.iter_rows()))
        return dg.AssetCheckResult(passed=not found, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)

    return check


@dg.asset_check(
    asset=asset_key(UID_CONFLICTS),
    description="No SOPInstanceUID has two contents.",
)
def uids_are_unique(lake: LakeResource) -> dg.AssetCheckResult:
    """Count the UIDs that different contents claim, and the objects that claim them."""
    rows = scan(lake.path, UID_CONFLICTS.name)
    uids, objects, others = rows.select(pl.col("SOPInstanceUID").n_unique(), pl.len(), (~pl.col("is_current")).sum().alias("other")).collect().row(0)
    return dg.AssetCheckResult(
        passed=not objects, severity=dg.AssetCheckSeverity.WARN, metadata={"uids": uids, "objects": objects, "of_other_content": others}
    )


@dg.asset_check(
    asset=asset_key(INSTANCES),
    description="Every indexed object is a current instance, its copy, another version of it, or a finding that it names no SOPInstanceUID.",
)
def indexed_is_in_the_hierarchy(lake: LakeResource) -> dg.AssetCheckResult:
    """Count indexed objects and where they are."""
    indexed = scan(lake.path, OBJECT_CATALOG.name).filter(pl.col("status") == Status.INDEXED.value)
    total, nameless = indexed.select(pl.len(), pl.col("SOPInstanceUID").is_null().sum().alias("nameless")).collect().row(0)
    instances = scan(lake.path, INSTANCES.name)
    current, copies = instances.select(pl.len(), pl.col("duplicates").list.len().sum().alias("copies")).collect().row(0)
    others = scan(lake.path, UID_CONFLICTS.name).filter(~pl.col("is_current")).select(pl.len()).collect().item()
    metadata: Metadata = {"indexed": total, "current": current, "copies": copies or 0, "other_versions": others, "without_uid": nameless or 0}
    if are_behind(lake.path):
        return dg.AssetCheckResult(passed=True, metadata=metadata | {"behind": "the hierarchy is yet to follow the catalog"})
    accounted = current + (copies or 0) + others + (nameless or 0)
    return dg.AssetCheckResult(passed=accounted == total, severity=dg.AssetCheckSeverity.WARN, metadata=metadata)


FINDING_CHECKS = [
    _finding_check("objects_conform", _OBJECTS, "No object lacks what its IOD requires, or has UIDs, dates or frames that cannot be."),
    _finding_check("objects_have_uids", ("not_in_hierarchy",), "No object lacks a UID of the hierarchy."),
    _finding_check("attributes_agree", ("attributes_disagree",), "Instances of one patient, study or series say the same about it."),
    _finding_check("series_are_whole", _SERIES, "No series has gaps, doubled numbers, or slices that make no volume."),
]
CHECKS = [
    listed_is_accounted,
    members_are_accounted,
    rows_are_unique,
    failures_are_few,
    decodable_images_have_thumbnails,
    uids_are_unique,
    indexed_is_in_the_hierarchy,
    *FINDING_CHECKS,
]
