"""What peers told us, written into the facts: what they keep, and which images they take back.

The listener is told it; the courier too, on the association on which it asked, and again where a message was lost.
"""

from __future__ import annotations

from sqlalchemy.engine import Engine

from db import facts
from db.engine import db_now, read_scope, session_scope
from db.facts.rejections import REJECTED
from models.codes import CODES
from pacs_node.dimse.commitment import CommitmentResult
from pacs_node.settings import Settings


def record_result(engine: Engine, settings: Settings, result: CommitmentResult) -> bool:
    """Record a destination's answer; False for a question that was never asked.

    Raises
    ------
    DatabaseAway
        The destination is to tell us again.
    """
    with session_scope(engine) as session:
        return facts.record_commitment(
            session,
            result.transaction_uid,
            kept=result.kept,
            failed=result.failed,
            max_failures=settings.delivery.commitment_attempts,
            again_in_s=settings.delivery.retry_base_s,
            now=db_now(session),
        )


def apply_rejections(engine: Engine) -> int:
    """Take out of their studies' answers the images that their sender rejected; return how many."""
    with read_scope(engine) as session:
        if not facts.has_open_rejections(session):
            return 0
    with session_scope(engine) as session:
        return facts.apply_rejections(session, text=CODES[REJECTED].text, now=db_now(session))
