"""Clients that others wrote: dicomweb-client and dcmjs' client of the same name for every service, and Orthanc that fetches from here."""

import hashlib
import io
import json
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import httpx
import numpy as np
import pydicom
import pytest
from dicomweb_client import DICOMwebClient

from pixels_assets_tests.dicomweb.conftest import IN_TAR, IN_ZIP, LOOSE, data_of, free_port

CT = pydicom.dcmread(io.BytesIO(data_of("CT_small.dcm")))
ROOT = Path(__file__).parents[2]
MODULES = ROOT / "var" / "clients"
ORTHANC = shutil.which("Orthanc")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
KEYS = CT.StudyInstanceUID, CT.SeriesInstanceUID, CT.SOPInstanceUID


@pytest.fixture(scope="module")
def client(server):
    return DICOMwebClient(server.dicomweb)


@pytest.fixture(autouse=True)
def _quiet():
    """The other program warns of values that it meets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def uids(rows, tag):
    return sorted(row[tag]["Value"][0] for row in rows)


def test_every_search_is_understood(client):
    assert client.search_for_studies(search_filters={"PatientID": CT.PatientID}, limit=5, offset=0, fields=["PatientAge"])[0]["0020000D"][
        "Value"
    ] == [KEYS[0]]
    assert client.search_for_series(KEYS[0])[0]["0020000E"]["Value"] == [KEYS[1]]
    assert client.search_for_series(search_filters={"Modality": "CT"})
    assert client.search_for_instances(*KEYS[:2])[0]["00080018"]["Value"] == [KEYS[2]]
    assert client.search_for_instances(search_filters={"SOPInstanceUID": KEYS[2]})[0]["00080018"]["Value"] == [KEYS[2]]
    assert client.search_for_studies(search_filters={"PatientID": "nobody"}) == []


def test_every_retrieval_is_understood(client):
    assert client.retrieve_instance(*KEYS).pixel_array.tolist() == CT.pixel_array.tolist()
    assert [item.SOPInstanceUID for item in client.retrieve_series(*KEYS[:2])] == [KEYS[2]]
    assert [item.SOPInstanceUID for item in client.retrieve_study(KEYS[0])] == [KEYS[2]]
    assert pydicom.Dataset.from_json(client.retrieve_instance_metadata(*KEYS)).PatientName == CT.PatientName
    assert len(client.retrieve_series_metadata(*KEYS[:2])) == len(client.retrieve_study_metadata(KEYS[0])) == 1
    (frame,) = client.retrieve_instance_frames(*KEYS, frame_numbers=[1])
    assert np.array_equal(np.frombuffer(frame, "<i2").reshape(128, 128), CT.pixel_array)
    assert client.retrieve_instance_rendered(*KEYS, media_types=("image/png",)).startswith(b"\x89PNG")
    assert client.retrieve_instance_frames_rendered(*KEYS, frame_numbers=[1], media_types=("image/jpeg",)).startswith(b"\xff\xd8")
    link = client.retrieve_instance_metadata(*KEYS)["7FE00010"]["BulkDataURI"]
    assert client.retrieve_bulkdata(link)[0] == CT.PixelData


def test_a_transfer_syntax_can_be_asked_for(client):
    jpeg = pydicom.dcmread(io.BytesIO(data_of("JPEG2000.dcm")))
    keys = jpeg.StudyInstanceUID, jpeg.SeriesInstanceUID, jpeg.SOPInstanceUID
    stored = client.retrieve_instance(*keys, media_types=(("application/dicom", "1.2.840.10008.1.2.4.91"),))
    assert stored.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.4.91"
    plain = client.retrieve_instance(*keys, media_types=(("application/dicom", "1.2.840.10008.1.2.1"),))
    assert np.array_equal(plain.pixel_array, jpeg.pixel_array)
    frame = client.retrieve_instance_frames(*keys, frame_numbers=[1], media_types=(("image/jp2", "1.2.840.10008.1.2.4.91"),))
    assert frame[0].startswith(b"\xff\x4f\xff\x51")


def asked_by_dcmjs(server, dataset, *stored):
    """What dcmjs' client gets of an object, and what it should, after storing the object where a file of it is given."""
    if not (MODULES / "node_modules" / "dicomweb-client").is_dir() or not shutil.which("node"):
        pytest.skip("`make var/clients/.installed` installs it, with npm")
    keys = [dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID]
    script = Path(__file__).parent / "node" / "client.cjs"
    ran = subprocess.run(["node", script, MODULES, server.dicomweb, *keys, *stored], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    pixels = hashlib.sha256(dataset.PixelData).hexdigest()
    return json.loads(ran.stdout), {
        "studies": [keys[0]],
        "series": [keys[1]],
        "instances": [keys[2]],
        "naturalized": keys[2],
        "instanceMetadata": keys[2],
        "metadata": 1,
        "studyMetadata": 1,
        "wholeSeries": 1,
        "wholeStudy": 1,
        "patient": dataset.PatientID,
        "pixels": pixels,
        "frames": [pixels],
        "bulk": [pixels],
        "rendered": "PNG",
    }


def test_the_client_of_dcmjs_reads_what_pydicom_reads(server):
    found, expected = asked_by_dcmjs(server, CT)
    assert found == expected


@pytest.fixture
def orthanc(server, tmp_path):
    """Orthanc with an empty archive, which knows this server."""
    if not ORTHANC or not PLUGIN.exists():
        pytest.skip("Orthanc is not installed: apt-get install orthanc orthanc-dicomweb")
    web = {"Enable": True, "Root": "/dicom-web/", "Servers": {"pixels": {"Url": f"{server.dicomweb}/"}}}
    port = free_port()
    own = {"HttpPort": port, "DicomServerEnabled": False, "AuthenticationEnabled": False, "RemoteAccessAllowed": False}
    (tmp_path / "orthanc.json").write_text(json.dumps({"StorageDirectory": str(tmp_path / "db"), "Plugins": [str(PLUGIN)], "DicomWeb": web, **own}))
    process = subprocess.Popen([ORTHANC, tmp_path / "orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        try:
            for _ in range(300):
                try:
                    client.get("/system")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield client
        finally:
            process.kill()
            process.wait()


def test_orthanc_searches_here_and_fetches_studies(orthanc):
    names = [*LOOSE, *IN_ZIP, *IN_TAR]
    sources = {item.SOPInstanceUID: item for item in (pydicom.dcmread(io.BytesIO(data_of(name))) for name in names)}
    headers = {"Accept": "application/dicom+json"}
    asked = {"Uri": "/studies", "Arguments": {"PatientID": CT.PatientID}, "HttpHeaders": headers}
    assert uids(orthanc.post("/dicom-web/servers/pixels/get", json=asked).json(), "0020000D") == [KEYS[0]]
    studies = sorted({item.StudyInstanceUID for item in sources.values()})
    fetched = orthanc.post("/dicom-web/servers/pixels/retrieve", json={"Resources": [{"Study": uid} for uid in studies], "Synchronous": True})
    assert fetched.json()["ReceivedInstancesCount"] == str(len(names))
    compared = 0
    for name in orthanc.get("/instances").json():
        found = pydicom.dcmread(io.BytesIO(orthanc.get(f"/instances/{name}/file").content))
        source = sources.pop(found.SOPInstanceUID)
        assert (found.get("PatientID"), found.SeriesInstanceUID) == (source.get("PatientID"), source.SeriesInstanceUID)
        if "PixelData" in source:
            assert np.array_equal(found.pixel_array, source.pixel_array), found.SOPInstanceUID
            compared += 1
    assert not sources
    assert compared > 10
