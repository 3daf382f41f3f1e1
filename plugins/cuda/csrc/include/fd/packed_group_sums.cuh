// What blocks of packed_groups.cuh have in shared memory, and where their sums meet.
#pragma once
#include "fd/any_float.cuh"
#include "fd/hopper.cuh"
#include "fd/packed_team.cuh"

namespace fd {

constexpr int kGroupCopiers = 128;                            // threads that copy x
constexpr int kSharedOfSm = 233472, kSharedOfBlock = 232448;  // bytes

// Shared memory of a block.
template <typename Weights, int G, int R>
struct GroupShape {
  static constexpr int kWorkers = 128 * G, kThreads = kWorkers + kGroupCopiers;
  static constexpr int kBlocks = 3 - G;     // on a multiprocessor
  static constexpr int kColumns = 128 * G;  // rows of W
  static constexpr int kInput = Weights::kWindow / 8 * R;
  static constexpr int kWarpStage = 2 * kSkinnyStage<Weights>;
  static constexpr int kStageBytes = (kInput + 4 * G * kWarpStage) * 16 + 16;
  static constexpr int kSumsBytes = R * kColumns * 4;  // of a block alone
  static constexpr int kRoom = kBlocks == 1 ? kSharedOfBlock : kSharedOfSm / 2 - 1024;
  static constexpr int kFitting = (kRoom - kSumsBytes) / kStageBytes;
  static constexpr int kWanted = Weights::kWindow == 128 ? 4 : 6;
  static constexpr int kStages = kFitting < kWanted ? kFitting : kWanted;
  // Lanes that write sums together (4 rows of x, 8 of W) meet all banks.
  static constexpr int kPitch = kColumns + 4;
  static constexpr int kShared = kStages * kStageBytes + kSumsBytes;
  static_assert(kStages >= 3 && R * kPitch * 4 <= kStages * kStageBytes);
};

// Four floats that blocks of the team have written before a barrier.
__device__ __forceinline__ Vec<float, 4> read_shared_sums(const float* from) {
  Vec<float, 4> x;
  asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
               : "l"(from));
  return x;
}

// Where sums meet. Those of a block alone: `own`, [element / 4][thread] of four; in the end `ring`,
// [R][kPitch], which is done with by then. Those of a team: `eighths`, [8][R][kColumns].
template <typename Shape, int R>
struct GroupParts {
  static constexpr int kColumns = Shape::kColumns, kVectors = kColumns / 4;
  float *ring, *own, *eighths;
  int rows;

