"""Two objects side by side: what `pixels diff` compares.

Holds how an argument becomes an object: a file, an address of the catalog, or a SOPInstanceUID. Opens source files, read only.
"""

import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pydicom
from pydicom.dataset import Dataset

from pixels_assets.dicom.differences import Difference, differences
from pixels_assets.dicom.notes import listening
from pixels_assets.errors import UsageError
from pixels_assets.intake.archives import walk
from pixels_assets.intake.objects import MEMBER, SourceFile, file_address, os_path, split_address
from pixels_assets.lake.query import exists, scan
from pixels_assets.lake.schema import INSTANCES, UID_CONFLICTS
from pixels_assets.settings import Limits


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two objects and what differs between them.

    Parameters
    ----------
    left, right : str
        Their addresses.
    differences : list of Difference
        Empty when they are the same, element by element.
    """

    left: str
    right: str
    differences: list[Difference]


def compare(lake: Path, first: str, second: str | None, limits: Limits) -> list[Comparison]:
    """Compare two objects, or the current version of an instance with each other version.

    Parameters
    ----------
    lake : Path
    first, second : str
        Each the path of a file, an address of the catalog, or a SOPInstanceUID, which stands for its current version. Without `second`, `first` is
        a SOPInstanceUID of which there are several versions.
    limits : Limits
        Guards for archives that are opened on the way.

    Raises
    ------
    UsageError
        An argument names nothing, an object without versions, or nothing that reads as DICOM.
    """
    if second is not None:
        left, right = _address(lake, first), _address(lake, second)
        return [Comparison(left, right, list(_differences(left, right, limits)))]
    versions = scan(lake, UID_CONFLICTS.name).filter(pl.col("SOPInstanceUID") == first).sort("path").collect() if exists(lake) else None
    if versions is None or versions.is_empty():
        msg = f"there are not two versions of {first!r} in {lake}; name two files, or a SOPInstanceUID of the table uid_conflicts"
        raise UsageError(msg)
    left = _address(lake, first)
    others = versions.filter(~pl.col("is_current")).unique("content_hash", keep="first", maintain_order=True)["path"]
    return [Comparison(left, right, list(_differences(left, right, limits))) for right in others]


def _address(lake: Path, name: str) -> str:
    """Address of what an argument names."""
    if os.path.lexists(name):
        return file_address(os.path.abspath(name))  # noqa: PTH100 - a path may hold any bytes
    if MEMBER in name:
        outer = name.partition(MEMBER)[0]
        return file_address(os.path.abspath(outer)) + name[len(outer) :]  # noqa: PTH100
    if exists(lake):
        found = scan(lake, INSTANCES.name).filter(pl.col("SOPInstanceUID") == name).select("path").collect()["path"].to_list()
        if found:
            return str(found[0])
    msg = f"{name!r} is neither a file, nor an address such as archive.zip{MEMBER}member, nor a SOPInstanceUID in {lake}"
    raise UsageError(msg)


def _differences(left: str, right: str, limits: Limits) -> list[Difference]:
    with listening():
        one, other = _read(left, limits), _read(right, limits)
        try:
            return list(differences(one, other))
        except RecursionError as error:
            msg = f"sequences of {left} or {right} are nested too deep to be compared"
            raise UsageError(msg) from error


def _read(address: str, limits: Limits) -> Dataset:
    data = _bytes(address, limits)
    try:
        found = pydicom.dcmread(io.BytesIO(data), force=True)
    except Exception as error:
        msg = f"{address} cannot be read as DICOM ({type(error).__name__})"
        raise UsageError(msg) from error
    if not found:
        msg = f"{address} holds no element that reads as DICOM"
        raise UsageError(msg)
    return found


def _bytes(address: str, limits: Limits) -> bytes:
    outer, members = split_address(address)
    try:
        status = os.stat(os_path(outer))  # noqa: PTH116 - bytes: names need not be UTF-8
        if not stat.S_ISREG(status.st_mode):
            msg = f"{outer} is no file"
            raise UsageError(msg)
        if not members:
            with open(os_path(outer), "rb") as file:  # noqa: PTH123
                return file.read()
    except OSError as error:
        msg = f"{outer} cannot be read: {error.strerror or type(error).__name__}"
        raise UsageError(msg) from error
    for found in walk(SourceFile(outer, status.st_size, status.st_mtime_ns, os.path.dirname(outer)), limits):  # noqa: PTH120
        if found.path == address and found.stream is not None:
            return found.stream.read()
    msg = f"there is no {address}, or it cannot be read"
    raise UsageError(msg)
