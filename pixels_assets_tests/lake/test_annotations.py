"""Tables of annotations: rows of what is current, linked to the images that are catalogued, missing ones flagged."""

import pydicom
import pytest

from pixels_assets.lake.annotations import link_annotations, links_are_behind
from pixels_assets.lake.commit import open_table
from pixels_assets.lake.query import scan
from pixels_assets_tests.annotated import MOMENT, report, save, segmentation, series, structures


def link(house):
    house.look()
    house.run_pending()
    done = link_annotations(house.lake, run_id="test")
    assert not links_are_behind(house.lake)
    return done


def rows(house, name):
    return scan(house.lake, name).collect().sort("path", "number").to_dicts()


@pytest.fixture(scope="module")
def images():
    return series()


@pytest.fixture(scope="module")
def said(images):
    return {"seg": segmentation(images), "map": segmentation(images, "LABELMAP"), "report": report(images), "rt": structures(images)}


def test_rows_come_with_their_sources_and_follow_what_comes_and_goes(house, images, said):
    paths = dict(zip(said, save(house.source, *said.values()), strict=True))
    done = link(house)
    assert done.missing == {"measurements": 1, "segmentations": 4 + (len(rows(house, "segmentations")) - 5) + 1}
    (length,) = rows(house, "measurements")
    assert (length["source_found"], length["missing_sources"]) == (False, [images[2].SOPInstanceUID])
    assert length["source_series"] == [images[0].SeriesInstanceUID]  # as the report says
    assert (length["value"], length["observed_at"], length["SOPInstanceUID"]) == (33.75, MOMENT, said["report"].SOPInstanceUID)
    assert all(row["source_found"] is False for row in rows(house, "segmentations"))

    # The images come after what is said about them.
    slices = save(house.source / "ct", *images)
    done = link(house)
    assert done.missing == {"measurements": 0, "segmentations": 0}
    (length,) = rows(house, "measurements")
    assert (length["source_found"], length["missing_sources"], length["source_study"]) == (True, [], images[0].StudyInstanceUID)
    segments = rows(house, "segmentations")
    assert {row["kind"] for row in segments} == {"bitmap", "labelmap", "rtstruct"}
    assert all(row["source_found"] and row["source_series"] == [images[0].SeriesInstanceUID] for row in segments)
    assert {row["highdicom_reads"] for row in segments} == {True, None}
    assert {row["kind"] for row in segments if row["highdicom_reads"] is None} == {"rtstruct"}
    block = next(row for row in segments if row["kind"] == "bitmap" and row["number"] == 1)
    assert (block["voxel_count"], block["volume_ml"]) == (210, pytest.approx(210 * 0.5 * 0.75 * 2.5 / 1000))

    # Nothing changed: nothing is written.
    versions = {name: open_table(house.lake, name).version() for name in ("measurements", "segmentations")}
    assert link(house).tables == {}
    assert {name: open_table(house.lake, name).version() for name in versions} == versions

    # One image goes, one segmentation is replaced by another, one report is removed.
    slices[2].unlink()
    paths["report"].unlink()
    house.touch(paths["seg"])
    other = pydicom.dcmread(paths["seg"])
    other.SegmentSequence[0].SegmentLabel = "another"
    paths["seg"].write_bytes(paths["map"].read_bytes()[:200])
    other.save_as(paths["seg"], enforce_file_format=True)
    house.touch(paths["seg"])
    done = link(house)
    assert rows(house, "measurements") == []
    segments = {(row["kind"], row["number"]): row for row in rows(house, "segmentations") if row["number"]}
    assert segments["bitmap", 1]["label"] == "another"
    assert segments["bitmap", 1]["missing_sources"] == [images[2].SOPInstanceUID]
    assert not segments["bitmap", 2]["source_found"]
    assert len(segments) == 5


def test_what_viewers_write_and_highdicom_refuses_is_read_and_says_so(house, images):
    save(house.source, *images)
    made = segmentation(images, "LABELMAP")
    path, *_ = save(house.source, made)
    # A file meta group without (0002,0001), as OHIF writes it, and no description of the frames.
    for group in made.PerFrameFunctionalGroupsSequence:
        del group.FrameContentSequence
    del made.file_meta.FileMetaInformationVersion
    pydicom.dcmwrite(path, made, enforce_file_format=False)
    link(house)
    segments = [row for row in rows(house, "segmentations") if row["number"]]
    assert [row["voxel_count"] for row in segments] == [210, 5]
    assert {(row["highdicom_reads"], row["source_found"]) for row in segments} == {(False, True)}
    assert all(row["highdicom_reason"] for row in segments)


def test_a_number_beyond_64_bits_costs_its_row_that_number(house, images):
    made, beside = structures(images), segmentation(images)
    made.StructureSetROISequence[0].ROINumber = "9" * 12
    (path, _) = save(house.source, made, beside)
    path.write_bytes(path.read_bytes().replace(b"9" * 12, b"1E+30".ljust(12)))
    link(house)
    assert [(row["number"], row["label"]) for row in rows(house, "segmentations") if row["kind"] == "rtstruct"] == [(None, "square")]
    assert any(row["kind"] == "bitmap" for row in rows(house, "segmentations"))


def test_a_lake_without_annotations_is_never_behind(house, images):
    save(house.source, *images[:1])
    assert link(house).tables == {}
