"""What the node says about itself and about the model that answers."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field

from models.card import ModelCard
from pacs_node.web.schemas import Schema


class Health(Schema):
    """The web process is alive."""

    status: str = Field(examples=["ok"])
    api_version: str = Field(examples=["v1"])
    model_loaded: bool = Field(description="The model of `/predict` is in memory; else its first upload waits for it.")


class ReadinessCheck(Schema):
    name: str = Field(examples=["database"])
    ready: bool
    detail: str = Field(examples=["reachable, at this program's revision"])


class Readiness(Schema):
    """Whether the node can do its work, part by part."""

    status: str = Field(examples=["ready"])
    checks: list[ReadinessCheck]


class FindingOut(Schema):
    """One thing the model looks for."""

    name: str
    display: str


class LimitsOut(Schema):
    """Where the answer on one finding turns."""

    threshold: float
    abstain_low: float = Field(description="Between the two ends the model gives no answer.")
    abstain_high: float
    operating_points: dict[str, float] = Field(examples=[{"balanced": 0.5, "high_recall": 0.16}])


class PopulationOut(Schema):
    """Patients whom the model was validated on, with their calibration and their limits by finding."""

    name: str = Field(examples=["children of 1 to 5 years"])
    age_years: tuple[int, int] = Field(examples=[[1, 5]], description="Completed years, both ends included.")
    temperature: float
    bias: list[float]
    limits: dict[str, LimitsOut]


class OutOfDistributionOut(Schema):
    """How unlike the training images an image may be."""

    sha256: str
    limit: float
    false_alarm_rate: float


class ModelInfo(Schema):
    """The model that answers now, from its card."""

    model_config = ConfigDict(from_attributes=True, protected_namespaces=())
    model_name: str = Field(examples=["kermany-resnet50"])
    version: str = Field(examples=["1.0.0"])
    network: str
    accuracy: float | None = Field(
        examples=[0.962], description="At the threshold, on the images that `metrics` names; null where not measured."
    )
    num_parameters: int = Field(examples=[24_559_170])
    device: str = Field(examples=["cpu"], description="`auto` until the model is loaded.")
    class_names: list[str] = Field(examples=[["normal", "pneumonia"]])
    image_size: int = Field(examples=[224])
    findings: list[FindingOut]
    populations: list[PopulationOut] = Field(description="The first one's limits are used where the age is unknown.")
    out_of_distribution: OutOfDistributionOut | None
    recipe: str
    git_revision: str
    weights_sha256: str
    intended_use: str
    limitations: list[str]
    licence: str
    training_data: dict[str, Any]
    metrics: dict[str, Any]

    @classmethod
    def of(cls, card: ModelCard, parameter_count: int, device: str) -> ModelInfo:
        """Return what the card says of the model that answers, and what it runs on."""
        return cls(
            model_name=card.name,
            version=card.version,
            network=card.network,
            accuracy=_accuracy_of(card),
            num_parameters=parameter_count,
            device=device,
            class_names=list(card.outputs),
            image_size=card.input_size,
            findings=[FindingOut.model_validate(finding) for finding in card.findings],
            populations=[PopulationOut.model_validate(population) for population in card.populations],
            out_of_distribution=(
                OutOfDistributionOut.model_validate(card.out_of_distribution) if card.out_of_distribution else None
            ),
            recipe=card.recipe,
            git_revision=card.git_revision,
            weights_sha256=card.weights_sha256,
            intended_use=card.intended_use,
            limitations=list(card.limitations),
            licence=card.licence,
            training_data=dict(card.training_data),
            metrics=dict(card.metrics),
        )


def _accuracy_of(card: ModelCard) -> float | None:
    """Return the accuracy of the first finding at the operating point that the first population uses."""
    finding, population = card.findings[0].name, card.populations[0]
    points = card.metrics.get(population.name, {}).get(finding, {}).get("operating_points", {})
    used = [
        point.get("accuracy")
        for point in points.values()
        if point.get("threshold") == population.limits[finding].threshold
    ]
    return used[0] if used else None
