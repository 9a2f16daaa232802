"""Typed values of attributes."""

import datetime as dt

import pytest
from pydicom import Dataset
from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_for_tag
from pydicom.multival import MultiValue
from pydicom.uid import UID
from pydicom.valuerep import IS, DSfloat, PersonName

from pixels_assets.dicom.attributes import ATTRIBUTES
from pixels_assets.dicom.values import PARTS, UnfitError, gathered, typed_value, values_within


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
        ("family", PersonName("Yamada^Tarou=山田^太郎"), "Yamada"),
        ("given", PersonName("=山田^太郎"), "太郎"),
        ("given", PersonName("Yamada"), None),
        ("number", DSfloat("0.50"), 0.5),
        ("number", 3, 3.0),
        ("number", " ", None),
        ("time", "101530.5", "10:15:30.500000"),
        ("time", "1015", "10:15:00.000000"),
        ("time", "10", "10:00:00.000000"),
        ("time", "10:15:30", "10:15:30.000000"),
        ("time", " \0", None),
        ("datetime", "20040826101530.25+0200", dt.datetime(2004, 8, 26, 8, 15, 30, 250000, tzinfo=dt.UTC)),
        ("datetime", "20040826", dt.datetime(2004, 8, 26, tzinfo=dt.UTC)),
        ("datetime", "2004082610", dt.datetime(2004, 8, 26, 10, tzinfo=dt.UTC)),
        ("offset", "20040826101530-0530", -330),
        ("offset", "20040826101530", None),
        ("texts", "ORIGINAL", ["ORIGINAL"]),
        ("texts", MultiValue(str, ["ORIGINAL", "", "AXIAL"]), ["ORIGINAL", None, "AXIAL"]),
        ("texts", MultiValue(str, ["", ""]), None),
        ("numbers", MultiValue(DSfloat, ["0.5", "0.25"]), [0.5, 0.25]),
        ("integers", IS("4"), [4]),
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
        ("number", "twelve"),
        ("number", float("nan")),
        ("number", 10**400),
        ("number", MultiValue(DSfloat, ["1", "2"])),
        ("time", "2400"),
        ("time", "101560"),
        ("time", "10:1530"),
        ("time", "1015.5"),
        ("time", MultiValue(str, ["10", "11"])),
        ("datetime", "2004"),
        ("datetime", "20041301"),
        ("datetime", "20040826101530+0199"),
        ("datetime", "00010101000000+1400"),
        ("numbers", MultiValue(str, ["1", "two"])),
        ("integers", MultiValue(float, [1.5])),
    ],
)
def test_a_value_that_does_not_fit_is_refused_without_being_quoted(kind, value):
    with pytest.raises(UnfitError) as caught:
        typed_value(kind, value)
    assert str(caught.value) == ""


def test_text_with_a_lone_surrogate_still_becomes_valid_utf_8():
    assert typed_value("text", "a\udcffb") == "a?b"


def test_every_attribute_is_in_the_dictionary_under_its_keyword_and_has_a_kind_that_suits_its_vr_and_vm():
    kinds = {
        "text": {"UI", "LO", "PN", "CS", "SH", "AS", "LT", "ST"},
        "integer": {"US", "IS"},
        "number": {"DS", "FD"},
        "date": {"DA"},
        "time": {"TM"},
        "datetime": {"DT"},
        "texts": {"CS", "LO", "SH", "PN"},
        "numbers": {"DS"},
        "integers": {"IS"},
        "family": {"PN"},
        "given": {"PN"},
        "offset": {"DT"},
        "gathered": {"UI"},
    }
    assert len({attribute.keyword for attribute in ATTRIBUTES}) == len(ATTRIBUTES)
    for attribute in ATTRIBUTES:
        keyword = keyword_for_tag(attribute.tag)
        assert attribute.keyword == (f"Referenced{keyword.removeprefix('Referenced')}s" if attribute.kind == "gathered" else keyword) or (
            attribute.kind in PARTS and attribute.keyword == keyword + attribute.kind.capitalize()
        )
        assert dictionary_VR(attribute.tag) in kinds[attribute.kind]
        assert attribute.sequence is None or dictionary_VR(attribute.sequence) == "SQ"
        assert attribute.level in {"patient", "study", "series", "instance"}
        if attribute.kind not in PARTS | {"gathered"} and attribute.sequence is None:
            assert (dictionary_VM(attribute.tag) == "1") == (not attribute.kind.endswith("s"))


def test_values_are_found_in_sequences_at_any_depth():
    inner = Dataset()
    inner.ReferencedSOPInstanceUID = "1.2.3"
    middle = Dataset()
    middle.SeriesInstanceUID = "1.2"
    middle.ReferencedSOPSequence = [inner, inner]
    outer = Dataset()
    outer.SeriesInstanceUID = "1"
    outer.ReferencedSeriesSequence = [middle, Dataset()]
    assert gathered(outer, 0x00081155) == ["1.2.3"]
    assert gathered(outer, 0x0020000E) == ["1.2"]
    assert gathered(inner, 0x0020000E) is None
    assert values_within(outer, 0x00081115, 0x0020000E) == ["1.2"]
    assert values_within(outer, 0x00081140, 0x0020000E) == []
