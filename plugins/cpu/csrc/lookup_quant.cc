// Rows of a table out of the quantised panels of quant_panels.h: a token's row is one column of a
// panel.
#include "fd/ids.h"
#include "fd/quant_panels.h"
#include "fd/rowwise.h"

namespace fd {
namespace {

using gemm::kPanel;
using gemm::kQuad;

// Calls row(id, to) with every wanted id and a float row of `depth` to fill.
template <typename F>
void look_up(const char* op, Tensor ids, Tensor out, int64_t table_rows, F&& row) {
  Check{op, "ids", ids}.rank(1);
  Check{op, "out", out}.rank(2).dim(0, ids.size(0)).inner_contiguous();
  const Ids wanted = ids_of(op, "ids", ids);
  dispatch_float(op, "out", out, [&](auto tag) {
    using T = decltype(tag);
    check_range(op, "ids", wanted, 0, table_rows);
    T* to = out.data<T>();
    const int64_t step = out.stride(0), depth = out.size(1);
    parallel_for(wanted.count, row_grain(depth), [=](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        row(wanted[t], [=](int64_t k, float x) {
          if (k < depth) to[t * step + k] = from_float<T>(x);
        });
    });
  });
}

}  // namespace

// out [T, K] = codes * scale of the columns ids; `packed` and `scale` as pack_int8_weight left
// them.
void lookup_int8(Tensor ids, Tensor packed, Tensor scale, Tensor out) {
  const char* op = "lookup_int8";
  Check{op, "out", out}.rank(2);
  gemm::check_int8(op, packed, scale, out.size(1), scale.size(0));
  const int8_t* from = packed.data<int8_t>();
  const float* scales = scale.data<float>();
  const int64_t quads = packed.size(1);
  look_up(op, ids, out, scale.size(0), [=](int64_t id, auto put) {
    const int8_t* quad = from + id / kPanel * quads * gemm::kInt8Quad + id % kPanel * kQuad;
    for (int64_t q = 0; q < quads; ++q, quad += gemm::kInt8Quad)
      for (int i = 0; i < kQuad; ++i) put(q * kQuad + i, static_cast<float>(quad[i]) * scales[id]);
  });
}
FD_EXPORT(lookup_int8)

// The same from pack_int4_weight's panels.
void lookup_int4(Tensor ids, Tensor packed, Tensor out) {
  const char* op = "lookup_int4";
  Check{op, "out", out}.rank(2);
  Check{op, "packed", packed}.rank(3);
  const int64_t rows = packed.size(0) * kPanel;
  const gemm::Int4Groups plan = gemm::check_int4(op, packed, out.size(1), rows);
  const uint8_t* from = packed.data<uint8_t>();
  const int64_t groups = packed.size(1), bytes = packed.size(2);
  look_up(op, ids, out, rows, [=](int64_t id, auto put) {
    const int64_t lane = id % 16, half = id % kPanel / 16;
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t* at = from + (id / kPanel * groups + g) * bytes;
      const float scale = to_float(reinterpret_cast<const bf16*>(at)[lane * 2 + half]);
      const int zero =
          plan.zeros ? reinterpret_cast<const int8_t*>(at)[gemm::kInt4Scales + id % kPanel] : 0;
      const uint8_t* quad = at + plan.header() + lane * kQuad;
      for (int64_t k = 0; k < plan.length; ++k) {
        const int code = quad[k / kQuad * gemm::kInt4Quad + k % kQuad] >> (4 * half) & 15;
        put(g * plan.length + k, static_cast<float>((code ^ 8) - 8 - zero) * scale);
      }
    }
  });
}
FD_EXPORT(lookup_int4)

}  // namespace fd
