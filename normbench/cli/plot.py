"""Which figures to draw of which experiments, and where to put them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from normbench.cli.errors import message_of
from normbench.config.catalog.figures import FIGURES, PUBLISHED_OPTION
from normbench.config.registry import UnknownName
from normbench.report.figures.base import FORMATS, render
from normbench.report.figures.panels import CannotDrawError
from normbench.report.figures.published import OVERLAID
from normbench.sweep.results import ONLY_TUNING, StoredExperiment, Tell, find, named
from normbench.text import did_you_mean, quoted

SERIES: tuple[str, ...] = get_args(PUBLISHED_OPTION.annotation)


def draw(
    names: Sequence[str] | None,
    results: Path,
    figure: str | None,
    formats: str,
    out: Path | None,
    published: str | None,
    tell: Tell,
) -> Iterator[Path]:
    """Draw the figures of experiments; yields every file once it is written.

    Every figure of every experiment is tried, whatever becomes of the others.

    Args:
        names: experiments; all if there are none.
        results: where their records are.
        figure: draw only this one; by default those that the experiment's config names, else every one that
            its records hold something for.
        formats: comma-separated file formats.
        out: the directory, with one more level by experiment where several are drawn; by default ``figures``
            beside the records.
        published: series to lay over the figures that have such an option and an axis of its values.
        tell: receives one line for everything a reader should know.

    Raises:
        UnknownName: there is no such experiment, figure, format or series.
        CannotDrawError: the one figure that was asked for could be drawn of none of them.
        ExceptionGroup: after all else is drawn, of the exceptions that figures or experiments ended with;
            ``tell`` has been told of each.
    """
    if figure is not None:
        _check("figure", [figure], list(FIGURES))
    kinds = list(dict.fromkeys(kind.strip() for kind in formats.split(",")))
    _check("format", kinds, FORMATS)
    _check("series", [] if published is None else [published], SERIES)
    wanted = [each for name in names for each in named(results, name)] if names else named(results, None)
    wanted = list(dict.fromkeys(wanted))
    faults: list[Exception] = []
    drawn = False
    for name in wanted:
        place = results / name / "figures" if out is None else out / name if len(wanted) > 1 else out
        try:
            found = find(results, name, tell)
        except Exception as error:  # whatever is wrong with one experiment
            tell(f"{name}: no figure is drawn: {message_of(error)}")
            faults.append(error)
            continue
        if found.is_tuning:
            tell(f"{name}: nothing to draw, {ONLY_TUNING}")
            continue
        for path in _draw(found, place, figure, kinds, published, tell, faults):
            drawn = True
            yield path
    if faults:
        raise ExceptionGroup("not every figure is drawn, see above; all others are", faults)
    if figure is not None and not drawn:
        raise CannotDrawError(f"--figure {figure}: nothing is drawn; without it, plot draws what there is")


def _draw(
    found: StoredExperiment,
    place: Path,
    figure: str | None,
    kinds: Sequence[str],
    published: str | None,
    tell: Tell,
    faults: list[Exception],
) -> Iterator[Path]:
    """Draw the figures of one experiment; what a figure fails with is told, and added to ``faults``."""
    chosen = _chosen(found, figure)
    labels = found.experiment.document.get("labels", {}) if found.experiment else {}
    trials = found.table.relabel(labels)
    drawn = False
    unasked: list[str] = []  # why a figure that nobody named is not drawn: of interest if none is
    for kind, given in chosen or [(kind.name, {}) for kind in FIGURES.values() if not kind.key_options]:
        options = dict(given)
        if published and "published" in FIGURES[kind].options and given.get("key", "batch_size") in OVERLAID:
            options["published"] = published
        lines: list[str] = []
        paths: list[Path] = []
        try:
            paths = render(kind, trials, place, kinds, options, title=found.title, tell=lines.append)
        except Exception as error:  # whatever a figure stumbles over, the others do not need it
            tell(f"{found.name}: figure {FIGURES[kind].stem(given)} is not drawn: {message_of(error)}")
            faults.append(error)
        if not (paths or chosen):
            unasked += lines
            lines = []
        for line in lines:
            tell(f"{found.name}: {line}")
        drawn = drawn or bool(paths)
        yield from paths
    for line in [] if drawn else unasked:
        tell(f"{found.name}: {line}")


def _chosen(found: StoredExperiment, figure: str | None) -> Sequence[tuple[str, Mapping[str, Any]]]:
    """Return the figures that were asked for by name, with their options; none where nobody asked."""
    plots = found.survey.experiment.plots if found.survey else ()
    of_config = [(choice.name, choice.options) for choice in plots]
    if figure is None:
        return of_config
    return [choice for choice in of_config if choice[0] == figure] or [(figure, {})]


def _check(kind: str, given: Iterable[str], known: Sequence[str]) -> None:
    for word in given:
        if word not in known:
            hint = did_you_mean(word, known)
            raise UnknownName(f"unknown {kind} {quoted(word)}{hint}; known: {', '.join(known)}")
