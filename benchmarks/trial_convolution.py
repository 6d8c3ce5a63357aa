"""The 3x3 convolutions of many trials in one launch, in Triton, beside torch's grouped convolution.

    python benchmarks/trial_convolution.py [--trials 1 4 16 32]           # on a GPU, about a minute
    TRITON_INTERPRET=1 python benchmarks/trial_convolution.py --check     # values beside float64, anywhere

Maps are x[n][h][w][k][c] of N samples, K trials and C channels, which is what a grouped convolution of
[N, K C, H, W] has in channels_last; weights are [K O, C, 3, 3] in channels_last. Each program is of one trial
and adds in an order that depends on the shapes of that trial alone, so that the numbers of a trial do not
depend on how many others it is stacked with. Printed for every layer of ResNet-20 that differs: microseconds
of the forward pass, the input's gradient and the weights' gradient, each of so many trials at once.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor, nn

from normbench.norms.ops.tracing import one_call
from normbench.training.device import device, settled_process
from normbench.training.provenance import device_name, git_state

LAYERS = (  # inputs, outputs, height and width, stride: those of ResNet-20, which has 1, 6, 1, 5, 1 and 5
    (3, 16, 32, 1),
    (16, 16, 32, 1),
    (16, 32, 32, 2),
    (32, 32, 16, 1),
    (32, 64, 16, 2),
    (64, 64, 8, 1),
)
POSITIONS = 64  # of a tile
SPLIT = 2048  # positions whose products one program adds to a gradient of weights


@triton.jit
def _tile(x, n, h, w, k, c, inside, H, W, K, C):
    """Load [positions, channels] of a trial's map; 0 outside."""
    at = ((n * H + h) * W + w) * K * C + k * C
    return tl.load(x + at[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)


@triton.jit(do_not_specialize=["samples", "K"])  # one kernel a layer
def _convolve(
    x,
    weight,
    y,
    samples,
    H: tl.constexpr,
    W: tl.constexpr,
    to_H: tl.constexpr,
    to_W: tl.constexpr,
    K,
    C: tl.constexpr,
    to_C: tl.constexpr,
    stride: tl.constexpr,
    backward: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_TO_C: tl.constexpr,
):
    """Compute a tile of y, all channels of one trial: a convolution or, ``backward``, its transpose.

    In both, maps with C channels are read and maps with ``to_C`` written; backward, x is the gradient of the
    convolution's output.
    """
    k = tl.program_id(1)
    p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    c, to_c = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_TO_C)
    n, h, w = p // (to_H * to_W), p // to_W % to_H, p % to_W
    of_trial = weight + k * C * to_C * 9
    total = tl.zeros([BLOCK_P, BLOCK_TO_C], tl.float32)
    for tap in tl.static_range(9):
        if backward:
            up, left = h + 1 - tap // 3, w + 1 - tap % 3
            inside = (up >= 0) & (left >= 0) & (up % stride == 0) & (left % stride == 0)
            up, left = up // stride, left // stride
            at = c[:, None] * 9 * to_C + tap * to_C + to_c[None, :]
        else:
            up, left = h * stride + tap // 3 - 1, w * stride + tap % 3 - 1
            inside = (up >= 0) & (left >= 0)
            at = to_c[None, :] * 9 * C + tap * C + c[:, None]
        inside = inside & (up < H) & (left < W) & (n < samples)
        of_tap = tl.load(of_trial + at, mask=(c < C)[:, None] & (to_c < to_C)[None, :], other=0.0)
        total = tl.dot(_tile(x, n, up, left, k, c, inside, H, W, K, C), of_tap, total, input_precision="ieee")
    at = (p * K + k)[:, None] * to_C + to_c[None, :]
    tl.store(y + at, total.to(y.dtype.element_ty), mask=(n < samples)[:, None] & (to_c < to_C)[None, :])


