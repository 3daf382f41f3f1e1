#include "fd/overlap.cuh"
#include "fd/rowmove.cuh"

namespace fd {

struct TextImage {
  ByteRows mixed, side[2];  // 0 text, 1 image
  const int32_t *types, *index[2];

  // Whether a later token of the same kind goes to the same row; the answer is the block's.
  __device__ __forceinline__ bool overwritten(int64_t t) const {
    const int kind = types[t], at = index[kind][t];
    bool again = false;
    for (int64_t u = t + 1 + threadIdx.x; u < mixed.count; u += blockDim.x)
      again = again || (types[u] == kind && index[kind][u] == at);
    return __syncthreads_or(again) != 0;
  }
};

// A block a token. Tokens of other types stay, and those whose index leaves its buffer.
template <typename Word>
__global__ void text_image_gather_scatter_rows(TextImage all, bool scatter) {
  let_next_start();
  wait_for_inputs();
  const int64_t t = blockIdx.x;
  const int kind = all.types[t];
  if (kind != 0 && kind != 1) return;
  const ByteRows& side = all.side[kind];
  const int64_t at = all.index[kind][t];
  if (at < 0 || at >= side.count || (scatter && all.overwritten(t))) return;
  Word *a = reinterpret_cast<Word*>(all.mixed.row(t)), *b = reinterpret_cast<Word*>(side.row(at));
  const Word* from = scatter ? a : b;
  Word* to = scatter ? b : a;
  for (int64_t i = threadIdx.x; i < all.mixed.bytes / static_cast<int64_t>(sizeof(Word));
       i += blockDim.x)
    to[i] = from[i];
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/ids.h"
#include "fd/rowmove.h"

namespace fd {

inline ByteRows text_image_side(const char* arg, const Tensor& t, const Tensor& input) {
  const char* op = "text_image_gather_scatter";
  Check{op, arg, t}.rank(2).dim(1, input.size(1)).same_dtype(input);
  return byte_rows(op, arg, t);
}

inline void text_image_launch(const Launch& on, const TextImage& all, bool scatter) {
  const auto start = [&](auto kernel) {
    run_overlapped(on, kernel, dim3(all.mixed.count), dim3(256), 0, all, scatter);
  };
  switch (word_bytes({all.mixed, all.side[0], all.side[1]})) {
    case 16:
      return start(text_image_gather_scatter_rows<uint4>);
    case 4:
      return start(text_image_gather_scatter_rows<uint32_t>);
    default:
      return start(text_image_gather_scatter_rows<uint16_t>);
  }
}

void text_image_gather_scatter(Tensor input, Tensor text_input, Tensor image_input,
                               Tensor token_type_ids, Tensor text_index, Tensor image_index,
                               bool is_scatter) {
  const char* op = "text_image_gather_scatter";
  Check{op, "input", input}.rank(2);
  dispatch_float(op, "input", input, [](auto) {});
  const int64_t tokens = input.size(0);
  const TextImage all{byte_rows(op, "input", input),
                      {text_image_side("text_input", text_input, input),
                       text_image_side("image_input", image_input, input)},
                      lens_of(op, "token_type_ids", token_type_ids, tokens),
                      {lens_of(op, "text_index", text_index, tokens),
                       lens_of(op, "image_index", image_index, tokens)}};
  same_device(op, input, {text_input, image_input, token_type_ids, text_index, image_index});
  text_image_launch(launch_on(op, input), all, is_scatter);
}
FD_EXPORT(text_image_gather_scatter)

}  // namespace fd
#endif
