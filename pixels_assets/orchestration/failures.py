"""How a run fails: the environment's errors are tried again, wrong arguments and bad batches are not. Bad files never fail a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from pixels_assets.errors import BatchError, PixelsError, SourceVanishedError, UsageError

ENVIRONMENT_RETRY = dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL)


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turn exceptions into Dagster failures: this package's with their own sentence, bugs without another try."""
    try:
        yield
    except (UsageError, BatchError, SourceVanishedError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    except PixelsError as error:
        raise dg.Failure(str(error)) from error
    except OSError as error:
        msg = f"the system refused: {error.strerror or type(error).__name__}; see the log, mend it and run again"
        raise dg.Failure(msg) from error
    except Exception as error:
        msg = f"a bug: {type(error).__name__}; please report it with the stack trace of this run"
        raise dg.Failure(msg, allow_retries=False) from error
