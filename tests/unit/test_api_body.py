"""A call's fields become the request that a table's row with the same values is."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.api.body import MAX_METADATA, parse_metadata, parse_priority, parse_request
from jobs.api.wire import ApiError
from jobs.plan import plan_call
from jobs.recipes import find_recipe
from pipeline.identity import clip_id, digest_renderer
from tests.support.command import write_table

RECIPE = find_recipe()
PROMPT = "a red ball"


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({}, {}),
        ({"size": "96x64"}, {"width": 96, "height": 64}),
        ({"seconds": "4"}, {"seconds": 4}),
        ({"seconds": 4, "fps": "12"}, {"seconds": 4.0, "fps": 12.0}),
        ({"seed": "7", "num_frames": "9"}, {"seed": 7, "num_frames": 9}),
        ({"guidance_scale": "2.5", "num_inference_steps": 8.0},
         {"guidance_scale": 2.5, "num_inference_steps": 8}),
        ({"negative_prompt": " blurry "}, {"negative_prompt": "blurry"}),
    ],
)  # fmt: skip
def test_a_call_asks_for_the_clip_that_a_row_asks_for(
    fields: dict[str, Any], row: dict[str, Any], tmp_path: Any
) -> None:
    table = write_table(tmp_path / "t.parquet", prompt=[PROMPT], **{k: [v] for k, v in row.items()})
    call = plan_call([table], RECIPE)
    renderer = digest_renderer(call.model_fingerprint, RECIPE.finish)
    asked = parse_request({"prompt": PROMPT, **fields}, RECIPE)
    assert {clip_id(asked, renderer): asked} == call.remaining(set())


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"prompt": None}, "prompt", "expected some text"),
        ({"prompt": " "}, "prompt", "blank"),
        ({"prompt": 3}, "prompt", "prompt"),
        ({"prompt": PROMPT, "size": "65x64"}, "size", "nearest is 64"),
        ({"prompt": PROMPT, "size": "256x256"}, "size", "at most 36864 pixels"),
        ({"prompt": PROMPT, "size": "big"}, "size", "expected WIDTHxHEIGHT"),
        ({"prompt": PROMPT, "seconds": "400"}, "seconds", "nearest is"),
        ({"prompt": PROMPT, "seconds": "soon"}, "seconds", "soon"),
        ({"prompt": PROMPT, "seed": "-1"}, "seed", "expected"),
        ({"prompt": PROMPT, "seed": ["1"]}, "seed", "expected"),
        ({"prompt": PROMPT, "sead": 1}, "sead", "did you mean 'seed'?"),
        ({"prompt": PROMPT, "width": 64}, "width", "unknown parameter"),
    ],
)
def test_what_the_model_cannot_do_is_refused_with_what_it_can(
    fields: dict[str, Any], param: str, said: str
) -> None:
    with pytest.raises(ApiError) as refused:
        parse_request(fields, RECIPE)
    assert refused.value.status == 400
    assert refused.value.body.param == param
    assert said in refused.value.body.message
    assert refused.value.body.type == "invalid_request_error"


def test_a_priority_is_a_digit() -> None:
    given = [{}, {"priority": None}, {"priority": ""}, {"priority": 9}, {"priority": "3"}]
    assert [parse_priority(each) for each in given] == [0, 0, 0, 9, 3]
    for wrong in (-1, 10, 1.5, "high", True, [1]):
        with pytest.raises(ApiError) as refused:
            parse_priority({"priority": wrong})
        assert refused.value.body.param == "priority"


def test_pairs_of_ones_own_are_text_and_few() -> None:
    assert parse_metadata({"metadata": {"campaign": "spring"}}) == {"campaign": "spring"}
    assert parse_metadata({}) == {}
    many = {str(number): "" for number in range(MAX_METADATA + 1)}
    for wrong in ("text", ["list"], {"a": 1}, {"a": "x" * 1000}, many):
        with pytest.raises(ApiError):
            parse_metadata({"metadata": wrong})
