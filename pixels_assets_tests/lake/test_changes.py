"""Discovery: what was added, changed, removed and moved in real folders, and nothing else, ends in sealed batches."""

import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import polars as pl
import pytest

import pixels_assets
from pixels_assets.errors import LakeError, SourceMissingError
from pixels_assets.intake.objects import Change, file_address, os_path
from pixels_assets.lake.changes import Position, discover, known_files, manifests
from pixels_assets.lake.commit import create_tables, table_lock
from pixels_assets.lake.query import pending_batches, scan

ROOT = Path(pixels_assets.__file__).parents[1]
NEW, MODIFIED, REMOVED, MOVED = Change


# --- exactly what changed


def test_three_added_one_changed_one_removed_one_moved_are_exactly_these(house) -> None:
    for name in ("keep", "sub/keep", "change", "remove", "move"):
        house.write(name)
    assert {change for change, _, _ in house.ingest()} == {"new"}
    for name in ("add-1", "sub/add-2", "z/add-3"):
        house.write(name)
    house.write("change", b"other bytes")
    (house.source / "remove").unlink()
    (house.source / "move").rename(house.source / "moved")
    expected = {
        ("new", "add-1", None),
        ("new", "sub/add-2", None),
        ("new", "z/add-3", None),
        ("modified", "change", None),
        ("removed", "remove", None),
        ("moved", "moved", "move"),
    }
    found = house.look()
    assert house.changes(found) == expected
    assert len(found.batches) == 1
    assert (found.listed, found.unchanged) == (7, 2)
    assert {change.value: count for change, count in found.changes.items()} == {"new": 3, "modified": 1, "removed": 1, "moved": 1}
    house.run_pending()
    assert house.catalog() == house.truth()
    history = scan(house.lake, "raw_files").filter(pl.col("batch") == found.batches[0]).select("change", "path", "previous_path").collect()
    assert {(change, house.name(path), was and house.name(was)) for change, path, was in history.iter_rows()} == expected


def test_a_second_look_finds_nothing(house) -> None:
    for number in range(20):
        house.write(f"{number % 3}/{number}")
    house.ingest()
    versions = [scan(house.lake, name).collect() for name in ("raw_files", "object_catalog")]
    again = house.look()
    assert (again.batches, again.listed, again.unchanged) == ([], 20, 20)
    assert all(before.equals(scan(house.lake, name).collect()) for before, name in zip(versions, ("raw_files", "object_catalog"), strict=True))


def test_sealed_batches_that_have_not_run_count_as_known(house) -> None:
    house.write("a")
    first = house.look()
    assert house.look().batches == []
    house.write("a", b"longer than it was before")
    (house.source / "b").write_bytes(b"")
    second = house.look()
    assert house.changes(second) == {("modified", "a", None), ("new", "b", None)}
    assert house.look().batches == []
    assert pending_batches(house.lake) == first.batches + second.batches
    house.run_pending()
    assert house.catalog() == house.truth()


def test_removed_files_stay_in_history_and_name_their_source(house) -> None:
    house.write("a")
    house.write("b")
    house.ingest()
    (house.source / "a").unlink()
    house.ingest()
    rows = scan(house.lake, "raw_files").filter(pl.col("path") == f"{house.source}/a").sort("batch").select("change", "source").collect().rows()
    assert rows == [("new", str(house.source)), ("removed", str(house.source))]
    assert house.catalog().keys() == {f"{house.source}/b"}


# --- touched, and what cannot be seen


def test_a_touched_file_is_no_change_and_is_not_read_again(house) -> None:
    path = house.write("a", b"x" * 1000)
    house.ingest()
    house.touch(path)
    assert house.look().batches == []
    # Other bytes of the same size and time can only stay unnoticed when nothing reads the file.
    times = path.stat().st_mtime_ns
    path.write_bytes(b"y" * 1000)
    os.utime(path, ns=(times, times))
    assert house.look().batches == []


def test_a_touch_counts_only_for_the_bytes_it_was_seen_with(house) -> None:
    path = house.write("a", b"x" * 1000)
    house.ingest()
    house.touch(path)
    touched = path.stat().st_mtime_ns
    house.look()
    house.write("a", b"y" * 1000)
    assert house.ingest() == {("modified", "a", None)}
    path.write_bytes(b"x" * 1000)  # the older version comes back, with its time: a restored backup
    os.utime(path, ns=(touched, touched))
    assert house.ingest() == {("modified", "a", None)}
    assert house.catalog() == house.truth()


