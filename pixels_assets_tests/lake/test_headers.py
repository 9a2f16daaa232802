"""The nested data set `headers`: types of the dictionary, fields that widen, parts that are replaced, engines that read it."""

import base64
import datetime as dt
import io
import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pydicom
import pydicom.data
import pytest
from pydicom.sequence import Sequence as Items

from pixels_assets.dicom.json_reading import LARGE_BYTES, read_json
from pixels_assets.errors import LakeError
from pixels_assets.lake.describe import bigquery_schema, schema_lines, seen_tags
from pixels_assets.lake.headers import MANIFEST, MAX_DEPTH, MisfitError, Record, headers_dataset, load, scan_headers, to_row, update_headers
from pixels_assets.lake.query import scan
from pixels_assets.lake.sql import connect, query


def item(**values):
    made = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def dicom(name="CT_small.dcm", **changes):
    data = pydicom.dcmread(str(pydicom.data.get_testdata_file(name)))
    for keyword, value in changes.items():
        setattr(data, keyword, value)
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


def element(vr, *values):
    return {"vr": vr, "Value": list(values)}


def row_of(record=None, **data):
    """A row of elements given as x00100010=element(...)."""
    record = record if record is not None else Record()
    return to_row({tag[1:]: value for tag, value in data.items()}, record)


# --- one data set


@pytest.mark.parametrize(
    ("tag", "value", "name", "found", "kind"),
    [
        ("00080060", element("CS", "CT"), "Modality", "CT", pa.string()),
        ("00080008", element("CS", "ORIGINAL"), "ImageType", ["ORIGINAL"], pa.list_(pa.string())),
        ("00080008", {"vr": "CS"}, "ImageType", [], pa.list_(pa.string())),
        ("00080060", {"vr": "CS"}, "Modality", None, pa.string()),
        ("00280010", element("US", 512), "Rows", 512, pa.int64()),
        ("00200013", element("IS", 7.0), "InstanceNumber", 7, pa.int64()),
        ("00180050", element("DS", 1.25), "SliceThickness", 1.25, pa.float64()),
        ("00180050", element("DS", 1), "SliceThickness", 1.0, pa.float64()),
        ("00280030", element("DS", 0.5, None), "PixelSpacing", [0.5, None], pa.list_(pa.float64())),
        ("00080020", element("DA", "20240229"), "StudyDate", dt.date(2024, 2, 29), pa.date32()),
        ("00080020", element("DA", "2024.02.29"), "StudyDate", dt.date(2024, 2, 29), pa.date32()),
        ("00080020", element("DA", ""), "StudyDate", None, pa.date32()),
        ("00080030", element("TM", "070907.5"), "StudyTime", "070907.5", pa.string()),
        ("00209165", element("AT", "00200013"), "DimensionIndexPointer", "00200013", pa.string()),
        ("00080060", element("CS", "CT", "MR"), "Modality", "CT\\MR", pa.string()),
        ("00081030", element("DS", 5.0), "StudyDescription", "5", pa.string()),
    ],
)
def test_types_follow_from_the_dictionary(tag, value, name, found, kind) -> None:
    record = Record()
    assert to_row({tag: value}, record) == {name: found}
    (only,) = record.arrow
    assert (only.name, only.type) == (name, kind)


def test_names_are_structs_of_their_groups() -> None:
    nobody = {"Alphabetic": None, "Ideographic": None, "Phonetic": None}
    assert row_of(x00100010=element("PN", {"Alphabetic": "A^B", "Phonetic": "C"})) == {"PatientName": nobody | {"Alphabetic": "A^B", "Phonetic": "C"}}
    assert row_of(x00100010={"vr": "PN"}) == {"PatientName": None}
    assert row_of(x00081050=element("PN", {"Alphabetic": "A"}, None)) == {"PerformingPhysicianName": [nobody | {"Alphabetic": "A"}, None]}
    two = row_of(x00100010=element("PN", {"Alphabetic": "A"}, {"Alphabetic": "B"}))
    assert two == {"PatientName": nobody | {"Alphabetic": "A\\B"}}


def test_sequences_are_lists_of_structs_at_any_depth() -> None:
    record = Record()
    data = {"00081115": element("SQ", {"0020000E": element("UI", "1.2"), "00081199": element("SQ", {"00081155": element("UI", "1.3")}, {})}, {})}
    assert to_row(data, record) == {
        "ReferencedSeriesSequence": [{"SeriesInstanceUID": "1.2", "ReferencedSOPSequence": [{"ReferencedSOPInstanceUID": "1.3"}, {}]}, {}]
    }
    uid = pa.list_(pa.struct([("ReferencedSOPInstanceUID", pa.string())]))
    assert record.arrow[0].type == pa.list_(pa.struct([("ReferencedSOPSequence", uid), ("SeriesInstanceUID", pa.string())]))
    assert Record.from_json(json.loads(json.dumps(record.to_json()))) == record


