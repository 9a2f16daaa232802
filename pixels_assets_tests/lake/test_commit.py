"""Parts become rows in one transaction: alone, in a crowd, and under a kill."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Field, QueryBuilder, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError
from deltalake.schema import PrimitiveType

import pixels_assets
from pixels_assets.errors import BatchError, CommitConflictError, LakeError, UsageError
from pixels_assets.lake.commit import _newest, _write, commit, committed, create_tables, is_committed, open_table, part_files, table_lock
from pixels_assets.lake.parts import Part, PartWriter
from pixels_assets.lake.schema import OBJECT_CATALOG, QUARANTINE, RAW_FILES, TABLES, Column, Table

ROOT = Path(pixels_assets.__file__).parents[1]
SMALL = Table("small", "One row per object.", (*QUARANTINE.columns[:2], *QUARANTINE.columns[4:]))


@pytest.fixture
def lake(tmp_path):
    create_tables(tmp_path, [SMALL, RAW_FILES])
    return tmp_path


def parts_of(lake, batch, objects, *, table=SMALL, rows=1000, members=1, status="corrupt"):
    """Parts with `members` rows per object; the object's name is its original_path."""
    with PartWriter(lake, table, batch, "shard", rows=rows) as writer:
        for name in objects:
            for number in range(members):
                writer.append({"path": f"{name}!/{number}", "original_path": name, "status": status})
        return writer.finish()


def land(lake, batch, objects, *, only=None, retire=(), **options):
    parts = parts_of(lake, batch, objects, **options)
    return commit(lake, SMALL, batch, parts, run_id="run", only=only, retire=frozenset(retire))


def rows_of(lake, table=SMALL):
    """(batch, path, status) of all rows, sorted, as polars reads them."""
    return sorted(pl.scan_delta(lake / table.name).select("batch", "path", "status").collect().rows())


def objects_of(lake):
    return sorted({(batch, path.split("!/")[0]) for batch, path, _ in rows_of(lake)})


def files_of(lake, table=SMALL):
    return set(pa.table(open_table(lake, table.name).get_add_actions())["path"].to_pylist())


def orphans_of(lake, table=SMALL):
    on_disk = {path.relative_to(lake / table.name).as_posix() for path in (lake / table.name).rglob("batch=*/*")}
    ever = set()
    for entry in (lake / table.name / "_delta_log").glob("*.json"):
        ever |= {action["add"]["path"] for action in map(json.loads, entry.read_text().splitlines()) if "add" in action}
    return on_disk - ever


