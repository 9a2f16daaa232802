"""STOW-RS: objects that clients store, and what removes them again (DICOM PS3.18 10.5, Annex I).

Holds receiving, the folder of stored objects, and the answer. What cataloguing means is the ingest's business: it is handed in, and finds the new
files as it finds any others. Bytes are kept as they came.

The folder holds ``<study>/<series>/<instance>.dcm``; other bytes under a UID that it has already become ``<instance>~2.dcm`` and so on. What is being
received lies in a folder beside it, and so does what was removed, which is kept.
"""

import asyncio
import contextlib
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import orjson
from fastapi import APIRouter, HTTPException, Request, Response
from starlette.requests import ClientDisconnect

from pixels_assets.dicom.reader import Header
from pixels_assets.dicomweb.frames import header_of
from pixels_assets.dicomweb.index import Instance, Snapshot
from pixels_assets.dicomweb.metrics import Metrics
from pixels_assets.dicomweb.multipart import BadBody, PartReader
from pixels_assets.dicomweb.negotiation import DICOM, JSON, RELATED, NotAcceptable, accepted, choose, content_type
from pixels_assets.dicomweb.objects import Gone, file_source
from pixels_assets.dicomweb.service import Service, Uid
from pixels_assets.dicomweb.wado import base_url, find, find_all
from pixels_assets.errors import PixelsError
from pixels_assets.intake.objects import file_address
from pixels_assets.settings import MIB

__all__ = ["routes"]

logger = logging.getLogger(__name__)

