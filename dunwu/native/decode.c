/* Whole completions of a Qwen2-shaped decoder, one call for all of them: the rollout engine's native path.
 *
 * Every thread holds `block` rows with a key/value cache each. It feeds one token of every row through all layers, draws
 * the next tokens, and hands the place of a finished row to the next sample that waits: rows never wait for each other,
 * nothing is copied when one ends, and a row's numbers depend on its own tokens and seed alone, not on its neighbours,
 * the block or the number of threads. A prompt is fed as rows too (its tokens side by side), once per thread, and its
 * cache copied for each of its samples.
 *
 * Rounding follows the trainer's: in bf16 whatever torch would have stored in bf16 is rounded to it.
 * The structures are mirrored in decode.py. Not covered: head widths that are no multiple of 16; other architectures. */
#include <pthread.h>
#include <stdlib.h>

#include "arena.h"
#include "product.h"

typedef struct {
  const float *attention_norm, *bias, *feed_forward_norm;
  const elem *qkv, *out, *gate_up, *down; /* packed */
} Layer;

typedef struct {
  int32_t layers, width, heads, kv_heads, head_dim, inner, vocab, columns;
  float eps;
  const float *cosines, *sines; /* (columns, head_dim / 2) */
  const elem *embedding;        /* (vocab, width), not packed */
  const float *norm;
  const elem *head; /* packed */
  const Layer *layer;
} Model;

typedef struct {
  float temperature, top_p;
  int32_t top_k, max_tokens, stop_count;
  const int32_t *stops;
} Sampling;

typedef struct {
  int64_t samples;
  const int32_t *prompt_ids;
  const int64_t *prompt_ends;
  const int32_t *prompt_of; /* of each sample */
  const uint64_t *seeds;
  int32_t *tokens; /* (samples, max_tokens) */
  float *logprobs;
  int32_t *lengths;
  volatile int32_t *cancelled; /* set from outside to make everybody stop */
} Samples;

typedef struct {
  elem *cache;
  int position, token, drawn;
  int64_t sample; /* -1: free */
} Row;

typedef struct {
  float *x, *y, *scores; /* residual stream; result of a product; one row's attention scores */
  elem *h, *q, *p;       /* input of a product; one row's queries and attention weights */
} Scratch;

/* ---- the cache of one row: for each layer and head, keys packed by column, then values packed by width ---- */

static int64_t cache_part(const Model *m) { return (int64_t)m->columns * m->head_dim; }
static int64_t cache_size(const Model *m) { return 2 * m->layers * m->kv_heads * cache_part(m); }
static elem *keys(const Model *m, elem *cache, int layer, int head) {
  return cache + 2 * (layer * m->kv_heads + head) * cache_part(m);
}
static elem *values(const Model *m, elem *cache, int layer, int head) {
  return keys(m, cache, layer, head) + cache_part(m);
}

static void remember(const Model *m, elem *k, elem *v, int column, const float *key, const float *value) {
  k += (int64_t)(column / LANES) * m->head_dim * LANES + column % LANES * PAIR;
  v += (int64_t)(column / PAIR) * LANES * PAIR + column % PAIR;
  for (int d = 0; d < m->head_dim; d++) {
    k[d / PAIR * LANES * PAIR + d % PAIR] = narrow(key[d]);
    elem *at = v + (int64_t)(d / LANES) * m->columns * LANES + d % LANES * PAIR;
    at[0] = narrow(value[d]);
    if (PAIR == 2 && column % 2 == 0) at[1] = 0; /* multiplied by a weight of 0 until it is there */
  }
}

static void copy_cache(const Model *m, elem *to, const elem *from, int length) {
  int64_t part = cache_part(m), filled = (int64_t)(length + LANES - 1) / LANES * LANES * m->head_dim;
  int64_t even = (int64_t)(length + PAIR - 1) / PAIR * PAIR * LANES;
  for (int i = 0; i < m->layers * m->kv_heads; i++, to += 2 * part, from += 2 * part) {
    memcpy(to, from, filled * sizeof(elem));
    for (int64_t d = part; d < 2 * part; d += (int64_t)m->columns * LANES) memcpy(to + d, from + d, even * sizeof(elem));
  }
}

/* ---- the layers ---- */

