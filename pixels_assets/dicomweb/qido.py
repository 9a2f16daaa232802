"""QIDO-RS: searches for studies, series and instances (DICOM PS3.18 10.6).

Holds how a search becomes rows and rows become an answer. What matching means is in `matching`, how columns do it in `columns`.

Conditions on attributes that have a column are answered from memory. Any other attribute, in sequences too, is looked up in the objects' metadata,
for the objects that the rest of the search leaves.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
from fastapi import APIRouter, HTTPException, Request, Response

from pixels_assets.dicomweb.columns import Level, Mask, Rows
from pixels_assets.dicomweb.index import Index, Instance, Snapshot
from pixels_assets.dicomweb.matching import BadQuery, Condition, Path, Query, parse_query
from pixels_assets.dicomweb.model import BY_KEYWORD, BY_PATH, INSTANCE, KNOWN, REQUIRED, SERIES, STUDY, elements
from pixels_assets.dicomweb.negotiation import JSON, NotAcceptable, accepted, choose
from pixels_assets.dicomweb.service import Service, Uid
from pixels_assets.dicomweb.wado import base_url

__all__ = ["Answer", "routes", "search"]

MOST_RESULTS = 20_000
"""Results of one answer; a client that wants more asks for the next page."""
MOST_SCANNED = 200_000
"""Objects whose metadata one search may read."""
SCAN_SECONDS = 60.0
_QUICK_RESULTS = 200
"""So many results are written in a millisecond or two."""

_LEVELS = (STUDY, SERIES, INSTANCE)
_MORE_REMAIN = "The number of results exceeded the maximum supported by the server. Additional results can be requested."
_NOT_FUZZY = "The fuzzymatching parameter is not supported. Only literal matching has been performed."
_URL, _AVAILABILITY, _CHARSET = 0x00081190, 0x00080056, 0x00080005
_STUDY_KEY, _SERIES_KEY = "StudyInstanceUID", "SeriesInstanceUID"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a search found.

    Parameters
    ----------
    rows : list of str
        JSON objects of the page.
    total : int
        Results on all pages.
    more : bool
        Results follow behind the page.
    """

    rows: list[str]
    total: int
    more: bool


def search(index: Index, snapshot: Snapshot, query: Query, level: str, base: str, study: str | None = None, series: str | None = None) -> Answer:
    """Search one level.

    Parameters
    ----------
    index : Index
    snapshot : Snapshot
    query : Query
    level : str
        ``study``, ``series`` or ``instance``.
    base : str
        Address of the service, for links.
    study, series : str, optional
        Only what lies in this study and series.

    Raises
    ------
    HTTPException
        413: too many objects would have to be read.
    """
    found = _Search(index, snapshot, query, study, series)
    limit = MOST_RESULTS if query.limit is None else min(query.limit, MOST_RESULTS)
    if level == INSTANCE:
        instances, total = found.instances(query.offset, limit)
        rows = _instance_rows(index, snapshot, instances, query, base)
    else:
        matched = found.rows(level)
        total = snapshot.studies.count if matched is None else len(matched)
        if matched is None and level == SERIES:
            total = snapshot.series.count
        page = np.arange(min(query.offset, total), min(query.offset + limit, total), dtype=np.int32)
        rows = _rows(index, snapshot, page if matched is None else matched[page], query, level, base)
    return Answer(rows, total, more=query.offset + len(rows) < total and len(rows) > 0)


def is_quick(snapshot: Snapshot, query: Query, level: str) -> bool:
    """Whether a search for studies or series takes a few milliseconds at most: changing to a thread and back costs as much, and more under load."""
    if level == INSTANCE or query.limit is None or query.limit > _QUICK_RESULTS or _fields(query, level)[1]:
        return False
    by_level, deep = _sorted_out(snapshot, query)
    return not deep and snapshot.studies.is_quick(by_level[STUDY]) and snapshot.series.is_quick(by_level[SERIES])


def _sorted_out(snapshot: Snapshot, query: Query) -> tuple[dict[str, list[tuple[str, Condition]]], list[Condition]]:
    """Conditions that columns of studies and of series answer, and those that none answers."""
    by_level: dict[str, list[tuple[str, Condition]]] = {STUDY: [], SERIES: []}
    deep: list[Condition] = []
    levels = {STUDY: snapshot.studies, SERIES: snapshot.series}
    for condition in query.conditions:
        known = BY_PATH.get(condition.path)
        if known is not None and known.level in levels and known.keyword in levels[known.level].columns:
            by_level[known.level].append((known.keyword, condition))
        else:
            deep.append(condition)
    return by_level, deep