def test_a_touched_file_that_moves_is_moved(house) -> None:
    path = house.write("a")
    house.ingest()
    house.touch(path)
    house.look()
    path.rename(house.source / "b")
    house.write("c")
    assert house.ingest() == {("moved", "b", "a"), ("new", "c", None)}


def test_other_bytes_of_the_same_size_and_time_go_unnoticed_as_documented(house) -> None:
    path = house.write("a", b"one")
    house.ingest()
    times = path.stat().st_mtime_ns
    path.write_bytes(b"two")
    os.utime(path, ns=(times, times))
    assert house.look().batches == []


def test_a_touched_file_whose_batch_has_not_run_is_taken_again(house) -> None:
    path = house.write("a")
    house.look()
    house.touch(path)
    assert house.changes(house.look()) == {("modified", "a", None)}
    house.run_pending()
    assert house.catalog() == house.truth()


def test_times_beyond_what_tables_hold_are_taken(house) -> None:
    for name, moment in (("future", 10**19), ("past", -(2**31) * 10**9), ("odd", -1)):
        path = house.write(name)
        os.utime(path, ns=(0, moment))
    assert len(house.ingest()) == 3
    assert house.look().batches == []
    rows = dict(scan(house.lake, "raw_files").select("path", pl.col("modificationTime").cast(pl.Int64)).collect().iter_rows())
    assert rows[f"{house.source}/odd"] == -1  # rounded down, as for members and in dicom_metadata


# --- moves


def test_a_folder_that_moves_takes_its_files_along(house) -> None:
    for number in range(5):
        house.write(f"one/deep/{number}")
    house.write("stay")
    house.ingest()
    (house.source / "one").rename(house.source / "two")
    assert house.ingest() == {("moved", f"two/deep/{number}", f"one/deep/{number}") for number in range(5)}
    assert house.catalog() == house.truth()


def test_moves_are_found_whichever_place_is_listed_first(house) -> None:
    house.write("a")
    house.write("z")
    house.write("stay")
    house.ingest()
    (house.source / "a").rename(house.source / "y")
    (house.source / "z").rename(house.source / "b")
    assert house.ingest() == {("moved", "y", "a"), ("moved", "b", "z")}


def test_a_file_that_moves_across_sources_is_moved_when_both_are_looked_at(house, tmp_path) -> None:
    other = tmp_path / "other"
    path = house.write("a")
    house.write("stay")
    house.write("b", folder=other)
    house.ingest(house.source, other)
    path.rename(other / "a")
    assert house.ingest(house.source, other) == {("moved", str(other / "a"), "a")}
    assert house.catalog() == house.truth(house.source, other)


def test_a_source_that_is_not_looked_at_keeps_its_files(house, tmp_path) -> None:
    other = tmp_path / "other"
    path = house.write("a")
    house.write("b", folder=other)
    house.ingest(house.source, other)
    shutil.copy2(path, other / "a")
    path.unlink()  # as when its disk is not mounted
    assert house.ingest(other) == {("new", str(other / "a"), None)}
    assert house.catalog().keys() == {str(path), str(other / "a"), str(other / "b")}


def test_two_files_that_swap_names_are_modified(house) -> None:
    one, two = house.write("one", b"1" * 10), house.write("two", b"2" * 10)
    house.ingest()
    one.rename(house.source / "swap")
    two.rename(one)
    (house.source / "swap").rename(two)
    assert house.ingest() == {("modified", "one", None), ("modified", "two", None)}
    assert house.catalog() == house.truth()


def test_a_file_that_moves_and_changes_is_new_and_removed(house) -> None:
    house.write("a", b"before")
    house.write("stay")
    house.ingest()
    (house.source / "a").unlink()
    house.write("b", b"after!")
    assert house.ingest() == {("new", "b", None), ("removed", "a", None)}


def test_a_copy_with_its_times_is_new(house) -> None:
    path = house.write("a")
    house.ingest()
    for name in ("0-copy", "b-copy"):
        shutil.copy2(path, house.source / name)
    assert house.ingest() == {("new", "0-copy", None), ("new", "b-copy", None)}
    assert house.catalog() == house.truth()


