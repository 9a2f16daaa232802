"""The nested, typed Parquet data set `headers`: one row per indexed object, a column per attribute, sequences as lists of structs.

Holds its registry of fields, the way from DICOM JSON to rows, and how parts are replaced. It is made from `object_catalog` alone; must not read
sources. The types follow from the standard's dictionary (VR and VM), not from the values, so that batches agree; a value that does not fit widens its
field, for all parts, and the registry says why.

The folder holds ``batch=<key>/*.parquet``, or ``study_date=<day>/batch=<key>/*.parquet``, and ``_schema.json``: the registry of fields, and which
parts count. A part has the columns that were known when it was written; readers unify them by name.
"""

import base64
import binascii
import datetime as dt
import gc
import hashlib
import json
import logging
import os
import re
import secrets
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pydicom.datadict import dictionary_keyword, dictionary_VM, dictionary_VR

from pixels_assets.dicom.json_reading import LARGE_BYTES, read_json
from pixels_assets.errors import LakeError
from pixels_assets.lake.commit import LOCK_SECONDS, open_table, table_lock
from pixels_assets.lake.parts import lake_errors, sync_path
from pixels_assets.lake.schema import OBJECT_CATALOG, PARTITION

logger = logging.getLogger(__name__)

NAME = "headers"
MEANING = "One row per indexed object, a column per attribute, sequences as lists of structs: nested, typed Parquet."
MANIFEST = "_schema.json"
MAX_DEPTH = 15
"""Sequences within sequences; what lies deeper is kept as JSON text, as BigQuery takes no more than 15 levels of records."""
OTHERS = "OtherElements"
"""Column of what has no column: private elements, those the dictionary does not know, and those whose value is of another shape than it says."""
BY_BATCH, BY_DATE = "batch", "study_date"

_CHUNK_ROWS = 5_000
_CHUNK_BYTES = 16 * 1024**2
_NULL = "__HIVE_DEFAULT_PARTITION__"
_UNFINISHED = ".tmp"
_KINDS = {
    **dict.fromkeys(("AE", "AS", "CS", "LO", "LT", "SH", "ST", "UC", "UI", "UR", "UT", "TM", "DT", "AT"), "text"),
    **dict.fromkeys(("IS", "SL", "SS", "UL", "US", "SV", "UV", "US or SS"), "integer"),
    **dict.fromkeys(("DS", "FL", "FD"), "number"),
    "DA": "date",
    "PN": "person",
    "SQ": "record",
}
_GROUPS = ("Alphabetic", "Ideographic", "Phonetic")
_PERSON = pa.struct([(group, pa.string()) for group in _GROUPS])
_ODD = frozenset("13579BDFbdf")
_BINARY = pa.struct([("InlineBinary", pa.binary()), ("BulkDataURI", pa.string())])
_OTHERS = pa.list_(pa.struct([("tag", pa.string()), ("creator", pa.string()), ("vr", pa.string()), ("value", pa.string())]))
_ARROW = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "date": pa.date32(), "person": _PERSON, "binary": _BINARY}
_DATE = re.compile(r"\s*(\d{4})\.?(\d{2})\.?(\d{2})\s*")
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
"""Cuts a data set into the texts of its elements."""
_KEYS = (
    pa.field("path", pa.string(), nullable=False),
    pa.field("content_hash", pa.string()),
    pa.field("TransferSyntaxUID", pa.string()),
)


@dataclass(slots=True)
class Field:
    """One attribute, at one place in the tree of sequences.

    Parameters
    ----------
    tag : str
        Eight hexadecimal digits.
    name : str
        Its keyword.
    vr : str
        Of the dictionary.
    kind : str
        ``text``, ``integer``, ``number``, ``date``, ``person``, ``binary``, ``record``; ``json`` for sequences that lie too deep.
    repeated : bool
        A list: the dictionary's VM is not 1, or an object had more values than that.
    record : Record or None
        Fields of a sequence's items.
    """

    tag: str
    name: str
    vr: str
    kind: str
    repeated: bool
    record: "Record | None" = None

    @property
    def arrow(self) -> pa.DataType | None:
        """Arrow type; None for a sequence of which no item had an element yet."""
        if self.record is not None:
            fields = self.record.arrow
            return pa.list_(pa.struct(fields)) if fields else None
        kind = _ARROW.get(self.kind, pa.string())
        return pa.list_(kind) if self.repeated else kind


