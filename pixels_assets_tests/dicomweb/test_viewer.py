"""The viewer as people use it: OHIF in Chromium over this server. Images are seen, what is drawn is saved, catalogued and seen again.

Everything is real: the viewer's files as npm has them, the server process, the ingest of what the browser stores, and the pixels on the screen.
Set PIXELS_SCREENSHOTS to a folder to look at what the tests saw.
"""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import polars as pl
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid

from pixels_assets.dicomweb.viewer import viewer_folder
from pixels_assets.lake.query import scan
from pixels_assets_tests.annotated import faults, save, series, written
from pixels_assets_tests.dicomweb.conftest import free_port

pytestmark = [pytest.mark.ui, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
PLAIN = {
    "us-frames": "examples_ybr_color.dcm",
    "us-palette": "examples_palette.dcm",
    "colour": "SC_rgb_rle_2frame.dcm",
    "jpeg-ls": "emri_small_jpeg_ls_lossless.dcm",
    "j2k": "JPEG2000.dcm",
    "rle": "MR_small_RLE.dcm",
    "big-endian": "MR_small_bigendian.dcm",
}
"""Patient's name: file of pydicom; each gets a study of its own."""
SEEN = {"alpha": 10, "beta": 6, "gamma": 4, "us-frames": 30, "us-palette": 1, "colour": 2, "jpeg-ls": 10, "rle": 1, "j2k": 1, "big-endian": 1}
"""Images of each study as the viewer counts them; none looks as the one before."""
PATIENCE = 90.0
"""Seconds to wait for something to happen on a busy machine; it is no measure of how long it takes."""

# Software rendering, of pages without the detour over WebGL that costs half of all the time; and without the calls home that a closed network
# refuses one after the other.
FLAGS = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]
FLAGS += ["--disable-gpu-compositing"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]

SCREEN = {"width": 1200, "height": 700}
"""Small, as each pixel is drawn by the processor; with a profile on disk the viewer's scripts are compiled once and not for each page."""

VIEWPORT = "window.services.cornerstoneViewportService.getRenderingEngine().getViewports()[0]"
READY = f"window.services?.cornerstoneViewportService?.getRenderingEngine()?.getViewports()?.length && {VIEWPORT}.viewportStatus === 'rendered'"
SHOW = """study => {
    const { displaySetService, viewportGridService } = window.services;
    const set = displaySetService.getActiveDisplaySets().find(one => one.StudyInstanceUID === study);
    if (!set) return false;
    const displaySetInstanceUIDs = [set.displaySetInstanceUID], viewportId = viewportGridService.getActiveViewportId();
    viewportGridService.setDisplaySetsForViewport({ viewportId, displaySetInstanceUIDs });
    return true;
}"""
"""What a double click on its picture does."""
EXPORTABLE = """() => window.services.segmentationService.getSegmentations()
    .some(one => Object.values(one.segments).some(segment => Object.keys(segment?.cachedStats?.namedStats ?? {}).length))"""
"""Whether OHIF has counted what was painted, which it begins a second afterwards. Until then its menu may take the segmentation for empty."""
DRAWN = "window.services.measurementService.getMeasurements().length === 1 && window.services.measurementService.getMeasurements()[0].displayText"
SHOWN = f"study => {READY} && {VIEWPORT}.getCornerstoneImage()?.imageId.includes(study)"
PANE = "[data-cy=viewport-pane]"
FAULTS_OF_OHIF = {
    "Missing attribute Type 1 Required Element=<FileMetaInformationVersion> Module=<FileMetaInformation>",
    "Missing attribute Type 1C Conditional Element=<DerivationCodeSequence> Module=<DerivationImageMacro>",
    "Missing attribute Type 1 Required Element=<ReferencedSOPClassUID> Module=<SOPInstanceReferenceMacro>",
    "Shall not be present for Referenced SOP Class that is not multi-frame - attribute <ReferencedFrameNumber>",
    "Missing attribute Type 1C Conditional Element=<PurposeOfReferenceCodeSequence> Module=<DerivationImageMacro>",
}
"""What dciodvfy finds in the segmentations that OHIF writes. The server keeps what comes, as it comes."""
HARMLESS = ("Invalid number of values for array setter",)
"""What OHIF says of images without a position, which it shows all the same."""


