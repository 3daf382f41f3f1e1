// Matrix products by cuBLASLt, opened at run time: nothing is linked, and without it the callers
// use kernels of their own. The declarations below are the part of its stable C interface that is
// called.
#pragma once
#include <map>
#include <string>
#include <tuple>

#include "fd/cuda.h"

namespace fd::lt {

using Handle = struct HandleTag*;
using Desc = struct DescTag*;
using Layout = struct LayoutTag*;
using Preference = struct PreferenceTag*;

struct Algo {
  uint64_t data[8];
};
struct Heuristic {
  Algo algo;
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

// cudaDataType_t, cublasComputeType_t, cublasOperation_t and attribute numbers of cublasLt.h.
enum Type : int { kR32F = 0, kR16F = 2, kR8I = 3, kR32I = 10, kR16BF = 14, kR8F_E4M3 = 28 };
enum Compute : int { kCompute32F = 68, kCompute32I = 72 };
enum DescAttribute : int {
  kTransA = 3,
  kTransB = 4,
  kEpilogue = 7,
  kBiasPointer = 8,
  kScaleOfA = 17,
  kScaleOfB = 18,
  kBiasType = 26,
  kScaleModeOfA = 31,
  kScaleModeOfB = 32
};
enum PreferenceAttribute : int { kMaxWorkspace = 1, kReductions = 3, kMinAlignmentA = 5 };
constexpr int kTranspose = 1, kEpilogueBias = 4;
constexpr int kScaleVector = 3;  // one for each row of an operand; the default is one for all
constexpr uint32_t kWideReductions =
    3;  // parts of K meet in the type of the sums, never the output's

struct Api {
  int (*create)(Handle*);
  int (*desc_create)(Desc*, int compute, int scale_type);
  int (*desc_destroy)(Desc);
  int (*desc_set)(Desc, int attribute, const void*, size_t);
  int (*layout_create)(Layout*, int type, uint64_t rows, uint64_t columns, int64_t ld);
  int (*layout_destroy)(Layout);
  int (*preference_create)(Preference*);
  int (*preference_destroy)(Preference);
  int (*preference_set)(Preference, int attribute, const void*, size_t);
  int (*heuristic)(Handle, Desc, Layout, Layout, Layout, Layout, Preference, int, Heuristic*, int*);
  int (*matmul)(Handle, Desc, const void*, const void*, Layout, const void*, Layout, const void*,
                const void*, Layout, void*, Layout, const Algo*, void*, size_t, cudaStream_t);
};

// The library's functions, or null where it is not installed. Searched: what the process has
// loaded, the files that Python found (`search`), the system.
const Api* api();
void search(const std::string& files);

// D [M, N] = x [M, K] w [N, K]^T + bias; strides in elements, 0 in `bias`: none. Operands of float8
// may have scales in device memory, float32: one, or with `by_row` x_scales [M] and w_scales [N].
struct Product {
  int64_t rows, columns, depth;
  int64_t x_step, w_step, out_step;
  int in_type, out_type, compute, scale_type;
  const void *x, *w, *bias;
  void* out;
  const float *x_scales = nullptr, *w_scales = nullptr;
  bool by_row = false;
};

// Whether it was run: false without the library, or where it knows no algorithm.
bool multiply(const Launch& on, const Product& p);

}  // namespace fd::lt