def test_of_two_copies_of_a_file_that_left_one_is_moved(house) -> None:
    path = house.write("a")
    house.write("stay")
    house.ingest()
    shutil.copy2(path, house.source / "b")
    shutil.copy2(path, house.source / "c")
    path.unlink()
    assert house.ingest() == {("moved", "b", "a"), ("new", "c", None)}


def test_many_files_alike_in_size_and_time_move_one_to_one(house) -> None:
    for number in range(300):
        path = house.write(f"one/{number:03}", f"{number:06}".encode())
        os.utime(path, ns=(10**18, 10**18))
    house.write("stay")
    house.ingest()
    (house.source / "one").rename(house.source / "two")
    assert house.ingest() == {("moved", f"two/{number:03}", f"one/{number:03}") for number in range(300)}
    assert house.catalog() == house.truth()


def test_a_name_that_is_taken_by_a_new_file_is_modified_and_its_old_bytes_are_new(house) -> None:
    path = house.write("a.dcm")
    house.ingest()
    path.rename(house.source / "b.dcm")
    house.write("a.dcm")
    assert house.ingest() == {("modified", "a.dcm", None), ("new", "b.dcm", None)}
    assert house.catalog() == house.truth()


def test_a_moved_file_whose_old_name_is_used_again_later_has_both_rows(house) -> None:
    path = house.write("a")
    house.write("stay")
    house.ingest()
    path.rename(house.source / "b")
    assert house.ingest() == {("moved", "b", "a")}
    house.write("a")
    assert house.ingest() == {("new", "a", None)}
    (house.source / "b").rename(house.source / "c")
    assert house.ingest() == {("moved", "c", "b")}
    assert house.catalog() == house.truth()


def test_files_moved_behind_a_link_are_moved_when_their_new_place_is_listed(house, tmp_path) -> None:
    other = tmp_path / "other"
    house.write("series/a")
    house.write("stay")
    other.mkdir()
    house.write("b", folder=other)
    house.ingest(house.source, other)
    (house.source / "series").rename(other / "series")
    (house.source / "series").symlink_to(other / "series")
    assert house.ingest(house.source, other) == {("moved", str(other / "series/a"), "series/a")}
    assert house.catalog() == house.truth(house.source, other)


def test_empty_files_are_never_moved(house) -> None:
    path = house.write("a", b"")
    house.write("stay")
    house.ingest()
    path.rename(house.source / "b")
    assert house.ingest() == {("new", "b", None), ("removed", "a", None)}
    assert house.catalog() == house.truth()


# --- files, folders, archives


def test_a_file_that_becomes_a_folder_and_a_file_again(house) -> None:
    path = house.write("x")
    house.ingest()
    path.unlink()
    house.write("x/y")
    assert house.ingest() == {("removed", "x", None), ("new", "x/y", None)}
    shutil.rmtree(path)
    house.write("x")
    assert house.ingest() == {("removed", "x/y", None), ("new", "x", None)}
    assert house.catalog() == house.truth()


def members_of(house):
    return set(scan(house.lake, "object_catalog").filter(pl.col("path") != pl.col("original_path")).select("path").collect()["path"])


def test_the_rows_of_members_follow_their_archive(house) -> None:
    archive = house.source / "a.zip"

    def pack(*names):
        with zipfile.ZipFile(archive, "w") as packed:
            for name in names:
                packed.writestr(name, f"member {name}")
        house.touch(archive)

    house.write("stay")
    pack("one", "two")
    house.ingest()
    assert members_of(house) == {f"{archive}!/one", f"{archive}!/two"}
    pack("two", "three", "four")
    assert house.ingest() == {("modified", "a.zip", None)}
    assert members_of(house) == {f"{archive}!/two", f"{archive}!/three", f"{archive}!/four"}
    moved = house.source / "sub" / "b.zip"
    moved.parent.mkdir()
    archive.rename(moved)
    assert house.ingest() == {("moved", "sub/b.zip", "a.zip")}
    assert members_of(house) == {f"{moved}!/two", f"{moved}!/three", f"{moved}!/four"}
    moved.unlink()
    assert house.ingest() == {("removed", "sub/b.zip", None)}
    assert members_of(house) == set()
    assert house.catalog() == house.truth()


