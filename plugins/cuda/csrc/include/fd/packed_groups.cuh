// y = x W^T over packed weights for some tens of rows on sm_90a: weights become the first operands
// of products of four warps in registers, x lies in shared memory.
//
// A block has 128 * G rows of W, two tiles for each warp of its G groups of four, and R of x. A
// warp copies its own codes some windows ahead and unpacks one tile while the products of the other
// are under way; four more warps copy x. Blocks of a team (cluster.cuh) share K by eighths. Their
// sums meet in the second-level cache: reading each other's shared memory is slower (measured on an
// H200: some 10 bytes a clock and multiprocessor).
// Products of 128 rows of x, with a tile for each warp, were tried: 128 against 97 us for 28672 x
// 4096 (H200). So were products of single warps (mma.sync): 68 against 51 us for 64 rows.
#pragma once
#include "fd/packed_group_sums.cuh"

namespace fd {

// Where a ring is: a slot, and the parity of its turn.
template <int S>
struct RingPlace {
  int slot = 0, parity = 0;
  __device__ __forceinline__ void next() {
    if (++slot == S) slot = 0, parity ^= 1;
  }
};

// x of R rows and one window after another, by four warps. The products take steps of k as the
// lanes hold those of W, step 8 * t + 4 * h + 2 * q + e of 32 at 16 * h + 8 * q + 2 * t + e: pairs
// of elements are copied one by one.
template <typename Weights, typename T, int R>
struct GroupInput {
  static constexpr int kRows = R / 4;  // of a warp, every fourth
  const T* from;
  int64_t depth, down;
  int count, first, to[2];

  __device__ __forceinline__ GroupInput(const SkinnyInput<T>& input, int m0)
      : depth(input.depth), down(4 * input.step) {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    count = (input.rows - m0 - warp + 3) / 4, first = lane * 2;
    from = input.x + (count > 0 ? (m0 + warp) * input.step : 0);
    const int chunk = lane / 16 * 4 + lane % 4, t = lane % 16 / 4;
    for (int i = 0; i < 2; ++i) to[i] = warp * 32 + (chunk ^ (warp + 4 * i)) * 4 + t;
  }
  __device__ __forceinline__ void copy(uint32_t* tile, int window) const {
#pragma unroll
    for (int pair = 0; pair < Weights::kWindow / 64; ++pair) {
      const int64_t k = int64_t{window} * Weights::kWindow + pair * 64 + first;
      const T* at = k < depth ? from + k : from;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        copy_async4(tile + pair * (R * 32) + i * 128 + to[i % 2], at,
                    k < depth && i < count ? 4 : 0);
        if (i + 1 < count) at += down;
      }
    }
  }
};

template <typename Weights, typename T, int R, int S>
__device__ __forceinline__ void group_copy(const SkinnyInput<T>& input, uint4* xs,
                                           uint64_t* arrived, uint64_t* read,
                                           const PackedShare& share, int m0) {
  const GroupInput<Weights, T, R> x(input, m0);
  RingPlace<S> at;
  for (int i = share.begin; i < share.end; ++i, at.next()) {
    if (i - share.begin >= S) barrier_wait(read + at.slot, at.parity ^ 1);
    x.copy(reinterpret_cast<uint32_t*>(xs + at.slot * (Weights::kWindow / 8 * R)), i);
    barrier_arrive_copied(arrived + at.slot);
  }
  copy_async_wait<0>();
}

// Sums of four warps, as the operands of inline assembly that are read and written.
// clang-format off
#define FD_GROUP_32_C "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]), "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15])
#define FD_GROUP_32_R "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define FD_GROUP_32_W "%16, %17, %18, %19"
#define FD_GROUP_32_X "%20"
#define FD_GROUP_32_ADD "%21"
#define FD_GROUP_64_C FD_WGMMA_64_C
#define FD_GROUP_64_R FD_WGMMA_64_R
#define FD_GROUP_64_W "%32, %33, %34, %35"
#define FD_GROUP_64_X "%36"
#define FD_GROUP_64_ADD "%37"
// clang-format on
#define FD_GROUP_PRODUCT(n, type)                                                   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " FD_GROUP_##n##_ADD               \
               ", 0;\n"                                                             \
               "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type      \
               " {" FD_GROUP_##n##_R "}, {" FD_GROUP_##n##_W "}, " FD_GROUP_##n##_X \
               ", p, 1, 1, 0;\n}"                                                   \
               : FD_GROUP_##n##_C                                                   \
               : "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]), "l"(x), "r"(static_cast<int>(add)))

