"""The hierarchy equals a plain loop over the objects, whatever came, changed and went before."""

import os
import random
import shutil
import threading
from pathlib import Path

import polars as pl
import pytest

from pixels_assets.lake import keyed, pieces, rollups
from pixels_assets.lake.commit import create_tables, open_table
from pixels_assets.lake.query import scan
from pixels_assets.lake.rollups import are_behind, update_rollups
from pixels_assets.lake.schema import ROLLUPS
from pixels_assets_tests.lake.hierarchy import dicom, differences
from pixels_assets_tests.tablehash import rows_hash

CORPUS = os.environ.get("PIXELS_CORPUS")


def update(house, **options):
    return update_rollups(house.lake, run_id="test", **options)


def follow(house):
    """Ingest what changed, and let the rollups follow."""
    house.ingest()
    return update(house)


def contents(lake, *, but=()):
    return {name: rows_hash(scan(lake, name).collect().drop(but, strict=False)) for name in ROLLUPS}


def versions(house):
    return {name: open_table(house.lake, name).version() for name in ROLLUPS}


def check(house):
    assert differences(house.lake) == []


def some_object(chance: random.Random) -> bytes:
    """An object out of few patients, studies and series, so that they meet; some lack a UID, and attributes disagree."""
    patient, study, series = chance.randint(0, 2), chance.randint(0, 3), chance.randint(0, 2)
    return dicom(
        pixels=chance.random() < 0.5,
        SOPInstanceUID=None if chance.random() < 0.05 else f"1.2.{chance.randint(0, 30)}",
        StudyInstanceUID=None if chance.random() < 0.05 else f"1.3.{study}",
        SeriesInstanceUID=None if chance.random() < 0.05 else f"1.4.{study if chance.random() < 0.9 else 0}.{series}",
        PatientID=None if chance.random() < 0.1 else f"P{patient if chance.random() < 0.1 else study % 3}",
        IssuerOfPatientID="here" if chance.random() < 0.1 else None,
        PatientName=chance.choice(["A^B", "C^D", None]),
        PatientSex=chance.choice(["F", "M", None]),
        StudyDate=chance.choice(["20200101", "20210202", "garbage", None]),
        StudyDescription=chance.choice(["one", "two", None]),
        SeriesDescription=chance.choice(["x", "y"]),
        SeriesNumber=chance.choice([1, 2, None]),
        Modality=chance.choice(["CT", "MR", None]),
        SoftwareVersions=chance.choice([["1", "2"], ["1"], None]),
        InstanceNumber=chance.choice([1, 2, 3, 4, None]),
    )


