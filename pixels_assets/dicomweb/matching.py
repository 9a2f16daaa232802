"""What a search asks for: the query string of a QIDO-RS request as attributes, conditions and paging (DICOM PS3.18 8.3.4, PS3.4 C.2.2.2).

Holds the meaning of matching for one value, in plain Python. Must not know where values are stored (see `columns` and `qido`).
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import parse_qsl

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag, tag_for_keyword

__all__ = ["BadQuery", "Condition", "Path", "Query", "comparable", "parse_path", "parse_query", "vr_of"]

Path = tuple[int, ...]
"""An attribute: its tag, behind the tags of the sequences that hold it."""

MAX_LIMIT = 1_000_000
MAX_OFFSET = 1_000_000_000
MAX_PARAMETERS = 64
MAX_VALUES = 10_000
"""Values of one list, such as a list of UIDs."""
MAX_WILDCARDS = 1024
"""Characters of a value with wildcards."""

_OTHERS = frozenset({"accept", "charset", "accept-charset"})
_DATES = frozenset({"DA", "TM", "DT"})
_NUMBERS = frozenset({"IS", "DS", "US", "SS", "UL", "SL", "UV", "SV", "FL", "FD", "AT"})
_UNMATCHED = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "UN", "SQ"})
_DA = re.compile(r"[0-9]{4}(?:[0-9]{2}(?:[0-9]{2})?)?")
_TM = re.compile(r"[0-9]{2}(?:[0-9]{2}(?:[0-9]{2}(?:\.[0-9]{1,6})?)?)?")
_DT = re.compile(r"([0-9]{4}(?:[0-9]{2}){0,5}(?:\.[0-9]{1,6})?)(?:[+-][0-9]{4})?")
_DT_RANGE = re.compile(rf"(?P<low>{_DT.pattern})?-(?P<high>{_DT.pattern})?")
_HEX = re.compile(r"[0-9A-Fa-f]{8}")
_LOWEST = "00000101000000"
_HIGHEST = "99991231235959"


class BadQuery(ValueError):  # noqa: N818 - it names the request's fault, which becomes a 400
    """The query cannot be understood; the message says why, without repeating values."""


@dataclass(frozen=True, slots=True)
class Condition:
    """What one attribute has to be.

    Parameters
    ----------
    path : tuple of int
    vr : str
    values : tuple of str
        Normalized: one of them has to be the value. Numbers are in their shortest form, names folded.
    pattern : str or None
        Regular expression, for wildcards; the whole normalized value has to match. Of the syntax that Python and RE2 share.
    low, high : str or None
        Normalized bounds of a range, both included.
    literal : tuple of (str, str) or None
        What the wildcards come to where that is simple: ``contains``, ``starts`` or ``ends``, and the normalized text.
    piece : str
        Some normalized text that every value has which the pattern matches; empty where there is none.
    """

    path: Path
    vr: str
    values: tuple[str, ...] = ()
    pattern: str | None = None
    low: str | None = None
    high: str | None = None
    literal: tuple[str, str] | None = None
    piece: str = ""

    @property
    def is_range(self) -> bool:
        """Whether bounds count, and not values."""
        return self.low is not None or self.high is not None

    def accepts(self, value: object) -> bool:
        """Whether a single value of the attribute matches."""
        return any(map(self._accepts, comparable(value, self.vr)))

    def _accepts(self, text: str) -> bool:
        if self.pattern is not None:
            return _compiled(self.pattern).fullmatch(text) is not None
        if self.is_range:
            return (self.low is None or text >= self.low) and (self.high is None or text <= self.high)
        return text in self.values

    def accepts_any(self, values: Iterable[object]) -> bool:
        """Whether one of an attribute's values matches (DICOM PS3.4 C.2.2.3)."""
        return any(self.accepts(value) for value in values)


@dataclass(frozen=True, slots=True)
class Query:
    """A search.

    Parameters
    ----------
    conditions : tuple of Condition
        All have to hold. Universal matching is no condition.
    fields : tuple of Path
        Attributes asked for in addition to those that every answer has.
    all_fields : bool
    limit : int or None
    offset : int
    fuzzy : bool
    """

    conditions: tuple[Condition, ...] = ()
    fields: tuple[Path, ...] = ()
    all_fields: bool = False
    limit: int | None = None
    offset: int = 0
    fuzzy: bool = False


@dataclass(slots=True)
class _Found:
    conditions: dict[Path, Condition] = field(default_factory=dict)
    fields: dict[Path, None] = field(default_factory=dict)


