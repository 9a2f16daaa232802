"""The walk through archives: formats, names, damage, guards."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import socket
import struct
import subprocess
import sys
import tarfile
import textwrap
import warnings
import zipfile
import zlib
from collections import Counter
from contextlib import closing
from csv import DictReader
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from pixels_assets.intake.archives import walk
from pixels_assets.intake.budget import PROGRESS_BYTES
from pixels_assets.intake.listing import Listing
from pixels_assets.intake.objects import Failure, FoundObject, SourceFile, Status, file_address, member_address
from pixels_assets.settings import MIB, Limits

LIMITS = Limits()
CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
MR = Path(str(get_testdata_file("MR_small.dcm"))).read_bytes()
MEMBERS = {"a/ct.dcm": CT, "a/mr.dcm": MR, "notes.txt": b"nothing to see\n" * 20, "big": bytes(range(256)) * 3000}


def source(path):
    status = os.lstat(path)
    return SourceFile(file_address(path), status.st_size, status.st_mtime_ns, file_address(path.parent))


def rows_of(path, limits=LIMITS, **options):
    """Walk a file, read every stream as a caller does, and hold each row against what every row promises."""
    rows = []
    for found in walk(source(path), limits, **options):
        if found.stream is not None:
            assert found.stream.tell() == 0
            data = found.stream.read()
            assert len(data) == found.length
            if found.content_hash:
                assert sha256(data).hexdigest() == found.content_hash
        assert found.original_path == file_address(path)
        rows.append(found)
    assert len({row.path for row in rows}) == len(rows)
    assert rows[-1].path == file_address(path)
    return rows


def names(rows):
    prefix = len(rows[-1].path) + 2
    return [row.path[prefix:] for row in rows[:-1]]


def codes(rows):
    return [row.failure.code if row.failure else "" for row in rows]


def code_of(row):
    return row.failure.code if row.failure else ""


def zip_bytes(members, method=zipfile.ZIP_DEFLATED, comment=b""):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment
    return buffer.getvalue()


def tar_bytes(members, mode="w", **options):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_600_000_000
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def written(folder, data, name="archive"):
    path = folder / name
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------------------------------------------------------- loose files


def test_a_plain_file_is_one_object_with_its_hash_and_stream(tmp_path):
    path = written(tmp_path, CT, "ct.dcm")
    (row,) = rows_of(path)
    assert (row.file_type, row.length, row.depth, row.failure, row.member_name) == ("dicom", len(CT), 0, None, None)
    assert row.content_hash == sha256(CT).hexdigest()
    assert row.mtime_ns == path.stat().st_mtime_ns
    assert row.identified.name == "dicom"
    assert row.warnings == []


def test_a_file_larger_than_memory_is_read_from_its_place(tmp_path):
    data = os.urandom(3 * MIB)
    (row,) = rows_of(written(tmp_path, data), Limits(max_memory_bytes=MIB))
    assert row.content_hash == sha256(data).hexdigest()
    assert row.failure is None


def test_an_empty_file_is_empty(tmp_path):
    (row,) = rows_of(written(tmp_path, b""))
    assert (row.failure.status, row.failure.code, row.length) == (Status.EMPTY, "empty", 0)
    assert row.content_hash == sha256(b"").hexdigest()


def test_a_stream_is_closed_when_the_next_object_is_asked_for(tmp_path):
    objects = walk(source(written(tmp_path, zip_bytes(MEMBERS))), LIMITS)
    first = next(objects).stream
    assert not first.closed
    second = next(objects).stream
    assert first.closed
    objects.close()
    assert second.closed


def test_what_is_no_regular_file_any_more_is_unreadable_and_does_not_block(tmp_path):
    target = written(tmp_path, CT)
    link, fifo, folder, end = (tmp_path / name for name in ("link", "fifo", "folder", "socket"))
    link.symlink_to(target)
    os.mkfifo(fifo)
    folder.mkdir()
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(end))
        for path in (link, fifo, folder, end):
            (row,) = list(walk(source(path), LIMITS))
            assert (row.failure.status, row.failure.code) == (Status.UNREADABLE, "not_a_regular_file"), path.name


def test_a_missing_file_and_a_failed_listing_are_rows(tmp_path):
    file = source(written(tmp_path, CT))
    Path(file.path).unlink()
    (row,) = list(walk(file, LIMITS))
    assert (row.failure.status, row.failure.code, row.length) == (Status.UNREADABLE, "not_found", len(CT))
    failure = Failure(Status.UNREADABLE, "permission_denied", "No.")
    (row,) = list(walk(replace(file, failure=failure), LIMITS))
    assert row.failure is failure


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_unreadable(tmp_path):
    path = written(tmp_path, CT)
    path.chmod(0)
    (row,) = rows_of(path)
    assert (row.failure.status, row.failure.code) == (Status.UNREADABLE, "permission_denied")


@pytest.mark.parametrize("data", [CT, zip_bytes(MEMBERS), tar_bytes(MEMBERS)], ids=["dicom", "zip", "tar"])
@pytest.mark.parametrize("memory", [64 * MIB, 1000])
def test_a_file_that_changed_since_it_was_listed_says_so_and_counts_what_was_read(tmp_path, data, memory):
    path = written(tmp_path, b"before")
    file = source(path)
    path.write_bytes(data)
    *_, row = walk(file, Limits(max_memory_bytes=memory))
    assert row.warnings == ["changed_since_listing"]
    assert (row.length, row.content_hash) == (len(data), sha256(data).hexdigest())


def test_a_time_that_no_table_holds_is_no_change(tmp_path):
    path = written(tmp_path, CT)
    try:
        os.utime(path, (1.5e10, 1.5e10))
    except (OverflowError, OSError):
        pytest.skip("this file system does not hold the year 2445")
    (file,) = Listing(tmp_path)
    *_, row = walk(file, LIMITS)
    assert row.warnings == []


# --------------------------------------------------------------------------------------------------------------------------------------- ZIP


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("memory", [64 * MIB, 10_000])
def test_members_of_a_zip_are_what_an_independent_reader_reads(tmp_path, method, memory):
    data = zip_bytes(MEMBERS, method, b"a comment")
    rows = rows_of(written(tmp_path, data), Limits(max_memory_bytes=memory))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for row, info in zip(rows, archive.infolist(), strict=False):
            assert row.path == member_address(rows[-1].path, info.filename)
            assert row.member_name == info.filename
            assert (row.length, row.compressed_length, row.depth) == (info.file_size, info.compress_size, 1)
            assert row.content_hash == sha256(archive.read(info)).hexdigest()
            assert row.failure is None
            assert row.mtime_ns is not None
    assert [row.file_type for row in rows] == ["dicom", "dicom", "text", rows[3].file_type, "zip"]
    assert rows[-1].content_hash == sha256(data).hexdigest()
    assert (rows[-1].failure, rows[-1].warnings) == (None, [])


class Unseekable(io.RawIOBase):
    def __init__(self):
        super().__init__()
        self.data = bytearray()

    def writable(self):
        return True

    def write(self, data):
        self.data += data
        return len(data)


def streamed_zip(members, method=zipfile.ZIP_DEFLATED):
    out = Unseekable()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return bytes(out.data)


def zip64_zip(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    return buffer.getvalue()


def with_zip64_end(data):
    """The same archive with the end of its directory in ZIP64 form, old fields at their maximum."""
    at = data.rindex(b"PK\x05\x06")
    count, length, offset = struct.unpack_from("<HLL", data, at + 10)
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, offset)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    return data[:at] + end64 + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)


@pytest.mark.parametrize(
    "data",
    [
        streamed_zip(MEMBERS),
        zip64_zip(MEMBERS),
        with_zip64_end(zip_bytes(MEMBERS)),
        b"#!/bin/sh\nexit 0\n" * 50 + with_zip64_end(zip_bytes(MEMBERS)),
        b"#!/bin/sh\nexit 0\n" * 50 + zip_bytes(MEMBERS),
        zip_bytes(MEMBERS, comment=b"PK\x05\x06" * 1000),
        zip_bytes(MEMBERS) + b"\0" * 1000,
    ],
    ids=["data descriptors", "zip64 sizes", "zip64 end", "prefixed zip64 end", "prefixed", "end signatures in the comment", "trailing zeros"],
)
def test_unusual_but_sound_zips_are_read_completely(tmp_path, data):
    rows = rows_of(written(tmp_path, data))
    assert names(rows) == list(MEMBERS)
    assert [row.content_hash for row in rows[:-1]] == [sha256(member).hexdigest() for member in MEMBERS.values()]
    assert codes(rows) == [""] * 5
    assert rows[-1].file_type == "zip"


def test_names_in_code_page_437_and_unicode_fields_become_utf8(tmp_path):
    def renamed(flag, name, extra=b""):
        data = zip_bytes({"x" * len(name): b"data"})
        local, central = data.index(b"PK\x03\x04"), data.index(b"PK\x01\x02")
        end = data.index(b"PK\x05\x06")
        head = bytearray(data[central : central + 46])
        struct.pack_into("<H", head, 8, flag)
        struct.pack_into("<H", head, 30, len(extra))
        directory = bytes(head) + name + extra
        tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), central, 0)
        assert end == central + 46 + len(name)
        body = bytearray(data[local:central])
        struct.pack_into("<H", body, 6, flag)
        body[30 : 30 + len(name)] = name
        return bytes(body) + directory + tail

    cp437 = "Rücken.dcm".encode("cp437")
    field = b"\x01" + struct.pack("<L", zlib.crc32(cp437)) + "Ρυκ.dcm".encode()
    extra = struct.pack("<HH", 0x7075, len(field)) + field
    for data, expected in [
        (renamed(0, cp437), "Rücken.dcm"),
        (renamed(0x800, "Rücken.dcm".encode()), "Rücken.dcm"),
        (renamed(0, cp437, extra), "Ρυκ.dcm"),
        (renamed(0, cp437, extra.replace(field[1:5], b"\0\0\0\0")), "Rücken.dcm"),
        (renamed(0x800, b"bad\xff.dcm"), "bad\\xff.dcm"),
    ]:
        rows = rows_of(written(tmp_path, data))
        assert names(rows) == [expected]
        assert codes(rows) == ["", ""]


def test_members_of_one_name_are_numbered(tmp_path):
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        for number, name in enumerate(["x", "x", "X", "x!~2", "x"]):
            archive.writestr(name, str(number))
    rows = rows_of(written(tmp_path, buffer.getvalue()))
    assert names(rows) == ["x", "x!~2", "X", "x\\x21~2", "x!~3"]
    assert [row.content_hash for row in rows[:-1]] == [sha256(str(number).encode()).hexdigest() for number in range(5)]


def test_folders_and_links_of_a_zip_are_no_objects(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("folder/", b"")
        archive.writestr("folder/ct.dcm", CT)
        for name, mode in [("link", 0o120777), ("fifo", 0o010644)]:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            archive.writestr(info, "/etc/passwd")
    rows = rows_of(written(tmp_path, buffer.getvalue()))
    assert names(rows) == ["folder/ct.dcm"]
    assert rows[-1].warnings == ["links_skipped: 2"]


def patched(data, record, field, value, form="<H", occurrence=0):
    """Change one field of the n-th record with this signature."""
    at = -1
    for _ in range(occurrence + 1):
        at = data.index(record, at + 1)
    changed = bytearray(data)
    struct.pack_into(form, changed, at + field, value)
    return bytes(changed)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def test_encrypted_members_are_encrypted(tmp_path):
    data = zip_bytes(MEMBERS)
    traditional = patched(patched(data, LOCAL, 6, 1), CENTRAL, 8, 1)
    aes = patched(patched(traditional, LOCAL, 8, 99), CENTRAL, 10, 99)
    for changed in (traditional, aes):
        rows = rows_of(written(tmp_path, changed))
        assert codes(rows) == ["encrypted", "", "", "", ""]
        assert rows[0].failure.status == Status.ENCRYPTED
        assert rows[0].stream is None


@pytest.mark.parametrize("method", [1, 9, 93, 98])
def test_an_unknown_method_costs_its_member(tmp_path, method):
    data = zip_bytes(MEMBERS)
    rows = rows_of(written(tmp_path, patched(patched(data, LOCAL, 8, method), CENTRAL, 10, method)))
    assert codes(rows) == ["unsupported_compression", "", "", "", ""]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda data: patched(data, LOCAL, 8, 0), "header_mismatch"),
        (lambda data: patched(data, LOCAL, 30, ord("b"), "<B"), "header_mismatch"),
        (lambda data: patched(data, CENTRAL, 24, len(CT) + 1, "<L"), "size_mismatch"),
        (lambda data: patched(data, CENTRAL, 24, len(CT) - 1, "<L"), "size_mismatch"),
        (lambda data: patched(data, CENTRAL, 16, 12345, "<L"), "crc_mismatch"),
        (lambda data: patched(data, LOCAL, 60, 0xFFFFFFFF, "<L"), "corrupt_stream"),
        (lambda data: patched(data, CENTRAL, 20, 100, "<L"), "truncated"),
        (lambda data: patched(data, CENTRAL, 42, 0x7FFFFFFF, "<L"), "truncated"),
    ],
    ids=["method", "name", "longer", "shorter", "crc", "damaged data", "compressed length", "offset"],
)
def test_a_bad_member_costs_that_member(tmp_path, change, code):
    rows = rows_of(written(tmp_path, change(zip_bytes(MEMBERS))))
    assert codes(rows) == [code, "", "", "", ""]
    assert (rows[0].stream, rows[0].content_hash) == (None, None)
    assert rows[0].failure.status == Status.CORRUPT
    assert not any("ct.dcm" in row.failure.message for row in rows if row.failure)


def test_members_that_share_bytes_are_refused(tmp_path):
    """Full and partial overlap, in any order of the directory; a neighbour that shares nothing is read."""
    data = zip_bytes({"one": os.urandom(500), "two": os.urandom(500), "three": os.urandom(500)}, zipfile.ZIP_STORED)
    second = data.index(LOCAL, 1)
    twice = patched(data, CENTRAL, 42, second, "<L", occurrence=2)
    assert codes(rows_of(written(tmp_path, twice))) == ["", "overlapping_entries", "overlapping_entries", ""]
    reaching = patched(data, CENTRAL, 20, 700, "<L")
    assert codes(rows_of(written(tmp_path, reaching))) == ["overlapping_entries", "overlapping_entries", "", ""]
    into_directory = patched(data, CENTRAL, 20, 600, "<L", occurrence=2)
    assert codes(rows_of(written(tmp_path, into_directory))) == ["", "", "overlapping_entries", ""]


def test_data_pushed_over_the_next_member_by_a_local_extra_field_is_refused(tmp_path):
    data = zip_bytes({"one": os.urandom(500), "two": os.urandom(500)}, zipfile.ZIP_STORED)
    assert codes(rows_of(written(tmp_path, patched(data, LOCAL, 28, 40)))) == ["overlapping_entries", "", ""]


def quoted_overlap_bomb(count):
    """Each member's data begin with the next member's header, quoted in a stored block of deflate: all share one kernel."""
    kernel_data = bytes(MIB)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    kernel = deflate.compress(kernel_data) + deflate.flush()
    blocks, entries = [], []
    tail, tail_data = kernel, kernel_data
    for number in reversed(range(count)):
        name = b"%04d" % number
        header = struct.pack("<4s5H3L2H", LOCAL, 20, 0, 8, 0, 0x21, zlib.crc32(tail_data), len(tail), len(tail_data), 4, 0) + name
        entries.append((name, zlib.crc32(tail_data), len(tail), len(tail_data)))
        blocks.insert(0, header)
        quote = struct.pack("<BHH", 0, len(header), len(header) ^ 0xFFFF)
        tail, tail_data = quote + header + tail, header + tail_data
    body, offsets = b"", []
    for number, header in enumerate(blocks):
        offsets.append(len(body))
        body += header
        if number + 1 < count:
            body += struct.pack("<BHH", 0, len(blocks[number + 1]), len(blocks[number + 1]) ^ 0xFFFF)
    directory = b""
    for (name, crc, compressed, length), offset in zip(reversed(entries), offsets, strict=True):
        directory += struct.pack("<4s2B5HL2L5H2L", CENTRAL, 20, 0, 20, 0, 8, 0, 0x21, crc, compressed, length, 4, 0, 0, 0, 0, 0, offset) + name
    start = len(body + kernel)
    return body + kernel + directory + struct.pack("<4s4H2LH", END, 0, 0, count, count, len(directory), start, 0)


def test_an_overlap_bomb_is_refused_without_expanding_it(tmp_path):
    data = quoted_overlap_bomb(200)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert sum(info.file_size for info in archive.infolist()) > 200 * MIB
    rows = rows_of(written(tmp_path, data))
    assert set(codes(rows[:-1])) == {"overlapping_entries"}
    assert len(rows) == 201
    recovered = rows_of(written(tmp_path, data[: data.rindex(CENTRAL)]))
    assert sum(row.length or 0 for row in recovered[:-1] if row.failure is None) <= LIMITS.ratio_floor_bytes


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("make", [zip_bytes, streamed_zip])
def test_a_zip_without_its_directory_gives_what_its_local_headers_lead_to(tmp_path, method, make):
    data = make(MEMBERS, method)
    rows = rows_of(written(tmp_path, data[: data.index(CENTRAL)]))
    assert names(rows) == list(MEMBERS)
    assert [row.content_hash for row in rows[:-1]] == [sha256(member).hexdigest() for member in MEMBERS.values()]
    assert codes(rows) == ["", "", "", "", "archive_truncated"]
    assert rows[-1].content_hash


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_stream_of_many_members_that_was_cut_gives_all_of_them(tmp_path, method):
    data = streamed_zip({f"{number}.dcm": MR for number in range(100)}, method)
    rows = rows_of(written(tmp_path, data[: data.index(CENTRAL)]))
    assert names(rows) == [f"{number}.dcm" for number in range(100)]
    assert set(codes(rows[:-1])) == {""}


@pytest.mark.parametrize("make", [zip_bytes, streamed_zip])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_cut_within_a_member_says_so_and_keeps_the_members_before(tmp_path, make, method):
    data = make(MEMBERS, method)
    cut = data.index(b"notes.txt") + 9 + 5
    rows = rows_of(written(tmp_path, data[:cut]))
    assert names(rows) == ["a/ct.dcm", "a/mr.dcm", "notes.txt"]
    assert codes(rows) == ["", "", "truncated", "archive_truncated"]


@pytest.mark.parametrize(
    "change",
    [
        lambda data: patched(data, END, 16, 12, "<L"),
        lambda data: patched(data, END, 16, 0x7FFFFFF0, "<L"),
        lambda data: patched(data, END, 12, 17, "<L"),
        lambda data: patched(data, CENTRAL, 0, 0, "<L", occurrence=1),
        lambda data: patched(data, CENTRAL, 28, 60_000, "<H", occurrence=2),
        lambda data: patched(patched(data, END, 12, 0, "<L"), END, 10, 0),
    ],
    ids=["offset", "offset behind the end", "length", "signature", "name length", "denied"],
)
def test_a_zip_with_a_broken_directory_is_recovered(tmp_path, change):
    rows = rows_of(written(tmp_path, change(zip_bytes(MEMBERS))))
    assert names(rows) == list(MEMBERS)
    assert codes(rows) == ["", "", "", "", "bad_central_directory"]


def test_a_cut_zip_is_not_taken_for_the_zip_it_ends_with(tmp_path):
    inner = zip_bytes({"x.dcm": CT})
    data = zip_bytes({"first.dcm": MR, "inner.zip": inner}, zipfile.ZIP_STORED)
    rows = rows_of(written(tmp_path, data[: data.rindex(CENTRAL, 0, data.rindex(CENTRAL))]))
    assert names(rows) == ["first.dcm", "inner.zip!/x.dcm", "inner.zip"]
    assert codes(rows)[:3] == ["", "", ""]
    assert rows[-1].failure.code in {"archive_truncated", "bad_central_directory"}


def test_the_last_volume_of_a_split_zip_gives_what_lies_in_it(tmp_path):
    members = {f"{number}.dcm": bytes([number]) * 40 + MR for number in range(5)}
    data = zip_bytes(members, zipfile.ZIP_STORED)
    third = data.index(LOCAL, data.index(b"2.dcm"))  # the fourth member begins the volume
    directory, end = data.index(CENTRAL), data.index(END)
    volume, at = bytearray(data[third:]), directory - third
    for number in range(5):
        offset = int.from_bytes(volume[at + 42 : at + 46], "little")
        struct.pack_into("<H", volume, at + 34, 1 if number > 2 else 0)
        struct.pack_into("<L", volume, at + 42, offset - third if number > 2 else offset)
        at = volume.find(CENTRAL, at + 4)
    struct.pack_into("<4H2L", volume, end - third + 4, 1, 1, 5, 5, end - directory, directory - third)
    rows = rows_of(written(tmp_path, bytes(volume)))
    assert names(rows) == list(members)
    assert codes(rows) == ["other_volume"] * 3 + ["", "", ""]
    # A whole one may bear a wrong number.
    struct.pack_into("<2H", wrong := bytearray(data), end + 4, 1, 1)
    assert codes(rows_of(written(tmp_path, bytes(wrong)))) == [""] * 6


def test_a_directory_that_miscounts_is_read_and_reported(tmp_path):
    rows = rows_of(written(tmp_path, patched(zip_bytes(MEMBERS), END, 10, 3)))
    assert codes(rows) == [""] * 5
    assert rows[-1].warnings == ["directory_count_mismatch"]


def test_an_empty_zip_has_no_members(tmp_path):
    (row,) = rows_of(written(tmp_path, zip_bytes({})))
    assert (row.file_type, row.failure, row.warnings) == ("zip", None, [])


def test_the_end_of_an_empty_zip_within_a_comment_hides_no_members(tmp_path):
    data = b"MZ" + bytes(300) + zip_bytes({"x.dcm": CT}, comment=b"see " + zip_bytes({}))
    assert names(rows_of(written(tmp_path, data))) == ["x.dcm"]


def test_lengths_that_no_table_holds_become_unknown(tmp_path):
    data = bytearray(zip_bytes({"x": b"y"}))
    central = data.index(CENTRAL)
    extra = struct.pack("<HHQ", 1, 8, (1 << 64) - 1)
    struct.pack_into("<L", data, central + 24, 0xFFFFFFFF)
    struct.pack_into("<H", data, central + 30, len(extra))
    data[central + 47 : central + 47] = extra
    data = patched(bytes(data), END, 12, 47 + len(extra), "<L")
    rows = rows_of(written(tmp_path, data))
    assert (code_of(rows[0]), rows[0].length) == ("member_too_large", None)


# --------------------------------------------------------------------------------------------------------------------------------------- TAR

LONG = "long/" * 40 + "ä name.dcm"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("memory", [64 * MIB, 1000])
def test_members_of_a_tar_are_what_an_independent_reader_reads(tmp_path, mode, form, memory):
    members = MEMBERS if form == tarfile.USTAR_FORMAT else {**MEMBERS, LONG: CT}
    data = tar_bytes(members, mode, format=form)
    rows = rows_of(written(tmp_path, data), Limits(max_memory_bytes=memory))
    assert names(rows) == list(members)
    assert [row.content_hash for row in rows] == [*(sha256(member).hexdigest() for member in members.values()), sha256(data).hexdigest()]
    assert {row.mtime_ns for row in rows[:-1]} == {1_600_000_000_000_000_000}
    assert {row.depth for row in rows[:-1]} == {1}
    assert {row.compressed_length for row in rows[:-1]} == {None}
    assert codes(rows) == [""] * len(rows)
    assert rows[-1].warnings == []
    assert rows[-1].file_type == {"w": "tar", "w:gz": "gzip", "w:bz2": "bzip2", "w:xz": "xz"}[mode]


def test_links_and_devices_of_a_tar_are_counted_and_names_are_only_addresses(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ["/etc/passwd", "../../up.dcm", "same", "same"]:
            info = tarfile.TarInfo(name)
            info.size = len(CT)
            archive.addfile(info, io.BytesIO(CT))
        for number, kind in enumerate([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE]):
            info = tarfile.TarInfo(f"special{number}")
            info.type, info.linkname = kind, "/etc/shadow"
            archive.addfile(info)
    rows = rows_of(written(tmp_path, buffer.getvalue()))
    assert names(rows) == ["/etc/passwd", "../../up.dcm", "same", "same!~2"]
    assert rows[-1].warnings == ["links_skipped: 4"]


def test_raw_bytes_of_tar_names_survive(tmp_path):
    data = tar_bytes({"caf\udce9.dcm": CT}, format=tarfile.GNU_FORMAT, errors="surrogateescape")
    rows = rows_of(written(tmp_path, data))
    assert names(rows) == ["caf\\xe9.dcm"]
    assert os.fsencode(rows[0].member_name) == b"caf\xe9.dcm"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_cut_tar_keeps_what_could_be_read(tmp_path, mode):
    members = {f"{number}.bin": random.Random(number).randbytes(200_000) for number in range(12)}
    data = tar_bytes(members, mode)
    rows = rows_of(written(tmp_path, data[: len(data) * 9 // 20]))
    assert code_of(rows[-1]) == "archive_truncated"
    assert codes(rows)[-2] == "truncated"
    whole = rows[:-2]
    assert len(whole) >= 1
    assert [row.content_hash for row in whole] == [sha256(member).hexdigest() for member in list(members.values())[: len(whole)]]


def test_a_damaged_tar_header_costs_its_member_and_is_reported(tmp_path):
    data = bytearray(tar_bytes(MEMBERS))
    second = data.index(b"a/mr.dcm")
    data[second + 120] ^= 1
    rows = rows_of(written(tmp_path, bytes(data)))
    assert names(rows) == ["a/ct.dcm", "notes.txt", "big"]
    assert codes(rows) == ["", "", "", "bad_tar_header"]


def test_sparse_members_are_refused_one_by_one(tmp_path):
    data = bytearray(tar_bytes({"sparse": b"x" * 700, "next.dcm": CT}, format=tarfile.GNU_FORMAT))
    data[156:157] = b"S"
    data[148:156] = b"        "
    data[148:156] = b"%06o\0 " % sum(data[:512])
    rows = rows_of(written(tmp_path, bytes(data)))
    assert codes(rows) == ["unsupported_sparse", "", ""]


def test_a_tar_that_ends_without_a_mark_or_goes_on_after_it_says_so(tmp_path):
    data = tar_bytes({"x.dcm": CT})
    end = 512 + len(CT) + -len(CT) % 512
    assert rows_of(written(tmp_path, data[:end]))[-1].warnings == ["end_marker_missing"]
    assert rows_of(written(tmp_path, data + b"\0" * 700 + b"x"))[-1].warnings == ["trailing_data"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
def test_tars_that_were_joined_give_the_members_of_all(tmp_path, pack):
    first, second = tar_bytes({"x.dcm": CT}), tar_bytes({"x.dcm": MR, "big": MEMBERS["big"]})
    for data in (pack(first + second + second), pack(first) + pack(second) + pack(bytes(3 * MIB)) + pack(second)):
        rows = rows_of(written(tmp_path, data))
        assert names(rows) == ["x.dcm", "x.dcm!~2", "big", "x.dcm!~3", "big!~2"]
        assert [row.length for row in rows[:-1]] == [len(CT), len(MR), 768_000, len(MR), 768_000]
        assert (codes(rows)[-1], rows[-1].warnings) == ("", ["archives_joined: 3"])


def test_a_tar_header_cannot_fill_the_memory(tmp_path):
    header = tarfile.TarInfo("x")
    header.type, header.size = b"L", 1 << 33
    rows = rows_of(written(tmp_path, header.tobuf(tarfile.GNU_FORMAT) + bytes(10_000)))
    assert codes(rows) == ["tar_header_too_large"]


# ------------------------------------------------------------------------------------------------------------------------- compressed streams


@pytest.mark.parametrize(
    ("name", "data", "member"),
    [
        ("ct.dcm.gz", gzip.compress(CT), "ct.dcm"),
        ("ct.dcm.BZ2", bz2.compress(CT), "ct.dcm"),
        ("ct.dcm.xz", lzma.compress(CT), "ct.dcm"),
        ("scan", gzip.compress(CT), "data"),
        (".gz", gzip.compress(CT), "data"),
        ("two.gz", gzip.compress(CT[:9000]) + gzip.compress(CT[9000:]) + b"\0" * 100, "two"),
        ("two.bz2", bz2.compress(CT[:9000]) + bz2.compress(CT[9000:]), "two"),
        ("two.xz", lzma.compress(CT[:9000]) + b"\0" * 8 + lzma.compress(CT[9000:]), "two"),
    ],
)
def test_a_compressed_file_holds_one_member(tmp_path, name, data, member):
    rows = rows_of(written(tmp_path, data, name))
    assert names(rows) == [member]
    assert (rows[0].content_hash, rows[0].file_type) == (sha256(CT).hexdigest(), "dicom")
    assert (rows[0].compressed_length, rows[0].depth) == (len(data), 1)
    assert (rows[1].content_hash, codes(rows), rows[1].warnings) == (sha256(data).hexdigest(), ["", ""], [])


def test_a_gzip_header_names_its_member(tmp_path):
    buffer = io.BytesIO()
    with gzip.GzipFile("inside.dcm", "wb", fileobj=buffer, mtime=1_500_000_000) as file:
        file.write(CT)
    rows = rows_of(written(tmp_path, buffer.getvalue(), "outside.gz"))
    assert names(rows) == ["inside.dcm"]
    assert rows[0].mtime_ns == 1_500_000_000_000_000_000


def test_gzipped_zeros_are_no_empty_tar(tmp_path):
    rows = rows_of(written(tmp_path, gzip.compress(bytes(20 * MIB)), "zeros.gz"))
    assert names(rows) == ["zeros"]
    assert (rows[0].length, rows[0].failure) == (20 * MIB, None)


def test_a_compressed_file_that_is_cut_damaged_or_followed_by_something_says_so(tmp_path):
    data = gzip.compress(CT)
    assert codes(rows_of(written(tmp_path, data[:-20]))) == ["truncated", "archive_truncated"]
    assert codes(rows_of(written(tmp_path, data[:-6] + b"!!" + data[-4:]))) == ["corrupt_stream", "corrupt_stream"]
    rows = rows_of(written(tmp_path, data + b"more"))
    assert codes(rows) == ["", ""]
    assert rows[-1].warnings == ["trailing_data"]
    assert rows[-1].content_hash == sha256(data + b"more").hexdigest()


def test_a_decoder_that_asks_for_too_much_memory_is_refused(tmp_path):
    rows = rows_of(written(tmp_path, _with_dictionary(lzma.compress(CT))))
    assert codes(rows) == ["decoder_memory", "decoder_memory"]
    assert rows[0].failure.status == Status.LIMIT_EXCEEDED


def _with_dictionary(data):
    """Claim a dictionary of 1.5 GiB in the block header of an xz file and correct its checksum."""
    changed = bytearray(data)
    size = (changed[12] + 1) * 4
    at = changed.index(b"\x21\x01", 12, 12 + size) + 2
    changed[at] = 37
    changed[12 + size - 4 : 12 + size] = struct.pack("<L", zlib.crc32(changed[12 : 12 + size - 4]))
    return bytes(changed)


# ------------------------------------------------------------------------------------------------------------------------------------ nesting


def test_archives_in_archives_are_walked_members_first(tmp_path):
    inner = zip_bytes({"x.dcm": CT, "y.tar.gz": tar_bytes({"z.dcm": MR}, "w:gz")})
    data = tar_bytes({"first.txt": b"hello\n", "in/inner.zip": inner, "ct.dcm.gz": gzip.compress(CT)})
    rows = rows_of(written(tmp_path, data, "outer.tar"))
    assert names(rows) == [
        "first.txt",
        "in/inner.zip!/x.dcm",
        "in/inner.zip!/y.tar.gz!/z.dcm",
        "in/inner.zip!/y.tar.gz",
        "in/inner.zip",
        "ct.dcm.gz!/ct.dcm",
        "ct.dcm.gz",
    ]
    assert [row.depth for row in rows] == [1, 2, 3, 2, 1, 2, 1, 0]
    assert [row.file_type for row in rows] == ["text", "dicom", "dicom", "gzip", "zip", "dicom", "gzip", "tar"]
    assert codes(rows) == [""] * 8
    assert rows[4].content_hash == sha256(inner).hexdigest()
    again = rows_of(tmp_path / "outer.tar", Limits(max_memory_bytes=1))
    assert [(row.path, row.content_hash) for row in again] == [(row.path, row.content_hash) for row in rows]


def test_an_archive_too_deep_is_a_row_and_stays_closed(tmp_path):
    data = CT
    for level in range(4):
        data = zip_bytes({f"{level}": data})
    rows = rows_of(written(tmp_path, data), Limits(max_depth=3))
    assert [row.depth for row in rows] == [3, 2, 1, 0]
    assert codes(rows) == ["too_deep", "", "", ""]
    assert rows[0].failure.status == Status.LIMIT_EXCEEDED
    assert [row.depth for row in rows_of(tmp_path / "archive", Limits(max_depth=4))] == [4, 3, 2, 1, 0]


# ------------------------------------------------------------------------------------------------------------------------------------- guards


def test_too_many_members_end_the_walk_of_the_file(tmp_path):
    data = zip_bytes({"a": b"1", "in.zip": zip_bytes({"b": b"2", "c": b"3", "d": b"4"}), "z": b"5"})
    rows = rows_of(written(tmp_path, data), Limits(max_members=3))
    assert names(rows) == ["a", "in.zip!/b", "in.zip"]
    assert codes(rows) == ["", "", "too_many_members", "too_many_members"]
    assert "PIXELS_LIMIT_MAX_MEMBERS" in rows[-1].failure.message
    assert rows[-1].content_hash == sha256(data).hexdigest()


@pytest.mark.parametrize("make", [zip_bytes, tar_bytes])
def test_too_many_bytes_in_all_end_the_walk_of_the_file(tmp_path, make):
    data = make({name: os.urandom(600) for name in "abc"})
    rows = rows_of(written(tmp_path, data), Limits(max_total_bytes=1000))
    assert names(rows) == ["a", "b"]
    assert codes(rows) == ["", "total_too_large", "total_too_large"]
    assert rows[-1].failure.status == Status.LIMIT_EXCEEDED
    assert rows[-1].content_hash == sha256(data).hexdigest()


def test_headers_count_among_the_expanded_bytes_of_a_compressed_tar(tmp_path):
    data = tar_bytes({name: os.urandom(600) for name in "abc"}, "w:gz")
    rows = rows_of(written(tmp_path, data), Limits(max_total_bytes=2500))
    assert names(rows) == ["a", "b"]
    assert codes(rows) == ["", "total_too_large", "total_too_large"]


@pytest.mark.parametrize("make", [zip_bytes, tar_bytes])
def test_a_member_that_is_too_large_costs_that_member(tmp_path, make):
    rows = rows_of(written(tmp_path, make({"large": os.urandom(5000), "small": b"x"})), Limits(max_member_bytes=1000))
    assert codes(rows) == ["member_too_large", "", ""]


def test_a_bomb_costs_itself_when_it_says_what_it_is_and_no_more_than_the_guard_when_not(tmp_path):
    limits = Limits(ratio_floor_bytes=MIB)
    honest = zip_bytes({"bomb": bytes(20 * MIB), "ct.dcm": CT})
    rows = rows_of(written(tmp_path, honest), limits)
    assert codes(rows) == ["expansion_ratio", "", ""]
    assert "PIXELS_LIMIT_MAX_RATIO" in rows[0].failure.message
    rows = rows_of(written(tmp_path, gzip.compress(bytes(20 * MIB))), limits)
    assert codes(rows) == ["expansion_ratio", "expansion_ratio"]


def test_members_that_are_bombs_only_together_end_the_walk(tmp_path):
    many = zip_bytes({f"{number}": bytes(MIB) for number in range(20)})
    rows = rows_of(written(tmp_path, many), Limits(ratio_floor_bytes=5 * MIB))
    assert codes(rows) == ["", "", "", "", "", "expansion_ratio", "expansion_ratio"]
    assert len(many) * LIMITS.max_ratio < 6 * MIB


def test_a_bomb_behind_the_end_of_a_compressed_tar_is_noticed(tmp_path):
    data = gzip.compress(tar_bytes({"ct.dcm": CT}) + bytes(20 * MIB))
    rows = rows_of(written(tmp_path, data), Limits(ratio_floor_bytes=MIB, max_ratio=2))
    assert codes(rows) == ["", "expansion_ratio"]


BOMBS = textwrap.dedent("""
    import gzip, io, resource, sys, zipfile
    from pathlib import Path
    from pixels_assets.intake.archives import walk
    from pixels_assets.intake.objects import SourceFile, file_address
    from pixels_assets.settings import Limits

    path = Path(sys.argv[1])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = 0
    for found in walk(SourceFile(file_address(path), path.stat().st_size, path.stat().st_mtime_ns, "/"), Limits()):
        rows += 1
        last = found
    print(rows, last.failure.code if last.failure else "", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
""")


def walked_apart(path):
    """Walk a file in a process of its own; return rows, the last row's code, and how much its memory grew, in KiB."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", BOMBS, str(path)], check=True, capture_output=True, text=True)
    *rows_and_code, grown = done.stdout.split()
    return int(rows_and_code[0]), rows_and_code[1] if len(rows_and_code) > 1 else "", int(grown)


def test_bombs_of_100_megabytes_stay_within_bounded_memory(tmp_path):
    zeros = bytes(100 * MIB)
    compressed = gzip.compress(zeros, 6)
    bombs = {
        "zip": zip_bytes({"x.dcm": zeros}),
        "gz": compressed,
        "gz in zip": zip_bytes({f"{number}.gz": compressed for number in range(3)}, zipfile.ZIP_STORED),
        "zip in zip": zip_bytes({"a.zip": zip_bytes({f"{number}": zeros[: 30 * MIB] for number in range(4)})}),
    }
    del zeros
    for name, data in bombs.items():
        rows, _, grown = walked_apart(written(tmp_path, data))
        assert rows <= 8
        assert grown * 1024 < 200 * MIB, name


# ------------------------------------------------------------------------------------------------------------------------------- supervision


def test_every_object_is_announced_before_its_bytes_are_touched(tmp_path):
    path = written(tmp_path, zip_bytes({"a": b"1", "in.zip": zip_bytes({"b": b"2"})}), "o.zip")
    announced = []
    for found in walk(source(path), LIMITS, on_enter=announced.append):
        assert found.path in announced
    here = file_address(path)
    inner = f"{here}!/in.zip"  # an archive comes again whenever its next member is looked for
    assert announced == [here, here, f"{here}!/a", here, inner, inner, f"{inner}!/b", inner, here]


def test_an_object_is_announced_again_whenever_much_of_it_was_read(tmp_path):
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(200 * MIB)
    announced = []
    rows = [found.path for found in walk(source(large), LIMITS, on_enter=announced.append)]
    assert rows == [file_address(large)]
    assert announced == rows * len(announced)
    assert 200 < len(announced) <= 1 + 200 * MIB // PROGRESS_BYTES


def test_a_member_is_announced_again_whenever_much_of_it_was_expanded(tmp_path):
    path = written(tmp_path, zip_bytes({"a": bytes(60 * MIB), "b": b"1"}), "o.zip")
    announced = []
    assert len(list(walk(source(path), LIMITS, on_enter=announced.append))) == 3
    assert announced.count(f"{file_address(path)}!/a") > announced.count(f"{file_address(path)}!/b") == 1


@pytest.mark.parametrize("make", [zip_bytes, tar_bytes, lambda members: tar_bytes(members, "w:gz")])
def test_refused_objects_keep_their_failure_and_the_others_are_read(tmp_path, make):
    path = written(tmp_path, make({"a": b"1" * 5000, "in.zip": zip_bytes({"b": b"2"}), "c": b"3"}))
    here = file_address(path)
    crashed = Failure(Status.CRASHED, "crashed", "A worker ended here.")
    rows = rows_of(path, refused={f"{here}!/a": crashed, f"{here}!/in.zip": crashed})
    assert names(rows) == ["a", "in.zip", "c"]
    assert codes(rows) == ["crashed", "crashed", "", ""]
    (row,) = rows_of(path, refused={here: crashed})
    assert row.failure is crashed
    assert row.content_hash is None


def test_no_room_for_temporary_files_is_an_error_of_the_environment(tmp_path):
    path = written(tmp_path, zip_bytes({"large": os.urandom(3 * MIB)}))
    script = textwrap.dedent("""
        import os, resource, signal, sys
        from pathlib import Path
        from pixels_assets.errors import LakeError
        from pixels_assets.intake.archives import walk
        from pixels_assets.intake.objects import SourceFile, file_address
        from pixels_assets.settings import MIB, Limits
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        path = Path(sys.argv[1])
        file = SourceFile(file_address(path), path.stat().st_size, path.stat().st_mtime_ns, "/")
        try:
            list(walk(file, Limits(max_memory_bytes=MIB)))
        except LakeError as error:
            print(error)
    """)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script, str(path)], check=True, capture_output=True, text=True, env=environment)
    assert str(tmp_path) in done.stdout


