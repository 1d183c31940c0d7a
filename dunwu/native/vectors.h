/* Sixteen floats at a time, in the vector language of GCC and Clang: any processor, AVX-512 where there is one.
 *
 * `elem` is how weights, caches and the inputs of matrix products are stored: float, or with -DDUNWU_BF16 bfloat16,
 * whose products AVX512-BF16 adds up in fp32. `rounded` makes of an fp32 result what torch would have stored. */
#ifndef DUNWU_VECTORS_H
#define DUNWU_VECTORS_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16
#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));

INLINE vf splat(float x) { return (vf){0} + x; }
INLINE vf load(const float *from) { vf v; memcpy(&v, from, sizeof v); return v; }
INLINE void store(float *to, vf v) { memcpy(to, &v, sizeof v); }
INLINE vi bits(vf v) { vi u; memcpy(&u, &v, sizeof u); return u; }
INLINE vf as_float(vi u) { vf v; memcpy(&v, &u, sizeof v); return v; }
INLINE vf larger(vf a, vf b) { vi k = a > b; return as_float((k & bits(a)) | (~k & bits(b))); }

/* In a fixed order, so that a sum never depends on how the work was cut. */
INLINE float sum(vf v) {
  float a[LANES];
  store(a, v);
  for (int width = LANES / 2; width; width /= 2)
    for (int i = 0; i < width; i++) a[i] += a[i + width];
  return a[0];
}
INLINE float largest(vf v) {
  float a[LANES], m;
  store(a, v);
  m = a[0];
  for (int i = 1; i < LANES; i++) m = a[i] > m ? a[i] : m;
  return m;
}

/* e^x to 1e-7; below -87 and above 88 that of -87 and 88: nearly 0, nearly the largest float. x = n ln 2 + r; the
 * polynomial in r is Cephes' expf. */
INLINE vf exponential(vf x) {
  x = -larger(-larger(x, splat(-87.f)), splat(-88.f));
  vf magic = splat(12582912.f), n = (x * splat(1.44269504088896341f) + magic) - magic;
  vf r = x - n * splat(0.693359375f) - n * splat(-2.12194440e-4f), p = splat(1.9875691500e-4f);
  p = p * r + splat(1.3981999507e-3f);
  p = p * r + splat(8.3334519073e-3f);
  p = p * r + splat(4.1665795894e-2f);
  p = p * r + splat(1.6666665459e-1f);
  p = p * r + splat(5.0000001201e-1f);
  p = p * r * r + r + splat(1.f);
  return p * as_float((__builtin_convertvector(n, vi) + 127) << 23);
}

#ifdef DUNWU_BF16
#include <immintrin.h>
typedef uint16_t elem;
#define PAIR 2 /* neighbours along the depth of a product, multiplied together */

INLINE float widen(elem x) { uint32_t u = (uint32_t)x << 16; float f; memcpy(&f, &u, sizeof f); return f; }
INLINE elem narrow(float x) { uint32_t u; memcpy(&u, &x, sizeof u); return (elem)((u + 0x7fff + ((u >> 16) & 1)) >> 16); }
INLINE vf rounded(vf v) { vi u = bits(v); return as_float((u + 0x7fff + ((u >> 16) & 1)) & (int32_t)0xffff0000); }
INLINE void store_elems(elem *to, vf v) { __m256bh h = _mm512_cvtneps_pbh((__m512)v); memcpy(to, &h, sizeof h); }
#else
typedef float elem;
#define PAIR 1

INLINE float widen(elem x) { return x; }
INLINE elem narrow(float x) { return x; }
INLINE vf rounded(vf v) { return v; }
INLINE void store_elems(elem *to, vf v) { memcpy(to, &v, sizeof v); }
#endif
#endif
