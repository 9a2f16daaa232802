"""Ingesting from a command or from Python: the same jobs on the same instance as the UI's.

Stands on the definitions; must not print or parse arguments.
"""

import ctypes
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache

import dagster as dg
import pyarrow as pa

from pixels_assets.definitions import build_definitions
from pixels_assets.engines.extractors import load_extractors
from pixels_assets.engines.processes import keep_workers, start_workers
from pixels_assets.engines.run import absent_source
from pixels_assets.errors import PixelsError, UsageError
from pixels_assets.imports import python_path
from pixels_assets.intake.listing import Listing
from pixels_assets.intake.objects import Status
from pixels_assets.lake.catalog import to_read
from pixels_assets.lake.changes import Discovery, manifests
from pixels_assets.lake.commit import is_committed, table_lock
from pixels_assets.lake.query import batch_rows, finished_batches, pending_batches, quarantined_batches, require_lake
from pixels_assets.lake.schema import OBJECT_CATALOG, QUARANTINE
from pixels_assets.orchestration.assets.headers import HEADERS_KEY
from pixels_assets.orchestration.instance import PROCESS_TAG, process_tag, shared_instance
from pixels_assets.orchestration.jobs import HIERARCHY_KEYS, are_headers_behind, is_behind, is_overwrite, look
from pixels_assets.orchestration.metadata import asset_key
from pixels_assets.orchestration.partitions import register
from pixels_assets.orchestration.resources import ENGINE_TAG, LAKE_TAG, LakeResource, SourcesResource, default_resources, engine_config
from pixels_assets.settings import Settings

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
_FEW_FILES = 16  # one process reads them before a second one is ready
_FAILURES_IN_A_ROW = 3
_MANY_BATCHES = 20
_INTERRUPTED = 130
_MANY_OBJECTS = 25_000  # loading everything once more takes as long as `headers` of 8,000
_APART = f"""
import json, pickle, sys
from pixels_assets.cli import long_import, set_up_logging
try:
    settings, part = pickle.load(sys.stdin.buffer)
    set_up_logging(settings)
    with long_import():
        from pixels_assets.runs import update_here
    print(json.dumps(update_here(settings, part)))
except KeyboardInterrupt:
    sys.exit({_INTERRUPTED})
"""
# It gives back at once what it let go of, and its libraries share one pool: a tenth less memory for a million instances, and no more time.
_FRUGAL = {"_RJEM_MALLOC_CONF": "dirty_decay_ms:50,muzzy_decay_ms:0", "ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
_INTERRUPTS = (dg.DagsterExecutionInterruptedError.__name__, KeyboardInterrupt.__name__)
_INGEST, _ROLLUPS = "ingest_batch", "update_rollups"
_PARTS: dict[str, tuple[dg.AssetKey, ...]] = {
    "all": (),
    "headers": (HEADERS_KEY,),
    "all but headers": HIERARCHY_KEYS,
}
"""What the update consists of; two of its assets take most of the time, and neither needs the other."""
_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


@dataclass(slots=True)
class Ingested:
    """What one call of `ingest` or `retry` did.

    Parameters
    ----------
    discovery : Discovery
        What the look at the sources found; empty for a retry.
    batches : list of str
        Batches that ran to the end, in order.
    failed : dict of str to str
        Why a batch did not, by batch. Their files are taken again by the next call.
    files, objects : int
        Files of the batches that ran, and rows of the catalog that they came to.
    seconds : float
        Wall time, listing included.
    """

    discovery: Discovery = field(default_factory=Discovery)
    batches: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    files: int = 0
    objects: int = 0
    seconds: float = 0.0


def ingest(settings: Settings, sources: Sequence[str | os.PathLike[str]], *, mode: str = "append", say: Say = logger.info) -> Ingested:
    """List sources, and run every batch that has not run to the end: new ones and those of an interrupted earlier call.

    Parameters
    ----------
    settings : Settings
    sources : sequence of path
        Folders, at least one.
    mode : str
        ``append``: only what changed. ``overwrite``: everything again, all other files leave the catalog.
    say : callable
        Told how it goes, a line at a time.

    Raises
    ------
    SourceMissingError, UsageError
        Before anything was written.
    PixelsError
        The environment failed; what was finished stays, and the next call goes on.
    """
    overwrite = is_overwrite(mode)
    if not sources:
        msg = "no source folder is given"
        raise UsageError(msg)
    folders = [os.fspath(source) for source in sources]
    asked = {Listing(folder).source for folder in folders}
    started = time.monotonic()
    _require(settings)
    with shared_instance() as instance, keep_workers():
        resources = default_resources(settings)
        lake, watched = resources["lake"], resources["sources"]
        assert isinstance(lake, LakeResource)
        assert isinstance(watched, SourcesResource)
        found = look(instance, lake, watched, folders, overwrite=overwrite, patient=True)
        ran = Ingested(found)
        _say_found(found, say)
        _run_pending(settings, instance, ran, say, asked)
        _update_rollups(settings, instance, say, batches=len(ran.batches), objects=ran.objects)
    ran.seconds = time.monotonic() - started
    return ran


def retry(settings: Settings, statuses: Sequence[str], *, say: Say = logger.info) -> Ingested:
    """Give objects in quarantine a new attempt: the files that hold them are read again, in the batches that they belong to.

    Parameters
    ----------
    settings : Settings
    statuses : sequence of str
        Only objects with one of these; all when empty.
    say : callable
        Told how it goes, a line at a time.

    Raises
    ------
    UsageError
        There is no such status, or no lake.
    """
    started, ran = time.monotonic(), Ingested()
    batches = quarantined_batches(settings.lake, statuses)
    _require(settings)
    with shared_instance() as instance, keep_workers():
        register(instance, list(batches))
        job = _job(settings, _INGEST)
        for number, (batch, objects) in enumerate(batches.items(), start=1):
            say(f"batch {batch} ({number} of {len(batches)}): {objects} objects in quarantine")
            _run(settings, instance, job, batch, ran, retried=list(statuses) or [status.value for status in Status])
        if batches:
            _update_rollups(settings, instance, say, batches=len(ran.batches), objects=ran.objects)
    ran.seconds = time.monotonic() - started
    return ran


def extract(settings: Settings, names: Sequence[str], *, say: Say = logger.info) -> Ingested:
    """Make the tables of extractors for all batches that have run to the end: their objects are read again, for these tables only.

    Parameters
    ----------
    settings : Settings
        Its extractors are replaced by those named.
    names : sequence of str
        As in the setting `extractors`.
    say : callable
        Told how it goes, a line at a time.

    Raises
    ------
    UsageError
        There is no such extractor, or no lake.
    """
    started, ran = time.monotonic(), Ingested()
    require_lake(settings.lake)
    chosen = replace(settings, extractors=",".join(names))
    keys = [asset_key(extractor.table) for extractor in load_extractors(chosen)]
    pending = set(pending_batches(settings.lake))
    batches = [batch for batch in manifests(settings.lake).keys() if batch not in pending]  # noqa: SIM118 - no mapping
    _require(chosen)
    with shared_instance() as instance, keep_workers():
        register(instance, batches)
        job = _job(chosen, _INGEST)
        for number, batch in enumerate(batches, start=1):
            say(f"batch {batch} ({number} of {len(batches)}): {', '.join(names)}")
            _run(chosen, instance, job, batch, ran, only=keys)
    ran.seconds = time.monotonic() - started
    return ran


def rebuild(settings: Settings, batches: Sequence[str] = (), *, say: Say = logger.info) -> dict[str, int]:
    """Make metadata, typed columns and what follows from them again, from the headers that the lake keeps; sources may be gone.

    Parameters
    ----------
    settings : Settings
    batches : sequence of str
        Keys; all that have run to the end when empty.
    say : callable
        Told how it goes, a line at a time.

    Returns
    -------
    dict of str to int
        Objects ``rebuilt``, ``without_header``, with ``unreadable_header`` and ``not_indexed``.

    Raises
    ------
    UsageError
        There is no such batch, or no lake.
    PixelsError
        The environment failed; batches that were finished stay so.
    """
    chosen = finished_batches(settings.lake, batches)
    say(f"{len(chosen)} batches to rebuild from their headers")
    with shared_instance() as instance:
        resources = {"lake": {"config": {"root": str(settings.lake)}}, "engine": {"config": engine_config(settings)}}
        config: dict[str, object] = {"resources": resources, "ops": {"rebuild_metadata": {"config": {"batches": chosen}}}, "loggers": _QUIET}
        result = _execute(settings, instance, _job(settings, "rebuild"), config)
        if not result.success:
            raise PixelsError(_reason(result))
        metadata = next(event.step_output_data.metadata for event in result.all_node_events if event.is_successful_output)
        figures = {name: int(str(value.value)) for name, value in metadata.items()}
        _update_rollups(settings, instance, say, objects=figures["rebuilt"])
        return figures


def _require(settings: Settings) -> None:
    """Raise before anything is written when the engine or an extractor needs what is not here."""
    if any(extractor.name == "patches" for extractor in load_extractors(settings)):
        from pixels_assets.engines.patching import rules_and_folder

        rules_and_folder(settings)
    if settings.engine == "spark":
        from pixels_assets.engines.spark import require_java, require_master

        require_java()
        require_master(settings.spark_master)


def _run_pending(settings: Settings, instance: dg.DagsterInstance, ran: Ingested, say: Say, sources: Collection[str]) -> None:
    """Run all batches that have not run to the end, but those that wait for a folder which is not there and is none of these sources."""
    pending = pending_batches(settings.lake)
    if not pending:
        return
    if settings.engine == "local":
        files = ran.discovery.listed - ran.discovery.unchanged
        start_workers(min(settings.worker_count, files) if files > _FEW_FILES else 1, settings.worker_bytes)
    register(instance, pending)
    job, in_a_row = _job(settings, _INGEST), 0
    for number, batch in enumerate(pending, start=1):
        absent = absent_source(to_read(manifests(settings.lake).load(batch)))
        if absent is not None and absent not in sources:
            say(f"batch {batch} ({number} of {len(pending)}) waits for its source folder {absent}, which is not there")
            continue
        with table_lock(settings.lake, f"run-{batch}", on_wait=lambda: say("another process runs the next batch; waiting for it")):
            if is_committed(settings.lake, QUARANTINE, batch):
                continue
            started, before = time.monotonic(), ran.objects
            if _run(settings, instance, job, batch, ran):
                in_a_row = 0
                say(f"batch {batch} ({number} of {len(pending)}): {ran.objects - before} objects in {time.monotonic() - started:.1f} s")
            else:
                in_a_row += 1
        _give_back_memory()
        if in_a_row == _FAILURES_IN_A_ROW:
            msg = f"{in_a_row} batches failed one after the other, the last because: {ran.failed[batch]}"
            raise PixelsError(msg)


def _give_back_memory() -> None:
    """Give back to the system what a batch took: hundreds of them leave holes that nothing fits into, and the process grows with each."""
    pa.default_memory_pool().release_unused()
    with suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _update_rollups(settings: Settings, instance: dg.DagsterInstance, say: Say, *, batches: int = 0, objects: int = 0) -> None:
    """Let the hierarchy follow, once for all batches, also when an earlier call did not come to it.

    After many objects `headers` follows beside it, in a process of its own. After many batches the rest has one, too: what they have left in the
    memory of this one, and what the update takes, do not come together then. What the system lets us have no process for is done here.

    Raises
    ------
    PixelsError
        It failed; the next call makes up for it.
    """
    if not is_behind(settings):
        return
    started = time.monotonic()
    beside = objects >= _MANY_OBJECTS and settings.worker_count > 1 and are_headers_behind(settings)
    parts = ["all but headers", "headers"] if beside else ["all"]
    with ExitStack() as stack:
        apart = {part: stack.enter_context(_updater(settings, part)) for part in (parts if batches >= _MANY_BATCHES else parts[1:])}
        here = [_carry_out_update(settings, instance, part) for part in parts if apart.get(part) is None]
        reasons = {reason for reason in [*here, *(_outcome(process) for process in apart.values() if process is not None)] if reason is not None}
    if reasons:
        msg = f"patients, studies, series, instances and headers are not up to date: {'; '.join(sorted(reasons))}; run the same command again"
        raise PixelsError(msg)
    say(f"patients, studies, series, instances and headers brought up to date in {time.monotonic() - started:.1f} s")


def _carry_out_update(settings: Settings, instance: dg.DagsterInstance, part: str) -> str | None:
    """Run the job, or a part of it; give the reason when it failed."""
    config: dict[str, object] = {"resources": {"lake": {"config": {"root": str(settings.lake)}}}, "loggers": _QUIET}
    result = _execute(settings, instance, _job(settings, _ROLLUPS), config, only=_PARTS[part])
    return None if result.success else _reason(result)


@contextmanager
def _updater(settings: Settings, part: str) -> Iterator[subprocess.Popen[bytes] | None]:
    """Start a process that runs a part of the update; None when the system refuses. It ends with the block."""
    program, environment = [sys.executable, "-P", "-c", _APART], os.environ | {"PYTHONPATH": python_path(), **_FRUGAL}
    try:
        process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)  # noqa: S603 - our own program
    except OSError as error:
        logger.info("no further process can be started (%s): the hierarchy is brought up to date in this one", error.strerror)
        yield None
        return
    with process:
        try:
            assert process.stdin is not None
            with suppress(BrokenPipeError), process.stdin as told:  # how it ended says why
                told.write(pickle.dumps((settings, part)))
            yield process
        except BaseException:
            process.terminate()  # what it has not committed, the next call does again
            raise


