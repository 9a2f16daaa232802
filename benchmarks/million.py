"""A lake of synthetic rows, as large as wanted, and how long its questions take.

Holds the generator, which writes rows of `object_catalog` and nothing else (there are no files behind them), and the questions that a study list, a
search by attribute and a cohort ask, of the hierarchy that follows from them and of the catalog itself. Each question runs in a process of its own,
so that its memory is its own. `--more N` adds instances and brings the hierarchy up to date.

    python benchmarks/million.py [--lake DIR] [--instances 1000000] [--repeat 3] [--more 5000]
"""

import argparse
import datetime as dt
import hashlib
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from pixels_assets.intake.objects import row_id
from pixels_assets.lake.commit import commit, create_tables
from pixels_assets.lake.parts import part_from_table
from pixels_assets.lake.query import dataset
from pixels_assets.lake.rollups import update_rollups
from pixels_assets.lake.schema import OBJECT_CATALOG

ROOT = "1.2.826.0.1.3680043.10.1561"
INSTANCES_OF_SERIES = 25
SERIES_OF_STUDY = 4
STUDIES_OF_PATIENT = 2
FIRST_DAY = dt.date(2018, 1, 1)
SCANNERS = {
    "CT": ("SIEMENS", ["SOMATOM Force", "SOMATOM Definition AS+", "Sensation 64"], "1.2.840.10008.5.1.4.1.1.2"),
    "MR": ("GE MEDICAL SYSTEMS", ["SIGNA Artist", "DISCOVERY MR750", "Optima MR450w"], "1.2.840.10008.5.1.4.1.1.4"),
    "PT": ("Philips", ["Vereos PET/CT", "GEMINI TF TOF 16"], "1.2.840.10008.5.1.4.1.1.128"),
    "DX": ("Canon Inc.", ["CXDI Control Software NE", "Digital Radiography"], "1.2.840.10008.5.1.4.1.1.1.1"),
}
MODALITIES = ("CT", "CT", "MR", "CT", "MR", "PT", "DX")
BODY_PARTS = ("CHEST", "ABDOMEN", "HEAD", "PELVIS", "KNEE")
THICKNESSES = (0.6, 1.0, 1.25, 2.0, 3.0, 5.0)
QUESTIONS = {
    "study list: studies, first page of 101": (
        "select StudyInstanceUID, PatientName, PatientID, StudyDate, ModalitiesInStudy, NumberOfStudyRelatedSeries, NumberOfStudyRelatedInstances"
        " from studies order by StudyDate desc, 1 limit 101"
    ),
    "series of one study: series": (
        "select SeriesInstanceUID, Modality, NumberOfSeriesRelatedInstances from series"
        f" where StudyInstanceUID = '{ROOT}.1.4321' order by SeriesNumber"
    ),
    "instances of one study: instances": (
        f"select SOPInstanceUID, SeriesInstanceUID, InstanceNumber, path from instances where StudyInstanceUID = '{ROOT}.1.4321' order by 2, 3"
    ),
    "search: patient by the beginning of the name: patients": (
        "select PatientID, PatientName from patients where PatientNameFamily ilike 'doe12%' order by 1"
    ),
    "cohort: women aged 20 to 25: studies": (
        "select count(distinct PatientID), count(*) from studies where PatientSex = 'F' and age_years(PatientAge) between 20 and 25"
    ),
    "cohort: CT thinner than 1.5 mm, contrast: instances, as files": (
        "select path from instances where Modality = 'CT' and SliceThickness < 1.5 and ContrastBolusAgent is not null"
    ),
    "images per month: instances": "select date_trunc('month', StudyDate) as month, Modality, count(*) from instances group by 1, 2 order by 1, 2",
    "study list, first page of 101": (
        "select StudyInstanceUID, any_value(PatientName) PatientName, any_value(PatientID) PatientID, any_value(StudyDate) StudyDate,"
        " list_sort(list(distinct Modality)) modalities, count(distinct SeriesInstanceUID) series, count(*) instances"
        " from object_catalog where status = 'indexed' group by 1 order by StudyDate desc, 1 limit 101"
    ),
    "instances of one study": (
        "select SOPInstanceUID, SeriesInstanceUID, InstanceNumber, path from object_catalog"
        " where StudyInstanceUID = (select max(StudyInstanceUID) from object_catalog) order by 2, 3"
    ),
    "search: patient by the beginning of the name": (
        "select distinct PatientID, PatientName from object_catalog where PatientNameFamily ilike 'doe12%' order by 1"
    ),
    "search: scanner model": (
        "select count(distinct SeriesInstanceUID) series, count(*) from object_catalog where ManufacturerModelName = 'SIGNA Artist'"
    ),
    "search by tag(): KVP 120 in one month": (
        "select count(*) from object_catalog where StudyDate between date '2019-03-01' and date '2019-03-31' and tag(meta, 'KVP')::double = 120"
    ),
    "search by tag(): in a sequence, all rows": (
        "select tag(meta, 'RequestAttributesSequence.RequestedProcedureID') as procedures, count(*) from object_catalog"
        " group by 1 order by 2 desc limit 5"
    ),
    "cohort: women aged 20 to 25": (
        "select count(distinct PatientID), count(distinct StudyInstanceUID) from object_catalog"
        " where PatientSex = 'F' and age_years(PatientAge) between 20 and 25"
    ),
    "cohort: CT thinner than 1.5 mm with contrast, as files": (
        "select path from object_catalog where Modality = 'CT' and SliceThickness < 1.5 and ContrastBolusAgent is not null"
    ),
    "images per month": "select date_trunc('month', StudyDate) as month, Modality, count(*) from object_catalog group by 1, 2 order by 1, 2",
}


