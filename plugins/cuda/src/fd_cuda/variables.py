"""This plug-in's environment variables. The build copies them into the manifest; imports nothing."""

from __future__ import annotations

from typing import Any

VARIABLES: tuple[dict[str, Any], ...] = (
    {
        "name": "FD_CUDA_LIBRARY",
        "doc": "Kernel libraries to load instead of the installed one, separated by colons (for "
        "developers of kernels; dev_build.py writes them).",
    },
    {
        "name": "FD_CUDA_BLOCKING",
        "kind": "switch",
        "doc": "Wait after every kernel, so that a failure names the op that caused it. Slow.",
    },
    {
        "name": "FD_CUDA_BATCH_INVARIANT",
        "kind": "switch",
        "doc": "Linear layers without cuBLASLt, whose sums depend on the number of rows: a token's results "
        "are then the same bits in any batch. Long prompts take up to three times as long. A sequence "
        "that is computed anew after preemption keeps its tokens, not its last bits: attention over a "
        "prompt sums in another order than decoding.",
    },
)