static void normed(const Model *m, const float *x, const float *weight, elem *h) {
  vf squares = {0};
  for (int d = 0; d < m->width; d += LANES) squares += load(x + d) * load(x + d);
  vf scale = splat(1.f / sqrtf(sum(squares) / m->width + m->eps));
  for (int d = 0; d < m->width; d += LANES) store_elems(h + d, rounded(load(x + d) * scale) * load(weight + d));
}

static void rotate(const Model *m, float *v, int position) {
  int half = m->head_dim / 2;
  const float *c = m->cosines + (int64_t)position * half, *s = m->sines + (int64_t)position * half;
  for (int i = 0; i < half; i++) {
    float a = v[i], b = v[i + half];
    v[i] = a * c[i] - b * s[i];
    v[i + half] = b * c[i] + a * s[i];
  }
}

/* softmax of `length` scores, as weights; what is behind them up to the end of a panel becomes 0 */
static void softmax(float *s, elem *p, int length, float scale) {
  int end = (length + LANES - 1) / LANES * LANES;
  vf top = splat(-INFINITY), total = {0};
  for (int i = length; i < end; i++) s[i] = -INFINITY;
  for (int i = 0; i < end; i += LANES) {
    vf v = rounded(load(s + i) * splat(scale));
    store(s + i, v);
    top = larger(top, v);
  }
  top = splat(largest(top));
  for (int i = 0; i < end; i += LANES) {
    store(s + i, exponential(load(s + i) - top));
    for (int j = length - i; j < LANES; j++) s[i + (j > 0 ? j : 0)] = 0.f;
    total += load(s + i);
  }
  vf inverse = splat(1.f / sum(total));
  for (int i = 0; i < end; i += LANES) store_elems(p + i, load(s + i) * inverse);
}

/* A row's queries, (heads, head_dim), become its attention output. */
static void attend(const Model *m, const Row *row, int layer, float *queries, Scratch *t) {
  int wide = m->head_dim, group = m->heads / m->kv_heads, length = row->position + 1, S = m->columns;
  for (int k = 0; k < m->kv_heads; k++, queries += group * wide) {
    for (int i = 0; i < group * wide; i += LANES) store_elems(t->q + i, load(queries + i));
    product(t->q, wide, group, keys(m, row->cache, layer, k), (int64_t)wide * LANES, wide, (length + LANES - 1) / LANES, t->scores, S);
    for (int g = 0; g < group; g++) softmax(t->scores + (int64_t)g * S, t->p + (int64_t)g * S, length, 1.f / sqrtf(wide));
    int depth = (length + PAIR - 1) / PAIR * PAIR;
    product(t->p, S, group, values(m, row->cache, layer, k), (int64_t)S * LANES, depth, wide / LANES, queries, wide);
  }
}

static void attention(const Model *m, const Layer *w, int layer, Row **rows, int count, Scratch *t) {
  int D = m->width, wide = m->head_dim, Q = m->heads * wide, K = m->kv_heads * wide, N = Q + 2 * K;
  for (int i = 0; i < count; i++) normed(m, t->x + i * D, w->attention_norm, t->h + i * D);
  product(t->h, D, count, w->qkv, (int64_t)D * LANES, D, N / LANES, t->y, N);
  for (int i = 0; i < count; i++) { /* all keys first: the tokens of a prompt see those before them */
    float *y = t->y + (int64_t)i * N;
    for (int n = 0; n < N; n += LANES) store(y + n, rounded(load(y + n) + load(w->bias + n)));
    for (int n = 0; n < Q + K; n += wide) rotate(m, y + n, rows[i]->position);
    for (int k = 0; k < m->kv_heads; k++)
      remember(m, keys(m, rows[i]->cache, layer, k), values(m, rows[i]->cache, layer, k), rows[i]->position, y + Q + k * wide, y + Q + K + k * wide);
  }
  for (int i = 0; i < count; i++) {
    float *y = t->y + (int64_t)i * N;
    attend(m, rows[i], layer, y, t);
    for (int n = 0; n < Q; n += LANES) store_elems(t->h + i * Q + n, load(y + n));
  }
  product(t->h, Q, count, w->out, (int64_t)Q * LANES, Q, D / LANES, t->y, D);
}

