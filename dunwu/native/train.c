/* The parts of a training step that are no plain matrix product: RMSNorm, SwiGLU, attention, log-probabilities.
 *
 * Each reads its inputs once and writes its outputs once, with fp32 in between; forward and backward. `elem` arrays are
 * row-major and contiguous, (tokens, width). Rows are shared out among OpenMP's threads in fixed parts, so the same
 * number of threads gives the same bits. Mirrored in train.py, held to plain torch by tests/native/test_train.py. */
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_max_threads(void) { return 1; }
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#include "arena.h"
#include "product.h"

INLINE vf load_elems(const elem *from) {
#ifdef DUNWU_BF16
  __m256i h;
  memcpy(&h, from, sizeof h);
  return (vf)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
#else
  return load(from);
#endif
}

/* The part of `count` things that this thread does. */
INLINE void share(int64_t count, int64_t *from, int64_t *to) {
  int64_t threads = omp_get_num_threads(), mine = omp_get_thread_num();
  *from = count * mine / threads;
  *to = count * (mine + 1) / threads;
}

/* ---- RMSNorm (Zhang & Sennrich 2019, eq. 4), of a sum: h = x + branch, y = h / rms(h) * weight ---- */

void dunwu_norm(const elem *x, const elem *branch, const elem *weight, elem *h, elem *y, float *scale, int64_t tokens, int width, float eps) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; t++) {
    const elem *in = x + t * width;
    vf squares = {0};
    if (branch) {
      for (int d = 0; d < width; d += LANES) {
        vf v = rounded(load_elems(in + d) + load_elems(branch + t * width + d));
        store_elems(h + t * width + d, v);
        squares += v * v;
      }
      in = h + t * width;
    } else
      for (int d = 0; d < width; d += LANES) squares += load_elems(in + d) * load_elems(in + d);
    scale[t] = 1.f / sqrtf(sum(squares) / width + eps);
    for (int d = 0; d < width; d += LANES) store_elems(y + t * width + d, rounded(load_elems(in + d) * splat(scale[t])) * load_elems(weight + d));
  }
}

/* grad_in = grad_h (if any) + the gradient through y; grad_weight (threads, width) is one partial sum per thread. */
void dunwu_norm_backward(const elem *h, const elem *weight, const float *scale, const elem *grad_y, const elem *grad_h, elem *grad_in, float *grad_weight, int64_t tokens, int width) {
#pragma omp parallel
  {
    float *mine = grad_weight + (int64_t)omp_get_thread_num() * width;
    int64_t from, to;
    share(tokens, &from, &to);
    for (int64_t t = from; t < to; t++) {
      const elem *in = h + t * width, *g = grad_y + t * width;
      vf s = splat(scale[t]), dot = {0};
      for (int d = 0; d < width; d += LANES) {
        vf normal = load_elems(in + d) * s, grad = load_elems(g + d);
        dot += normal * grad * load_elems(weight + d);
        store(mine + d, load(mine + d) + normal * grad);
      }
      vf mean = splat(sum(dot) / width);
      for (int d = 0; d < width; d += LANES) {
        vf grad = (load_elems(g + d) * load_elems(weight + d) - load_elems(in + d) * s * mean) * s;
        if (grad_h) grad += load_elems(grad_h + t * width + d);
        store_elems(grad_in + t * width + d, grad);
      }
    }
  }
}

/* ---- SwiGLU (Shazeer 2020): y = silu(gate) * up of (tokens, 2 inner), gate first ---- */

void dunwu_swiglu(const elem *gate_up, elem *y, int64_t tokens, int inner) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; t++)
    for (int f = 0; f < inner; f += LANES) {
      vf gate = load_elems(gate_up + t * 2 * inner + f), up = load_elems(gate_up + t * 2 * inner + inner + f);
      store_elems(y + t * inner + f, rounded(gate / (splat(1.f) + exponential(-gate))) * up);
    }
}

void dunwu_swiglu_backward(const elem *gate_up, const elem *grad_y, elem *grad, int64_t tokens, int inner) {
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; t++)
    for (int f = 0; f < inner; f += LANES) {
      int64_t at = t * 2 * inner + f;
      vf gate = load_elems(gate_up + at), up = load_elems(gate_up + at + inner), g = load_elems(grad_y + t * inner + f);
      vf sigmoid = splat(1.f) / (splat(1.f) + exponential(-gate));
      store_elems(grad + at, g * up * sigmoid * (splat(1.f) + gate * (splat(1.f) - sigmoid)));
      store_elems(grad + at + inner, g * gate * sigmoid);
    }
}

