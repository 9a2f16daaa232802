"""Every object of a lake, fetched as clients fetch it, against pydicom: bytes, frames as stored, frames decoded.

`check_everything` is run here over files that pydicom carries, and by `test_corpus` over the folder named by PIXELS_CORPUS.
"""

import asyncio
import hashlib
import io
import itertools
import struct
import warnings
from collections import Counter
from urllib.parse import quote

import httpx
import numpy as np
import polars as pl
import pydicom
from pydicom.encaps import generate_frames
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.pixels import pixel_array

from pixels_assets.dicom.pixels import PixelSource
from pixels_assets.dicom.reader import read_header
from pixels_assets.dicomweb.app import create_app
from pixels_assets.dicomweb.service import WebSettings
from pixels_assets.dicomweb.transcoding import to_explicit_little
from pixels_assets.settings import Settings
from pixels_assets_tests.dicomweb.conftest import IN_TAR, IN_ZIP, LOOSE, data_of
from pixels_assets_tests.dicomweb.test_wado import EXPLICIT, FRAMES, STORED, parts_of

ELEMENTS = {"FloatPixelData": "f4", "DoubleFloatPixelData": "f8"}
LOSSY_JPEG = {"1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"}


def check_everything(lake):
    """Fetch every object that the server finds; give what was compared, and what differs."""
    hashes = {}
    uids = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"]
    for study, series, uid, content_hash in pl.read_delta(str(lake / "instances")).select(*uids, "content_hash").iter_rows():
        if study and series:  # others belong to no study, and have no address in DICOMweb
            hashes.setdefault(uid, set()).add(content_hash)
    app = create_app(Settings.from_environment(lake=lake), WebSettings())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about damaged values
        return asyncio.run(_check(app, hashes))


async def _check(app, hashes):
    counts, wrong, left = Counter(), [], set(hashes)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost/dicom-web", timeout=None) as client:
        for offset in itertools.count(0, 500):
            found = await client.get("/instances", params={"limit": 500, "offset": offset})
            if found.status_code == 204:
                break
            for row in found.json():
                study, series, uid = ("\\".join(row[tag]["Value"]) for tag in ("0020000D", "0020000E", "00080018"))
                address = "/".join(f"/{kind}/{quote(name, safe='')}" for kind, name in (("studies", study), ("series", series), ("instances", uid)))
                address = address.replace("//", "/")
                left.discard(uid)
                counts["instances"] += 1
                try:
                    assert row["00081190"]["Value"] == [f"http://localhost/dicom-web{address}"]
                    data = await _instance(client, address)
                    assert hashlib.sha256(data).hexdigest() in hashes[uid], "other bytes"
                    await _frames(client, address, data, counts)
                except AssertionError as error:
                    wrong.append((address, str(error)))
    return counts, wrong + sorted(left)


async def _instance(client, address):
    answer = await client.get(address, headers={"accept": STORED})
    assert answer.status_code == 200, answer.text
    ((_, data),) = parts_of(answer)
    return data


async def _frames(client, address, data, counts):
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        element = next((name for name in ("PixelData", *ELEMENTS) if dataset.get(name)), None)
        numbers = _numbers(dataset)
    except (OSError, ValueError, struct.error):  # cut within an item; a number that is none
        counts["objects that pydicom does not read"] += 1
        return
    if element is None:
        counts["objects without pixels"] += 1
        return
    syntax = dataset.file_meta.get("TransferSyntaxUID", "")
    try:
        expected = pixel_array(dataset, raw=True)
    except Exception:  # pydicom has no decoder for it, or finds it damaged, in ways without number
        counts["objects that pydicom does not decode"] += 1
        expected = None
    else:
        expected = expected if len(numbers) > 1 else expected[None]
    stored = await client.get(f"{address}/frames/{','.join(numbers)}", headers={"accept": FRAMES.replace("*", syntax)}) if syntax else None
    if stored is not None and stored.status_code == 200 and dataset[element].is_undefined_length:
        bodies = [body for _, body in parts_of(stored)]
        assert bodies == list(generate_frames(dataset.PixelData, number_of_frames=len(numbers))), "other codestreams"
        counts["frames as they are stored"] += len(bodies)
    if syntax in {EXPLICIT, "1.2.840.10008.1.2"} and not dataset[element].is_undefined_length:
        answer = await client.get(f"{address}/bulkdata/{dataset[element].tag:08X}")
        assert answer.content == dataset[element].value, "another value"
        counts["values of native pixels"] += 1
    if expected is None:
        return
    answer = await client.get(f"{address}/frames/{','.join(numbers)}", headers={"accept": FRAMES.replace("*", EXPLICIT)})
    assert answer.status_code == 200, answer.text
    bodies = [body for _, body in parts_of(answer)]
    assert len(bodies) == len(numbers)
    if syntax in LOSSY_JPEG and expected.ndim == 4:
        expected = _as_rgb(dataset, expected)
    for body, frame in zip(bodies, expected, strict=True):
        assert np.array_equal(_read(body, dataset, frame), frame, equal_nan=frame.dtype.kind == "f"), "other pixels"
    counts["frames that pydicom decodes"] += len(bodies)
    if dataset[element].is_undefined_length:
        answer = await client.get(address, headers={"accept": STORED.replace("*", EXPLICIT)})
        assert answer.status_code == 200, answer.text
        ((_, whole),) = parts_of(answer)
        found = pixel_array(pydicom.dcmread(io.BytesIO(whole)), raw=True)
        assert np.array_equal(found if len(numbers) > 1 else found[None], expected), "other pixels in the whole object"
        counts["objects that are decoded"] += 1


