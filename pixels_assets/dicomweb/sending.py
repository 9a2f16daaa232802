"""Answers that wait to be taken: how many bytes of them may be in memory at once, and how they are handed over.

Holds the bound and the response that keeps to it. Must not know what the bytes are.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Self

from fastapi import Response
from starlette.types import Receive, Scope, Send

__all__ = ["SLICE", "HeldResponse", "NoRoom", "Room", "Taken", "sliced"]

SLICE = 256 * 1024
"""Bytes that are handed to a connection at once: it copies what the client does not take."""


_MOST_TURNS = 10


class NoRoom(Exception):  # noqa: N818 - it names a result
    """Clients do not take what waits for them already."""


class Taken:
    """A part of a room; given back once, at the latest when nobody has it any more."""

    def __init__(self, room: "Room", size: int) -> None:
        self._room = room
        self._size = size
        self._loop = asyncio.get_running_loop()

    def release(self) -> None:
        """Give it back."""
        size, self._size = self._size, 0
        if size:
            self._room.give(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        if self._size and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._room.give, self._size)


class Room:
    """Bytes that answers may take in memory together. For one event loop.

    Parameters
    ----------
    most : int
        Bytes. What needs more has the whole room to itself.
    patience : float
        Seconds after which one that waits for room is turned away when none comes free, or altogether after ten times as long.
    """

    def __init__(self, most: int, patience: float) -> None:
        self._most = most
        self._patience = patience
        self._free = most
        self._given = 0.0
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> int:
        """Bytes that are in use."""
        return self._most - self._free

    async def take(self, size: int) -> Taken:
        """Wait for room, in turn.

        Raises
        ------
        NoRoom
            None came free in time.
        """
        size = min(max(size, 1), self._most)
        if self._queue or size > self._free:
            turn = asyncio.get_running_loop().create_future()
            entry = (size, turn)
            self._queue.append(entry)
            try:
                await self._wait(turn)
            except BaseException:
                if turn.done():
                    self.give(size)
                else:
                    self._queue.remove(entry)
                    self._admit()
                raise
        else:
            self._free -= size
        return Taken(self, size)

    async def _wait(self, turn: "asyncio.Future[None]") -> None:
        now = asyncio.get_running_loop().time
        started = now()
        while not turn.done():
            await asyncio.wait([turn], timeout=self._patience)
            if not turn.done() and (now() - max(self._given, started) >= self._patience or now() - started > _MOST_TURNS * self._patience):
                raise NoRoom

    def give(self, size: int) -> None:
        """Take back what was given, and let those in who wait for it."""
        self._given = asyncio.get_running_loop().time()
        self._free += size
        self._admit()

    def _admit(self) -> None:
        while self._queue and self._queue[0][0] <= self._free:
            size, turn = self._queue.popleft()
            self._free -= size
            turn.set_result(None)


def sliced(data: bytes) -> Iterator[bytes]:
    """Cut bytes into what is sent at once."""
    return (data[start : start + SLICE] for start in range(0, len(data), SLICE))


class HeldResponse(Response):
    """Bytes in pieces, none of them copied, whose room is free again when they are sent.

    Parameters
    ----------
    pieces : sequence of bytes
    taken : Taken
    status_code : int
    headers : dict of str to str
    media_type : str, optional
    """

    def __init__(
        self, pieces: Sequence[bytes], taken: Taken, status_code: int = 200, headers: dict[str, str] | None = None, media_type: str | None = None
    ) -> None:
        self._pieces = pieces
        self._taken = taken
        length = str(sum(len(piece) for piece in pieces))
        super().__init__(None, status_code, {"Content-Length": length, **(headers or {})}, media_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        with self._taken:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if sum(len(piece) for piece in self._pieces) <= SLICE:
                await send({"type": "http.response.body", "body": b"".join(self._pieces)})
                return
            for piece in self._pieces:
                for part in sliced(piece):
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
