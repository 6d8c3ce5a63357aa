"""The command line: parse, call, print. Results go to stdout, messages and progress to stderr."""

import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from normbench import __version__
from normbench.streams import broken_pipe_safe, flush, open_closed_descriptors
from normbench.text import printable

if TYPE_CHECKING:
    from normbench.report.claims.document import Claim
    from normbench.sweep.adaptive import Look, Settler

app = typer.Typer(
    name="normbench",
    help="Trains small networks with every normalization method, and shows what the batch size does to them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="a YAML file; one file is one experiment")]
Overrides = Annotated[
    list[str], typer.Argument(metavar="KEY=VALUE", help="settings to change, such as trial.epochs=3")
]
Results = Annotated[Path, typer.Option("--results", metavar="DIR", help="where records are kept")]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="where data sets are kept [default: $NORMBENCH_DATA, else the user's cache]",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Executor = Annotated[
    str | None,
    typer.Option(
        "--executor", metavar="NAME", help="where to run, instead of the file's; normbench list executors"
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", min=1, help="worker processes, instead of the file's"),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="no progress")]
ClaimFiles = Annotated[
    list[Path],
    typer.Option("--file", metavar="YAML", help="a file of claims, instead of those in configs/claims"),
]
SettleBudget = Annotated[
    str | None, typer.Option("--budget", metavar="AMOUNT", help="2h, 30m, 50trials, or 2h,50trials")
]
MetricName = Annotated[
    str | None,
    typer.Option("--metric", metavar="NAME", help="the number that is compared [default: that of the task]"),
]
Debug = Annotated[bool, typer.Option("--debug", help="show a traceback where something goes wrong")]
NOTHING: list[str] = []
NO_FILES: list[Path] = []
RESULTS = Path("results")


def _version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"normbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options of no command."""


@app.command()
def run(
    context: typer.Context,
    config: Config,
    overrides: Overrides = NOTHING,
    results: Results = RESULTS,
    data: Data = None,
    executor: Executor = None,
    workers: Workers = None,
    retry: Annotated[
        str,
        typer.Option(
            metavar="STATES",
            help="run these again: failed, timeout, diverged, out_of_memory, changed, or none",
        ),
    ] = "failed,timeout",
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast", help="stop at the first trial that fails")
    ] = False,
    replace_plan: Annotated[
        bool, typer.Option("--replace-plan", help="drop trials of earlier runs that are not in CONFIG")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Train every trial of an experiment that is not done yet.

    Another run does only what is missing.
    """
    from normbench.cli import errors
    from normbench.cli import status as report
    from normbench.cli.progress import listener
    from normbench.config import experiment as configs
    from normbench.data.dataset import default_directory
    from normbench.sweep import run as sweep

    retried = report.states_to_retry(retry)
    execution = report.execution_settings(executor, workers)
    experiment = sweep.override(configs.load(config, overrides), **execution)
    with listener(quiet) as progress, errors.Stop(context.obj, progress.say) as stop:
        survey = sweep.run(
            experiment,
            results,
            data or default_directory(),
            retry=retried,
            fail_fast=fail_fast,
            replace_plan=replace_plan,
            listener=progress,
            stop=stop,
        )
    _print(report.run_as_json(survey, results) if as_json else report.run_as_text(survey, results))
    if stop.signal:
        raise errors.Stopped(stop.signal)
    if not survey.is_complete:
        raise errors.Unfinished(report.more_to_retry(survey, retried))


@app.command()
def plan(
    config: Config,
    overrides: Overrides = NOTHING,
    results: Results = RESULTS,
    data: Data = None,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """List the trials of an experiment and what is left to do.

    The time is estimated by records of the same kind on this machine, else by a short probe. Nothing is
    written.
    """
    from normbench.cli import errors
    from normbench.cli import status as report
    from normbench.config import experiment as configs
    from normbench.data.dataset import default_directory
    from normbench.records import describe_unreadable
    from normbench.sweep import run as sweep

    where = data or default_directory()
    experiment = configs.load(config, overrides)
    survey = sweep.compare(sweep.survey(experiment, results), where)
    for words in sweep.describe_left_out(experiment, results):
        errors.print_error(words)
    for line in describe_unreadable(survey.damaged, "left out"):
        errors.print_error(line)
    expected = report.expect(survey, results, where)
    _print(report.plan_as_json(survey, expected) if as_json else report.plan_as_text(survey, expected))


@app.command()
def plot(
    experiments: Annotated[
        list[str] | None, typer.Argument(metavar="EXPERIMENT", help="all, if none is named")
    ] = None,
    results: Results = RESULTS,
    figure: Annotated[
        str | None, typer.Option(metavar="NAME", help="only this one; normbench list figures")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="FORMATS", help="of png, svg and pdf")
    ] = "png,svg,pdf",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="instead of <results>/<experiment>/figures")
    ] = None,
    published: Annotated[
        str | None,
        typer.Option(
            metavar="SERIES",
            help="lay a published series over batch_size and setting; normbench list figures",
        ),
    ] = None,
    _debug: Debug = False,
) -> None:
    """Draw figures, with their numbers as CSV beside them."""
    from normbench.cli import errors
    from normbench.cli import plot as drawing

    for path in drawing.draw(experiments, results, figure, formats, out, published, errors.print_error):
        _print(printable(path))


@app.command()
def status(
    experiment: Annotated[
        str | None, typer.Argument(metavar="EXPERIMENT", help="all, if none is named")
    ] = None,
    results: Results = RESULTS,
    data: Data = None,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Show how far the experiments are."""
    from normbench.cli import status as report
    from normbench.data.dataset import default_directory

    describe = report.status_as_json if as_json else report.status_as_text
    _print(describe(results, experiment, data or default_directory()))


@app.command()
def show(
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="a trial's id, or a part of it")],
    results: Results = RESULTS,
    _debug: Debug = False,
) -> None:
    """Show one trial: settings, end, epochs, where it ran."""
    from normbench.cli import export

    _print(export.trial_as_text(results, trial))


@app.command()
def weights(
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="a trial's id, or a part of it")],
    results: Results = RESULTS,
    _debug: Debug = False,
) -> None:
    """Print the file of a trial's final weights, which train.save_weights keeps."""
    from normbench.cli import export

    _print(export.weights_as_text(results, trial))


