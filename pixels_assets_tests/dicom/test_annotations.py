"""What annotations say, against highdicom's own reading and against numbers that the tests choose."""

import copy
import io
import os
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file

from pixels_assets.dicom.annotations import CLASSES, LABEL_MAP, SEGMENTATION, read_measurements, read_regions, read_segments
from pixels_assets_tests.annotated import BLOCK, DEPTH, OBSERVER, SPACING, TRACKING, mask, report, segmentation, series, structures, written

CORPUS = os.environ.get("PIXELS_CORPUS")
VOXEL = SPACING[0] * SPACING[1] * DEPTH / 1000


@pytest.fixture(scope="module")
def images():
    return series()


def read(dataset):
    return pydicom.dcmread(io.BytesIO(written(dataset)))


def frames(dataset):
    array = dataset.pixel_array
    return lambda: iter(array.reshape(-1, dataset.Rows, dataset.Columns))


def test_a_length_is_read_with_its_site_graphic_observer_and_image(images):
    dataset = read(report(images))
    (row,) = read_measurements(dataset)
    (group,) = hd.sr.srread(io.BytesIO(written(dataset))).content.get_image_measurement_groups()
    (length,) = group.get_measurements()
    assert (row["value"], row["unit_code"], row["unit_scheme"]) == (length.value, length.unit.value, "UCUM")
    assert (row["type_code"], row["type_scheme"], row["type_meaning"]) == (length.name.value, length.name.scheme_designator, length.name.meaning)
    assert (row["tracking_identifier"], row["tracking_uid"]) == ("lesion 1", TRACKING)
    assert row["finding_code"] == group.finding_type.value
    assert [row["site_code"]] == [site.value.value for site in group.finding_sites]
    assert (row["graphic_type"], row["graphic_data"]) == ("POLYLINE", [10.0, 20.0, 40.0, 60.0])
    assert row["source_instances"] == [images[2].SOPInstanceUID]
    assert (row["source_study"], row["source_series"]) == (images[0].StudyInstanceUID, [images[0].SeriesInstanceUID])
    assert (row["observer"], row["observed_at"], row["template"]) == (OBSERVER, "2026-01-02T03:04:05+00:00", "1500")


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segments_are_counted_in_voxels_and_millilitres(images, kind):
    dataset = read(segmentation(images, kind))
    assert dataset.SOPClassUID == (LABEL_MAP if kind == "LABELMAP" else SEGMENTATION)
    rows = [row for row in read_segments(dataset, frames(dataset)) if row["number"]]
    assert [(row["number"], row["label"]) for row in rows] == [(1, "liver block"), (2, "dots")]
    counts = mask(len(images)).sum(axis=(0, 1, 2))
    share = 0.5 if kind == "FRACTIONAL" else 1.0
    assert [row["voxel_count"] for row in rows] == counts.tolist()
    assert [row["volume_ml"] for row in rows] == pytest.approx((counts * share * VOXEL).tolist())
    assert [row["frames"] for row in rows] == [BLOCK[0].stop - BLOCK[0].start, len(images)]
    assert [(row["algorithm_type"], row["algorithm_name"]) for row in rows] == [("AUTOMATIC", "thresholds"), ("MANUAL", None)]
    assert [(row["type_meaning"], row["category_meaning"]) for row in rows] == [
        ("Liver", "Organ"),
        ("Neoplasm", "Morphologically Abnormal Structure"),
    ]
    assert set(rows[0]["source_instances"]) == {image.SOPInstanceUID for image in images[BLOCK[0]]}
    assert set(rows[1]["source_instances"]) == {image.SOPInstanceUID for image in images}
    assert {row["source_series"][0] for row in rows} == {images[0].SeriesInstanceUID}


def test_a_segmentation_without_pixels_or_spacings_says_so(images):
    dataset = read(segmentation(images))
    assert {(row["voxel_count"], row["volume_ml"]) for row in read_segments(dataset, None)} == {(None, None)}
    unplaced = segmentation(images)
    del unplaced.PerFrameFunctionalGroupsSequence
    unplaced.SegmentSequence = [unplaced.SegmentSequence[0]]
    unplaced.SegmentSequence += [Dataset() for _ in range(unplaced.NumberOfFrames)]  # they cannot share the frames evenly
    for number, segment in enumerate(unplaced.SegmentSequence, start=1):
        segment.SegmentNumber = number
    assert {(row["voxel_count"], row["volume_ml"]) for row in read_segments(unplaced, frames(unplaced))} == {(None, None)}
    del dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert [(row["voxel_count"] > 0, row["volume_ml"]) for row in read_segments(dataset, frames(dataset))] == [(True, None)] * 2


