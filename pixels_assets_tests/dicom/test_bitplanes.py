"""Fewer bit planes of a JPEG 2000 codestream."""

import io

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from pixels_assets.dicom.bitplanes import without_low_planes


def noisy(rows=300, columns=420, top=4095):
    down, across = np.mgrid[:rows, :columns]
    values = 2000 + 1200 * np.sin(down / 31) * np.cos(across / 47) + np.random.default_rng(1).normal(0, 12, (rows, columns))
    return np.clip(np.rint(values), 0, top).astype(np.uint16)


def encoded(array, **options):
    return bytes(imagecodecs.jpeg2k_encode(array, **({"reversible": True, "level": 0, "codecformat": "j2k"} | options)))


def by_pillow(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG2000", irreversible=False, no_jp2=True, **options)
    return buffer.getvalue()


def small(data, levels):
    with Image.open(io.BytesIO(data)) as image:
        scale = 1 << levels
        image._size = -(-image.width // scale) * scale, -(-image.height // scale) * scale  # which Pillow rounds to the nearest
        image.reduce = levels
        return np.asarray(image).astype(int)


@pytest.mark.parametrize("shape", [(300, 420), (301, 423), (64, 64), (129, 77)])
@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_leaving_out_nothing_changes_nothing(levels, shape):
    data = encoded(noisy(*shape))
    written = without_low_planes(data, levels, 0)
    assert np.array_equal(small(written, levels), small(data, levels))
    assert levels == 0 or len(written) < len(data)


@pytest.mark.parametrize("tolerance", [2, 5, 8, 20])
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("options", [{}, {"reversible": False, "level": 95}])
def test_values_are_off_by_less_than_the_tolerance(options, levels, tolerance):
    data = encoded(noisy(), bitspersample=16, **options)
    difference = small(without_low_planes(data, levels, tolerance), levels) - small(data, levels)
    assert np.abs(difference).mean() < 0.7 * tolerance
    assert np.abs(difference).max() < 4 * tolerance
    assert abs(difference.mean()) < 0.1 * tolerance
    assert tolerance < 8 or difference.any()


def test_planes_that_an_encoder_left_out_are_not_left_out_again():
    data = by_pillow(noisy(), quality_mode="rates", quality_layers=[12])
    difference = small(without_low_planes(data, 1, 8), 1) - small(data, 1)
    assert np.abs(difference).mean() < 4


def test_codestreams_of_another_encoder_are_understood():
    data = by_pillow(noisy(), codeblock_size=(32, 32), num_resolutions=4)
    assert np.array_equal(small(without_low_planes(data, 1, 0), 1), small(data, 1))


def test_resolutions_that_are_not_wanted_may_have_several_precincts():
    data = encoded(noisy(), reversible=False, level=95, bitspersample=16)
    assert b"\x88\x88\x88" in data[:100]  # precincts of 256x256
    assert np.array_equal(small(without_low_planes(data, 1, 0), 1), small(data, 1))
    assert without_low_planes(data, 0, 0) is None


def test_blocks_that_are_not_coded_at_all_stay_so():
    array = np.zeros((512, 512), np.uint16)
    array[300:400, 100:200] = noisy(100, 100)
    data = encoded(array)
    assert np.array_equal(small(without_low_planes(data, 1, 0), 1), small(data, 1))
    assert np.abs(small(without_low_planes(data, 1, 2), 1) - small(data, 1)).max() < 16


@pytest.mark.parametrize(
    "data",
    [
        by_pillow(noisy(), tile_size=(128, 128)),
        by_pillow(noisy(), precinct_size=(128, 128), codeblock_size=(64, 64)),
        by_pillow(noisy(), precinct_size=(128, 128), codeblock_size=(64, 64), progression="PCRL"),
        by_pillow(noisy(), quality_mode="rates", quality_layers=[20, 5, 1]),
        encoded(noisy(), codecformat="jp2"),
        encoded(np.stack([noisy(top=255).astype(np.uint8)] * 3, axis=2)),
        bytes(imagecodecs.htj2k_encode(noisy(), reversible=True)),
        encoded(noisy())[:400],
        b"",
        b"\xff\x4f",
    ],
)
def test_other_codestreams_are_left_alone(data):
    assert without_low_planes(data, 1, 2) is None


def test_no_resolution_beyond_the_last_is_left_out():
    assert without_low_planes(encoded(noisy(), resolutions=2), 3, 1) is None


def test_damage_anywhere_gives_a_codestream_or_none_and_never_raises():
    data = bytearray(encoded(noisy(128, 128)))
    random = np.random.default_rng(7)
    for _ in range(3000):
        damaged = data.copy()
        for at in random.integers(0, min(len(data), 600), 3):
            damaged[at] = random.integers(0, 256)
        found = without_low_planes(bytes(damaged), 1, 2)
        assert found is None or found[:2] == b"\xff\x4f"


def test_a_length_of_absurdly_many_bits_ends_at_once():
    data = bytearray(encoded(noisy(128, 128)))
    start = data.index(b"\xff\x93") + 2
    data[start:] = b"\xfe" + b"\xff\x7f" * 200_000 + b"\0" + bytes(600_000) + b"\xff\xd9"
    part = data.index(b"\xff\x90")
    data[part + 6 : part + 10] = (len(data) - 2 - part).to_bytes(4, "big")
    assert without_low_planes(bytes(data), 1, 50) is None
