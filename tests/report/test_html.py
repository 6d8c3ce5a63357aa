"""The report: all is there, nothing is fetched, no name breaks out, same records give the same bytes."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from claim_records import EXPERIMENT
from markdown_it import MarkdownIt
from report_claims import CLAIMS, HOSTILE, judged

from normbench.report import html
from normbench.report.claims.judge import Judged
from normbench.report.claims.parts import parts_of
from normbench.report.claims.wording import measured
from normbench.report.page import Page, page_of

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "link", "input", "br"}


class Tree(HTMLParser):
    """The tags of a page with their attributes and the text inside each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append("")
        if tag not in VOID:
            self.open.append(len(self.tags) - 1)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.tags[self.open.pop()][0] == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        for index in self.open:
            self.texts[index] += data

    def attributes(self, name: str) -> list[str]:
        return [attributes[name] for _, attributes in self.tags if name in attributes]

    def of(self, tag: str) -> list[str]:
        return [text for (name, _), text in zip(self.tags, self.texts, strict=True) if name == tag]


@pytest.fixture(scope="module")
def claims(tmp_path_factory: pytest.TempPathFactory) -> list[Judged]:
    return judged(tmp_path_factory.mktemp("claims"))


@pytest.fixture(scope="module")
def page(claims: list[Judged]) -> Page:
    return page_of(claims, len(claims), {"greater": "a" * 64})


@pytest.fixture(scope="module")
def text(page: Page, claims: list[Judged]) -> str:
    return html.as_html(page, claims)


@pytest.fixture(scope="module")
def tree(text: str) -> Tree:
    found = Tree(text)
    assert not found.open
    return found


# ---- content


def test_every_claim_has_a_row_a_section_and_a_figure_for_each_comparison(
    tree: Tree, claims: list[Judged]
) -> None:
    ids = tree.attributes("id")
    links = tree.attributes("href")
    for each in claims:
        assert f"claim-{each.claim.id}" in ids
        assert f"#claim-{each.claim.id}" in links
    drawings = [
        attributes for tag, attributes in tree.tags if tag == "svg" and "aria-labelledby" in attributes
    ]
    assert len(drawings) == sum(len(parts_of(each)) for each in claims)


def test_ids_are_unique_and_every_reference_leads_to_one(tree: Tree) -> None:
    ids = tree.attributes("id")
    assert [name for name, count in Counter(ids).items() if count > 1] == []
    wanted = [link[1:] for link in tree.attributes("href") if link.startswith("#")]
    wanted += [name for names in tree.attributes("aria-labelledby") for name in names.split()]
    assert set(wanted) <= set(ids)


def test_nothing_is_fetched(text: str, tree: Tree) -> None:
    assert tree.attributes("src") == []
    assert "url(" not in text
    assert "@import" not in text
    for tag, attributes in tree.tags:
        address = attributes.get("href", "#")
        assert (
            address.startswith("#") or (tag == "a" and address.startswith("https://")) or address == "data:,"
        )
    assert "default-src 'none'" in text


def test_verdicts_are_told_by_word_and_by_shape(text: str) -> None:
    shapes = dict(re.findall(r'<span class="verdict [\w-]+"><svg[^>]*>(.*?)</svg>([\w ]+)</span>', text))
    words = ("supported", "contradicted", "supported in part", "inconclusive", "not run")
    assert sorted(shapes.values()) == sorted(words)
    assert len(shapes) == len(words)


def test_every_number_of_the_table_is_that_of_the_command_line(page: Page, claims: list[Judged]) -> None:
    shown = {entry.id: entry for entry in page.claims}
    for each in claims:
        assert shown[each.claim.id].measured == (measured(each) or "–")
        assert shown[each.claim.id].verdict == str(each.judgement.verdict)


