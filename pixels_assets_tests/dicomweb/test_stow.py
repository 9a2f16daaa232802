"""What clients store is kept as it came, catalogued by the normal ingest, and found at once."""

import io
import threading
from functools import partial

import pydicom
import pytest

from pixels_assets.dicomweb.stow import _move
from pixels_assets.engines.processes import keep_workers
from pixels_assets.runs import ingest, prepare
from pixels_assets.settings import Settings
from pixels_assets_tests.annotated import faults, report, segmentation, series, written
from pixels_assets_tests.dicomweb.conftest import Running, changed, data_of
from pixels_assets_tests.dicomweb.conftest import ingest as bring_in
from pixels_assets_tests.dicomweb.test_clients import asked_by_dcmjs
from pixels_assets_tests.dicomweb.test_wado import STORED, parts_of

KIND = 'multipart/related; type="application/dicom"; boundary="a b"'
JSON = {"accept": "application/dicom+json"}


def body_of(*objects, kind=b"application/dicom"):
    parts = b"".join(b"--a b\r\nContent-Type: " + kind + b"\r\n\r\n" + data + b"\r\n" for data in objects)
    return b"\r\n" + parts + b"--a b--\r\n"


@pytest.fixture(scope="module")
def writable(tmp_path_factory):
    """A server of its own, which stores."""
    folder = tmp_path_factory.mktemp("stow")
    (folder / "source").mkdir()
    (folder / "source" / "known.dcm").write_bytes(data_of("CT_small.dcm"))
    lost = {"SOPInstanceUID": "1.2.13.1", "StudyInstanceUID": "1.2.13", "SeriesInstanceUID": "1.2.13.5"}
    (folder / "source" / "lost.dcm").write_bytes(changed(**lost))
    (folder / "home").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAGSTER_HOME", str(folder / "home"))
        patch.setenv("PIXELS_QUIET_SECONDS", "0")
        bring_in(folder / "source", folder / "lake", folder / "home")
        settings = Settings.from_environment(lake=folder / "lake", workers=1, quiet_seconds=0.0, accept_empty=True)

        def catalogue(exports):
            assert not ingest(settings, [exports]).failed

        (folder / "way").symlink_to(folder)
        web = {"exports": folder / "way" / "exports", "allow_delete": True, "max_object": 1 << 20, "max_body": 1 << 22}
        with keep_workers(), Running(folder / "lake", catalogue, partial(prepare, settings), **web) as running:
            running.folder = folder
            yield running


def store(server, *objects, study="", **options):
    return server.http.post(f"/studies{study}", content=body_of(*objects), headers={"content-type": KIND} | JSON | options)


@pytest.fixture(scope="module")
def stored(writable):
    """Objects stored by one request, each in a study of its own: their bytes and what was said of them, by study."""
    names = {"1.2.3": "stored", "1.2.4": "again", "1.2.5": "other", "1.2.10": "removed", "1.2.11": "rejected"}
    objects = {
        study: changed(SOPInstanceUID=f"{study}.1", StudyInstanceUID=study, SeriesInstanceUID=f"{study}.5", PatientID=name)
        for study, name in names.items()
    }
    response = store(writable, *objects.values())
    assert response.status_code == 200
    references = response.json()["00081199"]["Value"]
    assert [reference["00081155"]["Value"] for reference in references] == [[f"{study}.1"] for study in objects]
    return {study: (data, reference) for (study, data), reference in zip(objects.items(), references, strict=True)}


def test_a_stored_object_is_found_and_has_its_bytes(writable, stored):
    data, reference = stored["1.2.3"]
    link = reference["00081190"]["Value"][0]
    assert [body for _, body in parts_of(writable.http.get(link, headers={"accept": STORED}))] == [data]
    (row,) = writable.http.get("/studies?PatientID=stored").json()
    assert row["00201208"]["Value"] == [1]
    series = pydicom.dcmread(io.BytesIO(data)).SeriesInstanceUID
    assert (writable.folder / "exports" / "1.2.3" / series / "1.2.3.1.dcm").read_bytes() == data


def test_the_same_bytes_again_are_fine_and_kept_once(writable, stored):
    data, _ = stored["1.2.4"]
    assert store(writable, data).status_code == 200
    assert len(list((writable.folder / "exports" / "1.2.4").rglob("*.dcm"))) == 1
    assert store(writable, data_of("CT_small.dcm")).status_code == 200
    known = pydicom.dcmread(io.BytesIO(data_of("CT_small.dcm"))).StudyInstanceUID
    assert not (writable.folder / "exports" / known).exists()


def test_the_same_bytes_as_a_file_that_is_no_longer_there_are_kept(writable):
    data, address = (writable.folder / "source" / "lost.dcm").read_bytes(), "/studies/1.2.13/series/1.2.13.5/instances/1.2.13.1"
    (writable.folder / "source" / "lost.dcm").unlink()
    assert writable.http.get(address).status_code == 410
    assert store(writable, data).status_code == 200
    assert [body for _, body in parts_of(writable.http.get(address, headers={"accept": STORED}))] == [data]


def test_a_place_that_another_request_took_first_is_not_taken_again(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).write_text(name)
    assert _move(tmp_path / "first", tmp_path / "place")
    assert not _move(tmp_path / "second", tmp_path / "place")
    assert (tmp_path / "place").read_text() == "first"


def test_other_bytes_under_a_known_uid_are_kept_as_a_version_and_said_to_be(writable, stored):
    first, _ = stored["1.2.5"]
    second = changed(SOPInstanceUID="1.2.5.1", StudyInstanceUID="1.2.5", SeriesInstanceUID="1.2.5.5", PatientComments="other")
    response = store(writable, second)
    assert response.status_code == 202
    (reference,) = response.json()["00081199"]["Value"]
    assert reference["00081196"]["Value"] == [0xB000]
    kept = {file.read_bytes() for file in (writable.folder / "exports" / "1.2.5").rglob("*.dcm")}
    assert kept == {first, second}
    found = writable.http.get(reference["00081190"]["Value"][0], headers={"accept": STORED})
    assert [body for _, body in parts_of(found)] == [second]


