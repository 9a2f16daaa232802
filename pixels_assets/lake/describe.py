"""What tables and headers consist of, for people and for BigQuery: schemas, and every attribute that was seen.

Holds descriptions only. Must not change a table; what it counted of a batch it keeps under ``_tags``, so that a batch is read once.
"""

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pydicom.datadict import keyword_for_tag

from pixels_assets.dicom.json_reading import read_outline
from pixels_assets.lake.commit import open_table
from pixels_assets.lake.query import dataset, require_lake
from pixels_assets.lake.schema import OBJECT_CATALOG, PARTITION, TABLES

_FOLDER = "_tags"
_TYPES = (
    (pa.types.is_struct, "RECORD"),
    (pa.types.is_boolean, "BOOLEAN"),
    (pa.types.is_integer, "INTEGER"),
    (pa.types.is_floating, "FLOAT"),
    (pa.types.is_date, "DATE"),
    (pa.types.is_timestamp, "TIMESTAMP"),
    (pa.types.is_binary, "BYTES"),
)


def bigquery_schema(lake: Path, table: str) -> list[dict[str, Any]]:
    """Give the schema of a table in BigQuery's JSON: name, type, mode, description where there is one, and the fields of records.

    Raises
    ------
    UsageError
        There is no such table, or no lake.
    """
    comments = {column.name: column.comment for column in TABLES[table].columns} if table in TABLES else {}
    required = {column.name for column in TABLES[table].columns if not column.nullable} if table in TABLES else {"path"}
    return [_field(item, comments.get(item.name), required=item.name in required) for item in dataset(lake, table).schema]


def _field(item: pa.Field, comment: str | None, *, required: bool = False) -> dict[str, Any]:
    is_list = pa.types.is_list(item.type) or pa.types.is_large_list(item.type)
    kind = item.type.value_type if is_list else item.type
    name = next((name for is_kind, name in _TYPES if is_kind(kind)), "STRING")
    found: dict[str, Any] = {"name": item.name, "type": name, "mode": "REPEATED" if is_list else "REQUIRED" if required else "NULLABLE"}
    if comment:
        found["description"] = comment
    if name == "RECORD":
        found["fields"] = [_field(child, None) for child in kind]
    return found


def schema_lines(fields: list[dict[str, Any]]) -> Iterator[str]:
    """Write a schema as a table of text: name, type, mode; the fields of a record follow it, indented."""
    rows = list(_rows(fields, 0))
    width = max([len("Field name"), *(len(name) for name, _, _ in rows)])
    yield f"{'Field name':<{width}}  {'Type':<9}  Mode"
    for name, kind, mode in rows:
        yield f"{name:<{width}}  {kind:<9}  {mode}"


def _rows(fields: list[dict[str, Any]], depth: int) -> Iterator[tuple[str, str, str]]:
    for item in fields:
        yield "  " * depth + item["name"], item["type"], item["mode"]
        yield from _rows(item.get("fields", []), depth + 1)


def seen_tags(lake: Path) -> pl.DataFrame:
    """Every attribute that an indexed object has, at every place in its sequences.

    Returns
    -------
    polars.DataFrame
        ``path`` (keywords, or tags where the dictionary has none, with dots between), ``tag`` (the same in hexadecimal digits), ``creator`` of
        private elements, ``vr``, ``objects`` that have it there, ``share`` of all indexed objects, ``first_batch``; in the order of the tags.

    Raises
    ------
    UsageError
        There is no lake.
    """
    require_lake(lake)
    counts: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], str] = {}
    total = 0
    for batch, files in sorted(_live(lake).items()):
        objects, found = _of_batch(lake, batch, files)
        total += objects
        for tag, creator, vr, count in found:
            key = (tag, creator, vr)
            counts[key] += count
            first.setdefault(key, batch)
    rows = [(_in_words(tag), tag, creator or None, vr, count, count / total, first[tag, creator, vr]) for (tag, creator, vr), count in counts.items()]
    schema = {"path": pl.String, "tag": pl.String, "creator": pl.String, "vr": pl.String, "objects": pl.Int64, "share": pl.Float64}
    return pl.DataFrame(rows, schema | {"first_batch": pl.String}, orient="row").sort("tag", "creator", "vr")


def _live(lake: Path) -> dict[str, list[str]]:
    actions = pa.table(open_table(lake, OBJECT_CATALOG.name).get_add_actions(flatten=True))
    found: dict[str, list[str]] = {}
    if actions.num_rows:
        for path, batch in zip(actions["path"].to_pylist(), actions[f"partition.{PARTITION}"].to_pylist(), strict=True):
            found.setdefault(batch, []).append(path)
    return found


def _of_batch(lake: Path, batch: str, files: list[str]) -> tuple[int, list[tuple[str, str, str, int]]]:
    """Count the attributes of a batch, or look up what was counted when its parts were the same."""
    mark = hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()
    kept = lake / _FOLDER / f"{batch}.json"
    with suppress(OSError, ValueError, KeyError):
        found = json.loads(kept.read_bytes())
        if found["mark"] == mark:
            return found["objects"], [tuple(item) for item in found["tags"]]
    objects, counts = 0, Counter[tuple[str, str, str]]()
    for name in files:
        with pq.ParquetFile(lake / OBJECT_CATALOG.name / name) as source:
            for rows in source.iter_batches(64, columns=["meta", "status"], use_threads=False):
                for meta, status in zip(rows["meta"], rows["status"].to_pylist(), strict=True):
                    if status == "indexed" and meta.is_valid:
                        objects += 1
                        counts.update(set(_walk(_parsed(memoryview(meta.as_buffer())), "")))
    tags = [(*key, count) for key, count in sorted(counts.items())]
    with suppress(OSError):  # a lake that cannot be written is counted again next time
        kept.parent.mkdir(exist_ok=True)
        unfinished = kept.with_name(f".{kept.name}.{secrets.token_hex(4)}")
        unfinished.write_bytes(orjson.dumps({"mark": mark, "objects": objects, "tags": tags}))
        unfinished.replace(kept)
    return objects, tags


def _parsed(meta: memoryview) -> dict[str, Any]:
    with suppress(ValueError):
        return read_outline(meta)
    return {}


def _walk(data: dict[str, Any], above: str) -> Iterator[tuple[str, str, str]]:
    stack = [(data, above)]  # no recursion: sequences may be nested as deep as a hostile object wants
    while stack:
        items, prefix = stack.pop()
        for tag, element in items.items():
            vr, creator = element.get("vr", "UN"), ""
            if int(tag[:4], 16) & 1 and tag[4:6] != "00":
                values = items.get(f"{tag[:4]}00{tag[4:6]}", {}).get("Value") or [""]
                creator = str(values[0])
            yield prefix + tag, creator, vr
            if vr == "SQ":
                stack.extend((item, f"{prefix}{tag}.") for item in element.get("Value", ()) if item)


def _in_words(tag: str) -> str:
    return ".".join(keyword_for_tag(int(step, 16)) or step for step in tag.split("."))
