"""Where the node keeps what it has, and what it does by the clock.

The sections [node], [database], [store], [queue], [schedule] and [log].
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from pacs_node.settings.section import LINE, Section

LEAST_QUARANTINE_DAYS = 7
DATABASES = ("sqlite:///", "postgresql+pg8000://")


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


class ScheduleSettings(Section):
    settle_every_s: float = Field(0.5, ge=0.01)
    seal_every_s: float = Field(5, ge=0.01)
    housekeeping_every_s: float = Field(300, ge=0.01)
    verify_every_hours: float = Field(24, ge=0.001)


class LogSettings(Section):
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    max_mb: float = Field(20, ge=0.01)
    files: int = Field(10, ge=1, le=10_000)
