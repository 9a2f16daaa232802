"""Jobs: look for files, and take a batch through the whole lineage."""

import logging
from itertools import product
from pathlib import Path

import dagster as dg
from pydantic import Field

from pixels_assets.engines.run import rebuild_batch
from pixels_assets.errors import UsageError
from pixels_assets.intake.listing import Listing
from pixels_assets.intake.objects import file_address, folder_prefix
from pixels_assets.lake.annotations import links_are_behind
from pixels_assets.lake.changes import Discovery, Position, discover, manifests
from pixels_assets.lake.headers import headers_are_behind
from pixels_assets.lake.maintenance import maintain
from pixels_assets.lake.query import exists, finished_batches
from pixels_assets.lake.rollups import are_behind
from pixels_assets.lake.schema import BATCH_TABLES, LINKED, ROLLUPS
from pixels_assets.orchestration.assets.extract import EXTENSIONS
from pixels_assets.orchestration.assets.headers import HEADERS_KEY
from pixels_assets.orchestration.failures import failing_clearly
from pixels_assets.orchestration.metadata import asset_key, in_words
from pixels_assets.orchestration.partitions import register
from pixels_assets.orchestration.resources import EngineResource, LakeResource, SourcesResource
from pixels_assets.settings import Settings, home

logger = logging.getLogger(__name__)

ingest_batch = dg.define_asset_job(
    "ingest_batch",
    selection=dg.AssetSelection.assets(*(asset_key(table) for table in BATCH_TABLES.values())) | dg.AssetSelection.groups(EXTENSIONS),
    description="Take one batch of files through the whole lineage: listed, read, catalogued.",
)

HIERARCHY_KEYS = tuple(asset_key(table) for table in (ROLLUPS | LINKED).values())
"""What follows `object_catalog` beside `HEADERS_KEY`."""

update_rollups = dg.define_asset_job(
    "update_rollups",
    selection=dg.AssetSelection.assets(HEADERS_KEY, *HIERARCHY_KEYS),
    description="Bring the hierarchy, headers, measurements and segmentations up to date with object_catalog, however many batches changed it.",
)


class DiscoverConfig(dg.Config):
    """Which folders to list, and how."""

    sources: list[str] = Field(default=[], description="Folders to list. Default: those of the `sources` resource (PIXELS_SOURCES).")
    mode: str = Field(default="append", description="`append`: only what changed. `overwrite`: everything again, and forget all other files.")


@dg.op(description="List the sources, seal what changed into batches and make them partitions.", out=dg.Out(list[str]))
def seal_batches(context: dg.OpExecutionContext, config: DiscoverConfig, lake: LakeResource, sources: SourcesResource) -> list[str]:
    """Seal what is new, changed, moved or gone; returns the keys of the batches."""
    with failing_clearly():
        found = look(context.instance, lake, sources, config.sources or sources.folders, overwrite=is_overwrite(config.mode), patient=True)
    context.add_output_metadata(
        {
            "batches": len(found.batches),
            "keys": " to ".join(dict.fromkeys([*found.batches[:1], *found.batches[-1:]])) or "none",
            "listed": found.listed,
            "unchanged": found.unchanged,
            "waiting": found.waiting,
            "changes": in_words({change.value: count for change, count in found.changes.items()}),
            "skipped": in_words(found.skipped),
            "refused": in_words(found.refused),
        }
    )
    return found.batches


@dg.job(
    name="discover", description="Look for new, modified, removed and moved files, and seal them into batches. Materialize or backfill these then."
)
def discover_job() -> None:
    """Look at the sources."""
    seal_batches()


@dg.op(description="Compact small files, write checkpoints, remove what no reader needs any more.")
def maintain_tables(context: dg.OpExecutionContext, lake: LakeResource) -> None:
    """Put the tables in order; no row changes."""
    with failing_clearly():
        done = maintain(lake.path) if exists(lake.path) else []
    context.add_output_metadata(
        {
            "files": sum(one.files for one in done),
            "compacted": in_words({one.table: one.compacted for one in done}),
            "files_removed": in_words({one.table: one.vacuumed for one in done}),
            "log_files_removed": in_words({one.table: one.log_files for one in done}),
        }
    )


@dg.job(name="maintain", description="Keep the tables fast: few large files, short logs, nothing on disk that no reader needs. Safe at any time.")
def maintain_job() -> None:
    """Put the lake in order."""
    maintain_tables()