# -------------------------------------------------------------------------------------------------------------------------------------- fuzz

SMALL = {"a/ct.dcm": CT[:1500], "b.txt": b"hello " * 30, "n.zip": zip_bytes({"x": b"y" * 300, "z.gz": gzip.compress(b"w" * 100)})}
SEEDS = [
    zip_bytes(SMALL),
    zip_bytes(SMALL, zipfile.ZIP_STORED),
    zip_bytes(SMALL, zipfile.ZIP_LZMA),
    zip_bytes(SMALL, zipfile.ZIP_BZIP2),
    streamed_zip(SMALL),
    streamed_zip(SMALL, zipfile.ZIP_STORED),
    with_zip64_end(zip64_zip(SMALL)),
    b"stub" * 30 + zip_bytes(SMALL),
    tar_bytes(SMALL),
    tar_bytes({**SMALL, LONG: b"x" * 100}, format=tarfile.GNU_FORMAT),
    tar_bytes({**SMALL, LONG: b"x" * 100}, format=tarfile.PAX_FORMAT),
    tar_bytes(SMALL, "w:gz"),
    tar_bytes(SMALL, "w:bz2"),
    tar_bytes(SMALL, "w:xz"),
    gzip.compress(SMALL["n.zip"]),
]
INTERESTING = [b"\0", b"\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08", b"\x01\0\0\0", b"7", b"x", b"S", b"L"]


