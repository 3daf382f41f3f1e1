// Runs exported kernels of a library outside Python, for processors that only an emulator can run.
//
//   kernel_runner LIBRARY < calls > results
//
// A call: name, argument count, arguments; all integers little-endian. Argument: kind byte (0 none,
// 1 int64, 2 double, 3 string, 4 tensor). Tensor: code, bits (bytes), ndim (int32), shape, strides
// (int64 each), bytes (uint64), data. A result: status (int32), then the error's kind and message,
// or every tensor's bytes.
#include <dlfcn.h>
#include <tvm/ffi/c_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

namespace {

std::string error_kind, error_message;

void read_bytes(void* to, size_t n) {
  if (n != 0 && std::fread(to, 1, n, stdin) != n) std::exit(0);  // the caller has closed the pipe
}
template <typename T>
T read_value() {
  T value;
  read_bytes(&value, sizeof(value));
  return value;
}
std::string read_string() {
  std::string text(read_value<uint32_t>(), '\0');
  read_bytes(&text[0], text.size());
  return text;
}
void write_bytes(const void* from, size_t n) { std::fwrite(from, 1, n, stdout); }
void write_string(const std::string& text) {
  const auto n = static_cast<uint32_t>(text.size());
  write_bytes(&n, sizeof(n));
  write_bytes(text.data(), n);
}

struct Argument {
  TVMFFIAny any{};
  std::string text;
  DLTensor view{};
  std::vector<int64_t> sizes;
  std::vector<unsigned char> bytes;

  void read_tensor() {
    view.dtype.code = read_value<uint8_t>();
    view.dtype.bits = read_value<uint8_t>();
    view.dtype.lanes = 1;
    view.ndim = read_value<int32_t>();
    sizes.resize(static_cast<size_t>(view.ndim) * 2);
    read_bytes(sizes.data(), sizes.size() * sizeof(int64_t));
    bytes.resize(read_value<uint64_t>());
    read_bytes(bytes.data(), bytes.size());
    view.device = {kDLCPU, 0};
    view.shape = sizes.data();
    view.strides = sizes.data() + view.ndim;
    view.data = bytes.data();
    any.type_index = kTVMFFIDLTensorPtr;
    any.v_ptr = &view;
  }

  void read() {
    const auto kind = read_value<uint8_t>();
    any.type_index = kTVMFFINone;
    if (kind == 1) any.type_index = kTVMFFIInt, any.v_int64 = read_value<int64_t>();
    if (kind == 2) any.type_index = kTVMFFIFloat, any.v_float64 = read_value<double>();
    if (kind == 3) text = read_string(), any.type_index = kTVMFFIRawStr, any.v_c_str = text.c_str();
    if (kind == 4) read_tensor();
  }
};

using Kernel = int (*)(void*, const TVMFFIAny*, int32_t, TVMFFIAny*);

void serve(void* library) {
  const std::string name = read_string();
  const auto count = read_value<uint32_t>();
  std::vector<std::unique_ptr<Argument>> arguments;
  std::vector<TVMFFIAny> packed;
  for (uint32_t i = 0; i < count; ++i) {
    arguments.push_back(std::make_unique<Argument>());
    arguments.back()->read();
    packed.push_back(arguments.back()->any);
  }
  const auto kernel = reinterpret_cast<Kernel>(dlsym(library, ("__tvm_ffi_" + name).c_str()));
  TVMFFIAny result{};
  error_kind = "AttributeError", error_message = "no export is called " + name;
  const int32_t status =
      kernel == nullptr ? -1 : kernel(nullptr, packed.data(), static_cast<int32_t>(count), &result);
  write_bytes(&status, sizeof(status));
  if (status != 0) return write_string(error_kind), write_string(error_message);
  for (const auto& argument : arguments)
    write_bytes(argument->bytes.data(), argument->bytes.size());
}

}  // namespace

extern "C" {
void TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message) {
  error_kind = kind, error_message = message;
}
int TVMFFIStringFromByteArray(const TVMFFIByteArray*, TVMFFIAny*) { return 0; }
}

int main(int count, char** words) {
  void* library = count == 2 ? dlopen(words[1], RTLD_NOW | RTLD_LOCAL) : nullptr;
  if (library == nullptr) return std::fprintf(stderr, "cannot load: %s\n", dlerror()), 1;
  for (;;) {
    serve(library);
    std::fflush(stdout);
  }
}
