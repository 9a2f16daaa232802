"""What is known, in pieces: however it is cut, it says what the manifests say."""

import random

import polars as pl
import pytest

from pixels_assets.errors import BatchError
from pixels_assets.intake.listing import listing_key
from pixels_assets.intake.objects import Change, SourceFile
from pixels_assets.lake import known
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.commit import create_tables
from pixels_assets.lake.known import KnownFiles

NAMES = ["/in/a", "/in/a-b", "/in/a/b", "/in/a/c.d", "/in/ab", "/in/b/\u00e9", "/in/b/x!~y", "/in/z", "/other/a", "/other/\U0001f600"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Files, row groups and pieces so small that there are many of each."""
    monkeypatch.setattr(known, "_SEGMENT_ROWS", 4)
    monkeypatch.setattr(known, "_GROUP_ROWS", 2)
    monkeypatch.setattr(known, "_PIECE_GROUPS", 1)


@pytest.fixture
def lake(tmp_path):
    create_tables(tmp_path)
    return tmp_path


def seal(lake, chance, present):
    """Seal a batch of random changes; `present` is what there is then: length and time by path."""
    batch = []
    for path in chance.sample(NAMES, chance.randint(1, 5)):
        if path in present and chance.random() < 0.4:
            batch.append(SourceFile(path, *present.pop(path), "/in", Change.REMOVED))
            continue
        size, moment = chance.randint(1, 3), chance.randint(1, 3)
        origins = [other for other in present if other not in {file.path for file in batch} and other != path]
        if path not in present and origins and chance.random() < 0.5:
            origin = chance.choice(origins)
            del present[origin]
            batch.append(SourceFile(path, size, moment, "/in", Change.MOVED, origin))
        else:
            batch.append(SourceFile(path, size, moment, "/in", Change.MODIFIED if path in present else Change.NEW))
        present[path] = size, moment
    manifests(lake).seal(batch)


def files(frame):
    return [(path, length, mtime_ns) for path, length, mtime_ns in frame.select("path", "length", "mtime_ns").iter_rows()]


def expected(present):
    return [(path, *present[path]) for path in sorted(present, key=listing_key)]


@pytest.mark.parametrize("seed", range(6))
def test_after_any_batches_every_way_of_asking_gives_what_is_there(lake, seed) -> None:
    chance, present = random.Random(seed), {}
    for number in range(14):
        seal(lake, chance, present)
        if number % 3 == 0:
            continue  # the next one has two batches to catch up with
        asked = KnownFiles(lake, manifests(lake))
        assert files(pl.concat(asked.pieces())) == expected(present)
        assert all(rows["key"].to_list() == [listing_key(path) for path in rows["path"]] for rows in asked.pieces())
        low, high = sorted(listing_key(chance.choice(NAMES)) for _ in range(2))
        assert files(asked.between(low, high)) == [file for file in expected(present) if low <= listing_key(file[0]) < high]
        some = set(chance.sample([*NAMES, "/in/unknown", ""], 5))
        assert files(asked.of(some)) == [file for file in expected(present) if file[0] in some]
        looks = {(chance.randint(1, 4), chance.randint(1, 4)) for _ in range(2)}
        assert files(asked.alike(looks)) == [file for file in expected(present) if file[1:] in looks]
    assert len(list((lake / "_discovery" / "known").glob("*.parquet"))) > 1


def test_times_last_seen_count_for_the_bytes_they_were_seen_with(lake) -> None:
    manifests(lake).seal([SourceFile("/in/a", 5, 10, "/in"), SourceFile("/in/b", 5, 10, "/in")])
    asked = KnownFiles(lake, manifests(lake), {"/in/a": (10, 99), "/in/b": (11, 99), "/in/c": (1, 2)})
    assert files(asked.between("", None)) == [("/in/a", 5, 99), ("/in/b", 5, 10)]
    assert asked.touched() == {"/in/a": (10, 99)}
    assert files(asked.alike({(5, 99)})) == [("/in/a", 5, 99)]


def sorted_files(lake):
    return sorted((lake / "_discovery" / "known").glob("*.parquet"))


def filled(lake):
    chance, present = random.Random(1), {}
    for _ in range(9):
        seal(lake, chance, present)
    assert files(pl.concat(KnownFiles(lake, manifests(lake)).pieces())) == expected(present)
    return present


@pytest.mark.parametrize("damage", [b"", b"PAR1 nonsense", None])
def test_damaged_or_lost_files_are_made_again(lake, damage) -> None:
    present = filled(lake)
    if damage is None:
        sorted_files(lake)[0].unlink()
    else:
        sorted_files(lake)[1].write_bytes(damage)
    assert files(pl.concat(KnownFiles(lake, manifests(lake)).pieces())) == expected(present)


def test_batches_that_are_not_there_any_more_are_not_known(lake) -> None:
    manifests(lake).seal([SourceFile("/in/a", 5, 10, "/in")])
    key = manifests(lake).seal([SourceFile("/in/b", 5, 10, "/in")])
    assert len(KnownFiles(lake, manifests(lake)).between("", None)) == 2
    (lake / "_manifests" / f"{key}.jsonl.gz").unlink()  # as when the lake was brought back from a copy
    assert files(KnownFiles(lake, manifests(lake)).between("", None)) == [("/in/a", 5, 10)]


def test_a_file_that_a_killed_process_left_beside_its_successor_does_no_harm(lake) -> None:
    first = manifests(lake).seal([SourceFile("/in/a", 5, 10, "/in")])
    KnownFiles(lake, manifests(lake))
    (left,) = sorted_files(lake)
    copy = left.read_bytes()
    manifests(lake).seal([SourceFile("/in/a", 5, 11, "/in", Change.MODIFIED)])
    KnownFiles(lake, manifests(lake))
    assert not left.exists()
    left.write_bytes(copy)
    assert left.name.startswith(first)
    assert files(KnownFiles(lake, manifests(lake)).between("", None)) == [("/in/a", 5, 11)]


def test_a_damaged_manifest_is_named_unless_what_it_says_is_known_already(lake) -> None:
    key = manifests(lake).seal([SourceFile("/in/a", 5, 10, "/in")])
    file = lake / "_manifests" / f"{key}.jsonl.gz"
    packed = file.read_bytes()
    file.write_bytes(packed[:-9])
    with pytest.raises(BatchError, match=key):
        KnownFiles(lake, manifests(lake))
    file.write_bytes(packed)
    KnownFiles(lake, manifests(lake))
    file.write_bytes(packed[:-9])
    assert files(KnownFiles(lake, manifests(lake)).between("", None)) == [("/in/a", 5, 10)]
