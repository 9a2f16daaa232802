"""Extractors: named, versioned functions from an object to typed columns, run in the pass that reads each object anyway.

Holds the interface, the shipped extractors and how others are found. Each extractor has a table and an asset of its own. Runs in worker processes
and on Spark executors. Must not import Dagster, Delta or polars, and must not read files: an extractor gets what the pass has read.
"""

import importlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pixels_assets.errors import PixelsError, UsageError, place_of
from pixels_assets.intake.objects import FoundObject
from pixels_assets.intake.paths import extension, path_tags, relative_path, strict_path_tags
from pixels_assets.lake.schema import PARTITION, TABLES, Column, Table, key_columns
from pixels_assets.settings import Settings

if TYPE_CHECKING:  # whoever only asks which extractors there are does not wait until what reads objects is loaded
    from pydicom import Dataset

    from pixels_assets.dicom.reader import Header

GROUP = "pixels_assets.extractors"
"""Entry point group in which installed packages offer extractors."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_OWN = ("extractor_version", "error_code")


@dataclass(frozen=True, slots=True)
class Seen:
    """What an extractor gets of one object.

    Parameters
    ----------
    found : FoundObject
        Address, length, type and bytes; its stream may be read and is at any position.
    source : str
        Address of the source folder.
    local_path : str
        Where the bytes can be opened: the file itself, its archive, or the extracted member.
    header : Header or None
        What the reader made of it; None for what is no readable DICOM object.
    settings : Settings
    """

    found: FoundObject
    source: str
    local_path: str
    header: "Header | None"
    settings: Settings

    @property
    def dataset(self) -> "Dataset | None":
        """Its elements without pixel data, as pydicom objects; made when first asked for."""
        return self.header.dataset if self.header is not None else None

    def frames(self) -> Iterator[NDArray[np.generic]]:
        """Decode its frames, one at a time: stored values, shape (rows, columns[, samples]); none without pixel data.

        Raises
        ------
        NoPixels
            They cannot be decoded.
        """
        from pixels_assets.dicom.pixels import PixelSource, read_frame

        source = PixelSource.of(self.header) if self.header is not None else None
        if source is None:
            return
        number, count = 0, 1
        while number < count:
            frame = read_frame(source, max_bytes=self.settings.limits.max_frame_bytes, index=number)
            count = frame.number_of_frames
            yield frame.array
            number += 1


@dataclass(frozen=True, slots=True)
class Extractor:
    """A function from an object to the columns of one table.

    Parameters
    ----------
    name : str
        Snake case; names the table, the asset and the setting.
    version : str
        Changes when results do; stands in every row and is the asset's code version.
    meaning : str
        What one row is, for people.
    columns : tuple of Column
        All nullable, without `path`, `original_path`, `extractor_version`, `error_code` and `batch`, which every such table has.
    function : callable
        Gets a `Seen` and returns the values by column name, or None when the object has no row. What it raises costs that object its values: its
        row says `extractor_failed`.

    Raises
    ------
    UsageError
        The name or a column cannot be used.
    """

    name: str
    version: str
    meaning: str
    columns: tuple[Column, ...]
    function: Callable[[Seen], Mapping[str, object] | None]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name in TABLES:
            msg = f"an extractor cannot be called {self.name!r}: use snake_case, and no name of the lake's tables"
            raise UsageError(msg)
        taken = {"path", "original_path", PARTITION, *_OWN}
        wrong = [column.name for column in self.columns if column.name in taken or not column.nullable]
        if wrong:
            msg = f"extractor {self.name}: the columns {wrong} are taken, or not nullable"
            raise UsageError(msg)

    @property
    def table(self) -> Table:
        """Table that holds its rows."""
        own = (
            Column("extractor_version", pa.string(), "Version of the extractor that made the row."),
            Column("error_code", pa.string(), "Why there are no values: a stable snake_case word."),
        )
        path, original_path, batch = key_columns()
        return Table(self.name, self.meaning, (path, original_path, *self.columns, *own, batch))

    def row(self, seen: Seen) -> dict[str, object] | None:
        """Row of one object, None when it has none."""
        row: dict[str, object] = {"path": seen.found.path, "original_path": seen.found.original_path, "extractor_version": self.version}
        try:
            values = self.function(seen)
        except (PixelsError, MemoryError):
            raise
        except Exception as error:  # somebody's function over hostile bytes: it costs this object its values, not the run
            return row | {"error_code": f"extractor_failed: {place_of(error)}"}
        return None if values is None else row | dict(values)


def load_extractors(settings: Settings) -> tuple[Extractor, ...]:
    """Find the extractors that the settings name.

    Raises
    ------
    UsageError
        There is none of that name, or what is there is none; the message names those that are.
    """
    return _load(settings.extractors)


@lru_cache(maxsize=16)
def _load(names: str) -> tuple[Extractor, ...]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    found = tuple(_find(name) for name in dict.fromkeys(wanted))
    if len({extractor.name for extractor in found}) < len(found):
        msg = f"two of the extractors {names!r} have one name"
        raise UsageError(msg)
    return found


def _find(name: str) -> Extractor:
    if name in SHIPPED:
        return SHIPPED[name]
    if name == "patches":
        # It stands on this module, so it is not among those that this module makes.
        return importlib.import_module("pixels_assets.engines.patching").PATCHES  # type: ignore[no-any-return]
    offered = {entry.name: entry for entry in entry_points(group=GROUP)}
    try:
        if name in offered:
            found = offered[name].load()
        else:
            module, _, attribute = name.partition(":")
            if not attribute:
                msg = f"there is no extractor {name!r}; there are {', '.join([*SHIPPED, 'patches', *offered])}, and module:object for your own"
                raise UsageError(msg)
            found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        msg = f"the extractor {name!r} cannot be loaded: {error}"
        raise UsageError(msg) from error
    if not isinstance(found, Extractor):
        msg = f"{name!r} is no Extractor but a {type(found).__name__}"
        raise UsageError(msg)
    return found


def _paths(seen: Seen) -> Mapping[str, object]:
    path = seen.found.path
    return {"relative_path": relative_path(path, seen.source), "local_path": seen.local_path, "extension": extension(path)}


def _path_tags(seen: Seen) -> Mapping[str, object]:
    return {"path_tags": path_tags(relative_path(seen.found.path, seen.source))}


def _strict_path_tags(seen: Seen) -> Mapping[str, object]:
    return {"path_tags": strict_path_tags(seen.found.path)}


def _pixel_statistics(seen: Seen) -> Mapping[str, object] | None:
    """Minimum, maximum, mean, shape and hash of all stored values, a frame at a time."""
    from pixels_assets.dicom.codecs import NoPixels

    header = seen.header
    if header is None:
        return None
    if header.pixel_offset is None:
        return {"has_pixel": False}
    digest, shape, frames = sha256(), (), 0
    least, most, total, count = np.inf, -np.inf, 0.0, 0
    try:
        for array in seen.frames():
            least, most = min(least, array.min()), max(most, array.max())
            total += float(array.sum(dtype=np.float64))
            count += array.size
            # Little endian, so that it is the same on every machine and in every transfer syntax without loss.
            digest.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)
            shape, frames = array.shape, frames + 1
    except NoPixels as error:
        return {"has_pixel": True, "error_code": error.code}
    return {
        "has_pixel": True,
        "pixel_min": float(least),
        "pixel_max": float(most),
        "pixel_mean": total / count,
        "shape": [*([frames] if frames > 1 else []), *shape],
        "pixel_hash": digest.hexdigest(),
    }


_TAGS = pa.list_(pa.string())

SHIPPED: dict[str, Extractor] = {
    extractor.name: extractor
    for extractor in (
        Extractor(
            "paths",
            "1",
            "One row per object: where it lies, in three forms.",
            (
                Column("relative_path", pa.string(), "The path below its source folder."),
                Column("local_path", pa.string(), "Where the bytes can be opened."),
                Column("extension", pa.string(), "What follows the last dot of the name."),
            ),
            _paths,
        ),
        Extractor(
            "path_tags",
            "1",
            "One row per object: words of its path.",
            (Column("path_tags", _TAGS, "Last five words of the relative path."),),
            _path_tags,
        ),
        Extractor(
            "path_tags_strict",
            "1",
            "One row per object: words of its path, by the rule of dbx.pixels.",
            (Column("path_tags", _TAGS, "Last five words of the whole path; none when it has fewer."),),
            _strict_path_tags,
        ),
        Extractor(
            "pixel_statistics",
            "1",
            "One row per DICOM object: figures of all its stored pixel values.",
            (
                Column("has_pixel", pa.bool_(), "It has pixel data."),
                Column("pixel_min", pa.float64(), "Least stored value."),
                Column("pixel_max", pa.float64(), "Greatest stored value."),
                Column("pixel_mean", pa.float64(), "Mean of the stored values."),
                Column("shape", pa.list_(pa.int64()), "Frames if there are several, rows, columns, samples if there are several."),
                Column("pixel_hash", pa.string(), "SHA-256 of the decoded frames, little endian: the same in every transfer syntax without loss."),
            ),
            _pixel_statistics,
        ),
    )
}
"""Extractors of this package, by name; none of them runs unless it is asked for."""
