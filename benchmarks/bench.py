"""The benchmark: this project and its peers over the same files, alternating, each in processes of their own.

Holds the order of things, the watch over a contender's processes, and the report: a table for people, JSON for machines, a chart. What a contender
does is in `benchmarks.contenders`, what the files are in `benchmarks.data`.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import phases
from benchmarks.contenders import CONTENDERS
from benchmarks.data import write_headers, write_images, write_zip

HEADERS = (
    "read_only",
    "reader",
    "reader_shuffled",
    "pixels_metadata",
    "pixels_ingest",
    "pydicom_pool",
    "accelerator",
    "flattened",
    "dcm2parquet",
    "orthanc",
)
IMAGES = ("pixels_metadata", "pixels_thumbnails", "accelerator_thumbnails")
ZIPPED = ("pixels_metadata",)
_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_BASELINE = {"headers": "accelerator", "images": "accelerator_thumbnails"}


@dataclass(slots=True)
class Run:
    """One contender over one set, once.

    Parameters
    ----------
    set, name : str
    files, errors : int
    seconds : float
        Wall time, of the process with all that it starts.
    cpu : float
        CPU seconds of its processes.
    peak : int
        Largest resident memory of one of its processes, bytes.
    disk : int
        Bytes that it left.
    """

    set: str
    name: str
    files: int
    errors: int
    seconds: float
    cpu: float
    peak: int
    disk: int


class _Watch(threading.Thread):
    """Looks at all processes of a session: CPU time and peak memory."""

    def __init__(self, session: int) -> None:
        super().__init__(daemon=True)
        self.session, self.over = session, threading.Event()
        self.cpu: dict[int, float] = {}
        self.peak = 0

    def run(self) -> None:
        while not self.over.wait(0.1):
            self.look()

    def look(self) -> None:
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
                if int(fields[3]) != self.session:
                    continue
                self.cpu[int(entry.name)] = (int(fields[11]) + int(fields[12])) / _TICK
                self.peak = max(self.peak, int(fields[21]) * _PAGE)
            except (OSError, ValueError, IndexError):
                continue


def measure(name: str, kind: str, folder: Path) -> Run | None:
    """Run one contender; None when it cannot run here."""
    with tempfile.TemporaryDirectory(prefix="bench-") as out:
        command = [sys.executable, "-m", "benchmarks.contenders", name, str(folder), out]
        root = Path(__file__).resolve().parents[1]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=root, env=environment
        )
        watch = _Watch(process.pid)
        watch.start()
        output, errors = process.communicate()
        seconds = time.perf_counter() - started
        watch.over.set()
        watch.join()
        if process.returncode:
            reason = (errors.strip().splitlines() or ["no reason"])[-1]
            is_missing = "No module named" in reason or "must be installed" in reason
            advice = "; the peers' packages come with pip install -c constraints.txt -e '.[bench]'" if is_missing else ""
            print(f"{name}: did not run: {reason}{advice}", file=sys.stderr)
            return None
        counts = json.loads(output.splitlines()[-1])
        disk = sum(path.stat().st_size for path in Path(out).rglob("*") if path.is_file())
        cpu = counts.get("reader_cpu", sum(watch.cpu.values()))
        seconds = counts["reader_cpu"] if "reader_cpu" in counts else counts["seconds"] if name == "orthanc" else seconds
        return Run(kind, name, int(counts["files"]), int(counts.get("errors", 0)), seconds, cpu, watch.peak, disk)


def is_here(name: str) -> bool:
    """Whether what a contender needs is installed."""
    needs = {"orthanc": ("Orthanc", "unshare"), "accelerator": ("java",), "accelerator_thumbnails": ("java",)}
    return all(shutil.which(program) for program in needs.get(name, ()))


def compare(sets: dict[str, tuple[Path, Sequence[str]]], rounds: int) -> list[Run]:
    """Run all contenders over their sets, round after round."""
    runs = []
    for turn in range(rounds):
        for kind, (folder, names) in sets.items():
            for name in names:
                if is_here(name):
                    run = measure(name, kind, folder)
                    runs += [run] if run else []
                elif not turn:
                    print(f"{name}: not installed here, left out", file=sys.stderr)
    return runs


def summary(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Medians of all rounds, and how many times faster than the accelerator's way over the same files."""
    rows: list[dict[str, object]] = []
    rates: dict[tuple[str, str], float] = {}
    for kind, name in dict.fromkeys((run.set, run.name) for run in runs):
        own = [run for run in runs if (run.set, run.name) == (kind, name)]
        seconds = statistics.median(run.seconds for run in own)
        rates[kind, name] = own[0].files / seconds
        rows.append(
            {
                "set": kind,
                "name": name,
                "files": own[0].files,
                "files_per_second": round(rates[kind, name], 1),
                "cpu_ms_per_file": round(1e3 * statistics.median(run.cpu for run in own) / own[0].files, 3),
                "peak_mib": max(run.peak for run in own) >> 20,
                "disk_bytes_per_file": max(run.disk for run in own) // own[0].files,
                "errors": max(run.errors for run in own),
            }
        )
    for row in rows:
        base = rates.get((str(row["set"]), _BASELINE.get(str(row["set"]), "")))
        row["times_accelerator"] = round(rates[str(row["set"]), str(row["name"])] / base, 1) if base else None
    return rows


