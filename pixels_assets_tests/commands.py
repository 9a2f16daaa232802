"""Commands as a user starts them: processes of their own, on piles of files that are made here."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import time
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from pixels_assets.cli import main

ROOT = Path(__file__).parents[1]
NAMES = ["CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "rtplan.dcm", "rtdose_1frame.dcm", "SC_rgb_rle.dcm", "liver_1frame.dcm", "reportsi.dcm"]
OLD = 1_700_000_000
SLOW_ITEMS = 16_000


def environment(home, **more):
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PIXELS_")}
    return plain | {"DAGSTER_HOME": str(home), "PIXELS_BATCH_FILES": "5", "PIXELS_WORKERS": "2", "COLUMNS": "200"} | more


def start(arguments, home, *, quiet=False, **more):
    """Start a command in a process group of its own."""
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pixels_assets.cli", *map(str, arguments)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(home, PYTHONPATH=paths, **more),
        stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def pixels(arguments, home, **more):
    """Run a command to its end: exit code, output, messages."""
    with start(arguments, home, **more) as process:
        output, messages = process.communicate(timeout=300)
    return process.returncode, output, messages


def ingest(folder, home, *options, **more):
    return pixels(["ingest", folder, "--lake", home / "lake", *options], home, **more)


def ingest_here(folder, home, *options):
    """The same in this process, with one worker, where a start of the command would prove nothing more: exit code and output."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as output:
        for name in set(os.environ) - set(kept := environment(home, PIXELS_WORKERS="1", PIXELS_LOG_LEVEL="INFO")):
            patch.delenv(name)
        for name, value in kept.items():
            patch.setenv(name, value)
        home.mkdir(exist_ok=True)
        return main(["ingest", *map(str, (folder, "--lake", home / "lake", *options))]), output.getvalue()


def long_dicom(items):
    """A data set that takes long to read: a sequence of so many items."""
    data = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    del data.PixelData
    buffer = io.BytesIO()
    data.save_as(buffer)
    element = b"\x41\x00\x01\x00LO\x02\x00ab"
    item = b"\xfe\xff\x00\xe0" + struct.pack("<L", len(element)) + element
    return buffer.getvalue() + b"\xfd\x7f\x01\x10SQ\0\0" + struct.pack("<L", len(item) * items) + item * items


def fill(folder, *, slow=True):
    """Write a small pile of all sorts: images, an archive, what is damaged, and, if wanted, what is slow in the second of three batches."""
    folder.mkdir()
    files = [Path(str(get_testdata_file(name))).read_bytes() for name in NAMES]
    for number, data in enumerate(files):
        (folder / f"{number:02} Doe^Jane.dcm").write_bytes(data)
    (folder / "05 slow").write_bytes(long_dicom(SLOW_ITEMS if slow else 1))
    (folder / "08 text").write_text("no image")
    (folder / "09 cut.dcm").write_bytes(files[0][:300])
    with zipfile.ZipFile(folder / "10.zip", "w") as archive:
        for number, data in enumerate(files[:4]):
            archive.writestr(zipfile.ZipInfo(f"Doe^John/{number}"), data)  # of 1980: the same bytes in every pile
    (folder / "11 empty").touch()
    for path in folder.iterdir():
        os.utime(path, (OLD, OLD))
    return folder


def children_of(pid):
    """Processes that a process has started; threads and processes may end while one looks."""
    found = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(child) for child in task.read_text().split()}
    return found


def templates_of(pid):
    """Processes from which the workers of a process are forked."""
    found = set()
    for child in children_of(pid):
        with contextlib.suppress(OSError):
            if b"engines.template" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.add(child)
    return found


def workers_of(pid):
    """Worker processes of a process."""
    return {worker for template in templates_of(pid) for worker in children_of(template)}


def assert_gone(workers):
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its run"
        time.sleep(0.01)
