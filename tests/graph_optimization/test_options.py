"""FastDeploy's graph options: sizes, checks, and what the engine gets of them."""

from __future__ import annotations

from typing import Any

import pytest

from fd_core.compat.fastdeploy.graph import GraphOptimizationConfig, default_capture_sizes
from fd_core.engine.config import EngineConfig


def test_default_sizes_are_descending_and_cut() -> None:
    assert default_capture_sizes(34) == [34, 32, 24, 16, 8, 4, 2, 1]
    large = default_capture_sizes(1024)
    assert large[:3] == [1024, 992, 960]
    assert {144, 160, 256, 288, 320} <= set(large)
    assert not {136, 272} & set(large)
    with pytest.raises(ValueError, match="max_num_seqs: want at least 1, have 0"):
        default_capture_sizes(0)


def test_given_sizes_and_what_they_serve() -> None:
    config = GraphOptimizationConfig(cudagraph_capture_sizes=[1, 8, 2, 64])
    assert config.capture_sizes(16) == [8, 2, 1]
    assert config.real_shape_to_captured_size(16) == {1: 1, 2: 2, **dict.fromkeys(range(3, 9), 8)}
    assert GraphOptimizationConfig(cudagraph_capture_sizes=[64]).real_shape_to_captured_size(16) == {}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"graph_opt_level": 3}, r"want one of 0 \(dynamic graph\), 1 .*, 2 .*; have 3"),
        (
            {"cudagraph_capture_sizes": [4, 0]},
            r"cudagraph_capture_sizes: want whole numbers above 0, have \[0\]",
        ),
        ({"sot_warmup_sizes": [1.5]}, r"sot_warmup_sizes: .*have \[1.5\]"),
        ({"cudagraph_num_of_warmups": -1}, r"want at least 0, have -1"),
        ({"use_cuda_graph": True}, r"want keys of .*use_cudagraph.*; have \['use_cuda_graph'\]"),
    ],
)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GraphOptimizationConfig.from_mapping(options)


def test_for_the_engine_and_for_paddle() -> None:
    assert GraphOptimizationConfig().engine_options() == {"enable_graphs": True}
    assert (
        EngineConfig(**GraphOptimizationConfig(use_cudagraph=False).engine_options()).enable_graphs is False
    )
    assert GraphOptimizationConfig(cudagraph_only_prefill=True).engine_options() == {"enable_graphs": False}
    assert GraphOptimizationConfig().static_options() is None
    assert GraphOptimizationConfig(1, full_cuda_graph=False).static_options() == {
        "full_graph": False, "backend": None,
    }  # fmt: skip
    assert GraphOptimizationConfig(2).static_options() == {"full_graph": True, "backend": "CINN"}
