"""The process pool against objects that kill, hang and blow up: real signals, real limits, real bytes."""

import bz2
import contextlib
import errno
import gc
import io
import os
import resource
import signal
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import threading
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydicom.data import get_testdata_file

from pixels_assets.engines import processes
from pixels_assets.engines.local import LocalEngine, _blame, _End, _Task
from pixels_assets.engines.processes import RESTING, State, give_back, keep_workers, start_workers, take_worker
from pixels_assets.engines.shards import OUTPUTS, IndexSpec, Shard, plan_shards
from pixels_assets.errors import LakeError, WorkerError
from pixels_assets.intake.objects import Failure, SourceFile, Status, file_address, row_id
from pixels_assets.settings import MIB, Settings
from pixels_assets_tests.commands import assert_gone, children_of, long_dicom, templates_of, workers_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
MR = Path(str(get_testdata_file("MR_small.dcm"))).read_bytes()


SLOW = long_dicom(8_000)


def written(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [source(path) for path in sorted(folder.iterdir())]


def source(path):
    status = path.stat()
    return SourceFile(file_address(path), status.st_size, status.st_mtime_ns, file_address(path.parent))


def spec_of(tmp_path, **settings):
    lake = tmp_path / "lake"
    return IndexSpec(lake, "b", "attempt", frozenset(table.name for table in OUTPUTS), Settings(lake=lake, **settings))


def run(tmp_path, files, *, workers=1, around=None, shards=None, **settings):
    """Index files in one shard; give the rows of `dicom_metadata` by path, having held all three tables against each other."""
    spec = spec_of(tmp_path, **settings)
    with LocalEngine(workers) as engine, around(engine) if around else contextlib.nullcontext():
        outcome = engine.run(shards or [Shard(0, tuple(files))], spec)
    rows = {name: [row for part in parts for row in rows_of(spec.lake, part)] for name, parts in outcome.parts.items()}
    paths = [row["path"] for row in rows["dicom_metadata"]]
    assert len(paths) == len(set(paths)) == outcome.tally.objects
    assert sorted(row["path"] for row in rows["thumbnails"]) == sorted(paths)
    members = [row["path"] for row in rows["dicom_metadata"] if row["depth"]]
    assert sorted(row["path"] for row in rows.get("unzipped_archives", [])) == sorted(members)
    assert not list(spec.lake.rglob(".tmp-*"))
    assert not children()
    return {row["path"]: row for row in rows["dicom_metadata"]}


def rows_of(lake, part):
    return pq.read_table(lake / part.table / part.path, partitioning=None).to_pylist()


def statuses(rows, folder):
    """Status and error code by path below the folder, of everything that was not indexed well."""
    prefix = f"{folder}/"
    return {
        path.removeprefix(prefix): (row["status"], row["error_code"]) for path, row in rows.items() if row["status"] not in {"indexed", "archive"}
    }


_BEFORE = set()


@pytest.fixture(autouse=True, scope="module")
def before():
    """Workers that other files' fixtures keep for the whole session are none of these tests'."""
    _BEFORE.update(workers_of("self"))
    yield
    _BEFORE.clear()


def children():
    """Workers of this process."""
    return workers_of("self") - _BEFORE


def open_descriptors(pid):
    gc.collect()  # what earlier tests left behind does not count, nor does it go just now
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


class Attacker(threading.Thread):
    """Does something to a worker as soon as it has held one of some objects for a while, at most so many times for each."""

    def __init__(self, engine, addresses, attack, *, times=100, held=0.05):
        super().__init__()
        self.engine, self.rows, self.attack, self.times, self.held = engine, {row_id(address) for address in addresses}, attack, times, held
        self.done = threading.Event()
        self.attacks = Counter()

    def run(self):
        since, attacked = {}, set()
        while not self.done.wait(0.001):
            in_hand = self.engine.in_hand
            since = {pair: since.get(pair, time.monotonic()) for pair in in_hand.items()}
            for (pid, row), start in since.items():
                if row in self.rows and (pid, row) not in attacked and time.monotonic() - start >= self.held and self.attacks[row] < self.times:
                    attacked.add((pid, row))
                    self.attacks[row] += 1
                    with contextlib.suppress(ProcessLookupError):
                        self.attack(pid)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def killing(addresses, number=signal.SIGKILL, **options):
    return lambda engine: Attacker(engine, addresses, lambda pid: os.kill(pid, number), **options)


# ------------------------------------------------------------------------------------------------------------------------------------- deaths


def test_an_object_in_hand_when_its_worker_is_killed_once_gets_a_second_chance(tmp_path):
    files = written(tmp_path / "in", a=CT, b=SLOW, c=MR)
    rows = run(tmp_path, files, around=killing([files[1].path], times=1))
    assert len(rows) == 3
    assert statuses(rows, tmp_path / "in") == {}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGSEGV, "signal_segv"), (signal.SIGRTMIN + 5, "signal_39")])
