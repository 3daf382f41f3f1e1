"""Memory-mapped safetensors: what is in a good file, and every way a file can be bad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from fd_core.loader.errors import CheckpointError
from fd_core.loader.tensor_file import TensorFile


def raw_file(path: Path, header: Any, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = {"a": entry("F32", [2], 0, 8), "b": entry("BF16", [3], 8, 14)}


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    want = {
        "w": rng.standard_normal((3, 5)).astype(np.float32),
        "h": rng.standard_normal(7).astype(np.float16),
        "i": rng.integers(-9, 9, (2, 2, 2)),
        "none": np.empty((0, 4), np.int8),
        "scalar": np.array(3, np.int32),
        "flag": np.array([True, False]),
    }
    save_file(want, tmp_path / "x.safetensors", metadata={"format": "pt"})
    file = TensorFile(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "pt"}
    assert set(file.entries) == set(want)
    for name, array in want.items():
        np.testing.assert_array_equal(file.read(name), array)
        assert file.read(name).dtype == array.dtype


def test_bfloat16_and_float8_bits_arrive_unchanged(tmp_path: Path) -> None:
    bf16 = np.array([1.5, -2.0, np.nan], ml_dtypes.bfloat16)
    fp8 = np.array([0.5, 448.0], ml_dtypes.float8_e4m3fn)
    header = {"a": entry("BF16", [3], 0, 6), "b": entry("F8_E4M3", [2], 6, 8)}
    file = TensorFile(raw_file(tmp_path / "f", header, bf16.tobytes() + fp8.tobytes()))
    assert file.read("a").tobytes() == bf16.tobytes()
    assert file.read("a").dtype == bf16.dtype
    assert file.read("b").tobytes() == fp8.tobytes()


def test_arrays_are_views_of_the_file_and_outlive_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": np.arange(1000, dtype=np.float32)}, path)
    array = TensorFile(path).read("w")
    assert not array.flags.owndata
    assert not array.flags.writeable
    path.unlink()
    assert array[999] == 999.0


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (b"", b"", "JSON"),
        (b"{", b"", "JSON"),
        (b"[1]", b"", "not an object"),
        (b'{"a": 1, "a": 2}', b"", "occurs twice"),
        (b"\xff\xfe", b"", "JSON"),
        (b"[" * 100_000, b"", "JSON"),
        ({"__metadata__": 3}, b"", "__metadata__"),
        ({"a": 3}, b"", "'a' has no dtype"),
        ({"a": {"dtype": "F32", "shape": [1]}}, bytes(4), "'a' has no dtype"),
        ({"a": entry("F32", [-1], 0, 4)}, bytes(4), "no counts"),
        ({"a": entry("F32", [True], 0, 4)}, bytes(4), "no counts"),
        ({"a": entry("F32", [1.0], 0, 4)}, bytes(4), "no counts"),  # type: ignore[list-item]
        ({"a": entry("F32", [2], 0, 4)}, bytes(4), "needs 8 bytes, has 4"),
        ({"a": entry("F32", [1], 4, 0)}, bytes(4), "needs 4 bytes, has -4"),
        ({"a": entry("F32", [1], 4, 8)}, bytes(8), "hole at byte"),
        ({"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, bytes(4), "overlap"),
        (GOOD, bytes(13), "end at byte"),
        (GOOD, bytes(15), "end at byte"),
    ],
)
def test_a_broken_header_is_refused(tmp_path: Path, header: Any, data: bytes, why: str) -> None:
    path = raw_file(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match="truncated or corrupt") as error:
        TensorFile(path)
    assert why in str(error.value)
    assert "bad.safetensors" in str(error.value)


def test_an_unknown_dtype_is_named(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "f", {"a": entry("F4", [2], 0, 1)}, bytes(1))
    with pytest.raises(CheckpointError, match=r"'a': want a dtype among .*BF16.* have 'F4'"):
        TensorFile(path)


@pytest.mark.parametrize("size", [0, 3, 8])
def test_a_stub_of_a_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"\xff" * size)
    with pytest.raises(CheckpointError, match="empty" if size == 0 else "truncated"):
        TensorFile(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        TensorFile(tmp_path / "nothing")


@given(cut=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_every_truncation_is_noticed(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    save_file({"w": np.arange(64, dtype=np.float32), "v": np.ones(3, np.int8)}, folder / "f")
    whole = (folder / "f").read_bytes()
    (folder / "f").write_bytes(whole[: cut % len(whole)])
    with pytest.raises(CheckpointError):
        TensorFile(folder / "f")


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None)
def test_a_changed_header_byte_never_reads_outside(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    save_file({"w": np.arange(64, dtype=np.float32), "v": np.ones(3, np.int8)}, folder / "f")
    raw = bytearray((folder / "f").read_bytes())
    raw[position % (len(raw) - 259)] = value
    (folder / "f").write_bytes(raw)
    try:
        file = TensorFile(folder / "f")
    except CheckpointError:
        return
    for name, found in file.entries.items():
        assert found.start + found.spec.nbytes <= len(raw)
        assert file.read(name).nbytes == found.spec.nbytes