def test_sequences_that_lie_too_deep_are_json() -> None:
    data = {"00080060": element("CS", "CT")}
    for _ in range(MAX_DEPTH + 3):
        data = {"0040A730": element("SQ", data)}
    record = Record()
    found = to_row(data, record)
    for _ in range(MAX_DEPTH):
        (found,) = found["ContentSequence"]
    assert json.loads(found["ContentSequence"])[0]["0040A730"]["vr"] == "SQ"
    pa.schema(record.arrow).empty_table()


def test_binary_values_are_bytes_or_references() -> None:
    data = {"00282000": {"vr": "OB", "InlineBinary": base64.b64encode(b"\0\1").decode()}, "00081200": {"vr": "OB", "BulkDataURI": "b?offset=1"}}
    record = Record()
    found = row_of(record, x00282000=data["00282000"], x00420011={"vr": "OB", "BulkDataURI": "b?offset=1"}, x00420012={"vr": "LO"})
    assert found["ICCProfile"] == {"InlineBinary": b"\0\1"}
    assert found["EncapsulatedDocument"] == {"BulkDataURI": "b?offset=1"}


def test_what_has_no_column_is_in_a_list_of_its_own() -> None:
    record = Record()
    found = row_of(
        record,
        x00290010=element("LO", "VENDOR"),
        x00291001=element("LO", "a", "b"),
        x00291002={"vr": "UN", "InlineBinary": "AAE="},
        x00086E69=element("LO", "unknown"),
        x00081115={"vr": "UN", "InlineBinary": "AAE="},  # a sequence that is none
        x00100010=element("LO", "text"),  # a name that is none
        x60000010=element("US", 1),
        x60020010=element("US", 2),  # a second group of the same keyword
    )
    assert found.pop("OverlayRows") == 1
    assert list(found) == ["OtherElements"]
    assert [(other["tag"], other["creator"], other["vr"], other["value"]) for other in found["OtherElements"]] == [
        ("00290010", None, "LO", '["VENDOR"]'),
        ("00291001", "VENDOR", "LO", '["a","b"]'),
        ("00291002", "VENDOR", "UN", "AAE="),
        ("00086E69", None, "LO", '["unknown"]'),
        ("00081115", None, "UN", "AAE="),
        ("00100010", None, "LO", '["text"]'),
        ("60020010", None, "US", "[2]"),
    ]


@pytest.mark.parametrize(
    ("tag", "value", "kind", "repeated"),
    [
        ("00080020", element("DA", "20240230"), "text", False),
        ("00080020", element("DA", "20240101-20240131"), "text", False),
        ("00200013", element("IS", 1.5), "number", False),
        ("00200013", element("IS", "one"), "text", False),
        ("00200013", element("UV", 1 << 63), "text", False),
        ("00180050", element("DS", "thin"), "text", False),
        ("00200011", element("IS", 1, 2), "integer", True),
        ("00080020", element("DA", "20240101", "20240102"), "date", True),
    ],
)
def test_a_value_that_does_not_fit_names_the_kind_that_holds_it(tag, value, kind, repeated) -> None:
    with pytest.raises(MisfitError) as raised:
        to_row({tag: value}, Record())
    assert (raised.value.kind, raised.value.repeated) == (kind, repeated)
    raised.value.item.kind, raised.value.item.repeated = kind, repeated


def test_arrays_of_numbers_become_what_lists_become() -> None:
    numbers = [number / 4 for number in range(100)]
    contour = {"30060050": element("DS", *numbers), "00110010": element("LO", "ME"), "00111001": element("DS", *numbers)}
    contour |= {"00080060": element("CS", *numbers)}  # a wrong VR, which the value has too
    data = {"30060039": element("SQ", {"30060040": element("SQ", *[contour] * 800)}), "30060050": element("DS", *numbers)}
    text = json.dumps(data).encode()
    assert len(text) > LARGE_BYTES
    arrays, lists = Record(), Record()
    rows = [to_row(read_json(text), arrays), to_row(data, lists)]
    assert arrays == lists
    made = [pa.array([row], pa.struct(lists.arrow)) for row in rows]
    assert made[0].equals(made[1])
    with pytest.raises(MisfitError, match="100 values where"):
        to_row({"00180050": {"vr": "DS", "Value": np.array(numbers)}}, Record())


