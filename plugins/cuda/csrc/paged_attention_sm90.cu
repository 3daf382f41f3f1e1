// Prefill on sm_90a: one warp copies tiles of keys and values with the copy engine, straight from
// the pages; two warpgroups multiply (FlashAttention-3). Blocks stay and take tiles of query rows
// (token, head of the group) from one list, the longest of a sequence first.
//
// While a tile's weights meet its values, the next tile's logits are computed, across the ends of
// tiles of query rows too.
//
// A row with finite inputs (its query, the keys and values that it sees) is finite and right
// whatever other rows' inputs hold: logits of unseen keys are replaced, and where rows of a tile
// see different keys, infinities and NaN are taken out of its values (Sm90Walk::take_wild), which
// the remaining three warps look for.
#include "fd/attention_sm90.cuh"
#include "fd/attention_sm90_state.cuh"
#include "fd/attention_sm90_watch.cuh"
#include "fd/overlap.cuh"

namespace fd {

// The warpgroups start their products in turn, so that one computes weights while the other
// multiplies.
__device__ __forceinline__ void sm90_take_turn(int team) {
  barrier_some(2 + team, 128 * kSm90Teams);
}
__device__ __forceinline__ void sm90_pass_turn(int team) {
  barrier_some_arrive(2 + (team ^ 1), 128 * kSm90Teams);
}

// One arrival a warp: the warps of a team do not end their products together.
__device__ __forceinline__ void sm90_release(uint32_t bar) {
  __syncwarp();
  if (threadIdx.x % kWarp == 0) barrier_arrive(bar);
}

// A warpgroup's way through the block's items: where it is, what it holds. `key`: of the tile whose
// weights are known and whose values come next. `team` and `base`, the address of `sh`, are to come
// from shuffles: the compiler then keeps them, once for a warp.
template <typename T, int D, bool Bent>
struct Sm90Walk {
  const AttentionArgs& a;
  const Sm90Shape& shape;
  const Sm90Scratch& scratch;
  Sm90Shared<D>& sh;
  const int team;
  const uint32_t base;
  Sm90State<T, D, Bent> state;
  Sm90Turn<kSm90Stages> queries, keys;
  Sm90Turn<kSm90ValueStages> values;
  Sm90Span span;
  int slot, key, watched;  // watched: parity of each stage's `value_watched`

  __device__ __forceinline__ const Sm90Item& item() const { return sh.item[slot]; }
  __device__ __forceinline__ uint32_t address(const void* p) const {
    return base +
           static_cast<uint32_t>(static_cast<const char*>(p) - reinterpret_cast<const char*>(&sh));
  }

  // Whether there is an item where `queries` points.
  __device__ __forceinline__ bool arrive() {
    barrier_wait(address(&sh.q_full[queries.stage]), queries.phase);
    return sh.item[queries.stage].rows > 0;
  }

  __device__ __forceinline__ void ask() {
    state.ask(address(sh.q[queries.stage]) + team * 64 * 128, address(sh.key[keys.stage]));
  }

  // Infinities and NaN that only some rows see go to these rows' sums at once and are taken out of
  // the tile. By both teams.
  __device__ __forceinline__ void take_wild() {
    constexpr int kBoth = 128 * kSm90Teams;
    char* tile = sh.value[values.stage];
    barrier_some(1, kBoth);
    if (key == span.first_key()) state.clear();
#pragma unroll 1
    for (int r = 0; r < kSm90Keys; ++r)
      if (!span.all_see(key + r)) state.add_wild(a, tile, r, key + r);
    barrier_some(1, kBoth);
    for (int i = threadIdx.x - 128; i < kSm90Keys * D / 8; i += kBoth)
      if (!span.all_see(key + i / 8 % kSm90Keys)) tame<T>(reinterpret_cast<uint4*>(tile)[i]);
    stores_for_async();
    barrier_some(1, kBoth);
  }

