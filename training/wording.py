"""Figures in plain words: the verdict on one model and on the difference of two. Pure.

What the words claim is bounded by the intervals: "good" needs its lower end, "better" a difference without zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from models.card import ModelCard
from training.compare import is_large_enough, verdict

SKILL = ((0.95, "is very good", "good"), (0.9, "is good", "good"), (0.8, "is fair", "fair"), (0.5, "is poor", "bad"))
ELSEWHERE = 0.1  # a share of positives that is nearer to a clinic's than that of a data set


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A verdict: the tone is "good", "fair" or "bad"; `parts` are headings with their sentences."""

    tone: str
    headline: str
    parts: dict[str, list[str]]


def verdict_in_words(card: ModelCard, display: str, figures: dict[str, Any], of: dict[str, Any]) -> Words:
    """Return the verdict on one finding.

    Parameters
    ----------
    figures, of
        The whole of `metrics.json`, and the part of this finding.
    """
    tone, headline = _headline(f"{card.name} {card.version}", display.lower(), of)
    if remembered := trained_on(figures):
        tone, headline = "bad", f"This is no test: {card.name} {card.version} {remembered} {headline}"
    parts = {
        "How good": _how_good(display.lower(), of),
        "On whom": _on_whom(card, display.lower(), figures["data"], of),
        "What this does not show": _not_shown(card, display.lower(), figures, of),
    }
    return Words(tone=tone, headline=headline, parts={name: lines for name, lines in parts.items() if lines})


def _headline(model: str, name: str, of: dict[str, Any]) -> tuple[str, str]:
    """Return tone and sentence; where the images come from several sources, the weakest one sets the tone."""
    auc = of["auc"]
    if auc["low"] is None:
        return "bad", f"These images cannot say how well {model} tells {name} from its absence: one of them is missing."
    skill, tone = _skill(auc)
    headline = f"On these images {model} {skill} at telling {name} from its absence: {_interval(auc)}."
    parts = [
        (one["auc"]["low"], f"{grouping} {value}", one["auc"])
        for grouping in ("source", "population")
        for value, one in of["subgroups"].get(grouping, {}).items()
        if len(of["subgroups"][grouping]) > 1 and is_large_enough(one) and one["auc"]["low"] is not None
    ]
    if parts and min(parts, key=lambda part: part[0])[0] < auc["low"]:
        _, where, weakest = min(parts, key=lambda part: part[0])
        skill, tone = _skill(weakest)
        headline += f" But on {where} alone it {skill}: {_interval(weakest)}."
    return tone, headline


def _interval(auc: dict[str, Any]) -> str:
    return f"AUC {auc['value']:.3f} (95 % interval {auc['low']:.3f} to {auc['high']:.3f})"


def _skill(auc: dict[str, Any]) -> tuple[str, str]:
    """Return what the interval of an AUC allows to say, and its tone."""
    if auc["high"] < 0.5:
        return "is worse than chance", "bad"
    if auc["low"] <= 0.5:
        return "is not shown to be better than chance", "bad"
    return next((word, tone) for bound, word, tone in SKILL if auc["low"] >= bound)


def _how_good(name: str, of: dict[str, Any]) -> list[str]:
    lines = [_at_point(point, values, name) for point, values in of["operating_points"].items()]
    abstained = of["abstained"]
    if abstained["share"]:
        lines.append(
            f"{_percent(abstained['share'])} of the images fall into the abstain band and are answered as undetermined;"
            f" of the other answers {_percent(abstained['accuracy_outside'])} are right."
        )
    if of["ece"]["value"] is not None:
        lines.append(_calibration(of["ece"]))
    return [line for line in lines if line]


def _calibration(error: dict[str, float | None]) -> str:
    """Say how far the probabilities are off, and how far perfect ones would seem to be: few images exaggerate it."""
    text = f"A probability is off by {100 * (error['value'] or 0):.1f} percentage points on average"
    chance = error.get("by_chance")
    return f"{text}{'' if chance is None else f'; by chance, perfect ones would seem off by {100 * chance:.1f}'}."


