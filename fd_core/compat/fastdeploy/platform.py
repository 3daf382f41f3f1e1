"""The face that FastDeploy's users ask their platform object through, over a session of ours.

Predicates describe the open device, not how some framework was built. One style for all platforms: what is
not offered raises ValueError that lists what is.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import TYPE_CHECKING

from fd_core.api.device import HOST
from fd_core.api.verdict import Verdict
from fd_core.host.plugins import plugin_host
from fd_core.host.session import current_session

if TYPE_CHECKING:
    from fd_core.api.attention import AttentionBackend
    from fd_core.host.session import Session


class _Backend(Enum):
    """FastDeploy's names of attention backends."""

    NATIVE_ATTN = auto()
    APPEND_ATTN = auto()
    MLA_ATTN = auto()
    DSA_ATTN = auto()
    FLASH_ATTN = auto()
    BLOCK_ATTN = auto()
    PLAS_ATTN = auto()
    HPU_ATTN = auto()
    FLASH_MASK_ATTN = auto()
    TRITON_MLA_ATTN = auto()
    DECODE_UNIFIED_ATTN = auto()


#: Names that mean "attention over the paged cache, however this device does it best".
_PAGED = {"NATIVE_ATTN", "APPEND_ATTN", "FLASH_ATTN", "BLOCK_ATTN", "HPU_ATTN", "DECODE_UNIFIED_ATTN"}
#: FastDeploy's names of quantisation methods, where ours differ.
QUANT_NAMES = {"weight_only": "wint8", "block_wise_fp8": "fp8_block", "tensor_wise_fp8": "fp8"}


class Platform:
    """One open device as FastDeploy's platform object."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def device_name(self) -> str:
        return self._session.platform.device_type

    def __repr__(self) -> str:
        return f"<platform {self.device_name}: {self._session.device.name}>"

    def is_cpu(self) -> bool:
        return self._session.device.device.code == HOST.code

    def is_cuda(self) -> bool:
        return self.device_name == "cuda"

    def is_cuda_alike(self) -> bool:
        return self.device_name in ("cuda", "dcu")

    def is_xpu(self) -> bool:
        return self.device_name == "xpu"

    def available(self) -> bool:
        """Whether the platform's probe finds a device now; `why()` gives the reasons if not."""
        return self.why().ok

    def why(self) -> Verdict:
        facts = plugin_host().facts()
        found = next((fact for fact in facts if fact.name == self._session.platform.name), None)
        return Verdict() if found is None else found.verdict

    def get_attention_backend_cls(self, selected_backend: _Backend | str | None = None) -> str:
        """Dotted path of the class that serves `selected_backend`, a member or its name (None: the best).

        FastDeploy's names for attention over the paged cache mean the best backend of this device; any
        name that the device itself offers is taken too. ValueError lists what there is.
        """
        wanted = getattr(selected_backend, "name", selected_backend)
        offered = self._session.attention_backends
        if wanted is None or wanted in _PAGED:
            return _path(offered[0])
        for backend in offered:
            if backend.name == wanted:
                return _path(backend)
        have = ", ".join([*(b.name for b in offered), *sorted(_PAGED)])
        raise ValueError(
            f"attention backend {wanted!r}: {self.device_name} has no such backend; it offers {have}"
        )

    def supports_fp8(self) -> bool:
        """Whether the device multiplies float8 matrices."""
        return "fp8" in self._session.device.features

    def supported_quantization(self) -> list[str]:
        """Names that `verify_quant` takes."""
        ours = self._session.quant_methods
        return sorted({*ours, *(name for name, mine in QUANT_NAMES.items() if mine in ours)})

    def verify_quant(self, quant: str) -> None:
        """ValueError naming method and device unless the device has the quantisation method."""
        have = self.supported_quantization()
        if quant not in have:
            raise ValueError(
                f"quantization {quant!r} is not supported on {self.device_name}; have {', '.join(have)}"
            )

    def get_sm_version(self) -> int:
        """Compute capability * 10, as 90 for sm_90; 0 where the device has none."""
        found = re.match(r"sm_(\d+)", self._session.device.arch)
        return int(found[1]) if found else 0


def _path(backend: type[AttentionBackend]) -> str:
    return f"{backend.__module__}.{backend.__qualname__}"


def get_attention_backend(selected_backend: _Backend | str | None = None) -> type[AttentionBackend]:
    """The class behind `get_attention_backend_cls`."""
    import importlib

    module, _, name = current_platform().get_attention_backend_cls(selected_backend).rpartition(".")
    found: type[AttentionBackend] = getattr(importlib.import_module(module), name)
    return found


def current_platform() -> Platform:
    """The face of the process's session, opened on first call."""
    return Platform(current_session())


def get_sm_version() -> int:
    return current_platform().get_sm_version()
