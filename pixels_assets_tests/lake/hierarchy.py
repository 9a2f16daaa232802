"""What the rollups must say, computed in the plainest way: data sets of pydicom in a loop, and counters."""

import datetime as dt
import io
import json
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pydicom
from pydicom.uid import ExplicitVRLittleEndian

from pixels_assets.lake.query import scan

TEXTS = {
    "patients": ("PatientName", "PatientSex"),
    "studies": ("PatientID", "PatientName", "StudyDescription", "AccessionNumber", "StudyID"),
    "series": ("PatientID", "Modality", "SeriesDescription", "Manufacturer", "StationName", "BodyPartExamined"),
}


@dataclass(frozen=True)
class Object:
    """One readable object."""

    path: str
    content_hash: str
    length: int
    modified: dt.datetime | None
    has_thumbnail: bool
    dataset: pydicom.Dataset
    header: bytes | None
    meta: str


def text(dataset: pydicom.Dataset, keyword: str) -> str | None:
    """One value as text; None for an empty or missing one."""
    value = dataset.get(keyword)
    parts = value if isinstance(value, pydicom.multival.MultiValue) else ["" if value is None else value]
    return "\\".join(str(part).rstrip("\0 ").strip() for part in parts) or None


def date(dataset: pydicom.Dataset, keyword: str) -> dt.date | None:
    try:
        return dt.datetime.strptime((text(dataset, keyword) or "").replace(".", ""), "%Y%m%d").date()
    except ValueError:
        return None


def number(dataset: pydicom.Dataset, keyword: str) -> int | None:
    try:
        return int(text(dataset, keyword) or "")
    except ValueError:
        return None


def most(values: Iterable[Any]) -> Any:
    """The most frequent value that is not None, of these the smallest."""
    counts = Counter(value for value in values if value is not None)
    return min((value for value in counts if counts[value] == max(counts.values())), default=None)


def expected(objects: Iterable[Object]) -> dict[str, dict[Any, dict[str, Any]]]:
    """Rows of each rollup by key, as far as compared."""
    claims: dict[str, list[Object]] = defaultdict(list)
    for item in objects:
        if uid := text(item.dataset, "SOPInstanceUID"):
            claims[uid].append(item)
    oldest = dt.datetime(1, 1, 1, tzinfo=dt.UTC)
    current, instances = [], {}
    for uid, items in claims.items():
        newest = max(item.modified or oldest for item in items)
        chosen = min((item for item in items if (item.modified or oldest) == newest), key=lambda item: item.path)
        current.append(chosen)
        instances[uid] = {
            "path": chosen.path,
            "duplicates": sorted(item.path for item in items if item.content_hash == chosen.content_hash and item is not chosen),
            "versions": len({item.content_hash for item in items}),
            "length": chosen.length,
            "StudyInstanceUID": text(chosen.dataset, "StudyInstanceUID"),
        }
    conflicts = {
        (uid, item.path): {
            "content_hash": item.content_hash,
            "is_current": item.content_hash == chosen.content_hash,
            "differs": difference(item, chosen),
        }
        for (uid, items), chosen in zip(claims.items(), current, strict=True)
        for item in items
        if instances[uid]["versions"] > 1
    }
    groups: dict[str, dict[Any, list[Object]]] = {name: defaultdict(list) for name in TEXTS}
    for item in current:
        study, series = text(item.dataset, "StudyInstanceUID"), text(item.dataset, "SeriesInstanceUID")
        groups["patients"][text(item.dataset, "PatientID"), text(item.dataset, "IssuerOfPatientID")].append(item)
        if study:
            groups["studies"][study].append(item)
        if study and series:
            groups["series"][study, series].append(item)
    rows = {name: {key: group(name, members) for key, members in found.items()} for name, found in groups.items()}
    return rows | {"instances": instances, "uid_conflicts": conflicts}


def difference(one: Object, current: Object) -> str | None:
    """In what a version of an object differs from the current one."""
    if one.content_hash == current.content_hash:
        return None
    if json.loads(one.meta) != json.loads(current.meta):
        return "metadata"
    return None if one.header is None or current.header is None else "pixels" if one.header == current.header else "encoding"


