"""multipart/related, written and read as a stream (RFC 2387, DICOM PS3.18 8.6.1.2). Must not know what parts hold."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

__all__ = ["BadBody", "Boundary", "PartReader"]

_HEADER_BYTES = 8192
_PREAMBLE_BYTES = 65_536


class Boundary:
    """What separates the parts of one answer."""

    def __init__(self) -> None:
        self.text = secrets.token_hex(16)

    def content_type(self, media: str, parameters: str = "") -> str:
        """Content-Type of the whole answer."""
        return f'multipart/related; type="{media}"; boundary={self.text}{parameters}'

    def head(self, content_type: str, length: int | None = None, location: str | None = None) -> bytes:
        """Bytes before a part's body."""
        lines = [f"--{self.text}", f"Content-Type: {content_type}"]
        if location is not None:
            lines.append(f"Content-Location: {location}")
        if length is not None:
            lines.append(f"Content-Length: {length}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    @property
    def tail(self) -> bytes:
        """Bytes behind the last part."""
        return f"--{self.text}--\r\n".encode("ascii")

    def join(self, parts: Iterable[tuple[str, bytes]]) -> bytes:
        """Write parts, given as content type and body, as one answer."""
        return b"".join(self.pieces(parts))

    def pieces(self, parts: Iterable[tuple[str, bytes]]) -> Iterator[bytes]:
        """Write parts one after the other."""
        for content_type, body in parts:
            yield self.head(content_type, len(body)) + body + b"\r\n"
        yield self.tail


class BadBody(ValueError):  # noqa: N818 - it names the request's fault
    """The body is not what its Content-Type says."""


@dataclass(slots=True)
class PartReader:
    """Split a multipart body that arrives in pieces; parts go to files as they come.

    Parameters
    ----------
    boundary : bytes
    open_part : callable
        Called with a part's headers, names in lower case, before its first byte: gives a file, or None to pass over the part.
    end_part : callable
        Called when a part is complete.
    """

    boundary: bytes
    open_part: Callable[[Mapping[str, str]], BinaryIO | None]
    end_part: Callable[[], None]
    is_whole: bool = False
    _headers: dict[str, str] = field(default_factory=dict)
    _name: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _file: BinaryIO | None = None
    _parser: MultipartParser | None = None
    _before: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take the next piece of the body.

        Raises
        ------
        BadBody
            It is malformed.
        """
        if self._parser is None:
            data = self._first(data)
            if not data:
                return
            callbacks = {
                "on_part_begin": self._begin,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_header_field": lambda piece, start, end: self._collect(self._name, piece[start:end]),
                "on_header_value": lambda piece, start, end: self._collect(self._value, piece[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": self._opened,
                "on_end": self._finished,
            }
            self._parser = MultipartParser(self.boundary, callbacks)  # type: ignore[arg-type]
        try:
            self._parser.write(data)
        except FormParserError as error:
            msg = f"the multipart body is malformed ({type(error).__name__})"
            raise BadBody(msg) from None

    def _first(self, data: bytes) -> bytes:
        """Bytes from the first boundary on; nothing as long as it has not come. What lies before it means nothing (RFC 2046 5.1.1)."""
        self._before += data
        mark = b"--" + self.boundary
        at = self._before.find(mark)
        while at > 0 and self._before[at - 1 : at] != b"\n":
            at = self._before.find(mark, at + 1)
        if at < 0:
            if len(self._before) > _PREAMBLE_BYTES:
                msg = f"the boundary is not among the first {_PREAMBLE_BYTES} bytes of the multipart body"
                raise BadBody(msg)
            return b""
        found, self._before = self._before[at:], b""
        return found

    def _begin(self) -> None:
        self._headers = {}

    @staticmethod
    def _collect(into: bytearray, piece: bytes) -> None:
        into += piece
        if len(into) > _HEADER_BYTES:
            msg = f"a part's header has more than {_HEADER_BYTES} bytes"
            raise BadBody(msg)

    def _header(self) -> None:
        if len(self._headers) > 32:
            msg = "a part has more than 32 headers"
            raise BadBody(msg)
        self._headers[self._name.decode("latin-1").lower()] = self._value.decode("latin-1").strip()
        self._name.clear()
        self._value.clear()

    def _opened(self) -> None:
        self._file = self.open_part(self._headers)

    def _data(self, piece: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(piece)[start:end])

    def _end(self) -> None:
        self.end_part()
        self._file = None

    def _finished(self) -> None:
        self.is_whole = True
