"""One shard of files to rows, in one read of each object.

Holds the pass over a shard: every byte stream found in it becomes one row per table, metadata, hash and thumbnail from the same read. Runs in worker
processes and on Spark executors. Must not import Dagster, Delta or polars, and must not know which engine called it.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from pixels_assets.dicom.attributes import ATTRIBUTES
from pixels_assets.dicom.codecs import CODECS, Codec, Reason
from pixels_assets.dicom.pixels import PixelSource
from pixels_assets.dicom.reader import Header, read_header
from pixels_assets.dicom.thumbnails import NoThumbnail, Thumbnail, make_thumbnail
from pixels_assets.engines.annotating import annotation_row
from pixels_assets.engines.extractors import Seen, load_extractors
from pixels_assets.engines.shards import IndexSpec, Segment, Shard, Supervisor, Tally
from pixels_assets.errors import PixelsError, place_of
from pixels_assets.intake.archives import walk
from pixels_assets.intake.extraction import Extractor
from pixels_assets.intake.filetype import ARCHIVE_TYPES, COMPRESSED_TYPES, DICOM_TYPES
from pixels_assets.intake.objects import MEMBER, Failure, FoundObject, Status, file_address, os_path, row_id
from pixels_assets.lake.parts import PartWriter, microseconds
from pixels_assets.lake.schema import ANNOTATIONS, DICOM_METADATA, THUMBNAILS, UNZIPPED_ARCHIVES, Table
from pixels_assets.settings import MIB

logger = logging.getLogger(__name__)

CONTAINER_TYPES = ARCHIVE_TYPES | COMPRESSED_TYPES

_IDENTITY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_HEAVY = ("meta", "file_meta", "header")  # what a row weighs is in these, but for some hundred bytes
_SIZED = str, bytes
_SEGMENT_ROWS = 2_000
_SEGMENT_BYTES = 48 * MIB
_NO_VALUES = dict.fromkeys(attribute.keyword for attribute in ATTRIBUTES)


def index_shard(
    shard: Shard,
    spec: IndexSpec,
    supervisor: Supervisor,
    *,
    refused: Mapping[str, Failure] | None = None,
    files_done: int = 0,
    after: str | None = None,
) -> None:
    """Index every object of a shard.

    Parameters
    ----------
    shard : Shard
    spec : IndexSpec
    supervisor : Supervisor
        Told of each object before it is touched, and of each finished stretch of rows.
    refused : mapping of str to Failure, optional
        Addresses that killed a worker before: their bytes are not touched, their rows say why.
    files_done, after : int, str or None
        Where the last finished stretch of an earlier attempt ended.

    Raises
    ------
    LakeError
        The lake or the folder for extracted members cannot be written.
    """
    stretch = _Stretch(shard, spec)
    extractor = Extractor(spec.settings.extract_to) if spec.settings.extract_to and DICOM_METADATA.name in spec.outputs else None
    try:
        for number, file in enumerate(shard.files[files_done:], start=files_done):
            supervisor.opening(number)
            done_to = after if number == files_done else None
            for found in walk(file, spec.settings.limits, on_enter=supervisor.entering, refused=refused or {}):
                if done_to is not None:
                    is_done = not _is_beyond(found, done_to)
                    done_to = None if found.path == done_to or not is_done else done_to
                    if is_done:
                        _extract(found, extractor, supervisor)  # once more: which name a member gets depends on those before it
                        continue
                metadata, image, header = _index_or_blame(found, spec)
                stretch.add(found, metadata, image, _extract(found, extractor, supervisor))
                if stretch.extracts:
                    stretch.add_extracted(Seen(found, file.source, str(metadata["local_path"]), header, spec.settings))
                del metadata, image, header  # they may be large, and would last until the next object was read
                supervisor.indexed()
                if stretch.full:
                    supervisor.resting()
                    supervisor.finished(stretch.close(number, found.path))
        supervisor.resting()
        supervisor.finished(stretch.close(len(shard.files), None))
    except BaseException:
        stretch.abandon()
        raise


def _is_beyond(found: FoundObject, done_to: str) -> bool:
    """Whether an object comes after the last one that has its row, although the walk did not meet that one.

    It was in an archive that is refused by now, or the file is no longer what it was: its own row is always the last.
    """
    return found.path != done_to and (found.depth == 0 or done_to.startswith(found.path + MEMBER))


class _Stretch:
    """Rows on their way into parts that are finished together, so that an attempt after a crash can go on from here."""

    def __init__(self, shard: Shard, spec: IndexSpec) -> None:
        self.shard, self.spec = shard, spec
        self.extractors = tuple(extractor for extractor in load_extractors(spec.settings) if extractor.name in spec.outputs)
        self.extracts = bool(self.extractors) or ANNOTATIONS.name in spec.outputs
        self.count = 0
        self.writers: dict[str, PartWriter] = {}
        self._start()

    def _start(self) -> None:
        self.tally, self.weight = Tally(), 0
        self.writers = {}
        self._ready = time.perf_counter()  # since then the present object is being read

    @property
    def full(self) -> bool:
        return self.tally.objects >= _SEGMENT_ROWS or self.weight >= _SEGMENT_BYTES

    def add(self, found: FoundObject, metadata: dict[str, object], image: Thumbnail | NoThumbnail, extracted: Path | None) -> None:
        if found.depth:
            self._write(UNZIPPED_ARCHIVES, _member_row(found, metadata))
        if extracted is not None:
            metadata["local_path"] = local_path(file_address(extracted))
        self._write(DICOM_METADATA, metadata)
        if THUMBNAILS.name in self.spec.outputs:
            self._write(THUMBNAILS, _thumbnail_row(found, image))
        tally = self.tally
        tally.objects += 1
        tally.bytes += (found.length or 0) if found.depth == 0 else 0
        tally.statuses[str(metadata["status"])] += 1
        if metadata["error_code"]:
            tally.codes[str(metadata["error_code"])] += 1
        if THUMBNAILS.name in self.spec.outputs:
            tally.thumbnails["ok" if isinstance(image, Thumbnail) else image.code] += 1
        self.weight += sum([len(value) for name in _HEAVY if isinstance(value := metadata[name], _SIZED)])
        self.weight += len(image.data) if isinstance(image, Thumbnail) else 0
        if logger.isEnabledFor(logging.DEBUG):
            before, self._ready = self._ready, time.perf_counter()
            logger.debug(
                "object %d: %s%s, %s, %s bytes, thumbnail %s, %.1f ms",
                row_id(found.path),
                metadata["status"],
                f" ({metadata['error_code']})" if metadata["error_code"] else "",
                found.file_type or "unread",
                found.length,
                "made" if isinstance(image, Thumbnail) else image.code,
                1e3 * (self._ready - before),
            )

    def add_extracted(self, seen: Seen) -> None:
        """Add the row of an annotation, and let the extractors add their rows of the same object."""
        if ANNOTATIONS.name in self.spec.outputs:
            annotation = annotation_row(seen)
            if annotation is not None:
                self._write(ANNOTATIONS, annotation)
                self.weight += len(str(annotation["items"]))
        for extractor in self.extractors:
            row = extractor.row(seen)
            if row is not None:
                self._write(extractor.table, row)

    def _write(self, table: Table, row: Mapping[str, object]) -> None:
        if table.name not in self.spec.outputs:
            return
        writer = self.writers.get(table.name)
        if writer is None:
            name = f"{self.spec.attempt}-{self.shard.number:05d}-{self.count:05d}"
            writer = self.writers[table.name] = PartWriter(self.spec.lake, table, self.spec.batch, name, sync=False)  # the engine does that
        writer.append(row)

    def close(self, files_done: int, after: str | None) -> Segment:
        parts = tuple(part for writer in self.writers.values() for part in writer.finish())
        segment = Segment(files_done, after, parts, self.tally)
        self.count += 1
        self._start()
        return segment

    def abandon(self) -> None:
        for writer in self.writers.values():
            writer.abandon()


def _extract(found: FoundObject, extractor: Extractor | None, supervisor: Supervisor) -> Path | None:
    if extractor is None or not found.depth or found.failure is not None or found.file_type in CONTAINER_TYPES:
        return None
    supervisor.resting()  # how long it takes to write is not the object's doing
    path = extractor.extract(found)
    supervisor.entering(found.path)
    return path


def _index_or_blame(found: FoundObject, spec: IndexSpec) -> tuple[dict[str, object], Thumbnail | NoThumbnail, Header | None]:
    """Make an object's row whatever its bytes make our code or a library raise."""
    try:
        return _index(found, spec)
    except (PixelsError, MemoryError):  # the latter is tried again in a process that holds nothing yet
        raise
    except Exception as error:  # the boundary to hostile bytes: all that readers and codecs expect became a failure before
        logger.warning("object %d raised %s", row_id(found.path), place_of(error))
        found.failure = Failure(Status.CRASHED, "exception", f"reading it raised {place_of(error)}")
        return _index(found, spec)


