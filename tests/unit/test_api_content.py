"""A video's bytes, whole and in ranges, and its sprite sheet."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.api.content import Variant, read_content
from jobs.api.wire import ApiError
from pipeline.documents import Artifact, Commit
from pipeline.spritesheet import TILE_HEIGHT, TILES, make_sprite_sheet
from pipeline.store import ObjectStore
from tests.support.clips import write_clip
from tests.support.outputs import A, draft

VIDEO, POSTER = bytes(range(100)), b"JPEG"


@pytest.fixture
def stored(tmp_path: Path) -> tuple[ObjectStore, Commit]:
    store = ObjectStore(tmp_path)
    store.put("v.mp4", VIDEO)
    store.put("v.jpg", POSTER)
    commit = Commit(
        **draft(A).model_dump(),
        video=Artifact(key="v.mp4", sha256="a" * 64, size_bytes=len(VIDEO)),
        poster=Artifact(key="v.jpg", sha256="b" * 64, size_bytes=len(POSTER)),
        committed_at="2026-01-01T00:00:00Z",  # pyright: ignore[reportArgumentType]
    )
    return store, commit


def read_all(response: Any) -> bytes:
    async def collect() -> bytes:
        return b"".join([chunk async for chunk in response.body_iterator])

    return asyncio.run(collect())


NONE = ["bytes=-", "bytes=-" + "1" * 5000, f"bytes={'1' * 5000}-", "bytes=0-1,4-5", "lines=0-1"]


@pytest.mark.parametrize("asked", NONE)
def test_what_is_no_range_is_passed_over(stored: tuple[ObjectStore, Commit], asked: str) -> None:
    response = read_content(*stored, "video", {"range": asked})
    assert (response.status_code, read_all(response)) == (200, VIDEO)


def test_a_range_of_another_video_is_passed_over(stored: tuple[ObjectStore, Commit]) -> None:
    tag = read_content(*stored, "video").headers["etag"]
    same, other = ({"range": "bytes=0-0", "if-range": each} for each in (tag, '"another"'))
    assert read_content(*stored, "video", same).status_code == 206
    assert read_content(*stored, "video", other).status_code == 200


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=0-", 0, 100),
        ("bytes=10-19", 10, 20),
        ("bytes=90-", 90, 100),
        ("bytes=90-1000", 90, 100),
        ("bytes=-5", 95, 100),
        ("bytes=-1000", 0, 100),
        ("bytes=1-98", 1, 99),
        ("Bytes=1-98", 1, 99),
    ],
)
def test_a_range(stored: tuple[ObjectStore, Commit], asked: str, start: int, end: int) -> None:
    response = read_content(*stored, "video", {"range": asked})
    assert response.status_code == 206
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/100"
    assert response.headers["content-length"] == str(end - start)
    assert read_all(response) == VIDEO[start:end]


@pytest.mark.parametrize("asked", [None, "", "bytes=-", "lines=1-2", "bytes=1-2,4-5", "bytes=x-"])
def test_the_whole_where_no_single_range_of_bytes_is_asked_for(
    stored: tuple[ObjectStore, Commit], asked: str | None
) -> None:
    response = read_content(*stored, "video", {} if asked is None else {"range": asked})
    assert response.status_code == 200
    assert response.headers["accept-ranges"] == "bytes"
    assert read_all(response) == VIDEO


@pytest.mark.parametrize("asked", ["bytes=100-", "bytes=200-300", "bytes=20-10", "bytes=-0"])
def test_a_range_that_is_not_there(stored: tuple[ObjectStore, Commit], asked: str) -> None:
    with pytest.raises(ApiError) as refused:
        read_content(*stored, "video", {"range": asked})
    assert refused.value.status == 416
    assert refused.value.headers["content-range"] == "bytes */100"


@pytest.mark.parametrize("variant", ["video", "thumbnail", "spritesheet"])
def test_who_has_it_is_sent_nothing(stored: tuple[ObjectStore, Commit], variant: Variant) -> None:
    store, commit = stored
    frames = np.zeros((2, 48, 64, 3), np.uint8)
    store.put("v.mp4", write_clip(Path(store.uri) / "clip.mp4", frames).read_bytes())
    tag = read_content(store, commit, variant).headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        again = read_content(store, commit, variant, {"if-none-match": known})
        assert (again.status_code, again.body, again.headers["etag"]) == (304, b"", tag)
    assert read_content(store, commit, variant, {"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize("variant", ["video", "thumbnail", "spritesheet"])
def test_what_is_gone_is_missed_before_anything_is_sent(
    stored: tuple[ObjectStore, Commit], variant: Variant
) -> None:
    store, commit = stored
    for key in ("v.mp4", "v.jpg"):
        store.delete(key)
    with pytest.raises(FileNotFoundError):
        read_content(store, commit, variant)


def test_the_thumbnail_is_the_poster(stored: tuple[ObjectStore, Commit]) -> None:
    assert read_content(*stored, "thumbnail").body == POSTER


@pytest.mark.parametrize("num_frames", [1, 7, 25])
def test_a_sprite_sheet_shows_frames_in_their_order(tmp_path: Path, num_frames: int) -> None:
    frames = np.empty((num_frames, 48, 64, 3), np.uint8)
    frames[:] = np.linspace(0, 255, num_frames)[:, None, None, None]
    path = write_clip(tmp_path / "v.mp4", frames)
    sheet = Image.open(io.BytesIO(make_sprite_sheet(path.read_bytes())))
    tiles = min(num_frames, TILES)
    width = 64 * TILE_HEIGHT // 48
    assert sheet.size == (width * tiles, TILE_HEIGHT)
    seen = [sheet.getpixel((width * number + width // 2, 45))[0] for number in range(tiles)]
    wanted = [
        255 * (number * num_frames // tiles) / max(num_frames - 1, 1) for number in range(tiles)
    ]
    assert np.abs(np.subtract(seen, wanted)).max() < 8
