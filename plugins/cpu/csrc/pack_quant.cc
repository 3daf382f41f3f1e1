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
// Scales tried from a start: some larger (no code at the end, but more near their weights), most
// smaller (the outermost clipped often serves the many better).
constexpr int kLarger = 4, kSmaller = 12;
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

// A value is (code - zero) * scale, codes -8 .. 7.
struct Step {
  float scale;
  int zero;

  vi codes(vf x) const {
    const float of_floats = std::abs(scale) > 0 ? 1.0f / scale : 0.0f;
    return codes16(x, of_floats, -8 - zero, 7 - zero) + zero;
  }
  vf values(vf x) const { return __builtin_convertvector(codes(x) - zero, vf) * scale; }
};

// The best step so far for some floats, sixteen at a time, and its weighted sum of squared
// differences.
struct Best {
  const vf *x, *weight;
  int n;
  Step step;
  float least = std::numeric_limits<float>::infinity();

  void try_one(float scale, int zero) {
    const Step one{to_float(from_float<bf16>(scale)), zero};
    vf sum{};
    for (int i = 0; i < n; ++i) {
      const vf away = x[i] - one.values(x[i]);
      sum += weight[i] * away * away;
    }
    const float error = sum16(sum);
    if (error < least) step = one, least = error;
  }
};

// The element of the largest magnitude.
float outermost(const float* x, int64_t n) {
  return *std::max_element(x, x + n, [](float a, float b) { return std::abs(a) < std::abs(b); });
}

float candidate(float start, int i) { return start * (1.0f - kShrink * static_cast<float>(i)); }

// Scales that span all of the range, between zero points that put its middle amid the codes.
void try_ranges(Best& best, float low, float high) {
  const float full = (high - low) / 15.0f;
  for (int i = -kLarger; full > kTinyAbsmax && i < kSmaller; ++i) {
    const float scale = candidate(full, i);
    const float middle = std::clamp((low + high) / (-2.0f * scale) - 0.5f, -127.0f, 126.0f);
    const int zero = static_cast<int>(std::nearbyint(middle));
    for (int away : {0, -1, 1}) best.try_one(scale, zero + away);
  }
}

// What the error of each float counts: 1, and its magnitude over the root of their mean square.
// Large weights do more for the outputs: errors that count alike cost a model more.
void weigh(const float* x, int64_t depth, float* weight) {
  double squares = 0;
  for (int64_t i = 0; i < depth; ++i) squares += double{x[i]} * double{x[i]};
  const float root = static_cast<float>(std::sqrt(squares / static_cast<double>(depth)));
  for (int64_t i = 0; i < depth; ++i) weight[i] = 1.0f + std::abs(x[i]) / root;
}

