"""Rows in, Parquet parts out."""

import datetime as dt
import itertools
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pixels_assets
from pixels_assets.errors import BatchError, LakeError
from pixels_assets.lake.parts import GROUP_ROWS, PartSync, PartWriter, _leaves, _upper_bound, microseconds, part_from_table, validate_batch
from pixels_assets.lake.schema import DICOM_METADATA, OBJECT_CATALOG, QUARANTINE, RAW_FILES, THUMBNAILS, UNZIPPED_ARCHIVES

ROOT = Path(pixels_assets.__file__).parents[1]
BATCH = "20261121T101500-0007"


def read(lake, part):
    return pq.ParquetFile(lake / part.table / part.path).read()


def write_one(lake, table, rows, **limits):
    with PartWriter(lake, table, BATCH, "shard", **limits) as writer:
        for row in rows:
            writer.append(row)
        return writer.finish()


def member(number, **values):
    return {"path": f"/in/a.zip!/{number:05}.dcm", "original_path": "/in/a.zip", "status": "indexed", **values}


def test_rows_come_back_as_they_went_in(tmp_path) -> None:
    row = {
        "path": "/in/naïve\n'\".dcm",
        "original_path": "/in/naïve\n'\".dcm",
        "status": "indexed",
        "length": 2**40,
        "depth": 0,
        "modificationTime": 1_700_000_000_123_456,
        "warnings": ["odd length", ""],
        "header": b"\x00\xff",
        "meta": '{"00100010": {}}',
        "StudyDate": dt.date(1899, 12, 31),
        "Rows": np.int64(512),
    }
    (part,) = write_one(tmp_path, DICOM_METADATA, [row])
    (found,) = read(tmp_path, part).to_pylist()
    expected = row | {"modificationTime": dt.datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=dt.UTC)}
    assert found == dict.fromkeys(DICOM_METADATA.column_names[:-1]) | expected
    assert part.size == (tmp_path / part.table / part.path).stat().st_size
    assert pickle.loads(pickle.dumps(part)) == part


def test_parts_are_closed_at_the_row_limit_and_can_be_taken_as_they_close(tmp_path) -> None:
    taken = []
    with PartWriter(tmp_path, UNZIPPED_ARCHIVES, BATCH, "shard", rows=10) as writer:
        for number in range(25):
            writer.append(member(number))
            taken.append(len(writer.take()))
        (last,) = writer.finish()
    assert [number for number, count in enumerate(taken) if count] == [9, 19]
    assert last.rows == 5


def test_parts_are_synced_beside_other_work_and_one_that_cannot_be_is_an_error(tmp_path) -> None:
    with PartWriter(tmp_path, UNZIPPED_ARCHIVES, BATCH, "shard", rows=10, sync=False) as writer:
        for number in range(50):
            writer.append(member(number))
        parts = writer.finish()
    assert len(parts) == 5
    sync = PartSync(tmp_path)
    sync.add(parts[:3])
    sync.add(parts[3:])
    sync.finish()
    lost = tmp_path / parts[4].table / parts[4].path
    lost.unlink()
    sync = PartSync(tmp_path)
    sync.add(parts)
    with pytest.raises(LakeError, match=f"cannot write a part at {lost}: FileNotFoundError"):
        sync.finish()
    sync.abandon()


def test_parts_are_closed_at_the_size_limit(tmp_path) -> None:
    rows = [member(number, thumbnail=random.Random(number).randbytes(300_000), status="ok") for number in range(20)]
    parts = write_one(tmp_path, THUMBNAILS, rows, size=1_000_000)
    assert [part.rows for part in parts] == [4, 4, 4, 4, 4]


