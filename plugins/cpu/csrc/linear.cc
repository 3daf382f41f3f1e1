// Linear layer over plain weights [N, K], widened and transposed on the way: for guests, and
// wherever packing once does not pay. Same sums as linear_packed, bit for bit.
#include "fd/linear.h"

#include "fd/dense_blocks.h"

namespace fd {
namespace {

using gemm::kPanel;

template <typename T>
struct Plain {
  const T* w;
  int64_t stride, columns;

  void fill(int64_t panel, int64_t k0, int64_t kc, float* to) const {
    const T* from = w + panel * kPanel * stride + k0;
    const int n = static_cast<int>(std::min<int64_t>(kPanel, columns - panel * kPanel));
    if (n < kPanel) std::memset(to, 0, sizeof(float) * kc * kPanel);
    for (int64_t k = 0; k < kc; k += kLanes)
      for (int j = 0; j < n; ++j) transpose(from + j * stride + k, to + k * kPanel + j, kc - k);
  }

 private:
  static void transpose(const T* row, float* column, int64_t left) {
    const int n = static_cast<int>(std::min<int64_t>(kLanes, left));
    const vf v = n == kLanes ? load16(row) : load_tail(row, n);
    for (int i = 0; i < n; ++i) column[i * kPanel] = v[i];
  }
};

}  // namespace

void linear(Tensor x, Tensor weight, OptTensor bias, Tensor out) {
  const char* op = "linear";
  Check{op, "x", x}.rank(2);
  Check{op, "weight", weight}.rank(2).dim(1, x.size(1)).inner_contiguous();
  Check{op, "out", out}.rank(2).dim(1, weight.size(0));
  const gemm::Sink sink = linear_sink(op, x, bias, out);
  dispatch_float(op, "weight", weight, [&](auto tag) {
    using T = decltype(tag);
    const Plain<T> source{weight.data<T>(), weight.stride(0), weight.size(0)};
    gemm::for_row_chunks(linear_input(x), sink,
                         [&](const gemm::Job& job) { gemm::run_blocks(job, source); });
  });
}
FD_EXPORT(linear)

}  // namespace fd