def change_something(house, chance: random.Random) -> None:
    """Add, modify, copy, move and remove files."""
    files = sorted(house.source.rglob("*.dcm"))
    for _ in range(chance.randint(1, 6)):
        kind = chance.choice(["add", "add", "add", "modify", "copy", "move", "remove"]) if files else "add"
        fresh = house.source / str(chance.randint(0, 3)) / f"{chance.randint(0, 10**9)}.dcm"
        fresh.parent.mkdir(exist_ok=True)
        if kind == "add":
            files.append(house.write(fresh.relative_to(house.source).as_posix(), some_object(chance)))
            continue
        file = files.pop(chance.randrange(len(files)))
        if kind == "modify":
            files.append(house.write(file.relative_to(house.source).as_posix(), some_object(chance)))
        elif kind == "copy":
            shutil.copy2(file, fresh)
            files += [file, fresh]
        elif kind == "move":
            file.rename(fresh)
            files.append(fresh)
        else:
            file.unlink()


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_following_every_change_gives_what_a_plain_loop_and_a_fresh_start_give(house, seed, monkeypatch) -> None:
    monkeypatch.setattr(keyed, "PART_ROWS", 6)
    monkeypatch.setattr(keyed, "SMALL_FILES", 2)
    monkeypatch.setattr(pieces, "ROWS", 3)
    monkeypatch.setattr(rollups, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(pieces, "_BATCH_ROWS", 2)
    monkeypatch.setattr(keyed, "_SCAN_ROWS", 4)
    monkeypatch.setattr(keyed, "_KEY_ROWS", 5)
    monkeypatch.setattr(rollups, "_GROUPS_AT_ONCE", 2)
    chance = random.Random(seed)
    for step in range(4 if os.environ.get("PIXELS_LONG") else 3):
        for _ in range(3):
            change_something(house, chance)
        house.ingest(batch_files=chance.choice([4, 5000]), overwrite=step == 2)
        before = update(house).since
        assert (before is None) == (step == 0)
        check(house)
    followed = contents(house.lake)
    assert update(house, rebuild=True).since is None
    assert contents(house.lake) == followed


@pytest.mark.parametrize("batch_files", [5000, 6, 3])
def test_batches_do_not_matter(house, batch_files) -> None:
    chance = random.Random(7)
    for _ in range(15):
        house.write(f"{chance.randint(0, 10**6)}.dcm", some_object(chance))
    house.look(batch_files=batch_files)
    house.run_pending()
    update(house)
    check(house)


def test_an_empty_lake_has_empty_rollups(house) -> None:
    assert are_behind(house.lake)
    update(house)
    assert not are_behind(house.lake)
    assert all(scan(house.lake, name).collect().is_empty() for name in ROLLUPS)


def test_an_update_without_a_change_writes_nothing(house) -> None:
    house.write("a.dcm", dicom(SOPInstanceUID="1.1"))
    follow(house)
    before = versions(house)
    assert update(house).tables == {}
    assert versions(house) == before


def test_two_contents_of_one_uid_are_versions_and_copies_are_duplicates(house) -> None:
    house.write("a.dcm", dicom(SOPInstanceUID="1.1", StudyInstanceUID="1.2", SeriesInstanceUID="1.3", PatientID="x"))
    house.write("b.dcm", dicom(SOPInstanceUID="1.1", StudyInstanceUID="1.2", SeriesInstanceUID="1.4", PatientID="x"))
    shutil.copy2(house.source / "b.dcm", house.source / "c.dcm")
    follow(house)
    (row,) = scan(house.lake, "instances").collect().to_dicts()
    assert (row["path"], row["duplicates"], row["versions"]) == (f"{house.source}/b.dcm", [f"{house.source}/c.dcm"], 2)
    conflicts = scan(house.lake, "uid_conflicts").sort("path").collect()
    assert conflicts["is_current"].to_list() == [False, True, True]
    assert scan(house.lake, "series").collect()["SeriesInstanceUID"].to_list() == ["1.4"]
    # A later modification makes the other one current: the series of both change, although only one file did.
    house.write("a.dcm", dicom(SOPInstanceUID="1.1", StudyInstanceUID="1.2", SeriesInstanceUID="1.3", PatientID="y"))
    follow(house)
    assert scan(house.lake, "series").collect()["SeriesInstanceUID"].to_list() == ["1.3"]
    for name in ("b.dcm", "c.dcm"):
        (house.source / name).unlink()
    follow(house)
    assert scan(house.lake, "uid_conflicts").collect().is_empty()
    check(house)


def test_what_differs_between_versions_is_told(house) -> None:
    made = dicom(pixels=True, SOPInstanceUID="1.1", StudyInstanceUID="1.2", SeriesInstanceUID="1.3")
    for name, data in {
        "d.dcm": dicom(pixels=True, SOPInstanceUID="1.1", StudyInstanceUID="1.2", SeriesInstanceUID="1.3", PatientID="x"),
        "c.dcm": b"preamble" + made[8:],
        "b.dcm": made[:-1] + b"!",
        "a.dcm": made,
    }.items():
        house.write(name, data)
    follow(house)
    conflicts = scan(house.lake, "uid_conflicts").sort("path").collect()
    assert conflicts["differs"].to_list() == [None, "pixels", "encoding", "metadata"]
    check(house)


def test_only_files_that_hold_a_changed_key_are_written_again(house) -> None:
    for patient in range(3):
        for number in range(2):
            house.write(
                f"{patient}/{number}.dcm",
                dicom(SOPInstanceUID=f"1.{patient}.{number}", StudyInstanceUID=f"2.{patient}", SeriesInstanceUID="3.1", PatientID=f"P{patient}"),
            )
        follow(house)
    assert {name: len(open_table(house.lake, name).file_uris()) for name in ("instances", "series", "studies", "patients")} == {
        "instances": 3,
        "series": 3,
        "studies": 3,
        "patients": 3,
    }
    house.write("1/0.dcm", dicom(SOPInstanceUID="1.1.0", StudyInstanceUID="2.1", SeriesInstanceUID="3.1", PatientID="P1", PatientName="New^One"))
    done = follow(house)
    assert {
        name: (item.files_added, item.files_removed, item.rows_written, item.rows) for name, item in done.tables.items() if name != "findings"
    } == {
        "instances": (1, 1, 1, 6),
        "uid_conflicts": (0, 0, 0, 0),
        "series": (1, 1, 1, 3),
        "studies": (1, 1, 1, 3),
        "patients": (1, 1, 1, 3),
    }
    check(house)


def test_rows_that_were_only_copied_concern_nothing(house) -> None:
    for number in range(4):
        house.write(f"{number}.dcm", dicom(SOPInstanceUID=f"1.{number}", StudyInstanceUID=f"2.{number}", SeriesInstanceUID="3.1"))
    follow(house)
    (house.source / "1.dcm").unlink()
    assert follow(house).changed == 1
    check(house)


def test_objects_without_uids_are_counted_where_they_can_be(house) -> None:
    house.write("a.dcm", dicom(SOPInstanceUID="1.1", PatientID="p"))
    house.write("b.dcm", dicom(SOPInstanceUID="1.2", PatientID="p", StudyInstanceUID="2.1"))
    house.write("c.dcm", dicom(SOPInstanceUID="1.3", StudyInstanceUID="2.1", SeriesInstanceUID="3.1"))
    house.write("d.dcm", dicom(PatientID="p", StudyInstanceUID="2.1", SeriesInstanceUID="3.1"))
    follow(house)
    assert {name: scan(house.lake, name).select(pl.len()).collect().item() for name in ROLLUPS if name != "findings"} == {
        "patients": 2,
        "studies": 1,
        "series": 1,
        "instances": 3,
        "uid_conflicts": 0,
    }
    check(house)


def test_a_series_shows_its_middle_image_and_a_study_its_largest_series(house) -> None:
    for number in (3, 1, 2):
        data = dicom(pixels=True, SOPInstanceUID=f"1.{number}", StudyInstanceUID="2.1", SeriesInstanceUID="3.2", InstanceNumber=number)
        house.write(f"{number}.dcm", data)
    house.write("other.dcm", dicom(pixels=True, SOPInstanceUID="1.9", StudyInstanceUID="2.1", SeriesInstanceUID="3.1", InstanceNumber=1))
    follow(house)
    (image,) = scan(house.lake, "object_catalog").filter(pl.col("InstanceNumber") == 2).collect()["thumbnail"]
    for name in ("studies", "patients"):
        (row,) = scan(house.lake, name).collect().to_dicts()
        assert (row["representative_path"], row["thumbnail"], row["mime"]) == (f"{house.source}/2.dcm", image, "image/png")


@pytest.mark.parametrize("last", ["instances", *(pytest.param(name, marks=pytest.mark.long) for name in ("uid_conflicts", "series")), "studies"])
def test_an_update_that_ended_between_two_tables_is_made_up_for(house, last, monkeypatch) -> None:
    chance = random.Random(3)
    for _ in range(3):
        change_something(house, chance)
    follow(house)
    for _ in range(3):
        change_something(house, chance)
    house.ingest()
    replace = rollups.replace_rows

    def killed(lake, table, *others, **more):
        done = replace(lake, table, *others, **more)
        if table.name == last:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(rollups, "replace_rows", killed)
    with pytest.raises(KeyboardInterrupt):
        update(house)
    monkeypatch.undo()
    assert are_behind(house.lake)
    for _ in range(2):
        change_something(house, chance)
    follow(house)
    assert not are_behind(house.lake)
    check(house)


@pytest.mark.parametrize("stopped", ["versions_of", "agreed", "disagreements"])
def test_an_update_that_fails_midway_leaves_nothing_aside(house, stopped, monkeypatch) -> None:
    chance = random.Random(3)
    for _ in range(3):
        house.write(f"{chance.randint(0, 10**6)}.dcm", some_object(chance))
    house.ingest()
    monkeypatch.setattr(pieces, "ROWS", 1)
    seen = []

    def fail(*_):
        seen.extend(path.name for path in (house.lake / "_aside").iterdir())
        raise KeyboardInterrupt

    monkeypatch.setattr(rollups, stopped, fail)
    with pytest.raises(KeyboardInterrupt):
        update(house)
    assert seen
    assert not (house.lake / "_aside").exists()


def test_what_a_killed_update_put_aside_goes_with_the_next_one(house) -> None:
    house.write("a.dcm", dicom(SOPInstanceUID="1.1"))
    house.ingest()
    left = house.lake / "_aside" / "instances" / "0.arrow"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"not a file that could be read")
    update(house)
    assert not (house.lake / "_aside").exists()
    check(house)


