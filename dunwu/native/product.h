/* The one matrix product: rows times something packed, written to y or added to it.
 *
 * Packed means panels of 16 outputs, each [depth / PAIR][16][PAIR], `stride` elements from panel to panel. The key and
 * value caches are kept in this form as they grow, so attention is the same product. Every output is one chain of sums
 * over the depth: it does not depend on how many rows are multiplied beside it. */
#ifndef DUNWU_PRODUCT_H
#define DUNWU_PRODUCT_H

#include "vectors.h"

#define TALL 6 /* rows by panels of the tile held in registers */
#define WIDE 4

INLINE void tile(int rows, int panels, const elem *x, long x_row, const elem *w, long stride, int depth, float *y, long y_row, int adds) {
  vf acc[TALL][WIDE], b[WIDE];
#pragma GCC unroll 6
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
    for (int n = 0; n < panels; n++) acc[m][n] = adds ? load(y + m * y_row + n * LANES) : (vf){0};
  for (int k = 0; k < depth / PAIR; k++) {
#pragma GCC unroll 4
    for (int n = 0; n < panels; n++) memcpy(&b[n], w + n * stride + (long)k * LANES * PAIR, sizeof(vf));
#pragma GCC unroll 6
    for (int m = 0; m < rows; m++) {
#ifdef DUNWU_BF16
      int32_t two;
      memcpy(&two, x + m * x_row + 2 * k, sizeof two);
      __m512i a = _mm512_set1_epi32(two);
#pragma GCC unroll 4
      for (int n = 0; n < panels; n++) acc[m][n] = (vf)_mm512_dpbf16_ps((__m512)acc[m][n], (__m512bh)a, (__m512bh)b[n]);
#else
      vf a = splat(x[m * x_row + k]);
#pragma GCC unroll 4
      for (int n = 0; n < panels; n++) acc[m][n] += a * b[n];
#endif
    }
  }
#pragma GCC unroll 6
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 4
    for (int n = 0; n < panels; n++) store(y + m * y_row + n * LANES, acc[m][n]);
}

INLINE void column(int panels, const elem *x, long x_row, int rows, const elem *w, long stride, int depth, float *y, long y_row, int adds) {
  for (; rows >= TALL; rows -= TALL, x += TALL * x_row, y += TALL * y_row)
    tile(TALL, panels, x, x_row, w, stride, depth, y, y_row, adds);
  switch (rows) {
  case 5: tile(5, panels, x, x_row, w, stride, depth, y, y_row, adds); break;
  case 4: tile(4, panels, x, x_row, w, stride, depth, y, y_row, adds); break;
  case 3: tile(3, panels, x, x_row, w, stride, depth, y, y_row, adds); break;
  case 2: tile(2, panels, x, x_row, w, stride, depth, y, y_row, adds); break;
  case 1: tile(1, panels, x, x_row, w, stride, depth, y, y_row, adds); break;
  }
}

INLINE void multiply(const elem *x, long x_row, int rows, const elem *w, long stride, int depth, int panels, float *y, long y_row, int adds) {
  for (; panels >= 4; panels -= 4, w += 4 * stride, y += 4 * LANES) column(4, x, x_row, rows, w, stride, depth, y, y_row, adds);
  for (; panels >= 2; panels -= 2, w += 2 * stride, y += 2 * LANES) column(2, x, x_row, rows, w, stride, depth, y, y_row, adds);
  if (panels) column(1, x, x_row, rows, w, stride, depth, y, y_row, adds);
}

/* y (rows, 16 panels) = x (rows, depth) times w. */
static void product(const elem *x, long x_row, int rows, const elem *w, long stride, int depth, int panels, float *y, long y_row) {
  multiply(x, x_row, rows, w, stride, depth, panels, y, y_row, 0);
}
#endif
