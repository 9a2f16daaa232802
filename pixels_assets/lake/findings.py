"""What is odd about objects, series, studies and patients, as rows of `findings`.

Holds the rules for groups of objects; those for one object are in `pixels_assets.dicom.conformance`. Must not read tables or files: rows in, rows
out.

Messages name attributes and counts, never values: findings are looked at by people who may not know patients.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from pixels_assets.dicom.attributes import ATTRIBUTES
from pixels_assets.dicom.conformance import faults
from pixels_assets.dicom.json_reading import read_outline
from pixels_assets.lake.schema import FINDINGS

SCHEMA = pl.DataFrame(FINDINGS.part_arrow.empty_table()).schema
FROM_OBJECTS = ["path", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "TransferSyntaxUID", "length", "meta"]
FROM_SERIES = [
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "InstanceNumber", "ImageType", "Rows", "Columns", "NumberOfFrames"),
    *("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
]

_SEPARATOR = "\x1e"
_GAP = 1.5
"""A step between slices of so many usual ones is a gap."""
_UNEVEN = 0.05
"""Steps that differ by more than this share of the usual one are uneven."""
_LEAST_SLICES = 3
_POSITION, _ORIENTATION = 3, 6
_PARTS = frozenset({"family", "given", "offset"})

# What a series may well have several of: it describes acquisitions rather than the series (DICOM PS3.3 C.7.3.1, C.7.5.1, C.7.4.1).
_ONE_PER_SERIES = frozenset(item.keyword for item in ATTRIBUTES[: [item.keyword for item in ATTRIBUTES].index("ContrastBolusAgent")])


def subject(level: str, *keys: str | None) -> str:
    """Name what findings are about, for replacing them together: the level and the key."""
    return _SEPARATOR.join([level, *(key or "" for key in keys)])


def subjects(level: str, keys: pl.DataFrame) -> pl.Series:
    """Do the same for rows of keys."""
    parts = [pl.col(name).fill_null("") for name in keys.columns]
    return keys.select(pl.concat_str(pl.lit(level), *parts, separator=_SEPARATOR).alias("subject"))["subject"]


def checked_attributes(level: str) -> list[str]:
    """Attributes about which the instances of a group of this level should agree, and whose disagreement is a finding of this level."""
    levels = {"patient", "study"} if level == "study" else {level}  # a study is of one patient
    whole = (item for item in ATTRIBUTES if item.level in levels and item.kind not in _PARTS)
    return [item.keyword for item in whole if level != "series" or item.keyword in _ONE_PER_SERIES]


def object_findings(batch: pa.RecordBatch, key: str) -> pl.DataFrame:
    """Find what is odd about single objects.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        Columns `FROM_OBJECTS`.
    key : str
        Key of the batch that brought the objects.
    """
    found: list[dict[str, Any]] = []
    for row, meta in zip(batch.drop_columns("meta").to_pylist(), batch["meta"], strict=True):
        about = {name: row[name] for name in ("path", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")} | {"batch": key}
        about |= {"level": "instance", "subject": subject("instance", row["path"])}
        try:
            dataset = read_outline(memoryview(meta.as_buffer())) if meta.is_valid else {}
        except ValueError:
            found.append(about | {"code": "too_deep", "keyword": None, "message": "Its sequences are nested too deep to be looked at."})
            continue
        wrong = faults(dataset, transfer_syntax=row["TransferSyntaxUID"], length=row["length"])
        found += [about | {"code": fault.code, "keyword": fault.keyword, "message": fault.message} for fault in wrong]
    return _table(found)


def disagreements(level: str, keys: pl.DataFrame, names: Sequence[str]) -> pl.DataFrame:
    """Say which groups disagree about what.

    Parameters
    ----------
    level : str
    keys : polars.DataFrame
        The groups' keys, and for each of `names` whether the instances of the group disagree about it.
    names : sequence of str
    """
    key_names = [name for name in keys.columns if name not in names]
    wanted = [name for name in names if name in checked_attributes(level)]
    found = []
    for name in wanted:
        for row in keys.filter(pl.col(name)).select(key_names).iter_rows(named=True):
            if level == "patient" and row["PatientID"] is None:
                continue  # those who have no identifier are not one patient
            message = f"Instances of one {level} have different values of {name}."
            about = {item: row[item] for item in key_names if item in SCHEMA} | {"level": level, "subject": subject(level, *row.values())}
            found.append(about | {"code": "attributes_disagree", "keyword": name, "message": message})
    return _table(found)


def series_findings(rows: pl.DataFrame) -> pl.DataFrame:
    """Find what is odd about the numbers and the geometry of series.

    Parameters
    ----------
    rows : polars.DataFrame
        All instances of some series, columns `FROM_SERIES`.
    """
    found = []
    for keys, members in rows.group_by("StudyInstanceUID", "SeriesInstanceUID", maintain_order=True):
        about = dict(zip(("StudyInstanceUID", "SeriesInstanceUID"), keys, strict=True))
        about |= {"level": "series", "subject": subject("series", *map(str, keys))}
        for code, keyword, message in (*_numbers(members), *_geometry(members)):
            found.append(about | {"code": code, "keyword": keyword, "message": message})
    return _table(found)


def _numbers(members: pl.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Instance numbers that are missing, used twice, or skipped."""
    numbers = members["InstanceNumber"]
    if len(members) < 2:
        return
    if missing := numbers.null_count():
        yield "instance_number_missing", "InstanceNumber", f"{missing} of {len(numbers)} instances have no number."
    known = numbers.drop_nulls()
    if doubled := len(known) - known.n_unique():
        yield "instance_number_repeated", "InstanceNumber", f"{doubled} of {len(numbers)} instances have a number that another one has."
    elif len(known) > 1 and (skipped := int(known.max()) - int(known.min()) + 1 - len(known)):  # type: ignore[arg-type]
        yield "instance_number_skipped", "InstanceNumber", f"{skipped} numbers between the first and the last are not used."


