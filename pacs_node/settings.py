"""Frozen settings from `config.toml` and the environment; refuses what it does not know.

Built once in `cli` and handed over: each room gets its own section only.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pacs_node.errors import ConfigError

ENVIRONMENT_PREFIX = "PACS_NODE_"
NOT_SETTINGS = {"PACS_NODE_CONFIG", "PACS_NODE_DATA"}
"""Variables that name the file and the test data, not a key."""
DEFAULT_CONFIG = Path("config.toml")


LEAST_QUARANTINE_DAYS = 7
UNIT_S = {"s": 1, "hours": 3600, "days": 86_400}
"""Of the keys that end so."""
CENTURY_S = 100 * 366 * 86_400
LINE = r"^[^\\\x00-\x1f\x7f]+$"
"""Printable, without a backslash: VR LO (PS3.5 6.2), and a name that stands in lists and logs."""
DATABASES = ("sqlite:///", "postgresql+pg8000://")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="after")
    def _refuse_what_no_clock_counts(self) -> Self:
        """Refuse times with which no date can be calculated."""
        for name in type(self).model_fields:
            unit, value = name.rpartition("_")[2], getattr(self, name)
            if unit in UNIT_S and value * UNIT_S[unit] > CENTURY_S:
                raise ValueError(f"{name} = {value:g} is more than a century")
        return self


def is_loopback(host: str) -> bool:
    """Tell whether `host` is an address (or `localhost`) that other machines cannot reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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
    peers: tuple[PeerSettings, ...] = ()

    _check_title = field_validator("ae_title")(_ae_title)

    @model_validator(mode="after")
    def _refuse_open_door(self) -> DicomSettings:
        if not is_loopback(self.host) and not self.peers:
            raise ValueError(f"host {self.host} is beyond loopback: list who may send in [[dicom.peers]] first")
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


class DestinationSettings(Section):
    name: str = Field(min_length=1, max_length=64, pattern=LINE)
    ae_title: str
    host: str = Field(pattern=r"^\S+$")
    port: int = Field(ge=1, le=65535)
    send_not_analysed: bool = True

    _check_title = field_validator("ae_title")(_ae_title)


class WebSettings(Section):
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)

    @field_validator("host")
    @classmethod
    def _stay_home(cls, value: str) -> str:
        if not is_loopback(value):
            raise ValueError(
                f"host {value} is beyond loopback: the node has no logins yet; use a tunnel or a proxy with a login"
            )
        return value


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
    study: StudySettings = StudySettings()
    delivery: DeliverySettings = DeliverySettings()
    destinations: tuple[DestinationSettings, ...] = ()
    web: WebSettings = WebSettings()
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
        is_known = field is not None and (
            key == "" or (isinstance(annotation, type) and key in getattr(annotation, "model_fields", {}))
        )
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
    return settings.model_copy(update={"node": node, "model": model})
