"""An object in Explicit VR Little Endian, for clients that cannot take it as it is stored (DICOM PS3.18 8.7.3.5).

Holds re-encoding of whole data sets. Must not know files or HTTP.
"""

import io
from typing import BinaryIO

import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from pixels_assets.dicom.codecs import NoPixels, Reason
from pixels_assets.dicom.pixels import PixelSource, read_frame
from pixels_assets.dicomweb.frames import native_bytes

__all__ = ["CannotTranscode", "to_explicit_little"]

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
        dataset = pydicom.dcmread(stream, force=True)
        if source is not None:
            _decode_pixels(dataset, source, max_bytes)
        return _write(dataset)
    except NoPixels as error:
        raise CannotTranscode(error.message) from error
    except MemoryError as error:
        msg = "there is not enough memory for the decoded object"
        raise CannotTranscode(msg) from error
    except Exception as error:  # pydicom raises nearly anything on damaged objects; the client gets a word, not a stack
        msg = f"the object cannot be re-encoded ({type(error).__name__})"
        raise CannotTranscode(msg) from error


def _decode_pixels(dataset: FileDataset, source: PixelSource, max_bytes: int) -> None:
    meta = getattr(dataset, "file_meta", None)
    declared = str(meta.get("TransferSyntaxUID", "")) if meta is not None else ""
    encoded = UID(source.transfer_syntax).is_encapsulated if UID(source.transfer_syntax).is_transfer_syntax else True
    if not encoded and declared == source.transfer_syntax and declared != "1.2.840.10008.1.2.2":
        return  # native little endian pixel data stay as they are
    frames = max(1, int(dataset.get("NumberOfFrames") or 1))
    pieces, total = [], 0
    for number in range(frames):
        frame = read_frame(source, max_bytes=max_bytes, index=number)
        data = native_bytes(frame, planar=False)
        total += len(data)
        if total > max_bytes:
            raise NoPixels(Reason.FRAME_TOO_LARGE, f"the decoded object would take more than {max_bytes} bytes")
        pieces.append((frame, data))
    first = pieces[0][0].description
    if first.bits_allocated == 1 and frames > 1 and (first.rows * first.columns) % 8:
        raise NoPixels(Reason.UNSUPPORTED_TRANSFER_SYNTAX, "frames of single bits that share bytes are not re-encoded")
    data = b"".join(piece for _, piece in pieces)
    keyword = {"f4": "FloatPixelData", "f8": "DoubleFloatPixelData"}.get(first.dtype.str[1:], "PixelData")
    for tag in _PIXEL_TAGS:
        if tag in dataset:
            del dataset[tag]
    setattr(dataset, keyword, data + b"\0" * (len(data) % 2))
    if keyword == "PixelData":
        dataset["PixelData"].VR = "OW" if first.bits_allocated > 8 else "OB"
    if first.samples > 1:
        dataset.PlanarConfiguration = 0
        dataset.PhotometricInterpretation = first.photometric


def _write(dataset: FileDataset) -> bytes:
    meta = getattr(dataset, "file_meta", None) or FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if "MediaStorageSOPClassUID" not in meta and "SOPClassUID" in dataset:
        meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    if "MediaStorageSOPInstanceUID" not in meta and "SOPInstanceUID" in dataset:
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta = meta
    buffer = io.BytesIO()
    dataset.save_as(buffer, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return buffer.getvalue()
