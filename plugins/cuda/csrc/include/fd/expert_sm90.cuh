// Rows of experts times their matrices [depth, columns] by products of four warps (sm_90a), for
// experts of many rows.
//
// Blocks stay and take tiles of 128 rows by 256 columns in turn from a list that each makes itself:
// of eight tiles of an expert's rows one after the other with the same columns, so that these come
// from memory once. One warp copies, two warpgroups multiply, 64 rows each. Each output is summed
// over k as in expert_product.cuh.
#pragma once
#include "fd/activation.cuh"
#include "fd/expert_groups.cuh"
#include "fd/hopper.cuh"
#include "fd/mma.cuh"

namespace fd {

constexpr int kWideRows = 128, kWideColumns = 256, kWideDepth = 64;
constexpr int kWideTeams = 2, kWideThreads = 128 * (kWideTeams + 1), kWideBand = 8;
constexpr int kWideBox = 64 * 128;  // bytes of 64 rows of 64 elements

// `maps`: x [rows, depth] and w [experts, depth, columns], in boxes of 64 elements by 128 and 64.
struct WideMaps {
  CUtensorMap x, w;
};

// y[r] = x[r] W[e(r)], or, where gated, silu(g) * u with [g, u] = x[r] W[e(r)] + bias[e(r)].
template <typename T_, bool Gated>
struct WideExperts {
  using T = T_;
  static constexpr bool kGated = Gated, kByRows = false;  // by rows: W's tiles in shared memory
  static constexpr int kStages = 4;
  ExpertRows rows;  // sorted by expert
  const T* bias;    // [experts, columns] or null
  int64_t columns;  // of W
  int depth, room;  // room: groups of kWideRows that there can be
  T* out;           // [rows, width]

  __device__ __forceinline__ int64_t width() const { return Gated ? columns / 2 : columns; }
  __device__ __forceinline__ int steps() const { return (depth + kWideDepth - 1) / kWideDepth; }
  // The product for column n of W's part `part` from its sum.
  __device__ __forceinline__ float finish(float sum, int expert, int part, int64_t n) const {
    if (bias == nullptr) return sum;
    return sum + to_float(bias[expert * columns + part * width() + n]);
  }
};

struct WideStage {
  char x[2 * kWideBox];  // 128 rows of 64 steps
  char w[4 * kWideBox];  // 64 steps of 64 columns, four times; or 256 rows of 64 steps
};
template <int Stages>
struct WideShared {
  WideStage stage[Stages];
  uint64_t full[Stages], empty[Stages];

  // By all threads. `arrivals`: for a stage to be full, copies apart.
  __device__ __forceinline__ void begin(int arrivals) {
    if (threadIdx.x == 0) {
      for (int s = 0; s < Stages; ++s)
        barrier_init(&full[s], arrivals), barrier_init(&empty[s], 4 * kWideTeams);
      barrier_init_done();
    }
    __syncthreads();
  }
};

// A place in the ring of stages.
template <int Stages>
struct WideTurn {
  int stage = 0, phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == Stages) stage = 0, phase ^= 1;
  }
};

// Item `i` of the list: a group and its first column (of a half where gated).
struct WideItem {
  RowGroup group;
  int column;

  __device__ __forceinline__ WideItem(const RowGroup* groups, int i, int across, int each) {
    const int at = i / across;
    const RowGroup& own = groups[at];
    const int place = own.index % kWideBand, first = at - place;
    const int band = min(kWideBand, place + (own.left + kWideRows - 1) / kWideRows);
    const int inside = i - first * across;
    group = groups[first + inside % band], column = inside / band * each;
  }
};

// c [64 x 128] = x [64 x 16] w [16 x 128], plus c where `add`: x by rows, w by columns
// (hopper.cuh).
template <typename T>
__device__ __forceinline__ void product_rows_columns(float (&c)[64], uint64_t x, uint64_t w,
                                                     bool add) {
#if FD_SM90A
#define FD_ROWS_COLUMNS(type)                                                          \
  asm volatile(                                                                        \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"                                     \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" FD_WGMMA_128_R \
      "}, %64, %65, p, 1, 1, 0, 1;\n}"                                                 \
      : FD_WGMMA_128_C                                                                 \
      : "l"(x), "l"(w), "r"(static_cast<int>(add)))
  if constexpr (std::is_same_v<T, bf16>) FD_ROWS_COLUMNS("bf16");
  if constexpr (std::is_same_v<T, f16>) FD_ROWS_COLUMNS("f16");
#undef FD_ROWS_COLUMNS
#endif
}

