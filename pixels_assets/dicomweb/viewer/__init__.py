"""The viewer: static files of OHIF, where they are installed, and their configuration for this server.

Holds the routes at the root. The files are taken from the package as they are; the server runs without them and says how to get them.
Must not know DICOM.
"""

import os
import re
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse

from pixels_assets.dicomweb.service import Service
from pixels_assets.settings import home

__all__ = ["viewer_folder", "viewer_routes"]

_MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>pixels</title>
<body style="font: 16px sans-serif; max-width: 40em; margin: 3em auto">
<h1>The viewer is not installed</h1>
<p>DICOMweb is served under <a href="/dicom-web/studies?limit=25">/dicom-web</a>; its interface is described <a href="/docs">here</a>.</p>
<p>To look at images, run <code>make view</code> in the checkout. It needs Node.js, once.</p>
"""
_CONFIG = Path(__file__).with_name("app-config.js")
# Names with a hash in them change with their content.
_HASHED = re.compile(r"(?:^|[./])[0-9a-f]{16,}\.(?:js|css|wasm|woff2?|svg|png)\Z")
_TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm", ".webmanifest": "application/manifest+json"}
# Nothing that the viewer loads may come from elsewhere, and nothing goes there.
_POLICY = (
    "default-src 'self' blob: data:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' blob: data:; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)


def viewer_folder() -> Path:
    """Folder of the viewer's files: PIXELS_VIEWER, else where `make view` installs them."""
    given = os.environ.get("PIXELS_VIEWER")
    return Path(given).expanduser() if given else home() / "var" / "viewer" / "node_modules" / "@ohif" / "app" / "dist"


def viewer_routes(service: Service) -> APIRouter:
    """Routes of the viewer, at the root: its files, its configuration, and its page for every other address."""
    router = APIRouter(include_in_schema=False)
    folder = viewer_folder()
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()} if folder.is_dir() else {}

    @router.get("/app-config.js")
    async def config() -> Response:
        return FileResponse(_CONFIG, media_type="text/javascript", headers={"Cache-Control": "no-cache"})

    @router.get("/{path:path}")
    async def file(path: str, request: Request) -> Response:
        found = files.get(path)
        if found is None:
            # The viewer has addresses of its own, such as /viewer?StudyInstanceUIDs=...; what looks like a file is none of them.
            if path.startswith("dicom-web") or "." in path.rpartition("/")[2]:
                return Response('{"detail":"there is nothing here"}', 404, media_type="application/json")
            found = files.get("index.html")
        if found is None:
            return Response(_MISSING, media_type="text/html")
        caching = "public, max-age=31536000, immutable" if _HASHED.search(found.name) else "no-cache"
        headers = {"Cache-Control": caching, "Content-Security-Policy": _POLICY}
        return FileResponse(found, media_type=_TYPES.get(found.suffix), headers=headers)

    return router
