"""Series and results to and from DICOM servers: DICOMweb and the DICOM network protocol, with one set of calls."""