def test_what_is_no_object_fails_and_the_rest_is_stored(writable):
    good = changed(SOPInstanceUID="1.2.6.1", StudyInstanceUID="1.2.6")
    evil = good.replace(b"1.2.6.1\0", b"../../ev")
    response = store(writable, good, b"no image", evil)
    assert response.status_code == 202
    answer = response.json()
    assert [item["00081155"]["Value"] for item in answer["00081199"]["Value"]] == [["1.2.6.1"]]
    assert [item["00081197"]["Value"] for item in answer["00081198"]["Value"] + answer["0008119A"]["Value"]] == [[0xC000], [0xC000]]
    assert not list(writable.folder.rglob("*ev*"))


def test_words_before_the_first_part_mean_nothing(writable, stored):
    data, _ = stored["1.2.4"]
    response = writable.http.post("/studies", content=b"These are --a b parts." + body_of(data), headers={"content-type": KIND} | JSON)
    assert response.status_code == 200


def test_an_object_of_another_study_is_refused(writable):
    response = store(writable, changed(SOPInstanceUID="1.2.7.1", StudyInstanceUID="1.2.7"), study="/1.2.8")
    assert response.status_code == 409
    assert response.json()["00081198"]["Value"][0]["00081197"]["Value"] == [0xA900]
    assert writable.http.get("/studies/1.2.7/metadata").status_code == 404


def test_requests_at_once_are_all_found(writable):
    objects = [changed(SOPInstanceUID=f"1.2.9.{number}", StudyInstanceUID="1.2.9") for number in range(6)]
    answers = []
    threads = [threading.Thread(target=lambda data=data: answers.append(store(writable, data).status_code)) for data in objects]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 6
    assert len(writable.http.get("/studies/1.2.9/instances").json()) == 6


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", KIND, 400),
        (body_of(data_of("CT_small.dcm"))[:-20], KIND, 400),
        (b"--a b--\r\n", KIND, 400),
        (b"x" * 1000, KIND, 400),
        (b"x" * 100_000, KIND, 400),
        (body_of(b"x"), "text/plain", 415),
        (body_of(b"x"), 'multipart/related; type="application/dicom"', 415),
        (body_of(b"x"), 'multipart/related; type="application/dicom+xml"; boundary="a b"', 415),
        (body_of(b"<x/>", kind=b"text/xml"), KIND, 409),
        (body_of(b"\0" * (2 << 20)), KIND, 413),
        (body_of(b"\0" * (5 << 20)), KIND, 413),
        (b"\0" * 300, "application/dicom", 409),
    ],
)
def test_a_body_that_is_no_good_leaves_nothing_behind(writable, body, kind, status):
    before = sorted(writable.folder.rglob("*.dcm"))
    response = writable.http.post("/studies", content=body, headers={"content-type": kind} | JSON)
    assert response.status_code == status
    assert sorted(writable.folder.rglob("*.dcm")) == before
    assert not list((writable.folder / "exports.incoming").iterdir())


def test_what_was_stored_can_be_removed_and_nothing_else(writable, stored):
    data, _ = stored["1.2.10"]
    assert writable.http.delete("/studies/1.2.10").status_code == 204
    assert writable.http.get("/studies/1.2.10/metadata").status_code == 404
    assert [file.read_bytes() for file in (writable.folder / "exports.removed").rglob("1.2.10.1.dcm")] == [data]
    known = pydicom.dcmread(io.BytesIO(data_of("CT_small.dcm"))).StudyInstanceUID
    assert writable.http.delete(f"/studies/{known}").status_code == 403
    assert writable.http.get(f"/studies/{known}/metadata").status_code == 200


def test_a_series_is_rejected_as_viewers_do_it(writable, stored):
    assert writable.http.post("/studies/1.2.11/series/1.2.11.5/reject/113001%5EDCM").status_code == 204
    assert writable.http.get("/studies?StudyInstanceUID=1.2.11").status_code == 204


def test_the_client_of_dcmjs_stores_what_it_then_reads(writable, tmp_path):
    data = changed(SOPInstanceUID="1.2.12.1", SeriesInstanceUID="1.2.12.2", StudyInstanceUID="1.2.12", PatientID="dcmjs")
    (tmp_path / "one.dcm").write_bytes(data)
    found, expected = asked_by_dcmjs(writable, pydicom.dcmread(io.BytesIO(data)), tmp_path / "one.dcm")
    assert found == expected | {"stored": ["1.2.12.1"]}
    assert (writable.folder / "exports" / "1.2.12" / "1.2.12.2" / "1.2.12.1.dcm").read_bytes() == data


def test_annotations_are_kept_without_a_fault(writable):
    images = series()
    made = [segmentation(images), report(images)]
    assert store(writable, *map(written, made)).status_code == 200
    for item in made:
        kept = writable.folder / "exports" / item.StudyInstanceUID / item.SeriesInstanceUID / f"{item.SOPInstanceUID}.dcm"
        assert kept.read_bytes() == written(item)
        # A measurement is inferred from its coordinates (DICOM PS3.16 TID 320), which highdicom writes and dciodvfy takes for wrong.
        assert {text for text in faults(kept) if "SCOORD got INFERRED FROM" not in text} == set()


def test_a_server_without_an_ingest_stores_nothing(server):
    assert store(server, data_of("CT_small.dcm")).status_code == 403
    assert server.http.delete("/studies/1.2.3").status_code == 404
