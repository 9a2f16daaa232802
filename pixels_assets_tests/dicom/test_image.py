"""What a header says about its image: the same from raw elements as from pydicom."""

import importlib.util
import io
import os
import warnings
from pathlib import Path

import pydicom
import pytest

from pixels_assets.dicom import image
from pixels_assets.dicom.image import RawImage, has, item, number, numbers, text, value
from pixels_assets.dicom.pixels import PixelSource
from pixels_assets.dicom.reader import Header, read_by_pydicom, read_header
from pixels_assets.dicom.thumbnails import Thumbnail, make_thumbnail
from pixels_assets.intake.filetype import DICOM_TYPES, identify

FOLDERS = [Path(pydicom.__file__).parent / "data"]
if (store := importlib.util.find_spec("data_store")) is not None:
    FOLDERS += [Path(place) for place in store.submodule_search_locations or []]


def raw_image(dataset, little=True, full=None):
    """Serve the raw elements of a data set of which no value was converted yet."""

    def raw(tag):
        found = dataset._dict.get(pydicom.tag.BaseTag(tag))
        if found is None:
            return None
        if isinstance(found, pydicom.DataElement):
            assert found.VR == "SQ", "pydicom converted it while reading"
            return found.VR, b""
        return found.VR, found.value or b""

    return RawImage(raw, little=little, full=full or (lambda: dataset))


@pytest.mark.filterwarnings("ignore")
def test_raw_values_of_packaged_files_are_those_of_pydicom():
    compared = 0
    for path in sorted(path for folder in FOLDERS for path in folder.rglob("*.dcm")):
        try:
            dataset, again = (pydicom.dcmread(path, stop_before_pixels=True, force=True) for _ in range(2))
        except Exception:
            continue
        header = raw_image(again, little=dataset.original_encoding[1] is not False)
        for keyword, (_, vr) in image._USUAL.items():
            if vr in ("CS", "UI"):
                assert text(header, keyword) == text(dataset, keyword), (path.name, keyword)
            else:
                here, there = list(numbers(header, keyword)), list(numbers(dataset, keyword))
                if vr == "US or SS":  # of a sign that depends on another element
                    here, there = [found % 65536 for found in here], [found % 65536 for found in there]
                assert here == pytest.approx(there), (path.name, keyword)
                compared += bool(there)
    assert compared > 1000


def both_ways(path):
    """Header by the fast reader, and by pydicom."""
    data = path.read_bytes()
    stream = io.BytesIO(data)
    identified = identify(stream, len(data))
    if identified.name not in DICOM_TYPES:
        return None
    offset = identified.dataset_offset or 0
    fast = read_header(stream, len(data), dataset_offset=offset, max_deflated_bytes=1 << 26)
    if not isinstance(fast, Header) or fast.described is None or fast.pixel_offset is None:
        return None
    return fast, read_by_pydicom(io.BytesIO(data), len(data), offset, (), 1 << 26, 200.0)


def compare_thumbnails(paths):
    made = 0
    for path in paths:
        headers = both_ways(path)
        if headers is not None:
            fast, plain = (make_thumbnail(PixelSource.of(header), size=64, max_bytes=1 << 26) for header in headers)
            assert fast == plain, path.name
            made += isinstance(fast, Thumbnail)
    return made


@pytest.mark.filterwarnings("ignore")
def test_thumbnails_from_raw_elements_are_those_from_pydicom():
    assert compare_thumbnails(sorted(path for folder in FOLDERS for path in folder.rglob("*.dcm"))) > 100


@pytest.mark.corpus
@pytest.mark.skipif("PIXELS_CORPUS" not in os.environ, reason="PIXELS_CORPUS is not set")
@pytest.mark.filterwarnings("ignore")
def test_thumbnails_of_the_corpus_from_raw_elements_are_those_from_pydicom():
    files = sorted(path for path in Path(os.environ["PIXELS_CORPUS"]).rglob("*") if path.is_file() and path.stat().st_size < 30_000_000)
    assert compare_thumbnails(files) > 100


