"""Load a transformer of which this rank holds a share: only that share is ever read."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.modeling_utils import ModelMixin, no_init_weights
from safetensors import safe_open
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.parallel.tensor import TensorGroup, cut_transformer, find_plan

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


def load_share(
    kind: type[ModelMixin], folder: Path, dtype: torch.dtype, group: TensorGroup
) -> ModelMixin:
    """Return this rank's share of the transformer in `folder`, on the CPU, for inference.

    The model is made without memory, cut, and then filled: each rank reads its slices alone from
    the safetensors files. Parameters that diffusers keeps in float32 are kept so here.

    Raises:
        UsageError: there is no plan for the class, the degree doesn't divide, or the files don't
            hold the model.
    """
    plan = find_plan(kind)
    made: Any = kind
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model = made.from_config(made.load_config(str(folder)))
    cuts = cut_transformer(model, plan, group)
    wide = set(made._keep_in_fp32_modules or ())
    unused = (
        made._keys_to_ignore_on_load_unexpected or ()
    )  # patterns; as diffusers passes them over
    missing = set(model.state_dict())
    for name, value in _read_slices(folder, cuts, group):
        if name not in missing:
            if any(re.search(each, name) for each in unused):
                continue
            raise UsageError(f"model.checkpoint: {folder.name} has an unknown weight {name}")
        if value.is_floating_point():
            value = value.to(torch.float32 if wide & set(name.split(".")) else dtype)
        owner, _, own = name.rpartition(".")
        _put(model.get_submodule(owner), own, value)
        missing.discard(name)
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise UsageError(f"model.checkpoint: {folder.name} lacks {len(missing)} weights: {some}")
    return model.eval().requires_grad_(False)


def _read_slices(
    folder: Path, cuts: Mapping[str, int], group: TensorGroup
) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight's name and this rank's part of it.

    A file is mapped anew for each weight: what was read of the others doesn't stay resident.
    """
    for path in _find_files(folder):
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        for name in names:
            with safe_open(path, framework="pt") as file:
                if name not in cuts:
                    yield name, file.get_tensor(name)
                    continue
                slices = file.get_slice(name)
                dim = cuts[name]
                part = slices.get_shape()[dim] // group.size
                span = slice(group.rank * part, (group.rank + 1) * part)
                yield name, (slices[span] if dim == 0 else slices[:, span]).contiguous()


def _find_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model's folder: one, or as many as its index names."""
    index = folder / INDEX
    if index.exists():
        names = json.loads(index.read_text("utf-8"))["weight_map"].values()
        return [folder / name for name in sorted(set(names))]
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    raise UsageError(f"model.checkpoint: {folder} holds neither {WEIGHTS} nor its index")


def _put(module: torch.nn.Module, name: str, value: Tensor) -> None:
    """Give a module a parameter's or buffer's value in place of one without memory."""
    current = getattr(module, name)
    if current.shape != value.shape:
        raise UsageError(
            f"model.checkpoint: a weight {name} is {tuple(value.shape)}, "
            f"its configuration says {tuple(current.shape)}"
        )
    if isinstance(current, torch.nn.Parameter):
        module.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
    else:
        module.register_buffer(name, value)
