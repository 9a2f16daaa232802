"""What a header says about its image: single attributes as numbers and text, from raw element bytes or from a pydicom data set.

Holds the two kinds of headers that the pixel modules read, and how their values are asked for. Must not read streams or pixel data.

`RawImage` serves what is usual straight from the bytes, items of sequences too, and makes no pydicom object for it; what is unusual (a VR that the
dictionary does not give, other attributes) it asks the pydicom data set for, which is made then and only then.
"""

import logging
import math
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import pydicom
from pydicom.datadict import tag_for_keyword

from pixels_assets.dicom.items import OddItemsError, item_elements

__all__ = ["ImageHeader", "RawImage", "has", "is_big_endian", "item", "number", "numbers", "text", "value"]

_LOG = logging.getLogger(__name__)

RawValue = tuple[str | None, bytes]
"""VR as written, None where it is not, and the value's bytes."""

_USUAL: dict[str, tuple[int, str]] = {
    "SOPClassUID": (0x00080016, "UI"),
    "ImagerPixelSpacing": (0x00181164, "DS"),
    "NominalScannedPixelSpacing": (0x00182010, "DS"),
    "PresentationLUTShape": (0x20500020, "CS"),
    "SamplesPerPixel": (0x00280002, "US"),
    "PhotometricInterpretation": (0x00280004, "CS"),
    "PlanarConfiguration": (0x00280006, "US"),
    "NumberOfFrames": (0x00280008, "IS"),
    "Rows": (0x00280010, "US"),
    "Columns": (0x00280011, "US"),
    "PixelSpacing": (0x00280030, "DS"),
    "PixelAspectRatio": (0x00280034, "IS"),
    "BitsAllocated": (0x00280100, "US"),
    "BitsStored": (0x00280101, "US"),
    "HighBit": (0x00280102, "US"),
    "PixelRepresentation": (0x00280103, "US"),
    "PixelPaddingValue": (0x00280120, "US or SS"),
    "PixelPaddingRangeLimit": (0x00280121, "US or SS"),
    "WindowCenter": (0x00281050, "DS"),
    "WindowWidth": (0x00281051, "DS"),
    "RescaleIntercept": (0x00281052, "DS"),
    "RescaleSlope": (0x00281053, "DS"),
    "VOILUTFunction": (0x00281056, "CS"),
    "MaximumFractionalValue": (0x0062000E, "US"),
    "LUTDescriptor": (0x00283002, "US or SS"),
    **{f"{colour}PaletteColorLookupTableDescriptor": (0x00281101 + place, "US or SS") for place, colour in enumerate(("Red", "Green", "Blue"))},
}
"""Attributes that `RawImage` reads itself."""

_BYTES: dict[str, int] = {
    "ExtendedOffsetTable": 0x7FE00001,
    "ExtendedOffsetTableLengths": 0x7FE00002,
    "LUTData": 0x00283006,
    **{f"{colour}PaletteColorLookupTableData": 0x00281201 + place for place, colour in enumerate(("Red", "Green", "Blue"))},
    **{f"Segmented{colour}PaletteColorLookupTableData": 0x00281221 + place for place, colour in enumerate(("Red", "Green", "Blue"))},
}
"""Attributes whose value is bytes for `RawImage`, whatever their VR."""


class RawImage:
    """A header as raw elements, with pydicom behind it.

    Parameters
    ----------
    raw : callable
        Gives the VR (None where it is not written) and the bytes of a top-level element by its tag, None where there is none.
    little : bool
        Whether binary numbers are little endian.
    full : callable
        Makes the pydicom data set of the same header; called at most once.
    implicit : bool
        Whether VRs are not written within sequences.
    """

    __slots__ = ("_dataset", "_full", "_items", "_raw", "implicit", "little")

    def __init__(self, raw: Callable[[int], RawValue | None], *, little: bool, full: Callable[[], pydicom.Dataset], implicit: bool = False) -> None:
        self._raw = raw
        self.little = little
        self.implicit = implicit
        self._full = full
        self._dataset: pydicom.Dataset | None = None
        self._items: dict[tuple[str, int], ImageHeader | None] = {}

    @property
    def dataset(self) -> pydicom.Dataset:
        """The same header as pydicom reads it."""
        if self._dataset is None:
            self._dataset = self._full()
        return self._dataset

    def has(self, tag: int) -> bool:
        """Whether there is an element of this tag."""
        return self._raw(tag) is not None

    def numbers(self, keyword: str) -> Sequence[float]:
        """See `numbers`."""
        usual = _USUAL.get(keyword)
        if usual is None:
            tag = tag_for_keyword(keyword)
            return numbers(self.dataset, keyword) if tag is not None and self.has(tag) else ()
        tag, vr = usual
        found = self._raw(tag)
        if found is None:
            return ()
        written, data = found
        if written is not None and written not in vr:
            return numbers(self.dataset, keyword)
        if vr in ("US", "US or SS"):
            # A descriptor holds a number of entries, which has no sign, whatever its VR is.
            letter = "h" if written == "SS" and not keyword.endswith("Descriptor") else "H"
            read, form = _unpack, ("<" if self.little else ">") + letter
        else:
            read, form = _parse, vr
        return read(data, form) if len(data) <= _REMEMBERED else read.__wrapped__(data, form)

    def item(self, keyword: str, index: int) -> "ImageHeader | None":
        """See `item`."""
        key = keyword, index
        if key not in self._items:
            self._items[key] = self._find_item(keyword, index)
        return self._items[key]

    def _find_item(self, keyword: str, index: int) -> "ImageHeader | None":
        found = self._raw(tag_for_keyword(keyword) or 0)
        if found is None:
            return None
        vr, data = found
        if self.little and vr in ("SQ", None):
            try:
                elements = item_elements(data, index, implicit=self.implicit)
            except OddItemsError:
                return item(self.dataset, keyword, index)
            if elements is None:
                return None
            return RawImage(elements.get, little=True, implicit=self.implicit, full=lambda: self._plain_item(keyword, index))
        return item(self.dataset, keyword, index)

    def _plain_item(self, keyword: str, index: int) -> pydicom.Dataset:
        found = item(self.dataset, keyword, index)
        return found if isinstance(found, pydicom.Dataset) else pydicom.Dataset()

    def data(self, keyword: str) -> bytes | None:
        """Bytes of a value, None when it is absent or empty."""
        found = self._raw(_BYTES[keyword])
        return found[1] if found and found[1] else None

    def text(self, keyword: str) -> str:
        """See `text`."""
        tag, vr = _USUAL[keyword]
        found = self._raw(tag)
        if found is None:
            return ""
        written, data = found
        if written is not None and written != vr:
            return text(self.dataset, keyword)
        return data.split(b"\\")[0].decode("latin-1").strip(" \0")


