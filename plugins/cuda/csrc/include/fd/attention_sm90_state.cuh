// A warpgroup's softmax over tiles of keys, for the sm_90a kernel (paged_attention_sm90.cu).
#pragma once
#include "fd/attention_sm90.cuh"
#include "fd/attention_sm90_merge.cuh"
#include "fd/attention_wild.cuh"
#include "fd/mma.cuh"

namespace fd {

// Exponents of a row's weights refer to an earlier maximum until a lane's weights of a tile sum up
// to more than this: no rounding depends on the reference, and 16 bits hold 256 times as much.
constexpr float kSm90Slack = 256.f;
// Pairs of weights after which the last tile's products have ended, of the 32 of a lane.
constexpr int kSm90Meanwhile = 24;

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
template <typename T, int D, bool Bent>
struct Sm90State {
  float o[D / 2], s[kSm90Keys / 2], top[2], total[2], old[2];
  uint32_t weights[kSm90Keys / 16][4], fresh[kSm90Keys / 16][4];  // of this tile, of the next
  bool rose;                        // whether `old` differs from one in any lane of the warp
  int last[2], all_begin, all_end;  // the last key that a row sees; keys that all 64 rows see

  __device__ __forceinline__ static int row() {
    return threadIdx.x / 128 * 64 - 64 + threadIdx.x / kWarp % 4 * 16 + threadIdx.x % kWarp / 4;
  }

  __device__ __forceinline__ void enter(const AttentionArgs& a, const Sm90Shape& shape,
                                        const Sm90Item& it) {
    const int from = it.first_row + threadIdx.x / 128 * 64 - 64;
    all_end = it.position + from / shape.group + 1;
    all_begin = attention_first(a, it.position + (from + 63) / shape.group);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      last[half] = it.position + (it.first_row + row() + 8 * half) / shape.group;
      top[half] = row() + 8 * half < it.rows ? -INFINITY : 0.f;  // no row: any reference does
      total[half] = 0.f;
    }
  }

