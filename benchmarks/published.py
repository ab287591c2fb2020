"""What a rank holds of published models' parameters, counted on the meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import torch

from pipeline.errors import UsageError
from pipeline.parallel.plans import PLANS
from pipeline.parallel.tensor import TensorGroup, cut_transformer

PUBLISHED = """## Published models

What a rank of a tensor-parallel gang holds, in GB, and how many times an equal part of the whole
that is. Parameters are kept in bfloat16 but for what diffusers keeps in float32. Counted on the
meta device, by the published configurations; `-`: heads or channels don't divide."""
VACE_14B = {"vace_layers": list(range(0, 40, 5)), "vace_in_channels": 96}
MODELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "Wan 2.1 and 2.2 14B": ("WanTransformer3DModel", {}),
    "Wan 2.1 14B, image to video": (
        "WanTransformer3DModel",
        {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120},
    ),
    "Wan 2.1 1.3B": (
        "WanTransformer3DModel",
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30},
    ),
    "Wan 2.1 VACE 14B": ("WanVACETransformer3DModel", VACE_14B),
    "LTX 2B": ("LTXVideoTransformer3DModel", {}),
    "LTX-2 19B": ("LTX2VideoTransformer3DModel", {"rope_type": "split"}),
    "HunyuanVideo 1.5 8.3B": ("HunyuanVideo15Transformer3DModel", {}),
    "Helios 14B": ("HeliosTransformer3DModel", {}),
}
"""Class and what differs from its defaults."""
RANKS = (2, 4, 8)


def tabulate_published(dtype: torch.dtype) -> Iterator[str]:
    """Yield the lines of the table of published models."""
    ranks = " | ".join(f"{each} ranks" for each in RANKS)
    yield f"| model | parameters | one rank | {ranks} |"
    yield "|---|" + "---:|" * (2 + len(RANKS))
    for name, (kind, changes) in MODELS.items():
        whole = build_published(kind, changes)
        total = count_bytes(whole, dtype)
        cells = [f"{whole.num_parameters() / 1e9:.2f} B", f"{total / 1e9:.1f}"]
        for size in RANKS:
            share = build_published(kind, changes)
            try:
                cut_transformer(share, PLANS[kind], TensorGroup(0, size))
            except UsageError:
                cells.append("-")
            else:
                held = count_bytes(share, dtype)
                cells.append(f"{held / 1e9:.2f} ({held * size / total:.3f})")
        yield f"| {name} | {' | '.join(cells)} |"


def build_published(kind: str, changes: Mapping[str, Any]) -> Any:
    """Return a published transformer without memory."""
    with torch.device("meta"):
        return getattr(diffusers, kind)(**changes)


def count_bytes(model: Any, dtype: torch.dtype) -> int:
    """Return the bytes of a model's parameters as `load_share` keeps them."""
    wide = set(model._keep_in_fp32_modules or ())
    return sum(
        each.numel() * (torch.float32 if wide & set(name.split(".")) else dtype).itemsize
        for name, each in model.named_parameters()
    )
