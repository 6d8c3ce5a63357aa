"""The command line as a user meets it: what it prints where, and how it ends."""

import json
import os
import resource
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Cli

import normbench
from normbench.records import Record, Store

TRIAL = "batch-resnet8-b8-s0-"
READING = [
    ("status",),
    ("status", "--json"),
    ("show", TRIAL),
    ("export", "tiny"),
    ("export", "tiny", "--format", "json"),
    ("list",),
    ("plan", "tiny.yaml"),
    ("plan", "tiny.yaml", "--json"),
]


def normbench_process(*arguments: str, **options: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "normbench", *arguments]
    return subprocess.Popen(command, text=True, **options)  # type: ignore[call-overload, no-any-return]


def everything_below(directory: Path) -> dict[Path, int | None]:
    return {path: path.stat().st_mtime_ns if path.is_file() else None for path in directory.rglob("*")}


def some_record(directory: Path, name: str = "tiny") -> Record:
    return next(iter(Store(directory / "results" / name).load()[0].values()))


def diverged(record: Record) -> Record:
    failure = {"step": 3, "why": "the training loss is nan", "last_finite_loss": 2.0}
    return record.model_copy(update={"status": "diverged", "final": None, "failure": failure})


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full: no file can grow past ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# exit codes


def test_0_all_trials_are_done(lab: Path, cli: Cli) -> None:
    ended = cli("run", "tiny.yaml")
    assert ended == (0, "results/tiny: 4 trials, 4 done\n", "")


