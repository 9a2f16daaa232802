"""Reading the lake: lazy frames, Arrow data sets, and the figures that `pixels status` shows. SQL is in `pixels_assets.lake.sql`.

Must not write. `pixels_assets.lake.commit` writes.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds

from pixels_assets.errors import LakeError, UsageError
from pixels_assets.intake.objects import Status
from pixels_assets.lake import headers
from pixels_assets.lake.changes import manifests
from pixels_assets.lake.commit import committed, is_table, live_parts, open_table, part_files
from pixels_assets.lake.keyed import scan_paths
from pixels_assets.lake.parts import lake_error
from pixels_assets.lake.schema import OBJECT_CATALOG, QUARANTINE, TABLES, Table


@dataclass(frozen=True, slots=True)
class LakeStatus:
    """What a lake holds.

    Parameters
    ----------
    versions : dict of str to int
        Delta version by table.
    rows : dict of str to int
        Rows by table; `headers`, which has no versions, comes last when it was made.
    statuses : dict of str to int
        Objects of `object_catalog` by status.
    batches, pending : list of str
        All sealed batches; those that have not run to the end.
    quarantine : list of (status, error_code, objects, due)
        Objects in quarantine, and how many of them are due for another attempt.
    patients, studies, series, instances : int
        Distinct values among indexed objects.
    bytes : int
        Bytes of the loose files and archives now known.
    """

    versions: dict[str, int]
    rows: dict[str, int]
    statuses: dict[str, int]
    batches: list[str]
    pending: list[str]
    quarantine: list[tuple[str, str, int, int]]
    patients: int
    studies: int
    series: int
    instances: int
    bytes: int


def exists(lake: Path) -> bool:
    """Whether there is a lake in this folder."""
    return is_table(lake, OBJECT_CATALOG.name)


def table_names(lake: Path) -> list[str]:
    """Names of all tables of a lake, those of extractors last."""
    with suppress(OSError):
        more = sorted(folder.name for folder in lake.iterdir() if folder.name not in TABLES and (folder / "_delta_log").is_dir())
        return [*TABLES, headers.NAME, *more]
    return [*TABLES, headers.NAME]


def scan(lake: Path, table: str) -> pl.LazyFrame:
    """One table as a lazy frame.

    Raises
    ------
    UsageError
        There is no such table, or no lake.
    """
    _require(lake, table)
    if table == headers.NAME:
        return headers.scan_headers(lake)
    return pl.scan_delta(open_table(lake, table))


def scan_batch(lake: Path, table: Table, batch: str) -> pl.LazyFrame:
    """Rows of one batch as a lazy frame; the files of all others are not looked at.

    Raises
    ------
    UsageError
        There is no lake.
    """
    require_lake(lake)
    return scan_paths(table, part_files(lake, table, [batch]))


def dataset(lake: Path, table: str) -> ds.Dataset:
    """One table, as it is now, as an Arrow data set: it reads batches of rows, only the columns and parts that are asked for.

    Raises
    ------
    UsageError
        There is no such table, or no lake.
    """
    _require(lake, table)
    if table == headers.NAME:
        return headers.headers_dataset(lake)
    if not is_table(lake, table):
        return ds.dataset(TABLES[table].arrow.empty_table())  # of a lake that is older than the table
    return open_table(lake, table).to_pyarrow_dataset()


def pending_batches(lake: Path) -> list[str]:
    """Sealed batches that have not run to the end, oldest first."""
    sealed = manifests(lake).keys()
    finished = committed(lake, QUARANTINE, sealed)
    return [key for key in sealed if key not in finished]


def finished_batches(lake: Path, chosen: Collection[str] = ()) -> list[str]:
    """Batches that have run to the end, oldest first; only the chosen ones when some are named.

    Raises
    ------
    UsageError
        There is no such batch, it has not run to the end, or there is no lake.
    """
    require_lake(lake)
    sealed = manifests(lake).keys()
    finished = committed(lake, QUARANTINE, sealed)
    wrong = sorted(set(chosen) - finished)
    if wrong:
        near = get_close_matches(wrong[0], sorted(finished), 3)
        is_sealed = wrong[0] in set(sealed)
        what = f"batch {wrong[0]!r} has not run to the end; ingest its files again" if is_sealed else f"there is no batch {wrong[0]!r}"
        raise UsageError(what + (f"; did you mean {' or '.join(near)}?" if near and not is_sealed else ""))
    return [key for key in sealed if key in finished and (not chosen or key in chosen)]


@contextmanager
def damage_told(lake: Path) -> Iterator[None]:
    """Let a file that is missing or cut be named, where readers raise whatever they like.

    Raises
    ------
    LakeError
        In place of what a reader raised.
    """
    try:
        yield
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException) as error:
        for table in TABLES.values():
            if not is_table(lake, table.name):
                continue
            for part in live_parts(lake, table):
                path = lake / table.name / part.path
                size = path.stat().st_size if path.exists() else None
                if size != part.size:
                    what = "is missing" if size is None else f"has {size} bytes instead of {part.size}"
                    msg = f"{path}, a part of {table.name}, {what}; put it back from a copy, or ingest the sources into another folder with --lake"
                    raise LakeError(msg) from error
        action = "read the lake"
        raise lake_error(action, lake, error) from error


def status(lake: Path) -> LakeStatus:
    """Figures of a lake.

    Raises
    ------
    LakeError
        A file of the lake is missing or damaged.
    """
    with damage_told(lake):
        return _status(lake)


def _status(lake: Path) -> LakeStatus:
    catalog = scan(lake, OBJECT_CATALOG.name)
    indexed = catalog.filter(pl.col("status") == "indexed")
    # By hash and streamed: a million UIDs side by side would take more memory than all the rest of a run.
    distinct = indexed.select(
        patients=pl.col("PatientID").drop_nulls().hash().n_unique(),
        studies=pl.col("StudyInstanceUID").drop_nulls().hash().n_unique(),
        series=pl.col("SeriesInstanceUID").drop_nulls().hash().n_unique(),
        instances=pl.col("SOPInstanceUID").drop_nulls().hash().n_unique(),
    ).collect(engine="streaming")
    statuses = catalog.group_by("status").len().sort("status").collect(engine="streaming")
    loose = catalog.filter(pl.col("path") == pl.col("original_path")).select(pl.col("length").sum()).collect(engine="streaming").item()
    quarantine = (
        scan(lake, QUARANTINE.name).group_by("status", "error_code").agg(pl.len(), pl.col("retry_due").sum()).sort("status", "error_code").collect()
    )
    nested = headers.load(lake)
    present = [name for name in TABLES if is_table(lake, name)]  # a lake may be older than a table
    return LakeStatus(
        versions={name: open_table(lake, name).version() for name in present},
        rows={name: scan(lake, name).select(pl.len()).collect().item() for name in present}
        | ({headers.NAME: sum(nested.files.values())} if nested else {}),
        statuses=dict(statuses.iter_rows()),
        batches=manifests(lake).keys(),
        pending=pending_batches(lake),
        quarantine=list(quarantine.iter_rows()),
        patients=distinct["patients"].item(),
        studies=distinct["studies"].item(),
        series=distinct["series"].item(),
        instances=distinct["instances"].item(),
        bytes=int(loose or 0),
    )


def batch_rows(lake: Path, table: Table, batch: str) -> int:
    """Rows that one batch has in a table."""
    return int(scan_batch(lake, table, batch).select(pl.len()).collect().item())


def quarantined_batches(lake: Path, statuses: Collection[str]) -> dict[str, int]:
    """Count objects in quarantine with one of these statuses, by batch; all statuses when none is named.

    Raises
    ------
    UsageError
        There is no such status, or no lake.
    """
    _require_statuses(statuses)
    rows = scan(lake, QUARANTINE.name)
    if statuses:
        rows = rows.filter(pl.col("status").is_in(list(statuses)))
    return dict(rows.group_by("batch").len().sort("batch").collect().iter_rows())


def quarantined_files(lake: Path, batch: str, statuses: Collection[str]) -> frozenset[str]:
    """Find the outermost files of a batch that hold an object in quarantine with one of these statuses.

    Raises
    ------
    UsageError
        There is no such status, or no lake.
    """
    _require_statuses(statuses)
    rows = scan_batch(lake, QUARANTINE, batch).filter(pl.col("status").is_in(list(statuses)))
    return frozenset(rows.select("original_path").unique().collect()["original_path"])


def _require_statuses(statuses: Collection[str]) -> None:
    unknown = sorted(set(statuses) - set(Status))
    if unknown:
        msg = f"there is no status {unknown[0]!r}; the statuses are {', '.join(Status)}"
        raise UsageError(msg)


def _require(lake: Path, table: str) -> None:
    if table not in TABLES and table not in table_names(lake):
        near = get_close_matches(table, table_names(lake), 3)
        msg = f"there is no table {table!r}; " + (f"did you mean {' or '.join(near)}?" if near else f"the tables are {', '.join(table_names(lake))}")
        raise UsageError(msg)
    require_lake(lake)


def require_lake(lake: Path) -> None:
    """Refuse a folder that holds no lake.

    Raises
    ------
    UsageError
        There is no lake.
    """
    if not exists(lake):
        msg = f"there is no lake in {lake}; make one with `pixels ingest SRC --lake {lake}`"
        raise UsageError(msg)
