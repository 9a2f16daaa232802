r"""What lies in one source folder, in a stable order, resumable after any address.

Holds the walk: which files are there, which must wait, which cannot be had. Must not open a file, look at content, know what earlier walks
found, or know batches and tables.

The order is that of `listing_key`: component by component, each by its escaped bytes. So a position in the walk is an address, nothing else, and
it stays good when the file at it has gone. Memory is bounded by the names in the folders on the current path: about 100 bytes per name.
"""

import errno
import logging
import os
import stat
import time
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from pixels_assets.errors import SourceMissingError, SourceVanishedError
from pixels_assets.intake.objects import Failure, SourceFile, Status, escape_name, file_address, folder_prefix, os_path, storable_time, unescape_name

logger = logging.getLogger(__name__)

UNFINISHED_SUFFIXES = (".part", ".tmp")

# Without following a link that took the folder's place after its name was read, and without opening what is no folder.
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# This process is short of something: no fact about the file in hand, so no row either.
_OUR_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_KINDS = {stat.S_IFLNK: "symlink", stat.S_IFSOCK: "socket", stat.S_IFIFO: "fifo", stat.S_IFBLK: "device", stat.S_IFCHR: "device"}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A file that exists but is not yet to be taken: it may still be written to.

    Parameters
    ----------
    path : str
        Address of the file.
    ready_ns : int or None
        When it will be old enough, nanoseconds since 1970 UTC; None for ``*.part`` and ``*.tmp``, which wait for a new name.
    """

    path: str
    ready_ns: int | None


@dataclass(slots=True)
class ListingCounts:
    """What a walk has met so far, from its position on: the counts of a walk in several parts add up to those of a whole one.

    Parameters
    ----------
    files : int
        Files yielded to be taken.
    bytes : int
        Their sizes.
    folders : int
        Folders entered, the source itself included.
    waiting : int
        Files yielded as `Waiting`.
    failures : int
        Files and folders yielded with a failure.
    skipped : dict of str to int
        What is neither file nor folder: ``symlink``, ``socket``, ``fifo``, ``device``, ``other``.
    """

    files: int = 0
    bytes: int = 0
    folders: int = 0
    waiting: int = 0
    failures: int = 0
    skipped: dict[str, int] = field(default_factory=Counter)


def listing_key(path: str) -> str:
    r"""Sort key of an address: a walk yields addresses in ascending order of it.

    Comparing by code point, by UTF-8 byte and by path component all give this order, since ``/`` becomes the NUL that no address holds.

    Examples
    --------
    >>> sorted(["/in/a/b", "/in/a-c", "/in/a.d"], key=listing_key)
    ['/in/a/b', '/in/a-c', '/in/a.d']
    """
    return path.replace("/", "\0")


class Listing:
    """One walk of one source folder.

    Iterating yields a `SourceFile` for each file to be taken and for each file or folder that cannot be read, and a `Waiting` for each that is
    not finished, in ascending order of `listing_key`. Symbolic links are never followed; they, sockets, FIFOs and devices are never opened, only
    counted. A file that goes away during the walk is left out.

    Parameters
    ----------
    source : str or os.PathLike
        The folder. It may itself be a symbolic link.
    after : str, optional
        Resume strictly after this address. It need not exist any more; folders that lie wholly before it are not opened.
    quiet_seconds : float
        A file modified less than this long ago is `Waiting`. One modified in the future is not: clocks differ between machines.
    exclude : collection of str
        Addresses of folders below the source that are never entered, such as a lake.

    Attributes
    ----------
    source : str
        Address of the source folder, links resolved. Addresses in it begin with `prefix`.
    prefix : str
        What all addresses of the walk begin with: the source in its escaped form, with a ``/`` at the end.
    counts : ListingCounts
        Of the latest iteration.

    Raises
    ------
    SourceMissingError
        The folder is missing, is not a folder, or cannot be listed at all.
    SourceVanishedError
        While iterating: the folder went away or was replaced, so that nothing can be said about what it holds.
    OSError
        While iterating: this process has no file descriptors or memory left.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        after: str | None = None,
        quiet_seconds: float = 0.0,
        exclude: Collection[str] = (),
    ) -> None:
        self._root, self._identity = _resolve(source)
        self.source = file_address(self._root)
        self.prefix = folder_prefix(self.source)
        self.counts = ListingCounts()
        self._after = listing_key(after or "")
        self._quiet_ns = int(quiet_seconds * 1e9)
        self._excluded = frozenset(folder_prefix(file_address(os.path.realpath(os_path(address)))) for address in exclude)

    def __iter__(self) -> Iterator[SourceFile | Waiting]:
        self.counts = ListingCounts()
        # The folders on the current path, each with what is left of its entries, last one first.
        stack: list[tuple[str, list[str]]] = []
        if self._reaches(listing_key(self.prefix)):
            yield from self._enter(self.prefix, stack)
        while stack:
            folder, entries = stack[-1]
            if not entries:
                stack.pop()
                continue
            name, is_special, kind = entries.pop().partition("\0")
            if kind:
                self.counts.skipped[kind] += 1
            elif is_special:
                yield from self._enter(f"{folder}{name}/", stack)
            else:
                found = self._file(folder + name)
                if found is not None:
                    yield found
        self._require_source()

    def _reaches(self, folder_key: str) -> bool:
        """Whether anything in the folder comes after the position."""
        return folder_key > self._after or self._after.startswith(folder_key)

    def _enter(self, folder: str, stack: list[tuple[str, list[str]]]) -> Iterator[SourceFile]:
        """Put a folder's entries on the stack; yield a row when it could not be listed, or not to its end."""
        if folder in self._excluded:
            return
        key = listing_key(folder)
        entries, failure = self._entries(folder)
        if self._after.startswith(key):
            entries = [entry for entry in entries if _comes_after(entry, self._after[len(key) :])]
        entries.sort(reverse=True)
        stack.append((folder, entries))
        if key > self._after:
            self.counts.folders += 1
            if failure is not None:
                yield self._failed(folder, _modified(folder), failure)

    def _entries(self, folder: str) -> tuple[list[str], Failure | None]:
        r"""Read a folder's names, unsorted, in a form that sorts like their `listing_key` and stays small.

        A file is its escaped name, a folder its escaped name and NUL, anything else its escaped name, NUL and what it is.
        """
        entries = []
        try:
            handle = os.open(_folder_path(folder), _OPEN_FOLDER)
            try:
                with os.scandir(handle) as found:
                    for item in found:
                        entry = _entry(item)
                        if entry is not None:
                            entries.append(entry)
            finally:
                os.close(handle)
        except OSError as error:
            return entries, self._failure(error, "folder")
        return entries, None

    def look_again(self, waiting: Waiting) -> SourceFile | Waiting | None:
        """Ask again for a file that was not yet to be taken; None when it is no longer there."""
        self.counts.waiting -= 1
        return self._file(waiting.path)

    def _file(self, path: str) -> SourceFile | Waiting | None:
        if path[-5:].lower().endswith(UNFINISHED_SUFFIXES):
            self.counts.waiting += 1
            return Waiting(path, None)
        try:
            found = os.lstat(unescape_name(path))
        except OSError as error:
            failure = self._failure(error, "file")
            return None if error.errno in _GONE else self._failed(path, 0, failure)
        if not stat.S_ISREG(found.st_mode):  # replaced after its name was read
            self.counts.skipped[_kind(found.st_mode)] += 1
            return None
        if self._quiet_ns and 0 <= time.time_ns() - found.st_mtime_ns < self._quiet_ns:
            self.counts.waiting += 1
            return Waiting(path, found.st_mtime_ns + self._quiet_ns)
        self.counts.files += 1
        self.counts.bytes += found.st_size
        return SourceFile(path, found.st_size, storable_time(found.st_mtime_ns), self.source)

    def _failed(self, path: str, mtime_ns: int, failure: Failure) -> SourceFile:
        self.counts.failures += 1
        logger.debug("listing: %s", failure.code)
        return SourceFile(path, 0, mtime_ns, self.source, failure=failure)

    def _failure(self, error: OSError, what: str) -> Failure:
        """Say why a file or folder could not be had, unless the cause is this process or the loss of the whole source."""
        if error.errno in _OUR_OWN:
            raise error
        self._require_source()
        name = errno.errorcode.get(error.errno or 0, "unknown error")
        if error.errno in (errno.EACCES, errno.EPERM):
            return Failure(Status.UNREADABLE, "permission_denied", f"The storage does not permit reading this {what} ({name}).")
        if error.errno == errno.ENAMETOOLONG:
            return Failure(Status.UNREADABLE, "path_too_long", f"The path of this {what} is longer than the system can open ({name}).")
        if error.errno in _GONE:
            return Failure(Status.UNREADABLE, f"{what}_vanished", f"This {what} went away while its source was listed ({name}).")
        return Failure(Status.UNREADABLE, f"{what}_unreadable", f"The storage failed when asked for this {what} ({name}).")

    def _require_source(self) -> None:
        """Raise when the source is not what it was: an unmounted disk must not look like a folder whose files were removed."""
        try:
            present = _identify(self._root) == self._identity
        except OSError:
            present = False
        if not present:
            msg = f"source {self.source!r} went away or was replaced while it was listed; bring it back and run again"
            raise SourceVanishedError(msg)


