"""Connections that say nothing, or their request's head too slowly or without end, are closed. Must not know what requests are about."""

import asyncio
from typing import Any

import uvicorn

__all__ = ["watched"]

_MOST_HEAD = 64 * 1024
_ANSWER = b"HTTP/1.1 %s\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def watched(config: uvicorn.Config, seconds: float) -> None:
    """Let a server close connections whose request's head is not there in time.

    uvicorn has a limit for what comes between requests, and none for the first request of a connection nor for a head that comes a byte at a time;
    and of its parsers only the slower one bounds a head's size.

    Parameters
    ----------
    config : uvicorn.Config
        The server's; it is loaded.
    seconds : float
        From the connection's start, or the first byte of a further request, to the end of the head.
    """
    config.load()
    protocol: Any = config.http_protocol_class

    class Watched(protocol):  # type: ignore[misc]
        """The server's protocol with a clock."""

        _clock: asyncio.TimerHandle | None = None
        _head = 0
        _in_body = False

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._clock = self.loop.call_later(seconds, self._late)

        def data_received(self, data: bytes) -> None:
            if self._clock is None and not self._is_answering():
                self._clock = self.loop.call_later(seconds, self._late)
            was_in_body = self._in_body
            super().data_received(data)
            self._head += len(data)
            if self._is_answering():
                self._stop()
                self._head = 0
            elif was_in_body:
                # The rest of a body whose request was answered before all of it came is no head, and has so long as one.
                self._head = 0
                if not self._in_body:
                    self._stop()
            elif self._head > _MOST_HEAD:
                self._refuse(b"431 Request Header Fields Too Large")

        def on_headers_complete(self) -> None:
            self._in_body = True
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_body = False
            super().on_message_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)

        def _is_answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _stop(self) -> None:
            if self._clock is not None:
                self._clock.cancel()
                self._clock = None

        def _late(self) -> None:
            self._clock = None
            if not self._is_answering():
                self._refuse(b"408 Request Timeout")

        def _refuse(self, status: bytes) -> None:
            self._stop()
            if not self.transport.is_closing():
                if not self._in_body:  # its request has its answer
                    self.transport.write(_ANSWER % status)
                self.transport.close()

    config.http_protocol_class = Watched
