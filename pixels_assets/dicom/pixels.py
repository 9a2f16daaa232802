"""One frame of one DICOM object: found in the stream, read and decoded, and nothing else of its pixel data.

Holds where frames lie: native, bit-packed and encapsulated pixel data. Must not know how a codestream is decoded (`codecs`) or shown (`rendering`),
and allocates nothing that the header claims before the bytes are seen to be there.
"""

from array import array as number_array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from itertools import pairwise
from typing import BinaryIO, Literal

import numpy as np

from pixels_assets.dicom.codecs import (
    CODECS,
    GE_BIG_ENDIAN_PIXELS,
    Array,
    Codec,
    NoPixels,
    PixelDescription,
    Reason,
    arrange,
    decode_reduced,
    expand_422,
    is_422,
    looks_like_rle,
    sign_extend,
    sniff,
    spread,
    starts_frame,
    unpack,
)
from pixels_assets.dicom.image import ImageHeader, RawImage, has, number, text, value
from pixels_assets.dicom.reader import Header
from pixels_assets.dicom.transfer_syntax import IMPLICIT_LITTLE

__all__ = ["Frame", "FrameBytes", "FrameIndex", "NoPixels", "PixelSource", "describe", "frame_bytes", "index_frames", "read_frame", "read_value"]

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
    dataset : ImageHeader
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

    dataset: ImageHeader
    transfer_syntax: str
    stream: BinaryIO
    offset: int
    length: int

    @classmethod
    def of(cls, header: Header) -> "PixelSource | None":
        """Make the source of an object's pixels from its header, without pydicom where the header can do without; None without pixel data."""
        if header.pixel_offset is None:
            return None
        image: ImageHeader
        if header.described is None:
            image = header.dataset
        else:
            implicit = header.transfer_syntax == IMPLICIT_LITTLE
            image = RawImage(header.described.get, little=True, implicit=implicit, full=lambda: header.dataset)
        return cls(image, header.transfer_syntax or "", header.stream, header.pixel_offset, header.stream_length)


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame.

    Parameters
    ----------
    array : numpy.ndarray, shape (rows / scale, columns / scale[, samples]), rounded up
        Stored values, native byte order, bits beyond those stored already cleared; not necessarily contiguous or writable.
    index : int
        0-based number of the frame.
    number_of_frames : int
        As the data set says, at least 1.
    description : PixelDescription
        Of `array`: `photometric` and `bits_stored` are those after decoding; `rows` and `columns` are the whole frame's.
    scale : int
        Rows, and columns, of the frame that one of `array` stands for: above 1 where a decoder gave a smaller picture at less cost.
    """

    array: Array
    index: int
    number_of_frames: int
    description: PixelDescription
    scale: int = 1


@dataclass(frozen=True, slots=True)
class _Element:
    """The pixel data element: where its value starts and ends in the stream, and how it is written."""

    tag: int
    start: int
    stop: int
    declared: int
    vr: bytes
    big_endian: bool


@dataclass(frozen=True, slots=True)
class _Task:
    """One frame to read: from where, and within which limits. `index` is None for the middle frame."""

    source: PixelSource
    element: _Element
    description: PixelDescription
    codec: Codec | None
    frames: int
    index: int | None
    max_bytes: int
    reduction: int
    tolerance: float


def read_frame(source: PixelSource, *, max_bytes: int, index: int | None = None, reduction: int = 1, tolerance: float = 0) -> Frame:
    """Read and decode one frame.

    With the defaults the array equals pydicom's ``pixel_array`` of that frame, except that YCbCr that a codec undoes is RGB already.

    Parameters
    ----------
    source : PixelSource
    max_bytes : int
        Bytes that the decoded frame may take, and its encoded bytes too.
    index : int, optional
        0-based. By default the middle one, or the last complete one before it when the pixel data is cut short.
    reduction : int
        A picture this many times smaller both ways is good enough: codecs that get at one with less work may give it, or one less reduced.
    tolerance : float
        What the stored values of such a smaller picture may be off by, see `codecs.decode_reduced`.

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
    task = _Task(source, *_look_at(source), index, max_bytes, reduction, tolerance)
    if index is not None and not 0 <= index < task.frames:
        raise NoPixels(Reason.NO_SUCH_FRAME, "the object has no frame of that number")
    frame = _read_encapsulated(task) if _is_encapsulated(source, task.element, task.codec) else _read_native(task)
    array, after = _clear_unused_bits(frame.array, frame.description)
    return frame if array is frame.array else replace(frame, array=array, description=after)


