"""The Spark engine, and reading for Spark users.

Holds the driver's side: how a session is configured, how shards become tasks, how Spark reads DICOM files and the lake. The only module that imports
pyspark. What runs on executors is `pixels_assets.engines.executor`; supervision is that of the local engine. Must not commit anything.
"""

import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from heapq import heappop, heappush
from pathlib import Path
from secrets import token_hex
from typing import Any, Self
from urllib.parse import urlsplit

import pyarrow as pa
from pyspark import Accumulator, InheritableThread, SparkContext
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import udf
from pyspark.sql.types import BinaryType

from pixels_assets.engines import executor
from pixels_assets.engines.local import Outcome, Progress
from pixels_assets.engines.shards import IndexSpec, Shard, discard_attempt, plan_shards
from pixels_assets.errors import PixelsError, UsageError, WorkerError
from pixels_assets.intake.listing import Listing
from pixels_assets.intake.objects import SourceFile, Status, file_address
from pixels_assets.lake import headers
from pixels_assets.lake.commit import open_table
from pixels_assets.lake.parts import remove_parts
from pixels_assets.lake.query import table_names
from pixels_assets.lake.schema import DICOM_METADATA, TABLES
from pixels_assets.settings import Settings

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_CANCEL_SECONDS = 10.0
_STALLED_SECONDS = 30.0
_MASTER_SECONDS = 10.0
_MASTERS = re.compile(r"local|yarn$|k8s://|spark://")
_LOOPBACK = re.compile(r"local\b|spark://(127\.|localhost\b|\[::1\])")
_GLOB = re.compile(r"([\\{}\[\]*?])")
_TELLING = re.compile(r"ModuleNotFoundError: [^\n]*|\[PYTHON_VERSION_MISMATCH\][^\n]*")
_RAISED = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Exit))\b(?=:|$)", re.MULTILINE)
_FAILURE_COLUMNS = (
    "path",
    "original_path",
    "length",
    "modificationTime",
    "depth",
    "file_type",
    "status",
    "error_code",
    "error_message",
    "content_hash",
)
_NO_PART_OF_OBJECTS = frozenset({"status", "error_code", "error_message", "batch"})


# -------------------------------------------------------------------------------------------------------------------------------------- session


