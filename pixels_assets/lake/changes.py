"""What changed in the sources since the lake last looked: new, modified, removed and moved files, sealed into batches.

Holds the comparison of a listing with what is known, and the bookkeeping of a listing that stops half-way. What is known is the journal: the
manifests of all sealed batches, which `raw_files` holds once they have run. Must not read the content of a file but to tell a touched or moved
file from a changed or new one.
"""

import gzip
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from pathlib import Path

import polars as pl

from pixels_assets.intake.batches import Manifests, cut
from pixels_assets.intake.listing import Listing, Waiting, listing_key
from pixels_assets.intake.objects import Change, SourceFile, os_path
from pixels_assets.lake.commit import open_table, table_lock
from pixels_assets.lake.schema import DICOM_METADATA, RAW_FILES
from pixels_assets.settings import Settings

logger = logging.getLogger(__name__)

_CHUNK = 20_000
_KNOWN = {"path": pl.String, "length": pl.Int64, "mtime_ns": pl.Int64}


def manifests(lake: Path) -> Manifests:
    """Open the sealed batches of a lake."""
    return Manifests(lake / "_manifests")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a listing stopped: small enough for a sensor's cursor.

    Parameters
    ----------
    source : int
        Which of the sources.
    after : str or None
        Address of the last file that was dealt with; None at the beginning of the source.
    moment : int
        Names the file that holds what this pass missed so far.
    """

    source: int
    after: str | None
    moment: int


@dataclass(slots=True)
class Discovery:
    """What one look at the sources found.

    Parameters
    ----------
    batches : list of str
        Keys of the batches sealed by it, oldest first.
    position : Position or None
        Where to go on; None when all sources were listed to the end.
    listed, unchanged, waiting : int
        Files seen, files as known, files that are not yet to be taken.
    ready_ns : int or None
        When the last of the files that only wait for their quiet period can be taken, nanoseconds since 1970 UTC.
    changes : dict of Change to int
    skipped : dict of str to int
        Entries that are not files, by kind.
    """

    batches: list[str] = field(default_factory=list)
    position: Position | None = None
    listed: int = 0
    unchanged: int = 0
    waiting: int = 0
    ready_ns: int | None = None
    changes: dict[Change, int] = field(default_factory=lambda: dict.fromkeys(Change, 0))
    skipped: dict[str, int] = field(default_factory=dict)


def known_files(lake: Path) -> pl.DataFrame:
    """Every file that the journal holds as present: path, length (bytes), mtime_ns, one row per path."""
    columns = ["path", "length", "mtime_ns", "change", "previous_path", "batch"]
    raw = pl.scan_delta(open_table(lake, RAW_FILES.name)).select(columns).collect()
    ran, sealed = set(raw["batch"].unique()), manifests(lake)
    pending = [
        {
            "path": file.path,
            "length": file.length,
            "mtime_ns": file.mtime_ns,
            "change": file.change.value,
            "previous_path": file.previous_path,
            "batch": key,
        }
        for key in sealed.keys()  # noqa: SIM118 - a method, not a mapping
        if key not in ran
        for file in sealed.load(key)
    ]
    journal = pl.concat([raw, pl.DataFrame(pending, schema=raw.schema)]) if pending else raw
    if journal.is_empty():
        return pl.DataFrame(schema=_KNOWN)
    here = journal.select("path", "length", "mtime_ns", "batch", gone=pl.col("change") == Change.REMOVED.value)
    left = journal.filter(pl.col("previous_path").is_not_null()).select(
        path="previous_path", length=pl.lit(None, pl.Int64), mtime_ns=pl.lit(None, pl.Int64), batch="batch", gone=pl.lit(value=True)
    )
    last = pl.concat([left, here]).sort("batch", maintain_order=True).unique("path", keep="last", maintain_order=True)
    return last.filter(~pl.col("gone")).select(_KNOWN.keys())


def discover(
    lake: Path,
    sources: Sequence[str | os.PathLike[str]],
    settings: Settings,
    *,
    position: Position | None = None,
    seconds: float | None = None,
    overwrite: bool = False,
    exclude: Iterable[str] = (),
) -> Discovery:
    """List the sources, compare with what is known, and seal what changed into batches.

    Parameters
    ----------
    lake : Path
        A lake whose tables exist.
    sources : sequence of path
        Folders. A folder that is not among them is left alone: its files stay known.
    settings : Settings
        Batch limits and quiet period.
    position : Position, optional
        Where an earlier call stopped.
    seconds : float, optional
        Time budget; the call returns soon after it with a `position` to go on from.
    overwrite : bool
        Take every listed file as new, and all other known files as removed.
    exclude : iterable of str
        Addresses of folders never to be entered, such as the lake itself.

    Returns
    -------
    Discovery

    Raises
    ------
    SourceMissingError
        A source does not exist; nothing was sealed for any of them.
    LakeError
        The lake cannot be written, or another discovery holds its lock for long.
    """
    for source in sources:
        Listing(source)
    with table_lock(lake, "_discovery"):
        return _Pass(lake, sources, settings, position, seconds, overwrite=overwrite, exclude=tuple(exclude)).run()


class _Pass:
    def __init__(
        self,
        lake: Path,
        sources: Sequence[str | os.PathLike[str]],
        settings: Settings,
        position: Position | None,
        seconds: float | None,
        *,
        overwrite: bool,
        exclude: tuple[str, ...],
    ) -> None:
        self.lake, self.sources, self.settings, self.overwrite, self.exclude = lake, sources, settings, overwrite, exclude
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.found = Discovery()
        self.sealed = manifests(lake)
        self.missing_file: Path | None = None
        self.missing: set[str] = set()
        if position is not None:
            self.missing_file = _missing_file(lake, position.moment)
            if position.source < len(sources) and self.missing_file.exists():
                self.missing = set(json.loads(gzip.decompress(self.missing_file.read_bytes())))
            else:
                position = None
        self.position = position or Position(0, None, time.time_ns())
        known = known_files(lake)
        self.known = known.with_columns(key=pl.col("path").str.replace_all("/", "\0", literal=True)).sort("key")
        self.touched = _read_touched(lake)
        self.newly_touched: dict[str, int] = {}
        self.moved_from: set[str] = set()

    def run(self) -> Discovery:
        for batch in cut(self._changes(), max_files=self.settings.batch_files, max_bytes=self.settings.batch_bytes):
            for file in batch:
                self.found.changes[file.change] += 1
            self.found.batches.append(self.sealed.seal(batch))
        if self.newly_touched:
            _write_touched(self.lake, self.touched | self.newly_touched)
        stopped = self.found.position
        if stopped is not None:
            path = _missing_file(self.lake, stopped.moment)
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, gzip.compress(json.dumps(sorted(self.missing - self.moved_from)).encode(), 1))
        elif self.missing_file is not None:
            self.missing_file.unlink(missing_ok=True)
        return self.found

    def _changes(self) -> Iterator[SourceFile]:
        position = self.position
        for number in range(position.source, len(self.sources)):
            after = position.after if number == position.source else None
            listing = Listing(self.sources[number], after=after, quiet_seconds=self.settings.quiet_seconds, exclude=self.exclude)
            unlisted: list[str] = []
            for chunk, to in _chunks(listing):
                unlisted += [file.path for file in chunk if isinstance(file, SourceFile) and file.failure and file.path.endswith("/")]
                yield from self._compare(listing.source, chunk, after, to, tuple(unlisted))
                after = to
                if to is not None and self.deadline is not None and time.monotonic() > self.deadline:
                    self.found.position = Position(number, to, position.moment)
                    return
            for kind, count in listing.counts.skipped.items():
                self.found.skipped[kind] = self.found.skipped.get(kind, 0) + count
        if self.overwrite:
            roots = tuple(_prefix(Listing(source).source) for source in self.sources)
            self.missing.update(path for path in self.known["path"] if not path.startswith(roots))
        gone = self.known.filter(pl.col("path").is_in(list(self.missing - self.moved_from)))
        for path, length, mtime_ns in gone.select(_KNOWN.keys()).iter_rows():
            yield SourceFile(path, length, mtime_ns, "", Change.REMOVED)

    def _compare(
        self, source: str, chunk: list[SourceFile | Waiting], after: str | None, to: str | None, unlisted: tuple[str, ...]
    ) -> Iterator[SourceFile]:
        """Tell what changed among the files from `after` to `to`; None stands for the beginning and the end."""
        span = self.known.filter(pl.col("path").str.starts_with(_prefix(source)))
        if after is not None:
            span = span.filter(pl.col("key") > listing_key(after))
        if to is not None:
            span = span.filter(pl.col("key") <= listing_key(to))
        before = {path: (length, mtime_ns) for path, length, mtime_ns in span.select(_KNOWN.keys()).iter_rows()}
        changed: list[SourceFile] = []
        for entry in chunk:
            was = before.pop(entry.path, None)
            if isinstance(entry, Waiting):
                self.found.waiting += 1
                if entry.ready_ns is not None:
                    self.found.ready_ns = max(self.found.ready_ns or 0, entry.ready_ns)
                continue
            self.found.listed += 1
            if was is None or self.overwrite:
                changed.append(entry)
            elif was == (entry.length, entry.mtime_ns) or (was[0] == entry.length and self.touched.get(entry.path) == entry.mtime_ns):
                self.found.unchanged += 1
            else:
                changed.append(replace(entry, change=Change.MODIFIED))
        self.missing.update(path for path in before if not path.startswith(unlisted))
        yield from self._confirm(changed)

    def _confirm(self, changed: list[SourceFile]) -> Iterator[SourceFile]:
        """Look at content where size and time alone cannot tell: a touched file is no change, a moved one is no new one."""
        new = [file for file in changed if file.change is Change.NEW and file.length and not file.failure]
        origins = {} if self.overwrite else self._origins(new)
        suspects = {file.path for file in changed if file.change is Change.MODIFIED and not file.failure}
        hashes = _content_hashes(self.lake, suspects | {path for paths in origins.values() for path in paths})
        lengths = dict(self.known.filter(pl.col("path").is_in(list(suspects))).select("path", "length").iter_rows())
        for file in changed:
            if file.path in suspects and lengths[file.path] == file.length and file.path in hashes and _hash(file.path) == hashes[file.path]:
                self.newly_touched[file.path] = file.mtime_ns
                self.found.unchanged += 1
                continue
            origin = self._origin(file, origins.get(file.path, ()), hashes)
            yield replace(file, change=Change.MOVED, previous_path=origin) if origin else file

    def _origins(self, new: list[SourceFile]) -> dict[str, list[str]]:
        """Known files of the same length and time that are no longer where they were, for each new file."""
        if not new or self.known.is_empty():
            return {}
        arrived = pl.DataFrame([(file.path, file.length, file.mtime_ns) for file in new], schema=_KNOWN, orient="row")
        pairs = arrived.join(self.known, on=["length", "mtime_ns"], suffix="_was").select("path", "path_was")
        origins: dict[str, list[str]] = {}
        for path, was in pairs.iter_rows():
            if not os.path.lexists(os_path(was)):
                origins.setdefault(path, []).append(was)
        return origins

    def _origin(self, file: SourceFile, candidates: Iterable[str], hashes: dict[str, str]) -> str | None:
        for was in sorted(candidates):
            if was not in self.moved_from and was in hashes and _hash(file.path) == hashes[was]:
                self.moved_from.add(was)
                return was
        return None


def _prefix(source: str) -> str:
    return source if source.endswith("/") else source + "/"


def _chunks(listing: Listing) -> Iterator[tuple[list[SourceFile | Waiting], str | None]]:
    """Pieces of a listing and the address up to which each is complete; None with the last."""
    queue: deque[SourceFile | Waiting] = deque()
    for entry in listing:
        if len(queue) >= _CHUNK:
            yield list(queue), queue[-1].path
            queue.clear()
        queue.append(entry)
    yield list(queue), None


def _hash(path: str) -> str | None:
    try:
        with Path(os.fsdecode(os_path(path))).open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError:
        return None  # it vanished or is unreadable: the run that takes it will say so in its row


def _content_hashes(lake: Path, paths: set[str]) -> dict[str, str]:
    """SHA-256 of the newest row of each loose file or archive."""
    if not paths:
        return {}
    rows = (
        pl.scan_delta(open_table(lake, DICOM_METADATA.name))
        .filter(pl.col("path").is_in(list(paths)), pl.col("content_hash").is_not_null())
        .select("path", "content_hash", "batch")
        .collect()
        .sort("batch")
        .unique("path", keep="last")
    )
    return dict(rows.select("path", "content_hash").iter_rows())


def _missing_file(lake: Path, moment: int) -> Path:
    return lake / "_discovery" / f"missing-{moment}.json.gz"


def _read_touched(lake: Path) -> dict[str, int]:
    """Files whose time changed and whose bytes did not: path to the time last seen."""
    try:
        values: dict[str, int] = json.loads(gzip.decompress((lake / "_discovery" / "touched.json.gz").read_bytes()))
    except FileNotFoundError:
        return {}
    return values


def _write_touched(lake: Path, values: dict[str, int]) -> None:
    path = lake / "_discovery" / "touched.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, gzip.compress(json.dumps(values).encode(), 1))


def _replace(path: Path, data: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(data)
    unfinished.replace(path)