def test_row_groups_of_tables_with_binaries_are_small_so_that_a_lookup_reads_little(tmp_path) -> None:
    (part,) = write_one(tmp_path, THUMBNAILS, [member(number, status="ok", thumbnail=b"x") for number in range(2000)])
    footer = pq.read_metadata(tmp_path / part.table / part.path)
    assert footer.num_row_groups == -(-2000 // GROUP_ROWS)
    statistics = [footer.row_group(group).column(0).statistics for group in range(footer.num_row_groups)]
    assert all(before.max < after.min for before, after in itertools.pairwise(statistics))
    assert not footer.row_group(0).column(THUMBNAILS.column_names.index("thumbnail")).is_stats_set


def test_columns_with_few_or_no_values_are_not_compressed_and_may_have_others_later(tmp_path) -> None:
    rows = [member(number) for number in range(GROUP_ROWS)] + [member(GROUP_ROWS, Rows=512, PatientID="late", ImageType=["a", "b"])]
    (part,) = write_one(tmp_path, DICOM_METADATA, rows)
    found = read(tmp_path, part)
    assert [found[name].to_pylist()[-2:] for name in ("Rows", "PatientID", "ImageType")] == [[None, 512], [None, "late"], [None, ["a", "b"]]]
    described = pq.ParquetFile(tmp_path / part.table / part.path).metadata.row_group(0)
    codecs = {described.column(place).path_in_schema: described.column(place).compression for place in range(described.num_columns)}
    assert {codecs[name] for name in ("Rows", "PatientID", "ImageType.list.element")} == {"UNCOMPRESSED"}
    assert codecs["status"] == "UNCOMPRESSED", "its dictionary is all there is"
    assert codecs["path"] == "ZSTD"


def test_columns_of_nested_columns_are_named_as_parquet_names_them(tmp_path) -> None:
    inner = pa.struct([pa.field("x", pa.int64()), pa.field("y", pa.list_(pa.string()))])
    schema = pa.schema([("a", pa.int64()), ("b", pa.list_(inner)), ("c", pa.map_(pa.string(), inner)), ("d", inner)])
    pq.write_table(schema.empty_table(), tmp_path / "x.parquet")
    written = pq.ParquetFile(tmp_path / "x.parquet").schema
    assert [leaf for item in schema for leaf in _leaves(item.name, item.type)] == [written.column(place).path for place in range(len(written))]


def test_blobs_have_no_dictionary(tmp_path) -> None:
    (part,) = write_one(tmp_path, OBJECT_CATALOG, [{**member(1), "rowId": 1, "local_path": "/in/a.zip", "thumbnail": b"1", "meta": "{}"}] * 3)
    group = pq.read_metadata(tmp_path / part.table / part.path).row_group(0)
    dictionaries = {group.column(index).path_in_schema: group.column(index).has_dictionary_page for index in range(group.num_columns)}
    assert {name: dictionaries[name] for name in ("meta", "thumbnail", "path", "original_path", "status")} == {
        "meta": False,
        "thumbnail": False,
        "path": False,
        "original_path": True,
        "status": True,
    }


def test_no_rows_make_no_part_and_no_file(tmp_path) -> None:
    assert write_one(tmp_path, QUARANTINE, []) == []
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("text", ["NUL \0 inside", "lone \ud800 surrogate", "escaped byte \udce9", "a pair \ud83d\ude00", "￿", "'; drop table --"])
def test_any_text_is_stored_as_valid_unicode(tmp_path, text) -> None:
    (part,) = write_one(tmp_path, DICOM_METADATA, [member(1, PatientID=text, warnings=[text], path=text), member(2)])
    found = read(tmp_path, part).to_pylist()[0]
    expected = text.replace("\ud83d\ude00", "😀").replace("\ud800", "\ufffd").replace("\udce9", "\ufffd")
    assert (found["PatientID"], found["warnings"], found["path"]) == (expected, [expected], expected)
    assert json.loads(part.stats)["maxValues"]["PatientID"] == expected


@pytest.mark.parametrize(
    ("nanoseconds", "expected"),
    [
        (None, None),
        (0, dt.datetime(1970, 1, 1, tzinfo=dt.UTC)),
        (-1, dt.datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=dt.UTC)),
        (1999, dt.datetime(1970, 1, 1, microsecond=1, tzinfo=dt.UTC)),
        (1 << 62, dt.datetime(2116, 2, 20, 23, 53, 38, 427387, tzinfo=dt.UTC)),
        ((1 << 80), None),
    ],
)
def test_times_are_rounded_down_to_microseconds(tmp_path, nanoseconds, expected) -> None:
    (part,) = write_one(tmp_path, UNZIPPED_ARCHIVES, [member(1, modificationTime=microseconds(nanoseconds))])
    assert read(tmp_path, part)["modificationTime"].to_pylist() == [expected]


