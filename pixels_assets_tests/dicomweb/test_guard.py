"""What hostile and unlucky clients meet: refused or answered properly, with nothing lost and no stack shown."""

import asyncio
import io
import logging
import os
import re
import socket

import httpx
import pydicom
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies

from pixels_assets.cli import main
from pixels_assets.dicomweb.app import create_app
from pixels_assets.dicomweb.service import WebSettings, is_loopback
from pixels_assets.errors import UsageError
from pixels_assets.settings import Settings
from pixels_assets_tests.dicomweb.conftest import OLD, Running, changed, data_of, ingest
from pixels_assets_tests.dicomweb.test_wado import FRAMES, STORED, parts_of, url_of

TOKEN = "a long token"


@pytest.fixture(scope="module")
def locked(place):
    with Running(place / "lake", token=TOKEN, origins=("https://viewer.example",)) as running:
        yield running


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {TOKEN}"}, {"cookie": "pixels_token=wrong"}, {"cookie": "a=b; c"}]
)
def test_without_the_token_nothing_is_served(locked, headers):
    for path in ("/studies", "/studies/1/series/2/instances/3/frames/1", "/../metrics", "/../openapi.json", "/../", "/nothing"):
        assert locked.http.get(path, headers=headers).status_code == 401


def test_with_the_token_in_a_header_or_cookie_everything_is(locked):
    assert locked.http.get("/studies", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert locked.http.get("/studies", headers={"cookie": f'pixels_token="{TOKEN}"'}).status_code == 200
    assert httpx.get(f"{locked.url}/health").json()["status"] == "ok"


def test_a_token_in_the_address_of_a_page_becomes_a_cookie(locked):
    response = httpx.get(f"{locked.url}/?token={TOKEN.replace(' ', '+')}&x=1")
    assert (response.status_code, response.headers["location"]) == (303, "/?x=1")
    assert "HttpOnly" in response.headers["set-cookie"]
    assert "SameSite=Strict" in response.headers["set-cookie"]
    with httpx.Client(base_url=locked.url, cookies=response.cookies) as browser:
        assert browser.get("/").status_code == 200
    assert httpx.get(f"{locked.url}//evil.example/?token={TOKEN.replace(' ', '+')}").headers.get("location", "/").startswith("/evil.example")


def test_other_origins_are_shut_out_unless_they_are_named(locked):
    bearer = {"authorization": f"Bearer {TOKEN}"}
    known = locked.http.get("/studies", headers=bearer | {"origin": "https://viewer.example"})
    assert known.headers["access-control-allow-origin"] == "https://viewer.example"
    other = locked.http.get("/studies", headers=bearer | {"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in other.headers
    for origin in ("https://evil.example", "http://["):
        assert locked.http.post("/studies", headers=bearer | {"origin": origin}).status_code == 403
    assert locked.http.options("/studies", headers={"origin": "https://viewer.example"}).status_code == 204


def test_an_address_that_others_reach_needs_a_token(place, capsys):
    with pytest.raises(UsageError, match="token"):
        create_app(Settings.from_environment(lake=place / "lake"), WebSettings(host="0.0.0.0"))
    assert main(["serve", "--lake", str(place / "lake"), "--host", "0.0.0.0"]) == 2
    assert "PIXELS_TOKEN" in capsys.readouterr().err
    assert main(["serve", "--lake", str(place / "lake"), "--port", "0"]) == 2
    assert main(["serve", "--lake", str(place / "nothing")]) == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", "--lake", str(place / "lake"), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "local"), [("127.0.0.1", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False)]
)
def test_loopback_addresses_are_known(host, local):
    assert is_loopback(host) is local


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8090", "127.0.0.1.evil.example", "", "user@evil.example", "[", "localhost:1]"])
def test_a_name_that_is_not_ours_leads_nowhere(server, host):
    assert server.http.get("/studies", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "path",
    [
        *("/studies/..%2F..%2Fetc%2Fpasswd/metadata", "/studies/%00/metadata", "/studies/1/series/%2e%2e/metadata", "/studies/1' or '1'='1/metadata"),
        *("/studies/%ff%fe/metadata", "/studies/%F0%9F%92%A9/metadata", "/studies/" + "1" * 4000 + "/metadata", "/studies/1%0d%0aX: y/metadata"),
        *(
            "/studies?PatientID=%27%3B%20drop%20table%20studies",
            "/studies?PatientID=%25",
            "/studies?00080018=%22%20or%201=1",
            "/studies?PatientName=%5B(a%2B)%2B%24*",
        ),
    ],
)
def test_games_with_paths_and_values_find_nothing(server, path):
    assert server.http.get(path).status_code in {204, 400, 404}


@pytest.mark.parametrize(
    "path",
    [
        "bulkdata/../../../../etc/passwd",
        "bulkdata/7FE00010/0",
        "bulkdata/00100010",
        "bulkdata/zz",
        "bulkdata/00081140/99/00081150",
        "bulkdata/-1",
        "bulkdata/" + "F" * 60,
    ],
)
def test_references_lead_to_elements_only(server, path):
    assert server.http.get(f"{url_of('CT_small.dcm')}/{path}").status_code == 404


def talk(server, data):
    with socket.create_connection(("127.0.0.1", server.port), 20) as line:
        line.sendall(data)
        line.settimeout(20)
        answer = b""
        while chunk := line.recv(65536):
            answer += chunk
        return answer


def test_a_body_that_still_comes_when_its_request_is_answered_is_no_head_of_the_next(server):
    body = b"x" * 300_000
    head = f"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/dicom\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), 20) as line:
        line.sendall(head.encode())
        assert line.recv(65536).startswith(b"HTTP/1.1 403")
        line.sendall(body)
        line.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert line.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_body_that_is_declared_too_large_is_refused_before_it_comes(server):
    head = (
        b"POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/related; boundary=a\r\nContent-Length: 10737418240\r\n\r\n"
    )
    assert b" 413 " in talk(server, head)


@pytest.fixture(scope="module")
def hurried(place):
    def never(folder):
        raise AssertionError

    with Running(place / "lake", never, idle_seconds=0.3, header_seconds=0.3, exports=place / "never") as running:
        yield running


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: b"],
)
def test_a_head_that_does_not_come_is_not_waited_for(hurried, begun):
    assert b" 408 " in talk(hurried, begun)


def drip(server, head, byte, first=b""):
    """Send a head and then a byte at a time until there is an answer; on a connection on which a first request was answered already."""
    with socket.create_connection(("127.0.0.1", server.port), 20) as line:
        if first:
            line.sendall(first)
            answer = b""
            while not answer.endswith(b"}"):
                answer += line.recv(65536)
        line.sendall(head)
        line.settimeout(0.05)
        while True:
            line.sendall(byte)
            try:
                return line.recv(65536)
            except TimeoutError:
                continue


def test_a_head_that_comes_a_byte_at_a_time_is_not_waited_for(hurried):
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    assert b" 408 " in drip(hurried, head + b"X: ", b"y")
    assert b" 408 " in drip(hurried, head + b"X: ", b"y", first=head + b"\r\n")


def test_a_head_without_end_is_refused(hurried):
    assert b" 431 " in talk(hurried, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 66_000)


def test_a_body_that_comes_a_byte_at_a_time_is_not_waited_for(hurried):
    head = b'POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/related; type="application/dicom"; boundary=a\r\n'
    assert b" 408 " in drip(hurried, head + b"Content-Length: 1000000\r\n\r\n", b"-")


def test_a_body_that_does_not_come_is_not_waited_for(hurried, place):
    head = b'POST /dicom-web/studies HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/related; type="application/dicom"; boundary=a\r\n'
    assert b" 408 " in talk(hurried, head + b"Content-Length: 1000\r\n\r\n--a\r\n")
    assert not list((place / "never.incoming").iterdir())


def test_a_thousand_frames_at_once_are_all_answered_and_leave_nothing_in_memory(server):
    address = url_of("emri_small_jpeg_ls_lossless.dcm")

    async def ask(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        requests = [f"GET /dicom-web{address}/frames/{frame + 1} HTTP/1.1\r\nHost: localhost\r\nAccept: {FRAMES}\r\n" for frame in range(10)]
        writer.write("".join(f"{request}{'Connection: close' if request is requests[-1] else 'X: y'}\r\n\r\n" for request in requests).encode())
        answer = await reader.read(-1)
        writer.close()
        return re.sub(rb"[0-9a-f]{32}|date: [^\r]*", b"", answer)

    async def ask_all():
        return await asyncio.gather(*(ask(number) for number in range(100)))

    answers = asyncio.run(ask_all())
    assert len(set(answers)) == 1
    assert answers[0].count(b"HTTP/1.1 200 OK") == 10
    assert "pixels_answers_bytes 0.0" in httpx.get(f"{server.url}/metrics").text


def test_a_source_file_that_was_replaced_or_removed_is_gone_and_the_rest_is_served(tmp_path):
    for folder in ("source", "home"):
        (tmp_path / folder).mkdir()
    names = ("CT_small.dcm", "JPEG2000.dcm", "rtplan.dcm")
    for name in names:
        (tmp_path / "source" / name).write_bytes(data_of(name))
        os.utime(tmp_path / "source" / name, (OLD, OLD))
    (tmp_path / "secret").write_bytes(data_of("rtplan.dcm"))
    os.utime(tmp_path / "secret", (OLD, OLD))
    ingest(tmp_path / "source", tmp_path / "lake", tmp_path / "home")
    with Running(tmp_path / "lake") as running:
        assert running.http.get(f"{url_of('CT_small.dcm')}/frames/1").status_code == 200
        (tmp_path / "source" / "CT_small.dcm").write_bytes(data_of("MR_small_bigendian.dcm"))
        (tmp_path / "source" / "JPEG2000.dcm").unlink()
        (tmp_path / "source" / "rtplan.dcm").unlink()
        (tmp_path / "source" / "rtplan.dcm").symlink_to(tmp_path / "secret")
        for name in names:
            assert running.http.get(url_of(name), headers={"accept": STORED}).status_code == 410
            assert running.http.get(f"{url_of(name)}/metadata").status_code == 200
        assert running.http.get(f"{url_of('CT_small.dcm')}/frames/1").status_code == 410


def test_an_ingest_shows_without_a_restart_and_uids_that_look_like_paths_lead_to_their_object(tmp_path):
    for folder in ("source", "home"):
        (tmp_path / folder).mkdir()

    def put(name, data):
        (tmp_path / "source" / name).write_bytes(data)
        os.utime(tmp_path / "source" / name, (OLD, OLD))
        ingest(tmp_path / "source", tmp_path / "lake", tmp_path / "home")

    odd = changed("CT_small.dcm", StudyInstanceUID="/etc/passwd", SeriesInstanceUID="..\\..\\x", SOPInstanceUID="../../tmp/x%2F y")
    put("CT_small.dcm", data_of("CT_small.dcm"))
    with Running(tmp_path / "lake") as running:
        assert len(running.http.get("/studies").json()) == 1
        put("odd.dcm", odd)
        assert len(running.http.get("/studies").json()) == 2
        (row,) = running.http.get("/instances?StudyInstanceUID=/etc/passwd").json()
        address = row["00081190"]["Value"][0]
        assert address.endswith("/studies/%2Fetc%2Fpasswd/series/..%5C..%5Cx/instances/..%2F..%2Ftmp%2Fx%252F%20y")
        ((_, body),) = parts_of(running.http.get(address, headers={"accept": STORED}))
        assert body == odd
        (metadata,) = running.http.get(f"{address}/metadata").json()
        assert running.http.get(metadata["7FE00010"]["BulkDataURI"]).content == pydicom.dcmread(io.BytesIO(odd)).PixelData
        assert running.http.get(f"{address}/rendered").headers["content-type"] == "image/jpeg"
        assert running.http.get("/studies/%2Fetc%2Fpasswd/series").json()[0]["0020000E"]["Value"] == ["..", "..", "x"]


def test_a_head_is_what_get_has_without_the_body(server):
    image = url_of("CT_small.dcm")
    for path in ("/studies", f"{image}/metadata", f"{image}/frames/1", image, "/nothing", "/../health"):
        asked, found = server.http.head(path), server.http.get(path)
        assert (asked.status_code, asked.content) == (found.status_code, b"")
        for name in ("content-type", "content-length", "etag", "x-total-count"):
            assert asked.headers.get(name) == found.headers.get(name)


def test_the_log_holds_no_values(server, caplog):
    with caplog.at_level(logging.INFO, logger="pixels_assets"):
        server.http.get("/studies?PatientName=Secret*")
        server.http.get(f"{url_of('CT_small.dcm')}/metadata")
    assert "/studies" in caplog.text
    assert "Secret" not in caplog.text
    assert "1.3.6.1" not in caplog.text


def test_figures_are_there_for_prometheus(server):
    server.http.get("/studies")
    text = httpx.get(f"{server.url}/metrics").text
    assert "pixels_requests_total{" in text
    assert "pixels_studies " in text


def test_no_request_of_the_described_kind_makes_the_server_fail(server):
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    checked = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.method == "post" and "reject" not in operation.path:
            continue  # multipart/related is no form that the tool can make up: the next test does

        @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def check(case):
            response = case.call(base_url=server.url)
            assert response.status_code < 500, case.as_curl_command()

        check()
        checked += 1
    assert checked > 25


@strategies.composite
def stored(draw):
    """Content type and body of a request that stores: whole, cut, or of another form than it says; no object in it has an identity to be kept by."""
    boundary = draw(strategies.text("abcXYZ019'()+_,-./:=? ", min_size=1, max_size=70))
    kind = draw(strategies.sampled_from(["application/dicom", "application/dicom+json", "text/plain", "", "*/*"]))
    known = strategies.sampled_from([data_of("rtplan.dcm")[:300], b"\0" * 128 + b"DICM", b"", b"--", b"\r\n"])
    pieces = draw(strategies.lists(known | strategies.binary(), max_size=3))
    parts = [f"--{boundary}\r\nContent-Type: {kind}\r\n\r\n".encode() + piece + b"\r\n" for piece in pieces]
    whole = b"\r\n" + b"".join(parts) + f"--{boundary}--\r\n".encode()
    cut = draw(strategies.integers(0, len(whole)) | strategies.just(len(whole)))
    related = f'multipart/related; type="application/dicom"; boundary="{boundary}"'
    return draw(strategies.sampled_from([related, related, "application/dicom", "multipart/related", kind])), whole[:cut]


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(sent=stored(), study=strategies.sampled_from(["", "/1.2.3", "/..%2F..", "/%00"]))
def test_no_body_that_is_stored_makes_the_server_fail(hurried, sent, study):
    kind, body = sent
    response = hurried.http.post(f"/studies{study}", content=body, headers={"content-type": kind})
    assert response.status_code in {400, 408, 409, 413, 415}
