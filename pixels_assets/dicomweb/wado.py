"""WADO-RS: studies, series, instances, metadata, frames and bulk data (DICOM PS3.18 10.4).

Holds routes and what they choose to send. What the bytes are is the business of `objects`, `frames`, `transcoding` and `rendered`.
"""

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse
from isal import igzip
from pydicom import Dataset
from pydicom.dataelem import RawDataElement

from pixels_assets.dicom.codecs import Codec, NoPixels, Reason
from pixels_assets.dicom.pixels import PixelSource
from pixels_assets.dicom.reader import Header
from pixels_assets.dicom.transfer_syntax import EXPLICIT_LITTLE, IMPLICIT_LITTLE
from pixels_assets.dicomweb.frames import FrameIndex, decode_frame, header_of, is_plain, native_bytes, native_value, read_stored, swapped_bytes
from pixels_assets.dicomweb.index import Instance, Snapshot
from pixels_assets.dicomweb.multipart import Boundary
from pixels_assets.dicomweb.negotiation import ANY_SYNTAX, DICOM, JSON, OCTETS, MediaRange, NotAcceptable, accepted, choose, takes_gzip
from pixels_assets.dicomweb.objects import Gone, Source
from pixels_assets.dicomweb.sending import SLICE, HeldResponse, Taken, sliced
from pixels_assets.dicomweb.service import PREFIX, Service, Uid, is_loopback
from pixels_assets.dicomweb.transcoding import CannotTranscode, to_explicit_little

__all__ = ["MEDIA", "base_url", "bytes_of", "find", "find_all", "frame_bytes", "parse_frames", "plan_frames", "problem", "routes", "send_instance"]

_MOST_FRAMES = 10_000
_MOST_BYTES = 1 << 31
_BROWSERS = frozenset(f"1.2.840.10008.1.2.{number}" for number in ("5", *(f"4.{part}" for part in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203))))
"""Transfer syntaxes of frames that viewers in a browser decode; 51 only with 8 bits."""
MEDIA = {
    **{f"1.2.840.10008.1.2.4.{number}": "image/jpeg" for number in (50, 51, 57, 70)},
    **{f"1.2.840.10008.1.2.4.{number}": "image/jls" for number in (80, 81)},
    **{f"1.2.840.10008.1.2.4.{number}": "image/jp2" for number in (90, 91)},
    **{f"1.2.840.10008.1.2.4.{number}": "image/jpx" for number in (92, 93)},
    **{f"1.2.840.10008.1.2.4.{number}": "image/jphc" for number in (201, 202, 203)},
    **{f"1.2.840.10008.1.2.4.{number}": "image/jxl" for number in (110, 111, 112)},
    "1.2.840.10008.1.2.5": "image/dicom-rle",
    **{f"1.2.840.10008.1.2.4.{number}": "video/mpeg" for number in (100, 101)},
    **{f"1.2.840.10008.1.2.4.{number}": "video/mp4" for number in range(102, 109)},
}
"""Media types of compressed frames (DICOM PS3.18 Table 8.7.3-5)."""
_ABSENT = frozenset({Reason.NO_PIXEL_DATA, Reason.NO_SUCH_FRAME, Reason.PIXEL_DATA_TRUNCATED, Reason.REFERENCED_PIXELS})
"""Why there is nothing, and not only not in this form."""
_REFERENCE = b'"BulkDataURI":"bulkdata/'
"""How the catalog writes references. No value can hold it: quotes within text are escaped."""


def base_url(service: Service, request: Request) -> str:
    """Address of the DICOMweb service as the client sees it."""
    if service.web.public_url is not None:
        return service.web.public_url.rstrip("/") + PREFIX
    place, server = request.url.netloc, request.scope.get("server")
    # Some clients leave the port out of the Host header. Where no proxy can stand between, it is the server's own.
    if request.url.port is None and is_loopback(service.web.host) and server and server[1] not in {None, 80, 443}:
        place = f"{place}:{server[1]}"
    return f"{request.url.scheme}://{place}{PREFIX}"


def problem(error: Exception) -> HTTPException:
    """Answer for what an object does not give."""
    if isinstance(error, NotAcceptable | CannotTranscode):
        return HTTPException(406, str(error))
    if isinstance(error, Gone):
        return HTTPException(410, str(error))
    if isinstance(error, NoPixels):
        return HTTPException(404 if error.code in _ABSENT else 406, error.message)
    raise error


