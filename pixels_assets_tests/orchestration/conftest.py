"""A place with a lake, a source and a Dagster instance of its own."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg
import polars as pl
import pydicom.data
import pytest

from pixels_assets.definitions import build_definitions
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.query import scan
from pixels_assets.orchestration.jobs import look
from pixels_assets.orchestration.resources import LakeResource, SourcesResource, default_resources
from pixels_assets.settings import Settings


class Place:
    """What the tests of this layer work with."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.lake, self.source, self.instance = folder / "lake", folder / "source", instance
        self.source.mkdir()
        self.values: dict[str, object] = {"lake": self.lake, "workers": 1, "quiet_seconds": 0.0}
        self.moment = 1_700_000_000_000_000_000

    def write(self, name: str, data: bytes | None = None) -> Path:
        """One of pydicom's files of that name, or other bytes."""
        self.moment += 1_000_000_007
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Path(str(pydicom.data.get_testdata_file(path.name))).read_bytes() if data is None else data)
        os.utime(path, ns=(self.moment, self.moment))
        return path

    def definitions(self, **overrides) -> dg.Definitions:
        return build_definitions(self.values | overrides)

    def resources(self, **values) -> tuple[LakeResource, SourcesResource]:
        made = default_resources(Settings.from_environment(**(self.values | {"sources": (str(self.source),)} | values)))
        lake, sources = made["lake"], made["sources"]
        assert isinstance(lake, LakeResource)
        assert isinstance(sources, SourcesResource)
        return lake, sources

    def seal(self, **values) -> list[str]:
        """Look for files; the batches that were sealed."""
        lake, sources = self.resources(**values)
        return look(self.instance, lake, sources, [str(self.source)]).batches

    def run(
        self, batch: str | None, *tables: str, ops: dict[str, object] | None = None, tags: dict[str, str] | None = None, **overrides
    ) -> dg.ExecuteInProcessResult:
        """Materialize one batch, all of it or some tables."""
        job = self.definitions(**overrides).resolve_job_def("ingest_batch")
        return job.execute_in_process(
            partition_key=batch,
            instance=self.instance,
            asset_selection=[dg.AssetKey(["pixels", table]) for table in tables] or None,
            run_config={"ops": {name: {"config": config} for name, config in (ops or {}).items()}, "loggers": QUIET},
            tags=tags,
            raise_on_error=False,
        )

    def rows(self, table: str = "object_catalog") -> pl.DataFrame:
        return scan(self.lake, table).collect()

    def names(self, table: str = "object_catalog") -> list[str]:
        return sorted(path.removeprefix(f"{self.source}/") for path in self.rows(table)["path"])

    def keys(self) -> list[str]:
        return manifests(self.lake).keys()


QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing lands in the checkout, and no setting of the machine counts."""
    for name in list(os.environ):
        if name.startswith("PIXELS_") and name != "PIXELS_CORPUS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.fixture
def place(tmp_path: Path, kept_workers: None) -> Iterator[Place]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield Place(tmp_path, instance)


def materializations(result: dg.ExecuteInProcessResult) -> dict[str, dict[str, object]]:
    """Metadata values of each table that a run materialized."""
    return {
        event.asset_key.path[-1]: {name: value.value for name, value in event.materialization.metadata.items()}
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }


@pytest.fixture
def figures():
    return materializations


def evaluations(result: dg.ExecuteInProcessResult) -> dict[str, tuple[bool, dict[str, object]]]:
    return {
        found.check_name: (found.passed, {name: value.value for name, value in found.metadata.items()})
        for found in result.get_asset_check_evaluations()
    }


@pytest.fixture
def checked():
    return evaluations


def messages(result: dg.ExecuteInProcessResult) -> Sequence[str]:
    return [
        str(event.step_failure_data.user_failure_data.description)
        for event in result.all_events
        if event.is_step_failure and event.step_failure_data.user_failure_data
    ]


@pytest.fixture
def reasons():
    return messages