def table(rows: Sequence[dict[str, object]]) -> str:
    """Write the summary for people."""
    lines = [f"{'set':8} {'contender':24} {'files/s':>10} {'CPU ms':>8} {'peak MiB':>9} {'B/file':>9} {'errors':>7} {'x accelerator':>14}"]
    for row in rows:
        times = "-" if row["times_accelerator"] is None else f"{row['times_accelerator']}x"
        lines.append(
            f"{row['set']:8} {row['name']:24} {row['files_per_second']:>10} {row['cpu_ms_per_file']:>8} {row['peak_mib']:>9} "
            f"{row['disk_bytes_per_file']:>9} {row['errors']:>7} {times:>14}"
        )
    return "\n".join(lines)


def chart(rows: Sequence[dict[str, object]], path: Path) -> None:
    """Draw files per second, a bar for each contender, on a logarithmic scale."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = [row for row in rows if row["name"] not in {"read_only", "reader", "reader_shuffled"}] or list(rows)
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(shown) + 1.2))
    labels = [f"{row['set']}: {row['name']}" for row in shown]
    rates = [float(str(row["files_per_second"])) for row in shown]
    bars = axes.barh(labels[::-1], rates[::-1], color=["#2b6cb0" if "pixels" in label else "#a0aec0" for label in labels[::-1]])
    axes.bar_label(bars, labels=[f"{rate:,.0f}" for rate in rates[::-1]], padding=3)
    axes.set_xscale("log")
    axes.set_xlabel("files per second (logarithmic)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def profile(folder: Path) -> str:
    """Where the time goes in one worker, over one shard."""
    import cProfile
    import io
    import pstats

    from benchmarks.contenders import _files, _header

    files = _files(folder)[:2000]
    profiler = cProfile.Profile()
    profiler.enable()
    for file in files:
        _header(file)
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).sort_stats("tottime").print_stats(15)
    return text.getvalue()


def _sets(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, tuple[Path, Sequence[str]]]]:
    def chosen(names: Sequence[str]) -> list[str]:
        return [name for name in names if not options.only or name in options.only]

    if options.headers:
        files = write_headers(folder / "headers", options.headers)
        yield "headers", (folder / "headers", chosen(HEADERS))
        if chosen(ZIPPED):
            (folder / "zip").mkdir(exist_ok=True)
            write_zip(folder / "zip" / "series.zip", files)
            yield "zip", (folder / "zip", chosen(ZIPPED))
    if options.images:
        write_images(folder / "images", options.images)
        yield "images", (folder / "images", chosen(IMAGES))


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the files, run, report."""
    parser = argparse.ArgumentParser(prog="pixels bench", description="This project and its peers over the same files.")
    parser.add_argument("--headers", type=int, default=2_000, metavar="N", help="files with rich headers (default: 2000; 0: none)")
    parser.add_argument("--images", type=int, default=180, metavar="N", help="full images over nine transfer syntaxes (default: 180; 0: none)")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="times that everything is run; medians count (default: 1)")
    parser.add_argument("--only", action="append", choices=sorted(CONTENDERS), help="only this contender; may be repeated")
    parser.add_argument("--folder", type=Path, help="keep the files here, and use those that are here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every run and the summary")
    parser.add_argument("--chart", type=Path, metavar="FILE", help="draw the summary as PNG")
    parser.add_argument("--profile", action="store_true", help="show where the reader's time goes instead")
    parser.add_argument(
        "--phases",
        type=int,
        nargs="?",
        const=5_000,
        metavar="FILES",
        help="show what of a batch of so many files is work and what is orchestration instead (default: 5000)",
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.profile:
            write_headers(folder / "headers", options.headers or 2_000)
            print(profile(folder / "headers"))
            return 0
        if options.phases:
            measured = phases.compare(folder / "phases", options.phases)
            print(phases.table(measured["columns"]))
            if options.json:
                options.json.write_text(json.dumps(measured, indent=1))
            return 0
        runs = compare(dict(_sets(options, folder)), options.rounds)
    rows = summary(runs)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps({"cores": len(os.sched_getaffinity(0)), "summary": rows, "runs": [asdict(run) for run in runs]}, indent=1))
    if options.chart:
        chart(rows, options.chart)
    return 0


if __name__ == "__main__":
    sys.exit(main())
