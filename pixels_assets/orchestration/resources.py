"""Resources: where the lake is, what runs the work, and which folders are sources.

They turn what the UI configures into a `Settings`, the one object that the layers below understand. Must not hold logic of theirs.
"""

from contextlib import AbstractContextManager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_deltalake import DeltaTableResource, LocalConfig
from pydantic import Field

from pixels_assets.engines.local import LocalEngine
from pixels_assets.engines.run import Engine
from pixels_assets.errors import UsageError
from pixels_assets.lake.commit import create_tables
from pixels_assets.lake.schema import TABLES
from pixels_assets.settings import Limits, Settings, folder_path

LAKE_TAG, ENGINE_TAG = "pixels/lake", "pixels/engine"
"""Tags of runs: which lake they write, and what indexes objects."""

_SETTINGS = {item.name: item for item in fields(Settings)}


def _setting(name: str) -> Any:
    """Make a resource's field of a setting: same default, same meaning."""
    item = _SETTINGS[name]
    return Field(default=item.default, description=item.metadata["meaning"])


class LakeResource(dg.ConfigurableResource):
    """The folder of the Delta tables."""

    root: str = Field(description="Folder of the Delta tables; made when it is missing.")
    storage: LocalConfig = Field(default_factory=LocalConfig, description="Storage configuration, as dagster-deltalake describes it.")

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return folder_path("root", self.root)

    def prepared(self) -> Path:
        """Return the folder, with all tables in it."""
        create_tables(self.path)
        return self.path

    def table(self, name: str) -> DeltaTableResource:
        """Return one table, for assets of other projects that read it.

        Raises
        ------
        UsageError
            There is no such table.
        """
        if name not in TABLES:
            msg = f"there is no table {name!r}; the tables are {', '.join(TABLES)}"
            raise UsageError(msg)
        return DeltaTableResource(url=str(self.path / name), storage_options=self.storage)


class EngineResource(dg.ConfigurableResource):
    """What indexes objects, and how."""

    engine: str = _setting("engine")
    workers: int = _setting("workers")
    spark_master: str = _setting("spark_master")
    spark_partitions: int = _setting("spark_partitions")
    spark_config: dict[str, str] = Field(default_factory=dict, description="Spark properties by name, such as `spark.executor.memory`; they win.")
    object_seconds: float = _setting("object_seconds")
    worker_bytes: int = _setting("worker_bytes")
    thumbnail_size: int = _setting("thumbnail_size")
    preview: bool = _setting("preview")
    extract_to: str | None = _setting("extract_to")
    failure_share: float = _setting("failure_share")
    extractors: str = _setting("extractors")
    patch_rules: str | None = _setting("patch_rules")
    patch_to: str | None = _setting("patch_to")
    limits: dict[str, Any] = Field(default_factory=dict, description="Guards against hostile input, by name; those of the environment when empty.")

    def settings(self, **more: object) -> Settings:
        """Return the settings of a run: this resource's, then those of `more` that are not None; the environment's where neither says anything.

        Raises
        ------
        UsageError
            A value is out of range, or a limit is unknown.
        """
        values = {name: getattr(self, name) for name in _ENGINE_SETTINGS}
        if self.limits:
            unknown = self.limits.keys() - {item.name for item in fields(Limits)}
            if unknown:
                msg = f"there are no limits {sorted(unknown)}; the limits are {', '.join(item.name for item in fields(Limits))}"
                raise UsageError(msg)
            values["limits"] = Limits(**self.limits)
        return Settings.from_environment(**values | {name: value for name, value in more.items() if value is not None})

    def start(self) -> AbstractContextManager[Engine]:
        """Open the engine; the caller closes it.

        Raises
        ------
        UsageError
            There is no such engine, or it needs what is not here.
        WorkerError
            Spark does not start.
        """
        settings = self.settings()
        if settings.engine == LocalEngine.name:
            return LocalEngine(settings.worker_count)
        from dagster_pyspark import LazyPySparkResource  # costs a second

        from pixels_assets.engines.spark import SparkEngine, session_config, starting

        config = session_config(settings, self.spark_config)
        with starting(config["spark.master"]):
            session = LazyPySparkResource(spark_config=config).spark_session
        return SparkEngine(session, settings.spark_partitions)


class SourcesResource(dg.ConfigurableResource):
    """The folders that the sensor watches and that `discover` lists when its run config names none."""

    folders: list[str] = Field(default_factory=list, description="Absolute paths. PIXELS_SOURCES sets the default.")
    exclude: list[str] = Field(default_factory=list, description="Folders never to be entered; the lake is always among them.")
    batch_files: int = _setting("batch_files")
    batch_bytes: int = _setting("batch_bytes")
    quiet_seconds: float = _setting("quiet_seconds")
    accept_empty: bool = _setting("accept_empty")
    tick_seconds: float = Field(default=20.0, description="Listing time of one tick of the sensor, seconds; the daemon gives up on a tick after 60.")

    def settings(self) -> Settings:
        """Return the settings of a discovery."""
        return Settings.from_environment(sources=tuple(self.folders), **{name: getattr(self, name) for name in _SOURCES_SETTINGS})


_ENGINE_SETTINGS = tuple(name for name in EngineResource.model_fields if name in _SETTINGS and name != "limits")
_SOURCES_SETTINGS = tuple(name for name in SourcesResource.model_fields if name in _SETTINGS)


def engine_config(settings: Settings) -> dict[str, Any]:
    """Write settings as config of the engine resource."""
    values = {name: getattr(settings, name) for name in _ENGINE_SETTINGS}
    values = {name: str(value) if isinstance(value, Path) else value for name, value in values.items() if value is not None}
    return values | {"limits": asdict(settings.limits)}


def default_resources(settings: Settings) -> dict[str, dg.ConfigurableResource]:
    """Make the resources as `settings` describe them; the UI and run config may override each field."""
    return {
        "lake": LakeResource(root=str(settings.lake)),
        "engine": EngineResource(**engine_config(settings)),
        "sources": SourcesResource(
            folders=list(settings.sources),
            exclude=[str(settings.extract_to)] if settings.extract_to else [],
            **{name: getattr(settings, name) for name in _SOURCES_SETTINGS},
        ),
    }