def test_every_seed_is_a_dot_and_a_diverged_trial_a_cross(text: str) -> None:
    (figure,) = re.findall(r"<svg[^>]*aria-labelledby=\"figure-1-1.*?</svg>", text, re.DOTALL)
    assert figure.count('class="dot a"') == 6  # five seeds, and the one of the legend
    assert figure.count('class="dot a later"') == 1  # the sixth, which no look has taken yet
    assert figure.count('class="band"') == 1
    assert figure.count('class="hollow"') == 2  # published
    assert text.count('class="cross a"') == 2
    assert "seed 1: diverged" in text


def test_records_arithmetic_and_scope_stand_with_every_claim(page: Page, tree: Tree) -> None:
    entry = page.claims[0]
    assert len(entry.records) == 12
    assert all(name.startswith("made_up/") for name in entry.records)
    assert set(entry.records) <= set(tree.of("code"))
    assert (
        entry.scope
        == "resnet8, shapes, 2 epochs, learning rate 0.1 · batch size / 128, cosine schedule, fp32"
    )
    (line,) = entry.comparisons[0].arithmetic
    assert line in tree.of("li")


def test_what_was_not_run_says_why_and_diverged_trials_have_a_rate(page: Page) -> None:
    reasons = dict(page.not_run)
    assert reasons["absent"] == "there are no records"
    assert reasons["later"] == "there is no such <task> yet"
    (cell,) = page.diverged
    assert (cell.cell, cell.claims) == ("norm=layer batch_size=2 (made_up)", ("all",))
    assert cell.rate.startswith("2 of 5 diverged [")


def test_the_rule_has_the_looks_the_level_and_the_correction(page: Page) -> None:
    words = " ".join(page.rule)
    assert "3, 5, 8, 12, 20 seeds" in words
    assert "t(1 − 0.05/10, n − 1)" in words
    assert "corrected for 12 claims" in words


def test_every_experiment_can_be_run_again(page: Page) -> None:
    assert page.rerun[0] == (
        "normbench run made_up.yaml",
        "trains the trials of made_up that have no record",
    )


def test_sections_stand_in_their_order(tree: Tree) -> None:
    assert tree.of("h2") == [
        "Verdicts", "Evidence", "Exact properties", "What was not run", "The rule", "Trials that diverged",
        "Environment", "How to run it again",
    ]  # fmt: skip


def test_a_page_of_nothing_says_so() -> None:
    empty = page_of([], 0, {})
    assert "no records" in html.as_html(empty, [])
    assert html.as_markdown(empty).startswith("# Claims about normalization\n")


# ---- escaping


def test_no_text_of_a_claim_becomes_markup(tree: Tree) -> None:
    assert [tag for tag, _ in tree.tags if tag in ("script", "b")].count("script") == 1
    assert "x" not in tree.attributes("id")
    assert f"“{HOSTILE}”" in tree.of("blockquote")
    assert not [link for link in tree.attributes("href") if "javascript" in link]
    assert "https://example.org/a?b=1&c=2" in tree.attributes("href")
    assert all(not name.startswith("on") for _, attributes in tree.tags for name in attributes)


def test_markdown_shows_the_text_of_a_claim_as_it_is(page: Page) -> None:
    rendered = MarkdownIt("commonmark").enable("table").render(html.as_markdown(page))
    found = Tree(rendered)
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "b", "a", "em", "i"})
    assert any(f"“{HOSTILE}”" in text.strip() for text in found.of("blockquote"))
    assert f"“{HOSTILE}”" in found.of("td")
    heads = [len(re.findall(r"<t[hd]", row)) for row in re.findall(r"<tr>.*?</tr>", rendered, re.DOTALL)]
    assert heads[: len(page.claims) + 1] == [8] * (len(page.claims) + 1)


@pytest.mark.parametrize(
    ("text", "span"), [("a|b", "`a\\|b`"), ("`", "`` ` ``"), ("a``b", "```a``b```"), ("a\nb", "`a\\nb`")]
)
def test_a_code_span_holds_any_text(text: str, span: str) -> None:
    assert html.code_span(text) == span


# ---- forms


