"""Typed values of attributes."""

import datetime as dt

import pytest
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pydicom.valuerep import IS, PersonName

from pixels_assets.dicom.attributes import ATTRIBUTES
from pixels_assets.dicom.values import UnfitError, typed_value


@pytest.mark.parametrize(
    ("kind", "value", "typed"),
    [
        ("text", "CT", "CT"),
        ("text", UID("1.2.3"), "1.2.3"),
        ("text", MultiValue(str, ["a", "b"]), "a\\b"),
        ("text", PersonName("Yamada^Tarou=山田^太郎=やまだ^たろう"), "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("text", MultiValue(PersonName, ["A^B", "C^D"]), "A^B\\C^D"),
        ("text", "", None),
        ("text", PersonName(""), None),
        ("text", None, None),
        ("integer", 512, 512),
        ("integer", IS("-7"), -7),
        ("integer", IS("12.0", 0), 12),
        ("integer", 2**63 - 1, 2**63 - 1),
        ("integer", "  ", None),
        ("date", "20040826", dt.date(2004, 8, 26)),
        ("date", "2004.08.26", dt.date(2004, 8, 26)),
        ("date", "20040826 \0", dt.date(2004, 8, 26)),
        ("date", "99991231", dt.date(9999, 12, 31)),
        ("date", "", None),
    ],
)
def test_a_value_that_fits_becomes_plain_and_typed(kind, value, typed):
    result = typed_value(kind, value)
    assert result == typed
    assert type(result) is type(typed)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("date", "00000101"),
        ("date", "20041301"),
        ("date", "20040231"),
        ("date", "2004.0826"),
        ("date", "20000101-20010101"),
        ("date", "2004"),
        ("date", "٢٠٠٤٠٨٢٦"),
        ("date", MultiValue(str, ["20040826", "20040827"])),
        ("integer", "twelve"),
        ("integer", 1.5),
        ("integer", 2**63),
        ("integer", MultiValue(int, [1, 2])),
        ("integer", b"\x01"),
        ("text", b"CT"),
        ("text", 7),
        ("text", MultiValue(int, [1, 2])),
    ],
)
def test_a_value_that_does_not_fit_is_refused_without_being_quoted(kind, value):
    with pytest.raises(UnfitError) as caught:
        typed_value(kind, value)
    assert str(caught.value) == ""


def test_text_with_a_lone_surrogate_still_becomes_valid_utf_8():
    assert typed_value("text", "a\udcffb") == "a?b"


def test_every_attribute_is_in_the_dictionary_under_its_keyword_and_has_a_kind_that_suits_its_vr():
    from pydicom.datadict import dictionary_VR, keyword_for_tag

    kinds = {"text": {"UI", "LO", "PN", "CS", "SH"}, "integer": {"US", "IS"}, "date": {"DA"}}
    assert len({attribute.keyword for attribute in ATTRIBUTES}) == len(ATTRIBUTES)
    for attribute in ATTRIBUTES:
        assert keyword_for_tag(attribute.tag) == attribute.keyword
        assert dictionary_VR(attribute.tag) in kinds[attribute.kind]
        assert attribute.level in {"patient", "study", "series", "instance"}
