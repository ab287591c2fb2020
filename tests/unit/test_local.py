"""All stages in one process, from a request to a commit or a recorded failure."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pipeline.checkpoints import Checkpoints
from pipeline.documents import Commit, Failure
from pipeline.errors import NotFiniteError, StoreError
from pipeline.identity import clip_id, digest_renderer
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.probe import probe
from pipeline.publish import Denoised, _blaming_store
from pipeline.recipe import FinishSpec, Recipe
from pipeline.store import ObjectStore
from tests.support.families import FAMILIES
from tests.support.staged import finish, model_of, request_of
from tests.support.tables import RECIPE

FINGERPRINT = "f" * 64
FAMILY = FAMILIES["wan_vace"]


@pytest.fixture
def recipe(checkpoint_of: Callable[[str], Path]) -> Recipe:
    model = model_of(FAMILY, checkpoint_of(FAMILY.name))
    return RECIPE.model_copy(update={"model": model, "finish": FinishSpec(preset="ultrafast")})


def new_ledger() -> Ledger:
    return Ledger(ObjectStore(f"memory://{uuid.uuid4().hex}"))


def test_a_clip_is_committed_and_always_the_same_bytes(recipe: Recipe, tmp_path: Path) -> None:
    request = request_of(FAMILY)
    clip = clip_id(request, digest_renderer(FINGERPRINT, recipe.finish))
    commits: list[Commit] = []
    for _ in range(2):
        ledger = new_ledger()
        runner = LocalRunner(recipe, FINGERPRINT, ledger)
        runner.render("e" * 64, request_of(FAMILY, seed=9))  # another before it
        commit = runner.render(clip, request)
        assert isinstance(commit, Commit)
        assert ledger.committed_ids() == {clip, "e" * 64}
        assert ledger.read_commit(clip) == commit
        commits.append(commit)
    one, other = commits
    assert one.video.sha256 == other.video.sha256
    assert one.poster.sha256 == other.poster.sha256
    assert one.request == request
    assert (one.width, one.height, one.num_frames) == (64, 64, 9)
    assert one.model_fingerprint == FINGERPRINT
    assert set(one.timings) >= {"encode", "denoise", "develop"}
    assert one.device_seconds > 0
    video = tmp_path / "video.mp4"
    video.write_bytes(ledger.store.read(other.video.key))
    assert probe(video).num_frames == 9


def test_a_failure_is_recorded_and_the_next_clip_renders(recipe: Recipe) -> None:
    ledger = new_ledger()
    runner = LocalRunner(recipe, FINGERPRINT, ledger)
    bias = runner._denoiser.stage.pipeline.components["transformer"].proj_out.bias
    kept = bias.clone()
    bias.fill_(float("nan"))
    failure = runner.render("a" * 64, request_of(FAMILY))
    assert isinstance(failure, Failure)
    assert failure.stage == "denoise"
    assert "not finite" in failure.reason
    assert ledger.failed_ids() == {"a" * 64}
    assert list(ledger.latest_failures()) == [failure]
    assert not ledger.committed_ids()
    with torch.no_grad():
        bias.copy_(kept)
    assert isinstance(runner.render("b" * 64, request_of(FAMILY)), Commit)
    assert ledger.committed_ids() == {"b" * 64}


@pytest.mark.parametrize("spoilt", [True, False])
def test_saved_latents_are_kept_for_another_try_unless_they_are_not_finite(
    recipe: Recipe, spoilt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, request = new_ledger(), request_of(FAMILY)
    runner = LocalRunner(recipe, FINGERPRINT, ledger)
    conditioning = runner._encoder.encode(request)
    latents = finish(runner._denoiser.start(request, conditioning))
    if spoilt:
        latents.values["latents"][0, 0, 0, 0, 0] = float("inf")
    else:
        monkeypatch.setattr(Ledger, "commit_clip", fill_the_disk)
    saves = Checkpoints(ledger.store, FINGERPRINT)
    saves.save("a" * 64, "latents", 4, latents.to_bytes())
    denoised = Denoised(latents.to_bytes(), gang="saved")
    with pytest.raises(NotFiniteError if spoilt else StoreError):
        runner._publisher.publish("a" * 64, request, denoised)
    assert bool(saves.clip_ids()) != spoilt


def test_a_full_disk_is_no_fault_of_the_clips_whose_video_is_written_to_it() -> None:
    """FFmpeg has an error of its own for it."""
    with pytest.raises(StoreError, match="No space left on device"), _blaming_store():
        write_video("/dev/full")


def write_video(path: str) -> None:
    with av.open(path, "w", format="matroska") as file:
        stream = file.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        stream.width = stream.height = 32
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8))
        file.mux([*stream.encode(frame), *stream.encode()])


def fill_the_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")
