"""Paddle layers over the engine's: one model's logits, quantisation, tensor-parallel parts, refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fd_core.host.session import current_session
from fd_core.models.config import load_config
from fd_core.testkit.harness import Harness, build

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
IDS = [3, 90, 14, 7, 7, 101, 55, 2, 19, 64, 5, 120]
RNG = np.random.default_rng(4)


@pytest.fixture
def fd(paddle: Any) -> Any:
    from fd_core import paddle as layers

    return layers


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint of the family that the test asks for."""
    from tiny_models import make, save

    family, kind = request.param
    return save(make(family, kind), tmp_path_factory.mktemp(family), kind)


FAMILIES = [
    ("llama2", "float32"), ("llama3", "float32"), ("llama-biases", "float32"), ("llama2", "bfloat16"),
]  # fmt: skip


@pytest.mark.usefixtures("paddle")
class TestLlama:
    @pytest.mark.parametrize("folder", FAMILIES, indirect=True, ids="-".join)
    def test_logits_are_the_engines_bit_for_bit(self, folder: Path) -> None:
        """Both run the same kernels on the same device; only who holds the tensors differs."""
        from llama import Llama, context_for, new_caches, step

        from fd_core.paddle import load

        config = load_config(folder)
        model = Llama(context_for(config), config)
        tied = ["lm_head.weight"] if config.tie_word_embeddings else []
        assert load(model, folder, ignored=tied) == []
        engine = Harness(build(folder, current_session()))
        caches = new_caches(model)
        want = engine.logits("text", IDS, (7, 4))
        got = np.concatenate([step(model, caches, IDS[a:b], a) for a, b in ((0, 7), (7, 11), (11, 12))])
        np.testing.assert_array_equal(got.astype(np.float32), want.astype(got.dtype).astype(np.float32))

    @pytest.mark.parametrize("full_graph", [True, False])
    @pytest.mark.parametrize("folder", FAMILIES[:1], indirect=True, ids="-".join)
    def test_one_static_graph_gives_the_same(self, paddle: Any, folder: Path, full_graph: bool) -> None:
        """Two steps over the caches: a prompt, then one token, each traced for its shapes."""
        from llama import Llama, context_for, inputs, new_caches, step
        from paddle.jit.sot.utils import min_graph_size_guard

        import fd_core.paddle.static  # noqa: F401
        from fd_core.paddle import ForwardMeta, load

        config = load_config(folder)
        model = Llama(context_for(config), config)
        load(model, folder)
        eager, traced = new_caches(model), new_caches(model)
        for start, stop in ((0, 7), (7, 8)):
            tensors, limits = inputs(IDS[start:stop], start)

            def run(ids: Any, a: Any, b: Any, c: Any, d: Any, e: Any, caches: Any) -> Any:
                return model(ids, ForwardMeta(a, b, c, d, e, caches, *limits))  # noqa: B023

            with min_graph_size_guard(0):
                graph = paddle.jit.to_static(run, full_graph=full_graph)
                got = graph(*tensors, traced).numpy()
            np.testing.assert_array_equal(got, step(model, eager, IDS[start:stop], start))

    @pytest.mark.parametrize("quantization", ["none", "w4a8"])
    @pytest.mark.parametrize("folder", [("qwen3_moe-sparse", "float32")], indirect=True, ids="-".join)
    def test_experts_are_the_engines_bit_for_bit(
        self, paddle: Any, folder: Path, quantization: str
    ) -> None:
        from fd_core import paddle as fd
        from fd_core.layers.moe import ExpertSizes, MixtureOfExperts
        from fd_core.loader.load import load_weights
        from fd_core.loader.open import open_source

        config = load_config(folder)
        context = fd.make_context("float32", max_num_tokens=16, quantization=quantization)
        prefix = "model.layers.1.mlp"
        sizes = (
            config.hidden_size,
            config.moe_intermediate_size,
            config.num_experts,
            config.num_experts_per_tok,
        )
        layer = fd.FusedMoE(context, *sizes, norm_topk_prob=config.norm_topk_prob, prefix=prefix)
        assert fd.load(layer, folder, ignored=["*"]) == []
        own = MixtureOfExperts(
            context.model, context.scratch, ExpertSizes(*sizes, config.norm_topk_prob), prefix
        )
        load_weights([*own.layers()], open_source(folder), ignored=["*"], progress=False)
        x = RNG.standard_normal((5, config.hidden_size)).astype(np.float32)
        ours = [current_session().platform.from_host(a) for a in (x, np.empty_like(x))]
        own.run(*ours)
        np.testing.assert_array_equal(layer(paddle.to_tensor(x)).numpy(), ours[1].numpy())


