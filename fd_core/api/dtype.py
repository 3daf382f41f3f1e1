"""Element types: DLPack's code and width under the field's usual names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

# DLPack type codes (dlpack.h, DLDataTypeCode).
_INT, _UINT, _FLOAT, _BFLOAT, _BOOL, _FLOAT8_E4M3FN = 0, 1, 2, 4, 6, 10


@dataclass(frozen=True, slots=True)
class DType:
    """An element type. `code` and `bits` are DLPack's."""

    name: str
    code: int
    bits: int

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.bits // 8

    def numpy(self) -> np.dtype[Any]:
        """The NumPy type (through ml_dtypes for the types NumPy lacks)."""
        import numpy as np

        if self.code in (_BFLOAT, _FLOAT8_E4M3FN):
            import ml_dtypes

            return np.dtype(getattr(ml_dtypes, self.name))  # type: ignore[no-any-return]
        return np.dtype(self.name)

    def __str__(self) -> str:
        return self.name


float32 = DType("float32", _FLOAT, 32)
float64 = DType("float64", _FLOAT, 64)
float16 = DType("float16", _FLOAT, 16)
bfloat16 = DType("bfloat16", _BFLOAT, 16)
float8_e4m3fn = DType("float8_e4m3fn", _FLOAT8_E4M3FN, 8)
int8 = DType("int8", _INT, 8)
int16 = DType("int16", _INT, 16)
int32 = DType("int32", _INT, 32)
int64 = DType("int64", _INT, 64)
uint8 = DType("uint8", _UINT, 8)
uint16 = DType("uint16", _UINT, 16)
uint32 = DType("uint32", _UINT, 32)
uint64 = DType("uint64", _UINT, 64)
bool_ = DType("bool", _BOOL, 8)

ALL: tuple[DType, ...] = (
    float32, float64, float16, bfloat16, float8_e4m3fn,
    int8, int16, int32, int64, uint8, uint16, uint32, uint64, bool_,
)  # fmt: skip
FLOATS: tuple[DType, ...] = (float32, float16, bfloat16)

_BY_NAME = {t.name: t for t in ALL}
_BY_CODE = {(t.code, t.bits): t for t in ALL}


def dtype(name: str | DType) -> DType:
    """The element type called `name`; raises ValueError naming the known ones."""
    if isinstance(name, DType):
        return name
    try:
        return _BY_NAME[name]
    except KeyError:
        raise ValueError(f"unknown dtype {name!r}; known: {', '.join(_BY_NAME)}") from None


def from_dlpack_code(code: int, bits: int) -> DType:
    """The element type with DLPack's (code, bits); raises ValueError for one we do not carry."""
    try:
        return _BY_CODE[(code, bits)]
    except KeyError:
        raise ValueError(f"DLPack type (code {code}, {bits} bits) is not supported") from None
