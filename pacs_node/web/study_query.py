"""The filters and orders that a list of studies takes; its export takes the same."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query

from db.facts import STUDY_SORTS, STUDY_STATES, StudyFilters
from db.facts.study_filters import STUDY_ENDS
from db.tables import Answer
from pacs_node.web.context import WebContext
from pacs_node.web.query import AeTitle, Code, Instant, Probability, Version

State = Annotated[str, Query(pattern=f"^({'|'.join(STUDY_STATES)})$", examples=["answered"])]
Sort = Annotated[
    str,
    Query(
        pattern=f"^({'|'.join(STUDY_SORTS)})$",
        examples=["-received_at"],
        description=f"{', '.join(STUDY_SORTS)}; `-` = falling. By probability: the studies that have one.",
    ),
]
Priority = Annotated[int, Query(ge=0, le=9, description="At least this; 1 = asked for as urgent.")]
FindingCode = Annotated[
    str,
    Query(
        max_length=64,
        pattern=r"^[a-z0-9_]+$",
        examples=["pneumonia"],
        description="Some image was judged for it; the probability is then that image's, else the report's.",
    ),
]
Undelivered = Annotated[
    bool, Query(description="Only those whose current report was not built, or some destination did not take.")
]
End = Annotated[
    str,
    Query(
        pattern=f"^({'|'.join(STUDY_ENDS)})$",
        examples=["not_analysed"],
        description="Where *Quality* counts it; `failed` = nothing was analysed and some image failed.",
    ),
]
Reviewed = Annotated[bool, Query(description="Readers have answered, and no other reader is asked.")]


def _wanted(
    web: WebContext,
    state: State | None = None,
    answer: Answer | None = None,
    finding: FindingCode | None = None,
    probability_from: Probability | None = None,
    probability_to: Probability | None = None,
    warning: Code | None = None,
    calling_ae_title: AeTitle | None = None,
    model_version: Version | None = None,
    reviewed: Reviewed | None = None,
    undelivered: Undelivered = False,
    end: End | None = None,
    priority: Priority | None = None,
    since: Instant | None = None,
    until: Instant | None = None,
) -> StudyFilters:
    return StudyFilters(
        state=state,
        answer=answer,
        finding=finding,
        probability_from=probability_from,
        probability_to=probability_to,
        warning=warning,
        calling_ae_title=calling_ae_title,
        is_undelivered=undelivered or None,
        end=end,
        model_version=model_version,
        is_reviewed=reviewed,
        priority=priority,
        received_from=since,
        received_before=until,
        visible=web.caller.visible,
    )


Wanted = Annotated[StudyFilters, Depends(_wanted)]
"""`since` (included) and `until` (not) bound when the first image arrived."""
