"""What a clip shows, measured from its pixels alone: colours, motion and shape.

A clip is (frames, h, w, 3) from 0 to 1. The background is read off the outer columns, row by
row; what differs from it is the object. Nothing here knows the caption, but `shape_shown` may
be told that the object turns, since then only the first frame is upright.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.tiny.scenes import COLOURS, Scene, Video, coverage
from pipeline.tiny.shapes import SHAPES

Array = NDArray[np.float32]
TEMPLATE = 32
"""Side of the square that silhouettes are compared in, in pixels."""


@dataclass(frozen=True)
class Seen:
    """A clip's object apart from its background."""

    mask: Array
    """(frames, h, w), 1 on the object and 0 off it, soft between."""
    foreground: Array
    """Its colour, (3,)."""
    background: Array
    """The background's mean colour, (3,)."""


def see(clip: Video) -> Seen:
    """Tell the object from the background."""
    edge = max(2, clip.shape[2] // 10)
    sides = np.concatenate([clip[:, :, :edge], clip[:, :, -edge:]], axis=2)
    rows = np.median(sides.transpose(1, 0, 2, 3).reshape(clip.shape[1], -1, 3), axis=1)
    distance = np.linalg.norm(clip - rows[None, :, None], axis=-1)
    far = max(float(np.quantile(distance, 0.985)), 1e-3)
    # The accent may stand out more than the body does: the body is most of what stands out.
    strong = float(np.median(distance[distance > 0.3 * far]))
    mask = np.clip(distance / strong * 2 - 0.5, 0, 1)
    inside = clip[distance > 0.75 * strong]
    foreground = np.median(inside if len(inside) else clip.reshape(-1, 3), axis=0)
    return Seen(mask.astype(np.float32), foreground, rows.mean(axis=0))


def colour_name(rgb: Array) -> str:
    """The palette's nearest colour."""
    names = list(COLOURS)
    palette = np.array([COLOURS[name] for name in names], np.float32) / 255
    return names[int(np.linalg.norm(palette - rgb, axis=1).argmin())]


def path(mask: Array) -> Array:
    """Centre and area of the object by frame: (frames, 3), shares of width, height and frame."""
    frames, height, width = mask.shape
    area = mask.sum(axis=(1, 2))
    x = (mask.sum(axis=1) * (np.arange(width) + 0.5)).sum(axis=1) / np.maximum(area, 1e-6)
    y = (mask.sum(axis=2) * (np.arange(height) + 0.5)).sum(axis=1) / np.maximum(area, 1e-6)
    return np.stack([x / width, y / height, area / (height * width)], axis=1).reshape(frames, 3)


def _centred(mask: Tensor, where: Tensor, degrees: Tensor, side: int, scale: Tensor) -> Tensor:
    """Cut-outs of one mask (h, w) around a centre, turned: (n, side, side)."""
    height, width = mask.shape
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    v, u = torch.meshgrid(line, line, indexing="ij")
    turn = torch.deg2rad(degrees)[:, None, None]
    dx = (torch.cos(turn) * u + torch.sin(turn) * v) * scale[:, None, None]
    dy = (-torch.sin(turn) * u + torch.cos(turn) * v) * scale[:, None, None]
    grid = torch.stack([where[0] * 2 - 1 + dx * 2 / width, where[1] * 2 - 1 + dy * 2 / height], -1)
    source = mask[None, None].expand(len(degrees), 1, height, width)
    return functional.grid_sample(source, grid.float(), align_corners=False)[:, 0]


def _overlap(one: Tensor, other: Tensor) -> Tensor:
    """Soft intersection over union of the last two dimensions."""
    both = torch.minimum(one, other).sum(dim=(-2, -1))
    return both / torch.maximum(one, other).sum(dim=(-2, -1)).clamp(min=1e-6)


def turned(mask: Array) -> float:
    """How far the object has turned from the first frame to the last, degrees clockwise."""
    places, frames = path(mask), torch.from_numpy(mask)
    half = torch.tensor([min(mask.shape[1:]) / 2.0])
    side, zero, angle = 48, torch.zeros(1), 0.0
    first_at = torch.from_numpy(places[0, :2])
    for t in range(1, len(mask)):
        now = _centred(frames[t], torch.from_numpy(places[t, :2]), zero, side, half)
        tries = angle + torch.arange(-24.0, 24.5, 3.0)
        before = _centred(frames[0], first_at, tries, side, half.expand(len(tries)))
        likeness = _overlap(before, now)
        here = len(tries) // 2
        best = int(likeness.argmax())
        # A disc looks alike at every angle: turn only for what is clearly better.
        if likeness[best] > likeness[here] + 0.015:
            angle = float(tries[best])
    return angle


def motion_shown(mask: Array) -> str:
    """Which of the seven motions a clip's object makes."""
    places = path(mask)
    start, end = places[:2].mean(axis=0), places[-2:].mean(axis=0)
    dx, dy = float(end[0] - start[0]), float(end[1] - start[1])
    if max(abs(dx), abs(dy)) > 0.15:
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"
    if end[2] > 1.6 * max(start[2], 1e-6):
        return "growing"
    return "spinning" if abs(turned(mask)) > min(45.0, 4.5 * len(mask)) else "still"


def _silhouette(mask: Tensor, place: Array) -> Tensor:
    """One frame's object at a standard size and place, (TEMPLATE, TEMPLATE)."""
    size = torch.tensor([float(np.sqrt(max(place[2], 1e-4) * mask.numel()))])
    return _centred(mask, torch.from_numpy(place[:2]), torch.zeros(1), TEMPLATE, size)[0]


@lru_cache(maxsize=1)
def _templates() -> Tensor:
    """Each shape as it should look, (shapes, TEMPLATE, TEMPLATE)."""
    made: list[Tensor] = []
    for shape in SHAPES:
        scene = Scene(shape, "black", "white", "plain", "still", 0.4, 0.0, (0.0, 0.0), (0.0,) * 6)
        mask = coverage(scene, 1, 96, 96)[0]
        made.append(_silhouette(torch.from_numpy(mask[0]), path(mask)[0]))
    return torch.stack(made)


def shape_shown(mask: Array, *, turns: bool = False) -> str:
    """The shape whose silhouette is most like the object's."""
    places = path(mask)
    frames = [0] if turns else [0, len(mask) // 2, len(mask) - 1]
    seen = [_silhouette(torch.from_numpy(mask[t]), places[t]) for t in frames]
    likeness = torch.stack([_overlap(_templates(), one) for one in seen]).mean(dim=0)
    return list(SHAPES)[int(likeness.argmax())]


def psnr(one: Video, other: Video, where: Array | None = None) -> float:
    """Likeness in dB, over all pixels or those where `where` (frames, h, w) is 1."""
    squared = ((one - other) ** 2).mean(axis=-1)
    error = squared.mean() if where is None else (squared * where).sum() / max(where.sum(), 1)
    return float(10 * np.log10(1 / max(float(error), 1e-8)))
