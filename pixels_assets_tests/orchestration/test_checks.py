"""Checks: they pass on good tables, each fails on tables that violate it, and a blocking one keeps rows out of the catalog."""

import shutil
import zipfile

import dagster as dg
import polars as pl
import pytest

from pixels_assets.engines.local import LocalEngine
from pixels_assets.lake.commit import commit
from pixels_assets.lake.parts import PartWriter
from pixels_assets.lake.query import pending_batches
from pixels_assets.lake.schema import DICOM_METADATA, OBJECT_CATALOG, THUMBNAILS, UNZIPPED_ARCHIVES
from pixels_assets.orchestration.resources import EngineResource
from pixels_assets_tests.orchestration.conftest import Place

HIERARCHY = {"uids_are_unique", "indexed_is_in_the_hierarchy", "objects_conform", "objects_have_uids", "attributes_agree", "series_are_whole"}
NAMES = HIERARCHY | {"listed_is_accounted", "members_are_accounted", "rows_are_unique", "failures_are_few", "decodable_images_have_thumbnails"}


def materialized(place):
    """A batch with two images and an archive, materialized."""
    for name in ("CT_small.dcm", "MR_small.dcm"):
        place.write(name)
    with zipfile.ZipFile(place.source / "z.zip", "w") as packed:
        packed.write(place.source / "CT_small.dcm", "inner.dcm")
    (batch,) = place.seal()
    assert place.run(batch).success
    return place, batch


@pytest.fixture(scope="module")
def one_good(tmp_path_factory, kept_workers):
    with dg.DagsterInstance.ephemeral() as instance:
        yield materialized(Place(tmp_path_factory.mktemp("good"), instance))


@pytest.fixture
def good(one_good, place):
    """That batch in a copy of its lake, for tests that leave its sources alone."""
    original, batch = one_good
    shutil.copytree(original.lake, place.lake)
    place.source = original.source
    return place, batch


@pytest.fixture
def check_all(checked):
    """Run the checks by themselves, over the whole lake."""

    def run(place, **overrides):
        alone = dg.Definitions(jobs=[dg.define_asset_job("checks", selection=dg.AssetSelection.all_asset_checks())])
        definitions = dg.Definitions.merge(place.definitions(**overrides), alone)
        return checked(definitions.resolve_job_def("checks").execute_in_process(instance=place.instance, raise_on_error=False))

    return run


def add(place, batch, table, *rows, only=None):
    """Commit rows to a batch that keep those it has, as only a bug could."""
    with PartWriter(place.lake, table, batch, "wrong") as writer:
        for row in rows:
            writer.append(row)
        parts = writer.finish()
    commit(place.lake, table, batch, parts, run_id="wrong", only=frozenset(only or ()))


def failing(found):
    return {name for name, (passed, _) in found.items() if not passed}


def test_all_pass_on_good_tables(good, check_all) -> None:
    place, _ = good
    found = check_all(place)
    assert found.keys() == NAMES
    assert failing(found) == set()
    assert found["listed_is_accounted"][1] == {"batch": "the whole lake", "listed": 3, "rows": 3, "missing": 0, "unexpected": 0}
    assert found["members_are_accounted"][1]["members"] == 1
    assert found["rows_are_unique"][1]["rows"] == 4
    assert found["decodable_images_have_thumbnails"][1]["thumbnails"] == 3


def test_all_pass_on_an_empty_lake_and_while_batches_wait(place, check_all) -> None:
    place.write("CT_small.dcm")
    place.seal()
    assert failing(check_all(place)) == set()


def test_all_pass_on_a_batch_that_only_removes(place, checked) -> None:
    materialized(place)
    (place.source / "CT_small.dcm").unlink()
    (place.source / "z.zip").unlink()
    (batch,) = place.seal()
    result = place.run(batch)
    assert result.success
    assert failing(checked(result)) == set()
    assert place.names() == ["MR_small.dcm"]


