"""Videos that begin with an image or go on from a video, by the official client."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from openai import OpenAI

from jobs.recipes import find_recipe
from pipeline.documents import Commit
from pipeline.ledger import Ledger
from pipeline.local import LocalRunner
from pipeline.model import fingerprint_model, resolve_checkpoint
from pipeline.probe import Frames, read_frames
from pipeline.store import ObjectStore
from tests.support.media import make_image, make_video, read_image
from tests.support.online import OTHERS, Server

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
PROMPT = "a blue can growing on a gray background"
POLL: Any = {"poll_interval_ms": 100}


def download(client: OpenAI, video: Any, folder: Path) -> Frames:
    assert video.status == "completed", video.error
    path = folder / f"{video.id}.mp4"
    client.videos.download_content(video.id).write_to_file(path)
    return read_frames(path).astype(int)


def test_an_image_is_a_videos_first_frame(client: OpenAI, server: Server, tmp_path: Path) -> None:
    image = make_image()
    url = {"image_url": f"data:image/png;base64,{base64.b64encode(image).decode()}"}
    calls: list[Any] = [
        {"input_reference": ("photo.png", image, "image/png")},
        {"extra_body": {"input_reference": url}},  # the client takes files alone by that name
    ]
    ends = [client.videos.create_and_poll(prompt=PROMPT, **call, **POLL) for call in calls]
    clips = [download(client, each, tmp_path) for each in ends]
    assert clips[0].shape == (17, 64, 64, 3)
    assert np.abs(clips[0][0] - read_image(image)).mean() < 6
    assert (clips[0] == clips[1]).all(), "the same picture is the same clip"
    commit = server.read_commit(PROMPT)
    remix = client.videos.remix(ends[0].id, prompt=f"{PROMPT}, slowly")
    again = download(client, client.videos.poll(remix.id, **POLL), tmp_path)
    assert np.abs(again[0] - read_image(image)).mean() < 6

    recipe = find_recipe()
    fingerprint = fingerprint_model(recipe.model, resolve_checkpoint(recipe.model))
    shutil.copytree(server.output / "inputs", tmp_path / "alone" / "inputs")
    here = LocalRunner(recipe, fingerprint, Ledger(ObjectStore(tmp_path / "alone")))
    other = here.render(commit.clip_id, commit.request)
    assert isinstance(other, Commit)
    assert other.video.sha256 == commit.video.sha256


def test_a_video_goes_on(client: OpenAI, tmp_path: Path) -> None:
    first = client.videos.create_and_poll(prompt=PROMPT, seconds="1", **POLL)  # type: ignore[arg-type]
    before = download(client, first, tmp_path)
    extend: Any = client.videos.extend
    longer = extend(prompt=PROMPT, seconds="1", video=(None, first.id))
    after = download(client, client.videos.poll(longer.id, **POLL), tmp_path)
    assert longer.seconds == f"{len(after) / 8:g}"
    assert len(after) == len(before) + 8
    assert np.abs(after[: len(before)] - before).mean() < 3
    longest = extend(
        prompt=PROMPT, seconds="1", video=openai.omit, extra_body={"video": {"id": longer.id}}
    )
    end = client.videos.poll(longest.id, **POLL)
    assert len(download(client, end, tmp_path)) == len(after) + 8
    client.videos.delete(first.id)
    client.videos.delete(longer.id)
    assert len(download(client, end, tmp_path)) == len(after) + 8, "it stands by itself"


def test_a_video_of_ones_own_goes_on(client: OpenAI, tmp_path: Path) -> None:
    content = make_video(tmp_path)
    sent = ("mine.mp4", content, "video/mp4")
    longer = client.videos.extend(prompt=PROMPT, seconds="1", video=sent)  # type: ignore[arg-type]
    after = download(client, client.videos.poll(longer.id, **POLL), tmp_path)
    assert len(after) == 17
    assert np.abs(after[:9] - read_frames(tmp_path / "video.mp4").astype(int)).max() < 16


def test_only_ones_own_completed_videos_go_on(server: Server, client: OpenAI) -> None:
    extend: Any = client.videos.extend
    waiting = client.videos.create(prompt=f"{PROMPT} soon", extra_body={"num_inference_steps": 90})
    with pytest.raises(openai.ConflictError) as early:
        extend(prompt=PROMPT, seconds="1", video=(None, waiting.id))
    assert early.value.code == "video_not_ready"
    with server.client(OTHERS) as others, pytest.raises(openai.NotFoundError):
        others.videos.extend(prompt=PROMPT, seconds="1", video=(None, waiting.id))  # type: ignore[arg-type]
    client.videos.delete(waiting.id)
    with pytest.raises(openai.BadRequestError) as wrong:
        extend(prompt=PROMPT, seconds="1", video=("a.mp4", b"#EXTM3U", "video/mp4"))
    assert wrong.value.param == "video"
