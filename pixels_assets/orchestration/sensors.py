"""Sensors: arrivals in the sources become runs, and failed batches get another chance.

The cursor is only a place to go on from: what is known is in the lake, so a lost cursor costs a listing and neither loses nor doubles a file.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice

import dagster as dg

from pixels_assets.errors import PixelsError
from pixels_assets.lake.annotations import links_are_behind
from pixels_assets.lake.changes import Discovery, Position, manifests
from pixels_assets.lake.query import exists, pending_batches
from pixels_assets.lake.rollups import are_behind, catalog_state
from pixels_assets.orchestration.jobs import ingest_batch, is_behind, look, update_rollups
from pixels_assets.orchestration.partitions import register
from pixels_assets.orchestration.resources import LAKE_TAG, LakeResource, SourcesResource
from pixels_assets.settings import Settings

REQUESTS_PER_TICK = 20
RUNS_PER_BATCH = 3
_VERSION = 1
_PARTITION_TAG = "dagster/partition"
_PER_QUERY = 100
_GOING = [
    status for status in dg.DagsterRunStatus if status not in {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
]


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the arrivals sensor stands.

    Parameters
    ----------
    position : Position or None
        Where the listing stopped; None: at the beginning.
    """

    position: Position | None = None

    @classmethod
    def parse(cls, text: str | None) -> "Cursor":
        """Read a cursor; one of another version, or none, means to start from the beginning."""
        try:
            values = json.loads(text or "{}")
            if values.get("v") != _VERSION or not values.get("position"):
                return cls()
            source, after, moment = (values["position"][name] for name in ("source", "after", "moment"))
            return cls(Position(int(source), None if after is None else str(after), int(moment)))
        except (ValueError, TypeError, AttributeError, KeyError):
            return cls()

    def __str__(self) -> str:
        return json.dumps({"v": _VERSION, "position": asdict(self.position) if self.position else None})


def run_request(lake: LakeResource, batch: str, *, attempt: int = 1) -> dg.RunRequest:
    """Ask for a run of one batch. Its key holds the manifest's digest: a batch of another lake with the same name is another run."""
    key = f"{batch}:{manifests(lake.path).digest(batch)}" + (f":{attempt}" if attempt > 1 else "")
    return dg.RunRequest(run_key=key, partition_key=batch, tags={LAKE_TAG: str(lake.path)})


def sensors(settings: Settings) -> list[dg.SensorDefinition]:
    """Make the sensors. Those that look at sources run by themselves when there are any, the one that follows the catalog always.

    Parameters
    ----------
    settings : Settings
        Whether there are sources, how often to look at them, and how `headers` are written. The lake is that of the resource.
    """
    status, seconds = dg.DefaultSensorStatus.RUNNING if settings.sources else dg.DefaultSensorStatus.STOPPED, settings.watch_seconds

    @dg.sensor(
        name="arrivals",
        job=ingest_batch,
        minimum_interval_seconds=seconds,
        default_status=status,
        description="What is new, changed, moved or removed in the watched folders becomes batches; every batch that has had no run gets one.",
    )
    def arrivals(context: dg.SensorEvaluationContext, lake: LakeResource, sources: SourcesResource) -> dg.SensorResult | dg.SkipReason:
        if not sources.folders:
            return dg.SkipReason("no source folder is set: set PIXELS_SOURCES, or `folders` of the resource `sources`")
        try:
            found = look(
                context.instance, lake, sources, sources.folders, position=Cursor.parse(context.cursor).position, seconds=sources.tick_seconds
            )
            runs = _runs(context.instance, lake, pending_batches(lake.path))
        except PixelsError as error:
            return dg.SkipReason(str(error))
        fresh = list(islice((batch for batch, known in runs if not known), REQUESTS_PER_TICK))
        register(context.instance, fresh)  # one that was sealed by a process that was killed then is not yet a partition
        requests = [run_request(lake, batch) for batch in fresh]
        skipped = None if requests else _nothing_to_run(found)
        return dg.SensorResult(run_requests=requests, skip_reason=skipped, cursor=str(Cursor(found.position)))

    @dg.sensor(
        name="failed_batches",
        job=ingest_batch,
        minimum_interval_seconds=2 * seconds,
        default_status=status,
        description=f"A batch whose last run failed is run again, {RUNS_PER_BATCH} times in all.",
    )
    def failed_batches(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult | dg.SkipReason:
        try:
            if not exists(lake.path):
                return dg.SkipReason("there is no lake yet")
            runs = _runs(context.instance, lake, pending_batches(lake.path))
            failed = ((batch, len(known)) for batch, known in runs if _is_due(known))
            requests = [run_request(lake, batch, attempt=count + 1) for batch, count in islice(failed, REQUESTS_PER_TICK)]
        except PixelsError as error:
            return dg.SkipReason(str(error))
        register(context.instance, [str(request.partition_key) for request in requests])
        return dg.SensorResult(run_requests=requests) if requests else dg.SkipReason("no batch failed")

    @dg.sensor(
        name="catalog_changed",
        job=update_rollups,
        minimum_interval_seconds=seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="When object_catalog has changed, the hierarchy, headers and all else that is made of it follow; one run for many batches.",
    )
    def catalog_changed(context: dg.SensorEvaluationContext, lake: LakeResource) -> dg.SensorResult | dg.SkipReason:
        try:
            if not exists(lake.path):
                return dg.SkipReason("there is no lake yet")
            state = catalog_state(lake.path)
            here = replace(settings, lake=lake.path)
            if not is_behind(here):
                return dg.SkipReason("the rollups are up to date")
            if not (are_behind(lake.path) or links_are_behind(lake.path)):
                state += f":headers by {settings.headers_partition} {settings.headers_missing_date}".rstrip()
        except PixelsError as error:
            return dg.SkipReason(str(error))
        going = dg.RunsFilter(job_name=update_rollups.name, tags={LAKE_TAG: str(lake.path)}, statuses=_GOING)
        if context.instance.get_runs(going, limit=1):
            return dg.SkipReason("a run brings the rollups up to date already")
        # One try for each version: what fails is tried again when the catalog has changed again, or from the UI.
        return dg.SensorResult(run_requests=[dg.RunRequest(run_key=state, tags={LAKE_TAG: str(lake.path)})])

    return [arrivals, failed_batches, catalog_changed]


def _nothing_to_run(found: Discovery) -> str:
    waiting = f", {found.waiting} being written wait for a later look" if found.waiting else ""
    more = ", and the rest follows at the next tick" if found.position else ""
    return f"{found.listed} files listed, none new or changed{waiting}{more}"


def _is_due(runs: list[dg.DagsterRun]) -> bool:
    """Whether a batch that has not run to the end gets another chance, by its runs, the newest first."""
    return 0 < len(runs) < RUNS_PER_BATCH and runs[0].status == dg.DagsterRunStatus.FAILURE and all(run.is_finished for run in runs)


def _runs(instance: dg.DagsterInstance, lake: LakeResource, batches: Sequence[str]) -> Iterator[tuple[str, list[dg.DagsterRun]]]:
    """Pair each batch with its runs, the newest first. Runs of batches that happen to have the same keys in another lake do not count."""
    for start in range(0, len(batches), _PER_QUERY):
        some = batches[start : start + _PER_QUERY]
        known: dict[str, list[dg.DagsterRun]] = {batch: [] for batch in some}
        for run in instance.get_runs(dg.RunsFilter(tags={_PARTITION_TAG: list(some)})):
            if run.tags.get(LAKE_TAG, str(lake.path)) == str(lake.path):
                known[run.tags[_PARTITION_TAG]].append(run)
        yield from known.items()
