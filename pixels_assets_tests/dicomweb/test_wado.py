"""What is retrieved is what was ingested: bytes, pixels and metadata, out of archives too."""

import io
import warnings
from urllib.parse import quote

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.pixels import pixel_array

from pixels_assets_tests.dicomweb.conftest import IN_TAR, IN_ZIP, LOOSE, data_of

STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
FRAMES = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
EXPLICIT = "1.2.840.10008.1.2.1"
IMAGES = (
    *(
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_bigendian.dcm",
        "JPEG2000.dcm",
        "SC_rgb_rle_2frame.dcm",
        "emri_small_jpeg_ls_lossless.dcm",
        "liver.dcm",
    ),
    *("image_dfl.dcm", "examples_palette.dcm", "examples_overlay.dcm", "rtdose.dcm", "693_J2KI.dcm", "ExplVR_BigEnd.dcm"),
)


def url_of(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about UIDs that are none
        found = pydicom.dcmread(io.BytesIO(data_of(name)), stop_before_pixels=True)
        values = [found[uid].value for uid in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
    study, series, instance = (quote(value if isinstance(value, str) else "\\".join(value), safe="") for value in values)
    return f"/studies/{study}/series/{series}/instances/{instance}"


def parts_of(response):
    kind = response.headers["content-type"]
    boundary = kind.split("boundary=")[1].split(";")[0].strip('"')
    pieces = response.content.split(f"--{boundary}".encode())
    assert pieces[-1].startswith(b"--")
    for piece in pieces[1:-1]:
        head, _, body = piece.partition(b"\r\n\r\n")
        lines = dict(line.split(": ", 1) for line in head.decode().strip().split("\r\n"))
        yield lines["Content-Type"], body.removesuffix(b"\r\n")


def decoded(body, syntax, like):
    """Pixels of one frame, decoded by pydicom from what the server sent."""
    shell = pydicom.Dataset()
    shell.file_meta = pydicom.dataset.FileMetaDataset()
    shell.file_meta.TransferSyntaxUID = syntax
    shell.SOPClassUID = like.SOPClassUID
    for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PhotometricInterpretation"):
        setattr(shell, name, like[name].value)
    if "PlanarConfiguration" in like:
        shell.PlanarConfiguration = like.PlanarConfiguration
    shell.PixelData = body + b"\0" * (len(body) % 2) if syntax == EXPLICIT else encapsulate([body])
    shell["PixelData"].VR = "OW" if like.BitsAllocated > 8 else "OB"
    shell["PixelData"].is_undefined_length = syntax != EXPLICIT
    shell.set_original_encoding(False, True)
    return pixel_array(shell, raw=True)


@pytest.mark.parametrize("name", [*LOOSE, *IN_ZIP, *IN_TAR])
def test_an_instance_is_given_with_its_own_bytes(server, name):
    response = server.http.get(url_of(name), headers={"accept": STORED})
    assert response.status_code == 200
    ((kind, body),) = parts_of(response)
    assert body == data_of(name)
    assert kind.startswith("application/dicom; transfer-syntax=")


@pytest.mark.parametrize("syntax", ["*", EXPLICIT])
@pytest.mark.parametrize("name", IMAGES)
def test_every_frame_has_the_pixels_that_pydicom_reads(server, name, syntax):
    dataset = pydicom.dcmread(io.BytesIO(data_of(name)))
    expected = pixel_array(dataset, raw=True)
    count = int(dataset.get("NumberOfFrames") or 1)
    numbers = ",".join(str(number + 1) for number in range(count))
    response = server.http.get(f"{url_of(name)}/frames/{numbers}", headers={"accept": FRAMES.replace("*", syntax)})
    assert response.status_code == 200
    found = [decoded(body, kind.split("transfer-syntax=")[1], dataset) for kind, body in parts_of(response)]
    assert np.array_equal(np.stack(found) if count > 1 else found[0], expected)


def test_what_a_browser_cannot_decode_is_decoded_for_it(server):
    for name in ("MR_small_bigendian.dcm", "image_dfl.dcm"):
        response = server.http.get(f"{url_of(name)}/frames/1", headers={"accept": FRAMES})
        assert [kind for kind, _ in parts_of(response)] == [f"application/octet-stream; transfer-syntax={EXPLICIT}"]


def test_a_compressed_frame_is_given_by_its_media_type(server):
    response = server.http.get(f"{url_of('JPEG2000.dcm')}/frames/1", headers={"accept": 'multipart/related; type="image/jp2"'})
    ((kind, body),) = parts_of(response)
    assert kind == "image/jp2; transfer-syntax=1.2.840.10008.1.2.4.91"
    assert body.startswith(b"\xff\x4f\xff\x51")


@pytest.mark.parametrize("name", ["JPEG2000.dcm", "MR_small_bigendian.dcm", "image_dfl.dcm", "SC_rgb_rle_2frame.dcm", "rtplan.dcm"])
def test_without_a_wanted_transfer_syntax_an_instance_is_explicit_little_endian(server, name):
    response = server.http.get(url_of(name), headers={"accept": 'multipart/related; type="application/dicom"'})
    ((kind, body),) = parts_of(response)
    assert kind == f"application/dicom; transfer-syntax={EXPLICIT}"
    found, source = pydicom.dcmread(io.BytesIO(body)), pydicom.dcmread(io.BytesIO(data_of(name)))
    assert found.file_meta.TransferSyntaxUID == EXPLICIT
    if "PixelData" in source:
        assert np.array_equal(found.pixel_array, source.pixel_array)
    skipped = {0x7FE00010, 0x00280006}
    assert [item for item in found if item.tag not in skipped] == [item for item in source if item.tag not in skipped]


def test_a_series_and_a_study_come_as_all_their_instances(server):
    study = url_of("CT_small.dcm").split("/series")[0]
    for address in (study, url_of("CT_small.dcm").split("/instances")[0]):
        bodies = [body for _, body in parts_of(server.http.get(address, headers={"accept": STORED}))]
        assert data_of("CT_small.dcm") in bodies


def test_metadata_are_those_of_pydicom_with_links_that_lead_to_the_bytes(server):
    for name in ("CT_small.dcm", "liver.dcm", "rtplan.dcm"):
        (found,) = server.http.get(f"{url_of(name)}/metadata").json()
        source = pydicom.dcmread(io.BytesIO(data_of(name)))
        assert found.keys() == {f"{item.tag:08X}" for item in source}
        if "PixelData" in source:
            link = found["7FE00010"]["BulkDataURI"]
            assert link == f"{server.dicomweb}{url_of(name)}/bulkdata/7FE00010"
            assert server.http.get(link).content == source.PixelData


def test_metadata_of_a_series_are_sent_once_and_then_confirmed(server):
    address = url_of("rtdose.dcm").split("/instances")[0] + "/metadata"
    first = server.http.get(address, headers={"accept-encoding": "gzip"})
    assert first.headers["content-encoding"] == "gzip"
    for refusing in ("identity", "gzip;q=0, identity"):
        plain = server.http.get(address, headers={"accept-encoding": refusing})
        assert "content-encoding" not in plain.headers
        assert first.json() == plain.json()
    again = server.http.get(address, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_several_lines_of_what_is_accepted_are_one_list(server):
    lines = [("accept", "text/html"), ("accept", "application/dicom+json")]
    assert server.http.get(f"{url_of('CT_small.dcm')}/metadata", headers=lines).status_code == 200


@pytest.mark.parametrize("frames", ["0", "2", "1,2", "x", "-1", "1,,2", "99999999999", "1;2"])
def test_frames_that_are_not_there_are_refused(server, frames):
    assert server.http.get(f"{url_of('CT_small.dcm')}/frames/{frames}").status_code in {400, 404}


def test_an_object_without_pixels_has_no_frames(server):
    assert server.http.get(f"{url_of('rtplan.dcm')}/frames/1").status_code == 404


@pytest.mark.parametrize("accept", ["text/html", "image/png", 'multipart/related; type="application/dicom+xml"'])
def test_a_form_that_is_not_available_is_refused(server, accept):
    for tail in ("", "/metadata", "/frames/1"):
        assert server.http.get(url_of("CT_small.dcm") + tail, headers={"accept": accept}).status_code == 406


@pytest.mark.parametrize(
    "address", ["/studies/1.2.3", "/studies/1.2.3/series/1.2.4", "/studies/1.2.3/series/1.2.4/instances/1.2.5", "/studies/1.2.3/metadata"]
)
def test_what_is_not_in_the_catalog_is_not_found(server, address):
    assert server.http.get(address).status_code == 404
