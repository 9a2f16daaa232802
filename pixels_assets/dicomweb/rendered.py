"""Pictures for people: rendered frames, thumbnails, documents and videos (DICOM PS3.18 8.3.5, 8.7.4, 10.4.1.1.3 and .4), and WADO-URI (9).

Holds parameters and encoding. How a frame is shown is the business of `pixels_assets.dicom.rendering`.
"""

import io
import math
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Request, Response
from fastapi.responses import StreamingResponse
from numpy.typing import NDArray
from PIL import Image

from pixels_assets.dicom.codecs import Codec, NoPixels, Reason
from pixels_assets.dicom.pixels import PixelSource, read_frame
from pixels_assets.dicom.reader import Header
from pixels_assets.dicom.rendering import Region, Window, render_viewport, window_of
from pixels_assets.dicomweb.frames import header_of
from pixels_assets.dicomweb.index import Instance, Snapshot
from pixels_assets.dicomweb.multipart import Boundary
from pixels_assets.dicomweb.negotiation import DICOM, MediaRange, NotAcceptable, accepted, choose
from pixels_assets.dicomweb.objects import Gone
from pixels_assets.dicomweb.sending import HeldResponse, Taken
from pixels_assets.dicomweb.service import Service, Uid
from pixels_assets.dicomweb.wado import MEDIA, bytes_of, find, find_all, frame_bytes, parse_frames, problem, send_instance

__all__ = ["routes"]

JPEG, PNG = "image/jpeg", "image/png"
MOST_PIXELS = 64 * 1024 * 1024
MOST_PICTURES = 200
"""Pictures of one answer about a study or series."""
_QUALITY = 90
_ALL: Region = (0.0, 0.0, 1e9, 1e9)
"""Region of a viewport that names none: to the edges, whatever lies behind them."""
_DOCUMENT = 0x00420011


@dataclass(frozen=True, slots=True)
class View:
    """How a frame is wanted.

    Parameters
    ----------
    viewport : tuple of int or None
        Width and height that the picture fits into, pixels.
    region : tuple of float or None
        Left, top, width and height of what is shown.
    window : Window or None
    quality : int
        Of a JPEG, 1 to 100.
    """

    viewport: tuple[int, int] | None = None
    region: Region | None = None
    window: Window | None = None
    quality: int = _QUALITY


def parse_view(parameters: Any) -> View:
    """Read the rendering parameters of a query.

    Raises
    ------
    HTTPException
        400: one is malformed.
    """
    quality = parameters.get("quality", parameters.get("imageQuality"))
    if quality is not None and not (quality.isascii() and quality.isdigit() and 1 <= int(quality[:9]) <= 100):
        raise HTTPException(400, "quality is a number from 1 to 100")
    viewport, region = _viewport(parameters.get("viewport", ""))
    return View(viewport, region, _window(parameters.get("window", "")), int(quality) if quality else _QUALITY)


def _warnings(parameters: Any) -> list[str]:
    """Say that nothing is written into pictures, to those who ask for it (DICOM PS3.18 8.3.5.1.1).

    Raises
    ------
    HTTPException
        400: it is no annotation that they ask for.
    """
    asked = parameters.get("annotation")
    if asked is None:
        return []
    values = [value.strip() for value in asked.split(",")]
    if not set(values) <= {"patient", "technique"}:
        raise HTTPException(400, "annotation is patient, technique, or both")
    return [f'299 pixels: "The following annotation values are not supported: {", ".join(values)}"']


def _viewport(text: str) -> tuple[tuple[int, int] | None, Region | None]:
    if not text:
        return None, None
    parts = text.split(",")
    numbers = [_number(part) for part in parts]
    sizes = numbers[:2]
    valid = 2 <= len(parts) <= 6 and all(size is not None and 1 <= size <= 16384 for size in sizes)
    if (
        not valid
        or math.prod(size or 0 for size in sizes) > MOST_PIXELS
        or any(number is None and part for number, part in zip(numbers, parts, strict=True))
    ):
        raise HTTPException(400, f"viewport is width,height or width,height,left,top,width,height, of at most {MOST_PIXELS} pixels")
    region = None
    if len(parts) > 2:
        left, top, width, height = (_ALL[at] if number is None else number for at, number in enumerate([*numbers[2:], None, None, None][:4]))
        if width == 0 or height == 0:
            raise HTTPException(400, "the region of a viewport has a width and a height")
        region = (left, top, width, height)
    return (int(sizes[0] or 1), int(sizes[1] or 1)), region


