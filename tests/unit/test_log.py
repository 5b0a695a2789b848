from __future__ import annotations

import json
import logging
import sys

import pytest

from pacs_node.errors import DeliveryDelayed
from pacs_node.log import SELDOM_S, JsonFormatter, PlainFormatter, Seldom, describe


def record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"msg": "An image was stored", "levelno": logging.INFO, "levelname": "INFO", "name": "x"}
    )
    vars(made).update(extra)
    return made


def test_line_is_json_with_extras() -> None:
    line = json.loads(JsonFormatter("work").format(record(action="stored", instance_id="42")))
    assert (line["role"], line["message"], line["action"], line["instance_id"]) == (
        "work",
        "An image was stored",
        "stored",
        "42",
    )


def test_terminal_says_which_one_and_why() -> None:
    text = PlainFormatter("run").format(record(action="role_restarted", died="work-1", exit_code=-9))
    assert text == "run: An image was stored (died work-1, exit_code -9)"


@pytest.mark.parametrize("formatter", [JsonFormatter("work"), PlainFormatter("work")])
def test_patient_attributes_are_dropped(formatter: logging.Formatter) -> None:
    text = formatter.format(record(patient_name="Doe", PatientID="7", accession_number="A1", study_description="x"))
    assert not any(word in text for word in ("Doe", "PatientID", "A1", "study_description"))


def test_library_error_is_named_without_its_message() -> None:
    class QuotingError(ValueError):
        pass

    QuotingError.__module__ = "pydicom.valuerep"
    try:
        raise QuotingError("Invalid value for PN: Doe^Jane")
    except QuotingError:
        made = record(exc_info=sys.exc_info())
    text = JsonFormatter("work").format(made)
    assert "QuotingError" in text
    assert "test_log.py" in text
    assert "Doe" not in text


def test_our_error_keeps_its_message() -> None:
    assert "PACS: no association" in describe(DeliveryDelayed("PACS", "no association"))


def test_an_outage_is_told_once_a_minute_and_all_else_each_time() -> None:
    seldom = Seldom()

    def tells(created: float, **extra: object) -> bool:
        return bool(seldom.filter(record(created=created, **extra)))

    assert tells(0, action="database_away", task="settle")
    assert not tells(1, action="database_away", task="settle")
    assert tells(1, action="database_away", task="seal")
    assert tells(1, action="store_refused")
    assert tells(1, action="store_refused")
    assert tells(SELDOM_S, action="database_away", task="settle")
