"""Extractors: the shipped ones, one's own, the patcher, and the table that each gets."""

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.data import get_testdata_file

from pixels_assets.engines.extractors import SHIPPED, Extractor, load_extractors
from pixels_assets.engines.local import LocalEngine
from pixels_assets.engines.patching import read_rules
from pixels_assets.engines.shards import OUTPUTS, IndexSpec, Shard
from pixels_assets.errors import LakeError, UsageError
from pixels_assets.intake.objects import SourceFile, file_address
from pixels_assets.intake.paths import strict_path_tags
from pixels_assets.lake.schema import Column
from pixels_assets.settings import Settings

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
RLE = Path(str(get_testdata_file("MR_small_RLE.dcm"))).read_bytes()
MR = Path(str(get_testdata_file("MR_small.dcm"))).read_bytes()
FRAMES = Path(str(get_testdata_file("rtdose.dcm"))).read_bytes()
RULES = """
- name: station
  where: {Modality: "C?", Manufacturer: "GE *", EchoTime: null}
  set: {StationName: CT01, SOPInstanceUID: 1.2.3}
  remove: [PatientSex, "(0018,0050)"]
- name: identifiers
  replace: {PatientID: {pattern: "^1", with: "X"}}
"""


def _modality(seen):
    """An extractor of a user."""
    if seen.header is None:
        return None
    if seen.dataset.Modality == "RTDOSE":
        raise LookupError
    return {"both": f"{seen.dataset.Modality} {seen.header.values['Rows']}"}


MINE = Extractor("modality_and_rows", "7", "One row per readable object.", (Column("both", pa.string(), "Modality and height."),), _modality)


def run(tmp_path, extractors, files, **settings):
    """Tables of the extractors, as rows by the name of the object below the source."""
    source = tmp_path / "in"
    source.mkdir(exist_ok=True)
    for name, data in files.items():
        (source / name).write_bytes(data)
    shard = tuple(SourceFile(file_address(source / name), len(data), 1, file_address(source)) for name, data in files.items())
    chosen = Settings.from_environment(lake=tmp_path / "lake", extractors=extractors, **settings)
    outputs = frozenset(extractor.name for extractor in load_extractors(chosen))
    spec = IndexSpec(chosen.lake, "b", "a", outputs, chosen)
    assert not {table.name for table in spec.tables} & {table.name for table in OUTPUTS}
    with LocalEngine(1) as engine:
        outcome = engine.run([Shard(0, shard)], spec)
    found = {name: [] for name in outputs}
    for parts in outcome.parts.values():
        for part in parts:
            found[part.table] += pq.read_table(spec.lake / part.table / part.path, partitioning=None).to_pylist()
    return {name: {row["path"].removeprefix(f"{source}/"): row for row in rows} for name, rows in found.items()}


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_shipped_and_own_extractors_fill_their_tables_in_one_pass_without_the_other_tables(tmp_path):
    names = "paths, path_tags,path_tags_strict,pixel_statistics,pixels_assets_tests.engines.test_extractors:MINE"
    files = {"a.dcm": CT, "b.zip": zipped(inner=RLE), "c.txt": b"text", "d": FRAMES, "e": MR}
    found = run(tmp_path, names, files)
    assert found["paths"].keys() == {"a.dcm", "b.zip", "b.zip!/inner", "c.txt", "d", "e"}
    assert found["paths"]["a.dcm"]["relative_path"] == "a.dcm"
    assert found["paths"]["a.dcm"]["extension"] == "dcm"
    assert found["path_tags"]["b.zip!/inner"]["path_tags"] == ["b", "zip", "inner"]
    assert found["path_tags_strict"]["a.dcm"]["path_tags"] == strict_path_tags(f"{tmp_path}/in/a.dcm")
    assert {row["extractor_version"] for row in found["modality_and_rows"].values()} == {"7"}
    assert found["modality_and_rows"]["a.dcm"]["both"] == "CT 128"
    assert found["modality_and_rows"].keys() == {"a.dcm", "b.zip!/inner", "d", "e"}
    assert found["modality_and_rows"]["d"]["both"] is None
    assert found["modality_and_rows"]["d"]["error_code"].startswith("extractor_failed: LookupError at test_extractors.py:")


