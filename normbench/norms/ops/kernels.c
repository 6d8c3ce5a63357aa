/* The passes of a moment norm over channels-last maps: x[n][p][c], N samples, P positions, C channels.
 * Compiled once for float and once (-DBF16) for bfloat16; every sum is kept in float. */
#include "lanes.h"

INLINE V rounded(V v) { return widened(narrowed(v)); } /* as if it had been stored */

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
    const V first = load(x, lanes); /* measured from here, the mean of a constant is exact */
    I p = 0;
    for (; p + UNROLL <= P; p += UNROLL)
        for (int u = 0; u < UNROLL; u++) sum[u] += load(x + (p + u) * C, lanes) - first;
    for (; p < P; p++) sum[0] += load(x + p * C, lanes) - first;
    const V m = first + total(sum) / (float)P;
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

/* What is made of every value of a map: f(x) scale + shift, and then, in the same pass, a shortcut may be added to it and
 * what is below a floor (of a ReLU 0) be raised to that.
 *   IDENTITY  f = x - origin, where there is one: what lies far from 0 loses nothing when it is multiplied
 *   SWISH     f = x / (1 + exp(-v x))    inner: v
 *   GATED     f = x / max(a, v x + b)    inner: v, a, b; in forward and backward a is the deviation of the block and b that
 *             of the map, which are thus divided by already */
enum { IDENTITY, SWISH, GATED };
enum { PLAIN, ADD, FLOOR, ADD_FLOOR };
enum { INNER = 3 };

