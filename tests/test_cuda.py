"""The same trials on a GPU, called and replayed as graphs; skipped where there is none.

A replayed update launches the kernels of a called one, so that everything is compared to the last bit.
Against a CPU, whose kernels are others, rounding has not yet grown past a thousandth of the loss in six
updates.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from norm_cases import (
    ENDINGS,
    FIVE,
    Arithmetic,
    Shape,
    assert_is_the_float64_definition,
    assert_nothing_is_hidden,
    maps,
)
from test_resume import TIMED, Bench, Watch
from test_together import all_at_once
from test_train import METHODS, numbers
from torch import Tensor

from normbench.config import experiment
from normbench.config.catalog.executors import EXECUTORS
from normbench.config.trial import Choice, Trial
from normbench.data import dataset as decoded
from normbench.norms.ops import dispatch
from normbench.records import Failure, Interrupted, Record
from normbench.sweep import run
from normbench.sweep.placement import Placement
from normbench.tasks.base import task_of
from normbench.training.build import network
from normbench.training.capture.capture import Step, recorder_of
from normbench.training.capture.cuda_graph import CudaGraphs
from normbench.training.capture.op_trace import Recording, Tensors
from normbench.training.device import settle_on, settled_process
from normbench.training.evaluation import Inference, infer
from normbench.training.optim import optimizer
from normbench.training.step import Update
from normbench.training.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
Tiny = Callable[..., Trial]
WHERE = torch.device("cuda", 0)
FURTHER: list[dict[str, Any]] = [
    *({"norm": norm} for norm in METHODS),
    *TIMED,
    {"norm": "group", "dropout": 0.3},
    {"norm": "normalizer_free", "clip": "agc", "diagnose": ["gradient_norm"]},
    {"norm": "batch", "clip": {"name": "gradient_norm", "max_norm": 0.5}, "label_smoothing": 0.1},
    {"norm": "batch", "optimizer": {"momentum": 0.0}},
    {"norm": "batch", "optimizer": {"nesterov": True}},
]
PRECISIONS = pytest.mark.parametrize("precision", ["fp32", "bf16"])


# ---- whole trials


@PRECISIONS
@pytest.mark.parametrize("norm", METHODS, ids=str)
def test_a_trial_runs_and_resumes_to_the_last_bit(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, norm: object, precision: str
) -> None:
    trial = tiny(norm=norm, precision=precision)
    undisturbed = train(trial, tiny_data, tmp_path / "undisturbed", "cuda:0")
    with pytest.raises(Interrupted):
        train(trial, tiny_data, tmp_path / "stopped", "cuda:0", Watch(stop_at=1))
    assert numbers(train(trial, tiny_data, tmp_path / "stopped", "cuda:0")) == numbers(undisturbed)
    assert undisturbed.provenance["path"]["step"] == "graph"


@pytest.mark.parametrize("settings", [*TIMED, {"norm": "group", "dropout": 0.3, "clip": "agc"}], ids=str)
def test_it_does_not_matter_where_a_replayed_trial_is_stopped(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights and momenta too: a trial stopped four times, within epochs, ends as one that was not."""
    monkeypatch.setattr("normbench.training.train.REPORT_SECONDS", 0.0)
    benches = [Bench(tiny(**settings), tiny_data, tmp_path / name / "trial") for name in ("once", "stopped")]
    for at in (1, 3, 2, 4):
        with pytest.raises(Interrupted):
            train(benches[1].trial, tiny_data, benches[1].prefix, "cuda:0", Watch(stop_at=at))
    once, stopped = (bench.end(train(bench.trial, tiny_data, bench.prefix, "cuda:0")) for bench in benches)

    assert stopped == once


