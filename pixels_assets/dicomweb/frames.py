"""Where the frames of an object lie, found out once and kept: offsets into its bytes, for native and encapsulated pixel data (DICOM PS3.5 8, A.4).

Holds the index and the reading of stored frames. Decoding is `pixels_assets.dicom.pixels`'s business.
"""

import threading
from array import array
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO, Literal

import numpy as np

from pixels_assets.dicom.codecs import (
    CODECS,
    GE_BIG_ENDIAN_PIXELS,
    Codec,
    NoPixels,
    PixelDescription,
    Reason,
    is_422,
    looks_like_rle,
    sniff,
    starts_frame,
)
from pixels_assets.dicom.image import number, value
from pixels_assets.dicom.pixels import Frame, PixelSource, describe, read_frame
from pixels_assets.dicom.reader import Header, Unreadable, read_header
from pixels_assets.dicom.transfer_syntax import EXPLICIT_LITTLE, IMPLICIT_LITTLE
from pixels_assets.dicomweb.objects import Source
from pixels_assets.intake.filetype import identify
from pixels_assets.settings import Limits

__all__ = ["PYDICOM", "FrameIndex", "header_of", "index_frames", "native_bytes", "native_value", "read_stored"]

PYDICOM = threading.Lock()
"""Held while pydicom reads or writes a data set: how it warns is a setting of the whole process."""

_ITEM = b"\xfe\xff\x00\xe0"
_UNDEFINED = 0xFFFFFFFF
_FLOAT, _DOUBLE = 0x7FE00008, 0x7FE00009
_EXPLICIT_VRS = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN"})
_MAX_FRAGMENTS = 4_000_000
_WINDOW = 64 * 1024


def _nothing() -> "array[int]":
    return array("Q")


@dataclass(frozen=True, slots=True)
class FrameIndex:
    """The frames of one object.

    Parameters
    ----------
    transfer_syntax : str
        UID in which the object is really encoded.
    codec : Codec or None
        How its frames are coded.
    frames : int
        How many there are.
    description : PixelDescription or None
        None where the data set does not describe its pixels, as for some videos; only of encapsulated pixel data.
    native_start : int
        Position of the first frame of native pixel data, bytes; -1 for encapsulated ones.
    native_stop : int
    frame_bits : int
        Bits of one native frame.
    swapped : bool
        Native pixel data are big endian.
    starts, lengths : array of int
        Position and bytes of each fragment of encapsulated pixel data.
    firsts : array of int
        Number of the first fragment of each frame, and behind the last one the number of fragments.
    inflated : bytes or None
        The data set of a deflated object, which positions refer to.
    """

    transfer_syntax: str
    codec: Codec | None
    frames: int
    description: PixelDescription | None
    native_start: int = -1
    native_stop: int = 0
    frame_bits: int = 0
    swapped: bool = False
    starts: "array[int]" = field(default_factory=_nothing)
    lengths: "array[int]" = field(default_factory=_nothing)
    firsts: "array[int]" = field(default_factory=_nothing)
    inflated: bytes | None = None

    @property
    def weight(self) -> int:
        """Bytes that it takes in memory, roughly."""
        return 1024 + 16 * len(self.starts) + 8 * len(self.firsts) + len(self.inflated or b"")

    def size_of(self, frame: int, *, decoded: bool) -> int:
        """Bytes that a frame, 0-based, takes as it is stored; while it is decoded, those of both forms, and of a copy."""
        stored = self.frame_bits // 8 if self.is_native else sum(self.lengths[self.firsts[frame] : self.firsts[frame + 1]])
        return stored + 2 * self.description.decoded_bytes if decoded and self.description is not None else stored

    @property
    def is_native(self) -> bool:
        """Whether frames lie side by side, uncompressed."""
        return self.native_start >= 0


def header_of(source: Source, limits: Limits) -> Header | Unreadable:
    """Read the header of an object that the catalog holds."""
    stream = source.stream()
    offset, flags = _dataset_offset(stream, source.length)
    with PYDICOM:
        return read_header(stream, source.length, dataset_offset=offset, flags=flags, max_deflated_bytes=limits.max_deflated_bytes)


