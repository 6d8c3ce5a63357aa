import contextlib
import os
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from normbench.config.catalog.models import MODELS
from normbench.config.experiment import OVERRIDABLE, ConfigError, Execute, Experiment, dump, load
from normbench.config.grid import TRIAL_KEYS
from normbench.config.trial import Trial

EXAMPLES = int(os.environ.get("NORMBENCH_FUZZ", "300"))

EVERYTHING = """\
name: batch_size
description: every section that there is
trial:
  dataset: {name: cifar10, train_size: 1000}
  model: resnet8
  epochs: 3
  optimizer: {lr: 1e-2, nesterov: true}
  clip: {name: agc, exclude: [stem]}
  schedule: {name: step, warmup_epochs: 0.5}
sweep:
- norm: [batch, {name: group, groups: 4}]
  batch_size: [2, 4]
- {norm: [switchable], norm.variance: [paper, official], seed: [0, 1]}
execute: {executor: serial, workers: 2, threads: 1, processes: 2, device: cpu}
plots: [batch_size, {name: curves}]
max_trials: 100
"""

NOT_A_NAME = "expected up to 100 letters, digits, '.', '_' and '-', not beginning with '.' or '-'"

Load = Callable[..., Experiment]
Problems = Callable[..., list[str]]


@pytest.fixture
def config(tmp_path: Path) -> Load:
    def read(text: str | bytes, *overrides: str) -> Experiment:
        path = tmp_path / "x.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path, overrides)

    return read


@pytest.fixture
def problems(config: Load, tmp_path: Path) -> Problems:
    def refused(text: str | bytes, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            config(text, *overrides)
        assert str(caught.value) == "\n".join(caught.value.problems)
        return [problem.removeprefix(f"{tmp_path}{os.sep}") for problem in caught.value.problems]

    return refused


def test_a_name_is_enough(config):
    experiment = config("name: x")
    assert experiment == Experiment("x", (Trial(),), Execute(), (), {"name": "x"})


def test_every_section_is_read(config):
    experiment = config(EVERYTHING)
    assert experiment.name == "batch_size"
    assert [trial.id.rpartition("-")[0] for trial in experiment.trials] == [
        "batch-resnet8-b2-s0",
        "batch-resnet8-b4-s0",
        "group-resnet8-b2-s0",
        "group-resnet8-b4-s0",
        "switchable-resnet8-b128-s0",
        "switchable-resnet8-b128-s1",
        "switchable-resnet8-b128-s0",
        "switchable-resnet8-b128-s1",
    ]
    assert {trial.optimizer.lr for trial in experiment.trials} == {0.01}
    assert experiment.execute == Execute(executor="serial", workers=2, threads=1, processes=2, device="cpu")
    assert [plot.name for plot in experiment.plots] == ["batch_size", "curves"]


@pytest.mark.parametrize(
    "overrides", [(), ("trial.epochs=5", "sweep.seed=[7]", "name=y", "trial.optimizer.weight_decay=1e-5")]
)
def test_a_dumped_experiment_loads_as_itself(config, overrides):
    experiment = config(EVERYTHING, *overrides)
    again = config(dump(experiment))
    assert again == experiment
    assert [trial.id for trial in again.trials] == [trial.id for trial in experiment.trials]


def test_where_trials_run_is_no_part_of_their_identity(config):
    assert config(EVERYTHING).trials == config(EVERYTHING, "execute={executor: pool}").trials


def test_an_executor_takes_options_as_a_norm_does(config):
    text = "name: x\nexecute: {executor: {name: ray, gpus: 0.25}}"
    assert config(text).execute.executor.options == {"address": None, "gpus": 0.25}
    changed = config(text, "execute.executor.address=auto", "execute.threads=2").execute
    assert changed.executor.options == {"address": "auto", "gpus": 0.25}
    assert config("name: x", "execute.executor=slurm").execute.executor.options["minutes"] == 60


def test_a_wrong_option_of_an_executor_is_found_where_it_was_written(problems):
    text = "name: x\nexecute:\n  executor: {name: ray, adress: auto, gpus: -1}"
    assert problems(text) == [
        "x.yaml:3:25: execute.executor.adress: unknown option of 'ray' (did you mean 'address'?)",
        "x.yaml:3:45: execute.executor.gpus: must be at least 0, got -1",
    ]


@pytest.mark.parametrize("name", ["a", "A-1", "_x", "cifar10.v2", "9" * 100])
def test_names_of_directories_are_accepted(config, name):
    assert config(f"name: '{name}'").name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-rf", "a/b", "a b", "é", "a\\n", "9" * 101, "\\0"]
)
def test_what_is_no_plain_name_of_a_directory_is_refused(problems, name):
    (problem,) = problems(f'name: "{name}"')
    assert problem.startswith(f"x.yaml:1:7: name: {NOT_A_NAME}, got '")


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:12"])
def test_devices_are_accepted(config, device):
    assert config(f"name: x\nexecute: {{device: '{device}'}}").execute.device == device


