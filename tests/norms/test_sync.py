"""Layers of processes that share a batch, each in a thread of its own with a real process group.

What P processes compute is what one computes of the whole batch. All pool the same [P·N, C] moments in the
same way, so outputs and running statistics differ by rounding at most (of batches of another size), and
gradients of parameters by the order in which samples are added.
"""

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from norm_cases import (
    ARITHMETICS,
    Arithmetic,
    Shape,
    assert_within,
    layer,
    like,
    maps,
    pairwise,
    put,
    take,
    variants,
)
from torch import Tensor, nn

from normbench.config.catalog.norms import NORMS
from normbench.config.trial import Choice
from normbench.models.layers import Dropout
from normbench.norms.api import Clock, Timed
from normbench.norms.moment_norm import MomentNorm
from normbench.norms.ops import sync
from normbench.norms.ops.sync import ALONE, Disconnected, Share
from normbench.norms.weight_norm import WeightNormConv

PATIENCE = timedelta(seconds=30)
ACROSS = pytest.mark.parametrize(
    "norm",
    [
        variant
        for variant in variants()
        if NORMS[variant.values[0].name].across_samples
        and not NORMS[variant.values[0].name].is_single_process
    ],
)


def in_each(processes: int, work: Callable[[Share], Any]) -> list[Any]:
    """``work`` in every process, at once; what each gave."""
    store, results, errors = dist.HashStore(), [None] * processes, []

    def run(rank: int) -> None:
        try:
            group = dist.ProcessGroupGloo(store, rank, processes, PATIENCE)
            share = Share(rank, processes, group)
            with sync.using(share):
                results[rank] = work(share)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


class Pass(NamedTuple):
    """What a forward and a backward pass leave behind."""

    y: Tensor
    dx: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def passed(module: nn.Module, x: Tensor, dy: Tensor) -> Pass:
    """Through normalization and ReLU, with a shortcut where the method takes one."""
    if isinstance(module, MomentNorm):
        y = module(x, shortcut=torch.ones_like(x), relu=True)
    else:
        y = module(x, relu=True)
    y.backward(dy)
    assert x.grad is not None
    gradients = {name: one.grad for name, one in module.named_parameters() if one.grad is not None}
    return Pass(y.detach(), x.grad, gradients, dict(module.named_buffers()))


Pair = tuple[str, Any, Any]


def compared(norm: Choice, shape: Shape, processes: int, arithmetic: Arithmetic) -> list[Pair]:
    """What one process and what several compute of the same batch, as names and pairs."""

    def made() -> nn.Module:
        module = put(layer(norm, shape.C, shape.norm_batch), arithmetic)
        if isinstance(module, Timed):
            module.at(Clock(50, 10, 100))  # where batch renormalization corrects
        return module

    x = maps(shape)
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)

    def own(share: Share) -> Pass:
        rows = (share.rows(whole) for whole in (x, dy))
        leaf, gradient = (like(part, arithmetic, torch.channels_last) for part in rows)
        return passed(made(), leaf, gradient.detach())

    alone, together = own(ALONE), in_each(processes, own)
    pairs: list[Pair] = [
        ("y", torch.cat([one.y for one in together]), alone.y),
        ("dx", torch.cat([one.dx for one in together]), alone.dx),
    ]
    for name, gradient in alone.gradients.items():
        pairs.append((f"d{name}", sum(one.gradients[name] for one in together), gradient))
    for name, buffer in alone.buffers.items():
        pairs += [(f"{name} of {rank}", one.buffers[name], buffer) for rank, one in enumerate(together)]
    return pairs


SPREADS = pytest.mark.parametrize(
    ("processes", "samples", "norm_batch"),
    [(2, 8, 8), (2, 8, 4), (2, 12, 4), (4, 8, 4), (4, 4, 4), (2, 4, 1)],
    ids=[
        "over all", "within each", "across a border", "two processes each", "a sample each", "single samples",
    ],
)  # fmt: skip


@pytest.mark.slow
@ACROSS
@SPREADS
def test_several_processes_compute_what_one_does(
    norm: Choice, processes: int, samples: int, norm_batch: int
) -> None:
    """At float64, to 1e-12 of the largest number: some thousand roundings."""
    shape = Shape(samples, norm_batch, 16, 4, 4)
    for name, actual, expected in compared(norm, shape, processes, ARITHMETICS[0]):
        assert_within(actual, expected, 1e-12 * max(1.0, float(expected.abs().max())), name)


