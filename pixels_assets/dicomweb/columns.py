"""One level of the information model in memory, as columns that a search passes over in milliseconds.

Text is kept as its sorted distinct values and a number per row, so that exact, list, prefix and range conditions become comparisons of small
integers, and wildcards are looked for once per distinct value. Must not know HTTP, nor where rows come from.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pixels_assets.dicomweb.matching import Condition, fold, normal

__all__ = ["Level", "NumberColumn", "TextColumn", "make_column"]

Mask = NDArray[np.bool_]
Rows = NDArray[np.int32]
_NULL = np.int64(-(2**63))
_FEW = 8
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
        self.distinct = pl.Series(encoded.dictionary.take(pa.array(order)))
        if self.distinct.dtype != pl.String:
            self.distinct = self.distinct.cast(pl.String)
        self._normal, self._odd = self._normalized()

    def _normalized(self) -> tuple[pl.Series, list[int]]:
        """Distinct values as they are compared, and numbers of those that are compared value by value: multiple values, several name groups."""
        distinct = self.distinct
        several = distinct.str.contains("=" if self.vr == "PN" else "\\", literal=True) | distinct.str.contains("\\", literal=True)
        odd = several.arg_true().to_list()
        if self.vr == "PN":
            lowered = distinct.str.to_lowercase().str.strip_chars_end("^ ")
            foreign = distinct.str.len_bytes() != distinct.str.len_chars()
            if foreign.any():
                texts = lowered.to_list()
                for number in foreign.arg_true().to_list():
                    texts[number] = fold(distinct[number])
                return pl.Series(texts, dtype=pl.String), odd
            return lowered, odd
        if self.vr in {"TM", "DT"}:
            return pl.Series([normal(text, self.vr) for text in distinct.to_list()], dtype=pl.String), odd
        return distinct, odd

    def match(self, condition: Condition) -> Mask:
        """Rows that a condition accepts."""
        if condition.values and self._normal is self.distinct and not self._odd:
            found = self._codes_of(condition.values)
        else:
            wanted = self._distinct_that_match(condition)
            if int(np.count_nonzero(wanted)) > _FEW:
                return np.append(wanted, False)[self.codes]  # the code of an absent value, -1, is the last entry
            found = np.flatnonzero(wanted).tolist()
        if len(found) > _FEW:
            return np.isin(self.codes, np.array(found, np.int32))
        mask: Mask = np.zeros(len(self.codes), np.bool_)
        for code in found:
            mask |= self.codes == code
        return mask

    def _distinct_that_match(self, condition: Condition) -> Mask:
        texts = self._normal
        if condition.literal is not None:
            kind, text = condition.literal
            if kind == "contains":
                found = texts.str.contains(text, literal=True)
            else:
                found = texts.str.starts_with(text) if kind == "starts" else texts.str.ends_with(text)
        elif condition.pattern is not None:
            found = texts.str.contains(f"^{condition.pattern}$")
        elif condition.is_range:
            found = pl.repeat(True, len(texts), eager=True)
            if condition.low is not None:
                found &= texts >= condition.low
            if condition.high is not None:
                found &= texts <= condition.high
        elif texts is self.distinct:
            return self._exact(condition)
        else:
            found = texts.is_in(list(condition.values))
        mask: Mask = found.fill_null(False).to_numpy().copy()
        for number in self._odd:
            mask[number] = condition.accepts_any(self.distinct[number].split("\\"))
        return mask

    def _exact(self, condition: Condition) -> Mask:
        mask = np.zeros(len(self.distinct), np.bool_)
        mask[self._codes_of(condition.values)] = True
        for number in self._odd:
            mask[number] = condition.accepts_any(self.distinct[number].split("\\"))
        return mask

    def _codes_of(self, values: Sequence[str]) -> list[int]:
        """Numbers of those values that there are."""
        if not len(self.distinct):
            return []
        places = self.distinct.search_sorted(pl.Series(values, dtype=pl.String)).to_list()
        return [place for place, text in zip(places, values, strict=True) if place < len(self.distinct) and self.distinct[place] == text]

    def take(self, rows: Rows) -> list[str | None]:
        """Values of some rows."""
        codes = self.codes[rows]
        if not len(self.distinct):
            return [None] * len(codes)
        found = self.distinct.gather(np.maximum(codes, 0)).to_list()
        return [None if code < 0 else text for code, text in zip(codes.tolist(), found, strict=True)]

    def find(self, text: str) -> Rows:
        """Rows that have exactly this text."""
        place = int(self.distinct.search_sorted(text)) if len(self.distinct) else 0
        if place >= len(self.distinct) or self.distinct[place] != text:
            return np.empty(0, np.int32)
        return np.flatnonzero(self.codes == place).astype(np.int32)


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
        if self.is_date:
            values = values.cast(pa.int32()).cast(pa.int64())
        self.is_fraction = pa.types.is_floating(values.type)
        if self.is_fraction:
            self.values: NDArray[np.float64] | NDArray[np.int64] = values.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
        else:
            self.values = values.cast(pa.int64()).fill_null(int(_NULL)).to_numpy(zero_copy_only=False)

    def match(self, condition: Condition) -> Mask:
        """Rows that a condition accepts."""
        if self.is_date and condition.is_range:
            mask: Mask = self.values != _NULL
            if condition.low is not None:
                mask &= self.values >= _days(condition.low, up=False)
            if condition.high is not None:
                mask &= self.values <= _days(condition.high, up=True)
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
        if self.is_date:
            texts = np.datetime_as_string(_EPOCH + np.where(found == _NULL, 0, found).astype("timedelta64[D]"))
            return [None if value == _NULL else str(text).replace("-", "") for value, text in zip(found, texts, strict=True)]
        return [None if value == _NULL else value for value in found.tolist()]


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

    def find(self, keyword: str, text: str) -> Rows:
        """Rows that have exactly this text."""
        column = self.columns[keyword]
        assert isinstance(column, TextColumn)
        return column.find(text)
