"""Spark: a real master with two real workers, and a session in this process."""

import contextlib
import datetime as dt
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import dagster as dg
import duckdb
import polars as pl
import pyarrow as pa
import pydicom
import pyspark
import pytest
import yaml
from pydicom.data import get_testdata_file

from pixels_assets import Catalog
from pixels_assets.cli import main
from pixels_assets.definitions import build_definitions
from pixels_assets.engines.shards import OUTPUTS, IndexSpec, Shard, plan_shards
from pixels_assets.engines.spark import SparkEngine, _groups, _sql_type, read_dicom, require_master, session_config, spark_table, starting
from pixels_assets.errors import LakeError, SourceMissingError, UsageError, WorkerError
from pixels_assets.intake.objects import SourceFile, Status, file_address
from pixels_assets.lake.commit import commit, create_tables, is_committed, open_table
from pixels_assets.lake.headers import headers_dataset, scan_headers, update_headers
from pixels_assets.lake.parts import part_from_table
from pixels_assets.lake.schema import DICOM_METADATA, OBJECT_CATALOG, TABLES
from pixels_assets.orchestration.resources import EngineResource
from pixels_assets.settings import Settings
from pixels_assets_tests.commands import NAMES, OLD, ROOT, assert_gone, fill, long_dicom, pixels, start, workers_of
from pixels_assets_tests.tablehash import table_hashes

CORPUS = os.environ.get("PIXELS_CORPUS")
spark = pytest.mark.spark
slow = pytest.mark.slow
PARTITIONS = 4
JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData"
"""Compile once and cheaply: no process here lives long enough for more to pay."""

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
SLOW = shutil.ignore_patterns("*slow*")
MORE = ["SC_rgb_jpeg_dcmtk.dcm", "JPEG-LL.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm", "color-pl.dcm", "waveform_ecg.dcm", "DICOMDIR"]


# ---------------------------------------------------------------------------------------------------------------------------------- without Spark


def files_of(*sizes):
    return [SourceFile(f"/{number:03}", size, 0, "/") for number, size in enumerate(sizes)]


def test_without_a_number_of_partitions_each_shard_is_a_task_the_heaviest_first():
    shards = plan_shards(files_of(1, 5, 3), max_files=1)
    assert [[shard.size for shard in group] for group in _groups(shards, 0)] == [[5], [3], [1]]
    assert _groups([], 0) == _groups([], 4) == []


@pytest.mark.parametrize(("count", "partitions"), [(1, 3), (10, 4), (100, 7), (300, 2), (5, 5)])
def test_a_number_of_partitions_is_kept_and_every_file_is_in_one_of_them(count, partitions):
    files = files_of(*range(count))
    groups = _groups(plan_shards(files), partitions)
    assert len(groups) == partitions
    assert sorted(file.path for group in groups for shard in group for file in shard.files) == [file.path for file in files]
    numbers = [shard.number for group in groups for shard in group]
    assert len(set(numbers)) == len(numbers)
    if count >= partitions:
        assert all(groups)


def test_tasks_are_of_about_the_same_weight():
    groups = _groups(plan_shards(files_of(*[100] * 64), max_files=1), 4)
    assert [sum(shard.size for shard in group) for group in groups] == [1600] * 4
    assert [len(group) for group in _groups(plan_shards(files_of(*[0] * 64), max_files=1), 4)] == [16] * 4


def test_every_column_of_the_lake_has_a_type_in_spark():
    for table in TABLES.values():
        for column in table.columns:
            assert _sql_type(column.type)
    assert _sql_type(pa.list_(pa.struct([("a", pa.int32()), ("b", pa.list_(pa.float64()))]))) == "ARRAY<STRUCT<`a`: INT, `b`: ARRAY<DOUBLE>>>"
    with pytest.raises(TypeError, match="no rule for columns of type"):
        _sql_type(pa.duration("s"))


