"""One frame of one DICOM object: found in the stream, read and decoded, and nothing else of its pixel data.

Holds where frames lie: native, bit-packed and encapsulated pixel data. Must not know how a codestream is decoded (`codecs`) or shown (`rendering`),
and allocates nothing that the header claims before the bytes are seen to be there.
"""

import logging
from array import array as number_array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Literal

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword

from pixels_assets.dicom.codecs import (
    CODECS,
    GE_BIG_ENDIAN_PIXELS,
    Array,
    Codec,
    NoPixels,
    PixelDescription,
    Reason,
    arrange,
    decode,
    looks_like_rle,
    sign_extend,
    sniff,
    starts_frame,
    unpack,
)

__all__ = ["Frame", "NoPixels", "PixelSource", "describe", "number", "numbers", "read_frame", "read_value", "text", "value"]

_LOG = logging.getLogger(__name__)

_UNDEFINED = 0xFFFFFFFF
_ITEM = b"\xfe\xff\x00\xe0"
_FLOAT, _DOUBLE, _PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010
_EXPLICIT_VRS = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN"})
_MAX_FRAGMENTS = 4_000_000
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class PixelSource:
    """Where the pixel data of one object is.

    Parameters
    ----------
    dataset : pydicom.Dataset
        Header elements up to the pixel data, which itself is not loaded.
    transfer_syntax : str
        UID in which the data set is really encoded.
    stream : BinaryIO
        Seekable; for deflated transfer syntaxes the inflated stream.
    offset : int
        Position in `stream` of the tag of the pixel data element, (7FE0,0008), (7FE0,0009) or (7FE0,0010).
    length : int
        Bytes in `stream`.
    """

    dataset: pydicom.Dataset
    transfer_syntax: str
    stream: BinaryIO
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame.

    Parameters
    ----------
    array : numpy.ndarray, shape (rows, columns[, samples])
        Stored values, native byte order, bits beyond those stored already cleared; not necessarily contiguous.
    index : int
        0-based number of the frame.
    number_of_frames : int
        As the data set says, at least 1.
    description : PixelDescription
        Of `array`: `photometric` and `bits_stored` are those after decoding.
    """

    array: Array
    index: int
    number_of_frames: int
    description: PixelDescription


@dataclass(frozen=True, slots=True)
class _Element:
    """The pixel data element: where its value starts and ends in the stream, and how it is written."""

    tag: int
    start: int
    stop: int
    declared: int
    vr: bytes
    big_endian: bool


def read_frame(source: PixelSource, *, max_bytes: int, index: int | None = None) -> Frame:
    """Read and decode one frame.

    Parameters
    ----------
    source : PixelSource
    max_bytes : int
        Bytes that the decoded frame may take, and its encoded bytes too.
    index : int, optional
        0-based. By default the middle one, or the last complete one before it when the pixel data is cut short.

    Returns
    -------
    Frame

    Raises
    ------
    NoPixels
        There is no such frame, or it cannot be read or decoded; `code` says why.

    References
    ----------
    DICOM PS3.5 8 and Annex A; PS3.3 C.7.6.3.
    """
    codec = CODECS.get(source.transfer_syntax)
    if codec is Codec.VIDEO:
        raise NoPixels(Reason.VIDEO, "the pixel data is a video, which is not decoded")
    if codec is Codec.REFERENCED:
        raise NoPixels(Reason.REFERENCED_PIXELS, "the pixel data is behind a URL, which is not followed")
    element = _read_element(source)
    description = describe(source.dataset, element.tag)
    frames = max(1, int(number(source.dataset, "NumberOfFrames") or 1))
    if index is not None and not 0 <= index < frames:
        raise NoPixels(Reason.NO_SUCH_FRAME, "the object has no frame of that number")
    if element.declared == _UNDEFINED or (codec is not Codec.NATIVE and _read(source, element.start, 4) == _ITEM):
        frame = _read_encapsulated(source, element, description, codec, frames, index, max_bytes)
    else:
        frame = _read_native(source, element, description, codec, frames, index, max_bytes)
    array, after = _clear_unused_bits(frame.array, frame.description)
    return replace(frame, array=array, description=after)


def read_value(source: PixelSource, *, max_bytes: int) -> bytes | None:
    """Read the value of the pixel data element as it is stored: of encapsulated pixel data all items with their headers, without the delimiter.

    Parameters
    ----------
    source : PixelSource
    max_bytes : int
        Most bytes that the value may have.

    Returns
    -------
    bytes or None
        What is there when it is cut short; None when there is none, or more than `max_bytes`.

    References
    ----------
    DICOM PS3.5 8 and Annex A.4.
    """
    try:
        element = _read_element(source)
    except NoPixels:
        return None
    stop = element.stop
    if element.declared == _UNDEFINED:
        position = element.start
        while (item := _item(source, element, position)) is not None:
            position += 8 + item[0]
        stop = min(position, stop)
    return _read(source, element.start, stop - element.start) if element.start < stop <= element.start + max_bytes else None


def describe(dataset: pydicom.Dataset, tag: int = _PIXELS) -> PixelDescription:
    """Check the Image Pixel module.

    Parameters
    ----------
    dataset : pydicom.Dataset
    tag : int
        Of the pixel data element, which decides between integers, floats and doubles.

    Raises
    ------
    NoPixels
        ``bad_pixel_description``: an attribute that the frame's size rests on is missing or impossible.
    """
    rows, columns = _count(dataset, "Rows"), _count(dataset, "Columns")
    samples = _count(dataset, "SamplesPerPixel", 1)
    if rows < 1 or columns < 1 or samples not in (1, 3, 4):
        raise NoPixels(Reason.BAD_PIXEL_DESCRIPTION, "rows, columns or samples per pixel are missing or impossible")
    bits = {_FLOAT: 32, _DOUBLE: 64}.get(tag) or _count(dataset, "BitsAllocated")
    if bits not in (1, 8, 16, 32, 64):
        raise NoPixels(Reason.BAD_PIXEL_DESCRIPTION, "bits allocated is missing or not one of 1, 8, 16, 32, 64")
    stored = _count(dataset, "BitsStored", bits)
    if tag != _PIXELS or not 1 <= stored <= bits:
        stored = bits
    high_bit = _count(dataset, "HighBit", stored - 1)
    signed = tag == _PIXELS and bits > 1 and _count(dataset, "PixelRepresentation", 0) == 1
    return PixelDescription(
        rows=rows,
        columns=columns,
        samples=samples,
        bits_allocated=bits,
        bits_stored=stored,
        high_bit=high_bit,
        signed=signed,
        planar=samples > 1 and _count(dataset, "PlanarConfiguration", 0) == 1,
        photometric=(text(dataset, "PhotometricInterpretation") or ("RGB" if samples > 1 else "MONOCHROME2")).upper(),
        kind="f" if tag != _PIXELS else "i" if signed else "u",
    )


def value(dataset: pydicom.Dataset, keyword: str) -> Any:
    """Value of an attribute, None when it is absent, empty or unreadable.

    pydicom converts values when they are asked for, and hostile ones raise anything there.
    """
    tag = tag_for_keyword(keyword)
    if tag is None or tag not in dataset:
        return None
    try:
        return dataset[tag].value
    except Exception as error:  # see above
        _LOG.debug("%s is unreadable: %s", keyword, type(error).__name__)
        return None


def numbers(dataset: pydicom.Dataset, keyword: str) -> list[float]:
    """All values of an attribute as finite numbers; empty when it is absent or one of them is not a finite number."""
    found = value(dataset, keyword)
    if found is None or isinstance(found, (bytes, bytearray)):
        return []
    try:
        values = [float(found)] if isinstance(found, (str, int, float)) else [float(item) for item in found]
    except (TypeError, ValueError, OverflowError):
        return []
    return values if all(map(np.isfinite, values)) else []


def number(dataset: pydicom.Dataset, keyword: str) -> float | None:
    """First value of an attribute as a finite number, None when it has none."""
    return next(iter(numbers(dataset, keyword)), None)


def text(dataset: pydicom.Dataset, keyword: str) -> str:
    """First value of an attribute as text without padding, empty when it is absent."""
    found = value(dataset, keyword)
    if found is not None and not isinstance(found, (str, bytes)) and hasattr(found, "__getitem__"):
        found = found[0] if len(found) else None
    return "" if found is None else str(found).strip(" \0")


def _count(dataset: pydicom.Dataset, keyword: str, default: int = 0) -> int:
    found = number(dataset, keyword)
    return default if found is None else int(found)


def _read(source: PixelSource, start: int, count: int) -> bytes:
    source.stream.seek(start)
    return source.stream.read(max(0, min(count, source.length - start)))


def _read_buffer(source: PixelSource, start: int, count: int) -> bytearray:
    """Read exactly `count` bytes, which are known to be there, into one writable buffer."""
    source.stream.seek(start)
    buffer = bytearray(count)
    readinto: Callable[[memoryview], int] | None = getattr(source.stream, "readinto", None)
    view, filled = memoryview(buffer), 0
    while filled < count:
        if readinto is not None:
            got = readinto(view[filled:])
        else:
            part = source.stream.read(min(_CHUNK, count - filled))
            got = len(part)
            view[filled : filled + got] = part
        if not got:
            raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the stream ended within the pixel data")
        filled += got
    return buffer


def _read_element(source: PixelSource) -> _Element:
    """Read the header of the pixel data element; its byte order and VR form show in its own bytes."""
    header = _read(source, source.offset, 12)
    if len(header) < 8:
        raise NoPixels(Reason.NO_PIXEL_DATA, "there is no pixel data element")
    order: Literal["big", "little"] = "big" if header[:2] == b"\x7f\xe0" else "little"
    group, element = int.from_bytes(header[:2], order), int.from_bytes(header[2:4], order)
    if group != 0x7FE0 or element not in (0x0008, 0x0009, 0x0010):
        raise NoPixels(Reason.NO_PIXEL_DATA, "there is no pixel data element")
    vr = header[4:6]
    # Every pixel data VR starts with an odd letter, so an implicit VR length, which is even, is never mistaken for one.
    if vr in _EXPLICIT_VRS:
        if len(header) < 12:
            raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the stream ends within the pixel data element's header")
        declared, start = int.from_bytes(header[8:12], order), source.offset + 12
    else:
        vr, declared, start = b"OW", int.from_bytes(header[4:8], order), source.offset + 8
    stop = source.length if declared == _UNDEFINED else min(source.length, start + declared)
    if stop <= start:
        code = Reason.PIXEL_DATA_TRUNCATED if declared else Reason.NO_PIXEL_DATA
        raise NoPixels(code, "the pixel data element is empty")
    return _Element(group << 16 | element, start, stop, declared, vr, order == "big")


def _choose_frame(frames: int, complete: int, index: int | None) -> int:
    """Choose the frame to read, where only the first `complete` ones are whole."""
    wanted = frames // 2 if index is None else index
    if wanted < complete:
        return wanted
    if index is not None or complete < 1:
        raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the pixel data ends before the frame does")
    return complete - 1


# Native pixel data


def _read_native(
    source: PixelSource, element: _Element, description: PixelDescription, codec: Codec | None, frames: int, index: int | None, max_bytes: int
) -> Frame:
    present = element.stop - element.start
    if codec not in (Codec.NATIVE, Codec.UNCOMPRESSED):
        # The transfer syntax says compressed, or nothing known, and the element is not encapsulated.
        found = sniff(_read(source, element.start, 4096))
        if found is not None and frames == 1:
            return _decode_fragments(source, [(element.start, present)], found, description, 0, 1, max_bytes)
        expected = frames * _frame_bits(description, subsampled=False) // 8
        if not expected <= present <= expected + 1:
            raise NoPixels(Reason.UNSUPPORTED_TRANSFER_SYNTAX, "the pixel data is not what the transfer syntax says, nor plainly native")
    if description.decoded_bytes > max_bytes:
        raise NoPixels(Reason.FRAME_TOO_LARGE, f"the frame would take more than {max_bytes} bytes")
    subsampled = _is_subsampled(description, present, frames)
    bits = _frame_bits(description, subsampled=subsampled)
    if subsampled and description.decoded_bytes + bits // 8 > max_bytes + max_bytes // 2:
        raise NoPixels(Reason.FRAME_TOO_LARGE, f"expanding the frame would take more than {max_bytes} bytes")
    chosen = _choose_frame(frames, present * 8 // bits, index)
    first_bit = chosen * bits
    start, stop = element.start + first_bit // 8, element.start + (first_bit + bits + 7) // 8
    big_endian = element.big_endian or source.transfer_syntax == GE_BIG_ENDIAN_PIXELS
    if big_endian and description.bits_allocated <= 8 and element.vr == b"OW":
        data = _read_swapped_words(source, element, start, stop)
    else:
        data = _read_buffer(source, start, stop - start)
    if description.bits_allocated == 1:
        samples = unpack(data, description, first_bit=first_bit % 8)
    else:
        samples = np.frombuffer(data, description.dtype)
        if big_endian:
            samples.byteswap(inplace=True)
    if subsampled:
        return Frame(_expand_422(samples, description), chosen, frames, description)
    return Frame(arrange(samples, description, planar=description.planar), chosen, frames, description)


def _frame_bits(description: PixelDescription, *, subsampled: bool) -> int:
    samples = 2 if subsampled else description.samples
    return description.rows * description.columns * samples * description.bits_allocated


def _is_subsampled(description: PixelDescription, present: int, frames: int) -> bool:
    """Whether native YCbCr shares its colours between two pixels; only then does less than a full frame each suffice."""
    if description.samples != 3 or description.columns % 2 or not description.photometric.endswith("_422"):
        return False
    return present * 8 < frames * _frame_bits(description, subsampled=False)


def _expand_422(samples: Array, description: PixelDescription) -> Array:
    """Give each pixel its own colours: Y1 Y2 Cb Cr stands for two pixels (DICOM PS3.3 C.7.6.3.1.2)."""
    pairs = samples.reshape(description.rows, description.columns // 2, 4)
    expanded = np.empty((description.rows, description.columns, 3), samples.dtype)
    expanded[:, 0::2, 0], expanded[:, 1::2, 0] = pairs[:, :, 0], pairs[:, :, 1]
    for channel in (1, 2):
        expanded[:, 0::2, channel] = expanded[:, 1::2, channel] = pairs[:, :, channel + 1]
    return expanded


def _read_swapped_words(source: PixelSource, element: _Element, start: int, stop: int) -> bytearray:
    """Read bytes that were written as big endian 16-bit words (DICOM PS3.5 8.1.1 and Annex A.3)."""
    skipped = (start - element.start) % 2
    start -= skipped
    count = min(stop - start + (stop - start) % 2, element.stop - start)
    words = _read_buffer(source, start, count)
    words[0 : count - 1 : 2], words[1:count:2] = words[1:count:2], words[0 : count - 1 : 2]
    return words[skipped : skipped + stop - start - skipped]


def _clear_unused_bits(array: Array, description: PixelDescription) -> tuple[Array, PixelDescription]:
    """Clear what is not pixel value in each cell: old files keep overlays in the high bits (DICOM PS3.5 8.1.1).

    Works in place where it can; most frames need nothing.
    """
    stored, allocated = description.bits_stored, description.bits_allocated
    if array.dtype.kind not in "ui" or stored >= allocated or allocated == 1 or array.size == 0:
        return array, description
    limit = 1 << (stored - (array.dtype.kind == "i"))
    if array.max() < limit and (array.dtype.kind == "u" or array.min() >= -limit):
        return array, description
    if not array.flags.writeable:
        array = array.copy()
    shift = description.high_bit + 1 - stored
    if 0 < shift <= allocated - stored:
        array >>= array.dtype.type(shift)
    if array.dtype.kind == "i":
        return sign_extend(array, stored), description
    array &= array.dtype.type(limit - 1)
    return array, description


# Encapsulated pixel data (DICOM PS3.5 A.4)


def _read_encapsulated(
    source: PixelSource, element: _Element, description: PixelDescription, codec: Codec | None, frames: int, index: int | None, max_bytes: int
) -> Frame:
    header = _read(source, element.start, 8)
    if header[:4] != _ITEM or len(header) < 8:
        raise NoPixels(Reason.BAD_ENCAPSULATION, "the pixel data has no items where its length says that it should")
    table_length = int.from_bytes(header[4:8], "little")
    first = element.start + 8 + table_length
    if table_length == _UNDEFINED or first > element.stop:
        raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the pixel data ends within the offset table")
    wanted = frames // 2 if index is None else index
    table = element.start + 8, table_length // 4
    fragments = _by_extended_table(source, element, first, wanted, frames) or _by_basic_table(source, element, first, table, wanted, frames)
    if not fragments:
        wanted, fragments = _by_scanning(source, element, first, frames, index)
    if codec is None or codec is Codec.NATIVE:
        codec = _codec_of(source, fragments)
    return _decode_fragments(source, fragments, codec, description, wanted, frames, max_bytes)


def _codec_of(source: PixelSource, fragments: list[tuple[int, int]]) -> Codec:
    """Codec of a frame whose transfer syntax does not say one."""
    data = _read(source, fragments[0][0], min(4096, fragments[0][1]))
    found = sniff(data) or (Codec.RLE if looks_like_rle(data) else None)
    if found is None:
        raise NoPixels(
            Reason.UNSUPPORTED_TRANSFER_SYNTAX, "the pixel data is encapsulated, and neither its transfer syntax nor its bytes name a codec"
        )
    return found


def _decode_fragments(
    source: PixelSource, fragments: list[tuple[int, int]], codec: Codec, description: PixelDescription, index: int, frames: int, max_bytes: int
) -> Frame:
    total = sum(length for _, length in fragments)
    if total > max_bytes:
        raise NoPixels(Reason.FRAME_TOO_LARGE, f"the encoded frame takes more than {max_bytes} bytes")
    data = b"".join(_read(source, start, length) for start, length in fragments)
    array, after = decode(codec, data, description, max_bytes=max_bytes)
    return Frame(array, index, frames, after)


def _item(source: PixelSource, element: _Element, position: int, peek: int = 0) -> tuple[int, bytes] | None:
    """Length and first bytes of the item at a position, None when there is none. The length may reach beyond the element."""
    if position + 8 > element.stop:
        return None
    header = _read(source, position, 8 + peek)
    if header[:4] != _ITEM:
        return None
    return int.from_bytes(header[4:8], "little"), header[8:]


def _by_extended_table(source: PixelSource, element: _Element, first: int, index: int, frames: int) -> list[tuple[int, int]]:
    """Find a frame by (7FE0,0001) *Extended Offset Table*: one fragment a frame. Empty when the table is absent or wrong."""
    offsets, lengths = value(source.dataset, "ExtendedOffsetTable"), value(source.dataset, "ExtendedOffsetTableLengths")
    if not isinstance(offsets, bytes) or not isinstance(lengths, bytes) or len(offsets) < 8 * frames or len(lengths) < 8 * frames:
        return []
    position = first + int.from_bytes(offsets[8 * index : 8 * index + 8], "little")
    length = int.from_bytes(lengths[8 * index : 8 * index + 8], "little")
    item = _item(source, element, position)
    if item is None or not 0 < length <= item[0] or position + 8 + length > element.stop:
        return []
    return [(position + 8, length)]


def _by_basic_table(source: PixelSource, element: _Element, first: int, table: tuple[int, int], index: int, frames: int) -> list[tuple[int, int]]:
    """Find a frame by the Basic Offset Table. Empty when the table is empty or does not fit what is there."""
    table_start, entries = table
    if entries != frames:
        return []
    raw = _read(source, table_start + 4 * index, 8 if index + 1 < entries else 4)
    position = first + int.from_bytes(raw[:4], "little")
    stop = first + int.from_bytes(raw[4:], "little") if len(raw) == 8 else element.stop
    fragments: list[tuple[int, int]] = []
    while position < stop:
        item = _item(source, element, position)
        if item is None:
            # The sequence delimiter, or a file without one, ends the last frame; anything else means that the table is wrong.
            return fragments if stop == element.stop else []
        if position + 8 + item[0] > element.stop or len(fragments) >= _MAX_FRAGMENTS:
            return []
        fragments.append((position + 8, item[0]))
        position += 8 + item[0]
    return fragments if position == stop else []


def _by_scanning(source: PixelSource, element: _Element, first: int, frames: int, index: int | None) -> tuple[int, list[tuple[int, int]]]:
    """Find a frame by walking over all item headers; fragments are not loaded.

    With as many fragments as frames each is one. Otherwise a frame starts with each fragment that starts a codestream.
    """
    starts, lengths, begins = number_array("Q"), number_array("Q"), number_array("Q")
    position, cut = first, False
    while (item := _item(source, element, position, peek=12)) is not None:
        length, peeked = item
        if len(starts) >= _MAX_FRAGMENTS:
            raise NoPixels(Reason.BAD_ENCAPSULATION, f"the pixel data has more than {_MAX_FRAGMENTS} fragments")
        if starts_frame(peeked) or (len(peeked) < 3 and len(begins) == len(starts)):  # cut after its header, as one frame a fragment
            begins.append(len(starts))
        starts.append(position + 8)
        lengths.append(length)
        position += 8 + length
        if position > element.stop:
            cut = True
            break
    if not starts:
        raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the pixel data has no fragments")
    frame_starts: Sequence[int] = range(len(starts))
    if frames == 1:
        frame_starts = (0,)
    elif len(starts) != frames and len(begins) and begins[0] == 0:
        frame_starts = begins

    def fragments_of(frame: int) -> range:
        return range(frame_starts[frame], frame_starts[frame + 1] if frame + 1 < len(frame_starts) else len(starts))

    found = min(len(frame_starts), frames)
    last_is_whole = not cut or fragments_of(found - 1).stop < len(starts)
    chosen = _choose_frame(frames, found if last_is_whole else found - 1, index)
    return chosen, [(starts[number], lengths[number]) for number in fragments_of(chosen)]