class _Search:
    """One search, from its conditions to rows."""

    def __init__(self, index: Index, snapshot: Snapshot, query: Query, study: str | None, series: str | None) -> None:
        self._index = index
        self._snapshot = snapshot
        self._scope = study, series
        self._by_level, self._deep = _sorted_out(snapshot, query)

    def rows(self, level: str) -> Rows | None:
        """Rows of studies or series, in order; None for all."""
        asked = [condition for found in self._by_level.values() for _, condition in found] + self._deep
        key = (level, self._scope, frozenset(replace(condition, values=tuple(sorted(condition.values))) for condition in asked))
        found: Rows | None = self._snapshot.found.peek(key)
        if found is not None:
            return found
        found = self._find_rows(level)
        if found is not None:
            self._snapshot.found.put(key, found)
        return found

    def _find_rows(self, level: str) -> Rows | None:
        if level == STUDY and not (self._by_level[SERIES] or self._deep or self._scope[1]):
            if self._scope[0] is None:
                return self._snapshot.studies.rows(self._by_level[STUDY])
            studies = self._study_mask()
            return None if studies is None else np.flatnonzero(studies).astype(np.int32)
        series = self._series_mask()
        if self._deep:
            kept = self._scan(series)
            series = np.zeros(self._snapshot.series.count, np.bool_)
            series[[row for row, _ in kept]] = True
        if level == SERIES:
            return None if series is None else np.flatnonzero(series).astype(np.int32)
        assert series is not None  # one of the three was asked for
        return np.unique(self._snapshot.study_of[series])

    def _study_mask(self) -> Mask | None:
        within = None
        if self._scope[0] is not None:
            within = np.zeros(self._snapshot.studies.count, np.bool_)
            within[self._snapshot.studies.find(_STUDY_KEY, self._scope[0])] = True
        return self._snapshot.studies.match(self._by_level[STUDY], within)

    def _series_mask(self) -> Mask | None:
        snapshot = self._snapshot
        study, series = self._scope
        if study is not None and not self._by_level[STUDY]:
            # The series of one study lie side by side: nothing else is looked at.
            mask: Mask | None = np.zeros(snapshot.series.count, np.bool_)
            assert mask is not None
            for row in snapshot.studies.find(_STUDY_KEY, study):
                mask[snapshot.first_series[row] : snapshot.first_series[row + 1]] = True
        else:
            studies = self._study_mask()
            mask = None if studies is None else studies[snapshot.study_of]
        if series is not None:
            within = np.zeros(snapshot.series.count, np.bool_)
            within[snapshot.series.find(_SERIES_KEY, series)] = True
            mask = within if mask is None else mask & within
        return snapshot.series.match(self._by_level[SERIES], mask)

    def instances(self, offset: int, limit: int) -> tuple[list[Instance], int]:
        """One page of instances, and how many there are on all."""
        if self._deep:
            kept = self._scan(self._series_mask())
            return [item for _, item in kept[offset : offset + limit]], len(kept)
        rows = self.rows(SERIES)
        if rows is None:
            rows = np.arange(self._snapshot.series.count, dtype=np.int32)
        counts = self._snapshot.series.numbers("NumberOfSeriesRelatedInstances", rows)
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        page: list[Instance] = []
        place = int(np.searchsorted(ends, offset, side="right"))
        skip = offset - (int(ends[place - 1]) if place else 0)
        while len(page) < limit and place < len(rows):
            page += self._of_series(int(rows[place]))[skip:]
            place, skip = place + 1, 0
        return page[:limit], total

    def _of_series(self, row: int) -> tuple[Instance, ...]:
        ((study, series),) = self._snapshot.series.take(np.array([row], np.int32), [_STUDY_KEY, _SERIES_KEY])
        return self._index.instances_of(self._snapshot, str(study), str(series)).instances

    # --- what is not in memory

    def _scan(self, series: Mask | None) -> list[tuple[int, Instance]]:
        """Objects of some series that meet the conditions which no column answers, with the rows of their series, in order."""
        end = time.monotonic() + SCAN_SECONDS
        shallow = [condition for condition in self._deep if condition.path in BY_PATH]
        in_meta = [condition for condition in self._deep if condition not in shallow]
        rows = np.arange(self._snapshot.series.count, dtype=np.int32) if series is None else np.flatnonzero(series).astype(np.int32)
        candidates = self._candidates(rows, shallow)
        found = [(row, item) for row, item in candidates if all(_in_values(item, condition) for condition in shallow)]
        if not in_meta:
            return found
        if len(found) > MOST_SCANNED:
            msg = f"this search would read the metadata of {len(found)} objects; add conditions that leave at most {MOST_SCANNED}"
            raise HTTPException(413, msg)
        kept = []
        for at in range(0, len(found), 2000):
            if time.monotonic() > end:
                msg = f"the search took more than {SCAN_SECONDS:g} s; add conditions that leave fewer objects"
                raise HTTPException(413, msg)
            piece = found[at : at + 2000]
            texts = self._index.read_column(self._snapshot, [item for _, item in piece], "meta")
            kept += [(row, item) for row, item in piece if _in_meta(texts.get(item.path), in_meta)]
        return kept

    def _candidates(self, rows: Rows, shallow: Sequence[Condition]) -> list[tuple[int, Instance]]:
        for condition in shallow:
            if BY_PATH[condition.path].keyword == "SOPInstanceUID":  # the only one that few objects share
                return self._named(rows, condition.values)
        total = int(self._snapshot.series.numbers("NumberOfSeriesRelatedInstances", rows).sum())
        if total > 10 * MOST_SCANNED:
            msg = f"this search would look at {total} objects; add conditions that leave at most {10 * MOST_SCANNED}"
            raise HTTPException(413, msg)
        return [(int(row), item) for row in rows for item in self._of_series(int(row))]

    def _named(self, rows: Rows, uids: Sequence[str]) -> list[tuple[int, Instance]]:
        """Objects of some series that have one of these UIDs."""
        marks = ", ".join("?" * len(uids))
        instances = self._index.select(self._snapshot, f"SOPInstanceUID in ({marks})", uids)
        places = self._snapshot.rows_of_series({(item.study, item.series) for item in instances})
        wanted = np.zeros(self._snapshot.series.count, np.bool_)
        wanted[rows] = True
        found = [(places[item.study, item.series], item) for item in instances if (item.study, item.series) in places]
        return sorted(((row, item) for row, item in found if wanted[row]), key=lambda pair: pair[0])


