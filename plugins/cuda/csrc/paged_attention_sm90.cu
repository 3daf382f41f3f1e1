// Prefill on sm_90a: one warp copies tiles of keys and values with the copy engine, straight from
// the pages; two warpgroups multiply (FlashAttention-3). Blocks stay and walk over tiles of query
// rows (token, head of the group), so that the next tile's copies run while this one is finished.
//
// While a tile's weights meet its values, the next tile's logits are computed.
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
#pragma unroll
    for (int i = 0; i < D / 2; ++i) o[i] = 0.f;
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

  // Starts the sums over a tile's values.
  __device__ __forceinline__ void add(uint32_t values) {
#pragma unroll
    for (int k = 0; k < kSm90Keys / 16; ++k)
      product_columns<T, D>(o, weights[k], tile_by_columns(values + k * 2048, kSm90Keys * 128));
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
      if (row >= it.rows) continue;
      const float scale = attention_scale(a, head, top[half], sum);
      const int64_t token = a.cu_seqlens_q[it.sequence] + r / group;
      T* to = static_cast<T*>(a.out) + token * a.out_token + head * a.out_head;
#pragma unroll
      for (int j = 0; j < D / 8; ++j)
        if (j * 8 < a.dim)
          *reinterpret_cast<uint32_t*>(to + j * 8 + 2 * t) =
              pack2<T>(o[4 * j + 2 * half] * scale, o[4 * j + 2 * half + 1] * scale);
    }
  }
};

// One arrival a warpgroup.
__device__ __forceinline__ void sm90_release(uint64_t* bar) {
  if (threadIdx.x % 128 == 0) barrier_arrive(bar);
}

template <typename T, int D>
__device__ __forceinline__ void sm90_consume(const AttentionArgs& a, const Sm90Shape& shape,
                                             const int* prefix, int total, Sm90Shared<D>& sh) {
  const int team = threadIdx.x / 128 - 1;
  const float scale = attention_bent(a) ? 1.f : a.scale * kLog2e;
  const uint32_t queries = shared32(sh.q) + team * 64 * 128;
  Sm90Turn keys, values;
  Sm90State<T, D> state;
  for (int round = 0, index; (index = sm90_index(round)) < total; ++round) {
    const Sm90Item it = sm90_item(a, shape, prefix, index);
    state.enter(a, it, team);
    barrier_wait(&sh.q_full, round & 1);
    int key = it.first_key();
    barrier_wait(&sh.key_full[keys.stage], keys.phase);
    products_begin();
    state.ask(queries, shared32(sh.key[keys.stage]));
    products_wait<0>();
    sm90_release(&sh.key_empty[keys.stage]);
    keys.next();
    state.mask(a, it, key);
    state.weigh(scale);
    state.pack();
    for (; key + kSm90Keys < it.end; key += kSm90Keys) {
      barrier_wait(&sh.key_full[keys.stage], keys.phase);
      products_begin();
      state.ask(queries, shared32(sh.key[keys.stage]));
      barrier_wait(&sh.value_full[values.stage], values.phase);
      sm90_clear<D>(it, key, sh.value[values.stage]);
      products_begin();
      state.add(shared32(sh.value[values.stage]));
      products_wait<1>();
      sm90_release(&sh.key_empty[keys.stage]);
      keys.next();
      state.mask(a, it, key + kSm90Keys);
      state.weigh(scale);
      products_wait<0>();
      sm90_release(&sh.value_empty[values.stage]);
      values.next();
      state.rescale();
      state.pack();
    }
    sm90_release(&sh.q_empty);
    barrier_wait(&sh.value_full[values.stage], values.phase);
    sm90_clear<D>(it, key, sh.value[values.stage]);
    products_begin();
    state.add(shared32(sh.value[values.stage]));
    products_wait<0>();
    sm90_release(&sh.value_empty[values.stage]);
    values.next();
    state.write(a, it);
  }
}

template <int D>
__device__ __forceinline__ void sm90_begin(Sm90Shared<D>& sh) {
  if (threadIdx.x == 0) {
    barrier_init(&sh.q_full, 1), barrier_init(&sh.q_empty, kSm90Teams);
    for (int s = 0; s < kSm90Stages; ++s) {
      barrier_init(&sh.key_full[s], 1), barrier_init(&sh.key_empty[s], kSm90Teams);
      barrier_init(&sh.value_full[s], 1), barrier_init(&sh.value_empty[s], kSm90Teams);
    }
    barrier_init_done();
  }
  __syncthreads();
}

// Dynamic shared memory: Sm90Shared at a multiple of 1024 bytes, prefix [sequences + 1].
template <typename T, int D>
__global__ void __launch_bounds__(kSm90Threads, 1)
    paged_attention_sm90_rows(AttentionArgs a, Sm90Shape shape,
                              const __grid_constant__ Sm90Maps maps) {
  extern __shared__ char raw[];
  auto& sh = *reinterpret_cast<Sm90Shared<D>*>(raw + (1024 - shared32(raw) % 1024) % 1024);
  int* prefix = reinterpret_cast<int*>(&sh + 1);
  const int group = a.heads / a.kv_heads;
  const int tiles = plan_prefix<kSm90Threads>(a.sequences, prefix, [&](int s) {
    const int queries = a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s], most = shape.tokens_per_tile;
    return queries * group > shape.min_rows ? (queries + most - 1) / most : 0;
  });
  const int total = tiles * a.kv_heads;
  sm90_begin<D>(sh);
  if (threadIdx.x < 128) {
    fewer_registers<40>();
    if (threadIdx.x == 0) sm90_produce<D>(a, maps, shape, prefix, total, sh);
  } else {
    more_registers<232>();
    sm90_consume<T, D>(a, shape, prefix, total, sh);
  }
}

}  // namespace fd

