"""One level of the information model in memory, as columns that a search passes over in milliseconds.

Text is kept as its sorted distinct values and a number per row, so that exact, list, prefix and range conditions become comparisons of small
integers, and wildcards are looked for once per distinct value. Must not know HTTP, nor where rows come from.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pixels_assets.dicomweb.matching import Condition, comparable

__all__ = ["Level", "NumberColumn", "TextColumn", "make_column"]

Mask = NDArray[np.bool_]
Rows = NDArray[np.int32]
_FEW = 8
"""So many comparisons of all rows cost less than a look-up for each row."""
_AS_STORED = frozenset({"AE", "AS", "CS", "LO", "LT", "SH", "ST", "UC", "UI", "UR", "UT"})
"""VRs whose values are compared as they are stored, without padding."""
_WHOLE_TIME = r"^[0-9]{6}([.][0-9]{0,5}[1-9])?$"
"""Times that are written as they are compared."""
_EPOCH = np.datetime64("1970-01-01")


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
        self.codes: Rows = np.where(indices < 0, np.int32(-1), rank[indices]) if len(order) else np.full(len(values), -1, np.int32)
        self.distinct: pa.StringArray = encoded.dictionary.take(pa.array(order)).cast(pa.string())
        self._compared = self._as_compared()
        self._composed, self._parts, self._owners = self._taken_apart()

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
        if condition.values and self._compared is self.distinct and not len(self._composed):
            return self._rows_of([code for code in map(self._code_of, condition.values) if code >= 0])
        wanted = _matching(self._compared, condition)
        wanted[self._composed] = False
        wanted[self._owners[_matching(self._parts, condition)]] = True
        if np.count_nonzero(wanted) > _FEW:
            return np.append(wanted, False)[self.codes]  # the code of an absent value, -1, is the last entry
        return self._rows_of(np.flatnonzero(wanted).tolist())

    @cached_property
    def _row_of(self) -> Rows | None:
        """Row of each code, where no two rows have the same value."""
        if len(self.distinct) != len(self.codes):
            return None
        rows = np.empty(len(self.codes), np.int32)
        rows[self.codes] = np.arange(len(rows), dtype=np.int32)
        return rows

    def _rows_of(self, codes: Sequence[int]) -> Mask:
        mask: Mask = np.zeros(len(self.codes), np.bool_)
        if self._row_of is not None:
            mask[self._row_of[codes]] = True
            return mask
        if len(codes) > _FEW:
            wanted = np.zeros(len(self.distinct) + 1, np.bool_)
            wanted[codes] = True
            return wanted[self.codes]
        for code in codes:
            mask |= self.codes == code
        return mask

    def _code_of(self, text: str) -> int:
        """Code of a text; -1 where there is none."""
        place = bisect_left(range(len(self.distinct)), text, key=lambda place: self.distinct[place].as_py())
        return place if place < len(self.distinct) and self.distinct[place].as_py() == text else -1

    def take(self, rows: Rows) -> list[str | None]:
        """Values of some rows."""
        codes = self.codes[rows]
        found: list[str | None] = self.distinct.take(pa.array(codes, mask=codes < 0)).to_pylist()
        return found

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
        match = {"contains": pc.match_substring, "starts": pc.starts_with, "ends": pc.ends_with}[kind]
        found = match(texts, text)
    elif condition.pattern is not None:
        # Patterns are dear: they are tried on what has their longest piece of plain text.
        may = _mask(pc.match_substring(texts, condition.piece)) if condition.piece else np.ones(len(texts), np.bool_)
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

    def match(self, condition: Condition) -> Mask:
        """Rows that a condition accepts."""
        if self.is_date and condition.is_range:
            low = self._absent if condition.low is None else _days(condition.low, up=False)
            mask: Mask = self.values >= np.int32(max(low, self._absent + 1))
            if condition.high is not None:
                mask &= self.values <= np.int32(_days(condition.high, up=True))
            return mask
        mask = np.zeros(len(self.values), np.bool_)
        for text in condition.values:
            try:
                number = float(text)
            except ValueError:
                continue
            if self.is_fraction or (number.is_integer() and abs(number) < 2**62):
                mask |= self.values == (number if self.is_fraction else int(number))
        return mask

    def take(self, rows: Rows) -> list[int | float | str | None]:
        """Values of some rows; dates as YYYYMMDD."""
        found = self.values[rows]
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

    def take(self, rows: Rows) -> list[None]:
        """Values of some rows."""
        return [None] * len(rows)


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
