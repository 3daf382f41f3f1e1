#include "fd/overlap.cuh"
#include "fd/types.h"

namespace fd {

// Columns of `parts` packed pieces per expert, each spread to several dense rows. Scales by column
// of every expert.
template <typename T>
struct WinxUnzip {
  const void* zipped;    // bytes [E, parts, N], or words [E, 10 parts, N]
  const uint8_t* local;  // [E, parts / 32, N]; the three: 2 bits only
  const float *code_scale, *code_zp;
  const T* super;
  T* out;
  int64_t pieces, parts, columns;
};

// A piece and column a thread.
struct WinxPlace {
  int64_t piece, n;
};
__device__ __forceinline__ WinxPlace winx_place(int64_t columns) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  return {i / columns, i % columns};
}

// About 2 bits: a byte holds four rows, 16 bytes share a local scale.
template <typename T>
__global__ void winx_unzip_2(WinxUnzip<T> all) {
  let_next_start();
  wait_for_inputs();
  const auto [piece, n] = winx_place(all.columns);
  if (piece >= all.pieces) return;
  const int64_t e = piece / all.parts, r = piece % all.parts, at = e * all.columns + n;
  const uint8_t byte = static_cast<const uint8_t*>(all.zipped)[piece * all.columns + n];
  const float x = static_cast<float>(byte) * all.code_scale[at] + all.code_zp[at] + 0.5f;
  const int code = static_cast<int>(floorf(x)), shift = r / 16 % 2 == 0 ? 4 : 0;
  const int local = all.local[(e * (all.parts / 32) + r / 32) * all.columns + n] >> shift & 15;
  const float scale = static_cast<float>(local) * to_float(all.super[at]);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float value = static_cast<float>((code >> (9 - 3 * j) & 63) - 32);
    all.out[(piece * 4 + j) * all.columns + n] = from_float<T>(scale * value);
  }
}

