// Kernels compiled by another compiler than nvcc, carried as data (nvrtc_build.py writes the
// tables).
//
// nvcc 13 makes no code for sm_70. There, the host function of a kernel stands for an entry of this
// table, which is loaded on first use; everywhere else it is launched as it is.
#pragma once
#include <cstddef>

namespace fd {

struct EmbeddedCode {
  const unsigned char* data;
  size_t size;
};
// `host`: what <<<>>> would launch; `name`: the mangled name, the same in `code`.
struct EmbeddedKernel {
  const void* host;
  const char* name;
  const EmbeddedCode* code;
};
// Both end with a null entry. Builds without embedded code have neither.
extern const EmbeddedKernel kEmbedded[] __attribute__((weak, visibility("hidden")));

// What to launch for `host` on `device` (current): `host` itself, or the embedded kernel's handle.
// fd::Error if this build has no code for the device.
const void* kernel_on(const char* op, int device, const void* host);

}  // namespace fd
