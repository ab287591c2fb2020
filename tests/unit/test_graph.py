"""What a graph accepts as a checkpoint, and what it says of the rest."""

from __future__ import annotations

import errno
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoModel
from diffusers.modular_pipelines import ModularPipeline
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pipeline.errors import UnreachableError, UsageError
from pipeline.graph import Graph
from pipeline.parallel.loading import INDEX, WEIGHTS
from pipeline.parallel.place import Place
from pipeline.parallel.tensor import TensorGroup
from pipeline.recipe import ModelSpec
from pipeline.state import session_copy
from tests.support.families import FAMILIES
from tests.support.staged import Staged, model_of, request_of


@pytest.fixture(scope="module")
def wan(checkpoint_of: Callable[[str], Path]) -> Path:
    return checkpoint_of("wan21")


@pytest.fixture
def copy(wan: Path, tmp_path: Path) -> Path:
    """A copy of a Wan 2.1 checkpoint, to be damaged."""
    return Path(shutil.copytree(wan, tmp_path / "checkpoint"))


def graph_of(folder: Path, **model: Any) -> Graph:
    return Graph(ModelSpec(checkpoint=str(folder), dtype="float32", **model), folder)


def error_of(folder: Path, **model: Any) -> str:
    """Return the one line that a user sees."""

    def load() -> None:
        for stage in ("encode", "denoise", "decode"):
            graph_of(folder, **model).load(stage)

    with pytest.raises(UsageError) as caught:
        load()
    text = str(caught.value)
    assert text.startswith("model.")
    assert "\n" not in text
    assert len(text) < 1000
    return text


def test_a_disk_that_fails_is_no_fault_of_the_checkpoints(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", load)
    with pytest.raises(UnreachableError, match=r"cannot load text_encoder .*Input/output error"):
        graph_of(copy).load("encode")
    monkeypatch.undo()
    for path in (copy / "text_encoder").glob("*.safetensors*"):
        path.unlink()
    with pytest.raises(UsageError, match="cannot load text_encoder") as caught:
        graph_of(copy).load("encode")
    assert not isinstance(caught.value, UnreachableError)


def change_index(folder: Path, **entries: Any) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_stages_have_their_own_dtypes(wan: Path) -> None:
    graph = Graph(ModelSpec(checkpoint=str(wan), dtype="bfloat16", dtypes={"vae": "float32"}), wan)
    encode, denoise, decode = (
        graph.load(stage).pipeline.components for stage in ("encode", "denoise", "decode")
    )
    assert encode["text_encoder"].dtype is torch.bfloat16
    assert denoise["transformer"].dtype is torch.bfloat16
    assert decode["vae"].dtype is torch.float32


def test_weights_are_for_inference(wan: Path) -> None:
    for stage in ("encode", "denoise", "decode"):
        for component in graph_of(wan).load(stage).pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                assert not component.training
                assert not any(each.requires_grad for each in component.parameters())


@pytest.mark.parametrize("place", [None, Place(tensor=TensorGroup(0, 2))], ids=["whole", "shared"])
def test_an_expert_is_on_its_device_before_the_next_is_read(
    checkpoint_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, place: Place | None
) -> None:
    """A gang's rank never has both in main memory; on the meta device nothing is in any."""
    folder = checkpoint_of("wan22")
    seen = list[torch.nn.Module]()
    update = ModularPipeline.update_components

    def note(pipeline: ModularPipeline, **components: Any) -> None:
        for each in components.values():
            if isinstance(each, torch.nn.Module):
                seen.append(each)
                assert all(value.is_meta for value in each.state_dict().values())
        update(pipeline, **components)

    monkeypatch.setattr(ModularPipeline, "update_components", note)
    stage = graph_of(folder).load("denoise", "meta", place)
    assert stage.transformers() == seen
    assert len(seen) == 2


@pytest.mark.parametrize("place", [None, Place(tensor=TensorGroup(0, 2))], ids=["whole", "shared"])
def test_weights_that_are_not_the_models_are_refused_in_every_layout(
    copy: Path, place: Place | None
) -> None:
    file = copy / "transformer" / WEIGHTS
    state = load_file(file)
    save_file({**state, "blocks.0.norm_x.weight": torch.ones(4)}, file)
    with pytest.raises(UsageError, match=r"unknown weight blocks\.0\.norm_x"):
        graph_of(copy).load("denoise", "cpu", place)
    state.pop("proj_out.weight")
    save_file(state, file)
    with pytest.raises(UsageError, match="proj_out"):
        graph_of(copy).load("denoise", "cpu", place)


def test_an_experts_absence_is_no_error(checkpoint_of: Callable[[str], Path]) -> None:
    """Single-expert VACE: the index has no second transformer."""
    folder = checkpoint_of("wan_vace")
    stage = Graph(model_of(FAMILIES["wan_vace"], folder), folder).load("denoise")
    assert getattr(stage.pipeline, "transformer_2", None) is None


def test_other_stages_models_are_skeletons(checkpoint_of: Callable[[str], Path]) -> None:
    """Blocks read sizes from them; using their weights would raise."""
    staged = Staged(FAMILIES["ltx2"], checkpoint_of("ltx2"))
    pipeline = staged.graph.load("denoise").pipeline
    for name in ("vae", "audio_vae"):
        assert name not in pipeline.components
        assert all(each.is_meta for each in getattr(pipeline, name).parameters())
    assert pipeline._execution_device.type == "cpu"


def test_a_family_that_needs_an_image_says_so(checkpoint_of: Callable[[str], Path]) -> None:
    assert "also needs image_embeds for a clip; expected one that renders from text" in error_of(
        checkpoint_of("wan_i2v")
    )


def test_an_unknown_blocks_class(wan: Path) -> None:
    text = error_of(wan, blocks="Wan23Blocks")
    assert text == "model.blocks: diffusers has no blocks class 'Wan23Blocks'"
    assert "no blocks class 'WanPipeline'" in error_of(wan, blocks="WanPipeline")


def test_a_family_that_must_name_its_blocks(checkpoint_of: Callable[[str], Path]) -> None:
    assert "name them by model.blocks" in error_of(checkpoint_of("wan_vace"))


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"_class_name": "NoPipeline"}'])
def test_not_a_checkpoint(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "model_index.json").write_text(content)
    assert "no modular blocks" in error_of(tmp_path)


