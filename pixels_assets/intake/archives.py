"""Every byte stream of a loose file: the file itself, and when it is an archive, all that lies in it, to any depth.

Holds the walk: the order of objects, their addresses, what is kept in memory, and which failure costs what. Must not know how any format is built
(see `zipfiles`, `tarfiles`, `streams`), nor what DICOM means.

Nothing is written but unnamed temporary files for members that are too large for memory.
"""

import errno
import io
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from io import BytesIO
from types import MappingProxyType
from typing import Any, BinaryIO, cast

from pixels_assets.errors import PixelsError, place_of
from pixels_assets.intake.budget import PROGRESS_BYTES, Budget, MemberError, WalkError, too_deep
from pixels_assets.intake.compact import NameMap
from pixels_assets.intake.filetype import ARCHIVE_TYPES, COMPRESSED_TYPES, FileType, identify
from pixels_assets.intake.members import Archive, Member
from pixels_assets.intake.objects import Failure, FoundObject, SourceFile, Status, member_address, os_path, storable_time
from pixels_assets.intake.reading import READ_BYTES, SIZE_MISMATCH, HashingReader, keep, read_source, spill, unreadable
from pixels_assets.intake.streams import CompressedFile
from pixels_assets.intake.tarfiles import TarArchive
from pixels_assets.intake.zipfiles import ZipArchive
from pixels_assets.settings import Limits

logger = logging.getLogger(__name__)

CHANGED = "changed_since_listing"
EMPTY = Failure(Status.EMPTY, "empty", "The object has no bytes.")
NOT_REGULAR = Failure(Status.UNREADABLE, "not_a_regular_file", "What was listed as a file is now a link, a folder or a device.")
NOT_FOUND = Failure(Status.UNREADABLE, "not_found", "The file was listed but is no longer there.")
OUT_OF_MEMORY = Failure(Status.LIMIT_EXCEEDED, "out_of_memory", "Reading the object takes more memory than this process may hold.")

_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OTHERS = ARCHIVE_TYPES | COMPRESSED_TYPES
_MOST = (1 << 63) - 1  # tables hold signed 64-bit numbers; an archive can declare more
_READ_PASSES = 6  # for its hash, a search for members, and the members themselves; what reads a file more often than that makes no progress


def walk(
    file: SourceFile,
    limits: Limits,
    *,
    on_enter: Callable[[str], None] = lambda address: None,
    refused: Mapping[str, Failure] = MappingProxyType({}),
) -> Iterator[FoundObject]:
    """Read a loose file and everything in it, once, in bounded memory.

    Parameters
    ----------
    file : SourceFile
    limits : Limits
        Guards; what crosses one is yielded with a failure, and crossing a guard of the whole file ends the walk with the archive's own row.
    on_enter : callable
        Called with the address of every object before its bytes are touched; with an archive's again whenever the walk comes back to it, be it to
        look for the next member; and with the present one again whenever another `PROGRESS_BYTES` were read or expanded.
    refused : mapping of str to Failure
        Objects by address whose bytes are not to be touched: each is yielded with its failure.

    Yields
    ------
    FoundObject
        In an order that depends on the bytes only: the members of an archive before the archive itself, each nested archive in its place. No two
        have the same address. An object's stream is closed when the next object is asked for.

    Raises
    ------
    LakeError
        There is no room for temporary files.
    """
    heart = _Heart(on_enter)
    heart.enter(file.path)
    failure = refused.get(file.path) or file.failure
    if failure:
        yield _loose_object(file, failure)
        return
    try:
        descriptor, status = _open(file.path)
    except MemberError as error:
        yield _loose_object(file, error.failure)
        return
    data = _read_small(descriptor, status, limits)
    found = None if data is None else _plain_object(file, descriptor, status, data)
    if found is not None:
        os.close(descriptor)
        assert found.stream is not None
        with found.stream:
            yield found
        return
    os.lseek(descriptor, 0, os.SEEK_SET)
    stream: io.BufferedReader = io.BufferedReader(_Source(descriptor, status.st_size, heart), min(READ_BYTES, status.st_size + 1))
    objects = _Walk(file, stream, status, limits, heart, refused, data).objects()
    del data  # an archive in memory goes when the walk lets go of it
    with stream:
        yield from objects


