"""Names of attributes become JSON paths, and mistakes are answered with near names."""

import pytest
from pydicom.datadict import keyword_dict

from pixels_assets.dicom.paths import json_path, tag_of
from pixels_assets.errors import UsageError

NAMES = ["SeriesDescription", "seriesdescription", "0008103E", "0008103e", "0008,103E", "(0008,103E)", "(0008, 103e)", " 0008103E "]


@pytest.mark.parametrize("name", NAMES)
def test_an_attribute_has_many_names(name) -> None:
    assert tag_of(name) == 0x0008103E
    assert json_path(name) == '$."0008103E".Value[*]'


def test_every_keyword_of_the_dictionary_is_known() -> None:
    assert [keyword for keyword, tag in keyword_dict.items() if keyword and tag_of(keyword) != tag] == []
    assert tag_of("OverlayRows") == 0x60000010


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("ReferencedSeriesSequence.SeriesInstanceUID", '$."00081115".Value[*]."0020000E".Value[*]'),
        ("00081115.0020000E", '$."00081115".Value[*]."0020000E".Value[*]'),
        ("SegmentSequence[2].SegmentLabel", '$."00620002".Value[1]."00620005".Value[*]'),
        ("ImageType[3]", '$."00080008".*[2]'),
        ("00291010", '$."00291010".Value[*]'),
    ],
)
def test_sequences_items_and_values(name, path) -> None:
    assert json_path(name) == path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PatientNme", "there is no attribute 'PatientNme'; did you mean PatientName"),
        ("ReferencedSeriesSequence.SeriesInstanceUIDs", "did you mean SeriesInstanceUID"),
        ("qqqq", "use a keyword of DICOM PS3.6, or a tag such as 0008103E"),
        ("", "'' is neither a name nor"),
        ("Rows..Columns", "'' is neither a name nor"),
        ("ImageType[0]", "with a number from 1"),
        ("ImageType[-1]", "with a number from 1"),
        ("ImageType[x]", "with a number from 1"),
        ("0008103", "there is no attribute '0008103'"),
    ],
)
def test_what_names_no_attribute_is_refused(name, message) -> None:
    with pytest.raises(UsageError, match=message.replace("[", r"\[")):
        json_path(name)
