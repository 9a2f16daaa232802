"""How a DICOM value becomes the typed value of a column.

Holds the rules per kind of column. Must not read bytes: it gets values as pydicom converted them.
A value that does not fit its column's type is None there, never a guess; the caller says so in the row's warnings.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Iterator

from pydicom import DataElement, Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

# DICOM PS3.5 6.2, VR DA: YYYYMMDD, and YYYY.MM.DD as ACR-NEMA wrote it.
_DATE = re.compile(r"([0-9]{4})(\.?)([0-9]{2})\2([0-9]{2})")
# VR TM: HH[MM[SS[.F]]], and with colons as ACR-NEMA wrote it. A leap second fits no column.
_TIME = re.compile(r"([01][0-9]|2[0-3])(?:(:?)([0-5][0-9])(?:\2([0-5][0-9])(?:\.([0-9]{1,6}))?)?)?")
# VR DT, from the day on: less than a day is no moment.
_DATE_TIME = re.compile(r"([0-9]{8})([0-9]{2}(?:[0-9]{2}(?:[0-9]{2}(?:\.[0-9]{1,6})?)?)?)?([+-][0-9]{4})?")
_INT64 = range(-(2**63), 2**63)
_OFFSETS = range(-12 * 60, 14 * 60 + 1)

PARTS = frozenset({"family", "given", "offset"})
"""Kinds of columns that hold a part of a value: the value itself has a column, whose warning serves for both."""


class UnfitError(ValueError):
    """A value does not fit the type of its column. Cause: the file. Remedy: none; the value stays in `meta`."""


_SIZED = (str, bytes, list, MultiValue, PersonName)  # a union would be made anew for each value


def typed_value(kind: str, value: object) -> object:
    r"""Turn a converted DICOM value into the value of a column.

    Parameters
    ----------
    kind : str
        ==========  ==============================================================================================================
        text        str, several values joined by a backslash
        family      str, the family name of a person; given: the given name
        integer     int within 64 bits
        number      float, finite
        date        `datetime.date`
        time        str, ``HH:MM:SS.ffffff``; what is not written is 0
        datetime    `datetime.datetime` in UTC: the moment when the value names its offset, else the date and time as written
        offset      int, the offset from UTC that a date and time names, minutes
        texts       list of str or None, one for each value; integers and numbers likewise
        gathered    as texts
        ==========  ==============================================================================================================
    value : object
        Value of a `pydicom.DataElement`.

    Returns
    -------
    object
        None for an empty value.

    Raises
    ------
    UnfitError
        The value does not fit; the message does not hold it.

    Examples
    --------
    >>> typed_value("date", "20040826")
    datetime.date(2004, 8, 26)
    >>> typed_value("time", "1015")
    '10:15:00.000000'
    """
    if value is None or (isinstance(value, _SIZED) and not value):
        return None
    return _RULES[kind](value)


def values_within(dataset: Dataset, sequence: int, tag: int) -> list[object]:
    """Values of one attribute in the items of a top-level sequence, in order; several values of one item follow each other."""
    found: list[object] = []
    for item in dataset[sequence].value if sequence in dataset else ():
        if tag in item:
            value = item[tag].value
            found += list(value) if isinstance(value, MultiValue | list) else [value]
    return found


def gathered(dataset: Dataset, tag: int) -> list[str] | None:
    """Distinct values of one attribute in all sequences of a data set, at any depth, in the order of their appearance; None without any.

    Only converted sequences are looked at, as they are after the data set was written as JSON.
    """
    found: dict[str, None] = {}
    for item in _items(dataset):
        if tag in item:
            value = item[tag].value
            found.update(dict.fromkeys(str(part) for part in (value if isinstance(value, MultiValue | list) else [value]) if part))
    return list(found) or None


def _items(dataset: Dataset) -> Iterator[Dataset]:
    # What is not converted yet, once the data set was written as JSON, cannot be converted, or was left in the file.
    for _, element in sorted(dataset.items(), key=lambda item: item[0]):
        if isinstance(element, DataElement) and element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _items(item)


def _text(value: object) -> str | None:
    if type(value) is str and value.isascii():  # nearly all
        return value or None
    if isinstance(value, MultiValue | list):
        if not all(isinstance(part, str | PersonName) for part in value):
            raise UnfitError
        text = "\\".join(str(part) for part in value)
    elif isinstance(value, str | PersonName):
        text = str(value)
    else:
        raise UnfitError
    # A str subclass such as pydicom's UID would survive str(); columns get plain text, and text that can be written as UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8") or None


def _component(value: object, number: int) -> str | None:
    """Component of a person's name, DICOM PS3.5 6.2.1, from the first group that has any."""
    text = _text(value)
    if text is None or "\\" in text:
        return None
    parts = next((group for group in text.split("=") if group.strip("^ ")), "").split("^")
    return (parts[number].strip() or None) if number < len(parts) else None