def generate(lake: Path, instances: int, *, first: int = 0, batch_rows: int = 50_000, part_rows: int = 2_000) -> list[str]:
    """Write rows of `object_catalog`, a commit for each batch.

    The rows follow from their numbers alone: the same numbers give the same rows, in whatever batches they come.

    Parameters
    ----------
    lake : Path
        Its tables are created when missing.
    instances : int
        Rows to write.
    first : int
        Number of the first row; go on where another call ended to add to its lake.
    batch_rows, part_rows : int
        Rows of a batch, and of one Parquet part: what an ingest of small images writes.

    Returns
    -------
    list of str
        Keys of the batches.
    """
    create_tables(lake)
    keys = []
    for start in range(first, first + instances, batch_rows):
        end = min(start + batch_rows, first + instances)
        key = f"20260101T000000-{start // batch_rows:04d}-{start % batch_rows:05d}"
        parts = [
            part_from_table(lake, OBJECT_CATALOG, key, f"synthetic-{number}", _rows(range(number, min(number + part_rows, end))))
            for number in range(start, end, part_rows)
        ]
        commit(lake, OBJECT_CATALOG, key, parts, run_id="synthetic")
        keys.append(key)
    return keys


def _rows(numbers: range) -> pa.Table:
    schema = OBJECT_CATALOG.part_arrow
    rows = list(map(_row, numbers))
    names = [name for name in schema.names if name in rows[0]]
    return pa.table([pa.array([row[name] for row in rows], schema.field(name).type) for name in names], names)


