"""The catalog holds the current row of each path, in whatever order batches run and run again."""

import io
import itertools
import os
import random
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import polars as pl
import pydicom.data
import pytest
from PIL import Image

import pixels_assets
from pixels_assets.errors import BatchError
from pixels_assets.intake.objects import SourceFile, row_id
from pixels_assets.intake.paths import extension, path_tags, relative_path
from pixels_assets.lake.catalog import ATTEMPTS, retired_paths, superseded_paths
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.query import pending_batches, scan

ROOT = Path(pixels_assets.__file__).parents[1]


def image(name):
    return Path(str(pydicom.data.get_testdata_file(name))).read_bytes()


def rows_of(house, table="object_catalog"):
    return scan(house.lake, table).collect()


def current(house):
    """(path, batch, content_hash) of every row, sorted; no path twice."""
    rows = rows_of(house).select("path", "batch", "content_hash", "rowId")
    assert rows["path"].is_unique().all()
    assert rows["rowId"].is_unique().all()
    return sorted(rows.select("path", "batch", "content_hash").rows())


@pytest.fixture(scope="module")
def story(new_house, tmp_path_factory):
    """Four batches about the same files: new, modified and moved, an old name used again, removed."""
    house = new_house(tmp_path_factory.mktemp("story"))
    first = [house.write(name) for name in "abcde"]
    archive = house.source / "z.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("one", b"1")
        packed.writestr("two", b"2")
    batches = [house.look().batches]
    house.run(batches[0][0])
    house.write("a", b"a, longer than before")
    first[1].rename(house.source / "b-moved")
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("three", b"3")
    house.touch(archive)
    batches.append(house.look().batches)
    house.run(batches[1][0])
    house.write("b")  # the name that was left
    (house.source / "b-moved").rename(house.source / "b-moved-again")
    batches.append(house.look().batches)
    house.run(batches[2][0])
    first[2].unlink()
    (house.source / "e").unlink()
    batches.append(house.look().batches)
    house.run(batches[3][0])
    keys = [key for some in batches for key in some]
    assert len(keys) == 4
    return house, keys, current(house)


def test_the_story_ends_with_what_is_there(story) -> None:
    house, keys, expected = story
    assert house.catalog() == house.truth()
    assert {Path(path).name: keys.index(batch) for path, batch, _ in expected} == {
        "a": 1,
        "b": 2,
        "b-moved-again": 2,
        "d": 0,
        "z.zip": 1,
        "one": 1,
        "two": 1,
        "three": 1,
    }


def test_running_any_batch_again_changes_no_current_row(story) -> None:
    house, keys, expected = story
    for batch in [*keys, *reversed(keys), keys[1], keys[1], keys[0]]:
        house.run(batch)
        assert current(house) == expected


@pytest.fixture(scope="module")
def indexed(story, new_house, tmp_path_factory):
    """A lake of the same manifests in which each batch was read, and nothing else was done."""
    house, keys, _ = story
    other = new_house(tmp_path_factory.mktemp("indexed"))
    shutil.copytree(house.lake / "_manifests", other.lake / "_manifests")
    for key in keys:
        other.step(key, "index")
    return other.lake


@pytest.fixture
def fresh(story, indexed, house):
    """A copy of that lake; the batches; and what its catalog must come to."""
    _, keys, expected = story
    shutil.copytree(indexed, house.lake, dirs_exist_ok=True)
    return house, keys, expected


def catalogue(house, key):
    for step in ("raw", "catalog", "quarantine"):
        house.step(key, step)


ORDERS = list(itertools.permutations(range(4)))[::2]


@pytest.mark.parametrize("order", [order if not number % 3 else pytest.param(order, marks=pytest.mark.long) for number, order in enumerate(ORDERS)])
def test_batches_in_any_order_end_the_same(fresh, order) -> None:
    house, keys, expected = fresh
    for number in order:
        catalogue(house, keys[number])
        current(house)
    assert current(house) == expected
    for number in order[:2]:
        catalogue(house, keys[number])
        assert current(house) == expected


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3, 4))])
def test_steps_of_all_batches_in_any_order_end_the_same(fresh, seed) -> None:
    house, keys, expected = fresh
    chance = random.Random(seed)
    waiting = {key: ["raw", "index", "catalog", "quarantine"] + ["index", "catalog"] * chance.randint(0, 1) for key in keys}
    while waiting:
        key = chance.choice(sorted(waiting))
        house.step(key, waiting[key].pop(0))
        current(house)
        if not waiting[key]:
            del waiting[key]
    assert current(house) == expected


def test_batches_about_the_same_files_that_run_at_once_end_the_same(fresh) -> None:
    house, keys, expected = fresh
    for _ in range(5):
        running = [threading.Thread(target=lambda key=key: [house.step(key, "raw"), house.step(key, "catalog")]) for key in keys]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        assert current(house) == expected


# --- what a row holds


