"""A checkpoint from which something is missing, or whose names are misspelt, renders nothing.

Libraries make up what isn't there: weights by chance, a tokenizer to which all words are one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pipeline.errors import UsageError
from pipeline.graph import Graph
from pipeline.recipe import ModelSpec
from tests.support.families import FAMILIES
from tests.support.families.base import randomize
from tests.support.families.wan import TRANSFORMER, parts

MODELS = {
    "wan_i2v": ("text_encoder", "image_encoder", "transformer", "vae"),
    "ltx2": ("text_encoder", "connectors", "transformer", "vae", "audio_vae", "vocoder"),
    "hunyuan_video_15": ("text_encoder", "text_encoder_2", "transformer", "vae"),
}


def load_all(folder: Path, family: str = "wan21", **model: Any) -> None:
    """Load each stage of a family's checkpoint."""
    known = FAMILIES[family]
    spec = ModelSpec(checkpoint=str(folder), dtype="float32", **{**known.model, **model})
    graph = Graph(spec, folder, known.inputs())
    for stage in ("encode", "denoise", "decode"):
        graph.load(stage)


def change_json(path: Path, **entries: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.fixture
def copy(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """Return a copy of a family's checkpoint, to be damaged."""
    return lambda name: Path(shutil.copytree(checkpoint_of(name), tmp_path / name))


@pytest.mark.parametrize(
    ("family", "part"), [(name, part) for name, parts in MODELS.items() for part in parts]
)
def test_a_weight_that_is_missing_is_not_made_up(
    copy: Callable[[str], Path], family: str, part: str
) -> None:
    folder = copy(family)
    (file,) = (folder / part).glob("*.safetensors")
    weights = load_file(file)
    lost = min(name for name in weights if name.endswith(".weight") and "shared" not in name)
    save_file({k: v for k, v in weights.items() if k != lost}, file, {"format": "pt"})
    name = ".".join(lost.split(".")[-2:])  # what comes before, transformers may have renamed
    with pytest.raises(UsageError, match=rf"{part} lacks \d weights: .*{name}$"):
        load_all(folder, family)
    save_file({f"other.{k}": v for k, v in weights.items()}, file, {"format": "pt"})
    with pytest.raises(UsageError, match=rf"{part} (lacks|has an unknown weight)"):
        load_all(folder, family)
    save_file(weights, file, {"format": "pt"})
    load_all(folder, family)


def test_a_configuration_of_more_layers_than_there_are_weights(
    copy: Callable[[str], Path],
) -> None:
    folder = copy("wan21")
    config = folder / "text_encoder" / "config.json"
    change_json(config, num_layers=json.loads(config.read_text())["num_layers"] + 1)
    with pytest.raises(UsageError, match="text_encoder lacks"):
        load_all(folder)


def test_a_text_encoders_configuration_that_is_none(copy: Callable[[str], Path]) -> None:
    folder = copy("wan21")
    for wrong in ("four", None, {}):
        change_json(folder / "text_encoder" / "config.json", num_layers=wrong)
        with pytest.raises(UsageError, match="cannot load text_encoder"):
            load_all(folder)


@pytest.mark.parametrize(
    ("family", "part"), [("wan21", "tokenizer"), ("ltx2", "tokenizer"), ("ltx", "tokenizer")]
)
def test_a_tokenizer_without_its_words(copy: Callable[[str], Path], family: str, part: str) -> None:
    folder = copy(family)
    for file in (folder / part).iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    with pytest.raises(UsageError, match=r"tokenizer has no .*tokenizer\.json|load tokenizer"):
        load_all(folder, family)


@pytest.mark.parametrize("part", ["text_encoder", "tokenizer", "transformer", "vae", "scheduler"])
def test_an_index_without_what_every_family_has(copy: Callable[[str], Path], part: str) -> None:
    folder = copy("wan21")
    change_json(folder / "model_index.json", **{part: [None, None]})
    with pytest.raises(UsageError, match=f"the index of wan21 has no {part}"):
        load_all(folder)


def test_a_vae_that_scales_otherwise_than_the_blocks_think(tmp_path: Path) -> None:
    """As Wan 2.2 TI2V 5B's does: each clip would be made at twice its size, and then refused."""
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

    vae = AutoencoderKLWan(
        base_dim=4,
        decoder_base_dim=8,
        z_dim=16,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
    )
    transformer = randomize(WanTransformer3DModel(**TRANSFORMER), 3)
    made = WanPipeline(
        **{**parts(), "vae": randomize(vae, 2)}, transformer=transformer, expand_timesteps=True
    )
    made.save_pretrained(tmp_path / "5b")
    with pytest.raises(UsageError, match=r"VAE of 5b has a spatial factor of 16, .* to be 8"):
        load_all(tmp_path / "5b")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dtypes": {"vea": "float32"}}, r"model\.dtypes: \w+ has no vea; did you mean 'vae'\?"),
        ({"configs": {"boundry_ratio": 0.5}}, r"model\.configs: \w+ has no boundry_ratio"),
        ({"configs": {"scheduler": "x"}}, r"model\.configs: \w+ has no scheduler"),
        ({"components": {"guidr": {"guidance_scale": 2.0}}}, r"did you mean 'guider'\?"),
    ],
)
def test_names_of_nothing_are_refused(
    checkpoint_of: Callable[[str], Path], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        load_all(checkpoint_of("wan21"), **settings)
