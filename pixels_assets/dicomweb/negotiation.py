"""Which representation a client wants: Accept headers and their stand-ins in the query (DICOM PS3.18 8.3.3 and 8.7, RFC 9110 12.5).

Holds parsing and choosing. Must not know what a representation is made of.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["ANY_SYNTAX", "DICOM", "JSON", "OCTETS", "MediaRange", "NotAcceptable", "accepted", "choose", "content_type", "parse_accept", "takes_gzip"]

DICOM = "application/dicom"
JSON = "application/dicom+json"
OCTETS = "application/octet-stream"
RELATED = "multipart/related"
ANY_SYNTAX = "*"

_PARAMETER = re.compile(r""";\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;,"\s]*)\s*""")
_RANGE = re.compile(rf"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*((?:{_PARAMETER.pattern})*)\s*(?:;\s*)?(?:,|$)""")
_MOST = 8192


class NotAcceptable(ValueError):  # noqa: N818 - it names the request's fault, which becomes a 406
    """No representation that a client accepts is available."""


@dataclass(frozen=True, slots=True)
class MediaRange:
    """One entry of an Accept header.

    Parameters
    ----------
    media : str
        Lower case, such as ``application/dicom`` or ``*/*``; of multipart/related, the type of its parts.
    multipart : bool
        The parts are wanted in multipart/related.
    transfer_syntax : str or None
        UID, ``*`` for any, None where nothing is said.
    quality : float
    """

    media: str
    multipart: bool = False
    transfer_syntax: str | None = None
    quality: float = 1.0

    def matches(self, media: str) -> bool:
        """Whether a media type is in the range."""
        if self.media in {"*/*", media}:
            return True
        return self.media.endswith("/*") and media.startswith(self.media[:-1])


def parse_accept(text: str) -> list[MediaRange]:
    """Read an Accept header, the most wanted first. What is malformed is passed over.

    Examples
    --------
    >>> parse_accept('multipart/related; type="application/dicom"; transfer-syntax=*')
    [MediaRange(media='application/dicom', multipart=True, transfer_syntax='*', quality=1.0)]
    """
    found = []
    at, text = 0, text[:_MOST]
    while at < len(text):
        match = _RANGE.match(text, at)
        if match is None:
            at = text.find(",", at) + 1 or len(text)
            continue
        at = match.end() if match.end() > at else len(text)
        media = match[1].lower()
        parameters = {name.lower(): _unquoted(value) for name, value in _PARAMETER.findall(match[2])}
        multipart = media == RELATED
        if multipart:
            media = parameters.get("type", "*/*").lower() or "*/*"
        quality = _quality(parameters.get("q", "1"))
        if quality > 0:
            found.append(MediaRange(media, multipart, parameters.get("transfer-syntax") or None, quality))
    return sorted(found, key=lambda item: -item.quality)


def _unquoted(value: str) -> str:
    return re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value


def _quality(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 1.0


def accepted(headers: Iterable[str], query: str | None) -> list[MediaRange]:
    """Give what a client accepts: the query parameter before the header (DICOM PS3.18 8.3.3.1), anything when it says nothing."""
    found = parse_accept(query) if query else []
    header = ", ".join(headers)  # several lines are one list (RFC 9110 5.3)
    return found or parse_accept(header) or ([MediaRange("*/*")] if not header.strip(" ,") else [])


def takes_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header names gzip, and not to refuse it."""
    for item in header.lower().split(","):
        name, _, quality = item.partition(";")
        if name.strip() == "gzip":
            return _quality(quality.partition("=")[2].strip() or "1") > 0
    return False


def choose(wanted: Iterable[MediaRange], offered: Sequence[str]) -> tuple[str, MediaRange]:
    """Choose a media type among those offered, the preferred one first.

    Raises
    ------
    NotAcceptable
        None of them is wanted.
    """
    for item in wanted:
        for media in offered:
            if item.matches(media):
                return media, item
    msg = f"available are {', '.join(offered)}"
    raise NotAcceptable(msg)


def content_type(header: str) -> tuple[str, dict[str, str]]:
    """Media type, lower case, and parameters of a Content-Type header; '' for a malformed one."""
    match = re.match(rf"\s*([\w!#$%&'*+.^`|~-]+/[\w!#$%&'*+.^`|~-]+)\s*((?:{_PARAMETER.pattern})*)\s*;?\s*$", header[:_MOST])
    if match is None:
        return "", {}
    return match[1].lower(), {name.lower(): _unquoted(value) for name, value in _PARAMETER.findall(match[2])}
