"""Where the frames of stored objects lie, for sending them."""

import io

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate_extended

from pixels_assets.dicom.reader import read_header
from pixels_assets.dicomweb.frames import index_frames

FRAMES = [np.random.default_rng(seed).integers(0, 255, (16, 16), np.uint8) for seed in range(3)]


def tabled(offsets):
    """Three frames of JPEG-LS of one length, with an Extended Offset Table."""
    coded = [bytes(imagecodecs.jpegls_encode(frame)) for frame in FRAMES]
    coded = [data.ljust(max(map(len, coded)) + 1 & ~1, b"\0") for data in coded]
    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    dataset.Rows, dataset.Columns, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.NumberOfFrames = 16, 16, 8, 8, 7, 3
    dataset.PixelData, right, dataset.ExtendedOffsetTableLengths = encapsulate_extended(coded)
    dataset.ExtendedOffsetTable = right if offsets is None else np.array(offsets, "<u8").tobytes()
    dataset["PixelData"].VR, dataset.file_meta.TransferSyntaxUID = "OB", "1.2.840.10008.1.2.4.80"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue(), coded


@pytest.mark.parametrize("offsets", [None, [0, 0, 0], [0, 1 << 63, (1 << 63) + 5], [2**64 - 1] * 3, [9, 9, 9], [2**64 - 8, 0, 8]])
def test_frames_are_found_by_an_extended_offset_table_and_without_a_wrong_one(offsets):
    data, coded = tabled(offsets)
    index = index_frames(read_header(io.BytesIO(data), len(data), max_deflated_bytes=1 << 20))
    found = [data[index.starts[at] : index.starts[at] + index.lengths[at]] for at in (index.firsts[frame] for frame in range(index.frames))]
    assert found == coded
