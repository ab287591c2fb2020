"""Stage `text`: the encoder alone, made to tell a caption's attributes apart. Then frozen.

Trained only through the diffusion loss it stays a bag of words: half the clips had the two
colours swapped. So it first learns to say what colour, background, shape and motion a caption
names: at **every** token, so that the transformer may attend to any of them.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from pipeline.tiny.captions import paraphrase, plain
from pipeline.tiny.models import TEXT_WIDTH, build_text_encoder
from pipeline.tiny.scenes import BACKGROUNDS, COLOURS, MOTIONS, Scene, draw_scene
from pipeline.tiny.shapes import SHAPES
from pipeline.tiny.stage import Budget, averaged, numpy_rng, train
from pipeline.tiny.text import build_tokenizer

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "background": tuple(COLOURS),
    "backdrop": BACKGROUNDS,
    "shape": tuple(SHAPES),
    "motion": MOTIONS,
}
BATCH = 96
SEED = 23


class AttributeReader(nn.Module):
    """The encoder with a linear layer for each attribute, over every token."""

    def __init__(self, encoder: UMT5EncoderModel) -> None:
        """Fresh layers on an encoder."""
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Linear(TEXT_WIDTH, len(v)) for v in ATTRIBUTES.values())

    def forward(self, ids: Tensor, mask: Tensor) -> list[Tensor]:
        """Scores of each attribute's values at the real tokens, a list of (tokens, values)."""
        states = self.encoder(ids, mask).last_hidden_state[mask > 0]
        return [head(states) for head in self.heads]


def targets(scenes: list[Scene]) -> list[Tensor]:
    """The index of each attribute's value, a list of (n,)."""
    return [
        torch.tensor([values.index(getattr(scene, name)) for scene in scenes])
        for name, values in ATTRIBUTES.items()
    ]


def tokens(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask of a batch, (n, longest) each."""
    batch = tokenizer(texts, padding=True, truncation=True, max_length=96, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def run(work: Path, budget: Budget, *, seed: int = SEED, batch: int = BATCH) -> None:
    """Train the text encoder in `work/text`."""
    torch.manual_seed(seed)
    tokenizer, reader = build_tokenizer(), AttributeReader(build_text_encoder())

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = numpy_rng(seed, step)
        # Held-out combinations are unknown here too: only their clips' words, apart, are known.
        scenes = [draw_scene(rng) for _ in range(batch)]
        texts = [plain(s) if rng.random() < 0.2 else paraphrase(rng, s) for s in scenes]
        ids, mask = tokens(tokenizer, texts)
        made, owner = reader(ids, mask), mask.nonzero()[:, 0]
        wanted = [values[owner] for values in targets(scenes)]
        losses = [functional.cross_entropy(m, w) for m, w in zip(made, wanted, strict=True)]
        right = [(m.argmax(1) == w) for m, w in zip(made, wanted, strict=True)]
        every = torch.stack(right).all(dim=0).float().mean()
        return torch.stack(losses).sum(), {"all_right": float(every)}

    made = [torch.optim.AdamW(reader.parameters(), 2e-3, weight_decay=0.01)]
    train(work / "text", reader, made, step_loss, budget, decay=0.99)


def trained_encoder(work: Path) -> UMT5EncoderModel:
    """The finished stage's encoder, frozen."""
    reader = averaged(work / "text", AttributeReader(build_text_encoder()))
    assert isinstance(reader, AttributeReader)  # a type for the checker, not a check
    return reader.encoder.eval().requires_grad_(False)
