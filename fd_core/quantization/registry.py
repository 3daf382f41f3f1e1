"""Quantisation methods chosen per layer, from those of the session (core's and the plug-ins')."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fd_core.api.device import DeviceInfo
from fd_core.api.quant import LinearSpec, QuantMethod
from fd_core.host.errors import UnsupportedOpError
from fd_core.quantization.config import UNQUANTIZED, QuantConfig, QuantError


class QuantChooser:
    """Maps a linear layer to its method. One instance of each method serves the whole model.

    `methods`: classes by name (`Session.quant_methods`).
    """

    def __init__(
        self,
        config: QuantConfig,
        methods: Mapping[str, type[QuantMethod]],
        device: DeviceInfo,
        platform: Any,
        ops: Any,
    ) -> None:
        self.config = config
        self._methods = methods
        self._device = device
        self._platform = platform
        self._ops = ops
        self._made: dict[str, QuantMethod] = {}

    def __call__(self, spec: LinearSpec) -> QuantMethod:
        """The method of one layer; UnsupportedOpError gives the reasons when it cannot run it."""
        method = self._method(self.config.name_for(spec.prefix))
        verdict = type(method).supports(spec, self._device)
        if not verdict.ok:
            raise UnsupportedOpError(f"quantization {method.name!r}: {spec.prefix}: {verdict}", verdict)
        return method

    def _method(self, name: str) -> QuantMethod:
        if name not in self._made:
            if name not in self._methods:
                have = ", ".join(sorted(self._methods)) or "none at all"
                raise QuantError(f"quantization: want one of {have}; have {name!r}")
            options = {} if name == UNQUANTIZED else self.config.options
            self._made[name] = self._methods[name](self._device, self._platform, self._ops, options)
        return self._made[name]
