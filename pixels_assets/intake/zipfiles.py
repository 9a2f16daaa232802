"""ZIP archives, read in place (PKWARE APPNOTE 6.3).

Holds the structure of ZIP: its directory, its members, and what makes a member unbelievable. Must not know what members are good for.

The standard library's reader keeps an object per member, believes the directory, and gives up without one. This one passes over the directory
twice without keeping it, holds it against the local headers, refuses members that share bytes (D. Fifield, *A better zip bomb*, 2019), and without
a directory finds the members by their local headers.
"""

import bz2
import lzma
import stat
import zlib
from array import array
from bisect import bisect_left
from calendar import timegm
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import chain, pairwise
from struct import Struct
from typing import BinaryIO, NamedTuple

from pixels_assets.intake.budget import Budget, MemberError
from pixels_assets.intake.members import Member
from pixels_assets.intake.objects import Failure, Status
from pixels_assets.intake.reading import (
    CRC_MISMATCH,
    DECODER_BYTES,
    EXPAND_BYTES,
    READ_BYTES,
    SIZE_MISMATCH,
    TRUNCATED,
    Decoder,
    Expansion,
    Inflater,
    Read,
    Window,
    read_source,
)

# Signature and fields of APPNOTE 4.3.7, 4.3.12, 4.3.16, 4.3.14 and 4.3.15.
_LOCAL = Struct("<4s5H3L2H")
_CENTRAL = Struct("<4s2B5HL2L5H2L")
_END = Struct("<4s4H2LH")
_END64 = Struct("<4sQ2H2L4Q")
_LOCATOR64 = Struct("<4sLQL")
_LOCAL_SIGNATURE = b"PK\x03\x04"
_CENTRAL_SIGNATURE = b"PK\x01\x02"
_END_SIGNATURE = b"PK\x05\x06"
_END64_SIGNATURE = b"PK\x06\x06"
_LOCATOR64_SIGNATURE = b"PK\x06\x07"
_DESCRIPTOR_SIGNATURE = b"PK\x07\x08"
_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF

_ENCRYPTED, _DESCRIPTOR, _STRONGLY_ENCRYPTED, _UTF8, _MASKED = 1, 1 << 3, 1 << 6, 1 << 11, 1 << 13
_STORED, _DEFLATE, _BZIP2, _LZMA, _AES = 0, 8, 12, 14, 99
_READABLE = frozenset({_STORED, _DEFLATE, _BZIP2, _LZMA})
_UNIX = 3
_END_MARKER = 1 << 1
_LZMA_HEADER_LENGTH = 9
_UNKNOWN = (1 << 64) - 1

_RECOVERY_PASSES = 4  # a search for members may go over the archive's length so many times, however its headers overlap

ENCRYPTED = Failure(Status.ENCRYPTED, "encrypted", "The object is encrypted.")
UNSUPPORTED = Failure(Status.CORRUPT, "unsupported_compression", "The object is compressed by a method that is not supported.")
HEADER_MISMATCH = Failure(Status.CORRUPT, "header_mismatch", "The archive's directory and the header at the object's place disagree.")
OTHER_VOLUME = Failure(Status.CORRUPT, "other_volume", "The object begins in another volume of the archive.")
OVERLAPPING = Failure(Status.CORRUPT, "overlapping_entries", "The object shares bytes of its archive with others, as in a ZIP bomb.")
TRUNCATED_ARCHIVE = Failure(Status.CORRUPT, "archive_truncated", "The archive ends before its directory; members were found by their headers.")
BAD_DIRECTORY = Failure(Status.CORRUPT, "bad_central_directory", "The archive's directory is damaged; members were found by their headers.")


class _Directory(NamedTuple):
    """Where the central directory lies, and how far the archive lies behind the start of the file."""

    start: int
    length: int
    shift: int
    entries: int
    most: int  # the largest number that `entries` can state; writers of the old format let it run over
    volume: int = 0  # of a split archive, from 0 on; the last one holds the directory


class _Entry(NamedTuple):
    """One member as the directory, or its local header, describes it. Lengths in bytes, position from the start of the file."""

    name: bytes
    flags: int
    method: int
    crc: int
    compressed_length: int
    length: int
    position: int
    mtime_ns: int | None
    system: int
    attributes: int
    final_name: bytes
    volume: int = 0


