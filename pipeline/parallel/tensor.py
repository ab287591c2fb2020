"""Tensor parallelism: cut a transformer's layers, so that each rank holds and computes its share.

Megatron's scheme (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053): an attention's heads and
a feed-forward's inner channels are dealt out; each of the two exchanges one sum a layer.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from pipeline.parallel.plans import (
    ATTENTION,
    FEED_FORWARD,
    MODULATION,
    PLANS,
    Role,
    TensorPlan,
    look_up,
    refuse_degree,
)


@dataclass(frozen=True)
class TensorGroup:
    """The ranks that share one model's layers, and which of them this process is."""

    rank: int
    size: int
    group: dist.ProcessGroup | None = None
    """None is all processes."""

    def share(self, tensor: Tensor, dim: int) -> Tensor:
        """Return this rank's part of a whole tensor, a view."""
        part = tensor.shape[dim] // self.size
        return tensor.narrow(dim, self.rank * part, part)

    def sum(self, tensor: Tensor) -> Tensor:
        """Add up the ranks' tensors, in place, and return the sum."""
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def join(self, share: Tensor) -> Tensor:
        """Return the ranks' shares of a last dimension side by side."""
        shares = [torch.empty_like(share) for _ in range(self.size)]
        dist.all_gather(shares, share.contiguous(), group=self.group)
        return torch.cat(shares, dim=-1)


class GatheredLinear(nn.Module):
    """A linear layer of which each rank has a share of the outputs. x: (..., in) → (..., out)."""

    def __init__(self, whole: nn.Linear, group: TensorGroup) -> None:
        """Take over a layer's parameters, which are cut by `cut_transformer`."""
        super().__init__()
        self.weight = whole.weight
        self.bias: nn.Parameter | None = whole.bias
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """Make this rank's outputs, and get the others'."""
        return self._group.join(functional.linear(x, self.weight, self.bias))


class RowLinear(nn.Module):
    """A linear layer over a share of its inputs. x: (..., in / size) → (..., out)."""

    def __init__(self, whole: nn.Linear, group: TensorGroup) -> None:
        """Take over a layer's parameters; its weight is cut by `cut_transformer`."""
        super().__init__()
        self.weight = whole.weight
        self.bias: nn.Parameter | None = whole.bias
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """Sum the ranks' products, then add the bias once."""
        y = self._group.sum(functional.linear(x, self.weight))
        return y if self.bias is None else y + self.bias


class RowNorm(nn.Module):
    """An RMS norm over channels that are spread over ranks. x: (..., channels / size)."""

    def __init__(self, whole: nn.RMSNorm, group: TensorGroup) -> None:
        """Take over a norm's weight, which is cut by `cut_transformer`."""
        super().__init__()
        self.weight: nn.Parameter | None = whole.weight
        self._channels = whole.normalized_shape[0]
        self._eps = whole.eps
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """Divide by the root of the mean square over all ranks' channels, summed in fp32."""
        wide = x.float()
        squares = self._group.sum(wide.square().sum(dim=-1, keepdim=True))
        eps = torch.finfo(x.dtype).eps if self._eps is None else self._eps
        y = wide * torch.rsqrt(squares / self._channels + eps)
        return (y if self.weight is None else y * self.weight).to(x.dtype)


def find_plan(kind: type) -> TensorPlan:
    """Return the plan of a transformer class.

    Raises:
        UsageError: there is none.
    """
    return look_up(PLANS, kind.__name__, "tensor")


def cut_transformer(model: nn.Module, plan: TensorPlan, group: TensorGroup) -> dict[str, int]:
    """Make `model`, on the meta device, this rank's share of itself, in place.

    Returns the dimension that each cut parameter is cut along, by the parameter's name.

    Raises:
        UsageError: the model can't be cut into so many; nothing was changed.
        ValueError: the plan isn't this model's: a pattern matches nothing, a module is matched
            twice, or a part has no role.
    """
    attentions = dict(find_modules(model, plan.attentions))
    feed_forwards = dict(find_modules(model, plan.feed_forwards))
    parts = [
        *_parts(attentions, ATTENTION),
        *_parts(feed_forwards, FEED_FORWARD),
        *_parts(dict(find_modules(model, plan.modulations)), MODULATION),
    ]
    _check_degree(attentions, feed_forwards, group.size)
    cuts: dict[str, int] = {}
    for owner, name, role in parts:
        cuts |= _cut(model, owner, name, role, group)
    for attention in attentions.values():
        attention.heads //= group.size
        if plan.rotary:
            _cut_rotary(attention, plan.rotary, group)
    return cuts