def groups(count):
    """Functional groups of which each frame has its own."""
    sequence = []
    for place in range(count):
        group, measures, window = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        measures.PixelSpacing, measures.SliceThickness = [place + 1, 1], 2
        window.WindowCenter, window.WindowWidth = [place, 5], [100, 6]
        group.PixelMeasuresSequence, group.FrameVOILUTSequence = [measures], [window]
        sequence.append(group)
    return sequence


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("implicit", [False, True])
def test_items_are_found_in_bytes_as_pydicom_finds_them(implicit, undefined):
    dataset = pydicom.Dataset()
    dataset.PerFrameFunctionalGroupsSequence = groups(7)
    if undefined:
        for element in dataset.iterall():
            element.is_undefined_length = element.VR == "SQ"
        for nested in dataset.PerFrameFunctionalGroupsSequence:
            nested.is_undefined_length_sequence_item = True
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=True, force_encoding=True)
    start = 8 if implicit else 12
    tag = pydicom.datadict.tag_for_keyword("PerFrameFunctionalGroupsSequence")
    data = buffer.getvalue()[start:]
    header = RawImage({tag: ("SQ", data)}.get, little=True, implicit=implicit, full=lambda: pytest.fail("no need for pydicom"))
    for place in range(7):
        group = item(header, "PerFrameFunctionalGroupsSequence", place)
        assert list(numbers(item(group, "PixelMeasuresSequence", 0), "PixelSpacing")) == [place + 1, 1]
        assert list(numbers(item(group, "FrameVOILUTSequence", 0), "WindowCenter")) == [place, 5]
        assert item(group, "PixelMeasuresSequence", 1) is None
        assert item(group, "PixelValueTransformationSequence", 0) is None
    assert item(header, "PerFrameFunctionalGroupsSequence", 7) is None


def test_items_that_are_odd_are_asked_of_pydicom():
    dataset = pydicom.Dataset()
    dataset.PerFrameFunctionalGroupsSequence = groups(2)
    tag = pydicom.datadict.tag_for_keyword("PerFrameFunctionalGroupsSequence")
    for data in (b"\xfe\xff", b"\x01" * 40, b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 40):
        header = RawImage({tag: ("SQ", data)}.get, little=True, full=lambda: dataset)
        group = item(header, "PerFrameFunctionalGroupsSequence", 1)
        assert list(numbers(item(group, "PixelMeasuresSequence", 0), "PixelSpacing")) == [2, 1]


def element(vr, data):
    return RawImage(lambda tag: (vr, data), little=True, full=lambda: pytest.fail("no need for pydicom"))


@pytest.mark.parametrize(
    ("keyword", "data", "expected"),
    [
        ("WindowCenter", b"40\\600 ", [40, 600]),
        ("WindowCenter", b" 1e3", [1000]),
        ("WindowCenter", b"", []),
        ("WindowCenter", b"\\", []),
        ("WindowCenter", b"1A", []),
        ("WindowCenter", b"nan", []),
        ("WindowCenter", b"inf", []),
        ("WindowCenter", b"1_0", []),
        ("WindowCenter", b"12\0", [12]),
        ("NumberOfFrames", b"7 ", [7]),
        ("NumberOfFrames", b"7.5", []),
        ("Rows", b"\x00\x02", [512]),
        ("Rows", b"", []),
        ("Rows", b"\x01", []),
    ],
)
def test_numbers_are_parsed_or_are_none(keyword, data, expected):
    assert list(numbers(element(None, data), keyword)) == expected


def test_big_endian_numbers_are_read_as_such():
    assert number(RawImage(lambda tag: ("US", b"\x02\x00"), little=False, full=pydicom.Dataset), "Rows") == 512


def test_what_is_unusual_is_asked_of_pydicom_and_made_once():
    dataset = pydicom.Dataset()
    dataset.add_new("Rows", "UL", 70000)
    dataset.SliceThickness = 2
    made = []

    def full():
        made.append(1)
        return dataset

    header = RawImage(lambda tag: ("UL", b"") if tag == 0x00280010 else (None, b"") if tag in dataset else None, little=True, full=full)
    assert number(header, "Rows") == 70000
    assert numbers(header, "SliceThickness") == [2]
    assert value(header, "ModalityLUTSequence") is None
    assert not has(header, "ModalityLUTSequence")
    assert made == [1]


def test_text_is_the_first_value_without_padding():
    assert text(element("CS", b"MONOCHROME1 "), "PhotometricInterpretation") == "MONOCHROME1"
    assert text(element(None, b"LINEAR\\SIGMOID"), "VOILUTFunction") == "LINEAR"
    assert text(RawImage(lambda tag: None, little=True, full=pydicom.Dataset), "VOILUTFunction") == ""


def test_a_file_read_again_gives_the_same_through_a_stream():
    buffer = io.BytesIO()
    dataset = pydicom.Dataset()
    dataset.Rows, dataset.PixelSpacing = 7, ["0.5", "0.25"]
    pydicom.dcmwrite(buffer, dataset, implicit_vr=True, little_endian=True, force_encoding=True)
    buffer.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = raw_image(pydicom.dcmread(buffer, force=True))
    assert number(header, "Rows") == 7
    assert list(numbers(header, "PixelSpacing")) == [0.5, 0.25]
