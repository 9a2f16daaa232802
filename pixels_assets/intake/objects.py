r"""One byte stream and its address.

Holds the vocabulary that every later stage shares: statuses, failures, source files, found objects and the text form of their addresses.
Must not open, list or decode anything.

Addresses
---------
The `path` of an object is UTF-8 text and maps back to exactly one byte stream:

* a loose file is its absolute path;
* a member of an archive is ``<address of the archive>!/<member name>``, nested to any depth;
* the second member of one archive that bears the same name is ``...!/<member name>!~2``, the third ``!~3`` and so on.

Bytes that are not UTF-8 are written ``\xNN``, and so is what would otherwise be ambiguous: a backslash before ``xNN``, a NUL, and an exclamation
mark before ``/`` or ``~``. All other names, newlines and quotes included, stay as they are.
"""

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import BinaryIO

from pixels_assets.intake.filetype import FileType

MEMBER = "!/"
_AMBIGUOUS = re.compile(rb"\\(?=x[0-9a-f]{2})|\x00|!(?=[/~])")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_TIMES = -(1 << 63), (1 << 63) - 1  # nanoseconds that tables hold: the years 1677 to 2262; file systems know later ones
_OCCURRENCE = re.compile(r"!~([0-9]+)$")


class Status(StrEnum):
    """What became of one object; the only values of every `status` column."""

    INDEXED = "indexed"
    ARCHIVE = "archive"
    NOT_DICOM = "not_dicom"
    EMPTY = "empty"
    CORRUPT = "corrupt"
    ENCRYPTED = "encrypted"
    LIMIT_EXCEEDED = "limit_exceeded"
    UNREADABLE = "unreadable"
    CRASHED = "crashed"
    TIMEOUT = "timeout"


class Change(StrEnum):
    """How a source file differs from what the lake knew; the only values of `raw_files.change`."""

    NEW = "new"
    MODIFIED = "modified"
    REMOVED = "removed"
    MOVED = "moved"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an object did not become an indexed one.

    Parameters
    ----------
    status : Status
    code : str
        Stable snake_case word, such as ``crc_mismatch``.
    message : str
        One sentence without patient data: no attribute value, no member name.
    """

    status: Status
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file found in a source, as it was when listed: a row of a batch's manifest.

    Parameters
    ----------
    path : str
        Address of the file. A folder that could not be listed ends with ``/``.
    length : int
        Bytes.
    mtime_ns : int
        Modification time, nanoseconds since 1970 UTC.
    source : str
        Address of the source folder below which it was found.
    change : Change
    previous_path : str or None
        Where a moved file was before.
    failure : Failure or None
        Set when listing itself failed for this entry.
    """

    path: str
    length: int
    mtime_ns: int
    source: str
    change: Change = Change.NEW
    previous_path: str | None = None
    failure: Failure | None = None

    def __reduce__(self) -> tuple[type["SourceFile"], tuple[object, ...]]:
        # Every file is sent to a worker once; the way of dataclasses with slots takes five times as long.
        return SourceFile, (self.path, self.length, self.mtime_ns, self.source, self.change, self.previous_path, self.failure)


@dataclass(slots=True)
class FoundObject:
    """One byte stream, read in full: a loose file, an archive, or a member of one.

    Parameters
    ----------
    path : str
        Its address.
    original_path : str
        Address of the outermost file.
    depth : int
        0 for a loose file, 1 for a member, 2 for a member of a member.
    file_type : str
        What the content is: ``dicom``, ``dicomdir``, ``zip``, ``tar``, ``gzip``, ``bzip2``, ``xz``, ``pdf``, ``text``, ... ; ``''`` when unread.
    length : int or None
        Its own bytes (expanded), None when unknown.
    compressed_length : int or None
        Bytes that it takes inside its archive; None for loose files and where a format does not say.
    mtime_ns : int or None
        Modification time, nanoseconds since 1970 UTC, None when its archive does not say.
    content_hash : str or None
        SHA-256 of its bytes, lower-case hex; None when not all bytes could be read.
    stream : BinaryIO or None
        Its bytes, seekable, at position 0; None where a failure left nothing to read. Valid only until the next object is asked for.
    failure : Failure or None
        What went wrong before anybody looked at the content as DICOM.
    warnings : list of str
        What was odd without being a failure.
    member_name : str or None
        The raw name inside its archive as the archive spells it, for extraction; None for loose files.
    identified : FileType or None
        All that was found out about the content's type; None when unread.
    """

    path: str
    original_path: str
    depth: int
    file_type: str
    length: int | None
    compressed_length: int | None
    mtime_ns: int | None
    content_hash: str | None
    stream: BinaryIO | None
    failure: Failure | None
    warnings: list[str]
    member_name: str | None = None
    identified: FileType | None = None


