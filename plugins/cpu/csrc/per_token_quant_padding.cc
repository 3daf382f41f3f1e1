#include "fd/token_quant.h"

namespace fd {

void per_token_quant_padding(Tensor input, int64_t block_size, bool use_ue8m0, Tensor output,
                             Tensor output_scale) {
  const char* op = "per_token_quant_padding";
  Check{op, "input", input}.rank(2);
  const int64_t width = check_group_quant(op, input, block_size, use_ue8m0, output, output_scale);
  const int64_t rows = input.size(0), columns = input.size(1), padded = (rows + 3) / 4 * 4;
  if (columns % kFp8Group != 0)
    fail("ValueError", op, ".input: want columns in groups of 128, have ", shape_text(input));
  Check{op, "output_scale", output_scale}.rank(2).dim(0, padded).dim(1, width);
  const GroupScales scales{output_scale.data<char>(), output_scale.stride(0),
                           output_scale.stride(1), use_ue8m0};
  dispatch_half(input, [&](auto tag) {
    const auto* from = input.data<decltype(tag)>();
    uint8_t* to = output.data<uint8_t>();
    parallel_for(padded, 1 + 16384 / (columns + 1), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        scales.clear(r, width);
        if (r < rows) quantise_fp8_row(from + r * columns, columns, to + r * columns, scales, r);
      }
    });
  });
}
FD_EXPORT(per_token_quant_padding)

}  // namespace fd
