"""The benchmark works: files are made, contenders run, figures add up. What it measures is not tested."""

import json

import pydicom
import pytest

from benchmarks.bench import Run, chart, is_here, main, summary, table
from benchmarks.contenders import CONTENDERS
from benchmarks.data import SERIES, write_headers, write_images

PROMISED = {"read_only", "pixels_metadata", "pixels_thumbnails", "pixels_ingest", "pydicom_pool", "accelerator", "flattened", "dcm2parquet"}


def test_headers_are_rich_readable_and_differ_within_a_series(tmp_path):
    paths = write_headers(tmp_path, SERIES + 3)
    read = [pydicom.dcmread(path) for path in (*paths[:3], *paths[-3:])]
    assert len(paths) == SERIES + 3
    assert len({dataset.SOPInstanceUID for dataset in read}) == 6
    assert len({dataset.SeriesInstanceUID for dataset in read}) == 2
    assert all(len(dataset) > 100 and any(element.tag.is_private for element in dataset) for dataset in read)
    assert write_headers(tmp_path, SERIES + 3) == paths


def test_images_are_written_once(tmp_path):
    paths = write_images(tmp_path, 9)
    assert len(paths) == 9
    assert write_images(tmp_path, 9) == paths


@pytest.mark.parametrize("name", ["read_only", "reader", "pixels_metadata", "flattened", "dcm2parquet"])
def test_a_contender_takes_all_files_without_an_error(name, tmp_path):
    (tmp_path / "out").mkdir()
    write_headers(tmp_path / "in", 3)
    counts = CONTENDERS[name](tmp_path / "in", tmp_path / "out")
    assert counts["files"] == 3
    assert not counts.get("errors")


def test_the_command_reports_to_people_machines_and_the_eye(tmp_path, capsys):
    arguments = ["--headers", "4", "--images", "0", "--only", "read_only", "--rounds", "1"]
    assert main([*arguments, "--json", str(tmp_path / "b.json"), "--chart", str(tmp_path / "b.png")]) == 0
    assert "read_only" in capsys.readouterr().out
    (run,) = json.loads((tmp_path / "b.json").read_text())["runs"]
    assert (run["files"], run["errors"]) == (4, 0)
    assert set(CONTENDERS) >= PROMISED
    assert not is_here("orthanc") or is_here("read_only")


def test_the_summary_takes_medians_and_compares_with_the_accelerator(tmp_path):
    def run(name, seconds):
        return Run("headers", name, 100, 0, seconds, seconds, 1 << 20, 500)

    rows = summary([run("accelerator", 10.0), run("pixels_metadata", 1.0), run("pixels_metadata", 3.0), run("pixels_metadata", 2.0)])
    assert {row["name"]: row["times_accelerator"] for row in rows} == {"accelerator": 1.0, "pixels_metadata": 5.0}
    assert "5.0x" in table(rows)
    chart(rows, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
