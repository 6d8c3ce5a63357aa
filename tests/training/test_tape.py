"""A tape does what the step did that it was noted of; what it cannot know, it refuses. To the last bit."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from normbench.norms.ops.tracing import one_call
from normbench.training.capture import op_trace, tape
from normbench.training.capture.op_trace import Tensors
from normbench.training.capture.tape import Tape

Step = Callable[..., Tensors]


def replayed(step: Step, state: list[Tensor], *batches: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What replays give for batches in turn, and the state they leave, noted of a batch of zeros and ones."""
    batch = (torch.zeros_like(batches[0]),)
    with torch.no_grad():
        batch[0].view(-1)[::2] = 1
    kept = [one.detach().clone() for one in state]
    replay = Tape().record(step, batch, []).replay
    with torch.no_grad():
        for one, value in zip(state, kept, strict=True):
            one.copy_(value)
    outputs = []
    for given_ in batches:
        batch[0].copy_(given_)
        outputs += [one.clone() for one in replay()]
    return outputs, [one.detach().clone() for one in state]


def called(step: Step, state: list[Tensor], *batches: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The same by calls."""
    outputs = [one.detach().clone() for batch in batches for one in step(batch)]
    return outputs, [one.detach().clone() for one in state]


def same(make: Callable[[], tuple[Step, list[Tensor]]], shape: tuple[int, ...] = (4, 6)) -> None:
    """A step and its state, made twice: replays and calls agree on three batches."""
    batches = [torch.randn(shape) for _ in range(3)]
    torch.testing.assert_close(replayed(*make(), *batches), called(*make(), *batches), rtol=0, atol=0)


# ---- any step


WEIGHTS = 3
MOVES: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda a, b: a.float() + b.float(),
    lambda a, b: a.float() * b.float().tanh(),
    lambda a, b: a.detach().float(),
    lambda a, b: a.bfloat16(),
    lambda a, b: b.bfloat16(),
    lambda a, b: a.double(),
    lambda a, b: a[::2].repeat_interleave(2, 0),
    lambda a, b: a[1:3],
    lambda a, b: a.t().contiguous().t(),
    lambda a, b: a.view(-1).view(a.shape) if a.is_contiguous() else a,
    lambda a, b: a.add_(0.25),
    lambda a, b: a.copy_(b.tanh()) if a.shape == b.shape else a,
    lambda a, b: a.lerp_(b.to(a.dtype).tanh(), 0.5) if a.shape == b.shape else a,
    lambda a, b: a[:2].mul_(0.5),
    lambda a, b: torch.cat([a.float(), b.float()])[1 : 1 + len(a)],
    lambda a, b: a.sum(0, keepdim=True).expand(4, 6).contiguous(),
    lambda a, b: torch.full((4, 6), 0.5),
    lambda a, b: torch.tensor([[0.5] * 6] * 4) + 0,
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(range(len(MOVES))), st.integers(0, 99), st.integers(0, 99)), max_size=25
    )
)
def test_a_replay_is_the_step(moves: list[tuple[int, int, int]]) -> None:
    """Views, conversions and what writes in place, of weights, of the batch and of what is made of them."""

    def make() -> tuple[Step, list[Tensor]]:
        weights = [torch.linspace(-1, 1, 24).view(4, 6) * (number + 1) for number in range(WEIGHTS)]

        def step(x: Tensor) -> Tensors:
            things = [*weights, x + 0]
            for move, first, second in moves:
                a, b = things[first % len(things)], things[second % len(things)]
                if a.shape == b.shape == (4, 6) or move in (2, 3, 4, 5, 10):
                    things.append(MOVES[move](a, b))
            return things[-1], things[len(things) // 2]

        return step, weights

    with torch.no_grad():
        same(make)


def test_an_update_with_momentum_and_weight_decay() -> None:
    def make() -> tuple[Step, list[Tensor]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.01, fused=True)
        buffers = []
        for one in model.parameters():
            sgd.state[one]["momentum_buffer"] = torch.zeros_like(one)
            buffers.append(sgd.state[one]["momentum_buffer"])

        def step(x: Tensor) -> Tensors:
            sgd.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x).float().square().mean()
            loss.backward()
            sgd.step()
            return (loss.detach(),)

        return step, [*(one.data for one in model.parameters()), *buffers]

    same(make)


def test_a_weight_that_is_converted_anew_after_it_has_changed() -> None:
    """Or it would be converted with the others, too early."""

    def make() -> tuple[Step, list[Tensor]]:
        weights = [torch.ones(6), torch.ones(6)]

        def step(x: Tensor) -> Tensors:
            first = x.bfloat16() * weights[0].bfloat16() * weights[1].bfloat16()
            weights[0].add_(1)
            weights[1].view(2, 3)[0].add_(1)
            return first, x * weights[0].bfloat16(), x * weights[1].bfloat16()

        return step, weights

    same(make)


def test_conversions_are_made_together() -> None:
    weights = [torch.randn(6) for _ in range(10)]
    trace = tape.Trace()
    x = torch.randn(4, 6)

    def step(x: Tensor) -> Tensor:
        for weight in weights:
            x = x.bfloat16() * weight.bfloat16()
        return x

    with trace:
        outputs = trace.of((step(x),))

    names = [str(call.function) for call in op_trace.fewer(trace.calls, outputs)]
    assert names == [
        "aten._foreach_copy_.default",
        *["aten.mul.Tensor"] * 10,
    ]


def test_random_numbers_are_drawn_anew() -> None:
    generator = torch.Generator().manual_seed(3)

    def step(x: Tensor) -> Tensors:
        return (x + torch.rand(6, generator=generator) + torch.rand(()),)

    batch = (torch.zeros(6),)
    replay = Tape().record(step, batch, [generator]).replay
    outputs: list[list[Tensor]] = [[], []]
    for made, act in zip(outputs, (replay, lambda: step(*batch)), strict=True):
        generator.manual_seed(7)
        torch.manual_seed(7)
        made += [act()[0].clone() for _ in range(3)]

    torch.testing.assert_close(*outputs, rtol=0, atol=0)
    assert not torch.equal(outputs[0][0], outputs[0][1])


def test_what_torch_does_not_see_is_one_call_and_may_write() -> None:
    @one_call
    def doubled(x: Tensor, total: Tensor) -> Tensor:
        y = torch.empty_like(x)
        np.multiply(x.numpy(), 2, out=y.numpy())
        total.numpy()[...] += x.numpy().sum()
        return y

    def make() -> tuple[Step, list[Tensor]]:
        total = torch.zeros(())
        return lambda x: (doubled(x * 3, total) + 1, total.clone()), [total]

    same(make)


# ---- what is left behind


@pytest.mark.slow
def test_a_value_is_forgotten_behind_its_last_use() -> None:
    alive: list[int] = []

    def count(x: Tensor) -> Tensor:
        gc.collect()
        alive.append(sum(one.numel() == 4096 for one in gc.get_objects() if type(one) is Tensor))
        return x + 1

    step_: Any = one_call(count)

    def step(x: Tensor) -> Tensors:
        for _ in range(6):
            x = step_(x)
        return (x.sum(),)

    replay = Tape().record(step, (torch.zeros(4096),), []).replay
    alive.clear()
    replay()

    assert len(alive) == 6
    assert max(alive) - alive[0] <= 1


def test_nothing_is_noted_once_a_step_has_failed() -> None:
    def step(x: Tensor) -> Tensors:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Tape().record(step, (torch.zeros(3),), [])
    assert one_call(lambda: 5)() == 5


# ---- what is refused


@pytest.mark.parametrize(
    "look",
    [
        lambda x: x * float(x.sum()),
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x[x > 0].sum(),
        lambda x: x * len(x.nonzero()),
        lambda x: x * x.sum().item(),
    ],
)
def test_a_step_that_reads_numbers_in_python_is_refused(look: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(RuntimeError, match="it reads numbers of a tensor in Python"):
        Tape().record(lambda x: (look(x),), (torch.randn(5),), [])


@pytest.mark.parametrize(
    "look",
    [
        lambda x: torch.from_numpy(x.numpy() * 2),
        lambda x: x * x.tolist()[0],
        lambda x: x + torch.tensor(x.tolist()),
        lambda x: torch.tensor([1.0]).add_(1) * x,
    ],
)
def test_a_step_that_goes_behind_torch_is_refused(look: Callable[[Tensor], Tensor]) -> None:
    """Since it makes other numbers of another batch. (All but the last, which is not told apart.)"""
    with pytest.raises(RuntimeError, match="it does something that torch does not see"):
        Tape().record(lambda x: (look(x),), (torch.randn(5),), [])
