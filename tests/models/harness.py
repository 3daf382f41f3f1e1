"""The kit's harness, and the platforms that model tests run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from fd_core.host.freeze import freeze
from fd_core.host.reference import ReferencePlatform
from fd_core.layers.attention_backend import PagedAttention
from fd_core.ops.catalogue import catalogue
from fd_core.quantization.unquantized import Unquantized
from fd_core.testkit.harness import Harness, build

__all__ = ["PARTS", "Harness", "Parts", "build", "cpu_parts", "oracle_parts"]


@dataclass(frozen=True)
class Parts:
    """What a session would give: platform, device, ops, backends, methods."""

    name: str
    platform: Any
    device: Any
    ops: Any
    attention_backends: list[Any]
    quant_methods: dict[str, Any]


def oracle_parts() -> Parts:
    platform = ReferencePlatform()
    device = platform.open(0)
    ops = freeze(catalogue(), [], device, oracle_is_native=True)
    return Parts("oracle", platform, device, ops, [PagedAttention], {"none": Unquantized})


def cpu_parts() -> Parts:
    """The compiled CPU kernels, from an installation or from a developer's library."""
    library = pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")
    from fd_cpu.kernels import kernels
    from fd_cpu.platform import CPUPlatform
    from fd_cpu.quant import PackedLinear

    try:
        library.chosen()
    except RuntimeError as error:
        pytest.skip(f"fd-cpu has no library: {error}")
    platform = CPUPlatform()
    device = platform.open(0)
    ops = freeze(catalogue(), kernels(), device, policy="error")
    return Parts("fd-cpu", platform, device, ops, [PagedAttention], {"none": PackedLinear})


PARTS = {"oracle": oracle_parts, "fd-cpu": cpu_parts}
