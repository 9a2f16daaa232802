"""Images and what is said about them: a CT series, and segmentations, reports and structure sets that highdicom and pydicom write about it."""

import datetime as dt
import io
import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

SPACING, DEPTH = (0.5, 0.75), 2.5
BLOCK = (slice(1, 4), slice(10, 20), slice(30, 37))
"""Slices, rows and columns of the first segment."""
OBSERVER = "Reader^One"


def series(count: int = 5, modality: str = "CT", uid: str | None = None) -> list[Dataset]:
    """Slices of one series at distinct positions, whose pixels differ from slice to slice."""
    source = pydicom.dcmread(str(get_testdata_file("CT_small.dcm" if modality == "CT" else "MR_small.dcm")))
    uid, frame = uid or generate_uid(), generate_uid()
    base = source.pixel_array
    top, left = (side * part // 32 for side, part in zip(base.shape, (14, 9), strict=True))  # in the middle, where a viewer shows it
    made = []
    for number in range(count):
        item = pydicom.dcmread(io.BytesIO(written(source)))
        item.SeriesInstanceUID, item.FrameOfReferenceUID = uid, frame
        item.SOPInstanceUID = item.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        item.InstanceNumber, item.PixelSpacing, item.SliceThickness, item.SpacingBetweenSlices = number + 1, list(SPACING), DEPTH, DEPTH
        item.ImageOrientationPatient, item.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-100.0, -80.0, DEPTH * number]
        item.SliceLocation = DEPTH * number
        pixels = base.copy()
        pixels[top : top + 6, left + 4 * number : left + 4 * number + 6] = base.max()
        item.PixelData = pixels.tobytes()
        made.append(item)
    return made


def faults(path: Path | str) -> set[str]:
    """What dciodvfy calls errors in a file; where it is not installed, the test skips."""
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    ran = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False, timeout=60)
    said = (ran.stdout + ran.stderr).splitlines()
    assert len(said) > 0, "dciodvfy says at least what kind of object it is"
    return {line.removeprefix("Error - ") for line in said if line.startswith("Error")}


def written(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def mask(count: int) -> np.ndarray:
    """Two segments: a block, and one voxel in each slice."""
    found = np.zeros((count, 128, 128, 2), np.uint8)
    found[(*BLOCK, 0)] = 1
    found[:, 100, 100, 1] = 1
    return found


def segmentation(images: list[Dataset], kind: str = "BINARY") -> Dataset:
    """A segmentation of two segments, of highdicom."""
    algorithm = hd.AlgorithmIdentificationSequence(name="thresholds", version="2", family=codes.DCM.ArtificialIntelligence)
    described = [
        hd.seg.SegmentDescription(1, "liver block", codes.SCT.Organ, codes.SCT.Liver, hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC, algorithm),
        hd.seg.SegmentDescription(
            2, "dots", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm, hd.seg.SegmentAlgorithmTypeValues.MANUAL
        ),
    ]
    pixels = mask(len(images))
    if kind == "LABELMAP":
        pixels = pixels[..., 0] + 2 * pixels[..., 1]
    return hd.seg.Segmentation(
        images,
        pixels.astype(np.float32) * 0.5 if kind == "FRACTIONAL" else pixels,
        hd.seg.SegmentationTypeValues[kind],
        described,
        generate_uid(),
        100,
        generate_uid(),
        1,
        "maker",
        "model",
        "1.0",
        "serial",
        content_creator_name="Maker^Two",
        max_fractional_value=200,
        omit_empty_frames=True,
    )


def report(images: list[Dataset]) -> Dataset:
    """A report with a length, drawn in the third image, of highdicom."""
    image = images[2]
    context = hd.sr.ObservationContext(
        observer_person_context=hd.sr.ObserverContext(codes.DCM.Person, hd.sr.PersonObserverIdentifyingAttributes(OBSERVER)),
    )
    region = hd.sr.CoordinatesForMeasurement(
        hd.sr.GraphicTypeValues.POLYLINE,
        np.array([[10.0, 20.0], [40.0, 60.0]]),
        hd.sr.SourceImageForMeasurement(image.SOPClassUID, image.SOPInstanceUID),
    )
    group = hd.sr.MeasurementsAndQualitativeEvaluations(
        hd.sr.TrackingIdentifier(TRACKING, "lesion 1"),
        finding_type=codes.SCT.Neoplasm,
        finding_sites=[hd.sr.FindingSite(codes.SCT.Liver)],
        measurements=[hd.sr.Measurement(codes.SCT.Length, 33.75, codes.UCUM.Millimeter, referenced_coordinates=[region])],
    )
    content = hd.sr.MeasurementReport(context, codes.SCT.ComputedTomography, [group])
    made = hd.sr.ComprehensiveSR([image], content, generate_uid(), 200, generate_uid(), 1, manufacturer="maker")
    made.ContentDate, made.ContentTime = "20260102", "030405"
    return made


TRACKING = generate_uid(entropy_srcs=["annotated"])
MOMENT = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


def structures(images: list[Dataset]) -> Dataset:
    """A structure set with one square region of 20 mm x 10 mm in three slices."""
    first = images[0]
    result = Dataset()
    result.file_meta = pydicom.dataset.FileMetaDataset()
    result.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    result.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.481.3")
    result.SOPInstanceUID = result.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    result.file_meta.MediaStorageSOPClassUID = result.SOPClassUID
    result.StudyInstanceUID, result.SeriesInstanceUID, result.Modality = first.StudyInstanceUID, generate_uid(), "RTSTRUCT"
    result.PatientID, result.StructureSetDate, result.StructureSetTime = first.PatientID, "20260102", "030405.5"
    contours, refs = [], []
    for image in images[1:4]:
        x, y, z = (float(value) for value in image.ImagePositionPatient)
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        contour = Dataset()
        contour.ContourImageSequence, contour.ContourGeometricType, contour.NumberOfContourPoints = [reference], "CLOSED_PLANAR", 4
        contour.ContourData = [x, y, z, x + 20, y, z, x + 20, y + 10, z, x, y + 10, z]
        contours.append(contour)
        refs.append(reference)
    series_item, study, frame = Dataset(), Dataset(), Dataset()
    series_item.SeriesInstanceUID, series_item.ContourImageSequence = first.SeriesInstanceUID, refs
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = "1.2.840.10008.3.1.2.3.1", first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series_item]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = first.FrameOfReferenceUID, [study]
    result.ReferencedFrameOfReferenceSequence = [frame]
    region = Dataset()
    region.ROINumber, region.ROIName, region.ROIGenerationAlgorithm = 7, "square", "MANUAL"
    region.ReferencedFrameOfReferenceUID = first.FrameOfReferenceUID
    result.StructureSetROISequence = [region]
    drawn = Dataset()
    drawn.ReferencedROINumber, drawn.ContourSequence = 7, contours
    result.ROIContourSequence = [drawn]
    observed = Dataset()
    observed.ObservationNumber, observed.ReferencedROINumber, observed.RTROIInterpretedType, observed.ROIInterpreter = 1, 7, "ORGAN", "Maker^Two"
    result.RTROIObservationsSequence = [observed]
    return result


def save(folder: Path, *objects: Dataset) -> list[Path]:
    """Write objects as files named by their SOPInstanceUID."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{item.SOPInstanceUID}.dcm" for item in objects]
    for path, item in zip(paths, objects, strict=True):
        path.write_bytes(written(item))
    return paths