def processes(script, *arguments, count=1):
    """Run a script in processes of their own: delta-rs does not survive fork."""
    return [
        subprocess.Popen([sys.executable, "-c", script, str(number), *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for number in range(count)
    ]


def exit_codes(running):
    for process in running:
        process.communicate()
    return [process.returncode for process in running]


def write_foreign(lake, **options):
    """Write rows as another program would, without our lock and ledger."""
    rows = [{"path": f"/{name}!/0", "original_path": f"/{name}", "status": "x", "batch": "foreign"} for name in "xy"]
    write_deltalake(lake / "small", pa.Table.from_pylist(rows, SMALL.arrow), **options)


# --- one commit


def test_a_batch_lands_with_its_rows_run_and_ledger(lake) -> None:
    result = land(lake, "b1", ["/in/a", "/in/b"], members=2)
    assert rows_of(lake) == [("b1", f"/in/{name}!/{number}", "corrupt") for name in "ab" for number in range(2)]
    assert (result.version, result.attempts, result.rows, result.rows_removed, result.files_added) == (1, 1, 4, 0, 1)
    (entry,) = open_table(lake, "small").history(1)
    assert (entry["dagster_run_id"], entry["pixels_batch"]) == ("run", "b1")
    assert is_committed(lake, SMALL, "b1")


@pytest.mark.parametrize("name", ["with space", "dönér", "a*b", "a{b}", "it's", 'a"b', "a:b", "a+b&c"])
def test_a_lake_may_lie_in_a_folder_with_an_unusual_name(tmp_path, name) -> None:
    lake = tmp_path / name
    create_tables(lake, [SMALL])
    land(lake, "b1", ["/a"])
    land(lake, "b2", ["/b"])
    land(lake, "b2", ["/c"])
    scanned = pl.scan_delta(open_table(lake, SMALL.name))
    assert sorted(scanned.collect()["original_path"]) == ["/a", "/c"]
    assert scanned.filter(pl.col("batch") == "b2").collect()["original_path"].to_list() == ["/c"]
    assert open_table(lake, SMALL.name).to_pyarrow_dataset().count_rows() == 2
    assert all(file.exists() for file in part_files(lake, SMALL, ["b1", "b2"]))


@pytest.mark.parametrize("name", ["a[b]", "a|b", "a^b", "a\\b", "a%20b", "a#b", "a?b", "a=b", "a\nb"])
def test_a_lake_is_refused_where_readers_would_not_find_it(tmp_path, name) -> None:
    with pytest.raises(UsageError, match="choose another folder"):
        create_tables(tmp_path / name, [SMALL])
    assert not (tmp_path / name).exists()


def test_the_same_batch_twice_gives_the_same_rows(lake) -> None:
    land(lake, "b1", ["/in/a", "/in/b"])
    land(lake, "b2", ["/in/c"])
    before = rows_of(lake)
    result = land(lake, "b1", ["/in/a", "/in/b"])
    assert rows_of(lake) == before
    assert (result.rows, result.rows_removed, result.files_removed) == (2, 2, 1)


def test_the_same_parts_twice_give_the_same_rows(lake) -> None:
    parts = parts_of(lake, "b1", ["/in/a", "/in/b"])
    for _ in range(2):
        result = commit(lake, SMALL, "b1", parts, run_id="run")
    assert rows_of(lake) == [("b1", "/in/a!/0", "corrupt"), ("b1", "/in/b!/0", "corrupt")]
    assert (result.files_added, result.files_removed) == (0, 0)


def test_the_same_subset_parts_twice_give_the_same_rows(lake) -> None:
    land(lake, "b1", ["/in/a", "/in/b"])
    parts = parts_of(lake, "b1", ["/in/a"], status="indexed")
    for _ in range(2):
        commit(lake, SMALL, "b1", parts, run_id="run", only=frozenset({"/in/a"}))
    assert rows_of(lake) == [("b1", "/in/a!/0", "indexed"), ("b1", "/in/b!/0", "corrupt")]


def test_a_batch_without_rows_lands_too_and_clears_what_it_had(lake) -> None:
    land(lake, "b1", ["/in/a"])
    land(lake, "b1", [])
    land(lake, "b2", [])
    assert rows_of(lake) == []
    assert committed(lake, SMALL, ["b1", "b2", "b3"]) == {"b1", "b2"}


def test_only_some_objects_of_a_batch_are_replaced_and_untouched_files_stay(lake) -> None:
    land(lake, "b1", [f"/in/{n}" for n in range(6)], rows=4, members=2)  # objects 0-1, 2-3, 4-5 in one file each
    land(lake, "b2", ["/in/2", "/in/x"])
    before = files_of(lake)
    result = land(lake, "b1", ["/in/2"], only=frozenset({"/in/2"}), status="indexed", members=3)
    assert [row for row in rows_of(lake) if row[2] == "indexed"] == [("b1", f"/in/2!/{n}", "indexed") for n in range(3)]
    assert Counter(batch for batch, _, _ in rows_of(lake)) == {"b1": 13, "b2": 2}
    assert len(before & files_of(lake)) == 3
    assert (result.rows_removed, result.rows_kept, result.files_removed, result.files_added) == (2, 2, 1, 2)


def test_only_some_objects_may_go_without_a_successor(lake) -> None:
    land(lake, "b1", ["/in/a", "/in/b", "/in/c"])
    commit(lake, SMALL, "b1", [], run_id="run", only=frozenset({"/in/b", "/in/zzz"}))
    assert objects_of(lake) == [("b1", "/in/a"), ("b1", "/in/c")]


def test_replacing_some_objects_does_not_make_a_batch_landed(lake) -> None:
    land(lake, "b1", ["/in/a"], only=frozenset({"/in/a"}))
    assert objects_of(lake) == [("b1", "/in/a")]
    assert not is_committed(lake, SMALL, "b1")


def test_retired_objects_leave_all_other_batches_and_the_rows_beside_them_stay(lake) -> None:
    land(lake, "b1", ["/in/a", "/in/b"], members=3)
    land(lake, "b2", ["/in/b"], members=2)
    land(lake, "b3", ["/in/c"])
    untouched = files_of(lake)
    result = land(lake, "b4", ["/in/b"], retire=["/in/b", "/in/gone"], status="indexed")
    assert objects_of(lake) == [("b1", "/in/a"), ("b3", "/in/c"), ("b4", "/in/b")]
    assert (result.rows, result.rows_removed, result.rows_kept) == (1, 5, 3)
    assert untouched & files_of(lake) == {path for path in files_of(lake) if path.startswith("batch=b3/")}
    assert open_table(lake, "small").version() == 4


def test_a_batch_replaced_in_part_retires_the_same_objects_elsewhere(lake) -> None:
    land(lake, "b1", ["/in/a", "/in/b"])
    land(lake, "b2", ["/in/a", "/in/b", "/in/c"])
    land(lake, "b2", ["/in/a"], only=frozenset({"/in/a"}), retire=["/in/a"], status="indexed")
    assert rows_of(lake) == [
        ("b1", "/in/b!/0", "corrupt"),
        ("b2", "/in/a!/0", "indexed"),
        ("b2", "/in/b!/0", "corrupt"),
        ("b2", "/in/c!/0", "corrupt"),
    ]


def test_tables_without_original_path_are_keyed_by_path(lake) -> None:
    def files(*paths):
        with PartWriter(lake, RAW_FILES, "b1", "shard") as writer:
            for path in paths:
                writer.append({"path": path, "change": "new"})
            return writer.finish()

    commit(lake, RAW_FILES, "b1", files("/in/a", "/in/b"), run_id="run")
    commit(lake, RAW_FILES, "b1", files("/in/c"), run_id="run", only=frozenset({"/in/b"}))
    assert sorted(pl.scan_delta(lake / "raw_files").collect()["path"]) == ["/in/a", "/in/c"]


def test_a_copy_keeps_every_value_and_its_statistics(tmp_path) -> None:
    create_tables(tmp_path, [OBJECT_CATALOG])
    noise = random.Random(7)
    with PartWriter(tmp_path, OBJECT_CATALOG, "b1", "shard") as writer:
        for n in range(1200):
            writer.append(
                {
                    "rowId": n,
                    "path": f"/in/{n:04}",
                    "original_path": f"/in/{n:04}",
                    "local_path": f"/in/{n:04}",
                    "status": "indexed",
                    "thumbnail": noise.randbytes(100) if n % 3 else None,
                    "path_tags": ["in", str(n)] if n % 5 else None,
                    "modificationTime": n,
                    "PatientID": f"né\0{n}",
                    "is_anon": bool(n % 2),
                }
            )
        parts = writer.finish()
    commit(tmp_path, OBJECT_CATALOG, "b1", parts, run_id="run")
    dataset = open_table(tmp_path, "object_catalog").to_pyarrow_dataset()
    expected = dataset.to_table(filter=ds.field("rowId") != 600).sort_by("rowId")
    commit(tmp_path, OBJECT_CATALOG, "b1", [], run_id="run", only=frozenset({"/in/0600"}))
    delta = open_table(tmp_path, "object_catalog")
    assert delta.to_pyarrow_table().sort_by("rowId").equals(expected)
    assert sum(pa.table(delta.get_add_actions())["num_records"].to_pylist()) == 1199
    assert len(delta.file_uris(file_pruning_predicate="original_path = '/in/0601'")) == 1
    assert delta.file_uris(file_pruning_predicate="original_path = '/in/9'") == []


def test_statistics_prune_files(lake) -> None:
    land(lake, "b1", [f"/a/long/common/prefix/of/all/paths/in/this/source/{n:03}" for n in range(40)], rows=10)
    predicate = "original_path = '/a/long/common/prefix/of/all/paths/in/this/source/015'"
    delta = open_table(lake, "small")
    assert (len(delta.file_uris()), len(delta.file_uris(file_pruning_predicate=predicate))) == (4, 1)


def test_a_retirement_reads_only_files_that_can_hold_the_object(lake) -> None:
    land(lake, "b1", [f"/in/{n:03}" for n in range(40)], rows=10)
    first, *others = sorted(files_of(lake), key=lambda path: pq.read_table(lake / "small" / path)["path"][0].as_py())
    for path in others:
        (lake / "small" / path).unlink()
    land(lake, "b2", [], retire=["/in/005", "/in/zzz"])
    assert first not in files_of(lake)
    assert set(others) < files_of(lake)


def test_four_readers_agree_on_any_batch_key(lake) -> None:
    keys = ["0007", "2026-11-21", "20261121T101500-0007", "true", "null", "None", "1e5", "-1", "a.b-c_d", "_x"]
    for key in keys:
        land(lake, key, [f"/in/{key}\0\U0001f600"], members=2)
    commit(lake, SMALL, "0007", [], run_id="run", only=frozenset({"/in/0007"}))
    delta = open_table(lake, "small")
    expected = sorted((key, f"/in/{key}\0\U0001f600!/{n}") for key in keys for n in range(2))
    dataset = delta.to_pyarrow_dataset()
    found = {
        "polars": pl.scan_delta(lake / "small").select("batch", "path").collect().rows(),
        "pyarrow": zip(*dataset.to_table(["batch", "path"]).to_pydict().values(), strict=True),
        "duckdb": duckdb.execute("select batch, path from dataset").fetchall(),
        "datafusion": zip(
            *pa.table(QueryBuilder().register("small", delta).execute("select batch, path from small").read_all()).to_pydict().values(), strict=True
        ),
    }
    for reader, rows in found.items():
        assert sorted(rows) == expected, reader


@pytest.mark.parametrize("batch", ["../b", ".b", "a b", ""])
def test_a_malformed_batch_key_is_refused(lake, batch) -> None:
    with pytest.raises(BatchError):
        commit(lake, SMALL, batch, [], run_id="run")


# --- parts that are not what they claim


def remove_file(path, part):
    path.unlink()
    return part


def damage_size(path, part):
    with path.open("ab") as file:
        file.write(b"more")
    return part


def damage_footer(path, part):
    path.write_bytes(path.read_bytes()[:-20] + b"\0" * 20)
    return part


def claim_more_rows(path, part):
    return Part(part.table, part.path, part.size, part.rows + 1, part.stats)


def claim_another_batch(path, part):
    return Part(part.table, part.path.replace("batch=b1", "batch=b2"), part.size, part.rows, part.stats)


def claim_another_folder(path, part):
    return Part(part.table, f"batch=b1/../{part.path}", part.size, part.rows, part.stats)


def claim_another_table(path, part):
    return Part("thumbnails", part.path, part.size, part.rows, part.stats)


def change_columns(path, part):
    pq.write_table(pa.table({"path": ["/in/a"]}), path)
    return Part(part.table, part.path, path.stat().st_size, part.rows, part.stats)


@pytest.mark.parametrize(
    "spoil",
    [remove_file, damage_size, damage_footer, claim_more_rows, claim_another_batch, claim_another_folder, claim_another_table, change_columns],
)
def test_a_part_that_is_not_the_file_it_claims_to_be_is_refused(lake, spoil) -> None:
    land(lake, "b1", ["/in/old"])
    (part,) = parts_of(lake, "b1", ["/in/a"])
    part = spoil(lake / part.table / part.path, part)
    with pytest.raises(LakeError, match="nothing was committed"):
        commit(lake, SMALL, "b1", [part], run_id="run")
    assert objects_of(lake) == [("b1", "/in/old")]


def test_a_live_file_that_is_gone_is_named_and_copies_made_so_far_are_removed(lake) -> None:
    land(lake, "b1", ["/in/a", "/in/b"])
    land(lake, "b2", ["/in/a", "/in/b"])
    live = pa.table(open_table(lake, "small").get_add_actions())["path"].to_pylist()
    (lake / "small" / live[-1]).unlink()
    with pytest.raises(LakeError, match=re.escape(live[-1])):
        land(lake, "b3", [], retire=["/in/a"])
    assert open_table(lake, "small").version() == 2
    assert orphans_of(lake) == set()


# --- tables


def test_tables_are_created_once_and_then_left_alone(tmp_path) -> None:
    for _ in range(3):
        create_tables(tmp_path / "new" / "lake")
    assert {name: open_table(tmp_path / "new" / "lake", name).version() for name in TABLES} == dict.fromkeys(TABLES, 0)


CREATE = "import sys; from pathlib import Path; from pixels_assets.lake.commit import create_tables; create_tables(Path(sys.argv[2]) / 'lake')"


def test_processes_create_the_tables_at_once(tmp_path) -> None:
    assert exit_codes(processes(CREATE, tmp_path, count=4)) == [0] * 4
    assert {open_table(tmp_path / "lake", name).version() for name in TABLES} == {0}


def widened(**options):
    return Table("small", SMALL.meaning, (*SMALL.columns[:-1], Column("colour", pa.string(), "Colour of it.", **options), SMALL.columns[-1]))


def test_a_new_column_is_added_to_an_old_table_and_old_rows_are_null_there(lake) -> None:
    land(lake, "b1", ["/in/a", "/in/b"])
    table = widened()
    create_tables(lake, [table])
    with PartWriter(lake, table, "b2", "shard") as writer:
        writer.append({"path": "/in/c!/0", "original_path": "/in/c", "status": "indexed", "colour": "red"})
        parts = writer.finish()
    commit(lake, table, "b2", parts, run_id="run", retire=frozenset({"/in/a"}))
    delta = open_table(lake, "small")
    dataset = delta.to_pyarrow_dataset()
    expected = [("/in/b!/0", None), ("/in/c!/0", "red")]
    assert delta.schema().fields[-1] == Field("colour", PrimitiveType("string"), metadata={"comment": "Colour of it."})
    assert sorted(pl.scan_delta(lake / "small").select("path", "colour").collect().rows()) == expected
    assert sorted(duckdb.execute("select path, colour from dataset").fetchall()) == expected
    assert sorted(zip(*dataset.to_table(["path", "colour"]).to_pydict().values(), strict=True)) == expected


def test_an_older_program_keeps_the_columns_that_it_does_not_know(lake) -> None:
    table = widened()
    create_tables(lake, [table])
    with PartWriter(lake, table, "b1", "shard") as writer:
        for name in ("/in/a", "/in/b"):
            writer.append({"path": name, "original_path": name, "status": "indexed", "colour": "red"})
        parts = writer.finish()
    commit(lake, table, "b1", parts, run_id="run")
    create_tables(lake, [SMALL])
    land(lake, "b2", ["/in/a"], retire=["/in/a"])
    assert sorted(pl.scan_delta(lake / "small").select("path", "colour").collect().rows()) == [("/in/a!/0", None), ("/in/b", "red")]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (widened(nullable=False), "small has no column colour"),
        (Table("small", "", (Column("path", pa.int64(), "Path."), *SMALL.columns[1:])), "column path of table small is"),
        (Table("small", "", (Column("path", pa.string(), "Path."), *SMALL.columns[1:])), "column path of table small must have values"),
    ],
    ids=["required", "type", "null"],
)
def test_a_table_that_cannot_become_ours_is_named_with_its_column(lake, table, message) -> None:
    with pytest.raises(LakeError, match=message):
        create_tables(lake, [table])