# --- a lake


def glob(house):
    return f"{house.lake}/headers/**/*.parquet"


def files(house):
    return {str(path.relative_to(house.lake / "headers")) for path in (house.lake / "headers").rglob("*") if path.is_file()} - {MANIFEST}


@pytest.fixture(scope="module")
def two(tmp_path_factory, new_house):
    """Two batches; the second has new attributes, in sequences too, and values that older types do not hold."""
    house = new_house(tmp_path_factory.mktemp("headers"))
    step = [item(ScheduledProcedureStepID="S1")]
    house.write("ct", dicom(RequestAttributesSequence=Items(step), SeriesDate="20240105"))
    house.write("text", b"hello")
    house.ingest()
    house.first = update_headers(house.lake)
    step = [item(ScheduledProcedureStepID="S2", RequestedProcedureID="R", ScheduledProtocolCodeSequence=Items([item(CodeValue="V")]))]
    house.write("mr", dicom("MR_small.dcm", RequestAttributesSequence=Items(step)))
    data = dicom(SOPInstanceUID="1.2.3")
    assert data.count(b"\x08\x00\x21\x00DA\x08\x00") == 1
    at = data.index(b"\x08\x00\x21\x00DA\x08\x00") + 8
    house.write("odd", data[:at] + b"2024013X" + data[at + 8 :])
    house.ingest()
    house.second = update_headers(house.lake)
    return house


def test_a_second_batch_widens_what_it_has_to_and_adds_what_is_new(two) -> None:
    assert (two.first.rows, two.first.batches, two.first.rewritten) == (1, 1, 0)
    assert (two.second.rows, two.second.batches, two.second.rewritten) == (2, 1, 1)
    registry = load(two.lake)
    (widened,) = registry.widened
    assert (widened["field"], widened["from"], widened["to"], widened["reason"]) == ("SeriesDate", "date", "text", "a value that is no date")
    assert widened["batch"] == max(registry.batches)
    assert set(registry.files) == files(two)


def test_older_rows_keep_their_values_and_lack_what_is_new(two) -> None:
    for rows in (scan_headers(two.lake).collect(), pl.from_arrow(headers_dataset(two.lake).to_table())):
        found = {Path(row["path"]).name: row for row in rows.to_dicts()}
        assert sorted(found) == ["ct", "mr", "odd"]
        assert found["ct"]["SeriesDate"] == "20240105"
        assert found["odd"]["SeriesDate"] == "2024013X"
        (step,) = found["ct"]["RequestAttributesSequence"]
        assert (step["ScheduledProcedureStepID"], step["RequestedProcedureID"], step["ScheduledProtocolCodeSequence"]) == ("S1", None, None)
        (step,) = found["mr"]["RequestAttributesSequence"]
        assert step["ScheduledProtocolCodeSequence"][0]["CodeValue"] == "V"


def test_rows_say_what_the_typed_columns_say(two) -> None:
    names = ["PatientID", "StudyInstanceUID", "SOPInstanceUID", "Modality", "StudyDate", "Rows", "PixelSpacing", "ImageType", "content_hash", "batch"]
    typed = scan(two.lake, "object_catalog").filter(pl.col("status") == "indexed").select("path", *names).sort("path").collect()
    assert scan_headers(two.lake).select("path", *names).sort("path").collect().equals(typed)
    assert "TransferSyntaxUID" in headers_dataset(two.lake).schema.names


def private(creator, *values):
    """An object with a private block, whose creator may be missing, and values in it that others have in other blocks."""
    data = pydicom.dcmread(str(pydicom.data.get_testdata_file("MR_small.dcm")))
    if creator is not None:
        data.add_new(0x00990010, "LO", creator)
    for at, value in enumerate(values):
        data.add_new(0x00991001 + at, "LO", value)
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("partition", ["batch", "study_date"])
def test_elements_that_are_read_once_become_what_rows_become(house, monkeypatch, partition) -> None:
    names = sorted(Path(pydicom.data.get_testdata_file("CT_small.dcm")).parent.glob("*.dcm"))
    for name in [name for name in names if name.stat().st_size < 100_000][:60]:
        house.write(name.name, name.read_bytes())
    for number, creator in enumerate(["A", "B", "A", None, "C\\D"]):
        house.write(f"private{number}", private(creator, "same", *["more"] * (number % 2)))
    house.write("two", dicom(StudyDate="20240105", SliceThickness=[1, 2]))
    house.write("odd", dicom(StudyDate="20240105", InstanceNumber="", ImageType=None))
    house.ingest()
    found = []
    for least in (0, LARGE_BYTES):
        monkeypatch.setattr("pixels_assets.lake.headers.LARGE_BYTES", least)
        shutil.rmtree(house.lake / "headers", ignore_errors=True)
        update_headers(house.lake, partition=partition)
        found.append((headers_dataset(house.lake).to_table().sort_by("path"), load(house.lake).widened))
    (by_row, widened), (by_element, widened_too) = found
    assert by_element.equals(by_row)
    assert sorted(map(str, widened)) == sorted(map(str, widened_too))
    assert len({entry["creator"] for row in by_element["OtherElements"].to_pylist() for entry in row or ()}) > 3
    assert by_element.num_rows > 20


