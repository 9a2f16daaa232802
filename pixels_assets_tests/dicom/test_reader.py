"""Reading headers: the same as pydicom says, whatever the bytes."""

import importlib.util
import io
import json
import math
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from base64 import b64decode
from pathlib import Path

import pydicom
import pytest
from pydicom import Dataset, Sequence
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless

from pixels_assets.dicom.attributes import ATTRIBUTES
from pixels_assets.dicom.reader import Header, Unreadable, read_by_pydicom, read_header

MIB = 1024 * 1024
PIXELS = {"7FE00008", "7FE00009", "7FE00010"}
DATA = Path(pydicom.__file__).parent / "data"


def read(data, **options):
    options = {"max_deflated_bytes": 64 * MIB, **options}
    return read_header(io.BytesIO(data), len(data), **options)


def header_of(data, **options):
    found = read(data, **options)
    assert isinstance(found, Header), found
    return found


def small():
    return (DATA / "test_files" / "MR_small.dcm").read_bytes()


def element(tag, vr, value, order="<"):
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    long = vr in {"OB", "OW", "SQ", "UN", "UT", "UC", "UR", "OD", "OF", "OL", "OV", "SV", "UV"}
    return head + (struct.pack(order + "HL", 0, len(value)) if long else struct.pack(order + "H", len(value))) + value


def implicit(tag, value, order="<"):
    return struct.pack(order + "HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def item(body):
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(body)) + body


def part_10(data_set, uid=ExplicitVRLittleEndian):
    uid = uid.encode() + b"\0" * (len(uid) % 2)
    meta = element(0x00020001, "OB", b"\0\1") + element(0x00020010, "UI", uid)
    return bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<L", len(meta))) + meta + data_set