def mutated(data, randomness):
    data = bytearray(data)
    for _ in range(randomness.choice([1, 1, 2, 5, 20])):
        if not data:
            break
        at = randomness.randrange(len(data))
        match randomness.randrange(5):
            case 0:
                data[at] ^= 1 << randomness.randrange(8)
            case 1:
                piece = randomness.choice(INTERESTING)
                data[at : at + len(piece)] = piece
            case 2:
                del data[at : at + randomness.choice([1, 4, 100, 10_000])]
            case 3:
                data[at:at] = data[randomness.randrange(len(data)) :][: randomness.choice([1, 30, 600])]
            case 4:  # the end holds the structure of ZIP
                data[-randomness.randrange(1, min(300, len(data)) + 1)] = randomness.randrange(256)
    return bytes(data)


def assert_walk_ends_well(path):
    limits = Limits(max_memory_bytes=2000, max_members=200, max_total_bytes=MIB, ratio_floor_bytes=100_000)
    rows = rows_of(path, limits)
    assert sum(row.depth == 0 for row in rows) == 1
    assert all(code_of(row) != "bad_structure" for row in rows)
    for row in rows:
        assert isinstance(row, FoundObject)
        assert (row.content_hash is None) <= (row.failure is not None)


@pytest.mark.parametrize("seed", range(len(SEEDS)))
def test_damaged_archives_never_raise_and_always_end(tmp_path, seed):
    randomness = random.Random(seed)
    path = tmp_path / "archive"
    for _ in range(3000 if os.environ.get("PIXELS_LONG") else 250):
        path.write_bytes(mutated(SEEDS[seed], randomness))
        assert_walk_ends_well(path)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(SEEDS), st.data())