def test_an_object_that_kills_every_worker_is_crashed_and_its_siblings_are_indexed(tmp_path, number, code):
    files = written(tmp_path / "in", a=CT, b=SLOW, c=MR, d=CT)
    rows = run(tmp_path, files, around=killing([files[1].path], number))
    assert len(rows) == 4
    assert statuses(rows, tmp_path / "in") == {"b": ("crashed", code)}


def test_several_poisonous_objects_in_one_shard_cost_themselves_only_and_two_workers_each(tmp_path):
    files = written(tmp_path / "in", a=SLOW, b=CT, c=SLOW, d=SLOW, e=MR)
    attackers = []

    def around(engine):
        attackers.append(killing([files[0].path, files[2].path, files[3].path])(engine))
        return attackers[0]

    rows = run(tmp_path, files, workers=2, around=around)
    assert statuses(rows, tmp_path / "in") == dict.fromkeys("acd", ("crashed", "signal_kill"))
    assert len(rows) == 5
    assert set(attackers[0].attacks.values()) == {2}


def tar_of(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_poisonous_member_deep_in_archives_costs_itself_only(tmp_path):
    inner = tar_of({"d/1": CT, "d/2": SLOW, "d/3": MR}, "w:gz")
    files = written(tmp_path / "in", a=MR, b=zip_of({"in.tar.gz": inner, "z": CT}), c=CT)
    rows = run(tmp_path, files, around=killing([f"{files[1].path}!/in.tar.gz!/d/2"], signal.SIGABRT))
    assert statuses(rows, tmp_path / "in") == {"b!/in.tar.gz!/d/2": ("crashed", "signal_abrt")}
    assert len(rows) == 8


@pytest.fixture(scope="module")
def thousands():
    return {f"d/{number}": f"text {number}".encode() for number in range(2100)}


def test_after_a_crash_behind_finished_segments_no_row_is_doubled_or_lost_and_extracted_files_are_right(tmp_path, thousands):
    data = tar_of(thousands | {"slow": SLOW, "last": CT}, "w:gz")
    files = written(tmp_path / "in", a=CT, b=data, c=MR)
    rows = run(tmp_path, files, around=killing([f"{files[1].path}!/slow"]), extract_to=tmp_path / "out")
    members = {path.partition("!/")[2]: row for path, row in rows.items() if row["depth"]}
    assert members.keys() == thousands.keys() | {"slow", "last"}
    assert members.pop("slow")["error_code"] == "signal_kill"
    assert len(rows) == len(thousands) + 5
    for name, row in members.items():
        assert Path(row["local_path"]).read_bytes() == (thousands | {"last": CT})[name]
    extracted = {path for path in (tmp_path / "out").rglob("*") if path.is_file() and path.name != "slow"}  # that one was written before it was read
    assert extracted == {Path(row["local_path"]) for row in members.values()}


def test_an_archive_in_an_archive_that_is_refused_late_keeps_the_members_that_were_finished(tmp_path, thousands):
    inner = io.BytesIO()
    noise = os.urandom(12 * MIB)
    with tarfile.open(fileobj=inner, mode="w") as archive:
        for name, data in thousands.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        info = tarfile.TarInfo("continued")  # is not read: passing over it is the archive's own doing
        info.type, info.size = b"M", len(noise)
        archive.addfile(info, io.BytesIO(noise))
        archive.addfile(tarfile.TarInfo("never reached"))
    files = written(tmp_path / "in", a=zip_of({"in.tar.bz2": bz2.compress(inner.getvalue(), 1), "after": CT}), b=MR)
    around = killing([f"{files[0].path}!/in.tar.bz2"], held=0.1)
    rows = run(tmp_path, files, around=around)
    assert statuses({path: row for path, row in rows.items() if row["file_type"] != "text"}, tmp_path / "in") == {
        "a!/in.tar.bz2": ("crashed", "signal_kill")
    }
    assert {f"{files[0].path}!/after", files[0].path, files[1].path} <= rows.keys()
    assert sum(row["depth"] == 2 for row in rows.values()) >= 2000


def end_of(row, code="signal_segv", **options):
    return _End(State(0, 0, row, 0), Failure(Status.CRASHED, code, "Ended."), **options)


def test_a_file_of_which_too_many_members_kill_is_refused_as_a_whole(tmp_path):
    (file,) = written(tmp_path / "in", a=CT)
    task = _Task(Shard(0, (file,)))
    ends = 0
    while row_id(file.path) not in task.refused:
        _blame(task, end_of(row_id(f"{file.path}!/{ends // 2}")))
        ends += 1
    assert ends == 100
    assert len(task.refused) == 50


def test_a_file_is_refused_as_a_whole_when_refusing_a_member_did_not_help_and_then_the_run_ends(tmp_path):
    (file,) = written(tmp_path / "in", a=CT)
    task = _Task(Shard(0, (file,)))
    _blame(task, end_of(7, chances=1))
    assert task.refused.keys() == {7}
    _blame(task, end_of(7, chances=1))
    assert task.refused.keys() == {7, row_id(file.path)}
    _blame(task, end_of(8))
    _blame(task, end_of(RESTING))
    with pytest.raises(WorkerError, match="signal_segv"):
        _blame(task, end_of(8))


def test_workers_that_die_at_rest_end_the_run_with_an_error(tmp_path, monkeypatch):
    born = tmp_path / "born"
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
            import os, signal
            def die():
                with open({str(born)!r}, "a") as file:
                    file.write("one\\n")
                os.kill(os.getpid(), signal.SIGKILL)
            os.register_at_fork(after_in_child=die)
        """)
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with LocalEngine(2) as engine, pytest.raises(WorkerError, match="no object in hand, the last with signal_kill"):
        engine.run([Shard(0, tuple(written(tmp_path / "in", a=CT)))], spec_of(tmp_path))
    assert born.read_text().count("one") == 3
    assert not children()


def test_a_worker_that_died_while_it_had_nothing_to_do_is_replaced(tmp_path):
    files = written(tmp_path / "in", a=CT, b=MR)
    with LocalEngine(1) as engine:
        engine.run([Shard(0, tuple(files))], spec_of(tmp_path))
        (worker,) = children()
        os.kill(worker, signal.SIGKILL)
        assert_gone([worker])
        outcome = engine.run([Shard(0, tuple(files))], spec_of(tmp_path))
    assert outcome.tally.statuses == {"indexed": 2}


def test_an_exception_that_an_object_causes_costs_that_object(tmp_path):
    first, second, third = written(tmp_path / "in", a=CT, b=CT, c=MR)
    broken = SourceFile(second.path, second.length, second.mtime_ns, second.source, failure=Failure("unreadable", "odd", "No status of ours."))
    rows = run(tmp_path, [first, broken, third])
    assert statuses(rows, tmp_path / "in") == {"b": ("crashed", "exception")}
    assert rows[second.path]["error_message"].startswith("reading it raised AttributeError at indexing.py:")


# ------------------------------------------------------------------------------------------------------------------------------ time and memory


def test_an_object_without_progress_for_too_long_is_a_timeout_and_its_siblings_are_indexed(tmp_path):
    files = written(tmp_path / "in", a=CT, b=zip_of({"1": MR, "2": long_dicom(150_000), "3": MR}), c=CT)
    rows = run(tmp_path, files, object_seconds=1.5)
    assert statuses(rows, tmp_path / "in") == {"b!/2": ("timeout", "time_limit")}
    assert len(rows) == 6


def test_a_large_file_may_take_longer_than_the_time_limit_while_it_is_being_read(tmp_path):
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(1280 * MIB)
    started = time.monotonic()
    rows = run(tmp_path, [source(large)], object_seconds=0.5)
    assert rows[file_address(large)]["error_code"] == "not_dicom"
    if time.monotonic() - started < 1.0:
        pytest.skip("this machine reads 1 GiB in less than the time limit")


def test_a_large_member_may_take_longer_than_the_time_limit_while_it_is_being_expanded_or_passed_over(tmp_path):
    sparse = (os.urandom(1000) + bytes(150_000)) * 2800  # 400 MiB that become 3
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz", compresslevel=1) as archive:
        for name, content in (("1", CT), ("large", sparse), ("2", MR)):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    del sparse
    files = written(tmp_path / "in", a=data.getvalue())
    rows = run(tmp_path / "1", files, object_seconds=0.5)
    assert statuses(rows, tmp_path / "in") == {"a!/large": ("not_dicom", "not_dicom")}
    rows = run(tmp_path / "2", files, object_seconds=0.5, around=killing([f"{files[0].path}!/large"], held=0, times=2))
    assert statuses(rows, tmp_path / "in") == {"a!/large": ("crashed", "signal_kill")}
    assert len(rows) == 4


def test_an_object_that_needs_more_memory_than_allowed_is_crashed_and_its_siblings_are_indexed(tmp_path):
    files = written(tmp_path / "in", a=CT, b=long_dicom(100_000), c=MR)
    rows = run(tmp_path, files, worker_bytes=128 * MIB)
    assert statuses(rows, tmp_path / "in") == {"b": ("crashed", "memory_limit")}


@pytest.mark.long
def test_an_object_that_grows_where_the_system_sets_no_limit_is_stopped_by_the_watch(tmp_path):
    files = written(tmp_path / "in", a=CT, b=long_dicom(120_000), c=MR)

    def lift(pid):
        most = resource.prlimit(pid, resource.RLIMIT_DATA)[1]
        resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))

    rows = run(tmp_path, files, worker_bytes=192 * MIB, around=lambda engine: Attacker(engine, [files[1].path], lift))
    assert statuses(rows, tmp_path / "in") == {"b": ("crashed", "memory_limit")}


# -------------------------------------------------------------------------------------------------------------------------- nothing is left behind


def test_neither_descriptors_nor_files_are_left_over_many_shards(tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (file,) = written(tmp_path / "in", a=zip_of({"1": CT, "2": MR}))
    before = open_descriptors("self")
    with LocalEngine(2) as engine:
        engine.run([Shard(0, (file,)), Shard(1, (file,))], spec_of(tmp_path))
        open_files = {pid: open_descriptors(pid) for pid in children()}
        outcome = engine.run([Shard(number, (file,)) for number in range(20)], spec_of(tmp_path))
        assert {pid: open_descriptors(pid) for pid in children()} == open_files
    assert outcome.tally.objects == 60
    assert open_descriptors("self") == before
    assert not list(temporary.iterdir())
    assert not children()


def test_neither_descriptors_nor_files_are_left_of_workers_that_died(tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    files = written(tmp_path / "in", **{f"f{number}": SLOW if number % 2 else CT for number in range(6)})
    before = open_descriptors("self")
    rows = run(tmp_path, files, workers=2, around=killing([file.path for file in files[1::2]]), shards=plan_shards(files, max_files=3))
    assert sum(row["error_code"] == "signal_kill" for row in rows.values()) == 3
    assert len(rows) == 6
    assert open_descriptors("self") == before
    assert not list(temporary.iterdir())


def test_a_run_that_cannot_go_on_leaves_no_parts_and_no_processes(tmp_path):
    files = written(tmp_path / "in", a=CT, b=zip_of({"1": MR}))
    spec = spec_of(tmp_path, extract_to=tmp_path / "in" / "a" / "no folder")
    with LocalEngine(2) as engine, pytest.raises(LakeError, match="cannot be extracted"):
        engine.run([Shard(number, (file,)) for number, file in enumerate(files)], spec)
    assert not children()
    assert not [path for path in spec.lake.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("number", "told"), [(signal.SIGKILL, ""), (signal.SIGTERM, ""), (signal.SIGINT, "KeyboardInterrupt")])
def test_workers_end_with_a_parent_that_was_killed_or_interrupted(tmp_path, number, told):
    written(tmp_path / "in", a=long_dicom(150_000))
    program = textwrap.dedent(f"""
        from pathlib import Path
        from pixels_assets.engines.shards import OUTPUTS, IndexSpec, Shard
        from pixels_assets.engines.local import LocalEngine
        from pixels_assets.intake.objects import SourceFile
        from pixels_assets.settings import Settings
        lake = Path({str(tmp_path / "lake")!r})
        spec = IndexSpec(lake, "b", "a", frozenset(table.name for table in OUTPUTS), Settings(lake=lake))
        LocalEngine(1).run([Shard(0, (SourceFile({str(tmp_path / "in" / "a")!r}, 1, 1, ""),))], spec)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as parent:
        workers = set()
        while not workers:
            assert parent.poll() is None
            workers = workers_of(parent.pid)
        workers |= templates_of(parent.pid)
        parent.send_signal(number)
        noise = parent.communicate()[1]
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.01)
    assert noise.strip().endswith(told)
    assert told or not noise
    assert parent.returncode == -number


