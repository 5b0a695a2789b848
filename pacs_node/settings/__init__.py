"""Frozen settings from `config.toml` and the environment; refuses what it does not know.

Built once in `cli` and handed over: each room gets its own section only.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pacs_node.errors import ConfigError
from pacs_node.settings.codes import CodesSettings
from pacs_node.settings.section import LINE, Section
from pacs_node.settings.section import is_loopback as is_loopback
from pacs_node.settings.web import WEB_FILES, WebSettings

ENVIRONMENT_PREFIX = "PACS_NODE_"
NOT_SETTINGS = {"PACS_NODE_CONFIG", "PACS_NODE_DATA"}
"""Variables that name the file and the test data, not a key."""
DEFAULT_CONFIG = Path("config.toml")


LEAST_QUARANTINE_DAYS = 7
TLS_FILES = ("tls_certificate", "tls_private_key", "tls_ca")
DATABASES = ("sqlite:///", "postgresql+pg8000://")


def _ae_title(value: str) -> str:
    """Check an AE title (PS3.5 6.2, VR AE): 1-16 printable characters without backslash, outer blanks dropped."""
    title = value.strip(" ")
    if not 1 <= len(title) <= 16 or "\\" in title or not title.isascii() or not title.isprintable():
        raise ValueError(f"{value!r} is not an AE title: 1-16 printable ASCII characters without backslash")
    return title


class NodeSettings(Section):
    name: str = Field("pacs-node-1", min_length=1, max_length=64, pattern=LINE)
    data_dir: Path = Path("var")
    secrets_dir: Path = Path("var/secrets")

    @field_validator("data_dir", "secrets_dir", mode="before")
    @classmethod
    def _name_a_folder(cls, value: object) -> object:
        if value == "":
            raise ValueError("name a folder: an empty path would be the one of this file")
        return value


class PeerSettings(Section):
    ae_title: str
    addresses: tuple[str, ...] = Field(min_length=1)
    may_store: bool = True
    is_urgent: bool = False
    send_priors: bool = False
    may_reject: bool = False
    """Its rejection notes (IHE IOCM) count for images that others sent too: the PACS, not a modality."""
    certificates: tuple[str, ...] = ()
    """Under TLS: the only certificates that may call by this title, each a name in it or `sha256:` and its digest."""

    _check_title = field_validator("ae_title")(_ae_title)

    @field_validator("addresses")
    @classmethod
    def _check_addresses(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            ipaddress.ip_network(address, strict=False)
        return value


class DicomSettings(Section):
    ae_title: str = "PACS_NODE"
    host: str = "127.0.0.1"
    port: int = Field(11112, ge=0, le=65535)
    listeners: int = Field(2, ge=1, le=64)
    max_pdu_bytes: int = Field(131072, ge=4096, le=1 << 24)
    max_associations: int = Field(50, ge=1)
    max_associations_per_ae: int = Field(20, ge=1)
    acse_timeout_s: float = Field(30, gt=0)
    dimse_timeout_s: float = Field(30, gt=0)
    network_timeout_s: float = Field(60, gt=0)
    drain_timeout_s: float = Field(30, ge=0)
    tls: bool = False
    tls_certificate: Path | None = None
    tls_private_key: Path | None = None
    tls_ca: Path | None = None
    storage_commitment: bool = False
    peers: tuple[PeerSettings, ...] = ()

    _check_title = field_validator("ae_title")(_ae_title)

    @model_validator(mode="after")
    def _refuse_open_door(self) -> DicomSettings:
        if not is_loopback(self.host) and not self.peers:
            raise ValueError(f"host {self.host} is beyond loopback: list who may send in [[dicom.peers]] first")
        return self

    @model_validator(mode="after")
    def _name_the_certificates(self) -> DicomSettings:
        missing = [name for name in TLS_FILES if getattr(self, name) is None]
        if self.tls and missing:
            raise ValueError(f"tls = true needs {' and '.join(missing)}: PEM files")
        if not self.tls and any(peer.certificates for peer in self.peers):
            raise ValueError("peers: `certificates` are compared under TLS only: set dicom.tls = true")
        return self


class DatabaseSettings(Section):
    url: str = ""

    @field_validator("url")
    @classmethod
    def _know_the_database(cls, value: str) -> str:
        if value and not (value.startswith(DATABASES) and value not in DATABASES):
            raise ValueError(f"begins with none of {' and '.join(DATABASES)}, or names no database")  # never quoted
        return value


class StoreSettings(Section):
    min_free_gb: float = Field(2.0, ge=0)
    retention_days: int = Field(30, ge=0)
    quarantine_days: int = Field(90, ge=0)
    orphan_hours: float = Field(24, gt=0)

    @field_validator("quarantine_days")
    @classmethod
    def _leave_time_to_look(cls, value: int) -> int:
        if 0 < value < LEAST_QUARANTINE_DAYS:
            raise ValueError(f"{value} days: nobody may have looked by then; at least {LEAST_QUARANTINE_DAYS}, or 0")
        return value


class QueueSettings(Section):
    max_waiting: int = Field(20000, ge=1)
    lease_s: float = Field(60, ge=0.1)
    max_attempts: int = Field(5, ge=1)
    max_crashes: int = Field(3, ge=1)
    retry_base_s: float = Field(2.0, gt=0)
    retry_cap_s: float = Field(900.0, gt=0)
    age_step_s: float = Field(300, gt=0)


class ModelSettings(Section):
    folder: str = ""
    age_policy: Literal["refuse", "warn"] = "refuse"


class WorkerSettings(Section):
    processes: int = Field(1, ge=1, le=64)
    batch_size: int = Field(8, ge=1, le=256)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = Field(0, ge=0)
    decode_processes: int = Field(2, ge=1, le=64)
    decode_timeout_s: float = Field(30, gt=0)
    decode_memory_mb: int = Field(4096, ge=512)


class PredictSettings(Section):
    """Of `/predict`: one upload, one answer. Device, precision, threads and decoding limits are those of [worker]."""

    is_preloaded: bool = True
    max_upload_mb: float = Field(32, gt=0, le=60)
    max_waiting: int = Field(64, ge=8, le=10_000)
    batch_size: int = Field(16, ge=1, le=256)
    batch_wait_ms: float = Field(4, ge=0, le=1000)
    decode_processes: int = Field(2, ge=1, le=64)
    timeout_s: float = Field(60, gt=0)
    remembered: int = Field(1000, ge=0, le=100_000)


class StudySettings(Section):
    settle_s: float = Field(2.0, ge=0)
    idle_s: float = Field(10.0, gt=0)
    report_wait_s: float = Field(60.0, ge=0)
    max_study_age_days: int = Field(30, ge=0)


class DeliverySettings(Section):
    max_attempts: int = Field(400, ge=1)
    retry_base_s: float = Field(2.0, gt=0)
    retry_cap_s: float = Field(900.0, gt=0)
    connect_timeout_s: float = Field(10, gt=0)
    commitment_wait_hours: float = Field(24, gt=0)
    commitment_attempts: int = Field(5, ge=1)


class DestinationSettings(Section):
    """Where results go, and the profile by which they are delivered there."""

    name: str = Field(min_length=1, max_length=64, pattern=LINE)
    kind: Literal["dimse", "stow"] = "dimse"
    ae_title: str = ""
    host: str = Field("", pattern=r"^\S*$")
    port: int = Field(0, ge=0, le=65535)
    url: str = ""
    """Of a STOW-RS service, up to and without `/studies`."""
    token_file: Path | None = None
    """Holds the bearer token of that service."""
    objects: tuple[Literal["sr", "heatmap", "gsps", "seg"], ...] = Field(("sr", "heatmap"), min_length=1)
    sr_classes: tuple[Literal["comprehensive_3d", "comprehensive", "enhanced"], ...] = Field(
        ("comprehensive_3d", "comprehensive", "enhanced"), min_length=1
    )
    transfer_syntaxes: tuple[Literal["explicit", "implicit"], ...] = Field(("explicit", "implicit"), min_length=1)
    send_not_analysed: bool = True
    send_rejection_notes: bool = False
    storage_commitment: bool = False
    tls: bool = False
    tls_hostname: str = ""
    """The name in the peer's certificate; empty: `host`."""
    tls_certificate: Path | None = None
    tls_private_key: Path | None = None
    tls_ca: Path | None = None
    """Empty: those of [dicom]."""

    @property
    def address(self) -> str:
        """For people: where it is."""
        return self.url if self.kind == "stow" else f"{self.ae_title}@{self.host}:{self.port}"

    @field_validator("objects")
    @classmethod
    def _send_the_report_first(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "sr" not in value:
            raise ValueError('"sr" is missing: a picture without its report explains nothing')
        return value

    @model_validator(mode="after")
    def _give_the_address_of_its_kind(self) -> DestinationSettings:
        if self.kind == "stow":
            if not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", self.url):
                raise ValueError("url: a STOW-RS destination needs http(s)://HOST[:PORT]/PATH, without user or query")
            if self.storage_commitment:
                raise ValueError('storage_commitment is a DIMSE service: not for kind = "stow"')
            return self
        if self.url or self.token_file:
            raise ValueError('url and token_file belong to kind = "stow"')
        if not (self.ae_title and self.host and self.port):
            raise ValueError("a destination needs ae_title, host and port")
        return self

    @field_validator("ae_title")
    @classmethod
    def _check_title(cls, value: str) -> str:
        return _ae_title(value) if value else value


class ReviewSettings(Section):
    send_verified: bool = False
    verified_delay_s: float = Field(10, ge=0)
    organization: str = Field("", max_length=64)
    """Stands beside the reader's name in a verified report."""
    answer_first: bool = False
    """Readers answer before the page shows them the model's answer."""

    @model_validator(mode="after")
    def _name_who_answers(self) -> ReviewSettings:
        if self.send_verified and not re.fullmatch(LINE, self.organization):
            raise ValueError("send_verified = true needs `organization`: whose readers answer for the reports")
        return self


class ScheduleSettings(Section):
    settle_every_s: float = Field(0.5, ge=0.01)
    seal_every_s: float = Field(5, ge=0.01)
    housekeeping_every_s: float = Field(300, ge=0.01)
    verify_every_hours: float = Field(24, ge=0.001)


class LogSettings(Section):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    max_mb: float = Field(20, ge=0.01)
    files: int = Field(10, ge=1, le=10_000)


class Settings(BaseSettings):
    """The whole tree; every path absolute."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", case_sensitive=False
    )
    node: NodeSettings = NodeSettings()
    dicom: DicomSettings = DicomSettings()
    database: DatabaseSettings = DatabaseSettings()
    store: StoreSettings = StoreSettings()
    queue: QueueSettings = QueueSettings()
    model: ModelSettings = ModelSettings()
    worker: WorkerSettings = WorkerSettings()
    predict: PredictSettings = PredictSettings()
    study: StudySettings = StudySettings()
    codes: CodesSettings = CodesSettings()
    delivery: DeliverySettings = DeliverySettings()
    destinations: tuple[DestinationSettings, ...] = ()
    web: WebSettings = WebSettings()
    reviews: ReviewSettings = ReviewSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _name_destinations_apart(self) -> Settings:
        names = [destination.name for destination in self.destinations]
        if len(names) != len(set(names)):
            raise ValueError("two [[destinations]] have the same name")
        return self

    @field_validator("destinations")
    @classmethod
    def _lend_certificates(
        cls, value: tuple[DestinationSettings, ...], known: ValidationInfo
    ) -> tuple[DestinationSettings, ...]:
        """Give a TLS destination the files of [dicom] that it does not name itself."""
        dicom = known.data.get("dicom", DicomSettings())
        lent = tuple(
            one.model_copy(update={name: getattr(one, name) or getattr(dicom, name) for name in TLS_FILES})
            for one in value
        )
        for one in lent:
            missing = [name for name in TLS_FILES if getattr(one, name) is None]
            if one.tls and one.kind == "dimse" and missing:
                raise ValueError(f"destination {one.name}: tls = true needs {' and '.join(missing)}: PEM files")
        return lent

    @property
    def store_dir(self) -> Path:
        return self.node.data_dir / "store"

    @property
    def log_dir(self) -> Path:
        return self.node.data_dir / "log"

    @property
    def model_dir(self) -> Path:
        return Path(self.model.folder) if self.model.folder else self.node.data_dir / "models"

    @property
    def database_url(self) -> str:
        return self.database.url or f"sqlite:///{self.node.data_dir / 'node.sqlite'}"


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings from `path`, else `$PACS_NODE_CONFIG`, else `config.toml`; the environment wins.

    Raises
    ------
    ConfigError
        The file is missing or not TOML, or a key or environment variable is unknown or out of range.
    """
    path = path or Path(os.environ.get("PACS_NODE_CONFIG", DEFAULT_CONFIG))
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give one by --config or PACS_NODE_CONFIG") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    _refuse_unknown_environment()
    try:
        settings = Settings(**tree)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None
    except ValueError as error:  # pydantic-settings: an environment value that is not JSON
        raise ConfigError(f"environment: {error}") from None
    return _absolute(settings, path.resolve().parent)


def _refuse_unknown_environment() -> None:
    """`extra="forbid"` does not see a typo in an environment name."""
    for variable in os.environ:
        if not variable.upper().startswith(ENVIRONMENT_PREFIX) or variable in NOT_SETTINGS:
            continue
        section, _, key = variable.upper().removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        field = Settings.model_fields.get(section)
        annotation = field.annotation if field else None
        keys = getattr(annotation, "model_fields", {}) if isinstance(annotation, type) else {}
        is_known = field is not None and (key == "" or key.partition("__")[0] in keys)
        if not is_known:
            raise ConfigError(f"environment variable {variable}: no such setting; see config.toml for the names")


def _first_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"]) or "settings"
    message = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}"


def _absolute(settings: Settings, base: Path) -> Settings:
    node = settings.node.model_copy(
        update={"data_dir": base / settings.node.data_dir, "secrets_dir": base / settings.node.secrets_dir}
    )
    model = settings.model
    if model.folder:
        model = model.model_copy(update={"folder": str(base / model.folder)})
    dicom, destinations = settings.dicom, settings.destinations
    return settings.model_copy(
        update={
            "node": node,
            "model": model,
            "dicom": dicom.model_copy(update=_below(base, dicom, *TLS_FILES)),
            "web": settings.web.model_copy(update=_below(base, settings.web, *WEB_FILES)),
            "destinations": tuple(
                one.model_copy(update=_below(base, one, "token_file", *TLS_FILES)) for one in destinations
            ),
        }
    )


def _below(base: Path, section: Section, *names: str) -> dict[str, Path]:
    """Return the files that a section names, as absolute paths."""
    return {name: base / file for name in names if (file := getattr(section, name)) is not None}
