"""Write the generated parts of the documentation: reference tables, the command line, the results.

    python docs/generate.py            # rewrites the pages in place
    python docs/generate.py --check    # names the pages that are out of date, and exits with 1

A generated part of a page lies between ``<!-- generated: NAME ARGUMENTS -->`` and ``<!-- end -->``. The rest
of a page is written by hand. Nothing here loads torch.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

import normbench
from normbench.cli.app import app
from normbench.cli.catalog import TABLES
from normbench.cli.claims import judged as verdicts_of
from normbench.config import experiment as config
from normbench.config.catalog.figures import FIGURES
from normbench.config.registry import Option
from normbench.config.series import differing
from normbench.records import Record
from normbench.report.claims import wording
from normbench.report.claims.compare import compare
from normbench.report.claims.document import FOLDER, load_all
from normbench.report.claims.judge import Judged
from normbench.report.claims.judgement import Verdict
from normbench.report.figures.published import PUBLISHED
from normbench.report.figures.values import ABSENT, in_heading, in_words, shown, value_in_words
from normbench.report.metrics import METRICS, STYLE_LOSSES, Metric, task_metric
from normbench.report.stats import Interval, mean_interval
from normbench.report.table import Cell, Table, is_of_method
from normbench.report.table import table as records_table
from normbench.sweep import results

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
RESULTS = ROOT / "results"
BLOCK = re.compile(r"(<!-- generated: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
SHORT = {
    "none": "none",
    "batch": "BN",
    "layer": "LN",
    "instance": "IN",
    "group": "GN",
    "switchable": "SN",
}
Row = Sequence[object]


def page(text: str) -> str:
    """Return the text of a page with its generated parts made anew."""
    return BLOCK.sub(lambda match: f"{match[1]}\n{_generated(match[2])}\n\n{match[3]}", text)


def _generated(request: str) -> str:
    name, *arguments = request.split()
    return PARTS[name](*arguments).strip("\n")


def table(head: Row, rows: Iterable[Row]) -> str:
    """Return a Markdown table; what is no code in it is shown as it is."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_shown(str(cell)) for cell in line) + " |" for line in lines)


def _shown(cell: str) -> str:
    parts = re.split(r"(`[^`]*`)", cell)
    return "".join(part if part[:1] == "`" else part.replace("<", "&lt;") for part in parts).replace(
        "|", "\\|"
    )


# ---- claims


@cache
def judged_claims() -> tuple[Judged, ...]:
    """Return all claims of the project, judged by the committed records."""
    return tuple(verdicts_of(load_all(ROOT / FOLDER), RESULTS, lambda _: None))


def claims(document: str) -> str:
    """Return the claims of one document with their tests and verdicts."""
    head = ("claim", "it says", "from", "test", "measured", "n", "verdict")
    rows = [
        (
            each.claim.id,
            f"“{each.claim.settings.says}”",
            " ".join(each.claim.settings.source),
            comparison_in_words(each),
            wording.measured(each) or "–",
            each.judgement.n,
            f"{wording.SHAPES[each.judgement.verdict]} {each.judgement.verdict}",
        )
        for each in judged_claims()
        if each.claim.document == document
    ]
    return table(head, rows)


def score() -> str:
    """Return how many claims have which verdict."""
    return f"**{wording.score(judged_claims())}.**"


def decided() -> str:
    """Return every claim with a verdict as an item of a list, and how many are open."""
    lines = []
    for verdict in (Verdict.SUPPORTED, Verdict.CONTRADICTED, Verdict.IN_PART):
        for each in judged_claims():
            if each.judgement.verdict is verdict:
                measured = wording.measured(each)
                grounds = f"{measured}, n = {each.judgement.n}" if measured else f"n = {each.judgement.n}"
                sentence = f"“{each.claim.settings.says}” (claim {each.claim.id}): {grounds}."
                lines.append(item(f"{wording.SHAPES[verdict]} **{verdict}**: {sentence}"))
    return "\n".join([f"{wording.score(judged_claims())}.", "", *lines])


def item(text: str) -> str:
    """Return an item of a list, wrapped."""
    return _wrapped(f"- {text}", 98)