def test_cut_archives_never_raise_and_keep_a_prefix(tmp_path, data, draw):
    cut = draw.draw(st.integers(1, len(data)))
    path = tmp_path / "archive"
    path.write_bytes(data[:cut])
    assert_walk_ends_well(path)


# -------------------------------------------------------------------------------------------------------------------------------------- scale


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip", "zip out of order", "tar.gz"])
def test_very_many_members_are_walked_in_bounded_memory(tmp_path, kind):
    path = tmp_path / "many"
    count = 200_000 if os.environ.get("PIXELS_LONG") else 20_000
    if kind == "tar.gz":
        with tarfile.open(path, "w:gz", compresslevel=1, format=tarfile.USTAR_FORMAT) as archive:
            for number in range(count):
                info = tarfile.TarInfo(f"folder/{number}.dcm")
                info.size = 10
                archive.addfile(info, io.BytesIO(b"%010d" % number))
    else:
        local, central = [], []
        offset = 0
        for number in range(count):
            name, data = b"folder/%d.dcm" % number, b"%010d" % number
            entry = struct.pack("<4s5H3L2H", LOCAL, 20, 0, 0, 0, 0x21, zlib.crc32(data), 10, 10, len(name), 0) + name + data
            head = (20, 3, 20, 0, 0, 0, 0x21, zlib.crc32(data), 10, 10, len(name), 0, 0, 0, 0, 0, offset)
            central.append(struct.pack("<4s2B5HL2L5H2L", CENTRAL, *head) + name)
            local.append(entry)
            offset += len(entry)
        if kind == "zip out of order":
            random.Random(0).shuffle(central)
        directory = b"".join(central)
        path.write_bytes(with_zip64_end(b"".join(local) + directory + struct.pack("<4s4H2LH", END, 0, 0, 0, 0, len(directory), offset, 0)))
        changed = bytearray(path.read_bytes())
        at = changed.rindex(b"PK\x06\x06")
        struct.pack_into("<2Q", changed, at + 24, count, count)
        path.write_bytes(changed)
    rows, code, grown = walked_apart(path)
    assert (rows, code) == (count + 1, "")
    file_in_memory = path.stat().st_size if path.stat().st_size <= LIMITS.max_memory_bytes else 0
    assert grown * 1024 - file_in_memory < 60 * MIB


