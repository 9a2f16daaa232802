"""Asset checks: what must be true of a batch's tables, whoever wrote them. Must not repair anything."""

import dagster as dg
import polars as pl

from pixels_assets.intake.objects import Change, Status
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.query import scan
from pixels_assets.lake.schema import DICOM_METADATA, OBJECT_CATALOG, THUMBNAILS, UNZIPPED_ARCHIVES, Table
from pixels_assets.orchestration.metadata import asset_key, in_words
from pixels_assets.orchestration.resources import EngineResource, LakeResource

FAILING = (Status.CORRUPT, Status.ENCRYPTED, Status.LIMIT_EXCEEDED, Status.UNREADABLE, Status.CRASHED, Status.TIMEOUT)


_OBJECT = ["batch", "path"]


def _batch(context: dg.AssetCheckExecutionContext) -> str | None:
    """The batch of the run that a check belongs to; None when it is run by itself, over the whole lake."""
    step = context.op_execution_context
    return step.partition_key if step.has_partition_key else None


def _about(batch: str | None) -> dict[str, object]:
    """What a result is about: checks have no partitions that the UI could show."""
    return {"batch": batch or "the whole lake"}


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
    listed = pl.DataFrame(
        [(key, file.path) for key in keys for file in sealed.load(key) if file.change is not Change.REMOVED], schema=_OBJECT, orient="row"
    )
    rows = _rows(lake, DICOM_METADATA, batch).filter(pl.col("depth") == 0).select(_OBJECT).collect()
    missing, extra = listed.join(rows, on=_OBJECT, how="anti"), rows.join(listed, on=_OBJECT, how="anti")
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
    batch = _batch(context)
    members = _rows(lake, UNZIPPED_ARCHIVES, batch).select(*_OBJECT, "original_path")
    inside = _rows(lake, DICOM_METADATA, batch).filter(pl.col("depth") > 0).select(_OBJECT)
    loose = _rows(lake, DICOM_METADATA, batch).filter(pl.col("depth") == 0).select("batch", original_path="path")
    figures = {
        "members": members,
        "rows": inside,
        "distinct": members.select(_OBJECT).unique(),
        "without_row": members.join(inside, on=_OBJECT, how="anti"),
        "without_member": inside.join(members, on=_OBJECT, how="anti"),
        "without_archive": members.join(loose, on=["batch", "original_path"], how="anti"),
    }
    found = {name: int(frame.select(pl.len()).collect().item()) for name, frame in figures.items()}
    complete = found["without_row"] == found["without_member"] == found["without_archive"] == 0
    return dg.AssetCheckResult(passed=complete and found["members"] == found["rows"] == found["distinct"], metadata=_about(batch) | found)


@dg.asset_check(asset=asset_key(OBJECT_CATALOG), description="No path and no rowId occurs twice in the whole catalog.")
def rows_are_unique(lake: LakeResource) -> dg.AssetCheckResult:
    rows = scan(lake.path, OBJECT_CATALOG.name).select(pl.len(), ids=pl.col("rowId").n_unique(), paths=pl.col("path").n_unique()).collect().row(0)
    return dg.AssetCheckResult(passed=len(set(rows)) == 1, metadata={"rows": rows[0], "row_ids": rows[1], "paths": rows[2]})


@dg.asset_check(
    asset=asset_key(DICOM_METADATA),
    description="No failing status takes a larger share of the batch's objects than PIXELS_FAILURE_SHARE.",
)
def failures_are_few(context: dg.AssetCheckExecutionContext, lake: LakeResource, engine: EngineResource) -> dg.AssetCheckResult:
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
    batch = _batch(context)
    rows = _rows(lake, THUMBNAILS, batch)
    outcomes = dict(rows.filter(pl.col("status") != "ok").group_by("error_code").len().collect().iter_rows())
    made, empty = rows.filter(pl.col("status") == "ok").select(pl.len(), (pl.col("thumbnail").bin.size() == 0).sum()).collect().row(0)
    failed = outcomes.get("decode_failed", 0)
    return dg.AssetCheckResult(
        passed=not failed and not empty,
        severity=dg.AssetCheckSeverity.WARN,
        metadata=_about(batch) | {"thumbnails": made, "decoder_failed": failed, "without": in_words(outcomes)},
    )


CHECKS = [listed_is_accounted, members_are_accounted, rows_are_unique, failures_are_few, decodable_images_have_thumbnails]
