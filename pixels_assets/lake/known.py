"""The files that a lake knows, as many as there may be, in little memory.

Holds the journal in a form that can be read piece by piece, in the order of a listing: sorted files below ``_discovery/known``, each the
last word of some batches on the files that they name. Must not decide what a change is: that is `pixels_assets.lake.changes`.

The manifests of the sealed batches are the truth; what lies here is made from them, only for speed, and made again whenever it does not fit them.
The caller holds the lock of discoveries.
"""

import gzip
import json
import logging
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pixels_assets.errors import BatchError
from pixels_assets.intake.batches import Manifests
from pixels_assets.intake.objects import Change
from pixels_assets.lake.commit import live_parts
from pixels_assets.lake.parts import lake_errors
from pixels_assets.lake.schema import RAW_FILES

logger = logging.getLogger(__name__)

_COLUMNS = {"key": pl.String, "length": pl.Int64, "mtime_ns": pl.Int64, "batch": pl.String, "gone": pl.Boolean}
_MANIFEST = {"path": pl.String, "length": pl.Int64, "mtime_ns": pl.Int64, "change": pl.String, "previous_path": pl.String}
_KNOWN = ["path", "key", "length", "mtime_ns", "journal_ns", "batch"]
_SEGMENT_ROWS = 100_000
_GROUP_ROWS = 8_192
_PIECE_GROUPS = 6
_BATCHES = b"pixels.batches"

Touches = Mapping[str, tuple[int, int]]
"""Files whose time changed and whose bytes did not: path to the journal's time and the time last seen."""


@dataclass(slots=True)
class _Segment:
    """One sorted file, and the least and greatest key of each of its row groups."""

    path: Path
    batches: list[str]
    least: list[str]
    most: list[str]
    file: pq.ParquetFile
    held: tuple[int, pl.DataFrame] | None = None

    @property
    def rows(self) -> int:
        return int(self.file.metadata.num_rows)

    def between(self, low: str, high: str | None) -> Iterator[pl.DataFrame]:
        """Rows whose keys are at least `low` and less than `high`."""
        first = bisect_left(self.most, low)
        last = len(self.least) if high is None else bisect_left(self.least, high)
        for number in range(first, last):
            if self.held is None or self.held[0] != number:
                self.held = number, pl.DataFrame(pl.from_arrow(self.file.read_row_group(number, use_threads=False)))
            rows, keys = self.held[1], self.held[1]["key"]
            start = int(keys.search_sorted(low, side="left"))
            end = len(rows) if high is None else int(keys.search_sorted(high, side="left"))
            yield rows[start : max(start, end)]


