"""What is odd about groups of objects: numbers, geometry, attributes that disagree."""

import random

import polars as pl
import pytest

from pixels_assets.lake import findings
from pixels_assets.lake.findings import FROM_SERIES, series_findings
from pixels_assets.lake.query import scan
from pixels_assets.lake.rollups import update_rollups
from pixels_assets.lake.schema import INSTANCES
from pixels_assets_tests.lake.hierarchy import dicom

AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
SCHEMA = pl.DataFrame(INSTANCES.part_arrow.empty_table()).select(FROM_SERIES).schema


def slices(*heights, **values):
    """A series of slices at some heights, millimetres."""
    rows = [
        {
            "StudyInstanceUID": "1",
            "SeriesInstanceUID": "2",
            "InstanceNumber": number,
            "Rows": 4,
            "Columns": 4,
            "PixelSpacing": [0.5, 0.5],
            "ImagePositionPatient": [0.0, 0.0, height],
            "ImageOrientationPatient": AXIAL,
        }
        for number, height in enumerate(heights, start=1)
    ]
    for name, (place, value) in values.items():
        rows[place][name] = value
    return pl.DataFrame(rows, schema=SCHEMA)


def codes(rows):
    return set(series_findings(rows)["code"])


def test_a_whole_volume_has_no_findings() -> None:
    assert codes(slices(0.0, 2.0, 4.0, 6.0)) == set()
    assert codes(slices(6.0, 0.0, 4.0, 2.0)) == set()
    assert codes(slices(0.0)) == set()


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        (slices(0.0, 2.0, 4.0, 8.0), {"slices_missing"}),
        (slices(0.0, 2.0, 4.3, 6.0), {"slices_uneven"}),
        (slices(0.0, 2.0, 4.0, 6.0, 6.0), {"slices_repeated"}),
        (slices(0.0, 2.0, 4.0, Rows=(1, 8)), {"size_mixed"}),
        (slices(0.0, 2.0, 4.0, PixelSpacing=(1, [0.5, 0.6])), {"spacing_mixed"}),
        (slices(0.0, 2.0, 4.0, ImageOrientationPatient=(1, [0.0, 1.0, 0.0, 0.0, 0.0, 1.0])), {"orientation_mixed"}),
        (slices(0.0, 2.0, 4.0, InstanceNumber=(1, None)), {"instance_number_missing", "instance_number_skipped"}),
        (slices(0.0, 2.0, 4.0, InstanceNumber=(1, 1)), {"instance_number_repeated"}),
        (slices(0.0, 2.0, 4.0, InstanceNumber=(2, 5)), {"instance_number_skipped"}),
    ],
)
def test_what_makes_no_whole_volume_is_found(rows, wanted) -> None:
    assert codes(rows) == wanted


def test_localizers_frames_and_odd_vectors_are_no_slices_of_a_volume() -> None:
    assert codes(slices(0.0, 2.0, 9.0, ImageType=(2, ["ORIGINAL", "PRIMARY", "LOCALIZER"]))) == set()
    assert codes(slices(0.0, 2.0, 9.0, ImagePositionPatient=(2, [0.0]))) == set()
    assert codes(slices(0.0, 2.0, 9.0, ImagePositionPatient=(2, [0.0, None, 1.0]))) == set()
    assert codes(slices(0.0, 2.0, 4.0, ImagePositionPatient=(2, [float("inf"), 0.0, 1.0]))) == set()


