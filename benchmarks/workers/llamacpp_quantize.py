"""A float16 GGUF file in one of llama.cpp's formats, by llama.cpp.

python -m workers.llamacpp_quantize F16.gguf FORMAT OUT.gguf
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

import llama_cpp

#: llama.cpp's `ftype` by name.
FORMATS = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q4_k_m": 15}


def quantize(source: Path, name: str, out: Path) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FORMATS[name], len(os.sched_getaffinity(0))
    status = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    if status != 0:
        raise RuntimeError(f"llama_model_quantize returned {status}")


if __name__ == "__main__":
    quantize(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