def session_config(settings: Settings, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Write the configuration of a session for this engine.

    Parameters
    ----------
    settings : Settings
    more : mapping of str to str, optional
        Spark properties that win over all others.

    Returns
    -------
    dict of str to str
        Spark properties by name.
    """
    # Locally Spark gives a task that failed no second chance unless it is told to.
    master = settings.spark_master or f"local[{settings.worker_count},4]"
    config = {
        "spark.app.name": "pixels_assets",
        "spark.master": master,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={(Path(__file__).parent / 'log4j2.properties').as_uri()}",
        "spark.executorEnv.PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
    }
    if _LOOPBACK.match(master):
        config |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
    return config | dict(more or {})


@contextmanager
def starting(master: str) -> Iterator[None]:
    """Within the block a session with this master is made, by whatever means.

    Raises
    ------
    UsageError
        There is no Java.
    WorkerError
        Spark does not start.
    """
    require_java()
    require_master(master)
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # it logs the stack of what it raises anyway, as when Ctrl-C ends a call
    is_main = threading.current_thread() is threading.main_thread()
    before, children = signal.getsignal(signal.SIGINT), _children()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message="PySpark does not yet fully support pandas")
            yield
    except Exception as error:  # Spark and the bridge to its Java side have no base of their own
        msg = f"Spark does not start with {master}: {_reason(error)}; is that master running, and of the version of the pyspark installed here?"
        raise WorkerError(msg) from error
    except BaseException:
        if SparkContext._gateway is None:  # Java was about to start, and would wait for ever for whom it was started for
            for child in _children() - children:
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        raise
    finally:
        if is_main:  # Spark takes Ctrl-C for itself, and would leave Dagster without it
            signal.signal(signal.SIGINT, before)


def _children() -> set[int]:
    """Give the processes that this thread has started; none where the system does not say."""
    try:
        return set(map(int, Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()))
    except OSError:
        return set()


def require_java() -> None:
    """Look for the Java that Spark needs.

    Raises
    ------
    UsageError
        There is none.
    """
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    if shutil.which(java) is None:
        where = f"in JAVA_HOME={home}" if home else "on the PATH"
        msg = f"Spark needs Java 17 or later, and there is none {where}: apt-get install default-jre-headless, or use --engine local"
        raise UsageError(msg)


def require_master(master: str) -> None:
    """Look whether a master can be one, and whether Spark's own kind is there: Spark itself tries for minutes, and no setting bounds that.

    Nothing is asked when a session is running in this process, which then is the one that is used.

    Parameters
    ----------
    master : str
        URL; an empty one is this machine.

    Raises
    ------
    UsageError
        There are no such masters, or the URL has no host and port.
    WorkerError
        None of them is there.
    """
    if not master or SparkContext._active_spark_context is not None:
        return
    if not _MASTERS.match(master):
        msg = f"spark_master is {master!r}; use spark://host:7077, yarn, k8s://host:port or local[2]"
        raise UsageError(msg)
    if not master.startswith("spark://"):
        return
    reason = "no answer"
    for place in master.removeprefix("spark://").split(","):
        try:
            address = urlsplit(f"spark://{place}")
            host, port = address.hostname, address.port
        except ValueError:
            host = port = None
        if not host or not port:
            msg = f"spark_master is {master!r}; use spark://host:7077, several as spark://host:7077,other:7077"
            raise UsageError(msg)
        try:
            with socket.create_connection((host, port), _MASTER_SECONDS):
                return
        except TimeoutError:
            reason = f"no answer within {_MASTER_SECONDS:.0f} s"
        except OSError as error:
            reason = error.strerror or type(error).__name__
    msg = f"Spark's master {master} cannot be reached: {reason}; is it running, and is that its host and port?"
    raise WorkerError(msg)


# --------------------------------------------------------------------------------------------------------------------------------------- engine


class SparkEngine:
    """Runs shards as the tasks of one Spark job; their part files are written where they run, only their descriptions come back.

    A task that Spark runs again, or twice, does no harm: only the parts of those that came back count. The session is the caller's, and stays open.

    Parameters
    ----------
    session : pyspark.sql.SparkSession
    partitions : int
        Tasks of a job; 0 means one for each shard.
    """

    name = "spark"

    def __init__(self, session: SparkSession, partitions: int = 0) -> None:
        self.session = session
        self.partitions = partitions

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, shards: Iterable[Shard], spec: IndexSpec, progress: Progress | None = None) -> Outcome:
        """Index shards; every object in them becomes a row, whatever it does to a worker.

        Parameters
        ----------
        shards : iterable of Shard
        spec : IndexSpec
            The lake's folder is the same on all executors, and so are the sources.
        progress : callable, optional
            Called a few times a second.

        Returns
        -------
        Outcome

        Raises
        ------
        LakeError
            A worker could not write.
        WorkerError
            Spark gave up, or workers cannot be started.
        """
        groups = _groups(list(shards), self.partitions)
        outcome = Outcome()
        if not groups:
            return outcome
        job = _Job(self.session.sparkContext, groups, spec)
        try:
            for found in job.outcomes(progress):
                outcome.tally.add(found.tally)
                for table, parts in found.parts.items():
                    outcome.parts.setdefault(table, []).extend(parts)
        except BaseException:
            discard_attempt(spec)
            raise
        # What attempts left that were lost, or that came second.
        kept = {Path(part.path).name for parts in outcome.parts.values() for part in parts}
        for output in spec.tables:
            remove_parts(spec.lake, output, spec.batch, f"{spec.attempt}-", keep=kept)
        return outcome


class _Job:
    """One Spark job, run by a thread of its own so that this one can tell how far it is and be interrupted."""

    def __init__(self, context: SparkContext, groups: list[list[Shard]], spec: IndexSpec) -> None:
        self._context, self._groups, self._spec = context, groups, spec
        self._id = f"pixels-{spec.attempt}-{token_hex(4)}"
        self._objects: Accumulator[int] = context.accumulator(0)
        self._errors: Accumulator[list[PixelsError]] = context.accumulator([], executor.Errors())  # type: ignore[arg-type]
        self._found: list[Outcome] = []
        self._failure: Exception | None = None
        self._ended = threading.Event()
        self._since = time.monotonic()

    def outcomes(self, progress: Progress | None) -> list[Outcome]:
        InheritableThread(target=self._run, daemon=True).start()
        try:
            # Not `join`: a thread of which the waiting for was interrupted counts as ended (CPython's issue 45274).
            while not self._ended.wait(_POLL_SECONDS) and not self._errors.value:
                if progress is not None:
                    progress(self._objects.value)
                self._look_for_executors()
        finally:
            if not self._ended.is_set():
                with suppress(Exception):  # the Java side may be gone
                    self._context.cancelJobGroup(self._id)
                self._ended.wait(_CANCEL_SECONDS)
        if progress is not None:
            progress(self._objects.value)
        if self._errors.value:
            raise self._errors.value[0]
        if self._failure is not None:
            msg = f"Spark gave up: {_reason(self._failure)}; the executors' logs say more"
            raise WorkerError(msg) from self._failure
        return self._found

    def _run(self) -> None:
        spec, objects, errors = self._spec, self._objects, self._errors

        def report(indexed: int, error: PixelsError | None) -> None:
            objects.add(indexed)
            if error is not None:
                errors.add([error])

        def task(groups: Iterable[list[Shard]]) -> Iterator[Outcome]:
            return executor.index_shards((shard for group in groups for shard in group), spec, report)

        try:
            self._context.setJobGroup(self._id, f"index batch {spec.batch}", interruptOnCancel=True)
            self._found = self._context.parallelize(self._groups, len(self._groups)).mapPartitions(task).collect()
        except Exception as error:  # handed over to the thread that waits
            self._failure = error
        finally:
            self._ended.set()

    def _look_for_executors(self) -> None:
        """Say when nothing happens because no executor is there: Spark waits for ever, and only whispers it."""
        if time.monotonic() - self._since < _STALLED_SECONDS:
            return
        self._since = time.monotonic()
        tracker = self._context.statusTracker()
        jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(self._id)]
        stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
        if not any(stage.numActiveTasks or stage.numCompletedTasks for stage in stages if stage):
            message = "Spark has started none of %d tasks yet; has %s workers with free cores and memory?"
            logger.warning(message, len(self._groups), self._context.master)


def _groups(shards: list[Shard], partitions: int) -> list[list[Shard]]:
    """Deal shards out to tasks, heavy ones first, so that tasks take about the same time."""
    if not partitions:
        return [[shard] for shard in sorted(shards, key=lambda shard: -shard.size)]
    if 0 < len(shards) < partitions:
        files = [file for shard in shards for file in shard.files]
        shards = plan_shards(files, max_files=max(1, len(files) // partitions), max_bytes=max(1, sum(file.length for file in files) // partitions))
    groups: list[list[Shard]] = [[] for _ in range(partitions)] if shards else []
    lightest = [(0, 0, number) for number in range(len(groups))]
    for shard in sorted(shards, key=lambda shard: -shard.size):
        size, count, number = heappop(lightest)
        groups[number].append(shard)
        heappush(lightest, (size + shard.size, count + len(shard.files), number))
    return groups


def _reason(error: Exception) -> str:
    """Say in a line what Spark says in a hundred."""
    text = str(error.java_exception.getMessage()) if hasattr(error, "java_exception") and error.java_exception is not None else str(error)
    telling = _TELLING.search(text)
    if telling:
        return telling.group() + " on an executor: install pixels_assets there, for the Python that PYSPARK_PYTHON names"
    raised = _RAISED.findall(text)
    if raised:  # in a Python worker; its message may hold anything
        return f"a task raised {raised[-1]}"
    return (text.strip().splitlines() or [type(error).__name__])[0][:300]


# -------------------------------------------------------------------------------------------------------------------------------------- reading


def read_dicom(
    spark: SparkSession,
    *sources: str | os.PathLike[str],
    partitions: int = 0,
    pixels: bool = False,
    into: str | os.PathLike[str] | None = None,
    settings: Settings | None = None,
) -> tuple[DataFrame, DataFrame]:
    """Read DICOM files, those inside archives too, into two data frames: the objects, and what could not be read with the reasons.

    Each file is read once, now, by one Spark job; both frames then are Parquet files, which any number of actions may read again.

    Parameters
    ----------
    spark : pyspark.sql.SparkSession
    *sources : path
        Folders, of which all files below are read, or files; the same on all executors.
    partitions : int
        Tasks of the job; 0 leaves it to the size of the input.
    pixels : bool
        Add a column `pixel_data`. Its values are read from the sources when, and only if, an action asks for them.
    into : path, optional
        Folder for the Parquet files, the same on all executors; they stay. By default a temporary one, which goes when the driver ends: right where
        driver and executors are on one machine.
    settings : Settings, optional
        Limits and time limits; by default those of the environment.

    Returns
    -------
    objects : DataFrame
        A row for each DICOM object: `path` (its address), `original_path` (the file), `meta` (DICOM JSON), `header`, `content_hash`, `warnings`, the
        typed columns; and `pixel_data`, the value of its pixel data element as stored, NULL without one and above 1 GiB.
    failures : DataFrame
        A row for each other object: `path`, `status`, `error_code`, `error_message` and a few more. An archive that could be opened is in neither.

    Raises
    ------
    UsageError
        No source is given.
    SourceMissingError
        A source is not there.
    LakeError, WorkerError
        The environment failed.
    """
    settings = replace(settings or Settings.from_environment(), extract_to=None)
    if not sources:
        msg = "no source is given; name folders or files"
        raise UsageError(msg)
    files = [file for source in sources for file in _files(source)]
    folder = Path(into).absolute() if into is not None else _temporary_folder(spark)
    spec = IndexSpec(folder, "read", token_hex(8), frozenset({DICOM_METADATA.name}), settings)
    outcome = SparkEngine(spark, partitions).run(plan_shards(files), spec)
    rows = _parquet(spark, DICOM_METADATA.arrow, folder / DICOM_METADATA.name, [part.path for part in outcome.parts.get(DICOM_METADATA.name, [])])
    objects = rows.filter(rows.status == Status.INDEXED.value).select(*(name for name in rows.columns if name not in _NO_PART_OF_OBJECTS))
    if pixels:
        objects = objects.withColumn("pixel_data", udf(executor.PixelData(settings.limits), BinaryType(), useArrow=False)("path"))
    failures = rows.filter(~rows.status.isin(Status.INDEXED.value, Status.ARCHIVE.value)).select(*_FAILURE_COLUMNS)
    return objects, failures


def spark_table(spark: SparkSession, lake: str | os.PathLike[str], name: str) -> DataFrame:
    """Open a table of a lake as it is now, without Delta's Java library.

    Parameters
    ----------
    spark : pyspark.sql.SparkSession
    lake : path
    name : str
        Such as ``object_catalog``, ``headers``, or the table of an extractor.

    Returns
    -------
    DataFrame
        Over the files of the newest version. A version that comes later does not change it; open the table again to see that.

    Raises
    ------
    UsageError
        There is no such table.
    LakeError
        There is no lake, or it cannot be read.
    """
    folder = Path(lake).absolute()
    if name not in table_names(folder):
        msg = f"there is no table {name!r}; the tables are {', '.join(table_names(folder))}"
        raise UsageError(msg)
    if name == headers.NAME:
        registry = headers.load(folder)
        return _parquet(spark, headers.headers_dataset(folder).schema, folder / name, list(registry.files) if registry else [])
    delta = open_table(folder, name)
    paths = pa.table(delta.get_add_actions(flatten=True))["path"].to_pylist()
    schema = TABLES[name].arrow if name in TABLES else pa.schema(delta.schema().to_arrow())
    return _parquet(spark, schema, folder / name, paths)


def _files(source: str | os.PathLike[str]) -> Iterator[SourceFile]:
    if Path(source).is_file():
        path = Path(source).resolve()
        found = path.stat()
        yield SourceFile(file_address(path), found.st_size, found.st_mtime_ns, file_address(path.parent))
    else:
        yield from (file for file in Listing(source) if isinstance(file, SourceFile))


def _temporary_folder(spark: SparkSession) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pixels-spark-"))
    weakref.finalize(spark.sparkContext, shutil.rmtree, folder, ignore_errors=True)
    return folder


def _parquet(spark: SparkSession, columns: pa.Schema, folder: Path, paths: list[str]) -> DataFrame:
    """Parts of a table as a frame; columns that a part of an earlier release lacks are NULL."""
    schema = ", ".join(f"`{item.name}` {_sql_type(item.type)}" for item in columns)
    if not paths:
        return spark.createDataFrame([], schema)
    # All dates are in the Gregorian calendar; Spark cannot know that of files which others wrote.
    reader = spark.read.schema(schema).option("basePath", str(folder)).option("datetimeRebaseMode", "CORRECTED")
    return reader.parquet(*(_GLOB.sub(r"\\\1", f"{folder}/{path}") for path in paths))


def _sql_type(kind: Any) -> str:
    for is_kind, name in (
        (pa.types.is_string, "STRING"),
        (pa.types.is_binary, "BINARY"),
        (pa.types.is_boolean, "BOOLEAN"),
        (pa.types.is_int64, "BIGINT"),
        (pa.types.is_int32, "INT"),
        (pa.types.is_float64, "DOUBLE"),
        (pa.types.is_float32, "FLOAT"),
        (pa.types.is_date32, "DATE"),
        (pa.types.is_timestamp, "TIMESTAMP"),
    ):
        if is_kind(kind):
            return name
    if pa.types.is_list(kind):
        return f"ARRAY<{_sql_type(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"STRUCT<{', '.join(f'`{field.name}`: {_sql_type(field.type)}' for field in kind)}>"
    msg = f"no rule for columns of type {kind}"
    raise TypeError(msg)
