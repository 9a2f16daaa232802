"""The server's figures: searches over a million studies, metadata and frames of a long series; beside Orthanc where it is installed.

Holds a generator of studies (rows only), a generator of a series (real files), a lean client and the measurements. Each figure is taken from a
server process over loopback, with the processor time that the server took beside the wall time.

    python benchmarks/dicomweb.py               all of it, about five minutes
    python benchmarks/dicomweb.py searches      only searches, over --studies 1000000
    python benchmarks/dicomweb.py metadata      only metadata, of a series of --instances 2000
    python benchmarks/dicomweb.py frames        only frames, of a series of --slices 500 of --side 512, here and from Orthanc
"""

import argparse
import asyncio
import datetime as dt
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pydicom
from deltalake import DeltaTable, write_deltalake
from pydicom.data import get_testdata_file

from pixels_assets.lake.commit import create_tables
from pixels_assets.lake.schema import OBJECT_CATALOG, RAW_FILES

ROOT = "1.2.826.0.1.3680043.10.1561"
FIELDS = "limit=101&offset={offset}&fuzzymatching=false&includefield=00081030%2C00080060%2C00080090%2C00100030"
"""What OHIF asks for in its study list."""
FAMILIES = [
    "Garcia",
    "Nguyen",
    "Smith",
    "Ivanova",
    "Kowalski",
    "Okafor",
    "Tanaka",
    "Haddad",
    "Silva",
    "Larsen",
    "Rossi",
    "Dubois",
    "Novak",
    "Yilmaz",
    "Singh",
    "Park",
]
GIVEN = ["Ana", "Bo", "Carlos", "Dana", "Emeka", "Fatima", "Goro", "Hana", "Ivan", "Jun", "Kira", "Liam", "Mona", "Nils", "Olga", "Pedro"]
WORDS = [
    "CT",
    "CHEST",
    "ABDOMEN",
    "W/O",
    "CONTRAST",
    "MRI",
    "BRAIN",
    "KNEE",
    "LEFT",
    "RIGHT",
    "SPINE",
    "FOLLOW-UP",
    "SCREENING",
    "THORAX",
    "PELVIS",
    "ANGIO",
]
MODALITIES = ("CT", "MR", "CT\\SR", "DX", "US", "PT\\CT", "MG", "XA")


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["searches", "metadata", "frames"])
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--studies", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=4.0, help="for each kind of search")
    parser.add_argument("--lake", type=Path, help="generated lake to keep and use again")
    parser.add_argument("--instances", type=int, default=2000)
    parser.add_argument("--slices", type=int, default=500)
    parser.add_argument("--side", type=int, default=512)
    options = parser.parse_args()
    for name, measure in {"searches": measure_searches, "metadata": measure_metadata, "frames": measure_frames}.items():
        if options.part in {name, None}:
            with tempfile.TemporaryDirectory(prefix="pixels-bench-") as folder:
                measure(options, Path(folder))


# Searches


