"""Draws the report's charts as inline SVG: the funnel as a stream, loss curves, small trends and histograms.

Colours are CSS classes, so that one drawing serves light and dark; text is escaped; nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from kiwi.reports.figures import count, percent, ticks

COLUMN = 140.0
STREAM = 118.0
BEND = 12.0


@dataclass(frozen=True)
class Step:
    """One stage of the stream: rows that came in, and those that left it there."""

    name: str
    rows_in: int
    rejected: int
    failed: int


def funnel_stream(steps: Sequence[Step], end_label: str) -> Markup:
    """The funnel as a stream that narrows from left to right; what leaves it bends down below its stage.

    One column of 140 units a stage and one for the end, so that a row of text below can share the columns.
    """
    width = COLUMN * (len(steps) + 1)
    most = max((step.rows_in for step in steps), default=0)
    scale = STREAM / most if most else 0.0
    top, floor = 46.0, 46.0 + STREAM + 66.0
    parts: list[str] = []
    for index, step in enumerate(steps):
        x = COLUMN * index
        thickness, left_by = step.rows_in * scale, (step.rejected + step.failed) * scale
        turn = x + COLUMN * 0.30
        parts.append(_bar(x, top, turn - x + 0.5, thickness, "flow-in"))
        parts.append(_bar(turn, top, COLUMN - (turn - x) + 0.5, thickness - left_by, "flow-in"))
        bottom, inner = top + thickness, BEND
        for rows, kind in ((step.failed, "flow-failed"), (step.rejected, "flow-rejected")):
            if rows:
                drop = max(rows * scale, 1.6)
                parts.append(_bend(turn, bottom, drop, inner, floor, kind))
                bottom, inner = bottom - drop, inner + drop
        parts.append(_text(x, 16, step.name, "stage-name"))
        parts.append(_text(x, 34, count(step.rows_in), "stage-count"))
    last = steps[-1].rows_in - steps[-1].rejected - steps[-1].failed if steps else 0
    x = COLUMN * len(steps)
    parts.append(_bar(x, top, COLUMN * 0.5, max(last * scale, 1.6 if last else 0), "flow-end"))
    parts.append(_text(x, 16, end_label, "stage-name"))
    parts.append(_text(x, 34, count(last), "stage-count strong"))
    said = ", ".join(
        f"{step.name}: {step.rows_in} in, {step.rejected} rejected, {step.failed} failed" for step in steps
    )
    return _svg(width, floor, parts, f"Funnel. {said}. {last} {end_label}.", "stream")


def _bar(x: float, y: float, width: float, height: float, kind: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{max(height, 0):.2f}" class="{kind}"/>'


def _bend(x: float, bottom: float, thickness: float, inner: float, floor: float, kind: str) -> str:
    """A band that leaves the stream at its lower edge and turns downwards; it ends in an arrow at `floor`."""
    outer, near = inner + thickness, x + inner
    far, tip = x + outer, min(thickness * 0.5, 10.0)
    turned = bottom + inner
    return (
        f'<path class="{kind}" d="M{x:.1f},{bottom - thickness:.2f} '
        f"A{outer:.2f},{outer:.2f} 0 0 1 {far:.2f},{turned:.2f} "
        f"L{far:.2f},{floor - tip:.2f} L{(near + far) / 2:.2f},{floor:.2f} L{near:.2f},{floor - tip:.2f} "
        f'L{near:.2f},{turned:.2f} A{inner:.2f},{inner:.2f} 0 0 0 {x:.1f},{bottom:.2f} Z"/>'
    )


@dataclass(frozen=True)
class Frame:
    """A plot's inside in SVG units, and the values at its edges."""

    left: float
    top: float
    right: float
    bottom: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        span = self.x_high - self.x_low
        return self.left + (self.right - self.left) * ((value - self.x_low) / span if span else 0.5)

    def y(self, value: float) -> float:
        span = self.y_high - self.y_low
        share = (value - self.y_low) / span if span else 0.5
        return self.bottom - (self.bottom - self.top) * min(max(share, 0.0), 1.0)

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> str:
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f'<polyline points="{path}" class="{kind}"/>'


Curve = Sequence[tuple[float, float]]


