"""From a decoded frame to what a person should see: 8-bit grey or RGB, reduced to a size.

Holds modality and VOI transformations, palettes, colour spaces, and the shape on screen. Must not read files, decode or encode.

Large frames are reduced in bands of rows *before* they are windowed: averaging first costs a grey level or two and is many times faster, and
nothing as large as the frame is ever allocated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixels_assets.dicom.codecs import Array, NoPixels, PixelDescription, Reason
from pixels_assets.dicom.image import ImageHeader, has, is_big_endian, item, number, numbers, text, value
from pixels_assets.dicom.pixels import Frame

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]
Block = tuple[int, int]

_BAND_BYTES = 4 << 20
_SAMPLE_SIDE = 96
"""Statistics rest on a grid of at most about this many rows and columns of stored values."""

_SEGMENTATIONS = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})


@dataclass(frozen=True, slots=True)
class Window:
    """Values from `low` (black) to `high` (white), straight or as a sigmoid; see `window_of`."""

    low: float
    high: float
    sigmoid: bool = False

    def __call__(self, values: Floats) -> Grey:
        """Grey levels of rescaled values."""
        shown = values - np.float32(self.low)
        if self.sigmoid:
            shown = 1 / (1 + np.exp(-4 * np.clip(shown / np.float32(self.high - self.low) - np.float32(0.5), -20, 20)))
            return _to_bytes(shown * np.float32(255))
        shown *= np.float32(255 / (self.high - self.low))
        return _to_bytes(shown)

    def of_stored(self, values: Floats, slope: float, intercept: float) -> Grey:
        """Grey levels of values that are yet to be rescaled, and that are gone then: fewer passes, where 24 bits suffice."""
        if self.sigmoid:
            return self(_rescaled(values, slope, intercept))
        scale = 255 / (self.high - self.low)
        values *= np.float32(slope * scale)
        values += np.float32((intercept - self.low) * scale + 0.5)
        np.clip(values, 0, 255, out=values)
        return values.astype(np.uint8)


def window_of(centre: float, width: float, function: str = "LINEAR") -> Window | None:
    """Make a window of rescaled values (DICOM PS3.3 C.11.2.1.2).

    Parameters
    ----------
    centre, width : float
        (0028,1050) *Window Center* and (0028,1051) *Window Width*.
    function : str
        (0028,1056) *VOI LUT Function*: ``LINEAR``, ``LINEAR_EXACT`` or ``SIGMOID``; in the spelling of PS3.18 8.3.5.1.4 too, ``linear-exact``.

    Returns
    -------
    Window or None
        None when they define nothing.
    """
    function = function.upper().replace("-", "_")
    if not abs(centre) <= 1e15 or not 0 < width < 1e15:
        return None
    if function in ("LINEAR_EXACT", "SIGMOID"):
        return Window(centre - width / 2, centre + width / 2, sigmoid=function == "SIGMOID")
    if width < 1:
        return None
    half = (width - 1) / 2
    # A width of 1 is a threshold; the least width that floats can tell apart stands for it.
    return Window(centre - 0.5 - half, centre - 0.5 + max(half, half + 1e-3))


def render(frame: Frame, dataset: ImageHeader, *, size: int | None, window: Window | None = None) -> Grey:
    """Render a frame for the screen.

    Parameters
    ----------
    frame : Frame
        In full or reduced by its decoder.
    dataset : ImageHeader
        Header of the object.
    size : int
        Longest side of the result, pixels. Smaller frames stay as they are, but non-square pixels are made square. None: as large as the frame,
        or as what its pixels stretch to up to `_MOST_STRETCHED`.
    window : Window, optional
        Shows grey frames instead of what the header says or the values suggest; see `window_of`.

    Returns
    -------
    numpy.ndarray, shape (rows, columns[, 3]), uint8

    Raises
    ------
    NoPixels
        The photometric interpretation cannot be shown.

    References
    ----------
    DICOM PS3.3 C.7.6.3.1.2, C.7.9, C.11.1, C.11.2; PS3.4 N.2.
    """
    rows, columns = frame.array.shape[0] * frame.scale, frame.array.shape[1] * frame.scale
    if frame.scale > 1:  # the last row and column stand for less
        rows, columns = min(rows, frame.description.rows), min(columns, frame.description.columns)
    aspect = pixel_aspect(dataset, frame.index)
    height, width = shape_on_screen(rows, columns, aspect, size or _largest(rows, columns, aspect))
    block = max(1, rows // (height * frame.scale)), max(1, columns // (width * frame.scale))
    samples = frame.array.shape[2] if frame.array.ndim == 3 else 1
    photometric = frame.description.photometric
    if samples > 1 and frame.array.dtype.kind != "f":
        if photometric in ("CMYK", "ARGB", "HSV"):
            raise NoPixels(Reason.UNSUPPORTED_PHOTOMETRIC, "the photometric interpretation is a retired one that is not shown")
        shown = _render_colour(frame, block)
    elif samples == 1 and photometric == "PALETTE COLOR" and (palette := read_palette(dataset)) is not None:
        shown = _to_bytes(_shrink(frame.array, block, palette.colours))
    else:
        shown = _render_grey(frame, dataset, block, window)
    whole = columns / (block[1] * frame.scale), rows / (block[0] * frame.scale)
    if whole != (width, height):
        shown = np.asarray(Image.fromarray(shown).resize((width, height), Image.Resampling.HAMMING, box=(0, 0, *whole)))
    return shown


def reduction_for(dataset: ImageHeader, size: int) -> int:
    """How many times smaller both ways a frame may be decoded so that `render` still has a pixel for each of its result's.

    1 for palettes: their indices are not to be averaged.
    """
    rows, columns = number(dataset, "Rows") or 0, number(dataset, "Columns") or 0
    if rows < 1 or columns < 1 or text(dataset, "PhotometricInterpretation").upper() == "PALETTE COLOR":
        return 1
    height, width = shape_on_screen(int(rows), int(columns), pixel_aspect(dataset), size)
    return max(1, min(int(rows) // height, int(columns) // width))


_SHADES = 50
"""A tolerance of the window's width over this is five grey levels, and makes a picture that is off by less than two on average."""