@pytest.mark.parametrize("blocks", ["QwenImageAutoBlocks", "StableDiffusionXLAutoBlocks"])
def test_a_model_of_images(wan: Path, blocks: str) -> None:
    assert "make no videos" in error_of(wan, blocks=blocks)


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_pickled_weights_are_refused(copy: Path, part: str) -> None:
    from safetensors.torch import load_file

    (weights,) = (copy / part).glob("*.safetensors")
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    text = error_of(copy)
    assert f"cannot load {part}" in text
    assert "safetensors" in text


@pytest.mark.parametrize("part", ["text_encoder", "transformer", "vae"])
def test_damaged_weights_are_refused(copy: Path, part: str) -> None:
    (weights,) = (copy / part).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"cannot load {part}" in error_of(copy)


def cut_short(folder: Path) -> None:
    weights = folder / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])


def deal_out(folder: Path) -> Path:
    """Make one file of weights many; return their index."""
    AutoModel.from_pretrained(str(folder)).save_pretrained(folder, max_shard_size="20KB")
    (folder / WEIGHTS).unlink()
    return folder / INDEX


def lose_one(folder: Path) -> None:
    deal_out(folder)
    sorted(folder.glob("*.safetensors"))[1].unlink()


def widen(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"ffn_dim": 2 * config["ffn_dim"]}))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (cut_short, WEIGHTS),
    "a file is missing": (lose_one, "-00002-of-"),
    "index is no JSON": (lambda folder: deal_out(folder).write_text("{"), "line 1 column 2"),
    "index is another": (lambda folder: deal_out(folder).write_text("{}"), "weight_map"),
    "index is a list": (lambda folder: deal_out(folder).write_text("[]"), "list indices"),
    "configuration is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "JSON"),
    "configuration is another's": (widen, r"blocks\.0\.ffn\.net\.0\.proj\.bias"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", [None, Place(tensor=TensorGroup(0, 2))], ids=["whole", "shared"])
def test_a_damaged_transformer_is_the_calls_fault_in_every_layout(
    copy: Path, place: Place | None, damage: str
) -> None:
    make, named = DAMAGES[damage]
    make(copy / "transformer")
    with pytest.raises(UsageError, match=named) as caught:
        graph_of(copy).load("denoise", "cpu", place)
    assert str(caught.value).startswith("model.checkpoint: ")
    assert not isinstance(caught.value, UnreachableError)


def test_a_disk_that_fails_under_a_share_is_no_fault_of_the_checkpoints(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = deal_out(copy / "transformer")
    read = Path.read_text

    def fail(path: Path, *how: Any) -> str:
        if path == index:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path, *how)

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(UnreachableError, match=r"cannot load transformer .*Input/output error"):
        graph_of(copy).load("denoise", "cpu", Place(tensor=TensorGroup(0, 2)))


@pytest.mark.parametrize("part", ["tokenizer", "scheduler", "transformer"])
def test_a_missing_part_is_named(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    assert re.search(rf"(cannot load|has no) {part}", error_of(copy))


def test_a_recipe_changes_a_schedulers_and_a_guiders_settings(
    checkpoint_of: Callable[[str], Path],
) -> None:
    folder = checkpoint_of("wan22")
    components = {"scheduler": {"flow_shift": 5.0}, "guider_2": {"guidance_scale": 3.5}}
    graph = graph_of(folder, components=components)
    pipeline = graph.load("denoise").pipeline
    plain = graph_of(folder).load("denoise").pipeline
    assert pipeline.scheduler.config.flow_shift == 5.0
    differing = {
        key
        for key, value in plain.scheduler.config.items()
        if value != pipeline.scheduler.config[key] and not key.startswith("_")
    }
    assert differing == {"flow_shift"}
    own = session_copy(pipeline, 7.0, graph.model)
    assert (own.guider.guidance_scale, own.guider_2.guidance_scale) == (7.0, 3.5)
    own = session_copy(plain, 7.0, graph_of(folder).model)
    assert (own.guider.guidance_scale, own.guider_2.guidance_scale) == (7.0, 7.0)
    assert plain.guider.guidance_scale != 7.0


@pytest.mark.parametrize(
    ("components", "said"),
    [
        ({"schedule": {"flow_shift": 5.0}}, "has no schedule"),
        ({"scheduler": {"shift": 5.0}}, "no shift; it has"),
        ({"transformer": {"num_layers": 5}}, "only schedulers and guiders"),
    ],
)
def test_settings_that_nothing_has_are_refused(
    wan: Path, components: dict[str, Any], said: str
) -> None:
    assert said in error_of(wan, components=components)


EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


def test_an_index_that_names_its_own_code_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "evil.py").write_text(EVIL + "class Evil: pass\n")
    (copy / "transformer" / "evil.py").write_text(EVIL + "class Evil: pass\n")
    change_index(copy, transformer=["evil", "Evil"])
    monkeypatch.syspath_prepend(str(copy))
    error_of(copy)
    assert not list(copy.rglob("ran"))


def test_blocks_in_the_checkpoint_are_refused(copy: Path) -> None:
    (copy / "evil.py").write_text(EVIL + "class Evil: pass\n")
    config = {"auto_map": {"ModularPipelineBlocks": "evil.Evil"}}
    (copy / "modular_config.json").write_text(json.dumps(config))
    assert "trust_remote_code" in error_of(copy)
    assert not list(copy.rglob("ran"))


def test_a_models_own_code_is_not_run(copy: Path) -> None:
    (copy / "text_encoder" / "evil.py").write_text(EVIL + "class Evil: pass\n")
    path = copy / "text_encoder" / "config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoModel": "evil.Evil"}}
    path.write_text(json.dumps(config))
    staged = Staged(FAMILIES["wan21"], copy)
    staged.encode(request_of(staged.family))  # loads as the class that the index names
    assert not list(copy.rglob("ran"))


def test_an_index_cannot_lead_elsewhere(copy: Path) -> None:
    """Weights come from the folder that was fingerprinted, whatever a modular index says."""
    index = json.loads((copy / "model_index.json").read_text())
    modular: dict[str, Any] = {
        "_class_name": "WanModularPipeline",
        "_blocks_class_name": "WanBlocks",
    }
    for name, place in index.items():
        if isinstance(place, list):
            spec = {"pretrained_model_name_or_path": "someone/else", "subfolder": name}
            modular[name] = [*place, spec | {"type_hint": place, "variant": None, "revision": None}]
    (copy / "modular_model_index.json").write_text(json.dumps(modular))
    graph = graph_of(copy)
    for stage in ("encode", "denoise", "decode"):
        graph.load(stage)
    shutil.rmtree(copy / "vae")
    assert re.search("(cannot load|has no) vae", error_of(copy))
