"""Dagster glue, and nothing else: what DICOM, archives, Delta or processes need is decided in the layers below.

Import the submodules directly. Modules here must not postpone annotations: Dagster reads them.
"""
