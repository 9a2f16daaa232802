"""Assets on a real instance: a batch, some of its tables, some batches, and what a materialization says about itself."""

import base64
import io
import shutil
import zipfile
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from PIL import Image

from pixels_assets.lake.commit import open_table
from pixels_assets.lake.query import pending_batches
from pixels_assets.lake.schema import BATCH_TABLES, TABLES

IMAGES = ("CT_small.dcm", "MR_small.dcm", "693_J2KI.dcm")


def test_one_partition_takes_a_batch_through_the_whole_lineage(place, figures, checked) -> None:
    for name in IMAGES:
        place.write(name)
    place.write("text.txt", b"hello")
    with zipfile.ZipFile(place.source / "z.zip", "w") as packed:
        packed.write(place.source / "CT_small.dcm", "inner.dcm")
    (batch,) = place.seal()
    assert place.instance.get_dynamic_partitions("batch") == [batch]
    result = place.run(batch)
    assert result.success
    assert all(passed for passed, _ in checked(result).values())
    assert len(checked(result)) == 5
    said = figures(result)
    assert said.keys() == BATCH_TABLES.keys()
    assert {table: said[table]["dagster/partition_row_count"] for table in said} == {
        "raw_files": 5,
        "unzipped_archives": 1,
        "dicom_metadata": 6,
        "thumbnails": 6,
        "annotations": 0,
        "object_catalog": 6,
        "quarantine": 1,
    }
    for table, values in said.items():
        on_disk = sum(path.stat().st_size for path in (place.lake / table).rglob("batch=*/*.parquet"))
        assert values["bytes"] == on_disk
        assert values["files"] == 5
        assert values["seconds"] > 0
        assert values["files_per_second"] == pytest.approx(5 / values["seconds"], rel=0.5)
        assert values["delta_version"] == open_table(place.lake, table).version()
    assert said["dicom_metadata"]["objects"] == 6
    assert said["dicom_metadata"]["source_bytes"] == sum(path.stat().st_size for path in place.source.iterdir())
    assert "| indexed | 4 |" in said["dicom_metadata"]["statuses"]
    assert "| new | 5 |" in said["raw_files"]["changes"]
    assert pending_batches(place.lake) == []
    run = place.instance.get_run_by_id(result.run_id)  # started without tags, as from the UI
    assert (run.tags["pixels/lake"], run.tags["pixels/engine"]) == (str(place.lake), "local")
    for table in BATCH_TABLES:
        (entry,) = open_table(place.lake, table).history(1)
        assert entry["dagster_run_id"] == result.run_id


def test_materializing_a_batch_again_changes_no_row(place) -> None:
    for name in IMAGES:
        place.write(name)
    (batch,) = place.seal()
    place.run(batch)
    before = {table: place.rows(table).sort("path") for table in BATCH_TABLES}
    assert place.run(batch).success
    assert all(place.rows(table).sort("path").equals(before[table]) for table in BATCH_TABLES)


def test_only_thumbnails_in_another_size(place, figures) -> None:
    for name in IMAGES:
        place.write(name)
    (batch,) = place.seal()
    place.run(batch)
    versions = {table: open_table(place.lake, table).version() for table in BATCH_TABLES}
    assert place.rows("thumbnails").select(pl.max_horizontal("width", "height").max()).item() > 48
    result = place.run(batch, "thumbnails", ops={"index_objects": {"thumbnail_size": 48}})
    assert result.success
    assert figures(result).keys() == {"thumbnails"}
    assert place.rows("thumbnails").select(pl.max_horizontal("width", "height").max()).item() == 48
    changed = {table for table in BATCH_TABLES if open_table(place.lake, table).version() != versions[table]}
    assert changed == {"thumbnails"}
    assert place.run(batch, "object_catalog").success
    sizes = {max(Image.open(io.BytesIO(data)).size) for data in place.rows()["thumbnail"].drop_nulls()}
    assert sizes == {48}


def test_only_metadata(place, figures, checked) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    place.run(batch)
    result = place.run(batch, "dicom_metadata")
    assert result.success
    assert figures(result).keys() == {"dicom_metadata"}
    assert checked(result).keys() >= {"listed_is_accounted", "failures_are_few"}
    assert len(place.rows("dicom_metadata")) == 1


