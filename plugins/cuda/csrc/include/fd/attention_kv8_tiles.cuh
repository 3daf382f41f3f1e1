// The parts of prefill over quantised caches (paged_attention_kv8_tiles.cu): which rows a block
// takes, how codes come to shared memory and become tiles of f16, and a warp's softmax over them.
#pragma once
#include "fd/attention_codes.cuh"
#include "fd/attention_plan.cuh"

namespace fd {

constexpr int kKv8TileWarps = 4, kKv8TileThreads = kKv8TileWarps * kWarp;

// D: padded head dimension; M: groups of 16 rows a warp holds; Keys: keys of a tile. Shared memory:
// queries, keys and values of f16, units of rows, scales of keys and of values, codes, prefix.
template <int D>
struct Kv8Tiles {
  static constexpr int M = D > 128 ? 1 : 2, Keys = D > 128 ? 32 : 64, Packs = D / 8;
  static constexpr int Rows = kKv8TileWarps * 16 * M;
  static constexpr int AtKeys = Rows * D * 2, AtValues = AtKeys + Keys * D * 2;
  static constexpr int AtUnits = AtValues + Keys * D * 2, AtScales = AtUnits + 4 * Rows;
  static constexpr int AtCodes = AtScales + 8 * Keys;
};

// Rows [first_row, first_row + rows) of a sequence against keys [begin, end).
struct Kv8TileItem {
  int sequence, head, first_row, rows, position, begin, end;  // position: of the sequence's query 0
};

// False where the block has nothing to do. The longest tiles of a sequence come first.
template <int Rows>
__device__ __forceinline__ bool kv8_tile_item(const AttentionArgs& a, int min_rows, int* prefix,
                                              Kv8TileItem& it) {
  const int group = a.heads / a.kv_heads, flat = blockIdx.x / a.kv_heads;
  const int total = plan_prefix<kKv8TileThreads>(a.sequences, prefix, [&](int s) {
    const int rows = (a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s]) * group;
    return rows > min_rows ? (rows + Rows - 1) / Rows : 0;
  });
  if (flat >= total) return false;
  const int s = plan_owner(prefix, a.sequences, flat);
  const int queries = a.cu_seqlens_q[s + 1] - a.cu_seqlens_q[s];
  it.sequence = s, it.head = blockIdx.x % a.kv_heads;
  it.first_row = (prefix[s + 1] - 1 - flat) * Rows;
  it.rows = min(Rows, queries * group - it.first_row), it.position = a.seq_lens[s] - queries;
  it.begin = attention_first(a, it.position + it.first_row / group);
  it.end = it.position + (it.first_row + it.rows - 1) / group + 1;
  return true;
}

// Where 16 bytes of a row lie: the eight rows of an ldmatrix fall into different banks.
template <int D>
__device__ __forceinline__ uint32_t kv8_tile_place(int row, int pack) {
  return (row * (D / 8) + (pack ^ (row & 7))) * 16;
}

// Queries as f16, scaled by powers of two; four lanes have a row.
template <typename T, int D>
__device__ __forceinline__ void kv8_tile_queries(const AttentionArgs& a, const Kv8TileItem& it,
                                                 float gain, char* shared) {
  using S = Kv8Tiles<D>;
  const int group = a.heads / a.kv_heads, t = threadIdx.x % 4;
  for (int row = threadIdx.x / 4; row < S::Rows; row += kKv8TileThreads / 4) {
    const int r = it.first_row + row;
    const T* from = static_cast<const T*>(a.q) +
                    (int64_t{a.cu_seqlens_q[it.sequence]} + r / group) * a.q_token +
                    (it.head * group + r % group) * a.q_head;
    uint4 pack[D / 32];
#pragma unroll
    for (int p = 0; p < D / 32; ++p) {
      const int d = (4 * p + t) * 8;
      const bool there = row < it.rows && d < a.dim;
      pack[p] = there ? *reinterpret_cast<const uint4*>(from + d) : make_uint4(0u, 0u, 0u, 0u);
    }
    const RowScale<T, D / 32, 13> scale(pack);
    if (t == 0)  // a row of zeros keeps its masked logits infinite
      reinterpret_cast<float*>(shared + S::AtUnits)[row] =
          scale.unit == 0.f ? 1.f : scale.unit * gain;
#pragma unroll
    for (int p = 0; p < D / 32; ++p) {
      const Vec<T, 8> x = *reinterpret_cast<const Vec<T, 8>*>(&pack[p]);
      uint32_t half[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) half[i] = pack2<f16>(scale.of(x[2 * i]), scale.of(x[2 * i + 1]));
      *reinterpret_cast<uint4*>(shared + kv8_tile_place<D>(row, 4 * p + t)) =
          make_uint4(half[0], half[1], half[2], half[3]);
    }
  }
}

