"""Stage `transformer`: flow matching on cached latents, words and conditions.

The text encoder is frozen. Plain captions first, paraphrases later; one caption in ten is empty,
for guidance, one in four beside a condition. The log's `right`, `swapped` and `empty` are losses at
sigma 0.98, where a clip can only be guessed from its caption: they part when the words are obeyed.
"""

# pyright: basic, reportPrivateImportUsage=false
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanVACETransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from pipeline.tiny.cache import Statistics, load_shards, statistics
from pipeline.tiny.captions import plain
from pipeline.tiny.models import SCHEDULER, build_transformer
from pipeline.tiny.optim import optimizers
from pipeline.tiny.scenes import draw_scene
from pipeline.tiny.stage import Budget, Rates, averaged, numpy_rng, plateau, torch_rng, train
from pipeline.tiny.text import LONGEST, build_tokenizer
from pipeline.tiny.train_text import tokens, trained_encoder

BATCH = 16
"""Clips in one process's batch."""
SEED = 53
EMPTY = 0.1
EMPTY_CONDITIONED = 0.25
"""How often a caption is left out beside a condition: what is given should be kept alike with and
without words, or guidance pushes away from it."""
UNCONDITIONED = 0.15
"""How often a clip's condition is left out, so that it serves for text alone."""
KEPT = 3.0
"""How much what is given weighs in the loss, over what is drawn."""


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    latents: Tensor
    """(n, channels, t, h, w), about unit size."""
    control: Tensor
    """(n, 2 · channels + 64, t, h, w)."""
    captions: list[str]
    swapped: list[str]

    def given(self) -> Tensor:
        """The share of each latent's pixels that a condition gives, (n, 1, t, h, w)."""
        return 1 - self.control[:, -64:].mean(dim=1, keepdim=True)


@dataclass(frozen=True)
class Words:
    """Captions encoded: states with one slot of padding last, and each slot's attention bias."""

    states: Tensor
    """(n, slots, width)."""
    bias: Tensor
    """(n, 1, 1, slots), added to attention scores."""

    def words(self) -> Tensor:
        """The states of the real tokens alone, (tokens, width)."""
        return self.states[self.states.abs().sum(dim=-1) > 0]


class PaddedAttention(WanAttnProcessor):
    """Attention to a caption as the pipelines pad it: 512 slots, the padding's as one.

    Equal slots weigh as one slot whose score is raised by the logarithm of their number.
    """

    def __init__(self) -> None:
        """No bias yet: `Objective` sets it for each batch."""
        super().__init__()
        self.bias: Tensor | None = None

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **_: Any) -> Tensor:
        """Attend with the bias set for this batch in place of a mask."""
        return super().__call__(attn, hidden_states, args[0], self.bias, None)


def encode_words(
    tokenizer: PreTrainedTokenizerFast, encoder: UMT5EncoderModel, captions: list[str]
) -> Words:
    """Captions to states and biases for `PaddedAttention`."""
    ids, mask = tokens(tokenizer, captions)
    with torch.no_grad():
        states = encoder(ids, mask).last_hidden_state.float() * mask[..., None]
    states = torch.cat([states, torch.zeros_like(states[:, :1])], dim=1)
    padding = torch.log(LONGEST - mask.sum(dim=1, keepdim=True).float())
    bias = torch.cat([(mask.float() - 1) * 1e4, padding], dim=1)
    return Words(states, bias[:, None, None])