class _DirectoryError(Exception):
    """The directory cannot be believed."""


class ZipArchive:
    """Members of a ZIP, in the order of its directory.

    Iterate once; each member's bytes are read, if at all, before the next member is asked for.

    Parameters
    ----------
    stream : BinaryIO
        Seekable; others may move its position between members.
    length : int
        Its bytes.
    budget : Budget

    Attributes
    ----------
    failure : Failure or None
        What is wrong with the archive itself; final after the last member.
    warnings : list of str
        What is odd about it; final after the last member.
    """

    def __init__(self, stream: BinaryIO, length: int, budget: Budget) -> None:
        self._stream = stream
        self._length = length
        self._budget = budget
        self._shared_starts = array("Q")
        self._shared = bytearray()
        self._links = 0
        self.failure: Failure | None = None
        self.warnings: list[str] = []

    def __iter__(self) -> Iterator[Member]:
        try:
            yield from self._members()
        except MemberError as error:  # the storage failed outside of any member
            self.failure = error.failure
        finally:
            if self._links:
                self.warnings.append(f"links_skipped: {self._links}")

    def _members(self) -> Iterator[Member]:
        directory, found_end = self._find_directory()
        if directory:
            try:
                self._survey(directory)
            except _DirectoryError:
                directory = None
        if directory is None:
            self.failure = BAD_DIRECTORY if found_end else TRUNCATED_ARCHIVE
            yield from self._recover()
            return
        for entry, following in pairwise(chain(self._entries(directory), [None])):
            assert entry is not None
            if not self._is_stream(entry):
                self._budget.count_member()
                continue
            barrier = following.position if following and following.position > entry.position else directory.start
            shared = self._shared and self._shares_bytes(entry)
            failure = OTHER_VOLUME if self._is_elsewhere(directory, entry.volume, entry.position, entry.name) else OVERLAPPING if shared else None
            yield _member(entry, partial(self._read_listed, entry, barrier), failure)

    # --- the directory

    def _find_directory(self) -> tuple[_Directory | None, bool]:
        """Find the directory by the last end record that leads to one; tell also whether the file ends with an end record."""
        tail_start = max(0, self._length - _END.size - _MAX_16 - _LOCATOR64.size - _END64.size)
        tail = self._at(tail_start, self._length - tail_start)
        ends_well = False
        empty: _Directory | None = None  # without members: believed when no other end record leads to one with some
        at = len(tail)
        while (at := tail.rfind(_END_SIGNATURE, 0, at + len(_END_SIGNATURE) - 1)) >= 0:
            if at + _END.size > len(tail):
                continue
            comment_length = _END.unpack_from(tail, at)[7]
            ends_well |= at + _END.size + comment_length == len(tail)
            directory = self._directory_of(tail, at, tail_start)
            if directory and directory.length:
                return directory, True
            empty = empty or directory
        return empty, ends_well or empty is not None

    def _directory_of(self, tail: bytes, at: int, tail_start: int) -> _Directory | None:
        _, volume, _, _, count, length, offset, _ = _END.unpack_from(tail, at)
        end, most = tail_start + at, _MAX_16
        locator_at = at - _LOCATOR64.size
        if locator_at >= 0 and tail.startswith(_LOCATOR64_SIGNATURE, locator_at):
            said = _LOCATOR64.unpack_from(tail, locator_at)[2]
            for place in (tail_start + locator_at - _END64.size, said):
                record = self._at(place, _END64.size) if 0 <= place <= self._length - _END64.size else b""
                if record.startswith(_END64_SIGNATURE):
                    count, length, offset = _END64.unpack(record)[7:]
                    end, most = place, (1 << 64) - 1
                    break
        if not length:  # believed only where nothing contradicts it
            return None if count or self._is_local_header(0) else _Directory(end, 0, 0, 0, most)
        for start in (end - length, offset):
            if 0 <= start <= end - _CENTRAL.size and start + length <= end and self._at(start, 4) == _CENTRAL_SIGNATURE:
                shift = start - offset
                # A file that starts with a member has nothing before its members: this directory belongs to an archive inside.
                if shift > 0 and self._is_local_header(0):
                    return None
                return _Directory(start, length, shift, count, most, 0 if volume == _MAX_16 else volume)
        return None

    def _survey(self, directory: _Directory) -> None:
        """Pass over the directory once: is it whole, does it lead to members, and which of them share bytes.

        Nothing is kept of a directory whose members lie one after the other. Of any other, 17 bytes per member are.
        """
        starts, ends = array("Q"), array("Q")
        reach, in_order = 0, True
        first = last = None
        others = 0
        for fields, name, extra in self._records(directory):
            compressed, _, offset = _sizes(fields[9], fields[10], fields[17], extra)
            position = offset + directory.shift
            if self._is_elsewhere(directory, fields[14], position, name):
                others += 1
                continue
            first, last = position if first is None else first, position
            start = min(max(position, 0), self._length)
            end = min(start + _LOCAL.size + len(name) + compressed, self._length)
            in_order &= start >= reach
            reach = max(reach, end)
            starts.append(start)
            ends.append(end)
            if len(starts) > self._budget.limits.max_members:
                break  # and no further will the walk come
        else:
            if directory.entries != (len(starts) + others) & directory.most:
                self.warnings.append("directory_count_mismatch")
        # A directory whose own place is wrong proves nothing about the members' places.
        if directory.shift and not any(self._is_local_header(position) for position in (first, last)):
            raise _DirectoryError
        if not in_order or reach > directory.start:
            self._find_shared(starts, ends, directory)

    def _find_shared(self, starts: "array[int]", ends: "array[int]", directory: _Directory) -> None:
        spans = sorted(start << 64 | end for start, end in zip(starts, ends, strict=True))
        del starts[:], ends[:]
        self._shared_starts = array("Q", (span >> 64 for span in spans))
        self._shared = bytearray(len(spans))
        farthest, reach = 0, 0  # the member that reaches farthest so far, and where to
        for number, span in enumerate(spans):
            start, end = span >> 64, span & 0xFFFFFFFFFFFFFFFF
            if start < reach:
                self._shared[number] = self._shared[farthest] = 1
            if start < directory.start + directory.length and end > directory.start:
                self._shared[number] = 1
            if end > reach:
                farthest, reach = number, end

    def _shares_bytes(self, entry: _Entry) -> bool:
        number = bisect_left(self._shared_starts, entry.position)
        starts = self._shared_starts
        return number < len(starts) and starts[number] == entry.position and bool(self._shared[number])

    def _is_elsewhere(self, directory: _Directory, volume: int, position: int, name: bytes) -> bool:
        """Whether a member begins in another volume: its number says so, and at its place here is nothing of that name."""
        if not directory.volume or volume in (directory.volume, _MAX_16):
            return False
        return not self._is_local_header(position) or self._at(position + _LOCAL.size, len(name)) != name

    def _is_local_header(self, position: int | None) -> bool:
        return position is not None and 0 <= position < self._length and self._at(position, 4) == _LOCAL_SIGNATURE

    def _records(self, directory: _Directory) -> Iterator[tuple[tuple[int, ...], bytes, bytes]]:
        """Raw fields, name and extra field of each directory entry.

        Raises
        ------
        _DirectoryError
            What stands there is no entry, or the last one is cut.
        """
        position, end = directory.start, directory.start + directory.length
        while position < end:
            chunk = self._at(position, min(READ_BYTES, end - position))  # longer than any entry
            at = 0
            while len(chunk) - at >= _CENTRAL.size:
                fields = _CENTRAL.unpack_from(chunk, at)
                if fields[0] != _CENTRAL_SIGNATURE:
                    raise _DirectoryError
                name_at = at + _CENTRAL.size
                extra_at = name_at + fields[11]
                comment_at = extra_at + fields[12]
                after = comment_at + fields[13]
                if after > len(chunk):
                    break
                yield fields, chunk[name_at:extra_at], chunk[extra_at:comment_at]
                at = after
            if not at:
                raise _DirectoryError
            position += at

    def _entries(self, directory: _Directory) -> Iterator[_Entry]:
        for fields, name, extra in self._records(directory):
            _, _, system, _, flags, method, time, date, crc, compressed, length, _, _, _, volume, _, attributes, offset = fields
            compressed, length, offset = _sizes(compressed, length, offset, extra)
            yield _Entry(
                name=name,
                flags=flags,
                method=method,
                crc=crc,
                compressed_length=compressed,
                length=length,
                position=offset + directory.shift,
                mtime_ns=_mtime_ns(date, time, extra),
                system=system,
                attributes=attributes,
                final_name=_final_name(name, flags, extra),
                volume=volume,
            )

    # --- members

    def _is_stream(self, entry: _Entry) -> bool:
        """Tell byte streams from folders, links and devices; count the latter."""
        kind = stat.S_IFMT(entry.attributes >> 16) if entry.system == _UNIX else 0
        if kind in {stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK}:
            self._links += 1
            return False
        # A folder that has bytes is no folder: nothing may hide.
        return bool(entry.length) or not (entry.name.endswith(b"/") or kind == stat.S_IFDIR)

    def _read_listed(self, entry: _Entry, barrier: int) -> Iterator[bytes]:
        position = entry.position
        if not 0 <= position <= self._length - _LOCAL.size:
            raise MemberError(TRUNCATED)
        header = self._at(position, _LOCAL.size + len(entry.name))
        signature, _, flags, method, _, _, _, _, _, name_length, extra_length = _LOCAL.unpack_from(header)
        if signature != _LOCAL_SIGNATURE or method != entry.method or (flags ^ entry.flags) & _ENCRYPTED:
            raise MemberError(HEADER_MISMATCH)
        if name_length != len(entry.name) or header[_LOCAL.size :] != entry.name:
            raise MemberError(HEADER_MISMATCH)
        start = position + _LOCAL.size + name_length + extra_length
        end = start + entry.compressed_length
        if end > self._length:
            raise MemberError(TRUNCATED)
        # Only now is the length of the local extra field known, which the survey of the directory could not see.
        if position < barrier < end:
            raise MemberError(OVERLAPPING)
        yield from self._checked(self._expanded(entry, start), entry)

    def _checked(self, read: Read, entry: _Entry) -> Iterator[bytes]:
        """Chunks of a member's bytes, held against guards, declared length and checksum."""
        meter = self._budget.meter(entry.compressed_length)
        meter.check(entry.length)
        crc = 0
        left = entry.length
        while chunk := read(min(EXPAND_BYTES, left + 1)):
            left -= len(chunk)
            if left < 0:
                raise MemberError(SIZE_MISMATCH)
            crc = zlib.crc32(chunk, crc)
            meter.take(len(chunk))
            yield chunk
        if left:
            raise MemberError(SIZE_MISMATCH)
        if crc != entry.crc:
            raise MemberError(CRC_MISMATCH)

    def _expanded(self, entry: _Entry, start: int) -> Read:
        if entry.method == _STORED:
            return Window(self._stream, start, entry.compressed_length).read
        return self._expansion(entry, start, entry.compressed_length).read

    def _expansion(self, entry: _Entry, start: int, most: int) -> Expansion:
        """Decode what is compressed at this place, reading at most so many bytes."""
        if entry.method == _DEFLATE:
            return Expansion(Window(self._stream, start, most).read, _new_inflater)
        if entry.method == _BZIP2:
            return Expansion(Window(self._stream, start, most).read, bz2.BZ2Decompressor)
        # APPNOTE 5.8.8: two bytes of version, the length of the properties, the properties; bit 1: an end marker follows the data.
        header = self._at(start, min(_LZMA_HEADER_LENGTH, most))
        if len(header) < _LZMA_HEADER_LENGTH or header[2:4] != b"\x05\x00":
            raise MemberError(TRUNCATED if len(header) < _LZMA_HEADER_LENGTH else UNSUPPORTED)
        length = _UNKNOWN if entry.flags & _END_MARKER or (entry.flags & _DESCRIPTOR and not entry.length) else entry.length
        legacy_header = header[4:] + length.to_bytes(8, "little")
        window = Window(self._stream, start + len(header), most - len(header))
        expansion = Expansion(window.read, partial(_new_lzma_decoder, legacy_header))
        expansion.consumed = len(header)
        return expansion

    # --- without a directory

    def _recover(self) -> Iterator[Member]:
        """Find members by their local headers, one after the other."""
        position = 0
        passes = _RECOVERY_PASSES * self._length + READ_BYTES
        while passes > 0 and (found := self._find(_LOCAL_SIGNATURE, position)) is not None:
            entry, start, described = self._local_entry(found)
            if entry is None:
                position = found + len(_LOCAL_SIGNATURE)
                continue
            passes -= start - found
            if not self._is_stream(entry):
                position = start
                self._budget.count_member()
                continue
            reading = _Recovered()
            yield _member(entry, partial(self._read_recovered, entry, start, described, reading))
            passes -= reading.consumed
            position = reading.end or self._after(entry, start, described)

    def _after(self, entry: _Entry, start: int, described: bool) -> int:
        """Where to search on after a member whose own end was not reached: at its declared end when a header stands there."""
        end = start + entry.compressed_length
        if not described and (end >= self._length or self._at(end, 2) == b"PK"):
            return end
        return start

    def _local_entry(self, position: int) -> tuple[_Entry | None, int, bool]:
        """Entry, start of its data, and whether its lengths follow the data; no entry where the signature stands by chance."""
        header = self._at(position, _LOCAL.size)
        if len(header) < _LOCAL.size:
            return None, 0, False
        _, version, flags, method, time, date, crc, compressed, length, name_length, extra_length = _LOCAL.unpack(header)
        start = position + _LOCAL.size + name_length + extra_length
        if not name_length or start > self._length or (version & 0xFF) > 99 or method > 99:
            return None, 0, False
        tail = self._at(position + _LOCAL.size, name_length + extra_length)
        name, extra = tail[:name_length], tail[name_length:]
        compressed, length, _ = _sizes(compressed, length, 0, extra)
        described = bool(flags & _DESCRIPTOR) and not compressed
        entry = _Entry(
            name=name,
            flags=flags,
            method=method,
            crc=crc,
            compressed_length=compressed,
            length=length,
            position=position,
            mtime_ns=_mtime_ns(date, time, extra),
            system=0,
            attributes=0,
            final_name=_final_name(name, flags, extra),
        )
        return entry, start, described

    def _read_recovered(self, entry: _Entry, start: int, described: bool, reading: "_Recovered") -> Iterator[bytes]:
        if not described:
            end = start + entry.compressed_length
            if end > self._length:
                raise MemberError(TRUNCATED)
            reading.consumed = entry.compressed_length
            yield from self._checked(self._expanded(entry, start), entry)
            reading.end = end
            return
        if entry.method == _STORED:
            reading.consumed = self._length - start
            entry = self._stored_until_descriptor(entry, start)
            reading.consumed = entry.length
            yield from self._checked(Window(self._stream, start, entry.length).read, entry)
            reading.end = start + entry.length
            return
        # The decoder knows where the data end; length and checksum follow there.
        meter = self._budget.meter(self._length - start)
        expansion = self._expansion(entry, start, self._length - start)
        crc = 0
        try:
            while chunk := expansion.read(EXPAND_BYTES):
                crc = zlib.crc32(chunk, crc)
                meter.take(len(chunk))
                yield chunk
        finally:
            reading.consumed = expansion.consumed
        end = start + expansion.consumed
        descriptor = self._at(end, 8).removeprefix(_DESCRIPTOR_SIGNATURE)
        if len(descriptor) < 4:
            raise MemberError(TRUNCATED)
        reading.end = end
        if int.from_bytes(descriptor[:4], "little") != crc:
            raise MemberError(CRC_MISMATCH)

    def _stored_until_descriptor(self, entry: _Entry, start: int) -> _Entry:
        """Find the data descriptor that states its own distance."""
        at = start
        while (found := self._find(_DESCRIPTOR_SIGNATURE, at)) is not None:
            length = found - start
            descriptor = self._at(found + 4, 12)
            if descriptor[4:8] == (length & _MAX_32).to_bytes(4, "little"):
                return entry._replace(crc=int.from_bytes(descriptor[:4], "little"), compressed_length=length, length=length)
            at = found + 4
        raise MemberError(TRUNCATED)

    # --- bytes

    def _at(self, position: int, count: int) -> bytes:
        self._stream.seek(position)
        return read_source(self._stream, count)

    def _find(self, wanted: bytes, position: int) -> int | None:
        while position < self._length:
            chunk = self._at(position, READ_BYTES)
            at = chunk.find(wanted)
            if at >= 0:
                return position + at
            if len(chunk) < READ_BYTES:
                return None
            position += READ_BYTES - len(wanted) + 1
        return None


