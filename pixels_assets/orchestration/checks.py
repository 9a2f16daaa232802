"""Asset checks: what must be true of a batch's tables, whoever wrote them. Must not repair anything."""

import dagster as dg
import polars as pl

from pixels_assets.intake.objects import Change, Status
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.query import scan
from pixels_assets.lake.schema import DICOM_METADATA, OBJECT_CATALOG, THUMBNAILS, UNZIPPED_ARCHIVES, Table
from pixels_assets.orchestration.metadata import asset_key, counts
from pixels_assets.orchestration.resources import EngineResource, LakeResource

FAILING = (Status.CORRUPT, Status.ENCRYPTED, Status.LIMIT_EXCEEDED, Status.UNREADABLE, Status.CRASHED, Status.TIMEOUT)


def _batch(context: dg.AssetCheckExecutionContext) -> str | None:
    """The batch of the run that a check belongs to; None when it is run by itself, over the whole lake."""
    step = context.op_execution_context
    return step.partition_key if step.has_partition_key else None


def _rows(lake: LakeResource, table: Table, batch: str | None) -> pl.LazyFrame:
    rows = scan(lake.path, table.name)
    return rows if batch is None else rows.filter(pl.col("batch") == batch)


@dg.asset_check(
    asset=asset_key(DICOM_METADATA),
    blocking=True,
    description="Every file that was listed has exactly one row, and no row is without a file.",
)
def listed_is_accounted(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    batch, sealed = _batch(context), manifests(lake.path)
    keys = sealed.keys() if batch is None else [batch]
    listed = [(key, file.path) for key in keys for file in sealed.load(key) if file.change is not Change.REMOVED]
    loose = list(_rows(lake, DICOM_METADATA, batch).filter(pl.col("depth") == 0).select("batch", "path").collect().iter_rows())
    missing, extra = set(listed) - set(loose), set(loose) - set(listed)
    return dg.AssetCheckResult(
        passed=not missing and not extra and len(loose) == len(listed),
        metadata={"listed": len(listed), "rows": len(loose), "missing": len(missing), "unexpected": len(extra)},
    )


@dg.asset_check(
    asset=asset_key(UNZIPPED_ARCHIVES),
    additional_deps=[asset_key(DICOM_METADATA)],
    description="Every archive member has one row here and one in dicom_metadata, and belongs to an archive that has a row itself.",
)
def members_are_accounted(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    members = _rows(lake, UNZIPPED_ARCHIVES, _batch(context)).select("batch", "path", "original_path").collect()
    objects = _rows(lake, DICOM_METADATA, _batch(context)).select("batch", "path", "depth").collect()
    inside, loose = objects.filter(pl.col("depth") > 0), objects.filter(pl.col("depth") == 0)
    orphans = members.join(loose, left_on=["batch", "original_path"], right_on=["batch", "path"], how="anti")
    difference = set(members.select("batch", "path").iter_rows()) ^ set(inside.select("batch", "path").iter_rows())
    return dg.AssetCheckResult(
        passed=not difference and orphans.is_empty() and len(members) == len(inside) == members.select("batch", "path").n_unique(),
        metadata={"members": len(members), "rows": len(inside), "different": len(difference), "without_archive": len(orphans)},
    )


@dg.asset_check(asset=asset_key(OBJECT_CATALOG), description="No path and no rowId occurs twice in the whole catalog.")
def rows_are_unique(lake: LakeResource) -> dg.AssetCheckResult:
    rows = scan(lake.path, OBJECT_CATALOG.name).select(pl.len(), ids=pl.col("rowId").n_unique(), paths=pl.col("path").n_unique()).collect().row(0)
    return dg.AssetCheckResult(passed=len(set(rows)) == 1, metadata={"rows": rows[0], "row_ids": rows[1], "paths": rows[2]})


@dg.asset_check(
    asset=asset_key(DICOM_METADATA),
    description="No failing status takes a larger share of the batch's objects than PIXELS_FAILURE_SHARE.",
)
def failures_are_few(context: dg.AssetCheckExecutionContext, lake: LakeResource, engine: EngineResource) -> dg.AssetCheckResult:
    statuses = dict(_rows(lake, DICOM_METADATA, _batch(context)).group_by("status").len().collect().iter_rows())
    limit, total = engine.settings().failure_share, sum(statuses.values())
    too_many = [status for status in FAILING if statuses.get(status, 0) > limit * total]
    return dg.AssetCheckResult(
        passed=not too_many,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"limit": limit, "objects": total, "above_limit": ", ".join(too_many) or "none", "statuses": counts("status", statuses)},
    )


@dg.asset_check(
    asset=asset_key(THUMBNAILS),
    description="Every image that could be decoded has a thumbnail: no decoder failed, and no image with a thumbnail lacks its bytes.",
)
def decodable_images_have_thumbnails(context: dg.AssetCheckExecutionContext, lake: LakeResource) -> dg.AssetCheckResult:
    rows = _rows(lake, THUMBNAILS, _batch(context))
    outcomes = dict(rows.filter(pl.col("status") != "ok").group_by("error_code").len().collect().iter_rows())
    made, empty = rows.filter(pl.col("status") == "ok").select(pl.len(), (pl.col("thumbnail").bin.size() == 0).sum()).collect().row(0)
    failed = outcomes.get("decode_failed", 0)
    return dg.AssetCheckResult(
        passed=not failed and not empty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata={"thumbnails": made, "decoder_failed": failed, "without": counts("reason", outcomes)},
    )


CHECKS = [listed_is_accounted, members_are_accounted, rows_are_unique, failures_are_few, decodable_images_have_thumbnails]
