"""SQL over the lake: helpers, attached tables, what is refused, and results of any size."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pydicom
import pydicom.data
import pytest
from pydicom.sequence import Sequence as Items

from pixels_assets.cli import main
from pixels_assets.dicom.paths import json_path
from pixels_assets.errors import UsageError
from pixels_assets.lake.query import scan
from pixels_assets.lake.schema import TABLES
from pixels_assets.lake.sql import as_text, connect, query, write_file, write_stream

ROOT = Path(__file__).parents[2]
NAME = "Yamada^Tarou=山田^太郎=やまだ^たろう"


def dicom(name, **changes):
    data = pydicom.dcmread(str(pydicom.data.get_testdata_file(name)))
    for keyword, value in changes.items():
        setattr(data, keyword, value)
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


def item(**values):
    made = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


@pytest.fixture(scope="module")
def full(tmp_path_factory, new_house):
    house = new_house(tmp_path_factory.mktemp("sql"))
    house.write("ct", dicom("CT_small.dcm", PatientAge="023Y", PatientSex="F"))
    series = Items([item(SeriesInstanceUID="1.2.3"), item(SeriesInstanceUID="1.2.4")])
    house.write(
        "mr",
        dicom("MR_small.dcm", ReferencedSeriesSequence=series, PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう", SpecificCharacterSet="ISO_IR 192"),
    )
    house.write("text", b"hello")
    house.ingest()
    return house


def ask(house, statement, *parameters, **attached):
    return query(connect(house.lake, attached), statement, parameters).fetchall()


# --- helpers


@pytest.mark.parametrize(
    ("name", "modality", "found"),
    [
        ("Modality", "CT", "CT"),
        ("00080060", "CT", "CT"),
        ("ImageType[3]", "CT", "AXIAL"),
        ("ImageType[9]", "CT", None),
        ("Rows", "CT", "128"),
        ("PatientName", "CT", "CompressedSamples^CT1"),
        ("PatientName", "MR", NAME),
        ("ReferencedSeriesSequence.SeriesInstanceUID", "MR", "1.2.3"),
        ("ReferencedSeriesSequence[2].SeriesInstanceUID", "MR", "1.2.4"),
        ("ReferencedSeriesSequence[3].SeriesInstanceUID", "MR", None),
        ("ReferencedSeriesSequence.SeriesInstanceUID", "CT", None),
        ("EchoTime", "CT", None),
        ("00091002", "MR", None),
        ("00091002", "CT", "CT01"),
    ],
)
def test_a_tag_is_its_first_value_as_text(full, name, modality, found) -> None:
    assert ask(full, f"select tag(meta, '{name}') from object_catalog where Modality = ?", modality) == [(found,)]


def test_tags_are_all_values(full) -> None:
    ((uids, names, types, nothing),) = ask(
        full,
        "select tags(meta, 'ReferencedSeriesSequence.SeriesInstanceUID'), tags(meta, 'PatientName'), tags(meta, 'ImageType'), tags(meta, 'KVP')"
        " from object_catalog where Modality = 'MR'",
    )
    assert (uids, names, nothing) == (["1.2.3", "1.2.4"], [NAME], [])
    assert types == list(pydicom.dcmread(full.source / "mr").ImageType)


def test_a_tag_of_a_sequence_is_its_item_as_json(full) -> None:
    ((text,),) = ask(full, "select tag(meta, 'ReferencedSeriesSequence') from object_catalog where Modality = 'MR'")
    assert json.loads(text) == {"0020000E": {"vr": "UI", "Value": ["1.2.3"]}}


def test_tags_equal_the_typed_columns(full) -> None:
    same = [column.name for column in TABLES["object_catalog"].columns if column.name in {"PatientID", "StudyInstanceUID", "Modality", "PatientName"}]
    assert len(same) == 4
    for name in same:
        assert ask(full, f"select count(*) from object_catalog where {name} is distinct from tag(meta, '{name}')") == [(0,)]


def test_a_name_is_translated_once_for_a_statement_not_for_each_row(full) -> None:
    json_path.cache_clear()
    ask(full, "select tag(meta, 'Modality') from object_catalog, range(10000)")
    assert sum(json_path.cache_info()[:2]) < 100


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("dicom_date('20240229')::text", "2024-02-29"),
        ("dicom_date('2024.02.29')::text", "2024-02-29"),
        ("dicom_date(' 20240229 ')::text", "2024-02-29"),
        ("dicom_date('20230229')", None),
        ("dicom_date('')", None),
        ("dicom_date(null)", None),
        ("dicom_time('070907')::text", "07:09:07"),
        ("dicom_time('070907.5')::text", "07:09:07.5"),
        ("dicom_time('0709')::text", "07:09:00"),
        ("dicom_time('07')::text", "07:00:00"),
        ("dicom_time('07:09:07')::text", "07:09:07"),
        ("dicom_time('2500')", None),
        ("dicom_time('7')", None),
        ("dicom_time('')", None),
        ("age_years('025Y')", 25.0),
        ("age_years('018M')", 1.5),
        ("age_years('000D')", 0.0),
        ("round(age_years('052W'), 2)", 1.0),
        ("age_years('25')", None),
        ("age_years('')", None),
        ("age_years(null)", None),
        ("age_years(date '2000-02-29', date '2020-02-28')", 19.0),
        ("age_years(date '2000-02-29', date '2020-02-29')", 20.0),
        ("age_years(date '2001-01-01', date '2000-01-01')", None),
        ("age_years('021Y', date '2000-01-01', date '2020-01-01')", 21.0),
        ("age_years(null, date '2000-01-01', date '2020-01-01')", 20.0),
        ("age_years('x', date '2000-01-01', null)", None),
    ],
)
def test_dates_times_and_ages(full, expression, found) -> None:
    assert ask(full, f"select {expression}") == [(found,)]


# --- what a statement sees


def test_only_the_parts_that_a_filter_leaves_are_read(full) -> None:
    ((_, plan),) = ask(full, "explain select path from object_catalog where SOPInstanceUID = '1.2'")
    assert "SOPInstanceUID" in plan.partition("Filters")[2]


def test_a_connection_goes_on_to_see_the_lake_as_it_was(tmp_path, new_house) -> None:
    house = new_house(tmp_path)
    house.write("ct", dicom("CT_small.dcm"))
    house.ingest()
    before = connect(house.lake)
    house.write("mr", dicom("MR_small.dcm"))
    house.ingest()
    statement = "select Modality from object_catalog order by 1"
    assert query(before, statement).fetchall() == [("CT",)]
    assert ask(house, statement) == [("CT",), ("MR",)]


def test_a_table_of_the_users_own_is_joined(full, tmp_path) -> None:
    (patient,) = scan(full.lake, "object_catalog").filter(pl.col("Modality") == "CT").select("PatientID").collect()["PatientID"]
    frame = pl.DataFrame({"PatientID": [patient, "other"], "diagnosis": ["flu", "none"]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_csv(tmp_path / "it's.csv")
    frame.write_ndjson(tmp_path / "a.jsonl")
    (tmp_path / "folder").mkdir()
    frame.write_parquet(tmp_path / "folder" / "one.parquet")
    frame.write_delta(tmp_path / "delta")
    for value in (*(str(tmp_path / name) for name in ("a.parquet", "it's.csv", "a.jsonl", "folder", "delta")), frame, frame.to_arrow()):
        assert ask(full, "select Modality, diagnosis from object_catalog join ehr using (PatientID)", ehr=value) == [("CT", "flu")]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("object_catalog", "x.csv", "the lake has a table of that name"),
        ("1x", "x.csv", "use letters, digits and underscores"),
        ("x; drop", "x.csv", "use letters, digits and underscores"),
        ("ehr", "/none/x.csv", "it does not exist"),
        ("ehr", __file__, "name a file that ends in .csv"),
    ],
)
def test_what_cannot_be_attached_is_refused(full, name, value, message) -> None:
    with pytest.raises(UsageError, match=message):
        connect(full.lake, {name: value})


# --- what is refused


@pytest.mark.parametrize(
    "statement",
    [
        "delete from object_catalog",
        "insert into raw_files select * from raw_files",
        "update object_catalog set status = 'x'; select 1",
        "copy (select 1) to '{folder}/x.csv'",
        "explain analyze copy (select 1) to '{folder}/x.csv'",
        "explain (format json) copy (select 1) to '{folder}/x.csv'",
        "attach '{folder}/x.db'",
        "export database '{folder}/x'",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "reset lock_configuration",
        "call duckdb_views()",
        "select * from read_text('{folder}/mine.csv')",
        "select * from read_csv('{folder}/mine.csv')",
        "from '{folder}/mine.csv'",
        "select * from glob('{folder}/*')",
        "select * from read_parquet('{lake}/object_catalog/**/*.parquet')",
        "create table x as from read_csv('{folder}/mine.csv'); from x",
    ],
)
def test_nothing_is_written_and_no_other_file_is_read(full, statement, tmp_path) -> None:
    (tmp_path / "mine.csv").write_text("a\n1\n")
    before = {path: path.stat().st_mtime_ns for folder in (full.lake, tmp_path) for path in folder.rglob("*")}
    with pytest.raises(UsageError):
        ask(full, statement.format(folder=tmp_path, lake=full.lake))
    assert {path: path.stat().st_mtime_ns for folder in (full.lake, tmp_path) for path in folder.rglob("*")} == before


def test_views_and_macros_of_ones_own_are_fine(full) -> None:
    assert ask(full, "create view v as select 1 as x; create macro twice(a) as 2 * a; select twice(x) from v; -- the end") == [(2,)]
    assert len(ask(full, "pivot object_catalog on Modality using count(*) group by status")) == 2
    assert ask(full, "explain select 1")
    assert ask(full, "explain analyze select count(*) from object_catalog")


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("select * from object_catlog", "there is no table 'object_catlog'; did you mean object_catalog"),
        ("select * from qqq", "there is no table 'qqq'; the tables are "),
        ("select Modalty from object_catalog", '(?s)"Modalty" not found.*"Modality"'),
        ("select c.Modalty from object_catalog c", "there is no column 'Modalty'; did you mean Modality"),
        ("select tagg(meta, 'Modality') from object_catalog", '(?s)tagg does not exist.*Did you mean "tag'),
        ("select tag(meta, 'Modalty') from object_catalog", "^there is no attribute 'Modalty'; did you mean Modality"),
        ("select tag(meta, null) from object_catalog", "one name between quotes"),
        ("select 1 +", "(?i)syntax error"),
        ("", "there is no statement"),
        (" ; -- nothing", "there is no statement"),
        ("create table x(a int)", "the last statement gives no rows"),
    ],
)
def test_mistakes_are_answered_with_what_is_near(full, statement, message) -> None:
    with pytest.raises(UsageError, match=message):
        ask(full, statement)


# --- results


def test_a_result_is_written_in_each_format(full, tmp_path, monkeypatch) -> None:
    statement = "select path, Modality, ImageType, length from object_catalog order by path"
    rows = scan(full.lake, "object_catalog").select("path", "Modality", "ImageType", "length").sort("path").collect()
    for kind in ("csv", "json", "parquet"):
        stream = io.BytesIO()
        write_stream(full.lake, statement, stream, kind)
        write_file(full.lake, statement, tmp_path / f"out.{kind}", kind)
        assert (tmp_path / f"out.{kind}").read_bytes() == stream.getvalue() or kind == "parquet"
        (tmp_path / f"stream.{kind}").write_bytes(stream.getvalue())
    assert pl.read_parquet(tmp_path / "out.parquet").equals(rows)
    assert pl.read_parquet(tmp_path / "stream.parquet").equals(rows)
    assert json.loads((tmp_path / "out.json").read_text()) == rows.to_dicts()
    assert pl.read_csv(tmp_path / "out.csv").select("path", "Modality", "length").equals(rows.select("path", "Modality", "length"))
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{kind}" for name in ("out", "stream") for kind in ("csv", "json", "parquet")}


def test_a_result_without_rows_is_still_a_file(full, tmp_path) -> None:
    for kind in ("csv", "json", "parquet"):
        write_file(full.lake, "select path from object_catalog where false", tmp_path / f"x.{kind}", kind)
    assert (tmp_path / "x.csv").read_text() == "path\n"
    assert json.loads((tmp_path / "x.json").read_text()) == []
    assert pl.read_parquet(tmp_path / "x.parquet").schema == {"path": pl.String}


def test_a_result_cannot_go_into_the_lake_and_a_failed_one_leaves_nothing(full, tmp_path) -> None:
    for target in (full.lake / "x.csv", full.lake / "object_catalog" / "x.csv", tmp_path / "none" / "x.csv", tmp_path):
        with pytest.raises(UsageError, match=r"lies in the lake|cannot be written"):
            write_file(full.lake, "select 1", target, "csv")
    (tmp_path / "old.csv").write_text("old")
    with pytest.raises(UsageError, match="Could not convert"):
        write_file(full.lake, "select path::int from object_catalog", tmp_path / "old.csv", "csv")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.csv", "old")]


def test_a_pipe_or_a_link_gets_the_result_and_stays_what_it_is(full, tmp_path) -> None:
    (tmp_path / "file.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("file.csv")
    write_file(full.lake, "select 1 as a", tmp_path / "link.csv", "csv")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "file.csv").read_text() == "a\n1\n"
    os.mkfifo(pipe := tmp_path / "pipe")
    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(pipe.read_text)
        write_file(full.lake, "select 1 as a", pipe, "csv")
        assert reading.result(10) == "a\n1\n"
    assert pipe.is_fifo()
    (tmp_path / "into.csv").symlink_to(full.lake / "x.csv")
    with pytest.raises(UsageError, match="lies in the lake"):
        write_file(full.lake, "select 1", tmp_path / "into.csv", "csv")
    assert {path.name for path in tmp_path.iterdir()} == {"file.csv", "link.csv", "pipe", "into.csv"}


@pytest.mark.skipif(signal.getsignal(signal.SIGINT) is signal.SIG_IGN, reason="a job in the background hears no Ctrl-C")
@pytest.mark.parametrize("kind", ["csv", "json"])
@pytest.mark.parametrize("to_file", [True, False])
def test_an_interrupt_ends_a_statement_that_writes(full, tmp_path, kind, to_file) -> None:
    statement = "select * from range(100_000_000_000)"

    def interrupt():
        while not (to_file and any(path.stat().st_size for path in tmp_path.iterdir())) and not stream.tell():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    with open(os.devnull, "wb") as stream:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            write_file(full.lake, statement, tmp_path / "x", kind) if to_file else write_stream(full.lake, statement, stream, kind)
    assert not list(tmp_path.iterdir())


def test_a_table_for_people_says_that_there_is_more(full) -> None:
    assert "CompressedSamples^CT1" in as_text(full.lake, "select PatientName from object_catalog")
    text = as_text(full.lake, "select range as number from range(1000)")
    assert "there are more than these 200 rows" in text
    assert "│    199 │" in text
    assert "│    200 │" not in text


def test_large_results_take_little_memory(full) -> None:
    script = """
