"""What the cookbook prints runs, over a lake of pydicom's own files, and finds something sensible."""

import csv
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pydicom
import pydicom.data
import pytest

import pixels_assets
from pixels_assets import Catalog
from pixels_assets.lake.describe import bigquery_schema, schema_lines
from pixels_assets.lake.sql import FUNCTIONS

ROOT = Path(pixels_assets.__file__).parents[1]
TEXT = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with a lake of some of pydicom's files, and of three that the questions are about."""
    folder = tmp_path_factory.mktemp("cookbook")
    shutil.copy(ROOT / "dagster.yaml", folder)
    images = folder / "images"
    images.mkdir()
    for name in ("CT_small.dcm", "MR_small.dcm", "rtstruct.dcm", "rtplan.dcm", "reportsi.dcm", "JPEG2000.dcm", "693_J2KI.dcm"):
        shutil.copy(str(pydicom.data.get_testdata_file(name)), images)
    shutil.copy(images / "MR_small.dcm", images / "copy")
    (images / "text").write_bytes(b"hello")
    for number, (sex, age, birth) in enumerate([("F", "023Y", ""), ("F", "", "19820110"), ("M", "023Y", ""), ("F", "070Y", "")]):
        data = pydicom.dcmread(images / "CT_small.dcm")
        data.PatientID, data.PatientSex, data.PatientAge, data.PatientBirthDate = f"P{number}", sex, age, birth
        data.SOPInstanceUID, data.SliceThickness, data.StudyDate = f"1.2.{number}", [1.0, 1.0, 5.0, 1.0][number], "20040119"
        data.ContrastBolusAgent = "" if number == 3 else "Iopromide"
        data.save_as(images / f"{number}.dcm")
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = str(folder)
    Catalog(folder / "var" / "lake", quiet_seconds=0.0, workers=1).ingest(images)
    yield folder
    if before is None:
        del os.environ["DAGSTER_HOME"]
    else:
        os.environ["DAGSTER_HOME"] = before


@pytest.fixture(scope="module")
def catalog(place):
    with (place / "patients.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("PatientID", "diagnosis"), ("P0", "flu"), ("P1", "flu"), ("nobody", "cold")])
    return Catalog(place / "var" / "lake")


def answer(catalog, place, beginning):
    """Rows of the block that follows a sentence of the cookbook."""
    _, found, rest = TEXT.partition(f"\n{beginning}")
    assert found
    return catalog.sql(re.search(r"```sql\n(.*?)```", rest, re.DOTALL)[1], attach={"ehr": place / "patients.csv"}).pl().to_dicts()


@pytest.mark.parametrize("statement", blocks("sql"))
def test_sql_runs_as_printed_and_finds_something(statement, catalog, place) -> None:
    assert catalog.sql(statement, attach={"ehr": place / "patients.csv"}).fetchall()


def test_cohorts_are_those_that_were_asked_for(catalog, place) -> None:
    assert [(row["PatientID"], row["age"]) for row in answer(catalog, place, "Women aged")] == [("P1", 22.0), ("P0", 23.0)]
    (series,) = answer(catalog, place, "CT series thinner")
    assert (series["images"], series["thickness"], series["agent"]) == (2, 1.0, "Iopromide")
    assert answer(catalog, place, "Joined with") == [{"diagnosis": "flu", "studies": 1, "objects": 2}]
    assert {Path(row["path"]).name for row in answer(catalog, place, "A cohort as a list")} >= {"MR_small.dcm", "copy"}
    (twice,) = [row["places"] for row in answer(catalog, place, "The same bytes")]
    assert [Path(path).name for path in twice] == ["MR_small.dcm", "copy"]
    assert [row["status"] for row in answer(catalog, place, "What was not indexed")] == ["not_dicom"]
    names = {item.ROIName for item in pydicom.dcmread(place / "images" / "rtstruct.dcm", force=True).StructureSetROISequence}
    assert {row["ROIName"] for row in answer(catalog, place, "In `headers`")} == names
    assert names <= {name for row in answer(catalog, place, "A value without") for name in row["names"]}


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs_as_printed(block, catalog, place) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DAGSTER_HOME": str(place)}
    ran = subprocess.run([sys.executable, "-c", block], cwd=place, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout


def test_the_excerpt_of_the_schema_is_true(catalog) -> None:
    (excerpt,) = blocks("text")
    printed = {tuple(line.split()) for line in schema_lines(bigquery_schema(catalog.settings.lake, "headers"))}
    assert {tuple(line.split()) for line in excerpt.splitlines()} <= printed


def test_every_function_is_explained() -> None:
    assert [name for name in FUNCTIONS if f"`{name}`" not in TEXT] == []
