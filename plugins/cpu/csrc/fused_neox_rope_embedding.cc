#include <cstring>

#include "fd/check.h"
#include "fd/parallel.h"

namespace fd {
namespace {

constexpr const char* kOp = "fused_neox_rope_embedding";

// Both halves of the table are read: its second half need not repeat the first.
template <typename T>
void head(const T* in, const float* cos, const float* sin, int64_t half, T* out) {
  const float *cos2 = cos + half, *sin2 = sin + half;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const vf x = load16(in + i), y = load16(in + half + i);
    store16(out + i, x * load16(cos + i) - y * load16(sin + i));
    store16(out + half + i, y * load16(cos2 + i) + x * load16(sin2 + i));
  }
  for (; i < half; ++i) {
    const float x = to_float(in[i]), y = to_float(in[half + i]);
    out[i] = from_float<T>(x * cos[i] - y * sin[i]);
    out[half + i] = from_float<T>(y * cos2[i] + x * sin2[i]);
  }
}

void check_table(const char* arg, const Tensor& table, int64_t tokens, int64_t head_dim) {
  Check{kOp, arg, table}.rank(3).dim(0, tokens).dim(1, 1).dim(2, head_dim);
  Check{kOp, arg, table}.dtype<float>("float32").contiguous();
}

void check_out(const char* arg, const Tensor& out, const Tensor& qkv, int64_t heads, int64_t dim) {
  Check{kOp, arg, out}.rank(3).dim(0, qkv.size(0)).dim(1, heads).dim(2, dim);
  Check{kOp, arg, out}.same_dtype(qkv).contiguous();
}

}  // namespace

void fused_neox_rope_embedding(Tensor qkv, Tensor cos_emb, Tensor sin_emb, int64_t num_heads,
                               int64_t head_dim, Tensor q, Tensor k, Tensor v) {
  if (num_heads <= 0) fail("ValueError", kOp, ".num_heads: want > 0, have ", num_heads);
  if (head_dim <= 0 || head_dim % 2 != 0)
    fail("ValueError", kOp, ".head_dim: want a positive even number, have ", head_dim);
  const int64_t width = num_heads * head_dim;
  Check{kOp, "qkv", qkv}.rank(2).dim(1, 3 * width).inner_contiguous();
  check_table("cos_emb", cos_emb, qkv.size(0), head_dim);
  check_table("sin_emb", sin_emb, qkv.size(0), head_dim);
  check_out("q", q, qkv, num_heads, head_dim);
  check_out("k", k, qkv, num_heads, head_dim);
  check_out("v", v, qkv, num_heads, head_dim);
  dispatch_float(kOp, "qkv", qkv, [&](auto tag) {
    using T = decltype(tag);
    const T* in = qkv.data<T>();
    const float *cos = cos_emb.data<float>(), *sin = sin_emb.data<float>();
    T *pq = q.data<T>(), *pk = k.data<T>(), *pv = v.data<T>();
    const int64_t stride = qkv.stride(0), half = head_dim / 2;
    parallel_for(qkv.size(0), 1 + 16384 / (3 * width), [=](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const T* row = in + t * stride;
        const float *c = cos + t * head_dim, *s = sin + t * head_dim;
        for (int64_t i = 0; i < width; i += head_dim) {
          head(row + i, c, s, half, pq + t * width + i);
          head(row + width + i, c, s, half, pk + t * width + i);
        }
        std::memcpy(pv + t * width, row + 2 * width, width * sizeof(T));
      }
    });
  });
}

FD_EXPORT(fused_neox_rope_embedding)

}  // namespace fd
