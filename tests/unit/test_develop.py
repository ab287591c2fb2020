"""Latents become frames, a file and a poster: exactly, in little memory, or not at all."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from PIL import Image

import pipeline.develop
from pipeline.develop import Developer, decode_frames
from pipeline.handoff import Latents
from pipeline.recipe import FinishSpec
from tests.support.families import FAMILIES
from tests.support.families.base import randomize
from tests.support.staged import Staged, quantized, read, request_of

LUMA = np.array([0.2126, 0.7152, 0.0722])
VAES: dict[str, dict[str, Any]] = {
    "plain": {},
    "patched": {"patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True},
    "residual": {"is_residual": True},
}


@pytest.fixture(scope="module")
def staged(checkpoint_of: Callable[[str], Path]) -> Staged:
    return Staged(FAMILIES["wan_vace"], checkpoint_of("wan_vace"))


def random_latents(num_frames: int = 9, seed: int = 0) -> Latents:
    """Return what a denoiser of the tiny Wan family might hand over, for 64 by 64 pixels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 16, (num_frames - 1) // 4 + 1, 8, 8)
    return Latents({"latents": torch.randn(shape, generator=generator)})


@pytest.mark.parametrize("config", VAES.values(), ids=VAES)
@pytest.mark.parametrize("num_latents", [1, 2, 4])
def test_frames_one_by_one_are_the_vaes_own(config: dict[str, Any], num_latents: int) -> None:
    vae: Any = AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 2, 2], num_res_blocks=1, **config)
    randomize(vae, 2)
    z = torch.randn(1, 16, num_latents, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = vae.decode(z, return_dict=False)[0]
    chunks = list(decode_frames(vae, z))
    assert len(chunks) == num_latents
    assert torch.equal(torch.cat(chunks, dim=2), whole)
    again = torch.cat(list(decode_frames(vae, z)), dim=2)
    assert torch.equal(again, whole)


def test_a_streamed_clip_is_the_blocks_own(staged: Staged) -> None:
    request = request_of(staged.family)
    latents = random_latents()
    pipe = staged.family.load(staged.folder)
    block = pipe.blocks.sub_blocks["decode"]
    whole = type(block)().init_pipeline(str(staged.folder))
    whole.update_components(vae=pipe.vae)
    frames = whole(latents=latents.values["latents"], output="videos", output_type="np")[0]
    np.testing.assert_array_equal(
        read(staged.decoder.decode(request, latents)), quantized(np.asarray(frames))
    )


def test_memory_does_not_grow_with_length(
    staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the clip, two decoded chunks at most are alive at once."""
    alive: list[int] = []

    def watched(vae: Any, z: torch.Tensor) -> Iterator[torch.Tensor]:
        chunks: list[weakref.ref[torch.Tensor]] = []
        for chunk in decode_frames(vae, z):
            chunks.append(weakref.ref(chunk))
            alive.append(sum(each() is not None for each in chunks))
            yield chunk
            del chunk

    monkeypatch.setattr(pipeline.develop, "decode_frames", watched)
    request = request_of(staged.family, num_frames=41)
    developer = Developer(staged.graph, FinishSpec(preset="ultrafast"))
    seen = developer.develop(request, random_latents(41).to_bytes(), tmp_path)
    assert seen.probe.num_frames == 41
    assert len(alive) == 11
    assert max(alive) <= 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_latents_that_are_not_finite_are_refused(
    staged: Staged, tmp_path: Path, bad: float
) -> None:
    latents = random_latents().values["latents"]
    latents[0, 3, 1, 2, 2] = bad
    developer = Developer(staged.graph, FinishSpec())
    for value in (latents, [latents[:, :, :1], latents]):
        data = Latents({"latents": value}).to_bytes()
        with pytest.raises(ValueError, match="latents are not finite"):
            developer.develop(request_of(staged.family), data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_frames_that_are_not_finite_are_refused(staged: Staged, tmp_path: Path) -> None:
    """A VAE may overflow where the latents are sound; no file is left."""
    fresh = Staged(staged.family, staged.folder)
    developer = Developer(fresh.graph, FinishSpec())
    vae = developer._decoder.stage.pipeline.components["vae"]
    vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="frames are not finite"):
        developer.develop(request_of(staged.family), random_latents().to_bytes(), tmp_path)
    assert not list(tmp_path.glob("**/*.mp4"))


@pytest.mark.parametrize("num_frames", [1, 5, 9])
def test_the_poster_is_the_middle_frame(staged: Staged, tmp_path: Path, num_frames: int) -> None:
    request = request_of(staged.family, num_frames=num_frames)
    latents = random_latents(num_frames)
    made = Developer(staged.graph, FinishSpec(poster_quality=95)).develop(
        request, latents.to_bytes(), tmp_path
    )
    frames = read(staged.decoder.decode(request, latents)) @ LUMA
    poster = np.asarray(Image.open(made.poster).convert("RGB")) @ LUMA
    distance = np.abs(frames - poster).mean(axis=(1, 2))
    assert distance.argmin() == num_frames // 2


def test_frames_beyond_the_request_are_cut_off(checkpoint_of: Callable[[str], Path]) -> None:
    """Helios renders whole chunks: 17 frames where 13 are asked for."""
    staged = Staged(FAMILIES["helios"], checkpoint_of("helios"))
    longer = request_of(staged.family)
    request = request_of(staged.family, num_frames=13)
    frames = read(staged.decoder.decode(request, staged.denoise(request)))
    assert len(frames) == 13
    whole = read(staged.decoder.decode(longer, staged.denoise(longer)))
    np.testing.assert_array_equal(frames, whole[:13])


def test_an_image_may_set_the_size(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    """Diffusers keeps the image's aspect and the request's area; the file is as large as that."""
    staged = Staged(FAMILIES["wan_i2v"], checkpoint_of("wan_i2v"))
    staged.inputs["image"] = staged.inputs["image"].resize((128, 48))
    request = request_of(staged.family)
    latents = staged.denoise(request)
    made = Developer(staged.graph, FinishSpec()).develop(request, latents.to_bytes(), tmp_path)
    size = latents.values["width"], latents.values["height"]
    assert size != (request.width, request.height)
    assert (made.probe.width, made.probe.height) == size
    assert Image.open(made.poster).size == size
