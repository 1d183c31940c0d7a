/* Hashes of many spans of one text, and the minima of their permutations: the inner loops of MinHash and of n-gram search.
 *
 * Mirrored in text.py, which has a numpy path with the same bits; held to it by tests/native/test_text.py. The hash is
 * XXH64 as its specification has it (github.com/Cyan4973/xxHash, doc/xxhash_spec.md). */
#include <stdint.h>
#include <string.h>

#define P1 0x9E3779B185EBCA87ULL
#define P2 0xC2B2AE3D27D4EB4FULL
#define P3 0x165667B19E3779F9ULL
#define P4 0x85EBCA77C2B2AE63ULL
#define P5 0x27D4EB2F165667C5ULL
#define MERSENNE ((1ULL << 61) - 1)

static inline uint64_t turn(uint64_t x, int by) { return x << by | x >> (64 - by); }

static inline uint64_t word64(const uint8_t *at) {
  uint64_t x;
  memcpy(&x, at, sizeof x);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  x = __builtin_bswap64(x);
#endif
  return x;
}

static inline uint32_t word32(const uint8_t *at) {
  uint32_t x;
  memcpy(&x, at, sizeof x);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  x = __builtin_bswap32(x);
#endif
  return x;
}

static inline uint64_t lane(uint64_t sum, uint64_t input) { return turn(sum + input * P2, 31) * P1; }

static inline uint64_t merged(uint64_t hash, uint64_t sum) { return (hash ^ lane(0, sum)) * P1 + P4; }

static uint64_t xxh64(const uint8_t *at, int64_t length, uint64_t seed) {
  const uint8_t *end = at + length;
  uint64_t hash;
  if (length >= 32) {
    uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
    for (; end - at >= 32; at += 32) {
      a = lane(a, word64(at));
      b = lane(b, word64(at + 8));
      c = lane(c, word64(at + 16));
      d = lane(d, word64(at + 24));
    }
    hash = turn(a, 1) + turn(b, 7) + turn(c, 12) + turn(d, 18);
    hash = merged(merged(merged(merged(hash, a), b), c), d);
  } else
    hash = seed + P5;
  hash += (uint64_t)length;
  for (; end - at >= 8; at += 8) hash = turn(hash ^ lane(0, word64(at)), 27) * P1 + P4;
  if (end - at >= 4) {
    hash = turn(hash ^ word32(at) * P1, 23) * P2 + P3;
    at += 4;
  }
  for (; at < end; at++) hash = turn(hash ^ *at * P5, 11) * P1;
  hash = (hash ^ hash >> 33) * P2;
  hash = (hash ^ hash >> 29) * P3;
  return hash ^ hash >> 32;
}

/* out[i] = XXH64 of text[starts[i]:ends[i]]. Returns 1 at a span that is no part of the text, else 0. */
int dunwu_hash_spans(const uint8_t *text, int64_t length, const int64_t *starts, const int64_t *ends, int64_t count, uint64_t seed, uint64_t *out) {
  for (int64_t i = 0; i < count; i++) {
    if (starts[i] < 0 || ends[i] < starts[i] || ends[i] > length) return 1;
    out[i] = xxh64(text + starts[i], ends[i] - starts[i], seed);
  }
  return 0;
}

/* out[w] = min over i of ((values[i] * factors[w] + terms[w]) mod 2^64) mod (2^61 - 1). The inner
 * loop is over permutations, so that it vectorises. */
void dunwu_minima(const uint64_t *values, int64_t count, const uint64_t *factors, const uint64_t *terms, int64_t width, uint64_t *out) {
  for (int64_t w = 0; w < width; w++) out[w] = UINT64_MAX;
  for (int64_t i = 0; i < count; i++) {
    uint64_t value = values[i];
    for (int64_t w = 0; w < width; w++) {
      uint64_t x = value * factors[w] + terms[w];
      x = (x & MERSENNE) + (x >> 61);
      x = x >= MERSENNE ? x - MERSENNE : x;
      out[w] = x < out[w] ? x : out[w];
    }
  }
}
