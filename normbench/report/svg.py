"""A comparison as an SVG: every seed a dot, means, intervals as bands, published numbers as hollow marks.

Above are the numbers of its sides, below what is compared. Colours are classes, which the page styles, so
that one figure does for light and dark. Text is escaped by ElementTree.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from normbench.report.claims import wording
from normbench.report.claims.parts import Curve, Effect, Part, effect_unit, estimate, unit_of, written
from normbench.report.metrics import metric
from normbench.text import printable

WIDTH, LEFT, RIGHT = 360.0, 46.0, 12.0
PLOT, ROW, LETTER = 150.0, 20.0, 6.2  # height of a plot along an axis, of a row of dots; width of a letter
PAD = 0.06  # of a range, beyond its first and last value
TICKS = 5
RATIOS = tuple(step * 10.0**power for power in range(-9, 10) for step in (1, 2, 5))


@dataclass(frozen=True)
class Mark:
    """A number that somebody else published, at a place of the axis or beside a side."""

    place: str
    value: float


@dataclass(frozen=True)
class Scale:
    """Where values lie between two coordinates; of ratios, by their logarithm."""

    low: float
    high: float
    start: float
    end: float
    is_ratio: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float, *, is_ratio: bool = False) -> "Scale":
        """Return a scale with room for all finite values."""
        of = math.log if is_ratio else float
        finite = [of(value) for value in values if math.isfinite(value) and (value > 0 or not is_ratio)]
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        room = PAD * (high - low) or 0.05 * abs(high) or 0.5
        return cls(low - room, high + room, start, end, is_ratio)

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value; what lies outside is put at the end."""
        if self.is_ratio:
            value = math.log(value) if value > 0 else -math.inf
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return self.start + share * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        """A few round values inside."""
        low, high = self.low, self.high
        if self.is_ratio:
            inside = [value for value in RATIOS if low <= math.log(value) <= high]
            if len(inside) > 2:
                return inside if len(inside) <= TICKS + 1 else inside[:: math.ceil(len(inside) / TICKS)]
            low, high = math.exp(low), math.exp(high)
        rough = (high - low) / TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


class Drawing:
    """An SVG that grows downward."""

    def __init__(self) -> None:
        self.root = ET.Element("svg")
        self.height = 4.0

    def add(self, tag: str, words: str = "", **attributes: object) -> ET.Element:
        """Add an element; numbers are rounded to a tenth, and ``text_anchor`` is ``text-anchor``."""
        element = ET.SubElement(self.root, tag)
        for name, value in attributes.items():
            text = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
            element.set(name.rstrip("_").replace("_", "-"), text)
        if words:
            element.text = words
        return element

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """Write a line."""
        self.add("text", printable(words, 300), x=x, y=y, class_=kind or "label", text_anchor=anchor)

    def dot(self, x: float, y: float, value: float, seed: int, kind: str, *, is_counted: bool = True) -> None:
        """Mark the value of a seed; one that is not finite by a cross."""
        late = "" if is_counted else " later"
        if math.isfinite(value):
            element = self.add("circle", cx=x, cy=y, r=3.2, class_=f"dot {kind}{late}")
            title = f"seed {seed}: {wording.number(value)}"
        else:
            path = f"M{x - 3:.1f} {y - 3:.1f}l6 6m0 -6l-6 6"
            element = self.add("path", d=path, class_=f"cross {kind}{late}")
            title = f"seed {seed}: diverged, or never got there"
        ET.SubElement(element, "title").text = title

    def hollow(self, x: float, y: float, value: float, series: int) -> None:
        """Mark a published value: a square for the first series, then a diamond, then a triangle."""
        shapes = ("M-4 -4h8v8h-8z", "M0 -5.2l5.2 5.2l-5.2 5.2l-5.2 -5.2z", "M0 -5l5 9h-10z")
        shape = shapes[series % len(shapes)]
        element = self.add("path", d=shape, transform=f"translate({x:.1f} {y:.1f})", class_="hollow")
        ET.SubElement(element, "title").text = f"published: {wording.number(value)}"

    def axis(self, scale: Scale, name: str) -> None:
        """Draw a horizontal axis below everything that there is."""
        y = self.height
        self.add("line", x1=scale.start, x2=scale.end, y1=y, y2=y, class_="axis")
        for value in scale.ticks:
            x = scale(value)
            self.add("line", x1=x, x2=x, y1=y, y2=y + 4, class_="axis")
            self.text(x, y + 15, tick_text(value), "tick", "middle")
        self.text((scale.start + scale.end) / 2, y + 29, name, "tick", "middle")
        self.height += 38

    def finished(self, name: str, title: str, description: str) -> str:
        """Return the SVG with what a screen reader says of it.

        Args:
            name: unique on the page.
        """
        root = ET.Element(
            "svg",
            {
                "viewBox": f"0 0 {WIDTH:g} {self.height:.0f}",
                "width": f"{WIDTH:g}",
                "height": f"{self.height:.0f}",
                "role": "img",
                "aria-labelledby": f"{name}-title {name}-desc",
            },
        )
        ET.SubElement(root, "title", {"id": f"{name}-title"}).text = title
        ET.SubElement(root, "desc", {"id": f"{name}-desc"}).text = description
        root.extend(list(self.root))
        return ET.tostring(root, encoding="unicode")


