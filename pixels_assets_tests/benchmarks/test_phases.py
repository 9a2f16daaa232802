"""What is orchestration and what is work: time is booked once, and an ingest has all phases. How long they take is not tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.data import write_headers
from benchmarks.phases import ORCHESTRATION, WORK, Clock, share, table, within_a_run


def test_time_counts_for_the_innermost_phase_only():
    clock = Clock()

    def inner():
        yield from (sum(range(number)) for number in (100_000, 200_000))

    listed = clock.wrap("rows", inner)
    outer = clock.wrap("commit", lambda: [listed(), sum(range(100))])
    outer()
    clock.charge()
    assert set(clock.cpu) == {"Dagster", "commit", "rows"}
    assert clock.cpu["rows"] > clock.cpu["commit"]
    assert outer()[0] == [4999950000, 19999900000]


def test_the_share_of_a_batch_within_a_run_leaves_out_what_is_paid_once():
    one = {"batches": 1, "seconds": 3.0, "wall": {}, "cpu": {"start: imports": 2.0, "commit": 0.5, "reading (workers)": 2.5}}
    three = {"batches": 3, "seconds": 9.0, "wall": {}, "cpu": {"start: imports": 2.0, "commit": 1.5, "reading (workers)": 7.5}}
    inside = within_a_run(one, three)
    assert (inside["start: imports"], inside["commit"], inside["reading (workers)"]) == (0.0, 0.5, 2.5)
    assert share(one["cpu"]) == pytest.approx(0.5)
    assert share(inside) == pytest.approx(1 / 6)
    assert "50.0%" in table({"alone": one["cpu"], "in a run": inside})


def test_an_ingest_has_all_phases(tmp_path):
    write_headers(tmp_path / "in", 3)
    (tmp_path / "out").mkdir()
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-m", "benchmarks.phases", str(tmp_path / "in"), str(tmp_path / "out")]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root)
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["files"], found["batches"], found["failed"]) == (3, 1, {})
    assert set(found["cpu"]) == {*ORCHESTRATION, *WORK}
