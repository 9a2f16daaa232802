"""Objects written in Explicit VR Little Endian."""

import io

import pydicom
from pydicom.data import get_testdata_file

from pixels_assets.dicom.pixels import PixelSource
from pixels_assets.dicom.reader import read_header
from pixels_assets.dicomweb.transcoding import to_explicit_little


def test_colours_that_two_pixels_share_are_said_to_be_spread_once_they_are():
    dataset = pydicom.dcmread(get_testdata_file("SC_ybr_full_422_uncompressed.dcm"))
    assert dataset.PhotometricInterpretation == "YBR_FULL_422"
    expected = dataset.pixel_array
    buffer = io.BytesIO()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.2"
    dataset["PixelData"].VR = "OB"
    pydicom.dcmwrite(buffer, dataset, implicit_vr=False, little_endian=False)
    data = buffer.getvalue()
    header = read_header(io.BytesIO(data), len(data), max_deflated_bytes=1 << 20)
    written = pydicom.dcmread(io.BytesIO(to_explicit_little(io.BytesIO(data), PixelSource.of(header), max_bytes=1 << 20)))
    assert written.PhotometricInterpretation == "YBR_FULL"
    assert (written.pixel_array == expected).all()
