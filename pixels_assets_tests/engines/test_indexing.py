"""One pass over a shard: the rows of every status, what a later attempt goes on from, and what the log tells."""

import datetime as dt
import hashlib
import io
import os
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.data import get_testdata_file

from pixels_assets.engines.indexing import index_shard
from pixels_assets.engines.local import LocalEngine
from pixels_assets.engines.shards import OUTPUTS, IndexSpec, Shard, Tally, discard_attempt, plan_shards
from pixels_assets.errors import LakeError
from pixels_assets.intake.objects import Failure, SourceFile, Status, file_address, row_id, unescape_name
from pixels_assets.lake.schema import DICOM_METADATA, THUMBNAILS, UNZIPPED_ARCHIVES
from pixels_assets.settings import MIB, Limits, Settings

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
MR = Path(str(get_testdata_file("MR_small.dcm"))).read_bytes()
MTIME = 1_700_000_000_123_456_789


class Recorder:
    """A supervisor that keeps what it is told."""

    def __init__(self):
        self.told, self.segments, self.rows = [], [], 0

    def opening(self, number):
        self.told.append(number)

    def entering(self, path):
        self.told.append(path)

    def indexed(self):
        self.rows += 1

    def resting(self):
        self.told.append(None)

    def finished(self, segment):
        self.segments.append(segment)


class StoppedError(Exception):
    """The end of a worker process, as far as a shard is concerned."""


class StopsAfter(Recorder):
    """Ends after so many finished segments and then so many rows."""

    def __init__(self, segments, rows):
        super().__init__()
        self.left = segments, rows

    def indexed(self):
        super().indexed()
        segments, rows = self.left
        if len(self.segments) >= segments and self.rows >= rows:
            raise StoppedError


def written(folder, **files):
    """Files of known modification time, as listing gives them."""
    folder.mkdir(exist_ok=True)
    found = []
    for name, data in files.items():
        path = folder / name
        path.write_bytes(data)
        os.utime(path, ns=(MTIME, MTIME))
        found.append(SourceFile(file_address(path), len(data), MTIME, file_address(folder)))
    return found


def spec_of(tmp_path, attempt="attempt", outputs=OUTPUTS, **settings):
    lake = tmp_path / "lake"
    return IndexSpec(lake, "b", attempt, frozenset(table.name for table in outputs), Settings(lake=lake, **settings))


def index(files, spec, supervisor=None, **progress):
    """Rows of each table by path, and the supervisor."""
    supervisor = supervisor or Recorder()
    index_shard(Shard(0, tuple(files)), spec, supervisor, **progress)
    return rows_of(spec, supervisor.segments), supervisor


def rows_of(spec, segments):
    tables = {table.name: {} for table in OUTPUTS}
    for segment in segments:
        for part in segment.parts:
            for row in pq.read_table(spec.lake / part.table / part.path, partitioning=None).to_pylist():
                assert row["path"] not in tables[part.table]
                tables[part.table][row["path"]] = row
    return tables


def zip_of(members, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 2, 3, 4, 6)), data, method)
    return buffer.getvalue()