def _at_point(point: str, values: dict[str, Any], name: str) -> str:
    counts, intervals = values["counts"], values["intervals"]
    positives = counts["true_positive"] + counts["false_negative"]
    negatives = counts["true_negative"] + counts["false_positive"]
    found = (
        f"finds {counts['true_positive']} of {positives} images with {name} ({_span('sensitivity', values, intervals)})"
    )
    vain = f"calls {counts['false_positive']} of {negatives} without it in vain"
    vain += f" (specificity {_span('specificity', values, intervals)})"
    text = " and ".join([found] * (positives > 0) + [vain] * (negatives > 0))
    return f"At the {point.replace('_', '-')} operating point it {text}."


def _span(key: str, values: dict[str, Any], intervals: dict[str, Any]) -> str:
    low, high = intervals[key]
    return _percent(values[key]) + ("" if low is None else f", {100 * low:.1f} to {100 * high:.1f}")


def _on_whom(card: ModelCard, name: str, data: dict[str, Any], of: dict[str, Any]) -> list[str]:
    sources = ", ".join(f"{source} ({count})" for source, count in data["sources"].items())
    share = f"{of['positive']} with {name} ({_percent(of['positive'] / of['images'])})"
    lines = [f"{data['images']} images of {data['patients']} patients, {share}. Source: {sources}."]
    if data["age_years"]:
        low, high = data["age_years"]
        lines.append(f"Ages from {low} to {high} years, known of {data['age_known']} images.")
    else:
        lines.append("The ages of the patients are not known.")
    if data["outside_validated_age"]:
        lines.append(
            f"{data['outside_validated_age']} images are of ages for which the card claims nothing (it claims "
            f"{card.ages_text}): a node that keeps to the card does not answer there."
        )
    if data["skipped"]:
        lines.append(f"{data['skipped']} files could not be read and were left out.")
    return lines


def _not_shown(card: ModelCard, name: str, figures: dict[str, Any], of: dict[str, Any]) -> list[str]:
    data = figures["data"]
    lines = [_seen_before(figures)]
    if figures["test_time_augmentation"]:
        lines.append("The thresholds with test-time augmentation: the card's were chosen without it.")
    lines.append(_of_unknown_age(card, data))
    if len(data["sources"]) == 1:
        lines.append("All images come from one source; other hospitals, devices and exposures are not shown.")
    lines += [_rarer(name, of), _weak(of), _small(of)]
    return [line for line in lines if line]


def _of_unknown_age(card: ModelCard, data: dict[str, Any]) -> str:
    """Say by whose calibration and thresholds a model judged the images without an age; empty if there are none."""
    unknown = data["images"] - data["age_known"]
    judged = f"were judged by {card.name} {card.version} as {card.populations[0].name}"
    return f"{unknown} images of unknown age {judged}, which only some of them may be." if unknown else ""


def trained_on(figures: dict[str, Any]) -> str:
    """Return that the model was trained on some of the images, as far as known; empty if not."""
    seen, images = figures["data"]["seen"], figures["data"]["images"]
    if figures["split"] == "train" or (seen is not None and seen["training"] == images):
        return "was trained on these images: the figures show what it remembers."
    if seen is None or not seen["training"]:
        return ""
    return f"was trained on {seen['training']} of these {images} images: the figures show what it remembers."


def _seen_before(figures: dict[str, Any]) -> str:
    """Say whether these images had a part in making the model, as far as the card and the split know."""
    data, split = figures["data"], figures["split"]
    if remembered := trained_on(figures):
        return f"Skill: the model {remembered}"
    if data["seen"] is not None and data["seen"]["perhaps"]:
        return (
            f"Skill, perhaps: {data['seen']['perhaps']} of these images stand where the card says that the model was "
            "trained, by the name of their source. If they are those images, the figures show what it remembers."
        )
    if split == "validation" or (data["seen"] is not None and data["seen"]["validation"]):
        return (
            "An independent test: thresholds and calibration (and perhaps the epoch) were chosen on such validation "
            "images, so the figures are a little too good. Held-out test images decide."
        )
    return "Whether the model saw some of these images in training: only the one who chose them can know."


def _rarer(name: str, of: dict[str, Any]) -> str:
    """Say what the calls are worth where the finding is rarer than in this data set."""
    sensitivity, specificity = of["sensitivity"]["value"], of["specificity"]["value"]
    if sensitivity is None or specificity is None or not sensitivity or of["positive"] / of["images"] < 2 * ELSEWHERE:
        return ""
    right = sensitivity * ELSEWHERE
    calls = right + (1 - specificity) * (1 - ELSEWHERE)
    return (
        f"What a call is worth in practice: here {_percent(of['positive'] / of['images'])} of the images have {name} "
        f"and {_percent(of['precision']['value'])} of the calls are right; with one in ten, about "
        f"{_percent(right / calls, 0)} would be."
    )


