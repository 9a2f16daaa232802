"""One frame of an object as an array."""

import importlib.util
import io
import struct
import warnings
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import generate_frames
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.pixels import pixel_array
from pydicom.pixels.processing import convert_color_space

from pixels_assets.dicom.codecs import NoPixels, Reason
from pixels_assets.dicom.pixels import PixelSource, frame_bytes, index_frames, read_frame

EXPLICIT, BIG_ENDIAN, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
JPEG, JPEG_LS, JPEG_2000, RLE = (f"1.2.840.10008.1.2.{last}" for last in ("4.50", "4.80", "4.90", "5"))
LIMIT = 1 << 24
PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}

FOLDERS = [Path(pydicom.__file__).parent / "data"]
if (found := importlib.util.find_spec("data_store")) is not None:
    FOLDERS += [Path(place) for place in found.submodule_search_locations or []]
PACKAGED = sorted(file for folder in FOLDERS for file in folder.rglob("*.dcm"))


def source_of(path):
    data = path.read_bytes()
    stream = io.BytesIO(data)
    dataset = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    syntax = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", ""))
    if syntax == DEFLATED:
        start = 144 + read_file_meta_info(path).FileMetaInformationGroupLength
        data = zlib.decompressobj(-15).decompress(data[start:], LIMIT)
        stream = io.BytesIO(data)
        dataset = read_dataset(stream, is_implicit_VR=False, is_little_endian=True, stop_when=lambda tag, vr, length: tag in PIXEL_TAGS)
    return PixelSource(dataset, syntax or EXPLICIT, stream, stream.tell(), len(data))


def image(value, *, syntax=EXPLICIT, tag=0x7FE00010, vr=b"OW", length=None, **attributes):
    """Write a header, append a pixel data element byte by byte, and read the header back."""
    big = syntax == BIG_ENDIAN
    dataset = pydicom.Dataset()
    defaults = {"Rows": 6, "Columns": 8, "SamplesPerPixel": 1, "BitsAllocated": 16, "BitsStored": 16, "PhotometricInterpretation": "MONOCHROME2"}
    for keyword, content in (defaults | attributes).items():
        if content is not None:
            setattr(dataset, keyword, content)
    header = io.BytesIO()
    pydicom.dcmwrite(header, dataset, implicit_vr=False, little_endian=not big, force_encoding=True)
    offset = header.tell()
    order = ">" if big else "<"
    header.write(struct.pack(f"{order}HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, len(value) if length is None else length) + value)
    stream = io.BytesIO(header.getvalue())
    written = read_dataset(stream, False, not big, stop_when=lambda tag, vr, length: tag in PIXEL_TAGS)
    return PixelSource(written, syntax, stream, offset, len(header.getvalue()))


def items(*fragments, table=b"", delimiter=True):
    parts = [b"\xfe\xff\x00\xe0" + struct.pack("<L", len(part)) + part for part in (table, *fragments)]
    return b"".join(parts) + (b"\xfe\xff\xdd\xe0\x00\x00\x00\x00" if delimiter else b"")


def encapsulated(value, syntax=JPEG_LS, **attributes):
    return image(value, syntax=syntax, vr=b"OB", length=0xFFFFFFFF, **attributes)


def reason(source, **options):
    with pytest.raises(NoPixels) as caught:
        read_frame(source, max_bytes=options.pop("max_bytes", LIMIT), **options)
    return caught.value.code


def frames_of(count, dtype="<u2", rows=6, columns=8):
    return (np.arange(count * rows * columns, dtype=np.uint32) * 37 % 251).astype(dtype).reshape(count, rows, columns)


# Against pydicom


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_packaged_files_decode_as_pydicom_decodes_them(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path)
            middle = int(dataset.get("NumberOfFrames") or 1) // 2
            expected = pixel_array(dataset, index=middle)
        except Exception as error:
            pytest.skip(f"pydicom cannot: {type(error).__name__}")
        frame = read_frame(source_of(path), max_bytes=1 << 26)
    array = frame.array
    if frame.description.photometric.startswith("YBR_FULL"):
        array = convert_color_space(array, "YBR_FULL", "RGB")
    assert frame.index == middle
    assert array.shape == expected.shape
    lossy = frame.description.photometric == "RGB" and dataset.file_meta.TransferSyntaxUID == JPEG
    assert np.abs(array.astype(np.float64) - expected).max() <= (6 if lossy else 0)


# Native


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "u8"])
def test_native_integers_of_any_width_sign_and_byte_order_are_read(dtype, syntax):
    order = ">" if syntax == BIG_ENDIAN else "<"
    expected = frames_of(1, f"{order}{dtype}")
    bits = 8 * expected.itemsize
    source = image(expected.tobytes(), syntax=syntax, BitsAllocated=bits, BitsStored=bits, PixelRepresentation=int(dtype[0] == "i"))
    frame = read_frame(source, max_bytes=LIMIT)
    assert frame.array.dtype == np.dtype(f"={dtype}")
    assert np.array_equal(frame.array, expected[0])


