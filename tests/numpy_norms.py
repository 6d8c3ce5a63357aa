"""Every normalization method in NumPy, written from its paper's formulas, and nothing taken from the package.

float64 throughout, plain reductions over the axes that a formula names. ``REFERENCES`` has a class for every
method of the package's table; a method without one fails the tests.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def per_channel(values: Array) -> Array:
    """[C] -> [1, C, 1, 1]."""
    return values.reshape(1, -1, 1, 1)


def softmax(logits: Array) -> Array:
    e = np.exp(logits - logits.max())
    return e / e.sum()


class NoNorm:
    """y = x."""

    def __init__(self, channels: int, **options: Any) -> None:
        self.channels, self.training = channels, True

    def load(self, state: Mapping[str, Any]) -> None:
        """Take the parameters and buffers that a layer of the package has, by name."""
        for name, value in state.items():
            assert hasattr(self, name), f"{type(self).__name__} knows no {name}"
            setattr(self, name, value.numpy().astype(np.float64))

    def undefined(self, N: int, H: int, W: int) -> bool:
        """The formulas divide by zero, or can give nothing but beta, for maps of this shape."""
        return False

    def __call__(self, x: Array) -> Array:
        return x


class LayerNorm(NoNorm):
    """Ba, Kiros & Hinton 2016, equations 3 and 4: the units of a layer are all C·H·W of a sample."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels)
        self.eps, self.gamma, self.beta = eps, np.ones(channels), np.zeros(channels)

    def undefined(self, N: int, H: int, W: int) -> bool:
        return self.channels * H * W == 1

    def affine(self, normalized: Array) -> Array:
        return per_channel(self.gamma) * normalized + per_channel(self.beta)

    def __call__(self, x: Array) -> Array:
        mu = x.mean((1, 2, 3), keepdims=True)
        sigma2 = ((x - mu) ** 2).mean((1, 2, 3), keepdims=True)
        return self.affine((x - mu) / np.sqrt(sigma2 + self.eps))


class InstanceNorm(LayerNorm):
    """Ulyanov, Vedaldi & Lempitsky 2016, section 2: moments over the H·W of channel i of image t."""

    def undefined(self, N: int, H: int, W: int) -> bool:
        return H * W == 1

    def __call__(self, x: Array) -> Array:
        mu = x.mean((2, 3), keepdims=True)
        sigma2 = ((x - mu) ** 2).mean((2, 3), keepdims=True)
        return self.affine((x - mu) / np.sqrt(sigma2 + self.eps))