@pytest.mark.parametrize("table", ["object_catalog", "quarantine"])
def test_a_table_before_those_it_is_made_from_fails_clearly_and_is_not_tried_again(place, table, reasons) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    result = place.run(batch, table)
    assert not result.success
    assert reasons(result) == [f"batch {batch} has not landed in raw_files; materialize that asset for it first"]
    assert pending_batches(place.lake) == [batch]


def test_a_run_without_a_partition_fails_clearly(place, reasons) -> None:
    result = place.run(None)
    assert not result.success
    assert reasons(result) == ["a run takes one batch, and none was chosen: materialize a partition, or backfill several, each by a run of its own"]


def test_an_instance_that_is_younger_than_the_lake_learns_of_its_batches(place) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    place.instance.delete_dynamic_partition("batch", batch)
    assert place.seal() == []
    assert place.instance.get_dynamic_partitions("batch") == [batch]


def test_making_quarantine_again_is_no_attempt(place) -> None:
    place.write("bad.zip", b"PK\x03\x04 and no more")
    (batch,) = place.seal()
    place.run(batch)
    for _ in range(3):
        assert place.run(batch, "quarantine").success
    assert place.rows("quarantine")["attempts"].to_list() == [1]
    place.run(batch)
    assert place.rows("quarantine")["attempts"].to_list() == [2]


def test_a_backfill_of_some_batches_brings_in_those(place) -> None:
    for number in range(6):
        place.write(f"{number}/CT_small.dcm")
    batches = place.seal(batch_files=1)
    assert len(batches) == 6
    for batch in (batches[4], batches[1], batches[2]):
        assert place.run(batch, tags={"dagster/backfill": "one"}).success
    assert place.names() == ["1/CT_small.dcm", "2/CT_small.dcm", "4/CT_small.dcm"]
    assert pending_batches(place.lake) == [batches[0], batches[3], batches[5]]


# --- the contact sheet


def preview(said):
    found = said["thumbnails"].get("contact_sheet")
    return found if found is None else base64.b64decode(found.split("base64,")[1].rstrip(")"))


def test_the_contact_sheet_takes_at_most_50_kib_of_the_event_log(place, figures) -> None:
    for number in range(70):
        place.write(f"{number:02}/MR_small.dcm")
        place.write(f"{number:02}/CT_small.dcm")
    (batch,) = place.seal()
    said = figures(place.run(batch))
    assert len(said["thumbnails"]["contact_sheet"].encode()) <= 50 * 1024
    width, height = Image.open(io.BytesIO(preview(said))).size
    assert width > 96
    assert height > 96


def test_the_contact_sheet_can_be_switched_off(place, figures, monkeypatch) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    assert preview(figures(place.run(batch))) is not None
    assert preview(figures(place.run(batch, ops={"index_objects": {"preview": False}}))) is None
    assert preview(figures(place.run(batch, preview=False))) is None
    monkeypatch.setenv("PIXELS_PREVIEW", "false")
    assert preview(figures(place.run(batch))) is None


def test_a_batch_without_pictures_has_no_contact_sheet(place, figures) -> None:
    place.write("text", b"hello")
    (batch,) = place.seal()
    assert preview(figures(place.run(batch))) is None


def test_no_patient_data_is_in_the_events_of_a_run(place) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    result = place.run(batch)
    row = place.rows().row(0, named=True)
    said = "".join(str(event) for event in result.all_events)
    assert row["PatientName"]
    assert row["PatientName"] not in said
    assert row["StudyInstanceUID"] not in said


# --- settings reach the work


def test_extracted_members_are_where_the_run_says_and_are_no_source(place) -> None:
    with zipfile.ZipFile(place.source / "z.zip", "w") as packed:
        packed.writestr("inner.txt", b"hello")
    target = place.source / "unzipped"
    (batch,) = place.seal(extract_to=target)
    assert place.run(batch, ops={"index_objects": {"extract_to": str(target)}}).success
    (local,) = place.rows().filter(pl.col("path").str.ends_with("inner.txt"))["local_path"]
    assert Path(local).read_bytes() == b"hello"
    assert Path(local).is_relative_to(target)
    assert place.seal(extract_to=target) == []