@pytest.mark.parametrize(("tag", "dtype", "vr"), [(0x7FE00008, "f4", b"OF"), (0x7FE00009, "f8", b"OD")])
def test_float_and_double_pixel_data_are_read(tag, dtype, vr):
    expected = frames_of(3, f"<{dtype}") / 7
    source = image(expected.astype(f"<{dtype}").tobytes(), tag=tag, vr=vr, BitsAllocated=None, BitsStored=None, NumberOfFrames=3)
    assert np.array_equal(read_frame(source, max_bytes=LIMIT).array, expected[1].astype(dtype))


@pytest.mark.parametrize("planar", [0, 1])
def test_both_planar_configurations_give_colour_last(planar):
    expected = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)
    value = expected.transpose(2, 0, 1).tobytes() if planar else expected.tobytes()
    source = image(value, SamplesPerPixel=3, PlanarConfiguration=planar, BitsAllocated=8, BitsStored=8, PhotometricInterpretation="RGB")
    assert np.array_equal(read_frame(source, max_bytes=LIMIT).array, expected)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN])
def test_bit_packed_frames_need_not_start_at_a_byte(index, syntax):
    expected = np.random.default_rng(3).integers(0, 2, (4, 5, 7), dtype=np.uint8)
    packed = np.packbits(expected, bitorder="little")
    packed = np.append(packed, np.zeros(len(packed) % 2, np.uint8))
    value = packed.view("<u2").byteswap().tobytes() if syntax == BIG_ENDIAN else packed.tobytes()
    source = image(value, syntax=syntax, Rows=5, Columns=7, BitsAllocated=1, BitsStored=1, NumberOfFrames=4)
    assert np.array_equal(read_frame(source, max_bytes=LIMIT, index=index).array, expected[index])


@pytest.mark.parametrize("index", range(3))
def test_big_endian_words_of_bytes_are_swapped_and_bytes_are_not(index):
    expected = frames_of(3, "u1", rows=3, columns=5)
    flat = np.append(expected.reshape(-1), np.uint8(0)).astype(np.uint8)
    options = {"syntax": BIG_ENDIAN, "Rows": 3, "Columns": 5, "BitsAllocated": 8, "BitsStored": 8, "NumberOfFrames": 3}
    words = image(flat.view("<u2").byteswap().tobytes(), vr=b"OW", **options)
    octets = image(flat.tobytes(), vr=b"OB", **options)
    assert np.array_equal(read_frame(words, max_bytes=LIMIT, index=index).array, expected[index])
    assert np.array_equal(read_frame(octets, max_bytes=LIMIT, index=index).array, expected[index])


def test_the_private_syntax_of_ge_has_big_endian_pixels_behind_a_little_endian_header():
    source = image(frames_of(1, ">u2").tobytes(), syntax="1.2.840.113619.5.2")
    assert np.array_equal(read_frame(source, max_bytes=LIMIT).array, frames_of(1)[0])


