"""Version of the plug-in interface, independent of the release number."""

from __future__ import annotations

from pathlib import Path

#: (major, minor). Minor grows by additions only; a removal or a change of meaning raises major.
PLUGIN_API: tuple[int, int] = (1, 0)

#: Plug-ins tested against an older major than this one's are refused.
OLDEST_PLUGIN_API: tuple[int, int] = (1, 0)


def include_folder() -> Path:
    """The C++ headers for plug-ins: exports over TVM-FFI's C ABI, argument checks, the build's stamp."""
    return Path(__file__).parents[1] / "include"
