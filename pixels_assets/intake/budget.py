"""What one outermost file may cost: the guards of `pixels_assets.settings.Limits`, applied while bytes appear.

Holds the counters and the sentences that go into rows. Must not read anything.

The two exceptions carry a `Failure` from the place that notices to the place that writes the row; neither leaves the walk of a file.
"""

from collections.abc import Callable

from pixels_assets.intake.objects import Failure, Status
from pixels_assets.settings import KIB, Limits

PROGRESS_BYTES = 256 * KIB
"""So many bytes, read or expanded, are progress: less than one block of the slowest decoder, bzip2, which takes a quarter of a second at worst."""


class MemberError(Exception):
    """One byte stream cannot be had in full. It costs that stream; the walk goes on."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


class WalkError(Exception):
    """A guard of the whole outermost file was crossed. It ends the walk of that file."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.code)
        self.failure = failure


class Budget:
    """Counts what one outermost file, with all that is nested in it, has cost so far.

    Parameters
    ----------
    limits : Limits
    length : int
        Bytes of the outermost file.
    on_progress : callable, optional
        Called whenever another `PROGRESS_BYTES` were expanded.
    """

    def __init__(self, limits: Limits, length: int, on_progress: Callable[[], None] = lambda: None) -> None:
        self.limits = limits
        self._on_progress = on_progress
        self._next_progress = PROGRESS_BYTES
        self.members = 0
        self.total = 0
        self._most_by_ratio = max(limits.ratio_floor_bytes, int(limits.max_ratio * length))

    def count_member(self) -> None:
        """Count one entry of an archive: folders and links too, since each costs time.

        Raises
        ------
        WalkError
            There are more than `Limits.max_members`.
        """
        self.members += 1
        if self.members > self.limits.max_members:
            raise WalkError(_exceeded("too_many_members", f"The file holds more than {self.limits.max_members} members", "max_members"))

    def charge(self, count: int) -> None:
        """Count expanded bytes.

        Raises
        ------
        WalkError
            They are more than `Limits.max_total_bytes`, or than `Limits.max_ratio` allows for a file of this length.
        """
        self.total += count
        if self.total >= self._next_progress:
            self._next_progress = self.total + PROGRESS_BYTES
            self._on_progress()
        if self.total > self.limits.max_total_bytes:
            raise WalkError(_exceeded("total_too_large", f"The file expands to more than {self.limits.max_total_bytes} bytes", "max_total_bytes"))
        if self.total > self._most_by_ratio:
            raise WalkError(_exceeded("expansion_ratio", f"The file expands to more than {self.limits.max_ratio:g} times its size", "max_ratio"))

    def meter(self, compressed_length: int | None = None) -> "Meter":
        """Start counting the bytes of one member.

        Parameters
        ----------
        compressed_length : int or None
            Bytes that it takes in its archive, None where it is not compressed.
        """
        return Meter(self, compressed_length)


class Meter:
    """Counts the expanded bytes of one member, or of one compressed file."""

    __slots__ = ("_budget", "_most", "length")

    def __init__(self, budget: Budget, compressed_length: int | None) -> None:
        limits = budget.limits
        self._budget = budget
        self.length = 0
        self._most = limits.max_member_bytes
        if compressed_length is not None:
            self._most = min(self._most, max(limits.ratio_floor_bytes, int(limits.max_ratio * compressed_length)))

    def check(self, length: int) -> None:
        """Hold a length against the guards of a member.

        A declared length is checked before the first byte is expanded: a bomb that says what it is costs nothing, and nothing of what its
        neighbours may take.

        Raises
        ------
        MemberError
            It is more than `Limits.max_member_bytes`, or than `Limits.max_ratio` allows for what it takes in its archive.
        """
        if length > self._most:
            limits = self._budget.limits
            if length > limits.max_member_bytes:
                failure = _exceeded("member_too_large", f"The object has more than {limits.max_member_bytes} bytes", "max_member_bytes")
            else:
                failure = _exceeded("expansion_ratio", f"The object expands to more than {limits.max_ratio:g} times its compressed size", "max_ratio")
            raise MemberError(failure)

    def take(self, count: int) -> None:
        """Count expanded bytes for the member and for the whole file.

        Raises
        ------
        MemberError
            See `check`.
        WalkError
            See `Budget.charge`.
        """
        self.length += count
        self.check(self.length)
        self._budget.charge(count)


def too_deep(limits: Limits) -> Failure:
    """Failure of an archive that is not opened because of `Limits.max_depth`."""
    return _exceeded("too_deep", f"The archive lies deeper than {limits.max_depth} archives", "max_depth")


def _exceeded(code: str, what: str, setting: str) -> Failure:
    return Failure(Status.LIMIT_EXCEEDED, code, f"{what}; raise PIXELS_LIMIT_{setting.upper()} if it is trusted.")
