"""What is promoted from a DICOM header to a typed column, and at which level it belongs.

Holds the list and nothing else: how a value becomes typed is in `values`, how columns are stored is the lake's business.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attribute:
    """One DICOM attribute that has a column of its own.

    Parameters
    ----------
    keyword : str
        Keyword of DICOM PS3.6, which is the column's name too.
    tag : int
        Group and element number, such as 0x00100020.
    kind : str
        ``text``, ``integer`` or ``date``; see `pixels_assets.dicom.values.typed_value`.
    level : str
        Level of the information model that it describes: ``patient``, ``study``, ``series`` or ``instance`` (DICOM PS3.3 A.1.2).
    meaning : str
        One sentence for the column's description.
    """

    keyword: str
    tag: int
    kind: str
    level: str
    meaning: str


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute("SOPClassUID", 0x00080016, "text", "instance", "What kind of object it is."),
    Attribute("SOPInstanceUID", 0x00080018, "text", "instance", "Identifies the object, worldwide."),
    Attribute("StudyInstanceUID", 0x0020000D, "text", "study", "Identifies the study."),
    Attribute("SeriesInstanceUID", 0x0020000E, "text", "series", "Identifies the series."),
    Attribute("PatientID", 0x00100020, "text", "patient", "The patient's identifier at the issuing institution."),
    Attribute("PatientName", 0x00100010, "text", "patient", "The patient's name, its components separated by ^ and its groups by =."),
    Attribute("StudyDate", 0x00080020, "date", "study", "Day on which the study began."),
    Attribute("Modality", 0x00080060, "text", "series", "Kind of equipment or document, such as CT or SR."),
    Attribute(
        "TransferSyntaxUID", 0x00020010, "text", "instance", "Encoding that the file declares; the one found in its bytes when it declares none."
    ),
    Attribute("Rows", 0x00280010, "integer", "instance", "Height of a frame, pixels."),
    Attribute("Columns", 0x00280011, "integer", "instance", "Width of a frame, pixels."),
    Attribute("NumberOfFrames", 0x00280008, "integer", "instance", "Frames of a multi-frame object."),
    Attribute("StudyDescription", 0x00081030, "text", "study", "Description of the study."),
    Attribute("SeriesDescription", 0x0008103E, "text", "series", "Description of the series."),
    Attribute("SeriesNumber", 0x00200011, "integer", "series", "Number of the series within its study."),
    Attribute("InstanceNumber", 0x00200013, "integer", "instance", "Number of the object within its series."),
    Attribute("AccessionNumber", 0x00080050, "text", "study", "Number of the order that the study answers."),
    Attribute("PatientSex", 0x00100040, "text", "patient", "M, F or O."),
    Attribute("PatientBirthDate", 0x00100030, "date", "patient", "Day on which the patient was born."),
    Attribute("BodyPartExamined", 0x00180015, "text", "series", "Part of the body that was examined."),
    Attribute("Manufacturer", 0x00080070, "text", "series", "Maker of the equipment."),
)
