"""Whether a checkpoint's transformers can be cut as gangs ask, by their configuration alone.

No torch here: a call is refused before anything is started. Whoever loads the model checks it
again, part by part (`tensor.cut_transformer`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from pipeline.errors import UsageError
from pipeline.parallel.plans import PLANS, check_context, look_up, refuse_degree
from pipeline.recipe import GangShape

TRANSFORMER_CONFIGS = ("transformer*/config.json",)
"""The files of a checkpoint that say it."""
HEADS = {"num_attention_heads": "heads", "audio_num_attention_heads": "heads for sound"}
"""What `tensor` must divide and `context` must nearly divide, as configurations name it."""
COUNTS = {**HEADS, "ffn_dim": "channels of feed-forwards"}
"""What `tensor` must divide; configurations leave out what they derive."""


def check_degrees(checkpoint: Path, shapes: Sequence[GangShape]) -> None:
    """Check every gang's degrees against every transformer of a checkpoint in diffusers format.

    Raises:
        UsageError: a transformer can't be dealt out so, or has no plan; or its configuration is no
            JSON object, or names no class.
    """
    shared = [shape for shape in shapes if max(shape.tensor, shape.context) > 1]
    files = (file for name in TRANSFORMER_CONFIGS for file in checkpoint.glob(name))
    for file in sorted(files) if shared else ():
        try:
            config: Any = json.loads(file.read_bytes())
        except ValueError as error:
            raise UsageError(f"model.checkpoint: {file} is no JSON: {error}") from error
        if not isinstance(config, dict) or "_class_name" not in config:
            raise UsageError(
                f"model.checkpoint: {file} has no _class_name, which names the model's class; "
                "expected a component's configuration as diffusers saves it"
            )
        for shape in shared:
            _check(cast(dict[str, Any], config), file.parent.name, shape)


def _check(config: Mapping[str, Any], name: str, shape: GangShape) -> None:
    kind = config["_class_name"]
    if shape.tensor > 1:
        look_up(PLANS, kind, "tensor")
        if config.get("quantization_config"):
            raise UsageError(
                f"gangs: tensor = {shape.tensor}: {name} is quantized, and its layers can't be "
                "dealt out; give weights that are not, or tensor = 1"
            )
        counts = {
            f"{name}: {config[key]} {title}": config[key]
            for key, title in COUNTS.items()
            if key in config
        }
        refuse_degree(shape.tensor, counts)
    if shape.context > 1:
        look_up(PLANS, kind, "context")  # `context.PLANS` has the same classes
        check_context(kind, config)
        for key, title in HEADS.items():
            if key in config:
                what = f"{name}: {config[key]} {title}"
                _refuse_uneven(config[key] // shape.tensor, shape, what)


def _refuse_uneven(heads: int, shape: GangShape, what: str) -> None:
    """Refuse a degree that leaves the last of the ranks that share tokens no head of its own.

    Around an attention these ranks exchange tokens for heads: the heads that a rank of `tensor`
    has, padded to a multiple of `context` (diffusers 0.42, models/attention_dispatch.py,
    `_maybe_pad_qkv_head`, asserts the same).

    Raises:
        UsageError: it does.
    """
    if not _has_heads(heads, shape.context):
        works = [str(n) for n in range(1, heads + 1) if _has_heads(heads, n)]
        each = f", {heads} for each of tensor = {shape.tensor}" if shape.tensor > 1 else ""
        raise UsageError(
            f"gangs: context = {shape.context} can't deal out {what}{each}; "
            f"{', '.join(works)} would"
        )


def _has_heads(heads: int, ranks: int) -> bool:
    """Return whether every rank gets a head where each gets as many, the last the fewest."""
    padding = -heads % ranks
    return padding < (heads + padding) // ranks
