/* Weights that a convolution computes from its parameters: v[r][i], R output channels, n values feeding each.
 *   u = (v - m) / unit    s = sum u^2    f = max(s / over + eps, smallest)    a = 1 / sqrt(f)    w = gain a u
 * with the mean m if centred (else 0), and a = 1 if not scaled. Where nothing but squares is under the root, the unit is a
 * power of two near the largest |v - m|, so that they do not leave the range of numbers, and else 1. A row is short and stays in the cache, so it is read
 * as often as is convenient. */
#include "lanes.h"

/* CALL(i, k, lanes) for every register of a row of n values: from i on, for the k-th of sums that are kept apart. */
#define ALONG_ROW(CALL)                                                                 \
    {                                                                                   \
        I i = 0;                                                                        \
        for (; i + UNROLL * LANES <= n; i += UNROLL * LANES)                            \
            for (int k = 0; k < UNROLL; k++) CALL(i + k * LANES, k, LANES)              \
        for (; i + LANES <= n; i += LANES) CALL(i, 0, LANES)                            \
        if (i < n) {                                                                    \
            const int lanes = (int)(n - i);                                             \
            CALL(i, 0, lanes)                                                           \
        }                                                                               \
    }

INLINE V deviations(const float *v, float m, float per_unit, const int lanes) { /* 0 beyond the lanes, as what is read is */
    const V u = (row(v, lanes) - m) * per_unit;
    return row((const float *)&u, lanes);
}

INLINE float sum_of_all(const V *sums) {
    V v = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) v[l] += v[l + half];
    return v[0];
}

static float mean(const float *v, I n) { /* measured from the first, which makes that of a constant exact */
    V sums[UNROLL] = {{0}};
#define ADD(i, k, lanes) sums[k] += deviations(v + (i), v[0], 1, lanes);
    ALONG_ROW(ADD)
#undef ADD
    return v[0] + sum_of_all(sums) / (float)n;
}

static float sum_of_squares(const float *v, float m, float per_unit, I n) {
    V sums[UNROLL] = {{0}};
#define ADD(i, k, lanes)                                     \
    {                                                        \
        const V u = deviations(v + (i), m, per_unit, lanes); \
        sums[k] += u * u;                                    \
    }
    ALONG_ROW(ADD)
#undef ADD
    return sum_of_all(sums);
}

/* One over the unit; 1 for a row of zeros and where a number is not finite. */
static float one_per_unit(const float *v, float m, I n) {
    float most = 0;
    int exponent;
    for (I i = 0; i < n; i++) most = fabsf(v[i] - m) > most ? fabsf(v[i] - m) : most;
    if (most == 0 || most > 3e38f) return 1;
    frexpf(most, &exponent);
    return ldexpf(1, -(exponent > -120 ? exponent : -120));
}

/* What forward leaves for backward, a number a row each; of the slope see there. */
typedef struct { float *m, *a, *slope, *per_unit; } Saved;

static Saved saved_at(float *saved, I R) { return (Saved){saved, saved + R, saved + 2 * R, saved + 3 * R}; }

void weights(const float *all, const float *gain, T *restrict to, float *saved, I R, I n, int centred, int scaled, float over,
             float eps, float smallest) {
    const Saved s = saved_at(saved, R);
    for (I r = 0; r < R; r++) {
        const float *v = all + r * n;
        T *w = to + r * n;
        const float m = s.m[r] = centred ? mean(v, n) : 0;
        const float per_unit = s.per_unit[r] = scaled && eps == 0 && smallest == 0 ? one_per_unit(v, m, n) : 1;
        s.a[r] = 1, s.slope[r] = 0;
        if (scaled) {
            const float f = sum_of_squares(v, m, per_unit, n) / over + eps;
            const int raised = f <= smallest; /* a NaN is not */
            s.a[r] = 1 / sqrtf(raised ? smallest : f);
            s.slope[r] = raised ? 0 : s.a[r] * s.a[r] / over;
        }
        const float scale = gain ? gain[r] * s.a[r] : s.a[r];
#define WRITE(i, k, lanes) store(w + (i), deviations(v + (i), m, per_unit, lanes) * scale, lanes);
        ALONG_ROW(WRITE)
#undef WRITE
    }
}

/* With A = sum dw u and B = sum dw over a row:
 *   dgain = a A    dv = (gain a dw - gain a A slope u - gain a B / n) / unit    slope = a^2 / over, or 0 where f was raised
 * the last term only if centred, the one before only if scaled. */
void weights_backward(const T *all_dw, const float *all, const float *gain, float *saved, float *restrict to, float *dgain,
                      I R, I n, int centred, int scaled) {
    const Saved s = saved_at(saved, R);
    for (I r = 0; r < R; r++) {
        const T *dw = all_dw + r * n;
        const float *v = all + r * n, m = s.m[r], per_unit = s.per_unit[r];
        float *dv = to + r * n;
        V products[UNROLL] = {{0}}, plain[UNROLL] = {{0}};
#define ADD(i, k, lanes)                                            \
    {                                                               \
        const V g = load(dw + (i), lanes);                          \
        products[k] += g * deviations(v + (i), m, per_unit, lanes); \
        plain[k] += g;                                              \
    }
        ALONG_ROW(ADD)
#undef ADD
        const float A = sum_of_all(products), scale = (gain ? gain[r] * s.a[r] : s.a[r]) * per_unit;
        const float along = scale * A * s.slope[r], mean = centred ? scale * sum_of_all(plain) / (float)n : 0;
        if (dgain) dgain[r] = s.a[r] * A;
#define WRITE(i, k, lanes)                                                \
    {                                                                     \
        V g = load(dw + (i), lanes) * scale - mean;                       \
        if (scaled) g -= deviations(v + (i), m, per_unit, lanes) * along; \
        to_row(dv + (i), g, lanes);                                       \
    }
        ALONG_ROW(WRITE)
#undef WRITE
    }
}
