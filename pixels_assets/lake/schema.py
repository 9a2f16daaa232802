"""Every table and every column of the lake, declared once.

Holds names, Arrow types, meanings and how a column is best stored; Delta, Dagster's column schema and the documentation are made from it.
Must not read or write anything. Imports the typed columns' names from `pixels_assets.dicom`, and nothing of the layers above.
"""

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa

from pixels_assets.dicom.attributes import ATTRIBUTES, Attribute

PARTITION = "batch"
_TIME = pa.timestamp("us", tz="UTC")
_KINDS = {
    **dict.fromkeys(("text", "family", "given"), pa.string()),
    "integer": pa.int64(),
    "number": pa.float64(),
    "date": pa.date32(),
    "time": pa.string(),  # Delta has no type for a time of day
    "datetime": _TIME,
    "offset": pa.int32(),
    **dict.fromkeys(("texts", "gathered"), pa.list_(pa.string())),
    "integers": pa.list_(pa.int64()),
    "numbers": pa.list_(pa.float64()),
}

# Point queries ask for these. Names, descriptions and birth dates are kept out: statistics are copied into the transaction log, which outlives rows.
_STATISTICS = frozenset(
    {
        "rowId",
        "path",
        "original_path",
        "previous_path",
        "length",
        "status",
        "subject",
        "file_type",
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
    }
    | {"PatientID", "StudyDate", "Modality"}
)
_JSON = frozenset({"meta", "file_meta", "items"})
# Values that hardly ever come twice: a dictionary would hold each of them once, and be thrown away.
_DISTINCT = frozenset({"rowId", "path", "relative_path", "local_path", "subject", "meta", "header", "thumbnail", "content_hash", "SOPInstanceUID"})
_LEVELS = ("patient", "study", "series", "instance")


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    Parameters
    ----------
    name : str
    type : pyarrow.DataType
    meaning : str
        What it holds, for people; becomes the column's comment in Delta.
    nullable : bool
    clause : str or None
        The DICOM clause that defines the values, where one does, with the tag where it is one attribute.
    """

    name: str
    type: pa.DataType
    meaning: str
    nullable: bool = True
    clause: str | None = None

    @property
    def comment(self) -> str:
        """Meaning and clause, as one line."""
        return f"{self.meaning} ({self.clause})" if self.clause else self.meaning

    @property
    def has_statistics(self) -> bool:
        """Minimum, maximum and null count of each part are kept, so that readers can skip parts."""
        return self.name in _STATISTICS

    @property
    def repeats(self) -> bool:
        """Values come again and again, so that a dictionary makes parts smaller."""
        return self.name not in _DISTINCT and self.type != pa.binary()

    @property
    def is_json(self) -> bool:
        """Values are whole documents: nobody compares them, and the bounds of one of 100 MB would be copied again and again."""
        return self.name in _JSON


@dataclass(frozen=True)
class Table:
    """One Delta table.

    Parameters
    ----------
    name : str
        Name of its folder below the lake's root.
    meaning : str
        What one row is, for people.
    columns : tuple of Column
        In order; the last one of a partitioned table is the partition column, `batch`.
    partitioned : bool
        Whether parts lie in a folder for each batch.
    key : tuple of str
        What tells one row from all others, in a table that is not partitioned.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]
    partitioned: bool = True
    key: tuple[str, ...] = ()

    @property
    def partition_columns(self) -> list[str]:
        """Columns whose values are in the path of a part and not in the part."""
        return [PARTITION] if self.partitioned else []

    @property
    def arrow(self) -> pa.Schema:
        """Schema as readers see it, with each column's meaning as the field metadata ``comment``."""
        return pa.schema([pa.field(item.name, item.type, item.nullable, {"comment": item.comment}) for item in self.columns])

    @cached_property
    def part_arrow(self) -> pa.Schema:
        """Schema of one Parquet part: without the partition column, which is in the path, and without comments."""
        return pa.schema([pa.field(item.name, item.type, item.nullable) for item in self.columns if item.name not in self.partition_columns])

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns, in order."""
        return tuple(item.name for item in self.columns)

    @cached_property
    def statistics(self) -> tuple[str, ...]:
        """Names of the columns whose minimum and maximum go to the transaction log."""
        return tuple(item.name for item in self.columns if item.has_statistics)

    @property
    def object_key(self) -> str:
        """The column that says which source file a row comes from."""
        return "original_path" if "original_path" in self.column_names else "path"


def _texts(**meanings: str) -> tuple[Column, ...]:
    return tuple(Column(name, pa.string(), meaning) for name, meaning in meanings.items())


def typed_column(attribute: Attribute) -> Column:
    """Column of a promoted attribute."""
    clause = f"({attribute.tag >> 16:04X},{attribute.tag & 0xFFFF:04X}), DICOM PS3.6 chapter 6"
    return Column(attribute.keyword, _KINDS[attribute.kind], attribute.meaning, clause=clause)


_PATH = Column("path", pa.string(), "Address of the object: an absolute path, or archive!/member.", nullable=False)
_ORIGINAL_PATH = Column("original_path", pa.string(), "Address of the outermost file, the one that lies in the source.")
_ORIGINAL_PATH_REQUIRED = Column(_ORIGINAL_PATH.name, _ORIGINAL_PATH.type, _ORIGINAL_PATH.meaning, nullable=False)
_LENGTH = Column("length", pa.int64(), "Bytes of the object itself; for a member, expanded.")
_MODIFIED = Column("modificationTime", _TIME, "When the file or member was last modified, UTC, to the microsecond.")
_DEPTH = Column("depth", pa.int32(), "0 for a loose file, 1 for a member of an archive, 2 for a member of a member.")
_FILE_TYPE = Column("file_type", pa.string(), "What the content is, whatever the name says: dicom, zip, tar, pdf, ...")
_LOCAL_PATH = Column("local_path", pa.string(), "Where the bytes can be opened: the file itself, its archive, or the extracted member.")
_STATUS = Column("status", pa.string(), "What became of the object: indexed, archive, not_dicom, empty, corrupt, ...", nullable=False)
_ERROR_CODE = Column("error_code", pa.string(), "Stable snake_case word for what went wrong.")
_ERROR_MESSAGE = Column("error_message", pa.string(), "One sentence on what went wrong, without patient data.")
_HASH = Column("content_hash", pa.string(), "SHA-256 of the object's bytes, lower-case hex.")
_META = Column("meta", pa.string(), "The data set as DICOM JSON, without pixel data, long values as references.", clause="DICOM PS3.18 Annex F")
_THUMBNAIL = Column("thumbnail", pa.binary(), "The representative frame as a small encoded image.")
_BATCH = Column(PARTITION, pa.string(), "Key of the batch of files that brought the row.", nullable=False)
_TYPED = tuple(typed_column(item) for item in ATTRIBUTES)

RAW_FILES = Table(
    "raw_files",
    "One row per file found in a source, and per change of it.",
    (
        Column("path", pa.string(), "Address of the file; a folder that could not be listed ends with a slash.", nullable=False),
        Column("length", pa.int64(), "Bytes of the file."),
        _MODIFIED,
        Column("mtime_ns", pa.int64(), "When the file was last modified, exactly: nanoseconds since 1970 UTC."),
        *_texts(
            change="How the file differs from what the lake knew: new, modified, removed or moved.",
            previous_path="Where a moved file was before.",
            source="Address of the source folder below which it was found.",
        ),
        _ERROR_CODE,
        _ERROR_MESSAGE,
        _BATCH,
    ),
)

UNZIPPED_ARCHIVES = Table(
    "unzipped_archives",
    "One row per archive member, members of nested archives included.",
    (
        _PATH,
        _ORIGINAL_PATH_REQUIRED,
        _LENGTH,
        Column("compressed_length", pa.int64(), "Bytes that the member takes inside its archive, where the format says."),
        _MODIFIED,
        _DEPTH,
        _STATUS,
        _ERROR_CODE,
        _ERROR_MESSAGE,
        _BATCH,
    ),
)

DICOM_METADATA = Table(
    "dicom_metadata",
    "One row per object, whatever became of it: its status, hash, header and metadata.",
    (
        _PATH,
        _ORIGINAL_PATH_REQUIRED,
        _LENGTH,
        _MODIFIED,
        _DEPTH,
        _FILE_TYPE,
        _LOCAL_PATH,
        _STATUS,
        _ERROR_CODE,
        _ERROR_MESSAGE,
        Column("warnings", pa.list_(pa.string()), "What was odd without being a failure."),
        _HASH,
        _META,
        Column("file_meta", pa.string(), "Group 0002 as DICOM JSON.", clause="DICOM PS3.10 7.1"),
        Column("header", pa.binary(), "The object's own bytes up to its pixel data.", clause="DICOM PS3.10 7"),
        *_TYPED,
        _BATCH,
    ),
)

THUMBNAILS = Table(
    "thumbnails",
    "One row per object that could have a thumbnail.",
    (
        _PATH,
        _ORIGINAL_PATH_REQUIRED,
        _THUMBNAIL,
        Column("mime", pa.string(), "Media type of the thumbnail: image/jpeg or image/png."),
        Column("width", pa.int32(), "Width of the thumbnail, pixels."),
        Column("height", pa.int32(), "Height of the thumbnail, pixels."),
        Column("frame", pa.int32(), "Which frame it shows, from 0."),
        Column("status", pa.string(), "ok, or none when there is no thumbnail.", nullable=False),
        Column("error_code", pa.string(), "Why there is no thumbnail."),
        _BATCH,
    ),
)

OBJECT_CATALOG = Table(
    "object_catalog",
    "One row per object that is now known.",
    (
        Column("rowId", pa.int64(), "Deterministic 63-bit key of path.", nullable=False),
        _PATH,
        _MODIFIED,
        _LENGTH,
        _ORIGINAL_PATH,
        Column("relative_path", pa.string(), "The path below its source folder."),
        Column(_LOCAL_PATH.name, _LOCAL_PATH.type, _LOCAL_PATH.meaning, nullable=False),
        Column("extension", pa.string(), "What follows the last dot of the name."),
        _FILE_TYPE,
        Column("path_tags", pa.list_(pa.string()), "Words of the path, for searching."),
        Column("is_anon", pa.bool_(), "The storage was read without credentials."),
        _META,
        _THUMBNAIL,
        _STATUS,
        _ERROR_CODE,
        _ERROR_MESSAGE,
        _HASH,
        *_TYPED,
        _BATCH,
    ),
)

QUARANTINE = Table(
    "quarantine",
    "One row per object that did not become an indexed one, and why.",
    (
        _PATH,
        _ORIGINAL_PATH,
        _LENGTH,
        _FILE_TYPE,
        _STATUS,
        _ERROR_CODE,
        _ERROR_MESSAGE,
        Column("attempts", pa.int32(), "How often reading it was tried."),
        Column("retry_due", pa.bool_(), "The next retry includes it."),
        _HASH,
        _BATCH,
    ),
)


ANNOTATIONS = Table(
    "annotations",
    "One row per object that says something about images: structured report, segmentation, RT structure set; as it was read.",
    (
        _PATH,
        _ORIGINAL_PATH_REQUIRED,
        Column("kind", pa.string(), "Which table its rows go to: measurements or segmentations.", nullable=False),
        Column("items", pa.string(), "What it says, a JSON list; references as they are written."),
        Column("highdicom_reads", pa.bool_(), "The library highdicom, which is strict, reads it; NULL for structure sets, which it does not know."),
        Column("highdicom_reason", pa.string(), "Why it does not: the type of the exception and where it was raised."),
        Column("error_code", pa.string(), "Why not all of it was read: a stable snake_case word."),
        _BATCH,
    ),
)


def _coded(**meanings: str) -> tuple[Column, ...]:
    parts = {"code": "code value", "scheme": "designator of the coding scheme", "meaning": "meaning in words"}
    return tuple(Column(f"{name}_{part}", pa.string(), f"{meaning}: {what}.") for name, meaning in meanings.items() for part, what in parts.items())


_ANNOTATION = (
    _PATH,
    _ORIGINAL_PATH_REQUIRED,
    *(typed_column(item) for item in ATTRIBUTES if item.keyword in {"SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID"}),
)
_SOURCES = (
    Column("frame_of_reference", pa.string(), "UID of the space that the coordinates are in, where they are in one."),
    Column("source_study", pa.string(), "Study of the images that it is about: as catalogued, else as the object says."),
    Column("source_series", pa.list_(pa.string()), "Series of these images, likewise."),
    Column("source_instances", pa.list_(pa.string()), "SOPInstanceUIDs of these images."),
    Column("source_found", pa.bool_(), "All of them are in the catalog; NULL when the object names none."),
    Column("missing_sources", pa.list_(pa.string()), "UIDs of those that are not."),
    *(item for item in ANNOTATIONS.columns if item.name in {"highdicom_reads", "highdicom_reason", "error_code"}),
    Column(_BATCH.name, _BATCH.type, _BATCH.meaning, nullable=False),
)

MEASUREMENTS = Table(
    "measurements",
    "One row per measurement of the imaging measurement reports (DICOM PS3.16 TID 1500) that are now known.",
    (
        *_ANNOTATION,
        Column("number", pa.int64(), "Its place in the report, from 1."),
        Column("template", pa.string(), "Template that the report names.", clause="(0040,DB00), DICOM PS3.3 C.18.8"),
        *_texts(tracking_identifier="What the reader calls the finding.", tracking_uid="UID of the finding, the same over time."),
        *_coded(type="What was measured", derivation="Mean, maximum or the like of it"),
        Column("value", pa.float64(), "The number; NULL for a region or point that was marked without measuring."),
        *_coded(unit="Its unit"),
        Column("qualifier", pa.string(), "Why there is no number, in words.", clause="(0040,A301), DICOM PS3.3 C.18.1"),
        *_coded(finding="What was found", site="Where in the body"),
        Column(
            "graphic_type",
            pa.string(),
            "Kind of the first graphic: POINT, POLYLINE, POLYGON, CIRCLE, ELLIPSE, ...",
            clause="(0070,0023), DICOM PS3.3 C.18.6",
        ),
        Column(
            "graphic_data",
            pa.list_(pa.float64()),
            "Its coordinates: column and row in pixels, or x, y and z in mm where there is a frame of reference.",
            clause="(0070,0022), DICOM PS3.3 C.18.6",
        ),
        Column("graphics", pa.int64(), "How many graphics it has."),
        Column("source_frames", pa.list_(pa.int64()), "Frames of the images that it names, from 1."),
        *_texts(
            observer="Person who observed it.",
            device="Device that observed it.",
            algorithm_name="Algorithm that measured it.",
            algorithm_version="Version of the algorithm.",
        ),
        Column("observed_at", _TIME, "When it was observed, else when the report was written; as written, taken as UTC."),
        *_SOURCES,
    ),
    partitioned=False,
    key=("path",),
)

SEGMENTATIONS = Table(
    "segmentations",
    "One row per segment of the segmentations, and per region of the RT structure sets, that are now known.",
    (
        *_ANNOTATION,
        Column("kind", pa.string(), "bitmap, fractional, labelmap or rtstruct."),
        Column("number", pa.int64(), "Number of the segment or region."),
        *_texts(label="What it is called.", description="What is said about it."),
        *_coded(category="What kind of thing it is", type="What it is", region="Where in the body"),
        *_texts(
            algorithm_type="AUTOMATIC, SEMIAUTOMATIC or MANUAL.",
            algorithm_name="Which algorithm; for a region, how it was made.",
            tracking_identifier="What the reader calls the thing.",
            tracking_uid="UID of the thing, the same over time.",
        ),
        Column("voxel_count", pa.int64(), "Voxels that belong to it at all; NULL for regions."),
        Column(
            "volume_ml",
            pa.float64(),
            "Its volume, ml; fractions count as fractions, regions by the area of their contours. NULL where spacings are unknown.",
        ),
        Column("frames", pa.int64(), "Frames in which it is; for a region, its contours."),
        *_texts(author="Who made it."),
        Column("made_at", _TIME, "When it was made; as written, taken as UTC."),
        *_SOURCES,
    ),
    partitioned=False,
    key=("path",),
)


def level_attributes(level: str) -> tuple[Attribute, ...]:
    """Promoted attributes of one level and of those above it."""
    wanted = _LEVELS[: _LEVELS.index(level) + 1]
    return tuple(item for item in ATTRIBUTES if item.level in wanted)


def _level(level: str) -> tuple[Column, ...]:
    return tuple(typed_column(item) for item in level_attributes(level))


def _uids(**meanings: str) -> tuple[Column, ...]:
    return tuple(Column(name, pa.list_(pa.string()), meaning) for name, meaning in meanings.items())


def _count(name: str, meaning: str, clause: str | None = None) -> Column:
    return Column(name, pa.int64(), meaning, nullable=False, clause=clause)


_BYTES = _count("bytes", "Bytes of the current objects.")
_PICTURE = (
    Column("representative_path", pa.string(), "Address of the object that the thumbnail shows."),
    _THUMBNAIL,
    Column("mime", pa.string(), "Media type of the thumbnail: image/jpeg or image/png."),
)

PATIENTS = Table(
    "patients",
    "One row per patient: per identifier and issuer of it; objects that name no identifier are one row.",
    (
        *_level("patient"),
        _count("NumberOfPatientRelatedStudies", "Studies of the patient.", "(0020,1200), DICOM PS3.4 C.3.4"),
        _count("NumberOfPatientRelatedSeries", "Series of the patient.", "(0020,1202), DICOM PS3.4 C.3.4"),
        _count("NumberOfPatientRelatedInstances", "Current objects of the patient.", "(0020,1204), DICOM PS3.4 C.3.4"),
        Column("FirstStudyDate", pa.date32(), "Earliest day on which a study began."),
        Column("LastStudyDate", pa.date32(), "Latest day on which a study began."),
        *_uids(Modalities="Kinds of equipment and documents, each once, sorted."),
        _BYTES,
        *_PICTURE,
    ),
    partitioned=False,
    key=("PatientID", "IssuerOfPatientID"),
)

STUDIES = Table(
    "studies",
    "One row per study.",
    (
        *_level("study"),
        _count("NumberOfStudyRelatedSeries", "Series of the study.", "(0020,1206), DICOM PS3.18 table 10.6.3-3"),
        _count("NumberOfStudyRelatedInstances", "Current objects of the study.", "(0020,1208), DICOM PS3.18 table 10.6.3-3"),
        Column("ModalitiesInStudy", pa.list_(pa.string()), "Modalities of its series, each once, sorted.", clause="(0008,0061), DICOM PS3.18 10.6.3"),
        Column("SOPClassesInStudy", pa.list_(pa.string()), "SOP classes of its objects, each once, sorted.", clause="(0008,0062), DICOM PS3.6 6"),
        *_uids(
            BodyPartsInStudy="Body parts of its series, each once, sorted.",
            InstitutionNames="Where its equipment stands, each once, sorted.",
            StationNames="Names of its equipment, each once, sorted.",
        ),
        _BYTES,
        *_PICTURE,
    ),
    partitioned=False,
    key=("StudyInstanceUID",),
)

SERIES = Table(
    "series",
    "One row per series of a study.",
    (
        *_level("series"),
        _count("NumberOfSeriesRelatedInstances", "Current objects of the series.", "(0020,1209), DICOM PS3.18 table 10.6.3-4"),
        Column("FirstInstanceNumber", pa.int64(), "Smallest number of an object."),
        Column("LastInstanceNumber", pa.int64(), "Greatest number of an object."),
        Column(
            "FirstAcquisitionDateTime", _TIME, "When its first object was acquired, as written; when its content was made where that is not said."
        ),
        Column("LastAcquisitionDateTime", _TIME, "The same of its last object."),
        *_uids(SOPClassUIDs="Kinds of its objects, each once, sorted.", TransferSyntaxUIDs="Encodings of its objects, each once, sorted."),
        Column("Rows", pa.int64(), "Height of a frame, pixels; NULL unless all its images agree."),
        Column("Columns", pa.int64(), "Width of a frame, pixels; NULL unless all its images agree."),
        _count("frames", "Frames of all its images; an image that does not say how many counts as one."),
        _BYTES,
        *_PICTURE,
    ),
    partitioned=False,
    key=("StudyInstanceUID", "SeriesInstanceUID"),
)

INSTANCES = Table(
    "instances",
    "One current row per SOPInstanceUID.",
    (
        *_level("instance"),
        Column("rowId", pa.int64(), "Deterministic 63-bit key of path.", nullable=False),
        _PATH,
        _ORIGINAL_PATH,
        Column(_LOCAL_PATH.name, _LOCAL_PATH.type, _LOCAL_PATH.meaning, nullable=False),
        Column("relative_path", pa.string(), "The path below its source folder."),
        _LENGTH,
        _HASH,
        _FILE_TYPE,
        _MODIFIED,
        Column("mime", pa.string(), "Media type of the object's thumbnail; NULL when it has none."),
        Column("duplicates", pa.list_(pa.string()), "Addresses of identical copies, sorted.", nullable=False),
        Column("versions", pa.int32(), "Different contents that claim this SOPInstanceUID; those above 1 are in uid_conflicts.", nullable=False),
        Column(_BATCH.name, _BATCH.type, _BATCH.meaning, nullable=False),
    ),
    partitioned=False,
    key=("SOPInstanceUID",),
)

UID_CONFLICTS = Table(
    "uid_conflicts",
    "One row per object whose SOPInstanceUID other objects of different content claim, too.",
    (
        typed_column(next(item for item in ATTRIBUTES if item.keyword == "SOPInstanceUID")),
        _PATH,
        _HASH,
        Column("is_current", pa.bool_(), "This content is the one in instances.", nullable=False),
        Column(
            "differs",
            pa.string(),
            "In what it differs from that one: metadata (meta is another), encoding (meta is the same, other bytes of the header are not: transfer"
            " syntax, preamble, long binary values), pixels (only what follows the header). NULL for the current content, and without a kept header.",
        ),
        _LENGTH,
        _MODIFIED,
        *(typed_column(item) for item in ATTRIBUTES if item.keyword in {"StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID"}),
        Column(_BATCH.name, _BATCH.type, _BATCH.meaning, nullable=False),
    ),
    partitioned=False,
    key=("SOPInstanceUID",),
)


def key_columns() -> tuple[Column, Column, Column]:
    """Columns that every table of objects has: `path` and `original_path` first, `batch` last."""
    return _PATH, _ORIGINAL_PATH_REQUIRED, _BATCH


FINDINGS = Table(
    "findings",
    "One row per thing that is odd about an object, a series, a study or a patient.",
    (
        Column("code", pa.string(), "Stable snake_case word for what is odd.", nullable=False),
        Column("level", pa.string(), "What it is about: instance, series, study or patient.", nullable=False),
        *(typed_column(item) for item in ATTRIBUTES if item.keyword in {"PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"}),
        Column("keyword", pa.string(), "The attribute, with the sequences that lead to it, separated by dots."),
        Column("message", pa.string(), "One sentence on it, without patient data.", nullable=False),
        Column("path", pa.string(), "Address of the object, where it is about one."),
        Column("batch", pa.string(), "Key of the batch that brought the object, where it is about one."),
        Column("subject", pa.string(), "Level and key in one: rows about the same thing are replaced together.", nullable=False),
    ),
    partitioned=False,
    key=("subject",),
)

BATCH_TABLES: dict[str, Table] = {
    table.name: table for table in (RAW_FILES, UNZIPPED_ARCHIVES, DICOM_METADATA, THUMBNAILS, ANNOTATIONS, OBJECT_CATALOG, QUARANTINE)
}
"""Tables that a run of one batch writes, partitioned by `batch`."""
ROLLUPS: dict[str, Table] = {table.name: table for table in (PATIENTS, STUDIES, SERIES, INSTANCES, UID_CONFLICTS, FINDINGS)}
"""Tables made from the whole `object_catalog`, not partitioned."""
LINKED: dict[str, Table] = {table.name: table for table in (MEASUREMENTS, SEGMENTATIONS)}
"""Tables made from `annotations` and the whole `object_catalog`, not partitioned."""
TABLES: dict[str, Table] = BATCH_TABLES | ROLLUPS | LINKED