def tar_of(members, mode="w"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def damaged(data, old, new):
    assert old in data
    assert len(old) == len(new)
    return data.replace(old, new)


# ----------------------------------------------------------------------------------------------------------------------------- rows by status


@pytest.fixture(scope="module")
def every_status(tmp_path_factory):
    """Files of every status, what is expected of them, and their rows."""
    tmp_path = tmp_path_factory.mktemp("statuses")
    encrypted = zip_of({"m": b"secret"})
    local, central = encrypted.index(b"PK\x03\x04"), encrypted.index(b"PK\x01\x02")
    encrypted = bytearray(encrypted)
    encrypted[local + 6] |= 1
    encrypted[central + 8] |= 1
    files = written(
        tmp_path / "in",
        indexed=CT,
        archive=zip_of({"d/inner.dcm": MR}),
        not_dicom=b"plain text, and nothing else",
        empty=b"",
        corrupt=damaged(zip_of({"m": MR}, zipfile.ZIP_STORED), b"DICM", b"DICN"),
        encrypted=bytes(encrypted),
        limit_exceeded=zip_of({"m": bytes(3 * MIB)}),
        unreadable=b"gone",
        crashed=CT,
        timeout=MR,
    )
    by_name = {file.path.rpartition("/")[2]: file for file in files}
    Path(by_name["unreadable"].path).unlink()
    refused = {
        by_name["crashed"].path: Failure(Status.CRASHED, "signal_segv", "reading it ended the worker process"),
        by_name["timeout"].path: Failure(Status.TIMEOUT, "time_limit", "reading it made no progress"),
    }
    spec = spec_of(tmp_path, limits=Limits(max_member_bytes=2 * MIB))
    tables, supervisor = index(files, spec, refused=refused)
    return by_name, tables, supervisor


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("indexed", "indexed", None),
        ("archive", "archive", None),
        ("archive!/d/inner.dcm", "indexed", None),
        ("not_dicom", "not_dicom", "not_dicom"),
        ("empty", "empty", "empty"),
        ("corrupt", "archive", None),
        ("corrupt!/m", "corrupt", "crc_mismatch"),
        ("encrypted", "archive", None),
        ("encrypted!/m", "encrypted", "encrypted"),
        ("limit_exceeded", "archive", None),
        ("limit_exceeded!/m", "limit_exceeded", "member_too_large"),
        ("unreadable", "unreadable", "not_found"),
        ("crashed", "crashed", "signal_segv"),
        ("timeout", "timeout", "time_limit"),
    ],
)
def test_each_status_has_its_row(every_status, name, status, code):
    files, tables, _ = every_status
    name, bang, member = name.partition("!/")
    row = tables[DICOM_METADATA.name][files[name].path + bang + member]
    assert (row["status"], row["error_code"]) == (status, code)
    assert bool(row["error_message"]) == bool(code)
    assert row["depth"] == bool(bang)
    assert row["original_path"] == row["local_path"] == files[name].path


def test_no_object_is_without_a_row_and_tables_agree(every_status):
    files, tables, supervisor = every_status
    metadata, members, thumbnails = (tables[table.name] for table in (DICOM_METADATA, UNZIPPED_ARCHIVES, THUMBNAILS))
    assert {row["original_path"] for row in metadata.values()} == {file.path for file in files.values()}
    assert thumbnails.keys() == metadata.keys()
    assert members.keys() == {path for path, row in metadata.items() if row["depth"]}
    for path, row in members.items():
        same = row.keys() & metadata[path].keys()
        assert {"status", "error_code", "length", "modificationTime"} <= same
        assert {name: row[name] for name in same} == {name: metadata[path][name] for name in same}
    assert {row["status"] for row in metadata.values()} == set(Status)
    assert supervisor.rows == len(metadata)


def test_a_row_holds_what_the_object_says_and_what_its_bytes_are(every_status):
    files, tables, _ = every_status
    row = tables[DICOM_METADATA.name][files["indexed"].path]
    dataset = pydicom.dcmread(io.BytesIO(CT))
    assert row["content_hash"] == hashlib.sha256(CT).hexdigest()
    assert row["length"] == len(CT)
    assert row["modificationTime"] == dt.datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=dt.UTC)
    assert row["file_type"] == "dicom"
    assert row["PatientID"] == dataset.PatientID
    assert row["Rows"] == dataset.Rows
    assert row["TransferSyntaxUID"] == dataset.file_meta.TransferSyntaxUID
    assert CT.startswith(row["header"])
    thumbnail = tables[THUMBNAILS.name][files["indexed"].path]
    assert (thumbnail["status"], thumbnail["error_code"], thumbnail["width"], thumbnail["height"]) == ("ok", None, 128, 128)


def test_pixels_behind_a_url_are_told_from_none(tmp_path):
    files = {}
    for name, syntax in {"none": "1.2.840.10008.1.2.1", "url": "1.2.840.10008.1.2.4.94"}.items():
        dataset = pydicom.dcmread(io.BytesIO(CT))
        del dataset.PixelData
        dataset.PixelDataProviderURL = "https://127.0.0.1/frames"
        dataset.file_meta.TransferSyntaxUID = syntax
        buffer = io.BytesIO()
        dataset.save_as(buffer, implicit_vr=False, little_endian=True)
        files[name] = buffer.getvalue()
    rows, _ = index(written(tmp_path / "in", **files), spec_of(tmp_path))
    codes = {path.rpartition("/")[2]: row["error_code"] for path, row in rows[THUMBNAILS.name].items()}
    assert codes == {"none": "no_pixel_data", "url": "referenced_pixels"}