def test_everything_wrong_in_a_file_is_told_at_once_in_the_order_of_its_lines(problems):
    text = """\
nam: x
trial:
  epocs: 3
  lr: 0.1
  batch_size: abc
  augment: no
  norm: {name: group, gruops: 4}
  label_smoothing: 010
  model: resnet9
sweep:
  norm: [batch, {name: group, groups: 0}, grup]
  sed: [1]
  precision: []
execute: {workers: 0, executor: poll, device: gpu, thread: 1}
plots: [curv, {name: curves, x: 1}]
max_trials: 1e3
"""
    assert problems(text) == [
        "x.yaml:1:1: name: is missing",
        "x.yaml:1:1: nam: unknown key (did you mean 'name'?)",
        "x.yaml:3:3: trial.epocs: unknown key (did you mean 'epochs'?)",
        "x.yaml:4:3: trial.lr: unknown key (did you mean 'trial.optimizer.lr'?)",
        "x.yaml:5:15: trial.batch_size: expected a whole number, got 'abc'",
        "x.yaml:6:12: trial.augment: expected true or false, got 'no' (YAML 1.2 has only true and false)",
        "x.yaml:7:23: trial.norm.gruops: unknown option of 'group' (did you mean 'groups'?)",
        "x.yaml:8:20: trial.label_smoothing: 010 can be octal or decimal, drop the leading zero or quote it",
        "x.yaml:9:10: trial.model: unknown model 'resnet9'; known: " + ", ".join(MODELS),
        "x.yaml:11:39: sweep.norm[1].groups: must be at least 1, got 0",
        "x.yaml:11:43: sweep.norm[2]: unknown norm 'grup' (did you mean 'group'?)",
        "x.yaml:12:3: sweep.sed: unknown key (did you mean 'seed'?)",
        "x.yaml:13:14: sweep.precision: expected a list of one or more values, got an empty list",
        "x.yaml:14:20: execute.workers: expected auto or a whole number of at least 1, got 0",
        "x.yaml:14:33: execute.executor: unknown executor 'poll' (did you mean 'pool'?)",
        "x.yaml:14:47: execute.device: expected auto, cpu, cuda or cuda:N, got 'gpu'",
        "x.yaml:14:52: execute.thread: unknown key (did you mean 'threads'?)",
        "x.yaml:15:9: plots[0]: unknown figure 'curv' (did you mean 'curves'?)",
        "x.yaml:15:30: plots[1].x: unknown option of 'curves'; known: metric",
        "x.yaml:16:13: max_trials: expected a whole number, got 1e3 (write 1000)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "[name]",
            ":1:1: expected a mapping with the keys name, description, trial, sweep, tune, train, execute, "
            "plots, labels, max_trials, got a list",
        ),
        ("name: 3", ":1:7: name: expected text, got 3 (put it in quotes)"),
        (
            "name: x\nsweep: {norm: [batch, group]}\nlabels: {grup: GN}",
            ":3:16: labels.grup: no series 'grup' (did you mean 'group'?); there: batch, group",
        ),
        ("name: x\ntrial:", ":2:7: trial: expected a mapping of trial settings, got nothing"),
        (
            "name: x\nexecute: pool",
            ":2:10: execute: expected a mapping, got 'pool' (its settings: executor, workers, threads, "
            "processes, device, slots_per_device, slots_as, hang_seconds)",
        ),
        ("name: x\nplots: curves", ":2:8: plots: expected a list, got 'curves' (write [curves])"),
        ("name: x\nworkers: 3", ":2:1: workers: unknown key (did you mean 'execute.workers'?)"),
        ("name: x\nepocs: 3", ":2:1: epocs: unknown key (did you mean 'trial.epochs'?)"),
        ("name: x\nmax_trials: 100001", ":2:13: max_trials: must be at most 100000, got 100001"),
    ],
)
def test_what_is_wrong_at_the_top_is_located(problems, text, expected):
    assert problems(text) == [f"x.yaml{expected}"]


