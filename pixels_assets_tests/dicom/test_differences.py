"""The elements in which two data sets differ: every one, and nothing else."""

import copy

import pydicom
import pydicom.data
import pytest
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from pixels_assets.dicom.differences import Difference, differences


@pytest.fixture
def ct():
    return pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))


def changed(dataset, change):
    other = copy.deepcopy(dataset)
    change(other)
    return list(differences(dataset, other))


def test_equal_data_sets_have_no_differences(ct) -> None:
    assert changed(ct, lambda other: None) == []
    assert list(differences(Dataset(), Dataset())) == []


def test_a_value_that_differs_is_shown_on_both_sides(ct) -> None:
    found = changed(ct, lambda other: setattr(other, "PatientName", "Another^One"))
    assert found == [Difference("(0010,0010)", "PatientName", "CompressedSamples^CT1", "Another^One")]


def test_what_only_one_has_is_told_from_what_is_empty(ct) -> None:
    assert changed(ct, lambda other: other.__delattr__("PatientID")) == [Difference("(0010,0020)", "PatientID", "1CT1", None)]
    assert changed(ct, lambda other: setattr(other, "PatientID", "")) == [Difference("(0010,0020)", "PatientID", "1CT1", "")]


def test_elements_of_items_are_found_by_their_path_and_items_that_only_one_has(ct) -> None:
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "1", "one"
    ct.ProcedureCodeSequence = [item]
    assert changed(ct, lambda other: setattr(other.ProcedureCodeSequence[0], "CodeMeaning", "two")) == [
        Difference("(0008,1032)[0](0008,0104)", "ProcedureCodeSequence[0].CodeMeaning", "one", "two")
    ]
    assert changed(ct, lambda other: other.ProcedureCodeSequence.append(Dataset())) == [
        Difference("(0008,1032)[1]", "ProcedureCodeSequence[1]", None, "an item of 0 elements")
    ]


def test_pixels_are_named_by_length_and_hash(ct) -> None:
    (found,) = changed(ct, lambda other: setattr(other, "PixelData", other.PixelData[:-2] + b"\1\2"))
    assert (found.tag, found.keyword) == ("(7FE0,0010)", "PixelData")
    assert found.left.startswith("32768 bytes, SHA-256 ")
    assert found.left != found.right


def test_multiple_values_private_elements_and_file_meta_information(ct) -> None:
    assert [(item.left, item.right) for item in changed(ct, lambda other: setattr(other, "PixelSpacing", [0.5, 2.25]))] == [
        ("0.661468\\0.661468", "0.5\\2.25")
    ]
    (private,) = changed(ct, lambda other: other[0x0009, 0x1001].__setattr__("value", "X"))
    assert private.tag == private.keyword == "(0009,1001)"
    assert [item.tag for item in changed(ct, lambda other: setattr(other.file_meta, "ImplementationVersionName", "X"))] == ["(0002,0013)"]


def test_a_value_of_which_nothing_can_be_made_is_compared_as_it_was_read() -> None:
    def odd(value):
        dataset = Dataset()
        tag = Tag(0x00080031)
        dataset._dict[tag] = RawDataElement(tag, "TO", len(value), value, 0, is_implicit_VR=False, is_little_endian=True)
        return dataset

    assert list(differences(odd(b"12"), odd(b"12"))) == []
    (found,) = differences(odd(b"12"), odd(b"34"))
    assert (found.left, found.right) == ("31 32 (2 bytes)", "33 34 (2 bytes)")