  // The tile's values are there; whether sums of earlier tiles, or of its infinities and NaN, are.
  __device__ __forceinline__ bool await_values() {
    barrier_wait(address(&sh.value_full[values.stage]), values.phase);
    const bool later = key > span.first_key();
    if (__builtin_expect(!span.uneven(key), 1)) return later;
    barrier_wait(address(&sh.value_watched[values.stage]), watched >> values.stage & 1);
    watched ^= 1 << values.stage;
    if (*reinterpret_cast<const uint32_t*>(sh.wild[values.stage]) == 0) return later;
    take_wild();
    return true;
  }
  __device__ __forceinline__ void leave_values() {
    sm90_release(address(&sh.value_empty[values.stage]));
    values.next();
  }

  __device__ __forceinline__ void enter(int next) {
    slot = next, span = item(), key = span.first_key();
  }

  __device__ __forceinline__ void begin() {
    enter(0);
    state.enter(a, shape, item());
    barrier_wait(address(&sh.key_full[0]), 0);
    products_begin();
    ask();
    products_wait<0>();
    weigh(key, true, [] {});
    state.turn();
  }

  // This tile's values and the next tile's logits, which may be the next item's; false at the end.
  __device__ __forceinline__ bool step() {
    const bool last = key + kSm90Keys >= span.end;
    if (__builtin_expect(last, 0)) {
      queries.next();
      if (!arrive()) return false;
    }
    const bool more = await_values();
    barrier_wait(address(&sh.key_full[keys.stage]), keys.phase);
    sm90_take_turn(team);
    products_begin();
    ask();
    state.add(address(sh.value[values.stage]), more);
    sm90_pass_turn(team);
    int next = key + kSm90Keys;
    float2 scales{};
    if (__builtin_expect(last, 0)) {
      const Sm90Item& then = sh.item[queries.stage];
      scales = state.finish(a, shape, scratch, item());
      state.enter(a, shape, then), next = then.first_key();
    }
    products_wait<1>();
    weigh(next, last, [&] {
      products_wait<0>();
      leave_values();
    });
    if (__builtin_expect(last, 0)) {
      write(scales);
      enter(queries.stage);
    } else {
      state.rescale();
      key = next;
    }
    state.turn();
    return true;
  }

  // The logits of the tile at `next`, which are there, become weights.
  template <typename Meanwhile>
  __device__ __forceinline__ void weigh(int next, bool first, Meanwhile meanwhile) {
    sm90_release(address(&sh.key_empty[keys.stage]));
    keys.next();
    state.mask(a, next);
    state.weigh(Bent ? 1.f : a.scale * kLog2e, first, meanwhile);
  }

  __device__ __forceinline__ void write(float2 scales) {
    if (__builtin_expect(item().parts > 1, 0))
      state.publish(scratch, item());
    else
      state.write(a, shape, item(), scales);
    sm90_release(address(&sh.q_empty[slot]));
  }

  __device__ __forceinline__ void end() {
    const bool more = await_values();
    products_begin();
    state.add(address(sh.value[values.stage]), more);
    const float2 scales = state.finish(a, shape, scratch, item());
    products_wait<0>();
    write(scales);
  }
};

template <typename T, int D, bool Bent>
__device__ __forceinline__ void sm90_consume(const AttentionArgs& a, const Sm90Shape& shape,
                                             const Sm90Scratch& scratch, Sm90Shared<D>& sh) {
  const int team = __shfl_sync(~0u, threadIdx.x / 128, 0) - 1;
  const uint32_t base = __shfl_sync(~0u, shared32(&sh), 0);
  Sm90Walk<T, D, Bent> walk{a, shape, scratch, sh, team, base, {}, {}, {}, {}, {}, 0, 0, 0};
  if (!walk.arrive()) return;
  if (team == 1) sm90_pass_turn(1);
  walk.begin();
  while (walk.step()) {
  }
  walk.end();
}

// Dynamic shared memory: Sm90Shared at a multiple of 1024 bytes, prefix [sequences + 1]. `taken`:
// zero before and after.
template <typename T, int D, bool Bent>
__global__ void __launch_bounds__(kSm90Threads, 1)
    paged_attention_sm90_rows(AttentionArgs a, Sm90Shape shape, Sm90Scratch scratch, int* taken,
                              const __grid_constant__ Sm90Maps maps) {
  extern __shared__ char raw[];
  auto& sh = *reinterpret_cast<Sm90Shared<D>*>(raw + (1024 - shared32(raw) % 1024) % 1024);
  sm90_begin<D>(sh);
  wait_for_inputs();
  const int first = sm90_take(taken);
  sm90_plan(a, shape, scratch, sh);
  if (threadIdx.x < 128) {
    fewer_registers<kSm90CopyRegisters>();
    if (threadIdx.x < kWarp)
      sm90_produce<D>(a, maps, shape, taken, first, sh);
    else
      sm90_watch<T, D>(sh);
  } else {
    more_registers<kSm90ProductRegisters>();
    sm90_consume<T, D, Bent>(a, shape, scratch, sh);
    if (sh.parted == 0) return;
    barrier_some(1, 128 * kSm90Teams);  // nobody reads tiles any more
    sm90_merge<T, D>(a, shape, scratch, sm90_list_of(sh), reinterpret_cast<float*>(sh.key[0]));
  }
}

}  // namespace fd