ImageHeader = pydicom.Dataset | RawImage


_REMEMBERED = 64
"""Most bytes of a value whose numbers are remembered: a series says the same in each of its objects."""


@lru_cache(maxsize=4096)
def _unpack(data: bytes, form: str) -> tuple[float, ...]:
    """Read binary numbers of two bytes; `form` is the byte order and the letter of `struct`."""
    if len(data) % 2:
        return ()
    return tuple(map(float, struct.unpack(f"{form[0]}{len(data) // 2}{form[1]}", data)))


@lru_cache(maxsize=4096)
def _parse(data: bytes, vr: str) -> tuple[float, ...]:
    """Parse decimal strings; none of them when one is not a number, or not a whole one where the VR is IS."""
    try:
        values = tuple(float(part.strip(b" \0")) for part in data.split(b"\\"))
    except ValueError:
        return ()
    if not all(map(math.isfinite, values)) or b"_" in data or (vr == "IS" and any(found % 1 for found in values)):
        return ()
    return values


def has(header: ImageHeader, keyword: str) -> bool:
    """Whether a header has an attribute, empty or not."""
    tag = tag_for_keyword(keyword)
    return tag is not None and (header.has(tag) if isinstance(header, RawImage) else tag in header)


def is_big_endian(header: ImageHeader) -> bool:
    """Whether the binary values of a header are big endian."""
    return not header.little if isinstance(header, RawImage) else header.original_encoding[1] is False


def value(header: ImageHeader, keyword: str) -> Any:
    """Value of an attribute as pydicom gives it, None when it is absent, empty or unreadable.

    pydicom converts values when they are asked for, and hostile ones raise anything there.
    """
    tag = tag_for_keyword(keyword)
    if tag is None:
        return None
    if isinstance(header, RawImage):
        if keyword in _BYTES:
            return header.data(keyword)
        if not header.has(tag):
            return None
        header = header.dataset
    if tag not in header:
        return None
    try:
        return header[tag].value
    except Exception as error:  # see above
        _LOG.debug("%s is unreadable: %s", keyword, type(error).__name__)
        return None


def item(header: ImageHeader, keyword: str, index: int) -> ImageHeader | None:
    """Item of a sequence as a header of its own; None when there is none."""
    if isinstance(header, RawImage):
        return header.item(keyword, index)
    items = value(header, keyword)
    if not isinstance(items, pydicom.Sequence) or index >= len(items):
        return None
    found: pydicom.Dataset = items[index]
    return found


def numbers(header: ImageHeader, keyword: str) -> Sequence[float]:
    """All values of an attribute as finite numbers; empty when it is absent or one of them is not a finite number."""
    if isinstance(header, RawImage):
        return header.numbers(keyword)
    found = value(header, keyword)
    if found is None or isinstance(found, (bytes, bytearray)):
        return []
    try:
        values = [float(found)] if isinstance(found, (str, int, float)) else [float(item) for item in found]
    except (TypeError, ValueError, OverflowError):
        return []
    return values if all(map(math.isfinite, values)) else []


def number(header: ImageHeader, keyword: str) -> float | None:
    """First value of an attribute as a finite number, None when it has none."""
    found = numbers(header, keyword)
    return found[0] if found else None


def text(header: ImageHeader, keyword: str) -> str:
    """First value of an attribute as text without padding, empty when it is absent."""
    if isinstance(header, RawImage):
        return header.text(keyword)
    found = value(header, keyword)
    if found is not None and not isinstance(found, (str, bytes)) and hasattr(found, "__getitem__"):
        found = found[0] if len(found) else None
    return "" if found is None else str(found).strip(" \0")
