"""What a browser may do with our answers; set on each one that does not set its own."""

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
