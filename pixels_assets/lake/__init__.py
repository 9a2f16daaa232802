"""The Delta tables: their columns, the parts they are made of, and the two-phase commit. Knows no engine and no Dagster."""