def _dataset_offset(stream: BinaryIO, length: int) -> tuple[int, tuple[str, ...]]:
    head = stream.read(132)
    stream.seek(0)
    if head[128:] == b"DICM":
        return 0, ()
    found = identify(stream, length)
    stream.seek(0)
    return found.dataset_offset or 0, found.flags


def index_frames(header: Header) -> FrameIndex:
    """Find the frames of an object.

    Raises
    ------
    NoPixels
        There are none.
    """
    source = PixelSource.of(header)
    if source is None:
        raise NoPixels(Reason.NO_PIXEL_DATA, "the object has no pixel data")
    codec = CODECS.get(source.transfer_syntax)
    if codec is Codec.REFERENCED:
        raise NoPixels(Reason.REFERENCED_PIXELS, "the pixel data is behind a URL, which is not followed")
    tag, start, stop, declared, big_endian = _element(source)
    description, fault = None, None
    try:
        description = describe(source.dataset, tag)
    except NoPixels as error:
        fault = error  # frames that lie in items are found without
    frames = max(1, int(number(source.dataset, "NumberOfFrames") or 1))
    inflated = header.stream.getvalue() if isinstance(header.stream, BytesIO) else None
    head = _read(source, start, 4)
    if declared == _UNDEFINED or (codec is not Codec.NATIVE and head == _ITEM):
        starts, lengths, firsts = _fragments(source, start, stop, 1 if codec is Codec.VIDEO else frames)
        if codec is None or codec is Codec.NATIVE:
            data = _read(source, starts[0], min(4096, lengths[0]))
            codec = sniff(data) or (Codec.RLE if looks_like_rle(data) else None)
        return FrameIndex(
            transfer_syntax=source.transfer_syntax,
            codec=codec,
            frames=len(firsts) - 1,
            description=description,
            starts=starts,
            lengths=lengths,
            firsts=firsts,
            inflated=inflated,
        )
    if fault is not None:
        raise fault
    assert description is not None
    bits = description.rows * description.columns * description.samples * description.bits_allocated
    if codec not in (Codec.NATIVE, Codec.UNCOMPRESSED) and not frames * bits // 8 <= stop - start <= frames * bits // 8 + 1:
        found = sniff(_read(source, start, 4096))
        if found is None or frames > 1:
            raise NoPixels(Reason.UNSUPPORTED_TRANSFER_SYNTAX, "the pixel data is not what the transfer syntax says, nor plainly native")
        return FrameIndex(
            source.transfer_syntax, found, 1, description, starts=array("Q", [start]), lengths=array("Q", [stop - start]), firsts=array("Q", [0, 1])
        )
    if is_422(description) and (stop - start) * 8 < frames * bits:
        bits = bits // 3 * 2
    return FrameIndex(
        transfer_syntax=source.transfer_syntax,
        codec=Codec.NATIVE,
        frames=frames,
        description=description,
        native_start=start,
        native_stop=stop,
        frame_bits=bits,
        swapped=big_endian or source.transfer_syntax == GE_BIG_ENDIAN_PIXELS,
        inflated=inflated,
    )


def native_value(header: Header) -> bytes:
    """Read the value of native pixel data as little endian, whatever the data set says of it.

    Raises
    ------
    NoPixels
        There is none.
    """
    source = PixelSource.of(header)
    if source is None:
        raise NoPixels(Reason.NO_PIXEL_DATA, "the object has no pixel data")
    _, start, stop, _, big_endian = _element(source)
    data = _read(source, start, stop - start)
    bits = int(number(source.dataset, "BitsAllocated") or 16)
    is_swapped = big_endian or source.transfer_syntax == GE_BIG_ENDIAN_PIXELS
    if not is_swapped or bits not in {16, 32, 64}:
        return data
    whole = len(data) // (bits // 8) * (bits // 8)
    return swapped_bytes(data[:whole], bits) + data[whole:]


