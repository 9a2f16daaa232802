"""TAR archives, read as a stream (POSIX.1-2017 pax and ustar; GNU long names).

Holds the structure of TAR. Must not know how the archive was compressed or what members are good for.

Everything is read forward, once, so that a compressed TAR needs no space anywhere.
"""

import re
from collections.abc import Iterator
from functools import partial
from io import BytesIO

from pixels_assets.intake.budget import Budget, MemberError
from pixels_assets.intake.members import Member
from pixels_assets.intake.objects import Failure, Status
from pixels_assets.intake.reading import EXPAND_BYTES, TRUNCATED, Read
from pixels_assets.settings import MIB

BLOCK = 512
_HEADER_DATA_BYTES = 1 * MIB  # names and pax records longer than this are an attack
_REGULAR, _OLD_REGULAR, _HARD_LINK, _SYMLINK, _CHARACTER, _BLOCK, _FOLDER, _FIFO = b"0", b"\0", b"1", b"2", b"3", b"4", b"5", b"6"
_PAX, _SOLARIS_PAX, _PAX_GLOBAL = b"x", b"X", b"g"
_GNU_NAME, _GNU_LINK, _GNU_SPARSE, _GNU_FOLDER, _GNU_VOLUME, _GNU_CONTINUED = b"L", b"K", b"S", b"D", b"V", b"M"
_LINKS_AND_DEVICES = frozenset({_HARD_LINK, _SYMLINK, _CHARACTER, _BLOCK, _FIFO})
_NO_STREAMS = frozenset({_FOLDER, _GNU_VOLUME})
_PAX_KEYS = frozenset({b"path", b"size", b"mtime", b"GNU.sparse.name", b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.size"})
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")

ARCHIVE_TRUNCATED = Failure(Status.CORRUPT, "archive_truncated", "The archive ends before it is complete; the members before that were read.")
BAD_HEADER = Failure(Status.CORRUPT, "bad_tar_header", "A header of the archive is damaged; members were searched for behind it.")
SPARSE = Failure(Status.CORRUPT, "unsupported_sparse", "The object is stored as a sparse file, which is not supported.")
CONTINUED = Failure(Status.CORRUPT, "truncated", "The object continues in another volume of the archive.")


class TarArchive:
    """Members of a TAR, in its order.

    Iterate once; what is not read of a member is skipped when the next one is asked for.

    Parameters
    ----------
    read : callable
        Gives the bytes of the archive.
    budget : Budget
    metered : bool
        The bytes that `read` gives are counted already, because they were expanded for it.

    Attributes
    ----------
    failure : Failure or None
        What is wrong with the archive itself; final after the last member.
    warnings : list of str
        What is odd about it; final after the last member.
    """

    def __init__(self, read: Read, budget: Budget, *, metered: bool) -> None:
        self._read = self._source = read
        self._budget = budget
        self._metered = metered
        self._left = 0  # of the present member's data
        self._padding = 0
        self._links = 0
        self._joined = 1  # archives that follow each other
        self._global: dict[bytes, bytes] = {}
        self.failure: Failure | None = None
        self.warnings: list[str] = []

    def __iter__(self) -> Iterator[Member]:
        try:
            yield from self._members()
            self._finish()
        except MemberError as error:
            self.failure = ARCHIVE_TRUNCATED if error.failure == TRUNCATED else error.failure
        finally:
            if self._links:
                self.warnings.append(f"links_skipped: {self._links}")
            if self._joined > 1:
                self.warnings.append(f"archives_joined: {self._joined}")

    def _members(self) -> Iterator[Member]:
        own: dict[bytes, bytes] = {}  # what extended headers say about the next member
        while (block := self._next_header()) is not None:
            kind = block[156:157]
            length = _number(block[124:136])
            if kind in {_PAX, _SOLARIS_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK}:
                data = self._header_data(length)
                if kind == _GNU_NAME:
                    own[b"path"] = data.partition(b"\0")[0]
                elif kind != _GNU_LINK:
                    (self._global if kind == _PAX_GLOBAL else own).update(_pax_records(data))
                continue
            about = {**self._global, **own}
            own = {}
            member = self._member(block, kind, length, about)
            if member:
                yield member
            else:
                self._budget.count_member()

    def _member(self, block: bytes, kind: bytes, length: int, about: dict[bytes, bytes]) -> Member | None:
        """Take in a header; leave the stream at the member's data. None for what is no byte stream."""
        name = about.get(b"GNU.sparse.name") or about.get(b"path") or _name(block)
        if b"size" in about and about[b"size"].isdigit():
            length = int(about[b"size"][:20])
        if kind in _LINKS_AND_DEVICES:
            self._links += 1
            return None
        if kind in _NO_STREAMS or (not length and name.endswith(b"/")):
            return None
        sparse = kind == _GNU_SPARSE or any(key.startswith(b"GNU.sparse.") for key in about)
        if kind == _GNU_SPARSE and block[482]:
            while self._exactly(BLOCK)[504]:
                pass
        self._left, self._padding = length, -length % BLOCK
        if kind == _GNU_FOLDER:
            return None
        failure = SPARSE if sparse else CONTINUED if kind == _GNU_CONTINUED else None
        return Member(name, length, None, _mtime_ns(block, about), partial(self._chunks, length), failure)

    def _chunks(self, length: int) -> Iterator[bytes]:
        meter = self._budget.meter()
        meter.check(length)
        while self._left:
            chunk = self._read(min(EXPAND_BYTES, self._left))
            if not chunk:
                raise MemberError(TRUNCATED)
            self._left -= len(chunk)
            if not self._metered:
                meter.take(len(chunk))
            yield chunk

    # --- headers

    def _next_header(self) -> bytes | None:
        """Block of the next header; None at the end of the archive."""
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        block = self._block()
        if block is None:
            self.warnings.append("end_marker_missing")
            return None
        if not any(block):
            return self._behind_end()
        if is_header(block):
            return block
        self.failure = BAD_HEADER
        while (block := self._block()) is not None:
            if block[257:262] == b"ustar" and is_header(block):
                return block
        return None

    def _behind_end(self) -> bytes | None:
        """Block of the first header of an archive that follows, as `cat` joins them; None when only zeros do, or something that should not."""
        while data := self._upto(EXPAND_BYTES):
            zeros = len(data) - len(data.lstrip(b"\0"))
            if zeros == len(data):
                continue
            rest = BytesIO(data[zeros - zeros % BLOCK :])
            block = rest.read(BLOCK)
            if block[257:262] == b"ustar" and is_header(block):
                self._read = partial(_either, rest.read, self._source)
                self._joined += 1
                self._global = {}
                return block
            self.warnings.append("trailing_data")
            break
        return None

    def _finish(self) -> None:
        """Read to the end: checksums of a compression stand there."""
        while self._read(EXPAND_BYTES):
            pass

    def _header_data(self, length: int) -> bytes:
        if length > _HEADER_DATA_BYTES:
            raise MemberError(Failure(Status.LIMIT_EXCEEDED, "tar_header_too_large", f"A header has more than {_HEADER_DATA_BYTES} bytes."))
        data = self._exactly(length)
        self._skip(-length % BLOCK)
        return data

    # --- bytes

    def _block(self) -> bytes | None:
        block = self._upto(BLOCK)
        if block and len(block) < BLOCK:
            raise MemberError(TRUNCATED)
        return block or None

    def _exactly(self, count: int) -> bytes:
        data = self._upto(count)
        if len(data) < count:
            raise MemberError(TRUNCATED)
        return data

    def _upto(self, count: int) -> bytes:
        data = self._read(count) if count else b""
        while len(data) < count and (more := self._read(count - len(data))):
            data += more
        return data

    def _skip(self, count: int) -> None:
        while count:
            data = self._read(min(EXPAND_BYTES, count))
            if not data:
                raise MemberError(TRUNCATED)
            count -= len(data)


def _either(first: Read, second: Read, most: int) -> bytes:
    return first(most) or second(most)


def is_header(block: bytes) -> bool:
    """Tell whether a block is a header of a TAR: its checksum is right and it is not all zeros.

    Parameters
    ----------
    block : bytes
        512 bytes.
    """
    if len(block) < BLOCK:
        return False
    found = _OCTAL.fullmatch(block[148:156])
    if not found or not found.group(1):
        return False
    said = int(found.group(1), 8)
    rest = block[:148] + b"        " + block[156:BLOCK]
    total = sum(rest)
    # Some old writers summed signed bytes.
    return said in {total, total - 256 * sum(byte > 127 for byte in rest)}


def _number(field: bytes) -> int:
    """Value of a numeric field: octal digits, or big-endian binary when the first bit is set, as GNU does for large ones.

    Raises
    ------
    MemberError
        It is neither; without the length, the next header cannot be found.
    """
    if field[0] & 0x80:
        value = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40:
            raise MemberError(BAD_HEADER)
        return value
    found = _OCTAL.match(field)
    assert found
    if not found.group(1) and field.strip(b" \0"):
        raise MemberError(BAD_HEADER)
    return int(found.group(1) or b"0", 8)


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    # Only POSIX archives have a prefix there; GNU's magic ends differently and puts times in its place.
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def _mtime_ns(block: bytes, about: dict[bytes, bytes]) -> int | None:
    seconds, _, fraction = about.get(b"mtime", b"").partition(b".")
    if seconds.isdigit() and len(seconds) < 12:
        return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") if fraction.isdigit() else 0)
    try:
        return _number(block[136:148]) * 1_000_000_000
    except MemberError:
        return None


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Read records of length, key and value, up to the first that is none."""
    records = {}
    at = 0
    while at < len(data):
        digits, space, _ = data[at : at + 10].partition(b" ")
        if not space or not digits.isdigit() or not int(digits):
            break
        after = at + int(digits)
        key, equals, value = data[at + len(digits) + 1 : after - 1].partition(b"=")
        if not equals or data[after - 1 : after] != b"\n":
            break
        if key in _PAX_KEYS:  # and nothing that could fill the memory
            records[key] = value
        at = after
    return records
