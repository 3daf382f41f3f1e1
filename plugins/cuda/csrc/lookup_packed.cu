// lookup_int8(ids, codes, scales, out), lookup_int4, lookup_int4_zero, lookup_int8_rows: rows of
// weights as linear_int8, linear_int4, linear_int4_zero and linear_int8_dynamic have them, for
// embedding tables. Ids outside the table write nothing.
#include "fd/ids.cuh"
#include "fd/overlap.cuh"
#include "fd/packed_zero.cuh"

namespace fd {

// out [ids, depth]; a warp takes a window of a row's tile, of which four lanes have the row.
template <typename Weights, typename T>
__global__ void __launch_bounds__(256)
    lookup_packed_rows(Weights weights, Ids ids, int64_t depth, T* out, int64_t step) {
#if FD_SM80
  __shared__ uint4 slots[8][32 * Weights::kUnits + Weights::kExtra];
  let_next_start();
  wait_for_inputs();
  const int lane = threadIdx.x % 32;
  const int64_t i = int64_t{blockIdx.x} * 8 + threadIdx.x / 32;
  const int64_t row = i / weights.windows, id = row < ids.count ? ids[row] : -1;
  if (id < 0 || id >= weights.columns) return;
  const int window = static_cast<int>(i % weights.windows), tile = static_cast<int>(id / 16);
  uint4* slot = slots[threadIdx.x / 32];
  weights.fetch(slot, tile, window, lane);
  copy_async_commit();
  copy_async_wait<0>();
  __syncwarp();
  const float2 both = weights.row_scales(slot, tile, lane);
  const int hi = static_cast<int>(id % 16 / 8);
  if (lane / 4 != id % 8) return;
#pragma unroll
  for (int s = 0; s < Weights::kWindow / 32; ++s) {
    const int64_t k = int64_t{window} * Weights::kWindow + 32 * s + lane % 4 * 8;
    if (k >= depth) continue;
    uint32_t a[2][4];
    weights.operands(a, slot, s, lane);
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const uint32_t pair = hi ? a[q / 2][q % 2 * 2 + 1] : a[q / 2][q % 2 * 2];
      const T* codes = reinterpret_cast<const T*>(&pair);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float real = to_float(codes[e]) * (hi ? both.y : both.x);
        if (k + q * 2 + e < depth) out[row * step + k + q * 2 + e] = from_float<T>(real);
      }
    }
  }
#endif
}

// codes [vocabulary, depth] as they are.
template <typename T>
__global__ void __launch_bounds__(256)
    lookup_plain_rows(const int8_t* codes, const float* scales, int64_t vocabulary, Ids ids,
                      int64_t depth, T* out, int64_t step) {
  let_next_start();
  wait_for_inputs();
  const int64_t id = ids[blockIdx.x];
  if (id < 0 || id >= vocabulary) return;
  const float scale = scales[id];
  for (int64_t k = threadIdx.x; k < depth; k += blockDim.x)
    out[blockIdx.x * step + k] = from_float<T>(static_cast<float>(codes[id * depth + k]) * scale);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/ids.h"
#include "fd/packed_checks.h"
#include "fd/packed_linear.h"

namespace fd {

// Checks ids and out [ids, depth].
inline Ids lookup_ids(const char* op, Tensor ids, Tensor out) {
  Check{op, "ids", ids}.rank(1);
  Check{op, "out", out}.rank(2).dim(0, ids.size(0)).inner_contiguous();
  if (!half_width(out))
    fail("TypeError", op, ".out: want bfloat16 or float16, have ", dtype_text(out));
  return ids_of(op, "ids", ids);
}

// Calls make(tag of out's type) for the weights, and launches.
template <typename F>
void lookup_launch(const char* op, const Ids& ids, Tensor codes, Tensor out, F&& make) {
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, codes);
  check_tensor_cores(on);
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    const auto weights = make(tag);
    check_range(on, "ids", ids, 0, weights.columns);
    run_overlapped(on, lookup_packed_rows<std::decay_t<decltype(weights)>, T>,
                   dim3(blocks_of(ids.count * weights.windows, 8)), dim3(256), 0, weights, ids,
                   out.size(1), out.data<T>(), out.stride(0));
  };
  is<bf16>(out) ? go(bf16{}) : go(f16{});
}

