"""Networks of a user's own in trials: by ``module:function`` in the current directory, and of torchvision."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_trial
from torch import nn
from torch.nn import functional as F

from normbench.config import experiment as config
from normbench.config.catalog.models import MODELS
from normbench.config.trial import Trial
from normbench.models.custom import CustomNetwork
from normbench.models.layers import FinalLinear, norm_parameters, place
from normbench.records import Interrupted, Record, Store
from normbench.sweep import run as sweep
from normbench.tasks.base import task_of
from normbench.training import checkpoint, optim
from normbench.training import train as training
from normbench.training.build import check, network
from normbench.training.capture import capture
from normbench.training.step import Update
from normbench.training.train import train

Cli = Callable[..., Any]

MODULE = """
import sys
import torch
from torch import nn
from torch.nn import functional as F

print("output of the module")

def build(num_classes, width=8, rate=0.0, kind="batch"):
    norm = {"batch": nn.BatchNorm2d, "group": lambda c: nn.GroupNorm(2, c)}[kind]
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1, bias=False), norm(width), nn.ReLU(inplace=True), nn.Dropout(rate),
        nn.Conv2d(width, width, 3, stride=2, groups=2), norm(width), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )

def raising(channels):
    raise ValueError("no such luck")

def pooling(channels):
    return nn.AvgPool2d(2)

def promised(classes, **options):
    return build(classes, **options)

promised.recordable = True

class Blocks(nn.Module):
    def __init__(self, num_classes, dropout=0.0):
        super().__init__()
        self.clip = nn.Conv2d(3, 8, 3, padding=1)
        self.places = nn.BatchNorm2d(8)
        self.drop = dropout
        self.head = nn.Linear(8, num_classes)
    def forward(self, images):
        x = F.dropout(F.relu(self.places(self.clip(images))), self.drop, self.training)
        return self.head(x.mean((2, 3)))
    def zero_init_residual(self):
        nn.init.zeros_(self.places.gamma)

class Twice(Blocks):
    def forward(self, images):
        return self.head(self.places(self.places(self.clip(images))).mean((2, 3)))

class Maps(Blocks):
    def forward(self, images):
        return self.clip(images)

class Raising(Blocks):
    def forward(self, images):
        raise ZeroDivisionError("on purpose")

def ending(num_classes):
    sys.exit("the script is over")

def without_head(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 3), nn.BatchNorm2d(num_classes), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten())