def test_pixel_statistics_are_those_of_pydicom_and_the_hash_does_not_depend_on_the_transfer_syntax(tmp_path):
    found = run(tmp_path, "pixel_statistics", {"ct": CT, "rle": RLE, "mr": MR, "dose": FRAMES, "plan": rtplan()})["pixel_statistics"]
    for name, data in {"ct": CT, "mr": MR, "dose": FRAMES}.items():
        array = pydicom.dcmread(io.BytesIO(data)).pixel_array
        row = found[name]
        assert (row["pixel_min"], row["pixel_max"], row["shape"]) == (array.min(), array.max(), list(array.shape))
        assert row["pixel_mean"] == pytest.approx(array.mean(dtype=np.float64))
        assert row["pixel_hash"] == hashlib.sha256(array.astype(array.dtype.newbyteorder("<")).tobytes()).hexdigest()
    assert found["rle"]["pixel_hash"] == found["mr"]["pixel_hash"]
    assert found["plan"]["has_pixel"] is False
    assert found["plan"]["pixel_hash"] is None


def rtplan():
    return Path(str(get_testdata_file("rtplan.dcm"))).read_bytes()


def test_the_patcher_writes_corrected_copies_and_leaves_sources_alone(tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    files = {"a.dcm": CT, "b.zip": zipped(**{"../inner.dcm": CT}), "mr": MR, "plan": rtplan(), "text": b"text"}
    found = run(tmp_path, "patches", files, patch_rules=rules, patch_to=tmp_path / "out")["patches"]
    assert {(tmp_path / "in" / name).read_bytes() == data for name, data in files.items()} == {True}
    assert found.keys() == {"a.dcm", "b.zip!/../inner.dcm"}
    row = found["a.dcm"]
    assert row["rules"] == ["station", "identifiers"]
    assert row["elements"] == ["SOPInstanceUID", "StationName", "PatientID", "PatientSex", "SliceThickness"]
    before, after = pydicom.dcmread(io.BytesIO(CT)), pydicom.dcmread(row["patched_path"])
    assert (after.StationName, after.SOPInstanceUID, after.file_meta.MediaStorageSOPInstanceUID) == ("CT01", "1.2.3", "1.2.3")
    assert after.PatientID == before.PatientID.replace("1", "X", 1)
    assert "PatientSex" not in after
    assert "SliceThickness" not in after
    assert after.PixelData == before.PixelData
    assert {element.keyword for element in before if element != after.get(element.tag)} == set(row["elements"])
    member = Path(found["b.zip!/../inner.dcm"]["patched_path"])
    assert member.resolve().is_relative_to(tmp_path / "out")
    assert member != Path(row["patched_path"])
    assert {path for path in (tmp_path / "out").rglob("*") if path.is_file()} == {member, Path(row["patched_path"])}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no list of rules"),
        ("- {where: {Modality: CT}}", "rule 1: a rule has `set`"),
        ("- {set: {NoSuchKeyword: 1}}", "there is no attribute 'NoSuchKeyword'"),
        ("- {remove: [PixelData]}", "belongs to the encoding"),
        ("- {replace: {PatientID: {pattern: '(', with: ''}}}", "rule 1"),
        ("- [", "is no YAML"),
    ],
)
def test_wrong_rules_are_refused_with_their_place(tmp_path, text, said):
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=said.replace("[", r"\[")):
        read_rules(path)


def test_a_target_that_cannot_be_written_ends_the_run_with_the_reason(tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    (tmp_path / "out").write_text("a file")
    with pytest.raises(LakeError, match="patched copies cannot be written to"):
        run(tmp_path, "patches", {"a": CT}, patch_rules=rules, patch_to=tmp_path / "out")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ("pathz", "there is no extractor 'pathz'; there are paths, path_tags"),
        ("no.such.module:X", "cannot be loaded"),
        ("pixels_assets.settings:Settings", "is no Extractor but a type"),
    ],
)
def test_a_name_that_leads_to_no_extractor_is_refused(names, said):
    with pytest.raises(UsageError, match=said):
        load_extractors(Settings.from_environment(extractors=names))


def test_names_and_columns_that_are_taken_are_refused():
    with pytest.raises(UsageError, match="cannot be called 'thumbnails'"):
        Extractor("thumbnails", "1", "x.", (), _modality)
    with pytest.raises(UsageError, match="columns \\['path'\\] are taken"):
        Extractor("mine", "1", "x.", (Column("path", pa.string(), "taken"),), _modality)


def test_every_shipped_extractor_has_a_table_with_described_columns():
    for extractor in SHIPPED.values():
        assert extractor.table.column_names[:2] == ("path", "original_path")
        assert extractor.table.column_names[-1] == "batch"
        assert all(column.meaning.endswith(".") for column in extractor.columns)
