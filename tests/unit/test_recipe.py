"""Recipes are strict: an unknown key or a bad value is an error that says how to mend it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects
from pydantic import ValidationError

from jobs.plan import find_model
from jobs.recipes import find_recipe
from pipeline.blocks import _list_blocks
from pipeline.errors import UsageError
from pipeline.recipe import GangShape, Recipe, StageSpec, load_recipe

TEXT = """
name = "test"

[model]
checkpoint = "some/model"

[request]
width = 64
height = 64
num_frames = 17
fps = 8
num_inference_steps = 16
guidance_scale = 4.0

[limits]
size_multiple = 16
frame_multiple = 4
min_side = 32
max_side = 256
max_pixels = 36864
max_frames = 81

[[gangs]]
name = "single"
count = 2

[[gangs]]
name = "wide"
"""


def load(folder: Path, *overrides: str, text: str = TEXT) -> Recipe:
    path = folder / "test.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path, overrides)


def test_a_recipe_and_its_defaults(tmp_path: Path) -> None:
    recipe = load(tmp_path)
    assert recipe.request.fps == 8.0
    assert [gang.count for gang in recipe.gangs] == [2, 1]
    assert recipe.finish.codec == "h264"
    assert recipe.limits.min_frames == 1
    with pytest.raises(ValidationError):
        recipe.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_recipe_may_begin_with_a_mark_as_notepad_writes_it(tmp_path: Path) -> None:
    assert load(tmp_path, text=f"\ufeff{TEXT}") == load(tmp_path)


def test_overrides_reach_every_place_and_type(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "request.width=128",
        "request.negative_prompt=a blurry, dark one",
        'request.negative_prompt="the last wins = yes"',
        "gangs.1.count=4",
        "finish.preset=slow",
        "model.dtypes.vae=float32",
        "develop={ workers = 3 }",
    )
    assert recipe.request.width == 128
    assert recipe.request.negative_prompt == "the last wins = yes"
    assert recipe.gangs[1].count == 4
    assert recipe.finish.preset == "slow"
    assert recipe.model.dtypes == {"vae": "float32"}
    assert recipe.develop.workers == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("request.wdth=1", "unknown key 'request.wdth'; did you mean 'width'?"),
        ("xmodel.dtype=float32", "unknown key 'xmodel'; did you mean 'model'?"),
        ("gangs.0.cuont=2", "unknown key 'gangs.0.cuont'; did you mean 'count'?"),
        ("limits.zzz=1", "unknown key 'limits.zzz'; known keys: size_multiple"),
        ("request.width=-1", "request.width: Input should be greater than 0, got -1"),
        ("request.width=wide", "request.width: Input should be a valid integer"),
        ("finish.crf=99", "finish.crf: Input should be less than or equal to 51, got 99"),
        ("finish.preset=placebo", "finish.preset: Input should be 'ultrafast'"),
        ("gangs=[]", "gangs:"),
        ("gangs.1.name=single", "names must differ, got ['single', 'single']"),
        ("request.width", "expected key=value, for example request.width=128"),
        ("=5", "expected key=value"),
        ("name.first=x", "'name.first=x': name is not a section"),
        ("gangs.5.count=1", "'5' is not a section of the recipe"),
    ],
)
def test_a_bad_override(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def list_floats() -> Iterator[str]:
    schema = Recipe.model_json_schema()
    for section, field in schema["properties"].items():
        place, kind = section, field
        if "items" in field:
            place, kind = f"{section}.0", field["items"]
        if "$ref" in kind:
            keys = schema["$defs"][kind["$ref"].rpartition("/")[2]]["properties"]
            yield from (f"{place}.{key}" for key in keys if keys[key].get("type") == "number")


FLOATS = (*list_floats(), "model.configs.boundary_ratio", "model.components.scheduler.flow_shift")


@pytest.mark.parametrize("key", FLOATS)
@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
def test_no_number_is_infinite(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, f"{key}={value}")
    assert str(caught.value).startswith(f"test.toml: {key}")
    assert f"Input should be a finite number, got {float(value)}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", [key for key in FLOATS if key.endswith("_s")])
def test_a_time_to_wait_is_one_that_can_be_waited_for(tmp_path: Path, key: str) -> None:
    assert threading.TIMEOUT_MAX > 1e9
    load(tmp_path, f"{key}=1e9")
    with pytest.raises(UsageError, match=f"{key}: Input should be less than or equal to 1000000"):
        load(tmp_path, f"{key}=1e10")


@pytest.mark.parametrize("text", [TEXT, TEXT.partition('[[gangs]]\nname = "wide"')[0]])
def test_a_wrong_key_of_the_only_gang_is_all_that_is_said(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(tmp_path, "gangs.0.cout=1", text=text)
    hint = "unknown key 'gangs.0.cout'; did you mean 'count'?"
    assert str(caught.value) == f"test.toml: {hint}"


def test_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no recipe at .*none\.toml"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="can't be read as a recipe: Is a directory"):
        load_recipe(tmp_path)
    with pytest.raises(UsageError, match="is not a TOML file"):
        load(tmp_path, text="name = ")
    with pytest.raises(UsageError, match="model is missing"):
        load(tmp_path, text='name = "x"')


def test_devices_follow_resources() -> None:
    assert StageSpec().device == "cpu"
    assert StageSpec(num_gpus=0.25).device == "cuda"
    assert GangShape(name="x").device == "cpu"
    assert GangShape(name="x", num_gpus=1).device == "cuda"
    for wrong in (1.5, 2):  # a process uses one
        with pytest.raises(ValidationError, match="less than or equal to 1"):
            GangShape(name="x", num_gpus=wrong)
        with pytest.raises(ValidationError, match="less than or equal to 1"):
            StageSpec(num_gpus=wrong)


def test_gangs_that_a_model_cannot_be_cut_for_are_refused_before_its_weights_are_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = {"_class_name": "WanTransformer3DModel", "num_attention_heads": 8, "ffn_dim": 64}
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(config))
    fetched: list[str] = []

    def download(*_: Any, allow_patterns: list[str], **__: Any) -> str:
        files = ("model_index.json", "transformer/config.json", "transformer/weights.safetensors")
        fetched.extend(filter_repo_objects(files, allow_patterns=allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    recipe = find_recipe(overrides=("model.checkpoint=somebody/something", "gangs.0.tensor=3"))
    with pytest.raises(UsageError, match="tensor = 3 doesn't divide"):
        find_model(recipe)
    assert fetched == ["model_index.json", "transformer/config.json"]


def test_blocks_that_diffusers_lacks_are_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pytest.fail)
    for name, near in (("Wan22VaceBlock", "Wan22VaceBlocks"), ("WanPipeline", "WanBlocks")):
        recipe = find_recipe(overrides=("model.checkpoint=somebody/some", f"model.blocks={name}"))
        with pytest.raises(UsageError) as caught:
            find_model(recipe)
        assert str(caught.value) == (
            f"model.blocks: diffusers has no blocks class {name!r}; did you mean {near!r}?"
        )


def test_every_class_that_a_recipe_may_name_is_one_that_diffusers_has() -> None:
    known = _list_blocks()
    assert {"Wan22VaceBlocks", "LTX2AutoBlocks"} <= known
    for name in known:
        assert issubclass(getattr(diffusers, name), diffusers.ModularPipelineBlocks)
