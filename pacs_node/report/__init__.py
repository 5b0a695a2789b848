"""One study's predictions -> one answer -> DICOM objects. Pure: no clock, no database, no network."""
