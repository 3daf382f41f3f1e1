// Plain weights to the quantised panels of quant_panels.h.
#include <cmath>
#include <vector>

#include "fd/quant_panels.h"
#include "fd/quantise.h"

namespace fd {
namespace {

using gemm::kPanel;
using gemm::kQuad;

struct alignas(64) Lanes {
  float x[kLanes];
};
constexpr int kMaxGroup = 128;
constexpr int kCandidates = 12;    // scales tried for a group, from two starts each
constexpr float kShrink = 0.025f;  // between one candidate and the next

// One column's codes, four at a time, at `to`; returns its scale.
template <typename T>
float pack_int8_column(const T* w, int64_t depth, int8_t* to) {
  const Scale scale(absmax(w, depth), 127.0f);
  for (int64_t k = 0; k < depth; k += kLanes) {
    const int n = static_cast<int>(std::min<int64_t>(kLanes, depth - k));
    const vf x = n == kLanes ? load16(w + k) : load_tail(w + k, n);
    const vb codes = __builtin_convertvector(codes16(x, scale.of_floats, -127, 127), vb);
    const char* from = reinterpret_cast<const char*>(&codes);
    for (int q = 0; q < n; q += kQuad)
      std::memcpy(to + (k + q) / kQuad * gemm::kInt8Quad, from + q, kQuad);
  }
  return scale.of_codes;
}

// Sum of squared differences between 16 n floats and their codes under a scale.
float loss(const vf* x, int n, float scale) {
  vf sum{};
  for (int i = 0; i < n; ++i) {
    const vf away = x[i] - __builtin_convertvector(codes16(x[i], 1.0f / scale, -8, 7), vf) * scale;
    sum += away * away;
  }
  return sum16(sum);
}

// The element of the largest magnitude.
float outermost(const vf* x, int n) {
  const float* from = reinterpret_cast<const float*>(x);
  return *std::max_element(from, from + n * kLanes,
                           [](float a, float b) { return std::abs(a) < std::abs(b); });
}

// The bfloat16 scale with the least squared error among: absmax / 7 (codes -7 .. 7); the outermost
// element / -8, of either sign (codes -8 .. 7); somewhat smaller ones, for clipping the outermost
// often serves the many better. Zero: all codes are.
float best_scale(const vf* x, int n) {
  const float full = Scale(absmax(reinterpret_cast<const float*>(x), n * kLanes), 7.0f).of_codes;
  if (!(full > 0)) return full;
  const float starts[] = {full, outermost(x, n) / -8.0f};
  float best = full, least = std::numeric_limits<float>::infinity();
  for (int i = 0; i < 2 * kCandidates; ++i) {
    const float smaller = 1.0f - kShrink * static_cast<float>(i / 2);
    const float scale = to_float(from_float<bf16>(starts[i % 2] * smaller));
    const float error = loss(x, n, scale);
    if (error < least) best = scale, least = error;
  }
  return best;
}

// Sixteen at a time; the last is filled up with zeros. Returns how many there are.
template <typename T>
int load_all(const T* w, int64_t depth, vf* x) {
  const int n = static_cast<int>((depth + kLanes - 1) / kLanes);
  for (int i = 0; i < n; ++i) {
    const int left = static_cast<int>(depth - i * int64_t{kLanes});
    x[i] = left >= kLanes ? load16(w + i * kLanes) : load_tail(w + i * kLanes, left);
  }
  return n;
}

// Column j of a group: its nibbles into `quads`, which begins zeroed.
template <typename T>
void pack_int4_column(const T* w, int64_t depth, float scale, int j, uint8_t* quads) {
  vf x[kMaxGroup / kLanes];
  const int n = load_all(w, depth, x);
  for (int i = 0; i < n; ++i) {
    const vi codes = codes16(x[i], std::abs(scale) > 0 ? 1.0f / scale : 0.0f, -8, 7);
    for (int l = 0; l < kLanes; ++l)
      quads[(i * kLanes + l) / kQuad * gemm::kInt4Quad + j % 16 * kQuad + l % kQuad] |=
          static_cast<uint8_t>((codes[l] & 15) << (j / 16 * 4));
  }
}

// Scales of the columns of a panel: as given, or the best of a column's group or of all of it.
struct Scales {
  const float* given;  // [columns][groups], null: none
  int64_t groups, group, depth;
  bool whole;

