// Philox4x32-10 (Salmon et al., SC 2011): a counter-based generator, so a draw depends on its key
// and counter alone. NumPy twin: fd_core/ops/sampling/_philox.py.
#pragma once
#include <cstdint>

namespace fd {

struct Philox {
  uint32_t v[4];
};

inline Philox philox4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                            uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * c0, b = 0xCD9E8D57ull * c2;
    c0 = static_cast<uint32_t>(b >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(b);
    c2 = static_cast<uint32_t>(a >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(a);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return Philox{{c0, c1, c2, c3}};
}

// 64 random bits of (seed, position, stream).
inline uint64_t philox_bits(uint64_t seed, uint64_t position, uint64_t stream) {
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const Philox r = philox4x32_10(low(position), low(position >> 32), low(stream), low(stream >> 32),
                                 low(seed), low(seed >> 32));
  return (static_cast<uint64_t>(r.v[1]) << 32) | r.v[0];
}

// floor(bits / 2^64 * total): uniform in [0, total).
inline uint64_t scale_bits(uint64_t bits, uint64_t total) {
  __extension__ typedef unsigned __int128 wide;
  return static_cast<uint64_t>((static_cast<wide>(bits) * total) >> 64);
}

}  // namespace fd