def _window(text: str) -> Window | None:
    if not text:
        return None
    parts = text.split(",")
    centre, width = (_number(part) for part in [*parts, "", ""][:2])
    function = parts[2].strip().lower() if len(parts) > 2 and parts[2].strip() else "linear"
    found = None
    if len(parts) in {2, 3} and centre is not None and width is not None and function in {"linear", "linear-exact", "sigmoid"}:
        found = window_of(centre, width, function)
    if found is None:
        raise HTTPException(400, "window is center,width and linear, linear-exact or sigmoid")
    return found


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and len(text) < 40 else None


def _picture(service: Service, snapshot: Snapshot, instance: Instance, frame: int, view: View, media: str) -> bytes:
    """Render and encode one frame, 0-based."""
    with service.objects.open(instance, snapshot.roots) as opened:
        header = header_of(opened, service.settings.limits)
        source = PixelSource.of(header) if isinstance(header, Header) else None
        if source is None:
            raise NoPixels(Reason.NO_PIXEL_DATA, "the object has no pixel data")
        found = read_frame(source, max_bytes=service.settings.limits.max_frame_bytes, index=frame)
        try:
            shown = render_viewport(found, source.dataset, viewport=view.viewport, region=view.region, window=view.window)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
    return _encode(shown, media, view.quality)