def _look_at(source: PixelSource) -> tuple[_Element, PixelDescription, Codec | None, int]:
    """Find the pixel data element, the description of its frames, their codec and their number."""
    codec = CODECS.get(source.transfer_syntax)
    if codec is Codec.VIDEO:
        raise NoPixels(Reason.VIDEO, "the pixel data is a video, which is not decoded")
    if codec is Codec.REFERENCED:
        raise NoPixels(Reason.REFERENCED_PIXELS, "the pixel data is behind a URL, which is not followed")
    element = _read_element(source)
    return element, describe(source.dataset, element.tag), codec, max(1, int(number(source.dataset, "NumberOfFrames") or 1))


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


def _is_encapsulated(source: PixelSource, element: _Element, codec: Codec | None) -> bool:
    return element.declared == _UNDEFINED or (codec is not Codec.NATIVE and _read(source, element.start, 4) == _ITEM)


def describe(dataset: ImageHeader, tag: int = _PIXELS) -> PixelDescription:
    """Check the Image Pixel module.

    Parameters
    ----------
    dataset : ImageHeader
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


def _count(dataset: ImageHeader, keyword: str, default: int = 0) -> int:
    found = number(dataset, keyword)
    return default if found is None else int(found)


def _read(source: PixelSource, start: int, count: int) -> bytes:
    source.stream.seek(start)
    return source.stream.read(max(0, min(count, source.length - start)))


def _read_buffer(stream: BinaryIO, start: int, count: int) -> memoryview:
    """Read exactly `count` bytes, which are known to be there; not copied from a stream in memory."""
    if type(stream) is BytesIO:
        part = memoryview(stream.getvalue())[start : start + count]
        if len(part) < count:
            raise _ended()
        return part
    stream.seek(start)
    buffer = memoryview(bytearray(count))
    readinto: Callable[[memoryview], int] | None = getattr(stream, "readinto", None)
    filled = 0
    while filled < count:
        if readinto is not None:
            got = readinto(buffer[filled:])
        else:
            part_read = stream.read(min(_CHUNK, count - filled))
            got = len(part_read)
            buffer[filled : filled + got] = part_read
        if not got:
            raise _ended()
        filled += got
    return buffer


def _ended() -> NoPixels:
    return NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the stream ended within the pixel data")


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


def _read_native(task: _Task) -> Frame:
    source, element, description, frames = task.source, task.element, task.description, task.frames
    present = element.stop - element.start
    if task.codec not in (Codec.NATIVE, Codec.UNCOMPRESSED):
        # The transfer syntax says compressed, or nothing known, and the element is not encapsulated.
        found = sniff(_read(source, element.start, 4096))
        if found is not None and frames == 1:
            return _decode_fragments(replace(task, codec=found), [(element.start, present)], 0)
        expected = frames * _frame_bits(description, subsampled=False) // 8
        if not expected <= present <= expected + 1:
            raise NoPixels(Reason.UNSUPPORTED_TRANSFER_SYNTAX, "the pixel data is not what the transfer syntax says, nor plainly native")
    if description.decoded_bytes > task.max_bytes:
        raise NoPixels(Reason.FRAME_TOO_LARGE, f"the frame would take more than {task.max_bytes} bytes")
    subsampled = _is_subsampled(description, present, frames)
    bits = _frame_bits(description, subsampled=subsampled)
    if subsampled and description.decoded_bytes + bits // 8 > task.max_bytes + task.max_bytes // 2:
        raise NoPixels(Reason.FRAME_TOO_LARGE, f"expanding the frame would take more than {task.max_bytes} bytes")
    chosen = _choose_frame(frames, present * 8 // bits, task.index)
    data, first_bit = _native_bytes(source, element, description, chosen * bits, bits)
    if description.bits_allocated == 1:
        samples = unpack(data, description, first_bit=first_bit)
    else:
        samples = np.frombuffer(data, description.dtype.newbyteorder("<"))
        if _is_big_endian(source, element):
            samples = samples.byteswap()
    array = expand_422(samples, description) if subsampled else arrange(samples, description, planar=description.planar)
    return Frame(array, chosen, frames, spread(description))


def _native_bytes(source: PixelSource, element: _Element, description: PixelDescription, first_bit: int, bits: int) -> tuple[memoryview, int]:
    """Give the bytes that hold some bits of a native element, and which bit of their first byte is the first."""
    start, stop = element.start + first_bit // 8, element.start + (first_bit + bits + 7) // 8
    if _is_big_endian(source, element) and description.bits_allocated <= 8 and element.vr == b"OW":
        return memoryview(_read_swapped_words(source, element, start, stop)), first_bit % 8
    return _read_buffer(source.stream, start, stop - start), first_bit % 8


def _is_big_endian(source: PixelSource, element: _Element) -> bool:
    return element.big_endian or source.transfer_syntax == GE_BIG_ENDIAN_PIXELS


def _frame_bits(description: PixelDescription, *, subsampled: bool) -> int:
    samples = 2 if subsampled else description.samples
    return description.rows * description.columns * samples * description.bits_allocated


def _is_subsampled(description: PixelDescription, present: int, frames: int) -> bool:
    """Whether native YCbCr shares its colours between two pixels; only then does less than a full frame each suffice."""
    return is_422(description) and present * 8 < frames * _frame_bits(description, subsampled=False)


def _read_swapped_words(source: PixelSource, element: _Element, start: int, stop: int) -> bytearray:
    """Read bytes that were written as big endian 16-bit words (DICOM PS3.5 8.1.1 and Annex A.3)."""
    skipped = (start - element.start) % 2
    start -= skipped
    count = min(stop - start + (stop - start) % 2, element.stop - start)
    words = bytearray(_read_buffer(source.stream, start, count))
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


def _read_encapsulated(task: _Task) -> Frame:
    source, element, frames = task.source, task.element, task.frames
    wanted = frames // 2 if task.index is None else task.index
    first, entries = _offset_table(source, element)
    fragments = _by_extended_table(source, element, first, wanted, frames) or _by_basic_table(source, element, first, entries, wanted, frames)
    if not fragments:
        found = _scan(source, element, first, frames)
        wanted = _choose_frame(frames, found.complete, task.index)
        fragments = found.fragments(wanted)
    if task.codec is None or task.codec is Codec.NATIVE:
        task = replace(task, codec=_codec_of(source, fragments))
    return _decode_fragments(task, fragments, wanted)


def _offset_table(source: PixelSource, element: _Element) -> tuple[int, int]:
    """Find the first fragment, and the number of entries of the Basic Offset Table, which ends there."""
    header = _read(source, element.start, 8)
    if header[:4] != _ITEM or len(header) < 8:
        raise NoPixels(Reason.BAD_ENCAPSULATION, "the pixel data has no items where its length says that it should")
    table_length = int.from_bytes(header[4:8], "little")
    first = element.start + 8 + table_length
    if table_length == _UNDEFINED or first > element.stop:
        raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the pixel data ends within the offset table")
    return first, table_length // 4


def _codec_of(source: PixelSource, fragments: list[tuple[int, int]]) -> Codec:
    """Codec of a frame whose transfer syntax does not say one."""
    data = _read(source, fragments[0][0], min(4096, fragments[0][1]))
    found = sniff(data) or (Codec.RLE if looks_like_rle(data) else None)
    if found is None:
        raise NoPixels(
            Reason.UNSUPPORTED_TRANSFER_SYNTAX, "the pixel data is encapsulated, and neither its transfer syntax nor its bytes name a codec"
        )
    return found


def _decode_fragments(task: _Task, fragments: list[tuple[int, int]], index: int) -> Frame:
    data = _join(task.source.stream, fragments, task.max_bytes)
    assert task.codec is not None
    array, after, scale = decode_reduced(
        task.codec, data, task.description, max_bytes=task.max_bytes, reduction=task.reduction, tolerance=task.tolerance
    )
    return Frame(array, index, task.frames, after, scale)


def _join(stream: BinaryIO, fragments: Sequence[tuple[int, int]], max_bytes: int) -> bytes:
    total = sum(length for _, length in fragments)
    if total > max_bytes:
        raise NoPixels(Reason.FRAME_TOO_LARGE, f"the encoded frame takes more than {max_bytes} bytes")
    parts = []
    for start, length in fragments:
        stream.seek(start)
        parts.append(stream.read(length))
    return parts[0] if len(parts) == 1 else b"".join(parts)


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
    if not has(source.dataset, "ExtendedOffsetTable"):
        return []
    offsets, lengths = value(source.dataset, "ExtendedOffsetTable"), value(source.dataset, "ExtendedOffsetTableLengths")
    if not isinstance(offsets, bytes) or not isinstance(lengths, bytes) or len(offsets) < 8 * frames or len(lengths) < 8 * frames:
        return []
    before, offset = (int.from_bytes(offsets[8 * place : 8 * place + 8], "little") for place in (max(0, index - 1), index))
    position = first + offset
    length = int.from_bytes(lengths[8 * index : 8 * index + 8], "little")
    item = _item(source, element, position)
    if item is None or (index and before >= offset) or not 0 < length <= item[0] or position + 8 + length > element.stop:
        return []
    return [(position + 8, length)]


def _by_basic_table(source: PixelSource, element: _Element, first: int, entries: int, index: int, frames: int) -> list[tuple[int, int]]:
    """Find a frame by the Basic Offset Table. Empty when the table is empty or does not fit what is there."""
    if entries != frames:
        return []
    places = range(max(0, index - 1), min(index + 2, entries))
    raw = _read(source, element.start + 8 + 4 * places.start, 4 * len(places))
    offsets = {place: int.from_bytes(raw[4 * at : 4 * at + 4], "little") for at, place in enumerate(places)}
    if index and offsets[index - 1] >= offsets[index]:  # tables of zeros are met
        return []
    position = first + offsets[index]
    stop = first + offsets[index + 1] if index + 1 in offsets else element.stop
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


@dataclass(frozen=True, slots=True)
class _Fragments:
    """All fragments of an element: where each starts in the stream, its bytes, and which is the first of each frame."""

    starts: Sequence[int]
    lengths: Sequence[int]
    firsts: Sequence[int]
    complete: int

    def fragments(self, frame: int) -> list[tuple[int, int]]:
        stop = self.firsts[frame + 1] if frame + 1 < len(self.firsts) else len(self.starts)
        return [(self.starts[number], self.lengths[number]) for number in range(self.firsts[frame], stop)]


def _scan(source: PixelSource, element: _Element, first: int, frames: int) -> _Fragments:
    """Find all frames by walking over the item headers; fragments are not loaded.

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
    firsts: Sequence[int] = range(len(starts))
    if frames == 1:
        firsts = (0,)
    elif len(starts) != frames and len(begins) and begins[0] == 0:
        firsts = begins
    found = min(len(firsts), frames)
    last_is_whole = not cut or (found < len(firsts) and firsts[found] < len(starts))
    return _Fragments(starts, lengths, firsts, found if last_is_whole else found - 1)


