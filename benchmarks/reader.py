"""How many headers a core reads in a second: the fast reader on whole series and on shuffled files, beside pydicom.

Generates its files in memory (series of pydicom's CT and MR headers with private elements and sequences, explicit and implicit VR), measures process
CPU time in alternating rounds that each begin with nothing learnt, and prints medians. Run as ``python -m benchmarks.reader``.
"""

import argparse
import io
import json
import random
import time
import warnings
from collections.abc import Callable, Sequence
from statistics import median

import pydicom
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import UID, generate_uid

from pixels_assets.dicom import fast
from pixels_assets.dicom.reader import Header, read_header

TEMPLATES = ("CT_small.dcm", "MR_small.dcm", "MR_small_implicit.dcm")
LIMIT = 64 << 20


def make_series(template: str, number: int, images: int) -> list[bytes]:
    """Write one series: its images differ in UIDs, numbers, positions, times and grey values, as real ones do."""
    path = get_testdata_file(template)
    assert isinstance(path, str)
    dataset, rng = pydicom.dcmread(path), random.Random(number)
    study, series = (generate_uid(entropy_srcs=[template, str(number), level]) for level in ("study", "series"))
    block = dataset.private_block(0x0099, "BENCHMARK", create=True)
    for element in range(100):
        block.add_new(element, "LO" if element % 3 else "DS", f"parameter {element} of the scanner" if element % 3 else str(element * 1.5))
    code, references = Dataset(), []
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "CTHEAD", "99X", "CT of the head"
    for reference in range(6):
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, generate_uid(entropy_srcs=[series, str(reference)])
        references.append(item)
    dataset.ProcedureCodeSequence, dataset.ReferencedImageSequence = [code], references
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.Rows = dataset.Columns = 16
    dataset.PixelData = bytes(512)
    sample = "SS" if dataset.PixelRepresentation else "US"
    files = []
    for image in range(images):
        position = round(-50 + 1.25 * image, 3)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"{series[:50]}.{image + 1}")
        dataset.InstanceNumber, dataset.SliceLocation = image + 1, position
        dataset.ImagePositionPatient = [-125.5, -130.2, position]
        dataset.AcquisitionTime = dataset.ContentTime = f"1012{image % 60:02d}.{image:06d}"
        dataset.add_new(0x00280106, sample, rng.randrange(100))
        dataset.add_new(0x00280107, sample, rng.randrange(1000, 3000))
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files


def read_fast(files: Sequence[bytes]) -> None:
    """Read headers as a worker does that has just started."""
    fast.forget()
    for data in files:
        found = read_header(io.BytesIO(data), len(data), max_deflated_bytes=LIMIT)
        assert isinstance(found, Header)


def read_with_pydicom(files: Sequence[bytes]) -> None:
    """Read headers the documented way: JSON only, without typed values."""
    for data in files:
        json.dumps(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True).to_json_dict())


def seconds(read: Callable[[Sequence[bytes]], None], files: Sequence[bytes]) -> float:
    """Process CPU time for one file."""
    start = time.process_time()
    read(files)
    return (time.process_time() - start) / len(files)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", type=int, default=10, help="series of each template (default: 10)")
    parser.add_argument("--images", type=int, default=100, help="images of a series (default: 100)")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    whole = [data for number in range(options.series) for template in TEMPLATES for data in make_series(template, number, options.images)]
    shuffled = random.Random(1).sample(whole, len(whole))
    few = shuffled[: max(1, len(whole) // 20)]
    ways = {"series": (read_fast, whole), "shuffled": (read_fast, shuffled), "pydicom": (read_with_pydicom, few)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (read, files) in ways.items():
            taken[name].append(seconds(read, files))
    print(f"{len(whole)} files, mean {sum(map(len, whole)) / len(whole) / 1024:.1f} KiB")
    for name, times in taken.items():
        ratio = median(taken["pydicom"]) / median(times)
        print(f"{name:9} {1 / median(times):8.0f} files/s per core, {1e6 * median(times):8.1f} us per file, {ratio:6.1f} times pydicom")


if __name__ == "__main__":
    main()
