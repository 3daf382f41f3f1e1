// Host side of rows as e4m3 codes.
#pragma once
#include "fd/fp8.h"
#include "fd/rowwise.h"
#include "fd/token_fp8.cuh"

namespace fd {

// Up to so many rows have several blocks each: the divisions of one would take longer than the
// rest.
constexpr int64_t kFewTokens = 64;

template <typename T>
void token_fp8_launch(const Launch& on, Tensor input, e4m3* to, float* scales,
                      const TokenFp8& all) {
  const T* from = input.data<T>();
  const bool packs =
      packable<T>(all.depth, {all.step}, {from}) && reinterpret_cast<uintptr_t>(to) % kPack<T> == 0;
  const int64_t vectors = packs ? all.depth / kPack<T> : all.depth;
  const int64_t wanted = (vectors + kTokenHeld - 1) / kTokenHeld;
  const auto threads = std::min<int64_t>((wanted + kWarp - 1) / kWarp * kWarp, 1024);
  const dim3 grid(static_cast<unsigned>(std::max(all.slots, all.out_rows)),
                  all.rows <= kFewTokens ? kTokenHeld : 1);
  const dim3 block(static_cast<unsigned>(std::max<int64_t>(threads, kWarp)));
  if (packs)
    run_overlapped(on, token_fp8_rows<T, kPack<T>>, grid, block, 0, from, to, scales, all);
  else
    run_overlapped(on, token_fp8_rows<T, 1>, grid, block, 0, from, to, scales, all);
}

}  // namespace fd