def tolerance_for(dataset: ImageHeader) -> float:
    """Difference of stored values that the header's window makes hardly visible; 0 where it has none."""
    width, slope = number(dataset, "WindowWidth"), number(dataset, "RescaleSlope") or 1.0
    if width is None or not 0 < width < 1e15 or has(dataset, "ModalityLUTSequence") or has(dataset, "PixelPaddingRangeLimit"):
        return 0.0
    return min(width / abs(slope) / _SHADES, 1e4)


Region = tuple[float, float, float, float]
"""Left, top, width and height, pixels of the frame; a negative width or height turns the picture around in that direction."""


def render_viewport(
    frame: Frame, dataset: ImageHeader, *, viewport: tuple[int, int] | None = None, region: Region | None = None, window: Window | None = None
) -> Grey:
    """Render a frame, or a region of it, as large as fits into a viewport with its aspect ratio kept (DICOM PS3.18 8.3.5.1.3).

    Parameters
    ----------
    frame : Frame
        In full.
    dataset : ImageHeader
        Header of the object.
    viewport : tuple of int, optional
        Width and height, pixels; smaller pictures are enlarged. By default the picture has the frame's own size.
    region : tuple of float, optional
        What to show; parts beyond the frame are left away.
    window : Window, optional
        See `render`.

    Returns
    -------
    numpy.ndarray, shape (rows, columns[, 3]), uint8

    Raises
    ------
    NoPixels
        The photometric interpretation cannot be shown.
    ValueError
        The region shows nothing of the frame, or the viewport is empty.
    """
    rows, columns = frame.array.shape[:2]
    if viewport is not None and min(viewport) < 1:
        msg = f"the viewport {viewport} is empty: give a width and a height of at least 1"
        raise ValueError(msg)
    if region is None and viewport is not None:
        height, width = shape_on_screen(rows, columns, pixel_aspect(dataset, frame.index), max(rows, columns) * 50)
        scale = min(viewport[0] / width, viewport[1] / height)
        if scale < 1:
            return _fit(render(frame, dataset, size=max(1, round(max(height, width) * scale)), window=window), viewport)
    shown = render(frame, dataset, size=None, window=window)
    if region is not None:
        shown = _cut(shown, region, shown.shape[1] / columns, shown.shape[0] / rows)
    return shown if viewport is None else _fit(shown, viewport)


