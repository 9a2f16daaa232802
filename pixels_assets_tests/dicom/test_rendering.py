"""From stored values to grey or colour: lookup tables, windows, palettes, colour spaces."""

import struct

import numpy as np
import pydicom
import pytest
from pydicom.pixels.processing import apply_color_lut, apply_windowing

from pixels_assets.dicom.codecs import NoPixels, PixelDescription, Reason
from pixels_assets.dicom.pixels import Frame
from pixels_assets.dicom.rendering import (
    _average,
    _is_useful,
    _plainly_shows,
    _rescaled,
    pixel_aspect,
    read_palette,
    render,
    render_viewport,
    shape_on_screen,
    window_of,
)


def frame_of(array, *, photometric="MONOCHROME2", stored=None, bits=None, index=0):
    bits = bits or 8 * array.itemsize
    description = PixelDescription(
        rows=array.shape[0],
        columns=array.shape[1],
        samples=1 if array.ndim == 2 else array.shape[2],
        bits_allocated=bits,
        bits_stored=stored or bits,
        high_bit=(stored or bits) - 1,
        signed=array.dtype.kind == "i",
        planar=False,
        photometric=photometric,
        kind=array.dtype.kind,
    )
    return Frame(array, index, index + 1, description)


def header(**attributes):
    dataset = pydicom.Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def shown(array, size=256, photometric="MONOCHROME2", stored=None, bits=None, **attributes):
    return render(frame_of(array, photometric=photometric, stored=stored, bits=bits), header(**attributes), size=size)


def ramp(low=-1000, high=3000, dtype=np.int16):
    return np.linspace(low, high, 64 * 64).reshape(64, 64).astype(dtype)


# Windows


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_is_applied_to_rescaled_values_as_the_standard_says(function):
    array = ramp()
    attributes = {"RescaleSlope": 2, "RescaleIntercept": -500, "WindowCenter": 400, "WindowWidth": 1500, "VOILUTFunction": function}
    dataset = header(**attributes, PhotometricInterpretation="MONOCHROME2", BitsStored=16, PixelRepresentation=1)
    rescaled = array * 2.0 - 500
    expected = apply_windowing(rescaled, dataset)
    expected = (expected - expected.min()) / np.ptp(expected) * 255
    if function == "SIGMOID":  # whose ends are not reached
        expected = 255 / (1 + np.exp(-4 * (rescaled - 400) / 1500))
    assert np.abs(shown(array, **attributes) - expected).max() <= 1


def test_the_first_of_several_windows_is_used():
    one = shown(ramp(), WindowCenter=40, WindowWidth=400)
    assert np.array_equal(shown(ramp(), WindowCenter=[40, 600], WindowWidth=[400, 2000]), one)


@pytest.mark.parametrize(
    ("centre", "width"), [(40, 0), (40, -5), (1e9, 100), (-30000, 10), (0, 1e12), (float("nan"), 100), (40, float("inf")), (100000, 1)]
)
def test_a_window_that_shows_nothing_gives_way_to_percentiles(centre, width):
    without = shown(ramp())
    assert np.ptp(without) == 255
    assert np.array_equal(shown(ramp(), WindowCenter=centre, WindowWidth=width), without)


def test_percentiles_ignore_a_few_extreme_pixels():
    array = ramp(0, 1000)
    array[0, :10] = 30000
    assert int(shown(array)[32, 32]) == pytest.approx(127, abs=4)


def test_padding_does_not_count_for_the_percentiles_but_is_shown():
    array = ramp(1000, 1500)
    array[:, :20] = -32768
    image = shown(array, PixelPaddingValue=-32768, PixelRepresentation=1)
    assert np.array_equal(image, shown(array, PixelPaddingValue=32768, PixelRepresentation=1))
    assert image[:, :20].max() == 0
    assert np.ptp(image[:, 20:]) == 255
    assert np.ptp(shown(array)[:, 20:]) < 10


def test_a_padding_range_is_left_out_too():
    array = ramp(1000, 1500)
    array[:, :10], array[:, 10:20] = -2000, -1500
    assert np.ptp(shown(array, PixelPaddingValue=-2000, PixelPaddingRangeLimit=-1500)[:, 20:]) == 255


