"""Files compressed as one stream: gzip (RFC 1952), bzip2 and xz.

Holds what such a file holds: one member, or the members of a TAR. Must not know what members are good for.
"""

from collections.abc import Iterator
from io import BytesIO

from pixels_assets.intake.budget import Budget, MemberError
from pixels_assets.intake.filetype import identify
from pixels_assets.intake.members import Member
from pixels_assets.intake.objects import Failure
from pixels_assets.intake.reading import EXPAND_BYTES, FORMATS, TRUNCATED, Expansion, Read
from pixels_assets.intake.tarfiles import ARCHIVE_TRUNCATED, BLOCK, TarArchive

_SUFFIXES = {
    "gzip": {b".gz": b"", b".tgz": b".tar"},
    "bzip2": {b".bz2": b"", b".tbz2": b".tar", b".tbz": b".tar"},
    "xz": {b".xz": b"", b".txz": b".tar"},
}
_HEADER_BYTES = 64 * 1024
_CRC, _EXTRA, _NAME = 1 << 1, 1 << 2, 1 << 3  # flags of a gzip header


class CompressedFile:
    """Members of a compressed file: those of the TAR when it is one, else the one file that it is.

    Iterate once; each member's bytes are read, if at all, before the next member is asked for.

    Parameters
    ----------
    kind : str
        ``gzip``, ``bzip2`` or ``xz``.
    read : callable
        Gives the compressed bytes.
    length : int
        How many there are.
    name : bytes
        Name of the file, without folders.
    budget : Budget

    Attributes
    ----------
    failure : Failure or None
        What is wrong with the file; final after the last member.
    warnings : list of str
        What is odd about it; final after the last member.
    """

    def __init__(self, kind: str, read: Read, length: int, name: bytes, budget: Budget) -> None:
        self._kind = kind
        self._compressed = read
        self._length = length
        self._name = name
        self._budget = budget
        self._meter = budget.meter(length)
        self._head = b""
        self._expansion: Expansion | None = None
        self.failure: Failure | None = None
        self.warnings: list[str] = []

    def __iter__(self) -> Iterator[Member]:
        try:
            yield from self._members()
        except MemberError as error:
            self.failure = ARCHIVE_TRUNCATED if error.failure == TRUNCATED else error.failure
        if self._expansion and self._expansion.trailing:
            self.warnings.append("trailing_data")

    def _members(self) -> Iterator[Member]:
        head = self._compressed(_HEADER_BYTES)
        name, mtime_ns = _gzip_header(head) if self._kind == "gzip" else (b"", None)
        given = [head]
        form = FORMATS[self._kind]
        self._expansion = Expansion(lambda most: given.pop() if given else self._compressed(most), form.new_decoder, form.magic)
        try:
            while len(self._head) < BLOCK and (chunk := self._expansion.read(BLOCK - len(self._head))):
                self._head += chunk
        except MemberError:
            pass  # it stays, and comes again when the member is read
        if identify(BytesIO(self._head), len(self._head)).name == "tar":
            tar = TarArchive(self._read, self._budget, metered=True)
            try:
                yield from tar
            finally:
                self.failure = tar.failure
                self.warnings += tar.warnings
            return
        yield Member(name or self._name_without_suffix(), None, self._length, mtime_ns, self._chunks)
        while self._read(EXPAND_BYTES):
            pass  # the member was not wanted; but is the file whole?

    def _name_without_suffix(self) -> bytes:
        for suffix, instead in _SUFFIXES[self._kind].items():
            if self._name.lower().endswith(suffix) and len(self._name) > len(suffix):
                return self._name[: -len(suffix)] + instead
        return b"data"

    def _chunks(self) -> Iterator[bytes]:
        while chunk := self._read(EXPAND_BYTES):
            yield chunk

    def _read(self, most: int) -> bytes:
        """Give expanded bytes, counted; the first block, looked at before, comes again."""
        if self._head:
            data, self._head = self._head[:most], self._head[most:]
        else:
            assert self._expansion
            data = self._expansion.read(most)
        if data:
            self._meter.take(len(data))
        return data


def _gzip_header(head: bytes) -> tuple[bytes, int | None]:
    """Name of the file and its modification time, where the header says so (RFC 1952 2.3)."""
    if len(head) < 10:
        return b"", None
    flags = head[3]
    mtime_ns = int.from_bytes(head[4:8], "little") * 1_000_000_000 or None
    at = 10
    if flags & _EXTRA:
        at += 2 + int.from_bytes(head[at : at + 2], "little")
    if not flags & _NAME or at >= len(head):
        return b"", mtime_ns
    name, end, _ = head[at:].partition(b"\0")
    return name if end and len(name) <= 1024 else b"", mtime_ns
