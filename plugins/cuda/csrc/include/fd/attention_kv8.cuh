// The split kernel's parts for quantised caches (paged_attention_kv8.cu): rows of one-byte codes,
// each followed by its scale. Codes become 16-bit elements on their way from shared memory to the
// products; a key's scale multiplies its logits, a value's the weights it meets.
#pragma once
#include "fd/attention_merge.cuh"

namespace fd {

constexpr int kKv8Runs = 2, kKv8Keys = kKv8Runs * kSplitTile;  // keys of one warp step
constexpr int kKv8Scale = 4;                                   // bytes behind a row's codes

// Two codes as elements of T, exactly. `x` holds them in bytes 0 and 2, and again in 1 and 3.
struct Int8Codes {
  template <typename T>
  __device__ __forceinline__ static uint32_t widened(uint32_t x);
};
// 128 + low seven bits, minus 128 or 256.
template <>
__device__ __forceinline__ uint32_t Int8Codes::widened<bf16>(uint32_t x) {
  const uint32_t sum = (x & 0x007f007fu) | 0x43004300u, base = (x & 0x00800080u) ^ 0xc300c300u;
  uint32_t y = 0;
#if FD_SM80
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(sum), "r"(0x3f803f80u), "r"(base));
#endif
  return y;
}
// 1024 + code + 128, minus 1152.
template <>
__device__ __forceinline__ uint32_t Int8Codes::widened<f16>(uint32_t x) {
  const uint32_t sum = (x & 0x00ff00ffu) ^ 0x64806480u;
  uint32_t y;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(sum), "r"(0x64806480u));
  return y;
}

// Exponent and mantissa in their places of T, times what the exponents' biases differ by.
struct E4m3Codes {
  template <typename T>
  __device__ __forceinline__ static uint32_t widened(uint32_t x);
};
template <>
__device__ __forceinline__ uint32_t E4m3Codes::widened<bf16>(uint32_t x) {
  const uint32_t small = (x & 0x80008000u) | (x >> 4 & 0x07f007f0u);
  uint32_t y = 0;
#if FD_SM80
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(small), "r"(0x7b807b80u), "r"(0x80008000u));
#endif
  return y;
}
template <>
__device__ __forceinline__ uint32_t E4m3Codes::widened<f16>(uint32_t x) {
  const uint32_t small = (x & 0x80008000u) | (x >> 1 & 0x3f803f80u);
  uint32_t y;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(small), "r"(0x5c005c00u));
  return y;
}

// Which four dimensions (a word of codes) a lane takes from a row, so that its warp's reads fall
// into different banks where D is 128 or more: of a key in step k of its products, of a value in
// the two tiles of 16 dimensions 2j and 2j + 1.
template <int D>
__device__ __forceinline__ int kv8_key_word(int k, int t) {
  constexpr int S = D / 16 < 8 ? D / 16 : 8;
  return k / S * 4 * S + S * t + k % S;
}
template <int D>
__device__ __forceinline__ int kv8_value_word(int j, int g) {
  constexpr int S = D / 32 < 4 ? D / 32 : 4;
  return j / S * 8 * S + g / 2 * 2 * S + g % 2 + j % S * 2;
}
template <int D>
struct Kv8Dims {
  __device__ __forceinline__ static int at(int m, int half, int g) {
    return 4 * kv8_value_word<D>(m / 2, g) + m % 2 * 2 + half;
  }
};

// Codes of the caches, where they lie. Strides in bytes are those of AttentionArgs; `runs`: 16
// keys of a page are one run of bytes, a multiple of 16 from an aligned address on.
template <int D, int Rows>
struct Kv8Fetch {
  int index, key, end, begin;  // item; next tile's first key, the chunk's bounds
  int sequence, head, page;    // page: block of this lane's key in the next tile, -1: none

