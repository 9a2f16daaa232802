"""What materializations say about themselves. No patient data but the contact sheet, which a setting switches off."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path

import dagster as dg

from pixels_assets.lake.commit import CommitResult
from pixels_assets.lake.schema import Table

Metadata = dict[str, str | int | float | dg.MetadataValue | dg.TableSchema | dg.TableColumnLineage]


def column_schema(table: Table) -> dg.TableSchema:
    """Columns of a table as Dagster shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(column.name, str(column.type), description=column.comment, constraints=dg.TableColumnConstraints(nullable=column.nullable))
            for column in table.columns
        ]
    )


def asset_key(table: Table) -> dg.AssetKey:
    """Key of the asset that a table is."""
    return dg.AssetKey(["pixels", table.name])


def definition(table: Table) -> Metadata:
    """Metadata that belongs on an asset's definition."""
    return {"dagster/column_schema": column_schema(table), "dagster/table_name": table.name, "dagster/storage_kind": "deltalake"}


def column_lineage(table: Table, origins: Mapping[str, Sequence[Table]]) -> dict[str, object]:
    """Which column of which table each column of `table` comes from; columns of the same name in the first table that has them.

    It says the same for every batch and belongs on the definition, where it costs no storage; the open-source UI does not draw it, GraphQL tells it.
    """
    deps: dict[str, list[dg.TableColumnDep]] = {}
    for column in table.columns:
        for origin in origins.get(column.name, origins.get("*", ())):
            if column.name in origin.column_names:
                deps[column.name] = [dg.TableColumnDep(asset_key(origin), column.name)]
                break
    return {"dagster/column_lineage": dg.TableColumnLineage(deps)}


def materialization(lake: Path, table: Table, result: CommitResult, seconds: float, files: int) -> Metadata:
    """Figures of one materialization: rows, bytes, seconds, files per second, and where it is."""
    return {
        "dagster/partition_row_count": result.rows,
        "dagster/uri": str(lake / table.name),
        "bytes": result.size,
        "seconds": round(seconds, 3),
        "files": files,
        "files_per_second": round(files / seconds, 1) if seconds else 0.0,
        "delta_version": result.version,
        "commit_attempts": result.attempts,
    }


def counts(title: str, values: Mapping[str, int]) -> dg.MetadataValue:
    """Make a small table of counts, which the pages of assets show in place."""
    if not values:
        return dg.MetadataValue.text("none")
    lines = [f"| {title} | count |", "| --- | ---: |", *(f"| {name} | {count} |" for name, count in sorted(values.items()))]
    return dg.MetadataValue.md("\n".join(lines))


PICTURE_BYTES = (50 * 1024 - 64) * 3 // 4
"""Largest image for `picture`: as text in the event log, where it stays, it then takes no more than 50 KiB."""


def in_words(values: Mapping[str, int]) -> str:
    """Write counts in one line, for pages that hide tables behind a button: those of runs and checks."""
    return ", ".join(f"{count} {name}" for name, count in sorted(values.items(), key=lambda item: (-item[1], item[0])) if count) or "none"


def picture(jpeg: bytes) -> dg.MetadataValue:
    """Embed an image, which the UI shows behind a button."""
    return dg.MetadataValue.md(f"![contact sheet](data:image/jpeg;base64,{base64.b64encode(jpeg).decode()})")