def test_limits_of_the_definitions_and_of_run_config_count(place) -> None:
    from pixels_assets.settings import Limits

    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as packed:
        packed.writestr("deep.txt", b"hello")
    with zipfile.ZipFile(place.source / "z.zip", "w") as packed:
        packed.writestr("inner.zip", inner.getvalue())
    (batch,) = place.seal()

    def statuses():
        return sorted(place.rows("dicom_metadata")["status"])

    place.run(batch)
    assert statuses() == ["archive", "archive", "not_dicom"]
    place.run(batch, limits=Limits(max_depth=1))
    assert statuses() == ["archive", "limit_exceeded"]


def test_an_unknown_limit_engine_or_status_fails_clearly(place, reasons) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    job = place.definitions().resolve_job_def("ingest_batch")

    def run(config):
        result = job.execute_in_process(partition_key=batch, instance=place.instance, run_config=config, raise_on_error=False)
        assert not result.success
        return reasons(result)[0]

    assert "there are no limits ['max_dept']" in run({"resources": {"engine": {"config": {"limits": {"max_dept": 1}}}}})
    assert "engine is 'sparc'; use local or spark" in run({"resources": {"engine": {"config": {"engine": "sparc"}}}})
    assert "there is no status 'crashd'" in run({"ops": {"index_objects": {"config": {"retry": ["crashd"]}}}})


# --- the environment fails


def test_a_source_that_is_gone_fails_the_run_clearly_and_commits_nothing(place, reasons) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    shutil.rmtree(place.source)
    result = place.run(batch)
    assert not result.success
    assert reasons(result) == [f"the source folder {place.source} is not there any more; bring it back and run again, the batch is then read again"]
    assert place.rows("dicom_metadata").is_empty()
    place.write("CT_small.dcm")
    assert place.run(batch).success
    assert place.names() == ["CT_small.dcm"]


def test_a_batch_of_another_lake_fails_clearly(place, reasons) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    (place.lake / "_manifests" / f"{batch}.jsonl.gz").rename(place.lake / "elsewhere")
    result = place.run(batch)
    assert not result.success
    assert "belongs to another lake or was never sealed" in reasons(result)[0]


# --- definitions of the assets


def test_every_table_is_an_asset_with_its_columns_and_its_lineage(place) -> None:
    graph = place.definitions().resolve_asset_graph()
    assert {key.to_user_string() for key in graph.materializable_asset_keys} == {f"pixels/{table}" for table in [*TABLES, "headers"]}
    for table in TABLES.values():
        node = graph.get(dg.AssetKey(["pixels", table.name]))
        assert [column.name for column in node.metadata["dagster/column_schema"].columns] == list(table.column_names)
        assert (node.partitions_def is not None) == table.partitioned
        assert node.code_version
        assert node.description
        assert not node.owners
    lineage = graph.get(dg.AssetKey(["pixels", "object_catalog"])).metadata["dagster/column_lineage"]
    assert [dep.asset_key.path[-1] for dep in lineage.deps_by_column["thumbnail"]] == ["thumbnails"]
    assert [dep.asset_key.path[-1] for dep in lineage.deps_by_column["meta"]] == ["dicom_metadata"]


def test_an_extractor_has_an_asset_that_is_made_in_the_same_run_and_can_be_made_alone_later(place, figures) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    assert place.run(batch).success
    result = place.run(batch, "pixel_statistics", extractors="pixel_statistics")
    assert result.success
    assert figures(result).keys() == {"pixel_statistics"}
    place.write("MR_small.dcm")
    (batch,) = place.seal()
    assert figures(place.run(batch, extractors="pixel_statistics")).keys() == {*BATCH_TABLES, "pixel_statistics"}
    rows = place.rows("pixel_statistics")
    assert rows["has_pixel"].to_list() == [True, True]
    assert rows["batch"].n_unique() == 2
