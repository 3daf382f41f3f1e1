// Argument checks with one message form: "op.argument: want ..., have ...".
// Needs the plug-in's own fd/types.h, which names the storage types `bf16` and `f16`.
#pragma once
#include <initializer_list>

#include "fd/abi.h"
#include "fd/types.h"

namespace fd {

template <typename T>
struct DTypeOf;
#define FD_DTYPE(type, c, b)                     \
  template <>                                    \
  struct DTypeOf<type> {                         \
    static constexpr uint8_t code = c, bits = b; \
  };
FD_DTYPE(float, kDLFloat, 32)
FD_DTYPE(bf16, kDLBfloat, 16)
FD_DTYPE(f16, kDLFloat, 16)
FD_DTYPE(int64_t, kDLInt, 64)
FD_DTYPE(int32_t, kDLInt, 32)
FD_DTYPE(int8_t, kDLInt, 8)
FD_DTYPE(uint8_t, kDLUInt, 8)
FD_DTYPE(bool, kDLBool, 8)
#undef FD_DTYPE

template <typename T>
bool is(const Tensor& t) {
  return t.dtype().code == DTypeOf<T>::code && t.dtype().bits == DTypeOf<T>::bits;
}

inline std::string shape_text(const Tensor& t) {
  std::ostringstream s;
  s << "[";
  for (int i = 0; i < t.ndim(); ++i) s << (i ? ", " : "") << t.size(i);
  s << "]";
  return s.str();
}

inline std::string dtype_text(const Tensor& t) {
  static const char* names[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  const DLDataType d = t.dtype();
  return (d.code < 7 ? names[d.code] : "code" + std::to_string(d.code)) + std::to_string(d.bits);
}

// One tensor under its names; every check returns *this.
struct Check {
  const char* op;
  const char* arg;
  Tensor t;

  const Check& rank(int n) const {
    if (t.ndim() != n)
      fail("ValueError", op, ".", arg, ": want rank ", n, ", have ", shape_text(t));
    return *this;
  }
  const Check& dim(int i, int64_t n) const {
    if (t.size(i) != n)
      fail("ValueError", op, ".", arg, ": want size ", n, " in dimension ", i, ", have ",
           shape_text(t));
    return *this;
  }
  const Check& numel(int64_t n) const {
    if (t.numel() != n)
      fail("ValueError", op, ".", arg, ": want ", n, " elements, have ", shape_text(t));
    return *this;
  }
  // A vector with one element per slot: [n], or [n, 1] as a column. Any other rank is refused.
  const Check& slots(int64_t n) const {
    if (slot_count() != n)
      fail("ValueError", op, ".", arg, ": want ", n, " elements, [", n, "] or [", n, ", 1], have ",
           shape_text(t));
    return *this;
  }
  int64_t slot_count() const {
    if (t.ndim() != 1 && (t.ndim() != 2 || t.size(1) != 1))
      fail("ValueError", op, ".", arg, ": want [n] or [n, 1], have ", shape_text(t));
    return t.size(0);
  }
  const Check& same_shape(const Tensor& other) const {
    rank(other.ndim());
    for (int i = 0; i < other.ndim(); ++i) dim(i, other.size(i));
    return *this;
  }
  const Check& same_dtype(const Tensor& o) const {
    if (t.dtype().code != o.dtype().code || t.dtype().bits != o.dtype().bits)
      fail("TypeError", op, ".", arg, ": want dtype ", dtype_text(o), ", have ", dtype_text(t));
    return *this;
  }
  template <typename T>
  const Check& dtype(const char* want) const {
    if (!is<T>(t)) fail("TypeError", op, ".", arg, ": want dtype ", want, ", have ", dtype_text(t));
    return *this;
  }
  const Check& contiguous() const {
    if (!t.contiguous()) fail("ValueError", op, ".", arg, ": want a contiguous tensor");
    return *this;
  }
  // Elements of the last dimension adjacent; other strides are free.
  const Check& inner_contiguous() const {
    if (t.ndim() > 0 && t.size(-1) > 1 && t.stride(-1) != 1 && t.numel() > 0)
      fail("ValueError", op, ".", arg, ": want stride 1 in the last dimension, have ",
           t.stride(-1));
    return *this;
  }
};

// Calls f(T{}) with T in {float, bf16, f16}; TypeError otherwise.
template <typename F>
void dispatch_float(const char* op, const char* arg, const Tensor& t, F&& f) {
  if (is<float>(t)) return f(float{});
  if (is<bf16>(t)) return f(bf16{});
  if (is<f16>(t)) return f(f16{});
  fail("TypeError", op, ".", arg, ": want float32, bfloat16 or float16, have ", dtype_text(t));
}

}  // namespace fd
