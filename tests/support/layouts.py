"""Whole clips of every family in every layout, each rank a process, and what they differ by."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.denoise import Denoiser
from pipeline.handoff import Conditioning
from pipeline.parallel.context import find_context_plan
from pipeline.parallel.layout import ParallelLayout
from pipeline.parallel.place import Place
from pipeline.parallel.tensor import find_modules
from pipeline.recipe import Dtype
from tests.support.families import FAMILIES
from tests.support.ranks import run_ranks
from tests.support.staged import Staged, request_of

LAYOUTS = (
    ParallelLayout(tensor=2),
    ParallelLayout(context=2),
    ParallelLayout(guidance=2),
    ParallelLayout(tensor=4),
    ParallelLayout(tensor=2, context=2),
    ParallelLayout(tensor=2, guidance=2),
    ParallelLayout(context=2, guidance=2),
)
PAIRS = tuple(layout for layout in LAYOUTS if layout.ranks == 2)
BOTH = ParallelLayout(tensor=2, context=2)
WIDE_LAYOUTS = (
    ParallelLayout(tensor=2, context=2, guidance=2),
    ParallelLayout(context=4),
)
WIDE_NAMES = ("wan_vace", "ltx2", "hunyuan_video_15")
"""Families whose plans differ most: blocks of two kinds, sound, text among the tokens."""
STEPS = 4


def denoise(
    staged: Staged, conditioning: bytes, place: Place | None, **changes: Any
) -> dict[str, Any]:
    """Return the transformer's first prediction, and the latents of a whole clip."""
    denoiser = Denoiser(staged.graph, "cpu", place)
    first: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, __: Any, output: Any) -> None:
        if not first:
            made = output[0] if isinstance(output, tuple) else output
            first.append(made if isinstance(made, torch.Tensor) else made.sample)

    calls: list[int] = []

    def count(_: torch.nn.Module, args: tuple[torch.Tensor], __: Any) -> None:
        calls.append(args[0].shape[1])

    for model in denoiser.stage.transformers():
        model.register_forward_hook(keep)
        _, attention = next(find_modules(model, find_context_plan(type(model)).attentions))
        attention.to_q.register_forward_hook(count)
    request = request_of(staged.family, num_inference_steps=STEPS, **changes)
    session = denoiser.start(request, Conditioning.from_bytes(conditioning))
    session.advance(session.num_steps)
    return {
        "forward": [first[0].clone()],
        "latents": list(leaves(dict(session.latents().values))),
        "calls": len(calls),
        "tokens": calls[0],
    }


def leaves(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor of numbers in a tree, in order."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)


def denoise_alone(folders: Mapping[str, Path], out: Path, dtype: Dtype) -> None:
    """Render every family in this process into `out`, and keep its conditioning for ranks."""
    for name, folder in folders.items():
        staged = Staged(FAMILIES[name], folder, dtype)
        request = request_of(staged.family, num_inference_steps=STEPS)
        conditioning = staged.encoder.encode(request, staged.inputs).to_bytes()
        (out / f"{name}.conditioning").write_bytes(conditioning)
        torch.save(denoise(staged, conditioning, None), out / f"{name}.alone.pt")


def denoise_shared(
    folders: Mapping[str, Path], out: Path, dtype: Dtype, layouts: Sequence[ParallelLayout]
) -> None:
    """One rank's work: every family in every layout of so many ranks, into `out`."""
    world, rank = dist.get_world_size(), dist.get_rank()
    for layout in (each for each in layouts if each.ranks == world):
        place = Place.find(layout, "cpu")
        for name, folder in folders.items():
            conditioning = (out / f"{name}.conditioning").read_bytes()
            made = denoise(Staged(FAMILIES[name], folder, dtype), conditioning, place)
            torch.save(made, out / f"{name}.{layout}.{rank}.pt")


def denoise_everywhere(
    folders: Mapping[str, Path],
    out: Path,
    dtype: Dtype = "float32",
    layouts: Sequence[ParallelLayout] = LAYOUTS,
) -> None:
    """Render every family alone and in every layout into `out`."""
    denoise_alone(folders, out, dtype)
    for ranks in sorted({layout.ranks for layout in layouts}):
        run_ranks(ranks, out, denoise_shared, dict(folders), out, dtype, layouts)


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Return the largest difference of two lists of tensors over the largest value of `other`."""
    return find_worst((a - b).abs().max() / b.abs().max() for a, b in zip(one, other, strict=True))


def find_worst(differences: Iterable[float | torch.Tensor]) -> float:
    """Return the largest; NaN if any is, which Python's `max` would pass over."""
    return float(torch.tensor([float(each) for each in differences]).max())


def differences(out: Path, name: str, layout: ParallelLayout) -> dict[str, float]:
    """Return a layout's largest difference, over its ranks, in a forward and in a whole clip."""
    alone = torch.load(out / f"{name}.alone.pt")
    shared = [torch.load(out / f"{name}.{layout}.{rank}.pt") for rank in range(layout.ranks)]
    return {
        part: find_worst(difference(each[part], alone[part]) for each in shared)
        for part in ("forward", "latents")
    }