@dataclass(slots=True)
class Record:
    """The fields of a data set or of a sequence's items, by tag."""

    path: str = ""
    depth: int = 0
    fields: dict[str, Field] = field(default_factory=dict)
    has_others: bool = False

    @property
    def arrow(self) -> list[pa.Field]:
        """Arrow fields in the order of their tags."""
        found = [pa.field(item.name, kind) for _, item in sorted(self.fields.items()) if (kind := item.arrow) is not None]
        return [*found, pa.field(OTHERS, _OTHERS)] if self.has_others else found

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` takes."""
        described: dict[str, Any] = {}
        for tag, item in sorted(self.fields.items()):
            described[tag] = {"name": item.name, "vr": item.vr, "kind": item.kind, "repeated": item.repeated}
            if item.record is not None:
                described[tag]["record"] = item.record.to_json()
        return {"fields": described, "others": self.has_others}

    @classmethod
    def from_json(cls, described: dict[str, Any], path: str = "", depth: int = 0) -> "Record":
        """Make one of what `to_json` gave."""
        found = cls(path, depth, {}, described["others"])
        for tag, item in described["fields"].items():
            inner = f"{path}.{item['name']}" if path else item["name"]
            record = cls.from_json(item["record"], inner, depth + 1) if "record" in item else None
            found.fields[tag] = Field(tag, item["name"], item["vr"], item["kind"], item["repeated"], record)
        return found


@dataclass(slots=True)
class Registry:
    """What the manifest holds.

    Parameters
    ----------
    partition : str
        Setting that the parts were written under: how they are partitioned, and the day that stands for none.
    root : Record
    widened : list of dict
        Each field that got another type: its path, from what, to what, why, and in which batch that was seen.
    batches : dict of str to dict
        By key: ``mark`` of the catalog's parts that it was made from, and its ``files`` with their rows.
    """

    partition: str
    root: Record = field(default_factory=Record)
    widened: list[dict[str, str]] = field(default_factory=list)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, int]:
        """Rows of each part that counts, by path below the folder."""
        return {name: rows for batch in self.batches.values() for name, rows in batch["files"].items()}

    @property
    def arrow(self) -> pa.Schema:
        """Schema of a part that is written now."""
        return pa.schema([*_KEYS, *(item for item in self.root.arrow if item.name not in {key.name for key in _KEYS})])


@dataclass(frozen=True, slots=True)
class HeadersUpdate:
    """What one update did.

    Parameters
    ----------
    batches : int
        Batches whose parts were written or removed.
    rows : int
        Rows written.
    rewritten : int
        Older parts that were written again because a field was widened.
    columns : int
        Columns at the top level.
    widened : int
        Fields that have another type than the dictionary gives, in all.
    """

    batches: int
    rows: int
    rewritten: int
    columns: int
    widened: int


def update_headers(lake: Path, *, partition: str = BY_BATCH, missing_date: str = "") -> HeadersUpdate:
    """Bring the data set up to date with `object_catalog`: only batches whose rows changed are written.

    Every batch is complete when its parts get their names; the manifest follows. Stop it anywhere and call it again.

    Parameters
    ----------
    lake : Path
    partition : str
        ``batch``, or ``study_date`` for a folder per day above those of the batches. Another choice than before writes everything again.
    missing_date : str
        Day that stands for none in the folders' names, such as ``1900-01-01``; empty: the partition of NULL.

    Returns
    -------
    HeadersUpdate

    Raises
    ------
    LakeError
        No space, no permission, or the lake cannot be read.
    """
    folder = lake / NAME
    with table_lock(lake, NAME, LOCK_SECONDS), lake_errors("write headers", folder):
        folder.mkdir(parents=True, exist_ok=True)
        registry = load(lake)
        layout = _layout(partition, missing_date)
        if registry is None or registry.partition != layout:
            registry = Registry(layout)
        _clean(folder, registry)
        found = _catalog(lake)
        changed = [batch for batch in sorted(found) if registry.batches.get(batch, {}).get("mark") != _mark(found[batch])]
        gone = [batch for batch in registry.batches if batch not in found]
        rows = rewritten = 0
        for batch in gone:
            _commit(folder, registry, {batch: None})
        for batch in changed:
            writer = _Writer(lake, registry, batch, missing_date if partition == BY_DATE else None)
            written, again = writer.write([lake / OBJECT_CATALOG.name / name for name in found[batch]], _mark(found[batch]))
            rows, rewritten = rows + written, rewritten + again
        if not (folder / MANIFEST).exists():
            _commit(folder, registry, {})
        return HeadersUpdate(len(changed) + len(gone), rows, rewritten, len(registry.arrow), len(registry.widened))


def headers_are_behind(lake: Path, *, partition: str = BY_BATCH, missing_date: str = "") -> bool:
    """Whether `update_headers` would write something.

    Raises
    ------
    LakeError
        The manifest or the catalog cannot be read.
    """
    registry = load(lake)
    if registry is None or registry.partition != _layout(partition, missing_date):
        return True
    found = _catalog(lake)
    return {batch: _mark(paths) for batch, paths in found.items()} != {batch: known["mark"] for batch, known in registry.batches.items()}


def load(lake: Path) -> Registry | None:
    """Read the manifest; None when there is none.

    Raises
    ------
    LakeError
        It cannot be read.
    """
    file = lake / NAME / MANIFEST
    try:
        found = json.loads(file.read_bytes())
        return Registry(found["partition"], Record.from_json(found["schema"]), found["widened"], found["batches"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        msg = f"{file} cannot be read ({type(error).__name__}); remove the folder {file.parent}, and the next run makes it again"
        raise LakeError(msg) from error


def scan_headers(lake: Path) -> pl.LazyFrame:
    """Open the parts that count as one lazy frame, as `headers_dataset` does."""
    registry, dataset = load(lake) or Registry(BY_BATCH), headers_dataset(lake)
    empty = pl.from_arrow(dataset.schema.empty_table())
    assert isinstance(empty, pl.DataFrame)
    if not registry.files:
        return empty.lazy()
    hive = {name: kind for name, kind in empty.schema.items() if name in {PARTITION, BY_DATE}}
    return pl.scan_parquet(
        [lake / NAME / name for name in registry.files],
        schema=empty.schema,
        hive_partitioning=True,
        hive_schema=hive,
        missing_columns="insert",
        cast_options=pl.ScanCastOptions(missing_struct_fields="insert"),
    )


def headers_dataset(lake: Path) -> ds.Dataset:
    """Open the parts that count as one Arrow data set, with the columns of all of them and `batch`.

    Raises
    ------
    LakeError
        The manifest cannot be read.
    """
    registry = load(lake) or Registry(BY_BATCH)
    parts = [pa.field(PARTITION, pa.string())]
    if registry.partition != BY_BATCH:
        parts = [pa.field(BY_DATE, pa.date32()), *parts]
    schema = pa.schema([*registry.arrow, *parts])
    files = [str(lake / NAME / name) for name in registry.files]
    partitioning = ds.partitioning(pa.schema(parts), flavor="hive")
    return ds.dataset(files, schema=schema, format="parquet", partitioning=partitioning, partition_base_dir=str(lake / NAME))


class MisfitError(ValueError):
    """A value does not fit its field. Cause: the object. Remedy: the field is widened to the kind that this names, and the rows are made again."""

    def __init__(self, item: Field, path: str, kind: str, repeated: bool, reason: str) -> None:
        super().__init__(reason)
        self.item, self.path, self.kind, self.repeated, self.reason = item, path, kind, repeated, reason


def to_row(data: dict[str, Any], record: Record) -> dict[str, Any]:
    """Make a row of a data set in the DICOM JSON model; fields that it brings are added to the record.

    Raises
    ------
    MisfitError
        A value does not fit its field.
    """
    row: dict[str, Any] = {}
    others: list[dict[str, Any]] = []
    creators: dict[str, str | None] = {}
    fields = record.fields
    for tag, element in data.items():
        item = fields.get(tag)
        if item is None and tag[3] not in _ODD:
            item = _new_field(tag, record)
        if item is None or not _fits(item, element):
            others.append(_other(tag, element, data, creators))
        else:
            row[item.name] = _value(item, element, record)
    if others:
        record.has_others = True
        row[OTHERS] = others
    return row


def _value(item: Field, element: dict[str, Any], record: Record) -> Any:
    """Value of an element that has the shape of its field.

    Raises
    ------
    MisfitError
        It is of another type.
    """
    if item.record is not None:
        return [to_row(value, item.record) if value else {} for value in element.get("Value", ())]
    if item.kind == "json":
        return _json(element["Value"]) if "Value" in element else None
    if item.kind == "binary":
        value = _binary(element)
        return [value] if item.repeated else value
    values = element.get("Value", ())
    if isinstance(values, np.ndarray) and not (item.kind == "number" and item.repeated):
        values = values.tolist()
    return _values(item, values, record)


def _new_field(tag: str, record: Record) -> Field | None:
    """Field of an attribute that was not seen here before, None when the dictionary does not know it."""
    number = int(tag, 16)
    if number >> 16 & 1:
        return None
    try:
        vr, keyword, vm = dictionary_VR(number), dictionary_keyword(number), dictionary_VM(number)
    except KeyError:
        return None
    if not keyword or keyword in {key.name for key in _KEYS} or any(item.name == keyword for item in record.fields.values()):
        return None  # a second group of a repeating attribute has the keyword of the first
    kind = _KINDS.get(vr, "binary")
    if kind == "record" and record.depth >= MAX_DEPTH:
        item = Field(tag, keyword, vr, "json", repeated=False)
    elif kind == "record":
        inner = f"{record.path}.{keyword}" if record.path else keyword
        item = Field(tag, keyword, vr, kind, repeated=True, record=Record(inner, record.depth + 1))
    else:
        item = Field(tag, keyword, vr, kind, repeated=vm != "1" and kind != "binary")
    record.fields[tag] = item
    return item


def _fits(item: Field, element: dict[str, Any]) -> bool:
    """Whether an element has the shape that its field has: items, names, binary or plain values."""
    vr = element.get("vr")
    if item.kind in {"record", "json"}:
        return vr == "SQ"
    if item.kind == "binary":
        return "Value" not in element
    values = element.get("Value")
    if values is None:
        return "InlineBinary" not in element and "BulkDataURI" not in element
    if isinstance(values, np.ndarray):
        return item.kind != "person"
    if item.kind == "person":
        return all(value is None or isinstance(value, dict) for value in values) and vr == "PN"
    return not any(isinstance(value, dict) for value in values)


def _other(tag: str, element: dict[str, Any], data: dict[str, Any], creators: dict[str, str | None]) -> dict[str, Any]:
    """Make an entry of what has no field. `creators` remembers those of this data set by their blocks: most of it are private elements."""
    creator = None
    if tag[3] in _ODD and not tag.startswith("00", 4):
        block = tag[:6]
        if block not in creators:
            creators[block] = _creator(data.get(_reservation(tag), {}))
        creator = creators[block]
    return _entry(tag, element, creator)


def _reservation(tag: str) -> str:
    """Tag of the element that says whose block a private element is in (PS3.5 7.8.1)."""
    return f"{tag[:4]}00{tag[4:6]}"


def _creator(element: dict[str, Any]) -> str | None:
    return next((str(value) for value in element.get("Value", ())), None)


def _entry(tag: str, element: dict[str, Any], creator: str | None) -> dict[str, Any]:
    values = element.get("Value")
    value = _json(values) if values is not None else element.get("InlineBinary") or element.get("BulkDataURI")
    return {"tag": tag, "creator": creator, "vr": element.get("vr"), "value": value}


def _json(value: Any) -> str | None:
    """Write JSON text; None for what is nested too deep even for that, which only `meta` holds."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    except orjson.JSONEncodeError:
        with suppress(RecursionError):
            return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return None


def _parsed(meta: memoryview) -> dict[str, Any]:
    with suppress(ValueError):
        return read_json(meta)
    return {}


def _binary(element: dict[str, Any]) -> dict[str, Any] | None:
    if "InlineBinary" in element:
        try:
            return {"InlineBinary": base64.b64decode(element["InlineBinary"])}
        except (binascii.Error, TypeError):
            return None
    return {"BulkDataURI": element["BulkDataURI"]} if "BulkDataURI" in element else None


def _values(item: Field, values: Any, record: Record) -> Any:
    kind = item.kind
    if isinstance(values, np.ndarray):
        return values
    if kind == "text":
        texts = [value if value is None or type(value) is str else _as_text(value) for value in values]
        if len(texts) > 1 and not item.repeated:
            return "\\".join(value or "" for value in texts)  # as DICOM writes it, PS3.5 6.4: text holds that
        return texts if item.repeated else texts[0] if texts else None
    if kind == "person":
        return _person(item, values)
    path = f"{record.path}.{item.name}" if record.path else item.name
    if not item.repeated and len(values) > 1:
        raise MisfitError(item, path, kind, True, f"{len(values)} values where DICOM PS3.6 has one")
    found: list[Any]
    if kind == "number":
        found = [value if type(value) is float else _number(value, item, path) for value in values]
    elif kind == "integer":
        found = [_integer(value, item, path) for value in values]
    else:
        found = [_day(value, item, path) for value in values]
    if item.repeated:
        return found
    return found[0] if found else None


def _person(item: Field, values: Any) -> Any:
    if item.repeated:
        return [value and {group: value.get(group) for group in _GROUPS} for value in values]
    if len(values) > 1:
        return {group: "\\".join((value or {}).get(group) or "" for value in values).strip("\\") or None for group in _GROUPS}
    return {group: values[0].get(group) for group in _GROUPS} if values and values[0] else None


def _as_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return str(value)


def _number(value: Any, item: Field, path: str) -> float | None:
    if value is None or value == "":
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise MisfitError(item, path, "text", item.repeated, "a value that is no number") from None


def _integer(value: Any, item: Field, path: str) -> int | None:
    if value is None or value == "":
        return None
    try:
        whole = int(value)
    except (TypeError, ValueError, OverflowError):
        raise MisfitError(item, path, "text", item.repeated, "a value that is no integer") from None
    if isinstance(value, float) and whole != value:
        raise MisfitError(item, path, "number", item.repeated, "a value with a fraction")
    if not -(1 << 63) <= whole < 1 << 63:
        raise MisfitError(item, path, "text", item.repeated, "a value beyond 64 bits")
    return whole


def _day(value: Any, item: Field, path: str) -> dt.date | None:
    if value is None or value == "":
        return None
    found = _DATE.fullmatch(value) if isinstance(value, str) else None
    try:
        return dt.date(*map(int, found.groups())) if found else _no_day(item, path)
    except ValueError:
        return _no_day(item, path)


def _no_day(item: Field, path: str) -> dt.date:
    raise MisfitError(item, path, "text", item.repeated, "a value that is no date")


def _conform(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Give an array another type that holds all of its values."""
    have = array.type
    if have.equals(kind):
        return array
    if pa.types.is_list(kind) and not pa.types.is_list(have):
        lengths = pc.cast(pc.is_valid(array), pa.int32())
        offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths)])
        values = _conform(array.drop_null(), kind.value_type)
        return pa.ListArray.from_arrays(offsets, values, type=kind, mask=array.is_null())
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(array.offsets, _conform(array.values, kind.value_type), type=kind, mask=array.is_null())
    if pa.types.is_struct(kind):
        children = []
        for wanted in kind:
            place = have.get_field_index(wanted.name)
            children.append(_conform(array.field(place), wanted.type) if place >= 0 else pa.nulls(len(array), wanted.type))
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    if pa.types.is_date(have):
        return pc.strftime(array, "%Y%m%d")
    return array.cast(kind, safe=False)


class _Writer:
    """Writes the parts of one batch, and those of others again where it widens a field."""

    def __init__(self, lake: Path, registry: Registry, batch: str, missing_date: str | None) -> None:
        self._folder, self._registry, self._batch = lake / NAME, registry, batch
        self._missing_date = missing_date  # None: partitioned by batch
        self._new: dict[str, int] = {}
        self._rewritten: dict[str, str] = {}

    def write(self, sources: list[Path], mark: str) -> tuple[int, int]:
        """Write all parts and make them count; returns rows of the batch, and older parts that were written again."""
        widened_before = len(self._registry.widened)
        try:
            for chunk in _chunks(sources):
                self._write_chunk(chunk)
            if len(self._registry.widened) > widened_before:
                self._widen_others()
            batches = {
                key: {"mark": batch["mark"], "files": {self._rewritten.get(name, name): rows for name, rows in batch["files"].items()}}
                for key, batch in self._registry.batches.items()
                if any(name in self._rewritten for name in batch["files"])
            }
            new = {self._rewritten.get(name, name): rows for name, rows in self._new.items()}
            _commit(self._folder, self._registry, {**batches, self._batch: {"mark": mark, "files": new}})
        except BaseException:
            for name in (*self._new, *self._rewritten.values()):
                with suppress(OSError):
                    (self._folder / f"{name}{_UNFINISHED}").unlink()
            raise
        return sum(self._new.values()), sum(name not in self._new for name in self._rewritten)

    def _write_chunk(self, chunk: list[tuple[dict[str, Any], memoryview]]) -> None:
        with _uncollected():
            values = self._by_element(chunk) or self._by_row(chunk)
        chunk.clear()  # one object alone may be large: what is done with is let go
        places: dict[str, list[int]] = {}
        if self._missing_date is None:
            places[f"{PARTITION}={self._batch}"] = []
        else:
            days = values["StudyDate"].to_pylist() if "StudyDate" in values.column_names else [None] * values.num_rows
            for number, day in enumerate(days):
                places.setdefault(self._partition(day), []).append(number)
        for place in sorted(places):
            members = values.take(pa.array(places[place])) if len(places) > 1 else values
            self._new[self._write_part(place, members)] = members.num_rows

    def _by_row(self, chunk: list[tuple[dict[str, Any], memoryview]]) -> pa.Table:
        """Make the columns of a chunk from rows."""
        while True:
            try:
                rows = [to_row(_parsed(meta), self._registry.root) | keys for keys, meta in chunk]
                break
            except MisfitError as misfit:
                self._widen(misfit)
        schema = self._registry.arrow
        return pa.table([_column(rows, item) for item in schema], schema=schema)

    def _by_element(self, chunk: list[tuple[dict[str, Any], memoryview]]) -> pa.Table | None:
        """Make the same columns from the texts of elements; None where that does not do: for large data sets, and those nested too deep.

        Most elements of a series have the same text in all of its objects: each is read and converted once.
        """
        if any(len(meta) >= LARGE_BYTES for _, meta in chunk):
            return None
        try:
            elements = _Elements(_decode(meta) for _, meta in chunk)
        except (ValueError, RecursionError):
            return None
        registry = self._registry
        made = {name: pa.array([keys[name] for keys, _ in chunk], kind) for name, kind in ((key.name, key.type) for key in _KEYS)}
        found = {}
        for tag, column in elements.columns.items():
            while True:
                try:
                    found[tag] = column.converted(tag, registry.root)
                    break
                except MisfitError as misfit:
                    self._widen(misfit)
        others = elements.others()
        if others is not None:
            registry.root.has_others = True
            made[OTHERS] = others
        schema = registry.arrow
        for tag, values in found.items():
            item = registry.root.fields.get(tag)
            if item is not None and (place := schema.get_field_index(item.name)) >= 0:
                made[item.name] = elements.spread(tag, pa.array(values, schema.field(place).type))
        return pa.table([made[item.name] if item.name in made else pa.nulls(len(chunk), item.type) for item in schema], schema=schema)

    def _write_part(self, place: str, values: pa.Table) -> str:
        name = f"{place}/{secrets.token_hex(8)}.parquet"
        file = self._folder / f"{name}{_UNFINISHED}"
        file.parent.mkdir(parents=True, exist_ok=True)
        flat = [item.name for item in values.schema if not pa.types.is_nested(item.type)]
        # One row group of a part: readers take parts one by one.
        pq.write_table(values, file, compression="zstd", compression_level=1, write_statistics=flat, row_group_size=max(1, values.num_rows))
        return name

    def _partition(self, day: Any) -> str:
        """Folder of the rows of a day, as the column has it."""
        if isinstance(day, list):
            day = day[0] if day else None
        if isinstance(day, str):
            found = _DATE.fullmatch(day)
            try:
                day = dt.date(*map(int, found.groups())) if found else None
            except ValueError:
                day = None
        return f"{BY_DATE}={day or self._missing_date or _NULL}/{PARTITION}={self._batch}"

    def _widen(self, misfit: MisfitError) -> None:
        item = misfit.item
        before = f"{item.kind}{' list' if item.repeated else ''}"
        item.kind, item.repeated = misfit.kind, misfit.repeated
        after = f"{item.kind}{' list' if item.repeated else ''}"
        self._registry.widened.append({"field": misfit.path, "from": before, "to": after, "reason": misfit.reason, "batch": self._batch})
        logger.info("headers: %s becomes %s: %s in batch %s", misfit.path, after, misfit.reason, self._batch)

    def _widen_others(self) -> None:
        """Write parts again that have a field in another type than it has now."""
        schema = self._registry.arrow
        kept = {name for key, batch in self._registry.batches.items() if key != self._batch for name in batch["files"]}
        for name in sorted(kept | set(self._new)):
            file = self._folder / (f"{name}{_UNFINISHED}" if name in self._new else name)
            have = pq.read_schema(file)
            wanted = pa.schema([_widened(item, schema.field(item.name).type) for item in have])
            if wanted.equals(have):
                continue
            place = name.rpartition("/")[0]
            with pq.ParquetFile(file) as source:
                values = source.read().combine_chunks()
            arrays = [_conform(_one(values[item.name]), item.type) for item in wanted]
            self._rewritten[name] = self._write_part(place, pa.table(arrays, schema=wanted))


class _Texts:
    """What one attribute holds in the objects of a chunk: each text once, by the number that it has among those of all attributes."""

    def __init__(self, numbers: list[int], elements: list[dict[str, Any]]) -> None:
        self.numbers, self.elements = numbers, elements
        self.others: list[dict[str, Any] | None] = []

    def converted(self, tag: str, record: Record) -> list[Any]:
        """Values of the texts; None for those that the field does not hold, which `others` has.

        Raises
        ------
        MisfitError
            A value does not fit its field.
        """
        self.others = [None] * len(self.elements)
        values: list[Any] = []
        for place, element in enumerate(self.elements):
            item = record.fields.get(tag)
            if item is None and tag[3] not in _ODD:
                item = _new_field(tag, record)
            if item is None or not _fits(item, element):
                self.others[place] = element
                values.append(None)
            else:
                values.append(_value(item, element, record))
        return values


class _Elements:
    """The elements of a chunk's data sets, column by column.

    Raises
    ------
    ValueError, RecursionError
        A text is no data set, or nested too deep.
    """

    def __init__(self, objects: Iterable[Mapping[str, Any]]) -> None:
        known: defaultdict[str, dict[bytes, int]] = defaultdict(dict)
        numbers, counts, texts = list[int](), list[int](), 0
        for elements in objects:
            counts.append(len(elements))
            for tag, raw in elements.items():
                number = known[tag].setdefault(bytes(raw), texts)
                if number == texts:
                    texts += 1
                numbers.append(number)
        self.columns = {tag: _Texts(list(own.values()), [read_json(text) for text in own]) for tag, own in known.items()}
        self._objects = len(counts)
        # Of each element, in the order of the data sets: the object that it is in, the number of its text, its column, and its place there.
        self._object = np.repeat(np.arange(len(counts)), counts)
        self._number = np.array(numbers, np.int64)
        column_of, place_of = np.empty(texts, np.int64), np.empty(texts, np.int64)
        for at, column in enumerate(self.columns.values()):
            column_of[column.numbers], place_of[column.numbers] = at, np.arange(len(column.numbers))
        self._column, self._place = column_of[self._number], place_of[self._number]
        self._order = np.argsort(self._column, kind="stable")
        bounds = np.searchsorted(self._column[self._order], np.arange(len(self.columns) + 1))
        self._spans = {tag: slice(first, end) for tag, first, end in zip(self.columns, bounds[:-1], bounds[1:], strict=True)}

    def spread(self, tag: str, values: pa.Array) -> pa.Array:
        """Give each object its value of those of a column's texts; NULL where it lacks the element."""
        return values.take(pa.array(places := self._places(tag), mask=places < 0))

    def _places(self, tag: str) -> np.ndarray:
        """Which text of a column each object has; -1: none."""
        mine, places = self._order[self._spans[tag]], np.full(self._objects, -1)
        places[self._object[mine]] = self._place[mine]
        return places

    def others(self) -> pa.Array | None:
        """Make the column `OTHERS` of what no field holds; None when there is nothing. After `_Texts.converted` of all columns."""
        is_other = np.zeros(len(self._number), bool)
        creator, names = np.full(len(self._number), -1), list[str]()
        creators: dict[str, np.ndarray] = {}
        for tag, column in self.columns.items():
            places = np.array([element is not None for element in column.others], bool)
            if not places.any():
                continue
            mine = self._order[self._spans[tag]]
            is_other[mine] = places[self._place[mine]]
            reservation = _reservation(tag)
            if tag[3] in _ODD and not tag.startswith("00", 4) and reservation in self.columns:
                if reservation not in creators:
                    creators[reservation] = self._creators(reservation, names)
                creator[mine] = creators[reservation][self._object[mine]]
        if not is_other.any():
            return None
        # An entry is a text with a creator; most objects of a series have the same ones.
        keys = self._number[is_other] * (len(names) + 1) + creator[is_other] + 1
        _, first, entry = np.unique(keys, return_index=True, return_inverse=True)
        chosen = np.flatnonzero(is_other)[first]
        tags, columns = list(self.columns), list(self.columns.values())
        entries = [
            _entry(tags[column], columns[column].elements[place], names[name] if name >= 0 else None)
            for column, place, name in zip(self._column[chosen].tolist(), self._place[chosen].tolist(), creator[chosen].tolist(), strict=True)
        ]
        counts = np.bincount(self._object[is_other], minlength=self._objects)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        values = pa.array(entries, _OTHERS.value_type).take(pa.array(entry.reshape(-1)))
        return pa.ListArray.from_arrays(offsets, values, type=_OTHERS, mask=pa.array(counts == 0))

    def _creators(self, reservation: str, names: list[str]) -> np.ndarray:
        """Whose block it is in each object, by number in `names`, which grows; -1: nobody's."""
        found = [_creator(element) for element in self.columns[reservation].elements]
        for name in found:
            if name is not None and name not in names:
                names.append(name)
        numbers = np.array([-1 if name is None else names.index(name) for name in found] + [-1])
        return np.take(numbers, self._places(reservation))


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep the collector of cycles from looking at all rows again and again while they are made: JSON has none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _widened(item: pa.Field, kind: pa.DataType) -> pa.Field:
    """Give a field the types that are wanted now, without the fields that it does not have."""
    return pa.field(item.name, _only(item.type, kind), item.nullable)


def _only(have: pa.DataType, kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(have) and pa.types.is_list(kind):
        return pa.list_(_only(have.value_type, kind.value_type))
    if pa.types.is_struct(have) and pa.types.is_struct(kind):
        return pa.struct([pa.field(item.name, _only(item.type, kind.field(item.name).type)) for item in have])
    return kind


def _one(values: pa.ChunkedArray) -> pa.Array:
    return values.chunk(0) if values.num_chunks == 1 else values.combine_chunks()


def _column(rows: list[dict[str, Any]], item: pa.Field) -> pa.Array:
    values = [row.get(item.name) for row in rows]
    if values.count(None) == len(values):
        return pa.nulls(len(values), item.type)
    return pa.array(values, item.type)


def _chunks(sources: list[Path]) -> Iterator[list[tuple[dict[str, Any], memoryview]]]:
    """Rows of the catalog's parts that hold a data set: their keys and their JSON, as many as fit into memory."""
    chunk: list[tuple[dict[str, Any], memoryview]] = []
    size = 0
    keys = [key.name for key in _KEYS]
    names = [*keys, "meta", "status"]
    for source in sources:
        for batch in ds.dataset([str(source)], schema=OBJECT_CATALOG.part_arrow).to_batches(columns=names, batch_size=64, batch_readahead=1):
            for row, meta, status in zip(batch.select(keys).to_pylist(), batch["meta"], batch["status"].to_pylist(), strict=True):
                if status != "indexed" or not meta.is_valid:
                    continue
                data = memoryview(meta.as_buffer())  # not copied: it may be large
                if chunk and (len(chunk) >= _CHUNK_ROWS or size + len(data) > _CHUNK_BYTES):
                    yield chunk
                    chunk, size = [], 0
                chunk.append((row, data))
                size += len(data)
    if chunk:
        yield chunk


def _layout(partition: str, missing_date: str) -> str:
    return f"{partition} {missing_date}".strip() if partition == BY_DATE else BY_BATCH


def _catalog(lake: Path) -> dict[str, list[str]]:
    """Live parts of the catalog by batch."""
    actions = pa.table(open_table(lake, OBJECT_CATALOG.name).get_add_actions(flatten=True))
    found: dict[str, list[str]] = {}
    if actions.num_rows:
        for path, batch in zip(actions["path"].to_pylist(), actions[f"partition.{PARTITION}"].to_pylist(), strict=True):
            found.setdefault(batch, []).append(path)
    return {batch: sorted(paths) for batch, paths in found.items()}


def _mark(paths: list[str]) -> str:
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()


def _commit(folder: Path, registry: Registry, batches: dict[str, dict[str, Any] | None]) -> None:
    """Make finished files count instead of a batch's older ones; None removes a batch."""
    before = set(registry.files)
    for key, batch in batches.items():
        if batch is None:
            registry.batches.pop(key, None)
        else:
            registry.batches[key] = batch
    after = set(registry.files)
    for name in sorted(after - before):
        file = folder / f"{name}{_UNFINISHED}"
        with file.open("rb") as written:
            os.fsync(written.fileno())
        file.replace(folder / name)
    for parent in {(folder / name).parent for name in after - before}:
        sync_path(parent)
    described = {
        "partition": registry.partition,
        "widened": registry.widened,
        "batches": dict(sorted(registry.batches.items())),
        "schema": registry.root.to_json(),
    }
    unfinished = folder / f"{MANIFEST}{_UNFINISHED}"
    with unfinished.open("wb") as file_:
        file_.write(orjson.dumps(described, option=orjson.OPT_INDENT_2))
        file_.flush()
        os.fsync(file_.fileno())
    unfinished.replace(folder / MANIFEST)
    sync_path(folder)
    _remove(folder, before - after)


def _remove(folder: Path, names: set[str]) -> None:
    for name in names:
        with suppress(OSError):
            (folder / name).unlink()
    for parent in {(folder / name).parent for name in names}:
        while parent != folder:
            try:
                parent.rmdir()
            except OSError:
                break
            parent = parent.parent


def _clean(folder: Path, registry: Registry) -> None:
    """Remove files that a stopped update left: they do not count."""
    live = registry.files
    _remove(folder, {str(file.relative_to(folder)) for file in folder.glob("*=*/**/*.parquet*") if str(file.relative_to(folder)) not in live})