@torch.no_grad()
def favour_words(model: WanVACETransformer3DModel, states: Tensor) -> None:
    """Start the cross-attention off looking at words, not at the padding, in place.

    A caption of twenty tokens has 490 slots of padding: unhelped, they take 95 % of the attention
    and the words get hardly any gradient. Padding is made to score 0 and to say nothing; words
    score about 6, along the direction that they have in common.

    states: some captions' token states, (tokens, width).
    """
    text: Any = model.condition_embedder.text_embedder
    for layer in (text.linear_1, text.linear_2):
        layer.bias.zero_()
    common = text(states[None])[0].mean(dim=0)
    common /= common.norm()
    for block in [*model.blocks, *model.vace_blocks]:
        attention: Any = block.attn2
        for layer in (attention.to_k, attention.to_v):
            layer.bias.zero_()
        typical = attention.to_k(text(states[None]))[0].norm(dim=-1).mean()
        ones = torch.ones_like(attention.to_q.bias) / len(attention.to_q.bias) ** 0.5
        size = (text(states[None])[0] @ common).mean()
        attention.to_k.weight += torch.outer(ones, common) * (typical / size) * 2
        attention.to_q.bias += ones * len(ones) ** 0.5
        attention.norm_k.weight.fill_(1.6)


class Clips:
    """The cache, by size, ready to draw batches from."""

    def __init__(self, shards: list[Any]) -> None:
        """Sort the shards of a cache by size."""
        self.statistics: Statistics = statistics(shards)
        self.sizes: dict[tuple[int, ...], list[Any]] = {}
        for shard in shards:
            self.sizes.setdefault(tuple(shard["size"]), []).append(shard)
        self.keys = list(self.sizes)
        counts = np.array([len(self.sizes[key]) for key in self.keys], float)
        self.shares = counts / counts.sum()

    def draw(self, rng: np.random.Generator, count: int, plainness: float) -> Batch:
        """A batch of one size; `plainness` is the share of plain captions."""
        shards = self.sizes[self.keys[int(rng.choice(len(self.keys), p=self.shares))]]
        latents: list[Tensor] = []
        control: list[Tensor] = []
        captions: list[str] = []
        swapped: list[str] = []
        for _ in range(count):
            shard = shards[int(rng.integers(len(shards)))]
            i = int(rng.integers(len(shard["latents"])))
            latents.append(shard["latents"][i])
            control.append(self._control(shard, i, rng.random() < UNCONDITIONED))
            words = shard["captions"][i]
            captions.append(words[0] if rng.random() < plainness else str(rng.choice(words[1:])))
            swapped.append(shard["swapped"][i])
        normal = self.statistics.normal(torch.stack(latents))
        return Batch(normal, torch.stack(control), captions, swapped)

    def _control(self, shard: Any, i: int, leave_out: bool) -> Tensor:
        normal = self.statistics.normal
        kept = redrawn = shard["blank"]
        mask = torch.ones(64, *kept.shape[1:])
        at = (shard["kept_at"] == i).nonzero()
        if len(at) and not leave_out:
            kept, mask = shard["kept"][int(at[0])], shard["masks"][int(at[0])].float()
            over = (shard["redrawn_at"] == i).nonzero()
            redrawn = shard["redrawn"][int(over[0])] if len(over) else redrawn
        return torch.cat([normal(kept[None])[0], normal(redrawn[None])[0], mask])


def sigmas(rng: np.random.Generator, count: int) -> Tensor:
    """Noise levels as the scheduler's shift spreads them, (n,)."""
    shift, even = SCHEDULER["flow_shift"], rng.uniform(0.001, 0.999, count)
    return torch.from_numpy(shift * even / (1 + (shift - 1) * even)).float()


def weigh(error: Tensor, batch: Batch) -> Tensor:
    """An error's mean in each clip, (n,), where what is given weighs `KEPT` times as much.

    error: (n, channels, t, h, w).
    """
    weight = (1 + (KEPT - 1) * batch.given()).expand_as(error)
    return (weight * error).sum(dim=(1, 2, 3, 4)) / weight.sum(dim=(1, 2, 3, 4))


