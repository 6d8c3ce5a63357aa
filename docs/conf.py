"""Settings of the documentation site: python -m sphinx -W --keep-going -n docs build/docs. Needs no torch."""

import re
from typing import Any

project = "normbench"
extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to headings, as GitHub makes them
html_theme = "furo"
html_title = "normbench"


def add_table_of_contents(_app: Any, name: str, source: list[str]) -> None:
    """Make every page that the index links to a page of the site; GitHub would show the directive as code."""
    if name == "index":
        pages = re.findall(r"\]\(([\w-]+)\.md\)", source[0])
        source[0] += "\n".join(["\n```{toctree}", ":hidden:", "", *pages, "```", ""])


def setup(app: Any) -> None:
    """Register what Sphinx calls for every page."""
    app.connect("source-read", add_table_of_contents)
