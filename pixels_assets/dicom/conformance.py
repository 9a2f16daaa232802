"""What is wrong with one object by the standard's own tables: attributes that its IOD requires, UIDs and dates that cannot be, frames without bytes.

Holds the rules for one data set in the DICOM JSON model. Must not show a value: faults name attributes and kinds of objects.

Which attributes an IOD requires is read from the tables that highdicom ships (DICOM PS3.3 A.1.4): mandatory modules, attributes of type 1 and 2,
those of sequence items where there are items. Conditional modules and attributes are not claimed: a condition may not hold. Private and retired SOP
classes have no table.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from pydicom.datadict import dictionary_has_tag, keyword_for_tag, tag_for_keyword

_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*")
_UID_LENGTH = 64
_DATE = re.compile(r"([0-9]{4})\.?([0-9]{2})\.?([0-9]{2})")
_FIRST_YEAR = 1890  # of an examination: X-rays were discovered in 1895
_EXAMINATION_DATES = ("00080020", "00080021", "00080022", "00080023")
_HIERARCHY = ("00080018", "0020000D", "0020000E")
_STUDY_DATE, _BIRTH_DATE = "00080020", "00100030"
_FRAMES, _PER_FRAME = "00280008", "52009230"
_SOP_CLASS = "00080016"
_LOOKED_AT = frozenset({"UI", "DA"})
_NOT_IN_META = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010, 0x7FE00001, 0x7FE00002})
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
_BY_VALUE_TYPE = frozenset({"sr-document-content"})
"""Modules whose attributes depend on a value type, which the tables do not tell."""
_MAXIMUM = 50


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with an object.

    Parameters
    ----------
    code : str
        Stable snake_case word.
    keyword : str
        Attribute, with the sequences that lead to it: ``ReferencedSeriesSequence.SeriesInstanceUID``.
    message : str
        One sentence, without a value.
    """

    code: str
    keyword: str
    message: str


@dataclass(frozen=True, slots=True)
class _Required:
    tag: str
    keyword: str
    kind: str
    items: tuple["_Required", ...]


Element = Mapping[str, Any]
DataSet = Mapping[str, Element]
Elements = Sequence[tuple[str, Element]]


def faults(dataset: DataSet, *, transfer_syntax: str | None = None, length: int | None = None) -> list[Fault]:
    """Find what is wrong with one object.

    Parameters
    ----------
    dataset : mapping
        Data set in the DICOM JSON model, without pixel data.
    transfer_syntax : str or None
        Its transfer syntax.
    length : int or None
        Bytes of the whole object.

    Returns
    -------
    list of Fault
        At most 50, in the order of their rules.
    """
    found: list[Fault] = []
    for fault in _all(dataset, transfer_syntax, length):
        found.append(fault)
        if len(found) == _MAXIMUM:
            break
    return found


def _all(dataset: DataSet, transfer_syntax: str | None, length: int | None) -> Iterator[Fault]:
    yield from _identity(dataset)
    looked_at = [(tag, element) for tag, element in dataset.items() if element.get("vr") in _LOOKED_AT]  # few of many
    yield from _uids(looked_at)
    yield from _dates(looked_at)
    yield from _frames(dataset, transfer_syntax, length)
    required = required_attributes(str(_first(dataset, _SOP_CLASS) or ""))
    yield from _missing(dataset, required, "")


def required_attributes(sop_class: str) -> tuple[_Required, ...]:
    """Attributes that objects of a SOP class must have, as a tree; empty for a class without a table."""
    iod = _tables()[0].get(sop_class)
    return () if iod is None else _of_iod(iod)


def _identity(dataset: DataSet) -> Iterator[Fault]:
    for tag in _HIERARCHY:
        if _first(dataset, tag) is None:
            keyword = keyword_for_tag(int(tag, 16))
            yield Fault("not_in_hierarchy", keyword, f"Without {keyword} the object is missing at that level of the hierarchy.")


def _uids(elements: Elements) -> Iterator[Fault]:
    for tag, element in elements:
        if element["vr"] == "UI":
            for value in element.get("Value", ()):
                if value is not None and not _is_uid(str(value)):
                    yield Fault("uid_invalid", _name(tag), f"{_name(tag)} is no valid UID (PS3.5 9.1).")
                    break


@lru_cache(maxsize=4096)
def _is_uid(text: str) -> bool:
    return len(text) <= _UID_LENGTH and _UID.fullmatch(text) is not None


def _dates(elements: Elements) -> Iterator[Fault]:
    days: dict[str, datetime] = {}
    for tag, element in elements:
        if element["vr"] == "DA":
            for value in element.get("Value", ()):
                if value is None:
                    continue
                day = _day(str(value))
                if day is None:
                    yield Fault("date_invalid", _name(tag), f"{_name(tag)} is no day of the calendar (PS3.5 6.2).")
                    break
                days.setdefault(tag, day)
    for tag in _EXAMINATION_DATES:
        if tag in days and days[tag].year < _FIRST_YEAR:
            yield Fault("date_impossible", _name(tag), f"{_name(tag)} is before there was radiology.")
    if _STUDY_DATE in days and _BIRTH_DATE in days and days[_STUDY_DATE] < days[_BIRTH_DATE]:
        yield Fault("date_impossible", _name(_BIRTH_DATE), "PatientBirthDate is after StudyDate.")


