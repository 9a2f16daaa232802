"""Metadata made again from kept headers, with the sources gone."""

import os
import shutil
import zipfile
from pathlib import Path

import polars as pl
import pydicom.data
import pytest

import pixels_assets
from pixels_assets import Catalog, runs
from pixels_assets.engines.rebuild import _with_end_of
from pixels_assets.errors import UsageError
from pixels_assets.lake.commit import commit, create_tables
from pixels_assets.lake.parts import part_from_table
from pixels_assets.lake.schema import DICOM_METADATA, OBJECT_CATALOG
from pixels_assets_tests.tablehash import table_hashes

ROOT = Path(pixels_assets.__file__).parents[1]
NAMES = ["CT_small.dcm", "693_J2KI.dcm", "ExplVR_BigEnd.dcm", "rtplan.dcm", "image_dfl.dcm", "no_meta.dcm", "reportsi.dcm", "DICOMDIR"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rebuild")
    shutil.copy(ROOT / "dagster.yaml", folder)
    before = os.environ.get("DAGSTER_HOME")
    os.environ["DAGSTER_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["DAGSTER_HOME"]
    else:
        os.environ["DAGSTER_HOME"] = before


@pytest.fixture(scope="module")
def catalog(place):
    source = place / "source"
    source.mkdir()
    for name in NAMES:
        found = pydicom.data.get_testdata_file(name)
        if found:
            shutil.copy(str(found), source)
    with zipfile.ZipFile(source / "a.zip", "w") as archive:
        archive.write(source / "CT_small.dcm", "inner")
    (source / "text").write_bytes(b"hello")
    (source / "padded").write_bytes((source / "CT_small.dcm").read_bytes() + bytes(8) + b"\x10\x00\x00\x40LT\x04\x00MINE")
    syntax = b"\x02\0\x10\0UI\x16\x001.2.840.10008.1.2.4.91"
    (source / "nameless").write_bytes((source / "693_J2KI.dcm").read_bytes().replace(syntax, b"\x02\0\x10\0UI\0\0"))
    made = Catalog(place / "lake", quiet_seconds=0.0, workers=1, batch_files=4)
    made.ingest(source)
    source.rename(place / "hidden")
    return made


def test_unchanged_code_changes_nothing_and_needs_no_source(catalog) -> None:
    before = table_hashes(catalog.settings.lake)
    done = runs.rebuild(catalog.settings)
    assert table_hashes(catalog.settings.lake) == before
    indexed = catalog.sql("select count(*) from object_catalog where status = 'indexed'").fetchone()
    assert (done["rebuilt"],) == indexed
    assert (done["without_header"], done["unreadable_header"]) == (0, 0)
    assert done["rebuilt"] + done["not_indexed"] == catalog.table("dicom_metadata").select(pl.len()).collect().item()


def test_a_lost_catalog_is_made_again(catalog) -> None:
    before = table_hashes(catalog.settings.lake)
    shutil.rmtree(catalog.settings.lake / OBJECT_CATALOG.name)
    create_tables(catalog.settings.lake)
    runs.rebuild(catalog.settings)
    assert table_hashes(catalog.settings.lake) == before


def test_what_was_wrong_is_right_again_in_the_chosen_batch_only(catalog) -> None:
    lake, before = catalog.settings.lake, table_hashes(catalog.settings.lake)
    one, other, *_ = catalog.status().batches
    kept = pl.when(pl.col("path").str.ends_with("693_J2KI.dcm").not_()).then("header")  # as of one that is over 16 MiB
    for batch in (one, other):
        rows = catalog.table("dicom_metadata").filter(pl.col("batch") == batch).drop("batch").collect()
        spoilt = rows.with_columns(Modality=pl.lit("XX"), meta=pl.lit("{}"), header=kept)
        part = part_from_table(lake, DICOM_METADATA, batch, "spoilt", spoilt.to_arrow())
        commit(lake, DICOM_METADATA, batch, [part], run_id="test")
    states = "select batch, status, header is not null, Modality = 'XX', count(*) from dicom_metadata where batch in (?, ?) group by all"
    assert all(is_spoilt for _, _, _, is_spoilt, _ in catalog.sql(states, [one, other]).fetchall())
    done = runs.rebuild(catalog.settings, [one])
    found = catalog.sql(states, [one, other]).fetchall()
    right = {(batch, has_header) for batch, status, has_header, is_spoilt, _ in found if not is_spoilt}
    assert right == {(one, True)}
    assert not [row for row in found if row[:4] == (one, "indexed", True, True)]
    assert done["without_header"] == sum(count for batch, status, has, _, count in found if (batch, status, has) == (one, "indexed", False)) > 0
    assert table_hashes(lake) != before


def test_a_batch_that_there_is_not_is_named(catalog) -> None:
    with pytest.raises(UsageError, match="there is no batch '20200101T000000-0000'"):
        runs.rebuild(catalog.settings, ["20200101T000000-0000"])


@pytest.mark.parametrize(
    ("meta", "before", "found", "behind"),
    [
        ('{"00080060":{}}', None, '{"00080060":{}}', []),
        ('{"00080060":{}}', '{"00080060":{"a":2}}', '{"00080060":{}}', []),
        (
            '{"00080060":{}}',
            '{"00080060":{"a":2},"7FE00010":{"vr":"OW"},"FFFCFFFC":{"a":1e-05}}',
            '{"00080060":{},"7FE00010":{"vr":"OW"},"FFFCFFFC":{"a":1e-05}}',
            ["7FE00010", "FFFCFFFC"],
        ),
        (
            '{"00880200":{"Value":[]}}',
            '{"00880200":{"Value":[{"7FE00010":5}]},"7FE00010":{}}',
            '{"00880200":{"Value":[]},"7FE00010":{}}',
            ["7FE00010"],
        ),
        ("{}", '{"7FE00010":{}}', '{"7FE00010":{}}', ["7FE00010"]),
        ('{"7FE00010":{"a":1}}', '{"7FE00010":{"a":6}}', '{"7FE00010":{"a":1}}', []),
        (
            '{"00080060":{"a":1e-05},"00100010":{}}',
            '{"00000000":{"vr":"UL"},"00080060":{},"00080070":{"b":"]}\\""},"00100010":{},"7FE00010":{}}',
            '{"00000000":{"vr":"UL"},"00080060":{"a":1e-05},"00080070":{"b":"]}\\""},"00100010":{},"7FE00010":{}}',
            ["00000000", "00080070", "7FE00010"],
        ),
    ],
)
def test_what_follows_the_header_is_taken_from_what_was_known(meta, before, found, behind) -> None:
    assert _with_end_of(meta, before) == (found, frozenset(behind))
