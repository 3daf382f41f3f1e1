// The build's facts as JSON, exported as `fd_stamp()` and found in the file after the marker.
#pragma once
#include <tvm/ffi/c_api.h>

#define FD_STAMP(json)                                                                 \
  extern "C" __attribute__((visibility("default"), used)) const char fd_stamp_text[] = \
      "FD_STAMP:" json;                                                                \
  extern "C" __attribute__((visibility("default"))) int __tvm_ffi_fd_stamp(            \
      void*, const TVMFFIAny*, int32_t, TVMFFIAny* result) {                           \
    const char* text = fd_stamp_text + (sizeof("FD_STAMP:") - 1);                      \
    const TVMFFIByteArray bytes{text, sizeof(fd_stamp_text) - sizeof("FD_STAMP:")};    \
    return TVMFFIStringFromByteArray(&bytes, result);                                  \
  }