def test_json_has_every_value_and_no_number_that_json_does_not_know(page: Page) -> None:
    values = json.loads(html.as_json(page))
    assert [each["id"] for each in values["claims"]] == [entry.id for entry in page.claims]
    (diverging,) = [
        cell["values"]
        for each in values["claims"]
        if each["id"] == "all"
        for cell in each["comparisons"][0]["cells"]
        if "layer" in cell["label"]
    ]
    assert diverging == {"0": 40.0, "1": None, "2": 41.0, "3": None, "4": 42.0}


def test_the_same_records_give_the_same_bytes_in_any_order(tmp_path: Path, claims: list[Judged]) -> None:
    again = judged(tmp_path, is_reversed=True)
    assert [each.claim.id for each in again] == [each.claim.id for each in claims]
    for write in html.FORMATS.values():
        first, second = (write(page_of(each, len(each), {}), each) for each in (claims, again))
        assert first == second
    assert not re.search(r"\b\d\d:\d\d:\d\d\b", first)


def test_the_claims_of_this_file_are_of_every_kind() -> None:
    kinds = set(re.findall(r"kind: (\w+)", CLAIMS))
    assert kinds == {"greater", "less", "equivalent", "flat", "crossover", "knee", "trend", "ratio", "all"}
    assert EXPERIMENT.startswith("name: made_up")


# ---- in a browser

WATCH = """<!DOCTYPE html>
<body>
<iframe id="frame" src="report.html" {sandbox} style="width:{width}px;height:900px"></iframe>
<script>
document.getElementById("frame").addEventListener("load", () => {{
  const page = document.getElementById("frame").contentDocument;
  const figures = [...page.querySelectorAll("figure > svg")];
  const words = page.getElementById("words");
  words.value = "coin";
  words.dispatchEvent(new Event("input"));
  const rows = [...page.querySelectorAll("#claims tbody tr")].filter((row) => row.offsetHeight);
  page.querySelector("#claims th button")?.click();
  document.body.textContent = JSON.stringify({{
    width: page.documentElement.scrollWidth,
    background: getComputedStyle(page.body).backgroundColor,
    hasControls: !page.getElementById("controls").hidden,
    figures: figures.filter((each) => each.getBoundingClientRect().height > 40).length,
    rows: rows.length,
    first: page.querySelector("#claims tbody tr").cells[0].textContent,
  }});
}});
</script>"""
NO_SCRIPTS = 'sandbox="allow-same-origin"'


def chromium(directory: Path, *arguments: str) -> str:
    assert CHROMIUM
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
            "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000",
            f"--user-data-dir={directory / 'profile'}", *arguments,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
def test_a_browser_shows_it_narrow_and_wide_light_and_dark_with_scripts_and_without(
    tmp_path: Path, text: str, page: Page
) -> None:
    (tmp_path / "report.html").write_text(text, "utf-8")

    def seen(width: int, *, is_dark: bool = False, sandbox: str = "") -> dict[str, Any]:
        watcher = tmp_path / "watch.html"
        watcher.write_text(WATCH.format(width=width, sandbox=sandbox), "utf-8")
        scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
        found: dict[str, Any] = json.loads(
            Tree(chromium(tmp_path, scheme, "--dump-dom", watcher.as_uri())).of("body")[0]
        )
        assert found["width"] <= width  # nothing runs over the edge
        assert found["figures"] == sum(len(entry.comparisons) for entry in page.claims)
        return found

    narrow, wide, dark = seen(400), seen(1400), seen(400, is_dark=True)
    assert narrow["background"] == wide["background"] != dark["background"]
    for each in (narrow, wide, dark):
        assert (each["hasControls"], each["rows"], each["first"]) == (
            True,
            1,
            "absent",
        )  # filtered and sorted
    still = seen(400, sandbox=NO_SCRIPTS)
    assert (still["hasControls"], still["rows"]) == (False, len(page.claims))
    chromium(tmp_path, f"--print-to-pdf={tmp_path / 'report.pdf'}", (tmp_path / "report.html").as_uri())
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF-")
