"""Sensors: arrivals in the sources become runs, and failed batches get another chance.

The cursor is only a place to go on from: what is known is in the lake, so a lost cursor costs a listing and neither loses nor doubles a file.
"""

import json
from dataclasses import asdict, dataclass

import dagster as dg

from pixels_assets.errors import PixelsError
from pixels_assets.lake.changes import Discovery, Position, manifests
from pixels_assets.lake.query import exists, pending_batches
from pixels_assets.orchestration.jobs import ingest_batch, look
from pixels_assets.orchestration.resources import LakeResource, SourcesResource

TICK_SECONDS = 20.0
"""Listing time of one tick; the daemon gives up on a tick after 60 s."""

REQUESTS_PER_TICK = 20
RUNS_PER_BATCH = 3
_VERSION = 1
_PARTITION_TAG = "dagster/partition"


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
            return cls(Position(**values["position"])) if values.get("v") == _VERSION and values.get("position") else cls()
        except (ValueError, TypeError, AttributeError):
            return cls()

    def __str__(self) -> str:
        return json.dumps({"v": _VERSION, "position": asdict(self.position) if self.position else None})


def run_request(lake: LakeResource, batch: str, *, attempt: int = 1) -> dg.RunRequest:
    """A run of one batch. Its key holds the manifest's digest: a batch of another lake with the same name is another run."""
    key = f"{batch}:{manifests(lake.path).digest(batch)}" + (f":{attempt}" if attempt > 1 else "")
    return dg.RunRequest(run_key=key, partition_key=batch, tags={"pixels/lake": str(lake.path)})


def sensors(*, watching: bool, seconds: int) -> list[dg.SensorDefinition]:
    """Both sensors.

    Parameters
    ----------
    watching : bool
        Whether they run without being switched on in the UI.
    seconds : int
        Time between two looks at the sources.
    """
    status = dg.DefaultSensorStatus.RUNNING if watching else dg.DefaultSensorStatus.STOPPED

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
            found = look(context.instance, lake, sources, sources.folders, position=Cursor.parse(context.cursor).position, seconds=TICK_SECONDS)
        except PixelsError as error:
            return dg.SkipReason(str(error))
        fresh = [batch for batch in pending_batches(lake.path) if not _runs(context.instance, batch, limit=1)]
        requests = [run_request(lake, batch) for batch in fresh[:REQUESTS_PER_TICK]]
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
        if not exists(lake.path):
            return dg.SkipReason("there is no lake yet")
        requests = []
        for batch in pending_batches(lake.path):
            runs = _runs(context.instance, batch, limit=RUNS_PER_BATCH)
            if runs and len(runs) < RUNS_PER_BATCH and runs[0].status == dg.DagsterRunStatus.FAILURE:
                requests.append(run_request(lake, batch, attempt=len(runs) + 1))
        return dg.SensorResult(run_requests=requests[:REQUESTS_PER_TICK]) if requests else dg.SkipReason("no batch failed")

    return [arrivals, failed_batches]


def _nothing_to_run(found: Discovery) -> str:
    waiting = f", {found.waiting} being written wait for a later look" if found.waiting else ""
    more = ", and the rest follows at the next tick" if found.position else ""
    return f"{found.listed} files listed, none new or changed{waiting}{more}"


def _runs(instance: dg.DagsterInstance, batch: str, *, limit: int) -> list[dg.DagsterRun]:
    """Runs of one batch, the newest first."""
    return list(instance.get_runs(dg.RunsFilter(tags={_PARTITION_TAG: batch}), limit=limit))
