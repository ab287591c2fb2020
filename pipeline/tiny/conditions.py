"""What VACE is given beside the words: kept pixels, pixels to redraw, and a mask.

The same arithmetic as diffusers' pipelines: blank pixels are mid-gray (0 in [-1, 1]), the mask
is 1 where the model draws, and each 8 x 8 pixels of it become 64 channels of one latent pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.tiny.models import SPATIAL, TEMPORAL
from pipeline.tiny.scenes import Scene, coverage, other_object, render

KINDS: dict[str, float] = {
    "none": 0.45,
    "first": 0.17,
    "first_last": 0.08,
    "prefix": 0.13,
    "box": 0.11,
    "shape": 0.06,
}
"""Each kind of condition and how often it is drawn."""


@dataclass(frozen=True)
class Condition:
    """A clip's conditions in pixels, values in [-1, 1]."""

    kept: Tensor
    """(3, frames, h, w): the given pixels, 0 where the model draws."""
    redrawn: Tensor | None
    """(3, frames, h, w): what was where the model draws, 0 elsewhere; None when blank."""
    mask: Tensor
    """(frames, h, w): 1 where the model draws."""


def to_video(clip: np.ndarray) -> Tensor:
    """(frames, h, w, 3) from 0 to 1 into (3, frames, h, w) from -1 to 1."""
    return torch.from_numpy(clip).permute(3, 0, 1, 2) * 2 - 1


def draw_kind(rng: np.random.Generator) -> str:
    """A kind of condition at random."""
    return str(rng.choice(list(KINDS), p=list(KINDS.values())))


def given_frames(kind: str, frames: int, rng: np.random.Generator) -> list[int]:
    """Which frames a kind gives: the first, both ends, or a prefix of up to about half."""
    if kind == "first":
        return [0]
    if kind == "first_last":
        return [0, frames - 1]
    return list(range(int(rng.integers(2, max(3, frames // 2 + 2)))))


def condition(kind: str, rng: np.random.Generator, scene: Scene, clip: np.ndarray) -> Condition:
    """A condition of a kind on a scene's clip, (frames, h, w, 3) from 0 to 1."""
    frames, height, width, _ = clip.shape
    video, mask = to_video(clip), torch.ones(frames, height, width)
    if kind in ("first", "first_last", "prefix"):
        mask[given_frames(kind, frames, rng)] = 0
        return Condition(video * (1 - mask), None, mask)
    before = other_object(rng, scene) if rng.random() < 0.4 else None
    if kind == "box":
        mask = _box_mask(scene, before, clip.shape, int(rng.integers(1, 7)))
    else:
        mask = torch.from_numpy(_cover(scene, before, clip.shape) > 0.02).float()
    redrawn = None
    if before is not None:
        redrawn = to_video(render(before, frames, height, width)) * mask
    return Condition(video * (1 - mask), redrawn, mask)


def _cover(scene: Scene, before: Scene | None, shape: tuple[int, ...]) -> np.ndarray:
    """Where the shape, or the one it replaces, is: (frames, h, w)."""
    cover = coverage(scene, *shape[:3])[0]
    return cover if before is None else np.maximum(cover, coverage(before, *shape[:3])[0])


def _box_mask(scene: Scene, before: Scene | None, shape: tuple[int, ...], pad: int) -> Tensor:
    """One box around all that the shapes ever cover, `pad` pixels wider: (frames, h, w)."""
    ever = _cover(scene, before, shape).max(axis=0) > 0.02
    rows, columns = np.flatnonzero(ever.any(axis=1)), np.flatnonzero(ever.any(axis=0))
    mask = torch.zeros(shape[:3])
    top, left = max(0, int(rows[0]) - pad), max(0, int(columns[0]) - pad)
    mask[:, top : int(rows[-1]) + pad + 1, left : int(columns[-1]) + pad + 1] = 1
    return mask


def pack_mask(mask: Tensor) -> Tensor:
    """(frames, h, w) to (64, latent frames, h / 8, w / 8), as the pipelines do."""
    frames, height, width = mask.shape
    h, w = height // SPATIAL, width // SPATIAL
    packed = mask.view(frames, h, SPATIAL, w, SPATIAL).permute(2, 4, 0, 1, 3).flatten(0, 1)
    size = ((frames + TEMPORAL - 1) // TEMPORAL, h, w)
    return functional.interpolate(packed[None], size=size, mode="nearest-exact")[0]