def test_what_was_not_read_claims_nothing(every_status):
    files, tables, _ = every_status
    for name in ("unreadable", "crashed", "timeout"):
        row = tables[DICOM_METADATA.name][files[name].path]
        assert row["content_hash"] is row["meta"] is row["header"] is row["SOPInstanceUID"] is None
        thumbnail = tables[THUMBNAILS.name][files[name].path]
        assert (thumbnail["status"], thumbnail["error_code"]) == ("none", row["error_code"])


def test_counts_are_those_of_the_rows(every_status):
    files, tables, supervisor = every_status
    tally = Tally()
    for segment in supervisor.segments:
        tally.add(segment.tally)
    rows = tables[DICOM_METADATA.name].values()
    assert tally.objects == len(rows)
    assert tally.bytes == sum(file.length for file in files.values())
    for status in Status:
        assert tally.statuses[status.value] == sum(row["status"] == status.value for row in rows)
    assert tally.codes == {row["error_code"]: sum(other["error_code"] == row["error_code"] for other in rows) for row in rows if row["error_code"]}
    assert tally.thumbnails["ok"] == sum(row["status"] == "ok" for row in tables[THUMBNAILS.name].values()) == 2


def test_the_bytes_of_refused_objects_are_not_touched_and_every_other_is_announced(every_status):
    files, tables, supervisor = every_status
    assert set(tables[DICOM_METADATA.name]) == {told for told in supervisor.told if isinstance(told, str)}
    assert [told for told in supervisor.told if isinstance(told, int)] == list(range(len(files)))
    assert supervisor.told[-1] is None


def test_only_the_tables_that_were_asked_for_are_written(tmp_path):
    files = written(tmp_path / "in", a=CT, b=zip_of({"m": MR}))
    tables, supervisor = index(files, spec_of(tmp_path, outputs=[THUMBNAILS], extract_to=tmp_path / "out"))
    assert {name for name, rows in tables.items() if rows} == {"thumbnails"}
    assert not (tmp_path / "out").exists()
    tables, supervisor = index(files, spec_of(tmp_path, outputs=[DICOM_METADATA]))
    assert {name for name, rows in tables.items() if rows} == {"dicom_metadata"}
    assert not supervisor.segments[0].tally.thumbnails


def test_a_member_whose_name_is_no_text_is_extracted_to_where_its_row_says(tmp_path):
    data = zip_of({"caf~": CT}).replace(b"caf~", b"caf\xe9")
    flagged = data.replace(b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\0\x08").replace(b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\0\x08")
    (file,) = written(tmp_path / "in", a=flagged)
    tables, _ = index([file], spec_of(tmp_path, extract_to=tmp_path / "out"))
    row = tables[DICOM_METADATA.name][f"{file.path}!/caf\\xe9"]
    assert row["local_path"].endswith("/caf\\xe9")
    assert Path(os.fsdecode(unescape_name(row["local_path"]))).read_bytes() == CT


def test_an_exception_that_bytes_cause_costs_their_object_only_however_many_there_are(tmp_path):
    files = written(tmp_path / "in", **{f"f{number}": CT for number in range(150)})
    odd = Failure("unreadable", "odd", "A status that is none.")  # so that code behind the reading of bytes raises
    files = [SourceFile(file.path, file.length, file.mtime_ns, file.source, failure=odd if number % 3 else None) for number, file in enumerate(files)]
    tables, _ = index(files, spec_of(tmp_path))
    rows = tables[DICOM_METADATA.name]
    assert [rows[file.path]["error_code"] for file in files] == ["exception" if file.failure else None for file in files]
    assert re.fullmatch(r"reading it raised AttributeError at indexing\.py:\d+", rows[files[1].path]["error_message"])


