"""What `pixels diff` compares: files, members of archives, versions of an instance."""

import zipfile

import pytest

from pixels_assets.cli import main
from pixels_assets.errors import UsageError
from pixels_assets.lake.rollups import update_rollups
from pixels_assets.lake.versions import compare
from pixels_assets.settings import Limits
from pixels_assets_tests.lake.hierarchy import dicom


def values(found):
    return [(item.keyword, item.left, item.right) for comparison in found for item in comparison.differences]


@pytest.fixture
def files(tmp_path):
    one, other = tmp_path / "one.dcm", tmp_path / "other.dcm"
    one.write_bytes(dicom(SOPInstanceUID="1.1", PatientID="a"))
    other.write_bytes(dicom(SOPInstanceUID="1.1", PatientID="b"))
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as packed:
        packed.write(other, "in/other.dcm")
    return tmp_path


def test_two_files_and_a_member_need_no_lake(files) -> None:
    wanted = [("PatientID", "a", "b")]
    assert values(compare(files / "lake", str(files / "one.dcm"), str(files / "other.dcm"), Limits())) == wanted
    assert values(compare(files / "lake", str(files / "one.dcm"), f"{files}/z.zip!/in/other.dcm", Limits())) == wanted
    assert values(compare(files / "lake", str(files / "other.dcm"), f"{files}/z.zip!/in/other.dcm", Limits())) == []


def test_the_versions_of_an_instance(house) -> None:
    for name, patient in (("a", "x"), ("b", "y"), ("c", "z")):
        house.write(f"{name}.dcm", dicom(SOPInstanceUID="1.1", PatientID=patient))
    house.ingest()
    update_rollups(house.lake, run_id="test")
    found = compare(house.lake, "1.1", None, Limits())
    assert {comparison.left for comparison in found} == {f"{house.source}/c.dcm"}
    assert sorted(values(found)) == [("PatientID", "z", "x"), ("PatientID", "z", "y")]
    assert values(compare(house.lake, "1.1", str(house.source / "a.dcm"), Limits())) == [("PatientID", "z", "x")]


def test_what_names_nothing_is_said(files) -> None:
    text = files / "empty"
    text.write_bytes(b"")
    for first, second, why in (
        ("1.2.3", None, "there are not two versions of '1.2.3'"),
        ("1.2.3", str(files / "one.dcm"), "is neither a file, nor an address"),
        (str(files / "one.dcm"), f"{files}/z.zip!/nothing", "or it cannot be read"),
        (str(files / "one.dcm"), str(files), "is no file"),
        (str(files / "one.dcm"), str(text), "no element|cannot be read as DICOM"),
        (str(files / "one.dcm"), f"{files}/gone.zip!/a", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=why):
            compare(files / "lake", first, second, Limits())


def test_the_command_prints_values_and_tells_by_its_exit_code(files, capsys) -> None:
    lake = ["--lake", str(files / "lake")]
    assert main(["diff", str(files / "one.dcm"), str(files / "one.dcm"), *lake]) == 0
    assert "no element differs" in capsys.readouterr().out
    assert main(["diff", str(files / "one.dcm"), str(files / "other.dcm"), *lake]) == 1
    assert capsys.readouterr().out.splitlines()[2:] == ["(0010,0020) PatientID", "  - a", "  + b", "1 elements differ"]
    assert main(["diff", "1.2.3", *lake]) == 2
    assert "there are not two versions" in capsys.readouterr().err
