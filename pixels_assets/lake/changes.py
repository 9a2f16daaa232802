"""What changed in the sources since the lake last looked: new, modified, removed and moved files, sealed into batches.

Holds the comparison of a listing with what is known, and the bookkeeping of a listing that stops half-way. What is known is the journal: the
manifests of all sealed batches, which `raw_files` holds once they have run. Must not read the content of a file but to tell a touched or moved
file from a changed or new one.

The rules
---------
* A file is as known when its size and time are. Other bytes of the same size and time go unnoticed: that is the price of not reading everything.
* Another time and the same size: the bytes decide, by their hash. A touched file is no change, and is not read again at the next look.
* New here, gone there, with the same size, time and hash: moved. Empty files, and files whose batch has not run yet, have no hash: new and removed.
* A known file that cannot be asked for stays known: below a folder that cannot be listed, waiting to be finished, or back before a long look ended.
* A source in which nothing is left at all, though a hundred files of it or more are known, looks like a disk that is not mounted: it is refused, and
  its files stay known, until something is in it again or the caller says that it was emptied on purpose (``accept_empty``, or overwriting).
* Sources that lie within each other are one: each file belongs to the outermost.
"""

import gzip
import json
import logging
import os
import stat
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl

from pixels_assets.errors import SourceMissingError
from pixels_assets.intake.batches import Manifests, cut
from pixels_assets.intake.listing import Listing, Waiting, listing_key
from pixels_assets.intake.objects import Change, SourceFile, file_address, folder_prefix, os_path
from pixels_assets.lake.commit import LOCK_SECONDS, part_files, table_lock
from pixels_assets.lake.known import KnownFiles
from pixels_assets.lake.parts import lake_errors
from pixels_assets.lake.schema import DICOM_METADATA
from pixels_assets.settings import Settings

logger = logging.getLogger(__name__)

_EMPTIED = 100
"""A source of fewer files may well be emptied; with this many known, one that holds nothing at all is taken for not mounted."""

_CHUNK = 20_000
_SMALL_CHUNK = 1_000  # with a time budget, which is looked at after each
_END = "\U0010ffff"  # comes after every name in a folder
_ABANDONED_SECONDS = 7 * 86_400


def manifests(lake: Path) -> Manifests:
    """Return the sealed batches of a lake."""
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
        Names the file that holds what this look missed so far.
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
    changes : dict of Change to int
    skipped : dict of str to int
        Entries that are not files, by kind.
    refused : dict of str to int
        Sources that are empty now, and how many files of each are known: they were left alone.
    """

    batches: list[str] = field(default_factory=list)
    position: Position | None = None
    listed: int = 0
    unchanged: int = 0
    waiting: int = 0
    changes: dict[Change, int] = field(default_factory=lambda: dict.fromkeys(Change, 0))
    skipped: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)


def known_files(lake: Path) -> pl.DataFrame:
    """Every file that the journal holds as present: path, length (bytes), mtime_ns, and the batch that says so; one row per path."""
    with table_lock(lake, "_discovery", LOCK_SECONDS):
        known = KnownFiles(lake, manifests(lake))
        return pl.concat([known.between("", ""), *known.pieces()]).select("path", "length", "mtime_ns", "batch")


def discover(
    lake: Path,
    sources: Sequence[str | os.PathLike[str]],
    settings: Settings,
    *,
    position: Position | None = None,
    seconds: float | None = None,
    overwrite: bool = False,
    patient: bool = False,
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
    patient : bool
        Wait, once and for no longer than the quiet period, for files that are too young, and take those that were left alone in that time.
    exclude : iterable of str
        Addresses of folders never to be entered, such as the lake itself.

    Returns
    -------
    Discovery

    Raises
    ------
    SourceMissingError
        A source does not exist, or all of them are empty though files of them are known; nothing was sealed for any of them.
    SourceVanishedError
        A source went away while it was listed; batches that were sealed before stay sealed.
    LakeError
        The lake cannot be written, or another discovery holds its lock for long.
    """
    for source in sources:
        Listing(source)
    with table_lock(lake, "_discovery", LOCK_SECONDS if seconds is None else max(1.0, seconds)):
        return _Look(lake, sources, settings, position, seconds, overwrite=overwrite, patient=patient, exclude=tuple(exclude)).run()


