// One Paddle operator for every op that changes tensors: Paddle sees which of its tensors are
// changed, the work is done by a function that fd_core.paddle.in_place gives as a pointer.
#include <vector>

#include "paddle/common/enforce.h"
#include "paddle/extension.h"

namespace {

// As fd_core.paddle.in_place.ForeignTensor.
struct ForeignTensor {
  void* data;
  const int64_t* shape;
  const int64_t* strides;
  int32_t ndim;
  int32_t on_host;
  int32_t device_index;
  int32_t code;  // of DLPack
  int32_t bits;
};

// 0, or not 0 with the reason written as text of at most `size` bytes.
using Call = int32_t (*)(int64_t call, const ForeignTensor* changed, const ForeignTensor* read,
                         char* reason, int64_t size);

struct Type {
  int32_t code, bits;
};

Type type_of(paddle::DataType type) {
  switch (type) {
    case paddle::DataType::FLOAT32:
      return {2, 32};
    case paddle::DataType::FLOAT64:
      return {2, 64};
    case paddle::DataType::FLOAT16:
      return {2, 16};
    case paddle::DataType::BFLOAT16:
      return {4, 16};
    case paddle::DataType::FLOAT8_E4M3FN:
      return {10, 8};
    case paddle::DataType::INT8:
      return {0, 8};
    case paddle::DataType::INT16:
      return {0, 16};
    case paddle::DataType::INT32:
      return {0, 32};
    case paddle::DataType::INT64:
      return {0, 64};
    case paddle::DataType::UINT8:
      return {1, 8};
    case paddle::DataType::BOOL:
      return {6, 8};
    default:
      PADDLE_THROW(common::errors::Unimplemented(
          "fd_core: an element type without a name in the catalogue"));
  }
}

struct Described {
  std::vector<std::vector<int64_t>> shapes, strides;
  std::vector<ForeignTensor> tensors;

  explicit Described(const std::vector<paddle::Tensor>& from) {
    shapes.reserve(from.size());
    strides.reserve(from.size());
    for (const paddle::Tensor& t : from) add(t);
  }

  void add(const paddle::Tensor& t) {
    shapes.push_back(t.shape());
    auto steps = t.strides();
    strides.emplace_back(steps.Get(), steps.Get() + steps.size());
    const Type type = type_of(t.dtype());
    tensors.push_back({const_cast<void*>(t.data()), shapes.back().data(), strides.back().data(),
                       static_cast<int32_t>(shapes.back().size()), t.is_cpu() ? 1 : 0,
                       static_cast<int32_t>(t.place().GetDeviceId()), type.code, type.bits});
  }
};

}  // namespace

void FdCoreInPlace(std::vector<paddle::Tensor>& changed, const std::vector<paddle::Tensor>& read,
                   int64_t function, int64_t call) {
  const Described first(changed), second(read);
  const auto run = reinterpret_cast<Call>(function);
  char reason[1024] = {0};
  if (run(call, first.tensors.data(), second.tensors.data(), reason, sizeof reason) != 0)
    // Not PD_THROW: what it throws ends the process when it comes out of a graph.
    PADDLE_THROW(
        common::errors::InvalidArgument("fd_core: an op was refused inside a graph: %s", reason));
}

PD_BUILD_OP(fd_core_in_place)
    .Inputs({paddle::Vec("Changed"), paddle::Vec("Read")})
    .Outputs({paddle::Vec("Out")})
    .Attrs({"function: int64_t", "call: int64_t"})
    .SetInplaceMap({{paddle::Vec("Changed"), paddle::Vec("Out")}})
    .SetKernelFn(PD_KERNEL(FdCoreInPlace));