def _index(found: FoundObject, spec: IndexSpec) -> tuple[dict[str, object], Thumbnail | NoThumbnail, Header | None]:
    """Row of `dicom_metadata` and the thumbnail of one object, and its header when it has one."""
    header: Header | None = None
    row: dict[str, object] = {
        "path": found.path,
        "original_path": found.original_path,
        "length": found.length,
        "modificationTime": microseconds(found.mtime_ns),
        "depth": found.depth,
        "file_type": found.file_type,
        "local_path": local_path(found.original_path),
        "status": Status.INDEXED.value,
        "error_code": None,
        "error_message": None,
        "content_hash": found.content_hash,
        "meta": None,
        "file_meta": None,
        "header": None,
        "warnings": (warnings := list(found.warnings)),
    }
    image: Thumbnail | NoThumbnail = NoThumbnail("not_an_image", "the object is not a DICOM object")
    if found.failure is not None:
        _fail(row, found.failure)
        image = NoThumbnail(found.failure.code, found.failure.message)
    elif found.file_type in CONTAINER_TYPES:
        row["status"] = Status.ARCHIVE.value
    elif found.file_type in DICOM_TYPES and found.stream is not None:
        image, header = _read_dicom(found, spec, row, warnings)
    else:
        _fail(row, Failure(Status.NOT_DICOM, "not_dicom", f"the content is not DICOM but {found.file_type}"))
    row.update(_NO_VALUES if header is None else header.values)
    return row, image, header


