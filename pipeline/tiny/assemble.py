"""Models to a checkpoint folder, in half precision and without a path of this machine in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanVACETransformer3DModel
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from pipeline.tiny.models import build_scheduler
from pipeline.tiny.text import save_tokenizer

INDEX: dict[str, Any] = {
    "_class_name": "WanVACEPipeline",
    "_diffusers_version": "0.42.1",
    "boundary_ratio": None,
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "WanVACETransformer3DModel"],
    "transformer_2": [None, None],
    "vae": ["diffusers", "AutoencoderKLWan"],
}

MODULAR_INDEX: dict[str, Any] = {
    "_class_name": "Wan22VaceModularPipeline",
    "_blocks_class_name": "Wan22VaceBlocks",
    "_diffusers_version": INDEX["_diffusers_version"],
    "boundary_ratio": 0.0,
}
"""What `ModularPipeline.from_pretrained` reads first, and the only way that it finds the blocks of
a VACE checkpoint: its table has no entry for `WanVACEPipeline`. The blocks are made for two
experts; at a boundary of 0 the first does every step."""


def modular_index() -> dict[str, Any]:
    """`MODULAR_INDEX` with its components, as diffusers writes them.

    No place is named for a component: those whose files lie beside the index are loaded from there.
    """
    index = dict(MODULAR_INDEX)
    for name, (library, kind) in ((k, v) for k, v in INDEX.items() if isinstance(v, list)):
        if kind is not None:
            place = {"pretrained_model_name_or_path": None, "subfolder": name, "variant": None}
            index[name] = [library, kind, {**place, "type_hint": [library, kind]}]
    return index


def save_checkpoint(
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    text_encoder: UMT5EncoderModel,
    vae: AutoencoderKLWan,
    transformer: WanVACETransformer3DModel,
) -> None:
    """Write the folder that `WanVACEPipeline.from_pretrained` loads.

    The models are turned to half precision in place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, folder / "tokenizer")
    for name, model in (("text_encoder", text_encoder), ("vae", vae), ("transformer", transformer)):
        model.to(torch.float16).save_pretrained(str(folder / name))
    build_scheduler().save_pretrained(str(folder / "scheduler"))
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    modular = json.dumps(modular_index(), indent=2) + "\n"
    (folder / "modular_model_index.json").write_text(modular)
    for path in folder.rglob("*.json"):
        _forget_paths(path)


def _forget_paths(path: Path) -> None:
    config = json.loads(path.read_text())
    if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
