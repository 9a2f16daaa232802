"""Many files: what a file costs in the first and in the last batch, and what memory they take.

Makes a pile of hard links: some thousand different DICOM files with tiny pixels (other UIDs, other lengths, other times), linked again and again
over folders of a thousand names, so that a million files take 100 MB of disk. Runs the `pixels` command over it, in processes of their own, and
watches them from outside: seconds of each batch, peak resident memory of the driver, of the process that lets the hierarchy follow, and of the
largest worker. Then a second run, in which nothing has changed and no file is opened.

    python benchmarks/scale.py --files 20000
    python benchmarks/scale.py --files 1000000 --folder /data/scale --keep
"""

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

_PER_FOLDER = 1_000
_BATCH = re.compile(r"batch \S+ \((\d+) of (\d+)\): (\d+) objects in ([0-9.]+) s")


def make_pile(folder: Path, files: int, templates: int) -> None:
    """Link `templates` different files under `files` names; names that are there already stay, so a pile may grow."""
    import pydicom.data
    from pydicom.uid import generate_uid

    source = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    source.Rows = source.Columns = 8
    source.PixelData = source.PixelData[:128]
    originals = folder / "originals"
    originals.mkdir(parents=True, exist_ok=True)
    names = []
    for number in range(templates):
        path = originals / f"{number:06d}.dcm"
        names.append(path)
        if path.exists():
            continue
        source.PatientID = f"P{number // 200:05d}"
        source.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(number // 200)])
        source.SeriesInstanceUID = generate_uid(entropy_srcs=["series", str(number // 100)])
        source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["instance", str(number)])
        source.InstanceNumber = number
        source.ImageComments = "x" * (2 * (number % 50))
        source.save_as(path)
        os.utime(path, ns=(0, 1_600_000_000_000_000_000 + number * 1_000_003))
    for number in range(files):
        place = folder / "in" / f"{number // _PER_FOLDER:05d}"
        if number % _PER_FOLDER == 0:
            place.mkdir(parents=True, exist_ok=True)
            there = {item.name for item in place.iterdir()}
        name = f"{number:08d}.dcm"
        if name not in there:
            os.link(names[number % templates], place / name)


class Watch(threading.Thread):
    """Peak resident memory of a process and of those that it starts, MiB, looked at ten times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.driver, self.update, self.workers = pid, 0.0, 0.0, dict[int, float]()
        self.done = threading.Event()

    def run(self) -> None:
        """Look until `done` is set."""
        while not self.done.wait(0.1):
            self.driver = max(self.driver, _peak(self.pid))
            for pid in _children(self.pid):
                if _lets_the_hierarchy_follow(pid):
                    self.update = max(self.update, _peak(pid))
                else:
                    self.workers[pid] = max(self.workers.get(pid, 0.0), _peak(pid))

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.join()

    def __enter__(self) -> "Watch":
        self.start()
        return self


def _children(pid: int) -> list[int]:
    """List the processes below this one: workers are children of the template from which they are forked."""
    try:
        children = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    except OSError:
        return []
    return [*children, *(below for child in children for below in _children(child))]


def _lets_the_hierarchy_follow(pid: int) -> bool:
    """Whether this is the process that does so after many batches, which is no worker."""
    try:
        return b"update_here" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _peak(pid: int) -> float:
    return _status(pid, "VmHWM")


def _status(pid: int, name: str) -> float:
    try:
        found = re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) / 1024 if found else 0.0


def ingest(folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Run `pixels ingest` once over the pile and say what it took."""
    command = [sys.executable, "-m", "pixels_assets.cli", "ingest", str(folder / "in"), "--lake", str(folder / "lake")]
    if options.workers:
        command += ["--workers", str(options.workers)]
    environment = os.environ | {"DAGSTER_HOME": str(folder / "home"), "PIXELS_BATCH_FILES": str(options.batch_files)}
    (folder / "home").mkdir(exist_ok=True)
    started, batches, resident, listed = time.monotonic(), [], [], None
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    with process, Watch(process.pid) as watch:
        tail: list[str] = []
        assert process.stderr is not None
        for line in process.stderr:
            tail = [*tail[-20:], line]
            if " files listed: " in line:
                listed = time.monotonic() - started
                print(f"  {listed:7.1f} s  {line.strip()}; driver {_status(process.pid, 'VmRSS'):.0f} MiB", flush=True)
            found = _BATCH.search(line)
            if found:
                batches.append((int(found[3]), float(found[4])))
                resident.append(_status(process.pid, "VmRSS"))
                if len(batches) % max(1, int(found[2]) // 20) == 0:
                    objects, seconds = batches[-1]
                    rate, load = objects / seconds, os.getloadavg()[0]
                    print(f"  batch {found[1]} of {found[2]}: {rate:.0f} files/s, driver {resident[-1]:.0f} MiB, load {load:.1f}", flush=True)
        assert process.stdout is not None
        process.stdout.read()
        code = process.wait()
        usage = os.times()
    if code:
        sys.exit("".join(tail))
    rates = [objects / seconds for objects, seconds in batches if seconds]
    edge = max(1, len(rates) // 10)
    return {
        "seconds": round(time.monotonic() - started, 1),
        "seconds_until_listed": round(listed or 0.0, 1),
        "cpu_seconds_of_all_runs_so_far": round(usage.children_user + usage.children_system, 1),
        "batches": len(batches),
        "files_per_second_first_tenth": round(statistics.median(rates[:edge])) if rates else None,
        "files_per_second_last_tenth": round(statistics.median(rates[-edge:])) if rates else None,
        "driver_peak_mib": round(watch.driver),
        "driver_after_first_and_last_batch_mib": [round(resident[0]), round(resident[-1])] if resident else None,
        "update_peak_mib": round(watch.update),
        "worker_peak_mib": round(max(watch.workers.values(), default=0.0)),
        "processes_started": len(watch.workers),
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def main() -> None:
    """Make the pile, ingest it, look again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--templates", type=int, default=2_000, help="different files among them (default: 2000)")
    parser.add_argument("--batch-files", type=int, default=5_000, help="files of a batch (default: 5000)")
    parser.add_argument("--workers", type=int, default=0, help="worker processes (default: one per core)")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    parser.add_argument("--keep", action="store_true", help="leave the pile and the lake there")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="pixels-scale-"))
    try:
        started = time.monotonic()
        make_pile(folder, options.files, min(options.templates, options.files))
        print(f"{options.files} names for {options.templates} files made in {time.monotonic() - started:.1f} s", flush=True)
        figures = {"files": options.files}
        for name in ("ingest", "rescan"):
            print(name, flush=True)
            figures[name] = ingest(folder, options)
        print(json.dumps(figures, indent=1))
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
