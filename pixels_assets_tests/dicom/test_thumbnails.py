"""Thumbnails and contact sheets."""

import csv
import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.filereader import read_dataset, read_file_meta_info

from pixels_assets.dicom.pixels import PixelSource
from pixels_assets.dicom.thumbnails import NoThumbnail, Thumbnail, contact_sheet, make_thumbnail

EXPLICIT, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99"
LIMIT = 192 << 20
PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
CORPUS = os.environ.get("PIXELS_CORPUS")


def source_of(path):
    data = Path(path).read_bytes()
    stream = io.BytesIO(data)
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    meta = getattr(dataset, "file_meta", None) or {}
    syntax = str(meta.get("TransferSyntaxUID", ""))
    if syntax == DEFLATED:
        start = 144 + read_file_meta_info(path).FileMetaInformationGroupLength
        data = zlib.decompressobj(-15).decompress(data[start:], 16 << 20)
        stream = io.BytesIO(data)
        dataset = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag in PIXEL_TAGS)
    return PixelSource(dataset, syntax or EXPLICIT, stream, stream.tell(), len(data))


def packaged(name):
    return source_of(get_testdata_file(name, download=False))


def picture(thumbnail):
    return Image.open(io.BytesIO(thumbnail.data))


@pytest.mark.parametrize(
    ("name", "mode", "size", "frame"),
    [
        ("CT_small.dcm", "L", (128, 128), 0),
        ("JPEG2000.dcm", "L", (64, 256), 0),
        ("examples_palette.dcm", "RGB", (256, 112), 0),
        ("examples_ybr_color.dcm", "RGB", (256, 192), 15),
        ("SC_rgb_jpeg_dcmtk.dcm", "RGB", (100, 100), 0),
        ("rtdose.dcm", "L", (10, 10), 7),
        ("liver_1frame.dcm", "L", (256, 256), 0),
        ("image_dfl.dcm", "L", (256, 256), 0),
    ],
)
def test_packaged_images_have_thumbnails(name, mode, size, frame):
    thumbnail = make_thumbnail(packaged(name), max_bytes=LIMIT)
    assert isinstance(thumbnail, Thumbnail)
    image = picture(thumbnail)
    assert (image.mode, image.size, thumbnail.frame) == (mode, size, frame)
    assert (thumbnail.width, thumbnail.height) == image.size
    assert thumbnail.mime == Image.MIME[image.format]
    assert len(thumbnail.data) < 16 * 1024


def test_the_size_is_that_of_the_longest_side():
    thumbnail = make_thumbnail(packaged("examples_palette.dcm"), size=90, max_bytes=LIMIT)
    assert max(thumbnail.width, thumbnail.height) == 90


