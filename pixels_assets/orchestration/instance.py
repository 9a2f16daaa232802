"""The Dagster instance that commands and the Python API share with the UI."""

import fcntl
import os
import socket
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Any

import dagster as dg
import yaml
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from sqlalchemy import Engine, QueuePool, create_engine
from sqlalchemy.exc import DatabaseError

from pixels_assets.errors import InstanceError
from pixels_assets.settings import home

PROCESS_TAG = "pixels/process"
"""Host and process that a command's run lives in: when that is gone, so is the run."""

_ENGINES = 8
_one_at_a_time = threading.RLock()
_TOKEN = token_hex(4)
_GOING = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


@contextmanager
def shared_instance() -> Iterator[dg.DagsterInstance]:
    """Open the instance of `home()`, wherever the process works: its relative folders count from there.

    Threads wait for each other: two runs in one process would stop for ever, one with the lock of Dagster's log, the other with that of `logging`,
    which Dagster configures anew for each run.

    Raises
    ------
    InstanceError
        Its storage cannot be opened; or it failed in the block, where all that raises errors of a database is this storage.
    """
    os.environ.setdefault("DAGSTER_HOME", str(home()))
    try:
        with _one_at_a_time, ExitStack() as opened:
            opened.enter_context(_engines_kept())
            try:
                with _alone(home() / "var" / "dagster"):
                    instance = opened.enter_context(dg.DagsterInstance.from_ref(_ref(home())))
                    end_lost_runs(instance)
            except OSError as error:
                raise _storage_error(error.strerror or type(error).__name__) from error
            yield instance
    except DatabaseError as error:
        raise _storage_error(str(error.orig)) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time open the instance: two that make its tables at once would stumble over each other."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "opening.lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Connection(sqlite3.Connection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA synchronous=NORMAL").close()


@contextmanager
def _engines_kept() -> Iterator[None]:
    """Let Dagster's SQLite storages use an engine of SQLAlchemy more than once, its connections too, and read their migrations once.

    They make an engine for each event, with an empty cache of compiled statements and a new connection, and wait for the disk after each; and read
    all migrations again for the file of each run: together more than two thirds of what a run costs. With ``synchronous=NORMAL`` a power cut may
    take the last events, never the file; a process that is killed loses nothing.
    """
    kept: dict[str, Engine] = {}
    scripts: dict[str, ScriptDirectory] = {}
    read_scripts = ScriptDirectory.from_config

    def scripts_of(config: Config) -> ScriptDirectory:
        location = str(config.get_main_option("script_location"))
        if location not in scripts:
            scripts[location] = read_scripts(config)
        return scripts[location]

    def engine_of(url: str, **options: Any) -> Engine:
        if url not in kept:
            while len(kept) >= _ENGINES:
                Engine.dispose(kept.pop(next(iter(kept))))
            arguments = {**options.get("connect_args", {}), "factory": _Connection}
            kept[url] = create_engine(url, **options | {"poolclass": QueuePool, "connect_args": arguments})
            kept[url].dispose = lambda close=True: None  # type: ignore[method-assign]  # which they do after each event
        return kept[url]

    storages: tuple[Any, ...] = (sqlite_event_log, sqlite_run_storage)
    before = [storage.create_engine for storage in storages]
    try:
        ScriptDirectory.from_config = scripts_of  # type: ignore[method-assign]
        for storage in storages:
            storage.create_engine = engine_of
        yield
    finally:
        ScriptDirectory.from_config = read_scripts  # type: ignore[method-assign]
        for storage, made in zip(storages, before, strict=True):
            storage.create_engine = made
        for engine in kept.values():
            Engine.dispose(engine)


def _storage_error(reason: str) -> InstanceError:
    return InstanceError(f"Dagster's storage below {home()} cannot be used: {reason}; free space or grant write access there, then run again")


def process_tag() -> str:
    """Name of this process on this machine; the last part tells it from others that get the same number later, as in a container."""
    return f"{socket.gethostname()}:{os.getpid()}:{_TOKEN}"


def end_lost_runs(instance: dg.DagsterInstance) -> None:
    """Mark runs as failed whose process on this machine was killed; nothing else would ever do that."""
    for run in instance.get_runs(dg.RunsFilter(statuses=_GOING)):
        host, pid, token = [*run.tags.get(PROCESS_TAG, "").split(":"), "", ""][:3]
        is_ours = pid == str(os.getpid())
        if host == socket.gethostname() and (token != _TOKEN if is_ours else not _alive(int(pid))):
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
