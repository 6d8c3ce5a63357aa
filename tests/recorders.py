"""A recorder that needs no GPU, and is as forgetful as a graph."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normbench.norms.ops.tracing import capturing
from normbench.training.capture.capture import Step
from normbench.training.capture.op_trace import Recording, Tensors


class Baked:
    """Calls what it recorded again with the Python values of back then, and forgets those that it leaves.

    As with a graph nothing is done while it is recorded, what comes out lies in the same tensors every time,
    and generators are not seeded inside.
    """

    name, evaluations = "graph", True

    def __init__(self, updates: int = 1) -> None:
        self.updates = updates
        self.rehearsals, self.recordings, self.replays, self.runs = 0, 0, 0, 0

    def rehearse(self, act: Callable[[], Tensors]) -> None:
        act()
        act()
        self.rehearsals += 1

    def record_calls(self, calls: Callable[[], Tensors]) -> Callable[[], Tensors]:
        self.runs += 1
        return calls

    def record(self, act: Step, batch: Tensors, generators: Sequence[torch.Generator]) -> Recording:
        modules = list(_network_of(act).modules())
        baked = [dict(vars(module)) for module in modules]
        outputs: list[Tensor] = []
        self.recordings += 1

        def replay() -> Tensors:
            self.replays += 1
            live = [dict(vars(module)) for module in modules]
            _put(modules, baked)
            try:
                with capturing():
                    new = act(*batch)
            finally:
                _put(modules, live)
            if not outputs:
                outputs.extend(torch.empty_like(each) for each in new)
            for old, each in zip(outputs, new, strict=True):
                old.copy_(each)
            return tuple(outputs)

        return Recording(replay, lambda: tuple(output.clone() for output in replay()))


class Refusing(Baked):
    """Finds that a step waits for the device."""

    def rehearse(self, act: Callable[[], Tensors]) -> None:
        super().rehearse(act)
        raise RuntimeError("called a synchronizing CUDA operation\nwith a trace")


def _network_of(act: Any) -> nn.Module:
    """Of partial(function, …, network, …)."""
    assert isinstance(act, partial)
    return next(each for each in act.args if isinstance(each, nn.Module))


def _put(modules: Sequence[nn.Module], values: Sequence[dict[str, Any]]) -> None:
    for module, own in zip(modules, values, strict=True):
        vars(module).clear()
        vars(module).update(own)