def _outcome(process: subprocess.Popen[bytes]) -> str | None:
    """Wait for a process of `_updater`; give the reason when it failed."""
    assert process.stdout is not None
    said = process.stdout.read()
    code = process.wait()
    if code == _INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        return f"the process that does it ended with code {code}"
    reason: str | None = json.loads(said.splitlines()[-1])
    return reason


def update_here(settings: Settings, part: str) -> str | None:
    """Let the hierarchy or a part of it follow, in a process that does nothing else; give the reason when it failed."""
    try:
        with shared_instance() as instance:
            return _carry_out_update(settings, instance, part)
    except PixelsError as error:
        return str(error)


def prepare(settings: Settings) -> None:
    """Make what an ingest needs before it begins, so that the first one of a process that lives on is as quick as the others."""
    for name in (_INGEST, _ROLLUPS):
        _job(settings, name)


@lru_cache(maxsize=8)
def _job(settings: Settings, name: str) -> dg.JobDefinition:
    return _definitions(settings).resolve_job_def(name)


@lru_cache(maxsize=2)
def _definitions(settings: Settings) -> dg.Definitions:
    return build_definitions({item.name: getattr(settings, item.name) for item in fields(Settings)})


def _execute(
    settings: Settings,
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    run_config: dict[str, object],
    batch: str | None = None,
    only: Sequence[dg.AssetKey] = (),
) -> dg.ExecuteInProcessResult:
    """Run a job in this process; an interrupted step is a KeyboardInterrupt."""
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        result = job.execute_in_process(
            partition_key=batch,
            instance=instance,
            asset_selection=list(only) or None,
            run_config=run_config,
            tags={PROCESS_TAG: process_tag(), LAKE_TAG: str(settings.lake), ENGINE_TAG: settings.engine},
            raise_on_error=False,
        )
    except dg.DagsterExecutionInterruptedError as interrupt:
        raise KeyboardInterrupt from interrupt
    finally:
        # Dagster would let it do what Ctrl-C does for as long as the process lives, which may not be ours.
        if terminated is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)
    if any(_interrupted(event) for event in result.all_events):
        raise KeyboardInterrupt
    return result


