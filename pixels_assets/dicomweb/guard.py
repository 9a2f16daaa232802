"""What every request passes before and after its route: who asks, from where, how long and how much, and what is written down about it.

Holds ASGI middleware and nothing about DICOM. The log has a route's pattern, never its values: UIDs and queries belong to patients.
"""

import asyncio
import hmac
import json
import logging
import re
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixels_assets.dicomweb.metrics import Metrics
from pixels_assets.dicomweb.service import PREFIX, SLASH, WebSettings, is_loopback

__all__ = ["COOKIE", "Guard"]

logger = logging.getLogger(__name__)

COOKIE = "pixels_token"
_OPEN = frozenset({"/health"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class _RefusedError(HTTPException):
    """What a request is refused for. Raised while a route reads the body too, where the application answers it like any other."""


class _StoppedError(Exception):
    """The client sends or takes too slowly."""


class Guard:
    """Middleware around the whole application.

    Parameters
    ----------
    app : ASGI application
    web : WebSettings
    metrics : Metrics
    """

    def __init__(self, app: ASGIApp, web: WebSettings, metrics: Metrics) -> None:
        self._app = app
        self._web = web
        self._metrics = metrics
        self._local = is_loopback(web.host)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self._app(scope, receive, send)
            return
        await self._serve(_with_slashes(scope), receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        seen: dict[str, Any] = {"status": 0, "bytes": 0, "begun": False, "waited": 0.0}
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        origin = self._origin(headers)
        method = scope["method"]
        if method == "HEAD":  # what GET gives, without its body (RFC 9110 9.3.2)
            scope = {**scope, "method": "GET"}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"], seen["begun"] = message["status"], True
                more = _HEADERS if not origin else [*_HEADERS[:3], *self._cors(origin)]
                message = {**message, "headers": [*message["headers"], *more]}
            else:
                if method == "HEAD":
                    message = {**message, "body": b""}
                seen["bytes"] += len(message.get("body", b""))
            begun = time.perf_counter()
            try:
                async with asyncio.timeout(self._web.idle_seconds):
                    await send(message)
            except TimeoutError:
                raise _StoppedError from None
            seen["waited"] += time.perf_counter() - begun
            if seen["waited"] > self._web.idle_seconds and seen["bytes"] < self._web.slowest * seen["waited"]:
                raise _StoppedError

        taken = 0

        async def receiving() -> Message:
            nonlocal taken
            gone = time.perf_counter() - started
            left = self._web.request_seconds - gone
            if left <= 0 or (taken < self._web.slowest * gone and gone > self._web.idle_seconds):
                raise _RefusedError(408, "the request took too long")
            try:
                message = await asyncio.wait_for(receive(), min(left, self._web.idle_seconds))
            except TimeoutError:
                raise _RefusedError(408, "the request's body did not come") from None
            taken += len(message.get("body", b""))
            if taken > self._web.max_body:
                raise _RefusedError(413, f"a request's body has at most {self._web.max_body} bytes")
            return message

        # A route that only answers must be able to wait for the client to leave, for as long as it likes.
        waits_for_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        with self._metrics.in_flight():
            try:
                self._check(scope, headers, origin)
                if scope["method"] == "OPTIONS" and origin:
                    await _answer(sending, 204, "", [])
                elif (entered := self._entering(scope)) is not None:
                    await _answer(sending, 303, "", entered)
                else:
                    await self._app(scope, receiving if waits_for_body else receive, sending)
            except _RefusedError as refused:
                if not seen["begun"]:
                    more = [(name.encode(), value.encode()) for name, value in (refused.headers or {}).items()]
                    await _answer(sending, refused.status_code, refused.detail, [*more, (b"connection", b"close")])
            except _StoppedError:
                logger.info("a client took too long to take its answer")
            except asyncio.CancelledError:
                # The server ends, and waits no longer.
                if not seen["begun"]:
                    await _answer(sending, 503, "the server ends", [(b"connection", b"close")])
            finally:
                self._note(method, scope, seen, time.perf_counter() - started)

    # --- who asks

    def _check(self, scope: Scope, headers: dict[str, str], origin: str) -> None:
        host = headers.get("host", "")
        name = _place(f"//{host}").hostname or "" if host.isascii() and not set(host) & set("/?#@\\ ") else ""
        # A page on the internet whose name leads here must not reach a server without a token (DNS rebinding).
        if self._local and not (is_loopback(name) or name == self._web.host or self._is_public(name)):
            raise _RefusedError(421, "this server answers to its own name only")
        if headers.get("origin") and not origin and not self._is_own(headers["origin"], host) and scope["method"] not in _SAFE:
            raise _RefusedError(403, "other origins may not change anything here")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise _RefusedError(400, "the length of the body is no number")
        if int(length) > self._web.max_body:
            raise _RefusedError(413, f"a request's body has at most {self._web.max_body} bytes")
        if self._web.token is None or scope["path"] in _OPEN or (scope["method"] == "OPTIONS" and origin):
            return
        if self._entering(scope) is None and not any(_same(given, self._web.token) for given in _tokens(headers)):
            raise _RefusedError(401, "a token is needed", {"www-authenticate": 'Bearer realm="pixels"'})

    def _is_public(self, name: str) -> bool:
        return self._web.public_url is not None and urlsplit(self._web.public_url).hostname == name

    def _is_own(self, origin: str, host: str) -> bool:
        parts = _place(origin)
        return parts.netloc == host or (self._web.public_url is not None and parts.netloc == urlsplit(self._web.public_url).netloc)

    def _entering(self, scope: Scope) -> list[tuple[bytes, bytes]] | None:
        """Turn the token in a page's address into a cookie, and lead to the address without it; None for everything else."""
        if self._web.token is None or scope["method"] != "GET" or b"token=" not in scope["query_string"]:
            return None
        if scope["path"].startswith("/dicom-web"):
            return None
        try:
            pairs = parse_qsl(scope["query_string"].decode("ascii"), keep_blank_values=True, max_num_fields=64)
        except ValueError:
            return None
        if not any(name == "token" and _same(value, self._web.token) for name, value in pairs):
            return None
        rest = urlencode([pair for pair in pairs if pair[0] != "token"])
        path = "/" + scope["path"].lstrip("/\\")
        place = urlsplit(path).path + (f"?{rest}" if rest else "")
        secure = b"; Secure" if scope.get("scheme") == "https" else b""
        cookie = f"{COOKIE}={quote(self._web.token, safe='')}; Path=/; HttpOnly; SameSite=Strict".encode("latin-1") + secure
        return [(b"location", place.encode("utf-8", "replace").decode("latin-1").encode("latin-1")), (b"set-cookie", cookie)]

    # --- other origins

    def _origin(self, headers: dict[str, str]) -> str:
        origin = headers.get("origin", "")
        return origin if origin in self._web.origins else ""

    @staticmethod
    def _cors(origin: str) -> list[tuple[bytes, bytes]]:
        return [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"),
            (b"access-control-allow-headers", b"Accept, Authorization, Content-Type, If-None-Match"),
            (b"access-control-expose-headers", b"ETag, Warning, X-Total-Count"),
            (b"vary", b"Origin"),
        ]

    # --- what is written down

    def _note(self, method: str, scope: Scope, seen: dict[str, Any], seconds: float) -> None:
        route = scope.get("route")
        pattern = getattr(route, "path_format", None) or getattr(route, "path", None) or "-"
        self._metrics.answered(method, pattern, seen["status"], seconds, seen["bytes"])
        logger.info("%s %s %d %d bytes %.1f ms", method, pattern, seen["status"], seen["bytes"], 1000 * seconds)


def _with_slashes(scope: Scope) -> Scope:
    """Keep slashes within UIDs from becoming borders of a path."""
    raw = scope.get("raw_path") or b""
    if b"%2f" not in raw.lower() or not scope["path"].startswith(f"{PREFIX}/"):
        return scope
    path = re.sub(rb"(?i)%2f", quote(SLASH).encode(), raw.partition(b"?")[0])
    return {**scope, "path": unquote(path.decode("latin-1"))}


def _place(address: str) -> SplitResult:
    """Take an address apart; nothing of one with half a bracket."""
    try:
        return urlsplit(address)
    except ValueError:
        return SplitResult("", "", "", "", "")


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode())


def _tokens(headers: dict[str, str]) -> list[str]:
    found = []
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        found.append(value.strip())
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    if cookie is not None:
        found.append(unquote(cookie.value))
    return found


async def _answer(send: Send, status: int, detail: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps({"detail": detail}).encode() if detail else b""
    kind = [(b"content-type", b"application/json")] if detail else []
    await send({"type": "http.response.start", "status": status, "headers": [*kind, (b"content-length", str(len(body)).encode()), *headers]})
    await send({"type": "http.response.body", "body": body})