// The codes of `Keys` keys from `key` on, then of their values. `runs`: 16 keys of a page are one
// run of bytes, a multiple of 16 from an aligned address on. What no row sees stays what it was.
template <int Keys>
__device__ __forceinline__ void kv8_tile_fetch(const AttentionArgs& a, const Kv8TileItem& it,
                                               int key, bool runs, char* codes) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int pitch = a.dim + kScaleBytes, step = runs ? 16 : 1, pack = runs ? 16 : 4;
#pragma unroll 1
  for (int row = warp * step; row < 2 * Keys; row += kKv8TileWarps * step) {
    const bool is_value = row >= Keys;
    const int at = key + row % Keys;
    if (at + step <= it.begin || at >= it.end) continue;
    const int64_t block = attention_block(a, it.sequence, at / a.block_size);
    const int slot = at % a.block_size;
    const char* from = is_value ? static_cast<const char*>(a.value) + block * a.value_block +
                                      slot * a.value_slot + it.head * a.value_head
                                : static_cast<const char*>(a.key) + block * a.key_block +
                                      slot * a.key_slot + it.head * a.key_head;
    for (int b = lane * pack; b < pitch * step; b += kWarp * pack)
      if (runs)
        copy_async16(codes + row * pitch + b, from + b);
      else
        copy_async4(codes + row * pitch + b, from + b);
  }
  copy_async_commit();
}

// Codes to f16, keys and values, and their scales to where all warps find them: zero for what no
// row sees.
template <typename Codes, int D>
__device__ __forceinline__ void kv8_tile_widen(const AttentionArgs& a, const Kv8TileItem& it,
                                               int key, const char* codes, char* shared) {
  using S = Kv8Tiles<D>;
  constexpr int kStep = kKv8TileThreads / S::Packs, kBatch = 4;  // rows of a turn, turns at a time
  const int pitch = a.dim + kScaleBytes, pack = threadIdx.x % S::Packs;
  const int first = threadIdx.x / S::Packs;
#pragma unroll
  for (int base = 0; base < 2 * S::Keys; base += kBatch * kStep) {
    uint2 narrow[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const char* from = codes + (first + base + i * kStep) * pitch + 8 * pack;
      narrow[i].x = *reinterpret_cast<const uint32_t*>(from);
      narrow[i].y = *reinterpret_cast<const uint32_t*>(from + 4);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      uint4 wide;
      Codes::widen(narrow[i].x, wide.x, wide.y);
      Codes::widen(narrow[i].y, wide.z, wide.w);
      const uint32_t place = kv8_tile_place<D>(first + base + i * kStep, pack);
      *reinterpret_cast<uint4*>(shared + S::AtKeys + place) = wide;
    }
  }
  for (int row = threadIdx.x; row < 2 * S::Keys; row += kKv8TileThreads) {
    const int at = key + row % S::Keys;
    const float scale = *reinterpret_cast<const float*>(codes + row * pitch + a.dim);
    reinterpret_cast<float*>(shared + S::AtScales)[row] =
        at >= it.begin && at < it.end ? scale : 0.f;
  }
}

// A warp's rows. Lane = 4 * g + t holds rows 16 * m + g and + 8, columns 8 * n + 2 * t and + 1.
// Weights times values' scales stay below one by a running `unit`, a power of two.
template <typename T, int D>
struct Kv8TileState {
  using S = Kv8Tiles<D>;
  using Logits = float[S::M][S::Keys / 8][4];
  float o[S::M][D / 8][4] = {}, top[S::M][2], total[S::M][2] = {}, factor[S::M][2], unit = 0.f;
  int last[S::M][2];  // the last key that a row sees; -1: no row

