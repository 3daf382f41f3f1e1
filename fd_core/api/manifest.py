"""`fd_plugin.json`: what a plug-in needs, readable without importing it.

It lies in the plug-in's package folder and is written by the plug-in's build.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from fd_core.api.verdict import YES, ReasonCode, Verdict
from fd_core.api.version import OLDEST_PLUGIN_API, PLUGIN_API

FILE = "fd_plugin.json"
Version = tuple[int, int]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ApiRange(_Strict):
    """Plug-in API versions it was built and tested against, both ends included."""

    min: Version
    max: Version


class FfiRange(_Strict):
    """apache-tvm-ffi releases: `min` <= version < `below`."""

    min: str
    below: str


class EnvironmentVariable(_Strict):
    """As `fd_core.environ.Variable`; the owner is the distribution."""

    name: str
    doc: str
    kind: str = "text"
    default: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None


class Presence(_Strict):
    """What is there wherever the plug-in has a device: one of `paths` (absolute, `*` allowed) at least, or
    one of `libraries` that the dynamic loader finds. Where there is neither, no probe is started: the
    answer is NO_DEVICE with these words, which are the probe's own. `unless`: variables that, when set,
    call for the probe all the same.
    """

    paths: tuple[str, ...] = Field(min_length=1)
    libraries: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    subject: str
    want: str
    have: str
    fix: str


class Manifest(_Strict):
    """`os`: values of sys.platform, `arch`: of platform.machine(); empty lists allow all.

    `platforms`: names of the platforms it brings. `stamp`: facts of the build, which its binaries
    carry and export too; empty for a plug-in without one. `binaries`: patterns of their files.
    `presence`: None for a plug-in that has to be probed everywhere.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    version: str
    api: ApiRange
    ffi: FfiRange | None = None
    os: tuple[str, ...] = ()
    arch: tuple[str, ...] = ()
    platforms: tuple[str, ...] = ()
    environment: tuple[EnvironmentVariable, ...] = ()
    binaries: tuple[str, ...] = ()
    presence: Presence | None = None
    stamp: dict[str, Any] = Field(default_factory=dict)

    @field_validator("environment")
    @classmethod
    def _one_declaration_each(
        cls, rows: tuple[EnvironmentVariable, ...]
    ) -> tuple[EnvironmentVariable, ...]:
        names = [row.name for row in rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"environment variables declared twice: {twice}")
        return rows


def read_manifest(path: Path) -> Manifest:
    """Raises ValueError that names the file and every field that is wrong."""
    try:
        return Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {error}") from error


def check_manifest(
    manifest: Manifest,
    subject: str,
    *,
    system: str,
    machine: str,
    ffi: str,
    api: Version | None = None,
    oldest: Version | None = None,
) -> Verdict:
    """Can this host load the plug-in? `ffi` is the installed apache-tvm-ffi release; `api` and `oldest`
    are this host's own unless given."""
    verdict = _check_api(manifest.api, subject, api or PLUGIN_API, oldest or OLDEST_PLUGIN_API)
    if manifest.ffi is not None:
        verdict &= _check_ffi(manifest.ffi, subject, ffi)
    if manifest.os and system not in manifest.os:
        verdict &= Verdict.no(ReasonCode.OS, subject, " | ".join(manifest.os), system, _OTHER_WHEEL)
    if manifest.arch and machine not in manifest.arch:
        verdict &= Verdict.no(ReasonCode.OS, subject, " | ".join(manifest.arch), machine, _OTHER_WHEEL)
    return verdict


_OTHER_WHEEL = "install the wheel of this system, or build from source"


def _check_api(wants: ApiRange, subject: str, api: Version, oldest: Version) -> Verdict:
    want = f"plug-in API {_text(wants.min)} to {_text(wants.max)}"
    if api < wants.min:
        fix = "upgrade fd-core, or install an older release of the plug-in"
        return Verdict.no(ReasonCode.API_TOO_NEW, subject, want, f"fd-core with API {_text(api)}", fix)
    if wants.max < oldest:
        fix = "upgrade the plug-in, or install an older fd-core"
        have = f"fd-core with API {_text(oldest)} to {_text(api)}"
        return Verdict.no(ReasonCode.API_TOO_OLD, subject, want, have, fix)
    return YES


def _check_ffi(wants: FfiRange, subject: str, have: str) -> Verdict:
    if numbers(wants.min) <= numbers(have) < numbers(wants.below):
        return YES
    want = f"apache-tvm-ffi>={wants.min},<{wants.below}"
    return Verdict.no(ReasonCode.FFI, subject, want, have or "none", f'pip install "{want}"')


def numbers(version: str) -> tuple[int, ...]:
    """The release part of a version as integers: "0.1.15rc1" -> (0, 1, 15)."""
    found = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
        if digits != part:
            break
    return tuple(found)


def _text(version: Version) -> str:
    return ".".join(map(str, version))