@app.command(name="export")
def export_(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="as normbench status names it")],
    format_: Annotated[
        str, typer.Option("--format", metavar="csv|json", help="one row a trial, or whole records")
    ] = "csv",
    results: Results = RESULTS,
    _debug: Debug = False,
) -> None:
    """Print the records of an experiment as CSV or JSON."""
    from normbench.cli import errors, export

    _print(export.exported(results, experiment, format_, errors.print_error))


@app.command(name="report")
def report_(
    experiments: Annotated[
        list[str] | None,
        typer.Argument(metavar="EXPERIMENT", help="only the claims that it tests; all, if none is named"),
    ] = None,
    file: ClaimFiles = NO_FILES,
    results: Results = RESULTS,
    out: Annotated[Path, typer.Option(metavar="FILE", help="its ending becomes that of the format")] = Path(
        "report.html"
    ),
    formats: Annotated[
        str, typer.Option("--format", metavar="FORMATS", help="of html, md and json")
    ] = "html",
    _debug: Debug = False,
) -> None:
    """Write one file with every claim: verdict, figure, arithmetic, records."""
    from normbench.cli import errors, report

    for path in report.write(experiments, file, results, out, formats, errors.print_error):
        _print(printable(path))


@app.command()
def claims(
    ids: Annotated[
        list[str], typer.Argument(metavar="CLAIM", help="ids of claims; one shows all its arithmetic")
    ] = NOTHING,
    file: ClaimFiles = NO_FILES,
    results: Results = RESULTS,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Judge claims by the stored records: verdict, measured value, margin, and what would settle it."""
    from normbench.cli import claims as verdicts
    from normbench.cli import errors

    judged = verdicts.judged(verdicts.chosen((), file), results, errors.print_error)
    if ids:
        wanted = {claim.id for claim in verdicts.chosen(ids, file)}
        judged = [each for each in judged if each.claim.id in wanted]
    if as_json:
        _print(verdicts.in_json(judged))
    else:
        _print("\n\n".join(map(verdicts.details, judged)) if ids else verdicts.as_text(judged))


@app.command()
def settle(
    context: typer.Context,
    ids: Annotated[list[str], typer.Argument(metavar="CLAIM", help="ids of claims")] = NOTHING,
    all_: Annotated[bool, typer.Option("--all", help="every claim")] = False,
    file: ClaimFiles = NO_FILES,
    budget: SettleBudget = None,
    max_seeds: Annotated[
        int, typer.Option(metavar="N", min=3, help="seeds of the last look at a claim")
    ] = 20,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="show what would run next and what it takes; write nothing")
    ] = False,
    results: Results = RESULTS,
    data: Data = None,
    executor: Executor = None,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Run further seeds of open claims, the cheapest next look first, until they are settled.

    The looks are written to the results directory before the first trial. Running it again goes on.
    """
    from normbench.cli import claims as verdicts
    from normbench.config.registry import UnknownName

    if not ids and not all_:
        raise UnknownName("name claims, or give --all")
    claims = verdicts.chosen((), file)
    wanted = {claim.id for claim in (claims if all_ else verdicts.chosen(ids, file))}
    settler = _settler(claims, wanted, budget, max_seeds, results, data, executor, workers)
    if plan_only:
        look = settler.look()
        _print(verdicts.plan_as_json(look) if as_json else verdicts.plan(look))
        return
    look = _settle(context, settler, quiet)
    _print(verdicts.in_json(look.judged) if as_json else verdicts.as_text(look.judged))
    for name, why in look.step.frozen.items() if not as_json else ():
        _print(f"claim {name} is left open: {why}")


@app.command()
def ask(
    context: typer.Context,
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="such as 'group > batch at batch_size=4'")
    ],
    config: Config,
    overrides: Overrides = NOTHING,
    margin: Annotated[
        float | None,
        typer.Option(metavar="SIZE", help="smallest difference that counts [default: 0.5 points of a %]"),
    ] = None,
    metric: MetricName = None,
    budget: SettleBudget = None,
    max_seeds: Annotated[
        int, typer.Option(metavar="N", min=3, help="seeds of the last look at the question")
    ] = 20,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="show what would run next and what it takes; write nothing")
    ] = False,
    results: Results = RESULTS,
    data: Data = None,
    executor: Executor = None,
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Answer a question on an experiment: run its seeds until the answer is settled, and say it.

    Questions are 'A > B', 'A < B', 'A = B within 0.5', 'A rises along KEY', 'A falls along KEY' and 'where
    does A cross B along KEY', each perhaps with 'at KEY=VALUE, …' behind it.
    """
    from normbench.cli import claims as verdicts
    from normbench.cli.report import answer
    from normbench.report.claims import wording

    claim = verdicts.asked(question, config, overrides, margin, metric)
    settler = _settler([claim], None, budget, max_seeds, results, data, executor, workers)
    if plan_only:
        look = settler.look()
        _print(verdicts.plan_as_json(look) if as_json else verdicts.plan(look))
        return
    (judged,) = _settle(context, settler, quiet).judged
    page = answer(judged, results)
    _print(verdicts.in_json([judged]) if as_json else f"{wording.sentence(judged)}\nfigure: {page}")


def _settler(
    claims: Sequence["Claim"],
    wanted: set[str] | None,
    budget: str | None,
    max_seeds: int,
    results: Path,
    data: Path | None,
    executor: str | None,
    workers: int | None,
) -> "Settler":
    from normbench.cli import claims as verdicts
    from normbench.cli import errors
    from normbench.cli import status as report
    from normbench.data.dataset import default_directory
    from normbench.sweep import adaptive
    from normbench.sweep import run as sweep

    execution = report.execution_settings(executor, workers)
    return adaptive.Settler(
        claims,
        results,
        data or default_directory(),
        rule=adaptive.rule(max_seeds),
        budget=verdicts.budget(budget),
        wanted=wanted,
        place=lambda experiment: sweep.override(experiment, **execution),
        say=errors.print_error,
    )


def _settle(context: typer.Context, settler: "Settler", quiet: bool) -> "Look":
    """Run what open claims lack; return the last look."""
    from normbench.cli import claims as verdicts
    from normbench.cli import errors
    from normbench.cli.progress import listener

    with listener(quiet) as watching, errors.Stop(context.obj, watching.say) as stop:
        for look in settler.steps(watching, stop):
            if look.step.claim is not None:
                watching.claims(verdicts.step(look), verdicts.rows(look))
    if stop.signal:
        raise errors.Stopped(stop.signal)
    return look


@app.command()
def compare(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help="a directory in results")],
    by: Annotated[str, typer.Option(metavar="KEY", help="the setting whose values are compared")] = "norm",
    baseline: Annotated[
        str | None, typer.Option(metavar="VALUE", help="compare all others with this one alone")
    ] = None,
    metric: MetricName = None,
    results: Results = RESULTS,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Compare all pairs of methods in every cell of an experiment, seed by seed; nothing is run."""
    from normbench.cli import claims as verdicts
    from normbench.cli import errors

    unit, pairs = verdicts.compared(results, experiment, by, baseline, metric, errors.print_error)
    _print(verdicts.pairs_as_json(unit, pairs) if as_json else verdicts.pairs_as_text(unit, pairs))


