"""The silhouettes: each a signed distance (negative inside) and an accent within it.

A shape lives in a square from -1 to 1, x to the right and y **up**. Distances need only be
right near the outline, where they make the edge smooth.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
Silhouette = Callable[[Field, Field], tuple[Field, Field | None]]
"""(x, y) to (distance to the outline, distance to the accent's outline or None)."""


def _box(x: Field, y: Field, half_width: float, half_height: float, corner: float = 0.0) -> Field:
    dx, dy = np.abs(x) - half_width + corner, np.abs(y) - half_height + corner
    outside = np.hypot(np.maximum(dx, 0), np.maximum(dy, 0))
    return outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner)


def _circle(x: Field, y: Field, radius: float) -> Field:
    return np.hypot(x, y) - np.float32(radius)


def _convex(x: Field, y: Field, corners: list[tuple[float, float]]) -> Field:
    """A convex polygon, corners counter-clockwise."""
    edges = zip(corners, corners[1:] + corners[:1], strict=True)
    distances: list[Field] = []
    for (ax, ay), (bx, by) in edges:
        nx, ny = by - ay, ax - bx
        length = float(np.hypot(nx, ny))
        distances.append(((x - ax) * nx + (y - ay) * ny) / np.float32(length))
    return np.maximum.reduce(distances)


def circle(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A disc."""
    return _circle(x, y, 0.85), None


def square(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A square, upright."""
    return _box(x, y, 0.76, 0.76), None


def triangle(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A triangle, its point up."""
    return _convex(x, y, [(-0.95, -0.75), (0.95, -0.75), (0.0, 0.95)]), None


def star(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A star of five points."""
    kx, ky = 0.809016994, -0.587785252
    x, y = np.abs(x), y + 0.05
    for sx in (kx, -kx):
        fold = 2 * np.maximum(sx * x + ky * y, 0)
        x, y = x - fold * sx, y - fold * ky
    x, y = np.abs(x), y - 1.0
    bx, by = 0.42 * -ky, 0.42 * kx - 1.0
    along = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, 1)
    side = np.sign(y * bx - x * by)
    return np.hypot(x - bx * along, y - by * along) * side, None


def heart(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A heart, its point down."""
    x = np.abs(x)
    lobe = _circle(x - 0.42, y - 0.38, 0.5)
    point = _convex(x, y, [(0.0, -0.92), (0.80, 0.06), (0.42, 0.45), (-1.0, 0.45), (-1.0, -0.92)])
    return np.minimum(lobe, point), None


def ring(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A ring, its hole half as wide as it."""
    return np.abs(np.hypot(x, y) - np.float32(0.66)) - np.float32(0.24), None


def bottle(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A bottle with a cap."""
    body = _box(x, y + 0.36, 0.44, 0.6, 0.16)
    shoulder = _convex(x, y, [(-0.40, 0.12), (0.40, 0.12), (0.15, 0.5), (-0.15, 0.5)])
    cap = _box(x, y - 0.77, 0.22, 0.2)
    neck = _box(x, y - 0.5, 0.15, 0.3)
    return np.minimum.reduce([body, shoulder, neck, cap]), cap


def cup(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A cup with its handle on the right."""
    body = _convex(x + 0.18, y, [(-0.42, -0.72), (0.42, -0.72), (0.62, 0.72), (-0.62, 0.72)])
    handle = np.abs(_circle(x - 0.46, y - 0.1, 0.34)) - np.float32(0.11)
    rim = _box(x + 0.18, y - 0.62, 0.62, 0.12)
    return np.minimum(body, handle), rim


def can(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A can: upright, with a band around its middle."""
    return _box(x, y, 0.5, 0.9, 0.14), _box(x, y, 0.5, 0.26)


def shoe(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A boot whose toe points right, on a sole."""
    ankle = _box(x + 0.42, y - 0.15, 0.42, 0.7, 0.08)
    toe = _box(x - 0.05, y + 0.32, 0.87, 0.3, 0.26)
    sole = _box(x - 0.05, y + 0.64, 0.9, 0.16)
    return np.minimum.reduce([ankle, toe, sole]), sole


def box(x: Field, y: Field) -> tuple[Field, Field | None]:
    """A gift box: wider than high, under a lid."""
    lid = _box(x, y - 0.45, 0.92, 0.2)
    return np.minimum(_box(x, y + 0.2, 0.78, 0.5), lid), lid


SHAPES: dict[str, Silhouette] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "heart": heart,
    "ring": ring,
    "bottle": bottle,
    "cup": cup,
    "can": can,
    "shoe": shoe,
    "box": box,
}
ROUND = ("circle", "ring")
"""Shapes that look the same at every angle: they're never drawn spinning."""
