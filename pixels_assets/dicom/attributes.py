"""The DICOM attributes that become typed columns, and at which level of the hierarchy they live.

Holds names and kinds only. Must not read data sets, and knows no tables: `pixels_assets.lake.schema` turns kinds into column types.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attribute:
    """One promoted attribute.

    Parameters
    ----------
    keyword : str
        DICOM keyword (DICOM PS3.6 chapter 6), also the name of the column.
    tag : str
        Eight hex digits, upper case.
    kind : str
        ``text``, ``integer`` or ``date``.
    level : str
        ``patient``, ``study``, ``series`` or ``instance``.
    meaning : str
        One line for people.
    """

    keyword: str
    tag: str
    kind: str
    level: str
    meaning: str


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute("SOPClassUID", "00080016", "text", "instance", "(0008,0016) *SOP Class UID*"),
    Attribute("SOPInstanceUID", "00080018", "text", "instance", "(0008,0018) *SOP Instance UID*"),
    Attribute("StudyInstanceUID", "0020000D", "text", "study", "(0020,000D) *Study Instance UID*"),
    Attribute("SeriesInstanceUID", "0020000E", "text", "series", "(0020,000E) *Series Instance UID*"),
    Attribute("PatientID", "00100020", "text", "patient", "(0010,0020) *Patient ID*"),
    Attribute("PatientName", "00100010", "text", "patient", "(0010,0010) *Patient's Name*"),
    Attribute("StudyDate", "00080020", "date", "study", "(0008,0020) *Study Date*"),
    Attribute("Modality", "00080060", "text", "series", "(0008,0060) *Modality*"),
    Attribute("TransferSyntaxUID", "00020010", "text", "instance", "(0002,0010) *Transfer Syntax UID*"),
    Attribute("Rows", "00280010", "integer", "instance", "(0028,0010) *Rows*"),
    Attribute("Columns", "00280011", "integer", "instance", "(0028,0011) *Columns*"),
    Attribute("NumberOfFrames", "00280008", "integer", "instance", "(0028,0008) *Number of Frames*"),
    Attribute("StudyDescription", "00081030", "text", "study", "(0008,1030) *Study Description*"),
    Attribute("SeriesDescription", "0008103E", "text", "series", "(0008,103E) *Series Description*"),
    Attribute("SeriesNumber", "00200011", "integer", "series", "(0020,0011) *Series Number*"),
    Attribute("InstanceNumber", "00200013", "integer", "instance", "(0020,0013) *Instance Number*"),
    Attribute("AccessionNumber", "00080050", "text", "study", "(0008,0050) *Accession Number*"),
    Attribute("PatientSex", "00100040", "text", "patient", "(0010,0040) *Patient's Sex*"),
    Attribute("PatientBirthDate", "00100030", "date", "patient", "(0010,0030) *Patient's Birth Date*"),
    Attribute("BodyPartExamined", "00180015", "text", "series", "(0018,0015) *Body Part Examined*"),
    Attribute("Manufacturer", "00080070", "text", "series", "(0008,0070) *Manufacturer*"),
)