def tick_text(value: float) -> str:
    """Return a round value as short as it can be."""
    return f"{value:.6g}".replace("-", "−") if value else "0"


def draw(part: Part, name: str, title: str, published: Sequence[Sequence[Mark]] = ()) -> str:
    """Return the figure of a comparison.

    Args:
        name: of its ids, unique on the page.
        title: what it shows, in a few words.
        published: marks of each published series.
    """
    drawing = Drawing()
    _legend(drawing, part.curves)
    is_of_effects = part.test.kind == "crossover"  # what is published of it are differences
    beside: Sequence[Sequence[Mark]] = () if is_of_effects else published
    if part.test.along:
        _along(drawing, part, beside)
    elif part.test.b is None or part.test.b.constant is None:
        _rows(drawing, part, beside)
    if part.effects:
        _effects(drawing, part, published if is_of_effects else ())
    title = printable(title, 300)
    return drawing.finished(name, title, f"{title}. {estimate(part)}. {_seeds_text(part)}")


def _seeds_text(part: Part) -> str:
    rows = [row for curve in part.curves for row in curve.rows.values()]
    values = [value for row in rows for value in row.values.values()]
    diverged = sum(not math.isfinite(value) for value in values)
    words = f"{len(values)} values of {len(rows)} cells"
    return f"{words}, {diverged} of them not finite." if diverged else f"{words}."


def _legend(drawing: Drawing, curves: Sequence[Curve]) -> None:
    for curve in curves:
        drawing.height += 14
        drawing.add("circle", cx=LEFT - 34, cy=drawing.height - 4, r=3.2, class_=f"dot {curve.key}")
        label = f"{curve.key}: {curve.label}" if len(curves) > 1 else curve.label
        drawing.text(LEFT - 26, drawing.height, _cut(label, WIDTH - LEFT + 20))
    drawing.height += 8


def _cut(words: str, width: float) -> str:
    letters = int(width / LETTER)
    return words if len(words) <= letters else words[: letters - 1] + "…"


