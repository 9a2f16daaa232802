"""What readers and algorithms said about images: measurements of structured reports, segments of segmentations, regions of RT structure sets.

Holds the way from a data set to plain values. Must not read files, nor know what else is stored: references are given as they are written.

It takes what it finds: strict readers refuse objects that viewers write and show, and whether one does is another question.
"""

import datetime as dt
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence

MEASUREMENTS, SEGMENTATIONS = "measurements", "segmentations"

_SR = "1.2.840.10008.5.1.4.1.1.88."
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
CLASSES = {
    **dict.fromkeys((f"{_SR}22", f"{_SR}33", f"{_SR}34", f"{_SR}76"), MEASUREMENTS),  # Enhanced, Comprehensive, Comprehensive 3D, Extensible SR
    **dict.fromkeys((SEGMENTATION, LABEL_MAP, STRUCTURE_SET), SEGMENTATIONS),
}
"""What an object of a SOP class holds."""

Values = dict[str, Any]

_GROUP, _LIBRARY = "125007", "111028"
_REPORTS = {"126000", "126010", _GROUP}  # Imaging Measurement Report, Imaging Measurements, Measurement Group
_SITES = {"363698007", "G-C0E3"}  # Finding Site, in SNOMED CT and as it was written before
_MOST_ITEMS = 1_000_000


def read_measurements(dataset: Dataset) -> list[Values]:
    """Measurements of an imaging measurement report, DICOM PS3.16 TID 1500; none of other reports.

    Returns
    -------
    list of dict
        In the order of the document. A group that has a region or a point and no number is one, without a value.
    """
    if _code(dataset, "ConceptNameCodeSequence")[0] not in _REPORTS and _template(dataset) != "1500":
        return []
    said: Values = {
        "template": _template(dataset),
        "observed_at": _moment(dataset, "ContentDate", "ContentTime"),
        **_context(_items(dataset, "ContentSequence")),
    }
    rows: list[Values] = []
    stack: list[tuple[Dataset, Values]] = [(dataset, said)]
    count = 0
    while stack:
        container, inherited = stack.pop()
        children = _items(container, "ContentSequence")
        count += len(children)
        if count > _MOST_ITEMS:
            break
        known = inherited | _context(children)
        around = _regions(children, dataset)
        numbers = [child for child in children if child.get("ValueType") == "NUM"]
        rows += [_measurement(number, known, around, dataset) for number in numbers]
        is_group = _code(container, "ConceptNameCodeSequence")[0] == _GROUP
        if is_group and not numbers and around.graphics:
            rows.append(known | _name("type", _code(container, "ConceptNameCodeSequence")) | around.values())
        # The image library describes images: its numbers are not measured in them.
        inner = [child for child in children if child.get("ValueType") == "CONTAINER"]
        stack += [(child, known) for child in reversed(inner) if _code(child, "ConceptNameCodeSequence")[0] != _LIBRARY]
    places = _evidence(dataset)
    for row in rows:
        _place(row, places)
    return rows


