from __future__ import annotations

from pathlib import Path

import pytest

from pacs_node.errors import ConfigError
from pacs_node.settings import Settings, load_settings
from pacs_node.settings.trail import changed_keys
from pacs_node.wiring import registry_of, require_findings

SHIPPED = Path(__file__).parents[2] / "config.toml"


def coded(**changes: str) -> str:
    code = {"value": "1", "scheme": "99X", "meaning": "one"} | changes
    return "{ code = { " + ", ".join(f'{key} = "{text}"' for key, text in code.items()) + " } }"


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_config_states_every_default() -> None:
    shipped = load_settings(SHIPPED)
    defaults = Settings()
    for name in Settings.model_fields:
        if name != "node":
            assert getattr(shipped, name) == getattr(defaults, name), name
    assert shipped.node.name == defaults.node.name


def test_shipped_config_names_every_key() -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    for name, field in Settings.model_fields.items():
        for key in getattr(field.annotation, "model_fields", {}):
            is_table = f"[[{name}.{key}]]" in text or f"\n[{name}.{key}]" in text
            assert f"\n{key} =" in text or f"\n# {key} =" in text or is_table, f"{name}.{key}"


def test_relative_folders_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = load_settings(write(tmp_path, '[node]\ndata_dir = "data"\n'))
    assert settings.node.data_dir == tmp_path / "data"
    assert settings.database_url == f"sqlite:///{tmp_path / 'data' / 'node.sqlite'}"


def test_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACS_NODE_DICOM__PORT", "10104")
    settings = load_settings(write(tmp_path, "[dicom]\nport = 104\nlisteners = 1\n"))
    assert (settings.dicom.port, settings.dicom.listeners) == (10104, 1)


def test_a_changed_key_is_named_once_without_its_value(tmp_path: Path) -> None:
    def start(text: str) -> list[str]:
        return changed_keys(load_settings(write(tmp_path, f'[node]\ndata_dir = "."\n{text}')))

    assert start("") == []
    assert start("[web]\nport = 8001\n[study]\nsettle_s = 3\n") == ["study.settle_s", "web.port"]
    assert start("[web]\nport = 8001\n[study]\nsettle_s = 3\n") == []
    assert "8001" not in (tmp_path / "settings.digests").read_text(encoding="ascii")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[dicom]\nprot = 104\n", "dicom.prot: unknown key"),
        ("[dicon]\nport = 104\n", "dicon: unknown key"),
        ("[dicom]\nport = 70000\n", "dicom.port: "),
        ('[dicom]\nae_title = "A_TITLE_THAT_IS_TOO_LONG"\n', "is not an AE title"),
        ('[dicom]\nhost = "0.0.0.0"\n', "list who may send"),
        ('[web]\nhost = "0.0.0.0"\n', "give tls_certificate"),
        ('[web]\nhost = "0.0.0.0"\nauthentication = "off"\n', "needs authentication"),
        ('[web]\nhost = "0.0.0.0"\nallow_plain_http = true\n', "by which name browsers call"),
        ('[web]\ntls_certificate = "web.crt"\n', "belong together"),
        ('[web]\ncors_origins = ["*"]\n', "not an origin"),
        ('[web.oidc]\nissuer = "http://login.example.org"\n', "https://"),
        ('[web.oidc]\nissuer = "https://login.example.org"\n', "client_id"),
        ('[[web.groups]]\nname = "ward a"\nsenders = ["CR"]\n', "web.groups.0.name"),
        ('[[dicom.peers]]\nae_title = "CR"\naddresses = ["999.1.1.1"]\n', "dicom.peers.0.addresses"),
        ('[[destinations]]\nname="a"\nae_title="A"\nhost="h"\nport=1\n' * 2, "same name"),
        ("[dicom\n", "cannot be read"),
        ("[study]\nidle_s = inf\n", "study.idle_s: "),
        ("[queue]\nlease_s = nan\n", "queue.lease_s: "),
        ("[store]\nretention_days = 99999999999\n", "store: retention_days = 1e+11 is more than a century"),
        ("[schedule]\nverify_every_hours = 1e12\n", "more than a century"),
        ("[schedule]\nsettle_every_s = 1e-9\n", "schedule.settle_every_s: "),
        ('[database]\nurl = "mysql://host/name"\n', "database.url: begins with none of"),
        ('[database]\nurl = "sqlite:///"\n', "database.url: begins with none of"),
        ('[node]\ndata_dir = ""\n', "node.data_dir: name a folder"),
        ('[[destinations]]\nname="a\\n"\nae_title="A"\nhost="h"\nport=1\n', "destinations.0.name"),
        ('[[destinations]]\nname="a"\nae_title="A"\nhost=" "\nport=1\n', "destinations.0.host"),
        (f"[codes]\nfinding_site = {coded(scheme='A_SCHEME_TOO_LONG')}\n", "codes.finding_site.code.scheme: "),
        (f"[codes]\nfinding_site = {coded(meaning='m' * 65)}\n", "codes.finding_site.code.meaning: "),
        (f"[codes]\nprocedure_reported = {coded(value='')}\n", "codes.procedure_reported.code.value: "),
        (f"[codes]\nprocedure_reported = {coded(value='v' * 257)}\n", "codes.procedure_reported.code.value: "),
        (
            f"[codes]\nsegment_type = {coded(value=' 1')}\n",
            "segment_type.code.value: begins or ends with a blank",
        ),
        (
            f"[codes]\nsegment_type = {coded(value='1*2'.replace('*', chr(92) * 2))}\n",
            "codes.segment_type.code.value: ",
        ),
        ("[codes]\nfinding_sight = {}\n", "codes.finding_sight: unknown key"),
        ("[codes]\nfindings = { pneumonia = { equivalents = [{ value = '1' }] } }\n", "equivalents.0.scheme: "),
        ("[store]\nquarantine_days = 3\n", "store.quarantine_days: 3 days: nobody may have looked by then"),
    ],
)
def test_bad_config_is_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        load_settings(write(tmp_path, text))
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_codes_for_a_finding_that_no_model_has_are_refused(tmp_path: Path) -> None:
    said = "[codes]\nfindings = { %s = { equivalents = [{ value = '1', scheme = '99X', meaning = 'x' }] } }\n"
    known, unknown = (load_settings(write(tmp_path, said % name)) for name in ("pneumonia", "pneumonai"))
    require_findings(known, registry_of(known))
    with pytest.raises(ConfigError, match=r"codes.findings.pneumonai: no model here .*pneumonia"):
        require_findings(unknown, registry_of(unknown))


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_settings(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("variable", ["PACS_NODE_DICOM__PROT", "PACS_NODE_DICON__PORT", "PACS_NODE_PORT"])
def test_typo_in_environment_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(ConfigError, match=variable):
        load_settings(write(tmp_path, ""))


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().dicom.port = 1  # type: ignore[misc]
