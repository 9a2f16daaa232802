"""The contenders of the benchmark: each brings a folder of files into its own kind of store, in a process of its own.

Ours call the package; the others are what the descriptions of those systems say that they do, written anew. Each is run as
``python -m benchmarks.contenders NAME FOLDER OUT`` and prints one line of JSON.
"""

import contextlib
import io
import itertools
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

CORES = len(os.sched_getaffinity(0))
Counts = dict[str, float]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _shares(files: list[Path], size: int = 256) -> list[list[Path]]:
    return [files[start : start + size] for start in range(0, len(files), size)]


def _pool() -> ProcessPoolExecutor:
    """Start a process for each core, which end by themselves: `multiprocessing.Pool` uses force, and may then wait for one for ever."""
    return ProcessPoolExecutor(CORES, mp_context=multiprocessing.get_context("forkserver"))


def _pooled(work: Callable[[list[Path]], Any], files: list[Path]) -> list[Any]:
    with _pool() as pool:
        return list(pool.map(work, _shares(files)))


# --- the limit


def _read_heads(files: list[Path]) -> int:
    total = 0
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        total += len(os.read(descriptor, 65_536))
        os.close(descriptor)
    return total


def read_only(folder: Path, out: Path) -> Counts:
    """Open each file and read its first 64 KiB: nothing can be faster."""
    files = _files(folder)
    _pooled(_read_heads, files)
    return {"files": len(files)}


# --- ours


def _header(path: Path) -> object:
    from pixels_assets.dicom.reader import read_header

    with path.open("rb", buffering=0) as stream:  # the reader asks for what it needs at once
        return read_header(stream, os.fstat(stream.fileno()).st_size, max_deflated_bytes=1 << 26).meta  # type: ignore[union-attr]


def reader(folder: Path, out: Path, *, shuffled: bool = False) -> Counts:
    """Headers to JSON and typed values by our reader, in one process; CPU seconds of the reading alone."""
    import random

    files = _files(folder)
    if shuffled:
        random.Random(1).shuffle(files)
    for file in files[:50]:
        _header(file)
    started = time.process_time()
    for file in files:
        _header(file)
    return {"files": len(files), "reader_cpu": time.process_time() - started}


def reader_shuffled(folder: Path, out: Path) -> Counts:
    """Read the same in random order."""
    return reader(folder, out, shuffled=True)


def _index(folder: Path, out: Path, outputs: frozenset[str]) -> Counts:
    """One batch after the other through our engine into committed tables, without Dagster; the next one is listed meanwhile."""
    from pixels_assets.cli import long_import
    from pixels_assets.engines.processes import keep_workers, start_workers
    from pixels_assets.settings import Settings

    settings = Settings.from_environment(lake=out / "lake", quiet_seconds=0.0)
    listed, objects, errors = 0, 0, 0
    with keep_workers(), ThreadPoolExecutor(1) as beside:
        start_workers(CORES, settings.worker_bytes)  # they get ready while this process loads what it needs
        with long_import():
            from pixels_assets.engines.local import LocalEngine
            from pixels_assets.engines.run import index_batch
            from pixels_assets.engines.shards import IndexSpec
            from pixels_assets.intake.listing import Listing
            from pixels_assets.intake.objects import SourceFile
            from pixels_assets.lake.commit import create_tables
            from pixels_assets.lake.schema import TABLES

        create_tables(settings.lake, [TABLES[name] for name in outputs])
        files = (file for file in Listing(str(folder)) if isinstance(file, SourceFile))

        def next_batch() -> list[SourceFile]:
            return list(itertools.islice(files, settings.batch_files))

        with LocalEngine(CORES) as engine:
            following = beside.submit(next_batch)
            for number in itertools.count():
                batch = following.result()
                if not batch:
                    break
                following = beside.submit(next_batch)
                listed += len(batch)
                done = index_batch(engine, IndexSpec(settings.lake, f"b{number:05d}", "a", outputs, settings), batch, run_id="bench")
                objects += done.tally.objects
                errors += sum(count for status, count in done.tally.statuses.items() if status not in {"indexed", "archive"})
                if "thumbnails" in outputs:
                    errors += sum(count for code, count in done.tally.thumbnails.items() if code != "ok" and code != "not_an_image")
    return {"files": max(listed, objects - 1 if listed == 1 else 0), "errors": errors}  # of one archive, its members count


def pixels_metadata(folder: Path, out: Path) -> Counts:
    """Write metadata, hash, header and typed columns into the Delta table `dicom_metadata`."""
    return _index(folder, out, frozenset({"dicom_metadata"}))


