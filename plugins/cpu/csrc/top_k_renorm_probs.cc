#include "fd/checks/sampling.h"
#include "fd/select.h"

namespace fd {
namespace {

void renormalise(const float* p, int64_t width, float cut, float* out) {
  double sum = 0;
  for (int64_t i = 0; i < width; ++i) sum += p[i] >= cut && p[i] > 0 ? p[i] : 0.0f;
  const float total = std::max(static_cast<float>(sum), 1e-8f);
  for (int64_t i = 0; i < width; ++i) out[i] = p[i] >= cut && p[i] > 0 ? p[i] / total : 0.0f;
}

void positives(const float* p, int64_t width, float* out) {
  for (int64_t i = 0; i < width; ++i) out[i] = p[i] > 0 ? p[i] : 0.0f;
}

}  // namespace

void top_k_renorm_probs(Tensor probs, Tensor top_k, Tensor renorm_probs) {
  const char* op = "top_k_renorm_probs";
  const int64_t* k = check_renormalised<int64_t>(op, probs, "top_k", top_k, "int64", renorm_probs);
  const int64_t n = probs.size(0), width = probs.size(1);
  const float* p = probs.data<float>();
  float* o = renorm_probs.data<float>();
  const int64_t ps = probs.stride(0), os = renorm_probs.stride(0);
  parallel_for(width > 0 ? n : 0, 1, [=](int64_t begin, int64_t end) {
    MassRow row;
    for (int64_t r = begin; r < end; ++r) {
      const float* x = p + r * ps;
      if (k[r] <= 0 || k[r] >= width) {
        if (o + r * os != x) std::copy(x, x + width, o + r * os);
        continue;
      }
      row.load(x, width);
      const Upper top = top_k_cut(row, k[r], 0.0f);
      top.reached ? renormalise(x, width, top.cut, o + r * os) : positives(x, width, o + r * os);
    }
  });
}

FD_EXPORT(top_k_renorm_probs)

}  // namespace fd