async def find_all(service: Service, study: str, series: str | None = None) -> tuple[Snapshot, list[Instance]]:
    """Objects of a study or series.

    Raises
    ------
    HTTPException
        404: there is none.
    """
    snapshot = await service.snapshot()
    if series is not None:
        found = list((await service.run(service.index.instances_of, snapshot, study, series)).instances)
    else:
        found = []
        for uid in series_of(snapshot, study):
            found += (await service.run(service.index.instances_of, snapshot, study, uid)).instances
    if not found:
        raise HTTPException(404, "there is no such study or series")
    return snapshot, found


def series_of(snapshot: Snapshot, study: str) -> list[str]:
    """Series Instance UIDs of a study, in order."""
    rows = snapshot.studies.find("StudyInstanceUID", study)
    if not len(rows):
        return []
    first, last = snapshot.first_series[rows[0]], snapshot.first_series[rows[0] + 1]
    return [str(uid) for (uid,) in snapshot.series.take(np.arange(first, last, dtype=np.int32), ["SeriesInstanceUID"])]


async def find(service: Service, study: str, series: str, uid: str) -> tuple[Snapshot, Instance]:
    """One object.

    Raises
    ------
    HTTPException
        404: there is no such object.
    """
    snapshot = await service.snapshot()
    known = service.index.peek(snapshot, study, series)
    if known is None:
        known = await service.run(service.index.instances_of, snapshot, study, series)
    found = known.by_uid.get(uid)
    if found is None:
        raise HTTPException(404, "there is no such instance")
    return snapshot, found


def _accepted(request: Request) -> list[MediaRange]:
    return accepted(request.headers.getlist("accept"), request.query_params.get("accept"))


# Whole objects


@dataclass(frozen=True, slots=True)
class _Plan:
    """How objects are sent: as stored, or re-encoded where they are not in the wanted transfer syntax."""

    wanted: tuple[str | None, ...]
    multipart: bool

    def is_stored(self, instance: Instance) -> bool:
        """Whether the stored bytes will do."""
        return any(syntax in {ANY_SYNTAX, instance.transfer_syntax} for syntax in self._syntaxes)

    @property
    def may_fall_back(self) -> bool:
        """The client named no transfer syntax: bytes as stored are better than none."""
        return None in self.wanted

    @property
    def may_transcode(self) -> bool:
        """Explicit VR Little Endian is among what is wanted."""
        return EXPLICIT_LITTLE in self._syntaxes

    @property
    def _syntaxes(self) -> set[str]:
        return {EXPLICIT_LITTLE if syntax is None else syntax for syntax in self.wanted}


def _plan(request: Request, *, single: bool) -> _Plan:
    ranges = [item for item in _accepted(request) if item.matches(DICOM)]
    if not ranges:
        msg = f'available is multipart/related; type="{DICOM}"' + (f", and {DICOM}" if single else "")
        raise HTTPException(406, msg)
    best = ranges[0]
    multipart = best.multipart or not single
    if not single and not any(item.multipart or item.media == "*/*" for item in ranges):
        raise HTTPException(406, f'several objects come as multipart/related; type="{DICOM}"')
    return _Plan(tuple(item.transfer_syntax for item in ranges), multipart)


def _transcoded(service: Service, source: Source) -> bytes:
    header = header_of(source, service.settings.limits)
    if not isinstance(header, Header):
        msg = "the header can no longer be read"
        raise CannotTranscode(msg)
    return to_explicit_little(source.stream(), PixelSource.of(header), max_bytes=min(_MOST_BYTES, 4 * service.settings.limits.max_frame_bytes))


def _present(service: Service, snapshot: Snapshot, instances: Sequence[Instance]) -> list[Instance]:
    return [item for item in instances if service.objects.is_there(item, snapshot.roots)]


