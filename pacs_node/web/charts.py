"""Charts as SVG, drawn by the server: geometry in attributes, colours by class, so that no script or style is needed.

Takes plain numbers, gives markup that is safe to put into a page: every text is escaped, every number formatted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 620, 262
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 18, 14, 44
SHARE_FROM = 0.5
"""Where the scale of `interval` begins: a share below it stands at its edge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point of a line chart: a share in [0, 1] with its interval."""

    label: str
    n: int
    share: float
    low: float
    high: float


def stacked(parts: Sequence[tuple[str, int, str]]) -> Markup:
    """Return a bar of the parts side by side; each (words, count, class) that is not nothing can be seen."""
    total = sum(count for _, count, _ in parts)
    if not total:
        return Markup()
    widths = [max(4.0, 1000 * count / total) if count else 0.0 for _, count, _ in parts]
    scale = 1000 / sum(widths)
    x, bars = 0.0, []
    for (_, _, kind), width in zip(parts, widths, strict=True):
        if width:
            bars.append(_tag("rect", class_=kind, x=x, y=0, width=width * scale, height=16))
        x += width * scale
    return _svg(1000, 16, bars, fixed=16)


def bar(share: float, *, limit: float | None = None) -> Markup:
    """Return how full something is, in [0, 1], with a line where it must not go."""
    parts = [
        _tag("rect", class_="d", y=2, width=200, height=8),
        _tag("rect", class_="fillbar", y=2, width=200 * _within(share), height=8),
    ]
    if limit is not None:
        x = 200 * _within(limit)
        parts.append(_tag("line", class_="limit", x1=x, x2=x, y1=0, y2=12))
    return _svg(200, 12, parts, fixed=12)


def spread(median: float, high: float, most: float) -> Markup:
    """Return a median as a bar and its 95th percentile as a whisker, on a scale from 0 to `most`."""
    at = [120 * _within(value / most) if most else 0.0 for value in (median, high)]
    return _svg(
        120,
        12,
        [
            _tag("rect", class_="fillbar", y=2, width=at[0], height=8),
            _tag("line", class_="whisker", x1=at[0], x2=at[1], y1=6, y2=6),
        ],
        fixed=12,
    )


def interval(share: float, low: float, high: float, label: str) -> Markup:
    """Return a share with its interval, on a scale from `SHARE_FROM` to 1."""
    x = [2 + 136 * _within((value - SHARE_FROM) / (1 - SHARE_FROM)) for value in (share, low, high)]
    body = [
        _tag("line", class_="grid", x1=2, x2=138, y1=7, y2=7),
        _tag("line", class_="whisker", x1=x[1], x2=x[2], y1=7, y2=7),
        _tag("circle", class_="point", cx=x[0], cy=7, r=3.5),
    ]
    inner = Markup().join(body)
    return Markup(
        '<svg class="chart fixed" viewBox="0 0 140 14" width="140" height="14" role="img" aria-label="{}">{}</svg>'
    ).format(label, inner)


def over_time(marks: Sequence[Mark], label: str) -> Markup:
    """Return shares over time as a line in the band of their intervals; `n` stands below each."""
    if not marks:
        return Markup()
    floor = min(0.8, int(10 * min(mark.low for mark in marks)) / 10)
    x = [_LEFT + 12 + i * (WIDTH - _LEFT - _RIGHT - 12) / max(len(marks) - 1, 1) for i in range(len(marks))]

    def y(share: float) -> float:
        return _TOP + (1 - share) / (1 - floor) * (HEIGHT - _TOP - _BOTTOM)

    upper = [(at, y(mark.high)) for at, mark in zip(x, marks, strict=True)]
    lower = [(at, y(mark.low)) for at, mark in zip(x, marks, strict=True)]
    line = [(at, y(mark.share)) for at, mark in zip(x, marks, strict=True)]
    body = [_rule(y(level), level) for level in _levels(floor)]
    body += [
        _tag("path", class_="ci", d=f"{_path(upper)}L{_path(lower[::-1])[1:]}Z"),
        _tag("path", class_="line", d=_path(line)),
    ]
    for (at, height), mark in zip(line, marks, strict=True):
        body += [
            _tag("circle", class_="dot", cx=at, cy=height, r=3),
            _text(at, HEIGHT - 25, mark.label, "middle"),
            _text(at, HEIGHT - 9, str(mark.n), "middle"),
        ]
    body += [_text(0, HEIGHT - 25, "week"), _text(0, HEIGHT - 9, "n")]
    inner = Markup().join(body)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, inner
    )


def _levels(floor: float) -> list[float]:
    step = 0.05 if floor >= 0.8 else 0.1 if floor >= 0.5 else 0.2
    return [round(1 - i * step, 2) for i in range(int((1 - floor) / step + 1e-6) + 1)]


def _rule(y: float, level: float) -> Markup:
    line = _tag("line", class_="grid", x1=_LEFT, x2=WIDTH, y1=y, y2=y)
    return line + _text(_LEFT - 6, y + 4, f"{100 * level:.0f} %", "end")


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))


def _text(x: float, y: float, words: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(_number(x), _number(y), anchor, words)


def _svg(width: int, height: int, parts: Sequence[Markup], *, fixed: int) -> Markup:
    """Return a strip that stretches; what it shows stands in words beside it, so it is hidden from readers of text."""
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" height="{}" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(width, height, fixed, Markup().join(parts))


def _tag(name: str, **attributes: str | float) -> Markup:
    written = Markup().join(
        Markup(' {}="{}"').format(key.rstrip("_"), value if isinstance(value, str) else _number(value))
        for key, value in attributes.items()
    )
    return Markup("<{}{}/>").format(escape(name), written)


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _within(share: float) -> float:
    return min(max(share, 0.0), 1.0)