def findings() -> str:
    """Return what the first figure of README shows, each difference with its interval and n."""
    full, two = {"norm": "batch", "norm_batch_size": 128}, {"norm": "batch", "norm_batch_size": 2}
    first, last = (statistics.fmean(_accuracies(where).values()) for where in (full, two))
    switchable = [{"norm": "switchable", "norm_batch_size": size} for size in (128, 2)]
    return "\n".join(
        [
            item(
                "**BN loses accuracy when few samples share statistics**: "
                f"from {first:.1f} % at 128 to {last:.1f} % at 2, a loss of {_lead(full, two)}."
            ),
            item(
                f"**SN loses less**: {_lead(*switchable)}, while its weight of BN's statistics falls "
                "([weights](docs/batch-sizes.md))."
            ),
            item(f"**At 128, BN is ahead of GN** by {_lead(full, {'norm': 'group'})}."),
            item(
                "**More epochs widen that gap at first**: with 3,000 images and batches of 32, BN is ahead "
                f"by {_ahead(5)} after a schedule of 5 epochs, and by {_ahead(40)} after one of 40, "
                "which are as many updates as 2.4 epochs of all images."
            ),
        ]
    )


def _accuracies(where: Mapping[str, Any], experiment: str = "cifar10_norm_batch") -> dict[int, float]:
    return records_table(_found(experiment).records).select(where).values("accuracy")


def _ahead(epochs: int) -> str:
    """BN minus GN at batches of 32 after so many epochs of a whole schedule."""
    both = ({"norm": norm, "batch_size": 32, "epochs": epochs} for norm in ("batch", "group"))
    return _lead(*both, experiment="budget_cpu")


def _lead(a: Mapping[str, Any], b: Mapping[str, Any], experiment: str = "cifar10_norm_batch") -> str:
    """The difference of two cells in points, paired by seed, with its 95 % interval."""
    first, second = _accuracies(a, experiment), _accuracies(b, experiment)
    lead = mean_interval([first[seed] - second[seed] for seed in first if seed in second])
    return f"{lead.mean:.1f} points [{lead.low:.1f}, {lead.high:.1f}], n = {lead.n}".replace("-", "−")


def saved() -> str:
    """Return what adaptive looks save over the claims of this project, by simulation."""
    found = _benchmark("seeds_saved")
    text = (
        f"Settled together from no record at all, the {found['claims']} claims with numbers on every side "
        f"would take {found['trials_mean']:.0f} trials in the mean of {found['simulations']} simulations "
        f"({found['trials_min']} to {found['trials_max']}), and 20 seeds of every cell "
        f"{found['trials_of_20_seeds_each']:,}: {100 * found['saved']:.0f} % are saved "
        "(`benchmarks/seeds_saved.py`, by the means and spreads of the stored records)."
    )
    return _wrapped(text, 98)


def comparison_in_words(each: Judged) -> str:
    """Return the comparison that decides a claim, with its experiments."""
    test = each.claim.test
    if test is None:
        return each.claim.settings.not_run
    names = dict.fromkeys(each.claim.experiment(part).name for part in test.parts)
    return f"{wording.comparison(test)}, in {', '.join(f'`{name}`' for name in names)}"


# ---- reference tables


def written(value: object) -> str:
    """Return a value as it is written in a config."""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float) and value == int(value):
        value = int(value)
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value).replace("1e-05", "1e-5").replace("1e-06", "1e-6")


def names(kind: str) -> str:
    """Return every name of one kind that a config may use, with its options and their defaults."""
    rows = [(f"`{name}`", entry.summary, _options(entry.options)) for name, entry in TABLES[kind].items()]
    return table(("name", "meaning", "options and defaults"), rows)


def _options(options: Mapping[str, Option]) -> str:
    return ", ".join(f"`{key}` {written(option.default)}" for key, option in options.items()) or "–"


def options(kind: str) -> str:
    """Return every option of the names of one kind: default, choices, meaning."""
    rows = []
    for name, entry in TABLES[kind].items():
        for key, option in entry.options.items():
            literal = get_origin(option.annotation) is Literal
            choices = (
                f" ({', '.join(f'`{each}`' for each in get_args(option.annotation))})" if literal else ""
            )
            rows.append((f"`{name}`", f"`{key}`", f"`{written(option.default)}`", option.meaning + choices))
    return table(("name", "option", "default", "meaning"), rows)


