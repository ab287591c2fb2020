"""What every training stage shares: steps, a rate, a log, and checkpoints to resume from.

A stage is a folder under `--work`: `state.pt` (weights, average, optimizers, step) and
`log.jsonl` (a line every few steps). Randomness comes from the seed and the step, so a stage
that is stopped and resumed sees the data that it would have seen.
"""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.tiny.optim import Average

Rates = Callable[[float], float]


@dataclass(frozen=True)
class Budget:
    """How long a stage trains. `steps` may be reached in several runs."""

    steps: int
    save_every: int = 100
    log_every: int = 20
    stop_after_minutes: float = math.inf
    rate: float = 1.0
    """What the stage's own rates are multiplied by."""


def cosine(progress: float, warm: float = 0.02) -> float:
    """A rate's factor: up in the first two hundredths, then down to a hundredth."""
    if progress < warm:
        return progress / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (progress - warm) / (1 - warm)))


def plateau(progress: float) -> float:
    """A rate's factor: up, level until six tenths, then straight down to a fiftieth."""
    if progress < 0.03:
        return progress / 0.03
    return 1.0 if progress < 0.6 else max(0.02, (1 - progress) / 0.4)


def rank() -> int:
    """Which of the processes that train together this is; 0 where there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def numpy_rng(seed: int, step: int) -> np.random.Generator:
    """The generator of one step's data, another on each process."""
    return np.random.default_rng([seed, step, rank()])


def torch_rng(seed: int, step: int) -> torch.Generator:
    """The generator of one step's noise, another on each process."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) * 64 + rank())


def agree(module: nn.Module, stop: bool) -> bool:
    """Average the gradients over the processes that train together; whether any must stop."""
    if not dist.is_initialized():
        return stop
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    flat = torch.cat([*(g.reshape(-1) for g in grads), torch.tensor([float(stop)])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = flat[:-1].split([g.numel() for g in grads])
    for grad, part in zip(grads, parts, strict=True):
        grad.copy_(part.view_as(grad))
    return bool(flat[-1] > 0)


def train(
    folder: Path,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    step_loss: Callable[[int], tuple[Tensor, dict[str, float]]],
    budget: Budget,
    *,
    decay: float = 0.995,
    rate: Rates = cosine,
    clip: float = 1.0,
) -> Average:
    """Run a stage to its budget, from its last checkpoint if there is one.

    `step_loss(step)` gives the loss to follow and what to log. Returns the averaged weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    average = Average(module, decay)
    base = [[g["lr"] for g in o.param_groups] for o in optimizers]
    step = _resume(folder, module, average, optimizers)
    began, count = time.monotonic(), 0
    sums: dict[str, list[float]] = {}
    while step < budget.steps:
        factor = budget.rate * rate(step / budget.steps)
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, lr in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = lr * factor
        loss, figures = step_loss(step)
        loss.backward()
        spent = time.monotonic() - began
        out_of_time = agree(module, spent > budget.stop_after_minutes * 60)
        norm = nn.utils.clip_grad_norm_(module.parameters(), clip)
        for optimizer in optimizers:
            if torch.isfinite(norm):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        average.update(module, step)
        step += 1
        count += 1
        for name, value in {"loss": float(loss.detach()), **figures}.items():
            sums.setdefault(name, []).append(value)
        if step % budget.log_every == 0:
            means = {name: round(float(np.mean(values)), 5) for name, values in sums.items()}
            pace = (time.monotonic() - began) / count
            _log(folder, {"step": step, **means, "s/step": round(pace, 3)})
            sums = {}
        if step % budget.save_every == 0 or step == budget.steps or out_of_time:
            _save(folder, module, average, optimizers, step)
        if out_of_time:
            break
    return average


def _log(folder: Path, line: dict[str, Any]) -> None:
    if rank() != 0:
        return
    with (folder / "log.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    sys.stdout.write(f"{folder.name} {line}\n")
    sys.stdout.flush()


def _save(
    folder: Path,
    module: nn.Module,
    average: Average,
    optimizers: list[torch.optim.Optimizer],
    step: int,
) -> None:
    if rank() != 0:
        return
    state = {
        "step": step,
        "module": module.state_dict(),
        "average": average.weights,
        "optimizers": [o.state_dict() for o in optimizers],
    }
    partial = folder / "state.partial"
    torch.save(state, partial)
    partial.replace(folder / "state.pt")


def begin_stage(folder: Path, module: nn.Module, step: int) -> None:
    """Write a stage's first checkpoint: a module's weights, and nothing in the optimizers.

    Raises:
        FileExistsError: the stage has begun already.
    """
    folder.mkdir(parents=True)
    _save(folder, module, Average(module, 0.0), [], step)


def _resume(
    folder: Path, module: nn.Module, average: Average, optimizers: list[torch.optim.Optimizer]
) -> int:
    path = folder / "state.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    average.weights = state["average"]
    if state["optimizers"]:
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    return int(state["step"])


def averaged(folder: Path, module: nn.Module) -> nn.Module:
    """The module with a finished stage's averaged weights, in evaluation mode."""
    state = torch.load(folder / "state.pt", weights_only=True)
    module.load_state_dict(state["average"])
    return module.eval()