def generate_lake(lake: Path, count: int) -> None:
    """Write the tables of a lake of studies with one series of one object each; there are no files behind them."""
    rng = np.random.default_rng(20)
    create_tables(lake, [OBJECT_CATALOG, RAW_FILES])
    number = np.arange(count)
    patient = rng.integers(0, max(1, count // 3), count)
    names = np.array([f"{FAMILIES[p % 16]}{p // 256 % 977:03d}^{GIVEN[p // 16 % 16]}" for p in range(max(1, count // 3))])[patient]
    days = rng.integers(12_000, 20_000, count)
    descriptions = np.array([f"{WORDS[a]} {WORDS[b]} {WORDS[c]}" for a in range(16) for b in range(16) for c in range(16)])[
        rng.integers(0, 4096, count)
    ]
    modalities = [text.split("\\") for text in np.array(MODALITIES)[rng.integers(0, len(MODALITIES), count)]]
    study, series, instance = ([f"{ROOT}.{level}.{value * 7919 % 999_983}.{value}" for value in number] for level in (1, 2, 3))
    of_study = {
        "PatientID": pa.array([f"MRN{value * 31 % 10_000_019:08d}" for value in patient]),
        "PatientName": pa.array(names),
        "PatientBirthDate": pa.array(rng.integers(-10_000, 15_000, count), pa.int32()).cast(pa.date32()),
        "PatientSex": pa.array(np.array(["M", "F"])[patient % 2]),
        "StudyInstanceUID": pa.array(study),
        "StudyDate": pa.array(days, pa.int32()).cast(pa.date32()),
        "StudyTime": pa.array([f"{s // 3600:02d}:{s // 60 % 60:02d}:{s % 60:02d}.000000" for s in rng.integers(0, 86_400, count)]),
        "StudyDescription": pa.array(descriptions),
        "AccessionNumber": pa.array([f"A{value * 17 % 99_999_989:010d}" for value in number]),
        "ReferringPhysicianName": pa.array(np.array([f"{family}^{given}" for family in FAMILIES for given in GIVEN])[rng.integers(0, 256, count)]),
        "StudyID": pa.array([str(value) for value in number]),
    }
    ones = pa.array(np.ones(count, np.int64))
    first = pa.array([found[0] for found in modalities])
    tables = {
        "studies": of_study | {"ModalitiesInStudy": pa.array(modalities), "NumberOfStudyRelatedSeries": ones, "NumberOfStudyRelatedInstances": ones},
        "series": {
            "StudyInstanceUID": of_study["StudyInstanceUID"],
            "SeriesInstanceUID": pa.array(series),
            "Modality": first,
            "SeriesNumber": ones,
            "NumberOfSeriesRelatedInstances": ones,
        },
        "instances": {
            "StudyInstanceUID": of_study["StudyInstanceUID"],
            "SeriesInstanceUID": pa.array(series),
            "SOPInstanceUID": pa.array(instance),
            "SOPClassUID": pa.array(np.full(count, "1.2.840.10008.5.1.4.1.1.2")),
            "TransferSyntaxUID": pa.array(np.full(count, "1.2.840.10008.1.2.1")),
            "InstanceNumber": ones,
            "path": pa.array([f"/nowhere/{value // 1000}/{value}.dcm" for value in number]),
            "original_path": pa.array([f"/nowhere/{value // 1000}/{value}.dcm" for value in number]),
            "length": ones,
            "content_hash": pa.array(np.full(count, "0" * 64)),
            "modificationTime": pa.array(np.full(count, 1_700_000_000_000_000), pa.timestamp("us", tz="UTC")),
            "batch": pa.array([f"20260101T000000-{value // 5000:04d}" for value in number]),
        },
    }
    for name, columns in tables.items():
        write_deltalake(lake / name, pa.table(columns))


def shapes(lake: Path) -> dict[str, Callable[[random.Random], str]]:
    """Give requests of each kind, made anew for every call, so that no answer is kept from the one before."""
    table = pa.table(DeltaTable(lake / "studies").to_pyarrow_table(columns=["StudyInstanceUID", "PatientID", "AccessionNumber"]))
    uids, ids, numbers = (
        table[name].take(pa.array(range(0, table.num_rows, max(1, table.num_rows // 5000)))).to_pylist() for name in table.column_names
    )
    rows = table.num_rows
    first = FIELDS.format(offset=0)

    def a_range(rng: random.Random) -> str:
        start = dt.date(2003, 1, 1) + dt.timedelta(days=rng.randrange(7000))
        return f"StudyDate={start:%Y%m%d}-{start + dt.timedelta(days=rng.choice([0, 7, 90, 365])):%Y%m%d}&{first}"

    def a_name(rng: random.Random) -> str:
        return f"PatientName=*{rng.choice(FAMILIES)[1:4].lower()}{'*' if rng.random() < 0.5 else rng.choice('0123456789') + '*'}&{first}"

    def modalities(rng: random.Random) -> str:
        return f"ModalitiesInStudy={'%2C'.join(rng.sample(['CT', 'MR', 'US', 'PT', 'MG'], rng.randrange(1, 4)))}"

    return {
        "paging": lambda rng: FIELDS.format(offset=101 * rng.randrange(rows // 101 + 1)),
        "exact: patient": lambda rng: f"00100020={rng.choice(ids)}&{first}",
        "exact: study": lambda rng: f"StudyInstanceUID={rng.choice(uids)}&{first}",
        "exact: accession": lambda rng: f"AccessionNumber={rng.choice(numbers)}&{first}",
        "list: studies": lambda rng: f"StudyInstanceUID={'%5C'.join(rng.sample(uids, 20))}&{first}",
        "list: modalities": lambda rng: f"{modalities(rng)}&{FIELDS.format(offset=101 * rng.randrange(rows // 505 + 1))}",
        "range: dates": a_range,
        "range and modalities": lambda rng: f"{modalities(rng)}&{a_range(rng)}",
        "substring: name": a_name,
        "substring: identifier": lambda rng: f"00100020=*{rng.randrange(1000, 9999)}*&{first}",
        "substring and modalities": lambda rng: f"{modalities(rng)}&StudyID=*{rng.randrange(100)}&{first}",
        "substring: description": lambda rng: f"StudyDescription=*{rng.choice(WORDS)[1:4]}*{rng.choice(WORDS)[:3]}*&{first}",
    }


def measure_searches(options: argparse.Namespace, folder: Path) -> None:
    """Print how long searches take."""
    lake = options.lake or folder / "lake"
    if not (lake / "instances").exists():
        generate_lake(lake, options.studies)
    with Server(lake) as server:
        told = f"{options.studies:,} studies: ready after {server.seconds:.1f} s, idle after {server.settle():.1f} s"
        print(f"{told}, {server.memory():.0f} MiB; {options.clients} clients")
        print(f"{'request':<26}{'p50 ms':>8}{'p95 ms':>8}{'p99 ms':>8}{'per s':>8}{'server CPU ms':>15}")
        for name, make in shapes(lake).items():
            report(name, asyncio.run(drive(server.port, "/dicom-web/studies?", make, options.clients, options.seconds, server)))
        print(f"memory at the end: {server.memory():.0f} MiB")


# Series


def write_series(folder: Path, slices: int, side: int) -> tuple[str, str]:
    """Write a series of uncompressed slices; gives its UIDs."""
    data = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    rng = np.random.default_rng(3)
    data.Rows = data.Columns = side
    folder.mkdir(parents=True)
    for number in range(slices):
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.4.{number + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.InstanceNumber = f"{ROOT}.4", f"{ROOT}.4.0", number + 1
        data.PixelData = rng.integers(0, 2000, side * side, np.int16).tobytes()
        data.save_as(folder / f"{number:05d}.dcm")
        os.utime(folder / f"{number:05d}.dcm", (1_700_000_000, 1_700_000_000))
    return f"{ROOT}.4", f"{ROOT}.4.0"


def ingest(folder: Path) -> None:
    """Bring in the files of a folder's `source` into its `lake`."""
    command = [sys.executable, "-m", "pixels_assets.cli", "ingest", folder / "source", "--lake", folder / "lake"]
    subprocess.run(command, env=os.environ | {"DAGSTER_HOME": str(folder)}, check=True, stdout=subprocess.DEVNULL)


def measure_metadata(options: argparse.Namespace, folder: Path) -> None:
    """Print how long metadata of a series take: read from the lake, and when they were asked for before."""
    study, series = write_series(folder / "source", options.instances, 16)
    ingest(folder)
    path = f"/dicom-web/studies/{study}/series/{series}/metadata"
    with Server(folder / "lake") as server:
        server.settle()
        for kind in ("", "gzip"):
            times, used = [], []
            for _ in range(21):
                before, started = server.processor(), time.perf_counter()
                status, size = asyncio.run(one(server.port, path, kind))
                times.append(1000 * (time.perf_counter() - started))
                used.append(1000 * (server.processor() - before))
                assert status == 200, status
            then = f"then {sorted(times[1:])[10]:.1f} ms, at most {max(times[1:]):.1f} ms, {sum(used[1:]) / 20:.1f} ms CPU each"
            print(f"metadata of {options.instances:,} instances, {kind or 'plain'}, {size / 1e6:.1f} MB: first {times[0]:.0f} ms; {then}")


def measure_frames(options: argparse.Namespace, folder: Path) -> None:
    """Print how many frames a second there are of a series, here and from Orthanc, pass by pass."""
    study, series = write_series(folder / "source", options.slices, options.side)
    ingest(folder)
    files = [file.read_bytes() for file in sorted((folder / "source").iterdir())]
    address = f"/dicom-web/studies/{study}/series/{series}/instances/{ROOT}.4."
    print(f"frames of {options.slices} slices, {options.side} x {options.side} of 16 bits; {options.clients} clients")
    with Server(folder / "lake") as ours, orthanc(folder, files) as theirs:
        ours.settle()
        for name in ("first pass", "again", "and again"):
            for server in filter(None, (ours, theirs)):
                before, started = server.processor(), time.perf_counter()
                paths = [f"{address}{number}/frames/1" for number in range(1, options.slices + 1)]
                size = 2 * options.side**2
                asyncio.run(fetch_all(server.port, paths, size, options.clients))
                wall = time.perf_counter() - started
                used = 1000 * (server.processor() - before) / options.slices
                told = f"{used:.2f} ms CPU each, {server.memory():.0f} MiB, at most {server.memory('VmHWM'):.0f} MiB"
                print(f"{server.name:<8}{name:<11}{options.slices / wall:>6.0f} frames/s, {told}", flush=True)


@contextmanager
def orthanc(folder: Path, files: Sequence[bytes]) -> Iterator["Process | None"]:
    """Orthanc with some files, where it is installed. It listens at every address, but answers this machine only."""
    plugin = next(Path("/usr").rglob("libOrthancDicomWeb.so*"), None)
    if shutil.which("Orthanc") is None or plugin is None:
        print("Orthanc is not installed (apt-get install orthanc orthanc-dicomweb): nothing to compare with")
        yield None
        return
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": False,
        "RemoteAccessAllowed": False,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with Process("Orthanc", ["Orthanc", str(folder / "orthanc.json")], port) as server:
        for data in files:
            status, _ = asyncio.run(one(port, "/instances", method="POST", body=data))
            assert status == 200, status
        yield server


# A server and a client


class Process:
    """A server in a process of its own."""

    def __init__(self, name: str, command: Sequence[str], port: int) -> None:
        self.name, self.port = name, port
        self._started = time.perf_counter()
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self.port, self._process)
        self.seconds = time.perf_counter() - self._started

    def settle(self) -> float:
        """Wait until it does nothing any more that it began with its start; gives the seconds since then."""
        before = -1.0
        while (now := self.processor()) - before > 0.05:
            before = now
            time.sleep(1)
        return time.perf_counter() - self._started

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def memory(self, kind: str = "VmRSS") -> float:
        """Resident memory, MiB; ``VmHWM`` is the most that it was."""
        text = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(text.split(f"{kind}:")[1].split()[0]) / 1024

    def forget_most(self) -> None:
        """Let the most that memory was begin again."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def processor(self) -> float:
        """Processor time so far, seconds."""
        return processor_of(self._process.pid)


class Server(Process):
    """`pixels serve` over a lake."""

    def __init__(self, lake: Path, *arguments: str) -> None:
        port = free_port()
        super().__init__("pixels", [sys.executable, "-m", "pixels_assets.cli", "serve", "--lake", str(lake), "--port", str(port), *arguments], port)


def processor_of(pid: int) -> float:
    """Processor time of a process so far, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """Find a port that nobody listens at."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a server answers."""
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            if process.poll() is not None:
                msg = f"the server ended with {process.returncode}"
                raise RuntimeError(msg) from None
            time.sleep(0.05)
        else:
            return


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, accept: str, method: str = "GET", body: bytes = b"", encoding: str = ""
) -> tuple[int, int]:
    """One request on an open connection: status and bytes of the answer."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nAccept-Encoding: {encoding}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    status, size = int(lines[0].split()[1]), 0
    if "content-length" in headers:
        size = len(await reader.readexactly(int(headers["content-length"])))
    elif headers.get("transfer-encoding") == "chunked":
        while length := int((await reader.readline()).split(b";")[0], 16):
            size += len(await reader.readexactly(length + 2)) - 2
        await reader.readline()
    return status, size


async def one(port: int, path: str, encoding: str = "", method: str = "GET", body: bytes = b"") -> tuple[int, int]:
    """Ask once, on a connection of its own: status and bytes of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    found = await ask(reader, writer, path, "application/dicom+json, application/json", method, body, encoding)
    writer.close()
    return found


async def fetch_all(port: int, paths: Sequence[str], least: int, clients: int) -> None:
    """Fetch all of some frames, of a least size, with several clients."""
    accept = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
    waiting = list(reversed(paths))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        while waiting:
            path = waiting.pop()
            status, size = await ask(reader, writer, path, accept)
            assert (status, size > least) == (200, True), (status, size, path)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))


async def drive(
    port: int, prefix: str, make: Callable[[random.Random], str], clients: int, seconds: float, server: Server
) -> tuple[list[float], float, float]:
    """Ask with several clients, each as soon as it has its answer: times of all requests, wall time, and processor time of the server."""
    times: list[float] = []
    before, started = server.processor(), time.perf_counter()

    async def client(number: int) -> None:
        rng = random.Random(number)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        while time.perf_counter() - started < seconds:
            path = prefix + make(rng)
            begun = time.perf_counter()
            status, _ = await ask(reader, writer, path, "application/dicom+json")
            times.append(time.perf_counter() - begun)
            assert status in {200, 204}, (status, path)
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return times, time.perf_counter() - started, server.processor() - before


def report(name: str, measured: tuple[list[float], float, float]) -> None:
    """Print one line of figures."""
    times, wall, used = measured
    ordered = sorted(times)
    p50, p95, p99 = (1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95, 0.99))
    print(f"{name:<26}{p50:>8.1f}{p95:>8.1f}{p99:>8.1f}{len(times) / wall:>8.0f}{1000 * used / len(times):>15.2f}", flush=True)


if __name__ == "__main__":
    main()
