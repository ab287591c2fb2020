"""The recipes that ship: each loads, obeys its own limits and fits the hardware that it names."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.recipes import FOLDER, find_recipe, list_recipes
from pipeline.denoise import Denoiser
from pipeline.graph import Graph, StageName
from pipeline.handoff import Latents
from pipeline.opening import CONDITIONS
from pipeline.parallel.degrees import check_degrees
from pipeline.recipe import Recipe
from pipeline.rules import Rules
from tests.support.families import FAMILIES
from tests.support.staged import Staged, assert_same, finish, request_of

GPUS = {
    "tiny-cpu": 0,
    "wan21-1.3b-24gb": 1,
    "wan21-14b-80gb": 1,
    "wan21-vace-14b-80gb": 2,
    "wan22-a14b-8x80gb": 8,
    "ltx2": 2,
    "hunyuanvideo15": 2,
}
FAMILY = {
    "tiny-cpu": "wan_vace",
    "wan21-1.3b-24gb": "wan21",
    "wan21-14b-80gb": "wan21",
    "wan21-vace-14b-80gb": "wan_vace",
    "wan22-a14b-8x80gb": "wan22",
    "ltx2": "ltx2",
    "hunyuanvideo15": "hunyuan_video_15",
}
STAGES: tuple[StageName, ...] = ("encode", "denoise", "decode")

every_recipe = pytest.mark.parametrize("name", sorted(GPUS))


def recipe_of(name: str) -> Recipe:
    return find_recipe(name)


def test_every_recipe_is_tested() -> None:
    assert set(list_recipes()) == set(GPUS) == set(FAMILY)


@every_recipe
def test_it_loads_and_its_defaults_obey_its_limits(name: str) -> None:
    recipe = recipe_of(name)
    assert recipe.name == name
    assert recipe.description
    Rules.from_recipe(recipe)  # raises if a default breaks a limit


@every_recipe
def test_its_limits_are_the_familys(name: str) -> None:
    """Multiples are the VAE's factors times the patch, which the tiny families keep."""
    limits, family = recipe_of(name).limits, FAMILIES[FAMILY[name]]
    assert limits.size_multiple == family.size_multiple
    assert limits.frame_multiple == family.frame_multiple


@every_recipe
def test_its_model_section_fits_the_family(name: str, checkpoint_of: Callable[[str], Path]) -> None:
    """The blocks, configs and settings that it names exist: tried on the tiny checkpoint."""
    model = recipe_of(name).model
    folder = checkpoint_of(FAMILY[name])
    graph = Graph(model, folder)
    for stage in STAGES:
        components = graph.load(stage).pipeline.components
        for part, changes in model.components.items():
            if part in components:
                settings = components[part].config
                assert {key: settings[key] for key in changes} == changes
        if stage == "decode" and "vae" in model.dtypes:
            assert str(components["vae"].dtype) == f"torch.{model.dtypes['vae']}"


def test_ltx2_leaves_out_a_pass_that_changes_nothing(checkpoint_of: Callable[[str], Path]) -> None:
    """Of four passes a step three: that with the prompt, that without, and that of each alone."""
    family, folder = FAMILIES["ltx2"], checkpoint_of("ltx2")
    request = request_of(family, num_inference_steps=2)
    conditioning = Staged(family, folder).encode(request)
    model = recipe_of("ltx2").model.model_copy(update={"dtype": "float32"})
    made: list[Latents] = []
    passes: list[int] = []
    for components in ({}, model.components):
        denoiser = Denoiser(Graph(model.model_copy(update={"components": components}), folder))
        (transformer,) = denoiser.stage.transformers()
        calls: list[object] = []
        transformer.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        made.append(finish(denoiser.start(request, conditioning)))
        passes.append(len(calls))
    assert passes == [8, 6]
    assert_same(dict(made[0].values), dict(made[1].values))


@every_recipe
def test_it_sees_frames_where_its_family_can(
    name: str, checkpoint_of: Callable[[str], Path]
) -> None:
    recipe = recipe_of(name)
    folder = checkpoint_of(FAMILY[name])
    taken = {each.name for each in Graph(recipe.model, folder).blocks("encode").inputs}
    assert (recipe.limits.max_seen_frames > 0) == (taken >= {*CONDITIONS})


@every_recipe
def test_it_fits_the_hardware(name: str) -> None:
    recipe = recipe_of(name)
    shared = [recipe.encode.num_gpus] * recipe.encode.workers
    shared += [recipe.develop.num_gpus] * recipe.develop.workers
    kept = [sum(map(each.is_kept, range(each.count))) for each in recipe.gangs]
    for place, gang in enumerate(recipe.gangs):  # each shape in turn has all of its gangs
        numbers = [*kept[:place], gang.count, *kept[place + 1 :]]
        gangs = [
            each.num_gpus
            for each, number in zip(recipe.gangs, numbers, strict=True)
            for _ in range(number * each.layout.ranks)
        ]
        assert count_gpus([*shared, *gangs]) == GPUS[name]


def count_gpus(shares: list[float]) -> int:
    """Return how many GPUs actors with these shares of one need."""
    rooms: list[float] = []  # what is left of each GPU, the largest share placed first
    for share in sorted(filter(None, shares), reverse=True):
        fitting = next((i for i, left in enumerate(rooms) if share <= left + 1e-9), None)
        if fitting is None:
            rooms.append(1 - share)
        else:
            rooms[fitting] -= share
    return len(rooms)


@every_recipe
def test_its_largest_clip_has_a_gang(name: str) -> None:
    recipe = recipe_of(name)
    limits, most = recipe.limits, recipe.max_tokens
    patches = limits.max_pixels // limits.size_multiple**2
    frames = (limits.max_frames - 1) // limits.frame_multiple + 1
    assert most is None or patches * frames <= most


def test_wan22_deals_long_clips_out(tmp_path: Path) -> None:
    recipe = recipe_of("wan22-a14b-8x80gb")
    counts = {"_class_name": "WanTransformer3DModel", "num_attention_heads": 40, "ffn_dim": 13824}
    for expert in ("transformer", "transformer_2"):
        (tmp_path / expert).mkdir()
        (tmp_path / expert / "config.json").write_text(json.dumps(counts))
    check_degrees(tmp_path, recipe.gangs)  # raises if it can't be dealt out so
    gangs = {frames: recipe.find_gang(1280, 720, frames) for frames in (81, 85, 241)}
    layouts = {frames: gang and str(gang.layout) for frames, gang in gangs.items()}
    assert layouts == {81: "1", 85: "tensor=2 context=2", 241: "tensor=2 context=2"}


@every_recipe
def test_it_says_that_it_was_not_run(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text("utf-8")
    untried = text.startswith("# Not run on this hardware yet.\n")
    assert untried == (GPUS[name] > 0)
    assert tomllib.loads(text)["description"].endswith("Not run yet.") == untried