class _Look:
    def __init__(
        self,
        lake: Path,
        sources: Sequence[str | os.PathLike[str]],
        settings: Settings,
        position: Position | None,
        seconds: float | None,
        *,
        overwrite: bool,
        patient: bool,
        exclude: tuple[str, ...],
    ) -> None:
        self.patient = patient
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.lake, self.settings, self.overwrite, self.exclude = lake, settings, overwrite, exclude
        self.excluded = tuple(folder_prefix(file_address(os.path.realpath(os_path(address)))) for address in exclude)
        self.listings = self._apart([self._listing(os.fspath(source)) for source in sources])
        self.found = Discovery()
        self.sealed = manifests(lake)
        self.known = KnownFiles(lake, self.sealed, _read_touches(lake))
        self.new_touches: dict[str, tuple[int, int]] = {}
        self.moved_from: set[str] = set()
        self.real_folders: dict[str, bool] = {}
        self.missing: set[str] = set()
        self.young: list[tuple[Listing, Waiting]] = []
        self.unlisted: list[str] = []
        self.state_file: Path | None = None
        self.position = self._resume(position) or Position(0, None, time.time_ns())
        self._refuse_emptied()

    def _listing(self, source: str, after: str | None = None) -> Listing:
        return Listing(source, after=after, quiet_seconds=self.settings.quiet_seconds, exclude=self.exclude)

    def _apart(self, listings: list[Listing]) -> list[Listing]:
        """Without those that another one covers, so that no file is listed twice."""
        roots = {listing.prefix: listing for listing in listings}

        def covers(outer: str, inner: str) -> bool:
            apart = any(inner.startswith(folder) and folder.startswith(outer) and folder != outer for folder in self.excluded)
            return outer != inner and inner.startswith(outer) and not apart

        return [listing for prefix, listing in roots.items() if not any(covers(other, prefix) for other in roots)]

    def _resume(self, position: Position | None) -> Position | None:
        """Read what the look missed so far; None when it has to begin anew: that costs time, no files."""
        if position is None or position.source >= len(self.listings):
            return None
        listing = self.listings[position.source]
        if position.after is not None and not position.after.startswith(listing.prefix):
            return None  # other sources than then
        state = _read_packed(_state_file(self.lake, position.moment))
        if state is None:
            return None
        self.state_file = _state_file(self.lake, position.moment)
        self.missing, self.unlisted = set(state["missing"]), list(state["unlisted"])
        self.listings[position.source] = self._listing(os.fsdecode(os_path(listing.source)), position.after)
        return position

    def _refuse_emptied(self) -> None:
        """Take no source for emptied that may only not be mounted."""
        if self.overwrite or self.settings.accept_empty:
            return
        for listing in self.listings:
            with os.scandir(os_path(listing.source)) as entries:
                if next(entries, None) is not None:
                    continue
            count = sum(map(len, self.known.pieces(*_span(listing, None, None))))
            if count >= _EMPTIED:
                self.found.refused[listing.source] = count
        if self.found.refused and len(self.found.refused) == len(self.listings):
            source, count = next(iter(self.found.refused.items()))
            msg = (
                f"source {source!r} is empty, though {count} files of it are known: mount its disk, or, when it was emptied on purpose, "
                "say so with PIXELS_ACCEPT_EMPTY=true; nothing was changed"
            )
            raise SourceMissingError(msg)

    def run(self) -> Discovery:
        for batch in cut(self._changes(), max_files=self.settings.batch_files, max_bytes=self.settings.batch_bytes):
            for file in batch:
                self.found.changes[file.change] += 1
            self.found.batches.append(self.sealed.seal(batch))
        with lake_errors("remember what was listed", self.lake):
            if self.new_touches:
                _write_packed(_touches_file(self.lake), self._touches())
            stopped = self.found.position
            if stopped is not None:
                _forget_abandoned(self.lake)
                _write_packed(_state_file(self.lake, stopped.moment), {"missing": sorted(self.missing - self.moved_from), "unlisted": self.unlisted})
            elif self.state_file is not None:
                self.state_file.unlink(missing_ok=True)
        return self.found

    def _changes(self) -> Iterator[SourceFile]:
        first = self.position.source
        for number, listing in enumerate(self.listings[first:], start=first):
            if listing.source in self.found.refused:
                continue
            after = self.position.after if number == first else None
            for chunk, to in _chunks(listing, self._chunk):
                yield from self._compare(listing, chunk, after, to)
                after = to
                if to is not None and self._is_over():
                    self.found.position = Position(number, to, self.position.moment)
                    break
            for kind, count in listing.counts.skipped.items():
                self.found.skipped[kind] = self.found.skipped.get(kind, 0) + count
            if self.found.position is not None:
                return
        yield from self._grown_up()
        yield from self._removed()

    @property
    def _chunk(self) -> int:
        """Files after which the time is looked at."""
        return min(self.settings.batch_files, _CHUNK if self.deadline is None else _SMALL_CHUNK)

    def _is_over(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def _removed(self) -> Iterator[SourceFile]:
        roots = {listing.prefix: listing.source for listing in self.listings}
        missing = self.missing - self.moved_from
        if self.overwrite:
            missing.update(path for rows in self.known.pieces() for path in rows["path"] if not path.startswith(tuple(roots)))
        gone = self.known.of(missing).select("path", "length", "journal_ns")
        refused = tuple(folder_prefix(source) for source in self.found.refused)
        for number, (path, length, mtime_ns) in enumerate(gone.iter_rows()):
            if number and number % self._chunk == 0 and self._is_over():
                last = len(self.listings) - 1
                self.found.position = Position(last, self.listings[last].prefix + _END, self.position.moment)
                return
            self.missing.discard(path)
            if not self.overwrite and (path.startswith(refused) or self._in_place(path)):
                continue
            source = next((source for prefix, source in roots.items() if path.startswith(prefix)), "")
            yield SourceFile(path, length, mtime_ns, source, Change.REMOVED)

    def _compare(self, listing: Listing, chunk: list[SourceFile | Waiting], after: str | None, to: str | None) -> Iterator[SourceFile]:
        """Tell what changed among the files from `after` to `to`; None stands for the beginning and the end."""
        known = self.known.between(*_span(listing, after, to)).select("path", "length", "mtime_ns")
        before = {path: (length, mtime_ns) for path, length, mtime_ns in known.iter_rows()}
        changed: list[SourceFile] = []
        for entry in chunk:
            was = before.pop(entry.path, None)
            if isinstance(entry, Waiting):
                self.found.waiting += 1
                if entry.ready_ns is not None and self.patient:
                    self.young.append((listing, entry))
            else:
                changed += self._suspect(entry, was)
        inner = (other.prefix for other in self.listings if other.prefix != listing.prefix and other.prefix.startswith(listing.prefix))
        elsewhere = (*self.unlisted, *inner)
        self.missing.update(path for path in before if not path.startswith(elsewhere))
        yield from self._confirm(changed)

    def _suspect(self, file: SourceFile, was: tuple[int, int] | None) -> list[SourceFile]:
        """Tell by size and time whether a file may have changed: it alone, or nothing."""
        if file.failure and file.path.endswith("/"):
            self.unlisted.append(file.path)
        self.found.listed += 1
        if was is None or self.overwrite:
            return [file]
        if was == (file.length, file.mtime_ns) or file.failure:
            self.found.unchanged += 1
            return []
        return [replace(file, change=Change.MODIFIED)]

    def _grown_up(self) -> Iterator[SourceFile]:
        """Wait until files that were too young when they were listed are old enough; those that are being written on are left for another look."""
        if not self.young:
            return
        ready_ns = max(waiting.ready_ns or 0 for _, waiting in self.young)
        seconds = min((ready_ns - time.time_ns()) / 1e9, self.settings.quiet_seconds)
        if seconds > 0:
            logger.info("waiting %.1f s: %d files are younger than %g s", seconds, len(self.young), self.settings.quiet_seconds)
            time.sleep(seconds)
        paths = [waiting.path for _, waiting in self.young]
        rows = self.known.of(paths).select("path", "length", "mtime_ns").iter_rows()
        before = {path: (length, mtime_ns) for path, length, mtime_ns in rows}
        changed: list[SourceFile] = []
        for listing, waiting in self.young:
            entry = listing.look_again(waiting)
            if isinstance(entry, Waiting):
                continue
            self.found.waiting -= 1
            if entry is not None:
                changed += self._suspect(entry, before.get(entry.path))
            elif waiting.path in before:
                self.missing.add(waiting.path)
        yield from self._confirm(changed)

    def _confirm(self, changed: list[SourceFile]) -> Iterator[SourceFile]:
        """Look at content where size and time alone cannot tell: a touched file is no change, a moved one is no new one."""
        paths = [file.path for file in changed if file.change is Change.MODIFIED]
        suspects = {row[0]: row for row in self.known.of(paths).select("path", "length", "journal_ns", "batch").iter_rows()}
        left = {} if self.overwrite else self._left([file for file in changed if file.change is Change.NEW])
        hashes = _content_hashes(self.lake, {path: row[3] for path, row in suspects.items()} | dict(chain.from_iterable(left.values())))
        for file in changed:
            if file.path in suspects:
                _, length, journal_ns, _ = suspects[file.path]
                if length == file.length and file.path in hashes and _hash(file.path) == hashes[file.path]:
                    self.new_touches[file.path] = journal_ns, file.mtime_ns
                    self.found.unchanged += 1
                    continue
            origin = self._origin(file, [path for path, _ in left.get((file.length, file.mtime_ns), ())], hashes)
            yield replace(file, change=Change.MOVED, previous_path=origin) if origin else file

    def _left(self, new: list[SourceFile]) -> dict[tuple[int, int], list[tuple[str, str]]]:
        """Known files that are no longer where they were, and their batches, by a length and time that some new file has."""
        looks = {(file.length, file.mtime_ns) for file in new if file.length and not file.failure}
        alike = self.known.alike(looks).select("path", "length", "mtime_ns", "batch")
        roots = tuple(listing.prefix for listing in self.listings if listing.source not in self.found.refused)
        left: dict[tuple[int, int], list[tuple[str, str]]] = {}
        for path, length, mtime_ns, batch in alike.sort("path").iter_rows():
            if path.startswith(roots) and path not in self.moved_from and not self._in_place(path):
                left.setdefault((length, mtime_ns), []).append((path, batch))
        return left

    def _origin(self, file: SourceFile, candidates: list[str], hashes: Mapping[str, str]) -> str | None:
        candidates = [path for path in candidates if path in hashes and path not in self.moved_from]
        if not candidates or file.change is not Change.NEW or file.failure:
            return None
        found = _hash(file.path)
        origin = next((path for path in candidates if hashes[path] == found), None)
        if origin is not None:
            self.moved_from.add(origin)
        return origin

    def _in_place(self, path: str) -> bool:
        """Whether a known file is where it was. Only what is certainly gone is not: the system may refuse to say."""
        if path.endswith("/") or path.startswith(self.excluded):
            return False
        folder = path[: path.rindex("/") + 1]
        if folder not in self.real_folders:
            self.real_folders[folder] = _is_real(os_path(folder))
        if not self.real_folders[folder]:
            return False
        try:
            return stat.S_ISREG(os.lstat(os_path(path)).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def _touches(self) -> dict[str, tuple[int, int]]:
        """All that still hold, old and new."""
        return self.known.touched() | self.new_touches


def _span(listing: Listing, after: str | None, to: str | None) -> tuple[str, str]:
    """Keys of what lies in a source, after one address and up to another: the least, and the first beyond. None stands for beginning and end."""
    root = listing_key(listing.prefix)
    low = root if after is None else listing_key(after) + "\0"
    # The key of the root ends with the least character there is; with the next one it is just greater than all that it begins.
    high = root[:-1] + "\x01" if to is None else listing_key(to) + "\0"
    return low, max(low, high)


def _chunks(listing: Listing, size: int) -> Iterator[tuple[list[SourceFile | Waiting], str | None]]:
    """Pieces of a listing and the address up to which each is complete; None with the last."""
    chunk: list[SourceFile | Waiting] = []
    for entry in listing:
        if len(chunk) >= size:
            yield chunk, chunk[-1].path
            chunk = []
        chunk.append(entry)
    yield chunk, None


def _is_real(folder: bytes) -> bool:
    """Whether no part of a folder's path is a symbolic link: what lies behind one is not in the source."""
    folder = folder.rstrip(b"/") or b"/"
    return os.path.realpath(folder) == folder


def _hash(path: str) -> str | None:
    try:
        with Path(os.fsdecode(os_path(path))).open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError:
        return None  # it vanished or is unreadable: the run that takes it will say so in its row


def _content_hashes(lake: Path, batches: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 of loose files and archives, as the batch that is named for each has read it; those that no run has read yet are left out."""
    if not batches:
        return {}
    files = part_files(lake, DICOM_METADATA, batches.values())
    if not files:
        return {}
    rows = (
        pl.scan_parquet(files, hive_schema={"batch": pl.String})
        .select("path", "batch", "content_hash")
        .filter(pl.col("path").is_in(list(batches)), pl.col("content_hash").is_not_null())
        .collect()
    )
    return {path: digest for path, batch, digest in rows.iter_rows() if batches[path] == batch}


def _state_file(lake: Path, moment: int) -> Path:
    return lake / "_discovery" / f"unfinished-{moment}.json.gz"


def _touches_file(lake: Path) -> Path:
    return lake / "_discovery" / "touched.json.gz"


def _read_touches(lake: Path) -> dict[str, tuple[int, int]]:
    """Files whose time changed and whose bytes did not: path to the journal's time and the time last seen."""
    return {path: (journal_ns, seen_ns) for path, (journal_ns, seen_ns) in (_read_packed(_touches_file(lake)) or {}).items()}


def _forget_abandoned(lake: Path) -> None:
    """Remove what looks left behind that nobody went on with."""
    for path in (lake / "_discovery").glob("unfinished-*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def _read_packed(path: Path) -> dict[str, Any] | None:
    """Read what `_write_packed` wrote; None when it is missing or damaged: what it holds only saves time."""
    try:
        values: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        logger.warning("%s is damaged (%s): starting without it", path, type(error).__name__)
        return None
    return values


def _write_packed(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_bytes(gzip.compress(json.dumps(values).encode(), 1))
    unfinished.replace(path)
