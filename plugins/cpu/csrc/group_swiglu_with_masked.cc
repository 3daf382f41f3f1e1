#include <cstring>

#include "fd/checks/tokens.h"
#include "fd/ids.h"
#include "fd/math.h"
#include "fd/rowwise.h"

namespace fd {
namespace {
constexpr const char* kOp = "group_swiglu_with_masked";
}  // namespace

void group_swiglu_with_masked(Tensor x, Tensor token_nums_per_expert, Tensor out) {
  check_masked_halves(kOp, x, token_nums_per_expert, out);
  const int64_t experts = x.size(0), capacity = x.size(1), width = x.size(2) / 2;
  const Ids counts = ids_of(kOp, "token_nums_per_expert", token_nums_per_expert);
  check_range(kOp, "token_nums_per_expert", counts, 0, capacity + 1);
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