# --------------------------------------------------------------------------------------------------------------------------- stretches of a shard


@pytest.fixture(scope="module")
def thousands():
    """Members of three stretches, some in an archive within."""
    inner = tar_of({f"i/{number}": f"inner {number}".encode() for number in range(1500)} | {"ct": CT}, "w:gz")
    first = {f"d/{number}": f"text {number}".encode() for number in range(1800)}
    last = {f"e/{number}": f"more {number}".encode() for number in range(1200)}
    return zip_of(first | {"in.tar.gz": inner, "D/0": b"only case is different"} | last | {"mr": MR}, zipfile.ZIP_STORED)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, thousands):
    """Files, where their members were extracted to by an attempt that nothing happened to, its rows, and what it extracted."""
    folder = tmp_path_factory.mktemp("undisturbed")
    files, out = written(folder / "in", a=CT, b=thousands, c=MR), folder / "out"
    whole, supervisor = index(files, spec_of(folder, extract_to=out))
    assert len(supervisor.segments) == 3
    kept = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(kept) == 1800 + 1501 + 1201 + 1
    return files, out, whole, kept


@pytest.mark.parametrize(("segments", "rows"), [(0, 100), pytest.param(1, 2001, marks=pytest.mark.long), (1, 3000), (2, 4400)])
def test_an_attempt_goes_on_where_the_last_finished_stretch_ended(tmp_path, undisturbed, segments, rows):
    files, out, whole, kept = undisturbed
    again = tmp_path / "again"
    spec = spec_of(tmp_path, extract_to=again)
    first = StopsAfter(segments, rows)
    with pytest.raises(StoppedError):
        index(files, spec, first)
    assert not list(spec.lake.rglob(".tmp-*"))
    progress = {"files_done": first.segments[-1].files_done, "after": first.segments[-1].after} if first.segments else {}
    assert not segments or progress["after"].startswith(files[1].path + "!/")
    second = Recorder()
    index(files, spec, second, **progress)
    resumed = rows_of(spec, first.segments + second.segments)
    for name, table in whole.items():
        assert resumed[name].keys() == table.keys()
        for path, row in table.items():
            expected = row | ({"local_path": row["local_path"].replace(f"{out}/", f"{again}/")} if "local_path" in row else {})
            assert resumed[name][path] == expected
    assert {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()} == kept


def test_an_archive_that_changed_between_attempts_still_has_its_own_row(tmp_path, thousands):
    files = written(tmp_path / "in", a=thousands, b=MR)
    spec = spec_of(tmp_path)
    first = StopsAfter(1, 2100)
    with pytest.raises(StoppedError):
        index(files, spec, first)
    Path(files[0].path).write_bytes(zip_of({"another": CT}))
    second = Recorder()
    index(files, spec, second, files_done=first.segments[-1].files_done, after=first.segments[-1].after)
    rows = rows_of(spec, first.segments + second.segments)[DICOM_METADATA.name]
    assert len(rows) == 2000 + 2
    assert "changed_since_listing" in rows[files[0].path]["warnings"]
    assert rows[files[1].path]["status"] == "indexed"


def test_a_refused_member_is_not_extracted(tmp_path):
    files = written(tmp_path / "in", a=tar_of({"x": CT, "y": MR}))
    refused = {f"{files[0].path}!/x": Failure(Status.CRASHED, "signal_segv", "Ended.")}
    tables, _ = index(files, spec_of(tmp_path, extract_to=tmp_path / "out"), refused=refused)
    rows = tables[DICOM_METADATA.name]
    assert rows[f"{files[0].path}!/x"]["local_path"] == files[0].path
    (extracted,) = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert str(extracted) == rows[f"{files[0].path}!/y"]["local_path"]
    assert extracted.read_bytes() == MR


def test_a_lake_that_cannot_be_written_is_an_error_and_leaves_nothing(tmp_path):
    files = written(tmp_path / "in", a=CT)
    spec = spec_of(tmp_path)
    spec.lake.mkdir()
    (spec.lake / "thumbnails").write_bytes(b"a file where a folder should be")
    with pytest.raises(LakeError):
        index(files, spec)
    assert not list(spec.lake.rglob(".tmp-*"))
    discard_attempt(spec)
    assert [path.name for path in spec.lake.rglob("*") if path.is_file()] == ["thumbnails"]