def read_stored(source: Source, index: FrameIndex, frame: int) -> bytes:
    """Read one frame as it is stored.

    Parameters
    ----------
    source : Source
        Bytes of the object.
    index : FrameIndex
    frame : int
        0-based.

    Raises
    ------
    NoPixels
        There is no such frame, or not all of it.
    """
    if not 0 <= frame < index.frames:
        raise NoPixels(Reason.NO_SUCH_FRAME, "the object has no frame of that number")
    if not index.is_native:
        pieces = range(index.firsts[frame], index.firsts[frame + 1])
        data = b"".join(_bytes(source, index, index.starts[piece], index.lengths[piece]) for piece in pieces)
        if len(data) < sum(index.lengths[piece] for piece in pieces) or not data:
            raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the pixel data ends before the frame does")
        return data
    first = frame * index.frame_bits
    start, stop = index.native_start + first // 8, index.native_start + (first + index.frame_bits + 7) // 8
    data = _bytes(source, index, start, stop - start) if stop <= index.native_stop else b""
    if len(data) < stop - start:
        raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the pixel data ends before the frame does")
    if first % 8:
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")[first % 8 :][: index.frame_bits]
        data = np.packbits(bits, bitorder="little").tobytes()
    elif index.frame_bits % 8:
        data = data[:-1] + bytes([data[-1] & (1 << index.frame_bits % 8) - 1])
    return data


