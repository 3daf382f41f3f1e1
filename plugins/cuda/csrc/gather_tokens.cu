#include "fd/ids.cuh"
#include "fd/rowmove.cuh"

namespace fd {

// An index beyond the last row writes nothing.
struct GatherTokens {
  ByteRows from, to;
  Ids indices;

  __device__ RowMove operator()(int64_t i) const {
    const int64_t at = indices[i];
    if (at >= from.count) return kStay;
    return {to.row(i), at < 0 ? nullptr : from.row(at), 0};
  }
};

}  // namespace fd

#ifndef __CUDACC_RTC__
#include <limits>

#include "fd/checks/tokens.h"
#include "fd/ids.h"
#include "fd/rowmove.h"

namespace fd {

void gather_tokens(Tensor src, Tensor indices, Tensor out) {
  const char* op = "gather_tokens";
  const ByteRows from = byte_rows(op, "src", src);
  check_gather(op, src, indices, out);
  const Ids wanted = ids_of(op, "indices", indices);
  const ByteRows to = byte_rows(op, "out", out);
  same_device(op, src, {indices, out});
  const Launch on = launch_on(op, src);
  check_range(on, "indices", wanted, std::numeric_limits<int64_t>::min(), from.count);
  move_all(on, GatherTokens{from, to, wanted}, wanted.count, to.bytes, {from, to});
}
FD_EXPORT(gather_tokens)

}  // namespace fd
#endif
