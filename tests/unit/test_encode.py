"""What repeats is computed once, and remembered within bounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.encode import CallMemo
from tests.support.families import FAMILIES
from tests.support.staged import Staged, assert_same, request_of


def double(tensor: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return 2 * tensor


@pytest.fixture(scope="module")
def staged(checkpoint_of: Callable[[str], Path]) -> Staged:
    return Staged(FAMILIES["wan_vace"], checkpoint_of("wan_vace"))


def test_equal_content_is_a_hit() -> None:
    memo = CallMemo(double)
    tensor = torch.arange(6.0).reshape(2, 3)
    first = memo(tensor, scale=1)
    assert memo(tensor.clone(), scale=1) is first
    assert memo(tensor.t().contiguous().t(), scale=1) is first  # equal, another layout
    assert (memo.hits, memo.misses) == (2, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (([torch.zeros(2)], {}), ([torch.zeros(3)], {})),
        (([torch.zeros(2, 1)], {}), ([torch.zeros(1, 2)], {})),
        (([torch.zeros(2)], {}), ([torch.zeros(2, dtype=torch.int32)], {})),
        (([torch.zeros(2)], {}), ([-torch.zeros(2)], {})),
        (([torch.zeros(2)], {"a": 1}), ([torch.zeros(2)], {"a": True})),
        (([torch.zeros(2)], {"a": 1}), ([torch.zeros(2)], {"b": 1})),
        (([torch.zeros(2)], {"a": None}), ([torch.zeros(2)], {"a": "None"})),
        (([torch.zeros(2), [1, 2]], {}), ([torch.zeros(2), (1, 2)], {})),
        (([torch.zeros(2), [[1], 2]], {}), ([torch.zeros(2), [[1, 2]]], {})),
        (([torch.zeros(2), {"a": 1}], {}), ([torch.zeros(2)], {"a": 1})),
        (
            ([torch.zeros(2), {"mask": torch.zeros(5000)}], {}),
            ([torch.zeros(2), {"mask": torch.arange(5000) == 2500}], {}),
        ),
    ],
)
def test_other_content_is_a_miss(one: Any, other: Any) -> None:
    memo = CallMemo(double)
    memo(*one[0], **one[1])
    memo(*other[0], **other[1])
    assert (memo.hits, memo.misses) == (0, 2)


def test_an_unknown_kind_of_argument_is_never_remembered() -> None:
    """Its text may be the same though its content isn't."""
    calls: list[Any] = []
    memo = CallMemo(lambda value: calls.append(value) or torch.zeros(1))
    thing = [object()]
    memo(thing)
    memo(thing)
    assert len(calls) == 2
    assert memo.hits == 0


def test_the_least_recently_used_go_when_the_bytes_are_full() -> None:
    memo = CallMemo(lambda value: {"out": (torch.zeros(25), [torch.full((25,), value)])}, 600)
    memo(1.0)
    memo(2.0)
    memo(3.0)  # 200 bytes each
    memo(1.0)
    memo(4.0)  # 2 goes
    assert (memo.hits, memo.misses) == (1, 4)
    memo(1.0)
    memo(3.0)
    assert memo.hits == 3
    memo(2.0)
    assert memo.misses == 5


def test_a_result_larger_than_all_room_is_the_only_one() -> None:
    memo = CallMemo(double, max_bytes=100)
    large = torch.zeros(1000)
    memo(torch.zeros(2))
    assert memo(large) is memo(large)
    memo(torch.zeros(2))
    assert (memo.hits, memo.misses) == (1, 3)


def test_repeated_texts_and_empty_videos_are_encoded_once(staged: Staged) -> None:
    request = request_of(staged.family)
    components = staged.encoder.stage.pipeline.components
    text, video = components["text_encoder"].forward, components["vae"].encode
    first = staged.encode(request)
    assert text.misses == 2  # the prompt, the negative prompt
    seen = video.misses
    other = staged.encode(request.model_copy(update={"prompt": "a cup", "seed": 8}))
    assert text.misses == 3
    assert video.misses == seen
    again = staged.encode(request.model_copy(update={"num_inference_steps": 9}))
    assert text.misses == 3
    assert_same(dict(again.values), dict(first.values))
    assert not torch.equal(other.values["prompt_embeds"], first.values["prompt_embeds"])
    negative = "negative_prompt_embeds"
    assert torch.equal(other.values[negative], first.values[negative])


def test_a_remembered_clip_is_a_fresh_encoders(staged: Staged) -> None:
    request = request_of(staged.family, prompt="a bowl", negative_prompt="")
    staged.encode(request)
    fresh = Staged(staged.family, staged.folder)
    assert staged.encode(request).to_bytes() == fresh.encode(request).to_bytes()


def test_conditioning_does_not_depend_on_the_guidance_scale(staged: Staged) -> None:
    """So clips share it; at 1, where diffusers' own encoders fail, it works as well."""
    request = request_of(staged.family)
    for scale in (0.0, 1.0, 7.5):
        changed = request.model_copy(update={"guidance_scale": scale})
        assert staged.encode(changed).to_bytes() == staged.encode(request).to_bytes()