def native_bytes(frame: Frame, *, planar: bool, bits_allocated: int) -> bytes:
    """Write a decoded frame as little endian native pixel data (DICOM PS3.5 8.1), as the data set describes it.

    Parameters
    ----------
    frame : Frame
    planar : bool
        All of one colour after the other.
    bits_allocated : int
        (0028,0100) *Bits Allocated*. Decoders return samples as narrow as the codestream has them: they are widened, or packed for single bits.
    """
    samples = frame.array
    if bits_allocated == 1:
        return np.packbits(samples.astype(bool).reshape(-1), bitorder="little").tobytes()
    if planar and samples.ndim == 3:
        samples = samples.transpose(2, 0, 1)
    width = max(samples.dtype.itemsize, bits_allocated // 8)
    return samples.astype(f"<{samples.dtype.kind}{width}", copy=False).tobytes()


def swapped_bytes(data: bytes, bits: int) -> bytes:
    """Turn big endian samples into little endian ones."""
    return np.frombuffer(data, f">u{bits // 8}").byteswap().tobytes() if bits > 8 else data


def is_plain(index: FrameIndex) -> bool:
    """Whether stored frames are those of Explicit VR Little Endian as they stand."""
    return index.is_native and not index.swapped


def syntax_of_frames(index: FrameIndex) -> str:
    """Transfer syntax by which stored frames are read: native ones do not know explicit from implicit."""
    return EXPLICIT_LITTLE if index.is_native or index.transfer_syntax in {IMPLICIT_LITTLE, ""} else index.transfer_syntax


def decode_frame(header: Header, frame: int, max_bytes: int) -> Frame:
    """Decode one frame, 0-based."""
    source = PixelSource.of(header)
    if source is None:
        raise NoPixels(Reason.NO_PIXEL_DATA, "the object has no pixel data")
    return read_frame(source, max_bytes=max_bytes, index=frame)


def _bytes(source: Source, index: FrameIndex, start: int, count: int) -> bytes:
    return source.read_at(start, count) if index.inflated is None else index.inflated[start : start + count]


def _read(source: PixelSource, start: int, count: int) -> bytes:
    source.stream.seek(start)
    return source.stream.read(max(0, min(count, source.length - start)))


def _element(source: PixelSource) -> tuple[int, int, int, int, bool]:
    """Tag of the pixel data element, where its value starts and ends, its declared length, and whether it is big endian."""
    header = _read(source, source.offset, 12)
    big_endian = header[:2] == b"\x7f\xe0"
    order: Literal["big", "little"] = "big" if big_endian else "little"
    if len(header) < 8:
        raise NoPixels(Reason.NO_PIXEL_DATA, "there is no pixel data element")
    tag = int.from_bytes(header[:2], order) << 16 | int.from_bytes(header[2:4], order)
    if header[4:6] in _EXPLICIT_VRS and len(header) == 12:
        declared, start = int.from_bytes(header[8:12], order), source.offset + 12
    else:
        declared, start = int.from_bytes(header[4:8], order), source.offset + 8
    stop = source.length if declared == _UNDEFINED else min(source.length, start + declared)
    if stop <= start:
        raise NoPixels(Reason.PIXEL_DATA_TRUNCATED if declared else Reason.NO_PIXEL_DATA, "the pixel data element is empty")
    return tag, start, stop, declared, big_endian


Arrays = tuple["array[int]", "array[int]", "array[int]"]


def _fragments(source: PixelSource, start: int, stop: int, frames: int) -> Arrays:
    header = _read(source, start, 8)
    if header[:4] != _ITEM or len(header) < 8:
        raise NoPixels(Reason.BAD_ENCAPSULATION, "the pixel data has no items where its length says that it should")
    table_length = int.from_bytes(header[4:8], "little")
    first = start + 8 + table_length
    if table_length == _UNDEFINED or first > stop:
        raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the pixel data ends within the offset table")
    found = _by_extended_table(source, first, stop, frames)
    if found is not None:
        return found
    starts, lengths, begins = _scan(source, first, stop)
    offsets = np.frombuffer(_read(source, start + 8, table_length // 4 * 4), "<u4").astype(np.int64) + first + 8
    return _by_basic_table(offsets, starts, lengths, frames) or _by_codestreams(starts, lengths, begins, frames)


def _by_extended_table(source: PixelSource, first: int, stop: int, frames: int) -> Arrays | None:
    """Frames by (7FE0,0001) *Extended Offset Table*, one fragment each; None when it is absent, does not ascend or has a wrong entry."""
    offsets, lengths = value(source.dataset, "ExtendedOffsetTable"), value(source.dataset, "ExtendedOffsetTableLengths")
    if not isinstance(offsets, bytes) or not isinstance(lengths, bytes) or min(len(offsets), len(lengths)) < 8 * frames:
        return None
    places = np.frombuffer(offsets, "<u8", frames)
    if places[-1] >= stop or (places[1:] <= places[:-1]).any():
        return None
    starts = array("Q", (places + np.uint64(first + 8)).tobytes())
    sizes = array("Q", np.frombuffer(lengths, "<u8", frames).tobytes())
    for place in (0, frames // 2, frames - 1):
        item = _read(source, starts[place] - 8, 8)
        if item[:4] != _ITEM or not 0 < sizes[place] <= int.from_bytes(item[4:], "little") or starts[place] + sizes[place] > stop:
            return None
    return starts, sizes, array("Q", range(frames + 1))


def _scan(source: PixelSource, first: int, stop: int) -> Arrays:
    """Walk over all items: where fragments start, their lengths, and which of them start a codestream."""
    starts, lengths, begins = array("Q"), array("Q"), array("Q")
    position = first
    window, window_at = b"", 0
    while position + 8 <= stop:
        if not window_at <= position <= window_at + len(window) - 20:
            window, window_at = _read(source, position, _WINDOW), position
        head = window[position - window_at : position - window_at + 20]
        if head[:4] != _ITEM:
            break
        if len(starts) >= _MAX_FRAGMENTS:
            raise NoPixels(Reason.BAD_ENCAPSULATION, f"the pixel data has more than {_MAX_FRAGMENTS} fragments")
        length = int.from_bytes(head[4:8], "little")
        peeked = head[8:]
        if starts_frame(peeked) or (len(peeked) < 3 and len(begins) == len(starts)):
            begins.append(len(starts))
        starts.append(position + 8)
        lengths.append(length)
        position += 8 + length
    if not starts:
        raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the pixel data has no fragments")
    return starts, lengths, begins


def _by_basic_table(offsets: "np.typing.NDArray[np.int64]", starts: "array[int]", lengths: "array[int]", frames: int) -> Arrays | None:
    """Frames by the Basic Offset Table; None when it is empty or does not lead to fragments, in order."""
    if len(offsets) != frames:
        return None
    places = np.searchsorted(np.asarray(starts, np.int64), offsets)
    if (places >= len(starts)).any() or (np.asarray(starts, np.int64)[places] != offsets).any() or (np.diff(places) <= 0).any() or places[0] != 0:
        return None
    return starts, lengths, array("Q", [*places.tolist(), len(starts)])


def _by_codestreams(starts: "array[int]", lengths: "array[int]", begins: "array[int]", frames: int) -> Arrays:
    """With as many fragments as frames each is one. Otherwise a frame starts with each fragment that starts a codestream."""
    bounds = array("Q", range(len(starts)))
    if frames == 1:
        bounds = array("Q", [0])
    elif len(starts) != frames and len(begins) and begins[0] == 0:
        bounds = begins
    return starts, lengths, array("Q", [*bounds, len(starts)])[: frames + 1]
