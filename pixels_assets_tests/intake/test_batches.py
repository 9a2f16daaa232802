"""Batches: what is sealed is what is loaded, whatever the names, the clock and the disk do."""

import gzip
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pixels_assets
from pixels_assets.errors import BatchError, LakeError
from pixels_assets.intake.batches import KEY, Manifests, cut, next_key
from pixels_assets.intake.objects import Change, Failure, SourceFile, Status, file_address

ROOT = Path(pixels_assets.__file__).parents[1]
NOW = datetime(2026, 11, 21, 10, 15, tzinfo=UTC)
ODD_NAMES = [
    b"/in/new\nline",
    b"/in/carriage\rreturn",
    b"/in/\x0b\x0c\x1c\x1d\x1e\x85",
    "/in/line\u2028paragraph\u2029".encode(),
    b"/in/\"quotes\" and 'ticks'",
    b"/in/" + b"n" * 255,
    b"/in/latin-\xe9\xff",
    b"/in/-rf",
    b"/in/back\\slash \\xff",
    b"/in/a!/b!~2",
    "/in/\U0001f9e0 \u00e9 e\u0301".encode(),
    b"/in/{}[],:null",
    b"/in/ ",
]


def files(count, *, length=1, change=Change.NEW):
    return [SourceFile(f"/in/{number:06}", length, number, "/in", change) for number in range(count)]


# --- seal and load


def test_the_oddest_names_come_back_as_they_were_sealed(tmp_path) -> None:
    sealed = [SourceFile(file_address(name), 2**62, -number, "/in") for number, name in enumerate(ODD_NAMES)]
    manifests = Manifests(tmp_path / "manifests")
    key = manifests.seal(sealed)
    assert manifests.load(key) == sealed


def test_changes_previous_paths_and_failures_come_back(tmp_path) -> None:
    sealed = [
        SourceFile("/in/a", 1, 2, "/in", Change.MOVED, "/in/b\n"),
        SourceFile("/in/c", 0, 2, "", Change.REMOVED),
        SourceFile("/in/d/", 0, 2, "/in", failure=Failure(Status.UNREADABLE, "permission_denied", "The storage does not permit it.")),
    ]
    manifests = Manifests(tmp_path)
    loaded = manifests.load(manifests.seal(sealed))
    assert loaded == sealed
    assert [type(file.change) for file in loaded] == [Change] * 3
    assert loaded[2].failure is not None
    assert isinstance(loaded[2].failure.status, Status)


@given(
    st.lists(
        st.tuples(
            st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name), st.integers(0, 2**63 - 1), st.integers(-(2**63), 2**63 - 1)
        )
    )
)
def test_any_name_size_and_time_comes_back(tmp_path_factory, rows) -> None:
    manifests = Manifests(tmp_path_factory.mktemp("manifests"))
    sealed = [SourceFile(file_address(b"/in/" + name), length, mtime, "/in") for name, length, mtime in rows]
    assert manifests.load(manifests.seal(iter(sealed))) == sealed


def test_the_same_files_give_the_same_digest_and_others_do_not(tmp_path) -> None:
    one, two = Manifests(tmp_path / "one"), Manifests(tmp_path / "two")
    first, same, other = one.seal(files(3), now=NOW), two.seal(files(3), now=NOW), one.seal(files(4), now=NOW)
    assert one.digest(first) == two.digest(same) != one.digest(other)
    assert len(one.digest(first)) == 16


# --- keys


def test_keys_sort_in_the_order_of_sealing_even_when_the_clock_steps_back(tmp_path) -> None:
    manifests = Manifests(tmp_path)
    moments = [NOW, NOW, NOW - timedelta(hours=1), NOW + timedelta(seconds=1), NOW - timedelta(days=400), NOW + timedelta(seconds=1)]
    keys = [manifests.seal(files(1), now=moment) for moment in moments]
    assert keys == sorted(set(keys)) == manifests.keys()
    assert keys == [
        "20261121T101500-0001",
        "20261121T101500-0002",
        "20261121T101500-0003",
        "20261121T101501-0001",
        "20261121T101501-0002",
        "20261121T101501-0003",
    ]
    assert all(KEY.fullmatch(key) for key in keys)


def test_after_9999_seals_in_a_second_keys_go_on_in_the_next_one() -> None:
    assert next_key(["20261121T101500-9998"], NOW) == "20261121T101500-9999"
    assert next_key(["20261121T101500-9999"], NOW) == "20261121T101501-0001"
    assert next_key(["20261231T235959-9999"], NOW) == "20270101T000000-0001"


def test_keys_are_in_utc_wherever_the_clock_is() -> None:
    assert next_key([], NOW.astimezone(timezone(timedelta(hours=-7)))) == "20261121T101500-0001"


def test_foreign_and_unfinished_files_in_the_folder_are_no_batches(tmp_path) -> None:
    manifests = Manifests(tmp_path)
    key = manifests.seal(files(1), now=NOW)
    for name in ("zzz.jsonl.gz", ".20991121T101500-0001.tmp", "20991121T101500-0001.jsonl.gz.bak", "README"):
        (tmp_path / name).write_bytes(b"")
    assert manifests.keys() == [key]
    assert manifests.seal(files(1), now=NOW) == "20261121T101500-0002"


