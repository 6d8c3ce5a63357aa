/* The passes of a moment norm over channels-last maps: x[n][p][c], N samples, P positions, C channels.
 * Compiled once for float and once (-DBF16) for bfloat16; every sum is kept in float. */
#include "lanes.h"

typedef const T *restrict In;
typedef const float *restrict Row;

/* Every function below is written for `lanes` channels at a time and made twice: with the constant LANES, which the compiler
 * turns into vector instructions, and with what is left over. */
#define EACH_BLOCK(call_whole, call_rest)                                \
    for (I n = 0; n < N; n++)                                         \
        for (I c = 0; c < C; c += LANES) {                            \
            const I at = n * P * C + c, k = n * C + c;                \
            if (C - c >= LANES) { call_whole; }                          \
            else { const int lanes = (int)(C - c); call_rest; }       \
        }

INLINE V total(const V *sums) { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }

INLINE void moments_block(In x, float *mean, float *variance, I P, I C, const int lanes) {
    V sum[UNROLL] = {{0}}, square[UNROLL] = {{0}};
    I p = 0;
    for (; p + UNROLL <= P; p += UNROLL)
        for (int u = 0; u < UNROLL; u++) sum[u] += load(x + (p + u) * C, lanes);
    for (; p < P; p++) sum[0] += load(x + p * C, lanes);
    const V m = total(sum) / (float)P;
    for (p = 0; p + UNROLL <= P; p += UNROLL)
        for (int u = 0; u < UNROLL; u++) {
            const V d = load(x + (p + u) * C, lanes) - m;
            square[u] += d * d;
        }
    for (; p < P; p++) {
        const V d = load(x + p * C, lanes) - m;
        square[0] += d * d;
    }
    to_row(mean, m, lanes);
    to_row(variance, total(square) / (float)P, lanes);
}

void moments(In x, float *restrict mean, float *restrict variance, I N, I P, I C) {
    EACH_BLOCK(moments_block(x + at, mean + k, variance + k, P, C, LANES),
               moments_block(x + at, mean + k, variance + k, P, C, lanes))
}

/* What follows the multiply-add in the same pass. */
enum { PLAIN, RELU, ADD_RELU };

INLINE V behind_relu(V g, V y) { return (V)((U)g & ~(U)(y <= 0)); } /* g where the ReLU that gave y let it through */
INLINE V relu(V v) { return (V)((U)v & ~(U)(v < 0)); }              /* a NaN stays one */

INLINE void multiply_add_block(In x, Row scale, Row shift, In shortcut, T *restrict y, I P, I C, const int then,
                               const int lanes) {
    const V a = row(scale, lanes), b = row(shift, lanes);
    for (I p = 0; p < P; p++) {
        V v = load(x + p * C, lanes) * a + b;
        if (then == ADD_RELU) v += load(shortcut + p * C, lanes);
        store(y + p * C, then == PLAIN ? v : relu(v), lanes);
    }
}

void multiply_add(In x, Row scale, Row shift, In shortcut, T *restrict y, I N, I P, I C, int then) {
#define BLOCK(then, lanes) multiply_add_block(x + at, scale + k, shift + k, shortcut + at, y + at, P, C, then, lanes)
    if (then == PLAIN) EACH_BLOCK(BLOCK(PLAIN, LANES), BLOCK(PLAIN, lanes))
    else if (then == RELU) EACH_BLOCK(BLOCK(RELU, LANES), BLOCK(RELU, lanes))
    else EACH_BLOCK(BLOCK(ADD_RELU, LANES), BLOCK(ADD_RELU, lanes))
#undef BLOCK
}

/* Sums of g * x and of g, where g is dy behind the ReLU that gave y; ADD_RELU also leaves g itself. Where there is
 * `more`, dy is its sum with that, rounded as if it had been stored. */
