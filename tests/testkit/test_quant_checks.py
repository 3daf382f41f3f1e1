"""The kit's checks of quantisation methods: what they pass, and what they find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from fd_core.api.device import DeviceInfo
from fd_core.api.quant import Grid, LinearSpec, QuantMethod
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.api.verdict import YES, Verdict
from fd_core.host.session import open_session
from fd_core.quantization.unquantized import Unquantized
from fd_core.testkit.quant_checks import CHECKS, examine_quantization

NEEDS = {"given_codes", "products", "rows", "lookups"}


class Held(QuantMethod):
    """Weights as they are given, by NumPy."""

    name: ClassVar[str] = "held"
    has_lookup: ClassVar[bool] = True

    @classmethod
    def supports(cls, spec: LinearSpec, device: DeviceInfo) -> Verdict:
        return YES

    def grid(self) -> Grid:
        return Grid(-8, 7, 64, (-128, 127) if self.config.get("zero_point") else None)

    def create_weights(self, spec: LinearSpec) -> dict[str, TensorSpec]:
        raise NotImplementedError

    def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
        return self.weight({name: tensor.numpy() for name, tensor in weights.items()})

    def weight(self, given: dict[str, Any]) -> Any:
        return given["weight"]

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        total = x.numpy().astype(np.float32)[:, None] * packed
        target = out.numpy()
        target[...] = total.sum(2) + (0 if bias is None else bias.numpy().astype(np.float32))

    def lookup(self, ids: Tensor, packed: Any, out: Tensor) -> None:
        out.numpy()[...] = packed[ids.numpy()]


class Rounded(Held):
    """Finds scales of its own, though some are given."""

    def weight(self, given: dict[str, Any]) -> Any:
        whole = given["weight"]
        step = np.abs(whole).max(1, keepdims=True) / 7
        return (np.rint(whole / step) * step).astype(np.float32)


class ZeroForgotten(Held):
    def weight(self, given: dict[str, Any]) -> Any:
        if "zero" not in given:
            return given["weight"]
        scale, zero = (np.repeat(given[name], 64, 1)[:, :208] for name in ("scale", "zero"))
        return given["weight"] + scale * zero


class Unsteady(Held):
    """Sums in an order that depends on the batch."""

    def apply(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor) -> None:
        super().apply(x, packed, bias, out)
        if x.shape[0] > 1:
            out.numpy()[...] *= np.float32(1 + 2.0**-7)


class Misplaced(Held):
    def lookup(self, ids: Tensor, packed: Any, out: Tensor) -> None:
        out.numpy()[...] = packed[ids.numpy() - 1]


def failed(method: type[QuantMethod]) -> set[tuple[str, str]]:
    """(case, check) of what is found wrong, on the platform of the oracles."""
    session = replace(open_session("reference"), quant_methods={"held": method})
    found = list(examine_quantization(session))
    assert {f.check for f in found} == NEEDS == set(CHECKS)
    assert {f.case for f in found} == {"held", "held zero_point"}
    return {(f.case, f.check) for f in found if f.status == "fail"}


def test_right_ones_pass() -> None:
    assert failed(Held) == set()


@pytest.mark.parametrize(
    ("method", "case", "check"),
    [
        (Rounded, "held", "given_codes"),
        (Rounded, "held", "lookups"),
        (ZeroForgotten, "held zero_point", "given_codes"),
        (ZeroForgotten, "held zero_point", "products"),
        (Unsteady, "held", "rows"),
        (Misplaced, "held", "lookups"),
    ],
)
def test_wrong_ones_are_found(method: type[QuantMethod], case: str, check: str) -> None:
    assert (case, check) in failed(method)


def test_what_a_method_raises_is_a_finding() -> None:
    class Broken(Held):
        def process_weights(self, spec: LinearSpec, weights: Mapping[str, Tensor]) -> Any:
            raise ValueError("no room")

    session = replace(open_session("reference"), quant_methods={"held": Broken})
    found = list(examine_quantization(session))
    assert {(f.check, f.status) for f in found} == {("pack", "fail")}
    assert all("ValueError: no room" in f.detail for f in found)


def test_methods_without_a_grid_are_left_out() -> None:
    session = replace(open_session("reference"), quant_methods={"none": Unquantized})
    assert list(examine_quantization(session)) == []


def test_the_cpu_passes() -> None:
    session = pytest.importorskip("fd_cpu") and open_session("cpu")
    found = list(examine_quantization(session))
    assert {"w4a8", "wint4", "wint4 zero_point"} <= {f.case for f in found}
    assert [f for f in found if f.status != "pass"] == []
