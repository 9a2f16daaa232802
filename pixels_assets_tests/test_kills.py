"""Runs that are killed at random moments and started again: in the end the tables are those of a run that nothing happened to.

PIXELS_KILLS says how often each test kills; with PIXELS_CORPUS the runs go over that folder.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pixels_assets_tests.commands import assert_gone, fill, start, workers_of
from pixels_assets_tests.tablehash import table_hashes

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")]

KILLS = int(os.environ.get("PIXELS_KILLS") or 3)
CORPUS = os.environ.get("PIXELS_CORPUS")
BATCH_FILES = "200" if CORPUS else "5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Path(CORPUS) if CORPUS else fill(tmp_path_factory.mktemp("pile") / "in")


def run(folder, home, moment=None, number=signal.SIGKILL, *, group=True):
    """Run to the end, or to a moment in seconds; True when it came to its end."""
    with start(["ingest", folder, "--lake", home / "lake"], home, PIXELS_BATCH_FILES=BATCH_FILES, quiet=True) as process:
        try:
            code = process.wait(moment)
        except subprocess.TimeoutExpired:
            workers = workers_of(process.pid)
            (os.killpg if group else os.kill)(process.pid, number)
            process.wait()
            assert_gone(workers)
            return False
    assert code == 0
    return True


@pytest.fixture(scope="module")
def undisturbed(folder, tmp_path_factory):
    """Hashes of the tables and seconds of a run that nothing happened to."""
    home = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    assert run(folder, home)
    return table_hashes(home / "lake"), time.monotonic() - started


@pytest.mark.parametrize("group", [True, False], ids=["group", "driver"])
def test_a_run_that_was_killed_again_and_again_ends_with_the_tables_of_an_undisturbed_one(folder, undisturbed, tmp_path, group):
    expected, seconds = undisturbed
    moments = random.Random(f"{group} {KILLS}")
    kills = lakes = 0
    home = tmp_path / "0"
    while True:
        moment = moments.uniform(0.2, 1.0) * seconds if kills < KILLS else None
        started = time.monotonic()
        if not run(folder, home, moment, group=group):
            kills += 1
            continue
        seconds = min(seconds, time.monotonic() - started)  # the machine may have been busier when the undisturbed run was timed
        assert table_hashes(home / "lake") == expected
        if kills == KILLS:
            break
        lakes += 1
        home = tmp_path / str(lakes)
