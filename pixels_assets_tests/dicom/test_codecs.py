"""Decoding one frame, for every supported compression, damaged data included."""

import io
import struct
import sys
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from pixels_assets.dicom.codecs import CODECS, Codec, NoPixels, PixelDescription, Reason, decode, decode_reduced, looks_like_rle, sniff

LIMIT = 1 << 24


def grey(bits=16, *, stored=None, signed=False, rows=40, columns=56, **changes):
    values = {
        "rows": rows,
        "columns": columns,
        "samples": 1,
        "bits_allocated": bits,
        "bits_stored": stored or bits,
        "high_bit": (stored or bits) - 1,
        "signed": signed,
        "planar": False,
        "photometric": "MONOCHROME2",
        "kind": "i" if signed else "u",
    }
    return PixelDescription(**(values | changes))


def colour(photometric="RGB", **changes):
    return grey(8, samples=3, photometric=photometric, **changes)


def ramp(rows=40, columns=56, top=4095, dtype=np.uint16):
    return (np.arange(rows * columns).reshape(rows, columns) * 13 % (top + 1)).astype(dtype)


def picture(rows=40, columns=56):
    across, down = np.meshgrid(np.linspace(0, 255, columns), np.linspace(0, 255, rows))
    return np.stack([across, down, 255 - across], axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("codec", "encode"),
    [
        (Codec.JPEG, lambda array: imagecodecs.jpeg8_encode(array, lossless=True, bitspersample=16)),
        (Codec.JPEG_LS, imagecodecs.jpegls_encode),
        (Codec.JPEG_2000, lambda array: imagecodecs.jpeg2k_encode(array, reversible=True, level=0, codecformat="j2k")),
        (Codec.JPEG_2000, lambda array: imagecodecs.jpeg2k_encode(array, reversible=True, level=0, codecformat="jp2")),
        (Codec.JPEG_2000, lambda array: imagecodecs.htj2k_encode(array, reversible=True)),
        (Codec.JPEG_XL, lambda array: imagecodecs.jpegxl_encode(array, lossless=True)),
        (Codec.JPEG_XL, lambda array: imagecodecs.jpegxl_encode(array, lossless=True, usecontainer=True)),
        (Codec.DEFLATE, lambda array: raw_deflate(array.tobytes())),
        (Codec.DEFLATE, lambda array: zlib.compress(array.tobytes())),
        (Codec.UNCOMPRESSED, lambda array: array.tobytes()),
    ],
)
def test_lossless_16_bit_frames_come_back_as_they_were(codec, encode):
    array = ramp(top=65535)
    decoded, after = decode(codec, encode(array), grey(), max_bytes=LIMIT)
    assert np.array_equal(decoded, array)
    assert after.photometric == "MONOCHROME2"


def raw_deflate(data):
    compressor = zlib.compressobj(wbits=-15)
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("codec", "data"), [(Codec.JPEG_LS, imagecodecs.jpegls_encode(ramp())), (Codec.JPEG_2000, imagecodecs.jpeg2k_encode(ramp()))]
)
def test_the_codestream_is_believed_before_the_transfer_syntax(codec, data):
    assert sniff(data) is codec
    decoded, _ = decode(Codec.JPEG, data, grey(), max_bytes=LIMIT)
    assert decoded.shape == (40, 56)


@pytest.mark.parametrize("stored", [12, 15, 16])
@pytest.mark.parametrize("codec", [Codec.JPEG_LS, Codec.JPEG])
def test_codecs_without_a_sign_get_it_from_the_data_set(codec, stored):
    array = (ramp(top=(1 << stored) - 1).astype(np.int32) - (1 << (stored - 1))).astype(np.int16)
    carrier = array.view(np.uint16) & np.uint16((1 << stored) - 1)
    data = imagecodecs.jpegls_encode(carrier) if codec is Codec.JPEG_LS else imagecodecs.jpeg8_encode(carrier, lossless=True, bitspersample=16)
    decoded, _ = decode(codec, data, grey(stored=stored, signed=True), max_bytes=LIMIT)
    assert decoded.dtype == np.int16
    assert np.array_equal(decoded, array)