def escape_name(name: bytes) -> str:
    r"""Write raw bytes of a name as text that `unescape_name` turns back into the same bytes.

    Parameters
    ----------
    name : bytes
        Part of a path, or a whole one.

    Returns
    -------
    str
        Valid UTF-8 text.

    Examples
    --------
    >>> escape_name(b"caf\xe9!/x")
    'caf\\xe9\\x21/x'
    """
    name = _AMBIGUOUS.sub(lambda found: b"\\x%02x" % found.group()[0], name)
    text = name.decode("utf-8", "surrogateescape")
    if text.isascii():
        return text
    return "".join(f"\\x{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff" else char for char in text)


def unescape_name(text: str) -> bytes:
    """Turn text made by `escape_name` back into its bytes."""
    if "\\" not in text:
        return text.encode("utf-8")
    return _ESCAPED.sub(lambda found: bytes([int(found.group(1), 16)]), text.encode("utf-8"))


def file_address(path: str | bytes | os.PathLike[str]) -> str:
    """Address of a loose file, from its absolute path as the operating system gives it."""
    return escape_name(os.fsencode(path))


def folder_prefix(folder: str) -> str:
    r"""Give what the addresses of all files below a folder begin with.

    Examples
    --------
    >>> folder_prefix("/in/a!")
    '/in/a\\x21/'
    """
    # Escaped with its separator, as in the addresses of the files below it: a name may end with an exclamation mark.
    return escape_name(unescape_name(folder).rstrip(b"/") + b"/")


def os_path(address: str) -> bytes:
    """Path that opens the outermost file of an address, as bytes for the operating system."""
    return unescape_name(address.split(MEMBER, 1)[0])


def storable_time(mtime_ns: int) -> int:
    """Time of a file as tables hold it, nanoseconds: the nearest that they can when they cannot."""
    return max(_TIMES[0], min(mtime_ns, _TIMES[1]))


def member_address(archive: str, name: str | bytes, occurrence: int = 1) -> str:
    """Address of a member.

    Parameters
    ----------
    archive : str
        Address of the archive.
    name : str or bytes
        The member's name as its archive spells it, however odd. Text may hold surrogate escapes.
    occurrence : int
        1 for the first member of that name in the archive, 2 for the second.
    """
    raw = name if isinstance(name, bytes) else name.encode("utf-8", "surrogateescape")
    suffix = f"!~{occurrence}" if occurrence > 1 else ""
    return f"{archive}{MEMBER}{escape_name(raw)}{suffix}"


def split_address(address: str) -> tuple[str, tuple[tuple[str, int], ...]]:
    """Take an address apart.

    Returns
    -------
    file : str
        Address of the outermost file.
    members : tuple of (str, int)
        Member name (still escaped) and occurrence, outermost first; empty for a loose file.
    """
    file, *names = address.split(MEMBER)
    members = []
    for name in names:
        found = _OCCURRENCE.search(name)
        members.append((name[: found.start()], int(found.group(1))) if found else (name, 1))
    return file, tuple(members)


def row_id(path: str) -> int:
    """Deterministic 63-bit key of an address, the same in every run and on every machine."""
    return int.from_bytes(blake2b(path.encode("utf-8"), digest_size=8).digest(), "big") >> 1
