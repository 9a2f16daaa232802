"""Searches held against another program's: dicomweb-client's reader of folders, over copies of the headers of the same objects.

`check_searches` is run here over files that pydicom carries, and by `test_corpus` over the folder named by PIXELS_CORPUS. Each answer that differs
has to be explained by a rule of the standard which the other program does not follow; what is not is returned.
"""

import asyncio
import io
import re
import struct
import unicodedata
import warnings
from collections import Counter, defaultdict
from fnmatch import fnmatchcase

import httpx
import pydicom
from dicomweb_client import DICOMfileClient
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue

from pixels_assets.dicomweb.app import create_app
from pixels_assets.dicomweb.service import WebSettings
from pixels_assets.settings import Settings
from pixels_assets_tests.dicomweb.test_wado import STORED, parts_of

LEVELS = {
    "studies": ("StudyInstanceUID", ["PatientID", "PatientName", "PatientSex", "ReferringPhysicianName", "StudyID", "StudyDate", "PatientBirthDate"]),
    "series": ("SeriesInstanceUID", ["Modality", "SeriesNumber"]),
    "instances": ("SOPInstanceUID", ["SOPClassUID", "InstanceNumber", "Rows", "BitsAllocated"]),
}
"""Key of each level, and what the other program can search for there."""
KEYS = [key for key, _ in LEVELS.values()]
COMPARED = {
    "studies": ["PatientID", "PatientSex", "StudyDate", "StudyTime", "StudyID"],
    "series": ["Modality", "SeriesNumber"],
    "instances": ["SOPClassUID", "Rows"],
}
COUNTS = {"studies": ["NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"], "series": ["NumberOfSeriesRelatedInstances"], "instances": []}
PATTERNS = frozenset({"AE", "CS", "LO", "PN", "SH"})


def check_searches(lake, folder):
    """Ask both for everything, and for many values with and without wildcards; give what was compared, and what differs for no known reason."""
    app = create_app(Settings.from_environment(lake=lake), WebSettings())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about damaged values
        return asyncio.run(_check(app, folder))


async def _check(app, folder):
    counts, wrong = Counter(), []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost/dicom-web", timeout=None) as client:
        objects = await _objects(client, folder)
        other = DICOMfileClient(url=f"file://{folder}", update_db=True, in_memory=True)
        known = {_one(row, "SOPInstanceUID") for row in other.search_for_instances()}  # it passes over files with values that it does not expect
        counts["objects"] = len(known)
        for level, (key, keywords) in LEVELS.items():
            values, strangers = defaultdict(lambda: defaultdict(set)), set()
            for row, item in objects:
                for keyword in {*keywords, *COMPARED[level]}:
                    values[_one(row, key)][keyword].add(item.get(keyword, ""))
                if _one(row, "SOPInstanceUID") not in known:
                    strangers.add(_one(row, key))
            shared = set(values) - strangers
            ours, theirs = await _search(client, level, {}), _search_folder(other, level, {})
            wrong += [(level, uid) for uid in shared if uid not in ours or uid not in theirs]
            for uid in shared & set(ours) & set(theirs):
                wrong += _other_values(level, ours[uid], theirs[uid], values[uid])
                counts[level] += 1
            for keyword, text in _queries(keywords, values, shared):
                found, expected = set(await _search(client, level, {keyword: text})), set(_search_folder(other, level, {keyword: text}))
                counts["searches"] += 1
                counts["results"] += len(found & expected)
                for uid in (found ^ expected) & shared:
                    reason = _reason(keyword, text, values[uid][keyword], ours=uid in found)
                    counts[reason] += 1
                    if not reason:
                        wrong.append((level, keyword, text, uid, "only here" if uid in found else "only there"))
    return counts, wrong


async def _objects(client, folder):
    """Write the headers of all objects into a folder, without pixels, for which the other program would look; give what they hold."""
    rows = (await client.get("/instances", params={"limit": 20_000})).json()
    return [
        (row, _copied(await client.get(row["00081190"]["Value"][0], headers={"accept": STORED}), folder / f"{number:05}"))
        for number, row in enumerate(rows)
    ]


