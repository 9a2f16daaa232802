"""The one partition definition: a sealed batch of files. Must not know what is in a batch."""

from collections.abc import Sequence

import dagster as dg

from pixels_assets.errors import UsageError

BATCH = dg.DynamicPartitionsDefinition(name="batch")

_PER_CALL = 1_000  # some builds of SQLite take no more than 32,766 variables in one statement


def batch_of(context: dg.AssetExecutionContext) -> str:
    """Key of the batch that a run takes.

    Raises
    ------
    UsageError
        None was chosen, or several for one run.
    """
    if not context.has_partition_key:
        msg = "a run takes one batch, and none was chosen: materialize a partition, or backfill several, each by a run of its own"
        raise UsageError(msg)
    return str(context.partition_key)


def register(instance: dg.DagsterInstance, keys: Sequence[str]) -> None:
    """Make batches known to Dagster; those that it knows already are left alone."""
    new = sorted(set(keys) - set(instance.get_dynamic_partitions("batch")))
    for start in range(0, len(new), _PER_CALL):
        instance.add_dynamic_partitions("batch", new[start : start + _PER_CALL])
