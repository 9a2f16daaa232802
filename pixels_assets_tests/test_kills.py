"""Runs that are killed at random moments and started again: in the end the tables are those of a run that nothing happened to.

PIXELS_KILLS says how often; with it and PIXELS_CORPUS the runs go over that folder, with PIXELS_KILL_FILES over so many files, most
of them links to the same few: ``PIXELS_KILLS=50 PIXELS_KILL_FILES=20000`` takes an hour.
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

KILLS = int(os.environ.get("PIXELS_KILLS") or 1)
CORPUS = os.environ.get("PIXELS_CORPUS") if os.environ.get("PIXELS_KILLS") else None
FILES = int(os.environ.get("PIXELS_KILL_FILES") or 0)
BATCH_FILES = str(max(FILES // 20, 5)) if FILES else "200" if CORPUS else "5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pile = tmp_path_factory.mktemp("pile") / "in"
    if not FILES:
        return Path(CORPUS) if CORPUS else fill(pile)
    pile.mkdir()
    different = sorted(path for path in fill(pile / "0").iterdir() if "slow" not in path.name)
    for number in range(len(different), FILES):
        link = pile / str(1 + number // 1_000) / f"{number}.dcm"
        link.parent.mkdir(exist_ok=True)
        link.hardlink_to(different[number % len(different)])
    return pile


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


def test_a_run_that_was_killed_again_and_again_ends_with_the_tables_of_an_undisturbed_one(folder, undisturbed, tmp_path):
    """Now all of its processes at once, now the one that the user started."""
    expected, seconds = undisturbed
    moments = random.Random(KILLS)
    kills = lakes = 0
    home = tmp_path / "0"
    while True:
        moment = moments.uniform(0.2, 1.0) * seconds if kills < KILLS else None
        started = time.monotonic()
        if not run(folder, home, moment, group=kills % 2 == 0):
            kills += 1
            continue
        seconds = min(seconds, time.monotonic() - started)  # the machine may have been busier when the undisturbed run was timed
        assert table_hashes(home / "lake") == expected
        if kills == KILLS:
            break
        lakes += 1
        home = tmp_path / str(lakes)