INLINE V rounded(V v) { return widened(narrowed(v)); }
INLINE void sums_block(In x, In dy, In more, In y, T *restrict g_out, float *restrict dscale, float *restrict dshift, I P,
                       I C, const int then, const int with_more, const int lanes) {
    V product[UNROLL] = {{0}}, plain[UNROLL] = {{0}};
#define ADD(p, u)                                                                \
    {                                                                            \
        V g = load(dy + (p) * C, lanes);                                         \
        if (with_more) g = rounded(g + load(more + (p) * C, lanes));             \
        if (then != PLAIN) g = behind_relu(g, load(y + (p) * C, lanes));         \
        if (then == ADD_RELU) store(g_out + (p) * C, g, lanes);                  \
        product[u] += g * load(x + (p) * C, lanes);                              \
        plain[u] += g;                                                           \
    }
    I p = 0;
    for (; p + UNROLL <= P; p += UNROLL) {
        ADD(p, 0) ADD(p + 1, 1) ADD(p + 2, 2) ADD(p + 3, 3)
    }
    for (; p < P; p++) ADD(p, 0)
#undef ADD
    to_row(dscale, total(product), lanes);
    to_row(dshift, total(plain), lanes);
}

void sums(In x, In dy, In more, In y, T *restrict g, float *restrict dscale, float *restrict dshift, I N, I P, I C, int then) {
#define BLOCK(then, with, lanes) \
    sums_block(x + at, dy + at, with ? more + at : dy, y + at, g + at, dscale + k, dshift + k, P, C, then, with, lanes)
    if (then == PLAIN) EACH_BLOCK(BLOCK(PLAIN, 0, LANES), BLOCK(PLAIN, 0, lanes))
    else if (then == RELU) EACH_BLOCK(BLOCK(RELU, 0, LANES), BLOCK(RELU, 0, lanes))
    else if (!more) EACH_BLOCK(BLOCK(ADD_RELU, 0, LANES), BLOCK(ADD_RELU, 0, lanes))
    else EACH_BLOCK(BLOCK(ADD_RELU, 1, LANES), BLOCK(ADD_RELU, 1, lanes))
#undef BLOCK
}

/* dx = g * scale + x * slope + offset, with g as above. */
INLINE void input_gradient_block(In dy, In y, Row scale, In x, Row slope, Row offset, T *restrict dx, I P, I C,
                                 const int then, const int lanes) {
    const V a = row(scale, lanes), b = row(slope, lanes), c = row(offset, lanes);
    for (I p = 0; p < P; p++) {
        V g = load(dy + p * C, lanes);
        if (then == RELU) g = behind_relu(g, load(y + p * C, lanes));
        store(dx + p * C, g * a + (load(x + p * C, lanes) * b + c), lanes);
    }
}

void input_gradient(In dy, In y, Row scale, In x, Row slope, Row offset, T *restrict dx, I N, I P, I C, int then) {
#define BLOCK(then, lanes) \
    input_gradient_block(dy + at, y + at, scale + k, x + at, slope + k, offset + k, dx + at, P, C, then, lanes)
    if (then == PLAIN) EACH_BLOCK(BLOCK(PLAIN, LANES), BLOCK(PLAIN, lanes))
    else EACH_BLOCK(BLOCK(RELU, LANES), BLOCK(RELU, lanes))
#undef BLOCK
}

/* From the moments to scale and shift and back: all of it on [N][C] numbers.
 * A pooling shares statistics over samples x channels; its moments are one number a block, [N / samples][across]. */
typedef struct { I samples, channels, across, blocks; float members; } Pooling;

static Pooling pooling(I N, I C, I samples, I channels) {
    const I across = C / channels;
    return (Pooling){samples, channels, across, N / samples * across, (float)(samples * channels)};
}

static inline I block(Pooling k, I n, I c) { return n / k.samples * k.across + c / k.channels; }

