"""How work runs over many objects: one pass over a shard, and the pools that run shards. Knows no Dagster."""
