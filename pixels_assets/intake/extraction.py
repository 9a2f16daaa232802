"""Members of archives as files below one folder.

Holds where a member is written and how that stays inside the folder. Must not read archives.

A member is written to ``<folder>/<archive>-<hash>/<member's path>``, where ``<archive>`` is the archive's file name without its extension and the
hash keeps archives of one name apart; archives in archives are folders of the same form. A name that had to be changed, or that another member
has already, gets ``~<hash>`` before its extension. Hashes are those of addresses, so that the same member always gets the same path.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path

from pixels_assets.errors import LakeError
from pixels_assets.intake.compact import NameMap
from pixels_assets.intake.objects import FoundObject, member_address, os_path, split_address, unescape_name
from pixels_assets.intake.reading import EXPAND_BYTES

_NAME_BYTES = 255  # what common file systems allow
_PATH_BYTES = 2_000  # below the folder; deeper members are written directly into their archive's folder
_COMPRESSED_TAR = (b".tar.gz", b".tar.bz2", b".tar.xz")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Extractor:
    """Writes members of archives to files below one folder, and nothing anywhere else.

    Give it the members of a file in the order of the walk: of two names that differ only by case, the first keeps its name.

    Parameters
    ----------
    folder : Path
        Made when it does not exist. What others put below it, links included, is never followed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._original = ""
        self._taken = NameMap()  # path below the folder, without case -> hash of the address that has it

    def extract(self, found: FoundObject) -> Path:
        """Write one member.

        Parameters
        ----------
        found : FoundObject
            A member that is no archive and has no failure. Its stream is at position 0, before and after.

        Returns
        -------
        Path
            The file, complete: it appears under this name only when all bytes are written.

        Raises
        ------
        LakeError
            The folder cannot be written.
        ValueError
            The object is not such a member.
        """
        if found.stream is None or found.failure is not None or found.depth == 0:
            msg = "only members of archives that were read in full can be extracted"
            raise ValueError(msg)
        if found.original_path != self._original:
            self._original, self._taken = found.original_path, NameMap()
        try:
            parts = self._write(found, _parts(found.path), _number(found.path))
        except OSError as error:
            msg = f"members of archives cannot be extracted to {self.folder} ({error.strerror}); free space there, permit writing or choose another"
            raise LakeError(msg) from error
        return self.folder.joinpath(*(os.fsdecode(part) for part in parts))

    def _write(self, found: FoundObject, parts: list[bytes], number: int) -> list[bytes]:
        self.folder.mkdir(parents=True, exist_ok=True)
        root = os.open(self.folder, _FOLDER_FLAGS & ~os.O_NOFOLLOW)
        with contextlib.ExitStack() as opened:
            opened.callback(os.close, root)
            parent = root
            used: list[bytes] = []
            for part in parts[:-1]:
                name, child = _enter(parent, part, b"/".join(used))
                opened.callback(os.close, child)
                parent = child
                used.append(name)
            name = self._free_name(parent, used, parts[-1], number)
            _write_file(root, parent, name, found)
        return [*used, name]

    def _free_name(self, parent: int, used: list[bytes], name: bytes, number: int) -> bytes:
        """Name that no other member of this file has, and no folder."""
        for candidate in _candidates(name, number):
            key = b"/".join([*used, candidate]).decode("utf-8", "surrogateescape").casefold().encode("utf-8", "surrogateescape")
            if self._taken.get(key) not in (0, number):
                continue
            try:
                is_folder = stat.S_ISDIR(os.lstat(candidate, dir_fd=parent).st_mode)
            except FileNotFoundError:
                is_folder = False
            if not is_folder:
                self._taken.put(key, number)
                return candidate
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))


def _write_file(root: int, parent: int, name: bytes, found: FoundObject) -> None:
    assert found.stream
    temporary = f".{_number(found.path):016x}.part".encode()  # directly below the root, where no member's name can stand
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=root)  # left by a killed process
    descriptor = os.open(temporary, _FILE_FLAGS, 0o666, dir_fd=root)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            found.stream.seek(0)
            while data := found.stream.read(EXPAND_BYTES):
                _write_all(file.fileno(), data)
            found.stream.seek(0)
            if found.mtime_ns is not None:
                with contextlib.suppress(OverflowError, OSError):  # a time that the file system cannot hold
                    os.utime(file.fileno(), ns=(found.mtime_ns, found.mtime_ns))
        os.rename(temporary, name, src_dir_fd=root, dst_dir_fd=parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=root)
        raise


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _enter(parent: int, name: bytes, path: bytes) -> tuple[bytes, int]:
    """Open a folder, made where it is missing, under another name where something else has its name; links are not followed."""
    number = int.from_bytes(blake2b(path + b"/" + name, digest_size=8).digest(), "big")
    for candidate in _candidates(name, number):
        with contextlib.suppress(FileExistsError):
            os.mkdir(candidate, dir_fd=parent)
        try:
            return candidate, os.open(candidate, _FOLDER_FLAGS, dir_fd=parent)
        except OSError as error:
            if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
                raise
    raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))


def _candidates(name: bytes, number: int) -> Iterator[bytes]:
    """Yield the name, then variants of it that belong to a number."""
    yield name
    for digits in (8, 16):
        yield _marked(name, f"{number:016x}"[:digits])


def _marked(name: bytes, mark: str) -> bytes:
    """Put ``~<mark>`` before the extension, within the length that a name may have."""
    stem, dot, extension = name.rpartition(b".")
    if not stem or len(extension) > 16:
        stem, dot, extension = name, b"", b""
    suffix = b"~" + mark.encode() + dot + extension
    return _cut(stem, _NAME_BYTES - len(suffix)) + suffix


def _cut(name: bytes, most: int) -> bytes:
    """Shorten a name, not within a character when it is UTF-8."""
    if len(name) <= most:
        return name
    while most > 0 and name[most] & 0xC0 == 0x80:
        most -= 1
    return name[:most]


def _number(address: str) -> int:
    return int.from_bytes(blake2b(address.encode(), digest_size=8).digest(), "big") or 1


def _parts(address: str) -> list[bytes]:
    """Folders and name of a member below the folder; each is one harmless component, and changed ones end in a mark."""
    file, members = split_address(address)
    parts = [_archive_folder(os_path(file), file)]
    archive = file
    changed = False
    for level, (escaped, occurrence) in enumerate(members, start=1):
        name = unescape_name(escaped)
        archive = member_address(archive, name, occurrence)
        *folders, last = _components(name)
        changed = changed or b"/".join([*folders, last]) != name or occurrence > 1
        parts += folders
        parts.append(last if level == len(members) else _archive_folder(last, archive))
    if sum(map(len, parts)) + len(parts) > _PATH_BYTES:
        parts, changed = [parts[0], parts[-1]], True
    if changed:
        parts[-1] = _marked(parts[-1], f"{_number(address):016x}"[:8])
    return parts


def _components(name: bytes) -> list[bytes]:
    components = [_cut(part.replace(b"\0", b"_"), _NAME_BYTES) for part in name.split(b"/")]
    return [part for part in components if part not in {b"", b".", b".."}] or [b"member"]


def _archive_folder(path: bytes, address: str) -> bytes:
    """Name of an archive's folder: its file name without extension, and a hash of its address."""
    name = path.rpartition(b"/")[2]
    for suffix in _COMPRESSED_TAR:
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
            break
    else:
        stem, _, extension = name.rpartition(b".")
        name = stem if stem and len(extension) <= 16 else name
    digest = blake2b(address.encode(), digest_size=4).hexdigest()
    return _cut(name or b"archive", _NAME_BYTES - 9) + b"-" + digest.encode()
