"""The state that a stage's blocks start from, what it hands over, and what a session owns.

Diffusers' blocks read and write one `PipelineState` by name. Between stages only what a later block
reads goes on, so nothing large and unused travels.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false
# pyright: reportUnknownParameterType=false

from __future__ import annotations

import copy
import inspect
from collections.abc import Generator, Iterable, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from diffusers.guiders import adaptive_projected_guidance, adaptive_projected_guidance_mix
from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline, PipelineState
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from pipeline.graph import Blocks
from pipeline.handoff import Handoff, is_packable
from pipeline.recipe import ModelSpec
from pipeline.request import RenderRequest

_MOMENTUM = (
    adaptive_projected_guidance.MomentumBuffer,
    adaptive_projected_guidance_mix.MomentumBuffer,
)
"""What guiders keep from step to step (diffusers 0.42), each class its own."""


def session_copy(
    pipeline: ModularPipeline, guidance_scale: float, model: ModelSpec
) -> ModularPipeline:
    """Return `pipeline` with schedulers and guiders of its own, sharing all weights.

    The scale is that of `guider` and, where there are two experts, `guider_2`, unless the recipe
    sets theirs; a guider of another name, such as LTX-2's `audio_guider`, keeps its own.
    """
    own = copy.copy(pipeline)
    for name, component in pipeline.components.items():
        if isinstance(component, SchedulerMixin):
            setattr(own, name, copy.deepcopy(component))
        elif isinstance(component, BaseGuidance):
            fixed = "guidance_scale" in model.components.get(name, {})
            known = name.startswith("guider") and "guidance_scale" in component.config
            changes = {"guidance_scale": guidance_scale} if known and not fixed else {}
            setattr(own, name, component.new(**changes))
    return own


@contextmanager
def drawing_from(
    generator: torch.Generator, schedulers: Iterable[SchedulerMixin]
) -> Generator[None]:
    """Have schedulers that draw noise in a step draw it from `generator`.

    Blocks don't name one (diffusers 0.42): it would be this process's own, of which each rank of a
    gang has another, and so has whoever makes the clip again.
    """
    with ExitStack() as lent:
        scheduler: Any
        for scheduler in {id(each): each for each in schedulers}.values():
            if "generator" in inspect.signature(scheduler.step).parameters:
                scheduler.step = partial(scheduler.step, generator=generator)
                lent.callback(delattr, scheduler, "step")  # it would be in a cycle with itself
        yield


def read_momentum(guiders: Mapping[str, BaseGuidance]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return what guiders have kept from the steps made, by guider and attribute."""
    return {
        guider: {
            name: dict(vars(held)) for name, held in vars(each).items() if type(held) in _MOMENTUM
        }
        for guider, each in guiders.items()
    }


def restore_momentum(
    guiders: Mapping[str, BaseGuidance], kept: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> None:
    """Give guiders what `read_momentum` returned of others like them."""
    for guider, attributes in kept.items():
        for name, values in attributes.items():
            (kind,) = (
                each for each in _MOMENTUM if each.__module__ == type(guiders[guider]).__module__
            )
            held = kind(0.0)
            vars(held).update(values)
            setattr(guiders[guider], name, held)


def make_state(
    request: RenderRequest,
    blocks: Blocks,
    handoff: Handoff | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> PipelineState:
    """Return the state that `blocks` start from: their defaults, the request, what came before.

    `inputs` are further block inputs by name, of these blocks or of later ones.
    """
    generator = torch.Generator("cpu").manual_seed(request.seed)
    if handoff and handoff.generator_state is not None:
        generator.set_state(handoff.generator_state)
    given: dict[str, Any] = {
        **request.model_dump(exclude={"seed", "fps", "opening"}),
        "frame_rate": request.fps,
        "fps": request.fps,
        "generator": generator,
        "output_type": "np",
        **(inputs or {}),
    }
    state: Any = PipelineState()
    for name, value in (inputs or {}).items():
        state.set(name, value)
    for each in blocks.inputs:
        if each.name:
            state.set(each.name, given.get(each.name, each.default), each.kwargs_type)
    if handoff:
        for name, value in handoff.values.items():
            state.set(name, value, handoff.kinds.get(name))
    return state


def hand_over(
    state: PipelineState, names: set[str], kinds: set[str]
) -> tuple[dict[str, Any], dict[str, str], torch.Tensor | None]:
    """Return the values, kinds and generator state that later stages need of `state`.

    A value is kept when a later block reads it by name, or by a kwargs type that it carries.
    """
    tagged = {name: kind for kind, members in state.kwargs_mapping.items() for name in members}
    values = {
        name: value
        for name, value in state.values.items()
        if (name in names or tagged.get(name) in kinds)
        and name not in ("generator", "output_type")
        and value is not None
        and is_packable(value)
    }
    generator = state.values.get("generator")
    drawn = generator.get_state() if isinstance(generator, torch.Generator) else None
    return values, {name: tagged[name] for name in values if name in tagged}, drawn
