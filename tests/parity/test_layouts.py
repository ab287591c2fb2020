"""Every family, dealt out over two and four ranks in each layout, makes what one process makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional

from pipeline.denoise import Denoiser
from pipeline.handoff import Conditioning
from pipeline.parallel import loading, tensor
from pipeline.parallel.layout import ParallelLayout
from pipeline.parallel.place import Place
from pipeline.parallel.tensor import RowNorm, TensorGroup
from tests.support.families import FAMILIES
from tests.support.ranks import run_ranks
from tests.support.staged import Staged, request_of

LAYOUTS = (
    ParallelLayout(tensor=2),
    ParallelLayout(guidance=2),
    ParallelLayout(tensor=4),
    ParallelLayout(tensor=2, guidance=2),
)
STEPS = 4
BOUND = 1e-5
"""Largest difference, relative to the largest value, in float32."""


def denoise(staged: Staged, conditioning: bytes, place: Place | None) -> dict[str, Any]:
    """Return the transformer's first prediction, and the latents of a whole clip."""
    denoiser = Denoiser(staged.graph, "cpu", place)
    first: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, __: Any, output: Any) -> None:
        if not first:
            made = output[0] if isinstance(output, tuple) else output
            first.append(made if isinstance(made, torch.Tensor) else made.sample)

    calls: list[None] = []
    for model in denoiser.stage.transformers():
        model.register_forward_hook(keep)
        attention = next(each for each in model.modules() if hasattr(each, "to_q"))
        attention.register_forward_hook(lambda *_: calls.append(None))
    request = request_of(staged.family, num_inference_steps=STEPS)
    session = denoiser.start(request, Conditioning.from_bytes(conditioning))
    session.advance(session.num_steps)
    return {
        "forward": [first[0].clone()],
        "latents": list(leaves(dict(session.latents().values))),
        "calls": len(calls),
    }


def leaves(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor of numbers in a tree, in order."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from leaves(each)


def denoise_all(folders: dict[str, Path], out: Path) -> None:
    """One rank's work: every family in every layout of so many ranks, then the mistakes."""
    world, rank = dist.get_world_size(), dist.get_rank()
    for layout in (each for each in LAYOUTS if each.ranks == world):
        place = Place.find(layout, "cpu")
        for name, folder in folders.items():
            conditioning = (out / f"{name}.conditioning").read_bytes()
            made = denoise(Staged(FAMILIES[name], folder), conditioning, place)
            torch.save(made, out / f"{name}.{layout}.{rank}.pt")
    if world != MUTANT_LAYOUT.ranks:
        return
    place = Place.find(MUTANT_LAYOUT, "cpu")
    staged = Staged(FAMILIES[MUTANT], folders[MUTANT])
    for name, mutate in MUTATIONS.items():
        with pytest.MonkeyPatch.context() as patch:
            mutate(patch)
            made = denoise(staged, (out / f"{MUTANT}.conditioning").read_bytes(), place)
        torch.save(made, out / f"{name}.mutant.{rank}.pt")


def norm_alone(patch: pytest.MonkeyPatch) -> None:
    """Let each rank norm over its own channels."""

    def forward(norm: RowNorm, x: torch.Tensor) -> torch.Tensor:
        return functional.rms_norm(x, x.shape[-1:], norm.weight, norm._eps)

    patch.setattr(RowNorm, "forward", forward)


def leave_heads(patch: pytest.MonkeyPatch) -> None:
    """Let each rank split its channels into as many heads as the whole model has."""
    whole = tensor.cut_transformer

    def cut(model: torch.nn.Module, plan: Any, group: TensorGroup) -> dict[str, int]:
        cuts = whole(model, plan, group)
        for each in model.modules():
            if hasattr(each, "to_q"):
                each.heads *= group.size
        return cuts

    patch.setattr(loading, "cut_transformer", cut)


def swap_shares(patch: pytest.MonkeyPatch) -> None:
    """Let each rank read another's columns, and its own rows."""
    read = loading._read_slices

    def swapped(folder: Path, cuts: Mapping[str, int], group: TensorGroup) -> Any:
        other = TensorGroup(group.size - 1 - group.rank, group.size, group.group)
        rows = {name: dim for name, dim in cuts.items() if dim == 1}
        columns = {name: dim for name, dim in cuts.items() if dim == 0}
        yield from (each for each in read(folder, rows, group) if each[0] not in columns)
        yield from (each for each in read(folder, columns, other) if each[0] in columns)

    patch.setattr(loading, "_read_slices", swapped)


MUTANT, MUTANT_LAYOUT = "ltx", ParallelLayout(tensor=2)
MUTATIONS = {"norm alone": norm_alone, "heads whole": leave_heads, "shares swapped": swap_shares}
"""Mistakes that run without an error, and must show in the numbers."""


@pytest.fixture(scope="module")
def made(checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each rank made of each family at each degree."""
    out = tmp_path_factory.mktemp("tensor-parallel")
    folders = {name: checkpoint_of(name) for name in FAMILIES}
    for name, folder in folders.items():
        staged = Staged(FAMILIES[name], folder)
        conditioning = staged.encoder.encode(
            request_of(staged.family, num_inference_steps=STEPS), staged.inputs
        ).to_bytes()
        (out / f"{name}.conditioning").write_bytes(conditioning)
        torch.save(denoise(staged, conditioning, None), out / f"{name}.alone.pt")
    for ranks in sorted({layout.ranks for layout in LAYOUTS}):
        run_ranks(ranks, out, denoise_all, folders, out)
    return out


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference over the largest value of `b`."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("name", list(FAMILIES))
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_equal_one_process(made: Path, name: str, layout: ParallelLayout) -> None:
    alone = torch.load(made / f"{name}.alone.pt")
    for rank in range(layout.ranks):
        shared = torch.load(made / f"{name}.{layout}.{rank}.pt")
        for part in ("forward", "latents"):
            assert len(shared[part]) == len(alone[part]) > 0
            for one, other in zip(shared[part], alone[part], strict=True):
                assert difference(one, other) <= BOUND, (rank, part)
        if layout.guidance > 1:
            assert shared["calls"] < 0.8 * alone["calls"]
        else:
            assert shared["calls"] == alone["calls"]


@pytest.mark.parametrize("mutation", list(MUTATIONS))
def test_a_mistake_shows(made: Path, mutation: str) -> None:
    alone = torch.load(made / f"{MUTANT}.alone.pt")
    mutant = torch.load(made / f"{mutation}.mutant.0.pt")
    assert difference(mutant["forward"][0], alone["forward"][0]) > 100 * BOUND
