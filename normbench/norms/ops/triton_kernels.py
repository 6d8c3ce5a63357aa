"""The passes of a moment norm on a GPU: maps are x[n][p][c], of N samples, P positions and C channels.

The names and formulas are those of ``kernels.c``: four passes over maps, and the middles of forward and
backward, which lie between two passes and compute tables [N][C] from others. All sums are in fp32 and in a
fixed order. Kernels are compiled when first launched; importing this module imports Triton.
"""

import triton
import triton.language as tl

ADD: tl.constexpr = tl.constexpr(1)  # bits of ``then``: add a shortcut,
FLOOR: tl.constexpr = tl.constexpr(2)  # and raise values below 0 to 0
SAMPLES: tl.constexpr = tl.constexpr(1)  # of a pooling, by bits: over the samples of a norm batch,
CHANNELS: tl.constexpr = tl.constexpr(2)  # and over the channels of a group


# ---- passes over maps; a program takes a tile of some positions and channels of one sample


@triton.jit
def _tile(n, p, c, P, C):
    """Return the offsets of the tile, [positions, channels], and the mask of those inside the map."""
    at = n.to(tl.int64) * P * C + p[:, None] * C + c[None, :]
    return at, (p[:, None] < P) & (c[None, :] < C)


@triton.jit
def _load(pointer, at, inside):
    return tl.load(pointer + at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _row(table, n, c, C):
    """Load one number for each channel of the tile from a table [N][C]."""
    return tl.load(table + n * C + c, mask=c < C, other=0.0)[None, :]


@triton.jit
def moments(x, mean, variance, P, C, bessel, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Compute mean and variance of every map, tile by tile, joined by the law of total variance.

    Values are taken relative to the first, so that the mean of a constant is exact.
    """
    n, c = tl.program_id(0), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(x + n.to(tl.int64) * P * C + c, mask=c < C, other=0.0).to(tl.float32)
    m = tl.zeros([BLOCK_C], tl.float32)
    square = tl.zeros([BLOCK_C], tl.float32)
    for start in range(0, P, BLOCK_P):
        at, inside = _tile(n, start + tl.arange(0, BLOCK_P), c, P, C)
        v = tl.where(inside, _load(x, at, inside) - first[None, :], 0.0)
        count = tl.minimum(P - start, BLOCK_P).to(tl.float32)
        mean_of_tile = tl.sum(v, 0) / count
        d = tl.where(inside, v - mean_of_tile[None, :], 0.0)
        step, share = mean_of_tile - m, count / (start + count)
        m += step * share
        square += tl.sum(d * d, 0) + step * step * (share * start)
    tl.store(mean + n * C + c, first + m, mask=c < C)
    tl.store(variance + n * C + c, square / P * bessel, mask=c < C)


@triton.jit
def _deviation(x, origin, at, inside, n, c, C, centred: tl.constexpr):
    """Return x relative to the origin of its map or, if not ``centred``, to 0."""
    v = _load(x, at, inside)
    if centred:
        v -= _row(origin, n, c, C)
    return v


@triton.jit
def multiply_add(
    x,
    scale,
    shift,
    origin,
    shortcut,
    y,
    P,
    C,
    then: tl.constexpr,
    centred: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute y = (x - origin) scale + shift and what follows; the origin is 0 if not ``centred``."""
    n, c = tl.program_id(0), tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    at, inside = _tile(n, tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P), c, P, C)
    v = _deviation(x, origin, at, inside, n, c, C, centred)
    v = v * _row(scale, n, c, C) + _row(shift, n, c, C)
    if ADD & then:
        v += _load(shortcut, at, inside)
    if FLOOR & then:
        v = tl.where(v < 0.0, 0.0, v)  # a NaN stays one
    tl.store(y + at, v.to(y.dtype.element_ty), mask=inside)


@triton.jit
def _above(g, y, at, inside):
    """Return the gradient g where y was not raised to the floor."""
    return tl.where(_load(y, at, inside) <= 0.0, 0.0, g)


@triton.jit
def sums(
    x,
    dy,
    y,
    origin,
    g,
    dscale,
    dshift,
    P,
    C,
    then: tl.constexpr,
    centred: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute the gradients of scale and shift for every map, sum g (x - origin) and sum g.

    g is dy where y was not raised to the floor; it is stored too if there are a shortcut and a floor.
    """
    n, c = tl.program_id(0), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    of_scale = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    of_shift = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, P, BLOCK_P):
        at, inside = _tile(n, start + tl.arange(0, BLOCK_P), c, P, C)
        v = _load(dy, at, inside)
        if FLOOR & then:
            v = _above(v, y, at, inside)
            if ADD & then:
                tl.store(g + at, v.to(g.dtype.element_ty), mask=inside)
        of_scale += v * _deviation(x, origin, at, inside, n, c, C, centred)
        of_shift += v
    tl.store(dscale + n * C + c, tl.sum(of_scale, 0), mask=c < C)
    tl.store(dshift + n * C + c, tl.sum(of_shift, 0), mask=c < C)


@triton.jit
def input_gradient(
    dy,
    y,
    scale,
    x,
    origin,
    slope,
    offset,
    dx,
    P,
    C,
    floor: tl.constexpr,
    sloped: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Compute dx = g scale + (x - origin) slope + offset, g as in ``sums``; if not ``sloped``, g scale."""
    n, c = tl.program_id(0), tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    at, inside = _tile(n, tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P), c, P, C)
    g = _load(dy, at, inside)
    if floor:
        g = _above(g, y, at, inside)
    v = g * _row(scale, n, c, C)
    if sloped:
        v += _deviation(x, origin, at, inside, n, c, C, True) * _row(slope, n, c, C) + _row(offset, n, c, C)
    tl.store(dx + at, v.to(dx.dtype.element_ty), mask=inside)


# ---- middles: a table [N][C] is read as [A][S][G][H], A norm batches of S samples, G groups of H channels;
# every pooling is over samples of a norm batch, or channels of a group, or both, or neither. A program takes
# BLOCK_G groups and goes through all norm batches, BLOCK_A at a time: what is summed, it sums alone.


@triton.jit
def _along(axis: tl.constexpr, BLOCK: tl.constexpr):
    """Return 0, 1, 2, ... along one of four axes."""
    i = tl.arange(0, BLOCK)
    for other in tl.static_range(4):
        if other != axis:
            i = tl.expand_dims(i, other)
    return i


@triton.jit
def _members(
    a, A, S, G, H, BLOCK_A: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_H: tl.constexpr
):
    """Return the offsets in a table of the norm batches from a on, and the mask of those that exist."""
    a, s = a + _along(0, BLOCK_A), _along(1, BLOCK_S)
    g, h = tl.program_id(0) * BLOCK_G + _along(2, BLOCK_G), _along(3, BLOCK_H)
    inside = (a < A) & (s < S) & (g < G) & (h < H)
    return ((a * S + s) * G + g) * H + h, inside


@triton.jit
def _channels(G, H, BLOCK_G: tl.constexpr, BLOCK_H: tl.constexpr):
    """Return the offsets in a row [C], and the mask of those that exist."""
    g, h = tl.program_id(0) * BLOCK_G + _along(2, BLOCK_G), _along(3, BLOCK_H)
    return g * H + h, (g < G) & (h < H)


@triton.jit
def _gather(v, over: tl.constexpr):
    """Sum over the members of every block; values outside the mask are 0."""
    if CHANNELS & over:
        v = tl.sum(v, 3, keep_dims=True)
    if SAMPLES & over:
        v = tl.sum(v, 1, keep_dims=True)
    return v


@triton.jit
def _count(over: tl.constexpr, S, H):
    """Return the number of members of a block."""
    count = 1.0
    if CHANNELS & over:
        count *= H
    if SAMPLES & over:
        count *= S
    return count


@triton.jit
def _pool(mean, variance, inside, members, over: tl.constexpr):
    """Compute the moments of every block by the law of total variance.

    The mean of the deviations from the mean, its rounding error, is added to it.
    """
    of_block = _gather(mean, over) / members
    of_block += _gather(tl.where(inside, mean - of_block, 0.0), over) / members
    d = tl.where(inside, mean - of_block, 0.0)
    return of_block, _gather(variance + d * d, over) / members


@triton.jit
def _sum_over_samples(v):
    return tl.sum(tl.sum(v, 0, keep_dims=True), 1, keep_dims=True)


@triton.jit
def _weight(weights, k, K: tl.constexpr):
    """Load the mixing weight of pooling k; 1 if it is the only one."""
    weight = 1.0
    if K > 1:
        weight = tl.load(weights + k)
    return weight


@triton.jit
def forward(
    saved,
    gamma,
    beta,
    mean_weights,
    variance_weights,
    running_mean,
    running_variance,
    momentum,
    unbias,
    eps,
    A,
    S,
    G,
    H,
    K: tl.constexpr,
    poolings: tl.constexpr,
    follows: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Compute scale and shift from the mixed moments M, relative to the mean of the map, and V:

        scale = gamma / sqrt(V + eps)    shift = beta - M scale

    The weights of a mixture add up to 1, so that the mixed mean does not depend on the origin.

    ``saved`` are [N][C] tables: mean, variance, M, 1 / sqrt(V + eps), scale, shift; the first two are inputs.
    ``poolings`` has two bits for each pooling. Running statistics follow the average over the norm batches.
    """
    NC = A * S * G * H
    of_channels, mask = _channels(G, H, BLOCK_G, BLOCK_H)
    gammas = tl.load(gamma + of_channels, mask=mask, other=0.0)
    betas = tl.load(beta + of_channels, mask=mask, other=0.0)
    newest_mean = tl.zeros([1, 1, BLOCK_G, BLOCK_H], tl.float32)
    newest_variance = tl.zeros([1, 1, BLOCK_G, BLOCK_H], tl.float32)
    for a in range(0, A, BLOCK_A):
        at, inside = _members(a, A, S, G, H, BLOCK_A, BLOCK_S, BLOCK_G, BLOCK_H)
        mean, variance = _load(saved, at, inside), _load(saved + NC, at, inside)
        mixed_mean = tl.zeros([BLOCK_A, BLOCK_S, BLOCK_G, BLOCK_H], tl.float32)
        mixed_variance = tl.zeros([BLOCK_A, BLOCK_S, BLOCK_G, BLOCK_H], tl.float32)
        for k in tl.static_range(K):
            members = _count(poolings >> (2 * k), S, H)
            of_block, spread = _pool(mean, variance, inside, members, poolings >> (2 * k))
            mixed_mean += _weight(mean_weights, k, K) * (of_block - mean)
            mixed_variance += _weight(variance_weights, k, K) * spread
            if follows and k == K - 1:
                newest_mean += _sum_over_samples(of_block)
                newest_variance += _sum_over_samples(spread)
        rstd = tl.rsqrt(mixed_variance + eps)
        scale = gammas * rstd
        tl.store(saved + 2 * NC + at, mixed_mean, mask=inside)
        tl.store(saved + 3 * NC + at, rstd, mask=inside)
        tl.store(saved + 4 * NC + at, scale, mask=inside)
        tl.store(saved + 5 * NC + at, betas - mixed_mean * scale, mask=inside)
    if follows:
        batches = A * S / _count(poolings >> (2 * K - 2), S, H)
        was = tl.load(running_mean + of_channels, mask=mask, other=0.0)
        tl.store(running_mean + of_channels, was + momentum * (newest_mean / batches - was), mask=mask)
        was = tl.load(running_variance + of_channels, mask=mask, other=0.0)
        newest = newest_variance / batches * unbias
        tl.store(running_variance + of_channels, was + momentum * (newest - was), mask=mask)


@triton.jit
def backward(
    saved,
    work,
    mean_weights,
    variance_weights,
    dgamma,
    dbeta,
    dmean_weights,
    dvariance_weights,
    bessel,
    P,
    A,
    S,
    G,
    H,
    K: tl.constexpr,
    poolings: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Compute slope and offset of dx and the gradients of parameters.

    With g = dy behind the floor, u the means of the maps, A = sum g (x - u) and B = sum g over the
    positions, S = A - M B, and M relative to u:

        dbeta = sum_n B    dgamma = sum_n S / sqrt(V + eps)    dM = -scale B    dV = -S scale / (V + eps) / 2
        pooling k, block b of m members: dM_b = w_k sum dM, dV_b = w_k sum dV, and for each member
        du += (dM_b + 2 dV_b (u - M_b)) / m    dv += dV_b / m
        dx = g scale + (x - u) slope + offset    slope = 2 bessel dv / P    offset = du / P

    ``work`` are [N][C] tables: A, B, slope, offset; the first two are inputs.
    """
    NC = A * S * G * H
    of_channels, mask = _channels(G, H, BLOCK_G, BLOCK_H)
    of_gamma = tl.zeros([1, 1, BLOCK_G, BLOCK_H], tl.float32)
    of_beta = tl.zeros([1, 1, BLOCK_G, BLOCK_H], tl.float32)
    ks = tl.arange(0, BLOCK_K)
    of_mean_weights = tl.zeros([BLOCK_K], tl.float32)
    of_variance_weights = tl.zeros([BLOCK_K], tl.float32)
    for a in range(0, A, BLOCK_A):
        at, inside = _members(a, A, S, G, H, BLOCK_A, BLOCK_S, BLOCK_G, BLOCK_H)
        rstd, scale = _load(saved + 3 * NC, at, inside), _load(saved + 4 * NC, at, inside)
        B = _load(work + NC, at, inside)
        normalized = (_load(work, at, inside) - _load(saved + 2 * NC, at, inside) * B) * rstd
        of_beta += _sum_over_samples(B)
        of_gamma += _sum_over_samples(normalized)
        dM, dV = -scale * B, -0.5 * normalized * scale * rstd
        mean, variance = _load(saved, at, inside), _load(saved + NC, at, inside)
        du = tl.zeros([BLOCK_A, BLOCK_S, BLOCK_G, BLOCK_H], tl.float32)
        dv = tl.zeros([BLOCK_A, BLOCK_S, BLOCK_G, BLOCK_H], tl.float32)
        for k in tl.static_range(K):
            members = _count(poolings >> (2 * k), S, H)
            of_block, spread = _pool(mean, variance, inside, members, poolings >> (2 * k))
            dM_b, dV_b = _gather(dM, poolings >> (2 * k)), _gather(dV, poolings >> (2 * k))
            if K > 1:
                of_mean_weights += tl.where(ks == k, tl.sum(dM * tl.where(inside, of_block - mean, 0.0)), 0.0)
                of_variance_weights += tl.where(ks == k, tl.sum(dV_b * spread), 0.0)
            dM_b *= _weight(mean_weights, k, K) / members
            dV_b *= _weight(variance_weights, k, K) / members
            du += dM_b + 2.0 * dV_b * (mean - of_block)
            dv += dV_b
        tl.store(work + 2 * NC + at, dv * (2.0 * bessel / P), mask=inside)
        tl.store(work + 3 * NC + at, du / P, mask=inside)
    tl.store(dgamma + of_channels, of_gamma, mask=mask)
    tl.store(dbeta + of_channels, of_beta, mask=mask)
    if K > 1:
        tl.store(dmean_weights + ks, of_mean_weights, mask=ks < K)
        tl.store(dvariance_weights + ks, of_variance_weights, mask=ks < K)
