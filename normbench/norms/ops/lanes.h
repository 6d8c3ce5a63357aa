/* Values by the vector register: of T, which is float or (-DBF16) bfloat16, widened to float and narrowed back. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

typedef long I;
#if defined(__AVX512F__)
#define LANES 16 /* values at a time: what a vector register holds */
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define UNROLL 4 /* sums kept apart, so that one addition need not wait for the last */
#define INLINE static inline __attribute__((always_inline))

typedef float V __attribute__((vector_size(4 * LANES)));
typedef uint32_t U __attribute__((vector_size(4 * LANES)));

#ifdef BF16
typedef uint16_t T;
typedef uint16_t H __attribute__((vector_size(2 * LANES)));
#if defined(__AVX512F__) /* the compiler would go through registers of half the size */
INLINE V widened(H halves) { return (V)((U)_mm512_cvtepu16_epi32((__m256i)halves) << 16); }
#elif defined(__AVX2__)
INLINE V widened(H halves) { return (V)((U)_mm256_cvtepu16_epi32((__m128i)halves) << 16); }
#else
INLINE V widened(H halves) { return (V)(__builtin_convertvector(halves, U) << 16); }
#endif
#ifdef __AVX512BF16__ /* takes what is below the smallest normal number for 0 */
INLINE H narrowed(V v) { return (H)_mm512_cvtneps_pbh((__m512)v); }
#else
INLINE H narrowed(V v) { /* round to nearest even; a NaN stays one */
    const U bits = (U)v, number = (U)(v == v);
    const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector((rounded & number) | (0x7fc0 & ~number), H);
}
#endif
#else
typedef float T;
typedef V H;
INLINE V widened(H v) { return v; }
INLINE H narrowed(V v) { return v; }
#endif

/* `lanes` values in and out; what is beyond them is 0, and stays where it is. */
INLINE V load(const T *from, const int lanes) {
    H halves = {0};
    memcpy(&halves, from, sizeof(T) * (size_t)lanes);
    return widened(halves);
}
INLINE void store(T *to, V v, const int lanes) {
    const H halves = narrowed(v);
    memcpy(to, &halves, sizeof(T) * (size_t)lanes);
}
INLINE V row(const float *from, const int lanes) {
    V v = {0};
    memcpy(&v, from, sizeof(float) * (size_t)lanes);
    return v;
}
INLINE void to_row(float *to, V v, const int lanes) { memcpy(to, &v, sizeof(float) * (size_t)lanes); }
