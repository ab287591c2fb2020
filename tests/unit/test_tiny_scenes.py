"""The training clips show what their scenes say, and the measuring tools can tell."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline.tiny.captions import paraphrase, plain
from pipeline.tiny.conditions import condition, pack_mask
from pipeline.tiny.evaluate import judge, scenes, share
from pipeline.tiny.measure import motion_shown, psnr, see, turned
from pipeline.tiny.scenes import MOTIONS, draw_scene, drawable, held_out, other_object, render
from pipeline.tiny.shapes import SHAPES

pytestmark = pytest.mark.usefixtures("one_thread")


def test_same_seed_draws_the_same_clip() -> None:
    one, other = (render(draw_scene(np.random.default_rng(4)), 9, 64, 48) for _ in range(2))
    assert one.shape == (9, 64, 48, 3)
    assert one.dtype == np.float32
    assert np.array_equal(one, other)
    assert one.min() >= 0
    assert one.max() <= 1


def test_training_never_sees_a_held_out_combination() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_scene(rng) for _ in range(300)]
    assert not any(held_out(s.shape, s.colour, s.motion) for s in drawn)
    kept = scenes(100)
    assert all(held_out(s.shape, s.colour, s.motion) for s in kept)
    assert {s.motion for s in kept} == set(MOTIONS)
    assert {s.shape for s in kept} == set(SHAPES)


@pytest.mark.parametrize("size", [(17, 64, 64), (9, 64, 64), (17, 80, 48), (33, 64, 64)])
def test_measures_are_right_on_real_clips(size: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(7)
    verdicts = []
    for scene in scenes(30, seed=8):
        clip = render(scene, *size)
        noisy = clip + rng.normal(0, 0.02, clip.shape).astype(np.float32)
        verdicts.append(judge(scene, noisy))
    for name in ("colour", "background", "motion"):
        assert share(verdicts, name) == 100, name
    assert share(verdicts, "shape") >= 96


def test_a_frozen_clip_does_not_pass_for_a_moving_one() -> None:
    scene = replace(draw_scene(np.random.default_rng(1)), motion="left")
    clip = render(scene, 17, 64, 64)
    assert motion_shown(see(clip).mask) == "left"
    assert motion_shown(see(clip[::-1]).mask) == "right"
    assert motion_shown(see(np.repeat(clip[:1], 17, axis=0)).mask) == "still"


def test_turning_is_measured_in_degrees() -> None:
    scene = draw_scene(np.random.default_rng(2))
    scene = replace(scene, shape="shoe", motion="spinning", colour="red", background="white")
    assert turned(see(render(scene, 17, 64, 64)).mask) == pytest.approx(144, abs=12)


def test_psnr_of_a_known_error() -> None:
    clip = np.zeros((2, 4, 4, 3), np.float32)
    assert psnr(clip, clip + 0.1) == pytest.approx(20, abs=0.01)
    half = np.zeros((2, 4, 4), np.float32)
    half[0] = 1
    other = clip.copy()
    other[1] += 0.5
    assert psnr(clip, other, half) > 79


def test_captions_say_what_the_scene_is() -> None:
    scene = draw_scene(np.random.default_rng(0))
    scene = replace(
        scene, shape="bottle", colour="green", background="navy", backdrop="gradient", motion="left"
    )
    assert plain(scene) == "a green bottle moving left on a dark blue gradient background"
    rng = np.random.default_rng(3)
    texts = {paraphrase(rng, scene) for _ in range(200)}
    assert len(texts) > 150
    assert any(t.isupper() for t in texts)
    assert any("초록" in t for t in texts)


@pytest.mark.parametrize("kind", ["first", "first_last", "prefix", "box", "shape"])
def test_conditions_blank_what_is_to_be_drawn(kind: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(6):
        scene = draw_scene(rng)
        clip = render(scene, 17, 64, 64)
        given = condition(kind, rng, scene, clip)
        drawn = given.mask > 0.5
        assert drawn.any()
        assert not drawn.all()
        assert (given.kept[:, drawn] == 0).all()
        kept = given.kept.permute(1, 2, 3, 0)[~drawn].numpy()
        assert np.allclose(kept, clip[~drawn.numpy()] * 2 - 1, atol=1e-6)
        if kind in ("box", "shape"):
            # The shape itself is wholly inside the mask.
            assert drawn.numpy()[see(clip).mask > 0.6].mean() > 0.98
        if given.redrawn is not None:
            assert (given.redrawn[:, ~drawn] == 0).all()


def test_a_first_frame_mask_packs_to_ones() -> None:
    rng = np.random.default_rng(5)
    scene = draw_scene(rng)
    mask = condition("first", rng, scene, render(scene, 17, 64, 64)).mask
    packed = pack_mask(mask)
    assert packed.shape == (64, 5, 8, 8)
    assert packed.min() == 1


def test_an_object_is_replaced_by_another() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        scene = draw_scene(rng)
        other = other_object(rng, scene)
        assert other.shape != scene.shape
        assert other.colour != scene.colour
        assert other.background == scene.background
        assert drawable(other)
