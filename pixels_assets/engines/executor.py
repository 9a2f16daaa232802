"""What runs on a Spark executor.

Holds the functions that `pixels_assets.engines.spark` sends there. Must not import pyspark, Dagster, Delta or polars: executors have no use for them.

An executor's Python process keeps one supervised worker process, as the local engine does, so that a hostile object costs that object and not the
executor.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from pixels_assets.dicom.pixels import PixelSource, read_value
from pixels_assets.dicom.reader import Header, read_header
from pixels_assets.engines.local import LocalEngine, Outcome
from pixels_assets.engines.shards import IndexSpec, Shard
from pixels_assets.errors import PixelsError
from pixels_assets.intake.archives import walk
from pixels_assets.intake.filetype import DICOM_TYPES
from pixels_assets.intake.objects import MEMBER, FoundObject, SourceFile
from pixels_assets.settings import GIB, Limits

MAX_PIXEL_BYTES = 1 * GIB
"""Largest pixel data that becomes a value: Spark's rows end at 2 GiB."""

Report = Callable[[int, PixelsError | None], None]
"""Told the objects that a task indexed, and the error that ends the run."""

_kept: dict[int, LocalEngine] = {}


class Errors:
    """How errors of tasks add up in Spark: a list."""

    def zero(self, value: list[PixelsError]) -> list[PixelsError]:
        """Return the list to start with."""
        return []

    def addInPlace(self, value1: list[PixelsError], value2: list[PixelsError]) -> list[PixelsError]:  # noqa: N802 - Spark's name
        """Add two lists."""
        return value1 + value2


def index_shards(shards: Iterable[Shard], spec: IndexSpec, report: Report) -> Iterator[Outcome]:
    """Index shards in this task.

    Parameters
    ----------
    shards : iterable of Shard
    spec : IndexSpec
        Of the run. The task's parts bear a name of their own, since Spark may run the same shards twice, even at once.
    report : callable

    Yields
    ------
    Outcome
        One for all shards; none when the environment failed, since Spark would only try that again.
    """
    mine = replace(spec, attempt=f"{spec.attempt}-{secrets.token_hex(4)}")
    try:
        outcome = _engine(spec.settings.worker_bytes).run(shards, mine)
    except PixelsError as error:
        report(0, error)
        return
    report(outcome.tally.objects, None)
    yield outcome


def _engine(worker_bytes: int) -> LocalEngine:
    """Give the engine of this process; its worker is started once and ends with the process."""
    if worker_bytes not in _kept:
        for engine in _kept.values():
            engine.__exit__(None, None, None)
        _kept.clear()
        _kept[worker_bytes] = LocalEngine(1)
    return _kept[worker_bytes]


class PixelData:
    """Pixel data by address, for a column that is computed when it is asked for.

    Addresses of the members of one archive that come in the archive's order cost one pass over it.

    Parameters
    ----------
    limits : Limits
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._file = ""
        self._objects: Iterator[FoundObject] = iter(())

    def __call__(self, path: str) -> bytes | None:
        """Value of the object's pixel data element, as it is stored.

        None without one, above `MAX_PIXEL_BYTES`, and when the object is no longer there.
        """
        file = path.split(MEMBER, 1)[0]
        if file == self._file:
            found = self._next(path)
            if found is not None:
                return self._value(found)
        self._file, self._objects = file, walk(SourceFile(file, 0, 0, ""), self._limits)
        found = self._next(path)
        return None if found is None else self._value(found)

    def _next(self, path: str) -> FoundObject | None:
        return next((found for found in self._objects if found.path == path), None)

    def _value(self, found: FoundObject) -> bytes | None:
        if found.failure is not None or found.file_type not in DICOM_TYPES or found.stream is None or found.identified is None:
            return None
        header = read_header(
            found.stream,
            found.length or 0,
            dataset_offset=found.identified.dataset_offset or 0,
            flags=found.identified.flags,
            max_deflated_bytes=self._limits.max_deflated_bytes,
            max_ratio=self._limits.max_ratio,
        )
        if not isinstance(header, Header) or header.pixel_offset is None:
            return None
        source = PixelSource(header.dataset, header.transfer_syntax or "", header.stream, header.pixel_offset, header.stream_length)
        return read_value(source, max_bytes=MAX_PIXEL_BYTES)
