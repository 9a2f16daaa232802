"""Which values of headers different ways of storing them lose or change, counted element by element.

Reads the DICOM files below a folder with pydicom and asks of each value, private ones and those within sequences included, whether it can be had
back from what is stored: by this project (the JSON in `meta`, and the header's bytes), by flattening into one column for each keyword, and by a
column for each keyword that keeps the first value. The two other ways are written anew from their descriptions.

    python -m benchmarks.lossless /data/images
"""

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom
from pydicom.datadict import dictionary_VM
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag

from pixels_assets.dicom.reader import Header, read_header
from pixels_assets.intake.filetype import DICOM_TYPES, identify

_MISREAD = ("transfer_syntax_wrong", "dicom_at_offset", "dicm_at_zero")
"""Warnings of files that pydicom reads as other values than they hold: in the wrong byte order, or from the wrong place."""
_GE_PRIVATE = "1.2.840.113619.5.2"
_PIXELS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
_FIRST_ONLY = {"AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT", "DS", "IS", "AT"}


def _values(element: DataElement) -> list[Any]:
    if element.value is None or element.value in ("", b""):
        return []
    return list(element.value) if isinstance(element.value, MultiValue | list) else [element.value]


def leaves(dataset: Dataset, path: str = "") -> Iterator[tuple[str, int, DataElement, int]]:
    """All elements that hold values, with the path to them, the tag of the outermost, and the number of items around them."""
    for element in dataset:
        if element.tag in _PIXELS:
            continue
        here = f"{path}{int(element.tag):08X}"
        if element.VR == "SQ":
            for number, item in enumerate(element.value):
                yield from leaves(item, f"{here}/{number}/")
        elif _values(element):
            yield here, int(here[:8], 16), element, here.count("/") // 2


def lost_by_meta(dataset: Dataset, header: Header) -> Counter[str]:
    """Values that neither `meta` nor the stored header's bytes give back."""
    found: Counter[str] = Counter()
    model = json.loads(header.meta)
    for path, _, element, _ in leaves(dataset):
        node: Any = model
        for step in path.split("/"):
            node = (node.get("Value", [])[int(step)] if "vr" in node else node.get(step)) if node is not None else None
        if node is None:
            found["lost"] += len(_values(element))
        elif "BulkDataURI" in node:
            found["lost"] += header.header is None  # a reference: its bytes are in the stored header
        elif node != _by_pydicom(element, node):
            found["changed"] += len(_values(element))
    return found


def _by_pydicom(element: DataElement, ours: object) -> object:
    """Give pydicom's own JSON of one element; ours where it has none, for then ours keeps the bytes."""
    try:
        model = json.loads(json.dumps(element.to_json_dict(None, 0)))
    except Exception:  # pydicom raises nearly anything on damaged values
        return ours
    if "Value" in model:
        # JSON has no word for numbers that are none; they are words in `meta`.
        model["Value"] = [{"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}.get(str(value), value) for value in model["Value"]]
    return model


def lost_by_flattening(dataset: Dataset) -> Counter[str]:
    """Values that a column for each keyword loses: private ones, unknown ones, all but the last item of a sequence; numbers become text."""
    found: Counter[str] = Counter()
    sequences = {int(element.tag): len(element.value) for element in dataset if element.VR == "SQ"}
    for path, outer, element, _ in leaves(dataset):
        count = len(_values(element))
        steps = path.split("/")
        if (
            any(BaseTag(int(step, 16)).is_private for step in steps[::2])
            or not element.keyword
            or (len(steps) > 1 and int(steps[1]) != sequences.get(outer, 1) - 1)
        ):
            found["lost"] += count
        elif element.VR in {"DS", "IS", "US", "SS", "UL", "SL", "FL", "FD"} and dictionary_VM(element.tag) == "1":
            found["changed"] += count
        elif isinstance(element.value, bytes):
            found["lost"] += count
    return found


def lost_by_first_value(dataset: Dataset) -> Counter[str]:
    """Values that a column for each keyword loses when text keeps its first value only, and unsigned numbers become signed ones."""
    found: Counter[str] = Counter()
    for _, outer, element, depth in leaves(dataset):
        values = _values(element)
        if depth or BaseTag(outer).is_private:
            continue  # these are kept as JSON text
        if not element.keyword:
            found["lost"] += len(values)
        elif element.VR in _FIRST_ONLY:
            found["lost"] += len(values) - 1
        elif element.VR == "UL":
            found["changed"] += sum(isinstance(value, int) and value >= 2**31 for value in values)
    return found


def count(folder: Path) -> dict[str, Counter[str]]:
    """Count over all files below a folder that pydicom reads."""
    totals: dict[str, Counter[str]] = {name: Counter() for name in ("values", "this project", "flattened", "first value")}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            length = path.stat().st_size
            kind = identify(stream, length)
            if kind.name not in DICOM_TYPES:
                continue
            header = read_header(stream, length, dataset_offset=kind.dataset_offset or 0, max_deflated_bytes=1 << 26)
            try:
                dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
                values = sum(len(_values(element)) for _, _, element, _ in leaves(dataset))
                flattened, first = lost_by_flattening(dataset), lost_by_first_value(dataset)
            except Exception:  # what pydicom itself does not read cannot be compared
                totals["values"]["files that pydicom does not read"] += 1
                continue
            elsewhere = bool(kind.dataset_offset)
            if elsewhere or (
                isinstance(header, Header) and (header.transfer_syntax == _GE_PRIVATE or any(word.startswith(_MISREAD) for word in header.warnings))
            ):
                totals["values"]["files that pydicom misreads"] += 1
                continue
            if not isinstance(header, Header) and header.status == "limit_exceeded":
                totals["values"]["files that a limit refuses"] += 1
                continue
            totals["values"]["files"] += 1
            totals["values"]["values"] += values
            totals["flattened"].update(flattened)
            totals["first value"].update(first)
            if isinstance(header, Header):
                totals["this project"].update(lost_by_meta(dataset, header))
            elif values:
                totals["this project"]["lost"] += values
                print(f"{path.name}: {header.code}", file=sys.stderr)
    return totals


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    totals = count(parser.parse_args(arguments).folder)
    print(f"{totals['values'].pop('values', 0)} values in {totals['values'].pop('files', 0)} files")
    for what, number in totals["values"].items():
        print(f"{number} {what} are left out")
    for name in ("this project", "flattened", "first value"):
        print(f"{name:14} lost {totals[name]['lost']:>8}  changed {totals[name]['changed']:>8}")


if __name__ == "__main__":
    main()
