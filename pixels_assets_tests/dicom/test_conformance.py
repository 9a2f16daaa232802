"""What is wrong with an object: found by the standard's tables, and nothing claimed that depends on a condition."""

import json

import pydicom
import pydicom.data
import pytest

from pixels_assets.dicom.conformance import faults, required_attributes

CT, SEGMENTATION = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.66.4"
EXPLICIT = "1.2.840.10008.1.2.1"


@pytest.fixture
def ct():
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    del dataset.PixelData
    return dataset


def found(dataset, **options):
    return {(fault.code, fault.keyword) for fault in faults(json.loads(dataset.to_json()), **options)}


def test_an_object_of_which_nothing_is_wrong(ct) -> None:
    assert found(ct, transfer_syntax=EXPLICIT, length=39_000) <= {("required_missing", "PositionReferenceIndicator")}


def test_required_attributes_are_missed_where_they_are_missing_or_empty(ct) -> None:
    before = found(ct)
    del ct.PatientID, ct.PixelSpacing
    ct.PatientName = ""
    ct.ImageOrientationPatient = None
    missing = {("required_missing", "PatientID"), ("required_missing", "PixelSpacing"), ("required_empty", "ImageOrientationPatient")}
    assert found(ct) - before == missing  # an empty PatientName is of type 2: it may be


def test_structured_reports_are_not_asked_for_what_depends_on_the_type_of_their_content() -> None:
    asked = {item.keyword for item in required_attributes("1.2.840.10008.5.1.4.1.1.88.11")}
    assert {"CompletionFlag", "PatientID"} <= asked
    assert not asked & {"GraphicData", "MeasuredValueSequence", "ReferencedSOPSequence"}


def test_items_must_have_what_items_require_and_only_where_there_are_items() -> None:
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    del dataset.PixelData
    dataset.ReferencedStudySequence = [pydicom.Dataset()]
    assert ("required_missing", "ReferencedStudySequence.ReferencedSOPClassUID") in found(dataset)
    del dataset.ReferencedStudySequence
    assert not any(keyword.startswith("ReferencedStudySequence") for _, keyword in found(dataset))


def test_a_private_class_has_no_table_and_a_table_asks_for_no_pixels() -> None:
    assert required_attributes("1.2.3.4") == ()
    asked = {item.keyword for item in required_attributes(CT)}
    assert {"PatientID", "StudyInstanceUID", "Rows", "KVP"} <= asked
    assert "PixelData" not in asked
    assert "SegmentSequence" in {item.keyword for item in required_attributes(SEGMENTATION)}


@pytest.mark.parametrize("uid", ["1.2.03", "1..2", ".1", "1.2.", "1.2.a", "1" * 65, "1.2 "])
def test_uids_that_cannot_be(ct, uid) -> None:
    dataset = json.loads(ct.to_json())
    dataset["0020000D"] = {"vr": "UI", "Value": [uid]}
    assert ("uid_invalid", "StudyInstanceUID") in {(fault.code, fault.keyword) for fault in faults(dataset)}


@pytest.mark.parametrize("uid", ["1.2.0", "2.25." + "1" * 59, "0.1"])
def test_uids_that_can_be(ct, uid) -> None:
    dataset = json.loads(ct.to_json())
    dataset["0020000D"] = {"vr": "UI", "Value": [uid]}
    assert not any(fault.code == "uid_invalid" for fault in faults(dataset))


@pytest.mark.parametrize(
    ("tag", "value", "code"),
    [
        ("00080020", "20230229", "date_invalid"),
        ("00080020", "2023", "date_invalid"),
        ("00080020", "00010101", "date_impossible"),
        ("00100030", "20990101", "date_impossible"),
        ("00080020", "2004.01.19", None),
        ("00100030", "18800101", None),
    ],
)
def test_days_that_cannot_be(ct, tag, value, code) -> None:
    dataset = json.loads(ct.to_json())
    dataset[tag] = {"vr": "DA", "Value": [value]}
    assert {fault.code for fault in faults(dataset)} & {"date_invalid", "date_impossible"} == ({code} if code else set())


def test_frames_that_do_not_fit_the_object(ct) -> None:
    assert ("frames_disagree", "NumberOfFrames") not in found(ct, transfer_syntax=EXPLICIT, length=39_000)
    ct.NumberOfFrames = 2
    assert ("frames_disagree", "NumberOfFrames") in found(ct, transfer_syntax=EXPLICIT, length=39_000)
    assert ("frames_disagree", "NumberOfFrames") not in found(ct, transfer_syntax="1.2.840.10008.1.2.4.50", length=39_000)
    ct.PerFrameFunctionalGroupsSequence = [pydicom.Dataset()]
    assert ("frames_disagree", "NumberOfFrames") in found(ct)


def test_an_object_without_uids_is_said_to_be_missing_from_the_hierarchy(ct) -> None:
    del ct.SOPInstanceUID
    ct.StudyInstanceUID = ""
    assert {keyword for code, keyword in found(ct) if code == "not_in_hierarchy"} == {"SOPInstanceUID", "StudyInstanceUID"}


def test_no_message_shows_a_value(ct) -> None:
    ct.PatientID = "SECRET7"
    dataset = json.loads(ct.to_json())
    dataset["0020000D"] = {"vr": "UI", "Value": ["SECRET7"]}
    dataset["00080020"] = {"vr": "DA", "Value": ["SECRET7"]}
    assert faults(dataset)
    assert not any("SECRET7" in fault.message + fault.keyword for fault in faults(dataset))


def test_odd_json_is_looked_at_without_an_exception() -> None:
    odd = {
        "00080016": {"vr": "UI"},
        "00280008": {"vr": "IS", "Value": [None]},
        "00081110": {"vr": "SQ", "Value": [None, {}]},
        "0020000D": {"vr": "UI"},
    }
    assert faults(odd)
    assert faults({})
