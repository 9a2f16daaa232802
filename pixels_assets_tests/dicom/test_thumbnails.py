"""Thumbnails and contact sheets."""

import csv
import importlib.util
import io
import os
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.filereader import read_dataset, read_file_meta_info

from pixels_assets.dicom.codecs import NoPixels
from pixels_assets.dicom.pixels import PixelSource, read_frame
from pixels_assets.dicom.rendering import reduction_for, render, tolerance_for
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


# The fast way against the full way: decode all of the frame, window it in full, and only then average areas

# Grey levels, mean absolute difference. Text in colour has the sharpest edges; percentiles of averaged values are not those of noisy ones.
WINDOW_BOUND, OTHER_BOUND = 3, 6.5
LIMIT_OF_FULL = 64 << 20


def difference(source, size=256):
    """Mean absolute difference between both ways, the reduction that the decoder gave and whether a window is there; None for what has no picture."""
    try:
        full = read_frame(source, max_bytes=LIMIT_OF_FULL)
        fast = read_frame(source, max_bytes=LIMIT_OF_FULL, reduction=reduction_for(source.dataset, size), tolerance=tolerance_for(source.dataset))
        small = render(fast, source.dataset, size=size)
    except NoPixels:
        return None
    whole = Image.fromarray(render(full, source.dataset, size=1 << 20))
    expected = np.asarray(whole.resize((small.shape[1], small.shape[0]), Image.Resampling.BOX))
    assert small.shape == expected.shape
    return np.abs(small.astype(float) - expected).mean(), fast.scale, small.ndim == 2 and "WindowWidth" in source.dataset


def too_different(paths):
    """Files beyond the bound, how many had a picture, and which reductions decoders gave."""
    wrong, made, scales = [], 0, set()
    for path in paths:
        found = (source := readable(path)) and difference(source)
        if found is None:
            continue
        mean, scale, windowed = found
        made += 1
        scales.add(scale)
        if mean > (WINDOW_BOUND if windowed else OTHER_BOUND):
            wrong.append((path.name, round(mean, 2), scale))
    return wrong, made, scales


FOLDERS = [Path(pydicom.__file__).parent / "data"]
if (store := importlib.util.find_spec("data_store")) is not None:
    FOLDERS += [Path(place) for place in store.submodule_search_locations or []]


@pytest.mark.filterwarnings("ignore")
def test_packaged_images_look_the_same_the_fast_way_and_the_full_way():
    files = {path.name: path for folder in FOLDERS for path in sorted(folder.rglob("*.dcm"))}
    wrong, made, scales = too_different(files.values())
    assert not wrong
    assert made > 100
    assert scales >= {1, 2}


def scene(bits, *, signed=False, rows=512, columns=512):
    """Discs, edges and noise that use most of the range."""
    down, across = np.mgrid[:rows, :columns]
    top = (1 << bits) - 1
    values = 0.05 + 0.5 * (np.hypot(down - rows / 2, across - columns / 2) < rows / 3)
    values += 0.3 * (np.hypot(down - rows / 3, across - columns / 3) < rows / 9)
    values += np.random.default_rng(5).normal(0, 0.01, values.shape)
    stored = np.clip(values * top, 0, top).astype(np.int64) - (1 << (bits - 1) if signed else 0)
    return stored.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")


def coded(array, syntax, data, bits):
    dataset = pydicom.Dataset()
    dataset.Rows, dataset.Columns = array.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * array.itemsize, bits, bits - 1
    dataset.PixelRepresentation = int(array.dtype.kind == "i")
    middle = 0 if array.dtype.kind == "i" else 1 << (bits - 1)
    dataset.WindowCenter, dataset.WindowWidth = middle, 1 << bits
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00\xfe\xff\x00\xe0" + len(data).to_bytes(4, "little") + data
    element = b"\xe0\x7f\x10\x00OB\x00\x00\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    return PixelSource(dataset, syntax, io.BytesIO(element), 0, len(element))


@pytest.mark.parametrize("shape", [(512, 512), (517, 1030)])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 14, 16])
@pytest.mark.parametrize("kind", ["j2k", "j2k lossy", "htj2k", "htj2k lossy"])
def test_reduced_wavelets_keep_sign_depth_and_place(kind, bits, signed, shape):
    array = scene(bits, signed=signed, rows=shape[0], columns=shape[1])
    lossy = kind.endswith("lossy")
    if kind.startswith("htj2k"):
        data = imagecodecs.htj2k_encode(array, reversible=not lossy, level=0.001 if lossy else None)
        source = coded(array, "1.2.840.10008.1.2.4.201", data, bits)
    else:
        data = imagecodecs.jpeg2k_encode(array, reversible=not lossy, level=60 if lossy else 0, codecformat="j2k", bitspersample=bits)
        source = coded(array, "1.2.840.10008.1.2.4.91", data, bits)
    mean, scale, _ = difference(source)
    assert mean < 2
    assert scale > 1


def test_wavelets_that_overshoot_do_not_wrap_from_white_to_black():
    stripes = (np.arange(512) // 37 % 2 * 65535).astype(np.uint16)
    array = np.broadcast_to(stripes, (512, 512)).copy()
    for bits in (12, 16):
        stored = array >> np.uint16(16 - bits)
        for data in (
            imagecodecs.htj2k_encode(stored, reversible=True),
            imagecodecs.jpeg2k_encode(stored, reversible=True, level=0, codecformat="j2k"),
        ):
            mean, _, _ = difference(coded(stored, "1.2.840.10008.1.2.4.201", data, bits))
            assert mean < 4


@pytest.mark.parametrize("subsampling", ["444", "420", None])
def test_large_jpegs_are_scaled_by_their_cosine_transform(subsampling):
    array = scene(8, rows=1100, columns=1300)
    if subsampling is not None:
        array = np.stack([array, 255 - array, array.T.reshape(array.shape)], axis=2)
    source = coded(array, "1.2.840.10008.1.2.4.50", imagecodecs.jpeg8_encode(array, level=90, subsampling=subsampling), 8)
    if subsampling is not None:
        source.dataset.SamplesPerPixel, source.dataset.PhotometricInterpretation, source.dataset.PlanarConfiguration = 3, "YBR_FULL_422", 0
    mean, scale, _ = difference(source)
    assert mean < 4
    assert scale == 4


@pytest.mark.corpus
@pytest.mark.skipif(CORPUS is None, reason="PIXELS_CORPUS is not set")
@pytest.mark.filterwarnings("ignore")
def test_images_of_the_corpus_look_the_same_the_fast_way_and_the_full_way():
    wrong, made, _ = too_different(Path(CORPUS) / row["file"] for row in corpus_rows() if not row["file"].startswith("malformed/"))
    assert not wrong
    assert made > 100


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
