"""Methods of a user's own: by ``module:function`` in the current directory, and by an entry point."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_trial
from torch import nn

from normbench.config import experiment as config
from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Trial
from normbench.norms.api import Normalization, Sum
from normbench.records import Record, Store
from normbench.sweep import run as sweep
from normbench.sweep.placement import Placement
from normbench.training.capture import capture

Cli = Callable[..., Any]

MODULE = """
import torch
from torch import nn
from normbench.norms.api import Normalization

class Scaled(nn.Module):
    def __init__(self, channels, scale):
        super().__init__()
        self.scale = scale
        self.batch = nn.BatchNorm2d(channels)
    def forward(self, x):
        return self.scale * self.batch(x)

def scaled(scale=1.0):
    return Normalization(make_layer=lambda channels: Scaled(channels, scale))

def ghost(norm_batch_size):
    assert norm_batch_size == 5, norm_batch_size
    return scaled()

def replayed():
    return scaled()

replayed.recordable = True

class Replacing(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return x - self.mean

def replacing():
    return Normalization(make_layer=lambda channels: Replacing())

replacing.recordable = True

def wanting(eps):
    return scaled()

def number():
    return 3

class Picky(nn.Module):
    def forward(self, x):
        if x.shape[1] > 10:
            raise RuntimeError("too many channels for me")
        return x

def clipping():
    return Normalization(clip=lambda model: nn.Module())

def picky():
    return Normalization(make_layer=lambda channels: Picky())

def plain(channels, scale=1.0):
    return Scaled(channels, scale)

def ghosts(features, /, *, norm_batch_size):
    assert norm_batch_size == 5, norm_batch_size
    return nn.BatchNorm2d(features)

plain.recordable = True

def with_default(channels=16):
    return Scaled(channels, 1.0)

def text(channels):
    return str(channels)

def raising(channels):
    raise ValueError("no such luck")

def pooling(channels):
    return nn.AvgPool2d(2)

def raising_later():
    return Normalization(make_layer=raising)

def text_later():
    return Normalization(make_layer=str)

class Late(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
    def forward(self, x):
        self.calls += 1
        if self.calls == 4:
            raise ZeroDivisionError("on purpose")
        return x

def late():
    return Normalization(make_layer=lambda channels: Late())
"""
CONFIG = """
name: mine
trial:
  dataset: {{name: folder, folder: tiny, image_size: 8}}
  model: {{name: resnet8, width: 0.5}}
  batch_size: 10
  epochs: 2
sweep:
  norm: [{norms}]
"""


@pytest.fixture
def here(own_module: Callable[[str, str], Path]) -> Path:
    """The current directory, with a module ``my_norms`` in it that is nowhere else."""
    return own_module("my_norms", MODULE)


def experiment(directory: Path, norms: str) -> config.Experiment:
    path = directory / "mine.yaml"
    path.write_text(CONFIG.format(norms=norms))
    return config.load(path)


def run(directory: Path, data: Path, norms: str, executor: str = "serial") -> dict[str, Record]:
    found = sweep.override(experiment(directory, norms), executor=executor)
    sweep.run(found, directory / "results", data)
    return Store(directory / "results" / "mine").load()[0]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["serial", "pool"])
def test_a_method_of_the_current_directory_trains_like_any_other(
    here: Path, tiny_data: Path, executor: str
) -> None:
    norms = "{name: 'my_norms:scaled', scale: 1.0}, {name: 'my_norms:scaled', scale: 0.5}, batch"
    one, half, batch = (record.epochs[0] for record in _in_order(run(here, tiny_data, norms, executor)))

    # torch's layer divides by the deviation in another order: single precision over six updates
    assert one.train_loss == pytest.approx(batch.train_loss, rel=1e-3)
    assert half.train_loss != pytest.approx(batch.train_loss, rel=1e-3)


def test_a_plain_function_or_a_class_of_layers_is_the_same_method(
    here: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, and replayed only if it promises that it can be."""
    monkeypatch.setattr(capture, "MIN_CALLS", 1)
    options = "scale: 0.5"
    names = ("my_norms:scaled", "my_norms:plain", "my_norms:Scaled")
    records = run(here, tiny_data, ", ".join(f"{{name: '{name}', {options}}}" for name in names))
    assert len(records) == 3
    assert {str(record.final) for record in records.values()} == {str(next(iter(records.values())).final)}
    losses = {tuple(epoch.train_loss for epoch in record.epochs) for record in records.values()}
    assert len(losses) == 1
    paths = {record.trial.norm.name: record.provenance["path"]["step"] for record in records.values()}
    assert paths == {names[0]: "plain", names[1]: "tape", names[2]: "plain"}


def test_a_layer_of_torch_is_a_method_by_its_name(tiny_data: Path, here: Path) -> None:
    """Its number of channels has another name there; a class takes options, too."""
    norms = "{name: 'torch.nn:InstanceNorm2d', affine: true}"
    (record,) = run(here, tiny_data, norms).values()
    assert record.status == "done"
    assert record.trial.id.startswith("instancenorm2d-resnet8-")
    assert record.provenance["own_norm_sha256"]


def _in_order(records: dict[str, Record]) -> list[Record]:
    """Those of the user's method by falling scale, then the other one."""
    assert all(record.status == "done" for record in records.values())
    return sorted(records.values(), key=lambda record: -record.trial.norm.options.get("scale", 0.0))


def test_it_is_replayed_only_if_it_says_that_it_may_be(
    here: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what it keeps in Python nobody else can know."""
    monkeypatch.setattr(capture, "MIN_CALLS", 1)
    norms = "'my_norms:scaled', 'my_norms:replayed', 'my_norms:replacing'"
    paths = {
        record.trial.norm.name: record.provenance["path"]["step"]
        for record in run(here, tiny_data, norms).values()
    }

    assert paths == {
        "my_norms:scaled": "plain",
        "my_norms:replayed": "tape",
        "my_norms:replacing": "plain (a step changes Python values of its layers)",
    }


def test_its_record_has_the_hash_of_the_code(here: Path, tiny_data: Path) -> None:
    (record,) = run(here, tiny_data, "my_norms:scaled").values()

    assert record.provenance["own_norm_sha256"] == hashlib.sha256(MODULE.encode()).hexdigest()
    assert record.trial.id.startswith("scaled-resnet8-b10-s0-")


def test_it_is_given_the_norm_batch_if_it_takes_one(here: Path, tiny_data: Path) -> None:
    trial = tiny_trial(norm="my_norms:ghost", norm_batch_size=5)
    sweep.prepare([trial], tiny_data, print, config.Execute())
    sweep.prepare([tiny_trial(norm="my_norms:ghosts", norm_batch_size=5)], tiny_data, print, config.Execute())

    for name in ("ghost", "ghosts"):
        with pytest.raises(sweep.Unusable, match="AssertionError: 10"):
            sweep.prepare([tiny_trial(norm=f"my_norms:{name}")], tiny_data, print, config.Execute())


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        ("nowhere:norm", "norm nowhere:norm: ModuleNotFoundError: No module named 'nowhere'"),
        ("my_norms:missing", "norm my_norms:missing: AttributeError: .*missing"),
        ("my_norms:number", "norm my_norms:number gives an int and not a Normalization"),
        ("my_norms:text", "norm my_norms:text gives a str for a number of channels and not a module: let it"),
        ("my_norms:with_default", "norm my_norms:with_default gives a Scaled .*: let it take the number of"),
        ("my_norms:Replacing", "norm my_norms:Replacing is a class of layers that takes no number of chan"),
        (
            "my_norms:Scaled",
            "norm my_norms:Scaled has no default for its option 'scale' and is not given it$",
        ),
        (
            {"name": "my_norms:Scaled", "channels": 8, "scale": 1},
            "norm my_norms:Scaled gets the number of channels as 'channels'; it is no option$",
        ),
        (
            {"name": "my_norms:plain", "size": 3},
            "norm my_norms:plain takes no option 'size'; it takes scale$",
        ),
        (
            {"name": "my_norms:scaled", "size": 3},
            "norm my_norms:scaled takes no option 'size'; it takes scale$",
        ),
        ("my_norms:clipping", "norm my_norms:clipping: TypeError: .* gradients are clipped by trial.clip$"),
        (
            "my_norms:wanting",
            "norm my_norms:wanting has no default for its option 'eps' and is not given it$",
        ),
        ("my_norms:raising", "^norm my_norms:raising: ValueError: no such luck$"),
        ("my_norms:raising_later", "^norm my_norms:raising_later: ValueError: no such luck$"),
        (
            "my_norms:text_later",
            "^norm my_norms:text_later gives a str for a number of channels and not a mod",
        ),
        (
            "my_norms:pooling",
            r"^norm my_norms:pooling in stem \(module 'norm'\): it gives \[10, 8, 4, 4\] for maps of shape "
            r"\[10, 8, 8, 8\]; a layer must keep the shape$",
        ),
        (
            "my_norms:picky",
            r"raises in resnet8's stage2 \(module 'stage2.*'\), which gets maps of shape \[10, 16, 4, 4\]: "
            "RuntimeError: too many channels for me",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_before_training_in_one_line(
    here: Path, tiny_data: Path, norm: Any, words: str
) -> None:
    with pytest.raises(sweep.Unusable, match=words) as refused:
        sweep.prepare([tiny_trial(norm=norm)], tiny_data, print, config.Execute())
    assert "\n" not in str(refused.value)
    assert here == Path.cwd()


def test_what_its_layers_do_not_have_is_not_evaluated(here: Path, tiny_data: Path) -> None:
    """Nobody knew beforehand that it keeps no running statistics."""
    (here / "plain_norms.py").write_text(
        "from normbench.norms.group import group\n\ndef plain():\n    return group(groups=2, eps=1e-5)\n"
    )
    evaluate = ["moving_average", "precise", "cumulative", {"name": "batch", "sizes": [2]}]
    trial = tiny_trial(norm="plain_norms:plain", evaluate=evaluate)
    record = sweep.work(
        trial, lambda _: False, data=tiny_data, checkpoints=here.joinpath, placement=Placement(device="cpu")
    )

    accuracies = {result.numbers["test_accuracy"] for result in record.inference}
    assert record.final is not None
    assert accuracies == {record.final.test_accuracy}


def test_one_that_raises_while_it_trains_fails_alone(here: Path, tiny_data: Path) -> None:
    records = run(here, tiny_data, "'my_norms:late', batch")

    assert [record.trial.norm.name for record in records.values()] == ["batch"]
    (error,) = (here / "results" / "mine").glob("late-*.error.txt")
    assert "ZeroDivisionError: on purpose" in error.read_text()


def test_a_config_runs_none_of_it_and_plan_says_what_would_run(
    here: Path, tiny_data: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "my_norms.py").write_text("raise SystemExit('this ran')")
    experiment(here, "'my_norms:scaled', batch")

    done = cli("plan", "mine.yaml", "--data", str(tiny_data))

    assert done.code == 0, done.err
    assert "custom code that run will execute: my_norms:scaled" in done.out
    assert "code of your own is not tried before it runs" in done.out


@pytest.mark.parametrize(
    "name", ["a:", ":b", "a b:c", "../a:b", "a.b", "a:b:c", "os.path:join()", "é:f", "x" * 200 + ":f"]
)
def test_other_texts_are_no_names_of_code(name: str) -> None:
    with pytest.raises(ValueError, match="unknown norm"):
        Trial.model_validate({"norm": name})


@pytest.mark.parametrize("value", [[1], {"a": 1}, None, float("nan"), float("inf")])
def test_options_are_plain_values(here: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="expected a finite number, true or false, or text"):
        Trial.model_validate({"norm": {"name": "my_norms:scaled", "scale": value}})


def test_a_wrong_option_is_reported_where_it_is_written(here: Path) -> None:
    with pytest.raises(config.ConfigError) as refused:
        experiment(here, "{name: 'my_norms:scaled', scale: [1]}")
    (problem,) = refused.value.problems
    assert problem.endswith("expected a finite number, true or false, or text, got a list")
    assert "mine.yaml:9:" in problem


def test_options_are_part_of_the_trial(here: Path) -> None:
    ids = {
        Trial.model_validate({"norm": {"name": "my_norms:scaled"} | options}).id
        for options in ({}, {"scale": 1.0}, {"scale": 2.0}, {"scale": 2.0, "other": "x"})
    }
    assert len(ids) == 4
    trial = Trial.model_validate({"norm": {"name": "my_norms:scaled", "scale": 2.0}})
    assert Trial.model_validate_json(trial.model_dump_json()) == trial


def test_several_processes_are_refused_since_nobody_knows_whether_it_looks_across_samples(here: Path) -> None:
    path = here / "mine.yaml"
    path.write_text(CONFIG.format(norms="'my_norms:scaled'") + "execute: {processes: 2}\n")

    with pytest.raises(config.ConfigError, match="would not share the statistics of my_norms:scaled"):
        config.load(path)


PACKAGED = {
    "acme_norms.py": "from normbench.norms.group import group\n\ndef groups_of_two(channels_of=8):\n"
    "    return group(groups=channels_of // 2, eps=1e-5)\n",
    "acme_norms-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: acme-norms\nVersion: 1.0\n",
    "acme_norms-1.0.dist-info/entry_points.txt": "[normbench.norms]\nacme = acme_norms:groups_of_two\n"
    "batch = acme_norms:groups_of_two\n",
}


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A site directory with a package that brings the method ``acme``, and would like to be ``batch``."""
    for name, content in PACKAGED.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "site"


@pytest.mark.slow
def test_an_installed_package_brings_a_method_by_name(installed: Path) -> None:
    """In a process of its own, which finds the package as an installed one is found."""
    script = (
        "from normbench.config.catalog.norms import NORMS\n"
        "from normbench.config.trial import Trial\n"
        "from normbench.cli.catalog import tables\n"
        "by_name = Trial.model_validate({'norm': {'name': 'acme', 'channels_of': 4}})\n"
        "spelled = Trial.model_validate({'norm': {'name': 'acme_norms:groups_of_two', 'channels_of': 4}})\n"
        "assert by_name == spelled, 'a record must not depend on what is installed'\n"
        "assert Trial.model_validate({'norm': 'acme'}).norm.name == 'acme_norms:groups_of_two'\n"
        "assert Trial.model_validate({'norm': 'batch'}).norm.name == 'batch', 'the table comes first'\n"
        "assert 'acme: acme_norms:groups_of_two (installed)' in tables('norms')\n"
        "import sys; assert 'acme_norms' not in sys.modules, 'nothing is imported before it runs'\n"
        "try: Trial.model_validate({'norm': 'acm'})\n"
        "except ValueError as error: assert \"did you mean 'acme'?\" in str(error), error\n"
        "else: raise AssertionError\n"
        "assert NORMS['acme_norms:groups_of_two'].load()().make_layer(8)\n"
    )
    environment = {"PYTHONPATH": f"{Path(config.__file__).parents[2]}:{installed}", "PATH": ""}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_figures_put_it_behind_the_others() -> None:
    assert sorted(["m:b", "group", "m:a", "batch"], key=NORMS.position) == ["batch", "group", "m:a", "m:b"]


def test_random_numbers_of_the_check_leave_none_behind(here: Path, tiny_data: Path) -> None:
    before = torch.get_rng_state()
    sweep.prepare([tiny_trial(norm="my_norms:scaled")], tiny_data, print, config.Execute())

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("old", "name", "value"),
    [
        ("layer", "make_layer", nn.BatchNorm2d),
        ("conv", "wrap_conv", nn.utils.parametrizations.weight_norm),
        ("residual", "make_residual", lambda additions: Sum()),
    ],
)
def test_an_old_name_of_what_a_method_sets_still_works_and_warns(old: str, name: str, value: Any) -> None:
    warning = f"^Normalization: {old} is {name} now$"
    with pytest.warns(DeprecationWarning, match=warning) as warned:
        made = Normalization(**{old: value})
    assert warned[0].filename == __file__
    assert made == Normalization(**{name: value})
    with pytest.warns(DeprecationWarning, match=warning):
        assert getattr(made, old) is value
    with pytest.warns(DeprecationWarning, match=warning):
        assert replace(Normalization(), **{old: value}) == made


def test_no_other_name_works() -> None:
    with pytest.raises(TypeError, match="'layers'"):
        Normalization(layers=nn.BatchNorm2d)
    assert not hasattr(Normalization(), "layers")
