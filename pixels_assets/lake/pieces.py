"""Rows put apart by a key: more of them than memory holds come back in pieces, each of which has all rows of its keys.

Holds an external sort that is no more than that: rows are gathered until they are many, sorted by their key and written to a file of their own; a
piece is what all these files have between two keys. Must not know what the rows mean, nor open Delta tables.

Few rows never touch the disk. The files are a process's own: whoever makes them takes care that no other does so in the same folder, and removes
what a killed one left there.
"""

import shutil
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

import polars as pl
import pyarrow as pa

from pixels_assets.lake.parts import MIB, lake_errors

ROWS = 100_000
"""Rows that are gathered before they are written, and read together later, at most about."""
BYTES = 16 * MIB
"""Bytes of either, about."""
_PARTS = 4
"""So many pieces are made of what is read together: whoever works on a piece may need several times its memory."""
_BATCH_ROWS, _BATCH_BYTES = 512, 1 * MIB
_KEY = "_key"
_SEPARATOR = "\x1e"
_ACTION = "put rows aside"


@dataclass(frozen=True, slots=True)
class _Run:
    """A file of rows in the order of their keys: the first key of each of its record batches, and what share of a piece a batch is."""

    path: Path
    firsts: list[str]
    weights: list[float]


class Pieces:
    """Rows in, pieces out, in bounded memory; a context manager, at the end of which the files are gone.

    Parameters
    ----------
    folder : Path
        Of these rows alone; made when there are more than `ROWS`.
    key : sequence of str
        Text columns; rows without a value are together, too.

    Raises
    ------
    LakeError
        A file cannot be written or read. From every method.

    Notes
    -----
    The rows of one key are never parted. When they are more than a piece should have, its frame is a scan of the files, not rows in memory, and what
    is collected of it takes what it takes.
    """

    def __init__(self, folder: Path, key: Sequence[str]) -> None:
        self._folder, self._key = folder, frozenset(key)
        self._order = pl.concat_str([pl.col(name).fill_null("") for name in key], separator=_SEPARATOR).alias(_KEY)
        self._held: list[pl.DataFrame] = []
        self._rows = self._bytes = 0
        self._runs: list[_Run] = []
        self._schema = pl.Schema()

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows, always of the same columns and types."""
        self._schema = rows.schema
        for some in rows.iter_slices(ROWS) if len(rows) else ():
            # Most of a hundred columns may have no values at all.
            filled = [column.name for column in some.iter_columns() if column.null_count() < len(column) or column.name in self._key]
            self._held.append(some.select(filled))
            self._rows += some.height
            self._bytes += int(self._held[-1].estimated_size())
            if self._rows >= ROWS or self._bytes >= BYTES:
                self._flush()

    def __iter__(self) -> Iterator[pl.LazyFrame]:
        """Go through the pieces, in the order of the keys. Rows that are added meanwhile may be missing."""
        if not self._runs:
            if self._held:
                yield self._whole(pl.concat(self._held, how="diagonal").lazy())
            return
        if self._held:
            self._flush()
        bounds = self._bounds()
        for least, end in pairwise([None, *bounds, None]):
            yield from self._between(least, end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._held.clear()
        if self._runs:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _flush(self) -> None:
        """Write what was gathered as one sorted file."""
        rows = pl.concat(self._held, how="diagonal", rechunk=True).with_columns(self._order)
        at_once = max(1, min(_BATCH_ROWS, self._rows * _BATCH_BYTES // max(1, self._bytes)))
        self._held, self._rows, self._bytes = [], 0, 0
        run, order = _Run(self._folder / f"{len(self._runs)}.arrow", [], []), rows[_KEY].arg_sort()
        schema = rows.clear().to_arrow(compat_level=pl.CompatLevel.oldest()).schema
        with lake_errors(_ACTION, self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            with pa.ipc.new_file(run.path, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
                for start in range(0, len(rows), at_once):
                    values = rows[order[start : start + at_once]].to_arrow(compat_level=pl.CompatLevel.oldest())
                    writer.write_table(values)
                    run.firsts.append(values[_KEY][0].as_py())
                    run.weights.append(max(values.num_rows / ROWS, values.nbytes / BYTES))
        self._runs.append(run)

    def _bounds(self) -> list[str]:
        """Keys at which a new piece begins, so that each has about as much as fits."""
        bounds, weight, last = list[str](), 0.0, None
        for first, share in sorted((item for run in self._runs for item in zip(run.firsts, run.weights, strict=True)), key=lambda item: item[0]):
            if weight >= 1 and first != last:
                bounds.append(first)
                weight = 0.0
            weight, last = weight + share, first
        return bounds

    def _between(self, least: str | None, end: str | None) -> Iterator[pl.LazyFrame]:
        """Rows whose key is at least one and before another."""
        # A batch begins with keys of the one before it.
        ranges = [
            (run, max(bisect_left(run.firsts, least) - 1, 0) if least else 0, bisect_left(run.firsts, end) if end else len(run.firsts))
            for run in self._runs
        ]
        ranges = [(run, start, stop) for run, start, stop in ranges if start < stop]
        weight = sum(sum(run.weights[start:stop]) for run, start, stop in ranges)
        edge = max(_BATCH_ROWS / ROWS, _BATCH_BYTES / BYTES)  # of a file, before and after a piece
        if weight > 3 + 2 * len(ranges) * edge:
            wanted = [pl.col(_KEY) >= (least or ""), *([pl.col(_KEY) < end] if end else [])]
            yield pl.concat([self._whole(pl.scan_ipc(run.path).filter(wanted)) for run, _, _ in ranges])
            return
        frames = []
        with lake_errors(_ACTION, self._folder):
            for run, start, stop in ranges:
                with pa.OSFile(str(run.path)) as file, pa.ipc.open_file(file) as reader:
                    rows = pl.DataFrame(pl.from_arrow(pa.Table.from_batches(map(reader.get_batch, range(start, stop)))))
                first = rows[_KEY].search_sorted(least) if least else 0
                last = rows[_KEY].search_sorted(end) if end else len(rows)
                frames.append(rows[first:last])
        yield from self._parts(pl.concat(frames, how="diagonal"))

    def _parts(self, rows: pl.DataFrame) -> Iterator[pl.LazyFrame]:
        order = rows[_KEY].arg_sort()
        keys, start = rows[_KEY].gather(order), 0
        while start < len(rows):
            last = min(start + -(-len(rows) // _PARTS), len(rows)) - 1
            following = keys.search_sorted(keys[last], side="right")
            yield self._whole(rows[order[start:following]].lazy())
            start = following

    def _whole(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """Rows with the columns that they were written without."""
        there = rows.collect_schema()
        return rows.select(pl.col(name) if name in there else pl.lit(None, dtype=kind).alias(name) for name, kind in self._schema.items())