@pytest.mark.parametrize("coded_signed", [True, False])
@pytest.mark.parametrize("meant_signed", [True, False])
def test_the_data_set_decides_on_the_sign_of_jpeg_2000(coded_signed, meant_signed):
    bits = ramp(top=65535)
    data = imagecodecs.jpeg2k_encode(bits.view(np.int16) if coded_signed else bits, reversible=True, level=0)
    decoded, _ = decode(Codec.JPEG_2000, data, grey(signed=meant_signed), max_bytes=LIMIT)
    assert np.array_equal(decoded, bits.view(np.int16) if meant_signed else bits)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("subsampling", ["444", "422"])
def test_a_jpeg_that_says_ycbcr_becomes_rgb_once_whatever_the_data_set_says(photometric, subsampling):
    data = imagecodecs.jpeg8_encode(picture(), level=95, subsampling=subsampling)
    decoded, after = decode(Codec.JPEG, data, colour(photometric), max_bytes=LIMIT)
    assert after.photometric == "RGB"
    assert np.abs(decoded.astype(int) - picture()).mean() < 4


def without_application_markers(jpeg):
    length = int.from_bytes(jpeg[4:6], "big")
    assert jpeg[2] == 0xFF
    assert jpeg[3] in (0xE0, 0xEE)
    return jpeg[:2] + jpeg[4 + length :]


@pytest.mark.parametrize("strip", [False, True])
def test_an_rgb_jpeg_keeps_its_colours_with_and_without_an_adobe_marker(strip):
    data = imagecodecs.jpeg8_encode(picture(), level=95, colorspace="rgb", outcolorspace="rgb", subsampling="444")
    decoded, _ = decode(Codec.JPEG, without_application_markers(data) if strip else data, colour("RGB"), max_bytes=LIMIT)
    assert np.abs(decoded.astype(int) - picture()).mean() < 4


def test_a_jpeg_without_markers_is_ycbcr_unless_the_data_set_says_rgb():
    data = without_application_markers(imagecodecs.jpeg8_encode(picture(), level=95, subsampling="444"))
    ycbcr, _ = decode(Codec.JPEG, data, colour("YBR_FULL"), max_bytes=LIMIT)
    rgb, _ = decode(Codec.JPEG, data, colour("RGB"), max_bytes=LIMIT)
    assert np.abs(ycbcr.astype(int) - picture()).mean() < 4
    assert np.abs(rgb.astype(int) - picture()).mean() > 40


@pytest.mark.parametrize("photometric", ["YBR_RCT", "YBR_ICT", "RGB"])
def test_jpeg_2000_undoes_its_own_colour_transform(photometric):
    data = imagecodecs.jpeg2k_encode(picture(), reversible=True, level=0, mct=True)
    decoded, after = decode(Codec.JPEG_2000, data, colour(photometric), max_bytes=LIMIT)
    assert after.photometric == "RGB"
    assert np.array_equal(decoded, picture())


def test_subsampled_jpeg_2000_is_not_turned_into_rgb_twice():
    data = bytearray(imagecodecs.jpeg2k_encode(np.full((64, 64, 3), (76, 85, 255), np.uint8), level=0, mct=False, codecformat="j2k"))
    components = data.index(b"\xff\x51") + 40
    data[components + 4 : components + 6] = data[components + 7 : components + 9] = b"\x02\x02"
    decoded, after = decode(Codec.JPEG_2000, bytes(data), colour("YBR_FULL_422", rows=64, columns=64), max_bytes=LIMIT)
    assert after.photometric == "RGB"
    assert np.abs(decoded[9, 9].astype(int) - (254, 0, 0)).max() < 10


def test_lossy_htj2k_does_not_wrap_around_at_black_and_white():
    noise = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8) * 255
    data = imagecodecs.htj2k_encode(noise, level=0.05, reversible=False)
    decoded, _ = decode(Codec.JPEG_2000, data, grey(8, rows=64, columns=64), max_bytes=LIMIT)
    assert np.abs(decoded.astype(int) - noise).max() < 128


