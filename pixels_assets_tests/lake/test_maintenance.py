"""Maintenance: fewer files, shorter logs, the same rows, and nobody who is disturbed."""

import os
import time
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pixels_assets.errors import UsageError
from pixels_assets.lake import maintenance
from pixels_assets.lake.commit import commit, committed, create_tables, is_committed, live_parts, open_table, swap
from pixels_assets.lake.maintenance import Maintained, maintain
from pixels_assets.lake.parts import Part, PartWriter
from pixels_assets.lake.schema import QUARANTINE, TABLES


@pytest.fixture
def lake(tmp_path):
    create_tables(tmp_path)
    return tmp_path


def land(lake, batch, names, **options):
    with PartWriter(lake, QUARANTINE, batch, "shard", rows=2) as writer:
        for name in names:
            writer.append({"path": f"{name}!/x", "original_path": name, "status": "corrupt"})
        parts = writer.finish()
    commit(lake, QUARANTINE, batch, parts, run_id="run", **options)
    return parts


def rows(lake, version=None):
    return sorted(pl.scan_delta(open_table(lake, "quarantine") if version is None else str(lake / "quarantine"), version=version).collect().rows())


def of(found: list[Maintained], table: str = "quarantine") -> Maintained:
    return next(one for one in found if one.table == table)


def on_disk(lake):
    return {path.relative_to(lake / "quarantine").as_posix() for path in (lake / "quarantine").glob("batch=*/*")}


def test_small_files_of_a_batch_become_one_with_the_same_rows_and_statistics(lake) -> None:
    land(lake, "b1", [f"/in/{number:02d}" for number in range(9)])
    land(lake, "b2", ["/in/x", "/in/y", "/in/z"])
    before = rows(lake)
    done = of(maintain(lake))
    assert (done.files, done.compacted, done.into, done.vacuumed) == (7, 7, 2, 0)
    assert rows(lake) == before
    actions = pa.table(open_table(lake, "quarantine").get_add_actions(flatten=True)).to_pylist()
    assert sorted((action["partition.batch"], action["num_records"], action["min.path"], action["max.path"]) for action in actions) == [
        ("b1", 9, "/in/00!/x", "/in/08!/x"),
        ("b2", 3, "/in/x!/x", "/in/z!/x"),
    ]
    assert committed(lake, QUARANTINE, ["b1", "b2", "b3"]) == {"b1", "b2"}
    assert of(maintain(lake)).compacted == 0


def test_rows_of_a_compacted_batch_are_replaced_and_retired_as_before(lake) -> None:
    land(lake, "b1", [f"/in/{number}" for number in range(6)])
    maintain(lake)
    land(lake, "b1", ["/in/3"], only=frozenset({"/in/3"}))
    land(lake, "b2", ["/in/0"], retire=frozenset({"/in/0"}))
    found = pl.scan_delta(str(lake / "quarantine")).select("batch", "original_path").collect().rows()
    assert sorted(found) == [*(("b1", f"/in/{number}") for number in range(1, 6)), ("b2", "/in/0")]


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(lake) -> None:
    land(lake, "b1", [f"/in/{number}" for number in range(5)])
    before = {path: path.stat().st_mtime_ns for path in lake.rglob("*") if path.is_file() and "_locks" not in path.parts}
    said = of(maintain(lake, dry_run=True))
    assert {path: path.stat().st_mtime_ns for path in lake.rglob("*") if path.is_file() and "_locks" not in path.parts} == before
    done = of(maintain(lake))
    assert (said.compacted, said.into, said.checkpoint) == (done.compacted, done.into, done.checkpoint) == (3, 1, True)


def test_a_reader_of_an_earlier_version_reads_on(lake) -> None:
    land(lake, "b1", [f"/in/{number}" for number in range(5)])
    opened, before = open_table(lake, "quarantine"), rows(lake)
    maintain(lake)
    assert sorted(pl.scan_delta(opened).collect().rows()) == before
    assert rows(lake, version=opened.version()) == before


def test_files_that_no_version_names_stay_until_they_are_old(lake) -> None:
    land(lake, "b1", [f"/in/{number}" for number in range(5)])
    folder = lake / "quarantine" / "batch=b1"
    fresh, old, unfinished = folder / "fresh-1.parquet", folder / "old-1.parquet", folder / ".tmp-old-2.parquet"
    for path in (fresh, old, unfinished):
        path.write_bytes(b"a killed writer left this")
    for path in (old, unfinished):
        os.utime(path, (time.time() - 8 * 86_400,) * 2)
    assert of(maintain(lake, dry_run=True)).vacuumed == 2
    assert of(maintain(lake)).vacuumed == 2
    assert fresh.exists()
    assert not old.exists()
    assert not unfinished.exists()


