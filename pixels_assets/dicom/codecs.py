"""How the bytes of one compressed frame become an array: one table from transfer syntax to codec, one from codec to decoders.

Knows codestreams and their headers. Must not know where a frame lies in a file (`pixels`) or how it is shown (`rendering`), and must not trust
the data set: what a codestream says about its own size is compared with it before any decoder allocates memory.
"""

import io
import logging
import math
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixels_assets.dicom.bitplanes import without_low_planes

_LOG = logging.getLogger(__name__)

Array = NDArray[Any]


class Reason(StrEnum):
    """Why there is no frame or no thumbnail; the stable words of `thumbnails.error_code`."""

    NO_PIXEL_DATA = "no_pixel_data"
    """There is no pixel data element, or an empty one."""
    NO_SUCH_FRAME = "no_such_frame"
    """The caller asked for a frame beyond the last one."""
    VIDEO = "video"
    """MPEG-2, MPEG-4, HEVC and SMPTE ST 2110: served as bytes, never decoded."""
    REFERENCED_PIXELS = "referenced_pixels"
    """The pixels are behind a JPIP URL."""
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    """Neither the transfer syntax nor the bytes name a codec."""
    UNSUPPORTED_PHOTOMETRIC = "unsupported_photometric"
    """A retired colour space."""
    BAD_PIXEL_DESCRIPTION = "bad_pixel_description"
    """The attributes that the size of a frame rests on are missing, impossible or contradicted by the codestream."""
    BAD_ENCAPSULATION = "bad_encapsulation"
    """No items where there must be items, or absurdly many."""
    PIXEL_DATA_TRUNCATED = "pixel_data_truncated"
    """No frame, or not the one asked for, is there in full."""
    FRAME_TOO_LARGE = "frame_too_large"
    """Decoding would take more memory than allowed."""
    DECODE_FAILED = "decode_failed"
    """The decoder could not read the codestream."""