  // The warp's sums to a matrix [R][pitch].
  __device__ __forceinline__ void put(float* to, int pitch, const float (&sum)[2][R / 2]) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    to += lane % 4 * 2 * pitch + warp * 32 + lane / 4;
#pragma unroll
    for (int j = 0; j < R / 8; ++j) {
      if (8 * j >= rows) break;
#pragma unroll
      for (int e = 0; e < 8; ++e)
        to[(8 * j + e % 2) * pitch + e / 4 * 16 + e / 2 % 2 * 8] = sum[e / 4][4 * j + e % 4];
    }
  }
  // Adds the sums of an eighth to those before it, of a block alone; `fresh`: there are none.
  __device__ __forceinline__ void fold(bool fresh, float (&sum)[2][R / 2]) const {
    auto* at = reinterpret_cast<Vec<float, 4>*>(own) + threadIdx.x;
#pragma unroll
    for (int e = 0; e < R; e += 4, at += Shape::kWorkers) {
      float* part = &sum[e / (R / 2)][e % (R / 2)];
      Vec<float, 4> all = fresh ? Vec<float, 4>{} : *at;
#pragma unroll
      for (int v = 0; v < 4; ++v) all[v] += part[v], part[v] = all[v];
      *at = all;
    }
  }
  // Takes the sums of an eighth, which become zero; those of a block alone, once it is the `last`,
  // all that there were.
  __device__ __forceinline__ void keep(const Team& team, int eighth, bool last,
                                       float (&sum)[2][R / 2]) const {
    if (team.size > 1) {
      put(eighths + eighth * (R * kColumns), kColumns, sum);
    } else {
      fold(eighth == 0, sum);
      if (last) return;
    }
#pragma unroll
    for (int e = 0; e < R; ++e) sum[e / (R / 2)][e % (R / 2)] = 0.f;
  }
  // Hands the sums of a block alone to those threads that finish() them.
  __device__ __forceinline__ void close(const float (&sum)[2][R / 2]) const {
    barrier_some(1, Shape::kWorkers);
    put(ring, Shape::kPitch, sum);
  }
  // The sums of all eighths in their order, of four neighbours from `at` on; those that K does not
  // reach have none.
  __device__ __forceinline__ Vec<float, 4> total(int slices, int at) const {
    Vec<float, 4> part[kSkinnyWarps], sum{};
#pragma unroll
    for (int s = 0; s < kSkinnyWarps; ++s)
      part[s] = read_shared_sums(eighths + s * (R * kColumns) + at);
#pragma unroll
    for (int s = 0; s < kSkinnyWarps; ++s)
#pragma unroll
      for (int v = 0; v < 4; ++v) sum[v] += s < slices ? part[s][v] : 0.f;
    return sum;
  }
  // f(m, column, sums) for all of the block's part of the team's rows of x, by every worker.
  template <typename F>
  __device__ __forceinline__ void finish(const Team& team, int slices, F&& f) const {
    const int each = R / team.size, first = team.rank * each;
    const int count = min(each, rows - first) * kVectors;
    team.barrier();
#pragma unroll 1
    for (int i = threadIdx.x; i < count; i += Shape::kWorkers) {
      const int m = first + i / kVectors, column = i % kVectors * 4;
      const float* alone = ring + m * Shape::kPitch + column;
      f(m, column,
        team.size > 1 ? total(slices, m * kColumns + column)
                      : *reinterpret_cast<const Vec<float, 4>*>(alone));
    }
  }
};

// Four neighbours, by one instruction.
template <typename T>
__device__ __forceinline__ void group_store(void* to, int64_t i, const Vec<float, 4>& x) {
  T y[4];
#pragma unroll
  for (int v = 0; v < 4; ++v) y[v] = from_float<T>(x[v]);
  using Bits = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
  Bits bits;
  memcpy(&bits, y, sizeof(bits));
  *reinterpret_cast<Bits*>(static_cast<T*>(to) + i) = bits;
}

// Sums of columns n .. n + 3 of row m.
template <typename Weights>
__device__ __forceinline__ void group_put(const Weights& weights, const LinearSink& sink, int m,
                                          int64_t n, const Vec<float, 4>& sums) {
  const bool whole = n + 4 <= weights.columns && sink.step % 4 == 0 &&
                     reinterpret_cast<uintptr_t>(sink.out) % 16 == 0;
  Vec<float, 4> y{};
#pragma unroll
  for (int v = 0; v < 4; ++v) {
    if (n + v >= weights.columns) break;
    y[v] = weights.finish(sums[v], n + v);
    if (sink.bias != nullptr) y[v] += load_any(sink.bias, sink.bias_kind, n + v);
  }
  const int64_t at = m * sink.step + n;
  if (whole) {
    if (sink.out_kind == kFloat32) return group_store<float>(sink.out, at, y);
    if (sink.out_kind == kBfloat16) return group_store<bf16>(sink.out, at, y);
    return group_store<f16>(sink.out, at, y);
  }
  for (int v = 0; v < 4 && n + v < weights.columns; ++v)
    store_any(sink.out, sink.out_kind, at + v,
              v == 0   ? y[0]
              : v == 1 ? y[1]
              : v == 2 ? y[2]
                       : y[3]);
}

}  // namespace fd