def test_modules_in_the_working_folder_are_not_taken_for_our_own(tmp_path, monkeypatch):
    files = written(tmp_path / "in", **{"struct.py": b"raise SystemExit('from the data')", "a": CT})
    monkeypatch.chdir(tmp_path / "in")
    rows = run(tmp_path, files)
    assert statuses(rows, tmp_path / "in") == {"struct.py": ("not_dicom", "not_dicom")}


# ------------------------------------------------------------------------------------------------------------------------------------ equality


def test_rows_do_not_depend_on_workers_and_shards(tmp_path):
    files = written(tmp_path / "in", **{f"f{number:02}": data for number, data in enumerate([CT, MR, zip_of({"1": CT, "2": MR}), b"text"] * 5)})
    expected = run(tmp_path / "1", files)
    assert len(expected) == 30
    for name, workers, max_files in (("2", 2, 7), ("3", 2, 1)):
        assert run(tmp_path / name, files, workers=workers, shards=plan_shards(files, max_files=max_files)) == expected


def test_processes_wait_for_the_next_engine_while_they_are_kept_and_end_with_the_block(tmp_path):
    files = written(tmp_path / "in", a=CT, b=MR)
    used = []
    with keep_workers():
        for name, worker_bytes in (("first", 512 * MIB), ("second", 512 * MIB), ("third", 300 * MIB)):
            counts = []
            with LocalEngine(1) as engine:
                engine.run([Shard(0, tuple(files))], spec_of(tmp_path / name, worker_bytes=worker_bytes), counts.append)
                used.append([worker.process.pid for worker in engine._pool])
            assert max(counts) <= len(files)  # what an earlier engine's run had read does not count again
        assert used[0] == used[1] != used[2]  # a process that was limited to other memory is not used
        assert all(Path(f"/proc/{pid}").exists() for pid in used[0] + used[2])
    assert_gone(used[0] + used[2])