  __device__ __forceinline__ void start() {
    index = static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x), key = end = begin = 0;
    page = -1;
  }
  __device__ __forceinline__ bool there(const SplitPlan& plan) const {
    return index >= 0 && index < plan.total;
  }
  // Runs are fetched whole where any of their keys is seen.
  __device__ __forceinline__ void advance(const AttentionArgs& a, const SplitPlan& plan,
                                          bool runs) {
    key += kSplitWarps * kKv8Keys;
    while (key >= end && index < plan.total) {  // short chunks leave some warps without a tile
      index += gridDim.x;
      if (index >= plan.total) break;
      const SplitItem it = split_item<Rows>(a, plan, index);
      sequence = it.sequence, head = it.head, begin = it.begin, end = it.end;
      key = begin / kKv8Keys * kKv8Keys + threadIdx.x / kWarp * kKv8Keys;
    }
    const int at = key + threadIdx.x % kWarp, reach = runs ? kSplitTile - 1 : 0;
    page = index < plan.total && (at | reach) >= begin && (at & ~reach) < end
               ? static_cast<int>(attention_block(a, sequence, at / a.block_size))
               : -1;
  }
  // Copies the tile's keys to `stage` and its values behind them. What is not seen stays what it
  // was: codes are finite whatever they are, and masks take care of scales.
  __device__ __forceinline__ void fetch(const AttentionArgs& a, char* stage, bool runs) const {
    const int pitch = a.dim + kKv8Scale, slot = (key + threadIdx.x % kWarp) % a.block_size;
    const int64_t keys = page * a.key_block + slot * a.key_slot + head * a.key_head;
    const int64_t values = page * a.value_block + slot * a.value_slot + head * a.value_head;
    const char *key_base = static_cast<const char*>(a.key),
               *value_base = static_cast<const char*>(a.value);
    if (runs) {
      fetch_runs(key_base, keys, pitch, stage);
      fetch_runs(value_base, values, pitch, stage + kKv8Keys * pitch);
    } else {
      fetch_rows(key_base, keys, pitch, stage);
      fetch_rows(value_base, values, pitch, stage + kKv8Keys * pitch);
    }
  }
  __device__ __forceinline__ void fetch_runs(const char* base, int64_t mine, int pitch,
                                             char* to) const {
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int r = 0; r < kKv8Runs; ++r) {
      const char* from = base + __shfl_sync(~0u, mine, r * kSplitTile);
      if (__shfl_sync(~0u, page, r * kSplitTile) < 0) continue;
#pragma unroll
      for (int i = 0; i < (D + kKv8Scale + kWarp - 1) / kWarp; ++i) {
        const int pack = i * kWarp + lane;  // a run has as many as a row has bytes
        if (pack < pitch)
          copy_async16(to + (r * pitch + pack) * kSplitTile, from + pack * kSplitTile);
      }
    }
  }
  __device__ __forceinline__ void fetch_rows(const char* base, int64_t mine, int pitch,
                                             char* to) const {
#pragma unroll 1
    for (int row = 0; row < kKv8Keys; ++row) {
      const char* from = base + __shfl_sync(~0u, mine, row);
      if (__shfl_sync(~0u, page, row) < 0) continue;
      for (int b = threadIdx.x % kWarp * 4; b < pitch; b += kWarp * 4)
        copy_async4(to + row * pitch + b, from + b);
    }
  }
};

// Products that a weight takes part in.
template <typename T>
constexpr int kKv8Parts = 2;
template <>
constexpr int kKv8Parts<bf16> = 1;

// A warp's softmax over tiles of codes; columns and lanes as in SplitState. Values are multiplied
// as bfloat16, which has room for weights times any scale; float16's precision takes what rounding
// leaves of a weight as a second product.
template <typename Codes, typename T, int D, int N>
struct Kv8State : SplitState<T, D, N> {
  static constexpr int kParts = kKv8Parts<T>;
  using Logits = float[N][kKv8Runs][4];