def test_a_table_with_another_partitioning_is_refused(tmp_path) -> None:
    DeltaTable.create(tmp_path / "small", Schema.from_arrow(SMALL.arrow))
    with pytest.raises(LakeError, match="partitioned by"):
        create_tables(tmp_path, [SMALL])


def test_a_lake_that_is_a_file_is_a_lake_error(tmp_path) -> None:
    (tmp_path / "lake").write_text("")
    with pytest.raises(LakeError, match="cannot create the lake"):
        create_tables(tmp_path / "lake")


def test_a_table_that_is_not_there_is_a_lake_error(tmp_path) -> None:
    with pytest.raises(LakeError, match="cannot open the table small"):
        open_table(tmp_path, "small")


def test_the_ledger_outlives_checkpoints_and_expired_log_entries(lake) -> None:
    land(lake, "first", [])
    for number in range(45):
        land(lake, f"b{number}", [])
    open_table(lake, "small").create_checkpoint()
    log = lake / "small" / "_delta_log"
    for entry in log.glob("*.json"):
        os.utime(entry, (0, 0))
    open_table(lake, "small").cleanup_metadata()
    assert not (log / f"{1:020}.json").exists()
    assert is_committed(lake, SMALL, "first")
    assert not is_committed(lake, SMALL, "second")


