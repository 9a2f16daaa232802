"""The bytes of catalogued objects: loose files, and members of archives, to any depth.

Holds opening, and the bounded caches that make members of an archive as quick as files. Must not know DICOM, nor take an address from a request:
callers give rows of the catalog.

A member that is asked for is expanded once, held against its checksum, and kept in memory or in an unnamed temporary file while it is in use. An
archive's directory is read once. Nothing is opened outside of the folders that objects were ingested from.
"""

import io
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from pixels_assets.dicomweb.caching import Cache
from pixels_assets.dicomweb.index import Instance
from pixels_assets.intake.budget import Budget, MemberError, WalkError
from pixels_assets.intake.filetype import identify
from pixels_assets.intake.members import Archive, Member
from pixels_assets.intake.objects import MEMBER, member_address, os_path, split_address, unescape_name
from pixels_assets.intake.reading import EXPAND_BYTES, FORMATS, Expansion, keep
from pixels_assets.intake.streams import CompressedFile
from pixels_assets.intake.tarfiles import BLOCK, TarArchive
from pixels_assets.intake.zipfiles import ZipArchive
from pixels_assets.settings import MIB, TIB, Limits

__all__ = ["Gone", "Objects", "Source", "file_source"]

_MEMORY_BYTES = 256 * MIB
_DISK_BYTES = 4096 * MIB
_IN_MEMORY = 16 * MIB
_MOST_MEMBERS = 500_000
_BYTES_PER_MEMBER = 4096
"""What a member of a directory weighs against bytes that the directory keeps expanded."""
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Gone(Exception):  # noqa: N818 - it names a result
    """The bytes that were catalogued are no longer there: the file was removed, replaced or cannot be read."""


class Source:
    """Bytes that can be read anywhere, by any number of threads at once.

    Parameters
    ----------
    length : int
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def read_at(self, start: int, count: int) -> bytes:
        """Read bytes from a position; fewer only at the end."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what the bytes rest on."""

    def stream(self) -> BinaryIO:
        """Open a file object of one's own."""
        return io.BufferedReader(_Stream(self), 64 * 1024)

    def chunks(self, size: int = MIB) -> Iterator[bytes]:
        """Give all bytes, a piece at a time."""
        at = 0
        while at < self.length:
            piece = self.read_at(at, min(size, self.length - at))
            if not piece:
                msg = "the file has become shorter"
                raise Gone(msg)
            at += len(piece)
            yield piece


class _FileSource(Source):
    """An open file."""

    def __init__(self, descriptor: int, length: int, *, owned: bool = True) -> None:
        super().__init__(length)
        self._descriptor = descriptor
        self._owned = owned

    def read_at(self, start: int, count: int) -> bytes:
        try:
            data = os.pread(self._descriptor, count, start)
            while len(data) < count and (more := os.pread(self._descriptor, count - len(data), start + len(data))):
                data += more
        except OSError as error:
            msg = f"the storage reported an error (errno {error.errno})"
            raise Gone(msg) from error
        return data

    def close(self) -> None:
        if self._owned and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def file_source(path: Path) -> Source:
    """Open a file of our own."""
    descriptor = os.open(path, _FLAGS)
    return _FileSource(descriptor, os.fstat(descriptor).st_size)


class _MemorySource(Source):
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        super().__init__(len(data))
        self._data = data

    def read_at(self, start: int, count: int) -> bytes:
        return self._data[start : start + count]


class _KeptSource(_FileSource):
    """An unnamed temporary file, closed when nobody holds it any more."""

    def __init__(self, file: Any, length: int) -> None:
        super().__init__(file.fileno(), length, owned=False)
        self._file = file

    def close(self) -> None:
        # Readers may still have it: the file closes itself with the last of them.
        pass


class _Stream(io.RawIOBase):
    name = ""  # pydicom asks for it

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._source.length)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._source.read_at(self._at, min(len(buffer), max(0, self._source.length - self._at)))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


@dataclass(slots=True)
class _Directory:
    """The members of an archive by address: where to read each."""

    members: dict[str, Callable[[], Source]]
    weight: int


