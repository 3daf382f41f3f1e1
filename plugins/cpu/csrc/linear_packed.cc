// Linear layer over weights packed once by pack_linear_weight: what the engine runs.
#include "fd/dense_stream.h"
#include "fd/linear.h"

namespace fd {
namespace {

using gemm::kPanel;

// Place of column j in a panel row; see gemm.h.
template <typename T>
int place(int j) {
  return std::is_same_v<T, bf16> ? (j % 16) * 2 + j / 16 : j;
}

template <typename T>
void pack_panel(const T* w, int64_t stride, int columns, int64_t depth, T* to) {
  constexpr int64_t kStep = 64 / sizeof(T);  // a cache line of each row of the weight at a time
  for (int64_t k0 = 0; k0 < depth; k0 += kStep)
    for (int j = 0; j < kPanel; ++j) {
      T* at = to + place<T>(j);
      for (int64_t k = k0; k < std::min(k0 + kStep, depth); ++k)
        at[k * kPanel] = j < columns ? w[j * stride + k] : T{};
    }
}

}  // namespace

// packed [ceil(N / 32), K, 32] of the weight's type, columns beyond N zero.
void pack_linear_weight(Tensor weight, Tensor packed) {
  const char* op = "pack_linear_weight";
  Check{op, "weight", weight}.rank(2).inner_contiguous();
  const int64_t columns = weight.size(0), depth = weight.size(1);
  Check{op, "packed", packed}.rank(3).dim(0, gemm::panels_of(columns)).dim(1, depth).dim(2, kPanel);
  Check{op, "packed", packed}.same_dtype(weight).contiguous();
  dispatch_float(op, "weight", weight, [&](auto tag) {
    using T = decltype(tag);
    const T* from = weight.data<T>();
    T* to = packed.data<T>();
    const int64_t stride = weight.stride(0);
    parallel_for(packed.size(0), 1, [=](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        pack_panel(from + p * kPanel * stride, stride,
                   static_cast<int>(std::min<int64_t>(kPanel, columns - p * kPanel)), depth,
                   to + p * depth * kPanel);
    });
  });
}
FD_EXPORT(pack_linear_weight)

void linear_packed(Tensor x, Tensor packed, OptTensor bias, Tensor out) {
  const char* op = "linear_packed";
  Check{op, "x", x}.rank(2);
  Check{op, "packed", packed}.rank(3).dim(1, x.size(1)).dim(2, kPanel).contiguous();
  const gemm::Sink sink = linear_sink(op, x, bias, out);
  Check{op, "packed", packed}.dim(0, gemm::panels_of(out.size(1)));
  dispatch_float(op, "packed", packed, [&](auto tag) {
    const auto panels = gemm::packed_panels(packed.data<decltype(tag)>(), x.size(1));
    gemm::for_row_chunks(linear_input(x), sink,
                         [&](const gemm::Job& job) { gemm::run_stream(job, panels); });
  });
}
FD_EXPORT(linear_packed)

}  // namespace fd