async def _send_objects(service: Service, snapshot: Snapshot, instances: list[Instance], plan: _Plan) -> Response:
    if not plan.may_transcode and not all(plan.is_stored(item) for item in instances):
        raise HTTPException(406, "not all objects are stored in an accepted transfer syntax; add 1.2.840.10008.1.2.1 or *")
    headers = {}
    status = 200
    if len(instances) > 1:
        present = await service.run(_present, service, snapshot, instances)
        if not present:
            raise HTTPException(410, "the files of these objects are no longer there")
        if len(present) < len(instances):
            status, headers["Warning"] = 206, f'299 pixels "{len(instances) - len(present)} objects are no longer there"'
        instances = present
    elif plan.is_stored(instances[0]):
        return await _send_stored(service, snapshot, instances[0], plan)
    else:
        syntax, body, taken = await _body(service, snapshot, instances[0], plan)
        media = f"{DICOM}; transfer-syntax={syntax}"
        if not plan.multipart:
            return HeldResponse([body], taken, headers={"Content-Type": media})
        boundary = Boundary()
        pieces = [boundary.head(media, len(body)), body, b"\r\n" + boundary.tail]
        return HeldResponse(pieces, taken, headers={"Content-Type": boundary.content_type(DICOM)})
    boundary = Boundary()

    async def parts() -> AsyncIterator[bytes]:
        for item in instances:
            if plan.is_stored(item):
                yield boundary.head(f"{DICOM}; transfer-syntax={item.transfer_syntax}", item.length)
                async for chunk in _chunks(service, snapshot, item):
                    yield chunk
            else:
                syntax, body, taken = await _body(service, snapshot, item, plan)
                with taken:
                    yield boundary.head(f"{DICOM}; transfer-syntax={syntax}", len(body))
                    for part in sliced(body):
                        yield part
            yield b"\r\n"
        yield boundary.tail

    return StreamingResponse(parts(), status, headers | {"Content-Type": boundary.content_type(DICOM)})


async def send_instance(service: Service, snapshot: Snapshot, instance: Instance, syntax: str | None) -> Response:
    """Send one object on its own: in a transfer syntax, in Explicit VR Little Endian where that can be had for None."""
    return await _send_objects(service, snapshot, [instance], _Plan((syntax,), multipart=False))


async def _body(service: Service, snapshot: Snapshot, instance: Instance, plan: _Plan) -> tuple[str, bytes, Taken]:
    """Transfer syntax, bytes and their room of an object that is not wanted as it is stored."""

    def work() -> tuple[str, bytes]:
        with service.objects.open(instance, snapshot.roots) as source:
            try:
                return EXPLICIT_LITTLE, _transcoded(service, source)
            except CannotTranscode:
                if not plan.may_fall_back or source.length > _MOST_BYTES:
                    raise
                return instance.transfer_syntax, source.read_at(0, source.length)

    try:
        (syntax, body), taken = await service.made(work, size=lambda found: len(found[1]))
    except (CannotTranscode, Gone) as error:
        raise problem(error) from error
    return syntax, body, taken


async def _send_stored(service: Service, snapshot: Snapshot, instance: Instance, plan: _Plan) -> Response:
    media = f"{DICOM}; transfer-syntax={instance.transfer_syntax}"
    chunks = _chunks(service, snapshot, instance)
    try:
        first = await anext(chunks, b"")
    except Gone as error:
        raise problem(error) from error
    boundary = Boundary()
    head, tail = (boundary.head(media, instance.length), b"\r\n" + boundary.tail) if plan.multipart else (b"", b"")
    length = str(len(head) + instance.length + len(tail))

    async def body() -> AsyncIterator[bytes]:
        yield head + first
        async for chunk in chunks:
            yield chunk
        if tail:
            yield tail

    return StreamingResponse(body(), headers={"Content-Length": length, "Content-Type": boundary.content_type(DICOM) if plan.multipart else media})


async def _chunks(service: Service, snapshot: Snapshot, instance: Instance) -> AsyncIterator[bytes]:
    """Bytes of an object, a piece at a time, read in threads."""
    opened = service.objects.open(instance, snapshot.roots)
    source = await service.run(opened.__enter__)
    try:
        pieces: Iterator[bytes] = source.chunks(SLICE)
        with await service.room.take(2 * SLICE):
            while piece := await service.run(next, pieces, b""):
                yield piece
    finally:
        opened.__exit__(None, None, None)


# Metadata


def _metadata_of(service: Service, snapshot: Snapshot, instances: Sequence[Instance], base: str) -> bytes:
    texts = service.index.read_column(snapshot, instances, "meta")
    parts = []
    for item in instances:
        text = texts.get(item.path)
        if text is not None:
            place = f"{base}/studies/{quote(item.study, safe='')}/series/{quote(item.series, safe='')}/instances/{quote(item.uid, safe='')}"
            parts.append(text.encode().replace(_REFERENCE, f'"BulkDataURI":"{place}/bulkdata/'.encode()))
    return b",\n".join(parts)


def _tag_of(instances: Sequence[Instance], base: str) -> str:
    digest = hashlib.sha256(base.encode())
    for item in instances:
        digest.update(f"\n{item.uid} {item.content_hash} {item.path}".encode())
    return f'"{digest.hexdigest()[:32]}"'


