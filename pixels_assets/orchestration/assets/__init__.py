"""The asset graph, a module for each group: ingest, extract, catalog."""
