#include <cmath>

#include "fd/checks/rotary.h"
#include "fd/parallel.h"

namespace fd {
namespace {

constexpr const char* kOp = "fused_get_rotary_embedding";

// cos and sin of one position for every pair, each entry twice. Double throughout: a float32 angle
// is wrong by more than 1e-5 beyond a few hundred positions.
void row(double position, int64_t head_dim, float* cos, float* sin) {
  for (int64_t h = 0; h < head_dim; h += 2) {
    const double exponent = -static_cast<double>(h) / static_cast<double>(head_dim);
    const double angle = position * std::pow(10000.0, exponent);
    cos[h] = cos[h + 1] = static_cast<float>(std::cos(angle));
    sin[h] = sin[h + 1] = static_cast<float>(std::sin(angle));
  }
}

}  // namespace

void fused_get_rotary_embedding(Tensor input_ids, Tensor position_ids, Tensor head_dim_shape_tensor,
                                int64_t prompt_num, Tensor out) {
  check_rotary_positions(kOp, input_ids, position_ids, head_dim_shape_tensor, prompt_num, out);
  const int64_t batch = input_ids.size(0), length = input_ids.size(1);
  const int64_t dim = head_dim_shape_tensor.size(0), available = position_ids.size(1);
  const float* positions = position_ids.data<float>() + prompt_num;
  float *cos = out.data<float>(), *sin = cos + batch * length * dim;
  parallel_for(batch * length, 1 + 1024 / (dim + 1), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      row(positions[i / length * available + i % length], dim, cos + i * dim, sin + i * dim);
  });
}

FD_EXPORT(fused_get_rotary_embedding)

}  // namespace fd
