// The parts of the sm_90a kernel (paged_attention_sm90.cu): its list of tiles, the copying warp,
// and a warpgroup's softmax over tiles of keys.
#pragma once
#include "fd/attention_plan.cuh"
#include "fd/hopper.cuh"
#include "fd/mma.cuh"

namespace fd {

constexpr int kSm90Rows = 128, kSm90Keys = 128, kSm90Stages = 2;
constexpr int kSm90Teams = 2, kSm90Threads = 128 * (kSm90Teams + 1);  // warpgroups

// Where the copy engine finds things. q: [tokens, heads, dim]; key, value: [blocks, heads, slots,
// dim]. `box`: slots of one copy; rows of a tile that hold queries: tokens_per_tile * group.
struct Sm90Maps {
  CUtensorMap q, key, value;
};
struct Sm90Shape {
  int box, tokens_per_tile, min_rows;
};

// Shared memory; tiles are [dim / 64] columns of [rows][64].
template <int D>
struct Sm90Shared {
  char q[kSm90Rows * D * 2];
  char key[kSm90Stages][kSm90Keys * D * 2], value[kSm90Stages][kSm90Keys * D * 2];
  uint64_t q_full, q_empty;
  uint64_t key_full[kSm90Stages], key_empty[kSm90Stages];
  uint64_t value_full[kSm90Stages], value_empty[kSm90Stages];
};

// A tile of rows [first_row, first_row + rows) of a sequence against keys [begin, end).
struct Sm90Item {
  int sequence, head, first_row, rows, position, begin, end;  // position: of the sequence's query 0
  __device__ __forceinline__ int first_key() const { return begin / kSm90Keys * kSm90Keys; }
};

// Blocks take rounds of the list forth and back, which evens out the tiles' lengths.
__device__ __forceinline__ int sm90_index(int round) {
  const int at = round % 2 == 0 ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
  return round * gridDim.x + at;
}

__device__ __forceinline__ Sm90Item sm90_item(const AttentionArgs& a, const Sm90Shape& shape,
                                              const int* prefix, int index) {
  Sm90Item it;
  const int group = a.heads / a.kv_heads, flat = index / a.kv_heads;
  const int s = plan_owner(prefix, a.sequences, flat);
  const int queries = a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s], most = shape.tokens_per_tile;
  const int token = (prefix[s + 1] - 1 - flat) * most;  // the longest first
  const int tokens = min(most, queries - token);
  it.sequence = s, it.head = index % a.kv_heads;
  it.first_row = token * group, it.rows = tokens * group;
  it.position = max(a.seq_lens[s] - queries, 0);
  it.begin = attention_first(a, it.position + token), it.end = it.position + token + tokens;
  return it;
}

// A stage's number and parity.
struct Sm90Turn {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kSm90Stages) stage = 0, phase ^= 1;
  }
};

// One tile of keys or values, from as many pages as it spans.
template <int D>
__device__ __forceinline__ void sm90_copy(const AttentionArgs& a, const Sm90Shape& shape,
                                          const Sm90Item& it, const CUtensorMap* map, int key,
                                          char* to, uint64_t* bar) {
  barrier_expect(bar, kSm90Keys * D * 2);
  for (int row = 0; row < kSm90Keys; row += shape.box) {
    const int at = key + row,
              block = static_cast<int>(attention_block(a, it.sequence, at / a.block_size));
    for (int column = 0; column < D / 64; ++column)
      copy_box(to + (column * kSm90Keys + row) * 128, map, bar, column * 64, at % a.block_size,
               it.head, block);
  }
}

template <int D>
__device__ __forceinline__ void sm90_produce(const AttentionArgs& a, const Sm90Maps& maps,
                                             const Sm90Shape& shape, const int* prefix, int total,
                                             Sm90Shared<D>& sh) {
  Sm90Turn turn;
  const int group = a.heads / a.kv_heads;
  for (int round = 0, index; (index = sm90_index(round)) < total; ++round) {
    const Sm90Item it = sm90_item(a, shape, prefix, index);
    barrier_wait(&sh.q_empty, ~round & 1);
    barrier_expect(&sh.q_full, shape.tokens_per_tile * group * D * 2);
    const int token = a.cu_seqlens_q[it.sequence] + it.first_row / group;
    for (int column = 0; column < D / 64; ++column)
      copy_box(sh.q + column * kSm90Rows * 128, &maps.q, &sh.q_full, column * 64, 0, it.head,
               token);
    for (int key = it.first_key(); key < it.end; key += kSm90Keys, turn.next()) {
      const int s = turn.stage;
      barrier_wait(&sh.key_empty[s], turn.phase ^ 1);
      sm90_copy<D>(a, shape, it, &maps.key, key, sh.key[s], &sh.key_full[s]);
      barrier_wait(&sh.value_empty[s], turn.phase ^ 1);
      sm90_copy<D>(a, shape, it, &maps.value, key, sh.value[s], &sh.value_full[s]);
    }
  }
}

// Values of keys that no row sees may be anything, NaN too: they become zero.
template <int D>
__device__ __forceinline__ void sm90_clear(const Sm90Item& it, int key, char* values) {
  constexpr int kPacks = kSm90Keys * D / 8;
  if (key >= it.begin && key + kSm90Keys <= it.end) return;
  for (int i = threadIdx.x - 128; i < kPacks; i += 128 * kSm90Teams) {
    const int at = key + i / 8 % kSm90Keys;
    if (at < it.begin || at >= it.end) *reinterpret_cast<uint4*>(values + i * 16) = uint4{};
  }
  stores_for_async();
  barrier_some(1, 128 * kSm90Teams);
}