INLINE V all(float number) { return (V){0} + number; }
/* c + a b, in one instruction where there is one: left to the compiler, it would depend on what stands around it. */
#if defined(__AVX512F__)
INLINE V plus_product(V c, V a, V b) { return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
#elif defined(__AVX2__) && defined(__FMA__)
INLINE V plus_product(V c, V a, V b) { return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
#else
INLINE V plus_product(V c, V a, V b) { return c + a * b; }
#endif
#if defined(__AVX512F__) /* a NaN among v stays one */
INLINE V raised(V v, V floor) { return (V)_mm512_max_ps((__m512)floor, (__m512)v); }
INLINE V lowered(V v, V ceiling) { return (V)_mm512_min_ps((__m512)ceiling, (__m512)v); }
INLINE V reciprocal(V v) { /* of ordinary numbers: a step of Newton's from 14 bits */
    const V guess = (V)_mm512_rcp14_ps((__m512)v);
    return guess * (2.0f - v * guess);
}
#else
INLINE V chosen(U where, V one, V other) { return (V)(((U)one & where) | ((U)other & ~where)); }
INLINE V raised(V v, V floor) { return chosen((U)(v < floor), floor, v); }
INLINE V lowered(V v, V ceiling) { return chosen((U)(v > ceiling), ceiling, v); }
INLINE V reciprocal(V v) { return 1.0f / v; }
#endif
INLINE V above(V g, V y, V floor) { return (V)((U)g & ~(U)(y <= floor)); } /* g where y was not raised, */
INLINE V below(V g, V y, V floor) { return (V)((U)g & (U)(y <= floor)); }   /* and where it was, */
INLINE V poisoned(V v, V by) { return (V)((U)v | (U)(by != by)); }          /* and v, or NaN where the other is */

/* 2^x, to 2 units in the last place for |x| <= 126, and as there beyond: 2^n (1 + r ln 2 + ...) with x = n + r. */
INLINE V power_of_two(V x) {
    x = raised(lowered(x, all(126.0f)), all(-126.0f));
    const V shifted = x + 12582912.0f, r = x - (shifted - 12582912.0f); /* 1.5 * 2^23: whole numbers only */
    V p = r * 1.535336188e-4f + 1.339887440e-3f;
    p = p * r + 9.618437357e-3f;
    p = p * r + 5.550332471e-2f;
    p = p * r + 2.402264791e-1f;
    p = p * r + 6.931472028e-1f;
    p = p * r + 1.0f;
    return (V)((U)p + ((U)shifted << 23)); /* the last bits of `shifted` are n */
}
INLINE V exponential_of_minus(V x) { return power_of_two(x * -1.44269504f); }

/* f, its derivative, and those with respect to its inner numbers. */
typedef struct { V f, df, inner[INNER]; } Value;
INLINE V value(const int of, V x, V origin, const V *inner) {
    if (of == SWISH) return x * reciprocal(1.0f + exponential_of_minus(inner[0] * x));
    if (of == GATED) return x / raised(inner[0] * x + inner[2], inner[1]);
    return x - origin;
}
INLINE Value differentiated(const int of, V x, V origin, const V *inner) {
    Value d = {x - origin, all(1.0f), {x, x, x}};
    if (of == SWISH) {
        const V v = inner[0] * x, e = exponential_of_minus(v), s = reciprocal(1.0f + e), rest = e * s; /* 1 - s */
        d.f = x * s;
        d.df = s + v * (s * rest);
        d.inner[0] = d.f * (x * rest);
    }
    if (of == GATED) {
        const V v = inner[0] * x, gate = v + inner[2], one = 1.0f / raised(gate, inner[1]);
        d.f = x * one;
        const V slope = -d.f * one, through = above(slope, gate, inner[1]);
        d.df = above(inner[2] * one * one, gate, inner[1]) + below(one, gate, inner[1]); /* of gate - v x only b is left */
        d.inner[0] = x * through;
        d.inner[1] = below(slope, gate, inner[1]);
        d.inner[2] = through;
    }
    return d;
}

/* The numbers of one block of channels of one sample; `origin`, `floor` and `inner` may be missing. */
typedef struct { V scale, shift, origin, floor, inner[INNER]; } Numbers;
INLINE Numbers numbers(Row scale, Row shift, Row origin, Row floor, Row inner, I table, const int of, const int lanes) {
    Numbers k = {row(scale, lanes), row(shift, lanes), {0}, {0}, {{0}, {0}, {0}}};
    if (origin) k.origin = row(origin, lanes);
    if (floor) {
        k.floor = rounded(row(floor, lanes));
        k.shift = poisoned(k.shift, k.floor); /* a maximum with NaN is one */
    }
    for (int i = 0; i < (of == IDENTITY ? 0 : of == SWISH ? 1 : INNER); i++) k.inner[i] = row(inner + i * table, lanes);
    if (of == GATED) k.inner[2] = poisoned(k.inner[2], k.inner[1]);
    return k;
}
#define NUMBERS(shift, lanes) \
    numbers(scale + k, (shift) + k, origin ? origin + k : origin, floor ? floor + c : floor, inner ? inner + k : inner, N * C, \
            of, lanes)

INLINE void multiply_add_block(In x, const Numbers k, In shortcut, T *restrict y, I P, I C, const int of, const int then,
                               const int lanes) {
    for (I p = 0; p < P; p++) {
        V v = value(of, load(x + p * C, lanes), k.origin, k.inner) * k.scale + k.shift;
        if (then & ADD) v += load(shortcut + p * C, lanes);
        store(y + p * C, then & FLOOR ? raised(v, k.floor) : v, lanes);
    }
}

/* Calls BLOCK(of, then, lanes) for all blocks, with constants. */
#define EACH(of, then) EACH_BLOCK(BLOCK(of, then, LANES), BLOCK(of, then, lanes))
#define EACH_KIND                                  \
    if (of == SWISH) EACH(SWISH, PLAIN)            \
    else if (of == GATED) EACH(GATED, PLAIN)       \
    else if (then == PLAIN) EACH(IDENTITY, PLAIN)  \
    else if (then == FLOOR) EACH(IDENTITY, FLOOR)

void multiply_add(In x, Row scale, Row shift, Row origin, Row inner, In shortcut, Row floor, T *restrict y, I N, I P, I C,
                  int of, int then) {
#define BLOCK(of, then, lanes) \
    multiply_add_block(x + at, NUMBERS(shift, lanes), shortcut + at, y + at, P, C, of, then, lanes)
    EACH_KIND
    else if (then == ADD) EACH(IDENTITY, ADD)
    else EACH(IDENTITY, ADD_FLOOR)
#undef BLOCK
}

/* The gradients of scale, shift, the inner numbers and the floor, for every map, with g the part of dy that was not
 * raised, which ADD_FLOOR leaves as well. */
typedef struct { float *scale, *shift, *inner, *floor; } Gradients;
INLINE void sums_block(In x, In dy, In y, const Numbers k, T *restrict g_out, const Gradients to, I table, I P, I C,
                       const int of, const int then, const int lanes) {
    enum { EACH = 3 + INNER };
    V sums[EACH][UNROLL] = {{{0}}};
#define TAKE(p, u)                                                               \
    {                                                                            \
        V g = load(dy + (p) * C, lanes);                                         \
        if (then & FLOOR) {                                                      \
            const V end = load(y + (p) * C, lanes);                              \
            if (to.floor) sums[2][u] += below(g, end, k.floor);                  \
            g = above(g, end, k.floor);                                          \
        }                                                                        \
        if (then == ADD_FLOOR) store(g_out + (p) * C, g, lanes);                 \
        const Value d = differentiated(of, load(x + (p) * C, lanes), k.origin, k.inner); \
        sums[0][u] = plus_product(sums[0][u], g, d.f);                           \
        sums[1][u] += g;                                                         \
        if (of != IDENTITY) sums[3][u] += g * d.inner[0];                        \
        if (of == GATED) sums[4][u] += g * d.inner[1], sums[5][u] += g * d.inner[2]; \
    }
    I p = 0;
    for (; p + UNROLL <= P; p += UNROLL) {
        TAKE(p, 0) TAKE(p + 1, 1) TAKE(p + 2, 2) TAKE(p + 3, 3)
    }
    for (; p < P; p++) TAKE(p, 0)
#undef TAKE
    to_row(to.scale, total(sums[0]), lanes);
    to_row(to.shift, total(sums[1]), lanes);
    if (to.floor) to_row(to.floor, total(sums[2]), lanes);
    for (int i = 0; i < (of == IDENTITY ? 0 : of == SWISH ? 1 : INNER); i++)
        to_row(to.inner + i * table, total(sums[3 + i]) * k.scale, lanes);
}

void sums(In x, In dy, In y, Row scale, Row origin, Row inner, Row floor, T *restrict g, float *restrict dscale,
          float *restrict dshift, float *restrict dinner, float *restrict dfloor, I N, I P, I C, int of, int then) {
    if (then == ADD) then = PLAIN;
#define SUMS(of, then, raised, lanes)                                                                \
    sums_block(x + at, dy + at, y + at, NUMBERS(scale, lanes), g + at,                                 \
               (Gradients){dscale + k, dshift + k, dinner ? dinner + k : 0, raised ? dfloor + k : 0}, \
               N * C, P, C, of, then, lanes)
#define BLOCK(of, then, lanes) SUMS(of, then, 1, lanes)
    if (dfloor && then == FLOOR) EACH(IDENTITY, FLOOR)
    else if (dfloor) EACH(IDENTITY, ADD_FLOOR)
#undef BLOCK
#define BLOCK(of, then, lanes) SUMS(of, then, 0, lanes)
    else EACH_KIND
    else EACH(IDENTITY, ADD_FLOOR)
#undef BLOCK
#undef SUMS
}

/* dx = g scale f' + (x - origin) slope + offset, with g as above; slope and offset may be missing, and x is
 * not read then unless f is another than x. */
INLINE void input_gradient_block(In dy, In y, const Numbers k, In x, Row slope, Row offset, T *restrict dx, I P, I C,
                                 const int of, const int then, const int lanes) {
    V b = {0}, c = {0};
    if (slope) b = row(slope, lanes), c = row(offset, lanes);
    for (I p = 0; p < P; p++) {
        V g = load(dy + p * C, lanes);
        if (then & FLOOR) g = above(g, load(y + p * C, lanes), k.floor);
        V rest = {0};
        if (slope || of != IDENTITY) {
            const V v = load(x + p * C, lanes);
            if (slope) rest = (v - k.origin) * b + c;
            if (of != IDENTITY) g *= differentiated(of, v, k.origin, k.inner).df;
        }
        store(dx + p * C, g * k.scale + rest, lanes);
    }
}

void input_gradient(In dy, In y, Row scale, Row origin, Row inner, Row floor, In x, Row slope, Row offset, T *restrict dx, I N,
                    I P, I C, int of, int then) {
    if (then == ADD) then = PLAIN;
#define BLOCK(of, then, lanes)                                                                      \
    input_gradient_block(dy + at, y + at, NUMBERS(scale, lanes), x + at, slope ? slope + k : 0,        \
                         slope ? offset + k : 0, dx + at, P, C, of, then, lanes)
    EACH_KIND
#undef BLOCK
}

/* From the moments to scale and shift and back: all of it on [N][C] numbers.
 * A pooling shares statistics over samples x channels; its moments are one number a block, [N / samples][across]. */
typedef struct { I samples, channels, across, blocks; float members; } Pooling;

static Pooling pooling(I N, I C, I samples, I channels) {
    const I across = C / channels;
    return (Pooling){samples, channels, across, N / samples * across, (float)(samples * channels)};
}

/* Runs the rest of its arguments for every number at = n C + c of a table [N][C], with its block b: without a division for
 * each, and in vectors, as no number is written that another one reads. */
#define PARALLEL _Pragma("GCC ivdep")
#define EACH_MEMBER(k, ...)                                                                        \
    for (I n = 0; n < N; n++) {                                                                    \
        const I start = n * C, block = n / (k).samples * (k).across, single = (k).channels == 1 ? C : 0; \
        PARALLEL for (I c = 0; c < single; c++) {                                                  \
            const I at = start + c, b = block + c;                                                 \
            __VA_ARGS__                                                                            \
        }                                                                                          \
        for (I b = block, g = single; g < C; b++, g += (k).channels)                               \
            PARALLEL for (I c = g; c < g + (k).channels; c++) {                                    \
                const I at = start + c;                                                            \
                __VA_ARGS__                                                                        \
            }                                                                                      \
    }

/* What to compute: K poolings; what multiplies a variance over the positions; statistics by means of squares instead of
 * variances; whether means are subtracted; whether running statistics correct the result; the function and what follows it. */
typedef struct { I K; const I *samples, *channels; float bessel, eps; int squares, centred, corrected, of, then; } Method;

/* Running statistics, [C] each; the bounds of a correction by them: the least and the most of r, and the most of d; whether
 * they follow the newest. */
typedef struct { float *mean, *variance, momentum, unbias; const float *bounds; int follows; } Running;

/* The last `window` variances of every block, and their gradients, [window][blocks] each, newest last; whether averages over
 * them take their place. */
typedef struct { float *variances, *gradients; I window; int averages; } Past;

/* What forward leaves for backward: eleven [N][C] tables (inner is three), then, for every pooling, room for N C means and
 * N C variances. */
typedef struct { float *mean, *variance, *mixed_mean, *rstd, *scale, *shift, *r, *d, *inner, *pooled; } Saved;

static Saved saved_at(float *saved, I NC) {
    return (Saved){saved,          saved + NC,     saved + 2 * NC, saved + 3 * NC, saved + 4 * NC,
                   saved + 5 * NC, saved + 6 * NC, saved + 7 * NC, saved + 8 * NC, saved + 11 * NC};
}

static inline float weight(const float *weights, I k) { return weights ? weights[k] : 1.0f; }

/* The sum over the members of every block. */
static void gather(const float *from, float *to, Pooling k, I N, I C) {
    memset(to, 0, sizeof(float) * k.blocks);
    if (k.channels == 1) {
        EACH_MEMBER(k, to[b] += from[at];)
        return;
    }
    for (I n = 0; n < N; n++)
        for (I g = 0; g < k.across; g++) {
            const float *member = from + n * C + g * k.channels, *end = member + k.channels;
            V sums = {0};
            for (; member + LANES <= end; member += LANES) sums += row(member, LANES);
            float sum = 0;
            for (; member < end; member++) sum += *member;
            for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
            to[n / k.samples * k.across + g] += sum;
        }
}

/* The moments of every block: its variance is the mean of its members' variances plus the variance of their means.
 * What rounding leaves of the deviations from the first mean is added to it, which makes that of equal members exact. */
static void pool(Saved s, Pooling k, float *mean, float *variance, float *spread, I N, I C) {
    float *rest = variance; /* free until the end */
    gather(s.mean, mean, k, N, C);
    for (I b = 0; b < k.blocks; b++) mean[b] /= k.members;
    EACH_MEMBER(k, spread[at] = s.mean[at] - mean[b];)
    gather(spread, rest, k, N, C);
    for (I b = 0; b < k.blocks; b++) mean[b] += rest[b] / k.members;
    EACH_MEMBER(k, const float d = s.mean[at] - mean[b]; spread[at] = s.variance[at] + d * d;)
    gather(spread, variance, k, N, C);
    for (I b = 0; b < k.blocks; b++) variance[b] /= k.members;
}

static inline float within(float v, float least, float most) { return v < least ? least : v > most ? most : v; }

/* r = deviation / running deviation and d = (mean - running mean) / running deviation of every block, within the bounds;
 * d is 0 where no running mean is kept. */
static void correct(Saved s, Pooling k, const float *mean, const float *variance, const Running *to, float eps, I N, I C) {
    const float *bounds = to->bounds;
    EACH_MEMBER(k, {
        const float deviation = sqrtf(to->variance[c] + eps);
        s.r[at] = within(sqrtf(variance[b] + eps) / deviation, bounds[0], bounds[1]);
        s.d[at] = to->mean ? within((mean[b] - to->mean[c]) / deviation, -bounds[2], bounds[2]) : 0;
    })
}

/* Running statistics move towards the average over the norm batches. */
static void follow(const Running *to, const float *mean, const float *variance, I batches, I C) {
    for (I c = 0; c < C; c++) {
        float m = 0, v = 0;
        for (I b = 0; b < batches; b++) m += mean[b * C + c], v += variance[b * C + c];
        if (to->mean) to->mean[c] += to->momentum * (m / (float)batches - to->mean[c]);
        to->variance[c] += to->momentum * (v / (float)batches * to->unbias - to->variance[c]);
    }
}

/* The newest go to the end of the past, and are replaced by averages over it if so asked. */
static void average(float *past, float *newest, I window, I count, int averages) {
    float *last = past + (window - 1) * count;
    memmove(past, past + count, sizeof(float) * (window - 1) * count);
    memcpy(last, newest, sizeof(float) * count);
    if (!averages) return;
    for (I w = 0; w < window - 1; w++)
        for (I i = 0; i < count; i++) newest[i] += past[w * count + i];
    for (I i = 0; i < count; i++) newest[i] /= (float)window;
}

/* What f measures x from, if it does: the means of the maps. */
static inline const float *origin_of(const Method *method, Saved s) {
    return method->centred && method->of == IDENTITY ? s.mean : 0;
}

/* With M and V the mixed moments, M from the origin: scale = gamma r / sqrt(V + eps), shift = beta + gamma d - M scale. The
 * weights of a mixture add up to 1, so that it does not matter where means are measured from. */
void forward(In x, const float *gamma, const float *beta, const float *mean_weights, const float *variance_weights,
             const float *inner, const float *floor, In shortcut, T *restrict y, float *saved, I N, I P, I C,
             const Method *method, const Running *running, const Past *past) {
    const I NC = N * C;
    const Saved s = saved_at(saved, NC);
    const float *origin = origin_of(method, s);
    if (!shortcut) shortcut = x; /* not read then, but pointed into */
    moments(x, s.mean, s.variance, N, P, C);
    if (method->bessel != 1.0f)
        for (I i = 0; i < NC; i++) s.variance[i] *= method->bessel;
    memset(s.mixed_mean, 0, sizeof(float) * NC);
    memset(s.rstd, 0, sizeof(float) * NC); /* holds the mixed variance first */
    for (I i = 0; i < method->K; i++) {
        const Pooling k = pooling(N, C, method->samples[i], method->channels[i]);
        float *mean = s.pooled + 2 * i * NC, *variance = mean + NC;
        pool(s, k, mean, variance, s.scale, N, C); /* scale is free until the end */
        if (method->squares)
            for (I b = 0; b < k.blocks; b++) variance[b] += mean[b] * mean[b];
        if (past) average(past->variances, variance, past->window, k.blocks, past->averages);
        const float wm = weight(mean_weights, i), wv = weight(variance_weights, i);
        EACH_MEMBER(k, {
            s.mixed_mean[at] += wm * (origin ? mean[b] - origin[at] : mean[b]);
            s.rstd[at] += wv * variance[b];
        })
        if (i < method->K - 1 || !running) continue;
        if (method->corrected) correct(s, k, mean, variance, running, method->eps, N, C);
        if (running->follows) follow(running, mean, variance, N / k.samples, C);
    }
    const int corrected = method->corrected, centred = method->centred;
    const float eps = method->eps;
    for (I n = 0; n < N; n++)
        PARALLEL for (I c = 0; c < C; c++) {
            const I i = n * C + c;
            s.rstd[i] = 1.0f / sqrtf(s.rstd[i] + eps);
            s.scale[i] = gamma[c] * s.rstd[i];
            s.shift[i] = beta[c];
            if (corrected) {
                s.scale[i] *= s.r[i];
                s.shift[i] += gamma[c] * s.d[i];
            }
            if (centred) s.shift[i] -= s.mixed_mean[i] * s.scale[i];
        }
    for (I i = 0; inner && i < NC; i++) {
        s.inner[i] = inner[i % C];
        if (method->of == GATED) {
            s.scale[i] = gamma[i % C];
            s.inner[NC + i] = 1.0f / s.rstd[i];
            s.inner[2 * NC + i] = sqrtf(s.variance[i] + eps);
        }
    }
    multiply_add(x, s.scale, s.shift, origin, inner ? s.inner : 0, shortcut, floor, y, N, P, C, method->of, method->then);
}

/* The gradients of the parameters, [C] each. */
typedef struct { float *gamma, *beta, *mean_weights, *variance_weights, *inner, *floor; } Parameters;

/* With g = dy behind the floor, A = sum g f(x) and B = sum g over the positions, S = A - M B, with f and M from the origin
 * (of a method that subtracts no mean A, and dM = 0):
 *   dbeta = sum_n B    dgamma = sum_n (S r / sqrt(V + eps) + d B)    dM = -scale B    dV = -S scale / (V + eps) / 2
 *   pooling k, block b of m members: dM_b = w_k sum dM, dV_b = w_k sum dV, and for each member with mean u
 *   du += (dM_b + 2 dV_b (u - M_b)) / m, with squares in place of variances (dM_b + 2 dV_b u) / m    dv += dV_b / m
 *   dx = g scale f'(x) + (x - u) slope + offset    slope = 2 bessel dv / P    offset = du / P
 * of GATED, with a = sqrt(V + eps) and b = sqrt(v + eps): dgamma = sum_n A, dV = da / (2 a) and dv = db / (2 b) more
 * of averages over the past: what a block hands on to the past is z dL/dz = -2 dV_b (V_b + eps) / (m P), with z its values
 * before gamma, and what it passes on is that average, likewise
 * `work` holds ten [N][C] tables. */
void backward(In dy, In x, In y, const float *mean_weights, const float *variance_weights, const float *floor,
              float *saved, T *restrict dx, T *restrict dshortcut, float *work, I N, I P, I C,
              const Method *method, const Past *past, const Parameters *to) {
    const I NC = N * C;
    const Saved s = saved_at(saved, NC);
    const int of = method->of, then = method->then;
    const float *inner = of == IDENTITY ? 0 : s.inner, *origin = origin_of(method, s);
    float *dM = work, *dV = dM + NC, *du = dV + NC, *dv = du + NC, *dMb = dv + NC, *dVb = dMb + NC;
    float *dinner = inner ? dVb + NC : 0, *dfloor = floor ? dVb + 4 * NC : 0;
    /* A and B, replaced in place below */
    sums(x, dy, y, s.scale, origin, inner, floor, dshortcut ? dshortcut : dx, dV, dM, dinner, dfloor, N, P, C, of, then);
    memset(to->gamma, 0, sizeof(float) * C);
    memset(to->beta, 0, sizeof(float) * C);
    if (inner) memset(to->inner, 0, sizeof(float) * C);
    if (floor) memset(to->floor, 0, sizeof(float) * C);
    const int corrected = method->corrected, centred = method->centred;
    float *dgamma = to->gamma, *dbeta = to->beta;
    for (I n = 0; n < N; n++) {
        PARALLEL for (I c = 0; c < C; c++) {
            const I i = n * C + c;
            const float B = dM[i], S = centred ? dV[i] - s.mixed_mean[i] * B : dV[i];
            dbeta[c] += B;
            dgamma[c] += of == GATED ? S : corrected ? S * s.rstd[i] * s.r[i] + s.d[i] * B : S * s.rstd[i];
            dM[i] = centred ? -s.scale[i] * B : 0;
            dV[i] = -0.5f * S * s.scale[i] * s.rstd[i] * s.rstd[i];
            du[i] = dv[i] = 0;
        }
        for (I c = 0; inner && c < C; c++) {
            const I i = n * C + c;
            if (of == GATED) {
                dV[i] = 0.5f * dinner[NC + i] * s.rstd[i];
                dv[i] = 0.5f * dinner[2 * NC + i] / s.inner[2 * NC + i];
            }
            to->inner[c] += dinner[i];
        }
        for (I c = 0; floor && c < C; c++) to->floor[c] += dfloor[n * C + c];
    }
    for (I i = 0; i < method->K; i++) {
        const Pooling k = pooling(N, C, method->samples[i], method->channels[i]);
        const float *mean = s.pooled + 2 * i * NC, *variance = mean + NC;
        gather(dM, dMb, k, N, C);
        gather(dV, dVb, k, N, C);
        if (past) {
            const float unit = -0.5f * k.members * (float)P;
            for (I b = 0; b < k.blocks; b++) dVb[b] *= (variance[b] + method->eps) / unit;
            average(past->gradients, dVb, past->window, k.blocks, past->averages);
            for (I b = 0; b < k.blocks; b++) dVb[b] *= unit / (variance[b] + method->eps);
        }
        const float wm = weight(mean_weights, i) / k.members, wv = weight(variance_weights, i) / k.members;
        double dwm = 0, dwv = 0;
        for (I b = 0; b < k.blocks; b++) {
            dwv += (double)dVb[b] * variance[b];
            dMb[b] *= wm;
            dVb[b] *= wv;
        }
        const int squares = method->squares;
        EACH_MEMBER(k, {
            du[at] += dMb[b] + 2.0f * dVb[b] * (squares ? s.mean[at] : s.mean[at] - mean[b]);
            dv[at] += dVb[b];
        })
        if (mean_weights) {
            EACH_MEMBER(k, dwm += (double)dM[at] * (origin ? mean[b] - origin[at] : mean[b]);)
            to->mean_weights[i] = (float)dwm;
            to->variance_weights[i] = (float)dwv;
        }
    }
    for (I i = 0; i < NC; i++) {
        dv[i] *= 2.0f * method->bessel / (float)P;
        du[i] /= (float)P;
    }
    const int behind = then == ADD_FLOOR; /* dshortcut holds what the floor let through */
    input_gradient(behind ? dshortcut : dy, y, s.scale, s.mean, inner, floor, x, dv, du, dx, N, P, C, of,
                   behind ? PLAIN : then);
}
