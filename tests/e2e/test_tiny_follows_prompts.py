"""The shipped weights follow a dozen prompts: colours and direction, in process."""

from typing import Any

import pytest

from pipeline.tiny.measure import colour_name, motion_shown, see
from pipeline.tiny.render import load, render_clip

PROMPTS = (
    # prompt, colour, background, motion
    ("a green bottle moving left on a yellow background", "green", "yellow", "left"),
    ("a red circle moving right on a white background", "red", "white", "right"),
    ("a blue square moving up on an orange background", "blue", "orange", "up"),
    ("a white heart moving down on a purple background", "white", "purple", "down"),
    ("a black cup moving right on a pink background", "black", "pink", "right"),
    ("a yellow box moving left on a blue background", "yellow", "blue", "left"),
    ("an orange can moving up on a dark blue background", "orange", "navy", "up"),
    ("a pink triangle moving down on a green background", "pink", "green", "down"),
    ("a purple shoe moving left on a white gradient background", "purple", "white", "left"),
    ("A TEAL RING MOVING RIGHT ON A BROWN BACKGROUND", "teal", "brown", "right"),
    (
        "studio shot of a crimson ball sliding to the left on a black backdrop",
        "red",
        "black",
        "left",
    ),
    ("노란 배경에서 오른쪽으로 움직이는 파란 병", "blue", "yellow", "right"),
)


@pytest.fixture(scope="module")
def pipe(one_thread: None) -> Any:
    return load()


@pytest.mark.parametrize(("prompt", "colour", "background", "motion"), PROMPTS)
def test_a_clip_shows_what_its_prompt_says(
    pipe: Any, prompt: str, colour: str, background: str, motion: str
) -> None:
    clip = render_clip(pipe, prompt, seed=7)
    assert clip.shape == (17, 64, 64, 3)
    seen = see(clip)
    shown = colour_name(seen.foreground), colour_name(seen.background), motion_shown(seen.mask)
    assert shown == (colour, background, motion)


def test_a_prompt_it_never_learnt_renders_all_the_same(pipe: Any) -> None:
    clip = render_clip(pipe, "a city at dusk", seed=1, size=(5, 80, 48), steps=4)
    assert clip.shape == (5, 80, 48, 3)