def linear(fd: Any, context: Any, kind: str = "Linear", **more: Any) -> Any:
    layer = getattr(fd, kind)(context, 64, 32, **more)
    return layer


class TestWeights:
    W = RNG.standard_normal((64, 32)).astype(np.float32)
    X = RNG.standard_normal((2, 3, 64)).astype(np.float32)

    def test_state_dicts_are_paddles_own(self, paddle: Any, fd: Any) -> None:
        """Weights go from paddle.nn.Linear to ours and back; [in, out] like Paddle's."""
        theirs = paddle.nn.Linear(64, 32)
        ours = fd.Linear(fd.make_context(), 64, 32, with_bias=True)
        ours.set_state_dict(theirs.state_dict())
        x = paddle.to_tensor(self.X)
        np.testing.assert_allclose(ours(x).numpy(), theirs(x).numpy(), rtol=1e-4, atol=1e-5)
        again = paddle.nn.Linear(64, 32)
        again.set_state_dict(ours.state_dict())
        np.testing.assert_array_equal(again.weight.numpy(), theirs.weight.numpy())

    def test_pdparams_files(self, paddle: Any, fd: Any, tmp_path: Path) -> None:
        first = fd.Linear(fd.make_context("bfloat16"), 64, 32)
        first.weight.set_value(paddle.to_tensor(self.W).astype("bfloat16"))
        paddle.save(first.state_dict(), str(tmp_path / "layer.pdparams"))
        second = fd.Linear(fd.make_context("bfloat16"), 64, 32)
        second.set_state_dict(paddle.load(str(tmp_path / "layer.pdparams")))
        x = paddle.to_tensor(self.X).astype("bfloat16")
        assert paddle.equal_all(first(x).astype("float32"), second(x).astype("float32"))

    @pytest.mark.parametrize("change", ["set_value", "in place", "state_dict"])
    def test_changed_weights_are_packed_again(self, paddle: Any, fd: Any, change: str) -> None:
        layer = fd.Linear(fd.make_context(), 64, 32)
        x = paddle.to_tensor(self.X[0])
        assert not layer(x).numpy().any()
        if change == "set_value":
            layer.weight.set_value(paddle.to_tensor(self.W))
        elif change == "in place":
            layer.weight.add_(paddle.to_tensor(self.W))
        else:
            layer.set_state_dict({"weight": paddle.to_tensor(self.W)})
        np.testing.assert_allclose(layer(x).numpy(), self.X[0] @ self.W, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("method", ["wint8", "wint4", "w8a8"])
    def test_the_sessions_quantisation_methods(self, paddle: Any, fd: Any, method: str) -> None:
        if method not in current_session().quant_methods:
            pytest.skip(f"this device has no {method}")
        from fd_core.api import dtype as dt
        from fd_core.api.quant import LinearSpec
        from fd_core.ops.methods import GuestQuant

        layer = fd.Linear(fd.make_context(quantization=method), 64, 32)
        layer.weight.set_value(paddle.to_tensor(self.W))
        guest = GuestQuant.named(method)
        spec = LinearSpec(64, 32, False, dt.float32, dt.float32)
        packed = guest.process_weights(spec, {"weight": np.ascontiguousarray(self.W.T)})
        want = guest.apply(self.X, packed, 32)
        np.testing.assert_array_equal(layer(paddle.to_tensor(self.X)).numpy(), want)
        assert np.abs(want - self.X @ self.W).max() > 1e-3  # it was quantised indeed

    def test_outputs_want_no_gradient(self, paddle: Any, fd: Any) -> None:
        layer = fd.Linear(fd.make_context(), 64, 32)
        x = paddle.to_tensor(self.X, stop_gradient=False)
        assert layer(x).stop_gradient


class TestNorm:
    def test_with_and_without_residual(self, paddle: Any, fd: Any) -> None:
        x, r = (RNG.standard_normal((3, 16)).astype(np.float32) for _ in range(2))
        layer = fd.RMSNorm(fd.make_context(), 16, 1e-5)
        layer.weight.set_value(paddle.full([16], 2.0))
        norm = lambda a: 2 * a / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-5)  # noqa: E731
        np.testing.assert_allclose(layer(paddle.to_tensor(x)).numpy(), norm(x), rtol=1e-5)
        first, second = paddle.to_tensor(x), paddle.to_tensor(r)
        got, total = layer(first, second)
        assert got is first
        assert total is second
        np.testing.assert_allclose(total.numpy(), x + r, rtol=1e-6)
        np.testing.assert_allclose(got.numpy(), norm(x + r), rtol=1e-5)