def _rows(drawing: Drawing, part: Part, published: Sequence[Sequence[Mark]]) -> None:
    """A row of dots for each side, without an axis."""
    marks = [mark.value for series in published for mark in series]
    values = [value for curve in part.curves for row in curve.rows.values() for value in row.values.values()]
    if not values and not marks:
        _nothing(drawing)
        return
    scale = Scale.over([*values, *marks], LEFT, WIDTH - RIGHT)
    for curve in part.curves:
        (row,) = curve.rows.values()
        y = drawing.height + ROW / 2
        drawing.add("line", x1=scale.start, x2=scale.end, y1=y, y2=y, class_="guide")
        drawing.text(LEFT - 34, y + 4, curve.key, "tick")
        for seed, value in row.values.items():
            is_counted = seed in part.judgement.seeds
            drawing.dot(scale(value), y, value, seed, curve.key, is_counted=is_counted)
        mean = _mean(row.values, part.judgement.seeds)
        if mean is not None:
            x = scale(mean)
            drawing.add("line", x1=x, x2=x, y1=y - 8, y2=y + 8, class_=f"mean {curve.key}")
        for order, series in enumerate(published):
            for mark in series:
                if mark.place == curve.key:
                    drawing.hollow(scale(mark.value), y, mark.value, order)
        drawing.height += ROW
    drawing.height += 4
    drawing.axis(scale, _metric_text(part))


def _along(drawing: Drawing, part: Part, published: Sequence[Sequence[Mark]]) -> None:
    """Both sides over the places of the axis, at equal distances."""
    places = list(part.curves[0].rows)
    marks = [mark.value for series in published for mark in series]
    values = [value for curve in part.curves for row in curve.rows.values() for value in row.values.values()]
    if not values and not marks:
        _nothing(drawing)
        return
    top = drawing.height
    scale = Scale.over([*values, *marks], top + PLOT, top)
    step = (WIDTH - RIGHT - LEFT) / len(places)
    xs = {place: LEFT + step * (number + 0.5) for number, place in enumerate(places)}
    _bracket(drawing, part, xs, top, step)
    for value in scale.ticks:
        y = scale(value)
        drawing.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="guide")
        drawing.text(LEFT - 5, y + 4, tick_text(value), "tick", "end")
    for number, curve in enumerate(part.curves):
        shift = (number - (len(part.curves) - 1) / 2) * min(12.0, step / 3)
        points = []
        for place, row in curve.rows.items():
            x = xs[place] + shift
            for seed, value in row.values.items():
                is_counted = seed in part.judgement.seeds
                drawing.dot(x, scale(value), value, seed, curve.key, is_counted=is_counted)
            mean = _mean(row.values, part.judgement.seeds)
            if mean is not None:
                points.append(f"{x:.1f},{scale(mean):.1f}")
                drawing.add(
                    "line", x1=x - 6, x2=x + 6, y1=scale(mean), y2=scale(mean), class_=f"mean {curve.key}"
                )
        if len(points) > 1:
            drawing.add("polyline", points=" ".join(points), class_=f"curve {curve.key}")
    names = {written(place): x for place, x in xs.items()}
    for order, series in enumerate(published):
        for mark in series:
            if mark.place in names:
                drawing.hollow(names[mark.place], scale(mark.value), mark.value, order)
    drawing.height = top + PLOT
    drawing.add("line", x1=LEFT, x2=WIDTH - RIGHT, y1=drawing.height, y2=drawing.height, class_="axis")
    for place, x in xs.items():
        drawing.text(x, drawing.height + 15, _cut(written(place), step), "tick", "middle")
    words = f"{_metric_text(part)}, by {part.test.along}"
    drawing.text((LEFT + WIDTH - RIGHT) / 2, drawing.height + 29, _cut(words, WIDTH - LEFT), "tick", "middle")
    drawing.height += 38


def _bracket(drawing: Drawing, part: Part, xs: Mapping[Any, float], top: float, step: float) -> None:
    """Shade where a crossover or a knee is shown to lie."""
    low, high = part.judgement.bracket or (None, None)
    if low is None and high is None:
        return
    places = {float(place): x for place, x in xs.items()}
    start = places.get(low, LEFT) if low is not None else LEFT
    end = places.get(high, WIDTH - RIGHT) if high is not None else WIDTH - RIGHT
    drawing.add("rect", x=start, y=top, width=max(end - start, step / 10), height=PLOT, class_="bracket")


