"""The documentation names all that there is and nothing else, its links lead somewhere, no page is stale."""

import importlib.util
import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from scipy import stats

from normbench.cli import errors
from normbench.cli.app import app
from normbench.cli.catalog import TABLES
from normbench.config import experiment
from normbench.config.catalog.norms import NORMS
from normbench.config.registry import Registry
from normbench.config.trial import Optimizer, Schedule, Trial
from normbench.records import Record
from normbench.report.claims.document import FOLDER
from normbench.report.claims.document import load as load_claims
from normbench.report.claims.document import load_all as load_all_claims
from normbench.signals import ENDING

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text("utf-8") for path in sorted(DOCS.glob("*.md"))}
TEXTS: Mapping[str, str] = PAGES | {
    name: (ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md")
}
PROGRAM: Any = typer.main.get_command(app)  # a click group, whichever click Typer brings
CLAIMS = range(1, 31)


@cache
def generator() -> ModuleType:
    """docs/generate.py, which is no module of a package."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def section(page: str, heading: str) -> str:
    """What stands below a heading, up to the next of its level or of one above."""
    level = len(heading.split(maxsplit=1)[0])
    after = PAGES[page].partition(f"\n{heading}\n")[2]
    return re.split(rf"^#{{1,{level}}} ", after, maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables, heads aside."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    rules = [number for number, row in enumerate(cells) if set(row[0]) == {"-"}]
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


# ---- links and generated parts


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.M
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(text: str, directory: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (directory / path).resolve()
        if link.startswith(("https://", "http://")):
            continue
        is_there = target.is_file() if path else True
        content = (target.read_text("utf-8") if path else text) if is_there and anchor else ""
        if not is_there or (anchor and anchor not in anchors(content)):
            found.append(link)
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    assert broken(TEXTS[name], DOCS if name in PAGES else ROOT) == []


def test_a_link_that_leads_nowhere_is_found() -> None:
    text = "[a](nowhere.md) [b](data.md#nothing) [c](#nothing) [d](data.md#cifar) [e](https://example.org)"
    assert broken(text, DOCS) == ["nowhere.md", "data.md#nothing", "#nothing"]


def test_the_index_links_every_page_once() -> None:
    linked = re.findall(r"\]\((\S+\.md)\)", PAGES["index.md"])
    assert sorted(linked) == sorted(set(PAGES) - {"index.md"})


@pytest.mark.parametrize("name", PAGES)
def test_generated_parts_are_fresh(name: str) -> None:
    assert generator().page(PAGES[name]) == PAGES[name], "run python docs/generate.py"


def test_a_stale_part_is_made_anew() -> None:
    stale = PAGES["methods.md"].replace("| `batch` | `eps` | `1e-5` |", "| `batch` | `eps` | `1` |")
    assert stale != PAGES["methods.md"]
    assert generator().page(stale) == PAGES["methods.md"]


@pytest.mark.parametrize("name", PAGES)
def test_lines_of_prose_are_wrapped_at_100_characters(name: str) -> None:
    text = re.sub(
        r"^```.*?^```|<!-- generated.*?<!-- end -->", "", PAGES[name], flags=re.DOTALL | re.MULTILINE
    )
    long = [line for line in text.splitlines() if len(line) > 100 and not line.startswith(("|", "![", "$$"))]
    assert long == []
    assert [line for line in text.splitlines() if line.count("`") % 2] == []  # a broken span of code


# ---- commands


def options(command: Any) -> set[str]:
    return {name for parameter in command.params for name in parameter.opts if name.startswith("--")}


@pytest.mark.parametrize("name", PROGRAM.commands)
def test_every_command_and_option_is_described(name: str) -> None:
    text = section("cli.md", f"## normbench {name}")
    assert options(PROGRAM.commands[name]) <= set(re.findall(r"--[a-z-]+", text))


def quoted() -> Iterator[list[str]]:
    """The words behind ``normbench`` of every command in a code block or between backticks."""
    for text in TEXTS.values():
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        lines = [line for block in blocks for line in re.split(r"&&|\n", block.replace("\\\n", " "))]
        inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
        for line in (*lines, *inline):
            words = shlex.split(line.replace("'", "’") if line.count("'") % 2 else line)
            if words and Path(words[0]).name == "normbench" and len(words) > 1:
                yield words[1:]


COMMANDS = sorted({tuple(words) for words in quoted()})


def test_commands_are_quoted() -> None:
    assert len(COMMANDS) > 10


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_quoted_command_can_be_given(words: tuple[str, ...]) -> None:
    """Its command and options exist, and so does its config, which takes the overrides."""
    if words[0].startswith("--"):
        assert words[0] in options(PROGRAM) | {"--help"}
        return
    command = PROGRAM.commands[words[0]]
    if not words[1:]:  # only its name
        return
    context = command.make_context(words[0], list(words[1:]))
    path = Path(context.params.get("config") or "")
    if path.parts[:1] == ("configs",):
        experiment.load(ROOT / path, context.params["overrides"])


def test_a_command_that_cannot_be_given_is_found() -> None:
    with pytest.raises(KeyError):
        test_a_quoted_command_can_be_given(("rum", "configs/quickstart.yaml"))
    with pytest.raises(Exception, match="--worker"):
        test_a_quoted_command_can_be_given(("run", "configs/quickstart.yaml", "--worker", "2"))
    with pytest.raises(experiment.ConfigError):
        test_a_quoted_command_can_be_given(("run", "configs/quickstart.yml"))


def test_every_exit_code_is_described() -> None:
    codes = {errors.OK, errors.INTERNAL, errors.DISK, *(code for _, code in errors.CODES)}
    codes |= {errors.INTERRUPTED + number for number in ENDING}
    assert [int(row[0]) for row in rows(section("cli.md", "## Exit codes"))] == sorted(codes)


# ---- configuration, methods, records

SETTINGS: Mapping[str, type[BaseModel]] = {
    "## Sections": experiment._Document,
    "## trial": Trial,
    "### trial.optimizer": Optimizer,
    "### trial.schedule": Schedule,
    "## train": experiment.Train,
    "## execute": experiment.Execute,
}


@pytest.mark.parametrize("heading", SETTINGS)
def test_every_key_is_described_with_its_default(heading: str) -> None:
    def default(field: Any) -> str:
        if field.is_required():
            return "required"
        is_model = isinstance(field.default, BaseModel)
        return "see below" if is_model else f"`{generator().written(field.default)}`"

    text = section("configuration.md", heading).partition("\n### ")[0]
    expected = [(f"`{key}`", default(field)) for key, field in SETTINGS[heading].model_fields.items()]
    assert [(row[0], row[2]) for row in rows(text)] == expected
    assert all(row[1] and row[3] for row in rows(text))


@pytest.mark.parametrize("kind", TABLES)
def test_every_name_that_a_config_may_use_is_in_configuration(kind: str) -> None:
    page = PAGES["evaluators.md" if kind == "evaluations" else "configuration.md"]
    table: Registry[Any] = TABLES[kind]
    assert [name for name in table if f"`{name}`" not in page] == []


@pytest.mark.parametrize("name", NORMS)
def test_every_method_has_a_section_with_a_formula_and_its_paper(name: str) -> None:
    text = section("methods.md", f"## {name}")
    assert "$$" in text
    assert "https://arxiv.org/abs/" in text or name in ("none", "evonorm_b0")  # it is that of S0


def test_every_example_of_a_config_is_valid(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", "".join(PAGES.values()), re.DOTALL)
    assert len(examples) >= 5
    for text in examples:
        if text.startswith("document:"):
            (tmp_path / "mine.yaml").write_text(text.replace("../", f"{ROOT}/configs/"), "utf-8")
            assert load_claims(tmp_path / "mine.yaml")
            continue
        path = tmp_path / "example.yaml"
        path.write_text(text if text.startswith("name:") else f"name: example\n{text}", "utf-8")
        experiment.load(path, [])


def test_every_field_of_a_record_is_described() -> None:
    fields = {field.alias or name for name, field in Record.model_fields.items()} | {"sha256"}
    assert {row[0].strip("`") for row in rows(section("records.md", "## Fields"))} == fields


def test_a_method_of_ones_own_is_written_as_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from normbench.norms.api import build

    plain, further, *_ = re.findall(r"```python\n(.*?)```", PAGES["extending.md"], re.DOTALL)
    (tmp_path / "norms_of_the_documentation.py").write_text(plain, "utf-8")
    (tmp_path / "methods_of_the_documentation.py").write_text(f"{plain}\n{further}", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    x = torch.randn(2, 3, 4, 4)
    expected = x / x.square().mean((1, 2, 3), keepdim=True).add(1e-5).sqrt()
    for module in ("norms", "methods"):
        trial = Trial.model_validate({"norm": f"{module}_of_the_documentation:rms"})
        torch.testing.assert_close(build(trial.norm, None).make_layer(3)(x), expected)


# ---- claims and results


def test_every_claim_is_there_and_names_its_documents() -> None:
    table = [row for row in rows(PAGES["claims.md"]) if re.fullmatch(r"\d+(-\w+)?", row[0])]
    assert {int(row[0].partition("-")[0]) for row in table} == set(CLAIMS)
    documents = {row[0] for row in rows(PAGES["claims.md"]) if re.fullmatch(r"D\d", row[0])}
    for row in table:
        assert row[1][0] in '"“', row
        assert set(row[2].split()) <= documents, row


def test_experiments_name_the_claims_that_they_test() -> None:
    for claim in load_all_claims(ROOT / FOLDER):
        number = int(claim.id.partition("-")[0])
        for name in {each.name for each in claim.experiments.values()}:
            assert number in generator().claims_of(name), (claim.id, name)


def test_every_experiment_with_records_has_a_section_of_results() -> None:
    headings = re.findall(r"^## (.+)$", PAGES["results.md"], re.MULTILINE)
    assert sorted(headings) == generator().committed()
    for name in headings:
        text = section("results.md", f"## {name}")
        assert f"<!-- generated: result {name} -->" in text
        assert "figures/" in text


def test_no_number_of_a_result_is_typed() -> None:
    text = re.sub(r"<!-- generated.*?<!-- end -->", "", PAGES["results.md"], flags=re.DOTALL)
    assert re.findall(r"\d+\.\d+", text) == []


def test_numbers_of_results_are_those_of_the_records() -> None:
    """One cell by hand: BN at a normalization batch size of 2."""
    paths = sorted((ROOT / "results/cifar10_norm_batch").glob("batch-resnet8-b128-n2-s*.json"))
    values = [100 * Record.from_json(path.read_bytes()).final.test_accuracy for path in paths]  # type: ignore[union-attr]
    low, high = stats.t.interval(0.95, len(values) - 1, fmean(values), stats.sem(values))
    row = f"| BN | 2 | {fmean(values):.1f} | [{low:.1f}, {high:.1f}] | {len(values)} |"
    assert row in section("results.md", "## cifar10_norm_batch")


# ---- the rest


def test_every_module_and_file_that_the_texts_name_exists() -> None:
    for text in TEXTS.values():
        for path in set(re.findall(r"`((?:normbench|tests|configs|benchmarks|docs)/[\w/.]+)`", text)):
            assert (ROOT / path).exists() or path.endswith("halves.py"), path


def test_the_site_has_what_it_needs() -> None:
    """Its build is a step of .ci/run; here, that it is given what it imports."""
    extras = (ROOT / "pyproject.toml").read_text("utf-8")
    assert all(name in extras for name in ("sphinx", "myst-parser", "furo"))
    assert "sphinx -W" in (ROOT / ".ci/run").read_text("utf-8")