/* ---- log-probabilities: of `chosen` under softmax(logits / temperature), and the entropy ---- */

void dunwu_logprobs(const elem *logits, const int64_t *chosen, float temperature, float *logprobs, float *entropies, float *normalizers, int64_t tokens, int vocab) {
  int whole = vocab / LANES * LANES;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; t++) {
    const elem *z = logits + t * vocab;
    vf inverse = splat(1.f / temperature), top = splat(-INFINITY), total = {0}, weighted = {0};
    for (int v = 0; v < whole; v += LANES) top = larger(top, load_elems(z + v) * inverse);
    float most = largest(top), rest = 0.f, rest_weighted = 0.f;
    for (int v = whole; v < vocab; v++) most = fmaxf(most, widen(z[v]) / temperature);
    for (int v = 0; v < whole; v += LANES) {
      vf x = larger(load_elems(z + v) * inverse - splat(most), splat(-1e4f)), e = exponential(x);
      total += e;
      weighted += e * x;
    }
    for (int v = whole; v < vocab; v++) {
      float x = fmaxf(widen(z[v]) / temperature - most, -1e4f), e = expf(x);
      rest += e;
      rest_weighted += e * x;
    }
    float mass = sum(total) + rest;
    normalizers[t] = most + logf(mass);
    logprobs[t] = widen(z[chosen[t]]) / temperature - normalizers[t];
    entropies[t] = logf(mass) - (sum(weighted) + rest_weighted) / mass;
  }
}

/* The logits become their gradient: (onehot - softmax) / temperature * grad. */
void dunwu_logprobs_backward(elem *logits, const int64_t *chosen, float temperature, const float *normalizers, const float *grad, int64_t tokens, int vocab) {
  int whole = vocab / LANES * LANES;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < tokens; t++) {
    elem *z = logits + t * vocab;
    float g = grad[t] / temperature, p = expf(widen(z[chosen[t]]) / temperature - normalizers[t]);
    for (int v = 0; v < whole; v += LANES)
      store_elems(z + v, exponential(load_elems(z + v) * splat(1.f / temperature) - splat(normalizers[t])) * splat(-g));
    for (int v = whole; v < vocab; v++) z[v] = narrow(expf(widen(z[v]) / temperature - normalizers[t]) * -g);
    z[chosen[t]] = narrow((1.f - p) * g);
  }
}

/* ---- attention ----
 *
 * Tokens lie in segments; a token sees the tokens before it in its own segment, and all of the segment's prefix, which
 * is itself a segment that stands earlier: the prompt that several completions share. Segments of one prefix, and the
 * prefix, are one tree; trees are shared out among the threads.
 *
 * Everything is computed with queries as lanes: scores are (keys, queries), so a maximum or a sum over keys is a
 * vertical one, and the packed form of the weights, (keys / PAIR, queries, PAIR), falls out of them.
 * The backward pass makes the weights again from the scores and the normalizers. */

typedef struct { int32_t start, end, prefix_start, prefix_end; } Segment;

typedef struct {
  int32_t heads, kv_heads, head_dim, trees;
  const Segment *segments;
  const int32_t *tree_ends;    /* one past each tree's last segment */
  const int32_t *positions;    /* of each token, for RoPE */
  const float *cosines, *sines; /* (positions, head_dim / 2) */
  int64_t tokens;
} Layout;

enum { QUERIES = 64, QUERY_PANELS = QUERIES / LANES };

static int row_width(const Layout *a) { return (a->heads + 2 * a->kv_heads) * a->head_dim; }

