"""What calls give clips to begin with: what is taken, how it is planned, and what is refused."""

from __future__ import annotations

import base64
import uuid
from pathlib import Path
from typing import Any

import pytest

from jobs.api.job import JobReader
from jobs.api.openings import SourceVideo, read_sent_video
from jobs.api.wire import ApiError
from jobs.recipes import find_recipe
from pipeline.inbox import VideoJob, new_video_id
from pipeline.inputs import Inputs
from pipeline.recipe import Recipe
from pipeline.store import ObjectStore
from tests.support.media import encode_video, make_image, make_video, read_image

RECIPE = find_recipe()
BALL = {"prompt": "a ball"}
PNG_URL = "data:image/png;base64," + base64.b64encode(make_image()).decode()


def make_reader(recipe: Recipe = RECIPE) -> JobReader:
    return JobReader(recipe, "0" * 64, Inputs(ObjectStore(f"memory://{uuid.uuid4().hex}")))


def with_limits(**changes: Any) -> Recipe:
    return RECIPE.model_copy(update={"limits": RECIPE.limits.model_copy(update=changes)})


def read(reader: JobReader, fields: dict[str, Any], source: VideoJob | None = None) -> VideoJob:
    return reader.read(fields, source, id=new_video_id(), owner="me")


def extend(reader: JobReader, video: SourceVideo, **fields: Any) -> VideoJob:
    asked = {**BALL, "video": {"id": "video_1"}, **fields}
    return reader.read_extension(asked, video, id=new_video_id(), owner="me")


def source(num_frames: int = 17, fps: float = 8.0, **changes: Any) -> SourceVideo:
    request = read(make_reader(), {**BALL, "seed": 5, "negative_prompt": "blur"}).request
    size = {"width": 64, "height": 64, **changes}
    return SourceVideo(b"MP4", num_frames=num_frames, fps=fps, request=request, **size)


@pytest.mark.parametrize("sent", [make_image(), {"image_url": PNG_URL}])
def test_an_image_is_the_first_frame(sent: Any) -> None:
    reader = make_reader()
    job = read(reader, {**BALL, "input_reference": sent})
    (frame,) = reader.inputs.read_opening(job.request)
    assert (frame[0] == read_image(make_image())).all()
    assert job.request.opening
    assert (job.request.opening.num_frames, job.request.opening.seen_frames) == (1, 1)
    assert job.request.num_frames == job.request.total_frames == 17
    plain = read(reader, BALL)
    assert job.clip_id != plain.clip_id
    assert job.request.model_copy(update={"opening": None}) == plain.request


def test_the_same_picture_is_the_same_clip_however_it_is_sent() -> None:
    reader = make_reader()
    sent = make_image(), {"image_url": PNG_URL}, make_image(compress_level=1)
    jobs = [read(reader, {**BALL, "input_reference": each}) for each in sent]
    assert len({job.clip_id for job in jobs}) == 1
    other = read(reader, {**BALL, "input_reference": make_image(128, 64, "JPEG")})
    assert other.clip_id != jobs[0].clip_id


def test_a_remix_begins_as_what_it_is_a_remix_of() -> None:
    reader = make_reader()
    before = read(reader, {**BALL, "input_reference": make_image()})
    remix = read(reader, {"prompt": "a cup"}, before)
    assert remix.request.opening == before.request.opening
    assert remix.clip_id != before.clip_id


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", "none of them"),
        (b"GIF89a", "none of them"),
        ("a.png", "expected an image's file"),
        ({}, "expected an image's file"),
        ({"file_id": "file-1"}, "expected an image's file"),
        ({"image_url": PNG_URL, "file_id": "file-1"}, "expected an image's file"),
        ({"image_url": 7}, "expected an image's file"),
        ({"image_url": "https://example.com/a.png"}, "aren't fetched"),
        ({"image_url": "http://169.254.169.254/latest/meta-data"}, "aren't fetched"),
        ({"image_url": "file:///etc/passwd"}, "aren't fetched"),
        ({"image_url": "data:text/html;base64,AAAA"}, "aren't fetched"),
        ({"image_url": "data:image/png;base64,A"}, "image_url: "),
        ({"image_url": "data:image/PNG;charset=utf-8;base64,AAAA"}, "none of them"),
        ({"image_url": "data:image/png;base64,AAAA"}, "none of them"),
    ],
)
def test_what_is_no_image_is_refused_and_nothing_is_kept(sent: Any, said: str) -> None:
    reader = make_reader()
    with pytest.raises(ApiError) as refused:
        read(reader, {**BALL, "input_reference": sent})
    assert (refused.value.status, refused.value.body.param) == (400, "input_reference")
    assert said in refused.value.body.message
    assert not list(reader.inputs.list())