def test_numbers_and_times_that_do_not_fit_are_null_and_leave_their_neighbours_alone(tmp_path) -> None:
    odd = {"length": 2**63, "modificationTime": 2**62, "depth": 2**31}
    fine = {"length": -1, "modificationTime": microseconds(1_700_000_000_000_000_999), "depth": 3}
    (part,) = write_one(tmp_path, UNZIPPED_ARCHIVES, [member(1, **odd), member(2, **fine)])
    first, second = read(tmp_path, part).to_pylist()
    assert (first["length"], first["modificationTime"], first["depth"]) == (None, None, None)
    assert (second["length"], second["modificationTime"].microsecond, second["depth"]) == (-1, 0, 3)


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (member(1, colour="red"), KeyError),
        (member(1, batch="b"), KeyError),
        ({"path": "/a", "original_path": "/a"}, ValueError),
        (member(1, PatientID=b"bytes"), TypeError),
        (member(1, Rows="512"), TypeError),
        (member(1, header="text"), TypeError),
        (member(1, warnings="text"), TypeError),
        (member(1, warnings=[7]), TypeError),
        (member(1, StudyDate="20200101"), TypeError),
        (member(1, modificationTime=1.5), TypeError),
    ],
)
def test_a_wrong_row_is_refused_when_it_is_appended_and_the_writer_goes_on(tmp_path, row, error) -> None:
    with PartWriter(tmp_path, DICOM_METADATA, BATCH, "shard") as writer:
        with pytest.raises(error):
            writer.append(row)
        writer.append(member(2))
        (part,) = writer.finish()
    assert read(tmp_path, part)["path"].to_pylist() == ["/in/a.zip!/00002.dcm"]


def test_statistics_name_rows_bounds_and_nulls(tmp_path) -> None:
    rows = [member(3, StudyDate=dt.date(2020, 1, 2)), member(1, StudyDate=None), member(2, StudyDate=dt.date(2019, 1, 2), PatientName="Doe")]
    (part,) = write_one(tmp_path, DICOM_METADATA, rows)
    stats = json.loads(part.stats)
    assert stats["numRecords"] == 3
    assert (stats["minValues"]["path"], stats["maxValues"]["path"]) == ("/in/a.zip!/00001.dcm", "/in/a.zip!/00003.dcm")
    assert (stats["minValues"]["StudyDate"], stats["maxValues"]["StudyDate"], stats["nullCount"]["StudyDate"]) == ("2019-01-02", "2020-01-02", 1)
    assert stats["nullCount"]["Modality"] == 3
    assert "Modality" not in stats["minValues"]
    assert "Doe" not in part.stats


@given(st.text(st.characters(codec="utf-8", min_codepoint=0xD7F0), min_size=250, max_size=600), st.text(max_size=3))
def test_the_bound_of_a_long_text_sorts_after_all_that_it_begins(text, more) -> None:
    bound = _upper_bound(text)
    assert bound is None or (
        bound.encode() >= text.encode() and (len(text) <= 256 or bound.encode() > (text[:256] + more.replace("\ud800", "")).encode())
    )


def test_the_bound_of_a_text_without_a_successor_is_left_out(tmp_path) -> None:
    (part,) = write_one(tmp_path, DICOM_METADATA, [member(1, PatientID="\U0010ffff" * 300)])
    assert "PatientID" not in json.loads(part.stats)["maxValues"]
    assert json.loads(part.stats)["minValues"]["PatientID"] == "\U0010ffff" * 256


def test_writing_the_same_shard_again_never_touches_its_first_parts(tmp_path) -> None:
    (first,) = write_one(tmp_path, QUARANTINE, [member(1)])
    content = (tmp_path / first.table / first.path).read_bytes()
    (second,) = write_one(tmp_path, QUARANTINE, [member(2)])
    assert first.path != second.path
    assert (tmp_path / first.table / first.path).read_bytes() == content


def test_an_exception_in_the_block_leaves_no_file_but_those_that_were_taken(tmp_path) -> None:
    taken = []

    def fail() -> None:
        with PartWriter(tmp_path, THUMBNAILS, BATCH, "shard", rows=600) as writer:
            for number in range(600):
                writer.append(member(number, status="ok"))
            taken.extend(writer.take())
            for number in range(1150):
                writer.append(member(number, status="ok"))
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert [path.relative_to(tmp_path / "thumbnails").as_posix() for path in tmp_path.rglob("*") if path.is_file()] == [part.path for part in taken]


def test_a_part_has_its_name_only_when_it_is_complete(tmp_path) -> None:
    with PartWriter(tmp_path, THUMBNAILS, BATCH, "shard") as writer:
        for number in range(1000):
            writer.append(member(number, status="ok"))
        unfinished = [path.name for path in tmp_path.rglob("*") if path.is_file()]
        (part,) = writer.finish()
    assert [name.startswith(".tmp-") for name in unfinished] == [True]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [Path(part.path).name]


