"""Where the time of `pixels ingest` goes: what the work is, what orchestration is, for one batch alone and for a batch inside a run of several.

Run by `pixels bench --phases`, over files of rich headers and pixels of 16 x 16, which is about the least work that a file can be, and over full
images. Functions are wrapped from outside and timed exclusively: what one calls of the others is not its own. CPU seconds are those of the process
that orchestrates, all its threads, and of the workers; wall seconds show what waits.

Orchestration: importing everything, starting the workers, committing (tables made, locks, the Delta log, what a batch replaces), and all that is not
wrapped: Dagster with its event log. Work: listing, reading in the workers and handing out to them, writing rows (catalog, quarantine, raw files),
checks of the rows, hierarchy and headers. Ingests of 25,000 objects and more are not for this: `headers` follows in another process then.
"""

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pixels_assets.cli import long_import
from pixels_assets.engines.processes import LOADING
from pixels_assets.imports import python_path

ORCHESTRATION = ("start: imports", "start: workers", "Dagster", "commit")
WORK = ("listing", "reading (workers)", "reading (parent)", "rows", "checks", "hierarchy", "headers")
_WRAPPED = {
    "listing": ("pixels_assets.orchestration.jobs:discover",),
    "reading (parent)": ("pixels_assets.engines.local:LocalEngine.run",),
    "rows": tuple(f"pixels_assets.engines.run:{name}" for name in ("raw_parts", "catalog_parts", "quarantine_parts")),
    "commit": (
        *(f"pixels_assets.engines.run:{name}" for name in ("commit", "superseded_paths", "retired_paths", "is_committed")),
        *(f"pixels_assets.orchestration.{name}:create_tables" for name in ("resources", "assets.extract")),
        "pixels_assets.lake.keyed:commit_files",
    ),
    "hierarchy": ("pixels_assets.orchestration.assets.rollups:update_rollups", "pixels_assets.orchestration.assets.annotations:link_annotations"),
    "headers": ("pixels_assets.orchestration.assets.headers:update_headers",),
}
_TICK = os.sysconf("SC_CLK_TCK")


