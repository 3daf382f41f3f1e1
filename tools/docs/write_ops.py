"""Writes docs/ops.md from the op catalogue.

python tools/docs/write_ops.py            # writes; a test compares file and catalogue
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from fd_core.api.kernel import Param, ParamKind
from fd_core.ops.catalogue import catalogue
from fd_core.ops.schema import OpDef

TARGET = Path(__file__).parents[2] / "docs" / "ops.md"
HEAD = """# Ops

Every op of the catalogue with its contract, written by `python tools/docs/write_ops.py`. Parameters are
in calling order; `in` is read, `inout` is changed in place, `out` is written (and may be left out of
`fd_core.ops.<name>(...)`, which then makes it); `?` may be None. The NumPy oracle, the test cases and the
tolerance of an op are in `fd_core/ops/<family>/<op>.py`.
"""


def parameter(param: Param) -> str:
    if param.kind is not ParamKind.ATTR:
        return f"{param.name}: {param.kind.value}{'?' if param.optional else ''}"
    kind = getattr(param.type, "__name__", str(param.type))
    return f"{param.name}: {kind}" + ("" if param.required else f" = {param.default!r}")


def section(definition: OpDef) -> str:
    spec = definition.spec
    call = ", ".join(parameter(p) for p in spec.params)
    tolerance = definition.tolerance.because
    return f"### {spec.name}\n\n```\n{spec.name}({call})\n```\n\n{spec.doc}\n\nTolerance: {tolerance}.\n"


def text() -> str:
    ops = sorted(catalogue().values(), key=lambda d: (d.spec.family, d.name))
    parts = [HEAD]
    for family, members in groupby(ops, key=lambda d: d.spec.family):
        parts.append(f"## {family}\n")
        parts += [section(member) for member in members]
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