def test_workers_are_forked_from_one_process_which_ends_with_the_last_of_them(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_keeper", processes._Keeper())  # other files' fixtures may hold theirs
    files = written(tmp_path / "in", a=CT, b=MR)
    others = templates_of("self")
    with LocalEngine(2) as engine:
        engine.run([Shard(0, tuple(files)), Shard(1, tuple(files))], spec_of(tmp_path))
        (template,) = templates_of("self") - others
        assert children_of(template) == {worker.process.pid for worker in engine._pool}
        assert len(children_of(template)) == 2
    assert templates_of("self") == others
    assert_gone([template])


def test_when_the_process_that_workers_are_forked_from_is_killed_another_takes_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("OF_THIS_TEST", "1")
    files = written(tmp_path / "in", a=CT, b=SLOW, c=MR)
    rows = run(tmp_path, files, around=lambda engine: Attacker(engine, [files[1].path], kill_parent, times=1))
    assert len(rows) == 3
    assert statuses(rows, tmp_path / "in") == {}


def kill_parent(pid):
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    template = int(status["PPid"])
    assert template in templates_of("self")
    os.kill(template, signal.SIGKILL)


def test_workers_get_the_environment_of_the_moment_in_which_they_are_started(tmp_path, monkeypatch):
    files = written(tmp_path / "in", a=CT)
    with keep_workers():
        start_workers(1, 128 * MIB)
        (earlier,) = processes._keeper.waiting
        monkeypatch.setenv("OF_THIS_TEST", "1")
        with LocalEngine(1) as engine:
            engine.run([Shard(0, tuple(files))], spec_of(tmp_path))
            (later,) = engine._pool
            assert b"OF_THIS_TEST=1" in Path(f"/proc/{later.process.pid}/environ").read_bytes().split(b"\0")
        assert earlier.process.poll() is None
        assert earlier.process.template is not later.process.template
        # The one that began before would do for its memory, too.
        give_back([take_worker(128 * MIB)])
        assert earlier not in processes._keeper.waiting


def test_a_worker_that_the_system_refuses_is_an_error_that_says_what_to_do():
    ours, theirs = os.pipe()
    os.write(theirs, processes.SAID.pack(processes.REFUSED, errno.EAGAIN))
    os.close(theirs)
    refused = processes.ForkedProcess(processes._Template(dict(os.environ)), ours)
    with pytest.raises(WorkerError, match="cannot start a worker process: Resource temporarily unavailable; check memory, disk and process limits"):
        refused.poll()
    refused.close()
    refused.template.close()


def test_processes_that_were_started_early_are_the_ones_that_read(tmp_path, monkeypatch):
    start_workers(1, 512 * MIB)  # nobody would end it
    with keep_workers():
        start_workers(1, 512 * MIB)
        (early,) = processes._keeper.waiting
        monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))  # opening Dagster's instance does
        with LocalEngine(1) as engine:
            engine.run([Shard(0, tuple(written(tmp_path / "in", a=CT)))], spec_of(tmp_path / "lake", worker_bytes=512 * MIB))
            assert [worker.own for worker in engine._pool] == [early]
    assert early.process.poll() is not None


