"""How a DICOM value becomes the typed value of a column.

Holds the rules per kind of column. Must not read bytes: it gets values as pydicom converted them.
A value that does not fit its column's type is None there, never a guess; the caller says so in the row's warnings.
"""

import datetime as dt
import re
from collections.abc import Callable

from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

# DICOM PS3.5 6.2, VR DA: YYYYMMDD, and YYYY.MM.DD as ACR-NEMA wrote it.
_DATE = re.compile(r"([0-9]{4})(\.?)([0-9]{2})\2([0-9]{2})")
_INT64 = range(-(2**63), 2**63)


class UnfitError(ValueError):
    """A value does not fit the type of its column. Cause: the file. Remedy: none; the value stays in `meta`."""


def typed_value(kind: str, value: object) -> object:
    r"""Turn a converted DICOM value into the value of a column.

    Parameters
    ----------
    kind : str
        ``text`` gives str, several values joined by a backslash; ``integer`` gives int within 64 bits; ``date`` gives `datetime.date`.
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
    """
    if value is None or (isinstance(value, str | bytes | list | MultiValue | PersonName) and not value):
        return None
    return _RULES[kind](value)


def _text(value: object) -> str | None:
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


def _integer(value: object) -> int | None:
    if isinstance(value, str) and not value.strip():
        return None
    # Not `int` means text that is no number, several numbers, or a fraction; a fraction is not rounded.
    if not isinstance(value, int) or int(value) not in _INT64:
        raise UnfitError
    return int(value)


def _date(value: object) -> dt.date | None:
    if not isinstance(value, str):
        raise UnfitError
    text = value.strip(" \0")
    if not text:
        return None
    found = _DATE.fullmatch(text)
    if found is None:
        raise UnfitError
    try:
        return dt.date(int(found.group(1)), int(found.group(3)), int(found.group(4)))
    except ValueError:
        raise UnfitError from None


_RULES: dict[str, Callable[[object], object]] = {"text": _text, "integer": _integer, "date": _date}
