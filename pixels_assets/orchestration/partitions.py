"""The one partition definition: a sealed batch of files. Must not know what is in a batch."""

from collections.abc import Sequence

import dagster as dg

BATCH = dg.DynamicPartitionsDefinition(name="batch")

_PER_CALL = 1_000  # some builds of SQLite take no more than 32,766 variables in one statement


def register(instance: dg.DagsterInstance, keys: Sequence[str]) -> None:
    """Make batches known to Dagster; those that it knows already are left alone."""
    new = sorted(set(keys) - set(instance.get_dynamic_partitions("batch")))
    for start in range(0, len(new), _PER_CALL):
        instance.add_dynamic_partitions("batch", new[start : start + _PER_CALL])
