"""One item of a sequence, from the sequence's bytes: little endian, VRs written or not (DICOM PS3.5 7.5).

Holds the walk over items and elements that finds it; all others are skipped over. Must not interpret values, and gives up on what is odd.
"""

import struct

from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

__all__ = ["OddItemsError", "item_elements"]

_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF
_LONG = frozenset(vr.encode() for vr in EXPLICIT_VR_LENGTH_32)
_DEEPEST = 16
_HEAD, _SHORT, _LENGTH = struct.Struct("<HHL"), struct.Struct("<H"), struct.Struct("<L")


class OddItemsError(Exception):
    """The bytes are not what this walk knows."""


def item_elements(data: bytes, index: int, *, implicit: bool) -> dict[int, tuple[str | None, bytes]] | None:
    """Find the elements of one item.

    Parameters
    ----------
    data : bytes
        Items of a sequence, with or without its delimiter.
    index : int
        0-based.
    implicit : bool
        Whether VRs are not written.

    Returns
    -------
    dict of int to (str or None, bytes), or None
        VR and value by tag; None when there are fewer items.

    Raises
    ------
    OddItemsError
        The bytes cannot be walked over.
    """
    try:
        position = 0
        for _ in range(index):
            if position >= len(data) or _tag(data, position) == _SEQUENCE_END:
                return None
            position = _behind_item(data, position, implicit, 0)
        if position >= len(data) or _tag(data, position) == _SEQUENCE_END:
            return None
        return _elements(data, position, implicit)
    except struct.error:
        raise OddItemsError from None


def _tag(data: bytes, position: int) -> int:
    group, element, _ = _HEAD.unpack_from(data, position)
    return int(group) << 16 | int(element)


def _elements(data: bytes, position: int, implicit: bool) -> dict[int, tuple[str | None, bytes]]:
    found: dict[int, tuple[str | None, bytes]] = {}
    group, element, length = _HEAD.unpack_from(data, position)
    if group << 16 | element != _ITEM:
        raise OddItemsError
    position += 8
    stop = len(data) if length == _UNDEFINED else position + length
    while position < stop:
        tag, vr, start, behind = _element(data, position, implicit, 0)
        if tag == _ITEM_END and length == _UNDEFINED:
            return found
        found[tag] = (None if vr is None else vr.decode("latin-1"), data[start:behind])
        position = behind
    if position != stop or length == _UNDEFINED:
        raise OddItemsError
    return found


def _element(data: bytes, position: int, implicit: bool, depth: int) -> tuple[int, bytes | None, int, int]:
    """Tag, VR, start of the value and first byte behind an element."""
    group, number, length = _HEAD.unpack_from(data, position)
    tag, vr, start = group << 16 | number, None, position + 8
    if tag == _ITEM_END:
        return tag, vr, start, start
    if not implicit:
        vr = data[position + 4 : position + 6]
        if vr in _LONG:
            (length,) = _LENGTH.unpack_from(data, position + 8)
            start = position + 12
        else:
            (length,) = _SHORT.unpack_from(data, position + 6)
    if length == _UNDEFINED:
        if vr == b"UN":  # items without VRs among those with
            raise OddItemsError
        return tag, vr, start, _behind_items(data, start, implicit, depth + 1)
    if start + length > len(data):
        raise OddItemsError
    return tag, vr, start, start + length


def _behind_items(data: bytes, position: int, implicit: bool, depth: int) -> int:
    if depth > _DEEPEST:
        raise OddItemsError
    while _tag(data, position) != _SEQUENCE_END:
        position = _behind_item(data, position, implicit, depth)
    return position + 8


def _behind_item(data: bytes, position: int, implicit: bool, depth: int) -> int:
    group, element, length = _HEAD.unpack_from(data, position)
    if group << 16 | element != _ITEM:
        raise OddItemsError
    position += 8
    if length != _UNDEFINED:
        return position + int(length)
    while True:
        tag, _, _, position = _element(data, position, implicit, depth)
        if tag == _ITEM_END:
            return position
