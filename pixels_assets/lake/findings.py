"""What is odd about objects, series, studies and patients, as rows of `findings`.

Holds the rules for groups of objects; those for one object are in `pixels_assets.dicom.conformance`. Must not read tables or files: rows in, rows
out.

Messages name attributes and counts, never values: findings are looked at by people who may not know patients.
"""

from collections.abc import Iterator, Mapping, Sequence
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
_TURNED = 1e-3
"""Cosines of orientations that differ by more than this are different orientations."""
_SURE = 0.005
"""So far from a limit, mm, it does not matter how places were rounded."""
_LEAST_SLICES = 3
_POSITION, _ORIENTATION = 3, 6
_SERIES = ["StudyInstanceUID", "SeriesInstanceUID"]
_SPACING = pl.col("PixelSpacing").list.eval(pl.element().round(4)).cast(pl.List(pl.String)).list.join(" ")
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
    for row in _odd_numbers(rows).iter_rows(named=True):
        found += [_of_series(row) | {"code": code, "keyword": "InstanceNumber", "message": message} for code, message in _numbers(row)]
    slices = _slices(rows)
    # Most series are one volume: a look at all of them at once leaves a few for the one by one.
    for _, members in slices.join(_uneven(slices), on=_SERIES, how="semi", nulls_equal=True).group_by(_SERIES, maintain_order=True):
        found += [
            _of_series(members.row(0, named=True)) | {"code": code, "keyword": keyword, "message": message}
            for code, keyword, message in _geometry(members)
        ]
    return _table(found)


def _of_series(row: Mapping[str, Any]) -> dict[str, Any]:
    keys = {name: row[name] for name in _SERIES}
    return keys | {"level": "series", "subject": subject("series", *map(str, keys.values()))}


def _odd_numbers(rows: pl.DataFrame) -> pl.DataFrame:
    """Series whose instance numbers are not one after the other."""
    number = pl.col("InstanceNumber")
    counted = rows.group_by(_SERIES).agg(
        count=pl.len(), known=number.count(), distinct=number.drop_nulls().n_unique(), least=number.min(), most=number.max()
    )
    skipped = (pl.col("known") > 1) & (pl.col("most") - pl.col("least") + 1 != pl.col("known"))
    odd = (pl.col("known") < pl.col("count")) | (pl.col("distinct") < pl.col("known")) | skipped
    return counted.filter(pl.col("count") > 1, odd)


def _numbers(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Instance numbers that are missing, used twice, or skipped."""
    count, known = row["count"], row["known"]
    if missing := count - known:
        yield "instance_number_missing", f"{missing} of {count} instances have no number."
    if doubled := known - row["distinct"]:
        yield "instance_number_repeated", f"{doubled} of {count} instances have a number that another one has."
    elif known > 1 and (skipped := row["most"] - row["least"] + 1 - known):
        yield "instance_number_skipped", f"{skipped} numbers between the first and the last are not used."


def _slices(rows: pl.DataFrame) -> pl.DataFrame:
    """Those of some instances that are one slice in space."""
    return rows.filter(
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


def _uneven(slices: pl.DataFrame) -> pl.DataFrame:
    """Series whose slices may be odd. Of all others it is certain that they are not: they stay clear of every limit."""
    position = [pl.col("ImagePositionPatient").list.get(at) for at in range(_POSITION)]
    turned = [pl.col("ImageOrientationPatient").list.get(at) for at in range(_ORIENTATION)]
    steps, usual = pl.col("steps").list, pl.col("steps").list.median()
    even = (steps.len() > 1) & (steps.max() - usual < _UNEVEN * usual - _SURE) & (usual - steps.min() < _UNEVEN * usual - _SURE)
    first = (
        slices.group_by(_SERIES)
        .agg(pl.len(), *(value.first().alias(f"o{at}") for at, value in enumerate(turned)))
        .filter(pl.col("len") >= _LEAST_SLICES)
    )
    along = [pl.col(f"o{a}") * pl.col(f"o{b}") - pl.col(f"o{c}") * pl.col(f"o{d}") for a, b, c, d in ((1, 5, 2, 4), (2, 3, 0, 5), (0, 4, 1, 3))]
    together = slices.join(first, on=_SERIES, how="inner", nulls_equal=True)
    measured = together.group_by(_SERIES).agg(
        size=pl.struct("Rows", "Columns").n_unique(),
        spacing=_SPACING.n_unique(),
        turned=pl.max_horizontal((value - pl.col(f"o{at}")).abs().max() for at, value in enumerate(turned)),
        steps=pl.sum_horizontal(at * normal for at, normal in zip(position, along, strict=True)).round(3).unique().sort().diff().drop_nulls(),
    )
    counts = together.group_by(*_SERIES, "ImagePositionPatient").len()
    repeated = counts.group_by(_SERIES).agg(repeated=pl.col("len").n_unique())
    sure = (pl.col("size") == 1) & (pl.col("spacing") == 1) & (pl.col("turned") <= _TURNED) & even & (pl.col("repeated") == 1)
    return measured.join(repeated, on=_SERIES, how="left", nulls_equal=True).filter(~sure.fill_null(value=False)).select(_SERIES)


def _geometry(slices: pl.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Sizes, spacings, orientations and positions of the slices of a series that do not make one volume."""
    if slices.select("Rows", "Columns").unique().height > 1:
        yield "size_mixed", "Rows", "Slices of one series have different numbers of rows or columns."
    if slices.select(_SPACING).n_unique() > 1:
        yield "spacing_mixed", "PixelSpacing", "Slices of one series have different pixel spacings."
    orientations = slices["ImageOrientationPatient"].explode().to_numpy().reshape(-1, _ORIENTATION)
    if np.abs(orientations - orientations[0]).max() > _TURNED:
        yield "orientation_mixed", "ImageOrientationPatient", "Slices of one series have different orientations."
        return
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    with np.errstate(all="ignore"):  # numbers may be as large as they like
        places = np.unique(np.round(slices["ImagePositionPatient"].explode().to_numpy().reshape(-1, _POSITION) @ normal, 3))
        steps = np.diff(places)
    if len(steps) < 2 or not np.isfinite(steps).all():
        return
    usual = float(np.median(steps))
    gaps = int((steps > _GAP * usual).sum())
    if gaps:
        yield "slices_missing", "ImagePositionPatient", f"{gaps} steps between slices are larger than {_GAP} usual ones."
    elif (np.abs(steps - usual) > _UNEVEN * usual).any():
        yield "slices_uneven", "ImagePositionPatient", "Steps between slices differ by more than 5 %."
    counts = slices.group_by("ImagePositionPatient").len()["len"]
    if counts.n_unique() > 1:
        yield "slices_repeated", "ImagePositionPatient", "Some places of the series have more slices than others."


def _table(found: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(found, schema=SCHEMA) if found else pl.DataFrame(schema=SCHEMA)
