"""Step 2 of loading: the static manifest, found without executing any of the plug-in's code."""

from __future__ import annotations

import platform
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fd_core.api.verdict import ReasonCode, Verdict
from fd_core.host.find import Found

if TYPE_CHECKING:
    from fd_core.api.manifest import Manifest


def locate(found: Found) -> Path | Verdict:
    """The folder of the plug-in's top-level package (which `find_spec` does not execute)."""
    top = found.module.partition(".")[0]
    try:
        spec = find_spec(top)
    except (ImportError, ValueError, AttributeError) as error:
        return _no_package(found, top, f"{type(error).__name__}: {error}")
    if spec is None or not spec.submodule_search_locations:
        return _no_package(found, top, "no such package" if spec is None else f"the file {spec.origin}")
    return Path(next(iter(spec.submodule_search_locations)))


def _no_package(found: Found, top: str, have: str) -> Verdict:
    fix = f"pip install --force-reinstall {found.distribution}"
    return Verdict.no(ReasonCode.IMPORT, str(found), f"a package {top}", have, fix)


def check(found: Found) -> tuple[Manifest | None, Verdict]:
    """The manifest and whether this host can load its plug-in."""
    folder = locate(found)
    if isinstance(folder, Verdict):
        return None, folder
    from fd_core.api.manifest import FILE, check_manifest, read_manifest

    if not (folder / FILE).is_file():
        fix = "the plug-in's build writes it: build and install the plug-in again"
        return None, Verdict.no(ReasonCode.MANIFEST, str(found), folder / FILE, "no file", fix)
    try:
        manifest = read_manifest(folder / FILE)
    except ValueError as error:
        fix = f"upgrade {found.distribution}, or fd-core if the plug-in is newer"
        return None, Verdict.no(ReasonCode.MANIFEST, str(found), "a valid manifest", error, fix)
    machine, ffi = platform.machine(), ffi_version()
    return manifest, check_manifest(manifest, str(found), system=sys.platform, machine=machine, ffi=ffi)


def ffi_version() -> str:
    """The installed apache-tvm-ffi release, "" when there is none."""
    import importlib_metadata

    try:
        return importlib_metadata.version("apache-tvm-ffi")
    except importlib_metadata.PackageNotFoundError:
        return ""