def test_a_table_is_kept_until_its_log_is_another(lake) -> None:
    land(lake, "b1", ["/in/a"])
    kept = _newest(lake, "small")
    assert is_committed(lake, SMALL, "b1")
    assert _newest(lake, "small") is kept
    open_table(lake, "small").create_checkpoint()  # entries that the kept one may still ask for can go now
    assert _newest(lake, "small") is not kept
    land(lake, "b2", ["/in/b"])
    assert len(part_files(lake, SMALL, ["b1", "b2"])) == 2
    shutil.rmtree(lake / "small")
    create_tables(lake, [SMALL])
    land(lake, "b3", ["/in/c"])
    land(lake, "b4", ["/in/d"])
    assert [is_committed(lake, SMALL, name) for name in ("b1", "b2", "b3", "b4")] == [False, False, True, True]
    assert part_files(lake, SMALL, ["b1", "b2"]) == []


# --- crowds

COMMIT = """
import random, sys
from pathlib import Path
import pyarrow
from pixels_assets.lake.commit import commit
from pixels_assets.lake.parts import PartWriter
from pixels_assets.lake.schema import Table, QUARANTINE
SMALL = Table("small", "One row per object.", (*QUARANTINE.columns[:2], *QUARANTINE.columns[4:]))
number, lake, mode = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]

def parts(batch, objects, status):
    with PartWriter(lake, SMALL, batch, "shard") as writer:
        for name in objects:
            writer.append({"path": name + "!/0", "original_path": name, "status": status})
        return writer.finish()
"""

