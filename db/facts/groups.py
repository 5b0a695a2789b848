"""Where a reader finds a study: every study stands in exactly one group of the worklist.

Urgent ones first, whatever is said about them; what asks for another reader; the others by what the model says that
counts; then what readers answered. Who answers before seeing the model's answer is told only whether there is one.
"""

from __future__ import annotations

from sqlalchemy import and_, case, exists, not_, or_

from db.tables import Answer, Report, Study, rows_of

STUDIES, _SAID = rows_of(Study), rows_of(Report).alias("said")
IS_REVIEWED = STUDIES.c.reviewed_revision == STUDIES.c.revision
NEEDS_READER = STUDIES.c.asked_revision == STUDIES.c.revision

_ANSWER = STUDIES.c.answer
_OF_CURRENT = (_SAID.c.study_id == STUDIES.c.id, _SAID.c.revision == STUDIES.c.revision)
_IS_WITHDRAWN = exists().where(*_OF_CURRENT, _SAID.c.withdrawn_at.is_not(None)).correlate(STUDIES)
_VEILED = (Answer.PRESENT, Answer.ABSENT, Answer.UNDETERMINED, Answer.INCOMPLETE)
_IS_POSITIVE = and_(_ANSWER == Answer.PRESENT, ~_IS_WITHDRAWN)
_IS_NEGATIVE = and_(_ANSWER == Answer.ABSENT, ~_IS_WITHDRAWN)
SAYINGS = {
    "positive": _IS_POSITIVE,
    "negative": _IS_NEGATIVE,
    "silent": or_(_ANSWER.is_(None), _ANSWER.not_in([Answer.PRESENT, Answer.ABSENT]), _IS_WITHDRAWN),
    "hidden": _ANSWER.in_(_VEILED),
    "unjudged": or_(_ANSWER.is_(None), _ANSWER.not_in(_VEILED)),
}
"""What the model says that counts; the last two in place of the others for who may not know yet."""

_IS_URGENT = STUDIES.c.priority > 0
_IS_CALM = (not_(IS_REVIEWED), not_(_IS_URGENT), not_(NEEDS_READER))
GROUPS = {
    "urgent": and_(not_(IS_REVIEWED), _IS_URGENT),
    "another": and_(not_(IS_REVIEWED), not_(_IS_URGENT), NEEDS_READER),
    **{saying: and_(*_IS_CALM, condition) for saying, condition in SAYINGS.items()},
    "answered": IS_REVIEWED,
}
GROUP_SORTS = {"positive": "-probability", "answered": "-received_at"}
"""Of `STUDY_SORTS`; the other groups begin with the longest wait."""

SAYS = case((_IS_POSITIVE, "positive"), (_IS_NEGATIVE, "negative"), else_="silent")
SAYS_VEILED = case((SAYINGS["hidden"], "hidden"), else_="unjudged")
PLACE = case((IS_REVIEWED, "answered"), (_IS_URGENT, "urgent"), (NEEDS_READER, "another"), else_="")
"""Empty = the group is what the model says."""