def _numbers(dataset):
    count = int(dataset.get("NumberOfFrames") or 1)
    return [str(number + 1) for number in range(count if count < 10_000 else 1)]  # a damaged header may claim thousands of millions


def _as_rgb(dataset, raw):
    """Colour of JPEG is given as RGB, as pydicom gives it unless it is asked for raw values."""
    if dataset.PhotometricInterpretation == "RGB" and _is_subsampled(dataset.PixelData):
        # The data set says that the JPEG holds RGB, which nobody subsamples: its pixels are YCbCr. pydicom believes the data set.
        return pydicom.pixels.convert_color_space(raw, "YBR_FULL", "RGB")
    found = pixel_array(dataset)
    return found.reshape(raw.shape)


def _is_subsampled(data):
    start = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc1") if marker in data)
    return data[start + 11] != 0x11


def _read(body, dataset, like):
    """Pixels of a frame in Explicit VR Little Endian, by what the data set says of them alone."""
    if dataset.get("BitsAllocated") == 1:
        return np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")[: like.size].reshape(like.shape)
    kind = next((ELEMENTS[name] for name in ELEMENTS if name in dataset), None)
    kind = kind or f"{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}"
    values = np.frombuffer(body, f"<{kind}")
    if kind[0] != "f" and dataset.BitsStored < dataset.BitsAllocated:  # bits that are not stored may hold anything; the sign is the last stored one
        unused = dataset.BitsAllocated - dataset.BitsStored
        values = values << unused >> unused
    if dataset.get("PhotometricInterpretation") == "YBR_FULL_422" and values.size * 3 == like.size * 2:
        # Two pixels are Y1 Y2 Cb Cr (DICOM PS3.3 C.7.6.3.1.2), which pydicom gives as three samples each.
        first, second, blue, red = values.reshape(-1, 4).T
        return np.stack([first, blue, red, second, blue, red], 1).reshape(like.shape)
    if like.ndim == 3 and dataset.PlanarConfiguration:
        return values.reshape(like.shape[2], *like.shape[:2]).transpose(1, 2, 0)
    return values.reshape(like.shape)


def test_all_that_the_server_finds_is_what_pydicom_reads(place):
    counts, wrong = check_everything(place / "lake")
    assert not wrong
    assert counts["instances"] == len(LOOSE) + len(IN_ZIP) + len(IN_TAR)
    assert counts["frames that pydicom decodes"] > 20
    assert counts["frames as they are stored"] > 10
    assert counts["values of native pixels"] > 4


def test_elements_without_a_vr_get_one_where_the_transfer_syntax_says_explicit():
    expected = pydicom.dcmread(io.BytesIO(data_of("SC_rgb_jpeg_dcmtk.dcm")))
    body, stream = DicomBytesIO(), io.BytesIO()
    body.is_implicit_VR, body.is_little_endian = True, True
    write_dataset(body, expected)
    stream.write(bytes(128) + b"DICM")
    write_file_meta_info(stream, expected.file_meta)
    stream.write(body.getvalue())
    source = PixelSource.of(read_header(stream, stream.tell(), max_deflated_bytes=1 << 24))
    found = pydicom.dcmread(io.BytesIO(to_explicit_little(io.BytesIO(stream.getvalue()), source, max_bytes=1 << 24)))
    assert found.ImageType == expected.ImageType
    assert np.array_equal(pixel_array(found), pixel_array(expected))