def _frames(dataset: DataSet, transfer_syntax: str | None, length: int | None) -> Iterator[Fault]:
    frames = _number(dataset, _FRAMES)
    items = dataset.get(_PER_FRAME, {}).get("Value")
    if items is not None and frames is not None and len(items) != frames:
        yield Fault("frames_disagree", "NumberOfFrames", "NumberOfFrames is not the number of items of PerFrameFunctionalGroupsSequence.")
    sizes = [_number(dataset, tag) for tag in ("00280010", "00280011", "00280002", "00280100")]
    if length is None or transfer_syntax not in _NATIVE or any(size is None for size in sizes):
        return
    bits = 1 if frames is None else frames
    for size in sizes:
        bits *= size or 0
    if bits > 8 * length:
        yield Fault("frames_disagree", "NumberOfFrames", "Its frames need more bytes than the object has.")


def _missing(dataset: DataSet, required: tuple[_Required, ...], path: str) -> Iterator[Fault]:
    for item in required:
        element = dataset.get(item.tag)
        if element is None:
            if item.kind in {"1", "2"}:
                yield Fault("required_missing", path + item.keyword, f"{path + item.keyword} is missing, which is of type {item.kind}.")
            continue
        if item.kind == "1" and _is_empty(element):
            yield Fault("required_empty", path + item.keyword, f"{path + item.keyword} is empty, which is of type 1.")
        if item.items:
            seen: set[str] = set()
            for value in element.get("Value", ()):
                for fault in _missing(value, item.items, f"{path}{item.keyword}.") if isinstance(value, dict) else ():
                    if fault.message not in seen:
                        seen.add(fault.message)
                        yield fault


def _is_empty(element: Element) -> bool:
    if "BulkDataURI" in element or element.get("InlineBinary"):
        return False
    values = element.get("Value")
    return not values or all(value is None for value in values)


def _first(dataset: DataSet, tag: str) -> Any:
    values = dataset.get(tag, {}).get("Value")
    return values[0] if values else None


def _number(dataset: DataSet, tag: str) -> int | None:
    value = _first(dataset, tag)
    return value if isinstance(value, int) else None


@lru_cache(maxsize=4096)
def _day(text: str) -> datetime | None:
    found = _DATE.fullmatch(text.strip())
    if found is None:
        return None
    try:
        return datetime(*map(int, found.groups()))  # type: ignore[arg-type]
    except ValueError:
        return None


@cache
def _name(tag: str) -> str:
    number = int(tag, 16)
    return (keyword_for_tag(number) if dictionary_has_tag(number) else "") or f"({tag[:4]},{tag[4:]})"


class _Attribute(msgspec.Struct, gc=False):
    """An entry of a module's table, as far as it is asked for."""

    keyword: str
    type: str
    path: list[str]


@cache
def _tables() -> tuple[dict[str, str], dict[str, msgspec.Raw], dict[str, msgspec.Raw]]:
    """SOP class to IOD, IOD to modules, module to attributes; what is of no IOD that is met stays text, which takes a tenth of the memory.

    Read as files: importing highdicom costs a second.
    """
    spec = find_spec("highdicom")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        return {}, {}, {}
    folder = Path(folders[0]) / "_standard"
    return (
        msgspec.json.decode((folder / "sop_class_iod_map.json").read_bytes(), type=dict[str, str]),
        msgspec.json.decode((folder / "iod_module_map.json").read_bytes(), type=dict[str, msgspec.Raw]),
        msgspec.json.decode((folder / "module_attribute_map.json").read_bytes(), type=dict[str, msgspec.Raw]),
    )


@cache
def _of_iod(iod: str) -> tuple[_Required, ...]:
    _, modules, attributes = _tables()
    tree: dict[str, Any] = {}
    for module in msgspec.json.decode(modules.get(iod, b"[]"), type=list[dict[str, str]]):
        if module["usage"] == "M" and module["key"] not in _BY_VALUE_TYPE:
            for attribute in msgspec.json.decode(attributes.get(module["key"], b"[]"), type=list[_Attribute]):
                if (kind := attribute.type) not in {"1", "2"}:
                    continue
                branch = tree
                for keyword in attribute.path:
                    branch = branch.setdefault(keyword, ["3", {}])[1]
                leaf = branch.setdefault(attribute.keyword, ["3", {}])
                leaf[0] = min(leaf[0], kind)
    return _compiled(tree)


def _compiled(tree: dict[str, Any]) -> tuple[_Required, ...]:
    """Only branches with something to ask for."""
    found = []
    for keyword, (kind, items) in tree.items():
        tag, below = tag_for_keyword(keyword), _compiled(items)
        if tag is not None and tag not in _NOT_IN_META and (kind in {"1", "2"} or below):
            found.append(_Required(f"{tag:08X}", keyword, kind, below))
    return tuple(found)
