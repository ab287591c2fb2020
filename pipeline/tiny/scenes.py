"""What a clip shows, as numbers, and the clip drawn from them.

A `Scene` is one coloured shape moving on a background. All randomness comes from the numpy
generator that a caller passes, so the same seed draws the same clips anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.tiny.shapes import ROUND, SHAPES

Video = NDArray[np.float32]
"""(frames, height, width, 3), from 0 to 1."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "orange": (246, 138, 22),
    "yellow": (250, 222, 44),
    "green": (38, 166, 70),
    "teal": (32, 184, 184),
    "blue": (42, 102, 232),
    "navy": (22, 30, 104),
    "purple": (128, 50, 180),
    "pink": (250, 132, 184),
    "brown": (120, 70, 36),
    "white": (245, 245, 245),
    "gray": (136, 136, 136),
    "black": (20, 20, 20),
}
MOTIONS = ("left", "right", "up", "down", "still", "growing", "spinning")
BACKGROUNDS = ("plain", "gradient")
SPIN_PER_FRAME = 9.0
"""Degrees, clockwise."""


@dataclass(frozen=True)
class Scene:
    """One shape on a background. Positions and lengths are shares of the frame's sides."""

    shape: str
    colour: str
    background: str
    backdrop: str
    motion: str
    size: float
    """Half the shape's extent, as a share of the shorter side."""
    travel: float
    """How far a moving shape goes from the first frame to the last, as a share of its axis."""
    offset: tuple[float, float]
    """Where the middle of its path lies from the middle of the frame (right, down)."""
    tint: tuple[float, ...]
    """Small differences of the two colours, six numbers, foreground first."""

    def foreground_rgb(self) -> NDArray[np.float32]:
        """The shape's main colour, 0 to 1."""
        return _tinted(self.colour, self.tint[:3])

    def background_rgb(self) -> NDArray[np.float32]:
        """The background's middle colour, 0 to 1."""
        return _tinted(self.background, self.tint[3:])


def _tinted(name: str, tint: tuple[float, ...]) -> NDArray[np.float32]:
    colour = np.array(COLOURS[name], np.float32) / 255 + np.array(tint, np.float32)
    return np.clip(colour, 0, 1)


def contrast(one: str, other: str) -> float:
    """How far apart two colours are, in RGB from 0 to 255."""
    return float(np.linalg.norm(np.array(COLOURS[one], float) - np.array(COLOURS[other], float)))


def held_out(shape: str, colour: str, motion: str) -> bool:
    """Whether a combination is kept for evaluation: one in eleven, spread evenly."""
    shapes, colours = list(SHAPES), list(COLOURS)
    numbers = shapes.index(shape), colours.index(colour), MOTIONS.index(motion)
    return (3 * numbers[0] + 5 * numbers[1] + 7 * numbers[2]) % 11 == 0


def drawable(scene: Scene) -> bool:
    """Whether the words can be seen: contrast enough, and no spinning discs."""
    spins_unseen = scene.motion == "spinning" and scene.shape in ROUND
    return contrast(scene.colour, scene.background) > 90 and not spins_unseen


def draw_scene(rng: np.random.Generator, *, keep_out: bool | None = False) -> Scene:
    """A scene at random: `keep_out` False for training, True held out, None for any."""
    while True:
        scene = Scene(
            shape=str(rng.choice(list(SHAPES))),
            colour=str(rng.choice(list(COLOURS))),
            background=str(rng.choice(list(COLOURS))),
            backdrop=str(rng.choice(BACKGROUNDS, p=[0.65, 0.35])),
            motion=str(rng.choice(MOTIONS)),
            size=float(rng.uniform(0.25, 0.31)),
            travel=float(rng.uniform(0.36, 0.44)),
            offset=(float(rng.uniform(-0.07, 0.07)), float(rng.uniform(-0.07, 0.07))),
            tint=tuple(float(v) for v in rng.uniform(-0.02, 0.02, 6)),
        )
        if not drawable(scene):
            continue
        if keep_out is None or held_out(scene.shape, scene.colour, scene.motion) == keep_out:
            return scene


def other_object(rng: np.random.Generator, scene: Scene) -> Scene:
    """The same background and motion with another shape and colour in it."""
    while True:
        other = draw_scene(rng, keep_out=None)
        changed = replace(scene, shape=other.shape, colour=other.colour, tint=scene.tint)
        if other.shape != scene.shape and other.colour != scene.colour and drawable(changed):
            return changed


def poses(scene: Scene, frames: int) -> NDArray[np.float32]:
    """Where the shape is in each frame: (frames, 4) of x, y (down), size, degrees clockwise."""
    time = np.linspace(0, 1, frames) if frames > 1 else np.zeros(1)
    x = np.full(frames, 0.5 + scene.offset[0])
    y = np.full(frames, 0.5 + scene.offset[1])
    size, angle = np.full(frames, scene.size), np.zeros(frames)
    path = (time - 0.5) * scene.travel
    match scene.motion:
        case "left":
            x -= path
        case "right":
            x += path
        case "up":
            y -= path
        case "down":
            y += path
        case "growing":
            size *= 0.55 + 0.75 * time
        case "spinning":
            angle = SPIN_PER_FRAME * np.arange(frames)
        case _:
            pass
    return np.stack([x, y, size, angle], axis=1).astype(np.float32)


def render(scene: Scene, frames: int, height: int, width: int) -> Video:
    """The clip, (frames, height, width, 3) from 0 to 1, edges smooth over one pixel."""
    outline, accent = coverage(scene, frames, height, width)
    colour = scene.foreground_rgb()
    light = float(colour @ np.array([0.3, 0.59, 0.11], np.float32)) < 0.55
    second = colour * np.float32(0.5) + 0.5 if light else colour * np.float32(0.6)
    body = colour + accent[..., None] * (second - colour)
    back = _backdrop(scene, height)[None, :, None, :]
    return (back + outline[..., None] * (body - back)).astype(np.float32)


def coverage(scene: Scene, frames: int, height: int, width: int) -> tuple[Video, Video]:
    """How much of each pixel the shape and its accent cover: two of (frames, height, width)."""
    columns, rows = np.arange(width, dtype=np.float32) + 0.5, np.arange(height) + 0.5
    placed = poses(scene, frames)[:, :, None, None]
    dx = columns[None, None, :] - placed[:, 0] * width
    dy = placed[:, 1] * height - rows.astype(np.float32)[None, :, None]
    pixels = placed[:, 2] * min(height, width)
    turn = np.deg2rad(placed[:, 3])
    x = (np.cos(turn) * dx - np.sin(turn) * dy) / pixels
    y = (np.sin(turn) * dx + np.cos(turn) * dy) / pixels
    distance, inner = SHAPES[scene.shape](x, y)
    outline = np.clip(0.5 - distance * pixels, 0, 1)
    accent = np.zeros_like(outline) if inner is None else np.clip(0.5 - inner * pixels, 0, 1)
    return outline.astype(np.float32), accent.astype(np.float32)


def _backdrop(scene: Scene, height: int) -> NDArray[np.float32]:
    """The background's colour by row, (height, 3): plain, or light above and dark below."""
    colour = scene.background_rgb()
    if scene.backdrop == "plain":
        return np.repeat(colour[None], height, axis=0)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    top, bottom = colour + 0.22 * (1 - colour), colour * np.float32(0.75)
    return top + down * (bottom - top)