/* What forward leaves for backward: six [N][C] tables, then, for every pooling, room for N C means and N C variances. */
typedef struct { float *mean, *variance, *mixed_mean, *rstd, *scale, *shift, *pooled; } Saved;

static Saved saved_at(float *saved, I NC) {
    return (Saved){saved, saved + NC, saved + 2 * NC, saved + 3 * NC, saved + 4 * NC, saved + 5 * NC, saved + 6 * NC};
}

static inline float weight(const float *weights, I k) { return weights ? weights[k] : 1.0f; }

/* The sum over the members of every block. */
static void gather(const float *from, float *to, Pooling k, I N, I C) {
    memset(to, 0, sizeof(float) * k.blocks);
    for (I n = 0; n < N; n++)
        for (I g = 0; g < k.across; g++) {
            float sum = 0;
            for (I c = g * k.channels; c < (g + 1) * k.channels; c++) sum += from[n * C + c];
            to[n / k.samples * k.across + g] += sum;
        }
}

/* The moments of every block: its variance is the mean of its members' variances plus the variance of their means. */
static void pool(Saved s, Pooling k, float *mean, float *variance, float *spread, I N, I C) {
    gather(s.mean, mean, k, N, C);
    for (I b = 0; b < k.blocks; b++) mean[b] /= k.members;
    for (I n = 0; n < N; n++)
        for (I c = 0; c < C; c++) {
            float d = s.mean[n * C + c] - mean[block(k, n, c)];
            spread[n * C + c] = s.variance[n * C + c] + d * d;
        }
    gather(spread, variance, k, N, C);
    for (I b = 0; b < k.blocks; b++) variance[b] /= k.members;
}

/* Running statistics move towards the average over the norm batches. */
static void follow(float *running_mean, float *running_var, const float *mean, const float *variance, I batches, I C,
                   float momentum, float unbias) {
    for (I c = 0; c < C; c++) {
        float m = 0, v = 0;
        for (I b = 0; b < batches; b++) m += mean[b * C + c], v += variance[b * C + c];
        running_mean[c] += momentum * (m / (float)batches - running_mean[c]);
        running_var[c] += momentum * (v / (float)batches * unbias - running_var[c]);
    }
}

void forward(In x, const float *gamma, const float *beta, In shortcut, T *restrict y, float *saved, float *running_mean,
             float *running_var, int then, I N, I P, I C, I K, const I *samples, const I *channels,
             const float *mean_weights, const float *variance_weights, float bessel, float eps, float momentum,
             float unbias) {
    const I NC = N * C;
    Saved s = saved_at(saved, NC);
    if (!shortcut) shortcut = x; /* not read then, but pointed into */
    moments(x, s.mean, s.variance, N, P, C);
    if (bessel != 1.0f)
        for (I i = 0; i < NC; i++) s.variance[i] *= bessel;
    memset(s.mixed_mean, 0, sizeof(float) * NC);
    memset(s.rstd, 0, sizeof(float) * NC); /* holds the mixed variance first */
    for (I i = 0; i < K; i++) {
        const Pooling k = pooling(N, C, samples[i], channels[i]);
        float *mean = s.pooled + 2 * i * NC, *variance = mean + NC;
        pool(s, k, mean, variance, s.scale, N, C); /* scale is free until the end */
        const float wm = weight(mean_weights, i), wv = weight(variance_weights, i);
        for (I n = 0; n < N; n++)
            for (I c = 0; c < C; c++) {
                s.mixed_mean[n * C + c] += wm * mean[block(k, n, c)];
                s.rstd[n * C + c] += wv * variance[block(k, n, c)];
            }
        if (running_mean && i == K - 1) follow(running_mean, running_var, mean, variance, N / k.samples, C, momentum, unbias);
    }
    for (I i = 0; i < NC; i++) {
        s.rstd[i] = 1.0f / sqrtf(s.rstd[i] + eps);
        s.scale[i] = gamma[i % C] * s.rstd[i];
        s.shift[i] = beta[i % C] - s.mixed_mean[i] * s.scale[i];
    }
    multiply_add(x, s.scale, s.shift, shortcut, y, N, P, C, then);
}

