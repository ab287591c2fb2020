"""What one stage hands to the next: tensors and small values, as one run of bytes.

`pack` and `unpack` turn a tree of tensors, numbers, text, dtypes, lists and dicts into bytes and
back, exact to the bit and with no code in them: the form in which stages, step checkpoints and
processes exchange state. The bytes are a safetensors file that knows its own digest.
"""

# pyright: reportUnknownVariableType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from pipeline.errors import NotFiniteError

_TREE = "tree"
_NO_DIGEST = "0" * 32


class UnpackableError(TypeError):
    """A value is no tree of tensors and plain values."""


def pack(value: Any) -> bytes:
    """Return `value` as bytes; each tensor's kind of device is noted.

    Raises:
        UnpackableError: the tree holds something other than tensors, plain values, dtypes,
            lists, tuples and dicts with text keys.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = {"digest": _NO_DIGEST, _TREE: _describe(value, tensors)}
    data = save_safetensors(tensors, metadata={_TREE: json.dumps(tree)})
    return data.replace(_digest_field(_NO_DIGEST), _digest_field(_digest(data)), 1)


def unpack(data: bytes, device: torch.device | str = "cpu") -> Any:
    """Return what `pack` was given; tensors that were on an accelerator go to `device`.

    Raises:
        ValueError: the bytes are not as `pack` made them.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        tree = json.loads(header["__metadata__"][_TREE])
        digest = tree["digest"]
        blank = data.replace(_digest_field(digest), _digest_field(_NO_DIGEST), 1)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not packed state: {len(data)} bytes without its header") from error
    if _digest(blank) != digest:
        raise ValueError(f"not packed state, or damaged: {len(data)} bytes whose digest differs")
    return _rebuild(tree[_TREE], load_safetensors(data), torch.device(device))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=len(_NO_DIGEST) // 2).hexdigest()


def _digest_field(digest: str) -> bytes:
    """Return the place of the digest as it stands in the header: JSON text within JSON."""
    return json.dumps(f'"digest": "{digest}"')[1:-1].encode()


def is_packable(value: Any) -> bool:
    """Return whether `pack` takes `value`."""
    try:
        _describe(value, {})
    except UnpackableError:
        return False
    return True


def _describe(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name, "device": value.device.type}
    if type(value) is float:
        return {"float": value.hex()}  # exact, and JSON has no NaN and no infinity
    if type(value) in (bool, int, str):
        return {"plain": value}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if type(value) in (list, tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_describe(each, tensors) for each in value]}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _describe(each, tensors) for key, each in value.items()}}
    raise UnpackableError(f"cannot pack a {type(value).__name__}")


def _rebuild(tree: Any, tensors: Mapping[str, torch.Tensor], device: torch.device) -> Any:
    if tree is None:
        return None
    ((kind, value), *rest) = tree.items()
    match kind:
        case "tensor":
            tensor = tensors[value]
            return tensor if dict(rest)["device"] == "cpu" else tensor.to(device)
        case "plain":
            return value
        case "float":
            return float.fromhex(value)
        case "dtype":
            return getattr(torch, value)
        case "list":
            return [_rebuild(each, tensors, device) for each in value]
        case "tuple":
            return tuple(_rebuild(each, tensors, device) for each in value)
        case _:
            return {key: _rebuild(each, tensors, device) for key, each in value.items()}


def check_finite(values: Mapping[str, Any]) -> None:
    """Raise NotFiniteError where a tensor of `values`, or in a list, holds NaN or infinity."""
    for name, value in values.items():
        if not _is_finite(value):
            raise NotFiniteError(f"{name} are not finite: the model diverged on this request")


def _is_finite(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_finite(each) for each in value)
    return not isinstance(value, torch.Tensor) or bool(torch.isfinite(value).all())


def _move(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, torch.Tensor):
        return tree.to(device)
    if isinstance(tree, list | tuple):
        return type(tree)(_move(each, device) for each in tree)
    if isinstance(tree, dict):
        return {key: _move(each, device) for key, each in tree.items()}
    return tree


@dataclass(frozen=True)
class Handoff:
    """The values that a stage's blocks left for later ones, by the names diffusers gives them."""

    values: Mapping[str, Any]
    kinds: Mapping[str, str] = field(default_factory=dict[str, str])
    """`kwargs_type` of the values that have one, such as `denoiser_input_fields`."""
    generator_state: torch.Tensor | None = None
    """State of the clip's one random generator, uint8; None where it was not yet drawn from."""

    def to(self, device: torch.device | str) -> Self:
        """Return the handoff with its tensors on `device`: the next stage may live elsewhere."""
        return replace(self, values=_move(dict(self.values), torch.device(device)))

    def to_bytes(self) -> bytes:
        """Return the handoff packed."""
        return pack([dict(self.values), dict(self.kinds), self.generator_state])

    @classmethod
    def from_bytes(cls, data: bytes, device: torch.device | str = "cpu") -> Self:
        """Return the handoff that was packed, its accelerator tensors on `device`."""
        values, kinds, generator_state = unpack(data, device)
        return cls(values, kinds, generator_state)


class Conditioning(Handoff):
    """encode → denoise: text embeddings, image and control latents."""


class Latents(Handoff):
    """denoise → develop: the finished latents, of video and of audio where the family has it."""