def _in_values(item: Instance, condition: Condition) -> bool:
    value = item.values.get(BY_PATH[condition.path].keyword)
    return condition.accepts_any(str(value).split("\\")) if isinstance(value, str) else condition.accepts(value)


def _in_meta(text: str | None, conditions: Iterable[Condition]) -> bool:
    if text is None:
        return False
    model = orjson.loads(text)
    return all(condition.accepts_any(values_at(model, condition.path)) for condition in conditions)


def values_at(model: dict[str, Any], path: Path) -> list[object]:
    """Values of an attribute in a DICOM JSON model, through all items of the sequences on the way."""
    found = model.get(f"{path[0]:08X}", {}).get("Value") or []
    if len(path) > 1:
        return [value for item in found if isinstance(item, dict) for value in values_at(item, path[1:])]
    return [_joined(value) if isinstance(value, dict) else value for value in found]


def _joined(name: dict[str, str]) -> str:
    return "=".join(name.get(group, "") for group in ("Alphabetic", "Ideographic", "Phonetic")).rstrip("=")


# Answers


def _fields(query: Query, level: str) -> tuple[list[str], list[int]]:
    """Keywords of columns that an answer has, and tags that are looked up in metadata.

    Of a lower level, columns in memory are given; what only single objects have is none of a study's or series' business.
    """
    reach = _LEVELS[: _LEVELS.index(level) + 1]
    keywords = dict.fromkeys(name for part in reach for name in REQUIRED[part])
    tags: list[int] = []
    if query.all_fields:
        keywords |= dict.fromkeys(item.keyword for item in KNOWN if item.level in reach and item.sequence is None)
    for path in query.fields:
        known = BY_PATH.get(path)
        if known is not None and known.sequence is None:
            if known.level in reach or known.level == SERIES:
                keywords[known.keyword] = None
        elif path[0] not in {_URL, _AVAILABILITY, _CHARSET} and path[0] >> 16 not in {0x0002, 0x7FE0}:
            tags.append(path[0])
    return [name for name in keywords if name in BY_KEYWORD], sorted(set(tags))


