"""What a decoder's blocks read from and add to."""

from __future__ import annotations

from fd_core.api.tensor import Tensor
from fd_core.layers.norm import RMSNorm


class Residual:
    """The sum so far, and the part that the last layer made.

    `total`, `part` [tokens, hidden]. A layer that cannot add to the sum itself leaves its result in
    `part` (`pending`), because adding it and norming the sum are one op. `fuse`: whether layers may take
    norm and addition along (`Linear.normed`, `Linear.onto`).
    """

    __slots__ = ("fuse", "part", "pending", "rows", "total")

    def __init__(self, total: Tensor, part: Tensor, fuse: bool = True) -> None:
        self.total, self.part, self.fuse = total, part, fuse
        self.rows = total.shape[0]
        self.pending = False

    def normed(self, norm: RMSNorm) -> Tensor:
        """norm(sum), the pending part included; in the memory of `part`."""
        if self.pending:
            norm.add(self.part, self.total)
        else:
            norm(self.total, self.part)
        self.pending = False
        return self.part
