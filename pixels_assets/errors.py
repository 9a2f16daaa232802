"""The exception tree: our bugs and the environment.

A bad input file is never an exception: it is a row with a `Failure` (see `pixels_assets.intake.objects`).
Every message names the thing, its value and the next step, and holds no patient data.
"""

import traceback
from pathlib import Path


class PixelsError(Exception):
    """Base of all errors that this package raises on purpose.

    Attributes
    ----------
    exit_code : int
        What the command line returns for it.
    """

    exit_code = 1


class UsageError(PixelsError):
    """An argument or setting is wrong. Cause: the caller. Remedy: the message names the accepted values."""

    exit_code = 2


class SourceMissingError(UsageError):
    """A source folder does not exist or cannot be listed. Remedy: mount it or correct the path; nothing was written."""


class SourceVanishedError(PixelsError):
    """A source folder went away during a run. Remedy: bring it back and run again; the batch was not committed."""


class LakeError(PixelsError):
    """The lake cannot be written: no space, no permission, or not a lake. Remedy: as the message says, then run again."""


class CommitConflictError(LakeError):
    """Other writers won every attempt at a Delta commit. Remedy: run the batch again when fewer runs are writing."""


class InstanceError(PixelsError):
    """Dagster's own storage cannot be read or written: no space or no permission. Remedy: as the message says, then run again."""


class BatchError(PixelsError):
    """A batch key is malformed or its manifest is missing. Remedy: `pixels ingest` or the `discover` job seals new batches."""


class WorkerError(PixelsError):
    """Worker processes cannot be started or die without an object in hand. Remedy: check memory and the installation."""


def place_of(error: BaseException) -> str:
    """Type of an exception and where it was raised; not its message, which may hold names or values of attributes."""
    *_, frame = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno}"