void lookup_int8(Tensor ids, Tensor codes, Tensor scales, Tensor out) {
  const char* op = "lookup_int8";
  const Ids wanted = lookup_ids(op, ids, out);
  Check{op, "scales", scales}.rank(1).dtype<float>("float32").contiguous();
  check_int8_codes(op, codes, scales.size(0), out.size(1));
  same_device(op, codes, {ids, scales, out});
  lookup_launch(op, wanted, codes, out, [&](auto tag) {
    return Int8Weights<decltype(tag)>{{codes.data<uint4>(), static_cast<int>(codes.size(1))},
                                      {scales.data<float>(), scales.size(0)}};
  });
}
FD_EXPORT(lookup_int8)

void lookup_int8_rows(Tensor ids, Tensor codes, Tensor scales, Tensor out) {
  const char* op = "lookup_int8_rows";
  const Ids wanted = lookup_ids(op, ids, out);
  Check{op, "codes", codes}.rank(2).dtype<int8_t>("int8").dim(1, out.size(1)).contiguous();
  check_row_scales(op, scales, codes.size(0));
  same_device(op, codes, {ids, scales, out});
  const Launch on = launch_on(op, codes);
  check_range(on, "ids", wanted, 0, codes.size(0));
  const int8_t* from = codes.data<int8_t>();
  const float* steps = scales.data<float>();
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    run_overlapped(on, lookup_plain_rows<T>, dim3(static_cast<unsigned>(wanted.count)), dim3(256),
                   0, from, steps, codes.size(0), wanted, out.size(1), out.data<T>(),
                   out.stride(0));
  };
  is<bf16>(out) ? go(bf16{}) : go(f16{});
}
FD_EXPORT(lookup_int8_rows)

// Rows of the last tile that are no weights: looked up they give zeros, or scale times zero.
void lookup_int4(Tensor ids, Tensor codes, Tensor scales, Tensor out) {
  const char* op = "lookup_int4";
  const Ids wanted = lookup_ids(op, ids, out);
  const bool by_row = scales.ndim() == 1;
  const int64_t columns = by_row ? scales.size(0) : codes.size(0) * kSkinnyTile;
  const int64_t window = check_int4_codes(op, codes, columns, out.size(1));
  if (by_row)
    check_row_scales(op, scales, columns);
  else
    Check{op, "scales", scales}.rank(3).dim(0, codes.size(0)).dim(1, codes.size(1)).dim(2, 16);
  if (!by_row) Check{op, "scales", scales}.dtype<bf16>("bfloat16").contiguous();
  same_device(op, codes, {ids, scales, out});
  const int windows = static_cast<int>(codes.size(1));
  const auto launch = [&](auto&& make) { lookup_launch(op, wanted, codes, out, make); };
  const uint4* units = codes.data<uint4>();
  if (by_row) {
    if (window != kInt4RowWindow)
      fail("ValueError", op, ".codes: want 1024 bytes in dimension 2, have ", shape_text(codes));
    return launch([&](auto tag) {
      return Int4RowWeights<decltype(tag)>{{units, windows}, {scales.data<float>(), columns}};
    });
  }
  const uint32_t* pairs = scales.data<uint32_t>();
  if (window == 64)
    return launch(
        [&](auto tag) { return Int4Weights<decltype(tag), 64>{{units, windows}, pairs, columns}; });
  launch(
      [&](auto tag) { return Int4Weights<decltype(tag), 128>{{units, windows}, pairs, columns}; });
}
FD_EXPORT(lookup_int4)

void lookup_int4_zero(Tensor ids, Tensor codes, Tensor steps, Tensor out) {
  const char* op = "lookup_int4_zero";
  const Ids wanted = lookup_ids(op, ids, out);
  const int64_t columns = codes.size(0) * kSkinnyTile;
  const int64_t window = check_int4_codes(op, codes, columns, out.size(1));
  check_int4_steps(op, steps, codes);
  same_device(op, codes, {ids, steps, out});
  const uint4* units = codes.data<uint4>();
  const int windows = static_cast<int>(codes.size(1));
  const auto launch = [&](auto&& make) { lookup_launch(op, wanted, codes, out, make); };
  if (window == 64)
    return launch([&](auto tag) {
      return Int4ZeroWeights<decltype(tag), 64>{{units, windows}, steps.data<uint4>(), columns};
    });
  launch([&](auto tag) {
    return Int4ZeroWeights<decltype(tag), 128>{{units, windows}, steps.data<uint4>(), columns};
  });
}
FD_EXPORT(lookup_int4_zero)

}  // namespace fd
#endif
