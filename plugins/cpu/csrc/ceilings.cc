// What this machine can do at most, measured by the benchmarks beside the kernels: one call is one
// repetition, timed by the caller.
#include "fd/check.h"
#include "fd/gemm.h"
#include "fd/int_dot.h"
#include "fd/parallel.h"

#if defined(__AVX512F__)
#define FD_IN_REGISTER(v) "+v"(v)
#elif defined(__SSE2__)
#define FD_IN_REGISTER(v) "+x"(v)
#else
#define FD_IN_REGISTER(v) "+m"(v)
#endif

namespace fd {
namespace {

constexpr int kStreams = 4;       // read streams of a thread
constexpr int kChains = 12;       // independent multiply-adds: latency times ports of any core
constexpr int64_t kLine = 64;     // bytes
constexpr int64_t kBatch = 1024;  // multiply-adds of each chain in one unit of work

// Sum of all lines: four streams side by side, each prefetched 2 KiB ahead.
vu read_part(const char* from, int64_t bytes) {
  const int64_t length = bytes / kStreams / kLine * kLine;
  vu sum[kStreams] = {};
  for (int64_t i = 0; i < length; i += kLine)
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      __builtin_prefetch(from + s * length + i + 2048);
      sum[s] += gemm::load_as<vu>(from + s * length + i);
    }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

gemm::vw multiply_add(int64_t steps, float scale, float add) {
  gemm::vw chain[kChains], sum = {};
  for (int c = 0; c < kChains; ++c)
    chain[c] = gemm::vw{} + static_cast<float>(c);  // not to be merged
  for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) chain[c] = chain[c] * scale + (gemm::vw{} + add);
  for (int c = 0; c < kChains; ++c) sum += chain[c];
  return sum;
}

gemm::DotSum dot_products(int64_t steps, const uint8_t* weight, const gemm::Code* codes) {
  gemm::DotSum chain[kChains];
  const gemm::DotWeight w = gemm::Int8Dot::load(weight, 0);
  gemm::DotQuad x = gemm::dot_quad(codes);
#pragma GCC unroll 12
  for (int c = 0; c < kChains; ++c) chain[c] = gemm::dot_start<0>(0) + c;  // not to be merged
  for (int64_t i = 0; i < steps; ++i)
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) {
      chain[c] = gemm::dot(chain[c], w, x);
      asm volatile("" : FD_IN_REGISTER(x));  // every product anew
    }
#pragma GCC unroll 12
  for (int c = 1; c < kChains; ++c) chain[0] += chain[c];
  return chain[0];
}

}  // namespace

// Reads `buffer` (uint8) once with every thread; `out` [16] int32 receives a sum.
void ceiling_read(Tensor buffer, Tensor out) {
  Check{"ceiling_read", "buffer", buffer}.rank(1).dtype<uint8_t>("uint8").contiguous();
  Check{"ceiling_read", "out", out}.rank(1).dim(0, 16).dtype<int32_t>("int32").contiguous();
  const char* from = buffer.data<char>();
  const int64_t lines = buffer.numel() / kLine;
  int32_t* to = out.data<int32_t>();
  parallel_for(lines, 1, [=](int64_t begin, int64_t end) {
    const vu sum = read_part(from + begin * kLine, (end - begin) * kLine);
    if (begin == 0) std::memcpy(to, &sum, sizeof(sum));
    asm volatile("" : : "r"(&sum) : "memory");
  });
}
FD_EXPORT(ceiling_read)

// 2 * 12 * lanes * 1024 * `batches` float32 operations, `lanes` (the vector width) into out [1]
// int32.
void ceiling_fma(int64_t batches, Tensor out) {
  Check{"ceiling_fma", "out", out}.rank(1).dim(0, 1).dtype<int32_t>("int32");
  out.data<int32_t>()[0] = gemm::kWidth;
  parallel_for(batches, 1, [](int64_t begin, int64_t end) {
    const gemm::vw sum = multiply_add((end - begin) * kBatch, 0.999f, 1e-3f);
    asm volatile("" : : "r"(&sum) : "memory");
  });
}
FD_EXPORT(ceiling_fma)

// 2 * 12 * 4 * columns * 1024 * `batches` operations on int8 codes, `columns` (of one instruction)
// into out [1] int32.
void ceiling_dot(int64_t batches, Tensor out) {
  Check{"ceiling_dot", "out", out}.rank(1).dim(0, 1).dtype<int32_t>("int32");
  out.data<int32_t>()[0] = gemm::kDotColumns;
  parallel_for(batches, 1, [](int64_t begin, int64_t end) {
    const uint8_t weight[64] = {1, 2, 3};
    const gemm::Code codes[gemm::kQuad] = {1, 2, 3, 4};
    const gemm::DotSum sum = dot_products((end - begin) * kBatch, weight, codes);
    asm volatile("" : : "r"(&sum) : "memory");
  });
}
FD_EXPORT(ceiling_dot)

}  // namespace fd
