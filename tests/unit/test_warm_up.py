"""The endpoint's encode stage makes its first call, a slow one, before anybody waits for it."""

from __future__ import annotations

from typing import Any, cast

import pytest

from cluster import online
from cluster.stages import Encode, RenderSpec
from jobs.recipes import find_recipe
from pipeline.encode import Encoder
from pipeline.handoff import Conditioning
from pipeline.request import RenderRequest

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPE = find_recipe()


def test_the_endpoints_encoder_has_made_a_clips_conditioning_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoded = list[tuple[RenderRequest, Conditioning]]()
    encode = Encoder.encode

    def note(self: Encoder, request: RenderRequest, **given: Any) -> Conditioning:
        made = encode(self, request, **given)
        encoded.append((request, made))
        return made

    monkeypatch.setattr(Encoder, "encode", note)
    cast(Any, online)._Encode(RenderSpec(RECIPE, "0" * 64))
    [(request, made)] = encoded
    assert request.model_dump(include={*RECIPE.request.model_dump()}) == RECIPE.request.model_dump()
    assert made.to_bytes()


def test_what_a_model_refuses_of_it_stops_no_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Encode(RenderSpec(RECIPE, "0" * 64))

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("an image is needed")

    monkeypatch.setattr(Encoder, "encode", refuse)
    stage.warm_up()
