"""Load a transformer of which this rank holds a share: only that share is ever read.

Wherever a model is loaded from, whole or in shares, its files must hold the weights of its class
and configuration, all of them and no others: `check_names`.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import init_empty_weights
from diffusers.models.modeling_utils import ModelMixin, no_init_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import UsageError
from pipeline.parallel.tensor import TensorGroup, cut_transformer, find_plan

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
PIECE_BYTES = 16 << 20


def load_share(
    kind: type[ModelMixin],
    folder: Path,
    dtype: torch.dtype,
    group: TensorGroup,
    device: str = "cpu",
) -> ModelMixin:
    """Return this rank's share of the transformer in `folder`, on `device`, for inference.

    The model is made without memory, cut, and then filled: each rank reads its slices alone from
    the safetensors files, straight onto its device. Parameters that diffusers keeps in float32 are
    kept so here.

    Raises:
        UsageError: there is no plan for the class, the degree doesn't divide, or the files don't
            hold the model.
        ValueError, TypeError, OSError: one of them is damaged, isn't there, or can't be read.
    """
    plan = find_plan(kind)
    made: Any = kind
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model = made.from_config(made.load_config(str(folder)))
    cuts = cut_transformer(model, plan, group)
    check_names(model, folder)
    wide = set(made._keep_in_fp32_modules or ())
    known = set(model.state_dict())

    def held(name: str, stored: torch.dtype) -> torch.dtype:
        if not stored.is_floating_point:
            return stored
        return torch.float32 if wide & set(name.split(".")) else dtype

    for name, value in _read_slices(folder, cuts, group, held, device):
        if name in known:
            _put(model, name, value)
    return model.to(device).eval().requires_grad_(False)


def check_names(model: ModelMixin, folder: Path) -> None:
    """Check that a model's files hold its weights and no others, by their names.

    diffusers would leave out what it doesn't know, and go on: what such a model renders is wrong
    where a configuration isn't that of its weights.

    Raises:
        UsageError: the files hold weights that the model has not, or lack some.
        ValueError, OSError: one of them is damaged, or isn't there.
    """
    # Patterns of weights that published files have and nothing uses; diffusers passes them over.
    unused = cast(Any, model)._keys_to_ignore_on_load_unexpected or ()
    missing = set(model.state_dict())
    for path in _find_files(folder):
        with _open(path) as file:
            names = list(file.keys())
        for name in names:
            if name not in missing and not any(re.search(each, name) for each in unused):
                raise UsageError(f"model.checkpoint: {folder.name} has an unknown weight {name}")
            missing.discard(name)
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise UsageError(f"model.checkpoint: {folder.name} lacks {len(missing)} weights: {some}")


def _read_slices(
    folder: Path,
    cuts: Mapping[str, int],
    group: TensorGroup,
    held: Callable[[str, torch.dtype], torch.dtype],
    device: str,
) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight's name and this rank's part of it, in the dtype that it is `held` in."""
    for path in _find_files(folder):
        with _open(path) as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        for name, shape in shapes.items():
            spans = [slice(0, length) for length in shape]
            if name in cuts:
                part = shape[cuts[name]] // group.size
                spans[cuts[name]] = slice(group.rank * part, (group.rank + 1) * part)
            yield name, _read(path, name, shape, spans, partial(held, name), device)


def _read(
    path: Path,
    name: str,
    shape: Sequence[int],
    spans: Sequence[slice],
    held: Callable[[torch.dtype], torch.dtype],
    device: str,
) -> Tensor:
    """Return a part of a weight on `device`, copied piece by piece.

    The file is mapped anew for each piece: of what was read, as it was stored, nothing stays
    resident. A weight of Wan 2.1 14B has 283 MB in float32.
    """
    if not spans:
        with _open(path) as file:
            number = file.get_tensor(name)
        return number.to(device, held(number.dtype), copy=True)
    rows, *rest = spans
    made = torch.empty(0)
    step = max(1, PIECE_BYTES // (torch.float32.itemsize * math.prod(shape[1:])))
    for first in range(rows.start, rows.stop, step):
        last = min(first + step, rows.stop)
        with _open(path) as file:
            piece: Tensor = file.get_slice(name)[slice(first, last), *rest]
            if first == rows.start:
                size = (rows.stop - rows.start, *piece.shape[1:])
                made = torch.empty(size, dtype=held(piece.dtype), device=device)
            made[first - rows.start : last - rows.start] = piece
            del piece
    return made


def _find_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model's folder: one, or as many as its index names."""
    index = folder / INDEX
    if index.exists():
        try:
            names = json.loads(index.read_text("utf-8"))["weight_map"].values()
            return [folder / name for name in sorted(set(names))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is no index of weights ({error})") from error
    if (folder / WEIGHTS).exists():
        return [folder / WEIGHTS]
    raise UsageError(f"model.checkpoint: {folder} holds neither {WEIGHTS} nor its index")


def _open(path: Path) -> Any:
    """Return a safetensors file, to be entered; of one that is damaged, its error names none."""
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error


def _put(model: ModelMixin, name: str, value: Tensor) -> None:
    """Give a model a parameter's or buffer's value in place of one without memory."""
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    current = getattr(module, own)
    if current.shape != value.shape:
        raise UsageError(
            f"model.checkpoint: a rank's share of {name} is {tuple(value.shape)}, "
            f"its configuration says {tuple(current.shape)}"
        )
    if isinstance(current, torch.nn.Parameter):
        module.register_parameter(own, torch.nn.Parameter(value, requires_grad=False))
    else:
        module.register_buffer(own, value)
