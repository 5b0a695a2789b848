"""The order and the views of the worklist: pure, from summaries as the database room gives them."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any
from uuid import uuid4

from db.facts import DeliveryLine, ReviewFacts, StudySummary, WarningFacts
from db.facts.study_filters import GroupCount
from db.tables import Answer, DeliveryState, Verdict
from pacs_node.web import words, worklist
from pacs_node.web.rows import row_of
from pacs_node.web.worklist import Choice, Counts
from tests.records import MINUTE, NOON

HOUR = 60 * MINUTE


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
        "needs_reader": False,
        "standing": (),
        "patient_name": name,
        "patient_id": "SYN-1",
        "patient_birth_date": "20230412",
        "patient_sex": "F",
        "accession_number": "A-1",
        "study_date": NOON.date(),
    }
    return StudySummary(**(fields | changes))


SAYS = {Answer.PRESENT: "positive", Answer.ABSENT: "negative"}
ALL = Choice(senders=["CR_ROOM_1"])
STUDIES = [
    make_summary("negative", Answer.ABSENT, 0.1),
    make_summary("reviewed", Answer.PRESENT, 0.99, is_reviewed=True),
    make_summary("waiting", None),
    make_summary("suspected", Answer.PRESENT, 0.7),
    make_summary("more suspected", Answer.PRESENT, 0.9),
    make_summary("undecided", Answer.UNDETERMINED, 0.55),
    make_summary("disputed", Answer.PRESENT, 0.95, needs_reader=True),
    make_summary("urgent", Answer.ABSENT, 0.05, priority=1),
    make_summary(
        "not analysed",
        Answer.NOT_ANALYSED,
        warnings=(WarningFacts(code="not_frontal", severity="forbids", text="The view is lateral."),),
        deliveries=(DeliveryLine("main", DeliveryState.FAILED, "No association."),),
    ),
]


def counts_of(studies: list[StudySummary]) -> Counts:
    """Count as the database does, of studies whose answers were not withdrawn."""
    unread = [
        GroupCount(
            group="urgent" if study.priority else "another" if study.needs_reader else says,
            says=says,
            studies=1,
            waiting_since=study.last_received_at,
        )
        for study in studies
        for says in [SAYS.get(study.answer or Answer.INCOMPLETE, "silent")]
        if not study.is_reviewed
    ]
    return Counts(unread=unread, answered=sum(study.is_reviewed for study in studies))


def listed(view: str = "all", studies: list[StudySummary] = STUDIES, counts: Counts | None = None) -> worklist.WorkList:
    rows = [row_of(study, NOON) for study in studies]
    return worklist.list_view(rows, counts or counts_of(studies), view=view, choice=ALL, now=NOON)


def names(work: worklist.WorkList) -> list[str]:
    return [row.patient_name for group in work.groups for row in group.rows]


def test_order_is_urgent_suspected_unanswered_disputed_rest_answered() -> None:
    work = listed()
    assert [group.title for group in work.groups] == [
        "Urgent",
        "Above threshold",
        "No answer from the model",
        "Needs another reader",
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
        "disputed",
        "negative",
        "reviewed",
    ]


def test_every_study_stands_in_exactly_one_group() -> None:
    assert sorted(names(listed())) == sorted(study.patient_name for study in STUDIES)


def test_views_count_all_that_they_hold_whatever_is_on_the_page() -> None:
    views = {view.words: view.count for view in listed().views}
    assert views == {"To read": "8", "Above threshold": "3", "No answer": "3", "Not delivered": "0", "All": "9"}


def test_what_does_not_fit_is_told_and_linked() -> None:
    many = Counts(unread=[GroupCount(group="negative", says="negative", studies=112, waiting_since=NOON - 10 * HOUR)])
    list_ = listed("open", [STUDIES[0]], many)
    (group,) = list_.groups
    assert (group.count_text, group.more, group.href) == (
        "112",
        "and 111 more; here stand the first and the newest",
        "/?view=open&group=negative",
    )
    assert list_.summary == "112 to read, longest wait 10 h. 0 answered."
    (answered,) = listed("all", [STUDIES[1]], Counts(answered=worklist.COUNTED + 1)).groups
    assert (answered.count_text, answered.more) == ("10000+", "and more")


def test_row_says_what_readers_said_and_when() -> None:
    said = ReviewFacts(
        review_id=uuid4(),
        study_id=uuid4(),
        report_id=uuid4(),
        verdict=Verdict.UNSURE,
        comment="",
        reviewer="anna",
        created_at=NOON - 3 * HOUR,
    )
    study = make_summary("disputed", Answer.PRESENT, 0.9, needs_reader=True, standing=(said,))
    at = words.clock(NOON - 3 * HOUR, NOON)
    shown, hidden = (row_of(study, NOON, is_hidden=is_hidden).sentences[-1] for is_hidden in (False, True))
    assert (shown.lead, shown.text) == ("Unsure:", f"anna, {at}.")
    assert (hidden.lead, hidden.text) == ("Answered:", f"anna, {at}; what it says is shown after yours.")


def test_longest_wait_comes_first_among_equals() -> None:
    young, old = (
        make_summary(name, None, last_received_at=NOON - timedelta(minutes=gone)) for name, gone in (("y", 1), ("o", 9))
    )
    assert names(listed(studies=[young, old])) == ["o", "y"]
    assert listed(studies=[young, old]).summary == "2 to read, longest wait 9 min. 0 answered."


def test_empty_list_says_why() -> None:
    assert listed("positive", [], counts_of([STUDIES[0]])).silence == worklist.Silence(
        title="No study matches this view.",
        text="Studies to read: 1; answered by a reader: 0.",
        href="/?view=all",
        action="Show all studies",
    )
    nothing = listed("open", [])
    assert nothing.silence is not None
    assert nothing.silence.title == "Nothing has been received yet."
    of_groups = worklist.list_view([], Counts(), view="open", choice=ALL, is_of_groups=True, now=NOON)
    assert of_groups.silence is not None
    assert of_groups.silence.title == "Your groups see no study."


def test_groups_alone_and_searches_stand_still() -> None:
    assert listed().is_live
    assert not worklist.list_view([], Counts(), view="all", choice=ALL, group="negative", now=NOON).is_live
    assert not worklist.search_view([], "Doe").is_live


def test_href_leaves_out_what_is_not_set_and_quotes_the_rest() -> None:
    assert worklist.href(view="open", sender="A B&C", cursor=None) == "/?view=open&sender=A+B%26C"


def test_study_whose_report_failed_says_so_and_is_found_among_the_undelivered() -> None:
    study = make_summary("failed", Answer.PRESENT, 0.9, state="failed", failed_job_id=uuid4())
    (group,) = listed("undelivered", [study]).groups
    (row,) = group.rows
    assert (row.report.short, row.report.is_bad) == ("Not built", True)
    assert row.sentences[0].lead == "Failed:"
    assert "its report could not be built" in row.sentences[0].text


def test_list_without_open_studies_says_when_the_last_image_came() -> None:
    said = "at 08:40 from CR_ROOM_1"
    list_ = worklist.list_view([], Counts(answered=1), view="open", choice=Choice(), last_received=said, now=NOON)
    assert list_.silence is not None
    assert list_.silence.title == "Nothing waits for a reader."
    assert list_.silence.text == "Studies answered by a reader: 1. The last image came at 08:40 from CR_ROOM_1."


def test_filters_stand_in_the_address_and_are_offered_to_be_cleared() -> None:
    choice = Choice(sender="CR 1", period="7", probability_from=0.25)
    list_ = worklist.list_view([], Counts(), view="open", choice=choice, now=NOON)
    assert list_.views[0].href == "/?view=open&sender=CR+1&period=7&from=0.25"
    assert list_.silence is not None
    assert list_.silence.action == "Clear the filters"
    assert choice.has_more
    assert not Choice(sender="CR 1").has_more


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


def test_row_names_sex_and_age_beside_the_patients_id() -> None:
    line = row_of(make_summary("x", None, study_date=date(2026, 4, 12)), NOON).patient_line
    assert line == "SYN-1, F, 3 y"
    unknown = make_summary("x", None, patient_id="", patient_sex="", patient_birth_date="")
    assert row_of(unknown, NOON).patient_line == "no patient id"
