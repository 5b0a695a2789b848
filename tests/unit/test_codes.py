"""The page about the codes says what the table says."""

from __future__ import annotations

from pathlib import Path

from models.codes import CODES, Severity

PAGE = Path(__file__).parents[2] / "docs" / "codes.md"


def row_of(code: str) -> str:
    row = CODES[code]
    severity = f"{row.severity}, *no answer*" if row.is_no_answer else str(row.severity)
    return f"| `{code}` | {severity} | {row.text} | {row.advice} |"


def test_page_lists_every_code_as_it_is_the_gravest_first() -> None:
    said = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert said == [
        row_of(code) for severity in reversed(Severity) for code in CODES if CODES[code].severity is severity
    ]