# ------------------------------------------------------------------------------------------------------------------------------------- corpus

CORPUS = os.environ.get("PIXELS_CORPUS")
BEYOND = {  # what the manifest counts and a walk with the default limits must not or cannot reach
    "containers/nested_30_levels.zip": "deeper than the depth limit",
    "containers/series.7z": "a format that is not asked for",
}


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS, reason="PIXELS_CORPUS names no corpus")
def test_every_archive_of_the_corpus_gives_its_members():
    root = Path(CORPUS)
    with (root / "MANIFEST.csv").open(newline="", encoding="utf-8") as file:
        archives = [row for row in DictReader(file) if row["kind"] in {"container", "gz", "archive"}]
    assert archives
    counted = Counter()
    for about in archives:
        rows = rows_of(root / about["file"])
        dicom = sum(row.failure is None and row.file_type in {"dicom", "dicomdir"} for row in rows)
        if about["file"] not in BEYOND:
            if about["container_dicom"]:
                assert dicom == int(about["container_dicom"]), about["file"]
                counted["of known number"] += dicom
            elif about["kind"] == "gz":
                assert dicom == 1, about["file"]
                counted["single files"] += dicom
        if about["suggested_outcome"].startswith("ingest") and not about["suggested_outcome"].endswith("quarantine"):
            assert code_of(rows[-1]) == "", about["file"]
        assert len(rows) <= 5001
    facts = json.loads((root / "FACTS.json").read_text(encoding="utf-8"))
    assert counted.total() >= facts["container_dicom_members_recursive_depth5"]
