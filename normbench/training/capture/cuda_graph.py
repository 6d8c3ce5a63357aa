"""CUDA graphs: all kernels of a step, launched again at once."""

import contextlib
import gc
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from normbench.training.capture.op_trace import Recording, Tensors, lean, leaves, refuse_unknowable
from normbench.training.capture.tape import tape_of

aten = torch.ops.aten
COPIES = aten._to_copy.default, aten.copy_.default
CHECKS = {"_linalg_check_errors", "masked_scatter", "masked_scatter_", "histc"}
REHEARSALS = 2  # the first sets things up: libraries, kernels, memory
_launching = threading.RLock()  # a graph may be collected while another is replayed


class Spoilt(Exception):
    """A recording that failed after it began, which may harm other trials of this process."""


class CudaGraphs:
    """A recorder for one GPU: see :class:`normbench.training.capture.capture.Recorder`.

    All recordings share their memory: none may rely on what another leaves there. A trial with a stream of
    its own, as several in one process have, records on that; the default stream cannot be recorded.
    """

    name = "graph"
    evaluations = True
    updates = 16  # of some 200 kernels

    def __init__(self, device: torch.device) -> None:
        current = torch.cuda.current_stream(device)
        self._alone = current == torch.cuda.default_stream(device)
        self._device = device
        self._stream = torch.cuda.Stream(device) if self._alone else current  # type: ignore[no-untyped-call]
        self._pool: Any = torch.cuda.graph_pool_handle()

    def rehearse(self, step: Callable[[], Tensors]) -> None:
        """Run the step on the stream that records, and check that it does not wait for the device.

        Where no other trial is in this process, torch checks it too; that would stop the others.

        Raises:
            RuntimeError: it waits for the device.
        """
        with self._on_stream():
            for _ in range(REHEARSALS):
                step()
            with WithoutWaiting(), _no_waiting() if self._alone else nullcontext():  # type: ignore[no-untyped-call]
                step()

    def record(
        self, step: Callable[..., Tensors], batch: Tensors, generators: Sequence[torch.Generator]
    ) -> Recording:
        """Return a graph of all that a tape of the step launches, or the step where there can be no tape.

        Inference has none: torch does not take its operators apart, and its batches are large.

        Raises:
            RuntimeError: it cannot be recorded.
            Spoilt: likewise, where other trials are in this process.
        """
        act: Callable[[], Tensors] = partial(step, *batch)
        if not torch.is_inference_mode_enabled():
            with self._on_stream(), contextlib.suppress(RuntimeError):
                act = tape_of(step, batch, generators)
        return Recording(self._captured(act, generators), act)

    def record_calls(self, calls: Callable[[], Tensors]) -> Callable[[], Tensors]:
        """Return a graph of all that the calls launch, without running it.

        Raises:
            RuntimeError, Spoilt: as :meth:`record`.
        """
        return self._captured(calls, ())

    def _captured(self, act: Callable[[], Tensors], generators: Sequence[torch.Generator]) -> "Replay":
        try:
            with _launching, _kept_garbage(), torch.cuda.device(self._device):
                graph = torch.cuda.CUDAGraph()
                for generator in generators:
                    graph.register_generator_state(generator)
                capture = torch.cuda.graph(
                    graph,
                    pool=self._pool,
                    stream=self._stream,
                    capture_error_mode="thread_local",  # other threads may go on meanwhile
                )
                with capture:
                    outputs = act()
        except RuntimeError as error:
            if self._alone:
                raise
            raise Spoilt(f"an update could not be recorded: {error}") from error

        return Replay(graph, outputs, act)

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """Launch on the stream that records, which waits for the current one and is then waited for."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                torch.cuda.current_stream().wait_stream(self._stream)


class Replay:
    """A graph with its outputs, and what keeps the memory alive that it reads.

    Graphs begin, run and end one at a time: random generators keep a list of the graphs that draw from them,
    which torch 2.11 does not guard against other threads.
    """

    _launching = _launching  # as modules may end before it does

    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Tensors, kept: object = None) -> None:
        self._graph, self._outputs, self._kept = graph, outputs, kept

    def __call__(self) -> Tensors:
        """Run the graph and return its outputs, to be copied before the next call."""
        with self._launching:  # generators must not move while another graph is recorded
            self._graph.replay()
        return self._outputs

    def __del__(self) -> None:
        with self._launching:
            del self._graph


@contextlib.contextmanager
def _kept_garbage() -> Iterator[None]:
    """Prevent garbage collection, which could end another graph, and that would be recorded."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Have torch raise a RuntimeError where any thread waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it misses some waits, which recording finds
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@lean
class WithoutWaiting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode in which what is known to wait for a device raises a RuntimeError, in this thread.

    Such operators pass numbers to Python or from there, copy between devices, select by a mask, or check for
    errors. Some versions of torch (2.14) dispatch no operator for numbers that come from Python, so the
    functions that take them are watched as well.
    """

    def __enter__(self) -> Any:
        self._functions = _NoPythonNumbers()
        self._functions.__enter__()  # type: ignore[no-untyped-call]
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._functions.__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        refuse_unknowable(func)
        if func._schema.name.removeprefix("aten::") in CHECKS or _selects(func, args):
            raise RuntimeError(f"it waits for the device ({func})")
        results = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in leaves((args, results)) if isinstance(leaf, Tensor)}
        if (func in COPIES and len(devices) > 1) or (func is aten.lift_fresh.default and devices != {"cpu"}):
            raise RuntimeError(f"it waits for a copy between {' and '.join(sorted({'cpu', *devices}))}")
        return results


class _NoPythonNumbers(TorchFunctionMode):
    """A mode in which numbers of Python that become a tensor or an index on a device raise a RuntimeError."""

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _takes_python_numbers(func, (*args, *(kwargs or {}).values())):
            device = (result if isinstance(result, Tensor) else args[0]).device
            if device.type != "cpu":
                raise RuntimeError(f"it waits for a copy between cpu and {device.type}")
        return result


def _takes_python_numbers(func: Any, values: tuple[Any, ...]) -> bool:
    """Return whether the call makes a tensor of Python's numbers, or indexes by them."""
    match func.__name__:
        case "tensor" | "as_tensor" | "asarray":
            return not isinstance(values[0], Tensor)
        case "new_tensor":
            return not isinstance(values[1], Tensor)
        case "__getitem__" | "__setitem__":
            index = values[1] if isinstance(values[1], tuple) else (values[1],)
            return any(isinstance(places, list | np.ndarray) for places in index)
    return False


def _selects(func: Any, args: Any) -> bool:
    """Return whether the call selects by a mask, whose number of elements must be known."""
    indexes = func in (aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
    return indexes and any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    )