def _rows(index: Index, snapshot: Snapshot, rows: Rows, query: Query, level: str, base: str) -> list[str]:
    if not len(rows):
        return []
    keywords, tags = _fields(query, level)
    own = snapshot.studies if level == STUDY else snapshot.series
    keys = own.take(rows, [_STUDY_KEY] if level == STUDY else [_STUDY_KEY, _SERIES_KEY])
    key = BY_KEYWORD[_STUDY_KEY if level == STUDY else _SERIES_KEY]
    columns = {key.tag: elements(key.tag, key.vr, [uids[-1] for uids in keys], always=True)}
    columns |= _elements(own, rows, [name for name in keywords if name in own.columns and name not in {_STUDY_KEY, _SERIES_KEY}], level)
    if level == SERIES:
        columns |= _elements(snapshot.studies, snapshot.study_of[rows], [name for name in keywords if name in snapshot.studies.columns], level)
    elif below := [name for name in keywords if BY_KEYWORD[name].level == SERIES and name in snapshot.series.columns]:
        columns |= _elements(snapshot.series, snapshot.first_series[rows].astype(np.int32), below, level)
    if tags:
        found = _representative_fields(index, snapshot, keys, tags)
        columns |= {tag: [row.get(tag, "") for row in found] for tag in tags}
    return _objects(columns, _links(base, keys), level)


def _elements(level: Level, rows: Rows, keywords: Sequence[str], target: str) -> dict[int, list[str]]:
    """Elements of some rows as JSON, by tag; those without a value only where the answer has to have them."""
    known = [BY_KEYWORD[name] for name in keywords]
    return {item.tag: level.columns[item.keyword].write(rows, item.tag, always=item.keyword in REQUIRED[target]) for item in known}


def _objects(columns: dict[int, list[str]], links: Sequence[str], level: str) -> list[str]:
    """Put elements together, in the order of their tags."""
    own = {
        _CHARSET: ['"00080005":{"vr":"CS","Value":["ISO_IR 192"]}'] * len(links),
        _URL: [f'"00081190":{{"vr":"UR","Value":["{link}"]}}' for link in links],
    }
    if level != SERIES:
        own[_AVAILABILITY] = ['"00080056":{"vr":"CS","Value":["ONLINE"]}'] * len(links)
    columns = columns | own
    return ["{" + ",".join(filter(None, row)) + "}" for row in zip(*(columns[tag] for tag in sorted(columns)), strict=True)]


def _links(base: str, keys: Sequence[Sequence[object]]) -> list[str]:
    links = [base] * len(keys)
    for name, uids in zip(("studies", "series", "instances"), zip(*keys, strict=True), strict=False):
        links = [f"{link}/{name}/{_quoted(str(uid))}" for link, uid in zip(links, uids, strict=True)]
    return links


def _quoted(uid: str) -> str:
    return uid if uid.isascii() and uid.replace(".", "").isalnum() else quote(uid, safe="")


def _instance_rows(index: Index, snapshot: Snapshot, instances: Sequence[Instance], query: Query, base: str) -> list[str]:
    if not instances:
        return []
    keywords, tags = _fields(query, INSTANCE)
    own = [BY_KEYWORD[name] for name in keywords if BY_KEYWORD[name].level == INSTANCE]
    columns = {
        item.tag: elements(item.tag, item.vr, [one.values.get(item.keyword) for one in instances], item.keyword in REQUIRED[INSTANCE]) for item in own
    }
    columns |= _parent_elements(snapshot, [(item.study, item.series) for item in instances], keywords)
    if tags:
        found = _from_meta(index, snapshot, instances, tags)
        columns |= {tag: [found.get(item.path, {}).get(tag, "") for item in instances] for tag in tags}
    return _objects(columns, _links(base, [(item.study, item.series, item.uid) for item in instances]), INSTANCE)


def _parent_elements(snapshot: Snapshot, keys: Sequence[tuple[str, str]], keywords: Sequence[str]) -> dict[int, list[str]]:
    """Elements that objects have of their study and series."""
    places = snapshot.rows_of_series(set(keys))
    rows = np.array([places[key] for key in keys], np.int32)
    series, studies = snapshot.series, snapshot.studies
    found = _elements(series, rows, [name for name in keywords if name in series.columns and name != _STUDY_KEY], INSTANCE)
    return found | _elements(studies, snapshot.study_of[rows], [name for name in keywords if name in studies.columns], INSTANCE)


def _from_meta(index: Index, snapshot: Snapshot, instances: Sequence[Instance], tags: Sequence[int]) -> dict[str, dict[int, str]]:
    """Elements out of objects' metadata, by path and tag."""
    found = {}
    for path, text in index.read_column(snapshot, instances, "meta").items():
        model = orjson.loads(text)
        names = ((tag, f"{tag:08X}") for tag in tags)
        found[path] = {
            tag: f'"{name}":{orjson.dumps(model[name]).decode()}' for tag, name in names if name in model and "BulkDataURI" not in model[name]
        }
    return found