class _Heart:
    """Says which object is in hand, and again while it makes progress."""

    def __init__(self, on_enter: Callable[[str], None]) -> None:
        self._on_enter = on_enter
        self._address = ""

    def enter(self, address: str) -> None:
        self._address = address
        self._on_enter(address)

    def beat(self) -> None:
        self._on_enter(self._address)


class _Source(io.FileIO):
    """A file that tells while it is being read."""

    def __init__(self, descriptor: int, size: int, heart: _Heart) -> None:
        super().__init__(descriptor)
        self._heart = heart
        self._count, self._next = 0, PROGRESS_BYTES
        self._most = _READ_PASSES * size

    def readinto(self, buffer: Any) -> int | None:
        """Fill a buffer."""
        count = super().readinto(buffer)
        self._count += count or 0
        if self._next <= self._count <= self._most:
            self._next = self._count + PROGRESS_BYTES
            self._heart.beat()
        return count


def _loose_object(file: SourceFile, failure: Failure | None = None) -> FoundObject:
    return FoundObject(
        path=file.path,
        original_path=file.path,
        depth=0,
        file_type="",
        length=file.length,
        compressed_length=None,
        mtime_ns=file.mtime_ns,
        content_hash=None,
        stream=None,
        failure=failure,
        warnings=[],
    )


def _read_small(descriptor: int, status: os.stat_result, limits: Limits) -> bytes | None:
    """Read what most files are, small ones, in one call to the system; None for others, and for what does not go well: the walk meets it again."""
    if not 0 < status.st_size <= min(PROGRESS_BYTES, limits.max_memory_bytes):
        return None
    try:
        data = os.read(descriptor, status.st_size + 1)
    except (OSError, MemoryError):
        return None
    return data if len(data) == status.st_size else None


def _plain_object(file: SourceFile, descriptor: int, status: os.stat_result, data: bytes) -> FoundObject | None:
    """Make the object of a file that was read as a whole; None when it is an archive, or cannot be told: that is for the walk."""
    stream = BytesIO(data)
    try:
        identified = identify(stream, len(data))
    except Exception:  # the walk meets it again, and says what it costs
        return None
    if identified.name in _OTHERS:
        return None
    found = _loose_object(file)
    found.length, found.mtime_ns = len(data), status.st_mtime_ns
    found.content_hash, found.stream = sha256(data).hexdigest(), stream
    found.identified, found.file_type = identified, identified.name
    found.warnings += identified.flags
    _note_change(found, file, descriptor)
    return found


def _note_change(found: FoundObject, file: SourceFile, descriptor: int) -> None:
    """Say so when a file is not, or was not all the time, as it was listed."""
    status = os.fstat(descriptor)
    is_as_old = file.mtime_ns == status.st_mtime_ns or file.mtime_ns == storable_time(status.st_mtime_ns)
    if not is_as_old or not file.length == status.st_size == found.length:
        found.warnings.append(CHANGED)


def _open(address: str) -> tuple[int, os.stat_result]:
    """Open a regular file and nothing else; a FIFO or device must not hold the walk up."""
    try:
        descriptor = os.open(os_path(address), _OPEN_FLAGS)
    except ValueError as error:  # a NUL in the path: no such file can be
        raise MemberError(NOT_FOUND) from error
    except OSError as error:
        is_other = error.errno in {errno.ELOOP, errno.ENXIO, errno.ENODEV}
        raise MemberError(NOT_REGULAR if is_other else unreadable(error)) from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise MemberError(NOT_REGULAR)
    return descriptor, status