def test_shards_keep_all_files_in_order_within_their_bounds():
    files = [SourceFile(f"/f{number}", (number * 7 % 13) * MIB, 0, "/") for number in range(200)]
    shards = plan_shards(files, max_files=9, max_bytes=20 * MIB)
    assert [file for shard in shards for file in shard.files] == files
    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert all(len(shard.files) <= 9 and (shard.size <= 20 * MIB or len(shard.files) == 1) for shard in shards)
    assert plan_shards([]) == []


# ----------------------------------------------------------------------------------------------------------------------------------------- the log


def texts(dataset):
    """Values of a data set that are long enough to be recognized."""
    for element in dataset.iterall():
        values = element.value if isinstance(element.value, list | pydicom.multival.MultiValue) else [element.value]
        yield from (str(value) for value in values if isinstance(value, str | pydicom.valuerep.PersonName) and len(str(value)) >= 4)


def test_the_debug_log_tells_what_became_of_each_object_and_no_name_or_value(tmp_path, capfd):
    dataset = pydicom.dcmread(io.BytesIO(CT))
    dataset.PatientName, dataset.PatientID, dataset.AccessionNumber = "Mustermann^Erika", "MRN-4711-0815", "ACC 99 X"
    dataset.PatientAge = "042Y"
    dataset.WindowCenter = 1
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    jpeg = Path(str(get_testdata_file("SC_rgb_jpeg_dcmd.dcm"))).read_bytes()
    header = bytearray(tar_of({"Mustermann^Erika/secretmember.dcm": MR}))
    header[512 + 100 : 512 + 300] = os.urandom(200)
    complained = damaged(buffer.getvalue(), b"042Y", b"99X9")  # pydicom warns of it, value and all
    files = written(
        tmp_path / "Mustermann Erika",
        **{
            "visible-name.dcm": complained,
            "second-name.dcm": jpeg,
            "third-name.dcm": damaged(CT, b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"),
            "fourth-name.zip": zip_of({"Mustermann^Erika/secretmember.dcm": buffer.getvalue(), "Mustermann^Erika/othermember.txt": b"hidden words"}),
            "fifth-name.tar": bytes(header),
            "sixth-name": MR[:3000],
            "seventh-name": b"hidden words" * 10,
        },
    )
    spec = spec_of(tmp_path, log_level="DEBUG", extract_to=tmp_path / "Mustermann out")
    capfd.readouterr()
    with LocalEngine(1) as engine:
        outcome = engine.run([Shard(0, tuple(files))], spec)
    log = capfd.readouterr().err
    rows = [
        row for part in outcome.parts["dicom_metadata"] for row in pq.read_table(spec.lake / part.table / part.path, partitioning=None).to_pylist()
    ]
    assert len(rows) >= len(files) + 3
    for row in rows:
        (line,) = [line for line in log.splitlines() if f" object {row_id(row['path'])}: " in line]
        assert f": {row['status']}" in line
        assert row["error_code"] is None or f"({row['error_code']})" in line
        assert re.search(r", \d+\.\d ms$", line)
    known = {str(tmp_path), tmp_path.name, "Mustermann", "hidden words", "secretmember", "othermember", "-name", "99X9"}
    for data in (buffer.getvalue(), jpeg, CT, MR):
        known |= set(texts(pydicom.dcmread(io.BytesIO(data))))
    assert len(known) > 80
    assert [value for value in known if value in log] == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_indexing_needs_neither_dagster_nor_delta_nor_polars(tmp_path):
    files = written(tmp_path / "in", a=CT)
    with LocalEngine(1) as engine:
        engine.run([Shard(0, tuple(files))], spec_of(tmp_path))
        (worker,) = engine._pool
        maps = Path(f"/proc/{worker.process.pid}/maps").read_text()
    assert "pyarrow" in maps
    assert not re.search(r"deltalake|polars|dagster|pandas", maps)
