// Linear layer over plain weights [N, K], widened and transposed on the way: for guests, and
// wherever packing once does not pay. Same sums as linear_packed, bit for bit.
#include "fd/linear.h"

#include <array>

#include "fd/dense_blocks.h"

namespace fd {
namespace {

using gemm::kPanel;

// Sixteen lanes of sixteen vectors change places: r[i][j] becomes r[j][i].
#if defined(__AVX512F__)
template <int D>
void exchange(__m512* r) {
  alignas(64) static constexpr auto kLow = [] {
    std::array<int, 16> index{};
    for (int l = 0; l < 16; ++l) index[static_cast<size_t>(l)] = l & D ? 16 + l - D : l;
    return index;
  }();
  const __m512i low = _mm512_load_si512(kLow.data());
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(D));
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i & D) continue;
    const __m512 a = r[i], b = r[i + D];
    r[i] = _mm512_permutex2var_ps(a, low, b);
    r[i + D] = _mm512_permutex2var_ps(a, high, b);
  }
}

inline void transpose16(vf* rows) {
  __m512 r[16];
  std::memcpy(r, rows, sizeof(r));
  exchange<1>(r), exchange<2>(r), exchange<4>(r), exchange<8>(r);
  std::memcpy(rows, r, sizeof(r));
}
#else
inline void transpose16(vf* rows) {
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < i; ++j) {
      const float a = rows[i][j];
      rows[i][j] = rows[j][i];
      rows[j][i] = a;
    }
}
#endif

template <typename T>
struct Plain {
  const T* w;
  int64_t stride, columns;

  void fill(int64_t panel, int64_t k0, int64_t kc, float* to) const {
    for (int half = 0; half < 2; ++half) {
      const int64_t first = panel * kPanel + 16 * half;
      const int n = static_cast<int>(std::clamp<int64_t>(columns - first, 0, 16));
      for (int64_t k = 0; k < kc; k += kLanes)
        square(w + first * stride + k0 + k, n, static_cast<int>(std::min<int64_t>(kLanes, kc - k)),
               to + k * kPanel + 16 * half);
    }
  }

 private:
  // Columns [0, n) x depth [0, kc) of the weight as rows of a panel; the other columns are zero.
  void square(const T* from, int n, int kc, float* to) const {
    vf r[16] = {};
    for (int j = 0; j < n; ++j)
      r[j] = kc == kLanes ? load16(from + j * stride) : load_tail(from + j * stride, kc);
    transpose16(r);
    for (int k = 0; k < kc; ++k) store16(to + k * kPanel, r[k]);
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
