"""One lake and one server for all tests of this layer: loose files, members of archives, and stored frames of every kind."""

import io
import os
import shutil
import socket
import tarfile
import threading
import time
import warnings
import zipfile
from functools import cache
from pathlib import Path

import httpx
import imagecodecs
import pydicom.data
import pytest
import uvicorn
from pydicom.encaps import encapsulate

from pixels_assets.cli import main
from pixels_assets.dicomweb.app import create_app
from pixels_assets.dicomweb.connections import watched
from pixels_assets.dicomweb.service import WebSettings
from pixels_assets.settings import Settings

OLD = 1_700_000_000
LOOSE = (
    *("CT_small.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "SC_rgb_rle_2frame.dcm", "emri_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_dcmtk.dcm"),
    *("liver.dcm", "image_dfl.dcm", "reportsi.dcm", "rtplan.dcm", "examples_palette.dcm", "test-SR.dcm"),
)
IN_ZIP = ("examples_overlay.dcm", "rtdose.dcm")
IN_TAR = ("693_J2KI.dcm", "ExplVR_BigEnd.dcm", "single_bits_j2k.dcm")
"""Files that pydicom carries, and one that is made of such, each with a UID of its own."""


def data_of(name):
    if name == "single_bits_j2k.dcm":
        return _single_bits()
    return Path(str(pydicom.data.get_testdata_file(name))).read_bytes()


def changed(name="CT_small.dcm", **values):
    """A file of pydicom with other values."""
    dataset, buffer = pydicom.dcmread(io.BytesIO(data_of(name))), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about UIDs that are none
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(buffer)
    return buffer.getvalue()


@cache
def _single_bits():
    """A segmentation of an odd number of pixels whose codestreams have eight bits where the data set says one."""
    dataset = pydicom.dcmread(io.BytesIO(data_of("liver.dcm")))
    frames = dataset.pixel_array[:, :101, :99]
    dataset.Rows, dataset.Columns = frames.shape[1:]
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.2"
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.90"
    dataset.PixelData = encapsulate([imagecodecs.jpeg2k_encode(frame.copy(), codecformat="j2k", reversible=True) for frame in frames])
    dataset["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def fill(folder):
    for name in LOOSE:
        (folder / name).write_bytes(data_of(name))
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in IN_ZIP:
            archive.writestr(f"images/{name}", data_of(name))
    with zipfile.ZipFile(folder / "outer.zip", "w") as archive:
        archive.writestr("inner.zip", inner.getvalue())
    with tarfile.open(folder / "series.tar.gz", "w:gz") as archive:
        for name in IN_TAR:
            entry = tarfile.TarInfo(name)
            entry.size = len(data_of(name))
            archive.addfile(entry, io.BytesIO(data_of(name)))
    for path in folder.iterdir():
        os.utime(path, (OLD, OLD))


def ingest(source, lake, home):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(home))
        assert main(["ingest", str(source), "--lake", str(lake), "--workers", "1"]) == 0


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with `source`, `lake` and `home`. Tests read them only."""
    folder = tmp_path_factory.mktemp("dicomweb")
    (folder / "source").mkdir()
    (folder / "home").mkdir()
    fill(folder / "source")
    ingest(folder / "source", folder / "lake", folder / "home")
    return folder


class Running:
    """A server in a thread."""

    def __init__(self, lake, ingest=None, prepare=None, **web):
        self.port = free_port()
        self.app = create_app(Settings.from_environment(lake=lake), WebSettings(port=self.port, **web), ingest, prepare)
        config = uvicorn.Config(self.app, port=self.port, log_level="warning", access_log=False, lifespan="on")
        watched(config, WebSettings(**web).header_seconds)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.url = f"http://127.0.0.1:{self.port}"
        self.dicomweb = f"{self.url}/dicom-web"

    def __enter__(self):
        self.thread.start()
        deadline = time.monotonic() + 30
        while not self.server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        self.http = httpx.Client(base_url=self.dicomweb, timeout=60)
        return self

    def __exit__(self, *_):
        self.http.close()
        self.server.should_exit = True
        self.thread.join(30)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture(scope="session")
def server(place):
    with Running(place / "lake") as running:
        yield running


@pytest.fixture
def copied(place, tmp_path):
    """A copy of the folder that a test may change; its lake still names the first one."""
    shutil.copytree(place, tmp_path / "place")
    return tmp_path / "place"