def named(items: list[Dataset], name: str) -> list[Dataset]:
    """Put objects into a study of a patient of their own."""
    study = generate_uid()
    for item in items:
        item.PatientName, item.PatientID, item.StudyInstanceUID = name, name.upper(), study
        item.StudyDescription, item.SeriesDescription, item.StudyDate, item.StudyTime = f"study of {name}", f"series of {name}", "20260102", "101112"
    return items


def fill(folder: Path) -> dict[str, str]:
    """Write the files of all patients; return their studies by name."""
    made = {"alpha": named(series(10), "alpha"), "beta": named(series(6, "MR"), "beta"), "gamma": named(series(4), "gamma")}
    for name in ("alpha", "beta"):
        save(folder / name, *made[name])
    with zipfile.ZipFile(folder / "packed.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for item in made["gamma"]:
            archive.writestr(f"ct/{item.InstanceNumber}.dcm", written(item))
    for name, file in PLAIN.items():
        item = dcmread(str(get_testdata_file(file)))
        item.SeriesInstanceUID, item.SOPInstanceUID = generate_uid(), generate_uid()
        item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID
        made[name] = named([item], name)
        save(folder / "plain", item)
    return {name: str(items[0].StudyInstanceUID) for name, items in made.items()}


@dataclass
class Viewer:
    """The server, a browser's page on it, and what the page asked for and complained of."""

    page: Any
    url: str
    lake: Path
    studies: dict[str, str]
    elsewhere: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> None:
        own = (self.url, "blob:", "data:")
        self.page.on("request", lambda asked: None if asked.url.startswith(own) else self.elsewhere.append(asked.url))
        self.page.on("response", lambda answer: self.complaints.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)

    def open(self, *names: str, mode: str = "viewer") -> None:
        """Open studies, and wait until an image is drawn."""
        self.page.goto(f"{self.url}/{mode}?StudyInstanceUIDs={','.join(self.studies[name] for name in names)}")
        self.page.wait_for_function(READY)
        self.page.locator("[data-cy=study-browser-thumbnail]").first.wait_for()

    def show(self, name: str) -> np.ndarray[Any, Any]:
        """Show a study of those that are open; pixels of its image, once it is drawn in the place of the one before."""
        study = self.studies[name]
        before = None if self.page.evaluate(SHOWN, study) else self._shot(name)
        self.page.wait_for_function(SHOW, arg=study)
        self.page.wait_for_function(SHOWN, arg=study)
        return self.image(name, before)

    def image(self, name: str, before: np.ndarray[Any, Any] | None = None) -> np.ndarray[Any, Any]:
        """Wait until there is an image, and another one than before; its pixels."""
        deadline = time.monotonic() + PATIENCE
        while (seen := self.pixels(name)).std() <= 8 or (before is not None and np.array_equal(seen, before)):
            assert time.monotonic() < deadline, "no image is drawn"
        return seen

    def pixels(self, name: str) -> np.ndarray[Any, Any]:
        """Middle of the viewport as it is on the screen, without what is written at its borders; waits until it stands still."""
        before, after = None, self._shot(name)
        while before is None or not np.array_equal(before, after):
            self.page.wait_for_timeout(300)
            before, after = after, self._shot(name)
        return after

    def coloured(self, name: str) -> None:
        """Wait until something is drawn over the image, which is grey."""
        deadline = time.monotonic() + PATIENCE
        while np.ptp(self._shot(name), axis=2).max() <= 50:
            assert time.monotonic() < deadline, "nothing is drawn over the image"
            self.page.wait_for_timeout(250)

    def _shot(self, name: str) -> np.ndarray[Any, Any]:
        data = self.page.locator(PANE).first.screenshot()
        if folder := os.environ.get("PIXELS_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png")
        shown = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(float)
        height, width, _ = shown.shape
        return shown[height // 4 : height * 3 // 4, width // 4 : width * 3 // 4]

    def drag(self, *places: tuple[float, float]) -> None:
        """Press the mouse at the first place and move over the others; in pixels from the middle of the viewport."""
        box = self.page.locator(PANE).first.bounding_box()
        middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for number, (right, down) in enumerate(places):
            self.page.mouse.move(middle[0] + right, middle[1] + down, steps=6)
            if number == 0:
                self.page.mouse.down()
        self.page.mouse.up()

    def stored(self, button: str) -> None:
        """Press a button that stores something, and wait until it is catalogued."""
        with self.page.expect_response(lambda answer: answer.request.method == "POST") as answer:
            self.page.get_by_role("button", name=button).click()
        assert answer.value.status == 200

    def open_stored(self, modality: str) -> None:
        self.page.locator("[data-cy=study-browser-thumbnail-no-image]", has_text=modality).first.dblclick()

    def rows(self, table: str) -> list[dict[str, Any]]:
        return scan(self.lake, table).collect().to_dicts()


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    chromium = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
    if chromium is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    files = viewer_folder() if "PIXELS_VIEWER" in os.environ else ROOT / "var" / "viewer" / "node_modules" / "@ohif" / "app" / "dist"
    if not (files / "index.html").is_file():
        pytest.skip("the viewer is not installed: make var/viewer/.installed")
    from playwright.sync_api import sync_playwright

    place = tmp_path_factory.mktemp("viewer")
    (place / "source").mkdir()
    studies = fill(place / "source")
    lake, port = place / "lake", free_port()
    environment = os.environ | {"DAGSTER_HOME": str(place), "PIXELS_VIEWER": str(files), "PIXELS_QUIET_SECONDS": "0", "PIXELS_LAKE": str(lake)}
    command = [sys.executable, "-m", "pixels_assets.cli"]
    subprocess.run([*command, "ingest", str(place / "source")], check=True, env=environment, capture_output=True, timeout=600)
    with (place / "serve.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "serve", "--port", str(port), "--exports", str(place / "exports")], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/app-config.js", server)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch_persistent_context(place / "profile", executable_path=chromium, args=FLAGS, viewport=SCREEN)
            page = browser.pages[0]
            page.set_default_timeout(PATIENCE * 1000)
            running = Viewer(page, url, lake, studies)
            running.watch()
            yield running
            browser.close()
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=10).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    pytest.fail("the server does not answer")


@pytest.fixture(autouse=True)
def quiet(viewer: Viewer) -> Iterator[None]:
    """No test makes the page ask another machine, or complain."""
    yield
    assert not viewer.elsewhere
    complaints = [text for text in viewer.complaints if not text.startswith(HARMLESS)]
    viewer.complaints.clear()
    assert not complaints


def test_the_study_list_shows_all_and_finds_by_name_and_modality(viewer: Viewer) -> None:
    page = viewer.page
    page.goto(viewer.url)
    for name in viewer.studies:
        page.get_by_text(f"study of {name}", exact=True).first.wait_for()
    name = page.locator("input").first
    name.fill("bet")
    page.get_by_text("study of alpha", exact=True).wait_for(state="detached")
    assert page.get_by_text("study of beta", exact=True).count() == 1
    name.fill("")
    page.get_by_text("study of alpha", exact=True).wait_for()
    page.locator("input[aria-label='Filter Modalities']").fill("US")
    page.get_by_role("option", name="US").first.click()
    page.get_by_text("study of alpha", exact=True).wait_for(state="detached")
    assert page.get_by_text("study of us-frames", exact=True).count() == page.get_by_text("study of us-palette", exact=True).count() == 1


@pytest.fixture(scope="module")
def all_open(viewer: Viewer) -> Viewer:
    """All studies in one page: a page of the viewer takes as long to start as ten to be shown."""
    viewer.open(*viewer.studies)
    return viewer


@pytest.mark.parametrize("name", SEEN)
def test_images_are_seen_and_scrolled(all_open: Viewer, name: str) -> None:
    viewer = all_open
    first = viewer.show(name)
    assert viewer.page.evaluate(f"{VIEWPORT}.getImageIds().length") == SEEN[name]
    assert first.max() > 60
    if SEEN[name] > 1:
        start = viewer.page.evaluate(f"{VIEWPORT}.getCurrentImageIdIndex()")
        viewer.page.locator(PANE).first.hover()
        viewer.page.mouse.wheel(0, 100)
        viewer.page.wait_for_function(f"{VIEWPORT}.getCurrentImageIdIndex() !== {start}")
        deadline = time.monotonic() + PATIENCE
        while np.array_equal(viewer.pixels(f"{name}-scrolled"), first):  # the image is chosen before it is drawn
            assert time.monotonic() < deadline, "what is shown did not change"
            viewer.page.wait_for_timeout(250)


def test_what_is_drawn_is_saved_with_its_lineage_and_seen_again(viewer: Viewer) -> None:
    page = viewer.page
    viewer.open("alpha")
    page.locator("[data-cy=MeasurementTools-split-button-primary]").click()
    viewer.drag((-100, -60), (-20, 0), (80, 70))
    page.get_by_text("Yes", exact=True).click()  # track it
    page.locator("[data-cy=trackedMeasurements-btn]").first.click()
    shown = page.wait_for_function(f"{DRAWN}.primary[0]").json_value()
    page.get_by_text("Create SR").first.click()
    viewer.stored("Save")

    viewer.open("alpha", mode="segmentation")
    page.locator("[data-cy=addSegmentation]").first.click()
    page.locator("[data-cy=data-row]").first.wait_for()
    page.locator("[data-cy=Brush]").first.click()
    viewer.pixels("before-painting")
    viewer.drag((-140, 0), (40, 10))
    viewer.coloured("painted")
    page.wait_for_function(EXPORTABLE)
    page.locator("[data-cy=segmentation-collapsed-more-btn-Labelmap]").first.click()
    page.get_by_role("menuitem", name="Export").first.press("ArrowRight")  # a mouse that misses the menu on its way closes it
    page.get_by_role("menuitem", name="DICOM SEG", disabled=False).last.press("Enter")
    viewer.stored("Save")

    # Catalogued, with its sources, and readable by others.
    catalog = scan(viewer.lake, "object_catalog").filter(pl.col("StudyInstanceUID") == viewer.studies["alpha"]).collect()
    images = set(catalog.filter(pl.col("Modality") == "CT")["SOPInstanceUID"])
    assert sorted(catalog.filter(pl.col("Modality") != "CT")["Modality"]) == ["SEG", "SR"]
    (length,) = viewer.rows("measurements")
    (segment,) = viewer.rows("segmentations")
    assert f"{length['value']:.3g} {length['unit_code']}" == shown
    assert (length["type_meaning"], length["graphic_type"]) == ("Length", "POLYLINE")
    assert segment["voxel_count"] > 100
    assert segment["volume_ml"] == pytest.approx(segment["voxel_count"] * 0.5 * 0.75 * 2.5 / 1000)
    for row in (length, segment):
        assert row["source_found"]
        assert row["highdicom_reads"]
        assert set(row["source_instances"]) <= images
        assert row["source_study"] == viewer.studies["alpha"]
    (group,) = hd.sr.srread(length["path"]).content.get_planar_roi_measurement_groups() or (
        hd.sr.srread(length["path"]).content.get_image_measurement_groups()
    )
    assert [one.value for one in group.get_measurements()] == [length["value"]]
    assert int(hd.seg.segread(segment["path"]).pixel_array.sum()) == segment["voxel_count"]

    kept = {row["Modality"]: row["path"] for row in catalog.filter(pl.col("Modality") != "CT").to_dicts()}

    # Seen again, in a page that knows nothing of them.
    viewer.open("alpha")
    plain = viewer.image("alpha-again")
    viewer.open_stored("SEG")
    page.get_by_role("button", name="Yes").press("Enter")  # where a mouse may have to wait for what lies over it
    page.wait_for_function("window.services.segmentationService.getSegmentations().length === 1")
    viewer.coloured("alpha-segmentation")
    assert np.ptp(plain, axis=2).max() < 10
    viewer.open("alpha")
    viewer.open_stored("SR")
    page.get_by_text("Yes", exact=True).first.click()
    assert page.wait_for_function(f"{DRAWN}.primary[0]").json_value() == shown
    viewer.coloured("alpha-measurement")
    assert faults(kept["SR"]) == set()
    assert faults(kept["SEG"]) <= FAULTS_OF_OHIF