def test_damage_that_a_decoder_only_reports_is_not_shown(capfd):
    array = ramp(rows=256, columns=256)
    data = imagecodecs.htj2k_encode(array, reversible=True)
    random, hook, differing = np.random.default_rng(3), sys.unraisablehook, 0
    for _ in range(60):
        damaged = bytearray(data)
        for at in random.integers(150, len(data) - 2, 40):
            damaged[at] = random.integers(0, 256)
        try:
            first, second = (
                decode_reduced(Codec.JPEG_2000, bytes(damaged), grey(stored=12, rows=256, columns=256), max_bytes=LIMIT, reduction=2) for _ in "12"
            )
        except NoPixels:
            continue
        assert np.array_equal(first[0], second[0])
        differing += 1
    assert differing < 60
    assert sys.unraisablehook is hook
    assert "Exception ignored" not in capfd.readouterr().err


def test_a_damaged_tile_grid_does_not_keep_a_decoder_busy_for_ever():
    data = bytearray(imagecodecs.htj2k_encode(ramp(rows=256, columns=256), reversible=True))
    data[data.index(b"\xff\x4f\xff\x51") + 39] = 117  # YTOsiz
    with pytest.raises(NoPixels):
        decode_reduced(Codec.JPEG_2000, bytes(data), grey(rows=256, columns=256), max_bytes=LIMIT, reduction=2)


