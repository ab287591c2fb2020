"""Which calls say the same."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import from_json

from jobs.api.call import Call
from jobs.api.wire import ApiError
from pipeline.batches import BatchJob, new_batch_id
from pipeline.uploads import new_file_id

PATH = "/v1/videos"
SAID: dict[str, Any] = {"prompt": "a ball", "seed": 3, "input_reference": b"an image"}


def read(fields: dict[str, Any] = SAID, path: str = PATH) -> Call:
    return Call.read("me", "order 66", path, fields)


def test_what_is_said_in_another_order_is_the_same() -> None:
    assert read(dict(reversed(SAID.items()))) == read()


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("/v1/videos/extensions", {}),
        (PATH, {"prompt": "a ball "}),
        (PATH, {"seed": "3"}),
        (PATH, {"metadata": None}),
        (PATH, {"input_reference": b"another"}),
        (PATH, {"input_reference": "an image"}),
    ],
)
def test_what_is_said_otherwise_is_another_call(path: str, change: dict[str, Any]) -> None:
    other = read({**SAID, **change}, path)
    assert other.idempotency_fingerprint != read().idempotency_fingerprint
    made = BatchJob(
        id=new_batch_id(), input_file_id=new_file_id(), endpoint=PATH, completion_window="24h",
        owner="me", idempotency_fingerprint=read().idempotency_fingerprint,
    )  # fmt: skip
    read().check(made)
    with pytest.raises(ApiError, match=f"stands for another call, which made {made.id}") as refused:
        other.check(made)
    assert (refused.value.status, refused.value.body.code) == (422, "idempotency_key_reused")


@pytest.mark.parametrize("key", [None, ""])
def test_a_call_without_a_key_repeats_nothing(key: str | None) -> None:
    assert Call.read("me", key, PATH, SAID) == Call("me", None, None)


@pytest.mark.parametrize("value", ["[" * 199 + "]" * 199, "9" * 4300, "NaN", "1e999"])
def test_whatever_a_body_may_say_has_a_fingerprint(value: str) -> None:
    assert read(from_json(f'{{"prompt": {value}}}')).idempotency_fingerprint