class _Walk:
    """The walk of one open file."""

    def __init__(
        self,
        file: SourceFile,
        stream: io.BufferedReader,
        status: os.stat_result,
        limits: Limits,
        heart: _Heart,
        refused: Mapping[str, Failure],
        data: bytes | None,
    ) -> None:
        self._file = file
        self._data = data  # of the whole file, where it was read already
        self._stream = stream
        self._limits = limits
        self._heart = heart
        self._refused = refused
        self._status = status
        self._budget = Budget(limits, self._status.st_size, heart.beat)
        self._held = 0  # bytes of archives that stay in memory while their members are read

    def objects(self) -> Iterator[FoundObject]:
        found = _loose_object(self._file)
        found.length, found.mtime_ns = self._status.st_size, self._status.st_mtime_ns
        try:
            reader = self._take_in(found)
        except MemberError as error:
            found.failure, found.stream = error.failure, None
            yield found
            return
        try:
            yield from self._object(found, reader)
        except WalkError as error:
            logger.debug("stopped at a guard of the whole file: %s", error.failure.code)

    def _take_in(self, found: FoundObject) -> HashingReader | None:
        """Read the loose file: small ones now, as a whole. Large ones are read once for their hash unless the walk reads them once anyway."""
        if self._status.st_size <= self._limits.max_memory_bytes:
            data, self._data = self._data or self._read_whole(self._status.st_size + 1), None
            if len(data) <= self._status.st_size:
                found.length, found.content_hash, found.stream = len(data), sha256(data).hexdigest(), BytesIO(data)
                self._identify(found)
                return None
        found.stream = self._stream
        self._identify(found)
        reader = HashingReader(self._stream)
        if found.file_type in _OTHERS - {"zip"}:
            return reader
        self._finish(found, reader)
        return None

    def _read_whole(self, most: int) -> bytes:
        # Small files are most files: one call to the system, without the way through a buffer and without news of progress.
        data = read_source(cast(BinaryIO, self._stream.raw), most) if most <= PROGRESS_BYTES else b""
        return data if len(data) >= most - 1 else data + read_source(self._stream, most - len(data))

    @staticmethod
    def _finish(found: FoundObject, reader: HashingReader) -> None:
        found.content_hash, found.length = reader.finish(), reader.length
        assert found.stream
        found.stream.seek(0)

    @staticmethod
    def _identify(found: FoundObject) -> None:
        assert found.stream is not None
        assert found.length is not None
        try:
            found.identified = identify(found.stream, found.length)
        except OSError as error:
            raise MemberError(unreadable(error)) from error
        except Exception as error:  # a library looks at hostile bytes; whatever it raises, the type stays unknown
            found.warnings.append(f"identification_failed: {type(error).__name__}")
            found.identified = FileType("unknown")
            found.stream.seek(0)
        found.file_type = found.identified.name
        found.warnings += found.identified.flags
        if found.file_type == "empty":
            found.failure, found.stream = EMPTY, None

    def _object(self, found: FoundObject, reader: HashingReader | None = None) -> Iterator[FoundObject]:
        """Yield the members when the object is an archive, then the object; its stream is closed afterwards."""
        held = 0
        stop: WalkError | None = None
        try:
            if found.file_type in _OTHERS:
                if found.depth >= self._limits.max_depth:
                    found.failure = too_deep(self._limits)
                else:
                    held = self._hold(found)
                    archive = self._archive(found, reader)
                    try:
                        yield from self._members(found, archive)
                    except WalkError as error:
                        stop = error
                    found.failure = stop.failure if stop else archive.failure
                    found.warnings += archive.warnings
            self._complete(found, reader)
            yield found
        finally:
            self._held -= held
            if found.stream:
                found.stream.close()
        if stop:
            raise stop

    def _hold(self, found: FoundObject) -> int:
        """Let an archive stay in memory while its members are read, unless archives around it fill the memory already."""
        if not isinstance(found.stream, BytesIO):
            return 0
        assert found.length is not None
        if self._held + found.length > self._limits.max_memory_bytes:
            found.stream = spill(found.stream)
            return 0
        self._held += found.length
        return found.length

    def _archive(self, found: FoundObject, reader: HashingReader | None) -> Archive:
        assert found.stream is not None
        assert found.length is not None
        found.stream.seek(0)
        if found.file_type == "zip":
            return ZipArchive(found.stream, found.length, self._budget)
        read = reader.read if reader else partial(self._read_member, found.stream)
        if found.file_type == "tar":
            return TarArchive(read, self._budget, metered=False)
        name = os_path(found.path) if found.member_name is None else found.member_name.encode("utf-8", "surrogateescape")
        return CompressedFile(found.file_type, read, found.length, name.rpartition(b"/")[2], self._budget)

    def _read_member(self, stream: BinaryIO, most: int) -> bytes:
        """Read an archive that was taken out of another; what is passed over in it is not expanded and would else go unnoticed."""
        data = read_source(stream, most)
        if len(data) >= PROGRESS_BYTES:
            self._heart.beat()
        return data

    def _complete(self, found: FoundObject, reader: HashingReader | None) -> None:
        """Make the row of an object true: its hash where it was being read, and whether the file stayed as it was listed."""
        try:
            if reader:
                self._finish(found, reader)
        except MemberError as error:
            found.failure = found.failure or error.failure
        if found.stream:
            found.stream.seek(0)
        if found.depth == 0:
            _note_change(found, self._file, self._stream.fileno())

    def _members(self, parent: FoundObject, archive: Archive) -> Iterator[FoundObject]:
        seen = NameMap()
        members = iter(archive)
        while (member := self._next(parent, members, archive)) is not None:
            self._budget.count_member()
            address = member_address(parent.path, member.name, seen.count(member.name))
            self._heart.enter(address)
            found = FoundObject(
                path=address,
                original_path=parent.original_path,
                depth=parent.depth + 1,
                file_type="",
                length=_fitting(member.length),
                compressed_length=_fitting(member.compressed_length),
                mtime_ns=_fitting(member.mtime_ns),
                content_hash=None,
                stream=None,
                failure=self._refused.get(address) or member.failure,
                warnings=[],
                member_name=member.name.decode("utf-8", "surrogateescape"),
            )
            stop = None if found.failure else self._take_out(found, member)
            if found.failure:
                yield found
            else:
                yield from self._object(found)
            if stop:
                raise stop

    def _next(self, parent: FoundObject, members: Iterator[Member], archive: Archive) -> Member | None:
        self._heart.enter(parent.path)  # what happens now is the archive's doing, not the last member's
        try:
            return next(members, None)
        except (WalkError, PixelsError):
            raise
        except Exception as error:  # the boundary to hostile structure: it costs the rest of this archive, never the walk
            logger.warning("an archive could not be understood: %s", place_of(error))
            code, message = "bad_structure", f"The structure of the archive cannot be understood ({type(error).__name__})."
            archive.failure = Failure(Status.CORRUPT, code, message)
            return None

    def _take_out(self, found: FoundObject, member: Member) -> WalkError | None:
        """Read a member in full; what goes wrong becomes its failure, and what also ends the walk is returned."""
        try:
            kept = keep(member.chunks(), self._limits.max_memory_bytes)
            found.length, found.content_hash, found.stream = kept.length, kept.content_hash, kept.stream
            self._identify(found)
        except MemberError as error:
            found.failure, found.stream = error.failure, None
            if error.failure == SIZE_MISMATCH:
                found.length = None
        except WalkError as error:
            found.failure = error.failure
            return error
        except MemoryError:
            found.failure = OUT_OF_MEMORY
        return None


def _fitting(number: int | None) -> int | None:
    return number if number is not None and abs(number) <= _MOST else None