// A 4 x 4 matrix of words, lane t of a quad with its row t (or column t), is transposed.
__device__ __forceinline__ void quad_transpose(uint32_t (&x)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
  const uint32_t a = __shfl_xor_sync(~0u, odd ? x[0] : x[1], 1);
  const uint32_t b = __shfl_xor_sync(~0u, odd ? x[2] : x[3], 1);
  (odd ? x[0] : x[1]) = a, (odd ? x[2] : x[3]) = b;
  const uint32_t c = __shfl_xor_sync(~0u, high ? x[0] : x[2], 2);
  const uint32_t d = __shfl_xor_sync(~0u, high ? x[1] : x[3], 2);
  (high ? x[0] : x[2]) = c, (high ? x[1] : x[3]) = d;
}

// 64 rows of a warpgroup; lane = 4 * g + t of warp w holds rows 16 w + g and + 8.
template <typename T, int D>
struct Sm90State {
  float o[D / 2], s[kSm90Keys / 2], top[2], total[2], old[2];
  uint32_t weights[kSm90Keys / 16][4];
  int last[2], row0;

  __device__ __forceinline__ void enter(const AttentionArgs& a, const Sm90Item& it, int team) {
    const int group = a.heads / a.kv_heads, lane = threadIdx.x % kWarp;
    row0 = team * 64 + threadIdx.x / kWarp % 4 * 16 + lane / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      last[half] = it.position + (it.first_row + row0 + 8 * half) / group;
      top[half] = -INFINITY, total[half] = 0.f;
    }
  }

  // Starts the logits of a tile.
  __device__ __forceinline__ void ask(uint32_t queries, uint32_t keys) {
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const int at = k % 4 * 32, column = k / 4 * 128;
      product_rows<T, kSm90Keys>(s, tile_by_rows(queries + column * kSm90Rows + at),
                                 tile_by_rows(keys + column * kSm90Keys + at), k > 0);
    }
    products_commit();
  }

  __device__ __forceinline__ void mask(const AttentionArgs& a, const Sm90Item& it, int key) {
    if (attention_bent(a))
#pragma unroll
      for (int i = 0; i < kSm90Keys / 2; ++i) s[i] = attention_logit(a, s[i]);
    const int group = a.heads / a.kv_heads, from = row0 / 64 * 64;
    const bool early = key + kSm90Keys - 1 <= it.position + (it.first_row + from) / group;
    const bool late = a.window == 0 ||
                      key >= attention_first(a, it.position + (it.first_row + from + 63) / group);
    if (early && late) return;
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = attention_first(a, last[half]);
#pragma unroll
      for (int j = 0; j < kSm90Keys / 8; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = key + 8 * j + 2 * t + i;
          if (at > last[half] || at < first) s[4 * j + 2 * half + i] = -INFINITY;
        }
    }
  }

  // Logits to weights, in place. `scale`: of the products, to base 2.
  __device__ __forceinline__ void weigh(float scale) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float high = -INFINITY;
#pragma unroll
      for (int j = 0; j < kSm90Keys / 8; ++j)
        high = fmaxf(high, fmaxf(s[4 * j + 2 * half], s[4 * j + 2 * half + 1]));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
      high = fmaxf(top[half], high * scale);
      old[half] = attention_rescale(top[half], high), top[half] = high;
      const float zero = high == -INFINITY ? 0.f : high;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < kSm90Keys / 8; ++j)
#pragma unroll
        for (int i = 4 * j + 2 * half; i < 4 * j + 2 * half + 2; ++i)
          s[i] = attention_exp2(fmaf(s[i], scale, -zero)), sum += s[i];
      total[half] = total[half] * old[half] + sum;
    }
  }

  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int k = 0; k < kSm90Keys / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[k][i] = pack2<T>(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
  }

  // Starts the sums over a tile's values; `more`: on top of earlier tiles'.
  __device__ __forceinline__ void add(uint32_t values, bool more) {
#pragma unroll
    for (int k = 0; k < kSm90Keys / 16; ++k)
      product_columns<T, D>(o, weights[k], tile_by_columns(values + k * 2048, kSm90Keys * 128),
                            k > 0 || more);
    products_commit();
  }

  __device__ __forceinline__ void rescale() {
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      o[4 * j] *= old[0], o[4 * j + 1] *= old[0];
      o[4 * j + 2] *= old[1], o[4 * j + 3] *= old[1];
    }
  }

  __device__ __forceinline__ void write(const AttentionArgs& a, const Sm90Item& it) const {
    const int group = a.heads / a.kv_heads, t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = total[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const int row = row0 + 8 * half, r = it.first_row + row, head = it.head * group + r % group;
      const float scale = attention_scale(a, head, top[half], sum);
      const int64_t token = a.cu_seqlens_q[it.sequence] + r / group;
      T* to = static_cast<T*>(a.out) + token * a.out_token + head * a.out_head;
#pragma unroll
      for (int j = 0; j < D / 8; j += 4) {
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          x[i] = pack2<T>(o[4 * (j + i) + 2 * half] * scale, o[4 * (j + i) + 2 * half + 1] * scale);
        quad_transpose(x);
        if (row < it.rows && (j + t) * 8 < a.dim)
          *reinterpret_cast<uint4*>(to + (j + t) * 8) = make_uint4(x[0], x[1], x[2], x[3]);
      }
    }
  }
};

// One arrival a warpgroup.
__device__ __forceinline__ void sm90_release(uint64_t* bar) {
  if (threadIdx.x % 128 == 0) barrier_arrive(bar);
}

}  // namespace fd
