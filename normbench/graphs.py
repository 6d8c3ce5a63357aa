"""CUDA graphs: everything that a step launches on a GPU, launched again at once."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from normbench.calls import Tensors, leaves
from normbench.dispatch import lean, refuse_unknowable

COPIES = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default
REHEARSALS = 2  # the first sets things up: libraries, kernels, memory


class CudaGraphs:
    """Records on one GPU: see :class:`normbench.recording.Recorder`.

    All recordings share their memory: none may rely on what is left by another. A trial that has a stream of
    its own records on that, as others launch on theirs meanwhile; the default stream cannot be recorded.
    """

    name = "graph"
    evaluations = True

    def __init__(self, device: torch.device) -> None:
        current = torch.cuda.current_stream(device)
        shared = current == torch.cuda.default_stream(device)
        self._device = device
        self._stream = torch.cuda.Stream(device) if shared else current  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()

    def rehearse(self, act: Callable[[], Tensors]) -> None:
        """On the stream that records.

        Raises:
            RuntimeError: it waits for the device.
        """
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(REHEARSALS):
                    act()
                with WithoutWaiting():  # type: ignore[no-untyped-call]
                    act()
            torch.cuda.current_stream().wait_stream(self._stream)

    def record(
        self, act: Callable[..., Tensors], batch: Tensors, generators: Sequence[torch.Generator]
    ) -> Callable[[], Tensors]:
        """A graph of everything that is launched; nothing is done yet."""
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        means: dict[str, Any] = {"pool": self._pool, "stream": self._stream}
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, **means, capture_error_mode="thread_local"),
        ):
            outputs = act(*batch)

        def replay() -> Tensors:
            graph.replay()
            return outputs

        return replay


@lean
class WithoutWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, in this thread, what waits for a device raises a RuntimeError."""

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse_unknowable(func)
        results = func(*args, **(kwargs or {}))
        if func in COPIES:
            devices = {one.device.type for one in leaves((args, results)) if isinstance(one, Tensor)}
            if len(devices) > 1:
                raise RuntimeError(f"it waits for a copy between {' and '.join(sorted(devices))}")
        return results