// c = w x^T, plus c where `add`: w [64 x 16] in the registers of four warps, x [N x 16] by rows.
template <typename T, int N>
__device__ __forceinline__ void group_product(float (&c)[N / 2], const uint32_t (&w)[4], uint64_t x,
                                              bool add) {
#if FD_SM90A
  if constexpr (N == 64 && std::is_same_v<T, bf16>) FD_GROUP_PRODUCT(64, "bf16");
  if constexpr (N == 64 && std::is_same_v<T, f16>) FD_GROUP_PRODUCT(64, "f16");
  if constexpr (N == 32 && std::is_same_v<T, bf16>) FD_GROUP_PRODUCT(32, "bf16");
  if constexpr (N == 32 && std::is_same_v<T, f16>) FD_GROUP_PRODUCT(32, "f16");
#endif
}

// A tile of W in a window, unpacked: both first operands of each 32 steps.
template <typename Weights>
using GroupCodes = uint32_t[Weights::kWindow / 32][2][4];

// Products of a tile of W and a window, which are added to its sums: start() and, once they are
// done, finish().
template <typename Weights, typename T, int R>
struct GroupProducts {
  static constexpr bool kScaled = Weights::kExtra != 0;
  float even[R / 2], odd[R / 2];

  __device__ __forceinline__ void start(const GroupCodes<Weights>& a, uint64_t x,
                                        const float (&sum)[R / 2]) {
    if constexpr (!kScaled)
      for (int e = 0; e < R / 2; ++e) even[e] = sum[e];
    products_begin();
#pragma unroll
    for (int s = 0; s < Weights::kWindow / 32; ++s) {
      const uint64_t tile = x + s / 2 * (R * 8) + s % 2 * (64 >> 4);  // in units of 16 bytes
      group_product<T, R>(even, a[s][0], tile, !kScaled || s > 0);
      group_product<T, R>(kScaled ? odd : even, a[s][1], tile + (32 >> 4), !kScaled || s > 0);
    }
    products_commit();
  }
  __device__ __forceinline__ void finish(float (&sum)[R / 2], float2 scale) {
    products_wait<0>();
#pragma unroll
    for (int e = 0; e < R / 2; ++e) {
      asm volatile("" : "+f"(even[e]));  // no copies of sums while products are under way
      if constexpr (kScaled)
        sum[e] = fmaf(even[e] + odd[e], e % 4 < 2 ? scale.x : scale.y, sum[e]);
      else
        sum[e] = even[e];
    }
  }
};

// A warp's codes: a ring of windows of two tiles from `tile` on.
template <typename Weights, typename Shape>
struct GroupRing {
  static constexpr int S = Shape::kStages;
  const Weights& weights;
  uint4* memory;
  int tile, end, lane;

  __device__ __forceinline__ uint4* at(int slot, int i) const {
    return memory + slot * Shape::kWarpStage + i * kSkinnyStage<Weights>;
  }
  __device__ __forceinline__ void fetch(int window, int slot) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
      if (window < end && int64_t{tile + i} * kSkinnyTile < weights.columns)
        weights.fetch(at(slot, i), tile + i, window, lane);
    copy_async_commit();
  }
  __device__ __forceinline__ void unpack(GroupCodes<Weights>& a, int slot, int i) const {
    const uint4* w = at(slot, i);
#pragma unroll
    for (int s = 0; s < Weights::kWindow / 32; ++s) weights.operands(a[s], w, s, lane);
  }
  __device__ __forceinline__ float2 scales(int slot, int i) const {
    if constexpr (Weights::kExtra != 0)
      return weights.window_scales(at(slot, i), lane);
    else
      return {};
  }
};

// A window's products; codes are unpacked while those of the other tile are under way: a[0], which
// are those of this window's first tile, become those of the next window's in `next`.
template <typename Weights, typename T, typename Shape, int R>
__device__ __forceinline__ void group_window(float (&sum)[2][R / 2], GroupCodes<Weights> (&a)[2],
                                             const GroupRing<Weights, Shape>& ring, int slot,
                                             int next, uint64_t x) {
  GroupProducts<Weights, T, R> products;
  products.start(a[0], x, sum[0]);
  ring.unpack(a[1], slot, 1);
  const float2 scale[2] = {ring.scales(slot, 0), ring.scales(slot, 1)};
  products.finish(sum[0], scale[0]);
  products.start(a[1], x, sum[1]);
  copy_async_wait<Shape::kStages - 2>();
  __syncwarp();
  ring.unpack(a[0], next, 0);
  products.finish(sum[1], scale[1]);
}