  // Starts the logits of a tile.
  __device__ __forceinline__ void ask(uint32_t queries, uint32_t keys) {
    const uint64_t x = tile_by_rows(queries), y = tile_by_rows(keys);
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const int at = k % 4 * 32, column = k / 4 * 128;
      product_rows<T, kSm90Keys>(s, tile_after(x, column * kSm90Rows + at),
                                 tile_after(y, column * kSm90Keys + at), k > 0);
    }
    products_commit();
  }

  __device__ __forceinline__ void mask(const AttentionArgs& a, int key) {
    if constexpr (Bent)
#pragma unroll
      for (int i = 0; i < kSm90Keys / 2; ++i) s[i] = attention_logit(a, s[i]);
    if (__builtin_expect(key >= all_begin && key + kSm90Keys <= all_end, 1)) return;
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

  // Weights of the pairs [From, To) of a tile's logits, added to this lane's sums, two for each
  // row. `scale`: of the products, to base 2.
  template <int From = 0, int To = kSm90Keys / 4>
  __device__ __forceinline__ void weights_of(float scale, float (&sum)[4]) {
    const float low[2] = {top[0] == -INFINITY ? 0.f : -top[0], top[1] == -INFINITY ? 0.f : -top[1]};
#pragma unroll
    for (int i = From; i < To; ++i) {
      const float x = attention_exp2(fmaf(s[2 * i], scale, low[i % 2]));
      const float y = attention_exp2(fmaf(s[2 * i + 1], scale, low[i % 2]));
      sum[i % 2 * 2] += x, sum[i % 2 * 2 + 1] += y;
      fresh[i / 4][i % 4] = pack2<T>(x, y);
    }
  }

  // The largest of a row's logits.
  __device__ __forceinline__ float highest(int half) const {
    float high = -INFINITY;
#pragma unroll
    for (int i = 0; i < kSm90Keys / 4; ++i)
      if (i % 2 == half) high = fmaxf(high, fmaxf(s[2 * i], s[2 * i + 1]));
    high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
    return fmaxf(high, __shfl_xor_sync(~0u, high, 2));
  }

  // The reference of a row's exponents becomes the maximum of its first logits.
  __device__ __forceinline__ void refer(int half, float scale) {
    const float high = highest(half) * scale;
    top[half] = top[half] == -INFINITY ? high : top[half];
  }

  // It becomes the maximum, where the row's weights ask for it.
  __device__ __forceinline__ void follow(int half, float sum, float scale) {
    float high = highest(half), most = top[half] == -INFINITY ? INFINITY : sum;
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
    most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
    high = most > kSm90Slack ? fmaxf(top[half], high * scale) : top[half];
    old[half] = attention_rescale(top[half], high), top[half] = high;
    total[half] *= old[half];
  }

  // True, but the compiler cannot know.
  __device__ __forceinline__ bool always() const { return !(total[0] < 0.f); }

  // The compiler does not know that products under way still read their weights, and would compute
  // the next ones in the same registers: behind the wait, it is to think that they are needed.
  __device__ __forceinline__ void hold() const {
    if (always()) return;
    uint32_t all = 0;
#pragma unroll
    for (int k = 0; k < kSm90Keys / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) all ^= weights[k][i];
    stay_before(all == 1);
  }

  // On a path that is never taken: what `fresh` held is not to be kept for it.
  __device__ __forceinline__ void forget() {
#pragma unroll
    for (int k = 0; k < kSm90Keys / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) asm volatile("mov.u32 %0, 0;" : "=r"(fresh[k][i]));
  }

  // Logits to weights. What a row's weights refer to is decided by this row alone. `first`: of the
  // item. `meanwhile` is called when the last tile's products have had time to end.
  template <typename Meanwhile>
  __device__ __forceinline__ void weigh(float scale, bool first, Meanwhile meanwhile) {
    constexpr int kPairs = kSm90Keys / 4, kMost = kSm90Meanwhile;
    float sum[4] = {};
    if (__builtin_expect(first, 0)) refer(0, scale), refer(1, scale);
    if (always())  // without a branch the compiler runs out of registers
      weights_of<0, kMost>(scale, sum);
    else
      forget();
    stay_before(sum[0] + sum[1] + sum[2] + sum[3] < 0.f);
    meanwhile();
    hold();
    weights_of<kMost, kPairs>(scale, sum);
    const float low = sum[0] + sum[1], high = sum[2] + sum[3];
    const bool large = low > kSm90Slack || high > kSm90Slack;
    rose = __any_sync(~0u, large || top[0] == -INFINITY || top[1] == -INFINITY);
    if (__builtin_expect(rose, 0)) {
      follow(0, low, scale), follow(1, high, scale);
      for (float& x : sum) x = 0.f;
      weights_of(scale, sum);
    }
    total[0] += sum[0] + sum[1], total[1] += sum[2] + sum[3];
  }

  // The weights of the next tile take the place of this one's, whose values have been added.
  __device__ __forceinline__ void turn() {
#pragma unroll
    for (int k = 0; k < kSm90Keys / 16; ++k)
#pragma unroll
      for (int i = 0; i < 4; ++i) weights[k][i] = fresh[k][i];
  }

  // Starts the sums over a tile's values; `more`: on top of earlier tiles'.
  __device__ __forceinline__ void add(uint32_t values, bool more) {
    const uint64_t y = tile_by_columns(values, kSm90Keys * 128);
#pragma unroll
    for (int k = 0; k < kSm90Keys / 16; ++k)
      product_columns<T, D>(o, weights[k], tile_after(y, k * 2048), k > 0 || more);
    products_commit();
  }

  // Infinities and NaN among the values of key `at`, row `r` of a tile, go to the rows that see it.
  __device__ __forceinline__ void add_wild(const AttentionArgs& a, const char* values, int r,
                                           int at) {
    const bool low = at <= last[0] && at >= attention_first(a, last[0]);
    const bool high = at <= last[1] && at >= attention_first(a, last[1]);
    const char* from = values + r * 128 + threadIdx.x % 4 * 4;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      const auto* pair =
          reinterpret_cast<const T*>(from + j / 8 * kSm90Keys * 128 + (j % 8 ^ r % 8) * 16);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float x = wild_part(to_float(pair[i]));
        o[4 * j + i] += low ? x : 0.f, o[4 * j + 2 + i] += high ? x : 0.f;
      }
    }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (float& x : o) x = 0.f;
  }

  __device__ __forceinline__ void rescale() {
    if (__builtin_expect(!rose, 1)) return;
#pragma unroll
    for (int j = 0; j < D / 8; ++j) {
      o[4 * j] *= old[0], o[4 * j + 1] *= old[0];
      o[4 * j + 2] *= old[1], o[4 * j + 3] *= old[1];
    }
  }

  // What turns the rows' sums into their means, one where they are to be merged; before the next
  // item is entered.
  __device__ __forceinline__ float2 finish(const AttentionArgs& a, const Sm90Shape& shape,
                                           const Sm90Scratch& scratch, const Sm90Item& it) const {
    float scale[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float sum = total[half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (it.parts > 1) {
        sm90_stats<D>(scratch, it, it.part, row() + 8 * half) = make_float2(top[half], sum);
        scale[half] = 1.f;
        continue;
      }
      const int head = it.head * shape.group + (it.first_row + row() + 8 * half) % shape.group;
      scale[half] = attention_scale(a, head, top[half], sum);
    }
    return make_float2(scale[0], scale[1]);
  }

  // A part's sums, for sm90_merge.
  __device__ __forceinline__ void publish(const Sm90Scratch& scratch, const Sm90Item& it) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row() + 8 * half >= it.rows) continue;
      float* to = sm90_sums<D>(scratch, it, it.part, row() + 8 * half) + threadIdx.x % 4 * 2;
#pragma unroll
      for (int j = 0; j < D / 8; ++j)
        *reinterpret_cast<float2*>(to + 8 * j) =
            make_float2(o[4 * j + 2 * half], o[4 * j + 2 * half + 1]);
    }
    __syncwarp();
    if (threadIdx.x % kWarp > 0) return;
    __threadfence();
    atomicAdd(scratch.counters + it.slot, 1);
  }

  __device__ __forceinline__ void write(const AttentionArgs& a, const Sm90Shape& shape,
                                        const Sm90Item& it, float2 scales) const {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float scale = half == 0 ? scales.x : scales.y;
      const int r = it.first_row + row() + 8 * half;
      const int head = it.head * shape.group + r % shape.group;
      const int64_t token = it.token + r / shape.group;
      T* to = static_cast<T*>(a.out) + token * a.out_token + head * a.out_head;
#pragma unroll
      for (int j = 0; j < D / 8; j += 4) {
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i)
          x[i] = pack2<T>(o[4 * (j + i) + 2 * half] * scale, o[4 * (j + i) + 2 * half + 1] * scale);
        quad_transpose(x);
        if (row() + 8 * half < it.rows && (j + t) * 8 < a.dim)
          *reinterpret_cast<uint4*>(to + (j + t) * 8) = make_uint4(x[0], x[1], x[2], x[3]);
      }
    }
  }
};

}  // namespace fd
