/* Working memory of a call: laid out twice by the same lines, first with NULL to learn its size, then for good. */
#ifndef DUNWU_ARENA_H
#define DUNWU_ARENA_H

#include <stddef.h>

/* The next `bytes`, at a multiple of 64, since vectors are loaded from there; with a null arena only counted. */
static void *cut(char *arena, size_t *used, size_t bytes) {
  void *here = arena ? arena + *used : NULL;
  *used += (bytes + 63) / 64 * 64;
  return here;
}
#endif
