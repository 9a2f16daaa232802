"""The Python interface: `Catalog`. Thin: it opens no process and no Dagster before it is asked to ingest."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl
import pyarrow.dataset as ds

from pixels_assets.lake import query
from pixels_assets.settings import Settings

if TYPE_CHECKING:
    from pixels_assets.lake.maintenance import Maintained
    from pixels_assets.runs import Ingested


class Catalog:
    """A lake, from Python.

    Parameters
    ----------
    lake : path, optional
        Folder of the Delta tables. Default: PIXELS_LAKE, else ``var/lake``.
    **settings
        Any other field of `pixels_assets.settings.Settings`.

    Examples
    --------
    >>> catalog = Catalog("var/lake")  # doctest: +SKIP
    >>> catalog.ingest("/data/images")  # doctest: +SKIP
    >>> catalog.sql("select Modality, count(*) from object_catalog group by 1")  # doctest: +SKIP
    """

    def __init__(self, lake: str | os.PathLike[str] | None = None, **settings: object) -> None:
        self.settings = Settings.from_environment(lake=lake, **settings)

    def ingest(self, *sources: str | os.PathLike[str], mode: str = "append") -> "Ingested":
        """Bring in what is new, changed, moved or gone in folders; see `pixels_assets.runs.ingest`."""
        from pixels_assets.runs import ingest

        return ingest(self.settings, sources, mode=mode)

    def retry(self, *statuses: str) -> "Ingested":
        """Give objects in quarantine a new attempt, all or those with one of these statuses."""
        from pixels_assets.runs import retry

        return retry(self.settings, statuses)

    def maintain(self, *, dry_run: bool = False) -> "list[Maintained]":
        """Compact small files, write checkpoints, remove what no reader needs any more; see `pixels_assets.lake.maintenance`."""
        from pixels_assets.lake.maintenance import maintain

        return maintain(self.settings.lake, dry_run=dry_run)

    def load(self) -> pl.LazyFrame:
        """Open the object catalog as a lazy frame: one row per object now known."""
        return self.table("object_catalog")

    def table(self, name: str) -> pl.LazyFrame:
        """Open any table as a lazy frame.

        Raises
        ------
        UsageError
            There is no such table; the message names near ones.
        """
        return query.scan(self.settings.lake, name)

    def arrow(self, name: str = "object_catalog") -> ds.Dataset:
        """Open any table as an Arrow data set; ``.to_batches()`` streams it, ``.to_table(columns=..., filter=...)`` reads what is wanted.

        Raises
        ------
        UsageError
            There is no such table; the message names near ones.
        """
        return query.dataset(self.settings.lake, name)

    def sql(self, statement: str, parameters: Sequence[object] = (), *, attach: Mapping[str, object] | None = None) -> duckdb.DuckDBPyRelation:
        """Run a DuckDB query over all tables; ``.pl()``, ``.df()``, ``.arrow()`` or ``.fetchall()`` give the result.

        Parameters
        ----------
        statement : str
            It can use the functions of `pixels_assets.lake.sql`, such as ``tag(meta, 'PatientName')``.
        parameters : sequence, optional
            Values for ``?`` in the statement.
        attach : mapping of str to object, optional
            More tables by name: a data frame, an Arrow table, or the path of a CSV, JSON or Parquet file, a folder of Parquet files, a Delta table.

        Raises
        ------
        UsageError
            The statement is malformed, writes, or names what is not there.
        """
        from pixels_assets.lake import sql

        return sql.query(sql.connect(self.settings.lake, attach), statement, parameters)

    def schema(self, name: str = "headers") -> list[dict[str, Any]]:
        """Return the columns of a table as BigQuery's JSON schema: name, type, mode, and the fields of records.

        Raises
        ------
        UsageError
            There is no such table; the message names near ones.
        """
        from pixels_assets.lake.describe import bigquery_schema

        return bigquery_schema(self.settings.lake, name)

    def tags(self) -> pl.DataFrame:
        """List every attribute that was seen: path, tag, creator, VR, objects that have it, their share, the batch that had it first."""
        from pixels_assets.lake.describe import seen_tags

        return seen_tags(self.settings.lake)

    def diff(self, first: str | os.PathLike[str], second: str | os.PathLike[str] | None = None) -> pl.DataFrame:
        """Compare two objects, element by element.

        Parameters
        ----------
        first, second : path or str
            Each a file, an address of the catalog, or a SOPInstanceUID. Without `second`: a SOPInstanceUID, whose versions are compared.

        Returns
        -------
        polars.DataFrame
            One row per element that differs: ``left`` and ``right``, the objects' addresses, ``tag``, ``keyword``, ``left_value``, ``right_value``.
        """
        from pixels_assets.lake.versions import compare

        found = compare(self.settings.lake, os.fspath(first), None if second is None else os.fspath(second), self.settings.limits)
        rows = [(one.left, one.right, item.tag, item.keyword, item.left, item.right) for one in found for item in one.differences]
        names = ("left", "right", "tag", "keyword", "left_value", "right_value")
        return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.String), orient="row")

    def status(self) -> query.LakeStatus:
        """Figures of the lake."""
        return query.status(self.settings.lake)
