"""Muon: momentum whose matrix updates are made orthogonal, batched over equal shapes."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

# A quintic that pushes singular values towards 1; five rounds are enough for bfloat16.
ROUNDS, A, B, C = 5, 3.4445, -4.7750, 2.0315


def orthogonalise(batch: Tensor) -> Tensor:
    """Return the nearest semi-orthogonal matrices, roughly, to a batch of matrices."""
    tall = batch.shape[-2] > batch.shape[-1]
    x = (batch.mT if tall else batch).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return (x.mT if tall else x).to(batch.dtype)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the layers' matrices, for Muon, and everything else, for AdamW."""
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed" not in name]
    return matrices, [p for name, p in named if p.ndim != 2 or "embed" in name]


class Muon(torch.optim.Optimizer):
    """Steps matrices with orthogonalised Nesterov momentum and decoupled weight decay."""

    def __init__(self, params: list[nn.Parameter], decay: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": 0.0, "decay": decay, "momentum": momentum})
        self.groups: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
        for param in params:
            self.groups[param.shape].append(param)
        self.velocity: dict[torch.Size, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        options = self.param_groups[0]
        for shape, params in self.groups.items():
            grad = torch.stack([param.grad for param in params])
            velocity = self.velocity.setdefault(shape, torch.zeros_like(grad))
            velocity.lerp_(grad, 1 - options["momentum"])
            update = orthogonalise(grad.lerp(velocity, options["momentum"]))
            scale = options["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(params, 1 - options["lr"] * options["decay"])
            torch._foreach_add_(params, list(update.unbind()), alpha=-scale)
