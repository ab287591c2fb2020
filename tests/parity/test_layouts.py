"""Every family, dealt out over two and four ranks in each layout, makes what one process makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.denoise import Denoiser
from pipeline.handoff import Conditioning
from pipeline.parallel.layout import ParallelLayout
from pipeline.parallel.place import Place
from tests.support.families import FAMILIES
from tests.support.families.helios import build
from tests.support.layouts import (
    BOTH,
    LAYOUTS,
    PAIRS,
    STEPS,
    WIDE_NAMES,
    denoise,
    denoise_everywhere,
    difference,
    differences,
    leaves,
)
from tests.support.ranks import run_ranks
from tests.support.staged import Staged, finish, request_of

CASES = [
    pytest.param(name, layout, id=f"{layout}-{name}") for layout in LAYOUTS for name in FAMILIES
]
BOUND = 1e-5
"""Largest difference, relative to the largest value, in float32."""


BFLOAT16_BOUND, BFLOAT16_CLIP_BOUND = 0.02, 0.05
"""The same in bfloat16, whose spacing is 0.004 to 0.008: of one forward, and after four steps."""
REORDERED = ("hunyuan_video_15",)
"""Families whose attention under context parallelism sums over its tokens in another order."""
UNEVEN: Mapping[str, Mapping[str, int]] = {
    "wan_vace": {"width": 48, "height": 48, "num_frames": 9},  # 27 tokens
    "hunyuan_video_15": {"width": 48, "height": 48, "num_frames": 9},  # 27 beside the text's
}


@pytest.fixture(scope="module")
def made(checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each rank made of each family in each layout."""
    out = tmp_path_factory.mktemp("layouts")
    denoise_everywhere({name: checkpoint_of(name) for name in FAMILIES}, out)
    return out


def denoise_uneven(name: str, folder: Path, out: Path) -> None:
    """One rank's work: a clip whose tokens don't divide by the ranks."""
    place = Place.find(ParallelLayout(context=2), "cpu")
    staged = Staged(FAMILIES[name], folder)
    made = denoise(staged, (out / "conditioning").read_bytes(), place, **UNEVEN[name])
    torch.save(made, out / f"{dist.get_rank()}.pt")


@pytest.mark.parametrize("name", list(UNEVEN))
def test_tokens_that_do_not_divide(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder, uneven = checkpoint_of(name), UNEVEN[name]
    staged = Staged(FAMILIES[name], folder)
    request = request_of(staged.family, num_inference_steps=STEPS, **uneven)
    conditioning = staged.encoder.encode(request, staged.inputs).to_bytes()
    (tmp_path / "conditioning").write_bytes(conditioning)
    alone = denoise(staged, conditioning, None, **uneven)
    assert alone["tokens"] % 2
    run_ranks(2, tmp_path, denoise_uneven, name, folder, tmp_path)
    for rank in range(2):
        made = torch.load(tmp_path / f"{rank}.pt")
        assert difference(made["latents"], alone["latents"]) <= BOUND


RATES = (24.0, 12.0)


def denoise_rates(folder: Path, out: Path) -> None:
    """One rank's work: a clip, then one with twice as much sound, on the same weights."""
    staged = Staged(FAMILIES["ltx2"], folder)
    place = Place.find(ParallelLayout(guidance=2), "cpu")
    made = in_turn(staged, Denoiser(staged.graph, "cpu", place), out)
    torch.save(made, out / f"{dist.get_rank()}.pt")


def in_turn(staged: Staged, denoiser: Denoiser, out: Path) -> list[torch.Tensor]:
    """Return the latents of a clip at each of the rates."""
    made = list[torch.Tensor]()
    for fps in RATES:
        conditioning = Conditioning.from_bytes((out / f"{fps}.conditioning").read_bytes())
        request = request_of(staged.family, num_inference_steps=2, fps=fps)
        made += leaves(dict(finish(denoiser.start(request, conditioning)).values))
    return made


def test_halves_share_clips_that_sound_for_longer_or_shorter(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint_of("ltx2")
    staged = Staged(FAMILIES["ltx2"], folder)
    for fps in RATES:
        request = request_of(staged.family, num_inference_steps=2, fps=fps)
        conditioning = staged.encoder.encode(request, staged.inputs).to_bytes()
        (tmp_path / f"{fps}.conditioning").write_bytes(conditioning)
    alone = in_turn(staged, staged.denoiser, tmp_path)
    assert len({each.shape for each in alone}) == 3, "one of pictures, two of sound"
    run_ranks(2, tmp_path, denoise_rates, folder, tmp_path)
    for rank in range(2):
        assert difference(torch.load(tmp_path / f"{rank}.pt"), alone) <= BOUND


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_ranks_equal_one_process(made: Path, name: str, layout: ParallelLayout) -> None:
    found = differences(made, name, layout)
    assert found["forward"] <= BOUND
    assert found["latents"] <= BOUND


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_halves_share_the_passes(made: Path, name: str, layout: ParallelLayout) -> None:
    alone = torch.load(made / f"{name}.alone.pt")["calls"]
    for rank in range(layout.ranks):
        calls = torch.load(made / f"{name}.{layout}.{rank}.pt")["calls"]
        if layout.guidance > 1:
            assert calls < 0.8 * alone
        else:
            assert calls == alone


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_ranks_share_the_tokens(made: Path, name: str, layout: ParallelLayout) -> None:
    alone = torch.load(made / f"{name}.alone.pt")["tokens"]
    for rank in range(layout.ranks):
        tokens = torch.load(made / f"{name}.{layout}.{rank}.pt")["tokens"]
        assert tokens * layout.context == alone


@pytest.mark.parametrize("mode", ["per_head", "scalar"])
def test_a_head_weighs_past_frames_as_it_does_alone(tmp_path: Path, mode: str) -> None:
    """Helios may have a number for it: one for each head, which is dealt out, or one for all."""
    build(tmp_path / "helios", is_amplify_history=True, history_scale_mode=mode)
    layout = ParallelLayout(tensor=2)
    denoise_everywhere({"helios": tmp_path / "helios"}, tmp_path, layouts=[layout])
    found = differences(tmp_path, "helios", layout)
    assert found["forward"] <= BOUND
    assert found["latents"] <= BOUND


@pytest.fixture(scope="module")
def made_in_bfloat16(
    checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with what each of two ranks made of each family in each layout, in bfloat16."""
    out = tmp_path_factory.mktemp("bfloat16")
    denoise_everywhere({name: checkpoint_of(name) for name in FAMILIES}, out, "bfloat16", PAIRS)
    return out


@pytest.mark.parametrize(("name", "layout"), [case for case in CASES if case.values[1] in PAIRS])
def test_ranks_come_close_in_bfloat16(
    made_in_bfloat16: Path, name: str, layout: ParallelLayout
) -> None:
    found = differences(made_in_bfloat16, name, layout)
    assert found["forward"] <= BFLOAT16_BOUND
    assert found["latents"] <= BFLOAT16_CLIP_BOUND
    if layout.tensor == 1 and not (layout.context > 1 and name in REORDERED):
        assert found == {"forward": 0.0, "latents": 0.0}


@pytest.mark.parametrize("name", WIDE_NAMES)
def test_four_ranks_come_close_in_bfloat16(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    denoise_everywhere({name: checkpoint_of(name)}, tmp_path, "bfloat16", [BOTH])
    found = differences(tmp_path, name, BOTH)
    assert found["forward"] <= BFLOAT16_BOUND
    assert found["latents"] <= BFLOAT16_CLIP_BOUND