def _run(
    settings: Settings,
    instance: dg.DagsterInstance,
    job: dg.JobDefinition,
    batch: str,
    ran: Ingested,
    retried: Sequence[str] = (),
    only: Sequence[dg.AssetKey] = (),
) -> bool:
    """Run the lineage of one batch, or only some of its assets, in this process; True when it came to the end."""
    result = _execute(settings, instance, job, _run_config(settings, retried), batch, only)
    if result.success:
        ran.batches.append(batch)
        ran.files += len(manifests(settings.lake).load(batch))
        ran.objects += batch_rows(settings.lake, OBJECT_CATALOG, batch)
        return True
    ran.failed[batch] = _reason(result)
    logger.error("batch %s failed: %s", batch, ran.failed[batch])
    return False


def _run_config(settings: Settings, retried: Sequence[str]) -> dict[str, object]:
    """Everything that the run needs to know, so that it can be read and repeated in the UI."""
    return {
        "resources": {
            "lake": {"config": {"root": str(settings.lake)}},
            "engine": {"config": engine_config(settings)},
        },
        "ops": {
            "index_objects": {"config": {"retry": list(retried)}},
            "pixels__quarantine": {"config": {"retry": list(retried)}},
        },
        "loggers": _QUIET,
    }


def _interrupted(event: dg.DagsterEvent) -> bool:
    """Whether a step or a run ended because of Ctrl-C, whatever was raised in its course."""
    if event.is_step_failure:
        error = event.step_failure_data.error
    elif event.is_job_event and event.is_failure:
        error = event.job_failure_data.error
    else:
        return False
    while error is not None:
        if error.cls_name in _INTERRUPTS:
            return True
        error = error.cause
    return False


