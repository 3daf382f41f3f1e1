// Exports over TVM-FFI's C ABI (tvm/ffi/c_api.h alone: it compiles in milliseconds).
//
//   void rms_norm(Tensor x, Tensor weight, double eps, Tensor out) { ... }
//   FD_EXPORT(rms_norm)
//
// Parameter types: Tensor, OptTensor (None allowed), double, int64_t, bool, std::string_view.
// FD_DEVICE_TYPE: the DLPack device type whose tensors the library takes; host memory unless
// defined.
#pragma once
#include <tvm/ffi/c_api.h>

#include <cstdint>
#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#ifndef FD_DEVICE_TYPE
#define FD_DEVICE_TYPE kDLCPU
#endif

namespace fd {

// An exception with the Python class it becomes (ValueError, TypeError, RuntimeError, ...).
struct Error : std::exception {
  std::string kind, message;
  Error(std::string k, std::string m) : kind(std::move(k)), message(std::move(m)) {}
  const char* what() const noexcept override { return message.c_str(); }
};

template <typename... Parts>
[[noreturn]] void fail(const char* kind, const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(kind, text.str());
}

// A borrowed DLPack view; strides in elements.
struct Tensor {
  const DLTensor* t = nullptr;

  int ndim() const { return t->ndim; }
  int64_t size(int i) const { return t->shape[i < 0 ? i + t->ndim : i]; }
  int64_t stride(int i) const {
    if (i < 0) i += t->ndim;
    if (t->strides != nullptr) return t->strides[i];
    int64_t step = 1;
    for (int d = t->ndim - 1; d > i; --d) step *= t->shape[d];
    return step;
  }
  int64_t numel() const {
    int64_t n = 1;
    for (int d = 0; d < t->ndim; ++d) n *= t->shape[d];
    return n;
  }
  DLDataType dtype() const { return t->dtype; }
  bool contiguous() const {
    int64_t step = 1;
    for (int d = t->ndim - 1; d >= 0; --d) {
      if (t->shape[d] != 1 && stride(d) != step) return numel() == 0;
      step *= t->shape[d];
    }
    return true;
  }
  template <typename T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(t->data) + t->byte_offset);
  }
};

struct OptTensor : Tensor {
  explicit operator bool() const { return t != nullptr; }
};

namespace detail {

inline const DLTensor* tensor_of(const TVMFFIAny& a) {
  if (a.type_index == kTVMFFITensor)  // { TVMFFIObject, DLTensor, ... }
    return reinterpret_cast<const DLTensor*>(reinterpret_cast<const char*>(a.v_obj) +
                                             sizeof(TVMFFIObject));
  if (a.type_index == kTVMFFIDLTensorPtr) return static_cast<const DLTensor*>(a.v_ptr);
  return nullptr;
}

template <typename T>
struct Arg;
template <>
struct Arg<Tensor> {
  static Tensor get(const char* op, int i, const TVMFFIAny& a) {
    const DLTensor* t = tensor_of(a);
    if (t == nullptr) fail("TypeError", op, ": argument ", i, ": want a tensor");
    if (t->device.device_type != FD_DEVICE_TYPE)
      fail("ValueError", op, ": argument ", i, ": want ",
           FD_DEVICE_TYPE == kDLCPU ? "host memory" : "device memory", " (DLPack device type ",
           static_cast<int>(FD_DEVICE_TYPE), "), have type ",
           static_cast<int>(t->device.device_type));
    return Tensor{t};
  }
};
template <>
struct Arg<OptTensor> {
  static OptTensor get(const char* op, int i, const TVMFFIAny& a) {
    OptTensor r;
    if (a.type_index != kTVMFFINone) r.t = Arg<Tensor>::get(op, i, a).t;
    return r;
  }
};
template <>
struct Arg<int64_t> {
  static int64_t get(const char* op, int i, const TVMFFIAny& a) {
    if (a.type_index != kTVMFFIInt && a.type_index != kTVMFFIBool)
      fail("TypeError", op, ": argument ", i, ": want an integer");
    return a.v_int64;
  }
};
template <>
struct Arg<bool> {
  static bool get(const char* op, int i, const TVMFFIAny& a) {
    return Arg<int64_t>::get(op, i, a) != 0;
  }
};
template <>
struct Arg<double> {
  static double get(const char* op, int i, const TVMFFIAny& a) {
    if (a.type_index == kTVMFFIFloat) return a.v_float64;
    return static_cast<double>(Arg<int64_t>::get(op, i, a));
  }
};
template <>
struct Arg<std::string_view> {
  static std::string_view get(const char* op, int i, const TVMFFIAny& a) {
    if (a.type_index == kTVMFFIRawStr) return a.v_c_str;
    if (a.type_index == kTVMFFISmallStr) return {a.v_bytes, a.small_str_len};
    if (a.type_index == kTVMFFIStr) {
      const auto* s = reinterpret_cast<const TVMFFIByteArray*>(
          reinterpret_cast<const char*>(a.v_obj) + sizeof(TVMFFIObject));
      return {s->data, s->size};
    }
    fail("TypeError", op, ": argument ", i, ": want a string");
  }
};

template <typename... Params, size_t... I>
void unpack(const char* op, void (*fn)(Params...), const TVMFFIAny* args,
            std::index_sequence<I...>) {
  fn(Arg<Params>::get(op, static_cast<int>(I), args[I])...);
}

template <typename... Params>
int call(const char* op, void (*fn)(Params...), const TVMFFIAny* args, int32_t n) noexcept {
  try {
    if (n != static_cast<int32_t>(sizeof...(Params)))
      fail("TypeError", op, ": want ", sizeof...(Params), " arguments, have ", n);
    unpack(op, fn, args, std::index_sequence_for<Params...>{});
    return 0;
  } catch (const Error& e) {
    TVMFFIErrorSetRaisedFromCStr(e.kind.c_str(), e.message.c_str());
  } catch (const std::exception& e) {
    TVMFFIErrorSetRaisedFromCStr("RuntimeError", e.what());
  }
  return -1;
}

}  // namespace detail
}  // namespace fd

#define FD_EXPORT(name)                                                   \
  extern "C" __attribute__((visibility("default"))) int __tvm_ffi_##name( \
      void*, const TVMFFIAny* args, int32_t num_args, TVMFFIAny*) {       \
    return ::fd::detail::call(#name, ::fd::name, args, num_args);         \
  }
