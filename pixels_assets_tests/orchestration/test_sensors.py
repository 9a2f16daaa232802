"""Sensors: files that arrive become runs, each once; batches that failed get a bounded number of chances."""

import json
import shutil

import dagster as dg
import pytest

from pixels_assets.lake.changes import Position, discover, known_files, manifests
from pixels_assets.lake.commit import table_lock
from pixels_assets.lake.headers import headers_dataset
from pixels_assets.lake.query import pending_batches
from pixels_assets.orchestration.resources import SourcesResource
from pixels_assets.orchestration.sensors import REQUESTS_PER_TICK, RUNS_PER_BATCH, Cursor, run_request, sensors
from pixels_assets.settings import Settings


class Daemon:
    """What the Dagster daemon does with a sensor: keep its cursor, and launch what it asks for, each run key once."""

    def __init__(self, place, name="arrivals", **values) -> None:
        self.place, self.cursor, self.keys = place, None, set()
        self.sensor = next(sensor for sensor in sensors(Settings()) if sensor.name == name)
        lake, sources = place.resources(**values)
        self.resources = {"lake": lake} | ({"sources": sources} if name == "arrivals" else {})

    def configure(self, **values):
        sources = self.resources["sources"]
        now = {name: getattr(sources, name) for name in ("folders", "batch_files", "batch_bytes", "quiet_seconds", "tick_seconds")}
        self.resources["sources"] = SourcesResource(**(now | values))
        return self

    def tick(self):
        """Evaluate once; what was asked for, and why not when nothing was."""
        with dg.build_sensor_context(instance=self.place.instance, cursor=self.cursor, resources=self.resources) as context:
            result = self.sensor(context)
        if isinstance(result, dg.SkipReason):
            return [], result.skip_message
        self.cursor = result.cursor if result.cursor is not None else self.cursor
        requests = [request for request in result.run_requests or [] if request.run_key not in self.keys]
        self.keys |= {request.run_key for request in requests}
        return requests, result.skip_reason.skip_message if result.skip_reason else None

    def launch(self, requests):
        """Run what was asked for, as the daemon does: for keys that are partitions."""
        for request in requests:
            assert self.place.instance.has_dynamic_partition("batch", request.partition_key)
            self.place.run(request.partition_key, tags={**request.tags, "dagster/run_key": request.run_key})


def test_without_sources_nothing_happens(place) -> None:
    requests, why = Daemon(place).configure(folders=[]).tick()
    assert requests == []
    assert "set PIXELS_SOURCES" in why
    assert not place.lake.exists()


def test_a_missing_source_is_said_and_writes_nothing(place) -> None:
    shutil.rmtree(place.source)
    requests, why = Daemon(place).tick()
    assert requests == []
    assert "mount it or correct the path" in why
    assert not place.lake.exists()


def test_files_that_arrive_are_brought_in_and_only_those(place) -> None:
    daemon = Daemon(place)
    place.write("CT_small.dcm")
    requests, _ = daemon.tick()
    assert [request.partition_key for request in requests] == place.keys()
    assert requests[0].tags["pixels/lake"] == str(place.lake)
    daemon.launch(requests)
    assert daemon.tick() == ([], "1 files listed, none new or changed")
    place.write("MR_small.dcm")
    requests, _ = daemon.tick()
    daemon.launch(requests)
    assert place.names() == ["CT_small.dcm", "MR_small.dcm"]
    (place.source / "CT_small.dcm").unlink()
    daemon.launch(daemon.tick()[0])
    assert place.names() == ["MR_small.dcm"]
    assert len(place.rows("raw_files")) == 3


def test_many_short_ticks_lose_and_double_nothing(place) -> None:
    for number in range(12):
        place.write(f"{number:02}", b"%d" % number)
    daemon = Daemon(place, batch_files=3).configure(tick_seconds=0.0)
    positions, requests = [], []
    for _ in range(9):
        requests += daemon.tick()[0]
        positions.append(json.loads(daemon.cursor)["position"])
        if positions[-1] is None:
            break
    assert len(positions) == 4
    assert len(requests) == 4
    daemon.launch(requests)
    assert place.names() == [f"{number:02}" for number in range(12)]
    (place.source / "03").unlink()
    while True:
        daemon.launch(daemon.tick()[0])
        if json.loads(daemon.cursor)["position"] is None:
            break
    assert len(place.names()) == 11
    assert len(place.rows("raw_files")) == 13