def _reason(result: dg.ExecuteInProcessResult) -> str:
    """Explain a failed run in a sentence: our own errors' by itself, of others the type and where to look."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data is not None and data.user_failure_data.description:
                return str(data.user_failure_data.description)
            if data.error is not None:
                return f"{(data.error.cause or data.error).cls_name} in step {event.step_key}; run {result.run_id} in the UI has the whole story"
        if event.event_type_value == "ASSET_CHECK_EVALUATION" and not event.asset_check_evaluation_data.passed:
            check = event.asset_check_evaluation_data
            if check.blocking and check.severity == dg.AssetCheckSeverity.ERROR:
                return f"the check {check.check_name} did not pass; run {result.run_id} in the UI has the figures"
    return f"run {result.run_id} in the UI has the whole story"


def _say_found(found: Discovery, say: Say) -> None:
    changes = ", ".join(f"{count} {change.value}" for change, count in found.changes.items() if count) or "nothing new"
    others = "".join(f", {count} {kind} skipped" for kind, count in sorted(found.skipped.items()))
    waiting = f", {found.waiting} waiting" if found.waiting else ""
    say(f"{found.listed} files listed: {changes}, {found.unchanged} unchanged{waiting}{others}")
    for source, count in found.refused.items():
        say(f"source {source!r} was left alone: it is empty, though {count} files of it are known; is its disk mounted? (PIXELS_ACCEPT_EMPTY)")