// Of tiles of 8 columns i = 0 .. 3 each lane of four has a pair, u[i]; it gets the four pairs of
// tile t, its number among the four.
__device__ __forceinline__ uint4 turned(uint32_t (&u)[4], int t) {
  const bool odd = t & 1, high = t & 2;
  const uint32_t a = __shfl_xor_sync(~0u, odd ? u[0] : u[1], 1);
  const uint32_t b = __shfl_xor_sync(~0u, odd ? u[2] : u[3], 1);
  if (odd)
    u[0] = a, u[2] = b;
  else
    u[1] = a, u[3] = b;
  const uint32_t c = __shfl_xor_sync(~0u, high ? u[0] : u[2], 2);
  const uint32_t d = __shfl_xor_sync(~0u, high ? u[1] : u[3], 2);
  return high ? uint4{c, d, u[2], u[3]} : uint4{u[0], u[1], c, d};
}

// The copying thread.
template <typename Job>
struct WideCopies {
  const Job& job;
  const WideMaps& maps;
  WideShared<Job::kStages>& sh;
  WideTurn<Job::kStages> turn;

  __device__ __forceinline__ void copy(const WideItem& item) {
    const int half = static_cast<int>(job.columns / 2);
    for (int k = 0; k < job.depth; k += kWideDepth, turn.next()) {
      WideStage& to = sh.stage[turn.stage];
      uint64_t* bar = &sh.full[turn.stage];
      barrier_wait(&sh.empty[turn.stage], turn.phase ^ 1);
      barrier_expect(bar, sizeof(WideStage));
      copy_box(to.x, &maps.x, bar, k, item.group.first, 0, 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = item.column + (Job::kGated ? i % 2 * 64 + i / 2 * half : i * 64);
        copy_box(to.w + i * kWideBox, &maps.w, bar, column, k, item.group.expert, 0);
      }
    }
  }
};

// A warpgroup: `team` 0 has the first 64 rows of a tile.
template <typename Job>
struct WideTeam {
  using T = typename Job::T;
  const Job& job;
  WideShared<Job::kStages>& sh;
  const int team;
  WideTurn<Job::kStages> turn;
  float c[2][64];  // columns [0, 128) and [128, 256); where gated, gates and what they gate

  // The block's items.
  __device__ __forceinline__ void run(const RowGroup* groups, int items, int across, int each) {
    for (int i = blockIdx.x; i < items; i += gridDim.x) {
      const WideItem item(groups, i, across, each);
      if (team * 64 >= item.group.left) {
        pass();
        continue;
      }
      multiply();
      store(item);
    }
  }
  __device__ __forceinline__ void release(int stage) {
    __syncwarp();
    if (threadIdx.x % kWarp == 0) barrier_arrive(&sh.empty[stage]);
  }
  // `k`: which 16 steps of a stage; `half`: which of c.
  __device__ __forceinline__ void product(uint32_t stage, int k, int half, bool add) {
    const uint64_t x = tile_after(tile_by_rows(stage + team * kWideBox), k * 32);
    const uint32_t at = stage + 2 * kWideBox + half * 2 * kWideBox;
    if constexpr (Job::kByRows)
      product_rows<T, 128>(c[half], x, tile_after(tile_by_rows(at), k * 32), add);
    else
      product_rows_columns<T>(c[half], x, tile_after(tile_by_columns(at, kWideBox), k * 2048), add);
  }
  __device__ __forceinline__ void multiply() {
    int before = 0;
    const int steps = job.steps();
#pragma unroll 1
    for (int s = 0; s < steps; ++s, turn.next()) {
      barrier_wait(&sh.full[turn.stage], turn.phase);
      const uint32_t stage = shared32(&sh.stage[turn.stage]);
      products_begin();
#pragma unroll
      for (int i = 0; i < kWideDepth / 8; ++i) product(stage, i / 2, i % 2, s > 0 || i / 2 > 0);
      products_commit();
      products_wait<1>();
      if (s > 0) release(before);
      before = turn.stage;
    }
    products_wait<0>();
    release(before);
  }
  // Without rows of its own.
  __device__ __forceinline__ void pass() {
    for (int s = 0; s < job.steps(); ++s, turn.next()) {
      barrier_wait(&sh.full[turn.stage], turn.phase);
      release(turn.stage);
    }
  }

