"""The Dagster instance that commands and the Python API share with the UI."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef

from pixels_assets.settings import home

PROCESS_TAG = "pixels/process"
"""Host and process that a command's run lives in: when that is gone, so is the run."""


@contextmanager
def shared_instance() -> Iterator[dg.DagsterInstance]:
    """Open the instance of `home()`, wherever the process works: its relative folders count from there."""
    os.environ.setdefault("DAGSTER_HOME", str(home()))
    with dg.DagsterInstance.from_ref(_ref(home())) as instance:
        end_lost_runs(instance)
        yield instance


def process_tag() -> str:
    """Name of this process on this machine."""
    return f"{socket.gethostname()}:{os.getpid()}"


def end_lost_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs as failed whose process on this machine was killed; nothing else would ever do that."""
    going = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING])
    for run in instance.get_runs(going):
        host, _, pid = run.tags.get(PROCESS_TAG, "").rpartition(":")
        if host == socket.gethostname() and pid != str(os.getpid()) and not _alive(int(pid)):
            instance.report_run_failed(run, "The process of this run was killed. Nothing is lost: run `pixels ingest` again.")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# A command's output belongs to its terminal. Dagster's capture would start two processes a step, and print their stack traces on Ctrl-C.
_NO_CAPTURE = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}


def _ref(folder: Path) -> InstanceRef:
    file = folder / "dagster.yaml"
    if not file.exists():
        base = folder / "var" / "dagster"
        base.mkdir(parents=True, exist_ok=True)
        (base / "dagster.yaml").write_text("telemetry: {enabled: false}\nnux: {enabled: false}\n")
        return InstanceRef.from_dir(str(base), overrides={"compute_logs": _NO_CAPTURE})
    written: Mapping[str, Any] = yaml.safe_load(file.read_text()) or {}
    return InstanceRef.from_dir(str(folder), overrides=_anchored(written, folder))


def _anchored(written: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Make relative folders in the storage sections of `dagster.yaml` absolute; Dagster would take them from the working folder."""
    anchored: dict[str, Any] = {"compute_logs": _NO_CAPTURE}
    sqlite = (written.get("storage") or {}).get("sqlite")
    if sqlite and isinstance(sqlite.get("base_dir"), str):
        anchored["storage"] = {"sqlite": sqlite | {"base_dir": str(folder / sqlite["base_dir"])}}
    artifacts = written.get("local_artifact_storage")
    if artifacts and isinstance((artifacts.get("config") or {}).get("base_dir"), str):
        anchored["local_artifact_storage"] = artifacts | {"config": artifacts["config"] | {"base_dir": str(folder / artifacts["config"]["base_dir"])}}
    return anchored
