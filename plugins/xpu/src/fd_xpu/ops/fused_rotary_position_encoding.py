"""fused_rotary_position_encoding: rotate query and key heads in place."""

from __future__ import annotations

from fd_xpu import fused
from fd_xpu.call import PaddleKernel
from fd_xpu.compute import Value, check, check_range, f32, take_rows
from fd_xpu.framework import paddle

OPERATOR = "fused_rotary_position_embedding"


@PaddleKernel
def fused_rotary_position_encoding(
    query: Value, key: Value, position_ids: Value, cos_sin_cache: Value, head_size: int, is_neox: bool
) -> tuple[Value, Value]:
    """Fused for halves that cover the whole head; composed otherwise."""
    name, (positions, rotary) = "fused_rotary_position_encoding", cos_sin_cache.shape
    fits = rotary % 2 == 0 and rotary <= head_size
    check(fits, f"{name}.cos_sin_cache", f"an even rotary dimension <= {head_size}", rotary)
    for x, argument in ((query, "query"), (key, "key")):
        whole = x.shape[1] % head_size == 0 if x.ndim == 2 else x.shape[2] == head_size
        check(whole, f"{name}.{argument}", f"heads of {head_size}", list(x.shape))
    position_ids = check_range(f"{name}.position_ids", position_ids, 0, positions)
    rows = take_rows(cos_sin_cache, position_ids)
    heads = [x.reshape([x.shape[0], -1, head_size]) for x in (query, key)]
    if is_neox and rotary == head_size and fused.has(OPERATOR, query):
        done = rotate_fused(heads[0], heads[1], rows.astype(query.dtype))
    else:
        cos, sin = paddle.split(f32(rows).unsqueeze(1), 2, axis=-1)
        done = tuple(rotate(x, cos, sin, is_neox) for x in heads)
    return done[0].reshape(query.shape), done[1].reshape(key.shape)


def rotate(x: Value, cos: Value, sin: Value, neox: bool) -> Value:
    """x [T, H, D]; cos, sin [T, 1, R/2] float32. Dimensions from R on keep their bits."""
    half = cos.shape[-1]
    turned, rest = f32(x[..., : 2 * half]), x[..., 2 * half :]
    a, b = (turned[..., :half], turned[..., half:]) if neox else (turned[..., ::2], turned[..., 1::2])
    pair = [a * cos - b * sin, b * cos + a * sin]
    done = paddle.concat(pair, -1) if neox else paddle.stack(pair, -1).reshape(turned.shape)
    return paddle.concat([done.astype(x.dtype), rest], -1) if rest.shape[-1] else done


def rotate_fused(query: Value, key: Value, rows: Value) -> tuple[Value, Value]:
    """Paddle's operator over one sequence of all tokens. What it calls the NeoX style is pairs of
    neighbours, so halves are its other style; its tables hold each value twice."""
    cos, sin = (paddle.concat([t, t], -1).unsqueeze([0, 2]) for t in paddle.split(rows, 2, axis=-1))
    operator = paddle.incubate.nn.functional.fused_rotary_position_embedding
    done = operator(query.unsqueeze(0), key.unsqueeze(0), sin=sin, cos=cos, use_neox_rotary_style=False)
    return done[0].squeeze(0), done[1].squeeze(0)
