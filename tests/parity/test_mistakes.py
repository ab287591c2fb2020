"""Mistakes in dealing a clip out that run without an error must show in the numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from diffusers.models._modeling_parallel import ContextParallelInput
from torch import Tensor
from torch.nn import functional

from pipeline.parallel import context, loading, tensor
from pipeline.parallel.context import ContextGroup
from pipeline.parallel.guidance import HALVES, GuidanceGroup
from pipeline.parallel.layout import ParallelLayout
from pipeline.parallel.place import Place
from pipeline.parallel.tensor import GatheredLinear, RowNorm, TensorGroup
from tests.support.families import FAMILIES
from tests.support.layouts import denoise, denoise_alone, difference
from tests.support.ranks import run_ranks
from tests.support.staged import Staged

BOUND = 1e-5
"""What ranks may differ by: as in `test_layouts`."""
NAMES = ("wan21", "wan_vace", "ltx", "ltx2", "hunyuan_video_15", "helios")
NORMED = ("wan21", "wan_vace", "ltx", "ltx2", "helios")
"""Families with norms across heads."""
UNFIXED = ("ltx", "ltx2")
"""Families whose rotary tables would fit heads of another size; others fail."""


def norm_alone(patch: pytest.MonkeyPatch) -> None:
    """Let each rank norm over its own channels."""

    def forward(norm: RowNorm, x: Tensor) -> Tensor:
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

    def swapped(folder: Path, cuts: Mapping[str, int], group: TensorGroup, *rest: Any) -> Any:
        other = TensorGroup(group.size - 1 - group.rank, group.size, group.group)
        rows = {name: dim for name, dim in cuts.items() if dim == 1}
        columns = {name: dim for name, dim in cuts.items() if dim == 0}
        yield from (each for each in read(folder, rows, group, *rest) if each[0] not in columns)
        yield from (each for each in read(folder, columns, other, *rest) if each[0] in columns)

    patch.setattr(loading, "_read_slices", swapped)


def repeat_outputs(patch: pytest.MonkeyPatch) -> None:
    """Let each rank take its own outputs for the others' too."""

    def forward(layer: GatheredLinear, x: Tensor) -> Tensor:
        y = functional.linear(x, layer.weight, layer.bias)
        return torch.cat([y] * layer._group.size, dim=-1)

    patch.setattr(GatheredLinear, "forward", forward)


def repeat_tokens(patch: pytest.MonkeyPatch) -> None:
    """Let each rank take its own tokens for the others' too."""

    def gather(group: ContextGroup, module: torch.nn.Module, args: Any, share: Tensor) -> Tensor:
        return torch.cat([share] * dist.get_world_size(group.group), dim=1)

    patch.setattr(ContextGroup, "_gather", gather)


def swap_tokens(patch: pytest.MonkeyPatch) -> None:
    """Let each rank have the other's tokens, and call them its own."""
    take_from(patch, lambda rank, ranks, cut: ranks - 1 - rank)


def share_angles(patch: pytest.MonkeyPatch) -> None:
    """Let each rank turn its tokens as if they were the first one's."""
    take_from(patch, lambda rank, ranks, cut: 0 if cut.split_output else rank)


def take_from(
    patch: pytest.MonkeyPatch, choose: Callable[[int, int, ContextParallelInput], int]
) -> None:
    """Let each rank take the share of the rank that `choose` returns."""

    def prepare(hook: Any, x: Tensor, cut: ContextParallelInput) -> Tensor:
        whole = split(hook, x, cut)  # which also notes that shares differ
        if x.dim() != cut.expected_dims:
            return whole
        ranks = dist.get_world_size()
        return x.tensor_split(ranks, dim=cut.split_dim)[choose(dist.get_rank(), ranks, cut)]

    split = context._Split._prepare_cp_input
    patch.setattr(context._Split, "_prepare_cp_input", prepare)


def swap_halves(patch: pytest.MonkeyPatch) -> None:
    """Let each half send the predictions that the other made."""
    send = GuidanceGroup.send
    patch.setattr(
        GuidanceGroup,
        "send",
        lambda group, half, prediction: send(group, HALVES - 1 - half, prediction),
    )


@dataclass(frozen=True)
class Mistake:
    """One mistake, in a layout that it is made in."""

    make: Callable[[pytest.MonkeyPatch], None]
    layout: ParallelLayout
    names: tuple[str, ...] = NAMES
    part: str = "forward"
    """What shows it; halves share no pass before all inputs' shapes are known."""


TENSOR, CONTEXT = ParallelLayout(tensor=2), ParallelLayout(context=2)
GUIDANCE = ParallelLayout(guidance=2)
MISTAKES = {
    "norm alone": Mistake(norm_alone, TENSOR, NORMED),
    "heads whole": Mistake(leave_heads, TENSOR, UNFIXED),
    "shares swapped": Mistake(swap_shares, TENSOR),
    "outputs repeated": Mistake(repeat_outputs, TENSOR, ("hunyuan_video_15",)),
    "tokens repeated": Mistake(repeat_tokens, CONTEXT),
    "tokens swapped": Mistake(swap_tokens, CONTEXT),
    "angles shared": Mistake(share_angles, CONTEXT, NAMES[:-1]),  # Helios' are no module's outputs
    "halves swapped": Mistake(swap_halves, GUIDANCE, part="latents"),
}
CASES = [(mistake, name) for mistake, each in MISTAKES.items() for name in each.names]


def denoise_mistaken(folders: Mapping[str, Path], out: Path) -> None:
    """One rank's work: every family with every mistake."""
    places = {layout: Place.find(layout, "cpu") for layout in (TENSOR, CONTEXT, GUIDANCE)}
    for mistake, name in CASES:
        each, staged = MISTAKES[mistake], Staged(FAMILIES[name], folders[name])
        with pytest.MonkeyPatch.context() as patch:
            each.make(patch)
            conditioning = (out / f"{name}.conditioning").read_bytes()
            made = denoise(staged, conditioning, places[each.layout])
        torch.save(made, out / f"{name}.{mistake}.{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def made(checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each family makes alone, and with each mistake."""
    out = tmp_path_factory.mktemp("mistaken")
    folders = {name: checkpoint_of(name) for name in NAMES}
    denoise_alone(folders, out, "float32")
    run_ranks(2, out, denoise_mistaken, folders, out)
    return out


@pytest.mark.parametrize(("mistake", "name"), CASES)
def test_a_mistake_shows(made: Path, mistake: str, name: str) -> None:
    part = MISTAKES[mistake].part
    alone = torch.load(made / f"{name}.alone.pt")[part]
    mistaken = [torch.load(made / f"{name}.{mistake}.{rank}.pt")[part] for rank in range(2)]
    assert max(difference(each, alone) for each in mistaken) > 100 * BOUND
