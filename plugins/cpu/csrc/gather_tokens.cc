#include <limits>

#include "fd/checks/tokens.h"
#include "fd/ids.h"
#include "fd/parallel.h"
#include "fd/rowcopy.h"

namespace fd {

void gather_tokens(Tensor src, Tensor indices, Tensor out) {
  const ByteRows from = byte_rows("gather_tokens", "src", src);
  check_gather("gather_tokens", src, indices, out);
  const Ids wanted = ids_of("gather_tokens", "indices", indices);
  const ByteRows to = byte_rows("gather_tokens", "out", out);
  constexpr int64_t kAnyNegative = std::numeric_limits<int64_t>::min();
  check_range("gather_tokens", "indices", wanted, kAnyNegative, src.size(0));
  parallel_for(wanted.count, 1 + 65536 / (to.bytes + 1), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (wanted[i] < 0)
        to.zero(i);
      else
        to.copy_from(i, from, wanted[i]);
    }
  });
}

FD_EXPORT(gather_tokens)

}  // namespace fd