  // As SplitState's, the dimensions in the order of the key words.
  __device__ __forceinline__ void load_queries(const AttentionArgs& a, const SplitItem& it) {
    const int group = a.heads / a.kv_heads, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int row = it.first_row + n * 8 + g;
      const int64_t token = it.start + row / group;
      const T* from = static_cast<const T*>(a.q) + token * a.q_token +
                      (it.head * group + row % group) * a.q_head;
#pragma unroll
      for (int k = 0; k < D / 16; k += 2) {
        const int d = 4 * kv8_key_word<D>(k, t);
        const bool there = n * 8 + g < it.rows && d < a.dim;
        const uint4 pack =
            there ? *reinterpret_cast<const uint4*>(from + d) : make_uint4(0u, 0u, 0u, 0u);
        this->q[n][k][0] = pack.x, this->q[n][k][1] = pack.y;
        this->q[n][k + 1][0] = pack.z, this->q[n][k + 1][1] = pack.w;
      }
    }
  }

  __device__ __forceinline__ static uint32_t word(const char* at) {
    return *reinterpret_cast<const uint32_t*>(at);
  }
  __device__ __forceinline__ static float scale(const char* row, int pitch) {
    return *reinterpret_cast<const float*>(row + pitch - kKv8Scale);
  }

  // s[n]: key g, columns 2t and 2t + 1; then key g + 8. `keys`: a run.
  __device__ __forceinline__ void products(const AttentionArgs& a, const char* keys, int run,
                                           Logits& s) const {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4, pitch = a.dim + kKv8Scale;
    const char *low = keys + g * pitch, *high = low + 8 * pitch;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      const uint32_t x = word(low + 4 * kv8_key_word<D>(k, t));
      const uint32_t y = word(high + 4 * kv8_key_word<D>(k, t));
      const uint32_t tile[4] = {Codes::template widened<T>(__byte_perm(x, 0, 0x1100)),
                                Codes::template widened<T>(__byte_perm(y, 0, 0x1100)),
                                Codes::template widened<T>(__byte_perm(x, 0, 0x3322)),
                                Codes::template widened<T>(__byte_perm(y, 0, 0x3322))};
#pragma unroll
      for (int n = 0; n < N; ++n) mma_16x8x16<T>(s[n][run], tile, this->q[n][k]);
    }
    const bool capped = a.soft_cap > 0.f;
    const float factor = capped ? 1.f : a.scale * kLog2e;
    const float scales[2] = {scale(low, pitch) * factor, scale(high, pitch) * factor};
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = s[n][run][i] * scales[i / 2];
        s[n][run][i] = capped ? attention_capped(a, x) : x;
      }
  }

  __device__ __forceinline__ bool sees(int n, int j, int at) const {
    return at <= this->last[n][j] && at >= this->first[n][j];
  }

  // Logits to weights, in place; the old sums shrink where a maximum rises.
  __device__ __forceinline__ void weigh(int key, Logits& s) {
    const int g = threadIdx.x % kWarp / 4;
    float old[N][2];
    bool same = true;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float high = -INFINITY;
#pragma unroll
        for (int i = 0; i < 2 * kKv8Runs; ++i) {
          float& x = s[n][i / 2][i % 2 * 2 + j];
          x = sees(n, j, key + g + 8 * i) ? x : -INFINITY;
          high = fmaxf(high, x);
        }
#pragma unroll
        for (int d = 4; d < kWarp; d *= 2) high = fmaxf(high, __shfl_xor_sync(~0u, high, d));
        high = fmaxf(high, this->top[n][j]);
        old[n][j] = attention_rescale(this->top[n][j], high);
        same = same && old[n][j] == 1.f;
        const float zero = high == -INFINITY ? 0.f : high;
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < 2 * kKv8Runs; ++i) {
          float& x = s[n][i / 2][i % 2 * 2 + j];
          x = attention_exp2(x - zero), sum += x;
        }
        this->total[n][j] = this->total[n][j] * old[n][j] + sum, this->top[n][j] = high;
      }
    if (__all_sync(~0u, same)) return;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int m = 0; m < D / 16; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) this->o[n][m][i] *= old[n][i % 2];
  }

  // The weights times their values' scales, as operands of the second product. A scale may be NaN:
  // rows that do not see the key have nothing of it.
  __device__ __forceinline__ void scaled(const char* values, int pitch, int key, int run,
                                         const Logits& s, uint32_t (&weights)[kParts][N][2]) const {
    const int g = threadIdx.x % kWarp / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = scale(values + (g + 8 * half) * pitch, pitch);
#pragma unroll
      for (int n = 0; n < N; ++n) {
        float x[2];
#pragma unroll
        for (int j = 0; j < 2; ++j)
          x[j] = sees(n, j, key + g + 8 * half) ? s[n][run][2 * half + j] * factor : 0.f;
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          weights[part][n][half] = transposed(pack2<bf16>(x[0], x[1]));
#pragma unroll
          for (int j = 0; j < 2; ++j) x[j] -= to_float(from_float<bf16>(x[j]));
        }
      }
    }
  }

  __device__ __forceinline__ void add(const char* values, int pitch,
                                      const uint32_t (&weights)[kParts][N][2]) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    const char* rows = values + 2 * t * pitch;
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
      const char* at = rows + 4 * kv8_value_word<D>(j, g);
      const uint32_t x[4] = {word(at), word(at + pitch), word(at + 8 * pitch),
                             word(at + 9 * pitch)};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        uint32_t tile[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int byte = 2 * e + i % 2, pick = 0x11 * byte + 0x1100 * (4 + byte);
          tile[i] =
              Codes::template widened<bf16>(__byte_perm(x[i / 2 * 2], x[i / 2 * 2 + 1], pick));
        }
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            mma_16x8x16<bf16>(this->o[n][2 * j + e], tile, weights[part][n]);
      }
    }
  }

  __device__ __forceinline__ void tile(const AttentionArgs& a, const char* stage, int key) {
    const int pitch = a.dim + kKv8Scale;
    const char* values = stage + kKv8Keys * pitch;
    Logits s = {};
#pragma unroll
    for (int r = 0; r < kKv8Runs; ++r) products(a, stage + r * kSplitTile * pitch, r, s);
    weigh(key, s);
#pragma unroll
    for (int r = 0; r < kKv8Runs; ++r) {
      const char* run = values + r * kSplitTile * pitch;
      uint32_t weights[kParts][N][2];
      scaled(run, pitch, key + r * kSplitTile, r, s, weights);
      add(run, pitch, weights);
    }
  }
};

}  // namespace fd
