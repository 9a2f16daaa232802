"""Group `extract`: everything that one read of each object gives, as one multi-asset of which any part may be materialized alone.

`unzipped_archives` belongs to it because whether a member can be read is known only once it was read, and a compressed TAR is read once.
"""

import logging
import time
from collections.abc import Iterator, Sequence

import dagster as dg
import polars as pl
from pydantic import Field

from pixels_assets.engines.extractors import Extractor
from pixels_assets.engines.run import index_batch
from pixels_assets.engines.shards import IndexSpec, Tally
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.commit import create_tables
from pixels_assets.lake.query import quarantined_files, scan_batch
from pixels_assets.lake.schema import ANNOTATIONS, DICOM_METADATA, RAW_FILES, THUMBNAILS, UNZIPPED_ARCHIVES, Table
from pixels_assets.orchestration.failures import failing_clearly
from pixels_assets.orchestration.metadata import PICTURE_BYTES, Metadata, asset_key, counts, definition, materialization, picture
from pixels_assets.orchestration.partitions import BATCH, batch_of
from pixels_assets.orchestration.resources import ENGINE_TAG, LAKE_TAG, EngineResource, LakeResource
from pixels_assets.settings import Settings

logger = logging.getLogger(__name__)

_SHEET_IMAGES = 48
_PROGRESS_SECONDS = 5.0


def _spec(table: Table, group: str, kinds: set[str], deps: list[Table], code_version: str) -> dg.AssetSpec:
    return dg.AssetSpec(
        asset_key(table),
        deps=[asset_key(dep) for dep in deps],
        description=table.meaning,
        group_name=group,
        kinds=kinds,
        metadata=definition(table),
        code_version=code_version,
        skippable=True,
    )


class IndexConfig(dg.Config):
    """What to make of a batch's objects; the defaults are those of the resource `engine`."""

    thumbnail_size: int | None = Field(default=None, description="Longest side of a thumbnail, pixels. Default: that of the resource `engine`.")
    extract_to: str | None = Field(
        default=None,
        description="Folder to extract archive members to. Default: that of the resource `engine`; without one they are read in place only.",
    )
    preview: bool | None = Field(default=None, description="Attach a contact sheet of patients' images. Default: that of the resource `engine`.")
    retry: list[str] = Field(default=[], description="Read again only the files with an object in quarantine under one of these statuses.")


EXTENSIONS = "extensions"
"""Group of the assets that extractors make."""


def build_index_objects(extractors: Sequence[Extractor] = ()) -> dg.AssetsDefinition:
    """Make the multi-asset: the tables that every read gives, and one for each extractor."""
    extracted = [extractor.table for extractor in extractors]
    more = [_spec(extractor.table, EXTENSIONS, {"dicom", "deltalake"}, [UNZIPPED_ARCHIVES], extractor.version) for extractor in extractors]

    @dg.multi_asset(
        name="index_objects",
        specs=[
            _spec(UNZIPPED_ARCHIVES, "ingest", {"python", "deltalake"}, [RAW_FILES], "1"),
            _spec(DICOM_METADATA, "extract", {"dicom", "deltalake"}, [UNZIPPED_ARCHIVES], "1"),
            _spec(THUMBNAILS, "extract", {"dicom", "deltalake"}, [UNZIPPED_ARCHIVES], "1"),
            _spec(ANNOTATIONS, "annotations", {"dicom", "deltalake"}, [UNZIPPED_ARCHIVES], "1"),
            *more,
        ],
        can_subset=True,
        partitions_def=BATCH,
    )
    def index_objects(
        context: dg.AssetExecutionContext, config: IndexConfig, lake: LakeResource, engine: EngineResource
    ) -> Iterator[dg.MaterializeResult]:
        """Read each object of one batch once, for whichever of the tables are selected."""
        with failing_clearly():
            started, root, batch = time.monotonic(), lake.prepared(), batch_of(context)
            settings = engine.settings(thumbnail_size=config.thumbnail_size, extract_to=config.extract_to, preview=config.preview)
            tags = {LAKE_TAG: str(root), ENGINE_TAG: settings.engine}
            if not tags.items() <= context.run.tags.items():  # it was started from the UI, where only its config says so
                context.instance.add_run_tags(context.run.run_id, tags)
            create_tables(root, extracted)
            files = manifests(root).load(batch)
            only = quarantined_files(root, batch, config.retry) if config.retry else None
            outputs = frozenset(key.path[-1] for key in context.selected_asset_keys)
            spec = IndexSpec(root, batch, f"{context.run.run_id}-{context.retry_number}", outputs, settings)
            with engine.start() as running:
                indexed = index_batch(running, spec, files, run_id=context.run.run_id, only=only, progress=_Progress())
            seconds = time.monotonic() - started
            for table in spec.tables:
                figures = materialization(root, table, indexed.commits[table.name], seconds, len(files))
                yield dg.MaterializeResult(asset_key=asset_key(table), metadata=figures | _more(table, indexed.tally, settings, spec))

    return index_objects


class _Progress:
    """Logs how far a batch is, every few seconds."""

    def __init__(self) -> None:
        self._started, self._next = time.monotonic(), _PROGRESS_SECONDS

    def __call__(self, objects: int) -> None:
        elapsed = time.monotonic() - self._started
        if objects and elapsed >= self._next:
            self._next = elapsed + _PROGRESS_SECONDS
            logger.info("%d objects read, %.0f per second", objects, objects / elapsed)


def _more(table: Table, tally: Tally, settings: Settings, spec: IndexSpec) -> Metadata:
    """Say what only one of the tables has to say."""
    if table is DICOM_METADATA:
        return {
            "objects": tally.objects,
            "source_bytes": tally.bytes,
            "statuses": counts("status", tally.statuses),
            "errors": counts("error", tally.codes),
        }
    if table is THUMBNAILS:
        said: Metadata = {"thumbnails": counts("outcome", tally.thumbnails)}
        sheet = _contact_sheet(spec) if settings.preview else b""
        return said | ({"contact_sheet": picture(sheet)} if sheet else {})
    return {}


def _contact_sheet(spec: IndexSpec) -> bytes:
    """Thumbnails spread evenly over the batch, side by side; empty when it has none."""
    from pixels_assets.dicom.thumbnails import contact_sheet  # it loads what decodes images, which nothing else here needs

    images = scan_batch(spec.lake, THUMBNAILS, spec.batch).filter(pl.col("status") == "ok")
    paths = images.select("path").collect()["path"].sort()
    if paths.is_empty():
        return b""
    shown = min(len(paths), _SHEET_IMAGES)
    chosen = paths.gather([number * len(paths) // shown for number in range(shown)])
    pictures = images.filter(pl.col("path").is_in(chosen.implode())).sort("path").select("thumbnail").collect()["thumbnail"].to_list()
    return contact_sheet(pictures, max_bytes=PICTURE_BYTES)
