// Prefill on sm_90a: one warp copies tiles of keys and values with the copy engine, straight from
// the pages; two warpgroups multiply (FlashAttention-3). Blocks stay and walk over tiles of query
// rows (token, head of the group), so that the next tile's copies run while this one is finished.
//
// While a tile's weights meet its values, the next tile's logits are computed.
#include "fd/attention_sm90.cuh"

namespace fd {

// The warpgroups start their products in turn, so that one computes weights while the other
// multiplies.
__device__ __forceinline__ void sm90_take_turn(int team) {
  barrier_some(2 + team, 128 * kSm90Teams);
}
__device__ __forceinline__ void sm90_pass_turn(int team) {
  barrier_some_arrive(2 + (team ^ 1), 128 * kSm90Teams);
}

// All tiles of an item.
template <typename T, int D>
__device__ __forceinline__ void sm90_tiles(const AttentionArgs& a, const Sm90Item& it,
                                           Sm90Shared<D>& sh, Sm90State<T, D>& state,
                                           Sm90Turn& keys, Sm90Turn& values) {
  const int team = threadIdx.x / 128 - 1;
  const float scale = attention_bent(a) ? 1.f : a.scale * kLog2e;
  const uint32_t queries = shared32(sh.q) + team * 64 * 128;
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
    barrier_wait(&sh.value_full[values.stage], values.phase);
    sm90_clear<D>(it, key, sh.value[values.stage]);
    barrier_wait(&sh.key_full[keys.stage], keys.phase);
    sm90_take_turn(team);
    products_begin();
    state.ask(queries, shared32(sh.key[keys.stage]));
    state.add(shared32(sh.value[values.stage]), key > it.first_key());
    sm90_pass_turn(team);
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
  state.add(shared32(sh.value[values.stage]), key > it.first_key());
  products_wait<0>();
  sm90_release(&sh.value_empty[values.stage]);
  values.next();
}

template <typename T, int D>
__device__ __forceinline__ void sm90_consume(const AttentionArgs& a, const Sm90Shape& shape,
                                             const int* prefix, int total, Sm90Shared<D>& sh) {
  const int team = threadIdx.x / 128 - 1;
  Sm90Turn keys, values;
  Sm90State<T, D> state;
  if (team == 1) sm90_pass_turn(team);
  for (int round = 0, index; (index = sm90_index(round)) < total; ++round) {
    const Sm90Item it = sm90_item(a, shape, prefix, index);
    state.enter(a, it, team);
    barrier_wait(&sh.q_full, round & 1);
    sm90_tiles<T, D>(a, it, sh, state, keys, values);
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
  return on.facts().sm == 90 && call.kind != kFloat32 && call.cache_kind == call.kind &&
         call.vectors && a.dim <= 128 && call.group() <= kSm90Rows && sm90_box(a.block_size) >= 8 &&
         a.sequences <= kSm90Sequences;
}

template <typename T, int D>
void sm90_launch(const Launch& on, const AttentionCall& call, int min_rows) {
  const AttentionArgs& a = call.args;
  const Sm90Shape shape{sm90_box(a.block_size), kSm90Rows / call.group(), min_rows};
  const size_t shared = sizeof(Sm90Shared<D>) + 1024 + sizeof(int) * (a.sequences + 1);
  allow_shared_once<paged_attention_sm90_rows<T, D>>(on, shared);
  run(on, paged_attention_sm90_rows<T, D>, dim3(on.facts().processors), dim3(kSm90Threads),
      shared, a, shape, sm90_maps(on, call, shape));
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
