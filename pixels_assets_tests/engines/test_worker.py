"""What a worker says about itself can be believed at any moment, whoever looks and however it ended."""

import subprocess
import sys
import tempfile
import textwrap
import time

import pytest

from pixels_assets.engines.processes import MONITOR_BYTES, RESTING, Monitor, State


@pytest.fixture
def busy_writer():
    """A monitor that another process writes to without a pause, two states in turn."""
    program = textwrap.dedent("""
        import sys, time
        from pixels_assets.engines.processes import Monitor, State
        monitor = Monitor(int(sys.argv[1]))
        while True:
            monitor.write(State(1, time.monotonic_ns(), 7, 1))
            monitor.write(State(2, time.monotonic_ns(), 8, 2))
    """)
    with tempfile.TemporaryFile() as file:
        file.truncate(MONITOR_BYTES)
        monitor = Monitor(file.fileno())
        monitor.write(State(0, 0, RESTING, 0))
        with subprocess.Popen([sys.executable, "-c", program, str(file.fileno())], pass_fds=[file.fileno()]) as writer:
            while monitor.read().row == RESTING:
                assert writer.poll() is None
                time.sleep(0.01)
            yield monitor, writer
            writer.kill()


def test_a_monitor_read_in_the_middle_of_a_change_never_shows_what_was_not_said(busy_writer):
    monitor, _ = busy_writer
    started = time.monotonic_ns() - 60 * 10**9
    for _ in range(300_000):
        state = monitor.read()
        assert state.row in {7, 8}
        assert state.file in {1, 2}
        assert state.since > started


def test_a_monitor_still_says_what_was_in_hand_when_its_writer_was_killed(busy_writer):
    monitor, writer = busy_writer
    writer.kill()
    writer.wait()
    assert monitor.read().row in {7, 8}