@app.command()
def profile(
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="further settings, such as trial.norm_every=2")
    ] = NOTHING,
    norm: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="methods, comma-separated; by default all that fit"),
    ] = None,
    batch_size: Annotated[str, typer.Option(metavar="SIZES", help="comma-separated")] = "2,8,32,128",
    model: Annotated[str, typer.Option(metavar="NAME", help="normbench list models")] = "resnet20",
    precision: Annotated[str, typer.Option(metavar="fp32|bf16")] = "fp32",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N")] = "auto",
    rounds: Annotated[int, typer.Option(metavar="N", min=1, help="measurements of each method")] = 5,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="write every measurement and the figure there")
    ] = None,
    as_json: AsJson = False,
    _debug: Debug = False,
) -> None:
    """Measure the cost of every method: time of a training step and of inference, and memory."""
    from normbench.cli import errors
    from normbench.cli import profile as costs

    settings = [f"trial.model={model}", f"trial.precision={precision}", f"execute.device={device}", *settings]
    if out:
        costs.check_directory(out)
    measured = costs.measure(norm, batch_size, settings, device, rounds, errors.print_error)
    _print(costs.in_json(measured) if as_json else costs.as_text(measured))
    for path in costs.write(measured, out) if out else ():
        errors.print_error(f"wrote {printable(path)}")