class Objects:
    """Opens what the catalog names.

    Parameters
    ----------
    limits : Limits
        Guards for what is expanded; objects kept to them when they were ingested.
    """

    def __init__(self, limits: Limits) -> None:
        # The walk's guards held when the object was ingested. Here one archive is read again and again, so only those of single members count.
        self._limits = replace(limits, max_total_bytes=1024 * TIB, max_ratio=1e12, max_members=max(limits.max_members, 1))
        self._memory: Cache[_MemorySource] = Cache(_MEMORY_BYTES, lambda source: source.length + 1024)
        self._disk: Cache[_KeptSource] = Cache(_DISK_BYTES, lambda source: source.length + 1024)
        self._directories: Cache[_Directory] = Cache(2 * _MOST_MEMBERS, lambda directory: directory.weight)
        self._lock = threading.Lock()

    @property
    def weights(self) -> dict[str, int]:
        """Bytes held in memory and on disk."""
        return {"memory": self._memory.weight, "disk": self._disk.weight}

    @contextmanager
    def open(self, instance: Instance, roots: tuple[str, ...]) -> Iterator[Source]:
        """Open the bytes of an object as they were catalogued.

        Raises
        ------
        Gone
            The file is no longer what was catalogued.
        """
        file, key = self._open_file(instance, roots)
        try:
            if instance.path == instance.original_path:
                yield file
            else:
                try:
                    yield self._member(file, key, instance)
                except (MemberError, WalkError) as error:
                    msg = f"the member cannot be read: {error.failure.code}"
                    raise Gone(msg) from error
        finally:
            file.close()

    def is_there(self, instance: Instance, roots: tuple[str, ...]) -> bool:
        """Whether the file that an object lies in is the one that was catalogued; a member of an archive is not expanded to find out."""
        try:
            file, _ = self._open_file(instance, roots)
        except Gone:
            return False
        file.close()
        return True

    def _open_file(self, instance: Instance, roots: tuple[str, ...]) -> tuple[_FileSource, tuple[str, int, int]]:
        path = os_path(instance.original_path)
        if not _is_below(path, roots):
            msg = "the file is not in a folder that objects are served from"
            raise Gone(msg)
        try:
            descriptor = os.open(path, _FLAGS)
        except (OSError, ValueError) as error:
            msg = f"the file cannot be opened ({type(error).__name__})"
            raise Gone(msg) from error
        status = os.fstat(descriptor)
        unchanged = status.st_size == instance.source_length and status.st_mtime_ns // 1000 == instance.source_mtime
        if not stat.S_ISREG(status.st_mode) or not unchanged:
            os.close(descriptor)
            msg = "the file has changed since it was catalogued; ingest its folder again"
            raise Gone(msg)
        return _FileSource(descriptor, status.st_size), (instance.original_path, status.st_size, status.st_mtime_ns)

    # --- members

    def _member(self, file: Source, key: tuple[str, int, int], instance: Instance) -> Source:
        """Follow an address from its file inwards."""
        outer, members = split_address(instance.path)
        source, address = file, outer
        for name, occurrence in members:
            # Names in an address are escaped already, so they are joined as they stand.
            inner = f"{address}!/{name}" + (f"!~{occurrence}" if occurrence > 1 else "")
            source = self._memory.peek((key, inner)) or self._disk.peek((key, inner)) or self._expand(source, key, address, inner)
            address = inner
        if source.length != instance.length:
            msg = "the member has another length than catalogued"
            raise Gone(msg)
        return source

    def _expand(self, archive: Source, key: tuple[str, int, int], address: str, inner: str) -> Source:
        if isinstance(archive, _FileSource) and not isinstance(archive, _KeptSource):
            archive = self._own(archive)
        directory = self._directories.get((key, address), partial(self._read_directory, archive, key, address))
        try:
            read = directory.members[inner]
        except KeyError:
            msg = "the archive has no such member"
            raise Gone(msg) from None
        return self._keep((key, inner), read)

    @staticmethod
    def _own(file: _FileSource) -> _FileSource:
        """Give an archive's directory a descriptor of its own; it ends with the directory."""
        return _Held(os.dup(file._descriptor), file.length)

    def _keep(self, key: tuple[object, str], read: Callable[[], Source]) -> Source:
        with self._lock:  # one expansion at a time bounds what they take together
            kept = self._memory.peek(key) or self._disk.peek(key)
            if kept is not None:
                return kept
            source = read()
            if isinstance(source, _MemorySource):
                self._memory.put(key, source)
            elif isinstance(source, _KeptSource):
                self._disk.put(key, source)
            return source

    def _read_directory(self, archive: Source, key: tuple[str, int, int], address: str) -> _Directory:
        stream = archive.stream()
        kind = identify(stream, archive.length).name
        stream.seek(0)
        budget = Budget(self._limits, archive.length)
        if kind in {"gzip", "bzip2", "xz"}:
            return self._read_compressed(archive, kind, address, budget)
        found: dict[str, Callable[[], Source]] = {}
        if kind == "zip":
            zipped = ZipArchive(stream, archive.length, budget)
            for inner, member in _addressed(zipped, address):
                found[inner] = partial(_expanded, member)
        elif kind == "tar":
            found = _parts_of_tar(archive, address, budget)
        return _Directory(found, 64 + len(found))

    def _read_compressed(self, archive: Source, kind: str, address: str, budget: Budget) -> _Directory:
        """Expand a compressed file once, all of it; its members are parts of that."""
        form = FORMATS[kind]
        meter = budget.meter(archive.length)
        expansion = Expansion(archive.stream().read, form.new_decoder, form.magic)

        def chunks() -> Iterator[bytes]:
            while chunk := expansion.read(EXPAND_BYTES):
                meter.take(len(chunk))
                yield chunk

        expanded = _kept(chunks())
        if identify(io.BytesIO(expanded.read_at(0, BLOCK)), min(BLOCK, expanded.length)).name == "tar":
            found = _parts_of_tar(expanded, address, budget)
        else:
            name = os_path(address) if MEMBER not in address else unescape_name(address.rpartition(MEMBER)[2])
            named = CompressedFile(kind, archive.stream().read, archive.length, name.rpartition(b"/")[2], Budget(self._limits, archive.length))
            inner, _ = next(_addressed(named, address))
            found = {inner: partial(_same, expanded)}
        return _Directory(found, 64 + len(found) + expanded.length // _BYTES_PER_MEMBER)


class _Held(_FileSource):
    """A descriptor that ends with its object."""

    def __del__(self) -> None:
        if os is not None:  # at the end of the interpreter, which closes what is left
            self.close()


class _Part(Source):
    """A stretch of other bytes."""

    def __init__(self, source: Source, start: int, length: int) -> None:
        super().__init__(length)
        self._source, self._start = source, start

    def read_at(self, start: int, count: int) -> bytes:
        return self._source.read_at(self._start + start, max(0, min(count, self.length - start)))


class _Counting:
    """Reads on, and knows how far it has come."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.at = 0

    def read(self, most: int) -> bytes:
        data = self._source.read_at(self.at, min(most, max(0, self._source.length - self.at)))
        self.at += len(data)
        return data


def _parts_of_tar(archive: Source, address: str, budget: Budget) -> dict[str, Callable[[], Source]]:
    found: dict[str, Callable[[], Source]] = {}
    reader = _Counting(archive)
    for inner, member in _addressed(TarArchive(reader.read, budget, metered=False), address):
        if member.failure is None and member.length is not None:
            found[inner] = partial(_Part, archive, reader.at, member.length)
    return found


def _same(source: Source) -> Source:
    return source


def _addressed(archive: Archive, address: str) -> Iterator[tuple[str, Member]]:
    """Members with their addresses, counted as the walk counts them."""
    seen: dict[bytes, int] = {}
    for member in archive:
        occurrence = seen[member.name] = seen.get(member.name, 0) + 1
        if len(seen) > _MOST_MEMBERS:
            return
        yield member_address(address, member.name, occurrence), member


def _expanded(member: Member) -> Source:
    if member.failure is not None:
        raise MemberError(member.failure)
    return _kept(member.chunks())


def _kept(chunks: Iterator[bytes]) -> "_MemorySource | _KeptSource":
    kept = keep(chunks, _IN_MEMORY)
    if isinstance(kept.stream, io.BytesIO):
        return _MemorySource(kept.stream.getvalue())
    kept.stream.flush()
    return _KeptSource(kept.stream, kept.length)


def _is_below(path: bytes, roots: tuple[str, ...]) -> bool:
    """Whether a file really lies below one of the folders, links followed."""
    real = os.path.realpath(path)
    for root in roots:
        folder = os.path.realpath(os_path(root))
        if real == folder or real.startswith(folder.rstrip(b"/") + b"/"):
            return True
    return False