@pytest.mark.parametrize(
    ("processes", "expected"),
    [
        (3, "3 processes cannot share batches equally, they do not divide batch_size 4, 8"),
        (5, "5 processes are more than the samples of batch_size 4"),
        (0, "must be at least 1, got 0"),
        ("two", "expected a whole number, got 'two'"),
    ],
)
def test_processes_share_every_batch_equally(problems, processes, expected):
    text = "name: x\nexecute:\n  processes: {}\nsweep: {{batch_size: [4, 6, 8]}}"
    text = text.format(processes) if processes != 5 else text.format(5).replace("6, 8", "5")
    assert problems(text) == [f"x.yaml:3:14: execute.processes: {expected}"]


def test_processes_are_refused_to_a_method_whose_statistics_stay_in_one(problems):
    (problem,) = problems("name: x\nexecute: {processes: 2}\ntrial: {norm: moving_average_batch}")
    assert problem.endswith("2 processes would not share the statistics of moving_average_batch")


@pytest.mark.parametrize(
    ("figure", "expected"),
    [
        (
            "{name: setting, key: norm.gruops}",
            "key: unknown setting 'norm.gruops' (did you mean 'norm.groups'?)",
        ),
        (
            "{name: heat_map, x: batch_size, y: xyz}",
            "y: unknown setting 'xyz'; known: " + ", ".join(key for key in TRIAL_KEYS if "." not in key),
        ),
    ],
)
def test_a_figure_over_a_setting_that_does_not_exist_is_refused(problems, figure, expected):
    (problem,) = problems(f"name: x\nplots: [curves, {figure}]")
    assert problem.endswith(f"plots[1].{expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trial: {norm: {name: group, groups: 12}}", "2:15: trial.norm: 12 groups do not divide 16 channels"),
        ("sweep: {norm.groups: [4, 5]}", "2:22: sweep.norm.groups: 5 groups do not divide 16 channels"),
        ("trial: {norm: group, model: {name: resnet8, width: 0.25}}", "8 groups do not divide 4 channels"),
        ("trial: {norm: {name: centred_weights, groups: 3}}", "(these do: 1, 2, 4, 8, 16)"),
    ],
)
def test_groups_that_do_not_divide_the_channels_are_refused_without_torch(
    problems: Problems, text: str, expected: str
) -> None:
    base = "" if "norm:" in text else "trial: {norm: group}\n"
    (problem,) = problems(f"name: x\n{text}\n{base}")
    assert expected in problem


def test_groups_that_only_the_network_can_judge_are_accepted(config: Load) -> None:
    config("name: x\ntrial: {norm: {name: centred_weights, layer: none, groups: 3}}")
    config("name: x\ntrial: {norm: {name: group, groups: 32}, model: resnet8, norm_every: 7}")


def test_a_value_under_an_alias_is_reported_where_it_is_written(problems):
    text = "name: x\ntrial: {norm: &n {name: group, groups: 0}}\nsweep: {norm: [*n]}"
    assert problems(text) == [
        "x.yaml:2:40: trial.norm.groups: must be at least 1, got 0",
        "x.yaml:2:40: sweep.norm[0].groups: must be at least 1, got 0",
    ]


def test_only_the_first_hundred_problems_are_listed(problems):
    told = problems(
        "name: x\ntrial: {" + ", ".join(f"{letter * 40}: 1" for letter in string.ascii_letters * 4) + "}"
    )
    assert len(told) == 101
    assert told[-1] == "and 108 more"