def _effects(drawing: Drawing, part: Part, published: Sequence[Sequence[Mark]]) -> None:
    """What is compared: a row for each, over the region in which the claim puts it."""
    is_ratio = part.test.kind == "ratio"
    neutral = 1.0 if is_ratio else 0.0
    marks = [mark.value for series in published for mark in series]
    values = [neutral, *part.edges, *marks]
    for effect in part.effects:
        values += effect.values.values()
        if effect.interval is not None:
            values += [effect.interval.low, effect.interval.high]
    longest = max(len(effect.label) for effect in part.effects)
    left = max(LEFT, 12 + LETTER * longest)
    scale = Scale.over(values, left, WIDTH - RIGHT, is_ratio=is_ratio)
    top, bottom = drawing.height, drawing.height + ROW * len(part.effects) + 4
    if part.region is not None:
        start, end = map(scale, part.region)
        drawing.add("rect", x=start, y=top, width=end - start, height=bottom - top, class_="region")
    x = scale(neutral)
    drawing.add("line", x1=x, x2=x, y1=top, y2=bottom, class_="neutral")
    for edge in part.edges:
        if edge != neutral:
            x = scale(edge)
            drawing.add("line", x1=x, x2=x, y1=top, y2=bottom, class_="edge")
    drawing.height += 2
    for effect in part.effects:
        y = drawing.height + ROW / 2
        _effect(drawing, effect, scale, y)
        if effect.label:
            drawing.text(left - 5, y + 4, effect.label, "tick", "end")
        for order, series in enumerate(published):
            for mark in series:
                if mark.place == effect.label:
                    drawing.hollow(scale(mark.value), y, mark.value, order)
        drawing.height += ROW
    drawing.height = bottom
    words = {"ratio": "a / b", "trend": "slope", "flat": "differences", "knee": "loss"}
    name = words.get(
        part.test.kind, "a − b" if part.test.b and part.test.b.constant is None else "a − constant"
    )
    unit = effect_unit(part.test)
    drawing.axis(scale, f"{name}, {unit}" if unit else name)


def _effect(drawing: Drawing, effect: Effect, scale: Scale, y: float) -> None:
    if effect.interval is not None:
        start, end = scale(effect.interval.low), scale(effect.interval.high)
        element = drawing.add(
            "rect", x=start, y=y - 6, width=max(end - start, 1.0), height=12, rx=2, class_="band"
        )
        bounds = f"{wording.number(effect.interval.low)} to {wording.number(effect.interval.high)}"
        ET.SubElement(element, "title").text = f"interval {bounds}"
        if math.isfinite(effect.interval.mean):
            x = scale(effect.interval.mean)
            drawing.add("line", x1=x, x2=x, y1=y - 8, y2=y + 8, class_="mean effect")
    for number, (seed, value) in enumerate(effect.values.items()):
        if not math.isnan(value):
            drawing.dot(scale(value), y, value, seed, "effect", is_counted=number < effect.n)


def _nothing(drawing: Drawing) -> None:
    drawing.text(LEFT, drawing.height + 16, "no numbers yet", "tick")
    drawing.height += 28


def _mean(values: Mapping[int, float], counted: Sequence[int]) -> float | None:
    """The mean over the seeds that count; None where one of them is not finite, or none is there."""
    known = [values[seed] for seed in counted if seed in values] or list(values.values())
    return statistics.fmean(known) if known and all(map(math.isfinite, known)) else None


def _metric_text(part: Part) -> str:
    """The number of the sides with its unit; of sides with different numbers, the unit."""
    sides = [side for _, side in part.test.sides if side.constant is None]
    names = dict.fromkeys(metric(side.metric or part.test.metric).name for side in sides)
    unit = unit_of(part.test)
    if len(names) > 1:
        return unit
    (name,) = names
    if sides[0].best:
        return f"{sides[0].best} of the best {name}"
    words = f"spread of {name}" if sides[0].spread else name
    return f"{words}, {unit}" if unit else words
