// The split kernel's parts for quantised caches (paged_attention_kv8.cu): rows of one-byte codes,
// each followed by its scale. A key's scale multiplies its logits, a value's the weights it meets.
#pragma once
#include "fd/attention_codes.cuh"
#include "fd/attention_merge.cuh"
#include "fd/bulk.cuh"

namespace fd {

// Keys of one warp step: runs of 16, so many that a step is worth its fixed cost.
template <int D>
constexpr int kKv8Runs = D > 64 ? 2 : 4;
template <int D>
constexpr int kKv8Keys = kKv8Runs<D> * kSplitTile;

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

// How keys lie in pages. `shift`: log2 of a page's keys, -1 if it is no power of two. `runs`: 16
// keys of a page are one run of bytes, a multiple of 16 from an aligned address on.
struct Kv8Pages {
  int shift;
  bool runs;

  __device__ __forceinline__ int page(const AttentionArgs& a, int at) const {
    return shift >= 0 ? at >> shift : at / a.block_size;
  }
  __device__ __forceinline__ int slot(const AttentionArgs& a, int at) const {
    return at - page(a, at) * a.block_size;
  }
};

// Fetches codes ahead. Stages hold keys, then their values; strides of AttentionArgs are bytes.
template <int D, int Rows>
struct Kv8Fetch {
  static constexpr int Runs = kKv8Runs<D>, Keys = kKv8Keys<D>;
  int index, key, end, begin;  // item; next tile's first key, the chunk's bounds
  int sequence, head, page;    // page: block of this lane's run in the next tile, -1: none

  __device__ __forceinline__ void start() {
    index = static_cast<int>(blockIdx.x) - static_cast<int>(gridDim.x), key = end = begin = 0;
    page = -1;
  }
  __device__ __forceinline__ bool there(const SplitPlan& plan) const {
    return index >= 0 && index < plan.total;
  }
  // Runs are fetched whole where any of their keys is seen.
  __device__ __forceinline__ void advance(const AttentionArgs& a, const SplitPlan& plan,
                                          Kv8Pages pages) {
    key += kSplitWarps * Keys;
    while (key >= end && index < plan.total) {  // short chunks leave some warps without a tile
      index += gridDim.x;
      if (index >= plan.total) break;
      const SplitItem it = split_item<Rows>(a, plan, index);
      sequence = it.sequence, head = it.head, begin = it.begin, end = it.end;
      key = begin / Keys * Keys + threadIdx.x / kWarp * Keys;
    }
    const int at = key + threadIdx.x % Runs * kSplitTile;
    page = index < plan.total && at + kSplitTile > begin && at < end
               ? static_cast<int>(attention_block(a, sequence, pages.page(a, at)))
               : -1;
  }
  // What is not seen stays what it was in the stage: masks take care of logits and scales. `full`:
  // counts the bytes of runs where the copy engine brings them.
  __device__ __forceinline__ void fetch(const AttentionArgs& a, char* stage, Kv8Pages pages,
                                        uint64_t* full) const {
#if FD_SM90A
    if (pages.runs) return fetch_bulk(a, stage, pages, full);
#else
    if (pages.runs) return fetch_runs(a, stage, pages);
#endif
    fetch_rows(a, stage, pages);
  }
  __device__ __forceinline__ const char* row(const AttentionArgs& a, bool is_value, int64_t block,
                                             int slot) const {
    if (is_value)
      return static_cast<const char*>(a.value) + block * a.value_block + slot * a.value_slot +
             head * a.value_head;
    return static_cast<const char*>(a.key) + block * a.key_block + slot * a.key_slot +
           head * a.key_head;
  }
  // A lane has a run of keys or of values.
  __device__ __forceinline__ void fetch_bulk(const AttentionArgs& a, char* stage, Kv8Pages pages,
                                             uint64_t* full) const {
    const int lane = threadIdx.x % kWarp, at = key + lane % Runs * kSplitTile;
    const int bytes = (a.dim + kScaleBytes) * kSplitTile;
    const bool there = lane < 2 * Runs && page >= 0;
    const int runs = __popc(__ballot_sync(~0u, there));
    if (lane == 0) barrier_expect(full, runs * bytes);
    __syncwarp();
    if (there)
      copy_bulk(stage + lane * bytes, row(a, lane >= Runs, page, pages.slot(a, at)), bytes, full);
  }
  __device__ __forceinline__ void fetch_runs(const AttentionArgs& a, char* stage,
                                             Kv8Pages pages) const {
    const int lane = threadIdx.x % kWarp, packs = a.dim + kScaleBytes;  // of a run
#pragma unroll
    for (int part = 0; part < 2 * Runs; ++part) {
      const int run = part % Runs, block = __shfl_sync(~0u, page, run);
      if (block < 0) continue;
      const char* from = row(a, part >= Runs, block, pages.slot(a, key + run * kSplitTile));
#pragma unroll
      for (int i = 0; i < (D + kScaleBytes + kWarp - 1) / kWarp; ++i) {
        const int pack = i * kWarp + lane;
        if (pack < packs)
          copy_async16(stage + (part * packs + pack) * kSplitTile, from + pack * kSplitTile);
      }
    }
  }
  __device__ __forceinline__ void fetch_rows(const AttentionArgs& a, char* stage,
                                             Kv8Pages pages) const {
    const int pitch = a.dim + kScaleBytes;
#pragma unroll 1
    for (int i = 0; i < 2 * Keys; ++i) {
      const int at = key + i % Keys;
      if (at < begin || at >= end) continue;
      const int64_t block = attention_block(a, sequence, pages.page(a, at));
      const char* from = row(a, i >= Keys, block, pages.slot(a, at));
      for (int b = threadIdx.x % kWarp * 4; b < pitch; b += kWarp * 4)
        copy_async4(stage + i * pitch + b, from + b);
    }
  }
};

// A warp's softmax over tiles of codes; columns and lanes as in SplitState. Weights times scales
// are kept below one by a running `unit` of values, a power of two, so that f16 holds them.
template <typename Codes, typename T, int D, int N>
struct Kv8State : SplitState<T, D, N> {
  static constexpr int Runs = kKv8Runs<D>, Keys = kKv8Keys<D>, Parts = kCodeParts<T>;
  using Logits = float[N][Runs][4];
  uint4 asked[N][D / 32];
  typename Codes::template Queries<T, D> queries[N];
  float query_unit[N][2], unit;
  int begin, end;  // keys of the item

