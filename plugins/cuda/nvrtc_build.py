"""Machine code for architectures that nvcc 13 no longer knows (sm_70), by NVRTC 12.9.

    python nvrtc_build.py --arch sm_70 --out build/sm_70.cc rms_norm.cu=rms_norm.o swiglu.cu=swiglu.o

Each source is given with the object nvcc made of it: the kernels' names are read from there, so that both
compilers make the same ones. The result is a C++ file that holds the machine code of all sources;
csrc/embedded.cc finds a kernel in it by name and launches it through the driver.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import subprocess
import sys
from ctypes import byref, c_char_p, c_size_t, c_void_p
from pathlib import Path

HERE = Path(__file__).resolve().parent
_STUB = re.compile(r"L(\d+)(__device_stub__Z\w+)")


def site_folders() -> list[Path]:
    """Where pip puts the toolkit's parts."""
    return [Path(folder) / "nvidia" for folder in sys.path if (Path(folder) / "nvidia").is_dir()]


def find(pattern: str) -> Path:
    """The first match under the site folders; SystemExit names what to install."""
    for folder in site_folders():
        for match in sorted(folder.glob(pattern)):
            return match
    raise SystemExit(
        f"fd-cuda: sm_70 needs nvidia/{pattern}; pip install nvidia-cuda-nvrtc-cu12==12.9.* "
        "nvidia-cuda-runtime-cu12==12.9.*, or leave 70 out of FD_CUDA_ARCHS"
    )


def kernel_names(obj: Path) -> list[str]:
    """Mangled names of the kernels that an object launches."""
    text = subprocess.run(["nm", str(obj)], capture_output=True, text=True, check=True).stdout
    stubs = {match[2][: int(match[1])] for match in _STUB.finditer(text)}
    return sorted(stub.removeprefix("__device_stub_") for stub in stubs)


def expression(demangled: str) -> str:
    """ "void fd::k<float>(float const*)" -> "fd::k<float>"."""
    depth = 0
    for at in range(len(demangled) - 1, -1, -1):
        depth += (demangled[at] == ")") - (demangled[at] == "(")
        if depth == 0:
            return demangled[:at].removeprefix("void ")
    raise SystemExit(f"fd-cuda: want a kernel's name, have {demangled!r}")


def demangle(names: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


class Program:
    """One NVRTC compilation."""

    def __init__(self, source: Path) -> None:
        self.lib = ctypes.CDLL(str(find("cuda_nvrtc/lib/libnvrtc.so.12")))
        self.lib.nvrtcGetErrorString.restype = c_char_p
        self.source = source
        self.handle = c_void_p()
        text = source.read_bytes()
        self._call("CreateProgram", byref(self.handle), text, source.name.encode(), 0, None, None)

    def _call(self, name: str, *args: object) -> None:
        code = getattr(self.lib, f"nvrtc{name}")(*args)
        if code:
            what = self.lib.nvrtcGetErrorString(code).decode()
            raise SystemExit(f"{self.source.name}: nvrtc{name}: {what}\n{self.log()}")

    def log(self) -> str:
        size = c_size_t()
        self.lib.nvrtcGetProgramLogSize(self.handle, byref(size))
        text = ctypes.create_string_buffer(max(size.value, 1))
        self.lib.nvrtcGetProgramLog(self.handle, text)
        return text.value.decode(errors="replace")

    def compile(self, arch: str, names: list[str]) -> bytes:
        """The machine code. SystemExit if a kernel would get another name than nvcc gave it."""
        wanted = [expression(text).encode() for text in demangle(names)]
        for one in wanted:
            self._call("AddNameExpression", self.handle, one)
        includes = [HERE / "csrc/include", find("cuda_runtime/include")]
        options = [f"--gpu-architecture={arch}", "-std=c++17", "-w", *(f"-I{path}" for path in includes)]
        array = (c_char_p * len(options))(*(option.encode() for option in options))
        self._call("CompileProgram", self.handle, len(options), array)
        self._check_names(names, wanted)
        size = c_size_t()
        self._call("GetCUBINSize", self.handle, byref(size))
        code = ctypes.create_string_buffer(size.value)
        self._call("GetCUBIN", self.handle, code)
        return code.raw

    def _check_names(self, names: list[str], wanted: list[bytes]) -> None:
        for name, one in zip(names, wanted, strict=True):
            found = c_char_p()
            self._call("GetLoweredName", self.handle, one, byref(found))
            if (found.value or b"").decode() != name:
                raise SystemExit(f"{self.source.name}: want kernel {name}, NVRTC calls it {found.value!r}")


def table(units: list[tuple[list[str], bytes]]) -> str:
    """The C++ file: machine code, and each kernel's host function (by its symbol) with its name."""
    code, symbols, rows = [], [], []
    for unit, (names, data) in enumerate(units):
        numbers = ",".join(map(str, data))
        code.append(f"alignas(8) static const unsigned char data{unit}[] = {{{numbers}}};")
        code.append(f"static const fd::EmbeddedCode code{unit}{{data{unit}, sizeof(data{unit})}};")
        for name in names:
            at = len(symbols)
            symbols.append(f'extern "C" void host{at}() __asm__("{name}");')
            rows.append(f'  {{reinterpret_cast<const void*>(host{at}), "{name}", &code{unit}}},')
    head = '#include "fd/embedded.h"\n'
    body = "namespace fd {\nconst EmbeddedKernel kEmbedded[] = {"
    end = "  {nullptr, nullptr, nullptr}};\n}  // namespace fd\n"
    return "\n".join([head, *code, *symbols, body, *rows, end])


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile kernels by NVRTC into one C++ file.")
    parser.add_argument("--arch", default="sm_70")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("pairs", nargs="*", metavar="SOURCE=OBJECT")
    args = parser.parse_args()
    units = []
    for pair in args.pairs:
        source, _, obj = pair.partition("=")
        names = kernel_names(Path(obj))
        if names:
            units.append((names, Program(Path(source)).compile(args.arch, names)))
    args.out.write_text(table(units), encoding="utf-8")


if __name__ == "__main__":
    main()
