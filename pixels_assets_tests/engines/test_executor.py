"""What runs on executors, without Spark."""

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from pixels_assets.engines import executor
from pixels_assets.engines.indexing import DICOM_METADATA
from pixels_assets.engines.shards import IndexSpec, plan_shards
from pixels_assets.errors import LakeError
from pixels_assets.intake.objects import SourceFile, file_address
from pixels_assets.settings import Limits, Settings

NAMES = ["CT_small.dcm", "JPEG2000.dcm", "SC_rgb_rle.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm", "rtplan.dcm"]


def stored_pixels(data):
    found = pydicom.dcmread(io.BytesIO(data))
    return next((found[name].value for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in found), None)


@pytest.mark.parametrize("name", NAMES)
def test_pixel_data_of_a_file_is_the_value_that_pydicom_reads(name):
    path = get_testdata_file(name)
    assert executor.PixelData(Limits())(file_address(path)) == stored_pixels(Path(path).read_bytes())


def test_float_pixel_data_is_pixel_data_and_what_was_cut_off_is_missing(tmp_path):
    data = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    del data.PixelData
    del data.DataSetTrailingPadding
    data.FloatPixelData = bytes(range(256)) * 256
    data.save_as(tmp_path / "float")
    whole = (tmp_path / "float").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-1000])
    read = executor.PixelData(Limits())
    assert read(file_address(tmp_path / "float")) == data.FloatPixelData
    assert read(file_address(tmp_path / "cut")) == data.FloatPixelData[:-1000]


def test_pixel_data_of_members_come_in_any_order_and_in_the_archives_order_from_one_pass(tmp_path, monkeypatch):
    files = {name: Path(str(get_testdata_file(name))).read_bytes() for name in NAMES[:3]}
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    passes = []
    walk = executor.walk
    monkeypatch.setattr(executor, "walk", lambda *arguments: passes.append(arguments) or walk(*arguments))
    read = executor.PixelData(Limits())
    for names, expected in ((NAMES[:3], 1), (NAMES[1:3], 1), (NAMES[2::-1], 2)):
        passes.clear()
        assert [read(f"{file_address(tmp_path / 'a.tgz')}!/{name}") for name in names] == [stored_pixels(files[name]) for name in names]
        assert len(passes) >= expected
        assert len(passes) == expected or names == NAMES[2::-1]


def test_what_is_gone_has_no_pixel_data_and_what_is_too_large_neither(tmp_path, monkeypatch):
    read = executor.PixelData(Limits())
    assert read(file_address(tmp_path / "gone")) is None
    (tmp_path / "text").write_text("text")
    assert read(file_address(tmp_path / "text")) is None
    assert read(f"{file_address(tmp_path / 'text')}!/member") is None
    path = file_address(get_testdata_file("CT_small.dcm"))
    monkeypatch.setattr(executor, "MAX_PIXEL_BYTES", 128 * 128 * 2)
    assert len(read(path)) == 128 * 128 * 2
    monkeypatch.setattr(executor, "MAX_PIXEL_BYTES", 128 * 128 * 2 - 1)
    assert read(path) is None


@pytest.fixture
def task(tmp_path):
    path = Path(str(get_testdata_file("CT_small.dcm")))
    spec = IndexSpec(tmp_path / "lake", "b", "a", frozenset({DICOM_METADATA.name}), Settings(lake=tmp_path / "lake"))
    yield plan_shards([SourceFile(file_address(path), path.stat().st_size, 1, file_address(path.parent))]), spec
    for engine in executor._kept.values():
        engine.__exit__(None, None, None)
    executor._kept.clear()


def test_the_same_shards_indexed_twice_make_parts_with_different_names_in_the_same_worker(task):
    shards, spec = task
    reports = []
    (first,), (second,) = (list(executor.index_shards(shards, spec, lambda *told: reports.append(told))) for _ in range(2))
    assert reports == [(1, None)] * 2
    names = [part.path for outcome in (first, second) for part in outcome.parts["dicom_metadata"]]
    assert len(set(names)) == 2
    assert all((spec.lake / "dicom_metadata" / name).stat().st_size for name in names)
    (engine,) = executor._kept.values()
    assert len(engine._pool) == 1
    larger = replace(spec, settings=replace(spec.settings, worker_bytes=2 * spec.settings.worker_bytes))
    list(executor.index_shards(shards, larger, lambda *told: None))
    assert engine._pool == []  # its worker has another memory limit


def test_an_error_of_the_environment_is_reported_and_not_raised(task):
    shards, spec = task
    spec.lake.mkdir()
    (spec.lake / "dicom_metadata").write_text("in the way")
    reports = []
    assert list(executor.index_shards(shards, spec, lambda *told: reports.append(told))) == []
    ((objects, error),) = reports
    assert objects == 0
    assert isinstance(error, LakeError)
