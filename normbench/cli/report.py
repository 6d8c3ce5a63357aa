"""``report``: which claims to report on, and the files to write."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from normbench.cli import claims as verdicts
from normbench.config.registry import UnknownName
from normbench.files import write_atomically
from normbench.report import html
from normbench.report.claims.document import Claim
from normbench.report.claims.judge import Judged
from normbench.report.page import page_of
from normbench.sweep.adaptive import Looks
from normbench.sweep.results import Tell
from normbench.text import did_you_mean, printable, quoted


def write(
    names: Sequence[str] | None, files: Sequence[Path], results: Path, out: Path, formats: str, tell: Tell
) -> Iterator[Path]:
    """Write a report on the claims that experiments test; yields every file once it is written.

    Verdicts are those of all claims, whichever are shown.

    Args:
        names: experiments; those of all claims if there are none.
        files: of claims; those of the project if there are none.
        results: where their records are.
        out: the file; its ending becomes that of each format.
        formats: comma-separated.
        tell: receives one line for every record that cannot be read.

    Raises:
        UnknownName: there is no such format, or no claim is tested by such an experiment.
        ConfigError: a file of claims cannot be read.
    """
    if not out.name or out.is_dir():
        raise UnknownName(f"--out: {quoted(str(out))} is no name of a file")
    if not results.is_dir():
        tell(f"{printable(results)}: there is no such directory, so there are no records")
    kinds = list(dict.fromkeys(kind.strip() for kind in formats.split(",")))
    for kind in kinds:
        if kind not in html.FORMATS:
            hint = did_you_mean(kind, html.FORMATS)
            known = ", ".join(html.FORMATS)
            raise UnknownName(f"--format: unknown format {quoted(kind)}{hint}; known: {known}")
    chosen = verdicts.chosen((), files)
    wanted = _testing(chosen, names or [])
    judged = verdicts.judged(chosen, results, tell)
    shown = [each for each in judged if each.claim.id in wanted]
    declared = Looks.read(results).hashes(each.claim for each in judged)
    page = page_of(shown, len(judged), declared)
    for kind in kinds:
        path = out.with_suffix(f".{kind}")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, html.FORMATS[kind](page, shown).encode())
        yield path


def answer(judged: Judged, results: Path) -> Path:
    """Write the page of one question beside the records of its experiment; return its path."""
    (name,) = {each.name for each in judged.claim.experiments.values()}
    path = results / name / "questions" / f"{judged.claim.id}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    declared = Looks.read(results).hashes([judged.claim])
    write_atomically(path, html.as_html(page_of([judged], 1, declared), [judged]).encode())
    return path


def _testing(claims: Sequence[Claim], names: Sequence[str]) -> set[str]:
    """The ids of the claims that these experiments test; of all without names."""
    tested = {claim.id: {each.name for each in claim.experiments.values()} for claim in claims}
    known = sorted(set().union(*tested.values()))
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UnknownName(f"no claim is tested by {quoted(name)}{hint}; known: {', '.join(known)}")
    return {claim for claim, experiments in tested.items() if not names or experiments & set(names)}