def test_files_that_cannot_be_read_are_named(tmp_path):
    for path, words in [
        (tmp_path / "zzz.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / "nul\0l", "embedded null byte"),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(path)
        shown = str(path).replace("\0", r"\x00")
        assert caught.value.problems == (f"{shown}: cannot be read: {words}",)


def test_a_file_that_is_not_there_may_have_been_meant_as_one_that_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("configs/quickstart.yaml", "elsewhere/groups.yaml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    for path, nearest in [
        ("quickstart", " (did you mean configs/quickstart.yaml?)"),
        ("elsewhere/group.yml", " (did you mean elsewhere/groups.yaml?)"),
        ("zzz.yaml", ""),
    ]:
        with pytest.raises(ConfigError) as caught:
            load(Path(path))
        assert str(caught.value) == f"{path}: cannot be read: No such file or directory{nearest}"
        assert caught.value.is_typed


def test_whether_only_the_command_line_is_wrong_is_known(tmp_path):
    path = tmp_path / "x.yaml"
    for content, override, typed in [
        ("name: x", "trial.epocs=1", True),
        ("name: x", "trial.norm=grup", True),
        ("name: x\ntrial: {epocs: 1}", "trial.seed=1", False),
        ("name: x\ntrial: {epocs: 1}", "trial.epocs=1", False),
    ]:
        path.write_text(content)
        with pytest.raises(ConfigError) as caught:
            load(path, [override])
        assert caught.value.is_typed == typed


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_a_file_without_permission_is_named(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x")
    path.chmod(0)
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        load(path)


def test_an_endless_file_is_refused_before_it_is_read():
    with pytest.raises(ConfigError, match="is larger than 256 KiB"):
        load(Path("/dev/zero"))


# Overrides


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trial.epochs=7", {"trial": {"epochs": 7}}),
        ("trial.optimizer.lr=1e-3", {"trial": {"optimizer": {"lr": 0.001}}}),
        ("trial.norm={name: group, groups: 2}", {"trial": {"norm": {"name": "group", "groups": 2}}}),
        ("trial.norm.eps=1e-3", {"trial": {"norm": {"name": "batch", "eps": 0.001}}}),
        ("sweep.batch_size=[2, 8]", {"sweep": {"batch_size": [2, 8]}}),
        ("sweep.optimizer.lr=[1]", {"sweep": {"optimizer.lr": [1]}}),
        ("execute.workers=2", {"execute": {"workers": 2}}),
        ("plots=[curves]", {"plots": ["curves"]}),
        ("description=a=b", {"description": "a=b"}),
    ],
)
def test_an_override_is_put_into_the_document(config, override, expected):
    assert config("name: x", override).document == {"name": "x"} | expected


def test_an_override_replaces_what_the_file_says_and_keeps_the_rest(config):
    text = "name: x\ntrial: {norm: group, epochs: 3, optimizer: {lr: 1, momentum: 0.5}}"
    experiment = config(text, "trial.norm.groups=4", "trial.optimizer.lr=2", "name=y", "name=z")
    assert experiment.document == {
        "name": "z",
        "trial": {
            "norm": {"name": "group", "groups": 4},
            "epochs": 3,
            "optimizer": {"lr": 2, "momentum": 0.5},
        },
    }


def test_an_override_of_the_sweep_applies_to_every_block(config):
    experiment = config(
        "name: x\nsweep:\n- {norm: [group]}\n- {norm: [layer], seed: [0, 1]}", "sweep.seed=[5]"
    )
    assert experiment.document["sweep"] == [
        {"norm": ["group"], "seed": [5]},
        {"norm": ["layer"], "seed": [5]},
    ]


def test_every_key_that_can_be_overridden_is_a_key_of_the_document(problems):
    """A key that the list of keys holds, but the document does not, would be answered with 'unknown key'."""
    for key in OVERRIDABLE:
        if key.startswith(("name", "description")) or key in ("trial", "sweep"):
            continue
        told = problems("name: x\ntrial: {norm: group}", f"{key}=[[[]]]")
        assert not [problem for problem in told if "unknown key" in problem]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("=3", "expected KEY=VALUE, such as trial.epochs=3"),
        ("name=", "expected KEY=VALUE, such as trial.epochs=3"),
        ("x.y=1", "unknown key"),
        ("trial.num_epochs=3", "unknown key (did you mean 'trial.epochs'?)"),
        ("trial.optimizer.learning_rate=1", "unknown key (did you mean 'trial.optimizer.lr'?)"),
        ("weight-decay=1", "unknown key (did you mean 'trial.optimizer.weight_decay'?)"),
        ("trial.clip.epsilon=1", "unknown key (did you mean 'trial.clip.eps'?)"),
        (
            "trial.optimizer.amsgrad=true",
            "unknown key; known: name, lr, momentum, nesterov, beta1, beta2, eps, weight_decay, "
            "weight_decay_on_norm",
        ),
        ("trial.optimizer={lr:0.1}", "trial.optimizer.lr: a space is missing after the colon, write lr: 0.1"),
        (
            "description=ablation #3 of GN",
            "VALUE is YAML, in which # begins a comment; put text with # in quotes, such as "
            """'description="ablation #3 of GN"'""",
        ),
        (
            "sweep.seed=range(0,5)",
            "expected a list of one or more values, got 'range(0,5)' (write [0, 1, 2, 3, 4])",
        ),
        (
            "sweep.seed=0..4",
            "expected a list of one or more values, got '0..4' (write the numbers out, such as [0, 1, 2])",
        ),
        ("epochs=3", "unknown key (did you mean 'trial.epochs'?)"),
        ("sweep.lr=[1]", "unknown key (did you mean 'sweep.optimizer.lr'?)"),
        ("tune.optimizer.lrr=[1]", "unknown key (did you mean 'tune.optimizer.lr'?)"),
        ("tune.seed=[3]", "unknown key (did you mean 'tune.seeds'?)"),
        (
            "tune.dataset.train_size=[10]",
            "cannot be tuned: candidates are compared on one problem and its images, by the same "
            "measurements",
        ),
        ("trial.optimizer.lr=abc", "expected a number, got 'abc'"),
        (
            "trial.norm=[",
            "not valid YAML while parsing a flow node: expected the node content, but found '<stream end>'",
        ),
        ("trial.norm=grup", "unknown norm 'grup' (did you mean 'group'?)"),
        ("trial.norm.groups=4", "unknown option of 'batch'; known: eps, momentum, frozen_epochs"),
        ("sweep.batch_size=[2, x]", "sweep.batch_size[1]: expected a whole number, got 'x'"),
        ("execute.workers=x", "expected auto or a whole number of at least 1, got 'x'"),
        ("trial.seed=1", "has no effect, the sweep sets seed in line 2; override sweep.seed instead"),
        (
            "trial={seed: 1}",
            "trial.seed: has no effect, the sweep sets seed in line 2; override sweep.seed instead",
        ),
    ],
)
def test_a_wrong_override_is_reported_like_a_wrong_line(problems, override, expected):
    assert problems("name: x\nsweep: {seed: [0, 1]}", override) == [f"command line: {override}: {expected}"]