  template <typename T>
  float of(const T* w, int64_t column, int64_t g) const {
    if (given != nullptr)
      return to_float(from_float<bf16>(whole ? given[column] : given[column * groups + g]));
    const int64_t first = whole ? 0 : g * group;
    const int64_t length = whole ? depth : std::min(group, depth - first);
    thread_local std::vector<Lanes> space;
    space.resize(static_cast<size_t>((length + kLanes - 1) / kLanes));
    vf* x = reinterpret_cast<vf*>(space.data());
    return best_scale(x, load_all(w + first, length, x));
  }
};

// The panel of `columns` rows of w from `first` on.
template <typename T>
void pack_int4_panel(const T* w, int64_t stride, const Scales& plan, int64_t first, int columns,
                     uint8_t* to) {
  const int64_t bytes = gemm::int4_group_bytes(plan.group);
  std::memset(to, 0, static_cast<size_t>(plan.groups * bytes));
  for (int j = 0; j < columns; ++j) {
    const T* row = w + (first + j) * stride;
    float scale = 0;
    for (int64_t g = 0; g < plan.groups; ++g) {
      uint8_t* group = to + g * bytes;
      if (g == 0 || !plan.whole) scale = plan.of(row, first + j, g);
      reinterpret_cast<bf16*>(group)[j % 16 * 2 + j / 16] = from_float<bf16>(scale);
      const int64_t begin = g * plan.group;
      pack_int4_column(row + begin, std::min(plan.group, plan.depth - begin), scale, j,
                       group + gemm::kInt4Scales);
    }
  }
}

int columns_of(int64_t panel, int64_t columns) {
  return static_cast<int>(std::min<int64_t>(kPanel, columns - panel * kPanel));
}

}  // namespace

// packed [ceil(N / 32), ceil(K / 4), 32, 4] int8 and scale [N] float32 = absmax / 127 of each row
// of weight [N, K]. A row with a NaN or an infinity: codes zero, scale NaN.
void pack_int8_weight(Tensor weight, Tensor packed, Tensor scale) {
  const char* op = "pack_int8_weight";
  Check{op, "weight", weight}.rank(2).inner_contiguous();
  const int64_t columns = weight.size(0), depth = weight.size(1);
  gemm::check_int8(op, packed, scale, depth, columns);
  dispatch_float(op, "weight", weight, [&](auto tag) {
    using T = decltype(tag);
    const T* from = weight.data<T>();
    int8_t* to = packed.data<int8_t>();
    float* scales = scale.data<float>();
    const int64_t stride = weight.stride(0), size = gemm::quads_of(depth) * gemm::kInt8Quad;
    parallel_for(packed.size(0), 1, [=](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        std::memset(to + p * size, 0, static_cast<size_t>(size));
        for (int j = 0; j < columns_of(p, columns); ++j)
          scales[p * kPanel + j] =
              pack_int8_column(from + (p * kPanel + j) * stride, depth, to + p * size + j * kQuad);
      }
    });
  });
}
FD_EXPORT(pack_int8_weight)

// packed [ceil(N / 32), ceil(K / group), bytes of a group] uint8, group 32, 64 or 128 as the last
// size says. `scale` [N, ceil(K / group)] float32 is rounded to bfloat16 and used; without it each
// group gets the best one, or, if `whole`, each column one for all its groups. A group with a NaN
// or an infinity: codes zero, scale NaN.
void pack_int4_weight(Tensor weight, OptTensor scale, bool whole, Tensor packed) {
  const char* op = "pack_int4_weight";
  Check{op, "weight", weight}.rank(2).inner_contiguous();
  const int64_t columns = weight.size(0), depth = weight.size(1);
  const int64_t group = gemm::check_int4(op, packed, depth, columns);
  Scales plan{nullptr, packed.size(1), group, depth, whole};
  if (scale) {
    Check{op, "scale", scale}.rank(2).dim(0, columns).dim(1, whole ? 1 : plan.groups);
    Check{op, "scale", scale}.dtype<float>("float32").contiguous();
    plan.given = scale.data<float>();
  }
  dispatch_float(op, "weight", weight, [&](auto tag) {
    using T = decltype(tag);
    const T* from = weight.data<T>();
    uint8_t* to = packed.data<uint8_t>();
    const int64_t stride = weight.stride(0), bytes = packed.size(1) * packed.size(2);
    parallel_for(packed.size(0), 1, [=](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        pack_int4_panel(from, stride, plan, p * kPanel, columns_of(p, columns), to + p * bytes);
    });
  });
}
FD_EXPORT(pack_int4_weight)

}  // namespace fd
