#include <cstring>

#include "fd/checks/rotary.h"
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

}  // namespace

void fused_neox_rope_embedding(Tensor qkv, Tensor cos_emb, Tensor sin_emb, int64_t num_heads,
                               int64_t head_dim, Tensor q, Tensor k, Tensor v) {
  check_neox_rope(kOp, qkv, cos_emb, sin_emb, num_heads, head_dim, q, k, v);
  const int64_t width = num_heads * head_dim;
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