CROWD = (
    COMMIT
    + """
batch = f"b{number:02}"
mine = [f"/in/{number:02}", f"/in/{number:02}-extra"]
if mode == "retire":
    commit(lake, SMALL, batch, parts(batch, mine, "indexed"), run_id=str(number), retire=frozenset(mine))
elif mode == "only":
    commit(lake, SMALL, "all", parts("all", mine, "indexed"), run_id=str(number), only=frozenset(mine))
else:
    commit(lake, SMALL, batch, parts(batch, mine, "indexed"), run_id=str(number))
"""
)


@pytest.mark.parametrize(("mode", "count"), [("whole", 16), ("retire", 4), ("only", 4)])
def test_processes_commit_at_once_and_all_land(lake, mode, count) -> None:
    land(lake, "all", [f"/in/{number:02}" for number in range(count)] + ["/in/rest"])
    assert exit_codes(processes(CROWD, lake, mode, count=count)) == [0] * count
    batches = ["all" if mode == "only" else f"b{number:02}" for number in range(count)]
    new = [(batch, f"/in/{number:02}{extra}!/0", "indexed") for number, batch in enumerate(batches) for extra in ("", "-extra")]
    old = [("all", f"/in/{number:02}!/0", "corrupt") for number in range(count) if mode == "whole"] + [("all", "/in/rest!/0", "corrupt")]
    assert rows_of(lake) == sorted(new + old)
    assert open_table(lake, "small").version() == count + 1
    assert orphans_of(lake) == set()


