"""Resources: where the lake is, what runs the work, and which folders are sources.

They turn what the UI configures into a `Settings`, the one object that the layers below understand. Must not hold logic of theirs.
"""

from pathlib import Path

import dagster as dg
from dagster_deltalake import DeltaTableResource, LocalConfig
from pydantic import Field

from pixels_assets.engines.local import LocalEngine
from pixels_assets.lake.commit import create_tables
from pixels_assets.lake.schema import TABLES
from pixels_assets.settings import Settings


class LakeResource(dg.ConfigurableResource):
    """The folder of the Delta tables."""

    root: str = Field(description="Folder of the Delta tables; made when it is missing.")
    storage: LocalConfig = Field(default_factory=LocalConfig, description="Storage configuration, as dagster-deltalake describes it.")

    @property
    def path(self) -> Path:
        """The folder, absolute."""
        return Path(self.root).expanduser().absolute()

    def prepared(self) -> Path:
        """Make sure that all tables are there, and return the folder."""
        create_tables(self.path)
        return self.path

    def table(self, name: str) -> DeltaTableResource:
        """One table, for assets of other projects that read it."""
        if name not in TABLES:
            msg = f"there is no table {name!r}; the tables are {', '.join(TABLES)}"
            raise KeyError(msg)
        return DeltaTableResource(url=str(self.path / name), storage_options=self.storage)


class EngineResource(dg.ConfigurableResource):
    """What indexes objects."""

    engine: str = Field(default="local", description="`local`: a pool of processes on this machine.")
    workers: int = Field(default=0, description="Worker processes; 0 means one per core.")
    object_seconds: float = Field(description="Time that one object may take before its worker is stopped.")
    worker_bytes: int = Field(description="Memory that one worker process may hold.")

    def settings(self, **more: object) -> Settings:
        """Put together the settings of a run: the environment's, then this resource's, then `more`."""
        return Settings.from_environment(workers=self.workers, object_seconds=self.object_seconds, worker_bytes=self.worker_bytes, **more)

    def start(self) -> LocalEngine:
        """Open the engine; the caller closes it."""
        return LocalEngine(self.settings().worker_count)


class SourcesResource(dg.ConfigurableResource):
    """The folders that the sensor watches and that `discover` lists when its run config names none."""

    folders: list[str] = Field(default_factory=list, description="Absolute paths. PIXELS_SOURCES sets the default.")
    batch_files: int = Field(description="A batch is sealed at this many files.")
    batch_bytes: int = Field(description="A batch is sealed at this many bytes of files.")
    quiet_seconds: float = Field(description="Files modified less than this long ago wait for the next pass.")

    def settings(self) -> Settings:
        """Put together the settings of a discovery."""
        return Settings.from_environment(
            sources=tuple(self.folders), batch_files=self.batch_files, batch_bytes=self.batch_bytes, quiet_seconds=self.quiet_seconds
        )


def default_resources(settings: Settings) -> dict[str, dg.ConfigurableResource]:
    """Make the resources as `settings` describe them; the UI and run config may override each field."""
    return {
        "lake": LakeResource(root=str(settings.lake)),
        "engine": EngineResource(workers=settings.workers, object_seconds=settings.object_seconds, worker_bytes=settings.worker_bytes),
        "sources": SourcesResource(
            folders=list(settings.sources),
            batch_files=settings.batch_files,
            batch_bytes=settings.batch_bytes,
            quiet_seconds=settings.quiet_seconds,
        ),
    }
