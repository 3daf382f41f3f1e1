// What a block of skinny.cuh does before and after its products, so that no kernel is needed for
// it: `Start` brings x into shared memory, a sink takes the sums.
//
// A start: units(), of shared memory that it needs; fetch(), what no kernel under way writes; and
// load(), all of a warp's part of x. Results are those of the kernels one after another, bit for
// bit.
#pragma once
#include "fd/activation.cuh"
#include "fd/norm.cuh"
#include "fd/skinny.cuh"

namespace fd {

// x as it is, or, given `weight` [depth], RMS-normed as by op rms_norm. No kernel under way writes
// `weight`, which lies at 16 bytes.
template <typename T>
struct NormStart {
  const T* weight;
  float eps;

  template <typename Weights>
  __host__ __device__ int64_t units(int64_t depth, int each) const {
    if (weight == nullptr) return 0;
    return kSkinnyWarps * skinny_x_units<Weights>(depth, 1) + (row_parts<T>(depth) * each + 3) / 4;
  }

  // `room`: of the block; a warp's part of `weight` in the order of a row of x.
  template <typename Weights>
  __device__ __forceinline__ void fetch(uint4* room, int64_t depth, const WindowRange& range,
                                        int lane) const {
    if (weight == nullptr) return;
    uint4* to = own<Weights>(room, depth) + lane % 4;
    const int k0 = range.first * Weights::kWindow + lane % 4 * 8;
    for (int sub = lane / 4; sub < subs<Weights>(range); sub += 8) {
      const bool inside = k0 + sub * 32 < depth;
      copy_async16(to + sub * 4, inside ? weight + k0 + sub * 32 : weight, inside ? 16 : 0);
    }
  }

  template <typename Weights>
  __device__ __forceinline__ void load(uint4* to, uint4* room, const SkinnyInput<T>& input, int m0,
                                       const WindowRange& range, int lane) const {
    if (weight == nullptr) return skinny_load_x<Weights>(to, input, m0, range, lane, Untouched{});
    const int64_t weight_units = kSkinnyWarps * skinny_x_units<Weights>(input.depth, 1);
    float* parts = reinterpret_cast<float*>(room + weight_units);
    const int all = static_cast<int>(row_parts<T>(input.depth));
    const int first = range.first * (Weights::kWindow / 32);
    skinny_load_x<Weights>(to, input, m0, range, lane, [&](const uint4& unit, int m, int sub) {
      const float part = part_squares(sum_squares<T>(reinterpret_cast<const Pack<T>&>(unit)));
      if (lane % 4 == 0 && first + sub < all) parts[m * all + first + sub] = part;
    });
    __syncthreads();
    const uint4* by = own<Weights>(room, input.depth);
    for (int m = 0; m < min(input.each, input.rows - m0); ++m) {
      const float scale = rms_scale<T>(parts + m * all, input.depth, eps);
      for (int sub = lane / 4; sub < subs<Weights>(range); sub += 8)
        times(to[(sub * input.each + m) * 4 + lane % 4], scale, by[sub * 4 + lane % 4]);
    }
    __syncwarp();
  }

 private:
  struct Untouched {
    __device__ __forceinline__ void operator()(const uint4&, int, int) const {}
  };
  template <typename Weights>
  static __device__ __forceinline__ int subs(const WindowRange& range) {
    return range.count * (Weights::kWindow / 32);
  }
  template <typename Weights>
  static __device__ __forceinline__ uint4* own(uint4* room, int64_t depth) {
    return room + threadIdx.x / 32 * skinny_x_units<Weights>(depth, 1);
  }
  static __device__ __forceinline__ void times(uint4& x, float scale, const uint4& by) {
    const Pack<T> y =
        scaled<T, T>(reinterpret_cast<const Pack<T>&>(x), scale, reinterpret_cast<const T*>(&by));
    x = reinterpret_cast<const uint4&>(y);
  }
};

// out[m * step + n] = sum + bias[n]; where it `adds`, out += that, as T, rounded before and after.
template <typename T>
struct AddingSink {
  LinearSink to;
  bool adds;

  static constexpr int kParts = 1;
  struct Column {
    float before;
  };
  __device__ __forceinline__ T* at(int64_t m, int64_t n) const {
    return static_cast<T*>(to.out) + m * to.step + n;
  }
  __device__ __forceinline__ void early(Column& column, int64_t m, int64_t n) const {
    if (adds) column.before = to_float(*at(m, n));
  }
  __device__ __forceinline__ void put(int64_t m, int64_t n, float sum, Column& column) const {
    if (!adds) return to.put(m, n, sum);
    *at(m, n) = from_float<T>(to_float(from_float<T>(to.biased(sum, n))) + column.before);
  }
};

// Rows of W are gates [half], then ups [half]: out[m * step + n] = silu(gate) * up, each rounded
// to T before.
template <typename T>
struct GatedSink {
  LinearSink to;
  int64_t half;

  static constexpr int kParts = 2;
  struct Column {
    float gate;
  };
  __device__ __forceinline__ void early(Column&, int64_t, int64_t) const {}
  __device__ __forceinline__ void put(int64_t m, int64_t n, float sum, Column& column) const {
    const float y = to_float(from_float<T>(to.biased(sum, n)));
    if (n < half)
      column.gate = y;
    else
      static_cast<T*>(to.out)[m * to.step + n - half] = from_float<T>(SiluMul{}(column.gate, y));
  }
};

}  // namespace fd