/* RoPE (Su et al. 2021, eq. 34) of the queries and keys in (tokens, heads + 2 kv_heads, head_dim); back with sign -1. */
void dunwu_rope(const Layout *a, const elem *in, elem *out, float sign) {
  int half = a->head_dim / 2, turned = a->heads + a->kv_heads, N = row_width(a);
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < a->tokens; t++) {
    const float *c = a->cosines + (int64_t)a->positions[t] * half, *s = a->sines + (int64_t)a->positions[t] * half;
    for (int h = 0; h < turned; h++) {
      const elem *x = in + t * N + h * a->head_dim;
      elem *y = out + t * N + h * a->head_dim;
      int i = 0;
      for (; i + LANES <= half; i += LANES) {
        vf first = load_elems(x + i), second = load_elems(x + half + i), co = load(c + i), si = load(s + i) * splat(sign);
        store_elems(y + i, first * co - second * si);
        store_elems(y + half + i, second * co + first * si);
      }
      for (; i < half; i++) {
        float first = widen(x[i]), second = widen(x[half + i]), si = s[i] * sign;
        y[i] = narrow(first * c[i] - second * si);
        y[half + i] = narrow(second * c[i] + first * si);
      }
    }
    if (in != out) memcpy(out + t * N + turned * a->head_dim, in + t * N + turned * a->head_dim, (N - turned * a->head_dim) * sizeof(elem));
  }
}

#if PAIR == 2
/* two rows of 16 as pairs */
INLINE vf paired(vf even, vf odd) { return as_float((bits(rounded(even)) >> 16 & 0xffff) | (bits(rounded(odd)) & (int32_t)0xffff0000)); }
#else
INLINE vf paired(vf even, vf odd) { (void)odd; return even; }
#endif

/* Rows of a matrix packed as the right side of a product over their width: panels of 16 rows, zeros behind the last. */
static void pack_rows(const elem *x, long x_row, int rows, int panels, int width, elem *packed) {
  typedef struct { elem of[PAIR]; } Pair;
  Pair *to = (Pair *)packed;
  const Pair none = {{0}};
  for (int q = 0; q < panels * LANES; q++) {
    const Pair *from = (const Pair *)(x + q * x_row);
    for (int d = 0; d < width / PAIR; d++) to[((long)(q / LANES) * width / PAIR + d) * LANES + q % LANES] = q < rows ? from[d] : none;
  }
}

/* The same rows as the right side of a product over the rows: panels of width, `depth` rows. */
static void pack_columns(const elem *x, long x_row, int rows, int depth, int width, elem *packed) {
  for (int q = 0; q < depth; q += PAIR)
    for (int d = 0; d < width; d += LANES) {
      vf even = q < rows ? load_elems(x + q * x_row + d) : (vf){0}, odd = q + 1 < rows ? load_elems(x + (q + 1) * x_row + d) : (vf){0};
      vf pairs = paired(even, odd);
      memcpy(packed + (long)(d / LANES) * depth * LANES + q * LANES, &pairs, sizeof pairs);
    }
}

/* (rows, width) → columns `at`… of (width, to_row) */
static void transpose(const elem *x, long x_row, int rows, int width, elem *to, long to_row) {
  for (int r = 0; r < rows; r++)
    for (int d = 0; d < width; d++) to[d * to_row + r] = x[r * x_row + d];
}

typedef struct {
  float *scores, *grads, *turned;      /* (keys, QUERIES) twice; (head_dim, QUERIES) */
  elem *q, *g, *q_columns, *g_columns; /* packed queries and output gradients of a block, both ways */
  elem *weights, *slopes;              /* (keys, QUERIES); slopes are the gradients of the scores */
  elem *packed;                        /* weights or slopes as the right side of a product over keys */
  elem *k_t, *v_t;                     /* (head_dim, keys): prefix, then own */
  float *grad_k, *grad_v;              /* (keys, head_dim): prefix, then own */
} Room;

/* Scores or the like for all keys a block of queries may see: prefix rows, then own rows. */
static void over_keys(const elem *rows, int N, const Segment *s, int own, const elem *packed, int width, int panels, float *out) {
  int prefix = s->prefix_end - s->prefix_start;
  product(rows + (int64_t)s->prefix_start * N, N, prefix, packed, (long)width * LANES, width, panels, out, QUERIES);
  product(rows + (int64_t)s->start * N, N, own, packed, (long)width * LANES, width, panels, out + (int64_t)prefix * QUERIES, QUERIES);
}

/* -inf where a key of the own segment, `key` places behind its start, stands behind the query of a lane. */
INLINE vf causal(vf v, int key, int first_query) {
  const vi lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  vi hidden = (lane + first_query) < key;
  return as_float((hidden & bits(splat(-INFINITY))) | (~hidden & bits(v)));
}

/* (width, QUERIES) → rows of queries */
static void untangle(const float *turned, int count, int width, elem *to, long to_row) {
  for (int q = 0; q < count; q++)
    for (int d = 0; d < width; d++) to[q * to_row + d] = narrow(turned[d * QUERIES + q]);
}

