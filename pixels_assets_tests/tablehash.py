"""One number for all that the tables of a lake say, so that two lakes can be compared.

What depends on the clock or on the run does not count: the keys of batches become their places in order. The order of rows in a table means nothing.
"""

import json
from hashlib import sha256
from pathlib import Path

import polars as pl
import polars.selectors as cs

from pixels_assets.lake.schema import TABLES


def table_hashes(lake: Path) -> dict[str, str]:
    """SHA-256 of each table's rows, every column included, by table name."""
    keys = sorted(pl.read_delta(str(lake / "raw_files"), columns=["batch"])["batch"].unique())
    places = {key: f"batch {place}" for place, key in enumerate(keys)}
    tables = {name: pl.read_delta(str(lake / name)) for name in TABLES}
    return {name: rows_hash(rows.with_columns(cs.by_name("batch", require_all=False).replace_strict(places))) for name, rows in tables.items()}


def table_hash(lake: Path) -> str:
    """One SHA-256 of all tables."""
    return sha256(json.dumps(table_hashes(lake), sort_keys=True).encode()).hexdigest()


def rows_hash(rows: pl.DataFrame) -> str:
    """SHA-256 of rows, whatever their order and that of their columns."""
    names = sorted(rows.columns)
    lines = sorted(repr(row).encode() for row in rows.select(names).iter_rows())
    return sha256(b"\n".join([repr(names).encode(), *lines])).hexdigest()


def table_versions(lake: Path) -> dict[str, int]:
    """Newest Delta version of each table."""
    return {name: max(int(entry.stem) for entry in (lake / name / "_delta_log").glob("*.json") if entry.stem.isdigit()) for name in TABLES}