def _representative_fields(index: Index, snapshot: Snapshot, keys: Sequence[Sequence[object]], tags: Sequence[int]) -> list[dict[int, str]]:
    """Elements that no column of the level holds: those of the first object of each study or series."""
    if not keys:
        return []
    marks = ", ".join("?" * len(keys))
    column = _STUDY_KEY if keys and len(keys[0]) == 1 else _SERIES_KEY
    first = f"{column} in ({marks}) qualify row_number() over (partition by {column} order by SeriesInstanceUID, InstanceNumber, SOPInstanceUID) = 1"
    firsts = {(item.study if column == _STUDY_KEY else item.series): item for item in index.select(snapshot, first, [uids[-1] for uids in keys])}
    found = _from_meta(index, snapshot, list(firsts.values()), tags)
    return [found.get(firsts[str(uids[-1])].path, {}) if str(uids[-1]) in firsts else {} for uids in keys]


# Routes

_PARAMETERS = [
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 0}, "description": "Most results of the answer."},
    {"name": "offset", "in": "query", "schema": {"type": "integer", "minimum": 0}, "description": "Results to pass over."},
    {"name": "fuzzymatching", "in": "query", "schema": {"type": "boolean"}, "description": "Accepted, not done; a Warning says so."},
    {
        "name": "includefield",
        "in": "query",
        "schema": {"type": "array", "items": {"type": "string"}},
        "description": "Attributes to add, by keyword or tag, or `all`.",
    },
    {"name": "PatientName", "in": "query", "schema": {"type": "string"}, "description": "As an example: any attribute, by keyword, tag or path."},
    {"name": "StudyDate", "in": "query", "schema": {"type": "string"}, "description": "A day or a range, such as 20200101-20201231."},
    {"name": "00081115.0020000E", "in": "query", "schema": {"type": "string"}, "description": "As an example: an attribute in a sequence."},
]
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"description": "What was found, with X-Total-Count.", "content": {JSON: {}}},
    204: {"description": "Nothing was found."},
    400: {"description": "The query cannot be understood."},
    406: {"description": "Results come as DICOM JSON only."},
    413: {"description": "Too many objects would have to be read."},
}


async def _respond(service: Service, request: Request, level: str, study: str | None = None, series: str | None = None) -> Response:
    try:
        query = parse_query(request.url.query)
        media, _ = choose(accepted(request.headers.getlist("accept"), request.query_params.get("accept")), [JSON, "application/json"])
    except BadQuery as error:
        raise HTTPException(400, str(error)) from error
    except NotAcceptable as error:
        raise HTTPException(406, str(error)) from error
    snapshot = await service.snapshot()
    base = base_url(service, request)
    asked = service.index, snapshot, query, level, base, study, series
    found = search(*asked) if is_quick(snapshot, query, level) else await service.run(search, *asked)
    response = Response(status_code=204) if not found.rows else Response(("[" + ",\n".join(found.rows) + "]").encode(), media_type=media)
    response.headers["X-Total-Count"] = str(found.total)
    response.headers["Cache-Control"] = "private, no-cache"
    warnings = [_MORE_REMAIN] * found.more + [_NOT_FUZZY] * query.fuzzy
    for text in warnings:
        response.headers.append("Warning", f'299 {request.url.netloc or "pixels"}: "{text}"')
    return response


def routes(service: Service) -> APIRouter:
    """Routes below the service's prefix."""
    router = APIRouter(tags=["QIDO-RS"], default_response_class=Response)

    def search_route(path: str, summary: str) -> Callable[[Any], Any]:
        return router.get(path, summary=summary, responses=_ANSWERS, openapi_extra={"parameters": _PARAMETERS})

    @search_route("/studies", "Search for studies")
    async def search_studies(request: Request) -> Response:
        return await _respond(service, request, STUDY)

    @search_route("/series", "Search for series of all studies")
    async def search_all_series(request: Request) -> Response:
        return await _respond(service, request, SERIES)

    @search_route("/instances", "Search for instances of all studies")
    async def search_all_instances(request: Request) -> Response:
        return await _respond(service, request, INSTANCE)

    @search_route("/studies/{study}/series", "Search for series of a study")
    async def search_series(request: Request, study: Uid) -> Response:
        return await _respond(service, request, SERIES, study)

    @search_route("/studies/{study}/instances", "Search for instances of a study")
    async def search_study_instances(request: Request, study: Uid) -> Response:
        return await _respond(service, request, INSTANCE, study)

    @search_route("/studies/{study}/series/{series}/instances", "Search for instances of a series")
    async def search_instances(request: Request, study: Uid, series: Uid) -> Response:
        return await _respond(service, request, INSTANCE, study, series)

    return router
