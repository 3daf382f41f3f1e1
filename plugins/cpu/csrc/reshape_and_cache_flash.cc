#include "fd/check.h"
#include "fd/fp8.h"
#include "fd/parallel.h"
#include "fd/quantise.h"

namespace fd {
namespace {

const char* const kOp = "reshape_and_cache_flash";

// Keys or values on their way to their pool. Strides in elements.
struct Side {
  const char *from_name, *to_name;
  Tensor from, to;
  OptTensor scale;

  int64_t slots() const { return to.size(0) * to.size(1); }
  int64_t to_offset(int64_t slot, int64_t head) const {
    const int64_t size = to.size(1);
    return slot / size * to.stride(0) + slot % size * to.stride(1) + head * to.stride(2);
  }
  int64_t scale_offset(int64_t slot, int64_t head) const {
    const int64_t size = to.size(1);
    return slot / size * scale.stride(0) + slot % size * scale.stride(1) + head * scale.stride(2);
  }
};

// to[slot of t, h] = from[t, h] for the tokens that have a slot.
template <typename F>
void for_tokens(const Side& side, const int64_t* slots, F&& write) {
  const int64_t heads = side.from.size(1), dim = side.from.size(2);
  parallel_for(side.from.size(0), 1 + 16384 / (heads * dim + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t h = 0; h < heads && slots[t] >= 0; ++h)
        write(t * side.from.stride(0) + h * side.from.stride(1), slots[t], h);
  });
}

void copy_bits(const Side& side, const int64_t* slots) {
  const int64_t bytes = side.from.dtype().bits / 8, row = side.from.size(2) * bytes;
  const char* src = side.from.data<char>();
  char* dst = side.to.data<char>();
  for_tokens(side, slots, [&](int64_t from, int64_t slot, int64_t h) {
    std::memcpy(dst + side.to_offset(slot, h) * bytes, src + from * bytes, row);
  });
}

template <typename T>
void round_to(const Side& side, const int64_t* slots) {
  const int64_t dim = side.from.size(2);
  const float* src = side.from.data<float>();
  T* dst = side.to.data<T>();
  for_tokens(side, slots, [&](int64_t from, int64_t slot, int64_t h) {
    T* out = dst + side.to_offset(slot, h);
    int64_t d = 0;
    for (; d + kLanes <= dim; d += kLanes) store16(out + d, load16(src + from + d));
    store_tail(out + d, load_tail(src + from + d, static_cast<int>(dim - d)),
               static_cast<int>(dim - d));
  });
}

// Largest magnitude of n elements; NaN if one of them is.
template <typename T>
float magnitude(const T* x, int64_t n) {
  uint32_t most = 0;  // magnitudes order like their bit patterns, NaN above infinity
  for (int64_t d = 0; d < n; ++d) {
    const uint32_t bits = as_bits(to_float(x[d])) & 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return as_float(most);
}

template <typename T>
void quantize(const Side& side, const int64_t* slots) {
  const int64_t dim = side.from.size(2);
  const T* src = side.from.data<T>();
  uint8_t* dst = side.to.data<uint8_t>();
  float* scales = side.scale.data<float>();
  for_tokens(side, slots, [&](int64_t from, int64_t slot, int64_t h) {
    const float wanted = magnitude(src + from, dim) / 448.0f;
    const float scale = wanted < 1e-12f ? 1e-12f : wanted;
    scales[side.scale_offset(slot, h)] = scale;
    uint8_t* out = dst + side.to_offset(slot, h);
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int n = static_cast<int>(dim - d < kLanes ? dim - d : kLanes);
      store_codes(out + d, e4m3_codes(load_tail(src + from + d, n) / scale), n);
    }
  });
}

// dim int8 codes and the float32 scale of a head's row, side by side.
template <typename T>
void quantize_int8(const Side& side, const int64_t* slots) {
  const int64_t dim = side.from.size(2);
  const T* src = side.from.data<T>();
  int8_t* dst = side.to.data<int8_t>();
  for_tokens(side, slots, [&](int64_t from, int64_t slot, int64_t h) {
    const Scale scale(absmax(src + from, dim), 127.0f);
    int8_t* out = dst + side.to_offset(slot, h);
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int n = static_cast<int>(dim - d < kLanes ? dim - d : kLanes);
      const vi codes = codes16(load_tail(src + from + d, n), scale.of_floats, -127, 127);
      const vb narrow = __builtin_convertvector(codes, vb);
      std::memcpy(out + d, &narrow, n);
    }
    std::memcpy(out + dim, &scale.of_codes, sizeof(float));
  });
}

// The same with e4m3 codes.
template <typename T>
void quantize_float8(const Side& side, const int64_t* slots) {
  const int64_t dim = side.from.size(2);
  const T* src = side.from.data<T>();
  uint8_t* dst = side.to.data<uint8_t>();
  for_tokens(side, slots, [&](int64_t from, int64_t slot, int64_t h) {
    const Scale scale(absmax(src + from, dim), kE4m3Largest);
    uint8_t* out = dst + side.to_offset(slot, h);
    for (int64_t d = 0; d < dim; d += kLanes) {
      const int n = static_cast<int>(dim - d < kLanes ? dim - d : kLanes);
      const vf scaled = load_tail(src + from + d, n) * scale.of_floats;
      store_codes(out + d, scale.of_floats == 0.0f ? vu{} : e4m3_codes(scaled), n);
    }
    std::memcpy(out + dim, &scale.of_codes, sizeof(float));
  });
}

