"""What a clip begins with: kept by its content, seen by the model, left as it is in the clip."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanVACEPipeline
from PIL import Image

from pipeline.documents import Commit, Failure
from pipeline.errors import StoreError
from pipeline.inputs import Inputs
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.opening import begin_with, make_conditions
from pipeline.probe import read_frames
from pipeline.recipe import FinishSpec, Recipe
from pipeline.request import Opening, RenderRequest
from pipeline.store import ObjectStore
from tests.support.families import FAMILIES
from tests.support.media import make_frames, make_image, make_video, read_image
from tests.support.staged import NEGATIVE_PROMPT, PROMPT, Staged, model_of, request_of
from tests.support.tables import RECIPE

FAMILY = FAMILIES["wan_vace"]
SHA256 = "0" * 64


@pytest.fixture
def inputs() -> Inputs:
    return Inputs(ObjectStore(f"memory://{uuid.uuid4().hex}"))


def request_with(num_frames: int, seen_frames: int, **changes: Any) -> RenderRequest:
    opening = Opening(sha256=SHA256, num_frames=num_frames, seen_frames=seen_frames)
    return request_of(FAMILY, **{"opening": opening, **changes})


def test_an_input_is_named_by_its_content_and_kept_once(inputs: Inputs) -> None:
    image = make_image()
    assert inputs.keep(image) == inputs.keep(image) == hashlib.sha256(image).hexdigest()
    assert [sha256 for _, sha256 in inputs.list()] == [hashlib.sha256(image).hexdigest()]


def test_an_images_and_a_videos_frames_come_back(inputs: Inputs, tmp_path: Path) -> None:
    image, video = make_image(), make_video(tmp_path)
    for content, expected, slack in (
        (image, read_image(image)[None], 0),
        (video, make_frames(), 8),
    ):
        opening = Opening(sha256=inputs.keep(content), num_frames=len(expected), seen_frames=1)
        frames = np.concatenate([*inputs.read_opening(request_of(FAMILY, opening=opening))])
        assert frames.shape == expected.shape
        assert np.abs(frames.astype(int) - expected).max() <= slack
    assert [*inputs.read_opening(request_of(FAMILY))] == []


def test_an_input_that_is_gone_or_damaged_is_the_clips_fault(inputs: Inputs) -> None:
    with pytest.raises(ValueError, match="gone"):
        next(inputs.read_opening(request_with(1, 1)))
    inputs.store.put(f"inputs/00/{SHA256}", make_image())
    with pytest.raises(ValueError, match="damaged"):
        next(inputs.read_opening(request_with(1, 1)))


def test_a_store_that_fails_is_not_the_clips_fault(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bytes:
        raise PermissionError("no entry")

    monkeypatch.setattr(inputs.store, "read", fail)
    with pytest.raises(StoreError, match="no entry"):
        next(inputs.read_opening(request_with(1, 1)))


def test_the_model_sees_the_last_frames_and_draws_the_others() -> None:
    frames = make_frames(9)
    request = request_with(9, 5)
    assert request.total_frames == 13
    assert request.duration_s == 13 / request.fps
    given = make_conditions(request, (frame[None] for frame in frames))
    video, mask = (
        np.stack([np.asarray(each) for each in given[name]]) for name in ("video", "mask")
    )
    assert video.shape == mask.shape == (9, 64, 64, 3)
    assert (video[:5] == frames[4:]).all()
    assert (video[5:] == 128).all()
    assert (mask[:5] == 0).all()
    assert (mask[5:] == 255).all()
    assert make_conditions(request_of(FAMILY), ()) == {}


@pytest.mark.parametrize(
    ("request_", "frames", "said"),
    [
        (request_with(9, 5), make_frames(8), "8 frames, expected 9"),
        (request_with(9, 5), make_frames(9, 32), "expected uint8"),
        (request_with(13, 13), make_frames(13), "num_frames: 9, expected 13"),
    ],
)
def test_other_frames_than_the_request_says_are_an_error(
    request_: RenderRequest, frames: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        make_conditions(request_, [frames])


@pytest.mark.parametrize("chunk", [1, 4, 9])
def test_a_clip_has_its_opening_as_it_is_and_then_what_was_made(chunk: int) -> None:
    opening, made = make_frames(9), make_frames(9) + 1
    chunks = [made[at : at + chunk] for at in range(0, 9, chunk)]
    clip = np.concatenate([*begin_with(request_with(9, 5), [opening], chunks)])
    assert (clip == np.concatenate([opening, made[5:]])).all()
    alone = np.concatenate([*begin_with(request_of(FAMILY), (), chunks)])
    assert (alone == made).all()


def test_the_classic_pipeline_sees_the_same(checkpoint_of: Callable[[str], Path]) -> None:
    folder = checkpoint_of(FAMILY.name)
    request = request_with(9, 5)
    given = make_conditions(request, [make_frames(9)])
    pipe: Any = WanVACEPipeline.from_pretrained(str(folder), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(
        prompt=PROMPT, negative_prompt=NEGATIVE_PROMPT, height=64, width=64, num_frames=9,
        num_inference_steps=request.num_inference_steps, guidance_scale=request.guidance_scale,
        generator=torch.Generator().manual_seed(request.seed), output_type="np", **given,
    ).frames[0]  # fmt: skip
    staged = Staged(FAMILY, folder)
    conditioning = staged.encoder.encode(request, opening=[make_frames(9)])
    session = staged.denoiser.start(request, conditioning)
    session.advance(session.num_steps)
    decoded = staged.decoder.decode(request, session.latents())
    made = np.concatenate([*decoded.frames]).astype(float)
    assert np.abs(made - 255.0 * expected).max() <= 0.5 + 255 * FAMILY.tolerance


@pytest.fixture
def recipe(checkpoint_of: Callable[[str], Path]) -> Recipe:
    model = model_of(FAMILY, checkpoint_of(FAMILY.name))
    return RECIPE.model_copy(update={"model": model, "finish": FinishSpec(crf=4)})


def test_a_clip_goes_on_from_a_video(recipe: Recipe, tmp_path: Path) -> None:
    ledger = Ledger(ObjectStore(tmp_path / "out"))
    video = make_video(tmp_path)
    opening = Opening(sha256=Inputs(ledger.store).keep(video), num_frames=9, seen_frames=5)
    runner = LocalRunner(recipe, "f" * 64, ledger)
    commit = runner.render("a" * 64, request_of(FAMILY, opening=opening))
    assert isinstance(commit, Commit)
    assert commit.num_frames == 13
    clip = read_frames(ledger.store.locate(commit.video.key)).astype(int)
    assert np.abs(clip[:9] - make_frames(9)).max() < 12
    poster = read_image(ledger.store.read(commit.poster.key)).astype(int)
    assert np.abs(poster - clip[6]).mean() < 6, "of the middle of the whole"
    again = ledger.read_commit("a" * 64)
    assert again.request.opening == opening


def test_a_clip_whose_input_is_gone_fails_with_that_reason(recipe: Recipe, tmp_path: Path) -> None:
    runner = LocalRunner(recipe, "f" * 64, Ledger(ObjectStore(tmp_path)))
    failure = runner.render("a" * 64, request_with(9, 5))
    assert isinstance(failure, Failure)
    assert failure.stage == "encode"
    assert "gone" in failure.reason


def test_a_model_that_takes_no_frames_says_so(checkpoint_of: Callable[[str], Path]) -> None:
    family = FAMILIES["wan21"]
    staged = Staged(family, checkpoint_of(family.name))
    opening = Opening(sha256=SHA256, num_frames=1, seen_frames=1)
    request = request_of(family, opening=opening)
    frame = np.asarray(Image.open(io.BytesIO(make_image(request.width, request.height))))[None]
    with pytest.raises(ValueError, match="max_seen_frames"):
        staged.encoder.encode(request, opening=[frame])


def test_more_cannot_be_seen_than_there_is() -> None:
    with pytest.raises(ValueError, match="seen_frames: got 2 of 1"):
        Opening(sha256=SHA256, num_frames=1, seen_frames=2)
