"""Tensors that an older argument list leaves out and the op needs."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.host.errors import UnsupportedOpError
from fd_core.host.session import current_session
from fd_core.ops.guest import exporter, to_tensor

Array = np.ndarray[Any, Any]


def host(value: Any) -> Array:
    """A host array with the contents of anybody's tensor; waits for the device."""
    session = current_session()
    return session.platform.to_host(to_tensor(value, session.platform, session.device.device, False))


def like(example: Any, array: Array) -> Any:
    """`array` as a tensor of `example`'s library, on the session's device."""
    return exporter(example)(current_session().platform.from_host(array))


def zeros(example: Any, shape: tuple[int, ...], kind: str = "int64") -> Any:
    return like(example, np.zeros(shape, kind))


def refuse(op: str, argument: str, have: object, fix: str) -> NoReturn:
    """UnsupportedOpError for an option that no op of the catalogue has."""
    verdict = Verdict.no(ReasonCode.NO_KERNEL, f"{op}.{argument}", "its default", have, fix)
    raise UnsupportedOpError(f"operator {op!r}: {verdict}", verdict)