def test_commits_do_not_lose_updates_where_locks_do_not_work(lake) -> None:
    # Each thread commits to the lake under another name, so that each takes another lock file, as on two hosts whose file system has no locks.
    land(lake, "all", [f"/in/{number}" for number in range(6)] + ["/in/rest"])
    views = []
    for number in range(6):
        view = lake / f"view{number}"
        view.mkdir()
        (view / "small").symlink_to(lake / "small")
        views.append(view)
    attempts, errors = [], []

    def run(number) -> None:
        try:
            for _ in range(3):
                attempts.append(land(views[number], "all", [f"/in/{number}"], only=frozenset({f"/in/{number}"}), status="indexed").attempts)
                land(views[number], f"b{number}", [f"/in/{number}-new"])
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert max(attempts) > 1
    expected = [("all", f"/in/{number}!/0", "indexed") for number in range(6)] + [
        (f"b{number}", f"/in/{number}-new!/0", "corrupt") for number in range(6)
    ]
    assert rows_of(lake) == sorted([*expected, ("all", "/in/rest!/0", "corrupt")])
    assert orphans_of(lake) == set()


@pytest.mark.parametrize("second", ["b1", "b2"])
@pytest.mark.parametrize(("first_whole", "second_whole"), [(True, True), (True, False), (False, True), (False, False)])
def test_of_two_commits_computed_from_one_version_the_second_fails(lake, second, first_whole, second_whole) -> None:
    views = [open_table(lake, "small") for _ in range(2)]
    outcomes = []
    for delta, batch, whole in zip(views, ("b1", second), (first_whole, second_whole), strict=True):
        added = {part.path: (part, batch) for part in parts_of(lake, batch, ["/in/a"])}
        outcomes.append(_write(delta, SMALL, batch, added, [], run_id="run", token="token", whole=whole))
    assert [type(outcome) for outcome in outcomes] == [type(None), CommitFailedError]
    assert objects_of(lake) == [("b1", "/in/a")]


