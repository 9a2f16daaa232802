"""The platform as people use it: `dagster dev` on a fresh home, its GraphQL, and its pages in a browser.

Everything here is real: web server, daemon, code location and run processes, Delta tables, Chromium. The daemon looks for backfills only every
30 s, so one backfill is launched as early as possible and the other tests run while it is under way.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
import pytest
from pydicom.data import get_testdata_file

from pixels_assets.lake.query import exists, scan

pytestmark = [pytest.mark.ui, pytest.mark.slow]

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
TABLES = ["raw_files", "unzipped_archives", "dicom_metadata", "thumbnails", "annotations", "object_catalog", "quarantine"]
FOLLOWING = ["patients", "studies", "series", "instances", "uid_conflicts", "findings", "measurements", "segmentations", "headers"]
"""Assets that are not partitioned, and follow the catalog."""
DROPPED = ["CT_small.dcm", "MR_small.dcm", "rtplan.dcm", "JPEG2000.dcm", "README.txt", "reportsi.dcm"]
PATIENCE = 120.0
"""Seconds to wait for something to happen on a busy machine; it is no measure of how long it takes."""

# Headless, and without the calls home that a closed network refuses one after the other.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


def until(found: Callable[[], T], what: str, seconds: float = PATIENCE) -> T:
    """Wait until `found` returns something true, and return that."""
    deadline = time.monotonic() + seconds
    while not (result := found()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: did not happen within {seconds:.0f} s")
        time.sleep(0.25)
    return result


@dataclass(frozen=True)
class Platform:
    """`dagster dev` on a home of its own."""

    home: Path
    inbox: Path
    url: str
    log: Path

    def ask(self, query: str, **variables: Any) -> Any:
        """Ask GraphQL."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def location(self) -> Any:
        """The code location once it is loaded, or None."""
        with suppress(urllib.error.URLError, ConnectionError):
            entries = self.ask(LOCATIONS)["workspaceOrError"]["locationEntries"]
            if entries and entries[0]["loadStatus"] == "LOADED":
                return entries[0]["locationOrLoadError"]
        return None

    def run_ended(self, run_id: str) -> str | None:
        """Status of a run that has ended."""
        status = self.ask("query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }", run=run_id)["runOrError"]["status"]
        return status if status in {"SUCCESS", "FAILURE", "CANCELED"} else None

    def batches(self) -> list[str]:
        """Keys of all partitions."""
        query = '{ assetNodeOrError(assetKey: {path: ["pixels", "object_catalog"]}) { ... on AssetNode { partitionKeys } } }'
        return list(self.ask(query)["assetNodeOrError"]["partitionKeys"])

    def catalogued(self) -> dict[str, str]:
        """Status of the objects of `object_catalog` that came from the inbox, by their path below it."""
        lake = self.home / "var" / "lake"
        if not exists(lake):
            return {}
        rows = scan(lake, "object_catalog").filter(pl.col("original_path").str.starts_with(f"{self.inbox}/"))
        return {path.removeprefix(f"{self.inbox}/"): status for path, status in rows.select("path", "status").collect().iter_rows()}

    def backfill(self, backfill_id: str) -> Any:
        """Status of a backfill and of its runs."""
        query = "query($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status runs { status } } } }"
        return self.ask(query, id=backfill_id)["partitionBackfillOrError"]