/* A block of queries of one segment and head. */
typedef struct {
  const Layout *a;
  const Segment *s;
  int head, kv_head, first, count; /* queries: place in the segment, number */
  int panels, prefix, keys, depth; /* keys they see, prefix first; and rounded up to pairs */
  long turned_row;                 /* of k_t and v_t */
} Block;

static Block block_of(const Layout *a, const Segment *s, int head, int first) {
  int left = s->end - s->start - first, count = left < QUERIES ? left : QUERIES, prefix = s->prefix_end - s->prefix_start;
  int keys = prefix + first + count;
  return (Block){a, s, head, head / (a->heads / a->kv_heads), first, count, (count + LANES - 1) / LANES, prefix, keys, (keys + PAIR - 1) / PAIR * PAIR, (prefix + s->end - s->start + 1) / 2 * 2};
}

/* A hidden key gets e^-87 for its weight, which adds nothing to a sum that is at least 1. */
INLINE vf score(const Block *b, const Room *r, int key, int panel, vf scale) {
  vf v = load(r->scores + (int64_t)key * QUERIES + panel * LANES) * scale;
  int place = b->first + panel * LANES;
  return key - b->prefix > place ? causal(v, key - b->prefix, place) : v;
}

static void attend(const Block *b, const elem *qkv, Room *r, elem *out, float *normalizers) {
  const Layout *a = b->a;
  int wide = a->head_dim, N = row_width(a);
  int64_t token = b->s->start + b->first;
  vf scale = splat(1.f / sqrtf(wide));
  pack_rows(qkv + token * N + b->head * wide, N, b->count, b->panels, wide, r->q);
  over_keys(qkv + (a->heads + b->kv_head) * wide, N, b->s, b->first + b->count, r->q, wide, b->panels, r->scores);
  vf inverse[QUERY_PANELS];
  for (int p = 0; p < b->panels; p++) {
    vf top = splat(-INFINITY), total = {0};
    for (int k = 0; k < b->keys; k++) top = larger(top, score(b, r, k, p, scale));
    for (int k = 0; k < b->keys; k += PAIR) {
      vf even = exponential(score(b, r, k, p, scale) - top), odd = {0};
      if (PAIR == 2 && k + 1 < b->keys) odd = exponential(score(b, r, k + 1, p, scale) - top);
      total += even + odd;
      vf pairs = paired(even, odd);
      memcpy(r->packed + (long)p * b->depth * LANES + k * LANES, &pairs, sizeof pairs);
    }
    inverse[p] = splat(1.f) / total;
    for (int i = 0; i < LANES && p * LANES + i < b->count; i++)
      normalizers[(token + p * LANES + i) * a->heads + b->head] = top[i] + logf(total[i]);
  }
  product(r->v_t, b->turned_row, wide, r->packed, (long)b->depth * LANES, b->depth, b->panels, r->turned, QUERIES);
  for (int d = 0; d < wide; d++)
    for (int p = 0; p < b->panels; p++) store(r->turned + d * QUERIES + p * LANES, load(r->turned + d * QUERIES + p * LANES) * inverse[p]);
  untangle(r->turned, b->count, wide, out + (token * a->heads + b->head) * wide, (long)a->heads * wide);
}

