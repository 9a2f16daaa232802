"""What all parts of the server share: settings, the index, the objects, and the way blocking work is run.

Holds the bounds on what runs at once. Must not know any route.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import Path as PathParameter
from pydantic import AfterValidator

from pixels_assets.dicom.reader import Header
from pixels_assets.dicomweb.caching import Cache
from pixels_assets.dicomweb.frames import FrameIndex, header_of, index_frames
from pixels_assets.dicomweb.index import Index, Instance, Snapshot
from pixels_assets.dicomweb.objects import Gone, Objects
from pixels_assets.dicomweb.sending import Room, Taken
from pixels_assets.errors import PixelsError
from pixels_assets.settings import MIB, Settings

__all__ = ["PREFIX", "SLASH", "Busy", "Ingest", "Service", "Uid", "WebSettings", "is_loopback"]

_THREADS = 32

logger = logging.getLogger(__name__)

PREFIX = "/dicom-web"
"""Path below which DICOMweb is served."""

SLASH = "\ue02f"
"""Stands in a path for a slash that was sent as ``%2F``: it belongs to a UID, as damaged objects have them, and is no border between two."""
Uid = Annotated[str, PathParameter(max_length=256, description="Instance UID"), AfterValidator(lambda text: text.replace(SLASH, "/"))]
"""A UID in a path. It is looked up in the catalog and leads nowhere else."""

Ingest = Callable[[Path], None]
"""Brings in what is new in a folder, as `pixels ingest` does, and returns when it is in the catalog."""
Result = TypeVar("Result")


class Busy(Exception):  # noqa: N818 - it names a result
    """Too much of one kind is waiting already."""


def is_loopback(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """How the server behaves. Sizes are bytes, times are seconds.

    Parameters
    ----------
    host, port : str, int
        Address to listen at.
    token : str or None
        What clients have to present; None lets everybody in who reaches the address, which has to be a loopback address then.
    exports : Path
        Folder in which stored objects are kept.
    allow_delete : bool
        DELETE and reject are served, for what was stored here.
    origins : tuple of str
        Other origins whose pages may use the server; none by default.
    public_url : str or None
        How clients see the server, where a proxy stands before it, such as ``https://images.example.org``.
    max_body : int
        One request's body.
    max_object : int
        One stored object.
    idle_seconds : float
        A client that sends or takes nothing for so long is let go.
    request_seconds : float
        A request may take so long altogether, its body included.
    header_seconds : float
        The head of a request has to be there so long after its first byte, or after the connection was made.
    slowest : int
        Bytes a second that a client has to send of its body, or to take of its answer, on the average once it was waited for `idle_seconds`.
    answer_bytes : int
        Bytes of answers that may wait in memory to be taken, all clients together.
    readers : int
        Requests that are served at once, besides those that may wait.
    waiting : int
        So many may wait; more are told to come again.
    refresh_seconds : float
        A search waits so long for a new state of the lake before it is answered from the last one.
    """

    host: str = "127.0.0.1"
    port: int = 8090
    token: str | None = None
    exports: Path = Path("var/exports")
    allow_delete: bool = False
    origins: tuple[str, ...] = ()
    public_url: str | None = None
    max_body: int = 4096 * MIB
    max_object: int = 2048 * MIB
    idle_seconds: float = 60.0
    request_seconds: float = 3600.0
    header_seconds: float = 20.0
    slowest: int = 1024
    answer_bytes: int = 256 * MIB
    readers: int = 32
    waiting: int = 2000
    refresh_seconds: float = 5.0


@dataclass(slots=True)
class Service:
    """The state of one server.

    Parameters
    ----------
    settings : Settings
    web : WebSettings
    index : Index
    objects : Objects
    ingest : callable or None
        None: nothing can be stored.
    """

    settings: Settings
    web: WebSettings
    index: Index
    objects: Objects
    ingest: Ingest | None = None
    frames: Cache[FrameIndex] = field(default_factory=lambda: Cache(128 * MIB, lambda index: index.weight))
    metadata: Cache[tuple[bytes, bytes, str]] = field(default_factory=lambda: Cache(256 * MIB, lambda found: len(found[0]) + len(found[1])))
    """Metadata of series, by what they describe: JSON, the same gzipped, and a tag of its content."""
    threads: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_THREADS, "pixels-serve"))
    room: Room = field(init=False)
    """What answers may take in memory."""
    _refreshing: "asyncio.Task[Snapshot] | None" = None
    _decoders: asyncio.Semaphore | None = None
    _waiting: int = 0

    def __post_init__(self) -> None:
        self.room = Room(self.web.answer_bytes, self.web.idle_seconds)

    async def snapshot(self) -> Snapshot:
        """Give the lake as it is now, or as it was before when loading the present state takes longer than a client should wait."""
        if not self.index.is_stale():
            return self.index.snapshot
        if self._refreshing is None or self._refreshing.done():
            self._refreshing = asyncio.create_task(self.run(self.index.refresh))
        try:
            return await asyncio.wait_for(asyncio.shield(self._refreshing), self.web.refresh_seconds)
        except TimeoutError:
            return self.index.snapshot
        except PixelsError as error:
            logger.warning("the lake could not be loaded again: %s", type(error).__name__)
            return self.index.snapshot

    async def run(self, work: Callable[..., Result], *arguments: object, **named: object) -> Result:
        """Run blocking work in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, partial(work, *arguments, **named))

    async def made(self, work: Callable[..., Result], *arguments: object, size: Callable[[Result], int]) -> tuple[Result, Taken]:
        """Run work as `decode` does, and hold room for what it gives until that is sent: nothing more is made as long as there is none.

        Parameters
        ----------
        work : callable
        size : callable
            Bytes of its result.

        Raises
        ------
        Busy, NoRoom
        """
        async with self._decoding():
            result = await self.run(work, *arguments)
            return result, await self.room.take(size(result))

    async def decode(self, work: Callable[..., Result], *arguments: object, **named: object) -> Result:
        """Run work that needs much memory or time in a thread, as many at once as there are cores.

        Raises
        ------
        Busy
            Too much is waiting already.
        """
        async with self._decoding():
            return await self.run(work, *arguments, **named)

    @asynccontextmanager
    async def _decoding(self) -> AsyncIterator[None]:
        if self._decoders is None:
            self._decoders = asyncio.Semaphore(max(2, self.settings.worker_count))
        if self._waiting >= self.web.waiting:
            raise Busy
        self._waiting += 1
        try:
            async with self._decoders:
                yield
        finally:
            self._waiting -= 1

    def frame_index(self, snapshot: Snapshot, instance: Instance) -> FrameIndex:
        """Where an object's frames lie.

        Raises
        ------
        Gone, NoPixels
        """
        return self.frames.get((instance.path, instance.source_length, instance.source_mtime), lambda: self._index_frames(snapshot, instance))

    def _index_frames(self, snapshot: Snapshot, instance: Instance) -> FrameIndex:
        with self.objects.open(instance, snapshot.roots) as source:
            header = header_of(source, self.settings.limits)
            if not isinstance(header, Header):
                msg = "the header can no longer be read"
                raise Gone(msg)
            return index_frames(header)
