"""Group `annotations`, what is not partitioned: measurements and segments, linked to the images that they are about."""

import time
from collections.abc import Iterator

import dagster as dg

from pixels_assets.lake.annotations import RULES, link_annotations
from pixels_assets.lake.schema import ANNOTATIONS, LINKED, OBJECT_CATALOG, Table
from pixels_assets.orchestration.failures import failing_clearly
from pixels_assets.orchestration.metadata import Metadata, asset_key, column_lineage, definition
from pixels_assets.orchestration.resources import LakeResource


def _spec(table: Table) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset_key(table),
        deps=[asset_key(ANNOTATIONS), asset_key(OBJECT_CATALOG)],
        description=table.meaning,
        group_name="annotations",
        kinds={"polars", "deltalake"},
        metadata=definition(table) | column_lineage(table, {"*": [ANNOTATIONS, OBJECT_CATALOG]}),
        code_version=str(RULES),
    )


@dg.multi_asset(name="linked_annotations", specs=[_spec(table) for table in LINKED.values()])
def linked_annotations(context: dg.AssetExecutionContext, lake: LakeResource) -> Iterator[dg.MaterializeResult]:
    """Look up the images that annotations are about; what is not there is flagged."""
    with failing_clearly():
        started, root = time.monotonic(), lake.prepared()
        done = link_annotations(root, run_id=context.run.run_id)
        for name, table in LINKED.items():
            figures: Metadata = {"dagster/uri": str(root / name), "seconds": round(time.monotonic() - started, 3)}
            replaced = done.tables.get(name)
            if replaced is not None:
                figures |= {
                    "dagster/row_count": replaced.rows,
                    "rows_with_missing_sources": done.missing[name],
                    "bytes": replaced.size,
                    "delta_version": replaced.version,
                }
            yield dg.MaterializeResult(asset_key=asset_key(table), metadata=figures)