class GroupNorm(LayerNorm):
    """Wu & He 2018, figure 3: x as [N, G, C // G, H, W], moments over axes 2, 3, 4."""

    def __init__(self, channels: int, groups: int, eps: float) -> None:
        super().__init__(channels, eps)
        self.groups = groups

    def undefined(self, N: int, H: int, W: int) -> bool:
        return self.channels // self.groups * H * W == 1

    def __call__(self, x: Array) -> Array:
        N, C, H, W = x.shape
        grouped = x.reshape(N, self.groups, C // self.groups, H, W)
        mu = grouped.mean((2, 3, 4), keepdims=True)
        sigma2 = ((grouped - mu) ** 2).mean((2, 3, 4), keepdims=True)
        return self.affine(((grouped - mu) / np.sqrt(sigma2 + self.eps)).reshape(N, C, H, W))


class BatchNorm(LayerNorm):
    """Ioffe & Szegedy 2015, algorithm 1 for every norm batch; algorithm 2 (m / (m - 1)) for inference."""

    def __init__(
        self, channels: int, eps: float, momentum: float, norm_batch_size: int, frozen_epochs: int = 0
    ) -> None:
        super().__init__(channels, eps)
        assert not frozen_epochs, "training as ever"
        self.momentum, self.norm_batch_size = momentum, norm_batch_size
        self.running_mean, self.running_var = np.zeros(channels), np.ones(channels)

    def undefined(self, N: int, H: int, W: int) -> bool:
        return self.training and self.norm_batch_size * H * W == 1

    def follow(self, means: list[Array], variances: list[Array]) -> None:
        decay = 1 - self.momentum
        self.running_mean = decay * self.running_mean + self.momentum * np.mean(means, axis=0)
        self.running_var = decay * self.running_var + self.momentum * np.mean(variances, axis=0)

    def normalized(self, x: Array, mu: Array, sigma2: Array) -> Array:
        return self.affine((x - per_channel(mu)) / np.sqrt(per_channel(sigma2) + self.eps))

    def __call__(self, x: Array) -> Array:
        if not self.training:
            return self.normalized(x, self.running_mean, self.running_var)
        y, means, variances = np.empty_like(x), [], []
        for start in range(0, len(x), self.norm_batch_size):
            batch = slice(start, start + self.norm_batch_size)
            values = x[batch].transpose(1, 0, 2, 3).reshape(self.channels, -1)  # [C, m]
            m = values.shape[1]
            mu = values.sum(1) / m
            sigma2 = ((values - mu[:, None]) ** 2).sum(1) / m
            y[batch] = self.normalized(x[batch], mu, sigma2)
            means.append(mu)
            variances.append(sigma2 * m / (m - 1))
        self.follow(means, variances)
        return y


class BatchRenorm(BatchNorm):
    """Ioffe 2017, algorithm 1, for every norm batch; ``bounds`` are the r_max and d_max of the moment."""

    def __init__(
        self, channels: int, eps: float, momentum: float, norm_batch_size: int, **end: float
    ) -> None:
        super().__init__(channels, eps, momentum, norm_batch_size)
        self.bounds, self.end = (1.0, 0.0), end

    def normalized(self, x: Array, mu: Array, sigma2: Array) -> Array:
        if not self.training:
            return super().normalized(x, mu, sigma2)
        r_max, d_max = self.bounds
        sigma_b, sigma = np.sqrt(sigma2 + self.eps), np.sqrt(self.running_var + self.eps)
        r = np.clip(sigma_b / sigma, 1 / r_max, r_max)
        d = np.clip((mu - self.running_mean) / sigma, -d_max, d_max)
        return self.affine((x - per_channel(mu)) / per_channel(sigma_b) * per_channel(r) + per_channel(d))


class SwitchNorm(BatchNorm):
    """Luo et al. 2019, equations 2 to 5, the BN part as in ``BatchNorm``."""

    def __init__(self, channels: int, eps: float, momentum: float, norm_batch_size: int) -> None:
        super().__init__(channels, eps, momentum, norm_batch_size)
        self.mean_weight, self.var_weight = np.ones(3), np.ones(3)

    def mixture(self, x: Array, parts: list[tuple[Array, Array]]) -> Array:
        w, w_ = softmax(self.mean_weight), softmax(self.var_weight)
        mu = sum(w[k] * mean for k, (mean, _) in enumerate(parts))
        sigma2 = sum(w_[k] * variance for k, (_, variance) in enumerate(parts))
        return self.affine((x - mu) / np.sqrt(sigma2 + self.eps))

    def __call__(self, x: Array) -> Array:
        y, means, variances = np.empty_like(x), [], []
        size = self.norm_batch_size if self.training else len(x)
        for start in range(0, len(x), size):
            part = x[start : start + size]
            instance, layer, batch = (
                (part.mean(axes, keepdims=True), part.var(axes, keepdims=True))
                for axes in ((2, 3), (1, 2, 3), (0, 2, 3))
            )
            if self.training:
                m = part[:, 0].size
                means.append(batch[0].ravel())
                variances.append(batch[1].ravel() * m / (m - 1))
            else:
                batch = per_channel(self.running_mean), per_channel(self.running_var)
            y[start : start + size] = self.mixture(part, [instance, layer, batch])
        if self.training:
            self.follow(means, variances)
        return y


class OfficialSwitchNorm(SwitchNorm):
    """The arithmetic of the authors' SwitchNorm2d: E[x²] - E[x]² over IN variances that divide by H·W - 1."""

    def __init__(self, channels: int, eps: float, momentum: float, norm_batch_size: int) -> None:
        super().__init__(channels, eps, momentum, norm_batch_size)
        self.running_var = np.zeros(channels)

    def undefined(self, N: int, H: int, W: int) -> bool:
        return H * W == 1

    def __call__(self, x: Array) -> Array:
        y, means, variances = np.empty_like(x), [], []
        size = self.norm_batch_size if self.training else len(x)
        for start in range(0, len(x), size):
            part = x[start : start + size]
            mean_in, var_in = part.mean((2, 3), keepdims=True), part.var((2, 3), keepdims=True, ddof=1)
            temp = var_in + mean_in**2
            mean_ln = mean_in.mean(1, keepdims=True)
            var_ln = temp.mean(1, keepdims=True) - mean_ln**2
            if self.training:
                mean_bn = mean_in.mean(0, keepdims=True)
                var_bn = temp.mean(0, keepdims=True) - mean_bn**2
                means.append(mean_bn.ravel())
                variances.append(var_bn.ravel())
            else:
                mean_bn, var_bn = per_channel(self.running_mean), per_channel(self.running_var)
            parts = [(mean_in, var_in), (mean_ln, var_ln), (mean_bn, var_bn)]
            y[start : start + size] = self.mixture(part, parts)
        if self.training:
            self.follow(means, variances)
        return y


def switchable(channels: int, variance: str, **options: Any) -> SwitchNorm:
    return {"paper": SwitchNorm, "official": OfficialSwitchNorm}[variance](channels, **options)


REFERENCES: dict[str, Any] = {
    "none": NoNorm,
    "batch": BatchNorm,
    "layer": LayerNorm,
    "instance": InstanceNorm,
    "group": GroupNorm,
    "switchable": switchable,
    "batch_renorm": BatchRenorm,
}
