"""Many small commits to one table: what opening and scanning it costs before and after maintenance.

The commits are those of `pixels_assets.lake.commit`, a few rows each; every batch gets several, as retries and corrections make them.

    python benchmarks/commits.py --commits 10000 --per-batch 10
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import polars as pl

from pixels_assets.lake.commit import commit, create_tables, open_table
from pixels_assets.lake.maintenance import maintain
from pixels_assets.lake.parts import PartWriter
from pixels_assets.lake.schema import QUARANTINE
from pixels_assets.lake.sql import connect


def measure(lake: Path) -> dict[str, object]:
    """Median of three, milliseconds: open the table, scan a column of it with polars, count it by batch with DuckDB."""
    times: dict[str, list[float]] = {"open_ms": [], "scan_ms": [], "duckdb_ms": []}
    for _ in range(3):
        started = time.perf_counter()
        open_table(lake, QUARANTINE.name)
        times["open_ms"].append(time.perf_counter() - started)
        started = time.perf_counter()
        rows = pl.scan_delta(open_table(lake, QUARANTINE.name)).select(pl.col("path").n_unique()).collect().item()
        times["scan_ms"].append(time.perf_counter() - started)
        started = time.perf_counter()
        with connect(lake) as connection:
            connection.sql("select batch, count(path) from quarantine group by 1").fetchall()
        times["duckdb_ms"].append(time.perf_counter() - started)
    log = list((lake / QUARANTINE.name / "_delta_log").iterdir())
    return {
        "rows": rows,
        "files": len(open_table(lake, QUARANTINE.name).file_uris()),
        "log_files": len(log),
        "log_mib": round(sum(path.stat().st_size for path in log) / 2**20, 1),
    } | {name: round(1000 * statistics.median(values), 1) for name, values in times.items()}


def main() -> None:
    """Commit, measure, maintain, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commits", type=int, default=1_000)
    parser.add_argument("--per-batch", type=int, default=10, help="commits to each batch (default: 10)")
    parser.add_argument("--old", action="store_true", help="pretend that the log is some hours old, so that spare checkpoints may go")
    options = parser.parse_args()
    lake = Path(tempfile.mkdtemp(prefix="pixels-commits-"))
    try:
        create_tables(lake)
        costs = []
        for number in range(options.commits):
            batch, name = f"20260101T000000-{number // options.per_batch:05d}", f"/in/{number:06d}"
            with PartWriter(lake, QUARANTINE, batch, "part") as writer:
                for row in range(3):
                    writer.append({"path": f"{name}!/{row}", "original_path": name, "status": "corrupt"})
                parts = writer.finish()
            started = time.process_time()
            commit(lake, QUARANTINE, batch, parts, run_id="bench", only=frozenset([name]))
            costs.append(time.process_time() - started)
            if (number + 1) % max(1, options.commits // 10) == 0:
                print(f"{number + 1} commits, the last {100 * statistics.median(costs[-100:]) * 10:.1f} ms of CPU each", flush=True)
        figures = {"before": measure(lake)}
        if options.old:
            for path in (lake / QUARANTINE.name / "_delta_log").iterdir():
                os.utime(path, (time.time() - 2 * 3_600,) * 2)
        started = time.perf_counter()
        maintain(lake)
        figures["maintenance_s"] = round(time.perf_counter() - started, 1)
        figures["after"] = measure(lake)
        print(json.dumps(figures, indent=1))
    finally:
        shutil.rmtree(lake, ignore_errors=True)


if __name__ == "__main__":
    main()
