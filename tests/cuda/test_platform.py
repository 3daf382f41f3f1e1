"""The platform on a real device: memory, copies, streams, capture, and how its failures look."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fd_cuda")
from fd_core import ops
from fd_core.api import dtype as dt
from fd_core.api.platform import DeviceError
from fd_core.api.tensor import TensorSpec, from_numpy
from fd_core.host.session import Session
from tests.cuda.gpu import gpu_session

pytestmark = pytest.mark.device("cuda")
SHAPE = (6, 5, 8)


@pytest.fixture(scope="module")
def session() -> Session:
    return gpu_session()


def numbers(shape: tuple[int, ...] = SHAPE) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


class TestMemory:
    def test_more_than_there_is(self, session: Session) -> None:
        with pytest.raises(MemoryError, match=r"want \d+ bytes, have \d+ free of \d+; use a smaller model"):
            session.platform.empty(TensorSpec((1 << 42,), dt.float32))
        assert session.platform.to_host(session.platform.from_host(numbers())).shape == SHAPE

    def test_blocks_are_used_again(self, session: Session) -> None:
        first = session.platform.empty(TensorSpec((1 << 20,), dt.uint8))
        address = first.ptr
        del first
        assert session.platform.empty(TensorSpec((1 << 20,), dt.uint8)).ptr == address

    def test_kept_blocks_count_as_free(self, session: Session) -> None:
        before = session.platform.memory().free
        held = session.platform.empty(TensorSpec((64 << 20,), dt.uint8))
        assert before - session.platform.memory().free >= 64 << 20
        del held
        assert abs(session.platform.memory().free - before) < 4 << 20

    def test_empty_tensor(self, session: Session) -> None:
        assert session.platform.to_host(session.platform.from_host(numbers((0, 3)))).shape == (0, 3)


@pytest.mark.parametrize("kind", [dt.float32, dt.float16, dt.int8, dt.int64], ids=str)
class TestCopies:
    def test_strided_in_every_direction(self, session: Session, kind: dt.DType) -> None:
        platform, want = session.platform, numbers().astype(kind.numpy())
        on_device = platform.from_host(want)
        turned = on_device.permute(2, 0, 1)
        np.testing.assert_array_equal(platform.to_host(turned), want.transpose(2, 0, 1))
        out = platform.from_host(np.zeros_like(want))
        platform.copy_(out.permute(2, 0, 1), turned)
        np.testing.assert_array_equal(platform.to_host(out), want)
        platform.copy_(out.slice(1, 3, dim=1), from_numpy(want[:, 3:5]))
        np.testing.assert_array_equal(platform.to_host(out)[:, 1:3], want[:, 3:5])

    def test_other_shape_or_type_is_refused(self, session: Session, kind: dt.DType) -> None:
        tensor = session.platform.from_host(numbers().astype(kind.numpy()))
        with pytest.raises(ValueError, match=r"copy_: want \(6, 5, 8\).*, have \(5, 5, 8\)"):
            session.platform.copy_(tensor, tensor.slice(0, 5))


class TestCapture:
    def test_replay_reads_the_memory_anew(self, session: Session) -> None:
        platform = session.platform
        x, weight = (platform.from_host(numbers((2, 64))), platform.from_host(np.ones(64, np.float32)))
        out = platform.empty(x.spec)
        session.ops.rms_norm(x, weight, 1e-6, out)
        graph = platform.capture(lambda: session.ops.rms_norm(x, weight, 1e-6, out))
        assert graph is not None
        platform.copy_(x, from_numpy(np.ones((2, 64), np.float32)))
        graph.replay()
        np.testing.assert_allclose(platform.to_host(out), 1, rtol=1e-5)

    def test_what_cannot_be_captured_leaves_the_device_usable(self, session: Session) -> None:
        platform = session.platform
        tensor = platform.from_host(numbers())
        with pytest.raises(DeviceError, match=r"cuStreamSynchronize|cuMemcpy"):
            platform.capture(lambda: platform.to_host(tensor))
        np.testing.assert_array_equal(platform.to_host(tensor), numbers())


class TestGuests:
    """Tensors of other libraries, on the stream that is current there."""

    def slow(self, torch: Any) -> Any:
        """Work of some milliseconds, so that a kernel on another stream would run too early."""
        big = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):
            big = (big @ big).clamp_(-1, 1)
        return big

    def test_torch_on_a_stream_of_its_own(self, session: Session) -> None:
        torch = pytest.importorskip("torch")
        weight = torch.ones(256, device="cuda")
        with torch.cuda.stream(torch.cuda.Stream()):
            mark = self.slow(torch)[:4, :256] * 0 + 3
            out = torch.full_like(mark, 7)
            given = ops.rms_norm(mark, weight, 1e-6, out=out)
            after = out * 2
        assert given is out
        torch.cuda.synchronize()
        np.testing.assert_allclose(after.cpu().numpy(), 2, rtol=1e-4)

    def test_torch_gets_torch_tensors(self, session: Session) -> None:
        torch = pytest.importorskip("torch")
        x = torch.randn(3, 128, device="cuda", dtype=torch.bfloat16)
        weight = torch.ones(128, device="cuda", dtype=torch.bfloat16)
        got = ops.rms_norm(x, weight, 1e-6)
        want = torch.nn.functional.rms_norm(x.float(), (128,), eps=1e-6)
        assert isinstance(got, torch.Tensor)
        torch.testing.assert_close(got.float(), want, rtol=2**-7, atol=1e-6)

    def test_cupy_on_a_stream_of_its_own(self, session: Session) -> None:
        cupy = pytest.importorskip("cupy")
        with cupy.cuda.Stream(non_blocking=True) as stream:
            big = cupy.random.rand(4096, 4096, dtype=cupy.float32)
            for _ in range(20):
                big = cupy.clip(big @ big, -1, 1)
            x = big[:4, :256] * 0 + 3
            out = ops.rms_norm(x, cupy.ones(256, cupy.float32), 1e-6)
            stream.synchronize()
        assert isinstance(out, cupy.ndarray)
        np.testing.assert_allclose(out.get(), 1, rtol=1e-4)

    def test_host_tensors_are_refused_with_the_fix(self, session: Session) -> None:
        with pytest.raises(ValueError, match="want a tensor on cuda:0, have one on cpu:0; fix: copy it"):
            ops.rms_norm(numbers((2, 8)), np.ones(8, np.float32), 1e-6)


def test_a_kernel_that_leaves_its_memory_is_named() -> None:
    """In a process of its own: CUDA gives a context up after an illegal access."""
    program = """
import numpy as np
from fd_core.api import dtype as dt
from fd_core.api.tensor import Storage, Tensor
from fd_core.host.session import open_session
s = open_session("cuda", fallback="allow")
bad = Tensor(1 << 60, (4, 64), dt.float32, Storage(1 << 60, 1024, s.device.device, None, s.platform))
out = s.platform.empty(bad.spec)
try:
    s.ops.rms_norm(bad, s.platform.from_host(np.ones(64, np.float32)), 1e-6, out)
    s.platform.synchronize()
except RuntimeError as error:
    print(type(error).__name__, error)
"""
    for blocking, said in (("1", "RuntimeError rms_norm: kernel: "), ("0", "CudaError cuda: ")):
        env = {**os.environ, "FD_CUDA_BLOCKING": blocking}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if "no GPU" in done.stderr or "cannot be used" in done.stderr:
            pytest.skip("no GPU")
        assert said in done.stdout, done.stdout + done.stderr
        assert "ILLEGAL_ADDRESS" in done.stdout.upper().replace(
            "ERRORILLEGALADDRESS", "ERROR_ILLEGAL_ADDRESS"
        )
