"""The code location: it loads without a warning, and takes settings and resources."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import dagster as dg
import pytest

import pixels_assets
from pixels_assets.definitions import build_definitions
from pixels_assets.errors import UsageError
from pixels_assets.orchestration.resources import LakeResource, default_resources
from pixels_assets.settings import Limits, Settings

ROOT = Path(pixels_assets.__file__).parents[1]

LOAD = """
import json, os, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from pixels_assets.definitions import defs
    import dagster as dg
    dg.Definitions.validate_loadable(defs)
print(json.dumps([f"{w.filename}: {w.message}" for w in caught if "pixels_assets" in w.filename or "dagster" in w.category.__module__]))
"""


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    for name in ("PIXELS_LAKE", "PIXELS_SOURCES"):
        monkeypatch.delenv(name, raising=False)


def test_the_code_location_loads_without_warnings_and_writes_nothing(tmp_path) -> None:
    done = subprocess.run([sys.executable, "-c", LOAD], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    assert list(tmp_path.iterdir()) == []


def test_everything_of_the_code_location_has_a_name_and_a_description() -> None:
    definitions = build_definitions()
    dg.Definitions.validate_loadable(definitions)
    assert {sensor.name for sensor in definitions.sensors or []} == {"arrivals", "failed_batches", "catalog_changed"}
    assert {"ingest_batch", "discover", "maintain", "update_rollups"} <= {job.name for job in definitions.resolve_all_job_defs()}
    assert definitions.resources is not None
    assert definitions.resources.keys() == {"lake", "engine", "sources"}
    assert all(sensor.description for sensor in definitions.sensors or [])


def test_settings_override_the_environment(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PIXELS_LAKE", str(tmp_path / "environment"))
    lake = build_definitions().resources["lake"]
    assert lake.path == tmp_path / "environment"
    lake = build_definitions({"lake": tmp_path / "given"}).resources["lake"]
    assert lake.path == tmp_path / "given"


def test_a_resource_takes_the_place_of_the_default_one(tmp_path) -> None:
    mine = LakeResource(root=str(tmp_path / "mine"))
    resources = build_definitions({"lake": mine}).resources
    assert resources["lake"] is mine
    assert resources.keys() == {"lake", "engine", "sources"}


@pytest.mark.parametrize("override", [{"lakes": "/x"}, {"lakes": LakeResource(root="/x")}, {"root": "/x", "workers": 1}])
def test_an_unknown_override_is_refused_with_the_known_names(override) -> None:
    with pytest.raises(UsageError, match="are neither resources nor settings; the resources are lake, engine, sources, the settings lake,"):
        build_definitions(override)


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(UsageError, match="workers is -1; it must be at least 0"):
        build_definitions({"workers": -1})


def test_all_settings_reach_the_run_through_the_resources(tmp_path) -> None:
    given = Settings.from_environment(
        lake=tmp_path,
        workers=3,
        object_seconds=1.5,
        worker_bytes=234_567_890,
        thumbnail_size=99,
        preview=False,
        extract_to=tmp_path / "to",
        failure_share=0.25,
        batch_files=7,
        batch_bytes=8,
        quiet_seconds=9.0,
        accept_empty=True,
        limits=Limits(max_depth=2, max_ratio=3.5),
    )
    resources = default_resources(given)
    engine, sources = resources["engine"].settings(), resources["sources"].settings()
    for name in ("workers", "object_seconds", "worker_bytes", "thumbnail_size", "preview", "extract_to", "failure_share", "limits"):
        assert getattr(engine, name) == getattr(given, name), name
    for name in ("batch_files", "batch_bytes", "quiet_seconds", "accept_empty"):
        assert getattr(sources, name) == getattr(given, name), name
    assert resources["sources"].exclude == [str(tmp_path / "to")]


def test_a_lake_resource_hands_out_tables_for_others(tmp_path) -> None:
    lake = LakeResource(root=str(tmp_path))
    lake.prepared()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The `dict` method is deprecated", DeprecationWarning)  # in dagster-deltalake
        assert lake.table("raw_files").load().version() == 0
    with pytest.raises(UsageError, match="there is no table 'x'; the tables are raw_files"):
        lake.table("x")
