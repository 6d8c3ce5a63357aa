"""A report as one HTML file that needs nothing else, as Markdown, and as JSON.

Everything that is not written in the templates is escaped: by Jinja2 in HTML, by `markdown_text` in Markdown.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from normbench.report.claims import wording
from normbench.report.claims.judge import Judged
from normbench.report.claims.parts import Part, parts_of
from normbench.report.page import Entry, Page
from normbench.report.svg import Mark, draw
from normbench.text import printable

LINK = re.compile(r"https?://[^\s<>\"']+")


class Verbatim(str):
    """Text that Markdown takes as it is."""

    __slots__ = ()


def as_html(page: Page, judged: Sequence[Judged]) -> str:
    """Return a report as an HTML file with figures.

    Args:
        judged: the claims of the page, for their figures.
    """
    parts = {each.claim.id: parts_of(each) for each in judged}
    figures: dict[str, list[Markup]] = {}
    for number, entry in enumerate(page.claims, 1):
        figures[entry.id] = [
            Markup(draw(part, f"figure-{number}-{place}", title, marks))  # ElementTree has escaped it
            for place, (part, title, marks) in enumerate(_figures(entry, parts[entry.id]), 1)
        ]
    return _environment(is_html=True).get_template("report.html").render(page=page, figures=figures)


def as_markdown(page: Page) -> str:
    """Return a report as Markdown, with numbers where HTML has figures."""
    text = _environment(is_html=False).get_template("report.md").render(page=page)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def as_json(page: Page) -> str:
    """Return a report as JSON, in pure ASCII."""
    return json.dumps(page.as_json(), indent=1, allow_nan=False) + "\n"


FORMATS: Mapping[str, Callable[[Page, Sequence[Judged]], str]] = {
    "html": as_html,
    "md": lambda page, _: as_markdown(page),
    "json": lambda page, _: as_json(page),
}


def _figures(entry: Entry, parts: Sequence[Part]) -> list[tuple[Part, str, list[list[Mark]]]]:
    """The comparisons with titles and published marks; with several, it is not known whose these are."""
    published = entry.published if len(parts) == 1 else ()
    marks = [[Mark(place, value) for place, value in each.at.items()] for each in published]
    return [
        (part, f"Claim {entry.id}: {comparison.title}", marks)
        for part, comparison in zip(parts, entry.comparisons, strict=True)
    ]


@cache
def _environment(*, is_html: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("normbench.report"),
        autoescape=is_html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=one_line if is_html else markdown_text,
    )
    environment.filters |= {"number": _number, "linked": _linked, "code": code_span}
    return environment


def one_line(value: Any) -> Any:
    """Return text without control characters; what is markup or no text stays as it is."""
    return printable(value, 10_000) if isinstance(value, str) and not isinstance(value, Markup) else value


def markdown_text(value: Any) -> Any:
    """Return text in which nothing means anything to Markdown."""
    if isinstance(value, Verbatim) or not isinstance(value, str):
        return value
    escaped = re.sub(r"([\\`*_{}\[\]<>|~$#!&])", r"\\\1", printable(value, 10_000))
    return escaped.replace("\\&", "&amp;").replace("\\<", "&lt;")


def code_span(value: object) -> Verbatim:
    """Return text as a code span of Markdown, inside a table too."""
    text = printable(str(value), 10_000).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", text)), default=0) + 1)
    room = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return Verbatim(f"{fence}{room}{text}{room}{fence}")


def _number(value: float | None) -> str:
    return "diverged" if value is None else wording.number(value)


def _linked(text: str) -> Markup:
    """Return text in which addresses of the web are links."""
    parts: list[Markup] = []
    end = 0
    for match in LINK.finditer(printable(text, 10_000)):
        address = match[0].rstrip(".,;:)")
        parts += [
            Markup("{}").format(text[end : match.start()]),
            Markup('<a href="{}" rel="noreferrer">{}</a>').format(address, address),
        ]
        end = match.start() + len(address)
    return Markup("").join([*parts, Markup("{}").format(printable(text, 10_000)[end:])])