def read_segments(dataset: Dataset, frames: Callable[[], Iterable[NDArray[Any]]] | None) -> list[Values]:
    """Segments of a segmentation, DICOM PS3.3 C.8.20, bitmap or label map.

    Parameters
    ----------
    dataset : Dataset
    frames : callable
        Gives the decoded frames, one at a time, shape (rows, columns); None when they cannot be decoded: nothing is counted then, as when there is
        no saying to which segment one belongs.

    Returns
    -------
    list of dict
        In the order of the segments. `voxel_count` counts stored values above 0; `volume_ml` is NULL where spacings are not known, and fractions
        count as fractions.
    """
    described = {number: item for item in _items(dataset, "SegmentSequence") if (number := _integer(item, "SegmentNumber")) is not None}
    kind = "labelmap" if dataset.get("SegmentationType") == "LABELMAP" or dataset.get("SOPClassUID") == LABEL_MAP else "bitmap"
    if kind == "bitmap" and dataset.get("SegmentationType") == "FRACTIONAL":
        kind = "fractional"
    shared = next(iter(_items(dataset, "SharedFunctionalGroupsSequence")), Dataset())
    each = _items(dataset, "PerFrameFunctionalGroupsSequence")
    full = _integer(dataset, "MaximumFractionalValue") or 255
    extents = {number: _Extent() for number in described}
    common = _sources_of_frame(shared)
    counted = frames is not None
    for index, array in enumerate(frames() if frames else ()):
        group = each[index] if index < len(each) else Dataset()
        volume = _voxel_volume(group, shared)
        if kind == "labelmap":
            values, counts = np.unique(array, return_counts=True)
            here = {int(value): (int(count), float(count)) for value, count in zip(values, counts, strict=True)}
        else:
            number = _segment_of_frame(group, shared, index, list(described), _integer(dataset, "NumberOfFrames") or 1)
            count = int(np.count_nonzero(array))
            counted &= number is not None or not count  # whose they are is not known
            here = {} if number is None else {number: (count, float(array.sum(dtype=np.float64)) / full if kind == "fractional" else float(count))}
        sources = [*common, *_sources_of_frame(group)] if here else []
        for number, (count, weight) in here.items():
            if number in extents and count:
                extents[number].add(count, weight, volume, sources)
    overall = _sources(dataset)
    said = {
        "kind": kind,
        "author": _text(dataset, "ContentCreatorName"),
        "made_at": _moment(dataset, "ContentDate", "ContentTime"),
        "frame_of_reference": _text(dataset, "FrameOfReferenceUID"),
    }
    places = _evidence(dataset)
    rows = []
    for number, item in described.items():
        extent = extents[number]
        row = said | {
            "number": number,
            "label": _text(item, "SegmentLabel"),
            "description": _text(item, "SegmentDescription"),
            **_name("category", _code(item, "SegmentedPropertyCategoryCodeSequence")),
            **_name("type", _code(item, "SegmentedPropertyTypeCodeSequence")),
            **_name("region", _code(item, "AnatomicRegionSequence")),
            "algorithm_type": _text(item, "SegmentAlgorithmType"),
            "algorithm_name": _text(item, "SegmentAlgorithmName"),
            "tracking_identifier": _text(item, "TrackingID"),
            "tracking_uid": _text(item, "TrackingUID"),
            "voxel_count": extent.voxels if counted else None,
            "volume_ml": extent.cubic_mm / 1000 if counted and extent.cubic_mm is not None else None,
            "frames": extent.frames if counted else None,
            "source_instances": list(extent.sources) or overall,
        }
        rows.append(_place(row, places))
    return rows


