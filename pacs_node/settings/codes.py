"""Codes of the reports that a hospital wants otherwise: in place of the shipped ones, or beside them as equivalents."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from pacs_node.settings.section import LINE, Section


class CodeSettings(Section):
    """One code (PS3.3 8.1): a value over 16 characters is written as Long Code Value, a URN as URN Code Value."""

    value: str = Field(min_length=1, max_length=256, pattern=LINE)
    scheme: str = Field(min_length=1, max_length=16, pattern=LINE)
    meaning: str = Field(min_length=1, max_length=64, pattern=LINE)

    @field_validator("value", "scheme", "meaning")
    @classmethod
    def _refuse_outer_blanks(cls, text: str) -> str:
        if text != text.strip():
            raise ValueError("begins or ends with a blank")
        return text


class ConceptSettings(Section):
    """What a concept is coded as."""

    code: CodeSettings | None = None
    """None: the shipped one, of a finding the model card's."""
    equivalents: tuple[CodeSettings, ...] = ()
    """The same in other schemes (Equivalent Code Sequence, PS3.3 8.9)."""


class CodesSettings(Section):
    findings: dict[str, ConceptSettings] = Field(default_factory=dict)
    """By the finding's name in the model card."""
    finding_site: ConceptSettings = ConceptSettings()
    procedure_reported: ConceptSettings = ConceptSettings()
    segment_category: ConceptSettings = ConceptSettings()
    segment_type: ConceptSettings = ConceptSettings()

    def said(self) -> dict[str, Any]:
        """Return what differs from the shipped codes, as it is frozen with each report."""
        return self.model_dump(mode="json", exclude_defaults=True)