def test_a_process_that_died_while_it_was_kept_is_replaced(tmp_path):
    files = written(tmp_path / "in", a=CT)
    with keep_workers():
        with LocalEngine(1) as engine:
            engine.run([Shard(0, tuple(files))], spec_of(tmp_path / "first"))
            (worker,) = engine._pool
        worker.process.kill()
        worker.process.wait()
        with LocalEngine(1) as engine:
            outcome = engine.run([Shard(0, tuple(files))], spec_of(tmp_path / "second"))
    assert outcome.tally.statuses == {"indexed": 1}


def test_threads_that_take_processes_at_once_never_get_the_same_one():
    size, in_use, interval = 160 * MIB, set(), sys.getswitchinterval()

    def take_and_give_back() -> None:
        for _ in range(3000):
            worker = take_worker(size)
            assert id(worker) not in in_use
            in_use.add(id(worker))
            in_use.remove(id(worker))
            give_back([worker])

    sys.setswitchinterval(1e-6)
    try:
        with keep_workers(), ThreadPoolExecutor(4) as threads:
            start_workers(4, size)
            for done in [threads.submit(take_and_give_back) for _ in range(4)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)


def test_an_engine_that_failed_keeps_no_process(tmp_path):
    shards, pids = [Shard(0, tuple(written(tmp_path / "in", a=CT)))], []

    def failing() -> None:
        with LocalEngine(1) as engine:
            engine.run(shards, spec_of(tmp_path))
            pids.append(engine._pool[0].process.pid)
            raise ZeroDivisionError

    with keep_workers():
        with pytest.raises(ZeroDivisionError):
            failing()
        assert_gone(pids)