def test_native_ybr_full_422_gives_two_pixels_the_same_colours():
    value = bytes([10, 20, 100, 200] * 24)
    source = image(value, SamplesPerPixel=3, BitsAllocated=8, BitsStored=8, PhotometricInterpretation="YBR_FULL_422", PlanarConfiguration=0)
    frame = read_frame(source, max_bytes=LIMIT)
    assert (frame.array.shape, frame.description.photometric) == ((6, 8, 3), "YBR_FULL")
    assert frame.array[0, :2].tolist() == [[10, 100, 200], [20, 100, 200]]


@pytest.mark.parametrize("representation", [0, 1])
def test_overlays_in_the_high_bits_do_not_reach_the_values(representation):
    values = (np.arange(48) - 20 * representation).astype("<i2").reshape(6, 8)
    cells = (values.view("<u2") & 0x0FFF) | np.uint16(0x5000)
    frame = read_frame(image(cells.tobytes(), BitsStored=12, HighBit=11, PixelRepresentation=representation), max_bytes=LIMIT)
    assert np.array_equal(frame.array, values)


def test_values_in_the_high_bits_are_shifted_down():
    values = np.arange(48, dtype="<u2").reshape(6, 8) * 80
    frame = read_frame(image((values << 4).tobytes(), BitsStored=12, HighBit=15), max_bytes=LIMIT)
    assert np.array_equal(frame.array, values)


# Which frame


def test_the_middle_frame_is_read_by_default():
    frame = read_frame(image(frames_of(7).tobytes(), NumberOfFrames=7), max_bytes=LIMIT)
    assert (frame.index, frame.number_of_frames) == (3, 7)
    assert np.array_equal(frame.array, frames_of(7)[3])


def test_the_last_complete_frame_is_read_when_the_middle_one_is_cut():
    frame = read_frame(image(frames_of(7).tobytes()[: 96 * 2 + 50], length=96 * 7, NumberOfFrames=7), max_bytes=LIMIT)
    assert frame.index == 1
    assert np.array_equal(frame.array, frames_of(7)[1])


def test_a_frame_asked_for_by_number_is_that_frame_or_a_reason():
    source = image(frames_of(7).tobytes()[: 96 * 2 + 50], length=96 * 7, NumberOfFrames=7)
    assert np.array_equal(read_frame(source, max_bytes=LIMIT, index=1).array, frames_of(7)[1])
    assert reason(source, index=2) is Reason.PIXEL_DATA_TRUNCATED
    assert reason(source, index=7) is Reason.NO_SUCH_FRAME
    assert reason(source, index=-1) is Reason.NO_SUCH_FRAME


def test_a_single_frame_cut_short_is_truncated():
    assert reason(image(frames_of(1).tobytes()[:-1], length=96)) is Reason.PIXEL_DATA_TRUNCATED


class CountingStream(io.BytesIO):
    taken = 0

    def read(self, size=-1):
        data = super().read(size)
        self.taken += len(data)
        return data

    def readinto(self, buffer):
        count = super().readinto(buffer)
        self.taken += count
        return count


@pytest.mark.parametrize("table", [True, False])
def test_only_the_needed_frame_is_read(table):
    coded = [imagecodecs.jpegls_encode(frame) for frame in np.random.default_rng(0).integers(0, 65535, (60, 64, 64), np.uint16)]
    coded = [data + b"\x00" * (len(data) % 2) for data in coded]
    offsets = np.cumsum([0, *(len(data) + 8 for data in coded[:-1])]).astype("<u4").tobytes() if table else b""
    sources = [
        image(np.zeros((60, 64, 64), "<u2").tobytes(), Rows=64, Columns=64, NumberOfFrames=60),
        encapsulated(items(*coded, table=offsets), Rows=64, Columns=64, NumberOfFrames=60),
    ]
    for source in sources:
        stream = CountingStream(source.stream.getvalue())
        counted = PixelSource(source.dataset, source.transfer_syntax, stream, source.offset, source.length)
        read_frame(counted, max_bytes=LIMIT)
        assert stream.taken < 2 * 64 * 64 * 2


