#include "fd/check.h"
#include "fd/parallel.h"

namespace fd {
namespace {

constexpr int64_t kTileK = 16, kTileN = 64;

// Codes of [k, n], `bits` each, packed along k.
struct Source {
  const uint32_t* words;
  const int32_t* perm;  // null: none
  int64_t columns;
  int bits;

  uint32_t get(int64_t k, int64_t n) const {
    const int64_t row = perm != nullptr ? perm[k] : k;
    const int pack = 32 / bits, shift = static_cast<int>(row % pack) * bits;
    return words[row / pack * columns + n] >> shift & ((1u << bits) - 1);
  }
};

// Word `w` of the tile that begins at (k0, n0): the inverse of the contract's formulas.
uint32_t tile_word(const Source& from, int64_t k0, int64_t n0, int w) {
  static constexpr int kOrder4[] = {0, 2, 4, 6, 1, 3, 5, 7}, kOrder8[] = {0, 2, 1, 3};
  const bool four = from.bits == 4;
  const int lane = four ? w / 4 : w / 8, warp = four ? w % 4 : w % 8 / 2;
  uint32_t word = 0;
  for (int slot = 0; slot < 32 / from.bits; ++slot) {
    const int v = four ? kOrder4[slot] : kOrder8[slot];
    const int i = v % 4, half = four ? v / 4 : w % 2;
    const int k = i / 2 * 8 + lane % 4 * 2 + i % 2, n = warp * 16 + half * 8 + lane / 4;
    word |= from.get(k0 + k, n0 + n) << (slot * from.bits);
  }
  return word;
}

void check_perm(const char* op, const int32_t* perm, int64_t n, int64_t size) {
  for (int64_t i = 0; i < n; ++i)
    if (perm[i] < 0 || perm[i] >= size)
      fail("ValueError", op, ".perm: want indices in [0, ", size, "), have ", perm[i],
           " at position ", i);
}

}  // namespace

void gptq_marlin_repack(Tensor b_q_weight, Tensor perm, int64_t size_k, int64_t size_n,
                        int64_t num_bits, Tensor out) {
  const char* op = "gptq_marlin_repack";
  if (num_bits != 4 && num_bits != 8)
    fail("ValueError", op, ".num_bits: want 4 or 8, have ", num_bits);
  if (size_k % kTileK != 0 || size_k < 0)
    fail("ValueError", op, ".size_k: want a multiple of 16, have ", size_k);
  if (size_n % kTileN != 0 || size_n < 0)
    fail("ValueError", op, ".size_n: want a multiple of 64, have ", size_n);
  const int64_t pack = 32 / num_bits;
  Check{op, "b_q_weight", b_q_weight}.rank(2).dim(0, size_k / pack).dim(1, size_n).contiguous();
  Check{op, "b_q_weight", b_q_weight}.dtype<int32_t>("int32");
  Check{op, "perm", perm}.rank(1).dtype<int32_t>("int32").contiguous();
  if (perm.numel() != 0) Check{op, "perm", perm}.dim(0, size_k);
  Check{op, "out", out}.rank(2).dim(0, size_k / kTileK).dim(1, size_n * kTileK / pack);
  Check{op, "out", out}.dtype<int32_t>("int32").contiguous();
  check_perm(op, perm.data<int32_t>(), perm.numel(), size_k);
  const Source from{b_q_weight.data<uint32_t>(), perm.numel() != 0 ? perm.data<int32_t>() : nullptr,
                    size_n, static_cast<int>(num_bits)};
  uint32_t* to = out.data<uint32_t>();
  const int64_t across = size_n / kTileN, words = kTileK * kTileN / pack;
  parallel_for(size_k / kTileK * across, 16, [=](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int w = 0; w < words; ++w)
        to[t * words + w] = tile_word(from, t / across * kTileK, t % across * kTileN, w);
  });
}
FD_EXPORT(gptq_marlin_repack)

}  // namespace fd