def pixels_thumbnails(folder: Path, out: Path) -> Counts:
    """Write the same, and thumbnails into theirs."""
    return _index(folder, out, frozenset({"dicom_metadata", "thumbnails"}))


def pixels_ingest(folder: Path, out: Path) -> Counts:
    """Run `pixels ingest`: everything, Dagster, all tables and thumbnails included."""
    environment = os.environ | {"DAGSTER_HOME": str(out), "PIXELS_QUIET_SECONDS": "0", "PIXELS_PREVIEW": "false"}
    command = [sys.executable, "-m", "pixels_assets.cli", "ingest", str(folder), "--lake", str(out / "lake")]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return {"files": len(_files(folder))}


# --- plain pydicom


def _plain(files: list[Path]) -> list[str]:
    import pydicom

    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows.extend(json.dumps(pydicom.dcmread(file, stop_before_pixels=True).to_json_dict()) for file in files)
    return rows


def pydicom_pool(folder: Path, out: Path) -> Counts:
    """Let pydicom make the JSON in a pool of processes, written as one Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = _files(folder)
    rows = [row for share in _pooled(_plain, files) for row in share]
    pq.write_table(pa.table({"path": [str(file) for file in files], "meta": rows}), out / "meta.parquet", compression="zstd")
    return {"files": len(files)}


# --- the accelerator's way


def _accelerated(path: str) -> str:
    """Open a file and make its DICOM JSON as a dict, binary values inline, then text; an error's text becomes the metadata."""
    import pydicom

    try:
        with pydicom.dcmread(path, defer_size=1000, stop_before_pixels=True) as dataset:
            for tag in (0x60003000, 0x7FE00010):
                if tag in dataset:
                    del dataset[tag]
            meta = dataset.to_json_dict() | dataset.file_meta.to_json_dict() | {"file_size": Path(path).stat().st_size}
        return json.dumps(meta)
    except Exception as error:
        return json.dumps(str({"error": str(error), "path": path}))


def _accelerated_picture(path: str) -> tuple[str, int, int, int, int, bytes]:
    from benchmarks.thumbnails import by_matplotlib, lend_decoders

    lend_decoders()  # the libraries that it names have none for two of the transfer syntaxes: it shall not be quick by failing
    warnings.simplefilter("ignore")
    try:
        made = by_matplotlib(Path(path))
    except Exception as error:
        return str(error), -1, -1, -1, -1, b""
    return made.origin, made.height, made.width, 4, 24, made.data