def parse_query(query: str | bytes) -> Query:
    """Read the query component of a search.

    Raises
    ------
    BadQuery
        A parameter is unknown or malformed.
    """
    text = query.decode("ascii", "replace") if isinstance(query, bytes) else query
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
    except UnicodeDecodeError:
        msg = "the query is not UTF-8"
        raise BadQuery(msg) from None
    except ValueError:
        msg = f"there are more than {MAX_PARAMETERS} parameters"
        raise BadQuery(msg) from None
    found = _Found()
    limit: int | None = None
    offset, fuzzy, everything = 0, False, False
    for name, value in pairs:
        lowered = name.lower()
        if "\0" in name or "\0" in value:
            msg = "a parameter holds a NUL"
            raise BadQuery(msg)
        if lowered == "limit":
            limit = _count("limit", value, MAX_LIMIT)
        elif lowered == "offset":
            offset = _count("offset", value, MAX_OFFSET)
        elif lowered == "fuzzymatching":
            fuzzy = _truth("fuzzymatching", value)
        elif lowered == "includefield":
            for item in filter(None, (item.strip() for item in value.split(","))):
                if item.lower() == "all":
                    everything = True
                else:
                    found.fields[parse_path(item)] = None
        elif lowered not in _OTHERS:
            _add_condition(found, name, value)
    return Query(tuple(found.conditions.values()), tuple(found.fields), everything, limit, offset, fuzzy)


def _add_condition(found: _Found, name: str, value: str) -> None:
    path = parse_path(name)
    if path in found.conditions:
        msg = f"the attribute {'.'.join(f'{tag:08X}' for tag in path)} is asked for twice"
        raise BadQuery(msg)
    found.fields[path] = None
    condition = make_condition(path, value)
    if condition is not None:
        found.conditions[path] = condition


def make_condition(path: Path, value: str) -> Condition | None:
    """Give what a value asks of an attribute; None where it asks for nothing (universal matching).

    Raises
    ------
    BadQuery
        The value does not fit the attribute.
    """
    vr = vr_of(path[-1])
    if vr in _UNMATCHED:
        msg = f"{_name(path)} has no values that can be compared"
        if value.strip("*"):
            raise BadQuery(msg)
        return None
    value = value.strip(" ") if vr not in {"LT", "ST", "UT"} else value
    if value == "" or set(value) == {"*"}:
        return None
    if vr == "UI":
        return Condition(path, vr, _listed(part.strip() for part in re.split(r"[,\\]", value)))
    if vr in _DATES:
        return _moment(path, vr, value)
    if vr in _NUMBERS:
        numbers = [normal(part, vr) for part in value.split("\\")]
        if None in numbers:
            msg = f"{_name(path)} is not compared with a number"
            raise BadQuery(msg)
        return Condition(path, vr, tuple(number for number in numbers if number is not None))
    # A comma is no character of a code string, so it can only separate several (ModalitiesInStudy=CT,MR).
    parts = _listed(part for part in re.split(r"[,\\]" if vr == "CS" else r"\\", value))
    if any("*" in part or "?" in part for part in parts):
        return _wildcards(path, vr, parts)
    return Condition(path, vr, tuple(normal(part, vr) or "" for part in parts))


def _listed(parts: Iterable[str]) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(part for part in parts if part))
    if not found:
        msg = "a list of values is empty"
        raise BadQuery(msg)
    if len(found) > MAX_VALUES:
        msg = f"a list has more than {MAX_VALUES} values"
        raise BadQuery(msg)
    return found


def _wildcards(path: Path, vr: str, parts: Sequence[str]) -> Condition | None:
    if any(set(part) == {"*"} for part in parts):
        return None
    if sum(map(len, parts)) > MAX_WILDCARDS:
        msg = f"a value with wildcards has more than {MAX_WILDCARDS} characters"
        raise BadQuery(msg)
    folded = [fold(part) if vr == "PN" else part for part in parts]
    patterns = "|".join(f"(?:{_expression(text)})" for text in folded)
    literal, piece = None, ""
    if len(folded) == 1:
        (text,) = folded
        piece = max(re.split(r"[*?]", text), key=len)
        if "?" not in text and "*" not in text.strip("*"):
            literal = ("contains" if text[0] == "*" == text[-1] else "starts" if text[-1] == "*" else "ends", piece)
    return Condition(path, vr, pattern=f"(?s:{patterns})", literal=literal, piece=piece)


def _expression(text: str) -> str:
    return "".join(".*" if piece[0] == "*" else "." if piece == "?" else re.escape(piece) for piece in re.findall(r"\*+|\?|[^*?]+", text))


