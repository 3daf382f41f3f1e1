// Philox4x32-10 (Salmon et al., SC 2011): a counter-based generator, so a draw depends on its key
// and counter alone. NumPy twin: fd_core/ops/sampling/_philox.py.
#pragma once
#include "fd/types.h"

namespace fd {

// 64 random bits of (seed, position, stream).
__device__ __forceinline__ uint64_t philox_bits(uint64_t seed, uint64_t position, uint64_t stream) {
  uint32_t c0 = static_cast<uint32_t>(position), c1 = static_cast<uint32_t>(position >> 32);
  uint32_t c2 = static_cast<uint32_t>(stream), c3 = static_cast<uint32_t>(stream >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t a = 0xD2511F53u * c0, b = 0xCD9E8D57u * c2;
    const uint32_t high_a = __umulhi(0xD2511F53u, c0), high_b = __umulhi(0xCD9E8D57u, c2);
    c0 = high_b ^ c1 ^ k0, c1 = b;
    c2 = high_a ^ c3 ^ k1, c3 = a;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return static_cast<uint64_t>(c1) << 32 | c0;
}

// floor(bits / 2^64 * total): uniform in [0, total).
__device__ __forceinline__ uint64_t scale_bits(uint64_t bits, uint64_t total) {
  return __umul64hi(bits, total);
}

}  // namespace fd
