#include "fd/tensor_quant.h"

namespace fd {
namespace {

// The largest magnitude; parts in a fixed partition, so any number of threads finds the same.
template <typename T>
float largest_of_all(const T* x, int64_t n) {
  constexpr int64_t kPart = 1 << 14, kParts = 256;
  float most[kParts] = {};
  const int64_t parts = std::clamp<int64_t>(n / kPart, 1, kParts);
  parallel_for(parts, 1, [=, &most](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p)
      most[p] = largest(x + n * p / parts, n * (p + 1) / parts - n * p / parts);
  });
  return *std::max_element(most, most + parts);
}

}  // namespace

void dynamic_scaled_fp8_quant(Tensor out, Tensor input, Tensor scale) {
  const char* op = "dynamic_scaled_fp8_quant";
  check_tensor_quant(op, out, input, scale);
  dispatch_float(op, "input", input, [&](auto tag) {
    const auto* from = input.data<decltype(tag)>();
    const float found = largest_of_all(from, input.numel()) / kE4m3Largest;
    float* value = scale.data<float>();
    if (!(*value >= found)) *value = found;
    encode_tensor(from, input.numel(), inverse(*value), out.data<uint8_t>());
  });
}
FD_EXPORT(dynamic_scaled_fp8_quant)

}  // namespace fd
