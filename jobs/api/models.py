"""The models that can be asked for: OpenAI's list, with what a caller needs to know of each."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel

from pipeline.recipe import Recipe

_ASPECTS = ((16, 9), (1, 1), (9, 16))


class Seconds(BaseModel):
    """How long videos can be, at the model's own frame rate."""

    min: float
    max: float
    default: float


class Model(BaseModel):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "rushes"
    sizes: list[str]
    """Some that it takes, WIDTHxHEIGHT, the default first; its limits tell all."""
    seconds: Seconds
    limits: dict[str, Any]
    """The recipe's."""


class ModelList(BaseModel):
    """The models that can be asked for."""

    object: Literal["list"] = "list"
    data: list[Model]


def describe_model(name: str, recipe: Recipe, created: int) -> Model:
    """Return what is told of a recipe's model by one of its names."""
    limits, request = recipe.limits, recipe.request
    return Model(
        id=name,
        created=created,
        sizes=find_sizes(recipe),
        seconds=Seconds(
            min=limits.min_frames / request.fps,
            max=limits.max_frames / request.fps,
            default=request.num_frames / request.fps,
        ),
        limits=limits.model_dump(),
    )


def find_sizes(recipe: Recipe) -> list[str]:
    """Return the default size, and those of common aspects with as many pixels or a few less."""
    limits, request = recipe.limits, recipe.request
    step, pixels = limits.size_multiple, request.width * request.height
    sizes = [(request.width, request.height)]
    for across, down in _ASPECTS:
        scale = math.sqrt(pixels / (across * down))
        sides = (max(int(scale * side) // step * step, limits.min_side) for side in (across, down))
        width, height = (min(side, limits.max_side) for side in sides)
        sizes.append((width, height))
    fit = (size for size in sizes if math.prod(size) <= limits.max_pixels)
    return list(dict.fromkeys(f"{width}x{height}" for width, height in fit))