def test_a_tick_asks_for_a_bounded_number_of_runs_and_the_next_for_the_others(place) -> None:
    for number in range(REQUESTS_PER_TICK + 5):
        place.write(f"{number:02}", b"%d" % number)
    daemon = Daemon(place, batch_files=1)
    first, _ = daemon.tick()
    assert [request.partition_key for request in first] == place.keys()[:REQUESTS_PER_TICK]
    again, _ = daemon.tick()  # before any of them began: the same keys, which the daemon knows
    assert again == []
    for request in first:
        place.instance.create_run_for_job(
            place.definitions().resolve_job_def("ingest_batch"), tags={**request.tags, "dagster/partition": request.partition_key}
        )
    second, _ = daemon.tick()
    assert [request.partition_key for request in second] == place.keys()[REQUESTS_PER_TICK:]


@pytest.mark.parametrize(
    "lost", [None, "", "rubbish", "[]", '{"v": 99, "position": {"source": 0, "after": "/z", "moment": 1}}', '{"v": 1, "position": {"source": "x"}}']
)
def test_a_lost_cursor_loses_and_doubles_nothing(place, lost) -> None:
    for number in range(12):
        place.write(f"{number:02}", b"%d" % number)
    daemon = Daemon(place, batch_files=4).configure(tick_seconds=0.0)
    requests = daemon.tick()[0]
    daemon.cursor = lost
    for _ in range(6):
        requests += daemon.tick()[0]
    keys = [request.run_key for request in requests]
    assert len(keys) == len(set(keys)) == len(place.keys()) == 3
    sealed = [file.path for request in requests for file in manifests(place.lake).load(request.partition_key)]
    assert sorted(sealed) == [f"{place.source}/{number:02}" for number in range(12)]


def test_run_keys_stay_the_same_and_name_the_content_of_the_batch(place) -> None:
    place.write("a", b"1")
    (batch,) = place.seal()
    lake, _ = place.resources()
    request = run_request(lake, batch)
    assert request.run_key == run_request(lake, batch).run_key
    assert request.run_key.startswith(f"{batch}:")
    assert run_request(lake, batch, attempt=2).run_key == f"{request.run_key}:2"


def test_a_batch_that_was_sealed_by_a_process_that_was_killed_is_asked_for(place) -> None:
    place.write("CT_small.dcm")
    lake, sources = place.resources()
    lake.prepared()
    (batch,) = discover(place.lake, [place.source], sources.settings()).batches  # and no partition
    daemon = Daemon(place)
    requests, _ = daemon.tick()
    assert [request.partition_key for request in requests] == [batch]
    daemon.launch(requests)
    assert place.names() == ["CT_small.dcm"]


def test_batches_that_others_run_are_left_to_them(place) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    job = place.definitions().resolve_job_def("ingest_batch")
    place.instance.create_run_for_job(job, tags={"dagster/partition": batch})  # from the UI: not yet started
    assert Daemon(place).tick()[0] == []


def test_runs_of_the_same_key_in_another_lake_do_not_count(place) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    job = place.definitions().resolve_job_def("ingest_batch")
    place.instance.create_run_for_job(job, tags={"dagster/partition": batch, "pixels/lake": "/another/lake"})
    assert [request.partition_key for request in Daemon(place).tick()[0]] == [batch]


def test_files_being_written_wait(place) -> None:
    place.write("CT_small.dcm.part", b"half")
    daemon = Daemon(place)
    assert daemon.tick() == ([], "0 files listed, none new or changed, 1 being written wait for a later look")
    (place.source / "CT_small.dcm.part").rename(place.source / "CT_small.dcm")
    assert len(daemon.tick()[0]) == 1


def test_an_emptied_source_is_said_and_its_files_stay(place) -> None:
    for number in range(100):
        place.write(f"{number}/CT_small.dcm")
    daemon = Daemon(place)
    daemon.tick()
    place.source.rename(place.source.parent / "elsewhere")
    place.source.mkdir()
    cursor = daemon.cursor
    assert "mount its disk" in daemon.tick()[1]
    assert daemon.cursor == cursor
    assert len(known_files(place.lake)) == 100


def test_a_tick_while_a_command_looks_at_the_sources_is_skipped(place) -> None:
    place.write("CT_small.dcm")
    daemon = Daemon(place).configure(tick_seconds=0.1)
    daemon.resources["lake"].prepared()
    with table_lock(place.lake, "_discovery"):
        assert "is locked" in daemon.tick()[1]
    assert len(daemon.tick()[0]) == 1


def test_a_cursor_comes_back_as_it_was_written() -> None:
    position = Position(3, "/in/a\n\u00e9", 7)
    assert Cursor.parse(str(Cursor(position))) == Cursor(position)
    assert Cursor.parse(str(Cursor())) == Cursor()


# --- failed batches


