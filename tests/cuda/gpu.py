"""The session of tests that need a GPU."""

from __future__ import annotations

import pytest
from fd_cuda import library

from fd_core.host.errors import FdError
from fd_core.host.session import Session, open_session


def gpu_session(*exports: str) -> Session:
    """A session on the first GPU; skips the test where there is none, or no kernel called as one of
    `exports` is in the loaded libraries."""
    try:
        found = open_session("cuda", fallback="allow")
        for name in exports:
            library.function(name)
    except (FdError, AttributeError) as error:
        pytest.skip(f"no GPU or no kernel: {error}")
    return found
