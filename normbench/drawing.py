"""Which figures to draw of which experiments, and where to put them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from normbench.lookup import UnknownName, nearest, shortened
from normbench.plots import FIGURES, PUBLISHED_OPTION
from normbench.plots.figure import FORMATS, render
from normbench.plots.panels import CannotDrawError
from normbench.results import Found, Tell, find, named

SERIES: tuple[str, ...] = get_args(PUBLISHED_OPTION.annotation)


def draw(
    names: Sequence[str] | None,
    results: Path,
    figure: str | None,
    formats: str,
    out: Path | None,
    published: str | None,
    tell: Tell,
) -> list[Path]:
    """Draw the figures of experiments; gives the files written.

    Args:
        names: experiments; all if there are none.
        results: where their records are.
        figure: draw only this one; by default those that the experiment's config names, else every one that
            its records hold something for.
        formats: comma-separated file formats.
        out: the directory, with one more level by experiment where several are drawn; by default ``figures``
            beside the records.
        published: series to lay over the ``batch_size`` figure.
        tell: receives one line for everything a reader should know.

    Raises:
        UnknownName: there is no such experiment, figure, format or series.
        CannotDrawError: the one figure that was asked for could be drawn of none of them.
    """
    if figure is not None:
        _check("figure", [figure], list(FIGURES))
    kinds = list(dict.fromkeys(kind.strip() for kind in formats.split(",")))
    _check("format", kinds, FORMATS)
    _check("series", [] if published is None else [published], SERIES)
    wanted = [one for name in names for one in named(results, name)] if names else named(results, None)
    wanted = list(dict.fromkeys(wanted))
    written: list[Path] = []
    for name in wanted:
        found = find(results, name, tell)
        place = results / name / "figures" if out is None else out / name if len(wanted) > 1 else out
        chosen = _chosen(found, figure)
        drawn: list[Path] = []
        unasked: list[str] = []  # why a figure that nobody named is not drawn: of interest if none is
        for one, given in chosen or [(kind.name, {}) for kind in FIGURES.values() if not kind.of]:
            options = dict(given)
            if one == "batch_size" and published:
                options["published"] = published
            said: list[str] = []
            paths = render(one, found.records, place, kinds, options, title=found.title, tell=said.append)
            if not (paths or chosen):
                unasked += said
                said = []
            for line in said:
                tell(f"{name}: {line}")
            drawn += paths
        for line in [] if drawn else unasked:
            tell(f"{name}: {line}")
        written += drawn
    if figure is not None and not written:
        raise CannotDrawError(f"--figure {figure}: nothing is drawn; without it, plot draws what there is")
    return written


def _chosen(found: Found, figure: str | None) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """Figures that were asked for by name, with their options; none where nobody asked."""
    plots = found.survey.experiment.plots if found.survey else ()
    of_config = [(choice.name, choice.options) for choice in plots]
    if figure is None:
        return of_config
    return [one for one in of_config if one[0] == figure] or [(figure, {})]


def _check(kind: str, given: Iterable[str], known: Sequence[str]) -> None:
    for word in given:
        if word not in known:
            hint = nearest(word, known)
            raise UnknownName(f"unknown {kind} {shortened(word)}{hint}; known: {', '.join(known)}")