def test_a_row_says_where_its_object_is(house) -> None:
    house.write("p/q/name.with.dots.DCM", image("CT_small.dcm"))
    with zipfile.ZipFile(house.source / "p" / "pack.zip", "w") as packed:
        packed.writestr("inner/x.dcm", image("MR_small.dcm"))
    house.ingest()
    rows = {Path(row["path"]).name: row for row in rows_of(house).to_dicts()}
    loose, member = rows["name.with.dots.DCM"], rows["x.dcm"]
    assert loose["path"] == f"{house.source}/p/q/name.with.dots.DCM" == loose["original_path"] == loose["local_path"]
    assert loose["relative_path"] == "p/q/name.with.dots.DCM"
    assert (loose["extension"], loose["file_type"], loose["status"], loose["is_anon"]) == ("DCM", "dicom", "indexed", True)
    assert loose["path_tags"] == ["q", "name", "with", "dots", "DCM"]
    assert loose["rowId"] == row_id(loose["path"])
    archive = f"{house.source}/p/pack.zip"
    assert (member["path"], member["original_path"], member["local_path"]) == (f"{archive}!/inner/x.dcm", archive, archive)
    assert (member["relative_path"], member["extension"], member["Modality"]) == ("p/pack.zip!/inner/x.dcm", "dcm", "MR")
    assert member["path_tags"] == ["pack", "zip", "inner", "x", "dcm"]
    assert rows["pack.zip"]["status"] == "archive"


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/in/a.dcm", "dcm"),
        ("/in/a.DCM", "DCM"),
        ("/in/a.tar.gz", "gz"),
        ("/in/1.2.840.55", "55"),
        ("/in/a", ""),
        ("/in.d/a", ""),
        ("/in/a.", ""),
        ("/in/a.x-y", ""),
        ("/in/.hidden", "hidden"),
        ("/in/a.zip!/b.dcm", "dcm"),
        ("/in/a.zip!/b", ""),
        ("/in/a.zip!/b.dcm!~2", "dcm"),
        ("/in/a.dcm\n", ""),
        ("/in/a.d_1", "d_1"),
    ],
)
def test_the_extension_is_what_follows_the_last_dot_of_the_name(path, wanted) -> None:
    assert extension(path) == wanted