static void feed_forward(const Model *m, const Layer *w, int count, Scratch *t) {
  int D = m->width, F = m->inner;
  for (int i = 0; i < count; i++) normed(m, t->x + i * D, w->feed_forward_norm, t->h + i * D);
  product(t->h, D, count, w->gate_up, (int64_t)D * LANES, D, 2 * F / LANES, t->y, 2 * F);
  for (int i = 0; i < count; i++)
    for (int f = 0; f < F; f += LANES) {
      vf gate = rounded(load(t->y + (int64_t)i * 2 * F + f)), up = rounded(load(t->y + (int64_t)i * 2 * F + F + f));
      store_elems(t->h + i * F + f, rounded(gate / (splat(1.f) + exponential(-gate))) * up);
    }
  product(t->h, F, count, w->down, (int64_t)F * LANES, F, D / LANES, t->y, D);
}

static void add(float *x, const float *y, int64_t count) {
  for (int64_t i = 0; i < count; i += LANES) store(x + i, rounded(load(x + i) + rounded(load(y + i))));
}

/* One token of each row through all layers; it joins the row's cache. */
static void forward(const Model *m, Row **rows, int count, Scratch *t) {
  int D = m->width;
  for (int i = 0; i < count; i++)
    for (int d = 0; d < D; d++) t->x[(int64_t)i * D + d] = widen(m->embedding[(int64_t)rows[i]->token * D + d]);
  for (int l = 0; l < m->layers; l++) {
    attention(m, m->layer + l, l, rows, count, t);
    add(t->x, t->y, (int64_t)count * D);
    feed_forward(m, m->layer + l, count, t);
    add(t->x, t->y, (int64_t)count * D);
  }
}

static int padded_vocab(const Model *m) { return (m->vocab + LANES - 1) / LANES * LANES; }

static void logits_of(const Model *m, int first, int count, Scratch *t, float *logits) {
  int D = m->width, V = padded_vocab(m);
  for (int i = 0; i < count; i++) normed(m, t->x + (int64_t)(first + i) * D, m->norm, t->h + i * D);
  product(t->h, D, count, m->head, (int64_t)D * LANES, D, V / LANES, logits, V);
}

/* ---- drawing a token ---- */

/* splitmix64 of (seed, position), as in rollout/sampling.py */
static double uniform(uint64_t seed, int position) {
  uint64_t z = seed + 0x9E3779B97F4A7C15u * (uint64_t)(position + 1);
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return ((double)(z >> 11) + 0.5) * 0x1p-53;
}

typedef struct { float mass; int token; } Candidate;

static int heavier(const void *a, const void *b) {
  const Candidate *x = a, *y = b;
  return x->mass != y->mass ? (x->mass < y->mass ? 1 : -1) : x->token - y->token;
}

/* Set to 0 what top-k and top-p leave out; `e` holds unnormalised probabilities. Returns what is left in all. */
static float truncate_tail(float *e, int count, float total, const Sampling *s, Candidate *found) {
  /* Whatever lies below this is in the tail that top-p drops, even if all tokens did. */
  float floor = s->top_p < 1.f ? (1.f - s->top_p) * total / count : 0.f;
  int n = 0;
  if (s->top_k > 0 && s->top_k < count) floor = 0.f;
  for (int v = 0; v < count; v++)
    if (e[v] >= floor) found[n++] = (Candidate){e[v], v};
  qsort(found, n, sizeof *found, heavier);
  if (s->top_k > 0 && s->top_k < n) {
    int kept = s->top_k;
    while (kept < n && found[kept].mass == found[s->top_k - 1].mass) kept++; /* ties stay */
    n = kept;
    total = 0.f;
    for (int i = 0; i < n; i++) total += found[i].mass;
  }
  float mass = 0.f, left = 0.f;
  int kept = 0;
  while (kept < n && (s->top_p >= 1.f || mass < s->top_p * total || kept == 0)) mass += found[kept++].mass;
  memset(e, 0, count * sizeof *e);
  for (int i = 0; i < kept; i++) e[found[i].token] = found[i].mass, left += found[i].mass;
  return left;
}

