"""A thumbnail of one object as encoded bytes, or the reason why there is none.

The boundary at which anything that goes wrong with a picture becomes a row's reason. Must not decode or render itself.
"""

import io
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixels_assets.dicom.codecs import Reason
from pixels_assets.dicom.pixels import NoPixels, PixelSource, read_frame
from pixels_assets.dicom.rendering import reduction_for, render, tolerance_for

_LOG = logging.getLogger(__name__)

_QUALITY = 80
_FEW_PIXELS = 64 * 64
_FEW_COLOURS = 32
_SHEET_GAP = 4  # pixels between pictures
_SHEET_COLOUR = (48, 48, 48)  # neither the black nor the white of pictures, so that their edges show


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """One encoded picture.

    Parameters
    ----------
    data : bytes
        Without EXIF and ICC; the same for the same input.
    mime : str
        ``image/jpeg`` or ``image/png``.
    width, height : int
        Pixels.
    frame : int
        0-based number of the frame shown.
    """

    data: bytes
    mime: str
    width: int
    height: int
    frame: int


@dataclass(frozen=True, slots=True)
class NoThumbnail:
    """Why there is no picture.

    Parameters
    ----------
    code : str
        One of the words of `Reason`, such as ``no_pixel_data``.
    message : str
        One sentence without patient data.
    """

    code: str
    message: str


def make_thumbnail(source: PixelSource | None, *, size: int = 256, max_bytes: int) -> Thumbnail | NoThumbnail:
    """Make the thumbnail of one object from its middle frame.

    Parameters
    ----------
    source : PixelSource or None
        None for an object without pixel data.
    size : int
        Longest side, pixels.
    max_bytes : int
        Bytes that the decoded frame may take.

    Returns
    -------
    Thumbnail or NoThumbnail
        Never an exception, whatever the bytes are.
    """
    if source is None:
        return NoThumbnail(Reason.NO_PIXEL_DATA.value, "the object has no pixel data")
    try:
        # What libraries warn about here is a value that the metadata's row reports already, or a codec's quirk that does not change the picture.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = source.dataset
            frame = read_frame(source, max_bytes=max_bytes, reduction=reduction_for(header, size), tolerance=tolerance_for(header))
            data, mime, width, height = _encode(render(frame, header, size=size))
    except NoPixels as reason:
        return NoThumbnail(reason.code.value, reason.message)
    except MemoryError:
        return NoThumbnail(Reason.FRAME_TOO_LARGE.value, "there is not enough memory to decode the frame")
    except Exception as error:  # hostile headers make pydicom, numpy and Pillow raise anything; the row names the type
        _LOG.debug("thumbnail failed: %s", type(error).__name__)
        return NoThumbnail(Reason.DECODE_FAILED.value, f"decoder raised {type(error).__name__}")
    return Thumbnail(data, mime, width, height, frame.index)


def contact_sheet(images: Sequence[bytes], *, columns: int = 8, cell: int = 96, max_bytes: int = 50 * 1024) -> bytes:
    """Lay encoded pictures side by side in one JPEG.

    Parameters
    ----------
    images : sequence of bytes
        PNG or JPEG files, such as `Thumbnail.data`.
    columns : int
    cell : int
        Side of the square that each picture is fitted into, pixels.
    max_bytes : int
        Upper limit of the result. Quality is lowered first; then only every second picture is shown, and so on.

    Returns
    -------
    bytes
        Empty when there are no pictures, or when not even one fits.
    """
    chosen = list(images)
    while chosen:
        sheet = _lay_out(chosen, columns, cell)
        for quality in (_QUALITY, 60, 40, 25):
            data = _save(sheet, "JPEG", quality=quality)
            if len(data) <= max_bytes:
                return data
        chosen = chosen[::2] if len(chosen) > 1 else []
    return b""


def _lay_out(images: list[bytes], columns: int, cell: int) -> Image.Image:
    across = min(columns, len(images))
    down = -(-len(images) // columns)
    sheet = Image.new("RGB", (across * cell, down * cell), _SHEET_COLOUR)
    for position, data in enumerate(images):
        with Image.open(io.BytesIO(data)) as image:
            picture = image.convert("RGB")
        picture.thumbnail((cell - _SHEET_GAP, cell - _SHEET_GAP))
        left, top = position % columns * cell, position // columns * cell
        sheet.paste(picture, (left + (cell - picture.width) // 2, top + (cell - picture.height) // 2))
    return sheet


def _encode(shown: NDArray[np.uint8]) -> tuple[bytes, str, int, int]:
    """JPEG, or PNG where that is smaller: tiny pictures and those of few colours, which JPEG would also blur."""
    height, width = shown.shape[:2]
    shown = np.ascontiguousarray(shown)
    data, mime = _jpeg(shown), "image/jpeg"
    if height * width <= _FEW_PIXELS or _has_few_colours(shown):
        lossless = _save(Image.fromarray(shown), "PNG", optimize=True)
        if len(lossless) <= len(data):
            data, mime = lossless, "image/png"
    return data, mime, width, height


def _jpeg(shown: NDArray[np.uint8]) -> bytes:
    if shown.ndim == 2:
        return bytes(imagecodecs.jpeg8_encode(shown, level=_QUALITY))
    return bytes(imagecodecs.jpeg8_encode(shown, level=_QUALITY, subsampling="420"))


def _has_few_colours(shown: NDArray[np.uint8]) -> bool:
    """Whether no more than so many colours are used; a few pixels tell of most pictures that there are more."""
    some = shown[::8, ::8]
    if shown.ndim == 2:
        used = int(np.count_nonzero(np.bincount(some.reshape(-1))))
    else:
        used = len(np.unique(some.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)))
    if used > _FEW_COLOURS:
        return False
    return Image.fromarray(shown).getcolors(_FEW_COLOURS) is not None


def _save(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
