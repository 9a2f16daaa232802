"""Group `catalog`: what is now known, derived from the tables of the batch."""

import time

import dagster as dg
from pydantic import Field

from pixels_assets.engines.run import commit_catalog, commit_quarantine
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.query import quarantined_files
from pixels_assets.lake.schema import DICOM_METADATA, OBJECT_CATALOG, QUARANTINE, THUMBNAILS
from pixels_assets.orchestration.failures import failing_clearly
from pixels_assets.orchestration.metadata import asset_key, column_lineage, definition, materialization
from pixels_assets.orchestration.partitions import BATCH, batch_of
from pixels_assets.orchestration.resources import LakeResource

_CATALOG_LINEAGE = column_lineage(OBJECT_CATALOG, {"*": [DICOM_METADATA], "thumbnail": [THUMBNAILS]})
_QUARANTINE_LINEAGE = column_lineage(QUARANTINE, {"*": [DICOM_METADATA]})


@dg.asset(
    key=asset_key(OBJECT_CATALOG),
    deps=[asset_key(DICOM_METADATA), asset_key(THUMBNAILS)],
    description=OBJECT_CATALOG.meaning,
    group_name="catalog",
    kinds={"python", "deltalake"},
    metadata=definition(OBJECT_CATALOG) | _CATALOG_LINEAGE,
    partitions_def=BATCH,
    code_version="1",
)
def object_catalog(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Put metadata and thumbnails of one batch side by side, and retire what they replace."""
    with failing_clearly():
        started, root, batch = time.monotonic(), lake.prepared(), batch_of(context)
        files = manifests(root).load(batch)
        result = commit_catalog(root, batch, files, attempt=f"{context.run.run_id}-{context.retry_number}", run_id=context.run.run_id)
        figures = materialization(root, OBJECT_CATALOG, result, time.monotonic() - started, len(files))
        return dg.MaterializeResult(metadata=figures)


def _was_read(context: dg.AssetExecutionContext) -> bool:
    """Whether this run reads the objects, too: only then it counts as an attempt."""
    selected = context.run.asset_selection
    return not selected or asset_key(DICOM_METADATA) in selected


class QuarantineConfig(dg.Config):
    """Whose attempts to count."""

    retry: list[str] = Field(default=[], description="As for `index_objects`: only files in quarantine under these statuses were read again.")


@dg.asset(
    key=asset_key(QUARANTINE),
    deps=[asset_key(DICOM_METADATA), asset_key(OBJECT_CATALOG)],
    description=QUARANTINE.meaning,
    group_name="catalog",
    kinds={"python", "deltalake"},
    metadata=definition(QUARANTINE) | _QUARANTINE_LINEAGE,
    partitions_def=BATCH,
    code_version="1",
)
def quarantine(context: dg.AssetExecutionContext, config: QuarantineConfig, lake: LakeResource) -> dg.MaterializeResult:
    """List the objects of one batch that are neither indexed nor archives."""
    with failing_clearly():
        started, root, batch = time.monotonic(), lake.prepared(), batch_of(context)
        files = manifests(root).load(batch)
        retried = quarantined_files(root, batch, config.retry) if config.retry else None
        if not _was_read(context):
            retried = frozenset()
        attempt = f"{context.run.run_id}-{context.retry_number}"
        result = commit_quarantine(root, batch, files, attempt=attempt, run_id=context.run.run_id, retried=retried)
        figures = materialization(root, QUARANTINE, result, time.monotonic() - started, len(files))
        return dg.MaterializeResult(metadata=figures)
