#include <cmath>
#include <string_view>

#include "fd/check.h"
#include "fd/parallel.h"

namespace fd {
namespace {

// [E, N] or [E, 1, N], contiguous.
void check_columns(const char* op, const char* arg, OptTensor t, int64_t experts, int64_t columns) {
  if (!t) fail("ValueError", op, ".", arg, ": want [", experts, ", ", columns, "], have None");
  const Check check{op, arg, t};
  if (t.ndim() != 3) check.rank(2);
  if (t.ndim() == 3) check.dim(1, 1);
  check.dim(0, experts).dim(-1, columns).contiguous();
}

// Row r of four dense rows each.
template <typename T>
void unzip_2(const uint8_t* bytes, const uint8_t* local, const float* code_scale,
             const float* code_zp, const T* super, int64_t r, int64_t columns, T* to) {
  const int shift = r / 16 % 2 == 0 ? 4 : 0;  // 16 rows of bytes are a group of 64
  const uint8_t* scales = local + r / 32 * columns;
  for (int64_t n = 0; n < columns; ++n) {
    const float x = static_cast<float>(bytes[n]) * code_scale[n] + code_zp[n] + 0.5f;
    const int code = static_cast<int>(std::floor(x));
    const float scale = static_cast<float>(scales[n] >> shift & 15) * to_float(super[n]);
    for (int j = 0; j < 4; ++j)
      to[j * columns + n] =
          from_float<T>(scale * static_cast<float>((code >> (9 - 3 * j) & 63) - 32));
  }
}

// Ten rows of words to 64 dense rows.
template <typename T>
void unzip_25(const uint16_t* words, const T* super, int64_t columns, T* to) {
  static constexpr int kShift[] = {13, 11, 9, 6, 4, 2, 0};
  for (int64_t n = 0; n < columns; ++n) {
    const int last = words[9 * columns + n];
    const float scale = static_cast<float>(last & 0x1fff) * to_float(super[n]);
    const auto put = [&](int row, int code) {
      to[row * columns + n] = from_float<T>(static_cast<float>((code & 7) - 4) * scale);
    };
    for (int r = 0; r < 9; ++r)
      for (int j = 0; j < 7; ++j) put(7 * r + j, words[r * columns + n] >> kShift[j]);
    put(63, last >> 13);
  }
}

void check_wint2(const char* op, Tensor zipped, OptTensor local, OptTensor code_scale,
                 OptTensor code_zp) {
  const int64_t experts = zipped.size(0), rows = zipped.size(1), columns = zipped.size(2);
  Check{op, "zipped_weight", zipped}.dtype<uint8_t>("uint8");
  if (rows % 32 != 0)
    fail("ValueError", op, ".zipped_weight: want rows a multiple of 32, have ", rows);
  if (!local) fail("ValueError", op, ".local_scale: want [E, K / 128, N], have None");
  Check{op, "local_scale", local}.rank(3).dim(0, experts).dim(1, rows / 32).dim(2, columns);
  Check{op, "local_scale", local}.dtype<uint8_t>("uint8").contiguous();
  check_columns(op, "code_scale", code_scale, experts, columns);
  check_columns(op, "code_zp", code_zp, experts, columns);
  Check{op, "code_scale", code_scale}.dtype<float>("float32");
  Check{op, "code_zp", code_zp}.dtype<float>("float32");
}

}  // namespace

void winx_unzip(Tensor zipped_weight, OptTensor local_scale, OptTensor code_scale,
                OptTensor code_zp, OptTensor super_scale, std::string_view quant_method,
                Tensor weight) {
  const char* op = "winx_unzip";
  const bool two = quant_method == "weight_only_int2";
  if (!two && quant_method != "weight_only_int2.5")
    fail("ValueError", op, ".quant_method: want weight_only_int2 or weight_only_int2.5, have ",
         quant_method);
  Check{op, "zipped_weight", zipped_weight}.rank(3).contiguous();
  const int64_t experts = zipped_weight.size(0), rows = zipped_weight.size(1);
  const int64_t columns = zipped_weight.size(2), parts = two ? rows : rows / 10;
  if (two) check_wint2(op, zipped_weight, local_scale, code_scale, code_zp);
  if (!two && (zipped_weight.dtype().code != kDLInt || zipped_weight.dtype().bits != 16))
    fail("TypeError", op, ".zipped_weight: want dtype int16, have ", dtype_text(zipped_weight));
  if (!two && rows % 10 != 0)
    fail("ValueError", op, ".zipped_weight: want rows a multiple of 10, have ", rows);
  check_columns(op, "super_scale", super_scale, experts, columns);
  if (!is<bf16>(super_scale) && !is<f16>(super_scale))
    fail("TypeError", op, ".super_scale: want bfloat16 or float16, have ", dtype_text(super_scale));
  const int64_t each = two ? 4 : 64;
  Check{op, "weight", weight}.rank(3).dim(0, experts).dim(1, parts * each).dim(2, columns);
  Check{op, "weight", weight}.same_dtype(super_scale).contiguous();
  const auto run = [&](auto tag) {
    using T = decltype(tag);
    const T* super = super_scale.data<T>();
    T* to = weight.data<T>();
    parallel_for(experts * parts, 1 + 16384 / (each * columns + 1), [=](int64_t b, int64_t end) {
      for (int64_t i = b; i < end; ++i) {
        const int64_t e = i / parts, first = e * columns;
        T* out = to + i * each * columns;
        if (two)
          unzip_2(zipped_weight.data<uint8_t>() + i * columns,
                  local_scale.data<uint8_t>() + e * (rows / 32) * columns,
                  code_scale.data<float>() + first, code_zp.data<float>() + first, super + first,
                  i % parts, columns, out);
        else
          unzip_25(zipped_weight.data<uint16_t>() + i * 10 * columns, super + first, columns, out);
      }
    });
  };
  if (is<bf16>(super_scale)) return run(bf16{});
  run(f16{});
}
FD_EXPORT(winx_unzip)

}  // namespace fd
