#include "fd/fp8.cuh"
#include "fd/ids.cuh"
#include "fd/kv_write.cuh"
#include "fd/overlap.cuh"
#include "fd/pack.cuh"

namespace fd {

// Keys (0) and values (1) on their way to their pools; blockIdx.y says which. Strides in elements.
struct ReshapeAndCache {
  const void* from[2];
  void* to[2];
  float* scale[2];
  int64_t token_stride[2], head_stride[2];
  CachePool pool[2], scale_pool[2];
  const int64_t* slots;
  int64_t tokens;
  int heads, dim;
};

// `parts` threads a head.
struct ReshapePlace {
  int64_t token;
  int head, part;
};
__device__ __forceinline__ ReshapePlace reshape_place(int heads, int parts) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t row = i / parts;
  return {row / heads, static_cast<int>(row % heads), static_cast<int>(i % parts)};
}

// N elements a thread: equal types keep their bits, others are rounded once.
template <typename T, typename C, int N>
__global__ void reshape_and_cache_flash_copy(ReshapeAndCache all) {
  let_next_start();
  wait_for_inputs();
  const int side = blockIdx.y;
  const auto [token, head, part] = reshape_place(all.heads, all.dim / N);
  if (token >= all.tokens) return;
  const int64_t slot = all.slots[token];
  const CachePool& pool = all.pool[side];
  if (!pool.has(slot)) return;
  const T* from = static_cast<const T*>(all.from[side]) + token * all.token_stride[side] +
                  head * all.head_stride[side] + part * N;
  C* to = static_cast<C*>(all.to[side]) + pool.offset(slot, head) + part * N;
  *reinterpret_cast<Vec<C, N>*>(to) = Converted<T, C, N>::of(from);
}

template <typename C>
constexpr float kLargestCode = 127.f;
template <>
constexpr float kLargestCode<e4m3> = kE4m3Largest;

// Codes of N floats, the nearest, ties to even.
template <typename C, int N>
__device__ __forceinline__ Vec<C, N> codes_of(const float (&x)[N]) {
  if constexpr (kLargestCode<C> == kE4m3Largest) {
    return e4m3_codes<N>(x);
  } else {
    Vec<C, N> codes;
#pragma unroll
    for (int i = 0; i < N; ++i)
      codes[i] = static_cast<C>(min(max(__float2int_rn(x[i]), -127), 127));
    return codes;
  }
}

// How a row is scaled and encoded, from the bits of its largest magnitude (NaN above infinity).
struct E4m3Row {
  float scale;

  __device__ __forceinline__ explicit E4m3Row(uint32_t most) {
    const float wanted = __fdiv_rn(__uint_as_float(most), kE4m3Largest);
    scale = wanted < 1e-12f ? 1e-12f : wanted;
  }
  template <int N>
  __device__ __forceinline__ void encode(const float (&x)[N], uint8_t* to) const {
    float scaled[N];
#pragma unroll
    for (int i = 0; i < N; ++i) scaled[i] = __fdiv_rn(x[i], scale);
    *reinterpret_cast<Vec<e4m3, N>*>(to) = e4m3_codes<N>(scaled);
  }
};

// Rows with their scale behind them, of codes up to C's largest. Below 1e-30 all counts as zero; a
// NaN or an infinity makes the scale NaN and the codes 0.
template <typename C>
struct CodeRow {
  static constexpr float kLargest = kLargestCode<C>;
  float scale, inverse;

  __device__ __forceinline__ explicit CodeRow(uint32_t bits) {
    const float most = __uint_as_float(bits);
    const bool finite = bits < 0x7f800000u, usable = finite && most > 1e-30f;
    inverse = usable ? __fdiv_rn(kLargest, most) : 0.f;
    scale = usable ? __fdiv_rn(most, kLargest) : finite ? 0.f : __uint_as_float(0x7fc00000u);
  }
  template <int N>
  __device__ __forceinline__ void encode(const float (&x)[N], uint8_t* to) const {
    float scaled[N];
#pragma unroll
    for (int i = 0; i < N; ++i) scaled[i] = inverse == 0.f ? 0.f : __fmul_rn(x[i], inverse);
    *reinterpret_cast<Vec<C, N>*>(to) = codes_of<C, N>(scaled);
  }
};

// A row's scale: in a tensor of its own or, without one, in the four bytes behind its codes.
__device__ __forceinline__ void reshape_put_scale(const ReshapeAndCache& all, int side,
                                                  int64_t slot, int head, uint8_t* codes,
                                                  float scale) {
  if (all.scale[side] != nullptr) {
    all.scale[side][all.scale_pool[side].offset(slot, head)] = scale;
    return;
  }
  for (int b = 0; b < 4; ++b)
    codes[all.dim + b] = static_cast<uint8_t>(__float_as_uint(scale) >> (8 * b));
}