// The sums of the warp's tiles over the block's part of K; where they go, `parts`.
template <typename Weights, typename T, typename Shape, int R>
__device__ __forceinline__ void group_work(const GroupRing<Weights, Shape>& ring, const uint4* xs,
                                           uint64_t* arrived, uint64_t* read, const Team& team,
                                           const PackedShare& share,
                                           const GroupParts<Shape, R>& parts) {
  constexpr int S = Shape::kStages;
  float sum[2][R / 2] = {};
  GroupCodes<Weights> a[2];
  RingPlace<S> at;
  int left = share.slice, eighth = team.rank * share.each;
  copy_async_wait<S - 2>();
  __syncwarp();
  ring.unpack(a[0], 0, 0);
  for (int i = share.begin; i < share.end; ++i) {
    const int slot = at.slot;
    ring.fetch(i + S - 1, slot == 0 ? S - 1 : slot - 1);
    barrier_wait(arrived + slot, at.parity);
    stores_for_async();
    at.next();
    group_window<Weights, T, Shape, R>(sum, a, ring, slot, at.slot,
                                       tile_by_rows(shared32(xs + slot * Shape::kInput)));
    if (ring.lane == 0) barrier_arrive(read + slot);
    if (--left > 0 && i + 1 < share.end) continue;
    parts.keep(team, eighth++, i + 1 == share.end, sum);
    left = share.slice;
  }
  if (team.size == 1) parts.close(sum);
}

template <typename Weights, typename T, int G, int R>
__global__ void __launch_bounds__(GroupShape<Weights, G, R>::kThreads,
                                  GroupShape<Weights, G, R>::kBlocks)
    linear_packed_groups(Weights weights, SkinnyInput<T> input, float* scratch, LinearSink sink) {
#if FD_SM90A
  using Shape = GroupShape<Weights, G, R>;
  constexpr int S = Shape::kStages;
  extern __shared__ __align__(1024) uint4 group_memory[];
  const Team team = Team::here();
  const PackedShare share(team, input.depth, Weights::kWindow);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int m0 = static_cast<int>(blockIdx.x) / team.size * R;
  uint4* const codes = group_memory + S * Shape::kInput;
  auto* const arrived = reinterpret_cast<uint64_t*>(codes + S * 4 * G * Shape::kWarpStage);
  uint64_t* const read = arrived + S;
  if (threadIdx.x == 0) {
    for (int i = 0; i < S; ++i)
      barrier_init(arrived + i, kGroupCopiers), barrier_init(read + i, 4 * G);
    barrier_init_done();
  }
  __syncthreads();
  if (warp >= 4 * G) {
    fewer_registers<40>();
    let_next_start();
    wait_for_inputs();
    group_copy<Weights, T, R, S>(input, group_memory, arrived, read, share, m0);
    team.barrier();  // that of parts.finish()
  } else {
    more_registers<G == 1 ? 216 : 232>();
    const int tile = (static_cast<int>(blockIdx.y) * 4 * G + warp) * 2;
    const GroupRing<Weights, Shape> ring{weights, codes + warp * S * Shape::kWarpStage, tile,
                                         share.end, lane};
#pragma unroll
    for (int i = 0; i < S - 1; ++i) ring.fetch(share.begin + i, i);
    let_next_start();
    const int team_at = blockIdx.y * (gridDim.x / team.size) + blockIdx.x / team.size;
    const GroupParts<Shape, R> parts{
        reinterpret_cast<float*>(group_memory), reinterpret_cast<float*>(read + S),
        scratch + int64_t{team_at} * (kSkinnyWarps * R * Shape::kColumns), input.rows - m0};
    group_work<Weights, T, Shape, R>(ring, group_memory, arrived, read, team, share, parts);
    wait_for_inputs();  // of those who read `out` before
    const int64_t n0 = int64_t{blockIdx.y} * Shape::kColumns;
    parts.finish(team, share.slices(), [&](int m, int column, const Vec<float, 4>& sums) {
      group_put(weights, sink, m0 + m, n0 + column, sums);
    });
  }
#endif
}

}  // namespace fd