def test_plain_engines_read_the_folder(two) -> None:
    found = duckdb.sql(f"select count(*), count(SeriesDate), count(distinct batch) from read_parquet('{glob(two)}', union_by_name = true)")
    assert found.fetchall() == [(3, 2, 2)]  # one has no date
    everything = duckdb.sql(f"select * from read_parquet('{glob(two)}', union_by_name = true)").to_arrow_table()
    plain = ds.dataset(two.lake / "headers", schema=headers_dataset(two.lake).schema, partitioning="hive")
    frame = pl.scan_parquet(glob(two), missing_columns="insert", extra_columns="ignore", hive_partitioning=True).select("path", "batch")
    assert everything.num_rows == plain.to_table().num_rows == frame.collect().height == 3
    assert set(everything.column_names) == set(plain.schema.names)


def test_the_table_is_there_in_sql(two) -> None:
    found = query(
        connect(two.lake),
        "select h.PatientName.Alphabetic, s.ScheduledProcedureStepID, c.status from headers h join object_catalog c using (path),"
        " unnest(RequestAttributesSequence) as u(s) order by 1",
    )
    assert found.fetchall() == [("CompressedSamples^CT1", "S1", "indexed"), ("CompressedSamples^MR1", "S2", "indexed")]


def test_nothing_is_written_when_nothing_changed(two) -> None:
    before = {path: path.stat().st_mtime_ns for path in (two.lake / "headers").rglob("*")}
    done = update_headers(two.lake)
    assert (done.batches, done.rows) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in (two.lake / "headers").rglob("*")} == before


def test_a_schema_is_printed_as_bigquery_prints_it(two) -> None:
    fields = {found["name"]: found for found in bigquery_schema(two.lake, "headers")}
    assert (fields["path"]["type"], fields["path"]["mode"]) == ("STRING", "REQUIRED")
    assert (fields["StudyDate"]["type"], fields["Rows"]["type"], fields["KVP"]["type"]) == ("DATE", "INTEGER", "FLOAT")
    assert (fields["ImageType"]["mode"], fields["Modality"]["mode"]) == ("REPEATED", "NULLABLE")
    step = fields["RequestAttributesSequence"]
    assert (step["type"], step["mode"]) == ("RECORD", "REPEATED")
    assert [child["name"] for child in step["fields"]] == ["ScheduledProtocolCodeSequence", "ScheduledProcedureStepID", "RequestedProcedureID"]
    lines = list(schema_lines(bigquery_schema(two.lake, "headers")))
    assert lines[0].split() == ["Field", "name", "Type", "Mode"]
    assert "    CodeValue" in {line[:13] for line in lines}
    catalog = {found["name"]: found for found in bigquery_schema(two.lake, "object_catalog")}
    assert (catalog["thumbnail"]["type"], catalog["modificationTime"]["type"], catalog["rowId"]["mode"]) == ("BYTES", "TIMESTAMP", "REQUIRED")
    assert "(0010,0010)" in catalog["PatientName"]["description"]


def test_every_attribute_that_was_seen_is_listed(two) -> None:
    metas = scan(two.lake, "object_catalog").filter(pl.col("status") == "indexed").select("meta", "batch").sort("batch").collect().rows()
    counts, first = {}, {}

    def walk(data, above, seen):
        for tag, value in data.items():
            seen.add((above + tag, value["vr"]))
            for inner in value.get("Value", []) if value["vr"] == "SQ" else []:
                walk(inner, f"{above}{tag}.", seen)
        return seen

    for meta, batch in metas:
        for key in walk(json.loads(meta), "", set()):
            counts[key] = counts.get(key, 0) + 1
            first.setdefault(key, batch)
    found = seen_tags(two.lake)
    assert {(row["tag"], row["vr"]): row["objects"] for row in found.to_dicts()} == counts
    assert {(row["tag"], row["vr"]): row["first_batch"] for row in found.to_dicts()} == first
    rows = {row["path"]: row for row in found.to_dicts()}
    assert rows["RequestAttributesSequence.ScheduledProtocolCodeSequence.CodeValue"]["share"] == pytest.approx(1 / 3)
    assert any(row["creator"] == "GEMS_IDEN_01" for row in found.to_dicts())
    assert seen_tags(two.lake).equals(found)  # from what was kept


