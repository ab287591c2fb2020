"""The shipped checkpoint: its size, its files, and that diffusers loads it both ways."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import ModularPipeline, WanVACEPipeline
from diffusers.modular_pipelines.wan import Wan22VaceBlocks
from safetensors import safe_open

from pipeline.tiny import CHECKPOINT

PROMPT = "a red square moving left on a white background"


pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_path_costs_no_torch() -> None:
    code = (
        "import sys, pipeline.tiny as tiny; assert 'torch' not in sys.modules;"
        "print(tiny.CHECKPOINT)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert Path(out.stdout.strip()) == CHECKPOINT


def test_the_weights_are_small_and_in_half_precision() -> None:
    files = [p for p in CHECKPOINT.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 16_000_000
    weights = [p for p in files if p.suffix == ".safetensors"]
    assert {p.parent.name for p in weights} == {"text_encoder", "vae", "transformer"}
    for path in weights:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            kinds = {str(file.get_slice(name).get_dtype()) for name in names}
            assert kinds == {"F16"}, path
            for name in names:
                assert torch.isfinite(file.get_tensor(name)).all(), name


def test_no_file_names_this_machine() -> None:
    for path in CHECKPOINT.rglob("*.json"):
        text = path.read_text()
        assert '"_name_or_path"' not in text, path
        assert str(Path.home()) not in text or str(Path.home()) == "/", path
    index = json.loads((CHECKPOINT / "model_index.json").read_text())
    assert index["_class_name"] == "WanVACEPipeline"


def test_ranks_divide_the_transformer() -> None:
    config = json.loads((CHECKPOINT / "transformer/config.json").read_text())
    assert config["num_attention_heads"] % 4 == 0
    assert config["ffn_dim"] % 4 == 0


def test_the_licence_is_stated() -> None:
    card = (CHECKPOINT.parent / "README.md").read_text()
    assert "Apache-2.0" in card


@pytest.fixture(scope="module")
def classic() -> torch.Tensor:
    pipe = WanVACEPipeline.from_pretrained(str(CHECKPOINT), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return _classic(pipe)


def _classic(pipe: WanVACEPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    made = pipe(PROMPT, num_frames=5, height=48, width=80, num_inference_steps=3,
                guidance_scale=4.0, generator=generator, output_type="pt")  # fmt: skip
    return made.frames[0]


def test_the_same_seed_gives_the_same_pixels(classic: torch.Tensor) -> None:
    pipe = WanVACEPipeline.from_pretrained(str(CHECKPOINT), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert torch.equal(_classic(pipe), classic)


def test_diffusers_finds_the_modular_blocks_by_itself(classic: torch.Tensor) -> None:
    pipe = ModularPipeline.from_pretrained(str(CHECKPOINT))
    pipe.load_components(dtype=torch.float32)
    assert pipe.transformer_2 is None
    pipe.update_components(guider=pipe.guider.new(guidance_scale=4.0))
    assert torch.allclose(_modular(pipe), classic, atol=1e-5)


def test_named_modular_blocks_agree_with_the_classic_pipeline(classic: torch.Tensor) -> None:
    pipe = Wan22VaceBlocks().init_pipeline(str(CHECKPOINT))
    pipe.update_components(boundary_ratio=0.0)
    names = [n for n in pipe.pretrained_component_names if n != "transformer_2"]
    pipe.load_components(names=names, dtype=torch.float32)
    pipe.update_components(guider=pipe.guider.new(guidance_scale=4.0))
    assert torch.allclose(_modular(pipe), classic, atol=1e-5)


def _modular(pipe: ModularPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    made = pipe(prompt=PROMPT, num_frames=5, height=48, width=80, num_inference_steps=3,
                generator=generator, output_type="pt", output="videos")  # fmt: skip
    return made[0]
