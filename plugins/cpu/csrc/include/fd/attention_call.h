// What the attention ops hand to the shared engine (attention_run.cc).
#pragma once
#include <algorithm>

#include "fd/check.h"
#include "fd/fp8.h"

namespace fd {
namespace attn {

// One call without its element types. Strides of q and out in bytes.
struct Call {
  int64_t sequences, heads, kv_heads, dim, blocks, block_size, table_stride, window;
  float scale, soft_cap;
  const int32_t *cu_seqlens_q, *seq_lens, *block_table;
  const char* q;
  int64_t q_token, q_head;
  char* out;
  int64_t out_token, out_head;
  const float* sinks;
  void (*widen)(const void* src, int64_t n, float scale, float* dst);
  void (*narrow)(const float* src, int64_t n, float divisor, void* dst);

  int64_t group() const { return heads / kv_heads; }
  int64_t padded() const { return (dim + kLanes - 1) / kLanes * kLanes; }
};

// A code of a quantised row, an integer or an e4m3: dim of them, then the row's scale, float32.
struct q8 {
  int8_t code;
};
template <typename T>
constexpr bool kCoded = std::is_same_v<T, q8> || std::is_same_v<T, e4m3>;
constexpr int64_t kScaleBytes = sizeof(float);

inline float code_float(q8 x) { return x.code; }
inline float code_float(e4m3 x) {
  const float size = as_float((x.bits & 0x7fu) << 20) * as_float(0x7b800000u);  // * 2^120
  return x.bits & 0x80u ? -size : size;
}

// One layer's keys or values: logical [blocks, block_size, kv_heads, dim], strides in elements.
template <typename T>
struct Pool {
  const T* data;
  int64_t block, slot, head;
};

// The kernel: defined once, for T = float, bf16, f16, q8 and e4m3. Everything has been checked
// before.
template <typename T>
void run(const Call& call, Pool<T> key, Pool<T> value);

template <typename T>
Pool<T> pool(const Tensor& t) {
  return {t.data<T>(), t.stride(0), t.stride(1), t.stride(2)};
}

template <typename T>
inline void widen_row(const void* src, int64_t n, float scale, float* dst) {
  const T* x = static_cast<const T*>(src);
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) store16(dst + d, load16(x + d) * scale);
  if (d < n) store16(dst + d, load_tail(x + d, static_cast<int>(n - d)) * scale);
}

template <typename T>
inline void narrow_row(const float* src, int64_t n, float divisor, void* dst) {
  T* y = static_cast<T*>(dst);
  int64_t d = 0;
  for (; d + kLanes <= n; d += kLanes) store16(y + d, load16(src + d) / divisor);
  if (d < n) store_tail(y + d, load16(src + d) / divisor, static_cast<int>(n - d));
}

// ValueError unless the table has a block of the pool for every key that sequence s may see.
inline void check_blocks(const char* op, const char* arg, const Call& call, int64_t s,
                         int64_t queries, int64_t max_blocks) {
  const int64_t seen = call.seq_lens[s], position = seen - queries;
  const int64_t first = call.window > 0 ? std::max<int64_t>(0, position + 1 - call.window) : 0;
  if ((seen - 1) / call.block_size >= max_blocks)
    fail("ValueError", op, ".", arg, ": sequence ", s, ": want ", (seen - 1) / call.block_size + 1,
         " blocks for ", seen, " keys, have ", max_blocks);
  for (int64_t b = first / call.block_size; b <= (seen - 1) / call.block_size; ++b) {
    const int32_t id = call.block_table[s * call.table_stride + b];
    if (id < 0 || id >= call.blocks)
      fail("ValueError", op, ".", arg, ": sequence ", s, ", block ", b, ": want an id in [0, ",
           call.blocks, "), have ", id);
  }
}

}  // namespace attn
}  // namespace fd