def test_1_an_internal_fault_is_one_line(lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> str:
        raise ZeroDivisionError("in the middle")

    monkeypatch.setattr("normbench.cli.catalog.tables", broken)
    ended = cli("list")
    assert ended.code == 1
    assert ended.out == ""
    fault = "internal fault: ZeroDivisionError: in the middle (--debug shows where)"
    assert ended.err.splitlines() == [fault, "continue with: normbench list"]
    with_debug = cli("list", "--debug")
    assert with_debug.code == 1
    assert "Traceback" in with_debug.err
    assert 'raise ZeroDivisionError("in the middle")' in with_debug.err
    assert with_debug.last == "continue with: normbench list --debug"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "none.yaml"], "none.yaml: cannot be read: No such file or directory"),
        (["run", "tiny"], "tiny: cannot be read: No such file or directory (did you mean tiny.yaml?)"),
        (["run", "tiny.yaml", "trial.epocs=3"], "unknown key (did you mean 'trial.epochs'?)"),
        (["run", "tiny.yaml", "trial.epochs=x", "sweep.norm=[grup]"], "did you mean 'group'?"),
        (
            ["run", "tiny.yaml", "--executor", "seriell"],
            "--executor: unknown executor 'seriell' (did you mean",
        ),
        (["run", "tiny.yaml", "--workers", "0"], "--workers"),
        (["run", "tiny.yaml", "--retry", "fail"], "--retry: unknown state 'fail' (did you mean 'failed'?)"),
        (["run", "tiny.yaml", "name=new", "sweep.norm=[group]"], "8 groups do not divide 4 channels"),
        (["run", "tiny.yaml", "name=new", "trial.seed=1", "sweep.batch_size=[1000]"], "more than the 64"),
        (["plan", "tiny.yaml", "name=new", "sweep.batch_size=[1000]"], "more than the 64 training images"),
        (["run"], "CONFIG"),
        (["run", "tiny.yaml", "--worker", "2"], "--worker"),
        (["runn"], "runn"),
        ([], "Usage: normbench"),
        (["plot", "tinny"], "no experiment 'tinny' in results (did you mean 'tiny'?); there: tiny"),
        (["plot", "--figure", "curve"], "unknown figure 'curve' (did you mean 'curves'?)"),
        (["plot", "--figure", "switch_weights"], "--figure switch_weights: nothing is drawn"),
        (["plot", "--format", "png,pgn"], "unknown format 'pgn' (did you mean 'png'?); known: png, svg, pdf"),
        (["plot", "--format", ""], "unknown format ''"),
        (
            ["plot", "--published", "befranke"],
            "unknown series 'befranke' (did you mean 'befranke_resnet20'?)",
        ),
        (["status", "--results", "none"], "no records in none; 'normbench run CONFIG' makes some"),
        (["show", "b"], "'b' begins the ids of 2 trials, give more of one: batch-resnet8-b16-s0-"),
        (["show", "layer"], "no trial 'layer' in results"),
        (["export", "tiny", "--format", "cvs"], "--format: unknown format 'cvs' (did you mean 'csv'?)"),
        (["list", "norn"], "unknown list 'norn'; known: norms, clips, tasks, models"),
        (["data", "shape"], "unknown dataset 'shape' (did you mean 'shapes'?)"),
        (["data", "shapes", "train_sice=10"], "train_sice"),
        (["data", "folder", "image_size=100000"], "dataset.image_size: must be at most 4096, got 100000"),
        (["run", "tiny.yaml", "trial.model.width=1e9"], "trial.model.width=1e9: must be at most 64, got 1e9"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_2_bad_usage_names_the_word_and_writes_nothing(
    lab: Path, cli: Cli, arguments: list[str], words: str
) -> None:
    before = everything_below(lab / "results/tiny")
    ended = cli(*arguments)
    assert ended.code == 2
    assert words in ended.err
    assert "Traceback" not in ended.err
    again = ended.last.endswith(f"with: {shlex.join(['normbench', *arguments])}")
    assert again == ended.last.startswith("fix that, then")
    assert not again or arguments[0] in ("run", "plan")
    assert ended.out == ""
    assert everything_below(lab / "results/tiny") == before


def test_3_what_did_not_end_well_is_listed(lab: Path, cli: Cli) -> None:
    store, record = Store(lab / "results/tiny"), some_record(lab)
    store.save(diverged(record))
    ended = cli("run", "tiny.yaml")
    assert ended.code == 3
    words = f"  {record.trial.id}: diverged at step 3: the training loss is nan"
    assert ended.out.splitlines() == ["results/tiny: 4 trials, 3 done, 1 diverged", words]
    assert ended.last == "resume with: normbench run tiny.yaml --retry failed,timeout,diverged"
    as_json = json.loads(cli("run", "tiny.yaml", "--json").out)
    assert as_json["counts"] == {"done": 3, "diverged": 1}
    assert [trial["state"] for trial in as_json["trials"]].count("diverged") == 1
    assert cli("run", "tiny.yaml", "--retry", "diverged").out == "results/tiny: 4 trials, 4 done\n"


def test_3_a_failed_trial_is_tried_again_unless_told_otherwise(
    lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Record:
        raise ZeroDivisionError("in \x1b[31m[red]training")

    ids = [path.stem for path in (lab / "results/tiny").glob("group-*.json")]
    for trial in ids:
        Store(lab / "results/tiny").record_path(trial).unlink()
    with monkeypatch.context() as patch:
        patch.setattr("normbench.training.train.train", broken)
        ended = cli("run", "tiny.yaml")
        assert ended.code == 3
        assert ended.out.startswith("results/tiny: 4 trials, 2 done, 2 failed\n")
        assert ended.out.count("failed: ZeroDivisionError: in \\x1b[31m[red]training (see results/tiny/") == 2
        assert ended.last == "resume with: normbench run tiny.yaml"
        assert "\x1b" not in ended.out + ended.err
        shown = cli("show", ids[0]).out
        assert "failed" in shown
        assert "\x1b" not in shown
        one = cli("run", "tiny.yaml", "--fail-fast")
        assert one.code == 3
        assert one.err.count(": failed: ") == 1
    untouched = cli("run", "tiny.yaml", "--retry", "none")
    assert untouched.code == 3
    assert untouched.last == "resume with: normbench run tiny.yaml --retry none --retry failed"
    assert cli("run", "tiny.yaml").code == 0


def test_4_data_that_cannot_be_had(lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # the discard port, where nobody listens
    ended = cli("run", "tiny.yaml", "name=real", "trial.dataset=cifar10", "--data", "empty")
    assert ended.code == 4
    assert "cifar" in ended.err
    assert "Traceback" not in ended.err
    resume = (
        "fix that, then resume with: normbench run tiny.yaml name=real trial.dataset=cifar10 --data empty"
    )
    assert ended.last == resume


def test_5_a_second_runner(lab: Path, cli: Cli) -> None:
    with Store(lab / "results/tiny").locked():
        ended = cli("run", "tiny.yaml")
        assert cli("status").code == 0  # reading is free
    assert ended.code == 5
    assert ended.err.splitlines() == [
        f"results/tiny is in use by process {os.getpid()} on {os.uname().nodename}",
        "resume with: normbench run tiny.yaml",
    ]
    assert cli("run", "tiny.yaml").code == 0


def test_6_a_file_where_a_directory_must_be(lab: Path, cli: Cli) -> None:
    (lab / "file").touch()
    ended = cli("run", "tiny.yaml", "--results", "file")
    assert ended.code == 6
    assert "file/tiny: Not a directory" in ended.err
    assert ended.last == "resume with: normbench run tiny.yaml --results file"
    assert cli("status", "--results", "file").err.startswith("file: Not a directory\n")


def test_6_a_disk_that_is_full(lab: Path, cli: Cli) -> None:
    lost = some_record(lab).trial.id
    Store(lab / "results/tiny").record_path(lost).unlink()
    before = {path: path.read_bytes() for path in (lab / "results/tiny").glob("*.json")}
    with files_of_at_most(200):
        ended = cli("run", "tiny.yaml")
    assert ended.code == 6
    assert f"results/tiny/{lost}" in ended.err
    assert "File too large" in ended.err
    assert {path: path.read_bytes() for path in (lab / "results/tiny").glob("*.json")} == before
    assert not list((lab / "results/tiny").glob("*.tmp"))
    assert cli("run", "tiny.yaml").code == 0


def test_6_an_output_that_is_full(lab: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = normbench_process("status", stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate()
    assert process.returncode == 6
    assert err.splitlines() == [
        "standard output: No space left on device (free some space)",
        "continue with: normbench status",
    ]


@pytest.mark.parametrize("where", ["Abort", "KeyboardInterrupt"])
def test_130_an_interrupted_reader(lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def interrupted(_: object) -> str:
        import typer

        raise typer.Abort if where == "Abort" else KeyboardInterrupt

    monkeypatch.setattr("normbench.cli.catalog.tables", interrupted)
    ended = cli("list")
    assert (ended.code, ended.err) == (130, "continue with: normbench list\n")


# what goes where


@pytest.mark.parametrize("arguments", [*READING, ("list", "--help"), ("--version",)], ids=" ".join)
def test_reading_writes_data_to_stdout_and_nothing_else(
    lab: Path, cli: Cli, arguments: tuple[str, ...]
) -> None:
    before = everything_below(lab)
    ended = cli(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.endswith("\n")
    assert not ended.out.endswith("\n\n")
    assert "\x1b" not in ended.out
    if "json" in arguments or "--json" in arguments:
        json.loads(ended.out)
    assert everything_below(lab) == before


@pytest.mark.parametrize("data", ["empty", None], ids=["without data", "with data"])
def test_plan_writes_nothing_at_all(
    lab: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tiny_data: Path, data: str | None
) -> None:
    """Not a cache either, and not when it has to try how fast a trial runs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(lab / "cache"))
    before = everything_below(lab), everything_below(tiny_data)
    ended = cli("plan", "tiny.yaml", "name=new", "trial.seed=5", *(["--data", data] if data else []))
    assert (ended.code, ended.err) == (0, "")
    assert "4 trials: 4 missing" in ended.out
    assert ("not decoded yet" in ended.out) == (data is not None)
    assert (everything_below(lab), everything_below(tiny_data)) == before


def test_progress_goes_to_stderr_line_by_line(lab: Path, cli: Cli) -> None:
    ended = cli("run", "tiny.yaml", "name=other", "sweep.batch_size=[16]")
    assert ended.out == "results/other: 2 trials, 2 done\n"
    start, first, one, two = ended.err.splitlines()
    assert start == "loading torch and data …"
    assert first == "other: 2 trials to run, 0 of 2 done"
    assert one.startswith("batch-resnet8-b16-s0-")
    assert "(1 of 2 done, about " in one
    assert two.endswith(" % (2 of 2 done)")
    assert "\x1b" not in ended.err


def test_quiet_is_quiet_and_options_win_over_the_file(lab: Path, cli: Cli) -> None:
    (lab / "tiny.yaml").write_text((lab / "tiny.yaml").read_text().replace("serial", "pool"))
    arguments = ["sweep.batch_size=[16]", "sweep.norm=[batch]", "name=q", "--executor", "serial"]
    ended = cli("run", "tiny.yaml", *arguments, "--workers", "1", "--quiet", "--json")
    assert (ended.code, ended.err) == (0, "")
    (trial,) = json.loads(ended.out)["trials"]
    assert trial["state"] == "done"
    assert 0 <= trial["test_accuracy"] <= 1


def test_data_describes_a_set(lab: Path, cli: Cli) -> None:
    ended = cli("data", "folder", "folder=tiny", "image_size=8", "train_size=32")
    assert ended.code == 0
    assert "train: 32 images, test: 20, 8×8 RGB\nclasses: 4 (0, 1, 2, 3)\ncontent: " in ended.out
    ended = cli("data", "folder", "folder=tiny", "image_size=8", "train_size=32", "validation_size=8")
    assert "train: 24 images, validation: 8, test: 20, 8×8 RGB\n" in ended.out


def test_plot_draws_every_experiment(lab: Path, cli: Cli) -> None:
    ended = cli("plot", "--format", "svg")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        f"results/tiny/figures/{name}"
        for name in ("batch_size.svg", "batch_size.csv", "curves.svg", "curves.csv")
    ]
    assert all(Path(line).stat().st_size > 100 for line in ended.out.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "first"),
    [
        (("list",), "norms:\n"),
        (("export", "tiny"), "id,status"),
        (("--help",), "Usage"),
        (("status",), "experiment"),
    ],
)
def test_a_reader_that_leaves_is_no_error(lab: Path, arguments: tuple[str, ...], first: str) -> None:
    """As with ``| head``; the pipe is closed before a line is written, so every write fails."""
    reading, writing = os.pipe()
    os.close(reading)
    process = normbench_process(*arguments, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert normbench_process(*arguments, stdout=subprocess.PIPE).communicate()[0].startswith(first)


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_reads_its_progress(lab: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    arguments = ["run", "tiny.yaml", "name=alone", "sweep.batch_size=[16]"]
    process = normbench_process(*arguments, stdout=subprocess.PIPE, stderr=writing)
    os.close(writing)
    out, _ = process.communicate()
    assert (process.returncode, out) == (0, "results/alone: 2 trials, 2 done\n")


def test_a_locale_without_the_characters_is_no_error(lab: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    process = normbench_process(
        "list", "datasets", stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    assert "32\\xd732 RGB" in out


def test_hostile_names_and_words_do_not_reach_the_terminal(lab: Path, cli: Cli) -> None:
    hostile = "\x1b[2J[red]"
    (lab / "results/tiny").rename(lab / "results" / hostile)
    record = some_record(lab, hostile)
    changed = record.model_copy(update={"provenance": record.provenance | {"git": f"={hostile}", hostile: 1}})
    Store(lab / "results" / hostile).save(changed)
    (lab / "results" / hostile / "broken.json").write_text(hostile)
    commands = [("status",), ("status", "--json"), ("show", record.trial.id), ("export", hostile)]
    commands += [("export", hostile, "--format", "json"), ("plot", "--format", "png"), ("show", hostile)]
    for arguments in [
        *commands,
        ("status", f"{hostile}x"),
        ("run", hostile),
        ("plot", hostile, "--figure", hostile),
    ]:
        ended = cli(*arguments)
        assert ended.code in (0, 2), arguments
        assert "\x1b" not in ended.out + ended.err, arguments
    assert ",'=\\x1b[2J[red]," in cli("export", hostile).out  # no formula for a spreadsheet either
    assert "\\x1b[2J[red]" in cli("status").out


# what is loaded


LOADED = """
import sys
from normbench.cli.app import main
for arguments in {commands}:
    try:
        main(arguments)
    except SystemExit as end:
        print(end.code, *arguments, *(name for name in {modules} if name in sys.modules), file=sys.stderr)
"""


def loaded(commands: list[list[str]], modules: list[str]) -> list[str]:
    script = LOADED.format(commands=commands, modules=modules)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stderr.splitlines()


def test_help_loads_next_to_nothing(lab: Path) -> None:
    modules = ["torch", "numpy", "pydantic", "yaml", "rich", "matplotlib", "scipy"]
    assert loaded([["--help"], ["--version"]], modules) == ["0 --help", "0 --version"]


def test_completion_knows_the_commands(lab: Path) -> None:
    asked = {"_NORMBENCH_COMPLETE": "complete_bash", "COMP_WORDS": "normbench pl", "COMP_CWORD": "1"}
    process = normbench_process(stdout=subprocess.PIPE, env=os.environ | asked)
    assert process.communicate()[0].split() == ["plan", "plot"]


def test_the_version_is_printed(cli: Cli) -> None:
    assert cli("--version").out == f"normbench {normbench.__version__}\n"
