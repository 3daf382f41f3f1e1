// Host side of the linear layers: what they check alike, and the launch of skinny.cuh.
#pragma once
#include <atomic>

#include "fd/cuda.h"
#include "fd/skinny.cuh"
#include "fd/tensor_tiles.cuh"

namespace fd {

inline int kind_of(const Tensor& t) {
  return is<float>(t) ? kFloat32 : is<bf16>(t) ? kBfloat16 : kFloat16;
}

// Checks x [M, K], bias [`columns`] and out [M, any]; where the results go.
inline LinearSink linear_sink(const char* op, Tensor x, OptTensor bias, Tensor out,
                              int64_t columns) {
  Check{op, "x", x}.rank(2).inner_contiguous();
  Check{op, "out", out}.rank(2).dim(0, x.size(0)).inner_contiguous();
  dispatch_float(op, "x", x, [](auto) {});
  dispatch_float(op, "out", out, [](auto) {});
  LinearSink sink{out.data<void>(), nullptr, out.stride(0), kind_of(out), kFloat32};
  if (bias) {
    Check{op, "bias", bias}.rank(1).dim(0, columns).contiguous();
    dispatch_float(op, "bias", bias, [](auto) {});
    sink.bias = bias.data<void>(), sink.bias_kind = kind_of(bias);
  }
  return sink;
}
inline LinearSink linear_sink(const char* op, Tensor x, OptTensor bias, Tensor out) {
  Check{op, "out", out}.rank(2);
  return linear_sink(op, x, bias, out, out.size(1));
}

// Whether every row of a matrix of 16-bit elements can be read in units of 16 bytes.
inline bool in_units(const Tensor& t) {
  return t.size(1) % 8 == 0 && t.stride(0) % 8 == 0 && aligned16(t.data<void>());
}

inline bool half_width(const Tensor& t) { return is<bf16>(t) || is<f16>(t); }

// out = x W^T + bias over plain weights, by whatever serves best; arguments are checked
// (linear.cu).
// `fixed`: as in SkinnyInput.
void dense_linear(const Launch& on, Tensor x, Tensor weight, OptTensor bias, Tensor out,
                  bool fixed);

// Whether tensor cores can multiply these as they lie.
inline bool fits_tensor(const Launch& on, Tensor x, Tensor weight) {
  return x.size(1) > 0 && half_width(x) && kind_of(x) == kind_of(weight) && in_units(x) &&
         in_units(weight) && on.sm() >= 80;
}

inline unsigned blocks_of(int64_t n, int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}

// Up to these rows, weights are streamed past eight at a time; beyond, tiles use them better.
constexpr int64_t kStreamedRows = 64;
// Fewer products than these are not worth a library's call: our own kernels serve.
constexpr int64_t kLibraryProducts = int64_t{1} << 24;

// FD_CUDA_BATCH_INVARIANT=1: only kernels whose results do not depend on the number of rows.
inline bool batch_invariant() {
  static const bool on = [] {
    const char* text = std::getenv("FD_CUDA_BATCH_INVARIANT");
    return text != nullptr && *text != '\0' && *text != '0';
  }();
  return on;
}

// x [M, K] for skinny_launch.
template <typename T>
SkinnyInput<T> skinny_input(const Tensor& x, bool fixed) {
  return {x.data<T>(), x.stride(0), x.size(1), static_cast<int>(x.size(0)), 0, 0, fixed};
}

// Any number of rows on tensor cores, without a library. `fold`: how parts of K are added up.
template <typename T, typename Fold, typename Sink>
void tensor_launch(const Launch& on, const TensorTiles<T>& job, const Fold& fold,
                   const Sink& sink) {
  constexpr int kShared = kTensorStages * kTensorUnits * 16;
  allow_shared_once<linear_tensor_tiles<T, Fold, Sink>>(on, kShared);
  const dim3 grid(blocks_of(job.rows, kTensorRows), blocks_of(job.columns, kTensorColumns));
  run(on, linear_tensor_tiles<T, Fold, Sink>, grid, dim3(256), kShared, job, fold, sink);
}

// The bits of skinny_launch.
template <typename T, typename Sink>
void tensor_launch(const Launch& on, const TensorTiles<T>& job, const Sink& sink) {
  tensor_launch(on, job, PlainFold{skinny_slice(job.depth, kPlainWindow)}, sink);
}

// How blocks of skinny.cuh share the multiprocessors. Crowd: `per_sm` of a kernel; where fewer
// serve, no more are let in: started early, they would crowd on those multiprocessors that are free
// first. A chain of kernels of one block each, kinds in turn, has room for the next beside it: one
// Wide and one Narrow, but not two that are Wide; so each multiprocessor gets one block of every
// kernel.
enum class SkinnyRoom { kCrowd, kWide, kNarrow };

inline int64_t skinny_room(const DeviceFacts& limits, SkinnyRoom room, int per_sm) {
  if (room == SkinnyRoom::kWide) return std::min(limits.all_shared / 2, limits.block_shared);
  const int parts = room == SkinnyRoom::kNarrow ? 3 : per_sm + 1;
  return std::min(limits.all_shared / parts, limits.block_shared);
}

// A multiprocessor that a block of `Kernel` finds empty keeps all its memory for shared use: with
// as little as this kernel needs, there would be no room for the next beside it. Once for each
// device.
template <auto Kernel>
void prefer_shared_once(const Launch& on) {
  static std::atomic<bool> done[kMaxDevices];
  if (done[on.device].load(std::memory_order_relaxed)) return;
  const void* target = kernel_on(on.op, on.device, reinterpret_cast<const void*>(Kernel));
  FD_CUDA_CHECK(on.op, cudaFuncSetAttribute(target, cudaFuncAttributePreferredSharedMemoryCarveout,
                                            cudaSharedmemCarveoutMaxShared));
  done[on.device].store(true, std::memory_order_relaxed);
}

// y = x W^T for few rows; `S` windows of weights under way in each warp, at most `per_sm` blocks on
// a multiprocessor.
template <typename Weights, int Teams, typename T, int S, typename Start, typename Sink>
void skinny_launch_staged(const Launch& on, const Weights& weights, const SkinnyInput<T>& input,
                          const Start& start, const Sink& sink, int per_sm, SkinnyRoom room) {
  const DeviceFacts& limits = on.facts();
  const int tiles = static_cast<int>(blocks_of(weights.columns / Sink::kParts, kSkinnyTile));
  const int all =
      std::min(tiles, std::max(per_sm * limits.processors / input.groups, 1)) * input.groups;
  const int each = (all + limits.processors - 1) / limits.processors;
  const int64_t least = skinny_shared<Weights, Teams>(start, S, input.depth, input.each);
  const auto shared = static_cast<size_t>(std::max(least, skinny_room(limits, room, each)));
  constexpr auto kernel = linear_skinny<Weights, Teams, T, S, Start, Sink>;
  allow_shared_once<kernel>(on, limits.block_shared);
  if (room != SkinnyRoom::kCrowd) prefer_shared_once<kernel>(on);
  run_overlapped(on, kernel, dim3(static_cast<unsigned>(all)), dim3(32 * kSkinnyWarps * Teams),
                 shared, weights, input, tiles, start, sink);
}

constexpr int kSharedOfSystem = 1024;  // bytes of every block

// Blocks with rings of `stages` windows that fit on a multiprocessor.
template <typename Weights, int Teams, typename Start>
int skinny_fitting(const DeviceFacts& limits, const Start& start, int stages, int64_t depth,
                   int each) {
  const int64_t bytes = skinny_shared<Weights, Teams>(start, stages, depth, each);
  if (bytes > limits.block_shared) return 0;
  return static_cast<int>(limits.all_shared / (bytes + kSharedOfSystem));
}

// Shares rows out among blocks so that a share of x fits beside a flat ring; false where one row
// does not.
template <typename Weights, int Teams, typename T, typename Start>
bool skinny_share(const DeviceFacts& limits, const Start& start, SkinnyInput<T>* input) {
  constexpr int kFlat = Weights::kFlat;
  int most = std::min(input->rows, kSkinnyRows);
  while (most > 0 && !skinny_fitting<Weights, Teams>(limits, start, kFlat, input->depth, most))
    --most;
  if (most == 0) return false;
  input->groups = (input->rows + most - 1) / most;
  input->each = (input->rows + input->groups - 1) / input->groups;
  return true;
}

// As many blocks on a multiprocessor as Weights asks for, with rings as deep as fit. False, and
// nothing launched, where a row of x is too long.
template <int Teams = 1, typename Weights, typename T, typename Sink,
          typename Start = PlainStart<T>>
bool skinny_launch(const Launch& on, const Weights& weights, SkinnyInput<T> input, const Sink& sink,
                   const Start& start = {}, SkinnyRoom room = SkinnyRoom::kCrowd) {
  constexpr int kDeep = Weights::kDeep, kFlat = Weights::kFlat, kBlocks = Weights::kBlocks / Teams;
  const DeviceFacts& limits = on.facts();
  if (!skinny_share<Weights, Teams>(limits, start, &input)) return false;
  const auto fitting = [&](int stages) {
    return skinny_fitting<Weights, Teams>(limits, start, stages, input.depth, input.each);
  };
  // A ring so deep that no neighbour has room is worth it only where that has none anyway.
  const auto neighbourly = [&](int stages) {
    return skinny_shared<Weights, Teams>(start, stages, input.depth, input.each) <=
           limits.all_shared / 2 - 2 * kSharedOfSystem;
  };
  const bool deep = room == SkinnyRoom::kCrowd || neighbourly(kDeep) || !neighbourly(kFlat);
  if (fitting(kDeep) >= kBlocks && deep) {
    skinny_launch_staged<Weights, Teams, T, kDeep>(on, weights, input, start, sink, kBlocks, room);
    return true;
  }
  skinny_launch_staged<Weights, Teams, T, kFlat>(on, weights, input, start, sink,
                                                 std::min(fitting(kFlat), kBlocks), room);
  return true;
}

}  // namespace fd