MOST_PARTS = 20_000
_LEAST, _CHUNK, _PENDING = 64 * 1024, MIB, 32 * MIB
"""Bytes of a body that are gathered before they are written: at least, at most, and of all bodies that come at once."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SAFE_UID = re.compile(r"[0-9]+(?:\.[0-9]+)*")

# Reasons of DICOM PS3.18 Annex I.2.2 and warnings of I.2.1.
PROCESSING_FAILURE, OUT_OF_RESOURCES, OTHER_STUDY, NOT_UNDERSTOOD = 0x0110, 0xA700, 0xA900, 0xC000
KEPT_AS_VERSION = 0xB000


@dataclass(slots=True)
class _Received:
    """One object of a request.

    Parameters
    ----------
    file : Path
        Where its bytes are.
    sop_class, uid, study, series : str
        Its UIDs, '' where it has none.
    failure, warning : int
        Reason codes, 0 for none.
    """

    file: Path
    sop_class: str = ""
    uid: str = ""
    study: str = ""
    series: str = ""
    content_hash: str = ""
    failure: int = 0
    warning: int = 0


class _TooLargeError(Exception):
    """A part is larger than an object may be."""


class _Part:
    """A file that takes no more than so many bytes, and hashes them."""

    def __init__(self, path: Path, most: int) -> None:
        self._file = path.open("xb")
        self._left = most
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise _TooLargeError
        self.digest.update(data)
        return self._file.write(data)

    def drop(self) -> None:
        self._file.close()

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class Storage:
    """The folder of stored objects.

    Parameters
    ----------
    service : Service
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.folder = service.web.exports.resolve()  # as the ingest writes it into addresses
        self._incoming = self.folder.parent / f"{self.folder.name}.incoming"
        self._removed = self.folder.parent / f"{self.folder.name}.removed"
        self._turn = asyncio.Lock()
        self._wanted = self._done = 0
        self.receiving = 0

    # --- receiving

    @property
    def piece(self) -> int:
        """Bytes of a body that are gathered before they are written: fewer where many come at once, which may stop at any moment."""
        return max(_LEAST, min(_CHUNK, _PENDING // max(1, self.receiving)))

    def new_folder(self) -> Path:
        """Make a folder for one request."""
        folder = self._incoming / secrets.token_hex(8)
        folder.mkdir(parents=True)
        return folder

    def take_in(self, received: _Received, study: str | None) -> None:
        """Find out what an object is."""
        source = file_source(received.file)
        try:
            header = header_of(source, self._service.settings.limits)
        finally:
            source.close()
        if not isinstance(header, Header):
            received.failure = NOT_UNDERSTOOD
            return
        names = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
        received.sop_class, received.uid, received.study, received.series = (str(header.values[name] or "") for name in names)
        uids = (received.uid, received.study, received.series)
        if not received.sop_class or not all(len(uid) <= 64 and _SAFE_UID.fullmatch(uid) for uid in uids):
            received.failure = NOT_UNDERSTOOD
        elif study is not None and received.study != study:
            received.failure = OTHER_STUDY

    def keep(self, received: _Received, snapshot: Snapshot, known: Instance | None) -> None:
        """Move an object to its place; identical bytes are there once, and so is what the catalog has from elsewhere."""
        folder = self.folder / received.study / received.series
        number = 1
        while True:
            place = folder / (f"{received.uid}.dcm" if number == 1 else f"{received.uid}~{number}.dcm")
            if place.exists():
                if _hash(place) == received.content_hash:
                    received.file = place
                    received.warning = KEPT_AS_VERSION if number > 1 else 0
                    return
            elif number == 1 and known is not None and known.content_hash == received.content_hash and self._is_there(snapshot, known):
                return
            else:
                folder.mkdir(parents=True, exist_ok=True)
                if _move(received.file, place):
                    break
                continue  # another request was quicker
            number += 1
        if number > 1 or (known is not None and known.content_hash != received.content_hash):
            received.warning = KEPT_AS_VERSION
        received.file = place

    def _is_there(self, snapshot: Snapshot, known: Instance) -> bool:
        """Whether what the catalog has can still be read: the client may drop its own after this answer."""
        try:
            with self._service.objects.open(known, snapshot.roots):
                return True
        except Gone:
            return False

    async def catalogue(self) -> None:
        """Run the ingest, once for all requests that wait for it, and load what it brought in.

        Raises
        ------
        PixelsError
            The environment failed. What was stored stays, and the next ingest brings it in.
        """
        assert self._service.ingest is not None
        self._wanted += 1
        ticket = self._wanted
        async with self._turn:
            if self._done < ticket:
                covered = self._wanted
                await self._service.run(self._service.ingest, self.folder)
                self._done = covered
        await self._service.run(self._service.index.refresh)

    # --- removing

    def is_ours(self, instance: Instance) -> bool:
        """Whether an object lies in the folder."""
        return instance.path == instance.original_path and instance.path.startswith(file_address(self.folder) + "/")

    def remove(self, instances: Sequence[Instance]) -> None:
        """Move objects, with all versions under their UIDs, out of the folder."""
        target = self._removed / f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        for item in instances:
            folder = self.folder / item.study / item.series
            for file in [folder / f"{item.uid}.dcm", *folder.glob(f"{item.uid}~*.dcm")]:
                if file.exists():
                    place = target / item.study / item.series / file.name
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.move(file, place)
            for empty in (folder, folder.parent):
                with contextlib.suppress(OSError):
                    empty.rmdir()


def _move(file: Path, place: Path) -> bool:
    """Move a file to a place that is free; False when it is so no longer."""
    try:
        place.hardlink_to(file)  # unlike a rename it never takes the place of another file
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise
        if error.errno == errno.EXDEV:  # the folder is a file system of its own
            near = place.with_name(f"{place.name}.{secrets.token_hex(4)}.part")
            try:
                shutil.copyfile(file, near)
                with near.open("rb") as copied:
                    os.fsync(copied.fileno())
                return _move(near, place)
            finally:
                near.unlink(missing_ok=True)
        file.rename(place)  # a file system without links
    return True


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(slots=True)
class _Receiver:
    """Takes the body of a request apart."""

    folder: Path
    most: int
    received: list[_Received] = field(default_factory=list)
    refused: int = 0
    _part: _Part | None = None

    def open_part(self, headers: Mapping[str, str]) -> BinaryIO | None:
        media, _ = content_type(headers.get("content-type", DICOM))
        if len(self.received) + self.refused >= MOST_PARTS:
            msg = f"a request has at most {MOST_PARTS} parts"
            raise BadBody(msg)
        if media != DICOM:
            self.refused += 1
            return None
        self.received.append(_Received(self.folder / f"{len(self.received):06d}"))
        self._part = _Part(self.received[-1].file, self.most)
        return self._part  # type: ignore[return-value]

    def end_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self.received[-1].content_hash = self._part.digest.hexdigest()
            self._part = None

    def abandon(self) -> None:
        if self._part is not None:
            with contextlib.suppress(OSError):
                self._part.drop()


async def _receive(service: Service, storage: Storage, request: Request, receiver: _Receiver) -> None:
    media, parameters = content_type(request.headers.get("content-type", ""))
    if media == RELATED and parameters.get("type", DICOM).lower() == DICOM and parameters.get("boundary"):
        reader = PartReader(parameters["boundary"].encode("latin-1", "replace"), receiver.open_part, receiver.end_part)
        feed = reader.feed
    elif media == DICOM:
        reader = None
        part = receiver.open_part({})
        assert part is not None
        feed = part.write  # type: ignore[assignment]
    else:
        raise HTTPException(415, f'objects come as multipart/related; type="{DICOM}", with a boundary, or one as {DICOM}')
    pending: list[bytes] = []  # joined, not grown: a single one is handed on without a copy
    size = 0
    storage.receiving += 1
    try:
        async for chunk in request.stream():
            pending.append(chunk)
            size += len(chunk)
            del chunk
            if size >= storage.piece:
                data, size = b"".join(pending), 0
                pending.clear()
                await service.run(feed, data)
                del data
        if pending:
            await service.run(feed, b"".join(pending))
        if reader is None:
            await service.run(receiver.end_part)
        elif not reader.is_whole:
            raise HTTPException(400, "the multipart body ends before its last boundary")
    except BadBody as error:
        raise HTTPException(400, str(error)) from error
    except _TooLargeError:
        raise HTTPException(413, f"an object has at most {service.web.max_object} bytes") from None
    except ClientDisconnect:
        raise HTTPException(400, "the body ended early") from None
    finally:
        storage.receiving -= 1
        receiver.abandon()


def _answer(received: Sequence[_Received], refused: int, base: str) -> tuple[int, bytes]:
    """Status and body of the answer (DICOM PS3.18 10.5.3 and I.2)."""
    references, failures, others = [], [], [_reason(0x0122) for _ in range(refused)]
    for item in received:
        same: dict[str, Any] = {"00081150": _uid(item.sop_class), "00081155": _uid(item.uid)}
        if item.failure and not item.uid:
            others.append(_reason(item.failure))
        elif item.failure:
            failures.append(same | _reason(item.failure))
        else:
            link = f"{base}/studies/{quote(item.study)}/series/{quote(item.series)}/instances/{quote(item.uid)}"
            warning = {"00081196": {"vr": "US", "Value": [item.warning]}} if item.warning else {}
            references.append(same | {"00081190": {"vr": "UR", "Value": [link]}} | warning)
    body: dict[str, Any] = {}
    studies = {item.study for item in received if not item.failure}
    if len(studies) == 1:
        body["00081190"] = {"vr": "UR", "Value": [f"{base}/studies/{quote(studies.pop())}"]}
    for tag, items in (("00081198", failures), ("00081199", references), ("0008119A", others)):
        if items:
            body[tag] = {"vr": "SQ", "Value": items}
    partly = failures or others or any(item.warning for item in received)
    return (409 if not references else 202 if partly else 200), orjson.dumps(body)


def _uid(uid: str) -> dict[str, object]:
    return {"vr": "UI", "Value": [uid]} if uid else {"vr": "UI"}


def _reason(code: int) -> dict[str, object]:
    return {"00081197": {"vr": "US", "Value": [code]}}


def routes(service: Service, metrics: Metrics) -> APIRouter:
    """Routes below the service's prefix."""
    router = APIRouter(tags=["STOW-RS"], default_response_class=Response)
    storage = Storage(service)

    async def store(request: Request, study: str | None) -> Response:
        if service.ingest is None:
            raise HTTPException(403, "this server stores nothing")
        try:
            media, _ = choose(accepted(request.headers.getlist("accept"), request.query_params.get("accept")), [JSON, "application/json"])
        except NotAcceptable as error:
            raise HTTPException(406, str(error)) from error
        try:
            folder = await service.run(storage.new_folder)
        except OSError as error:
            raise HTTPException(507, f"the folder of stored objects cannot be written ({type(error).__name__})") from error
        receiver = _Receiver(folder, service.web.max_object)
        try:
            await _receive(service, storage, request, receiver)
            if not receiver.received and not receiver.refused:
                raise HTTPException(400, "the body holds no objects")
            await _keep(service, storage, receiver.received, study)
        except OSError as error:
            reason = "there is no space for it" if error.errno in _NO_SPACE else f"it cannot be written ({type(error).__name__})"
            raise HTTPException(507, f"the request was not stored: {reason}") from error
        finally:
            # Shielded: the end of the server cuts off requests, and leaves nothing behind.
            await asyncio.shield(asyncio.wrap_future(service.threads.submit(shutil.rmtree, folder, ignore_errors=True)))
        for item in receiver.received:
            metrics.stored.labels("failed" if item.failure else "version" if item.warning else "stored").inc()
        status, body = _answer(receiver.received, receiver.refused, base_url(service, request))
        return Response(body, status, media_type=media)

    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "All objects are stored and can be searched for."},
        202: {"description": "Some are, or with warnings."},
        400: {"description": "The body cannot be understood."},
        403: {"description": "Not allowed here."},
        406: {"description": "The answer is DICOM JSON only."},
        409: {"description": "None is stored."},
        413: {"description": "Too large."},
        415: {"description": "The body is of another type."},
        507: {"description": "There is no space."},
    }
    body = {"requestBody": {"required": True, "content": {'multipart/related; type="application/dicom"': {"schema": {"type": "string"}}}}}

    @router.post("/studies", responses=answers, openapi_extra=body)
    async def store_objects(request: Request) -> Response:
        """Store objects of any studies."""
        return await store(request, None)

    @router.post("/studies/{study}", responses=answers, openapi_extra=body)
    async def store_objects_of_study(request: Request, study: Uid) -> Response:
        """Store objects of one study."""
        return await store(request, study)

    async def remove(instances: list[Instance]) -> Response:
        if not service.web.allow_delete or service.ingest is None:
            raise HTTPException(403, "removing is not enabled; start the server with --allow-delete")
        if not all(storage.is_ours(item) for item in instances):
            raise HTTPException(403, "only objects that were stored here can be removed")
        await service.run(storage.remove, instances)
        try:
            await storage.catalogue()
        except PixelsError as error:
            raise HTTPException(503, "the objects are removed, but the catalog could not be brought up to date") from error
        return Response(status_code=204)

    allowed: dict[int | str, dict[str, Any]] = {
        204: {"description": "Removed."},
        403: answers[403],
        404: {"description": "There is no such object."},
    }

    @router.delete("/studies/{study}", responses=allowed, status_code=204)
    async def delete_study(study: Uid) -> Response:
        """Remove a study that was stored here."""
        return await remove((await find_all(service, study))[1])

    @router.delete("/studies/{study}/series/{series}", responses=allowed, status_code=204)
    async def delete_series(study: Uid, series: Uid) -> Response:
        """Remove a series that was stored here."""
        return await remove((await find_all(service, study, series))[1])

    @router.delete("/studies/{study}/series/{series}/instances/{instance}", responses=allowed, status_code=204)
    async def delete_instance(study: Uid, series: Uid, instance: Uid) -> Response:
        """Remove an object that was stored here."""
        return await remove([(await find(service, study, series, instance))[1]])

    @router.post("/studies/{study}/series/{series}/reject/{code}", responses=allowed, status_code=204)
    async def reject_series(study: Uid, series: Uid, code: str) -> Response:
        """Remove a series that was stored here, in the words of viewers."""
        return await remove((await find_all(service, study, series))[1])

    return router


async def _keep(service: Service, storage: Storage, received: list[_Received], study: str | None) -> None:
    """Put what was received in its place, and have it catalogued."""
    snapshot = await service.snapshot()
    new = False
    for item in received:
        await service.decode(storage.take_in, item, study)
        if item.failure:
            continue
        found = await service.run(service.index.select, snapshot, "SOPInstanceUID = ?", [item.uid])
        before = item.file
        try:
            await service.run(storage.keep, item, snapshot, found[0] if found else None)
        except OSError as error:
            item.failure = OUT_OF_RESOURCES if error.errno in _NO_SPACE else PROCESSING_FAILURE
        new = new or item.file != before
    if not new:
        return
    try:
        await storage.catalogue()
    except PixelsError as error:
        logger.error("stored objects could not be catalogued: %s", error)  # noqa: TRY400 - the message is the whole story
        for item in received:
            item.failure = item.failure or PROCESSING_FAILURE
        return
    snapshot = service.index.snapshot
    for item in received:
        if not item.failure and not await service.run(service.index.select, snapshot, "SOPInstanceUID = ?", [item.uid]):
            item.failure = PROCESSING_FAILURE
