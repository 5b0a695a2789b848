"""Certificates for the tests, real ones, made by openssl when they are needed: an authority and what it signs."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.peers import required_program


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One party's files, in PEM."""

    certificate: Path
    private_key: Path
    ca: Path

    def settings(self) -> dict[str, object]:
        """Return the keys that `[dicom]` and `[[destinations]]` name them by."""
        return {
            "tls": True,
            "tls_certificate": self.certificate,
            "tls_private_key": self.private_key,
            "tls_ca": self.ca,
        }


class Authority:
    """Signs certificates for `localhost` and 127.0.0.1."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.certificate, self._key = folder / f"{name}.crt", folder / f"{name}.key"
        subject = ("-subj", f"/CN=Test {name}", "-days", "2", "-nodes", "-newkey", "rsa:2048")
        _openssl("req", "-x509", *subject, "-keyout", self._key, "-out", self.certificate)

    def sign(self, name: str, alternatives: str = "DNS:localhost,IP:127.0.0.1") -> Certificate:
        """Return a new certificate and its key."""
        paths = {suffix: self._folder / f"{name}.{suffix}" for suffix in ("crt", "key", "csr", "ext")}
        request = ("-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}")
        _openssl("req", *request, "-keyout", paths["key"], "-out", paths["csr"])
        use = "extendedKeyUsage=serverAuth,clientAuth"
        paths["ext"].write_text(f"subjectAltName={alternatives}\n{use}\n", encoding="ascii")
        signer = ("-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", "2")
        _openssl("x509", "-req", "-in", paths["csr"], *signer, "-extfile", paths["ext"], "-out", paths["crt"])
        return Certificate(certificate=paths["crt"], private_key=paths["key"], ca=self.certificate)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run([required_program("openssl"), *map(str, arguments)], check=True, capture_output=True, timeout=60)