def _row(number: int) -> dict[str, Any]:
    """One synthetic instance; whatever its series, study or patient decides is decided by their numbers."""
    series, index = divmod(number, INSTANCES_OF_SERIES)
    study = series // SERIES_OF_STUDY
    patient = study // STUDIES_OF_PATIENT
    modality = MODALITIES[study % len(MODALITIES)]
    maker, models, sop_class = SCANNERS[modality]
    day = FIRST_DAY + dt.timedelta(days=study * 37 % 2555)
    born = dt.date(1930, 1, 1) + dt.timedelta(days=patient * 7919 % 29_000)
    path = f"/synthetic/{patient:07}/{study:07}/{series:08}/{number:010}.dcm"
    row = {
        "rowId": row_id(path),
        "path": path,
        "modificationTime": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "length": 524_288 + number % 1000,
        "original_path": path,
        "relative_path": path[1:],
        "local_path": path,
        "extension": "dcm",
        "file_type": "dicom",
        "path_tags": [*path[1:].split("/")[-4:], "dcm"],
        "is_anon": True,
        "status": "indexed",
        "content_hash": hashlib.sha256(path.encode()).hexdigest(),
        "PatientID": f"PID{patient:07}",
        "PatientName": f"Doe{patient}^Jane",
        "PatientNameFamily": f"Doe{patient}",
        "PatientNameGiven": "Jane",
        "PatientBirthDate": born,
        "PatientSex": "FM"[patient % 2],
        "PatientAge": f"{(day - born).days * 4 // 1461:03}Y",
        "StudyInstanceUID": f"{ROOT}.1.{study}",
        "StudyDate": day,
        "StudyTime": f"{study % 24:02}:{study % 60:02}:00",
        "StudyDescription": f"{modality} {BODY_PARTS[study % 5]}",
        "StudyID": str(study),
        "AccessionNumber": f"A{study:08}",
        "FrameOfReferenceUID": f"{ROOT}.4.{study}",
        "SeriesInstanceUID": f"{ROOT}.2.{series}",
        "Modality": modality,
        "SeriesNumber": series % SERIES_OF_STUDY + 1,
        "SeriesDescription": f"{BODY_PARTS[study % 5]} {series % SERIES_OF_STUDY}",
        "BodyPartExamined": BODY_PARTS[study % 5],
        "Manufacturer": maker,
        "ManufacturerModelName": models[study % len(models)],
        "InstitutionName": f"Hospital {study % 7}",
        "ContrastBolusAgent": "Iopromide" if modality == "CT" and series % 3 == 0 else None,
        "KVP": (100.0, 120.0, 140.0)[series % 3] if modality == "CT" else None,
        "SliceThickness": THICKNESSES[series % 6] if modality in {"CT", "MR", "PT"} else None,
        "SOPClassUID": sop_class,
        "SOPInstanceUID": f"{ROOT}.3.{number}",
        "TransferSyntaxUID": "1.2.840.10008.1.2.1",
        "InstanceNumber": index + 1,
        "AcquisitionNumber": 1,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "Rows": 512,
        "Columns": 512,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "RescaleIntercept": -1024.0,
        "RescaleSlope": 1.0,
        "PixelSpacing": [0.7, 0.7],
        "ImagePositionPatient": [-180.0, -180.0, index * 1.5],
        "ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        "WindowCenter": [40.0],
        "WindowWidth": [400.0],
    }
    return row | {"meta": json.dumps(_meta(row, study), separators=(",", ":"))}


_TAGS = {
    "ImageType": "00080008/CS",
    "SOPClassUID": "00080016/UI",
    "SOPInstanceUID": "00080018/UI",
    "AccessionNumber": "00080050/SH",
    "Modality": "00080060/CS",
    "Manufacturer": "00080070/LO",
    "InstitutionName": "00080080/LO",
    "StudyDescription": "00081030/LO",
    "SeriesDescription": "0008103E/LO",
    "ManufacturerModelName": "00081090/LO",
    "StudyTime": "00080030/TM",
    "PatientID": "00100020/LO",
    "PatientSex": "00100040/CS",
    "PatientAge": "00101010/AS",
    "ContrastBolusAgent": "00180010/LO",
    "BodyPartExamined": "00180015/CS",
    "SliceThickness": "00180050/DS",
    "KVP": "00180060/DS",
    "StudyInstanceUID": "0020000D/UI",
    "SeriesInstanceUID": "0020000E/UI",
    "StudyID": "00200010/SH",
    "SeriesNumber": "00200011/IS",
    "AcquisitionNumber": "00200012/IS",
    "InstanceNumber": "00200013/IS",
    "ImagePositionPatient": "00200032/DS",
    "ImageOrientationPatient": "00200037/DS",
    "FrameOfReferenceUID": "00200052/UI",
    "SamplesPerPixel": "00280002/US",
    "PhotometricInterpretation": "00280004/CS",
    "Rows": "00280010/US",
    "Columns": "00280011/US",
    "PixelSpacing": "00280030/DS",
    "BitsAllocated": "00280100/US",
    "BitsStored": "00280101/US",
    "HighBit": "00280102/US",
    "PixelRepresentation": "00280103/US",
    "WindowCenter": "00281050/DS",
    "WindowWidth": "00281051/DS",
    "RescaleIntercept": "00281052/DS",
    "RescaleSlope": "00281053/DS",
}


