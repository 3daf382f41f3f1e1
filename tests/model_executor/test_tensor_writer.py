"""A weights file written tensor by tensor: read back by us and by the format's own library; refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fd_core.api import dtype as dt
from fd_core.api.tensor import TensorSpec
from fd_core.loader.tensor_file import TensorFile
from fd_core.loader.write import TensorWriter

ARRAYS: dict[str, Any] = {
    "scale": np.arange(5, dtype=np.float32),
    "codes": np.arange(192, dtype=np.int8).reshape(3, 64),
    "empty": np.empty((0, 4), np.float32),
}
SPECS = {name: TensorSpec(a.shape, dt.dtype(a.dtype.name)) for name, a in ARRAYS.items()}


def test_any_order_and_what_is_aligned_first(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    writer = TensorWriter(path, SPECS)
    for name in ("scale", "empty", "codes"):
        assert not path.exists(), "it gets its name when all is there"
        writer.write(name, ARRAYS[name])
    writer.close()
    file, theirs = TensorFile(path), load_file(path)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(file.read(name), array)
        np.testing.assert_array_equal(theirs[name], array)
    assert file.entries["codes"].start % 64 == 0
    assert file.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("other", ARRAYS["scale"], "other: want None, once"),
        ("scale", ARRAYS["scale"][:4], r"scale: want \(\(5,\), 'float32'\), once; have \(\(4,\)"),
        ("scale", ARRAYS["scale"].astype(np.int32), "have .*int32"),
    ],
)
def test_what_was_not_announced_is_refused(tmp_path: Path, name: str, value: Any, why: str) -> None:
    writer = TensorWriter(tmp_path / "x", SPECS)
    with pytest.raises(ValueError, match=why):
        writer.write(name, value)
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_twice_and_too_few_are_refused(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path / "x", SPECS)
    writer.write("scale", ARRAYS["scale"])
    with pytest.raises(ValueError, match=r"scale: want .* once"):
        writer.write("scale", ARRAYS["scale"])
    with pytest.raises(ValueError, match="want codes, empty too"):
        writer.close()
    writer.abandon()


def test_parts_come_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    writer = TensorWriter(path, SPECS)
    for index in (2, 0, 1):
        writer.write_part("codes", index, ARRAYS["codes"][index])
        if index == 0:
            writer.write("scale", ARRAYS["scale"])
    writer.write("empty", ARRAYS["empty"])
    writer.close()
    np.testing.assert_array_equal(TensorFile(path).read("codes"), ARRAYS["codes"])


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    writer, codes = TensorWriter(tmp_path / "x", SPECS), ARRAYS["codes"]
    writer.write_part("codes", 1, codes[1])
    for name, index, value, why in [
        ("codes", 1, codes[1], r"codes\[1\]: want .* once"),
        ("codes", 3, codes[1], r"codes\[3\]: want"),
        ("codes", 0, codes[0, :5], r"codes\[0\]: want \(\(64,\), 'int8'\), once; have \(\(5,\)"),
        ("other", 0, codes[0], r"other\[0\]: want None"),
    ]:
        with pytest.raises(ValueError, match=why):
            writer.write_part(name, index, value)
    with pytest.raises(ValueError, match=r"codes: want .* once"):
        writer.write("codes", codes)
    with pytest.raises(ValueError, match="want codes, empty, scale too"):
        writer.close()
    writer.abandon()


def test_memory_may_go_and_comes_back(tmp_path: Path) -> None:
    """Released pages are read again from the file when somebody looks."""
    big = np.arange(1 << 16, dtype=np.int32)
    writer = TensorWriter(tmp_path / "x", {"big": TensorSpec(big.shape, dt.int32)})
    writer.write("big", big)
    writer.close()
    file = TensorFile(tmp_path / "x")
    array = file.read("big")
    assert array.sum() == big.sum()
    file.release("big")
    np.testing.assert_array_equal(array, big)
