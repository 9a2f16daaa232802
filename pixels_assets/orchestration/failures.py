"""How a step fails: the environment's errors are tried again, wrong arguments, bad batches and bugs are not. Bad files never fail a step.

Not a `RetryPolicy` on the assets: Dagster would apply it to Ctrl-C as well.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from pixels_assets.errors import BatchError, PixelsError, SourceVanishedError, UsageError

RETRIES = 2
RETRY_SECONDS = 3


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turn exceptions into Dagster failures: this package's with their own sentence, bugs without another try."""
    try:
        yield
    except (UsageError, BatchError, SourceVanishedError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    except PixelsError as error:
        raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=RETRY_SECONDS) from dg.Failure(str(error))
    except OSError as error:
        msg = f"the system refused: {error.strerror or type(error).__name__}; see the log, mend it and run again"
        raise dg.RetryRequested(max_retries=RETRIES, seconds_to_wait=RETRY_SECONDS) from dg.Failure(msg)
    except Exception as error:
        msg = f"a bug: {type(error).__name__}; please report it with the stack trace of this run"
        raise dg.Failure(msg, allow_retries=False) from error
