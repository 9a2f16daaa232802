"""One level of the information model in memory, as columns that a search passes over in milliseconds.

Text is kept as its sorted distinct values and a number per row, so that exact, list, prefix and range conditions become comparisons of small
integers, and wildcards are looked for once per distinct value. What few rows have is found in an order of the rows by value, made when it is first
wanted. Must not know HTTP, nor where rows come from.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pixels_assets.dicomweb.matching import Condition, comparable
from pixels_assets.dicomweb.model import elements

__all__ = ["Level", "NumberColumn", "TextColumn", "make_column"]

Mask = NDArray[np.bool_]
Rows = NDArray[np.int32]
Codes = NDArray[np.signedinteger[Any]]
_FEW = 8
"""So many comparisons of all rows cost less than a look-up for each row."""
_SELECTIVE, _MOST_LISTED = 1000, 65_536
"""Rows are ordered by a column with more distinct values than the one, and listed where there are at most as many as the other."""
_APART = 256
"""One of so many distinct values is at hand, to find the others by."""
_TRIED, _MOST_PASSED = 3, 1 << 24
"""So many first characters of a piece of text are looked for in at most so many bytes of texts at once."""
_MOST_WRITTEN = 32_768
"""Elements that a column keeps as JSON, and distinct values of a column of text that does so."""
_QUICK_VALUES, _QUICK_ROWS, _QUICK_LIST = 50_000, 2_000_000, 100
"""So many distinct values or rows are passed over, and so many values of a list looked up, in about a millisecond."""
_AS_STORED = frozenset({"AE", "AS", "CS", "LO", "LT", "SH", "ST", "UC", "UI", "UR", "UT"})
"""VRs whose values are compared as they are stored, without padding."""
_WHOLE_TIME = r"^[0-9]{6}([.][0-9]{0,5}[1-9])?$"
"""Times that are written as they are compared."""
_EPOCH = np.datetime64("1970-01-01")


class _Written:
    """Elements of values, written once as long as there are few.

    Parameters
    ----------
    vr : str
    """

    def __init__(self, vr: str) -> None:
        self._vr = vr
        self._kept: dict[tuple[int, bool], dict[Any, str]] = {}

    def write(self, keys: Sequence[Any], values: Callable[[list[Any]], Iterable[object]], tag: int, always: bool) -> list[str]:
        """Elements by the keys of their values; `values` gives those of keys that were not written yet."""
        kept = self._kept.setdefault((tag, always), {})
        missing = [key for key in dict.fromkeys(keys) if key not in kept]
        if missing:
            if len(kept) + len(missing) > _MOST_WRITTEN:
                kept = self._kept[tag, always] = {}  # another thread goes on with the old one
                missing = list(dict.fromkeys(keys))
            kept.update(zip(missing, elements(tag, self._vr, values(missing), always), strict=True))
        return [kept[key] for key in keys]


class TextColumn:
    """Text, several values of one row joined by a backslash.

    Parameters
    ----------
    values : pyarrow.Array of string
    vr : str
    """

    def __init__(self, values: pa.Array, vr: str) -> None:
        encoded = values.dictionary_encode()
        order = pc.sort_indices(encoded.dictionary).to_numpy()
        rank = np.empty(len(order), np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        indices = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
        self.vr = vr
        codes = np.where(indices < 0, np.int32(-1), rank[indices]) if len(order) else np.full(len(values), -1, np.int32)
        # Codes of few values are narrow: they are compared several times as fast, and take less room.
        self.codes: Codes = codes.astype(np.int8 if len(order) < 2**7 else np.int16 if len(order) < 2**15 else np.int32)
        self.distinct: pa.StringArray = encoded.dictionary.take(pa.array(order)).cast(pa.string())
        self._compared = self._as_compared()
        self._composed, self._parts, self._owners = self._taken_apart()
        self._written = _Written(vr)
        self._is_unique = len(self.distinct) == len(self.codes)
        """No two rows have the same value, and every value that there is has a row."""

    def of_rows(self, rows: Rows) -> "TextColumn":
        """Make a column of the values of some rows, which may repeat, as series have those of their study."""
        found = copy(self)
        for name in ("_row_of", "_order", "_starts"):
            found.__dict__.pop(name, None)
        found.codes = self.codes[rows]
        found._is_unique = self._is_unique and bool(np.all(np.bincount(rows, minlength=len(self.codes)) == 1))
        return found

    def _as_compared(self) -> pa.StringArray:
        """Distinct values as they are compared."""
        distinct = self.distinct
        if self.vr in _AS_STORED:
            trimmed = pc.utf8_rtrim(distinct, " ") if self.vr in {"LT", "ST", "UT"} else pc.utf8_trim(distinct, " \0")
            return distinct if trimmed.equals(distinct) else trimmed
        if self.vr == "PN":
            simple = pc.utf8_rtrim(pc.ascii_lower(distinct), "^ ")
            others = pc.not_equal(pc.binary_length(distinct), pc.utf8_length(distinct))
        else:
            simple = distinct
            others = pc.invert(pc.match_substring_regex(distinct, _WHOLE_TIME if self.vr == "TM" else "^$"))
        texts = [next(iter(comparable(text, self.vr)), None) for text in distinct.filter(others).to_pylist()]
        return pc.replace_with_mask(simple, others, pa.array(texts, pa.string())) if texts else simple

    def _taken_apart(self) -> tuple[Rows, pa.StringArray, Rows]:
        """Codes of values that are several, or have groups; what they consist of, each as it is compared; and the code that each belongs to."""
        composed = pc.match_substring(self.distinct, "\\")
        if self.vr == "PN":
            composed = pc.or_(composed, pc.match_substring(self.distinct, "="))
        codes = np.flatnonzero(composed).astype(np.int32)
        found = [(code, text) for code in codes.tolist() for part in self.distinct[code].as_py().split("\\") for text in comparable(part, self.vr)]
        return codes, pa.array([text for _, text in found], pa.string()), np.array([code for code, _ in found], np.int32)

    def match(self, condition: Condition) -> Mask:
        """Rows that a condition accepts."""
        if self._is_whole(condition):
            return self._rows_of([code for code in map(self._code_of, condition.values) if code >= 0])
        wanted = self._wanted(condition)
        if np.count_nonzero(wanted) > _SELECTIVE:
            mask: Mask = np.append(wanted, False).take(self.codes)  # the code of an absent value, -1, is the last entry
            return mask
        return self._rows_of(np.flatnonzero(wanted).tolist())

    def _wanted(self, condition: Condition) -> Mask:
        """Distinct values that a condition accepts."""
        if self._is_whole(condition):
            wanted: Mask = np.zeros(len(self.distinct), np.bool_)
            wanted[[code for code in map(self._code_of, condition.values) if code >= 0]] = True
            return wanted
        wanted = _matching(self._compared, condition)
        wanted[self._composed] = False
        wanted[self._owners[_matching(self._parts, condition)]] = True
        return wanted

    def among(self, rows: Rows, condition: Condition) -> Mask:
        """Which of some rows a condition accepts."""
        found: Mask = np.append(self._wanted(condition), False).take(self.codes[rows])
        return found

    def listed(self, condition: Condition) -> Rows | None:
        """Rows that a condition accepts, in order, where they are few and found without passing over all; None where that is not so."""
        if not self._is_exact(condition):
            return None
        codes = {code for code in map(self._code_of, condition.values) if code >= 0}
        if self._row_of is not None:
            return np.sort(self._row_of[list(codes)])
        runs = [self._run(code) for code in codes]
        if sum(map(len, runs)) > _MOST_LISTED:
            return None
        return runs[0] if len(runs) == 1 else np.sort(np.concatenate(runs)) if runs else np.empty(0, np.int32)

    def is_quick(self, condition: Condition) -> bool:
        """Whether matching takes about a millisecond, as far as the number of values decides."""
        if condition.pattern is not None or len(condition.values) > _QUICK_LIST:
            return False
        is_ordered = "_order" in self.__dict__ or self.__dict__.get("_row_of") is not None
        return len(self.distinct) <= _SELECTIVE or (is_ordered and (self._is_exact(condition) or len(self.distinct) <= _QUICK_VALUES))

    def _is_exact(self, condition: Condition) -> bool:
        """Whether rows are those that have one of some whole texts, each of which few have."""
        return (len(self.distinct) > _SELECTIVE or self._is_unique) and self._is_whole(condition)

    def _is_whole(self, condition: Condition) -> bool:
        """Whether rows are those that have one of some whole texts."""
        return bool(condition.values) and self._compared is self.distinct and not len(self._composed)

    @cached_property
    def _row_of(self) -> Rows | None:
        """Row of each code, where no two rows have the same value."""
        if not self._is_unique:
            return None
        rows = np.empty(len(self.codes), np.int32)
        rows[self.codes] = np.arange(len(rows), dtype=np.int32)
        return rows

    @cached_property
    def _order(self) -> Rows:
        """Rows by code."""
        return np.argsort(self.codes, kind="stable").astype(np.int32)

    @cached_property
    def _starts(self) -> Rows:
        """Where the rows of each code begin in the order, and at last where those of the last one end."""
        counts = np.bincount(self.codes + np.int32(1), minlength=len(self.distinct) + 1)  # those without a value come first
        return np.cumsum(counts).astype(np.int32)

    def _run(self, code: int) -> Rows:
        """Rows of a code, in order."""
        return self._order[self._starts[code] : self._starts[code + 1]]

    def _rows_of(self, codes: Sequence[int]) -> Mask:
        mask: Mask = np.zeros(len(self.codes), np.bool_)
        if self._row_of is not None:
            mask[self._row_of[codes]] = True
            return mask
        if len(self.distinct) > _SELECTIVE and len(codes) <= _SELECTIVE:
            if codes:
                mask[np.concatenate([self._run(code) for code in codes])] = True
            return mask
        if len(codes) > _FEW:
            wanted = np.zeros(len(self.distinct) + 1, np.bool_)
            wanted[codes] = True
            return wanted.take(self.codes)
        for code in codes:
            mask |= self.codes == code
        return mask

    def _bytes_of(self, code: int) -> bytes:
        borders, data = self._raw
        return bytes(data[borders[code] : borders[code + 1]])

    @cached_property
    def _raw(self) -> tuple[memoryview, memoryview]:
        """Borders of the distinct values, and their bytes."""
        _, borders, data = self.distinct.buffers()
        return memoryview(borders).cast("b").cast("i")[self.distinct.offset :], memoryview(data or b"")

    @cached_property
    def _landmarks(self) -> list[bytes]:
        return [self._bytes_of(code) for code in range(0, len(self.distinct), _APART)]

    def _code_of(self, text: str) -> int:
        """Code of a text; -1 where there is none."""
        if not len(self.distinct):
            return -1
        # Bytes of UTF-8 have the order of the characters.
        wanted = text.encode("utf-8", "surrogatepass")
        above = bisect_left(self._landmarks, wanted) * _APART
        place = bisect_left(range(len(self.distinct)), wanted, max(0, above - _APART), min(above, len(self.distinct)), key=self._bytes_of)
        return place if place < len(self.distinct) and self._bytes_of(place) == wanted else -1

    def take(self, rows: Rows) -> list[str | None]:
        """Values of some rows."""
        return self._texts(self.codes[rows])

    def _texts(self, codes: Codes) -> list[str | None]:
        if len(codes) <= _FEW:
            return [None if code < 0 else self._bytes_of(code).decode() for code in codes.tolist()]
        found: list[str | None] = self.distinct.take(pa.array(codes, mask=codes < 0)).to_pylist()
        return found

    def write(self, rows: Rows, tag: int, *, always: bool) -> list[str]:
        """Elements of some rows, as `elements` writes them."""
        codes = self.codes[rows]
        if len(self.distinct) > _MOST_WRITTEN:
            return elements(tag, self.vr, self._texts(codes), always)
        return self._written.write(codes.tolist(), lambda found: self._texts(np.array(found, np.int32)), tag, always)

    def find(self, text: str) -> Rows:
        """Rows that have exactly this text."""
        code = self._code_of(text)
        if code < 0:
            return np.empty(0, np.int32)
        return self._row_of[[code]] if self._row_of is not None else np.flatnonzero(self.codes == code).astype(np.int32)


def _matching(texts: pa.StringArray, condition: Condition) -> Mask:
    """Which of some texts, each written as it is compared, a condition accepts."""
    if condition.literal is not None:
        kind, text = condition.literal
        if kind == "contains":
            return _containing(texts, text)
        found = pc.starts_with(texts, text) if kind == "starts" else pc.ends_with(texts, text)
    elif condition.pattern is not None:
        # Patterns are dear: they are tried on what has their longest piece of plain text.
        may = _containing(texts, condition.piece) if condition.piece else np.ones(len(texts), np.bool_)
        places = np.flatnonzero(may)
        may[places] = _mask(pc.match_substring_regex(texts.take(pa.array(places)), f"^{condition.pattern}$"))
        return may
    elif condition.is_range:
        bounds = [pc.greater_equal(texts, condition.low)] if condition.low is not None else []
        bounds += [pc.less_equal(texts, condition.high)] if condition.high is not None else []
        found = bounds[0] if len(bounds) == 1 else pc.and_(*bounds)
    elif len(condition.values) == 1:
        found = pc.equal(texts, condition.values[0])
    else:
        found = pc.is_in(texts, value_set=pa.array(condition.values, pa.string()))
    return _mask(found)


def _containing(texts: pa.StringArray, piece: str) -> Mask:
    """Which of some texts contain another one."""
    wanted = np.frombuffer(piece.encode("utf-8", "surrogatepass"), np.uint8)
    _, borders, data = texts.buffers()
    if piece and len(texts) and data is not None and not texts.null_count and data.size <= _MOST_PASSED:
        # All texts are passed over as one: several times as fast as one by one, as long as few of them have the first characters.
        ends = np.frombuffer(borders, np.int32)[texts.offset : texts.offset + len(texts) + 1]
        whole = np.frombuffer(data, np.uint8)[: ends[-1]]
        places = max(0, len(whole) - len(wanted) + 1)
        may = whole[:places] == wanted[0]
        for at, byte in enumerate(wanted[1:_TRIED], 1):
            may &= whole[at : places + at] == byte
        if np.count_nonzero(may) < len(texts) // _TRIED:
            found = np.flatnonzero(may)
            for at, byte in enumerate(wanted[_TRIED:], _TRIED):
                found = found[whole[found + at] == byte]
            rows = np.searchsorted(ends, found, side="right") - 1
            mask: Mask = np.zeros(len(texts), np.bool_)
            mask[rows[(rows >= 0) & (found + len(wanted) <= ends[rows + 1])]] = True
            return mask
    return _mask(pc.match_substring(texts, piece))


def _mask(found: pa.BooleanArray) -> Mask:
    mask: Mask = found.fill_null(False).cast(pa.uint8()).to_numpy().view(np.bool_).copy()  # six times as fast as from bits
    return mask


class NumberColumn:
    """Whole numbers, or dates as days since 1970.

    Parameters
    ----------
    values : pyarrow.Array of integer, floating point or date32
    vr : str
    """

    def __init__(self, values: pa.Array, vr: str) -> None:
        self.vr = vr
        self.is_date = pa.types.is_date(values.type)
        self.is_fraction = pa.types.is_floating(values.type)
        self.values: NDArray[np.float64] | NDArray[np.int64] | NDArray[np.int32]
        if self.is_fraction:
            self.values = values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
        else:
            whole = values.cast(pa.int32()) if self.is_date else values.cast(pa.int64())
            self._absent = np.iinfo(whole.type.to_pandas_dtype()).min
            self.values = whole.fill_null(int(self._absent)).to_numpy(zero_copy_only=False)
        self._written = _Written(vr)

    def match(self, condition: Condition) -> Mask:
        """Rows that a condition accepts."""
        return self._accepted(self.values, condition)

    def among(self, rows: Rows, condition: Condition) -> Mask:
        """Which of some rows a condition accepts."""
        return self._accepted(self.values[rows], condition)

    def _accepted(self, values: NDArray[Any], condition: Condition) -> Mask:
        if self.is_date and condition.is_range:
            low, high = self._bounds(condition)
            mask: Mask = values >= low
            if condition.high is not None:
                mask &= values <= high
            return mask
        mask = np.zeros(len(values), np.bool_)
        for text in condition.values:
            try:
                number = float(text)
            except ValueError:
                continue
            if self.is_fraction or (number.is_integer() and abs(number) < 2**62):
                mask |= values == (number if self.is_fraction else int(number))
        return mask

    def _bounds(self, condition: Condition) -> tuple[np.int32, np.int32]:
        """Days of a range, both included."""
        low = self._absent if condition.low is None else _days(condition.low, up=False)
        high = np.iinfo(np.int32).max if condition.high is None else _days(condition.high, up=True)
        return np.int32(max(low, self._absent + 1)), np.int32(high)

    def listed(self, condition: Condition) -> Rows | None:
        """Rows of a range of days, in order, where rows go from the last day to the first; else None."""
        if not (self.is_date and condition.is_range and self._falls):
            return None
        low, high = self._bounds(condition)
        rising = self.values[::-1]
        end, start = len(rising) - np.searchsorted(rising, low, "left"), len(rising) - np.searchsorted(rising, high, "right")
        return np.arange(start, max(start, end), dtype=np.int32)

    @cached_property
    def _falls(self) -> bool:
        return bool(np.all(self.values[1:] <= self.values[:-1]))

    def is_quick(self, condition: Condition) -> bool:
        """Whether matching takes about a millisecond, as far as the number of values decides."""
        return len(condition.values) <= _FEW

    def write(self, rows: Rows, tag: int, *, always: bool) -> list[str]:
        """Elements of some rows, as `elements` writes them."""
        found = self.values[rows]
        if self.is_fraction:
            return elements(tag, self.vr, self._plain(found), always)
        return self._written.write(found.tolist(), lambda values: self._plain(np.array(values, found.dtype)), tag, always)

    def take(self, rows: Rows) -> list[int | float | str | None]:
        """Values of some rows; dates as YYYYMMDD."""
        return self._plain(self.values[rows])

    def _plain(self, found: NDArray[Any]) -> list[int | float | str | None]:
        if self.is_fraction:
            return [None if np.isnan(value) else float(value) for value in found]
        absent = self._absent
        if self.is_date:
            texts = np.datetime_as_string(_EPOCH + np.where(found == absent, 0, found).astype("timedelta64[D]")).tolist()
            return [None if value == absent else text.replace("-", "") for value, text in zip(found.tolist(), texts, strict=True)]
        return [None if value == absent else value for value in found.tolist()]

    def numbers(self, rows: Rows) -> NDArray[np.int64]:
        """Whole numbers of some rows, 0 where there is none."""
        found = self.values[rows].astype(np.int64)
        return np.where(found == self._absent, 0, found)


class EmptyColumn:
    """An attribute that no row has."""

    def __init__(self, count: int, vr: str) -> None:
        self.vr = vr
        self._count = count

    def match(self, condition: Condition) -> Mask:
        """Rows that a condition accepts: none."""
        return np.zeros(self._count, np.bool_)

    def among(self, rows: Rows, condition: Condition) -> Mask:
        """Which of some rows a condition accepts: none."""
        return np.zeros(len(rows), np.bool_)

    def listed(self, condition: Condition) -> Rows:
        """Rows that a condition accepts: none."""
        return np.empty(0, np.int32)

    def is_quick(self, condition: Condition) -> bool:
        """Whether matching takes about a millisecond."""
        return True

    def take(self, rows: Rows) -> list[None]:
        """Values of some rows."""
        return [None] * len(rows)

    def write(self, rows: Rows, tag: int, *, always: bool) -> list[str]:
        """Elements of some rows, as `elements` writes them."""
        return elements(tag, self.vr, [None], always) * len(rows)


def _days(text: str, *, up: bool) -> int:
    """Days since 1970 of YYYYMMDD; of a day that is none, of the nearest one before (`up`) or after it."""
    year, month, day = int(text[:4]), int(text[4:6]), int(text[6:8])
    if not year >= 1:
        return -(2**31)
    month = min(max(month, 1), 12)
    first = np.datetime64(f"{year:04d}-{month:02d}")
    last = int((first + 1).astype("datetime64[D]").astype(np.int64)) - 1
    days = int(first.astype("datetime64[D]").astype(np.int64)) + day - 1
    if days > last:
        return last if up else last + 1
    return days


Column = TextColumn | NumberColumn | EmptyColumn


def make_column(values: pa.Array | pa.ChunkedArray, vr: str) -> Column:
    """Keep values in the form that suits their type."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    kind = values.type
    if values.null_count == len(values) and vr != "UI":
        return EmptyColumn(len(values), vr)
    if pa.types.is_date(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return NumberColumn(values, vr)
    return TextColumn(values.cast(pa.string()), vr)


@dataclass(slots=True)
class Level:
    """Rows of one level, in the order in which they are answered.

    Parameters
    ----------
    columns : dict of str to column
        By keyword.
    count : int
        Rows.
    """

    columns: dict[str, Column]
    count: int

    def match(self, conditions: Iterable[tuple[str, Condition]], within: Mask | None = None) -> Mask | None:
        """Rows that all conditions accept; None for all rows."""
        mask = within
        for keyword, condition in conditions:
            found = self.columns[keyword].match(condition)
            mask = found if mask is None else mask & found
        return mask

    def rows(self, conditions: Iterable[tuple[str, Condition]]) -> Rows | None:
        """Rows that all conditions accept, in order; None for all rows."""
        conditions = list(conditions)
        listed = [self.columns[keyword].listed(condition) for keyword, condition in conditions]
        fewest = min((rows for rows in listed if rows is not None), key=len, default=None)
        if fewest is None:
            mask = self.match(conditions)
            return None if mask is None else np.flatnonzero(mask).astype(np.int32)
        found = fewest
        for (keyword, condition), rows in zip(conditions, listed, strict=True):
            if rows is not fewest and len(found):
                found = found[self.columns[keyword].among(found, condition)]
        return found

    def is_quick(self, conditions: Iterable[tuple[str, Condition]]) -> bool:
        """Whether matching takes a few milliseconds at most."""
        return self.count <= _QUICK_ROWS and all(self.columns[keyword].is_quick(condition) for keyword, condition in conditions)

    def take(self, rows: Rows, keywords: Sequence[str]) -> list[tuple[object, ...]]:
        """Values of some rows, in the order of the keywords."""
        taken: list[list[object]] = [list(self.columns[keyword].take(rows)) for keyword in keywords]
        return list(zip(*taken, strict=True)) if taken else [()] * len(rows)

    def numbers(self, keyword: str, rows: Rows) -> NDArray[np.int64]:
        """Whole numbers of some rows, 0 where there is none."""
        column = self.columns[keyword]
        return column.numbers(rows) if isinstance(column, NumberColumn) else np.zeros(len(rows), np.int64)

    def find(self, keyword: str, text: str) -> Rows:
        """Rows that have exactly this text."""
        column = self.columns[keyword]
        assert isinstance(column, TextColumn)
        return column.find(text)
