#include <algorithm>

#include "fd/checks/logits.h"
#include "fd/parallel.h"
#include "fd/vocab_row.h"

namespace fd {
namespace {

constexpr const char* kOp = "apply_token_bitmask";

// The word's bits below `limit`.
uint32_t valid_bits(uint32_t word, int64_t limit) {
  return limit >= 32 ? word : word & ((1u << limit) - 1u);
}

bool allows_any(const int32_t* mask, int64_t vocab) {
  for (int64_t i = 0; i < vocab; i += 32)
    if (valid_bits(static_cast<uint32_t>(mask[i / 32]), vocab - i) != 0) return true;
  return false;
}

template <typename T>
void mask_row(T* x, const int32_t* mask, int64_t vocab) {
  if (!allows_any(mask, vocab)) return;
  const T lowest = from_float<T>(-kInf);
  for (int64_t i = 0; i < vocab; i += 32) {
    const uint32_t word = static_cast<uint32_t>(mask[i / 32]);
    const int64_t end = std::min<int64_t>(32, vocab - i);
    if (word == 0) {
      std::fill(x + i, x + i + end, lowest);
    } else if (word != 0xffffffffu) {
      for (int64_t k = 0; k < end; ++k)
        if (((word >> k) & 1u) == 0) x[i + k] = lowest;
    }
  }
}

int64_t index_at(const OptTensor& indices, int64_t i) {
  if (!indices) return i;
  return is<int32_t>(indices) ? indices.data<int32_t>()[i] : indices.data<int64_t>()[i];
}

void check_rows(const OptTensor& indices, int64_t rows) {
  for (int64_t i = 0; indices && i < indices.numel(); ++i) {
    const int64_t r = index_at(indices, i);
    if (r < 0 || r >= rows)
      fail("ValueError", kOp, ".indices: want rows in [0, ", rows, "), have ", r);
  }
}

}  // namespace

void apply_token_bitmask(Tensor logits, Tensor bitmask, int64_t vocab_size, OptTensor indices) {
  const int64_t rows = check_bitmask(kOp, logits, bitmask, vocab_size, indices);
  check_rows(indices, std::min(logits.size(0), bitmask.size(0)));
  const int64_t ls = logits.stride(0), bs = bitmask.stride(0);
  dispatch_float(kOp, "logits", logits, [&](auto tag) {
    using T = decltype(tag);
    parallel_for(rows, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t r = index_at(indices, i);
        mask_row(logits.data<T>() + r * ls, bitmask.data<int32_t>() + r * bs, vocab_size);
      }
    });
  });
}

FD_EXPORT(apply_token_bitmask)

}  // namespace fd