@pytest.mark.parametrize("padding", [b"", b"\0"])
@pytest.mark.parametrize("reduction", [1, 2])
@pytest.mark.parametrize(
    ("codec", "encode"),
    [
        (Codec.JPEG_LS, imagecodecs.jpegls_encode),
        (Codec.JPEG_2000, lambda array: imagecodecs.jpeg2k_encode(array, reversible=True, level=0, codecformat="j2k")),
        (Codec.JPEG_2000, lambda array: imagecodecs.htj2k_encode(array, reversible=True)),
    ],
)
def test_a_codestream_without_its_end_mark_is_read_and_one_cut_short_is_not(codec, encode, reduction, padding):
    array = ramp(rows=256, columns=256)
    data = bytes(encode(array))
    assert data.endswith(b"\xff\xd9")
    shape = grey(rows=256, columns=256)
    whole, cut = ({"data": data[:stop] + padding, "description": shape, "max_bytes": LIMIT, "reduction": reduction} for stop in (-2, len(data) // 2))
    decoded, _, scale = decode_reduced(codec, **whole)
    assert decoded.shape == (256 // scale, 256 // scale)
    assert scale > 1 or np.array_equal(decoded, array)
    with pytest.raises(NoPixels):
        decode_reduced(codec, **cut)


def test_too_few_quantization_steps_do_not_end_the_process():
    data = bytearray(imagecodecs.htj2k_encode(ramp(rows=256, columns=256), reversible=True))
    length = data.index(b"\xff\x5c") + 3
    assert data[length] == 19
    data[length] = 3
    with pytest.raises(NoPixels):
        decode_reduced(Codec.JPEG_2000, bytes(data), grey(rows=256, columns=256), max_bytes=LIMIT, reduction=2)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("samples", [1, 3])
def test_rle_frames_come_back_as_they_were(bits, samples):
    array = np.arange(20 * 30 * samples, dtype=f"<u{bits // 8}").reshape(samples, 20, 30) * 7
    data = rle(array)
    assert looks_like_rle(data)
    shape = grey(bits, rows=20, columns=30, samples=samples, photometric="RGB" if samples == 3 else "MONOCHROME2")
    decoded, _ = decode(Codec.RLE, data, shape, max_bytes=LIMIT)
    expected = array.transpose(1, 2, 0) if samples == 3 else array[0]
    assert np.array_equal(decoded, expected)


@pytest.mark.parametrize("bits", [8, 16])
def test_rle_segments_with_more_than_their_share_are_cut_to_it(bits):
    array = np.arange(2 * 20 * 30, dtype=f"<u{bits // 8}").reshape(2, 20, 30)
    shape = grey(bits, rows=10, columns=30, samples=1)
    decoded, _ = decode(Codec.RLE, rle(array[:1]), shape, max_bytes=LIMIT)
    assert np.array_equal(decoded, array[0, :10])


def rle(planes):
    """Encode planes as literal runs: the most significant byte of a plane first (DICOM PS3.5 Annex G)."""
    segments = []
    for plane in planes:
        for byte in range(plane.dtype.itemsize - 1, -1, -1):
            raw = np.ascontiguousarray(plane).reshape(-1).view(np.uint8)[byte :: plane.dtype.itemsize].tobytes()
            runs = b"".join(bytes([len(raw[at : at + 128]) - 1]) + raw[at : at + 128] for at in range(0, len(raw), 128))
            segments.append(runs + b"\x00" * (len(runs) % 2))
    offsets = np.zeros(16, "<u4")
    offsets[0] = len(segments)
    offsets[1 : 1 + len(segments)] = 64 + np.cumsum([0, *map(len, segments[:-1])])
    return offsets.tobytes() + b"".join(segments)


@pytest.mark.parametrize("codec", [Codec.RLE, Codec.DEFLATE])
def test_one_bit_frames_are_unpacked_after_decompression(codec):
    pixels = np.random.default_rng(1).integers(0, 2, (15, 17), dtype=np.uint8)
    packed = np.packbits(pixels, bitorder="little")
    data = rle(packed.reshape(1, 1, -1)) if codec is Codec.RLE else raw_deflate(packed.tobytes())
    decoded, _ = decode(codec, data, grey(1, rows=15, columns=17), max_bytes=LIMIT)
    assert np.array_equal(decoded, pixels)


@pytest.mark.parametrize("codec", [Codec.UNCOMPRESSED, Codec.DEFLATE])
def test_bytes_that_share_colours_between_two_pixels_are_spread(codec):
    value = bytes([10, 20, 100, 200] * 24)
    description = colour("YBR_FULL_422", rows=6, columns=8)
    decoded, after = decode(codec, value if codec is Codec.UNCOMPRESSED else raw_deflate(value), description, max_bytes=LIMIT)
    assert (decoded.shape, after.photometric) == ((6, 8, 3), "YBR_FULL")
    assert decoded[5, 6:].tolist() == [[10, 100, 200], [20, 100, 200]]
    assert reason(Codec.UNCOMPRESSED, value[:-1], description) is Reason.PIXEL_DATA_TRUNCATED


def reason(codec, data, description, max_bytes=LIMIT):
    with pytest.raises(NoPixels) as caught:
        decode(codec, data, description, max_bytes=max_bytes)
    return caught.value.code


def with_dimensions(jpeg, rows, columns):
    at = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:at] + rows.to_bytes(2, "big") + columns.to_bytes(2, "big") + jpeg[at + 4 :]


def test_a_codestream_of_another_size_than_the_data_set_says_is_refused_before_decoding():
    data = with_dimensions(imagecodecs.jpeg8_encode(picture()), 65500, 65500)
    assert reason(Codec.JPEG, data, colour()) is Reason.BAD_PIXEL_DESCRIPTION


def test_a_codestream_and_a_data_set_that_agree_on_a_huge_size_are_refused_before_decoding():
    data = with_dimensions(imagecodecs.jpeg8_encode(picture()), 65500, 65500)
    assert reason(Codec.JPEG, data, colour(rows=65500, columns=65500)) is Reason.FRAME_TOO_LARGE


def test_the_working_memory_of_jpeg_2000_counts():
    data = imagecodecs.jpeg2k_encode(ramp())
    assert reason(Codec.JPEG_2000, data, grey(), max_bytes=40 * 56 * 2) is Reason.FRAME_TOO_LARGE


def with_small_precincts(size):
    """A codestream of a few hundred bytes whose highest resolution is in precincts of 2 by 2."""
    data = bytearray(imagecodecs.jpeg2k_encode(np.zeros((64, 64), np.uint8), level=0, codecformat="j2k", resolutions=2))
    struct.pack_into(">LL", data, data.index(b"\xff\x51") + 6, size, size)
    struct.pack_into(">LL", data, data.index(b"\xff\x51") + 22, size, size)
    style = data.index(b"\xff\x52")
    levels = data[style + 9]
    data[style + 2 : style + 5] = struct.pack(">HB", 13 + levels, 1)
    return bytes(data[: style + 14]) + b"\xff" * levels + b"\x11" + bytes(data[style + 14 :])


@pytest.mark.parametrize("reduction", [1, 2])
def test_the_memory_of_very_small_code_blocks_counts(reduction):
    with pytest.raises(NoPixels) as caught:
        decode_reduced(Codec.JPEG_2000, with_small_precincts(4096), grey(8, rows=4096, columns=4096), max_bytes=LIMIT, reduction=reduction)
    assert caught.value.code is Reason.FRAME_TOO_LARGE
    decode_reduced(Codec.JPEG_2000, with_small_precincts(64), grey(8, rows=64, columns=64), max_bytes=LIMIT, reduction=reduction)


def test_a_jpeg_of_very_many_scans_is_refused():
    buffer = io.BytesIO()
    Image.fromarray(picture()).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    assert decode(Codec.JPEG, data, colour(), max_bytes=LIMIT)[0].shape == picture().shape
    with pytest.raises(NoPixels, match="scans"):
        decode(Codec.JPEG, data[:-2] + data[last:-2] * 300 + data[-2:], colour(), max_bytes=LIMIT)


@pytest.mark.parametrize("filling", [b"\xff\xe1\x00\x02", b"\xff"])
def test_a_jpeg_header_of_very_many_segments_is_not_read_to_its_end(filling):
    data = bytes(imagecodecs.jpeg8_encode(picture()))
    assert decode(Codec.JPEG, data[:2] + filling * 1000 + data[2:], colour(), max_bytes=LIMIT)[0].shape == picture().shape
    with pytest.raises(NoPixels, match="no readable header"):
        decode(Codec.JPEG, data[:2] + filling * 80_000 + data[2:], colour(), max_bytes=LIMIT)


def test_a_jpeg_2000_header_of_very_many_segments_is_not_read_to_its_end():
    data = bytes(imagecodecs.jpeg2k_encode(ramp(), level=0, codecformat="j2k"))
    style = data.index(b"\xff\x52")
    with pytest.raises(NoPixels, match="no readable header"):
        decode(Codec.JPEG_2000, data[:style] + b"\xff\x64\x00\x04\x00\x01" * 80_000 + data[style:], grey(), max_bytes=LIMIT)


def test_rle_that_cannot_hold_the_frame_is_refused_before_memory_is_taken():
    assert reason(Codec.RLE, rle(np.zeros((1, 8, 8), np.uint8)), grey(8, rows=4000, columns=4000)) is Reason.PIXEL_DATA_TRUNCATED


@pytest.mark.parametrize(
    ("codec", "data"),
    [
        (Codec.JPEG, b"\xff\xd8\xff\xd9"),
        (Codec.JPEG, b""),
        (Codec.JPEG_2000, b"\xff\x4f\xff\x51\x00"),
        (Codec.JPEG_2000, b"no codestream"),
        (Codec.JPEG_XL, b"\xff\x0a"),
        (Codec.JPEG_LS, imagecodecs.jpegls_encode(ramp())[:60]),
        (Codec.JPEG_2000, imagecodecs.jpeg2k_encode(ramp())[:120]),
        (Codec.RLE, b"\x01\x00\x00\x00" + b"\xff" * 4000),
        (Codec.RLE, rle(ramp()[None])[:-60]),
        (Codec.RLE, rle(ramp()[None, :, ::2])),
        (Codec.RLE, rle(np.stack([ramp()] * 3))),
        (Codec.DEFLATE, b"\xff\xff\xff"),
    ],
)
def test_broken_codestreams_give_a_reason(codec, data):
    assert reason(codec, data, grey()) in (Reason.DECODE_FAILED, Reason.PIXEL_DATA_TRUNCATED)


def test_the_message_of_a_failed_decoder_names_only_the_type_of_its_error():
    with pytest.raises(NoPixels) as caught:
        decode(Codec.JPEG_2000, imagecodecs.jpeg2k_encode(ramp(), codecformat="j2k")[:120], grey(), max_bytes=LIMIT)
    assert caught.value.message == "decoder raised Jpeg2kError"


@pytest.mark.parametrize(
    ("uid", "codec"),
    [
        ("1.2.840.10008.1.2.4.50", Codec.JPEG),
        ("1.2.840.10008.1.2.4.55", Codec.JPEG),
        ("1.2.840.10008.1.2.4.112", Codec.JPEG_XL),
        ("1.2.840.10008.1.2.4.104", Codec.VIDEO),
        ("1.2.840.10008.1.2.4.107", Codec.VIDEO),
        ("1.2.840.10008.1.2.4.94", Codec.REFERENCED),
        ("1.2.840.10008.1.2.8.1", Codec.DEFLATE),
        ("1.2.840.10008.1.2.1.98", Codec.UNCOMPRESSED),
    ],
)
def test_transfer_syntaxes_name_their_codec(uid, codec):
    assert CODECS[uid] is codec