def test_the_same_object_gives_the_same_bytes_without_any_metadata():
    first, second = (make_thumbnail(packaged("CT_small.dcm"), max_bytes=LIMIT) for _ in range(2))
    assert first == second
    assert first.mime == "image/jpeg"
    assert set(picture(first).info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def test_pictures_of_few_colours_are_png():
    thumbnail = make_thumbnail(packaged("liver_1frame.dcm"), max_bytes=LIMIT)
    assert thumbnail.mime == "image/png"
    assert len(thumbnail.data) < 2000


def test_an_object_without_pixel_data_says_so():
    assert make_thumbnail(None, max_bytes=LIMIT) == NoThumbnail("no_pixel_data", "the object has no pixel data")


def test_a_frame_beyond_the_memory_limit_says_so():
    assert make_thumbnail(packaged("CT_small.dcm"), max_bytes=1000).code == "frame_too_large"


def test_a_failing_decoder_is_named_and_nothing_else():
    source = packaged("JPEG2000.dcm")
    data = source.stream.getvalue()
    start = data.index(b"\xff\x4f\xff\x51") + 60  # in the midst of the codestream's main header
    stream = io.BytesIO(data[:start] + b"\x55" * (len(data) - start))
    broken = PixelSource(source.dataset, source.transfer_syntax, stream, source.offset, source.length)
    assert make_thumbnail(broken, max_bytes=LIMIT) == NoThumbnail("decode_failed", "decoder raised Jpeg2kError")


@pytest.mark.parametrize("name", ["CT_small.dcm", "rtdose.dcm", "SC_rgb_rle.dcm", "examples_ybr_color.dcm", "MR_small_jp2klossless.dcm"])
def test_a_file_cut_anywhere_gives_a_thumbnail_or_a_reason_and_never_raises(name):
    source = packaged(name)
    for length in np.linspace(source.offset, source.length, 60).astype(int).tolist():
        cut = PixelSource(source.dataset, source.transfer_syntax, io.BytesIO(source.stream.getvalue()[:length]), source.offset, length)
        result = make_thumbnail(cut, max_bytes=LIMIT)
        if isinstance(result, NoThumbnail):
            assert result.code in ("no_pixel_data", "pixel_data_truncated", "bad_encapsulation")
    assert isinstance(result, Thumbnail)


@pytest.mark.parametrize(
    "keyword", ["Rows", "BitsAllocated", "BitsStored", "SamplesPerPixel", "WindowCenter", "RescaleSlope", "PixelSpacing", "NumberOfFrames"]
)
@pytest.mark.parametrize("value", [b"", b"\xff\xff", b"1A", b"-1", b"9" * 40, b"\\\\\\"])
def test_unreadable_header_values_give_a_thumbnail_or_a_reason_and_never_raise(keyword, value):
    source = packaged("CT_small.dcm")
    tag = pydicom.datadict.tag_for_keyword(keyword)
    vr = pydicom.datadict.dictionary_VR(tag)
    source.dataset._dict[pydicom.tag.BaseTag(tag)] = pydicom.dataelem.RawDataElement(pydicom.tag.BaseTag(tag), vr, len(value), value, 0, False, True)
    assert isinstance(make_thumbnail(source, max_bytes=LIMIT), (Thumbnail, NoThumbnail))


# Contact sheets


def thumbnails(count):
    images = []
    for seed in range(count):
        buffer = io.BytesIO()
        noise = np.random.default_rng(seed).integers(0, 256, (60, 40, 3)).astype(np.uint8)
        Image.fromarray(noise).save(buffer, "PNG")
        images.append(buffer.getvalue())
    return images


@pytest.mark.parametrize(("count", "size"), [(1, (96, 96)), (8, (768, 96)), (9, (768, 192))])
def test_a_contact_sheet_lays_pictures_in_rows(count, size):
    sheet = Image.open(io.BytesIO(contact_sheet(thumbnails(count), max_bytes=1 << 20)))
    assert (sheet.format, sheet.size) == ("JPEG", size)


@pytest.mark.parametrize("count", [30, 300])
def test_a_contact_sheet_keeps_its_limit_by_lowering_quality_and_then_showing_fewer(count):
    sheet = contact_sheet(thumbnails(count), max_bytes=50 * 1024)
    assert 0 < len(sheet) <= 50 * 1024


def test_a_contact_sheet_of_nothing_is_empty():
    assert contact_sheet([]) == b""
    assert contact_sheet(thumbnails(1), max_bytes=10) == b""


# The corpus


def corpus_rows():
    with (Path(CORPUS) / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["kind"] not in ("container", "gz", "archive")]


def readable(path):
    try:
        return source_of(path)
    except Exception:  # the header is not what is tested here
        return None


@pytest.mark.corpus
@pytest.mark.skipif(CORPUS is None, reason="PIXELS_CORPUS is not set")
@pytest.mark.filterwarnings("ignore")
def test_every_decodable_image_of_the_corpus_has_a_thumbnail_and_no_file_raises():
    missing, made = [], 0
    for row in corpus_rows():
        source = readable(Path(CORPUS) / row["file"])
        thumbnail = None if source is None else make_thumbnail(source, max_bytes=LIMIT)
        if isinstance(thumbnail, Thumbnail):
            picture(thumbnail).load()
            made += 1
        elif row["pixels_decodable"] == "y" and "deflate_bomb" not in row["file"]:
            missing.append((row["file"], thumbnail))
    assert not missing
    assert made > 0


MEMORY = """
import resource, runpy, sys
from pathlib import Path
module = runpy.run_path(sys.argv[1])
sources = [found for path in sorted(Path(sys.argv[2]).iterdir()) if (found := module["readable"](path)) is not None]
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for source in sources:
    module["make_thumbnail"](source, max_bytes=module["LIMIT"])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024, len(sources))
"""


@pytest.mark.corpus
@pytest.mark.skipif(CORPUS is None, reason="PIXELS_CORPUS is not set")
def test_hostile_files_of_the_corpus_take_little_memory():
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, __file__, str(Path(CORPUS) / "malformed")]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    mebibytes, sources = map(int, result.stdout.split())
    assert sources > 40
    assert mebibytes < 300
