"""The one place that imports TVM-FFI."""

from __future__ import annotations

import os
from types import ModuleType


def tvm_ffi() -> ModuleType:
    """TVM-FFI, without the array framework it would import at once wherever one is installed.

    That import takes a second and serves old releases of the framework only: current ones bring their
    exchange functions themselves. Set the variable to 0 to have it back.
    """
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    import tvm_ffi

    return tvm_ffi