@pytest.mark.parametrize(("takes", "video_too"), [(0, False), (1, False), (2, True)])
def test_what_the_model_cannot_begin_with_is_unsupported(takes: int, video_too: bool) -> None:
    reader = make_reader(with_limits(max_seen_frames=takes))
    calls = [
        (takes > 0, lambda: read(reader, {**BALL, "input_reference": make_image()})),
        (video_too, lambda: extend(reader, source(), seconds=1)),
    ]
    for can, call in calls:
        if can:
            assert call().request.opening
            continue
        with pytest.raises(ApiError) as refused:
            call()
        assert refused.value.body.code == "unsupported"


@pytest.mark.parametrize(
    ("num_frames", "seconds", "seen", "made"),
    [
        (17, "2", 9, 25),  # two seconds are 16 frames
        (17, 0.1, 9, 13),  # four are the fewest
        (5, 1, 5, 13),
        (4, 1, 1, 9),  # what is seen is 4k+1 too
        (17, 9, 9, 81),
        (17, 9.5, 5, 81),  # fewer are seen where there is no room for more
        (17, 10, 1, 81),
    ],
)
def test_a_video_goes_on_for_the_seconds_asked_for(
    num_frames: int, seconds: Any, seen: int, made: int
) -> None:
    reader = make_reader()
    job = extend(reader, source(num_frames), seconds=seconds)
    opening = job.request.opening
    assert opening
    assert (opening.num_frames, opening.seen_frames) == (num_frames, seen)
    assert job.request.num_frames == made
    new = job.request.total_frames - num_frames
    assert abs(new - float(seconds) * 8) <= 4
    assert float(job.seconds) == job.request.total_frames / 8, "of the whole"
    assert job.size == "64x64"


def test_what_an_extension_does_not_say_is_as_in_the_video() -> None:
    reader = make_reader()
    kept = extend(reader, source(), seconds=1).request
    assert (kept.prompt, kept.seed, kept.negative_prompt) == ("a ball", 5, "blur")
    said = extend(reader, source(), seconds=1, prompt="a cup", seed="6", metadata={"a": "b"})
    assert (said.request.prompt, said.request.seed) == ("a cup", 6)
    assert said.metadata == {"a": "b"}


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({}, "seconds", "got nothing, expected up to 10 s"),
        ({"seconds": 11}, "seconds", "expected up to 10 s more"),
        ({"seconds": 0}, "seconds", "expected up to"),
        ({"seconds": "nan"}, "seconds", "expected up to"),
        ({"seconds": "long"}, "seconds", "expected up to"),
        ({"seconds": [1]}, "seconds", "expected up to"),
        ({"seconds": 1, "prompt": " "}, "prompt", "prompt"),
        ({"seconds": 1, "size": "64x64"}, "size", "unknown parameter"),
        ({"seconds": 1, "seed": -1}, "seed", "expected"),
    ],
)
def test_what_an_extension_cannot_be_is_refused(
    fields: dict[str, Any], param: str, said: str
) -> None:
    reader = make_reader()
    with pytest.raises(ApiError) as refused:
        extend(reader, source(), **fields)
    assert (refused.value.status, refused.value.body.param) == (400, param)
    assert said in refused.value.body.message
    assert not list(reader.inputs.list())


@pytest.mark.parametrize("wrong", [None, "soon", True, 0, -1, "nan", 10**400, "1e400", [1]])
def test_seconds_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(ApiError, match="expected up to") as refused:
        extend(make_reader(), source(), seconds=wrong)
    assert refused.value.body.param == "seconds"


def test_a_video_that_is_long_enough_goes_on_no_more() -> None:
    with pytest.raises(ApiError, match="expected up to 1 s more"):
        extend(make_reader(), source(1192), seconds=2)
    with pytest.raises(ApiError, match="expected up to 0 s more"):
        extend(make_reader(), source(1200), seconds=1)


def test_a_video_in_the_call_is_decoded_and_must_suit_the_model(tmp_path: Path) -> None:
    sent = read_sent_video(make_video(tmp_path))
    assert (sent.width, sent.height, sent.num_frames, sent.fps) == (64, 64, 9, 8.0)
    reader = make_reader()
    job = extend(reader, sent, seconds=1)
    assert len(list(reader.inputs.read_opening(job.request))) == 9
    odd = read_sent_video(make_video(tmp_path, width=66))
    with pytest.raises(ApiError, match="width") as refused:
        extend(reader, odd, seconds=1)
    assert refused.value.body.param == "video"
    for wrong in (b"", make_image(), encode_video("mjpeg", "mp4")):
        with pytest.raises(ApiError) as bad:
            read_sent_video(wrong)
        assert (bad.value.status, bad.value.body.param) == (400, "video")