def _resolve(source: str | os.PathLike[str]) -> tuple[bytes, tuple[int, int]]:
    """Real path and identity of a folder that can be listed."""
    if not os.fspath(source):
        msg = "the source is an empty path; name a folder"
        raise SourceMissingError(msg)
    try:
        root = os.path.realpath(os.fsencode(source))
        identity = _identify(root)
        with os.scandir(root):
            return root, identity
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, or text that is no file name
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "not a valid path"
        msg = f"source {os.fspath(source)!r} cannot be listed: {reason}; mount it or correct the path"
        raise SourceMissingError(msg) from error


def _identify(root: bytes) -> tuple[int, int]:
    found = os.lstat(root)
    return found.st_dev, found.st_ino


def _folder_path(address: str) -> bytes:
    # With a separator at its end the path of a link would mean what the link points to.
    return unescape_name(address).rstrip(b"/") or b"/"


def _entry(item: os.DirEntry[str]) -> str | None:
    name = os.fsencode(item.name)
    try:
        if item.is_file(follow_symlinks=False):
            return escape_name(name)
        if item.is_dir(follow_symlinks=False):
            return escape_name(name + b"/")[:-1] + "\0"
        return f"{escape_name(name)}\0{_kind(item.stat(follow_symlinks=False).st_mode)}"
    except FileNotFoundError:
        return None
    except OSError:
        # Its kind is not known and cannot be asked for: asking again in its turn gives the row that says so.
        return escape_name(name)


def _comes_after(entry: str, position: str) -> bool:
    """Whether an entry, or for a folder anything in it, comes after a position in its own folder."""
    name, is_special, kind = entry.partition("\0")
    if is_special and not kind:
        return entry > position or position.startswith(entry)
    return name > position


def _kind(mode: int) -> str:
    return _KINDS.get(stat.S_IFMT(mode), "other")


def _modified(folder: str) -> int:
    try:
        return storable_time(os.lstat(_folder_path(folder)).st_mtime_ns)
    except OSError:
        return 0