# Encapsulated


def coded_frames(count=5):
    coded = [imagecodecs.jpegls_encode(frame) for frame in frames_of(count)]
    return [data + b"\x00" * (len(data) % 2) for data in coded]


def halves(data):
    cut = len(data) // 4 * 2
    return [data[:cut], data[cut:]]


def offsets_of(groups, width):
    sizes = [sum(len(part) + 8 for part in group) for group in groups]
    return np.cumsum([0, *sizes[:-1]]).astype(f"<u{width}").tobytes()


@pytest.mark.parametrize("index", [0, 2, 4])
@pytest.mark.parametrize("delimiter", [True, False])
@pytest.mark.parametrize("table", ["none", "basic", "wrong", "zeros"])
@pytest.mark.parametrize("fragments", [1, 2])
def test_frames_are_found_with_right_wrong_and_no_offset_tables(index, delimiter, table, fragments):
    groups = [halves(data) if fragments == 2 else [data] for data in coded_frames()]
    offsets = {"none": b"", "basic": offsets_of(groups, 4), "wrong": b"\x06\x00\x00\x00" * 5, "zeros": bytes(20)}[table]
    value = items(*(part for group in groups for part in group), table=offsets, delimiter=delimiter)
    frame = read_frame(encapsulated(value, NumberOfFrames=5), max_bytes=LIMIT, index=index)
    assert np.array_equal(frame.array, frames_of(5)[index])


@pytest.mark.parametrize(("scale", "shift"), [(1, 0), (1, 3), (0, 0)])
def test_frames_are_found_by_an_extended_offset_table_and_without_a_wrong_one(scale, shift):
    coded = coded_frames()
    lengths = np.array([min(map(len, coded)) if scale == 0 else len(data) for data in coded], "<u8").tobytes()
    offsets = (np.frombuffer(offsets_of([[data] for data in coded], 8), "<u8") * np.uint64(scale) + np.uint64(shift)).astype("<u8").tobytes()
    source = encapsulated(items(*coded), NumberOfFrames=5, ExtendedOffsetTable=offsets, ExtendedOffsetTableLengths=lengths)
    assert np.array_equal(read_frame(source, max_bytes=LIMIT).array, frames_of(5)[2])


def test_one_frame_in_many_fragments_is_joined():
    data = coded_frames(1)[0]
    parts = [data[at : at + 10] for at in range(0, len(data), 10)]
    assert np.array_equal(read_frame(encapsulated(items(*parts)), max_bytes=LIMIT).array, frames_of(1)[0])


@pytest.mark.parametrize("table", [True, False])
def test_the_last_complete_encapsulated_frame_is_read_when_the_middle_one_is_cut(table):
    coded = coded_frames()
    offsets = offsets_of([[data] for data in coded], 4) if table else b""
    stop = 8 + len(offsets) + sum(len(data) + 8 for data in coded[:2]) + 20
    frame = read_frame(encapsulated(items(*coded, table=offsets)[:stop], NumberOfFrames=5), max_bytes=LIMIT)
    assert frame.index == 1
    assert np.array_equal(frame.array, frames_of(5)[1])


def test_cutting_an_encapsulated_file_anywhere_gives_a_whole_frame_or_a_reason():
    coded = coded_frames(3)
    value = items(*coded, table=offsets_of([[data] for data in coded], 4))
    ends = np.cumsum([8 + 12] + [len(data) + 8 for data in coded])[1:]
    for stop in range(len(value)):
        source = encapsulated(value[:stop], NumberOfFrames=3)
        whole = int((ends <= stop).sum())
        if whole == 0:
            assert reason(source) in (Reason.PIXEL_DATA_TRUNCATED, Reason.BAD_ENCAPSULATION)
            continue
        frame = read_frame(source, max_bytes=LIMIT)
        assert frame.index == min(whole - 1, 1)
        assert np.array_equal(frame.array, frames_of(3)[frame.index])


