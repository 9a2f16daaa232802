"""Group `ingest`: the files of a batch, as they were found.

The members of archives are found while they are read: see `extract`.
"""

import time

import dagster as dg

from pixels_assets.engines.run import commit_raw_files
from pixels_assets.intake.objects import Change
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.schema import RAW_FILES
from pixels_assets.orchestration.failures import failing_clearly
from pixels_assets.orchestration.metadata import asset_key, counts, definition, materialization
from pixels_assets.orchestration.partitions import BATCH, batch_of
from pixels_assets.orchestration.resources import LakeResource


@dg.asset(
    key=asset_key(RAW_FILES),
    description=RAW_FILES.meaning,
    group_name="ingest",
    kinds={"python", "deltalake"},
    metadata=definition(RAW_FILES),
    partitions_def=BATCH,
    code_version="1",
)
def raw_files(context: dg.AssetExecutionContext, lake: LakeResource) -> dg.MaterializeResult:
    """Write the manifest of one batch into the table."""
    with failing_clearly():
        started, root, batch = time.monotonic(), lake.prepared(), batch_of(context)
        files = manifests(root).load(batch)
        result = commit_raw_files(root, batch, files, attempt=f"{context.run.run_id}-{context.retry_number}", run_id=context.run.run_id)
        changes = {change.value: sum(file.change is change for file in files) for change in Change}
        return dg.MaterializeResult(
            metadata=materialization(root, RAW_FILES, result, time.monotonic() - started, len(files))
            | {"changes": counts("change", changes), "source_bytes": sum(file.length for file in files if file.change is not Change.REMOVED)}
        )
