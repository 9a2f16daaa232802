"""The elements in which two data sets differ, one by one, sequences by path.

Holds the comparison. Values are returned as text: the caller shows them to whoever asked, and to nobody else.

Values are compared as bytes would be: the same text in another representation is a difference. Long binary values are named by length and hash.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import zip_longest

from pydicom.datadict import dictionary_has_tag, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

_SHOWN_BYTES = 32
_SHOWN_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Difference:
    """One element that differs.

    Parameters
    ----------
    tag : str
        Where it is: ``(0010,0010)``, in an item ``(0008,1115)[0](0020,000E)``, items counted from 0.
    keyword : str
        The same in words: ``ReferencedSeriesSequence[0].SeriesInstanceUID``; the tag where there is no keyword.
    left, right : str or None
        The values as text; None: the element, or the item, is not there.
    """

    tag: str
    keyword: str
    left: str | None
    right: str | None


def differences(left: Dataset, right: Dataset) -> Iterator[Difference]:
    """Compare two data sets, the elements of group 0002 first.

    Yields
    ------
    Difference
        In the order of tags.
    """
    yield from _differences(getattr(left, "file_meta", None) or Dataset(), getattr(right, "file_meta", None) or Dataset(), "", "")
    yield from _differences(left, right, "", "")


def _differences(left: Dataset, right: Dataset, tags: str, keywords: str) -> Iterator[Difference]:
    for tag in sorted({*left.keys(), *right.keys()}):
        number = int(tag)
        place = f"{tags}({number >> 16:04X},{number & 0xFFFF:04X})"
        name = (keyword_for_tag(number) if dictionary_has_tag(number) else "") or f"({number >> 16:04X},{number & 0xFFFF:04X})"
        one, other = _element(left, number), _element(right, number)
        first, second = _items(one), _items(other)
        if first is not None and second is not None:
            for index, (item, against) in enumerate(zip_longest(first, second)):
                at, words = f"{place}[{index}]", f"{keywords}{name}[{index}]"
                if item is None or against is None:
                    yield Difference(at, words, None if item is None else _size(item), None if against is None else _size(against))
                else:
                    yield from _differences(item, against, at, f"{words}.")
        elif not _are_same(one, other):
            yield Difference(place, f"{keywords}{name}", _text(one), _text(other))


def _element(dataset: Dataset, tag: int) -> DataElement | RawDataElement | None:
    """Take an element; as it was read when pydicom can make nothing of its value."""
    if tag not in dataset:
        return None
    try:
        return dataset[tag]
    except Exception:
        return next(element for element in dataset.values() if element.tag == tag)  # as it was read


def _items(element: DataElement | RawDataElement | None) -> list[Dataset] | None:
    return list(element.value) if element is not None and isinstance(element.value, Sequence) else None


def _are_same(one: DataElement | RawDataElement | None, other: DataElement | RawDataElement | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.VR == other.VR and _text(one) == _text(other)


def _text(element: DataElement | RawDataElement | None) -> str | None:
    if element is None:
        return None
    value = element.value
    if isinstance(value, Sequence):
        return f"{len(value)} items"
    if isinstance(value, bytes | bytearray):
        shown = f"{len(value)} bytes, SHA-256 {sha256(value).hexdigest()}"
        return shown if len(value) > _SHOWN_BYTES else f"{bytes(value).hex(' ')} ({len(value)} bytes)"
    if value is None:
        return ""
    text = "\\".join(map(str, value)) if isinstance(value, list) or type(value).__name__ == "MultiValue" else str(value)
    if len(text) > _SHOWN_CHARACTERS:
        text = f"{text[:_SHOWN_CHARACTERS]}... ({len(text)} characters, SHA-256 {sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()})"
    return text


def _size(item: Dataset) -> str:
    return f"an item of {len(item)} elements"
