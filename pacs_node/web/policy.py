"""What a browser may do with our answers, set on each one that does not set its own; and how large a request may be."""

from __future__ import annotations

_COMMON = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'; "
)
POLICY = _COMMON + "style-src 'self'; img-src 'self'"
REFERENCE_POLICY = _COMMON + "style-src 'self' 'unsafe-inline'; img-src 'self' data:; worker-src blob:"
"""For /docs and /redoc alone: their libraries write style elements and draw icons from data addresses."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""`no-store` because almost every answer names a patient or shows one."""
TRANSPORT_SECURITY = "max-age=31536000; includeSubDomains"
"""Strict-Transport-Security, sent over TLS alone (RFC 6797 7.2)."""

BODY_MAX_BYTES = 65_536
UPLOAD_MAX_BYTES = {"/predict": 64 << 20, "/predict/batch": 256 << 20}
"""Of those who may ask for predictions; everybody else, and every other address, sends at most `BODY_MAX_BYTES`."""