def _prepared(service: Service, snapshot: Snapshot, instances: Sequence[Instance], base: str) -> tuple[bytes, bytes, str]:
    tag = _tag_of(instances, base)

    def make() -> tuple[bytes, bytes, str]:
        body = b"[" + _metadata_of(service, snapshot, instances, base) + b"]"
        return body, igzip.compress(body, 1), tag

    return service.metadata.get(tag, make)


async def _send_metadata(service: Service, request: Request, snapshot: Snapshot, instances: list[Instance]) -> Response:
    try:
        media, _ = choose(_accepted(request), [JSON, "application/json"])
    except NotAcceptable as error:
        raise problem(error) from error
    base = base_url(service, request)
    body, zipped, tag = await service.run(_prepared, service, snapshot, instances, base)
    headers = {"ETag": tag, "Cache-Control": "private, no-cache", "Vary": "Accept, Accept-Encoding"}
    if tag in request.headers.get("if-none-match", "") or request.headers.get("if-none-match") == "*":
        return Response(status_code=304, headers=headers)
    if takes_gzip(request.headers.get("accept-encoding", "")):
        return Response(zipped, media_type=media, headers=headers | {"Content-Encoding": "gzip"})
    return Response(body, media_type=media, headers=headers)


# Frames


@dataclass(frozen=True, slots=True)
class _FramePlan:
    """How frames are sent: as stored or decoded, and under which names."""

    media: str
    syntax: str
    decode: bool
    multipart: bool

    @property
    def content_type(self) -> str:
        return f"{self.media}; transfer-syntax={self.syntax}"


def plan_frames(index: FrameIndex, wanted: Sequence[MediaRange]) -> _FramePlan:
    """Choose how frames are sent.

    Raises
    ------
    NotAcceptable
    """
    stored = index.transfer_syntax
    plain = index.is_native or index.codec is Codec.UNCOMPRESSED
    is_8_bit = index.description is not None and index.description.bits_allocated == 8
    for_browsers = stored in _BROWSERS and (not stored.endswith(".51") or is_8_bit) and (index.codec is not Codec.VIDEO)
    for item in wanted:
        syntax = item.transfer_syntax
        if item.matches(OCTETS):
            if plain and syntax in {None, ANY_SYNTAX, EXPLICIT_LITTLE, IMPLICIT_LITTLE}:
                return _FramePlan(OCTETS, EXPLICIT_LITTLE, decode=False, multipart=item.multipart)
            if not plain and (syntax == stored or (syntax == ANY_SYNTAX and (for_browsers or index.codec is Codec.VIDEO))):
                return _FramePlan(OCTETS, stored, decode=False, multipart=item.multipart)
            if not plain and syntax in {None, ANY_SYNTAX, EXPLICIT_LITTLE} and index.codec is not Codec.VIDEO:
                return _FramePlan(OCTETS, EXPLICIT_LITTLE, decode=True, multipart=item.multipart)
        media = MEDIA.get(stored)
        if not plain and media is not None and item.media != "*/*" and item.matches(media) and syntax in {None, ANY_SYNTAX, stored}:
            return _FramePlan(media, stored, decode=False, multipart=item.multipart)
    offered = [f"{OCTETS}; transfer-syntax={EXPLICIT_LITTLE}"] + ([] if plain else [f"{MEDIA.get(stored, OCTETS)}; transfer-syntax={stored}"])
    msg = f"available are {', '.join(offered)}"
    raise NotAcceptable(msg)


def frame_bytes(service: Service, snapshot: Snapshot, instance: Instance, index: FrameIndex, numbers: Sequence[int], *, decode: bool) -> list[bytes]:
    """Frames of an object, 0-based, as they are sent.

    Raises
    ------
    Gone, NoPixels
    """
    with service.objects.open(instance, snapshot.roots) as source:
        if not decode and (is_plain(index) or not index.is_native):
            return [read_stored(source, index, number) for number in numbers]
        description = index.description
        if not decode and description is not None and description.bits_allocated in {16, 32, 64}:
            return [swapped_bytes(read_stored(source, index, number), description.bits_allocated) for number in numbers]
        header = header_of(source, service.settings.limits)
        if not isinstance(header, Header):
            msg = "the header can no longer be read"
            raise Gone(msg)
        most = service.settings.limits.max_frame_bytes
        frames = (decode_frame(header, number, most) for number in numbers)
        if description is None:
            return [native_bytes(frame, planar=False, bits_allocated=8) for frame in frames]
        return [native_bytes(frame, planar=description.planar, bits_allocated=description.bits_allocated) for frame in frames]


