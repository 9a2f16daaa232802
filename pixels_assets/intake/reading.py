"""Bytes out of other bytes: windows on a file, decoders that never run ahead, and where expanded bytes are kept.

Holds what every archive format needs to read safely. Must not know the structure of any archive.

All decoding goes through `Expansion`: bounded input, bounded output, and whatever a decoder raises on hostile input becomes a `MemberError`.
"""

import bz2
import lzma
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from io import BytesIO
from itertools import chain
from typing import BinaryIO, NamedTuple, Protocol

from pixels_assets.errors import LakeError
from pixels_assets.intake.budget import MemberError
from pixels_assets.intake.objects import Failure, Status
from pixels_assets.settings import KIB, MIB

READ_BYTES = 256 * KIB
EXPAND_BYTES = 1 * MIB
DECODER_BYTES = 96 * MIB  # what `xz -9` needs, and half as much again
_STEP = 16 * KIB  # decoders copy the rest of their input around: give them little at a time

Read = Callable[[int], bytes]
"""Reads at most so many bytes, and none only at the end; raises `MemberError`."""

TRUNCATED = Failure(Status.CORRUPT, "truncated", "The data end before the object is complete.")
CRC_MISMATCH = Failure(Status.CORRUPT, "crc_mismatch", "The bytes do not match the checksum of their archive.")
SIZE_MISMATCH = Failure(Status.CORRUPT, "size_mismatch", "The bytes are more or fewer than their archive declares.")


class Decoder(Protocol):
    """What `bz2` and `lzma` call a decompressor."""

    @property
    def eof(self) -> bool:
        """The end of the compressed stream was reached."""

    @property
    def needs_input(self) -> bool:
        """Nothing more comes out without more input."""

    @property
    def unused_data(self) -> bytes:
        """Input after the end of the compressed stream."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take input, give at most `max_length` bytes."""


class Inflater:
    """`zlib` in the manner of `bz2` and `lzma`.

    Parameters
    ----------
    wbits : int
        -15 for bare deflate, 31 for gzip with its header and checksum.
    """

    __slots__ = ("_decoder", "needs_input")

    def __init__(self, wbits: int) -> None:
        self._decoder = zlib.decompressobj(wbits)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        """The end of the compressed stream was reached."""
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        """Input after the end of the compressed stream."""
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take input, give at most `max_length` bytes."""
        out = self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)
        # A full output may leave more to come even when all input is taken.
        self.needs_input = not self._decoder.unconsumed_tail and len(out) < max_length
        return out


class Format(NamedTuple):
    """A format that holds one stream: its decoder and the bytes that each of its concatenated parts starts with."""

    new_decoder: Callable[[], Decoder]
    magic: bytes


FORMATS = {
    "gzip": Format(lambda: Inflater(31), b"\x1f\x8b"),
    "bzip2": Format(bz2.BZ2Decompressor, b"BZh"),
    "xz": Format(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=DECODER_BYTES), b"\xfd7zXZ\x00"),
}


class Expansion:
    """Expanded bytes, decoded as they are asked for.

    Parameters
    ----------
    read : callable
        Gives the compressed bytes.
    new_decoder : callable
        Makes the decoder.
    magic : bytes
        When given, further streams that start so may follow, and their bytes are appended (RFC 1952 2.2, and what bzip2 and xz do).

    Attributes
    ----------
    consumed : int
        Compressed bytes taken, exact once the end was reached.
    trailing : bool
        Bytes that belong to no stream follow the last one.
    """

    def __init__(self, read: Read, new_decoder: Callable[[], Decoder], magic: bytes = b"") -> None:
        self._read = read
        self._new_decoder = new_decoder
        self._magic = magic
        self._decoder = self._start()
        self._input = b""
        self._at = 0
        self._failure: Failure | None = None
        self._ended = False
        self.consumed = 0
        self.trailing = False

    def read(self, most: int) -> bytes:
        """Give at most so many bytes, none only at the end.

        Raises
        ------
        MemberError
            The compressed bytes are damaged or end too early; the same again at every later call.
        """
        if self._failure:
            raise MemberError(self._failure)
        try:
            while not self._ended:
                if self._decoder.eof:
                    self._next_stream()
                elif out := self._decode(self._step() if self._decoder.needs_input else b"", most):
                    return out
        except MemberError as error:
            self._failure = error.failure
            raise
        return b""

    def _start(self) -> Decoder:
        with _decoding():
            return self._new_decoder()

    def _decode(self, data: bytes, most: int) -> bytes:
        decoder = self._decoder
        with _decoding():
            out = decoder.decompress(data, most)
        if decoder.eof:
            unused = len(decoder.unused_data)
            self._at -= unused
            self.consumed -= unused
        return out

    def _step(self) -> bytes:
        if self._at == len(self._input):
            self._input, self._at = self._read(READ_BYTES), 0
            if not self._input:
                raise MemberError(TRUNCATED)
        data = self._input[self._at : self._at + _STEP]
        self._at += len(data)
        self.consumed += len(data)
        return data

    def _next_stream(self) -> None:
        if not self._magic or not self._skip_zeros():
            self._ended = True
            return
        if len(self._input) - self._at < len(self._magic):
            self._input, self._at = self._input[self._at :] + self._read(READ_BYTES), 0
        if self._input.startswith(self._magic, self._at):
            self._decoder = self._start()
            return
        self._ended = self.trailing = True
        while self._read(READ_BYTES):
            pass  # a hash may be listening

    def _skip_zeros(self) -> bool:
        """Skip what pads the end, for tapes and for the alignment of xz; False when nothing else is left."""
        while True:
            if self._at == len(self._input):
                self._input, self._at = self._read(READ_BYTES), 0
                if not self._input:
                    return False
            piece = self._input[self._at : self._at + _STEP]
            rest = len(piece.lstrip(b"\0"))
            self._at += len(piece) - rest
            if rest:
                return True


@contextmanager
def _decoding() -> Iterator[None]:
    """Turn what decoders raise into the failure of what they decode."""
    try:
        yield
    except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError, MemoryError) as error:  # OSError is how bz2 speaks of bad data
        if isinstance(error, MemoryError) or "Memory usage limit" in str(error):
            message = f"Expanding the data takes more than {DECODER_BYTES // MIB} MiB of memory."
            raise MemberError(Failure(Status.LIMIT_EXCEEDED, "decoder_memory", message)) from error
        raise MemberError(Failure(Status.CORRUPT, "corrupt_stream", f"The compressed data are damaged ({type(error).__name__}).")) from error


class Window:
    """A part of a seekable stream that others read as well, as a sequence of reads.

    Parameters
    ----------
    stream : BinaryIO
    start, length : int
        The part, in bytes.
    """

    __slots__ = ("_left", "_position", "_stream")

    def __init__(self, stream: BinaryIO, start: int, length: int) -> None:
        self._stream = stream
        self._position = start
        self._left = length

    def read(self, most: int) -> bytes:
        """Give at most so many bytes, none only at the end."""
        if not self._left:
            return b""
        self._stream.seek(self._position)
        data = read_source(self._stream, min(most, self._left))
        self._position += len(data)
        self._left -= len(data)
        return data


class HashingReader:
    """Read a stream once for two purposes: as it is asked for, and for its SHA-256."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = sha256()
        self.length = 0

    def read(self, most: int) -> bytes:
        """Give at most so many bytes, none only at the end."""
        data = read_source(self._stream, most)
        self._digest.update(data)
        self.length += len(data)
        return data

    def finish(self) -> str:
        """Read what is left and return the SHA-256 of everything, lower-case hex."""
        while self.read(EXPAND_BYTES):
            pass
        return self._digest.hexdigest()