def _geometry(members: pl.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Sizes, spacings, orientations and positions of the slices of a series that do not make one volume."""
    slices = members.filter(
        pl.col("Rows").is_not_null(),
        pl.col("NumberOfFrames").fill_null(1) == 1,
        pl.col("ImagePositionPatient").list.len() == _POSITION,
        pl.col("ImageOrientationPatient").list.len() == _ORIENTATION,
        ~pl.col("ImageType").list.contains("LOCALIZER").fill_null(value=False),
        *(
            pl.col(name).list.eval(pl.element().is_finite().fill_null(value=False)).list.all()
            for name in ("ImagePositionPatient", "ImageOrientationPatient")
        ),
    )
    if len(slices) < _LEAST_SLICES:
        return
    if slices.select("Rows", "Columns").unique().height > 1:
        yield "size_mixed", "Rows", "Slices of one series have different numbers of rows or columns."
    if slices.select(pl.col("PixelSpacing").list.eval(pl.element().round(4)).cast(pl.List(pl.String)).list.join(" ")).n_unique() > 1:
        yield "spacing_mixed", "PixelSpacing", "Slices of one series have different pixel spacings."
    orientations = np.array(slices["ImageOrientationPatient"].to_list(), float)
    if np.abs(orientations - orientations[0]).max() > 1e-3:
        yield "orientation_mixed", "ImageOrientationPatient", "Slices of one series have different orientations."
        return
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    with np.errstate(all="ignore"):  # numbers may be as large as they like
        places = np.unique(np.round(np.array(slices["ImagePositionPatient"].to_list(), float) @ normal, 3))
        steps = np.diff(places)
    if len(steps) < 2 or not np.isfinite(steps).all():
        return
    usual = float(np.median(steps))
    gaps = int((steps > _GAP * usual).sum())
    if gaps:
        yield "slices_missing", "ImagePositionPatient", f"{gaps} steps between slices are larger than {_GAP} usual ones."
    elif any(abs(step - usual) > _UNEVEN * usual for step in steps):
        yield "slices_uneven", "ImagePositionPatient", "Steps between slices differ by more than 5 %."
    counts = slices.group_by("ImagePositionPatient").len()["len"]
    if counts.n_unique() > 1:
        yield "slices_repeated", "ImagePositionPatient", "Some places of the series have more slices than others."


def _table(found: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(found, schema=SCHEMA) if found else pl.DataFrame(schema=SCHEMA)
