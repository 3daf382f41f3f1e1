"""What this machine tells of Kunlun XPUs and of Paddle, read from files: nothing is imported or opened.

Sources. /dev/xpu<N> and /dev/xpuctrl: the driver's device nodes, one a chip, and its control node.
/proc/kunlun/version: the kernel driver and its release. PCI vendors 1d22 and 2057, devices 3684 (second
generation) and 3686 to 3689 (P800): Paddle's installation guide. libxpurt.so: the runtime (XRE), which
Paddle's XPU build also carries in `paddle/libs`. `paddle/version/__init__.py`: what a build was made of.
None of these paths has been seen by us on hardware (docs/xpu.md).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

PCI_VENDORS = ("0x1d22", "0x2057")
#: PCI device id -> architecture.
CHIPS = {"0x3684": "r200", **dict.fromkeys(("0x3686", "0x3687", "0x3688", "0x3689"), "p800")}
#: Where the runtime's library is looked for besides LD_LIBRARY_PATH and Paddle's own folder.
RUNTIME_FOLDERS = ("opt/xre/so", "usr/local/xpu/so", "usr/local/lib", "usr/lib", "usr/lib64")
RUNTIME = "libxpurt.so*"
_RELEASE = re.compile(r"\b\d+(?:\.\d+)+\b")
_SETTING = re.compile(r"^(\w+)\s*=\s*['\"]?([^'\"\n]*)['\"]?\s*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Paddle:
    """An installed Paddle. `xre`: the XPU runtime release it was built for, "" for a build without."""

    version: str
    xre: str = ""
    folder: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """`nodes`: device nodes in order; `closed`: those that this user may not open. `driver`: release of
    the kernel driver, "" if unknown. `runtime`: the library found. `chips`: architectures by PCI slot."""

    nodes: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    control: bool = False
    driver: str = ""
    runtime: str = ""
    chips: tuple[str, ...] = ()
    paddle: Paddle | None = None


def gather(root: Path = Path("/")) -> Facts:
    """Everything the verdict depends on. `root`: where / is (for tests and images)."""
    paddle = find_paddle()
    nodes = visible(device_nodes(root / "dev"))
    return Facts(
        nodes=tuple(map(str, nodes)),
        closed=tuple(str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)),
        control=(root / "dev/xpuctrl").exists(),
        driver=driver_release(root / "proc/kunlun/version"),
        runtime=next(map(str, runtime_libraries(root, paddle)), ""),
        chips=tuple(pci_chips(root / "sys/bus/pci/devices")),
        paddle=paddle,
    )


def device_nodes(folder: Path) -> list[Path]:
    """/dev/xpu0, /dev/xpu1, ... by number; not /dev/xpuctrl."""
    found = [node for node in folder.glob("xpu*") if node.name[3:].isdigit()]
    return sorted(found, key=lambda node: int(node.name[3:]))


def visible(nodes: list[Path]) -> list[Path]:
    """Those that XPU_VISIBLE_DEVICES ("0,2") leaves, in its order; all where it is not set."""
    wanted = os.environ.get("XPU_VISIBLE_DEVICES", "").strip()
    by_number = {node.name[3:]: node for node in nodes}
    names = [part.strip() for part in wanted.split(",")] if wanted else list(by_number)
    return [by_number[name] for name in names if name in by_number]


def driver_release(file: Path) -> str:
    """The first dotted number of the line that names the driver; "" if there is none."""
    for line in read(file).splitlines():
        found = _RELEASE.search(line) if "kunlun" in line.lower() else None
        if found:
            return found.group()
    return ""


def runtime_libraries(root: Path, paddle: Paddle | None) -> Iterator[Path]:
    named = [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if part]
    own = [Path(paddle.folder) / "libs"] if paddle and paddle.folder else []
    for folder in [*named, *(root / part for part in RUNTIME_FOLDERS), *own]:
        yield from sorted(folder.glob(RUNTIME))


def pci_chips(folder: Path) -> Iterator[str]:
    """Architecture of every chip on the bus, in the order of its address."""
    for device in sorted(folder.glob("*")):
        if read(device / "vendor").strip() in PCI_VENDORS:
            yield CHIPS.get(read(device / "device").strip(), "unknown")


def find_paddle() -> Paddle | None:
    """The Paddle that `import paddle` would import, described by its version file."""
    spec = find_spec("paddle")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    return described(read(folder / "version/__init__.py"), str(folder))


def described(text: str, folder: str = "") -> Paddle:
    """`text`: the version file, assignments of strings."""
    values = dict(_SETTING.findall(text))
    xre = values.get("xpu_xre_version", "")
    return Paddle(values.get("full_version", ""), "" if xre in ("False", "None") else xre, folder)


def read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
