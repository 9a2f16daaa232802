"""What the environment does to a whole run: the command's exit code, its message, what the tables hold then, and that the next run goes on.

Each run that something happens to is a process of its own, as a user starts it.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from pixels_assets.cli import main
from pixels_assets.lake.schema import TABLES
from pixels_assets.orchestration.instance import shared_instance
from pixels_assets_tests.commands import ROOT, assert_gone, environment, fill, ingest, ingest_here, start, workers_of
from pixels_assets_tests.tablehash import rows_hash, table_hash, table_hashes, table_versions

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("kept_workers"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("pile") / "in")


@pytest.fixture(scope="module")
def talkative(folder, tmp_path_factory):
    """A run that nothing happened to and that was asked to tell all: its home, output and messages."""
    home = tmp_path_factory.mktemp("undisturbed")
    code, output, messages = ingest(folder, home, "--verbose")
    assert code == 0, messages
    return home, output, messages


@pytest.fixture(scope="module")
def undisturbed(talkative):
    """Home of a run that nothing happened to."""
    return talkative[0]


def wait_until(process, line):
    """Read the messages of a command until one holds this text; give those read."""
    read = []
    for message in process.stderr:
        read.append(message)
        if line in message:
            return read
    raise AssertionError(f"the command ended before it said {line!r}: {''.join(read)}")


def wait_for_workers(process, lake):
    """Workers of a command, as soon as the run of its second batch has begun: they live on from one batch to the next."""
    while process.poll() is None:
        workers = workers_of(process.pid)
        if workers and len(list((lake / "raw_files").glob("batch=*"))) > 1:
            return workers
        time.sleep(0.01)
    raise AssertionError("the command ended without starting a worker for its second batch")


def runs(home):
    """Status of all runs of the instance below a home, oldest first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        with shared_instance() as instance:
            return [run.status for run in reversed(instance.get_runs())]