def test_a_row_without_a_file_is_found(good, check_all) -> None:
    place, batch = good
    add(place, batch, DICOM_METADATA, {"path": "/x", "original_path": "/x", "depth": 0, "status": "indexed"})
    found = check_all(place)
    assert failing(found) == {"listed_is_accounted"}
    assert found["listed_is_accounted"][1] == {"batch": "the whole lake", "listed": 3, "rows": 4, "missing": 0, "unexpected": 1}


def test_a_file_without_a_row_is_found(good, check_all) -> None:
    place, batch = good
    add(place, batch, DICOM_METADATA, only=[f"{place.source}/MR_small.dcm"])
    found = check_all(place)
    assert failing(found) == {"listed_is_accounted"}
    assert found["listed_is_accounted"][1] == {"batch": "the whole lake", "listed": 3, "rows": 2, "missing": 1, "unexpected": 0}


def test_a_file_with_two_rows_is_found(good, check_all) -> None:
    place, batch = good
    path = f"{place.source}/MR_small.dcm"
    add(place, batch, DICOM_METADATA, {"path": path, "original_path": path, "depth": 0, "status": "indexed"})
    found = check_all(place)
    assert failing(found) == {"listed_is_accounted"}
    assert found["listed_is_accounted"][1]["rows"] == 4


@pytest.mark.parametrize("wrong", ["one_too_many", "none", "another", "orphan", "twice"])
def test_members_that_do_not_tally_are_found(good, check_all, wrong) -> None:
    place, batch = good
    archive = f"{place.source}/z.zip"
    member = {"path": f"{archive}!/inner.dcm", "original_path": archive, "depth": 1, "status": "indexed"}
    if wrong == "one_too_many":
        add(place, batch, UNZIPPED_ARCHIVES, member | {"path": f"{archive}!/other"})
    elif wrong == "none":
        add(place, batch, UNZIPPED_ARCHIVES, only=[archive])
    elif wrong == "another":
        add(place, batch, UNZIPPED_ARCHIVES, member | {"path": f"{archive}!/other"}, only=[archive])
    elif wrong == "orphan":
        orphan = member | {"path": "/in/none.zip!/a", "original_path": "/in/none.zip"}
        add(place, batch, UNZIPPED_ARCHIVES, orphan)
        add(place, batch, DICOM_METADATA, orphan)
    else:
        add(place, batch, UNZIPPED_ARCHIVES, member)
    assert failing(check_all(place)) == {"members_are_accounted"}


def test_a_path_or_row_id_that_comes_twice_is_found(good, check_all) -> None:
    place, _ = good
    (row,) = place.rows().filter(pl.col("path").str.ends_with("MR_small.dcm")).select("rowId", "path", "local_path", "status").to_dicts()
    add(place, "20990101T000000-0001", OBJECT_CATALOG, row)
    found = check_all(place)
    assert failing(found) == {"rows_are_unique"}
    assert found["rows_are_unique"][1] == {"batch": "the whole lake", "rows": 5, "row_ids": 4, "paths": 4, "elsewhere": 0}


def test_a_batch_notices_rows_that_another_batch_has_of_its_files(place, checked) -> None:
    materialized(place)
    new = place.write("new/CT_small.dcm")
    (batch,) = place.seal()
    # In a newer batch than this one, so that this one's run does not replace it.
    stray = {"rowId": 7, "path": str(new), "local_path": str(new), "status": "indexed"}
    add(place, "20990101T000000-0001", OBJECT_CATALOG, stray)
    result = place.run(batch)
    assert result.success  # it does not block: the rows are there already
    assert failing(checked(result)) == {"rows_are_unique"}
    assert checked(result)["rows_are_unique"][1] == {"batch": batch, "rows": 1, "row_ids": 1, "paths": 1, "elsewhere": 1}


