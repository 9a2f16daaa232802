"""The Python interface, as a user meets it."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import dagster as dg
import polars as pl
import pydicom.data
import pytest

import pixels_assets
from pixels_assets import Catalog
from pixels_assets.errors import PixelsError, SourceMissingError, UsageError
from pixels_assets.lake.schema import LINKED, ROLLUPS, TABLES
from pixels_assets.orchestration.instance import shared_instance
from pixels_assets.settings import Limits

ROOT = Path(pixels_assets.__file__).parents[1]


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("PIXELS_") and name != "PIXELS_CORPUS":
            monkeypatch.delenv(name)
    (tmp_path / "home").mkdir()
    shutil.copy(ROOT / "dagster.yaml", tmp_path / "home")
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def catalog(tmp_path, kept_workers):
    return Catalog(tmp_path / "lake", quiet_seconds=0.0, workers=1)


def put(folder, *names):
    for name in names:
        shutil.copy(str(pydicom.data.get_testdata_file(name)), folder)


def test_the_seven_lines(catalog, source) -> None:
    put(source, "CT_small.dcm", "MR_small.dcm")
    (source / "text").write_bytes(b"hello")
    terminated = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ran = catalog.ingest(source)
    assert signal.signal(signal.SIGTERM, terminated) is signal.SIG_DFL  # as the process had it
    assert (len(ran.batches), ran.failed, ran.files, ran.objects) == (1, {}, 3, 3)
    assert isinstance(catalog.load(), pl.LazyFrame)
    assert catalog.load().select(pl.len()).collect().item() == 3
    found = catalog.sql("select Modality, count(*) from object_catalog where status = 'indexed' group by 1 order by 1")
    assert found.fetchall() == [("CT", 1), ("MR", 1)]
    assert catalog.sql("select path from object_catalog where Modality = ?", ["CT"]).fetchall() == [(f"{source}/CT_small.dcm",)]
    assert catalog.sql("select count(*) as n from raw_files").pl().to_dicts() == [{"n": 3}]
    status = catalog.status()
    assert status.statuses == {"indexed": 2, "not_dicom": 1}
    assert (status.patients, status.studies, status.series, status.instances) == (2, 2, 2, 2)
    assert (len(status.batches), status.pending) == (1, [])
    assert status.bytes == sum(path.stat().st_size for path in source.iterdir())
    assert status.rows["object_catalog"] == 3
    again = catalog.ingest(source)
    assert (again.batches, again.files, again.discovery.unchanged) == ([], 0, 3)


def test_every_table_can_be_read_and_asked_for(catalog, source) -> None:
    put(source, "CT_small.dcm")
    catalog.ingest(source)
    for name, table in TABLES.items():
        assert tuple(catalog.table(name).collect_schema().names()) == table.column_names
        assert catalog.sql(f"select * from {name}").columns == list(table.column_names)
        rows = 0 if name in {"unzipped_archives", "quarantine", "uid_conflicts", "annotations", *LINKED} else 1
        found = catalog.table(name).select(pl.len()).collect().item()
        assert found == rows or name == "findings"  # which are as many as there are


def test_sql_cannot_change_the_lake(catalog, source) -> None:
    put(source, "CT_small.dcm")
    catalog.ingest(source)
    for statement in ("delete from object_catalog", "insert into raw_files select * from raw_files", "update object_catalog set status = 'x'"):
        with pytest.raises(Exception, match=r"(?i)only|not|can"):
            catalog.sql(statement)
    assert catalog.load().collect()["status"].to_list() == ["indexed"]


def test_changes_in_the_folder_are_followed(catalog, source) -> None:
    put(source, "CT_small.dcm", "MR_small.dcm")
    catalog.ingest(source)
    (source / "CT_small.dcm").rename(source / "moved.dcm")
    (source / "MR_small.dcm").unlink()
    ran = catalog.ingest(source)
    assert {change.value: count for change, count in ran.discovery.changes.items() if count} == {"moved": 1, "removed": 1}
    assert catalog.load().collect()["relative_path"].to_list() == ["moved.dcm"]


def test_overwriting_starts_over(catalog, source, tmp_path) -> None:
    put(source, "CT_small.dcm")
    other = tmp_path / "other"
    other.mkdir()
    put(other, "MR_small.dcm")
    catalog.ingest(source, other)
    assert catalog.load().select(pl.len()).collect().item() == 2
    catalog.ingest(other, mode="overwrite")
    assert catalog.load().collect()["relative_path"].to_list() == ["MR_small.dcm"]


# --- another attempt


def quarantined(catalog):
    rows = catalog.table("quarantine").select("path", "status", "attempts", "retry_due").collect().rows()
    return {Path(path).name: (status, attempts, due) for path, status, attempts, due in rows}


def test_what_succeeds_at_another_attempt_leaves_quarantine(catalog, source, tmp_path) -> None:
    put(source, "image_dfl.dcm", "CT_small.dcm")
    (source / "bad.zip").write_bytes(b"PK\x03\x04 and no more")
    strict = Catalog(tmp_path / "lake", quiet_seconds=0.0, workers=1, limits=Limits(max_deflated_bytes=100))
    strict.ingest(source)
    assert quarantined(catalog) == {"image_dfl.dcm": ("limit_exceeded", 1, False), "bad.zip": ("corrupt", 1, False)}
    strict.retry()
    assert quarantined(catalog) == {"image_dfl.dcm": ("limit_exceeded", 2, False), "bad.zip": ("corrupt", 2, False)}
    before = catalog.load().filter(pl.col("path").str.ends_with("CT_small.dcm")).collect()
    ran = catalog.retry("limit_exceeded")
    assert ran.failed == {}
    assert quarantined(catalog) == {"bad.zip": ("corrupt", 2, False)}
    assert catalog.status().statuses == {"indexed": 2, "corrupt": 1}
    assert catalog.load().filter(pl.col("path").str.ends_with("CT_small.dcm")).collect().equals(before)
    catalog.retry("timeout", "crashed")
    assert quarantined(catalog) == {"bad.zip": ("corrupt", 2, False)}


def test_a_member_that_is_healed_is_catalogued_with_its_archive(catalog, source, tmp_path) -> None:
    with zipfile.ZipFile(source / "z.zip", "w") as packed:
        for name in ("image_dfl.dcm", "CT_small.dcm"):
            packed.write(str(pydicom.data.get_testdata_file(name)), name)
    Catalog(tmp_path / "lake", quiet_seconds=0.0, workers=1, limits=Limits(max_deflated_bytes=100)).ingest(source)
    assert catalog.status().statuses == {"archive": 1, "indexed": 1, "limit_exceeded": 1}
    catalog.retry()
    assert catalog.status().statuses == {"archive": 1, "indexed": 2}
    assert catalog.table("unzipped_archives").collect()["status"].to_list() == ["indexed", "indexed"]
    assert catalog.status().quarantine == []


# --- what goes wrong


def test_an_unknown_table_is_refused_with_near_names(catalog, source) -> None:
    put(source, "CT_small.dcm")
    catalog.ingest(source)
    with pytest.raises(UsageError, match="there is no table 'objects_catalog'; did you mean object_catalog"):
        catalog.table("objects_catalog")
    with pytest.raises(UsageError, match=f"the tables are {', '.join(TABLES)}"):
        catalog.table("x")


@pytest.mark.parametrize(
    "ask", [Catalog.load, Catalog.status, Catalog.retry, lambda catalog: catalog.sql("select 1"), lambda catalog: catalog.table("quarantine")]
)
def test_without_a_lake_the_next_step_is_named(catalog, tmp_path, ask) -> None:
    with pytest.raises(UsageError, match=r"there is no lake in .*lake; make one with `pixels ingest SRC --lake "):
        ask(catalog)
    assert not (tmp_path / "lake").exists()


def test_the_command_says_it_too(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pixels_assets.cli", "status", "--lake", str(tmp_path / "none")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"pixels: there is no lake in {tmp_path}/none; make one with")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_wrong_arguments_are_refused_before_anything_is_written(catalog, source, tmp_path) -> None:
    with pytest.raises(UsageError, match="use append or overwrite"):
        catalog.ingest(source, mode="merge")
    with pytest.raises(UsageError, match="no source folder is given"):
        catalog.ingest()
    with pytest.raises(SourceMissingError, match="mount it or correct the path"):
        catalog.ingest(source, tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"there are no settings \['thumbnails'\]; the settings are lake, sources"):
        Catalog(tmp_path / "lake", thumbnails=7)
    assert not (tmp_path / "lake").exists()
    put(source, "CT_small.dcm")
    catalog.ingest(source)
    with pytest.raises(UsageError, match="there is no status 'crash'; the statuses are indexed, "):
        catalog.retry("crash")


def test_an_emptied_source_is_refused_until_it_is_said_to_be_meant(catalog, source, tmp_path) -> None:
    for number in range(100):
        (source / f"{number}.txt").write_text(f"no image {number}")
    catalog.ingest(source)
    for path in source.iterdir():
        path.unlink()
    with pytest.raises(SourceMissingError, match="mount its disk"):
        catalog.ingest(source)
    assert catalog.load().select(pl.len()).collect().item() == 100
    Catalog(tmp_path / "lake", quiet_seconds=0.0, workers=1, accept_empty=True).ingest(source)
    assert catalog.load().select(pl.len()).collect().item() == 0


def test_batches_that_fail_are_named_and_taken_up_by_the_next_call(catalog, source, tmp_path) -> None:
    put(source, "CT_small.dcm")
    said = []

    from pixels_assets import runs

    def vanish(line):
        said.append(line)
        if "files listed" in line:
            source.rename(tmp_path / "hidden")

    ran = runs.ingest(catalog.settings, [source], say=vanish)
    (reason,) = ran.failed.values()
    assert "bring it back and run again" in reason
    assert ran.batches == []
    (tmp_path / "hidden").rename(source)
    again = catalog.ingest(source)
    assert again.batches == list(ran.failed)
    assert catalog.load().select(pl.len()).collect().item() == 1


def test_a_lake_that_cannot_be_written_fails_clearly(source, tmp_path) -> None:
    put(source, "CT_small.dcm")
    (tmp_path / "lake").write_bytes(b"a file")
    with pytest.raises(PixelsError, match=r"cannot create the lake at .*; "):
        Catalog(tmp_path / "lake").ingest(source)


def test_importing_the_package_loads_no_engine_and_no_dagster() -> None:
    script = "import sys, pixels_assets; from pixels_assets import Catalog; print('dagster' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_after_many_batches_another_process_lets_the_hierarchy_follow(catalog, source, tmp_path, monkeypatch) -> None:
    from pixels_assets import runs

    monkeypatch.setattr(runs, "_MANY_BATCHES", 1)
    put(source, "CT_small.dcm")
    said = []
    runs.ingest(catalog.settings, [source], say=said.append)
    assert "brought up to date" in said[-1]
    assert (catalog.status().patients, catalog.status().instances) == (1, 1)
    # It says what it could not do, and the next call makes up for it.
    with (source / "CT_small.dcm").open("ab") as file:
        file.write(b"\0" * 8)
    (rows,) = (catalog.settings.lake / "instances").glob("*.parquet")
    rows.rename(tmp_path / "rows")
    with pytest.raises(PixelsError, match=r"instances and headers are not up to date: .*; run the same command again"):
        runs.ingest(catalog.settings, [source])
    (tmp_path / "rows").rename(rows)
    # Without another process this one does it.
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no python"))
    with shared_instance() as instance:
        runs._update_rollups(catalog.settings, instance, said.append, batches=1)
    (length,) = catalog.sql("select bytes from series").fetchone()
    assert length == (source / "CT_small.dcm").stat().st_size


def test_after_many_objects_headers_follow_beside_the_rest(catalog, source, tmp_path, monkeypatch) -> None:
    from pixels_assets import runs

    monkeypatch.setattr(runs, "_MANY_OBJECTS", 1)
    settings = replace(catalog.settings, workers=2)
    put(source, "CT_small.dcm", "MR_small.dcm")
    said = []
    runs.ingest(settings, [source], say=said.append)
    assert "brought up to date" in said[-1]
    assert catalog.status().instances == catalog.sql("select count(*) from headers").fetchone()[0] == 2
    with shared_instance() as instance:
        runs_of_it = [record.dagster_run.run_id for record in instance.get_run_records(dg.RunsFilter(job_name="update_rollups"))]
        told = {run: [record.dagster_event for record in instance.all_logs(run) if record.dagster_event] for run in runs_of_it}
    made = {run: {event.asset_key.path[-1] for event in events if event.is_step_materialization} for run, events in told.items()}
    assert sorted(made.values(), key=len) == [{"headers"}, {*ROLLUPS, *LINKED}]
    # What fails there is said, and done by the next call.
    put(source, "JPEG2000.dcm")
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_APART", "import sys; sys.exit(7)")
        with pytest.raises(PixelsError, match="and headers are not up to date: the process that does it ended with code 7; run"):
            runs.ingest(settings, [source])
    assert catalog.status().instances == 3
    assert catalog.sql("select count(*) from headers").fetchone()[0] == 2
    assert runs.ingest(settings, [source]).batches == []
    assert catalog.sql("select count(*) from headers").fetchone()[0] == 3
    # Without another process this one does both.
    put(source, "JPGExtended.dcm")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(tmp_path / "no python"))
        runs.ingest(settings, [source])
    assert catalog.status().instances == catalog.sql("select count(*) from headers").fetchone()[0] == 4
