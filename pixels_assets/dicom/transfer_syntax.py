"""How a data set is really encoded, whatever its file meta information says, DICOM PS3.5 chapter 10 and Annex A.

Holds the questions put to the first bytes of the data set and of the pixel data. Must not read values.
"""

import struct
from typing import NamedTuple

from pydicom.datadict import dictionary_has_tag
from pydicom.uid import UID
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32, VR

from pixels_assets.dicom.elements import UNDEFINED_LENGTH, Window

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
GE_IMPLICIT_BIG = "1.2.840.113619.5.2"
# Deflated Explicit VR Little Endian, JPIP Referenced Deflate, JPIP HTJ2K Referenced Deflate.
DEFLATED = frozenset({"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"})
RLE_LOSSLESS, JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.4.81", "1.2.840.10008.1.2.4.91"

# ISO/IEC 10918-1 table B.1: start-of-frame markers, and the transfer syntax that reads such a stream.
_JPEG = {
    0xC0: "1.2.840.10008.1.2.4.50",
    0xC1: "1.2.840.10008.1.2.4.51",
    0xC2: "1.2.840.10008.1.2.4.55",
    0xC3: "1.2.840.10008.1.2.4.57",
    0xF7: JPEG_LS,
}
_VRS = {str(vr).encode() for vr in VR if len(vr) == 2}
_PROBED = 4


class Encoding(NamedTuple):
    """Whether VRs are left out, and whether numbers are little endian."""

    implicit: bool
    little: bool


NAMES = {
    Encoding(implicit=True, little=True): "implicit_little_endian",
    Encoding(implicit=False, little=True): "explicit_little_endian",
    Encoding(implicit=False, little=False): "explicit_big_endian",
    Encoding(implicit=True, little=False): "implicit_big_endian",
}
_UIDS = {
    Encoding(implicit=True, little=True): IMPLICIT_LITTLE,
    Encoding(implicit=False, little=True): EXPLICIT_LITTLE,
    Encoding(implicit=False, little=False): EXPLICIT_BIG,
    Encoding(implicit=True, little=False): GE_IMPLICIT_BIG,
}


def declared_encoding(uid: str | None) -> Encoding | None:
    """Give the encoding that a transfer syntax prescribes for the data set; None without one."""
    if uid is None:
        return None
    if uid == EXPLICIT_BIG:
        return Encoding(implicit=False, little=False)
    # GE's private syntax has a little endian header before its big endian pixel data.
    return Encoding(implicit=uid in {IMPLICIT_LITTLE, GE_IMPLICIT_BIG}, little=True)


def find_encoding(source: Window, start: int, declared: Encoding | None) -> Encoding:
    """Find the encoding in which the bytes at `start` make sense as a data set.

    The declared one is kept unless its first elements are nonsense and another's are not.

    Parameters
    ----------
    source : Window
    start : int
        Offset of the data set, bytes.
    declared : Encoding or None
        What the file meta information says.
    """
    source.seek(start)
    head = source.read(6)
    letters = len(head) == 6 and 0x40 < head[4] < 0x5B and 0x40 < head[5] < 0x5B
    if declared is None:
        # As pydicom guesses: a group beyond 0x03FF in a little endian reading is a small one in a big endian one.
        little = not (letters and head[4:6] in _VRS and int.from_bytes(head[:2], "little") >= 0x0400)
        declared = Encoding(implicit=not letters, little=little)
    elif len(head) == 6:
        declared = Encoding(implicit=not letters, little=declared.little)
    best, most = declared, _plausible(source, start, declared)
    if most < 2:
        for encoding in NAMES:
            count = _plausible(source, start, encoding)
            if count > most and count >= 2:
                best, most = encoding, count
    return best


def _plausible(source: Window, start: int, encoding: Encoding) -> int:
    """Count the leading elements, up to four, that look right: known or private tags in ascending order that fit into the source."""
    order = "<" if encoding.little else ">"
    at, last, count = start, -1, 0
    while count < _PROBED:
        source.seek(at)
        head = source.read(12)
        if len(head) < 8:
            break
        group, number = struct.unpack(order + "HH", head[:4])
        tag = group << 16 | number
        size = 8
        if encoding.implicit:
            (length,) = struct.unpack(order + "L", head[4:8])
        elif head[4:6] not in _VRS:
            break
        elif head[4:6].decode("ascii") in EXPLICIT_VR_LENGTH_32:
            if len(head) < 12:
                break
            size, length = 12, struct.unpack(order + "L", head[8:12])[0]
        else:
            (length,) = struct.unpack(order + "H", head[6:8])
        if tag <= last or not (dictionary_has_tag(tag) or number == 0 or (group % 2 and group > 8)):
            break
        if length == UNDEFINED_LENGTH:
            count += 1
            break
        at += size + length
        if at > source.end:
            break
        last, count = tag, count + 1
    return count


def real_transfer_syntax(declared: str | None, encoding: Encoding, *, encapsulated: bool | None, codec: str | None) -> str | None:
    """Transfer syntax in which an object is really encoded.

    Parameters
    ----------
    declared : str or None
        (0002,0010) *Transfer Syntax UID*.
    encoding : Encoding
        Found encoding of the data set.
    encapsulated : bool or None
        Whether the pixel data are encapsulated; None without pixel data.
    codec : str or None
        Transfer syntax that the first bytes of the pixel data suggest.

    Returns
    -------
    str or None
        UID; None where pixel data are encapsulated and nothing says how.
    """
    native = _UIDS[encoding]
    if declared is None:
        return codec if encapsulated else native
    if declared in DEFLATED or (declared == GE_IMPLICIT_BIG and encoding.implicit):
        return declared
    if declared in _UIDS.values():
        if encapsulated:
            return codec
        return declared if declared == native else native
    if encapsulated is False and codec is None and _is_encapsulated(declared):
        return native
    return declared


def _is_encapsulated(uid: str) -> bool:
    """Whether pydicom knows the UID as a transfer syntax with encapsulated pixel data."""
    known = UID(uid)
    return known.is_transfer_syntax and known.is_encapsulated


def sniff_codec(data: bytes) -> str | None:
    """Transfer syntax that fits the first bytes of a compressed frame; None when they tell nothing.

    Parameters
    ----------
    data : bytes
        Up to a few KB from the start of the first frame.
    """
    if data.startswith((b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  ")):
        return JPEG_2000
    if data.startswith(b"\xff\xd8\xff"):
        at = 2
        while at + 4 <= len(data) and data[at] == 0xFF:
            marker = data[at + 1]
            if marker in _JPEG:
                return _JPEG[marker]
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        return None
    # DICOM PS3.5 G.5: number of segments, and the first of them begins behind the 64-byte header.
    if len(data) >= 64 and 1 <= int.from_bytes(data[:4], "little") <= 15 and data[4:8] == b"\x40\x00\x00\x00":
        return RLE_LOSSLESS
    return None
