"""Files for the benchmarks: series with rich headers and tiny pixels, and full images in every transfer syntax. Made here; nothing is fetched."""

import io
import random
import zipfile
from pathlib import Path

import pydicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from benchmarks.thumbnails import write_files

SERIES = 100
_SEED = 20261121
# Of the length that replacements have, so that bytes can be exchanged without writing the file anew.
_MARKS = {"uid": "9.8.7." + "1" * 38, "number": "777777", "position": "-777.777", "time": "111213.141516", "slice": "-555.555"}


def write_headers(folder: Path, count: int) -> list[Path]:
    """Write series of `SERIES` files with rich headers; all files of a series differ in UID, number, position and times.

    Parameters
    ----------
    folder : Path
        Made when missing; files that are there already are kept.
    count : int

    Returns
    -------
    list of Path
        In the order of the series.
    """
    paths = []
    chance = random.Random(_SEED)
    for first in range(0, count, SERIES):
        number = first // SERIES
        place = folder / f"series{number:05d}"
        place.mkdir(parents=True, exist_ok=True)
        template = _template(number)
        for index in range(min(SERIES, count - first)):
            path = place / (f"{index:04d}.dcm" if number % 2 else f"IM{index:04d}")
            paths.append(path)
            if path.exists():
                continue
            values = {
                "uid": f"9.8.7.{chance.randrange(10**38):038d}",
                "number": f"{index + 1:06d}",
                "position": f"{index * 1.25 - 300:+08.3f}",
                "slice": f"{index * 1.25 - 300:+08.3f}",
                "time": f"{10 + index // 60:02d}{index % 60:02d}{chance.randrange(60):02d}.{chance.randrange(10**6):06d}",
            }
            data = template
            for name, mark in _MARKS.items():
                data = data.replace(mark.encode(), values[name].encode())
            path.write_bytes(data)
    return paths


def _template(number: int) -> bytes:
    """One file of a series, with marks where its files differ. Four families: CT and MR, with and without large private blocks."""
    family = number % 4
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm" if family in {0, 1} else "MR_small.dcm")))
    chance = random.Random(number)
    dataset.Rows = dataset.Columns = 16
    dataset.PixelData = bytes(512)
    dataset.PatientID, dataset.PatientName = f"P{number // 3:06d}", f"Family{number // 3}^Given"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = (
        generate_uid(entropy_srcs=[f"study{number // 3}"]),
        generate_uid(entropy_srcs=[f"s{number}"]),
    )
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = _MARKS["uid"]
    dataset.InstanceNumber, dataset.SliceLocation = _MARKS["number"], _MARKS["slice"]
    dataset.ImagePositionPatient = ["-125.5", "-125.5", _MARKS["position"]]
    dataset.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    dataset.ContentTime = dataset.AcquisitionTime = _MARKS["time"]
    dataset.SeriesNumber, dataset.StudyDate = number, f"2026{1 + number % 12:02d}{1 + number % 28:02d}"
    dataset.RequestAttributesSequence = [_item(RequestedProcedureID=f"RP{number}", ScheduledProcedureStepID=f"SP{number}")]
    dataset.ReferencedImageSequence = [_item(ReferencedSOPClassUID=dataset.SOPClassUID, ReferencedSOPInstanceUID=generate_uid()) for _ in range(3)]
    dataset.ProcedureCodeSequence = [_item(CodeValue="77477000", CodingSchemeDesignator="SCT", CodeMeaning="Computed tomography")]
    block = dataset.private_block(0x0019, "BENCHMARK HEADER 01", create=True)
    for element in range(0x10, 0x60):
        block.add_new(element, ("LO", "DS", "SH", "US")[element % 4], ("text of the maker", "1.5\\2.25", "short", 7)[element % 4])
    if family in {1, 3}:
        # As the large binary blocks that scanners write into every file.
        large = dataset.private_block(0x0029, "BENCHMARK CSA HEADER", create=True)
        large.add_new(0x10, "OB", chance.randbytes(9_000))
        large.add_new(0x20, "OB", chance.randbytes(30_000 if family == 3 else 3_000))
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def _item(**values: object) -> Dataset:
    item = Dataset()
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def write_images(folder: Path, count: int) -> list[Path]:
    """Write full 512x512 images, the same number in each transfer syntax."""
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(folder.glob("*.dcm"))
    if len(there) >= count:
        return there
    per_syntax = write_files(folder, count=max(1, round(count / 9)))
    return sorted(path for paths in per_syntax.values() for path in paths)


def write_zip(path: Path, files: list[Path]) -> Path:
    """Put files into one archive."""
    if not path.exists():
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for file in files:
                archive.write(file, f"{file.parent.name}/{file.name}")
    return path
