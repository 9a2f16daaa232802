"""A lake, a source folder and the engine: what the tests of this layer work with."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from pixels_assets.engines.local import LocalEngine
from pixels_assets.engines.run import commit_catalog, commit_quarantine, commit_raw_files, index_batch
from pixels_assets.engines.shards import OUTPUTS, IndexSpec
from pixels_assets.intake.objects import file_address
from pixels_assets.lake.changes import Discovery, discover, manifests
from pixels_assets.lake.commit import create_tables
from pixels_assets.lake.query import pending_batches, scan
from pixels_assets.settings import Settings


@pytest.fixture(scope="session")
def engine():
    with LocalEngine(1) as running:
        yield running


class House:
    """A lake, one source folder and the engine."""

    def __init__(self, tmp_path: Path, engine: LocalEngine, empty: Path) -> None:
        self.lake, self.source, self.engine = tmp_path / "lake", tmp_path / "source", engine
        self.source.mkdir()
        shutil.copytree(empty, self.lake)
        self.moment = 1_700_000_000_000_000_000
        self.runs = 0

    def write(self, name: str | bytes, data: bytes | None = None, *, folder: Path | None = None) -> Path:
        """A file with a time and, unless given, bytes that no other file has."""
        self.moment += 1_000_000_007
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder or self.source), os.fsencode(name))))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if data is not None else f"content {self.moment}".encode())
        os.utime(path, ns=(self.moment, self.moment))
        return path

    def touch(self, path: Path) -> None:
        self.moment += 1_000_000_007
        os.utime(path, ns=(self.moment, self.moment))

    def settings(self, **values) -> Settings:
        return Settings(lake=self.lake, **({"quiet_seconds": 0.0} | values))

    def look(self, *sources, batch_files=5000, quiet_seconds=0.0, accept_empty=False, **options) -> Discovery:
        settings = self.settings(batch_files=batch_files, quiet_seconds=quiet_seconds, accept_empty=accept_empty)
        return discover(self.lake, sources or [self.source], settings, exclude=[file_address(self.lake)], **options)

    def ticks(self, *sources, between=lambda number: None, batch_files=2, **options) -> list[Discovery]:
        """Look in as many pieces as there can be."""
        found = [self.look(*sources, batch_files=batch_files, seconds=0.0, **options)]
        while found[-1].position is not None:
            between(len(found))
            found.append(self.look(*sources, batch_files=batch_files, seconds=0.0, position=found[-1].position, **options))
        return found

    def run(self, batch: str) -> None:
        for step in ("raw", "index", "catalog", "quarantine"):
            self.step(batch, step)

    def step(self, batch: str, name: str, **settings) -> None:
        """One asset of one batch."""
        self.runs += 1
        files, attempt = manifests(self.lake).load(batch), f"run-{self.runs}"
        if name == "raw":
            commit_raw_files(self.lake, batch, files, attempt=attempt, run_id=attempt)
        elif name == "catalog":
            commit_catalog(self.lake, batch, files, attempt=attempt, run_id=attempt)
        elif name == "quarantine":
            commit_quarantine(self.lake, batch, files, attempt=attempt, run_id=attempt)
        else:
            outputs = frozenset(table.name for table in OUTPUTS) if name == "index" else frozenset({name})
            index_batch(self.engine, IndexSpec(self.lake, batch, attempt, outputs, self.settings(**settings)), files, run_id=attempt)

    def run_pending(self) -> None:
        for batch in pending_batches(self.lake):
            self.run(batch)

    def ingest(self, *sources, **options) -> set[tuple[str, str, str | None]]:
        """Look and run; what changed, by names below the source."""
        found = self.look(*sources, **options)
        self.run_pending()
        return self.changes(found)

    def changes(self, *found: Discovery) -> set[tuple[str, str, str | None]]:
        files = [file for one in found for batch in one.batches for file in manifests(self.lake).load(batch)]
        named = [(file.change.value, self.name(file.path), self.name(file.previous_path) if file.previous_path else None) for file in files]
        assert len(named) == len(set(named))
        return set(named)

    def name(self, path: str) -> str:
        return path.removeprefix(f"{self.source}/")

    def catalog(self) -> dict[str, str | None]:
        """Content hash of each loose file and archive in the catalog."""
        rows = scan(self.lake, "object_catalog").filter(pl.col("path") == pl.col("original_path")).select("path", "content_hash").collect()
        assert rows["path"].is_unique().all()
        return dict(rows.iter_rows())

    def truth(self, *roots: Path) -> dict[str, str]:
        """SHA-256 of each file that there is."""
        found = {}
        for root in roots or [self.source]:
            for folder, _, names in os.walk(os.fsencode(root)):
                for name in names:
                    path = os.path.join(folder, name)
                    if os.path.isfile(path) and not os.path.islink(path):
                        found[file_address(path)] = hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest()
        return found


@pytest.fixture(scope="session")
def new_house(engine, tmp_path_factory) -> Callable[[Path], House]:
    create_tables(empty := tmp_path_factory.mktemp("empty") / "lake")
    return lambda folder: House(folder, engine, empty)


@pytest.fixture
def house(tmp_path, new_house) -> House:
    return new_house(tmp_path)