def test_what_is_not_a_file_is_counted_and_not_taken(house) -> None:
    house.write("a")
    (house.source / "link").symlink_to("a")
    os.mkfifo(house.source / "pipe")
    found = house.look()
    assert house.changes(found) == {("new", "a", None)}
    assert found.skipped == {"symlink": 1, "fifo": 1}


@pytest.mark.parametrize("name", [b"new\nline", b"\xff\xfe", b"-rf", b"a!", b"back\\x41slash", "\u00e9\u2028".encode(), b"n" * 255])
def test_odd_names_are_known_again_and_move(house, name) -> None:
    house.write(name)
    house.write(b"folder!/" + name)
    house.write("stay")
    assert len(house.ingest()) == 3
    assert house.look().batches == []
    os.rename(os.fsencode(house.source) + b"/" + name, os.fsencode(house.source) + b"/moved")
    (house.source / "folder!").rename(house.source / "folder")
    changes = house.look().changes
    assert (changes[MOVED], changes[NEW], changes[REMOVED]) == (2, 0, 0)
    house.run_pending()
    assert house.catalog() == house.truth()


def test_a_source_whose_name_ends_with_an_exclamation_mark_keeps_its_own_files(house, tmp_path) -> None:
    odd = tmp_path / "in!"
    house.write("a", folder=odd)
    house.write("sub/b", folder=odd)
    assert len(house.ingest(odd)) == 2
    assert house.look(odd).batches == []
    (odd / "a").unlink()
    assert {change for change, _, _ in house.ingest(odd)} == {"removed"}
    relative = scan(house.lake, "object_catalog").select("relative_path").collect()["relative_path"].to_list()
    assert relative == ["sub/b"]


# --- what cannot be asked for stays known


