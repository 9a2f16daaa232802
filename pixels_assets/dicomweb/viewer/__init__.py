"""The viewer: static files of OHIF, where they are installed. The server runs without them and says how to get them."""

from fastapi import APIRouter, Request, Response

from pixels_assets.dicomweb.service import Service

__all__ = ["viewer_routes"]

_MISSING = """<!doctype html><html lang="en"><meta charset="utf-8"><title>pixels</title>
<body style="font: 16px sans-serif; max-width: 40em; margin: 3em auto">
<h1>The viewer is not installed</h1>
<p>DICOMweb is served under <a href="/dicom-web/studies?limit=25">/dicom-web</a>; its interface is described <a href="/docs">here</a>.</p>
<p>To look at images, run <code>make view</code> in the checkout. It needs Node.js, once.</p>
"""


def viewer_routes(service: Service) -> APIRouter:
    """Routes of the viewer, at the root."""
    router = APIRouter(include_in_schema=False)

    @router.get("/")
    async def missing(request: Request) -> Response:
        return Response(_MISSING, media_type="text/html")

    return router