class RebuildConfig(dg.Config):
    """What to make again."""

    batches: list[str] = Field(default=[], description="Keys of batches. Default: all that have run to the end.")


@dg.op(description="Make metadata and typed columns again from the headers that the lake keeps. No source file is opened.")
def rebuild_metadata(context: dg.OpExecutionContext, config: RebuildConfig, lake: LakeResource, engine: EngineResource) -> None:
    """Replace `dicom_metadata` and `object_catalog` of batches; what follows the catalog then follows by itself."""
    from pixels_assets.engines.rebuild import Rebuilt  # it loads what reads headers, which nothing else here needs

    with failing_clearly():
        root, settings, total = lake.prepared(), engine.settings(), Rebuilt()
        for number, batch in enumerate(finished_batches(root, config.batches)):
            attempt = f"{context.run.run_id}-{context.retry_number}-{number}"
            total.add(rebuild_batch(root, batch, settings, attempt=attempt, run_id=context.run.run_id))
            logger.info("batch %s: %d objects rebuilt so far", batch, total.rebuilt)
    context.add_output_metadata(
        {"rebuilt": total.rebuilt, "without_header": total.kept, "unreadable_header": total.unreadable, "not_indexed": total.others}
    )


@dg.job(name="rebuild", description="Metadata, typed columns and all that follows from them, made again from kept headers; sources may be gone.")
def rebuild_job() -> None:
    """Make metadata again."""
    rebuild_metadata()


def schedules(*, watching: bool) -> list[dg.ScheduleDefinition]:
    """Make the schedule of maintenance; it runs by itself where the sensors do."""
    status = dg.DefaultScheduleStatus.RUNNING if watching else dg.DefaultScheduleStatus.STOPPED
    return [dg.ScheduleDefinition(name="maintain_daily", job=maintain_job, cron_schedule="17 3 * * *", default_status=status)]


def look(
    instance: dg.DagsterInstance,
    lake: LakeResource,
    sources: SourcesResource,
    folders: list[str],
    *,
    overwrite: bool = False,
    position: Position | None = None,
    seconds: float | None = None,
    patient: bool = False,
) -> Discovery:
    """Look at the sources once; all batches of the lake, and those that it seals, then are partitions.

    Raises
    ------
    UsageError
        No folder is given, one is missing, or lies where nothing is ever read: then not even the lake was made.
    """
    if not folders:
        msg = "no source folder is given; name some in the run config of `discover`, or set PIXELS_SOURCES"
        raise UsageError(msg)
    listings, settings = [Listing(folder) for folder in folders], sources.settings()
    # What this program writes itself is no source, wherever it lies: it would never come to an end.
    own = [lake.path, home() / "var" / "dagster", *map(Path, sources.exclude), *([settings.extract_to] if settings.extract_to else [])]
    for listing, folder in product(listings, own):
        if listing.prefix.startswith(folder_prefix(file_address(folder.resolve()))):
            msg = f"the source {listing.source!r} is never read, nor is what lies in it: {folder} is the lake, excluded, or what this program writes"
            raise UsageError(msg)
    root, exclude = lake.prepared(), [file_address(folder.absolute()) for folder in own]
    found = discover(root, folders, settings, position=position, seconds=seconds, overwrite=overwrite, patient=patient, exclude=exclude)
    register(instance, manifests(root).keys())  # older ones, too: this instance may be younger than the lake
    return found


def is_behind(settings: Settings) -> bool:
    """Whether something that follows `object_catalog` does not reflect it as it is."""
    return are_behind(settings.lake) or links_are_behind(settings.lake) or are_headers_behind(settings)


def are_headers_behind(settings: Settings) -> bool:
    """Whether `headers` are to be made and are not what the catalog and the settings say."""
    layout = {"partition": settings.headers_partition, "missing_date": settings.headers_missing_date}
    return settings.headers and headers_are_behind(settings.lake, **layout)


def is_overwrite(mode: str) -> bool:
    """Whether a mode of ingestion starts over."""
    if mode not in {"append", "overwrite"}:
        msg = f"mode is {mode!r}; use append or overwrite"
        raise UsageError(msg)
    return mode == "overwrite"


JOBS = (ingest_batch, discover_job, maintain_job, rebuild_job, update_rollups)
