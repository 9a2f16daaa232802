"""Which attributes searches know at which level, and how a value of one is written as DICOM JSON (DICOM PS3.18 Annex F, 10.6.3).

Holds lists and text. Must not read tables or know HTTP.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.datadict import tag_for_keyword

from pixels_assets.dicom.attributes import ATTRIBUTES
from pixels_assets.dicomweb.matching import vr_of

__all__ = ["BY_TAG", "INSTANCE", "REQUIRED", "SERIES", "STUDY", "Known", "element", "known"]

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

_MORE = (
    ("StudyTime", STUDY),
    ("ReferringPhysicianName", STUDY),
    ("StudyID", STUDY),
    ("TimezoneOffsetFromUTC", SERIES),
    ("PerformedProcedureStepStartDate", SERIES),
    ("PerformedProcedureStepStartTime", SERIES),
    ("BitsAllocated", INSTANCE),
)
"""What searches have to know whether or not the catalog has a column for it."""

_quote = json.encoder.encode_basestring
_NUMERIC = frozenset({"IS", "DS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD"})
_SINGLE = frozenset({"LT", "ST", "UT", "UR"})


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
    computed : bool
    """

    keyword: str
    tag: int
    vr: str
    level: str
    computed: bool = False


def _tag(keyword: str) -> int:
    tag = tag_for_keyword(keyword)
    assert tag is not None, keyword
    return tag


def known() -> tuple[Known, ...]:
    """All of them, in the order of their tags."""
    found: dict[str, Known] = {}
    for attribute in ATTRIBUTES:
        level = STUDY if attribute.level == "patient" else attribute.level
        found[attribute.keyword] = Known(attribute.keyword, attribute.tag, vr_of(attribute.tag), level)
    for keyword, level in _MORE:
        found.setdefault(keyword, Known(keyword, _tag(keyword), vr_of(_tag(keyword)), level))
    for keyword, level in COMPUTED.items():
        found[keyword] = Known(keyword, _tag(keyword), vr_of(_tag(keyword)), level, computed=True)
    found.pop("TransferSyntaxUID", None)  # of group 0002, which is no part of a data set
    return tuple(sorted(found.values(), key=lambda item: item.tag))


KNOWN = known()
BY_TAG = {item.tag: item for item in KNOWN}
BY_KEYWORD = {item.keyword: item for item in KNOWN}


def element(tag: int, vr: str, value: object, *, always: bool) -> str:
    """Write one element of an answer; '' for one without a value, unless it is wanted `always`."""
    values = _values(vr, value)
    if not values:
        # A viewer that finds this one without values shows no list at all.
        return f'"{tag:08X}":{{"vr":"{vr}"}}' if always and tag != 0x00080061 else ""
    return f'"{tag:08X}":{{"vr":"{vr}","Value":[{",".join(values)}]}}'


def _values(vr: str, value: object) -> Sequence[str]:
    if value is None or value == "":
        return ()
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _values(vr, item)]
    if isinstance(value, (int, float)):
        return (json.dumps(value),) if vr in _NUMERIC else (_quote(str(value)),)
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
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else json.dumps(number)


def _name(text: str) -> str:
    groups = zip(("Alphabetic", "Ideographic", "Phonetic"), text.split("="), strict=False)
    return "{" + ",".join(f'"{name}":{_quote(group)}' for name, group in groups if group) + "}"
