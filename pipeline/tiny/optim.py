"""Muon for convolution weights, AdamW for the rest, and a moving average of weights."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def _orthogonal(update: Tensor) -> Tensor:
    """The nearest matrix with all singular values about 1: five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = (update / (update.norm() + 1e-7)).bfloat16()
    flipped = x.shape[0] > x.shape[1]
    x = x.T if flipped else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if flipped else x).to(update.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for weights of any rank seen as (out, everything else).

    `torch.optim.Muon` takes matrices only; a convolution's weight is one once flattened.
    The rate is the size of a step in the spectral norm.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        """Weights of two or more dimensions, the size of a step, and how long it remembers."""
        super().__init__(list(params), {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step on the gradients there are."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum: Tensor = state["momentum"].mul_(group["momentum"]).add_(p.grad)
                ahead = p.grad.add(momentum, alpha=group["momentum"])
                matrix = ahead.reshape(p.shape[0], -1)
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                p.add_(_orthogonal(matrix).view_as(p), alpha=-group["lr"] * scale)


def optimizers(
    parameters: Iterable[nn.Parameter], muon_rate: float, adam_rate: float
) -> list[torch.optim.Optimizer]:
    """Muon for weights of two or more dimensions that are wide enough, AdamW for the others."""
    wide: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for p in parameters:
        if p.requires_grad:
            is_matrix = p.ndim >= 2 and p.shape[0] >= 8 and p[0].numel() >= 8
            (wide if is_matrix else rest).append(p)
    made: list[torch.optim.Optimizer] = []
    if wide:
        made.append(Muon(wide, muon_rate))
    if rest:
        made.append(torch.optim.AdamW(rest, adam_rate, betas=(0.9, 0.98), weight_decay=0.0))
    return made


class Average:
    """An exponential moving average of a module's weights, in fp32."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Start from the module's weights; `decay` is the share kept at each step."""
        self.decay = decay
        self.weights = {k: v.detach().clone().float() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Draw the average nearer; early steps count more."""
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, value in module.state_dict().items():
            self.weights[name].lerp_(value.float(), 1 - keep)


def calm_malloc() -> None:
    """Keep glibc from giving freed tensors back to the system at once: a third of the time.

    Does nothing where the C library has no `mallopt`.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        library.mallopt(mmap_threshold, 1 << 30)
        library.mallopt(trim_threshold, (1 << 31) - 1)