def test_a_commit_that_never_wins_gives_up_with_a_clear_error(lake) -> None:
    land(lake, "b1", ["/in/a"])
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            with contextlib.suppress(CommitFailedError):
                write_foreign(lake, mode="overwrite", predicate="batch = 'foreign'")

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        outcomes = []
        for _ in range(500):
            try:
                land_quickly(lake)
            except CommitConflictError as error:
                outcomes.append(str(error))
                break
    finally:
        stop.set()
        thread.join()
    assert outcomes == ["batch b1 lost 1 attempts at small to other writers; run it again when fewer runs are writing"]
    assert ("b1", "/in/a") in objects_of(lake)


def land_quickly(lake):
    commit(lake, SMALL, "b1", parts_of(lake, "b1", ["/in/a"]), run_id="run", seconds=0)


def test_files_that_another_program_wrote_and_compacted_are_copied_as_well(lake) -> None:
    land(lake, "b1", ["/in/a"])
    write_foreign(lake, mode="append")
    write_foreign(lake, mode="append")
    open_table(lake, "small").optimize.compact()
    result = land(lake, "b1", ["/in/a"], retire=["/x"])
    assert objects_of(lake) == [("b1", "/in/a"), ("foreign", "/y")]
    assert (result.rows_removed, result.rows_kept) == (3, 2)


def test_a_reader_sees_the_old_or_the_new_batch_and_nothing_else(lake) -> None:
    names = [f"/in/{number}" for number in range(50)]
    land(lake, "b1", names, rows=10, status="s0")
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            table = DeltaTable(lake / "small").to_pyarrow_table(columns=["path", "status"])
            seen.append((table.num_rows, len(set(table["path"].to_pylist())), frozenset(table["status"].to_pylist())))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 25):
        land(lake, "b1", names, rows=10, status=f"s{number}")
    stop.set()
    reader.join()
    assert {(rows, paths, len(statuses)) for rows, paths, statuses in seen} == {(50, 50, 1)}
    assert len({statuses for *_, statuses in seen}) > 1


# --- kills, full disks

ENDLESS = (
    COMMIT
    + """
print("ready", flush=True)
step = 0
while True:
    step += 1
    objects = [f"/in/{n:03}" for n in range(40)]
    if step % 2:
        commit(lake, SMALL, "b1", parts("b1", objects, f"s{step}"), run_id="run", retire=frozenset(objects))
    else:
        commit(lake, SMALL, "b2", parts("b2", objects[:20], f"s{step}"), run_id="run", retire=frozenset(objects[:20]))
"""
)


def test_a_kill_at_any_moment_leaves_a_version_that_was_committed(lake) -> None:
    moments = random.Random(20261121)
    for _ in range(6):
        (process,) = processes(ENDLESS, lake, "kill")
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = Counter(batch for batch, _, _ in rows_of(lake))
        assert found in ({}, {"b1": 40}, {"b1": 20, "b2": 20})
        assert len({path for _, path, _ in rows_of(lake)}) == sum(found.values())
        land(lake, "b3", ["/in/after"])  # the lock is free and the table takes commits
        land(lake, "b3", [])


