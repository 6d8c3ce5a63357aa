"""Images read as sequences: values, order, lengths; replay; what is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from normbench.config.trial import Trial
from normbench.data import dataset as decoded
from normbench.data.batches import Images
from normbench.records import Record
from normbench.tasks.base import task_of
from normbench.tasks.sequence import drawn_lengths
from normbench.training.capture import capture
from normbench.training.train import train

SIDE, TEST = 8, 20  # of the images of ``tiny_data``
Tiny = Callable[..., Trial]
Sequences = Callable[[Trial], tuple[Images, Images]]


def sequential(tiny: Tiny, norm: object = "none", model: object = None, **options: Any) -> Trial:
    task = {key: options.pop(key) for key in ("read", "permute", "lengths") if key in options}
    model = model or {"name": "lstm", "hidden_size": 8}
    return tiny(task={"name": "sequence", **task}, model=model, norm=norm, augment=False, **options)


@pytest.fixture
def sequences(tiny_data: Path) -> Sequences:
    """The training and test sequences of a trial."""

    def of(trial: Trial) -> tuple[Images, Images]:
        return task_of(trial).images(decoded.load(trial.dataset, tiny_data), torch.device("cpu"))

    return of


def inputs(sequences: Sequences, trial: Trial) -> Tensor:
    (chunk,) = sequences(trial)[1].in_order(TEST)
    return chunk.images


# values and order


def test_rows_and_pixels_are_those_of_the_image(tiny: Tiny, sequences: Sequences) -> None:
    """Every step has all colours of a row, from left to right, or of a pixel, row after row."""
    images = inputs(sequences, tiny(augment=False))  # [N, 3, H, W]
    rows, pixels = (inputs(sequences, sequential(tiny, read=read)) for read in ("rows", "pixels"))
    assert rows.shape == (TEST, SIDE, 3 * SIDE)
    assert pixels.shape == (TEST, SIDE**2, 3)
    assert torch.equal(rows[3, 5].view(SIDE, 3).t(), images[3, :, 5])
    assert torch.equal(pixels[3, 5 * SIDE + 2], images[3, :, 5, 2])


def test_the_permutation_is_the_same_in_all_trials(tiny: Tiny, sequences: Sequences) -> None:
    plain, first, second = (
        inputs(sequences, sequential(tiny, read="pixels", permute=permute, seed=seed))
        for permute, seed in ((False, 0), (True, 0), (True, 1))
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, plain)
    for one, other in zip(first, plain, strict=True):
        assert torch.equal(one.sort(0).values, other.sort(0).values)


# lengths


def ends(sequences: Tensor) -> list[int]:
    """The lengths; everything behind them must be 0, and the last feature 1 before."""
    lengths = sequences[:, :, -1].sum(1).long()
    runs = torch.arange(sequences.shape[1]) < lengths[:, None]
    assert torch.equal(sequences[:, :, -1], runs.float())
    assert not sequences[~runs].any()
    return lengths.tolist()


def test_sequences_are_cut_and_padded(tiny: Tiny, sequences: Sequences) -> None:
    whole, cut = (inputs(sequences, sequential(tiny, lengths=lengths)) for lengths in (None, [2, 6]))
    assert cut.shape == (TEST, 6, 3 * SIDE + 1)
    lengths = ends(cut)
    assert {min(lengths), max(lengths)} == {2, 6}
    for number, length in enumerate(lengths):
        assert torch.equal(cut[number, :length, :-1], whole[number, :length])


def test_a_length_depends_on_seed_and_index_and_of_a_test_image_on_the_index(
    tiny: Tiny, sequences: Sequences
) -> None:
    """Whatever the epoch, and however many are asked for at once."""
    (train_0, test_0), (train_1, test_1) = (
        sequences(sequential(tiny, lengths=[1, 8], seed=seed)) for seed in (0, 1)
    )

    def training_ends(images: Images, epoch: int, batch_size: int) -> dict[bytes, int]:
        """By the first row of a sequence, which tells images apart."""
        found = {}
        for chunk in images.training_chunks(0, epoch, batch_size, augment=False):
            for sequence, length in zip(chunk.images, ends(chunk.images), strict=True):
                found[sequence[0].numpy().tobytes()] = length
        return found

    first = training_ends(train_0, 0, 8)
    assert first == training_ends(train_0, 1, 16)
    assert first != training_ends(train_1, 0, 8)
    of_tests = [ends(next(test.in_order(TEST)).images) for test in (test_0, test_1)]
    assert of_tests[0] == of_tests[1]
    singly = [ends(test_0.at(torch.tensor([number])).images) for number in range(TEST)]
    assert [length for lengths in singly for length in lengths] == of_tests[0]


def test_lengths_are_drawn_evenly() -> None:
    """60,000 of 13 lengths: counts of 4615 ± 65; five such deviations are allowed."""
    counts = drawn_lengths("0", torch.arange(60_000), 20, 32).bincount()
    assert counts[:20].sum() == 0
    assert len(counts) == 33
    assert ((counts[20:] - 4615).abs() < 5 * 65).all()
    neighbours = drawn_lengths("0", torch.arange(60_000), 0, 1).double()
    assert torch.corrcoef(torch.stack([neighbours[:-1], neighbours[1:]]))[0, 1].abs() < 5 / 60_000**0.5


# training


RECURRENT = [
    ("none", {"name": "rnn", "hidden_size": 8}),
    ("batch", {"name": "lstm", "hidden_size": 8}),
    ("batch", {"name": "gru", "hidden_size": 8, "statistics": "shared"}),
    ("layer", {"name": "lstm", "hidden_size": 8, "layers": 2}),
    ("weight_norm", {"name": "lstm", "hidden_size": 8}),
    ("batch", {"name": "lstm", "hidden_size": 8, "initial_noise": 0.1}),
]


def numbers(record: Record) -> Any:
    return [epoch.model_dump(exclude={"seconds"}) for epoch in record.epochs], record.final


@pytest.mark.parametrize(("norm", "model"), RECURRENT, ids=str)
def test_replayed_updates_are_called_ones_to_the_last_bit(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, norm: str, model: object
) -> None:
    monkeypatch.setattr(capture, "MIN_CALLS", 1)
    trial = sequential(tiny, norm, model)
    replayed = train(trial, tiny_data, tmp_path / "replayed")
    monkeypatch.setenv("NORMBENCH_REPLAY", "off")
    called = train(trial, tiny_data, tmp_path / "called")
    assert numbers(replayed) == numbers(called)
    assert replayed.provenance["path"]["step"] == "tape"
    assert called.provenance["path"]["step"] == "plain"


def test_updates_of_unequal_lengths_are_called_and_the_record_says_why(
    tiny: Tiny, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "MIN_CALLS", 1)
    trial = sequential(tiny, "batch", lengths=[2, 8])
    records = [train(trial, tiny_data, tmp_path / place) for place in ("once", "again")]
    assert numbers(records[0]) == numbers(records[1])
    assert (
        records[0].provenance["path"]["step"]
        == "plain (the lengths of its sequences differ from batch to batch)"
    )


def test_a_network_learns_what_a_sequence_shows(tiny: Tiny, tiny_data: Path, tmp_path: Path) -> None:
    """Colours, from the mean of noisy rows; chance is 25 %."""
    schedule = {"epochs": 15, "optimizer": {"lr": 0.1, "weight_decay": 0.0}, "lr_reference_batch": None}
    for norm in ("batch", "layer"):
        trial = sequential(tiny, norm, lengths=[4, 8], **schedule)
        record = train(trial, tiny_data, tmp_path / norm)
        assert record.final is not None
        assert record.final.test_accuracy >= 0.5


# what is refused


def test_bad_settings_are_refused_by_key_value_and_rule(tiny: Tiny) -> None:
    def refused(message: str, **settings: Any) -> None:
        with pytest.raises(ValidationError, match=message):
            Trial.model_validate({"task": "sequence", "model": "lstm", "batch_size": 8} | settings)

    def of(**options: Any) -> dict[str, Any]:
        return {"name": "sequence", **options}

    refused("lengths up to 33 are more than the 32 steps of these images", task=of(lengths=[2, 33]))
    rule = "expected two whole numbers of at least 1, the smaller one first, got"
    for lengths in ([32, 8], [0, 4], [5], [1, 2, 3], [1.0, 2], [True, 2], [], 8, "8", {"low": 1}):
        refused(re.escape(f"{rule} {json.dumps(lengths)}"), task=of(lengths=lengths))
    refused("sequences of unequal lengths share", task=of(lengths=[2, 8]), norm="batch", norm_batch_size=4)
    refused(
        "resnet20 is a network for classification; those for sequence are lstm, gru, rnn", model="resnet20"
    )
    refused("lstm is a network for sequence", task="classification")
    refused("evo.* is for pre-activation networks only", norm="evonorm_s0")
    refused("diagnose signal_propagation has no meaning in the task", diagnose=["signal_propagation"])
    for key, value in (("whiten", "zca"), ("norm_every", 2), ("zero_init_residual", True)):
        refused(f"{key} has no meaning in the task sequence", **{key: value}, norm="layer")


def test_options_that_cannot_matter_do_not_make_another_trial(tiny: Tiny) -> None:
    def made(norm: str, lengths: list[int] | None = None, **options: Any) -> str:
        return sequential(tiny, norm, {"name": "lstm", "hidden_size": 8, **options}, lengths=lengths).id

    assert made("layer", statistics="shared", max_steps=3) == made("layer")
    assert made("none", input_only=True, initial_gamma=0.5) == made("none")
    assert made("layer", input_only=True) != made("layer")
    assert made("batch", max_steps=SIDE) == made("batch")
    assert made("batch", max_steps=SIDE - 1) != made("batch")
    assert made("batch", [2, 4], max_steps=4) == made("batch", [2, 4])
    assert made("batch", statistics="shared", max_steps=3) == made("batch", statistics="shared")
    assert made("batch", statistics="shared") != made("batch")