# Frames as they are stored


@dataclass(frozen=True, slots=True)
class FrameBytes:
    """The bytes of one frame, to be sent rather than shown.

    Parameters
    ----------
    data : bytes
        A codestream, or native little endian samples of which the first starts at the first bit.
    transfer_syntax : str
        UID of the transfer syntax that they are in: that of the object where it is compressed, Explicit VR Little Endian where it is not.
    """

    data: bytes
    transfer_syntax: str


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """Where the frames of one object are in its stream; numbers only, so that it can be kept as long as the stream's bytes are the same.

    Parameters
    ----------
    transfer_syntax : str
        Of the frames, see `FrameBytes`.
    frames : int
        How many are there in full.
    starts, lengths : sequence of int
        Position and bytes of each fragment of encapsulated pixel data; of native pixel data one entry, the whole element.
    firsts : sequence of int
        Number of the first fragment of each frame; empty for native pixel data.
    frame_bits : int
        Bits of one native frame, 0 for encapsulated ones.
    word : int
        Bytes of the big endian words that native pixel data is in, 1 where nothing needs to be swapped.
    """

    transfer_syntax: str
    frames: int
    starts: Sequence[int]
    lengths: Sequence[int]
    firsts: Sequence[int] = ()
    frame_bits: int = 0
    word: int = 1