  // Outputs [n, n + 2) of row h of the lane's two from tile `j` of 8 columns.
  __device__ __forceinline__ uint32_t pair(int expert, int64_t n, int j, int h) const {
    float y[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = j % 16 * 4 + 2 * h + i;
      if constexpr (Job::kGated) {
        const float gate = to_float(from_float<T>(job.finish(c[0][at], expert, 0, n + i)));
        y[i] = silu_of(gate) * to_float(from_float<T>(job.finish(c[1][at], expert, 1, n + i)));
      } else {
        y[i] = job.finish(c[j / 16][at], expert, 0, n + i);
      }
    }
    return pack2<T>(y[0], y[1]);
  }
  // Nothing reads the sums of tiles j .. j + 3 before this: the compiler would do all arithmetic at
  // once, for which there are no registers, and does not know what the wait for products means.
  __device__ __forceinline__ void stay(int j) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      asm volatile("" : "+f"(c[j / 16][j % 16 * 4 + i]));
      if constexpr (Job::kGated) asm volatile("" : "+f"(c[1][j % 16 * 4 + i]));
    }
  }
  __device__ __forceinline__ void store(const WideItem& item) {
    const int lane = threadIdx.x % kWarp, t = lane % 4, expert = item.group.expert;
    const int row = team * 64 + threadIdx.x % 128 / kWarp * 16 + lane / 4;
    const int64_t width = job.width();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (row - lane / 4 + 8 * h >= item.group.left) return;  // the warp has no rows from here on
      const bool inside = row + 8 * h < item.group.left;
      T* to = job.out + (int64_t{item.group.first} + row + 8 * h) * width;
#pragma unroll
      for (int j = 0; j < (Job::kGated ? 16 : 32); j += 4) {
        uint32_t u[4];
        stay(j);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t n = item.column + (j + i) * 8 + t * 2;
          u[i] = pair(expert, n < width ? n : 0, j + i, h);
        }
        const uint4 whole = turned(u, t);
        const int64_t n = item.column + (j + t) * 8;
        if (inside && n < width) *reinterpret_cast<uint4*>(to + n) = whole;
      }
    }
  }
};

// Columns of an item.
template <typename Job>
constexpr int kWideEach = Job::kGated ? kWideColumns / 2 : kWideColumns;

// Shared memory at a multiple of 1024 bytes.
__device__ __forceinline__ char* wide_aligned(char* memory) {
  return memory + (1024 - shared32(memory) % 1024) % 1024;
}
// Number of the thread's team; `first`: thread of team 0.
__device__ __forceinline__ int wide_team(int first) {
  return __shfl_sync(~0u, (static_cast<int>(threadIdx.x) - first) / 128, 0);
}

// Dynamic shared memory: WideShared at a multiple of 1024 bytes, groups [room].
template <typename Job>
__global__ void __launch_bounds__(kWideThreads, 1)
    moe_expert_sm90_tiles(Job job, const __grid_constant__ WideMaps maps) {
#if FD_SM90A
  extern __shared__ char wide_memory[];
  auto& sh = *reinterpret_cast<WideShared<Job::kStages>*>(wide_aligned(wide_memory));
  auto* groups = reinterpret_cast<RowGroup*>(&sh + 1);
  sh.begin(1);
  wait_for_inputs();
  constexpr int kEach = kWideEach<Job>;
  const int across = static_cast<int>((job.width() + kEach - 1) / kEach);
  const int items = list_groups<kWideThreads>(job.rows, kWideRows, job.room, groups) * across;
  if (threadIdx.x < 128) {
    fewer_registers<40>();
    WideCopies<Job> copies{job, maps, sh, {}};
    if (threadIdx.x == 0)
      for (int i = blockIdx.x; i < items; i += gridDim.x)
        copies.copy(WideItem(groups, i, across, kEach));
  } else {
    more_registers<232>();
    WideTeam<Job> team{job, sh, wide_team(128), {}, {}};
    team.run(groups, items, across, kEach);
  }
  clear_rest(job.rows, job.width(), job.out);
#endif
}

}  // namespace fd
