"""Questions to a lake: figures, tables, SQL, what is pending and what is in quarantine."""

import shutil
from pathlib import Path

import polars as pl
import pydicom.data
import pytest

from pixels_assets.errors import LakeError, UsageError
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.commit import create_tables, part_files
from pixels_assets.lake.query import batch_rows, exists, pending_batches, quarantined_batches, quarantined_files, scan, status
from pixels_assets.lake.schema import OBJECT_CATALOG, TABLES
from pixels_assets.lake.sql import connect


@pytest.fixture
def full(house):
    """Two batches: an image and something broken in each; a third that has not run."""
    for name, folder in (("CT_small.dcm", "1"), ("MR_small.dcm", "2")):
        house.write(f"{folder}/{name}", Path(str(pydicom.data.get_testdata_file(name))).read_bytes())
        house.write(f"{folder}/bad.zip", b"PK\x03\x04 and no more")
        house.write(f"{folder}/text", b"hello")
        house.ingest()
    house.write("3/later")
    house.look()
    return house


def test_the_figures_of_a_lake(full) -> None:
    found = status(full.lake)
    assert found.statuses == {"corrupt": 2, "indexed": 2, "not_dicom": 2}
    assert [(name, count, due) for name, _, count, due in found.quarantine] == [("corrupt", 2, 0), ("not_dicom", 2, 0)]
    assert (found.patients, found.studies, found.series, found.instances) == (2, 2, 2, 2)
    assert found.bytes == sum(path.stat().st_size for path in full.source.rglob("*") if path.is_file() and path.name != "later")
    assert found.batches == manifests(full.lake).keys()
    assert found.pending == found.batches[2:] == pending_batches(full.lake)
    assert found.rows == {name: scan(full.lake, name).select(pl.len()).collect().item() for name in TABLES}
    assert set(found.versions) == set(TABLES)


def test_the_figures_of_an_empty_lake(house) -> None:
    found = status(house.lake)
    assert (found.statuses, found.batches, found.pending, found.quarantine, found.bytes, found.patients) == ({}, [], [], [], 0, 0)
    assert set(found.rows.values()) == {0}


def test_rows_of_one_batch(full) -> None:
    keys = manifests(full.lake).keys()
    assert [batch_rows(full.lake, OBJECT_CATALOG, key) for key in keys] == [3, 3, 0]


def test_quarantine_by_batch_and_by_status(full) -> None:
    one, two, _ = manifests(full.lake).keys()
    assert quarantined_batches(full.lake, []) == {one: 2, two: 2}
    assert quarantined_batches(full.lake, ["corrupt"]) == {one: 1, two: 1}
    assert quarantined_batches(full.lake, ["crashed", "timeout"]) == {}
    assert quarantined_files(full.lake, one, ["corrupt"]) == {f"{full.source}/1/bad.zip"}
    assert quarantined_files(full.lake, two, ["corrupt", "not_dicom"]) == {f"{full.source}/2/{name}" for name in ("bad.zip", "text")}
    for ask in (lambda: quarantined_batches(full.lake, ["bad"]), lambda: quarantined_files(full.lake, one, ["bad"])):
        with pytest.raises(UsageError, match="there is no status 'bad'; the statuses are indexed, archive"):
            ask()


def test_sql_over_all_tables_sees_the_lake_as_it_is(full) -> None:
    connection = connect(full.lake)
    for name in TABLES:
        assert connection.sql(f"select count(*) from {name}").fetchall() == [(scan(full.lake, name).select(pl.len()).collect().item(),)]
    (batch, *_) = manifests(full.lake).keys()
    found = connection.sql("select Modality from object_catalog where batch = ? and status = 'indexed'", params=[batch]).fetchall()
    assert found == [("CT",)]
    full.run_pending()
    assert connect(full.lake).sql("select count(*) from object_catalog").fetchone() == (7,)


def test_a_folder_is_a_lake_or_it_is_not(house, tmp_path) -> None:
    assert exists(house.lake)
    assert not exists(tmp_path / "none")
    assert not exists(house.source)
    for ask in (status, connect, lambda lake: scan(lake, "raw_files"), lambda lake: quarantined_batches(lake, [])):
        with pytest.raises(UsageError, match=r"there is no lake in .*; make one with `pixels ingest SRC --lake "):
            ask(tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("catalog", "did you mean object_catalog"),
        ("raw_file", "did you mean raw_files"),
        ("thumbnail", "did you mean thumbnails"),
        ("qqq", "the tables are raw_files, "),
    ],
)
def test_an_unknown_table_is_answered_with_near_ones(house, name, message) -> None:
    with pytest.raises(UsageError, match=f"there is no table '{name}'; {message}"):
        scan(house.lake, name)


def test_the_figures_of_a_lake_that_is_older_than_a_table(house) -> None:
    shutil.rmtree(house.lake / "findings")
    found = status(house.lake)
    assert "findings" not in found.rows
    assert set(found.versions) == set(TABLES) - {"findings"}


def test_a_part_that_is_cut_or_missing_is_named(full) -> None:
    (part, *_) = part_files(full.lake, OBJECT_CATALOG, manifests(full.lake).keys())
    size = part.stat().st_size
    part.write_bytes(b"")
    with pytest.raises(LakeError, match=f"{part}, a part of object_catalog, has 0 bytes instead of {size}; put it back"):
        status(full.lake)
    part.unlink()
    with pytest.raises(LakeError, match=f"{part}, a part of object_catalog, is missing; put it back"):
        status(full.lake)


def test_a_file_in_the_place_of_a_table_is_no_lake_and_no_bug(tmp_path) -> None:
    (tmp_path / "object_catalog").write_text("not a folder")
    assert not exists(tmp_path)
    with pytest.raises(LakeError, match="cannot create the table object_catalog"):
        create_tables(tmp_path)
