#include "fd/embedded.h"

#include <cuda_runtime_api.h>

#include <cstdlib>
#include <map>
#include <mutex>

#include "fd/cuda.h"

namespace fd {
namespace {

constexpr int kFirstOfNvcc = 75;

// FD_CUDA_EMBEDDED=1: use embedded code on any device, to test the path without an old one.
bool embedded_on(int device) {
  static const bool forced = std::getenv("FD_CUDA_EMBEDDED") != nullptr;
  return forced || Launch{"embedded", device, nullptr}.sm() < kFirstOfNvcc;
}

const EmbeddedKernel* find(const void* host) {
  for (const EmbeddedKernel* k = kEmbedded; k != nullptr && k->host != nullptr; ++k)
    if (k->host == host) return k;
  return nullptr;
}

cudaLibrary_t library_of(const char* op, const EmbeddedCode* code) {
  static std::map<const EmbeddedCode*, cudaLibrary_t> loaded;
  cudaLibrary_t& library = loaded[code];
  if (library == nullptr)
    FD_CUDA_CHECK(
        op, cudaLibraryLoadData(&library, code->data, nullptr, nullptr, 0, nullptr, nullptr, 0));
  return library;
}

}  // namespace

const void* kernel_on(const char* op, int device, const void* host) {
  if (!embedded_on(device)) return host;
  static std::mutex lock;
  static std::map<const void*, cudaKernel_t> known;
  const std::lock_guard<std::mutex> hold(lock);
  cudaKernel_t& kernel = known[host];
  if (kernel != nullptr) return reinterpret_cast<const void*>(kernel);
  const EmbeddedKernel* entry = find(host);
  if (entry == nullptr)
    fail("RuntimeError", op, ": want a build with code for sm_70, have none for this kernel; ",
         "build fd-cuda with FD_CUDA_ARCHS=70");
  FD_CUDA_CHECK(op, cudaLibraryGetKernel(&kernel, library_of(op, entry->code), entry->name));
  return reinterpret_cast<const void*>(kernel);
}

}  // namespace fd
