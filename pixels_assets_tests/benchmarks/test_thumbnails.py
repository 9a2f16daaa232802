"""The benchmark of thumbnails works; what it measures is not tested."""

import numpy as np
import pydicom
import pytest

from benchmarks.thumbnails import KINDS, by_matplotlib, is_available, lend_decoders, main, measure, table, thumbnail, write_files


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("files"), count=1)


def test_every_transfer_syntax_is_written_and_has_a_thumbnail(paths):
    assert len(paths) >= 9
    for kind in KINDS:
        (path,) = paths[kind.name]
        assert pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID == kind.uid
        assert thumbnail(path).width == 256


def test_a_row_for_each_transfer_syntax_is_measured_and_printed(paths):
    rows = measure(paths, rounds=1, with_matplotlib=False)
    assert [row.name for row in rows] == list(paths)
    assert all(row.thumbnail > 0 and row.accelerator is None for row in rows)
    assert all(row.name in table(rows) for row in rows)


def test_the_way_by_matplotlib_gives_a_picture(paths):
    pytest.importorskip("matplotlib")
    lend_decoders()
    for files in paths.values():
        picture = by_matplotlib(files[0])
        pixels = np.frombuffer(picture.data, np.uint8).reshape(picture.height, picture.width, 4)
        assert pixels.shape == (480, 640, 4)
        assert np.ptp(pixels[:, :, :3]) == 255


def test_the_command_prints_a_table(capsys):
    main(["--files", "1", "--rounds", "1", "--no-matplotlib"])
    assert "JPEG 2000 lossless" in capsys.readouterr().out
    assert is_available("1.2.840.10008.1.2.4.70")