class _Recovered:
    """What reading a member without a directory found out: where it ends (0: unknown), and what that cost."""

    __slots__ = ("consumed", "end")

    def __init__(self) -> None:
        self.end = 0
        self.consumed = 0


def _member(entry: _Entry, chunks: Callable[[], Iterator[bytes]], failure: Failure | None = None) -> Member:
    if entry.flags & (_ENCRYPTED | _STRONGLY_ENCRYPTED | _MASKED) or entry.method == _AES:
        failure = ENCRYPTED
    elif entry.method not in _READABLE:
        failure = UNSUPPORTED
    return Member(entry.final_name, entry.length, entry.compressed_length, entry.mtime_ns, chunks, failure)


def _new_inflater() -> Decoder:
    return Inflater(-zlib.MAX_WBITS)


def _new_lzma_decoder(legacy_header: bytes) -> Decoder:
    """Make a decoder of bare LZMA data, told what the header of an `.lzma` file would say: that form of it can be held to a memory limit."""
    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=DECODER_BYTES)
    decoder.decompress(legacy_header, 1)
    return decoder


def _sizes(compressed: int, length: int, offset: int, extra: bytes) -> tuple[int, int, int]:
    """Compressed length, length and offset, from the ZIP64 field where the old fields say so (APPNOTE 4.5.3)."""
    if _MAX_32 not in (compressed, length, offset):
        return compressed, length, offset
    field = _extra_field(extra, 0x0001)
    at = 0
    wide = []
    for value in (length, compressed, offset):  # in this order, and only those that did not fit
        if value == _MAX_32 and at + 8 <= len(field):
            wide.append(int.from_bytes(field[at : at + 8], "little"))
            at += 8
        else:
            wide.append(value)
    length, compressed, offset = wide
    return compressed, length, offset


