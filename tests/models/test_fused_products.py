"""Blocks whose products take norm, gate and addition along give the bits of the ops in turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from harness import Harness, Parts, build, oracle_parts
from tiny_models import VOCAB, make, save

from fd_core.api.quant import Fusion
from fd_core.api.tensor import Tensor, TensorSpec
from fd_core.quantization.unquantized import Unquantized

pytestmark = pytest.mark.reference

PROMPT = [int(t) for t in np.random.default_rng(5).integers(0, VOCAB, 9)]
ROWS = 3  # up to these the method below takes everything along


class Fusing(Unquantized):
    """The ops in turn, in one call."""

    fused_rows: ClassVar[int] = ROWS
    seen: ClassVar[Counter[tuple[int, bool, bool, bool]]] = Counter()
    refuses: ClassVar[bool] = False

    def apply_fused(self, x: Tensor, packed: Any, bias: Tensor | None, out: Tensor, fusion: Fusion) -> bool:
        self.seen[x.shape[0], fusion.norm is not None, fusion.gated, fusion.add] += 1
        if self.refuses:
            return False
        if fusion.norm is not None:
            x, source = self._like(x, x.shape[1]), x
            self.ops.rms_norm(source, fusion.norm, fusion.eps, x)
        y = self._like(x, packed.shape[0])
        self.apply(x, packed, bias, y)
        if fusion.gated:
            self.ops.swiglu(y, None, out)
        elif fusion.add:
            total = out.numpy().astype(np.float32) + y.numpy().astype(np.float32)
            out.numpy()[...] = total.astype(out.dtype.numpy())
        else:
            out.copy_from(y)
        return True

    def _like(self, x: Tensor, columns: int) -> Tensor:
        made: Tensor = self.platform.empty(TensorSpec((x.shape[0], columns), x.dtype))
        return made


class Refusing(Fusing):
    seen: ClassVar[Counter[tuple[int, bool, bool, bool]]] = Counter()
    refuses: ClassVar[bool] = True


def parts(method: type[Unquantized]) -> Parts:
    return replace(oracle_parts(), quant_methods={"none": method})


def logits(folder: Path, method: type[Unquantized], chunks: list[int]) -> Any:
    harness = Harness(build(folder, parts(method), weights="bfloat16"))
    return harness.logits("prompt", PROMPT, chunks=chunks)


@pytest.mark.parametrize("family", ["llama-biases", "qwen3", "qwen3_moe"])
def test_bits_are_those_of_the_ops_in_turn(family: str, tmp_path: Path) -> None:
    folder = save(make(family, "bfloat16"), tmp_path / family)
    want = logits(folder, Unquantized, [5, 1, 3]).tobytes()
    for method in (Fusing, Refusing):
        method.seen.clear()
        assert logits(folder, method, [5, 1, 3]).tobytes() == want
        assert {rows for rows, *_ in method.seen} == {1, 3}, "asked for more rows than it takes"


def test_what_is_taken_along(tmp_path: Path) -> None:
    """In a dense model all four products of a block."""
    Fusing.seen.clear()
    logits(save(make("llama2", "bfloat16"), tmp_path / "dense"), Fusing, [8, 1])
    layers = 3
    qkv, gate_up, onto = (1, True, False, False), (1, True, True, False), (1, False, False, True)
    assert Fusing.seen == {qkv: layers, gate_up: layers, onto: 2 * layers}


def test_behind_experts_the_norm_stays_an_op(tmp_path: Path) -> None:
    """Experts leave their part to be added: the next layer's norm adds it. Layer 1 of three is dense."""
    Fusing.seen.clear()
    logits(save(make("qwen3_moe", "bfloat16"), tmp_path / "experts"), Fusing, [8, 1])
    first_qkv, onto = (1, True, False, False), (1, False, False, True)
    assert Fusing.seen[first_qkv] == 2, "layers 0 and 2 follow no experts"
    assert Fusing.seen[onto] == 3 + 1
    assert Fusing.seen[1, True, True, False] == 1


def test_one_block_alone_is_not_fused(tmp_path: Path) -> None:
    """`run_block` hands back what is still to be added."""
    model = build(save(make("llama2", "bfloat16"), tmp_path / "alone"), parts(Fusing), weights="bfloat16")
    harness = Harness(model)
    harness.logits("prompt", PROMPT)
    Fusing.seen.clear()
    batch, _ = harness._batch([("alone", [1, 2])])
    shape = TensorSpec((2, 64), model.context.activation_dtype)
    x, residual = model.context.platform.empty(shape), model.context.platform.empty(shape)
    residual.numpy()[...] = 1
    positions = model.context.platform.from_host(np.arange(2, dtype=np.int32))
    model.run_block(0, x, residual, positions, batch, harness.caches[0])
    assert not Fusing.seen
    assert (residual.numpy() != 1).any(), "attention's part is in the sum"
    assert x.numpy().any()