def find_modules(model: nn.Module, patterns: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield the modules that patterns name, with their names; `*` stands for one name.

    Raises:
        ValueError: a pattern matches nothing, or a module is matched twice.
    """
    seen: dict[str, str] = {}
    for pattern in patterns:
        form = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
        found = [(name, each) for name, each in model.named_modules() if form.fullmatch(name)]
        if not found:
            raise ValueError(f"{type(model).__name__} has no {pattern}")
        for name, each in found:
            if name in seen:
                raise ValueError(f"{name} is matched by {seen[name]} and by {pattern}")
            seen[name] = pattern
            yield name, each


def _parts(
    owners: Mapping[str, nn.Module], roles: Mapping[str, Role]
) -> Iterator[tuple[str, str, Role]]:
    """Yield (owner's name, part's name, role) for every part of the owners that has parameters."""
    for owner, module in owners.items():
        for parameter, _ in module.named_parameters():
            part = next((p for p in roles if parameter == p or parameter.startswith(p + ".")), None)
            if part is None:
                raise ValueError(f"{owner}.{parameter} has no role in tensor parallelism")
        for part, role in roles.items():
            if _get(module, part) is not None:
                yield owner, part, role


def _check_degree(
    attentions: Mapping[str, Any], feed_forwards: Mapping[str, Any], size: int
) -> None:
    """Refuse a degree that heads or inner channels don't divide by."""
    counts = {f"{name}: {each.heads} heads": each.heads for name, each in attentions.items()}
    for name, each in feed_forwards.items():
        up, down = _get(each, "net.0.proj"), _get(each, "net.2")
        if up is None or down is None or up.out_features != down.in_features:
            raise ValueError(f"{name} is gated or no feed-forward: its halves can't be cut alike")
        counts[f"{name}: {down.in_features} channels"] = down.in_features
    refuse_degree(size, counts)


def _cut(model: nn.Module, owner: str, part: str, role: Role, group: TensorGroup) -> dict[str, int]:
    """Cut one part of a model; return what was cut, and along what."""
    name = f"{owner}.{part}"
    parent_name, _, own = name.rpartition(".")
    parent = model.get_submodule(parent_name)
    whole = getattr(parent, own)
    heads = getattr(model.get_submodule(owner), "heads", 1)
    match role:
        case "column":
            if whole.out_features % heads:
                raise ValueError(f"{name}: {whole.out_features} outputs aren't whole heads")
            whole.out_features //= group.size
            dims = {"weight": 0, "bias": 0}
            module = whole
        case "gathered":  # of whole heads' channels: they divide where the heads do
            module = GatheredLinear(whole, group)
            setattr(parent, own, module)
            dims = {"weight": 0, "bias": 0}
        case "row":
            module = RowLinear(whole, group)
            setattr(parent, own, module)
            dims = {"weight": 1}
        case "norm":
            if not _is_across_heads(whole, model.get_submodule(owner)):
                return {}
            if not isinstance(whole, nn.RMSNorm):
                raise ValueError(f"{name}: a {type(whole).__name__} across heads can't be cut")
            module = RowNorm(whole, group)
            setattr(parent, own, module)
            dims = {"weight": 0}
        case "per_head":
            if whole.numel() == 1:  # one for all heads
                return {}
            module, dims, name = parent, {own: 0}, parent_name
    cuts: dict[str, int] = {}
    for parameter, dim in dims.items():
        value = getattr(module, parameter)
        if value is not None:
            share = group.share(value.data, dim).clone()
            setattr(module, parameter, nn.Parameter(share, requires_grad=False))
            cuts[f"{name}.{parameter}"] = dim
    return cuts


def _is_across_heads(norm: nn.Module, attention: Any) -> bool:
    """Whether a norm's statistics run over all heads' channels, and not over one head's."""
    sizes = [parameter.numel() for parameter in norm.parameters()]
    return bool(sizes) and sizes[0] > attention.inner_dim // attention.heads


def _cut_rotary(attention: nn.Module, names: tuple[str, ...], group: TensorGroup) -> None:
    """Give the attention its own heads' angles out of those for all heads."""

    def cut(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        for name in names:
            if kwargs.get(name) is not None:
                # (batch, heads, sequence, channels) or (batch, sequence, heads x channels)
                kwargs[name] = tuple(
                    group.share(each, 1 if each.ndim == 4 else -1) for each in kwargs[name]
                )
        return args, kwargs

    attention.register_forward_pre_hook(cut, with_kwargs=True)


def _get(module: nn.Module, path: str) -> Any:
    """Return a part by its dotted name, None where there is none."""
    part: Any = module
    for name in path.split("."):
        part = getattr(part, name, None)
        if part is None:
            return None
    return part
