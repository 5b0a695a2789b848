"""The order and the views of the worklist: pure, from summaries as the database room gives them."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any
from uuid import uuid4

from db.facts import DeliveryLine, StudySummary, WarningFacts
from db.tables import Answer, DeliveryState
from pacs_node.web import words, worklist
from pacs_node.web.rows import row_of
from pacs_node.web.worklist import Choice
from tests.records import MINUTE, NOON


def make_summary(name: str, answer: Answer | None, probability: float | None = None, **changes: Any) -> StudySummary:
    fields: dict[str, Any] = {
        "study_id": uuid4(),
        "received_at": NOON - 10 * MINUTE,
        "last_received_at": NOON - 10 * MINUTE,
        "calling_ae_title": "CR_ROOM_1",
        "state": "answered" if answer else "judging",
        "failed_job_id": None,
        "answer": answer,
        "probability": probability,
        "threshold": 0.5 if probability is not None else None,
        "abstain_low": 0.4 if probability is not None else None,
        "abstain_high": 0.6 if probability is not None else None,
        "model_version": "1.0.0",
        "withdrawn_at": None,
        "warnings": (),
        "images": 1,
        "deliveries": (),
        "revision": 1 if answer else 0,
        "hold": None,
        "priority": 0,
        "is_reviewed": False,
        "patient_name": name,
        "patient_id": "SYN-1",
        "patient_birth_date": "20230412",
        "patient_sex": "F",
        "accession_number": "A-1",
        "study_date": NOON.date(),
    }
    return StudySummary(**(fields | changes))


STUDIES = [
    make_summary("negative", Answer.ABSENT, 0.1),
    make_summary("reviewed", Answer.PRESENT, 0.99, is_reviewed=True),
    make_summary("waiting", None),
    make_summary("suspected", Answer.PRESENT, 0.7),
    make_summary("more suspected", Answer.PRESENT, 0.9),
    make_summary("undecided", Answer.UNDETERMINED, 0.55),
    make_summary("urgent", Answer.ABSENT, 0.05, priority=1),
    make_summary(
        "not analysed",
        Answer.NOT_ANALYSED,
        warnings=(WarningFacts(code="not_frontal", severity="forbids", text="The view is lateral."),),
        deliveries=(DeliveryLine("main", DeliveryState.FAILED, "No association."),),
    ),
]


def listed(view: str = "all", studies: list[StudySummary] = STUDIES) -> worklist.WorkList:
    rows = [row_of(study, NOON) for study in studies]
    return worklist.list_view(rows, view=view, choice=Choice(senders=["CR_ROOM_1"]), now=NOON)


def names(work: worklist.WorkList) -> list[str]:
    return [row.patient_name for group in work.groups for row in group.rows]


def test_order_is_urgent_suspected_unanswered_rest_answered() -> None:
    work = listed()
    assert [group.title for group in work.groups] == [
        "Urgent",
        "Above threshold",
        "No answer from the model",
        "Below threshold",
        "Answered by a reader",
    ]
    assert names(work) == [
        "urgent",
        "more suspected",
        "suspected",
        "undecided",
        "not analysed",
        "waiting",
        "negative",
        "reviewed",
    ]


def test_every_study_stands_in_exactly_one_group() -> None:
    assert sorted(names(listed())) == sorted(study.patient_name for study in STUDIES)


def test_views_count_what_they_show() -> None:
    for view in listed().views:
        name = view.href.split("view=")[1]
        assert view.count == len(names(listed(name))), name
    assert names(listed("undelivered")) == ["not analysed"]
    assert "reviewed" not in names(listed("open"))


def test_longest_wait_comes_first_among_equals() -> None:
    young, old = (
        make_summary(name, None, last_received_at=NOON - timedelta(minutes=gone)) for name, gone in (("y", 1), ("o", 9))
    )
    assert names(listed(studies=[young, old])) == ["o", "y"]
    assert listed(studies=[young, old]).summary == "2 to read, longest wait 9 min. 0 answered."


def test_empty_list_says_why() -> None:
    assert listed("positive", [STUDIES[0]]).silence == worklist.Silence(
        title="No study matches this view.",
        text="Studies in the list: 1; answered by a reader: 0.",
        href="/?view=all",
        action="Show all studies",
    )
    nothing = worklist.list_view([], view="open", choice=Choice(), now=NOON)
    assert nothing.silence is not None
    assert nothing.silence.title == "Nothing has been received yet."


def test_older_pages_and_searches_stand_still() -> None:
    assert listed().is_live
    older = worklist.list_view([], view="all", choice=Choice(senders=["X"]), is_first_page=False, now=NOON)
    assert not older.is_live
    assert not worklist.search_view([], "Doe", NOON).is_live


def test_href_leaves_out_what_is_not_set_and_quotes_the_rest() -> None:
    assert worklist.href(view="open", sender="A B&C", cursor=None) == "/?view=open&sender=A+B%26C"


def test_study_whose_report_failed_says_so_and_is_found_among_the_undelivered() -> None:
    study = make_summary("failed", Answer.PRESENT, 0.9, state="failed", failed_job_id=uuid4())
    (group,) = listed("undelivered", [study]).groups
    (row,) = group.rows
    assert (row.report.short, row.report.is_bad) == ("Not built", True)
    assert row.sentences[0].lead == "Failed:"
    assert "its report could not be built" in row.sentences[0].text


def test_list_without_open_studies_says_that_the_node_receives() -> None:
    rows = [row_of(make_summary("read", Answer.ABSENT, 0.1, is_reviewed=True), NOON)]
    said = "its last image came at 08:40 from CR_ROOM_1"
    list_ = worklist.list_view([], view="open", choice=Choice(), others=rows, last_received=said, now=NOON)
    assert list_.silence is not None
    assert list_.silence.title == "Nothing waits for a reader."
    assert said in list_.silence.text


def test_filters_stand_in_the_address_and_are_offered_to_be_cleared() -> None:
    choice = Choice(sender="CR 1", period="7", probability_from=0.25)
    list_ = worklist.list_view([], view="open", choice=choice, now=NOON)
    assert list_.views[0].href == "/?view=open&sender=CR+1&period=7&from=0.25"
    assert list_.silence is not None
    assert list_.silence.action == "Clear the filters"
    assert choice.has_more
    assert not Choice(sender="CR 1").has_more


def test_studies_beyond_the_page_count_once() -> None:
    row = row_of(STUDIES[0], NOON)
    list_ = worklist.list_view([row], view="open", choice=Choice(), others=[row], now=NOON)
    assert list_.views[0].count == 1


def test_withdrawn_answer_is_marked_and_counts_as_none_until_it_is_replaced() -> None:
    """In the words of the reading page; a withdrawn *below threshold* is in no calm corner of the list."""
    deliveries = (DeliveryLine("main", DeliveryState.SENT, ""),)
    for answer, probability in ((Answer.PRESENT, 0.9), (Answer.ABSENT, 0.1)):
        study = make_summary("withdrawn", answer, probability, withdrawn_at=NOON, deliveries=deliveries)
        (group,) = listed("silent", [study]).groups
        (row,) = group.rows
        assert group.title == "No answer from the model"
        assert row.sentences[0] == words.withdrawal_sentences(NOON)[0]
        assert (row.sentences[0].lead, row.sentences[0].kind) == ("Withdrawn", "failed")
        assert (row.report.short, row.report.is_bad) == ("Withdrawn", True)
        assert names(listed("positive", [study])) == []


def test_row_names_sex_and_age_beside_the_patients_id() -> None:
    line = row_of(make_summary("x", None, study_date=date(2026, 4, 12)), NOON).patient_line
    assert line == "SYN-1, F, 3 y"
    unknown = make_summary("x", None, patient_id="", patient_sex="", patient_birth_date="")
    assert row_of(unknown, NOON).patient_line == "no patient id"