static void attend_backward(const Block *b, const elem *qkv, const elem *grad_out, const float *normalizers, const float *dots, Room *r, elem *grad_qkv) {
  const Layout *a = b->a;
  int wide = a->head_dim, N = row_width(a), H = a->heads * wide, lanes = b->panels * LANES;
  int64_t token = b->s->start + b->first;
  float norms[QUERIES], mine[QUERIES]; /* lanes without a query get weights of e^-87, and gradients of 0 */
  for (int q = 0; q < lanes; q++) {
    norms[q] = q < b->count ? normalizers[(token + q) * a->heads + b->head] : INFINITY;
    mine[q] = q < b->count ? dots[(token + q) * a->heads + b->head] : 0.f;
  }
  const elem *queries = qkv + token * N + b->head * wide, *grads = grad_out + token * H + b->head * wide;
  const elem *keys = qkv + (a->heads + b->kv_head) * wide, *values = keys + a->kv_heads * wide;
  pack_rows(queries, N, b->count, b->panels, wide, r->q);
  pack_rows(grads, H, b->count, b->panels, wide, r->g);
  pack_columns(queries, N, b->count, lanes, wide, r->q_columns);
  pack_columns(grads, H, b->count, lanes, wide, r->g_columns);
  over_keys(keys, N, b->s, b->first + b->count, r->q, wide, b->panels, r->scores);
  over_keys(values, N, b->s, b->first + b->count, r->g, wide, b->panels, r->grads);
  vf scale = splat(1.f / sqrtf(wide));
  for (int p = 0; p < b->panels; p++) {
    vf norm = load(norms + p * LANES), dot = load(mine + p * LANES);
    for (int k = 0; k < b->keys; k += PAIR) {
      vf slope[2] = {{0}, {0}};
      for (int i = 0; i < PAIR && k + i < b->keys; i++) {
        int64_t at = (int64_t)(k + i) * QUERIES + p * LANES;
        vf weight = exponential(score(b, r, k + i, p, scale) - norm);
        slope[i] = weight * (load(r->grads + at) - dot) * scale;
        store_elems(r->weights + at, weight);
        store_elems(r->slopes + at, slope[i]);
      }
      vf pairs = paired(slope[0], slope[1]);
      memcpy(r->packed + (long)p * b->depth * LANES + k * LANES, &pairs, sizeof pairs);
    }
  }
  multiply(r->weights, QUERIES, b->keys, r->g_columns, (long)lanes * LANES, lanes, wide / LANES, r->grad_v, wide, 1);
  multiply(r->slopes, QUERIES, b->keys, r->q_columns, (long)lanes * LANES, lanes, wide / LANES, r->grad_k, wide, 1);
  product(r->k_t, b->turned_row, wide, r->packed, (long)b->depth * LANES, b->depth, b->panels, r->turned, QUERIES);
  untangle(r->turned, b->count, wide, grad_qkv + token * N + b->head * wide, N);
}

static size_t lay_out(const Layout *a, int longest, Room *r, char *arena) {
  size_t used = 0, block = (size_t)(longest + 2) * QUERIES, packed = (size_t)QUERIES * a->head_dim, turned = (size_t)(longest + 2) * a->head_dim;
  r->scores = cut(arena, &used, block * sizeof(float));
  r->grads = cut(arena, &used, block * sizeof(float));
  r->turned = cut(arena, &used, packed * sizeof(float));
  elem **blocks[] = {&r->weights, &r->slopes, &r->packed}, **rows[] = {&r->q, &r->g, &r->q_columns, &r->g_columns};
  for (int i = 0; i < 3; i++) *blocks[i] = cut(arena, &used, block * sizeof(elem));
  for (int i = 0; i < 4; i++) *rows[i] = cut(arena, &used, packed * sizeof(elem));
  r->k_t = cut(arena, &used, turned * sizeof(elem));
  r->v_t = cut(arena, &used, turned * sizeof(elem));
  r->grad_k = cut(arena, &used, turned * sizeof(float));
  r->grad_v = cut(arena, &used, turned * sizeof(float));
  return used;
}

static int longest_path(const Layout *a) {
  int longest = 0;
  for (int i = 0; i < a->tree_ends[a->trees - 1]; i++) {
    const Segment *s = a->segments + i;
    int length = s->end - s->start + s->prefix_end - s->prefix_start;
    longest = length > longest ? length : longest;
  }
  return longest;
}

/* Keys or values of prefix and own segment, turned. */
static void turn(const Segment *s, const elem *rows, int N, int wide, elem *to) {
  int prefix = s->prefix_end - s->prefix_start, own = s->end - s->start;
  long row = (prefix + own + 1) / 2 * 2;
  transpose(rows + (int64_t)s->prefix_start * N, N, prefix, wide, to, row);
  transpose(rows + (int64_t)s->start * N, N, own, wide, to + prefix, row);
  if (row > prefix + own)
    for (int d = 0; d < wide; d++) to[d * row + prefix + own] = 0;
}

/* What a pass reads and writes; forward: the first three, backward: all but `out`. */
typedef struct {
  const elem *qkv; /* (tokens, heads + 2 kv_heads, head_dim), rotated */
  elem *out;       /* (tokens, heads, head_dim) */
  float *normalizers;
  const elem *grad_out;
  const float *dots;
  elem *grad_qkv;
  float *grad_keys;
} Pass;

