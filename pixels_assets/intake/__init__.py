"""What lies in the sources: listing, content types, archives and sealed batches. Pure: knows no table, engine or Dagster."""
