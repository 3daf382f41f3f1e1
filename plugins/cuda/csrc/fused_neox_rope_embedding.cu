#include "fd/norm.cuh"
#include "fd/rope.cuh"

namespace fd {

// qkv [tokens, 3, heads, dim] into q, k, v [tokens, heads, dim]; tables [tokens, dim].
template <typename T>
struct NeoxRope {
  const T* qkv;
  int64_t step, tokens;
  const float *cos, *sin;
  T* out[3];
  int heads, half;
};

// A thread's N pairs (j, j + half). Both halves of the tables count: they need not be equal.
template <typename T, int N>
__global__ void fused_neox_rope_embedding_pairs(NeoxRope<T> all) {
  let_next_start();
  wait_for_inputs();
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int parts = all.half / N, per_token = 3 * all.heads * parts;
  const int64_t token = i / per_token;
  if (token >= all.tokens) return;
  const int within = static_cast<int>(i % per_token), head = within / parts;
  const int at = within % parts * N, half = all.half, kind = head / all.heads;
  const T* from = all.qkv + token * all.step + int64_t{head} * 2 * half + at;
  T* to = all.out[kind] + (token * all.heads + head % all.heads) * 2 * half + at;
  using Part = Vec<T, N>;
  Part a = *reinterpret_cast<const Part*>(from), b = *reinterpret_cast<const Part*>(from + half);
  const float *cos = all.cos + token * 2 * half + at, *sin = all.sin + token * 2 * half + at;
  if (kind < 2) {
    const Floats<N, float> c(cos), c2(cos + half), s(sin), s2(sin + half);
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const float x = to_float(a[e]), y = to_float(b[e]);
      a[e] = from_float<T>(x * c[e] - y * s[e]), b[e] = from_float<T>(y * c2[e] + x * s2[e]);
    }
  }
  *reinterpret_cast<Part*>(to) = a, *reinterpret_cast<Part*>(to + half) = b;
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/checks/rotary.h"
#include "fd/rowwise.h"

namespace fd {

template <typename T>
void neox_rope_launch(const Launch& on, const NeoxRope<T>& all) {
  const bool packs =
      packable<T>(all.half, {all.step}, {all.qkv, all.out[0], all.out[1], all.out[2]}) &&
      aligned16(all.cos) && aligned16(all.sin);
  const int each = packs ? kPack<T> : 1;
  const int64_t items = all.tokens * 3 * all.heads * (all.half / each);
  const dim3 grid((items + 127) / 128), block(128);
  if (packs)
    run_overlapped(on, fused_neox_rope_embedding_pairs<T, kPack<T>>, grid, block, 0, all);
  else
    run_overlapped(on, fused_neox_rope_embedding_pairs<T, 1>, grid, block, 0, all);
}

void fused_neox_rope_embedding(Tensor qkv, Tensor cos_emb, Tensor sin_emb, int64_t num_heads,
                               int64_t head_dim, Tensor q, Tensor k, Tensor v) {
  const char* op = "fused_neox_rope_embedding";
  check_neox_rope(op, qkv, cos_emb, sin_emb, num_heads, head_dim, q, k, v);
  same_device(op, qkv, {cos_emb, sin_emb, q, k, v});
  const Launch on = launch_on(op, qkv);
  dispatch_float(op, "qkv", qkv, [&](auto tag) {
    using T = decltype(tag);
    neox_rope_launch<T>(on, {qkv.data<T>(),
                             qkv.stride(0),
                             qkv.size(0),
                             cos_emb.data<float>(),
                             sin_emb.data<float>(),
                             {q.data<T>(), k.data<T>(), v.data<T>()},
                             static_cast<int>(num_heads),
                             static_cast<int>(head_dim / 2)});
  });
}
FD_EXPORT(fused_neox_rope_embedding)

}  // namespace fd
#endif