def parse_frames(text: str) -> list[int]:
    """Read a list of frame numbers from 1; gives them from 0.

    Raises
    ------
    HTTPException
        400: it is no such list.
    """
    parts = text.split(",")
    if len(parts) > _MOST_FRAMES or not all(part.isascii() and part.isdigit() and len(part) < 11 and int(part) > 0 for part in parts):
        raise HTTPException(400, "frames are numbers from 1, separated by commas")
    return [int(part) - 1 for part in parts]


def _check_numbers(index: FrameIndex, numbers: Sequence[int]) -> None:
    if max(numbers) >= index.frames:
        raise NoPixels(Reason.NO_SUCH_FRAME, "the object has no frame of that number")


async def _send_frames(service: Service, request: Request, snapshot: Snapshot, instance: Instance, numbers: list[int]) -> Response:
    try:
        key = (instance.path, instance.source_length, instance.source_mtime)
        index = service.frames.peek(key)
        if index is None:
            index = await service.run(service.frame_index, snapshot, instance)
        plan = plan_frames(index, _accepted(request))
        _check_numbers(index, numbers)
        work = partial(frame_bytes, service, snapshot, instance, index, decode=plan.decode)
        runner = service.decode if plan.decode else service.run

        async def one(number: int) -> tuple[bytes, Taken]:
            taken = await service.room.take(index.size_of(number, decoded=plan.decode))
            (body,) = await runner(work, [number])
            return body, taken

        body, taken = await one(numbers[0])
    except (Gone, NoPixels, NotAcceptable) as error:
        raise problem(error) from error
    boundary = Boundary()
    if len(numbers) == 1 and not plan.multipart:
        return HeldResponse([body], taken, headers={"Content-Type": plan.content_type})
    headers = {"Content-Type": boundary.content_type(plan.media)}
    head = boundary.head(plan.content_type, len(body))
    if len(numbers) == 1:
        return HeldResponse([head, body, b"\r\n" + boundary.tail], taken, headers=headers)
    ready = [(body, taken)]  # not held by the closure once it is sent

    async def parts() -> AsyncIterator[bytes]:
        for number in numbers:
            body, taken = ready.pop() if ready else await one(number)
            with taken:
                yield boundary.head(plan.content_type, len(body))
                for part in sliced(body):
                    yield part
                yield b"\r\n"
        yield boundary.tail

    return StreamingResponse(parts(), headers=headers)


# Bulk data

_WORDS = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}


def _bulk(service: Service, snapshot: Snapshot, instance: Instance, path: str) -> tuple[str, list[bytes]]:
    """Media type and bytes of one element; of encapsulated pixel data, one piece for each frame."""
    is_pixels = path in {"7FE00010", "7FE00008", "7FE00009"}
    if is_pixels:
        try:
            index = service.frame_index(snapshot, instance)
        except NoPixels as error:
            if error.code in _ABSENT:
                raise
        else:
            if not index.is_native:
                media = f"{OCTETS}; transfer-syntax={index.transfer_syntax}"
                return media, frame_bytes(service, snapshot, instance, index, range(index.frames), decode=False)
    with service.objects.open(instance, snapshot.roots) as source:
        header = header_of(source, service.settings.limits)
        if not isinstance(header, Header):
            msg = "the header can no longer be read"
            raise Gone(msg)
        if is_pixels:
            return OCTETS, [native_value(header)]
        data, vr = _bytes_at(header, path)
        if data is None:
            raise HTTPException(404, "the element holds no bulk data")
        little = header.dataset.original_encoding[1] is not False
        width = 1 if little else _WORDS.get(vr, 1)
        return OCTETS, [data if width == 1 else _swap(data, width)]


def _swap(data: bytes, width: int) -> bytes:
    whole = len(data) // width * width
    return swapped_bytes(data[:whole], 8 * width) + data[whole:]


def bytes_of(header: Header, dataset: Dataset, tag: int) -> tuple[bytes | None, str]:
    """Bytes of a binary element and its VR; None for an element of another kind. Long ones were left in the object, and are read now."""
    raw: Any = dataset.get_item(tag)
    if isinstance(raw, RawDataElement) and raw.value is None and raw.length:
        header.stream.seek(raw.value_tell)
        return header.stream.read(raw.length), raw.VR or "UN"
    element = dataset[tag]
    return (element.value if isinstance(element.value, bytes) else None), element.VR


