"""This plug-in's environment variables. The build copies them into the manifest; imports nothing."""

from __future__ import annotations

from typing import Any

VARIABLES: tuple[dict[str, Any], ...] = (
    {
        "name": "FD_CPU_THREADS",
        "kind": "integer",
        "minimum": 1,
        "doc": "Threads that kernels use; unset: the processors this process may run on.",
    },
    {
        "name": "FD_CPU_AFFINITY",
        "doc": "Processors to pin kernel threads to, such as 0-3,8; unset: the system places them.",
    },
    {
        "name": "FD_CPU_ISA",
        "doc": "Instruction set to use, by its name in `fd doctor`; unset: the best this machine has.",
    },
    {
        "name": "FD_CPU_LIBRARY",
        "kind": "path",
        "doc": "A kernel library to load instead of the installed ones (for developers of kernels).",
    },
)