def _extra_field(extra: bytes, wanted: int) -> bytes:
    at = 0
    while at + 4 <= len(extra):
        kind = int.from_bytes(extra[at : at + 2], "little")
        after = at + 4 + int.from_bytes(extra[at + 2 : at + 4], "little")
        if kind == wanted:
            return extra[at + 4 : after]
        at = after
    return b""


def _final_name(name: bytes, flags: int, extra: bytes) -> bytes:
    """UTF-8 name: from the Unicode path field when it belongs to this name, as it is when flagged, else from code page 437 (APPNOTE D)."""
    if name.isascii() or flags & _UTF8:
        return name
    field = _extra_field(extra, 0x7075)
    if field[:1] == b"\x01" and field[1:5] == zlib.crc32(name).to_bytes(4, "little") and len(field) > 5:
        return field[5:]
    return name.decode("cp437").encode()


def _mtime_ns(date: int, time: int, extra: bytes) -> int | None:
    """Nanoseconds since 1970 UTC; the DOS form knows no time zone and is taken for UTC."""
    stamp = _extra_field(extra, 0x5455) if extra else b""
    if len(stamp) >= 5 and stamp[0] & 1:
        return int.from_bytes(stamp[1:5], "little", signed=True) * 1_000_000_000
    return _dos_time_ns(date, time)


@lru_cache(maxsize=1024)
def _dos_time_ns(date: int, time: int) -> int | None:
    month, day = date >> 5 & 15, date & 31
    if not 1 <= month <= 12 or not day:
        return None
    return timegm((1980 + (date >> 9), month, day, time >> 11, time >> 5 & 63, (time & 31) * 2)) * 1_000_000_000
