"""The coded concepts of one report: what the configuration said when it was frozen, else the shipped codes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from highdicom.sr.coding import CodedConcept
from pydicom.sr.coding import Code

from models.card import Finding
from pacs_node.report import codes


@dataclass(frozen=True, slots=True)
class Concepts:
    """`said` is `CodesSettings.said()`: by the name of the concept, a code in place of ours and its equivalents."""

    said: Mapping[str, Any] = field(default_factory=dict)

    def finding(self, finding: Finding) -> CodedConcept:
        """Return what the model card, or the configuration, calls a finding."""
        shipped = Code(finding.code_value, finding.coding_scheme_designator, finding.code_meaning)
        return _concept(shipped, self.said.get("findings", {}).get(finding.name, {}))

    @property
    def finding_site(self) -> CodedConcept:
        return _concept(codes.LUNG, self.said.get("finding_site", {}))

    @property
    def procedure_reported(self) -> CodedConcept:
        return _concept(codes.RADIOGRAPHY, self.said.get("procedure_reported", {}))

    @property
    def segment_category(self) -> CodedConcept:
        return _concept(codes.ABNORMAL_STRUCTURE, self.said.get("segment_category", {}))

    @property
    def segment_type(self) -> CodedConcept:
        return _concept(codes.OPACITY, self.said.get("segment_type", {}))


def _concept(shipped: Code, said: Mapping[str, Any]) -> CodedConcept:
    concept = CodedConcept.from_code(_code(said["code"]) if said.get("code") else shipped)
    if said.get("equivalents"):  # PS3.3 Table 8-1a
        concept.EquivalentCodeSequence = [CodedConcept.from_code(_code(one)) for one in said["equivalents"]]
    return concept


def _code(said: Mapping[str, str]) -> Code:
    return Code(said["value"], said["scheme"], said["meaning"])