LOCATIONS = """{ workspaceOrError { ... on Workspace { locationEntries { loadStatus locationOrLoadError { __typename
    ... on PythonError { message }
    ... on RepositoryLocation { repositories {
        assetNodes { assetKey { path } groupName description partitionDefinition { name } }
        jobs { name } sensors { name sensorState { status } } } } } } } } }"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    home = tmp_path_factory.mktemp("home")
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copyfile(ROOT / name, home / name)
    inbox = tmp_path_factory.mktemp("inbox")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIXELS_", "DAGSTER_"))}
    environment |= {"DAGSTER_DISABLE_TELEMETRY": "1"}  # or it makes folders for its letters, even when it is to send none
    environment |= {"DAGSTER_HOME": str(home), "PYTHONPATH": str(ROOT), "PIXELS_SOURCES": str(inbox)}
    environment |= {"PIXELS_BATCH_FILES": "3", "PIXELS_WATCH_SECONDS": "3", "PIXELS_QUIET_SECONDS": "0.5", "PIXELS_WORKERS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", str(port)]
    log = home / "dev.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL, start_new_session=True)
    running = Platform(home, inbox, f"http://127.0.0.1:{port}", log)
    try:
        until(lambda: running.location() or process.poll() is not None, "the code location is loaded")
        assert process.poll() is None, log.read_text(errors="replace")[-2000:]
        yield running
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: they share its process group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(20)


@pytest.fixture(scope="module")
def batches(platform: Platform) -> list[str]:
    """Three batches dropped into the watched folder while the daemon ran, once its sensor has brought them in; the last is an archive."""
    for number, name in enumerate(DROPPED):
        shutil.copyfile(str(get_testdata_file(name)), platform.inbox / f"{number}.part")
    with zipfile.ZipFile(platform.inbox / "study.zip.part", "w") as archive:
        archive.write(str(get_testdata_file("MR_small.dcm")), "series/mr")
    for unfinished in platform.inbox.iterdir():  # such names are left alone, so that one look of the sensor finds all of them
        unfinished.rename(unfinished.with_suffix(""))
    until(lambda: len(platform.catalogued()) == len(DROPPED) + 2, "the sensor brings in what was dropped")
    return platform.batches()


@pytest.fixture(scope="module")
def backfill(platform: Platform, batches: list[str]) -> str:
    """A backfill of the first two batches over all assets of a batch, launched and not waited for."""
    launch = """mutation($what: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $what) { __typename
        ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
    what = {"assetSelection": [{"path": ["pixels", name]} for name in TABLES], "partitionNames": batches[:2]}
    launched = platform.ask(launch, what=what)["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    return str(launched["backfillId"])


@pytest.fixture(scope="module")
def browser(platform: Platform) -> Iterator[Any]:
    """One window for all pages: their scripts are fetched once."""
    chromium = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if chromium is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield running.new_context(base_url=platform.url, viewport={"width": 1600, "height": 1000})
        running.close()


@pytest.fixture
def browser_page(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE / 2 * 1000)
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    assert not errors


def test_the_code_location_is_loaded_with_its_assets_jobs_and_sensors(platform):
    location = platform.location()
    assert location["__typename"] == "RepositoryLocation", location
    (repository,) = location["repositories"]
    assets = {tuple(node["assetKey"]["path"]): node for node in repository["assetNodes"]}
    assert set(assets) == {("pixels", name) for name in TABLES + FOLLOWING}
    assert {node["groupName"] for node in assets.values()} == {"ingest", "extract", "catalog", "annotations"}
    partitions = {path[1]: node["partitionDefinition"] and node["partitionDefinition"]["name"] for path, node in assets.items()}
    assert partitions == dict.fromkeys(TABLES, "batch") | dict.fromkeys(FOLLOWING)
    assert all(node["description"] for node in assets.values())
    assert {"discover", "ingest_batch", "update_rollups", "rebuild", "maintain"} <= {job["name"] for job in repository["jobs"]}
    assert {sensor["name"]: sensor["sensorState"]["status"] for sensor in repository["sensors"]} == {
        "arrivals": "RUNNING",
        "catalog_changed": "RUNNING",
        "failed_batches": "RUNNING",
    }


def test_files_dropped_into_the_watched_folder_are_catalogued_with_the_members_of_archives(platform, batches):
    assert batches == sorted(batches)
    assert len(batches) == 3
    others = {name: status for name, status in platform.catalogued().items() if status != "indexed"}
    assert others == {str(DROPPED.index("README.txt")): "not_dicom", "study.zip": "archive"}
    assert "study.zip!/series/mr" in platform.catalogued()


def test_the_pages_of_the_graph_and_of_an_asset_show_what_they_should(browser_page, backfill):
    browser_page.goto("/asset-groups")
    for group in ("ingest", "extract", "catalog", "annotations"):
        browser_page.locator(f"svg :text-is('{group}')").first.wait_for()
    # One group at a time: a graph that is drawn small has no names.
    for group, names in {"ingest": ["raw_files", "unzipped_archives"], "extract": ["dicom_metadata", "thumbnails"]}.items():
        browser_page.goto(f"/asset-groups?expanded=global%40global%3A{group}")
        for name in names:
            browser_page.locator(f"svg :text-is('{name}')").first.wait_for()
    browser_page.goto("/assets/pixels/object_catalog?view=overview")
    browser_page.locator(":text('One row per object that is now known.')").first.wait_for()
    browser_page.locator(":text('Deterministic 63-bit key of path.')").first.wait_for()
    browser_page.locator(":text('(0008,0018)')").first.wait_for()
    browser_page.goto("/locations/pixels_assets/jobs/discover/playground")
    browser_page.locator(".CodeMirror :text('sources')").first.wait_for()


def test_what_is_removed_from_the_watched_folder_leaves_the_catalog(platform, backfill):
    expected = {name: status for name, status in platform.catalogued().items() if not name.startswith("study.zip")}
    (platform.inbox / "study.zip").unlink()
    until(lambda: platform.catalogued() == expected, "the removed archive and its members leave")


def test_the_backfill_of_two_batches_succeeds(platform, batches, backfill):
    ended = until(lambda: (state := platform.backfill(backfill))["status"] != "REQUESTED" and state, "the backfill ends")
    assert ended == {"status": "COMPLETED_SUCCESS", "runs": [{"status": "SUCCESS"}] * 2}
    rows = scan(platform.home / "var" / "lake", "object_catalog").filter(pl.col("batch").is_in(batches[:2])).select("batch", "status").collect()
    assert dict(rows["batch"].value_counts().iter_rows()) == dict.fromkeys(batches[:2], 3)
    assert dict(rows["status"].value_counts().iter_rows()) == {"indexed": 5, "not_dicom": 1}


def test_the_page_of_a_batch_shows_its_contact_sheet(browser_page, batches, backfill, platform):
    until(lambda: platform.backfill(backfill)["status"] != "REQUESTED", "the backfill ends")
    browser_page.goto(f"/assets/pixels/thumbnails?view=partitions&partition={batches[0]}")
    browser_page.locator("text=files_per_second").first.wait_for()
    browser_page.locator("tr:has-text('contact_sheet') >> text=Show Markdown").first.click()
    picture = browser_page.locator("img[alt='contact sheet']").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 2 * 96  # two of its three files are images


def test_everything_is_stored_below_var(platform, backfill):
    assert {entry.name for entry in platform.home.iterdir()} == {"dagster.yaml", "workspace.yaml", "dev.log", "var"}
    assert {"dagster", "lake"} <= {entry.name for entry in (platform.home / "var").iterdir()}
    assert (platform.home / "var" / "dagster" / "history").is_dir()


def test_discover_seals_the_files_of_the_folder_in_its_run_config_into_a_partition(platform, backfill, tmp_path):
    shutil.copyfile(str(get_testdata_file("CT_small.dcm")), tmp_path / "ct")
    os.utime(tmp_path / "ct", (1, 1))  # long quiet
    selector = {"repositoryLocationName": "pixels_assets", "repositoryName": "__repository__", "jobName": "discover"}
    config = {"ops": {"seal_batches": {"config": {"sources": [str(tmp_path)]}}}}
    launch = """mutation($what: ExecutionParams!) { launchRun(executionParams: $what) { __typename
        ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
    before = set(platform.batches())
    launched = platform.ask(launch, what={"selector": selector, "runConfigData": config})["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    assert until(lambda: platform.run_ended(launched["run"]["runId"]), "the run of `discover` ends") == "SUCCESS"
    assert len(set(platform.batches()) - before) == 1
