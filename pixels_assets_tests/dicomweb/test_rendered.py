"""Pictures of objects."""

import io

import numpy as np
import pydicom
import pytest
from PIL import Image

from pixels_assets_tests.dicomweb.test_wado import EXPLICIT, parts_of, url_of

CT = url_of("CT_small.dcm")


def picture(response):
    assert response.status_code == 200, response.text
    return Image.open(io.BytesIO(response.content))


def test_an_instance_is_shown_as_jpeg_or_png(server):
    assert picture(server.http.get(f"{CT}/rendered")).format == "JPEG"
    assert picture(server.http.get(f"{CT}/rendered", headers={"accept": "image/png"})).format == "PNG"
    assert picture(server.http.get(f"{CT}/rendered?accept=image/png", headers={"accept": "text/html"})).format == "PNG"
    assert picture(server.http.get(f"{CT}/rendered", headers={"accept": "text/html,image/avif;q=0.9,*/*;q=0.8"})).size == (128, 128)


def test_window_viewport_and_quality_change_the_picture(server):
    plain = server.http.get(f"{CT}/rendered?quality=95")
    assert len(server.http.get(f"{CT}/rendered?quality=10").content) < len(plain.content)
    assert picture(server.http.get(f"{CT}/rendered?viewport=64,32")).size == (32, 32)
    assert picture(server.http.get(f"{CT}/rendered?viewport=64,64,0,0,32,64")).size == (32, 64)
    whole = np.asarray(picture(server.http.get(f"{CT}/rendered?accept=image/png")))
    for region, part in {",,,,": whole, ",100,120": whole[120:, 100:], ",,,64": whole[:, :64]}.items():
        shown = picture(server.http.get(f"{CT}/rendered?accept=image/png&viewport={part.shape[1]},{part.shape[0]}{region}"))
        assert np.array_equal(np.asarray(shown), part)
    dark = np.asarray(picture(server.http.get(f"{CT}/rendered?accept=image/png&window=30000,100")))
    light = np.asarray(picture(server.http.get(f"{CT}/rendered?accept=image/png&window=-30000,100,linear-exact")))
    assert (dark.max(), light.min()) == (0, 255)


@pytest.mark.parametrize(
    "query",
    [
        "quality=0",
        "quality=x",
        "quality=",
        "annotation=",
        "annotation=patient,foot",
        "window=1",
        "window=a,b",
        "window=1,0",
        "window=1,2,cubic",
        "viewport=0,1",
        "viewport=1",
        "viewport=99999,99999",
        "viewport=9,9,500,500,9,9",
    ],
)
def test_parameters_that_mean_nothing_are_refused(server, query):
    assert server.http.get(f"{CT}/rendered?{query}").status_code == 400


def test_frames_are_shown_one_or_many(server):
    address = url_of("emri_small_jpeg_ls_lossless.dcm")
    assert picture(server.http.get(f"{address}/frames/3/rendered")).format == "JPEG"
    many = list(parts_of(server.http.get(f"{address}/frames/1,3/rendered")))
    assert [kind for kind, _ in many] == ["image/jpeg"] * 2
    for tail in ("99/rendered", "1,99/rendered", "99/thumbnail"):
        assert server.http.get(f"{address}/frames/{tail}").status_code == 404
    assert server.http.get(f"{address}/frames/x/thumbnail").status_code == 400


def test_annotations_are_said_to_be_left_away(server):
    for address in (CT, CT.split("/instances")[0], f"{CT}/frames/1"):
        plain, asked = (server.http.get(f"{address}/rendered{query}") for query in ("", "?annotation=patient,technique"))
        assert "warning" not in plain.headers
        assert asked.status_code == 200
        assert "not supported: patient, technique" in asked.headers["warning"]


def test_series_and_studies_are_shown_as_pictures_of_their_objects(server):
    for address in (CT.split("/instances")[0], CT.split("/series")[0]):
        kinds = [kind for kind, _ in parts_of(server.http.get(f"{address}/rendered"))]
        assert kinds == ["image/jpeg"]


def test_what_has_no_pixels_is_not_shown(server):
    for tail in ("/rendered", "/thumbnail"):
        assert server.http.get(url_of("rtplan.dcm") + tail).status_code == 404


def test_thumbnails_are_those_of_the_catalog(server):
    found = [server.http.get(f"{address}/thumbnail?accept=image%2Fjpeg") for address in (CT, CT.split("/instances")[0], CT.split("/series")[0])]
    assert len({response.content for response in found}) == 1
    assert picture(found[0]).format == "JPEG"
    assert max(picture(server.http.get(f"{CT}/thumbnail?viewport=32%2C32")).size) == 32


def test_old_clients_are_served(server):
    _, _, study, _, series, _, instance = CT.split("/")
    query = {"requestType": "WADO", "studyUID": study, "seriesUID": series, "objectUID": instance}
    base = server.url
    assert picture(server.http.get(f"{base}/wado", params=query)).format == "JPEG"
    assert picture(
        server.http.get(f"{base}/wado", params=query | {"contentType": "image/png", "rows": "64", "windowCenter": "10", "windowWidth": "5"})
    ).size == (64, 64)
    whole = server.http.get(f"{base}/wado", params=query | {"contentType": "application/dicom"})
    assert whole.content[128:132] == b"DICM"
    assert server.http.get(f"{base}/wado", params=query | {"contentType": "application/dicom", "anonymize": "yes"}).status_code == 406
    assert server.http.get(f"{base}/wado", params=query | {"frameNumber": "2"}).status_code == 404
    assert server.http.get(f"{base}/wado", params=query | {"requestType": "X"}).status_code == 400
    assert server.http.get(f"{base}/wado", params=query | {"contentType": "text/html"}).status_code == 406
    _, _, study, _, series, _, instance = url_of("JPEG2000.dcm").split("/")
    coded = {"requestType": "WADO", "studyUID": study, "seriesUID": series, "objectUID": instance, "contentType": "application/dicom"}
    for more, syntax in (({}, EXPLICIT), ({"transferSyntax": "1.2.840.10008.1.2.4.91"}, "1.2.840.10008.1.2.4.91")):
        found = pydicom.dcmread(io.BytesIO(server.http.get(f"{base}/wado", params=coded | more).content))
        assert found.file_meta.TransferSyntaxUID == syntax
    missing = server.http.get(f"{base}/wado", params=query | {"frameNumber": "x"})
    assert (missing.status_code, missing.json()) == (400, {"detail": "missing or malformed: frameNumber"})
