"""The row of `annotations` of one object, made in the pass that reads it anyway.

Runs in worker processes and on Spark executors. Must not import Dagster, Delta or polars, nor highdicom before an annotation
comes: that takes a second.
"""

import json

from pixels_assets.dicom.annotations import CLASSES, MEASUREMENTS, SEGMENTATIONS, STRUCTURE_SET, read_measurements, read_regions, read_segments
from pixels_assets.dicom.codecs import NoPixels
from pixels_assets.dicom.notes import listening
from pixels_assets.engines.extractors import Seen
from pixels_assets.errors import PixelsError, place_of
from pixels_assets.settings import MIB

_MOST_BYTES = 1024 * MIB
_MOST_TEXT = 64 * MIB


def annotation_row(seen: Seen) -> dict[str, object] | None:
    """Row of one object; None when it is no annotation."""
    kind = CLASSES.get(str(seen.header.values["SOPClassUID"])) if seen.header is not None else None
    if kind is None:
        return None
    row: dict[str, object] = {"path": seen.found.path, "original_path": seen.found.original_path, "kind": kind, "items": "[]"}
    if seen.header is not None and seen.header.header is None and seen.header.pixel_offset is None:
        # Above 16 MiB: as pydicom objects it would take some 50 times its size.
        return row | {"highdicom_reads": None, "highdicom_reason": None, "error_code": "annotation_too_large"}
    row["highdicom_reads"], row["highdicom_reason"] = _highdicom(seen, kind)
    try:
        with listening():
            items, row["error_code"] = _read(seen, kind)
            text = json.dumps(items)
    except (PixelsError, MemoryError):
        raise
    except Exception as error:  # hostile bytes: it costs this object its values, not the run
        return row | {"error_code": f"annotation_unreadable: {place_of(error)}"}
    return row | ({"items": text} if len(text) <= _MOST_TEXT else {"error_code": "annotation_too_large"})


def _read(seen: Seen, kind: str) -> tuple[list[dict[str, object]], str | None]:
    dataset = seen.dataset
    assert dataset is not None
    if kind == MEASUREMENTS:
        return read_measurements(dataset), None
    if dataset.get("SOPClassUID") == STRUCTURE_SET:
        return read_regions(dataset), None
    try:
        return read_segments(dataset, seen.frames), None
    except NoPixels as error:
        return read_segments(dataset, None), error.code


def _highdicom(seen: Seen, kind: str) -> tuple[bool | None, str | None]:
    """Whether highdicom reads an object, and why not."""
    stream = seen.found.stream
    if stream is None or (kind == SEGMENTATIONS and str(seen.header and seen.header.values["SOPClassUID"]) == STRUCTURE_SET):
        return None, None
    if (seen.found.length or 0) > _MOST_BYTES:
        return None, "not tried: it is too large"
    import highdicom as hd

    try:
        with listening():
            stream.seek(0)
            if kind == MEASUREMENTS:
                hd.sr.srread(stream)
            else:
                hd.seg.segread(stream, lazy_frame_retrieval=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever a strict reader has against it
        return False, place_of(error)
    return True, None
