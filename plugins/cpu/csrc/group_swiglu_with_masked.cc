#include <cstring>

#include "fd/ids.h"
#include "fd/math.h"
#include "fd/rowwise.h"

namespace fd {
namespace {
constexpr const char* kOp = "group_swiglu_with_masked";
}  // namespace

void group_swiglu_with_masked(Tensor x, Tensor token_nums_per_expert, Tensor out) {
  Check{kOp, "x", x}.rank(3).contiguous();
  const int64_t experts = x.size(0), capacity = x.size(1), width = x.size(2) / 2;
  if (x.size(2) % 2 != 0)
    fail("ValueError", kOp, ".x: want an even last dimension, have ", shape_text(x));
  const char* counts_name = "token_nums_per_expert";
  Check{kOp, counts_name, token_nums_per_expert}.rank(1).dim(0, experts);
  const Ids counts = ids_of(kOp, counts_name, token_nums_per_expert);
  check_range(kOp, counts_name, counts, 0, capacity + 1);
  Check{kOp, "out", out}.rank(3).dim(0, experts).dim(1, capacity).dim(2, width);
  Check{kOp, "out", out}.same_dtype(x).contiguous();
  dispatch_float(kOp, "x", x, [&](auto tag) {
    using T = decltype(tag);
    const T* px = x.data<T>();
    T* po = out.data<T>();
    parallel_for(experts * capacity, row_grain(2 * width), [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T* row = px + r * 2 * width;
        if (r % capacity < counts[r / capacity])
          zip_row(row, row + width, width, po + r * width,
                  [](vf gate, vf up) { return vsilu(gate) * up; });
        else
          std::memset(po + r * width, 0, width * sizeof(T));
      }
    });
  });
}

FD_EXPORT(group_swiglu_with_masked)

}  // namespace fd