  __device__ __forceinline__ static int row_of(int m, int half) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    return (warp * S::M + m) * 16 + lane / 4 + 8 * half;
  }
  // `factor`: from products to logits, without the keys' scales.
  __device__ __forceinline__ void enter(const AttentionArgs& a, const Kv8TileItem& it, bool bent,
                                        const float* units) {
    const int group = a.heads / a.kv_heads;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = row_of(m, half);
        last[m][half] = row < it.rows ? it.position + (it.first_row + row) / group : -1;
        top[m][half] = -INFINITY, factor[m][half] = units[row] * (bent ? 1.f : a.scale * kLog2e);
      }
  }

  // The unit grows with the largest finite scale of values; whether there is one that is not.
  __device__ __forceinline__ bool grow(const float* scales) {
    uint32_t most = 0, wild = 0;
#pragma unroll
    for (int i = threadIdx.x % kWarp; i < S::Keys; i += kWarp) {
      const uint32_t bits = magnitude_bits(scales[i]);
      if (bits < 0x7f800000u)
        most = max(most, bits);
      else
        wild = 1;
    }
    most = warp_most(most);
    if (most > __float_as_uint(unit)) {
      const float old = unit;
      unit = __uint_as_float((most & 0x7f800000u) + 0x00800000u);
      const float shrink = old * power_below(__float_as_uint(unit), 0);
#pragma unroll
      for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int d = 0; d < D / 8; ++d)
#pragma unroll
          for (int i = 0; i < 4; ++i) o[m][d][i] *= shrink;
    }
    return __any_sync(~0u, wild);
  }

  __device__ __forceinline__ void products(uint32_t queries, uint32_t keys, Logits& s) const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
    for (int k = 0; k < D / 16; ++k) {
      uint32_t rows[S::M][4];
#pragma unroll
      for (int m = 0; m < S::M; ++m)
        load_matrix_x4(rows[m], queries + kv8_tile_place<D>((warp * S::M + m) * 16 + lane % 16,
                                                            2 * k + lane / 16));
#pragma unroll
      for (int n = 0; n < S::Keys / 16; ++n) {
        uint32_t tile[4];
        load_matrix_x4(tile, keys + kv8_tile_place<D>(n * 16 + lane % 8 + lane / 16 * 8,
                                                      2 * k + lane / 8 % 2));
        const uint32_t low[2] = {tile[0], tile[1]}, high[2] = {tile[2], tile[3]};
#pragma unroll
        for (int m = 0; m < S::M; ++m) {
          mma_16x8x16<f16>(s[m][2 * n], rows[m], low);
          mma_16x8x16<f16>(s[m][2 * n + 1], rows[m], high);
        }
      }
    }
  }

  // Products times the keys' scales.
  __device__ __forceinline__ void rate(const float* scales, Logits& s) const {
#pragma unroll
    for (int n = 0; n < S::Keys / 8; ++n) {
      const float2 key = pair_of(scales, n);
#pragma unroll
      for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] *= i % 2 ? key.y : key.x;
    }
  }
  // Those of this lane's columns in the n-th eight.
  __device__ __forceinline__ static float2 pair_of(const float* scales, int n) {
    return *reinterpret_cast<const float2*>(scales + 8 * n + threadIdx.x % 4 * 2);
  }

  // Logits that are no multiples of the products by a positive scale.
  __device__ __forceinline__ void bend(const AttentionArgs& a, Logits& s) const {
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int n = 0; n < S::Keys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[m][n][i] = attention_logit(a, s[m][n][i] * factor[m][i / 2]);
  }

  __device__ __forceinline__ void mask(const AttentionArgs& a, int key, Logits& s) const {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int high = last[m][half] - key - 2 * t;
        const int low = attention_first(a, last[m][half]) - key - 2 * t;
#pragma unroll
        for (int n = 0; n < S::Keys / 8; ++n)
#pragma unroll
          for (int j = 0; j < 2; ++j)
            if (8 * n + j > high || 8 * n + j < low) s[m][n][2 * half + j] = -INFINITY;
      }
  }

  // To weights, in place; the old sums shrink where a maximum rises.
  __device__ __forceinline__ void weigh(bool bent, Logits& s) {
    float old[S::M][2];
    bool same = true;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float scale = bent ? 1.f : factor[m][half];
        float high = -INFINITY;
#pragma unroll
        for (int n = 0; n < S::Keys / 8; ++n)
          high = fmaxf(high, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 1));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, 2));
        high = fmaxf(top[m][half], high * scale);
        old[m][half] = attention_rescale(top[m][half], high);
        same = same && old[m][half] == 1.f;
        const float zero = high == -INFINITY ? 0.f : high;
        float sum = 0.f;