/* The queries of a segment that share a key/value head. */
static void forward(const Layout *a, const Segment *s, int kv_head, const Pass *p, Room *r) {
  int wide = a->head_dim, group = a->heads / a->kv_heads;
  turn(s, p->qkv + (a->heads + a->kv_heads + kv_head) * wide, row_width(a), wide, r->v_t);
  for (int first = 0; first < s->end - s->start; first += QUERIES)
    for (int g = 0; g < group; g++) {
      Block block = block_of(a, s, kv_head * group + g, first);
      attend(&block, p->qkv, r, p->out, p->normalizers);
    }
}

static void backward(const Layout *a, const Segment *s, int kv_head, const Pass *p, Room *r) {
  int wide = a->head_dim, group = a->heads / a->kv_heads, prefix = s->prefix_end - s->prefix_start, own = s->end - s->start;
  turn(s, p->qkv + (a->heads + kv_head) * wide, row_width(a), wide, r->k_t);
  memset(r->grad_k, 0, (size_t)(prefix + own) * wide * sizeof(float));
  memset(r->grad_v, 0, (size_t)(prefix + own) * wide * sizeof(float));
  for (int first = 0; first < own; first += QUERIES)
    for (int g = 0; g < group; g++) {
      Block block = block_of(a, s, kv_head * group + g, first);
      attend_backward(&block, p->qkv, p->grad_out, p->normalizers, p->dots, r, p->grad_qkv);
    }
  for (int j = 0; j < prefix + own; j++) {
    int64_t token = j < prefix ? s->prefix_start + j : s->start + j - prefix;
    float *to = p->grad_keys + (token * 2 * a->kv_heads + kv_head) * wide;
    for (int d = 0; d < wide; d += LANES) {
      store(to + d, load(to + d) + load(r->grad_k + (int64_t)j * wide + d));
      store(to + a->kv_heads * wide + d, load(to + a->kv_heads * wide + d) + load(r->grad_v + (int64_t)j * wide + d));
    }
  }
}

/* A tree belongs to one thread, which goes through its segments in order: so sums over segments have one order, too. */
static int over_trees(const Layout *a, const Pass *p, void (*visit)(const Layout *, const Segment *, int, const Pass *, Room *)) {
  int longest = longest_path(a), failed = 0;
#pragma omp parallel reduction(| : failed)
  {
    Room room;
    void *arena;
    failed = posix_memalign(&arena, 64, lay_out(a, longest, &room, NULL)) != 0;
    if (!failed) lay_out(a, longest, &room, arena);
#pragma omp for schedule(dynamic)
    for (int tree = 0; tree < a->trees; tree++) {
      if (failed) continue;
      for (int i = tree ? a->tree_ends[tree - 1] : 0; i < a->tree_ends[tree]; i++)
        for (int k = 0; k < a->kv_heads; k++) visit(a, a->segments + i, k, p, &room);
    }
    if (!failed) free(arena);
  }
  return failed;
}

int dunwu_attention(const Layout *a, const elem *qkv, elem *out, float *normalizers) {
  Pass pass = {.qkv = qkv, .out = out, .normalizers = normalizers};
  return over_trees(a, &pass, forward);
}

/* grad_qkv of the rotated qkv. grad_keys (tokens, 2 kv_heads, head_dim), zeros, collects what several segments add. */
int dunwu_attention_backward(const Layout *a, const elem *qkv, const elem *out, const elem *grad_out, const float *normalizers, elem *grad_qkv, float *dots, float *grad_keys) {
  int wide = a->head_dim;
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < a->tokens * a->heads; i++) {
    vf total = {0};
    for (int d = 0; d < wide; d += LANES) total += load_elems(out + i * wide + d) * load_elems(grad_out + i * wide + d);
    dots[i] = sum(total);
  }
  Pass pass = {.qkv = qkv, .normalizers = (float *)normalizers, .grad_out = grad_out, .dots = dots, .grad_qkv = grad_qkv, .grad_keys = grad_keys};
  if (over_trees(a, &pass, backward)) return 1;
#pragma omp parallel for schedule(static)
  for (int64_t t = 0; t < a->tokens; t++)
    for (int d = 0; d < 2 * a->kv_heads * wide; d += LANES)
      store_elems(grad_qkv + t * row_width(a) + a->heads * wide + d, load(grad_keys + t * 2 * a->kv_heads * wide + d));
  return 0;
}

int dunwu_threads(void) { return omp_get_max_threads(); }
