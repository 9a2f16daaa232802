"""Shards of files, and what is said about them between the process that hands them out and those that index them.

Holds the words, how a batch is cut into shards, and how parts that nobody will commit are removed. Must not load what reads files: whoever hands
out shards has no use for codecs, and would start half a second later.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pixels_assets.engines.processes import RESTING
from pixels_assets.errors import PixelsError
from pixels_assets.intake.objects import Failure, SourceFile
from pixels_assets.lake.parts import Part, remove_parts
from pixels_assets.lake.schema import ANNOTATIONS, DICOM_METADATA, THUMBNAILS, UNZIPPED_ARCHIVES, Table
from pixels_assets.settings import MIB, Settings

OUTPUTS: tuple[Table, ...] = (UNZIPPED_ARCHIVES, DICOM_METADATA, THUMBNAILS, ANNOTATIONS)
"""Tables that every pass can write; each extractor that the settings name adds its own."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Files that one worker takes at a time.

    Parameters
    ----------
    number : int
        Its place in the batch.
    files : tuple of SourceFile
        At least one.
    """

    number: int
    files: tuple[SourceFile, ...]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.length for file in self.files)


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """What to make of the objects, the same for all shards of a run.

    Parameters
    ----------
    lake : Path
    batch : str
    attempt : str
        Unique to the run: part files of two attempts never have the same name.
    outputs : frozenset of str
        Names of the tables to write: of `OUTPUTS`, and of the extractors.
    settings : Settings
    """

    lake: Path
    batch: str
    attempt: str
    outputs: frozenset[str]
    settings: Settings

    @property
    def tables(self) -> tuple[Table, ...]:
        """Tables to write, in order."""
        tables = tuple(table for table in OUTPUTS if table.name in self.outputs)
        if len(tables) == len(self.outputs):
            return tables
        from pixels_assets.engines.extractors import load_extractors

        return (*tables, *(extractor.table for extractor in load_extractors(self.settings) if extractor.name in self.outputs))


@dataclass(slots=True)
class Tally:
    """Counts that add up over shards.

    Parameters
    ----------
    objects : int
        Rows written, loose files and archives included.
    bytes : int
        Bytes of the loose files and archives read, members not counted again.
    statuses, codes : Counter
        Objects by status; failures by error code.
    thumbnails : Counter
        By `thumbnails.status`, and by error code for those without.
    """

    objects: int = 0
    bytes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    thumbnails: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Tally") -> None:
        """Add the counts of another tally to this one."""
        self.objects += other.objects
        self.bytes += other.bytes
        self.statuses.update(other.statuses)
        self.codes.update(other.codes)
        self.thumbnails.update(other.thumbnails)


@dataclass(frozen=True, slots=True)
class Segment:
    """A finished stretch of a shard: its part files are complete on disk.

    Parameters
    ----------
    files_done : int
        Files of the shard that need not be opened again.
    after : str or None
        Address of the last object of the next file that is in finished parts already; None when none is.
    parts : tuple of Part
    tally : Tally
    """

    files_done: int
    after: str | None
    parts: tuple[Part, ...]
    tally: Tally


class Supervisor(Protocol):
    """Whoever runs shards: told what is touched next and what is finished."""

    def opening(self, number: int) -> None:
        """Take note that what comes now belongs to this file of the shard, counted from 0."""

    def entering(self, path: str) -> None:
        """Take note that the bytes of the object with this address are read from now on; said again while a large one makes progress."""

    def indexed(self) -> None:
        """Take note of one more row."""

    def resting(self) -> None:
        """Take note that no object is in hand: rows or extracted members are being written."""

    def finished(self, segment: Segment) -> None:
        """Take over a finished stretch."""


@dataclass(frozen=True, slots=True)
class Order:
    """One shard to index, and what earlier attempts learnt about it; `refused` is keyed by row id."""

    shard: Shard
    spec: IndexSpec
    refused: dict[int, Failure]
    files_done: int
    after: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """How an order ended: `error` is None when it was carried out.

    Parameters
    ----------
    error : PixelsError or None
        The environment failed; the run cannot go on.
    raised : str or None
        Type and place of an exception that an object caused in our code or a library's.
    row : int
        Row id of the object in hand when it was raised, RESTING when there was none.
    out_of_memory : bool
        `raised` was a MemoryError.
    """

    error: PixelsError | None = None
    raised: str | None = None
    row: int = RESTING
    out_of_memory: bool = False


def plan_shards(files: Sequence[SourceFile], *, max_files: int = 64, max_bytes: int = 32 * MIB) -> list[Shard]:
    """Cut the files of a batch into shards, in order: small enough to keep all workers busy to the end, large enough to be worth sending."""
    shards: list[Shard] = []
    current: list[SourceFile] = []
    weight = 0
    for file in files:
        if current and (len(current) >= max_files or weight + file.length > max_bytes):
            shards.append(Shard(len(shards), tuple(current)))
            current, weight = [], 0
        current.append(file)
        weight += file.length
    if current:
        shards.append(Shard(len(shards), tuple(current)))
    return shards


def discard_attempt(spec: IndexSpec, shard: Shard | None = None) -> None:
    """Remove part files that no commit will name.

    Parameters
    ----------
    spec : IndexSpec
    shard : Shard, optional
        Only what a worker that is gone left unfinished of this shard; else all parts of the attempt.
    """
    prefix = f"{spec.attempt}-" + (f"{shard.number:05d}-" if shard else "")
    for table in spec.tables:
        remove_parts(spec.lake, table, spec.batch, prefix, only_unfinished=shard is not None)