def read_regions(dataset: Dataset) -> list[Values]:
    """Regions of interest of an RT structure set, DICOM PS3.3 C.8.8.5 and C.8.8.6.

    Returns
    -------
    list of dict
        In the order of the regions. `volume_ml` is what the object says, else the area of the planar contours times the distance of their planes;
        NULL where it cannot be told.
    """
    observed = {
        number: item
        for item in reversed(_items(dataset, "RTROIObservationsSequence"))
        if (number := _integer(item, "ReferencedROINumber")) is not None
    }
    contours = {
        number: _items(item, "ContourSequence")
        for item in _items(dataset, "ROIContourSequence")
        if (number := _integer(item, "ReferencedROINumber")) is not None
    }
    places, overall = {}, []
    for frame in _items(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in _items(frame, "RTReferencedStudySequence"):
            for series in _items(study, "RTReferencedSeriesSequence"):
                for uid in _referenced(_items(series, "ContourImageSequence")):
                    places[uid] = (_text(study, "ReferencedSOPInstanceUID"), _text(series, "SeriesInstanceUID"))
                    overall.append(uid)
    rows = []
    for item in _items(dataset, "StructureSetROISequence"):
        number = _integer(item, "ROINumber")
        seen = observed.get(number, Dataset()) if number is not None else Dataset()
        drawn = contours.get(number, []) if number is not None else []
        images = list(dict.fromkeys(uid for contour in drawn for uid in _referenced(_items(contour, "ContourImageSequence"))))
        stated = _number(item, "ROIVolume")
        row = {
            "kind": "rtstruct",
            "number": number,
            "label": _text(item, "ROIName"),
            "description": _text(item, "ROIDescription"),
            **_name("category", _code(seen, "SegmentedPropertyCategoryCodeSequence")),
            **_name("type", _code(seen, "RTROIIdentificationCodeSequence")),
            **_name("region", _code(seen, "AnatomicRegionSequence")),
            "algorithm_type": _text(item, "ROIGenerationAlgorithm"),
            "algorithm_name": _text(item, "ROIGenerationDescription"),
            "volume_ml": stated if stated is not None else _contoured_ml(drawn),
            "frames": len(drawn),
            "frame_of_reference": _text(item, "ReferencedFrameOfReferenceUID"),
            "author": _text(seen, "ROIInterpreter"),
            "made_at": _moment(dataset, "StructureSetDate", "StructureSetTime"),
            "source_instances": images or list(dict.fromkeys(overall)),
        }
        if row["type_meaning"] is None:
            row["type_meaning"] = _text(seen, "RTROIInterpretedType")
        rows.append(_place(row, places))
    return rows


# --- structured reports


@dataclass(slots=True)
class _Regions:
    """Graphics and images that some content items name."""

    graphics: list[tuple[str | None, list[float], str | None]] = field(default_factory=list)
    images: dict[str, list[int]] = field(default_factory=dict)
    series: list[str] = field(default_factory=list)

    def values(self) -> Values:
        kind, data, frame = self.graphics[0] if self.graphics else (None, None, None)
        return {
            "graphic_type": kind,
            "graphic_data": data,
            "graphics": len(self.graphics),
            "frame_of_reference": frame,
            "source_instances": list(self.images),
            "source_frames": sorted({number for numbers in self.images.values() for number in numbers}),
            "source_series": list(self.series),
        }


def _regions(items: Iterable[Dataset], root: Dataset) -> _Regions:
    found = _Regions()
    stack = [_resolved(item, root) for item in items][::-1]
    left = _MOST_ITEMS
    while stack and (left := left - 1):
        item = stack.pop()
        kind = item.get("ValueType")
        if kind in {"SCOORD", "SCOORD3D"}:
            found.graphics.append((_text(item, "GraphicType"), _numbers(item, "GraphicData"), _text(item, "ReferencedFrameOfReferenceUID")))
            stack += [_resolved(child, root) for child in reversed(_items(item, "ContentSequence"))]
        elif kind == "IMAGE":
            for reference in _items(item, "ReferencedSOPSequence"):
                uid = _text(reference, "ReferencedSOPInstanceUID")
                if uid is not None:
                    found.images.setdefault(uid, []).extend(int(value) for value in _numbers(reference, "ReferencedFrameNumber"))
        elif kind == "UIDREF" and _code(item, "ConceptNameCodeSequence")[0] == "121232":  # Source series for segmentation
            uid = _text(item, "UID")
            if uid is not None:
                found.series.append(uid)
    return found


def _resolved(item: Dataset, root: Dataset) -> Dataset:
    """Content item that another one names by its place in the document, DICOM PS3.3 C.17.3.2.5."""
    path = item.get("ReferencedContentItemIdentifier")
    if path is None:
        return item
    found = root
    for number in [int(value) for value in (path if isinstance(path, MultiValue | list) else [path])][1:]:
        children = _items(found, "ContentSequence")
        if not 1 <= number <= len(children):
            return Dataset()
        found = children[number - 1]
    return found


def _measurement(number: Dataset, known: Values, around: _Regions, root: Dataset) -> Values:
    children = _items(number, "ContentSequence")
    own = _regions(children, root)
    if not own.graphics:
        own = replace(own, graphics=around.graphics)
    if not own.images:
        own = replace(own, images=around.images, series=around.series)
    measured = next(iter(_items(number, "MeasuredValueSequence")), Dataset())
    value = _number(measured, "FloatingPointValue")
    return {
        **known,
        **_context(children),
        **_name("type", _code(number, "ConceptNameCodeSequence")),
        **_name("derivation", next((_code(child, "ConceptCodeSequence") for child in children if _is_derivation(child)), (None, None, None))),
        "value": value if value is not None else _number(measured, "NumericValue"),
        **_name("unit", _code(measured, "MeasurementUnitsCodeSequence")),
        "qualifier": _code(number, "NumericValueQualifierCodeSequence")[2],
        **({"observed_at": moment} if (moment := _moment(number, "ObservationDateTime")) else {}),
        **own.values(),
    }


def _is_derivation(item: Dataset) -> bool:
    return item.get("ValueType") == "CODE" and _code(item, "ConceptNameCodeSequence")[0] == "121401"


def _context(items: Iterable[Dataset]) -> Values:
    """Gather what content items say about those beside and below them."""
    said: Values = {}
    for item in items:
        name, kind = _code(item, "ConceptNameCodeSequence")[0], item.get("ValueType")
        if name == "112039" and kind == "TEXT":
            said["tracking_identifier"] = _text(item, "TextValue")
        elif name == "112040" and kind == "UIDREF":
            said["tracking_uid"] = _text(item, "UID")
        elif name == "121071" and kind == "CODE":
            said |= _name("finding", _code(item, "ConceptCodeSequence"))
        elif name == "121071" and kind == "TEXT":
            said |= _name("finding", (None, None, _text(item, "TextValue")))
        elif name in _SITES and kind == "CODE":
            said |= _name("site", _code(item, "ConceptCodeSequence"))
        elif name == "121008" and kind == "PNAME":
            said["observer"] = _text(item, "PersonName")
        elif name == "121013" and kind == "TEXT":
            said["device"] = _text(item, "TextValue")
        elif name == "111001" and kind == "TEXT":
            said["algorithm_name"] = _text(item, "TextValue")
        elif name == "111003" and kind == "TEXT":
            said["algorithm_version"] = _text(item, "TextValue")
    return said


def _template(dataset: Dataset) -> str | None:
    return next((_text(item, "TemplateIdentifier") for item in _items(dataset, "ContentTemplateSequence")), None)


# --- segmentations


@dataclass(slots=True)
class _Extent:
    """How much of a segment there is."""

    voxels: int = 0
    cubic_mm: float | None = 0.0
    frames: int = 0
    sources: dict[str, None] = field(default_factory=dict)

    def add(self, count: int, weight: float, volume: float | None, sources: Iterable[str]) -> None:
        self.voxels += count
        self.frames += 1
        self.cubic_mm = None if volume is None or self.cubic_mm is None else self.cubic_mm + weight * volume
        self.sources.update(dict.fromkeys(sources))


def _segment_of_frame(group: Dataset, shared: Dataset, index: int, numbers: list[int], frames: int) -> int | None:
    for place in (group, shared):
        for item in _items(place, "SegmentIdentificationSequence"):
            return _integer(item, "ReferencedSegmentNumber")
    # Fully tiled: the frames of one segment come before those of the next, DICOM PS3.3 C.7.6.17.3.
    return numbers[min(index * len(numbers) // frames, len(numbers) - 1)] if numbers and frames % len(numbers) == 0 else None


def _voxel_volume(group: Dataset, shared: Dataset) -> float | None:
    """Volume of one voxel, cubic millimetres."""
    for place in (group, shared):
        for item in _items(place, "PixelMeasuresSequence"):
            spacing, depth = _numbers(item, "PixelSpacing"), _number(item, "SpacingBetweenSlices") or _number(item, "SliceThickness")
            if len(spacing) == 2 and depth:
                return abs(spacing[0] * spacing[1] * depth)
    return None


def _sources_of_frame(group: Dataset) -> list[str]:
    return [uid for item in _items(group, "DerivationImageSequence") for uid in _referenced(_items(item, "SourceImageSequence"))]


def _sources(dataset: Dataset) -> list[str]:
    """Instances that an object as a whole names as its sources."""
    found = [uid for series in _items(dataset, "ReferencedSeriesSequence") for uid in _referenced(_items(series, "ReferencedInstanceSequence"))]
    return list(dict.fromkeys([*found, *_referenced(_items(dataset, "SourceImageSequence"))]))


# --- structure sets


def _contoured_ml(contours: Iterable[Dataset]) -> float | None:
    """Volume within closed planar contours in parallel planes at equal distances, millilitres."""
    planes: dict[float, float] = {}
    normal: NDArray[np.float64] | None = None
    for contour in contours:
        points = np.array(_numbers(contour, "ContourData"))
        if contour.get("ContourGeometricType") != "CLOSED_PLANAR" or len(points) < 9 or len(points) % 3 or not np.isfinite(points).all():
            return None
        points = points.reshape(-1, 3)
        arms = points - points[0]
        area = np.cross(arms[1:-1], arms[2:]).sum(axis=0) / 2
        size = float(np.linalg.norm(area))
        if not size:
            continue
        normal = area / size if normal is None else normal
        if abs(float(area @ normal)) < 0.999 * size:
            return None
        place = round(float(points[0] @ normal), 2)
        planes[place] = planes.get(place, 0.0) + size
    places = sorted(planes)
    gaps = np.diff(places)
    if not len(gaps) or gaps.max() - gaps.min() > 0.05 * gaps.min():
        return None
    return float(sum(planes.values()) * gaps.mean() / 1000)


# --- values


def _place(row: Values, places: dict[str, tuple[str | None, str | None]]) -> Values:
    """Add the studies and series of the sources, as the object states them."""
    known = [places[uid] for uid in row.get("source_instances") or [] if uid in places]
    row["source_study"] = next((study for study, _ in known if study), None)
    row["source_series"] = list(dict.fromkeys([*(row.get("source_series") or []), *(series for _, series in known if series)]))
    return row


def _evidence(dataset: Dataset) -> dict[str, tuple[str | None, str | None]]:
    """Study and series of the instances that an object names."""
    own = _text(dataset, "StudyInstanceUID")
    studies = [(own, dataset)]
    for keyword in (
        *("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence"),
        "StudiesContainingOtherReferencedInstancesSequence",
    ):
        studies += [(_text(item, "StudyInstanceUID"), item) for item in _items(dataset, keyword)]
    found: dict[str, tuple[str | None, str | None]] = {}
    for study, item in studies:
        for series in _items(item, "ReferencedSeriesSequence"):
            for keyword in ("ReferencedSOPSequence", "ReferencedInstanceSequence"):
                found |= dict.fromkeys(_referenced(_items(series, keyword)), (study, _text(series, "SeriesInstanceUID")))
    return found


def _referenced(items: Iterable[Dataset]) -> list[str]:
    return [uid for item in items if (uid := _text(item, "ReferencedSOPInstanceUID")) is not None]


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    value = dataset.get(keyword)
    return list(value) if isinstance(value, Sequence) else []


def _code(dataset: Dataset, keyword: str) -> tuple[str | None, str | None, str | None]:
    """Value, scheme and meaning of the first code of a sequence."""
    for item in _items(dataset, keyword):
        value = next((text for name in ("CodeValue", "LongCodeValue", "URNCodeValue") if (text := _text(item, name)) is not None), None)
        return value, _text(item, "CodingSchemeDesignator"), _text(item, "CodeMeaning")
    return None, None, None


def _name(name: str, code: tuple[str | None, str | None, str | None]) -> Values:
    return dict(zip((f"{name}_code", f"{name}_scheme", f"{name}_meaning"), code, strict=True))


def _text(dataset: Dataset, keyword: str) -> str | None:
    value = dataset.get(keyword)
    if isinstance(value, MultiValue | list):
        value = "\\".join(str(item) for item in value)
    text = "" if value is None or isinstance(value, bytes | Sequence) else str(value).strip("\0 ")
    return text or None


def _numbers(dataset: Dataset, keyword: str) -> list[float]:
    return list(_floats(dataset.get(keyword)))


def _floats(value: Any) -> Iterator[float]:
    for item in value if isinstance(value, MultiValue | list | tuple) else [] if value is None else [value]:
        try:
            yield float(item)
        except (TypeError, ValueError, OverflowError):
            return


def _number(dataset: Dataset, keyword: str) -> float | None:
    return next(_floats(dataset.get(keyword)), None)


def _integer(dataset: Dataset, keyword: str) -> int | None:
    value = _number(dataset, keyword)
    return int(value) if value is not None and np.isfinite(value) else None


def _moment(dataset: Dataset, *keywords: str) -> str | None:
    """Date and time as written, in ISO form, taken as UTC; NULL when there is no whole date."""
    text = "".join((_text(dataset, keyword) or "") for keyword in keywords)
    for length, form in ((14, "%Y%m%d%H%M%S"), (12, "%Y%m%d%H%M"), (8, "%Y%m%d")):
        if len(text) >= length and text[:length].isdecimal():
            try:
                return dt.datetime.strptime(text[:length], form).replace(tzinfo=dt.UTC).isoformat()
            except ValueError:
                return None
    return None