class KnownFiles:
    """Every file that the journal holds as present.

    Frames have the columns path, key (see `pixels_assets.intake.listing.listing_key`), length (bytes), mtime_ns (as last seen), journal_ns (the
    journal's) and batch (the one that says so), one row per path, in the order of a listing.

    Parameters
    ----------
    lake : Path
        A lake whose tables exist.
    sealed : Manifests
        Its batches.
    touches : mapping, optional
        Times last seen.

    Raises
    ------
    BatchError
        The manifest of a batch that is not in the sorted files yet is damaged.
    LakeError
        The lake cannot be read or written.
    """

    def __init__(self, lake: Path, sealed: Manifests, touches: Touches | None = None) -> None:
        self._lake, self._sealed, self._touches = lake, sealed, dict(touches or {})
        self._folder = lake / "_discovery" / "known"
        self._looks: npt.NDArray[np.int64] | None = None
        with lake_errors("read what is known", self._folder):
            self._segments = self._caught_up()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was ever known."""
        return not self._segments

    def between(self, low: str, high: str | None) -> pl.DataFrame:
        """Files whose keys are at least `low` and less than `high`; None stands for the end."""
        found = [rows for segment in self._segments for rows in segment.between(low, high)]
        if not found:
            return pl.DataFrame(schema=dict.fromkeys(_KNOWN, pl.String) | {"length": pl.Int64, "mtime_ns": pl.Int64, "journal_ns": pl.Int64})
        rows = pl.concat(found)
        if len(self._segments) > 1:
            rows = rows.unique("key", keep="last", maintain_order=True).sort("key")
        rows = rows.filter(~pl.col("gone")).with_columns(path=pl.col("key").str.replace_all("\0", "/", literal=True), journal_ns="mtime_ns")
        if self._touches:
            pairs = zip(rows["path"].to_list(), rows["journal_ns"].to_list(), strict=True)
            seen = [self._seen(path, journal_ns) for path, journal_ns in pairs]
            rows = rows.with_columns(mtime_ns=pl.Series(seen, dtype=pl.Int64))
        return rows.select(_KNOWN)

    def _seen(self, path: str, journal_ns: int) -> int:
        then, seen = self._touches.get(path, (None, journal_ns))
        return seen if then == journal_ns else journal_ns

    def pieces(self, low: str = "", high: str | None = None) -> Iterator[pl.DataFrame]:
        """All files from one key to another, some ten thousand at a time."""
        starts = sorted(key for segment in self._segments for key in segment.least if key > low and (high is None or key < high))
        bounds = [low, *starts[_PIECE_GROUPS::_PIECE_GROUPS], high]
        for start, end in pairwise(bounds):
            yield self.between(start or "", end)

    def of(self, paths: Iterable[str]) -> pl.DataFrame:
        """Those of some files that are known."""
        keys = sorted(path.replace("/", "\0") for path in paths)
        wanted, found, start = pl.Series(keys, dtype=pl.String), [self.between("", "")], 0
        starts = sorted(key for segment in self._segments for key in segment.least)
        while start < len(keys):
            # Up to where the next row group begins that this one is not in.
            following = bisect_right(starts, keys[start])
            end = bisect_left(keys, starts[following]) if following < len(starts) else len(keys)
            rows = self.between(keys[start], keys[end - 1] + "\0")
            found.append(rows.filter(pl.col("key").is_in(wanted[start:end].implode())))
            start = end
        return pl.concat(found)

    def alike(self, looks: set[tuple[int, int]]) -> pl.DataFrame:
        """Files that have one of these lengths and times."""
        nothing = self.between("", "")
        if not looks or self.is_empty:
            return nothing
        if self._looks is None:
            self._looks = np.sort(np.concatenate([_look(rows["length"], rows["mtime_ns"]) for rows in self.pieces()]))
        wanted = pl.DataFrame(list(looks), schema={"length": pl.Int64, "mtime_ns": pl.Int64}, orient="row")
        numbers = _look(wanted["length"], wanted["mtime_ns"])
        at = np.searchsorted(self._looks, numbers)
        wanted = wanted.filter(pl.Series((at < len(self._looks)) & (self._looks[np.minimum(at, len(self._looks) - 1)] == numbers)))
        if wanted.is_empty():
            return nothing
        return pl.concat([nothing, *(rows.join(wanted, on=["length", "mtime_ns"], how="semi") for rows in self.pieces())])

    def touched(self) -> dict[str, tuple[int, int]]:
        """Return the times last seen that still hold."""
        rows = self.of(self._touches).filter(pl.col("journal_ns") != pl.col("mtime_ns")).select("path", "journal_ns", "mtime_ns")
        return {path: (journal_ns, mtime_ns) for path, journal_ns, mtime_ns in rows.iter_rows()}

    def _caught_up(self) -> list[_Segment]:
        """Read the sorted files, and write those that are missing."""
        ran = {part.batch for part in live_parts(self._lake, RAW_FILES)}
        sealed = set(self._sealed.keys())
        keys = sorted(sealed | ran)
        segments = self._read(keys)
        done = {batch for segment in segments for batch in segment.batches}
        missing = [key for key in keys if key not in done]
        while missing:
            frames, batches, rows = [], [], 0
            if segments and segments[-1].rows < _SEGMENT_ROWS:
                last = segments.pop()
                frames, batches, rows = [pl.DataFrame(pl.from_arrow(last.file.read(use_threads=False)))], list(last.batches), last.rows
                spare: Path | None = last.path
            else:
                spare = None
            while missing and rows < _SEGMENT_ROWS:
                key = missing.pop(0)
                frame = _last_words(_manifest(self._sealed, key) if key in sealed else self._raw(key), key)
                frames.append(frame)
                batches.append(key)
                rows += len(frame)
            segments.append(self._write(frames, batches))
            if spare is not None:
                spare.unlink(missing_ok=True)
        return segments

    def _read(self, keys: Sequence[str]) -> list[_Segment]:
        """Read the sorted files, oldest first; none when they do not hold what the batches up to some key say, and nothing else."""
        try:
            segments = sorted((_open(path) for path in self._folder.glob("*.parquet")), key=lambda segment: (segment.batches, -segment.rows))
        except (OSError, KeyError, ValueError, pa.ArrowException) as error:
            logger.warning("%s is damaged (%s): making it again", self._folder, type(error).__name__)
            segments = []
        # One that a longer one holds as well was on its way out when its process was killed.
        kept = [one for one in segments if not any(one is not other and set(one.batches) < set(other.batches) for other in segments)]
        batches = [batch for segment in kept for batch in segment.batches]
        if batches == list(keys[: len(batches)]):
            return kept
        for path in self._folder.glob("*.parquet"):
            with suppress(FileNotFoundError):
                path.unlink()
        return []

    def _write(self, frames: Sequence[pl.DataFrame], batches: Sequence[str]) -> _Segment:
        rows = pl.concat(frames).unique("key", keep="last", maintain_order=True).sort("key")
        table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        table = table.replace_schema_metadata({_BATCHES: json.dumps(list(batches)).encode()})
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{batches[0]}-{len(batches)}.parquet"
        unfinished = path.with_name(f".{path.name}.tmp")
        pq.write_table(table, unfinished, row_group_size=_GROUP_ROWS, compression="zstd", compression_level=1, use_dictionary=["batch"])
        unfinished.replace(path)
        return _open(path)

    def _raw(self, key: str) -> pl.DataFrame:
        """Read what `raw_files` says of a batch whose manifest is lost."""
        files = [self._lake / RAW_FILES.name / part.path for part in live_parts(self._lake, RAW_FILES) if part.batch == key]
        return pl.read_parquet(files, columns=list(_MANIFEST), hive_partitioning=False)


def _open(path: Path) -> _Segment:
    file = pq.ParquetFile(path, memory_map=False)
    bounds: tuple[list[str], list[str]] = [], []
    column = file.schema_arrow.get_field_index("key")
    for number in range(file.num_row_groups):
        statistics = file.metadata.row_group(number).column(column).statistics
        if statistics is None or not statistics.has_min_max:
            keys = file.read_row_group(number, columns=["key"])["key"]
            least, most = keys[0].as_py(), keys[-1].as_py()
        else:
            least, most = statistics.min, statistics.max
        bounds[0].append(least)
        bounds[1].append(most)
    return _Segment(path, json.loads(file.schema_arrow.metadata[_BATCHES]), *bounds, file)


def _manifest(sealed: Manifests, key: str) -> pl.DataFrame:
    try:
        return pl.read_ndjson(gzip.decompress(sealed.packed(key)), schema=_MANIFEST)
    except (EOFError, zlib.error, gzip.BadGzipFile, pl.exceptions.PolarsError) as error:
        msg = f"the manifest of batch {key} is damaged ({type(error).__name__}); restore it from a backup: it says what the batch is"
        raise BatchError(msg) from error


def _last_words(files: pl.DataFrame, batch: str) -> pl.DataFrame:
    """Say of each file that a batch names whether it is there."""
    nothing = pl.lit(None, pl.Int64)
    left = files.filter(pl.col("previous_path").is_not_null()).select(path="previous_path", length=nothing, mtime_ns=nothing, gone=pl.lit(value=True))
    here = files.select("path", "length", "mtime_ns", gone=pl.col("change") == Change.REMOVED.value)
    # Another file may have taken the place of a moved one: being there outweighs having left.
    both = pl.concat([left, here]).with_columns(key=pl.col("path").str.replace_all("/", "\0", literal=True), batch=pl.lit(batch))
    return both.select(_COLUMNS.keys())


def _look(length: pl.Series, mtime_ns: pl.Series) -> npt.NDArray[np.int64]:
    """Eight bytes for a length and a time; others may have the same."""
    return np.asarray(length.to_numpy() * np.int64(0x9E3779B97F4A7C1) ^ mtime_ns.to_numpy(), np.int64)