def loss_panel(curves: Mapping[str, Curve], y_range: tuple[float, float], name: str) -> Markup:
    """One stage's loss by step: every value faint, its running mean strong, the kind's name at the curve's end.

    Args:
        curves: by kind (image, video, reference), (step, loss) in the order of steps.
        y_range: shared by the stages, so that their panels compare.
    """
    width, height = 360.0, 216.0
    last = max((points[-1][0] for points in curves.values() if points), default=1.0)
    frame = Frame(34, 10, width - 70, height - 30, 0.0, max(last, 1.0), *y_range)
    parts = _grid(frame, 4)
    for tick in ticks(0, frame.x_high, 3):
        parts.append(_text(frame.x(tick), height - 12, count(tick), "tick", "middle"))
    labels: list[tuple[float, str]] = []
    for kind, points in curves.items():
        if not points:
            continue
        thinned = _thinned(points, 240)
        smooth = _running_mean(thinned, max(len(thinned) // 14, 1))
        parts.append(frame.line(thinned, f"raw k-{escape(kind)}"))
        parts.append(frame.line(smooth, f"smooth k-{escape(kind)}"))
        parts.append(_dot(frame.x(smooth[-1][0]), frame.y(smooth[-1][1]), f"dot k-{escape(kind)}", 2.6))
        labels.append((frame.y(smooth[-1][1]), kind))
    for y, kind in _apart(labels, 14.0, frame.bottom):
        parts.append(_text(frame.right + 7, y + 4, kind, f"label k-{escape(kind)}"))
    said = "; ".join(
        f"{kind} from {points[0][1]:.3f} to {points[-1][1]:.3f}" for kind, points in curves.items() if points
    )
    return _svg(width, height, parts, f"Loss of {name} by step: {said}", "plot")


def trend(values: Sequence[tuple[str, float | None]], y_range: tuple[float, float]) -> Markup:
    """A small line through one share (0 to 1) after each stage, the figures at its points."""
    width, height = 200.0, 92.0
    frame = Frame(16, 20, width - 16, height - 20, 0.0, max(len(values) - 1, 1), *y_range)
    parts = [f'<line x1="0" x2="{width:.0f}" y1="{frame.bottom}" y2="{frame.bottom}" class="axis"/>']
    known = [(float(index), value) for index, (_, value) in enumerate(values) if value is not None]
    if known:
        area = [(known[0][0], y_range[0]), *known, (known[-1][0], y_range[0])]
        parts.append(frame.line(area, "area k-candidate"))
        parts.append(frame.line(known, "smooth k-candidate"))
    for index, value in known:
        parts.append(_dot(frame.x(index), frame.y(value), "dot k-candidate", 3))
        parts.append(_text(frame.x(index), frame.y(value) - 8, percent(value), "tick value", "middle"))
    for index, (name, _) in enumerate(values):
        edge = "start" if index == 0 else "end" if index == len(values) - 1 else "middle"
        x = {"start": 0.0, "end": width, "middle": frame.x(index)}[edge]
        parts.append(_text(x, height - 5, name, "tick", edge))
    return _svg(width, height, parts, ", ".join(f"{name}: {percent(value)}" for name, value in values), "plot")


def histogram(
    rows: Sequence[int],
    low: float,
    high: float,
    floor: float | None = None,
    ceiling: float | None = None,
) -> Markup:
    """How many rows lie in each equal part of [low, high]; parts under `floor` or over `ceiling` are drawn rejected."""
    width, height, bins = 300.0, 118.0, len(rows)
    frame = Frame(4, 10, width - 4, height - 20, low, high, 0.0, float(max(rows, default=0) or 1))
    parts: list[str] = []
    for index, amount in enumerate(rows):
        start, end = low + (high - low) * index / bins, low + (high - low) * (index + 1) / bins
        out = (floor is not None and end <= floor + 1e-9) or (ceiling is not None and start >= ceiling - 1e-9)
        x, y = frame.x(start), frame.y(amount)
        kind = "flow-rejected" if out else "flow-in"
        tall = max(frame.bottom - y, 1.2 if amount else 0.0)  # a few among millions are still seen
        parts.append(_bar(x + 0.5, frame.bottom - tall, frame.x(end) - x - 1, tall, kind))
    parts.append(f'<line x1="{frame.left}" x2="{frame.right}" y1="{frame.bottom}" y2="{frame.bottom}" class="axis"/>')
    for tick in ticks(low, high, 5):
        anchor = "middle" if low < tick < high else "start" if tick <= low else "end"
        parts.append(_text(frame.x(tick), height - 5, f"{tick:g}", "tick", anchor))
    for bound in (floor, ceiling):
        if bound is not None and low <= bound <= high:
            x = frame.x(bound)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{frame.bottom}" class="threshold"/>')
    return _svg(width, height, parts, f"{sum(rows)} values between {low:g} and {high:g}", "plot")


def _grid(frame: Frame, wanted: int) -> list[str]:
    parts = []
    for tick in ticks(frame.y_low, frame.y_high, wanted):
        y = frame.y(tick)
        parts.append(f'<line x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
        parts.append(_text(frame.left - 7, y + 4, f"{tick:g}", "tick", "end"))
    return parts


def _thinned(points: Curve, most: int) -> list[tuple[float, float]]:
    """At most about `most` points: the mean of each run of neighbours."""
    size = -(-len(points) // most)
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def _running_mean(points: Curve, reach: int) -> list[tuple[float, float]]:
    """Each value as the mean over `reach` neighbours on either side."""
    smooth = []
    for index, (x, _) in enumerate(points):
        near = points[max(index - reach, 0) : index + reach + 1]
        smooth.append((x, sum(y for _, y in near) / len(near)))
    return smooth


def _apart(labels: Sequence[tuple[float, str]], gap: float, floor: float) -> list[tuple[float, str]]:
    """Labels moved downwards until none covers another, and up again where they would leave the plot."""
    placed: list[tuple[float, str]] = []
    for y, name in sorted(labels):
        placed.append((max(y, placed[-1][0] + gap) if placed else y, name))
    over = placed[-1][0] - floor if placed else 0.0
    return [(y - over, name) for y, name in placed] if over > 0 else placed


def _dot(x: float, y: float, kind: str, radius: float) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" class="{kind}"/>'


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    placed = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{placed}>{escape(text)}</text>'


def _svg(width: float, height: float, parts: Sequence[str], said: str, kind: str) -> Markup:
    return Markup(  # nosec B704 - numbers of ours; text is escaped where it is put in
        f'<svg class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(said)}">'
        f"{''.join(parts)}</svg>"
    )