static int draw(const Model *m, float *z, const Sampling *s, uint64_t seed, int position, Candidate *found, float *logprob) {
  int count = m->vocab, end = padded_vocab(m), chosen = 0;
  if (s->temperature == 0.f) {
    for (int v = 1; v < count; v++) chosen = rounded(splat(z[v]))[0] > rounded(splat(z[chosen]))[0] ? v : chosen;
    *logprob = 0.f;
    return chosen;
  }
  vf top = splat(-INFINITY), total = {0};
  vi odd = {0}; /* where a logit is no number, or infinite */
  for (int v = count; v < end; v++) z[v] = -INFINITY;
  for (int v = 0; v < end; v += LANES) {
    vf x = rounded(load(z + v)) / splat(s->temperature);
    store(z + v, x);
    top = larger(top, x);
  }
  top = splat(largest(top));
  for (int v = 0; v < end; v += LANES) {
    vf x = load(z + v) - top;
    odd |= x != x;
    store(z + v, exponential(x));
    for (int j = count - v; j < LANES; j++) z[v + (j > 0 ? j : 0)] = 0.f;
    total += load(z + v);
  }
  for (int i = 0; i < LANES; i++)
    if (odd[i]) {
      *logprob = NAN;
      return 0;
    }
  float mass = sum(total), before = 0.f;
  if (s->top_p < 1.f || s->top_k > 0) mass = truncate_tail(z, count, mass, s, found);
  float goal = (float)(uniform(seed, position) * mass);
  int v = 0;
  for (; v < end - LANES; v += LANES) { /* the panel in which the cumulative sum passes the goal, then the token */
    float more = sum(load(z + v));
    if (before + more > goal) break;
    before += more;
  }
  chosen = -1;
  for (; v < count && before <= goal; v++) {
    before += z[v];
    if (z[v] > 0.f) chosen = v;
  }
  for (int u = count - 1; chosen < 0 && u > 0; u--) /* rounding left the goal just behind the last one */
    if (z[u] > 0.f) chosen = u;
  if (chosen < 0) chosen = 0;
  *logprob = logf(z[chosen] / mass);
  return chosen;
}

/* ---- one thread's work ---- */

typedef struct {
  const Model *model;
  const Sampling *sampling;
  const Samples *samples;
  int block;
  int64_t *next; /* the first sample that nobody has taken */
  int failed;
} Task;

enum { TAKEN = 8 }; /* samples taken at once, if a thread has that many rows: mostly of one prompt, so that few are fed twice */

typedef struct {
  Scratch scratch;
  float *logits, *prompt_logits;
  Candidate *found;
  elem *prompt_cache;
  Row *rows, **live;
  int prompt, length; /* the prompt whose cache and logits are at hand */
  int64_t from, to;   /* samples taken and not begun */
} Desk;

/* A token drawn for a sample; true if it was the last. */
static int record(const Task *task, int64_t sample, int drawn, int token, float logprob) {
  const Sampling *s = task->sampling;
  const Samples *j = task->samples;
  j->tokens[sample * s->max_tokens + drawn] = token;
  j->logprobs[sample * s->max_tokens + drawn] = logprob;
  j->lengths[sample] = drawn + 1;
  int last = drawn + 1 == s->max_tokens;
  for (int i = 0; i < s->stop_count; i++) last |= token == s->stops[i];
  return last;
}

static void feed_prompt(const Task *task, Desk *desk, int prompt) {
  const Model *m = task->model;
  const int64_t *ends = task->samples->prompt_ends;
  int64_t start = prompt ? ends[prompt - 1] : 0;
  const int32_t *ids = task->samples->prompt_ids + start;
  desk->prompt = prompt;
  desk->length = (int)(ends[prompt] - start);
  Row tokens[task->block], *these[task->block];
  for (int done = 0; done < desk->length;) {
    int count = desk->length - done < task->block ? desk->length - done : task->block;
    for (int i = 0; i < count; i++) {
      tokens[i] = (Row){.cache = desk->prompt_cache, .position = done + i, .token = ids[done + i]};
      these[i] = tokens + i;
    }
    forward(m, these, count, &desk->scratch);
    done += count;
    if (done == desk->length) logits_of(m, count - 1, 1, &desk->scratch, desk->prompt_logits);
  }
}