def _bytes_at(header: Header, path: str) -> tuple[bytes | None, str]:
    """Bytes and VR of the element that a reference of the metadata names: tag, or sequence/item/.../tag."""
    parts = path.split("/")
    dataset: Any = header.dataset
    try:
        for sequence, item in zip(parts[:-1:2], parts[1:-1:2], strict=True):
            dataset = dataset[int(sequence, 16)].value[int(item)]
        return bytes_of(header, dataset, int(parts[-1], 16))
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError):
        raise HTTPException(404, "there is no such element") from None


async def _send_bulk(service: Service, request: Request, snapshot: Snapshot, instance: Instance, path: str) -> Response:
    try:
        _, wanted = choose(_accepted(request), [OCTETS])
        (media, pieces), taken = await service.made(_bulk, service, snapshot, instance, path, size=lambda found: sum(map(len, found[1])))
    except (Gone, NoPixels, NotAcceptable) as error:
        raise problem(error) from error
    if wanted.multipart or len(pieces) > 1:
        boundary = Boundary()
        parts = [part for piece in pieces for part in (boundary.head(media, len(piece)), piece, b"\r\n")]
        return HeldResponse([*parts, boundary.tail], taken, headers={"Content-Type": boundary.content_type(OCTETS)})
    return HeldResponse(pieces, taken, headers={"Content-Type": media})


def routes(service: Service) -> APIRouter:
    """Routes below the service's prefix."""
    router = APIRouter(tags=["WADO-RS"], default_response_class=Response)
    answers: dict[int | str, dict[str, Any]] = {
        code: {"description": text}
        for code, text in {404: "There is no such object.", 406: "Not available in this form.", 410: "The bytes are no longer there."}.items()
    }

    @router.get("/studies/{study}", responses=answers)
    async def retrieve_study(request: Request, study: Uid) -> Response:
        """All objects of a study."""
        return await _send_objects(service, *await find_all(service, study), _plan(request, single=False))

    @router.get("/studies/{study}/series/{series}", responses=answers)
    async def retrieve_series(request: Request, study: Uid, series: Uid) -> Response:
        """All objects of a series."""
        return await _send_objects(service, *await find_all(service, study, series), _plan(request, single=False))

    @router.get("/studies/{study}/series/{series}/instances/{instance}", responses=answers)
    async def retrieve_instance(request: Request, study: Uid, series: Uid, instance: Uid) -> Response:
        """One object, as it is stored or in Explicit VR Little Endian."""
        snapshot, found = await find(service, study, series, instance)
        return await _send_objects(service, snapshot, [found], _plan(request, single=True))

    @router.get("/studies/{study}/metadata", responses=answers)
    async def retrieve_study_metadata(request: Request, study: Uid) -> Response:
        """All attributes but bulk data of a study's objects, as DICOM JSON."""
        return await _send_metadata(service, request, *await find_all(service, study))

    @router.get("/studies/{study}/series/{series}/metadata", responses=answers)
    async def retrieve_series_metadata(request: Request, study: Uid, series: Uid) -> Response:
        """All attributes but bulk data of a series' objects, as DICOM JSON."""
        return await _send_metadata(service, request, *await find_all(service, study, series))

    @router.get("/studies/{study}/series/{series}/instances/{instance}/metadata", responses=answers)
    async def retrieve_instance_metadata(request: Request, study: Uid, series: Uid, instance: Uid) -> Response:
        """All attributes but bulk data of one object, as DICOM JSON."""
        snapshot, found = await find(service, study, series, instance)
        return await _send_metadata(service, request, snapshot, [found])

    @router.get("/studies/{study}/series/{series}/instances/{instance}/frames/{frames}", responses=answers)
    async def retrieve_frames(request: Request, study: Uid, series: Uid, instance: Uid, frames: str) -> Response:
        """Frames of an object, numbered from 1 and separated by commas."""
        snapshot, found = await find(service, study, series, instance)
        return await _send_frames(service, request, snapshot, found, parse_frames(frames))

    @router.get("/studies/{study}/series/{series}/instances/{instance}/bulkdata/{path:path}", responses=answers)
    async def retrieve_bulkdata(request: Request, study: Uid, series: Uid, instance: Uid, path: Uid) -> Response:
        """Bytes of one element that metadata refer to."""
        snapshot, found = await find(service, study, series, instance)
        return await _send_bulk(service, request, snapshot, found, path)

    return router
