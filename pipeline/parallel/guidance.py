"""Guidance parallelism: one half of a gang predicts with the prompt, the other without it.

A step of classifier-free guidance (Ho and Salimans 2022, https://arxiv.org/abs/2207.12598) calls
the transformer twice on the same latents, some guiders oftener. Here the halves of a gang take
turns at these passes; then they exchange their predictions, and both go on with the same numbers
that one process would have.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateUsage=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import wraps
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from diffusers.guiders.guider_utils import BaseGuidance
from torch import Tensor, nn

HALVES = 2


@dataclass
class GuidanceGroup:
    """The two ranks that hold the same share of the model, one in each half of the gang."""

    half: int
    """The first half makes a step's first pass, with the prompt; the second half the next."""
    group: dist.ProcessGroup | None = None
    """None is all processes."""
    skips: bool = False
    """Whether the next pass is the other half's."""
    _shapes: dict[Any, list[torch.Size]] = field(default_factory=dict[Any, list[torch.Size]])

    def split_transformer(self, model: nn.Module) -> None:
        """Let `model` leave out the passes that are the other half's, in place.

        It then returns zeros for predictions, which `split_guiders` replaces. Their shape is known
        from a pass that was made: the first one on inputs of their shapes is made by both halves.
        """
        whole = model.forward

        @wraps(whole)  # blocks read its signature
        def forward(*args: Any, **kwargs: Any) -> Any:
            latents: Tensor = kwargs["hidden_states"]
            # Not the latents' alone: sound's length is the clip's frames by their rate.
            inputs = ((k, each.shape) for k, each in kwargs.items() if isinstance(each, Tensor))
            key = (id(model), frozenset(inputs))
            if self.skips and key in self._shapes:
                return tuple(latents.new_zeros(shape) for shape in self._shapes[key])
            made = whole(*args, **kwargs)
            self._shapes[key] = [each.shape for each in made]
            return made

        model.forward = forward

    def split_guiders(self, guiders: Iterable[BaseGuidance]) -> None:
        """Let one session's guiders deal out passes and exchange predictions, in place."""
        passes = _Passes(self)
        for guider in guiders:
            passes.watch(guider)

    def send(self, half: int, prediction: Tensor) -> Tensor:
        """Return what `half` predicted, in both halves."""
        prediction = prediction.contiguous()
        dist.broadcast(prediction, group=self.group, group_src=half)
        return prediction


class _Passes:
    """The passes of one session's steps: which half makes each, by the prediction's name."""

    def __init__(self, group: GuidanceGroup) -> None:
        self._group = group
        self._owners: dict[str, int] = {}
        self._step: list[str] = []
        self._made = 0

    def watch(self, guider: BaseGuidance) -> None:
        """Hear of a guider's passes. A step: inputs prepared, each pass made, all combined."""
        kind, own = type(guider), weakref.proxy(guider)  # what the guider holds is not to hold it
        prepare_models = MethodType(kind.prepare_models, own)
        combine = MethodType(kind.forward, own)

        def hear(prepare_inputs: Callable[..., Any]) -> Callable[..., Any]:
            def prepared(*args: Any, **kwargs: Any) -> Any:
                batches = prepare_inputs(*args, **kwargs)
                if self._made == len(self._step):  # all of the last step's are made
                    self._step, self._made = [], 0
                for batch in batches:
                    name = getattr(batch, kind._identifier_key)
                    self._owners.setdefault(name, len(self._owners) % HALVES)
                    if name not in self._step:
                        self._step.append(name)
                return batches

            return prepared

        def prepare(denoiser: nn.Module) -> None:
            prepare_models(denoiser)
            owner = self._owners[self._step[self._made]]
            self._group.skips = len(self._step) > 1 and owner != self._group.half
            self._made += 1

        def forward(**predictions: Tensor) -> Any:
            self._group.skips = False
            if len(self._step) > 1:
                predictions = {
                    name: self._group.send(self._owners[name], each)
                    for name, each in predictions.items()
                }
            return combine(**predictions)

        for name in ("prepare_inputs", "prepare_inputs_from_block_state"):
            setattr(guider, name, hear(MethodType(getattr(kind, name), own)))
        guider.prepare_models = prepare
        guider.forward = forward
