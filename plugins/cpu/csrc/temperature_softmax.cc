#include <vector>

#include "fd/check.h"
#include "fd/softmax.h"

namespace fd {
namespace {

struct Row {
  float max, inverse_temperature;
  int64_t hot;  // where a one-hot row has its 1, else -1
};

void scale(float* p, float factor, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) p[i] *= factor;
}

struct Softmax {
  const float *x, *temperature;
  float* out;
  int64_t n, width, x_step, out_step;
  int64_t per_row = segments(width);
  std::vector<float> maxima = std::vector<float>(static_cast<size_t>(n * per_row));
  std::vector<float> sums = maxima;
  std::vector<Row> rows = std::vector<Row>(static_cast<size_t>(n));

  void run() {
    for_segments(n, width, [this](int64_t r, int64_t s, int64_t begin, int64_t end) {
      maxima[r * per_row + s] = max_of(x + r * x_step, begin, end);
    });
    for (int64_t r = 0; r < n; ++r) rows[r] = row_of(r);
    for_segments(n, width, [this](int64_t r, int64_t s, int64_t begin, int64_t end) {
      float* o = out + r * out_step;
      if (rows[r].hot >= 0) return std::fill(o + begin, o + end, 0.0f);
      sums[r * per_row + s] =
          exp_sum(x + r * x_step, rows[r].max, rows[r].inverse_temperature, begin, end, o);
    });
    for_segments(n, width, [this](int64_t r, int64_t, int64_t begin, int64_t end) {
      if (rows[r].hot < 0) scale(out + r * out_step, factor(r), begin, end);
    });
    for (int64_t r = 0; r < n; ++r)
      if (rows[r].hot >= 0) out[r * out_step + rows[r].hot] = 1;
  }

  Row row_of(int64_t r) const {
    const float* m = &maxima[r * per_row];
    const float best = *std::max_element(m, m + per_row);
    const float inverse = 1.0f / temperature[r];
    if (std::isfinite(best) && std::isfinite(inverse)) return {best, inverse, -1};
    return {best, inverse, argmax_of(x + r * x_step, width, m, best)};
  }

  float factor(int64_t r) const {
    double sum = 0;
    for (int64_t s = 0; s < per_row; ++s) sum += sums[r * per_row + s];
    return static_cast<float>(1.0 / sum);
  }
};

}  // namespace

void temperature_softmax(Tensor logits, Tensor temperature, Tensor probs) {
  const char* op = "temperature_softmax";
  const int64_t n = logits.ndim() > 0 ? logits.size(0) : 0;
  Check{op, "logits", logits}.rank(2).dtype<float>("float32").inner_contiguous();
  Check{op, "temperature", temperature}.rank(1).dim(0, n).dtype<float>("float32").contiguous();
  Check{op, "probs", probs}.same_shape(logits).dtype<float>("float32").inner_contiguous();
  const float* t = temperature.data<float>();
  for (int64_t r = 0; r < n; ++r)
    if (!(t[r] >= 0) || t[r] == kInf)
      fail("ValueError", op, ".temperature: want finite values >= 0, have ", t[r], " in row ", r);
  if (logits.numel() == 0) return;
  Softmax{logits.data<float>(), t, probs.data<float>(), n, logits.size(1), logits.stride(0),
          probs.stride(0)}
      .run();
}

FD_EXPORT(temperature_softmax)

}  // namespace fd