@pairwise(
    ACROSS,
    pytest.mark.parametrize("arithmetic", ARITHMETICS[1:3], ids=str),
    pytest.mark.parametrize("norm_batch", [8, 2]),
)
def test_in_single_precision_too(
    norm: Choice, arithmetic: Arithmetic, norm_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To 2e-6 of the largest number, some twenty roundings; torch where a norm batch spans processes."""
    take(arithmetic, monkeypatch)
    for name, actual, expected in compared(norm, Shape(8, norm_batch, 16, 4, 4), 2, arithmetic):
        assert_within(actual, expected, 2e-6 * max(1.0, float(expected.abs().max())), name)


@ACROSS
def test_every_process_has_the_same_running_statistics_to_the_last_bit(norm: Choice) -> None:
    def buffers(share: Share) -> dict[str, Tensor]:
        module = put(layer(norm, 16, 4), ARITHMETICS[1])
        leaf = like(share.rows(maps(Shape(8, 4, 16, 4, 4))), ARITHMETICS[1], torch.channels_last)
        return passed(module, leaf, torch.ones_like(leaf)).buffers

    first, *others = in_each(4, buffers)
    for other in others:
        assert all(torch.equal(other[name], buffer) for name, buffer in first.items())


@ACROSS
def test_without_the_others_statistics_the_numbers_are_others(norm: Choice) -> None:
    """That the comparison above can fail."""
    x = maps(Shape(8, 8, 16, 4, 4))
    whole, half = layer(norm, 16, 8), layer(norm, 16, 4)

    assert not torch.allclose(whole(x, relu=True)[:4], half(x[:4], relu=True), rtol=1e-3)


@pytest.mark.parametrize("norm", list(variants()))
def test_no_process_waits_for_another_at_inference_or_for_a_method_of_single_samples(norm: Choice) -> None:
    """The leader evaluates alone; a group that does not exist cannot be asked."""
    module, x = layer(norm, 16, 4), maps(Shape(4, 4, 16, 4, 4))
    module.train(not NORMS[norm.name].across_samples)
    options = {"relu": True} if getattr(module, "takes_relu", False) else {}
    expected = module(x, **options)

    with sync.using(Share(1, 2, group=None)):
        assert torch.equal(module(x, **options), expected)


# ---- what else looks across the batch


def test_dropout_drops_what_it_would_of_the_whole_batch() -> None:
    x = torch.ones(8, 4, 3, 3)
    torch.manual_seed(0)
    module = Dropout(0.5)
    expected = module(x)
    parts = [torch.empty(0)] * 4
    for rank in range(4):
        share = Share(rank, 4)
        with sync.using(share):
            parts[rank] = module(share.rows(x))

    assert torch.equal(torch.cat(parts), expected)
    assert not torch.equal(parts[0], parts[1])


def test_weight_norm_is_initialised_by_the_whole_batch() -> None:
    """Every channel comes out with mean 0 and variance 1 over all processes; at fp32 to 1e-5."""
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + 1
    conv = nn.Conv2d(3, 5, 3, bias=False)

    def initialised(share: Share) -> Tensor:
        module = WeightNormConv(conv, data_init=True)
        module.at(Clock(0, 1, 1))
        y: Tensor = module(share.rows(x)).detach()
        return y

    y = torch.cat(in_each(2, initialised))
    assert_within(y.mean((0, 2, 3)), torch.zeros(5), 1e-5)
    assert_within(y.var((0, 2, 3), correction=0), torch.ones(5), 1e-5)


# ---- what is said between processes


def test_the_gradient_of_what_was_gathered_is_the_sum_over_processes() -> None:
    def gradient(share: Share) -> Tensor:
        own = torch.full((2, 3), float(share.rank), requires_grad=True)
        (sync.all_gather(own) * (share.rank + 1)).sum().backward()
        assert own.grad is not None
        return own.grad

    for one in in_each(3, gradient):
        assert torch.equal(one, torch.full((2, 3), 6.0))


def test_an_average_of_several_tensors_keeps_their_shapes_and_orders() -> None:
    def averaged(share: Share) -> list[Tensor]:
        tensors = [
            torch.tensor(float(share.rank)),
            torch.arange(24.0).view(1, 2, 3, 4).contiguous(memory_format=torch.channels_last) * share.rank,
        ]
        share.average(tensors)
        return tensors

    for loss, weights in in_each(2, averaged):
        assert loss == 0.5
        assert torch.equal(weights, torch.arange(24.0).view(1, 2, 3, 4) / 2)
        assert weights.is_contiguous(memory_format=torch.channels_last)


def test_a_batch_without_equal_shares_is_refused() -> None:
    with pytest.raises(ValueError, match="3 processes cannot share a batch of 8 samples"):
        Share(0, 3).rows(torch.zeros(8))


def test_a_process_that_is_gone_is_told_of() -> None:
    def one_leaves(share: Share) -> None:
        if share.rank == 0:
            with pytest.raises(Disconnected, match="process 0 of 2"):
                share.collect(torch.zeros(2))

    in_each(2, one_leaves)