def _encode(shown: NDArray[np.uint8], media: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(shown)
    if media == PNG:
        image.save(buffer, "PNG", compress_level=3)
    elif max(image.size) > 65500:
        raise NotAcceptable("a JPEG has at most 65500 pixels a side; ask for image/png or a viewport")  # noqa: TRY003, EM101
    else:
        image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _wanted(request: Request) -> list[MediaRange]:
    return accepted(request.headers.getlist("accept"), request.query_params.get("accept"))


def _choose_picture(wanted: Sequence[MediaRange]) -> tuple[str, MediaRange]:
    return choose(wanted, [JPEG, PNG])


def _document(service: Service, snapshot: Snapshot, instance: Instance) -> tuple[str, bytes] | None:
    """Read the encapsulated document of an object and its type; None where it holds none."""
    with service.objects.open(instance, snapshot.roots) as opened:
        header = header_of(opened, service.settings.limits)
        if not isinstance(header, Header) or _DOCUMENT not in header.dataset:
            return None
        data, _ = bytes_of(header, header.dataset, _DOCUMENT)
        length = header.dataset.get("EncapsulatedDocumentLength")
        data = data or b""
        if isinstance(length, int) and 0 < length <= len(data):
            data = data[:length]
        media = str(header.dataset.get("MIMETypeOfEncapsulatedDocument") or "application/octet-stream").strip().lower()
        return media if media.isprintable() and media.isascii() and media.count("/") == 1 else "application/octet-stream", data


def _check_numbers(instance: Instance, numbers: Sequence[int]) -> None:
    frames = instance.values.get("NumberOfFrames")
    if max(numbers) >= (frames if isinstance(frames, int) and frames > 1 else 1):
        raise NoPixels(Reason.NO_SUCH_FRAME, "the object has no frame of that number")


async def _rendered(service: Service, request: Request, snapshot: Snapshot, instance: Instance, numbers: list[int]) -> Response:
    view, warnings = parse_view(request.query_params), _warnings(request.query_params)
    wanted = _wanted(request)
    if instance.values.get("MIMETypeOfEncapsulatedDocument"):
        document, taken = await service.made(_document, service, snapshot, instance, size=lambda found: len(found[1]) if found else 0)
        if document is not None:
            media, data = document
            if not any(item.matches(media) for item in wanted):
                msg = f"available is {media}"
                raise NotAcceptable(msg)
            # What a document holds is not ours: it may be looked at, but not run in our name.
            headers = {"Content-Type": media, "Content-Security-Policy": "sandbox; default-src 'none'", "Cache-Control": "private"}
            return HeldResponse([data], taken, headers=headers)
        taken.release()
    if MEDIA.get(instance.transfer_syntax.removesuffix(".1"), "").startswith("video/"):
        return await _video(service, request, snapshot, instance, wanted)
    media, chosen = _choose_picture(wanted)
    _check_numbers(instance, numbers)
    said = {"Warning": ", ".join(warnings)} if warnings else {}
    first, taken = await service.made(_picture, service, snapshot, instance, numbers[0], view, media, size=len)
    if len(numbers) == 1 and not chosen.multipart:
        return HeldResponse([first], taken, headers={"Content-Type": media, "Cache-Control": "private, max-age=60", **said})
    boundary = Boundary()
    headers = {"Content-Type": boundary.content_type(media), **said}
    if len(numbers) == 1:
        return HeldResponse([boundary.head(media, len(first)), first, b"\r\n" + boundary.tail], taken, headers=headers)
    ready = [(first, taken)]  # not held by the closure once it is sent

    async def parts() -> AsyncIterator[bytes]:
        for number in numbers:
            picture, taken = ready.pop() if ready else await service.made(_picture, service, snapshot, instance, number, view, media, size=len)
            with taken:
                yield boundary.head(media, len(picture)) + picture + b"\r\n"
        yield boundary.tail

    return StreamingResponse(parts(), headers=headers)


async def _video(service: Service, request: Request, snapshot: Snapshot, instance: Instance, wanted: Sequence[MediaRange]) -> Response:
    """Send a video as it is, or the range of it that a player asks for."""
    media, _ = choose(wanted, [MEDIA[instance.transfer_syntax.removesuffix(".1")]])
    index = await service.run(service.frame_index, snapshot, instance)
    if index.codec is not Codec.VIDEO:
        raise NoPixels(Reason.DECODE_FAILED, "the object is not the video that it says it is")
    work = partial(frame_bytes, service, snapshot, instance, index, range(index.frames), decode=False)
    (data,), taken = await service.made(lambda: [b"".join(work())], size=lambda found: len(found[0]))
    headers = {"Accept-Ranges": "bytes", "Cache-Control": "private"}
    unit, _, span = request.headers.get("range", "").partition("=")
    first, dash, last = span.partition("-")
    if unit.strip() == "bytes" and dash and "," not in span and (first + last).isascii() and (first + last).isdigit():
        start = int(first) if first else max(0, len(data) - int(last))
        stop = min(len(data), int(last) + 1) if first and last else len(data)
        if start >= stop:
            return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{len(data)}"})
        more = {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}", "Content-Type": media}
        return HeldResponse([data[start:stop]], taken, 206, headers | more)
    return HeldResponse([data], taken, headers=headers | {"Content-Type": media})


def _thumbnail(service: Service, snapshot: Snapshot, instances: Sequence[Instance]) -> bytes | None:
    """Thumbnail of the catalog for the first of some objects that has one, from the middle on."""
    middle = len(instances) // 2
    for at in [*range(middle, len(instances)), *range(middle)][:MOST_PICTURES]:
        found = service.index.read_column(snapshot, [instances[at]], "thumbnail").get(instances[at].path)
        if found:
            return bytes(found)
    return None


async def _send_thumbnail(service: Service, request: Request, snapshot: Snapshot, instances: Sequence[Instance]) -> Response:
    view = parse_view(request.query_params)
    data = await service.run(_thumbnail, service, snapshot, instances)
    if data is None:
        raise HTTPException(404, "there is no thumbnail")
    stored = PNG if data.startswith(b"\x89PNG") else JPEG
    media, _ = choose(_wanted(request), [stored, JPEG if stored == PNG else PNG])
    if view.viewport is not None or media != stored:
        data = await service.decode(_fitted, data, view, media)
    return Response(data, media_type=media, headers={"Cache-Control": "private, max-age=3600"})


def _fitted(data: bytes, view: View, media: str) -> bytes:
    with Image.open(io.BytesIO(data)) as opened:
        image = opened if opened.mode in {"L", "RGB"} else opened.convert("RGB")
        image.load()
    if view.viewport is not None and (image.width > view.viewport[0] or image.height > view.viewport[1]):
        image.thumbnail(view.viewport)
    return _encode(np.asarray(image), media, view.quality)


_PARAMETERS = [
    {"name": "accept", "in": "query", "schema": {"type": "string"}, "description": "Media type, instead of the header."},
    {"name": "quality", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": 100}, "description": "Of a JPEG."},
    {"name": "viewport", "in": "query", "schema": {"type": "string"}, "description": "width,height[,left,top,width,height]"},
    {"name": "window", "in": "query", "schema": {"type": "string"}, "description": "center,width[,linear|linear-exact|sigmoid]"},
]


def routes(service: Service) -> APIRouter:
    """Routes below the service's prefix."""
    router = APIRouter(tags=["WADO-RS rendered"], default_response_class=Response)
    answers: dict[int | str, dict[str, Any]] = {
        code: {"description": text}
        for code, text in {
            400: "A parameter is malformed.",
            404: "There is no such picture.",
            406: "Not available.",
            410: "The bytes are gone.",
        }.items()
    }
    shape = {"parameters": _PARAMETERS}

    async def pictures(request: Request, snapshot: Snapshot, instances: list[Instance]) -> Response:
        """Send a picture of each of some objects."""
        view, warnings = parse_view(request.query_params), _warnings(request.query_params)
        try:
            media, _ = _choose_picture(_wanted(request))
        except NotAcceptable as error:
            raise problem(error) from error
        refused = HTTPException(404, "none of the objects can be shown")

        async def made() -> AsyncIterator[tuple[bytes, Taken]]:
            nonlocal refused
            for item in instances[:MOST_PICTURES]:
                try:
                    picture = await service.made(_picture, service, snapshot, item, 0, view, media, size=len)
                except (Gone, NoPixels):
                    continue
                except (HTTPException, NotAcceptable) as error:  # not of this object in this view
                    refused = error if isinstance(error, HTTPException) else problem(error)
                    continue
                yield picture

        found = made()
        ready = await anext(found, None)
        if ready is None:
            raise refused
        boundary = Boundary()
        if len(instances) > MOST_PICTURES:
            warnings.append(f'299 pixels: "Only the first {MOST_PICTURES} objects are shown."')
        headers = {"Content-Type": boundary.content_type(media)} | ({"Warning": ", ".join(warnings)} if warnings else {})

        async def parts() -> AsyncIterator[bytes]:
            nonlocal ready
            while ready is not None:
                (data, taken), ready = ready, None
                with taken:
                    yield boundary.head(media, len(data)) + data + b"\r\n"
                ready = await anext(found, None)
            yield boundary.tail

        return StreamingResponse(parts(), headers=headers)

    async def one(request: Request, snapshot: Snapshot, instance: Instance, numbers: list[int]) -> Response:
        try:
            return await _rendered(service, request, snapshot, instance, numbers)
        except (Gone, NoPixels, NotAcceptable) as error:
            raise problem(error) from error

    async def thumbnail(request: Request, snapshot: Snapshot, instances: Sequence[Instance]) -> Response:
        try:
            return await _send_thumbnail(service, request, snapshot, instances)
        except NotAcceptable as error:
            raise problem(error) from error

    @router.get("/studies/{study}/rendered", responses=answers, openapi_extra=shape)
    async def render_study(request: Request, study: Uid) -> Response:
        """Send a picture of each object of a study."""
        return await pictures(request, *await find_all(service, study))

    @router.get("/studies/{study}/series/{series}/rendered", responses=answers, openapi_extra=shape)
    async def render_series(request: Request, study: Uid, series: Uid) -> Response:
        """Send a picture of each object of a series."""
        return await pictures(request, *await find_all(service, study, series))

    @router.get("/studies/{study}/series/{series}/instances/{instance}/rendered", responses=answers, openapi_extra=shape)
    async def render_instance(request: Request, study: Uid, series: Uid, instance: Uid) -> Response:
        """Send the first frame as a picture; a document or a video as it is."""
        snapshot, found = await find(service, study, series, instance)
        return await one(request, snapshot, found, [0])

    @router.get("/studies/{study}/series/{series}/instances/{instance}/frames/{frames}/rendered", responses=answers, openapi_extra=shape)
    async def render_frames(request: Request, study: Uid, series: Uid, instance: Uid, frames: str) -> Response:
        """Frames as pictures."""
        numbers = parse_frames(frames)
        if len(numbers) > MOST_PICTURES:
            raise HTTPException(400, f"at most {MOST_PICTURES} frames are rendered at once")
        snapshot, found = await find(service, study, series, instance)
        return await one(request, snapshot, found, numbers)

    @router.get("/studies/{study}/thumbnail", responses=answers, openapi_extra=shape)
    async def thumbnail_of_study(request: Request, study: Uid) -> Response:
        """Send a small picture of a study."""
        return await thumbnail(request, *await find_all(service, study))

    @router.get("/studies/{study}/series/{series}/thumbnail", responses=answers, openapi_extra=shape)
    async def thumbnail_of_series(request: Request, study: Uid, series: Uid) -> Response:
        """Send a small picture of a series."""
        return await thumbnail(request, *await find_all(service, study, series))

    @router.get("/studies/{study}/series/{series}/instances/{instance}/thumbnail", responses=answers, openapi_extra=shape)
    async def thumbnail_of_instance(request: Request, study: Uid, series: Uid, instance: Uid) -> Response:
        """Send a small picture of an object: that of the catalog."""
        snapshot, found = await find(service, study, series, instance)
        return await thumbnail(request, snapshot, [found])

    @router.get("/studies/{study}/series/{series}/instances/{instance}/frames/{frame}/thumbnail", responses=answers, openapi_extra=shape)
    async def thumbnail_of_frame(request: Request, study: Uid, series: Uid, instance: Uid, frame: str) -> Response:
        """Send a small picture of the object that a frame belongs to."""
        numbers = parse_frames(frame)
        snapshot, found = await find(service, study, series, instance)
        try:
            _check_numbers(found, numbers)
        except NoPixels as error:
            raise problem(error) from error
        return await thumbnail(request, snapshot, [found])

    return router


def uri_routes(service: Service) -> APIRouter:
    """Give the route of WADO-URI, at the root."""
    router = APIRouter(tags=["WADO-URI"], default_response_class=Response)

    @router.get("/wado", openapi_extra={"parameters": _PARAMETERS[2:3]})
    async def wado_uri(
        request: Request,
        study: Annotated[str, Query(alias="studyUID")],
        series: Annotated[str, Query(alias="seriesUID")],
        instance: Annotated[str, Query(alias="objectUID")],
        kind: Annotated[str, Query(alias="requestType")],
        media: Annotated[str, Query(alias="contentType")] = JPEG,
        frame: Annotated[int, Query(alias="frameNumber", ge=1, le=2**31)] = 1,
    ) -> Response:
        """One object as old clients ask for it (DICOM PS3.18 chapter 9)."""
        if kind.upper() != "WADO":
            raise HTTPException(400, "requestType is WADO")
        if "anonymize" in request.query_params:
            raise HTTPException(406, "this server does not anonymize")
        snapshot, found = await find(service, study, series, instance)
        wanted = [item.strip().lower() for item in media.split(",")]
        try:
            if DICOM in wanted:
                return await send_instance(service, snapshot, found, request.query_params.get("transferSyntax"))
            if not {JPEG, PNG, "image/*", "*/*"} & set(wanted):
                msg = f"available are {JPEG}, {PNG} and {DICOM}"
                raise NotAcceptable(msg)  # noqa: TRY301
            picture = PNG if PNG in wanted and JPEG not in wanted else JPEG
            data = await service.decode(_picture, service, snapshot, found, frame - 1, _old_view(request.query_params), picture)
        except (Gone, NoPixels, NotAcceptable) as error:
            raise problem(error) from error
        return Response(data, media_type=picture)

    return router


def _old_view(parameters: Any) -> View:
    """Read the rendering parameters of WADO-URI."""
    view = parse_view({"imageQuality": parameters.get("imageQuality")})
    rows, columns = _number(parameters.get("rows", "")), _number(parameters.get("columns", ""))
    sides = [side for side in (columns, rows) if side is not None]
    if any(not 1 <= side <= 16384 for side in sides):
        raise HTTPException(400, "rows and columns are numbers from 1 to 16384")
    viewport = (int(columns or 16384), int(rows or 16384)) if sides else None
    if len(sides) == 2 and math.prod(sides) > MOST_PIXELS:
        raise HTTPException(400, f"a picture has at most {MOST_PIXELS} pixels")
    centre, width = parameters.get("windowCenter"), parameters.get("windowWidth")
    window = _window(f"{centre},{width}") if centre and width else None
    return View(viewport, None, window, view.quality)
