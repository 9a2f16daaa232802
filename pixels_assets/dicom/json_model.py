"""A data set as text in the DICOM JSON model, DICOM PS3.18 Annex F.

Holds the walk over a pydicom data set that writes each element on its own, so that one that cannot be converted does not cost the rest.
Values are those of pydicom's `to_json_dict`; pixel data and long binary values become references. Must not read files.
"""

import json
import math
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from pydicom import Dataset
from pydicom.charset import default_encoding
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.hooks import hooks
from pydicom.valuerep import AMBIGUOUS_VR, BYTES_VR

from pixels_assets.dicom.elements import SPECIFIC_CHARACTER_SET, expand
from pixels_assets.dicom.notes import Notes

BULK_BYTES = 1024
PIXEL_TAGS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})

BINARY_VRS = frozenset(str(vr) for vr in (BYTES_VR | AMBIGUOUS_VR)) - {"US or SS"}
_TEXT = frozenset({"AE", "AS", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UR", "UT"})
_quote = json.encoder.encode_basestring
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False).encode


def write_json(dataset: Dataset, notes: Notes, references: Mapping[int, str] | None = None) -> str:
    """Write a data set as JSON.

    Parameters
    ----------
    dataset : pydicom.Dataset
        Its elements are converted on the way, in place.
    notes : Notes
        Gets the tags of elements that could not be converted; those are kept as UN.
    references : mapping of int to str, optional
        VRs of elements, by tag, that are not in `dataset` but get a reference to bulk data.

    Returns
    -------
    str
        One JSON object, keys in ascending order; always valid UTF-8 when encoded.
    """
    extra = {tag: reference(vr, f"{tag:08X}") for tag, vr in (references or {}).items()}
    text = _dataset(dataset, notes, "", 0, extra)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        notes.add("charset_wrong")
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text


def _dataset(dataset: Dataset, notes: Notes, path: str, level: int, extra: Mapping[int, str] | None = None) -> str:
    """Write one data set; `path` leads to it and ends with a slash, `level` counts the sequences around it."""
    parts = dict(extra or {})
    # The order of conversion is the file's: pydicom lets (0028,0103) Pixel Representation reach into sequences that way.
    for tag, item in list(dataset.items()):
        part = element_text(dataset, tag, item, notes, f"{path}{tag:08X}", level)
        if part is not None:
            parts[tag] = part
    return "{" + ",".join(f'"{tag:08X}":{parts[tag]}' for tag in sorted(parts)) + "}"


def element_text(dataset: Dataset, tag: int, item: RawDataElement | DataElement, notes: Notes, path: str, level: int) -> str | None:
    """Write one element of a data set; `path` leads to it. None when nothing of it can be kept."""
    raw = item if isinstance(item, RawDataElement) else None
    try:
        vr = "" if raw is None else vr_of(raw, dataset)
        if raw is not None and raw.value is None and raw.length:
            notes.collect(tag)
            return reference(vr, path)
        if raw is not None and vr == "SQ" and raw.length:
            element = expand(raw, dataset.original_character_set or default_encoding, level=level, notes=notes)
            if element is None:
                return binary("UN", raw.value or b"", path)
            _put(dataset, element)
        else:
            element = dataset[tag] if raw is None else _convert(raw, dataset)
        if notes.caught:
            notes.collect(tag)
        vr = element.VR
        value = element.value
        if vr == "SQ":
            items = [_dataset(value[index], notes, f"{path}/{index}/", level + 1) for index in range(len(value))]
            return '{"vr":"SQ","Value":[' + ",".join(items) + "]}"
        if vr in BINARY_VRS and (value is None or isinstance(value, bytes)):
            return binary(vr, value or b"", path, always=tag in PIXEL_TAGS)
        if vr in _TEXT and isinstance(value, str):
            return f'{{"vr":"{vr}","Value":[{_quote(value)}]}}' if value else f'{{"vr":"{vr}"}}'
        return _values(element, notes)
    except (RecursionError, MemoryError):
        raise
    except Exception:  # pydicom raises nearly anything on damaged values; this element is kept as bytes, the rest is not touched
        notes.caught.clear()
        notes.add("element_unreadable", tag)
        return None if raw is None or not isinstance(raw.value, bytes) else binary("UN", raw.value, path)


def _convert(raw: RawDataElement, dataset: Dataset) -> DataElement:
    """Convert an element and put it into its data set, as `dataset[tag]` does in more steps."""
    charset = default_encoding if raw.tag == SPECIFIC_CHARACTER_SET else dataset.original_character_set
    element = convert_raw_data_element(raw, encoding=charset, ds=dataset)
    if element.VR in AMBIGUOUS_VR:
        # pydicom decides by other elements.
        return dataset[raw.tag]
    _put(dataset, element)
    return element


def _put(dataset: Dataset, element: DataElement) -> None:
    """Put an element into its data set, be those damaged that pydicom looks at then: Pixel Representation for sequences, and private creators."""
    try:
        dataset[element.tag] = element
    except Exception:
        dataset._dict[element.tag] = element


def vr_of(raw: RawDataElement, dataset: Dataset) -> str:
    """VR of an element as pydicom decides it: as written, or from the dictionaries."""
    if raw.VR is not None and raw.VR != "UN":
        return raw.VR
    if raw.VR == "UN" and raw.value is None and raw.length > 0xFFFF and not raw.tag.is_private:
        # The dictionary is asked only about shorter ones, which would have had room for their VR.
        return "UN"
    data: dict[str, Any] = {}
    hooks.raw_element_vr(raw, data, ds=dataset)
    return str(data["VR"])


def _values(element: DataElement, notes: Notes) -> str:
    """Write an element that has values, neither binary nor a sequence."""
    model = element.to_json_dict(None, 0)
    try:
        return _encode(model)
    except ValueError:
        # JSON has no word for these numbers.
        notes.add("number_not_finite", element.tag)
        model["Value"] = [_finite(value) for value in model["Value"]]
        return _encode(model)


def _finite(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def binary(vr: str, value: bytes, path: str, *, always: bool = False) -> str:
    """Write a binary value: inline up to `BULK_BYTES` unless it shall `always` be a reference."""
    if not value:
        return f'{{"vr":"{vr}"}}'
    if always or len(value) > BULK_BYTES:
        return reference(vr, path)
    return f'{{"vr":"{vr}","InlineBinary":"{b64encode(value).decode("ascii")}"}}'


def reference(vr: str, path: str) -> str:
    """Write a reference to bulk data."""
    return f'{{"vr":"{vr}","BulkDataURI":"bulkdata/{path}"}}'
