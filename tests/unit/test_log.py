from __future__ import annotations

import json
import logging
import sys

from pacs_node.errors import DeliveryDelayed
from pacs_node.log import JsonFormatter, describe


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


def test_patient_attributes_are_dropped() -> None:
    text = JsonFormatter("work").format(
        record(patient_name="Doe", PatientID="7", accession_number="A1", study_description="x")
    )
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
