"""Models to a checkpoint folder, in half precision and without a path of this machine in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
    for path in folder.rglob("*.json"):
        _forget_paths(path)


def _forget_paths(path: Path) -> None:
    config = json.loads(path.read_text())
    if isinstance(config, dict) and config.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def text_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Every JSON file of a checkpoint with its text."""
    for path in sorted(folder.rglob("*.json")):
        yield path, path.read_text()
