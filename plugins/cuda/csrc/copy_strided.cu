// copy_strided(src, dst): equal shapes and element sizes, any strides, up to eight dimensions.
#include "fd/types.h"

namespace fd {

constexpr int kMaxDims = 8;

struct CopyStridedShape {
  int ndim;
  int64_t size[kMaxDims], from[kMaxDims], to[kMaxDims];  // strides in elements
};

template <typename Word>
__global__ void copy_strided_words(const Word* src, Word* dst, CopyStridedShape shape,
                                   int64_t total) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < total; i += step) {
    int64_t rest = i, a = 0, b = 0;
    for (int d = shape.ndim - 1; d >= 0; --d) {
      const int64_t at = rest % shape.size[d];
      rest /= shape.size[d];
      a += at * shape.from[d], b += at * shape.to[d];
    }
    dst[b] = src[a];
  }
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/cuda.h"

namespace fd {

inline CopyStridedShape copy_strided_shape(Tensor src, Tensor dst) {
  CopyStridedShape shape{src.ndim(), {}, {}, {}};
  for (int d = 0; d < src.ndim(); ++d)
    shape.size[d] = src.size(d), shape.from[d] = src.stride(d), shape.to[d] = dst.stride(d);
  return shape;
}

template <typename Word>
void copy_strided_launch(const Launch& on, Tensor src, Tensor dst) {
  const int64_t total = src.numel(), blocks = (total + 255) / 256;
  run(on, copy_strided_words<Word>, dim3(static_cast<unsigned>(std::min<int64_t>(blocks, 65535))),
      dim3(256), 0, static_cast<const Word*>(src.data<Word>()), dst.data<Word>(),
      copy_strided_shape(src, dst), total);
}

void copy_strided(Tensor src, Tensor dst) {
  const char* op = "copy_strided";
  Check{op, "dst", dst}.same_shape(src).same_dtype(src);
  if (src.ndim() > kMaxDims)
    fail("ValueError", op, ".src: want at most ", kMaxDims, " dimensions, have ", shape_text(src));
  same_device(op, src, {dst});
  const Launch on = launch_on(op, src);
  switch (src.dtype().bits) {
    case 8:
      return copy_strided_launch<uint8_t>(on, src, dst);
    case 16:
      return copy_strided_launch<uint16_t>(on, src, dst);
    case 32:
      return copy_strided_launch<uint32_t>(on, src, dst);
    case 64:
      return copy_strided_launch<uint64_t>(on, src, dst);
    default:
      fail("TypeError", op, ".src: want elements of 1, 2, 4 or 8 bytes, have ", dtype_text(src));
  }
}
FD_EXPORT(copy_strided)

}  // namespace fd
#endif
