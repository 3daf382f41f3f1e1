#include <algorithm>
#include <vector>

#include "fd/ragged.h"
#include "fd/vocab_row.h"

namespace fd {
namespace {

struct Kept {
  int64_t id;
  uint32_t bits;  // the logit as float32: every storage type survives the trip
};

template <typename T>
void keep_only(T* x, int64_t vocab, const int64_t* ids, int64_t count) {
  std::vector<Kept> kept;
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] >= 0 && ids[i] < vocab) kept.push_back({ids[i], as_bits(to_float(x[ids[i]]))});
  if (kept.empty()) return;
  std::fill(x, x + vocab, from_float<T>(-kInf));
  for (const Kept& k : kept) x[k.id] = from_float<T>(as_float(k.bits));
}

}  // namespace

void apply_allowed_tokens(Tensor logits, Tensor offsets, Tensor ids) {
  const char* op = "apply_allowed_tokens";
  check_lists(op, logits, offsets, ids);
  const int32_t* o = offsets.data<int32_t>();
  dispatch_float(op, "logits", logits, [&](auto tag) {
    using T = decltype(tag);
    for (int64_t r = 0; r < logits.size(0); ++r)
      keep_only(logits.data<T>() + r * logits.stride(0), logits.size(1), ids.data<int64_t>() + o[r],
                o[r + 1] - o[r]);
  });
}

FD_EXPORT(apply_allowed_tokens)

}  // namespace fd
