"""Settings from the environment and from arguments."""

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from pixels_assets.errors import UsageError
from pixels_assets.settings import Limits, Settings, home


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("PIXELS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))


def test_without_variables_every_setting_has_its_default(tmp_path):
    assert Settings.from_environment() == Settings(lake=tmp_path / "var" / "lake")


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("PIXELS_LAKE", "/data/my lake", "lake", Path("/data/my lake")),
        ("PIXELS_SOURCES", f"/data/a{os.pathsep}{os.pathsep}/data/b c", "sources", ("/data/a", "/data/b c")),
        ("PIXELS_WORKERS", "3", "workers", 3),
        ("PIXELS_QUIET_SECONDS", "0.5", "quiet_seconds", 0.5),
        ("PIXELS_EXTRACT_TO", "/data/out", "extract_to", Path("/data/out")),
        ("PIXELS_PREVIEW", "No", "preview", False),
        ("PIXELS_PREVIEW", "1", "preview", True),
        ("PIXELS_LOG_LEVEL", "debug", "log_level", "debug"),
        ("PIXELS_WORKERS", "", "workers", 0),
    ],
)
def test_a_variable_sets_a_setting(monkeypatch, variable, text, name, value):
    monkeypatch.setenv(variable, text)
    assert getattr(Settings.from_environment(), name) == value


@pytest.mark.parametrize("item", fields(Limits), ids=lambda item: item.name)
def test_every_limit_has_a_variable(monkeypatch, item):
    monkeypatch.setenv(f"PIXELS_LIMIT_{item.name.upper()}", "123456789")
    limits = Settings.from_environment().limits
    assert getattr(limits, item.name) == 123456789
    assert limits != Limits()


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PIXELS_WORKERS", "many"),
        ("PIXELS_WORKERS", "1.5"),
        ("PIXELS_PREVIEW", "perhaps"),
        ("PIXELS_LIMIT_MAX_RATIO", "2:1"),
    ],
)
def test_what_does_not_parse_is_named(monkeypatch, variable, text):
    monkeypatch.setenv(variable, text)
    with pytest.raises(UsageError, match=rf"{variable}='{text}'"):
        Settings.from_environment()


@pytest.mark.parametrize(
    "wrong",
    [
        *(
            {"workers": -1},
            {"batch_files": 0},
            {"thumbnail_size": 7},
            {"object_seconds": 0.0},
            {"quiet_seconds": float("nan")},
            {"log_level": "loud"},
        ),
        *({"quiet_seconds": float("nan")}, {"quiet_seconds": float("inf")}, {"worker_bytes": 10**20}),  # of another type:
        *({"workers": "2"}, {"workers": 2.0}, {"workers": True}, {"preview": "no"}, {"log_level": 10}, {"lake": 5}, {"sources": [5]}, {"limits": {}}),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_named(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=name):
        Settings.from_environment(**wrong)


def test_a_limit_that_is_out_of_range_is_named(monkeypatch):
    monkeypatch.setenv("PIXELS_LIMIT_MAX_DEPTH", "0")
    with pytest.raises(UsageError, match="max_depth is 0; it must be at least 1"):
        Settings.from_environment()


def test_arguments_win_over_variables_and_none_leaves_them(monkeypatch):
    monkeypatch.setenv("PIXELS_WORKERS", "3")
    monkeypatch.setenv("PIXELS_LAKE", "/data/lake")
    settings = Settings.from_environment(workers=5, lake=None)
    assert (settings.workers, settings.lake) == (5, Path("/data/lake"))


def test_relative_folders_count_from_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = Settings.from_environment(lake="here", extract_to="there")
    assert (settings.lake, settings.extract_to) == (tmp_path / "here", tmp_path / "there")


def test_no_workers_means_one_for_each_core():
    assert Settings().worker_count >= 1
    assert Settings(workers=7).worker_count == 7


def test_settings_do_not_change():
    with pytest.raises(FrozenInstanceError):
        Settings().workers = 2


def test_every_setting_says_what_it_means():
    for item in [*fields(Settings), *fields(Limits)]:
        assert item.metadata["meaning"].endswith("."), item.name


def test_home_is_the_checkout_without_a_variable_and_the_working_folder_outside_of_one(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME")
    checkout = Path(__file__).parents[1]
    assert home() == checkout
    elsewhere = tmp_path / "installed"
    (elsewhere / "pixels_assets").mkdir(parents=True)
    for module in ("__init__", "errors", "settings"):
        (elsewhere / "pixels_assets" / f"{module}.py").write_bytes((checkout / "pixels_assets" / f"{module}.py").read_bytes())
    code = "from pixels_assets.settings import home; print(home())"
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(elsewhere)}, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == str(tmp_path)
