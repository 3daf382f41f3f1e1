#include <string_view>

#include "fd/check.h"
#include "fd/parallel.h"

namespace fd {
namespace {

template <typename T>
std::string_view name_of();
template <>
std::string_view name_of<float>() {
  return "float32";
}
template <>
std::string_view name_of<bf16>() {
  return "bfloat16";
}
template <>
std::string_view name_of<f16>() {
  return "float16";
}

}  // namespace

void dequant_int8(Tensor input, Tensor out_scale, std::string_view dtype, Tensor output) {
  const char* op = "dequant_int8";
  Check{op, "input", input}.rank(2).dtype<int32_t>("int32").contiguous();
  Check{op, "out_scale", out_scale}.rank(1).dim(0, input.size(1)).dtype<float>("float32");
  Check{op, "out_scale", out_scale}.contiguous();
  Check{op, "output", output}.same_shape(input).contiguous();
  dispatch_float(op, "output", output, [&](auto tag) {
    using T = decltype(tag);
    if (dtype != name_of<T>())
      fail("ValueError", op, ".dtype: want that of output, ", name_of<T>(), ", have ", dtype);
    const int32_t* from = input.data<int32_t>();
    const float* scales = out_scale.data<float>();
    T* to = output.data<T>();
    const int64_t columns = input.size(1);
    parallel_for(input.size(0), 1 + 16384 / (columns + 1), [=](int64_t begin, int64_t end) {
      for (int64_t i = begin * columns; i < end * columns; ++i)
        to[i] = from_float<T>(static_cast<float>(from[i]) * scales[i % columns]);
    });
  });
}
FD_EXPORT(dequant_int8)

}  // namespace fd
