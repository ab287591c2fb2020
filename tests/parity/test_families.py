"""Every family renders through the one graph as diffusers' own pipelines render it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.denoise import Denoiser
from pipeline.develop import Developer
from pipeline.errors import UnfitRequestError
from pipeline.handoff import Conditioning
from pipeline.probe import read_frames
from pipeline.recipe import FinishSpec
from pipeline.request import RenderRequest
from tests.support.families import FAMILIES
from tests.support.staged import (
    Staged,
    assert_same,
    finish,
    quantized,
    read,
    request_of,
    save_all_along,
)

AAC_FRAME = 1024
LUMA = np.array([0.2126, 0.7152, 0.0722])
"""BT.709 brightness: what a video of noise keeps, its colours being stored at half resolution."""


@pytest.fixture(scope="module", params=list(FAMILIES))
def staged(request: pytest.FixtureRequest, checkpoint_of: Callable[[str], Path]) -> Staged:
    """The stages of each family in turn."""
    name: str = request.param
    return Staged(FAMILIES[name], checkpoint_of(name))


@pytest.fixture(scope="module")
def clip(staged: Staged) -> tuple[RenderRequest, Conditioning]:
    """The family's own clip, and its conditioning."""
    request = request_of(staged.family)
    return request, staged.encode(request)


def test_two_clips_at_once_equal_diffusers(
    staged: Staged, clip: tuple[RenderRequest, Conditioning]
) -> None:
    """Interleaved sessions have schedulers, guiders and noise of their own."""
    family, (request, conditioning) = staged.family, clip
    other = request.model_copy(
        update={"seed": 4, "guidance_scale": 1.5, "num_inference_steps": 2, "prompt": "a cup"}
    )
    alone = staged.denoise(other)
    first = staged.denoiser.start(request, conditioning)
    second = staged.denoiser.start(other, staged.encode(other))
    while not (first.done and second.done):
        first.advance(1)
        second.advance(1)
    assert_same(dict(second.latents().values), dict(alone.values))

    decoded = staged.decoder.decode(request, finish(first))
    frames, audio = family.render(
        staged.folder, request.prompt, request.negative_prompt, request.seed
    )
    np.testing.assert_array_equal(read(decoded), quantized(frames))
    if audio is None:
        assert decoded.audio is None
    else:
        assert decoded.sample_rate == family.audio_rate
        np.testing.assert_array_equal(decoded.audio, audio)

    reference = family.reference(
        staged.folder, request.prompt, request.negative_prompt, request.seed
    )
    assert np.abs(frames - reference).max() <= family.tolerance


def test_a_clip_without_guidance_equals_diffusers(staged: Staged) -> None:
    """At 1 diffusers' own modular pipelines fail for most families; the classic ones don't."""
    family = staged.family
    request = request_of(family, guidance_scale=1.0)
    frames = read(staged.decoder.decode(request, staged.denoise(request)))
    reference = family.reference(
        staged.folder, request.prompt, request.negative_prompt, request.seed, guidance_scale=1.0
    )
    rounding = 0.5 + 1e-3  # of 8 bits, and of float32 before it
    assert np.abs(frames - 255.0 * reference).max() <= rounding + 255 * family.tolerance


def test_a_clip_resumes_to_the_same_bits_elsewhere(
    staged: Staged, clip: tuple[RenderRequest, Conditioning]
) -> None:
    request, conditioning = clip
    session = staged.denoiser.start(request, conditioning)
    snapshots = save_all_along(session)
    expected = dict(finish(session).values)

    elsewhere = Denoiser(staged.graph)
    other = elsewhere.start(request.model_copy(update={"seed": 9}), conditioning)
    for step in range(1, len(snapshots)):
        other.advance(1)
        resumed = elsewhere.start(request, conditioning, snapshots[step])
        assert resumed.step == step
        assert resumed.snapshot() == snapshots[step]
        assert_same(dict(finish(resumed).values), expected)
    other.close()


def test_a_bad_snapshot_is_refused(
    staged: Staged, clip: tuple[RenderRequest, Conditioning]
) -> None:
    request, conditioning = clip
    with staged.denoiser.start(request, conditioning) as session:
        session.advance(1)
        snapshot = session.snapshot()
    middle = len(snapshot) // 2
    flipped = snapshot[:middle] + bytes([snapshot[middle] ^ 1]) + snapshot[middle + 1 :]
    for damaged in (b"", snapshot[:-1], snapshot[:middle], flipped, conditioning.to_bytes()):
        with pytest.raises(ValueError, match=r"snapshot|packed"):
            staged.denoiser.start(request, conditioning, damaged)
    other = request.model_copy(update={"seed": request.seed + 1})
    with pytest.raises(ValueError, match="another request"):
        staged.denoiser.start(other, conditioning, snapshot)


def test_a_clip_becomes_a_probed_file(
    staged: Staged, clip: tuple[RenderRequest, Conditioning], tmp_path: Path
) -> None:
    family, (request, conditioning) = staged.family, clip
    latents = finish(staged.denoiser.start(request, conditioning))
    developer = Developer(staged.graph, FinishSpec(crf=0, preset="ultrafast"))
    seen = developer.develop(request, latents.to_bytes(), tmp_path).probe
    assert (seen.width, seen.height, seen.num_frames) == (
        family.width,
        family.height,
        family.num_frames,
    )
    assert float(seen.fps) == family.fps
    assert seen.has_audio == family.audio
    if family.audio_rate:
        assert abs(seen.audio_duration_s - request.duration_s) <= AAC_FRAME / family.audio_rate
    frames = read(staged.decoder.decode(request, latents)) @ LUMA
    written = read_frames(tmp_path / "video.mp4") @ LUMA
    for frame, source in zip(written, frames, strict=True):
        assert np.corrcoef(frame.ravel(), source.ravel())[0, 1] > 0.9


def test_stages_hold_no_others_weights(staged: Staged) -> None:
    """Each weight of a checkpoint is in one stage, but for a VAE that encodes and decodes."""
    held = {
        name: {part for part, model in stage.pipeline.components.items() if _has_weights(model)}
        for name, stage in (
            ("encode", staged.encoder.stage),
            ("denoise", staged.denoiser.stage),
            ("decode", staged.decoder.stage),
        )
    }
    assert held["denoise"] <= {"transformer", "transformer_2"}
    assert not held["denoise"] & (held["encode"] | held["decode"])
    assert held["encode"] & held["decode"] <= {"vae"}


def _has_weights(component: object) -> bool:
    import torch

    return isinstance(component, torch.nn.Module) and any(
        not parameter.is_meta for parameter in component.parameters()
    )


@pytest.mark.parametrize("column", ["prompt", "negative_prompt"])
def test_a_text_that_the_model_would_read_in_part_is_refused(staged: Staged, column: str) -> None:
    request = request_of(staged.family, **{column: "so long " * 800}, guidance_scale=3.0)
    with pytest.raises(UnfitRequestError, match=r"of \d+ tokens, of which the model reads \d+"):
        staged.encode(request)
