"""What this node asks of other DICOM applications, on associations that it opens; TLS for both directions."""