def group(name: str, members: list[Object]) -> dict[str, Any]:
    sets = [item.dataset for item in members]
    row: dict[str, Any] = {keyword: most(text(one, keyword) for one in sets) for keyword in TEXTS[name]}
    row["bytes"] = sum(item.length for item in members)
    pairs = {(text(one, "StudyInstanceUID"), text(one, "SeriesInstanceUID")) for one in sets}
    studies, series = {study for study, _ in pairs if study}, {pair for pair in pairs if all(pair)}
    modalities = sorted({value for one in sets if (value := text(one, "Modality"))})
    classes = sorted({value for one in sets if (value := text(one, "SOPClassUID"))})
    numbers = [value for one in sets if (value := number(one, "InstanceNumber")) is not None]
    if name == "patients":
        days = [value for one in sets if (value := date(one, "StudyDate"))]
        row |= {"NumberOfPatientRelatedStudies": len(studies), "NumberOfPatientRelatedSeries": len(series), "Modalities": modalities}
        row |= {"NumberOfPatientRelatedInstances": len(members), "FirstStudyDate": min(days, default=None), "LastStudyDate": max(days, default=None)}
    elif name == "studies":
        study_date = most(date(one, "StudyDate") for one in sets)
        row |= {
            "NumberOfStudyRelatedInstances": len(members),
            "NumberOfStudyRelatedSeries": len(series),
            "StudyDate": study_date,
        }
        row |= {"ModalitiesInStudy": modalities, "SOPClassesInStudy": classes}
    else:
        series_number = most(number(one, "SeriesNumber") for one in sets)
        pictures = sorted(
            (item for item in members if item.has_thumbnail),
            key=lambda item: (
                (value := number(item.dataset, "InstanceNumber")) is None,
                value,
                text(item.dataset, "SOPInstanceUID"),
            ),
        )
        row |= {
            "NumberOfSeriesRelatedInstances": len(members),
            "SOPClassUIDs": classes,
            "SeriesNumber": series_number,
        }
        row |= {"FirstInstanceNumber": min(numbers, default=None), "LastInstanceNumber": max(numbers, default=None)}
        row |= {"representative_path": pictures[len(pictures) // 2].path if pictures else None}
    return row


KEYS = {
    "patients": ("PatientID", "IssuerOfPatientID"),
    "studies": ("StudyInstanceUID",),
    "series": ("StudyInstanceUID", "SeriesInstanceUID"),
    "instances": ("SOPInstanceUID",),
    "uid_conflicts": ("SOPInstanceUID", "path"),
}


def differences(lake: Path) -> list[str]:
    """Where the rollups say something else than the loop over the objects of the catalog; empty when they are right."""
    with pydicom.config.disable_value_validation(), warnings.catch_warnings(action="ignore"):
        wanted = expected(catalogued(lake))
    found = []
    for name, rows in wanted.items():
        stored = scan(lake, name).collect()
        assert len(stored.select(KEYS[name]).unique()) == len(stored), f"a key occurs twice in {name}"
        table = {tuple(row[key] for key in KEYS[name]): row for row in stored.iter_rows(named=True)}
        table = {key if len(key) > 1 else key[0]: row for key, row in table.items()}
        found += [f"{name}: {key} is missing" for key in rows.keys() - table.keys()]
        found += [f"{name}: {key} is too much" for key in table.keys() - rows.keys()]
        found += [
            f"{name}: {key}: {column} is {table[key][column]!r}, not {value!r}"
            for key in rows.keys() & table.keys()
            for column, value in rows[key].items()
            if table[key][column] != value
        ]
    return found


def catalogued(lake: Path) -> list[Object]:
    """Objects of the catalog, read by pydicom from the bytes of their headers."""
    names = ["path", "content_hash", "length", "modificationTime", "batch", "meta"]
    rows = scan(lake, "object_catalog").filter(pl.col("status") == "indexed")
    pictures = rows.select("path", has_thumbnail=pl.col("thumbnail").is_not_null())
    headers = scan(lake, "dicom_metadata").select("path", "batch", "header")
    joined = rows.select(names).join(headers, on=["path", "batch"]).join(pictures, on="path").collect()
    return [
        Object(
            row["path"],
            row["content_hash"],
            row["length"],
            row["modificationTime"],
            row["has_thumbnail"],
            read(row["header"], row["meta"]),
            row["header"],
            row["meta"],
        )
        for row in joined.iter_rows(named=True)
    ]


def read(header: bytes | None, meta: str) -> pydicom.Dataset:
    """What pydicom makes of an object; of the JSON where it gives up on the bytes, or there are none."""
    try:
        found = pydicom.dcmread(io.BytesIO(header or b""), force=True, stop_before_pixels=True)
        if "SOPInstanceUID" in found or "00080018" not in meta:
            return found
    except Exception:
        pass
    top = {tag: element for tag, element in json.loads(meta).items() if element["vr"] != "SQ"}
    return pydicom.Dataset.from_json(top)


def dicom(*, pixels: bool = False, **values: Any) -> bytes:
    """A small object as bytes."""
    with pydicom.config.disable_value_validation():
        return _bytes(_dataset(values), pixels=pixels)


def _dataset(values: dict[str, Any]) -> pydicom.Dataset:
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.Modality = "OT"
    for keyword, value in values.items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = values.get("SOPInstanceUID") or "1.2.3"
    return dataset


def _bytes(dataset: pydicom.Dataset, *, pixels: bool) -> bytes:
    if pixels:
        dataset.Rows = dataset.Columns = 4
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = bytes(range(16))
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
