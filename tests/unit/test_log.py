from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pynetdicom.utils import decode_bytes

from pacs_node.errors import DeliveryDelayed
from pacs_node.log import QUIET, QUOTING, SELDOM_S, JsonFormatter, PlainFormatter, Seldom, configure, describe
from pacs_node.settings import LogSettings


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


@pytest.fixture
def log_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield the file of a role whose logs are set up as a node's are; afterwards logging is as before."""
    root, libraries = logging.getLogger(), [logging.getLogger(name) for name in (*QUIET, *QUOTING, "py.warnings")]
    before = [(logger, logger.level) for logger in (root, *libraries)]
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    configure(LogSettings(), "listen", tmp_path)
    ours = list(root.handlers)
    yield tmp_path / "listen.log"
    for handler in ours:
        root.removeHandler(handler)
        handler.close()
    logging.captureWarnings(False)
    for logger, level in before:
        logger.setLevel(level)


def test_no_byte_of_a_message_that_cannot_be_decoded_is_logged(
    log_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = "Doe^Zoë".encode("latin-1")
    with pytest.raises(ValueError, match="Unable to decode") as quoting:
        decode_bytes(encoded)  # logs by itself, and where its error is caught
    for name in ("pynetdicom.dul", "pynetdicom.dimse", "pynetdicom.association"):
        try:
            raise quoting.value
        except ValueError as error:
            logging.getLogger(name).exception(error)
    told = log_file.read_text() + capsys.readouterr().err
    assert "ValueError" in told
    assert not any(quoted in told for quoted in ("44 6F", "0xeb", *QUOTING))