def published() -> str:
    """Return the published series that figures can show, with their sources."""
    rows = [
        (f"`{key}`", SHORT[method], *(_point(series.get(size)) for size in (2, 4, 8, 16, 32)))
        for key, each in PUBLISHED.items()
        for method, series in each.accuracy.items()
    ]
    sources = "\n".join(f"- `{key}`: {each.source}." for key, each in PUBLISHED.items())
    return table(("series", "method", 2, 4, 8, 16, 32), rows) + "\n\n" + _wrapped(sources)


def _point(point: Any) -> str:
    if point is None:
        return "–"
    return f"{point.accuracy:.1f}" if point.sd is None else f"{point.accuracy:.2f} ± {point.sd:.2f}"


def _wrapped(text: str, width: int = 100) -> str:
    """Return list items or paragraphs, one a line, wrapped."""
    lines = []
    for line in text.splitlines():
        indent = "  " if line.startswith("- ") else ""
        wrap = textwrap.TextWrapper(
            width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        lines += wrap.wrap(line) or [""]
    return "\n".join(lines)


def commands() -> str:
    """Return every command with its arguments and options, the same by any version of Typer."""
    program: Any = typer.main.get_command(app)
    parts = [f"## normbench\n\n{program.help}\n\n{table(('option', 'meaning'), _rows(program))}"]
    for name, command in program.commands.items():
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        usage = " ".join(["normbench", name, "[OPTIONS]", *map(_usage, arguments)])
        words = "\n\n".join(" ".join(each.split()) for each in command.help.split("\n\n"))
        rows = table(("argument or option", "meaning"), _rows(command))
        parts.append(f"## normbench {name}\n\n```text\n{usage}\n```\n\n{_wrapped(words)}\n\n{rows}")
    return "\n\n".join(parts)


def _usage(argument: Any) -> str:
    name = argument.metavar + (" …" if argument.nargs == -1 else "")
    return name if argument.required else f"[{name}]"


def _rows(command: Any) -> Iterator[Row]:
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        name = parameter.opts[0] if is_option else parameter.metavar
        takes = f" {parameter.metavar}" if is_option and parameter.metavar else ""
        default = parameter.default if is_option else None
        has_default = default is not None and default is not False and not callable(default)
        shown = f"default: `{default}`" if has_default else ""
        yield f"`{name}{takes}`", "; ".join(filter(None, (parameter.help, shown)))


# ---- results


@cache
def _found(experiment: str) -> results.StoredExperiment:
    def complain(problem: str) -> None:
        raise ValueError(problem)

    return results.find(RESULTS, experiment, complain)


def _short(method: str) -> str:
    """Return the abbreviation of a method, else its name as code."""
    return SHORT.get(method, f"`{method}`")


@cache
def claims_of(name: str) -> tuple[int, ...]:
    """Return the numbers of the claims that an experiment tests; a config's variants test the same."""
    stem = name.removesuffix("_cpu").removesuffix("_gpu")
    found = {
        int(each.claim.id.partition("-")[0])
        for each in judged_claims()
        for experiment in each.claim.experiments.values()
        if experiment.name.removesuffix("_cpu").removesuffix("_gpu") == stem
    }
    return tuple(sorted(found | _named(name)))


def _named(name: str) -> set[int]:
    """The claims that a config's header comment names; a ``_cpu`` variant tests those of its base."""
    path = ROOT / "configs" / f"{name}.yaml"
    if not path.exists():
        return set()
    text = path.read_text("utf-8")
    head = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    sentence = re.match(r"Claims? ([\d, toand]+)", head)
    if sentence:
        ranges = re.findall(r"(\d+)(?: to (\d+))?", sentence[1])
        return {claim for first, last in ranges for claim in range(int(first), int(last or first) + 1)}
    base = re.search(r"extends: \[(\w+)\.yaml", text)
    return _named(base[1]) if base else set()


def result(experiment: str) -> str:
    """Return one experiment: its figure, its settings, and the table of its numbers."""
    found = _found(experiment)
    records = list(found.records)
    if found.experiment is None:
        raise ValueError(f"the plan of {experiment} cannot be read")
    figures = sorted((RESULTS / experiment / "figures").glob("*.png"))
    order = [choice.name for choice in found.experiment.plots]
    figures.sort(key=lambda path: order.index(path.stem.partition("-")[0]))
    lines = [f"![{figures[0].stem} of {experiment}](../results/{experiment}/figures/{figures[0].name})"]
    if figures[1:]:
        others = ", ".join(
            f"[{path.stem}](../results/{experiment}/figures/{path.name})" for path in figures[1:]
        )
        lines.append(f"Further figures: {others}.")
    lines.append(_conditions(experiment, records))
    lines.append(_numbers(order[0], found.table))
    return "\n\n".join(_wrapped(part) if not part.startswith(("|", "!")) else part for part in lines)


def _conditions(experiment: str, records: Sequence[Record]) -> str:
    trials = [record.trial for record in records]
    first = trials[0]

    def shared(values: Iterable[Any]) -> str:
        return " / ".join(
            f"{value:g}" if isinstance(value, float) else f"{value}" for value in sorted({*values})
        )

    options = first.dataset.options
    size, held_out = options.get("train_size"), options.get("validation_size") or 0
    data = (
        f"{options.get('folder', first.dataset.name)}, {size - held_out if size else 'all'} training images"
    )
    data += f", {held_out} for validation" if held_out else ""
    lr, reference = shared(trial.optimizer.lr for trial in trials), first.lr_reference_batch
    parts = [
        *([] if first.task.name == "classification" else [f"task {first.task.name}"]),
        f"data set {data}",
        f"model {shared(trial.model.name for trial in trials)}",
        f"epochs {shared(trial.epochs for trial in trials)}",
        *([] if first.optimizer.name == "sgd" else [f"optimizer {first.optimizer.name}"]),
        f"learning rate {lr} · batch size / {reference}" if reference else f"learning rate {lr}",
        f"schedule {shared(trial.schedule.name for trial in trials)}",
        f"precision {shared(trial.precision for trial in trials)}",
        f"seeds {', '.join(map(str, sorted({trial.seed for trial in trials})))}",
        f"trials {len(trials)}",
    ]
    claims = ", ".join(map(str, claims_of(experiment))) or "none"
    return f"Claims: {claims}. [Configuration](../configs/{experiment}.yaml): {'; '.join(parts)}."


def _numbers(figure: str, cells: Table) -> str:
    """Return the table: a row for every cell of the sweep and every quantity that ``figure`` shows."""
    settings = [_settings(cell) for cell in cells]
    keys = _varied(settings)
    quantities = QUANTITIES.get(figure, _of_task)
    records = [record for cell in cells for record in cell.records]
    several = len({name for record in records for name in quantities(record)}) > 1
    rows: list[Row] = []
    for setting, cell in zip(settings, cells, strict=True):
        values: dict[str, list[float]] = defaultdict(list)
        for record in cell.records:
            for name, number in quantities(record).items():
                values[name].append(number)
        unfinished = Counter(cell.failures)
        label = [_cell(key, setting.get(key)) for key in keys]
        for name, numbers in (values or {"–": []}).items():
            listed = ", ".join(f"{count} {status}" for status, count in unfinished.items()) or "–"
            rows.append(
                (*label, name, *_interval(numbers, 1 if "%" in name else 4 if "loss" in name else 2), listed)
            )
    head = [*(in_words(key) for key in keys), "quantity", "mean", "95 % interval", "n", "not finished"]
    if not several:
        place_of_quantity = len(keys)
        quantity = next(name for record in records for name in quantities(record))
        head[place_of_quantity + 1] = f"mean, {quantity}"
        head, *rows = [[*row[:place_of_quantity], *row[place_of_quantity + 1 :]] for row in (head, *rows)]
    if all(row[-1] == "–" for row in rows):
        head, *rows = [row[:-1] for row in (head, *rows)]
    return table(head, rows)


def _varied(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the settings that vary; options of a choice only where they vary for one name of it."""
    keys = []
    for key in differing(settings):
        holder = f"{key.partition('.')[0]}.name"
        groups = defaultdict(set)
        for setting in settings:
            if key in setting:
                groups[None if key == holder else setting.get(holder)].add(json.dumps(setting[key]))
        if key != "norm_batch_size" and any(len(values) > 1 for values in groups.values()):
            keys.append(key)
    apart = any(each["norm_batch_size"] not in (None, each["batch_size"]) for each in settings)
    return [*keys, "norm_batch_size"] if apart else keys


def _settings(cell: Cell) -> dict[str, Any]:
    chosen = cell.tuned.values if cell.tuned else {}
    others = {key: value for key, value in cell.settings.items() if key != "data" and not is_of_method(key)}
    return {"norm.name": cell.series.legend, **others, **chosen}


def _cell(key: str, value: object) -> str:
    if value is None and key not in ABSENT:
        return "–"
    return value_in_words(key, shown(json.dumps(value))).replace("\n", " ")


def _signed(number: float, digits: int) -> str:
    """Return a rounded number with a minus sign, and 0 without one."""
    return f"{round(number, digits) + 0.0:.{digits}f}".replace("-", "−")


def _interval(values: Sequence[float], digits: int) -> tuple[str, str, int]:
    if not values:
        return "–", "–", 0
    found = mean_interval(values)
    bounds = f"[{_signed(found.low, digits)}, {_signed(found.high, digits)}]" if found.n > 1 else "–"
    return _signed(found.mean, digits), bounds, found.n


def _of_task(record: Record) -> dict[str, float]:
    return _metrics(record, task_metric(record.trial))


def _style(record: Record) -> dict[str, float]:
    return _metrics(record, *(METRICS[name] for name in STYLE_LOSSES))


def _metrics(record: Record, *metrics: Metric) -> dict[str, float]:
    found = {f"{each.quantity.label}, {each.unit}".rstrip(", "): each(record) for each in metrics}
    return {name: value for name, value in found.items() if value is not None}


def _online(record: Record) -> dict[str, float]:
    name = "progressive accuracy, %"
    return {name: 100 * record.diagnostics["online"][-1]["accuracy"]} if record.final else {}


def _inference(record: Record) -> dict[str, float]:
    found = {}
    for measured in record.inference:
        sizes = f", test batch {measured.options['size']}" if "size" in measured.options else ""
        if (accuracy := measured.numbers.get("test_accuracy")) is not None:
            found[f"`{measured.name}`{sizes}: test accuracy, %"] = 100 * accuracy
        if (changed := measured.numbers.get("prediction_changed")) is not None:
            found[f"`{measured.name}`: predictions changed, %"] = 100 * changed
    return found


def _switches(record: Record) -> dict[str, float]:
    if not record.final or "switch_weights" not in record.diagnostics:
        return _of_task(record)
    layers = record.diagnostics["switch_weights"][-1]["layers"]
    found = dict(_of_task(record))
    for statistic in ("mean", "variance"):
        for place, method in enumerate(("IN", "LN", "BN")):
            name = f"weight of {method} in the {statistic}"
            found[name] = statistics.fmean(layer[statistic][place] for layer in layers)
    return found


def _propagation(record: Record) -> dict[str, float]:
    last = record.diagnostics["signal_propagation"][0]["layers"][-1]
    names = {
        "squared_mean": "squared channel mean, last block, before training",
        "variance": "channel variance, last block, before training",
        "branch_ratio": "branch variance / shortcut variance, last block, before training",
    }
    found = {words: last[key] for key, words in names.items() if last.get(key) is not None}
    return found | _of_task(record)


QUANTITIES: dict[str, Callable[[Record], dict[str, float]]] = {  # by the first figure of an experiment
    "online": _online,
    "inference_statistics": _inference,
    "switch_weights": _switches,
    "signal_propagation": _propagation,
    "style_content": _style,
}


def differences(experiment: str, by: str, baseline: str) -> str:
    """Return the differences from one value of a setting in every cell, paired by seed, with intervals."""
    cells = _found(experiment).table
    metric = task_metric(cells.records[0].trial)
    legends = {cell.series.label: cell.series.legend for cell in cells}

    def words(value: str) -> str:
        return legends[value] if by == "norm" else in_heading(by, json.loads(value))

    pairs = compare(cells, by, metric, baseline)
    places = list(dict.fromkeys(key for pair in pairs for key in pair.where))
    rows = []
    for pair in pairs:
        where = (_cell(key, pair.where.get(key)) for key in places)
        numbers = "the same trials" if pair.is_same else _bracketed(pair.difference)
        rows.append((*where, f"{words(pair.a)} − {words(pair.b)}", numbers, len(pair.seeds)))
    quantity = f"{metric.quantity.label}, {metric.quantity.difference_unit}".rstrip(", ")
    return table((*map(in_words, places), "difference", quantity, "n"), rows)


def ratios(experiment: str) -> str:
    """Return the style loss over BN's at equal content loss, with intervals of the mean logarithm."""
    figure = FIGURES["style_content"].load()
    rows = []
    for row in figure.table(figure.select(_found(experiment).table, {})):
        if row["ratio_to_batch"] and row["norm"] != "batch":
            found = mean_interval([math.log(float(value)) for value in str(row["values"]).split()])
            mean, low, high = (f"{math.exp(each):.2f}" for each in (found.mean, found.low, found.high))
            rows.append((row["panel"], row["line"], f"{mean} [{low}, {high}]", found.n))
    return table(("", "method", "style loss / BN's, at equal content loss", "n"), rows)


def _bracketed(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    mean, low, high = (_signed(each, 1) for each in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def by_batch(experiment: str, key: str) -> str:
    """Return test accuracy with interval: a row for every method, a column for every size of ``key``."""
    cells: dict[tuple[str, int | None], list[float]] = defaultdict(list)
    for record in _found(experiment).records:
        if record.final:
            size = getattr(record.trial, key)
            cells[record.trial.norm.name, size].append(100 * record.final.test_accuracy)
    sizes = sorted({size for _, size in cells if size is not None})
    methods = [name for name in TABLES["norms"] if any(name == method for method, _ in cells)]
    rows = []
    for method in methods:
        if alone := cells.get((method, None)):
            numbers = [f"{_whole(alone)} (any size)", *[""] * (len(sizes) - 1)]
        else:
            numbers = [_whole(each) if (each := cells.get((method, size))) else "–" for size in sizes]
        rows.append((_short(method), *numbers))
    return table((in_words(key), *sizes), rows)


def _whole(values: Sequence[float]) -> str:
    mean, bounds, n = _interval(values, 1)
    return f"{mean}, n = {n}" if n == 1 else f"{mean} {bounds}, n = {n}"


def weights() -> str:
    """Return the weight of BN that SN learns, by batch size: the mean over layers after the last epoch."""
    rows = []
    for experiment in ("cifar10_cpu", "cifar10_norm_batch", "switch_weights_cpu"):
        cells: dict[tuple[int, int], list[tuple[float, float]]] = defaultdict(list)
        for record in _found(experiment).records:
            if record.trial.norm.name == "switchable" and record.final:
                layers = record.diagnostics["switch_weights"][-1]["layers"]
                pair = tuple(
                    statistics.fmean(layer[key][2] for layer in layers) for key in ("mean", "variance")
                )
                cells[record.trial.batch_size, record.trial.norm_batch_size or 0].append((pair[0], pair[1]))
        for (size, norm_size), pairs in sorted(cells.items()):
            mean, variance = (statistics.fmean(pair[place] for pair in pairs) for place in (0, 1))
            rows.append((f"`{experiment}`", size, norm_size, f"{mean:.2f}", f"{variance:.2f}", len(pairs)))
    sizes = "batch size", "normalization batch size"
    return table(("experiment", *sizes, "weight of BN in the mean", "in the variance", "n"), rows)


@cache
def committed() -> list[str]:
    """Return the experiments with records in the repository, without what was run in this clone since."""
    command = ["git", "-C", str(ROOT), "ls-files", "results/*/experiment.yaml"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return sorted(Path(line).parent.name for line in listed.splitlines()) or results.experiments(RESULTS)


def experiments() -> str:
    """Return every config with the claims it tests, its number of trials, and its records."""
    rows: list[Row] = []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        name = path.stem
        experiment = config.load(path, [])
        claims = ", ".join(map(str, claims_of(name))) or "–"
        there = (
            f"[{len(_found(name).records)} records](results.md#{_anchor(name)})"
            if name in committed()
            else "–"
        )
        count = len(experiment.trials) + len(experiment.tune.tuning if experiment.tune else ())
        rows.append((f"[`{name}`](../configs/{path.name})", claims, count, there))
    return table(("config", "claims", "trials", "results"), rows)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


# ---- measurements


def _benchmark(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))


def throughput(precision: str) -> str:
    """Return images/s and the ratio to the plain loop, by method and batch size."""
    found = {
        (row["norm"], row["batch_size"]): (
            statistics.median(row["images_per_second"][precision]),
            row["ratio"][precision],
        )
        for row in _benchmark("throughput")["rows"]
    }
    sizes = sorted({size for _, size in found}, reverse=True)
    rows = []
    for method in dict.fromkeys(name for name, _ in found):
        pairs = (found[method, size] for size in sizes)
        rows.append((SHORT[method], *(f"{speed:.0f} ({ratio:.2f}×)" for speed, ratio in pairs)))
    return table(("batch size", *sizes), rows)


def accuracy(name: str) -> str:
    """Return the differences of test accuracy between two ways to compute, with their intervals."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    columns: list[str] = []
    for row in _benchmark(name)["rows"]:
        column = f"{' '.join(row['first'])} − {' '.join(row['second'])}"
        columns.append(column)
        value, low, high = (_signed(row[key], 2) for key in ("difference", "low", "high"))
        cells[row["norm"]][column] = f"{value} [{low}, {high}]"
    columns = list(dict.fromkeys(columns))
    rows = ((_short(name), *(found.get(column, "–") for column in columns)) for name, found in cells.items())
    return table(("method", *columns), rows)


def kernels() -> str:
    """Return how many times as fast a step is with the compiled kernels as without."""
    found = {
        (row["norm"], row["precision"], row["batch_size"]): row["ratio"]
        for row in _benchmark("paths_cpu")["rows"]
    }
    columns = list(dict.fromkeys((precision, size) for _, precision, size in found))
    rows = [
        (f"`{method}`", *(f"{found[method, *column]:.2f}" for column in columns))
        for method in dict.fromkeys(name for name, _, _ in found)
    ]
    return table(("method", *(f"{precision}, batch {size}" for precision, size in columns)), rows)


def profile() -> str:
    """Return the time of a step and an inference relative to BN and to no normalization."""
    rows = []
    for cost in _benchmark("profile_cpu/profile")["costs"]:
        norm = cost["norm"]["name"]
        numbers = (
            cost[f"{what}_against_{base}"] for what in ("update", "inference") for base in ("batch", "none")
        )
        rows.append((f"`{norm}`", cost["batch_size"], *(f"{number:.2f}" for number in numbers)))
    head = ("method", "batch size", "step / BN", "step / none", "inference / BN", "inference / none")
    return table(head, rows)


def verdicts() -> str:
    """Return how often each kind of claim was judged wrongly, and how soon, in simulation."""
    head = ("kind", "truth", "wrong at any look", "decided by 20 seeds", "mean seeds")
    formats = "{kind}", "{truth}", "{wrong_at_any_look:.1%}", "{decided_by_20_seeds:.1%}", "{mean_seeds:.1f}"
    return table(
        head, ([cell.format(**case) for cell in formats] for case in _benchmark("verdicts")["cases"])
    )


PARTS: dict[str, Callable[..., str]] = {
    part.__name__: part
    for part in (
        *(claims, score, decided, findings, saved, names, options, published, commands),
        *(result, differences, ratios, by_batch, weights, experiments),
        *(throughput, accuracy, kernels, profile, verdicts),
    )
}


def pages() -> Iterator[tuple[Path, str, str]]:
    """Yield README and every page with its text and the text that it should have."""
    for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        text = path.read_text("utf-8")
        yield path, text, page(text)


def main() -> int:
    """Rewrite the pages, or say which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit with 1 if a page is out of date"
    )
    check = parser.parse_args().check
    if (package := Path(normbench.__file__).resolve().parent) != ROOT / "normbench":
        parser.error(f"this would describe {package}; run 'pip install -e .' in {ROOT} first")
    stale = [(path, wanted) for path, text, wanted in pages() if text != wanted]
    for path, wanted in stale:
        print(
            f"{path.relative_to(ROOT)}: {'out of date; run python docs/generate.py' if check else 'written'}"
        )
        if not check:
            path.write_text(wanted, "utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
