"""Quantisation methods chosen per layer, from those of the session (core's and the plug-ins')."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fd_core.api.device import DeviceInfo
from fd_core.api.quant import ExpertMethod, ExpertSpec, LinearSpec, QuantMethod
from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.host.errors import UnsupportedOpError
from fd_core.quantization.config import TABLE, UNQUANTIZED, QuantConfig, QuantError
from fd_core.quantization.formats import FORMATS
from fd_core.quantization.unquantized import PlainExperts


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

    def experts(self, spec: ExpertSpec) -> ExpertMethod:
        """The method of a layer's experts; UnsupportedOpError gives the reasons when it cannot run them."""
        method = self._method(self.config.name_for_experts(spec.prefix))
        matrices = spec.matrices.values()
        verdict = Verdict.all(type(method).supports(one, self._device) for one in matrices)
        found = method.experts()
        if found is None and method.name == UNQUANTIZED:
            found = PlainExperts(method)  # a layout of dense layers alone: the op takes plain matrices
        if found is None:
            fix = f'say "moe_quant_type": "{UNQUANTIZED}" in the JSON object of the quantization'
            subject = f"quantisation {method.name}: {spec.prefix}"
            verdict &= Verdict.no(ReasonCode.FEATURE, subject, "expert weights", "dense layers only", fix)
        if found is None or not verdict.ok:
            raise UnsupportedOpError(f"quantization {method.name!r}: {spec.prefix}: {verdict}", verdict)
        return found

    def table(self, spec: LinearSpec) -> QuantMethod | None:
        """The method of an embedding table that is not the head; None: it stays as it is. One that was
        asked for by name is refused where it has no lookups."""
        method = self._method(self.config.name_for_table(spec.prefix))
        verdict = type(method).supports(spec, self._device)
        if method.name != UNQUANTIZED and not method.has_lookup:
            fix = f'leave {TABLE} out, or say "{TABLE}": "{UNQUANTIZED}"'
            subject = f"quantisation {method.name}: {spec.prefix}"
            verdict &= Verdict.no(ReasonCode.FEATURE, subject, "lookups of rows", "products alone", fix)
        if self.config.table == method.name and not verdict.ok:
            raise UnsupportedOpError(f"quantization {method.name!r}: {spec.prefix}: {verdict}", verdict)
        return method if verdict.ok and method.name != UNQUANTIZED else None

    def mentioned(self) -> list[QuantMethod]:
        """Every method that the configuration names for layers other than experts."""
        return [self._method(name) for name in dict.fromkeys(self.config.dense_names())]

    def _method(self, name: str) -> QuantMethod:
        if name not in self._made:
            if name not in self._methods:
                have = ", ".join(sorted(self._methods)) or "none at all"
                raise QuantError(f"quantization: want one of {have}; have {name!r}")
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> QuantMethod:
        """One that stores its weights as the checkpoint does, or takes the codes that are there."""
        options = {} if name == UNQUANTIZED else self.config.options
        form = _form(options, name)
        if form not in FORMATS:
            return self._build(name, options)
        made = self._build(name, {k: v for k, v in options.items() if k not in ("is_quantized", "forms")})
        if made.form == form:
            return self._build(name, options)
        grid = made.grid()
        if grid is None:
            raise QuantError(
                f"quantization {name!r}: want a checkpoint of plain weights, have codes in form {form!r}; "
                "fix: load the 16-bit checkpoint with this method"
            )
        made.codes = FORMATS[form](grid)
        return made

    def _build(self, name: str, options: Mapping[str, Any]) -> QuantMethod:
        return self._methods[name](self._device, self._platform, self._ops, options)


def _form(options: Mapping[str, Any], name: str) -> str:
    """How a quantised checkpoint says that it holds the method's weights; empty: it does not."""
    forms = options.get("forms") if options.get("is_quantized") else None
    return str(forms.get(name, "")) if isinstance(forms, Mapping) else ""
