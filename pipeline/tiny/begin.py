"""A work folder whose stages begin with the weights of a checkpoint, to train on from them.

The text encoder counts as trained. The VAE and the transformer start at step 0 with these weights
and nothing in their optimizers: train them with half the rates or less.
"""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, WanVACETransformer3DModel
from transformers import UMT5EncoderModel

from pipeline.tiny.stage import begin_stage
from pipeline.tiny.train_text import AttributeReader


def begin_with(checkpoint: Path, work: Path, text_steps: int) -> None:
    """Write `work`'s stages as of the checkpoint, the text encoder's at `text_steps`.

    Raises:
        FileExistsError: `work` has a stage already.
    """
    load: dict[str, Any] = {"dtype": torch.float32}
    vae = AutoencoderKLWan.from_pretrained(checkpoint / "vae", **load)
    begin_stage(work / "vae", vae, 0)
    encoder = UMT5EncoderModel.from_pretrained(checkpoint / "text_encoder", **load)
    begin_stage(work / "text", AttributeReader(encoder), text_steps)
    transformer = WanVACETransformer3DModel.from_pretrained(checkpoint / "transformer", **load)
    begin_stage(work / "transformer", transformer, 0)
