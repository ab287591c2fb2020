"""Attention over image and text together where each rank has a share of both.

Ulysses deals a mask out over keys alone. HunyuanVideo 1.5's own processor masks padded text as
queries, too, by a square of all tokens: the one thing that is different here. What a padded token
attends to changes no other, since nothing attends to it; and the square, of 4 GB for 64,000 tokens,
is never made.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportPrivateUsage=false
# pyright: reportUnknownArgumentType=false, reportMissingTypeStubs=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models._modeling_parallel import ParallelConfig
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

from pipeline.parallel.lengths import find_lengths

_Heads = tuple[Tensor, Tensor, Tensor]


class JointAttention:
    """A processor for diffusers' `Attention` with a second stream, of HunyuanVideo 1.5.

    Does what `HunyuanVideo15AttnProcessor2_0` does (diffusers 0.42,
    models/transformers/transformer_hunyuan_video15.py), for a rank's share of tokens.
    """

    _attention_backend = None

    def __init__(self, config: ParallelConfig) -> None:
        """Hold the ranks that share a clip's tokens."""
        self._parallel_config = config

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return both streams' shares, as they were given: (batch, tokens, channels).

        attention_mask: (batch, all text tokens), not 0 where there is text.
        """
        layers, norms = (attn.to_q, attn.to_k, attn.to_v), (attn.norm_q, attn.norm_k)
        image = _project(hidden_states, attn.heads, layers, norms)
        layers = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
        norms = attn.norm_added_q, attn.norm_added_k
        text = _project(encoder_hidden_states, attn.heads, layers, norms)
        query, key = (
            cast(Tensor, apply_rotary_emb(each, cast(Any, image_rotary_emb), sequence_dim=1))
            for each in image[:2]
        )
        made = dispatch_attention_fn(
            *(torch.cat(pair, dim=1) for pair in zip((query, key, image[2]), text, strict=True)),
            attn_mask=self._mask(attention_mask, hidden_states.shape[1]),
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        made = made.flatten(2).to(query.dtype)
        image_tokens = hidden_states.shape[1]
        image_made, text_made = made[:, :image_tokens], made[:, image_tokens:]
        return attn.to_out[1](attn.to_out[0](image_made)), attn.to_add_out(text_made)

    def _mask(self, text: Tensor, image_tokens: int) -> Tensor:
        """Return which of all ranks' tokens are attended to, in their order: (batch, 1, 1, all)."""
        context: Any = self._parallel_config.context_parallel_config
        lengths = find_lengths(context, image_tokens)
        shares = text.bool().tensor_split(len(lengths), dim=1)
        parts: list[Tensor] = []
        for length, share in zip(lengths, shares, strict=True):
            parts += [share.new_ones(len(text), length), share]
        return torch.cat(parts, dim=1)[:, None, None]


def _project(states: Tensor, heads: int, layers: Sequence[Any], norms: Sequence[Any]) -> _Heads:
    """Return queries, keys and values: (batch, tokens, heads, channels of one)."""
    query, key, value = (layer(states).unflatten(2, (heads, -1)) for layer in layers)
    norm_query, norm_key = norms
    return norm_query(query), norm_key(key), value
