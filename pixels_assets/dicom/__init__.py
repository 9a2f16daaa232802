"""DICOM bytes and values: headers to JSON and typed values, frames to thumbnails. Pure: no files, no tables, no Dagster."""