def test_there_are_no_batches_before_the_first_is_sealed(tmp_path) -> None:
    assert Manifests(tmp_path / "none").keys() == []


# --- cutting


@pytest.mark.parametrize(("count", "lengths"), [(0, []), (1, [1]), (10, [10]), (11, [10, 1]), (30, [10, 10, 10])])
def test_a_batch_ends_at_its_number_of_files(count, lengths) -> None:
    assert [len(batch) for batch in cut(files(count), max_files=10, max_bytes=10**9)] == lengths


def test_a_batch_ends_before_it_gets_too_heavy_and_a_larger_file_is_alone() -> None:
    sizes = [40, 60, 1, 99, 2, 500, 1, 100, 100]
    found = [SourceFile(f"/in/{number}", size, 0, "/in") for number, size in enumerate(sizes)]
    assert [[file.length for file in batch] for batch in cut(found, max_files=100, max_bytes=100)] == [
        [40, 60],
        [1, 99],
        [2],
        [500],
        [1],
        [100],
        [100],
    ]


def test_removed_files_weigh_nothing() -> None:
    assert [len(batch) for batch in cut(files(50, length=10**9, change=Change.REMOVED), max_files=100, max_bytes=1)] == [50]


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 7), st.integers(1, 250))
def test_cutting_keeps_every_file_in_order_and_within_the_limits(sizes, max_files, max_bytes) -> None:
    found = [SourceFile(f"/in/{number}", size, 0, "/in") for number, size in enumerate(sizes)]
    batches = list(cut(iter(found), max_files=max_files, max_bytes=max_bytes))
    assert [file for batch in batches for file in batch] == found
    assert all(0 < len(batch) <= max_files for batch in batches)
    assert all(len(batch) == 1 or sum(file.length for file in batch) <= max_bytes for batch in batches)


def test_a_batch_is_handed_over_before_the_next_file_is_asked_for() -> None:
    asked = []

    def stream():
        for file in files(100):
            asked.append(file)
            yield file

    next(cut(stream(), max_files=10, max_bytes=10**9))
    assert len(asked) == 11


# --- what goes wrong


@pytest.mark.parametrize("key", ["", "x", "20261121T101500-00001", "../20261121T101500-0001", "20261121T101500-0001\n", "20261121T101500-0009"])
def test_an_unknown_key_is_refused_with_the_next_step(tmp_path, key) -> None:
    with pytest.raises(BatchError, match="`pixels status` lists the batches") as caught:
        Manifests(tmp_path).load(key)
    assert repr(key) in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "not_json", "other_columns", "not_gzip"])
def test_a_damaged_manifest_is_named(tmp_path, damage) -> None:
    manifests = Manifests(tmp_path)
    key = manifests.seal(files(100))
    path = tmp_path / f"{key}.jsonl.gz"
    whole = path.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "not_json": gzip.compress(b"{\n"),
        "other_columns": gzip.compress(b'{"path": "/in/a"}\n'),
        "not_gzip": whole[10:],
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(BatchError, match="is damaged") as caught:
        manifests.load(key)
    assert str(path) in str(caught.value)


def test_a_folder_that_is_a_file_cannot_be_sealed_in(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LakeError, match="Not a directory"):
        Manifests(tmp_path / "file" / "manifests").seal(files(1))


def test_a_full_disk_leaves_no_batch_and_no_rubbish(tmp_path) -> None:
    script = """
import resource, signal, sys
from pathlib import Path
from pixels_assets.errors import LakeError
from pixels_assets.intake.batches import Manifests
from pixels_assets.intake.objects import SourceFile
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
manifests = Manifests(Path(sys.argv[1]))
import hashlib
try:
    manifests.seal(SourceFile("/in/" + hashlib.sha256(b"%d" % n).hexdigest(), n, n, "/in") for n in range(5000))
except LakeError as error:
    assert manifests.keys() == [], manifests.keys()
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False)
    assert done.returncode == 7
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(("mode", "message"), [(0o555, "grant write access"), (0o000, "grant read access")])
def test_a_folder_of_somebody_else_is_named(tmp_path_factory, mode, message) -> None:
    tmp_path = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    tmp_path.chmod(0o755)
    folder = tmp_path / "manifests"
    folder.mkdir()
    folder.chmod(mode)
    script = """
import os, sys
from pathlib import Path
from pixels_assets.errors import LakeError
from pixels_assets.intake.batches import Manifests
from pixels_assets.intake.objects import SourceFile
os.setgid(65534); os.setuid(65534)
try:
    Manifests(Path(sys.argv[1])).seal([SourceFile("/in/a", 1, 1, "/in")])
except LakeError as error:
    print(error)
"""
    try:
        done = subprocess.run([sys.executable, "-c", script, str(folder)], cwd=ROOT, capture_output=True, text=True, check=True)
    finally:
        folder.chmod(0o755)
        folder.rmdir()
        tmp_path.rmdir()
    assert str(folder) in done.stdout
    assert message in done.stdout
