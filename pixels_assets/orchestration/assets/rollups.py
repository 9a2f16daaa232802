"""Group `catalog`, what is not partitioned: the hierarchy of all that is now known, brought up to date by what changed."""

from collections.abc import Iterator

import dagster as dg

from pixels_assets.lake.rollups import RULES, Updated, update_rollups
from pixels_assets.lake.schema import OBJECT_CATALOG, ROLLUPS, Table
from pixels_assets.orchestration.failures import failing_clearly
from pixels_assets.orchestration.metadata import Metadata, asset_key, column_lineage, definition
from pixels_assets.orchestration.resources import LakeResource


def _spec(table: Table) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset_key(table),
        deps=[asset_key(OBJECT_CATALOG)],
        description=table.meaning,
        group_name="catalog",
        kinds={"polars", "deltalake"},
        metadata=definition(table) | column_lineage(table, {"*": [OBJECT_CATALOG]}),
        code_version=str(RULES),
    )


class RollupsConfig(dg.Config):
    """How to bring the rollups up to date."""

    rebuild: bool = False


@dg.multi_asset(name="rollups", specs=[_spec(table) for table in ROLLUPS.values()])
def rollups(context: dg.AssetExecutionContext, config: RollupsConfig, lake: LakeResource) -> Iterator[dg.MaterializeResult]:
    """Compute the rows of what came, changed or went since the last time."""
    with failing_clearly():
        root = lake.prepared()
        done = update_rollups(root, run_id=context.run.run_id, rebuild=config.rebuild)
        for table in ROLLUPS.values():
            yield dg.MaterializeResult(asset_key=asset_key(table), metadata={"dagster/uri": str(root / table.name), **_figures(table, done)})


def _figures(table: Table, done: Updated) -> Metadata:
    """Say what one table came to."""
    figures: Metadata = {
        "catalog_version": done.version,
        "way": "up to date" if not done.tables else "everything anew" if done.since is None else f"what changed since version {done.since}",
        "instances_concerned": done.changed,
        "seconds": round(done.seconds, 3),
    }
    replaced = done.tables.get(table.name)
    if replaced is None:
        return figures
    return figures | {
        "dagster/row_count": replaced.rows,
        "rows_written": replaced.rows_written,
        "rows_copied": replaced.rows_copied,
        "bytes": replaced.size,
        "files_added": replaced.files_added,
        "files_removed": replaced.files_removed,
        "delta_version": replaced.version,
    }