def without_layers(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

def deaf():
    return build(4)

def text(num_classes):
    return "a network"

network = build(4)
"""


@pytest.fixture
def here(own_module: Callable[[str, str], Path]) -> Path:
    """The current directory, with a module ``my_nets`` in it that is nowhere else."""
    return own_module("my_nets", MODULE)


def trial(model: Any = "my_nets:build", **settings: Any) -> Trial:
    return tiny_trial(model=model, **{"norm": "batch"} | settings)


def run(directory: Path, data: Path, *trials: str) -> dict[str, Record]:
    path = directory / "mine.yaml"
    listed = ", ".join(trials)
    path.write_text(
        "name: mine\nexecute: {executor: serial}\n"
        "trial: {dataset: {name: folder, folder: tiny, image_size: 8}, batch_size: 10, epochs: 2}\n"
        f"sweep: [{listed}]\n"
    )
    sweep.run(config.load(path), directory / "results", data)
    return Store(directory / "results" / "mine").load()[0]


@pytest.mark.parametrize(
    "model",
    ["my_nets:build", "my_nets:Blocks", pytest.param("torchvision.models:resnet18", marks=pytest.mark.slow)],
)
def test_a_trial_of_a_users_network_with_several_methods(here: Path, tiny_data: Path, model: str) -> None:
    records = run(
        here,
        tiny_data,
        f"{{model: ['{model}'], norm: [batch, {{name: group, groups: 2}}, weight_norm, none]}}",
        f"{{model: ['{model}'], norm: [batch], clip: [agc], optimizer: [adam]}}",
    )
    assert [record.status for record in records.values()] == ["done"] * 5
    losses = {record.epochs[-1].train_loss for record in records.values()}
    assert len(losses) == 5
    name = model.partition(":")[2].lower()
    assert all(
        trial_id.split("-", 1)[1].startswith(f"{name}-b10-s0-") or "norm" in trial_id for trial_id in records
    )
    for record in records.values():
        assert record.provenance["own_model_code_sha256"]
        if model.startswith("my_nets"):
            assert record.provenance["own_model_sha256"] == hashlib.sha256(MODULE.encode()).hexdigest()


def test_it_trains_as_torchs_loop_over_the_same_network_does(here: Path) -> None:
    """Five updates; fused and plain kernels differ by rounding in fp32."""
    settings = trial("my_nets:build", optimizer={"momentum": 0.9, "weight_decay": 0.01})
    ours = network(settings, 4)
    torch.manual_seed(0)
    theirs = sys.modules["my_nets"].build(4)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other), "initialised by the seed alone"
    update = Update(task_of(settings), ours.train(), optim.optimizer(settings, ours), 10)
    sgd = torch.optim.SGD(theirs.parameters(), lr=1.0, momentum=0.9, weight_decay=0.01)
    random = torch.Generator().manual_seed(3)
    for step in range(5):
        x, y = torch.randn(10, 3, 8, 8, generator=random), torch.randint(4, (10,), generator=random)
        update(step, x, y)
        sgd.param_groups[0]["lr"] = optim.learning_rate(settings, step, 10)
        sgd.zero_grad()
        F.cross_entropy(theirs(x), y).backward()
        sgd.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_what_it_is_made_of_is_told_by_type(here: Path) -> None:
    model = network(trial("my_nets:Blocks", norm="weight_norm"), 4)
    assert isinstance(model, CustomNetwork)
    assert (model.converted, model.wrapped) == (("network.places",), ("network.clip",))
    assert place(model, "network.clip.weight") == "stem"
    assert place(model, "network.places.gamma") == "places"
    assert place(model, "network.head.bias") == "final_linear"
    assert type(model.network.head) is FinalLinear
    names = {name for name, parameter in model.named_parameters() if parameter in norm_parameters(model)}
    assert names == {"network.clip.g", "network.clip.bias"}
    batch = network(trial("my_nets:build"), 4)
    names = {name for name, parameter in batch.named_parameters() if parameter in norm_parameters(batch)}
    assert names == {f"network.{layer}.{name}" for layer in (1, 5) for name in ("gamma", "beta")}
    vgg = network(trial("torchvision.models:vgg11_bn"), 7)
    places = {
        name: place(vgg, f"network.{name}.weight") for name in ("features.0", "features.4", "classifier.6")
    }
    assert places == {"features.0": "stem", "features.4": "features", "classifier.6": "final_linear"}
    assert place(vgg, "network.classifier.0.weight") == "classifier"


@pytest.mark.parametrize("norm", ["batch", "weight_norm"])
def test_settings_of_the_initial_weights_are_kept(here: Path, norm: str) -> None:
    plain, scaled = (network(trial(norm=norm, init_scale=scale), 4) for scale in (1.0, 0.5))
    for (name, before), after in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        is_scaled = before.ndim > 1 or name.endswith(".g")
        torch.testing.assert_close(after, before * (0.5 if is_scaled else 1))
    zeroed = network(trial("my_nets:Blocks", zero_init_residual=True), 4)
    assert not zeroed.network.places.gamma.any()
    bf16 = network(trial(precision="bf16", logits_precision="bf16"), 4)
    assert [module.full for module in bf16.modules() if isinstance(module, FinalLinear)] == [False]
    every = network(trial(norm_every=2), 4)
    assert isinstance(every.network[1], nn.Identity)
    assert not isinstance(every.network[5], nn.Identity)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "nowhere:net"}, "model nowhere:net: ModuleNotFoundError: No module named 'nowhere'$"),
        ({"model": "my_nets:missing"}, "model my_nets:missing: AttributeError: "),
        (
            {"model": "my_nets:ending"},
            "model my_nets:ending: SystemExit: the script is over .code of your own",
        ),
        ({"model": "my_nets:text"}, "model my_nets:text: it gives a str and not a torch.nn.Module$"),
        ({"model": "my_nets:network"}, "it is no function or class that makes a network$"),
        (
            {"model": "my_nets:deaf"},
            "my_nets:deaf: it takes neither num_classes nor classes, the number of outp",
        ),
        (
            {"model": {"name": "my_nets:build", "widht": 3}},
            "model my_nets:build: it takes no option 'widht'; it takes width, rate, kind$",
        ),
        ({"model": {"name": "my_nets:build", "num_classes": 3}}, "num_classes follows from the data set"),
        ({"model": {"name": "torchvision.models:resnet18", "depth": 3}}, "resnet18: TypeError: .*'depth'"),
        (
            {"model": "my_nets:without_layers"},
            "my_nets:without_layers: there is no layer to convert: no BatchNorm",
        ),
        (
            {"model": {"name": "my_nets:build", "kind": "group"}},
            r"in it, but GroupNorm \(convert: \[group\]\)$",
        ),
        ({"model": "my_nets:build", "dropout": 0.5}, "my_nets:build: it takes no option 'dropout'; it takes"),
        (
            {"model": "my_nets:build", "norm_every": 3},
            "my_nets:build: norm_every 3 is more than its 2 layers$",
        ),
        (
            {"model": "my_nets:build", "zero_init_residual": True},
            "zero_init_residual: its network has no method",
        ),
        (
            {"model": "my_nets:build", "diagnose": ["signal_propagation"]},
            "my_nets:build: diagnose: signal_propagation: no block of it has a method summands$",
        ),
        (
            {"model": "my_nets:Blocks", "clip": {"name": "agc", "exclude": ["stage1"]}},
            "clip.exclude: it has no stage1; it has final_linear, places, stem$",
        ),
        (
            {
                "model": "my_nets:Blocks",
                "clip": {"name": "agc", "vectors": False, "exclude": ["final_linear", "stem"]},
            },
            "clip.exclude: every place of it is excluded, and vectors are: nothing is left to clip$",
        ),
        (
            {"model": "my_nets:without_head", "clip": "agc"},
            "clip.exclude: it has no final_linear; there is no nn.Linear of 4 outputs in it$",
        ),
        (
            {"model": "my_nets:without_head", "precision": "bf16"},
            "logits_precision must be bf16; there is no nn.Lin",
        ),
        (
            {"model": "my_nets:Twice"},
            "model my_nets:Twice: network.places is used 2 times in a pass; a layer of its",
        ),
        (
            {"model": "my_nets:Maps"},
            r"my_nets:Maps: it gives \[10, 8, 8, 8\] for a batch, and not logits \[10, 4\]$",
        ),
        ({"model": "my_nets:Raising"}, "model my_nets:Raising raises in .*: ZeroDivisionError: on purpose$"),
        (
            {"model": {"name": "my_nets:build", "width": 6}, "norm": {"name": "group", "groups": 4}},
            r"group norm cannot be used in my_nets:build's 1 \(module 'network.1'\), .*: 4 groups do not",
        ),
        (
            {"model": "my_nets:build", "norm": "my_nets:raising"},
            "^norm my_nets:raising: ValueError: no such luck$",
        ),
        (
            {"model": "my_nets:build", "norm": "my_nets:pooling"},
            r"^norm my_nets:pooling in 1 \(module 'network\.1'\): it gives \[10, 8, 4, 4\] for maps of shape "
            r"\[10, 8, 8, 8\]; a layer must keep the shape$",
        ),
        (
            {"model": "my_nets:build", "norm": {"name": "torch.nn:GroupNorm", "num_groups": 3}},
            "^norm torch.nn:GroupNorm gets the number of channels as 'num_groups'; it is no option$",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_before_training_in_one_line(
    here: Path, tiny_data: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(sweep.Unusable, match=words) as refused:
        sweep.prepare([trial(**settings)], tiny_data, print, config.Execute())
    assert "\n" not in str(refused.value)
    assert here == Path.cwd()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm": "normalizer_free"}, r"for pre-activation networks only \[type"),
        ({"norm": "evonorm_b0"}, r"for pre-activation networks only \[type"),
        ({"task": "denoising"}, "my_nets:build is a network for classification; those for denoising are"),
        (
            {"model": {"name": "my_nets:build", "convert": []}},
            "expected some of batch, layer, group, instance, one",
        ),
        ({"model": {"name": "my_nets:build", "convert": ["bach"]}}, "bach"),
        (
            {"model": {"name": "my_nets:build", "width": [1]}},
            "expected a finite number, true or false, or text",
        ),
    ],
    ids=str,
)
def test_what_a_configuration_cannot_say_is_refused_without_running_it(settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        trial(**{"model": "my_nets:build"} | settings)


def test_several_processes_are_refused(here: Path) -> None:
    (here / "mine.yaml").write_text("name: mine\ntrial: {model: 'my_nets:build'}\nexecute: {processes: 2}\n")
    with pytest.raises(config.ConfigError, match="cannot share the batches of my_nets:build"):
        config.load(here / "mine.yaml")


def test_options_are_part_of_the_trial_and_those_that_are_as_before_too() -> None:
    settings: tuple[dict[str, Any], ...] = (
        {},
        {"width": 8},
        {"convert": ["layer"]},
        {"convert": ["layer", "batch"]},
    )
    ids = {trial({"name": "my_nets:build"} | options).id for options in settings}
    assert len(ids) == 4
    assert all(each.startswith("batch-build-b10-s0-") for each in ids)
    one = trial({"name": "my_nets:build", "convert": ["layer", "batch"], "width": 3})
    assert one.model.options == {"convert": ("batch", "layer"), "width": 3}
    assert Trial.model_validate_json(one.model_dump_json()) == one
    assert trial({"name": "my_nets:build", "convert": ["batch"]}) == trial()


def test_a_config_runs_none_of_it_and_plan_says_what_would_run(here: Path, tiny_data: Path, cli: Cli) -> None:
    (here / "my_nets.py").write_text("raise SystemExit('this ran')")
    (here / "mine.yaml").write_text(
        "name: mine\ntrial: {model: 'my_nets:build', batch_size: 10,\n"
        "        dataset: {name: folder, folder: tiny, image_size: 8}}\n"
        "sweep: {norm: ['my_norms:rms', batch]}\n"
    )
    done = cli("plan", "mine.yaml", "--data", str(tiny_data))
    assert done.code == 0, done.err
    assert "custom code that run will execute: my_nets:build, my_norms:rms" in done.out
    assert "code of your own is not tried before it runs" in done.out


def test_changed_code_is_told_and_trained_anew(here: Path, tiny_data: Path) -> None:
    (before,) = run(here, tiny_data, "{model: ['my_nets:build']}").values()
    (here / "my_nets.py").write_text(MODULE + "\n# changed\n")
    experiment = config.load(here / "mine.yaml")
    told = sweep.compare(sweep.survey(experiment, here / "results"), tiny_data).changes
    assert [str(change).partition(" (")[0] for change in told] == [
        "1 trial was trained with other code of my_nets:build than there is now"
    ]
    sys.modules.pop("my_nets")
    sweep.run(experiment, here / "results", tiny_data, retry=("changed",))
    (after,) = Store(here / "results" / "mine").load()[0].values()
    assert after.provenance["own_model_sha256"] != before.provenance["own_model_sha256"]
    assert after.epochs[-1].train_loss == before.epochs[-1].train_loss


def test_a_checkpoint_of_other_code_is_not_continued(here: Path) -> None:
    owners = {
        training.owner_of(trial(), "data", {"own_model_code_sha256": digest * 64}) for digest in ("a", "b")
    } | {training.owner_of(trial(), "data", {})}
    assert len(owners) == 3


@pytest.mark.parametrize("promise", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_it_is_replayed_only_if_it_promises_and_resumes_to_the_last_bit(
    here: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch, rate: float, promise: bool
) -> None:
    """Dropout of torch draws from the generator of the process, which is seeded anew in every update."""
    monkeypatch.setattr(capture, "MIN_CALLS", 1)
    monkeypatch.setattr(training, "REPORT_SECONDS", 0.0)
    name = "my_nets:promised" if promise else "my_nets:build"
    settings = trial({"name": name, "rate": rate})
    random = torch.get_rng_state()
    whole = train(settings, tiny_data, here / "whole")
    torch.manual_seed(5)
    with pytest.raises(Interrupted):
        train(settings, tiny_data, here / "parts", report=_after(4))
    parts = train(settings, tiny_data, here / "parts")
    torch.set_rng_state(random)
    assert whole.provenance["path"]["step"].startswith("tape" if promise else "plain")
    states = []
    for record, prefix in ((whole, here / "whole"), (parts, here / "parts")):
        owner = training.owner_of(settings, record.data, dict(record.provenance))
        _, state = next(checkpoint.load(prefix, owner, print))
        states.append(state)
        assert record.status == "done"
    assert states[0]["model"].keys() == states[1]["model"].keys()
    for part in ("model", "optimizer"):
        torch.testing.assert_close(states[0][part], states[1][part], rtol=0, atol=0)


def _after(count: int) -> Callable[[dict[str, Any]], bool]:
    """A report that stops a trial at its ``count``-th call."""
    calls = iter(range(1, 10_000))
    return lambda event: "warning" not in event and next(calls) == count


def test_it_leaves_the_random_numbers_of_the_process_as_they_are(here: Path, tiny_data: Path) -> None:
    check(trial(), 4, 8)  # imports the module, which draws random numbers the first time
    before = torch.get_rng_state()
    train(trial({"name": "my_nets:build", "rate": 0.4}), tiny_data, here / "trial")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_check_needs_no_more_than_a_pass(here: Path) -> None:
    assert check(trial(), 4, 8).parameters == sum(p.numel() for p in network(trial(), 4).parameters())
    assert "my_nets:build" in MODELS
    assert "my_nets:build" not in list(MODELS)
