"""Group `catalog`, the nested data set of all headers, brought up to date by the batches that changed."""

import dagster as dg

from pixels_assets.lake.headers import MEANING, NAME, update_headers
from pixels_assets.lake.schema import OBJECT_CATALOG
from pixels_assets.orchestration.failures import failing_clearly
from pixels_assets.orchestration.metadata import asset_key
from pixels_assets.orchestration.resources import LakeResource
from pixels_assets.settings import Settings

HEADERS_KEY = dg.AssetKey(["pixels", NAME])


def build_headers(settings: Settings) -> dg.AssetsDefinition:
    """Build the asset; whether and how its parts are written is a matter of settings."""

    @dg.asset(
        key=HEADERS_KEY,
        deps=[asset_key(OBJECT_CATALOG)],
        description=MEANING,
        group_name="catalog",
        kinds={"python", "parquet"},
        metadata={"dagster/table_name": NAME, "dagster/storage_kind": "parquet"},
        code_version="1",
    )
    def headers(lake: LakeResource) -> dg.MaterializeResult:
        """Write the parts of batches whose rows in the catalog changed."""
        with failing_clearly():
            root = lake.prepared()
            if not settings.headers:
                return dg.MaterializeResult(metadata={"way": "switched off by PIXELS_HEADERS"})
            done = update_headers(root, partition=settings.headers_partition, missing_date=settings.headers_missing_date)
            return dg.MaterializeResult(
                metadata={
                    "dagster/uri": str(root / NAME),
                    "batches_written": done.batches,
                    "rows_written": done.rows,
                    "parts_written_again": done.rewritten,
                    "columns": done.columns,
                    "widened_fields": done.widened,
                }
            )

    return headers