def test_updates_at_once_take_turns(house) -> None:
    chance = random.Random(5)
    for _ in range(5):
        change_something(house, chance)
    house.ingest()
    running = [threading.Thread(target=update, args=(house,)) for _ in range(3)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    check(house)
    assert len(set(versions(house).values())) == 1


def test_a_lost_file_of_the_old_version_means_a_fresh_start(house) -> None:
    file = house.write("a.dcm", dicom(SOPInstanceUID="1.1", StudyInstanceUID="2.1"))
    follow(house)
    (stored,) = (Path(path) for path in open_table(house.lake, "object_catalog").file_uris())
    house.write("a.dcm", dicom(SOPInstanceUID="1.2", StudyInstanceUID="2.2"))
    house.ingest()
    os.unlink(stored)
    assert update(house).since is None
    check(house)
    assert file.exists()


def test_another_catalog_in_its_place_means_a_fresh_start(house) -> None:
    house.write("a.dcm", dicom(SOPInstanceUID="1.1", StudyInstanceUID="2.1"))
    follow(house)
    shutil.rmtree(house.lake / "object_catalog")
    create_tables(house.lake)
    assert are_behind(house.lake)
    assert update(house).since is None
    assert scan(house.lake, "instances").collect().is_empty()


@pytest.mark.corpus
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not CORPUS, reason="PIXELS_CORPUS is not set")
def test_the_corpus_in_one_three_and_ten_batches_gives_what_a_plain_loop_gives(new_house, tmp_path) -> None:
    corpus, found = Path(CORPUS or ""), []
    for batches in (1, 3, 10):
        (tmp_path / str(batches)).mkdir()
        house = new_house(tmp_path / str(batches))
        house.look(corpus, batch_files=-(-sum(path.is_file() for path in corpus.rglob("*")) // batches))
        house.run_pending()
        update(house)
        check(house)
        found.append(contents(house.lake, but=["batch"]))
    assert found[0] == found[1] == found[2]
