#include <cstring>

#include "fd/checks/tokens.h"
#include "fd/ids.h"
#include "fd/rowwise.h"

namespace fd {
namespace {

template <typename W, typename T>
void copy_row(const W* from, int64_t n, T* to) {
  if (std::is_same_v<W, T>) {
    std::memcpy(to, from, n * sizeof(T));
    return;
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store16(to + i, load16(from + i));
  store_tail(to + i, load_tail(from + i, static_cast<int>(n - i)), static_cast<int>(n - i));
}

}  // namespace

void embedding(Tensor ids, Tensor weight, Tensor out) {
  check_embedding("embedding", ids, weight, out);
  const int64_t hidden = weight.size(1), ws = weight.stride(0), os = out.stride(0);
  const Ids wanted = ids_of("embedding", "ids", ids);
  dispatch_float("embedding", "weight", weight, [&](auto weight_tag) {
    dispatch_float("embedding", "out", out, [&](auto tag) {
      check_range("embedding", "ids", wanted, 0, weight.size(0));
      const auto* table = weight.data<decltype(weight_tag)>();
      auto* po = out.data<decltype(tag)>();
      parallel_for(wanted.count, row_grain(hidden), [=](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) copy_row(table + wanted[t] * ws, hidden, po + t * os);
      });
    });
  });
}

FD_EXPORT(embedding)

}  // namespace fd
