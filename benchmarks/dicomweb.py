"""The server's figures: searches over a million studies, metadata and frames of a long series; beside Orthanc where it is installed.

Holds a generator of studies (rows only), a generator of a series (real files), a lean client and the measurements. Each figure is taken from a
server process of its own over loopback, with the processor time that the server took beside the wall time.

    python benchmarks/dicomweb.py searches [--studies 1000000] [--clients 8] [--seconds 4]
    python benchmarks/dicomweb.py series [--slices 500] [--side 512]
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
from collections.abc import Callable, Sequence
from pathlib import Path

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
    commands = parser.add_subparsers(required=True)
    searches = commands.add_parser("searches")
    searches.add_argument("--studies", type=int, default=1_000_000)
    searches.add_argument("--clients", type=int, default=8)
    searches.add_argument("--seconds", type=float, default=4.0)
    searches.add_argument("--lake", type=Path, help="generated lake to keep and use again")
    searches.set_defaults(run=measure_searches)
    series = commands.add_parser("series")
    series.add_argument("--slices", type=int, default=500)
    series.add_argument("--side", type=int, default=512)
    series.add_argument("--clients", type=int, default=8)
    series.set_defaults(run=measure_series)
    options = parser.parse_args()
    options.run(options)


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

    return {
        "paging": lambda rng: FIELDS.format(offset=101 * rng.randrange(rows // 101 + 1)),
        "exact: patient": lambda rng: f"00100020={rng.choice(ids)}&{first}",
        "exact: study": lambda rng: f"StudyInstanceUID={rng.choice(uids)}&{first}",
        "exact: accession": lambda rng: f"AccessionNumber={rng.choice(numbers)}&{first}",
        "list: studies": lambda rng: f"StudyInstanceUID={'%5C'.join(rng.sample(uids, 20))}&{first}",
        "list: modalities": lambda rng: (
            f"ModalitiesInStudy={'%2C'.join(rng.sample(['CT', 'MR', 'US', 'PT', 'MG'], 2))}&StudyID=*{rng.randrange(10)}&{first}"
        ),
        "range: dates": a_range,
        "range and modality": lambda rng: a_range(rng) + f"&ModalitiesInStudy={rng.choice(['CT', 'MR', 'US'])}",
        "substring: name": a_name,
        "substring: identifier": lambda rng: f"00100020=*{rng.randrange(1000, 9999)}*&{first}",
        "substring: description": lambda rng: f"StudyDescription=*{rng.choice(WORDS)[1:4]}*{rng.choice(WORDS)[:3]}*&{first}",
    }


def measure_searches(options: argparse.Namespace) -> None:
    """Print how long searches take."""
    folder = Path(tempfile.mkdtemp(prefix="pixels-bench-"))
    lake = options.lake or folder / "lake"
    try:
        if not (lake / "instances").exists():
            generate_lake(lake, options.studies)
        with Server(lake) as server:
            print(f"{options.studies:,} studies: ready after {server.seconds:.1f} s, {server.memory():.0f} MiB; {options.clients} clients")
            print(f"{'request':<26}{'p50 ms':>8}{'p95 ms':>8}{'p99 ms':>8}{'per s':>8}{'server CPU ms':>15}")
            for name, make in shapes(lake).items():
                report(name, server, asyncio.run(drive(server.port, "/dicom-web/studies?", make, options.clients, options.seconds, server)))
            print(f"memory at the end: {server.memory():.0f} MiB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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


def measure_series(options: argparse.Namespace) -> None:
    """Print how long metadata and frames of a series take."""
    folder = Path(tempfile.mkdtemp(prefix="pixels-bench-"))
    try:
        study, series = write_series(folder / "source", options.slices, options.side)
        environment = os.environ | {"DAGSTER_HOME": str(folder)}
        pixels = [sys.executable, "-m", "pixels_assets.cli"]
        subprocess.run([*pixels, "ingest", folder / "source", "--lake", folder / "lake"], env=environment, check=True, stdout=subprocess.DEVNULL)
        numbers = list(range(1, options.slices + 1))
        with Server(folder / "lake") as server:
            address = f"/dicom-web/studies/{study}/series/{series}"
            for name in ("metadata, first", "metadata, again"):
                started = time.perf_counter()
                head, size = asyncio.run(one(server.port, f"{address}/metadata"))
                print(f"{name}: {1000 * (time.perf_counter() - started):.1f} ms, {size / 1e6:.1f} MB, status {head}")
            pick = iter(numbers * 1000)
            accept = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
            for name in ("frames, first pass", "frames, again"):
                before = server.processor()
                started = time.perf_counter()
                asyncio.run(fetch_all(server.port, [f"{address}/instances/{ROOT}.4.{next(pick)}/frames/1" for _ in numbers], accept, options.clients))
                wall = time.perf_counter() - started
                used = 1000 * (server.processor() - before) / options.slices
                print(f"{name}: {options.slices / wall:.0f} frames/s, {used:.2f} ms CPU each, {server.memory():.0f} MiB")
        orthanc(folder, [file.read_bytes() for file in sorted((folder / "source").iterdir())], address.removeprefix("/dicom-web"), options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def orthanc(folder: Path, files: Sequence[bytes], address: str, options: argparse.Namespace) -> None:
    """Ask Orthanc for the same frames, where it is installed. It listens at every address, so it must run where there is no network."""
    plugin = next(Path("/usr").rglob("libOrthancDicomWeb.so*"), None)
    if shutil.which("Orthanc") is None or plugin is None:
        print("Orthanc is not installed: nothing to compare with")
        return
    if Path("/sys/class/net").exists() and {item.name for item in Path("/sys/class/net").iterdir()} != {"lo"}:
        print("Orthanc listens at every address; to compare, run this under: unshare -rn sh -c 'ip link set lo up; exec python ...'")
        return
    port = free_port()
    settings = {
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port, process)
            for data in files:
                asyncio.run(one(port, "/instances", method="POST", body=data))
            accept = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
            for name in ("frames, first pass", "frames, again"):
                before, started = processor_of(process.pid), time.perf_counter()
                paths = [f"/dicom-web{address}/instances/{ROOT}.4.{number}/frames/1" for number in range(1, options.slices + 1)]
                asyncio.run(fetch_all(port, paths, accept, options.clients))
                wall = time.perf_counter() - started
                used = 1000 * (processor_of(process.pid) - before) / options.slices
                print(f"Orthanc: {name}: {options.slices / wall:.0f} frames/s, {used:.2f} ms CPU each, {memory_of(process.pid):.0f} MiB")
            for name in ("metadata, first", "metadata, again"):
                started = time.perf_counter()
                head, size = asyncio.run(one(port, f"/dicom-web{address}/metadata"))
                print(f"Orthanc: {name}: {1000 * (time.perf_counter() - started):.1f} ms, {size / 1e6:.1f} MB, status {head}")
        finally:
            process.terminate()


# A server and a client


class Server:
    """`pixels serve` in a process of its own."""

    def __init__(self, lake: Path) -> None:
        self.port = free_port()
        started = time.perf_counter()
        command = [sys.executable, "-m", "pixels_assets.cli", "serve", "--lake", str(lake), "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self.port, self._process)
        self.seconds = time.perf_counter() - started

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(30)

    def memory(self) -> float:
        """Resident memory, MiB."""
        return memory_of(self._process.pid)

    def processor(self) -> float:
        """Processor time so far, seconds."""
        return processor_of(self._process.pid)


def memory_of(pid: int) -> float:
    """Resident memory of a process, MiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


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
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, accept: str, method: str = "GET", body: bytes = b""
) -> tuple[int, int]:
    """One request on an open connection: status and bytes of the answer."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nContent-Length: {len(body)}\r\n\r\n"
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


async def one(port: int, path: str, method: str = "GET", body: bytes = b"") -> tuple[int, int]:
    """Ask once, on a connection of its own: status and bytes of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    found = await ask(reader, writer, path, "application/dicom+json, application/json", method, body)
    writer.close()
    return found


async def fetch_all(port: int, paths: Sequence[str], accept: str, clients: int) -> None:
    """Fetch all of some paths with several clients."""
    waiting = list(reversed(paths))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
        while waiting:
            path = waiting.pop()
            status, size = await ask(reader, writer, path, accept)
            assert (status, size > 1000) == (200, True), (status, size, path)
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


def report(name: str, server: Server, measured: tuple[list[float], float, float]) -> None:
    """Print one line of figures."""
    times, wall, used = measured
    ordered = sorted(times)
    p50, p95, p99 = (1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.95, 0.99))
    print(f"{name:<26}{p50:>8.1f}{p95:>8.1f}{p99:>8.1f}{len(times) / wall:>8.0f}{1000 * used / len(times):>15.2f}", flush=True)


if __name__ == "__main__":
    main()
