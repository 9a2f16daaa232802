"""An object in Explicit VR Little Endian, for clients that cannot take it as it is stored (DICOM PS3.18 8.7.3.5).

Holds re-encoding of whole data sets. Must not know files or HTTP.
"""

import io
import logging
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from pixels_assets.dicom.codecs import CODECS, Codec, NoPixels, PixelDescription, Reason
from pixels_assets.dicom.image import number
from pixels_assets.dicom.notes import listening
from pixels_assets.dicom.pixels import PixelSource, read_frame
from pixels_assets.dicomweb.frames import PYDICOM, native_bytes, swapped_bytes
from pixels_assets.errors import place_of

logger = logging.getLogger(__name__)

__all__ = ["CannotTranscode", "to_explicit_little"]

_PLAIN = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"})
_WIDTHS = {"OW": 16, "OF": 32, "OL": 32, "OD": 64, "OV": 64}
_PIXEL_TAGS = (0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010)


class CannotTranscode(Exception):  # noqa: N818 - it names a result
    """The object cannot be written in another transfer syntax."""


def to_explicit_little(stream: BinaryIO, source: PixelSource | None, *, max_bytes: int) -> bytes:
    """Write an object in Explicit VR Little Endian.

    Parameters
    ----------
    stream : BinaryIO
        The object's bytes.
    source : PixelSource or None
        Its pixel data; None without any.
    max_bytes : int
        Bytes that the decoded frames may take together.

    Raises
    ------
    CannotTranscode
        It cannot be read in full, or decoded.
    """
    try:
        pixels = None if source is None else _decoded(source, max_bytes)
        with PYDICOM, listening():
            dataset = pydicom.dcmread(stream, force=True)
            if pixels is not None:
                _put_pixels(dataset, pixels)
            return _write(dataset)
    except NoPixels as error:
        raise CannotTranscode(error.message) from error
    except MemoryError as error:
        msg = "there is not enough memory for the decoded object"
        raise CannotTranscode(msg) from error
    except Exception as error:  # pydicom raises nearly anything on damaged objects; the client gets a word, not a stack
        logger.debug("re-encoding failed: %s", place_of(error))
        msg = f"the object cannot be re-encoded ({type(error).__name__})"
        raise CannotTranscode(msg) from error


@dataclass(frozen=True, slots=True)
class _Pixels:
    """Decoded frames, one after the other."""

    data: bytes
    description: PixelDescription


def _decoded(source: PixelSource, max_bytes: int) -> _Pixels | None:
    """Decode all frames; None where native little endian pixel data may stay as they are."""
    if CODECS.get(source.transfer_syntax) is Codec.NATIVE and source.transfer_syntax in _PLAIN:
        return None
    frames = max(1, int(number(source.dataset, "NumberOfFrames") or 1))
    bits = int(number(source.dataset, "BitsAllocated") or 8)
    pieces, total, first = [], 0, None
    for place in range(frames):
        frame = read_frame(source, max_bytes=max_bytes, index=place)
        first = first or frame.description
        # Frames of single bits follow each other within a byte, so they are packed together.
        pieces.append(frame.array.astype(bool).tobytes() if bits == 1 else native_bytes(frame, planar=False, bits_allocated=bits))
        total += len(pieces[-1])
        if total > max_bytes:
            raise NoPixels(Reason.FRAME_TOO_LARGE, f"the decoded object would take more than {max_bytes} bytes")
    assert first is not None
    data = b"".join(pieces)
    if bits == 1:
        return _Pixels(
            np.packbits(np.frombuffer(data, np.uint8), bitorder="little").tobytes(), replace(first, bits_allocated=1, bits_stored=1, high_bit=0)
        )
    return _Pixels(data, replace(first, bits_allocated=max(bits, first.bits_allocated)))


def _put_pixels(dataset: FileDataset, pixels: _Pixels) -> None:
    keyword = {"f4": "FloatPixelData", "f8": "DoubleFloatPixelData"}.get(pixels.description.dtype.str[1:], "PixelData")
    for tag in _PIXEL_TAGS:
        if tag in dataset:
            del dataset[tag]
    setattr(dataset, keyword, pixels.data + b"\0" * (len(pixels.data) % 2))
    if keyword == "PixelData":
        dataset["PixelData"].VR = "OW" if pixels.description.bits_allocated > 8 else "OB"
    if pixels.description.bits_allocated != dataset.BitsAllocated:  # codestreams with more bits than the data set says
        dataset.BitsAllocated = pixels.description.bits_allocated
        dataset.BitsStored, dataset.HighBit = pixels.description.bits_stored, pixels.description.high_bit
    if pixels.description.samples > 1:
        dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = pixels.description.photometric


def _write(dataset: FileDataset) -> bytes:
    if dataset.original_encoding[1] is False:
        _swap(dataset)
    if any(isinstance(element, RawDataElement) and element.VR is None for element in dataset.values()):
        # Implicit VR under a transfer syntax that says explicit: pydicom would write elements as they were read, without a VR.
        for _ in dataset.iterall():
            pass
    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if "MediaStorageSOPClassUID" not in meta and "SOPClassUID" in dataset:
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    if "MediaStorageSOPInstanceUID" not in meta and "SOPInstanceUID" in dataset:
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()


def _swap(dataset: Dataset) -> None:
    """Make a big endian data set a little endian one: pydicom converts numbers, but keeps the bytes of binary values as they are."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                _swap(item)
        elif element.VR in _WIDTHS and isinstance(element.value, bytes) and element.tag not in _PIXEL_TAGS:
            element.value = swapped_bytes(element.value, _WIDTHS[element.VR])
    dataset.set_original_encoding(False, True, dataset.original_character_set)