@pytest.mark.parametrize("value", ["'ablation #3'", '"#3"', "ablation#3", "issue-#3, again"])
def test_a_number_sign_that_begins_no_comment_is_text(config, value):
    assert config("name: x", f"description={value}").document["description"] == value.strip("\"'")


@pytest.mark.parametrize("axis", ["optimizer", "optimizer.lr"])
def test_an_override_that_a_sweep_undoes_is_refused(problems, axis):
    value = "{lr: 1}" if axis == "optimizer" else "1"
    (problem,) = problems(f"name: x\nsweep: [{{seed: [0]}}, {{{axis}: [{value}]}}]", "trial.optimizer.lr=3")
    assert problem.startswith(
        f"command line: trial.optimizer.lr=3: has no effect, the sweep sets {axis} in line 2"
    )


def test_the_problems_of_file_and_command_line_are_told_together(problems):
    assert problems("name: x\nepocs: 3", "trial.epochs=x", "y=1", "execute.workers=2") == [
        "x.yaml:2:1: epocs: unknown key (did you mean 'trial.epochs'?)",
        "command line: y=1: unknown key; known: name, description, trial, sweep, tune, train, execute, "
        "plots, labels, max_trials",
        "command line: trial.epochs=x: expected a whole number, got 'x'",
    ]


