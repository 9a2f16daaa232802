"""What every archive format gives to the walk: its members, one after the other.

Holds that contract only. Must not read anything.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from pixels_assets.intake.objects import Failure


@dataclass(frozen=True, slots=True)
class Member:
    """One byte stream of an archive, not read yet.

    Parameters
    ----------
    name : bytes
        Its name; UTF-8 where the format says how names are encoded, else the bytes of the archive.
    length : int or None
        Bytes that the archive declares for it, None when it does not.
    compressed_length : int or None
        Bytes that it takes in the archive, None when the format does not say.
    mtime_ns : int or None
        Modification time, nanoseconds since 1970 UTC.
    chunks : callable
        Starts reading: an iterator of non-empty chunks, counted against the budget. Raises `MemberError` and `WalkError`.
    failure : Failure or None
        Set when there is no use in reading.
    """

    name: bytes
    length: int | None
    compressed_length: int | None
    mtime_ns: int | None
    chunks: Callable[[], Iterator[bytes]]
    failure: Failure | None = None


class Archive(Protocol):
    """Members of one archive. Iterate once; a member is read, if at all, before the next one is asked for."""

    failure: Failure | None
    """What is wrong with the archive itself, beyond single members; final after the last member."""
    warnings: list[str]
    """What is odd about it; final after the last member."""

    def __iter__(self) -> Iterator[Member]: ...
