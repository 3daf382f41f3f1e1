#include "fd/ids.h"

namespace fd {

void text_image_index_out(Tensor token_type_ids, Tensor text_index, Tensor image_index) {
  const char* op = "text_image_index_out";
  const int64_t tokens = Check{op, "token_type_ids", token_type_ids}.slot_count();
  const int32_t* types = lens_of(op, "token_type_ids", token_type_ids, tokens);
  lens_of(op, "text_index", text_index, tokens);
  lens_of(op, "image_index", image_index, tokens);
  int32_t *text = text_index.data<int32_t>(), *image = image_index.data<int32_t>();
  int32_t texts = 0, images = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    if (types[t] == 0) text[t] = texts++;
    if (types[t] == 1) image[t] = images++;
  }
}

FD_EXPORT(text_image_index_out)

}  // namespace fd
