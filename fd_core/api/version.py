"""Version of the plug-in interface, independent of the release number."""

from __future__ import annotations

#: (major, minor). Minor grows by additions only; a removal or a change of meaning raises major.
PLUGIN_API: tuple[int, int] = (1, 0)

#: Plug-ins tested against an older major than this one's are refused.
OLDEST_PLUGIN_API: tuple[int, int] = (1, 0)