def test_what_left_the_table_is_removed_after_the_retention_time(lake) -> None:
    land(lake, "b1", [f"/in/{number}" for number in range(5)])
    before = rows(lake)
    maintain(lake)
    long_ago = time.time() - 8 * 86_400
    for path in (lake / "quarantine").glob("batch=*/*"):
        os.utime(path, (long_ago, long_ago))
    assert of(maintain(lake)).vacuumed == 0  # they are old, but left only now
    for path in (lake / "quarantine" / "_delta_log").iterdir():
        os.utime(path, (long_ago, long_ago))
    assert of(maintain(lake)).vacuumed == 3
    assert rows(lake) == before
    assert on_disk(lake) == {part.path for part in live_parts(lake, QUARANTINE)}
    assert is_committed(lake, QUARANTINE, "b1")


def test_checkpoints_that_nothing_needs_go_and_old_versions_can_still_be_read(lake) -> None:
    for number in range(130):
        commit(lake, QUARANTINE, f"b{number}", [], run_id="run")
    log = lake / "quarantine" / "_delta_log"
    for path in log.iterdir():
        os.utime(path, (time.time() - 7_200,) * 2)
    before = sorted(path.name for path in log.glob("*.checkpoint.parquet"))
    done = of(maintain(lake))
    left = sorted(path.name for path in log.glob("*.checkpoint.parquet"))
    assert len(before) >= 6
    assert left == [before[0], *before[-2:], f"{130:020}.checkpoint.parquet"]
    assert done.log_files == len(before) - 3
    assert open_table(lake, "quarantine").version() == 130
    assert rows(lake, version=50) == []
    assert committed(lake, QUARANTINE, [f"b{number}" for number in range(200)]) == {f"b{number}" for number in range(130)}


def test_a_checkpoint_of_the_newest_version_is_written_once(lake) -> None:
    land(lake, "b1", ["/in/a"])
    assert of(maintain(lake)).checkpoint
    assert not of(maintain(lake)).checkpoint
    assert not of(maintain(lake), "thumbnails").checkpoint  # nothing was ever written there


def test_files_with_other_columns_are_not_put_together(lake) -> None:
    parts = land(lake, "b1", ["/in/a"])
    land(lake, "b1", ["/in/b", "/in/c", "/in/d"], only=frozenset({"/in/b"}))
    old = lake / "quarantine" / parts[0].path
    pq.write_table(pq.read_table(old, partitioning=None).drop_columns(["content_hash"]), old)
    assert of(maintain(lake)).compacted == 0


def test_what_a_run_replaces_meanwhile_is_left_to_it(lake, monkeypatch) -> None:
    land(lake, "b1", [f"/in/{number}" for number in range(5)])
    land(lake, "b2", [f"/in/{number}" for number in range(5, 10)])

    def late(*arguments: object) -> frozenset[str]:
        land(lake, "b1", ["/in/new"])
        return swap(*arguments)

    monkeypatch.setattr(maintenance, "swap", late)
    done = of(maintain(lake))
    assert (done.compacted, done.into) == (3, 1)
    assert [row[0] for row in rows(lake)] == [*(f"/in/{number}!/x" for number in range(5, 10)), "/in/new!/x"]
    live = {part.path for part in live_parts(lake, QUARANTINE)}
    assert not {path for path in on_disk(lake) if "compact" in path} - live  # what was written for nothing is gone


def test_a_swap_that_another_program_overtakes_is_computed_again(lake) -> None:
    land(lake, "b1", ["/in/a", "/in/b", "/in/c"])
    gone = live_parts(lake, QUARANTINE)
    with PartWriter(lake, QUARANTINE, "b1", "one") as writer:
        for name in "abc":
            writer.append({"path": f"/in/{name}!/x", "original_path": f"/in/{name}", "status": "corrupt"})
        (part,) = writer.finish()
    assert swap(lake, QUARANTINE, [(gone, part)]) == {part.path}
    assert swap(lake, QUARANTINE, [(gone, Part("quarantine", "batch=b1/none.parquet", 0, 0, "{}"))]) == frozenset()
    assert [row[0] for row in rows(lake)] == ["/in/a!/x", "/in/b!/x", "/in/c!/x"]


def test_there_must_be_a_lake(tmp_path) -> None:
    with pytest.raises(UsageError, match="there is no lake"):
        maintain(tmp_path / "nowhere")
    assert not Path(tmp_path / "nowhere").exists()


def test_every_table_is_looked_after(lake) -> None:
    assert [one.table for one in maintain(lake)] == list(TABLES)