@app.command(name="list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="WHAT",
            help="norms, clips, tasks, models, datasets, whitenings, evaluations, executors, figures; or all",
        ),
    ] = None,
    _debug: Debug = False,
) -> None:
    """List what a config may name, with options and defaults."""
    from normbench.cli import catalog

    _print(catalog.tables(what))


@app.command(name="data")
def data_(
    name: Annotated[str, typer.Argument(metavar="NAME", help="a data set; normbench list datasets")],
    options: Annotated[
        list[str], typer.Argument(metavar="OPTION=VALUE", help="such as folder=my_images")
    ] = NOTHING,
    data: Data = None,
    _debug: Debug = False,
) -> None:
    """Fetch, verify and decode a data set, and describe it."""
    from normbench.cli import catalog, errors
    from normbench.data.dataset import default_directory

    _print(catalog.data_as_text(name, options, data or default_directory(), errors.print_error))


def _print(text: str) -> None:
    """Print to stdout without Typer's echo, which encodes text in another way."""
    if text := text.rstrip("\n"):
        sys.stdout.write(f"{text}\n")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command, and end the process with its exit code and without a traceback."""
    gc.set_threshold(50_000)  # the search for cycles took a fifth of the time to read 10,000 records
    open_closed_descriptors()
    with broken_pipe_safe():
        code = _run(sys.argv[1:] if arguments is None else arguments)
    if arguments is None and "torch" in sys.modules:
        flush()
        os._exit(code)  # unloading torch takes a second, and five on a busy machine
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    try:
        code = int(app(args=arguments, prog_name="normbench", standalone_mode=False, obj=arguments) or 0)
        sys.stdout.flush()
        if code:  # Typer returns a number for an interrupt
            raise KeyboardInterrupt
    except BaseException as error:
        if isinstance(error, SystemExit) and _completes(arguments):
            raise
        from normbench.cli import errors

        return errors.explain(KeyboardInterrupt() if isinstance(error, typer.Abort) else error, arguments)
    return code


def _completes(arguments: list[str]) -> bool:
    """Return whether Typer handles a shell's completion, and ends the process itself."""
    options = ("--install-completion", "--show-completion")
    return any(argument.startswith(options) for argument in arguments) or "_NORMBENCH_COMPLETE" in os.environ
