"""This plug-in's environment variables: the manifest repeats them (a test compares). Imports nothing."""

from __future__ import annotations

from typing import Any

VARIABLES: tuple[dict[str, Any], ...] = (
    {
        "name": "FD_XPU_PLACE",
        "choices": ("xpu", "cpu"),
        "doc": "cpu: Paddle's CPU place stands in for the device, and every report says so; unset: XPUs.",
    },
    {
        "name": "FD_XPU_FUSED",
        "kind": "switch",
        "default": "1",
        "doc": "Use Paddle's fused operators where its build has them; 0: compositions only.",
    },
    {
        "name": "FD_XPU_CHECK_IDS",
        "kind": "switch",
        "doc": "Check ids and lengths before each call, which waits for the device; "
        "unset: on the stand-in only.",
    },
)
