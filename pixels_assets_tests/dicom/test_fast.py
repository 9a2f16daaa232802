"""The fast reading of headers: exactly what the reading through pydicom gives, or no answer."""

import io
import os
import random
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from pixels_assets.dicom import fast
from pixels_assets.dicom.fast import HeaderParser, TooShort, UnusualHeader
from pixels_assets.dicom.reader import Header, _read_fast, read_by_pydicom, read_header
from pixels_assets.intake.filetype import DICOM_TYPES, identify

MIB = 1024 * 1024
DATA = Path(pydicom.__file__).parent / "data"
CORPUS = os.environ.get("PIXELS_CORPUS")
# Mutated headers that one run of the suite compares; a thorough run sets 100,000 and takes some minutes.
MUTATIONS = int(os.environ.get("PIXELS_FUZZ", "1000"))
COMPARED = ("meta", "file_meta", "header", "values", "warnings", "transfer_syntax", "pixel_offset", "stream_length")


def quickly(data, stream=None, *, offset=0, flags=()):
    return read_header(stream or io.BytesIO(data), len(data), dataset_offset=offset, flags=flags, max_deflated_bytes=256 * MIB)


def exactly(data, *, offset=0, flags=()):
    return read_by_pydicom(io.BytesIO(data), len(data), offset, flags, 256 * MIB, 200.0)


def both(data, stream=None):
    return quickly(data, stream), exactly(data)


def assert_same(quick, exact):
    """Give whether the fast reader read it."""
    assert type(quick) is type(exact)
    if not isinstance(quick, Header):
        assert quick == exact
        return False
    for name in COMPARED:
        assert getattr(quick, name) == getattr(exact, name), name
    assert [type(value) for value in quick.values.values()] == [type(value) for value in exact.values.values()]
    assert list(quick.values) == list(exact.values)
    return quick.described is not None


def identified(data):
    found = identify(io.BytesIO(data), len(data))
    return found if found.name in DICOM_TYPES else None


def files_below(folder, most=30 * MIB):
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink() and path.stat().st_size <= most]


def compare_files(paths):
    """Compare them in three rounds, each in another order: what was learnt from one must not show in the others."""
    fast.forget()
    order = random.Random(3)
    known, fast_ones = {}, []
    for is_streamed in (False, True, False):
        order.shuffle(paths)
        fast_ones.append(0)
        for path in paths:
            data = path.read_bytes()
            if (found := identified(data)) is None:
                continue
            how = {"offset": found.dataset_offset or 0, "flags": found.flags}
            if path not in known:
                known[path] = exactly(data, **how)
            with path.open("rb") as stream:
                quick = quickly(data, stream if is_streamed else None, **how)
            try:
                fast_ones[-1] += assert_same(quick, known[path])
            except AssertionError as error:
                pytest.fail(f"{path.name}: {error}")
    return fast_ones


def test_all_packaged_files_read_the_same_again_and_again():
    counts = compare_files(files_below(DATA, MIB))
    assert counts[0] == counts[1] == counts[2] > 80


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS, reason="PIXELS_CORPUS is not set")
def test_the_corpus_reads_the_same_again_and_again():
    counts = compare_files(files_below(Path(CORPUS)))
    assert counts[0] == counts[1] == counts[2] > 0


# Data sets made here


def element(tag, vr, value):
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode()
    long = vr in {"OB", "OW", "SQ", "UN", "UT", "UC", "UR", "OD", "OF", "OL", "OV", "SV", "UV"}
    return head + (struct.pack("<HL", 0, len(value)) if long else struct.pack("<H", len(value))) + value


def implicit(tag, value):
    return struct.pack("<HHL", tag >> 16, tag & 0xFFFF, len(value)) + value


def item(content, *, delimited=False):
    if delimited:
        return b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + content + b"\xfe\xff\x0d\xe0\0\0\0\0"
    return b"\xfe\xff\x00\xe0" + struct.pack("<L", len(content)) + content