// The bfloat16 scale with the least error, as `weigh` counts it, of `depth` floats among those
// about absmax / 7 (codes -7 .. 7) and the outermost element / -8, of either sign (codes -8 .. 7);
// with `zeros` also those of try_ranges. Scale zero: all codes are. `weight` is room for as many,
// zeros.
Step best_step(const vf* x, int64_t depth, bool zeros, vf* weight) {
  const float* from = reinterpret_cast<const float*>(x);
  const float full = Scale(absmax(from, depth), 7.0f).of_codes;
  if (!(full > 0)) return {full, 0};
  weigh(from, depth, reinterpret_cast<float*>(weight));
  const int n = static_cast<int>((depth + kLanes - 1) / kLanes);
  Best best{x, weight, n, {to_float(from_float<bf16>(full)), 0}};
  for (int i = -kLarger; i < kSmaller; ++i)
    for (float start : {full, outermost(from, depth) / -8.0f}) best.try_one(candidate(start, i), 0);
  const auto [low, high] = std::minmax_element(from, from + depth);
  if (zeros) try_ranges(best, *low, *high);
  return best.step;
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
void pack_int4_column(const T* w, int64_t depth, const Step& step, int j, uint8_t* quads) {
  vf x[kMaxGroup / kLanes];
  load_all(w, depth, x);
  vi codes{};
  for (int64_t k = 0; k < depth; ++k) {
    if (k % kLanes == 0) codes = step.codes(x[k / kLanes]);
    quads[k / kQuad * gemm::kInt4Quad + j % 16 * kQuad + k % kQuad] |=
        static_cast<uint8_t>((codes[k % kLanes] & 15) << (j / 16 * 4));
  }
}

// Steps of the columns of a panel: as given, or the best of a column's group or of all of it.
struct Steps {
  const float *scales, *zero_points;  // [columns][groups], null: none
  int64_t count, depth;               // groups of a column
  gemm::Int4Groups groups;
  bool whole;

  template <typename T>
  Step of(const T* w, int64_t column, int64_t g) const {
    if (scales != nullptr) return given(whole ? column : column * count + g);
    const int64_t first = whole ? 0 : g * groups.length;
    const int64_t length = whole ? depth : std::min(groups.length, depth - first);
    thread_local std::vector<Lanes> space;
    const int64_t n = (length + kLanes - 1) / kLanes;
    space.assign(static_cast<size_t>(2 * n), Lanes{});
    vf* x = reinterpret_cast<vf*>(space.data());
    load_all(w + first, length, x);
    return best_step(x, length, groups.zeros, x + n);
  }

 private:
  Step given(int64_t at) const {
    const float zero = zero_points == nullptr ? 0.0f : std::clamp(zero_points[at], -128.0f, 127.0f);
    return {to_float(from_float<bf16>(scales[at])), static_cast<int>(std::nearbyint(zero))};
  }
};

// The scale and the zero point of column j.
void put_step(const Step& step, int j, bool zeros, uint8_t* header) {
  reinterpret_cast<bf16*>(header)[j % 16 * 2 + j / 16] = from_float<bf16>(step.scale);
  if (zeros) header[gemm::kInt4Scales + j] = static_cast<uint8_t>(step.zero);
}

// The panel of `columns` rows of w from `first` on.
template <typename T>
void pack_int4_panel(const T* w, int64_t stride, const Steps& plan, int64_t first, int columns,
                     uint8_t* to) {
  const int64_t bytes = plan.groups.bytes();
  std::memset(to, 0, static_cast<size_t>(plan.count * bytes));
  for (int j = 0; j < columns; ++j) {
    const T* row = w + (first + j) * stride;
    Step step{};
    for (int64_t g = 0; g < plan.count; ++g) {
      if (g == 0 || !plan.whole) step = plan.of(row, first + j, g);
      put_step(step, j, plan.groups.zeros, to + g * bytes);
      const int64_t begin = g * plan.groups.length;
      pack_int4_column(row + begin, std::min(plan.groups.length, plan.depth - begin), step, j,
                       to + g * bytes + plan.groups.header());
    }
  }
}

// The numbers of `given` [columns, groups], if there are any.
const float* numbers(const char* op, const char* name, const OptTensor& given, int64_t columns,
                     int64_t groups) {
  if (!given) return nullptr;
  Check{op, name, given}.rank(2).dim(0, columns).dim(1, groups);
  Check{op, name, given}.dtype<float>("float32").contiguous();
  return given.data<float>();
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

// packed [ceil(N / 32), ceil(K / group), bytes of a group] uint8, group 32, 64 or 128 and with zero
// points or without, as the last size says. `scale` and `zero` [N, ceil(K / group)] float32, or
// [N, 1] if `whole`, are rounded to bfloat16 and int8 and used; without them each group gets the
// best, or, if `whole`, each column for all its groups. A group with a NaN or an infinity: codes
// zero, scale NaN.
void pack_int4_weight(Tensor weight, OptTensor scale, OptTensor zero, bool whole, Tensor packed) {
  const char* op = "pack_int4_weight";
  Check{op, "weight", weight}.rank(2).inner_contiguous();
  const int64_t columns = weight.size(0), depth = weight.size(1);
  const gemm::Int4Groups groups = gemm::check_int4(op, packed, depth, columns);
  const int64_t given = whole ? 1 : packed.size(1);
  const Steps plan{numbers(op, "scale", scale, columns, given),
                   numbers(op, "zero", zero, columns, given),
                   packed.size(1),
                   depth,
                   groups,
                   whole};
  if (zero && !(scale && groups.zeros))
    fail("ValueError", op, ".zero: want none without a scale and room for zero points, have one");
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