@triton.jit(do_not_specialize=["samples", "K"])  # one kernel a layer
def _weight_gradient(
    x,
    dy,
    partial,
    samples,
    H: tl.constexpr,
    W: tl.constexpr,
    to_H: tl.constexpr,
    to_W: tl.constexpr,
    K,
    C: tl.constexpr,
    to_C: tl.constexpr,
    stride: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_TO_C: tl.constexpr,
):
    """Add the products of ``SPLIT`` positions for one trial and one of the nine taps."""
    tap, k, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    c, to_c = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_TO_C)
    total = tl.zeros([BLOCK_C, BLOCK_TO_C], tl.float32)
    for start in range(0, min(SPLIT, samples * to_H * to_W - split * SPLIT), BLOCK_P):
        p = split * SPLIT + start + tl.arange(0, BLOCK_P)
        n, h, w = p // (to_H * to_W), p // to_W % to_H, p % to_W
        up, left = h * stride + tap // 3 - 1, w * stride + tap % 3 - 1
        inside = (up >= 0) & (left >= 0) & (up < H) & (left < W) & (n < samples)
        maps = _tile(x, n, up, left, k, c, inside, H, W, K, C)
        gradients = _tile(dy, n, h, w, k, to_c, n < samples, to_H, to_W, K, to_C)
        total = tl.dot(tl.trans(maps), gradients, total, input_precision="ieee")
    at = ((split * K + k) * to_C + to_c[None, :]) * 9 * C + tap * C + c[:, None]
    tl.store(partial + at, total, mask=(c < C)[:, None] & (to_c < to_C)[None, :])


def _above(number: int) -> int:
    """Return the next power of two, of at least the 16 that a product of tiles needs."""
    return max(16, triton.next_power_of_2(number))


def _maps(samples: int, channels: int, height: int, width: int, like: Tensor) -> Tensor:
    maps = torch.empty(samples, height, width, channels, device=like.device, dtype=like.dtype)
    return maps.permute(0, 3, 1, 2)


def _launch(kernel: Any, grid: tuple[int, ...], *given: Any, **options: Any) -> None:
    with torch.cuda.device_of(given[0]):
        kernel[grid](*given, **options)