def _meta(row: dict[str, Any], study: int) -> dict[str, Any]:
    found: dict[str, Any] = {"00080020": {"vr": "DA", "Value": [row["StudyDate"].strftime("%Y%m%d")]}}
    for name, described in _TAGS.items():
        if row[name] is not None:
            tag, vr = described.split("/")
            value = row[name].replace(":", "") if vr == "TM" else row[name]
            found[tag] = {"vr": vr, "Value": value if isinstance(value, list) else [value]}
    found |= {"00080090": {"vr": "PN"}, "00201040": {"vr": "LO"}}
    found["00100010"] = {"vr": "PN", "Value": [{"Alphabetic": row["PatientName"]}]}
    found["00100030"] = {"vr": "DA", "Value": [row["PatientBirthDate"].strftime("%Y%m%d")]}
    found["00400275"] = {"vr": "SQ", "Value": [{"00401001": {"vr": "SH", "Value": [f"R{study % 50}"]}, "00400009": {"vr": "SH", "Value": ["S1"]}}]}
    # What else a scanner writes is not asked for, but is read and parsed all the same.
    found |= {f"0029{1000 + number:04X}": {"vr": "LO", "Value": [f"private value {number} of a vendor"]} for number in range(20)}
    return dict(sorted(found.items()))


def ask(lake: Path, question: str, repeat: int) -> dict[str, float]:
    """Run one question in this process: seconds of the first and of the median run, rows, and the most memory the process has had."""
    from pixels_assets import Catalog

    catalog = Catalog(lake)
    seconds, rows = [], 0
    for _ in range(repeat + 1):
        started = time.perf_counter()
        rows = sum(len(batch) for batch in catalog.sql(QUESTIONS[question]).to_arrow_reader(10_000))
        seconds.append(time.perf_counter() - started)
    return {"first": seconds[0], "median": statistics.median(seconds[1:]), "rows": rows, "MiB": _peak()}


def _peak() -> float:
    """Most memory that this process has had, MiB; `getrusage` would count in what the process that started it had."""
    with suppress(OSError):
        return int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _instances(lake: Path) -> int:
    return dataset(lake, OBJECT_CATALOG.name).count_rows()


def measure(lake: Path, repeat: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Run each question in a process of its own."""
    for question in QUESTIONS:
        command = [sys.executable, __file__, "--lake", str(lake), "--repeat", str(repeat), "--ask", question]
        yield question, json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Generate the lake when it is not there, ask, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=Path, default=Path(tempfile.gettempdir()) / "pixels-million")
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--more", type=int, default=0, metavar="N", help="add N instances first, and measure how long the hierarchy takes to follow")
    parser.add_argument("--ask", choices=QUESTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ask:
        print(json.dumps(ask(options.lake, options.ask, options.repeat)))
        return
    if not (options.lake / OBJECT_CATALOG.name).exists():
        started = time.perf_counter()
        batches = generate(options.lake, options.instances)
        print(f"{options.instances} rows in {len(batches)} batches: {time.perf_counter() - started:.0f} s")
    elif options.more:
        generate(options.lake, options.more, first=_instances(options.lake))
    done = update_rollups(options.lake, run_id="synthetic")
    if done.tables:
        print(f"the hierarchy follows {done.changed} instances in {done.seconds:.1f} s, peak {_peak():.0f} MiB")
    print(f"{'question':<64}{'rows':>8}{'first s':>9}{'median s':>9}{'peak MiB':>9}")
    for question, found in measure(options.lake, options.repeat):
        print(f"{question:<64}{found['rows']:>8}{found['first']:>9.2f}{found['median']:>9.2f}{found['MiB']:>9.0f}")


if __name__ == "__main__":
    main()