LIMITED = (
    COMMIT
    + """
import resource
from pixels_assets.errors import LakeError
new = [parts("b1", [f"/in/{n}"], "indexed")[0] for n in range(40)]
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
try:
    commit(lake, SMALL, "b1", new, run_id="run", retire=frozenset({"/in/a"}))
except LakeError as error:
    print(error)
"""
)


def test_a_log_entry_that_cannot_be_written_is_a_lake_error_and_the_table_is_as_it_was(lake) -> None:
    land(lake, "b1", ["/in/old"])
    land(lake, "b2", ["/in/a", "/in/b"])
    (process,) = processes(LIMITED, lake, "limit")
    said = process.communicate()[0]
    assert process.returncode == 0
    assert said.startswith("cannot commit batch b1 to small at ")
    assert "free space or choose another folder" in said
    assert objects_of(lake) == [("b1", "/in/old"), ("b2", "/in/a"), ("b2", "/in/b")]
    assert not [path for path in orphans_of(lake) if "/copy-" in path]


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0 or subprocess.run([mount, "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_a_lake_error_at_every_step_and_the_next_run_continues(small_disk) -> None:
    create_tables(small_disk, [SMALL])
    land(small_disk, "b1", ["/in/a", "/in/b"])
    (part,) = parts_of(small_disk, "b2", ["/in/a"])
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
        file.writelines([b"x" * 1024] * 10_000)
    remedy = "free space or choose another folder"
    with pytest.raises(LakeError, match=remedy):
        parts_of(small_disk, "b3", [f"/in/{number}" for number in range(1000)])
    with pytest.raises(LakeError, match=remedy):
        commit(small_disk, SMALL, "b2", [part], run_id="run")
    with pytest.raises(LakeError, match=remedy):
        commit(small_disk, SMALL, "b2", [part], run_id="run", retire=frozenset({"/in/a"}))
    with pytest.raises(LakeError, match=remedy):
        create_tables(small_disk)
    assert objects_of(small_disk) == [("b1", "/in/a"), ("b1", "/in/b")]
    filler.unlink()
    create_tables(small_disk)
    commit(small_disk, SMALL, "b2", [part], run_id="run", retire=frozenset({"/in/a"}))
    assert objects_of(small_disk) == [("b1", "/in/b"), ("b2", "/in/a")]


def test_a_version_that_landed_counts_although_its_checkpoint_failed(lake, caplog) -> None:
    # The checkpoint falls due at version 19; a folder of that name stands for whatever keeps it from being written.
    (lake / "small" / "_delta_log" / f"{19:020}.checkpoint.parquet" / "in the way").mkdir(parents=True)
    for number in range(1, 21):
        assert land(lake, "b1", [f"/in/{number}"]).version == number
    assert "version 19 was written, but what follows a commit failed" in caplog.text
    assert objects_of(lake) == [("b1", "/in/20")]


# --- the lock


def test_a_lock_is_waited_for_and_says_who_is_locked_when_the_time_is_over(lake) -> None:
    with (
        table_lock(lake, "discover"),
        pytest.raises(LakeError, match=r"discover is locked .* by another process"),
        table_lock(lake, "discover", 0.05),
    ):
        pass
    with table_lock(lake, "discover", 0.0), table_lock(lake, "other"):
        pass


HOLD = """
import sys
from pathlib import Path
from pixels_assets.lake.commit import table_lock
with table_lock(Path(sys.argv[2]), "small"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_ends_with_its_holder_however_it_dies(lake) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, "0", lake], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LakeError), table_lock(lake, "small", 0.0):
        pass
    holder.kill()
    holder.communicate()
    with table_lock(lake, "small", 0.0):
        pass


def test_an_exception_in_the_block_frees_the_lock(lake) -> None:
    with pytest.raises(InterruptedError), table_lock(lake, "small"):
        raise InterruptedError
    with table_lock(lake, "small", 0.0):
        pass