/* Begin the next sample in this row; 0 if none waits. */
static int begin(const Task *task, Desk *desk, Row *row) {
  const Model *m = task->model;
  const Samples *j = task->samples;
  while (row->sample < 0) {
    if (desk->from == desk->to) {
      int take = task->block < TAKEN ? task->block : TAKEN;
      desk->from = __atomic_fetch_add(task->next, take, __ATOMIC_RELAXED);
      desk->to = desk->from + take < j->samples ? desk->from + take : j->samples;
      if (desk->from >= desk->to) {
        desk->from = desk->to;
        return 0;
      }
    }
    int64_t sample = desk->from++;
    float logprob;
    if (j->prompt_of[sample] != desk->prompt) feed_prompt(task, desk, j->prompt_of[sample]);
    memcpy(desk->logits, desk->prompt_logits, padded_vocab(m) * sizeof(float));
    int token = draw(m, desk->logits, task->sampling, j->seeds[sample], 0, desk->found, &logprob);
    if (record(task, sample, 0, token, logprob)) continue;
    copy_cache(m, row->cache, desk->prompt_cache, desk->length);
    row->sample = sample, row->position = desk->length, row->token = token, row->drawn = 1;
  }
  return 1;
}

static void decode(const Task *task, Desk *desk) {
  const Model *m = task->model;
  while (!*task->samples->cancelled) {
    int count = 0, V = padded_vocab(m);
    for (int i = 0; i < task->block; i++)
      if (desk->rows[i].sample >= 0 || begin(task, desk, desk->rows + i)) desk->live[count++] = desk->rows + i;
    if (!count) return;
    forward(m, desk->live, count, &desk->scratch);
    logits_of(m, 0, count, &desk->scratch, desk->logits);
    for (int i = 0; i < count; i++) {
      Row *row = desk->live[i];
      float logprob;
      int token = draw(m, desk->logits + (int64_t)i * V, task->sampling, task->samples->seeds[row->sample], row->drawn, desk->found, &logprob);
      row->token = token, row->position++;
      if (record(task, row->sample, row->drawn++, token, logprob)) row->sample = -1;
    }
  }
}

static size_t lay_out(const Task *task, Desk *d, char *arena) {
  const Model *m = task->model;
  int64_t n = task->block, V = padded_vocab(m), qkv = (m->heads + 2 * m->kv_heads) * m->head_dim, wide = 2 * m->inner;
  size_t used = 0;
  wide = wide > qkv ? wide : qkv;
  wide = wide > m->width ? wide : m->width;
  d->scratch.x = cut(arena, &used, n * m->width * sizeof(float));
  d->scratch.y = cut(arena, &used, n * wide * sizeof(float));
  d->scratch.scores = cut(arena, &used, (int64_t)m->heads * m->columns * sizeof(float));
  d->scratch.h = cut(arena, &used, n * wide * sizeof(elem));
  d->scratch.q = cut(arena, &used, (int64_t)m->heads * m->head_dim * sizeof(elem));
  d->scratch.p = cut(arena, &used, (int64_t)m->heads * m->columns * sizeof(elem));
  d->logits = cut(arena, &used, n * V * sizeof(float));
  d->prompt_logits = cut(arena, &used, V * sizeof(float));
  d->found = cut(arena, &used, V * sizeof(Candidate));
  d->rows = cut(arena, &used, n * sizeof(Row));
  d->live = cut(arena, &used, n * sizeof(Row *));
  d->prompt_cache = cut(arena, &used, cache_size(m) * sizeof(elem));
  elem *caches = cut(arena, &used, n * cache_size(m) * sizeof(elem));
  if (arena)
    for (int64_t i = 0; i < n; i++) d->rows[i] = (Row){.cache = caches + i * cache_size(m), .sample = -1};
  return used;
}

static void *work(void *argument) {
  Task *task = argument;
  Desk desk = {.prompt = -1};
  void *arena;
  if (posix_memalign(&arena, 64, lay_out(task, &desk, NULL))) {
    task->failed = 1;
    return NULL;
  }
  lay_out(task, &desk, arena);
  decode(task, &desk);
  free(arena);
  return NULL;
}

/* Draw all samples; 0, or 1 if there was not enough memory. */
int dunwu_generate(const Model *m, const Sampling *s, const Samples *j, int threads, int block) {
  int64_t next = 0;
  int failed = 0, started = 1;
  pthread_t ids[threads];
  Task tasks[threads];
  for (int i = 0; i < threads; i++) tasks[i] = (Task){m, s, j, block, &next, 0};
  for (; started < threads; started++)
    if (pthread_create(ids + started, NULL, work, tasks + started)) break; /* fewer threads do it too */
  work(tasks);
  for (int i = 1; i < started; i++) pthread_join(ids[i], NULL);
  for (int i = 0; i < started; i++) failed |= tasks[i].failed;
  return failed;
}