def test_a_region_has_the_volume_of_its_contours_or_the_one_that_is_stated(images):
    dataset = read(structures(images))
    (row,) = read_regions(dataset)
    assert row["volume_ml"] == pytest.approx(20 * 10 * DEPTH * 3 / 1000)
    assert (row["number"], row["label"], row["type_meaning"], row["frames"]) == (7, "square", "ORGAN", 3)
    assert row["source_instances"] == [image.SOPInstanceUID for image in images[1:4]]
    assert row["source_series"] == [images[0].SeriesInstanceUID]
    stated, open_, tilted = (copy.deepcopy(dataset) for _ in range(3))
    stated.StructureSetROISequence[0].ROIVolume = "12.5"
    open_.ROIContourSequence[0].ContourSequence[0].ContourGeometricType = "OPEN_PLANAR"
    tilted.ROIContourSequence[0].ContourSequence[0].ContourData[5] = 1000.0
    assert [read_regions(item)[0]["volume_ml"] for item in (stated, open_, tilted)] == [12.5, None, None]


def test_every_region_of_a_structure_set_of_pydicom_is_there():
    dataset = pydicom.dcmread(str(get_testdata_file("rtstruct.dcm")), force=True)
    rows = read_regions(dataset)
    assert [(row["number"], row["label"]) for row in rows] == [(item.ROINumber, item.ROIName) for item in dataset.StructureSetROISequence]


def test_a_graphic_named_by_its_place_and_one_without_a_number_are_found(images):
    dataset = read(report(images))
    measured = next(item for item in dataset.ContentSequence if item.ConceptNameCodeSequence[0].CodeValue == "126010")
    group = measured.ContentSequence[0]
    number = next(item for item in group.ContentSequence if item.ValueType == "NUM")
    graphic = number.ContentSequence.pop()
    group.ContentSequence.append(graphic)
    moved = read_measurements(dataset)
    assert moved[0]["graphic_data"] == [10.0, 20.0, 40.0, 60.0]
    place = Dataset()
    place.RelationshipType = "INFERRED FROM"
    place.ReferencedContentItemIdentifier = [
        1,
        list(dataset.ContentSequence).index(measured) + 1,
        1,
        len(group.ContentSequence),
    ]
    number.ContentSequence = [place]
    assert read_measurements(dataset)[0]["source_instances"] == [images[2].SOPInstanceUID]
    group.ContentSequence = [item for item in group.ContentSequence if item is not number]
    (marked,) = read_measurements(dataset)
    assert (marked.get("value"), marked["graphic_type"], marked["tracking_identifier"]) == (None, "POLYLINE", "lesion 1")


def test_damaged_and_empty_annotations_have_no_rows_and_do_not_raise(images):
    assert read_measurements(Dataset()) == read_segments(Dataset(), lambda: iter(())) == read_regions(Dataset()) == []
    dataset = read(report(images))
    for item in dataset.iterall():
        if item.VR == "SQ" and item.keyword in {"MeasuredValueSequence", "ConceptCodeSequence", "ReferencedSOPSequence"}:
            item.value = []
    (row,) = read_measurements(dataset)
    assert (row["value"], row["unit_code"], row["source_instances"]) == (None, None, [])


@pytest.mark.corpus
@pytest.mark.skipif(not CORPUS, reason="PIXELS_CORPUS is not set")
def test_values_of_the_corpus_are_those_of_highdicom():
    measured = segmented = 0
    for path in sorted(Path(str(CORPUS)).rglob("*")):
        try:
            dataset = pydicom.dcmread(path) if path.is_file() else None
        except Exception:  # hostile files
            continue
        kind = CLASSES.get(str(dataset.get("SOPClassUID"))) if dataset is not None else None
        try:
            strict = None if kind is None else (hd.sr.srread if kind == "measurements" else hd.seg.segread)(path)
        except Exception:  # highdicom is strict
            continue
        if kind == "segmentations" and strict is not None:
            try:
                stack = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
            except Exception:  # what pydicom does not decode cannot be compared
                continue
            rows = {row["number"]: row for row in read_segments(dataset, frames(dataset))}
            assert set(strict.segment_numbers) <= set(rows), path
            assert all(rows[number]["label"] == strict.get_segment_description(number).segment_label for number in strict.segment_numbers), path
            if strict.SegmentationType == "BINARY" and "PerFrameFunctionalGroupsSequence" in dataset:
                for number in strict.segment_numbers:
                    which = [
                        index
                        for index, group in enumerate(dataset.PerFrameFunctionalGroupsSequence)
                        if "SegmentIdentificationSequence" in group and group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == number
                    ]
                    if which and which[-1] < len(stack):
                        assert rows[number]["voxel_count"] == int(np.count_nonzero(stack[which])), path
            segmented += 1
        elif strict is not None and hasattr(strict.content, "get_image_measurement_groups"):
            content = strict.content
            groups = [
                *content.get_image_measurement_groups(),
                *content.get_planar_roi_measurement_groups(),
                *content.get_volumetric_roi_measurement_groups(),
            ]
            if not groups:  # it knows groups only by the references that they have
                continue
            said = sorted(item.value for group in groups for item in group.get_measurements())
            rows = read_measurements(dataset)
            assert said == sorted(row["value"] for row in rows if "value" in row), path
            derived = sorted(item.derivation.meaning for group in groups for item in group.get_measurements() if item.derivation)
            assert derived == sorted(row["derivation_meaning"] for row in rows if row.get("derivation_meaning")), path
            measured += 1
    assert measured
    assert segmented