class TestTensorParallel:
    """Two ranks' layers in one process: columns side by side, rows summed, give the whole."""

    X = RNG.standard_normal((3, 8)).astype(np.float32)

    def save_whole(self, fd: Any, tmp_path: Path) -> Any:
        import paddle

        class Whole(paddle.nn.Layer):
            def __init__(self) -> None:
                super().__init__()
                context = fd.make_context()
                self.qkv = fd.QKVParallelLinear(context, 8, 4, 2, 4, prefix="a", with_bias=True)
                self.down = fd.RowParallelLinear(context, 8, 6, prefix="d", with_bias=True)

        model = Whole()
        for parameter in model.parameters():
            parameter.set_value(paddle.to_tensor(RNG.standard_normal(parameter.shape).astype(np.float32)))
        fd.save(model, tmp_path)
        return model

    def test_parts_of_a_checkpoint(self, paddle: Any, fd: Any, tmp_path: Path, monkeypatch: Any) -> None:
        from fd_core.paddle import linear as module

        whole = self.save_whole(fd, tmp_path)
        q, k, v = whole.qkv.heads(whole.qkv(paddle.to_tensor(self.X)))
        rows, sums = [], []
        monkeypatch.setattr(module, "reduce", lambda x, tp: sums.append(x.numpy()) or x)
        for rank in range(2):
            context = fd.make_context(tp=fd.TensorParallel(rank, 2))
            qkv = fd.QKVParallelLinear(context, 8, 4, 2, 4, prefix="a", with_bias=True)
            down = fd.RowParallelLinear(context, 8, 6, prefix="d", with_bias=True)
            for layer in (qkv, down):
                fd.load(layer, tmp_path, ignored=["*"])
            rows.append(qkv.heads(qkv(paddle.to_tensor(self.X))))
            down(paddle.to_tensor(np.ascontiguousarray(self.X[:, rank * 4 : rank * 4 + 4])))
        for want, parts in zip((q, k, v), zip(*rows, strict=True), strict=True):
            got = np.concatenate([part.numpy() for part in parts], 1)
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            sum(sums), whole.down(paddle.to_tensor(self.X)).numpy(), rtol=1e-4, atol=1e-5
        )

    def test_sizes_that_cannot_be_split(self, fd: Any) -> None:
        context = fd.make_context(tp=fd.TensorParallel(0, 3))
        with pytest.raises(ValueError, match=r"o.out_features: want a multiple of 3 .*, have 8"):
            fd.ColumnParallelLinear(context, 8, 8, prefix="o")
        with pytest.raises(ValueError, match="want 1 tensor-parallel rank for experts, have 3"):
            fd.FusedMoE(context, 8, 8, 3, 1)


class TestRefusals:
    def test_meta_has_no_invented_attributes(self, paddle: Any, fd: Any) -> None:
        one = paddle.zeros([1], dtype="int32")
        meta = fd.ForwardMeta(one, one, one, one, one, [], 1, 1)
        with pytest.raises(AttributeError):
            _ = meta.seq_lens_encoder

    def test_unknown_method(self, fd: Any) -> None:
        with pytest.raises(ValueError, match=r"wint3"):
            fd.Linear(fd.make_context(quantization="wint3"), 8, 8)

    def test_without_paddle_the_error_says_what_to_install(self) -> None:
        code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "paddle" else find(name, *more)
try:
    import fd_core.paddle
except ImportError as error:
    assert "fix: pip install paddlepaddle" in str(error)
else:
    raise SystemExit("no error")
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
