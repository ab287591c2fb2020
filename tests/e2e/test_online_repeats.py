"""Calls that are made again with their `Idempotency-Key`, by the official client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support.media import make_image
from tests.support.online import OTHERS, PROMPT, Server, make_lines

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]


def once(key: str) -> dict[str, Any]:
    return {"extra_headers": {"Idempotency-Key": key}}


def check_refused(call: Callable[[], Any]) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        call()
    assert refused.value.code == "idempotency_key_reused"


def test_a_key_makes_one_video(client: OpenAI, server: Server) -> None:
    image = ("photo.png", make_image(), "image/png")
    for key, sent in [("order 1", {}), ("order 2", {"input_reference": image})]:
        asked: dict[str, Any] = {"prompt": PROMPT, **sent, **once(key)}
        made = {client.videos.create(**asked).id for _ in range(3)}
        assert len(made) == 1
        check_refused(lambda asked=asked: client.videos.create(**{**asked, "prompt": "another"}))
        check_refused(lambda asked=asked: client.videos.create(**asked, seconds="1"))  # type: ignore[arg-type]
        with server.client(OTHERS) as others:
            theirs = others.videos.create(**asked).id
            assert theirs not in made
            others.videos.delete(theirs)
        client.videos.delete(made.pop())
        anew = client.videos.create(**asked).id
        assert anew not in made, "it was deleted"
        client.videos.delete(anew)


def test_what_goes_on_from_a_video_is_that_one_also_once_the_video_is_deleted(
    client: OpenAI,
) -> None:
    extend: Any = client.videos.extend
    first, other = (
        client.videos.create_and_poll(prompt=PROMPT, seconds="1", poll_interval_ms=100).id  # type: ignore[arg-type]
        for _ in range(2)
    )
    longer: dict[str, Any] = {"prompt": PROMPT, "seconds": "1", **once("order 3")}
    calls: list[Callable[[str], Any]] = [
        lambda source: client.videos.remix(source, prompt="another", **once("order 4")),
        lambda source: extend(video=(None, source), **longer),
    ]
    made = [call(first).id for call in calls]
    client.videos.delete(first)
    assert [call(first).id for call in calls] == made
    for call in calls:
        check_refused(lambda call=call: call(other))
    for each in [*made, other]:
        client.videos.delete(each)
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            call(first)


def test_a_batch_is_that_one_also_once_its_file_is_deleted(client: OpenAI) -> None:
    first, other = (
        client.files.create(file=make_lines({"prompt": PROMPT, "size": size}), purpose="batch").id
        for size in ("1x1", "2x2")
    )
    asked: Any = {"endpoint": "/v1/videos", "completion_window": "24h", **once("order 5")}
    batch = client.batches.create(input_file_id=first, **asked)
    client.files.delete(first)
    assert client.batches.create(input_file_id=first, **asked).id == batch.id
    check_refused(lambda: client.batches.create(input_file_id=other, **asked))
    night = {"metadata": {"night": "1"}}
    check_refused(lambda: client.batches.create(input_file_id=first, **asked, **night))
    client.files.delete(other)
