"""Context parallelism: each rank works on its share of a clip's tokens; attention sees them all.

Ulysses (Jacobs et al. 2023, https://arxiv.org/abs/2309.14509) by diffusers' own hooks: around an
attention, ranks exchange tokens for heads. `ModelMixin.enable_parallelism` of diffusers 0.42 wants
an accelerator and a mesh without tensor parallelism; what it does is done here on the gang's mesh.

The table is ours: diffusers has no plan for VACE and HunyuanVideo 1.5, splits the text of LTX and
LTX-2 too, whose masks its Ulysses can't deal out by heads, and leaves one of LTX-2's rotary tables
whole.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateUsage=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from diffusers.hooks.context_parallel import ContextParallelSplitHook
from diffusers.hooks.hooks import HookRegistry
from diffusers.models._modeling_parallel import (
    ContextParallelConfig,
    ContextParallelInput,
    ParallelConfig,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional

from pipeline.parallel.joint import JointAttention
from pipeline.parallel.lengths import find_lengths
from pipeline.parallel.plans import check_context, look_up
from pipeline.parallel.tensor import find_modules


@dataclass(frozen=True)
class ContextPlan:
    """Where one transformer class deals out tokens, by module; `*` stands for one name."""

    attentions: tuple[str, ...]
    """Those whose keys are spread over the ranks; others have all of theirs on each."""
    splits: Mapping[str, Mapping[Any, ContextParallelInput]]
    """Arguments, or outputs by number, of which each rank goes on with its share."""
    gathers: tuple[str, ...] = ("proj_out",)
    """Modules whose output, (batch, tokens, channels), is made whole again."""
    processor: Callable[[ParallelConfig], Any] | None = None
    """What makes the attentions' processors, where the model's own won't do."""


TOKENS = ContextParallelInput(split_dim=1, expected_dims=3, split_output=False)
TIMES = ContextParallelInput(split_dim=1, expected_dims=2, split_output=False)
"""A timestep for each token, where some of a clip are given; one for all has fewer dimensions."""


def _angles(dims: int, tokens: int) -> Mapping[Any, ContextParallelInput]:
    """Both rotary tables that a module returns, of so many dimensions, by their `tokens` one."""
    table = ContextParallelInput(split_dim=tokens, expected_dims=dims, split_output=True)
    return {0: table, 1: table}


_ROPE_AND_BLOCKS = {"rope": _angles(4, 1), "blocks.0": {"hidden_states": TOKENS}}
_HELIOS = ("blocks.*.attn1", "blocks.*.attn2", "blocks.*.ffn")
PLANS: Mapping[str, ContextPlan] = {
    "WanTransformer3DModel": ContextPlan(
        attentions=("blocks.*.attn1",), splits={"": {"timestep": TIMES}, **_ROPE_AND_BLOCKS}
    ),
    "WanVACETransformer3DModel": ContextPlan(
        attentions=("blocks.*.attn1", "vace_blocks.*.attn1"),
        splits={
            **_ROPE_AND_BLOCKS,
            "vace_blocks.*": {"hidden_states": TOKENS},
            # The next ones get the control of the one before, which is split already.
            "vace_blocks.0": {"control_hidden_states": TOKENS},
        },
    ),
    "LTXVideoTransformer3DModel": ContextPlan(
        attentions=("transformer_blocks.*.attn1",),
        splits={"": {"hidden_states": TOKENS, "timestep": TIMES}, "rope": _angles(3, 1)},
    ),
    "LTX2VideoTransformer3DModel": ContextPlan(  # sound is whole on each rank
        attentions=("transformer_blocks.*.attn1", "transformer_blocks.*.video_to_audio_attn"),
        splits={
            "": {"hidden_states": TOKENS, "timestep": TIMES},
            "rope": _angles(4, 2),
            "cross_attn_rope": _angles(4, 2),
        },
    ),
    "HunyuanVideo15Transformer3DModel": ContextPlan(
        attentions=("transformer_blocks.*.attn",),
        splits={
            "rope": _angles(2, 0),
            "transformer_blocks.0": {"hidden_states": TOKENS, "encoder_hidden_states": TOKENS},
        },
        processor=JointAttention,
    ),
    "HeliosTransformer3DModel": ContextPlan(
        attentions=("blocks.*.attn1",),
        splits={
            **{each: {"hidden_states": TOKENS} for each in _HELIOS},
            "blocks.*.attn1": {"hidden_states": TOKENS, "rotary_emb": TOKENS},
        },
        gathers=_HELIOS,
    ),
}
"""By the transformer's class."""


