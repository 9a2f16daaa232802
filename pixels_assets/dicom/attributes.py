"""What is promoted from a DICOM header to a typed column, and at which level it belongs.

Holds the list and nothing else: how a value becomes typed is in `values`, how columns are stored is the lake's business.
It covers what DICOM PS3.18 tables 10.6.1-5 and 10.6.3-3 to 10.6.3-5 match and return, and what people select images by.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Attribute:
    """One DICOM attribute that has a column of its own.

    Parameters
    ----------
    keyword : str
        The column's name: the keyword of DICOM PS3.6, or for a part of a value the keyword and what it is a part of.
    tag : int
        Group and element number, such as 0x00100020.
    kind : str
        What the column holds; see `pixels_assets.dicom.values.typed_value`.
    level : str
        Level of the information model that it describes: ``patient``, ``study``, ``series`` or ``instance`` (DICOM PS3.3 A.1.2).
    meaning : str
        One sentence for the column's description.
    sequence : int or None
        Tag of the top-level sequence whose items hold it; None: it is looked for at the top level.
    """

    keyword: str
    tag: int
    kind: str
    level: str
    meaning: str
    sequence: int | None = None


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute("PatientID", 0x00100020, "text", "patient", "The patient's identifier at the issuing institution."),
    Attribute("IssuerOfPatientID", 0x00100021, "text", "patient", "Who issued the patient's identifier."),
    Attribute("PatientName", 0x00100010, "text", "patient", "The patient's name, its components separated by ^ and its groups by =."),
    Attribute("PatientNameFamily", 0x00100010, "family", "patient", "Family name, from the first group of the patient's name that has any."),
    Attribute("PatientNameGiven", 0x00100010, "given", "patient", "Given name, from the same group."),
    Attribute("PatientBirthDate", 0x00100030, "date", "patient", "Day on which the patient was born."),
    Attribute("PatientBirthTime", 0x00100032, "time", "patient", "Time at which the patient was born."),
    Attribute("PatientSex", 0x00100040, "text", "patient", "M, F or O."),
    Attribute("OtherPatientIDs", 0x00101000, "texts", "patient", "Other identifiers of the patient."),
    Attribute("EthnicGroup", 0x00102160, "text", "patient", "Ethnic group or race of the patient."),
    Attribute("PatientComments", 0x00104000, "text", "patient", "Comments on the patient."),
    Attribute("PatientSpeciesDescription", 0x00102201, "text", "patient", "The species of an animal."),
    Attribute("PatientIdentityRemoved", 0x00120062, "text", "patient", "YES when the patient's identity was removed."),
    Attribute("DeidentificationMethod", 0x00120063, "texts", "patient", "How the patient's identity was removed."),
    Attribute("ClinicalTrialProtocolID", 0x00120020, "text", "patient", "Identifies the clinical trial."),
    Attribute("ClinicalTrialSubjectID", 0x00120040, "text", "patient", "Identifies the subject within the clinical trial."),
    Attribute("StudyInstanceUID", 0x0020000D, "text", "study", "Identifies the study."),
    Attribute("StudyDate", 0x00080020, "date", "study", "Day on which the study began."),
    Attribute("StudyTime", 0x00080030, "time", "study", "Time at which the study began."),
    Attribute("StudyID", 0x00200010, "text", "study", "Identifies the study for people."),
    Attribute("StudyDescription", 0x00081030, "text", "study", "Description of the study."),
    Attribute("AccessionNumber", 0x00080050, "text", "study", "Number of the order that the study answers."),
    Attribute("ReferringPhysicianName", 0x00080090, "text", "study", "Who referred the patient."),
    Attribute("NameOfPhysiciansReadingStudy", 0x00081060, "texts", "study", "Who reads the study."),
    Attribute("PatientAge", 0x00101010, "text", "study", "The patient's age as written: three digits and D, W, M or Y."),
    Attribute("PatientSize", 0x00101020, "number", "study", "The patient's height, metres."),
    Attribute("PatientWeight", 0x00101030, "number", "study", "The patient's weight, kilograms."),
    Attribute("AdmissionID", 0x00380010, "text", "study", "Identifies the visit."),
    Attribute("TimezoneOffsetFromUTC", 0x00080201, "text", "study", "Offset of the object's dates and times from UTC where they name none: &ZZXX."),
    Attribute("SeriesInstanceUID", 0x0020000E, "text", "series", "Identifies the series."),
    Attribute("Modality", 0x00080060, "text", "series", "Kind of equipment or document, such as CT or SR."),
    Attribute("SeriesNumber", 0x00200011, "integer", "series", "Number of the series within its study."),
    Attribute("SeriesDescription", 0x0008103E, "text", "series", "Description of the series."),
    Attribute("SeriesDate", 0x00080021, "date", "series", "Day on which the series began."),
    Attribute("SeriesTime", 0x00080031, "time", "series", "Time at which the series began."),
    Attribute("BodyPartExamined", 0x00180015, "text", "series", "Part of the body that was examined."),
    Attribute("Laterality", 0x00200060, "text", "series", "Side of a paired body part: R or L."),
    Attribute("ProtocolName", 0x00181030, "text", "series", "The protocol of the acquisition, as its user named it."),
    Attribute("PatientPosition", 0x00185100, "text", "series", "How the patient lay, such as HFS."),
    Attribute("Manufacturer", 0x00080070, "text", "series", "Maker of the equipment."),
    Attribute("ManufacturerModelName", 0x00081090, "text", "series", "Model of the equipment."),
    Attribute("SoftwareVersions", 0x00181020, "texts", "series", "Software of the equipment."),
    Attribute("DeviceSerialNumber", 0x00181000, "text", "series", "Serial number of the equipment."),
    Attribute("StationName", 0x00081010, "text", "series", "Name of the equipment."),
    Attribute("InstitutionName", 0x00080080, "text", "series", "Where the equipment stands."),
    Attribute("InstitutionalDepartmentName", 0x00081040, "text", "series", "Department where the equipment stands."),
    Attribute("PerformingPhysicianName", 0x00081050, "texts", "series", "Who performed the series."),
    Attribute("OperatorsName", 0x00081070, "texts", "series", "Who operated the equipment."),
    Attribute("FrameOfReferenceUID", 0x00200052, "text", "series", "Identifies the space that positions are given in."),
    Attribute("PerformedProcedureStepStartDate", 0x00400244, "date", "series", "Day on which the procedure step began."),
    Attribute("PerformedProcedureStepStartTime", 0x00400245, "time", "series", "Time at which the procedure step began."),
    Attribute("PerformedProcedureStepID", 0x00400253, "text", "series", "Identifies the procedure step."),
    Attribute("PerformedProcedureStepDescription", 0x00400254, "text", "series", "What was done in the procedure step."),
    Attribute(
        "ScheduledProcedureStepID",
        0x00400009,
        "texts",
        "series",
        "Scheduled steps that the series answers, from (0040,0275) *Request Attributes Sequence*.",
        0x00400275,
    ),
    Attribute(
        "RequestedProcedureID",
        0x00401001,
        "texts",
        "series",
        "Requested procedures that the series answers, from (0040,0275) *Request Attributes Sequence*.",
        0x00400275,
    ),
    Attribute("ContrastBolusAgent", 0x00180010, "text", "series", "Contrast agent that was given."),
    Attribute("ContrastBolusRoute", 0x00181040, "text", "series", "How the contrast agent was given."),
    Attribute("ScanningSequence", 0x00180020, "texts", "series", "Kinds of MR sequence, such as SE or GR."),
    Attribute("SequenceVariant", 0x00180021, "texts", "series", "Variants of the MR sequence."),
    Attribute("SequenceName", 0x00180024, "text", "series", "Name of the MR sequence."),
    Attribute("MRAcquisitionType", 0x00180023, "text", "series", "2D or 3D."),
    Attribute("MagneticFieldStrength", 0x00180087, "number", "series", "Field strength, tesla."),
    Attribute("KVP", 0x00180060, "number", "series", "Peak voltage of the X-ray tube, kilovolts."),
    Attribute("SliceThickness", 0x00180050, "number", "series", "Nominal thickness of a slice, millimetres."),
    Attribute("SpacingBetweenSlices", 0x00180088, "number", "series", "Distance between the centres of slices, millimetres."),
    Attribute("RepetitionTime", 0x00180080, "number", "series", "MR repetition time, milliseconds."),
    Attribute("EchoTime", 0x00180081, "number", "series", "MR echo time, milliseconds."),
    Attribute("InversionTime", 0x00180082, "number", "series", "MR inversion time, milliseconds."),
    Attribute("FlipAngle", 0x00181314, "number", "series", "MR flip angle, degrees."),
    Attribute("ConvolutionKernel", 0x00181210, "texts", "series", "Reconstruction kernel."),
    Attribute("ReconstructionDiameter", 0x00181100, "number", "series", "Diameter of the reconstructed field, millimetres."),
    Attribute("DataCollectionDiameter", 0x00180090, "number", "series", "Diameter of the scanned field, millimetres."),
    Attribute(
        "Radiopharmaceutical",
        0x00180031,
        "texts",
        "series",
        "Radiopharmaceuticals, from (0054,0016) *Radiopharmaceutical Information Sequence*.",
        0x00540016,
    ),
    Attribute("Units", 0x00541001, "text", "series", "Units of PET values, such as BQML."),
    Attribute("SOPClassUID", 0x00080016, "text", "instance", "What kind of object it is."),
    Attribute("SOPInstanceUID", 0x00080018, "text", "instance", "Identifies the object, worldwide."),
    Attribute(
        "TransferSyntaxUID", 0x00020010, "text", "instance", "Encoding that the file declares; the one found in its bytes when it declares none."
    ),
    Attribute("SpecificCharacterSet", 0x00080005, "texts", "instance", "Character sets of the object's text."),
    Attribute("InstanceNumber", 0x00200013, "integer", "instance", "Number of the object within its series."),
    Attribute("ImageType", 0x00080008, "texts", "instance", "Origin and kind of the image, such as ORIGINAL, PRIMARY, AXIAL."),
    Attribute("InstanceCreationDate", 0x00080012, "date", "instance", "Day on which the object was made."),
    Attribute("InstanceCreationTime", 0x00080013, "time", "instance", "Time at which the object was made."),
    Attribute("AcquisitionNumber", 0x00200012, "integer", "instance", "Number of the acquisition within its series."),
    Attribute("AcquisitionDate", 0x00080022, "date", "instance", "Day on which the acquisition began."),
    Attribute("AcquisitionTime", 0x00080032, "time", "instance", "Time at which the acquisition began."),
    Attribute(
        "AcquisitionDateTime",
        0x0008002A,
        "datetime",
        "instance",
        "When the acquisition began: in UTC where the value names its offset, else the time as written.",
    ),
    Attribute(
        "AcquisitionDateTimeOffset", 0x0008002A, "offset", "instance", "Offset from UTC that the value names, minutes; NULL when it names none."
    ),
    Attribute("ContentDate", 0x00080023, "date", "instance", "Day on which the content was made."),
    Attribute("ContentTime", 0x00080033, "time", "instance", "Time at which the content was made."),
    Attribute("Rows", 0x00280010, "integer", "instance", "Height of a frame, pixels."),
    Attribute("Columns", 0x00280011, "integer", "instance", "Width of a frame, pixels."),
    Attribute("NumberOfFrames", 0x00280008, "integer", "instance", "Frames of a multi-frame object."),
    Attribute("SamplesPerPixel", 0x00280002, "integer", "instance", "Samples of a pixel: 1 for grey, 3 for colour."),
    Attribute("PhotometricInterpretation", 0x00280004, "text", "instance", "What the samples mean, such as MONOCHROME2."),
    Attribute("PlanarConfiguration", 0x00280006, "integer", "instance", "0: samples of a pixel together; 1: planes."),
    Attribute("BitsAllocated", 0x00280100, "integer", "instance", "Bits that a sample takes."),
    Attribute("BitsStored", 0x00280101, "integer", "instance", "Bits of them that are used."),
    Attribute("HighBit", 0x00280102, "integer", "instance", "The most significant of these."),
    Attribute("PixelRepresentation", 0x00280103, "integer", "instance", "0: unsigned, 1: signed."),
    Attribute("PixelSpacing", 0x00280030, "numbers", "instance", "Distance between rows, and between columns, in the patient, millimetres."),
    Attribute("ImagerPixelSpacing", 0x00181164, "numbers", "instance", "The same at the detector, millimetres."),
    Attribute("PixelAspectRatio", 0x00280034, "integers", "instance", "Height and width of a pixel, relative to each other."),
    Attribute("ImagePositionPatient", 0x00200032, "numbers", "instance", "Centre of the first pixel: x, y, z in millimetres."),
    Attribute("ImageOrientationPatient", 0x00200037, "numbers", "instance", "Direction cosines of the first row and the first column."),
    Attribute("SliceLocation", 0x00201041, "number", "instance", "Position of the slice, millimetres."),
    Attribute("TemporalPositionIdentifier", 0x00200100, "integer", "instance", "Place in time of the image."),
    Attribute("WindowCenter", 0x00281050, "numbers", "instance", "Window centres."),
    Attribute("WindowWidth", 0x00281051, "numbers", "instance", "Window widths."),
    Attribute("VOILUTFunction", 0x00281056, "text", "instance", "How windows are applied."),
    Attribute("RescaleSlope", 0x00281053, "number", "instance", "Slope from stored values to values."),
    Attribute("RescaleIntercept", 0x00281052, "number", "instance", "Intercept from stored values to values."),
    Attribute("RescaleType", 0x00281054, "text", "instance", "Units of rescaled values, such as HU."),
    Attribute("LossyImageCompression", 0x00282110, "text", "instance", "01 when it was compressed with loss at any time."),
    Attribute("LossyImageCompressionRatio", 0x00282112, "numbers", "instance", "Ratios of compressions with loss."),
    Attribute("LossyImageCompressionMethod", 0x00282114, "texts", "instance", "Methods of compressions with loss."),
    Attribute("BurnedInAnnotation", 0x00280301, "text", "instance", "YES when the pixels may show who the patient is."),
    Attribute("RecognizableVisualFeatures", 0x00280302, "text", "instance", "YES when the patient may be recognised in the image."),
    Attribute("QualityControlImage", 0x00280300, "text", "instance", "YES when it shows a phantom."),
    Attribute("ImageLaterality", 0x00200062, "text", "instance", "Side of the body that the image shows."),
    Attribute("ViewPosition", 0x00185101, "text", "instance", "View of a projection, such as CC."),
    Attribute("PresentationIntentType", 0x00080068, "text", "instance", "FOR PRESENTATION or FOR PROCESSING."),
    Attribute("ExposureTime", 0x00181150, "integer", "instance", "Exposure, milliseconds."),
    Attribute("XRayTubeCurrent", 0x00181151, "integer", "instance", "Current of the X-ray tube, milliamperes."),
    Attribute("Exposure", 0x00181152, "integer", "instance", "Exposure, milliampere seconds."),
    Attribute("CTDIvol", 0x00189345, "number", "instance", "CT dose index of the volume, milligray."),
    Attribute("ImageComments", 0x00204000, "text", "instance", "Comments on the image."),
    Attribute("ContentLabel", 0x00700080, "text", "instance", "Label of a segmentation or presentation state."),
    Attribute("ContentDescription", 0x00700081, "text", "instance", "Its description."),
    Attribute("ContentCreatorName", 0x00700084, "text", "instance", "Who made it."),
    Attribute("SegmentationType", 0x00620001, "text", "instance", "BINARY, FRACTIONAL or LABELMAP."),
    Attribute("SegmentLabel", 0x00620005, "texts", "instance", "Labels of the segments, from (0062,0002) *Segment Sequence*.", 0x00620002),
    Attribute("StructureSetLabel", 0x30060002, "text", "instance", "Label of an RT structure set."),
    Attribute("ROIName", 0x30060026, "texts", "instance", "Names of the structures, from (3006,0020) *Structure Set ROI Sequence*.", 0x30060020),
    Attribute("RTPlanLabel", 0x300A0002, "text", "instance", "Label of an RT plan."),
    Attribute("DoseType", 0x30040004, "text", "instance", "Kind of RT dose."),
    Attribute("DoseUnits", 0x30040002, "text", "instance", "GY or RELATIVE."),
    Attribute("DocumentTitle", 0x00420010, "text", "instance", "Title of an encapsulated document."),
    Attribute("MIMETypeOfEncapsulatedDocument", 0x00420012, "text", "instance", "Media type of an encapsulated document."),
    Attribute("CompletionFlag", 0x0040A491, "text", "instance", "COMPLETE or PARTIAL, of a structured report."),
    Attribute("VerificationFlag", 0x0040A493, "text", "instance", "VERIFIED or UNVERIFIED, of a structured report."),
    Attribute(
        "ReferencedSeriesInstanceUIDs", 0x0020000E, "gathered", "instance", "Series that sequences of the object name, at any depth, each once."
    ),
    Attribute("ReferencedSOPInstanceUIDs", 0x00081155, "gathered", "instance", "Objects that sequences of the object name, at any depth, each once."),
)
