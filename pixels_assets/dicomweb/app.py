"""The application: all routes of the server, put together.

Holds the assembly, health, metrics and the page of the interface. Must not know DICOM.
"""

import contextlib
import gc
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp

from pixels_assets import __version__
from pixels_assets.dicomweb import qido, rendered, stow, wado
from pixels_assets.dicomweb.connections import watched
from pixels_assets.dicomweb.guard import Guard
from pixels_assets.dicomweb.index import Index
from pixels_assets.dicomweb.metrics import Metrics
from pixels_assets.dicomweb.objects import Objects
from pixels_assets.dicomweb.sending import NoRoom
from pixels_assets.dicomweb.service import PREFIX, Busy, Ingest, Service, WebSettings, is_loopback
from pixels_assets.dicomweb.viewer import viewer_routes
from pixels_assets.errors import UsageError, place_of
from pixels_assets.settings import Settings

__all__ = ["create_app", "serve"]

logger = logging.getLogger(__name__)

_LAST_SECONDS = 8
"""So long do requests have to end when the server is told to: less than what is waited for before it is killed, often 10 s."""

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>pixels: interface</title>
<style>body{font:15px sans-serif;max-width:60em;margin:2em auto;padding:0 1em}code{background:#eee;padding:.1em .3em}dt{margin-top:.8em}</style>
<h1>DICOMweb of pixels</h1>
<p>Machine-readable: <a href="/openapi.json">openapi.json</a>. <a href="/health">Health</a>, <a href="/metrics">metrics</a>.</p>
<dl id="paths"></dl><script>
fetch("/openapi.json").then(r=>r.json()).then(doc=>{const list=document.getElementById("paths");
for(const [path,methods] of Object.entries(doc.paths))for(const [method,about] of Object.entries(methods)){
const dt=document.createElement("dt"),code=document.createElement("code");code.textContent=method.toUpperCase()+" "+path;dt.append(code);
const dd=document.createElement("dd");dd.textContent=about.description||about.summary||"";list.append(dt,dd)}})</script>
"""


def create_app(settings: Settings, web: WebSettings, ingest: Ingest | None = None, prepare: Callable[[], None] | None = None) -> ASGIApp:
    """Make the server's application.

    Parameters
    ----------
    settings : Settings
    web : WebSettings
    ingest : callable, optional
        Brings in what is new in a folder; without it nothing can be stored.
    prepare : callable, optional
        Makes what takes long at the first ingest; runs beside the first requests.

    Raises
    ------
    UsageError
        There is no lake, or the address can be reached by others and no token is set.
    """
    if not is_loopback(web.host) and not web.token:
        msg = f"others can reach {web.host}: set a token with --token or PIXELS_TOKEN, or listen at 127.0.0.1"
        raise UsageError(msg)
    service = Service(settings, web, Index(settings.lake), Objects(settings.limits), ingest)
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if prepare is not None:
            service.threads.submit(prepare)
        yield
        service.index.close()

    app = FastAPI(
        title="pixels DICOMweb",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={"4XX": {"description": "The request cannot be understood, or is not for this client."}},
    )
    app.state.service = service
    app.include_router(qido.routes(service), prefix=PREFIX)
    app.include_router(wado.routes(service), prefix=PREFIX)
    app.include_router(rendered.routes(service), prefix=PREFIX)
    app.include_router(stow.routes(service, metrics), prefix=PREFIX)
    app.include_router(rendered.uri_routes(service))

    @app.exception_handler(NoRoom)
    @app.exception_handler(Busy)
    async def busy(request: Request, error: Exception) -> Response:
        return Response('{"detail":"the server is busy"}', 503, {"Retry-After": "2"}, "application/json")

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        # DICOM PS3.18 8.5: 400. Names of parameters, never the values.
        names = sorted({str(item["loc"][-1]) for item in error.errors()})
        return JSONResponse({"detail": f"missing or malformed: {', '.join(names)}"}, 400)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        logger.error("a request failed: %s", place_of(error))
        return Response('{"detail":"internal error"}', 500, media_type="application/json")

    @app.get("/health", tags=["server"])
    async def health() -> dict[str, object]:
        """Whether the server answers, and what it knows of the lake."""
        snapshot = service.index.snapshot
        counts = {"studies": snapshot.studies.count, "series": snapshot.series.count, "instances": snapshot.instances}
        return {"status": "ok", "version": __version__, "lake_version": snapshot.versions["object_catalog"], **counts}

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def read_metrics() -> Response:
        """Figures for Prometheus."""
        snapshot = service.index.snapshot
        metrics.gauge("pixels_lake_version", "Version of object_catalog that is served.", snapshot.versions["object_catalog"])
        metrics.gauge("pixels_load_seconds", "Time that loading that version took.", snapshot.seconds)
        metrics.gauge("pixels_studies", "Studies served.", snapshot.studies.count)
        metrics.gauge("pixels_instances", "Instances served.", snapshot.instances)
        metrics.gauge("pixels_answers_bytes", "Bytes of answers that wait to be taken.", service.room.taken)
        for name, weight in service.objects.weights.items():
            metrics.gauge(f"pixels_members_{name}_bytes", f"Bytes of archive members kept in {name}.", weight)
        for name, (weight, hits, misses) in {"frames": service.frames.figures, "metadata": service.metadata.figures}.items():
            metrics.gauge(f"pixels_{name}_cache_bytes", f"Bytes of the cache of {name}.", weight)
            metrics.gauge(f"pixels_{name}_cache_hits", f"Hits of the cache of {name}.", hits)
            metrics.gauge(f"pixels_{name}_cache_misses", f"Misses of the cache of {name}.", misses)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/docs", include_in_schema=False)
    async def page() -> Response:
        return Response(_PAGE, media_type="text/html")

    app.include_router(viewer_routes(service))  # last: it has the page for every address that nothing else has
    return Guard(app, web, metrics)


def _settle() -> None:
    """Take what is there now, most of it imported code, out of what the collector of cycles passes over while requests wait."""
    gc.collect()
    gc.freeze()


def _try_address(web: WebSettings) -> None:
    """Find out before anything is loaded whether the address is free."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in web.host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((web.host, web.port))
    except OSError as error:
        msg = f"cannot listen at {web.host}, port {web.port} ({error.strerror or error}): end what listens there, or give another --port or --host"
        raise UsageError(msg) from error


def serve(
    settings: Settings,
    web: WebSettings,
    ingest: Ingest | None = None,
    prepare: Callable[[], None] | None = None,
    *,
    say: Callable[[str], None] = logger.info,
) -> None:
    """Serve until interrupted; requests that are being answered then have a few seconds more.

    Raises
    ------
    UsageError
        As `create_app`, or nothing can listen at the address.
    """
    import uvicorn

    def prepared() -> None:
        if prepare is not None:
            prepare()
        _settle()

    _try_address(web)
    app = create_app(settings, web, ingest, prepared)
    _settle()
    host = f"[{web.host}]" if ":" in web.host else web.host
    say(f"viewer: http://{host}:{web.port}/  DICOMweb: http://{host}:{web.port}{PREFIX}  (Ctrl-C ends it)")
    config = uvicorn.Config(
        app,
        host=web.host,
        port=web.port,
        access_log=False,
        log_level="warning",
        server_header=False,
        limit_concurrency=web.waiting + web.readers,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_LAST_SECONDS,
        h11_max_incomplete_event_size=64 * 1024,
    )
    watched(config, web.header_seconds)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run()
