#include "fd/parallel.h"
#include "fd/row_dot.h"
#include "fd/scratch.h"

namespace fd {
namespace {

constexpr int64_t kScaleBlock = 128;
constexpr int kRows = 4, kColumns = 4, kFp8Columns = 2;
constexpr int64_t kMaxDepth = 131072;  // 128 * 128 * K stays below 2^31

// a_s[m] * (b_s[n] * sum) + bias[n]; steps of 0 for scales that serve all.
struct Scaling {
  const float *rows, *columns;
  int64_t row_step, column_step;
  Tensor out;
  OptTensor bias;

  template <typename T>
  void put(int64_t m, int64_t n, float sum) const {
    const float add = bias ? to_float(bias.data<T>()[n]) : 0.0f;
    const float scaled = rows[m * row_step] * (columns[n * column_step] * sum);
    out.data<T>()[m * out.size(1) + n] = from_float<T>(scaled + add);
  }
};

struct Problem {
  Tensor a, b;
  Scaling scaling;
  bool blocks;  // scales by blocks of 128 x 128
  const float *a_blocks, *b_blocks;
  int64_t a_step, b_step;

  int64_t rows() const { return a.size(0); }
  int64_t columns() const { return b.size(0); }
  int64_t depth() const { return a.size(1); }
};

template <typename T, int R>
void int8_tile(const Problem& p, int64_t m, int64_t n, const int32_t* b_sums) {
  int32_t sums[R * kColumns];
  gemm::Int8RowDot<R, kColumns>::run(p.a.data<int8_t>() + m * p.depth(),
                                     p.b.data<int8_t>() + n * p.depth(), p.depth(), b_sums + n,
                                     sums);
  for (int i = 0; i < R * kColumns; ++i)
    p.scaling.put<T>(m + i / kColumns, n + i % kColumns, static_cast<float>(sums[i]));
}

template <typename T, int R>
void fp8_tile(const Problem& p, int64_t m, int64_t n, const float* x) {
  const int64_t depth = p.depth();
  const float* a_scales = p.blocks ? p.a_blocks + m * p.a_step : nullptr;
  const float* b_scales = p.blocks ? p.b_blocks + n / kScaleBlock : nullptr;
  float sums[R * kFp8Columns];
  gemm::Fp8RowDot<R, kFp8Columns>::run(x + m * depth, depth, p.b.data<uint8_t>() + n * depth, depth,
                                       kScaleBlock, a_scales, p.a_step, b_scales, p.b_step, sums);
  for (int i = 0; i < R * kFp8Columns; ++i)
    p.scaling.put<T>(m + i / kFp8Columns, n + i % kFp8Columns, sums[i]);
}

// Calls tile(rows, m) for rows in fours, then one by one, for each strip of `width` columns.
template <typename F>
void for_tiles(const Problem& p, int width, F&& tile) {
  const int64_t strips = p.columns() / width, rows = p.rows();
  parallel_for(strips, 1 + (1 << 16) / (width * p.depth() * rows + 1), [&](int64_t s, int64_t end) {
    for (; s < end; ++s) {
      int64_t m = 0;
      for (; m + kRows <= rows; m += kRows)
        tile(std::integral_constant<int, kRows>{}, m, s * width);
      for (; m < rows; ++m) tile(std::integral_constant<int, 1>{}, m, s * width);
    }
  });
}

template <typename T>
void run_int8(const Problem& p) {
  int32_t* sums = reinterpret_cast<int32_t*>(scratch<0>(p.columns()));
  const int8_t* b = p.b.data<int8_t>();
  const int64_t depth = p.depth();
  parallel_for(p.columns(), 1 + 16384 / (depth + 1), [=](int64_t n, int64_t end) {
    for (; n < end; ++n) {
      sums[n] = 0;
      for (int64_t k = 0; k < depth; ++k) sums[n] += b[n * depth + k];
    }
  });
  for_tiles(p, kColumns, [&](auto rows, int64_t m, int64_t n) {
    int8_tile<T, decltype(rows)::value>(p, m, n, sums);
  });
}

template <typename T>
void run_fp8(const Problem& p) {
  const int64_t size = p.a.numel();
  float* x = scratch<0>(size);
  const uint8_t* from = p.a.data<uint8_t>();
  parallel_for(size / kLanes, 1024, [=](int64_t i, int64_t end) {
    for (; i < end; ++i) store16(x + i * kLanes, e4m3_floats(from + i * kLanes));
  });
  for_tiles(p, kFp8Columns, [&](auto rows, int64_t m, int64_t n) {
    fp8_tile<T, decltype(rows)::value>(p, m, n, x);
  });
}

// 1 or `count` scales, [count] or [count, 1]; returns the step.
int64_t scale_step(const char* op, const char* arg, Tensor scales, int64_t count) {
  Check{op, arg, scales}.dtype<float>("float32").contiguous();
  if (scales.numel() == 1) return 0;
  Check{op, arg, scales}.slots(count);
  return 1;
}

void set_blocks(const char* op, Problem* p, Tensor a_scales, Tensor b_scales) {
  const int64_t deep = (p->depth() + kScaleBlock - 1) / kScaleBlock;
  if (is<int8_t>(p->a))
    fail("ValueError", op, ".a_scales: want per row with int8, have ", shape_text(a_scales));
  Check{op, "a_scales", a_scales}.rank(2).dim(0, p->rows()).dim(1, deep).contiguous();
  Check{op, "b_scales", b_scales}.rank(2).dim(0, deep).contiguous();
  Check{op, "b_scales", b_scales}.dim(1, (p->columns() + kScaleBlock - 1) / kScaleBlock);
  Check{op, "a_scales", a_scales}.dtype<float>("float32");
  Check{op, "b_scales", b_scales}.dtype<float>("float32");
  static constexpr float kOne = 1;
  p->scaling.rows = p->scaling.columns = &kOne;
  p->a_blocks = a_scales.data<float>(), p->a_step = deep;
  p->b_blocks = b_scales.data<float>(), p->b_step = b_scales.size(1);
}

void check_matrices(const char* op, Tensor c, Tensor a, Tensor b, OptTensor bias) {
  Check{op, "a", a}.rank(2).contiguous();
  Check{op, "b", b}.rank(2).dim(1, a.size(1)).same_dtype(a).contiguous();
  if (!is<int8_t>(a) && !is<e4m3>(a))
    fail("TypeError", op, ".a: want int8 or float8_e4m3fn, have ", dtype_text(a));
  Check{op, "c", c}.rank(2).dim(0, a.size(0)).dim(1, b.size(0)).contiguous();
  if (!is<bf16>(c) && !is<f16>(c))
    fail("TypeError", op, ".c: want bfloat16 or float16, have ", dtype_text(c));
  if (a.size(1) % 16 != 0 || (is<int8_t>(a) && a.size(1) > kMaxDepth))
    fail("ValueError", op, ".a: want K a multiple of 16, at most 131072, have ", a.size(1));
  if (b.size(0) % 16 != 0) fail("ValueError", op, ".b: want N a multiple of 16, have ", b.size(0));
  if (bias) Check{op, "bias", bias}.rank(1).dim(0, b.size(0)).same_dtype(c).contiguous();
}

}  // namespace

void cutlass_scaled_mm(Tensor c, Tensor a, Tensor b, Tensor a_scales, Tensor b_scales,
                       OptTensor bias) {
  const char* op = "cutlass_scaled_mm";
  check_matrices(op, c, a, b, bias);
  Problem p{a, b, {nullptr, nullptr, 0, 0, c, bias}, false, nullptr, nullptr, 0, 0};
  const auto fits = [](Tensor t, int64_t n) { return t.numel() == 1 || t.numel() == n; };
  p.blocks = !(fits(a_scales, p.rows()) && fits(b_scales, p.columns())) && a_scales.ndim() == 2 &&
             b_scales.ndim() == 2;
  if (p.blocks) {
    set_blocks(op, &p, a_scales, b_scales);
  } else {
    p.scaling.row_step = scale_step(op, "a_scales", a_scales, p.rows());
    p.scaling.column_step = scale_step(op, "b_scales", b_scales, p.columns());
    p.scaling.rows = a_scales.data<float>(), p.scaling.columns = b_scales.data<float>();
  }
  const bool half = is<f16>(c);
  if (is<int8_t>(a)) return half ? run_int8<f16>(p) : run_int8<bf16>(p);
  half ? run_fp8<f16>(p) : run_fp8<bf16>(p);
}
FD_EXPORT(cutlass_scaled_mm)

}  // namespace fd