# --- changes and accidents


def test_batches_follow_the_catalog(house) -> None:
    one, _ = house.write("one", dicom()), house.write("two", dicom(SOPInstanceUID="1.2.3"))
    house.ingest()
    update_headers(house.lake)
    one.unlink()
    house.write("two", dicom(SOPInstanceUID="1.2.4"))
    house.ingest()
    update_headers(house.lake)
    assert scan_headers(house.lake).select("SOPInstanceUID").collect()["SOPInstanceUID"].to_list() == ["1.2.4"]
    assert len(files(house)) == 1


def test_an_empty_lake_has_a_data_set_without_rows(house) -> None:
    for _ in range(2):
        assert scan_headers(house.lake).collect().height == headers_dataset(house.lake).count_rows() == 0
        assert query(connect(house.lake), "select count(*) from headers").fetchall() == [(0,)]
        update_headers(house.lake)
    assert load(house.lake).batches == {}
    assert seen_tags(house.lake).height == 0


def test_what_a_stopped_update_left_is_removed(house) -> None:
    house.write("one", dicom())
    house.ingest()
    update_headers(house.lake)
    before = files(house)
    (place,) = {(house.lake / "headers" / name).parent for name in before}
    for name in ("half.parquet.tmp", "unnamed.parquet"):
        (place / name).write_bytes(b"half")
    (house.lake / "headers" / "batch=gone").mkdir()
    (house.lake / "headers" / "batch=gone" / "x.parquet").write_bytes(b"old")
    update_headers(house.lake)
    assert files(house) == before
    assert not (house.lake / "headers" / "batch=gone").exists()


def test_an_update_that_fails_leaves_everything_as_it_was(house, monkeypatch) -> None:
    house.write("one", dicom())
    house.ingest()
    update_headers(house.lake)
    before, manifest = files(house), (house.lake / "headers" / MANIFEST).read_bytes()
    house.write("two", dicom(SOPInstanceUID="1.2.3"))
    house.ingest()
    newest = max((house.lake / "object_catalog").glob("batch=*"))
    (part,) = newest.glob("*.parquet")
    whole = part.read_bytes()
    part.write_bytes(whole[:100])
    with pytest.raises((OSError, pa.ArrowException, LakeError)):
        update_headers(house.lake)
    assert (files(house), (house.lake / "headers" / MANIFEST).read_bytes()) == (before, manifest)
    part.write_bytes(whole)
    assert update_headers(house.lake).rows == 1


def test_a_broken_manifest_is_named(house) -> None:
    update_headers(house.lake)
    (house.lake / "headers" / MANIFEST).write_text("{")
    with pytest.raises(LakeError, match="remove the folder"):
        update_headers(house.lake)


@pytest.mark.parametrize(("missing", "folder"), [("", "__HIVE_DEFAULT_PARTITION__"), ("1900-01-01", "1900-01-01")])
def test_it_can_be_partitioned_by_study_date(house, missing, folder) -> None:
    house.write("one", dicom(StudyDate="20240229"))
    house.write("none", dicom(StudyDate="", SOPInstanceUID="1.2.3"))
    house.ingest()
    update_headers(house.lake)
    done = update_headers(house.lake, partition="study_date", missing_date=missing)
    assert done.rows == 2
    assert sorted({Path(name).parts[0] for name in files(house)}) == sorted([f"study_date={folder}", "study_date=2024-02-29"])
    day = dt.date.fromisoformat(missing) if missing else None
    for rows in (scan_headers(house.lake).collect(), pl.from_arrow(headers_dataset(house.lake).to_table())):
        found = {Path(row["path"]).name: (row["study_date"], row["StudyDate"]) for row in rows.to_dicts()}
        assert found == {"one": (dt.date(2024, 2, 29), dt.date(2024, 2, 29)), "none": (day, None)}
    assert update_headers(house.lake, partition="study_date", missing_date=missing).rows == 0
    assert update_headers(house.lake).rows == 2