#pragma unroll
        for (int n = 0; n < S::Keys / 8; ++n)
#pragma unroll
          for (int j = 2 * half; j < 2 * half + 2; ++j)
            s[m][n][j] = attention_exp2(fmaf(s[m][n][j], scale, -zero)), sum += s[m][n][j];
        total[m][half] = total[m][half] * old[m][half] + sum, top[m][half] = high;
      }
    if (__all_sync(~0u, same)) return;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int d = 0; d < D / 8; ++d)
#pragma unroll
        for (int i = 0; i < 4; ++i) o[m][d][i] *= old[m][i / 2];
  }

  // Weights times values' scales, in place. `careful`: a scale that is NaN leaves those rows alone
  // that do not see its key.
  __device__ __forceinline__ void scale(const float* scales, bool careful, Logits& s) const {
    const float shrink = unit > 0.f ? power_below(__float_as_uint(unit), 0) : 1.f;
#pragma unroll
    for (int n = 0; n < S::Keys / 8; ++n) {
      const float2 value = pair_of(scales, n);
      const float low = value.x * shrink, high = value.y * shrink;
#pragma unroll
      for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          if (!careful || s[m][n][i] != 0.f) s[m][n][i] *= i % 2 ? high : low;
    }
  }

  __device__ __forceinline__ void add(uint32_t values, const Logits& s) {
    constexpr int Parts = kCodeParts<T>;
    const int lane = threadIdx.x % kWarp;
#pragma unroll
    for (int k = 0; k < S::Keys / 16; ++k) {
      uint32_t weights[Parts][S::M][4];
#pragma unroll
      for (int m = 0; m < S::M; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* x = &s[m][2 * k + i / 2][i % 2 * 2];
          uint32_t pairs[Parts];
          code_weights(x[0], x[1], pairs);
#pragma unroll
          for (int p = 0; p < Parts; ++p) weights[p][m][i] = pairs[p];
        }
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
        uint32_t tile[4];
        load_matrix_x4_transposed(
            tile, values + kv8_tile_place<D>(k * 16 + lane % 16, 2 * d + lane / 16));
        const uint32_t low[2] = {tile[0], tile[1]}, high[2] = {tile[2], tile[3]};
#pragma unroll
        for (int m = 0; m < S::M; ++m)
#pragma unroll
          for (int p = 0; p < Parts; ++p) {
            mma_16x8x16<f16>(o[m][2 * d], weights[p][m], low);
            mma_16x8x16<f16>(o[m][2 * d + 1], weights[p][m], high);
          }
      }
    }
  }

  __device__ __forceinline__ void write(const AttentionArgs& a, const Kv8TileItem& it, float gain) {
    const int group = a.heads / a.kv_heads, t = threadIdx.x % 4;
#pragma unroll
    for (int m = 0; m < S::M; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = total[m][half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int row = row_of(m, half), r = it.first_row + row, head = it.head * group + r % group;
        if (row >= it.rows) continue;
        const float scale = attention_scale(a, head, top[m][half], sum) * (unit * gain);
        const int64_t token = a.cu_seqlens_q[it.sequence] + r / group;
        T* to = static_cast<T*>(a.out) + token * a.out_token + head * a.out_head;
#pragma unroll
        for (int d = 0; d < D / 8; ++d)
          if (d * 8 < a.dim)
            *reinterpret_cast<uint32_t*>(to + d * 8 + 2 * t) =
                pack2<T>(o[m][d][2 * half] * scale, o[m][d][2 * half + 1] * scale);
      }
  }
};

}  // namespace fd