#include "fd/attention.h"

namespace fd {

constexpr int kSm90Sequences = 512;  // their prefix sums share a block's memory with the tiles

using Sm90Encoder = decltype(&cuTensorMapEncodeTiled);

// The driver's function, through the runtime: nothing links the driver.
inline Sm90Encoder sm90_encoder(const char* op) {
  static void* const found = [&] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult status{};
    FD_CUDA_CHECK(op, cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                       cudaEnableDefault, &status));
    return function;
  }();
  if (found == nullptr) fail("RuntimeError", op, ": the driver has no cuTensorMapEncodeTiled");
  return reinterpret_cast<Sm90Encoder>(found);
}

// A 4-dimensional tensor, innermost first; strides in elements of 2 bytes, but for the innermost.
inline CUtensorMap sm90_map(const char* op, int kind, const void* data, const cuuint64_t (&size)[4],
                            const int64_t (&stride)[3], const cuuint32_t (&box)[4]) {
  CUtensorMap map;
  cuuint64_t bytes[3];
  // A dimension of one element may have any stride; the encoder wants a valid one.
  for (int d = 0; d < 3; ++d) bytes[d] = size[d + 1] > 1 ? stride[d] * 2 : 16;
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUtensorMapDataType type =
      kind == kBfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult status =
      sm90_encoder(op)(&map, type, 4, const_cast<void*>(data), size, bytes, box, steps,
                       CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                       CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS)
    fail("RuntimeError", op, ": cuTensorMapEncodeTiled: error ", static_cast<int>(status));
  return map;
}

// Slots that one copy takes: the largest power of two up to 64 that pages are multiples of.
inline int sm90_box(int block_size) {
  int box = 64;
  while (block_size % box != 0) box /= 2;
  return box;
}

inline Sm90Maps sm90_maps(const Launch& on, const AttentionCall& call, const Sm90Shape& shape) {
  const AttentionArgs& a = call.args;
  const cuuint32_t group = call.group(), tokens = shape.tokens_per_tile, box = shape.box;
  const auto u = [](int n) { return static_cast<cuuint64_t>(n); };
  return {
      sm90_map(on.op, call.kind, a.q, {u(a.dim), group, u(a.kv_heads), u(a.tokens)},
               {a.q_head, a.q_head * group, a.q_token}, {64, group, 1, tokens}),
      sm90_map(on.op, call.kind, a.key, {u(a.dim), u(a.block_size), u(a.kv_heads), u(a.blocks)},
               {a.key_slot, a.key_head, a.key_block}, {64, box, 1, 1}),
      sm90_map(on.op, call.kind, a.value, {u(a.dim), u(a.block_size), u(a.kv_heads), u(a.blocks)},
               {a.value_slot, a.value_head, a.value_block}, {64, box, 1, 1})};
}

bool sm90_fits(const Launch& on, const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  return on.sm() == 90 && call.kind != kFloat32 && call.cache_kind == call.kind && call.vectors &&
         a.dim <= 128 && call.group() <= kSm90Rows && sm90_box(a.block_size) >= 8 &&
         a.sequences <= kSm90Sequences;
}

template <typename T, int D>
void sm90_launch(const Launch& on, const AttentionCall& call, int min_rows) {
  const AttentionArgs& a = call.args;
  const Sm90Shape shape{sm90_box(a.block_size), kSm90Rows / call.group(), min_rows};
  const size_t shared = sizeof(Sm90Shared<D>) + 1024 + sizeof(int) * (a.sequences + 1);
  const auto kernel = paged_attention_sm90_rows<T, D>;
  allow_shared(on, kernel, shared);
  run(on, kernel, dim3(on.processors()), dim3(kSm90Threads), shared, a, shape,
      sm90_maps(on, call, shape));
}

void attend_sm90(const Launch& on, const AttentionCall& call, int min_rows) {
  dispatch_half(call.kind, [&](auto tag) {
    using T = decltype(tag);
    if (call.args.dim <= 64) return sm90_launch<T, 64>(on, call, min_rows);
    sm90_launch<T, 128>(on, call, min_rows);
  });
}

// This kernel alone for every row, for tests and benchmarks.
void paged_attention_sm90(Tensor q, Tensor key_cache, Tensor value_cache, Tensor cu_seqlens_q,
                          Tensor seq_lens, Tensor block_table, OptTensor sinks, double scale,
                          int64_t window, double soft_cap, Tensor out) {
  const char* op = "paged_attention_sm90";
  const AttentionCall call =
      checked_attention(op, q, key_cache, value_cache, cu_seqlens_q, seq_lens, block_table, sinks,
                        scale, window, soft_cap, q.size(0), out);
  const Launch on = launch_on(op, q);
  if (nothing_to_do(call)) return;
  if (!sm90_fits(on, call)) fail("ValueError", op, ": not for these types, sizes or this device");
  attend_sm90(on, call, 0);
}
FD_EXPORT(paged_attention_sm90)

}  // namespace fd
