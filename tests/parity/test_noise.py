"""Schedulers that draw noise in a step, and guiders that remember: one clip all the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import torch.distributed as dist

from pipeline.denoise import Denoiser
from pipeline.parallel.layout import ParallelLayout
from pipeline.parallel.place import Place
from tests.support.families import FAMILIES
from tests.support.layouts import PAIRS, STEPS, denoise, difference
from tests.support.ranks import run_ranks
from tests.support.staged import Staged, assert_same, finish, request_of, save_all_along

BOUND = 1e-5
"""What ranks may differ by: as in `test_layouts`."""
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
MOMENTUM = {"adaptive_projected_guidance_momentum": -0.5}
COMPONENTS = {
    "euler-ltx": ("ltx", "scheduler", "FlowMatchEulerDiscreteScheduler", {}),
    "dpm-wan21": ("wan21", "scheduler", "DPMSolverMultistepScheduler", FLOW),
    "lcm-wan21": ("wan21", "scheduler", "FlowMatchLCMScheduler", {"shift": 3.0}),
    "sa-wan21": ("wan21", "scheduler", "SASolverScheduler", FLOW),
    "apg-hunyuan": ("hunyuan_video_15", "guider", "AdaptiveProjectedGuidance", MOMENTUM),
    "mix-hunyuan": ("hunyuan_video_15", "guider", "AdaptiveProjectedMixGuidance", MOMENTUM),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "euler-ltx": {"stochastic_sampling": True},
    "dpm-wan21": {"algorithm_type": "sde-dpmsolver++"},
    "mix-hunyuan": {"adaptive_projected_guidance_start_step": 1},
}


def build(case: str, checkpoint_of: Callable[[str], Path], folder: Path) -> Staged:
    """Return a family whose checkpoint has another scheduler or guider."""
    family, name, kind, settings = COMPONENTS[case]
    shutil.copytree(checkpoint_of(family), folder)
    shutil.rmtree(folder / name)
    component = getattr(diffusers, kind)(**settings, **SETTINGS.get(case, {}))
    component.save_pretrained(folder / name)
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {name: ["diffusers", kind]}))
    return Staged(FAMILIES[family], folder)


@pytest.mark.parametrize("case", list(COMPONENTS))
def test_a_clip_is_the_same_again_and_resumed(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    staged = build(case, checkpoint_of, tmp_path / "model")
    request = request_of(staged.family, num_inference_steps=STEPS)
    conditioning = staged.encode(request)
    session = staged.denoiser.start(request, conditioning)
    snapshots = save_all_along(session)
    expected = dict(finish(session).values)
    elsewhere = Denoiser(staged.graph)
    for snapshot in (None, *snapshots):
        torch.seed()  # another process has another generator
        assert_same(dict(finish(elsewhere.start(request, conditioning, snapshot)).values), expected)
    other = request.model_copy(update={"seed": request.seed + 1})
    assert not torch.equal(
        staged.denoise(other).values["latents"], torch.as_tensor(expected["latents"])
    )


def denoise_drawing(layouts: tuple[ParallelLayout, ...], case: str, out: Path) -> None:
    """One rank's work: a clip in every layout, into `out`."""
    torch.manual_seed(dist.get_rank())
    staged = Staged(FAMILIES[COMPONENTS[case][0]], out / "model")
    conditioning = (out / "conditioning").read_bytes()
    for layout in layouts:
        made = denoise(staged, conditioning, Place.find(layout, "cpu"))
        torch.save(made["latents"], out / f"{layout}.{dist.get_rank()}.pt")


@pytest.mark.parametrize("case", ["euler-ltx", "dpm-wan21", "apg-hunyuan"])
def test_ranks_equal_one_process(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, case: str
) -> None:
    staged = build(case, checkpoint_of, tmp_path / "model")
    request = request_of(staged.family, num_inference_steps=STEPS)
    conditioning = staged.encoder.encode(request, staged.inputs).to_bytes()
    (tmp_path / "conditioning").write_bytes(conditioning)
    alone = denoise(staged, conditioning, None)["latents"]
    run_ranks(2, tmp_path, denoise_drawing, PAIRS, case, tmp_path)
    for layout in PAIRS:
        for rank in range(2):
            assert difference(torch.load(tmp_path / f"{layout}.{rank}.pt"), alone) <= BOUND