# Frames as they are stored


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_stored_frames_are_the_codestreams_that_were_put_in(table, parts):
    groups = [halves(data) if parts == 2 else [data] for data in coded_frames()]
    value = items(*(part for group in groups for part in group), table=offsets_of(groups, 4) if table else b"")
    source = encapsulated(value, NumberOfFrames=5)
    index = index_frames(source)
    assert index.frames == 5
    assert [frame_bytes(source.stream, index, frame, max_bytes=LIMIT).data for frame in range(5)] == [b"".join(group) for group in groups]
    assert frame_bytes(source.stream, index, 0, max_bytes=LIMIT).transfer_syntax == JPEG_LS


def test_offset_tables_tell_frames_where_codestreams_have_no_signature():
    groups = [[b"\x01" * 20, b"\x02" * 20], [b"\x03" * 20], [b"\x04" * 20, b"\x05" * 6]]
    value = items(*(part for group in groups for part in group), table=offsets_of(groups, 4))
    source = encapsulated(value, RLE, NumberOfFrames=3)
    index = index_frames(source)
    assert [frame_bytes(source.stream, index, frame, max_bytes=LIMIT).data for frame in range(3)] == [b"".join(group) for group in groups]


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4"])
def test_stored_native_frames_are_little_endian(syntax, dtype):
    expected = frames_of(3, f"<{dtype}", rows=3, columns=6)
    bits = 8 * expected.itemsize
    value = expected.astype(f"{'>' if syntax == BIG_ENDIAN else '<'}{dtype}").tobytes()
    source = image(value, syntax=syntax, vr=b"OB" if bits == 8 else b"OW", Rows=3, Columns=6, BitsAllocated=bits, BitsStored=bits, NumberOfFrames=3)
    index = index_frames(source)
    for frame in range(3):
        found = frame_bytes(source.stream, index, frame, max_bytes=LIMIT)
        assert found.data == expected[frame].tobytes()
        assert found.transfer_syntax == EXPLICIT


@pytest.mark.parametrize("syntax", [EXPLICIT, BIG_ENDIAN])
def test_stored_frames_of_bits_start_at_a_byte(syntax):
    expected = np.random.default_rng(3).integers(0, 2, (4, 5, 7), dtype=np.uint8)
    packed = np.packbits(expected, bitorder="little")
    packed = np.append(packed, np.zeros(len(packed) % 2, np.uint8))
    value = packed.view("<u2").byteswap().tobytes() if syntax == BIG_ENDIAN else packed.tobytes()
    source = image(value, syntax=syntax, Rows=5, Columns=7, BitsAllocated=1, BitsStored=1, NumberOfFrames=4)
    index = index_frames(source)
    for frame in range(4):
        assert frame_bytes(source.stream, index, frame, max_bytes=LIMIT).data == np.packbits(expected[frame], bitorder="little").tobytes()