def _weak(of: dict[str, Any]) -> str:
    """Name the subgroups, large enough to say so, whose interval lies below the AUC of all."""
    overall = of["auc"]["value"]
    weak = [
        f"{grouping.replace('_', ' ')} {value} (AUC {one['auc']['value']:.3f})"
        for grouping, values in of["subgroups"].items()
        for value, one in values.items()
        if is_large_enough(one) and one["auc"]["high"] is not None and one["auc"]["high"] < overall
    ]
    return f"The same skill everywhere: it is lower on {', '.join(weak)}." if weak else ""


def _small(of: dict[str, Any]) -> str:
    small = [
        f"{grouping.replace('_', ' ')} {value}"
        for grouping, values in of["subgroups"].items()
        for value, one in values.items()
        if not is_large_enough(one)
    ]
    return f"Anything about subgroups with fewer than 20 images of a class: {', '.join(small)}." if small else ""


def comparison_in_words(
    cards: Sequence[ModelCard], of: dict[str, Any], display: str, first: dict[str, Any], second: dict[str, Any]
) -> Words:
    """Return the verdict on the difference of two models about one finding.

    Parameters
    ----------
    cards
        Of both.
    first, second
        What `metrics.json` holds of each.
    """
    auc, name, names = of["auc"], display.lower(), (first["model"], second["model"])
    as_whom = [_of_unknown_age(card, one["data"]) for card, one in zip(cards, (first, second), strict=True)]
    parts = {"What changes": _changes(of, name, *names) + [line for line in as_whom if line]}
    if auc["low"] is None:
        return Words(tone="bad", headline="These images cannot tell the two models apart.", parts=parts)
    if remembered := [f"{one['model']} {text}" for one in (first, second) if (text := trained_on(one))]:
        parts["Before you switch"] = [
            "Compare both on images that neither was trained on (--split test or validation)."
        ]
        return Words(tone="bad", headline=f"This is no fair comparison: {' '.join(remembered)}", parts=parts)
    what = verdict(auc)
    parts["Before you switch"] = _advice(of, what, names[1])
    interval = f"{signed(auc['difference'])} (95 % interval {signed(auc['low'])} to {signed(auc['high'])})"
    headline = {
        "better": f"{names[0]} is better than {names[1]} at {name} on these images: difference in AUC {interval}.",
        "worse": f"{names[0]} is worse than {names[1]} at {name} on these images: difference in AUC {interval}.",
    }.get(what, f"No difference between {names[0]} and {names[1]} at {name} is shown: difference in AUC {interval}.")
    tone = {"better": "fair" if of["worse_on"] else "good", "worse": "bad"}.get(what, "fair")
    return Words(tone=tone, headline=headline, parts=parts)


def _changes(of: dict[str, Any], name: str, first: str, second: str) -> list[str]:
    groups = {"sensitivity": f"images with {name}", "specificity": f"images without {name}"}
    lines = []
    for key, group in groups.items():
        one = of[key]
        if one["first"] is not None:
            lines.append(
                f"Of the {group}, {first} gets {_percent(one['first'])} right and {second} {_percent(one['second'])}: "
                f"{one['only_first_right']} only {first}, {one['only_second_right']} only {second}."
            )
    return lines


def _advice(of: dict[str, Any], what: str, second: str) -> list[str]:
    lines = {
        "better": ["These images speak for switching. Let it run in shadow on your own images first."],
        "worse": [f"These images speak against switching: stay with {second}."],
    }.get(what, ["Nothing here speaks for switching; these images cannot show a smaller difference than the interval."])
    if of["worse_on"]:
        lines.append(f"It is worse on {', '.join(of['worse_on'])}: do not switch where such patients come.")
    lines.append("The comparison is fair only if neither model was trained on these images.")
    return lines


def signed(value: float) -> str:
    """Return a difference with its sign: "+0.012"; "0.000" without one."""
    return f"{value:+.3f}" if abs(value) >= 0.0005 else "0.000"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"
