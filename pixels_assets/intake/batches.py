"""Batches: sealed manifests of the files that one run works through.

Holds the key of a batch, how a stream of files is cut into batches, and the manifest file. Must not list folders or know what changed.

A manifest is gzipped JSON Lines, one `SourceFile` a line, at ``<folder>/<key>.jsonl.gz``. It is written once, under its final name only when
complete, and never changes: running its batch again is exact. Other files in the folder are left alone.
"""

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import orjson

from pixels_assets.errors import BatchError, LakeError
from pixels_assets.intake.objects import Change, Failure, SourceFile, Status

KEY = re.compile(r"[0-9]{8}T[0-9]{6}-[0-9]{4}")
_SUFFIX = ".jsonl.gz"
_PER_MOMENT = 9_999


class Manifests:
    """The sealed batches of one lake.

    Parameters
    ----------
    folder : Path
        Where the manifest files lie; made when the first batch is sealed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keys(self) -> list[str]:
        """Keys of all sealed batches, oldest first.

        Raises
        ------
        LakeError
            The folder cannot be read.
        """
        try:
            names = [item.name for item in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            msg = f"cannot list the batches in {self.folder}: {error.strerror}; grant read access, then run again"
            raise LakeError(msg) from error
        keys = (name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))
        return sorted(key for key in keys if KEY.fullmatch(key))

    def load(self, key: str) -> list[SourceFile]:
        """Files of one batch, in the order in which they were found.

        Raises
        ------
        BatchError
            There is no such batch in this lake, or its manifest is damaged.
        """
        try:
            return list(_files(self._read(key)))
        except (EOFError, zlib.error, gzip.BadGzipFile, ValueError, KeyError, TypeError) as error:
            msg = f"the manifest {self._file(key)} is damaged ({type(error).__name__}); restore it from a backup: it says what the batch is"
            raise BatchError(msg) from error

    def packed(self, key: str) -> bytes:
        """Return the manifest as it lies on disk: gzipped JSON Lines.

        Raises
        ------
        BatchError
            There is no such batch in this lake.
        """
        return self._read(key)

    def digest(self, key: str) -> str:
        """First 16 hex digits of the manifest's SHA-256: the same batch key in another lake has another digest."""
        return sha256(self._read(key)).hexdigest()[:16]

    def seal(self, files: Iterable[SourceFile], *, now: datetime | None = None) -> str:
        """Write one manifest and return the key of the new batch, greater than every key before it.

        The caller holds the lock under which files are compared with what is known, so that no file is sealed twice.

        Raises
        ------
        LakeError
            The folder cannot be written.
        """
        key = next_key(self.keys(), now or datetime.now(UTC))
        unfinished = self.folder / f".{key}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
                for file in files:
                    packed.write(_line(file) + b"\n")
                packed.close()
                raw.flush()
                os.fsync(raw.fileno())
            unfinished.replace(self._file(key))
            self._sync()
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            msg = f"cannot seal a batch in {self.folder}: {error.strerror}; free space or grant write access, then run again"
            raise LakeError(msg) from error
        return key

    def _sync(self) -> None:
        """Make the new name survive a power cut: rows of a batch without a manifest could not be made again."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, key: str) -> bytes:
        if not KEY.fullmatch(key):
            msg = f"batch key {key!r} does not look like 20260102T030405-0001; `pixels status` lists the batches"
            raise BatchError(msg)
        try:
            return self._file(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            msg = f"batch {key!r} has no manifest in {self.folder}: it belongs to another lake or was never sealed; `pixels status` lists the batches"
            raise BatchError(msg) from None

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"


@lru_cache(maxsize=2)  # the steps of a batch ask for its files again and again
def _files(packed: bytes) -> tuple[SourceFile, ...]:
    if not packed:  # which gzip takes for nothing
        raise EOFError
    return tuple(map(_file, gzip.decompress(packed).splitlines()))


def _file(line: bytes) -> SourceFile:
    row = orjson.loads(line)
    failure = row.pop("failure")
    row["change"] = Change(row["change"])
    return SourceFile(**row, failure=Failure(Status(failure["status"]), failure["code"], failure["message"]) if failure else None)


def _line(file: SourceFile) -> bytes:
    try:
        return orjson.dumps(file)
    except TypeError:  # text or a number that orjson does not take
        return json.dumps(asdict(file), ensure_ascii=False, separators=(",", ":")).encode()


def next_key(keys: list[str], now: datetime) -> str:
    """Key after all of `keys`: ``<UTC second>-<number within it>``, sortable as text even when the clock steps back."""
    moment, number = now.astimezone(UTC).strftime("%Y%m%dT%H%M%S"), 1
    if keys and keys[-1][:15] >= moment:
        moment, number = keys[-1][:15], int(keys[-1][16:]) + 1
        if number > _PER_MOMENT:
            later = datetime.strptime(moment, "%Y%m%dT%H%M%S").replace(tzinfo=UTC).timestamp() + 1
            moment, number = datetime.fromtimestamp(later, UTC).strftime("%Y%m%dT%H%M%S"), 1
    return f"{moment}-{number:04d}"


def cut(files: Iterable[SourceFile], *, max_files: int, max_bytes: int) -> Iterator[list[SourceFile]]:
    """Cut a stream of files into batches, in order, each at most `max_files` long and `max_bytes` heavy (one larger file is a batch of its own).

    Removed files weigh nothing: there is nothing to read.
    """
    batch: list[SourceFile] = []
    weight = 0
    for file in files:
        size = 0 if file.change is Change.REMOVED else file.length
        if batch and (len(batch) >= max_files or weight + size > max_bytes):
            yield batch
            batch, weight = [], 0
        batch.append(file)
        weight += size
    if batch:
        yield batch
