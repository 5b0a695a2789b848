"""The report that an admin reads: one HTML file, everything in it. Takes what `metrics.json` holds, cards and plots.

The verdict stands first and in words: how good, on whom, and what the figures do not show. Nothing is loaded from
elsewhere: the pictures are in the file.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from models.card import ModelCard
from training.compare import FEW, is_large_enough
from training.wording import comparison_in_words, signed, verdict_in_words

TEMPLATE = "report.html"
PERCENT = ("accuracy", "sensitivity", "specificity", "precision")
FIGURES = {
    "auc": ("AUC", "how often an image with the finding scores higher than one without; 0.5 is chance"),
    "average_precision": ("Average precision", "area under precision and recall; its floor is the share of positives"),
    "accuracy": ("Accuracy", "right answers at the default threshold"),
    "sensitivity": ("Sensitivity (recall)", "of the images with the finding, how many are called"),
    "specificity": ("Specificity", "of the images without, how many are not called"),
    "precision": ("Precision", "of the calls, how many are right; falls where the finding is rarer than here"),
    "f1": ("F1", "harmonic mean of precision and sensitivity"),
    "brier": ("Brier score", "mean squared error of the probability; lower is better"),
    "ece": ("Calibration error", "how far probabilities lie from observed shares (15 bins); lower is better"),
}
WIDE = ("gallery", "confusion")
CAPTIONS = {
    "roc": "The further to the upper left, the better. The band holds 95 % of the curves of redrawn patients.",
    "precision_recall": "Depends on how frequent the finding is: read it for a population like this one only.",
    "histogram": "A good model keeps the two colours apart; what lies in the grey band is answered as undetermined.",
    "confusion": "Rows are the truth. Percentages are of the row.",
    "reliability": "Under the line, probabilities promise too much; over it, too little. The numbers count images.",
    "gallery": "Each pair is the image, and the image under the Grad-CAM map of what spoke for the finding. A map "
    "shows where evidence lay, not that it was read rightly; evidence outside the lungs is a bad sign. Each is scaled "
    "to its own strongest spot, also where all of it is weak. The number is the probability, the line that of "
    "predictions.csv.",
    "training_history": "Dotted lines mark where the images grew.",
}


def write_report(
    out: Path,
    cards: Sequence[ModelCard],
    figures: dict[str, Any],
    plots: dict[str, list[str]],
    classes: str,
    *,
    at: datetime,
) -> None:
    """Write `OUT/report.html`.

    Parameters
    ----------
    cards
        The judged model's, then that of the model it is compared with.
    figures
        As in `metrics.json`.
    plots
        File names in `out`, by finding; those of the training run under "".
    classes
        The classification report.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        estimate=estimate, number=number, p_value=p_value, difference=difference, telling=_telling
    )
    findings = _by_finding(figures)
    display = {finding.name: finding.display for finding in cards[0].findings}
    page = environment.get_template(TEMPLATE).render(
        card=cards[0],
        rival=cards[1] if len(cards) > 1 else None,
        figures=figures,
        findings=findings,
        rivals=_by_finding(figures["compared_with"]) if len(cards) > 1 else {},
        display=display,
        verdicts={name: verdict_in_words(cards[0], display[name], figures, of) for name, of in findings.items()},
        comparisons={
            name: comparison_in_words(cards, of, display[name], figures, figures["compared_with"])
            for name, of in figures.get("comparison", {}).items()
        },
        plots={name: [(_caption(file), _embedded(out / file)) for file in files] for name, files in plots.items()},
        wide=WIDE,
        classes=classes,
        names=FIGURES,
        percent=PERCENT,
        is_large_enough=is_large_enough,
        few=FEW,
        at=at,
    )
    (out / "report.html").write_text(page, encoding="utf-8")


def _by_finding(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    others: dict[str, dict[str, Any]] = figures.get("findings", {})
    return {figures["finding"]: figures} | others


def _telling(subgroups: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the groupings that divide the images: of one source only, it would be the table above again."""
    return {name: values for name, values in subgroups.items() if len(values) > 1 or name == "subgroup"}


def estimate(figure: dict[str, Any] | None, is_percent: bool = False) -> str:
    """Return "0.994 (0.990 to 0.997)"; a dash for a figure that does not exist."""
    if figure is None or figure["value"] is None:
        return "-"
    if figure["low"] is None:
        return number(figure["value"], is_percent)
    low, high = (number(figure[end], is_percent).removesuffix(" %") for end in ("low", "high"))
    return f"{number(figure['value'], is_percent)} ({low} to {high})"


def number(value: float | None, is_percent: bool = False) -> str:
    """Return "0.994", or "99.4 %"; a dash for none."""
    if value is None:
        return "-"
    return f"{100 * value:.1f} %" if is_percent else f"{value:.3f}"


def difference(auc: dict[str, Any]) -> str:
    """Return "+0.012 (+0.004 to +0.020)"; a dash where there is none."""
    if auc["low"] is None:
        return "-"
    return f"{signed(auc['difference'])} ({signed(auc['low'])} to {signed(auc['high'])})"


def p_value(value: float | None) -> str:
    """Return "p = 0.03"; very small ones as "p < 0.001"."""
    if value is None:
        return "-"
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def _caption(file: str) -> tuple[str, str]:
    name = file.removesuffix(".png").split("-")[0]
    return name, CAPTIONS[name]


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