_MOST_STRETCHED = 64 << 20
"""Pixels up to which a frame is enlarged to make its pixels square."""


def _largest(rows: int, columns: int, aspect: float) -> int:
    """Longest side of a frame whose pixels were made square by stretching them, within `_MOST_STRETCHED`."""
    height, width = (rows * aspect, float(columns)) if aspect >= 1 else (float(rows), columns / aspect)
    excess = height * width / max(rows * columns, _MOST_STRETCHED)
    return math.ceil(max(height, width) / math.sqrt(max(1.0, excess)))


def _cut(shown: Grey, region: Region, across: float, down: float) -> Grey:
    left, top, width, height = region
    columns = slice(max(0, round(left * across)), max(0, round((left + abs(width)) * across)))
    rows = slice(max(0, round(top * down)), max(0, round((top + abs(height)) * down)))
    part = shown[rows, columns]
    if not part.size:
        msg = f"the region {region} shows nothing of the frame"
        raise ValueError(msg)
    return part[:: 1 if height > 0 else -1, :: 1 if width > 0 else -1]


def _fit(shown: Grey, viewport: tuple[int, int]) -> Grey:
    height, width = shown.shape[:2]
    scale = min(viewport[0] / width, viewport[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if size == (width, height):
        return shown
    method = Image.Resampling.BILINEAR if scale > 1 else Image.Resampling.HAMMING
    return np.asarray(Image.fromarray(np.ascontiguousarray(shown)).resize(size, method))


def shape_on_screen(rows: int, columns: int, aspect: float, size: int) -> tuple[int, int]:
    """Height and width that show a frame with square pixels and neither side above `size`.

    Parameters
    ----------
    rows, columns : int
    aspect : float
        Height of a pixel over its width.
    size : int
    """
    height, width = (rows * aspect, float(columns)) if aspect >= 1 else (float(rows), columns / aspect)
    scale = min(1.0, size / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def pixel_aspect(dataset: ImageHeader, index: int = 0) -> float:
    """Height of a pixel over its width, 1.0 where nothing sensible is said.

    (0028,0034) *Pixel Aspect Ratio*, (0028,0030) *Pixel Spacing* (in functional groups too), (0018,1164) *Imager Pixel Spacing*, (0018,2010) *Nominal
    Scanned Pixel Spacing*: the vertical value comes first in each.
    """
    for keyword in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        holder = functional_group(dataset, "PixelMeasuresSequence", index) if keyword == "PixelSpacing" else dataset
        pair = numbers(holder, keyword)
        if len(pair) == 2 and min(pair) > 0:
            aspect = pair[0] / pair[1]
            if keyword == "PixelAspectRatio" and aspect == 1:  # some write it always; spacings know better
                continue
            return aspect if 0.02 <= aspect <= 50 and abs(aspect - 1) > 0.01 else 1.0
    return 1.0


def functional_group(dataset: ImageHeader, keyword: str, index: int) -> ImageHeader:
    """Item of a functional group of one frame (DICOM PS3.3 C.7.6.16); the data set itself where there is none."""
    for groups, position in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        group = item(dataset, groups, position) if has(dataset, groups) else None
        found = None if group is None else item(group, keyword, 0)
        if found is not None:
            return found
    return dataset


# Reduction


def _shrink(array: Array, block: Block, convert: Callable[[Array], Array] | None = None) -> Floats:
    """Average blocks of (rows, columns) pixels; the last ones average what is left.

    `convert` is applied to bands of rows before averaging.
    """
    if block == (1, 1) and convert is None:
        return array.astype(np.float32)
    rows = -(-array.shape[0] // block[0])
    band = max(1, min(rows, _BAND_BYTES // (array[0].size * 12 * block[0])))
    parts = []
    for start in range(0, rows, band):
        part = array[start * block[0] : (start + band) * block[0]]
        parts.append(_average(part if convert is None else convert(part), block))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _average(array: Array, block: Block) -> Floats:
    if array.dtype.kind in "ui" and array.dtype.itemsize <= 2 and array.shape[0] % block[0] == array.shape[1] % block[1] == 0:
        return _average_integers(array, block)
    return _average_columns(_average_rows(array, block[0]), block[1])


def _average_integers(array: Array, block: Block) -> Floats:
    """Average whole blocks of small integers: sums in 16 bits where they fit, which is half of the memory traffic."""
    area = block[0] * block[1]
    most = int(array.max()) if array.dtype.kind == "u" else max(int(array.max()), -int(array.min()))
    if most * area < 1 << (16 - (array.dtype.kind == "i")):
        small = np.dtype(f"{array.dtype.kind}2")
    else:
        small = np.dtype(np.int32 if most * area < 1 << 31 else np.int64)
    total = array[:: block[0]].astype(small) if block[0] == 1 else np.add(array[:: block[0]], array[1 :: block[0]], dtype=small)
    for step in range(2, block[0]):
        np.add(total, array[step :: block[0]], out=total, casting="unsafe")
    across = block[1]
    while across % 2 == 0 and total.itemsize == 2 and total.ndim == 2 and total.flags.c_contiguous:
        total, across = _add_pairs(total), across // 2
    if across > 1:
        rows = total
        total = rows[:, ::across] + rows[:, 1::across]
        for step in range(2, across):
            total += rows[:, step::across]
    average: Floats = np.multiply(total, np.float32(1 / area), dtype=np.float32)
    return average


def _add_pairs(total: Array) -> Array:
    """Add neighbours in a row, numbers of 16 bits that stay such: as halves of words, which is faster than by strides."""
    words = total.view(np.uint32)
    sums = words >> np.uint32(16)
    sums += words
    return sums.astype(np.uint16).view(total.dtype)


def _average_rows(array: Array, count: int) -> Floats:
    total = array[::count].astype(np.float32)
    for step in range(1, count):
        part = array[step::count]
        total[: len(part)] += part
    left = len(array) % count
    if count > 1:
        total *= np.float32(1 / count)
    if left:
        total[-1] *= np.float32(count / left)
    return total


def _average_columns(array: Floats, count: int) -> Floats:
    if count == 1:
        return array
    total = array[:, ::count].copy()
    for step in range(1, count):
        part = array[:, step::count]
        total[:, : part.shape[1]] += part
    left = array.shape[1] % count
    total *= np.float32(1 / count)
    if left:
        total[:, -1] *= np.float32(count / left)
    return total


def _to_bytes(values: Floats) -> Grey:
    values = values + np.float32(0.5)
    np.clip(values, 0, 255, out=values)
    return values.astype(np.uint8)


# Colour


def _render_colour(frame: Frame, block: Block) -> Grey:
    array = frame.array[:, :, :3]
    bits = frame.description.bits_stored
    if array.dtype.kind == "i":  # colours have no sign, whatever the data set says
        array = array.view(f"u{array.dtype.itemsize}")
        array = array & array.dtype.type((1 << bits) - 1)
    values = _shrink(array, block)
    if bits != 8:
        values *= np.float32(255 / ((1 << bits) - 1))
    photometric = frame.description.photometric
    if photometric.startswith("YBR_PARTIAL"):
        values = (values - np.array([16, 128, 128], np.float32)) @ _YCBCR_PARTIAL
    elif photometric.startswith("YBR_FULL"):
        values = (values - np.array([0, 128, 128], np.float32)) @ _YCBCR_FULL
    return _to_bytes(values)


_YCBCR_FULL = np.array([[1, 1, 1], [0, -0.344136, 1.772], [1.402, -0.714136, 0]], np.float32)
_YCBCR_PARTIAL = np.array([[1.1644, 1.1644, 1.1644], [0, -0.3918, 2.0172], [1.5960, -0.8130, 0]], np.float32)


@dataclass(frozen=True, slots=True)
class Palette:
    """Colours of a PALETTE COLOR image.

    Parameters
    ----------
    first : int
        Stored value of the first entry; lower values show it, higher ones than the last show the last.
    table : numpy.ndarray, shape (entries, 3), uint8
    """

    first: int
    table: Grey

    def colours(self, indices: Array) -> Array:
        """Look up stored values of any integer type; shape (..., 3), uint8."""
        if self.first:
            indices = indices.astype(np.int64) - self.first
        return self.table.take(indices.astype(np.intp), axis=0, mode="clip")


def read_palette(dataset: ImageHeader) -> Palette | None:
    """Read the red, green and blue lookup tables, segmented or not (DICOM PS3.3 C.7.6.3.1.5, C.7.9.2); None when they are missing or unusable."""
    channels = []
    first = 0
    for colour in ("Red", "Green", "Blue"):
        descriptor = numbers(dataset, f"{colour}PaletteColorLookupTableDescriptor")
        if len(descriptor) != 3:
            return None
        entries, first, bits = int(descriptor[0]) or 65536, int(descriptor[1]), int(descriptor[2])
        raw = value(dataset, f"{colour}PaletteColorLookupTableData")
        if raw is not None:
            channel = _lut_entries(raw, entries, bits, dataset)
        else:
            words = _lut_entries(value(dataset, f"Segmented{colour}PaletteColorLookupTableData"), None, bits, dataset)
            channel = _expand_segments(words, entries, bits)
        if not channel.size:
            return None
        channels.append(channel)
    shortest = min(map(len, channels))
    table = np.stack([channel[:shortest] for channel in channels], axis=1)
    if table.max() > 255:  # entries of 16 bits that never pass 255 were meant as 8
        table >>= 8
    if first > 32767 and number(dataset, "PixelRepresentation") == 1:
        first -= 65536
    return Palette(first, table.astype(np.uint8))


def _lut_entries(raw: object, entries: int | None, bits: int, dataset: ImageHeader) -> NDArray[np.uint16]:
    """Entries of a lookup table, from bytes (OW) or numbers (US)."""
    order = ">" if is_big_endian(dataset) else "<"
    if isinstance(raw, int):
        raw = [raw]
    if raw is not None and not isinstance(raw, (bytes, bytearray)):
        try:
            listed = np.array(list(raw), np.int64) & 0xFFFF  # type: ignore[call-overload]
        except (TypeError, ValueError, OverflowError):
            return np.zeros(0, np.uint16)
        if bits <= 8 and entries is not None and len(listed) == (entries + 1) // 2 < entries:
            return listed.astype("<u2").view(np.uint8)[:entries].astype(np.uint16)
        return listed.astype(np.uint16)[:entries]
    data = bytes(raw or b"")
    if bits <= 8 and (entries is None or len(data) < 2 * entries):
        # Two entries of 8 bits share a word, which a big endian file swaps.
        words = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2").astype("<u2").view(np.uint8)
        return words[:entries].astype(np.uint16)
    return np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2").astype(np.uint16)[:entries]


def _expand_segments(words: NDArray[np.uint16], entries: int, bits: int) -> NDArray[np.uint16]:
    """Expand a segmented lookup table: discrete, linear and indirect segments (DICOM PS3.3 C.7.9.2), to `entries` and no further."""
    expanded: list[int] = []
    _Segments(words, entries, 1 if bits <= 8 else 2).expand(expanded, 0)
    return np.array(expanded[:entries], np.uint16)


class _Segments:
    """The segments of a lookup table, as numbers of `width` bytes each."""

    def __init__(self, words: NDArray[np.uint16], entries: int, width: int) -> None:
        self._words, self._entries, self._width = words, entries, width
        self._starts: set[int] = set()
        self._left = len(words) + entries  # as many segments do something; empty ones that are copied again and again do not

    def expand(self, expanded: list[int], position: int, count: int | None = None) -> None:
        """Append the entries of segments, of all of them or of `count` that an indirect one copies."""
        words, done = self._words, 0
        while self._left and position + 2 <= len(words) and len(expanded) < self._entries and (count is None or done < count):
            self._left -= 1
            self._starts.add(position)
            kind, length = int(words[position]), int(words[position + 1])
            position, done = position + 2, done + 1
            if kind == 0:
                expanded.extend(words[position : position + length].tolist())
                position += length
            elif kind == 1 and expanded and position < len(words):
                expanded.extend(np.rint(np.linspace(expanded[-1], int(words[position]), length + 1)[1:]).astype(int).tolist())
                position += 1
            elif kind == 2 and count is None and position + 4 // self._width <= len(words):
                self.expand(expanded, self._target(position), length)
                position += 4 // self._width
            else:
                return

    def _target(self, position: int) -> int:
        """Where the segments start that an indirect one copies: an offset in bytes, which some writers count in entries."""
        offset = sum(int(self._words[position + place]) << 8 * self._width * place for place in range(4 // self._width))
        at, odd = divmod(offset, self._width)
        return offset if odd or (at not in self._starts and offset in self._starts) else at


# Grey


def _render_grey(frame: Frame, dataset: ImageHeader, block: Block, window: Window | None) -> Grey:
    array = frame.array if frame.array.ndim == 2 else frame.array[:, :, 0]
    sample = array[:: -(-array.shape[0] // _SAMPLE_SIDE), :: -(-array.shape[1] // _SAMPLE_SIDE)]
    sample = _without_padding(sample, dataset)
    slope, intercept = _rescale(dataset, frame.index)
    if array.dtype.kind in "ui":
        convert = _modality_lut(dataset)
        slope, intercept = (slope, intercept) if convert is None else (1.0, 0.0)
    else:
        convert = partial(_finite, least=float(sample.min()) if sample.size else 0.0, most=1e30 / max(1.0, abs(slope)))
    signed = convert is None and _least(frame.description, slope, intercept) < 0
    values = _shrink(array, block, convert)
    if convert is not None:
        sample = convert(sample)
    known = sample.astype(np.float32) if sample.size else values.reshape(-1)
    is_narrow = convert is None and array.dtype.itemsize <= 2
    if (slope, intercept) != (1.0, 0.0):
        known = _rescaled(known, slope, intercept)
        if not is_narrow:
            values = _rescaled(values, slope, intercept)
            slope, intercept = 1.0, 0.0
    shade: Callable[[Floats], Grey]
    if window is not None:
        shade = window
    elif frame.description.bits_allocated == 1 or text(dataset, "SOPClassUID") in _SEGMENTATIONS:
        shade = partial(_segments, frame=frame, dataset=dataset)
    else:
        shade = _voi(dataset, frame.index, known, partial(_extremes, array, values, slope, intercept), signed=signed)
    if is_narrow and isinstance(shade, Window):
        shade = partial(shade.of_stored, slope=slope, intercept=intercept)
    else:
        values = _rescaled(values, slope, intercept)
    shown = shade(values)
    if frame.description.photometric == "MONOCHROME1" or text(dataset, "PresentationLUTShape") == "INVERSE":
        shown = np.invert(shown)
    return shown


def _rescaled(values: Floats, slope: float, intercept: float) -> Floats:
    if (slope, intercept) == (1.0, 0.0):
        return values
    scaled = values * np.float32(slope)
    scaled += np.float32(intercept)
    return scaled


def _segments(values: Floats, frame: Frame, dataset: ImageHeader) -> Grey:
    """Show a segmentation or bitmap on its whole possible range, so that an empty one is black."""
    highest = 1.0 if frame.description.bits_allocated == 1 else number(dataset, "MaximumFractionalValue") or max(1.0, float(values.max()))
    return _to_bytes(values * np.float32(255 / highest))


def _finite(array: Array, least: float, most: float) -> Array:
    """Replace what is not a finite number by the least value, and keep values within `most`, so that what becomes of them fits into float32."""
    finite = np.isfinite(array)
    if not finite.all():
        array = np.where(finite, array, least)
    return np.clip(array, -most, most).astype(np.float32)


def _without_padding(sample: Array, dataset: ImageHeader) -> Array:
    """Drop pixels outside the field of view: (0028,0120) *Pixel Padding Value*, or the range up to (0028,0121)."""
    padding = number(dataset, "PixelPaddingValue")
    if padding is None or sample.dtype.kind not in "ui":
        return sample.reshape(-1) if sample.dtype.kind in "ui" else sample[np.isfinite(sample)]
    limit = number(dataset, "PixelPaddingRangeLimit")
    bounds = [_as_stored(bound, sample.dtype) for bound in (padding, padding if limit is None else limit)]
    kept = sample[(sample < min(bounds)) | (sample > max(bounds))]
    return kept if kept.size else sample.reshape(-1)


def _as_stored(bound: float, dtype: np.dtype[np.generic]) -> int:
    """Read a padding value as the pixels' own type: writers mix up US and SS."""
    bits = 8 * dtype.itemsize
    whole = int(bound) & ((1 << bits) - 1)
    return whole - (1 << bits) if dtype.kind == "i" and whole >> (bits - 1) else whole


def _rescale(dataset: ImageHeader, index: int) -> tuple[float, float]:
    holder = functional_group(dataset, "PixelValueTransformationSequence", index)
    slope, intercept = number(holder, "RescaleSlope"), number(holder, "RescaleIntercept")
    if not slope or abs(slope) > 1e15 or abs(intercept or 0) > 1e15:
        return 1.0, 0.0
    return slope, intercept or 0.0


@dataclass(frozen=True, slots=True)
class _Lut:
    """A grey lookup table over integers from `first` on."""

    first: int
    table: Floats

    def __call__(self, array: Array) -> Floats:
        positions = np.clip(array, self.first, self.first + len(self.table) - 1).astype(np.int64) - self.first
        return self.table.take(positions, mode="clip")


def _least(description: PixelDescription, slope: float, intercept: float) -> float:
    """Least value that rescaling may give."""
    low = -(1 << (description.bits_stored - 1)) if description.signed else 0
    return intercept + min(slope * low, slope * (low + (1 << description.bits_stored) - 1))


def _modality_lut(dataset: ImageHeader) -> Callable[[Array], Array] | None:
    return _read_lut(dataset, "ModalityLUTSequence", signed=number(dataset, "PixelRepresentation") == 1)


def _read_lut(dataset: ImageHeader, keyword: str, *, signed: bool) -> _Lut | None:
    """First item of a lookup table sequence; None when it is absent or unusable.

    Whether what it maps may be negative decides on the sign of the first value mapped (DICOM PS3.3 C.11.1.1, C.11.2.1.1), whatever its VR says.
    """
    first_item = item(dataset, keyword, 0)
    if first_item is None:
        return None
    descriptor, raw = numbers(first_item, "LUTDescriptor"), value(first_item, "LUTData")
    if len(descriptor) != 3:
        return None
    table = _lut_entries(raw, int(descriptor[0]) or 65536, int(descriptor[2]), first_item)
    first = int(descriptor[1])
    if first > 32767 and signed:
        first -= 65536
    return _Lut(first, table.astype(np.float32)) if table.size else None


def _voi(dataset: ImageHeader, index: int, known: Floats, extremes: Callable[[], tuple[float, float]], *, signed: bool) -> Callable[[Floats], Grey]:
    """Choose how values become grey: the first window, the VOI LUT, or robust percentiles where neither shows anything.

    Parameters
    ----------
    dataset : ImageHeader
    index : int
    known : numpy.ndarray, float32
        Sample of the values that count, padding left out.
    extremes : callable
        Gives the least and the greatest value that will be shown.
    signed : bool
        Whether values may be negative.
    """
    holder = functional_group(dataset, "FrameVOILUTSequence", index)
    window = _read_window(holder)
    if window is not None and _plainly_shows(window, known):
        return window
    ranks = round(0.01 * (known.size - 1)), round(0.99 * (known.size - 1))
    ordered = np.partition(known, ranks)
    low, high = float(ordered[ranks[0]]), float(ordered[ranks[1]])
    if low == high:
        low, high = extremes()
    if low == high:  # nothing to show: what the header says of that value
        return window or _constant
    if window is not None and _is_useful(window, known, high - low):
        return window
    lut = _read_lut(holder, "VOILUTSequence", signed=signed)
    if lut is not None and lut.table.max() > lut.table.min():
        least, most = lut.table.min(), lut.table.max()
        return lambda values: _to_bytes((lut(np.rint(values)) - least) * (255 / (most - least)))
    return Window(low, high)


def _extremes(array: Array, values: Floats, slope: float, intercept: float) -> tuple[float, float]:
    """Least and greatest of averaged values once they are rescaled; the same for a frame of one value, whose averages differ by rounding."""
    finite = array if array.dtype.kind in "ui" else array[np.isfinite(array)]
    if not finite.size or finite.min() == finite.max():
        values = values[:1, :1]
    values = _rescaled(values, slope, intercept)
    return float(values.min()), float(values.max())


def _constant(values: Floats) -> Grey:
    return np.full(values.shape, 128, np.uint8)


def _read_window(holder: ImageHeader) -> Window | None:
    """First window of a header; None when it has none or defines nothing."""
    centre, width = number(holder, "WindowCenter"), number(holder, "WindowWidth")
    return None if centre is None or width is None else window_of(centre, width, text(holder, "VOILUTFunction"))


def _plainly_shows(window: Window, known: Floats) -> bool:
    """Whether a window shows the image for certain, which is seen at less cost than by percentiles; when it does not, `_is_useful` decides.

    With a fiftieth of the values on either side of the window's middle, a 40th of its width apart, the percentiles are further apart than that.
    """
    width = window.high - window.low
    if math.isinf(width):
        return False
    middle, few = (window.low + window.high) / 2, 1 + known.size // 50
    dark, light = middle - width / 80, middle + width / 80
    return (
        int(np.count_nonzero(known < dark)) > few
        and int(np.count_nonzero(known > light)) > few
        and int(np.count_nonzero((known > window.low) & (known < window.high))) > few
    )


def _is_useful(window: Window, known: Floats, spread: float) -> bool:
    """Whether a window shows the image: not nearly all of it black or white, and not all of it one shade of grey."""
    within = int(np.count_nonzero((known > window.low) & (known < window.high))) / known.size
    width = window.high - window.low
    if math.isinf(width) or width > 40 * spread:
        return False
    return within > 0.01


__all__ = [
    "Palette",
    "Window",
    "functional_group",
    "pixel_aspect",
    "read_palette",
    "reduction_for",
    "render",
    "render_viewport",
    "shape_on_screen",
    "tolerance_for",
    "window_of",
]