def test_too_many_failures_of_one_kind_are_a_warning(place, checked) -> None:
    for name in ("CT_small.dcm", "MR_small.dcm"):
        place.write(name)
    place.write("bad.zip", b"PK\x03\x04 and no more")
    (batch,) = place.seal()
    result = place.run(batch)
    assert result.success
    assert failing(checked(result)) == {"failures_are_few"}
    (found,) = [found for found in result.get_asset_check_evaluations() if not found.passed]
    assert found.severity == dg.AssetCheckSeverity.WARN
    assert checked(result)["failures_are_few"][1]["above_limit"] == "corrupt"
    assert failing(checked(place.run(batch, failure_share=0.5))) == set()


def test_a_thumbnail_without_bytes_is_found(good, check_all) -> None:
    place, batch = good
    path = f"{place.source}/CT_small.dcm"
    for data in (b"", None):
        add(place, batch, THUMBNAILS, {"path": path, "original_path": path, "thumbnail": data, "status": "ok"}, only=[path])
        found = check_all(place)
        assert failing(found) == {"decodable_images_have_thumbnails"}
        assert found["decodable_images_have_thumbnails"][1]["empty"] == 1


def test_a_decoder_that_failed_is_found(good, check_all) -> None:
    place, batch = good
    path = f"{place.source}/CT_small.dcm"
    add(place, batch, THUMBNAILS, {"path": path, "original_path": path, "status": "none", "error_code": "decode_failed"}, only=[path])
    found = check_all(place)
    assert failing(found) == {"decodable_images_have_thumbnails"}
    assert found["decodable_images_have_thumbnails"][1]["decoder_failed"] == 1


# --- blocking


class Forgetful(LocalEngine):
    """An engine with a bug: it loses the last file of every shard."""

    def run(self, shards, spec, progress=None):
        from pixels_assets.engines.shards import Shard

        return super().run([Shard(shard.number, shard.files[:-1]) for shard in shards if len(shard.files) > 1], spec, progress)


class ForgetfulEngine(EngineResource):
    def start(self):
        return Forgetful(1)


def test_a_batch_that_lost_a_file_never_reaches_the_catalog(place, checked) -> None:
    for name in ("CT_small.dcm", "MR_small.dcm"):
        place.write(name)
    (batch,) = place.seal()
    result = place.run(batch, engine=ForgetfulEngine())
    assert not result.success
    assert failing(checked(result)) == {"listed_is_accounted"}
    assert checked(result)["listed_is_accounted"][1]["missing"] == 1
    assert len(place.rows("dicom_metadata")) == 1
    assert place.rows().is_empty()
    assert pending_batches(place.lake) == [batch]
    assert place.run(batch).success
    assert place.names() == ["CT_small.dcm", "MR_small.dcm"]


# --- the hierarchy


def test_checks_of_the_hierarchy_tell_counts_and_batches(place, checked, figures) -> None:
    file = place.write("CT_small.dcm")
    place.write("copy/CT_small.dcm")
    place.write("other.dcm", file.read_bytes().replace(b"CompressedSamples^CT1", b"CompressedSamples^CT2"))
    (batch,) = place.seal()
    place.run(batch)
    result = place.definitions().resolve_job_def("update_rollups").execute_in_process(instance=place.instance)
    assert result.success, "findings are warnings"
    found = checked(result)
    assert failing(found) - {"objects_conform"} == {"uids_are_unique"}
    assert found["uids_are_unique"][1] == {"uids": 1, "objects": 3, "of_other_content": found["uids_are_unique"][1]["of_other_content"]}
    passed, figures_of_hierarchy = found["indexed_is_in_the_hierarchy"]
    assert passed
    assert figures_of_hierarchy["indexed"] == 3
    assert figures_of_hierarchy["current"] + figures_of_hierarchy["copies"] + figures_of_hierarchy["other_versions"] == 3
    passed, conform = found["objects_conform"]
    assert passed == (conform["findings"] == 0)
    assert passed or f"| {batch} | {conform['findings']} |" in conform["batches"]
    said = figures(result)
    assert said["instances"]["dagster/row_count"] == 1
    assert said["instances"]["way"] == "everything anew"