_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"


def index_frames(source: PixelSource) -> FrameIndex:
    """Find all frames of an object, in one walk over item headers; no frame is loaded.

    Parameters
    ----------
    source : PixelSource

    Raises
    ------
    NoPixels
        ``code`` says why. Videos are one frame: all of their fragments.
    """
    element = _read_element(source)
    codec = CODECS.get(source.transfer_syntax)
    frames = max(1, int(number(source.dataset, "NumberOfFrames") or 1))
    if _is_encapsulated(source, element, codec):
        first, _ = _offset_table(source, element)
        found = _scan(source, element, first, 1 if codec is Codec.VIDEO else frames)
        offsets = _frames_of_tables(source, element, first, found.starts, frames)
        if offsets:
            found = replace(found, firsts=offsets)
        return FrameIndex(source.transfer_syntax, found.complete, found.starts, found.lengths, found.firsts)
    description = describe(source.dataset, element.tag)
    present = element.stop - element.start
    bits = _frame_bits(description, subsampled=_is_subsampled(description, present, frames))
    word = 1
    if _is_big_endian(source, element):
        word = 2 if element.vr == b"OW" and description.bits_allocated <= 8 else max(1, description.bits_allocated // 8)
    if codec not in (Codec.NATIVE, Codec.UNCOMPRESSED) and frames == 1 and sniff(_read(source, element.start, 4096)) is not None:
        return FrameIndex(source.transfer_syntax, 1, (element.start,), (present,), (0,))
    return FrameIndex(_EXPLICIT_LITTLE, min(frames, present * 8 // bits), (element.start,), (present,), (), bits, word)


def _frames_of_tables(source: PixelSource, element: _Element, first: int, starts: Sequence[int], frames: int) -> list[int]:
    """Find the first fragment of each frame by the offset tables; empty when they do not name fragments."""
    if len(starts) == frames:
        return []
    entries = _offset_table(source, element)[1]
    offsets: np.ndarray[tuple[int], np.dtype[np.unsignedinteger]] = np.frombuffer(_read(source, element.start + 8, 4 * entries), "<u4")
    if len(offsets) != frames:
        return []
    numbers = {start - 8 - first: number for number, start in enumerate(starts)}
    found = [numbers.get(int(offset), -1) for offset in offsets]
    return found if found[0] == 0 and all(a < b for a, b in pairwise(found)) else []


def frame_bytes(stream: BinaryIO, index: FrameIndex, frame: int, *, max_bytes: int) -> FrameBytes:
    """Read the stored bytes of one frame.

    Parameters
    ----------
    stream : BinaryIO
        The one that was indexed.
    index : FrameIndex
    frame : int
        0-based.
    max_bytes : int
        Most bytes to load.

    Raises
    ------
    NoPixels
        ``no_such_frame``, ``pixel_data_truncated`` or ``frame_too_large``.
    """
    if not 0 <= frame < index.frames:
        raise NoPixels(Reason.NO_SUCH_FRAME, "the object has no frame of that number")
    if not index.frame_bits:
        table = _Fragments(index.starts, index.lengths, index.firsts, index.frames)
        return FrameBytes(_join(stream, table.fragments(frame), max_bytes), index.transfer_syntax)
    if index.frame_bits // 8 > max_bytes:
        raise NoPixels(Reason.FRAME_TOO_LARGE, f"the frame takes more than {max_bytes} bytes")
    first_bit = frame * index.frame_bits
    start = first_bit // 8 // index.word * index.word
    stop = min(index.lengths[0], -(-(first_bit + index.frame_bits) // 8 // index.word) * index.word)
    data = _read_buffer(stream, index.starts[0] + start, stop - start)
    if index.word > 1:
        whole = len(data) // index.word * index.word
        data = memoryview(np.frombuffer(data[:whole], f"u{index.word}").byteswap().tobytes() + bytes(data[whole:]))
    skipped = first_bit - 8 * start
    if skipped % 8 or index.frame_bits % 8:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=skipped + index.frame_bits, bitorder="little")[skipped:]
        return FrameBytes(np.packbits(bits, bitorder="little").tobytes(), index.transfer_syntax)
    return FrameBytes(bytes(data[skipped // 8 : (skipped + index.frame_bits) // 8]), index.transfer_syntax)
