"""How images are judged and studies settled: [model], [worker], [predict] and [study]."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pacs_node.settings.section import Section


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
