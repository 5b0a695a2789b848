"""TLS settings that cannot be used are one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pacs_node.dimse.tls import calling_context, listening_context, names_of, require_certificates
from pacs_node.errors import ConfigError
from pacs_node.listener.admission import find_peer
from pacs_node.settings import DicomSettings, PeerSettings, Settings


def test_without_tls_there_is_no_context() -> None:
    assert listening_context(DicomSettings()) is None


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({}, "dicom: tls_certificate .*node.crt: No such file"),
        ({"node.crt": "x", "node.key": "y", "ca.crt": "z"}, "are no PEM pair, or the key has a passphrase"),
    ],
)
def test_file_that_cannot_be_used_is_named(tmp_path: Path, contents: dict[str, str], message: str) -> None:
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    files = {
        "tls_certificate": tmp_path / "node.crt",
        "tls_private_key": tmp_path / "node.key",
        "tls_ca": tmp_path / "ca.crt",
    }
    with pytest.raises(ConfigError, match=message):
        listening_context(DicomSettings(tls=True, **files))
    settings = Settings(
        dicom=files,  # a destination that names no files of its own is lent those
        destinations=[{"name": "main", "ae_title": "PACS", "host": "h", "port": 104, "tls": True}],
    )
    with pytest.raises(ConfigError, match=message.replace("dicom", "destination main")):
        calling_context(settings.destinations[0])
    with pytest.raises(ConfigError):
        require_certificates(settings)


def test_stow_destination_has_the_files_of_dicom_only_by_its_switch(tmp_path: Path) -> None:
    files = {name: tmp_path / name for name in ("tls_certificate", "tls_private_key", "tls_ca")}
    stow = {"kind": "stow", "url": "https://h/w"}
    settings = Settings(dicom=files, destinations=[stow | {"name": "a"}, stow | {"name": "b", "tls": True}])
    assert [one.tls_ca for one in settings.destinations] == [None, tmp_path / "tls_ca"]
    with pytest.raises(ConfigError, match=r"destination b: tls_ca .*: No such file"):
        require_certificates(settings)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"dicom": {"tls": True}}, "tls = true needs tls_certificate and tls_private_key and tls_ca"),
        (
            {"dicom": {"peers": [{"ae_title": "A", "addresses": ["127.0.0.1"], "certificates": ["a"]}]}},
            "under TLS only",
        ),
        (
            {"destinations": [{"name": "main", "ae_title": "PACS", "host": "h", "port": 104, "tls": True}]},
            "destination main: tls = true needs tls_certificate",
        ),
        ({"destinations": [{"name": "w", "kind": "stow", "url": "ftp://h"}]}, "needs http"),
        (
            {"destinations": [{"name": "w", "kind": "stow", "url": "http://h/w", "storage_commitment": True}]},
            "DIMSE service",
        ),
        ({"destinations": [{"name": "w", "kind": "stow", "url": "https://h/w", "tls": True}]}, "w: tls = true needs"),
        ({"destinations": [{"name": "w", "kind": "stow", "url": "http://h/w", "tls_ca": "ca"}]}, "TLS needs https"),
        ({"destinations": [{"name": "w", "kind": "stow", "url": "http://h/w", "tls": True}]}, "TLS needs https"),
        ({"destinations": [{"name": "w", "kind": "stow", "url": "https://h/w", "tls_hostname": "x"}]}, "the url names"),
        (
            {"destinations": [{"name": "m", "ae_title": "P", "host": "h", "port": 1, "objects": ["heatmap"]}]},
            '"sr" is missing',
        ),
    ],
)
def test_settings_that_contradict_themselves_are_refused(section: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Settings(**section)  # type: ignore[arg-type]


def test_title_belongs_to_the_certificates_that_its_entry_names() -> None:
    fingerprint = next(iter(names_of(b"a certificate")))
    assert fingerprint.startswith("sha256:")
    room = PeerSettings(ae_title="ROOM", addresses=("127.0.0.1",), certificates=("room.example.org", fingerprint))
    settings = DicomSettings.model_construct(peers=(room,), ae_title="PACS_NODE")
    for names, is_let_in in (({"room.example.org"}, True), ({fingerprint}, True), ({"ward"}, False), (set(), False)):
        assert (find_peer(settings, "ROOM", "127.0.0.1", frozenset(names)) is not None) is is_let_in
