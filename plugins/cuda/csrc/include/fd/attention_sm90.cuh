// The parts of the sm_90a kernel (paged_attention_sm90.cu) that are no arithmetic: its list of
// tiles and the warp that copies.
#pragma once
#include "fd/attention_plan.cuh"
#include "fd/hopper.cuh"

namespace fd {

constexpr int kSm90Rows = 128, kSm90Keys = 128;
// Stages of queries, keys and values: values are waited for longest, since both teams hold theirs
// until they have been multiplied.
constexpr int kSm90Stages = 2, kSm90ValueStages = 3;
constexpr int kSm90Teams = 2, kSm90Threads = 128 * (kSm90Teams + 1);  // warpgroups
constexpr int kSm90Warps = 4 * kSm90Teams;                            // that multiply

// Where the copy engine finds things. q: [tokens, heads, dim]; key, value: [blocks, heads, slots,
// dim]. `box`: slots of one copy; rows of a tile that hold queries: tokens_per_tile * group.
struct Sm90Maps {
  CUtensorMap q, key, value;
};
struct Sm90Shape {
  int box, tokens_per_tile, min_rows, group;
};

// Keys [begin, end), of which all rows of a tile see [all_begin, all_end).
struct Sm90Span {
  int begin, end, all_begin, all_end;

  __device__ __forceinline__ int first_key() const { return begin / kSm90Keys * kSm90Keys; }
  __device__ __forceinline__ bool all_see(int at) const { return at >= all_begin && at < all_end; }
  // Whether some row sees less than the whole tile of keys.
  __device__ __forceinline__ bool uneven(int key) const {
    return key < all_begin || key + kSm90Keys > all_end;
  }
};

// A tile of rows [first_row, first_row + rows) of a sequence. No rows: the list has ended.
struct Sm90Item : Sm90Span {
  int sequence, head, first_row, rows, position, token;  // of the sequence's query 0
};

// Shared memory; tiles are [dim / 64] columns of [rows][64].
template <int D>
struct Sm90Shared {
  char q[kSm90Stages][kSm90Rows * D * 2];
  char key[kSm90Stages][kSm90Keys * D * 2], value[kSm90ValueStages][kSm90Keys * D * 2];
  Sm90Item item[kSm90Stages];
  uint64_t q_full[kSm90Stages], q_empty[kSm90Stages];
  uint64_t key_full[kSm90Stages], key_empty[kSm90Stages];
  uint64_t value_full[kSm90ValueStages], value_empty[kSm90ValueStages];
};

// A stage's number and parity.
template <int Stages>
struct Sm90Turn {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == Stages) stage = 0, phase ^= 1;
  }
};

template <int D>
__device__ __forceinline__ void sm90_begin(Sm90Shared<D>& sh) {
  if (threadIdx.x == 0) {
    for (int s = 0; s < kSm90Stages; ++s) {
      barrier_init(&sh.q_full[s], 1), barrier_init(&sh.q_empty[s], kSm90Warps);
      barrier_init(&sh.key_full[s], 1), barrier_init(&sh.key_empty[s], kSm90Warps);
    }
    for (int s = 0; s < kSm90ValueStages; ++s)
      barrier_init(&sh.value_full[s], 1), barrier_init(&sh.value_empty[s], kSm90Warps);
    barrier_init_done();
  }
  __syncthreads();
}

__device__ __forceinline__ Sm90Item sm90_item(const AttentionArgs& a, const Sm90Shape& shape,
                                              const int* prefix, int index) {
  Sm90Item it;
  const int flat = index / a.kv_heads, s = plan_owner(prefix, a.sequences, flat);
  const int queries = a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s], most = shape.tokens_per_tile;
  const int token = (prefix[s + 1] - 1 - flat) * most;  // the longest first
  const int tokens = min(most, queries - token);
  it.sequence = s, it.head = index % a.kv_heads, it.token = a.cu_seqlens_q[s];
  it.first_row = token * shape.group, it.rows = tokens * shape.group;
  it.position = max(a.seq_lens[s] - queries, 0);
  it.all_end = it.position + token + 1, it.end = it.all_end + tokens - 1;
  it.begin = attention_first(a, it.all_end - 1), it.all_begin = attention_first(a, it.end - 1);
  return it;
}