def test_a_table_in_memory_becomes_one_part(tmp_path) -> None:
    values = pa.table({"status": pa.array(["corrupt"] * 700, pa.large_string()), "path": [f"/in/{n}" for n in range(700)], "attempts": [1] * 700})
    part = part_from_table(tmp_path, QUARANTINE, BATCH, "derived", values)
    assert read(tmp_path, part).schema.equals(QUARANTINE.part_arrow)
    assert (part.rows, json.loads(part.stats)["numRecords"]) == (700, 700)


@pytest.mark.parametrize("values", [{"path": ["/a"]}, {"path": ["/a"], "status": ["x"], "colour": ["red"]}])
def test_a_table_in_memory_with_other_columns_is_refused(tmp_path, values) -> None:
    with pytest.raises(KeyError):
        part_from_table(tmp_path, QUARANTINE, BATCH, "derived", pa.table(values))
    assert list(tmp_path.rglob("*.parquet")) == []


@pytest.mark.parametrize("key", ["20261121T101500-0007", "a", "A.b-c_d", "0", "x" * 100, "_x", "a.."])
def test_batch_keys_that_can_name_a_folder_are_accepted(key) -> None:
    assert validate_batch(key) == key


@pytest.mark.parametrize("key", ["", ".", "..", ".a", "a/b", "a b", "a=b", "a%20", "ä", "a\n", "x" * 101, "__HIVE_DEFAULT_PARTITION__"])
def test_batch_keys_that_readers_would_misread_are_refused(key) -> None:
    with pytest.raises(BatchError, match="batch key"):
        validate_batch(key)


def test_workers_need_neither_deltalake_nor_polars_nor_dagster() -> None:
    code = "import sys, pixels_assets.lake.parts; print(sorted({'deltalake', 'polars', 'dagster', 'duckdb'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


FULL = """
import resource, sys
from pathlib import Path
from pixels_assets.errors import LakeError
from pixels_assets.lake.parts import PartWriter
from pixels_assets.lake.schema import THUMBNAILS
import random
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    with PartWriter(Path(sys.argv[1]), THUMBNAILS, "b", "shard") as writer:
        for number in range(100):
            writer.append({"path": str(number), "original_path": "/in", "status": "ok", "thumbnail": random.Random(number).randbytes(200_000)})
        writer.finish()
except LakeError as error:
    print(error)
"""


def test_a_file_that_can_grow_no_further_is_a_lake_error_and_leaves_nothing(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", FULL, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "cannot write a part of thumbnails at " in done.stdout
    assert "free space or choose another folder" in done.stdout
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


READ_ONLY = """
import os, sys
from pathlib import Path
from pixels_assets.errors import LakeError
from pixels_assets.lake.parts import PartWriter
from pixels_assets.lake.schema import QUARANTINE
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    with PartWriter(Path("lake"), QUARANTINE, "b", "shard") as writer:
        writer.append({"path": "/in", "status": "empty"})
except LakeError as error:
    print(error)
"""


def test_a_folder_without_permission_is_a_lake_error(tmp_path) -> None:
    (tmp_path / "lake").mkdir(mode=0o555)
    tmp_path.chmod(0o755)
    done = subprocess.run([sys.executable, "-c", READ_ONLY, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "make the folder writable" in done.stdout


def test_a_lake_below_a_file_is_a_lake_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LakeError, match="Not a directory"), PartWriter(tmp_path / "file", RAW_FILES, BATCH, "shard") as writer:
        writer.append({"path": "/in/a"})


MEMORY = """
import resource, sys
from pathlib import Path
from pixels_assets.lake.parts import PartWriter
from pixels_assets.lake.schema import THUMBNAILS
import random
noise = random.Random(1).randbytes(4_000_000)
with PartWriter(Path(sys.argv[1]), THUMBNAILS, "b", "shard", rows=10**6, size=10**10) as writer:
    for number in range(int(sys.argv[2])):
        start = number * 1009 % 3_900_000
        writer.append({"path": str(number), "original_path": "/in", "status": "ok", "thumbnail": noise[start:start + 50_000]})
    writer.finish()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
"""


def test_memory_does_not_grow_with_the_size_of_a_part(tmp_path) -> None:
    peaks = [
        int(subprocess.run([sys.executable, "-c", MEMORY, tmp_path, str(rows)], cwd=ROOT, capture_output=True, text=True, check=True).stdout)
        for rows in (1000, 6000)
    ]
    assert peaks[1] - peaks[0] < 64 * 1024**2  # the parts differ by 250 MB