// A head over `lanes` lanes, N elements at a time: its largest magnitude gives the scale.
template <typename T, typename Row, int N>
__global__ void reshape_and_cache_flash_quantize(ReshapeAndCache all, int lanes) {
  let_next_start();
  wait_for_inputs();
  const int side = blockIdx.y;
  const auto [token, head, lane] = reshape_place(all.heads, lanes);
  const CachePool& pool = all.pool[side];
  const int64_t slot = token < all.tokens ? all.slots[token] : -1;
  const bool written = pool.has(slot);  // the same for all lanes of a head
  const T* from = static_cast<const T*>(all.from[side]) + token * all.token_stride[side] +
                  head * all.head_stride[side];
  uint32_t most = 0;
  for (int d = lane * N; written && d < all.dim; d += lanes * N) {
    const Floats<N, T> x(from + d);
#pragma unroll
    for (int i = 0; i < N; ++i) most = max(most, magnitude_bits(x[i]));
  }
  const Row row(group_max(most, lanes));
  if (!written) return;
  uint8_t* to = static_cast<uint8_t*>(all.to[side]) + pool.offset(slot, head);
  if (lane == 0) reshape_put_scale(all, side, slot, head, to, row.scale);
  for (int d = lane * N; d < all.dim; d += lanes * N)
    row.template encode<N>(Floats<N, T>(from + d).at, to + d);
}

}  // namespace fd

#ifndef __CUDACC_RTC__
#include "fd/fp8.h"
#include "fd/kv_write.h"
#include "fd/norm.h"

namespace fd {

// One of the two as the caller gave it.
struct ReshapeSide {
  const char *from_name, *to_name, *scale_name;
  Tensor from, to;
  OptTensor scale;