import resource, sys
from pathlib import Path
from pixels_assets.lake.sql import write_stream
def peak(rows):
    write_stream(Path(sys.argv[1]), f"select range, repeat('x', 1000) as text from range({rows})", open('/dev/null', 'wb'), 'csv')
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = peak(1_000)
print((peak(400_000) - small) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script, str(full.lake)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 200  # MiB, of a result of 400 MB


def test_a_reader_that_goes_away_ends_the_query(full) -> None:
    reading, writing = os.pipe()
    threading.Thread(target=lambda: (os.read(reading, 10), os.close(reading))).start()
    with open(writing, "wb", buffering=0) as stream, pytest.raises(BrokenPipeError):
        write_stream(full.lake, "select repeat('x', 1000) from object_catalog, range(10000000)", stream, "csv")


# --- the command


@pytest.fixture
def sql(full, capsysbinary, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)

    def run(*arguments):
        code = main(["sql", *map(str, arguments), "--lake", str(full.lake)])
        output, messages = capsysbinary.readouterr()
        return code, output.decode(), messages.decode()

    return run


def test_the_command_prints_results(sql, tmp_path, monkeypatch) -> None:
    statement = "select Modality, count(*) as n from object_catalog where status = 'indexed' group by 1 order by 1"
    assert sql(statement, "--format", "csv") == (0, "Modality,n\nCT,1\nMR,1\n", "")
    assert json.loads(sql(statement, "--format", "json")[1]) == [{"Modality": "CT", "n": 1}, {"Modality": "MR", "n": 1}]
    code, output, _ = sql(statement)
    assert code == 0
    assert "│ CT       │     1 │" in output
    (tmp_path / "q.sql").write_text(f"{statement};\n")
    assert sql("-f", tmp_path / "q.sql", "--format", "csv")[1] == "Modality,n\nCT,1\nMR,1\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(statement))
    assert sql("--format", "csv")[1] == "Modality,n\nCT,1\nMR,1\n"
    assert sql(statement, "-o", tmp_path / "r.parquet") == (0, "", "")
    assert pl.read_parquet(tmp_path / "r.parquet").rows() == [("CT", 1), ("MR", 1)]
    assert sql(statement, "-o", tmp_path / "r.txt") == (0, "", "")
    assert (tmp_path / "r.txt").read_text() == output


def test_a_full_disk_at_the_other_end_is_said_in_a_line(full, capfd, monkeypatch) -> None:
    for kind in ("table", "csv"):
        with open("/dev/full", "w") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            assert main(["sql", "select 1", "--format", kind, "--lake", str(full.lake)]) == 1
        assert capfd.readouterr().err == "pixels: there is no room for the output; make some, or send it somewhere else\n"


def test_the_command_attaches_files(sql, tmp_path) -> None:
    (tmp_path / "p.csv").write_text("Modality,kind\nCT,x-ray\n")
    statement = "select kind from object_catalog join kinds using (Modality)"
    assert sql(statement, "--attach", f"kinds={tmp_path}/p.csv", "--format", "csv") == (0, "kind\nx-ray\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["select * from object_catlog"], "did you mean object_catalog"),
        (["select Modalty from object_catalog", "--format", "csv"], '"Modality"'),
        (["select path::int from object_catalog", "--format", "json"], "Could not convert"),
        (["select 1", "-f", "x.sql"], "not both"),
        (["-f", "/none/x.sql"], "cannot be read from /none/x.sql"),
        (["select 1", "-o", "x.xyz"], "add --format"),
        (["select 1", "--attach", "ehr"], "is not NAME=FILE"),
        (["select 1", "--attach", "ehr=/none/x.csv"], "does not exist"),
    ],
)
def test_mistakes_end_with_2_and_a_line(sql, arguments, message) -> None:
    code, output, messages = sql(*arguments)
    assert (code, output) == (2, "")
    assert message in messages
    assert "Traceback" not in messages


def test_a_terminal_gets_no_parquet_and_what_its_encoding_lacks_is_written_out(full, monkeypatch, capsys) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(screen, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", screen)
    for command in (["sql", "select 1"], ["tags"]):
        assert main([*command, "--format", "parquet", "--lake", str(full.lake)]) == 2
        assert "a terminal does not show Parquet" in capsys.readouterr().err
    statement = os.fsencode("select 'é' as letter").decode("ascii", "surrogateescape")  # as Python reads it in such a locale
    assert main(["sql", statement, "--lake", str(full.lake)]) == 0
    screen.flush()
    assert rb"\xe9" in screen.buffer.getvalue()