IDENTITY = element(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.7\0") + element(0x00080018, "UI", b"1.2.3.4\0")
PATIENT = element(0x00100020, "LO", b"ID1 ")


# What pydicom says, with our references in place of bulk data


def expected_json(model, path=""):
    result = {}
    for tag, item in model.items():
        if item["vr"] == "SQ":
            result[tag] = {"vr": "SQ", "Value": [expected_json(value, f"{path}{tag}/{index}/") for index, value in enumerate(item["Value"])]}
        elif "InlineBinary" in item and (tag in PIXELS or len(b64decode(item["InlineBinary"])) > 1024):
            result[tag] = {"vr": item["vr"], "BulkDataURI": f"bulkdata/{path}{tag}"}
        else:
            result[tag] = {key: [_expected_value(one) for one in value] if key == "Value" else value for key, value in item.items()}
    return result


def _expected_value(value):
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def by_pydicom(data):
    """JSON of data set and file meta by pydicom in its default configuration; None where it raises or loses the data set."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            model = dataset.to_json_dict()
            file_meta = dataset.file_meta.to_json_dict()
        except Exception:  # whatever it raises, there is nothing to compare with
            return None
    if not model or any(str(one.message).startswith("End of file reached") for one in caught):
        return None
    return expected_json(model), file_meta


def assert_equal_to_pydicom(data, **options):
    found = header_of(data, **options)
    reference = by_pydicom(data)
    if reference is None:
        return False
    assert json.loads(found.meta) == reference[0]
    assert (json.loads(found.file_meta) if found.file_meta else {}) == reference[1]
    return True


def assert_sound(found, data):
    """What holds for every result, whatever the bytes."""
    if isinstance(found, Unreadable):
        assert found.status in {"corrupt", "limit_exceeded"}
        assert found.code.replace("_", "").isalnum()
        return
    model = json.loads(found.meta, parse_constant=lambda word: pytest.fail(word))
    found.meta.encode("utf-8")
    assert list(model) == sorted(model)
    assert set(found.values) == {attribute.keyword for attribute in ATTRIBUTES}
    if found.file_meta is not None:
        json.loads(found.file_meta)
    if found.header is not None:
        assert data.startswith(found.header)


def looks_like_dicom(head):
    """With a prefix, or without one but with a UID that the standard registers."""
    return head[128:132] == b"DICM" or (head[1:2] == b"\0" and head[0] in {2, 8} and b"1.2.840.10008." in head)


def packaged_files():
    roots = [DATA]
    if (spec := importlib.util.find_spec("data_store")) is not None and spec.origin is not None:
        roots.append(Path(spec.origin).parent)
    return [
        pytest.param(path, id=str(path.relative_to(root)))
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and looks_like_dicom(path.read_bytes()[:1024])
    ]


def corpus_files():
    root = os.environ.get("PIXELS_CORPUS")
    if not root:
        return [pytest.param(None, marks=pytest.mark.skip(reason="PIXELS_CORPUS is not set"))]
    files = []
    for path in sorted(Path(root).rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                head = stream.read(1024)
            if looks_like_dicom(head) or (head[:2] == b"\x1f\x8b" and path.suffix == ".gz"):
                files.append(pytest.param(path, id=str(path.relative_to(root)).encode("unicode_escape").decode()))
    return files


@pytest.mark.parametrize("path", packaged_files())
def test_meta_equals_to_json_dict_on_the_files_that_come_with_pydicom(path):
    data = path.read_bytes()
    found = read(data)
    assert_sound(found, data)
    reference = by_pydicom(data)
    if reference is None:
        return
    assert isinstance(found, Header), found
    assert json.loads(found.meta) == reference[0]
    assert (json.loads(found.file_meta) if found.file_meta else {}) == reference[1]


# Declared big endian over another byte order: pydicom reads noise without a word.
OTHER_BYTE_ORDER = "transfer_syntax_wrong: really "


@pytest.mark.corpus
@pytest.mark.parametrize("path", corpus_files())
def test_meta_equals_to_json_dict_on_the_corpus(path):
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(data, 32 * MIB)
        if not looks_like_dicom(data[:1024]):
            pytest.skip("no DICOM inside")
    found = read(data)
    assert_sound(found, data)
    reference = by_pydicom(data)
    if reference is None or isinstance(found, Unreadable):
        assert reference is None or found.status == "limit_exceeded" or len(reference[0]) < 3
        return
    if json.loads(found.meta) != reference[0]:
        assert len(reference[0]) < 3
        assert len(json.loads(found.meta)) > 10
        return
    assert (json.loads(found.file_meta) if found.file_meta else {}) == reference[1]


# What a header holds


def test_header_bytes_are_the_files_own_up_to_the_pixel_data():
    data = small()
    found = header_of(data)
    at = data.index(b"\xe0\x7f\x10\x00OW")
    assert found.pixel_offset == at
    assert found.header == data[:at]
    assert found.stream_length == len(data)
    assert json.loads(found.meta)["7FE00010"] == {"vr": "OW", "BulkDataURI": "bulkdata/7FE00010"}
    assert "PixelData" not in found.dataset
    assert found.dataset.Rows == 64


def test_header_bytes_are_the_whole_file_when_it_has_no_pixel_data():
    data = part_10(IDENTITY + PATIENT)
    found = header_of(data)
    assert found.header == data
    assert found.pixel_offset is None


def test_pixel_data_is_not_read():
    class Counting(io.BytesIO):
        count = 0

        def read(self, size=-1):
            data = super().read(size)
            self.count += len(data)
            return data

    head = part_10(IDENTITY + element(0x00280010, "US", b"\x40\0"))
    data = head + element(0x7FE00010, "OW", bytes(5 * MIB))
    stream = Counting(data)
    found = read_header(stream, len(data), max_deflated_bytes=MIB)
    assert found.pixel_offset == len(head)
    assert stream.count < 128 * 1024
    assert found.warnings == []


def test_typed_values_of_a_real_file():
    found = header_of(small())
    assert found.values["SOPInstanceUID"] == "1.3.6.1.4.1.5962.1.1.4.1.1.20040826185059.5457"
    assert found.values["PatientName"] == "CompressedSamples^MR1"
    assert found.values["StudyDate"].isoformat() == "2004-08-26"
    assert found.values["Rows"] == 64
    assert found.values["NumberOfFrames"] is None
    assert found.values["TransferSyntaxUID"] == found.transfer_syntax == ExplicitVRLittleEndian
    assert found.warnings == []


def test_a_value_that_does_not_fit_is_none_and_named_by_keyword_only():
    data = part_10(IDENTITY + element(0x00080020, "DA", b"26/08/04") + element(0x00280008, "IS", b"ten "))
    found = header_of(data)
    assert found.values["StudyDate"] is None
    assert found.values["NumberOfFrames"] is None
    assert {"value_not_date: StudyDate", "value_not_integer: NumberOfFrames"} <= set(found.warnings)
    assert json.loads(found.meta)["00080020"]["Value"] == ["26/08/04"]
    assert "26/08" not in " ".join(found.warnings)


def test_elements_behind_the_pixel_data_are_in_meta():
    tail = element(0xFFFCFFFC, "OB", bytes(4))
    native = part_10(IDENTITY + element(0x7FE00010, "OW", bytes(64)) + tail)
    fragments = struct.pack("<HHL", 0xFFFE, 0xE000, 0) + struct.pack("<HHL", 0xFFFE, 0xE000, 6) + b"abcdef" + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    encapsulated = part_10(IDENTITY + b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + fragments + tail, JPEG2000Lossless)
    for data in (native, encapsulated):
        assert "FFFCFFFC" in json.loads(header_of(data).meta)
        assert assert_equal_to_pydicom(data)


def test_long_binary_values_are_references_at_any_depth_and_short_ones_inline():
    item = Dataset()
    item.add_new(0x54001010, "OW", bytes(2000))
    item.add_new(0x00091010, "UN", bytes(1024))
    dataset = Dataset()
    dataset.SOPClassUID = dataset.SOPInstanceUID = "1.2.3"
    dataset.WaveformSequence = Sequence([Dataset(), item])
    dataset.EncapsulatedDocument = bytes(1026)
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=False, little_endian=True)
    found = header_of(buffer.getvalue())
    model = json.loads(found.meta)
    assert model["00420011"] == {"vr": "OB", "BulkDataURI": "bulkdata/00420011"}
    assert model["54000100"]["Value"][1]["54001010"] == {"vr": "OW", "BulkDataURI": "bulkdata/54000100/1/54001010"}
    assert len(b64decode(model["54000100"]["Value"][1]["00091010"]["InlineBinary"])) == 1024


def test_a_binary_value_too_long_to_load_stays_in_the_file_and_can_be_fetched():
    document = bytes(range(256)) * 8192
    data = part_10(IDENTITY + element(0x00420011, "OB", document) + element(0x00420012, "LO", b"application/pdf "))
    found = header_of(data)
    assert json.loads(found.meta)["00420011"] == {"vr": "OB", "BulkDataURI": "bulkdata/00420011"}
    assert json.loads(found.meta)["00420012"]["Value"] == ["application/pdf"]
    assert found.dataset.EncapsulatedDocument == document
    assert found.warnings == []


def test_a_long_text_is_loaded_all_the_same():
    data = part_10(IDENTITY + element(0x0040A160, "UT", b"x" * (2 * MIB)) + element(0x00420012, "LO", b"text/plain"))
    assert json.loads(header_of(data).meta)["0040A160"]["Value"] == ["x" * (2 * MIB)]
    assert assert_equal_to_pydicom(data)


def test_a_header_above_16_mib_is_not_kept_and_flagged():
    data = part_10(IDENTITY + element(0x00420011, "OB", bytes(17 * MIB)))
    found = header_of(data)
    assert found.header is None
    assert "header_too_large" in found.warnings


def test_numbers_that_json_cannot_hold_are_words_and_flagged():
    data = part_10(
        IDENTITY + element(0x00189074, "DT", b"") + element(0x00281052, "DS", b"NaN ") + element(0x00720074, "FD", struct.pack("<2d", 1.5, -math.inf))
    )
    found = header_of(data)
    model = json.loads(found.meta, parse_constant=lambda word: pytest.fail(word))
    assert model["00281052"]["Value"] == ["NaN"]
    assert model["00720074"]["Value"] == [1.5, "-Infinity"]
    assert "number_not_finite: (0028,1052)" in found.warnings


def test_control_characters_are_escaped():
    found = header_of(part_10(IDENTITY + element(0x00081030, "LO", b"a\0b\x07c\r\nd")))
    assert "\\u0000" in found.meta
    assert "\\u0007" in found.meta
    assert json.loads(found.meta)["00081030"]["Value"] == ["a\0b\x07c\r\nd"]


def test_group_0002_is_in_file_meta_only():
    found = header_of(small())
    assert json.loads(found.file_meta)["00020010"]["Value"] == [ExplicitVRLittleEndian]
    assert not any(tag.startswith("0002") for tag in json.loads(found.meta))


def test_two_elements_of_one_tag_and_elements_out_of_order_are_flagged():
    data = part_10(IDENTITY + PATIENT + element(0x00100020, "LO", b"ID2 ") + element(0x00080060, "CS", b"CT"))
    found = header_of(data)
    assert found.values["PatientID"] == "ID2"
    assert {"element_repeated: (0010,0020)", "elements_out_of_order"} <= set(found.warnings)
    assert assert_equal_to_pydicom(data)


# Where data sets begin and how they are encoded


def without_meta(implicit_vr, little):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality, dataset.Rows = "1.2.840.10008.5.1.4.1.1.7", "1.2.3", "OT", 7
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit_vr, little_endian=little)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("implicit_vr", "little", "uid"),
    [(True, True, ImplicitVRLittleEndian), (False, True, ExplicitVRLittleEndian), (False, False, ExplicitVRBigEndian)],
)
def test_a_bare_data_set_is_read_in_the_encoding_that_its_bytes_show(implicit_vr, little, uid):
    data = without_meta(implicit_vr, little)
    found = header_of(data)
    assert found.transfer_syntax == found.values["TransferSyntaxUID"] == uid
    assert found.values["Rows"] == 7
    assert found.file_meta is None
    assert {"no_preamble", "no_file_meta"} <= set(found.warnings)
    assert assert_equal_to_pydicom(data)


def test_implicit_big_endian_is_read():
    data = implicit(0x00080016, b"1.2.840.10008.5.1.4.1.1.7\0", ">") + implicit(0x00080018, b"1.2.3.4\0", ">") + implicit(0x00280010, b"\0\7", ">")
    assert header_of(data).values["Rows"] == 7
    assert header_of(part_10(data, pydicom.uid.UID("1.2.840.113619.5.2"))).values["Rows"] == 7


def test_a_preamble_behind_junk_and_a_prefix_at_zero_are_found():
    data = small()
    whole = header_of(data)
    behind = header_of(b"\xabjunk" * 100 + data, dataset_offset=500, flags=("dicom_at_offset_500",))
    assert behind.meta == whole.meta
    assert behind.pixel_offset == whole.pixel_offset + 500
    assert behind.warnings == ["dicom_at_offset_500"]
    for offset in (0, 4):
        at_zero = header_of(data[128:], dataset_offset=offset, flags=("no_preamble", "dicm_at_zero"))
        assert at_zero.meta == whole.meta
        assert at_zero.warnings == ["no_preamble", "dicm_at_zero"]


def redeclared(data, old, new):
    return data.replace(old.encode() + b"\0" * (len(old) % 2), new.encode() + b"\0" * (len(old) % 2), 1)


def test_a_declared_encoding_that_is_not_the_real_one_is_corrected_and_flagged():
    explicit_body = IDENTITY + PATIENT + element(0x00280010, "US", b"\x07\0")
    implicit_body = implicit(0x00080016, b"1.2.3\0") + implicit(0x00080018, b"1.2.3.4\0") + implicit(0x00280010, b"\x07\0")
    big_body = element(0x00080016, "UI", b"1.2.3\0", ">") + element(0x00080018, "UI", b"1.2.3.4\0", ">") + element(0x00280010, "US", b"\0\x07", ">")
    for body, declared, really in [
        (explicit_body, ImplicitVRLittleEndian, ExplicitVRLittleEndian),
        (implicit_body, ExplicitVRLittleEndian, ImplicitVRLittleEndian),
        (explicit_body, ExplicitVRBigEndian, ExplicitVRLittleEndian),
        (big_body, ExplicitVRLittleEndian, ExplicitVRBigEndian),
    ]:
        found = header_of(part_10(body, declared))
        assert found.values["Rows"] == 7
        assert found.transfer_syntax == really
        assert found.values["TransferSyntaxUID"] == declared
        assert [word for word in found.warnings if word.startswith("transfer_syntax_wrong: really ")]


def test_native_pixels_declared_as_compressed_and_the_reverse_are_noticed():
    native = element(0x7FE00010, "OW", bytes(64))
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0)
    codestream = b"\xff\xd8\xff\xf7\0\x04ab\xff\xd9"
    fragments = item + struct.pack("<HHL", 0xFFFE, 0xE000, len(codestream)) + codestream + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    encapsulated = b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff" + fragments
    assert header_of(part_10(IDENTITY + native, JPEG2000Lossless)).transfer_syntax == ExplicitVRLittleEndian
    assert header_of(part_10(IDENTITY + native)).warnings == []
    found = header_of(part_10(IDENTITY + encapsulated))
    assert found.transfer_syntax == "1.2.840.10008.1.2.4.81"
    assert found.warnings == ["transfer_syntax_wrong: really encapsulated"]
    assert header_of(part_10(IDENTITY + encapsulated, pydicom.uid.JPEGLSLossless)).warnings == []


def test_a_private_transfer_syntax_is_kept_and_flagged():
    found = header_of(part_10(IDENTITY, pydicom.uid.UID("1.2.3.4.5.6.7.8.9")))
    assert found.transfer_syntax == "1.2.3.4.5.6.7.8.9"
    assert found.warnings == ["transfer_syntax_unknown"]


# Deflated


def deflated(body):
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return part_10(packer.compress(body) + packer.flush(), DeflatedExplicitVRLittleEndian)


def test_a_deflated_data_set_is_inflated_and_its_header_is_the_files_own_bytes():
    pixels = bytes(random.Random(1).randbytes(4096))
    data = deflated(IDENTITY + PATIENT + element(0x7FE00010, "OW", pixels))
    found = header_of(data)
    assert found.header == data
    assert found.stream.getbuffer()[found.pixel_offset + 12 :] == pixels
    assert found.stream_length == found.pixel_offset + 12 + 4096
    assert found.transfer_syntax == DeflatedExplicitVRLittleEndian
    assert assert_equal_to_pydicom(data)


def test_a_cut_deflated_data_set_keeps_what_was_inflated():
    data = deflated(IDENTITY + PATIENT + element(0x7FE00010, "OW", random.Random(2).randbytes(4096)))
    found = header_of(data[:-2000])
    assert found.values["PatientID"] == "ID1"
    assert {"deflate_truncated", "pixel_data_truncated"} <= set(found.warnings)


def test_a_damaged_deflated_data_set_is_named_so():
    assert read(part_10(b"\xff" * 100, DeflatedExplicitVRLittleEndian)).code == "deflate_corrupt"


def test_a_deflate_bomb_is_stopped_by_size_and_by_ratio():
    data = deflated(IDENTITY + element(0x7FE00010, "OW", bytes(40 * MIB)))
    too_large = Unreadable("deflated_too_large", "The deflated data set expands beyond the limits.", "limit_exceeded")
    assert read(data, max_deflated_bytes=MIB, max_ratio=1e9) == too_large
    assert read(data, max_deflated_bytes=64 * MIB, max_ratio=200.0) == too_large
    assert isinstance(read(data, max_deflated_bytes=64 * MIB, max_ratio=1e9), Header)


# pydicom's silences


def test_an_empty_file_and_a_prefix_alone_have_no_elements():
    for data in (b"", bytes(128), bytes(128) + b"DICM", small()[:200]):
        assert read(data).code == "no_elements"


def test_encapsulated_pixels_cut_short_cost_only_the_pixels():
    data = (DATA / "test_files" / "JPEG2000.dcm").read_bytes()
    cut = data[: data.index(b"\xe0\x7f\x10\0OB") + 200]
    found = header_of(cut)
    assert "pixel_data_truncated" in found.warnings
    assert json.loads(found.meta) == {tag: item for tag, item in json.loads(header_of(data).meta).items() if tag <= "7FE00010"}
    assert by_pydicom(cut) is None


def test_native_pixels_cut_short_cost_only_the_pixels():
    data = small()
    found = header_of(data[:-4000])
    assert found.warnings == ["pixel_data_truncated"]
    assert found.values["Rows"] == 64


def test_a_file_cut_anywhere_keeps_the_elements_before_the_cut():
    data = small()
    end = data.index(b"\xe0\x7f\x10\x00OW")
    whole = json.loads(header_of(data).meta)
    counts = []
    for cut in range(400, end, 37):
        found = read(data[:cut])
        assert_sound(found, data)
        model = json.loads(found.meta) if isinstance(found, Header) else {}
        counts.append(len(model))
        assert all(model[tag] == whole[tag] for tag in list(model)[:-1])
    assert counts == sorted(counts)
    assert counts[-1] > 60


def test_a_sequence_without_its_delimiter_keeps_its_items_and_what_came_before():
    item = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + element(0x00080100, "SH", b"CODE") + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    data = part_10(IDENTITY + struct.pack("<HH2sHL", 0x0008, 0x1032, b"SQ", 0, 0xFFFFFFFF) + item + item)
    found = header_of(data)
    assert [one["00080100"]["Value"] for one in json.loads(found.meta)["00081032"]["Value"]] == [["CODE"], ["CODE"]]
    assert found.warnings == ["sequence_truncated: (0008,1032)"]
    assert found.values["SOPInstanceUID"] == "1.2.3.4"


def nested(levels, *, defined):
    body = element(0x00080100, "SH", b"DEEP")
    for _ in range(levels):
        if defined:
            body = element(0x0040A730, "SQ", struct.pack("<HHL", 0xFFFE, 0xE000, len(body)) + body)
        else:
            inner = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + body + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
            body = struct.pack("<HH2sHL", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + inner + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    return part_10(IDENTITY + body + element(0x00400000 + 0xDB00, "CS", b"LAST"))


def depth_of(model):
    depth = 0
    while "0040A730" in model and model["0040A730"].get("Value"):
        model, depth = model["0040A730"]["Value"][0], depth + 1
    return depth, model


@pytest.mark.parametrize("defined", [True, False])
def test_a_nesting_that_pydicom_can_read_is_read_in_full(defined):
    data = nested(150, defined=defined)
    assert assert_equal_to_pydicom(data)
    assert depth_of(json.loads(header_of(data).meta))[1]["00080100"]["Value"] == ["DEEP"]


@pytest.mark.parametrize("levels", [300, 3000])
@pytest.mark.parametrize("defined", [True, False])
def test_a_deeper_nesting_is_kept_as_bytes_and_costs_nothing_else(defined, levels):
    found = header_of(nested(levels, defined=defined))
    model = json.loads(found.meta)
    depth, innermost = depth_of(model)
    assert depth == 250
    assert innermost["0040A730"]["vr"] == "UN"
    assert model["0040DB00"]["Value"] == ["LAST"]
    assert found.warnings == ["nesting_too_deep: (0040,A730)"]


def test_an_element_that_pydicom_cannot_convert_is_kept_as_bytes_and_named():
    wrong_length = element(0x00280010, "US", b"\7\0\1")
    unknown_vr = b"\x28\0\x11\0ZZ\x02\0\x08\0"
    text_number = element(0x00281053, "DS", b"1,5 ")
    data = part_10(IDENTITY + wrong_length + unknown_vr + text_number + element(0x00400000 + 0xDB00, "CS", b"LAST"))
    found = header_of(data)
    model = json.loads(found.meta)
    assert model["00280010"] == {"vr": "UN", "InlineBinary": "BwAB"}
    assert model["00280011"] == {"vr": "UN", "InlineBinary": "CAA="}
    assert model["0040DB00"]["Value"] == ["LAST"]
    assert {"element_unreadable: (0028,0010)", "element_unreadable: (0028,0011)", "value_not_integer: Rows"} <= set(found.warnings)
    assert found.values["Rows"] is None
    assert by_pydicom(data) is None


def test_such_an_element_within_a_sequence_costs_only_itself():
    body = element(0x00280010, "US", b"\7\0\1") + element(0x00280011, "US", b"\x08\0")
    sequence = element(0x00081140, "SQ", struct.pack("<HHL", 0xFFFE, 0xE000, len(body)) + body)
    found = header_of(part_10(IDENTITY + sequence))
    item = json.loads(found.meta)["00081140"]["Value"][0]
    assert item["00280010"]["vr"] == "UN"
    assert item["00280011"]["Value"] == [8]
    assert found.warnings == ["element_unreadable: (0028,0010)"]


def test_a_damaged_pixel_representation_costs_no_sequence():
    sequence = element(0x00081140, "SQ", item(element(0x00081155, "UI", b"1.2.3\0")))
    damaged = element(0x00280103, "US", b"\0\0\1")
    data = part_10(IDENTITY + sequence + damaged + element(0x00400275, "SQ", b""))
    for found in (header_of(data), read_by_pydicom(io.BytesIO(data), len(data), 0, (), MIB, 200.0)):
        model = json.loads(found.meta)
        assert model["00081140"]["Value"] == [{"00081155": {"vr": "UI", "Value": ["1.2.3"]}}]
        assert model["00400275"] == {"vr": "SQ", "Value": []}
        assert found.values["ReferencedSOPInstanceUIDs"] == ["1.2.3"]
        assert found.warnings == ["element_unreadable: (0028,0103)", "value_not_integer: PixelRepresentation"]


def test_a_damaged_private_creator_costs_no_sequence_of_its_block():
    creator = element(0x00090010, "US", b"\0\0\1")
    data = part_10(IDENTITY + creator + element(0x00091001, "SQ", item(PATIENT)))
    found = read_by_pydicom(io.BytesIO(data), len(data), 0, (), MIB, 200.0)
    assert json.loads(found.meta)["00091001"]["Value"] == [{"00100020": {"vr": "LO", "Value": ["ID1"]}}]
    assert found.warnings == ["element_unreadable: (0009,0010)"]


def test_damaged_bits_allocated_cost_nothing_but_themselves():
    for uid, write in ((ExplicitVRLittleEndian, lambda tag, value: element(tag, "UN", value)), (ImplicitVRLittleEndian, implicit)):
        identity = write(0x00080016, b"1.2.840.10008.5.1.4.1.1.7\0") + write(0x00080018, b"1.2.3.4\0")
        data = part_10(identity + write(0x00280100, b"\0\0\1") + write(0x7FE00010, bytes(4)), uid)
        found = read_by_pydicom(io.BytesIO(data), len(data), 0, (), MIB, 200.0)
        assert json.loads(found.meta)["7FE00010"]["BulkDataURI"] == "bulkdata/7FE00010"
        assert "element_unreadable: (0028,0100)" in found.warnings


def test_a_value_left_in_the_file_hides_no_other_of_its_sequence():
    uid, icon = element(0x00081155, "UI", b"1.2.3\0"), element(0x00091001, "OB", bytes(2 * MIB))
    endless = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + uid + icon + struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
    sequence = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + endless + struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
    data = part_10(IDENTITY + sequence)
    found = read_by_pydicom(io.BytesIO(data), len(data), 0, (), MIB, 200.0)
    assert found.values["ReferencedSOPInstanceUIDs"] == ["1.2.3"]
    assert found.warnings == []


def test_a_part_of_a_file_that_was_never_written_is_passed_over():
    class Counting(io.BytesIO):
        count = 0

        def read(self, size=-1):
            self.count += 1
            return super().read(size)

    stream = Counting(part_10(IDENTITY + bytes(8 * MIB) + PATIENT))
    found = read_by_pydicom(stream, len(stream.getvalue()), 0, (), MIB, 200.0)
    assert json.loads(found.meta)["00100020"]["Value"] == ["ID1"]
    assert found.warnings == ["elements_out_of_order", "element_repeated: (0000,0000)"]
    assert stream.count < 200


def test_a_sequence_that_was_not_written_to_its_end_keeps_its_items_only():
    for length, value in ((0xFFFFFFFF, item(PATIENT) + bytes(MIB)), (18 + MIB, item(PATIENT) + bytes(MIB))):
        found = header_of(part_10(IDENTITY + struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, length) + value))
        assert json.loads(found.meta)["00081140"]["Value"] == [{"00100020": {"vr": "LO", "Value": ["ID1"]}}]
        assert "sequence_truncated: (0008,1140)" in found.warnings


def test_an_element_whose_length_runs_past_the_end_is_flagged_and_allocates_nothing():
    for length in (1000, 0xFFFFFFF0):
        data = part_10(IDENTITY + struct.pack("<HH2sHL", 0x0042, 0x0011, b"OB", 0, length) + b"abcd")
        found = header_of(data)
        assert found.warnings == ["element_truncated: (0042,0011)"]
        assert json.loads(found.meta)["00420011"]["InlineBinary"] == "YWJjZA=="
        assert assert_equal_to_pydicom(data)


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><head><title>x</title></head><body>" + b"<p>text</p>" * 50 + b"</body></html>",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4,
        b"A" * 128 + b"DICM is a word in this text, and more text follows so that it looks long enough to be something.",
    ],
)
def test_what_is_not_dicom_is_not_forced_to_be(data):
    assert read(data).code == "no_elements"


def test_character_sets_are_decoded_as_pydicom_does_and_oddities_flagged():
    unknown = part_10(element(0x00080005, "CS", b"ISO_IR 999") + IDENTITY + element(0x00100010, "PN", b"M\xfcller"))
    wrong = part_10(element(0x00080005, "CS", b"ISO_IR 192") + IDENTITY + element(0x00100010, "PN", b"M\xfcller"))
    for data, word in ((unknown, "charset_unknown"), (wrong, "charset_wrong")):
        found = header_of(data)
        assert word in found.warnings
        assert found.values["PatientName"]
        assert assert_equal_to_pydicom(data)


def test_a_character_set_that_makes_python_raise_costs_only_itself():
    item = element(0x00080005, "CS", b"IS\0_IR 192 ") + element(0x00080104, "LO", b"M\xfcll")
    sequence = element(0x00081032, "SQ", struct.pack("<HHL", 0xFFFE, 0xE000, len(item)) + item)
    found = header_of(part_10(element(0x00080005, "CS", b"IS\0_IR 100 ") + IDENTITY + sequence + element(0x00100010, "PN", b"M\xfcll")))
    assert found.warnings == ["charset_unknown"]
    assert found.values["PatientName"] == "Müll"


def test_nothing_is_warned_or_logged_about_values(caplog, recwarn):
    data = part_10(
        element(0x00080005, "CS", b"SECRET ") + IDENTITY + element(0x00100010, "PN", b"SECRET^\xff") + element(0x00281053, "DS", b"SECRET")
    )
    with caplog.at_level("DEBUG"):
        found = header_of(data)
    assert "SECRET" not in caplog.text
    assert len(recwarn) == 0
    assert "SECRET" not in " ".join(found.warnings)


def test_pydicoms_configuration_is_left_as_it_was():
    before = (pydicom.config.settings.reading_validation_mode, pydicom.config.settings.writing_validation_mode, pydicom.config.logger.disabled)
    read(small())
    read(b"")
    assert (
        pydicom.config.settings.reading_validation_mode,
        pydicom.config.settings.writing_validation_mode,
        pydicom.config.logger.disabled,
    ) == before


def test_a_file_that_goes_wrong_everywhere_has_a_bounded_list_of_warnings():
    body = b"".join(element(0x00091000 + number, "US", b"abc") for number in range(200))
    found = header_of(part_10(IDENTITY + body))
    assert len(found.warnings) == 101
    assert found.warnings[-1] == "more_warnings"


def test_every_damaged_file_gives_a_sound_result():
    dice = random.Random(20260101)
    names = (
        "MR_small.dcm",
        "CT_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "JPEG2000.dcm",
        "UN_sequence.dcm",
        "chrH32.dcm",
        "rtplan.dcm",
    )
    sources = [path.read_bytes()[:6000] for name in names for path in DATA.rglob(name)]
    sources += [nested(20, defined=True), nested(20, defined=False), deflated(IDENTITY + PATIENT)]
    assert len(sources) > 8
    for turn in range(600):
        data = bytearray(sources[turn % len(sources)])
        for _ in range(dice.randint(1, 12)):
            at = dice.randrange(128, len(data))
            match dice.randrange(4):
                case 0:
                    data[at] ^= 1 << dice.randrange(8)
                case 1:
                    data[at : at + 4] = dice.randbytes(4)
                case 2:
                    del data[at : at + dice.randrange(1, 9)]
                case _:
                    data[at:at] = dice.choice([b"\xff\xff\xff\xff", b"\xfe\xff\x00\xe0", b"SQ\0\0\xff\xff\xff\xff", b"\0\0\0\0", b"\\"])
        assert_sound(read(bytes(data)), bytes(data))


def test_damage_that_pydicom_survives_changes_nothing_of_the_equality():
    """Single flipped bits within values leave the structure alone: both read them, and both say the same."""
    dice = random.Random(7)
    data = small()
    end = data.index(b"\xe0\x7f\x10\x00OW")
    compared = 0
    for _ in range(150):
        damaged = bytearray(data)
        damaged[dice.randrange(340, end)] ^= 1 << dice.randrange(7)
        found, reference = read(bytes(damaged)), by_pydicom(bytes(damaged))
        assert_sound(found, bytes(damaged))
        if reference is not None and isinstance(found, Header) and not [word for word in found.warnings if word.startswith("transfer_syntax")]:
            assert json.loads(found.meta) == reference[0]
            compared += 1
    assert compared > 100


def test_a_written_data_set_with_every_kind_of_value_equals_pydicom():
    dataset = FileDataset("", Dataset(), preamble=bytes(128), file_meta=FileMetaDataset())
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    dataset.OtherPatientNames = ["A^B", "C^D"]
    dataset.PixelSpacing = ["0.5", "0.25"]
    dataset.FrameIncrementPointer = [0x00181063, 0x00181065]
    dataset.ImageType = ["ORIGINAL", "PRIMARY", ""]
    dataset.SeriesNumber = None
    dataset.PixelRepresentation = 1
    dataset.SmallestImagePixelValue = -5
    dataset.SelectorSVValue = -(2**62)
    dataset.SelectorFDValue = [1.25, -2.5]
    dataset.ReferencedImageSequence = Sequence([])
    dataset.add_new(0x00090010, "LO", "MAKER")
    dataset.add_new(0x00091001, "SQ", Sequence([Dataset()]))
    for uid, implicit_vr, little in (
        (ExplicitVRLittleEndian, False, True),
        (ImplicitVRLittleEndian, True, True),
        (ExplicitVRBigEndian, False, False),
    ):
        dataset.file_meta.TransferSyntaxUID = uid
        buffer = io.BytesIO()
        pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit_vr, little_endian=little, enforce_file_format=True)
        assert assert_equal_to_pydicom(buffer.getvalue())


def test_importing_the_reader_brings_in_no_table_or_workflow_library():
    code = "import sys, pixels_assets.dicom.reader; print([n for n in ('polars','pyarrow','deltalake','dagster','duckdb') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