class NoPixels(Exception):  # noqa: N818 - it names a result, not an error of ours
    """There is no frame to show, and why: always turned into a row's reason.

    Parameters
    ----------
    code : Reason
    message : str
        One sentence without patient data.
    """

    def __init__(self, code: Reason, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Codec(StrEnum):
    """How the frames of a data set are coded."""

    NATIVE = "native"
    JPEG = "jpeg"
    JPEG_LS = "jpeg_ls"
    JPEG_2000 = "jpeg_2000"
    """High-throughput JPEG 2000 (Part 15) included: OpenJPEG reads both."""
    JPEG_XL = "jpeg_xl"
    RLE = "rle"
    DEFLATE = "deflate"
    UNCOMPRESSED = "uncompressed"
    """Native bytes, each frame in fragments of its own."""
    VIDEO = "video"
    REFERENCED = "referenced"
    """The pixels are elsewhere, behind a URL that is never followed."""


_DICOM = "1.2.840.10008.1.2"
GE_BIG_ENDIAN_PIXELS = "1.2.840.113619.5.2"
"""GE's private syntax: an implicit VR little endian data set whose pixel data is big endian."""

CODECS: dict[str, Codec] = {
    _DICOM: Codec.NATIVE,
    f"{_DICOM}.1": Codec.NATIVE,
    f"{_DICOM}.2": Codec.NATIVE,
    f"{_DICOM}.1.99": Codec.NATIVE,
    GE_BIG_ENDIAN_PIXELS: Codec.NATIVE,
    "1.2.840.10008.1.20": Codec.NATIVE,
    f"{_DICOM}.1.98": Codec.UNCOMPRESSED,
    f"{_DICOM}.5": Codec.RLE,
    f"{_DICOM}.8.1": Codec.DEFLATE,
    **{f"{_DICOM}.4.{number}": Codec.JPEG for number in (*range(50, 67), 70)},
    **{f"{_DICOM}.4.{number}": Codec.JPEG_LS for number in (80, 81)},
    **{f"{_DICOM}.4.{number}": Codec.JPEG_2000 for number in (90, 91, 92, 93, 201, 202, 203)},
    **{f"{_DICOM}.4.{number}": Codec.JPEG_XL for number in (110, 111, 112)},
    **{f"{_DICOM}.4.{number}": Codec.REFERENCED for number in (94, 95, 204, 205)},
    **{f"{_DICOM}.4.{number}{part}": Codec.VIDEO for number in range(100, 109) for part in ("", ".1")},
    **{f"{_DICOM}.7.{number}": Codec.VIDEO for number in (1, 2, 3)},
}
"""Transfer syntax UID to codec (DICOM PS3.6 Table A-1, retired JPEG processes included)."""


@dataclass(frozen=True, slots=True)
class PixelDescription:
    """The Image Pixel module (DICOM PS3.3 C.7.6.3), checked.

    Parameters
    ----------
    rows, columns : int
        At least 1.
    samples : int
        (0028,0002) *Samples per Pixel*, 1, 3 or 4.
    bits_allocated, bits_stored, high_bit : int
        Of one sample. In a decoded frame `bits_stored` is what the codestream holds.
    signed : bool
        (0028,0103) *Pixel Representation* is 1.
    planar : bool
        (0028,0006) *Planar Configuration* is 1: all of red, then all of green, then all of blue.
    photometric : str
        (0028,0004) *Photometric Interpretation*; in a decoded frame that of its array.
    kind : str
        numpy's letter: ``u`` or ``i`` for integers, ``f`` for the float and double pixel data elements.
    """

    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    planar: bool
    photometric: str
    kind: str = "u"

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of one sample in memory, native byte order; a sample of one bit takes a byte."""
        return np.dtype(f"{self.kind}{max(1, self.bits_allocated // 8)}")

    @property
    def decoded_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return self.rows * self.columns * self.samples * max(1, self.bits_allocated // 8)

    @property
    def packed_bytes(self) -> int:
        """Bytes of one frame with its samples packed, as native pixel data and the byte-oriented codecs hold it."""
        return (self.rows * self.columns * self.samples * self.bits_allocated + 7) // 8


@dataclass(frozen=True, slots=True)
class Codestream:
    """What a codestream says about itself before it is decoded.

    Parameters
    ----------
    rows, columns, samples : int
    precision : int
        Bits of one sample.
    signed : bool or None
        None where the format cannot say.
    lossless : bool
        JPEG process 14, where the decoder must not touch the colours.
    progressive : bool
        A JPEG of several scans, whose decoder holds all coefficients at once.
    colour : str or None
        ``RGB`` or ``YBR_FULL`` where a JPEG's markers settle it, ``RGB`` for JPEG 2000 with subsampled components, which decoders take for YCbCr and
        undo; None where only the data set can say.
    levels : int
        Times that the codestream can be halved: wavelet decompositions of JPEG 2000, 3 for the discrete cosine transform of JPEG, else 0.
    high_throughput : bool
        JPEG 2000 Part 15.
    one_tile : bool
        The whole image of JPEG 2000 is one tile.
    start : int
        Where the codestream begins in the data: behind the boxes of a JP2 file.
    structure : int
        Bytes that a decoder of JPEG 2000 takes for tiles and code-blocks, however small the picture is made.
    """

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool | None = None
    lossless: bool = False
    progressive: bool = False
    colour: str | None = None
    levels: int = 0
    high_throughput: bool = False
    one_tile: bool = False
    start: int = 0
    structure: int = 0


_J2K_START = b"\xff\x4f\xff\x51"
_TILE_PART = b"\xff\x90\x00\x0a"
_END = b"\xff\xd9"
_JP2_BOX = b"\x00\x00\x00\x0cjP  "
_JXL_BOX = b"\x00\x00\x00\x0cJXL "
_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
_HEADER_BYTES = 1 << 20
_RLE_EXCESS = 4096
_MANY_SEGMENTS = 65536
_MANY_SCANS = 256
_BLOCK_BYTES, _TILE_BYTES = 600, 8192
"""What OpenJPEG takes for a code-block of the tile in hand, and for each tile."""


def sniff(data: bytes) -> Codec | None:
    """Name the codec of a codestream by its first bytes; None when they say nothing.

    The bytes are believed before the transfer syntax: files are re-labelled in the wild, codestreams are not.
    """
    if data[:2] == b"\xff\xd8":
        return Codec.JPEG_LS if _jpeg_frame_marker(data) == 0xF7 else Codec.JPEG
    if data.startswith((_J2K_START, _JP2_BOX)):
        return Codec.JPEG_2000
    if data.startswith((b"\xff\x0a", _JXL_BOX)):
        return Codec.JPEG_XL
    return None


def looks_like_rle(data: bytes) -> bool:
    """Whether `data` starts with a plausible RLE header (DICOM PS3.5 G.5): 1 to 15 segments, ascending offsets, the first at 64."""
    if len(data) < 64:
        return False
    count, *offsets = struct.unpack_from("<16L", data)
    used, unused = offsets[:count], offsets[count:]
    return 1 <= count <= 15 and used[0] == 64 and used == sorted(used) and not any(unused)


def starts_frame(data: bytes) -> bool:
    """Whether a fragment with these first bytes begins a codestream, rather than continuing one."""
    return data.startswith((b"\xff\xd8\xff", _J2K_START, _JP2_BOX, b"\xff\x0a", _JXL_BOX))


def decode(codec: Codec, data: bytes, description: PixelDescription, *, max_bytes: int) -> tuple[Array, PixelDescription]:
    """Decode one frame in full; see `decode_reduced`."""
    array, after, _ = decode_reduced(codec, data, description, max_bytes=max_bytes, reduction=1)
    return array, after


def decode_reduced(
    codec: Codec, data: bytes, description: PixelDescription, *, max_bytes: int, reduction: int, tolerance: float = 0
) -> tuple[Array, PixelDescription, int]:
    """Decode one frame, smaller where the codec gets at a smaller picture with less work.

    Parameters
    ----------
    codec : Codec
        What the transfer syntax says; the codestream's signature wins over it.
    data : bytes
        All fragments of the frame, joined.
    description : PixelDescription
    max_bytes : int
        Bytes that the decoded frame may take. A decoder's own working memory may take half as much again.
    reduction : int
        How many times smaller, both ways, the picture may become.
    tolerance : float
        What single coefficients of a smaller picture may be off by if that is less work; its values are off by about a third of it on average.

    Returns
    -------
    array : numpy.ndarray, shape (rows / scale, columns / scale[, samples]), rounded up
    description : PixelDescription
        That of the array: YCbCr that a codec undoes itself has become RGB. Its `rows` and `columns` stay those of the whole frame.
    scale : int
        How many times smaller it is: a power of 2 up to `reduction`, 1 for codecs without such a way.

    Raises
    ------
    NoPixels
        The data does not fit the description or the memory, or no decoder can read it.
    """
    codec = sniff(data) or codec
    if codec in _BYTE_CODECS:
        _check_memory(description.decoded_bytes, description.decoded_bytes, max_bytes)
        return *_from_bytes(_BYTE_CODECS[codec](data, description), description, planar=description.planar or codec is Codec.RLE), 1
    if codec not in _CODESTREAM_CODECS:
        raise NoPixels(Reason.UNSUPPORTED_TRANSFER_SYNTAX, f"no decoder for {codec.value} frames")
    found = _read_header(codec, data)
    if (found.rows, found.columns) != (description.rows, description.columns):
        raise NoPixels(Reason.BAD_PIXEL_DESCRIPTION, "the codestream's dimensions differ from the data set's")
    if reduction > 1 and (small := _decode_small(codec, data, found, description, reduction, tolerance, max_bytes)) is not None:
        array, scale = small
        return *_correct(array, codec, found, description), scale
    decoded_bytes = found.rows * found.columns * found.samples * (2 if found.precision > 8 else 1)
    _check_memory(decoded_bytes, decoded_bytes + len(data) + _working_bytes(codec, found), max_bytes)
    array = _try_decoders(codec, data, found, description)
    return *_correct(array, codec, found, description), 1


def unpack(data: bytes | bytearray | memoryview, description: PixelDescription, *, first_bit: int = 0) -> Array:
    """Spread bits, the first sample in the lowest bit, to one byte a sample (DICOM PS3.5 8.1.1)."""
    count = description.rows * description.columns * description.samples
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=first_bit + count, bitorder="little")
    return bits[first_bit:]


def arrange(samples: Array, description: PixelDescription, *, planar: bool) -> Array:
    """Shape a flat array of one frame's samples to (rows, columns[, samples]) without copying it."""
    rows, columns = description.rows, description.columns
    if description.samples == 1:
        return samples.reshape(rows, columns)
    if planar:
        return samples.reshape(description.samples, rows, columns).transpose(1, 2, 0)
    return samples.reshape(rows, columns, description.samples)


def is_422(description: PixelDescription) -> bool:
    """Whether two pixels may share their colours where they are not compressed."""
    return description.samples == 3 and description.columns % 2 == 0 and description.photometric.endswith("_422")


def expand_422(samples: Array, description: PixelDescription) -> Array:
    """Give each pixel its own colours: Y1 Y2 Cb Cr stands for two pixels (DICOM PS3.3 C.7.6.3.1.2)."""
    pairs = samples.reshape(description.rows, description.columns // 2, 4)
    expanded = np.empty((description.rows, description.columns, 3), samples.dtype)
    expanded[:, 0::2, 0], expanded[:, 1::2, 0] = pairs[:, :, 0], pairs[:, :, 1]
    for channel in (1, 2):
        expanded[:, 0::2, channel] = expanded[:, 1::2, channel] = pairs[:, :, channel + 1]
    return expanded


def spread(description: PixelDescription) -> PixelDescription:
    """Describe a frame of which each pixel has its own colours."""
    return replace(description, photometric="YBR_FULL") if description.photometric == "YBR_FULL_422" else description


def _from_bytes(data: bytes | bytearray, description: PixelDescription, *, planar: bool) -> tuple[Array, PixelDescription]:
    count, needed = description.rows * description.columns * description.samples, description.packed_bytes
    subsampled = is_422(description) and len(data) < needed
    if subsampled:
        count, needed = count // 3 * 2, needed // 3 * 2
    if len(data) < needed:
        raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the frame holds fewer bytes than its description needs")
    dtype = description.dtype.newbyteorder("<")
    samples = unpack(data, description) if description.bits_allocated == 1 else np.frombuffer(data, dtype, count=count)
    array = expand_422(samples, description) if subsampled else arrange(samples, description, planar=planar)
    return array, spread(description)


def _decode_uncompressed(data: bytes, description: PixelDescription) -> bytes:
    return data


def _decode_deflate(data: bytes, description: PixelDescription) -> bytes:
    """Inflate to the expected size and no further (DICOM PS3.5 A.4.13: raw deflate; a zlib wrapper is met too)."""
    expected = description.packed_bytes
    for window in (-zlib.MAX_WBITS, zlib.MAX_WBITS):
        inflater = zlib.decompressobj(window)
        try:
            return inflater.decompress(data, expected)
        except zlib.error:
            continue
    raise NoPixels(Reason.DECODE_FAILED, "the frame is not a deflate stream")


def _decode_rle(data: bytes, description: PixelDescription) -> bytes | bytearray:
    """Undo RLE (DICOM PS3.5 Annex G); the result is planar and little endian."""
    expected = description.packed_bytes
    # Two bytes of PackBits make at most 128: a header that needs more than that is a lie, and no memory is spent on it.
    if expected > 64 * len(data):
        raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "the frame holds fewer bytes than its description needs")
    sample = np.dtype(f"<u{max(1, description.bits_allocated // 8)}")
    decoded: bytes | bytearray
    try:
        decoded = imagecodecs.dicomrle_decode(data, sample, out=bytearray(expected))
    except Exception as error:  # a third-party decoder over hostile bytes may raise anything
        _LOG.debug("first RLE decoder raised %s", type(error).__name__)
        decoded = _decode_rle_leniently(data, description)
    return decoded


def _decode_rle_leniently(data: bytes, description: PixelDescription) -> bytes:
    """Undo RLE whose segments hold more than their share, which some writers pad them with."""
    width = max(1, description.bits_allocated // 8)
    share = description.packed_bytes // (description.samples * width)
    count, *offsets = struct.unpack_from("<16L", data.ljust(64, b"\0"))
    if count != description.samples * width:
        raise NoPixels(Reason.DECODE_FAILED, "the RLE header counts other segments than the frame needs")
    planes = np.zeros((description.samples, share, width), np.uint8)
    for number, start in enumerate(offsets[:count]):
        stop = offsets[number + 1] if number + 1 < count else len(data)
        try:
            segment = imagecodecs.packbits_decode(data[start:stop], out=bytearray(share + _RLE_EXCESS))
        except Exception as error:  # as above
            raise _decoder_failed(error) from None
        if len(segment) < share:
            raise NoPixels(Reason.PIXEL_DATA_TRUNCATED, "an RLE segment holds less than its share of the frame")
        # The most significant byte of a sample comes first.
        planes[number // width, :, width - 1 - number % width] = np.frombuffer(segment, np.uint8, share)
    return planes.tobytes()


def _read_header(codec: Codec, data: bytes) -> Codestream:
    try:
        if codec in (Codec.JPEG, Codec.JPEG_LS):
            return _jpeg_header(data)
        if codec is Codec.JPEG_XL:
            return _jpeg_xl_header(data)
        return _jpeg_2000_header(data)
    except (LookupError, struct.error):
        raise NoPixels(Reason.DECODE_FAILED, "the codestream has no readable header") from None


def _jpeg_segments(data: bytes) -> list[tuple[int, int, int]]:
    """Markers before the first scan of a JPEG or JPEG-LS codestream: (marker, start, stop) of each segment's content."""
    segments, position = [], 2
    for _ in range(_MANY_SEGMENTS):
        if position + 4 > len(data) or data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _JPEG_STANDALONE:
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        segments.append((marker, position + 4, position + 2 + length))
        if marker in (0xDA, 0xD9) or length < 2:
            break
        position += 2 + length
    return segments


def _jpeg_frame_marker(data: bytes) -> int | None:
    return next((marker for marker, _, _ in _jpeg_segments(data) if marker in _JPEG_FRAMES), None)


def _jpeg_header(data: bytes) -> Codestream:
    """Read the frame header of a JPEG (ITU-T T.81 B.2.2) or JPEG-LS (T.87 C.2.2) codestream."""
    jfif, adobe, frame, scanned = False, None, None, 0
    for marker, start, stop in _jpeg_segments(data):
        if marker == 0xE0 and data[start : start + 5] == b"JFIF\x00":
            jfif = True
        elif marker == 0xEE and data[start : start + 5] == b"Adobe" and stop - start >= 12:
            adobe = data[start + 11]
        elif marker in _JPEG_FRAMES and frame is None:
            frame = marker, start
        elif marker == 0xDA and start < len(data):
            scanned = data[start]
    if frame is None:
        raise IndexError
    marker, start = frame
    precision, rows, columns, samples = struct.unpack_from(">BHHB", data, start)
    components = [struct.unpack_from(">BB", data, start + 6 + 3 * number) for number in range(samples)]
    colour = None
    if samples == 3 and marker != 0xF7:
        if adobe is not None:
            colour = "YBR_FULL" if adobe else "RGB"
        elif bytes(identifier for identifier, _ in components) == b"RGB":
            colour = "RGB"
        elif jfif or len({sampling for _, sampling in components}) > 1:
            colour = "YBR_FULL"  # JFIF is always YCbCr, and nobody subsamples RGB
    lossless = marker in (0xC3, 0xC7, 0xCB, 0xCF)
    levels = 3 if marker in (0xC0, 0xC1, 0xC2) else 0
    progressive = marker in (0xC2, 0xC6, 0xCA, 0xCE) or (levels > 0 and scanned < samples)
    if progressive and data.count(b"\xff\xda") > _MANY_SCANS:  # each of a few bytes costs a pass over the whole picture
        raise NoPixels(Reason.DECODE_FAILED, f"the codestream has more than {_MANY_SCANS} scans")
    return Codestream(rows, columns, samples, precision, lossless=lossless, progressive=progressive, colour=colour, levels=levels)


def _jpeg_2000_header(data: bytes) -> Codestream:
    """Read the SIZ and COD marker segments (ITU-T T.800 A.5.1, A.6.1), inside a JP2 file too."""
    start = data.find(_J2K_START, 0, _HEADER_BYTES)
    if start < 0:
        raise IndexError
    right, bottom, left, top, wide, high, tile_left, tile_top = struct.unpack_from(">8L", data, start + 8)
    samples, depth = struct.unpack_from(">HB", data, start + 40)
    capable = bool(data[start + 6] & 0x40)  # Part 15, told by the capabilities in Rsiz
    components = data[start + 42 : start + 42 + 3 * samples]
    # An image area with an offset, subsampled components or components of several kinds: not worth a way of their own.
    plain = not (left or top) and components == bytes((depth, 1, 1)) * samples
    segments = _jpeg_2000_segments(data, start)
    levels = _jpeg_2000_levels(data, segments) if plain else 0
    wide, high = max(1, min(wide, right)), max(1, min(high, bottom))
    tiles = -(-(right - min(tile_left, right)) // wide) * -(-(bottom - min(tile_top, bottom)) // high)
    return Codestream(
        bottom - top,
        right - left,
        samples,
        (depth & 0x7F) + 1,
        signed=bool(depth & 0x80),
        colour="RGB" if samples == 3 and components[1:2] != components[4:5] else None,
        levels=levels,
        high_throughput=capable,
        one_tile=not (tile_left or tile_top) and wide >= right and high >= bottom,
        start=start,
        structure=_BLOCK_BYTES * samples * _jpeg_2000_blocks(data, segments, wide, high) + _TILE_BYTES * tiles,
    )


def _jpeg_2000_segments(data: bytes, start: int) -> list[tuple[int, int, int]]:
    """Marker segments before the first data of a JPEG 2000 codestream: (marker, start, stop) of each segment's content."""
    segments: list[tuple[int, int, int]] = []
    position = start + 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] not in (0x93, 0xD9):
        if len(segments) >= _MANY_SEGMENTS:
            raise IndexError
        length = max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        segments.append((data[position + 1], position + 4, position + 2 + length))
        position += 2 + length
    return segments


def _jpeg_2000_levels(data: bytes, segments: list[tuple[int, int, int]]) -> int:
    """Read the number of decomposition levels in the COD marker segment; 0 where components have their own (COC) or there is none to be found.

    0 too where the QCD marker segment has fewer steps than that needs: OpenJPH reads beyond its end.
    """
    levels, steps = 0, 0.0
    for marker, start, stop in segments:
        if marker == 0x90:
            break
        if marker == 0x53:
            return 0
        if marker == 0x52 and start + 5 < len(data):
            levels = min(data[start + 5], 32)
        elif marker == 0x5C and start < len(data):
            style, size = data[start] & 0x1F, stop - start - 1  # one byte a step, one step for all, two bytes a step
            steps = size if style == 0 else math.inf if style == 1 and size >= 2 else size // 2
    return levels if steps > 3 * levels else 0


def _jpeg_2000_blocks(data: bytes, segments: list[tuple[int, int, int]], wide: int, high: int) -> int:
    """Count the code-blocks of a component of a tile, by that COD or COC marker segment that makes the most (ITU-T T.800 A.6.1, A.6.2, B.7)."""
    most = 0
    for marker, start, _ in segments:
        if marker not in (0x52, 0x53) or start + 10 > len(data):
            continue
        style, at = (data[start], start + 5) if marker == 0x52 else (data[start + 1], start + 2)
        levels, across, down = min(data[at], 32), (data[at + 1] & 15) + 2, (data[at + 2] & 15) + 2
        precincts = data[at + 5 : at + 6 + levels] if style & 1 else b""
        blocks = 0
        for resolution in range(levels + 1):
            size = precincts[resolution] if resolution < len(precincts) else 0xFF
            halved = int(resolution > 0)  # three bands, each of half the resolution's size
            step = levels - resolution + halved
            columns, rows = min(across, max(0, (size & 15) - halved)), min(down, max(0, (size >> 4) - halved))
            blocks += (3 if halved else 1) * -(-wide >> step + columns) * -(-high >> step + rows)
        most = max(most, blocks)
    return most


def _jpeg_xl_header(data: bytes) -> Codestream:
    """Read the SizeHeader (ISO/IEC 18181-1). Colours and depth follow in a longer header: the most is assumed."""
    start = 0
    if data.startswith(_JXL_BOX):
        start = data.find(b"\xff\x0a", data.find(b"jxl", 12), _HEADER_BYTES)
        # `jxlc` holds the codestream at once, the first `jxlp` after a counter; both names occur after the signature box.
    if data[start : start + 2] != b"\xff\x0a" or len(data) < start + 4:
        raise IndexError
    bits, used = int.from_bytes(data[start + 2 : start + 14], "little"), 0

    def take(count: int) -> int:
        nonlocal used
        value = bits >> used & ((1 << count) - 1)
        used += count
        return value

    small = take(1)

    def dimension() -> int:
        return (take(5) + 1) * 8 if small else take((9, 13, 18, 30)[take(2)]) + 1

    rows = dimension()
    ratio = take(3)
    wide, high = ((0, 0), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio]
    columns = rows * wide // high if ratio else dimension()
    return Codestream(rows, columns, 3, 16)


def _working_bytes(codec: Codec, found: Codestream) -> int:
    """Memory that a decoder takes beside its input and output, from reading how the libraries work."""
    samples = found.rows * found.columns * found.samples
    if codec is Codec.JPEG_2000:
        return 4 * samples + found.structure  # OpenJPEG computes in 32-bit integers for the whole image
    if codec is Codec.JPEG_XL:
        return 2 * samples
    if found.progressive:
        return 2 * samples
    return 0


def _check_memory(decoded: int, working: int, max_bytes: int) -> None:
    if decoded > max_bytes or working > max_bytes + max_bytes // 2:
        raise NoPixels(Reason.FRAME_TOO_LARGE, f"decoding the frame would take more than {max_bytes} bytes")


def _decoder_failed(error: BaseException) -> NoPixels:
    return NoPixels(Reason.DECODE_FAILED, f"decoder raised {type(error).__name__}")


def _try_decoders(codec: Codec, data: bytes, found: Codestream, description: PixelDescription) -> Array:
    first_error: Exception | None = None
    for decoder in _CODESTREAM_CODECS[codec]:
        try:
            array = decoder(data, found, description)
        except Exception as error:  # third-party decoders over hostile bytes may raise anything
            _LOG.debug("%s could not decode a %s frame: %s", decoder.__name__, codec.value, type(error).__name__)
            first_error = first_error or error
            continue
        if array.shape[:2] == (found.rows, found.columns):
            return array
    if first_error is None:
        raise NoPixels(Reason.DECODE_FAILED, "the decoded frame is not of the size that its codestream says")
    raise _decoder_failed(first_error) from None


def _jpeg(data: bytes, found: Codestream, description: PixelDescription) -> Array:
    if found.samples == 1:
        array: Array = imagecodecs.jpeg8_decode(data)
    elif found.lossless or _jpeg_colour(found, description) == "RGB":
        array = imagecodecs.jpeg8_decode(data, colorspace="rgb", outcolorspace="rgb")
    else:
        array = imagecodecs.jpeg8_decode(data, colorspace="ycbcr", outcolorspace="rgb")
    return array


def _jpeg_colour(found: Codestream, description: PixelDescription) -> str:
    return found.colour or ("RGB" if description.photometric == "RGB" else "YBR_FULL")


def _jpeg_lossless(data: bytes, found: Codestream, description: PixelDescription) -> Array:
    if not found.lossless:
        raise NoPixels(Reason.DECODE_FAILED, "not a lossless JPEG")
    array: Array = imagecodecs.jpegsof3_decode(data)
    return array


def _ended(data: bytes) -> bytes:
    """Add the end mark of JPEG-LS and JPEG 2000 where a writer left it out.

    Without it decoders refuse a whole codestream, and CharLS counts beyond the end of one cut short for seconds. In JPEG 2000 it comes right behind
    the last tile-part, before what a fragment is padded with.
    """
    if _END in data[-64:]:
        return data
    stop = data.find(_TILE_PART)
    while stop >= 0 and data.startswith(_TILE_PART, stop):
        size = int.from_bytes(data[stop + 6 : stop + 10], "big")
        stop = stop + size if size else len(data)
    return data[:stop] + _END if stop >= 0 else data + _END


def _jpeg_ls(data: bytes, found: Codestream, description: PixelDescription) -> Array:
    array: Array = imagecodecs.jpegls_decode(_ended(data))
    return array


def _jpeg_2000(data: bytes, found: Codestream, description: PixelDescription) -> Array:
    # Not `htj2k_decode` for Part 15: twice as fast, but it lets lossy overshoot wrap from white to black and hides errors of damaged codestreams.
    array: Array = imagecodecs.jpeg2k_decode(_ended(data), numthreads=1)
    return array


def _jpeg_2000_openjpeg(data: bytes, found: Codestream, description: PixelDescription) -> Array:
    """Second opinion: another build of OpenJPEG, which also reads subsampled components."""
    from openjpeg.utils import decode as openjpeg_decode

    array: Array = openjpeg_decode(_ended(data))
    return array


def _jpeg_xl(data: bytes, found: Codestream, description: PixelDescription) -> Array:
    array: Array = imagecodecs.jpegxl_decode(data, index=0, keeporientation=True, numthreads=1)
    return array


_BYTE_CODECS: dict[Codec, Callable[[bytes, PixelDescription], bytes | bytearray]] = {
    Codec.RLE: _decode_rle,
    Codec.DEFLATE: _decode_deflate,
    Codec.UNCOMPRESSED: _decode_uncompressed,
}
"""Codecs that give back native bytes and know nothing of dimensions."""

_CODESTREAM_CODECS: dict[Codec, tuple[Callable[[bytes, Codestream, PixelDescription], Array], ...]] = {
    Codec.JPEG: (_jpeg, _jpeg_lossless),
    Codec.JPEG_LS: (_jpeg_ls,),
    Codec.JPEG_2000: (_jpeg_2000, _jpeg_2000_openjpeg),
    Codec.JPEG_XL: (_jpeg_xl,),
}
"""Decoders of each self-describing codestream, in the order in which they are tried. All are under permissive licences."""


# Smaller pictures with less work


def _decode_small(
    codec: Codec, data: bytes, found: Codestream, description: PixelDescription, reduction: int, tolerance: float, max_bytes: int
) -> tuple[Array, int] | None:
    """Decode at a half, a quarter ... of the size; None where the full way has to be gone, which also finds the reason for damage."""
    levels = min(found.levels, reduction.bit_length() - 1)
    if not levels or codec not in _SMALL_DECODERS or found.precision > 16:
        return None
    if found.signed is not None and found.signed != description.signed:
        return None  # neighbours around zero were coded as the two ends of the range: their averages are neither
    scale = 1 << levels
    decoded_bytes = -(-found.rows // scale) * -(-found.columns // scale) * found.samples * (2 if found.precision > 8 else 1)
    working = 3 * decoded_bytes if codec is Codec.JPEG_2000 or not found.progressive else 2 * found.rows * found.columns * found.samples
    _check_memory(decoded_bytes, decoded_bytes + len(data) + working + found.structure, max_bytes)
    for decoder in _SMALL_DECODERS[codec]:
        try:
            array = decoder(data, found, description, levels, tolerance)
        except Exception as error:  # third-party decoders over hostile bytes may raise anything
            _LOG.debug("%s could not decode a %s frame: %s", decoder.__name__, codec.value, type(error).__name__)
            continue
        if array is not None and array.shape[:2] == (-(-found.rows // scale), -(-found.columns // scale)):
            if codec is not Codec.JPEG_2000:
                return array, scale
            within = _within_range(array, found, description)
            return None if within is None else (_centre(within, levels), scale)
    return None


def _within_range(array: Array, found: Codestream, description: PixelDescription) -> Array | None:
    """Clip what a wavelet throws a little beyond the stored bits; None where there is more in them, such as an overlay in the high bits."""
    bits = min(found.precision, description.bits_stored)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if found.signed else (0, (1 << bits) - 1)
    least, most = int(array.min()), int(array.max())
    if low <= least and most <= high:
        return array.view(f"{'i' if found.signed else 'u'}{array.dtype.itemsize}")
    if max(low - least, most - high) > 1 << (bits - 1):
        return None
    return np.clip(array, low, high).view(f"{'i' if found.signed else 'u'}{array.dtype.itemsize}")


def _centre(array: Array, levels: int) -> Array:
    """Move the samples of a wavelet's low band to the centres of the blocks that they stand for.

    A sample lies where the first sample of its block lay, in both directions: the centre is nearly half a block further on, between two samples.
    """
    half = 1 << levels
    total = array.astype(np.int32)
    for axis in (0, 1):
        here, there = (total[:-1], total[1:]) if axis == 0 else (total[:, :-1], total[:, 1:])
        moved = there - here
        moved *= half - 1
        moved += half
        moved >>= levels + 1
        here += moved
    return total.astype(array.dtype)


def _small_high_throughput(data: bytes, found: Codestream, description: PixelDescription, levels: int, tolerance: float) -> Array | None:
    """OpenJPH, ten times as fast as OpenJPEG, where its results can be trusted.

    It lets values wrap around that the wavelet throws beyond the range, and it hides damage: the bits above those stored have to be free to tell the
    former, and the codestream has to be there to its end. Damaged tile grids keep it busy for ever.
    """
    if not found.high_throughput or not found.one_tile or found.samples != 1 or found.precision <= 8 or _END not in data[-4:]:
        return None
    with _nothing_swallowed():
        array: Array = imagecodecs.htj2k_decode(data[found.start :] if found.start else data, skipres=(levels, levels))
    if array.dtype.itemsize != 2:
        return None
    if found.signed:
        return array if int(array.min()) > -_SAFE_INT16 and int(array.max()) < _SAFE_INT16 else None
    if min(found.precision, description.bits_stored) <= 14:
        return array.view(np.int16)
    return array if int(array.max()) < 1 << 15 else None


_HOOK = threading.Lock()


@contextmanager
def _nothing_swallowed() -> Iterator[None]:
    """Raise what a decoder's own code can only report: it goes on after that, with whatever was in the memory of its result."""
    reported: list[str] = []

    def hook(report: "sys.UnraisableHookArgs") -> None:
        if "imagecodecs" in str(report.object):
            reported.append(report.exc_type.__name__)
        else:
            before(report)

    with _HOOK:
        before = sys.unraisablehook
        sys.unraisablehook = hook
        try:
            yield
        finally:
            sys.unraisablehook = before
    if reported:
        raise NoPixels(Reason.DECODE_FAILED, f"decoder raised {reported[0]}")


_SAFE_INT16 = 24_000
"""Values within this of zero did not wrap around: the wavelet overshoots by a fraction of the range."""


def _small_jpeg_2000(data: bytes, found: Codestream, description: PixelDescription, levels: int, tolerance: float) -> Array | None:
    """OpenJPEG by way of Pillow, without the bit planes that nobody would see where the codestream allows that."""
    data = _ended(data[found.start :] if found.start else data)
    if tolerance > 1 and found.samples == 1 and (fewer := without_low_planes(data, levels, tolerance, finest=_FINEST)) is not None:
        array = _small_openjpeg(fewer, found, levels)
        if array is not None and _spread(array) >= _SPREAD * tolerance:
            return array
    return _small_openjpeg(data, found, levels)


_FINEST = 1.5
"""Half as much again for the finest bands is a quarter of the time, and half a grey level."""
_SPREAD = 32
"""A picture whose values cover less than so many times the tolerance is not the one that the tolerance was meant for."""


def _spread(array: Array) -> int:
    some = np.sort(array[::4, ::4], axis=None)
    return int(some[-1 - len(some) // 50]) - int(some[len(some) // 50])


def _small_openjpeg(data: bytes, found: Codestream, levels: int) -> Array | None:
    """Pillow's is the one binding of OpenJPEG that can leave out resolutions."""
    scale = 1 << levels
    if found.samples not in (1, 3) or (found.samples == 3 and (found.precision != 8 or found.signed)):
        return None
    with Image.open(io.BytesIO(data), formats=("JPEG2000",)) as image:
        # Pillow rounds sizes to the nearest, where JPEG 2000 rounds them up.
        image._size = -(-found.columns // scale) * scale, -(-found.rows // scale) * scale
        image.reduce = levels  # type: ignore[method-assign, assignment]
        array: Array = np.asarray(image)
    if found.samples == 3:
        return array
    # Pillow fills 8 or 16 bits from above and moves signed values up by half of their range.
    width = 8 * array.dtype.itemsize
    array = array >> array.dtype.type(width - found.precision) if width > found.precision else array
    if found.signed:
        half = array.dtype.type(1 << (found.precision - 1))
        array = (array - half).view(f"i{array.dtype.itemsize}")
    return array


def _small_jpeg(data: bytes, found: Codestream, description: PixelDescription, levels: int, tolerance: float) -> Array | None:
    """Scaled inverse cosine transforms of libjpeg, by way of Pillow."""
    scale = 1 << levels
    if found.precision != 8 or found.samples not in (1, 3) or found.rows * found.columns * found.samples < _SCALED_JPEG_SAMPLES:
        return None
    if found.samples == 3 and found.colour is None and description.photometric == "RGB":
        return None  # libjpeg would take it for YCbCr
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        image.draft(None, (max(1, found.columns // scale), max(1, found.rows // scale)))
        array: Array = np.asarray(image)
    return array


_SCALED_JPEG_SAMPLES = 3 << 18
"""Below this many samples the plain decoder is as fast."""

_SMALL_DECODERS: dict[Codec, tuple[Callable[[bytes, Codestream, PixelDescription, int, float], Array | None], ...]] = {
    Codec.JPEG_2000: (_small_high_throughput, _small_jpeg_2000),
    Codec.JPEG: (_small_jpeg,),
}


def _correct(array: Array, codec: Codec, found: Codestream, description: PixelDescription) -> tuple[Array, PixelDescription]:
    """Make sign and colour of a decoded array what the data set means by them."""
    if array.ndim == 3 and array.shape[2] < 3:  # the second one would be opacity
        array = array[:, :, 0]
    samples = array.shape[2] if array.ndim == 3 else 1
    width = 8 * array.dtype.itemsize
    precision = width if codec is Codec.JPEG_XL else found.precision
    # Fewer bits stored than coded: the rest may be an old overlay. More bits coded than allocated: the data set is simply wrong.
    bits = precision if precision > description.bits_allocated else min(precision, description.bits_stored)
    # JPEG and JPEG-LS cannot say that samples are signed, and some JPEG 2000 codestreams say the wrong thing: the data set decides.
    if array.dtype.kind in "ui" and (array.dtype.kind == "i") != description.signed:
        array = array.view(f"i{array.dtype.itemsize}" if description.signed else f"u{array.dtype.itemsize}")
        if description.signed:
            stored = found.precision if codec is Codec.JPEG_2000 else description.bits_stored
            array = sign_extend(array, stored)
        elif found.precision < width:
            array = array & array.dtype.type((1 << found.precision) - 1)
    photometric = description.photometric
    if samples >= 3:
        photometric = _colour_after(codec, found, description)
    elif photometric not in ("MONOCHROME1", "PALETTE COLOR"):
        photometric = "MONOCHROME2"
    after = replace(
        description,
        samples=samples,
        bits_allocated=width,
        bits_stored=bits,
        high_bit=bits - 1,
        planar=False,
        photometric=photometric,
        kind=array.dtype.kind,
    )
    return array, after


def _colour_after(codec: Codec, found: Codestream, description: PixelDescription) -> str:
    """Photometric interpretation of what the decoder returned."""
    if codec is Codec.JPEG_XL or (codec is Codec.JPEG and not found.lossless):
        return "RGB"
    if codec is Codec.JPEG_2000 and found.colour == "RGB":
        return "RGB"
    # Lossless codecs return what was put in. JPEG 2000 undoes its own transforms, which is what YBR_RCT and YBR_ICT stand for.
    return "YBR_FULL" if description.photometric.startswith(("YBR_FULL", "YBR_PARTIAL")) else "RGB"


def sign_extend(array: Array, bits: int) -> Array:
    """Read the low `bits` of each signed integer as two's complement; in place where the array allows it."""
    unused = 8 * array.dtype.itemsize - bits
    if unused <= 0:
        return array
    if not array.flags.writeable:
        array = array.copy()
    array <<= array.dtype.type(unused)
    array >>= array.dtype.type(unused)
    return array
