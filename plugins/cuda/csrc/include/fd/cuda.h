// What host code of every kernel needs: errors, the caller's stream, launches.
//
//   const Launch on = launch_on("rms_norm", x);            // sets the device, finds the stream
//   run(on, rms_norm_kernel<T>, grid, block, shared, args...);
#pragma once
#include <cuda_runtime_api.h>
#include <tvm/ffi/extra/c_env_api.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <type_traits>

#include "fd/check.h"
#include "fd/embedded.h"

namespace fd {

inline void cuda_check(cudaError_t status, const char* op, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // a refused launch must not fail the next call
  fail("RuntimeError", op, ": ", what, ": ", cudaGetErrorName(status), " (",
       cudaGetErrorString(status), ")");
}
// Every runtime call goes through this; the message names the op and the call.
#define FD_CUDA_CHECK(op, call) ::fd::cuda_check((call), (op), #call)

constexpr int kMaxDevices = 64;

// What never changes of a device. `sm`: compute capability as 10 * major + minor; `*_shared`: bytes
// of shared memory, of a block at most and of a multiprocessor.
struct DeviceFacts {
  int sm, processors, block_shared, all_shared;
};

// Where a call runs.
struct Launch {
  const char* op;
  int device;
  cudaStream_t stream;

  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    FD_CUDA_CHECK(op, cudaDeviceGetAttribute(&value, which, device));
    return value;
  }
  // Asked once for each device: a query costs as much as all checks of a call.
  const DeviceFacts& facts() const {
    static DeviceFacts all[kMaxDevices];
    static std::once_flag known[kMaxDevices];
    std::call_once(known[device], [&] {
      all[device] = {10 * attribute(cudaDevAttrComputeCapabilityMajor) +
                         attribute(cudaDevAttrComputeCapabilityMinor),
                     attribute(cudaDevAttrMultiProcessorCount),
                     attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                     attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
    });
    return all[device];
  }
  int sm() const { return facts().sm; }
  int processors() const { return facts().processors; }
};

// The device of `t` made current, with the stream that TVM-FFI's environment names for it: the
// engine's, or the guest framework's current one.
inline Launch launch_on(const char* op, const Tensor& t) {
  const int device = t.t->device.device_id;
  if (device < 0 || device >= kMaxDevices)
    fail("RuntimeError", op, ": want a device below ", kMaxDevices, ", have ", device);
  FD_CUDA_CHECK(op, cudaSetDevice(device));
  void* stream = TVMFFIEnvGetStream(kDLCUDA, device);
  return Launch{op, device, static_cast<cudaStream_t>(stream)};
}

// All tensors of a call live on the device of the first; absent ones are skipped.
inline void same_device(const char* op, const Tensor& first, std::initializer_list<Tensor> others) {
  for (const Tensor& t : others)
    if (t.t != nullptr && t.t->device.device_id != first.t->device.device_id)
      fail("ValueError", op, ": want all tensors on device ", first.t->device.device_id,
           ", have one on device ", t.t->device.device_id);
}

// FD_CUDA_BLOCKING=1: wait after every kernel, so that a failure names its op.
inline bool blocking() {
  static const bool on = [] {
    const char* text = std::getenv("FD_CUDA_BLOCKING");
    return text != nullptr && *text != '\0' && *text != '0';
  }();
  return on;
}

// Whether a graph is being captured on the caller's stream, where nobody may wait.
inline bool capturing(const Launch& on) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  FD_CUDA_CHECK(on.op, cudaStreamIsCapturing(on.stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

template <typename... Params, typename... Args>
void launch(const Launch& on, void (*kernel)(Params...), const cudaLaunchConfig_t& config,
            Args... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "one argument for each kernel parameter");
  static_assert((std::is_same_v<std::remove_cv_t<Params>, Args> && ...),
                "arguments are passed by address: their types must be the parameters' own");
  if (config.gridDim.x == 0 || config.gridDim.y == 0 || config.gridDim.z == 0) return;
  void* values[] = {const_cast<void*>(static_cast<const void*>(&args))...};
  const void* target = kernel_on(on.op, on.device, reinterpret_cast<const void*>(kernel));
  cuda_check(cudaLaunchKernelExC(&config, target, values), on.op, "launch");
  if (blocking() && !capturing(on)) cuda_check(cudaStreamSynchronize(on.stream), on.op, "kernel");
}

inline cudaLaunchConfig_t launch_config(const Launch& on, dim3 grid, dim3 block, size_t shared) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid, config.blockDim = block;
  config.dynamicSmemBytes = shared, config.stream = on.stream;
  return config;
}

// Checked launch; an empty grid launches nothing.
template <typename... Params, typename... Args>
void run(const Launch& on, void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared,
         Args... args) {
  launch(on, kernel, launch_config(on, grid, block, shared), args...);
}

// The same for kernels that call wait_for_inputs() (fd/overlap.cuh): from sm_90 on, small ones
// start while the kernel before them ends. Blocks of large ones would take the room it still needs:
// measured 1.34 -> 0.87 us a kernel for 16 blocks, 3.7 -> 5.6 us for 4096 (H100).
template <typename... Params, typename... Args>
void run_overlapped(const Launch& on, void (*kernel)(Params...), dim3 grid, dim3 block,
                    size_t shared, Args... args) {
  cudaLaunchConfig_t config = launch_config(on, grid, block, shared);
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  const bool small = int64_t{grid.x} * grid.y * grid.z <= 2 * on.processors();
  if (small && on.sm() >= 90) config.attrs = &overlap, config.numAttrs = 1;
  launch(on, kernel, config, args...);
}

// More than 48 KiB of dynamic shared memory has to be asked for, once per kernel and device.
template <typename... Params>
void allow_shared(const Launch& on, void (*kernel)(Params...), size_t bytes) {
  const void* target = kernel_on(on.op, on.device, reinterpret_cast<const void*>(kernel));
  FD_CUDA_CHECK(on.op, cudaFuncSetAttribute(target, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(bytes)));
}

// allow_shared for a kernel, once for each device and size that exceeds the last.
template <auto Kernel>
void allow_shared_once(const Launch& on, size_t bytes) {
  static std::atomic<size_t> allowed[kMaxDevices];
  if (allowed[on.device].load(std::memory_order_relaxed) >= bytes) return;
  allow_shared(on, Kernel, bytes);
  allowed[on.device].store(bytes, std::memory_order_relaxed);
}

inline bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace fd
