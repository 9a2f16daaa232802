"""Metadata made again from the headers that the lake keeps: no source file is opened.

Holds the work of one worker process, and what hands it out. Workers must not import Delta, polars or Dagster.
"""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from pixels_assets.dicom.attributes import ATTRIBUTES
from pixels_assets.dicom.reader import Header, read_header
from pixels_assets.errors import WorkerError
from pixels_assets.intake.filetype import identify
from pixels_assets.intake.objects import Status
from pixels_assets.lake.parts import Part, PartWriter
from pixels_assets.lake.schema import DICOM_METADATA
from pixels_assets.settings import Limits

_ROWS_AT_ONCE = 16
_TRANSFER_SYNTAX = "TransferSyntaxUID"
_PIXELS = "7FE00008"
_DECLARED = re.compile(r'"00020010":\{"vr":"[A-Z]{2}","Value":\["[^"]')


@dataclass(slots=True)
class Rebuilt:
    """What was made again.

    Parameters
    ----------
    parts : list of Part
        The new parts of `dicom_metadata`.
    rebuilt : int
        Objects whose metadata was made again.
    kept : int
        Indexed objects without a kept header, because it is over 16 MiB: they stay as they are.
    unreadable : int
        Indexed objects whose header this version cannot read: they stay as they are.
    others : int
        Rows of objects that were not indexed.
    """

    parts: list[Part] = field(default_factory=list)
    rebuilt: int = 0
    kept: int = 0
    unreadable: int = 0
    others: int = 0

    def add(self, other: "Rebuilt") -> None:
        """Count in what another worker did."""
        self.parts += other.parts
        self.rebuilt += other.rebuilt
        self.kept += other.kept
        self.unreadable += other.unreadable
        self.others += other.others


def rebuild_parts(lake: Path, batch: str, files: Sequence[Path], attempt: str, *, workers: int, limits: Limits) -> Rebuilt:
    """Write the rows of a batch's parts of `dicom_metadata` again, in worker processes; nothing is committed.

    Raises
    ------
    WorkerError
        A worker died. What the others wrote is removed.
    LakeError
        A part cannot be written.
    """
    done = Rebuilt()
    work = partial(_rebuild_part, lake, batch, limits)
    names = [f"{attempt}-{number:05d}" for number in range(len(files))]
    try:
        if workers == 1 or len(files) == 1:
            for one in map(work, files, names):
                done.add(one)
        elif files:
            with ProcessPoolExecutor(min(workers, len(files)), mp_context=get_context("spawn")) as pool:
                for one in pool.map(work, files, names):
                    done.add(one)
    except BaseException as error:
        for part in done.parts:
            with suppress(OSError):
                (lake / part.table / part.path).unlink()
        if isinstance(error, BrokenProcessPool):
            msg = f"a worker died while it read the headers of batch {batch}; check memory, or ingest the batch's files again"
            raise WorkerError(msg) from error
        raise
    return done


def _rebuild_part(lake: Path, batch: str, limits: Limits, file: Path, name: str) -> Rebuilt:
    done = Rebuilt()
    with PartWriter(lake, DICOM_METADATA, batch, name) as writer:
        for row in _rows(file):
            if row["status"] != Status.INDEXED.value:
                done.others += 1
            elif row["header"] is None:
                done.kept += 1
            elif _read_again(row, limits):
                done.rebuilt += 1
            else:
                done.unreadable += 1
            writer.append(row)
        done.parts = writer.finish()
    return done


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a part, with the columns of today."""
    with pq.ParquetFile(file) as source:
        names = [name for name in DICOM_METADATA.part_arrow.names if name in source.schema_arrow.names]
        for rows in source.iter_batches(_ROWS_AT_ONCE, columns=names, use_threads=False):
            yield from rows.to_pylist()


def _read_again(row: dict[str, Any], limits: Limits) -> bool:
    """Make the metadata of a row from its header; False when the header does not say what the object said."""
    data = row["header"]
    found = identify(BytesIO(data), len(data))
    header = read_header(
        BytesIO(data),
        len(data),
        dataset_offset=found.dataset_offset or 0,
        flags=found.flags,
        max_deflated_bytes=limits.max_deflated_bytes,
        max_ratio=limits.max_ratio,
    )
    if not isinstance(header, Header):
        return False
    # An object that declares no transfer syntax may show it in its pixel data only, and so may what was odd about them.
    seen = row.get(_TRANSFER_SYNTAX)
    row["meta"], behind = _with_end_of(header.meta, row["meta"]) if len(data) < (row["length"] or 0) else (header.meta, frozenset[str]())
    row["file_meta"] = header.file_meta
    row.update({attribute.keyword: header.values.get(attribute.keyword) for attribute in ATTRIBUTES if f"{attribute.tag:08X}" not in behind})
    if seen is not None and not _DECLARED.search(header.file_meta or ""):
        row[_TRANSFER_SYNTAX] = seen
    before = row.get("warnings") or []
    row["warnings"] = [*before, *(warning for warning in header.warnings if warning not in before)]
    return True


def _with_end_of(meta: str, before: str | None) -> tuple[str, frozenset[str]]:
    """Put the pixel data element and what follows it, which no header holds, among the elements of a header; give its tags, too.

    What follows pixel data has higher tags, so that it is the end of the text; but padding and garbage there may read as elements of any tag.
    """
    known = orjson.loads(meta).keys()
    behind = frozenset(orjson.loads(before).keys() - known) if before else frozenset[str]()
    if not before or not behind:
        return meta, behind
    first = min(behind)
    if first >= _PIXELS > max(known, default=""):
        for found in re.finditer(f'"{first}":', before):
            end = before[found.start() :]
            with suppress(orjson.JSONDecodeError):  # of the same tag within a sequence what follows is not an object's end
                orjson.loads("{" + end)
                return meta[:-1] + ("," if len(meta) > 2 else "") + end, behind
    members = _members(meta) | {tag: text for tag, text in _members(before).items() if tag in behind}
    return "{" + ",".join(members[tag] for tag in sorted(members)) + "}", behind


def _members(meta: str) -> dict[str, str]:
    """Cut the text of a data set into those of its elements, by tag."""
    found, position, decoder = dict[str, str](), 1, json.JSONDecoder()
    while meta[position : position + 1] == '"':
        end = decoder.raw_decode(meta, position + len('"7FE00010":'))[1]
        found[meta[position + 1 : position + 9]] = meta[position:end]
        position = end + 1
    return found