#include "fd/attention.h"
#include "fd/tensor_map.h"

namespace fd {

constexpr int kSm90Sequences = 416;  // their prefix sums share a block's memory with the tiles
constexpr int kSm90Tokens = 1 << (kSm90ItemBits - 1);

// The scratch of all attention: each launch writes before it reads, and leaves counters at zero.
inline Sm90Scratch sm90_scratch(const Launch& on, int dim) {
  const AttentionScratch scratch = attention_scratch(on);
  const size_t slot = kSm90Rows * (dim + 2) * sizeof(float);
  return {scratch.partial, scratch.counters, static_cast<int>(kAttentionScratch / slot)};
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
  const bool bfloat = call.kind == kBfloat16;
  return {
      tensor_map(on.op, bfloat, a.q, {u(a.dim), group, u(a.kv_heads), u(a.tokens)},
                 {a.q_head, a.q_head * group, a.q_token}, {64, group, 1, tokens}),
      tensor_map(on.op, bfloat, a.key, {u(a.dim), u(a.block_size), u(a.kv_heads), u(a.blocks)},
                 {a.key_slot, a.key_head, a.key_block}, {64, box, 1, 1}),
      tensor_map(on.op, bfloat, a.value, {u(a.dim), u(a.block_size), u(a.kv_heads), u(a.blocks)},
                 {a.value_slot, a.value_head, a.value_block}, {64, box, 1, 1})};
}

bool sm90_fits(const Launch& on, const AttentionCall& call) {
  const AttentionArgs& a = call.args;
  return on.facts().sm == 90 && call.kind != kFloat32 && call.cache_kind == call.kind &&
         call.vectors && a.dim <= 128 && call.group() <= kSm90Rows && sm90_box(a.block_size) >= 8 &&
         a.sequences <= kSm90Sequences && a.tokens <= kSm90Tokens;
}

template <typename T, int D, bool Bent>
void sm90_launch_as(const Launch& on, const AttentionCall& call, const Sm90Shape& shape) {
  const AttentionArgs& a = call.args;
  const size_t shared = sizeof(Sm90Shared<D>) + 1024 + sizeof(int) * (a.sequences + 1);
  allow_shared_once<paged_attention_sm90_rows<T, D, Bent>>(on, shared);
  run_overlapped(on, paged_attention_sm90_rows<T, D, Bent>, dim3(on.facts().processors),
                 dim3(kSm90Threads), shared, a, shape, sm90_scratch(on, D), attention_queue(on),
                 sm90_maps(on, call, shape));
}

template <typename T, int D>
void sm90_launch(const Launch& on, const AttentionCall& call, int min_rows) {
  const AttentionArgs& a = call.args;
  const Sm90Shape shape{sm90_box(a.block_size), kSm90Rows / call.group(), min_rows, call.group()};
  if (attention_bent(a)) return sm90_launch_as<T, D, true>(on, call, shape);
  sm90_launch_as<T, D, false>(on, call, shape);
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