@one_call
def convolve(x: Tensor, weight: Tensor, trials: int, stride: int) -> Tensor:
    """Return [N, K O, H', W'], x [N, K C, H, W] convolved with weight [K O, C, 3, 3] and padded by 1."""
    samples, _, height, width = x.shape
    outputs, inputs = weight.shape[0] // trials, weight.shape[1]
    y = _maps(samples, weight.shape[0], -(-height // stride), -(-width // stride), x)
    _of_maps(x, weight, y, trials, inputs, outputs, stride, backward=False)
    return y


@one_call
def input_gradient(dy: Tensor, x: Tensor, weight: Tensor, trials: int, stride: int) -> Tensor:
    """Return the gradient of x, given dy [N, K O, H', W']."""
    outputs, inputs = weight.shape[0] // trials, weight.shape[1]
    dx = _maps(*x.shape, dy)
    _of_maps(dy, weight, dx, trials, outputs, inputs, stride, backward=True)
    return dx


def _of_maps(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    trials: int,
    inputs: int,
    outputs: int,
    stride: int,
    *,
    backward: bool,
) -> None:
    samples, _, height, width = y.shape
    _launch(
        _convolve,
        (triton.cdiv(samples * height * width, POSITIONS), trials),
        *(x, weight, y, samples, *x.shape[2:], height, width, trials, inputs, outputs, stride, backward),
        *(POSITIONS, _above(inputs), _above(outputs)),
    )


@one_call
def weight_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, trials: int, stride: int, split: int = SPLIT
) -> Tensor:
    """Return the gradient of the weights in fp32, [K O, C, 3, 3], of sums over ``split`` positions each."""
    outputs, inputs = weight.shape[0] // trials, weight.shape[1]
    samples, _, height, width = dy.shape
    splits = triton.cdiv(samples * height * width, split)
    partial = torch.empty(splits, *weight.permute(0, 2, 3, 1).shape, device=x.device)
    _launch(
        _weight_gradient,
        (9, trials, splits),
        *(x, dy, partial, samples, *x.shape[2:], height, width, trials, inputs, outputs, stride),
        *(split, POSITIONS, _above(inputs), _above(outputs)),
    )
    return (partial[0] if splits == 1 else partial.sum(0)).permute(0, 3, 1, 2)


class Convolve(torch.autograd.Function):
    """The convolution with its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, trials: int, stride: int) -> Tensor:
        """Convolve; under autocast to bf16, in bf16."""
        if torch.is_autocast_enabled(x.device.type):
            x, weight = x.bfloat16(), weight.bfloat16()
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.given = trials, stride
        return convolve(x, weight, trials, stride)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of x, where it is needed, and of the weights."""
        x, weight = ctx.saved_tensors
        dy = gradients[0].contiguous(memory_format=torch.channels_last)
        dx = input_gradient(dy, x, weight, *ctx.given) if ctx.needs_input_grad[0] else None
        return dx, weight_gradient(dy, x, weight, *ctx.given), None, None


class TrialConv2d(nn.Conv2d):
    """A grouped 3x3 convolution, padded by 1 and without a bias, whose groups are trials."""

    def forward(self, input: Tensor) -> Tensor:
        """Return [N, K O, H', W'] of x [N, K C, H, W]."""
        weight = self.weight.contiguous(memory_format=torch.channels_last)
        return Convolve.apply(input, weight, self.groups, self.stride[0])  # type: ignore[no-any-return]


def case(
    layer: tuple[int, int, int, int], samples: int, trials: int, where: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return random x, weights and dy."""
    inputs, outputs, size, stride = layer
    torch.manual_seed(0)
    shapes = (
        (samples, trials * inputs, size, size),
        (trials * outputs, inputs, 3, 3),
        (samples, trials * outputs, size // stride, size // stride),
    )
    x, weight, dy = (
        torch.randn(shape).to(where, dtype, memory_format=torch.channels_last) for shape in shapes
    )
    return x, weight / 3 / inputs**0.5, dy


def ways(
    layer: tuple[int, int, int, int], trials: int, *given: Tensor, split: int = SPLIT
) -> dict[str, dict[str, Any]]:
    """Return what computes each pass, by grouped convolution and in Triton."""
    x, weight, dy = given
    stride = layer[-1]

    def grouped(*wanted: bool) -> Any:
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, [stride, stride], [1, 1], [1, 1], False, [0, 0], trials, wanted
        )

    return {
        "forward": {
            "grouped": lambda: F.conv2d(x, weight, None, stride, 1, groups=trials),
            "triton": lambda: convolve(x, weight, trials, stride),
        },
        "input gradient": {
            "grouped": lambda: grouped(True, False, False)[0],
            "triton": lambda: input_gradient(dy, x, weight, trials, stride),
        },
        "weight gradient": {
            "grouped": lambda: grouped(False, True, False)[1],
            "triton": lambda: weight_gradient(dy, x, weight, trials, stride, split),
        },
    }


def check(where: torch.device) -> None:
    """Compare maps of 8x8 with torch in float64, and the numbers of one trial alone with those among others.

    In fp32 only the order of some 30 to 600 sums of numbers about 1 differs: 2e-4. In bf16 the outputs are
    rounded to 8 bits, the gradients of weights are in fp32. Triton's interpreter has no products of bf16.

    Raises:
        AssertionError: they are not close, or not equal.
    """
    roundings = {torch.float32: 0.0, torch.bfloat16: 2**-8}
    for layer in [(inputs, outputs, 8, stride) for inputs, outputs, _, stride in LAYERS]:
        for dtype, relative in list(roundings.items())[: 2 if where.type == "cuda" else 1]:
            given = case(layer, 3, 2, where, dtype)
            x, weight, dy = given
            inputs, outputs, _, _ = layer
            first = (x[:, :inputs], weight[:outputs], dy[:, :outputs])
            alone = [each.contiguous(memory_format=torch.channels_last) for each in first]
            exact = ways(layer, 2, *(each.double() for each in given))
            singles = ways(layer, 1, *alone, split=2 * POSITIONS)
            for name, each in ways(layer, 2, *given, split=2 * POSITIONS).items():
                of_weights = name == "weight gradient"
                found, single = each["triton"](), singles[name]["triton"]()
                part = found[:outputs] if of_weights else found[:, : single.shape[1]]
                words = f"{name} of {layer} in {dtype}"
                assert torch.equal(part, single), words
                within = {"rtol": 0.0 if of_weights else relative, "atol": 2e-4}
                expected = exact[name]["grouped"]()
                torch.testing.assert_close(
                    found.double(), expected, **within, msg=lambda why, words=words: f"{words}: {why}"
                )
    x = torch.randn(3, 2 * 3, 8, 8, device=where)  # not channels_last
    ours, theirs = (kind(6, 32, 3, 2, 1, groups=2, bias=False).to(where) for kind in (TrialConv2d, nn.Conv2d))
    ours.load_state_dict(theirs.state_dict())
    results = []
    for module, images in ((ours, x.clone()), (theirs.double(), x.double())):
        y = module(images.requires_grad_())
        results.append((y.detach(), *torch.autograd.grad(y.square().sum(), (images, module.weight))))
    for found, expected in zip(
        *results, strict=True
    ):  # sums of up to 600 products, of which only the order differs
        limit = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=limit)
    print("all values are those of float64, and those of a trial do not depend on its company")


def microseconds(act: Callable[[], Tensor], where: torch.device, rounds: int) -> float:
    """Return the duration of a call within a CUDA graph of 20; on a CPU, of a call."""
    count = 20 if where.type == "cuda" else 1
    act()
    run: Callable[[], object] = act
    if where.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                act()
        run = graph.replay

    def once() -> float:
        began = time.perf_counter()
        run()
        if where.type == "cuda":
            torch.cuda.synchronize(where)
        return 1e6 * (time.perf_counter() - began) / count

    once()
    return statistics.median(once() for _ in range(rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trials", nargs="+", type=int, default=[1, 4, 16, 32])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="compare values with float64, and end")
    parser.add_argument(
        "--out", type=Path, help="by default benchmarks/results/trial_convolution_<device>.json"
    )
    options = parser.parse_args()
    where = device(options.device)
    if where.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        parser.error("there is no GPU; TRITON_INTERPRET=1 interprets the kernels on a CPU")
    if options.check:
        check(where)
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    rows: list[dict[str, Any]] = []
    print(f"{device_name(where)}, bf16: µs of a pass, grouped / Triton")
    for samples in options.batch_sizes:
        for trials in options.trials:
            for layer in LAYERS:
                given = case(layer, samples, trials, where, torch.bfloat16)
                with settled_process():
                    found = {
                        name: {way: microseconds(act, where, options.rounds) for way, act in each.items()}
                        for name, each in ways(layer, trials, *given).items()
                    }
                rows.append({"batch_size": samples, "trials": trials, "layer": layer, "microseconds": found})
                cells = (
                    f"{name} {each['grouped']:7.1f} / {each['triton']:7.1f}" for name, each in found.items()
                )
                shape = "{}→{} at {}, stride {}".format(*layer)
                print(f"batch {samples:3d}  {trials:2d} trials  {shape:24s} {'  '.join(cells)}", flush=True)
    machine = {"device": device_name(where), "torch": torch.__version__, "git": git_state()}
    out = options.out or Path(__file__).parent / "results" / f"trial_convolution_{where.type}.json"
    out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