def test_overrides_are_checked_although_the_file_cannot_be_read(problems):
    assert problems("name: [", "y=1")[1:] == [
        "command line: y=1: unknown key; known: name, description, trial, sweep, tune, train, execute, "
        "plots, labels, max_trials"
    ]


def test_messages_about_overrides_carry_no_control_characters(problems):
    (problem,) = problems("name: x", "a\x1b[31m\n=1")
    assert problem.startswith(r"command line: a\x1b[31m\n=1: unknown key; known: name, ")


def test_reading_a_configuration_does_not_load_torch():
    code = (
        "import sys, normbench.config.experiment; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Random documents


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(),
    st.floats(),
    st.sampled_from(
        ["batch", "group", "switchable", "cifar10", "resnet8", "step", "bf16", "curves", "auto", "no", ""]
    ),
    st.text(max_size=8),
)
KEYS = st.sampled_from(sorted({*OVERRIDABLE, *(key.rpartition(".")[2] for key in OVERRIDABLE)})) | st.text(
    max_size=8
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


def places(document: Any) -> list[tuple[Any, Any]]:
    """Every container of a document with every key of it."""
    keys = list(document) if isinstance(document, dict) else list(range(len(document)))
    inner = [document[key] for key in keys if isinstance(document[key], dict | list)]
    return [(document, key) for key in keys] + [place for each in inner for place in places(each)]


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A valid file with up to four values replaced, added or removed, as YAML and sometimes not quite."""
    document = yaml.safe_load(EVERYTHING)
    for _ in range(draw(st.integers(1, 4))):
        container, key = draw(st.sampled_from(places(document) or [({}, "")]))
        match draw(st.sampled_from(["replace", "add", "remove"])):
            case "replace" if container:
                container[key] = draw(VALUES)
            case "add" if isinstance(container, dict):
                container[draw(KEYS)] = draw(VALUES)
            case "remove" if container:
                del container[key]
    text = yaml.safe_dump(document, allow_unicode=True)
    if draw(st.booleans()):
        cut = draw(st.integers(0, len(text)))
        text = text[:cut] + draw(st.text("{}[]:,-&*!|>'\"%@#?~ \n\t01e.", max_size=4)) + text[cut:]
    return text


OVERRIDES = st.lists(
    st.builds("{}={}".format, KEYS, st.text(max_size=8) | SCALARS) | st.text(max_size=12), max_size=3
)
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.slow
@FUZZ
@given(text=damaged(), overrides=OVERRIDES)
def test_a_damaged_file_is_read_or_refused_with_a_reason(config, text, overrides):
    try:
        experiment = config(text, *overrides)
    except ConfigError as refused:
        experiment, reasons = None, refused.problems
    if experiment is None:
        assert reasons
        assert all(reason.isprintable() for reason in reasons)
    else:
        assert config(dump(experiment)) == experiment


@pytest.mark.slow
@FUZZ
@given(document=VALUES | st.dictionaries(KEYS, VALUES, max_size=6))
def test_a_random_document_is_read_or_refused_with_a_reason(config, document):
    with contextlib.suppress(ConfigError):
        config(yaml.safe_dump(document, allow_unicode=True))


@pytest.mark.parametrize("target", ["gone.yaml", "/nowhere/at/all.yaml"])
def test_a_link_that_points_nowhere_says_so(tmp_path: Path, target: str) -> None:
    (tmp_path / "dangling.yaml").symlink_to(target)
    (tmp_path / "other.yaml").write_text("extends: dangling.yaml\nname: x\n")
    words = f"cannot be read: it is a link to {target}, which does not exist"
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "dangling.yaml")
    assert str(caught.value) == f"{tmp_path}/dangling.yaml: {words}"
    with pytest.raises(ConfigError, match=f"{tmp_path}/dangling.yaml {words}"):
        load(tmp_path / "other.yaml")
