"""Who waits is told for about how long: by what is before it, and what steps have taken so far."""

from __future__ import annotations

import pytest

from cluster.answers import ClipProgress
from cluster.forecast import UNTIMED_S, Forecast, UrgentClip
from cluster.schedule import Turn
from tests.support.outputs import A, draft

STEPS = draft(A).request.num_inference_steps
STEP_S = 2.0
CLIP_S = STEPS * STEP_S
HALF = ClipProgress(STEPS // 2, STEPS, STEP_S)


def make(owner: str = "me", priority: int = 0, progress: ClipProgress | None = None) -> UrgentClip:
    return UrgentClip(draft(A).request, Turn(owner, priority), progress)


def test_it_waits_for_those_before_it() -> None:
    clips = [make(progress=HALF), make(), make(), make()]
    waits = [Forecast().find_wait_s(each, clips, 1) for each in clips[1:]]
    assert waits == [CLIP_S / 2, 1.5 * CLIP_S, 2.5 * CLIP_S]


def test_gangs_share_what_is_before_it() -> None:
    clips = [make(progress=HALF), make(progress=ClipProgress(0, STEPS, STEP_S)), make(), make()]
    waits = [Forecast().find_wait_s(each, clips, 2) for each in clips[2:]]
    assert waits == [CLIP_S / 2, CLIP_S]
    assert Forecast().find_wait_s(clips[2], clips, 3) == 0, "a gang has nothing to do"


def test_a_larger_clip_takes_longer() -> None:
    large = UrgentClip(
        draft(A).request.model_copy(update={"num_inference_steps": 3 * STEPS}), Turn()
    )
    clips = [make(progress=HALF), large, make()]
    assert Forecast().find_wait_s(clips[2], clips, 1) == pytest.approx(3.5 * CLIP_S)


def test_owners_take_turns_and_the_higher_priority_goes_first() -> None:
    flood = [make("another") for _ in range(50)]
    mine = make()
    clips = [make("another", progress=HALF), *flood, mine]
    assert Forecast().find_wait_s(mine, clips, 1) == 1.5 * CLIP_S
    urgent = make(priority=9)
    assert Forecast().find_wait_s(mine, [*clips, urgent], 1) == 3.5 * CLIP_S
    assert Forecast().find_wait_s(urgent, [*clips, urgent], 1) == 1.5 * CLIP_S


def test_before_any_step_a_later_place_is_a_longer_wait_and_a_pace_is_kept() -> None:
    clips = [make(), make(), make()]
    forecast = Forecast()
    assert [forecast.find_wait_s(each, clips, 0) for each in clips] == [0, UNTIMED_S, 2 * UNTIMED_S]
    forecast.find_wait_s(clips[0], [make(progress=HALF), *clips], 1)
    assert [forecast.find_wait_s(each, clips, 1) for each in clips] == [0, CLIP_S, 2 * CLIP_S]
