"""How a run fails: the environment's errors are tried again, wrong arguments and bad batches are not. Bad files never fail a run."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from pixels_assets.errors import BatchError, PixelsError, SourceVanishedError, UsageError

ENVIRONMENT_RETRY = dg.RetryPolicy(max_retries=2, delay=2, backoff=dg.Backoff.EXPONENTIAL)


@contextmanager
def failing_clearly() -> Iterator[None]:
    """Turn this package's exceptions into Dagster failures that carry the same sentence."""
    try:
        yield
    except (UsageError, BatchError, SourceVanishedError) as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    except PixelsError as error:
        raise dg.Failure(str(error)) from error