// About 2.5 bits: nine words hold seven rows each, the tenth one and the local scale.
template <typename T>
__global__ void winx_unzip_25(WinxUnzip<T> all) {
  constexpr int kShift[] = {13, 11, 9, 6, 4, 2, 0};
  let_next_start();
  wait_for_inputs();
  const auto [piece, n] = winx_place(all.columns);
  if (piece >= all.pieces) return;
  const uint16_t* words = static_cast<const uint16_t*>(all.zipped) + piece * 10 * all.columns + n;
  const int last = words[9 * all.columns];
  const float super = to_float(all.super[piece / all.parts * all.columns + n]);
  const float scale = static_cast<float>(last & 0x1fff) * super;
  T* out = all.out + piece * 64 * all.columns + n;
  const auto put = [&](int row, int code) {
    out[row * all.columns] = from_float<T>(static_cast<float>((code & 7) - 4) * scale);
  };
#pragma unroll
  for (int r = 0; r < 9; ++r) {
    const int word = words[r * all.columns];
#pragma unroll
    for (int j = 0; j < 7; ++j) put(7 * r + j, word >> kShift[j]);
  }
  put(63, last >> 13);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include <string_view>

#include "fd/cuda.h"

namespace fd {

// [E, N] or [E, 1, N], contiguous.
inline void winx_unzip_columns(const char* arg, OptTensor t, int64_t experts, int64_t columns) {
  const char* op = "winx_unzip";
  if (!t) fail("ValueError", op, ".", arg, ": want [", experts, ", ", columns, "], have None");
  const Check check{op, arg, t};
  if (t.ndim() != 3) check.rank(2);
  if (t.ndim() == 3) check.dim(1, 1);
  check.dim(0, experts).dim(-1, columns).contiguous();
}

inline void winx_unzip_check_2(Tensor zipped, OptTensor local, OptTensor code_scale,
                               OptTensor code_zp) {
  const char* op = "winx_unzip";
  const int64_t experts = zipped.size(0), rows = zipped.size(1), columns = zipped.size(2);
  Check{op, "zipped_weight", zipped}.dtype<uint8_t>("uint8");
  if (rows % 32 != 0)
    fail("ValueError", op, ".zipped_weight: want rows a multiple of 32, have ", rows);
  if (!local) fail("ValueError", op, ".local_scale: want [E, K / 128, N], have None");
  Check{op, "local_scale", local}.rank(3).dim(0, experts).dim(1, rows / 32).dim(2, columns);
  Check{op, "local_scale", local}.dtype<uint8_t>("uint8").contiguous();
  winx_unzip_columns("code_scale", code_scale, experts, columns);
  winx_unzip_columns("code_zp", code_zp, experts, columns);
  Check{op, "code_scale", code_scale}.dtype<float>("float32");
  Check{op, "code_zp", code_zp}.dtype<float>("float32");
  same_device(op, zipped, {local, code_scale, code_zp});
}

inline void winx_unzip_check_25(Tensor zipped) {
  const char* op = "winx_unzip";
  if (zipped.dtype().code != kDLInt || zipped.dtype().bits != 16)
    fail("TypeError", op, ".zipped_weight: want dtype int16, have ", dtype_text(zipped));
  if (zipped.size(1) % 10 != 0)
    fail("ValueError", op, ".zipped_weight: want rows a multiple of 10, have ", zipped.size(1));
}

inline void winx_unzip_check_ends(Tensor zipped, OptTensor super, int64_t depth, Tensor weight) {
  const char* op = "winx_unzip";
  const int64_t experts = zipped.size(0), columns = zipped.size(2);
  winx_unzip_columns("super_scale", super, experts, columns);
  if (!is<bf16>(super) && !is<f16>(super))
    fail("TypeError", op, ".super_scale: want bfloat16 or float16, have ", dtype_text(super));
  Check{op, "weight", weight}.rank(3).dim(0, experts).dim(1, depth).dim(2, columns);
  Check{op, "weight", weight}.same_dtype(super).contiguous();
  same_device(op, zipped, {super, weight});
}

template <typename T>
void winx_unzip_launch(const Launch& on, Tensor zipped, OptTensor local, OptTensor code_scale,
                       OptTensor code_zp, Tensor super, int64_t parts, bool two, Tensor weight) {
  WinxUnzip<T> all{};
  all.zipped = zipped.data<void>(), all.super = super.data<T>(), all.out = weight.data<T>();
  all.parts = parts, all.pieces = zipped.size(0) * parts, all.columns = zipped.size(2);
  if (two) {
    all.local = local.data<uint8_t>();
    all.code_scale = code_scale.data<float>(), all.code_zp = code_zp.data<float>();
  }
  run_overlapped(on, two ? winx_unzip_2<T> : winx_unzip_25<T>,
                 dim3((all.pieces * all.columns + 127) / 128), dim3(128), 0, all);
}

void winx_unzip(Tensor zipped_weight, OptTensor local_scale, OptTensor code_scale,
                OptTensor code_zp, OptTensor super_scale, std::string_view quant_method,
                Tensor weight) {
  const char* op = "winx_unzip";
  const bool two = quant_method == "weight_only_int2";
  if (!two && quant_method != "weight_only_int2.5")
    fail("ValueError", op, ".quant_method: want weight_only_int2 or weight_only_int2.5, have ",
         quant_method);
  Check{op, "zipped_weight", zipped_weight}.rank(3).contiguous();
  if (two)
    winx_unzip_check_2(zipped_weight, local_scale, code_scale, code_zp);
  else
    winx_unzip_check_25(zipped_weight);
  const int64_t rows = zipped_weight.size(1), parts = two ? rows : rows / 10;
  winx_unzip_check_ends(zipped_weight, super_scale, two ? 4 * parts : 64 * parts, weight);
  const Launch on = launch_on(op, zipped_weight);
  const auto start = [&](auto tag) {
    winx_unzip_launch<decltype(tag)>(on, zipped_weight, local_scale, code_scale, code_zp,
                                     super_scale, parts, two, weight);
  };
  if (is<bf16>(super_scale)) return start(bf16{});
  start(f16{});
}
FD_EXPORT(winx_unzip)

}  // namespace fd
#endif