def _integer(value: object) -> int | None:
    if isinstance(value, str) and not value.strip():
        return None
    # Not `int` means text that is no number, several numbers, or a fraction; a fraction is not rounded.
    if not isinstance(value, int) or int(value) not in _INT64:
        raise UnfitError
    return int(value)


def _number(value: object) -> float | None:
    if isinstance(value, str) and not value.strip():
        return None
    # Not `float` means text that is no number, or several numbers; decimals are made floats as pydicom does.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnfitError
    try:
        number = float(value)
    except OverflowError:
        raise UnfitError from None
    if not math.isfinite(number):
        raise UnfitError
    return number


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise UnfitError
    return value.strip(" \0")


def _date(value: object) -> dt.date | None:
    text = _string(value)
    if not text:
        return None
    found = _DATE.fullmatch(text)
    if found is None:
        raise UnfitError
    try:
        return dt.date(int(found.group(1)), int(found.group(3)), int(found.group(4)))
    except ValueError:
        raise UnfitError from None


def _time(value: object) -> str | None:
    text = _string(value)
    if not text:
        return None
    found = _TIME.fullmatch(text)
    if found is None:
        raise UnfitError
    hours, _, minutes, seconds, fraction = found.groups()
    return f"{hours}:{minutes or '00'}:{seconds or '00'}.{fraction or '':0<6}"


def _date_time(value: object) -> dt.datetime | None:
    text = _string(value)
    if not text:
        return None
    found = _DATE_TIME.fullmatch(text)
    if found is None:
        raise UnfitError
    try:
        day, time = _date(found.group(1)), _time(found.group(2) or "00")
        moment = dt.datetime.fromisoformat(f"{day}T{time}+00:00")
        return moment - dt.timedelta(minutes=_offset(text) or 0)
    except (ValueError, OverflowError):
        raise UnfitError from None


def _offset(value: object) -> int | None:
    found = _DATE_TIME.fullmatch(_string(value))
    if found is None or found.group(3) is None:
        return None
    hours, minutes = int(found.group(3)[1:3]), int(found.group(3)[3:])
    offset = (60 * hours + minutes) * (-1 if found.group(3)[0] == "-" else 1)
    if minutes > 59 or offset not in _OFFSETS:
        raise UnfitError
    return offset


def _list(rule: Callable[[object], object]) -> Callable[[object], object]:
    def values(value: object) -> list[object] | None:
        parts = [None if part is None or part == "" else rule(part) for part in (value if isinstance(value, MultiValue | list) else [value])]
        return parts if any(part is not None for part in parts) else None

    return values


_RULES: dict[str, Callable[[object], object]] = {
    "text": _text,
    "family": lambda value: _component(value, 0),
    "given": lambda value: _component(value, 1),
    "integer": _integer,
    "number": _number,
    "date": _date,
    "time": _time,
    "datetime": _date_time,
    "offset": _offset,
    "texts": _list(_text),
    "integers": _list(_integer),
    "numbers": _list(_number),
    "gathered": _list(_text),
}