AS_NOBODY = """
import json, os, sys
from pathlib import Path
from pixels_assets.lake.changes import discover, manifests
from pixels_assets.settings import Settings
os.setgid(65534); os.setuid(65534)
lake, source = map(Path, sys.argv[1:])
for line in sys.stdin:
    found = discover(lake, [source], Settings(lake=lake, quiet_seconds=0.0))
    files = [file for batch in found.batches for file in manifests(lake).load(batch)]
    print(json.dumps([(file.change, file.path.removeprefix(f"{source}/"), file.failure and file.failure.code) for file in files]), flush=True)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_files_below_a_folder_that_cannot_be_read_stay_known(new_house) -> None:
    base = Path(subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True).stdout.strip())
    base.chmod(0o755)
    try:
        house = new_house(base)
        for name in ("a", "closed/b", "closed/deep/c", "names/d", "z"):
            house.write(name)
        house.ingest()
        for folder, _, names in os.walk(base):
            for name in [".", *names]:
                os.chown(os.path.join(folder, name), 65534, 65534)

        command = [sys.executable, "-c", AS_NOBODY, house.lake, house.source]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nobody:

            def look():
                nobody.stdin.write("look\n")
                nobody.stdin.flush()
                return {tuple(entry) for entry in json.loads(nobody.stdout.readline())}

            assert look() == set()
            (house.source / "closed").chmod(0)
            (house.source / "names").chmod(0o444)  # names can be read, files cannot be asked for
            shutil.copy2(house.source / "closed/b", house.source / "y")
            os.chown(house.source / "y", 65534, 65534)
            assert look() == {("new", "closed/", "permission_denied"), ("new", "y", None)}
            assert look() == set()
            known = set(known_files(house.lake)["path"])
            assert {f"{house.source}/{name}" for name in ("closed/b", "closed/deep/c", "names/d")} <= known
            (house.source / "closed").chmod(0o755)
            (house.source / "names").chmod(0o755)
            assert look() == {("removed", "closed/", None)}
            assert look() == set()
        assert nobody.returncode == 0
        house.run_pending()
        assert house.catalog() == house.truth()
    finally:
        subprocess.run(["rm", "-rf", str(base)], check=True)


def test_waiting_files_are_neither_taken_nor_removed(house) -> None:
    path, other = house.write("a"), house.write("b")
    house.ingest()
    path.write_bytes(b"just being written")
    other.rename(house.source / "b.part")
    (house.source / "c.tmp").write_bytes(b"")
    (house.source / "d").write_bytes(b"young")
    found = house.look(quiet_seconds=3600)
    assert house.changes(found) == {("removed", "b", None)}
    assert found.waiting == 4
    (house.source / "b.part").rename(other)
    assert house.changes(house.look()) == {("modified", "a", None), ("new", "b", None), ("new", "d", None)}


# --- a source that looks emptied


MANY = [f"{number:03d}" for number in range(100)]


def test_a_large_source_that_is_suddenly_empty_is_refused(house) -> None:
    for name in MANY:
        house.write(name)
    house.ingest()
    for name in MANY:
        (house.source / name).unlink()
    with pytest.raises(SourceMissingError, match=r"is empty, though 100 files of it are known: mount its disk.*PIXELS_ACCEPT_EMPTY"):
        house.look()
    assert len(known_files(house.lake)) == 100
    assert house.changes(house.look(accept_empty=True)) == {("removed", name, None) for name in MANY}
    assert house.look().batches == []  # nothing is known of it any more, so nothing is odd


def test_one_entry_in_it_is_enough_to_believe_a_large_source(house) -> None:
    for name in MANY:
        house.write(name)
    house.ingest()
    for name in MANY:
        (house.source / name).unlink()
    (house.source / "sub").mkdir()
    assert house.ingest() == {("removed", name, None) for name in MANY}


def test_a_small_source_may_well_be_emptied(house) -> None:
    house.write("a")
    house.ingest()
    (house.source / "a").unlink()
    assert house.ingest() == {("removed", "a", None)}


def test_a_patient_look_takes_what_was_young_in_the_same_batch_and_leaves_what_goes_on_being_written(house) -> None:
    changed = house.write("changed")
    house.ingest()
    house.write("old")
    changed.write_bytes(b"other bytes, just now")
    (house.source / "young").write_bytes(b"just now")
    growing, gone = house.source / "growing", house.source / "gone"
    growing.write_bytes(b"")
    gone.write_bytes(b"")
    stop = threading.Event()

    def write() -> None:
        while not stop.wait(0.05):
            growing.write_bytes(growing.read_bytes() + b"more")
            gone.unlink(missing_ok=True)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = house.look(quiet_seconds=0.5, patient=True)
    finally:
        stop.set()
        writer.join()
    assert len(found.batches) == 1
    assert house.changes(found) == {("new", "old", None), ("new", "young", None), ("modified", "changed", None)}
    assert found.waiting == 1


def test_an_emptied_source_does_not_stop_the_others(house, tmp_path) -> None:
    other = tmp_path / "other"
    gone = house.write("a")
    for name in MANY[1:]:
        house.write(name)
    house.write("b", folder=other)
    house.ingest(house.source, other)
    gone.rename(other / "a")
    for name in MANY[1:]:
        (house.source / name).unlink()
    found = house.look(house.source, other)
    assert found.refused == {str(house.source): 100}
    assert house.changes(found) == {("new", str(other / "a"), None)}
    assert str(gone) in set(known_files(house.lake)["path"])


def test_overwriting_accepts_an_emptied_source(house) -> None:
    house.write("a")
    house.ingest()
    (house.source / "a").unlink()
    assert house.ingest(overwrite=True) == {("removed", "a", None)}


def test_a_missing_source_seals_nothing_for_any(house, tmp_path) -> None:
    house.write("a")
    with pytest.raises(SourceMissingError, match="mount it or correct the path"):
        house.look(house.source, tmp_path / "nowhere")
    assert manifests(house.lake).keys() == []


# --- several sources, one place


@pytest.mark.parametrize("order", [0, 1])
def test_a_source_within_another_or_given_twice_is_listed_once(house, tmp_path, order, monkeypatch) -> None:
    for name in ("a", "sub/b", "sub/deep/c"):
        house.write(name)
    link = tmp_path / "link"
    link.symlink_to(house.source)
    monkeypatch.chdir(tmp_path)
    sources = [house.source, house.source / "sub", f"{house.source}/", link, "source", "source/sub/../sub", f"{link}/sub"]
    found = house.look(*(reversed(sources) if order else sources))
    assert house.changes(found) == {("new", "a", None), ("new", "sub/b", None), ("new", "sub/deep/c", None)}
    assert house.look(house.source / "sub").batches == []
    assert house.look("source").batches == []
    house.run_pending()
    relative = set(scan(house.lake, "object_catalog").select("relative_path").collect()["relative_path"])
    assert relative == {"a", "sub/b", "sub/deep/c"}


def test_looking_at_a_part_of_a_source_leaves_the_rest_known(house) -> None:
    house.write("a")
    path = house.write("sub/b")
    house.write("sub/c")
    house.ingest()
    path.unlink()
    (house.source / "a").unlink()
    assert house.ingest(house.source / "sub") == {("removed", "sub/b", None)}
    assert house.ingest() == {("removed", "a", None)}


def test_a_folder_whose_name_begins_like_the_source_is_another(house, tmp_path) -> None:
    near = tmp_path / "source-2"
    house.write("a", folder=near)
    house.write("a")
    house.ingest(house.source, near)
    (near / "a").unlink()
    assert house.look(house.source).batches == []


def test_the_lake_in_the_source_is_not_ingested(tmp_path, new_house) -> None:
    house = new_house(tmp_path)
    house.lake = house.source / "deep" / "lake"
    create_tables(house.lake)
    house.write("a")
    house.write("deep/b")
    assert house.ingest() == {("new", "a", None), ("new", "deep/b", None)}
    assert house.look().batches == []


def test_a_source_within_an_excluded_folder_of_another_is_its_own(house) -> None:
    house.write("a")
    house.write("own/exports/b")
    house.write("own/c")
    settings = house.settings()
    exclude = [file_address(house.source / "own")]
    found = discover(house.lake, [house.source, house.source / "own" / "exports"], settings, exclude=exclude)
    assert house.changes(found) == {("new", "a", None), ("new", "own/exports/b", None)}
    assert discover(house.lake, [house.source, house.source / "own" / "exports"], settings, exclude=exclude).batches == []


def test_files_below_a_folder_that_is_excluded_later_leave(house) -> None:
    house.write("a")
    house.write("unzipped/b")
    house.ingest()
    found = discover(house.lake, [house.source], house.settings(), exclude=[file_address(house.source / "unzipped")])
    assert house.changes(found) == {("removed", "unzipped/b", None)}


# --- overwriting


def test_overwriting_takes_everything_again_and_forgets_the_rest(house, tmp_path) -> None:
    other = tmp_path / "other"
    house.write("a")
    house.write("b")
    house.write("c", folder=other)
    house.ingest(house.source, other)
    (house.source / "b").rename(house.source / "d")
    changes = house.ingest(overwrite=True)
    assert changes == {("new", "a", None), ("new", "d", None), ("removed", "b", None), ("removed", str(other / "c"), None)}
    assert house.catalog() == house.truth()
    assert house.look().batches == []


# --- in pieces


@pytest.mark.parametrize("batch_files", [1, pytest.param(2, marks=pytest.mark.long), 5])
def test_looking_in_pieces_gives_what_one_look_gives(tmp_path, new_house, batch_files) -> None:
    houses = []
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
        house = new_house(tmp_path / name)
        for number in range(12):
            house.write(f"{'abc'[number % 3]}/{number:02}")
        house.ingest()
        (house.source / "a/00").unlink()
        (house.source / "c/11").unlink()
        (house.source / "b").rename(house.source / "z")
        (house.source / "c/02").rename(house.source / "a/02")
        house.write("c/05", b"changed")
        house.write("0")
        houses.append(house)
    whole, pieces = houses
    found = pieces.ticks(batch_files=batch_files)
    assert len(found) >= 11 // batch_files
    assert pieces.changes(*found) == whole.changes(whole.look())
    assert sum(one.listed for one in found) == 11
    assert not list((pieces.lake / "_discovery").glob("unfinished-*"))
    assert pieces.look().batches == []
    pieces.run_pending()
    assert pieces.catalog() == pieces.truth()


def test_what_was_removed_is_told_in_pieces_too(house) -> None:
    for number in range(20):
        house.write(f"{number % 2}/{number:02}")
    house.ingest()
    shutil.rmtree(house.source / "1")
    found = house.ticks(batch_files=3)
    assert house.changes(*found) == {("removed", f"1/{number:02}", None) for number in range(1, 20, 2)}
    assert max(sum(one.changes.values()) for one in found) <= 3
    assert house.look().batches == []


def test_files_that_come_and_go_between_the_pieces_are_neither_lost_nor_doubled(house) -> None:
    for number in range(20):
        house.write(f"{number:02}")
    house.ingest()
    hidden = house.source.parent / "hidden"

    def between(number):
        if number == 1:  # gone before it is reached, back before the look ends: never removed
            (house.source / "10").rename(hidden)
        if number == 7:
            hidden.rename(house.source / "10")
            (house.source / "00").unlink()  # behind the position: the next look sees it
            house.write("01-new")
            house.write("19-new")
            (house.source / "18").rename(house.source / "02-moved")

    (house.source / "05").unlink()
    found = house.ticks(between=between)
    assert house.changes(*found) == {("removed", "05", None), ("new", "19-new", None), ("removed", "18", None)}
    assert house.changes(house.look()) == {("removed", "00", None), ("new", "01-new", None), ("new", "02-moved", None)}
    house.run_pending()
    assert house.catalog() == house.truth()


def test_a_file_brought_back_by_another_look_in_between_is_not_removed(house) -> None:
    for number in range(8):
        house.write(f"{number}")
    house.ingest()
    path = house.source / "1"
    data = path.read_bytes()
    path.unlink()

    def between(number):
        if number == 3:
            assert house.changes(house.look()) == {("removed", "1", None)}
            house.write("1", data)
            assert house.changes(house.look()) == {("new", "1", None)}

    assert house.changes(*house.ticks(between=between)) == set()
    house.run_pending()
    assert house.catalog() == house.truth()


def test_an_unreadable_folder_at_the_end_of_a_piece_keeps_its_files_in_the_next(house) -> None:
    # Its row is the last of its piece, and what is known below it belongs to the next.
    names = ["a", "closed/b", "closed/c", "d"]
    for name in names:
        house.write(name)
    house.ingest()
    moved = house.source.parent / "moved"
    first = house.look(batch_files=1, seconds=0.0)
    state_file = next((house.lake / "_discovery").glob("unfinished-*"))
    state = json.loads(gzip.decompress(state_file.read_bytes()))
    state["unlisted"].append(f"{house.source}/closed/")
    state_file.write_bytes(gzip.compress(json.dumps(state).encode()))
    (house.source / "closed").rename(moved)
    second = house.look(batch_files=1, position=first.position)
    assert second.batches == []


@pytest.mark.parametrize("harm", ["cursor", "state", "damaged", "sources", "index"])
def test_a_lost_position_costs_time_and_no_files(house, tmp_path, harm) -> None:
    other = tmp_path / "other"
    for number in range(6):
        house.write(f"{number}")
        house.write(f"{number}", folder=other)
    house.ingest(house.source, other)
    (house.source / "1").unlink()
    (other / "4").unlink()
    house.write("7")
    first = house.look(house.source, other, batch_files=3, seconds=0.0)
    assert first.position is not None
    position, sources = first.position, [house.source, other]
    state_file = next((house.lake / "_discovery").glob("unfinished-*"))
    if harm == "cursor":
        position = None
    elif harm == "state":
        state_file.unlink()
    elif harm == "damaged":
        state_file.write_bytes(state_file.read_bytes()[:-9])
    elif harm == "sources":
        sources = [other, house.source]
    else:
        position = Position(7, position.after, position.moment)
    second = house.look(*sources, position=position)
    changes = {("removed", "1", None), ("removed", str(other / "4"), None), ("new", "7", None)}
    assert house.changes(first, second) == changes
    assert house.look(*sources).batches == []


def test_a_source_that_is_unmounted_between_the_pieces_keeps_its_files(house, tmp_path) -> None:
    for name in ["gone", *MANY]:
        house.write(name)
    house.ingest()
    (house.source / "gone").unlink()
    first = house.look(batch_files=20, seconds=0.0)
    mounted = tmp_path / "mounted"
    house.source.rename(mounted)
    house.source.mkdir()
    with pytest.raises(SourceMissingError, match="mount its disk"):
        house.look(position=first.position)
    house.source.rmdir()
    mounted.rename(house.source)
    assert house.changes(house.look(position=first.position)) == {("removed", "gone", None)}


def test_damaged_notes_on_touched_files_only_cost_reading_them_again(house) -> None:
    path = house.write("a")
    house.ingest()
    house.touch(path)
    house.look()
    notes = house.lake / "_discovery" / "touched.json.gz"
    notes.write_bytes(notes.read_bytes()[:10])
    assert house.look().batches == []
    assert json.loads(gzip.decompress(notes.read_bytes())).keys() == {str(path)}


# --- many at once


LOOK = """
import sys
from pathlib import Path
from pixels_assets.lake.changes import discover
from pixels_assets.settings import Settings
lake, source = map(Path, sys.argv[1:])
print(discover(lake, [source], Settings(lake=lake, quiet_seconds=0.0, batch_files=7)).listed)
"""


def test_discoveries_at_the_same_time_seal_no_file_twice(house) -> None:
    for number in range(200):
        house.write(f"{number % 7}/{number}")
    running = [subprocess.Popen([sys.executable, "-c", LOOK, house.lake, house.source], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == [b"200"] * 3
    sealed = [file.path for key in manifests(house.lake).keys() for file in manifests(house.lake).load(key)]
    assert sorted(sealed) == sorted(house.truth())


def test_a_look_with_a_time_budget_does_not_wait_long_for_another(house) -> None:
    house.write("a")
    with table_lock(house.lake, "_discovery"), pytest.raises(LakeError, match="is locked since 1 s by another process"):
        house.look(seconds=0.1)


# --- whatever happens


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_after_any_changes_the_catalog_is_what_is_there(house, seed) -> None:
    chance = random.Random(seed)
    names = [f"{folder}{name}" for folder in ("", "p/", "p/q/", "r/") for name in ("a", "b", "c!", "d.dcm")]

    def paths():
        return sorted(path for path in house.source.rglob("*") if path.is_file() and path.name not in {"x.tar", "always"})

    def free():
        found = house.source / chance.choice(names)
        return found if not found.exists() and all(not parent.is_file() for parent in found.parents) else None

    def step():
        there, place = paths(), free()
        what = chance.choice(["add", "add", "modify", "same-size", "touch", "remove", "move", "copy", "swap", "folder", "archive"])
        if what == "add" and place:
            house.write(str(place.relative_to(house.source)))
        elif what == "archive":
            archive = house.source / "x.tar"
            with tarfile.open(archive, "w") as packed:
                for path in there[:3]:
                    packed.add(path, path.name)
            house.touch(archive)
        elif what == "folder":
            folders = [path for path in house.source.iterdir() if path.is_dir()]
            target = house.source / chance.choice("stuv")
            if folders and not target.exists():
                chance.choice(folders).rename(target)
        elif not there:
            return
        elif what in {"modify", "same-size"}:
            path = chance.choice(there)
            size = path.stat().st_size if what == "same-size" else chance.randint(0, 50)
            house.write(str(path.relative_to(house.source)), chance.randbytes(size))
        elif what == "touch":
            house.touch(chance.choice(there))
        elif what == "remove":
            chance.choice(there).unlink()
        elif what == "move" and place:
            place.parent.mkdir(parents=True, exist_ok=True)
            chance.choice(there).rename(place)
        elif what == "copy" and place:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(chance.choice(there), place)
        elif what == "swap" and len(there) > 1:
            one, two = chance.sample(there, 2)
            one.rename(house.source / "swap")
            two.rename(one)
            (house.source / "swap").rename(two)

    house.write("always")
    for _ in range(30 if os.environ.get("PIXELS_LONG") else 7):
        for _ in range(chance.randint(1, 6)):
            step()
        if chance.random() < 0.5:
            house.ticks(batch_files=chance.randint(1, 5), between=lambda _: step() if chance.random() < 0.3 else None)
            house.look()  # what changed behind the position
        else:
            house.look(batch_files=chance.randint(1, 20))
        assert house.look().batches == []
        if chance.random() < 0.2:
            continue  # several batches about the same files wait at once
        pending = pending_batches(house.lake)
        chance.shuffle(pending)
        for batch in pending:
            house.run(batch)
        if chance.random() < 0.5:
            house.run(chance.choice(manifests(house.lake).keys()))
        assert house.catalog() == house.truth()
        assert {os_path(path) for path in known_files(house.lake)["path"]} == {os_path(path) for path in house.truth()}
        inside = scan(house.lake, "object_catalog").filter(pl.col("path") != pl.col("original_path")).select("path").collect()["path"]
        if (house.source / "x.tar").exists():
            with tarfile.open(house.source / "x.tar") as packed:
                assert len(inside) == len(packed.getnames())
