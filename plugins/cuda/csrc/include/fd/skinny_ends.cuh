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
  static constexpr bool kWide = true;
  const T* weight;
  float eps;

  template <typename Weights>
  __host__ __device__ int64_t units(int64_t depth, int each) const {
    if (weight == nullptr) return 0;
    return kSkinnyWarps * skinny_rows_units<Weights>(depth, 1) +
           (row_parts<T>(depth) * each + 3) / 4;
  }

  // Of a short row, a lane keeps its units, of x and `weight`, in registers.
  static constexpr int kHeld = 2;
  template <typename Weights, int Teams>
  struct Early {
    ShortRow<Weights, Teams, T, kHeld> row;
    uint4 by[kHeld];
    float inverse;  // of the row's length
  };

  // `room`: of the block; a warp's part of `weight` in the order of a row of x.
  template <typename Weights, int Teams>
  __device__ __forceinline__ Early<Weights, Teams> fetch(uint4* room, const SkinnyInput<T>& input,
                                                         int m0, const WindowRange& range,
                                                         const SkinnyPlace<Teams>& place) const {
    using Row = ShortRow<Weights, Teams, T, kHeld>;
    Early<Weights, Teams> early{
        Row(input.x + m0 * input.step, input.depth, range, place), {}, inverse_of(input.depth)};
    asm volatile("" : "+f"(early.inverse));
    if (weight == nullptr) return early;
    if (Row::fits(input)) {
      Row(weight, input.depth, range, place).load(early.by);
      return early;
    }
    const int t = place.lane % 4;
    uint4* to = own<Weights>(room, input.depth, place.warp) + t;
    const int64_t k0 = int64_t{range.first} * Weights::kWindow + t * 8;
    place.each_sub(range.count * (Weights::kWindow / 32), [&](int sub) {
      const bool inside = k0 + sub * 32 < input.depth;
      copy_async16(to + sub * 4, inside ? weight + k0 + sub * 32 : weight, inside ? 16 : 0);
    });
    return early;
  }

  template <typename Weights, int Teams>
  __device__ __forceinline__ void load(uint4* to, uint4* room, const Early<Weights, Teams>& early,
                                       const SkinnyInput<T>& input, int m0,
                                       const WindowRange& range,
                                       const SkinnyPlace<Teams>& place) const {
    const int64_t weight_units = kSkinnyWarps * skinny_rows_units<Weights>(input.depth, 1);
    float* parts = reinterpret_cast<float*>(room + weight_units);
    if (weight == nullptr)
      skinny_copy_x<Weights>(to, input, m0, range, place, [](const uint4&, int, int, bool) {});
    else if (early.row.fits(input))
      load_short(to, parts, early, input);
    else
      load_any<Weights>(to, parts, own<Weights>(room, input.depth, place.warp), early.inverse,
                        input, m0, range, place);
    place.part_ready();
  }

 private:
  static __device__ __forceinline__ float squares(const uint4& unit) {
    return part_squares(sum_squares<T>(reinterpret_cast<const Pack<T>&>(unit)));
  }

  template <typename Weights, int Teams>
  __device__ __forceinline__ void load_short(uint4* to, float* parts,
                                             const Early<Weights, Teams>& early,
                                             const SkinnyInput<T>& input) const {
    uint4 held[kHeld];
    early.row.load(held);
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      const float part = squares(held[j]);
      if (threadIdx.x % 4 == 0 && j < early.row.inside) parts[early.row.sub + 8 * Teams * j] = part;
    }
    __syncthreads();
    constexpr int kMost = kSkinnyWarps * 8 * Teams * kHeld;
    const float scale = rms_scale<T, kMost>(parts, input.depth, early.inverse, eps);
#pragma unroll
    for (int j = 0; j < kHeld; ++j) held[j] = times(held[j], scale, early.by[j]);
    early.row.put(to, held);
  }

  template <typename Weights, int Teams>
  __device__ __forceinline__ void load_any(uint4* to, float* parts, const uint4* by, float inverse,
                                           const SkinnyInput<T>& input, int m0,
                                           const WindowRange& range,
                                           const SkinnyPlace<Teams>& place) const {
    const int all = static_cast<int>(row_parts<T>(input.depth)), t = place.lane % 4;
    const int subs = Weights::kWindow / 32, first = range.first * subs;
    const auto taken = [&](const uint4& unit, int m, int sub, bool there) {
      const float part = squares(unit);
      if (t == 0 && there && first + sub < all) parts[m * all + first + sub] = part;
    };
    skinny_copy_x<Weights>(to, input, m0, range, place, taken);
    __syncthreads();
    for (int m = 0; m < min(input.each, input.rows - m0); ++m) {
      const float scale = rms_scale<T>(parts + m * all, input.depth, inverse, eps);
      place.each_sub(range.count * subs, [&](int sub) {
        uint4& x = to[m * skinny_x_row<Weights>(input.depth) + sub * 4 + t];
        x = times(x, scale, by[sub * 4 + t]);
      });
    }
  }

  template <typename Weights>
  static __device__ __forceinline__ uint4* own(uint4* room, int64_t depth, int warp) {
    return room + warp * skinny_rows_units<Weights>(depth, 1);
  }
  static __device__ __forceinline__ uint4 times(uint4 x, float scale, uint4 by) {
    const Pack<T> y =
        scaled<T, T>(reinterpret_cast<const Pack<T>&>(x), scale, reinterpret_cast<const T*>(&by));
    return reinterpret_cast<const uint4&>(y);
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
