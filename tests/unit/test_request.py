"""A request is complete, frozen and strict, and its text is in one form."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.request import MAX_SEED, RenderRequest, normalize_text

FIELDS: dict[str, Any] = {
    "prompt": "A green bottle moving left on a yellow background",
    "width": 80,
    "height": 48,
    "num_frames": 17,
    "fps": 8.0,
    "seed": 0,
    "num_inference_steps": 16,
    "guidance_scale": 4.0,
}


def test_derived_values() -> None:
    request = RenderRequest(**FIELDS)
    assert request.negative_prompt == ""
    assert request.duration_s == 17 / 8
    assert request.work == 80 * 48 * 17 * 16


def test_a_request_is_frozen() -> None:
    with pytest.raises(ValidationError):
        RenderRequest(**FIELDS).seed = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("missing", sorted(FIELDS))
def test_every_field_but_the_negative_prompt_is_needed(missing: str) -> None:
    with pytest.raises(ValidationError, match=missing):
        RenderRequest(**{name: value for name, value in FIELDS.items() if name != missing})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", ""),
        ("prompt", "  "),
        ("prompt", None),
        ("width", 0),
        ("width", -64),
        ("width", 64.0),
        ("width", "64"),
        ("width", True),
        ("num_frames", 0),
        ("fps", 0.0),
        ("fps", float("nan")),
        ("fps", float("inf")),
        ("seed", -1),
        ("seed", MAX_SEED + 1),
        ("num_inference_steps", 0),
        ("guidance_scale", -1.0),
        ("guidance_scale", float("nan")),
        ("steps", 5),
    ],
)
def test_a_wrong_value_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        RenderRequest(**(FIELDS | {name: value}))


def test_the_edges_are_allowed() -> None:
    request = RenderRequest(**(FIELDS | {"seed": MAX_SEED, "guidance_scale": 0.0}))
    assert request.seed == 2**63 - 1


@given(st.text(st.characters(codec="utf-8")))
def test_normal_text_stays_as_it_is(text: str) -> None:
    normal = normalize_text(text)
    assert normalize_text(normal) == normal
    assert unicodedata.is_normalized("NFC", normal)
    assert normal == normal.strip()


@given(st.text(st.characters(codec="utf-8")).filter(lambda text: normalize_text(text)))
def test_a_request_reads_back_from_its_own_dump(text: str) -> None:
    request = RenderRequest(**(FIELDS | {"prompt": text, "negative_prompt": text}))
    assert RenderRequest(**request.model_dump()) == request
    assert RenderRequest.model_validate_json(request.model_dump_json()) == request