def delimited(tag, vr, content):
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + (vr.encode() + b"\0\0" if vr else b"")
    return head + b"\xff\xff\xff\xff" + content + b"\xfe\xff\xdd\xe0\0\0\0\0"


def part_10(data_set, uid=ExplicitVRLittleEndian):
    uid = uid.encode() + b"\0" * (len(uid) % 2)
    meta = element(0x00020001, "OB", b"\0\1") + element(0x00020010, "UI", uid)
    return bytes(128) + b"DICM" + element(0x00020000, "UL", struct.pack("<L", len(meta))) + meta + data_set


IDENTITY = element(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.7\0") + element(0x00080018, "UI", b"1.2.3.4\0")
IMPLICIT_IDENTITY = implicit(0x00080016, b"1.2.840.10008.5.1.4.1.1.7\0") + implicit(0x00080018, b"1.2.3.4\0")


@pytest.mark.parametrize("is_rounded", [False, True])
def test_long_lists_of_numbers_are_written_as_python_writes_them(is_rounded):
    rng = random.Random(4)
    values = [rng.choice((-1, 1)) * 10 ** rng.uniform(-7, 20) for _ in range(3000)]
    values = [round(value, rng.randrange(5)) for value in values if abs(value) < 1e15] if is_rounded else values
    for part in (values[at : at + 100] for at in range(0, len(values) - 99, 100)):
        texts = b"\\".join(b"%.8g" % value for value in part)
        data = IDENTITY + element(0x300A00F6, "DS", texts + b" " * (len(texts) % 2)) + element(0x300A00F8, "FD", struct.pack("<100d", *part))
        assert_same(*both(part_10(data)))


@pytest.mark.parametrize(
    "odd",
    [
        b"7",
        b"-0",
        b"-0.0",
        b"007.50",
        b"5.",
        b".5",
        b"+1.5",
        b" 1.5",
        b"1.5e3",
        b"1e999",
        b"9" * 400 + b".0",
        b"",
        b"-",
        b"1-2",
        b"1.5.2",
        b"0.00001",
    ],
)
def test_one_number_of_another_form_changes_nothing_about_the_others(odd):
    plain = [b"%.2f" % (number * 0.37 - 40) for number in range(200)]
    for at in (0, 100, 200):
        text = b"\\".join([*plain[:at], odd, *plain[at:]])
        assert_same(*both(part_10(IDENTITY + element(0x300A00F6, "DS", text + b" " * (len(text) % 2)))))


@pytest.mark.parametrize("odd", [b"", b"-", b"1,5", b"x"])
def test_integers_before_one_number_of_another_form_are_not_tried_in_all_ways(odd):
    text = b"12\\-34\\" * 30 + odd
    assert_same(*both(part_10(IDENTITY + element(0x300A00F6, "DS", text + b" " * (len(text) % 2)))))


def is_read_fast(data):
    """Compare it three times: met first, met again, and as a run."""
    return [assert_same(*both(data)) for _ in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("vr", "value"),
    [
        ("AE", b" STORE SCP "),
        ("AE", b"STORE\0"),
        ("AS", b"042Y"),
        ("AT", b"\x10\0\x20\0"),
        ("AT", b"\x10\0\x20\0\x08\0\x18\0"),
        ("CS", b"ORIGINAL\\PRIMARY "),
        ("CS", b"  "),
        ("DA", b"20240229"),
        ("DS", b"1.50"),
        ("DS", b"-0"),
        ("DS", b"1e3\\ .5\\+2. "),
        ("DS", b"1e999 "),
        ("DS", b"nan "),
        ("DS", b"1\\\\2"),
        ("DS", b"1,5 "),
        ("DS", b"1_0 "),
        ("DS", b"  "),
        ("FD", struct.pack("<d", 0.1)),
        ("FD", struct.pack("<d", float("nan"))),
        ("FL", struct.pack("<2f", 0.1, -2.5)),
        ("FL", b"\0\0\0"),
        ("IS", b"007 "),
        ("IS", b"1.0 "),
        ("IS", b"1.5 "),
        ("IS", b"9007199254740993"),
        ("IS", b"-3\\+4 "),
        ("LO", b"a \\ b "),
        ("LO", b'"quoted" '),
        ("LO", b"tab\tbed "),
        ("LO", b"caf\xe9"),
        ("LO", b"x\0\0\0"),
        ("LO", b" x \0 "),
        ("LT", b"two\r\nlines "),
        ("OB", b"\1\2"),
        ("OB", bytes(1024)),
        ("OB", bytes(1026)),
        ("OF", bytes(8)),
        ("PN", b"A^B=\xc4=C"),
        ("PN", b"A^B^^"),
        ("PN", b"A^B\\C^D"),
        ("PN", b" =="),
        ("PN", b"A" * 200),
        ("SH", b"\x1b$B"),
        ("SL", struct.pack("<l", -5)),
        ("SS", struct.pack("<3h", -5, 6, 7)),
        ("ST", b"a\\b "),
        ("SV", struct.pack("<q", -(2**62))),
        ("TM", b"101500.5"),
        ("UI", b"1.2.3\0"),
        ("UI", b" 1.2.3 "),
        ("UI", b"1.2\\1.3\0"),
        ("UL", struct.pack("<L", 2**31)),
        ("UL", b"\0\0"),
        ("UN", b"ABCD"),
        ("UN", bytes(2000)),
        ("UR", b"http://x "),
        ("US", b"\1\0"),
        ("US", b"\1\0\2\0"),
        ("UT", b"text "),
        ("UV", struct.pack("<Q", 2**63)),
    ],
)
def test_values_of_each_vr(vr, value):
    private = element(0x00090010, "LO", b"SOMEONE ")
    for one in (value, b""):
        # Where the tag is known, where it is private, and within a sequence.
        assert is_read_fast(part_10(IDENTITY + private + element(0x00091001, vr, one)))
        assert is_read_fast(part_10(IDENTITY + element(0x00081140, "SQ", item(element(0x00081030, vr, one)))))
        is_read_fast(part_10(IDENTITY + element(0x00100020, vr, one) + element(0x00200013, vr, one) + element(0x00281050, vr, one)))


@pytest.mark.parametrize("charset", [b"", b"ISO_IR 100", b"ISO_IR 192", b"ISO_IR 13 ", b"\\ISO 2022 IR 87 ", b"GB18030 ", b"ISO_IR 144", b"nonsense"])
def test_character_sets_hold_from_where_they_are_written(charset):
    text = {b"ISO_IR 192": "Müller^Jörg", b"GB18030 ": "王^小东", b"ISO_IR 144": "Люк^x"}.get(charset, "A\\~^B")
    raw = text.encode({b"ISO_IR 192": "utf-8", b"GB18030 ": "gb18030", b"ISO_IR 144": "iso8859_5"}.get(charset, "latin_1"))
    name = element(0x00100010, "PN", raw + b" " * (len(raw) % 2))
    inner = element(0x00080005, "CS", charset) + element(0x00080104, "LO", raw)
    is_read_fast(part_10(element(0x00080005, "CS", charset) + IDENTITY + name))
    is_read_fast(part_10(IDENTITY + element(0x00082218, "SQ", item(inner) + item(element(0x00080104, "LO", raw)))))


def test_a_character_set_behind_text_is_left_to_pydicom():
    assert not assert_same(*both(part_10(element(0x00080001, "UL", bytes(4)) + element(0x00080003, "LO", b"x ") + element(0x00080005, "CS", b""))))


@pytest.mark.parametrize("is_implicit", [False, True])
def test_the_character_set_of_a_directory_record_holds_behind_what_points_to_the_file(is_implicit):
    def one(tag, vr, value):
        return implicit(tag, value) if is_implicit else element(tag, vr, value)

    def is_fast(*before):
        record = b"".join(before) + one(0x00080005, "CS", b"ISO_IR 192") + one(0x00100010, "PN", "Müller".encode() + b" ")
        identity, uid = (IMPLICIT_IDENTITY, ImplicitVRLittleEndian) if is_implicit else (IDENTITY, ExplicitVRLittleEndian)
        return is_read_fast(part_10(identity + one(0x00082218, "SQ", item(record) + item(record, delimited=True)), uid))

    pointing = one(0x00041400, "UL", bytes(4)), one(0x00041430, "CS", b"PATIENT "), one(0x00041510, "UI", b"1.2\0")
    assert is_fast(*pointing)
    assert not is_fast(*pointing, one(0x00041601, "LO", "ü".encode()))


@pytest.mark.parametrize("creator", [b"SIEMENS CSA HEADER", b"GEMS_IDEN_01", b"UNHEARD OF"])
@pytest.mark.parametrize("value", [b"", b"12", b"1234", b"12345678", b"123"])
def test_private_elements_depend_on_their_creators(creator, value):
    creator += b" " * (len(creator) % 2)
    for number in (1, 2, 8, 9, 0x30):
        for block in (0x10, 0x11):
            tag = 0x00291000 - 0x1000 + (block << 8) + number
            data_set = implicit(0x00290010, creator) + implicit(0x00290011, b"OTHER ") + implicit(tag, value) + implicit(0x00310008, value)
            is_read_fast(part_10(IMPLICIT_IDENTITY + data_set, ImplicitVRLittleEndian))
            data_set = element(0x00290010, "LO", creator) + element(0x00290011, "LO", b"OTHER ") + element(tag, "UN", value)
            is_read_fast(part_10(IDENTITY + data_set))


@pytest.mark.parametrize("representation", [b"\0\0", b"\1\0", b"", b"\1", None])
def test_what_depends_on_the_pixel_representation(representation):
    head = IMPLICIT_IDENTITY + (implicit(0x00280103, representation) if representation is not None else b"")
    data_set = head + implicit(0x00280106, b"\xff\xff") + implicit(0x00280120, b"\0\x80") + implicit(0x00281101, b"\xff\xff\0\0\x10\0")
    for rest in (b"", implicit(0x7FE00010, bytes(8))):
        is_fast = is_read_fast(part_10(data_set + rest, ImplicitVRLittleEndian))
        assert is_fast == (representation in {b"\0\0", b"\1\0"})


@pytest.mark.parametrize("representation", [b"\0\0", b"\1\0", b"", None])
@pytest.mark.parametrize("is_delimited", [False, True])
def test_what_depends_on_the_pixel_representation_within_sequences(representation, is_delimited):
    mapped = implicit(0x00283002, b"\xff\xff\0\0\x10\0") + implicit(0x00409211, b"\xff\xff") + implicit(0x00409216, b"\0\x80")
    signed = implicit(0x00280103, b"\1\0") + mapped
    head = IMPLICIT_IDENTITY + (implicit(0x00280103, representation) if representation is not None else b"")

    def sequence(tag, content):
        return delimited(tag, "", item(content)) if is_delimited else implicit(tag, item(content))

    def is_fast(*contents):
        return is_read_fast(part_10(b"".join(contents), ImplicitVRLittleEndian))

    is_known = is_delimited or representation != b""
    assert is_fast(head, sequence(0x00409096, mapped)) == is_known
    assert is_fast(head, sequence(0x52009230, sequence(0x00409096, mapped))) == is_known
    assert not is_fast(head, sequence(0x00409096, signed))
    assert is_fast(head, delimited(0x52009230, "", item(sequence(0x00409096, mapped))))
    # Before it, and before one of an item's own, it is not known.
    assert is_fast(IMPLICIT_IDENTITY, sequence(0x00081140, mapped), head[len(IMPLICIT_IDENTITY) :]) == is_delimited
    is_fast(head, sequence(0x52009230, sequence(0x00081140, mapped) + signed))


@pytest.mark.parametrize("is_implicit", [False, True])
def test_sequences_of_defined_and_undefined_length_nest(is_implicit):
    def sequence(tag, content):
        return implicit(tag, content) if is_implicit else element(tag, "SQ", content)

    def endless(tag, content):
        return delimited(tag, "" if is_implicit else "SQ", content)

    def plain(tag, vr, value):
        return implicit(tag, value) if is_implicit else element(tag, vr, value)

    uid = plain(0x00081155, "UI", b"1.2.3.9\0")
    private = plain(0x00290010, "LO", b"SOMEONE ") + plain(0x00291001, "OB", bytes(1500))
    deep = sequence(0x00081199, item(uid) + item(b"") + item(uid + private, delimited=True))
    request = plain(0x00400009, "SH", b"STEP") + plain(0x00401001, "SH", b"PROC")
    data = part_10(
        (IMPLICIT_IDENTITY if is_implicit else IDENTITY)
        + sequence(0x00081115, item(plain(0x0020000E, "UI", b"1.2.8.\0\0"), delimited=True) + item(deep))
        + endless(0x00081140, item(uid) + item(deep, delimited=True) + item(b"", delimited=True))
        + private
        + endless(0x00400275, item(request) + item(request))
        + sequence(0x52009229, b"")
        + endless(0x52009230, b""),
        ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian,
    )
    assert is_read_fast(data)
    found, _ = both(data)
    assert found.values["ScheduledProcedureStepID"] == ["STEP", "STEP"]
    assert "bulkdata/00081115/1/00081199/2/00291001" in found.meta


def test_a_bulk_value_is_referred_to_by_the_path_that_leads_to_it():
    icon = element(0x00880200, "SQ", item(element(0x7FE00010, "OW", bytes(4))))
    deep = element(0x00081199, "SQ", item(icon))
    data = part_10(IDENTITY + element(0x00081115, "SQ", item(deep) + item(deep)) + element(0x00081140, "SQ", item(b"") + item(icon)))
    assert is_read_fast(data)
    assert both(data)[0].meta.count("bulkdata/00081115/1/00081199/0/00880200/0/7FE00010") == 1


@pytest.mark.parametrize("tail", [b"", b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0abcd", b"\xfa\xff\xfa\xffSQ\0\0\0\0\0\0", b"\0", bytes(200)])
@pytest.mark.parametrize("length", [0, 8, 70_000])
def test_pixel_data_and_what_follows(tail, length, tmp_path):
    header = part_10(IDENTITY + element(0x00280010, "US", b"\4\0"))
    fragments = b"".join(item(part) for part in (b"", b"\xff\xd8\xff\xc3" + bytes(length)))
    for pixels in (element(0x7FE00010, "OW", bytes(length)), delimited(0x7FE00010, "OB", fragments)):
        data = header + pixels + tail
        is_fast = is_read_fast(data)
        assert is_fast == (not tail or tail[4:6].isalpha())
        path = tmp_path / "file"
        path.write_bytes(data)
        with path.open("rb") as stream:
            assert assert_same(*both(data, stream)) == is_fast
        assert not is_read_fast(data[: len(header) + 13]) or not length


def test_a_long_header_is_read_in_growing_pieces(tmp_path):
    long = element(0x00090010, "LO", b"SOMEONE ") + element(0x00091001, "OB", bytes(600_000)) + element(0x00100020, "LO", b"ID")
    data = part_10(IDENTITY + long + element(0x7FE00010, "OW", bytes(3 * MIB)))
    path = tmp_path / "file"
    path.write_bytes(data)
    for _ in range(3):
        with path.open("rb", buffering=0) as stream:
            assert assert_same(*both(data, stream))


def structure_set(size, *, is_implicit=True, is_delimited=False):
    """Write a structure set of about `size` bytes, most of them contours three sequences deep, with points that do not repeat."""

    def plain(tag, vr, value):
        value += b" " * (len(value) % 2)
        return implicit(tag, value) if is_implicit else element(tag, vr, value)

    def sequence(tag, items):
        content = b"".join(item(one, delimited=is_delimited) for one in items)
        if is_delimited:
            return delimited(tag, "" if is_implicit else "SQ", content)
        return implicit(tag, content) if is_implicit else element(tag, "SQ", content)

    rng = random.Random(size)
    lines = [b"\\".join(b"%.2f" % (rng.random() * 500) for _ in range(1500)) for _ in range(40)]

    def contour(number):
        image = plain(0x00081150, "UI", b"1.2.840.10008.5.1.4.1.1.2\0") + plain(0x00081155, "UI", b"1.2.3.%04d\0" % (number % 400))
        points = b"%d.5\\" % number + lines[number % 40]
        return (
            sequence(0x30060016, [image])
            + plain(0x30060042, "CS", b"CLOSED_PLANAR")
            + plain(0x30060046, "IS", b"%d" % points.count(b"\\"))
            + plain(0x30060050, "DS", points)
        )

    numbers = iter(range(size // 10_300))
    regions = []
    while contours := [contour(number) for number, _ in zip(numbers, range(80), strict=False)]:
        regions.append(sequence(0x30060040, contours) + plain(0x30060084, "IS", b"%d" % len(regions)))
    identity = plain(0x00080016, "UI", b"1.2.840.10008.5.1.4.1.1.481.3\0") + plain(0x00080018, "UI", b"1.2.3.4\0")
    data_set = identity + sequence(0x30060039, [*regions, b""]) + sequence(0x300600B0, [])
    return part_10(data_set, ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian)


@pytest.mark.parametrize(("size", "is_implicit", "is_delimited"), [(3, True, False), (1, True, True), (1, False, False), (1, False, True)])
def test_a_structure_set_is_read_where_it_lies(size, is_implicit, is_delimited, tmp_path):
    data = structure_set(size * MIB, is_implicit=is_implicit, is_delimited=is_delimited)
    exact = exactly(data)
    path = tmp_path / "file"
    path.write_bytes(data)
    fast.forget()
    with path.open("rb") as stream:
        assert assert_same(quickly(data, stream), exact)


@pytest.mark.skipif(sys.platform != "linux", reason="units of the peak differ")
def test_a_large_structure_set_takes_a_few_times_its_size(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(data := structure_set(24 * MIB))
    script = (
        "import resource, sys; from pixels_assets.dicom.reader import read_header\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before, stream = peak(), open(sys.argv[1], 'rb')\n"
        "header = read_header(stream, int(sys.argv[2]), max_deflated_bytes=1)\n"
        "print(peak() - before, len(header.meta), header.header, header.warnings == ['header_too_large'], header.described is not None)"
    )
    done = subprocess.run([sys.executable, "-c", script, path, str(len(data))], check=True, capture_output=True, text=True)
    peak, text, *rest = done.stdout.split()
    assert rest == ["None", "True", "True"]
    assert int(text) > 0.9 * len(data)
    # The bytes, the pieces of the text, and what is remembered; the bytes are gone when the pieces are joined.
    assert int(peak) < 3.5 * len(data) + 16 * MIB


def test_what_describes_the_pixels_is_given_as_bytes():
    palette = bytes(range(256)) * 16
    described = (
        element(0x00280010, "US", b"\4\0")
        + element(0x00281101, "US", b"\0\1\0\0\x10\0")
        + element(0x00281201, "OW", palette)
        + element(0x00283010, "SQ", item(b""))
    )
    for _ in range(3):
        found, _ = both(part_10(IDENTITY + described + element(0x7FE00010, "OW", bytes(8))))
        assert found.described == {
            0x00080016: ("UI", b"1.2.840.10008.5.1.4.1.1.7\0"),
            0x00280010: ("US", b"\4\0"),
            0x00281101: ("US", b"\0\1\0\0\x10\0"),
            0x00281201: ("OW", palette),
            0x00283010: ("SQ", item(b"")),
        }
    implicit_one = implicit(0x00280103, b"\1\0") + implicit(0x00280120, b"\0\x80")
    found, _ = both(part_10(IMPLICIT_IDENTITY + implicit_one, ImplicitVRLittleEndian))
    assert found.described[0x00280120] == ("SS", b"\0\x80")


def test_the_data_set_is_made_when_it_is_asked_for():
    data = (DATA / "test_files" / "CT_small.dcm").read_bytes()
    quick, exact = both(data)
    assert quick.described is not None
    assert quick.dataset == exact.dataset
    assert quick.dataset is quick.dataset


def test_memory_is_bounded_and_what_was_forgotten_is_learnt_again(monkeypatch):
    fast.forget()
    monkeypatch.setattr(fast, "MEMORY_BYTES", 200_000)
    data = (DATA / "test_files" / "CT_small.dcm").read_bytes()
    most = 0
    for number in range(1500):
        changed = data.replace(b"1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.12322", b"1.3.6.1.4.1.5962.1.1.1.1.1.20040119072730.%05d" % number)
        HeaderParser(changed, len(changed))
        most = max(most, fast.remembered())
    assert 200_000 < most < 400_000
    assert is_read_fast(data)


def test_contexts_are_bounded():
    fast.forget()
    for number in range(2500):
        data = part_10(IDENTITY + element(0x00090010, "LO", b"MAKER %04d" % number) + element(0x00091001, "UN", b"ab"))
        HeaderParser(data, len(data))
    assert len(fast._memory.contexts) <= 2010


# Mutations


def boundaries(data, start, is_implicit):
    """Offsets of the outermost elements."""
    found = []
    while start + 8 <= len(data):
        found.append(start)
        tag, vr = data[start : start + 4], data[start + 4 : start + 6]
        if tag == b"\xe0\x7f\x10\0":
            break
        if is_implicit:
            size, length = 8, int.from_bytes(data[start + 4 : start + 8], "little")
        elif vr in {b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"UC", b"UR"}:
            size, length = 12, int.from_bytes(data[start + 8 : start + 12], "little")
        else:
            size, length = 8, int.from_bytes(data[start + 6 : start + 8], "little")
        if length == 0xFFFFFFFF:
            end = data.find(b"\xfe\xff\xdd\xe0\0\0\0\0", start)
            size, length = 0, end + 8 - start if end > 0 else len(data)
        start += size + length
    return found


def mutated(rng, data, starts):
    """Damage a header in one to three ways."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        data += bytes(max(0, 140 - len(data)))
        at = rng.choice(starts)
        kind = rng.randrange(13)
        if kind == 0:
            data[rng.randrange(100, len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[rng.randrange(100, len(data))] = rng.choice((0, 0x20, 0x5C, 0x3D, 0x22, 0x1B, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del data[rng.randrange(100, len(data) + 1) :]
        elif kind == 3:
            place = at + rng.choice((4, 6, 8))
            data[place : place + 2] = rng.choice(
                (b"\0\0", b"\xff\xff", b"\1\0", struct.pack("<H", rng.randrange(65536)), struct.pack("<H", rng.randrange(40)))
            )
        elif kind == 4:
            data[at + 4 : at + 6] = rng.choice(
                b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV ZZ".split()
            )
        elif kind == 5:
            vr = rng.choice(("LO", "UN", "PN", "DS", "IS", "US", "FD", "UI", "SQ", "CS", "OB", "UT", "AT"))
            tag = rng.choice((0x00080005, 0x00081140, 0x00091001, 0x00100020, 0x00280103, 0x00280106, 0x00400275, 0x00081155, 0x60003000))
            value = rng.choice((b"", b"1\\2 ", b"ISO_IR 192", bytes(rng.randrange(12)), item(element(0x00081155, "UI", b"1.2\0")), bytes(1100)))
            data[at:at] = element(tag, vr, value) if rng.random() < 0.7 else implicit(tag, value)
        elif kind == 6:
            other = rng.choice(starts)
            data[min(at, other) : max(at, other)] = b""
        elif kind == 7:
            data[at:at] = data[at : rng.choice(starts)]
        elif kind == 8:
            data[at : at + 4] = struct.pack(
                "<HH", rng.choice((2, 8, 9, 0x10, 0x28, 0x29, 0x6000, 0x7FE0, 0xFFFE)), rng.choice((0, 5, 0x10, 0x1010, 0x3000))
            )
        elif kind == 9:
            data[at : at + 8] = data[at : at + 4] + b"SQ\0\0"
        elif kind == 10:
            data[at:at] = delimited(
                0x00081140, rng.choice(("SQ", "UN", "OB", "")), item(bytes(data[at : rng.choice(starts)]), delimited=rng.random() < 0.5)
            )
        elif kind == 11:
            place = bytes(data).find(b"1.2.840.10008.1.2")
            data[place : place + 20] = rng.choice(
                (b"1.2.840.10008.1.2\0\0\0", b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0", b"1.2.840.10008.1.2.5\0", b"1.2.3\0" + bytes(14))
            )
        else:
            data += rng.choice((b"\0", bytes(300), b"\xfc\xff\xfc\xffOB\0\0\2\0\0\0\0\0", element(0xFFFAFFFA, "SQ", b"")))
    return bytes(data)


def fuzz_bases():
    names = (
        "CT_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small.dcm",
        "JPEG2000.dcm",
        "rtplan.dcm",
        "reportsi.dcm",
        "nested_priv_SQ.dcm",
        "priv_SQ.dcm",
    )
    names += (
        "test-SR.dcm",
        "SC_rgb_rle.dcm",
        "UN_sequence.dcm",
        "examples_overlay.dcm",
        "rtdose_1frame.dcm",
        "waveform_ecg.dcm",
        "eCT_Supplemental.dcm",
    )
    bases = []
    for name in (*names, *(f"{name}.dcm" for name in ("chrFren", "chrH31", "chrX1", "chrKoreanMulti"))):
        for path in DATA.rglob(name):
            data = path.read_bytes()
            found = read_header(io.BytesIO(data), len(data), max_deflated_bytes=MIB)
            assert isinstance(found, Header)
            end = (found.pixel_offset or len(data)) + 40
            data = data[:end]
            start = data.find(b"\x02\0\x10\0UI")
            start += 8 + int.from_bytes(data[start + 6 : start + 8], "little") if start >= 0 else 0
            is_implicit = found.transfer_syntax == ImplicitVRLittleEndian
            if len(data) > 24_000:
                continue
            bases.append((data, boundaries(data, 132, False)[:1] + [one for one in boundaries(data, start, is_implicit) if one + 8 < len(data)]))
    assert len(bases) >= 15
    return bases


def test_mutated_headers_read_as_pydicom_reads_them():
    rng = random.Random(20260401)
    bases = fuzz_bases()
    fast.forget()
    known, fast_ones = {}, 0
    for number in range(MUTATIONS):
        if number % 20 == 0:
            base, starts = rng.choice(bases)
        data = mutated(rng, base, starts) if number % 5 else base
        with suppress(UnusualHeader, TooShort):  # the only two ways out
            HeaderParser(data, len(data))
        quick = _read_fast(io.BytesIO(data), len(data), ())
        if quick is None:
            continue  # what pydicom says of it is the answer
        exact = known.get(data) or exactly(data)
        if data is base:
            known[data] = exact
        try:
            fast_ones += assert_same(quick, exact)
        except AssertionError as error:
            pytest.fail(f"mutation {number}: {error}\n{data.hex()}")
    assert fast_ones > MUTATIONS / 10