class Clock:
    """Exclusive wall and CPU seconds by phase; what no phase claims is Dagster's."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self._stack = ["Dagster"]
        self._last = time.perf_counter(), time.process_time()

    def charge(self) -> None:
        """Book the time since the last call on the phase that is on."""
        now = time.perf_counter(), time.process_time()
        phase = self._stack[-1]
        self.wall[phase] = self.wall.get(phase, 0.0) + now[0] - self._last[0]
        self.cpu[phase] = self.cpu.get(phase, 0.0) + now[1] - self._last[1]
        self._last = now

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """Let time count for a phase."""
        self.charge()
        self._stack.append(phase)
        try:
            yield
        finally:
            self.charge()
            self._stack.pop()

    def wrap(self, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
        """Time a function; what a generator yields is made at once."""

        @functools.wraps(work)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.within(phase):
                made = work(*arguments, **named)
                return list(made) if isinstance(made, Iterator) else made

        return timed


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _worker_start() -> float:
    """CPU seconds that loading what workers need takes; they are forked from the process that has."""
    before = os.times()
    subprocess.run([sys.executable, "-P", "-c", LOADING], check=True, env=os.environ | {"PYTHONPATH": python_path()})
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def measure(folder: Path, out: Path) -> dict[str, Any]:
    """Ingest a folder in this process, which must be new."""
    started = time.perf_counter()
    os.environ |= {"DAGSTER_HOME": str(out), "PIXELS_QUIET_SECONDS": "0", "PIXELS_PREVIEW": "false"}
    with long_import():
        runs = importlib.import_module("pixels_assets.runs")
    checks = importlib.import_module("pixels_assets.orchestration.checks")
    settings = importlib.import_module("pixels_assets.settings").Settings.from_environment(lake=out / "lake")
    imports = time.perf_counter() - started, time.process_time()
    clock = Clock()
    for phase, places in _WRAPPED.items():
        for place in places:
            module, _, name = place.partition(":")
            owner: Any = importlib.import_module(module)
            *outer, last = name.split(".")
            for attribute in outer:
                owner = getattr(owner, attribute)
            setattr(owner, last, clock.wrap(phase, getattr(owner, last)))
    for check in checks.CHECKS:
        decorated = check.op.compute_fn
        check.op._compute_fn = decorated._replace(decorated_fn=clock.wrap("checks", decorated.decorated_fn))
    workers: dict[int, float] = {}
    processes = importlib.import_module("pixels_assets.engines.processes")
    close = processes.WorkerProcess.close

    def last_look(worker: Any) -> None:
        workers[worker.process.pid] = _cpu(worker.process.pid)
        close(worker)

    processes.WorkerProcess.close = last_look
    ran = runs.ingest(settings, [str(folder)], say=lambda line: None)
    clock.charge()
    seconds = time.perf_counter() - started
    clock.wall["start: imports"], clock.cpu["start: imports"] = imports
    clock.cpu["start: workers"] = _worker_start()
    clock.cpu["reading (workers)"] = sum(workers.values())
    return {"files": ran.files, "batches": len(ran.batches), "failed": ran.failed, "seconds": seconds, "wall": clock.wall, "cpu": clock.cpu}


def share(cpu: dict[str, float]) -> float:
    """Part of the CPU time that is orchestration."""
    return sum(cpu.get(phase, 0.0) for phase in ORCHESTRATION) / sum(cpu.values())


def within_a_run(one: dict[str, Any], several: dict[str, Any]) -> dict[str, float]:
    """CPU seconds of one more batch: what a run of several takes beyond a run of one, by batch."""
    more = several["batches"] - one["batches"]
    phases = dict.fromkeys([*ORCHESTRATION, *WORK])
    return {phase: max(0.0, several["cpu"].get(phase, 0.0) - one["cpu"].get(phase, 0.0)) / more for phase in phases}


def table(columns: dict[str, dict[str, float]]) -> str:
    """Write CPU seconds and their shares for people, by column and phase."""
    lines = [f"{'CPU s':20}" + "".join(f"{name:>26}" for name in columns)]
    sums = {name: sum(cpu.values()) for name, cpu in columns.items()}
    for phase in (*ORCHESTRATION, *WORK):
        values = [(cpu.get(phase, 0.0), cpu.get(phase, 0.0) / sums[name]) for name, cpu in columns.items()]
        lines.append(f"{phase:20}" + "".join(f"{seconds:18.2f} {part:7.1%}" for seconds, part in values))
    lines.append(f"{'orchestration':20}" + "".join(f"{share(cpu):26.1%}" for cpu in columns.values()))
    lines.append(f"{'all':20}" + "".join(f"{sums[name]:18.2f}{'':8}" for name in columns))
    return "\n".join(lines)


def compare(folder: Path, files: int, batches: int = 3) -> dict[str, Any]:
    """Measure one batch of so many files, several, and one of full images, each in a process of its own; the files are made.

    Parameters
    ----------
    folder : Path
        Where the files are kept.
    files, batches : int

    Returns
    -------
    dict
        What `measure` found as ``alone``, ``several`` and ``images``; ``columns`` for `table`.
    """
    from benchmarks.data import write_headers, write_images  # not in the process that is measured, which would load it for nothing

    for count in (1, batches):
        write_headers(folder / f"batches{count}", files * count)
    full = len(write_images(folder / "images", files))  # as many in each transfer syntax
    alone, several = (_measured(folder / f"batches{count}", files) for count in (1, batches))
    images = _measured(folder / "images", full)
    columns = {"16 x 16, alone": alone["cpu"], "16 x 16, in a run": within_a_run(alone, several), "512 x 512, alone": images["cpu"]}
    return {"alone": alone, "several": several, "images": images, "columns": columns, "shares": {name: share(cpu) for name, cpu in columns.items()}}


def _measured(place: Path, files: int) -> dict[str, Any]:
    root = Path(__file__).resolve().parents[1]
    with tempfile.TemporaryDirectory(prefix="bench-") as out:
        command = [sys.executable, "-m", "benchmarks.phases", str(place), out]
        environment = os.environ | {"PIXELS_BATCH_FILES": str(files)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure one folder."""
    folder, out = arguments or sys.argv[1:]
    print(json.dumps(measure(Path(folder), Path(out))))


if __name__ == "__main__":
    main()
