"""Whether a checkpoint's transformers can be cut as gangs ask, by their configuration alone.

No torch here: a call is refused before anything is started. Whoever loads the model checks it
again, part by part (`tensor.cut_transformer`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.parallel.plans import PLANS, look_up, refuse_context, refuse_degree
from pipeline.recipe import GangShape

COUNTS = {
    "num_attention_heads": "heads",
    "audio_num_attention_heads": "heads for sound",
    "ffn_dim": "channels of feed-forwards",
}
"""What `tensor` must divide, as configurations name it; they leave out what they derive."""


def check_degrees(checkpoint: Path, shapes: Sequence[GangShape]) -> None:
    """Check every gang's degrees against every transformer of a checkpoint in diffusers format.

    Raises:
        UsageError: a transformer can't be dealt out so, or has no plan; or its configuration is no
            JSON.
    """
    shared = [shape for shape in shapes if max(shape.tensor, shape.context) > 1]
    for file in sorted(checkpoint.glob("transformer*/config.json")) if shared else ():
        try:
            config = json.loads(file.read_bytes())
        except ValueError as error:
            raise UsageError(f"model.checkpoint: {file} is no JSON: {error}") from error
        for shape in shared:
            _check(config, file.parent.name, shape)


def _check(config: Mapping[str, Any], name: str, shape: GangShape) -> None:
    if shape.tensor > 1:
        look_up(PLANS, config["_class_name"], "tensor")
        counts = {
            f"{name}: {config[key]} {title}": config[key]
            for key, title in COUNTS.items()
            if key in config
        }
        refuse_degree(shape.tensor, counts)
    if shape.context > 1 and config.get("is_amplify_history"):
        refuse_context(config["_class_name"])