def test_series_that_are_passed_over_because_they_are_surely_even_have_no_findings(monkeypatch) -> None:
    chance, series = random.Random(11), []
    for number in range(400):
        step, start = chance.choice([0.01, 0.5, 1.25, 3.0]), chance.choice([0.0, -0.0, -1234.567, 1e6])
        off = chance.choice([0.0, 0.0, 0.0, 0.0005, 0.03, 0.049, 0.0500001, 0.4, 0.6]) * step
        heights = [start + step * at + chance.choice([0, 0, off]) for at in range(chance.randint(1, 8))]
        heights += heights[: chance.choice([0, 0, 0, 1])] * chance.choice([1, 2])
        turn = chance.choice([AXIAL, [0.8, 0.6, 0.0, -0.6, 0.8, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]])
        rows = slices(*heights).with_columns(SeriesInstanceUID=pl.lit(f"2.{number}"), ImageOrientationPatient=pl.lit(turn))
        if chance.random() < 0.1:
            rows[0, chance.choice(["Rows", "Columns", "InstanceNumber", "NumberOfFrames"])] = 7
        series.append(rows.with_columns(StudyInstanceUID=pl.lit(None) if chance.random() < 0.2 else pl.col("StudyInstanceUID")).cast(SCHEMA))
    rows = pl.concat(series).sample(fraction=1, shuffle=True, seed=3)
    found = series_findings(rows)
    every = pl.col("SeriesInstanceUID").len().over("SeriesInstanceUID") > 2
    monkeypatch.setattr(findings, "_uneven", lambda slices: slices.filter(every).select("StudyInstanceUID", "SeriesInstanceUID").unique())
    assert found.sort(pl.all()).equals(series_findings(rows).sort(pl.all()))
    assert 50 < found.filter(pl.col("keyword") == "ImagePositionPatient")["SeriesInstanceUID"].n_unique() < 350


def test_attributes_that_disagree_are_found_at_their_level(house) -> None:
    common = {"StudyInstanceUID": "2.1", "SeriesInstanceUID": "3.1", "PatientID": "SECRET"}
    house.write("1.dcm", dicom(SOPInstanceUID="1.1", PatientSex="F", Manufacturer="one", KVP="120", InstanceNumber=1, **common))
    house.write("2.dcm", dicom(SOPInstanceUID="1.2", PatientSex="M", Manufacturer="two", KVP="100", InstanceNumber=2, **common))
    house.write("3.dcm", dicom(SOPInstanceUID="1.3", PatientSex="M", StudyInstanceUID="2.2", SeriesInstanceUID="3.1"))
    house.write("4.dcm", dicom(SOPInstanceUID="1.4", PatientSex="F", StudyInstanceUID="2.3", SeriesInstanceUID="3.1"))
    house.ingest()
    update_rollups(house.lake, run_id="test")
    rows = scan(house.lake, "findings").filter(pl.col("code") == "attributes_disagree").collect()
    assert set(rows.select("level", "keyword", "StudyInstanceUID", "SeriesInstanceUID").rows()) == {
        ("series", "Manufacturer", "2.1", "3.1"),
        ("study", "PatientSex", "2.1", None),
        ("patient", "PatientSex", None, None),
    }
    assert not rows["message"].str.contains("SECRET").any()


def test_findings_of_an_object_go_with_it(house) -> None:
    file = house.write("1.dcm", dicom(SOPInstanceUID="1.01", StudyInstanceUID="2.1", SeriesInstanceUID="3.1"))
    house.write("2.dcm", dicom(StudyInstanceUID="2.1", SeriesInstanceUID="3.1"))
    house.ingest()
    update_rollups(house.lake, run_id="test")
    found = scan(house.lake, "findings").filter(pl.col("code").is_in(["uid_invalid", "not_in_hierarchy"])).select("code", "keyword", "path", "level")
    nameless = ("not_in_hierarchy", "SOPInstanceUID", f"{house.source}/2.dcm", "instance")
    assert set(found.collect().rows()) == {nameless, ("uid_invalid", "SOPInstanceUID", str(file), "instance")}
    file.unlink()
    house.ingest()
    update_rollups(house.lake, run_id="test")
    found = scan(house.lake, "findings").filter(pl.col("code").is_in(["uid_invalid", "not_in_hierarchy"])).select("code", "keyword", "path", "level")
    assert found.collect().rows() == [nameless]
