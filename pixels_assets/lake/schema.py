"""Every table and every column of the lake, declared once.

Holds names, Arrow types, meanings and how a column is best stored; Delta, Dagster's column schema and the documentation are made from it.
Must not read or write anything. Imports the typed columns' names from `pixels_assets.dicom`, and nothing of the layers above.
"""

from dataclasses import dataclass

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
        "file_type",
        "SOPClassUID",
        "SOPInstanceUID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
    }
    | {"PatientID", "StudyDate", "Modality"}
)
# Values that hardly ever come twice: a dictionary would hold each of them once, and be thrown away.
_DISTINCT = frozenset({"rowId", "path", "relative_path", "local_path", "meta", "header", "thumbnail", "content_hash", "SOPInstanceUID"})


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


@dataclass(frozen=True, slots=True)
class Table:
    """One Delta table.

    Parameters
    ----------
    name : str
        Name of its folder below the lake's root.
    meaning : str
        What one row is, for people.
    columns : tuple of Column
        In order; the last one is the partition column, `batch`.
    """

    name: str
    meaning: str
    columns: tuple[Column, ...]

    @property
    def arrow(self) -> pa.Schema:
        """Schema as readers see it, with each column's meaning as the field metadata ``comment``."""
        return pa.schema([pa.field(item.name, item.type, item.nullable, {"comment": item.comment}) for item in self.columns])

    @property
    def part_arrow(self) -> pa.Schema:
        """Schema of one Parquet part: without the partition column, which is in the path, and without comments."""
        return pa.schema([pa.field(item.name, item.type, item.nullable) for item in self.columns if item.name != PARTITION])

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns, in order."""
        return tuple(item.name for item in self.columns)

    @property
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

TABLES: dict[str, Table] = {table.name: table for table in (RAW_FILES, UNZIPPED_ARCHIVES, DICOM_METADATA, THUMBNAILS, OBJECT_CATALOG, QUARANTINE)}