class Objective:
    """The flow-matching loss of a transformer on batches."""

    def __init__(self, model: WanVACETransformer3DModel, encode: Callable[[list[str]], Words]):
        """Take a model over for training: its cross-attention learns of padding's weight."""
        self.model, self.encode = model, encode
        self.processor = PaddedAttention()
        for block in [*model.blocks, *model.vace_blocks]:
            attention: Any = block.attn2
            attention.set_processor(self.processor)

    # The fused attention's backward on a CPU takes 130 ms a call at this size, more than half of a
    # step (torch 2.13, one AMX core); written out it takes a few.
    def loss(self, batch: Batch, captions: list[str], sigma: Tensor, noise: Tensor) -> Tensor:
        """The squared error of the predicted velocity, noise - latents, of each clip: (n,)."""
        level = sigma.view(-1, 1, 1, 1, 1)
        words = self.encode(captions)
        self.processor.bias = words.bias
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            made = self.model(
                hidden_states=(1 - level) * batch.latents + level * noise,
                timestep=sigma * SCHEDULER["num_train_timesteps"],
                encoder_hidden_states=words.states,
                control_hidden_states=batch.control,
                return_dict=False,
            )[0]
        return weigh((made.float() - (noise - batch.latents)).square(), batch)

    @torch.no_grad()
    def gate(self, batch: Batch) -> dict[str, float]:
        """The loss at sigma 0.98 with right, colour-swapped and empty captions."""
        sigma = torch.full((len(batch.captions),), 0.98)
        noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(1))
        empty = [""] * len(batch.captions)
        wordings = {"right": batch.captions, "swapped": batch.swapped, "empty": empty}
        return {k: float(self.loss(batch, v, sigma, noise).mean()) for k, v in wordings.items()}


def run(
    work: Path, budget: Budget, *, seed: int = SEED, batch: int = BATCH, rate: Rates = plateau
) -> None:
    """Train the transformer in `work/transformer` on what `work/cache` holds."""
    torch.manual_seed(seed)
    tokenizer, encoder = build_tokenizer(), trained_encoder(work)
    clips, model = Clips(load_shards(work)), build_transformer()

    def encode(captions: list[str]) -> Words:
        return encode_words(tokenizer, encoder, captions)

    some = [plain(draw_scene(np.random.default_rng([seed, i]))) for i in range(32)]
    favour_words(model, encode(some).words())
    objective = Objective(model, encode)
    texts_only = Clips.draw(clips, np.random.default_rng(seed), 16, 1.0)
    blank = clips._control(clips.sizes[_size_of(clips, texts_only)][0], -1, True)
    texts_only = Batch(
        texts_only.latents, blank.expand(16, *blank.shape), texts_only.captions, texts_only.swapped
    )

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = numpy_rng(seed, step)
        progress = step / budget.steps
        plainness = 0.8 if progress < 0.35 else 0.4
        drawn = clips.draw(rng, batch, plainness)
        given = drawn.given().amax(dim=(1, 2, 3, 4)) > 0
        empty = [EMPTY_CONDITIONED if g else EMPTY for g in given.tolist()]
        captions = [
            "" if rng.random() < share else caption
            for caption, share in zip(drawn.captions, empty, strict=True)
        ]
        noise = torch.randn(drawn.latents.shape, generator=torch_rng(seed, step))
        loss = objective.loss(drawn, captions, sigmas(rng, batch), noise).mean()
        figures = objective.gate(texts_only) if step % 50 == 0 else {}
        return loss, figures

    made = optimizers(model.parameters(), muon_rate=1e-2, adam_rate=1.5e-3)
    train(work / "transformer", model, made, step_loss, budget, decay=0.998, rate=rate)


def _size_of(clips: Clips, batch: Batch) -> tuple[int, ...]:
    """The size whose latents have a batch's shape."""
    for key, shards in clips.sizes.items():
        if shards[0]["blank"].shape == batch.latents.shape[1:]:
            return key
    raise ValueError(f"no size with latents of {tuple(batch.latents.shape[1:])}")


def trained_transformer(work: Path) -> WanVACETransformer3DModel:
    """The stage's averaged weights, with diffusers' own attention."""
    model = averaged(work / "transformer", build_transformer())
    assert isinstance(model, WanVACETransformer3DModel)  # a type for the checker, not a check
    return model