def _moment(path: Path, vr: str, value: str) -> Condition:
    text = (
        value.replace(":", "")
        if vr != "DA"
        else value.replace(".", "").replace("-", "")
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value)
        else value
    )
    form = {"DA": _DA, "TM": _TM, "DT": _DT}[vr]
    if form.fullmatch(text):
        low = high = text
    elif vr == "DT" and (found := _DT_RANGE.fullmatch(text)) and text != "-":
        low, high = found["low"] or "", found["high"] or ""
    else:
        low, dash, high = text.partition("-")
        low, high = low.strip(), high.strip()
        if not dash or not (low or high) or not all(form.fullmatch(bound) for bound in (low, high) if bound):
            msg = f"{_name(path)} is neither a value nor a range of VR {vr}"
            raise BadQuery(msg)
    return Condition(path, vr, low=_bound(low, vr, _LOWEST) if low else None, high=_bound(high, vr, _HIGHEST) if high else None)


def _bound(text: str, vr: str, filler: str) -> str:
    """Complete a date or time: what is left out is the first moment for a lower bound and the last one for an upper."""
    text = re.sub(r"[+-][0-9]{4}\Z", "", text) if vr == "DT" else text
    whole, dot, fraction = text.partition(".")
    if vr == "DA":
        return whole + filler[len(whole) : 8]
    missing = filler[8:] if vr == "TM" else filler
    if len(whole) < len(missing) or not dot:
        fraction = "999999" if filler == _HIGHEST else ""
    whole += missing[len(whole) :]
    fraction = fraction.ljust(6, "9") if filler == _HIGHEST else fraction.rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def normal(value: object, vr: str) -> str | None:
    """Write a single value so that equal values of an attribute are equal text; None where it is no value of its VR."""
    if value is None or value == "":
        return None
    if vr in _NUMBERS and vr != "AT":
        try:
            number = float(str(value))
        except ValueError:
            return None
        return str(int(number)) if number.is_integer() else repr(number)
    text = str(value)
    if vr == "PN":
        return fold(text)
    if vr == "DA":
        text = text.replace(".", "")
        return text if _DA.fullmatch(text) else None
    if vr == "TM":
        text = text.strip().replace(":", "")
        return _bound(text, vr, _LOWEST) if _TM.fullmatch(text) else None
    if vr == "DT":
        text = text.strip()
        return _bound(text, vr, _LOWEST) if _DT.fullmatch(text) else None
    return text.upper() if vr == "AT" else text.strip(" \0") if vr not in {"LT", "ST", "UT"} else text.rstrip(" ")


def fold(name: str) -> str:
    """Write a person's name without case, accents and trailing delimiters, in which names are compared (DICOM PS3.4 C.2.2.2.1)."""
    text = name.casefold() if name.isascii() else _without_accents(name)
    return "=".join(group.rstrip("^ ") for group in text.split("=")).rstrip("=")


def _without_accents(name: str) -> str:
    decomposed = unicodedata.normalize("NFKD", name.casefold())
    return unicodedata.normalize("NFC", "".join(char for char in decomposed if not unicodedata.combining(char)))


def comparable(value: object, vr: str) -> tuple[str, ...]:
    """Give what conditions are held against: a single value as it is compared, and each group of a name; nothing of what is no value of its VR."""
    text = normal(value, vr)
    if text is None:
        return ()
    return (text, *text.split("=")) if vr == "PN" and "=" in text else (text,)


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def parse_path(text: str) -> Path:
    """Read an attribute as keyword, as eight hexadecimal digits, or as a path of them joined by dots.

    Raises
    ------
    BadQuery
        There is no such attribute.
    """
    tags = []
    for part in text.split("."):
        if _HEX.fullmatch(part):
            tag = int(part, 16)
        else:
            known = tag_for_keyword(part)
            if known is None:
                msg = "a parameter is neither an attribute's keyword or tag nor one that searches know"
                raise BadQuery(msg)
            tag = int(known)
        tags.append(tag)
    if len(tags) > 1 and any(dictionary_has_tag(tag) and dictionary_VR(tag) != "SQ" for tag in tags[:-1]):
        msg = "a path leads through an attribute that is no sequence"
        raise BadQuery(msg)
    if len(tags) > 8:
        msg = "a path has more than 8 tags"
        raise BadQuery(msg)
    return tuple(tags)


def vr_of(tag: int) -> str:
    """VR of an attribute; where the standard leaves a choice, its first, and LO where it says nothing, as for private ones."""
    if not dictionary_has_tag(tag):
        return "LO"
    return dictionary_VR(tag).split(" ")[0]


def _name(path: Path) -> str:
    return ".".join(keyword_for_tag(tag) or f"{tag:08X}" for tag in path)


def _count(name: str, value: str, most: int) -> int:
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        msg = f"{name} is not a whole number from 0"
        raise BadQuery(msg)
    return min(int(value), most)


def _truth(name: str, value: str) -> bool:
    if value.lower() not in {"true", "false"}:
        msg = f"{name} is neither true nor false"
        raise BadQuery(msg)
    return value.lower() == "true"