# ---------------------------------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required"),
        (["ingest"], "required"),
        (["dance"], "invalid choice"),
        (["ingest", "/", "--workers", "many"], "invalid int"),
        (["ingest", "/", "--workers", "-1"], "workers is -1"),
        (["ingest", "/", "--mode", "both"], "invalid choice"),
        (["ingest", "/nowhere", "--lake", "LAKE"], "/nowhere"),
        (["ingest", "FILE", "--lake", "LAKE"], "FILE"),
        (["ingest", "/", "--lake", ""], "lake is ''"),
        (["ingest", "/", "--lake", "~nobody of this name/lake"], "it must be a path"),
        (["sql", "select '\udcff'"], "the statement is not UTF-8"),
        (["status", "--lake", "LAKE"], "there is no lake in"),
        (["retry", "--lake", "LAKE"], "there is no lake in"),
        (["extract", "paths", "--lake", "LAKE"], "there is no lake in"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2_and_nothing_is_written(tmp_path, monkeypatch, capsys, arguments, says):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "FILE").write_text("not a folder")
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    names = {"LAKE": str(home / "lake"), "FILE": str(tmp_path / "FILE")}
    try:
        code = main([names.get(argument, argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert code == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert names.get(says, says) in said.err
    assert not list(home.iterdir())


@pytest.mark.parametrize(("name", "value"), [("PIXELS_WORKERS", "two"), ("PIXELS_WORKER_BYTES", "1"), ("PIXELS_LOG_LEVEL", "LOUD")])
def test_wrong_variables_are_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, name, value):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv(name, value)
    assert main(["ingest", str(tmp_path), "--lake", str(tmp_path / "lake")]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert value in said
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------------------------------ content


def test_bad_files_are_counted_and_the_exit_code_is_0(undisturbed):
    catalog = pl.read_delta(str(undisturbed / "lake" / "object_catalog"))
    assert set(catalog["status"]) > {"indexed", "archive", "empty", "not_dicom"}
    assert runs(undisturbed) == [dg.DagsterRunStatus.SUCCESS] * 4  # one for each batch, one for the hierarchy


def test_an_empty_folder_makes_an_empty_lake(tmp_path):
    (tmp_path / "in").mkdir()
    code, output = ingest_here(tmp_path / "in", tmp_path / "home")
    assert code == 0
    assert "0 files, 0 objects" in output
    assert all(pl.read_delta(str(tmp_path / "home" / "lake" / name)).is_empty() for name in TABLES)


def test_a_second_run_and_another_number_of_workers_change_nothing(folder, undisturbed, tmp_path):
    before = table_hashes(undisturbed / "lake"), table_versions(undisturbed / "lake")
    code, output = ingest_here(folder, undisturbed)
    assert code == 0
    assert "0 files, 0 objects" in output
    assert (table_hashes(undisturbed / "lake"), table_versions(undisturbed / "lake")) == before
    assert ingest_here(folder, tmp_path, "--workers", "1")[0] == 0
    assert table_hashes(tmp_path / "lake") == before[0]


# ---------------------------------------------------------------------------------------------------------------------------------- interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupted_run_says_so_leaves_no_process_and_the_next_run_goes_on(folder, undisturbed, tmp_path, number):
    with start(["ingest", folder, "--lake", tmp_path / "lake"], tmp_path) as process:
        wait_until(process, "(1 of 3)")
        workers = wait_for_workers(process, tmp_path / "lake")
        time.sleep(0.3)
        os.killpg(process.pid, number)
        messages = process.stderr.read()
    assert process.returncode == 130
    assert messages.splitlines()[-1] == "interrupted; what was finished is kept, run the same command again to go on"
    assert "Traceback" not in messages
    assert_gone(workers)
    assert dg.DagsterRunStatus.STARTED not in runs(tmp_path)
    assert runs(tmp_path)[0] == dg.DagsterRunStatus.SUCCESS
    assert ingest_here(folder, tmp_path)[0] == 0
    assert table_hash(tmp_path / "lake") == table_hash(undisturbed / "lake")


def test_who_asks_for_the_end_again_and_again_gets_the_same_line_and_no_stack_trace():
    script = "import os, signal; signal.signal(signal.SIGINT, signal.default_int_handler); from pixels_assets import cli; "
    script += "cli._options = lambda _: signal.raise_signal(signal.SIGINT); code = cli.main(); signal.raise_signal(signal.SIGINT); os._exit(code)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (130, 1)


def test_a_process_without_standard_streams_does_its_work(undisturbed):
    script = f"{sys.executable} -m pixels_assets.cli sql --lake {undisturbed / 'lake'} --format csv 'select 1' <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], env=environment(undisturbed), cwd=ROOT, check=False).returncode == 0


def test_a_killed_run_is_no_longer_called_started_once_the_next_has_begun(folder, tmp_path):
    with start(["ingest", folder, "--lake", tmp_path / "lake"], tmp_path) as process:
        wait_until(process, "(1 of 3)")
        workers = wait_for_workers(process, tmp_path / "lake")
        process.kill()
        process.stderr.read()
    assert_gone(workers)
    assert runs(tmp_path) == [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE]


# ------------------------------------------------------------------------------------------------------------------------------------- sources


def test_a_source_that_goes_away_in_mid_run_commits_nothing_of_its_batch_and_the_next_run_goes_on(tmp_path, undisturbed, capsys):
    folder = fill(tmp_path / "in")
    with start(["ingest", folder, "--lake", tmp_path / "lake"], tmp_path) as process:
        wait_until(process, "(1 of 3)")
        wait_for_workers(process, tmp_path / "lake")
        folder.rename(tmp_path / "away")
        messages = process.stderr.read()
    assert process.returncode == 1
    assert f"the source folder {folder} is not there any more; bring it back and run again" in messages
    batches = [set(pl.read_delta(str(tmp_path / "lake" / name))["batch"]) for name in ("dicom_metadata", "thumbnails", "object_catalog")]
    assert batches[0] == batches[1] == batches[2]
    assert set(runs(tmp_path)) == {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE}

    # Others do not have to wait for it.
    (tmp_path / "other").mkdir()
    assert ingest_here(tmp_path / "other", tmp_path)[0] == 0
    assert f"waits for its source folder {folder}, which is not there" in capsys.readouterr().err

    (tmp_path / "away").rename(folder)
    assert ingest_here(folder, tmp_path)[0] == 0
    catalog = pl.read_delta(str(tmp_path / "lake" / "object_catalog"))
    expected = pl.read_delta(str(undisturbed / "lake" / "object_catalog"))
    columns = ["relative_path", "status", "error_code", "content_hash", "meta", "thumbnail"]
    assert rows_hash(catalog.select(columns)) == rows_hash(expected.select(columns))


# ---------------------------------------------------------------------------------------------------------------------------------------- disk


@pytest.fixture
def public():
    """A folder that other users can enter."""
    folder = Path(tempfile.mkdtemp(prefix="pixels-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("closed", "says"),
    [
        ("lake", "cannot create the lake at LAKE: Permission denied; make the folder writable for this user or choose another with --lake"),
        ("home", "Dagster's storage below HOME cannot be used: Permission denied; free space or grant write access there"),
    ],
)
def test_a_folder_that_may_not_be_written_is_a_message_and_exit_code_1(folder, public, closed, says):
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody else")
    names = "home", "in", "lake", "warm"
    home, source, lake, warm = (public / name for name in names)
    for path in (home, source, lake, warm):
        path.mkdir()
        path.chmod(0o755 if path.name == closed else 0o777)
    # What is imported, and when an instance opens, comes first: somebody else may not be able to read this interpreter's folders.
    program = f"""
        import os, sys
        from pixels_assets import cli, runs
        with runs.shared_instance():
            pass
        os.environ["DAGSTER_HOME"] = {str(home)!r}
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        sys.exit(cli.main(["ingest", {str(source)!r}, "--lake", {str(lake / "deep")!r}]))
    """
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = environment(warm, PYTHONPATH=paths, HOME=str(warm))
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, cwd=public, env=variables, capture_output=True, text=True, check=False, timeout=300)
    expected = says.replace("LAKE", str(lake / "deep")).replace("HOME", str(home))
    assert done.stderr.splitlines() == [f"pixels: {expected}, then run again"]
    assert done.returncode == 1
    assert not list(lake.iterdir())


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("home_is_full_too", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_full_disk_is_a_message_and_the_run_goes_on_when_there_is_space_again(folder, undisturbed, small_disk, tmp_path, home_is_full_too):
    home = small_disk / "home" if home_is_full_too else tmp_path / "home"
    home.mkdir()
    lake = small_disk / "lake"
    with start(["ingest", folder, "--lake", lake], home) as process:
        wait_until(process, "(1 of 3)")
        with (small_disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:  # the run takes its share at the same time: whatever is left
                ballast.write(bytes(4096))
        messages = process.stderr.read()
    assert process.returncode == 1
    assert "Traceback" not in messages
    last = messages.splitlines()[-1]
    assert str(small_disk) in last
    assert "free space" in last
    tables = [pl.read_delta(str(lake / name)) for name in TABLES]
    assert not tables[0].is_empty()

    (small_disk / "ballast").unlink()
    assert ingest_here(folder, home, "--lake", lake)[0] == 0
    assert table_hash(lake) == table_hash(undisturbed / "lake")
    assert dg.DagsterRunStatus.STARTED not in runs(home)


# ----------------------------------------------------------------------------------------------------------------------------------- two at once


def test_two_runs_of_one_folder_at_once_do_everything_once(folder, undisturbed, tmp_path):
    arguments = ["ingest", folder, "--lake", tmp_path / "lake"]
    with start(arguments, tmp_path / "home 1") as first, start(arguments, tmp_path / "home 2") as second:
        said = [process.communicate(timeout=300)[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    assert table_hashes(tmp_path / "lake") == table_hashes(undisturbed / "lake")


@pytest.mark.long
def test_two_folders_at_once_into_one_lake_both_land(tmp_path):
    folder, other = (fill(tmp_path / name, slow=False) for name in ("in", "other"))
    two_batches = {"PIXELS_BATCH_FILES": "7", "PIXELS_WORKERS": "1"}
    with (
        start(["ingest", folder, "--lake", tmp_path / "lake"], tmp_path / "home", **two_batches) as first,
        start(["ingest", other, "--lake", tmp_path / "lake"], tmp_path / "home", **two_batches) as second,
    ):
        said = [process.communicate(timeout=300)[1] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], said
    catalog = pl.read_delta(str(tmp_path / "lake" / "object_catalog"))
    assert catalog["path"].is_unique().all()
    halves = [catalog.filter(pl.col("path").str.starts_with(f"{source}/")) for source in (folder, other)]
    assert len(halves[0]) == len(halves[1]) == len(catalog) / 2 > 10


# ------------------------------------------------------------------------------------------------------------------------------------- privacy


def secrets_of(lake):
    """Values that must not be told: names and identifiers of patients, and names of files and members, wherever one is long enough to be found."""
    catalog = pl.read_delta(str(lake / "object_catalog"))
    values = {part for name in ("PatientName", "PatientID") for value in catalog[name].drop_nulls() for part in re.split(r"[\^=]", value)}
    values |= {part for path in catalog["relative_path"] for part in re.split(r"[/!]+", path)}
    return {value.encode() for value in values if len(value) > (8 if value.isdigit() else 3)}  # shorter numbers occur by chance


def test_the_most_talkative_run_tells_of_each_object_and_nothing_of_any_patient(talkative):
    home, output, messages = talkative
    secrets = secrets_of(home / "lake")
    assert len(secrets) > 10
    told = {int(number) for number in re.findall(r"object (\d+): \w+", messages)}
    assert told == set(pl.read_delta(str(home / "lake" / "object_catalog"))["rowId"])
    assert len(re.findall(r"object \d+: .*, [0-9.]+ ms", messages)) == len(told)
    assert not [secret for secret in secrets if secret in (output + messages).encode()]


def test_the_run_storage_knows_nothing_of_any_patient(undisturbed):
    secrets = secrets_of(undisturbed / "lake")
    stored = [path.read_bytes() for path in (undisturbed / "var").rglob("*") if path.is_file()]
    assert stored
    assert not [secret for secret in secrets for data in stored if secret in data]