  // Whether every head starts at a multiple of `bytes` on both sides.
  bool aligned(int64_t bytes) const {
    const auto fits = [&](const Tensor& t, int dims) {
      const int64_t item = t.dtype().bits / 8, want = std::min<int64_t>(bytes * item / width(), 16);
      uintptr_t bits = reinterpret_cast<uintptr_t>(t.data<char>());
      for (int d = 0; d < dims; ++d) bits |= static_cast<uintptr_t>(t.stride(d) * item);
      return bits % want == 0;
    };
    return fits(from, 2) && fits(to, 3);
  }
  int64_t width() const { return from.dtype().bits / 8; }
};

inline void reshape_check_scale(const ReshapeSide& side) {
  const char* op = "reshape_and_cache_flash";
  Check{op, side.to_name, side.to}.dtype<uint8_t>("uint8");
  if (!side.scale)
    fail("ValueError", op, ".", side.scale_name, ": want a tensor with fp8_e4m3, have None");
  Check{op, side.scale_name, side.scale}.dtype<float>("float32").rank(3);
  for (int i = 0; i < 3; ++i) Check{op, side.scale_name, side.scale}.dim(i, side.to.size(i));
}

enum class CacheMode { kAuto, kFp8, kInt8, kE4m3 };

// Whether a row's scale lies behind its codes.
inline bool reshape_rows(CacheMode mode) {
  return mode == CacheMode::kInt8 || mode == CacheMode::kE4m3;
}

inline CacheMode reshape_mode(std::string_view name) {
  if (name == "fp8_e4m3") return CacheMode::kFp8;
  if (name == "int8") return CacheMode::kInt8;
  if (name == "float8_e4m3fn") return CacheMode::kE4m3;
  if (name != "auto" && !name.empty())
    fail("ValueError",
         "reshape_and_cache_flash.kv_cache_dtype: want \"auto\", \"fp8_e4m3\", \"int8\" or ",
         "\"float8_e4m3fn\", have \"", name, "\"");
  return CacheMode::kAuto;
}

inline void reshape_check_side(const ReshapeSide& side, const Tensor& key, const Tensor& key_cache,
                               CacheMode mode) {
  const char* op = "reshape_and_cache_flash";
  const Check from{op, side.from_name, side.from}, to{op, side.to_name, side.to};
  from.rank(3).same_shape(key).same_dtype(key).inner_contiguous();
  to.rank(4).inner_contiguous().same_shape(key_cache).same_dtype(key_cache);
  const int64_t row = side.from.size(2) + (reshape_rows(mode) ? sizeof(float) : 0);
  to.dim(2, side.from.size(1)).dim(3, row);
  if (side.from.size(2) % 8 != 0)
    fail("ValueError", op, ".", side.from_name,
         ": want a head dimension that is a multiple of 8, have ", side.from.size(2));
  const bool rounds = is<float>(side.from) && (is<bf16>(side.to) || is<f16>(side.to));
  if (mode == CacheMode::kFp8)
    reshape_check_scale(side);
  else if (mode == CacheMode::kInt8)
    to.dtype<int8_t>("int8");
  else if (mode == CacheMode::kE4m3)
    to.dtype<e4m3>("float8_e4m3fn");
  else if (!rounds)
    to.same_dtype(side.from);
}

inline ReshapeAndCache reshape_and_cache(const ReshapeSide (&sides)[2], const Ids& slots) {
  ReshapeAndCache all{};
  for (int i = 0; i < 2; ++i) {
    const ReshapeSide& side = sides[i];
    all.from[i] = side.from.data<void>(), all.to[i] = side.to.data<void>();
    all.token_stride[i] = side.from.stride(0), all.head_stride[i] = side.from.stride(1);
    all.pool[i] = cache_pool(side.to);
    if (!side.scale) continue;
    all.scale[i] = side.scale.data<float>();
    all.scale_pool[i] = cache_pool(side.scale);
  }
  all.slots = slots.wide, all.tokens = slots.count;
  all.heads = static_cast<int>(sides[0].from.size(1)),
  all.dim = static_cast<int>(sides[0].from.size(2));
  return all;
}

template <typename... Extra>
void reshape_run(const Launch& on, void (*kernel)(ReshapeAndCache, Extra...),
                 const ReshapeAndCache& all, int parts, Extra... extra) {
  const int64_t items = all.tokens * all.heads * parts;
  run_overlapped(on, kernel, dim3((items + 127) / 128, 2), dim3(128), 0, all, extra...);
}

template <typename T, typename C>
void reshape_copy(const Launch& on, const ReshapeAndCache& all, bool packs) {
  constexpr int N = kPack<T>;
  if (packs)
    reshape_run(on, reshape_and_cache_flash_copy<T, C, N>, all, all.dim / N);
  else
    reshape_run(on, reshape_and_cache_flash_copy<T, C, 1>, all, all.dim);
}

template <typename T, typename Row, int N>
void reshape_quantize_by(const Launch& on, const ReshapeAndCache& all) {
  const int lanes = std::min(pow2_lanes(all.dim / N), kWarp);
  reshape_run(on, reshape_and_cache_flash_quantize<T, Row, N>, all, lanes, lanes);
}

// Rows with a scale are 4 bytes longer than their codes: four codes are aligned where eight are
// not.
template <typename T>
void reshape_quantize(const Launch& on, const ReshapeSide (&sides)[2], const ReshapeAndCache& all,
                      CacheMode mode) {
  const auto aligned = [&](int64_t bytes) {
    return sides[0].aligned(bytes) && sides[1].aligned(bytes);
  };
  if (mode == CacheMode::kFp8 && aligned(16))
    return reshape_quantize_by<T, E4m3Row, kPack<T>>(on, all);
  if (mode == CacheMode::kFp8) return reshape_quantize_by<T, E4m3Row, 1>(on, all);
  const auto rows = [&](auto code) {
    using Row = CodeRow<decltype(code)>;
    if (aligned(4 * sizeof(T))) return reshape_quantize_by<T, Row, 4>(on, all);
    reshape_quantize_by<T, Row, 1>(on, all);
  };
  if (mode == CacheMode::kInt8) return rows(int8_t{});
  rows(e4m3{});
}

inline void reshape_write(const Launch& on, const ReshapeSide (&sides)[2], const Ids& slots,
                          CacheMode mode) {
  ReshapeAndCache all = reshape_and_cache(sides, slots);
  if (mode != CacheMode::kFp8) all.scale[0] = all.scale[1] = nullptr;
  const bool packs = sides[0].aligned(16) && sides[1].aligned(16);
  dispatch_float(on.op, "key", sides[0].from, [&](auto tag) {
    using T = decltype(tag);
    if (mode != CacheMode::kAuto) return reshape_quantize<T>(on, sides, all, mode);
    if (sides[0].to.dtype().bits == sides[0].from.dtype().bits)
      return reshape_copy<T, T>(on, all, packs);
    if constexpr (std::is_same_v<T, float>) {
      if (is<bf16>(sides[0].to)) return reshape_copy<float, bf16>(on, all, packs);
      reshape_copy<float, f16>(on, all, packs);
    }
  });
}

void reshape_and_cache_flash(Tensor key, Tensor value, Tensor key_cache, Tensor value_cache,
                             Tensor slot_mapping, OptTensor k_scale, OptTensor v_scale,
                             std::string_view kv_cache_dtype) {
  const char* op = "reshape_and_cache_flash";
  const CacheMode mode = reshape_mode(kv_cache_dtype);
  dispatch_float(op, "key", key, [](auto) {});
  const ReshapeSide sides[2] = {{"key", "key_cache", "k_scale", key, key_cache, k_scale},
                                {"value", "value_cache", "v_scale", value, value_cache, v_scale}};
  for (const ReshapeSide& side : sides) reshape_check_side(side, key, key_cache, mode);
  const Ids slots = slots_of(op, slot_mapping, key.size(0));
  same_device(op, key, {value, key_cache, value_cache, slot_mapping, k_scale, v_scale});
  const Launch on = launch_on(op, key);
  if (mode == CacheMode::kFp8 && on.sm() < 80)
    fail("RuntimeError", op, ".kv_cache_dtype: want sm_80 or newer for fp8_e4m3, have sm_", on.sm(),
         "; use \"auto\"");
  check_slots(on, slots, key_cache.size(0) * key_cache.size(1));
  reshape_write(on, sides, slots, mode);
}
FD_EXPORT(reshape_and_cache_flash)

}  // namespace fd
#endif