@dataclass(frozen=True)
class ContextGroup:
    """The ranks that share one clip's tokens, and which of them this process is."""

    config: ParallelConfig

    @classmethod
    def find(cls, mesh: DeviceMesh, degree: int) -> Self:
        """Return this process's group along the axis `ulysses` of the gang's mesh.

        Tokens needn't divide by the degree, heads needn't quite (`degrees.check_degrees`): ranks
        then hold unequal shares.
        """
        config = ParallelConfig(
            context_parallel_config=ContextParallelConfig(ulysses_degree=degree)
        )
        device = torch.device(mesh.device_type)
        config.setup(dist.get_rank(), dist.get_world_size(), device, mesh=mesh)
        return cls(config)

    @property
    def group(self) -> dist.ProcessGroup:
        """Its processes."""
        return self._ulysses._ulysses_mesh.get_group()

    @property
    def _ulysses(self) -> ContextParallelConfig:
        return cast(ContextParallelConfig, self.config.context_parallel_config)

    def split_transformer(self, model: nn.Module) -> None:
        """Let `model` work on this rank's tokens and return all ranks', in place.

        Raises:
            UsageError: it can't; see `find_context_plan`.
            ValueError: the plan isn't this model's: a pattern matches nothing.
        """
        plan = find_context_plan(type(model))
        check_context(type(model).__name__, cast(Any, model).config)
        config = self._ulysses
        attentions = [each for _, each in find_modules(model, plan.attentions)]
        for attention in attentions:
            if plan.processor:
                attention.set_processor(plan.processor(self.config))
            else:
                attention.processor._parallel_config = self.config
        heads_differ = any(each.heads % config.ulysses_degree for each in attentions)

        def begin(*_: Any) -> None:
            config.ulysses_anything = heads_differ

        model.register_forward_pre_hook(begin)
        for pattern, inputs in plan.splits.items():
            for _, module in find_modules(model, [pattern]):
                registry = HookRegistry.check_if_exists_or_initialize(module)
                registry.register_hook(_Split(cast(Any, inputs), config), f"split {pattern}")
        for _, module in find_modules(model, plan.gathers):
            module.register_forward_hook(self._gather)

    def _gather(self, module: nn.Module, args: Any, share: Tensor) -> Tensor:
        """Return all ranks' tokens. diffusers' own hook for it can't gather unequal shares by gloo.

        share: (batch, this rank's tokens, channels). Returns (batch, tokens, channels).
        """
        lengths = find_lengths(self._ulysses, share.shape[1])
        padded = functional.pad(share, (0, 0, 0, max(lengths) - share.shape[1]))
        shares = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(shares, padded.contiguous(), group=self.group)
        whole = zip(shares, lengths, strict=True)
        return torch.cat([each[:, :length] for each, length in whole], dim=1)


class _Split(ContextParallelSplitHook):
    """diffusers' hook, which also notes of a forward that shares differ.

    Around each attention they then go by `ulysses_anything`, whose ranks first tell each other how
    many tokens they have; equal ones go without. All see the same whole lengths, so all agree.
    """

    def _prepare_cp_input(self, x: Tensor, cp_input: ContextParallelInput) -> Tensor:
        if x.dim() != cp_input.expected_dims:
            return x
        config: Any = self.parallel_config
        if x.shape[cp_input.split_dim] % config.ulysses_degree:
            config.ulysses_anything = True
        return super()._prepare_cp_input(x, cp_input)


def find_context_plan(kind: type) -> ContextPlan:
    """Return the plan of a transformer class.

    Raises:
        UsageError: there is none.
    """
    return look_up(PLANS, kind.__name__, "context")
