"""Frozen settings from `config.toml` and the environment; refuses what it does not know.

Built once in `cli` and handed over: each room gets its own section only.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

from pydantic import ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pacs_node.errors import ConfigError
from pacs_node.settings.codes import CodesSettings
from pacs_node.settings.delivery import DeliverySettings, DestinationSettings, ReviewSettings
from pacs_node.settings.dicom import TLS_FILES, DicomSettings, PeerSettings
from pacs_node.settings.house import (
    DatabaseSettings,
    LogSettings,
    NodeSettings,
    QueueSettings,
    ScheduleSettings,
    StoreSettings,
)
from pacs_node.settings.judging import ModelSettings, PredictSettings, StudySettings, WorkerSettings
from pacs_node.settings.section import Section
from pacs_node.settings.web import WEB_FILES, WebSettings

__all__ = [
    "DatabaseSettings",
    "DeliverySettings",
    "DestinationSettings",
    "DicomSettings",
    "LogSettings",
    "ModelSettings",
    "NodeSettings",
    "PeerSettings",
    "PredictSettings",
    "QueueSettings",
    "ReviewSettings",
    "ScheduleSettings",
    "Settings",
    "StoreSettings",
    "StudySettings",
    "WorkerSettings",
    "load_settings",
]

ENVIRONMENT_PREFIX = "PACS_NODE_"
NOT_SETTINGS = {"PACS_NODE_CONFIG", "PACS_NODE_DATA"}
"""Variables that name the file and the test data, not a key."""
DEFAULT_CONFIG = Path("config.toml")


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
            if one.tls
            else one
            for one in value
        )
        for one in lent:
            missing = [name for name in TLS_FILES if getattr(one, name) is None]
            if one.tls and missing:
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
