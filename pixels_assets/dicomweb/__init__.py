"""The web server: DICOMweb (DICOM PS3.18) over a lake, and the place where a viewer is served. Stands on dicom, intake and lake; knows no Dagster."""
