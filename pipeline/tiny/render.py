"""Clips from the shipped checkpoint in this process, by diffusers' own pipeline."""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanVACEPipeline
from PIL import Image

from pipeline.tiny import CHECKPOINT
from pipeline.tiny.scenes import Video

STEPS = 16
GUIDANCE = 3.0
Size = tuple[int, int, int]
"""Frames, height, width."""


def load(checkpoint: Path = CHECKPOINT) -> Any:
    """The pipeline in fp32. A dtype is passed: without it the text encoder alone stays fp16."""
    pipe = WanVACEPipeline.from_pretrained(str(checkpoint), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def frames_of(clip: Video) -> list[Image.Image]:
    """(frames, h, w, 3) from 0 to 1 as images."""
    return [Image.fromarray(frame) for frame in np.rint(clip * 255).astype(np.uint8)]


def masks_of(mask: np.ndarray) -> list[Image.Image]:
    """(frames, h, w), 1 where the model draws, as images: white where it draws."""
    return [Image.fromarray((frame * 255).astype(np.uint8)).convert("RGB") for frame in mask]


def render_clip(
    pipe: Any,
    prompt: str,
    seed: int,
    size: Size = (17, 64, 64),
    *,
    given: Video | None = None,
    mask: np.ndarray | None = None,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> Video:
    """One clip, (frames, h, w, 3) from 0 to 1, the same for the same arguments.

    `given` is a clip whose pixels are kept where `mask` (frames, h, w) is 0; what the model is
    to draw is blanked to mid-gray first.
    """
    conditions: dict[str, Any] = {}
    if given is not None and mask is not None:
        blank = np.where(mask[..., None] > 0.5, np.float32(0.5), given)
        conditions = {"video": frames_of(blank), "mask": masks_of(mask)}
    made = pipe(
        prompt=prompt,
        num_frames=size[0],
        height=size[1],
        width=size[2],
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        **conditions,
    ).frames[0]
    return np.asarray(made, np.float32)