// What becomes of the rows: copies, codes with scales in tensors of their own, or behind the row.
enum class Mode { kCopy, kFp8, kInt8, kFloat8 };

bool scale_behind(Mode mode) { return mode == Mode::kInt8 || mode == Mode::kFloat8; }

Mode mode_of(std::string_view name) {
  if (name == "fp8_e4m3") return Mode::kFp8;
  if (name == "int8") return Mode::kInt8;
  if (name == "float8_e4m3fn") return Mode::kFloat8;
  if (name != "auto" && !name.empty())
    fail("ValueError", kOp, ".kv_cache_dtype: want \"auto\", \"fp8_e4m3\", \"int8\" or ",
         "\"float8_e4m3fn\", have \"", name, "\"");
  return Mode::kCopy;
}

void check_cache(const Side& side, const Tensor& key_cache, int64_t tail) {
  Check{kOp, side.to_name, side.to}.rank(4).inner_contiguous();
  Check{kOp, side.to_name, side.to}.same_shape(key_cache).same_dtype(key_cache);
  Check{kOp, side.to_name, side.to}.dim(2, side.from.size(1)).dim(3, side.from.size(2) + tail);
  if (side.from.size(2) % 8 != 0)
    fail("ValueError", kOp, ".", side.from_name,
         ": want a head dimension that is a multiple of 8, have ", side.from.size(2));
}

void check_side(const Side& side, const Tensor& key, const Tensor& key_cache, Mode mode) {
  Check{kOp, side.from_name, side.from}.rank(3).same_shape(key).same_dtype(key).inner_contiguous();
  check_cache(side, key_cache, scale_behind(mode) ? sizeof(float) : 0);
  const char* scale_name = side.from_name[0] == 'k' ? "k_scale" : "v_scale";
  const Check to{kOp, side.to_name, side.to};
  if (mode == Mode::kInt8) return void(to.dtype<int8_t>("int8"));
  if (mode == Mode::kFloat8) return void(to.dtype<e4m3>("float8_e4m3fn"));
  if (mode == Mode::kCopy) {
    const bool rounds = is<float>(side.from) && (is<bf16>(side.to) || is<f16>(side.to));
    if (!rounds) to.same_dtype(side.from);
    return;
  }
  to.dtype<uint8_t>("uint8");
  if (!side.scale)
    fail("ValueError", kOp, ".", scale_name, ": want a tensor with fp8_e4m3, have None");
  Check{kOp, scale_name, side.scale}.dtype<float>("float32").rank(3);
  for (int i = 0; i < 3; ++i) Check{kOp, scale_name, side.scale}.dim(i, side.to.size(i));
}

void check_slots(const Tensor& slot_mapping, int64_t tokens, int64_t slots) {
  Check{kOp, "slot_mapping", slot_mapping}
      .dtype<int64_t>("int64")
      .rank(1)
      .dim(0, tokens)
      .contiguous();
  const int64_t* slot = slot_mapping.data<int64_t>();
  for (int64_t t = 0; t < tokens; ++t)
    if (slot[t] >= slots)
      fail("ValueError", kOp, ".slot_mapping: token ", t, ": want a slot below ", slots, ", have ",
           slot[t]);
}

void write_side(const Side& side, const int64_t* slots, Mode mode) {
  dispatch_float(kOp, side.from_name, side.from, [&](auto tag) {
    if (mode == Mode::kFp8) return quantize<decltype(tag)>(side, slots);
    if (mode == Mode::kInt8) return quantize_int8<decltype(tag)>(side, slots);
    if (mode == Mode::kFloat8) return quantize_float8<decltype(tag)>(side, slots);
    if (side.from.dtype().bits == side.to.dtype().bits) return copy_bits(side, slots);
    if (is<bf16>(side.to)) return round_to<bf16>(side, slots);
    round_to<f16>(side, slots);
  });
}

}  // namespace

void reshape_and_cache_flash(Tensor key, Tensor value, Tensor key_cache, Tensor value_cache,
                             Tensor slot_mapping, OptTensor k_scale, OptTensor v_scale,
                             std::string_view kv_cache_dtype) {
  const Mode mode = mode_of(kv_cache_dtype);
  dispatch_float(kOp, "key", key, [](auto) {});
  const Side sides[2] = {{"key", "key_cache", key, key_cache, k_scale},
                         {"value", "value_cache", value, value_cache, v_scale}};
  for (const Side& side : sides) check_side(side, key, key_cache, mode);
  check_slots(slot_mapping, key.size(0), sides[0].slots());
  for (const Side& side : sides) write_side(side, slot_mapping.data<int64_t>(), mode);
}

FD_EXPORT(reshape_and_cache_flash)

}  // namespace fd