def test_stored_frames_that_are_not_there_have_a_reason():
    source = image(frames_of(7).tobytes()[: 96 * 2 + 50], length=96 * 7, NumberOfFrames=7)
    index = index_frames(source)
    assert index.frames == 2
    for frame in (-1, 2, 7):
        with pytest.raises(NoPixels) as caught:
            frame_bytes(source.stream, index, frame, max_bytes=LIMIT)
        assert caught.value.code is Reason.NO_SUCH_FRAME
    with pytest.raises(NoPixels) as caught:
        frame_bytes(source.stream, index, 0, max_bytes=10)
    assert caught.value.code is Reason.FRAME_TOO_LARGE


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_stored_frames_of_packaged_files_are_those_that_pydicom_finds(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = pydicom.dcmread(path)
            count = int(dataset.get("NumberOfFrames") or 1)
            assert dataset.file_meta.TransferSyntaxUID.is_encapsulated
            expected = list(generate_frames(dataset.PixelData, number_of_frames=count))
        except Exception as error:
            pytest.skip(f"not encapsulated for pydicom: {type(error).__name__}")
        source = source_of(path)
        index = index_frames(source)
        assert [frame_bytes(source.stream, index, frame, max_bytes=LIMIT).data for frame in range(index.frames)] == expected


# Contradictions


@pytest.mark.parametrize("syntax", [EXPLICIT, "1.2.3.4"])
def test_encapsulated_frames_under_a_native_or_unknown_syntax_are_told_by_their_signature(syntax):
    assert np.array_equal(read_frame(encapsulated(items(*coded_frames(1)), syntax), max_bytes=LIMIT).array, frames_of(1)[0])


def test_encapsulated_bytes_without_signature_and_codec_are_refused():
    assert reason(encapsulated(items(frames_of(1).tobytes()), EXPLICIT)) is Reason.UNSUPPORTED_TRANSFER_SYNTAX


@pytest.mark.parametrize("syntax", [JPEG, RLE, "1.2.3.4"])
def test_native_pixels_under_another_syntax_are_read_only_when_their_length_fits_exactly(syntax):
    assert np.array_equal(read_frame(image(frames_of(1).tobytes(), syntax=syntax), max_bytes=LIMIT).array, frames_of(1)[0])
    assert reason(image(frames_of(1).tobytes() + b"\x00" * 6, syntax=syntax)) is Reason.UNSUPPORTED_TRANSFER_SYNTAX


def test_items_in_an_element_of_defined_length_are_read():
    source = image(items(*coded_frames(1)), syntax=JPEG_LS, vr=b"OB")
    assert np.array_equal(read_frame(source, max_bytes=LIMIT).array, frames_of(1)[0])


def test_a_bare_codestream_without_items_is_read():
    source = image(coded_frames(1)[0], syntax=JPEG_LS, vr=b"OB")
    assert np.array_equal(read_frame(source, max_bytes=LIMIT).array, frames_of(1)[0])


def test_an_undefined_length_without_items_is_bad_encapsulation():
    assert reason(encapsulated(b"\x00" * 96)) is Reason.BAD_ENCAPSULATION


# Lies


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"Rows": 65535, "Columns": 65535}, Reason.FRAME_TOO_LARGE),
        ({"Rows": 1000, "Columns": 1000}, Reason.PIXEL_DATA_TRUNCATED),
        ({"Rows": 0}, Reason.BAD_PIXEL_DESCRIPTION),
        ({"Columns": None}, Reason.BAD_PIXEL_DESCRIPTION),
        ({"BitsAllocated": 0}, Reason.BAD_PIXEL_DESCRIPTION),
        ({"BitsAllocated": 13}, Reason.BAD_PIXEL_DESCRIPTION),
        ({"SamplesPerPixel": 60000}, Reason.BAD_PIXEL_DESCRIPTION),
    ],
)
def test_a_header_that_lies_about_sizes_gives_a_reason(changes, code):
    assert reason(image(frames_of(1).tobytes(), **changes)) is code


def test_a_header_that_claims_billions_of_frames_gives_the_last_that_is_there():
    assert read_frame(image(frames_of(2).tobytes(), NumberOfFrames=2147483647), max_bytes=LIMIT).index == 1
    assert read_frame(encapsulated(items(*coded_frames(2)), NumberOfFrames=2147483647), max_bytes=LIMIT).index == 1


@pytest.mark.parametrize(("syntax", "code"), [("1.2.840.10008.1.2.4.102", Reason.VIDEO), ("1.2.840.10008.1.2.4.94", Reason.REFERENCED_PIXELS)])
def test_videos_and_references_are_not_decoded(syntax, code):
    assert reason(encapsulated(items(b"\x00\x00\x01\xba"), syntax)) is code


def test_an_empty_or_missing_element_is_no_pixel_data():
    source = image(b"")
    assert reason(source) is Reason.NO_PIXEL_DATA
    assert reason(PixelSource(source.dataset, EXPLICIT, source.stream, source.length, source.length)) is Reason.NO_PIXEL_DATA
    assert reason(PixelSource(source.dataset, EXPLICIT, source.stream, 0, source.length)) is Reason.NO_PIXEL_DATA