def _read_dicom(found: FoundObject, spec: IndexSpec, row: dict[str, object], warnings: list[str]) -> tuple[Thumbnail | NoThumbnail, Header | None]:
    limits = spec.settings.limits
    assert found.stream is not None
    assert found.identified is not None
    header = read_header(
        found.stream,
        found.length or 0,
        dataset_offset=found.identified.dataset_offset or 0,
        flags=found.identified.flags,
        max_deflated_bytes=limits.max_deflated_bytes,
        max_ratio=limits.max_ratio,
    )
    if not isinstance(header, Header):
        _fail(row, Failure(Status(header.status), header.code, header.message))
        return NoThumbnail(header.code, header.message), None
    row["meta"], row["file_meta"], row["header"] = header.meta, header.file_meta, header.header
    warnings += [warning for warning in header.warnings if warning not in warnings]
    if found.file_type != "dicomdir":
        warnings += [f"value_missing: {keyword}" for keyword in _IDENTITY if header.values[keyword] is None]
    if THUMBNAILS.name not in spec.outputs:
        return NoThumbnail("not_asked_for", "thumbnails were not selected in this run"), header
    if header.pixel_offset is None and CODECS.get(header.transfer_syntax or "") is Codec.REFERENCED:
        return NoThumbnail(Reason.REFERENCED_PIXELS.value, "the pixel data is behind a URL, which is not followed"), header
    return make_thumbnail(PixelSource.of(header), size=spec.settings.thumbnail_size, max_bytes=limits.max_frame_bytes), header


def _fail(row: dict[str, object], failure: Failure) -> None:
    row.update(status=failure.status.value, error_code=failure.code, error_message=failure.message)


def _member_row(found: FoundObject, metadata: Mapping[str, object]) -> dict[str, object]:
    same = ("path", "original_path", "length", "modificationTime", "depth", "status", "error_code", "error_message")
    return {name: metadata[name] for name in same} | {"compressed_length": found.compressed_length}


def _thumbnail_row(found: FoundObject, image: Thumbnail | NoThumbnail) -> dict[str, object]:
    row: dict[str, object] = {"path": found.path, "original_path": found.original_path}
    if isinstance(image, Thumbnail):
        return row | {
            "thumbnail": image.data,
            "mime": image.mime,
            "width": image.width,
            "height": image.height,
            "frame": image.frame,
            "status": "ok",
            "error_code": None,
        }
    return row | {"thumbnail": None, "mime": None, "width": None, "height": None, "frame": None, "status": "none", "error_code": image.code}


def local_path(original_path: str) -> str:
    """Path of the local file that holds an object: the text that opens it where that is UTF-8, its escaped form where it is not."""
    try:
        return os_path(original_path).decode()
    except UnicodeDecodeError:
        return original_path
