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
#include "fd/packed_kinds.h"
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

// A launch over the weights that with(tag of out's type, f) gives to f.
template <typename F>
void lookup_launch(const char* op, const Ids& ids, Tensor codes, Tensor out, F&& with) {
  if (out.numel() == 0) return;
  const Launch on = launch_on(op, codes);
  check_tensor_cores(on);
  const auto go = [&](auto tag) {
    using T = decltype(tag);
    with(tag, [&](const auto& weights) {
      check_range(on, "ids", ids, 0, weights.columns);
      run_overlapped(on, lookup_packed_rows<std::decay_t<decltype(weights)>, T>,
                     dim3(blocks_of(ids.count * weights.windows, 8)), dim3(256), 0, weights, ids,
                     out.size(1), out.data<T>(), out.stride(0));
    });
  };
  is<bf16>(out) ? go(bf16{}) : go(f16{});
}

void lookup_int8(Tensor ids, Tensor codes, Tensor scales, Tensor out) {
  const char* op = "lookup_int8";
  const Ids wanted = lookup_ids(op, ids, out);
  Check{op, "scales", scales}.rank(1);
  check_int8(op, codes, scales, scales.size(0), out.size(1));
  same_device(op, codes, {ids, scales, out});
  lookup_launch(op, wanted, codes, out, [&](auto tag, auto&& f) {
    f(int8_weights<decltype(tag)>(codes, scales, scales.size(0)));
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
  const int64_t columns = scales.ndim() == 1 ? scales.size(0) : codes.size(0) * kSkinnyTile;
  const int group = check_int4(op, codes, scales, columns, out.size(1));
  same_device(op, codes, {ids, scales, out});
  lookup_launch(op, wanted, codes, out, [&](auto tag, auto&& f) {
    with_int4_weights<decltype(tag)>(group, codes, scales, columns, f);
  });
}
FD_EXPORT(lookup_int4)

void lookup_int4_zero(Tensor ids, Tensor codes, Tensor steps, Tensor out) {
  const char* op = "lookup_int4_zero";
  const Ids wanted = lookup_ids(op, ids, out);
  const int64_t columns = codes.size(0) * kSkinnyTile;
  const int64_t group = check_int4_zero(op, codes, steps, columns, out.size(1));
  same_device(op, codes, {ids, steps, out});
  lookup_launch(op, wanted, codes, out, [&](auto tag, auto&& f) {
    with_int4_zero_weights<decltype(tag)>(group, codes, steps, columns, f);
  });
}
FD_EXPORT(lookup_int4_zero)

}  // namespace fd
#endif
