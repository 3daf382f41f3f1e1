#include "fd/token_quant.h"

namespace fd {

void masked_per_token_quant(Tensor input, Tensor recv_expert_count, int64_t block_size,
                            bool use_ue8m0, Tensor output, Tensor output_scale) {
  const char* op = "masked_per_token_quant";
  Check{op, "input", input}.rank(3);
  const int64_t width = check_group_quant(op, input, block_size, use_ue8m0, output, output_scale);
  const int64_t experts = input.size(0), capacity = input.size(1), columns = input.size(2);
  if (columns % kFp8Group != 0)
    fail("ValueError", op, ".input: want columns in groups of 128, have ", shape_text(input));
  Check{op, "recv_expert_count", recv_expert_count}.rank(1).dim(0, experts).contiguous();
  Check{op, "recv_expert_count", recv_expert_count}.dtype<int32_t>("int32");
  Check{op, "output_scale", output_scale}.rank(3).dim(0, experts).dim(1, capacity).dim(2, width);
  char* const base = output_scale.data<char>();
  const int64_t expert_step = 4 * output_scale.stride(0);
  const GroupScales strides{base, output_scale.stride(1), output_scale.stride(2), use_ue8m0};
  const int32_t* counts = recv_expert_count.data<int32_t>();
  dispatch_half(input, [&](auto tag) {
    const auto* from = input.data<decltype(tag)>();
    uint8_t* to = output.data<uint8_t>();
    parallel_for(experts * capacity, 1 + 16384 / (columns + 1), [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t e = i / capacity, r = i % capacity;
        GroupScales scales = strides;
        scales.data = base + e * expert_step;
        scales.clear(r, width);
        if (r < counts[e])
          quantise_fp8_row(from + i * columns, columns, to + i * columns, scales, r);
        else
          std::memset(to + i * columns, 0, static_cast<size_t>(columns));
      }
    });
  });
}
FD_EXPORT(masked_per_token_quant)

}  // namespace fd
