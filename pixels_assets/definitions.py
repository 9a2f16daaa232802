"""The code location: assets, checks, jobs, sensors and resources put together. Must not hold any of them."""

from collections.abc import Mapping
from dataclasses import fields

import dagster as dg

from pixels_assets.engines.extractors import load_extractors
from pixels_assets.errors import UsageError
from pixels_assets.orchestration.assets.annotations import linked_annotations
from pixels_assets.orchestration.assets.catalog import object_catalog, quarantine
from pixels_assets.orchestration.assets.extract import build_index_objects
from pixels_assets.orchestration.assets.headers import build_headers
from pixels_assets.orchestration.assets.ingest import raw_files
from pixels_assets.orchestration.assets.rollups import rollups
from pixels_assets.orchestration.checks import CHECKS
from pixels_assets.orchestration.executors import in_process_by_default
from pixels_assets.orchestration.jobs import JOBS, schedules
from pixels_assets.orchestration.resources import default_resources
from pixels_assets.orchestration.sensors import sensors
from pixels_assets.settings import Settings

ASSETS = [raw_files, object_catalog, quarantine, rollups, linked_annotations]


def build_definitions(overrides: Mapping[str, object] | None = None) -> dg.Definitions:
    """Build the code location.

    Parameters
    ----------
    overrides : mapping of str to object, optional
        By name: a resource to use instead of the default one (`lake`, `engine`, `sources`), or the value of a setting,
        such as ``{"lake": "/data/lake"}``.

    Returns
    -------
    dagster.Definitions

    Raises
    ------
    UsageError
        An override is neither a resource nor a setting.
    """
    given = dict(overrides or {})
    resources = {name: value for name, value in given.items() if isinstance(value, dg.ConfigurableResource)}
    values = {name: value for name, value in given.items() if name not in resources}
    names = [item.name for item in fields(Settings)]
    unknown = values.keys() - set(names)
    settings = Settings.from_environment(**{name: value for name, value in values.items() if name not in unknown})
    defaults = default_resources(settings)
    unknown |= resources.keys() - defaults.keys()
    if unknown:
        msg = f"{sorted(unknown)} are neither resources nor settings; the resources are {', '.join(defaults)}, the settings {', '.join(names)}"
        raise UsageError(msg)
    return dg.Definitions(
        assets=[*ASSETS, build_headers(settings), build_index_objects(load_extractors(settings))],
        asset_checks=CHECKS,
        jobs=JOBS,
        schedules=schedules(watching=bool(settings.sources)),
        sensors=sensors(settings),
        resources=defaults | resources,
        executor=in_process_by_default,
    )


defs = build_definitions()
