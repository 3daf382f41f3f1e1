"""fd-cpu's thread pool: many callers, many regions, forks; processors by name."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import pytest

from fd_core.api.tensor import from_numpy

library = pytest.importorskip("fd_cpu.library", reason="fd-cpu is not installed")


@pytest.fixture(autouse=True)
def threads() -> Any:
    """Four threads whatever the machine has; the usual number afterwards."""
    try:
        library.set_threads(4)
    except RuntimeError as error:
        pytest.skip(str(error))
    yield
    library.set_threads(library.thread_count())


def product(x: Any, weight: Any) -> Any:
    out = np.empty((len(x), len(weight)), np.float32)
    library.linear(from_numpy(x), from_numpy(weight), None, from_numpy(out))
    return out


def inputs(seed: int) -> tuple[Any, Any]:
    """Small products whose sums are exact, large enough to be divided between threads."""
    rng = np.random.default_rng(seed)
    return tuple(rng.integers(-3, 4, shape).astype(np.float32) for shape in ((3, 64), (2048, 64)))  # type: ignore[return-value]


def test_callers_on_many_threads_get_their_own_results() -> None:
    wrong: list[int] = []

    def call(seed: int) -> None:
        x, weight = inputs(seed)
        want = x @ weight.T
        for _ in range(200):
            if not np.array_equal(product(x, weight), want):
                wrong.append(seed)

    callers = [threading.Thread(target=call, args=(seed,)) for seed in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert not any(caller.is_alive() for caller in callers)
    assert wrong == []


def test_the_number_of_threads_may_change_between_calls() -> None:
    x, weight = inputs(9)
    want = x @ weight.T
    for count in (1, 3, 2, 8, 1, 5):
        library.set_threads(count)
        assert np.array_equal(product(x, weight), want)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_with_threads_of_its_own() -> None:
    x, weight = inputs(11)
    want = product(x, weight)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(product(x, weight), want) else 3)
    assert os.waitpid(child, 0)[1] == 0


def test_pinned_threads_compute_the_same() -> None:
    x, weight = inputs(13)
    cpus = np.array(sorted(os.sched_getaffinity(0)), np.int32)
    try:
        library.set_affinity(from_numpy(cpus))
        assert np.array_equal(product(x, weight), x @ weight.T)
    finally:
        library.set_affinity(from_numpy(cpus[:0]))


def test_processors_are_read_from_a_list() -> None:
    assert library.parse_processors("0-2, 7", range(8)) == [0, 1, 2, 7]


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "1,,2", "0x1"])
def test_a_list_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="FD_CPU_AFFINITY: want processors such as 0-3,8"):
        library.parse_processors(text, range(8))


@pytest.mark.parametrize("text", ["8", "0-9", "3-1"])
def test_processors_that_may_not_be_used_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"FD_CPU_AFFINITY: want processors of \[0, 1"):
        library.parse_processors(text, range(8))
