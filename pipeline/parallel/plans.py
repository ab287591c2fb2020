"""Which parts of each transformer are tensor-parallel: a table, one entry a class.

Parts follow diffusers' naming, which is one for all families: an attention projects by `to_q`,
`to_k`, `to_v` (and `add_…` for a second stream) and back by `to_out.0`; a feed-forward goes up by
`net.0.proj` and down by `net.2`. Everything that no pattern names is whole on every rank.

A new family is an entry here and its case in `tests/parity/test_layouts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from pipeline.errors import UsageError

_Plan = TypeVar("_Plan")
Role = Literal["column", "gathered", "row", "norm", "per_head"]
"""How a part is cut.

column: a linear layer by its outputs; nothing is exchanged.
gathered: the same; then each rank gets all outputs. For what makes one vector of many a clip.
row: a linear layer by its inputs; the ranks' outputs are summed.
norm: an RMS norm across all heads by its channels; the sums of squares are summed.
per_head: a parameter with one number a head.
"""


@dataclass(frozen=True)
class TensorPlan:
    """The parts of one transformer class, as module patterns: `*` stands for one name."""

    attentions: tuple[str, ...]
    feed_forwards: tuple[str, ...]
    rotary: tuple[str, ...] = ()
    """Arguments of an attention's call with rotary angles that differ by head: cut like heads."""
    modulations: tuple[str, ...] = ()
    """Norms whose shifts and scales a layer of their own makes of the timestep. Where all blocks
    share that layer it is small, and whole on every rank."""


ATTENTION: Mapping[str, Role] = {
    "to_q": "column",
    "to_k": "column",
    "to_v": "column",
    "add_q_proj": "column",
    "add_k_proj": "column",
    "add_v_proj": "column",
    "to_gate_logits": "column",
    "to_out.0": "row",
    "to_add_out": "row",
    "norm_q": "norm",
    "norm_k": "norm",
    "norm_added_q": "norm",
    "norm_added_k": "norm",
    "history_key_scale": "per_head",
}
"""The parts of an attention. A norm over one head's channels alone stays whole."""

FEED_FORWARD: Mapping[str, Role] = {"net.0.proj": "column", "net.2": "row"}

MODULATION: Mapping[str, Role] = {"linear": "gathered"}

PLANS: Mapping[str, TensorPlan] = {
    "WanTransformer3DModel": TensorPlan(
        attentions=("blocks.*.attn1", "blocks.*.attn2"),
        feed_forwards=("blocks.*.ffn",),
    ),
    "WanVACETransformer3DModel": TensorPlan(
        # `proj_out` of its control blocks, 1 % of it, stays whole: it makes outputs for each token.
        attentions=(
            "blocks.*.attn1",
            "blocks.*.attn2",
            "vace_blocks.*.attn1",
            "vace_blocks.*.attn2",
        ),
        feed_forwards=("blocks.*.ffn", "vace_blocks.*.ffn"),
    ),
    "LTXVideoTransformer3DModel": TensorPlan(
        attentions=("transformer_blocks.*.attn1", "transformer_blocks.*.attn2"),
        feed_forwards=("transformer_blocks.*.ff",),
        rotary=("image_rotary_emb",),
    ),
    "LTX2VideoTransformer3DModel": TensorPlan(
        attentions=(
            "transformer_blocks.*.attn1",
            "transformer_blocks.*.attn2",
            "transformer_blocks.*.audio_attn1",
            "transformer_blocks.*.audio_attn2",
            "transformer_blocks.*.audio_to_video_attn",
            "transformer_blocks.*.video_to_audio_attn",
        ),
        feed_forwards=("transformer_blocks.*.ff", "transformer_blocks.*.audio_ff"),
        rotary=("query_rotary_emb", "key_rotary_emb"),
    ),
    "HunyuanVideo15Transformer3DModel": TensorPlan(
        attentions=("transformer_blocks.*.attn",),
        feed_forwards=("transformer_blocks.*.ff", "transformer_blocks.*.ff_context"),
        modulations=("transformer_blocks.*.norm1", "transformer_blocks.*.norm1_context"),
    ),
    "HeliosTransformer3DModel": TensorPlan(
        attentions=("blocks.*.attn1", "blocks.*.attn2"),
        feed_forwards=("blocks.*.ffn",),
    ),
}
"""By the transformer's class."""


def look_up(plans: Mapping[str, _Plan], kind: str, what: str) -> _Plan:
    """Return a transformer class's plan for `what` out of a table by class.

    Raises:
        UsageError: there is none.
    """
    try:
        return plans[kind]
    except KeyError:
        raise UsageError(
            f"gangs: {kind} has no plan for {what} parallelism; there are plans for "
            f"{', '.join(plans)}"
        ) from None


def refuse_degree(size: int, counts: Mapping[str, int]) -> None:
    """Refuse a degree that doesn't divide every count, with those that would; by what they count.

    Raises:
        UsageError: it doesn't.
    """
    bad = next((what for what, count in counts.items() if count % size), None)
    if bad:
        most = min(counts.values())
        works = [n for n in range(1, most + 1) if not any(c % n for c in counts.values())]
        raise UsageError(
            f"gangs: tensor = {size} doesn't divide {bad}; {', '.join(map(str, works))} would"
        )


def check_context(kind: str, config: Mapping[str, Any]) -> None:
    """Check that a transformer so configured can work on a share of its tokens.

    Raises:
        UsageError: it can't.
    """
    why = None
    if config.get("is_amplify_history"):
        why = (
            "weighs past frames by their place in the whole sequence, which a rank with a share of "
            "it doesn't know"
        )
    elif config.get("rope_type") == "interleaved":
        why = "has interleaved rotary tables; there is a plan for split ones (rope_type)"
    if why:
        raise UsageError(f"gangs: context: {kind} {why}")