@pytest.mark.parametrize(("master", "bound"), [("", True), ("local[2]", True), ("spark://127.0.0.1:7077", True), ("spark://cluster:7077", False)])
def test_a_session_on_this_machine_listens_to_this_machine_only(master, bound):
    config = session_config(Settings(spark_master=master, workers=3), {"spark.executor.memory": "2g", "spark.app.name": "mine"})
    assert config["spark.master"] == (master or "local[3,4]")
    assert ("spark.driver.bindAddress" in config) is bound
    assert (config["spark.executor.memory"], config["spark.app.name"]) == ("2g", "mine")


def test_without_java_one_line_says_what_to_install_and_nothing_is_written(tmp_path, monkeypatch, capsys):
    for name in [name for name in os.environ if name.startswith("PIXELS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    (tmp_path / "in").mkdir()
    assert main(["ingest", str(tmp_path / "in"), "--engine", "spark", "--lake", str(tmp_path / "lake")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "apt-get install default-jre-headless" in line
    assert not (tmp_path / "lake").exists()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "no java"))
    with pytest.raises(UsageError, match="none in JAVA_HOME"):
        Catalog(tmp_path / "lake", engine="spark").ingest(tmp_path / "in")


@pytest.mark.parametrize("arguments", [["--master", "local"], ["--partitions", "3"], ["--engine", "local", "--partitions", "3"]])
def test_settings_of_spark_without_spark_are_wrong_arguments(tmp_path, capsys, arguments):
    assert main(["ingest", str(tmp_path), *arguments]) == 2
    assert "--engine spark" in capsys.readouterr().err


@pytest.mark.parametrize("master", ["foo", "spark://", "spark://host", "spark://host:port", "spark://127.0.0.1:1,host"])
def test_a_master_that_can_be_none_is_a_wrong_setting(master):
    with pytest.raises(UsageError, match=re.escape(repr(master)) + r".*spark://host:7077"):
        require_master(master)


def test_a_master_that_is_not_there_is_told_at_once_unless_another_one_is():
    with socket.socket() as bound, socket.create_server(("127.0.0.1", 0)) as listening:
        bound.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(WorkerError, match=f"spark://{nobody} cannot be reached: Connection refused; is it running"):
            require_master(f"spark://{nobody}")
        require_master(f"spark://{nobody},127.0.0.1:{listening.getsockname()[1]}")


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")
def test_java_does_not_outlive_a_start_that_was_interrupted(tmp_path, monkeypatch):
    java = tmp_path / "bin" / "java"
    java.parent.mkdir()
    java.write_text("#!/bin/sh\nexec sleep 600\n")
    java.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    monkeypatch.setattr(pyspark.SparkContext, "_gateway", None)
    with contextlib.suppress(KeyboardInterrupt), starting("local[1]"):
        started = subprocess.Popen([java])
        raise KeyboardInterrupt
    assert started.wait() == -signal.SIGKILL


def test_an_unknown_engine_is_a_wrong_setting():
    with pytest.raises(UsageError, match="engine is 'flink'; use local or spark"):
        Settings(engine="flink")


# ------------------------------------------------------------------------------------------------------------------------------------ the cluster


class Cluster:
    """A standalone master and its workers on loopback."""

    def __init__(self, folder):
        self.folder = folder
        self.running = []
        self.master = self._launch("master.Master", "--port", "0", "--webui-port", "0", told=r"Starting Spark master at (spark://\S+)")[1]
        self.workers = [self.add_worker() for _ in range(2)]

    def add_worker(self):
        work = self.folder / f"work{len(self.running)}"
        options = ["--port", "0", "--webui-port", "0", "--cores", "1", "--memory", "1g", "--work-dir", work, self.master]
        return self._launch("worker.Worker", *options, told=r"Successfully registered with master (\S+)")[0]

    def _launch(self, name, *options, told):
        log = self.folder / f"{name}{len(self.running)}.log"
        home = Path(pyspark.__file__).parent
        kind = ["org.apache.spark.deploy." + name, "--host", "127.0.0.1"]
        environment = os.environ | {"SPARK_HOME": str(home), "SPARK_DAEMON_MEMORY": "256m", "SPARK_LOCAL_IP": "127.0.0.1"}
        with log.open("wb") as output:
            command = [home / "bin" / "spark-class", *kind, *options]
            process = subprocess.Popen([*map(str, command)], stdout=output, stderr=output, env=environment, start_new_session=True)
        self.running.append(process)
        deadline = time.monotonic() + 120
        while not (found := re.search(told, log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        return process, found.group(1)

    def close(self):
        for process in reversed(self.running):
            for pid in [process.pid, *descendants(process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()


def descendants(pid):
    """Processes that a process has started, and those that they have."""
    found, waiting = [], [pid]
    while waiting:
        for task in Path(f"/proc/{waiting.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children = [int(child) for child in task.read_text().split()]
                found += children
                waiting += children
    return found


def index_workers(pid):
    """Processes below this one that read objects."""
    return {found for child in [pid, *descendants(pid)] for found in workers_of(child)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    if not shutil.which("java"):
        pytest.skip("there is no Java")
    if sys.platform != "linux":
        pytest.skip("looks at processes through /proc")
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("PIXELS_", "SPARK_", "PYSPARK_"))]:
            patch.delenv(name)
        home = tmp_path_factory.mktemp("home")
        shutil.copy(ROOT / "dagster.yaml", home)
        patch.setenv("DAGSTER_HOME", str(home))
        patch.setenv("JAVA_TOOL_OPTIONS", JAVA)
        yield patch


@pytest.fixture(scope="module")
def session(cluster):
    """The session that everything in this process gets, since there can be one only."""
    before = signal.getsignal(signal.SIGINT)
    with EngineResource(engine="spark", spark_master=cluster.master, spark_config={"spark.sql.shuffle.partitions": "2"}).start() as engine:
        made = engine.session
        assert signal.getsignal(signal.SIGINT) is before
        deadline = time.monotonic() + 60
        while made.sparkContext._jsc.sc().getExecutorMemoryStatus().size() < 3:  # the driver is one
            assert time.monotonic() < deadline, "the executors did not come"
            time.sleep(0.05)
        yield made
        made.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A pile of all sorts, in one batch."""
    pile = fill(tmp_path_factory.mktemp("pile") / "in")
    (pile / "05 slow").write_bytes(long_dicom(6_000))
    (pile / "more").mkdir()
    for name in MORE:
        shutil.copy(str(get_testdata_file(name)), pile / "more")
    for number in range(3):
        (pile / "more" / f"slow {number}").write_bytes(long_dicom(5_000 + number))
    for path in [*pile.iterdir(), *(pile / "more").iterdir()]:
        os.utime(path, (OLD, OLD))
    return pile


def ingest(folder, lake, **settings):
    ran = Catalog(lake, quiet_seconds=0.0, **settings).ingest(folder)
    assert ran.failed == {}
    assert len(ran.batches) == 1
    return table_hashes(lake)


@pytest.fixture(scope="module")
def expected_lake(folder, tmp_path_factory):
    lake = tmp_path_factory.mktemp("expected") / "lake"
    ingest(folder, lake, workers=1)
    return lake


@pytest.fixture(scope="module")
def expected(expected_lake):
    return table_hashes(expected_lake)


def spark_settings(cluster):
    return {"engine": "spark", "spark_master": cluster.master, "spark_partitions": PARTITIONS}


# ---------------------------------------------------------------------------------------------------------------------------------- the same tables


@slow
@pytest.mark.long
def test_two_worker_processes_give_the_tables_of_one(folder, expected, tmp_path):
    assert ingest(folder, tmp_path / "lake", workers=2) == expected


MULTIPROCESS = """
import sys
import dagster as dg
from pixels_assets.definitions import defs


FORKED = {"forkserver": {"preload_modules": ["pixels_assets.definitions"]}}


def job():
    return defs.resolve_job_def("ingest_batch")


if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance:
        config = {"execution": {"config": {"multiprocess": {"start_method": FORKED}}}, "loggers": {"console": {"config": {"log_level": "ERROR"}}}}
        tables = {key for key in job().asset_layer.executable_asset_keys}
        made = dg.reconstructable(job).get_subset(asset_selection=tables, asset_check_selection=set() if sys.argv[2] == "tables" else None)
        sys.exit(not dg.execute_job(made, instance=instance, tags={"dagster/partition": sys.argv[1]}, run_config=config).success)
"""


@slow
@pytest.mark.parametrize("what", ["tables", pytest.param("tables and checks", marks=pytest.mark.long)])
def test_the_multiprocess_executor_gives_the_same_tables(what, folder, expected, tmp_path, monkeypatch):
    from pixels_assets.lake.changes import discover
    from pixels_assets.lake.commit import create_tables
    from pixels_assets.orchestration.instance import shared_instance
    from pixels_assets.orchestration.partitions import register

    lake, script = tmp_path / "lake", tmp_path / "run_one.py"
    script.write_text(MULTIPROCESS)
    create_tables(lake)
    (batch,) = discover(lake, [folder], Settings(lake=lake, quiet_seconds=0.0)).batches
    with shared_instance() as instance:
        register(instance, [batch])
    monkeypatch.setenv("PIXELS_LAKE", str(lake))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    subprocess.run([sys.executable, script, batch, what], check=True, cwd=os.environ["DAGSTER_HOME"])
    with shared_instance() as instance:
        (run,) = instance.get_runs(limit=1)
        told = [record.dagster_event.event_type_value for record in instance.all_logs(run.run_id) if record.dagster_event]
    assert told.count("STEP_WORKER_STARTED") >= 4
    ran = Catalog(lake, quiet_seconds=0.0).ingest(folder)  # what follows the batches follows in a job of its own
    assert (ran.batches, ran.failed) == ([], {})
    assert table_hashes(lake) == expected


@slow
@spark
def test_spark_with_two_workers_gives_the_same_tables(folder, expected, cluster, session, tmp_path):
    assert ingest(folder, tmp_path / "lake", **spark_settings(cluster)) == expected
    assert all(index_workers(worker.pid) for worker in cluster.workers), "one of Spark's workers had nothing to do"


@slow
@spark
@pytest.mark.corpus
@pytest.mark.long
@pytest.mark.skipif(not CORPUS, reason="PIXELS_CORPUS is not set")
def test_spark_gives_the_same_tables_of_the_corpus(cluster, session, tmp_path):
    assert ingest(CORPUS, tmp_path / "spark", **spark_settings(cluster)) == ingest(CORPUS, tmp_path / "local")
    read_headers_everywhere(session, tmp_path / "local")


def read_headers_everywhere(session, lake):
    """Rows of `headers`, which every engine counts alike, whole and through a column of all parts."""
    plain = session.read.option("mergeSchema", "true").parquet(f"{lake}/headers")
    ours = spark_table(session, lake, "headers")
    assert set(plain.columns) == set(ours.columns) == set(headers_dataset(lake).schema.names)
    folder = duckdb.sql(f"from read_parquet('{lake}/headers/**/*.parquet', union_by_name = true, hive_partitioning = true)")
    counts = {
        "Spark": plain.count(),
        "spark_table": ours.count(),
        "DuckDB": folder.aggregate("count(*)").fetchone()[0],
        "pixels sql": Catalog(lake).sql("select count(*) from headers").fetchone()[0],
        "polars": scan_headers(lake).select(pl.len()).collect().item(),
        "pyarrow": headers_dataset(lake).count_rows(),
    }
    assert len(set(counts.values())) == 1, counts
    paths = {row.path for row in plain.select("path").collect()}
    assert paths == {row.path for row in ours.select("path").collect()} == {path for (path,) in folder.select("path").fetchall()}
    assert (
        paths == set(scan_headers(lake).select("path").collect()["path"]) == set(headers_dataset(lake).to_table(columns=["path"])["path"].to_pylist())
    )
    return len(paths)


@slow
@spark
def test_executors_have_no_use_for_dagster_polars_and_delta(folder, session, tmp_path):
    run(session, tmp_path, sources(folder)[:2])

    def loaded(_):
        import sys

        yield {name.split(".")[0] for name in sys.modules}

    seen = set.union(*session.sparkContext.parallelize(range(4), 4).mapPartitions(loaded).collect())
    assert {"pydicom", "pyspark", "pixels_assets"} <= seen
    assert not seen & {"dagster", "polars", "deltalake", "duckdb"}


# ------------------------------------------------------------------------------------------------------------------------------------------ faults


def sources(folder):
    return [SourceFile(file_address(path), path.stat().st_size, 1, file_address(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]


def run(session, tmp_path, files, *, partitions=2, progress=None, **settings):
    lake = tmp_path / "lake"
    spec = IndexSpec(lake, "b", "attempt", frozenset(table.name for table in OUTPUTS), Settings(lake=lake, **settings))
    outcome = SparkEngine(session, partitions).run(plan_shards(files, max_files=1), spec, progress)
    named = {lake / part.table / part.path for parts in outcome.parts.values() for part in parts}
    assert {path for path in lake.rglob("*") if path.is_file()} == named
    return outcome


@slow
@spark
def test_an_object_that_hangs_costs_itself_only_and_progress_is_told(session, tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(6):
        (tmp_path / "in" / f"{number}").write_bytes(CT)
    (tmp_path / "in" / "hangs").write_bytes(long_dicom(200_000))
    told = []
    outcome = run(session, tmp_path, sources(tmp_path / "in"), partitions=3, progress=told.append, object_seconds=2.0)
    assert outcome.tally.statuses == {"indexed": 6, "timeout": 1}
    assert outcome.tally.codes == {"time_limit": 1}
    assert told == sorted(told)
    assert told[-1] == 7


@slow
@spark
def test_an_error_of_the_environment_ends_the_run_at_once_with_its_own_sentence(session, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(CT)
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "dicom_metadata").write_text("in the way")
    with pytest.raises(LakeError, match="cannot write a part of dicom_metadata"):
        run(session, tmp_path, sources(tmp_path / "in"))


@slow
@spark
def test_a_task_that_spark_gives_up_is_one_line(session, tmp_path):
    settings = Settings()
    object.__setattr__(settings, "worker_bytes", [1])  # past the checks: a list is no key, and every task raises
    spec = IndexSpec(tmp_path, "b", "attempt", frozenset(), settings)
    with pytest.raises(WorkerError, match=r"^Spark gave up: a task raised TypeError; [^\n]*$"):
        SparkEngine(session, 1).run([Shard(0, tuple(files_of(1)))], spec)


# ----------------------------------------------------------------------------------------------------------------------------------------- reading


@slow
@spark
def test_one_call_gives_two_frames_from_one_read_of_each_file(folder, expected_lake, session, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=SLOW)
    objects, failures = read_dicom(session, copy, partitions=PARTITIONS)
    shutil.rmtree(copy)  # whatever follows, follows without it
    rows = pl.read_delta(str(expected_lake / "dicom_metadata")).filter(~pl.col("path").str.contains("slow"))
    good = rows.filter(pl.col("status") == "indexed")
    names = [name for name in good.columns if name in objects.columns and name not in {"path", "original_path", "local_path", "modificationTime"}]
    assert {"meta", "header", "content_hash", "PatientName", "StudyDate", "warnings"} <= set(names)
    read = {row.path.removeprefix(str(copy)): [as_python(row[name]) for name in names] for row in objects.collect()}
    assert read == {row["path"].removeprefix(str(folder)): [as_python(row[name]) for name in names] for row in good.to_dicts()}
    assert "pixel_data" not in objects.columns
    bad = rows.filter(~pl.col("status").is_in(["indexed", "archive"]))
    assert {(row.path.removeprefix(str(copy)), row.status, row.error_code, row.error_message) for row in failures.collect()} == {
        (path.removeprefix(str(folder)), *why) for path, *why in bad.select("path", "status", "error_code", "error_message").iter_rows()
    }
    assert len(bad) >= 3


def as_python(value):
    return bytes(value) if isinstance(value, bytearray) else value.timestamp() if isinstance(value, dt.datetime) else value


@slow
@spark
def test_pixel_data_is_read_when_it_is_asked_for_from_archives_too(folder, session):
    fast = [path for path in folder.iterdir() if path.is_file() and "slow" not in path.name]
    objects, _ = read_dicom(session, *fast, folder / "more" / MORE[0], pixels=True)
    assert objects.filter("path like '%.zip!/%'").count() == 4
    for row in objects.select("path", "pixel_data").collect():
        name = NAMES[int(row.path.rpartition("/")[2])] if "!/" in row.path else None
        data = pydicom.dcmread(str(get_testdata_file(name)) if name else row.path)
        assert row.pixel_data == data.get("PixelData"), row.path


@slow
@spark
def test_reading_nothing_gives_two_empty_frames_and_wrong_sources_are_told(session, tmp_path):
    objects, failures = read_dicom(session, tmp_path, pixels=True)
    assert (objects.count(), failures.count()) == (0, 0)
    assert {"path", "meta", "pixel_data", *(column.name for column in DICOM_METADATA.columns if column.clause)} <= set(objects.columns)
    assert {"path", "status", "error_code", "error_message"} <= set(failures.columns)
    with pytest.raises(UsageError, match="no source"):
        read_dicom(session)
    with pytest.raises(SourceMissingError):
        read_dicom(session, tmp_path / "missing")


@slow
@spark
def test_spark_reads_the_live_rows_of_every_table(expected_lake, session, tmp_path):
    lake = tmp_path / "lake [of] {all} *"
    shutil.copytree(expected_lake, lake)
    for name, table in TABLES.items():
        frame = spark_table(session, lake, name)
        assert tuple(frame.columns) == table.column_names
        rows = sorted((tuple(map(as_python, row)) for row in frame.collect()), key=repr)
        expected = pl.from_arrow(open_table(lake, name).to_pyarrow_table()).select(table.column_names)
        assert rows == sorted((tuple(map(as_python, row)) for row in expected.rows()), key=repr)
    for part in (lake / "object_catalog").rglob("*.parquet"):
        shutil.copy(part, part.with_name(f"orphan-{part.name}"))
    assert spark_table(session, lake, "object_catalog").count() == open_table(lake, "object_catalog").to_pyarrow_table().num_rows
    assert spark_table(session, lake, "object_catalog").filter("Modality = 'CT'").count() >= 1
    with pytest.raises(UsageError, match="there is no table"):
        spark_table(session, lake, "objects")
    with pytest.raises(LakeError):
        spark_table(session, tmp_path / "none", "object_catalog")


# ------------------------------------------------------------------------------------------------------------------------------------------- words

DOCUMENT = (ROOT / "docs" / "spark.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


@slow
@spark
def test_what_the_document_shows_runs_as_printed(folder, expected_lake, session, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder, tmp_path / "images", ignore=SLOW)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks("python"):
        exec(compile(block, "docs/spark.md", "exec"), names)
    assert len(blocks("python")) == 4
    (block,) = re.findall(r"^```pyspark\n(.*?)^```$", (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    exec(compile(block.replace("var/lake", f"{tmp_path}/var/lake"), "docs/cookbook.md", "exec"), names)  # Spark's own folder is another one
    output = capsys.readouterr().out
    assert "slice_thickness" in output
    assert re.search(r"not_dicom *\| *not_dicom *\| *1\|", output)
    assert re.search(r"sum\(.*=[1-9]", output)
    assert re.search(r"Row\(batch='.*', count=[1-9]", output)


def test_run_config_of_the_document_is_accepted_and_reaches_the_session(tmp_path):
    (config,) = map(yaml.safe_load, blocks("yaml"))
    definitions = build_definitions({"lake": tmp_path / "lake"})
    assert dg.validate_run_config(definitions.resolve_job_def("ingest_batch"), config)
    engine = EngineResource(**config["resources"]["engine"]["config"])
    made = session_config(engine.settings(), engine.spark_config)
    assert (made["spark.master"], made["spark.executor.memory"]) == ("spark://host:7077", "2g")
    assert engine.settings().spark_partitions == 64


# -------------------------------------------------------------------------------------------------------------------------- commands and kills


@slow
@spark
@pytest.mark.long
def test_a_command_on_this_machine_that_was_interrupted_goes_on_to_the_same_tables(folder, expected, cluster, tmp_path):
    home, lake = tmp_path / "home", tmp_path / "home" / "lake"
    command = ["ingest", folder, "--lake", lake, "--engine", "spark", "--partitions", "5"]
    with start(command, home, PIXELS_BATCH_FILES="1000") as process:
        while not (workers := index_workers(process.pid)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        everything = descendants(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        _, messages = process.communicate(timeout=120)
    assert process.returncode == 130, messages
    assert "interrupted; what was finished is kept" in messages
    assert "Traceback" not in messages
    assert_gone(workers | set(everything))
    code, _, messages = pixels(command, home, PIXELS_BATCH_FILES="1000")
    assert code == 0, messages
    assert table_hashes(lake) == expected


@slow
@spark
def test_a_worker_of_spark_that_is_killed_in_mid_run_costs_nothing(folder, expected, cluster, session, tmp_path):
    lake = tmp_path / "lake"
    found = []
    thread = threading.Thread(target=lambda: found.append(ingest(folder, lake, **spark_settings(cluster))))
    thread.start()
    while not list((lake / "dicom_metadata").glob("batch=*/*.parquet")):  # one task is done, others are going on
        assert thread.is_alive()
        time.sleep(0.005)
    victim = cluster.workers[0]
    for pid in [*descendants(victim.pid), victim.pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    (part,) = {path.parent.name for path in (lake / "dicom_metadata").glob("batch=*/*.parquet")}
    assert not is_committed(lake, DICOM_METADATA, part.removeprefix("batch=")), "the kill came too late"
    thread.join()
    assert found == [expected]
    assert victim.wait() == -signal.SIGKILL
    assert {row.status for row in spark_table(session, lake, "object_catalog").select("status").distinct().collect()} <= set(Status)
    live = {lake / "dicom_metadata" / path for path in pa.table(open_table(lake, "dicom_metadata").get_add_actions())["path"].to_pylist()}
    assert set((lake / "dicom_metadata").glob("batch=*/*")) == live


def test_headers_of_batches_that_know_different_attributes_are_read(session, tmp_path):
    lake = tmp_path / "lake"
    create_tables(lake)
    metas = {
        "b1": '{"00080021":{"vr":"DA","Value":["20240105"]},"00081115":{"vr":"SQ","Value":[{"0020000E":{"vr":"UI","Value":["1.2"]}}]}}',
        "b2": (
            '{"00080021":{"vr":"DA","Value":["none"]},"00081115":{"vr":"SQ","Value":[{"0008114A":{"vr":"SQ","Value":[{"00081155":{"vr":"UI","Value":'
            '["1.3"]}}]}}]},"00280030":{"vr":"DS","Value":[0.5,0.5]}}'
        ),
    }
    for batch, meta in metas.items():
        row = {"rowId": [1], "path": [batch], "local_path": [batch], "status": ["indexed"], "meta": [meta]}
        part = part_from_table(lake, OBJECT_CATALOG, batch, "part", pa.table(row))
        commit(lake, OBJECT_CATALOG, batch, [part], run_id="test")
        update_headers(lake)
    assert read_headers_everywhere(session, lake) == 2
    frame = session.read.option("mergeSchema", "true").parquet(f"{lake}/headers")
    found = {row.path: row.asDict(recursive=True) for row in frame.collect()}
    assert {row.path: row.asDict(recursive=True) for row in spark_table(session, lake, "headers").collect()} == found
    assert {path: row["batch"] for path, row in found.items()} == {"b1": "b1", "b2": "b2"}
    assert (found["b1"]["SeriesDate"], found["b2"]["SeriesDate"]) == ("20240105", "none")
    assert (found["b1"]["PixelSpacing"], found["b2"]["PixelSpacing"]) == (None, [0.5, 0.5])
    assert found["b1"]["ReferencedSeriesSequence"] == [{"ReferencedInstanceSequence": None, "SeriesInstanceUID": "1.2"}]
    (step,) = found["b2"]["ReferencedSeriesSequence"]
    assert step["ReferencedInstanceSequence"] == [{"ReferencedSOPInstanceUID": "1.3"}]
