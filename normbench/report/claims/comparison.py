"""The comparison that decides a claim, as it is written: its kind, its two sides, its axis and its margin."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from normbench.config.registry import conflict
from normbench.config.trial import Frozen, Positive
from normbench.report.claims import brackets, kinds

Kind = Literal["greater", "less", "equivalent", "flat", "crossover", "knee", "trend", "ratio", "all", "any"]
COMPOSED = ("all", "any")
COMMON = ("metric", "margin_from", "experiment")
NEEDED: Mapping[str, tuple[str, ...]] = {
    "greater": ("a", "b", "margin"),
    "less": ("a", "b", "margin"),
    "equivalent": ("a", "b", "margin"),
    "flat": ("a", "along", "margin"),
    "crossover": ("a", "b", "along"),
    "knee": ("a", "along", "reference", "margin"),
    "trend": ("a", "along", "direction"),
    "ratio": ("a", "b", "factor"),
    "all": ("of",),
    "any": ("of",),
}
OPTIONAL: Mapping[str, tuple[str, ...]] = {
    "crossover": ("within",),
    "knee": ("within",),
    "trend": ("margin",),
}
Value = bool | int | float | str | None


class Side(Frozen):
    """One side of a comparison: the settings that select a cell, and what is read of its trials.

    Attributes:
        where: settings by dotted key, such as ``{norm: batch, batch_size: 2}``.
        metric: number of a record, if it is not that of the whole comparison.
        spread: dotted key; the number is the largest less the smallest metric over that setting's values.
        best: dotted key; the number is the value of that setting at which the metric is best.
        constant: a number that the other side is compared with, in place of everything else.
    """

    where: Mapping[str, Any] = {}
    metric: str | None = None
    spread: str | None = None
    best: str | None = None
    constant: Annotated[float, Field(allow_inf_nan=False)] | None = None

    @property
    def over(self) -> str | None:
        """The setting whose values make up one number, if there is one."""
        return self.spread or self.best


OF_A_SIDE = frozenset(Side.model_fields) - {"where"}


class Test(Frozen):
    """The comparison that decides a claim; which keys it takes depends on its ``kind``, see ``NEEDED``.

    Attributes:
        a: one side; of ``flat``, ``knee`` and ``trend`` the only one.
        b: the other side.
        along: dotted key of the setting that varies, such as ``batch_size``.
        reference: value of ``along`` that the drops of a knee are measured against.
        margin: smallest difference that counts, in the unit of the metric (percentage points of an accuracy).
        margin_from: where the margin comes from.
        factor: of a ratio, the smallest quotient a / b that counts; above 1.
        direction: of a trend.
        within: range of ``along`` in which the document puts the crossover or the knee, such as ``[2, 8]``.
        metric: number of a record that is compared, see :mod:`normbench.report.metrics`.
        experiment: file of the experiment, if it is not that of the claim; relative to the claim's file.
        of: parts of ``all`` and ``any``.
    """

    __test__ = False  # no test of pytest

    kind: Kind
    a: Side | None = None
    b: Side | None = None
    along: str | None = None
    reference: Value = None
    margin: Positive | None = None
    margin_from: str = ""
    factor: Annotated[float, Field(gt=1, allow_inf_nan=False)] | None = None
    direction: Literal["rises", "falls"] | None = None
    within: Annotated[tuple[float, float], Field(strict=False)] | None = None
    metric: str = "accuracy"
    experiment: str | None = None
    of: Annotated[tuple["Test", ...], Field(strict=False)] = ()

    @field_validator("a", "b", mode="before")
    @classmethod
    def _side(cls, value: object) -> object:
        """Settings are written beside the few keys of a side that are no settings."""
        if not isinstance(value, Mapping) or "where" in value:
            return value
        where = {key: value[key] for key in value if key not in OF_A_SIDE}
        return {"where": where} | {key: value[key] for key in value if key in OF_A_SIDE}

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> Self:
        given = self.model_fields_set - {"kind"}
        needed = NEEDED[self.kind]
        for key in needed:
            if key not in given:
                raise conflict(f"a claim of kind {self.kind} needs {key!r}", "kind", key)
        taken = (*needed, *OPTIONAL.get(self.kind, ()), *(() if self.kind in COMPOSED else COMMON))
        for key in sorted(given):
            if key not in taken:
                words = f"a claim of kind {self.kind} takes no {key!r}; it takes {', '.join(taken)}"
                raise conflict(words, key)
        if self.a is not None and self.a.constant is not None:
            raise conflict("a 'constant' is for side b", "a")
        if self.b is not None and self.b.constant is not None and self.kind in ("ratio", "crossover"):
            raise conflict(f"a claim of kind {self.kind} compares two cells, not one with a constant", "b")
        if self.kind in COMPOSED and len(self.of) < 2:
            raise conflict(f"{self.kind} needs at least two parts", "of")
        return self

    @property
    def parts(self) -> Iterator["Test"]:
        """The comparisons inside it that look at records, from left to right."""
        if self.kind not in COMPOSED:
            yield self
        for part in self.of:
            yield from part.parts

    @property
    def sides(self) -> Iterator[tuple[str, Side]]:
        """Its sides by their keys."""
        for key, side in (("a", self.a), ("b", self.b)):
            if side is not None:
                yield key, side

    def label(self, side: Side, place: Any, experiment: str) -> str:
        """Return the name of the numbers of a side at a place of the axis; no two are called alike."""
        name = side.metric or self.metric
        settings = {**side.where, **({self.along: place} if self.along else {})}
        words = " ".join(f"{key}={value}" for key, value in settings.items()) or "all"
        constant = next((each.constant for _, each in self.sides if each.constant), None)
        experiment += f", less {constant:g}" if constant else ""
        if side.spread:
            return f"spread of {name} over {side.spread}, {words} ({experiment})"
        if side.best:
            return f"{side.best} of the best {name}, {words} ({experiment})"
        return f"{words} ({experiment})" if name == "accuracy" else f"{name}, {words} ({experiment})"

    def on(self, axis: tuple[Any, ...], labels: Mapping[str, tuple[str, ...]]) -> kinds.Kind:
        """Return the statistical test of this comparison.

        Args:
            axis: the places of ``along``, ascending.
            labels: of the numbers of every side, ``a`` and perhaps ``b``, by place.

        Raises:
            ValueError: margin, axis and reference do not go together.
        """
        a, b = labels["a"], labels.get("b", ())
        if self.kind in ("crossover", "knee", "trend") and any(
            isinstance(place, str | bool) for place in axis
        ):
            raise ValueError(f"{self.along} has no order that a {self.kind} could be along")
        second, margin = b[0] if b else None, self.margin or 0.0
        is_exact = self.metric == "diverged" or any(side.best for _, side in self.sides)
        build: Mapping[str, Callable[[], kinds.Kind]] = {
            "greater": lambda: kinds.Greater(a[0], second, margin, is_exact),
            "less": lambda: kinds.Less(a[0], second, margin, is_exact),
            "equivalent": lambda: kinds.Equivalent(a[0], second, margin, is_exact),
            "flat": lambda: kinds.Flat(a, margin),
            "trend": lambda: kinds.Trend(a, axis, self.direction or "rises", margin),
            "ratio": lambda: kinds.Ratio(a[0], b[0], "greater", self.factor or 1.0, is_exact),
            "crossover": lambda: brackets.Crossover(a, b, axis, self.within),
            "knee": lambda: brackets.Knee(a, axis, float(str(self.reference)), margin, self.within),
        }
        return build[self.kind]()
