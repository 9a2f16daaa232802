"""What a byte stream is depends on its content alone, and nothing that a stream holds makes the question fail."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from pixels_assets.intake.filetype import ARCHIVE_TYPES, COMPRESSED_TYPES, DICOM_TYPES, FileType, identify

CORPUS = os.environ.get("PIXELS_CORPUS")
SOP_CLASS = b"1.2.840.10008.5.1.4.1.1.4\0"
SOP_INSTANCE = b"1.2.826.0.1.3680043.8.498.1\0"
LONG_VRS = ("OB", "OW", "SQ", "UN")
EXECUTABLES = [b"MZ\x90\0" + b"\0" * 200, b"\x7fELF\x02\x01\x01" + b"\0" * 200]


def kind(data, length=None):
    """Identify bytes, and check that the stream is left where it was found."""
    stream = io.BytesIO(data)
    found = identify(stream, len(data) if length is None else length)
    assert stream.tell() == 0
    return found


def element(tag, vr, value, order="<"):
    """One data element; without VR when that is None."""
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if vr is None:
        return head + struct.pack(order + "I", len(value)) + value
    if vr in LONG_VRS:
        return head + vr.encode() + struct.pack(order + "HI", 0, len(value)) + value
    return head + vr.encode() + struct.pack(order + "H", len(value)) + value


def data_set(vr="explicit", order="<", before=b""):
    """The head of a data set as files without file meta information have it."""
    vrs = ("CS", "UI", "UI", "DA", "PN") if vr == "explicit" else (None,) * 5
    tags = (0x00080005, 0x00080016, 0x00080018, 0x00080020, 0x00100010)
    values = (b"ISO_IR 100", SOP_CLASS, SOP_INSTANCE, b"20200101", b"Doe^Jane")
    elements = [element(*row, order) for row in zip(tags, vrs, values, strict=True)]
    return elements[0] + before + b"".join(elements[1:]) + b"\1\2" * 500


def file_meta(vr="explicit", sop_class=SOP_CLASS):
    ui, ob = ("UI", "OB") if vr == "explicit" else (None, None)
    body = element(0x00020001, ob, b"\0\1") + element(0x00020002, ui, sop_class) + element(0x00020003, ui, SOP_INSTANCE)
    body += element(0x00020010, ui, b"1.2.840.10008.1.2.1\0")
    return element(0x00020000, "UL" if ui else None, struct.pack("<I", len(body))) + body


def zipped(member=b"content", mode=zipfile.ZIP_STORED, comment=b""):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", mode) as archive:
        archive.writestr("member", member)
        archive.comment = comment
    return stream.getvalue()


def tarred(tar_format=tarfile.PAX_FORMAT, name="member"):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as archive:
        info = tarfile.TarInfo(name)
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    return stream.getvalue()


def image(image_format):
    stream = io.BytesIO()
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(stream, image_format)
    return stream.getvalue()


PART_10 = Path(get_testdata_file("MR_small.dcm")).read_bytes()


def test_a_dicom_file_is_dicom_from_its_first_byte():
    assert kind(PART_10) == FileType("dicom", 0)


def test_no_bytes_are_an_empty_file_whatever_its_length_is_said_to_be():
    assert kind(b"") == kind(b"", length=1000) == FileType("empty")


@pytest.mark.parametrize("name", ["DICOMDIR", "DICOMDIR-bigEnd", "DICOMDIR-implicit"])
def test_a_dicom_directory_is_told_from_other_dicom_files(name):
    path = Path(get_testdata_file("MR_small.dcm")).parent / "dicomdirtests" / name
    assert kind(path.read_bytes()) == FileType("dicomdir", 0)


def test_the_uid_of_a_directory_elsewhere_in_a_file_does_not_make_it_one():
    data = bytes(128) + b"DICM" + file_meta() + data_set(before=element(0x00080006, "UI", b"1.2.840.10008.1.3.10"))
    assert kind(data).name == "dicom"


def test_a_directory_without_file_meta_information_is_still_one():
    records = element(0x00041130, "CS", b"SET ") + element(0x00041200, "UL", bytes(4))
    assert kind(bytes(128) + b"DICM" + records) == FileType("dicomdir", 0, ("no_file_meta",))
    assert kind(file_meta(sop_class=b"1.2.840.10008.1.3.10") + records) == FileType("dicomdir", 0, ("no_preamble",))


@pytest.mark.parametrize(
    ("preamble", "flags"),
    [
        (b"II*\0\x08\0\0\0", ()),
        (b"MM\0*\0\0\0\x08", ()),
        (b"MZ\x90\0", ("executable_preamble",)),
        (b"\x7fELF", ("executable_preamble",)),
        (b"#!/bin/sh\n", ("executable_preamble",)),
        (b"%PDF-1.4\n", ("pdf_preamble",)),
        (b"PK\x03\x04", ()),
        (b"\x1f\x8b\x08\0", ()),
    ],
)
def test_a_dicom_file_stays_dicom_whatever_its_preamble_holds(preamble, flags):
    assert kind(preamble.ljust(128, b"\0") + PART_10[128:]) == FileType("dicom", 0, flags)


def test_a_dicom_file_with_a_zip_behind_it_is_dicom():
    data = PART_10 + zipped()
    assert zipfile.is_zipfile(io.BytesIO(data))
    assert kind(data) == FileType("dicom", 0)


def test_text_with_dicm_at_byte_128_is_text():
    assert kind(b"A" * 128 + b"DICM is only a word in this text file.\n").name == "text"
    assert kind(b"A" * 128 + b"DICM").name == "text"
    assert kind(b"A" * 128 + b"DICMx").name == "text"


@pytest.mark.parametrize("damage", [(b"0", b"8"), (b"ustar", b"USTAR")])
def test_a_tar_header_with_a_wrong_checksum_is_not_tar(damage):
    assert kind(tarred(tarfile.USTAR_FORMAT)[:1024].replace(*damage)).name == "unknown"


def test_noise_with_dicm_at_byte_128_is_not_dicom():
    noise = bytes(np.random.default_rng(1).integers(0, 256, 4000, dtype=np.uint8))
    assert kind(noise[:128] + b"DICM" + noise[132:]).name == "unknown"
    assert kind(bytes(128) + b"DICM" + bytes(2000)).name == "unknown"


@pytest.mark.parametrize("vr", ["explicit", "implicit"])
def test_file_meta_information_may_have_either_kind_of_vr(vr):
    assert kind(bytes(128) + b"DICM" + file_meta(vr) + data_set()) == FileType("dicom", 0)


def test_a_damaged_first_element_does_not_hide_a_dicom_file():
    assert kind(PART_10[:132] + b"\xff\xff" + PART_10[134:]) == FileType("dicom", 0)


@pytest.mark.parametrize("cut", range(132, 140))
def test_a_dicom_file_cut_off_in_its_first_element_is_dicom(cut):
    assert kind(PART_10[:cut]).name == "dicom"


@pytest.mark.parametrize(("vr", "order"), [("explicit", "<"), ("implicit", "<"), ("explicit", ">")])
def test_a_data_set_directly_behind_the_preamble_is_flagged(vr, order):
    assert kind(bytes(128) + b"DICM" + data_set(vr, order)) == FileType("dicom", 0, ("no_file_meta",))


@pytest.mark.parametrize(("vr", "order"), [("explicit", "<"), ("implicit", "<"), ("explicit", ">")])
def test_a_data_set_without_preamble_and_file_meta_information_is_flagged(vr, order):
    assert kind(data_set(vr, order)) == FileType("dicom", 0, ("no_preamble", "no_file_meta"))


@pytest.mark.parametrize("vr", ["explicit", "implicit"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_file_meta_information_without_preamble_is_flagged(vr, order):
    assert kind(file_meta(vr) + data_set("explicit", order)) == FileType("dicom", 0, ("no_preamble",))


def test_a_transfer_syntax_in_file_meta_information_is_evidence_enough():
    data = element(0x00020010, "UI", b"1.2.840.10008.1.2.4.80") + element(0x00080016, "UI", SOP_CLASS) + element(0x00280010, "US", b"\1\0")
    assert kind(data) == FileType("dicom", 0, ("no_preamble",))


@pytest.mark.parametrize("vr", ["explicit", "implicit"])
def test_sequences_before_the_sop_class_are_passed(vr):
    item = element(0x00080100, "SH" if vr == "explicit" else None, b"en")
    inner_uid = element(0x00080018, "UI" if vr == "explicit" else None, b"9.9")
    ends = (b"\xfe\xff\x0d\xe0" + bytes(4), b"\xfe\xff\xdd\xe0" + bytes(4))
    head = b"\x08\0\x06\0" + (b"SQ\0\0" if vr == "explicit" else b"")
    undefined = head + b"\xff" * 4 + b"\xfe\xff\0\xe0" + b"\xff" * 4 + item + inner_uid + ends[0] + ends[1]
    content = b"\xfe\xff\0\xe0" + struct.pack("<I", len(item)) + item
    defined = head + struct.pack("<I", len(content)) + content
    for sequence in (undefined, defined):
        assert kind(data_set(vr, before=sequence)).name == "dicom"


def test_a_data_set_with_much_before_its_uids_is_found():
    before = element(0x00080008, "UN", bytes(50_000))
    assert kind(data_set(before=before)).name == "dicom"


@pytest.mark.parametrize(
    "data",
    [
        data_set().replace(SOP_INSTANCE, b"not a uid at all, but text \0"),
        data_set().replace(SOP_CLASS, b"MR Image Storage".ljust(26)),
        data_set().replace(SOP_INSTANCE, b"1".ljust(len(SOP_INSTANCE), b"\0")),
        element(0x00080016, "UI", SOP_CLASS) + element(0x00080020, "DA", b"20200101"),
        element(0x00080018, "UI", SOP_INSTANCE) + element(0x00080016, "UI", SOP_CLASS),
        element(0x00100010, "PN", b"Doe^Jane") + data_set(),
        b" " + data_set(),
        bytes(64) + data_set(),
    ],
)
def test_a_data_set_without_plausible_uids_at_its_beginning_is_not_taken_for_dicom(data):
    assert kind(data).name not in DICOM_TYPES


def test_dicm_at_byte_0_is_dicom_from_behind_it():
    assert kind(PART_10[128:]) == FileType("dicom", 4, ("no_preamble", "dicm_at_zero"))
    assert kind(b"DICM" + data_set()) == FileType("dicom", 4, ("no_preamble", "dicm_at_zero", "no_file_meta"))
    assert kind(b"DICM is a word").name == "text"
    assert kind(b"DICM").name == "text"


@pytest.mark.parametrize("size", [1, 128, 512, 3000])
def test_a_foreign_header_before_a_dicom_file_is_flagged_with_its_size(size):
    junk = bytes(np.random.default_rng(size).integers(128, 256, size, dtype=np.uint8))
    found = kind(junk + PART_10)
    assert found == FileType("dicom", size, (f"dicom_at_offset_{size}",))
    assert (junk + PART_10)[found.dataset_offset + 128 :].startswith(b"DICM")


def test_a_dicom_file_far_into_another_is_not_looked_for():
    assert kind(b"\xff\x01" * 4000 + PART_10).name not in DICOM_TYPES


@pytest.mark.parametrize("prefix", [b"\0\x01\x02\x03" * 10, b"#!/bin/sh\nexit 1\n", *EXECUTABLES])
def test_containers_that_hold_a_dicom_file_as_it_is_are_not_dicom(prefix):
    assert kind(prefix + zipped(PART_10)).name == "zip"
    assert kind(zipped(PART_10)).name == "zip"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        info = tarfile.TarInfo("a.dcm")
        info.size = len(PART_10)
        archive.addfile(info, io.BytesIO(PART_10))
    assert kind(stream.getvalue()).name == "tar"
    assert kind(gzip.compress(PART_10, 0)).name == "gzip"


@pytest.mark.parametrize("mode", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zips_of_any_method_are_zip(mode):
    assert kind(zipped(mode=mode)) == FileType("zip")


def test_a_zip_without_members_and_one_cut_in_half_are_zip():
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    assert kind(empty.getvalue()).name == "zip"
    assert kind(zipped()[:40]).name == "zip"


def test_spanned_zips_are_zip():
    assert kind(b"PK\x07\x08" + zipped()).name == "zip"
    assert kind(b"PK00" + zipped()).name == "zip"


@pytest.mark.parametrize("prefix", [b"junk", b"\xff\xfe\xfd" * 5000, b"#!/bin/sh\nexit 1\n", b"<html></html>", *EXECUTABLES])
@pytest.mark.parametrize("comment", [b"", b"x" * 65_535])
def test_a_zip_behind_anything_without_a_type_of_its_own_is_zip(prefix, comment):
    assert kind(prefix + zipped(comment=comment)) == FileType("zip")


def test_a_prefixed_zip_whose_offsets_count_from_the_start_of_the_file_is_zip():
    stream = io.BytesIO(b"#!/bin/sh\nexit 1\n")
    with zipfile.ZipFile(stream, "a") as archive:
        archive.writestr("member", b"content")
    assert kind(stream.getvalue()).name == "zip"


def test_a_prefixed_zip64_is_zip():
    directory = b"PK\x01\x02" + bytes(42)
    record = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, len(directory), 0)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, len(directory), 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    assert kind(b"\xff\x00\xff" + directory + record + locator + end).name == "zip"


@pytest.mark.parametrize("damage", [b"PK\x01\x02", b"PK\x05\x06"])
def test_the_end_of_a_zip_without_its_directory_is_not_zip(damage):
    data = b"\xff\x01\xff" + zipped()
    assert kind(data.replace(damage, b"....")).name == "unknown"
    assert kind(data + b"more").name == "unknown"


def test_documents_with_a_zip_behind_them_stay_what_they_are():
    assert kind(image("PNG") + zipped()).name == "png"
    assert kind(b"%PDF-1.7\n" + zipped()).name == "pdf"


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_any_format_are_tar(tar_format):
    assert kind(tarred(tar_format)) == FileType("tar")
    assert kind(tarred(tar_format, "long name/" * 20)) == FileType("tar")


def test_a_tar_without_ustar_or_with_a_signed_checksum_is_tar():
    header = bytearray(512)
    header[:4] = b"na\xefv"
    header[100:107], header[124:135], header[136:147] = b"0000644", b"00000000000", b"00000000000"
    for is_signed in (False, True):
        header[148:156] = b" " * 8
        checksum = sum(byte - 256 if is_signed and byte > 127 else byte for byte in header)
        header[148:156] = b"%06o\0 " % checksum
        assert kind(bytes(header) + bytes(1024)).name == "tar"
    header[0] += 1
    assert kind(bytes(header) + bytes(1024)).name != "tar"


def test_zeros_are_an_empty_tar_only_in_the_sizes_that_programs_write():
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    assert kind(empty.getvalue()).name == "tar"
    assert kind(bytes(1024)).name == "tar"
    for size in (1, 128, 512, 1000, 2048, 10_241, 524_288):
        assert kind(bytes(size)).name == "zeros"
    assert kind(bytes(100_000) + b"\x01").name == "unknown"


def test_compressed_streams_are_told_apart_whatever_they_hold():
    assert kind(gzip.compress(tarred())).name == "gzip"
    assert kind(bz2.compress(PART_10)).name == "bzip2"
    assert kind(bz2.compress(b"")).name == "bzip2"
    assert kind(lzma.compress(PART_10)).name == "xz"
    assert kind(lzma.compress(b"")).name == "xz"


@pytest.mark.parametrize(
    "data",
    [b"\x1f\x8b\x08\xff" + bytes(20), b"\x1f\x8b\x08", b"BZh91AY&S?" + bytes(20), b"BZh01AY&SY" + bytes(20), b"\xfd7zXZ\0\0\x04" + bytes(20)],
)
def test_a_magic_number_before_nonsense_is_no_compressed_stream(data):
    assert kind(data).name not in COMPRESSED_TYPES


@pytest.mark.parametrize(
    ("image_format", "name"),
    [("PNG", "png"), ("JPEG", "jpeg"), ("GIF", "gif"), ("TIFF", "tiff"), ("BMP", "bmp"), ("JPEG2000", "jp2"), ("WEBP", "webp")],
)
def test_images_have_the_names_of_their_formats(image_format, name):
    assert kind(image(image_format)) == FileType(name)


def nifti(magic, offset, size):
    header = bytearray(size + 4)
    header[:4] = struct.pack("<I", size)
    header[offset : offset + len(magic)] = magic
    return bytes(header)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", "pdf"),
        (nifti(b"n+1\0", 344, 348), "nifti"),
        (nifti(b"ni1\0", 344, 348), "nifti"),
        (nifti(b"n+2\0\r\n\x1a\n", 4, 540), "nifti"),
        (b"7z\xbc\xaf'\x1c\0\4" + bytes(24), "7z"),
        (b"Rar!\x1a\x07\x01\0", "rar"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504), "ole"),
        (b"\0\x05\x16\x07\0\x02\0\0" + b"Mac OS X        ", "appledouble"),
        (b"\0\0\0\x01Bud1\0\0\x10\0", "ds_store"),
        (b"\0\0\0\x18ftypisom", "mp4"),
        (b"RIFF\x24\0\0\0AVI LIST", "avi"),
        (b"\x89HDF\r\n\x1a\n" + bytes(8), "hdf5"),
        (bytes(32_768) + b"\1CD001\1\0" + bytes(2041), "iso"),
        (b"{\\rtf1\\ansi Hello}", "rtf"),
        (EXECUTABLES[0], "exe"),
        (EXECUTABLES[1], "elf"),
        (b"fLaC\0\0\0\x22", "flac"),  # from here on by the library
        (b"OggS\0\x02" + bytes(20), "ogg"),
    ],
)
def test_other_formats_have_short_stable_names(data, name):
    assert kind(data) == FileType(name)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (b"Hello\r\n\tWorld\n", "text"),
        ("Grüße aus 東京\n".encode(), "text"),
        ("Grüße".encode("latin-1"), "text"),
        ("Grüße".encode("utf-16"), "text"),
        ("\ufeffGrüße".encode(), "text"),
        (b"x", "text"),
        (b"[autorun]\r\nopen=viewer.exe\r\n", "text"),
        (b"a < b\n", "text"),
        (b"<not really markup", "text"),
        (b"<!DOCTYPE html><html></html>", "html"),
        (b"\n <HTML><BODY>404</BODY></HTML>", "html"),
        (b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"/>', "html"),
        (b'<?xml version="1.0"?>\n<NativeDicomModel/>', "xml"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><a/>", "xml"),
        (b"<root><child/></root>\n", "xml"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "svg"),
        (b'{"00080060": {"vr": "CS"}}', "json"),
        (b"[1, 2]\n", "json"),
        (b"{not json}", "text"),
        (b"[" * 4000, "text"),
        (json.dumps([{"key": "value"}] * 1000).encode(), "json"),
        ("ä".encode() * 5000, "text"),
        (b"A" + "ä".encode() * 5000, "text"),
    ],
)
def test_text_is_told_by_what_it_is_written_in(text, name):
    assert kind(text) == FileType(name)


@pytest.mark.parametrize("data", [b"\0", b"\xff\xfe\xfd", b"text with\0NUL", bytes(range(256)) * 20, b"\xff\xfe\0\xd8"])
def test_bytes_that_are_nothing_known_are_unknown_or_zeros(data):
    assert kind(data).name in {"unknown", "zeros"}


def test_a_stream_that_returns_few_bytes_at_a_time_is_identified_alike():
    class Dribble(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 7))

    for data in (PART_10, b"junk" * 2000 + zipped(comment=b"c" * 3000), data_set(before=element(0x00080008, "UN", bytes(50_000)))):
        assert identify(Dribble(data), len(data)) == kind(data)


SEEDS = [
    PART_10[:600],
    PART_10[128:400],
    data_set(),
    data_set("implicit"),
    data_set(order=">"),
    file_meta() + data_set(),
    zipped(),
    b"junk" + zipped(),
    tarred()[:1536],
    gzip.compress(b"x"),
    bz2.compress(b"x"),
    lzma.compress(b"x"),
    image("PNG"),
    b'{"a": [1]}',
    b"<html>",
    b"\xff\xfea\0",
    bytes(600),
]


@given(st.binary(max_size=700), st.integers(0, 2**63))
def test_arbitrary_bytes_of_any_claimed_length_never_raise(data, length):
    assert kind(data).name
    assert kind(data, length).name


@given(
    st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 1600), st.binary(max_size=6)), max_size=6), st.integers(0, 1600), st.integers(-5, 2**40)
)
def test_damaged_files_of_every_kind_never_raise(data, changes, cut, length):
    damaged = bytearray(data)
    for position, replacement in changes:
        damaged[position : position + len(replacement)] = replacement
    assert kind(bytes(damaged)).name
    assert kind(bytes(damaged[:cut]), max(0, length)).name


@given(st.binary(max_size=700))
def test_names_are_short_lower_case_words_and_only_dicom_has_an_offset(data):
    found = kind(data)
    assert found.name == found.name.lower()
    assert len(found.name) <= 16
    assert (found.dataset_offset is not None) == (found.name in DICOM_TYPES)


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS, reason="PIXELS_CORPUS names no corpus")
def test_the_files_of_the_corpus_are_what_its_manifest_says():
    root = Path(CORPUS or "")
    differences = []
    with (root / "MANIFEST.csv").open(encoding="utf-8", newline="") as manifest:
        for row in csv.DictReader(manifest):
            with (root / row["file"]).open("rb") as stream:
                name = identify(stream, int(row["size"])).name
            if row["kind"] == "decoy":
                expected = name not in DICOM_TYPES | ARCHIVE_TYPES
            elif row["kind"] in {"container", "archive", "gz"}:
                expected = name in ARCHIVE_TYPES | COMPRESSED_TYPES | {"7z"}
            elif row["status_pydicom_3_0_2"] == "not_dicom":
                expected = True  # tried one by one above
            else:
                expected = name == ("dicomdir" if "DICOMDIR" in row["suggested_outcome"] else "dicom")
            if not expected:
                differences.append((row["file"], name))
    assert differences == []
