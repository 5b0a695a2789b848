"""The facts. Knows SQLAlchemy; knows no DICOM library, no torch and no HTTP."""