def _spark(folder: Path, out: Path, *, picture: bool) -> Counts:
    """As the accelerator's notebook goes: a catalog of files, transformers that add a column each, one table written. No collecting in between.

    The catalog is Spark's own listing; the transformer of metadata works on batches of 1,000 in 32 threads, that of pictures on one row after the
    other; tables are not compressed. Spark is started for it, as for a job.
    """
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import expr, udf

    root = str(Path(__file__).resolve().parents[1])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(f"local[{CORES}]").config("spark.ui.enabled", "false")
    builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1").config("spark.driver.memory", "3g")
    builder = builder.config("spark.sql.execution.arrow.maxRecordsPerBatch", "1000").config("spark.sql.parquet.compression.codec", "uncompressed")
    session = builder.config("spark.sql.execution.pythonUDF.arrow.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    catalog = session.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(folder)).drop("content")
    catalog = catalog.withColumn("local_path", expr("substring(path, 6)"))

    def add_metadata(frames: Iterator[Any]) -> Iterator[Any]:
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(32) as threads:
            for frame in frames:
                yield frame.assign(meta=list(threads.map(_accelerated, frame["local_path"])))

    table = catalog.mapInPandas(add_metadata, "path string, modificationTime timestamp, length long, local_path string, meta string")
    if picture:
        kind = "struct<origin:string, height:int, width:int, nChannels:int, mode:int, data:binary>"
        table = table.withColumn("thumbnail", udf(_accelerated_picture, kind)("local_path"))
    table.write.parquet(str(out / "catalog"))
    written = session.read.parquet(str(out / "catalog"))
    failed = "meta not like '{%'" + (" or thumbnail.height < 0" if picture else "")
    counts = {"files": written.count(), "errors": written.where(failed).count()}
    session.stop()
    return counts


def accelerator(folder: Path, out: Path) -> Counts:
    """Make the accelerator's table of metadata."""
    return _spark(folder, out, picture=False)


def accelerator_thumbnails(folder: Path, out: Path) -> Counts:
    """Make the accelerator's table of metadata and pictures by matplotlib."""
    return _spark(folder, out, picture=True)


# --- one flattened Parquet file for each object


def _flattened(files: list[Path]) -> tuple[int, int]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pydicom
    from pydicom.datadict import dictionary_VM
    from pydicom.multival import MultiValue

    done, errors = 0, 0
    for file in files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                dataset = pydicom.dcmread(file, stop_before_pixels=True)
                dataset.remove_private_tags()
                row = {}
                for element in dataset:
                    if not element.keyword or element.value in (None, ""):
                        continue
                    value = element.value
                    if element.VR == "SQ" or dictionary_VM(element.tag) == "1":
                        row[element.keyword] = str(value)
                    else:
                        row[element.keyword] = [str(part) for part in (value if isinstance(value, MultiValue) else [value])]
                pq.write_table(pa.Table.from_pylist([row]), file.parent / f".{file.name}.bench.parquet", compression="snappy")
                (file.parent / f".{file.name}.bench.parquet").unlink()
                done += 1
            except Exception:  # as there: the object goes to the dead letters
                errors += 1
    return done, errors


def flattened(folder: Path, out: Path) -> Counts:
    """Go the serverless sample's way: flattened, one Parquet file for each object."""
    files = _files(folder)
    counted = _pooled(_flattened, files)
    return {"files": len(files), "errors": sum(errors for _, errors in counted)}


# --- pandas for each series


def _series(files: list[Path]) -> int:
    import pandas as pd
    import pydicom

    rows = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for file in files:
            dataset = pydicom.dcmread(file, stop_before_pixels=True)
            rows.append({element.name: str(element.value) for element in dataset})
        pd.DataFrame(rows).to_parquet(io.BytesIO())
    return len(rows)


def dcm2parquet(folder: Path, out: Path) -> Counts:
    """Make a pandas frame of names and values for each series, as Parquet."""
    groups: dict[Path, list[Path]] = {}
    for file in _files(folder):
        groups.setdefault(file.parent, []).append(file)
    with _pool() as pool:
        counted = list(pool.map(_series, groups.values()))
    return {"files": sum(counted)}


# --- Orthanc


def orthanc(folder: Path, out: Path) -> Counts:
    """Upload every file to Orthanc over REST, by two clients. It runs in a network of its own, for it listens everywhere."""
    if "BENCH_ALONE" not in os.environ:
        inner = 'ip link set lo up 2>/dev/null || ifconfig lo up; exec "$0" -m benchmarks.contenders orthanc "$1" "$2"'
        command = ["unshare", "-n", "bash", "-c", inner, sys.executable, str(folder), str(out)]
        done = subprocess.run(command, check=True, env=os.environ | {"BENCH_ALONE": "1"}, capture_output=True, text=True)
        return dict(json.loads(done.stdout.splitlines()[-1]))
    settings = {"HttpPort": 18042, "DicomServerEnabled": False, "RemoteAccessAllowed": False, "StorageDirectory": str(out / "db"), "Plugins": []}
    (out / "orthanc.json").write_text(json.dumps(settings | {"IndexDirectory": str(out / "db"), "HttpThreadsCount": 8}))
    server = subprocess.Popen(["Orthanc", str(out / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = "http://127.0.0.1:18042"
    try:
        for _ in range(100):
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{url}/system", timeout=5).read()
                break
            time.sleep(0.1)
        files = _files(folder)

        def upload(file: Path) -> int:
            request = urllib.request.Request(f"{url}/instances", file.read_bytes(), method="POST")
            try:
                return int(urllib.request.urlopen(request, timeout=60).status)
            except urllib.error.HTTPError as error:
                return error.code

        started = time.perf_counter()
        with ThreadPoolExecutor(2) as clients:
            answers = list(clients.map(upload, files))
        return {"files": len(files), "errors": sum(answer != 200 for answer in answers), "seconds": time.perf_counter() - started}
    finally:
        server.terminate()
        server.wait(30)


CONTENDERS: dict[str, Callable[[Path, Path], Counts]] = {
    work.__name__: work
    for work in (
        read_only,
        reader,
        reader_shuffled,
        pixels_metadata,
        pixels_thumbnails,
        pixels_ingest,
        pydicom_pool,
        accelerator,
        accelerator_thumbnails,
        flattened,
        dcm2parquet,
        orthanc,
    )
}


def main() -> None:
    """Run one contender."""
    name, folder, out = sys.argv[1:]
    started = time.perf_counter()
    counts = CONTENDERS[name](Path(folder), Path(out))
    counts.setdefault("seconds", time.perf_counter() - started)
    print(json.dumps({key: value for key, value in counts.items() if math.isfinite(value)}))


if __name__ == "__main__":
    main()
