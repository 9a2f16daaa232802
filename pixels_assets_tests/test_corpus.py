"""The whole way over the folder named by PIXELS_CORPUS: nothing lost, nothing doubled, nothing invented."""

import csv
import hashlib
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import duckdb
import polars as pl
import pytest

from pixels_assets import Catalog
from pixels_assets.cli import main
from pixels_assets.intake.objects import Status, file_address, os_path
from pixels_assets.lake.headers import headers_dataset, scan_headers
from pixels_assets_tests.dicomweb.test_retrieval import check_everything
from pixels_assets_tests.dicomweb.test_searches import check_searches
from pixels_assets_tests.tablehash import table_hashes, table_versions

CORPUS = os.environ.get("PIXELS_CORPUS")
pytestmark = [pytest.mark.corpus, pytest.mark.slow, pytest.mark.skipif(not CORPUS, reason="PIXELS_CORPUS is not set")]

EXPECTED = {
    "ingest": {"indexed", "archive"},
    "metadata_only": {"indexed"},
    "ingest_with_warning": {"indexed"},
    "ingest_rest": {"archive"},
    "ingest_safely": {"archive"},
    "ignore_empty": {"archive"},
    "ignore_not_dicom": {"not_dicom", "archive"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    copy = tmp_path_factory.mktemp("corpus") / "files"
    shutil.copytree(CORPUS, copy, symlinks=True)
    for found in copy.rglob("*"):
        os.utime(found, (1_700_000_000, 1_700_000_000))
    return copy


@pytest.fixture(scope="module")
def lake(folder, tmp_path_factory, kept_workers):
    home = tmp_path_factory.mktemp("home")
    lake = home / "lake"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        assert main(["ingest", str(folder), "--lake", str(lake), "--extract-to", str(home / "unzipped")]) == 0
    return lake


@pytest.fixture(scope="module")
def catalog(lake):
    return pl.read_delta(str(lake / "object_catalog"))


def on_disk(folder):
    return {file_address(root + b"/" + name) for root, _, names in os.walk(os.fsencode(folder)) for name in names}


def test_every_file_has_exactly_one_row_with_the_hash_of_its_bytes(folder, catalog):
    loose = catalog.filter(pl.col("path") == pl.col("original_path"))
    assert loose["path"].is_unique().all()
    assert set(loose["path"]) == on_disk(folder)
    for path, content_hash, length in loose.select("path", "content_hash", "length").iter_rows():
        data = Path(os.fsdecode(os_path(path))).read_bytes()
        assert length == len(data)
        assert content_hash == hashlib.sha256(data).hexdigest() or not data


def test_paths_and_row_ids_are_unique_and_statuses_are_known(catalog):
    assert catalog["path"].is_unique().all()
    assert catalog["rowId"].is_unique().all()
    assert set(catalog["status"]) <= set(Status)
    bad = catalog.filter(~pl.col("status").is_in(["indexed", "archive"]))
    assert bad["error_code"].is_not_null().all()
    assert bad["error_message"].is_not_null().all()


def test_every_member_that_the_standard_library_can_read_has_a_row_with_the_hash_of_its_bytes(folder, catalog):
    hashes = {(row[0], row[1]) for row in catalog.select("original_path", "content_hash").iter_rows()}
    checked = 0
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        for data in [*zip_members(path), *tar_members(path)]:
            if data and len(data) < 50_000_000:
                assert (file_address(path), hashlib.sha256(data).hexdigest()) in hashes, path.name
                checked += 1
    assert checked > 100


def zip_members(path):
    if not zipfile.is_zipfile(path) or path.read_bytes()[128:132] == b"DICM":
        return
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            is_link = member.external_attr >> 28 == 0o12
            try:
                if not member.is_dir() and not is_link and not member.flag_bits & 1:
                    yield archive.read(member)
            except (zipfile.BadZipFile, OSError, NotImplementedError):
                continue


def tar_members(path):
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isreg() and not member.issparse():
                    yield archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError):
        return


def test_outcomes_are_those_that_the_manifest_asks_for(folder, catalog):
    statuses = dict(catalog.select("path", "status").iter_rows())
    with (folder / "MANIFEST.csv").open(newline="") as rows:
        for row in csv.DictReader(rows):
            allowed = EXPECTED.get(row["suggested_outcome"])
            if allowed:
                assert statuses[file_address(folder / row["file"])] in allowed, row["file"]


def test_every_image_that_can_be_decoded_has_a_thumbnail(folder, catalog, lake):
    reasons = dict(pl.read_delta(str(lake / "thumbnails"), columns=["path", "error_code"]).iter_rows())
    statuses = dict(catalog.select("path", "status").iter_rows())
    with (folder / "MANIFEST.csv").open(newline="") as rows:
        for row in csv.DictReader(rows):
            path = file_address(folder / row["file"])
            if row["pixels_decodable"] == "y" and statuses[path] == "indexed":
                assert reasons[path] is None, row["file"]


def test_extracted_members_lie_below_the_target_and_hold_the_members_bytes(folder, catalog, lake):
    target = lake.parent / "unzipped"
    members = catalog.filter(pl.col("path") != pl.col("original_path"), pl.col("local_path").str.starts_with(str(target)))
    assert len(members) > 100
    assert members["local_path"].is_unique().all()
    for local_path, content_hash in members.select("local_path", "content_hash").iter_rows():
        assert Path(local_path).resolve().is_relative_to(target.resolve())
        assert hashlib.sha256(Path(local_path).read_bytes()).hexdigest() == content_hash
    assert on_disk(target) == set(members["local_path"])
    assert {entry.name for entry in lake.parent.iterdir()} <= {"lake", "unzipped", "var"}


def test_every_object_and_every_frame_is_served_as_pydicom_reads_it(lake):
    counts, wrong = check_everything(lake)
    assert not wrong
    assert counts["instances"] > 400
    assert counts["frames that pydicom decodes"] > 2500


def test_every_search_finds_what_another_program_finds(lake, tmp_path):
    counts, wrong = check_searches(lake, tmp_path)
    assert not wrong
    assert counts["objects"] > 380
    assert counts["searches"] > 300
    assert counts["results"] > 1000


def test_every_engine_reads_as_many_headers_as_there_are_indexed_objects(catalog, lake):
    engines = {
        "polars": scan_headers(lake).select(pl.len()).collect().item(),
        "pyarrow": headers_dataset(lake).count_rows(),
        "DuckDB": duckdb.sql(f"select count(path) from read_parquet('{lake}/headers/**/*.parquet', union_by_name = true)").fetchone()[0],
        "pixels sql": Catalog(lake).sql("select count(path) from headers").fetchone()[0],
    }
    assert set(engines.values()) == {catalog.filter(pl.col("status") == "indexed").height}, engines


def test_everything_is_made_again_from_the_kept_headers_with_the_sources_gone(folder, lake, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(lake.parent))
    before, version = table_hashes(lake), table_versions(lake)["dicom_metadata"]
    gone = folder.rename(folder.with_name("gone"))
    try:
        assert main(["rebuild", "--lake", str(lake)]) == 0
    finally:
        gone.rename(folder)
    assert table_hashes(lake) == before
    assert table_versions(lake)["dicom_metadata"] > version


def test_a_second_ingest_changes_nothing_and_a_third_finds_exactly_what_changed(folder, lake):
    tables = ["raw_files", "unzipped_archives", "dicom_metadata", "thumbnails", "object_catalog", "quarantine"]
    before = {name: pl.read_delta(str(lake / name)).sort("path", "batch") for name in tables}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(lake.parent))
        assert main(["ingest", str(folder), "--lake", str(lake)]) == 0
        for name in tables:
            assert pl.read_delta(str(lake / name)).sort("path", "batch").equals(before[name])

        loose = sorted((folder / "series").rglob("*.dcm"))
        for number in range(3):
            shutil.copy(loose[0], folder / f"added {number}")
        changed, removed, moved = loose[1], loose[2], loose[3]
        changed.write_bytes(changed.read_bytes() + b"\0\0")
        removed.unlink()
        moved.rename(folder / "moved")
        assert main(["ingest", str(folder), "--lake", str(lake)]) == 0
    raw = pl.read_delta(str(lake / "raw_files"))
    news = raw.join(before["raw_files"], on=["path", "batch"], how="anti")
    assert set(news.select("path", "change", "previous_path").iter_rows()) == {
        *((str(folder / f"added {number}"), "new", None) for number in range(3)),
        (str(changed), "modified", None),
        (str(removed), "removed", None),
        (str(folder / "moved"), "moved", str(moved)),
    }
    now = pl.read_delta(str(lake / "object_catalog"))
    assert now["path"].is_unique().all()
    assert set(now.filter(pl.col("path") == pl.col("original_path"))["path"]) == on_disk(folder)
