#include "fd/ids.h"
#include "fd/rowcopy.h"

namespace fd {
namespace {

constexpr const char* kOp = "text_image_gather_scatter";

// Indices of the tokens of one type lie in its buffer.
void check_side(const char* arg, const int32_t* types, const int32_t* index, int64_t tokens,
                int32_t type, int64_t rows) {
  for (int64_t t = 0; t < tokens; ++t)
    if (types[t] == type && (index[t] < 0 || index[t] >= rows))
      fail("ValueError", kOp, ".", arg, ": want indices in [0, ", rows, "), have ", index[t],
           " at position ", t);
}

ByteRows side(const char* arg, const Tensor& t, const Tensor& input) {
  Check{kOp, arg, t}.rank(2).dim(1, input.size(1)).same_dtype(input);
  return byte_rows(kOp, arg, t);
}

}  // namespace

void text_image_gather_scatter(Tensor input, Tensor text_input, Tensor image_input,
                               Tensor token_type_ids, Tensor text_index, Tensor image_index,
                               bool is_scatter) {
  Check{kOp, "input", input}.rank(2);
  dispatch_float(kOp, "input", input, [](auto) {});
  const ByteRows mixed = byte_rows(kOp, "input", input);
  const ByteRows text = side("text_input", text_input, input);
  const ByteRows image = side("image_input", image_input, input);
  const int64_t tokens = input.size(0);
  const int32_t* types = lens_of(kOp, "token_type_ids", token_type_ids, tokens);
  const int32_t* text_at = lens_of(kOp, "text_index", text_index, tokens);
  const int32_t* image_at = lens_of(kOp, "image_index", image_index, tokens);
  check_side("text_index", types, text_at, tokens, 0, text.count);
  check_side("image_index", types, image_at, tokens, 1, image.count);
  for (int64_t t = 0; t < tokens; ++t) {
    if (types[t] != 0 && types[t] != 1) continue;
    const ByteRows& part = types[t] == 0 ? text : image;
    const int64_t at = types[t] == 0 ? text_at[t] : image_at[t];
    if (is_scatter)
      part.copy_from(at, mixed, t);
    else
      mixed.copy_from(t, part, at);
  }
}

FD_EXPORT(text_image_gather_scatter)

}  // namespace fd
