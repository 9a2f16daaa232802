"""The instance that commands share with the UI, and runs in processes of their own."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dagster as dg
import pytest

import pixels_assets
from pixels_assets.lake.changes import discover
from pixels_assets.lake.commit import create_tables
from pixels_assets.lake.query import pending_batches, scan
from pixels_assets.lake.schema import BATCH_TABLES
from pixels_assets.orchestration.instance import PROCESS_TAG, end_lost_runs, process_tag, shared_instance
from pixels_assets.orchestration.partitions import register
from pixels_assets.settings import Settings

ROOT = Path(pixels_assets.__file__).parents[1]


@pytest.fixture
def home(tmp_path, environment):
    """A DAGSTER_HOME as the checkout is one."""
    folder = tmp_path / "home"
    shutil.copy(ROOT / "dagster.yaml", folder)
    return folder


def start(script, *arguments, **options):
    # Dagster takes the relative folders of dagster.yaml from the working folder.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PIXELS_QUIET_SECONDS": "0", "PIXELS_WORKERS": "1"}
    return subprocess.Popen([sys.executable, *map(str, (script, *arguments))], cwd=os.environ["DAGSTER_HOME"], env=environment, **options)


def test_all_storage_is_below_var_of_the_home_wherever_the_process_works(home, monkeypatch) -> None:
    monkeypatch.chdir("/")
    with shared_instance() as instance:
        register(instance, ["20261121T101500-0001"])
        assert Path(instance.storage_directory()).is_relative_to(home / "var" / "dagster")
    assert {path.name for path in home.iterdir()} == {"dagster.yaml", "var"}
    with shared_instance() as instance:
        assert instance.get_dynamic_partitions("batch") == ["20261121T101500-0001"]


def test_a_home_without_configuration_has_its_storage_below_var_too(home) -> None:
    (home / "dagster.yaml").unlink()
    with shared_instance() as instance:
        register(instance, ["20261121T101500-0001"])
    assert {path.name for path in home.iterdir()} == {"var"}


def test_threads_wait_for_each_other(home) -> None:
    begun, order = threading.Event(), []

    def other() -> None:
        begun.set()
        with shared_instance():
            order.append("other")

    thread = threading.Thread(target=other)
    with shared_instance():
        thread.start()
        begun.wait()
        thread.join(0.3)  # long enough to get in where nothing keeps it out
        order.append("this")
    thread.join()
    assert order == ["this", "other"]


# --- runs that were killed


INGEST = """
import sys
from pixels_assets import Catalog
Catalog(sys.argv[1]).ingest(sys.argv[2])
"""


def test_a_run_whose_process_was_killed_is_ended_and_its_batch_is_not_lost(home, tmp_path) -> None:
    source, lake, script = tmp_path / "source", tmp_path / "lake", tmp_path / "ingest.py"
    source.mkdir()
    script.write_text(INGEST)
    with (source / "large").open("wb") as file:
        file.truncate(20 << 30)  # takes seconds to hash, and no room
    process = start(script, lake, source, stderr=subprocess.DEVNULL)
    with shared_instance() as instance:
        started = []
        while not started and process.poll() is None:
            time.sleep(0.05)
            started = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
    (run,) = started
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert f":{process.pid}:" in run.tags[PROCESS_TAG]
    with shared_instance() as instance:  # opening it is what ends them
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
    assert len(pending_batches(lake)) == 1
    (source / "large").write_bytes(b"small")
    done = start(script, lake, source, stderr=subprocess.DEVNULL)
    assert done.wait() == 0
    assert pending_batches(lake) == []
    assert scan(lake, "object_catalog").collect()["length"].to_list() == [5]


def test_only_runs_of_processes_that_are_gone_are_ended() -> None:
    def job():
        @dg.job
        def nothing():
            pass

        return nothing

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host, number, token = process_tag().split(":")
    tags = {
        "ours": process_tag(),
        "same number, as in a container": f"{host}:{number}:another",
        "gone": f"{host}:{gone.pid}:{token}",
        "init": f"{host}:1:{token}",
        "elsewhere": f"another-{host}:{gone.pid}:{token}",
        "untagged": None,
    }
    with dg.DagsterInstance.ephemeral() as instance:
        runs = {
            name: instance.create_run_for_job(job(), tags={PROCESS_TAG: tag} if tag else {}, status=dg.DagsterRunStatus.STARTED)
            for name, tag in tags.items()
        }
        finished = instance.create_run_for_job(job(), tags={PROCESS_TAG: tags["gone"]}, status=dg.DagsterRunStatus.SUCCESS)
        end_lost_runs(instance)
        found = {name: instance.get_run_by_id(run.run_id).status for name, run in runs.items()}
        assert instance.get_run_by_id(finished.run_id).status == dg.DagsterRunStatus.SUCCESS
    assert {name for name, status in found.items() if status == dg.DagsterRunStatus.FAILURE} == {"gone", "same number, as in a container"}


# --- executors


RUN = """
import sys
import dagster as dg
from pixels_assets.definitions import defs


def job():
    return defs.resolve_job_def("ingest_batch")


if __name__ == "__main__":
    (batch,) = sys.argv[1:]
    with dg.DagsterInstance.get() as instance:
        result = dg.execute_job(
            dg.reconstructable(job),
            instance=instance,
            tags={"dagster/partition": batch},
            run_config={"execution": {"config": {"in_process": {}}}, "loggers": {"console": {"config": {"log_level": "ERROR"}}}},
        )
        sys.exit(not result.success)
"""


@pytest.fixture
def batches(home, tmp_path, monkeypatch):
    """Two sealed batches, their lake, and the script that runs one of them as a code location does."""
    import pydicom.data

    source, lake, script = tmp_path / "source", tmp_path / "lake", tmp_path / "run_one.py"
    source.mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm"):
        shutil.copy(str(pydicom.data.get_testdata_file(name)), source)
    script.write_text(RUN)
    create_tables(lake)
    keys = discover(lake, [source], Settings(lake=lake, quiet_seconds=0.0, batch_files=1)).batches
    with shared_instance() as instance:
        register(instance, keys)
    monkeypatch.setenv("PIXELS_LAKE", str(lake))
    return keys, lake, script


def content(lake):
    """All rows of all tables, without what differs from run to run."""
    return {name: scan(lake, name).collect().sort("path").rows() for name in BATCH_TABLES}


@pytest.mark.long
def test_two_runs_over_different_batches_at_once_both_land(batches) -> None:
    keys, lake, script = batches
    running = [start(script, key) for key in keys]
    assert [process.wait() for process in running] == [0, 0]
    assert pending_batches(lake) == []
    assert len(content(lake)["object_catalog"]) == 2