@PRECISIONS
@pytest.mark.parametrize("settings", FURTHER, ids=str)
def test_a_replayed_trial_is_a_called_one_to_the_last_bit(
    tiny: Tiny,
    tiny_data: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trial = tiny(**settings, precision=precision)
    replayed = train(trial, tiny_data, tmp_path / "replayed", "cuda:0")
    monkeypatch.setenv("NORMBENCH_REPLAY", "off")
    called = train(trial, tiny_data, tmp_path / "called", "cuda:0")

    assert numbers(replayed) == numbers(called)
    assert called.provenance["path"]["step"] == "plain"
    assert replayed.provenance["path"]["step"].startswith("graph")


@pytest.mark.parametrize("norm", METHODS, ids=str)
def test_the_first_losses_are_those_of_a_cpu(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, norm: object
) -> None:
    """In fp32 and over one epoch of six updates: rounding has not yet grown past a thousandth."""
    trial = tiny(norm=norm, epochs=1)
    losses = [
        train(trial, tiny_data, tmp_path / device.replace(":", ""), device).epochs[0].train_loss
        for device in ("cpu", "cuda:0")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


# ---- updates


class Loud(CudaGraphs):
    """Whatever cannot be recorded fails the test, and shows where."""

    def rehearse(self, act: Callable[[], Tensors]) -> None:
        try:
            super().rehearse(act)
        except RuntimeError as error:
            raise AssertionError("it waits for the GPU") from error

    def record(self, act: Step, batch: Tensors, generators: Sequence[torch.Generator]) -> Recording:
        try:
            return super().record(act, batch, generators)
        except RuntimeError as error:
            raise AssertionError("it cannot be recorded") from error


def five(trial: Trial, data: Path, graphs: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs of five updates; then weights, statistics and momenta."""
    dataset = decoded.load(trial.dataset, data)
    images, _ = task_of(trial).images(dataset, WHERE)
    model = network(trial, 4).to(WHERE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    sgd = optimizer(trial, model)
    update = Update(task_of(trial), model, sgd, 6, recorder=Loud(WHERE) if graphs else None)
    outputs: list[Tensor] = []
    with settled_process():
        (chunk,) = images.training_chunks(trial.seed, 0, trial.batch_size, trial.augment)
        for step in range(5):
            batch = slice(step * trial.batch_size, (step + 1) * trial.batch_size)
            outputs += update(step, chunk.images[batch], chunk.labels[batch])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    momenta = sgd.state_dict()["state"].items()
    state |= {f"momentum {key}": one["momentum_buffer"] for key, one in momenta if "momentum_buffer" in one}
    assert update.step.path == ("graph" if graphs else "plain")
    return outputs, state


@PRECISIONS
@pytest.mark.parametrize("settings", FURTHER, ids=str)
def test_replayed_updates_are_called_ones_to_the_last_bit(
    tiny: Tiny, tiny_data: Path, settings: dict[str, Any], precision: str
) -> None:
    """Losses, logits, weights, running statistics, momenta."""
    trial = tiny(**settings, precision=precision)

    replayed, called = (five(trial, tiny_data, graphs) for graphs in (True, False))

    torch.testing.assert_close(replayed, called, rtol=0, atol=0, equal_nan=True)


RUNS: list[dict[str, Any]] = [
    {"norm": "batch"},
    {"norm": "switchable"},
    {"norm": "weight_norm"},
    {"norm": "batch_renorm"},
    {"norm": "normalizer_free", "clip": "agc", "diagnose": ["gradient_norm"]},
]


@PRECISIONS
@pytest.mark.parametrize("settings", RUNS, ids=str)
def test_a_run_of_updates_is_the_updates_to_the_last_bit(
    tiny: Tiny,
    tiny_data: Path,
    tmp_path: Path,
    settings: dict[str, Any],
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four in one graph, and the rest of the epoch one by one; stopped in between, too."""
    trial = tiny(**settings, precision=precision)
    one_by_one = train(trial, tiny_data, tmp_path / "one_by_one", "cuda:0")
    monkeypatch.setattr(CudaGraphs, "updates", 4)
    monkeypatch.setattr("normbench.training.train.REPORT_SECONDS", 0.0)
    runs = train(trial, tiny_data, tmp_path / "runs", "cuda:0")
    with pytest.raises(Interrupted):
        train(trial, tiny_data, tmp_path / "stopped", "cuda:0", Watch(stop_at=2))
    stopped = train(trial, tiny_data, tmp_path / "stopped", "cuda:0")

    assert numbers(runs) == numbers(stopped) == numbers(one_by_one)
    assert runs.provenance["path"]["step"] == "graph"


def test_replayed_logits_are_called_ones_to_the_last_bit(tiny: Tiny, tiny_data: Path) -> None:
    """Of the test images in batches, the last of them smaller, and of changed weights."""
    trial = tiny(norm="switchable", precision="bf16")
    _, images = task_of(trial).images(decoded.load(trial.dataset, tiny_data), WHERE)
    model = network(trial, 4).to(WHERE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    inference = Inference(model.eval(), "bf16", Loud(WHERE))
    with torch.inference_mode():
        for _ in range(2):
            for x, _ in images.in_order(7):
                assert torch.equal(inference(x), infer(model, x, "bf16"))
            model.linear.weight.mul_(2)
    assert len({len(x) for x, _ in images.in_order(7)}) == 2


def test_within_an_epoch_nothing_waits_for_the_gpu(tiny: Tiny, tiny_data: Path) -> None:
    """torch raises where something does: images, updates and what is noted of them."""
    trial = tiny(norm="batch", dropout=0.3, clip="agc", diagnose=["gradient_norm"], batch_size=4)
    images, _ = task_of(trial).images(decoded.load(trial.dataset, tiny_data), WHERE)
    model = network(trial, 4).to(WHERE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    update = Update(task_of(trial), model, optimizer(trial, model), 16, recorder=Loud(WHERE))
    (chunk,) = images.training_chunks(trial.seed, 0, trial.batch_size, trial.augment)
    batches = list(zip(*(torch.split(part, 4) for part in chunk), strict=True))
    update(0, *batches[0])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step, (x, y) in enumerate(batches[1:], 1):
            update(step, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert update.step.path == "graph"


class Waiting(torch.nn.Module):
    """A layer that looks at a number."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        assert bool(x.isfinite().all())
        out: Tensor = self.layer(x)
        return out


def test_what_waits_for_the_gpu_is_called_and_says_so(tiny: Tiny, tiny_data: Path) -> None:
    trial = tiny(norm="batch")
    images, _ = task_of(trial).images(decoded.load(trial.dataset, tiny_data), WHERE)
    model = network(trial, 4)
    model.norm = Waiting(model.norm)  # type: ignore[arg-type]
    model = model.to(WHERE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    update = Update(task_of(trial), model, optimizer(trial, model), 6, recorder=recorder_of(WHERE, 1, 6))
    (chunk,) = images.training_chunks(trial.seed, 0, trial.batch_size, trial.augment)

    losses = [float(update(step, chunk.images[:10], chunk.labels[:10])[0]) for step in range(5)]

    assert losses[-1] != losses[0]
    assert update.step.path.startswith("plain (")


# ---- kernels of the layers, which test_fused.py has interpreted

KERNELS = [Arithmetic(dtype, "triton") for dtype in (torch.float32, torch.bfloat16)]
LAYERS = [
    *(Shape(2, 2, 8, 1, 3), Shape(10, 5, 24, 5, 7), Shape(6, 3, 40, 2, 2), Shape(2, 2, 16, 32, 32)),
    *(Shape(128, 128, 16, 32, 32), Shape(128, 32, 64, 8, 8), Shape(1024, 1024, 16, 8, 8)),
]


def test_the_kernels_work_here() -> None:
    """Or nothing below says anything."""
    assert [dispatch.path(WHERE, bf16) for bf16 in (False, True)] == ["triton"] * 2


@FIVE
@pytest.mark.parametrize("shape", LAYERS, ids=str)
@pytest.mark.parametrize("arithmetic", KERNELS, ids=str)
@ENDINGS
def test_a_layer_is_its_float64_definition(
    norm: Choice, shape: Shape, arithmetic: Arithmetic, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = arithmetic, ending, torch.channels_last, monkeypatch, WHERE
    assert_is_the_float64_definition(norm, shape, *how)


@FIVE
@ENDINGS
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("arithmetic", KERNELS, ids=str)
def test_what_is_not_a_number_comes_out_as_none_wherever_torch_says_so(
    norm: Choice, ending: str, bad: float, arithmetic: Arithmetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_nothing_is_hidden(norm, ending, bad, arithmetic, monkeypatch, WHERE)


@PRECISIONS
@FIVE
def test_a_step_of_every_method_is_recorded_with_its_kernels(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, norm: Choice, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six for every layer; the record says so."""
    from normbench.norms.ops import gpu

    launched: Counter[str] = Counter()
    launch = gpu._launch

    def counted(kernel: Any, *arguments: Any, **options: Any) -> None:
        launched[kernel.fn.__name__] += 1
        launch(kernel, *arguments, **options)

    monkeypatch.setattr(gpu, "_launch", counted)
    trial = tiny(norm={"name": norm.name, **norm.options}, precision=precision)
    five(trial, tiny_data, graphs=True)
    assert launched["forward"] == launched["backward"] == launched["input_gradient"] > 0
    path = train(trial, tiny_data, tmp_path / "trial", "cuda:0").provenance["path"]
    assert (path["norm"], path["step"]) == ("triton", "graph")


def test_the_kernels_may_be_tried_where_nothing_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What tries them waits for the GPU, once."""
    dispatch._fused.cache_clear()
    x = maps(LAYERS[0]).float().to(WHERE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode does not find every wait
        torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.inference_mode():
            assert dispatch.suited(x) is not None
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- slots


def test_trials_on_streams_of_one_process_are_what_they_are_alone(
    tiny: Tiny, tiny_data: Path, tmp_path: Path
) -> None:
    """Recorded while the others train, at six at once: to the last bit, and by graph."""
    trials = [
        tiny(norm=norm, precision="bf16", dropout=dropout, epochs=4)
        for norm in ("batch", "group", "switchable", "batch_renorm")
        for dropout in (0.0, 0.3, 0.5)
    ]

    found = all_at_once(trials, tiny_data, tmp_path / "results", together=6, device="cuda:0")

    for trial in trials:
        alone = train(trial, tiny_data, tmp_path / "alone" / trial.id, "cuda:0")
        assert numbers(found[trial.id]) == numbers(alone)
        assert found[trial.id].provenance["path"] == alone.provenance["path"]
        assert found[trial.id].provenance["together"] == 6


def test_slots_are_filled_evenly(tiny_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "slots.yaml"
    path.write_text(
        "name: slots\n"
        "trial: {dataset: {name: folder, folder: tiny, image_size: 8}, model: {name: resnet8, width: 0.5},"
        " batch_size: 10, epochs: 2}\nsweep: {norm: [batch, group], seed: [0, 1]}\n"
        "execute: {slots_per_device: 2, device: cuda}\n"
    )

    found = run.run(experiment.load(path), tmp_path / "results", tiny_data).records.values()

    assert Counter(record.provenance.get("slots_per_device", 1) for record in found) == {
        min(2, -(-4 // torch.cuda.device_count())): 4
    }


def greedy(trial: Trial, tell: Callable[[dict[str, Any]], bool], *, device: str) -> Record:
    """Two to a GPU: seed 0 takes all that it gets, the other a little and holds on to it meanwhile."""
    settle_on(torch.device(device), 1 / 2)
    kept = [torch.zeros(2**26, dtype=torch.uint8, device=device)]
    while trial.seed == 0:
        kept.append(torch.zeros(2**30, dtype=torch.uint8, device=device))
    return Record.model_construct(trial=trial, status="done", provenance={"sum": int(kept[0].sum())})


def test_out_of_memory_in_one_trial_leaves_the_others_alone(tiny: Tiny) -> None:
    trials = [tiny(seed=seed) for seed in range(6)]
    pool = EXECUTORS["pool"].load()
    placement = Placement(workers=2, devices=("cuda:0",))

    found = dict(pool(greedy, trials, placement, report=lambda *_: None, stop=lambda: False))

    failure = found.pop(trials[0])
    assert isinstance(failure, Failure)
    assert "OutOfMemoryError" in failure.reason
    assert all(isinstance(record, Record) for record in found.values())
    assert len(found) == 5