/* With g = dy behind the ReLU, M and V the mixed moments, r = 1 / sqrt(V + eps), A = sum g x and B = sum g over the
 * positions:
 *   dbeta = sum_n B    dgamma = sum_n (A - M B) r    dM = -scale B    dV = -(A - M B) gamma r^3 / 2
 *   pooling k, block b of m members: dM_b = w_k sum dM, dV_b = w_k sum dV, and for each member with mean u
 *   du += (dM_b + 2 dV_b (u - M_b)) / m    dv += dV_b / m
 *   dx = g scale + x slope + offset    slope = 2 bessel dv / P    offset = du / P - slope u
 * `work` holds six [N][C] tables. With ADD_RELU, dy may come in two parts, to be added up. */
void backward(In dy, In more, In x, In y, const float *gamma, float *saved, T *restrict dx, T *restrict dshortcut, float *dgamma,
              float *dbeta, float *dmean_weights, float *dvariance_weights, float *work, int then, I N, I P, I C, I K,
              const I *samples, const I *channels, const float *mean_weights, const float *variance_weights,
              float bessel) {
    const I NC = N * C;
    Saved s = saved_at(saved, NC);
    float *dM = work, *dV = dM + NC, *du = dV + NC, *dv = du + NC, *dMb = dv + NC, *dVb = dMb + NC;
    /* A and B, replaced in place below */
    sums(x, dy, more, y, dshortcut ? dshortcut : dx, dV, dM, N, P, C, then);
    memset(dgamma, 0, sizeof(float) * C);
    memset(dbeta, 0, sizeof(float) * C);
    for (I n = 0; n < N; n++)
        for (I c = 0; c < C; c++) {
            const I i = n * C + c;
            const float B = dM[i], centred = dV[i] - s.mixed_mean[i] * B;
            dbeta[c] += B;
            dgamma[c] += centred * s.rstd[i];
            dM[i] = -s.scale[i] * B;
            dV[i] = -0.5f * centred * gamma[c] * s.rstd[i] * s.rstd[i] * s.rstd[i];
        }
    memset(du, 0, sizeof(float) * 2 * NC); /* and dv behind it */
    for (I i = 0; i < K; i++) {
        const Pooling k = pooling(N, C, samples[i], channels[i]);
        const float *mean = s.pooled + 2 * i * NC, *variance = mean + NC;
        gather(dM, dMb, k, N, C);
        gather(dV, dVb, k, N, C);
        const float wm = weight(mean_weights, i) / k.members, wv = weight(variance_weights, i) / k.members;
        double dwm = 0, dwv = 0;
        for (I b = 0; b < k.blocks; b++) {
            dwm += (double)dMb[b] * mean[b];
            dwv += (double)dVb[b] * variance[b];
            dMb[b] *= wm;
            dVb[b] *= wv;
        }
        if (mean_weights) {
            dmean_weights[i] = (float)dwm;
            dvariance_weights[i] = (float)dwv;
        }
        for (I n = 0; n < N; n++)
            for (I c = 0; c < C; c++) {
                const I b = block(k, n, c);
                du[n * C + c] += dMb[b] + 2.0f * dVb[b] * (s.mean[n * C + c] - mean[b]);
                dv[n * C + c] += dVb[b];
            }
    }
    for (I i = 0; i < NC; i++) {
        dv[i] *= 2.0f * bessel / (float)P;
        du[i] = du[i] / (float)P - dv[i] * s.mean[i];
    }
    if (then == ADD_RELU) input_gradient(dshortcut, y, s.scale, x, dv, du, dx, N, P, C, PLAIN);
    else input_gradient(dy, y, s.scale, x, dv, du, dx, N, P, C, then);
}