  // Begins the item whose queries have been asked for.
  __device__ __forceinline__ void enter(const AttentionArgs& a, const SplitItem& it) {
    SplitState<T, D, N>::enter(a, it);
    unit = 0.f, begin = it.begin, end = it.end;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      queries[n].take(asked[n]);
#pragma unroll
      for (int j = 0; j < 2; ++j)
        query_unit[n][j] = __shfl_sync(~0u, queries[n].unit, 4 * (2 * (threadIdx.x % 4) + j));
    }
  }

  // Elements in the order of the words of keys.
  __device__ __forceinline__ void load_queries(const AttentionArgs& a, const SplitItem& it) {
    const int group = a.heads / a.kv_heads, g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const int row = it.first_row + n * 8 + g;
      const int64_t token = it.start + row / group;
      const T* from = static_cast<const T*>(a.q) + token * a.q_token +
                      (it.head * group + row % group) * a.q_head;
#pragma unroll
      for (int p = 0; p < D / 32; ++p) {
        const int d = 4 * kv8_key_word<D>(2 * p, t);
        const bool there = n * 8 + g < it.rows && d < a.dim;
        asked[n][p] = there ? *reinterpret_cast<const uint4*>(from + d) : make_uint4(0, 0, 0, 0);
      }
    }
  }

  __device__ __forceinline__ static uint32_t word(const char* at) {
    return *reinterpret_cast<const uint32_t*>(at);
  }
  __device__ __forceinline__ static float scale(const char* row, int pitch) {
    return *reinterpret_cast<const float*>(row + pitch - kScaleBytes);
  }

  // Logits of a run of keys.
  __device__ __forceinline__ void products(const AttentionArgs& a, const char* keys, int run,
                                           Logits& logits) const {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4, pitch = a.dim + kScaleBytes;
    const char *low = keys + g * pitch, *high = low + 8 * pitch;
    float s[N][4];
    const auto of_key = [&](int k, int half) {
      const int d = 4 * kv8_key_word<D>(k, t);
      return Codes::kFinite || d < a.dim ? word((half ? high : low) + d) : 0u;
    };
    Codes::template multiply<T, D, N>(queries, of_key, s);
    const bool capped = a.soft_cap > 0.f;
    const float factor = Codes::kUnit * (capped ? 1.f : a.scale * kLog2e);
    const float scales[2] = {scale(low, pitch) * factor, scale(high, pitch) * factor};
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float x = s[n][i] * (scales[i / 2] * query_unit[n][i % 2]);
        logits[n][run][i] = capped ? attention_capped(a, x) : x;
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
        for (int i = 0; i < 2 * Runs; ++i) {
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
        for (int i = 0; i < 2 * Runs; ++i) {
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

  // The unit grows with the largest finite scale of the item's keys.
  __device__ __forceinline__ void grow(const char* values, int pitch, int key) {
    uint32_t most = 0;
#pragma unroll
    for (int row = threadIdx.x % kWarp; row < Keys; row += kWarp) {
      const uint32_t bits = magnitude_bits(scale(values + row * pitch, pitch));
      const bool counts = key + row >= begin && key + row < end && bits < 0x7f800000u;
      most = max(most, counts ? bits : 0u);
    }
    most = warp_most(most);
    if (most <= __float_as_uint(unit)) return;
    const float old = unit;
    unit = __uint_as_float((most & 0x7f800000u) + 0x00800000u);
    const float shrink = old / unit;
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int m = 0; m < D / 16; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) this->o[n][m][i] *= shrink;
  }
  // The sums are what they are, once all tiles have been added.
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int m = 0; m < D / 16; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i) this->o[n][m][i] *= unit * Codes::kUnit;
  }

  // The weights times their values' scales, as operands of the second product. A scale may be NaN:
  // rows that do not see the key have nothing of it.
  __device__ __forceinline__ void scaled(const char* values, int pitch, int key, int run,
                                         float shrink, const Logits& s,
                                         uint32_t (&weights)[Parts][N][2]) const {
    const int g = threadIdx.x % kWarp / 4;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float factor = scale(values + (g + 8 * half) * pitch, pitch) * shrink;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        float x[2];
#pragma unroll
        for (int j = 0; j < 2; ++j)
          x[j] = sees(n, j, key + g + 8 * half) ? s[n][run][2 * half + j] * factor : 0.f;
        uint32_t pairs[Parts];
        code_weights(x[0], x[1], pairs);
#pragma unroll
        for (int p = 0; p < Parts; ++p) weights[p][n][half] = transposed(pairs[p]);
      }
    }
  }

  __device__ __forceinline__ void add(const char* values, int pitch,
                                      const uint32_t (&weights)[Parts][N][2]) {
    const int g = threadIdx.x % kWarp / 4, t = threadIdx.x % 4;
    const char* rows = values + 2 * t * pitch;
#pragma unroll
    for (int j = 0; j < D / 32; ++j) {
      const char* at = rows + 4 * kv8_value_word<D>(j, g);
      uint32_t early[4], late[4];
      Codes::pairs(word(at), word(at + pitch), early);
      Codes::pairs(word(at + 8 * pitch), word(at + 9 * pitch), late);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const uint32_t tile[4] = {early[2 * e], early[2 * e + 1], late[2 * e], late[2 * e + 1]};
#pragma unroll
        for (int n = 0; n < N; ++n)
#pragma unroll
          for (int p = 0; p < Parts; ++p)
            mma_16x8x16<f16>(this->o[n][2 * j + e], tile, weights[p][n]);
      }
    }
  }

  // Values of keys outside of the item become zero: products with weights of zero then are.
  __device__ __forceinline__ void clear(char* values, int pitch, int key) const {
    if (key >= begin && key + Keys <= end) return;
#pragma unroll 1
    for (int row = 0; row < Keys; ++row)
      if (key + row < begin || key + row >= end)
        for (int b = threadIdx.x % kWarp * 4; b < pitch; b += kWarp * 4)
          *reinterpret_cast<uint32_t*>(values + row * pitch + b) = 0u;
    __syncwarp();
#if FD_SM90A
    stores_for_async();
#endif
  }

  __device__ __forceinline__ void tile(const AttentionArgs& a, char* stage, int key) {
    const int pitch = a.dim + kScaleBytes;
    char* values = stage + Keys * pitch;
    if (!Codes::kFinite) clear(values, pitch, key);
    Logits s;
#pragma unroll
    for (int r = 0; r < Runs; ++r) products(a, stage + r * kSplitTile * pitch, r, s);
    grow(values, pitch, key);
    weigh(key, s);
    const float shrink = unit > 0.f ? power_below(__float_as_uint(unit), 0) : 1.f;
#pragma unroll
    for (int r = 0; r < Runs; ++r) {
      const char* run = values + r * kSplitTile * pitch;
      uint32_t weights[Parts][N][2];
      scaled(run, pitch, key + r * kSplitTile, r, shrink, s, weights);
      add(run, pitch, weights);
    }
  }
};

}  // namespace fd