@pytest.mark.parametrize(
    ("relative", "wanted"),
    [
        ("benigns/patient0007/0007.LEFT_MLO.dcm", ["patient0007", "0007", "LEFT", "MLO", "dcm"]),
        ("a.dcm", ["a", "dcm"]),
        ("d__e", ["d", "_e"]),
        ("x-y z/a@b:c.dcm", ["x-y z", "a", "b", "c", "dcm"]),
        ("p.zip!/q/r.dcm", ["p", "zip", "q", "r", "dcm"]),
        ("", [""]),
        ("d/" + "x" * 1_000_000, ["d", "x" * 1_000_000]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_tags_are_the_last_five_words_of_the_path(relative, wanted) -> None:
    assert path_tags(relative) == wanted


@pytest.mark.parametrize(
    ("path", "source", "wanted"),
    [
        ("/in/a/b", "/in", "a/b"),
        ("/in/a", "/", "in/a"),
        ("/in/a.zip!/b", "/in", "a.zip!/b"),
        ("/in\\x21/a", "/in!", "a"),
        ("/in-2/a", "/in", "/in-2/a"),
        ("/in/", "/in", ""),
    ],
)
def test_the_relative_path_begins_below_the_source(path, source, wanted) -> None:
    assert relative_path(path, source) == wanted


# --- thumbnails


def sizes(house):
    rows = rows_of(house).filter(pl.col("thumbnail").is_not_null()).select("path", "thumbnail")
    return {Path(path).name: max(Image.open(io.BytesIO(data)).size) for path, data in rows.iter_rows()}


def test_thumbnails_that_were_made_again_alone_are_joined_by_path(house) -> None:
    for name in ("CT_small.dcm", "MR_small.dcm", "693_J2KI.dcm"):
        house.write(name, image(name))
    house.write("text", b"no picture")
    with zipfile.ZipFile(house.source / "z.zip", "w") as packed:
        for number in range(60):
            packed.writestr(f"{(number * 37) % 60:02}.dcm", image("CT_small.dcm"))
    house.ingest()
    (batch,) = manifests(house.lake).keys()
    before = rows_of(house).sort("path").drop("thumbnail")
    assert len(sizes(house)) == 63
    assert sizes(house)["CT_small.dcm"] == 128
    house.step(batch, "thumbnails", thumbnail_size=32)
    assert sizes(house)["CT_small.dcm"] == 128
    house.step(batch, "catalog")
    assert set(sizes(house).values()) == {32}
    assert len(sizes(house)) == 63
    assert rows_of(house).sort("path").drop("thumbnail").equals(before)


def test_a_catalog_without_thumbnails_is_one_without_pictures(house) -> None:
    house.write("CT_small.dcm", image("CT_small.dcm"))
    (batch,) = house.look().batches
    for step in ("raw", "dicom_metadata", "catalog"):
        house.step(batch, step)
    assert rows_of(house).select("status", "thumbnail").rows() == [("indexed", None)]


BIG = """
import resource, sys
from pathlib import Path
from pixels_assets.engines.run import commit_catalog
from pixels_assets.lake.changes import manifests
lake = Path(sys.argv[1])
(batch,) = manifests(lake).keys()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
commit_catalog(lake, batch, manifests(lake).load(batch), attempt="again", run_id="again")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_an_archive_of_many_members_is_catalogued_in_bounded_memory(house) -> None:
    count = 20_000 if os.environ.get("PIXELS_LONG") else 6_000
    # Members in an order that is not that of their names: each part of the metadata spans all names.
    with zipfile.ZipFile(house.source / "z.zip", "w") as packed:
        for number in range(count):
            packed.writestr(f"{(number * 7919) % count:05}.txt", b"text %d" % number)
    house.ingest()
    (batch,) = manifests(house.lake).keys()
    give_pictures(house, batch, 8 * 1024 * 20_000 // count)  # 160 MB in all
    done = subprocess.run([sys.executable, "-c", BIG, house.lake], cwd=ROOT, capture_output=True, text=True, check=True)
    rows = rows_of(house)
    assert len(rows) == count + 1
    pictures = rows.select("path", "thumbnail").filter(pl.col("thumbnail").is_not_null())
    assert all(data.startswith(path.encode()) for path, data in pictures.iter_rows())
    assert len(pictures) == count
    assert int(done.stdout) < 150, f"{done.stdout} MiB"


def give_pictures(house, batch, size):
    """Put in the place of each thumbnail of a batch bytes that begin with its path."""
    from pixels_assets.lake.commit import commit
    from pixels_assets.lake.parts import PartWriter
    from pixels_assets.lake.schema import THUMBNAILS

    rows = rows_of(house, "thumbnails").select("path", "original_path").rows()
    with PartWriter(house.lake, THUMBNAILS, batch, "pictures") as writer:
        for path, original in rows:
            if "!/" in path:
                data = path.encode() + random.Random(path).randbytes(size)
                writer.append({"path": path, "original_path": original, "thumbnail": data, "status": "ok"})
        parts = writer.finish()
    commit(house.lake, THUMBNAILS, batch, parts, run_id="pictures")


# --- quarantine


def test_attempts_are_counted_and_no_more_are_due_after_the_third(house) -> None:
    house.write("gone", image("CT_small.dcm"))
    house.write("bad.zip", b"PK\x03\x04 and no more")
    house.write("good", image("MR_small.dcm"))
    (batch,) = house.look().batches
    (house.source / "gone").unlink()

    def quarantined():
        rows = rows_of(house, "quarantine").select("path", "status", "attempts", "retry_due")
        return {Path(path).name: (status, attempts, due) for path, status, attempts, due in rows.iter_rows()}

    for attempt in range(1, ATTEMPTS + 2):
        house.run(batch)
        found = quarantined()
        assert found.keys() == {"gone", "bad.zip"}
        assert found["gone"] == ("unreadable", attempt, attempt < ATTEMPTS)
        assert found["bad.zip"] == ("corrupt", attempt, False)  # bytes that are bad stay bad
    house.write("gone", image("CT_small.dcm"))
    house.run(batch)
    assert quarantined().keys() == {"bad.zip"}


def test_what_a_newer_batch_heals_leaves_the_quarantine_of_the_older(house) -> None:
    house.write("a", b"PK\x03\x04 and no more")
    house.ingest()
    assert len(rows_of(house, "quarantine")) == 1
    house.write("a", image("CT_small.dcm"))
    house.ingest()
    assert rows_of(house, "quarantine").is_empty()
    house.run(manifests(house.lake).keys()[0])
    assert rows_of(house, "quarantine").is_empty()


# --- out of order


@pytest.mark.parametrize(("done", "step"), [([], "catalog"), (["raw"], "catalog"), (["index"], "catalog"), (["raw", "index"], "quarantine")])
def test_a_table_is_not_made_before_those_it_is_made_from(house, done, step) -> None:
    house.write("a")
    (batch,) = house.look().batches
    for name in done:
        house.step(batch, name)
    with pytest.raises(BatchError, match="materialize that asset for it first"):
        house.step(batch, step)
    assert pending_batches(house.lake) == [batch]
    assert rows_of(house).is_empty()


def test_a_batch_without_anything_to_read_lands(house) -> None:
    house.write("a")
    house.write("b")
    house.ingest()
    (house.source / "a").unlink()
    house.ingest()
    assert pending_batches(house.lake) == []
    assert [Path(path).name for path, _, _ in current(house)] == ["b"]


def test_only_what_older_batches_hold_and_newer_ones_do_not_name_is_retired(story) -> None:
    house, keys, _ = story
    names = [{Path(path).name for path in retired_paths(house.lake, key, manifests(house.lake).load(key))} for key in keys]
    assert names == [set(), {"a", "z.zip"}, {"b", "b-moved"}, {"c", "e"}]
    old = [{Path(path).name for path in superseded_paths(house.lake, key, manifests(house.lake).load(key))} for key in keys]
    assert old == [{"a", "b", "c", "e", "z.zip"}, {"b-moved"}, set(), set()]
    assert superseded_paths(house.lake, keys[0], [SourceFile("/elsewhere", 0, 0, "/")]) == frozenset()