@pytest.mark.parametrize(
    ("attributes", "grey"), [({}, 128), ({"PixelPaddingValue": 7}, 128), ({"WindowCenter": 40, "WindowWidth": 401}, 107), ({"WindowWidth": 0}, 128)]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_a_constant_image_is_what_its_window_says_or_mid_grey(dtype, attributes, grey):
    assert set(shown(np.full((20, 30), 7, dtype), **attributes).ravel().tolist()) == {grey}


@pytest.mark.parametrize("value", [7, 100, 1000])
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_averages_of_one_value_show_no_rounding(dtype, value):
    for shape in ((1001, 777), (513, 1999)):
        array = np.full(shape, value / 10 if dtype is np.float32 else value, dtype)
        for attributes in ({}, {"RescaleSlope": 1, "RescaleIntercept": -value}):
            assert set(shown(array, **attributes).ravel().tolist()) == {128}
    array[:40] = array[0, 0] if dtype is np.uint16 else np.nan
    assert set(shown(array).ravel().tolist()) == {128}


def test_an_empty_slice_is_black_like_the_air_of_its_neighbours():
    attributes = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    assert shown(np.zeros((20, 30), np.uint16), **attributes).max() == 0


def test_one_pixel_is_shown():
    assert shown(np.zeros((1, 1), np.uint16)).shape == (1, 1)


def test_a_small_bright_spot_that_statistics_miss_is_still_shown():
    array = np.zeros((600, 600), np.uint16)
    array[301, 301] = 5000
    assert shown(array).max() > 200


def test_values_that_are_no_numbers_do_not_spoil_the_rest():
    array = ramp(0, 10, np.float32)
    array[0, 0], array[1, 1], array[2, 2] = np.nan, np.inf, -np.inf
    image = shown(array)
    assert int(image[32, 32]) == pytest.approx(127, abs=4)
    assert shown(np.full((4, 4), np.nan, np.float32)).tolist() == [[128] * 4] * 4


def test_floats_are_rescaled_before_the_window():
    array = ramp(0, 10, np.float32)
    image = shown(array, RescaleSlope=100, RescaleIntercept=5, WindowCenter=255.5, WindowWidth=501)
    assert np.abs(image - np.clip((array * 100 + 5 - 5) / 500 * 255, 0, 255)).max() <= 1
    assert np.ptp(shown(ramp(0, 1, np.float64) * 1e30, RescaleSlope=1e15, RescaleIntercept=0)) == 255


def test_rescale_that_is_no_number_is_ignored():
    assert np.array_equal(shown(ramp(), RescaleSlope=0, RescaleIntercept=5), shown(ramp()))


def test_a_negative_slope_turns_the_greys_around():
    assert np.abs(shown(ramp(), RescaleSlope=-1, RescaleIntercept=0).astype(int) - (255 - shown(ramp()).astype(int))).max() <= 1


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", None), ("MONOCHROME2", "INVERSE"), ("MONOCHROME1", "INVERSE")])
def test_inverted_images_are_inverted_once(photometric, shape):
    attributes = {} if shape is None else {"PresentationLUTShape": shape}
    assert np.array_equal(shown(ramp(), photometric=photometric, **attributes), 255 - shown(ramp()))


def test_per_frame_functional_groups_win():
    group = header(
        PixelValueTransformationSequence=[header(RescaleSlope=1, RescaleIntercept=1000)],
        FrameVOILUTSequence=[header(WindowCenter=1500, WindowWidth=1001)],
    )
    enhanced = header(PerFrameFunctionalGroupsSequence=[header(), group], SharedFunctionalGroupsSequence=[header()])
    image = render(frame_of(ramp(0, 1000), index=1), enhanced, size=64)
    assert np.array_equal(image, shown(ramp(0, 1000), RescaleIntercept=1000, RescaleSlope=1, WindowCenter=1500, WindowWidth=1001))


# Lookup tables


def lut(first, table, bits=16):
    item = header(LUTDescriptor=[len(table), first, bits])
    item.add_new(0x00283006, "OW", np.array(table, "<u2").tobytes())
    return item


def test_a_modality_lut_is_applied_before_the_window():
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    square = [value * value // 4 for value in range(256)]
    image = shown(array, ModalityLUTSequence=[lut(0, square)], WindowCenter=8000, WindowWidth=16000)
    assert np.array_equal(image, shown(np.array(square, np.uint16)[array], WindowCenter=8000, WindowWidth=16000))


def test_a_voi_lut_is_used_where_there_is_no_window():
    array = np.arange(-128, 128, dtype=np.int16).reshape(16, 16)
    image = shown(array, VOILUTSequence=[lut(-100 & 0xFFFF, list(range(0, 2010, 10)), 12)], PixelRepresentation=1)
    assert image[0, 0] == 0
    assert image[-1, -1] == 255
    assert int(image.ravel()[128]) == pytest.approx(127, abs=2)


def test_the_first_value_of_a_voi_lut_has_a_sign_where_rescaled_values_have_one():
    array = np.arange(256, dtype=np.uint16).reshape(16, 16)
    table = [value * value // 16 for value in range(256)]
    expected = shown(array, VOILUTSequence=[lut(0, table, 12)])
    moved = [lut(-100 & 0xFFFF, table, 12)]
    assert np.array_equal(shown(array, VOILUTSequence=moved, RescaleSlope=1, RescaleIntercept=-100), expected)
    groups = [header(FrameVOILUTSequence=[header(VOILUTSequence=moved)])]
    assert np.array_equal(shown(array, SharedFunctionalGroupsSequence=groups, RescaleSlope=1, RescaleIntercept=-100), expected)
    far = shown(array + np.uint16(60000), stored=16, VOILUTSequence=[lut(60000, table, 12)])
    assert np.array_equal(far, expected)


def palette(red, green, blue, *, first=0, bits=16, entries=None, segmented=False):
    attributes = {}
    for colour, table in (("Red", red), ("Green", green), ("Blue", blue)):
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = [len(table) if entries is None else entries, first, bits]
        packed = np.array(table, "<u1" if bits == 8 and not segmented else "<u2").tobytes()
        attributes[f"{'Segmented' if segmented else ''}{colour}PaletteColorLookupTableData"] = packed
    return attributes


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_gives_the_colours_that_pydicom_gives(bits):
    top = 255 if bits == 8 else 65535
    tables = [(np.random.default_rng(seed).integers(0, top, 200)).tolist() for seed in range(3)]
    attributes = palette(*tables, first=20, bits=bits)
    array = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = apply_color_lut(array, header(**attributes, PixelRepresentation=0, BitsAllocated=8))
    assert np.abs(shown(array, photometric="PALETTE COLOR", **attributes).astype(int) - (expected >> (bits - 8))).max() <= 1


def test_sixteen_bit_entries_that_hold_eight_bits_are_not_darkened():
    attributes = palette([0, 255], [0, 0], [0, 128])
    assert shown(np.array([[0, 1]], np.uint8), photometric="PALETTE COLOR", **attributes).tolist() == [[[0, 0, 0], [255, 0, 128]]]


def test_a_dark_channel_of_a_bright_palette_stays_dark():
    attributes = palette([0, 65535], [0, 200], [0, 0])
    assert shown(np.array([[0, 1]], np.uint8), photometric="PALETTE COLOR", **attributes).tolist() == [[[0, 0, 0], [255, 0, 0]]]


@pytest.mark.parametrize("offset", [8, 4])
def test_segmented_palettes_are_expanded(offset):
    discrete, linear = [0, 2, 0, 10000], [1, 3, 40000]
    again = [2, 1, offset, 0]  # once more the linear segment that starts at byte 8, which some take for entry 4
    attributes = palette(*[discrete + linear + again] * 3, entries=8, segmented=True)
    table = read_palette(header(**attributes)).table[:, 0].tolist()
    assert table == [value >> 8 for value in (0, 10000, 20000, 30000, 40000, 40000, 40000, 40000)]


def test_offsets_in_segmented_palettes_of_eight_bits_take_four_entries():
    first, second = [0, 150, *range(150)], [0, 2, 7, 9]
    again = [2, 1, *struct.pack("<L", 2 * len(first))]
    attributes = palette(*[[*first, *first, *second, *again, *again]] * 3, entries=306, bits=8)
    for keyword in [keyword for keyword in attributes if keyword.endswith("Data")]:
        attributes[f"Segmented{keyword}"] = attributes.pop(keyword)
    assert read_palette(header(**attributes)).table[:, 0].tolist() == [*range(150), *range(150), 7, 9, 7, 9, 7, 9]


def test_a_segmented_palette_that_refers_to_itself_ends():
    attributes = palette(*[[0, 1, 7, 2, 65535, 3, 0]] * 3, entries=65535, segmented=True)
    assert read_palette(header(**attributes)).table.shape == (1, 3)


def test_a_segmented_palette_of_nothing_ends():
    words = [0, 1, 7, *[0, 0] * 4000, *[2, 65535, 6, 0] * 8000]
    assert read_palette(header(**palette(*[words] * 3, entries=256, segmented=True))).table.shape == (1, 3)


def test_a_palette_image_without_a_palette_is_shown_in_grey():
    assert shown(np.arange(16, dtype=np.uint8).reshape(4, 4), photometric="PALETTE COLOR").shape == (4, 4)


def test_big_endian_eight_bit_entries_are_unswapped():
    dataset = header(**palette([1, 2, 3, 4], [0] * 4, [0] * 4, bits=8))
    dataset.RedPaletteColorLookupTableData = struct.pack(">2H", 0x0201, 0x0403)
    dataset.set_original_encoding(False, False)
    assert read_palette(dataset).table[:, 0].tolist() == [1, 2, 3, 4]


# Colour


def test_rgb_is_shown_as_it_is_and_deeper_colours_are_scaled():
    array = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    assert np.array_equal(shown(array, photometric="RGB"), array)
    assert np.array_equal(shown(array.astype(np.uint16) * 257, photometric="RGB"), array)
    assert np.array_equal(shown(array.astype(np.uint32) * 16843009, photometric="RGB"), array)
    assert np.abs(shown(array.astype(np.uint16) * 16, photometric="RGB", stored=12).astype(int) - array).max() <= 1


def test_colours_that_are_said_to_be_signed_are_not():
    array = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    assert np.array_equal(shown(array.view(np.int8), photometric="RGB"), array)
    assert np.array_equal(shown((array.astype(np.uint16) << 8).view(np.int16) >> 8, photometric="RGB", stored=8), array)


@pytest.mark.parametrize(
    ("photometric", "stored", "expected"),
    [
        ("YBR_FULL", (76, 85, 255), (254, 0, 0)),
        ("YBR_FULL_422", (255, 128, 128), (255, 255, 255)),
        ("YBR_PARTIAL_422", (235, 128, 128), (255, 255, 255)),
        ("YBR_PARTIAL_420", (16, 128, 128), (0, 0, 0)),
        ("YBR_RCT", (1, 2, 3), (1, 2, 3)),
    ],
)
def test_colour_spaces_become_rgb(photometric, stored, expected):
    array = np.full((4, 4, 3), stored, np.uint8)
    assert np.abs(shown(array, photometric=photometric)[0, 0].astype(int) - expected).max() <= 1


def test_retired_colour_spaces_have_a_reason():
    with pytest.raises(NoPixels) as caught:
        shown(np.zeros((4, 4, 4), np.uint8), photometric="CMYK")
    assert caught.value.code is Reason.UNSUPPORTED_PHOTOMETRIC


# Segmentations


def test_an_empty_bitmap_is_black_and_a_full_one_is_white():
    assert shown(np.zeros((8, 8), np.uint8), bits=1).max() == 0
    assert shown(np.ones((8, 8), np.uint8), bits=1).min() == 255


def test_a_fractional_segmentation_is_shown_on_its_own_range():
    array = np.full((8, 8), 50, np.uint8)
    image = shown(array, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", MaximumFractionalValue=100)
    assert set(image.ravel().tolist()) <= {127, 128}


# Shape


@pytest.mark.parametrize(
    ("rows", "columns", "aspect", "expected"),
    [
        (512, 512, 1.0, (256, 256)),
        (16, 16, 1.0, (16, 16)),
        (1, 20000, 1.0, (1, 256)),
        (20000, 1, 1.0, (256, 1)),
        (100, 100, 2.0, (200, 100)),
        (100, 100, 0.5, (100, 200)),
        (1000, 250, 0.25, (256, 256)),
        (300, 200, 1.0, (256, 171)),
    ],
)
def test_the_longest_side_is_the_size_and_small_images_stay_small(rows, columns, aspect, expected):
    assert shape_on_screen(rows, columns, aspect, 256) == expected
    if aspect == 1.0:
        assert shown(np.zeros((rows, columns), np.uint8)).shape == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, 1.0),
        ({"PixelSpacing": [0.5, 0.5]}, 1.0),
        ({"PixelSpacing": [1.0, 0.5]}, 2.0),
        ({"ImagerPixelSpacing": [0.2, 0.4]}, 0.5),
        ({"NominalScannedPixelSpacing": [0.3, 0.1]}, 3.0),
        ({"PixelAspectRatio": [4, 1], "PixelSpacing": [1, 1]}, 4.0),
        ({"PixelAspectRatio": [1, 1], "PixelSpacing": [2, 1]}, 2.0),
        ({"PixelSpacing": [0, 1]}, 1.0),
        ({"PixelSpacing": [1e9, 1]}, 1.0),
        ({"PixelSpacing": 1}, 1.0),
    ],
)
def test_the_aspect_comes_from_the_first_spacing_that_makes_sense(attributes, expected):
    assert pixel_aspect(header(**attributes)) == pytest.approx(expected)


def test_the_aspect_of_enhanced_images_comes_from_pixel_measures():
    group = header(PixelMeasuresSequence=[header(PixelSpacing=[3, 1])])
    assert pixel_aspect(header(SharedFunctionalGroupsSequence=[group]), 0) == pytest.approx(3)


def test_non_square_pixels_become_square():
    array = np.tile(np.arange(100, dtype=np.uint8), (50, 1))
    assert shown(array, PixelSpacing=[2, 1]).shape == (100, 100)


@pytest.mark.parametrize("shape", [(512, 512), (1024, 1000), (301, 777), (2500, 40)])
def test_reducing_before_windowing_stays_close_to_windowing_before_reducing(shape):
    down, across = np.mgrid[: shape[0], : shape[1]]
    array = (1000 + 800 * np.sin(down / 60) * np.cos(across / 45)).astype(np.uint16)
    image = shown(array, WindowCenter=1000, WindowWidth=1600).astype(float)
    exact = np.clip((array - 200.0) / 1600 * 255, 0, 255)
    rows = np.linspace(0, shape[0], image.shape[0] + 1).astype(int)
    columns = np.linspace(0, shape[1], image.shape[1] + 1).astype(int)
    averaged = np.add.reduceat(np.add.reduceat(exact, rows[:-1], axis=0), columns[:-1], axis=1) / np.outer(np.diff(rows), np.diff(columns))
    assert np.abs(image - averaged).mean() < 3


def test_bands_of_a_large_image_fit_together_without_seams():
    array = np.tile(np.arange(4000, dtype=np.uint16)[:, None], (1, 3000))
    image = shown(array, size=250, WindowCenter=2000, WindowWidth=4000)
    assert image.shape == (250, 188)
    assert np.ptp(np.diff(image[5:-5, 90].astype(int))) <= 2


# Viewports


@pytest.mark.parametrize(
    ("viewport", "expected"),
    [(None, (300, 200)), ((400, 400), (400, 267)), ((100, 100), (100, 67)), ((1000, 30), (30, 20)), ((1, 1), (1, 1)), ((200, 300), (300, 200))],
)
def test_a_picture_fits_into_its_viewport_and_keeps_its_aspect_ratio(viewport, expected):
    assert render_viewport(frame_of(np.zeros((300, 200), np.uint8)), header(), viewport=viewport).shape == expected


def test_a_viewport_of_nothing_is_refused():
    with pytest.raises(ValueError, match="empty"):
        render_viewport(frame_of(ramp()), header(), viewport=(0, 5))


@pytest.mark.parametrize("spacing", [[50, 1], [1, 50]])
def test_very_long_pixels_do_not_make_a_picture_without_bound(spacing):
    whole = render_viewport(frame_of(np.zeros((40, 30), np.uint8)), header(PixelSpacing=spacing))
    assert whole.shape == ((2000, 30) if spacing[0] == 50 else (40, 1500))
    large = render_viewport(frame_of(np.broadcast_to(np.uint8(7), (9000, 9000))), header(PixelSpacing=spacing))
    assert large.size == pytest.approx(9000 * 9000, rel=0.01)
    assert max(large.shape) / min(large.shape) == pytest.approx(50, rel=0.01)


def test_a_region_is_cut_turned_and_scaled():
    array = np.arange(100, dtype=np.uint8).reshape(10, 10)
    attributes = {"WindowCenter": 127.5, "WindowWidth": 256}
    part = render_viewport(frame_of(array), header(**attributes), region=(2, 3, 4, 5))
    assert part.tolist() == array[3:8, 2:6].tolist()
    turned = render_viewport(frame_of(array), header(**attributes), region=(2, 3, -4, -5))
    assert turned.tolist() == part[::-1, ::-1].tolist()
    assert render_viewport(frame_of(array), header(**attributes), region=(5, 5, 100, 100)).shape == (5, 5)
    assert render_viewport(frame_of(array), header(**attributes), region=(0, 0, 5, 5), viewport=(50, 20)).shape == (20, 20)
    with pytest.raises(ValueError, match="nothing"):
        render_viewport(frame_of(array), header(), region=(20, 20, 5, 5))


def test_a_region_of_non_square_pixels_is_given_in_pixels_of_the_frame():
    array = np.tile(np.arange(100, dtype=np.uint8), (50, 1))
    assert render_viewport(frame_of(array), header(PixelSpacing=[2, 1]), region=(0, 10, 20, 10)).shape == (20, 20)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", "linear-exact"])
def test_a_window_that_is_given_wins_over_that_of_the_header(function):
    array = ramp()
    expected = shown(array, RescaleSlope=2, RescaleIntercept=3, WindowCenter=400, WindowWidth=900, VOILUTFunction=function.upper().replace("-", "_"))
    dataset = header(RescaleSlope=2, RescaleIntercept=3, WindowCenter=0, WindowWidth=10)
    window = window_of(400, 900, function)
    assert np.array_equal(render_viewport(frame_of(array), dataset, window=window), expected)
    inverted = render_viewport(frame_of(array, photometric="MONOCHROME1"), dataset, window=window)
    assert np.array_equal(inverted, 255 - expected)


@pytest.mark.parametrize(("centre", "width"), [(float("nan"), 5), (0, float("nan")), (0, 0), (0, -3), (0, 0.5), (float("inf"), 1)])
def test_a_window_that_defines_nothing_is_none(centre, width):
    assert window_of(centre, width) is None


# Shortcuts against what they stand for


@pytest.mark.parametrize("block", [(1, 1), (2, 2), (3, 2), (2, 3), (4, 4), (2, 6), (8, 16)])
@pytest.mark.parametrize(("kind", "low", "high"), [("u1", 0, 255), ("u2", 0, 4095), ("u2", 0, 65535), ("i2", -1000, 3000), ("i2", -32768, 32767)])
@pytest.mark.parametrize("samples", [None, 3])
def test_areas_of_integers_are_averaged_exactly(block, kind, low, high, samples):
    shape = (48, 96) if samples is None else (48, 96, samples)
    array = np.random.default_rng(1).integers(low, high, shape, endpoint=True).astype(kind)
    array[: block[0], : block[1]] = high
    array[-block[0] :, -block[1] :] = low
    for given in (array, array[::-1]):
        expected = (
            given.reshape(48 // block[0], block[0], 96 // block[1], block[1], -1).mean((1, 3)).reshape(48 // block[0], 96 // block[1], *shape[2:])
        )
        assert np.abs(_average(given, block) - expected).max() <= 1e-6 * max(-low, high) + 1e-6


@pytest.mark.parametrize("value", [65535, -32768])
def test_sums_of_very_large_areas_do_not_wrap_around(value):
    array = np.full((512, 512), value, np.uint16 if value > 0 else np.int16)
    assert _average(array, (512, 512)).tolist() == [[value]]


@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (0.0625, 0), (-2, 500), (3e4, 1e9)])
@pytest.mark.parametrize(("centre", "width"), [(40, 400), (2000, 1), (-600, 1500.5), (32768, 65535)])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_a_window_of_stored_values_shows_what_one_of_rescaled_values_shows(slope, intercept, centre, width, function):
    window = window_of(centre * slope + intercept, width * max(1, abs(slope)), function)
    stored = np.arange(65536, dtype=np.float32)
    exact = stored.astype(np.float64) * slope + intercept
    shown = window.of_stored(stored.copy(), slope, intercept).astype(int)
    if function == "SIGMOID":
        expected = window(_rescaled(stored, slope, intercept)).astype(float)
    else:
        expected = np.clip((exact - window.low) * 255 / (window.high - window.low), 0, 255)
    assert np.abs(shown - expected).max() <= 1.5


def test_a_window_that_plainly_shows_an_image_is_one_that_percentiles_find_useful():
    rng = np.random.default_rng(3)
    plain = 0
    for _ in range(600):
        known = rng.normal(rng.uniform(-500, 500), rng.choice([1, 30, 300]), rng.choice([10, 150, 7000])).astype(np.float32)
        window = window_of(rng.uniform(-600, 600), rng.choice([2, 50, 400, 40_000]))
        low, high = np.percentile(known, [1, 99], method="nearest")
        if _plainly_shows(window, known):
            plain += 1
            assert low < high
            assert _is_useful(window, known, float(high - low))
    assert plain > 30
