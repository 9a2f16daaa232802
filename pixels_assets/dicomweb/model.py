"""Which attributes searches know at which level, and how a value of one is written as DICOM JSON (DICOM PS3.18 Annex F, 10.6.3).

Holds lists and text. Must not read tables or know HTTP.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydicom.datadict import keyword_for_tag, tag_for_keyword

from pixels_assets.dicom.attributes import ATTRIBUTES
from pixels_assets.dicomweb.matching import Path, vr_of

__all__ = ["BY_KEYWORD", "BY_PATH", "INSTANCE", "REQUIRED", "SERIES", "STUDY", "Known", "elements", "known"]

STUDY, SERIES, INSTANCE = "study", "series", "instance"

REQUIRED: dict[str, tuple[str, ...]] = {
    STUDY: (
        *(
            "StudyDate",
            "StudyTime",
            "AccessionNumber",
            "InstanceAvailability",
            "ModalitiesInStudy",
            "ReferringPhysicianName",
            "TimezoneOffsetFromUTC",
        ),
        *("StudyDescription", "RetrieveURL", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID"),
        *("NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
    ),
    SERIES: (
        *("Modality", "TimezoneOffsetFromUTC", "SeriesDescription", "RetrieveURL", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber"),
        *("NumberOfSeriesRelatedInstances", "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime"),
    ),
    INSTANCE: (
        *("SOPClassUID", "SOPInstanceUID", "InstanceAvailability", "TimezoneOffsetFromUTC", "RetrieveURL", "StudyInstanceUID", "SeriesInstanceUID"),
        *("InstanceNumber", "Rows", "Columns", "BitsAllocated", "NumberOfFrames"),
    ),
}
"""Keywords that every answer of a level has (DICOM PS3.18 Tables 10.6.3-3 to 10.6.3-5), whether or not the object has a value."""

COMPUTED = {
    "ModalitiesInStudy": STUDY,
    "SOPClassesInStudy": STUDY,
    "NumberOfStudyRelatedSeries": STUDY,
    "NumberOfStudyRelatedInstances": STUDY,
    "NumberOfSeriesRelatedInstances": SERIES,
}
"""What is counted or collected over the objects below, by level."""

_quote = json.encoder.encode_basestring
_NUMERIC = frozenset({"IS", "DS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"})
_SINGLE = frozenset({"LT", "ST", "UT", "UR"})
_TEXTS = frozenset({"AE", "AS", "CS", "DA", "DT", "LO", "SH", "TM", "UC", "UI"})


@dataclass(frozen=True, slots=True)
class Known:
    """An attribute that a level keeps as a column.

    Parameters
    ----------
    keyword : str
    tag : int
    vr : str
    level : str
        ``study`` (which holds the patient's attributes too), ``series`` or ``instance``.
    kind : str
        What its column holds; see `pixels_assets.dicom.values.typed_value`. ``computed`` for what is counted or collected.
    sequence : int or None
        Tag of the sequence whose items hold it.
    """

    keyword: str
    tag: int
    vr: str
    level: str
    kind: str = "text"
    sequence: int | None = None

    @property
    def computed(self) -> bool:
        """Whether it is counted or collected over the objects below."""
        return self.kind == "computed"

    @property
    def path(self) -> Path:
        """Where searches look for it."""
        return (self.tag,) if self.sequence is None else (self.sequence, self.tag)


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


def known() -> tuple[Known, ...]:
    """All of them, in the order of their tags."""
    found: dict[str, Known] = {}
    for attribute in ATTRIBUTES:
        level = STUDY if attribute.level == "patient" else attribute.level
        # What is part of a value, or gathered, is no attribute. Group 0002 is no part of a data set. A column of moments has forgotten how they were
        # written, and the character set of an answer is its own.
        if keyword_for_tag(attribute.tag) == attribute.keyword and attribute.kind != "datetime" and attribute.tag not in {0x00020010, 0x00080005}:
            found[attribute.keyword] = Known(attribute.keyword, attribute.tag, vr_of(attribute.tag), level, attribute.kind, attribute.sequence)
    for keyword, level in COMPUTED.items():
        found[keyword] = Known(keyword, _tag(keyword), vr_of(_tag(keyword)), level, "computed")
    return tuple(sorted(found.values(), key=lambda item: item.path))


KNOWN = known()
BY_PATH = {item.path: item for item in KNOWN}
BY_KEYWORD = {item.keyword: item for item in KNOWN}


def elements(tag: int, vr: str, values: Iterable[object], always: bool) -> list[str]:
    """Write an element with each of some values; '' for one without, unless it is wanted `always`."""
    # A viewer that finds ModalitiesInStudy without values shows no list at all.
    without = f'"{tag:08X}":{{"vr":"{vr}"}}' if always and tag != 0x00080061 else ""
    head = f'"{tag:08X}":{{"vr":"{vr}","Value":['
    is_name = vr == "PN"
    if is_name or vr in _TEXTS:  # most of all elements, and most of these have one value
        before, behind = (head + '{"Alphabetic":', "}]}") if is_name else (head, "]}")
        return [
            without
            if value is None or value == ""
            else f"{before}{_quote(value)}{behind}"
            if isinstance(value, str) and "\\" not in value and not (is_name and "=" in value)
            else _whole(head, vr, value)
            for value in values
        ]
    return [without if value is None or value == "" else _whole(head, vr, value) for value in values]


def _whole(head: str, vr: str, value: object) -> str:
    return f"{head}{','.join(_values(vr, value))}]}}"


def _values(vr: str, value: object) -> Sequence[str]:
    if isinstance(value, (int, float)):
        value = int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value
        return (repr(value) if math.isfinite(value) else "null",) if vr in _NUMERIC else (_quote(str(value)),)
    text = str(value)
    if vr == "PN":
        return [_name(part) for part in text.split("\\")]
    if vr in _NUMERIC:
        return [_number(part) for part in text.split("\\")]
    return (_quote(text),) if vr in _SINGLE else ["null" if part == "" else _quote(part) for part in text.split("\\")]


def _number(text: str) -> str:
    try:
        number = float(text)
    except ValueError:
        return "null" if text == "" else _quote(text)
    if not math.isfinite(number):
        return "null"
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else json.dumps(number)


def _name(text: str) -> str:
    if "=" not in text:
        return f'{{"Alphabetic":{_quote(text)}}}' if text else "{}"
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    return "{" + ",".join(f'"{name}":{_quote(group)}' for name, group in groups if group) + "}"