def test_a_failed_batch_gets_a_bounded_number_of_chances(place) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    hidden = place.source.parent / "hidden"
    daemon = Daemon(place, "failed_batches")
    assert daemon.tick() == ([], "no batch failed")  # it has not run at all: that is for the other sensor
    place.source.rename(hidden)
    assert not place.run(batch).success
    asked = []
    for _ in range(6):
        requests, _ = daemon.tick()
        asked += requests
        daemon.launch(requests)
    assert len(asked) == RUNS_PER_BATCH - 1
    assert len({request.run_key for request in asked}) == RUNS_PER_BATCH - 1
    assert daemon.tick() == ([], "no batch failed")
    hidden.rename(place.source)
    assert place.run(batch).success  # by hand, from the UI
    assert pending_batches(place.lake) == []


def test_a_failed_batch_that_succeeds_is_left_alone(place) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    hidden = place.source.parent / "hidden"
    place.source.rename(hidden)
    place.run(batch)
    hidden.rename(place.source)
    daemon = Daemon(place, "failed_batches")
    requests, _ = daemon.tick()
    daemon.launch(requests)
    assert place.names() == ["CT_small.dcm"]
    assert daemon.tick() == ([], "no batch failed")


def test_a_failed_batch_that_is_running_again_is_left_alone(place) -> None:
    place.write("CT_small.dcm")
    (batch,) = place.seal()
    job = place.definitions().resolve_job_def("ingest_batch")
    running = place.instance.create_run_for_job(job, tags={"dagster/partition": batch}, status=dg.DagsterRunStatus.STARTED)
    hidden = place.source.parent / "hidden"
    place.source.rename(hidden)
    assert not place.run(batch).success
    daemon = Daemon(place, "failed_batches")
    assert daemon.tick() == ([], "no batch failed")
    place.instance.report_run_failed(running)
    assert len(daemon.tick()[0]) == 1


@pytest.mark.parametrize("name", ["arrivals", "failed_batches", "catalog_changed"])
def test_a_lake_that_cannot_be_read_is_a_reason_to_skip(place, name) -> None:
    place.write("CT_small.dcm")
    place.seal()
    for table in ("object_catalog", "quarantine"):
        for entry in (place.lake / table / "_delta_log").iterdir():
            entry.write_text("{damaged")
    requests, reason = Daemon(place, name).tick()
    assert requests == []
    assert "cannot open the table" in reason


def test_without_a_lake_no_batch_failed(place) -> None:
    assert Daemon(place, "failed_batches").tick() == ([], "there is no lake yet")


def test_sensors_run_by_themselves_only_when_sources_are_set(place) -> None:
    def statuses(**values):
        found = place.definitions(**values).resolve_all_job_defs and place.definitions(**values).sensors
        return {sensor.name: sensor.default_status for sensor in found if sensor.name != "catalog_changed"}

    assert set(statuses().values()) == {dg.DefaultSensorStatus.STOPPED}
    assert set(statuses(sources=(str(place.source),)).values()) == {dg.DefaultSensorStatus.RUNNING}


# --- what follows the catalog


def test_the_hierarchy_follows_however_many_batches_changed_the_catalog(place) -> None:
    daemon = Daemon(place, "catalog_changed")
    assert daemon.tick() == ([], "there is no lake yet")
    for name in ("CT_small.dcm", "MR_small.dcm"):
        place.write(name)
    for batch in place.seal(batch_files=1):
        place.run(batch)
    (request,), _ = daemon.tick()
    assert daemon.tick() == ([], None), "one try for each version"
    job = place.definitions().resolve_job_def("update_rollups")
    waiting = place.instance.create_run_for_job(job, tags=request.tags)
    assert daemon.tick() == ([], "a run brings the rollups up to date already")
    place.instance.report_run_failed(waiting)
    result = job.execute_in_process(instance=place.instance, tags=request.tags)
    assert result.success
    assert daemon.tick() == ([], "the rollups are up to date")
    assert {table: len(place.rows(table)) for table in ("patients", "studies", "series", "instances")} == dict.fromkeys(
        ("patients", "studies", "series", "instances"), 2
    )


def test_headers_alone_are_made_up_for_once(place) -> None:
    daemon = Daemon(place, "catalog_changed")
    place.write("CT_small.dcm")
    place.run(*place.seal())
    job = place.definitions().resolve_job_def("update_rollups")
    assert job.execute_in_process(instance=place.instance, tags=daemon.tick()[0][0].tags).success
    assert daemon.tick() == ([], "the rollups are up to date")
    shutil.rmtree(place.lake / "headers")
    (request,), _ = daemon.tick()
    assert daemon.tick() == ([], None)
    assert job.execute_in_process(instance=place.instance, tags=request.tags).success
    assert headers_dataset(place.lake).count_rows() == 1
    assert daemon.tick() == ([], "the rollups are up to date")


def test_the_sensor_that_follows_the_catalog_always_runs(place) -> None:
    (sensor,) = (sensor for sensor in place.definitions().sensors if sensor.name == "catalog_changed")
    assert sensor.default_status == dg.DefaultSensorStatus.RUNNING