def read_source(stream: BinaryIO, most: int) -> bytes:
    """Read from a stream; an operating system's refusal costs the object that was being read.

    Raises
    ------
    MemberError
        With status `unreadable`.
    """
    try:
        return stream.read(most)
    except OSError as error:
        raise MemberError(unreadable(error)) from error


def unreadable(error: OSError) -> Failure:
    """Failure for what the operating system says about opening or reading a file."""
    words = {
        FileNotFoundError: ("not_found", "The file was listed but is no longer there."),
        NotADirectoryError: ("not_found", "The file was listed but is no longer there."),
        PermissionError: ("permission_denied", "Reading the file is not permitted."),
    }
    code, message = words.get(type(error), ("io_error", f"The storage reported an error (errno {error.errno})."))
    return Failure(Status.UNREADABLE, code, message)


class Kept(NamedTuple):
    """Expanded bytes in a seekable place: at position 0, with their count and SHA-256."""

    stream: BinaryIO
    length: int
    content_hash: str


def keep(chunks: Iterator[bytes], memory: int) -> Kept:
    """Hash bytes while they come and keep them, in memory or, when they are many, in an unnamed temporary file.

    Parameters
    ----------
    chunks : iterator of bytes
    memory : int
        Most bytes that stay in memory.

    Raises
    ------
    LakeError
        The folder for temporary files has no room.
    MemberError, WalkError
        From the chunks.
    """
    first, second = next(chunks, b""), next(chunks, b"")
    if not second and len(first) <= memory:  # most members: one chunk, not copied
        return Kept(BytesIO(first), len(first), sha256(first).hexdigest())
    digest = sha256()
    length = 0
    stream: BinaryIO = BytesIO()
    spilled = False
    try:
        for chunk in chain((first, second), chunks):
            digest.update(chunk)
            length += len(chunk)
            if length > memory and not spilled:
                stream, spilled = spill(stream), True
            with _on_disk():
                stream.write(chunk)
        with _on_disk():
            stream.seek(0)
    except BaseException:
        stream.close()
        raise
    return Kept(stream, length, digest.hexdigest())


def spill(stream: BinaryIO) -> BinaryIO:
    """Move bytes from memory to an unnamed temporary file, close the old stream and return the new one, at its end.

    Raises
    ------
    LakeError
        The folder for temporary files has no room.
    """
    with _on_disk():
        file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - the walk closes it
        try:
            stream.seek(0)
            while data := stream.read(EXPAND_BYTES):
                file.write(data)
            file.flush()
        except BaseException:
            file.close()
            raise
    stream.close()
    return file


@contextmanager
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        msg = f"temporary files for large archive members cannot be written to {folder} ({error.strerror}); free space there or set TMPDIR"
        raise LakeError(msg) from error