// The next tile of the list for a block that has begun one: blocks take them as they come. As many
// are taken as there are; the last taker leaves the counter at zero.
__device__ __forceinline__ int sm90_take(int* taken, int total) {
  const int n = atomicAdd(taken, 1);
  if (n == total - 1) *taken = 0;
  return n + gridDim.x;
}

// A tile of values that is copied behind the keys of the next tile: these are needed first.
struct Sm90Values {
  int sequence, head, key;
};

// The copying thread. Items are handed on with their queries.
template <int D>
struct Sm90Copies {
  const AttentionArgs& a;
  const Sm90Maps& maps;
  const Sm90Shape& shape;
  Sm90Shared<D>& sh;
  Sm90Turn<kSm90Stages> queries, keys;
  Sm90Turn<kSm90ValueStages> values;
  Sm90Values left;  // key < 0: none

  // One tile of keys or values, from as many pages as it spans.
  __device__ __forceinline__ void copy(const CUtensorMap* map, const Sm90Values& from, char* to,
                                       uint64_t* bar) {
    barrier_expect(bar, kSm90Keys * D * 2);
    for (int row = 0; row < kSm90Keys; row += shape.box) {
      const int at = from.key + row,
                block = static_cast<int>(attention_block(a, from.sequence, at / a.block_size));
      for (int column = 0; column < D / 64; ++column)
        copy_box(to + (column * kSm90Keys + row) * 128, map, bar, column * 64, at % a.block_size,
                 from.head, block);
    }
  }

  __device__ __forceinline__ void copy_queries(const Sm90Item& it) {
    const int n = queries.stage, token = it.token + it.first_row / shape.group;
    barrier_wait(&sh.q_empty[n], queries.phase ^ 1);
    sh.item[n] = it;
    barrier_expect(&sh.q_full[n], shape.tokens_per_tile * shape.group * D * 2);
    for (int column = 0; column < D / 64; ++column)
      copy_box(sh.q[n] + column * kSm90Rows * 128, &maps.q, &sh.q_full[n], column * 64, 0, it.head,
               token);
    queries.next();
  }

  __device__ __forceinline__ void copy_keys(const Sm90Values& from) {
    const int s = keys.stage;
    barrier_wait(&sh.key_empty[s], keys.phase ^ 1);
    copy(&maps.key, from, sh.key[s], &sh.key_full[s]);
    keys.next();
  }

  __device__ __forceinline__ void copy_values() {
    if (left.key < 0) return;
    const int s = values.stage;
    barrier_wait(&sh.value_empty[s], values.phase ^ 1);
    copy(&maps.value, left, sh.value[s], &sh.value_full[s]);
    values.next();
  }

  __device__ __forceinline__ void end() {
    copy_values();
    barrier_wait(&sh.q_empty[queries.stage], queries.phase ^ 1);
    sh.item[queries.stage].rows = 0;
    barrier_arrive(&sh.q_full[queries.stage]);
  }
};

template <int D>
__device__ __forceinline__ void sm90_produce(const AttentionArgs& a, const Sm90Maps& maps,
                                             const Sm90Shape& shape, const int* prefix, int total,
                                             int* taken, Sm90Shared<D>& sh) {
  Sm90Copies<D> copies{a, maps, shape, sh, {}, {}, {}, {0, 0, -1}};
  int index = blockIdx.x;
  Sm90Item next;
  if (index < total) next = sm90_item(a, shape, prefix, index);
  while (index < total) {
    const Sm90Item it = next;
    copies.copy_queries(it);
    index = sm90_take(taken, total);
    for (int key = it.first_key(); key < it.end; key += kSm90Keys) {
      const Sm90Values tile{it.sequence, it.head, key};
      copies.copy_keys(tile);
      copies.copy_values();
      copies.left = tile;
      if (key == it.first_key() && index < total) next = sm90_item(a, shape, prefix, index);
    }
  }
  copies.end();
}

}  // namespace fd