def _copied(answer, path):
    keywords = [*KEYS, *(name for _, names in LEVELS.values() for name in names), *(name for names in COMPARED.values() for name in names)]
    ((_, data),) = parts_of(answer)
    try:
        read = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True, specific_tags=[*keywords, "SpecificCharacterSet"])
    except (OSError, struct.error):  # a damaged file, which pydicom does not read and the other program would not
        return {}
    copy = Dataset()
    for element in read:
        copy[element.tag] = element
    copy.file_meta = FileMetaDataset()
    copy.file_meta.MediaStorageSOPClassUID, copy.file_meta.MediaStorageSOPInstanceUID = "1.2", "1.2.3"
    copy.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    if not any(isinstance(copy.get(key), MultiValue) for key in KEYS):  # which would stop the other program
        copy.save_as(path, implicit_vr=False, little_endian=True)
    return {element.keyword: "\\".join(map(str, _several(element.value))) for element in copy if not element.is_empty}


def _several(value):
    return value if isinstance(value, MultiValue) else [value]


def _one(row, keyword):
    return "\\".join(map(str, row.get(f"{pydicom.datadict.tag_for_keyword(keyword):08X}", {}).get("Value", [])))


async def _search(client, level, filters):
    answer = await client.get(f"/{level}", params=filters)
    assert answer.status_code in {200, 204}, (filters, answer.text)
    return {_one(row, LEVELS[level][0]): row for row in answer.json()} if answer.status_code == 200 else {}


def _search_folder(other, level, filters):
    return {_one(row, LEVELS[level][0]): row for row in getattr(other, f"search_for_{level}")(search_filters=filters)}


def _other_values(level, ours, theirs, values):
    """Values that differ, where the objects of a study or series agree on one."""
    names = [*(name for name in COMPARED[level] if len(values[name]) == 1), *COUNTS[level]]
    return [(level, name, _one(ours, name), _one(theirs, name)) for name in names if _one(ours, name) != _as_written_now(name, _one(theirs, name))]


def _as_written_now(name, text):
    """Dates and times of ACR-NEMA as DICOM writes them; what is no date has no value."""
    if name == "StudyDate":
        text = text.replace(".", "")
        return text if text.strip("0") else ""
    if name == "StudyTime" and text:
        text = text.replace(":", "")
        whole, dot, fraction = text.partition(".")
        return f"{whole:0<6}{dot}{fraction}".rstrip("0").rstrip(".") if fraction.strip("0") else f"{whole:0<6}"
    return text


def _queries(keywords, values, shared):
    for keyword in keywords:
        texts = sorted({text for uid in shared for text in values[uid][keyword] if re.fullmatch(r"[^\\\[\]%_*?=,]+", text)})
        vr = pydicom.datadict.dictionary_VR(keyword)
        texts = [text for text in texts if vr != "DA" or (re.fullmatch(r"[0-9]{8}", text) and text.strip("0"))]
        for text in texts[:: max(1, len(texts) // 10)]:
            yield keyword, text
            if vr in PATTERNS and len(text) > 2:
                yield from ((keyword, pattern) for pattern in (f"{text[:2]}*", f"*{text[1:3]}*", f"*{text[-2:]}", f"?{text[1:]}"))


def _reason(keyword, text, values, *, ours):
    """Why a result is one here or there only; '' for none."""
    if len(values) > 1:
        return "its objects disagree: the other program takes the last one that it reads, this server what most say"
    (value,) = values
    if keyword in {"PatientName", "ReferringPhysicianName"}:
        groups = {value, *value.split("=")}
        if ours and any(fnmatchcase(_folded(group), _folded(text)) for group in groups):
            return "names are compared without case and accents, each group by itself"
        if not ours and value.endswith("^") and not fnmatchcase(_folded(value), _folded(text)):
            return "delimiters at the end of a name do not count"
    elif not ours and not fnmatchcase(value, text) and fnmatchcase(value.lower(), text.lower()):
        return "the other program's wildcards ignore case"
    elif ours and value != value.strip() and fnmatchcase(value.strip(), text.strip()):
        return "spaces around a value do not count"
    return ""


def _folded(name):
    plain = unicodedata.normalize("NFKD", name.casefold())
    return "".join(char for char in plain if not unicodedata.combining(char)).rstrip("^ ")


def test_another_program_finds_the_same(place, tmp_path):
    counts, wrong = check_searches(place / "lake", tmp_path)
    assert not wrong
    assert counts["objects"] > 12
    assert counts["searches"] > 100
    assert counts["results"] > 200
